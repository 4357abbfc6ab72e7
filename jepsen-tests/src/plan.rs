//! From a scenario and a seed to a schedule, and from a fault and what is known of the cluster to the nodes
//! and links it hits. Pure: the same scenario and seed give the same schedule, and a recorded schedule with
//! recorded roles hits the same nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kv_lab::matrix::{choose, halves, without};
use kv_lab::{Faults, Flow, Side};
use kv_types::NodeId;
use serde::{Deserialize, Serialize};

use crate::scenario::{Fault, FaultKind, Role, Scenario, Shape};

/// Beginnings move by up to this much, so that seeds meet different moments of the store.
const JITTER_MS: u64 = 400;
/// Part of its turn for which a node of a rolling restart is down.
const ROLLING_DOWN: f64 = 0.4;

/// One fault at one time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// Its number in the schedule.
    pub id: u64,
    /// What breaks.
    #[serde(flatten)]
    pub kind: FaultKind,
    /// Whom.
    pub target: Role,
    /// When it begins, milliseconds after the warm-up.
    pub from_ms: u64,
    /// When it ends.
    pub to_ms: u64,
    /// All its choices come from it.
    pub dice: u64,
}

/// Everything that breaks in a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Schedule {
    /// In the order of their beginnings.
    pub faults: Vec<Planned>,
}

/// A fault begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// When, milliseconds after the warm-up.
    pub at_ms: u64,
    /// Which fault: its place in the schedule.
    pub fault: usize,
    /// It begins, else it ends.
    pub begins: bool,
}

/// What a fault needs to know of the cluster to find its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Roles {
    /// Who leads the strong namespaces.
    pub leader: Option<NodeNumber>,
    /// The first primary of a hot key.
    pub coordinator: Option<NodeNumber>,
    /// Who holds the most hints.
    pub hint_holder: Option<NodeNumber>,
}

/// A node in JSON.
pub type NodeNumber = kv_lab::NodeName;

/// Whom a fault hits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hit {
    /// The nodes.
    pub nodes: Vec<NodeId>,
    /// What becomes of the links.
    pub links: Faults,
    /// For a partition: who is on which side.
    pub sides: BTreeMap<String, String>,
    /// In words: "n1,n2 | n3,n4,n5".
    pub words: String,
}

impl Schedule {
    /// The schedule of a scenario.
    pub fn of(scenario: &Scenario, seed: u64) -> Self {
        let mut dice = fastrand::Rng::with_seed(seed ^ 0x6e65_6d65_7369_7300);
        let nodes = scenario.cluster.nodes;
        let mut faults: Vec<Planned> =
            scenario.faults.iter().flat_map(|fault| expand(fault, nodes, &mut dice)).collect();
        faults.sort_by_key(|fault| (fault.from_ms, fault.to_ms));
        for (id, fault) in (0..).zip(&mut faults) {
            fault.id = id;
        }
        Self { faults }
    }

    /// Beginnings and ends in their order; of those at the same moment, ends first.
    pub fn steps(&self) -> Vec<Step> {
        let both = |(fault, planned): (usize, &Planned)| {
            [
                Step { at_ms: planned.from_ms, fault, begins: true },
                Step { at_ms: planned.to_ms, fault, begins: false },
            ]
        };
        let mut steps: Vec<Step> = self.faults.iter().enumerate().flat_map(both).collect();
        steps.sort_by_key(|step| (step.at_ms, step.begins, step.fault));
        steps
    }
}

fn expand(fault: &Fault, nodes: u64, dice: &mut fastrand::Rng) -> Vec<Planned> {
    let ms = |duration: Duration| duration.as_millis() as u64;
    let one = |kind, target, from_ms, lasts_ms: u64, dice| Planned {
        id: 0,
        kind,
        target,
        from_ms,
        to_ms: from_ms + lasts_ms.max(1),
        dice,
    };
    let mut planned = Vec::new();
    for time in 0..fault.repeat {
        let from = ms(fault.at + fault.every * time) + dice.u64(0..=JITTER_MS.min(ms(fault.lasts) / 4));
        let choice = dice.u64(..);
        if let Some(flap) = fault.flap {
            // On and off by halves, always the same cut: links that come and go.
            let (half, mut at) = ((ms(flap) / 2).max(1), 0);
            while at < ms(fault.lasts) {
                planned.push(one(fault.kind, fault.target, from + at, half, choice));
                at += 2 * half;
            }
        } else if fault.rolling {
            let turn = ms(fault.lasts) / nodes.max(1);
            let mut order: Vec<u64> = (1..=nodes).collect();
            fastrand::Rng::with_seed(choice).shuffle(&mut order);
            for (at, node) in (0..).zip(order) {
                let down = (turn as f64 * ROLLING_DOWN) as u64;
                planned.push(one(fault.kind, Role::Node(node), from + at * turn, down, choice));
            }
        } else {
            planned.push(one(fault.kind, fault.target, from, ms(fault.lasts), choice));
        }
    }
    planned
}

impl Planned {
    /// Whom it hits, in a cluster of these nodes with these roles.
    pub fn hit(&self, nodes: &[NodeId], roles: &Roles) -> Hit {
        let targets = self.targets(nodes, roles);
        let others = without(nodes, &targets);
        match self.kind {
            FaultKind::Partition { shape } => cut(shape, nodes, &targets, roles, self.dice),
            FaultKind::Delay { ms, jitter_ms } => late(nodes, targets, Flow::Delay { ms, jitter_ms }),
            FaultKind::Slow { bytes } => late(nodes, targets, Flow::Slow { bytes_per_second: bytes }),
            FaultKind::Loss { percent } => late(nodes, targets, Flow::Loss { percent }),
            FaultKind::Reset => {
                let links = match others.is_empty() {
                    true => Faults::shatter(nodes),
                    false => Faults::partition(&[targets.clone(), others]),
                };
                let links = links.instead_of_silence(Flow::Reset);
                Hit { words: names(&targets), nodes: targets, links, sides: BTreeMap::new() }
            }
            _ => Hit { words: names(&targets), nodes: targets, ..Hit::default() },
        }
    }

    fn targets(&self, nodes: &[NodeId], roles: &Roles) -> Vec<NodeId> {
        let anybody = choose(nodes, 1, self.dice);
        let known = |role: Option<NodeNumber>| role.map(|node| node.0).filter(|node| nodes.contains(node));
        let one = |role| known(role).map_or_else(|| anybody.clone(), |node| vec![node]);
        let with_leader = |side| {
            let placed = one(roles.leader).first().map(|leader| (*leader, side));
            let [smaller, larger] = halves(nodes, placed, self.dice);
            if side == Side::Minority { smaller } else { larger }
        };
        match self.target {
            Role::Leader => one(roles.leader),
            Role::Follower => choose(&without(nodes, &one(roles.leader)), 1, self.dice),
            Role::Coordinator => one(roles.coordinator),
            Role::HintHolder => one(roles.hint_holder),
            Role::Random => anybody,
            Role::All => nodes.to_vec(),
            Role::MajorityWithLeader => with_leader(Side::Majority),
            Role::MinorityWithLeader => with_leader(Side::Minority),
            Role::Node(node) => vec![NodeId(node)],
        }
    }
}

/// Links between the targets and everybody else, both ways; among the targets too.
fn late(nodes: &[NodeId], targets: Vec<NodeId>, flow: Flow) -> Hit {
    let mut links = Faults::none();
    for (from, to) in nodes.iter().flat_map(|from| nodes.iter().map(move |to| (*from, *to))) {
        if from != to && (targets.contains(&from) || targets.contains(&to)) {
            links = links.with(from, to, flow);
        }
    }
    Hit { words: format!("{} {flow}", names(&targets)), nodes: targets, links, sides: BTreeMap::new() }
}

fn cut(shape: Shape, nodes: &[NodeId], targets: &[NodeId], roles: &Roles, dice: u64) -> Hit {
    let leader = roles.leader.map(|node| node.0).filter(|node| nodes.contains(node));
    let in_two = |placed| {
        let groups = halves(nodes, placed, dice);
        Hit {
            links: Faults::partition(&groups),
            sides: sides(&groups, nodes),
            words: groups_in_words(&groups),
            nodes: nodes.to_vec(),
        }
    };
    match shape {
        Shape::Halves => in_two(None),
        Shape::LeaderInMinority => in_two(leader.map(|leader| (leader, Side::Minority))),
        Shape::LeaderInMajority => in_two(leader.map(|leader| (leader, Side::Majority))),
        Shape::MajoritiesRing => {
            let order = choose(nodes, nodes.len(), dice);
            let words = format!("ring {}", names(&order));
            Hit {
                links: Faults::majorities_ring(&order),
                words,
                nodes: nodes.to_vec(),
                sides: BTreeMap::new(),
            }
        }
        Shape::Bridge => {
            let bridge = targets.first().copied().unwrap_or_default();
            let groups = halves(&without(nodes, &[bridge]), None, dice);
            let words = format!("{} | {bridge} between", groups_in_words(&groups));
            Hit {
                links: Faults::bridge(bridge, &groups),
                words,
                nodes: nodes.to_vec(),
                sides: BTreeMap::new(),
            }
        }
        Shape::OneWay => {
            let links = Faults::one_way(targets, &without(nodes, targets));
            Hit {
                links,
                words: format!("nothing from {}", names(targets)),
                nodes: targets.to_vec(),
                sides: BTreeMap::new(),
            }
        }
        Shape::Isolate => {
            let groups = [targets.to_vec(), without(nodes, targets)];
            Hit {
                links: Faults::partition(&groups),
                sides: sides(&groups, nodes),
                words: groups_in_words(&groups),
                nodes: targets.to_vec(),
            }
        }
        Shape::Shatter => {
            let groups: Vec<Vec<NodeId>> = nodes.iter().map(|node| vec![*node]).collect();
            Hit {
                links: Faults::shatter(nodes),
                sides: sides(&groups, nodes),
                words: "everybody alone".into(),
                nodes: nodes.to_vec(),
            }
        }
    }
}

fn sides(groups: &[Vec<NodeId>], nodes: &[NodeId]) -> BTreeMap<String, String> {
    let side = |group: &Vec<NodeId>| if group.len() * 2 > nodes.len() { "majority" } else { "minority" };
    groups
        .iter()
        .flat_map(|group| group.iter().map(|node| (node.to_string(), side(group).to_owned())))
        .collect()
}

fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(",")
}

fn groups_in_words(groups: &[Vec<NodeId>]) -> String {
    groups
        .iter()
        .map(|group| {
            let mut group = group.clone();
            group.sort();
            names(&group)
        })
        .collect::<Vec<_>>()
        .join(" | ")
}

/// Several faults of links at once: on each link the worst holds.
pub fn merged<'a>(all: impl IntoIterator<Item = &'a Faults>) -> Faults {
    let worse = |flow: Flow| match flow {
        Flow::Swallow => 5,
        Flow::Reset => 4,
        Flow::Loss { .. } => 3,
        Flow::Slow { .. } => 2,
        Flow::Delay { .. } => 1,
        Flow::Pass => 0,
    };
    let mut sum = Faults::none();
    for fault in all.into_iter().flat_map(Faults::list) {
        let (from, to) = (fault.from.0, fault.to.0);
        if worse(fault.flow) > worse(sum.flow(kv_lab::Direction::new(from, to))) {
            sum = sum.with(from, to, fault.flow);
        }
    }
    sum
}

/// Nodes that can exchange messages with a majority of the cluster, themselves included, when these do not
/// run.
pub fn with_quorum(nodes: &[NodeId], links: &Faults, down: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let open = |a: NodeId, b: NodeId| {
        !links.flow(kv_lab::Direction::new(a, b)).blocks()
            && !links.flow(kv_lab::Direction::new(b, a)).blocks()
    };
    let up: Vec<NodeId> = nodes.iter().copied().filter(|node| !down.contains(node)).collect();
    let reaches = |node: NodeId| up.iter().filter(|other| **other == node || open(node, **other)).count();
    up.iter().copied().filter(|node| reaches(*node) * 2 > nodes.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::BUILT_IN;
    use proptest::prelude::*;

    fn nodes(count: u64) -> Vec<NodeId> {
        (1..=count).map(NodeId).collect()
    }

    fn planned(kind: FaultKind, target: Role, dice: u64) -> Planned {
        Planned { id: 0, kind, target, from_ms: 0, to_ms: 1, dice }
    }

    fn led_by(node: u64) -> Roles {
        Roles { leader: Some(kv_lab::NodeName(NodeId(node))), ..Roles::default() }
    }

    const SHAPES: [Shape; 8] = [
        Shape::Halves,
        Shape::LeaderInMinority,
        Shape::LeaderInMajority,
        Shape::MajoritiesRing,
        Shape::Bridge,
        Shape::OneWay,
        Shape::Isolate,
        Shape::Shatter,
    ];

    proptest! {
        #[test]
        fn the_same_seed_gives_the_same_schedule_and_every_fault_begins_before_it_ends(seed: u64, which in 0..BUILT_IN.len()) {
            let (name, _) = BUILT_IN[which];
            let scenario = Scenario::find(name).unwrap();
            let schedule = Schedule::of(&scenario, seed);
            prop_assert_eq!(&schedule, &Schedule::of(&scenario, seed));
            prop_assert!(!schedule.faults.is_empty());
            prop_assert!(schedule.faults.iter().all(|fault| fault.from_ms < fault.to_ms));
            let steps = schedule.steps();
            prop_assert_eq!(steps.len(), 2 * schedule.faults.len());
            prop_assert!(steps.windows(2).all(|pair| pair[0].at_ms <= pair[1].at_ms));
            let text = serde_json::to_string(&schedule).unwrap();
            prop_assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
        }

        #[test]
        fn the_leader_is_where_it_is_wanted(dice: u64, count in 3u64..8, leader in 1u64..8) {
            prop_assume!(leader <= count);
            let all = nodes(count);
            for (shape, side) in [(Shape::LeaderInMinority, "minority"), (Shape::LeaderInMajority, "majority")] {
                let hit = planned(FaultKind::Partition { shape }, Role::Random, dice).hit(&all, &led_by(leader));
                let quorate = with_quorum(&all, &hit.links, &BTreeSet::new()).contains(&NodeId(leader));
                if count % 2 == 1 {
                    prop_assert_eq!(hit.sides[&format!("n{leader}")].as_str(), side);
                    prop_assert_eq!(quorate, side == "majority");
                }
            }
            let hit = planned(FaultKind::Kill, Role::Follower, dice).hit(&all, &led_by(leader));
            prop_assert!(!hit.nodes.contains(&NodeId(leader)) && hit.nodes.len() == 1);
            let hit = planned(FaultKind::Pause, Role::MinorityWithLeader, dice).hit(&all, &led_by(leader));
            prop_assert!(hit.nodes.contains(&NodeId(leader)) && hit.nodes.len() * 2 <= all.len());
        }

        #[test]
        fn every_cut_cuts_something_and_only_between_nodes_that_are_there(dice: u64, count in 4u64..8, at in 0usize..8) {
            let all = nodes(count);
            let hit = planned(FaultKind::Partition { shape: SHAPES[at] }, Role::Random, dice).hit(&all, &Roles::default());
            prop_assert!(hit.links.swallowed() > 0, "{:?}", SHAPES[at]);
            prop_assert!(hit.links.check(&all).is_ok());
            prop_assert!(!hit.words.is_empty());
        }
    }

    #[test]
    fn the_worst_of_several_faults_holds_on_each_link() {
        let all = nodes(3);
        let slow = late(&all, vec![NodeId(1)], Flow::Delay { ms: 5, jitter_ms: 1 });
        let cut = Faults::isolate(NodeId(1), &all);
        assert_eq!(merged([&slow.links, &cut]), cut);
        assert_eq!(merged([&cut, &slow.links]), cut);
        let other = Faults::none().with(NodeId(2), NodeId(3), Flow::Reset);
        assert_eq!(merged([&slow.links, &other]).list().len(), 5);
        assert!(merged([]).is_none());
    }

    #[test]
    fn a_quorum_needs_both_directions_and_running_nodes() {
        let all = nodes(5);
        let quorate = |links: &Faults, down: &[u64]| {
            let down = down.iter().copied().map(NodeId).collect();
            with_quorum(&all, links, &down).into_iter().map(|node| node.0).collect::<Vec<_>>()
        };
        assert_eq!(quorate(&Faults::none(), &[]), [1, 2, 3, 4, 5]);
        assert_eq!(quorate(&Faults::none(), &[1, 2]), [3, 4, 5]);
        assert!(quorate(&Faults::none(), &[1, 2, 3]).is_empty());
        assert_eq!(quorate(&Faults::one_way(&all[..1], &all[1..]), &[]), [2, 3, 4, 5]);
        assert_eq!(quorate(&Faults::majorities_ring(&all), &[]), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_flapping_cut_is_the_same_each_time_and_a_rolling_restart_meets_everybody_once() {
        let flapping = Scenario::find("flapping").unwrap();
        let schedule = Schedule::of(&flapping, 3);
        let cuts: Vec<_> = schedule
            .faults
            .iter()
            .filter(|fault| matches!(fault.kind, FaultKind::Partition { .. }))
            .collect();
        assert!(cuts.len() >= 4);
        assert!(cuts.windows(2).filter(|pair| pair[0].dice == pair[1].dice).count() >= 3);
        let rolling = Schedule::of(&Scenario::find("rolling-restart").unwrap(), 3);
        let mut hit: Vec<_> = rolling
            .faults
            .iter()
            .filter_map(|fault| match fault.target {
                Role::Node(node) => Some(node),
                _ => None,
            })
            .collect();
        hit.sort();
        hit.dedup();
        assert_eq!(hit, [1, 2, 3, 4, 5]);
    }
}
