//! `bench`: clients against one namespace, which is made for it where the line names none. Each has its next
//! operation when the last was answered (a closed loop), or operations begin at a given rate whatever the
//! answers do (an open one). It states durability and hardware, because a number without them is an
//! advertisement.

mod ending;
mod load;
mod own;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;
use hdrhistogram::Histogram;
use kv_client::{Client, ClientOptions, Error, GroupStatus, NamespaceInfo};
use kv_env::Entropy;
use kv_types::{NodeId, Placement, counted, noun};
use serde_json::{Value, json};

use self::ending::Ending;
use self::load::{Handle, Measured, key};
use self::own::Own;
use crate::app::App;
use crate::cli::Bench;
use crate::exit::Exit;
use crate::fold::fold;
use crate::line::Line;
use crate::output::{object, round, table};
use crate::problem::Problem;
use crate::views::views;

/// Workers that share one connection per node.
const WORKERS_PER_CLIENT: usize = 64;

/// Measures in the namespace that is named, or in one of its own, which goes at the end, however that comes.
pub(crate) async fn run(app: &App, args: &Bench) -> Result<Exit, Problem> {
    let ending = Ending::listen()?;
    if let Some(name) = own::named(app, args)? {
        return measure(app, args, &name, None, &ending).await;
    }
    let client = app.client()?;
    let own = Own::new(args, &Entropy::system())?;
    let made = tokio::select! {
        biased;
        () = ending.asked(0) => Ok(None),
        made = own.make(app, &client, args) => made.map(Some),
    };
    let result = match made {
        Ok(Some(info)) => measure(app, args, own.name.as_str(), Some(info), &ending).await,
        Ok(None) => Ok(ending.exit()),
        Err(problem) if own::may_have_happened(&problem) => Err(problem),
        Err(problem) => return Err(problem),
    };
    own.remove(app, &client, &ending).await;
    result
}

/// `own`: what was made for this.
async fn measure(
    app: &App,
    args: &Bench,
    namespace: &str,
    own: Option<NamespaceInfo>,
    ending: &Ending,
) -> Result<Exit, Problem> {
    let is_own = own.is_some();
    let prepared = tokio::select! {
        biased;
        () = ending.asked(0) => return Ok(ending.exit()),
        prepared = prepare(app, args, namespace, own) => prepared?,
    };
    let Prepared { info, handles } = prepared;
    // Not one that sends the load: that has no more in flight than it was given, and would refuse itself.
    let first = app.client()?;
    let counters = Counters::of(&first, info.namespace.placement).await;
    let before = counters.fsyncs(&first).await;
    let measured = load::run(app, handles, args, ending).await?;
    let fsyncs = match counters.are_those_of(&first, info.namespace.placement).await {
        true => counters.fsyncs(&first).await.zip(before).and_then(|(after, before)| since(&before, &after)),
        false => None,
    };
    if let Some(error) = &measured.total.last_error {
        app.out.note(format!("last error: {error}"));
    }
    let about = About {
        namespace,
        own: is_own,
        mode: info.namespace.mode().to_string(),
        durability: durability(info.namespace.placement, info.voters),
        hardware: hardware(&first, &counters.nodes),
        fsyncs,
        whose: &counters.whose,
    };
    match app.out.is_json() {
        true => app.out.json(&as_json(args, &measured, &about))?,
        false => app.out.line(fold(&as_text(args, &measured, &about)))?,
    }
    if !is_own && measured.gone.is_none() && measured.keys > 0 {
        app.out.note(left(&app.line, namespace, measured.keys));
    }
    if let Some(error) = measured.gone {
        let mut problem = Problem::from(error);
        problem.message = format!("`{namespace}` was deleted meanwhile: {}", problem.message);
        problem.exit = Exit::Refused;
        return Err(problem);
    }
    Ok(match measured.total.answered() {
        _ if measured.interrupted => ending.exit(),
        0 => Exit::Unavailable,
        _ => Exit::Done,
    })
}

/// What is said of so many keys that stay in a namespace which the benchmark did not make: with what was
/// there of the same names before, so that they are not removed unasked.
fn left(line: &Line, namespace: &str, keys: u64) -> String {
    let shell = line.cluster(&["shell"]).with("-n", namespace).flag("-q");
    let last = keys.saturating_sub(1);
    format!(
        "up to {} of the benchmark {} in `{namespace}`, {} to {}; to remove them:\n  \
         seq -f 'del bench/%07.0f' 0 {last} | {shell}",
        counted(keys, "key", "keys"),
        noun(keys, "stays", "stay"),
        key(0),
        key(last)
    )
}

/// What is there before anything is measured.
struct Prepared {
    info: NamespaceInfo,
    handles: Vec<Handle>,
}

/// Connects, and writes the first keys.
async fn prepare(
    app: &App,
    args: &Bench,
    namespace: &str,
    own: Option<NamespaceInfo>,
) -> Result<Prepared, Problem> {
    let workers = usize::try_from(args.clients).unwrap_or(usize::MAX);
    let max_in_flight = workers.min(WORKERS_PER_CLIENT);
    let options = ClientOptions { max_in_flight, spread: true, via: args.via.into(), ..app.options()? };
    let mut clients = Vec::new();
    for _ in 0..workers.div_ceil(WORKERS_PER_CLIENT) {
        clients.push(Client::connect(options.clone())?);
    }
    let first = clients.first().cloned().ok_or_else(|| Problem::usage("a benchmark needs clients"))?;
    let info = match own {
        // The node that is asked may not have heard of it yet.
        Some(info) => info,
        None => app.lookup(&first, namespace).await?,
    };
    let mode = info.namespace.mode();
    let handles: Vec<Handle> = (0..workers)
        .zip(clients.iter().flat_map(|client| std::iter::repeat_n(client, WORKERS_PER_CLIENT)))
        .map(|(_, client)| Handle::of(client, mode, namespace))
        .collect();
    let preloaded = args.preloaded();
    if preloaded > 0 {
        app.out.note(format!("writing {} first", counted(preloaded, "key", "keys")));
        fill(&handles, preloaded, args.value_size).await?;
    }
    Ok(Prepared { info, handles })
}

/// What a figure means nothing without.
struct About<'a> {
    namespace: &'a str,
    /// It was made for this.
    own: bool,
    mode: String,
    durability: String,
    hardware: String,
    fsyncs: Option<u64>,
    whose: &'a str,
}

#[allow(clippy::cast_precision_loss, reason = "counts of a benchmark fit a float well enough")]
fn fsyncs_per_write(measured: &Measured, about: &About<'_>) -> Option<f64> {
    let writes = measured.total.puts_us.len();
    about.fsyncs.filter(|_| writes > 0).map(|fsyncs| fsyncs as f64 / writes as f64)
}

#[allow(clippy::cast_precision_loss, reason = "counts of a benchmark fit a float well enough")]
fn as_json(args: &Bench, measured: &Measured, about: &About<'_>) -> Value {
    let Measured { total, seconds, .. } = measured;
    let mut all = total.puts_us.clone();
    // The bounds are the same.
    let _ = all.add(&total.gets_us);
    let latencies = |histogram: &Histogram<u64>| {
        object([
            ("ops", json!(histogram.len())),
            ("ops_per_s", json!(round(histogram.len() as f64 / seconds, 3))),
            ("p50_us", json!(histogram.value_at_quantile(0.5))),
            ("p90_us", json!(histogram.value_at_quantile(0.9))),
            ("p99_us", json!(histogram.value_at_quantile(0.99))),
            ("p999_us", json!(histogram.value_at_quantile(0.999))),
            ("max_us", json!(histogram.max())),
        ])
    };
    let mut line = object([
        ("namespace", json!(about.namespace)),
        ("own_namespace", json!(about.own)),
        ("mode", json!(about.mode)),
        ("workload", json!(args.workload.to_string())),
        ("distribution", json!(args.distribution.to_string())),
        ("loop", json!(if args.rate.is_some() { "open" } else { "closed" })),
        ("rate", json!(args.rate)),
        ("via", json!(args.via.to_string())),
        ("clients", json!(args.clients)),
        ("value_bytes", json!(args.value_size)),
        ("keys", json!(args.keys)),
        ("preloaded", json!(args.preloaded())),
        ("seconds", json!(round(*seconds, 3))),
        ("interrupted", json!(measured.interrupted)),
        ("puts", json!(latencies(&total.puts_us))),
        ("gets", json!(latencies(&total.gets_us))),
        ("errors", json!(total.not_applied + total.unknown)),
        ("not_applied", json!(total.not_applied)),
        ("unknown", json!(total.unknown)),
        ("writes", json!(total.puts_us.len())),
        ("fsyncs", json!(about.fsyncs)),
        ("fsyncs_per_write", json!(fsyncs_per_write(measured, about).map(|ratio| round(ratio, 4)))),
        ("fsyncs_of", json!(about.whose)),
        ("durability", json!(about.durability)),
        ("hardware", json!(about.hardware)),
    ]);
    line.extend(latencies(&all));
    Value::Object(line)
}

/// What people are told of latencies: the quantile, and of how many answers at least. Of fewer it would be
/// the slowest one again.
const QUANTILES: [(f64, u64); 4] = [(0.5, 2), (0.9, 10), (0.99, 100), (0.999, 1_000)];

/// A rate in as many digits as mean something: a low one is not none.
fn per_second(rate: f64) -> String {
    let digits = [(100.0, 0), (10.0, 1), (0.1, 2)].into_iter().find(|(least, _)| rate >= *least);
    format!("{rate:.*}", digits.map_or(4, |(_, digits)| digits))
}

#[allow(clippy::cast_precision_loss, reason = "counts of a benchmark fit a float well enough")]
fn as_text(args: &Bench, measured: &Measured, about: &About<'_>) -> String {
    let Measured { total, seconds, .. } = measured;
    let ms = |us: u64| format!("{:.2}", us as f64 / 1e3);
    let rows = [("put", &total.puts_us), ("get", &total.gets_us)].into_iter().filter(|(_, h)| !h.is_empty());
    let mut too_few = false;
    let rows: Vec<Vec<String>> = rows
        .map(|(what, histogram)| {
            let quantiles = QUANTILES.map(|(quantile, least)| {
                let is_known = histogram.len() >= least;
                too_few |= !is_known;
                if is_known { ms(histogram.value_at_quantile(quantile)) } else { "-".to_owned() }
            });
            let head =
                [what.to_owned(), histogram.len().to_string(), per_second(histogram.len() as f64 / seconds)];
            head.into_iter().chain(quantiles).chain([ms(histogram.max())]).collect()
        })
        .collect();
    let header = ["", "answered", "per second", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms"];
    let mut lines = vec![
        format!(
            "{} {}  {} {}  {seconds:.1} s",
            about.namespace, about.mode, args.distribution, args.workload
        ),
        table(&header, rows),
        format!("not applied {}   unknown {}", total.not_applied, total.unknown),
    ];
    if too_few {
        lines.push("-: too few answers for that percentile".to_owned());
    }
    if let Some(ratio) = fsyncs_per_write(measured, about) {
        lines.push(format!("fsyncs per acknowledged write: {ratio:.3} ({})", about.whose));
    } else if !total.puts_us.is_empty() {
        let why = "a node restarted or did not answer, or the leader changed";
        lines.push(format!("fsyncs per acknowledged write: not known ({why})"));
    }
    let loop_of = match args.rate {
        Some(rate) => format!("open loop at {rate}/s, latency from when an operation was meant to begin"),
        None => "closed loop".to_owned(),
    };
    lines.push(format!("durability: {}", about.durability));
    lines.push(format!(
        "hardware: {}   {}, each operation by {}, {loop_of}",
        about.hardware,
        counted(args.clients, "client", "clients"),
        args.via
    ));
    lines.join("\n")
}

/// What an acknowledged write of a namespace is worth.
fn durability(placement: Placement, voters: u32) -> String {
    match placement {
        Placement::Strong { .. } => {
            let voters = counted(voters, "voter", "voters");
            format!("each acknowledged write fsynced by a majority of {voters}, group commit")
        }
        Placement::Available { replication, .. } => {
            let replicas = counted(replication.w, "replica", "replicas");
            format!("each acknowledged write fsynced by {replicas}, group commit")
        }
    }
}

/// The first keys get a value, so that reads find something.
async fn fill(handles: &[Handle], keys: u64, value_size: usize) -> Result<(), Problem> {
    let value = Bytes::from(vec![b'x'; value_size]);
    let next = AtomicU64::new(0);
    let writers = handles.iter().map(|handle| async {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= keys {
                return Ok(());
            }
            handle.put(&key(number), value.clone()).await?;
        }
    });
    Ok(join_all(writers).await.into_iter().collect::<Result<(), Error>>()?)
}

/// The nodes whose fsyncs are counted, and all nodes: whether each answered at the beginning.
struct Counters {
    addresses: Vec<String>,
    nodes: BTreeMap<NodeId, bool>,
    whose: String,
    /// The leader's term, which is another one also after a restart of the leader.
    term: Option<u64>,
}

/// What was added to all of them; none if one began anew, as a node that was restarted.
fn since(before: &[u64], after: &[u64]) -> Option<u64> {
    if before.len() != after.len() {
        return None;
    }
    before.iter().zip(after).map(|(before, after)| after.checked_sub(*before)).sum()
}

impl Counters {
    /// Of a strong namespace the leader's; of an available one those of all nodes, since every node
    /// coordinates.
    async fn of(client: &Client, placement: Placement) -> Self {
        let Ok(topology) = client.admin().topology().await else {
            return Self {
                addresses: Vec::new(),
                nodes: BTreeMap::new(),
                whose: "unknown".into(),
                term: None,
            };
        };
        let views = views(client, &topology).await;
        let nodes = views.iter().map(|(node, view)| (*node, view.is_some())).collect();
        // A leader that was cut off still calls itself one: the newest that has a quorum is the right one.
        let leader = match placement {
            Placement::Strong { group } => {
                let leads = views.values().flatten().flat_map(|status| {
                    let own =
                        move |known: &&GroupStatus| known.group == group.0 && known.leader == status.node;
                    status
                        .groups
                        .iter()
                        .filter(own)
                        .map(|known| (known.quorum, known.term, NodeId(status.node)))
                });
                leads.max().map(|(_, term, node)| (term, node))
            }
            Placement::Available { .. } => None,
        };
        let (addresses, whose) = match leader {
            Some((_, leader)) => (
                topology.address(leader).map(str::to_owned).into_iter().collect(),
                format!("the leader, {leader}"),
            ),
            None => (
                topology.members.values().map(|m| m.client_address.clone()).collect(),
                "all nodes together".into(),
            ),
        };
        Self { addresses, nodes, whose, term: leader.map(|(term, _)| term) }
    }

    /// Whether the same nodes would be counted now, in the same term.
    async fn are_those_of(&self, client: &Client, placement: Placement) -> bool {
        let now = Self::of(client, placement).await;
        (&self.addresses, &self.whose, self.term) == (&now.addresses, &now.whose, now.term)
    }

    /// Those of each now; `None` when one cannot be asked.
    async fn fsyncs(&self, client: &Client) -> Option<Vec<u64>> {
        let admin = client.admin();
        let asked = self.addresses.iter().map(|address| admin.status(address));
        let counts: Option<Vec<u64>> =
            join_all(asked).await.into_iter().map(|status| Some(status.ok()?.storage?.fsyncs)).collect();
        counts.filter(|counts| !counts.is_empty())
    }
}

fn hardware(client: &Client, nodes: &BTreeMap<NodeId, bool>) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("processor unknown", |(_, name)| name.trim());
    let local = client.endpoints().iter().all(|e| e.starts_with("127.") || e.starts_with("localhost:"));
    let shared = if local {
        format!("shared by the client and {}", answering(nodes))
    } else {
        "of the client; nodes elsewhere".into()
    };
    format!("{cores} cores, {model}, {shared}")
}

/// Those that answer, and by name those that do not.
fn answering(nodes: &BTreeMap<NodeId, bool>) -> String {
    let silent: Vec<String> =
        nodes.iter().filter(|(_, answers)| !**answers).map(|(node, _)| node.to_string()).collect();
    let count = counted(nodes.len().saturating_sub(silent.len()), "node", "nodes");
    match silent.len() {
        0 => count,
        several => format!("{count} ({} {} not answer)", silent.join(" "), noun(several, "does", "do")),
    }
}

#[cfg(test)]
mod tests {
    use super::load::Tally;
    use super::*;
    use crate::cli::{Distribution, Travel, Workload};
    use std::time::Duration;

    #[test]
    fn fsyncs_of_a_node_that_began_anew_are_not_known() {
        assert_eq!(since(&[10, 20], &[15, 21]), Some(6));
        assert_eq!(since(&[10, 20], &[900, 3]), None, "the second was restarted");
        assert_eq!(since(&[10], &[10, 1]), None);
    }

    #[test]
    fn only_nodes_that_answer_share_the_machine() {
        let nodes = |silent: &[u64]| (1..=5).map(|id| (NodeId(id), !silent.contains(&id))).collect();
        assert_eq!(answering(&nodes(&[])), "5 nodes");
        assert_eq!(answering(&nodes(&[5])), "4 nodes (n5 does not answer)");
        assert_eq!(answering(&nodes(&[1, 2, 4, 5])), "1 node (n1 n2 n4 n5 do not answer)");
    }

    #[test]
    fn what_stays_in_a_namespace_of_another_is_said_with_what_removes_it() {
        let line = crate::line::tests::line("kvctl -e h:1 bench -n bank --for 5s");
        let said = left(&line, "bank", 12);
        let ends = "  seq -f 'del bench/%07.0f' 0 11 | kvctl -e h:1 shell -n bank -q";
        assert_eq!(said.lines().last(), Some(ends));
        assert!(
            said.contains("up to 12 keys of the benchmark stay in `bank`, bench/0000000 to bench/0000011")
        );
    }

    /// One line for programs with what was asked and measured; a table for people without rows of nothing.
    #[test]
    fn what_was_measured_is_told_to_programs_and_people() {
        let mut total = Tally::new().unwrap();
        (1..=1_000).for_each(|us| total.puts_us.saturating_record(us * 10));
        total.not_applied = 3;
        let measured = Measured { total, gone: None, seconds: 2.0, interrupted: false, keys: 1_000 };
        let args = Bench {
            workload: Workload::Put,
            distribution: Distribution::New,
            clients: 4,
            value_size: 100,
            keys: 1_000,
            preload: None,
            rate: Some(500.0),
            via: Travel::Unary,
            lasting: Duration::from_secs(2),
            mode: None,
            keep: false,
        };
        let about = About {
            namespace: "bank",
            own: false,
            mode: "strong".into(),
            durability: "fsynced".into(),
            hardware: "two cores".into(),
            fsyncs: Some(250),
            whose: "n1",
        };
        let line = as_json(&args, &measured, &about);
        let shown = |name: &str| line.get(name).cloned().unwrap_or_default();
        assert_eq!((shown("ops"), shown("ops_per_s")), (json!(1_000), json!(500.0)));
        assert_eq!(
            (shown("loop"), shown("distribution"), shown("errors")),
            (json!("open"), json!("new"), json!(3))
        );
        assert_eq!(shown("via"), json!("unary"));
        assert_eq!(shown("fsyncs_per_write"), json!(0.25));
        assert_eq!(line["puts"]["p50_us"], line["p50_us"]);
        assert_eq!(line["gets"]["ops"], json!(0));
        let text = as_text(&args, &measured, &about);
        assert!(text.contains("put  ") && !text.contains("get  "), "{text}");
        assert!(text.contains("open loop at 500/s") && text.contains("p99.9 ms"), "{text}");
        assert!(!text.contains("too few"), "{text}");
        // Three in three seconds: no rate of none, no percentile of what was not seen.
        let mut total = Tally::new().unwrap();
        [4_000, 5_000, 6_000].into_iter().for_each(|us| total.puts_us.saturating_record(us));
        let few = Measured { total, seconds: 3.0, ..measured };
        let text = as_text(&Bench { rate: Some(1.0), ..args }, &few, &about);
        let row = text.lines().find(|line| line.starts_with("put")).unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words, ["put", "3", "1.00", "5.00", "-", "-", "-", "6.00"], "{text}");
        assert!(text.contains("-: too few") && !text.contains("NaN"), "{text}");
        assert_eq!([1_234.5, 12.34, 0.5, 0.001].map(per_second), ["1234", "12.3", "0.50", "0.0010"]);
    }
}
