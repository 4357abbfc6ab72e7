//! Loads one strong namespace of three real nodes with many keys, and writes down every second what it costs:
//! rate, latency, memory, log, snapshots. One follower is away for the second half and comes back while
//! writes go on; in the end a node is restarted. With `--read` every process is killed then, and every key is
//! read and compared. Writes `size.csv`, `size.svg` and one line of JSON.
//!
//! `cargo build --release -p kv-server && cargo run --release -p kv-lab --example size -- --keys 10000000
//! --out target/size`
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a tool that measures on the machine's own clock"
)]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use kv_client::{Client, ClientOptions, NodeStatus};
use kv_lab::{Lab, LabOptions};
use kv_types::{GroupId, NamespaceName, NamespaceSpec, NodeId};
use tokio::task::JoinSet;

/// What counts as a stall of a read or a write.
const STALL: Duration = Duration::from_millis(250);
/// Operations that share one client, hence one connection to the leader.
const PER_CLIENT: usize = 64;

struct Arguments {
    keys: u64,
    value: usize,
    in_flight: usize,
    nodes: u64,
    away: bool,
    read: bool,
    out: PathBuf,
    settings: String,
}

fn arguments() -> Arguments {
    let mut out = Arguments {
        keys: 10_000_000,
        value: 100,
        in_flight: 64,
        nodes: 3,
        away: true,
        read: false,
        out: "target/size".into(),
        settings: String::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut next = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--keys" => out.keys = next().parse().unwrap(),
            "--value" => out.value = next().parse().unwrap(),
            "--in-flight" => out.in_flight = next().parse().unwrap(),
            "--nodes" => out.nodes = next().parse().unwrap(),
            "--out" => out.out = next().into(),
            "--settings" => out.settings = std::fs::read_to_string(next()).unwrap(),
            "--stay" => out.away = false,
            "--read" => out.read = true,
            _ => {
                panic!(
                    "{word} is not known: --keys --value --in-flight --nodes --out --settings FILE --stay --read"
                )
            }
        }
    }
    out
}

fn key(n: u64) -> String {
    // An odd factor permutes: every key once, in no order.
    format!("key-{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn value(n: u64, bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(n);
    std::iter::repeat_with(|| random.u8(..)).take(bytes).collect()
}

/// What the workers have seen since somebody last looked.
struct Seen {
    puts: Histogram<u64>,
    gets: Histogram<u64>,
    refused: u64,
    unknown: u64,
    last_error: String,
}

impl Seen {
    fn new() -> Seen {
        let histogram = || Histogram::new_with_bounds(1, 120_000_000, 3).unwrap();
        Seen { puts: histogram(), gets: histogram(), refused: 0, unknown: 0, last_error: String::new() }
    }
}

type Shared = Arc<Mutex<Seen>>;

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap()
}

fn answered<T>(answer: &Result<T, kv_client::Error>, begun: Instant, seen: &mut Seen) -> bool {
    match answer {
        Ok(_) => seen.puts.saturating_record(micros(begun.elapsed())),
        Err(error) => {
            *(if error.is_unknown() { &mut seen.unknown } else { &mut seen.refused }) += 1;
            seen.last_error = error.to_string();
        }
    }
    answer.is_ok()
}

async fn put_until_done(strong: &kv_client::Strong, n: u64, bytes: usize, seen: &Shared) {
    loop {
        let begun = Instant::now();
        let answer = strong.put(key(n), value(n, bytes)).await;
        if answered(&answer, begun, &mut seen.lock().unwrap()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A node as the system and the node itself see it.
#[derive(Default, Clone, Copy)]
struct NodeSample {
    rss_mib: u64,
    peak_mib: u64,
    log_mib: u64,
    memtable_mib: u64,
    tier_mib: u64,
    snapshot_mib: u64,
    applied: u64,
    snapshot: u64,
    purged: u64,
    snapshotting: bool,
}

fn mib_of(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap_or(0) >> 10
}

/// Bytes that the files below a folder take, and whether one of them is being written.
fn folder(dir: &Path) -> (u64, bool) {
    let (mut bytes, mut temporary) = (0, false);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            let (more, being_written) = folder(&path);
            (bytes, temporary) = (bytes + more, temporary | being_written);
        } else if let Ok(metadata) = entry.metadata() {
            use std::os::unix::fs::MetadataExt as _;
            bytes += metadata.blocks() * 512;
            temporary |= path.extension().is_some_and(|end| end == "tmp" || end == "part");
        }
    }
    (bytes, temporary)
}

async fn sample(lab: &Lab, client: &Client) -> BTreeMap<NodeId, NodeSample> {
    let mut out = BTreeMap::new();
    for (node, pid) in lab.running().await {
        let dir = lab.data_dir(node);
        let (snapshots, snapshotting) = folder(&dir.join("snapshots"));
        let mut sample = NodeSample {
            rss_mib: mib_of(pid, "VmRSS:"),
            peak_mib: mib_of(pid, "VmHWM:"),
            tier_mib: folder(&dir.join("tier")).0 >> 20,
            snapshot_mib: snapshots >> 20,
            snapshotting,
            ..NodeSample::default()
        };
        let (admin, address) = (client.admin(), lab.client_address(node));
        if let Ok(Ok(status)) = tokio::time::timeout(Duration::from_secs(1), admin.status(&address)).await {
            let storage = status.storage.unwrap_or_default();
            (sample.log_mib, sample.memtable_mib) = (storage.log_bytes >> 20, storage.memtable_bytes >> 20);
            if let Some(group) = status.groups.iter().find(|group| group.group == 1) {
                (sample.applied, sample.snapshot) = (group.applied_index, group.snapshot_index);
                sample.purged = group.purged_index;
            }
        }
        out.insert(node, sample);
    }
    out
}

/// A second of the run.
struct Second {
    at: f64,
    phase: &'static str,
    puts: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    get_max_ms: f64,
    refused: u64,
    unknown: u64,
    nodes: BTreeMap<NodeId, NodeSample>,
}

fn csv(seconds: &[Second], nodes: u64) -> String {
    let mut out = "at,phase,puts,p50_ms,p99_ms,max_ms,get_max_ms,refused,unknown".to_owned();
    for node in 1..=nodes {
        for field in
            ["rss", "peak", "log", "memtable", "tier", "snapshots", "applied", "snapshot", "purged", "busy"]
        {
            write!(out, ",n{node}_{field}").unwrap();
        }
    }
    for s in seconds {
        write!(
            out,
            "\n{:.1},{},{},{:.2},{:.2},{:.2},{:.2},{},{}",
            s.at, s.phase, s.puts, s.p50_ms, s.p99_ms, s.max_ms, s.get_max_ms, s.refused, s.unknown
        )
        .unwrap();
        for node in (1..=nodes).map(NodeId) {
            let n = s.nodes.get(&node).copied().unwrap_or_default();
            write!(
                out,
                ",{},{},{},{},{},{},{},{},{},{}",
                n.rss_mib,
                n.peak_mib,
                n.log_mib,
                n.memtable_mib,
                n.tier_mib,
                n.snapshot_mib,
                n.applied,
                n.snapshot,
                n.purged,
                u8::from(n.snapshotting)
            )
            .unwrap();
        }
    }
    out + "\n"
}

/// A line of a panel: its name, and its values over time.
type Line = (String, Vec<f64>);

const COLOURS: [&str; 5] = ["#1f6f8b", "#c1440e", "#5b8c2a", "#7a4fa3", "#b08900"];

/// One panel of the plot: lines over time, each with its name.
fn panel(out: &mut String, top: f64, title: &str, at: &[f64], lines: &[Line]) {
    let (width, height, left) = (900.0, 110.0, 70.0);
    let until = at.last().copied().unwrap_or(1.0).max(1.0);
    let most = lines.iter().flat_map(|(_, l)| l.iter().copied()).fold(1.0, f64::max);
    writeln!(out, r#"<text x="{left}" y="{}" font-weight="bold">{title}</text>"#, top - 6.0).unwrap();
    writeln!(
        out,
        r##"<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#bbb"/>"##
    )
    .unwrap();
    writeln!(out, r#"<text x="{}" y="{}" text-anchor="end">{most:.0}</text>"#, left - 6.0, top + 10.0)
        .unwrap();
    for (number, (name, line)) in lines.iter().enumerate() {
        let points: Vec<String> = at
            .iter()
            .zip(line)
            .map(|(t, y)| format!("{:.1},{:.1}", left + t / until * width, top + height - y / most * height))
            .collect();
        let colour = COLOURS[number % COLOURS.len()];
        writeln!(out, r#"<polyline points="{}" fill="none" stroke="{colour}"/>"#, points.join(" ")).unwrap();
        let y = top + 14.0 * (number + 1) as f64;
        writeln!(out, r#"<text x="{}" y="{y}" fill="{colour}">{name}</text>"#, left + width + 8.0).unwrap();
    }
}

fn svg(seconds: &[Second], nodes: u64, title: &str) -> String {
    let at: Vec<f64> = seconds.iter().map(|s| s.at).collect();
    let of = |f: &dyn Fn(&Second) -> f64| seconds.iter().map(f).collect::<Vec<f64>>();
    let each = |f: &dyn Fn(&NodeSample) -> f64| {
        let line = |node| of(&|s| s.nodes.get(&NodeId(node)).map_or(0.0, f));
        (1..=nodes).map(|node| (format!("n{node}"), line(node))).collect::<Vec<_>>()
    };
    let panels: [(&str, Vec<Line>); 7] = [
        ("puts a second", vec![("puts".into(), of(&|s| s.puts as f64))]),
        (
            "latency, ms",
            vec![
                ("p99".into(), of(&|s| s.p99_ms)),
                ("max".into(), of(&|s| s.max_ms)),
                ("get max".into(), of(&|s| s.get_max_ms)),
            ],
        ),
        ("memory (VmRSS), MiB", each(&|n| n.rss_mib as f64)),
        ("log, MiB", each(&|n| n.log_mib as f64)),
        ("tier on disk, MiB", each(&|n| n.tier_mib as f64)),
        ("snapshot files, MiB", each(&|n| n.snapshot_mib as f64)),
        ("applied, thousands of entries", each(&|n| n.applied as f64 / 1e3)),
    ];
    let height = 60.0 + 150.0 * panels.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1050 {height}\" font-family=\"sans-serif\" font-size=\"11\">\
         \n<rect width=\"1050\" height=\"{height}\" fill=\"white\"/>\n<text x=\"70\" y=\"22\" font-size=\"14\">{title}</text>\n"
    );
    for (number, (title, lines)) in panels.iter().enumerate() {
        panel(&mut out, 60.0 + 150.0 * number as f64, title, &at, lines);
    }
    out + "</svg>\n"
}

/// What the sampler and the loaders share.
struct Run {
    lab: Lab,
    admin: Client,
    seen: Shared,
    done: AtomicU64,
    ended: AtomicBool,
    phase: Mutex<&'static str>,
    begun: Instant,
    out: PathBuf,
    nodes: u64,
}

async fn watch(run: Arc<Run>) -> Vec<Second> {
    let mut seconds: Vec<Second> = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    while !run.ended.load(Ordering::Relaxed) {
        tick.tick().await;
        let nodes = sample(&run.lab, &run.admin).await;
        let seen = std::mem::replace(&mut *run.seen.lock().unwrap(), Seen::new());
        let ms = |h: &Histogram<u64>, q| h.value_at_quantile(q) as f64 / 1e3;
        let second = Second {
            at: run.begun.elapsed().as_secs_f64(),
            phase: *run.phase.lock().unwrap(),
            puts: seen.puts.len(),
            p50_ms: ms(&seen.puts, 0.5),
            p99_ms: ms(&seen.puts, 0.99),
            max_ms: seen.puts.max() as f64 / 1e3,
            get_max_ms: seen.gets.max() as f64 / 1e3,
            refused: seen.refused,
            unknown: seen.unknown,
            nodes,
        };
        if seconds.len().is_multiple_of(10) || second.refused + second.unknown > 0 {
            let of = |f: fn(&NodeSample) -> u64| {
                second.nodes.values().map(|n| f(n).to_string()).collect::<Vec<_>>().join("/")
            };
            eprintln!(
                "{:6.0} s {:10} {:9} keys {:6}/s p99 {:7.1} max {:7.1} get {:7.1} ms refused {} unknown {} rss {} log {} tier {} snap {} {}",
                second.at,
                second.phase,
                run.done.load(Ordering::Relaxed),
                second.puts,
                second.p99_ms,
                second.max_ms,
                second.get_max_ms,
                second.refused,
                second.unknown,
                of(|n| n.rss_mib),
                of(|n| n.log_mib),
                of(|n| n.tier_mib),
                of(|n| n.snapshot_mib),
                seen.last_error
            );
        }
        seconds.push(second);
        std::fs::write(run.out.join("size.csv"), csv(&seconds, run.nodes)).unwrap();
    }
    seconds
}

async fn group_of(run: &Run, node: NodeId) -> Option<(u64, u64)> {
    let address = run.lab.client_address(node);
    let admin = run.admin.admin();
    let asked = tokio::time::timeout(Duration::from_secs(1), admin.status(&address)).await;
    let status: NodeStatus = asked.ok()?.ok()?;
    status.groups.iter().find(|group| group.group == 1).map(|group| (group.applied_index, group.term))
}

/// Waits until a node has applied as much as the leader has now.
async fn caught_up(run: &Run, node: NodeId) -> Duration {
    let begun = Instant::now();
    loop {
        let leader = run.lab.leader(GroupId(1)).await.map(|led| led.node);
        if let Some(leader) = leader.filter(|leader| *leader != node)
            && let Some((wanted, _)) = group_of(run, leader).await
            && let Some((applied, _)) = group_of(run, node).await
            && applied >= wanted.saturating_sub(2_000)
        {
            return begun.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn load(run: Arc<Run>, arguments: &Arguments) {
    let mut workers = JoinSet::new();
    let next = Arc::new(AtomicU64::new(0));
    let (keys, bytes) = (arguments.keys, arguments.value);
    for first in (0..arguments.in_flight).step_by(PER_CLIENT) {
        let count = (arguments.in_flight - first).min(PER_CLIENT);
        let options = ClientOptions { max_in_flight: count + 8, ..ClientOptions::new(run.lab.endpoints()) };
        let client = Client::connect(options).unwrap();
        for _ in 0..count {
            let (strong, next, run) = (client.strong("big"), Arc::clone(&next), Arc::clone(&run));
            workers.spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= keys {
                        return;
                    }
                    put_until_done(&strong, n, bytes, &run.seen).await;
                    run.done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    while workers.join_next().await.transpose().unwrap().is_some() {}
}

/// Reads a key that was written, and compares its value; false if it was refused.
async fn get(strong: &kv_client::Strong, n: u64, bytes: usize, seen: &Shared) -> bool {
    let begun = Instant::now();
    let answer = strong.get(key(n)).await;
    let mut seen = seen.lock().unwrap();
    match &answer {
        Ok(found) => {
            let found = found.value.as_ref().unwrap_or_else(|| panic!("key {n} is lost"));
            assert_eq!(found.value, value(n, bytes), "key {n}");
            seen.gets.saturating_record(micros(begun.elapsed()));
        }
        Err(error) => {
            seen.refused += 1;
            seen.last_error = error.to_string();
        }
    }
    answer.is_ok()
}

/// Kills every node, starts them again, and reads every key: none is lost, each has the value that was
/// written.
async fn read_all(run: &Arc<Run>, arguments: &Arguments) -> Duration {
    let nodes: Vec<NodeId> = (1..=arguments.nodes).map(NodeId).collect();
    for node in &nodes {
        run.lab.kill(*node).await.unwrap();
    }
    for node in &nodes {
        run.lab.restart(*node).await.unwrap();
    }
    let begun = Instant::now();
    let (next, keys, bytes) = (Arc::new(AtomicU64::new(0)), arguments.keys, arguments.value);
    let options =
        ClientOptions { max_in_flight: arguments.in_flight, ..ClientOptions::new(run.lab.endpoints()) };
    let client = Client::connect(options).unwrap();
    let mut workers = JoinSet::new();
    for _ in 0..arguments.in_flight {
        let (strong, next, run) = (client.strong("big"), Arc::clone(&next), Arc::clone(run));
        workers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= keys {
                    return;
                }
                // Every key is looked at: one that was refused is asked for again.
                while !get(&strong, n, bytes, &run.seen).await {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        });
    }
    while workers.join_next().await.transpose().unwrap().is_some() {}
    begun.elapsed()
}

/// Reads a key that was written, every ten milliseconds, and checks it.
async fn probe(run: Arc<Run>, bytes: usize) {
    let client = Client::connect(ClientOptions::new(run.lab.endpoints())).unwrap();
    let strong = client.strong("big");
    let mut random = fastrand::Rng::with_seed(1);
    while !run.ended.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        // Workers take numbers in order and have 64 open: below that all are written.
        let written = run.done.load(Ordering::Relaxed).saturating_sub(4_096);
        if written == 0 {
            continue;
        }
        let n = random.u64(0..written);
        get(&strong, n, bytes, &run.seen).await;
    }
}

async fn until_written(run: &Run, keys: u64) {
    while run.done.load(Ordering::Relaxed) < keys {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::main]
async fn main() {
    let arguments = arguments();
    std::fs::create_dir_all(&arguments.out).unwrap();
    let options = LabOptions {
        nodes: arguments.nodes,
        port_base: 0,
        settings: arguments.settings.clone(),
        ..LabOptions::new(arguments.out.join("lab"))
    };
    let lab = Lab::start(options).await.unwrap();
    let admin = Client::connect(ClientOptions::new(lab.endpoints())).unwrap();
    admin.admin().create_namespace(NamespaceSpec::strong(NamespaceName::new("big").unwrap())).await.unwrap();
    let run = Arc::new(Run {
        lab,
        admin,
        seen: Arc::new(Mutex::new(Seen::new())),
        done: AtomicU64::new(0),
        ended: AtomicBool::new(false),
        phase: Mutex::new("load"),
        begun: Instant::now(),
        out: arguments.out.clone(),
        nodes: arguments.nodes,
    });
    let watcher = tokio::spawn(watch(Arc::clone(&run)));
    let prober = tokio::spawn(probe(Arc::clone(&run), arguments.value));
    let (mut back_after, mut restart) = (None, None);
    let script = async {
        if arguments.away && arguments.nodes > 1 {
            until_written(&run, arguments.keys / 2).await;
            let leader = run.lab.leader(GroupId(1)).await.unwrap().node;
            let away = (1..=arguments.nodes).map(NodeId).find(|node| *node != leader).unwrap();
            run.lab.kill(away).await.unwrap();
            *run.phase.lock().unwrap() = "away";
            until_written(&run, arguments.keys / 4 * 3).await;
            run.lab.restart(away).await.unwrap();
            *run.phase.lock().unwrap() = "returning";
            back_after = Some(caught_up(&run, away).await);
            *run.phase.lock().unwrap() = "back";
        }
    };
    tokio::join!(load(Arc::clone(&run), &arguments), script);
    let loaded = run.begun.elapsed();
    if arguments.nodes > 1 {
        *run.phase.lock().unwrap() = "restart";
        let leader = run.lab.leader(GroupId(1)).await.unwrap().node;
        let node = (1..=arguments.nodes).map(NodeId).find(|node| *node != leader).unwrap();
        run.lab.stop_node(node).await.unwrap();
        let begun = Instant::now();
        run.lab.restart(node).await.unwrap();
        restart = Some((begun.elapsed(), begun.elapsed() + caught_up(&run, node).await));
    }
    let mut read = None;
    if arguments.read {
        *run.phase.lock().unwrap() = "read";
        read = Some(read_all(&run, &arguments).await);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    run.ended.store(true, Ordering::Relaxed);
    prober.await.unwrap();
    let seconds = watcher.await.unwrap();
    let title = format!(
        "{} keys of {} B, {} nodes, {} in flight",
        arguments.keys, arguments.value, arguments.nodes, arguments.in_flight
    );
    std::fs::write(arguments.out.join("size.svg"), svg(&seconds, arguments.nodes, &title)).unwrap();
    println!("{}", summary(&arguments, &seconds, loaded, back_after, restart, read));
    run.lab.stop().await;
}

fn summary(
    arguments: &Arguments,
    seconds: &[Second],
    loaded: Duration,
    back_after: Option<Duration>,
    restart: Option<(Duration, Duration)>,
    read: Option<Duration>,
) -> serde_json::Value {
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    };
    let busy = |s: &Second| s.nodes.values().any(|n| n.snapshotting);
    let p99 =
        |of: bool| median(seconds.iter().filter(|s| s.puts > 0 && busy(s) == of).map(|s| s.p99_ms).collect());
    let most = |f: fn(&NodeSample) -> u64| seconds.iter().flat_map(|s| s.nodes.values().map(f)).max();
    let peak_in_reads = seconds.iter().filter(|s| s.phase == "read");
    let peak_in_reads = peak_in_reads.flat_map(|s| s.nodes.values().map(|n| n.peak_mib)).max();
    let stalls = |f: fn(&Second) -> f64| seconds.iter().filter(|s| f(s) > STALL.as_secs_f64() * 1e3).count();
    serde_json::json!({
        "keys": arguments.keys,
        "value": arguments.value,
        "nodes": arguments.nodes,
        "loaded_s": loaded.as_secs_f64(),
        "puts_per_s": arguments.keys as f64 / loaded.as_secs_f64(),
        "p99_ms_median_while_a_snapshot_is_written": p99(true),
        "p99_ms_median_otherwise": p99(false),
        "seconds_with_a_put_above_250_ms": stalls(|s| s.max_ms),
        "seconds_with_a_get_above_250_ms": stalls(|s| s.get_max_ms),
        "longest_put_ms": seconds.iter().map(|s| s.max_ms).fold(0.0, f64::max),
        "longest_get_ms": seconds.iter().map(|s| s.get_max_ms).fold(0.0, f64::max),
        "refused": seconds.iter().map(|s| s.refused).sum::<u64>(),
        "unknown": seconds.iter().map(|s| s.unknown).sum::<u64>(),
        "peak_mib": most(|n| n.peak_mib),
        "log_mib": most(|n| n.log_mib),
        "tier_mib": most(|n| n.tier_mib),
        "snapshots_mib": most(|n| n.snapshot_mib),
        "follower_back_after_s": back_after.map(|d| d.as_secs_f64()),
        "restart_listens_after_s": restart.map(|(d, _)| d.as_secs_f64()),
        "restart_caught_up_after_s": restart.map(|(_, d)| d.as_secs_f64()),
        "reads_per_s": read.map(|d| arguments.keys as f64 / d.as_secs_f64()),
        "peak_mib_while_all_is_read": peak_in_reads,
    })
}
