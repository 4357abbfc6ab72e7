//! Making the tier durable, and letting go of the segments that are then no longer needed.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    codec::Cursor,
    engine::{Inner, lock, read, write},
    error::StorageError,
    limits,
    raft_log::RaftEntry,
    tier::TierMark,
    wal::{Item, Run, segment_path, small_key},
};

const TIER_VERSION: u8 = 1;

/// What the log knows of the tier.
pub(crate) fn encode_mark(mark: TierMark) -> Bytes {
    let mut out = vec![TIER_VERSION];
    out.extend_from_slice(&mark.id.to_le_bytes());
    out.extend_from_slice(&mark.drained.to_le_bytes());
    out.extend_from_slice(&mark.batch.to_le_bytes());
    Bytes::from(out)
}

pub(crate) fn decode_mark(bytes: &[u8]) -> Option<TierMark> {
    let mut c = Cursor::new(bytes);
    (c.u8()? == TIER_VERSION).then_some(())?;
    Some(TierMark { id: c.u128()?, drained: c.u64()?, batch: c.u64()? })
}

/// The checkpointer's own state.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    last: Instant,
    last_log_bytes: u64,
    last_ord: u64,
    /// The front segment whose live entries were already copied forward.
    copied: u64,
    /// The log was told that this is its first segment.
    announced: u64,
}

impl Checkpointer {
    pub(crate) fn new(first_segment: u64) -> Checkpointer {
        Checkpointer {
            last: Instant::now(),
            last_log_bytes: 0,
            last_ord: 0,
            copied: 0,
            announced: first_segment,
        }
    }
}

impl Inner {
    /// A checkpoint, if one is due and everything that it must contain is in the tier.
    pub(crate) fn checkpoint_step(self: &Arc<Self>) -> bool {
        if self.failure().is_some() || self.halted() {
            return false;
        }
        let mut own = lock(&self.checkpointer);
        let wanted = self.wanted_ord.load(Ordering::Relaxed);
        let drained = read(&self.mem).drained_ord;
        let log_bytes = self.counters.bytes.load(Ordering::Relaxed);
        let grown = log_bytes.saturating_sub(own.last_log_bytes);
        let tight =
            self.log_bytes() > self.options.max_log_bytes / 2 && grown >= self.options.segment_bytes as u64;
        let due = tight
            || grown >= self.options.checkpoint_log_bytes
            || own.last + self.options.checkpoint_interval <= Instant::now();
        let asked = own.last_ord < wanted && drained >= wanted;
        if !asked && (!due || drained <= own.last_ord) {
            return false;
        }
        (own.last, own.last_log_bytes) = (Instant::now(), log_bytes);
        // The mark and the order belong together: taken between two drains. And no drain runs while the tier is flushed: sled
        // holds a process-wide lock meanwhile, a waiting batch would make every reader wait behind it, also those on the
        // workers that answer heartbeats.
        let drain = lock(&self.drain_mark);
        let (mark, ord) = (*drain, read(&self.mem).drained_ord);
        let flushed = self.tier().and_then(|tier| Ok(tier.checkpoint()?));
        drop(drain);
        if let Err(e) = flushed {
            self.tier_failed(e);
            return false;
        }
        own.last_ord = ord;
        drop(own);
        let inner = self.clone();
        let done = Box::new(move |result: std::io::Result<()>| {
            if result.is_ok() {
                inner.checkpointed_seq.fetch_max(mark.drained, Ordering::AcqRel);
                inner.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
                inner.checkpointed.send_if_modified(|now| {
                    let newer = ord > *now;
                    *now = ord.max(*now);
                    newer
                });
                inner.wake_checkpointer();
            }
        });
        self.put_own(Bytes::from_static(small_key::TIER), Some(encode_mark(mark)), Some(done));
        true
    }

    /// Lets segments go that nothing needs. Twofold: the log first says durably which segment is the first.
    pub(crate) fn collect_step(self: &Arc<Self>) -> bool {
        if self.failure().is_some() || self.halted() {
            return false;
        }
        let mut own = lock(&self.checkpointer);
        let checkpointed = self.checkpointed_seq.load(Ordering::Acquire);
        let mut worked = false;
        let gone: Vec<u64> = {
            let mut w = lock(&self.writer);
            let gone: Vec<u64> =
                w.segments.known.range(..self.removable.load(Ordering::Acquire)).map(|(id, _)| *id).collect();
            for id in &gone {
                w.segments.known.remove(id);
            }
            self.closed_segments.store(w.segments.known.len().saturating_sub(1) as u64, Ordering::Relaxed);
            gone
        };
        if !gone.is_empty() {
            if let Err(e) = self.remove_segments(&gone) {
                self.poison(e);
                return false;
            }
            worked = true;
        }
        let (keep_from, first) = {
            let w = lock(&self.writer);
            let first = w.segments.known.keys().next().copied().unwrap_or(0);
            let keep_from = w.segments.keep_from(checkpointed);
            *lock(&self.pinned_by) = w.segments.pinned_by(checkpointed);
            (keep_from, first)
        };
        if keep_from > own.announced {
            own.announced = keep_from;
            let inner = self.clone();
            let done = Box::new(move |result: std::io::Result<()>| {
                if result.is_ok() {
                    inner.removable.fetch_max(keep_from, Ordering::AcqRel);
                    inner.wake_checkpointer();
                }
            });
            let value = Bytes::copy_from_slice(&keep_from.to_le_bytes());
            drop(own);
            self.put_own(Bytes::from_static(small_key::FIRST), Some(value), Some(done));
            return true;
        }
        if own.copied != first && keep_from == first && self.log_bytes() > self.options.max_log_bytes / 2 {
            // Once per segment: the copies are under way until the segment goes.
            if self.copy_forward(first, checkpointed) {
                own.copied = first;
                worked = true;
            }
        }
        worked
    }

    fn remove_segments(&self, gone: &[u64]) -> Result<(), StorageError> {
        let fail = StorageError::io("remove a log segment");
        for id in gone {
            write(&self.files).remove(id);
            self.disk.remove(&segment_path(&self.wal_dir, *id)).map_err(&fail)?;
        }
        self.disk.sync_dir(&self.wal_dir).map_err(&fail)
    }

    /// Writes the few live entries of the oldest segment again, so that a group at rest does not hold the whole log.
    fn copy_forward(&self, segment: u64, checkpointed: u64) -> bool {
        let groups = {
            let w = lock(&self.writer);
            if w.segments.known.get(&segment).is_none_or(|s| s.max_seq > checkpointed) {
                return false;
            }
            w.segments.groups_in(segment)
        };
        let groups: Vec<_> = groups.into_iter().filter_map(|g| Some((g, self.group_if_known(g)?))).collect();
        let bytes: usize = groups.iter().map(|(_, g)| lock(g).bytes_in(segment)).sum();
        if bytes > limits::MAX_COPY_FORWARD_BYTES.min(self.options.segment_bytes / 4) {
            return false;
        }
        for (group, state) in groups {
            // Under the group's lock: a truncation or purge comes before the copies or after them, never between.
            let state = lock(&state);
            let mut items = Vec::new();
            for (id, append_id, payload, location) in state.ids_in(segment) {
                let payload = match payload {
                    Some(payload) => payload,
                    None => match self.read_entry(group, id, location) {
                        Ok(payload) => payload,
                        Err(e) => {
                            tracing::error!(error = %e, "an entry could not be copied forward");
                            return false;
                        }
                    },
                };
                items
                    .push(Item::Run(Run::new(group, append_id, true, vec![RaftEntry { id, payload }]), None));
            }
            self.push_raft(items);
        }
        self.wake_checkpointer();
        true
    }
}
