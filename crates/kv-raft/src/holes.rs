//! Entries of histories that this replica should have and does not: a value that remembers them, and says how
//! long a snapshot waits for them to be put back.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_types::NamespaceId;
use tokio::time::Instant;

use crate::limits::HOLES;

/// What is missing. At most [`HOLES`] ranges are remembered; a snapshot meets the others again.
#[derive(Debug, Default)]
pub(crate) struct Holes(BTreeMap<(NamespaceId, u64), Hole>);

/// A range of missing revisions.
#[derive(Debug, Clone, Copy)]
struct Hole {
    last: u64,
    /// When it was first met.
    since: Instant,
}

impl Holes {
    /// Revisions of a namespace are missing, from the first to the last of `range`. True while a snapshot
    /// should wait for them: another member may still have them. Not forever, since the log is kept as long.
    pub(crate) fn meet(
        &mut self,
        namespace: NamespaceId,
        range: (u64, u64),
        now: Instant,
        wait: Duration,
    ) -> bool {
        if self.0.len() >= HOLES && !self.0.contains_key(&(namespace, range.0)) {
            return false;
        }
        let hole = self.0.entry((namespace, range.0)).or_insert(Hole { last: range.1, since: now });
        hole.last = range.1;
        now.duration_since(hole.since) < wait
    }

    /// A range is complete again, or no longer wanted.
    pub(crate) fn close(&mut self, namespace: NamespaceId, first: u64) {
        self.0.remove(&(namespace, first));
    }

    /// What is missing: namespace, first revision, last revision.
    pub(crate) fn all(&self) -> Vec<(NamespaceId, u64, u64)> {
        self.0.iter().map(|((namespace, first), hole)| (*namespace, *first, hole.last)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_snapshot_waits_for_what_is_missing_and_not_forever() {
        let (one, two) = (NamespaceId(1), NamespaceId(2));
        let start = Instant::now();
        let mut holes = Holes::default();
        assert!(holes.meet(one, (5, 9), start, WAIT));
        assert!(holes.meet(one, (5, 7), start + WAIT / 2, WAIT));
        assert!(!holes.meet(one, (5, 7), start + WAIT, WAIT), "no member seems to have it");
        assert!(holes.meet(two, (1, 1), start + WAIT, WAIT), "another one is waited for all the same");
        assert_eq!(holes.all(), [(one, 5, 7), (two, 1, 1)]);
        holes.close(one, 5);
        assert_eq!(holes.all(), [(two, 1, 1)]);
        assert!(holes.meet(one, (5, 7), start + 2 * WAIT, WAIT), "it was back, and is gone once more");
    }

    #[test]
    fn so_many_are_remembered() {
        let mut holes = Holes::default();
        for first in 0..2 * HOLES as u64 {
            let waits = holes.meet(NamespaceId(1), (first, first), Instant::now(), WAIT);
            assert_eq!(waits, first < HOLES as u64);
        }
        holes.meet(NamespaceId(1), (0, 4), Instant::now(), WAIT);
        assert_eq!((holes.all().len(), holes.all()[0]), (HOLES, (NamespaceId(1), 0, 4)));
    }
}
