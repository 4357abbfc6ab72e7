//! A tier in memory, which loses what was not checkpointed.

use std::{
    collections::BTreeMap,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;

use super::{Tier, TierChunk, TierError, TierMark, TierSource, TierWrites};
use crate::locks::lock;

/// Tiers in memory, by data directory. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct MemTiers {
    tiers: Arc<Mutex<BTreeMap<PathBuf, Arc<MemTier>>>>,
}

#[derive(Debug, Default)]
struct MemTier {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rows: BTreeMap<Bytes, Bytes>,
    mark: Option<TierMark>,
    /// Values at the last checkpoint of the keys that changed since.
    undo: BTreeMap<Bytes, Option<Bytes>>,
    durable_mark: Option<TierMark>,
    fail: Option<TierError>,
}

impl MemTiers {
    /// No tiers yet.
    pub fn new() -> MemTiers {
        MemTiers::default()
    }

    /// Cuts the power: every tier is as at its last checkpoint.
    pub fn crash(&self) {
        for tier in lock(&self.tiers).values_mut() {
            let mut survivor = State::default();
            {
                let mut s = lock(&tier.state);
                survivor.rows = s.rows.clone();
                survivor.mark = s.durable_mark;
                survivor.durable_mark = s.durable_mark;
                for (key, old) in std::mem::take(&mut s.undo) {
                    match old {
                        Some(value) => survivor.rows.insert(key, value),
                        None => survivor.rows.remove(&key),
                    };
                }
                s.fail = Some(TierError::Io("the power of this tier was cut".into()));
            }
            *tier = Arc::new(MemTier { state: Mutex::new(survivor) });
        }
    }

    /// Removes the tier of a directory, as if its folder had been deleted.
    pub fn delete(&self, dir: &Path) {
        lock(&self.tiers).remove(dir);
    }

    /// Every call on the tier of `dir` fails from now on (until it is set aside or healed with `None`).
    pub fn fail(&self, dir: &Path, error: Option<TierError>) {
        if let Some(tier) = lock(&self.tiers).get(dir) {
            lock(&tier.state).fail = error;
        }
    }

    /// Puts the mark of the tier of `dir` back, as a tier that lost checkpointed data would have it.
    pub fn rewind(&self, dir: &Path, drained: u64) {
        if let Some(tier) = lock(&self.tiers).get(dir)
            && let Some(mark) = lock(&tier.state).mark.as_mut()
        {
            mark.drained = drained;
            mark.batch = 0;
        }
    }
}

impl TierSource for MemTiers {
    fn open(&self, dir: &Path) -> Result<Arc<dyn Tier>, TierError> {
        let tier = lock(&self.tiers).entry(dir.to_path_buf()).or_default().clone();
        if let Some(e) = lock(&tier.state).fail.clone() {
            return Err(e);
        }
        Ok(tier)
    }

    fn set_aside(&self, dir: &Path) -> Result<(), TierError> {
        self.delete(dir);
        Ok(())
    }
}

impl MemTier {
    fn state(&self) -> Result<std::sync::MutexGuard<'_, State>, TierError> {
        let s = lock(&self.state);
        match &s.fail {
            Some(e) => Err(e.clone()),
            None => Ok(s),
        }
    }
}

impl Tier for MemTier {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TierError> {
        Ok(self.state()?.rows.get(key).cloned())
    }

    fn scan(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<TierChunk, TierError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(TierChunk::default());
        }
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        let s = self.state()?;
        let rows = s.rows.range::<[u8], _>((Bound::Included(from), upper));
        TierChunk::collect(rows.map(|(k, v)| Ok((k.clone(), v.clone()))), limit_rows, limit_bytes)
    }

    fn apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError> {
        let mut s = self.state()?;
        for (key, value) in writes {
            // Copies: a tier does not pin the callers' buffers.
            let key = Bytes::copy_from_slice(key);
            let old = match value {
                Some(value) => s.rows.insert(key.clone(), Bytes::copy_from_slice(value)),
                None => s.rows.remove(&key),
            };
            s.undo.entry(key).or_insert(old);
        }
        s.mark = Some(mark);
        Ok(())
    }

    fn mark(&self) -> Result<Option<TierMark>, TierError> {
        Ok(self.state()?.mark)
    }

    fn checkpoint(&self) -> Result<(), TierError> {
        let mut s = self.state()?;
        s.undo.clear();
        s.durable_mark = s.mark;
        Ok(())
    }
}
