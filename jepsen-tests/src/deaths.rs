//! Whether the deaths of a run explain what hints left to reads. Pure.

use kv_check::deaths::{Disturbances, Span};

use crate::nemesis::Done;
use crate::scenario::FaultKind;

/// When nodes died, and what made writes last longer than their deadline. None if a node lost what it had:
/// the hints that it held are gone with it, and nothing can be told.
pub fn disturbances(faults: &[Done]) -> Option<Disturbances> {
    let mut all = Disturbances::default();
    for done in faults {
        let lasted: Span = (done.begun, done.to);
        match done.fault.kind {
            FaultKind::RestartEmpty | FaultKind::BitFlip | FaultKind::JournalFlip => return None,
            // In force is a failing sync once its node is gone.
            FaultKind::Kill | FaultKind::LossyKill | FaultKind::FailSync => {
                all.deaths.push((done.begun, done.from));
            }
            // While a disk has no room it takes no note.
            FaultKind::DiskFull { .. } | FaultKind::DiskNearlyFull { .. } => all.deaths.push(lasted),
            FaultKind::Partition { .. } => all.held.push(lasted),
            FaultKind::Pause
            | FaultKind::Delay { .. }
            | FaultKind::Slow { .. }
            | FaultKind::Loss { .. }
            | FaultKind::DiskHang
            | FaultKind::DiskSlow { .. }
            | FaultKind::TierStall
            | FaultKind::TierSlow { .. }
            | FaultKind::Flood { .. } => {
                all.slowed.push(lasted);
            }
            FaultKind::Reset | FaultKind::ClockJump { .. } | FaultKind::ClockDrift { .. } => {}
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Planned;
    use crate::scenario::{Role, Shape};
    use std::collections::BTreeMap;

    fn done(kind: FaultKind, begun: u64) -> Done {
        Done {
            fault: Planned { id: 0, kind, target: Role::Random, from_ms: 0, to_ms: 1, dice: 0 },
            nodes: Vec::new(),
            words: String::new(),
            sides: BTreeMap::new(),
            begun,
            from: begun + 1,
            until: begun + 5,
            to: begun + 6,
            proven: true,
        }
    }

    #[test]
    fn each_kind_of_fault_is_what_it_does_to_writes() {
        let cut = FaultKind::Partition { shape: Shape::Halves };
        let faults = [
            done(FaultKind::Kill, 10),
            done(FaultKind::FailSync, 20),
            done(FaultKind::DiskFull { bytes: 1 }, 30),
            done(cut, 40),
            done(FaultKind::Pause, 50),
            done(FaultKind::ClockJump { by_ms: 1 }, 60),
        ];
        let expected = Disturbances {
            deaths: vec![(10, 11), (20, 21), (30, 36)],
            held: vec![(40, 46)],
            slowed: vec![(50, 56)],
        };
        assert_eq!(disturbances(&faults), Some(expected));
        assert_eq!(disturbances(&[]), Some(Disturbances::default()));
        for kind in [FaultKind::RestartEmpty, FaultKind::BitFlip, FaultKind::JournalFlip] {
            assert_eq!(disturbances(&[done(FaultKind::Kill, 10), done(kind, 20)]), None);
        }
    }
}
