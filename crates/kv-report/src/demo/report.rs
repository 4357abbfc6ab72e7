//! The demo as a [`crate::Report`]: the same page as that of every other run.

use kv_check::history::Malformed;
use kv_check::{Event, operation};
use kv_types::NodeId;

use super::judge::{BANK, CART, Judgement, Marks, window};
use crate::{Fault, Mark, Namespace, Point, Report, Topology};
use kv_workload::Sample;

/// What the run says, for the page.
pub(crate) fn report(
    judged: &Judgement,
    history: &[Event],
    samples: &[Sample],
    marks: &Marks,
    groups: &[Vec<NodeId>; 2],
) -> Result<Report, Malformed> {
    let receipt = &judged.receipt;
    let [minority, majority] =
        groups.each_ref().map(|nodes| nodes.iter().map(NodeId::to_string).collect::<Vec<_>>());
    let (small, large) = (minority.join(","), majority.join(","));
    let from = samples.iter().map(|sample| sample.intended).min().unwrap_or(0);
    let span = |from, to, cut| Topology { from, to, cut, down: Vec::new() };
    let mut report = Report {
        title: "One network partition, two sides of CAP".into(),
        lead: format!(
            "{} real nodes. For {:.1} s the network between {small} and {large} carried nothing: all {} directed links were cut, and {} probes found them silent, at the beginning and at the end. \
             Clients pinned to every node kept asking both namespaces at a fixed rate throughout.",
            receipt.nodes, receipt.partition_seconds, receipt.links_cut, receipt.links_seen_cut
        ),
        scenario: "demo".into(),
        seed: receipt.seed,
        commit: crate::commit(),
        versions: vec![("Quorate".into(), env!("CARGO_PKG_VERSION").into())],
        replay: format!("cargo xtask demo --seed {}", receipt.seed),
        ruling: judged.ruling(),
        reasons: judged.broken.clone(),
        claims: CLAIMS.map(str::to_owned).to_vec(),
        non_claims: NON_CLAIMS.map(str::to_owned).to_vec(),
        coverage: judged.coverage.clone(),
        properties: judged.checked.properties.clone(),
        quantities: judged.checked.quantities.clone(),
        namespaces: vec![
            Namespace {
                name: BANK.into(),
                strong: true,
                setting: format!("one Raft group, {} voters", receipt.nodes),
            },
            Namespace { name: CART.into(), strong: false, setting: "N=3 R=2 W=2, sloppy".into() },
        ],
        from,
        to: marks.settled,
        points: samples.iter().filter(|sample| sample.intended < marks.settled).map(Point::from).collect(),
        topology: vec![
            span(from, marks.cut, Vec::new()),
            span(marks.cut, marks.healed, Topology::between(&[minority.clone(), majority.clone()])),
            span(marks.healed, marks.settled, Vec::new()),
        ],
        faults: vec![Fault {
            from: marks.cut,
            to: marks.healed,
            kind: "network partition".into(),
            what: format!("{small} | {large}: {:.1} s", receipt.partition_seconds),
            sides: window(marks, groups).sides,
        }],
        marks: moments(receipt.strong.recovery_ms, marks),
        nodes: minority.into_iter().chain(majority).collect(),
        notes: notes(),
        ..Report::default()
    };
    report.observe(&operation::pair(history)?, marks.settled)?;
    report.observe_leaders(history);
    report.show_failures(&operation::pair(history)?);
    Ok(report)
}

/// What happened, in its order.
fn moments(recovery_ms: Option<u64>, marks: &Marks) -> Vec<Mark> {
    let mark = |at, what: &str, ns: &str| Mark { at, what: what.into(), ns: ns.into() };
    let again = recovery_ms.map(|ms| marks.cut + ms * 1_000_000);
    let mut moments = vec![mark(marks.healed, "healed", "")];
    moments.extend(again.map(|at| mark(at, "bank: majority writes again", BANK)));
    moments.extend(marks.converged.map(|at| mark(at, "cart: replicas equal", CART)));
    moments.sort_by_key(|mark| mark.at);
    moments
}

const CLAIMS: [&str; 2] = [
    "bank is a strong namespace, one Raft group of five voters: linearizable, and no acknowledged write is lost. In a minority it refuses and says that nothing was applied; what its old leader had already proposed when the network was cut is unknown to its clients, and reported so.",
    "cart is an available namespace, three copies on a ring, R=2, W=2, sloppy: it answers on both sides, loses no acknowledged write, keeps concurrent writes side by side, and converges after healing.",
];

const NON_CLAIMS: [&str; 3] = [
    "That bank answers on both sides of a cut: it does not.",
    "That a read of cart sees the latest write: stale reads are counted, not hidden.",
    "That one run proves it: this is one fault, one load and one seed. The scenarios of jepsen-tests go further.",
];

const FROM_HISTORY: &str = "All figures come from history.jsonl, which holds what the clients saw; kvctl check history.jsonl judges it again. Only the moment of convergence is the nodes' own word: equal digests of every ring partition at all three replicas, and no hints left.";

fn notes() -> Vec<String> {
    let by_hand = super::by_hand::lines(&super::by_hand::program()).join("; ");
    vec![FROM_HISTORY.into(), format!("By hand: {by_hand}.")]
}

#[cfg(test)]
mod tests {
    use super::super::judge::tests::{good, groups, judged, marks};
    use super::*;
    use crate::{html, strip_svg};

    #[test]
    fn the_demo_fills_the_report_of_every_run() {
        let events = kv_check::history::arrange(good().events);
        let judgement = judged(good());
        let report = report(&judgement, &events, &[], &marks(), &groups()).unwrap();
        let page = html(&report);
        for expected in
            ["VALID", "cargo xtask demo --seed 42", "n1,n2 | n3,n4,n5: 11.0 s", "healed", "bank", "cart"]
        {
            assert!(page.contains(expected), "{expected}");
        }
        assert!(strip_svg(&report).starts_with("<svg"));
        // Without samples the points come from the history.
        assert_eq!(report.points.len(), operation::pair(&events).unwrap().len());
    }
}
