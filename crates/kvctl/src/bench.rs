//! `bench`: a closed loop of clients against one namespace. It states durability and hardware, because a
//! number without them is an advertisement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use hdrhistogram::Histogram;
use kv_client::{Available, Client, ClientOptions, Error, GroupStatus, Strong, WriteContext};
use kv_types::{Mode, NodeId, Placement};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, timeout_at};

use crate::app::App;
use crate::cli::{Bench, Workload};
use crate::cluster::views;
use crate::exit::Exit;
use crate::output::round;
use crate::problem::Problem;

/// Workers that share one connection per node.
const WORKERS_PER_CLIENT: usize = 64;
/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);

/// A namespace to write to and read from, whatever its side of CAP.
#[derive(Clone)]
enum Handle {
    Strong(Strong),
    Available(Available),
}

impl Handle {
    fn of(client: &Client, mode: Mode, namespace: &str) -> Self {
        match mode {
            Mode::Strong => Self::Strong(client.strong(namespace)),
            Mode::Available => Self::Available(client.available(namespace)),
        }
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<(), Error> {
        match self {
            Self::Strong(handle) => handle.put(key, value).await.map(drop),
            Self::Available(handle) => handle.put(key, value, WriteContext::Observed).await.map(drop),
        }
    }

    async fn get(&self, key: &str) -> Result<(), Error> {
        match self {
            Self::Strong(handle) => handle.get(key).await.map(drop),
            Self::Available(handle) => handle.get(key).await.map(drop),
        }
    }
}

/// What one worker saw.
struct Tally {
    latency_us: Histogram<u64>,
    writes: u64,
    not_applied: u64,
    unknown: u64,
    last_error: Option<Error>,
}

impl Tally {
    fn new() -> Result<Self, Problem> {
        // Up to a minute, three digits.
        let latency_us = Histogram::new_with_bounds(1, 60_000_000, 3)
            .map_err(|error| Problem::new(Exit::Refused, format!("cannot make a histogram: {error}")))?;
        Ok(Self { latency_us, writes: 0, not_applied: 0, unknown: 0, last_error: None })
    }

    fn record(&mut self, write: bool, result: Result<(), Error>, latency: Duration) {
        match result {
            Ok(()) => {
                self.writes += u64::from(write);
                self.latency_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
            }
            Err(error) => {
                *(if error.is_unknown() { &mut self.unknown } else { &mut self.not_applied }) += 1;
                self.last_error = Some(error);
            }
        }
    }

    fn add(&mut self, other: &Self) {
        // The bounds are the same, so that nothing can fall outside.
        let _ = self.latency_us.add(&other.latency_us);
        self.writes += other.writes;
        self.not_applied += other.not_applied;
        self.unknown += other.unknown;
        self.last_error = other.last_error.clone().or(self.last_error.take());
    }
}

pub(crate) async fn run(app: &App, args: &Bench) -> Result<Exit, Problem> {
    let namespace = app.namespace()?;
    let workers = usize::try_from(args.clients).unwrap_or(usize::MAX);
    let options =
        ClientOptions { max_in_flight: workers.min(WORKERS_PER_CLIENT), spread: true, ..app.options()? };
    let mut clients = Vec::new();
    for _ in 0..workers.div_ceil(WORKERS_PER_CLIENT) {
        clients.push(Client::connect(options.clone())?);
    }
    let first = clients.first().cloned().ok_or_else(|| Problem::usage("a benchmark needs clients"))?;
    let info = app.lookup(&first, &namespace).await?;
    let mode = info.namespace.mode();
    let handles: Vec<Handle> = (0..workers)
        .zip(clients.iter().flat_map(|client| std::iter::repeat_n(client, WORKERS_PER_CLIENT)))
        .map(|(_, client)| Handle::of(client, mode, &namespace))
        .collect();

    if args.workload != Workload::Put {
        app.out.note(format!("writing {} keys first", args.keys));
        fill(&handles, args).await?;
    }
    let counters = Counters::of(&first, info.namespace.placement).await;
    let before = counters.fsyncs(&first).await;
    let (total, seconds) = load(app, handles, args).await?;
    let fsyncs =
        counters.fsyncs(&first).await.zip(before).map(|(after, before)| after.saturating_sub(before));

    let operations = total.latency_us.len();
    let per_second = operations as f64 / seconds;
    #[allow(clippy::cast_precision_loss, reason = "counts of a benchmark fit a float well enough")]
    let fsyncs_per_write =
        fsyncs.filter(|_| total.writes > 0).map(|fsyncs| fsyncs as f64 / total.writes as f64);
    let (p50, p99) = (total.latency_us.value_at_quantile(0.5), total.latency_us.value_at_quantile(0.99));
    let errors = total.not_applied + total.unknown;
    let durability = durability(info.namespace.placement, info.voters);
    let hardware = hardware(&first, counters.nodes.len());
    if let Some(error) = &total.last_error {
        app.out.note(format!("last error: {error}"));
    }
    if app.out.is_json() {
        app.out.json(&json!({
            "namespace": namespace, "mode": mode.to_string(), "workload": workload(args.workload), "loop": "closed",
            "clients": args.clients, "value_bytes": args.value_size, "keys": args.keys,
            "seconds": round(seconds, 3), "ops": operations, "ops_per_s": round(per_second, 1), "p50_us": p50,
            "p99_us": p99, "max_us": total.latency_us.max(), "errors": errors, "not_applied": total.not_applied,
            "unknown": total.unknown, "writes": total.writes, "fsyncs": fsyncs,
            "fsyncs_per_write": fsyncs_per_write.map(|ratio| round(ratio, 4)), "fsyncs_of": counters.whose,
            "durability": durability, "hardware": hardware,
        }))?;
    } else {
        app.out.line(format!(
            "{namespace} {mode}  {}  {per_second:.0}/s  p50 {:.2} ms  p99 {:.2} ms   ok {operations}  not-applied {}  unknown {}",
            workload(args.workload),
            p50 as f64 / 1e3,
            p99 as f64 / 1e3,
            total.not_applied,
            total.unknown
        ))?;
        if let Some(ratio) = fsyncs_per_write {
            app.out.line(format!("fsyncs per acknowledged write: {ratio:.3} ({})", counters.whose))?;
        }
        app.out.line(format!("durability: {durability}\nhardware: {hardware}   (closed loop)"))?;
    }
    Ok(if operations > 0 { Exit::Done } else { Exit::Unavailable })
}

/// What an acknowledged write of a namespace is worth.
fn durability(placement: Placement, voters: impl std::fmt::Display) -> String {
    match placement {
        Placement::Strong { .. } => {
            format!("each acknowledged write fsynced by a majority of {voters} voters, group commit")
        }
        Placement::Available { replication, .. } => {
            format!("each acknowledged write fsynced by {} replicas, group commit", replication.w)
        }
    }
}

fn key(number: u64) -> String {
    format!("bench/{number:07}")
}

fn workload(workload: Workload) -> &'static str {
    match workload {
        Workload::Put => "put",
        Workload::Get => "get",
        Workload::Mixed => "mixed",
    }
}

/// Every key gets a value, so that reads find something.
async fn fill(handles: &[Handle], args: &Bench) -> Result<(), Problem> {
    let value = Bytes::from(vec![b'x'; args.value_size]);
    let next = AtomicU64::new(0);
    let writers = handles.iter().map(|handle| async {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= args.keys {
                return Ok(());
            }
            handle.put(&key(number), value.clone()).await?;
        }
    });
    Ok(join_all(writers).await.into_iter().collect::<Result<(), Error>>()?)
}

/// Runs the workers; their sum and the seconds they took.
async fn load(app: &App, handles: Vec<Handle>, args: &Bench) -> Result<(Tally, f64), Problem> {
    let begun = Instant::now();
    let end = begun + args.lasting;
    let done = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    for (number, handle) in (0_u64..).zip(handles) {
        let (mut tally, done) = (Tally::new()?, Arc::clone(&done));
        let (workload, keys, size) = (args.workload, args.keys, args.value_size);
        workers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(number);
            while Instant::now() < end {
                let key = key(random.u64(..keys));
                let write = match workload {
                    Workload::Put => true,
                    Workload::Get => false,
                    Workload::Mixed => random.bool(),
                };
                let value = Bytes::from(
                    std::iter::repeat_with(|| random.u8(b'a'..=b'z')).take(size).collect::<Vec<_>>(),
                );
                let asked = Instant::now();
                let result = if write { handle.put(&key, value).await } else { handle.get(&key).await };
                tally.record(write, result, asked.elapsed());
                done.fetch_add(1, Ordering::Relaxed);
            }
            tally
        });
    }
    let mut ticks = interval_at(begun + PROGRESS, PROGRESS);
    let mut total = Tally::new()?;
    let mut told = 0;
    // Every operation has a deadline of its own; this one is for a defect.
    let latest = end + Duration::from_secs(60);
    loop {
        tokio::select! {
            biased;
            finished = timeout_at(latest, workers.join_next()) => match finished {
                Ok(Some(Ok(tally))) => total.add(&tally),
                Ok(None) => break,
                Ok(Some(Err(error))) => return Err(Problem::new(Exit::Refused, format!("a worker failed: {error}"))),
                Err(_) => return Err(Problem::new(Exit::Refused, "a worker did not end in time")),
            },
            _ = ticks.tick() => {
                let now = done.load(Ordering::Relaxed);
                app.out.note(format!("{:>4.0} s   {} operations/s", begun.elapsed().as_secs_f64(), now - told));
                told = now;
            }
        }
    }
    Ok((total, begun.elapsed().as_secs_f64()))
}

/// The nodes whose fsyncs are counted, and all nodes.
struct Counters {
    addresses: Vec<String>,
    nodes: Vec<NodeId>,
    whose: String,
}

impl Counters {
    /// Of a strong namespace the leader's; of an available one those of all nodes, since every node
    /// coordinates.
    async fn of(client: &Client, placement: Placement) -> Self {
        let Ok(topology) = client.admin().topology().await else {
            return Self { addresses: Vec::new(), nodes: Vec::new(), whose: "unknown".into() };
        };
        let nodes: Vec<NodeId> = topology.members.keys().copied().collect();
        // A leader that was cut off still calls itself one: the newest that has a quorum is the right one.
        let leader = match placement {
            Placement::Strong { group } => {
                let views = views(client, &topology).await;
                let leads = views.values().flatten().flat_map(|status| {
                    let own =
                        move |known: &&GroupStatus| known.group == group.0 && known.leader == status.node;
                    status
                        .groups
                        .iter()
                        .filter(own)
                        .map(|known| (known.quorum, known.term, NodeId(status.node)))
                });
                leads.max().map(|(_, _, node)| node)
            }
            Placement::Available { .. } => None,
        };
        let (addresses, whose) = match leader {
            Some(leader) => (
                topology.address(leader).map(str::to_owned).into_iter().collect(),
                format!("the leader, {leader}"),
            ),
            None => (
                topology.members.values().map(|m| m.client_address.clone()).collect(),
                "all nodes together".into(),
            ),
        };
        Self { addresses, nodes, whose }
    }

    /// Their sum now; `None` when one cannot be asked.
    async fn fsyncs(&self, client: &Client) -> Option<u64> {
        let admin = client.admin();
        let asked = self.addresses.iter().map(|address| admin.status(address));
        let counts: Option<Vec<u64>> =
            join_all(asked).await.into_iter().map(|status| Some(status.ok()?.storage?.fsyncs)).collect();
        counts.filter(|counts| !counts.is_empty()).map(|counts| counts.iter().sum())
    }
}

fn hardware(client: &Client, nodes: usize) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("processor unknown", |(_, name)| name.trim());
    let local = client.endpoints().iter().all(|e| e.starts_with("127.") || e.starts_with("localhost:"));
    let shared = if local {
        format!("shared by the client and {nodes} nodes")
    } else {
        "of the client; nodes elsewhere".into()
    };
    format!("{cores} cores, {model}, {shared}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::{Failure, Reason};

    #[test]
    fn tallies_add_up() {
        let (mut a, mut b) = (Tally::new().unwrap(), Tally::new().unwrap());
        a.record(true, Ok(()), Duration::from_micros(100));
        b.record(false, Ok(()), Duration::from_micros(300));
        b.record(true, Err(Failure::new(Reason::NoQuorum, "").into()), Duration::ZERO);
        b.record(true, Err(Failure::new(Reason::ResultUnknown, "").into()), Duration::ZERO);
        a.add(&b);
        assert_eq!((a.latency_us.len(), a.writes, a.not_applied, a.unknown), (2, 1, 1, 1));
        assert_eq!(a.last_error.unwrap().reason(), Reason::ResultUnknown);
    }
}
