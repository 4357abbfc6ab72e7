//! A tier in memory whose reads stand still on request: of one key, or of all ranges.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use kv_storage::tier::{MemTiers, Tier, TierChunk, TierError, TierMark, TierSource, TierWrites};

/// What stands still, and how many calls wait or were made.
#[derive(Debug, Default)]
struct Held {
    /// Of reads of keys that contain this, one at a time.
    gets: Option<&'static [u8]>,
    held: bool,
    scans: bool,
    waiting: usize,
    scanned: usize,
}

/// Holds calls of a tier up.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate(Arc<(Mutex<Held>, Condvar)>);

impl Gate {
    fn change(&self, change: impl FnOnce(&mut Held)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    /// The next read of a key that contains this has its answer and keeps it; with `None` it goes on.
    pub(super) fn hold_gets(&self, of: Option<&'static [u8]>) {
        self.change(|held| (held.gets, held.held) = (of, false));
    }

    /// Reads of ranges stand still from now on, or go on.
    pub(super) fn hold_scans(&self, hold: bool) {
        self.change(|held| held.scans = hold);
    }

    /// Calls that stand still.
    pub(super) fn waiting(&self) -> usize {
        self.0.0.lock().unwrap().waiting
    }

    /// Reads of ranges so far.
    pub(super) fn scanned(&self) -> usize {
        self.0.0.lock().unwrap().scanned
    }

    fn wait(&self, begins: impl FnOnce(&mut Held) -> bool, stands: impl Fn(&Held) -> bool) {
        let mut held = self.0.0.lock().unwrap();
        if !begins(&mut held) {
            return;
        }
        held.waiting += 1;
        while stands(&held) {
            held = self.0.1.wait(held).unwrap();
        }
        held.waiting -= 1;
    }
}

#[derive(Debug)]
struct GatedTier {
    tier: Arc<dyn Tier>,
    gate: Gate,
}

impl Tier for GatedTier {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TierError> {
        let within = |part: &[u8]| key.windows(part.len()).any(|at| at == part);
        let found = self.tier.get(key);
        let first =
            |held: &mut Held| held.gets.is_some_and(within) && !std::mem::replace(&mut held.held, true);
        self.gate.wait(first, |held| held.gets.is_some());
        found
    }

    fn scan(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<TierChunk, TierError> {
        let counted = |held: &mut Held| {
            held.scanned += 1;
            held.scans
        };
        self.gate.wait(counted, |held| held.scans);
        self.tier.scan(from, to, limit_rows, limit_bytes)
    }

    fn apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError> {
        self.tier.apply(writes, mark)
    }

    fn mark(&self) -> Result<Option<TierMark>, TierError> {
        self.tier.mark()
    }

    fn checkpoint(&self) -> Result<(), TierError> {
        self.tier.checkpoint()
    }
}

/// Tiers in memory behind a gate.
#[derive(Debug, Default)]
pub(super) struct GatedTiers {
    tiers: MemTiers,
    pub(super) gate: Gate,
}

impl TierSource for GatedTiers {
    fn open(&self, dir: &Path) -> Result<Arc<dyn Tier>, TierError> {
        Ok(Arc::new(GatedTier { tier: self.tiers.open(dir)?, gate: self.gate.clone() }))
    }

    fn set_aside(&self, dir: &Path) -> Result<(), TierError> {
        self.tiers.set_aside(dir)
    }
}
