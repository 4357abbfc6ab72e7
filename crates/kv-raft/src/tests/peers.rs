//! A follower and what peers send it. The test is its leader, and everything that no leader would send.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kv_env::Env;
use kv_peer::{Address, PeerConfig, PeerHandler, PeerRequest, Peers};
use kv_proto::peer;
use kv_proto::peer::raft_append_reply::Result as Taken;
use kv_proto::peer::request_frame::Body as Request;
use kv_proto::peer::response_frame::Body as Response;
use kv_storage::disk::MemDisk;
use kv_storage::tier::MemTiers;
use kv_storage::{RaftBounds, Storage, StorageOptions};
use kv_types::catalogue::Member;
use kv_types::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use kv_types::{ClientId, ClusterId, Failure, GroupId, Mutation, NamespaceId, NodeId, Reason, RequestId};
use openraft::vote::RaftLeaderId;
use tokio::time::{Instant, timeout};

use crate::codec;
use crate::config::{Entry, LeaderId, LogId, Membership, RaftConfig, SnapshotMeta, Vote};
use crate::kv_machine::{Operation, WriteCommand};
use crate::limits::{APPEND_ENTRIES, MAX_COMMAND_BYTES, MAX_INDEX, TERM_LEAP};
use crate::proposal::Proposal;
use crate::snapshot::id_of;
use crate::strong::Strong;

const CLUSTER: ClusterId = ClusterId(5);
const GROUP: GroupId = GroupId::FIRST_DATA;
const PATIENCE: Duration = Duration::from_secs(30);
/// The leader's term.
const TERM: u64 = 3;
const LEADER: NodeId = NodeId(2);

fn vote(term: u64, node: u64, committed: bool) -> Vote {
    Vote { leader_id: LeaderId::new(term, node), committed }
}

fn id(term: u64, node: u64, index: u64) -> peer::LogId {
    peer::LogId { term, node, index }
}

/// n1 of three, which has followed n2 before. It gets no answers.
struct Follower {
    strong: Strong,
    storage: Storage,
    clients: AtomicU64,
}

impl Follower {
    async fn start(disk: &MemDisk, tiers: &MemTiers) -> Self {
        Self::tuned(disk, tiers, |_| ()).await
    }

    async fn tuned(disk: &MemDisk, tiers: &MemTiers, tune: impl FnOnce(&mut RaftConfig)) -> Self {
        Self::open(disk, tiers, true, tune).await
    }

    /// It has never been a member.
    async fn fresh(disk: &MemDisk, tiers: &MemTiers, tune: impl FnOnce(&mut RaftConfig)) -> Self {
        Self::open(disk, tiers, false, tune).await
    }

    async fn open(disk: &MemDisk, tiers: &MemTiers, voted: bool, tune: impl FnOnce(&mut RaftConfig)) -> Self {
        let options = StorageOptions {
            max_log_bytes: 2 << 20,
            checkpoint_interval: Duration::from_millis(20),
            ..StorageOptions::small("/n1")
        };
        let (storage, _) = Storage::open(options, Arc::new(disk.clone()), Arc::new(tiers.clone())).unwrap();
        for group in [GroupId::CATALOGUE, GROUP] {
            let log = storage.raft(group);
            if voted && log.vote().is_none() {
                log.save_vote(codec::encode_vote(&vote(TERM, LEADER.0, true))).await.unwrap();
            }
        }
        let member = |id: u64| Member {
            id: NodeId(id),
            client_address: format!("client-of-n{id}"),
            peer_address: "127.0.0.1:1".into(),
            zone: String::new(),
        };
        let mut config = RaftConfig {
            entries_kept: 0,
            ..RaftConfig::new(CLUSTER, NodeId(1), (1..=3).map(member).collect())
        };
        tune(&mut config);
        let env = Env::real();
        let peers = Peers::new(PeerConfig::new(CLUSTER, NodeId(1)), env.clone());
        let strong = Strong::start(config, storage.clone(), peers, env).await.unwrap();
        Self { strong, storage, clients: AtomicU64::new(1) }
    }

    async fn stop(self) {
        self.strong.shutdown().await;
        self.storage.halt();
    }

    async fn send(&self, from: NodeId, body: Request) -> Result<Response, Failure> {
        let about = Address { group: GROUP, ..Address::default() };
        self.strong.handle(PeerRequest { from, about, deadline: Instant::now() + PATIENCE, body }).await
    }

    async fn append(&self, append: peer::RaftAppend) -> Result<Taken, Failure> {
        match self.send(LEADER, Request::RaftAppend(append)).await? {
            Response::RaftAppend(reply) => Ok(reply.result.unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn bounds(&self) -> RaftBounds {
        self.storage.raft(GROUP).bounds()
    }

    fn durable(&self) -> (RaftBounds, Option<Bytes>) {
        (self.bounds(), self.storage.raft(GROUP).vote())
    }

    fn applied(&self) -> u64 {
        self.strong.status().into_iter().find(|group| group.group == GROUP.0).unwrap().applied_index
    }

    /// A write of a client that never wrote before.
    fn command(&self, key: &[u8], value: usize) -> Proposal {
        let client = self.clients.fetch_add(1, Ordering::Relaxed);
        let request_id = RequestId { client_id: ClientId(client.into()), seq: 1 };
        let now = Env::real().clock.wall_ms();
        let mutation = Mutation { request_id, issued_at_ms: now, lowest_unacked: 1, attempt: 1 };
        let operation = Operation::Put(vec![b'v'; value].into());
        let key = Bytes::copy_from_slice(key);
        WriteCommand { proposed_at_ms: now, mutation, namespace: NamespaceId(1), key, operation }.encode()
    }

    fn write(&self, index: u64, value: usize) -> peer::LogEntry {
        normal(index, self.command(b"k", value))
    }

    /// The first entries of the group: its members, and a write.
    async fn begin(&self) {
        let first = [members(0, &[1, 2, 3]), self.write(1, 10)];
        let taken = self.append(append(None, first.into(), Some(id(TERM, LEADER.0, 1)))).await;
        assert_eq!(taken, Ok(Taken::Success(true)));
    }

    async fn heartbeat(&self) -> Result<Taken, Failure> {
        let last = self.bounds().last.unwrap();
        self.append(append(Some(id(last.term, last.node, last.index)), Vec::new(), None)).await
    }
}

fn entry(
    log_id: LogId,
    payload: openraft::EntryPayload<Proposal, u64, openraft::EmptyNode>,
) -> peer::LogEntry {
    codec::to_wire_entry(&Entry { log_id, payload })
}

fn normal(index: u64, proposal: Proposal) -> peer::LogEntry {
    entry(codec::log_id(TERM, LEADER.0, index), openraft::EntryPayload::Normal(proposal))
}

fn members(index: u64, voters: &[u64]) -> peer::LogEntry {
    let voters: std::collections::BTreeSet<u64> = voters.iter().copied().collect();
    let membership = Membership::new(vec![voters.clone()], voters).unwrap();
    entry(codec::log_id(TERM, LEADER.0, index), openraft::EntryPayload::Membership(membership))
}

fn append(
    previous: Option<peer::LogId>,
    entries: Vec<peer::LogEntry>,
    committed: Option<peer::LogId>,
) -> peer::RaftAppend {
    let vote = Some(codec::to_wire_vote(&vote(TERM, LEADER.0, true)));
    peer::RaftAppend { vote, previous, entries, committed }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_leader_sends_is_refused_by_name_and_changes_nothing() {
    let follower = Follower::start(&MemDisk::new(1), &MemTiers::new()).await;
    follower.begin().await;
    until("it is applied", || (follower.applied() == 1).then_some(())).await;
    let second = |entry: peer::LogEntry| append(Some(id(TERM, LEADER.0, 1)), vec![entry], None);
    let with_vote = |vote: Vote| {
        let vote = Some(codec::to_wire_vote(&vote));
        peer::RaftAppend { vote, ..second(follower.write(2, 10)) }
    };
    let at = |term, node, index| peer::LogEntry { id: Some(id(term, node, index)), ..follower.write(2, 10) };
    let raw =
        |payload: &'static [u8]| peer::LogEntry { payload: Bytes::from_static(payload), ..at(TERM, 2, 2) };
    let key = vec![b'k'; MAX_KEY_BYTES + 1];
    let many = (2..).take(usize::try_from(APPEND_ENTRIES).unwrap() + 1).map(|index| follower.write(index, 1));
    let table: Vec<(&str, peer::RaftAppend)> = vec![
        ("TERM_LEAPS", with_vote(vote(u64::MAX, 2, true))),
        ("TERM_LEAPS", with_vote(vote(TERM + TERM_LEAP + 1, 2, true))),
        ("FOREIGN_VOTE", with_vote(vote(TERM, 3, true))),
        ("NOT_ELECTED", with_vote(vote(TERM + 1, 2, false))),
        ("without a vote", peer::RaftAppend { vote: None, ..second(follower.write(2, 10)) }),
        ("GAP", append(None, vec![at(TERM, 2, 7)], None)),
        ("GAP", second(at(TERM, 2, 9))),
        ("GAP", append(Some(id(TERM, 2, 1)), vec![at(TERM, 2, 2), at(TERM, 2, 4)], None)),
        ("GAP", append(Some(id(TERM, 2, 1)), vec![at(TERM, 2, 2), at(TERM, 2, 2)], None)),
        ("LEADERS_GO_BACK", second(at(TERM - 1, 2, 2))),
        ("LEADERS_GO_BACK", append(Some(id(TERM, 2, 1)), vec![at(TERM, 2, 2), at(TERM, 1, 3)], None)),
        ("FROM_THE_FUTURE", second(at(TERM + 1, 2, 2))),
        ("FROM_THE_FUTURE", second(at(TERM, 3, 2))),
        ("FROM_THE_FUTURE", append(Some(id(TERM + 1, 2, 1)), Vec::new(), None)),
        ("FROM_THE_FUTURE", append(Some(id(TERM, 2, 1)), Vec::new(), Some(id(TERM + 1, 2, 1)))),
        ("INDEX_TOO_LARGE", append(Some(id(TERM, 2, MAX_INDEX + 1)), Vec::new(), None)),
        ("INDEX_TOO_LARGE", append(Some(id(TERM, 2, u64::MAX)), vec![at(TERM, 2, 0)], None)),
        ("INDEX_TOO_LARGE", append(Some(id(TERM, 2, 1)), Vec::new(), Some(id(TERM, 2, u64::MAX)))),
        (
            "CONTRADICTS_COMMITTED",
            append(
                None,
                vec![peer::LogEntry { id: Some(id(TERM - 1, 2, 0)), ..members(0, &[1, 2, 3]) }],
                None,
            ),
        ),
        ("CONTRADICTS_COMMITTED", append(Some(id(TERM - 1, 2, 1)), Vec::new(), None)),
        ("TOO_MANY_ENTRIES", append(Some(id(TERM, 2, 1)), many.collect(), None)),
        ("without an id", second(peer::LogEntry { id: None, ..follower.write(2, 10) })),
        ("log entry is cut short", second(raw(b""))),
        ("unknown version", second(raw(&[9, 1, 1]))),
        ("unknown kind", second(raw(&[1, 77]))),
        ("BAD_ENTRY", second(raw(&[1, 1]))),
        ("BAD_ENTRY", second(raw(b"\x01\x01garbage"))),
        ("BAD_ENTRY", second(normal(2, follower.command(&key, 1)))),
        ("BAD_ENTRY", second(normal(2, follower.command(b"", 1)))),
        ("BAD_ENTRY", second(normal(2, follower.command(b"k", MAX_VALUE_BYTES + 1)))),
        ("COMMAND_TOO_LARGE", second(normal(2, follower.command(b"k", MAX_COMMAND_BYTES)))),
        ("BAD_MEMBERSHIP", second(raw(&[1, 2, 0, 0, 0, 0, 0, 0, 0, 0]))),
        ("BAD_MEMBERSHIP", second(members(2, &[1, 2, 3, 4, 5, 6]))),
    ];
    let (before, refusals) = (follower.durable(), u64::try_from(table.len()).unwrap());
    for (name, bad) in table {
        let refused = follower.append(bad).await.expect_err(name);
        assert_eq!(refused.reason, Reason::InvalidRequest, "{name}: {refused}");
        assert!(refused.message.contains(name), "{name}: {refused}");
        assert_eq!(follower.durable(), before, "{name}");
    }
    let ask = |vote: &Vote| {
        Request::RaftVote(peer::RaftVote {
            vote: Some(codec::to_wire_vote(vote)),
            last_log_id: Some(id(TERM, 2, 9)),
            leadership_transfer: true,
            pre_vote: false,
        })
    };
    for (name, bad) in [
        ("TERM_LEAPS", ask(&vote(u64::MAX, 2, false))),
        ("FOREIGN_VOTE", ask(&vote(TERM + 1, 3, false))),
        ("ALREADY_ELECTED", ask(&vote(TERM + 1, 2, true))),
    ] {
        let refused = follower.send(LEADER, bad).await.expect_err(name);
        assert!(refused.message.contains(name), "{name}: {refused}");
        assert_eq!(follower.durable(), before, "{name}");
    }
    assert_eq!(follower.strong.peer_messages_refused(), refusals + 3);
    // It goes on as if nothing had been.
    assert_eq!(follower.heartbeat().await, Ok(Taken::Success(true)));
    let good = append(Some(id(TERM, 2, 1)), vec![follower.write(2, 10)], Some(id(TERM, 2, 2)));
    assert_eq!(follower.append(good).await, Ok(Taken::Success(true)));
    until("it is applied", || (follower.applied() == 2).then_some(())).await;
    follower.stop().await;
}

async fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_with_a_full_log_refuses_entries_and_answers_heartbeats() {
    let (disk, tiers) = (MemDisk::new(1), MemTiers::new());
    let mut follower = Follower::start(&disk, &tiers).await;
    follower.begin().await;
    // Nothing more is committed, so nothing can be trimmed.
    let next = |follower: &Follower| {
        let last = follower.bounds().last.unwrap();
        let entry = follower.write(last.index + 1, 60_000);
        append(Some(id(last.term, last.node, last.index)), vec![entry], None)
    };
    let refused = loop {
        match follower.append(next(&follower)).await {
            Ok(taken) => assert_eq!(taken, Taken::Success(true)),
            Err(refused) => break refused,
        }
    };
    for restarted in [false, true] {
        if restarted {
            follower.stop().await;
            follower = Follower::start(&disk, &tiers).await;
        }
        let last = follower.bounds().last;
        for _ in 0..20 {
            let refused = follower.append(next(&follower)).await.unwrap_err();
            assert_eq!(refused.reason, Reason::LimitStorage, "{refused}");
            assert!(refused.message.contains("the log is full"), "{refused}");
            assert!(refused.retry_after_ms.is_some());
        }
        assert_eq!(follower.heartbeat().await, Ok(Taken::Success(true)));
        assert_eq!(follower.bounds().last, last);
    }
    assert_eq!(refused.reason, Reason::LimitStorage);

    // Committed, it is applied; a snapshot lets the log go, and the next entry finds room.
    let last = follower.bounds().last.unwrap();
    let at = Some(id(last.term, last.node, last.index));
    assert_eq!(follower.append(append(at, Vec::new(), at)).await, Ok(Taken::Success(true)));
    let deadline = Instant::now() + PATIENCE;
    while follower.append(next(&follower)).await.is_err() {
        assert!(Instant::now() < deadline, "the log was not trimmed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(follower.bounds().purged.is_some());
    follower.stop().await;
}

/// Appends one entry, and says that the one before is committed.
async fn append_one(follower: &Follower) -> Result<Taken, Failure> {
    let last = follower.bounds().last.unwrap();
    let at = Some(id(last.term, last.node, last.index));
    follower.append(append(at, vec![follower.write(last.index + 1, 10)], at)).await
}

/// Each append moves what is committed: one command each for the state machine, whose queue must not stop
/// Raft.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_state_machine_stands_still_answers_its_leader() {
    let follower = Follower::start(&MemDisk::new(1), &MemTiers::new()).await;
    follower.begin().await;
    until("it is applied", || (follower.applied() == 1).then_some(())).await;
    let still = follower.strong.group(GROUP).unwrap().stand_still().await;
    for n in 0..1_500 {
        let taken = timeout(Duration::from_secs(5), append_one(&follower)).await;
        assert_eq!(taken.unwrap_or_else(|_| panic!("{n} hangs")), Ok(Taken::Success(true)), "{n}");
    }
    drop(still);
    until("it is applied", || (follower.applied() == 1_500).then_some(())).await;
    follower.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_lags_refuses_entries_and_answers_heartbeats() {
    let follower =
        Follower::tuned(&MemDisk::new(1), &MemTiers::new(), |config| config.apply_lag_entries = 8).await;
    follower.begin().await;
    until("it is applied", || (follower.applied() == 1).then_some(())).await;
    let still = follower.strong.group(GROUP).unwrap().stand_still().await;
    // At the bound it takes one more, and then none, however often it is asked. What it goes by is published
    // beside the answers, so it may be one append behind.
    let mut taken = 0;
    let refused = loop {
        match append_one(&follower).await {
            Ok(answer) => assert_eq!(answer, Taken::Success(true)),
            Err(refused) => break refused,
        }
        taken += 1;
        assert!(taken <= 16, "it takes whatever comes");
    };
    assert!((10..=12).contains(&taken), "{taken}");
    assert!(refused.message.contains("to apply"), "{refused}");
    let last = follower.bounds().last;
    for _ in 0..20 {
        let again = append_one(&follower).await.unwrap_err();
        assert_eq!(again.reason, Reason::Overloaded, "{again}");
        assert!(again.retry_after_ms.is_some());
        assert_eq!(follower.heartbeat().await, Ok(Taken::Success(true)));
    }
    assert_eq!(follower.bounds().last, last);
    drop(still);
    until("it is applied", || (follower.applied() >= 10).then_some(())).await;
    assert_eq!(append_one(&follower).await, Ok(Taken::Success(true)));
    follower.stop().await;
}

/// Answers questions with the largest numbers there are.
#[derive(Default)]
struct Liar {
    surveys: AtomicU64,
    votes: AtomicU64,
}

impl PeerHandler for Liar {
    fn handle(&self, request: PeerRequest) -> BoxFuture<'static, Result<Response, Failure>> {
        let leap = Some(codec::to_wire_vote(&vote(u64::MAX, LEADER.0, true)));
        let far = Some(id(u64::MAX, LEADER.0, u64::MAX));
        let answer = match request.body {
            Request::RaftSurvey(_) => {
                self.surveys.fetch_add(1, Ordering::Relaxed);
                let settled = true;
                Ok(Response::RaftSurvey(peer::RaftSurveyReply {
                    vote: leap,
                    last_log_id: far,
                    settled,
                    ..Default::default()
                }))
            }
            Request::RaftVote(ask) if ask.pre_vote => Ok(Response::RaftVote(peer::RaftVoteReply {
                vote: ask.vote,
                granted: true,
                last_log_id: None,
            })),
            Request::RaftVote(_) => {
                self.votes.fetch_add(1, Ordering::Relaxed);
                Ok(Response::RaftVote(peer::RaftVoteReply { vote: leap, granted: false, last_log_id: far }))
            }
            _ => Err(Failure::new(Reason::NotReady, "it only lies")),
        };
        std::future::ready(answer).boxed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_peer_answers_changes_nothing() {
    let env = Env::real();
    let listener = env.network.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address.clone();
    let peers = Peers::new(PeerConfig::new(CLUSTER, LEADER), env);
    let liar = Arc::new(Liar::default());
    let service = kv_peer::service(&peers, liar.clone());
    let server = tokio::spawn(kv_peer::server_builder().add_service(service).serve_with_incoming(listener));
    let follower = Follower::tuned(&MemDisk::new(1), &MemTiers::new(), |config| {
        config.members[1].peer_address = address;
    })
    .await;
    follower.begin().await;
    // It campaigns and asks again and again, and no answer ends the task that asks.
    until("it has asked", || (liar.surveys.load(Ordering::Relaxed) >= 6).then_some(())).await;
    until("it has campaigned", || (liar.votes.load(Ordering::Relaxed) >= 3).then_some(())).await;
    let kept = codec::decode_vote(follower.durable().1.unwrap()).unwrap();
    assert!(kept.leader_id.term < TERM + 1_000, "{kept}");
    assert!(follower.strong.peer_messages_refused() > 0);
    follower.stop().await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_joins_takes_no_vote_that_leaps() {
    let env = Env::real();
    let listener = env.network.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address.clone();
    let peers = Peers::new(PeerConfig::new(CLUSTER, LEADER), env);
    let liar = Arc::new(Liar::default());
    let service = kv_peer::service(&peers, liar.clone());
    let server = tokio::spawn(kv_peer::server_builder().add_service(service).serve_with_incoming(listener));
    let joins = |config: &mut RaftConfig| {
        config.members[1].peer_address = address;
        config.members.truncate(2);
    };
    let follower = Follower::fresh(&MemDisk::new(1), &MemTiers::new(), joins).await;
    until("it has asked", || (liar.surveys.load(Ordering::Relaxed) >= 20).then_some(())).await;
    assert_eq!(follower.durable().1, None, "it promised nothing");
    follower.stop().await;
    server.abort();
}

/// A snapshot that was above what was committed when it began, and is below when it has come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_snapshot_that_the_log_has_overtaken_is_refused() {
    use peer::raft_snapshot::Step;
    use peer::raft_snapshot_reply::Result as Reply;
    let follower = Follower::start(&MemDisk::new(1), &MemTiers::new()).await;
    follower.begin().await;
    let last = codec::log_id(TERM + 1, 3, 3);
    let storage = super::memory(9);
    let files = storage.snapshots(GROUP);
    let voters: std::collections::BTreeSet<u64> = [1, 2, 3].into();
    let membership = Membership::new(vec![voters.clone()], voters).unwrap();
    let last_membership = openraft::StoredMembership::new(Some(last), membership);
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership };
    let info = files.create().unwrap().finish(id_of(Some(&last)), &codec::encode_mark(&meta)).unwrap();
    let file = files.bytes_of(info.id).unwrap();
    let (data, checksum) = (file.read(0, usize::MAX).unwrap(), file.checksum().unwrap());
    let send = async |step| {
        let vote = Some(codec::to_wire_vote(&vote(TERM + 1, 3, true)));
        let body = Request::RaftSnapshot(peer::RaftSnapshot { vote, step: Some(step) });
        match follower.send(NodeId(3), body).await {
            Ok(Response::RaftSnapshot(reply)) => Ok(reply.result.unwrap()),
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure),
        }
    };
    let begin = peer::SnapshotBegin {
        last_log_id: Some(codec::to_wire_id(&last)),
        membership: codec::encode_membership(&meta.last_membership),
        snapshot_id: info.id,
        length: file.length(),
        checksum,
    };
    let Ok(Reply::Wanted(wanted)) = send(Step::Begin(begin)).await else { panic!("it is wanted") };
    let transfer = wanted.transfer;
    let chunk = peer::SnapshotChunk { transfer, offset: 0, checksum: crc32c::crc32c(&data), data };
    assert!(matches!(send(Step::Chunk(chunk)).await, Ok(Reply::Wanted(_))));
    // The leader goes on, and what it commits is at the same places.
    for _ in 0..8 {
        assert_eq!(append_one(&follower).await, Ok(Taken::Success(true)));
    }
    until("it is applied", || (follower.applied() >= 8).then_some(())).await;
    let deadline = Instant::now() + PATIENCE;
    let refused = loop {
        match send(Step::End(peer::SnapshotEnd { transfer })).await {
            Ok(Reply::Working(_)) => assert!(Instant::now() < deadline, "it never ends"),
            ended => break ended,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let refused = refused.unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidRequest, "{refused}");
    assert!(refused.message.contains("contradicts what is committed"), "{refused}");
    assert_eq!(append_one(&follower).await, Ok(Taken::Success(true)), "the group goes on");
    storage.halt();
    follower.stop().await;
}
