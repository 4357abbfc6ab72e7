//! Whether each node answered while links between nodes were cut. Over all nodes together one that is silent disappears among
//! those that are not, so each is judged by itself. Pure.

use kv_check::Operation;
use kv_types::NodeId;

use crate::nemesis::{Done, State};
use crate::scenario::FaultKind;

/// How a node answered while something was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The node.
    pub node: NodeId,
    /// Operations that it answered,
    pub answered: u64,
    /// of so many.
    pub asked: u64,
}

impl Answered {
    /// As a part, from 0 to 1.
    pub fn share(&self) -> f64 {
        if self.asked == 0 { 0.0 } else { self.answered as f64 / self.asked as f64 }
    }
}

/// When links between nodes were certainly cut.
pub fn cuts(faults: &[Done]) -> Vec<(u64, u64)> {
    let cut = |done: &&Done| done.proven && matches!(done.fault.kind, FaultKind::Partition { .. });
    faults.iter().filter(cut).map(|done| (done.from, done.until)).collect()
}

/// How each node answered the operations on a namespace that were called while something was cut, the worst first. Those
/// during which it was down or stood still do not count, and a node without any others is left out.
pub fn by_node(
    ns: &str,
    operations: &[Operation],
    nodes: &[NodeId],
    cuts: &[(u64, u64)],
    states: &[State],
) -> Vec<Answered> {
    let cut = |moment: u64| cuts.iter().any(|(from, until)| (*from..*until).contains(&moment));
    let mut all = Vec::new();
    for node in nodes {
        let down = down(*node, states);
        let up = |op: &&Operation| {
            let ret = op.ret.unwrap_or(op.call);
            !down.iter().any(|(from, to)| op.call < *to && *from <= ret)
        };
        let name = node.to_string();
        let mine = operations.iter().filter(|op| op.ns == ns && op.node == name && cut(op.call)).filter(up);
        let (mut answered, mut asked) = (0, 0);
        for op in mine {
            asked += 1;
            answered += u64::from(op.answered());
        }
        if asked > 0 || down.is_empty() {
            all.push(Answered { node: *node, answered, asked });
        }
    }
    all.sort_by(|a, b| a.share().total_cmp(&b.share()).then(a.node.cmp(&b.node)));
    all
}

/// When a node was down or stood still.
fn down(node: NodeId, states: &[State]) -> Vec<(u64, u64)> {
    let until = |at: usize| states.get(at + 1).map_or(u64::MAX, |next| next.at);
    let states = states.iter().enumerate().filter(|(_, state)| state.down.contains(&node));
    states.map(|(at, state)| (state.at, until(at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Planned;
    use crate::scenario::{Role, Shape};
    use kv_check::{Event, EventType, Json, Process, operation};
    use std::collections::{BTreeMap, BTreeSet};

    /// (node, call, answered); each takes 5.
    fn operations(asked: &[(u64, u64, bool)]) -> Vec<Operation> {
        let mut events = Vec::new();
        for (process, (node, call, answered)) in (0..).zip(asked) {
            let ret = if *answered { EventType::Ok } else { EventType::Info };
            for (time, kind) in [(*call, EventType::Invoke), (call + 5, ret)] {
                let mut event =
                    Event::new(time, Process::Client(process), kind, "write".into(), Json::from(process));
                (event.ns, event.key) = (Some("cart".into()), Some("k".into()));
                event.node = Some(NodeId(*node).to_string());
                events.push(event);
            }
        }
        operation::pair(&kv_check::history::arrange(events)).unwrap()
    }

    fn node(number: u64, answered: u64, asked: u64) -> Answered {
        Answered { node: NodeId(number), answered, asked }
    }

    #[test]
    fn one_silent_node_is_not_hidden_by_the_others() {
        let nodes: Vec<NodeId> = (1..=3).map(NodeId).collect();
        let asked = [
            (1, 100, true),
            (1, 150, true),
            (2, 120, false),
            (3, 130, true),
            (3, 140, false),
            (2, 300, true),
        ];
        let all = by_node("cart", &operations(&asked), &nodes, &[(100, 200)], &[]);
        assert_eq!(all, [node(2, 0, 1), node(3, 1, 2), node(1, 2, 2)]);
        assert!(
            by_node("bank", &operations(&asked), &nodes, &[(100, 200)], &[]).iter().all(|one| one.asked == 0)
        );
    }

    #[test]
    fn what_meets_a_node_that_is_down_does_not_count() {
        let nodes: Vec<NodeId> = (1..=3).map(NodeId).collect();
        let states = [
            State::default(),
            State { at: 118, down: BTreeSet::from([NodeId(1), NodeId(2)]), ..State::default() },
            State { at: 160, down: BTreeSet::from([NodeId(2)]), ..State::default() },
        ];
        // Called before it went down and caught by it; called while it was down; called afterwards.
        let asked = [(1, 115, false), (1, 130, false), (1, 170, true), (1, 180, false), (2, 170, false)];
        let all = by_node("cart", &operations(&asked), &nodes, &[(100, 200)], &states);
        assert_eq!(all, [node(3, 0, 0), node(1, 1, 2)], "n2 was asked only while it was down, n3 not at all");
    }

    #[test]
    fn only_a_cut_that_was_proven_counts_and_only_while_it_was_whole() {
        let done = |kind, proven| Done {
            fault: Planned { id: 0, kind, target: Role::Random, from_ms: 0, to_ms: 1, dice: 0 },
            nodes: Vec::new(),
            words: String::new(),
            sides: BTreeMap::new(),
            from: 10,
            until: 20,
            to: 25,
            proven,
        };
        let ring = FaultKind::Partition { shape: Shape::MajoritiesRing };
        assert_eq!(cuts(&[done(ring, true), done(ring, false), done(FaultKind::Kill, true)]), [(10, 20)]);
    }
}
