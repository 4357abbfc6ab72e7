//! Installing a snapshot: the old state counts until the new one is durable, whenever the power is cut, and
//! what does not count is removed. And a restart installs nothing that the log has.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_storage::disk::{Disk as _, MemDisk};
use kv_storage::tier::MemTiers;
use kv_storage::{Recovery, Storage, StorageError, StorageOptions};
use kv_types::NamespaceId;
use openraft::storage::{RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};

use super::bench::{Bench, GROUP, put};
use super::gated::GatedTiers;
use super::writes::apply;
use crate::codec;
use crate::config::{LogId, SnapshotMeta};
use crate::digest::Digesting;
use crate::disk_watch::DiskWatch;
use crate::kv_machine::{KvMachine, Operation};
use crate::log_store::LogStore;
use crate::machine::Machine;
use crate::proposal::Proposal;
use crate::snapshot::SnapshotData;
use crate::snapshot::{self, ReceivedPart};
use crate::tables::{Space, Table, keys};

fn domain() -> KvMachine {
    KvMachine::new(Default::default())
}

/// A disk and a tier that lose what was not synced.
struct World {
    disk: MemDisk,
    tiers: MemTiers,
}

impl World {
    fn new(seed: u64) -> Self {
        Self { disk: MemDisk::new(seed), tiers: MemTiers::new() }
    }

    fn open(&self) -> (Storage, Recovery) {
        let options = StorageOptions {
            max_record_bytes: 1 << 20,
            drain_start_bytes: 16 << 10,
            drain_batch_bytes: 8 << 10,
            ..StorageOptions::memory("/installs")
        };
        Storage::open(options, Arc::new(self.disk.clone()), Arc::new(self.tiers.clone())).unwrap()
    }

    fn cut_power(&self, storage: &Storage) {
        storage.halt();
        self.disk.crash();
        self.tiers.crash();
    }
}

/// A snapshot as a leader sends it: the bytes of its file.
#[derive(Clone)]
struct Sent {
    meta: SnapshotMeta,
    file: Bytes,
    checksum: u32,
}

impl Sent {
    /// What its receiver has when all of it has come.
    fn received(&self, to: &Storage) -> Result<SnapshotData, StorageError> {
        let length = u64::try_from(self.file.len()).unwrap();
        let mut part = to.snapshots(GROUP).receive(b"test", length, 4_096)?;
        let missing = usize::try_from(part.received()).unwrap();
        part.write(&self.file.slice(missing..))?;
        let id = snapshot::id_of(self.meta.last_log_id.as_ref());
        part.verify(id, self.checksum, &Default::default(), drop)?;
        Ok(SnapshotData::Received(ReceivedPart::new(part)))
    }
}

/// Snapshots of a leader after some writes, and after more of them, some of which delete.
async fn two_snapshots() -> [Sent; 2] {
    let storage = super::memory(1);
    let mut leader = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    let bench = Bench::new();
    let put = |seq| bench.command(1, seq, &format!("k{}", seq % 90), put(&"v".repeat(200))).encode();
    let first: Vec<Proposal> = (1..=60).map(put).collect();
    let deletes = |seq| bench.command(1, seq, &format!("k{}", seq % 7), Operation::Delete).encode();
    let more: Vec<Proposal> = (61..=150).map(put).chain((151..=160).map(deletes)).collect();
    apply(&mut leader, 1, &first).await;
    let old = taken(&storage, &mut leader).await;
    apply(&mut leader, 61, &more).await;
    let new = taken(&storage, &mut leader).await;
    storage.halt();
    [old, new]
}

async fn taken(storage: &Storage, leader: &mut Machine) -> Sent {
    let built = leader.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let id = snapshot::id_of(built.meta.last_log_id.as_ref());
    let file = storage.snapshots(GROUP).bytes_of(id).unwrap();
    let bytes = file.read(0, usize::MAX).unwrap();
    Sent { meta: built.meta, file: bytes, checksum: file.checksum().unwrap() }
}

/// How far the state is applied, and what it is.
async fn state(storage: &Storage, machine: &mut Machine) -> (Option<LogId>, (u64, u64)) {
    let applied = machine.applied();
    let applied = applied.read().await;
    let asked = Arc::new(());
    let waits = Arc::downgrade(&asked);
    let mut digesting = Digesting::begin(storage, applied.space, NamespaceId(1), waits).unwrap();
    digesting.read().unwrap();
    (applied.last(), digesting.close().unwrap())
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "not in time: {what}");
}

/// Rows of every generation but one.
fn garbage(storage: &Storage, present: Space) -> usize {
    let (from, to) = (keys::of_space(Space { generation: 0, ..present }), [0xff; 12]);
    let prefix = keys::of_space(present);
    let of = |table: Table| {
        let rows = storage.scan(table.id(), &from, Some(&to), usize::MAX).unwrap();
        rows.iter().filter(|(key, _)| !key.starts_with(&prefix)).count()
    };
    let streams = storage.streams(Table::History.id(), &from, &to);
    let streams = streams.iter().filter(|stream| !stream.starts_with(&prefix)).count();
    Table::ALL.into_iter().map(of).sum::<usize>() + streams
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_survives_a_power_cut_at_any_point() {
    let [old, new] = two_snapshots().await;
    let (mut finished, mut kept) = (0, 0);
    for seed in 0..28 {
        let world = World::new(seed);
        let (storage, _) = world.open();
        let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
        machine.install_snapshot(&old.meta, old.received(&storage).unwrap()).await.unwrap();
        let before = state(&storage, &mut machine).await;
        assert_eq!(before.0, old.meta.last_log_id);
        // The power is cut after so many syncs of the disk, or at the end.
        let begun = world.disk.syncs();
        let (sent, to) = (new.clone(), storage.clone());
        let installing = tokio::spawn(async move {
            let received = sent.received(&to).map_err(std::io::Error::from)?;
            machine.install_snapshot(&sent.meta, received).await.map(|()| machine)
        });
        until("the disk syncs", || world.disk.syncs() >= begun + seed || installing.is_finished()).await;
        storage.halt();
        let outcome = installing.await.unwrap();
        world.cut_power(&storage);

        let (storage, recovery) = world.open();
        assert!(!recovery.tier_lost, "seed {seed}: {recovery:?}");
        let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
        let found = state(&storage, &mut machine).await;
        if outcome.is_ok() {
            assert_eq!(found.0, new.meta.last_log_id, "seed {seed}: it was installed");
            finished += 1;
        } else if found.0 == old.meta.last_log_id {
            assert_eq!(found, before, "seed {seed}");
            kept += 1;
        }
        machine.install_snapshot(&new.meta, new.received(&storage).unwrap()).await.unwrap();
        let whole = state(&storage, &mut machine).await;
        assert_eq!(whole.0, new.meta.last_log_id);
        if found.0 != old.meta.last_log_id {
            assert_eq!(found, whole, "seed {seed}: the new state is whole or does not count");
        }
        // Neither the old state nor what was half written stays.
        let space = machine.applied().read().await.space;
        until("garbage is removed", || garbage(&storage, space) == 0).await;
        assert_eq!(state(&storage, &mut machine).await, whole);
        world.cut_power(&storage);
    }
    assert!(
        finished > 0 && kept > 0,
        "{finished} finished, {kept} kept the old state: the points are too few"
    );
}

/// The old state is read while the new one is loaded.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_removed_after_a_restart() {
    let [old, new] = two_snapshots().await;
    let world = World::new(1);
    let (storage, _) = world.open();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    machine.install_snapshot(&old.meta, old.received(&storage).unwrap()).await.unwrap();
    machine.install_snapshot(&new.meta, new.received(&storage).unwrap()).await.unwrap();
    // At once: the removal has not got far.
    world.cut_power(&storage);
    let (storage, _) = world.open();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    let space = machine.applied().read().await.space;
    assert_eq!(space.generation, 3);
    until("garbage is removed", || garbage(&storage, space) == 0).await;
    assert_eq!(state(&storage, &mut machine).await.0, new.meta.last_log_id);
    // Losing the tier loses the state; the file brings it back under a generation of its own.
    storage.shutdown().await;
    drop((machine, storage));
    world.tiers.delete("/installs".as_ref());
    let (storage, _) = world.open();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    assert_eq!(state(&storage, &mut machine).await.0, None);
    let kept = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(kept.meta, new.meta);
    machine.install_snapshot(&kept.meta, kept.snapshot).await.unwrap();
    assert_eq!(state(&storage, &mut machine).await.0, new.meta.last_log_id);
    assert_eq!(machine.applied().read().await.space.generation, 4);
    storage.halt();
}

/// What a snapshot has is in the tables on disk when the log may be purged up to it, unless the disk is full:
/// killing a node does not make it install its own file. A tier that was lost is filled by the log, where the
/// log reaches back.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_install_what_the_log_has() {
    let world = World::new(1);
    let (storage, _) = world.open();
    let bench = Bench::new();
    let proposals = puts(&bench, 40);
    let mut log = LogStore::new(storage.raft(GROUP), DiskWatch::default());
    append(&storage, &proposals).await;
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    apply(&mut machine, 1, &proposals[..10]).await;
    storage.checkpoint().await.unwrap();
    apply(&mut machine, 11, &proposals[10..]).await;
    log.save_committed(Some(codec::log_id(1, 1, 40))).await.unwrap();
    let built = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_eq!(built.meta.last_log_id, Some(codec::log_id(1, 1, 40)));
    world.cut_power(&storage);

    let (storage, _) = world.open();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    assert_eq!(machine.applied_state().await.unwrap().0, built.meta.last_log_id);
    storage.shutdown().await;

    // The committed hint was made durable with the snapshot.
    world.tiers.delete("/installs".as_ref());
    let (storage, _) = world.open();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    assert_eq!(machine.applied_state().await.unwrap().0, None);
    assert!(machine.get_current_snapshot().await.unwrap().is_none(), "the log has it");
    apply(&mut machine, 1, &proposals).await;
    assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().meta, built.meta);
    storage.shutdown().await;

    // Where the log does not reach back, the snapshot is what there is.
    world.tiers.delete("/installs".as_ref());
    let (storage, _) = world.open();
    storage.raft(GROUP).purge(kv_storage::RaftLogId { term: 1, node: 1, index: 20 }).unwrap();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().meta, built.meta);
    storage.halt();
    assert!(matches!(storage.record(b"x"), Ok(None) | Err(StorageError::Closed)));
}

/// A file that ends before the log begins is of no use to a follower: what is between the two is nowhere but
/// in the state. Another one is taken at once.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_file_does_not_pass_for_the_newest() {
    let world = World::new(1);
    let (storage, _) = world.open();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    let bench = Bench::new();
    let command = |seq| bench.command(1, seq, &format!("k{seq}"), put("v")).encode();
    apply(&mut machine, 1, &(1..=10).map(command).collect::<Vec<_>>()).await;
    let old = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    apply(&mut machine, 11, &(11..=20).map(command).collect::<Vec<_>>()).await;
    storage.raft(GROUP).purge(kv_storage::RaftLogId { term: 1, node: 1, index: 20 }).unwrap();
    let account = machine.account();
    let _ = account.told.set(Box::new(|_| Box::pin(async { Ok(()) })));
    let offered = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_ne!(offered.meta, old.meta);
    assert!(account.needs_snapshot());
    let new = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().meta, new.meta);
    assert!(!account.needs_snapshot());
    storage.halt();
}

/// The runtime of a node has one thread: it does other things while the state is read that a machine keeps in
/// memory.
#[tokio::test]
async fn what_a_machine_keeps_in_memory_is_not_read_on_the_runtime() {
    let tiers = GatedTiers::default();
    let gate = tiers.gate.clone();
    let options = StorageOptions { max_record_bytes: 1 << 20, ..StorageOptions::memory("/installs") };
    let (storage, _) = Storage::open(options, Arc::new(MemDisk::new(1)), Arc::new(tiers)).unwrap();
    gate.hold_scans(true);
    let opening = tokio::spawn(Machine::open(storage.clone(), GROUP, domain()));
    until("the sessions are being read", || gate.waiting() > 0).await;
    gate.hold_scans(false);
    opening.await.unwrap().unwrap();
    storage.halt();
}

/// A builder that fails while a received snapshot is being loaded does not give that one: its state is not
/// here yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_not_loaded_yet_is_not_given_for_one_that_was_taken() {
    let [old, new] = two_snapshots().await;
    let world = World::new(1);
    let (storage, _) = world.open();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    machine.install_snapshot(&old.meta, old.received(&storage).unwrap()).await.unwrap();
    // What an installation does first.
    new.received(&storage).unwrap().import(&storage.snapshots(GROUP), &new.meta).unwrap();
    let copies: Vec<_> = (0..kv_storage::limits::MAX_COPIES)
        .map(|_| storage.copy(&[(Table::Data.id(), b"")]).unwrap())
        .collect();
    let built = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert!(built.meta.last_log_id <= old.meta.last_log_id, "{:?}", built.meta);
    drop(copies);
    machine.install_snapshot(&new.meta, new.received(&storage).unwrap()).await.unwrap();
    let built = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_eq!(built.meta.last_log_id, new.meta.last_log_id);
    storage.halt();
}

/// What was installed is a snapshot: none is due for the log before it.
#[tokio::test(flavor = "multi_thread")]
async fn after_an_installation_the_log_counts_from_there() {
    let [_, new] = two_snapshots().await;
    let world = World::new(1);
    let (storage, _) = world.open();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    let bench = Bench::new();
    let before: Vec<Proposal> =
        (1..=10).map(|seq| bench.command(7, seq, "k", put(&"v".repeat(1_000))).encode()).collect();
    apply(&mut machine, 1, &before).await;
    assert!(machine.account().growth().0 > 10_000);
    machine.install_snapshot(&new.meta, new.received(&storage).unwrap()).await.unwrap();
    assert_eq!(machine.account().growth(), (0, new.file.len() as u64));
    storage.halt();
}

/// The leader has a file of the same name that is damaged inside, and so has a receiver: a good one replaces
/// it.
#[tokio::test]
async fn a_received_snapshot_replaces_a_damaged_file_of_its_name() {
    let [_, sent] = two_snapshots().await;
    let world = World::new(3);
    let (storage, _) = world.open();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    machine.install_snapshot(&sent.meta, sent.received(&storage).unwrap()).await.unwrap();
    let files = storage.snapshots(GROUP);
    let id = snapshot::id_of(sent.meta.last_log_id.as_ref());
    let path = std::path::PathBuf::from(format!("/installs/snapshots/{}/{id:016x}.snap", GROUP.0));
    world.disk.flip(&path, 1_000, 1).unwrap();
    assert!(files.verify(id).is_err());
    let received = sent.received(&storage).unwrap();
    machine.install_snapshot(&sent.meta, received).await.unwrap();
    files.verify(id).unwrap();
    storage.halt();
}

/// The disk has less than its reserve: the installation waits, and goes on when there is room.
#[tokio::test(start_paused = true)]
async fn an_installation_waits_for_room_on_the_disk() {
    let [_, sent] = two_snapshots().await;
    let world = World::new(4);
    let options = StorageOptions {
        max_record_bytes: 1 << 20,
        disk_reserve_bytes: 1 << 20,
        ..StorageOptions::memory("/installs")
    };
    let (storage, _) =
        Storage::open(options, Arc::new(world.disk.clone()), Arc::new(world.tiers.clone())).unwrap();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    let received = sent.received(&storage).unwrap();
    world.disk.open("/filler".as_ref(), true).unwrap().write_at(&vec![1; 32 << 20], 0).unwrap();
    world.disk.set_capacity(Some(world.disk.used() + (600 << 10)));
    {
        let mut install = std::pin::pin!(machine.install_snapshot(&sent.meta, received));
        let waiting = tokio::time::timeout(Duration::from_secs(30), install.as_mut()).await;
        assert!(waiting.is_err(), "it was loaded into the reserve");
        assert_eq!(world.disk.refused(), 0);
        storage.check().unwrap();
        world.disk.set_capacity(None);
        install.await.unwrap();
    }
    assert_eq!(machine.applied_state().await.unwrap().0, sent.meta.last_log_id);
    storage.halt();
}

/// A snapshot reads nothing from the disk while nothing can be applied, or on a thread of the runtime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_snapshot_waits_for_no_read_of_the_disk() {
    let tiers = GatedTiers::default();
    let gate = tiers.gate.clone();
    let options = StorageOptions { max_record_bytes: 1 << 20, ..StorageOptions::memory("/gated") };
    let (storage, _) = Storage::open(options, Arc::new(MemDisk::new(1)), Arc::new(tiers)).unwrap();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    let bench = Bench::new();
    let proposals = puts(&bench, 9);
    apply(&mut machine, 1, &proposals).await;
    storage.checkpoint().await.unwrap();
    until("only the tier has the state", || storage.stats().memtable_bytes == 0).await;
    let space = machine.applied().read().await.space;
    gate.hold_gets(Some(keys::of_space(space).leak()));
    let mut builder = machine.get_snapshot_builder().await;
    let building = tokio::spawn(async move { builder.build_snapshot().await });
    let built = tokio::time::timeout(Duration::from_secs(10), building).await;
    gate.hold_gets(None);
    let built = built.expect("it waits for a read").unwrap().unwrap();
    assert_eq!(built.meta.last_log_id, Some(codec::log_id(1, 1, 9)));
    storage.halt();
}

/// What was applied waits for room on the disk, which only the log can give back, once there is a snapshot. A
/// node that is killed then has its state in the file, and waits for the room to load it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_taken_though_what_was_applied_waits_for_room() {
    let world = World::new(5);
    let (storage, _) = world.open();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    let bench = Bench::new();
    let proposals = puts(&bench, 9);
    // What is in the log would make more room than the state needs.
    let large = (10..=60).map(|seq| bench.command(1, seq, "k", put(&"v".repeat(20_000))).encode());
    append(&storage, &proposals.iter().cloned().chain(large).collect::<Vec<_>>()).await;
    // Room for the file of a snapshot, and none for a journal.
    world.disk.fill_folder(Some("/installs/journals".as_ref()));
    apply(&mut machine, 1, &proposals).await;
    until("it waits for room", || storage.log_pressure().is_err()).await;
    let mut builder = machine.get_snapshot_builder().await;
    let building = tokio::time::timeout(Duration::from_secs(10), builder.build_snapshot());
    let built = building.await.expect("it waits for room too").unwrap();
    assert_eq!(built.meta.last_log_id, Some(codec::log_id(1, 1, 9)));
    assert!(world.disk.refused() > 0);
    let before = state(&storage, &mut machine).await;
    storage.raft(GROUP).purge(kv_storage::RaftLogId { term: 1, node: 1, index: 9 }).unwrap();
    storage.raft(GROUP).barrier().await.unwrap();
    drop((machine, builder));
    world.cut_power(&storage);

    let (storage, _) = world.open();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    assert_eq!(machine.applied_state().await.unwrap().0, None);
    let kept = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(kept.meta, built.meta);
    {
        let mut install = std::pin::pin!(machine.install_snapshot(&kept.meta, kept.snapshot));
        let waiting = tokio::time::timeout(Duration::from_millis(500), install.as_mut()).await;
        assert!(waiting.is_err(), "there is no room for the journal: {waiting:?}");
        world.disk.fill_folder(None);
        install.await.unwrap();
    }
    assert_eq!(state(&storage, &mut machine).await, before);
    storage.halt();
}

/// What removes an old state writes to its journals, and waits for the room for that.
#[tokio::test(start_paused = true)]
async fn an_old_state_is_removed_though_a_journal_had_no_room_at_first() {
    let world = World::new(6);
    let (storage, _) = world.open();
    let mut machine = Machine::open(storage.clone(), GROUP, domain()).await.unwrap();
    let bench = Bench::new();
    let proposals = puts(&bench, 9);
    apply(&mut machine, 1, &proposals).await;
    storage.checkpoint().await.unwrap();
    let old = machine.applied().read().await.space;
    let next = Space { generation: old.generation + 1, ..old };
    let (from, to) = (keys::of_space(old), keys::of_space(next));
    let histories = || storage.streams(Table::History.id(), &from, &to).len();
    assert_eq!(histories(), 1);
    world.disk.fill_folder(Some("/installs/journals".as_ref()));
    let range = vec![(old.generation, next.generation)];
    {
        let mut removal = std::pin::pin!(crate::generations::remove(storage.clone(), GROUP, range));
        let waiting = tokio::time::timeout(Duration::from_secs(5), removal.as_mut()).await;
        assert!(waiting.is_err(), "{waiting:?}");
        assert!(world.disk.refused() > 0 && histories() == 1);
        world.disk.fill_folder(None);
        removal.await.unwrap();
    }
    assert_eq!(histories(), 0);
    storage.halt();
}

/// The first writes of a client, each of a key of its own.
fn puts(bench: &Bench, count: u64) -> Vec<Proposal> {
    (1..=count).map(|seq| bench.command(1, seq, &format!("k{seq}"), put("v")).encode()).collect()
}

/// Puts entries into the log of the group, durably.
async fn append(storage: &Storage, proposals: &[Proposal]) {
    let entries = (1..).zip(proposals).map(|(index, proposal)| {
        let payload = openraft::EntryPayload::Normal(proposal.clone());
        codec::to_storage_entry(&crate::config::Entry { log_id: codec::log_id(1, 1, index), payload })
    });
    let (done, durable) = tokio::sync::oneshot::channel();
    storage.raft(GROUP).append(entries.collect(), Box::new(move |r| drop(done.send(r)))).unwrap();
    durable.await.unwrap().unwrap();
}
