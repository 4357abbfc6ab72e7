//! The lower tier: where drained rows live. It may vanish at any time; the log, snapshots or peers restore it.

mod mem;
mod sled;

use std::{fmt::Debug, path::Path, sync::Arc};

use bytes::Bytes;

pub use self::{mem::MemTiers, sled::SledTiers};

/// Rows of a tier batch in key order; `None` removes.
pub type TierWrites = [(Bytes, Option<Bytes>)];

/// What every tier remembers in the same batch as the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TierMark {
    /// Which tier this is: a random number from its creation, repeated in the log.
    pub id: u128,
    /// Data batches of the log that are in the tier: all up to this sequence number.
    pub drained: u64,
    /// Tier batches so far: tells a tier that lost derived rows, too, from a whole one.
    pub batch: u64,
}

/// Why a tier did not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TierError {
    /// Its content cannot be trusted: set it aside and rebuild.
    #[error("damaged: {0}")]
    Damaged(String),
    /// Somebody else has it open: touch nothing.
    #[error("in use: {0}")]
    InUse(String),
    /// The file system refused (full, permissions, input/output error).
    #[error("{0}")]
    Io(String),
}

/// An ordered map of byte strings with atomic batches. One thread writes; many read.
pub trait Tier: Debug + Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TierError>;
    /// Rows from `from` (inclusive) to `to` (exclusive), in order, at most `limit`.
    fn scan(&self, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<(Bytes, Bytes)>, TierError>;
    /// Writes rows and mark together: after a crash both are there or neither.
    fn apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError>;
    /// The mark of the last batch, `None` in a new tier.
    fn mark(&self) -> Result<Option<TierMark>, TierError>;
    /// Everything applied before this call is on disk when it returns.
    fn checkpoint(&self) -> Result<(), TierError>;
}

/// Where tiers come from.
pub trait TierSource: Debug + Send + Sync + 'static {
    /// Opens the tier of a data directory, or creates an empty one.
    fn open(&self, dir: &Path) -> Result<Arc<dyn Tier>, TierError>;
    /// Moves the tier of a data directory out of the way, durably, keeping a few for a post-mortem.
    fn set_aside(&self, dir: &Path) -> Result<(), TierError>;
}
