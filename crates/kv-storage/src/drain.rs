//! From the memtable into the tier: whole batches, in order, with the mark in the same tier batch.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use crate::{
    engine::{Inner, lock, read, write},
    error::StorageError,
    tier::TierMark,
};

impl Inner {
    /// True when the memtable is large or old enough, or somebody waits for it to be empty.
    pub(crate) fn drain_is_due(&self) -> bool {
        let mem = read(&self.mem);
        let Some(oldest) = mem.fifo.front() else { return false };
        mem.bytes >= self.options.drain_start_bytes
            || mem.drained_ord < self.wanted_ord.load(Ordering::Relaxed)
            || oldest.at + self.options.drain_interval <= Instant::now()
    }

    /// One tier batch; true if something was drained.
    pub(crate) fn drain_step(&self) -> bool {
        match self.try_drain() {
            Ok(worked) => worked,
            Err(e) => {
                self.tier_failed(e);
                false
            }
        }
    }

    fn try_drain(&self) -> Result<bool, StorageError> {
        if self.failure().is_some() || self.halted() {
            return Ok(false);
        }
        let mut drained = lock(&self.drain_mark);
        let durable = self.durable_seq.load(Ordering::Acquire);
        let raft_written = self.raft_written.load(Ordering::Acquire);
        let tier = self.tier()?;
        let max_bytes = self.options.drain_batch_bytes.min(tier.batch_bytes());
        let drainable = read(&self.mem).take_drainable(durable, raft_written, max_bytes);
        let Some(batch) = drainable else {
            return Ok(false);
        };
        let mark = TierMark { id: drained.id, drained: batch.seq, batch: drained.batch + 1 };
        {
            // Scans and cuts hold the gate: the tier does not change under them.
            let _gate = write(&self.gate);
            if self.cut_is_open() {
                return Ok(false);
            }
            tier.apply(&batch.rows, mark)?;
        }
        *drained = mark;
        write(&self.mem).drained(&batch);
        drop(drained);
        self.counters.drains.fetch_add(1, Ordering::Relaxed);
        self.room.notify_waiters();
        self.wake_checkpointer();
        Ok(true)
    }
}
