//! Entries of histories that this replica should have and does not: a value that remembers them, and says how
//! long a snapshot waits for them to be put back.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_types::NamespaceId;
use tokio::time::Instant;

use crate::limits::HOLES;

/// What is missing. At most [`HOLES`] ranges are remembered; a snapshot meets the others again.
#[derive(Debug, Default)]
pub(crate) struct Holes {
    /// The last revision of each range, by namespace and first revision.
    ranges: BTreeMap<(NamespaceId, u64), u64>,
    /// When the first of them was met.
    since: Option<Instant>,
}

impl Holes {
    /// Revisions of a namespace are missing, from the first to the last of `range`.
    pub(crate) fn note(&mut self, namespace: NamespaceId, range: (u64, u64), now: Instant) {
        self.since.get_or_insert(now);
        if self.ranges.len() < HOLES || self.ranges.contains_key(&(namespace, range.0)) {
            self.ranges.insert((namespace, range.0), range.1);
        }
    }

    /// A range is complete again, or no longer wanted.
    pub(crate) fn close(&mut self, namespace: NamespaceId, first: u64) {
        self.ranges.remove(&(namespace, first));
        if self.ranges.is_empty() {
            self.since = None;
        }
    }

    /// What is missing: namespace, first revision, last revision.
    pub(crate) fn all(&self) -> Vec<(NamespaceId, u64, u64)> {
        self.ranges.iter().map(|((namespace, first), last)| (*namespace, *first, *last)).collect()
    }

    /// Whether a snapshot should wait: another member may still have what is missing. Not forever, since the
    /// log is kept as long.
    pub(crate) fn hold_up(&self, at_most: Duration, now: Instant) -> bool {
        self.since.is_some_and(|since| now.duration_since(since) < at_most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_snapshot_waits_for_what_is_missing_and_not_for_ever() {
        let (one, two) = (NamespaceId(1), NamespaceId(2));
        let start = Instant::now();
        let mut holes = Holes::default();
        assert!(!holes.hold_up(WAIT, start));
        holes.note(one, (5, 9), start);
        holes.note(two, (1, 1), start + WAIT / 2);
        holes.note(one, (5, 7), start + WAIT / 2);
        assert_eq!(holes.all(), [(one, 5, 7), (two, 1, 1)]);
        assert!(holes.hold_up(WAIT, start + WAIT - Duration::from_millis(1)));
        assert!(!holes.hold_up(WAIT, start + WAIT), "from the first on");
        holes.close(one, 5);
        assert_eq!(holes.all(), [(two, 1, 1)]);
        holes.close(two, 1);
        holes.note(one, (3, 3), start + 2 * WAIT);
        assert!(holes.hold_up(WAIT, start + 2 * WAIT), "what is met later is waited for anew");
    }

    #[test]
    fn so_many_are_remembered() {
        let mut holes = Holes::default();
        for first in 0..2 * HOLES as u64 {
            holes.note(NamespaceId(1), (first, first), Instant::now());
        }
        holes.note(NamespaceId(1), (0, 4), Instant::now());
        assert_eq!((holes.all().len(), holes.all()[0]), (HOLES, (NamespaceId(1), 0, 4)));
    }
}
