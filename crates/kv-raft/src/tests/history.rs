//! The history of a namespace against a model that keeps every state there ever was: on replicas that apply
//! in different steps, lose power and install snapshots; with the floor moving, and with damage.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_storage::disk::{Disk, MemDisk};
use kv_storage::tier::MemTiers;
use kv_storage::{Storage, StorageOptions};
use kv_types::NamespaceId;
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};

use super::bench::{Bench, GROUP, put, swap};
use super::writes::{apply, received};
use crate::builder::SnapshotWork;
use crate::digest::Digesting;
use crate::history::{After, Change, Page, Past, decode_entry, read};
use crate::kv_machine::{KvMachine, Operation, WriteCommand};
use crate::limits::{HISTORY_WHOLE_VALUE_BYTES, PIECE_BYTES, TOMBSTONES_AT_ONCE};
use crate::machine::Machine;
use crate::proposal::Proposal;
use crate::row::{Live, Row};
use crate::tables::{Space, Table, for_each_row, keys};

const NS: NamespaceId = NamespaceId(1);
/// Small, so that the floor moves.
const BOUND: u64 = 24 << 10;
const FILE: u64 = 32 << 10;

fn domain(bound: u64) -> KvMachine {
    KvMachine::new(Default::default()).with_history_bytes(bound)
}

/// A node whose disk and tier lose what was not synced.
pub(super) struct Node {
    disk: MemDisk,
    tiers: MemTiers,
    bound: u64,
    pub(super) storage: Storage,
    pub(super) machine: Machine,
}

/// The next node installs a snapshot of this one, if it is behind; it is named then.
pub(super) async fn snapshot_travels(nodes: &mut [Node], from: usize) -> Option<usize> {
    let built = nodes[from].machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let to = (from + 1) % nodes.len();
    let at = built.meta.last_log_id.map_or(0, |last| last.index);
    if at <= nodes[to].applied().await as u64 {
        return None;
    }
    let sent = received(&nodes[from].storage, &nodes[to].storage, &built);
    nodes[to].machine.install_snapshot(&built.meta, sent).await.unwrap();
    Some(to)
}

impl Node {
    pub(super) async fn new(seed: u64, bound: u64) -> Self {
        let (disk, tiers) = (MemDisk::new(seed), MemTiers::new());
        let storage = Self::storage(&disk, &tiers);
        let machine = Machine::open(storage.clone(), GROUP, domain(bound)).await.unwrap();
        Self { disk, tiers, bound, storage, machine }
    }

    fn storage(disk: &MemDisk, tiers: &MemTiers) -> Storage {
        let options = StorageOptions {
            max_record_bytes: 1 << 20,
            drain_start_bytes: 8 << 10,
            drain_batch_bytes: 8 << 10,
            drain_interval: std::time::Duration::from_millis(5),
            checkpoint_log_bytes: 64 << 10,
            checkpoint_interval: std::time::Duration::from_millis(20),
            journal_file_bytes: FILE,
            ..StorageOptions::memory("/history")
        };
        Storage::open(options, Arc::new(disk.clone()), Arc::new(tiers.clone())).unwrap().0
    }

    /// Ends it, with or without the power, and starts it again.
    pub(super) async fn restart(&mut self, power_cut: bool) {
        if power_cut {
            self.storage.halt();
            self.disk.crash();
            self.tiers.crash();
        } else {
            self.storage.shutdown().await;
        }
        self.storage = Self::storage(&self.disk, &self.tiers);
        self.machine = Machine::open(self.storage.clone(), GROUP, domain(self.bound)).await.unwrap();
    }

    pub(super) async fn applied(&mut self) -> usize {
        let (last, _) = self.machine.applied_state().await.unwrap();
        last.map_or(0, |last| usize::try_from(last.index).unwrap())
    }

    /// Applies up to `to` entries of the log, in steps of any size.
    pub(super) async fn apply(&mut self, log: &[Proposal], to: usize, random: &mut fastrand::Rng) {
        let mut at = self.applied().await;
        while at < to {
            let next = to.min(at + random.usize(1..40));
            apply(&mut self.machine, at as u64 + 1, &log[at..next]).await;
            at = next;
        }
    }

    async fn space(&self) -> Space {
        self.machine.applied().read().await.space
    }

    async fn past(&self) -> Past {
        let row = self.storage.get(Table::Meta.id(), &keys::revision(self.space().await, NS)).unwrap();
        row.map(|row| Past::decode(row.value).unwrap()).unwrap_or_default()
    }

    /// Every entry above the floor. None after a power cut, until what was applied before it is applied
    /// again: the journal is ahead of the rows, and has been trimmed above their floor.
    async fn entries(&self) -> Option<Vec<(u64, Bytes)>> {
        let (past, space) = (self.past().await, self.space().await);
        let (mut out, mut next) = (Vec::new(), past.floor + 1);
        while next <= past.revision {
            match read(&self.storage, space, NS, (next, past.revision), 3_000).unwrap() {
                Page::Entries(page) => {
                    next = page.last().unwrap().0 + 1;
                    out.extend(page);
                }
                Page::Trimmed(floor) if floor > next && out.is_empty() => return None,
                other => panic!("revision {next} of {past:?}: {other:?}"),
            }
        }
        Some(out)
    }

    async fn rows(&self) -> BTreeMap<Vec<u8>, Row> {
        let mut rows = BTreeMap::new();
        for_each_row(&self.storage, self.space().await, Table::Data, |place, row| {
            let (namespace, key) = keys::of_data(place).unwrap();
            if namespace == NS {
                rows.insert(key, Row::decode(row).unwrap());
            }
            Ok::<(), kv_storage::StorageError>(())
        })
        .unwrap();
        rows
    }

    async fn tombstones(&self) -> usize {
        let mut found = 0;
        for_each_row(&self.storage, self.space().await, Table::Tombstones, |place, key| {
            let (namespace, revision) = keys::of_tombstone(place).unwrap();
            let row =
                self.storage.get(Table::Data.id(), &keys::data(keys_space(place), namespace, &key)).unwrap();
            // The pair of each other.
            assert_eq!(Row::decode(row.unwrap().value).unwrap(), Row::Tombstone { revision });
            found += 1;
            Ok::<(), kv_storage::StorageError>(())
        })
        .unwrap();
        found
    }

    async fn digest(&self) -> (u64, u64) {
        let asked = Arc::new(());
        let waits = Arc::downgrade(&asked);
        let mut digesting = Digesting::begin(&self.storage, self.space().await, NS, waits).unwrap();
        digesting.read().unwrap();
        digesting.close().unwrap()
    }
}

fn keys_space(place: &[u8]) -> Space {
    let (group, rest) = place.split_first_chunk::<4>().unwrap();
    let generation = u64::from_be_bytes(*rest.first_chunk::<8>().unwrap());
    Space { group: kv_types::GroupId(u32::from_be_bytes(*group)), generation }
}

/// The states of the namespace by revision.
#[derive(Default)]
struct Model {
    states: Vec<BTreeMap<Vec<u8>, Live>>,
    /// The revision after each entry of the log.
    revisions: Vec<u64>,
}

impl Model {
    fn take(&mut self, command: &WriteCommand) {
        if self.states.is_empty() {
            self.states.push(BTreeMap::new());
        }
        let mut state = self.states.last().unwrap().clone();
        let (key, found) = (command.key.to_vec(), state.get(&command.key[..]).cloned());
        let next = self.states.len() as u64;
        let effective = match &command.operation {
            Operation::Put(value) => {
                state.insert(key, Live::after(found.as_ref(), next, value.clone()));
                true
            }
            Operation::Delete => state.remove(&key).is_some(),
            Operation::CompareAndSet { expected, value } => {
                let holds = found.as_ref().map_or(0, |row| row.revision) == *expected;
                if holds {
                    state.insert(key, Live::after(found.as_ref(), next, value.clone()));
                }
                holds
            }
        };
        if effective {
            self.states.push(state);
        }
        self.revisions.push(self.states.len() as u64 - 1);
    }

    /// Everything that a node says of its past is what was. False if it cannot say it yet.
    async fn check(&self, node: &mut Node, about: &str) -> bool {
        let applied = node.applied().await;
        let revision = applied.checked_sub(1).map_or(0, |at| self.revisions[at]);
        let past = node.past().await;
        assert_eq!(past.revision, revision, "{about}");
        let rows = node.rows().await;
        let Some(entries) = node.entries().await else { return false };
        assert_eq!(entries.len() as u64, past.revision - past.floor, "{about}: every revision has an entry");
        let entries: Vec<(u64, Vec<Change>)> =
            entries.into_iter().map(|(id, content)| (id, decode_entry(content).unwrap())).collect();
        for at in past.floor..=past.revision {
            let state = &self.states[usize::try_from(at).unwrap()];
            // Keys that were there are found by walking the present rows, tombstones among them.
            for key in state.keys() {
                assert!(
                    rows.contains_key(key),
                    "{about}: key {key:?} of revision {at} is not among the rows"
                );
            }
            for (key, row) in &rows {
                assert_eq!(get(key, at, row, &entries).as_ref(), state.get(key), "{about}: {key:?} at {at}");
            }
        }
        for (id, changes) in &entries {
            let [Change { key, before, after }] = &changes[..] else {
                panic!("one change for each revision")
            };
            let state = |at: u64| self.states[usize::try_from(at).unwrap()].get(&key[..]);
            assert_eq!(before.as_ref(), state(id - 1), "{about}: before {id}");
            match (after, state(*id)) {
                (After::Whole(Row::Live(row)), Some(live)) => assert_eq!(row, live),
                (After::Whole(Row::Tombstone { revision }), None) => assert_eq!(revision, id),
                (After::Large { row: Row::Live(row), length, hash }, Some(live)) => {
                    assert!(live.value.len() > HISTORY_WHOLE_VALUE_BYTES);
                    assert_eq!((row.revision, *length), (live.revision, live.value.len() as u64));
                    assert_eq!(*hash, xxhash_rust::xxh3::xxh3_64(&live.value));
                }
                other => panic!("{about}: entry {id}: {other:?}"),
            }
        }
        let state = self.states.get(usize::try_from(revision).unwrap()).map_or(0, BTreeMap::len);
        assert_eq!(node.digest().await.1, state as u64, "{about}: tombstones are no keys");
        node.tombstones().await;
        true
    }
}

/// As a reader of the past does it.
fn get(key: &[u8], at: u64, row: &Row, entries: &[(u64, Vec<Change>)]) -> Option<Live> {
    if row.revision() <= at {
        return match row {
            Row::Live(live) => Some(live.clone()),
            Row::Tombstone { .. } => None,
        };
    }
    let above = entries.iter().filter(|(id, _)| *id > at).flat_map(|(_, changes)| changes);
    above.into_iter().find(|change| change.key == key).and_then(|change| change.before.clone())
}

/// Writes of one client to a few keys; values of all sizes.
fn some_log(random: &mut fastrand::Rng, writes: u64) -> (Vec<Proposal>, Model) {
    let bench = Bench::new();
    let mut model = Model::default();
    let mut log = Vec::new();
    for seq in 1..=writes {
        let key = format!("k{}", random.u8(0..12));
        let size = if random.u8(..) < 8 { 6_000 } else { random.usize(0..300) };
        let value = "v".repeat(size);
        let state = model.states.last();
        let present = state.and_then(|state| state.get(key.as_bytes())).map_or(0, |row| row.revision);
        let operation = match random.u8(0..10) {
            0..=4 => put(&value),
            5..=7 => Operation::Delete,
            8 => swap(present, &value),
            _ => swap(present + 1, &value),
        };
        let mut command = bench.command(1, seq, &key, operation);
        command.mutation.lowest_unacked = seq;
        model.take(&command);
        log.push(command.encode());
    }
    (log, model)
}

/// The log of what was committed is the test's: a node that lost power applies again from where its tables
/// are.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_have_one_history_through_power_cuts_and_installations() {
    let (mut floors, mut installed, mut checked) = (0, 0, 0);
    for seed in 0..10 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (log, model) = some_log(&mut random, 900);
        let mut nodes = Vec::new();
        for node in 0..3 {
            nodes.push(Node::new(seed * 3 + node, BOUND).await);
        }
        for round in 0..24 {
            let about = format!("seed {seed}, round {round}");
            let which = random.usize(0..3);
            let to = (nodes[which].applied().await + random.usize(0..150)).min(log.len());
            nodes[which].apply(&log, to, &mut random).await;
            checked += usize::from(model.check(&mut nodes[which], &about).await);
            match random.u8(0..6) {
                0 | 1 => nodes[which].restart(true).await,
                2 => nodes[which].restart(false).await,
                3 => {
                    if let Some(other) = snapshot_travels(&mut nodes, which).await {
                        assert!(model.check(&mut nodes[other], &format!("{about}, installed")).await);
                        installed += 1;
                    }
                }
                _ => {}
            }
            checked += usize::from(model.check(&mut nodes[which], &format!("{about}, after")).await);
        }
        let mut ends = Vec::new();
        for node in &mut nodes {
            node.apply(&log, log.len(), &mut random).await;
            assert!(model.check(node, &format!("seed {seed}, at the end")).await);
            ends.push((node.past().await, node.entries().await, node.digest().await));
            floors += u64::from(node.past().await.floor > 100);
            node.storage.halt();
        }
        assert!(
            ends.windows(2).all(|pair| pair[0] == pair[1]),
            "seed {seed}: {:?}",
            ends.iter().map(|e| &e.0).collect::<Vec<_>>()
        );
    }
    assert!(
        floors > 10 && installed > 10 && checked > 300,
        "{floors} floors moved, {installed} snapshots were installed, {checked} of 480 checks saw all"
    );
}

/// While a snapshot is written slowly the floor passes much of what it has still to read: it is whole or it
/// is given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_overtaken_by_the_floor_is_whole_or_given_up() {
    let (mut whole, mut given_up) = (0, 0);
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (log, model) = some_log(&mut random, 1_500);
        let mut leader = Node::new(seed, BOUND).await;
        leader.apply(&log, 300, &mut random).await;
        let rate = [16 << 10, 256 << 10, 64 << 20][usize::try_from(seed % 3).unwrap()];
        leader.machine = leader.machine.with_snapshot_work(SnapshotWork::new(rate));
        let mut builder = leader.machine.get_snapshot_builder().await;
        let building = tokio::spawn(async move { builder.build_snapshot().await.unwrap() });
        let mut at = 300;
        while at < log.len() && !building.is_finished() {
            let next = log.len().min(at + 10);
            leader.apply(&log, next, &mut random).await;
            at = next;
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let built = building.await.unwrap();
        if built.meta.last_log_id.is_none() {
            given_up += 1;
        } else {
            let mut follower = Node::new(100 + seed, BOUND).await;
            let sent = received(&leader.storage, &follower.storage, &built);
            follower.machine.install_snapshot(&built.meta, sent).await.unwrap();
            assert!(model.check(&mut follower, &format!("seed {seed}")).await);
            follower.storage.halt();
            whole += 1;
        }
        leader.storage.halt();
    }
    assert!(whole > 0, "{whole} whole, {given_up} given up");
}

/// What a delete leaves is gone once the floor has passed it, a bounded number in each step, and what was
/// written again meanwhile stays.
#[tokio::test(flavor = "multi_thread")]
async fn tombstones_go_when_the_floor_has_passed_them() {
    const BOUND: u64 = 256 << 10;
    let mut node = Node::new(1, BOUND).await;
    let bench = Bench::new();
    let write = |seq: u64, key: String, operation| {
        let mut command = bench.command(1, seq, &key, operation);
        command.mutation.lowest_unacked = seq;
        command.encode()
    };
    let keys = 3 * TOMBSTONES_AT_ONCE as u64 / 2;
    let mut log = Vec::new();
    for key in 0..keys {
        log.push(write(log.len() as u64 + 1, format!("k{key}"), put("v")));
        log.push(write(log.len() as u64 + 1, format!("k{key}"), Operation::Delete));
    }
    log.push(write(log.len() as u64 + 1, "k0".into(), put("again")));
    let mut random = fastrand::Rng::with_seed(1);
    node.apply(&log, log.len(), &mut random).await;
    let deleted = node.past().await.revision;
    let before = node.tombstones().await;
    assert!(before > 500, "{before} tombstones before the floor passes them");
    assert_eq!(node.digest().await.1, 1, "only k0 is a key");
    // One large entry after the other, each in a step of its own.
    let mut left = before;
    for round in 0..400 {
        let index = log.len() as u64 + 1;
        log.push(write(index, "large".into(), put(&"x".repeat(9_000))));
        if round == 20 {
            node.restart(true).await;
            let applied = node.applied().await;
            apply(&mut node.machine, applied as u64 + 1, &log[applied..log.len() - 1]).await;
            left = node.tombstones().await;
        }
        apply(&mut node.machine, index, &log[log.len() - 1..]).await;
        let now = node.tombstones().await;
        assert!(left - now <= TOMBSTONES_AT_ONCE, "round {round}: {left} before, {now} after");
        left = now;
        if node.past().await.floor >= deleted && now == 0 {
            let rows = node.rows().await;
            assert_eq!(rows.keys().map(|key| &key[..]).collect::<Vec<_>>(), [&b"k0"[..], b"large"]);
            assert_eq!(node.digest().await.1, 2);
            node.storage.halt();
            return;
        }
    }
    panic!("{left} tombstones are left, {:?}", node.past().await);
}

/// The bytes on the disk follow the bound, not what is written: half of it again, five files and what is
/// under way.
#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_overwrites_stays_within_its_bound_on_the_disk() {
    let mut node = Node::new(1, BOUND).await;
    let bench = Bench::new();
    let mut written = 0;
    for round in 0..60_u64 {
        let log: Vec<Proposal> = (1..=100)
            .map(|at| {
                let mut command =
                    bench.command(1, round * 100 + at, &format!("k{}", at % 5), put(&"x".repeat(400)));
                command.mutation.lowest_unacked = round * 100 + at;
                command.encode()
            })
            .collect();
        apply(&mut node.machine, round * 100 + 1, &log).await;
        written += log.iter().map(|proposal| proposal.0.len() as u64).sum::<u64>();
        node.storage.checkpoint().await.unwrap();
        let bound = BOUND + BOUND / 2 + 5 * FILE + (2 << 20);
        let bytes = node.storage.stats().journal_bytes;
        assert!(bytes <= bound, "{bytes} bytes after round {round}, the bound is {bound}");
    }
    let reclaimed = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while node.storage.stats().journal_bytes > BOUND + BOUND / 2 + 5 * FILE {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    });
    assert!(reclaimed.await.is_ok(), "{} bytes in the end", node.storage.stats().journal_bytes);
    assert!(written > 20 * BOUND, "{written} bytes were written");
    node.storage.halt();
}

/// Entries that the disk has lost are named, not believed: the digest is another, a snapshot waits for them
/// and goes on without them in the end, and all else is served.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_entry_is_lost_by_name_and_nothing_else() {
    let mut node = Node::new(1, BOUND).await;
    let mut other = Node::new(2, BOUND).await;
    let bench = Bench::new();
    let log: Vec<Proposal> =
        (1..=9).map(|seq| bench.command(1, seq, &format!("key number {seq}"), put("v")).encode()).collect();
    for at in 0..log.len() {
        apply(&mut node.machine, at as u64 + 1, &log[at..=at]).await;
        node.storage.checkpoint().await.unwrap();
    }
    apply(&mut other.machine, 1, &log).await;
    assert_eq!(node.digest().await, other.digest().await);
    let Page::Entries(entry) = read(&other.storage, other.space().await, NS, (5, 5), PIECE_BYTES).unwrap()
    else {
        panic!("revision 5 is not there");
    };
    node.storage.shutdown().await;
    let file = node.disk.list("/history/journals".as_ref()).unwrap().remove(0);
    let mut bytes = vec![0; usize::try_from(FILE).unwrap()];
    node.disk.open(&file, false).unwrap().read_at(&mut bytes, 0).unwrap();
    let place = bytes.windows(12).position(|found| found == b"key number 5").unwrap();
    node.disk.flip(&file, place as u64, 1).unwrap();
    node.restart(false).await;
    let space = node.space().await;
    let page = |range| read(&node.storage, space, NS, range, PIECE_BYTES).unwrap();
    assert!(matches!(page((1, 9)), Page::Entries(entries) if entries.len() == 4));
    assert_eq!(page((5, 9)), Page::Lost(6));
    assert!(matches!(page((6, 9)), Page::Entries(entries) if entries.len() == 4));
    assert_ne!(node.digest().await, other.digest().await);
    let built = node.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_eq!(built.meta.last_log_id, None, "none is taken while it may be put back");
    assert_eq!(node.machine.account().holes().all(), [(NS, 5, 5)]);
    node.machine = node.machine.with_snapshot_work(SnapshotWork::default().with_mend_wait(Duration::ZERO));
    let built = node.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let sent = received(&node.storage, &other.storage, &built);
    other.machine.install_snapshot(&built.meta, sent).await.unwrap();
    let space = other.space().await;
    assert_eq!(
        read(&other.storage, space, NS, (5, 9), PIECE_BYTES).unwrap(),
        Page::Lost(6),
        "nor does the receiver"
    );
    // Neither the one whose disk has lost it nor the one that installed it without is beyond help.
    let content = entry.first().unwrap().clone();
    for (of, space) in [(&node, node.space().await), (&other, space)] {
        let stream = keys::of_namespace(space, NS);
        of.storage
            .fill_entries(Table::History.id(), &stream, Some(4), std::slice::from_ref(&content))
            .unwrap();
        let Page::Entries(entries) = read(&of.storage, space, NS, (1, 9), PIECE_BYTES).unwrap() else {
            panic!("something is missing");
        };
        assert!(!entries.is_empty());
    }
    assert_eq!(node.digest().await, other.digest().await);
    apply(&mut node.machine, 10, &[bench.command(1, 10, "more", put("v")).encode()]).await;
    assert_eq!(node.past().await.revision, 10);
    node.storage.halt();
    other.storage.halt();
}
