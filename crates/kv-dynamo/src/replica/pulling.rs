//! How far a pull has come: part of what is known of a ring partition while it is pulled.

use std::collections::BTreeSet;

use bytes::Bytes;
use kv_types::causal::NodeClock;

use crate::layout::Place;

/// How far a pull from a source has come.
#[derive(Debug, Clone)]
pub(super) struct Pulling {
    /// The clock of the source before its first row was read.
    pub(super) clock: NodeClock,
    /// This node answers for the ring partition meanwhile. So what is merged must be as true without the end
    /// of the pull, which may be given up.
    pub(super) serves: bool,
    /// The last key, as in `RECORDS`, up to which everything was merged; empty for nothing.
    pub(super) passed: Bytes,
    /// Keys that this node cannot take: they are not passed. As many as a node may lack.
    pub(super) left_out: BTreeSet<Bytes>,
}

impl Pulling {
    pub(super) fn has_passed(&self, place: &Place) -> bool {
        let key = place.record_key();
        *key <= *self.passed && !self.left_out.contains(&*key)
    }

    /// Whether it has passed what the other has passed, with a clock that has all of the other's.
    pub(super) fn says_all_of(&self, other: &Self) -> bool {
        self.passed >= other.passed
            && self.left_out.is_subset(&other.left_out)
            && self.clock.dots().contains_all(other.clock.dots())
    }

    /// Two pulls that have both come to the end.
    pub(super) fn join(&mut self, other: &Self) {
        self.clock.adopt(&other.clock);
        self.left_out.extend(other.left_out.iter().cloned());
    }
}
