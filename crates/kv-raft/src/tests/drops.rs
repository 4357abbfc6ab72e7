//! Namespaces that are dropped: nothing is written after the drop, only its mark stays of what machines keep,
//! and replicas agree whatever their steps, restarts and snapshots.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use kv_storage::{Storage, StorageError};
use kv_types::limits::SESSION_IDLE;
use kv_types::{Applied, ClientId, NamespaceId, Reason};
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};

use super::bench::{Bench, present, put, refusal, revision, swap};
use super::history::{Node, snapshot_travels};
use super::writes::received;
use crate::builder::SnapshotWork;
use crate::digest::Digesting;
use crate::dropped::DropCommand;
use crate::kv_machine::{Operation, WriteCommand};
use crate::limits::{SESSIONS_DROPPED_AT_ONCE, TOMBSTONES_AT_ONCE};
use crate::machine::Domain;
use crate::machine_error::MachineError;
use crate::proposal::{Point, Proposal, Reply};
use crate::tables::{Stage, Table, for_each_row, keys};

fn of(namespace: u64, command: WriteCommand) -> WriteCommand {
    WriteCommand { namespace: NamespaceId(namespace), ..command }
}

impl Bench {
    /// Drops namespaces, in a step of its own.
    async fn drop_run(&mut self, run: RangeInclusive<u64>) {
        let storage = self.storage.clone();
        let mut stage = Stage::new(&storage, present(&storage));
        self.index += 1;
        let point = Point { term: self.term, index: self.index };
        let reply = self.machine.apply(&mut stage, point, &DropCommand(run).encode()).unwrap();
        assert_eq!(reply, Reply::Dropped);
        self.machine.seal(&mut stage);
        storage.apply(stage.into_batch()).await.unwrap();
        self.machine.publish();
    }
}

/// Rows of a table that are not of the clock or of the run, by their keys without the space.
fn rows(storage: &Storage, table: Table) -> BTreeMap<Vec<u8>, Bytes> {
    let mut rows = BTreeMap::new();
    for_each_row(storage, present(storage), table, |key, row| {
        rows.insert(key[keys::SPACE_BYTES..].to_vec(), row);
        Ok::<(), StorageError>(())
    })
    .unwrap();
    rows
}

fn count(storage: &Storage, table: Table) -> usize {
    rows(storage, table).len()
}

#[tokio::test]
async fn after_the_drop_nothing_is_written_and_only_the_mark_stays() {
    let mut bench = Bench::new();
    for namespace in [1, 2] {
        for seq in 1..=4 {
            let command = bench.command(9, seq, &format!("k{}", seq % 3), put("v"));
            bench.apply(&of(namespace, command)).await.unwrap();
        }
    }
    let mut forgets = bench.command(9, 5, "k0", Operation::Delete);
    forgets.mutation.lowest_unacked = 5;
    bench.apply(&of(2, forgets)).await.unwrap();
    let (sessions, meta) = (count(&bench.storage, Table::Sessions), count(&bench.storage, Table::Meta));
    assert_eq!((sessions, meta), (2, 3), "two namespaces with one client, and the clock");
    bench.drop_run(2..=2).await;
    assert_eq!((count(&bench.storage, Table::Sessions), count(&bench.storage, Table::Meta)), (1, 3));
    assert!(bench.machine.dropped().has(NamespaceId(2)) && !bench.machine.dropped().has(NamespaceId(1)));
    assert_eq!(bench.machine.dropped().unfinished, None);
    for restarted in [false, true] {
        if restarted {
            bench.reload();
        }
        // One that was sent before the deletion and comes now, as first sent and as sent again.
        let mut late = of(2, bench.command(9, 6, "late", put("x")));
        assert_eq!(refusal(bench.apply(&late).await), (Reason::NamespaceUnknown, Applied::Unknown));
        late.mutation.attempt = 1;
        assert_eq!(refusal(bench.apply(&late).await), (Reason::NamespaceUnknown, Applied::No));
        let mut opens = of(2, bench.command(10, 1, "late", swap(0, "x")));
        opens.mutation.attempt = 1;
        assert_eq!(refusal(bench.apply(&opens).await), (Reason::NamespaceUnknown, Applied::No));
        assert_eq!(count(&bench.storage, Table::Sessions), 1);
    }
    let late = keys::data(present(&bench.storage), NamespaceId(2), b"late");
    assert_eq!(bench.storage.get(Table::Data.id(), &late).unwrap(), None);
    // The other namespace goes on where it was.
    assert_eq!(revision(bench.write(9, 5, "k0", put("w")).await), 5);
}

/// A drop within a step that writes to the namespace before and behind it.
#[tokio::test]
async fn a_drop_counts_within_its_step() {
    let mut bench = Bench::new();
    bench.write(1, 1, "a", put("1")).await.unwrap();
    let storage = bench.storage.clone();
    let (before, behind) = (bench.command(1, 2, "b", put("2")), bench.command(1, 3, "c", put("3")));
    let (mut stage, replies) = bench.stage(Stage::new(&storage, present(&storage)), &[before]);
    assert_eq!(revision(replies.into_iter().next().unwrap()), 2);
    let point = Point { term: 1, index: 50 };
    bench.machine.apply(&mut stage, point, &DropCommand(1..=1).encode()).unwrap();
    let (stage, replies) = bench.stage(stage, &[behind]);
    assert_eq!(refusal(replies.into_iter().next().unwrap()).0, Reason::NamespaceUnknown);
    storage.apply(stage.into_batch()).await.unwrap();
    let places = [b"a", b"b", b"c"].map(|key| keys::data(present(&storage), NamespaceId(1), key));
    let there = places.map(|place| storage.get(Table::Data.id(), &place).unwrap().is_some());
    assert_eq!(there, [true, true, false], "rows go later, and none comes");
    assert_eq!((count(&storage, Table::Sessions), count(&storage, Table::Meta)), (0, 2));
    bench.reload();
    assert!(bench.machine.dropped().has(NamespaceId(1)));
}

/// The sessions go with several commands, and the same ones on a replica that restarts between them.
#[tokio::test]
async fn sessions_go_in_bounded_steps_and_replicas_agree_on_them() {
    let sessions = 2 * SESSIONS_DROPPED_AT_ONCE + 100;
    let mut ends = Vec::new();
    for restarts in [false, true] {
        let mut bench = Bench::new();
        let clients = 1..=sessions as u128;
        let opens: Vec<_> = clients.map(|client| bench.command(client, 1, "k", put("v"))).collect();
        for some in opens.chunks(500) {
            bench.apply_all(some).await;
        }
        let other = bench.command(7, 1, "k", put("v"));
        bench.apply(&of(5, other)).await.unwrap();
        assert_eq!(count(&bench.storage, Table::Sessions), sessions + 1);
        let mut left = Vec::new();
        for _ in 0..3 {
            bench.drop_run(1..=4).await;
            if restarts {
                bench.reload();
            }
            left.push((count(&bench.storage, Table::Sessions), bench.machine.dropped().unfinished));
            let late = bench.command(3, 1, "k", put("v"));
            assert_eq!(refusal(bench.apply(&late).await).0, Reason::NamespaceUnknown, "known or not");
        }
        let expected = [
            (sessions + 1 - SESSIONS_DROPPED_AT_ONCE, Some((1, 4))),
            (sessions + 1 - 2 * SESSIONS_DROPPED_AT_ONCE, Some((1, 4))),
            (1, None),
        ];
        assert_eq!(left, expected);
        ends.push((rows(&bench.storage, Table::Sessions), rows(&bench.storage, Table::Meta)));
    }
    assert_eq!(ends[0], ends[1]);
}

/// Sessions that the drop has not reached yet are forgotten meanwhile, which leaves a horizon: that is what
/// is left of the namespace then, also for a replica that restarts.
#[tokio::test]
async fn a_horizon_that_is_left_in_the_middle_of_a_drop_goes_with_its_end() {
    let idle = u64::try_from(SESSION_IDLE.as_millis()).unwrap();
    let mut ends = Vec::new();
    for restarts in [false, true] {
        let mut bench = Bench::new();
        let clients = 1..=SESSIONS_DROPPED_AT_ONCE as u128 + 3;
        let opens: Vec<_> = clients.map(|client| of(2, bench.command(client, 1, "k", put("v")))).collect();
        for some in opens.chunks(500) {
            bench.apply_all(some).await;
        }
        bench.drop_run(2..=2).await;
        assert_eq!(count(&bench.storage, Table::Sessions), 3);
        let horizon = keys::horizon(present(&bench.storage), NamespaceId(2));
        let has_horizon = |bench: &Bench| bench.storage.get(Table::Meta.id(), &horizon).unwrap().is_some();
        assert!(!has_horizon(&bench));
        bench.rest(idle + 60_000).await;
        assert_eq!(count(&bench.storage, Table::Sessions), 1, "of the one who writes now and then");
        assert!(has_horizon(&bench));
        if restarts {
            bench.reload();
        }
        assert_eq!(bench.machine.dropped().unfinished, Some((2, 2)), "restarts: {restarts}");
        // Another drop looks for what is unfinished anew.
        bench.drop_run(5..=5).await;
        assert_eq!(bench.machine.dropped().unfinished, Some((2, 2)), "restarts: {restarts}");
        bench.drop_run(2..=2).await;
        assert_eq!(bench.machine.dropped().unfinished, None);
        assert!(!has_horizon(&bench));
        ends.push((rows(&bench.storage, Table::Sessions), rows(&bench.storage, Table::Meta)));
    }
    assert_eq!(ends[0], ends[1]);
}

/// Writes of some clients to three namespaces; two are dropped on the way, one of them twice.
fn some_log(random: &mut fastrand::Rng, entries: usize) -> Vec<Proposal> {
    let bench = Bench::new();
    let mut seqs: BTreeMap<(u64, u128), u64> = BTreeMap::new();
    let drops = [(entries / 3, 2..=2), (entries / 2, 1..=2), (2 * entries / 3, 2..=2)];
    let log = (0..entries).map(|at| {
        if let Some((_, run)) = drops.iter().find(|(when, _)| *when == at) {
            return DropCommand(run.clone()).encode();
        }
        let (namespace, client) = (random.u64(1..4), random.u128(1..5));
        let seq = seqs.entry((namespace, client)).or_default();
        *seq += 1;
        let key = format!("k{}", random.u8(0..12));
        let operation = match random.u8(0..8) {
            0..=3 => put(&"v".repeat(random.usize(0..300))),
            4..=5 => Operation::Delete,
            _ => swap(random.u64(0..9), "w"),
        };
        let mut command = of(namespace, bench.command(client, *seq, &key, operation));
        command.mutation.lowest_unacked = seq.saturating_sub(5);
        command.encode()
    });
    log.collect()
}

/// Rows that replicas must have in common: all that is kept in memory, and the values of the namespace that
/// lives.
fn common(storage: &Storage) -> [BTreeMap<Vec<u8>, Bytes>; 3] {
    let mut data = rows(storage, Table::Data);
    data.retain(|key, _| key.starts_with(&3_u64.to_be_bytes()));
    // Tombstones go in a node's own time.
    data.retain(|_, row| crate::row::Live::of_row(row.clone()).unwrap().is_some());
    [rows(storage, Table::Meta), rows(storage, Table::Sessions), data]
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_agree_on_drops_through_power_cuts_and_installations() {
    let mut installed = 0;
    for seed in 0..8 {
        let mut random = fastrand::Rng::with_seed(seed);
        let log = some_log(&mut random, 600);
        let mut nodes = Vec::new();
        for node in 0..3 {
            nodes.push(Node::new(seed * 3 + node, 24 << 10).await);
        }
        for _ in 0..16 {
            let which = random.usize(0..3);
            let to = (nodes[which].applied().await + random.usize(0..150)).min(log.len());
            nodes[which].apply(&log, to, &mut random).await;
            match random.u8(0..6) {
                0 | 1 => nodes[which].restart(true).await,
                2 => nodes[which].restart(false).await,
                3 => installed += usize::from(snapshot_travels(&mut nodes, which).await.is_some()),
                _ => {}
            }
        }
        let mut ends = Vec::new();
        for node in &mut nodes {
            node.apply(&log, log.len(), &mut random).await;
            let dropped = node.machine.applied().read().await.dropped.clone();
            assert_eq!(dropped.runs().collect::<Vec<_>>(), [(1, 2)], "seed {seed}");
            assert_eq!(dropped.unfinished, None);
            let space = node.machine.applied().read().await.space;
            for namespace in [1, 2] {
                let stream = keys::of_namespace(space, NamespaceId(namespace));
                let (floor, last) = node.storage.stream_bounds(Table::History.id(), &stream);
                assert!(last.is_none_or(|last| last < floor), "seed {seed}: entries of {namespace} are kept");
            }
            ends.push(common(&node.storage));
            node.storage.halt();
        }
        assert!(ends[0] == ends[1] && ends[1] == ends[2], "seed {seed}");
        let [meta, sessions, _] = &ends[0];
        let of_dropped =
            |key: &[u8]| key.starts_with(&1_u64.to_be_bytes()) || key.starts_with(&2_u64.to_be_bytes());
        assert!(sessions.keys().all(|key| !of_dropped(key)), "seed {seed}");
        assert!(meta.keys().all(|key| !of_dropped(&key[1..])), "seed {seed}");
    }
    assert!(installed > 5, "{installed} snapshots were installed");
}

/// A snapshot whose rows say that a namespace has a history, and that is dropped before its entries are
/// taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_taken_through_the_drop_of_a_namespace() {
    let bench = Bench::new();
    let value = "v".repeat(2_000);
    let writes = (1..=2_000_u64).map(|seq| {
        let mut command =
            of(seq % 2 + 1, bench.command(1, seq.div_ceil(2), &format!("k{}", seq % 6), put(&value)));
        command.mutation.lowest_unacked = seq / 2;
        command.encode()
    });
    let log: Vec<Proposal> = writes.chain([DropCommand(2..=2).encode()]).collect();
    let mut random = fastrand::Rng::with_seed(5);
    let mut node = Node::new(90, 16 << 20).await;
    node.apply(&log, log.len() - 1, &mut random).await;
    // A burst is free, and what is behind it takes seconds.
    let work = SnapshotWork::new(2 << 20);
    let mut builder = node.machine.get_snapshot_builder().await;
    builder.work = work.clone();
    let building = tokio::spawn(async move { builder.build_snapshot().await });
    while !work.is_busy() {
        tokio::task::yield_now().await;
    }
    super::writes::apply(&mut node.machine, log.len() as u64, &log[log.len() - 1..]).await;
    let built = building.await.unwrap().unwrap();
    assert_eq!(built.meta.last_log_id.unwrap().index, log.len() as u64, "it has the drop");
    let mut other = Node::new(91, 16 << 20).await;
    let sent = received(&node.storage, &other.storage, &built);
    other.machine.install_snapshot(&built.meta, sent).await.unwrap();
    assert!(other.machine.applied().read().await.dropped.has(NamespaceId(2)));
    assert_eq!(rows(&other.storage, Table::Meta), rows(&node.storage, Table::Meta));
    let late = of(2, bench.command(ClientId(1).0, 1_001, "late", put("x")));
    super::writes::apply(&mut other.machine, log.len() as u64 + 1, &[late.encode()]).await;
    let place = keys::data(present(&other.storage), NamespaceId(2), b"late");
    assert_eq!(other.storage.get(Table::Data.id(), &place).unwrap(), None);
    node.storage.halt();
    other.storage.halt();
}

/// What is swept of a namespace stops with its drop, and goes on for others.
#[tokio::test]
async fn a_drop_does_not_hold_up_the_sweep_of_others() {
    let mut bench = Bench::new();
    bench.machine = crate::kv_machine::KvMachine::new(Default::default()).with_history_bytes(2_000);
    for seq in 1..=60 {
        for namespace in [1, 2] {
            let operation = if seq % 2 == 0 { Operation::Delete } else { put("v") };
            let mut command = bench.command(1, seq, &format!("k{}", seq.div_ceil(2)), operation);
            command.mutation.lowest_unacked = seq;
            bench.apply(&of(namespace, command)).await.unwrap();
        }
    }
    let space = present(&bench.storage);
    let first = bench.machine.sweep(space).unwrap();
    assert!(first.from.starts_with(&keys::of_namespace(space, NamespaceId(1))));
    bench.drop_run(1..=1).await;
    let next = bench.machine.sweep(space).unwrap();
    assert!(
        next.from.starts_with(&keys::of_namespace(space, NamespaceId(2))),
        "{TOMBSTONES_AT_ONCE} at once"
    );
}

/// What was read of a history is more than the account has once that went with the drop.
#[tokio::test]
async fn a_digest_takes_no_drop_for_a_damaged_history() {
    let mut bench = Bench::new();
    for seq in 1..=4 {
        bench.write(1, seq, "k", put("v")).await.unwrap();
    }
    let asked = Arc::new(());
    let waits = Arc::downgrade(&asked);
    let mut digesting =
        Digesting::begin(&bench.storage, present(&bench.storage), NamespaceId(1), waits).unwrap();
    digesting.read().unwrap();
    bench.drop_run(1..=1).await;
    let overtaken = digesting.close().unwrap_err();
    assert!(matches!(overtaken, MachineError::Storage(StorageError::Overloaded { .. })), "{overtaken}");
}
