//! The page of a run: what was promised, what happened, what was found, in words and drawings.

use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use kv_check::Operation;
use kv_report::{self as report, Report};
use kv_types::NodeId;

use crate::Broke;
use crate::nemesis::{Done, State};
use crate::observe::Seen;
use crate::recorded::{Marks, Recorded};
use crate::scenario::{Mode, Namespace, Scenario};
use crate::summary::Summary;

/// Log lines of each node beside a failing part.
const LOG_LINES: usize = 12;
/// How far around a failing part log lines are taken.
const LOG_AROUND: Duration = Duration::from_millis(500);

/// The page of a run.
pub(crate) fn page(
    scenario: &Scenario,
    summary: &Summary,
    recorded: &Recorded,
    operations: &[Operation],
) -> Result<Report, Broke> {
    let marks = &recorded.marks;
    let mut page = Report {
        title: scenario.about.trim_end_matches('.').to_owned(),
        lead: lead(scenario),
        scenario: summary.scenario.clone(),
        seed: summary.seed,
        commit: summary.commit.clone(),
        versions: vec![
            ("jepsen-tests".into(), env!("CARGO_PKG_VERSION").into()),
            ("server".into(), format!("{:?}", scenario.cluster.server).to_lowercase()),
        ],
        replay: summary.replay.clone(),
        ruling: summary.ruling,
        reasons: summary.reasons.clone(),
        claims: claims(scenario),
        non_claims: NON_CLAIMS.map(str::to_owned).to_vec(),
        coverage: summary.coverage.clone(),
        properties: summary.properties.clone(),
        quantities: summary.quantities.clone(),
        nodes: recorded.nodes.iter().map(NodeId::to_string).collect(),
        namespaces: scenario.namespaces.iter().map(namespace_in_words).collect(),
        from: 0,
        to: marks.settled,
        points: recorded.samples.iter().map(report::Point::from).collect(),
        topology: topology(&recorded.states, marks.settled),
        leaders: leaders(recorded),
        faults: recorded.faults.iter().map(fault).collect(),
        marks: moments(marks),
        series: series(&recorded.seen),
        ..Report::default()
    };
    page.notes.push(
        "Definitions of all quantities: the documentation of kv_check::judge and jepsen-tests/README.md."
            .into(),
    );
    page.observe(operations, marks.settled).map_err(Broke::history)?;
    page.show_failures(operations);
    let begun = UNIX_EPOCH + Duration::from_millis(recorded.begun_wall_ms);
    for failure in &mut page.failures {
        for (node, log) in &recorded.logs {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            failure.add_log(&node.to_string(), &text, begun, LOG_AROUND, LOG_LINES);
        }
    }
    Ok(page)
}

fn series(seen: &Seen) -> Vec<report::Series> {
    let series = |name: String, words: &str, values: &[(u64, f64)]| report::Series {
        name,
        ns: String::new(),
        words: words.to_owned(),
        values: values.to_vec(),
    };
    let mut all = vec![
        series(
            "hints that wait".into(),
            "States of keys that some node keeps for another one that it could not reach.",
            &seen.hints,
        ),
        series(
            "the machine".into(),
            "Milliseconds that this machine took to sync a page of the harness's own: what it takes, nodes wait for too.",
            &seen.machine,
        ),
    ];
    // Where no term changed there is nothing to see. A term holds until the end of what was seen.
    let end = seen.hints.last().map(|(at, _)| *at);
    if seen.node_terms.values().any(|terms| terms.len() > 1) {
        all.extend(seen.node_terms.iter().map(|(node, terms)| {
            let last = end.zip(terms.last()).map(|(end, (_, term))| (end, *term));
            let held: Vec<_> = terms.iter().copied().chain(last).collect();
            series(
                format!("term of {node}"),
                "The Raft term of the strong namespaces as this node said it; a node that is cut off stays behind.",
                &held,
            )
        }));
    }
    all
}

fn lead(scenario: &Scenario) -> String {
    let kinds: BTreeSet<&str> = scenario.faults.iter().map(|fault| fault.kind.name()).collect();
    let kinds: Vec<&str> = kinds.into_iter().collect();
    format!(
        "{} real nodes, clients pinned to each of them, and faults: {}. Every operation was recorded with its outcome - \
         answered, not applied, unknown - and the history judged afterwards.",
        scenario.cluster.nodes,
        kinds.join(", "),
    )
}

fn claims(scenario: &Scenario) -> Vec<String> {
    let mut claims = Vec::new();
    let has = |mode| scenario.namespaces.iter().any(|namespace| namespace.mode == mode);
    if has(Mode::Strong) {
        claims.push("Strong namespaces: every register and list is linearizable, sets and counters show what they must by the order of their reads, their bounds and their receipts, no acknowledged write is lost, and what was reported as not applied is never seen.".into());
    }
    if has(Mode::Available) {
        claims.push("Available namespaces: after healing no acknowledged write is lost, siblings show all concurrent writes, and all replicas become equal.".into());
        if scenario.namespaces.iter().any(|namespace| namespace.may_lose) {
            claims.push(
                "Where a setting may lose acknowledged writes, the loss is counted, not denied.".into(),
            );
        }
    }
    claims.push(format!(
        "Every node serves again within {} ms: a strong namespace after healing, an available one after it is used again, for it \
         rests until its replicas are equal.",
        scenario.expect.recovery_ms_max
    ));
    claims
}

const NON_CLAIMS: [&str; 4] = [
    "Convergence without reads after a node died: what a coordinator did not come to note before it died, or lost with its disk, only a read mends at once. That the nodes find it out themselves, in about half a minute, is left to the simulation.",
    "Other faults, other loads, other moments: one run with one seed is a sample, not a proof.",
    "Orders across keys: keys are judged one by one.",
    "Speed: the nodes share one machine with their clients.",
];

fn namespace_in_words(namespace: &Namespace) -> report::Namespace {
    let strong = namespace.mode == Mode::Strong;
    let setting = match strong {
        true => "one Raft group".to_owned(),
        false => {
            let quorum = if namespace.sloppy { "sloppy" } else { "strict" };
            format!("N={} R={} W={}, {quorum}", namespace.n, namespace.r, namespace.w)
        }
    };
    report::Namespace { name: namespace.name.clone(), strong, setting }
}

fn topology(states: &[State], end: u64) -> Vec<report::Topology> {
    let span = |(at, state): (usize, &State)| {
        let to = states.get(at + 1).map_or(end, |next| next.at);
        let cut = state.links.list().into_iter().filter(|fault| fault.flow.blocks());
        report::Topology {
            from: state.at,
            to,
            cut: cut.map(|fault| (fault.from.to_string(), fault.to.to_string())).collect(),
            down: state.down.iter().map(NodeId::to_string).collect(),
        }
    };
    states.iter().enumerate().map(span).filter(|span| span.from < span.to).collect()
}

fn leaders(recorded: &Recorded) -> Vec<report::Leader> {
    let seen = &recorded.seen.leaders;
    let span = |(at, (from, node, _)): (usize, &(u64, NodeId, u64))| report::Leader {
        ns: String::new(),
        node: node.to_string(),
        from: *from,
        to: seen.get(at + 1).map_or(recorded.marks.settled, |(next, _, _)| *next),
    };
    seen.iter().enumerate().map(span).collect()
}

fn fault(done: &Done) -> report::Fault {
    let kind = match done.fault.kind.name() {
        "partition" => "network partition",
        other => other,
    };
    report::Fault {
        from: done.from,
        until: done.until,
        to: done.to,
        kind: kind.to_owned(),
        what: done.words.clone(),
        sides: done.sides.clone(),
    }
}

fn moments(marks: &Marks) -> Vec<report::Mark> {
    let mark = |at, what: &str, ns: &str| report::Mark { at, what: what.to_owned(), ns: ns.to_owned() };
    let mut moments = vec![mark(marks.healed, "healed", "")];
    for (ns, converged) in &marks.converged {
        moments.extend(converged.map(|at| mark(at, "replicas equal", ns)));
    }
    moments
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn terms_are_drawn_where_one_changed_and_hold_to_the_end() {
        let seen = |terms: &[(u64, f64)]| Seen {
            hints: vec![(1, 0.0), (9, 0.0)],
            node_terms: BTreeMap::from([(NodeId(1), terms.to_vec()), (NodeId(2), vec![(1, 1.0)])]),
            ..Seen::default()
        };
        assert_eq!(series(&seen(&[(1, 1.0)])).len(), 2);
        let drawn = series(&seen(&[(1, 1.0), (4, 2.0)]));
        assert_eq!(drawn.len(), 4);
        assert_eq!(drawn[2].values, [(1, 1.0), (4, 2.0), (9, 2.0)]);
        assert_eq!(drawn[3].values, [(1, 1.0), (9, 1.0)]);
    }
}
