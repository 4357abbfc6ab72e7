//! What a namespace owes while a fault lets nodes and links live and only starves them of room, of speed, or
//! of a disk that answers: it is served all the same, or refuses by name and at once; and a leader whose disk
//! hangs is replaced.

use std::time::Duration;

use kv_check::judge::{Property, Ruling};
use kv_check::{Operation, Outcome};
use kv_types::NodeId;
use kv_workload::CONTENDED;

use super::answers;
use super::facts::{Facts, STOOD_STILL, milliseconds};
use crate::judge_plan::ENOUGH;
use crate::nemesis::Done;
use crate::recorded::Recorded;
use crate::scenario::{FaultKind, Scenario};

/// Of what was asked and neither answered nor lost to another client, so much has to be refused definitely.
const DEFINITE: f64 = 0.9;

/// When nodes were certainly starved, from so long after it began to so long before it ended.
fn spans(faults: &[Done], after: Duration, before: Duration) -> Vec<(u64, u64)> {
    let ns = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    let starved = faults.iter().filter(|done| done.proven && done.fault.kind.starves());
    let owed =
        starved.map(|done| (done.from.saturating_add(ns(after)), done.until.saturating_sub(ns(before))));
    owed.filter(|(from, until)| from < until).collect()
}

/// Nodes whose disks never hung.
fn unhung(faults: &[Done], nodes: &[NodeId]) -> Vec<NodeId> {
    let hung = |node: &NodeId| {
        let mut hangs = faults.iter().filter(|done| done.fault.kind == FaultKind::DiskHang);
        hangs.any(|done| done.nodes.iter().any(|hung| hung.0 == *node))
    };
    nodes.iter().copied().filter(|node| !hung(node)).collect()
}

/// Every node is served in this namespace; nothing where that is not demanded.
pub(super) fn served(facts: &Facts<'_>) -> Option<Property> {
    let least = facts.namespace.served_min?;
    let recorded = facts.recorded;
    let after = Duration::from_millis(facts.scenario.expect.served_after_ms);
    let spans = spans(&recorded.faults, after, facts.deadline());
    // Who lost a race was served.
    let fair = |operations: Vec<Operation>| -> Vec<Operation> {
        operations.into_iter().filter(|op| op.err.as_deref() != Some(CONTENDED)).collect()
    };
    // A node whose disk hangs has no part in its groups: it owes a refusal, and the others the service.
    let nodes = unhung(&recorded.faults, &recorded.nodes);
    let by_node = |operations: Vec<Operation>| {
        answers::by_node(facts.ns(), &fair(operations), &nodes, &spans, &recorded.states)
    };
    let answered = by_node(facts.operations.clone());
    let asked: u64 = answered.iter().map(|node| node.asked).sum();
    let few = answered.iter().any(|node| node.asked < ENOUGH);
    let short = |nodes: &[answers::Answered]| nodes.iter().any(|node| node.asked > 0 && node.share() < least);
    let (ruling, why) = match (short(&answered), short(&by_node(facts.at_ease()))) {
        (false, _) if few || answered.is_empty() => (Ruling::Unknown, ""),
        (false, _) => (Ruling::Valid, ""),
        (true, true) => (Ruling::Invalid, ""),
        (true, false) => (Ruling::Unknown, STOOD_STILL),
    };
    let each = answered.iter().map(|node| format!("{} {} of {}", node.node, node.answered, node.asked));
    let each = each.collect::<Vec<_>>().join(", ");
    let detail = format!(
        "while nodes were starved, each answers at least {:.1} % from {} ms on{why} ({each})",
        least * 100.0,
        after.as_millis()
    );
    Some(facts.property("served while nodes are starved", "answers", asked as usize, ruling, detail))
}

/// Refusals are definite and fast; nothing where none is demanded.
pub(super) fn refusals(facts: &Facts<'_>) -> Option<Property> {
    let name = facts.namespace.refused_with.as_deref()?;
    let most = facts.scenario.expect.refusal_ms_max;
    let spans = spans(&facts.recorded.faults, Duration::ZERO, Duration::ZERO);
    let during = |op: &&Operation| spans.iter().any(|(from, until)| (*from..*until).contains(&op.call));
    let mut latencies: Vec<u64> = Vec::new();
    let (mut definite, mut unknown) = (0_u64, 0_u64);
    for op in facts.operations.iter().filter(during).filter(|op| !op.answered()) {
        match op.outcome {
            Outcome::Info => unknown += 1,
            _ if op.err.as_deref() == Some(CONTENDED) => {}
            _ => {
                definite += 1;
                let took = op.ret.unwrap_or(op.call).saturating_sub(op.call);
                latencies.extend((op.err.as_deref() == Some(name)).then_some(took));
            }
        }
    }
    latencies.sort_unstable();
    let median = latencies.get(latencies.len() / 2).copied().map(milliseconds);
    let share = definite as f64 / (definite + unknown).max(1) as f64;
    let ruling = match median {
        None => Ruling::Unknown,
        Some(_) if share < DEFINITE => Ruling::Invalid,
        Some(ms) if ms <= most => Ruling::Valid,
        Some(_) => facts.too_late(facts.marks().faults, facts.marks().healed).0,
    };
    let detail = match median {
        None => format!("no operation was refused with {name}"),
        Some(ms) => format!(
            "{} refused with {name}, half of them within {ms} ms, at most {most} ms; {definite} of {} without an answer were \
             refused for sure, at least {:.0} %",
            latencies.len(),
            definite + unknown,
            DEFINITE * 100.0
        ),
    };
    Some(facts.property("refusals are definite and fast", "refusals", latencies.len(), ruling, detail))
}

/// A leader whose disk hangs is replaced; nothing where no leader's disk hung for long enough.
pub(super) fn replaced(scenario: &Scenario, recorded: &Recorded) -> Option<Property> {
    let most = scenario.expect.replaced_ms_max;
    let hung = recorded.faults.iter().filter(|done| done.proven && done.fault.kind == FaultKind::DiskHang);
    let long = hung.filter(|done| milliseconds(done.until.saturating_sub(done.from)) > most);
    let took: Vec<(NodeId, Option<u64>)> = long
        .filter_map(|done| {
            let leader = leader_at(&recorded.seen.leaders, done.begun)?;
            let struck = done.nodes.iter().any(|node| node.0 == leader);
            struck.then(|| (leader, next_leader(&recorded.seen.leaders, leader, done.begun)))
        })
        .map(|(leader, at)| (leader, at.map(milliseconds)))
        .collect();
    let late = |ms: &Option<u64>| ms.is_none_or(|ms| ms > most);
    let stood_still = recorded.seen.slowest(recorded.marks.faults, recorded.marks.healed);
    let ruling = match took.iter().any(|(_, ms)| late(ms)) {
        false => Ruling::Valid,
        true if stood_still > super::facts::STOOD_STILL_MS && took.iter().all(|(_, ms)| ms.is_some()) => {
            Ruling::Unknown
        }
        true => Ruling::Invalid,
    };
    let each = took.iter().map(|(leader, ms)| match ms {
        Some(ms) => format!("{leader} after {ms} ms"),
        None => format!("{leader} never"),
    });
    let each: Vec<String> = each.collect();
    (!took.is_empty()).then(|| Property {
        name: "a leader whose disk hangs is replaced".into(),
        ns: String::new(),
        checker: "elections".into(),
        examined: took.len() as u64,
        ruling,
        detail: format!("{}; at most {most} ms", each.join(", ")),
        evidence: None,
    })
}

/// Who led at a moment.
fn leader_at(leaders: &[(u64, NodeId, u64)], moment: u64) -> Option<NodeId> {
    leaders.iter().take_while(|(at, _, _)| *at <= moment).last().map(|(_, node, _)| *node)
}

/// How long after a moment another node led, nanoseconds.
fn next_leader(leaders: &[(u64, NodeId, u64)], old: NodeId, moment: u64) -> Option<u64> {
    let next = leaders.iter().find(|(at, node, _)| *at > moment && *node != old);
    next.map(|(at, _, _)| at.saturating_sub(moment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Planned;
    use crate::scenario::Role;
    use std::collections::BTreeMap;

    fn done(kind: FaultKind, from: u64, until: u64, proven: bool) -> Done {
        Done {
            fault: Planned { id: 0, kind, target: Role::Leader, from_ms: 0, to_ms: 1, dice: 0 },
            nodes: Vec::new(),
            words: String::new(),
            sides: BTreeMap::new(),
            begun: from,
            from,
            until,
            to: until,
            proven,
        }
    }

    #[test]
    fn service_is_owed_only_within_a_fault_that_starves_and_was_felt() {
        let after = Duration::from_nanos(10);
        let of = |faults: &[Done]| spans(faults, after, Duration::from_nanos(5));
        assert_eq!(of(&[done(FaultKind::TierStall, 100, 200, true)]), [(110, 195)]);
        assert_eq!(of(&[done(FaultKind::TierStall, 100, 115, true)]), [], "too short");
        assert_eq!(of(&[done(FaultKind::TierStall, 100, 200, false)]), []);
        assert_eq!(of(&[done(FaultKind::Kill, 100, 200, true)]), []);
    }

    #[test]
    fn a_node_whose_disk_hangs_owes_no_service() {
        let hang = Done { nodes: vec![kv_lab::NodeName(NodeId(2))], ..done(FaultKind::DiskHang, 1, 2, true) };
        let stall =
            Done { nodes: vec![kv_lab::NodeName(NodeId(1))], ..done(FaultKind::TierStall, 1, 2, true) };
        let all = [NodeId(1), NodeId(2), NodeId(3)];
        assert_eq!(unhung(&[hang, stall], &all), [NodeId(1), NodeId(3)]);
    }

    #[test]
    fn a_leader_is_replaced_when_another_node_leads() {
        let leaders = [(5, NodeId(1), 1), (50, NodeId(2), 2), (60, NodeId(2), 3), (90, NodeId(3), 4)];
        assert_eq!(leader_at(&leaders, 4), None);
        assert_eq!(leader_at(&leaders, 55), Some(NodeId(2)));
        assert_eq!(next_leader(&leaders, NodeId(2), 55), Some(35));
        assert_eq!(next_leader(&leaders, NodeId(3), 90), None);
    }
}
