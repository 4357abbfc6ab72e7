//! What rows cost on their way from a caller to the disk: into the memtable, into the tier, into a journal,
//! and back. The tiers take turns within one run, so that their ratio means something on a noisy machine.
//! `cargo bench -p kv-storage --bench tables [-- rows]`
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use kv_storage::{Batch, Storage, StorageOptions, TableId, tier::TierKind};

const ROWS: TableId = TableId::new(16);
const HISTORY: TableId = TableId::new(40);
const VALUE: usize = 100;
/// Key and value of a row.
const ROW: usize = 8 + VALUE;
/// Rows in one batch: what a step of apply has under load.
const BATCH: u64 = 64;
const ROUNDS: u64 = 3;

/// How long rows of one kind of work took, and how many there were.
#[derive(Default)]
struct Rate {
    rows: u64,
    time: Duration,
}

impl Rate {
    async fn of<T>(&mut self, rows: u64, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let done = work.await;
        self.time += begun.elapsed();
        self.rows += rows;
        done
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nanos = self.time.as_secs_f64() * 1e9 / self.rows as f64;
        write!(f, "{nanos:.0} | {:.1}", ROW as f64 * 1e3 / nanos)
    }
}

#[derive(Default)]
struct Rates {
    apply: Rate,
    drain: Rate,
    journal: Rate,
    read_cold: Rate,
    read_again: Rate,
    entries: Rate,
}

/// The rows of a round wait in the memtable until the drain is asked for, so that each is measured alone.
fn options(dir: &Path, rows: u64) -> StorageOptions {
    let options = StorageOptions::new(dir);
    StorageOptions {
        memtable_bytes: options.memtable_bytes.max(rows as usize * 4 * ROW),
        drain_start_bytes: usize::MAX,
        drain_interval: Duration::from_secs(3_600),
        ..options
    }
}

/// Keys in no order, each once.
fn key(n: u64) -> [u8; 8] {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()
}

async fn round(storage: &Storage, rates: &mut Rates, from: u64, rows: u64) {
    let value = vec![7; VALUE];
    let apply = async {
        for at in (from..from + rows).step_by(BATCH as usize) {
            let mut batch = Batch::new();
            (at..at + BATCH).for_each(|n| batch.push_put(ROWS, key(n), value.as_slice()));
            storage.apply(batch).await.unwrap();
        }
    };
    rates.apply.of(rows, apply).await;
    rates.drain.of(rows, storage.checkpoint()).await.unwrap();
    let journal = async {
        for at in (from..from + rows).step_by(BATCH as usize) {
            let mut batch = Batch::new();
            (at..at + BATCH).for_each(|n| batch.push_append(HISTORY, b"stream", n + 1, &value));
            storage.apply(batch).await.unwrap();
        }
        storage.checkpoint().await.unwrap();
    };
    rates.journal.of(rows, journal).await;
    for rate in [&mut rates.read_cold, &mut rates.read_again] {
        let reads = rows / 10;
        let read = async {
            for n in from..from + reads {
                let found = storage.read_rows(vec![(ROWS, key(n).to_vec())]).await.unwrap();
                assert!(found.iter().all(Option::is_some));
            }
        };
        rate.of(reads, read).await;
    }
    let entries = async {
        let mut at = from + 1;
        while at <= from + rows {
            let page = storage.read_entries(HISTORY, b"stream", (at, from + rows), 1_000, 1 << 20).unwrap();
            at = page.last().unwrap().0 + 1;
        }
    };
    rates.entries.of(rows, entries).await;
}

fn main() {
    let rows = std::env::args().find_map(|word| word.parse::<u64>().ok()).unwrap_or(200_000) / BATCH * BATCH;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let kinds = [TierKind::Fjall, TierKind::Sled];
        let dirs = kinds.map(|_| tempfile::tempdir().unwrap());
        let mut sides: Vec<(TierKind, Storage, Rates)> = kinds
            .iter()
            .zip(&dirs)
            .map(|(kind, dir)| {
                let (storage, _) = Storage::open_dir(options(dir.path(), rows), *kind).unwrap();
                (*kind, storage, Rates::default())
            })
            .collect();
        for number in 0..ROUNDS {
            for (_, storage, rates) in &mut sides {
                round(storage, rates, number * rows, rows).await;
            }
        }
        println!(
            "{ROUNDS} rounds of {rows} rows of {ROW} B, {BATCH} in a batch; nanoseconds a row, and MB/s"
        );
        println!("| | {} | |", kinds.map(|kind| format!("{kind:?}")).join(" | | "));
        type Of = fn(&Rates) -> &Rate;
        let lines: [(&str, Of); 6] = [
            ("into the memtable", |r| &r.apply),
            ("drained, durable", |r| &r.drain),
            ("into a journal, durable", |r| &r.journal),
            ("a row read from the tier", |r| &r.read_cold),
            ("the row again", |r| &r.read_again),
            ("entries of a journal read", |r| &r.entries),
        ];
        for (name, of) in lines {
            let cells: Vec<String> = sides.iter().map(|(_, _, rates)| of(rates).to_string()).collect();
            println!("| {name} | {} |", cells.join(" | "));
        }
        for (_, storage, _) in sides {
            storage.shutdown().await;
        }
    });
}
