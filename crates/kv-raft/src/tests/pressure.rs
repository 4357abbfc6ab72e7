//! A node under pressure: what cannot be applied soon is refused before it is proposed, one namespace leaves
//! room for the next, and what was taken is applied once.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use kv_env::Env;
use kv_peer::{PeerConfig, Peers};
use kv_proto::{client_id_bytes, v1};
use kv_storage::disk::MemDisk;
use kv_storage::{Storage, StorageOptions};
use kv_types::catalogue::Member;
use kv_types::{
    Applied, ClientId, ClusterId, Failure, GroupId, Guarantee, Hop, Namespace, NamespaceId, NamespaceName,
    NodeId, Placement, Reason,
};
use openraft::async_runtime::WatchReceiver;
use tokio::sync::OwnedRwLockReadGuard;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::gated::{Gate, GatedTiers};
use crate::applied::AppliedState;
use crate::backlog::Load;
use crate::config::{RaftConfig, log_bytes_wanted};
use crate::dropped::DropCommand;
use crate::groups::Group;
use crate::proposal::Reply;
use crate::strong::Strong;

use wire::Asked;

#[path = "../../tests/wire/mod.rs"]
mod wire;

const CLUSTER: ClusterId = ClusterId(5);
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster of one.
struct Lone {
    strong: Strong,
    storage: Storage,
    /// Before its tier.
    gate: Gate,
    clients: AtomicU64,
}

impl Lone {
    async fn start(tune: impl FnOnce(&mut RaftConfig)) -> Arc<Self> {
        // The account is a part of the log.
        let options = StorageOptions { max_log_bytes: 64 << 20, ..StorageOptions::small("/lone") };
        Self::with_storage(options, tune).await
    }

    async fn with_storage(options: StorageOptions, tune: impl FnOnce(&mut RaftConfig)) -> Arc<Self> {
        let tiers = GatedTiers::default();
        let gate = tiers.gate.clone();
        // What is not in the memtable passes the gate, each time.
        let options = StorageOptions { cache_bytes: 0, ..options };
        let (storage, _) = Storage::open(options, Arc::new(MemDisk::new(1)), Arc::new(tiers)).unwrap();
        let member = Member {
            id: NodeId(1),
            client_address: "client-of-n1".into(),
            peer_address: "nowhere:1".into(),
            zone: String::new(),
        };
        let mut config = RaftConfig::new(CLUSTER, member.id, vec![member.clone()]);
        tune(&mut config);
        let env = Env::real();
        let peers = Peers::new(PeerConfig::new(CLUSTER, member.id), env.clone());
        let strong = Strong::start(config, storage.clone(), peers, env).await.unwrap();
        let lone = Arc::new(Self { strong, storage, gate, clients: AtomicU64::new(1) });
        until("it serves", || async { lone.put(bank(1_000), "first", 1, soon()).await.ok() }).await;
        lone
    }

    /// Writes `bytes` bytes as a client that never wrote before.
    fn put(
        &self,
        bank: Namespace,
        key: &str,
        bytes: usize,
        deadline: Instant,
    ) -> impl Future<Output = Result<v1::PutResponse, Failure>> + use<> {
        let client = self.clients.fetch_add(1, Ordering::Relaxed);
        let request = v1::PutRequest {
            namespace: bank.name.to_string(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::from(vec![b'v'; bytes]),
            mutation: Some(v1::Mutation {
                client_id: client_id_bytes(ClientId(client.into())),
                seq: 1,
                issued_at_ms: Env::real().clock.wall_ms(),
                lowest_unacked: 1,
                attempt: 1,
            }),
            ..Default::default()
        };
        let strong = self.strong.clone();
        async move { strong.put(&bank, request, deadline, Hop::Client).await }
    }

    fn group(&self) -> &Arc<Group> {
        self.strong.group(GroupId::FIRST_DATA).unwrap()
    }

    fn waiting(&self) -> Load {
        self.group().backlog()
    }

    async fn get(
        &self,
        bank: Namespace,
        key: &'static str,
        deadline: Instant,
    ) -> Result<v1::GetResponse, Failure> {
        let request = v1::GetRequest { key: key.into(), ..Default::default() };
        self.strong.get(&bank, request, deadline, Hop::Client).await
    }

    /// The last entry that is committed.
    fn committed(&self) -> Option<u64> {
        let metrics = self.group().raft.data_metrics();
        let committed = metrics.borrow_watched().local_committed;
        committed.map(|id| id.index)
    }

    /// Nothing is applied while the guard lives.
    async fn stand_still(&self) -> OwnedRwLockReadGuard<AppliedState> {
        self.group().stand_still().await
    }

    /// Writes values of 16 KiB to a namespace until one is refused; what waits.
    async fn fill(&self, to: u64) -> Vec<Pending> {
        let mut pending = Vec::new();
        loop {
            let before = self.waiting().entries;
            let put = self.put(bank(to), &format!("k{}", pending.len()), 16 << 10, soon());
            let task = tokio::spawn(put);
            let counted = || self.waiting().entries > before;
            until("it is taken or refused", || async { (task.is_finished() || counted()).then_some(()) })
                .await;
            if task.is_finished() {
                is_refused(task.await.unwrap());
                return pending;
            }
            pending.push(task);
        }
    }

    async fn stop(&self) {
        self.strong.shutdown().await;
        self.storage.halt();
    }
}

fn written_at(written: &v1::PutResponse) -> u64 {
    match written.receipt.as_ref().and_then(|receipt| receipt.evidence.as_ref()) {
        Some(v1::receipt::Evidence::Strong(evidence)) => evidence.index,
        other => panic!("the receipt of a strong write: {other:?}"),
    }
}

impl Drop for Lone {
    /// A test that failed does not wait for its own gate.
    fn drop(&mut self) {
        self.gate.hold_gets(None);
        self.gate.hold_scans(false);
    }
}

type Pending = JoinHandle<Result<v1::PutResponse, Failure>>;

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn bank(id: u64) -> Namespace {
    Namespace {
        id: NamespaceId(id),
        name: NamespaceName::new(format!("bank{id}")).unwrap(),
        settings_version: 1,
        deletion: None,
        guarantee: Guarantee::Linearizable,
        placement: Placement::Strong { group: GroupId::FIRST_DATA },
    }
}

async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> T {
    let deadline = soon();
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is_refused(put: Result<v1::PutResponse, Failure>) {
    let refused = put.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::Overloaded, Applied::No), "{refused}");
    assert!(refused.retry_after_ms.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_applied_soon_is_refused_and_what_was_taken_is_applied_once() {
    let lone = Lone::start(|config| config.backlog_entries = 64).await;
    let still = lone.stand_still().await;
    let pending = lone.fill(1).await;
    // Half of the account, and nothing beyond it, however often it is tried.
    let full = lone.waiting();
    assert_eq!((pending.len(), full.entries), (32, 32));
    for n in 0..500 {
        let refused = lone.put(bank(1), &format!("r{n}"), 16 << 10, soon());
        is_refused(timeout(Duration::from_secs(1), refused).await.expect("refused at once"));
    }
    assert_eq!(lone.waiting(), full);
    assert!(lone.storage.stats().raft_queue_bytes <= full.bytes);

    drop(still);
    let mut revisions: Vec<u64> =
        join_all(pending).await.into_iter().map(|put| put.unwrap().unwrap().revision).collect();
    revisions.sort_unstable();
    // The namespace counts effects: one for each that was taken, and none for the rest.
    assert_eq!(revisions, (1..=32).collect::<Vec<_>>());
    until("an empty account", || async { (lone.waiting() == Load::default()).then_some(()) }).await;
    assert_eq!(lone.put(bank(1), "next", 1, soon()).await.unwrap().revision, 33);
    for n in [0, 499] {
        let request = v1::GetRequest { key: format!("r{n}").into(), ..Default::default() };
        let read = lone.strong.get(&bank(1), request, soon(), Hop::Client).await.unwrap();
        assert_eq!(read.presence(), v1::Presence::Absent);
    }
    lone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_floods_leaves_room_for_a_calm_one() {
    let lone = Lone::start(|config| config.backlog_entries = 64).await;
    let still = lone.stand_still().await;
    let flood = lone.fill(1).await;
    let calm: Vec<Pending> =
        (0..8).map(|n| tokio::spawn(lone.put(bank(2), &format!("c{n}"), 100, soon()))).collect();
    until("all of the calm one are taken", || async { (lone.waiting().entries == 40).then_some(()) }).await;
    is_refused(lone.put(bank(1), "more", 1, soon()).await);
    drop(still);
    for put in calm.into_iter().chain(flood) {
        put.await.unwrap().unwrap();
    }
    lone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_keeps_its_place_when_its_caller_gives_up() {
    let lone = Lone::start(|config| config.backlog_entries = 64).await;
    let still = lone.stand_still().await;
    let pending = lone.fill(1).await;
    let late = lone.put(bank(2), "late", 100, Instant::now() + Duration::from_millis(50)).await.unwrap_err();
    assert_eq!((late.reason, late.applied), (Reason::ResultUnknown, Applied::Unknown));
    pending.iter().for_each(JoinHandle::abort);
    join_all(pending).await;
    assert_eq!(lone.waiting().entries, 33);
    drop(still);
    until("an empty account", || async { (lone.waiting() == Load::default()).then_some(()) }).await;
    let read = v1::GetRequest { key: "late".into(), ..Default::default() };
    let read = lone.strong.get(&bank(2), read, soon(), Hop::Client).await.unwrap();
    assert_eq!(read.presence(), v1::Presence::Found);
    lone.stop().await;
}

/// What waits for its turn is not with Raft: its deadline or the end of its caller takes it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_turn_is_taken_back_and_never_applied() {
    let lone = Lone::start(|config| (config.backlog_entries, config.pipeline_entries) = (64, 4)).await;
    let still = lone.stand_still().await;
    let pending = lone.fill(1).await;
    let late = tokio::spawn(lone.put(bank(2), "late", 100, Instant::now() + Duration::from_millis(500)));
    until("it is taken", || async { (lone.waiting().entries == 33 || late.is_finished()).then_some(()) })
        .await;
    let late = late.await.unwrap().unwrap_err();
    assert_eq!((late.reason, late.applied), (Reason::Overloaded, Applied::No), "{late}");
    assert!(late.retry_after_ms.is_some() && late.message.contains("turn"), "{late}");
    until("four are with Raft", || async { (lone.group().with_raft() == 4).then_some(()) }).await;
    pending.iter().for_each(JoinHandle::abort);
    join_all(pending).await;
    assert_eq!(lone.waiting().entries, 4, "what Raft has keeps its share");
    drop(still);
    until("an empty account", || async { (lone.waiting() == Load::default()).then_some(()) }).await;
    assert_eq!(lone.put(bank(1), "next", 1, soon()).await.unwrap().revision, 5);
    let read = lone.get(bank(2), "late", soon()).await.unwrap();
    assert_eq!(read.presence(), v1::Presence::Absent);
    lone.stop().await;
}

/// A calm namespace waits for what Raft has and for one turn at most, not for all that another has asked for
/// before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_calm_namespace_overtakes_a_flood_that_waits() {
    // Of a small pipeline it waits for a turn, which is 4 KiB; of a large one for none.
    for (pipeline, most) in [(4, 4 + 3), (128, 128)] {
        let lone = Lone::start(|config| config.pipeline_entries = pipeline).await;
        let still = lone.stand_still().await;
        let flood: Vec<Pending> =
            (0..400).map(|n| tokio::spawn(lone.put(bank(1), &format!("k{n}"), 1_000, soon()))).collect();
        until("the flood is taken", || async { (lone.waiting().entries == 400).then_some(()) }).await;
        let calm = tokio::spawn(lone.put(bank(2), "calm", 100, soon()));
        until("the calm one is taken", || async { (lone.waiting().entries == 401).then_some(()) }).await;
        drop(still);
        let calm = written_at(&calm.await.unwrap().unwrap());
        let indexes = join_all(flood).await.into_iter().map(|put| written_at(&put.unwrap().unwrap()));
        let before = indexes.filter(|index| *index < calm).count();
        assert!(before <= most, "{before} came before it, of {pipeline}");
        lone.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_when_its_node_stops_was_not_applied() {
    let lone = Lone::start(|config| (config.backlog_entries, config.pipeline_entries) = (64, 4)).await;
    let still = lone.stand_still().await;
    let pending = lone.fill(1).await;
    let stop = tokio::spawn({
        let lone = lone.clone();
        async move { lone.strong.shutdown().await }
    });
    let waited = |put: &Result<v1::PutResponse, Failure>| {
        put.as_ref()
            .is_err_and(|failure| (failure.reason, failure.applied) == (Reason::ShuttingDown, Applied::No))
    };
    let mut never = 0;
    for put in pending {
        let ended = put.await.unwrap();
        never += usize::from(waited(&ended));
        assert!(waited(&ended) || ended.as_ref().unwrap_err().applied == Applied::Unknown, "{ended:?}");
    }
    assert_eq!(never, 32 - 4);
    drop(still);
    stop.await.unwrap();
    lone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_refused_as_entries_are() {
    let lone = Lone::start(|config| config.backlog_bytes = 256 << 10).await;
    let still = lone.stand_still().await;
    assert_eq!(lone.fill(1).await.len(), 7);
    assert!(lone.waiting().bytes <= 128 << 10, "{:?}", lone.waiting());
    drop(still);
    lone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_log_is_trimmed_before_it_is_full() {
    let lone = Lone::with_storage(StorageOptions::small("/lone"), |config| config.entries_kept = 0).await;
    let max = lone.storage.max_log_bytes();
    // More than what is wanted, less than what is allowed.
    for n in 0..max * 3 / 4 / (60 << 10) {
        lone.put(bank(1), &format!("k{}", n % 10), 60 << 10, soon()).await.unwrap();
    }
    assert!(lone.storage.log_pressure().is_ok());
    let trimmed = || lone.storage.stats().log_bytes < log_bytes_wanted(max);
    until("the log is trimmed", || async { trimmed().then_some(()) }).await;
    lone.stop().await;
}

/// openraft's queue of what is to be applied holds more than the account lets in: its only loop never waits
/// for the state machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_answers_its_peers_while_much_waits_to_be_applied() {
    let lone = Lone::start(|config| config.pipeline_entries = 4_096).await;
    let still = lone.stand_still().await;
    // One after the other, so that each is committed by itself.
    let mut pending = Vec::new();
    for n in 0..1_500 {
        let before = lone.committed();
        pending.push(tokio::spawn(lone.put(bank(1), &format!("k{n}"), 1, soon())));
        let committed = || async { (lone.committed() > before).then_some(()) };
        let within = Duration::from_secs(5);
        timeout(within, until("it is committed", committed)).await.unwrap_or_else(|_| panic!("{n} hangs"));
    }
    let asked =
        lone.group().raft.with_raft_state(|state| state.server_state == openraft::ServerState::Leader);
    assert!(timeout(Duration::from_secs(1), asked).await.expect("Raft answers").expect("it runs on"));
    drop(still);
    for put in pending {
        put.await.unwrap().unwrap();
    }
    lone.stop().await;
}

/// A read that waits for the disk keeps nothing from being applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_hangs_stops_no_write() {
    let lone = Lone::start(|_| ()).await;
    lone.gate.hold_gets(Some(b"cold"));
    let cold = tokio::spawn({
        let lone = lone.clone();
        async move { lone.get(bank(1), "cold", soon()).await }
    });
    until("it is read", || async { (lone.gate.waiting() > 0).then_some(()) }).await;
    for n in 0..20 {
        let put = lone.put(bank(2), &format!("k{n}"), 1, Instant::now() + Duration::from_secs(2));
        put.await.unwrap_or_else(|failure| panic!("{n}: {failure}"));
    }
    lone.gate.hold_gets(None);
    assert_eq!(cold.await.unwrap().unwrap().presence(), v1::Presence::Absent);
    lone.stop().await;
}

/// What was read from the disk is not answered when the key was written meanwhile: the answer is of one
/// point of the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_was_overtaken_by_a_write_is_of_one_point() {
    let lone = Lone::start(|_| ()).await;
    lone.put(bank(1), "cold", 5, soon()).await.unwrap();
    for round in 2..12 {
        // Only the tier has it.
        until("it is drained", || async { (lone.storage.stats().memtable_bytes == 0).then_some(()) }).await;
        lone.gate.hold_gets(Some(b"cold"));
        let cold = tokio::spawn({
            let lone = lone.clone();
            async move { lone.get(bank(1), "cold", soon()).await }
        });
        until("it is read", || async { (lone.gate.waiting() > 0).then_some(()) }).await;
        let written = lone.put(bank(1), "cold", 5, soon()).await.unwrap();
        until("it is drained", || async { (lone.storage.stats().memtable_bytes == 0).then_some(()) }).await;
        lone.gate.hold_gets(None);
        assert_eq!(written.revision, round);
        let read = cold.await.unwrap().unwrap();
        let Some(v1::receipt::Evidence::Strong(evidence)) = read.receipt.unwrap().evidence else {
            panic!("the receipt of a strong read")
        };
        assert_eq!(evidence.namespace_revision, read.revision, "the only key of the namespace");
        assert!([round - 1, round].contains(&read.revision), "{round}: {}", read.revision);
        assert_eq!(evidence.index >= written_at(&written), read.revision == round, "{evidence:?}");
    }
    lone.stop().await;
}

/// Digests whose callers left keep no copies from snapshots, and end soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn digests_that_were_given_up_leave_room_for_snapshots() {
    // Its log is so large that no snapshot is taken by itself.
    let lone = Lone::start(|_| ()).await;
    // Many pieces of rows.
    for from in (0..200).step_by(20) {
        let puts = (from..from + 20).map(|n| lone.put(bank(1), &format!("k{n}"), 60_000, soon()));
        for put in join_all(puts).await {
            put.unwrap();
        }
    }
    lone.gate.hold_scans(true);
    for _ in 0..8 {
        let given_up = lone.group().digest(NamespaceId(1), Instant::now() + Duration::from_millis(20)).await;
        assert_eq!(given_up.unwrap_err().reason, Reason::Overloaded);
    }
    let prefix: &[u8] = b"";
    let copies: Vec<_> = (1..kv_storage::limits::MAX_COPIES)
        .map(|_| lone.storage.copy(&[(crate::tables::Table::Data.id(), prefix)]))
        .collect();
    assert!(copies.iter().all(Result::is_ok), "one digest at most holds a copy: {copies:?}");
    drop(copies);
    let before = lone.gate.scanned();
    lone.gate.hold_scans(false);
    // The one that is under way ends at its next piece; then another finds its turn.
    let digest = lone.group().digest(NamespaceId(1), soon()).await.unwrap();
    assert_eq!(digest.partitions[0].keys, 200);
    let whole = lone.gate.scanned() - before;
    assert!(whole < 2 * 12, "the one that was given up was read to its end: {whole} pieces");
    lone.stop().await;
}

/// Rows of a dropped namespace go at each node in its own time: a digest would be of what is left by chance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_that_a_drop_overtakes_is_refused_by_name() {
    let lone = Lone::start(|_| ()).await;
    for to in [1, 2] {
        lone.put(bank(to), "k", 1_000, soon()).await.unwrap();
    }
    lone.gate.hold_scans(true);
    let digest = tokio::spawn({
        let lone = lone.clone();
        async move { lone.group().digest(NamespaceId(1), soon()).await }
    });
    until("rows are read", || async { (lone.gate.waiting() > 0).then_some(()) }).await;
    let dropped = lone.group().raft.client_write(DropCommand(1..=1).encode()).await.unwrap();
    assert_eq!(dropped.data, Reply::Dropped);
    lone.gate.hold_scans(false);
    let later = lone.group().digest(NamespaceId(1), soon());
    for refused in [digest.await.unwrap(), later.await] {
        let refused = refused.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::NamespaceUnknown, Applied::No), "{refused}");
    }
    let other = lone.group().digest(NamespaceId(2), soon()).await.unwrap();
    assert_eq!(other.partitions[0].keys, 1);
    lone.stop().await;
}

/// However small the log, what the account lets in fits between its bound and the one beyond which an append
/// ends the group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_into_a_small_log_is_refused_and_ends_nothing() {
    let options = StorageOptions {
        max_record_bytes: 2 << 20,
        segment_bytes: 5 << 20,
        max_log_bytes: 20 << 20,
        memtable_bytes: 64 << 20,
        data_queue_bytes: 4 << 20,
        raft_queue_bytes: 32 << 20,
        ..StorageOptions::small("/lone")
    };
    let lone = Lone::with_storage(options, |_| ()).await;
    let still = lone.stand_still().await;
    let until = Instant::now() + Duration::from_secs(2);
    let burst = (1..31).map(|n| lone.put(bank(n), "k", 1_000_000, until));
    let answers = join_all(burst).await;
    let asked =
        lone.group().raft.with_raft_state(|state| state.server_state == openraft::ServerState::Leader);
    assert!(timeout(PATIENCE, asked).await.expect("Raft answers").expect("it runs on"));
    let refused =
        |put: &&Result<_, Failure>| put.as_ref().is_err_and(|failure| failure.applied == Applied::No);
    assert!(answers.iter().filter(refused).count() > 0);
    drop(still);
    lone.stop().await;
}
