//! Whether each node answered while links between nodes were cut. Over all nodes together one that is silent
//! disappears among those that are not, so each is judged by itself. Pure.

use kv_check::Operation;
use kv_types::NodeId;
use kv_workload::CONTENDED;

use std::time::Duration;

use crate::nemesis::{Done, State};
use crate::scenario::FaultKind;

/// How long the side of a cut that has a majority may take until it serves a strong namespace: six election
/// timeouts. One until the leader is missed, one for an election, and the others for elections that are split
/// or begun by who cannot win.
pub(super) const ELECTED_WITHIN: Duration = Duration::from_secs(3);
/// Shorter spans show too little of a side.
pub(super) const LONG_ENOUGH: Duration = Duration::from_secs(1);
/// The side that is to serve.
const MAJORITY: &str = "majority";

/// How a node answered while something was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answered {
    /// The node.
    pub(super) node: NodeId,
    /// Operations that it answered,
    pub(super) answered: u64,
    /// of so many.
    pub(super) asked: u64,
}

impl Answered {
    /// As a part, from 0 to 1.
    pub(super) fn share(&self) -> f64 {
        if self.asked == 0 { 0.0 } else { self.answered as f64 / self.asked as f64 }
    }
}

/// When links between nodes were certainly cut.
pub(super) fn cuts(faults: &[Done]) -> Vec<(u64, u64)> {
    let cut = |done: &&Done| done.proven && matches!(done.fault.kind, FaultKind::Partition { .. });
    faults.iter().filter(cut).map(|done| (done.from, done.until)).collect()
}

/// How each node answered the operations on a namespace that were called while something was cut, the worst
/// first, who was not asked last. Those during which it was down or stood still do not count, and a node
/// without any others is left out.
pub(super) fn by_node(
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
    // Of who was not asked nothing is known: that is not the worst of others that were.
    all.sort_by(|a, b| {
        let asked = (a.asked == 0).cmp(&(b.asked == 0));
        asked.then(a.share().total_cmp(&b.share())).then(a.node.cmp(&b.node))
    });
    all
}

/// A span of a cut in which its side with a majority has to serve strong namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owed {
    /// Its first nanosecond.
    pub(super) from: u64,
    /// The first nanosecond after it.
    pub(super) until: u64,
    /// The nodes of that side.
    pub(super) nodes: Vec<String>,
}

/// When sides with a majority have to serve: during cuts that were proven and had such a side, while no other
/// fault was in force, from when a leader must be there to where an operation can still end before the cut
/// does. Spans that are too short are left out.
pub(super) fn owed(faults: &[Done], deadline: Duration) -> Vec<Owed> {
    let ns = |span: Duration| span.as_nanos() as u64;
    let mut all = Vec::new();
    for (at, done) in faults.iter().enumerate() {
        if !done.proven || !matches!(done.fault.kind, FaultKind::Partition { .. }) {
            continue;
        }
        let mut others = faults.iter().enumerate().filter(|(other, _)| *other != at);
        if others.any(|(_, other)| other.from <= done.until && done.from <= other.to) {
            continue;
        }
        let nodes = done.sides.iter().filter(|(_, side)| *side == MAJORITY);
        let nodes: Vec<String> = nodes.map(|(node, _)| node.clone()).collect();
        let from = done.from.saturating_add(ns(ELECTED_WITHIN));
        let until = done.until.saturating_sub(ns(deadline));
        if !nodes.is_empty() && until >= from.saturating_add(ns(LONG_ENOUGH)) {
            all.push(Owed { from, until, nodes });
        }
    }
    all
}

/// How operations on a namespace were answered where and when that was owed: (answered, asked). Who lost a
/// race was served.
pub(super) fn by_majority(ns: &str, operations: &[Operation], owed: &[Owed]) -> (u64, u64) {
    let was_owed = |op: &&Operation| {
        owed.iter().any(|span| (span.from..span.until).contains(&op.call) && span.nodes.contains(&op.node))
    };
    let fair = |op: &&Operation| op.err.as_deref() != Some(CONTENDED);
    let mine = operations.iter().filter(|op| op.ns == ns).filter(fair).filter(was_owed);
    mine.fold((0, 0), |(answered, asked), op| (answered + u64::from(op.answered()), asked + 1))
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
        assert_eq!(all, [node(1, 1, 2), node(3, 0, 0)], "n2 was asked only while it was down, n3 not at all");
    }

    const S: u64 = 1_000_000_000;

    /// A cut of n1,n2 | n3,n4,n5 that was in force from one second to another.
    fn cut_in_two(from: u64, until: u64) -> Done {
        let side = |node: u64| if node < 3 { "minority" } else { "majority" };
        Done {
            fault: Planned {
                id: 0,
                kind: FaultKind::Partition { shape: Shape::Halves },
                target: Role::Random,
                from_ms: 0,
                to_ms: 1,
                dice: 0,
            },
            nodes: Vec::new(),
            words: String::new(),
            sides: (1..=5).map(|node| (NodeId(node).to_string(), side(node).to_owned())).collect(),
            begun: from * S,
            from: from * S,
            until: until * S,
            to: until * S + 1,
            proven: true,
        }
    }

    #[test]
    fn a_majority_owes_answers_once_it_can_have_a_leader_and_while_nothing_else_is_broken() {
        let second = Duration::from_secs(1);
        let spans = |faults: &[Done]| {
            owed(faults, second).iter().map(|span| (span.from / S, span.until / S)).collect::<Vec<_>>()
        };
        let cut = cut_in_two(10, 20);
        assert_eq!(spans(std::slice::from_ref(&cut)), [(13, 19)]);
        assert_eq!(owed(std::slice::from_ref(&cut), second)[0].nodes, ["n3", "n4", "n5"]);
        assert_eq!(spans(&[cut_in_two(10, 15)]), [(13, 14)], "a second is enough");
        assert_eq!(spans(&[Done { until: 15 * S - 1, ..cut_in_two(10, 15) }]), []);
        assert_eq!(spans(&[Done { proven: false, ..cut.clone() }]), []);
        assert_eq!(spans(&[Done { sides: BTreeMap::new(), ..cut.clone() }]), [], "a ring has no sides");
        let mut pause = cut.clone();
        (pause.fault.kind, pause.sides) = (FaultKind::Pause, BTreeMap::new());
        for (from, to, expected) in [(1, 9, 1), (5, 10, 0), (12, 13, 0), (20, 25, 0), (21, 25, 1)] {
            let other = Done { from: from * S, until: to * S, to: to * S, proven: false, ..pause.clone() };
            assert_eq!(spans(&[cut.clone(), other]).len(), expected, "{from} {to}");
        }
    }

    #[test]
    fn a_majority_is_counted_where_and_when_it_owes() {
        let owed = [Owed { from: 100, until: 200, nodes: vec!["n3".into(), "n4".into()] }];
        let asked = [
            (3, 99, false),
            (3, 100, true),
            (4, 150, false),
            (4, 199, true),
            (4, 200, false),
            (1, 150, false),
        ];
        assert_eq!(by_majority("cart", &operations(&asked), &owed), (2, 3));
        assert_eq!(by_majority("bank", &operations(&asked), &owed), (0, 0));
    }

    #[test]
    fn only_a_cut_that_was_proven_counts_and_only_while_it_was_whole() {
        let done = |kind, proven| Done {
            fault: Planned { id: 0, kind, target: Role::Random, from_ms: 0, to_ms: 1, dice: 0 },
            nodes: Vec::new(),
            words: String::new(),
            sides: BTreeMap::new(),
            begun: 9,
            from: 10,
            until: 20,
            to: 25,
            proven,
        };
        let ring = FaultKind::Partition { shape: Shape::MajoritiesRing };
        assert_eq!(cuts(&[done(ring, true), done(ring, false), done(FaultKind::Kill, true)]), [(10, 20)]);
    }
}
