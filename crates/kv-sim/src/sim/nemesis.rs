//! Carries a plan of faults out between the steps of the simulation, and is the supervisor that starts nodes
//! again, as an operator's would. Overlapping faults of the network add up: a link is whole when the last of
//! them has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kv_check::deaths::Disturbances;
use kv_check::judge::HEALED;
use kv_check::service::Window;
use kv_types::NodeId;
use serde_json::{Value as Json, json};

use super::cluster::{Cluster, Machine, NODES, State, nodes};
use super::plan::{Fault, Planned, Shape, Whom};
use super::trace::Trace;

/// How long a supervisor waits before it starts a node again that stopped by itself.
const RESTART_AFTER: Duration = Duration::from_millis(300);
/// Latency of the network at rest, at most.
pub const LATENCY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(8));

/// The side of a cut that reaches no majority.
pub const MINORITY: &str = "minority";
/// How the disk of the simulation begins the errors that it was told to give. A node may stop because of one,
/// and of nothing else: a node that refuses a damaged log, or runs into a rule of its own, is not excused by
/// a fault of its disk.
const INJECTED: &str = "injected: ";

/// What the nemesis knows of roles, from outside.
#[derive(Debug, Clone, Copy, Default)]
pub struct Roles {
    /// The leader of the strong namespaces.
    pub leader: Option<NodeId>,
    /// Who holds most hints.
    pub hint_holder: Option<NodeId>,
}

/// Something that the nemesis did, for the history.
#[derive(Debug, Clone)]
pub struct Deed {
    /// When, nanoseconds.
    pub time: u64,
    /// What: the kind of a fault, or `end` of one.
    pub what: String,
    /// Its particulars.
    pub value: Json,
}

#[derive(Debug)]
struct Active {
    planned: Planned,
    /// Whom it struck.
    victims: Vec<NodeId>,
    links: BTreeSet<(NodeId, NodeId)>,
    since: Duration,
    /// It was seen to have an effect, and counts.
    counted: bool,
    /// How often the victims had felt a fault of this kind before, where that shows later.
    felt_before: u64,
}

/// The state of the link between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Link {
    there: bool,
    back: bool,
    held: bool,
}

/// A cut that left a majority on one side, as the judge wants it.
fn window(shape: Shape, centre: NodeId, from: Duration, to: Duration) -> Option<Window> {
    let few = shape.minority(centre)?;
    let side = |node: NodeId| if few.contains(&node) { MINORITY } else { "majority" };
    Some(Window {
        name: format!("{shape:?} of {centre}"),
        from: nanos(from),
        to: nanos(to),
        sides: nodes().map(|node| (node.to_string(), side(node).to_owned())).collect(),
    })
}

fn nanos(moment: Duration) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

/// Faults that end a life and keep the node down.
fn kills(fault: Fault) -> bool {
    matches!(fault, Fault::Kill(_) | Fault::PowerCut(_) | Fault::PowerCutAll | Fault::LoseTier(_))
}

/// Faults of a disk that a node answers by stopping.
fn stops(fault: Fault) -> bool {
    matches!(fault, Fault::FullDisk(..) | Fault::FailingSync(..) | Fault::PowerCutAtSync(..))
}

/// The nemesis of one run.
#[derive(Debug)]
pub struct Nemesis {
    cluster: Cluster,
    plan: Vec<Planned>,
    began: Option<Duration>,
    active: Vec<Active>,
    links: BTreeMap<(NodeId, NodeId), Link>,
    restarts: BTreeMap<NodeId, Duration>,
    /// Nodes whose disk was struck during their present life: a log that failed may be noticed after the
    /// fault has ended.
    struck: BTreeSet<NodeId>,
    deeds: Vec<Deed>,
    installed: BTreeMap<&'static str, u64>,
    /// Cuts with two sides that are over.
    cuts: Vec<Window>,
    /// When nodes died, and what made writes last longer than their deadline.
    disturbances: Disturbances,
    /// Since when links keep messages back.
    held_since: BTreeMap<(NodeId, NodeId), Duration>,
    /// A lower tier is gone, and with it the hints in it.
    tier_lost: bool,
    broken: Vec<String>,
    trace: Trace,
}

impl Nemesis {
    /// With a plan that begins when [`Nemesis::begin`] says so.
    pub fn new(cluster: Cluster, mut plan: Vec<Planned>, trace: Trace) -> Self {
        plan.reverse();
        Self {
            cluster,
            plan,
            began: None,
            active: Vec::new(),
            links: BTreeMap::new(),
            restarts: BTreeMap::new(),
            struck: BTreeSet::new(),
            deeds: Vec::new(),
            installed: BTreeMap::new(),
            cuts: Vec::new(),
            disturbances: Disturbances::default(),
            held_since: BTreeMap::new(),
            tier_lost: false,
            broken: Vec::new(),
            trace,
        }
    }

    /// The phase of faults begins now.
    pub fn begin(&mut self, now: Duration) {
        self.began = Some(now);
        self.note(now, "faults-begin", Json::Null);
    }

    /// What it did.
    pub fn deeds(&self) -> &[Deed] {
        &self.deeds
    }

    /// Cuts that left a majority on one side, with the sides of the nodes.
    pub fn cuts(&self) -> &[Window] {
        &self.cuts
    }

    /// When nodes died, and what made writes last longer than their deadline; none if one lost hints that it
    /// held.
    pub fn disturbances(&self) -> Option<&Disturbances> {
        (!self.tier_lost).then_some(&self.disturbances)
    }

    /// Faults that had an effect, by kind: a process that was running ended, a sync failed, a full disk
    /// refused a write.
    pub fn installed(&self) -> &BTreeMap<&'static str, u64> {
        &self.installed
    }

    /// What happened to nodes that no fault explains.
    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    /// Does what is due.
    pub fn tick(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration, roles: Roles) {
        if let Some(began) = self.began {
            let over: Vec<Active> =
                self.active.extract_if(.., |active| began + active.planned.until <= now).collect();
            for active in over {
                self.end(sim, now, &active);
            }
            while let Some(planned) = self.plan.pop_if(|planned| began + planned.at <= now) {
                self.strike(sim, now, planned, roles);
            }
        }
        self.supervise(sim, now);
    }

    /// Takes every fault back and starts every node that is down.
    pub fn heal(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        self.plan.clear();
        for active in std::mem::take(&mut self.active) {
            self.end(sim, now, &active);
        }
        for machine in self.cluster.machines() {
            machine.clock.reset();
        }
        self.note(now, HEALED, Json::Null);
    }

    /// Whether a fault of its disk explains that this node does not run, for the reason that it gives.
    fn excused(&self, node: NodeId, why: &str) -> bool {
        let struck = self.struck.contains(&node)
            || self.active.iter().any(|active| active.victims.contains(&node) && stops(active.planned.fault));
        struck && why.contains(INJECTED)
    }

    /// A sync that was to fail counts once it stopped its node.
    fn count_injected(&mut self, node: NodeId, why: &str) {
        let failed_syncs = self.active.iter_mut().filter(|active| {
            let fault = active.planned.fault;
            active.victims.contains(&node)
                && matches!(fault, Fault::FailingSync(..) | Fault::PowerCutAtSync(..))
        });
        for active in failed_syncs.filter(|active| !active.counted && why.contains(INJECTED)) {
            active.counted = true;
            *self.installed.entry(active.planned.fault.kind()).or_default() += 1;
        }
    }

    /// How often nodes have felt a fault of this kind so far, where that shows later.
    fn felt(&self, fault: Fault, nodes: &[NodeId]) -> u64 {
        let machines = nodes.iter().filter_map(|node| self.cluster.machine(*node));
        machines
            .map(|machine| match fault {
                // A node that is told in time refuses by itself, before a write finds no room.
                Fault::FullDisk(..) => machine.disk.memory().refused() + machine.disk.memory().said_short(),
                Fault::HungDisk(_) => machine.disk.held(),
                Fault::StalledTier(_) | Fault::SlowTier(..) => machine.tier_waits(),
                _ => 0,
            })
            .sum()
    }

    fn supervise(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        for machine in self.cluster.clone().machines() {
            let node = machine.node;
            match machine.state() {
                State::Starting | State::Up => {}
                State::Down => {
                    let due = self.restarts.get(&node).is_none_or(|due| *due <= now);
                    if due && !self.kept_down(node) {
                        self.restarts.remove(&node);
                        // A start that meets the fault may fail by it, and say so when it is over.
                        let meets =
                            |active: &Active| active.victims.contains(&node) && stops(active.planned.fault);
                        if !self.active.iter().any(meets) {
                            self.struck.remove(&node);
                        }
                        self.note(now, "start", json!(node.to_string()));
                        sim.bounce(node.to_string());
                    }
                }
                State::Stopped(why) | State::Refused(why) => {
                    // At a sync that was to be its last, the machine goes down with the process.
                    let at_sync = self.active.iter().any(|active| {
                        active.victims.contains(&node)
                            && matches!(active.planned.fault, Fault::PowerCutAtSync(..))
                    });
                    self.count_injected(node, &why);
                    if !self.excused(node, &why) {
                        self.broken.push(format!("{node} at {:.3} s: {why}", now.as_secs_f64()));
                    }
                    sim.crash(node.to_string());
                    if at_sync {
                        machine.disk.memory().fail_syncs(None);
                        machine.power_cut();
                    } else {
                        machine.killed();
                    }
                    self.note(now, "ended", json!([node.to_string(), why]));
                    self.disturbances.deaths.push((nanos(now), nanos(now)));
                    machine.set_state(State::Down);
                    self.restarts.insert(node, now + RESTART_AFTER);
                }
            }
        }
    }

    fn kept_down(&self, node: NodeId) -> bool {
        self.active.iter().any(|active| active.victims.contains(&node) && kills(active.planned.fault))
    }

    fn strike(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration, planned: Planned, roles: Roles) {
        let one = |whom: Whom| match whom {
            Whom::Leader => roles.leader.unwrap_or(NodeId(1)),
            Whom::HintHolder => roles.hint_holder.unwrap_or(NodeId(NODES)),
            Whom::Node(node) => NodeId(node),
        };
        let (victims, links) = match planned.fault {
            Fault::Cut(shape, whom) | Fault::Hold(shape, whom) => (vec![one(whom)], shape.links(one(whom))),
            Fault::PowerCutAll => (nodes().collect(), BTreeSet::new()),
            Fault::SlowNetwork(_) => (Vec::new(), BTreeSet::new()),
            Fault::Kill(whom)
            | Fault::PowerCut(whom)
            | Fault::PowerCutAtSync(whom, _)
            | Fault::FailingSync(whom, _)
            | Fault::FullDisk(whom, _)
            | Fault::SlowDisk(whom, _)
            | Fault::HungDisk(whom)
            | Fault::StalledTier(whom)
            | Fault::SlowTier(whom, _)
            | Fault::LoseTier(whom)
            | Fault::ClockJump(whom, _)
            | Fault::ClockDrift(whom, _) => (vec![one(whom)], BTreeSet::new()),
        };
        let names: Vec<String> = victims.iter().map(ToString::to_string).collect();
        self.note(now, planned.fault.kind(), json!({"fault": planned.fault, "nodes": names}));
        let until = now + planned.until.saturating_sub(planned.at);
        let felt_before = self.felt(planned.fault, &victims);
        let mut counted = !matches!(planned.fault, Fault::FullDisk(..)) && victims.is_empty();
        for machine in
            victims.iter().filter_map(|node| self.cluster.machine(*node)).cloned().collect::<Vec<_>>()
        {
            let struck = self.strike_machine(sim, &machine, planned.fault, until);
            counted |= struck;
            if struck && kills(planned.fault) {
                self.disturbances.deaths.push((nanos(now), nanos(now)));
            }
        }
        *self.installed.entry(planned.fault.kind()).or_default() += u64::from(counted);
        if let Fault::SlowNetwork(ms) = planned.fault {
            sim.set_max_message_latency(Duration::from_millis(ms));
        }
        if stops(planned.fault) {
            self.struck.extend(&victims);
        }
        self.tier_lost |= matches!(planned.fault, Fault::LoseTier(_));
        self.active.push(Active { planned, victims, links, since: now, counted, felt_before });
        self.apply_links(sim, now);
    }

    /// Strikes a node. Whether that had an effect at once; of a disk that is to fail or fill up it shows
    /// later.
    fn strike_machine(
        &self,
        sim: &mut turmoil::Sim<'_>,
        machine: &Machine,
        fault: Fault,
        until: Duration,
    ) -> bool {
        let memory = machine.disk.memory();
        let runs = machine.state() != State::Down;
        match fault {
            Fault::Kill(_) => {
                if runs {
                    sim.crash(machine.node.to_string());
                    machine.killed();
                    machine.set_state(State::Down);
                }
                return runs;
            }
            Fault::PowerCut(_) | Fault::PowerCutAll | Fault::LoseTier(_) => {
                if runs {
                    sim.crash(machine.node.to_string());
                    machine.set_state(State::Down);
                }
                machine.power_cut();
                if matches!(fault, Fault::LoseTier(_)) {
                    machine.lose_tier();
                }
                return runs;
            }
            Fault::PowerCutAtSync(_, after) | Fault::FailingSync(_, after) => {
                memory.fail_syncs(Some(after));
                return false;
            }
            Fault::FullDisk(_, room) => {
                memory.set_capacity(Some(memory.used() + room));
                return false;
            }
            Fault::SlowDisk(_, ms) => machine.disk.slow(Duration::from_millis(ms)),
            Fault::HungDisk(_) => {
                machine.disk.hang(until);
                return false;
            }
            Fault::StalledTier(_) => {
                machine.pause_tier(Duration::MAX);
                return false;
            }
            Fault::SlowTier(_, ms) => {
                machine.pause_tier(Duration::from_millis(ms));
                return false;
            }
            Fault::ClockJump(_, by) => machine.clock.jump(by),
            Fault::ClockDrift(_, gain) => machine.clock.drift(gain),
            Fault::Cut(..) | Fault::Hold(..) | Fault::SlowNetwork(_) => {}
        }
        true
    }

    fn end(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration, over: &Active) {
        self.note(now, "end", json!({"fault": over.planned.fault}));
        if let Fault::Cut(shape, _) = over.planned.fault {
            self.cuts.extend(over.victims.first().and_then(|centre| window(shape, *centre, over.since, now)));
        }
        let lasted = (nanos(over.since), nanos(now));
        match over.planned.fault {
            Fault::SlowDisk(..) | Fault::HungDisk(_) | Fault::StalledTier(_) | Fault::SlowTier(..) => {
                self.disturbances.slowed.push(lasted);
            }
            // While it takes nothing more it takes no note either, and its node may live on.
            Fault::FullDisk(..) => self.disturbances.deaths.push(lasted),
            _ => {}
        }
        if !over.counted && self.felt(over.planned.fault, &over.victims) > over.felt_before {
            *self.installed.entry(over.planned.fault.kind()).or_default() += 1;
        }
        // Another fault of the kind on the same node ends with this one: the disk has one switch of each.
        for machine in over.victims.iter().filter_map(|node| self.cluster.machine(*node)) {
            let memory = machine.disk.memory();
            match over.planned.fault {
                Fault::PowerCutAtSync(..) | Fault::FailingSync(..) => memory.fail_syncs(None),
                Fault::FullDisk(..) => memory.set_capacity(None),
                Fault::SlowDisk(..) => machine.disk.slow(Duration::ZERO),
                Fault::HungDisk(_) => machine.disk.hang(Duration::ZERO),
                Fault::StalledTier(_) | Fault::SlowTier(..) => machine.pause_tier(Duration::ZERO),
                Fault::ClockDrift(..) => machine.clock.drift(0),
                _ => {}
            }
        }
        if let Fault::SlowNetwork(_) = over.planned.fault {
            sim.set_max_message_latency(LATENCY.1);
        }
        self.apply_links(sim, now);
    }

    /// Brings the links of the simulation to what the active faults ask for together.
    fn apply_links(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let mut wanted: BTreeMap<(NodeId, NodeId), Link> = BTreeMap::new();
        for active in &self.active {
            for (from, to) in &active.links {
                let link = wanted.entry((*from.min(to), *from.max(to))).or_default();
                match active.planned.fault {
                    Fault::Hold(..) => link.held = true,
                    _ if from < to => link.there = true,
                    _ => link.back = true,
                }
            }
        }
        for (a, b) in nodes().flat_map(|a| nodes().map(move |b| (a, b))).filter(|(a, b)| a < b) {
            let mut new = wanted.get(&(a, b)).copied().unwrap_or_default();
            // What is lost cannot be kept back.
            new.held &= !new.there && !new.back;
            let old = self.links.insert((a, b), new).unwrap_or_default();
            if old == new {
                continue;
            }
            if old.held
                && let Some(since) = self.held_since.remove(&(a, b))
            {
                self.disturbances.held.push((nanos(since), nanos(now)));
            }
            if new.held {
                self.held_since.insert((a, b), now);
            }
            let (a, b) = (a.to_string(), b.to_string());
            if old.held {
                sim.release(a.as_str(), b.as_str());
            }
            for (was, is, from, to) in [(old.there, new.there, &a, &b), (old.back, new.back, &b, &a)] {
                match (was, is) {
                    (false, true) => sim.partition_oneway(from.as_str(), to.as_str()),
                    (true, false) => sim.repair_oneway(from.as_str(), to.as_str()),
                    _ => {}
                }
            }
            if new.held {
                sim.hold(a.as_str(), b.as_str());
            }
        }
    }

    fn note(&mut self, now: Duration, what: &str, value: Json) {
        self.trace.line("nemesis", format_args!("{what} {value}"));
        self.deeds.push(Deed { time: nanos(now), what: what.to_owned(), value });
    }
}
