//! How many ring partitions of an available namespace the deaths of a run may have left to reads. Pure.

use std::time::Duration;

use kv_check::Operation;
use kv_check::deaths::{Span, left_open};

use crate::nemesis::Done;
use crate::scenario::FaultKind;

/// From the deadline of a write until its hints are noted, on a slow disk.
const NOTED_WITHIN: Duration = Duration::from_secs(1);

/// As many at most: one for each key of which a mutation may have been under way when a node died. None if a node lost what it
/// had: then the hints that it held are gone with it, and there is no bound.
pub fn may_need_reads(
    ns: &str,
    operations: &[Operation],
    faults: &[Done],
    deadline: Duration,
) -> Option<usize> {
    let mut deaths: Vec<Span> = Vec::new();
    for done in faults {
        match done.fault.kind {
            FaultKind::RestartEmpty | FaultKind::BitFlip => return None,
            FaultKind::Kill | FaultKind::LossyKill => deaths.push((done.begun, done.from)),
            FaultKind::FailSync | FaultKind::DiskFull { .. } => deaths.push((done.begun, done.to)),
            _ => {}
        }
    }
    // Links keep what they do not pass, and so does the kernel for a node that does not run.
    let held: Vec<Span> = faults.iter().map(|done| (done.begun, done.to)).collect();
    let lasts_ns = u64::try_from((deadline + NOTED_WITHIN).as_nanos()).unwrap_or(u64::MAX);
    Some(left_open(operations, ns, &deaths, &held, lasts_ns).len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Planned;
    use crate::scenario::{Role, Shape};
    use kv_check::{Event, EventType, Json, Process, operation};
    use std::collections::BTreeMap;

    const S: u64 = 1_000_000_000;

    /// One write of a key of its own at each of these seconds.
    fn writes(at: &[u64]) -> Vec<Operation> {
        let mut events = Vec::new();
        for (process, at) in (0..).zip(at) {
            for (time, kind) in [(at * S, EventType::Invoke), (at * S + 5, EventType::Ok)] {
                let mut event =
                    Event::new(time, Process::Client(process), kind, "write".into(), Json::from(process));
                (event.ns, event.key) = (Some("cart".into()), Some(format!("k{process}")));
                events.push(event);
            }
        }
        operation::pair(&kv_check::history::arrange(events)).unwrap()
    }

    fn done(kind: FaultKind, begun: u64, from: u64, to: u64) -> Done {
        Done {
            fault: Planned { id: 0, kind, target: Role::Random, from_ms: 0, to_ms: 1, dice: 0 },
            nodes: Vec::new(),
            words: String::new(),
            sides: BTreeMap::new(),
            begun: begun * S,
            from: from * S,
            until: to * S,
            to: to * S,
            proven: true,
        }
    }

    #[test]
    fn a_death_leaves_what_was_under_way_and_no_more() {
        let operations = writes(&[1, 7, 9, 11, 30]);
        let may = |faults: &[Done]| may_need_reads("cart", &operations, faults, Duration::from_secs(1));
        assert_eq!(may(&[]), Some(0));
        assert_eq!(may(&[done(FaultKind::Kill, 10, 10, 15)]), Some(1), "a write goes on for two seconds");
        assert_eq!(may(&[done(FaultKind::LossyKill, 10, 12, 15)]), Some(2));
        assert_eq!(may(&[done(FaultKind::FailSync, 10, 10, 30)]), Some(3), "it may die until the end");
        assert_eq!(may(&[done(FaultKind::Pause, 10, 10, 15)]), Some(0), "nobody dies of a pause");
        for kind in [FaultKind::RestartEmpty, FaultKind::BitFlip] {
            assert_eq!(may(&[done(FaultKind::Kill, 10, 10, 15), done(kind, 20, 20, 21)]), None);
        }
    }

    #[test]
    fn a_cut_keeps_what_was_sent_and_it_is_begun_afterwards() {
        let operations = writes(&[1, 7, 9, 11, 30]);
        let cut = FaultKind::Partition { shape: Shape::Halves };
        let may = |killed: u64| {
            let faults = [done(cut, 5, 5, 20), done(FaultKind::Kill, killed, killed, killed + 1)];
            may_need_reads("cart", &operations, &faults, Duration::from_secs(1))
        };
        assert_eq!((may(18), may(21), may(25)), (Some(0), Some(3), Some(0)));
    }
}
