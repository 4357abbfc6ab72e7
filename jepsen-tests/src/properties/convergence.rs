//! The replicas of an available namespace become equal, by hints wherever hints can do it.

use std::collections::BTreeSet;

use kv_check::deaths::left_open;
use kv_check::judge::{Property, Ruling};

use super::facts::{Facts, STOOD_STILL_MS, milliseconds};
use crate::deaths;

/// Nanoseconds until all replicas were equal, since healing or since the reading of every key began; none if
/// they never were.
pub(super) fn time(facts: &Facts<'_>) -> Option<u64> {
    let (ns, marks) = (facts.ns(), facts.marks());
    let since = marks.reads.get(ns).map_or(marks.healed, |(moment, _)| *moment);
    marks.converged.get(ns).copied().flatten().map(|moment| moment.saturating_sub(since))
}

/// The property after healing, given [`time`].
pub(super) fn judge(facts: &Facts<'_>, converged: Option<u64>) -> Property {
    let (marks, most) = (facts.marks(), facts.scenario.expect.convergence_ms_max);
    let reads = marks.reads.get(facts.ns());
    let open = open(facts);
    let unexplained = match (reads, &open) {
        (Some((_, partitions)), Some(open)) => kv_check::deaths::unexplained(partitions, open),
        _ => Vec::new(),
    };
    let ms = converged.map(milliseconds);
    let (ruling, why) = match ms {
        None => (Ruling::Invalid, String::new()), // thirty seconds are enough for any machine
        // Hints are gone that were noted.
        Some(_) if !unexplained.is_empty() => (Ruling::Invalid, String::new()),
        Some(ms) if ms <= most => (Ruling::Valid, String::new()),
        Some(_) => facts.too_late(marks.healed, marks.settled),
    };
    let detail = match (ms, reads) {
        (None, _) => {
            let why = marks.unequal.get(facts.ns()).map_or("the reason is not known", String::as_str);
            format!("it never came: {why}")
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
    facts.property("replicas converge", "digests", facts.namespace.n.into(), ruling, detail)
}

/// Keys whose hints a death may have taken. Nothing when a node died that no fault killed: when that was is
/// not recorded.
fn open<'a>(facts: &'a Facts<'_>) -> Option<BTreeSet<&'a str>> {
    let recorded = facts.recorded;
    let disturbances = deaths::disturbances(&recorded.faults).filter(|_| recorded.broken.is_empty());
    disturbances.map(|mut disturbances| {
        disturbances.slowed.extend(recorded.seen.stalls(STOOD_STILL_MS));
        left_open(&facts.operations, &disturbances, facts.deadline().as_nanos() as u64)
    })
}

/// The property after the load: by hints alone, for no final read came before.
pub(super) fn judge_again(facts: &Facts<'_>) -> Property {
    let (ns, marks) = (facts.ns(), facts.marks());
    let again = marks.equal_again.get(ns).map(|at| milliseconds(at.saturating_sub(marks.stopped)));
    let (ruling, detail) = match again {
        Some(ms) => (
            Ruling::Valid,
            format!("by hints alone, {ms} ms after the load had ended; no final read came before"),
        ),
        None => {
            let why = marks.unequal_in_the_end.get(ns).map_or("the reason is not known", String::as_str);
            (Ruling::Invalid, format!("not after the load had ended: {why}"))
        }
    };
    facts.property("replicas converge again", "digests", facts.namespace.n.into(), ruling, detail)
}
