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
    port_base: u16,
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
            receipt.nodes, receipt.partition_seconds, receipt.links_cut, receipt.links_seen_cut,
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
        sides: judged.sides.clone(),
        faults: vec![Fault {
            from: marks.cut,
            until: marks.decided,
            to: marks.healed,
            kind: "network partition".into(),
            what: format!("{small} | {large}: {:.1} s", receipt.partition_seconds),
            sides: window(marks, groups).sides,
        }],
        marks: moments(receipt.strong.recovery_ms, marks),
        nodes: minority.into_iter().chain(majority).collect(),
        notes: vec![from_history(marks), super::by_hand::ABOUT.join(" ")],
        by_hand: super::by_hand::lines(&super::by_hand::program(), port_base),
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

/// In nanoseconds.
const MILLISECOND: u64 = 1_000_000;

/// Where the figures come from, and how they are had again, with losses.
fn from_history(marks: &Marks) -> String {
    let settled_ms = marks.settled / MILLISECOND;
    format!(
        "All figures come from history.jsonl, which holds what the clients saw; kvctl check history.jsonl --settled-ms {settled_ms} judges it again. \
         Only the moment of convergence is the nodes' own word: equal digests of every ring partition at all three replicas, and no hints left."
    )
}

#[cfg(test)]
mod tests {
    use kv_check::{EventType, Function, Json, Operation};
    use serde_json::json;

    use super::super::by_hand::PORT_BASE;
    use super::super::judge::tests::{Story, good, groups, judged, marks};
    use super::super::judge::{MAJORITY, MINORITY};
    use super::super::narrate;
    use super::*;
    use crate::words::{counted, duration, percent};
    use crate::{html, strip_svg};

    const MS: u64 = 1_000_000;

    #[test]
    fn the_demo_fills_the_report_of_every_run() {
        let events = kv_check::history::arrange(good().events);
        let judgement = judged(good());
        let report = report(&judgement, &events, &[], &marks(), &groups(), PORT_BASE).unwrap();
        let page = html(&report);
        for expected in
            ["VALID", "cargo xtask demo --seed 42", "n1,n2 | n3,n4,n5: 11.0 s", "healed", "bank", "cart"]
        {
            assert!(page.contains(expected), "{expected}");
        }
        assert!(page.contains("<pre>kvctl lab up --name by-hand --fresh\nkvctl ns create bank"));
        let settled =
            format!("kvctl check history.jsonl --settled-ms {} judges", marks().settled / MILLISECOND);
        assert!(page.contains(&settled), "without it losses are not judged");
        assert!(strip_svg(&report).starts_with("<svg"));
        // Without samples the points come from the history.
        assert_eq!(report.points.len(), operation::pair(&events).unwrap().len());
    }

    /// A run in which a figure that is counted twice comes out twice: operations on both sides of either
    /// end of what is counted, planned earlier than they were called, and answers that are stale or have
    /// siblings.
    fn uneven() -> Story {
        let mut run = good();
        for at in 0..8 {
            let refused = run.op(BANK, 4, 1_005 + at * 10, Function::Read, EventType::Fail, Json::Null);
            refused.err = Some("NO_QUORUM".into());
            // The healing was decided, and the links were not open yet.
            run.op(BANK, 5, 12_010 + at * 20, Function::Read, EventType::Ok, json!("d")).revision = Some(2);
            run.op(BANK, 1, 12_400 + at * 20, Function::Read, EventType::Ok, json!("d")).revision = Some(2);
            run.op(CART, 1, 3_000 + at, Function::Read, EventType::Ok, json!(["n1.0"]));
        }
        run.op(CART, 2, 12_600, Function::Read, EventType::Ok, json!(["n1.219", "n4.219"]));
        run
    }

    fn sample(op: &Operation) -> Sample {
        let node = op.node.trim_start_matches('n').parse().unwrap();
        let late = 20 * MS;
        Sample {
            ns: op.ns.clone(),
            node: NodeId(node),
            mutation: op.f.mutates(),
            intended: op.call.saturating_sub(late),
            latency: op.ret.unwrap_or(op.call) - op.call + late,
            outcome: op.outcome,
            err: op.err.clone(),
            fallback: false,
        }
    }

    struct Run {
        judgement: Judgement,
        report: Report,
        receipt: Json,
        page: String,
        picture: String,
    }

    impl Run {
        fn new() -> Self {
            let events = kv_check::history::arrange(uneven().events);
            let judgement = judged(uneven());
            assert_eq!(judgement.broken, Vec::<String>::new());
            let samples: Vec<Sample> = operation::pair(&events).unwrap().iter().map(sample).collect();
            let report = report(&judgement, &events, &samples, &marks(), &groups(), PORT_BASE).unwrap();
            let receipt = serde_json::to_value(&judgement.receipt).unwrap();
            let (page, picture) = (html(&report), strip_svg(&report));
            Self { judgement, report, receipt, page, picture }
        }

        /// A row of the terminal: of the strong namespace, and of the available one.
        fn terminal(&self, words: &str) -> [String; 2] {
            let rows = narrate::figures(&self.judgement.receipt);
            let row = rows.iter().find(|row| row.words.starts_with(words)).unwrap();
            [row.strong.clone(), row.available.clone()]
        }

        fn receipt(&self, path: &str) -> &Json {
            self.receipt.pointer(path).unwrap()
        }
    }

    #[test]
    fn terminal_picture_receipt_and_tables_give_one_share_of_answers() {
        let run = Run::new();
        let rows = narrate::figures(&run.judgement.receipt);
        let shown = rows.iter().position(|row| row.words.starts_with("answered during the cut")).unwrap();
        for (at, side) in [(shown, MINORITY), (shown + 1, MAJORITY)] {
            assert!(rows[at].words.ends_with(side));
            let settings = run.report.all_settings();
            for ((ns, mode, cell), setting) in
                [("bank", "strong", &rows[at].strong), ("cart", "available", &rows[at].available)]
                    .into_iter()
                    .zip(&settings)
            {
                let ratio = run.receipt(&format!("/{mode}/{side}_success_ratio")).as_f64().unwrap();
                assert_eq!(*cell, percent(ratio), "{ns} {side}");
                let (_, share) = setting.availability.iter().find(|(known, _)| known == side).unwrap();
                assert_eq!(*cell, percent(*share), "{ns} {side}");
                assert!(run.page.contains(&format!("<td class=\"number\">{cell}</td>")), "{cell}");
            }
        }
        // In 61 of 69 operations of the election and after it; with the time of the healing it would be 69
        // of 77.
        assert_eq!(rows[shown + 1].strong, "88.4 %");
        for drawing in [&run.page, &run.picture] {
            let told: Vec<&str> = drawing
                .split(" answered)")
                .filter_map(|before| before.rsplit_once('('))
                .map(|(_, f)| f)
                .collect();
            assert!(told.contains(&"88.4 %"), "{told:?}");
            let others = told.iter().filter(|told| told.ends_with('%') && **told != "88.4 %");
            assert_eq!(others.count(), 0, "{told:?}");
            assert!(drawing.contains("goes on answering (100 %): AVAILABLE, and pays with 8 stale reads"));
        }
    }

    #[test]
    fn terminal_picture_receipt_and_tables_give_one_figure_for_a_time() {
        let run = Run::new();
        let mark = |words: &str| run.report.marks.iter().find(|mark| mark.what.contains(words)).unwrap().at;
        let setting = |at: usize| run.report.all_settings()[at].clone();
        // The majority writes again.
        assert_eq!(run.terminal("majority writes again"), ["902 ms", "-"]);
        assert_eq!(run.receipt("/strong/recovery_ms"), 902);
        assert_eq!(mark("majority writes again") - marks().cut, 902 * MS);
        assert!(run.picture.contains("goes on after 902 ms"));
        // Every node serves again.
        assert_eq!(run.terminal("every node serves again"), ["102 ms", "-"]);
        assert_eq!(run.receipt("/strong/served_again_ms"), 102);
        assert_eq!(setting(0).recovery.map(duration).as_deref(), Some("102 ms"));
        // The replicas are equal.
        assert_eq!(run.terminal("replicas are equal"), ["-", "600 ms"]);
        assert_eq!(run.receipt("/available/convergence_ms"), 600);
        assert_eq!(mark("replicas equal") - mark("healed"), 600 * MS);
        assert_eq!(setting(1).convergence.map(duration).as_deref(), Some("600 ms"));
        for time in ["102 ms", "600 ms"] {
            assert!(run.page.contains(&format!("<td class=\"number\">{time}</td>")), "{time}");
        }
        // The cut.
        assert_eq!(run.receipt("/partition_seconds"), 11.0);
        for expected in ["For 11.0 s the network", "n1,n2 | n3,n4,n5: 11.0 s", "<td>11.0 s</td>"] {
            assert!(run.page.contains(expected), "{expected}");
        }
    }

    #[test]
    fn terminal_picture_receipt_and_tables_give_one_count() {
        let run = Run::new();
        let figures = |ns: &str| run.report.quantities[ns].clone();
        let (bank, cart) = (figures("bank"), figures("cart"));
        assert_eq!(cart.stale_reads, 8);
        for (words, path, [strong, available]) in [
            ("stale reads", "stale_reads", [bank.stale_reads, cart.stale_reads]),
            ("keys said to be absent", "false_absent", [bank.false_absences, cart.false_absences]),
        ] {
            assert_eq!(run.terminal(words), [strong.to_string(), available.to_string()]);
            assert_eq!(run.receipt(&format!("/strong/{path}")), strong);
            assert_eq!(run.receipt(&format!("/available/{path}")), available);
        }
        let lost = |q: &kv_check::judge::Quantities| format!("{} of {}", q.lost, q.acknowledged);
        assert_eq!(run.terminal("acknowledged writes lost"), [lost(&bank), lost(&cart)]);
        assert_eq!(run.receipt("/available/acknowledged"), cart.acknowledged);
        // Stale reads: in the plot, in the sentence, and cell by cell.
        assert_eq!(run.report.stale.len() as u64, cart.stale_reads);
        assert!(run.page.contains(&format!("{} missed what had been", counted(8, "read", "reads"))));
        assert!(
            run.page.contains("0 stale reads of cart came before the cut, 8 while it lasted, 0 after it.")
        );
        // Siblings.
        assert_eq!(run.terminal("keys with siblings"), ["-", "1"]);
        assert_eq!(run.receipt("/available/keys_with_siblings"), cart.conflicted_keys);
        assert!(run.picture.contains("1 key written on both sides keeps every value"));
        let reads = counted(cart.reads_with_siblings, "read showed", "reads showed");
        assert!(run.page.contains(&format!("{} in the whole run; {reads} several", cart.siblings_max)));
    }
}
