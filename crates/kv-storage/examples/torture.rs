//! Kills the engine in the middle of load, draining and checkpoints, again and again, and checks after each
//! start that every acknowledged write is there; counts apart what the tier made of it.
//!
//! `cargo run --release -p kv-storage --example torture -- fjall 200 [dir]` prints one line of JSON and
//! exits 1 after a loss.
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
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use kv_storage::{Batch, RaftEntry, RaftLogId, Recovery, Storage, StorageOptions, TableId, tier::TierKind};
use kv_types::GroupId;
use tokio::sync::mpsc;

const T: TableId = TableId::new(16);
const DERIVED: TableId = TableId::new(17);
/// A journal of what was applied, trimmed now and then.
const JOURNAL: TableId = TableId::new(18);
const STREAM: &[u8] = b"applied";
/// Entries that the journal keeps at least.
const KEPT: u64 = 700;
const KEYS: u64 = 2_000;
const WRITERS: u64 = 16;

fn options(dir: &Path) -> StorageOptions {
    StorageOptions {
        // Small, so that every run drains, checkpoints, rolls and drops many times.
        segment_bytes: 1 << 20,
        max_log_bytes: 64 << 20,
        max_record_bytes: 256 << 10,
        drain_start_bytes: 32 << 10,
        drain_interval: Duration::from_millis(5),
        drain_batch_bytes: 64 << 10,
        checkpoint_log_bytes: 512 << 10,
        checkpoint_interval: Duration::from_millis(50),
        raft_cache_bytes: 64 << 10,
        journal_file_bytes: 128 << 10,
        // Most rows leave memory soon, so that reads meet the tier and the filter of its keys.
        cache_bytes: 64 << 10,
        filtered_tables: vec![T],
        ..StorageOptions::new(dir)
    }
}

/// A value that says which write of which key it is, and fills itself in a way that can be checked.
fn value(key: u64, version: u64, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed ^ key << 32 ^ version);
    let mut out = version.to_le_bytes().to_vec();
    // Some are large enough to be kept apart from their keys.
    let n = if random.u8(0..8) == 0 { random.usize(4_000..20_000) } else { random.usize(0..600) };
    out.extend(std::iter::repeat_with(|| random.u8(..)).take(n));
    out
}

fn version(value: &[u8]) -> u64 {
    u64::from_le_bytes(value[..8].try_into().unwrap())
}

fn number(row: &[u8]) -> u64 {
    u64::from_le_bytes(row.try_into().unwrap())
}

/// What an entry of the log becomes in the tables and in the journal.
fn derived(index: u64, payload: &[u8]) -> Batch {
    let row = Batch::new().put(DERIVED, (index % 100).to_be_bytes(), payload);
    let row = row.put(DERIVED, "applied", index.to_le_bytes()).append(JOURNAL, STREAM, index, payload);
    match index % 50 {
        0 => row.trim(JOURNAL, STREAM, index.saturating_sub(KEPT)),
        _ => row,
    }
}

/// Writes the keys of one writer, one after the other.
async fn write(storage: Storage, writer: u64, seed: u64, send: mpsc::Sender<String>) {
    let mut random = fastrand::Rng::new();
    loop {
        // Now and then one that is new.
        let range = if random.u8(0..64) == 0 { KEYS << 9 } else { KEYS };
        let key = random.u64(0..range / WRITERS) * WRITERS + writer;
        let old = storage.get(T, &key.to_be_bytes()).unwrap();
        // Only this task writes it: what memory and its filter of keys say is what the tier says.
        match storage.read_rows(vec![(T, key.to_be_bytes().to_vec())]).await {
            Ok(rows) => assert_eq!(rows[0].as_ref().map(|r| &r.value), old.as_ref().map(|r| &r.value)),
            Err(e) => assert!(e.is_refusal(), "{e}"),
        }
        let next = old.map_or(1, |row| version(&row.value) + 1);
        let data = value(key, next, seed);
        let batch =
            Batch::new().put(T, key.to_be_bytes(), &data).small_put([writer as u8], next.to_le_bytes());
        match storage.commit(batch) {
            Ok(position) => {
                storage.durable(position).await.unwrap();
                send.send(format!("d {key} {next}\n")).await.unwrap();
            }
            Err(e) if e.is_refusal() => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(e) => panic!("{e}"),
        }
    }
}

/// The child: writes until it is killed; a line on its output for everything that is durable.
async fn load(dir: &Path, kind: TierKind, seed: u64) {
    let (storage, _) = Storage::open_dir(options(dir), kind).unwrap();
    let (send, mut receive) = mpsc::channel::<String>(10_000);
    std::thread::spawn(move || {
        let mut out = std::io::stdout().lock();
        while let Some(line) = receive.blocking_recv() {
            // One write a line: a killed process never leaves half of one.
            if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
                return;
            }
        }
    });
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        tasks.spawn(write(storage.clone(), writer, seed, send.clone()));
    }
    // A Raft group with derived rows and entries of a journal: the applied mark is in one batch with them.
    tasks.spawn(async move {
        let log = storage.raft(GroupId(1));
        // What the tables lack is applied again.
        let bounds = log.bounds();
        let applied = storage.get(DERIVED, b"applied").unwrap().map(|row| number(&row.value));
        let from = applied.max(bounds.purged.map(|purged| purged.index)).map_or(0, |last| last + 1);
        for entry in log.read(from.., usize::MAX).unwrap() {
            storage.apply(derived(entry.id.index, &entry.payload)).await.unwrap();
        }
        let mut index = bounds.last.map_or(0, |l| l.index + 1);
        loop {
            let id = RaftLogId { term: 1, node: 1, index };
            let payload = Bytes::from(value(u64::MAX, index, seed));
            let (done, durable) = tokio::sync::oneshot::channel();
            let entry = RaftEntry { id, payload: payload.clone() };
            log.append(vec![entry], Box::new(move |r| drop(done.send(r)))).unwrap();
            durable.await.unwrap().unwrap();
            send.send(format!("r {index}\n")).await.unwrap();
            storage.apply(derived(index, &payload)).await.unwrap();
            if index % 500 == 499 {
                storage.checkpoint().await.unwrap();
                log.purge(id).unwrap();
                send.send(format!("c {index}\n")).await.unwrap();
            }
            index += 1;
        }
    });
    // None of them ends but by a panic, which ends the load and fails the run.
    tasks.join_next().await.unwrap().unwrap();
}

#[derive(Default)]
struct Acknowledged {
    data: BTreeMap<u64, u64>,
    raft: Option<u64>,
    checkpointed: Option<u64>,
}

#[derive(Default)]
struct Counts {
    kills: u64,
    writes: u64,
    checkpoints: u64,
    lost: u64,
    wrong: u64,
    refused_starts: u64,
    torn_tails: u64,
    tier_fine: u64,
    tier_not_opened: u64,
    tier_lost_checkpointed: u64,
    rebuilt_from_log: u64,
    lost_tier: u64,
    derived_lost: u64,
    journal_entries: u64,
    denied: u64,
    open_ms_max: u128,
    loads_that_ended: u64,
}

/// Opens the directory and counts how its tier was found; `None` after a refusal.
fn open(dir: &Path, kind: TierKind, counts: &mut Counts) -> Option<(Storage, Recovery)> {
    let start = Instant::now();
    let (storage, recovery) = match Storage::open_dir(options(dir), kind) {
        Ok(opened) => opened,
        Err(e) => {
            eprintln!("refused to start: {e}");
            counts.refused_starts += 1;
            return None;
        }
    };
    counts.open_ms_max = counts.open_ms_max.max(start.elapsed().as_millis());
    counts.torn_tails += u64::from(recovery.torn_tail_bytes > 0);
    match &recovery.tier_error {
        None => counts.tier_fine += 1,
        // The words of `open`: an error or panic of the library, or a tier that opened and was behind its
        // checkpoint.
        Some(e) if e.contains("was on disk up to") || e.contains("it is empty") => {
            counts.tier_lost_checkpointed += 1
        }
        Some(e) => {
            eprintln!("tier: {e}");
            counts.tier_not_opened += 1;
        }
    }
    counts.rebuilt_from_log += u64::from(recovery.tier_rebuilt);
    counts.lost_tier += u64::from(recovery.tier_lost);
    Some((storage, recovery))
}

/// The version of each key that is there; values that are not what was written are counted.
fn versions(storage: &Storage, seed: u64, counts: &mut Counts) -> BTreeMap<u64, u64> {
    let (mut present, mut from) = (BTreeMap::new(), Vec::new());
    loop {
        let rows = storage.scan(T, &from, None, 500).unwrap();
        let Some((last, _)) = rows.last() else { return present };
        from = [last.as_ref(), &[0]].concat();
        for (key, row) in rows {
            let key = u64::from_be_bytes(key.as_ref().try_into().unwrap());
            let found = version(&row.value);
            if row.value != value(key, found, seed) {
                eprintln!("key {key} version {found} is damaged");
                counts.wrong += 1;
            }
            present.insert(key, found);
        }
    }
}

/// The entries of the Raft group and the rows that were derived from them.
fn verify_raft(storage: &Storage, seed: u64, known: &mut Acknowledged, counts: &mut Counts) {
    let log = storage.raft(GroupId(1));
    let last = log.bounds().last.map(|l| l.index);
    if last < known.raft {
        eprintln!("Raft: {:?} was acknowledged, {last:?} is there", known.raft);
        counts.lost += 1;
    }
    for entry in log.read(.., usize::MAX).unwrap() {
        counts.wrong += u64::from(entry.payload != value(u64::MAX, entry.id.index, seed));
    }
    let applied = storage.get(DERIVED, b"applied").unwrap().map(|row| number(&row.value));
    if applied < known.checkpointed {
        // Derived rows below the purge point: a real node would install its snapshot.
        counts.derived_lost += 1;
        known.checkpointed = applied;
    }
    if let Some(applied) = applied {
        let row = storage.get(DERIVED, &(applied % 100).to_be_bytes()).unwrap().unwrap();
        counts.wrong += u64::from(row.value != value(u64::MAX, applied, seed));
    }
    known.raft = last;
    verify_journal(storage, seed, applied, counts);
}

/// The journal is never behind the tables, has every entry above its floor, and each as it was written.
fn verify_journal(storage: &Storage, seed: u64, applied: Option<u64>, counts: &mut Counts) {
    let (floor, end) = storage.stream_bounds(JOURNAL, STREAM);
    if end < applied || floor > end.unwrap_or(0).saturating_sub(KEPT).max(1) {
        eprintln!("journal: from {floor} to {end:?}, and {applied:?} is applied");
        counts.lost += 1;
    }
    let (mut next, to) = (floor, end.unwrap_or(0));
    while let Some(last) = end.filter(|last| next <= *last) {
        let page = storage.read_entries(JOURNAL, STREAM, (next, to), 100, usize::MAX);
        let page = page.unwrap_or_else(|e| {
            eprintln!("journal: {e}");
            Vec::new()
        });
        if page.first().map(|(id, _)| *id) != Some(next) {
            eprintln!("journal: entry {next} of {floor} to {last} is not there");
            counts.lost += 1;
            return;
        }
        for (id, content) in page {
            counts.lost += u64::from(id != next);
            counts.wrong += u64::from(content != value(u64::MAX, id, seed));
            counts.journal_entries += 1;
            next = id + 1;
        }
    }
}

/// The filter of keys denies none that is there, neither while it learns nor when it is whole; how many keys
/// it spared the tier is counted.
fn verify_filter(storage: &Storage, present: &BTreeMap<u64, u64>, counts: &mut Counts) {
    let keys: Vec<_> = present.keys().map(|key| (T, key.to_be_bytes().to_vec())).collect();
    for keys in keys.chunks(100) {
        for ((_, key), known) in keys.iter().zip(storage.rows_in_memory(keys)) {
            if known.is_some_and(|row| row.is_none()) {
                eprintln!("key {key:?} is there, and the filter of keys denies it");
                counts.lost += 1;
            }
        }
    }
    let absent: Vec<_> = (0..100_u64).map(|n| (T, (u64::MAX - n).to_be_bytes().to_vec())).collect();
    counts.denied += storage.rows_in_memory(&absent).iter().flatten().count() as u64;
}

fn verify(dir: &Path, kind: TierKind, seed: u64, known: &mut Acknowledged, counts: &mut Counts) {
    let Some((storage, recovery)) = open(dir, kind, counts) else { return };
    let present = versions(&storage, seed, counts);
    verify_filter(&storage, &present, counts);
    if recovery.tier_lost {
        // What a lost tier takes with it is for peers to restore; the counts say how often.
        known.data = present;
    } else {
        for (key, acknowledged) in &mut known.data {
            let found = present.get(key).copied().unwrap_or(0);
            if found < *acknowledged {
                eprintln!("key {key}: version {acknowledged} was acknowledged, {found} is there");
                counts.lost += 1;
            }
            *acknowledged = found;
        }
    }
    verify_raft(&storage, seed, known, counts);
    if recovery.tier_lost {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(storage.acknowledge_tier_lost()).unwrap();
    }
    storage.halt();
}

/// A load that is killed after a random time, and the lines that it printed before.
fn killed_load(data: &Path, kind: TierKind, seed: u64, counts: &mut Counts) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--load", data.to_str().unwrap(), kind.name(), &seed.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = child.stdout.take().unwrap();
    let reader =
        std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).collect::<Vec<_>>());
    let life = Duration::from_micros(fastrand::u64(20_000..700_000));
    std::thread::sleep(life);
    counts.loads_that_ended += u64::from(child.try_wait().unwrap().is_some());
    let _ = child.kill(); // SIGKILL
    child.wait().unwrap();
    counts.kills += 1;
    reader.join().unwrap()
}

/// Takes in what a line of the load says to be durable.
fn acknowledge(line: &str, known: &mut Acknowledged, counts: &mut Counts) {
    let mut words = line.split(' ');
    let kind = words.next().unwrap();
    let numbers: Vec<u64> = words.map(|w| w.parse().unwrap()).collect();
    counts.writes += 1;
    match (kind, numbers.as_slice()) {
        ("d", [key, version]) => {
            let newest = known.data.entry(*key).or_default();
            *newest = (*newest).max(*version);
        }
        ("r", [index]) => known.raft = Some(*index),
        ("c", [index]) => {
            known.checkpointed = Some(*index);
            counts.checkpoints += 1;
        }
        _ => panic!("what is {line:?}"),
    }
}

/// One line of JSON.
fn print(kind: TierKind, seed: u64, c: &Counts) {
    println!(
        "{{\"tier\":\"{kind}\",\"seed\":{seed},\"kills\":{},\"acknowledged\":{},\"awaited_checkpoints\":{},\"lost\":{},\"wrong\":{},\"refused_starts\":{},\
         \"torn_tails\":{},\"tier_fine\":{},\"tier_not_opened\":{},\"tier_lost_checkpointed\":{},\"rebuilt_from_log\":{},\
         \"lost_tier\":{},\"derived_lost\":{},\"journal_entries\":{},\"denied\":{},\"loads_that_ended\":{},\"open_ms_max\":{}}}",
        c.kills,
        c.writes,
        c.checkpoints,
        c.lost,
        c.wrong,
        c.refused_starts,
        c.torn_tails,
        c.tier_fine,
        c.tier_not_opened,
        c.tier_lost_checkpointed,
        c.rebuilt_from_log,
        c.lost_tier,
        c.derived_lost,
        c.journal_entries,
        c.denied,
        c.loads_that_ended,
        c.open_ms_max
    );
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "--load") {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        let kind = TierKind::named(&args[3]).unwrap();
        runtime.block_on(load(Path::new(&args[2]), kind, args[4].parse().unwrap()));
        return;
    }
    let kind = args.get(1).map_or(TierKind::default(), |name| TierKind::named(name).expect("fjall or sled"));
    let kills: u64 = args.get(2).map_or(200, |n| n.parse().expect("a number of kills"));
    let parent = args.get(3).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent).unwrap();
    let seed = fastrand::u64(..);
    let data = dir.path().join("data");
    let (mut known, mut counts) = (Acknowledged::default(), Counts::default());
    for _ in 0..kills {
        for line in killed_load(&data, kind, seed, &mut counts) {
            acknowledge(&line, &mut known, &mut counts);
        }
        verify(&data, kind, seed, &mut known, &mut counts);
        if counts.refused_starts > 0 {
            break;
        }
    }
    print(kind, seed, &counts);
    let bad = counts.lost + counts.wrong + counts.refused_starts + counts.loads_that_ended;
    if bad > 0 {
        eprintln!("the data is kept in {}", dir.keep().display());
        std::process::exit(1);
    }
}
