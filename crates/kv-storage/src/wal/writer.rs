//! The writer: takes what waits, writes it as one frame, syncs once, completes in order.

use std::{collections::BTreeMap, sync::Arc, sync::atomic::Ordering};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Item, Taken,
    frame::{self, EntryHead},
    lazy_bytes,
    segments::{self, Prepared, Segments},
    small_key,
};
use crate::{
    disk::DiskFile,
    engine::{Inner, RUNNING, lock, write},
    error::StorageError,
    limits,
    options::Drive,
    raft_log::{RaftEntry, RaftLogId},
};

/// What only the writer (and whoever removes segments) touches.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) segment: u64,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) offset: u64,
    pub(crate) number: u64,
    /// Small state as written; what the next head repeats.
    pub(crate) small: BTreeMap<Bytes, Bytes>,
    pub(crate) last_seq: u64,
    pub(crate) segments: Segments,
    pub(crate) buf: Vec<u8>,
    /// Where the runs of the frame being written have the head of their first entry.
    pub(crate) runs_at: Vec<u32>,
}

impl Inner {
    /// One write of the log, if anything waits.
    pub(crate) fn writer_step(&self) -> bool {
        let mut w = lock(&self.writer);
        let o = &self.options;
        let taken = lock(&self.queues).take(o.raft_bytes_per_write, o.data_bytes_per_write, o.frame_bytes());
        if taken.is_empty() {
            return false;
        }
        let result = match self.failure() {
            Some(e) => Err(e),
            None => self.write_frame(&mut w, &taken),
        };
        drop(w);
        lock(&self.queues).settle(&taken);
        if let Err(e) = &result {
            self.poison(e.clone());
        }
        self.complete(taken, result);
        true
    }

    /// Entries that are on disk now leave memory beyond the cache's bound.
    fn shrink_caches(&self, raft: &[Item]) {
        let groups = raft.iter().filter_map(|item| match item {
            Item::Run(run, _) => Some(run.group),
            _ => None,
        });
        let mut last = None;
        for group in groups {
            if last.replace(group) != Some(group)
                && let Some(group) = self.group_if_known(group)
            {
                lock(&group).shrink_cache(self.options.raft_cache_bytes);
            }
        }
    }

    /// Callbacks in the order of the log. What costs time and nobody waits for comes after them.
    fn complete(&self, mut taken: Taken, result: Result<(), StorageError>) {
        for item in &mut taken.raft {
            if let Some(done) = item.done() {
                done(result.clone().map_err(Into::into));
            }
        }
        if result.is_ok() {
            self.raft_written.fetch_add(taken.raft.len() as u64, Ordering::AcqRel);
        }
        if let (Some(last), Ok(())) = (taken.data.last(), &result) {
            self.advance_durable(last.seq);
        }
        self.shrink_caches(&taken.raft);
    }

    fn write_frame(&self, w: &mut Writer, taken: &Taken) -> Result<(), StorageError> {
        let only_barriers = taken.raft.iter().all(|i| matches!(i, Item::Barrier { .. }));
        if only_barriers && taken.data.is_empty() {
            let mut queues = lock(&self.queues);
            for (key, value) in &taken.lazy {
                queues.lazy.entry(key.clone()).or_insert_with(|| value.clone());
            }
            return Ok(());
        }
        let payload = taken.raft_bytes + taken.data_bytes + lazy_bytes(&taken.lazy);
        if w.offset as usize + frame::aligned(frame::HEADER + payload) > self.options.segment_bytes {
            self.roll(w)?;
        }
        let mut buf = std::mem::take(&mut w.buf);
        frame::begin(&mut buf);
        buf.reserve(payload + frame::HEADER);
        w.runs_at.clear();
        for (key, value) in &taken.lazy {
            frame::put_small(&mut buf, key, Some(value));
        }
        for item in &taken.raft {
            match item {
                Item::Run(run, _) => {
                    w.runs_at.push((w.offset as usize + buf.len() + frame::RECORD_HEAD) as u32);
                    for RaftEntry { id, payload } in &run.entries {
                        let head =
                            EntryHead { group: run.group, term: id.term, node: id.node, index: id.index };
                        frame::put_entry(&mut buf, run.copied, head, payload);
                    }
                }
                Item::Truncate { group, after } => frame::put_truncate(&mut buf, *group, *after),
                Item::Small { key, value, .. } => frame::put_small(&mut buf, key, value.as_deref()),
                Item::Barrier { .. } => {}
            }
        }
        for data in &taken.data {
            frame::put_data(&mut buf, data.seq, &data.encoded);
        }
        w.number += 1;
        frame::seal(&mut buf, frame::Kind::Batch, w.segment, w.offset, w.number);
        w.file.write_at(&buf, w.offset).map_err(StorageError::io("write the log"))?;
        if !kv_types::mutant!(AckBeforeFsync) || w.number.is_multiple_of(16) {
            w.file.sync_data().map_err(StorageError::io("sync the log"))?;
        }
        w.offset += buf.len() as u64;
        self.counters.fsyncs.fetch_add(1, Ordering::Relaxed);
        let records = taken.raft.iter().map(Item::records).sum::<usize>() + taken.data.len();
        self.counters.records.fetch_add(records as u64, Ordering::Relaxed);
        self.counters.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.active_bytes.store(w.offset, Ordering::Relaxed);
        if buf.capacity() > 2 * self.options.raft_bytes_per_write {
            buf = Vec::new();
        }
        w.buf = buf;
        self.account(w, taken);
        let runs = taken.raft.iter().filter_map(|item| match item {
            Item::Run(run, _) => Some(run),
            _ => None,
        });
        for (run, at) in runs.zip(&w.runs_at) {
            if let Some(group) = self.group_if_known(run.group) {
                lock(&group).located(run, w.segment, *at);
            }
        }
        Ok(())
    }

    /// Brings the writer's own account up to the frame just written, in the order of its records.
    fn account(&self, w: &mut Writer, taken: &Taken) {
        w.small.extend(taken.lazy.clone());
        let segment = w.segment;
        for item in &taken.raft {
            match item {
                Item::Run(run, _) if run.copied => {
                    run.entries.iter().for_each(|e| w.segments.copied(run.group, e.id.index, segment));
                }
                Item::Run(run, _) => {
                    if let Some(first) = run.entries.first() {
                        w.segments.appended(run.group, first.id.index, run.entries.len(), segment);
                    }
                }
                Item::Truncate { group, after } => w.segments.truncate(*group, *after),
                Item::Small { key, value, .. } => {
                    if let Some(group) = small_key::purged_group(key)
                        && let Some(id) = value.as_deref().and_then(RaftLogId::decode)
                    {
                        w.segments.purge(group, id.index);
                    }
                    set(&mut w.small, key, value.as_ref());
                }
                Item::Barrier { .. } => {}
            }
        }
        for data in &taken.data {
            let ops = data.has_small.then(|| crate::batch::decode(&data.encoded)).flatten();
            for op in ops.map(|(_, ops)| ops).unwrap_or_default() {
                if let crate::batch::Op::Small(key, value) = op {
                    // Copies: the small state outlives the batch by far.
                    let value = value.map(|v| Bytes::copy_from_slice(&v));
                    set(&mut w.small, &Bytes::copy_from_slice(&key), value.as_ref());
                }
            }
            w.last_seq = data.seq;
            if let Some(info) = w.segments.known.get_mut(&segment) {
                info.max_seq = data.seq;
            }
        }
    }

    /// Closes the current segment and opens the next, whose head is synced before anything is written behind it.
    pub(crate) fn roll(&self, w: &mut Writer) -> Result<(), StorageError> {
        let id = w.segment + 1;
        let file = self.next_segment(id)?;
        self.open_segment(w, id, file, (w.segment, w.offset))?;
        self.wake_preparer();
        Ok(())
    }

    pub(crate) fn open_segment(
        &self,
        w: &mut Writer,
        id: u64,
        file: Arc<dyn DiskFile>,
        previous: (u64, u64),
    ) -> Result<(), StorageError> {
        let mut buf = std::mem::take(&mut w.buf);
        frame::begin(&mut buf);
        frame::Head::encode(&mut buf, previous, w.last_seq, w.small.iter());
        w.number += 1;
        frame::seal(&mut buf, frame::Kind::Head, id, 0, w.number);
        file.write_at(&buf, 0).map_err(StorageError::io("write a segment head"))?;
        file.sync_data().map_err(StorageError::io("sync a segment head"))?;
        (w.segment, w.offset, w.file) = (id, buf.len() as u64, file.clone());
        w.buf = buf;
        w.segments.known.insert(id, segments::SegmentInfo::default());
        write(&self.files).insert(id, file);
        self.closed_segments.store(w.segments.known.len() as u64 - 1, Ordering::Relaxed);
        self.active_bytes.store(w.offset, Ordering::Relaxed);
        Ok(())
    }

    fn next_segment(&self, id: u64) -> Result<Arc<dyn DiskFile>, StorageError> {
        let mut prepared = lock(&self.prepared);
        let give_up = Instant::now() + limits::PREPARE_WAIT;
        loop {
            match std::mem::take(&mut *prepared) {
                Prepared::Ready(ready, file) if ready == id => return Ok(file),
                Prepared::InProgress if self.options.drive == Drive::Threads => {
                    *prepared = Prepared::InProgress;
                    self.segment_wanted.store(true, Ordering::Release);
                    let waited = self.prepared_changed.wait_timeout(prepared, limits::IDLE_WAIT);
                    prepared = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
                    if self.halted() {
                        return Err(StorageError::Closed);
                    }
                    if let Some(failure) = self.failure() {
                        return Err(failure);
                    }
                    if Instant::now() > give_up {
                        let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
                        return Err(StorageError::io("prepare the next segment of the log")(late));
                    }
                }
                // Nobody makes it: without zeros, slower to sync but at once.
                _ => {
                    let o = &self.options;
                    let file =
                        segments::create(&*self.disk, &self.wal_dir, id, o.segment_bytes, false, &|_| true)?;
                    *prepared = Prepared::Missing;
                    return Ok(file);
                }
            }
        }
    }

    /// Waits until the next piece of the next segment may be written; false to give up. While the log is being written,
    /// zeros keep just so far ahead of it that they are done in time; they take the disk for themselves while it rests.
    fn pace_zeros(&self, done: usize) -> bool {
        let (to, of) = limits::ZERO_LEAD;
        while self.options.drive == Drive::Threads && self.state.load(Ordering::Acquire) == RUNNING {
            let active = self.active_bytes.load(Ordering::Relaxed);
            let behind = (done as u64) * of < active * to;
            if behind || self.segment_wanted.load(Ordering::Acquire) || self.failure().is_some() {
                break;
            }
            std::thread::sleep(limits::ZERO_PAUSE);
            let waiting = {
                let q = lock(&self.queues);
                q.raft_bytes + q.data_bytes > 0
            };
            if !waiting && active == self.active_bytes.load(Ordering::Relaxed) {
                break;
            }
        }
        !self.halted()
    }

    /// Makes the next segment ahead, if it is wanted.
    pub(crate) fn prepare_step(&self) -> bool {
        let id = {
            let w = lock(&self.writer);
            let mut prepared = lock(&self.prepared);
            match &*prepared {
                Prepared::Missing | Prepared::Failed(_) => *prepared = Prepared::InProgress,
                Prepared::Ready(id, _) if *id <= w.segment => *prepared = Prepared::InProgress,
                _ => return false,
            }
            w.segment + 1
        };
        let bytes = self.options.segment_bytes;
        let made =
            segments::create(&*self.disk, &self.wal_dir, id, bytes, true, &|done| self.pace_zeros(done));
        let mut prepared = lock(&self.prepared);
        let ok = made.is_ok();
        if let Err(e) = &made
            && !self.halted()
        {
            tracing::warn!(error = %e, "the next log segment could not be prepared; commits are refused until it can");
        }
        *prepared = match made {
            Ok(file) => Prepared::Ready(id, file),
            Err(e) => Prepared::Failed(e),
        };
        self.segment_wanted.store(false, Ordering::Release);
        self.prepare_failed.store(!ok, Ordering::Relaxed);
        self.prepared_changed.notify_all();
        ok
    }
}

fn set(small: &mut BTreeMap<Bytes, Bytes>, key: &Bytes, value: Option<&Bytes>) {
    match value {
        Some(value) => small.insert(key.clone(), value.clone()),
        None => small.remove(key),
    };
}
