//! The rules of a key-value group: revisions, comparisons, and that a write happens once - also across a
//! snapshot and a restart.

use bytes::Bytes;
use kv_storage::{Batch, Storage};
use kv_types::limits::MAX_KEY_BYTES;
use kv_types::{Applied, ClientId, Mutation, NamespaceId, Reason, RequestId};
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use proptest::prelude::*;

use super::bench::{Bench, GROUP, SPACE, present, put, refusal, revision, swap};
use crate::codec;
use crate::digest::Digesting;
use crate::kv_machine::{KvMachine, Operation, WriteCommand};
use crate::machine::Machine;
use crate::machine_error::MachineError;
use crate::proposal::{Effect, Point, Proposal, Written};
use crate::row::Live;
use crate::snapshot::Snapshot;
use crate::snapshot::SnapshotData;
use crate::snapshot::{self, ReceivedPart};
use crate::tables::{Stage, Table, keys};

fn machine() -> KvMachine {
    KvMachine::new(Default::default())
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
    bench.write(2, 1, "a", put("other")).await.unwrap();
    for restarted in [false, true] {
        if restarted {
            bench.reload();
        }
        let again = bench.write(1, 1, "a", put("1")).await.unwrap();
        assert_eq!(again, Written { deduplicated: true, ..first.clone() });
    }
    assert_eq!(revision(bench.write(1, 3, "a", put("3")).await), 3);
}

/// What a mismatch found is not kept. A resend looks again, and is answered at the point of the log where it
/// looked.
#[tokio::test]
async fn a_resent_mismatch_looks_again_and_is_never_applied() {
    let mut bench = Bench::new();
    bench.write(1, 1, "a", put("1")).await.unwrap();
    let first = bench.write(1, 2, "a", swap(3, "x")).await.unwrap();
    assert_eq!(first.effect, Effect::Mismatch { found: Some((1, Bytes::from_static(b"1"))) });
    bench.write(2, 1, "a", put("2")).await.unwrap();
    for restarted in [false, true] {
        if restarted {
            bench.reload();
        }
        let again = bench.write(1, 2, "a", swap(3, "x")).await.unwrap();
        let found = Some((2, Bytes::from_static(b"2")));
        let point = Point { term: 1, index: bench.index };
        let looked =
            Written { effect: Effect::Mismatch { found }, namespace_revision: 2, point, deduplicated: true };
        assert_eq!(again, looked);
    }
    // Now it would hold. The first answer may have been received, so it is not applied.
    bench.write(2, 2, "a", put("3")).await.unwrap();
    let refused = refusal(bench.write(1, 2, "a", swap(3, "x")).await);
    assert_eq!(refused, (Reason::RequestExpired, Applied::No));
    assert_eq!(revision(bench.write(2, 3, "a", put("4")).await), 4);
    // A key that is gone since: what is found is that there is none.
    bench.write(2, 4, "a", Operation::Delete).await.unwrap();
    let again = bench.write(1, 2, "a", swap(3, "x")).await.unwrap();
    assert_eq!((again.effect, again.namespace_revision), (Effect::Mismatch { found: None }, 5));
}

/// A row says when its key was created, when it was changed, and how often since.
#[tokio::test]
async fn rows_count_from_the_creation_of_their_key() {
    let mut bench = Bench::new();
    let numbers = |bench: &Bench| {
        let row = bench.storage.get(Table::Data.id(), &keys::data(SPACE, NamespaceId(1), b"a")).unwrap();
        row.and_then(|row| Live::of_row(row.value).unwrap())
            .map(|row| (row.create, row.revision, row.version, row.lease))
    };
    bench.write(1, 1, "other", put("0")).await.unwrap();
    bench.write(1, 2, "a", put("1")).await.unwrap();
    assert_eq!(numbers(&bench), Some((2, 2, 1, 0)));
    bench.write(1, 3, "a", swap(2, "2")).await.unwrap();
    bench.write(1, 4, "a", swap(2, "no")).await.unwrap();
    bench.write(1, 5, "a", put("3")).await.unwrap();
    assert_eq!(numbers(&bench), Some((2, 4, 3, 0)));
    bench.write(1, 6, "a", Operation::Delete).await.unwrap();
    assert_eq!(numbers(&bench), None);
    bench.reload();
    bench.write(1, 7, "a", swap(0, "4")).await.unwrap();
    assert_eq!(numbers(&bench), Some((6, 6, 1, 0)));
}

/// What a step of writes costs in rows: one for each key, one for each session, and the counters once.
#[tokio::test]
async fn a_step_writes_each_row_once() {
    let mut bench = Bench::new();
    for client in 1..=3 {
        bench.write(client, 1, "k", put("v")).await.unwrap();
    }
    let rows =
        |stage: &Stage<'_>| [Table::Data, Table::Sessions, Table::Meta].map(|table| stage.changes(table));
    let storage = bench.storage.clone();
    let one = Stage::new(&storage, SPACE);
    let command = bench.command(1, 2, "k", put("v"));
    let (one, _) = bench.stage(one, &[command]);
    assert_eq!(rows(&one), [1, 1, 2]);
    bench.storage.apply(one.into_batch()).await.unwrap();
    let many: Vec<WriteCommand> = (0..60)
        .map(|at| bench.command(at % 3 + 1, u128_to_seq(at / 3 + 3), &format!("k{}", at % 10), put("v")))
        .collect();
    let (many, replies) = bench.stage(Stage::new(&storage, SPACE), &many);
    assert!(replies.iter().all(Result::is_ok));
    assert_eq!(rows(&many), [10, 3, 2]);
}

fn u128_to_seq(number: u128) -> u64 {
    u64::try_from(number).unwrap()
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

/// A snapshot as it comes from another node: its bytes in a part of the receiver's.
pub(super) fn received(from: &Storage, to: &Storage, built: &Snapshot) -> SnapshotData {
    let id = snapshot::id_of(built.meta.last_log_id.as_ref());
    let file = from.snapshots(GROUP).bytes_of(id).unwrap();
    let mut part = to.snapshots(GROUP).receive(b"test", file.length(), 4_096).unwrap();
    part.write(&file.read(0, usize::MAX).unwrap()).unwrap();
    part.verify(id, file.checksum().unwrap(), &Default::default(), drop).unwrap();
    SnapshotData::Received(ReceivedPart::new(part))
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_revisions_travel_in_snapshots() {
    let from = super::memory(1);
    let to = super::memory(2);
    let mut leader = Machine::open(from.clone(), GROUP, machine()).await.unwrap();
    let mut bench = Bench::new();
    let entries: Vec<Proposal> =
        (1..=50).map(|seq| bench.command(1, seq, &format!("k{}", seq % 7), put("v")).encode()).collect();
    apply(&mut leader, 1, &entries).await;
    let built = leader.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let mut follower = Machine::open(to.clone(), GROUP, machine()).await.unwrap();
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

fn digested(storage: &Storage, namespace: u64) -> Result<(u64, u64), MachineError> {
    let asked = std::sync::Arc::new(());
    let waits = std::sync::Arc::downgrade(&asked);
    let mut digesting = Digesting::begin(storage, present(storage), NamespaceId(namespace), waits)?;
    digesting.read()?;
    digesting.close()
}

/// What a storage has of a namespace, digested.
fn digest(storage: &Storage, namespace: u64) -> (u64, u64) {
    digested(storage, namespace).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_have_one_digest_also_after_a_snapshot_and_a_doctored_one_has_another() {
    let storages = [1, 2, 3].map(super::memory);
    let bench = Bench::new();
    let entries: Vec<Proposal> =
        (1..=50).map(|seq| bench.command(1, seq, &format!("k{}", seq % 7), put("v")).encode()).collect();
    let mut leader = Machine::open(storages[0].clone(), GROUP, machine()).await.unwrap();
    apply(&mut leader, 1, &entries).await;
    let whole = digest(&storages[0], 1);
    assert_eq!(whole.1, 7);
    assert_eq!(digest(&storages[0], 2), digest(&storages[1], 1), "no one wrote to either");

    // In other steps, and by a snapshot.
    let mut follower = Machine::open(storages[1].clone(), GROUP, machine()).await.unwrap();
    apply(&mut follower, 1, &entries[..20]).await;
    assert_ne!(digest(&storages[1], 1), whole);
    apply(&mut follower, 21, &entries[20..]).await;
    assert_eq!(digest(&storages[1], 1), whole);
    let built = leader.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let packed = received(&storages[0], &storages[2], &built);
    let mut away = Machine::open(storages[2].clone(), GROUP, machine()).await.unwrap();
    away.install_snapshot(&built.meta, packed).await.unwrap();
    assert_eq!(digest(&storages[2], 1), whole);

    // A key, each number of its row, its value and the revision of the namespace: each of them tells.
    /// The last byte of the first number of a row: version, kind, number.
    const CREATE: usize = 9;
    let space = present(&storages[2]);
    let (key, counter) = (keys::data(space, NamespaceId(1), b"k3"), keys::revision(space, NamespaceId(1)));
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
        Batch::new().put(data, &key, doctored(&good, CREATE)),
        Batch::new().put(data, &key, doctored(&good, CREATE + 8)),
        Batch::new().put(data, &key, doctored(&good, CREATE + 16)),
        Batch::new().put(data, &key, doctored(&good, CREATE + 24)),
        Batch::new().put(data, &key, doctored(&good, CREATE + 25)),
        Batch::new().put(data, keys::data(space, NamespaceId(1), b"k9"), &good),
        Batch::new().put(Table::Meta.id(), &counter, doctored(&revision, 8)),
    ] {
        storages[2].apply(wrong).await.unwrap();
        assert_ne!(digest(&storages[2], 1), whole);
        let right = Batch::new()
            .put(data, &key, &good)
            .delete(data, keys::data(space, NamespaceId(1), b"k9"))
            .put(Table::Meta.id(), &counter, &revision);
        storages[2].apply(right).await.unwrap();
        assert_eq!(digest(&storages[2], 1), whole);
    }
    // What does not decode is an error.
    storages[2].apply(Batch::new().put(data, &key, "")).await.unwrap();
    assert!(digested(&storages[2], 1).is_err());
    storages.iter().for_each(Storage::halt);
}

/// A member of an older release that meets what only a newer one knows.
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_of_a_newer_release_stops_its_member_by_name() {
    let storage = super::memory(1);
    let bench = Bench::new();
    let mut member = Machine::open(storage.clone(), GROUP, machine()).await.unwrap();
    apply(&mut member, 1, &[bench.command(1, 1, "a", put("1")).encode()]).await;
    let known = bench.command(1, 2, "a", Operation::Delete).encode().0;
    // Version, times and who asks, namespace; then the kind.
    const KIND: usize = 1 + 8 + 16 + 8 + 8 + 8 + 4 + 8;
    let mut newer = known.to_vec();
    newer[KIND] = 200;
    let payload = openraft::EntryPayload::Normal(Proposal(newer.into()));
    let entry = crate::config::Entry { log_id: codec::log_id(1, 1, 2), payload };
    let stopped =
        member.apply(futures_util::stream::iter([Ok((entry, None))])).await.unwrap_err().to_string();
    assert!(stopped.contains("operation 200") && stopped.contains("upgrade this node"), "{stopped}");
    // It neither skips it nor writes anything; with a release that knows it, the member goes on from here.
    drop(member);
    let mut member = Machine::open(storage.clone(), GROUP, machine()).await.unwrap();
    assert_eq!(member.applied_state().await.unwrap().0, Some(codec::log_id(1, 1, 1)));
    storage.halt();
}

/// Applies proposals from an index on.
pub(super) async fn apply(machine: &mut Machine, first: u64, proposals: &[Proposal]) {
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
        now: u64, client: u128, attempt: u32, numbers: [u64; 4], key in proptest::collection::vec(any::<u8>(), 1..40),
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
            mutation: Mutation { request_id, issued_at_ms, lowest_unacked, attempt },
            namespace: NamespaceId(3),
            key: key.into(),
            operation,
        };
        prop_assert_eq!(WriteCommand::decode(command.encode().0).unwrap(), command);
    }

    #[test]
    fn bad_commands_are_errors(mut bytes in proptest::collection::vec(any::<u8>(), 1..120)) {
        bytes[0] = 2;
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
