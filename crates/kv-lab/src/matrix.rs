//! Which bytes may pass between which nodes. Partitions, isolation and one-way cuts are all the same thing, a flow for
//! every *direction* between two nodes, so the proxies know one word (their flow) and every fault is data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use kv_types::NodeId;
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

/// A direction between two nodes: the bytes that `from` sends to `to`, whoever opened the connection.
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
    /// They do not, and nobody is told: connections stay open and fall silent.
    Swallow,
    /// They arrive late, in order.
    Delay {
        /// By so many milliseconds,
        ms: u64,
        /// give or take up to so many.
        jitter_ms: u64,
    },
}

impl Flow {
    /// Whether nothing arrives.
    pub fn swallows(self) -> bool {
        self == Self::Swallow
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("open"),
            Self::Swallow => f.write_str("cut"),
            Self::Delay { ms, jitter_ms } => write!(f, "delay {ms}ms±{jitter_ms}ms"),
        }
    }
}

/// A fault on one direction, as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The sender.
    pub from: NodeName,
    /// The receiver.
    pub to: NodeName,
    /// What happens to its bytes.
    pub flow: Flow,
}

/// The fault state of a network: the flow of every direction that does not simply pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Faults(BTreeMap<Direction, Flow>);

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
        let others = nodes.iter().copied().filter(|other| *other != node).collect();
        Self::partition(&[vec![node], others])
    }

    /// The same, and this flow from one node to another.
    pub fn with(mut self, from: NodeId, to: NodeId, flow: Flow) -> Self {
        let direction = Direction::new(from, to);
        match flow {
            Flow::Pass => self.0.remove(&direction),
            _ => self.0.insert(direction, flow),
        };
        self
    }

    /// The flow of a direction.
    pub fn flow(&self, direction: Direction) -> Flow {
        self.0.get(&direction).copied().unwrap_or_default()
    }

    /// Every fault, in order.
    pub fn list(&self) -> Vec<Fault> {
        let fault = |(way, flow): (&Direction, &Flow)| Fault {
            from: NodeName(way.from),
            to: NodeName(way.to),
            flow: *flow,
        };
        self.0.iter().map(fault).collect()
    }

    /// Directions on which nothing passes.
    pub fn swallowed(&self) -> usize {
        self.0.values().filter(|flow| flow.swallows()).count()
    }

    /// Refuses names of nodes that are not there.
    pub fn check(&self, nodes: &[NodeId]) -> Result<(), LabError> {
        let ends = self.0.keys().flat_map(|way| [way.from, way.to]);
        match ends.into_iter().find(|node| !nodes.contains(node)) {
            Some(node) => Err(LabError::UnknownNode { node, nodes: nodes.len() as u64 }),
            None => match self.0.keys().find(|way| way.from == way.to) {
                Some(way) => Err(LabError::Usage(format!("{} has no link to itself", way.from))),
                None => Ok(()),
            },
        }
    }
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
