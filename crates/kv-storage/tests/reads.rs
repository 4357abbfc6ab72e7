//! Reads of a tier that answers when it likes: no async worker waits for it, what waits is bounded, and a
//! stop ends.
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
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kv_storage::{
    Batch, Drive, Position, Recovery, Row, Storage, StorageError, StorageOptions,
    disk::{Disk, MemDisk, RealDisk},
    limits,
    tier::{Gate, GatedTiers, Hold, MemTiers, TierCall, TierError, TierFolders, TierKind, TierSource},
};
use world::{T, U, until};

struct Slow {
    options: StorageOptions,
    disk: Arc<dyn Disk>,
    tiers: Arc<dyn TierSource>,
    gate: Gate,
    _dir: Option<tempfile::TempDir>,
}

impl Slow {
    fn memory() -> Slow {
        let (disk, tiers) = (Arc::new(MemDisk::new(1)), Arc::new(MemTiers::new()));
        Slow { options: StorageOptions::small("/data"), disk, tiers, gate: Gate::default(), _dir: None }
    }
    fn real(kind: TierKind) -> Slow {
        let dir = tempfile::tempdir().unwrap();
        Slow {
            options: StorageOptions::small(dir.path()),
            disk: Arc::new(RealDisk),
            tiers: Arc::new(TierFolders::new(kind)),
            _dir: Some(dir),
            ..Slow::memory()
        }
    }
    fn open_within(&self, bound: Duration) -> (Storage, Recovery) {
        let tiers = GatedTiers::new(self.tiers.clone(), &self.gate).within(bound);
        Storage::open(self.options.clone(), self.disk.clone(), Arc::new(tiers)).unwrap()
    }
    fn open(&self) -> Storage {
        self.open_within(Duration::from_secs(60)).0
    }
    fn hold_reads(&self) {
        self.gate.hold(Hold::every(TierCall::Get));
        self.gate.hold(Hold::every(TierCall::Scan));
    }
}

/// One thread for everything, as the runtime of a node has.
fn run<T>(f: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), f).await.expect("in time") })
}

async fn put(s: &Storage, key: &str, bytes: usize) {
    let position = s.commit(Batch::new().put(T, key, vec![7; bytes])).unwrap();
    s.durable(position).await.unwrap();
}

fn keys(keys: &[&str]) -> Vec<(kv_storage::TableId, Vec<u8>)> {
    keys.iter().map(|key| (T, key.as_bytes().to_vec())).collect()
}

fn a_stalled_tier_holds_up_its_readers_alone(mut w: Slow) {
    // Drained when a checkpoint asks for it alone: what is new stays in memory.
    w.options.drain_interval = Duration::from_secs(3600);
    w.options.drain_start_bytes = w.options.memtable_bytes;
    run(async {
        let s = w.open();
        put(&s, "drained", 10).await;
        s.checkpoint().await.unwrap();
        put(&s, "new", 20).await;
        w.hold_reads();
        let reading = tokio::spawn({
            let s = s.clone();
            async move { s.read_rows(keys(&["drained", "new", "absent"])).await }
        });
        let scanning = tokio::spawn({
            let s = s.clone();
            async move { s.read_range(T, b"", None, 10, 1000).await }
        });
        until("the tier is asked", || w.gate.waiting() == 2).await;
        // The only thread of this runtime goes on: it commits, and reads what is in memory.
        put(&s, "meanwhile", 30).await;
        let rows = s.read_rows(keys(&["meanwhile", "new"])).await.unwrap();
        assert_eq!(rows.iter().flatten().map(|row| row.value.len()).collect::<Vec<_>>(), [30, 20]);
        assert_eq!(s.recent(T, b"new").unwrap().unwrap().value.len(), 20);
        assert_eq!((s.recent(T, b"drained"), s.recent(T, b"absent")), (None, None), "only the tier can tell");
        assert!(!reading.is_finished() && !scanning.is_finished());
        w.gate.release();
        let rows = reading.await.unwrap().unwrap();
        assert_eq!(rows[0], Some(Row { value: vec![7; 10].into(), position: Position::DURABLE }));
        assert_eq!((rows[1].as_ref().unwrap().value.len(), &rows[2]), (20, &None));
        assert!(scanning.await.unwrap().unwrap().rows.len() >= 2);
        s.shutdown().await;
    });
}

#[test]
fn a_stalled_tier_holds_up_its_readers_alone_in_memory() {
    a_stalled_tier_holds_up_its_readers_alone(Slow::memory());
}

#[test]
fn a_stalled_tier_holds_up_its_readers_alone_on_disk() {
    for kind in TierKind::ALL {
        a_stalled_tier_holds_up_its_readers_alone(Slow::real(kind));
    }
}

/// A node scans its hints on the thread that answers heartbeats: a tier that stands still must not stop that.
#[test]
fn a_scan_does_not_wait_for_a_batch_that_the_tier_does_not_take() {
    run(async {
        let mut w = Slow::memory();
        w.options.drain_start_bytes = 1;
        let s = w.open();
        put(&s, "drained", 10).await;
        s.checkpoint().await.unwrap();
        w.gate.hold(Hold::every(TierCall::Apply));
        put(&s, "stalled", 20).await;
        until("a batch stands still", || w.gate.waiting() == 1).await;
        put(&s, "later", 30).await;
        let (scanned, ended) = std::sync::mpsc::sync_channel(1);
        let own = s.clone();
        std::thread::spawn(move || scanned.send(own.scan(T, b"", None, 10)));
        let mut found = None;
        until("the scan ends", || {
            found = found.take().or_else(|| ended.try_recv().ok());
            found.is_some()
        })
        .await;
        let sizes: Vec<usize> = found.unwrap().unwrap().iter().map(|(_, row)| row.value.len()).collect();
        assert_eq!(sizes, [10, 30, 20], "drained, later, stalled");
        let range = s.read_range(T, b"", None, 10, 1000).await.unwrap();
        assert_eq!(range.rows.len(), 3);
        w.gate.release();
        s.shutdown().await;
    });
}

/// Batches are drained under scans all the time, and each scan shows whole batches.
#[test]
fn a_scan_under_drains_is_one_view() {
    let mut w = Slow::memory();
    w.options.drain_start_bytes = 1;
    w.options.drain_batch_bytes = 1;
    let s = w.open();
    let first = s.commit(Batch::new().put(T, "a", vec![0; 8]).put(T, "z", vec![0; 8])).unwrap();
    run(s.durable(first)).unwrap();
    let writing = std::thread::spawn({
        let s = s.clone();
        move || {
            for n in 1..3_000_u64 {
                let value = n.to_le_bytes().to_vec();
                let middle = format!("m{:02}", n % 50);
                let batch = Batch::new().put(T, "a", value.clone()).put(T, middle, "x").put(T, "z", value);
                while s.commit(batch.clone()).is_err() {
                    std::thread::yield_now();
                }
            }
        }
    });
    let (mut scans, mut last) = (0, 0);
    while !writing.is_finished() || scans == 0 {
        let rows = s.scan(T, b"", None, 100).unwrap();
        let (a, z) = (&rows.first().unwrap().1.value, &rows.last().unwrap().1.value);
        assert_eq!(a, z, "a batch is there whole");
        let n = u64::from_le_bytes(a[..].try_into().unwrap());
        assert!(n >= last, "{n} after {last}");
        (scans, last) = (scans + 1, n);
    }
    writing.join().unwrap();
    run(s.shutdown());
}

/// A tier that compacts keeps its batch waiting, not those who look at it meanwhile.
#[test]
fn a_tier_that_is_behind_with_its_own_work_holds_up_no_scan() {
    run(async {
        let w = Slow::memory();
        let s = w.open();
        put(&s, "drained", 10).await;
        s.checkpoint().await.unwrap();
        w.gate.hold(Hold::every(TierCall::MakeRoom));
        put(&s, "new", 20).await;
        let checkpoint = tokio::spawn({
            let s = s.clone();
            async move { s.checkpoint().await }
        });
        until("the drain waits for the tier", || w.gate.waiting() == 1).await;
        assert_eq!(s.scan(T, b"", None, 10).unwrap().len(), 2);
        for _ in 0..=limits::READERS {
            assert_eq!(s.read_range(T, b"", None, 10, 1000).await.unwrap().rows.len(), 2);
        }
        assert!(s.read_rows_for_apply(keys(&["drained"])).await.unwrap()[0].is_some());
        assert!(!checkpoint.is_finished());
        w.gate.release();
        checkpoint.await.unwrap().unwrap();
    });
}

#[test]
fn a_range_without_a_bound_shows_what_was_removed() {
    run(async {
        let w = Slow::memory();
        let s = w.open();
        put(&s, "k", 10).await;
        s.checkpoint().await.unwrap();
        let removed = s.commit(Batch::new().delete(T, "k")).unwrap();
        s.durable(removed).await.unwrap();
        let chunk = s.read_range(T, b"", None, usize::MAX, usize::MAX).await.unwrap();
        assert!(chunk.rows.is_empty() && !chunk.more);
    });
}

#[test]
fn reads_that_wait_are_bounded_and_those_of_apply_go_first() {
    run(async {
        let w = Slow::memory();
        let s = w.open();
        w.hold_reads();
        let read = |apply: bool| {
            let s = s.clone();
            tokio::spawn(async move {
                match apply {
                    true => s.read_rows_for_apply(keys(&["k"])).await,
                    false => s.read_rows(keys(&["k"])).await,
                }
            })
        };
        let mut clients: Vec<_> = (0..limits::READERS_FOR_CLIENTS).map(|_| read(false)).collect();
        until("all readers are busy", || w.gate.waiting() == limits::READERS_FOR_CLIENTS).await;
        clients.extend((0..=limits::READ_QUEUE).map(|_| read(false)));
        let full = Err(StorageError::Overloaded { what: "the queue of reads" });
        until("one too many is refused", || clients.iter().any(|client| client.is_finished())).await;
        let at = clients.iter().position(|client| client.is_finished()).unwrap();
        assert_eq!(clients.remove(at).await.unwrap(), full);
        assert_eq!(s.read_rows(keys(&["k"])).await, full);
        assert!(full.is_err_and(|e: StorageError| e.is_refusal()));
        assert!(s.read_range(T, b"", None, 1, 1).await.unwrap_err().is_refusal());
        let first = read(true);
        tokio::task::yield_now().await;
        assert!(clients.iter().chain([&first]).all(|client| !client.is_finished()));
        w.gate.release();
        assert_eq!(first.await.unwrap(), Ok(vec![None]));
        for client in clients {
            assert_eq!(client.await.unwrap(), Ok(vec![None]));
        }
    });
}

/// Keys in a damaged or busy part of the tier keep their readers waiting; entries are applied meanwhile.
#[test]
fn reads_of_clients_that_stand_still_leave_a_thread_for_apply() {
    run(async {
        let mut w = Slow::memory();
        w.options.cache_bytes = 0;
        let s = w.open();
        w.gate.hold(Hold::every(TierCall::Get).of(b"stuck"));
        let stuck = |_| {
            let s = s.clone();
            tokio::spawn(async move { s.read_rows(keys(&["stuck"])).await })
        };
        let clients: Vec<_> = (0..2 * limits::READERS).map(stuck).collect();
        until("the readers wait", || w.gate.waiting() >= limits::READERS_FOR_CLIENTS).await;
        for _ in 0..2 * limits::READERS {
            assert_eq!(s.read_rows_for_apply(keys(&["k"])).await, Ok(vec![None]));
        }
        assert_eq!(w.gate.waiting(), limits::READERS_FOR_CLIENTS);
        assert!(clients.iter().all(|client| !client.is_finished()));
        w.gate.release();
        for client in clients {
            assert_eq!(client.await.unwrap(), Ok(vec![None]));
        }
        // All threads that may read for clients do so again.
        w.gate.hold(Hold::every(TierCall::Get).of(b"stuck"));
        let clients: Vec<_> = (0..2 * limits::READERS).map(stuck).collect();
        until("the readers wait", || w.gate.waiting() == limits::READERS_FOR_CLIENTS).await;
        w.gate.release();
        for client in clients {
            assert_eq!(client.await.unwrap(), Ok(vec![None]));
        }
    });
}

#[test]
fn bounds_of_a_read_are_named_and_met() {
    run(async {
        let w = Slow::memory();
        let s = w.open();
        let many = |n| vec![(T, b"k".to_vec()); n];
        assert_eq!(s.read_rows(many(limits::MAX_READ_KEYS)).await.unwrap().len(), limits::MAX_READ_KEYS);
        let e = s.read_rows(many(limits::MAX_READ_KEYS + 1)).await.unwrap_err();
        assert!(matches!(e, StorageError::TooLarge { what: "the number of keys of a read", .. }), "{e}");
        put(&s, "k", 60_000).await;
        s.checkpoint().await.unwrap();
        let fit = limits::MAX_READ_BYTES / 60_000;
        assert_eq!(s.read_rows(many(fit)).await.unwrap().len(), fit);
        let e = s.read_rows(many(fit + 1)).await.unwrap_err();
        assert!(matches!(e, StorageError::TooLarge { what: "the answer of a read", .. }), "{e}");
        assert!(s.check().is_ok());
    });
}

#[test]
fn a_range_ends_at_its_bounds_whether_rows_are_drained_or_not() {
    for drive in [Drive::Threads, Drive::Manual] {
        run(async {
            let mut w = Slow::memory();
            w.options.drive = drive;
            let s = w.open();
            let pump = || while drive == Drive::Manual && s.pump() {};
            // Every other row is drained; keys of 3 bytes with 2 of table, values of 95.
            for n in 0..40 {
                let batch = Batch::new().put(T, format!("{:03}", n * 2), vec![1; 95]).put(U, "x", "");
                s.commit(batch).unwrap();
            }
            pump();
            let (checkpoint, ()) = tokio::join!(s.checkpoint(), async {
                for _ in 0..100 {
                    pump();
                    tokio::task::yield_now().await;
                }
            });
            checkpoint.unwrap();
            for n in 0..40 {
                s.commit(Batch::new().put(T, format!("{:03}", n * 2 + 1), vec![1; 95])).unwrap();
            }
            let part = |from: &'static [u8], rows, bytes| {
                let s = s.clone();
                async move {
                    let chunk = s.read_range(T, from, None, rows, bytes).await.unwrap();
                    (chunk.rows.len(), chunk.more)
                }
            };
            assert_eq!(part(b"", 100, 1 << 20).await, (80, false));
            assert_eq!(part(b"", 80, 1 << 20).await, (80, false));
            assert_eq!(part(b"", 79, 1 << 20).await, (79, true));
            assert_eq!(part(b"", 100, 1000).await, (10, true));
            assert_eq!(part(b"", 100, 999).await, (9, true));
            assert_eq!(part(b"", 100, 1).await, (1, true), "one at least");
            assert_eq!(part(b"079", 100, 1).await, (1, false));
            assert_eq!(part(b"08", 100, 1).await, (0, false));
            let rows = s.read_rows(keys(&["000", "001", "zz"])).await.unwrap();
            assert_eq!(rows.iter().flatten().count(), 2);
            s.halt();
        });
    }
}

#[test]
fn a_stop_does_not_wait_for_a_read_and_answers_those_that_wait() {
    run(async {
        let w = Slow::memory();
        let s = w.open();
        w.hold_reads();
        let reads: Vec<_> = (0..limits::READERS_FOR_CLIENTS + 3)
            .map(|_| {
                let s = s.clone();
                tokio::spawn(async move { s.read_rows(keys(&["k"])).await })
            })
            .collect();
        until("all readers are busy", || w.gate.waiting() == limits::READERS_FOR_CLIENTS).await;
        s.shutdown().await;
        assert_eq!(s.read_rows(keys(&["k"])).await, Err(StorageError::Closed));
        w.gate.release();
        let mut closed = 0;
        for read in reads {
            closed += usize::from(read.await.unwrap() == Err(StorageError::Closed));
        }
        assert_eq!(closed, 3);
    });
}

#[test]
fn a_tier_that_takes_no_batch_is_given_up_by_name() {
    run(async {
        let w = Slow::memory();
        let (s, _) = w.open_within(Duration::from_millis(50));
        w.gate.hold(Hold::every(TierCall::Apply));
        put(&s, "k", 10).await;
        let e = s.failed().await;
        assert!(matches!(&e, StorageError::Tier(TierError::Stalled { .. })), "{e}");
        assert!(e.to_string().contains("a batch of the lower tier did not return within 50ms"), "{e}");
        assert_eq!(s.commit(Batch::new().put(T, "k", "")), Err(e));
        s.shutdown().await;
        drop(s);
        // What was acknowledged is there at the next start, and the tier is not taken for damaged.
        w.gate.release();
        let (s, recovery) = w.open_within(Duration::from_secs(60));
        assert_eq!(recovery.tier_error, None);
        assert!(s.read_rows(keys(&["k"])).await.unwrap()[0].is_some());
    });
}

#[test]
fn a_stop_ends_though_the_tier_does_not_close() {
    let w = Slow::memory();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let s = w.open();
        w.gate.hold(Hold::every(TierCall::Close));
        s.shutdown().await;
        assert_eq!(s.check(), Err(StorageError::Closed));
    });
    w.gate.release();
}

/// Rows that are read stay in memory; what is written meanwhile, drained or not, is never hidden by them.
fn what_is_read_is_never_older_than_what_was_there(mut w: Slow) {
    const KEYS: usize = 12;
    const WRITES: u64 = 4_000;
    w.options.drain_interval = Duration::from_millis(1);
    // Some of the keys have room.
    w.options.cache_bytes = 8 * 256;
    w.options.filtered_tables = vec![T];
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_time().build().unwrap();
    runtime.block_on(async {
        let s = w.open();
        let written: Arc<[AtomicU64; KEYS]> = Arc::default();
        let readers = (0..3_usize).map(|reader| {
            let (s, written) = (s.clone(), Arc::clone(&written));
            tokio::spawn(async move {
                let (mut at, mut reads) = (reader, 0_u64);
                while written[KEYS - 1].load(Ordering::SeqCst) < WRITES {
                    at = (at * 5 + 3) % KEYS;
                    let before = written[at].load(Ordering::SeqCst);
                    let key = format!("k{at}");
                    let row = match reader {
                        0 => s.get(T, key.as_bytes()).unwrap(),
                        _ => s.read_rows(keys(&[&key])).await.unwrap().remove(0),
                    };
                    let found = row.map_or(0, |row| u64::from_be_bytes(row.value[..].try_into().unwrap()));
                    assert!(found >= before, "{key} was {before} before it was read, and is {found}");
                    reads += 1;
                }
                reads
            })
        });
        let readers: Vec<_> = readers.collect();
        for n in 1..=WRITES {
            for at in 0..KEYS {
                // Some are written seldom, so that what was read of them counts for long.
                if n % (at as u64 + 1) == 0 || n == WRITES {
                    let batch = Batch::new().put(T, format!("k{at}"), n.to_be_bytes());
                    let position = s.commit(batch).unwrap();
                    written[at].store(n, Ordering::SeqCst);
                    if n % 64 == 0 {
                        s.durable(position).await.unwrap();
                    }
                }
            }
            tokio::task::yield_now().await;
        }
        for reader in readers {
            assert!(reader.await.unwrap() > 0);
        }
        assert!(s.stats().drains > 10);
        assert!(s.stats().cache_bytes <= 8 * 256);
        s.shutdown().await;
    });
}

#[test]
fn what_is_read_is_never_older_than_what_was_there_in_memory() {
    what_is_read_is_never_older_than_what_was_there(Slow::memory());
}

#[test]
fn what_is_read_is_never_older_than_what_was_there_on_disk() {
    what_is_read_is_never_older_than_what_was_there(Slow::real(TierKind::Fjall));
}

/// What was read once needs no thread that reads, until something else has taken its room.
#[test]
fn what_was_read_stays_in_memory() {
    let w = Slow::memory();
    run(async {
        let s = w.open();
        put(&s, "k", 10).await;
        s.checkpoint().await.unwrap();
        until("it left the memtable", || s.stats().memtable_bytes == 0).await;
        assert_eq!(s.recent(T, b"k"), None);
        s.read_rows(keys(&["k", "none"])).await.unwrap();
        w.hold_reads();
        assert_eq!(s.recent(T, b"none"), Some(None));
        assert_eq!(s.recent(T, b"k").flatten().unwrap().position, Position::DURABLE);
        assert_eq!(s.read_rows(keys(&["k"])).await.unwrap()[0].as_ref().unwrap().value.len(), 10);
        put(&s, "k", 11).await;
        s.checkpoint().await.unwrap();
        assert_eq!(s.recent(T, b"k").flatten().unwrap().value.len(), 11);
        w.gate.release();
        s.shutdown().await;
    });
}

/// The tier has answered a reader, who hears of it when another value is in the tier by now.
#[test]
fn an_answer_of_the_tier_that_comes_late_is_not_kept() {
    let w = Slow::memory();
    run(async {
        let s = w.open();
        put(&s, "k", 10).await;
        s.checkpoint().await.unwrap();
        until("it left the memtable", || s.stats().memtable_bytes == 0).await;
        w.gate.hold(Hold::every(TierCall::Get).of(b"k").answered());
        let late = tokio::spawn({
            let s = s.clone();
            async move { s.read_rows(keys(&["k"])).await }
        });
        until("the tier has answered", || w.gate.waiting() == 1).await;
        put(&s, "k", 11).await;
        s.checkpoint().await.unwrap();
        until("it left the memtable", || s.stats().memtable_bytes == 0).await;
        w.gate.release();
        assert_eq!(late.await.unwrap().unwrap()[0].as_ref().unwrap().value.len(), 10);
        assert_eq!(s.recent(T, b"k"), None);
        assert_eq!(s.read_rows(keys(&["k"])).await.unwrap()[0].as_ref().unwrap().value.len(), 11);
        s.shutdown().await;
    });
}

/// Once the keys of the tier are known, one that it has not needs no thread that reads; until then, and of
/// one that it has, only the tier can tell.
fn a_key_that_the_tier_has_not_is_known_in_memory(mut w: Slow) {
    w.options.filtered_tables = vec![T];
    w.options.cache_bytes = 0;
    run(async {
        let s = w.open();
        until("an empty tier is known", || s.recent(T, b"absent") == Some(None)).await;
        for n in 0..1_000 {
            put(&s, &format!("k{n}"), 10).await;
        }
        s.checkpoint().await.unwrap();
        w.gate.hold(Hold::every(TierCall::Get));
        assert_eq!(s.read_rows(keys(&["absent", "k", "k1000"])).await, Ok(vec![None, None, None]));
        assert_eq!(s.recent(U, b"absent"), None, "of that table memory knows nothing");
        assert!((0..1_000).all(|n| s.recent(T, format!("k{n}").as_bytes()).is_none()));
        w.gate.release();
        let row = s.read_rows(keys(&["k7"])).await.unwrap().remove(0);
        assert_eq!(row.unwrap().value.len(), 10);
        let mut loaded = [(T, "loaded".into(), Some("row".into()))].into_iter().collect();
        s.load(&mut loaded).unwrap();
        s.finish_load().await.unwrap();
        assert_eq!(s.recent(T, b"loaded"), None, "the tier has got it without the memtable");
        assert!(s.stats().filter_bytes <= w.options.filter_bytes as u64);
        s.shutdown().await;

        // What the tier had at a start is not denied while it is read, nor after.
        let table: &'static [u8] = Box::leak(Box::new(T.get().to_be_bytes()));
        w.gate.hold(Hold::every(TierCall::Scan).of(table));
        let s = w.open();
        put(&s, "new", 10).await;
        s.checkpoint().await.unwrap();
        assert_eq!((s.recent(T, b"absent"), s.recent(T, b"k7"), s.recent(T, b"new")), (None, None, None));
        w.gate.release();
        until("the keys are known", || s.recent(T, b"absent") == Some(None)).await;
        let kept = |n| s.recent(T, format!("k{n}").as_bytes()).is_none();
        assert!((0..1_000).all(kept) && s.recent(T, b"new").is_none() && s.recent(T, b"loaded").is_none());
        s.shutdown().await;
    });
}

#[test]
fn a_key_that_the_tier_has_not_is_known_in_memory_of_memory() {
    a_key_that_the_tier_has_not_is_known_in_memory(Slow::memory());
}

#[test]
fn a_key_that_the_tier_has_not_is_known_in_memory_of_fjall() {
    a_key_that_the_tier_has_not_is_known_in_memory(Slow::real(TierKind::Fjall));
}
