//! The rules of a key-value group: revisions, comparisons, and that a write happens once - also across a snapshot and a
//! restart.

use bytes::Bytes;
use kv_storage::{Batch, Storage};
use kv_types::limits::{MAX_KEY_BYTES, MAX_SESSIONS, SESSION_IDLE, SESSION_WINDOW};
use kv_types::{Applied, ClientId, Failure, GroupId, Mutation, NamespaceId, Reason, RequestId};
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use proptest::prelude::*;

use crate::codec;
use crate::config::Snapshot;
use crate::kv_machine::{self, KvMachine, Operation, WriteCommand};
use crate::machine::{Domain, Machine, SnapshotData};
use crate::proposal::{Effect, Point, Proposal, Reply, Written};
use crate::sessions::{Admission, Sessions};
use crate::snapshot::{self, ReceivedPart};
use crate::tables::{Space, Stage, Table, keys};

const GROUP: GroupId = GroupId(1);
const SPACE: Space = Space::first(GROUP);
const IDLE: u64 = SESSION_IDLE.as_millis() as u64;

/// A machine and the storage under it, without Raft.
struct Bench {
    storage: Storage,
    machine: KvMachine,
    index: u64,
    now: u64,
}

impl Bench {
    fn new() -> Self {
        let storage = super::memory(1);
        Self { storage, machine: KvMachine::default(), index: 0, now: 1_000_000 }
    }

    async fn apply(&mut self, command: &WriteCommand) -> Result<Written, Failure> {
        self.index += 1;
        let mut stage = Stage::new(&self.storage, SPACE);
        let point = Point { term: 1, index: self.index };
        let reply = self.machine.apply(&mut stage, point, &command.encode()).unwrap();
        self.storage.apply(stage.into_batch()).await.unwrap();
        let Reply::Write(reply) = reply else { panic!("{reply:?}") };
        reply
    }

    /// A write of client `client`, issued now.
    async fn write(
        &mut self,
        client: u128,
        seq: u64,
        key: &str,
        operation: Operation,
    ) -> Result<Written, Failure> {
        let command = self.command(client, seq, key, operation);
        self.apply(&command).await
    }

    fn command(&self, client: u128, seq: u64, key: &str, operation: Operation) -> WriteCommand {
        let request_id = RequestId { client_id: ClientId(client), seq };
        let mutation = Mutation { request_id, issued_at_ms: self.now, lowest_unacked: 0, attempt: 1 };
        let key = Bytes::copy_from_slice(key.as_bytes());
        WriteCommand { proposed_at_ms: self.now, mutation, namespace: NamespaceId(1), key, operation }
    }

    fn reload(&mut self) {
        self.machine = KvMachine::default();
        self.machine.load(&self.storage, SPACE).unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.storage.halt();
    }
}

fn put(value: &str) -> Operation {
    Operation::Put(Bytes::copy_from_slice(value.as_bytes()))
}

fn swap(expected: u64, value: &str) -> Operation {
    Operation::CompareAndSet { expected, value: Bytes::copy_from_slice(value.as_bytes()) }
}

fn revision(written: Result<Written, Failure>) -> u64 {
    written.unwrap().namespace_revision
}

fn refusal(written: Result<Written, Failure>) -> (Reason, Applied) {
    let failure = written.unwrap_err();
    (failure.reason, failure.applied)
}

#[tokio::test]
async fn revisions_are_dense_and_only_effects_take_one() {
    let mut bench = Bench::new();
    assert_eq!(revision(bench.write(1, 1, "a", put("1")).await), 1);
    assert_eq!(revision(bench.write(1, 2, "b", put("2")).await), 2);
    let absent = bench.write(1, 3, "c", Operation::Delete).await.unwrap();
    assert_eq!((absent.effect, absent.namespace_revision), (Effect::Deleted { existed: false }, 2));
    let removed = bench.write(1, 4, "a", Operation::Delete).await.unwrap();
    assert_eq!((removed.effect, removed.namespace_revision), (Effect::Deleted { existed: true }, 3));
    let wrong = bench.write(1, 5, "b", swap(1, "x")).await.unwrap();
    assert_eq!(wrong.effect, Effect::Mismatch { found: Some((2, Bytes::from_static(b"2"))) });
    assert_eq!(wrong.namespace_revision, 3);
    assert_eq!(bench.write(1, 6, "b", swap(2, "x")).await.unwrap().effect, Effect::Swapped);
    assert_eq!(bench.write(1, 7, "a", swap(0, "y")).await.unwrap().effect, Effect::Swapped);
    assert_eq!(bench.write(1, 8, "b", swap(0, "z")).await.unwrap().namespace_revision, 5);
}

#[tokio::test]
async fn a_duplicate_gets_the_first_result() {
    let mut bench = Bench::new();
    let first = bench.write(1, 1, "a", put("1")).await.unwrap();
    let mismatch = bench.write(1, 2, "a", swap(7, "2")).await.unwrap();
    bench.write(2, 1, "a", put("other")).await.unwrap();
    for restarted in [false, true] {
        if restarted {
            bench.reload();
        }
        let again = bench.write(1, 1, "a", put("1")).await.unwrap();
        assert_eq!(again, Written { deduplicated: true, ..first.clone() });
        let again = bench.write(1, 2, "a", swap(7, "2")).await.unwrap();
        assert_eq!(again, Written { deduplicated: true, ..mismatch.clone() });
    }
    assert_eq!(revision(bench.write(1, 3, "a", put("3")).await), 3);
}

#[tokio::test]
async fn an_id_stands_for_one_body() {
    let mut bench = Bench::new();
    bench.write(1, 1, "a", put("1")).await.unwrap();
    for (key, operation) in [("a", put("2")), ("b", put("1")), ("a", Operation::Delete), ("a", swap(0, "1"))]
    {
        let refused = refusal(bench.write(1, 1, key, operation).await);
        assert_eq!(refused, (Reason::RequestIdReused, Applied::No));
    }
}

#[tokio::test]
async fn a_session_is_opened_by_its_first_write_only() {
    let mut bench = Bench::new();
    let refused = refusal(bench.write(1, 2, "a", put("1")).await);
    assert_eq!(refused, (Reason::SessionExpired, Applied::Unknown));
    bench.write(1, 1, "a", put("1")).await.unwrap();
    bench.write(1, 2, "a", put("1")).await.unwrap();
}

#[tokio::test]
async fn results_are_kept_above_what_was_acknowledged_and_in_a_window() {
    let mut bench = Bench::new();
    for seq in 1..=5 {
        bench.write(1, seq, "a", put("1")).await.unwrap();
    }
    let mut acknowledged = bench.command(1, 6, "a", put("1"));
    acknowledged.mutation.lowest_unacked = 4;
    bench.apply(&acknowledged).await.unwrap();
    for (restarted, seq, kept) in [(false, 3, false), (false, 4, true), (true, 3, false), (true, 4, true)] {
        if restarted {
            bench.reload();
        }
        let answer = bench.write(1, seq, "a", put("1")).await;
        assert_eq!(answer.is_ok(), kept, "{seq}");
        if !kept {
            assert_eq!(refusal(answer), (Reason::RequestExpired, Applied::Unknown));
        }
    }
    // The window moves with the highest seq; writes within it may arrive in any order.
    bench.write(1, 6 + SESSION_WINDOW, "a", put("1")).await.unwrap();
    assert_eq!(refusal(bench.write(1, 6, "a", put("1")).await).0, Reason::RequestExpired);
    assert!(!bench.write(1, 7, "a", put("1")).await.unwrap().deduplicated);
}

#[tokio::test]
async fn an_idle_session_is_forgotten_and_its_opening_is_not_repeated() {
    let mut bench = Bench::new();
    let opening = bench.command(1, 1, "a", put("1"));
    bench.apply(&opening).await.unwrap();
    bench.now += IDLE - 1;
    assert!(bench.write(1, 1, "a", put("1")).await.unwrap().deduplicated);
    bench.now += 1;
    let late = WriteCommand { proposed_at_ms: bench.now, ..opening };
    assert_eq!(refusal(bench.apply(&late).await), (Reason::RequestExpired, Applied::Unknown));
    bench.reload();
    assert_eq!(refusal(bench.apply(&late).await), (Reason::RequestExpired, Applied::Unknown));
    assert_eq!(refusal(bench.write(1, 2, "a", put("1")).await).0, Reason::SessionExpired);
    assert_eq!(revision(bench.write(3, 1, "a", put("1")).await), 2);
}

#[tokio::test]
async fn log_time_never_goes_back() {
    let mut bench = Bench::new();
    bench.write(1, 1, "a", put("1")).await.unwrap();
    bench.now += 2 * IDLE;
    bench.write(2, 1, "a", put("1")).await.unwrap();
    // A leader with a clock far behind: the session of client 2 is not older for it, the one of client 1 is gone.
    bench.now -= 3 * IDLE / 2;
    assert!(bench.write(2, 1, "a", put("1")).await.unwrap().deduplicated);
    assert_eq!(refusal(bench.write(1, 2, "a", put("1")).await).0, Reason::SessionExpired);
}

#[tokio::test]
async fn a_leader_whose_clock_was_ahead_shuts_out_nobody() {
    let mut bench = Bench::new();
    let ahead = |command: WriteCommand, by: u64| WriteCommand {
        proposed_at_ms: command.proposed_at_ms + by,
        ..command
    };
    // Opened and used while the leader's clock is six idle times ahead, forgotten when it is eight.
    let opening = ahead(bench.command(1, 1, "a", put("1")), 6 * IDLE);
    bench.apply(&opening).await.unwrap();
    bench.now += 1;
    bench.apply(&ahead(bench.command(2, 1, "a", put("2")), 8 * IDLE)).await.unwrap();
    assert_eq!(refusal(bench.apply(&opening).await).0, Reason::RequestExpired);
    bench.reload();
    // The clock is right again: new sessions are opened, and late openings still refused.
    bench.now += 1;
    assert_eq!(revision(bench.write(3, 1, "a", put("3")).await), 3);
    assert_eq!(refusal(bench.apply(&opening).await).0, Reason::RequestExpired);
}

/// Log time stands still when a leader's clock was far ahead once: then the order of the log tells which session was used
/// last, on every replica and after a restart the same.
#[tokio::test]
async fn the_session_unused_longest_goes_first_while_time_stands_still() {
    let storage = super::memory(1);
    let mutation = |client: u128| Mutation {
        request_id: RequestId { client_id: ClientId(client), seq: 1 },
        issued_at_ms: 1,
        lowest_unacked: 1,
        attempt: 1,
    };
    let written = |index: u64| Written {
        effect: Effect::Put,
        namespace_revision: index,
        point: Point { term: 1, index },
        deduplicated: false,
    };
    let mut sessions = Sessions::default();
    // The smaller the id, the later it was used.
    let clients: Vec<u128> = (1..=MAX_SESSIONS as u128).rev().collect();
    let mut index = 0;
    for step in clients.chunks(1_000) {
        let mut stage = Stage::new(&storage, SPACE);
        sessions.advance(&mut stage, 1_000_000);
        for client in step {
            index += 1;
            sessions.keep(&mut stage, &mutation(*client), 7, &written(index));
        }
        storage.apply(stage.into_batch()).await.unwrap();
    }
    for restarted in [false, true] {
        if restarted {
            sessions = Sessions::load(&storage, SPACE).unwrap();
        }
        let mut stage = Stage::new(&storage, SPACE);
        index += 1;
        sessions.keep(&mut stage, &mutation(u128::from(u64::MAX) + u128::from(index)), 7, &written(index));
        let longest_unused = MAX_SESSIONS as u128 - u128::from(restarted);
        for client in [1, longest_unused - 1, longest_unused] {
            let known = sessions.admit(&mut stage, &mutation(client), 7).unwrap();
            let expected = client != longest_unused;
            assert_eq!(matches!(known, Admission::Known(_)), expected, "{client}: {known:?}");
        }
        storage.apply(stage.into_batch()).await.unwrap();
    }
    storage.halt();
}

#[tokio::test]
async fn a_session_keeps_a_bounded_number_of_bytes() {
    let mut bench = Bench::new();
    let big = Operation::Put(Bytes::from(vec![7; 1 << 20]));
    bench.write(1, 1, "big", big).await.unwrap();
    for seq in 2..=8 {
        bench.write(1, seq, "big", swap(99, "")).await.unwrap();
    }
    assert_eq!(refusal(bench.write(1, 2, "big", swap(99, "")).await).0, Reason::RequestExpired);
    assert!(bench.write(1, 8, "big", swap(99, "")).await.unwrap().deduplicated);
}

/// A snapshot as it comes from another node: its bytes in a part of the receiver's.
fn received(from: &Storage, to: &Storage, built: &Snapshot) -> SnapshotData {
    let id = snapshot::id_of(built.meta.last_log_id.as_ref());
    let file = from.snapshots(GROUP).bytes_of(id).unwrap();
    let mut part = to.snapshots(GROUP).receive(b"test", file.length(), 4_096).unwrap();
    part.write(&file.read(0, usize::MAX).unwrap()).unwrap();
    part.verify(id, file.checksum().unwrap(), &Default::default()).unwrap();
    SnapshotData::Received(ReceivedPart::new(part))
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_revisions_travel_in_snapshots() {
    let from = super::memory(1);
    let to = super::memory(2);
    let mut leader = Machine::open(from.clone(), GROUP, KvMachine::default()).await.unwrap();
    let mut bench = Bench::new();
    let entries: Vec<Proposal> =
        (1..=50).map(|seq| bench.command(1, seq, &format!("k{}", seq % 7), put("v")).encode()).collect();
    apply(&mut leader, 1, &entries).await;
    let built = leader.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let mut follower = Machine::open(to.clone(), GROUP, KvMachine::default()).await.unwrap();
    follower.install_snapshot(&built.meta, received(&from, &to, &built)).await.unwrap();
    assert_eq!(follower.applied_state().await.unwrap().0, built.meta.last_log_id);
    drop(follower);

    // The follower, restarted, answers duplicates and goes on counting where the leader stood.
    bench.storage = to.clone();
    bench.reload();
    bench.index = 50;
    let again = bench.write(1, 50, "k1", put("v")).await.unwrap();
    assert_eq!((again.deduplicated, again.namespace_revision, again.point.index), (true, 50, 50));
    assert_eq!(revision(bench.write(1, 51, "k1", put("v")).await), 51);
    from.halt();
}

/// A key is longer in the tables than it is for its client, twice as long at worst: that must fit as well.
#[tokio::test]
async fn the_longest_key_of_zeros_is_stored_and_found() {
    let mut bench = Bench::new();
    let zeros = "\0".repeat(MAX_KEY_BYTES);
    bench.write(1, 1, &zeros, put("1")).await.unwrap();
    let found = bench.write(1, 2, &zeros, swap(1, "2")).await.unwrap();
    assert_eq!(found.effect, Effect::Swapped);
    assert_eq!(digest(&bench.storage, 1).1, 1);
}

/// What a storage has of a namespace, digested.
fn digest(storage: &Storage, namespace: u64) -> (u64, u64) {
    kv_machine::digest(kv_machine::cut_of(storage, SPACE, NamespaceId(namespace)).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_have_one_digest_also_after_a_snapshot_and_a_doctored_one_has_another() {
    let storages = [1, 2, 3].map(super::memory);
    let bench = Bench::new();
    let entries: Vec<Proposal> =
        (1..=50).map(|seq| bench.command(1, seq, &format!("k{}", seq % 7), put("v")).encode()).collect();
    let mut leader = Machine::open(storages[0].clone(), GROUP, KvMachine::default()).await.unwrap();
    apply(&mut leader, 1, &entries).await;
    let whole = digest(&storages[0], 1);
    assert_eq!(whole.1, 7);
    assert_eq!(digest(&storages[0], 2), digest(&storages[1], 1), "nobody wrote to either");

    // In other steps, and by a snapshot.
    let mut follower = Machine::open(storages[1].clone(), GROUP, KvMachine::default()).await.unwrap();
    apply(&mut follower, 1, &entries[..20]).await;
    assert_ne!(digest(&storages[1], 1), whole);
    apply(&mut follower, 21, &entries[20..]).await;
    assert_eq!(digest(&storages[1], 1), whole);
    let built = leader.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let packed = received(&storages[0], &storages[2], &built);
    let mut away = Machine::open(storages[2].clone(), GROUP, KvMachine::default()).await.unwrap();
    away.install_snapshot(&built.meta, packed).await.unwrap();
    assert_eq!(digest(&storages[2], 1), whole);

    // A key, a revision, a value and the revision of the namespace: each of them tells.
    let (key, counter) = (keys::data(SPACE, NamespaceId(1), b"k3"), keys::revision(SPACE, NamespaceId(1)));
    let row = |table: Table, key: &[u8]| storages[2].get(table.id(), key).unwrap().unwrap().value;
    let (good, revision) = (row(Table::Data, &key), row(Table::Meta, &counter));
    let doctored = |row: &Bytes, at: usize| {
        let mut row = row.to_vec();
        row[at] ^= 1;
        row
    };
    let data = Table::Data.id();
    for wrong in [
        Batch::new().delete(data, &key),
        Batch::new().put(data, &key, doctored(&good, 8)),
        Batch::new().put(data, &key, doctored(&good, 9)),
        Batch::new().put(data, keys::data(SPACE, NamespaceId(1), b"k9"), &good),
        Batch::new().put(Table::Meta.id(), &counter, doctored(&revision, 8)),
    ] {
        storages[2].apply(wrong).await.unwrap();
        assert_ne!(digest(&storages[2], 1), whole);
        let right = Batch::new()
            .put(data, &key, &good)
            .delete(data, keys::data(SPACE, NamespaceId(1), b"k9"))
            .put(Table::Meta.id(), &counter, &revision);
        storages[2].apply(right).await.unwrap();
        assert_eq!(digest(&storages[2], 1), whole);
    }
    // What does not decode is an error.
    storages[2].apply(Batch::new().put(data, &key, "")).await.unwrap();
    let cut = kv_machine::cut_of(&storages[2], SPACE, NamespaceId(1)).unwrap();
    assert!(kv_machine::digest(cut).is_err());
    storages.iter().for_each(Storage::halt);
}

async fn apply(machine: &mut Machine, first: u64, proposals: &[Proposal]) {
    let entry = |(proposal, index): (&Proposal, u64)| {
        let payload = openraft::EntryPayload::Normal(proposal.clone());
        Ok((crate::config::Entry { log_id: codec::log_id(1, 1, index), payload }, None))
    };
    let entries: Vec<_> = proposals.iter().zip(first..).map(entry).collect();
    machine.apply(futures_util::stream::iter(entries)).await.unwrap();
}

proptest! {
    #[test]
    fn commands_survive_their_encoding(
        now: u64, client: u128, numbers: [u64; 4], key in proptest::collection::vec(any::<u8>(), 1..40),
        value in proptest::collection::vec(any::<u8>(), 0..40), kind in 0..3_u8,
    ) {
        let [seq, issued_at_ms, lowest_unacked, expected] = numbers;
        let request_id = RequestId { client_id: ClientId(client), seq };
        let operation = match kind {
            0 => Operation::Put(value.into()),
            1 => Operation::Delete,
            _ => Operation::CompareAndSet { expected, value: value.into() },
        };
        let command = WriteCommand {
            proposed_at_ms: now,
            mutation: Mutation { request_id, issued_at_ms, lowest_unacked, attempt: 1 },
            namespace: NamespaceId(3),
            key: key.into(),
            operation,
        };
        prop_assert_eq!(WriteCommand::decode(command.encode().0).unwrap(), command);
    }

    #[test]
    fn bad_commands_are_errors(mut bytes in proptest::collection::vec(any::<u8>(), 1..120)) {
        bytes[0] = codec::VERSION;
        let _ = WriteCommand::decode(bytes.into());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is resent, in whatever order, is applied once: the revision counts the distinct writes.
    #[test]
    fn resends_change_nothing(order in proptest::collection::vec((1..4_u128, 1..12_u64), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut bench = Bench::new();
            let mut applied = std::collections::BTreeSet::new();
            for client in 1..4 {
                bench.write(client, 1, "k", put("v")).await.unwrap();
                applied.insert((client, 1));
            }
            for (client, seq) in order {
                let written = bench.write(client, seq, "k", put("v")).await.unwrap();
                assert_eq!(written.deduplicated, !applied.insert((client, seq)));
                bench.reload();
            }
            assert_eq!(revision(bench.write(9, 1, "k", put("v")).await), applied.len() as u64 + 1);
        });
    }
}
