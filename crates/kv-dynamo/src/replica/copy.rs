//! What a node has of one key: its copy of the record, or the hints that it holds for others.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_storage::Position;
use kv_types::NodeId;
use kv_types::causal::State;

use crate::layout::Hint;

/// A node's copy of a key.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    /// There is something to tell: of a primary always, that nothing is there too.
    pub(crate) known: bool,
    pub(crate) state: State,
    pub(crate) position: Position,
}

/// The hints for one key, by target, in the order of their numbers.
pub(super) type Known = BTreeMap<NodeId, Vec<(Bytes, Hint, Position)>>;

/// What the hints of a key say together. Never filled: this node forgets what it delivered.
pub(super) fn raw(known: &Known) -> Copy {
    let mut copy = Copy::default();
    for (_, hint, position) in known.values().flatten() {
        copy.known = true;
        copy.state.merge(&hint.state);
        copy.position = copy.position.max(*position);
    }
    copy.state.bury_twins(|_| Vec::new());
    copy
}
