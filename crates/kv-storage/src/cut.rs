//! Cuts: the content of some ranges at one moment, for longer than a call.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::{
    batch::{TableId, full_key, prefix_end, split_key},
    engine::Storage,
    error::StorageError,
    merge::Merge,
};

/// A row of a cut: table, key, value.
pub type CutRow = (TableId, Bytes, Bytes);

/// The content of some ranges at one moment. While it lives nothing is drained, so keep it short; after
/// [`crate::StorageOptions::cut_max`] it answers [`StorageError::CutExpired`].
#[derive(Debug)]
pub struct Cut {
    storage: Storage,
    id: u64,
    ranges: VecDeque<Merge>,
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.storage.parts().tier.let_go(self.id);
    }
}

impl Cut {
    /// The next rows, at most `max`; `None` at the end. Blocks on the tier: call it off the async workers.
    pub fn next_chunk(&mut self, max: usize) -> Result<Option<Vec<CutRow>>, StorageError> {
        let parts = self.storage.parts().clone();
        let _still = parts.tier.hold_still();
        if !parts.tier.holds(self.id) {
            return Err(StorageError::CutExpired);
        }
        let mut out = Vec::new();
        while let Some(merge) = self.ranges.front_mut() {
            if out.len() >= max.max(1) {
                break;
            }
            match merge.next()? {
                Some((key, value, _)) => out.extend(split_key(&key).map(|(table, key)| (table, key, value))),
                None => drop(self.ranges.pop_front()),
            }
        }
        Ok((!out.is_empty()).then_some(out))
    }
}

impl Storage {
    /// Freezes the rows of some prefixes as they are now, all at one moment.
    pub fn cut(&self, ranges: &[(TableId, &[u8])]) -> Result<Cut, StorageError> {
        let parts = self.parts();
        parts.life.check()?;
        let tier = parts.tier.handle()?;
        let _still = parts.tier.hold_still();
        let mem = parts.memtable.read();
        let mut merges = VecDeque::new();
        for (table, prefix) in ranges {
            let from = full_key(*table, prefix);
            let to = prefix_end(&from);
            if mem.is_replacing(&from, to.as_deref()) {
                return Err(StorageError::Replacing);
            }
            let rows = mem.range(&from, to.as_deref(), usize::MAX);
            merges.push_back(Merge::new(tier.clone(), rows, from, to));
        }
        let id = parts.tier.hold();
        drop(mem);
        Ok(Cut { storage: self.clone(), id, ranges: merges })
    }
}
