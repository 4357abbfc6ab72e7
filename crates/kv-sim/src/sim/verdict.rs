//! The judgement of a run: what `kv-check` says of its history, what the healed cluster owed, and invariants
//! that only a view from outside of all nodes can check. Also *sometimes* assertions: states that some seed
//! has to reach, or nothing was shown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kv_check::deaths::{Disturbances, left_open, unexplained};
use kv_check::judge::{Judgement, Minority, Plan, Property, Ruling};
use kv_check::service::Window;
use kv_check::{Event, EventType, Json, Process};
use kv_types::NodeId;
use serde::{Deserialize, Serialize};

use super::cluster::Cluster;
use super::load::{Part, Report};
use super::nemesis::MINORITY;

/// The property of strong namespaces that cuts put to the test.
const MINORITY_REFUSES: &str = "a minority refuses";
/// Fewer answered operations than this in a namespace prove nothing.
const ENOUGH: u64 = 20;
/// How long a leader that is cut off may take to notice: two election timeouts.
const NOTICED_WITHIN_NS: u64 = 1_000_000_000;
/// One operation in so many may be left out because too many were open; with more, too little was asked.
const SHED: u64 = 100;

/// What the judgement rests on beside the history.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The seed.
    pub seed: u64,
    /// The namespaces.
    pub parts: &'a [Part],
    /// What the clients report.
    pub report: &'a Report,
    /// The machines.
    pub cluster: &'a Cluster,
    /// Faults by kind.
    pub installed: &'a BTreeMap<&'static str, u64>,
    /// Cuts that left a majority on one side.
    pub cuts: &'a [Window],
    /// When nodes died, and what made writes last longer than their deadline; none if hints may be lost or
    /// refused.
    pub disturbances: Option<&'a Disturbances>,
    /// When the faults ended.
    pub healed: Option<Duration>,
    /// How long it all took, in the simulation.
    pub simulated: Duration,
    /// What was owed and not done.
    pub broken: Vec<String>,
}

/// The result of a run, as it stands in `summary.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// The seed.
    pub seed: u64,
    /// The judgement.
    pub ruling: Ruling,
    /// What was broken, in words.
    pub broken: Vec<String>,
    /// What `kv-check` says; none if the history could not be judged.
    pub judgement: Option<Judgement>,
    /// Faults that were installed, by kind.
    pub faults: BTreeMap<String, u64>,
    /// States that were reached, by name.
    pub sometimes: BTreeMap<String, bool>,
    /// Operations that succeeded.
    pub ok: u64,
    /// Operations that were refused.
    pub fail: u64,
    /// Operations of unknown outcome.
    pub info: u64,
    /// Terms in which the strong namespaces had a leader.
    pub elections: u64,
    /// Simulated seconds.
    pub simulated_seconds: f64,
    /// Simulated milliseconds from the end of the loads until all replicas were alike; if hints did not make
    /// them so, from the one read of every key that was made then.
    pub converged_ms: Option<u64>,
    /// What made them alike: `hints`, or `reads` (only after a node died).
    #[serde(default)]
    pub converged_by: Option<String>,
    /// How many ring partitions needed those reads.
    #[serde(default)]
    pub needed_reads: u64,
    /// Draws that followed no seed. Anything but 0 means that this run does not repeat.
    pub unscoped_draws: u64,
    /// A hash of the trace.
    pub fingerprint: String,
}

/// Judges a run.
pub fn judge(history: &[Event], facts: &Facts<'_>) -> Summary {
    let mut broken = facts.broken.clone();
    let judgement = kv_check::judge(history, &plan_of(history, facts));
    let judgement =
        judgement.inspect_err(|error| broken.push(format!("the history is malformed: {error}"))).ok();
    broken.extend(elections(history));
    broken.extend(points(history));
    broken.extend(hints_lost(history, facts));
    let unscoped = kv_raft::NodeRuntime::unscoped();
    if unscoped > 0 {
        broken.push(format!("{unscoped} draws followed no seed: this run does not repeat"));
    }
    let judgement = judgement.map(without_unasked);
    let ruling =
        if broken.is_empty() { ruling_of(history, facts, judgement.as_ref()) } else { Ruling::Invalid };
    let count = |kind: EventType| {
        let of_client = |event: &&Event| matches!(event.process, Process::Client(_)) && event.kind == kind;
        history.iter().filter(of_client).count() as u64
    };
    let report = facts.report;
    let leaders = report.leaders.keys().filter(|(group, _)| *group == 1).count() as u64;
    let reached = sometimes(history, facts, judgement.as_ref(), leaders);
    let millis = |after: Duration| u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    let alike_by = if report.needed_reads.is_empty() { "hints" } else { "reads" };
    Summary {
        seed: facts.seed,
        ruling,
        broken,
        judgement,
        faults: facts.installed.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
        sometimes: reached,
        ok: count(EventType::Ok),
        fail: count(EventType::Fail),
        info: count(EventType::Info),
        elections: leaders,
        simulated_seconds: facts.simulated.as_secs_f64(),
        converged_ms: report.converged_after.map(millis),
        converged_by: report.converged_after.map(|_| alike_by.to_owned()),
        needed_reads: report.needed_reads.values().map(|partitions| partitions.len() as u64).sum(),
        unscoped_draws: unscoped,
        fingerprint: String::new(),
    }
}

/// What the history of a run is judged by.
fn plan_of(history: &[Event], facts: &Facts<'_>) -> Plan {
    let nanos = |moment: Duration| u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX);
    let began = history.iter().find(|event| event.f.name() == "faults-begin").map(|event| event.time);
    let healed = facts.healed.map(nanos);
    let windows =
        began.zip(healed).map(|(from, to)| Window { name: "faults".into(), from, to, ..Window::default() });
    Plan {
        namespaces: facts.parts.iter().map(|part| (part.load.ns.clone(), part.plan)).collect(),
        windows: windows.into_iter().chain(facts.cuts.iter().cloned()).collect(),
        minority: Some(Minority {
            sides: BTreeSet::from([MINORITY.to_owned()]),
            grace_ns: NOTICED_WITHIN_NS,
        }),
        healed,
        settled: facts.report.settled,
        receipts: true,
        digests: facts.parts.iter().map(|part| part.load.ns.clone()).collect(),
        enough: ENOUGH,
        ..Plan::default()
    }
}

/// The judgement without the property of minorities, if it examined nothing: in one seed the nodes that are
/// cut off may be dead, or too seldom asked. All seeds together have to show it.
fn without_unasked(mut judgement: Judgement) -> Judgement {
    let unasked = |it: &Property| it.name == MINORITY_REFUSES && it.examined == 0;
    judgement.properties.retain(|property| !unasked(property));
    let worst = judgement.properties.iter().map(|property| property.ruling).max();
    Judgement { ruling: worst.unwrap_or(Ruling::Unknown), ..judgement }
}

/// The ruling of a run in which nothing was broken: unknown when too many operations were left out.
fn ruling_of(history: &[Event], facts: &Facts<'_>, judgement: Option<&Judgement>) -> Ruling {
    let judged = judgement.map_or(Ruling::Unknown, |judgement| judgement.ruling);
    let begun = history.iter().filter(|event| event.kind == EventType::Invoke).count() as u64;
    if facts.report.shed > begun / SHED { judged.max(Ruling::Unknown) } else { judged }
}

/// Ring partitions that needed reads although nothing was being written there when nodes died: hints are lost
/// that were noted.
fn hints_lost(history: &[Event], facts: &Facts<'_>) -> Vec<String> {
    let (Some(disturbances), Ok(operations)) = (facts.disturbances, kv_check::operation::pair(history))
    else {
        return Vec::new(); // what is malformed is broken anyway
    };
    let mut broken = Vec::new();
    for (ns, partitions) in &facts.report.needed_reads {
        let loads = facts.parts.iter().map(|part| &part.load).filter(|load| load.ns == *ns);
        let deadline_ns = loads.map(|load| load.deadline.as_nanos() as u64).max().unwrap_or_default();
        let mine = operations.iter().filter(|op| op.ns == *ns);
        let open = left_open(mine, disturbances, deadline_ns);
        for keys in unexplained(partitions, &open) {
            broken.push(format!(
                "{ns}: replicas of {keys:?} differed, and nothing was being written there when nodes died"
            ));
        }
    }
    broken
}

/// The serialization point of a strong answer: term, index, revision of the namespace, and who served it.
fn point(event: &Event) -> Option<(u64, u64, u64, &str)> {
    let receipt = event.receipt.as_ref()?;
    let strong = receipt.get("strong")?;
    let of = |name: &str| strong.get(name).and_then(Json::as_u64);
    Some((of("term")?, of("index")?, of("revision")?, receipt.get("by")?.as_str()?))
}

/// Leaders of one term follow each other and none comes back: openraft orders leaders by term, then node, and
/// elects a greater node in a term that has a leader already. So in the order of the log, the node that signs
/// the strong answers of a term only ever becomes greater. What nodes say of themselves proves nothing: who
/// is cut off goes on calling itself a leader.
fn elections(history: &[Event]) -> Vec<String> {
    let mut signed: BTreeMap<u64, BTreeSet<(u64, NodeId)>> = BTreeMap::new();
    let mut broken = Vec::new();
    let answers = history.iter().filter(|event| event.kind == EventType::Ok);
    for (term, index, _, by) in answers.filter_map(fresh).filter_map(point) {
        match by.parse() {
            Ok(by) => drop(signed.entry(term).or_default().insert((index, by))),
            Err(_) => broken.push(format!("a strong answer is signed by {by}, which is not a node")),
        }
    }
    for (term, signed) in signed {
        let mut last = None;
        for (index, by) in signed {
            if last.is_some_and(|last| last > by) {
                broken.push(format!("term {term}: {by} signs at index {index}, after a greater leader had"));
            }
            last = last.max(Some(by));
        }
    }
    broken
}

/// An answer that was decided when it was given, not one that is told again: that is signed by the node that
/// tells it.
fn fresh(event: &Event) -> Option<&Event> {
    let again = |receipt: &Json| receipt.get("deduplicated").is_some();
    (!event.receipt.as_ref().is_some_and(again)).then_some(event)
}

/// Every acknowledged strong write has a place in the log and a revision of its own, and both grow together.
fn points(history: &[Event]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut by_ns: BTreeMap<&str, BTreeMap<u64, u64>> = BTreeMap::new();
    let mut indices: BTreeMap<u64, u64> = BTreeMap::new();
    let wrote =
        |event: &&Event| event.kind == EventType::Ok && event.f.name() != "read" && event.revision.is_some();
    for event in history.iter().filter(wrote) {
        let Some((_, index, revision, _)) = point(event) else { continue };
        if let Some(other) = indices.insert(index, event.index) {
            broken.push(format!(
                "two acknowledged writes at index {index}: events {other} and {}",
                event.index
            ));
        }
        let ns = event.ns.as_deref().unwrap_or_default();
        if by_ns.entry(ns).or_default().insert(index, revision).is_some() {
            broken.push(format!("revision {revision} of {ns} twice"));
        }
    }
    for (ns, points) in by_ns {
        let mut last = 0;
        for (index, revision) in points {
            if revision <= last {
                broken.push(format!("{ns}: revision {revision} at index {index} follows revision {last}"));
            }
            last = last.max(revision);
        }
    }
    broken
}

fn sometimes(
    history: &[Event],
    facts: &Facts<'_>,
    judgement: Option<&Judgement>,
    leaders: u64,
) -> BTreeMap<String, bool> {
    let any = |what: &dyn Fn(&Event) -> bool| history.iter().any(what);
    let receipt = |event: &Event, name: &str| event.receipt.as_ref().is_some_and(|r| r.get(name).is_some());
    let error = |name: &'static str| any(&move |event: &Event| event.err.as_deref() == Some(name));
    let siblings = |event: &Event| {
        event.f.name() == "read" && event.value.as_array().is_some_and(|values| values.len() > 1)
    };
    let hinted = |event: &Event| {
        let hints = event.receipt.as_ref().and_then(|receipt| receipt.pointer("/available/hints"));
        hints.and_then(Json::as_u64).is_some_and(|hints| hints > 0)
    };
    let torn = facts.cluster.machines().any(|machine| machine.lives() > 1);
    let states = [
        ("a leader was replaced", leaders > 1),
        ("a node began another life", torn),
        (
            "a write had an unknown outcome",
            any(&|event| event.kind == EventType::Info && matches!(event.process, Process::Client(_))),
        ),
        ("a minority refused", error("NO_QUORUM")),
        ("a compare-and-set mismatched", error(kv_check::operation::MISMATCH)),
        ("a resent write was recognised", any(&|event| receipt(event, "deduplicated"))),
        ("a read showed siblings", any(&siblings)),
        ("a hint was stored", any(&hinted)),
        (
            "a minority was cut off for long enough to be judged, and was asked",
            judgement.is_some_and(|judged| judged.properties.iter().any(|it| it.name == MINORITY_REFUSES)),
        ),
        (
            "hints alone made the replicas alike, and no node had died",
            any(&hinted) && !facts.report.may_read && facts.report.converged_after.is_some(),
        ),
    ];
    states.into_iter().map(|(name, hit)| (name.to_owned(), hit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// An acknowledged strong write: (term, index, revision, who signed).
    fn history(points: &[(u64, u64, u64, &str)]) -> Vec<Event> {
        let event = |(at, (term, index, revision, by)): (u64, &(u64, u64, u64, &str))| {
            let mut event = Event::new(at, Process::Client(at), EventType::Ok, "write".into(), Json::Null);
            (event.ns, event.revision) = (Some("bank".into()), Some(*revision));
            let strong = json!({"term": term, "index": index, "revision": revision});
            event.receipt = Some(json!({"by": by, "strong": strong}));
            event
        };
        (0..).zip(points).map(event).collect()
    }

    #[test]
    fn leaders_of_a_term_follow_each_other_and_none_comes_back() {
        let fine = [(1, 1, 1, "n2"), (1, 2, 2, "n2"), (1, 3, 3, "n4"), (2, 4, 4, "n1")];
        assert!(elections(&history(&fine)).is_empty(), "a greater node may take over within a term");
        // In the order of the log, whatever the order of the answers.
        let shuffled = [(1, 3, 3, "n4"), (1, 1, 1, "n2"), (1, 2, 2, "n2")];
        assert!(elections(&history(&shuffled)).is_empty());
        let back = elections(&history(&[(1, 1, 1, "n2"), (1, 2, 2, "n4"), (1, 3, 3, "n2")]));
        assert_eq!(back, ["term 1: n2 signs at index 3, after a greater leader had"]);
        let smaller = elections(&history(&[(7, 1, 1, "n4"), (7, 2, 2, "n2")]));
        assert_eq!(smaller.len(), 1, "a smaller node cannot be elected in a term that has a leader");
        assert_eq!(elections(&history(&[(1, 1, 1, "other")])).len(), 1);
    }

    #[test]
    fn an_answer_that_is_told_again_is_signed_by_the_node_that_tells_it() {
        let mut history = history(&[(1, 1, 1, "n2"), (1, 2, 2, "n4"), (1, 3, 3, "n2")]);
        history[2].receipt.as_mut().unwrap()["deduplicated"] = json!(true);
        assert!(elections(&history).is_empty());
    }

    #[test]
    fn places_in_the_log_and_revisions_are_used_once_and_grow_together() {
        assert!(points(&history(&[(1, 5, 1, "n1"), (1, 9, 2, "n1"), (2, 12, 3, "n2")])).is_empty());
        for wrong in [
            [(1, 5, 1, "n1"), (1, 5, 2, "n1")],
            [(1, 5, 2, "n1"), (1, 9, 1, "n1")],
            [(1, 5, 2, "n1"), (1, 9, 2, "n1")],
        ] {
            assert!(!points(&history(&wrong)).is_empty(), "{wrong:?}");
        }
    }
}
