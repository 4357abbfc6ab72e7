//! A tier in memory whose reads can be held up.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kv_storage::tier::{MemTiers, Tier, TierChunk, TierError, TierMark, TierSource, TierWrites};

#[derive(Debug, Default)]
struct State {
    /// How many of the reads to come are held up.
    hold: usize,
    waiting: usize,
    /// Counts the releases: a read waits for the next one.
    releases: u64,
    overdue: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<State>, Condvar)>);

impl Gate {
    /// Holds up so many of the reads to come, each once it has read.
    pub(crate) fn hold(&self, reads: usize) {
        self.0.0.lock().unwrap().hold = reads;
    }

    /// Lets all reads go on.
    pub(crate) fn release(&self) {
        let mut state = self.0.0.lock().unwrap();
        state.hold = 0;
        state.releases += 1;
        self.0.1.notify_all();
    }

    /// How many reads wait.
    pub(crate) fn waiting(&self) -> usize {
        self.0.0.lock().unwrap().waiting
    }

    /// A read waited so long that the test cannot have gone on meanwhile: then all of them pass.
    pub(crate) fn is_overdue(&self) -> bool {
        self.0.0.lock().unwrap().overdue
    }

    fn pass(&self) {
        let mut state = self.0.0.lock().unwrap();
        if state.hold == 0 {
            return;
        }
        state.hold -= 1;
        state.waiting += 1;
        let release = state.releases;
        while state.releases == release {
            let (next, waited) = self.0.1.wait_timeout(state, Duration::from_secs(15)).unwrap();
            state = next;
            if waited.timed_out() && state.releases == release {
                (state.overdue, state.hold) = (true, 0);
                state.releases += 1;
                self.0.1.notify_all();
            }
        }
        state.waiting -= 1;
    }
}

/// Tiers in memory behind a gate.
#[derive(Debug)]
pub(crate) struct GatedTiers(pub(crate) MemTiers, pub(crate) Gate);

#[derive(Debug)]
struct GatedTier(Arc<dyn Tier>, Gate);

impl TierSource for GatedTiers {
    fn open(&self, dir: &Path) -> Result<Arc<dyn Tier>, TierError> {
        Ok(Arc::new(GatedTier(self.0.open(dir)?, self.1.clone())))
    }

    fn set_aside(&self, dir: &Path) -> Result<(), TierError> {
        self.0.set_aside(dir)
    }
}

impl Tier for GatedTier {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TierError> {
        let value = self.0.get(key);
        self.1.pass();
        value
    }

    fn scan(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<TierChunk, TierError> {
        let chunk = self.0.scan(from, to, limit_rows, limit_bytes);
        self.1.pass();
        chunk
    }

    fn apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError> {
        self.0.apply(writes, mark)
    }

    fn mark(&self) -> Result<Option<TierMark>, TierError> {
        self.0.mark()
    }

    fn checkpoint(&self) -> Result<(), TierError> {
        self.0.checkpoint()
    }
}
