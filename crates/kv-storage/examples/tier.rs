//! What a lower tier costs in the product's own engine: new keys, overwrites, a kill, the open after it,
//! and gets of rows that are not in memory.
//!
//! `cargo run --release -p kv-storage --example tier -- fjall 16384 1000 [dir]` loads 1000 MB in values of
//! 16 KiB and prints one line of JSON. Sizes are in MB of 10^6 bytes, times in seconds or as named.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a tool"
)]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use kv_storage::{Batch, Storage, StorageOptions, TableId, tier::TierKind};

const T: TableId = TableId::new(16);
const BATCH_BYTES: usize = 64 << 10;
const MB: u64 = 1_000_000;
/// Reads at a time, keys of each, and how long they go on.
const READERS: u64 = 16;
const READ_KEYS: u64 = 4;
const READ_TIME: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
struct Run {
    kind: TierKind,
    value_bytes: usize,
    rows: u64,
}

/// Keys in no order: a random one is as far from the next as can be.
fn key(n: u64) -> [u8; 24] {
    let mut random = fastrand::Rng::with_seed(n);
    let mut out = [0; 24];
    random.fill(&mut out);
    out
}

/// A value that says which write it is; it cannot be compressed.
fn value(n: u64, version: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    fastrand::Rng::with_seed(n ^ (version << 40)).fill(&mut out);
    out[..8].copy_from_slice(&version.to_le_bytes());
    out
}

fn status(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024 / MB
}

/// Seconds of processor time of this process.
fn cpu() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Bytes that a folder takes on the disk.
fn disk(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => disk(&entry.path()),
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

/// Writes rows, and gives rows/s, CPU in µs a row, and the longest time in ms for which nothing was accepted.
async fn write(storage: &Storage, run: Run, version: u64, numbers: impl Iterator<Item = u64>) -> [f64; 3] {
    let (start, cpu_before) = (Instant::now(), cpu());
    let (mut rows, mut longest, mut last) = (0_u64, Duration::ZERO, Instant::now());
    let mut batch = Batch::new();
    let mut numbers = numbers.peekable();
    while let Some(n) = numbers.next() {
        batch.push_put(T, key(n), value(n, version, run.value_bytes));
        rows += 1;
        if batch.bytes() < BATCH_BYTES && numbers.peek().is_some() {
            continue;
        }
        let full = std::mem::take(&mut batch);
        loop {
            match storage.commit(full.clone()) {
                Ok(position) if numbers.peek().is_none() => break storage.durable(position).await.unwrap(),
                Ok(_) => break,
                Err(e) if e.is_refusal() => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(e) => panic!("{e}"),
            }
        }
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    let seconds = start.elapsed().as_secs_f64();
    [rows as f64 / seconds, (cpu() - cpu_before) * 1e6 / rows as f64, longest.as_secs_f64() * 1e3]
}

async fn load(dir: &Path, run: Run) {
    let (storage, _) = Storage::open_dir(StorageOptions::new(dir), run.kind).unwrap();
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).unwrap();
    };
    let [rate, cpu, stall] = write(&storage, run, 1, 0..run.rows).await;
    storage.checkpoint().await.unwrap();
    say(format!(
        "\"new_per_s\":{rate:.0},\"new_cpu_us\":{cpu:.1},\"new_stall_ms\":{stall:.0},\"new_disk\":{},\"new_peak\":{},\n",
        disk(&dir.join("tier")) / MB,
        status("VmHWM")
    ));
    let mut random = fastrand::Rng::with_seed(7);
    let some = std::iter::repeat_with(move || random.u64(0..run.rows)).take(run.rows as usize / 2);
    let [rate, cpu, stall] = write(&storage, run, 2, some).await;
    storage.checkpoint().await.unwrap();
    say(format!(
        "\"over_per_s\":{rate:.0},\"over_cpu_us\":{cpu:.1},\"over_stall_ms\":{stall:.0},\"over_disk\":{},\"write_peak\":{},\n",
        disk(&dir.join("tier")) / MB,
        status("VmHWM")
    ));
    // Until it is killed.
    loop {
        let mut random = fastrand::Rng::new();
        let some = std::iter::repeat_with(move || random.u64(0..run.rows)).take(1000);
        write(&storage, run, 3, some).await;
    }
}

async fn read(dir: &Path, run: Run) {
    let start = Instant::now();
    let (storage, recovery) = Storage::open_dir(StorageOptions::new(dir), run.kind).unwrap();
    let open = start.elapsed();
    assert!(recovery.tier_error.is_none() && !recovery.fresh, "{recovery:?}");
    let cpu_before = cpu();
    let mut tasks = tokio::task::JoinSet::new();
    for reader in 0..READERS {
        let storage = storage.clone();
        tasks.spawn(async move {
            let mut random = fastrand::Rng::with_seed(reader);
            let mut times = Histogram::<u64>::new(3).unwrap();
            let end = Instant::now() + READ_TIME;
            while Instant::now() < end {
                let numbers: Vec<u64> = (0..READ_KEYS).map(|_| random.u64(0..run.rows)).collect();
                let keys = numbers.iter().map(|n| (T, key(*n).to_vec())).collect();
                let start = Instant::now();
                let rows = storage.read_rows(keys).await.unwrap();
                times.record(start.elapsed().as_micros() as u64).unwrap();
                for (n, row) in numbers.into_iter().zip(rows) {
                    let found = row.expect("every row is there").value;
                    let version = u64::from_le_bytes(found[..8].try_into().unwrap());
                    assert!(found == value(n, version, run.value_bytes), "row {n} is another");
                }
            }
            times
        });
    }
    let mut times = Histogram::<u64>::new(3).unwrap();
    while let Some(one) = tasks.join_next().await {
        times.add(one.unwrap()).unwrap();
    }
    let gets = times.len() * READ_KEYS;
    let cpu = (cpu() - cpu_before) * 1e6 / gets as f64;
    storage.checkpoint().await.unwrap();
    println!(
        "\"open_ms\":{},\"replayed\":{},\"gets_per_s\":{:.0},\"get_cpu_us\":{cpu:.1},\"p50_us\":{},\"p99_us\":{},\
         \"max_ms\":{},\"read_peak\":{},\"tier_disk\":{},\"log_disk\":{}",
        open.as_millis(),
        recovery.replayed,
        gets as f64 / READ_TIME.as_secs_f64(),
        times.value_at_quantile(0.5),
        times.value_at_quantile(0.99),
        times.max() / 1000,
        status("VmHWM"),
        disk(&dir.join("tier")) / MB,
        disk(&dir.join("wal")) / MB,
    );
    storage.shutdown().await;
}

fn child(step: &str, run: Run, dir: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args([step, run.kind.name(), &run.value_bytes.to_string(), &run.rows.to_string()])
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a.starts_with("--")) {
        let run = Run {
            kind: TierKind::named(&args[2]).unwrap(),
            value_bytes: args[3].parse().unwrap(),
            rows: args[4].parse().unwrap(),
        };
        let dir = Path::new(&args[5]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        match args[1].as_str() {
            "--load" => runtime.block_on(load(dir, run)),
            _ => runtime.block_on(read(dir, run)),
        }
        return;
    }
    let kind = args.get(1).and_then(|name| TierKind::named(name)).expect("fjall or sled");
    let value_bytes: usize = args.get(2).and_then(|n| n.parse().ok()).expect("bytes of a value");
    let megabytes: u64 = args.get(3).and_then(|n| n.parse().ok()).expect("megabytes of all rows");
    let parent = args.get(4).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent).unwrap();
    let run = Run { kind, value_bytes, rows: megabytes * MB / (value_bytes + 24) as u64 };
    let mut load = child("--load", run, dir.path());
    let mut lines = BufReader::new(load.stdout.take().unwrap()).lines();
    let written: Vec<String> = lines.by_ref().take(2).map(Result::unwrap).collect();
    std::thread::sleep(Duration::from_secs(1));
    load.kill().unwrap(); // SIGKILL, while it overwrites
    load.wait().unwrap();
    let read = child("--read", run, dir.path()).wait_with_output().unwrap();
    assert!(written.len() == 2 && read.status.success(), "a step failed");
    println!(
        "{{\"tier\":\"{kind}\",\"value\":{value_bytes},\"mb\":{megabytes},\"rows\":{},{}{}}}",
        run.rows,
        written.concat(),
        String::from_utf8(read.stdout).unwrap().trim()
    );
}
