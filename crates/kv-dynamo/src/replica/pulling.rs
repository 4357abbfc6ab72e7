//! How far a pull has come: part of what is known of a ring partition while it is pulled.

use bytes::Bytes;
use kv_types::causal::NodeClock;

use crate::layout::Place;

/// How far a pull from a source has come.
#[derive(Debug)]
pub(super) struct Pulling {
    /// The clock of the source before its first row was read.
    pub(super) clock: NodeClock,
    /// The last key, as in `RECORDS`, up to which everything was merged; empty for nothing.
    pub(super) passed: Bytes,
}

impl Pulling {
    pub(super) fn has_passed(&self, place: &Place) -> bool {
        *place.record_key() <= *self.passed
    }
}
