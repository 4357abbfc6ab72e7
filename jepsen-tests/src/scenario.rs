//! Scenarios: what a run does, as data that people read and write. A file is read strictly: an unknown key, a
//! wrong word or a setting that its fault does not take is an error that names the line and what was probably
//! meant.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_types::Guarantee;
use kv_types::limits::{MAX_VALUE_BYTES, MAX_VOTERS};
use kv_workload::Kind;
use serde::Deserialize;
use toml::Spanned;

/// What the names of namespaces that floods write into begin with.
pub(crate) const FLOODED: &str = "flood.";
/// Words that are this alike are probably meant.
const ALIKE: f64 = 0.75;

mod cluster;
mod fault;

use cluster::Span;
pub use cluster::{Cluster, Mode, Plane, Server};
pub use fault::{Fault, FaultKind, Role, Shape};
use fault::{FaultEntry, fault};

/// The scenarios that come with the program: name and text.
pub const BUILT_IN: [(&str, &str); 37] = [
    ("majority-cut", include_str!("../scenarios/majority-cut.toml")),
    ("leader-in-minority", include_str!("../scenarios/leader-in-minority.toml")),
    ("ring", include_str!("../scenarios/ring.toml")),
    ("bridge", include_str!("../scenarios/bridge.toml")),
    ("one-way", include_str!("../scenarios/one-way.toml")),
    ("isolate-each", include_str!("../scenarios/isolate-each.toml")),
    ("flapping", include_str!("../scenarios/flapping.toml")),
    ("slow-links", include_str!("../scenarios/slow-links.toml")),
    ("resets", include_str!("../scenarios/resets.toml")),
    ("kill-leader", include_str!("../scenarios/kill-leader.toml")),
    ("far-behind", include_str!("../scenarios/far-behind.toml")),
    ("full-log", include_str!("../scenarios/full-log.toml")),
    ("stalled-tier", include_str!("../scenarios/stalled-tier.toml")),
    ("slow-apply", include_str!("../scenarios/slow-apply.toml")),
    ("hanging-disk", include_str!("../scenarios/hanging-disk.toml")),
    ("nearly-full-disk", include_str!("../scenarios/nearly-full-disk.toml")),
    ("large-values", include_str!("../scenarios/large-values.toml")),
    ("flood", include_str!("../scenarios/flood.toml")),
    ("kill-all", include_str!("../scenarios/kill-all.toml")),
    ("hint-holders", include_str!("../scenarios/hint-holders.toml")),
    ("pause-leader", include_str!("../scenarios/pause-leader.toml")),
    ("rolling-restart", include_str!("../scenarios/rolling-restart.toml")),
    ("lossy-disks", include_str!("../scenarios/lossy-disks.toml")),
    ("clocks", include_str!("../scenarios/clocks.toml")),
    ("full-disk", include_str!("../scenarios/full-disk.toml")),
    ("empty-disk", include_str!("../scenarios/empty-disk.toml")),
    ("bit-rot", include_str!("../scenarios/bit-rot.toml")),
    ("journal-rot", include_str!("../scenarios/journal-rot.toml")),
    ("netns-halves", include_str!("../scenarios/netns-halves.toml")),
    ("netns-loss", include_str!("../scenarios/netns-loss.toml")),
    ("blind-writes", include_str!("../scenarios/blind-writes.toml")),
    ("observed-writes", include_str!("../scenarios/observed-writes.toml")),
    ("register", include_str!("../scenarios/register.toml")),
    ("shatter", include_str!("../scenarios/shatter.toml")),
    ("promises", include_str!("../scenarios/promises.toml")),
    ("stale-reads", include_str!("../scenarios/stale-reads.toml")),
    ("consistency-table", include_str!("../scenarios/consistency-table.toml")),
];

/// A scenario.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Its name: that of its file.
    pub name: String,
    /// Its text, as it was read.
    pub text: String,
    /// What it is about, in a sentence.
    pub about: String,
    /// Load before the first fault.
    pub warm_up: Duration,
    /// Load after everything was healed.
    pub after: Duration,
    /// The cluster.
    pub cluster: Cluster,
    /// The namespaces.
    pub namespaces: Vec<Namespace>,
    /// What clients do.
    pub workloads: Vec<Workload>,
    /// What breaks.
    pub faults: Vec<Fault>,
    /// What must have happened, and what must come out.
    pub expect: Expect,
}

/// A scenario file that cannot be used: where, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what was probably meant.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

impl std::error::Error for Mistake {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: String,
    warm_up: Option<Span>,
    after: Option<Span>,
    #[serde(default)]
    cluster: Cluster,
    #[serde(default)]
    namespace: Vec<Spanned<Namespace>>,
    #[serde(default)]
    workload: Vec<Spanned<WorkloadEntry>>,
    #[serde(default)]
    fault: Vec<Spanned<FaultEntry>>,
    #[serde(default)]
    expect: Expect,
}

/// `[[namespace]]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its mode.
    pub mode: Mode,
    /// Available: replicas.
    #[serde(default = "three")]
    pub n: u8,
    /// Available: replicas that a read waits for.
    #[serde(default = "two")]
    pub r: u8,
    /// Available: replicas that a write waits for.
    #[serde(default = "two")]
    pub w: u8,
    /// Available: whether fallbacks count.
    #[serde(default = "yes")]
    pub sloppy: bool,
    /// Available: what it promises.
    #[serde(default)]
    pub promise: Promise,
    /// Stale reads.
    #[serde(default)]
    pub stale: Stale,
    /// Whether acknowledged writes may be lost: with W=1, when a disk goes.
    #[serde(default)]
    pub may_lose: bool,
    /// Available: part of the operations that each node must answer while links are cut, from 0 to 1; that of
    /// `[expect]` if not given.
    #[serde(default)]
    pub availability_min: Option<f64>,
    /// Part of the operations that each node must answer while a fault lets nodes and links live and only
    /// starves them, from 0 to 1.
    #[serde(default)]
    pub served_min: Option<f64>,
    /// The name of the refusals that such a fault must bring about, definite and fast.
    #[serde(default)]
    pub refused_with: Option<String>,
}

fn three() -> u8 {
    3
}

fn two() -> u8 {
    2
}

fn yes() -> bool {
    true
}

/// What an available namespace promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Promise {
    /// That replicas converge.
    #[default]
    Eventual,
    /// That who wrote sees it.
    ReadYourWrites,
    /// That a read sees what was acknowledged before it.
    StrictQuorum,
    /// That no read goes back, too.
    MonotonicReads,
}

impl From<Promise> for Guarantee {
    fn from(promise: Promise) -> Self {
        match promise {
            Promise::Eventual => Self::Eventual,
            Promise::ReadYourWrites => Self::ReadYourWrites,
            Promise::StrictQuorum => Self::StrictQuorum,
            Promise::MonotonicReads => Self::MonotonicReads,
        }
    }
}

/// What is expected of the reads of an available namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stale {
    /// They may be stale.
    #[default]
    Allowed,
    /// None may be.
    Forbidden,
    /// At least one must be: this proves the meter.
    Required,
}

impl Stale {
    /// As the judge wants it.
    pub fn expectation(self) -> Option<bool> {
        match self {
            Self::Allowed => None,
            Self::Forbidden => Some(false),
            Self::Required => Some(true),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkloadEntry {
    namespace: String,
    kind: Kind,
    rate: Option<u32>,
    clients: Option<u32>,
    keys: Option<usize>,
    attempts: Option<u32>,
    deadline: Option<Span>,
    value_bytes: Option<usize>,
}

/// `[[workload]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// The namespace.
    pub namespace: String,
    /// What clients do.
    pub kind: Kind,
    /// Operations a second at every node, in an open loop.
    pub rate: u32,
    /// Closed-loop clients at every node.
    pub clients: u32,
    /// Hot keys.
    pub keys: usize,
    /// Attempts of the client library in one operation.
    pub attempts: u32,
    /// Deadline of one operation.
    pub deadline: Duration,
    /// Bytes of the values of single keys, at least.
    pub value_bytes: usize,
}

impl Workload {
    /// What the keys of its kind begin with.
    pub fn kind_initial(&self) -> &'static str {
        Kind::ALL
            .iter()
            .find(|(kind, _)| *kind == self.kind)
            .and_then(|(_, name)| name.get(..1))
            .unwrap_or("k")
    }
}

/// `[expect]`: what must have happened for the run to count, and what must come out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expect {
    /// Seconds during which some node that ran had no majority in sight.
    pub minority_s: f64,
    /// Seconds during which no majority was anywhere.
    pub no_quorum_s: f64,
    /// Elections after the first.
    pub elections: u64,
    /// Operations of unknown outcome.
    pub unknown: u64,
    /// Keys with mutations that overlap in time.
    pub concurrent_keys: u64,
    /// Faults that were proven; all of the scenario's when left out.
    pub faults: Option<u64>,
    /// Operations of every namespace that were answered.
    pub answered: u64,
    /// From healing until every node serves again; of an available namespace, which rests until its replicas
    /// are equal, from when it is used again.
    pub recovery_ms_max: u64,
    /// From healing until all replicas are equal.
    pub convergence_ms_max: u64,
    /// Part of the operations that each node must answer in available namespaces while links are cut, from 0
    /// to 1.
    pub availability_min: Option<f64>,
    /// Nodes that may end by themselves, as a fault makes them: a disk that fails.
    pub ends: bool,
    /// What the log of some node must say.
    pub logged: Vec<String>,
    /// From when a fault starves nodes until `served_min` is owed.
    pub served_after_ms: u64,
    /// Half of the refusals that `refused_with` names take no longer.
    pub refusal_ms_max: u64,
    /// From when the disk of the leader hangs until another node leads.
    pub replaced_ms_max: u64,
}

impl Default for Expect {
    fn default() -> Self {
        Self {
            minority_s: 0.0,
            no_quorum_s: 0.0,
            elections: 0,
            unknown: 0,
            concurrent_keys: 1,
            faults: None,
            answered: 100,
            recovery_ms_max: 3_000,
            convergence_ms_max: 10_000,
            availability_min: None,
            ends: false,
            logged: Vec::new(),
            served_after_ms: 3_000,
            refusal_ms_max: 100,
            replaced_ms_max: 8_000,
        }
    }
}

impl Scenario {
    /// Finds a scenario: a file, or the name of one that comes with the program.
    pub fn find(what: &str) -> Result<Self, Mistake> {
        let path = Path::new(what);
        if path.extension().is_some() || path.components().count() > 1 {
            return Self::load(path);
        }
        match BUILT_IN.iter().find(|(name, _)| *name == what) {
            Some((name, text)) => Self::parse(name, &format!("{name}.toml"), text),
            None => {
                let names = BUILT_IN.map(|(name, _)| name);
                let hint =
                    alike(what, &names).map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
                let message = format!(
                    "there is no such scenario{hint} `jepsen-tests list` shows them; a file ends in .toml"
                );
                Err(Mistake { file: what.to_owned(), line: 1, message })
            }
        }
    }

    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, Mistake> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| Mistake {
            file: file.clone(),
            line: 1,
            message: format!("cannot be read: {error}"),
        })?;
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        // The copy in a run's folder is called config.toml and says on its first line whose it is.
        let named = text.lines().next().and_then(|line| line.strip_prefix("# scenario: ")).map(str::to_owned);
        Self::parse(&named.or(stem).unwrap_or_default(), &file, &text)
    }

    /// Reads a text. `file` is what errors call it.
    pub fn parse(name: &str, file: &str, text: &str) -> Result<Self, Mistake> {
        let line = |at: usize| text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
        let mistake = |at: usize, message: String| Mistake { file: file.to_owned(), line: line(at), message };
        let parsed: File = toml::from_str(text).map_err(|error| {
            mistake(error.span().map_or(0, |span| span.start), with_suggestion(error.message()))
        })?;
        if !(1..=9).contains(&parsed.cluster.nodes) {
            return Err(mistake(0, format!("a cluster has 1 to 9 nodes, not {}", parsed.cluster.nodes)));
        }
        check_namespaces(&parsed.namespace, parsed.cluster.nodes)
            .map_err(|(at, message)| mistake(at, message))?;
        let namespaces: Vec<Namespace> = parsed.namespace.into_iter().map(Spanned::into_inner).collect();
        let mut workloads = Vec::new();
        for entry in parsed.workload {
            let at = entry.span().start;
            workloads
                .push(workload(entry.into_inner(), &namespaces).map_err(|message| mistake(at, message))?);
        }
        for namespace in &namespaces {
            let mine = workloads.iter().filter(|load: &&Workload| load.namespace == namespace.name);
            let kinds: Vec<_> = mine.map(|load| judged(load.kind)).collect();
            if kinds.is_empty() || kinds.windows(2).any(|pair| pair.first() != pair.last()) {
                let message = format!("{:?} needs workloads, all judged alike", namespace.name);
                return Err(mistake(0, message));
            }
        }
        if workloads.is_empty() {
            return Err(mistake(0, "a scenario without a [[workload]] shows nothing".into()));
        }
        let mut faults = Vec::new();
        for entry in parsed.fault {
            let at = entry.span().start;
            faults.push(fault(entry.into_inner(), &parsed.cluster).map_err(|message| mistake(at, message))?);
        }
        let after = |span: Option<Span>, default| span.map_or(default, |span| span.0);
        Ok(Self {
            name: name.to_owned(),
            text: text.to_owned(),
            about: parsed.about,
            warm_up: after(parsed.warm_up, Duration::from_secs(2)),
            after: after(parsed.after, Duration::from_secs(4)),
            cluster: parsed.cluster,
            namespaces,
            workloads,
            faults,
            expect: parsed.expect,
        })
    }

    /// Where its runs go when nothing else is said.
    pub fn default_out(&self, seed: u64) -> PathBuf {
        PathBuf::from("target/jepsen").join(&self.name).join(seed.to_string())
    }
}

/// What judges a kind of workload.
pub fn judged(kind: Kind) -> kv_check::judge::Workload {
    use kv_check::judge::Workload;
    match kind {
        Kind::CasRegister | Kind::Register => Workload::Register,
        Kind::Set => Workload::Set,
        Kind::Counter => Workload::Counter,
        Kind::Append => Workload::Append,
        Kind::Siblings | Kind::Blind | Kind::Observed => Workload::Siblings,
    }
}

fn workload(entry: WorkloadEntry, namespaces: &[Namespace]) -> Result<Workload, String> {
    let Some(namespace) = namespaces.iter().find(|namespace| namespace.name == entry.namespace) else {
        let names: Vec<&str> = namespaces.iter().map(|namespace| namespace.name.as_str()).collect();
        let hint = alike(&entry.namespace, &names)
            .map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
        return Err(format!("there is no namespace {:?}{hint}", entry.namespace));
    };
    let strong = namespace.mode == Mode::Strong;
    if entry.kind.strong() != strong {
        let fits: Vec<_> =
            Kind::ALL.iter().filter(|(kind, _)| kind.strong() == strong).map(|(_, name)| *name).collect();
        let mode = if strong { "strong" } else { "available" };
        return Err(format!("{:?} is {mode}, whose kinds are {}", namespace.name, fits.join(", ")));
    }
    let clients = entry.clients.unwrap_or(0);
    let rate = entry.rate.unwrap_or(if clients > 0 { 0 } else { 10 });
    if rate == 0 && clients == 0 {
        return Err("it has neither a rate nor clients, so it does nothing".into());
    }
    if !(1..=5).contains(&entry.attempts.unwrap_or(1)) {
        return Err("attempts are 1 to 5".into());
    }
    let value_bytes = entry.value_bytes.unwrap_or(0);
    let single = !matches!(entry.kind, Kind::Set | Kind::Counter | Kind::Append);
    if value_bytes > MAX_VALUE_BYTES || (value_bytes > 0 && !single) {
        return Err(format!(
            "value_bytes is at most {MAX_VALUE_BYTES}, and not for sets, counters and lists"
        ));
    }
    Ok(Workload {
        namespace: entry.namespace,
        kind: entry.kind,
        rate,
        clients,
        keys: entry.keys.unwrap_or(3).clamp(1, 100),
        attempts: entry.attempts.unwrap_or(1),
        deadline: entry.deadline.map_or(Duration::from_secs(1), |span| span.0),
        value_bytes,
    })
}

/// What cannot be promised of namespaces on so many nodes, and where that is said.
fn check_namespaces(entries: &[Spanned<Namespace>], nodes: u64) -> Result<(), (usize, String)> {
    let mut names = BTreeSet::new();
    for namespace in entries {
        let (at, namespace) = (namespace.span().start, namespace.get_ref());
        if !names.insert(namespace.name.clone()) {
            return Err((at, format!("there are two namespaces {:?}", namespace.name)));
        }
        if let Some(least) = namespace.availability_min
            && (namespace.mode == Mode::Strong || !(0.0..=1.0).contains(&least))
        {
            let message = format!(
                "{:?}: availability_min is from 0 to 1, and only available namespaces promise it",
                namespace.name
            );
            return Err((at, message));
        }
        if namespace.served_min.is_some_and(|least| !(0.0..=1.0).contains(&least)) {
            return Err((at, format!("{:?}: served_min is from 0 to 1", namespace.name)));
        }
        if namespace.name.starts_with(FLOODED) {
            return Err((at, format!("namespaces that begin with {FLOODED:?} belong to floods")));
        }
        let n = namespace.n;
        if namespace.mode == Mode::Strong && nodes > MAX_VOTERS as u64 {
            let message = format!(
                "{:?} is strong, and only {MAX_VOTERS} of {nodes} nodes vote: a side of a cut is named after how many nodes it \
                 has, so strong namespaces need at most {MAX_VOTERS} nodes",
                namespace.name
            );
            return Err((at, message));
        }
        if namespace.mode == Mode::Available && (u64::from(n) > nodes || namespace.r > n || namespace.w > n) {
            let message = format!("{:?}: R and W are at most N, and N at most {nodes} nodes", namespace.name);
            return Err((at, message));
        }
    }
    Ok(())
}

/// Adds what was probably meant to an error about an unknown word, which lists the known ones.
fn with_suggestion(message: &str) -> String {
    let mut words = message.split('`').skip(1).step_by(2);
    let Some(wrong) = words.next().filter(|_| message.contains("unknown")) else { return message.to_owned() };
    let known: Vec<&str> = words.collect();
    match alike(wrong, &known) {
        Some(near) => format!("{message}; did you mean `{near}`?"),
        None => message.to_owned(),
    }
}

/// The word that is most like this one, if it is like it at all.
pub fn alike<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|other| (strsim::jaro_winkler(word, other), *other));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= ALIKE).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::fault::{ROLES, signed_ms};
    use super::*;

    const SMALL: &str = r#"about = "small"
[[namespace]]
name = "bank"
mode = "strong"
[[workload]]
namespace = "bank"
kind = "cas-register"
[[fault]]
at = "1s"
for = "2s"
kind = "partition"
shape = "leader-in-minority"
"#;

    fn parse(text: &str) -> Result<Scenario, Mistake> {
        Scenario::parse("small", "small.toml", text)
    }

    fn refused(from: &str, to: &str) -> Mistake {
        assert!(SMALL.contains(from), "{from}");
        parse(&SMALL.replacen(from, to, 1)).unwrap_err()
    }

    #[test]
    fn a_short_file_is_a_whole_scenario() {
        let scenario = parse(SMALL).unwrap();
        assert_eq!((scenario.cluster.nodes, scenario.expect.recovery_ms_max), (5, 3000));
        let [fault] = scenario.faults.as_slice() else { panic!("{scenario:?}") };
        assert_eq!(fault.kind, FaultKind::Partition { shape: Shape::LeaderInMinority });
        assert_eq!(
            (fault.at, fault.lasts, fault.repeat),
            (Duration::from_secs(1), Duration::from_secs(2), 1)
        );
        assert_eq!(scenario.workloads[0].rate, 10);
    }

    #[test]
    fn mistakes_name_their_line_and_what_was_meant() {
        for (from, to, line, words) in [
            ("kind = \"partition\"", "knd = \"partition\"", 11, "did you mean `kind`"),
            ("\"partition\"", "\"partitoin\"", 11, "did you mean `partition`"),
            ("\"leader-in-minority\"", "\"leader-in-minorty\"", 12, "did you mean `leader-in-minority`"),
            ("shape = \"leader-in-minority\"", "target = \"leadr\"", 12, "leader"),
            ("[[workload]]", "[[wrkload]]", 5, "did you mean `workload`"),
            ("namespace = \"bank\"", "namespace = \"bnak\"", 5, "did you mean \"bank\""),
            ("\"cas-register\"", "\"siblings\"", 5, "strong, whose kinds are cas-register"),
            ("for = \"2s\"", "for = \"2\"", 10, "500ms"),
            ("for = \"2s\"", "for = \"0s\"", 8, "proves nothing"),
            ("kind = \"partition\"", "kind = \"kill\"", 8, "does not take `shape`"),
            ("mode = \"strong\"", "mode = \"strong\"\nr = 300", 5, "300"),
            ("mode = \"strong\"", "mode = \"strong\"\navailability_min = 0.9", 2, "only available"),
            ("mode = \"strong\"", "mode = \"available\"\navailability_min = 1.5", 2, "from 0 to 1"),
            ("shape = \"leader-in-minority\"", "target = \"n9\"", 8, "only n1 to n5"),
        ] {
            let mistake = refused(from, to);
            assert_eq!(mistake.line, line, "{to}: {mistake}");
            assert!(mistake.to_string().contains(words), "{to}: {mistake}");
            assert!(mistake.to_string().starts_with("small.toml:"), "{mistake}");
        }
    }

    #[test]
    fn strong_namespaces_are_refused_where_not_every_node_votes() {
        let with = |nodes: u64, mode: &str, kind: &str| {
            let text = SMALL.replace("[[namespace]]", &format!("[cluster]\nnodes = {nodes}\n[[namespace]]"));
            parse(&text.replace("\"strong\"", mode).replace("\"cas-register\"", kind))
        };
        assert!(with(5, "\"strong\"", "\"cas-register\"").is_ok());
        let refused = with(6, "\"strong\"", "\"cas-register\"").unwrap_err();
        assert_eq!(refused.line, 4, "{refused}");
        assert!(refused.message.contains("only 5 of 6 nodes vote"), "{refused}");
        assert!(with(9, "\"available\"", "\"siblings\"").is_ok());
    }

    #[test]
    fn faults_are_refused_where_they_cannot_be_made() {
        let only = |fault: &str| SMALL.split("[[fault]]").next().unwrap().to_owned() + "[[fault]]\n" + fault;
        for (fault, words) in [
            ("kind = \"lossy-kill\"", "kvd-faulty"),
            ("kind = \"loss\"", "netns"),
            ("kind = \"clock-drift\"\nrate = 50.0", "rate of"),
            ("kind = \"kill\"\nrepeat = 3\nfor = \"3s\"\nevery = \"1s\"", "shorter"),
            ("kind = \"kill\"\nrepeat = 0", "1 to 100"),
        ] {
            let error = parse(&only(fault)).unwrap_err();
            assert!(error.message.contains(words), "{fault}: {error}");
        }
        assert!(parse(&only("kind = \"pause\"\ntarget = \"leader\"")).is_ok());
    }

    #[test]
    fn nothing_to_do_is_refused() {
        assert!(parse("about = \"x\"").unwrap_err().message.contains("workload"));
        let idle = SMALL.replace("kind = \"cas-register\"", "kind = \"cas-register\"\nrate = 0");
        assert!(parse(&idle).unwrap_err().message.contains("it does nothing"));
        let lonely =
            SMALL.replace("[[workload]]", "[[namespace]]\nname = \"x\"\nmode = \"strong\"\n[[workload]]");
        assert!(parse(&lonely).unwrap_err().message.contains("needs workloads"));
    }

    #[test]
    fn the_scenarios_that_come_along_are_those_in_the_folder_and_all_are_good() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        files.sort();
        let mut names = BUILT_IN.map(|(name, _)| name.to_owned()).to_vec();
        names.sort();
        assert_eq!(files, names);
        for (name, text) in BUILT_IN {
            let scenario = Scenario::find(name).unwrap_or_else(|mistake| panic!("{mistake}"));
            assert!(!scenario.faults.is_empty() && !scenario.about.is_empty(), "{name}");
            assert!(text.lines().count() < 100, "{name} is to stay readable");
        }
        assert!(Scenario::find("majorty-cut").unwrap_err().message.contains("majority-cut"));
    }

    #[test]
    fn roles_survive_their_names() {
        for (role, name) in ROLES {
            assert_eq!(Role::try_from(name.to_owned()).unwrap(), role);
            assert_eq!(role.to_string(), name);
        }
        assert_eq!(Role::try_from("n3".to_owned()).unwrap(), Role::Node(3));
        assert_eq!((signed_ms("-30s").unwrap(), signed_ms("1h").unwrap()), (-30_000, 3_600_000));
    }
}
