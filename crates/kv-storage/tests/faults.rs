//! What happens when the disk is torn, full, slow or broken, and when a queue is full. On the disk in memory,
//! by seed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test"
)]

mod world;

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kv_storage::tier::{MemTiers, Tier, TierChunk, TierError, TierMark, TierSource, TierWrites};
use kv_storage::{Batch, Drive, Position, RaftEntry, RaftLog, RaftLogId, Storage, StorageError};
use kv_storage::{StorageOptions, disk::MemDisk};
use kv_types::GroupId;
use proptest::prelude::*;
use tokio::{sync::oneshot, time::Instant};
use world::{Mem, Real, T, Watched, World, run};

fn put(key: impl AsRef<[u8]>, bytes: usize) -> Batch {
    Batch::new().put(T, key, vec![7; bytes])
}

fn append(log: &RaftLog, index: u64, bytes: usize) -> oneshot::Receiver<io::Result<()>> {
    try_append(log, index, bytes).unwrap()
}

fn try_append(log: &RaftLog, index: u64, bytes: usize) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let (send, receive) = oneshot::channel();
    let entry =
        RaftEntry { id: RaftLogId { term: 1, node: 1, index }, payload: vec![index as u8; bytes].into() };
    log.append(vec![entry], Box::new(move |r| drop(send.send(r))))?;
    Ok(receive)
}

/// An engine that does nothing unless pumped.
fn manual(seed: u64) -> Mem {
    let mut w = Mem::new(seed);
    w.options().drive = Drive::Manual;
    w
}

#[test]
fn a_torn_write_is_cut_off_and_a_zero_tail_is_normal() {
    let mut torn = 0;
    for seed in 0..40 {
        let w = manual(seed);
        let (s, _) = w.open();
        let mut acknowledged = 0;
        for n in 0..5 {
            s.commit(put([n], 3_000)).unwrap();
            s.pump();
            assert!(s.is_durable(Position(u64::from(n) + 1)));
            acknowledged = n + 1;
        }
        // The power goes between write and sync: the write is there in parts.
        s.commit(put([200], 9_000)).unwrap();
        w.disk.fail_syncs(Some(0));
        s.pump();
        assert!(s.check().is_err());
        w.crash(s);
        w.disk.fail_syncs(None);
        let (s, recovery) = w.open();
        torn += u64::from(recovery.torn_tail_bytes > 0);
        for n in 0..acknowledged {
            assert!(s.get(T, &[n]).unwrap().is_some(), "seed {seed}");
        }
        // What was cut does not come back, and the log goes on.
        let survived = s.get(T, &[200]).unwrap().is_some();
        s.commit(put([201], 10)).unwrap();
        s.pump();
        w.crash(s);
        let (s, recovery) = w.open();
        assert_eq!(
            (s.get(T, &[200]).unwrap().is_some(), recovery.torn_tail_bytes),
            (survived, 0),
            "seed {seed}"
        );
        assert!(s.get(T, &[201]).unwrap().is_some());
    }
    assert!(torn >= 5, "the fault happened: {torn}");
}

#[test]
fn an_error_of_fsync_poisons_the_log() {
    run(async {
        let w = Mem::new(1);
        let (s, _) = w.open();
        let log = s.raft(GroupId(1));
        let p = s.commit(put("a", 10)).unwrap();
        s.durable(p).await.unwrap();
        w.disk.fail_syncs(Some(0));
        let p = s.commit(put("b", 10)).unwrap();
        // The writer may have failed already: then the append is refused, otherwise its callback gets the
        // error.
        if let Ok(appended) = try_append(&log, 1, 10) {
            assert!(appended.await.unwrap().is_err());
        }
        assert!(matches!(s.durable(p).await, Err(StorageError::Io { .. })));
        assert!(matches!(s.failed().await, StorageError::Io { .. }));
        // The disk is well again, the log is not: what an fsync lost cannot be known.
        w.disk.fail_syncs(None);
        assert!(s.commit(put("c", 10)).is_err());
        assert!(log.save_vote(Bytes::new()).await.is_err());
        assert!(s.durable(p).await.is_err());
        assert!(s.checkpoint().await.is_err());
        w.crash(s);
        assert!(w.open().0.get(T, b"a").unwrap().is_some());
    });
}

#[test]
fn whatever_waits_when_the_log_fails_gets_the_error() {
    let w = manual(1);
    let (s, _) = w.open();
    let log = s.raft(GroupId(1));
    let p = s.commit(put("b", 10)).unwrap();
    let mut appended = append(&log, 1, 10);
    w.disk.fail_syncs(Some(0));
    s.pump();
    assert!(appended.try_recv().unwrap().is_err());
    assert!(run(s.durable(p)).is_err() && !s.is_durable(p));
    assert!(try_append(&log, 2, 10).is_err());
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    run(async {
        let w = Mem::new(2);
        let (s, _) = w.open();
        w.disk.set_capacity(Some(w.disk.used() + (100 << 10)));
        let mut accepted = 0;
        let e = loop {
            match s.commit(put(format!("{accepted}"), 20_000)) {
                Ok(p) => s.durable(p).await.unwrap(),
                Err(e) => break e,
            }
            accepted += 1;
        };
        assert!(
            matches!(&e, StorageError::LogFull { pinned_by, .. } if pinned_by.contains("no space")),
            "{e}"
        );
        assert!(s.check().is_ok(), "refused, not broken");
        w.disk.set_capacity(None);
        let mut tries = 0;
        while s.commit(put("after", 10)).is_err() {
            tries += 1;
            assert!(tries < 500);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        w.crash(s);
        assert!(w.open().0.get(T, format!("{}", accepted - 1).as_bytes()).unwrap().is_some());
    });
}

/// A follower that asks before it appends is told to wait while there is still room for what it was told it
/// may append.
#[test]
fn an_append_that_was_asked_for_finds_room_in_a_full_log() {
    let mut w = manual(21);
    w.options().max_log_bytes = 1 << 20;
    let (s, _) = w.open();
    assert_eq!(s.max_log_bytes(), 1 << 20);
    let logs: Vec<RaftLog> = (1..=3).map(|g| s.raft(GroupId(g))).collect();
    let mut index = 0;
    let full = loop {
        // All groups ask first, then all append: what the first appends, the last one has not seen.
        match logs.iter().find_map(|log| log.room_for(20_000).err()) {
            Some(e) => break e,
            None => logs.iter().for_each(|log| drop(append(log, index, 20_000))),
        }
        while s.pump() {}
        index += 1;
        assert!(index < 100, "there is an end");
    };
    assert!(matches!(&full, StorageError::LogFull { max, .. } if *max == (1 << 20) * 9 / 8), "{full}");
    assert!(full.is_refusal() && s.check().is_ok());
    assert!(index > 10, "the log was used: {index} appends");
    // Votes and purge points need not ask, and make room.
    let last = RaftLogId { term: 1, node: 1, index: index - 1 };
    logs.iter().for_each(|log| log.purge(last).unwrap());
    while s.pump() {}
    for log in &logs {
        log.room_for(20_000).unwrap();
        drop(append(log, index, 20_000));
    }
}

#[test]
fn full_queues_refuse_and_nothing_happens() {
    let w = manual(3);
    let (s, _) = w.open();
    let mut last = Position(0);
    let bulk = loop {
        match s.commit_bulk(put("bulk", 30_000)) {
            Ok(p) => last = p,
            Err(e) => break e,
        }
    };
    assert_eq!(bulk, StorageError::Overloaded { what: "the log's bulk queue" });
    assert!(last.0 >= 8 - 1);
    let full = loop {
        match s.commit(put("data", 30_000)) {
            Ok(p) => last = p,
            Err(e) => break e,
        }
    };
    assert_eq!(full, StorageError::Overloaded { what: "the log's queue" });
    assert_eq!(s.commit(put("new", 60_000)), Err(full));
    assert_eq!(s.get(T, b"new").unwrap(), None);
    s.raft(GroupId(1)).append(vec![], Box::new(|_| ())).unwrap();
    while s.pump() {}
    assert!(s.is_durable(last));
    assert_eq!(s.commit(put("new", 10)).unwrap(), Position(last.0 + 1), "a refusal leaves no gap");
    assert!(matches!(s.commit(put("huge", 70_000)), Err(StorageError::TooLarge { .. })));
    assert!(s.stats().refusals >= 3);
}

#[test]
fn a_full_memtable_refuses_commits_and_holds_up_apply() {
    run(async {
        let mut w = manual(4);
        w.options().apply_wait = Duration::from_millis(50);
        w.options().memtable_bytes = 256 << 10;
        w.options().apply_reserve_bytes = 0;
        w.options().bulk_memtable_bytes = 128 << 10;
        // Nothing is drained before a checkpoint asks for it.
        w.options().drain_start_bytes = usize::MAX;
        w.options().drain_interval = Duration::from_secs(3600);
        let (s, _) = w.open();
        let mut bulk = false;
        let full = loop {
            bulk |= s.commit_bulk(put("b", 1_000)) == Err(StorageError::Overloaded { what: "the memtable" });
            match s.commit(put("k", 20_000)) {
                Ok(_) => while s.pump() {},
                Err(e) => break e,
            }
        };
        assert_eq!(full, StorageError::Overloaded { what: "the memtable" });
        assert!(bulk, "bulk was refused earlier");
        let start = Instant::now();
        assert_eq!(s.apply(put("d", 30_000)).await, Err(StorageError::Overloaded { what: "the memtable" }));
        assert!(start.elapsed() >= Duration::from_millis(50));
        let draining = tokio::spawn({
            let s = s.clone();
            async move { s.checkpoint().await }
        });
        let waiting = tokio::spawn({
            let s = s.clone();
            async move { s.apply(put("d", 30_000)).await }
        });
        for _ in 0..200 {
            while s.pump() {}
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        waiting.await.unwrap().unwrap();
        draining.await.unwrap().unwrap();
        s.commit(put("k", 20_000)).unwrap();
    });
}

#[test]
fn what_a_stalled_tier_does_not_take_is_drained_when_it_takes_batches_again() {
    run(async {
        let mut w = manual(5);
        w.options().drain_start_bytes = 1;
        let (s, _) = w.open();
        let dir = w.options().dir.clone();
        w.tiers.set_pause(&dir, Duration::MAX);
        s.commit(put("k", 100)).unwrap();
        while s.pump() {}
        assert!(s.stats().memtable_bytes > 0 && w.tiers.kept_waiting(&dir) > 0);
        assert!(s.get(T, b"k").unwrap().is_some(), "it is served from memory");
        w.tiers.set_pause(&dir, Duration::ZERO);
        while s.pump() {}
        assert_eq!(s.stats().memtable_bytes, 0);
        // One that is slow takes a batch, and the next when its time has come.
        w.tiers.set_pause(&dir, Duration::from_millis(20));
        for key in ["a", "b"] {
            s.commit(put(key, 100)).unwrap();
            while s.pump() {}
        }
        assert!(s.stats().memtable_bytes > 0, "the second has to wait");
        let begun = Instant::now();
        while s.stats().memtable_bytes > 0 {
            s.pump();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn raft_does_not_wait_behind_a_flood_of_data() {
    run(async {
        let mut w = Mem::new(5);
        w.options().segment_bytes = 4 << 20;
        w.options().max_log_bytes = 64 << 20;
        let (s, _) = w.open();
        let delay = Duration::from_millis(100);
        tokio::time::sleep(Duration::from_millis(100)).await; // the next segment is being prepared
        w.disk.set_sync_delay(delay);
        let flood = tokio::spawn({
            let s = s.clone();
            async move {
                loop {
                    while s.commit(put("k", 10_000)).is_ok() {}
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        while s.stats().data_queue_bytes < 900 << 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let log = s.raft(GroupId(1));
        let mut worst = Duration::ZERO;
        for n in 1..=5 {
            assert!(s.stats().data_queue_bytes > 500 << 10, "still flooded");
            let start = Instant::now();
            append(&log, n, 100).await.unwrap().unwrap();
            log.save_vote(Bytes::from_static(b"v")).await.unwrap();
            worst = worst.max(start.elapsed());
        }
        flood.abort();
        // Append and vote: the write under way and their own, each; in order of the queue it would be 15
        // writes.
        assert!(worst < delay * 5, "{worst:?}");
    });
}

#[test]
fn callbacks_come_in_the_order_of_the_calls() {
    let w = manual(6);
    let (s, _) = w.open();
    let log = s.raft(GroupId(1));
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    for n in 0..20u64 {
        let order = order.clone();
        let entries = if n % 4 == 3 {
            vec![]
        } else {
            let index = log.bounds().last.map_or(0, |l| l.index + 1);
            vec![RaftEntry { id: RaftLogId { term: 1, node: 1, index }, payload: vec![0; 9_000].into() }]
        };
        log.append(entries, Box::new(move |r| order.lock().unwrap().push((n, r.is_ok())))).unwrap();
    }
    assert!(order.lock().unwrap().is_empty());
    while s.pump() {}
    assert_eq!(*order.lock().unwrap(), (0..20).map(|n| (n, true)).collect::<Vec<_>>());
}

/// Tiers whose scans find damage until they are set aside; the mark can be read.
#[derive(Debug)]
struct DamagedRows(MemTiers, Arc<AtomicBool>);

#[derive(Debug)]
struct DamagedTier(Arc<dyn Tier>, Arc<AtomicBool>);

impl TierSource for DamagedRows {
    fn open(&self, dir: &Path) -> Result<Arc<dyn Tier>, TierError> {
        Ok(Arc::new(DamagedTier(self.0.open(dir)?, self.1.clone())))
    }
    fn set_aside(&self, dir: &Path) -> Result<(), TierError> {
        self.1.store(false, Ordering::SeqCst);
        self.0.set_aside(dir)
    }
}

impl Tier for DamagedTier {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TierError> {
        self.0.get(key)
    }
    fn scan(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<TierChunk, TierError> {
        match self.1.load(Ordering::SeqCst) {
            true => Err(TierError::Damaged("a flipped bit".into())),
            false => self.0.scan(from, to, limit_rows, limit_bytes),
        }
    }
    fn apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError> {
        self.0.apply(writes, mark)
    }
    fn mark(&self) -> Result<Option<TierMark>, TierError> {
        self.0.mark()
    }
    fn checkpoint(&self) -> Result<(), TierError> {
        self.0.checkpoint()
    }
}

/// What a start reads of the tier besides its mark may be damaged too.
#[test]
fn a_tier_with_damage_that_a_start_meets_is_set_aside_by_it() {
    run(async {
        let (disk, damaged) = (MemDisk::new(7), Arc::new(AtomicBool::new(false)));
        let tiers = Arc::new(DamagedRows(MemTiers::new(), damaged.clone()));
        let open = || Storage::open(StorageOptions::small("/data"), Arc::new(disk.clone()), tiers.clone());
        let (s, _) = open().unwrap();
        let p = s.commit(put("a", 10)).unwrap();
        s.durable(p).await.unwrap();
        s.checkpoint().await.unwrap();
        s.halt();
        damaged.store(true, Ordering::SeqCst);
        let (s, recovery) = open().unwrap();
        assert!(recovery.tier_rebuilt && recovery.tier_error.is_some(), "{recovery:?}");
        assert!(s.get(T, b"a").unwrap().is_some());
    });
}

#[test]
fn a_damaged_tier_stops_the_node_and_is_set_aside_at_the_next_start() {
    run(async {
        let w = Mem::new(7);
        let (s, _) = w.open();
        let p = s.commit(put("a", 10)).unwrap();
        s.durable(p).await.unwrap();
        s.checkpoint().await.unwrap();
        w.tiers.fail("/data".as_ref(), Some(kv_storage::tier::TierError::Damaged("a flipped bit".into())));
        assert!(matches!(s.get(T, b"a"), Err(StorageError::Tier(_))));
        assert!(matches!(s.failed().await, StorageError::Tier(_)));
        s.halt();
        w.tiers.fail("/data".as_ref(), None);
        let (s, recovery) = w.open();
        assert!(recovery.tier_rebuilt && recovery.tier_error.is_some(), "{recovery:?}");
        assert!(s.get(T, b"a").unwrap().is_some());
        // A tier that lost what was checkpointed is not believed either.
        s.checkpoint().await.unwrap();
        s.halt();
        w.tiers.rewind("/data".as_ref(), 0);
        let (s, recovery) = w.open();
        assert!(recovery.tier_rebuilt, "{recovery:?}");
        assert!(s.get(T, b"a").unwrap().is_some());
        // And one that is only unwell is left alone.
        s.checkpoint().await.unwrap();
        s.halt();
        w.tiers.fail("/data".as_ref(), Some(kv_storage::tier::TierError::Io("no space".into())));
        assert!(w.try_open().is_err());
        w.tiers.fail("/data".as_ref(), None);
        assert_eq!(w.open().1.tier_error, None);
    });
}

#[test]
fn a_tier_ahead_of_the_log_is_refused() {
    run(async {
        let w = Mem::new(8);
        let (s, _) = w.open();
        let p = s.commit(put("a", 10)).unwrap();
        s.durable(p).await.unwrap();
        s.checkpoint().await.unwrap();
        s.halt();
        let path = w.files()[0].clone();
        let bytes = w.disk.contents(&path).unwrap();
        // As if the log had been put back from an older copy: only the first frames are left.
        w.disk.overwrite(&path, 200, &vec![0; bytes.len() - 200]).unwrap();
        let e = w.try_open().unwrap_err();
        assert!(matches!(e, StorageError::CorruptLog { .. }), "{e}");
        w.disk.wipe("/data/wal".as_ref());
        let e = w.try_open().unwrap_err();
        assert!(e.to_string().contains("the log is missing"), "{e}");
    });
}

/// What the model says must be there after a crash.
#[derive(Default, Clone)]
struct Model {
    rows: Vec<u8>,
    durable_rows: usize,
    entries: Vec<(u64, u64)>,
    durable_entries: Vec<(u64, u64)>,
}

#[derive(Debug, Clone)]
enum Step {
    Commit(usize),
    Append(usize),
    Truncate(u64),
    Pump,
    Checkpoint,
    Crash,
    CrashInWrite,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..20_000usize).prop_map(Step::Commit),
        6 => (0..9_000usize).prop_map(Step::Append),
        2 => (0..6u64).prop_map(Step::Truncate),
        8 => Just(Step::Pump),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Crash),
        1 => Just(Step::CrashInWrite),
    ];
    proptest::collection::vec(step, 1..120)
}

/// `PROPTEST_CASES` asks for more than the everyday number.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]
    /// Any history with crashes at any place, torn by the seed: what was durable is there, what was not is
    /// there as a prefix, and no truncated entry comes back.
    #[test]
    fn any_history_recovers(seed in any::<u64>(), steps in steps()) {
        let w = manual(seed);
        let (mut s, _) = w.open();
        let mut model = Model::default();
        let mut term = 1;
        for step in steps {
            let log = s.raft(GroupId(1));
            match step {
                Step::Commit(bytes) => {
                    let n = model.rows.len();
                    let batch = put((n as u32).to_be_bytes(), bytes).small_put("rows", (n as u32 + 1).to_be_bytes());
                    if s.commit(batch).is_ok() {
                        model.rows.push(bytes as u8);
                    }
                }
                Step::Append(bytes) => {
                    let index = model.entries.len() as u64;
                    let id = RaftLogId { term, node: 1, index };
                    let payload = Bytes::from(vec![index as u8; bytes]);
                    if log.append(vec![RaftEntry { id, payload }], Box::new(|_| ())).is_ok() {
                        model.entries.push((term, index));
                    }
                }
                Step::Truncate(back) => {
                    let keep = (model.entries.len() as u64).saturating_sub(back);
                    log.truncate_after(keep.checked_sub(1)).unwrap();
                    model.entries.truncate(keep as usize);
                    term += 1;
                }
                Step::Pump => {
                    while s.pump() {}
                    (model.durable_rows, model.durable_entries) = (model.rows.len(), model.entries.clone());
                }
                Step::Checkpoint => {
                    let done = s.checkpoint();
                    let mut done = std::pin::pin!(done);
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    runtime.block_on(async {
                        tokio::select! { biased;
                            r = &mut done => r.unwrap(),
                            () = async { loop { s.pump(); tokio::task::yield_now().await; } } => {}
                        }
                    });
                    // It speaks of rows only; with nothing new it returns at once.
                    model.durable_rows = model.rows.len();
                }
                Step::Crash | Step::CrashInWrite => {
                    if matches!(step, Step::CrashInWrite) {
                        w.disk.fail_syncs(Some(seed % 3));
                        for _ in 0..3 { s.pump(); }
                    }
                    w.crash(s);
                    w.disk.fail_syncs(None);
                    s = w.open().0;
                    verify(&s, &mut model)?;
                }
            }
        }
        w.crash(s);
        let s = w.open().0;
        verify(&s, &mut model)?;
    }
}

fn verify(s: &Storage, model: &mut Model) -> Result<(), TestCaseError> {
    let rows = s.scan(T, b"", None, usize::MAX).unwrap();
    prop_assert!(rows.len() >= model.durable_rows && rows.len() <= model.rows.len());
    for (n, (key, row)) in rows.iter().enumerate() {
        prop_assert_eq!(key.as_ref(), (n as u32).to_be_bytes());
        prop_assert_eq!(row.value.len() as u8, model.rows[n]);
    }
    let counted = s.small_get(b"rows").map_or(0, |v| u32::from_be_bytes(v.as_ref().try_into().unwrap()));
    prop_assert_eq!(counted as usize, rows.len(), "small state and rows are one batch");
    let found = s.raft(GroupId(1)).read(.., usize::MAX).unwrap();
    prop_assert!(found.iter().all(|e| e.payload.iter().all(|b| *b == e.id.index as u8)));
    let found: Vec<_> = found.iter().map(|e| (e.id.term, e.id.index)).collect();
    // Between the durable log and the newest, a write under way may have arrived: every entry is of one of
    // the two, and the common part is whole.
    let common = model.durable_entries.iter().zip(&model.entries).take_while(|(a, b)| a == b).count();
    prop_assert!(found.len() >= common, "{:?} {:?}", found, model.durable_entries);
    prop_assert_eq!(&found[..common], &model.entries[..common]);
    let index_is_place = found.iter().enumerate().all(|(n, e)| e.1 == n as u64);
    prop_assert!(index_is_place && found.windows(2).all(|p| p[0].0 <= p[1].0), "{:?}", found);
    model.rows.truncate(rows.len());
    (model.durable_rows, model.entries, model.durable_entries) = (rows.len(), found.clone(), found);
    Ok(())
}

#[test]
fn a_driver_task_does_the_work_of_the_threads() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let w = manual(9);
        let (s, _) = w.open();
        let driver = tokio::spawn(s.drive());
        for n in 0..100u32 {
            let p = s.commit(put(n.to_be_bytes(), 5_000)).unwrap();
            s.durable(p).await.unwrap();
        }
        s.raft(GroupId(1)).save_vote(Bytes::from_static(b"v")).await.unwrap();
        s.checkpoint().await.unwrap();
        assert!(s.stats().drains > 0 && s.stats().checkpoints > 0);
        s.shutdown().await;
        driver.await.unwrap();
        drop(s);
        let (s, _) = w.open();
        assert_eq!(s.scan(T, b"", None, 1000).unwrap().len(), 100);
        // The last handle closes the engine, and the driver ends with it.
        let driver = tokio::spawn(s.drive());
        tokio::task::yield_now().await;
        drop(s);
        tokio::time::timeout(Duration::from_secs(5), driver).await.unwrap().unwrap();
    });
}

/// Found by the simulation (seed 12): a frame whose sync failed was read back after a restart, counted as
/// durable, and then lost with the power. A second sync does not help: what a failed one dropped is clean to
/// it.
#[test]
fn what_a_restart_shows_survives_a_power_cut() {
    use kv_storage::{Batch, Drive, Storage, StorageOptions, TableId, disk::MemDisk, tier::MemTiers};
    const TABLE: TableId = TableId::new(16);
    for (seed, sync_fails) in (0..16).flat_map(|seed| [(seed, true), (seed, false)]) {
        let (disk, tiers) = (MemDisk::new(seed), MemTiers::new());
        let open = || {
            let options = StorageOptions { drive: Drive::Manual, ..StorageOptions::small("/data") };
            Storage::open(options, std::sync::Arc::new(disk.clone()), std::sync::Arc::new(tiers.clone()))
        };
        let (first, _) = open().unwrap();
        while first.pump() {}
        first.commit(Batch::new().put(TABLE, "key", vec![7; 3_000])).unwrap();
        disk.fail_syncs(Some(0));
        while first.pump() {}
        first.halt();
        disk.kill();
        if sync_fails {
            // And once more, while what was shown is made durable: that start does not succeed.
            assert!(open().is_err(), "seed {seed}");
            disk.kill();
        }
        disk.fail_syncs(None);
        let (shown, _) = open().unwrap();
        let was_there = shown.get(TABLE, b"key").unwrap().is_some();
        assert!(was_there, "the write itself succeeded, and the process alone died");
        // The next frame does not stand on one that is lost.
        shown.commit(Batch::new().put(TABLE, "next", vec![8; 3_000])).unwrap();
        while shown.pump() {}
        shown.halt();
        disk.crash();
        tiers.crash();
        let (last, _) = open().unwrap();
        for key in [&b"key"[..], b"next"] {
            assert!(last.get(TABLE, key).unwrap().is_some(), "seed {seed}, {key:?}");
        }
    }
}

/// The head of a segment is a frame too, and may be the last one: the first start fails at any of its syncs.
#[test]
fn a_log_that_was_begun_twice_survives_a_power_cut() {
    use kv_storage::{Drive, Storage, StorageOptions, disk::MemDisk, tier::MemTiers};
    for (seed, after) in (0..16).flat_map(|seed| (0..8).map(move |after| (seed, after))) {
        let (disk, tiers) = (MemDisk::new(seed), MemTiers::new());
        let open = || {
            let options = StorageOptions { drive: Drive::Manual, ..StorageOptions::small("/data") };
            Storage::open(options, std::sync::Arc::new(disk.clone()), std::sync::Arc::new(tiers.clone()))
        };
        disk.fail_syncs(Some(after));
        drop(open());
        disk.kill();
        disk.fail_syncs(None);
        drop(open().unwrap());
        disk.crash();
        tiers.crash();
        open().unwrap_or_else(|error| panic!("seed {seed}, after {after} syncs: {error}"));
    }
}

/// A process that is started while the one before it still writes has read an end of the log that is none any
/// more.
#[test]
fn what_was_written_until_the_lock_was_given_up_is_kept() {
    // Into the same segment, and over the ends of several.
    for bytes in [0, 100, 3_000, 1 << 20] {
        let (disk, tiers) = (Watched::new(MemDisk::new(1)), MemTiers::new());
        let options = StorageOptions { drive: Drive::Manual, ..StorageOptions::small("/data") };
        let open = || Storage::open(options.clone(), Arc::new(disk.clone()), Arc::new(tiers.clone()));
        let (first, _) = open().unwrap();
        first.commit(put("early", 100)).unwrap();
        while first.pump() {}
        // The first has the lock until it has written once more.
        disk.before_lock(move || {
            let mut left = bytes;
            while left > 0 {
                let bytes = left.min(3_000);
                first.commit(put("late", bytes)).unwrap();
                while first.pump() {}
                left -= bytes;
            }
            first.halt();
        });
        let (second, _) = open().unwrap();
        second.commit(put("own", 100)).unwrap();
        while second.pump() {}
        second.halt();
        disk.disk.crash();
        tiers.crash();
        let (last, _) = open().unwrap();
        for (key, there) in [("early", true), ("late", bytes > 0), ("own", true)] {
            assert_eq!(last.get(T, key.as_bytes()).unwrap().is_some(), there, "{bytes} bytes, {key}");
        }
    }
}

/// A start reads every byte of the log once, and of what the tier lacks once more.
#[test]
fn a_start_reads_the_log_once() {
    let (disk, tiers) = (Watched::new(MemDisk::new(1)), MemTiers::new());
    let options = StorageOptions {
        drive: Drive::Manual,
        drain_start_bytes: 4 << 20,
        drain_interval: Duration::from_secs(3600),
        ..StorageOptions::small("/data")
    };
    let open = || Storage::open(options.clone(), Arc::new(disk.clone()), Arc::new(tiers.clone())).unwrap();
    let (s, _) = open();
    let log = s.raft(GroupId(1));
    for n in 0..100u32 {
        s.commit(put(n.to_be_bytes(), 10_000)).unwrap();
        drop(append(&log, u64::from(n), 10_000));
        s.pump();
    }
    let all = s.stats().segments * (256 << 10);
    s.halt();
    let (_, before) = disk.reads();
    let (s, recovery) = open();
    let (_, after) = disk.reads();
    assert_eq!(recovery.replayed, 100, "nothing was drained");
    // Prepared segments are looked at as well: two of them at most.
    let once = all + ((2 * 256) << 10);
    assert!(after - before <= 2 * once, "{} bytes read of a log of {all}", after - before);
    run(async {
        let checkpoint = s.checkpoint();
        let pump = async {
            loop {
                s.pump();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { done = checkpoint => done.unwrap(), () = pump => {} }
    });
    s.halt();
    let (_, before) = disk.reads();
    let (s, recovery) = open();
    let (_, after) = disk.reads();
    assert_eq!(recovery.replayed, 0);
    assert!(after - before <= once, "{} bytes read of a log of {all}", after - before);
    assert_eq!(s.scan(T, b"", None, 1000).unwrap().len(), 100);
}

/// What a lagging follower is sent is read in pieces, not entry by entry.
#[test]
fn entries_that_left_memory_are_read_in_few_reads() {
    let (disk, tiers) = (Watched::new(MemDisk::new(1)), MemTiers::new());
    let options =
        StorageOptions { drive: Drive::Manual, raft_cache_bytes: 0, ..StorageOptions::small("/data") };
    let (s, _) = Storage::open(options, Arc::new(disk.clone()), Arc::new(tiers)).unwrap();
    let (log, other) = (s.raft(GroupId(1)), s.raft(GroupId(2)));
    for index in 0..1_000 {
        drop((append(&log, index, 100), append(&other, index, 300)));
        if index % 10 == 9 {
            while s.pump() {}
        }
    }
    assert_eq!(s.stats().raft_cache_bytes, 0);
    assert!(s.stats().raft_index_bytes < 2_000 * 16 + (64 << 10), "{:?}", s.stats());
    let (before, _) = disk.reads();
    let found = log.read(.., usize::MAX).unwrap();
    let (after, bytes) = disk.reads();
    assert_eq!(found.len(), 1_000);
    assert!(found.iter().zip(0..).all(|(e, n)| e.id.index == n && e.payload == vec![n as u8; 100]));
    assert!(after - before <= 6, "{} reads", after - before);
    // With what lies between them, and no more than that.
    assert!(bytes < 1 << 20, "{bytes} bytes");
    let some = log.read(100..200, 1_000).unwrap();
    assert_eq!(some.iter().map(|e| e.id.index).collect::<Vec<_>>(), (100..110).collect::<Vec<_>>());
}

/// A sync that never returns holds up the stop for its bound, and the tier for its own.
#[test]
fn a_stop_ends_though_a_sync_does_not() {
    let disk = Watched::new(MemDisk::new(1));
    let options = StorageOptions::small("/data");
    let open = || {
        let tiers: Arc<MemTiers> = Arc::default();
        Storage::open(options.clone(), Arc::new(disk.clone()), tiers).unwrap().0
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let s = open();
        let log = s.raft(GroupId(1));
        let early = s.commit(put("early", 100)).unwrap();
        s.durable(early).await.unwrap();
        disk.hold_syncs(true);
        let late = s.commit(put("late", 100)).unwrap();
        let appended = append(&log, 1, 10);
        // In time that only passes when all wait: the two bounds, one after the other.
        let before = tokio::time::Instant::now();
        s.shutdown().await;
        let bound = kv_storage::limits::THREADS_STOP_WAIT + kv_storage::limits::TIER_CLOSE_WAIT;
        assert!(before.elapsed() <= bound + Duration::from_secs(1), "{:?}", before.elapsed());
        // All who wait are told.
        assert!(s.durable(late).await.is_err() && s.commit(put("new", 1)).is_err());
        let vote = log.save_vote(Bytes::from_static(b"v"));
        assert!(vote.await.is_err());
        // And no one waits when the last handle goes.
        drop((s, log));
        disk.hold_syncs(false);
        // The write that was under way is answered by its own result when the disk lets go of it.
        let _ = appended.await;
    });
    // Without a stop before: the last handle goes on a thread of the runtime while the disk hangs.
    runtime.block_on(async {
        let s = open();
        disk.hold_syncs(true);
        s.commit(put("late", 100)).unwrap();
        drop(s);
        disk.hold_syncs(false);
    });
}

/// While the disk has less than the reserve, what asks is refused, and what makes room or must not fail goes
/// on.
#[test]
fn a_disk_that_is_nearly_full_refuses_before_anything_fails() {
    let mut w = manual(31);
    w.options().disk_reserve_bytes = 1 << 20;
    w.options().max_log_bytes = 64 << 20;
    let (s, _) = w.open();
    let log = s.raft(GroupId(1));
    w.disk.set_capacity(Some(w.disk.used() + (6 << 20) + (1 << 20)));
    // The log of a group that is not purged grows into the disk.
    let mut index = 0;
    let full = loop {
        match log.room_for(20_000) {
            Ok(()) => drop(append(&log, index, 20_000)),
            Err(e) => break StorageError::clone(&e),
        }
        index += 1;
        while s.pump() {}
        assert!(index < 2_000, "there is an end");
    };
    // The reserve is an eighth of so small a disk.
    assert!(matches!(full, StorageError::DiskFull { reserve, .. } if reserve < 1 << 20), "{full}");
    assert!(full.is_refusal() && index > 100, "{index}");
    assert!(matches!(s.commit(put("k", 10)), Err(StorageError::DiskFull { .. })));
    assert!(matches!(s.log_pressure(), Err(StorageError::DiskFull { .. })));
    assert_eq!(s.get(T, b"k").unwrap(), None, "nothing happened");
    // Derived rows, votes, checkpoints and truncations go on.
    run(async {
        let pump = async {
            loop {
                s.pump();
                tokio::task::yield_now().await;
            }
        };
        let work = async {
            s.apply(put("derived", 100)).await.unwrap();
            log.save_vote(Bytes::from_static(b"v")).await.unwrap();
            s.checkpoint().await.unwrap();
        };
        tokio::select! { () = work => {}, () = pump => {} }
    });
    assert_eq!(w.disk.refused(), 0, "no write found the disk full");
    s.check().unwrap();
    // Trimming makes room, and service returns by itself.
    log.purge(RaftLogId { term: 1, node: 1, index: index - 1 }).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while log.room_for(20_000).is_err() {
        s.pump();
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    s.commit(put("k", 10)).unwrap();
    s.log_pressure().unwrap();
    while s.pump() {}
    w.crash(s);
    let (s, _) = w.open();
    assert!(s.get(T, b"k").unwrap().is_some());
    assert_eq!(s.raft(GroupId(1)).vote(), Some(Bytes::from_static(b"v")));
}

/// Another thing fills the file system of a machine's disk: the real call, with the reserve set above what is
/// free.
#[test]
fn the_free_space_of_a_real_disk_is_asked() {
    use kv_storage::disk::{Disk, RealDisk};
    let dir = tempfile::tempdir().unwrap();
    let space = RealDisk.free_space(dir.path()).unwrap().unwrap();
    assert!(space.total > 0 && space.free <= space.total, "{space:?}");
}

/// The lock of a directory, which another handle of this process has too.
#[test]
fn a_directory_is_open_once() {
    run(async {
        let w = Real::new(kv_storage::tier::TierKind::Fjall);
        let (s, _) = w.open();
        assert!(matches!(w.try_open(), Err(StorageError::InUse(_))));
        s.shutdown().await;
        drop(w.open());
    });
}
