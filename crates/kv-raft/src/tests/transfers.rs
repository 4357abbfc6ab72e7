//! What a leader sends of its snapshots when a follower has no room, or its link is down for a while.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kv_peer::PeerError;
use kv_proto::peer;
use kv_proto::peer::raft_snapshot::Step;
use kv_proto::peer::raft_snapshot_reply::Result as Reply;
use kv_proto::peer::request_frame::Body as Request;
use kv_proto::peer::response_frame::Body as Response;
use kv_storage::Storage;
use kv_types::{NamespaceId, NodeId};
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::vote::RaftLeaderId;
use tokio::time::Instant;

use super::bench::{Bench, GROUP, put};
use super::writes::apply;
use crate::config::{Entry, Vote};
use crate::kv_machine::KvMachine;
use crate::limits::{NO_ROOM_PAUSE, NO_ROOM_PAUSE_MAX, SNAPSHOT_IDLE};
use crate::machine::Machine;
use crate::proposal::Proposal;
use crate::snapshot::{Block, Snapshot, SnapshotData};
use crate::snapshot_in::{Gate, Incoming, Standing};
use crate::snapshot_out::{NotSent, Outgoing, Pace};
use crate::tables::{Space, Table, keys};
use crate::transfer::Refusal;

const LEADER: NodeId = NodeId(1);
const FOLLOWER: NodeId = NodeId(2);
/// Between two attempts of openraft.
const BACKOFF: Duration = Duration::from_millis(200);

fn vote() -> Vote {
    Vote { leader_id: RaftLeaderId::new(1, 1), committed: true }
}

/// A membership of both.
fn voters() -> openraft::Membership<u64, openraft::EmptyNode> {
    let ids: std::collections::BTreeSet<u64> = [LEADER.0, FOLLOWER.0].into();
    openraft::Membership::new(vec![ids.clone()], ids).unwrap()
}

/// A leader's state machine with its snapshots, and what sends them.
struct Leader {
    storage: Storage,
    machine: Machine,
    outgoing: Arc<Outgoing>,
    bench: Bench,
    written: u64,
}

impl Leader {
    async fn new() -> Self {
        let storage = super::memory(1);
        let mut machine =
            Machine::open(storage.clone(), GROUP, KvMachine::new(Default::default())).await.unwrap();
        // As every group begins.
        let payload = openraft::EntryPayload::Membership(voters());
        let first = Entry { log_id: crate::codec::log_id(1, 1, 0), payload };
        machine.apply(futures_util::stream::iter([Ok((first, None))])).await.unwrap();
        let pace = Pace { chunk_bytes: 1_000, bytes_per_second: 0 };
        let outgoing = Outgoing::new(GROUP, LEADER, pace, machine.account());
        Self { storage, machine, outgoing, bench: Bench::new(), written: 0 }
    }

    /// Writes some keys and takes a snapshot.
    async fn snapshot(&mut self) -> Snapshot {
        let first = self.written + 1;
        self.written += 60;
        let command = |seq| self.bench.command(1, seq, &format!("k{seq}"), put(&"v".repeat(200))).encode();
        let proposals: Vec<Proposal> = (first..=self.written).map(command).collect();
        apply(&mut self.machine, first, &proposals).await;
        self.machine.get_snapshot_builder().await.build_snapshot().await.unwrap()
    }

    async fn offered(&mut self) -> Snapshot {
        self.machine.get_current_snapshot().await.unwrap().unwrap()
    }

    fn files(&self) -> usize {
        self.storage.snapshots(GROUP).list().unwrap().len()
    }
}

fn answer(result: Reply) -> Result<Response, PeerError> {
    Ok(Response::RaftSnapshot(peer::RaftSnapshotReply { result: Some(result) }))
}

fn step_of(body: Request) -> Step {
    match body {
        Request::RaftSnapshot(peer::RaftSnapshot { step: Some(step), .. }) => step,
        other => panic!("{other:?}"),
    }
}

/// A follower behind a link that can be down.
struct Follower {
    storage: Storage,
    incoming: Arc<Incoming>,
    /// Chunks that still pass.
    passes: AtomicUsize,
    /// Offsets of the chunks that passed.
    offsets: Mutex<Vec<u64>>,
}

impl Follower {
    fn new() -> Arc<Self> {
        let storage = super::memory(2);
        let incoming = Incoming::new(GROUP, storage.snapshots(GROUP), 4_096, Arc::<Gate>::default(), 1);
        Arc::new(Self { storage, incoming, passes: AtomicUsize::new(usize::MAX), offsets: Mutex::default() })
    }

    async fn call(self: Arc<Self>, body: Request, within: Duration) -> Result<Response, PeerError> {
        let step = step_of(body);
        if self.passes.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(within).await;
            return Err(PeerError::TimedOut);
        }
        if let Step::Chunk(chunk) = &step {
            self.passes.fetch_sub(1, Ordering::Relaxed);
            self.offsets.lock().unwrap().push(chunk.offset);
        }
        let standing = Standing { vote: vote(), committed: None };
        let install = |_| async { Ok(vote()) };
        answer(self.incoming.clone().step(LEADER, vote(), step, standing, install).await.unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_transfer_goes_on_though_a_newer_snapshot_was_taken() {
    let mut leader = Leader::new().await;
    let follower = Follower::new();
    let give = |leader: &Leader, snapshot| {
        let (outgoing, follower) = (leader.outgoing.clone(), follower.clone());
        async move {
            let call = |body, within| follower.clone().call(body, within);
            outgoing.give(FOLLOWER, vote(), snapshot, call).await
        }
    };
    let first = leader.snapshot().await;
    let offered = leader.offered().await;
    assert_eq!(offered.meta, first.meta);
    follower.passes.store(5, Ordering::Relaxed);
    let down = Instant::now();
    let interrupted = give(&leader, offered).await;
    assert!(matches!(interrupted, Err(NotSent::Idle(_))), "{interrupted:?}");
    assert!(down.elapsed() >= SNAPSHOT_IDLE);

    // Of two newer ones the first is not kept.
    leader.snapshot().await;
    let newest = leader.snapshot().await;
    assert_eq!(leader.files(), 2);
    let offered = leader.offered().await;
    follower.passes.store(usize::MAX, Ordering::Relaxed);
    assert_eq!(give(&leader, offered.clone()).await.unwrap(), vote());
    let offsets = follower.offsets.lock().unwrap().clone();
    assert!(offsets.windows(2).all(|pair| pair[0] < pair[1]), "it began again: {offsets:?}");
    assert_eq!(offered.meta, first.meta);

    // The transfer has ended: the old file is not needed any more.
    assert_eq!(leader.offered().await.meta, newest.meta);
    assert!(leader.machine.account().has_spare_file());
    leader.machine.account().remove_old_files(&leader.storage, GROUP).unwrap();
    assert_eq!(leader.files(), 1);
    assert!(!leader.machine.account().has_spare_file());
    leader.storage.halt();
    follower.storage.halt();
}

/// A snapshot behind which the log has been purged is of no use to the follower.
#[tokio::test(start_paused = true)]
async fn an_interrupted_transfer_is_given_up_when_the_log_does_not_go_on_behind_it() {
    let mut leader = Leader::new().await;
    let follower = Follower::new();
    let first = leader.snapshot().await;
    follower.passes.store(5, Ordering::Relaxed);
    let call = |body, within| follower.clone().call(body, within);
    let interrupted = leader.outgoing.give(FOLLOWER, vote(), first.clone(), call).await;
    assert!(matches!(interrupted, Err(NotSent::Idle(_))), "{interrupted:?}");
    let newest = leader.snapshot().await;
    assert_eq!(leader.offered().await.meta, first.meta);
    let log = leader.storage.raft(GROUP);
    let behind = first.meta.last_log_id.unwrap().index;
    log.purge(kv_storage::RaftLogId { term: 1, node: 1, index: behind }).unwrap();
    assert_eq!(leader.offered().await.meta, first.meta, "the next entry is still there");
    log.purge(kv_storage::RaftLogId { term: 1, node: 1, index: behind + 1 }).unwrap();
    assert_eq!(leader.offered().await.meta, newest.meta);
    leader.storage.halt();
    follower.storage.halt();
}

/// The bytes are as they were sent, and no node writes such a record: the file never exists at the follower,
/// which could not be started with it.
#[tokio::test(start_paused = true)]
async fn a_snapshot_with_a_record_that_no_node_writes_is_refused() {
    let mut leader = Leader::new().await;
    let follower = Follower::new();
    let mut snapshot = leader.snapshot().await;
    let last = crate::codec::log_id(1, 1, leader.written + 1);
    snapshot.meta.last_log_id = Some(last);
    let files = leader.storage.snapshots(GROUP);
    let mut file = files.create().unwrap();
    let mut block = Block::new();
    let key = keys::data(Space::first(GROUP), NamespaceId(1), b"k");
    block.push(Table::Data.id().get(), &key, Some(b"no row")).unwrap();
    file.write(kv_storage::BlockKind::Base, &block.take()).unwrap();
    let id = crate::snapshot::id_of(Some(&last));
    file.finish(id, &crate::codec::encode_mark(&snapshot.meta)).unwrap();
    snapshot.snapshot = SnapshotData::File { files, id };
    let call = |body, within| follower.clone().call(body, within);
    let given = leader.outgoing.give(FOLLOWER, vote(), snapshot, call).await;
    assert!(matches!(given, Err(NotSent::Refused(Refusal::Damaged))), "{given:?}");
    assert_eq!(follower.storage.snapshots(GROUP).list().unwrap().len(), 0);
    leader.storage.halt();
    follower.storage.halt();
}

#[tokio::test(start_paused = true)]
async fn a_follower_without_room_is_asked_less_and_less_often() {
    let mut leader = Leader::new().await;
    let snapshot = leader.snapshot().await;
    let (asked, room) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let call = |body, _| {
        asked.lock().unwrap().push(Instant::now());
        assert!(matches!(step_of(body), Step::Begin(_)));
        let result = match room.load(Ordering::Relaxed) {
            true => Reply::Installed(crate::codec::to_wire_vote(&vote())),
            false => Reply::Refused(peer::SnapshotRefused {
                reason: Refusal::NoRoom.into(),
                offset: 0,
                message: "full".into(),
            }),
        };
        async { answer(result) }
    };
    let give = || leader.outgoing.give(FOLLOWER, vote(), snapshot.clone(), &call);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(120) {
        let refused = give().await;
        assert!(matches!(refused, Err(NotSent::Refused(Refusal::NoRoom))), "{refused:?}");
        tokio::time::sleep(BACKOFF).await;
    }
    let times = asked.lock().unwrap().clone();
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!((NO_ROOM_PAUSE_MAX..NO_ROOM_PAUSE_MAX + NO_ROOM_PAUSE).contains(&longest), "{longest:?}");
    assert!((20..=40).contains(&times.len()), "asked {} times in two minutes", times.len());

    // A stop ends the pause, and leaves nothing behind that delays the next transfer.
    let stopped = tokio::time::timeout(NO_ROOM_PAUSE_MAX / 2, give()).await;
    assert!(stopped.is_err(), "it pauses: {stopped:?}");
    room.store(true, Ordering::Relaxed);
    let before = Instant::now();
    assert_eq!(give().await.unwrap(), vote());
    assert_eq!(before.elapsed(), Duration::ZERO);
    // The next time begins with the shortest pause.
    room.store(false, Ordering::Relaxed);
    let before = Instant::now();
    assert!(give().await.is_err());
    assert_eq!(before.elapsed(), 2 * NO_ROOM_PAUSE);
    leader.storage.halt();
}
