//! The lower tier: where drained rows live. It may vanish at any time; the log, snapshots or peers restore
//! it.

mod compactor;
mod files;
mod fjall;
mod folder;
mod gate;
mod mark;
mod mem;
mod rows;
mod sled;
mod watched;

use std::{fmt::Debug, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;

pub use self::{
    folder::{TierFolders, TierKind},
    gate::{Gate, GatedTiers, Hold, TierCall},
    mem::MemTiers,
    watched::Watched,
};

/// Rows of a tier batch in key order; `None` removes.
pub type TierWrites = [(Bytes, Option<Bytes>)];

/// What every tier remembers in the same batch as the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TierMark {
    /// Which tier this is: a random number from its creation, repeated in the log.
    pub id: u128,
    /// Data batches of the log that are in the tier: all up to this sequence number.
    pub drained: u64,
    /// Tier batches so far: it distinguishes a tier that lost derived rows from a whole one.
    pub batch: u64,
}

/// Why a tier did not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TierError {
    /// Its content cannot be trusted: set it aside and rebuild.
    #[error("damaged: {0}")]
    Damaged(String),
    /// Another process or handle has it open: touch nothing.
    #[error("in use: {0}")]
    InUse(String),
    /// Another kind of tier, or another release, made what is in the directory: touch nothing.
    #[error("{0}")]
    Foreign(String),
    /// The file system refused (full, permissions, input/output error).
    #[error("{0}")]
    Io(String),
    /// A call did not return in time; it may still happen, or never.
    #[error(
        "{what} did not return within {bound:?}: the disk hangs, or the tier waits for a step that cannot end"
    )]
    Stalled {
        /// Which call.
        what: &'static str,
        /// The bound it passed.
        bound: Duration,
    },
}

/// Rows of a scan in key order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TierChunk {
    /// The rows.
    pub rows: Vec<(Bytes, Bytes)>,
    /// A bound ended the chunk, so more rows may follow its last one.
    pub more: bool,
}

impl TierChunk {
    /// Takes rows up to both bounds, one row at least if there is one.
    fn collect(
        rows: impl Iterator<Item = Result<(Bytes, Bytes), TierError>>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<TierChunk, TierError> {
        let mut chunk = TierChunk::default();
        let mut bytes = 0;
        for row in rows {
            let (key, value) = row?;
            bytes += key.len() + value.len();
            if !chunk.rows.is_empty() && (chunk.rows.len() >= limit_rows || bytes > limit_bytes) {
                chunk.more = true;
                break;
            }
            chunk.rows.push((key, value));
        }
        Ok(chunk)
    }
}

/// An ordered map of byte strings with atomic batches. One thread writes; many read.
pub trait Tier: Debug + Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TierError>;
    /// Rows from `from` (inclusive) to `to` (exclusive), in order: at most `limit_rows` of them with keys
    /// and values of together `limit_bytes`, but at least one.
    fn scan(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<TierChunk, TierError>;
    /// The keys of a range, as [`Tier::scan`] has its rows, and whether more may follow. Without their values
    /// where those are apart.
    fn keys(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<(Vec<Bytes>, bool), TierError> {
        let chunk = self.scan(from, to, limit_rows, limit_bytes)?;
        Ok((chunk.rows.into_iter().map(|(key, _)| key).collect(), chunk.more))
    }
    /// Waits until the next batch can be written at once. Readers are not held up meanwhile, as they are by
    /// [`Tier::apply`].
    fn make_room(&self) -> Result<(), TierError> {
        Ok(())
    }
    /// Writes rows and mark together: after a crash both are there or neither.
    fn apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError>;
    /// The mark of the last batch, `None` in a new tier.
    fn mark(&self) -> Result<Option<TierMark>, TierError>;
    /// Everything applied before this call is on disk when it returns.
    fn checkpoint(&self) -> Result<(), TierError>;
    /// False while it takes no batch and no checkpoint, where nothing may block: a simulated tier that is
    /// slow or stalled. Real ones take their time inside the calls.
    fn takes_writes(&self) -> bool {
        true
    }
    /// Bytes of batches that it has taken and for which it will still need room on the disk.
    fn unwritten_bytes(&self) -> u64 {
        0
    }
    /// Bytes that one [`Tier::apply`] should have at most; a larger single batch of the log goes whole.
    fn batch_bytes(&self) -> usize {
        usize::MAX
    }
}

/// Where tiers come from.
pub trait TierSource: Debug + Send + Sync + 'static {
    /// Opens the tier of a data directory, or creates an empty one.
    fn open(&self, dir: &Path) -> Result<Arc<dyn Tier>, TierError>;
    /// Moves the tier of a data directory out of the way, durably, keeping a few for a post-mortem.
    fn set_aside(&self, dir: &Path) -> Result<(), TierError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(sizes: &[usize]) -> impl Iterator<Item = Result<(Bytes, Bytes), TierError>> {
        sizes.iter().map(|n| Ok((Bytes::from_static(b"k"), Bytes::from(vec![0; n - 1]))))
    }

    #[test]
    fn a_chunk_ends_at_either_bound_and_has_a_row() {
        let found = |sizes: &[usize], limit_rows, limit_bytes| {
            let chunk = TierChunk::collect(rows(sizes), limit_rows, limit_bytes).unwrap();
            (chunk.rows.len(), chunk.more)
        };
        assert_eq!(found(&[10, 10, 10], 3, 30), (3, false));
        assert_eq!(found(&[10, 10, 10], 2, 30), (2, true));
        assert_eq!(found(&[10, 10, 10], 3, 29), (2, true));
        assert_eq!(found(&[100, 10], 3, 30), (1, true), "one row at least");
        assert_eq!(found(&[100], 0, 0), (1, false));
        assert_eq!(found(&[], 3, 30), (0, false));
    }
}
