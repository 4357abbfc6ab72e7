//! A tier in memory, which loses what was not checkpointed.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{Tier, TierChunk, TierError, TierMark, TierSource, TierWrites, rows};
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
    pace: Pace,
}

/// How fast a tier takes batches.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    /// The pause between two; none at all when it is [`Duration::MAX`].
    pause: Duration,
    /// When it took the last one.
    last: Option<Instant>,
    /// How often it was asked and did not take one.
    refused: u64,
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
                survivor.pace.pause = s.pace.pause;
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

    /// The tier of `dir` takes a batch only so long after the last one from now on; with [`Duration::MAX`] it
    /// takes none. For engines that are driven: their drain does not wait inside the tier.
    pub fn set_pause(&self, dir: &Path, pause: Duration) {
        let tier = lock(&self.tiers).entry(dir.to_path_buf()).or_default().clone();
        lock(&tier.state).pace.pause = pause;
    }

    /// How often the tier of `dir` did not take a batch when it was asked, since it was made.
    pub fn kept_waiting(&self, dir: &Path) -> u64 {
        lock(&self.tiers).get(dir).map_or(0, |tier| lock(&tier.state).pace.refused)
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
        let mut s = lock(&tier.state);
        if let Some(e) = s.fail.clone() {
            return Err(e);
        }
        // The clock of another life is not this one's.
        s.pace.last = None;
        drop(s);
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
        let Some(range) = rows::range(from, to) else { return Ok(TierChunk::default()) };
        let s = self.state()?;
        let rows = s.rows.range::<[u8], _>(range);
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
        if !s.pace.pause.is_zero() {
            s.pace.last = Some(Instant::now());
        }
        Ok(())
    }

    fn mark(&self) -> Result<Option<TierMark>, TierError> {
        Ok(self.state()?.mark)
    }

    fn takes_writes(&self) -> bool {
        let pace = &mut lock(&self.state).pace;
        let over = pace.last.is_none_or(|last| last.elapsed() >= pace.pause);
        let takes = pace.pause.is_zero() || (over && pace.pause != Duration::MAX);
        pace.refused += u64::from(!takes);
        takes
    }

    fn checkpoint(&self) -> Result<(), TierError> {
        let mut s = self.state()?;
        s.undo.clear();
        s.durable_mark = s.mark;
        Ok(())
    }
}
