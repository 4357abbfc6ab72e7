//! What the judge is to know of a run: the promises of its namespaces, its moments, and the network
//! partitions with their sides.

use std::collections::BTreeSet;
use std::time::Duration;

use kv_check::Operation;
use kv_check::judge::{Expectation, Minority, NamespacePlan, Plan};
use kv_check::service::{self, Window};

use crate::nemesis::Done;
use crate::recorded::Marks;
use crate::scenario::{FaultKind, Mode, Namespace, Promise, Scenario, judged};

/// How long a leader that is cut off may take to notice: two election timeouts.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);
/// Answered operations below which nothing was shown about a namespace.
pub(crate) const ENOUGH: u64 = 20;

/// What the judge is to know of a run.
pub fn plan(scenario: &Scenario, marks: &Marks, faults: &[Done]) -> Plan {
    let namespaces = scenario.namespaces.iter().filter_map(|namespace| {
        let load = scenario.workloads.iter().find(|load| load.namespace == namespace.name)?;
        let strong = namespace.mode == Mode::Strong;
        let expect = Expectation {
            lost: namespace.may_lose,
            stale: namespace.stale.expectation(),
            monotonic: namespace.promise == Promise::MonotonicReads,
        };
        Some((namespace.name.clone(), NamespacePlan { strong, workload: judged(load.kind), expect }))
    });
    // A single node has no other to be equal with.
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

/// Sides that cannot have a quorum: all nodes of a scenario are voters, and sides are named after how many
/// they are.
pub fn minority() -> Minority {
    Minority { sides: BTreeSet::from(["minority".to_owned()]), grace_ns: NOTICED_WITHIN.as_nanos() as u64 }
}

/// The network partitions of a run, with their sides, while they were certainly in force. Cuts of the same
/// sides, as a flapping one makes, share a name; one that makes no sides, such as a ring, is a window all the
/// same.
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

/// In how many cuts the side without a majority was asked, for the strong namespace where that is the fewest;
/// none where there is no such namespace, or no cut was planned that is long enough for it.
pub(crate) fn minorities_judged(
    scenario: &Scenario,
    faults: &[Done],
    operations: &[Operation],
) -> Option<usize> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use kv_check::{Event, EventType, operation};

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
        assert_eq!(minorities_judged(&strong, &cut(4_000, 3_900), &asked(500)), Some(0), "nothing was asked");
        assert_eq!(
            minorities_judged(&strong, &cut(2_001, 1_900), &asked(1_500)),
            Some(0),
            "it was too short"
        );
        assert_eq!(minorities_judged(&strong, &cut(2_000, 1_900), &asked(1_500)), None, "none was planned");
        assert_eq!(minorities_judged(&available, &cut(4_000, 3_900), &asked(1_500)), None);
    }
}
