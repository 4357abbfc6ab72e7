//! Journals beside rows: whatever happens, the entries that a batch appends and the rows that it changes are
//! there together, a journal is never behind its tier, and what is read is what was written.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test"
)]

mod world;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use kv_storage::disk::{Disk, MemDisk};
use kv_storage::journal::{JournalError, JournalOp};
use kv_storage::tier::MemTiers;
use kv_storage::{Batch, Drive, Storage, StorageError, StorageOptions, TableId};

use world::{Mem, T, World};

/// The table of the journal. Its number may be that of a keyed table too.
const J: TableId = TableId::new(40);
const STREAMS: u64 = 3;

fn name(stream: u64) -> Bytes {
    Bytes::from(format!("stream {stream}"))
}

fn row(stream: u64) -> Vec<u8> {
    format!("last of {stream}").into_bytes()
}

fn manual(seed: u64) -> Mem {
    let mut world = Mem::new(seed);
    let options = world.options();
    options.drive = Drive::Manual;
    options.drain_start_bytes = 2 << 10;
    options.drain_batch_bytes = 2 << 10;
    options.checkpoint_log_bytes = 16 << 10;
    options.journal_file_bytes = 8 << 10;
    world
}

/// What was committed, by stream: the floor and the entries, kept ones and trimmed ones.
#[derive(Debug, Default, Clone)]
struct Model(BTreeMap<u64, (u64, BTreeMap<u64, Bytes>)>);

impl Model {
    fn last(&self, stream: u64) -> u64 {
        self.0.get(&stream).and_then(|(_, entries)| entries.last_key_value()).map_or(0, |(id, _)| *id)
    }

    /// Appends and trims, and a row for each stream that says which entry is its last.
    fn batch(&mut self, random: &mut fastrand::Rng) -> Batch {
        let mut batch = Batch::new();
        let chosen: Vec<u64> = (0..STREAMS).filter(|_| random.bool()).collect();
        for stream in chosen {
            let mut id = self.last(stream);
            for _ in 0..random.u64(1..4) {
                id += random.u64(1..3);
                let content = Bytes::from(vec![id as u8; random.usize(0..150)]);
                batch.push_append(J, &name(stream), id, &content);
                self.0.entry(stream).or_default().1.insert(id, content);
            }
            batch.push_put(T, row(stream), id.to_be_bytes());
            if random.u8(..) < 90 {
                let below = id.saturating_sub(random.u64(0..25));
                batch.push_trim(J, &name(stream), below);
                let floor = &mut self.0.entry(stream).or_default().0;
                *floor = below.max(*floor);
            }
        }
        batch
    }

    fn check(&self, storage: &Storage, random: &mut fastrand::Rng, about: &str) {
        for (stream, (floor, entries)) in &self.0 {
            let last = self.last(*stream);
            let found = storage.get(T, &row(*stream)).unwrap().map(|row| row.value);
            assert_eq!(found.as_deref(), Some(&last.to_be_bytes()[..]), "{about}: the row of {stream}");
            assert_eq!(storage.stream_bounds(J, &name(*stream)), (*floor, Some(last)), "{about}");
            let to = random.u64(last.saturating_sub(3)..last + 2);
            let kept: Vec<_> = entries.range(floor..).filter(|(id, _)| **id <= to).collect();
            let read = all(storage, *stream, *floor, to, random);
            assert_eq!(read.iter().map(|(id, c)| (id, c)).collect::<Vec<_>>(), kept, "{about}: {stream}");
            if *floor > 0 {
                let below = storage.read_entries(J, &name(*stream), (floor - 1, to), 1, 1);
                assert_eq!(below, Err(StorageError::Journal(JournalError::Trimmed { floor: *floor })));
            }
        }
    }
}

/// Pages of any size, until there is no more.
fn all(storage: &Storage, stream: u64, from: u64, to: u64, random: &mut fastrand::Rng) -> Vec<(u64, Bytes)> {
    let (mut out, mut at) = (Vec::new(), from);
    loop {
        let (entries, bytes) = (random.usize(1..9), random.usize(0..400));
        let page = storage.read_entries(J, &name(stream), (at, to), entries, bytes).unwrap();
        let Some((last, _)) = page.last() else { return out };
        at = last + 1;
        out.extend(page);
    }
}

/// Both journals that the tier knows of are compared; the tail goes with the file, or at the end of one.
#[test]
fn a_journal_that_lost_what_was_synced_is_named_at_the_start() {
    for whole_file in [false, true] {
        let world = manual(1);
        let (storage, _) = world.open();
        let other = TableId::new(41);
        let append = |table, id: u64| {
            let mut batch = Batch::new().put(T, row(0), id.to_be_bytes());
            batch.push_append(table, &name(0), id, Bytes::from(vec![id as u8; 100]));
            storage.commit(batch).unwrap();
            let mut asked = std::pin::pin!(storage.checkpoint());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            while asked.as_mut().poll(&mut context).is_pending() {
                storage.pump();
            }
        };
        let folder = Path::new("/data/journals");
        append(other, 1);
        append(J, 1);
        let path = world
            .disk
            .list(folder)
            .unwrap()
            .into_iter()
            .find(|path| path.ends_with("0028-0000000000000001.jrn"));
        let path = path.unwrap();
        let before = world.disk.contents(&path).unwrap();
        append(J, 2);
        let after = world.disk.contents(&path).unwrap();
        world.crash(storage);
        match whole_file {
            true => world.remove(&path),
            false => world.disk.overwrite(&path, 0, &before).unwrap(),
        }
        let refused = world.try_open().unwrap_err();
        let (words, first) = (refused.to_string(), if whole_file { 1 } else { 3 });
        assert!(matches!(refused, StorageError::CorruptFile { .. }), "{words}");
        assert!(words.contains("the journal of table 40"), "{words}");
        assert!(words.contains(&format!("lost its runs {first} to 3")), "{words}");
        if !whole_file {
            // As it was, it is whole.
            world.disk.overwrite(&path, 0, &after).unwrap();
            let (storage, _) = world.open();
            assert_eq!(storage.stream_bounds(J, &name(0)), (0, Some(2)));
        }
    }
}

/// Committed batches are replayed from the log, in part or not, as far as the tier misses them.
#[test]
fn rows_and_entries_are_there_together_whenever_the_power_is_cut() {
    for seed in 0..150 {
        let mut random = fastrand::Rng::with_seed(seed);
        let world = manual(seed);
        let (mut storage, _) = world.open();
        let mut model = Model::default();
        // What is not durable may be lost, from its batch on.
        let mut since: Vec<Model> = Vec::new();
        for round in 0..120 {
            let batch = model.batch(&mut random);
            if !batch.is_empty() {
                storage.commit(batch).unwrap();
                since.push(model.clone());
            }
            match random.u8(..) {
                0..=60 => while storage.pump() {},
                61..=160 => drop(storage.pump()),
                _ => {}
            }
            if random.u8(..) < 12 {
                // In the middle of a step as well: some syncs pass, then none.
                world.disk.fail_syncs(Some(random.u64(0..4)));
                for _ in 0..random.u64(0..6) {
                    storage.pump();
                }
                world.crash(storage);
                world.disk.fail_syncs(None);
                storage = world.open().0;
                let last = storage.get(T, &row(0)).unwrap().map(|row| row.value);
                // As after one of the batches: rows say after which.
                let found = |model: &&Model| {
                    (0..STREAMS).all(|stream| {
                        let last = storage.get(T, &row(stream)).unwrap();
                        let last =
                            last.map_or(0, |row| u64::from_be_bytes((&*row.value).try_into().unwrap()));
                        last == model.last(stream)
                    })
                };
                let before = since.first().cloned().unwrap_or_default();
                model = since.iter().chain([&before, &Model::default()]).find(found).cloned().unwrap_or_else(
                    || panic!("seed {seed}, round {round}: {last:?} is after none of the batches"),
                );
                since = vec![model.clone()];
            }
            model.check(&storage, &mut random, &format!("seed {seed}, round {round}"));
        }
        storage.halt();
    }
}

/// As a state machine does it: nothing of it is in this log, and after a power cut everything since the
/// tier's last checkpoint is applied again. What a step writes may be cut into other steps then.
#[tokio::test]
async fn derived_entries_that_come_again_are_compared_and_skipped() {
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        let world = manual(seed);
        let (mut storage, _) = world.open();
        let applied = |storage: &Storage| {
            let row = storage.get(T, b"applied").unwrap();
            row.map_or(0, |row| u64::from_be_bytes((&*row.value).try_into().unwrap()))
        };
        let (mut at, mut crashes) = (0_u64, 0);
        for round in 0..250 {
            let mut batch = Batch::new();
            for id in at + 1..=at + random.u64(1..6) {
                at = id;
                batch.push_append(J, &name(0), id, vec![id as u8; (id % 90) as usize]);
                // A pure function of what was applied.
                if id % 16 == 0 {
                    batch.push_trim(J, &name(0), id.saturating_sub(60));
                }
            }
            batch.push_put(T, b"applied", at.to_be_bytes());
            storage.apply(batch).await.unwrap();
            if random.u8(..) < 60 {
                storage.pump();
            }
            if random.u8(..) < 30 {
                while storage.pump() {}
            }
            if random.u8(..) < 12 {
                crashes += 1;
                world.disk.fail_syncs(Some(random.u64(0..3)));
                for _ in 0..random.u64(0..4) {
                    storage.pump();
                }
                world.crash(storage);
                world.disk.fail_syncs(None);
                storage = world.open().0;
                at = applied(&storage);
                let (floor, last) = storage.stream_bounds(J, &name(0));
                assert!(
                    last.unwrap_or(0) >= at,
                    "seed {seed}, round {round}: the journal is behind its tier"
                );
                assert_eq!(storage.lost_entries(J), []);
                let from = floor.max(1);
                let there = all(&storage, 0, from, at, &mut random);
                let ids: Vec<u64> = there.iter().map(|(id, _)| *id).collect();
                assert_eq!(ids, (from..=at).collect::<Vec<_>>(), "seed {seed}, round {round}");
            }
        }
        assert!(crashes > 3, "seed {seed}: {crashes} crashes");
        storage.halt();
    }
}

/// The smallest case of it: a step is drained and checkpointed, then the power is cut. What was not synced is
/// lost, kept or torn as the seed says.
#[tokio::test]
async fn a_journal_is_on_the_disk_before_its_tier() {
    for seed in 0..40 {
        let world = manual(seed);
        let (storage, _) = world.open();
        let batch = Batch::new().append(J, b"s", 1, vec![7; 9_000]).put(T, b"k", b"row");
        storage.apply(batch).await.unwrap();
        let asked = storage.clone();
        let checkpointed = tokio::spawn(async move { asked.checkpoint().await });
        while !checkpointed.is_finished() {
            storage.pump();
            tokio::task::yield_now().await;
        }
        checkpointed.await.unwrap().unwrap();
        world.crash(storage);
        let (storage, _) = world.open();
        assert_eq!(storage.get(T, b"k").unwrap().unwrap().value, "row");
        let entries = storage.read_entries(J, b"s", (1, 9), 9, 99).unwrap();
        assert_eq!(entries, [(1, Bytes::from(vec![7; 9_000]))], "seed {seed}");
        storage.halt();
    }
}

#[test]
fn losing_the_tier_keeps_the_journals() {
    let world = manual(3);
    let (storage, _) = world.open();
    let mut random = fastrand::Rng::with_seed(3);
    let mut model = Model::default();
    for _ in 0..200 {
        let batch = model.batch(&mut random);
        if !batch.is_empty() {
            storage.commit(batch).unwrap();
        }
        while storage.pump() {}
    }
    world.crash(storage);
    world.delete_tier();
    let (storage, recovery) = world.open();
    assert!(recovery.tier_rebuilt || recovery.tier_lost, "{recovery:?}");
    for (stream, (floor, entries)) in &model.0 {
        let kept: Vec<_> = entries.range(floor..).map(|(id, c)| (*id, c.clone())).collect();
        assert_eq!(all(&storage, *stream, *floor, u64::MAX, &mut random), kept);
    }
    while storage.pump() {}
    storage.check().unwrap();
    storage.halt();
}

#[test]
fn what_does_not_follow_is_refused_and_nothing_happens() {
    let world = manual(1);
    let (storage, _) = world.open();
    storage.commit(Batch::new().append(J, b"s", 5, b"five")).unwrap();
    for drained in [false, true] {
        if drained {
            let drain = storage.commit(Batch::new().put(T, b"fill", vec![0; 4 << 10]));
            drain.unwrap();
            while storage.pump() {}
            assert_eq!(storage.stats().memtable_bytes, 0);
        }
        for id in [1, 5] {
            let refused = storage.commit(Batch::new().put(T, b"k", b"v").append(J, b"s", id, b"again"));
            assert!(
                matches!(&refused, Err(StorageError::Invalid(why)) if why.contains("has 5")),
                "{refused:?}"
            );
            assert!(refused.unwrap_err().is_refusal());
        }
        let twice = Batch::new().append(J, b"s", 6, b"a").append(J, b"s", 6, b"b");
        assert!(matches!(storage.commit(twice), Err(StorageError::Invalid(_))));
        assert_eq!(storage.get(T, b"k").unwrap(), None);
        assert_eq!(storage.stream_bounds(J, b"s"), (0, Some(5)));
    }
    storage.halt();
}

/// Two histories met: the node must not go on, and says why.
#[tokio::test]
async fn an_entry_that_comes_again_with_another_content_stops_the_engine() {
    let world = manual(1);
    let (storage, _) = world.open();
    storage.apply(Batch::new().append(J, b"s", 1, b"one").put(T, b"k", vec![0; 4 << 10])).await.unwrap();
    while storage.pump() {}
    storage.apply(Batch::new().append(J, b"s", 1, b"another").put(T, b"k", vec![1; 4 << 10])).await.unwrap();
    while storage.pump() {}
    let failed = storage.failed().await;
    assert!(failed.to_string().contains("another content"), "{failed}");
    storage.halt();
}

#[tokio::test]
async fn entries_that_wait_count_in_the_memtable() {
    let mut world = manual(1);
    world.options().memtable_bytes = 256 << 10;
    world.options().apply_reserve_bytes = 64 << 10;
    world.options().bulk_memtable_bytes = 64 << 10;
    world.options().apply_wait = std::time::Duration::from_millis(20);
    let (storage, _) = world.open();
    let mut refused = None;
    for id in 1..100 {
        let batch = Batch::new().append(J, b"s", id, vec![7; 16 << 10]);
        if let Err(e) = storage.apply(batch).await {
            refused = Some((id, e));
            break;
        }
        assert!(storage.stats().memtable_bytes >= id * (16 << 10));
    }
    let (id, error) = refused.unwrap();
    assert_eq!(error, StorageError::Overloaded { what: "the memtable" });
    assert_eq!(id, 16, "sixteen times 16 KiB and their heads are more than 256 KiB");
    while storage.pump() {}
    assert_eq!(storage.stats().memtable_bytes, 0);
    storage.halt();
}

/// The log has what waits; what comes meanwhile is refused by name.
#[tokio::test(start_paused = true)]
async fn a_disk_without_room_for_a_journal_stops_nothing() {
    let mut world = manual(3);
    world.options().disk_reserve_bytes = 0;
    let (storage, _) = world.open();
    let mut random = fastrand::Rng::with_seed(3);
    let mut model = Model::default();
    while storage.pump() {}
    let disk = world.disk.clone();
    for round in 0..6 {
        // The segment that is being written has its room; a journal needs another file.
        disk.set_capacity(Some(disk.used()));
        let mut refused = 0;
        for _ in 0..12 {
            let mut next = model.clone();
            match storage.commit(next.batch(&mut random)) {
                Ok(_) => model = next,
                Err(StorageError::DiskFull { .. }) => refused += 1,
                Err(e) => panic!("{e}"),
            }
            while storage.pump() {}
        }
        assert!(refused < 12);
        storage.forget_streams(J, &[name(77)]).unwrap();
        model.check(&storage, &mut random, &format!("full, round {round}"));
        disk.set_capacity(None);
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        while storage.pump() {}
        assert_eq!(storage.log_pressure(), Ok(()));
        model.check(&storage, &mut random, &format!("with room, round {round}"));
    }
    assert!(disk.refused() > 0, "a journal met the full disk");
    drop(storage);
    let (storage, _) = world.open();
    model.check(&storage, &mut random, "after a restart");
}

#[tokio::test(start_paused = true)]
async fn what_is_applied_waits_as_long_as_the_disk_has_no_room() {
    let mut world = manual(4);
    world.options().disk_reserve_bytes = 0;
    world.options().memtable_bytes = 8 << 10;
    world.options().apply_reserve_bytes = 1 << 10;
    world.options().data_queue_bytes = 1 << 20;
    world.options().max_record_bytes = 4 << 10;
    world.options().bulk_memtable_bytes = 1 << 10;
    let (storage, _) = world.open();
    while storage.pump() {}
    world.disk.set_capacity(Some(world.disk.used()));
    let apply = |id: u64| {
        let mut batch = Batch::new();
        batch.push_append(J, &name(1), id, [id as u8; 2_000]);
        storage.apply(batch)
    };
    let most = world.options().apply_wait * 5;
    let waits = tokio::time::timeout(most, async {
        for id in 1..50 {
            apply(id).await.unwrap();
            while storage.pump() {}
        }
    });
    assert!(waits.await.is_err(), "there is no room for all of them, and no error");
    let (_, last) = storage.stream_bounds(J, &name(1));
    world.disk.set_capacity(None);
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    while storage.pump() {}
    apply(last.unwrap() + 1).await.unwrap();
    assert_eq!(storage.read_entries(J, &name(1), (0, 99), 99, 1 << 20).unwrap()[0].0, 1);
}

#[test]
fn streams_are_loaded_beside_the_present_ones_and_forgotten() {
    let world = manual(1);
    let (storage, _) = world.open();
    storage.commit(Batch::new().append(J, b"a1", 1, b"one").append(J, b"a1", 2, b"two")).unwrap();
    let entry = |id, content: &'static [u8]| JournalOp::Append {
        stream: Bytes::from_static(b"a2"),
        id,
        content: Bytes::from_static(content),
    };
    let trim = JournalOp::Trim { stream: Bytes::from_static(b"a2"), below: 8 };
    storage.load_entries(J, &[entry(7, b"seven"), entry(8, b"eight"), trim]).unwrap();
    let in_use = JournalOp::Append { stream: Bytes::from_static(b"a1"), id: 9, content: Bytes::new() };
    assert!(matches!(storage.load_entries(J, &[in_use]), Err(StorageError::Invalid(_))));
    assert_eq!(storage.streams(J, b"a1", b"b"), ["a1", "a2"]);
    assert_eq!(storage.streams(J, b"a2", b"b"), ["a2"]);
    while storage.pump() {}
    world.crash(storage);
    let (storage, _) = world.open();
    assert_eq!(storage.stream_bounds(J, b"a2"), (8, Some(8)), "what was loaded is durable");
    storage.commit(Batch::new().put(T, b"fill", vec![0; 4 << 10])).unwrap();
    while storage.pump() {}
    storage.forget_streams(J, &storage.streams(J, b"a1", b"a2")).unwrap();
    assert_eq!(storage.streams(J, b"", b"z"), ["a2"]);
    storage.halt();
    world.disk.crash();
    let (storage, _) = world.open();
    assert_eq!(storage.streams(J, b"", b"z"), ["a2"]);
    assert_eq!(storage.read_entries(J, b"a2", (8, 99), 9, 99).unwrap().len(), 1);
    storage.halt();
}

fn journal_files(disk: &MemDisk) -> Vec<std::path::PathBuf> {
    disk.list(Path::new("/data/journals")).unwrap()
}

/// Under sustained appends with trims the files stay within what is wanted, half of that again and five
/// files.
#[test]
fn trimmed_journals_give_their_room_back() {
    let world = manual(1);
    let (storage, _) = world.open();
    for id in 1..=3_000_u64 {
        let batch = Batch::new().append(J, b"s", id, vec![7; 500]).trim(J, b"s", id.saturating_sub(20));
        storage.commit(batch).unwrap();
        while storage.pump() {}
        let bound = 21 * 600 * 3 / 2 + 5 * (8 << 10) + (4 << 10);
        assert!(storage.stats().journal_bytes <= bound, "{} at {id}", storage.stats().journal_bytes);
    }
    storage.halt();
}

#[test]
fn a_damaged_block_is_named_and_the_rest_is_read() {
    let world = manual(1);
    let (storage, _) = world.open();
    for id in 1..=3_u64 {
        let entry = format!("entry number {id}");
        storage.commit(Batch::new().append(J, b"s", id, entry).put(T, b"k", vec![0; 4 << 10])).unwrap();
        while storage.pump() {}
    }
    // The tier stays: what it has is not brought again by the log.
    storage.halt();
    world.disk.crash();
    let file = journal_files(&world.disk).remove(0);
    let mut bytes = vec![0; 8 << 10];
    world.disk.open(&file, false).unwrap().read_at(&mut bytes, 0).unwrap();
    let at = bytes.windows(14).position(|w| w == b"entry number 2").unwrap() as u64;
    world.flip(&file, at, 1);
    let (storage, _) = world.open();
    let pages = |from| storage.read_entries(J, b"s", (from, 9), 9, 999);
    assert_eq!(pages(1).unwrap(), [(1, Bytes::from("entry number 1"))]);
    let damaged = pages(2).unwrap_err();
    assert!(damaged.to_string().contains("entries 2 to 2"), "{damaged}");
    assert_eq!(pages(3).unwrap(), [(3, Bytes::from("entry number 3"))]);
    assert_eq!(storage.lost_entries(J), [(Bytes::from("s"), 2, 2)]);
    // The engine goes on, and the range is forgotten with the trim.
    storage.commit(Batch::new().append(J, b"s", 4, b"more").trim(J, b"s", 3)).unwrap();
    storage.commit(Batch::new().put(T, b"fill", vec![0; 4 << 10])).unwrap();
    while storage.pump() {}
    assert_eq!(storage.lost_entries(J), []);
    storage.halt();
}

#[test]
fn journals_of_another_release_or_without_their_log_are_refused_with_words() {
    let world = manual(1);
    let (storage, _) = world.open();
    storage.commit(Batch::new().append(J, b"s", 1, b"e").put(T, b"k", vec![0; 4 << 10])).unwrap();
    while storage.pump() {}
    world.crash(storage);
    // The same journal, found as that of another table.
    let file = journal_files(&world.disk).remove(0);
    let other = file.with_file_name(file.file_name().unwrap().to_str().unwrap().replace("0028-", "0029-"));
    world.disk.rename(&file, &other).unwrap();
    let refused = world.try_open().unwrap_err();
    assert!(refused.to_string().contains("table 40 in the journal of table 41"), "{refused}");
    world.disk.rename(&other, &file).unwrap();
    let options = StorageOptions {
        drive: Drive::Manual,
        journal_file_bytes: 8 << 10,
        ..StorageOptions::small("/data")
    };
    for path in world.files() {
        world.remove(&path);
    }
    let refused =
        Storage::open(options, std::sync::Arc::new(world.disk.clone()), std::sync::Arc::new(MemTiers::new()));
    assert!(refused.unwrap_err().to_string().contains("there are journals"));
    assert_eq!(journal_files(&world.disk), [file]);
}
