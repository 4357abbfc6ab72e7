//! The lower tier of a faulty node: the one that its configuration names, whose writes stand still, or take
//! longer, when it is told so. Its reads go on, as in a tier whose compaction is behind.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use kv_storage::limits::TIER_WAIT;
use kv_storage::tier::{Tier, TierChunk, TierError, TierMark, TierSource, TierWrites, Watched};
use serde::{Deserialize, Serialize};

use super::lock;

/// What is wrong with a tier, and what it has been through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TierStatus {
    /// Whether batches and checkpoints stand still.
    pub stalled: bool,
    /// How much longer a batch or a checkpoint takes, milliseconds.
    pub delay_ms: u64,
    /// Calls that were kept waiting so far.
    pub delayed_calls: u64,
}

/// Stalls and delays of a tier. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct TierFaults {
    shared: Arc<(Mutex<TierStatus>, Condvar)>,
}

impl TierFaults {
    /// Batches and checkpoints that begin, or wait already, stand still until told otherwise.
    pub fn stall(&self, stalled: bool) {
        let (status, changed) = &*self.shared;
        lock(status).stalled = stalled;
        changed.notify_all();
    }

    /// Batches and checkpoints take so much longer from now on.
    pub fn set_delay(&self, delay: Duration) {
        lock(&self.shared.0).delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    }

    /// What is in force.
    pub fn status(&self) -> TierStatus {
        *lock(&self.shared.0)
    }

    /// What opens a faulty tier in the place of `named`.
    pub fn over(&self, named: Arc<dyn TierSource>) -> Arc<dyn TierSource> {
        Arc::new(FaultyTiers { named, faults: self.clone() })
    }

    /// Waits as long as a batch or a checkpoint has to.
    fn wait(&self) {
        let (status, changed) = &*self.shared;
        let mut now = lock(status);
        now.delayed_calls += u64::from(now.stalled || now.delay_ms > 0);
        if now.delay_ms > 0 {
            // A wait that nothing ends, without the lock of the others.
            let delay = Duration::from_millis(now.delay_ms);
            drop(now);
            drop(Condvar::new().wait_timeout(lock(&Mutex::new(())), delay));
            now = lock(status);
        }
        while now.stalled {
            now = changed.wait(now).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

#[derive(Debug)]
struct FaultyTiers {
    named: Arc<dyn TierSource>,
    faults: TierFaults,
}

impl TierSource for FaultyTiers {
    fn open(&self, dir: &Path) -> Result<Arc<dyn Tier>, TierError> {
        let tier = FaultyTier { tier: self.named.open(dir)?, faults: self.faults.clone() };
        // The bound of the tier below does not see what happens in front of it.
        Ok(Arc::new(Watched::new(Arc::new(tier), TIER_WAIT)?))
    }

    fn set_aside(&self, dir: &Path) -> Result<(), TierError> {
        self.named.set_aside(dir)
    }
}

#[derive(Debug)]
struct FaultyTier {
    tier: Arc<dyn Tier>,
    faults: TierFaults,
}

impl Tier for FaultyTier {
    fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>, TierError> {
        self.tier.get(key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<TierChunk, TierError> {
        self.tier.scan(from, to, limit_rows, limit_bytes)
    }

    fn apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError> {
        self.faults.wait();
        self.tier.apply(writes, mark)
    }

    fn make_room(&self) -> Result<(), TierError> {
        self.tier.make_room()
    }

    fn mark(&self) -> Result<Option<TierMark>, TierError> {
        self.tier.mark()
    }

    fn checkpoint(&self) -> Result<(), TierError> {
        self.faults.wait();
        self.tier.checkpoint()
    }

    fn unwritten_bytes(&self) -> u64 {
        self.tier.unwritten_bytes()
    }

    fn batch_bytes(&self) -> usize {
        self.tier.batch_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_storage::tier::MemTiers;
    use std::sync::mpsc;

    #[test]
    fn writes_stand_still_while_it_is_stalled_and_reads_do_not() {
        let faults = TierFaults::default();
        let tier = faults.over(Arc::new(MemTiers::new())).open(Path::new("/data")).unwrap();
        let mark = |batch| TierMark { id: 1, drained: batch, batch };
        let row = [(bytes::Bytes::from_static(b"k"), Some(bytes::Bytes::from_static(b"v")))];
        tier.apply(&row, mark(1)).unwrap();
        faults.stall(true);
        let (done, ended) = mpsc::sync_channel(1);
        let writer = tier.clone();
        let thread = std::thread::spawn(move || {
            writer.apply(&[], mark(2)).unwrap();
            done.send(()).unwrap();
        });
        while faults.status().delayed_calls == 0 {
            std::thread::yield_now();
        }
        assert_eq!(tier.get(b"k").unwrap().unwrap(), "v");
        assert_eq!(tier.mark().unwrap(), Some(mark(1)));
        assert!(ended.try_recv().is_err());
        faults.stall(false);
        ended.recv().unwrap();
        thread.join().unwrap();
        assert_eq!(tier.mark().unwrap(), Some(mark(2)));
        assert_eq!(faults.status(), TierStatus { delayed_calls: 1, ..TierStatus::default() });
    }
}
