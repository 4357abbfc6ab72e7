//! What the properties of one namespace are judged by, and what a machine that stood still excuses.

use std::time::Duration;

use kv_check::Operation;
use kv_check::judge::{Property, Ruling};

use crate::recorded::{Marks, Recorded};
use crate::scenario::{Mode, Namespace, Scenario};

/// A machine that took so many milliseconds to sync a page, or to run a task that was due, explains silence
/// of its nodes.
pub(super) const STOOD_STILL_MS: f64 = 250.0;
/// What is said where that explains everything.
pub(super) const STOOD_STILL: &str =
    "; the machine itself stood still, and all that is missing was asked then";

/// A namespace of a run.
pub(super) struct Facts<'a> {
    pub(super) namespace: &'a Namespace,
    pub(super) scenario: &'a Scenario,
    pub(super) recorded: &'a Recorded,
    /// The operations on this namespace.
    pub(super) operations: Vec<Operation>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(
        namespace: &'a Namespace,
        scenario: &'a Scenario,
        recorded: &'a Recorded,
        operations: &[Operation],
    ) -> Self {
        let mine = operations.iter().filter(|op| op.ns == namespace.name);
        Self { namespace, scenario, recorded, operations: mine.cloned().collect() }
    }

    pub(super) fn ns(&self) -> &str {
        &self.namespace.name
    }

    pub(super) fn strong(&self) -> bool {
        self.namespace.mode == Mode::Strong
    }

    pub(super) fn marks(&self) -> &Marks {
        &self.recorded.marks
    }

    /// The longest deadline of the operations on this namespace.
    pub(super) fn deadline(&self) -> Duration {
        let mine = self.scenario.workloads.iter().filter(|load| load.namespace == self.ns());
        mine.map(|load| load.deadline).max().unwrap_or_default()
    }

    pub(super) fn property(
        &self,
        name: &str,
        checker: &str,
        examined: usize,
        ruling: Ruling,
        detail: String,
    ) -> Property {
        Property {
            name: name.to_owned(),
            ns: self.ns().to_owned(),
            checker: checker.to_owned(),
            examined: examined as u64,
            ruling,
            detail,
            evidence: None,
        }
    }

    /// What a promise about time is worth when it was not kept: nothing is known if the machine itself stood
    /// still.
    pub(super) fn too_late(&self, from: u64, to: u64) -> (Ruling, String) {
        let slowest = self.recorded.seen.slowest(from, to);
        match slowest > STOOD_STILL_MS {
            true => (Ruling::Unknown, format!("; the machine itself stood still for {slowest:.0} ms")),
            false => (Ruling::Invalid, String::new()),
        }
    }

    /// What was asked while the machine did not stand still. One stall explains what it made late, not the
    /// rest of a run.
    pub(super) fn at_ease(&self) -> Vec<Operation> {
        let stalls = self.recorded.seen.stalls(STOOD_STILL_MS);
        let still = |op: &Operation| stalls.iter().any(|(from, to)| (*from..*to).contains(&op.call));
        self.operations.iter().filter(|op| !still(op)).cloned().collect()
    }
}

/// Whole milliseconds of a span in nanoseconds.
pub(super) fn milliseconds(ns: u64) -> u64 {
    ns / 1_000_000
}
