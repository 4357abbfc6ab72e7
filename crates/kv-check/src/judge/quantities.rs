//! What is measured in every run, defined once.

use super::plan::{NamespacePlan, Plan};
use crate::service::{self, Served};
use crate::{Function, Operation, Outcome, available, sets};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Quantities of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quantities {
    /// Operations invoked.
    pub asked: u64,
    /// Operations answered: they succeeded, or were told that a condition did not hold.
    pub answered: u64,
    /// Mutations acknowledged.
    pub acknowledged: u64,
    /// Successful reads; of an available namespace, those called before the store had settled. Later ones, of
    /// a store at rest, are never stale: with them staleness would look smaller the more is read in the end.
    pub reads: u64,
    /// Operations refused as *not applied*, and reads without an answer.
    pub refused: u64,
    /// Mutations of unknown outcome.
    pub unknown: u64,
    /// Those of them whose effect was seen.
    pub unknown_applied: u64,
    /// Acknowledged mutations that are gone.
    pub lost: u64,
    /// Acknowledged mutations that a delete of unknown outcome may have removed.
    pub perhaps_lost: u64,
    /// Acknowledged mutations that were not read in the end, so that nothing is known of them.
    pub never_read: u64,
    /// Deleted values that came back.
    pub resurrected: u64,
    /// Those of them that missed what had been acknowledged before they were called.
    pub stale_reads: u64,
    /// As a part of these reads, from 0 to 1.
    pub stale_fraction: f64,
    /// How far stale reads were behind, in time: the median.
    pub stale_lag_p50_ns: u64,
    /// The 99th percentile.
    pub stale_lag_p99_ns: u64,
    /// The most.
    pub stale_lag_max_ns: u64,
    /// How far a read was behind, in acknowledged mutations: the most.
    pub stale_versions_max: u64,
    /// Reads that said *absent* although a value was there.
    pub false_absences: u64,
    /// The part of reads that were fresh, by the time since the last acknowledged mutation of the key.
    pub freshness: Vec<Freshness>,
    /// Reads that showed more than one value.
    pub reads_with_siblings: u64,
    /// The most values one read showed.
    pub siblings_max: u64,
    /// Keys with more than one value in the end.
    pub conflicted_keys: u64,
    /// Set elements: from acknowledgement until every later read showed it, the median.
    pub stable_latency_p50_ns: u64,
    /// The 99th percentile.
    pub stable_latency_p99_ns: u64,
    /// The most.
    pub stable_latency_max_ns: u64,
    /// Set elements that were lost: from acknowledgement to the last read that showed it, the most.
    pub lost_latency_max_ns: u64,
    /// The longest time without any answer, over the whole run.
    pub longest_gap_ns: u64,
    /// From healing to the first of [`service::STREAK`] answers in a row, at the node where that took
    /// longest. Of an available namespace that rested until its replicas were equal, the harness that let it
    /// rest counts from when it was used again.
    pub recovery_ns: Option<u64>,
    /// From healing until all replicas had equal digests.
    pub convergence_ns: Option<u64>,
    /// How it was served, by window, side and kind of operation.
    pub served: Vec<Share>,
}

/// How a namespace was served on one side during one window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The window.
    pub window: String,
    /// The side: of a partition, or `whole`.
    pub side: String,
    /// Mutations; else reads.
    pub mutations: bool,
    /// Operations answered.
    pub answered: u64,
    /// Operations refused, and reads without an answer.
    pub refused: u64,
    /// Mutations of unknown outcome.
    pub unknown: u64,
    /// Answered, as a part of all: from 0 to 1.
    pub availability: f64,
    /// The longest time without an answer.
    pub longest_gap_ns: u64,
    /// When the last answer came, from the beginning of the window.
    pub last_answer_ns: Option<u64>,
}

/// One point of the curve *fresh, so long after an acknowledgement*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freshness {
    /// Reads called within this time after the last acknowledged mutation of their key (and after the point
    /// before).
    pub within_ns: u64,
    /// How many.
    pub reads: u64,
    /// How many of them were not stale.
    pub fresh: u64,
}

/// Points of the freshness curve, milliseconds; the last one has no end.
const CURVE_MS: [u64; 9] = [1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000];

impl Quantities {
    /// Adds what the accounting of siblings found.
    pub(super) fn siblings(&mut self, account: &available::Account, settled: u64) {
        self.unknown_applied = account.unknown_applied as u64;
        self.perhaps_lost = account.uncertain.len() as u64;
        self.resurrected = account.resurrected.len() as u64;
        let stale: Vec<_> = account.stale.iter().filter(|read| read.call < settled).collect();
        self.stale_reads = stale.len() as u64;
        let mut lags: Vec<u64> = stale.iter().map(|read| read.lag_ns).collect();
        lags.sort_unstable();
        self.stale_lag_p50_ns = quantile(&lags, 0.5);
        self.stale_lag_p99_ns = quantile(&lags, 0.99);
        self.stale_lag_max_ns = quantile(&lags, 1.0);
        self.stale_versions_max = stale.iter().map(|read| read.behind as u64).max().unwrap_or(0);
        self.false_absences = account.false_absences() as u64;
        self.reads_with_siblings = account.reads_with_siblings as u64;
        self.siblings_max = account.max_siblings as u64;
        self.conflicted_keys = account.conflicted as u64;
        self.freshness = freshness(&account.ages);
    }

    /// Adds what set-full found.
    pub(super) fn set(&mut self, account: &sets::Account, settled: u64) {
        self.unknown_applied = account.unknown_applied as u64;
        self.stale_reads = account.stale_reads.iter().filter(|call| **call < settled).count() as u64;
        self.stable_latency_p50_ns = quantile(&account.stable_latencies, 0.5);
        self.stable_latency_p99_ns = quantile(&account.stable_latencies, 0.99);
        self.stable_latency_max_ns = quantile(&account.stable_latencies, 1.0);
        self.lost_latency_max_ns = quantile(&account.lost_latencies, 1.0);
    }

    /// What follows from the others.
    pub(super) fn round_up(&mut self) {
        self.stale_fraction = if self.reads == 0 { 0.0 } else { self.stale_reads as f64 / self.reads as f64 };
    }
}

/// The curve, from ages in order. Points without a read are left out.
fn freshness(ages: &[(u64, bool)]) -> Vec<Freshness> {
    let mut curve = Vec::new();
    let mut rest = ages;
    for within_ns in CURVE_MS.iter().map(|ms| ms * 1_000_000).chain([u64::MAX]) {
        let (these, others) = rest.split_at(rest.partition_point(|(age, _)| *age <= within_ns));
        rest = others;
        let fresh = these.iter().filter(|(_, fresh)| *fresh).count() as u64;
        if !these.is_empty() {
            curve.push(Freshness { within_ns, reads: these.len() as u64, fresh });
        }
    }
    curve
}

/// From when on reads do not count for staleness. In a strong namespace every stale read is a violation, the
/// last too.
pub(super) fn at_rest(namespace: &NamespacePlan, plan: &Plan) -> u64 {
    plan.settled.filter(|_| !namespace.strong).unwrap_or(u64::MAX)
}

/// Measures what times and outcomes alone tell.
pub(super) fn measure(operations: &[Operation], namespace: &NamespacePlan, plan: &Plan) -> Quantities {
    let count = |which: &dyn Fn(&Operation) -> bool| operations.iter().filter(|op| which(op)).count() as u64;
    let at_rest = at_rest(namespace, plan);
    let shares = service::served(operations, &plan.windows);
    let answers = service::answers(operations.iter());
    let first = operations.iter().map(|op| op.call).min().unwrap_or(0);
    let last = operations.iter().filter_map(|op| op.ret).max().unwrap_or(first);
    Quantities {
        asked: operations.len() as u64,
        answered: count(&Operation::answered),
        acknowledged: count(&|op| op.f.mutates() && op.ok()),
        reads: count(&|op| op.f == Function::Read && op.ok() && op.call < at_rest),
        refused: count(&|op| op.outcome == Outcome::Fail && !op.answered()),
        unknown: count(&|op| op.outcome == Outcome::Info),
        longest_gap_ns: service::longest_gap(&answers, first, last),
        recovery_ns: plan.healed.and_then(|healed| {
            let since = operations.iter().filter(|op| op.call >= healed);
            let nodes: BTreeSet<&str> = since.map(|op| op.node.as_str()).collect();
            service::recovery_everywhere(operations, nodes, healed)
        }),
        served: shares.into_iter().map(Share::from).collect(),
        ..Quantities::default()
    }
}

impl From<Served> for Share {
    fn from(row: Served) -> Share {
        Share {
            availability: row.availability(),
            window: row.window,
            side: row.side,
            mutations: row.mutations,
            answered: row.answered,
            refused: row.refused,
            unknown: row.unknown,
            longest_gap_ns: row.longest_gap_ns,
            last_answer_ns: row.last_answer_ns,
        }
    }
}

/// Of sorted values the smallest that this part of them does not exceed; 0 where there are none.
fn quantile(sorted: &[u64], part: f64) -> u64 {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).or(sorted.last()).copied().unwrap_or(0)
}
