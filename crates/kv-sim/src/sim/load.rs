//! The clients: one host of the simulation from which every node can always be reached, because what is cut
//! are the links between nodes. It makes the namespaces, drives the loads, and after the faults demands what
//! a healed cluster owes: convergence, service at every node, and final reads of everything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kv_check::judge::{Expectation, NamespacePlan, SETTLED, Workload};
use kv_client::{Admin, Client, ClientOptions, GroupRole, NodeStatus, WriteContext};
use kv_env::{Entropy, Env};
use kv_types::{Guarantee, NamespaceName, NamespaceSpec, NodeId, Replication};
use kv_workload::converge::{Asked, Copies, Meanwhile, Patience, converge};
use kv_workload::{Driving, Kind, Load, Phase, Recorder, drive};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::clock::SimClock;
use super::cluster::{Cluster, client_address, nodes};
use super::mix;
use super::nemesis::Roles;
use super::network::SimNetwork;
use super::scratch::Scratch;
use super::trace::{self, Trace};

/// How long a new cluster may take until it serves.
const START: Duration = Duration::from_secs(30);
/// How long after the faults every replica may take to be like the others.
const CONVERGENCE: Patience = Patience {
    // Clocks are compared, what is missing is waited for, and then it is pulled.
    converges_within: Duration::from_secs(120),
    hints_end: Duration::from_secs(5),
    reads_within: Duration::from_secs(30),
    poll: POLL,
};
/// How long every node may take to acknowledge a write of each mode then.
const SERVE: Duration = Duration::from_secs(10);
/// How long the final reads may take.
const READ: Duration = Duration::from_secs(30);
/// How often the observer looks.
const LOOK: Duration = Duration::from_millis(500);
/// How often convergence is looked for.
const POLL: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_millis(400);

/// A namespace and its load.
#[derive(Debug, Clone)]
pub struct Part {
    /// Its settings.
    pub spec: NamespaceSpec,
    /// What its clients do.
    pub load: Load,
    /// How it is judged.
    pub plan: NamespacePlan,
}

/// So many keys that most of those that were written are at rest whenever a node dies: what it had noted of
/// them must reach the others.
const MANY_KEYS: usize = 200;

/// The namespaces of a seed: always a register and siblings, and one or two more kinds, often one whose
/// quorums must meet.
pub fn parts(dice: &mut fastrand::Rng, many_keys: bool) -> Result<Vec<Part>, kv_types::Failure> {
    let strong_more = *dice.choice(&[Kind::Set, Kind::Counter, Kind::Append]).unwrap_or(&Kind::Set);
    let replication = |n, r, w, sloppy| Replication { n, r, w, sloppy };
    let usual = replication(3, 2, 2, true);
    let strict = replication(3, 2, 2, false);
    let other = [replication(3, 1, 2, true), replication(5, 3, 3, true), strict, strict, usual];
    let mut parts = vec![
        part("bank", None, Kind::CasRegister, dice)?,
        part("more", None, strong_more, dice)?,
        part("cart", Some(usual), Kind::Siblings, dice)?,
    ];
    if dice.u8(0..4) > 0 || many_keys {
        let kinds = [Kind::Blind, Kind::Siblings, Kind::Observed];
        let replication = *dice.choice(&other).unwrap_or(&usual);
        let kind = *dice.choice(&kinds).unwrap_or(&Kind::Siblings);
        let mut free = part("free", Some(replication), kind, dice)?;
        if many_keys {
            free.load = Load { keys: MANY_KEYS, rate: 1, closed: 0, ..free.load };
        }
        parts.push(free);
    }
    Ok(parts)
}

fn part(
    name: &str,
    replication: Option<Replication>,
    kind: Kind,
    dice: &mut fastrand::Rng,
) -> Result<Part, kv_types::Failure> {
    let ns = NamespaceName::new(name)?;
    let spec = match replication {
        None => NamespaceSpec::strong(ns),
        Some(replication) => NamespaceSpec::available(ns, replication),
    };
    let workload = match kind {
        Kind::CasRegister | Kind::Register => Workload::Register,
        Kind::Set => Workload::Set,
        Kind::Counter => Workload::Counter,
        Kind::Append => Workload::Append,
        Kind::Siblings | Kind::Blind | Kind::Observed => Workload::Siblings,
    };
    let load = Load {
        rate: dice.u32(1..4),
        closed: 1,
        think: Duration::from_millis(dice.u64(250..700)),
        keys: dice.usize(1..4),
        attempts: if dice.bool() { 3 } else { 1 },
        ..Load::new(name, kind, dice.u64(..))
    };
    // Where every quorum of readers meets every quorum of writers, and no fallback stands in, no read may
    // miss what was written.
    let meets = replication
        .is_some_and(|replication| !replication.sloppy && replication.r + replication.w > replication.n);
    let (mut spec, load) = (spec, load);
    if meets {
        // By what the dice have said already: every other one promises that no read goes back.
        spec.guarantee = match load.keys % 2 {
            0 => Guarantee::StrictQuorum,
            _ => Guarantee::MonotonicReads,
        };
    }
    let monotonic = spec.guarantee == Guarantee::MonotonicReads;
    let expect = Expectation { stale: meets.then_some(false), monotonic, ..Expectation::default() };
    let plan = NamespacePlan { strong: replication.is_none(), workload, expect };
    Ok(Part { spec, load, plan })
}

/// How far the clients are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// The namespaces are being made.
    Starting,
    /// The loads run.
    Loading,
    /// The replicas become alike.
    Converging,
    /// Everything was demanded.
    Done,
}

/// What the clients tell the world outside the simulation.
#[derive(Debug)]
pub struct Report {
    /// How far they are.
    pub progress: Progress,
    /// Who does what, as last seen.
    pub roles: Roles,
    /// Leaders seen, by group and term.
    pub leaders: BTreeMap<(u32, u64), BTreeSet<NodeId>>,
    /// What a healed cluster owed and did not do, in words.
    pub broken: Vec<String>,
    /// When final reads began, nanoseconds of the history.
    pub settled: Option<u64>,
    /// From the end of the loads until all replicas were alike; if reads were needed, from those.
    pub converged_after: Option<Duration>,
    /// A node died, or lost its disk, while it may have coordinated a write, or had no room for a note: what
    /// was not noted is not delivered, and where clocks are not compared only a read finds it.
    pub may_read: bool,
    /// Every key was read once, for hints had left ring partitions that differ: the keys of each of them, by
    /// namespace.
    pub needed_reads: BTreeMap<String, Vec<Vec<String>>>,
    /// Operations that were not begun because too many were open.
    pub shed: u64,
    /// The history.
    pub recorder: Option<Arc<Recorder>>,
}

/// The clients, seen from both sides. Clones share them.
#[derive(Debug, Clone)]
pub struct Clients {
    report: Arc<Mutex<Report>>,
    phase: watch::Sender<Phase>,
    parts: Vec<Part>,
    seed: u64,
    /// What is looked at from outside.
    cluster: Cluster,
    trace: Trace,
}

impl Clients {
    /// Clients for these namespaces.
    pub fn new(parts: Vec<Part>, seed: u64, cluster: Cluster, trace: Trace) -> Self {
        let report = Report {
            progress: Progress::Starting,
            roles: Roles::default(),
            leaders: BTreeMap::new(),
            broken: Vec::new(),
            settled: None,
            converged_after: None,
            may_read: false,
            needed_reads: BTreeMap::new(),
            shed: 0,
            recorder: None,
        };
        let phase = watch::Sender::new(Phase::ReadWrite);
        Self { report: Arc::new(Mutex::new(report)), phase, parts, seed, cluster, trace }
    }

    /// What they have to say.
    pub fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loads end.
    pub fn stop(&self) {
        self.phase.send_replace(Phase::Stop);
    }

    fn reached(&self, progress: Progress) {
        self.trace.line("clients", format_args!("{progress:?}"));
        self.report().progress = progress;
    }

    fn broken(&self, what: String) {
        self.trace.line("clients", format_args!("BROKEN {what}"));
        self.report().broken.push(what);
    }

    /// What the host of the clients runs.
    pub async fn live(self) -> turmoil::Result {
        let recorder = Arc::new(Recorder::default());
        self.report().recorder = Some(Arc::clone(&recorder));
        let env = |part: u64| Env {
            clock: Arc::new(SimClock::default()),
            entropy: Entropy::seeded(mix(self.seed, 0x00c1_1e47 + part)),
            network: Arc::new(SimNetwork),
        };
        let addresses: BTreeMap<NodeId, String> = nodes().map(|node| (node, client_address(node))).collect();
        let options = |address: &String| ClientOptions {
            attempts: 1,
            read_timeout: PATIENCE,
            write_timeout: PATIENCE,
            ..ClientOptions::pinned(address)
        };
        let mut handles = BTreeMap::new();
        for (node, address) in &addresses {
            handles.insert(*node, Client::connect_in(options(address), env(node.0))?);
        }
        if let Err(why) = self.make_namespaces(&handles).await {
            self.broken(why);
            self.reached(Progress::Done);
            return Ok(());
        }
        let scratch = match Scratch::make(&handles, Instant::now() + START).await {
            Ok(scratch) => scratch,
            Err(why) => {
                self.broken(why);
                self.reached(Progress::Done);
                return Ok(());
            }
        };
        let observer = tokio::spawn(self.clone().observe(handles.clone()));
        let phase = self.phase.subscribe();
        let mut driven = Vec::new();
        for (part, number) in self.parts.iter().zip(100..) {
            driven.push(drive(&part.load, &addresses, &recorder, &env(number), &phase)?);
        }
        self.reached(Progress::Loading);
        let dice = Entropy::seeded(mix(self.seed, 0x5c7a));
        let going = scratch.clone().go(handles.clone(), self.cluster.clone(), dice, self.trace.clone());
        let going = tokio::spawn(going);
        let mut shed = 0;
        for driving in &mut driven {
            shed += driving.finished().await;
        }
        self.report().shed = shed;
        self.reached(Progress::Converging);
        self.converge(&addresses, &handles, &recorder, &driven).await;
        self.serve(&handles).await;
        for what in scratch.demand(going, &handles, &self.cluster).await {
            self.broken(what);
        }
        self.report().settled = Some(recorder.now());
        recorder.nemesis(SETTLED, kv_check::Json::Null);
        self.read_everything(&driven).await?;
        observer.abort();
        self.reached(Progress::Done);
        Ok(())
    }

    /// Every namespace, known at every node.
    async fn make_namespaces(&self, handles: &BTreeMap<NodeId, Client>) -> Result<(), String> {
        let give_up = Instant::now() + START;
        for part in &self.parts {
            let mut asked = handles.iter().cycle();
            loop {
                let Some((_, client)) = asked.next() else { return Err("there are no nodes".into()) };
                match client.admin().create_namespace(part.spec.clone()).await {
                    Ok(_) => break,
                    Err(error) if Instant::now() > give_up => {
                        return Err(format!(
                            "namespace {} was not made within {START:?}: {error}",
                            part.spec.name
                        ));
                    }
                    Err(_) => sleep(POLL).await,
                }
            }
        }
        for (node, client) in handles {
            let knows = async || {
                let known = client.admin().list_namespaces().await.unwrap_or_default();
                let known: BTreeSet<_> = known.into_iter().map(|info| info.namespace.name).collect();
                self.parts.iter().all(|part| known.contains(&part.spec.name))
            };
            while !knows().await {
                if Instant::now() > give_up {
                    return Err(format!("{node} did not learn the namespaces within {START:?}"));
                }
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Looks at every node again and again: who leads what, who holds hints.
    async fn observe(self, handles: BTreeMap<NodeId, Client>) {
        loop {
            let mut most = (0, None);
            for (node, client) in &handles {
                let Some(status) = status(*node, &client.admin()).await else { continue };
                if status.hints_pending > most.0 {
                    most = (status.hints_pending, Some(*node));
                }
                self.saw(*node, &status);
            }
            self.report().roles.hint_holder = most.1;
            sleep(LOOK).await;
        }
    }

    fn saw(&self, node: NodeId, status: &NodeStatus) {
        let mut report = self.report();
        for group in status.groups.iter().filter(|group| group.role() == GroupRole::Leader) {
            let leaders = report.leaders.entry((group.group, group.term)).or_default();
            if leaders.insert(node) {
                self.trace.line(node, format_args!("leads group {} in term {}", group.group, group.term));
            }
            let newest =
                report.leaders.keys().filter(|(id, _)| *id == group.group).map(|(_, term)| *term).max();
            if group.group == 1 && newest == Some(group.term) {
                report.roles.leader = Some(node);
            }
        }
    }

    /// Waits until all replicas are alike and nothing is left to be delivered. Hints alone owe that, and
    /// the comparing of clocks where it is on; if it is not and a node died every key is read once, and that
    /// owes it.
    async fn converge(
        &self,
        addresses: &BTreeMap<NodeId, String>,
        clients: &BTreeMap<NodeId, Client>,
        recorder: &Recorder,
        driven: &[Driving],
    ) {
        // Of a strong namespace every node keeps a replica.
        let every = u8::try_from(addresses.len()).unwrap_or(u8::MAX);
        let copies = |part: &Part| Copies {
            ns: part.spec.name.to_string(),
            n: part.spec.replication.map_or(every, |replication| replication.n),
        };
        let namespaces: Vec<Copies> = self.parts.iter().map(copies).collect();
        let meanwhile = Meanwhile { strong_rests: true, may_read: self.report().may_read };
        let began = Instant::now();
        let asked = Asked { addresses, clients, recorder, driven };
        for (ns, convergence) in converge(asked, &namespaces, meanwhile, CONVERGENCE).await {
            let Some(at) = convergence.at else {
                let why = convergence.unequal.unwrap_or_default();
                self.broken(format!(
                    "no convergence of {ns} within {:?}: {why}",
                    CONVERGENCE.converges_within
                ));
                continue;
            };
            let since = convergence.reads.map_or(began, |needed| {
                self.report().needed_reads.insert(ns.clone(), needed.partitions);
                needed.at
            });
            let after = at.saturating_duration_since(since);
            self.trace.line("clients", format_args!("{ns} converged after {after:?}"));
            let mut report = self.report();
            report.converged_after = report.converged_after.max(Some(after));
        }
    }

    /// Every node acknowledges a write of each mode, and reads it back.
    async fn serve(&self, handles: &BTreeMap<NodeId, Client>) {
        let give_up = Instant::now() + SERVE;
        for (node, client) in handles {
            for part in &self.parts {
                let name = part.spec.name.as_str();
                let key = format!("served.{node}");
                loop {
                    let served = if part.plan.strong {
                        let handle = client.strong(name);
                        let written = handle.put(&key, "1").await.map(|_| ());
                        match written {
                            Ok(()) => handle.get(&key).await.map(|_| ()),
                            failed => failed,
                        }
                    } else {
                        let handle = client.available(name);
                        let written = handle.put(&key, "1", WriteContext::Blind).await.map(|_| ());
                        match written {
                            Ok(()) => handle.get(&key).await.map(|_| ()),
                            failed => failed,
                        }
                    };
                    match served {
                        Ok(()) => break,
                        Err(error) if Instant::now() > give_up => {
                            self.broken(format!("{node} does not serve {name} within {SERVE:?}: {error}"));
                            break;
                        }
                        Err(_) => sleep(POLL).await,
                    }
                }
            }
        }
    }

    async fn read_everything(&self, driven: &[Driving]) -> turmoil::Result {
        let give_up = Instant::now() + READ;
        for driving in driven {
            for unread in driving.read_everything(give_up).await? {
                self.broken(format!("not read in the end: {unread}"));
            }
        }
        self.trace.line("clients", format_args!("read everything at {:.3}", trace::now().as_secs_f64()));
        Ok(())
    }
}

async fn status(node: NodeId, admin: &Admin) -> Option<NodeStatus> {
    admin.status(&client_address(node)).await.ok()
}
