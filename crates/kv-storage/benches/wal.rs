//! The log against a raw preallocated file: the same bytes per sync, in one run, so that the ratio means
//! something on a noisy machine. The target is 0.70 of the raw rate. `cargo bench -p kv-storage [-- seconds]`
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark"
)]

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use kv_storage::{Batch, RaftEntry, RaftLog, RaftLogId, Storage, StorageOptions, TableId, tier::TierKind};
use kv_types::GroupId;

const PAYLOAD: usize = 256;
const SEGMENT: usize = 64 << 20;
const T: TableId = TableId::new(16);

/// Slices of time given to each side in turn, so that noise of the machine falls on both.
const SLICE: Duration = Duration::from_millis(50);

struct Side {
    entries: usize,
    time: Duration,
    latency: Histogram<u64>,
}

impl Side {
    fn new() -> Side {
        Side { entries: 0, time: Duration::ZERO, latency: Histogram::new(3).unwrap() }
    }

    fn slice(&mut self, batch: usize, mut once: impl FnMut()) {
        let start = Instant::now();
        while start.elapsed() < SLICE {
            let before = Instant::now();
            once();
            self.latency.record(before.elapsed().as_micros() as u64).unwrap();
            self.entries += batch;
        }
        self.time += start.elapsed();
    }

    fn rate(&self) -> f64 {
        self.entries as f64 / self.time.as_secs_f64()
    }

    fn p(&self, quantile: f64) -> u64 {
        self.latency.value_at_quantile(quantile)
    }
}

/// What the disk can do: one write of as many bytes into zeroed blocks, one fdatasync.
struct Raw {
    file: File,
    data: Vec<u8>,
    at: usize,
}

impl Raw {
    fn new(dir: &std::path::Path, bytes: usize) -> Raw {
        let file = File::create(dir.join("raw")).unwrap();
        for at in (0..SEGMENT).step_by(1 << 20) {
            file.write_all_at(&vec![0; 1 << 20], at as u64).unwrap();
        }
        file.sync_all().unwrap();
        Raw { file, data: (0..bytes).map(|_| fastrand::u8(..)).collect(), at: 0 }
    }

    fn once(&mut self) {
        if self.at + self.data.len() > SEGMENT {
            self.at = 0;
        }
        self.file.write_all_at(&self.data, self.at as u64).unwrap();
        self.file.sync_data().unwrap();
        self.at += self.data.len();
    }
}

/// The log: one group, one appender that waits for each batch.
struct Log {
    log: RaftLog,
    payload: Bytes,
    index: u64,
    done: Arc<(Mutex<bool>, Condvar)>,
}

impl Log {
    fn new(storage: &Storage, group: u32) -> Log {
        let payload: Vec<u8> = (0..PAYLOAD).map(|_| fastrand::u8(..)).collect();
        Log { log: storage.raft(GroupId(group)), payload: payload.into(), index: 0, done: Arc::default() }
    }

    fn once(&mut self, batch: u64) {
        let id = |index| RaftLogId { term: 1, node: 1, index };
        let entries =
            (self.index..self.index + batch).map(|n| RaftEntry { id: id(n), payload: self.payload.clone() });
        let signal = self.done.clone();
        let done = move |r: std::io::Result<()>| {
            r.unwrap();
            *signal.0.lock().unwrap() = true;
            signal.1.notify_one();
        };
        self.log.append(entries.collect(), Box::new(done)).unwrap();
        self.index += batch;
        let mut ready = self.done.0.lock().unwrap();
        while !*ready {
            ready = self.done.1.wait(ready).unwrap();
        }
        *ready = false;
        if self.index % 65_536 < batch {
            self.log.purge(id(self.index - 1)).unwrap();
        }
    }
}

/// The log beside the raw file, by entries in a batch. Prints a row for each, and the worst ratio.
fn against_raw(storage: &Storage, dir: &std::path::Path, time: Duration) {
    println!("entries of {PAYLOAD} B; entries/s, p50 and p99 in microseconds of a durable batch");
    println!("| per sync | raw | p50 | p99 | log | p50 | p99 | ns an entry | MB/s | ratio |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut worst = f64::MAX;
    for (n, batch) in [1usize, 32, 256].into_iter().enumerate() {
        let bytes = 32 + batch * (PAYLOAD + 37);
        let (mut disk, mut ours) = (Raw::new(dir, bytes), Log::new(storage, n as u32 + 1));
        let (mut raw, mut log) = (Side::new(), Side::new());
        while raw.time + log.time < time {
            raw.slice(batch, || disk.once());
            log.slice(batch, || ours.once(batch as u64));
        }
        let ratio = log.rate() / raw.rate();
        worst = worst.min(ratio);
        println!(
            "| {batch} | {:.0} | {} | {} | {:.0} | {} | {} | {:.0} | {:.1} | {ratio:.2} |",
            raw.rate(),
            raw.p(0.5),
            raw.p(0.99),
            log.rate(),
            log.p(0.5),
            log.p(0.99),
            1e9 / log.rate(),
            log.rate() * PAYLOAD as f64 / 1e6,
        );
    }
    println!("worst ratio {worst:.2} (target 0.70)");
}

/// One committer that waits for each of its batches. How many there were.
async fn committer(storage: Storage, number: usize, start: Instant, time: Duration) -> u64 {
    let mut done = 0u64;
    while start.elapsed() < time {
        let key = format!("{number:04}/{:06}", done % 1_000);
        match storage.commit(Batch::new().put(T, key, [7; PAYLOAD])) {
            Ok(p) => {
                storage.durable(p).await.unwrap();
                done += 1;
            }
            Err(e) if e.is_refusal() => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(e) => panic!("{e}"),
        }
    }
    done
}

/// Many committers: what group commit makes of them.
async fn many_committers(storage: &Storage, committers: usize, time: Duration) {
    let (start, before) = (Instant::now(), storage.stats());
    let tasks: Vec<_> =
        (0..committers).map(|n| tokio::spawn(committer(storage.clone(), n, start, time))).collect();
    let mut total = 0;
    for task in tasks {
        total += task.await.unwrap();
    }
    let after = storage.stats();
    println!(
        "{committers} committers with drain and checkpoints: {:.0} durable commits/s, {:.1} per sync, {} refused",
        total as f64 / start.elapsed().as_secs_f64(),
        total as f64 / (after.fsyncs - before.fsyncs).max(1) as f64,
        after.refusals - before.refusals
    );
}

fn main() {
    let seconds = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(3);
    let time = Duration::from_secs(seconds);
    let dir = tempfile::tempdir_in(std::env::var_os("BENCH_DIR").unwrap_or_else(|| ".".into())).unwrap();
    let (storage, _) =
        Storage::open_dir(StorageOptions::new(dir.path().join("log")), TierKind::default()).unwrap();
    against_raw(&storage, dir.path(), time);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    for committers in [1, 64, 512] {
        runtime.block_on(many_committers(&storage, committers, time));
    }
    runtime.block_on(storage.shutdown());
}
