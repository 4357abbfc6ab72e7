//! Hints that their targets refuse for what is in them: too large for the target, or for a key that it does
//! not keep. They wait apart, each for longer after every try, so that the others of the target go on. A new
//! life of the target may take them, so what was set aside is forgotten while the target is away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kv_types::NodeId;
use tokio::time::Instant;

use crate::limits;

#[derive(Debug, Clone, Copy)]
struct Waiting {
    tries: u32,
    not_before: Instant,
}

#[derive(Debug, Default)]
struct Target {
    rows: BTreeMap<Bytes, Waiting>,
    /// When the last refusal was told to the log.
    told: Option<Instant>,
}

/// What is set aside, by target and row. Time is an argument.
#[derive(Debug, Default)]
pub(crate) struct Aside(Mutex<BTreeMap<NodeId, Target>>);

impl Aside {
    fn targets(&self) -> MutexGuard<'_, BTreeMap<NodeId, Target>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a row is set aside, and its time has not come.
    pub(crate) fn waits(&self, target: NodeId, row: &Bytes, now: Instant) -> bool {
        let targets = self.targets();
        let waiting = targets.get(&target).and_then(|of| of.rows.get(row));
        waiting.is_some_and(|waiting| now < waiting.not_before)
    }

    /// Sets a row aside: twice as long as the last time. Beyond [`limits::SET_ASIDE`] rows of a target it is
    /// tried again with the next round.
    pub(crate) fn put(&self, target: NodeId, row: &Bytes, now: Instant) {
        let mut targets = self.targets();
        let rows = &mut targets.entry(target).or_default().rows;
        let tries = rows.get(row).map_or(0, |waiting| waiting.tries);
        if tries == 0 && rows.len() >= limits::SET_ASIDE {
            return;
        }
        let (first, longest) = limits::SET_ASIDE_FOR;
        let pause = first.saturating_mul(1 << tries.min(16)).min(longest);
        rows.insert(row.clone(), Waiting { tries: tries.saturating_add(1), not_before: now + pause });
    }

    /// Whether a refusal by this target is worth a line in the log: one in [`limits::REFUSAL_TOLD`].
    pub(crate) fn is_to_tell(&self, target: NodeId, now: Instant) -> bool {
        let mut targets = self.targets();
        let told = &mut targets.entry(target).or_default().told;
        let worth = told.is_none_or(|told| now >= told + limits::REFUSAL_TOLD);
        if worth {
            *told = Some(now);
        }
        worth
    }

    /// A round met these rows of the target alone: the others were delivered, or are gone.
    pub(crate) fn keep(&self, target: NodeId, met: &BTreeSet<Bytes>) {
        if let Some(of) = self.targets().get_mut(&target) {
            of.rows.retain(|row, _| met.contains(row));
        }
    }

    /// The target is away, or nothing is held for it.
    pub(crate) fn forget(&self, target: NodeId) {
        if let Some(of) = self.targets().get_mut(&target) {
            of.rows.clear();
        }
    }

    /// Rows by target.
    pub(crate) fn rows(&self) -> BTreeMap<NodeId, u64> {
        let targets = self.targets();
        let some = targets.iter().filter(|(_, of)| !of.rows.is_empty());
        some.map(|(target, of)| (*target, of.rows.len() as u64)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const T: NodeId = NodeId(3);

    fn row(n: usize) -> Bytes {
        Bytes::from(n.to_string())
    }

    #[test]
    fn a_row_waits_longer_after_each_try_and_no_other_waits() {
        let (aside, begun) = (Aside::default(), Instant::now());
        let (first, longest) = limits::SET_ASIDE_FOR;
        let ms = Duration::from_millis(1);
        let (mut now, mut expected) = (begun, first);
        for _ in 0..40 {
            assert!(!aside.waits(T, &row(1), now));
            aside.put(T, &row(1), now);
            assert!(aside.waits(T, &row(1), now + expected - ms));
            assert!(!aside.waits(T, &row(2), now) && !aside.waits(NodeId(4), &row(1), now));
            now += expected;
            expected = (expected * 2).min(longest);
        }
        assert_eq!(aside.rows(), BTreeMap::from([(T, 1)]));
        aside.put(T, &row(1), now);
        aside.forget(T);
        assert!(!aside.waits(T, &row(1), now) && aside.rows().is_empty());
        aside.put(T, &row(1), now);
        assert!(!aside.waits(T, &row(1), now + first), "it begins anew");
    }

    #[test]
    fn rows_are_bounded_and_those_that_are_gone_make_room() {
        let (aside, now) = (Aside::default(), Instant::now());
        (0..=limits::SET_ASIDE).for_each(|n| aside.put(T, &row(n), now));
        assert_eq!(aside.rows()[&T], limits::SET_ASIDE as u64);
        assert!(!aside.waits(T, &row(limits::SET_ASIDE), now), "it is tried with the next round");
        aside.put(T, &row(0), now);
        let last = row(limits::SET_ASIDE - 1);
        aside.keep(T, &BTreeSet::from([last.clone()]));
        assert!(aside.waits(T, &last, now) && aside.rows()[&T] == 1);
    }

    #[test]
    fn few_refusals_are_told() {
        let (aside, now) = (Aside::default(), Instant::now());
        assert!(aside.is_to_tell(T, now) && aside.is_to_tell(NodeId(4), now));
        assert!(!aside.is_to_tell(T, now + limits::REFUSAL_TOLD - Duration::from_millis(1)));
        assert!(aside.is_to_tell(T, now + limits::REFUSAL_TOLD));
    }
}
