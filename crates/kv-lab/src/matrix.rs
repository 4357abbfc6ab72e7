//! Which bytes may pass between which nodes. Partitions, isolation and one-way cuts are all the same thing, a
//! flow for every *direction* between two nodes, so the planes know one word (their flow) and every fault is
//! data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use kv_types::{NodeId, counted};
use serde::{Deserialize, Serialize};

use crate::LabError;

/// A node in JSON: `"n1"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(pub NodeId);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NodeName {
    type Err = kv_types::ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl TryFrom<String> for NodeName {
    type Error = kv_types::ParseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.to_string()
    }
}

/// A direction between two nodes: the bytes that `from` sends to `to`, whichever of them opened the
/// connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Direction {
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
}

impl Direction {
    /// From one node to another.
    pub fn new(from: NodeId, to: NodeId) -> Self {
        Self { from, to }
    }

    /// The way back.
    pub fn reversed(self) -> Self {
        Self { from: self.to, to: self.from }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)
    }
}

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Flow {
    /// They arrive.
    #[default]
    Pass,
    /// They do not, and neither end is told: connections stay open and fall silent.
    Swallow,
    /// They arrive late, in order.
    Delay {
        /// By so many milliseconds,
        ms: u64,
        /// give or take up to so many.
        jitter_ms: u64,
    },
    /// They arrive at this rate; what the sender has to say beyond it waits.
    Slow {
        /// The rate.
        bytes_per_second: u64,
    },
    /// Connections that carry them are reset, and so is every new one at once: a node that dials learns that
    /// it failed, but not whether what was sent before arrived. A connection carries both directions, so this
    /// ends the way back too.
    Reset,
    /// Packets are lost at random; TCP sends them again. Only where there are packets (see [`crate::Plane`]).
    Loss {
        /// How many of a hundred.
        percent: u8,
    },
}

impl Flow {
    /// Whether nothing arrives and neither end is told.
    pub fn swallows(self) -> bool {
        self == Self::Swallow
    }

    /// Whether connections are reset.
    pub fn resets(self) -> bool {
        self == Self::Reset
    }

    /// Whether nothing arrives.
    pub fn blocks(self) -> bool {
        self.swallows() || self.resets()
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("open"),
            Self::Swallow => f.write_str("cut"),
            Self::Delay { ms, jitter_ms } => write!(f, "delay {ms}ms±{jitter_ms}ms"),
            Self::Slow { bytes_per_second } => {
                write!(f, "{} per second", counted(*bytes_per_second, "byte", "bytes"))
            }
            Self::Reset => f.write_str("reset"),
            Self::Loss { percent } => write!(f, "loss of {percent}%"),
        }
    }
}

/// A fault on one direction, as listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The sender.
    pub from: NodeName,
    /// The receiver.
    pub to: NodeName,
    /// What happens to its bytes.
    pub flow: Flow,
}

/// Which side of a cut a node shall be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The smaller one.
    Minority,
    /// The larger one.
    Majority,
}

/// The fault state of a network: the flow of every direction that does not simply pass, and the nodes without
/// a carrier.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Faults {
    flows: BTreeMap<Direction, Flow>,
    unplugged: BTreeSet<NodeId>,
}

impl Faults {
    /// A whole network.
    pub fn none() -> Self {
        Self::default()
    }

    /// A network partition: nothing passes between nodes of different groups.
    pub fn partition(groups: &[Vec<NodeId>]) -> Self {
        let mut faults = Self::default();
        for (at, group) in groups.iter().enumerate() {
            for other in groups.iter().skip(at + 1) {
                for (a, b) in group.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
                    faults = faults.with(a, b, Flow::Swallow).with(b, a, Flow::Swallow);
                }
            }
        }
        faults
    }

    /// One node against all the others.
    pub fn isolate(node: NodeId, nodes: &[NodeId]) -> Self {
        Self::partition(&[vec![node], without(nodes, &[node])])
    }

    /// Nothing that any of these sends reaches any of those; what those send still arrives.
    pub fn one_way(from: &[NodeId], to: &[NodeId]) -> Self {
        Self::none().with_all(from, to, Flow::Swallow)
    }

    /// Every node against every other.
    pub fn shatter(nodes: &[NodeId]) -> Self {
        Self::none().with_all(nodes, nodes, Flow::Swallow)
    }

    /// Two halves that see nothing of each other, and one node in between that both see.
    pub fn bridge(node: NodeId, halves: &[Vec<NodeId>; 2]) -> Self {
        Self::partition(&halves.each_ref().map(|half| without(half, &[node])))
    }

    /// Every node sees a majority, and no two see the same: in the order given, each sees its neighbours on a
    /// ring. With fewer than four nodes the neighbours are everybody, and nothing is cut.
    pub fn majorities_ring(nodes: &[NodeId]) -> Self {
        let count = nodes.len();
        let reach = (count / 2).div_ceil(2);
        let mut faults = Self::none();
        for (i, a) in nodes.iter().enumerate() {
            for (j, b) in nodes.iter().enumerate() {
                let apart = i.abs_diff(j);
                if apart.min(count - apart) > reach {
                    faults = faults.with(*a, *b, Flow::Swallow);
                }
            }
        }
        faults
    }

    /// The same, and this flow from each of these to each of those.
    pub fn with_all(self, from: &[NodeId], to: &[NodeId], flow: Flow) -> Self {
        let ways = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
        ways.filter(|(from, to)| from != to).fold(self, |faults, (from, to)| faults.with(from, to, flow))
    }

    /// The same faults with another flow wherever nothing arrives: a partition by resets in place of silence,
    /// say.
    pub fn instead_of_silence(mut self, flow: Flow) -> Self {
        self.flows.values_mut().filter(|found| found.swallows()).for_each(|found| *found = flow);
        self.flows.retain(|_, flow| *flow != Flow::Pass);
        self
    }

    /// The same, and this node without a carrier: its cable to the switch is out.
    pub fn with_unplugged(mut self, node: NodeId) -> Self {
        self.unplugged.insert(node);
        self
    }

    /// Nodes without a carrier.
    pub fn unplugged(&self) -> &BTreeSet<NodeId> {
        &self.unplugged
    }

    /// Whether there are none.
    pub fn is_none(&self) -> bool {
        *self == Self::none()
    }

    /// The same, and this flow from one node to another.
    pub fn with(mut self, from: NodeId, to: NodeId, flow: Flow) -> Self {
        let direction = Direction::new(from, to);
        match flow {
            Flow::Pass => self.flows.remove(&direction),
            _ => self.flows.insert(direction, flow),
        };
        self
    }

    /// These and those: a direction on which nothing passes stays so, otherwise the later one counts.
    pub fn and(mut self, later: &Self) -> Self {
        for (direction, flow) in &later.flows {
            if !self.flow(*direction).blocks() {
                self.flows.insert(*direction, *flow);
            }
        }
        self.unplugged.extend(&later.unplugged);
        self
    }

    /// Whether both are about the same directions.
    pub fn is_about_the_same(&self, other: &Self) -> bool {
        self.flows.keys().eq(other.flows.keys()) && self.unplugged == other.unplugged
    }

    /// The flow of a direction.
    pub fn flow(&self, direction: Direction) -> Flow {
        self.flows.get(&direction).copied().unwrap_or_default()
    }

    /// Every fault, in order.
    pub fn list(&self) -> Vec<Fault> {
        let fault = |(way, flow): (&Direction, &Flow)| Fault {
            from: NodeName(way.from),
            to: NodeName(way.to),
            flow: *flow,
        };
        self.flows.iter().map(fault).collect()
    }

    /// Directions on which nothing passes.
    pub fn swallowed(&self) -> usize {
        self.flows.values().filter(|flow| flow.swallows()).count()
    }

    /// Refuses names of nodes that are not there.
    pub fn check(&self, nodes: &[NodeId]) -> Result<(), LabError> {
        let ends = self.flows.keys().flat_map(|way| [way.from, way.to]).chain(self.unplugged.iter().copied());
        match ends.into_iter().find(|node| !nodes.contains(node)) {
            Some(node) => Err(LabError::UnknownNode { node, nodes: nodes.len() as u64 }),
            None => match self.flows.keys().find(|way| way.from == way.to) {
                Some(way) => Err(LabError::Usage(format!("{} has no link to itself", way.from))),
                None => Ok(()),
            },
        }
    }
}

/// Two halves, shuffled by the seed: the smaller first, and with an even number of nodes the halves are
/// equal. If a node is named, it is on that side: with the leader once on either side a cut tests the
/// election and once the rest.
pub fn halves(nodes: &[NodeId], placed: Option<(NodeId, Side)>, seed: u64) -> [Vec<NodeId>; 2] {
    let mut shuffled = nodes.to_vec();
    fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
    if let Some((node, side)) = placed {
        // stable: the rest stays shuffled
        shuffled.sort_by_key(|other| (*other == node) == (side == Side::Majority));
    }
    let larger = shuffled.split_off(shuffled.len() / 2);
    [shuffled, larger]
}

/// Some of the nodes, chosen by the seed, in the seed's order.
pub fn choose(nodes: &[NodeId], count: usize, seed: u64) -> Vec<NodeId> {
    let mut shuffled = nodes.to_vec();
    fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
    shuffled.truncate(count);
    shuffled
}

/// The nodes that are not among those.
pub fn without(nodes: &[NodeId], those: &[NodeId]) -> Vec<NodeId> {
    nodes.iter().copied().filter(|node| !those.contains(node)).collect()
}

/// Reads groups of nodes as they are typed: `n1,n2 / n3,n4,n5`.
pub fn parse_groups(text: &str) -> Result<Vec<Vec<NodeId>>, LabError> {
    let bad = |why: String| LabError::Usage(format!("{why}; groups look like `n1,n2 / n3,n4,n5`"));
    let mut seen = BTreeSet::new();
    let mut groups = Vec::new();
    for group in text.split('/') {
        let mut members = Vec::new();
        for name in group.split([',', ' ']).filter(|name| !name.is_empty()) {
            let node: NodeId = name.parse().map_err(|error| bad(format!("{error}")))?;
            if !seen.insert(node) {
                return Err(bad(format!("{node} is named twice")));
            }
            members.push(node);
        }
        groups.push(members);
    }
    if groups.len() < 2 || groups.iter().any(Vec::is_empty) {
        return Err(bad("a partition needs two groups or more, and none of them empty".into()));
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn a_partition_cuts_both_ways_between_groups_and_nothing_within() {
        let faults = Faults::partition(&[nodes(&[1, 2]), nodes(&[3, 4, 5])]);
        assert_eq!(faults.swallowed(), 12);
        let flow = |from, to| faults.flow(Direction::new(NodeId(from), NodeId(to)));
        assert_eq!((flow(1, 3), flow(3, 1), flow(5, 2)), (Flow::Swallow, Flow::Swallow, Flow::Swallow));
        assert_eq!((flow(1, 2), flow(4, 5)), (Flow::Pass, Flow::Pass));
        assert_eq!(Faults::partition(&[nodes(&[1]), nodes(&[2]), nodes(&[3])]).swallowed(), 6);
    }

    #[test]
    fn isolation_is_a_partition_of_one() {
        let all = nodes(&[1, 2, 3]);
        assert_eq!(Faults::isolate(NodeId(2), &all), Faults::partition(&[nodes(&[2]), nodes(&[1, 3])]));
    }

    #[test]
    fn one_way_cuts_leave_the_way_back_open() {
        let faults = Faults::none().with(NodeId(1), NodeId(3), Flow::Swallow);
        let way = Direction::new(NodeId(1), NodeId(3));
        assert_eq!((faults.flow(way), faults.flow(way.reversed())), (Flow::Swallow, Flow::Pass));
        assert_eq!(faults.with(NodeId(1), NodeId(3), Flow::Pass), Faults::none());
    }

    /// Whom a node sees, itself included.
    fn sees(faults: &Faults, node: u64, all: &[NodeId]) -> Vec<u64> {
        let open = |other: &&NodeId| faults.flow(Direction::new(NodeId(node), **other)) == Flow::Pass;
        all.iter().filter(open).map(|other| other.0).collect()
    }

    #[test]
    fn on_a_ring_everybody_sees_another_majority() {
        for count in 4..=9 {
            let all: Vec<_> = (1..=count).map(NodeId).collect();
            let faults = Faults::majorities_ring(&all);
            let seen: BTreeSet<_> = (1..=count).map(|node| sees(&faults, node, &all)).collect();
            assert_eq!(seen.len() as u64, count, "{seen:?}");
            assert!(seen.iter().all(|seen| seen.len() as u64 > count / 2), "{seen:?}");
            assert!(
                faults.list().iter().all(|cut| faults.flow(Direction::new(cut.to.0, cut.from.0)).swallows())
            );
        }
        assert_eq!(
            sees(&Faults::majorities_ring(&nodes(&[3, 1, 4, 2, 5])), 3, &nodes(&[1, 2, 3, 4, 5])),
            [1, 3, 5]
        );
        assert!(Faults::majorities_ring(&nodes(&[1, 2, 3])).is_none());
    }

    #[test]
    fn a_bridge_is_seen_by_both_halves() {
        let all = nodes(&[1, 2, 3, 4, 5]);
        let faults = Faults::bridge(NodeId(3), &[nodes(&[1, 2]), nodes(&[3, 4, 5])]);
        assert_eq!(sees(&faults, 1, &all), [1, 2, 3]);
        assert_eq!(sees(&faults, 3, &all), [1, 2, 3, 4, 5]);
        assert_eq!(sees(&faults, 5, &all), [3, 4, 5]);
    }

    #[test]
    fn halves_put_a_node_on_the_side_that_was_asked_for() {
        let all = nodes(&[1, 2, 3, 4, 5]);
        let mut others = BTreeSet::new();
        for seed in 0..50 {
            for (side, place) in [(Side::Minority, 0), (Side::Majority, 1)] {
                let halves = halves(&all, Some((NodeId(4), side)), seed);
                assert_eq!(halves.each_ref().map(Vec::len), [2, 3]);
                assert!(halves[place].contains(&NodeId(4)), "{halves:?}");
                others.insert(halves[0].clone());
            }
        }
        assert!(others.len() > 10, "{others:?}");
        assert_eq!(halves(&all, None, 7), halves(&all, None, 7));
        assert_eq!(halves(&nodes(&[1, 2]), None, 1).map(|half| half.len()), [1, 1]);
        assert_eq!(choose(&all, 2, 3).len(), 2);
    }

    #[test]
    fn silence_can_be_replaced_and_sets_cut_one_way() {
        let one_way = Faults::one_way(&nodes(&[1]), &nodes(&[1, 2, 3]));
        assert_eq!(one_way.swallowed(), 2);
        let reset = one_way.instead_of_silence(Flow::Reset);
        assert_eq!((reset.swallowed(), reset.flow(Direction::new(NodeId(1), NodeId(3)))), (0, Flow::Reset));
        assert!(reset.instead_of_silence(Flow::Pass).flow(Direction::new(NodeId(1), NodeId(3))).resets());
        assert_eq!(Faults::shatter(&nodes(&[1, 2, 3])).swallowed(), 6);
    }

    #[test]
    fn groups_are_read_as_typed() {
        let expected = vec![nodes(&[1, 2]), nodes(&[3, 4, 5])];
        assert_eq!(parse_groups("n1,n2 / n3,n4,n5").unwrap(), expected);
        assert_eq!(parse_groups("1 2/3, 4 ,5").unwrap(), expected);
        for bad in ["n1,n2", "n1 /", "n1 / n1", "n1 / node2", ""] {
            assert!(parse_groups(bad).unwrap_err().to_string().contains("n1,n2 / n3,n4,n5"), "{bad}");
        }
    }

    #[test]
    fn faults_on_nodes_that_are_not_there_are_refused() {
        let all = nodes(&[1, 2]);
        assert!(Faults::partition(&[nodes(&[1]), nodes(&[7])]).check(&all).is_err());
        assert!(Faults::none().with(NodeId(1), NodeId(1), Flow::Swallow).check(&all).is_err());
        assert!(Faults::none().with_unplugged(NodeId(3)).check(&all).is_err());
        assert!(Faults::isolate(NodeId(1), &all).check(&all).is_ok());
    }

    #[test]
    fn names_and_flows_survive_json() {
        let fault = Fault {
            from: NodeName(NodeId(1)),
            to: NodeName(NodeId(3)),
            flow: Flow::Delay { ms: 80, jitter_ms: 20 },
        };
        let text = serde_json::to_string(&fault).unwrap();
        assert!(text.contains(r#""from":"n1""#), "{text}");
        assert_eq!(serde_json::from_str::<Fault>(&text).unwrap(), fault);
    }
}
