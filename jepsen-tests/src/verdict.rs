//! What a run means: the judgement of its history, the promises that no history shows (recovery, convergence, nodes that stay
//! up), the coverage that makes it count, and the report that says all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use kv_check::deaths::left_open;
use kv_check::judge::{
    self, Expectation, Judgement, Minority, NamespacePlan, Plan, Property, Quantities, Ruling,
};
use kv_check::service::{self, Window};
use kv_check::{Operation, operation};
use kv_lab::report::{self, Coverage, Report};
use kv_types::NodeId;
use serde::{Deserialize, Serialize};

use crate::availability::{self, Answered};
use crate::coverage::Covered;
use crate::nemesis::{Done, State};
use crate::observe::Seen;
use crate::run::{Marks, Recorded, RunOptions};
use crate::scenario::{FaultKind, Mode, Namespace, Scenario, judged};
use crate::{Broke, controls, deaths};

/// How long a leader that is cut off may take to notice: two election timeouts.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);
/// Answered operations below which nothing was shown about a namespace.
const ENOUGH: u64 = 20;
/// Part of what was asked of the side of a cut that has a majority, and has to be answered.
const MAJORITY_ANSWERS: f64 = 0.9;
/// Log lines of each node beside a failing part.
const LOG_LINES: usize = 12;
/// How far around a failing part log lines are taken.
const LOG_AROUND: Duration = Duration::from_millis(500);
/// Part of all operations that may not have been begun because too many were open.
const SHED: f64 = 0.01;
/// A machine that took so many milliseconds to sync a page, or to run a task that was due, explains silence of its nodes.
const STOOD_STILL_MS: f64 = 250.0;
/// What is said where that explains everything.
const STOOD_STILL: &str = "; the machine itself stood still, and all that is missing was asked then";
/// What the seeded bugs showed last.
const MUTANTS: &str = "target/jepsen/mutants.json";
/// What a node writes when it breaks its own rules.
const PANIC: &str = "panicked at";

/// A run, judged.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The figures: `summary.json`.
    pub summary: Summary,
    /// The page.
    pub report: Report,
    /// The logs of the nodes.
    pub logs: BTreeMap<NodeId, std::path::PathBuf>,
}

/// `summary.json`: a run in figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// The name of the scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// The verdict.
    pub ruling: Ruling,
    /// Why it is not *valid*.
    pub reasons: Vec<String>,
    /// The one command that runs the same again.
    pub replay: String,
    /// The commit that was tested.
    pub commit: String,
    /// Seconds that the run took.
    pub seconds: f64,
    /// Seconds that judging took.
    pub judged_in_seconds: f64,
    /// Events in the history.
    pub events: u64,
    /// What happened.
    pub covered: Covered,
    /// Compared with what the scenario demands.
    pub coverage: Vec<Coverage>,
    /// What was judged.
    pub properties: Vec<Property>,
    /// What was measured, by namespace.
    pub quantities: BTreeMap<String, Quantities>,
    /// The faults.
    pub faults: Vec<Done>,
    /// The moments.
    pub marks: Marks,
}

/// What the judge is to know of a run.
pub fn plan(scenario: &Scenario, marks: &Marks, faults: &[Done]) -> Plan {
    let namespaces = scenario.namespaces.iter().filter_map(|namespace| {
        let load = scenario.workloads.iter().find(|load| load.namespace == namespace.name)?;
        let strong = namespace.mode == Mode::Strong;
        let expect = Expectation { lost: namespace.may_lose, stale: namespace.stale.expectation() };
        Some((namespace.name.clone(), NamespacePlan { strong, workload: judged(load.kind), expect }))
    });
    // A single node has nobody to be equal with.
    let copied = scenario.namespaces.iter().filter(|_| scenario.cluster.nodes > 1);
    let copied = copied.map(|namespace| namespace.name.clone());
    Plan {
        namespaces: namespaces.collect(),
        windows: windows(faults),
        healed: Some(marks.healed),
        settled: Some(marks.settled),
        digests: copied.collect(),
        minority: Some(minority()),
        receipts: true,
        enough: ENOUGH,
        ..Plan::default()
    }
}

/// Sides that cannot have a quorum: all nodes of a scenario are voters, and sides are named after how many they are.
pub fn minority() -> Minority {
    Minority { sides: BTreeSet::from(["minority".to_owned()]), grace_ns: NOTICED_WITHIN.as_nanos() as u64 }
}

/// The network partitions of a run, with their sides, while they were certainly in force. Cuts of the same sides, as a flapping
/// one makes, share a name; one that makes no sides, such as a ring, is a window all the same.
fn windows(faults: &[Done]) -> Vec<Window> {
    let cuts = faults
        .iter()
        .filter(|fault| fault.proven)
        .filter(|fault| matches!(fault.fault.kind, FaultKind::Partition { .. }) || !fault.sides.is_empty());
    cuts.map(|fault| Window {
        name: fault.words.clone(),
        from: fault.from,
        to: fault.until,
        sides: fault.sides.clone(),
    })
    .collect()
}

/// Judges a run.
pub fn judge(
    scenario: &Scenario,
    options: &RunOptions,
    recorded: Recorded,
    took: Duration,
) -> Result<Verdict, Broke> {
    let begun = tokio::time::Instant::now();
    let operations = operation::pair(&recorded.history).map_err(Broke::history)?;
    let plan = plan(scenario, &recorded.marks, &recorded.faults);
    let mut judgement = judge::judge(&recorded.history, &plan).map_err(Broke::history)?;
    for namespace in &scenario.namespaces {
        measure(namespace, scenario, &recorded, &operations, &mut judgement);
    }
    judgement.properties.extend(of_nodes(scenario, &recorded));
    let covered = Covered::count(
        &recorded.nodes,
        &recorded.states,
        recorded.marks.healed,
        &recorded.faults,
        recorded.planned,
        recorded.seen.elections(),
        &operations,
    );
    let names: Vec<&str> = scenario.namespaces.iter().map(|namespace| namespace.name.as_str()).collect();
    let mut coverage = covered.rows(&scenario.expect, &names);
    let most = (operations.len() as f64 * SHED) as u64;
    coverage.push(Coverage {
        name: "operations not begun, too many being open".into(),
        wanted: format!("at most {most}"),
        got: recorded.shed.to_string(),
        enough: recorded.shed <= most,
    });
    if let Some(judged) = minorities_judged(scenario, &recorded.faults, &operations) {
        coverage.push(Coverage {
            name: "cuts in which a minority was judged".into(),
            wanted: "1".into(),
            got: judged.to_string(),
            enough: judged > 0,
        });
    }
    let alarms = controls::known_bad();
    coverage.push(Coverage {
        name: "known-bad histories that are rejected".into(),
        wanted: alarms.len().max(1).to_string(),
        got: alarms.iter().filter(|alarm| alarm.caught).count().to_string(),
        enough: !alarms.is_empty() && alarms.iter().all(|alarm| alarm.caught),
    });
    let ruling = ruling(&judgement.properties, &coverage);
    let summary = Summary {
        scenario: scenario.name.clone(),
        seed: options.seed,
        ruling,
        reasons: reasons(&judgement.properties, &coverage),
        replay: format!("jepsen-tests replay {}", options.out.display()),
        commit: commit(),
        seconds: took.as_secs_f64(),
        judged_in_seconds: begun.elapsed().as_secs_f64(),
        events: recorded.history.len() as u64,
        covered,
        coverage,
        properties: judgement.properties,
        quantities: judgement.quantities,
        faults: recorded.faults.clone(),
        marks: recorded.marks.clone(),
    };
    let mut report = page(scenario, &summary, &recorded, &operations)?;
    report.controls = alarms;
    report.controls.extend(controls::mutants(Path::new(MUTANTS)));
    Ok(Verdict { summary, report, logs: recorded.logs })
}

/// The verdict: the worst of what was judged, and *unknown* at best when too little happened.
pub fn ruling(properties: &[Property], coverage: &[Coverage]) -> Ruling {
    let judged = properties.iter().map(|property| property.ruling).max().unwrap_or(Ruling::Unknown);
    let enough = coverage.iter().all(|row| row.enough);
    if enough { judged } else { judged.max(Ruling::Unknown) }
}

fn reasons(properties: &[Property], coverage: &[Coverage]) -> Vec<String> {
    let mut reasons: Vec<String> = properties
        .iter()
        .filter(|property| property.ruling != Ruling::Valid)
        .map(|property| {
            format!("{} {}: {} ({})", property.ns, property.name, property.ruling, property.detail)
        })
        .map(|reason| reason.trim_start().to_owned())
        .collect();
    let missing = coverage.iter().filter(|row| !row.enough);
    reasons.extend(missing.map(|row| format!("{}: wanted {}, got {}", row.name, row.wanted, row.got)));
    reasons
}

/// Adds what needs the run's moments: recovery, convergence, availability while the network was cut.
fn measure(
    namespace: &Namespace,
    scenario: &Scenario,
    recorded: &Recorded,
    operations: &[Operation],
    judgement: &mut Judgement,
) {
    let (ns, expect, marks) = (namespace.name.as_str(), &scenario.expect, &recorded.marks);
    let strong = namespace.mode == Mode::Strong;
    let Some(quantities) = judgement.quantities.get_mut(ns) else { return };
    let property = |name: &str, checker: &str, examined: usize, ruling, detail| Property {
        name: name.to_owned(),
        ns: ns.to_owned(),
        checker: checker.to_owned(),
        examined: examined as u64,
        ruling,
        detail,
        evidence: None,
    };
    // What a promise about time is worth when it was not kept: nothing is known if the machine itself stood still.
    let too_late = |from, to| {
        let slowest = recorded.seen.slowest(from, to);
        match slowest > STOOD_STILL_MS {
            true => (Ruling::Unknown, format!("; the machine itself stood still for {slowest:.0} ms")),
            false => (Ruling::Invalid, String::new()),
        }
    };
    // What was asked while the machine did not stand still. One stall explains what it made late, not the rest of a run.
    let at_ease = || -> Vec<Operation> {
        let stalls = recorded.seen.stalls(STOOD_STILL_MS);
        let still = |op: &Operation| stalls.iter().any(|(from, to)| (*from..*to).contains(&op.call));
        operations.iter().filter(|op| op.ns == ns && !still(op)).cloned().collect()
    };
    let within = |ms: Option<u64>, most: u64| match ms.is_some_and(|ms| ms <= most) {
        true => (Ruling::Valid, String::new()),
        false => too_late(marks.healed, marks.settled),
    };

    // An available namespace rests until its replicas are equal, so it is measured from where it is used again.
    let from = if strong { marks.healed } else { marks.resumed };
    // That a node knows nothing of a key is no excuse: everything is healed, the replicas are equal, and so every node reaches
    // the primaries.
    let mine: Vec<Operation> = operations.iter().filter(|op| op.ns == ns).cloned().collect();
    let names: Vec<String> = recorded.nodes.iter().map(ToString::to_string).collect();
    let recovered = service::recovery_everywhere(&mine, names.iter().map(String::as_str), from);
    let asked = mine.iter().filter(|op| op.call >= from).count();
    quantities.recovery_ns = recovered;
    let ms = recovered.map(milliseconds);
    let (ruling, why) = match asked < service::STREAK * recorded.nodes.len() {
        true => (Ruling::Unknown, String::new()),
        false => match ms {
            Some(ms) if ms <= expect.recovery_ms_max => (Ruling::Valid, String::new()),
            Some(_) => too_late(from, marks.settled),
            None => (Ruling::Invalid, String::new()), // it had the rest of the run for it
        },
    };
    let since = if strong { "healing" } else { "the namespace was used again, its replicas being equal" };
    let detail = match ms {
        Some(ms) => {
            format!("every node serves {ms} ms after {since}; at most {} ms{why}", expect.recovery_ms_max)
        }
        None => format!("some node never gave {} answers in a row{why}", service::STREAK),
    };
    judgement.properties.push(property("every node serves again", "answers in a row", asked, ruling, detail));
    if strong {
        // Its replicas are compared when the load has ended: that says nothing of when they became equal.
        quantities.convergence_ns = None;
        let mine = scenario.workloads.iter().filter(|load| load.namespace == ns);
        let deadline = mine.map(|load| load.deadline).max().unwrap_or_default();
        let owed = availability::owed(&recorded.faults, deadline);
        let (answered, asked) = availability::by_majority(ns, operations, &owed);
        if let Some(ruling) = majority_serves(owed.len(), answered, asked) {
            let (answered_then, asked_then) = availability::by_majority(ns, &at_ease(), &owed);
            let (ruling, why) = match (ruling, majority_serves(owed.len(), answered_then, asked_then)) {
                (Ruling::Invalid, Some(Ruling::Invalid)) => (Ruling::Invalid, ""),
                (Ruling::Invalid, _) => (Ruling::Unknown, STOOD_STILL),
                (other, _) => (other, ""),
            };
            let detail = format!(
                "{answered} of {asked} answered in {} cuts; at least {:.0} %{why}",
                owed.len(),
                MAJORITY_ANSWERS * 100.0
            );
            let checker = "sides of partitions";
            judgement.properties.push(property("a majority serves", checker, asked as usize, ruling, detail));
        }
        return;
    }

    let reads = marks.reads.get(ns);
    let since = reads.map_or(marks.healed, |(moment, _)| *moment);
    let converged = marks.converged.get(ns).copied().flatten().map(|moment| moment.saturating_sub(since));
    quantities.convergence_ns = converged;
    let ms = converged.map(milliseconds);
    let deadlines = scenario.workloads.iter().filter(|load| load.namespace == ns).map(|load| load.deadline);
    let deadline_ns = deadlines.max().map_or(0, |deadline| deadline.as_nanos() as u64);
    // When a node died that no fault killed nobody noted.
    let disturbances = deaths::disturbances(&recorded.faults).filter(|_| recorded.broken.is_empty());
    let open = disturbances.map(|mut disturbances| {
        disturbances.slowed.extend(recorded.seen.stalls(STOOD_STILL_MS));
        left_open(&mine, &disturbances, deadline_ns)
    });
    let unexplained = match (reads, &open) {
        (Some((_, partitions)), Some(open)) => kv_check::deaths::unexplained(partitions, open),
        _ => Vec::new(),
    };
    let (ruling, why) = match ms {
        None => (Ruling::Invalid, String::new()), // thirty seconds are enough for any machine
        // Hints are gone that were noted.
        Some(_) if !unexplained.is_empty() => (Ruling::Invalid, String::new()),
        Some(_) => within(ms, expect.convergence_ms_max),
    };
    let most = expect.convergence_ms_max;
    let detail = match (ms, reads) {
        (None, _) => {
            format!("it never came: {}", marks.unequal.get(ns).map_or("nobody knows why", String::as_str))
        }
        (Some(ms), None) => format!(
            "converged by hints: all replicas equal, no hints left, {ms} ms after healing; at most {most} ms{why}"
        ),
        (Some(ms), Some((_, partitions))) => {
            let explained = match (&open, unexplained.first()) {
                (None, _) => "for a node lost its disk or ended by itself".to_owned(),
                (Some(open), None) => {
                    format!("each with one of the {} keys that were being written when one died", open.len())
                }
                (Some(_), Some(keys)) => format!(
                    "{} of them although nothing was being written there when one died, such as that of {keys:?}",
                    unexplained.len()
                ),
            };
            format!(
                "converged by reads: a node died, and hints left {} ring partitions that differed, {explained}; all replicas \
                 equal {ms} ms after the reading of every key began; at most {most} ms{why}",
                partitions.len()
            )
        }
    };
    let of_replicas = |name, ruling, detail| property(name, "digests", namespace.n.into(), ruling, detail);
    judgement.properties.push(of_replicas("replicas converge", ruling, detail));
    let again = marks.equal_again.get(ns).map(|at| milliseconds(at.saturating_sub(marks.stopped)));
    let (ruling, detail) = match again {
        Some(ms) => (
            Ruling::Valid,
            format!("by hints alone, {ms} ms after the load had ended; no final read came before"),
        ),
        None => {
            let why = marks.unequal_in_the_end.get(ns).map_or("nobody knows why", String::as_str);
            (Ruling::Invalid, format!("not after the load had ended: {why}"))
        }
    };
    judgement.properties.push(of_replicas("replicas converge again", ruling, detail));

    if let Some(least) = namespace.availability_min.or(expect.availability_min) {
        let cuts = availability::cuts(&recorded.faults);
        let nodes = availability::by_node(ns, operations, &recorded.nodes, &cuts, &recorded.states);
        let asked: u64 = nodes.iter().map(|node| node.asked).sum();
        let eased = availability::by_node(ns, &at_ease(), &recorded.nodes, &cuts, &recorded.states);
        let (ruling, why) = answers_everywhere(&nodes, &eased, least);
        let worst = nodes.first().map_or_else(
            || "no node ran".to_owned(),
            |worst| format!("{} answered {:.1} %", worst.node, worst.share() * 100.0),
        );
        let each = nodes.iter().map(|node| format!("{} {} of {}", node.node, node.answered, node.asked));
        let each = each.collect::<Vec<_>>().join(", ");
        let detail =
            format!("while links were cut, at worst {worst}; at least {:.1} %{why} ({each})", least * 100.0);
        judgement.properties.push(property(
            "available at every node",
            "answers",
            asked as usize,
            ruling,
            detail,
        ));
    }
}

/// Whether every node answered this part of what it was asked; and of what it was asked while the machine did not stand still.
fn answers_everywhere(nodes: &[Answered], eased: &[Answered], least: f64) -> (Ruling, &'static str) {
    match nodes.first() {
        None => (Ruling::Unknown, ""),
        Some(worst) if worst.asked == 0 => (Ruling::Unknown, ""),
        Some(worst) if worst.share() >= least => {
            let enough = nodes.iter().all(|node| node.asked >= ENOUGH);
            (if enough { Ruling::Valid } else { Ruling::Unknown }, "")
        }
        Some(_) if eased.iter().all(|node| node.asked == 0 || node.share() >= least) => {
            (Ruling::Unknown, STOOD_STILL)
        }
        Some(_) => (Ruling::Invalid, ""),
    }
}

/// What the side with a majority showed in so many cuts that were long enough; nothing where there was none.
fn majority_serves(cuts: usize, answered: u64, asked: u64) -> Option<Ruling> {
    match (cuts, asked) {
        (0, _) => None,
        (_, 0) => Some(Ruling::Unknown),
        _ if answered as f64 >= asked as f64 * MAJORITY_ANSWERS => Some(Ruling::Valid),
        _ => Some(Ruling::Invalid),
    }
}

/// In how many cuts the side without a majority was asked, for the strong namespace where that is the fewest; none where there
/// is no such namespace, or no cut was planned that is long enough for it.
fn minorities_judged(scenario: &Scenario, faults: &[Done], operations: &[Operation]) -> Option<usize> {
    let Minority { sides, grace_ns } = minority();
    let long = |done: &&Done| {
        let planned = done.fault.to_ms.saturating_sub(done.fault.from_ms).saturating_mul(1_000_000);
        let cut = matches!(done.fault.kind, FaultKind::Partition { .. });
        done.proven && cut && planned > 2 * grace_ns && done.sides.values().any(|side| sides.contains(side))
    };
    faults.iter().find(long)?;
    let windows = windows(faults);
    let judged = |namespace: &Namespace| {
        let mine: Vec<Operation> = operations.iter().filter(|op| op.ns == namespace.name).cloned().collect();
        let asked = |window: &&Window| {
            service::cut_off(&mine, window, &sides, grace_ns).is_some_and(|cut| !cut.asked.is_empty())
        };
        windows.iter().filter(asked).count()
    };
    scenario.namespaces.iter().filter(|namespace| namespace.mode == Mode::Strong).map(judged).min()
}

/// Promises about the nodes themselves.
fn of_nodes(scenario: &Scenario, recorded: &Recorded) -> Vec<Property> {
    let property = |name: &str, checker: &str, found: &[String], fine: String| Property {
        name: name.to_owned(),
        ns: String::new(),
        checker: checker.to_owned(),
        examined: recorded.nodes.len() as u64,
        ruling: if found.is_empty() { Ruling::Valid } else { Ruling::Invalid },
        detail: if found.is_empty() { fine } else { found.join("; ") },
        evidence: None,
    };
    let panics = panics(&recorded.logs);
    let (excused, unexcused): (Vec<_>, Vec<_>) = recorded
        .broken
        .iter()
        .cloned()
        .partition(|what| scenario.expect.ends && what.contains("ended by itself"));
    let fine = match excused.len() {
        0 => "all ran whenever no fault held them down".to_owned(),
        count => format!("{count} ended, as this scenario lets them"),
    };
    let unread: Vec<String> = match recorded.unread.as_slice() {
        [] => Vec::new(),
        [first, ..] => vec![format!("{} final reads had no answer, such as {first}", recorded.unread.len())],
    };
    vec![
        property("nodes stay up and start again", "processes", &unexcused, fine),
        property("no panic", "logs", &panics, "no node panicked".into()),
        property(
            "everything can be read in the end",
            "final reads",
            &unread,
            "every key at every node".into(),
        ),
    ]
}

/// Nodes that panicked, by their logs. A log that is not there, cannot be read, or is empty shows no absence of panics.
fn panics(logs: &BTreeMap<NodeId, std::path::PathBuf>) -> Vec<String> {
    let found = |(node, log): (&NodeId, &std::path::PathBuf)| {
        let bytes = match std::fs::read(log) {
            Ok(bytes) if bytes.is_empty() => return Some(format!("{node}: its log is empty")),
            Ok(bytes) => bytes,
            Err(error) => return Some(format!("{node}: its log cannot be read: {error}")),
        };
        let text = String::from_utf8_lossy(&bytes);
        let line = text.lines().find(|line| line.contains(PANIC))?;
        Some(format!("{node}: {}", line.trim()))
    };
    logs.iter().filter_map(found).collect()
}

fn milliseconds(ns: u64) -> u64 {
    ns / 1_000_000
}

/// The commit of the working tree, with a mark when it was changed; empty where that is not known.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return String::new() };
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    if changed { format!("{commit} with changes") } else { commit }
}

fn page(
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
    let kinds: std::collections::BTreeSet<&str> =
        scenario.faults.iter().map(|fault| fault.kind.name()).collect();
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
    "Convergence without reads after a node died: what a coordinator did not come to note before it died, or lost with its disk, only a read mends; there is no background anti-entropy yet.",
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
    use kv_check::{Event, EventType};

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

    fn property(ruling: Ruling) -> Property {
        Property {
            name: "linearizable".into(),
            ns: "bank".into(),
            checker: "wgl".into(),
            examined: 1,
            ruling,
            detail: "why".into(),
            evidence: None,
        }
    }

    fn row(enough: bool) -> Coverage {
        Coverage { name: "elections".into(), wanted: "1".into(), got: "0".into(), enough }
    }

    #[test]
    fn too_little_coverage_is_unknown_and_never_hides_a_violation() {
        use Ruling::*;
        for (judged, enough, expected) in [
            (Valid, true, Valid),
            (Valid, false, Unknown),
            (Unknown, true, Unknown),
            (Invalid, true, Invalid),
            (Invalid, false, Invalid),
        ] {
            assert_eq!(ruling(&[property(Valid), property(judged)], &[row(true), row(enough)]), expected);
        }
        assert_eq!(ruling(&[], &[]), Unknown, "nothing judged is nothing shown");
    }

    #[test]
    fn a_majority_answers_nine_of_ten() {
        for (cuts, answered, asked, expected) in [
            (0, 0, 0, None),
            (1, 0, 0, Some(Ruling::Unknown)),
            (1, 9, 10, Some(Ruling::Valid)),
            (1, 89, 100, Some(Ruling::Invalid)),
            (2, 0, 1, Some(Ruling::Invalid)),
        ] {
            assert_eq!(majority_serves(cuts, answered, asked), expected, "{answered} of {asked}");
        }
    }

    #[test]
    fn a_stall_excuses_what_was_asked_in_it_and_no_more() {
        let node = |node, answered, asked| Answered { node: NodeId(node), answered, asked };
        let ruling = |nodes: &[Answered], eased: &[Answered]| answers_everywhere(nodes, eased, 0.9).0;
        let good = node(2, 100, 100);
        assert_eq!(ruling(&[node(1, 90, 100), good.clone()], &[]), Ruling::Valid);
        assert_eq!(ruling(&[node(1, 19, 19), good.clone()], &[]), Ruling::Unknown, "too few");
        assert_eq!(ruling(&[], &[]), Ruling::Unknown);
        let bad = [node(1, 80, 100), good.clone()];
        assert_eq!(ruling(&bad, &bad), Ruling::Invalid, "nothing stood still");
        assert_eq!(ruling(&bad, &[node(1, 80, 85), good.clone()]), Ruling::Unknown);
        assert_eq!(ruling(&bad, &[node(1, 75, 90), good.clone()]), Ruling::Invalid);
        let silent = [node(1, 0, 100), good.clone()];
        assert_eq!(
            ruling(&silent, &[node(1, 0, 95), good]),
            Ruling::Invalid,
            "one stall is no excuse for it"
        );
    }

    #[test]
    fn a_minority_that_was_never_judged_is_missed() {
        let text = "about = \"x\"\n[[namespace]]\nname = \"bank\"\nmode = \"strong\"\n[[workload]]\nnamespace = \"bank\"\nkind = \"register\"\n";
        let strong = Scenario::parse("x", "x.toml", text).unwrap();
        let available = text.replace("strong", "available").replace("\"register\"", "\"siblings\"");
        let available = Scenario::parse("x", "x.toml", &available).unwrap();
        let ms = 1_000_000;
        let cut = |planned_ms: u64, lasted_ms: u64| {
            let kind = FaultKind::Partition { shape: crate::scenario::Shape::Halves };
            let target = crate::scenario::Role::Random;
            vec![Done {
                fault: crate::plan::Planned {
                    id: 0,
                    kind,
                    target,
                    from_ms: 5,
                    to_ms: 5 + planned_ms,
                    dice: 0,
                },
                nodes: Vec::new(),
                words: String::new(),
                sides: [("n1".to_owned(), "minority".to_owned())].into(),
                begun: 0,
                from: 0,
                until: lasted_ms * ms,
                to: lasted_ms * ms,
                proven: true,
            }]
        };
        let asked = |at_ms: u64| {
            let event = |time, kind| {
                let process = kv_check::Process::Client(1);
                let mut event = Event::new(time, process, kind, "write".into(), kv_check::Json::from(1));
                (event.ns, event.key) = (Some("bank".into()), Some("k".into()));
                event.node = Some("n1".into());
                event
            };
            let events = vec![event(at_ms * ms, EventType::Invoke), event(at_ms * ms + 1, EventType::Fail)];
            operation::pair(&kv_check::history::arrange(events)).unwrap()
        };
        assert_eq!(minorities_judged(&strong, &cut(4_000, 3_900), &asked(1_500)), Some(1));
        assert_eq!(minorities_judged(&strong, &cut(4_000, 3_900), &asked(500)), Some(0), "nobody asked");
        assert_eq!(
            minorities_judged(&strong, &cut(2_001, 1_900), &asked(1_500)),
            Some(0),
            "it was too short"
        );
        assert_eq!(minorities_judged(&strong, &cut(2_000, 1_900), &asked(1_500)), None, "none was planned");
        assert_eq!(minorities_judged(&available, &cut(4_000, 3_900), &asked(1_500)), None);
    }

    #[test]
    fn a_log_that_is_missing_or_empty_shows_no_absence_of_panics() {
        let folder = tempfile::tempdir().unwrap();
        let [good, empty, bad] = ["good", "empty", "bad"].map(|name| folder.path().join(name));
        std::fs::write(&good, "serves\n").unwrap();
        std::fs::write(&empty, "").unwrap();
        std::fs::write(&bad, "serves\nthread 'x' panicked at src/y.rs:1\n").unwrap();
        let missing = folder.path().join("missing");
        let logs = (1..).map(NodeId).zip([good, missing, empty, bad]).collect();
        let found = panics(&logs);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("n2: its log cannot be read"), "{found:?}");
        assert_eq!(found[1], "n3: its log is empty");
        assert!(found[2].starts_with("n4: thread"), "{found:?}");
    }

    #[test]
    fn a_healed_node_that_knows_nothing_does_not_serve() {
        let told = |err: &str| {
            let mut events = Vec::new();
            for at in 0..20_u64 {
                for (time, kind) in [(at * 10, EventType::Invoke), (at * 10 + 5, EventType::Fail)] {
                    let process = kv_check::Process::Client(1);
                    let mut event = Event::new(time, process, kind, "read".into(), kv_check::Json::Null);
                    (event.ns, event.key) = (Some("cart".into()), Some("k".into()));
                    event.node = Some("n1".into());
                    event.err = (kind == EventType::Fail).then(|| err.to_owned());
                    // Every other one is answered.
                    if at % 2 == 0 && kind == EventType::Fail {
                        (event.kind, event.err) = (EventType::Ok, None);
                    }
                    events.push(event);
                }
            }
            let operations = operation::pair(&kv_check::history::arrange(events)).unwrap();
            service::recovery_everywhere(&operations, ["n1"], 0)
        };
        assert_eq!(told(kv_lab::workload::NO_KNOWLEDGE), None);
        assert_eq!(told(kv_check::operation::CONTENDED), Some(5), "who lost a race was served");
    }

    #[test]
    fn reasons_name_what_is_not_valid_and_what_is_missing() {
        let found = reasons(&[property(Ruling::Valid), property(Ruling::Invalid)], &[row(true), row(false)]);
        assert_eq!(found, ["bank linearizable: invalid (why)", "elections: wanted 1, got 0"]);
    }
}
