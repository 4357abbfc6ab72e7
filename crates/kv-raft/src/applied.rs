//! How far a group's state is applied: in memory, where readers and the state machine share it, and in the
//! tables.

use std::sync::Arc;

use kv_storage::Storage;
use tokio::sync::RwLock;

use crate::codec;
use crate::config::{LogId, SnapshotMeta};
use crate::dropped::Dropped;
use crate::machine_error::MachineError;
use crate::tables::{Space, Table, keys};

/// Which rows are a group's state, and how far they are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AppliedState {
    /// Where the rows stand.
    pub(crate) space: Space,
    /// The last entry that is in them, and the members then: the same as their mark in the tables.
    pub(crate) mark: SnapshotMeta,
    /// The namespaces that were dropped by then.
    pub(crate) dropped: Arc<Dropped>,
}

impl AppliedState {
    /// The last entry that is in the rows.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.mark.last_log_id
    }
}

/// A reader that holds it sees the state at exactly this point.
pub(crate) type Applied = Arc<RwLock<AppliedState>>;

/// The last entry in the rows of a space, and the members then, as the tables have it. Blocks.
pub(crate) fn stored_mark(storage: &Storage, space: Space) -> Result<SnapshotMeta, MachineError> {
    match storage.get(Table::Applied.id(), &keys::of_space(space))? {
        Some(row) => Ok(codec::decode_mark(row.value)?),
        None => Ok(SnapshotMeta::default()),
    }
}
