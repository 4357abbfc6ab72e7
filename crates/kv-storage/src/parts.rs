//! What an engine consists of. Each part owns its state and its locks; what concerns several of them (a
//! commit, a drain, a checkpoint) is done by the files above, in the order in which locks are taken: the
//! tier's mark, the memtable, the log, the journals; those inside the row cache last.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use kv_types::Latency;

use crate::{
    disk::{DirLock, Disk},
    error::StorageError,
    journals::Journals,
    lifecycle::{Lifecycle, Phase},
    limits,
    locks::lock,
    lower::LowerTier,
    memtable::Memtable,
    options::StorageOptions,
    readers::Readers,
    snapshot::Temporaries,
    space::DiskSpace,
    wal::log::Log,
};

/// The owners, and what they share.
pub(crate) struct Parts {
    pub(crate) options: Arc<StorageOptions>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) life: Arc<Lifecycle>,
    pub(crate) log: Log,
    pub(crate) memtable: Memtable,
    pub(crate) tier: LowerTier,
    pub(crate) journals: Journals,
    pub(crate) temporaries: Arc<Mutex<Temporaries>>,
    pub(crate) refusals: Refusals,
    pub(crate) latencies: Latencies,
    pub(crate) readers: Arc<Readers>,
    pub(crate) space: Arc<DiskSpace>,
    pub(crate) lock: Mutex<Option<DirLock>>,
}

/// How long the steps of the tier take.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    /// One step of the drain, the journals included.
    pub(crate) drain: Latency,
    /// A checkpoint of the tier.
    pub(crate) checkpoint: Latency,
}

/// Commits that were refused for a bound.
#[derive(Debug, Default)]
pub(crate) struct Refusals(AtomicU64);

impl Refusals {
    /// Counts a result if it is a refusal.
    pub(crate) fn count<T>(&self, result: Result<T, StorageError>) -> Result<T, StorageError> {
        if result.as_ref().is_err_and(StorageError::is_refusal) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    pub(crate) fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").field("dir", &self.options.dir).finish_non_exhaustive()
    }
}

impl Parts {
    /// The tier failed while running. A damaged one is marked, so that the next start sets it aside.
    pub(crate) fn tier_failed(&self, e: &StorageError) {
        if e.is_damaged_tier() {
            self.tier.mark_suspect();
        }
        self.log.fail(e);
    }

    /// A journal refused or failed; what to say of it. Without room on the disk nothing happened, and the
    /// engine goes on.
    pub(crate) fn journal_failed(&self, e: StorageError) -> StorageError {
        if e.is_journal_without_room() {
            return self.space.full();
        }
        self.tier_failed(&e);
        e
    }

    /// Looks how much of the disk is free, if that is due.
    pub(crate) fn look_for_room(&self) {
        self.space.look(self.log.bytes_written(), || {
            let waiting = self.log.raft_queue_bytes() as u64;
            let undrained = self.memtable.read().bytes as u64;
            let in_tier = self.tier.handle().map_or(0, |tier| tier.unwritten_bytes());
            // What waits for the log comes to the tier too; rows go into its journal, then into its tables.
            limits::OWED_COPIES * (waiting + undrained) + in_tier
        });
    }

    /// Lets another engine have the directory. Only when nothing of this one can write any more.
    pub(crate) fn unlock(&self) {
        drop(lock(&self.lock).take());
    }

    /// Enters a later phase of life.
    pub(crate) fn stop(&self, phase: Phase) {
        self.life.stop(phase);
        self.log.close();
        self.memtable.wake();
        self.readers.close();
    }
}

/// Keeps the engine open; the last one closes it. It does not wait for that, whichever thread drops it.
#[derive(Debug)]
pub(crate) struct KeepOpen(Arc<Parts>);

impl KeepOpen {
    pub(crate) fn new(parts: Arc<Parts>) -> KeepOpen {
        KeepOpen(parts)
    }

    pub(crate) fn parts(&self) -> &Arc<Parts> {
        &self.0
    }
}

impl Drop for KeepOpen {
    fn drop(&mut self) {
        self.0.stop(Phase::Draining);
    }
}
