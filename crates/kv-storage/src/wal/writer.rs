//! The writer: takes what waits, writes it as one frame, syncs once, completes in order.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::{
    durable::Durable,
    entry::{RaftEntry, RaftLogId},
    files::SegmentFiles,
    frame::{self, EntryHead},
    groups::Groups,
    prepare::NextSegment,
    progress::Progress,
    queue::{Item, Queue, Taken},
    segments::Segments,
    small::{SmallState, small_key},
};
use crate::{
    batch, disk::DiskFile, error::StorageError, lifecycle::Lifecycle, locks::lock, options::StorageOptions,
};

/// Where the log ends, and what the disk has.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) segment: u64,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) offset: u64,
    /// Of the last frame.
    pub(crate) number: u64,
    pub(crate) last_seq: u64,
    /// As written; what the next head repeats.
    pub(crate) small: SmallState,
    pub(crate) segments: Segments,
}

#[derive(Debug)]
struct State {
    end: End,
    buf: Vec<u8>,
    /// Where the runs of the frame being written have the head of their first entry.
    runs_at: Vec<u32>,
}

/// What is kept of the log, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) first: u64,
    /// The oldest segment that must stay.
    pub(crate) keep_from: u64,
    pub(crate) pinned_by: String,
}

/// The writer of the log, and its account for others.
pub(crate) struct Writer {
    options: Arc<StorageOptions>,
    life: Arc<Lifecycle>,
    queue: Arc<Queue>,
    next: Arc<NextSegment>,
    files: Arc<SegmentFiles>,
    groups: Arc<Groups>,
    durable: Arc<Durable>,
    progress: Arc<Progress>,
    state: Mutex<State>,
}

/// What the writer works with.
pub(crate) struct Around {
    pub(crate) options: Arc<StorageOptions>,
    pub(crate) life: Arc<Lifecycle>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) next: Arc<NextSegment>,
    pub(crate) files: Arc<SegmentFiles>,
    pub(crate) groups: Arc<Groups>,
    pub(crate) durable: Arc<Durable>,
    pub(crate) progress: Arc<Progress>,
}

impl Writer {
    pub(crate) fn new(around: Around, end: End) -> Writer {
        let Around { options, life, queue, next, files, groups, durable, progress } = around;
        progress.set_segments(end.segments.len());
        progress.set_active(end.offset);
        let state = Mutex::new(State { end, buf: Vec::new(), runs_at: Vec::new() });
        Writer { options, life, queue, next, files, groups, durable, progress, state }
    }

    /// Writes the head of the very first segment.
    pub(crate) fn begin(&self) -> Result<(), StorageError> {
        let mut state = lock(&self.state);
        let (segment, file) = (state.end.segment, state.end.file.clone());
        self.open_segment(&mut state, segment, file, (0, 0))
    }

    /// One write of the log, if anything waits.
    pub(crate) fn step(&self) -> bool {
        let mut state = lock(&self.state);
        let taken = self.queue.take(&self.options);
        if taken.is_empty() {
            return false;
        }
        let result = match self.life.failure() {
            Some(e) => Err(e),
            None => self.write_frame(&mut state, &taken),
        };
        if let Err(e) = &result {
            // Before the lock is released: no frame may be written after one that failed.
            self.life.fail(e);
        }
        drop(state);
        self.queue.settle(&taken);
        if let Err(e) = &result {
            self.durable.refuse(e);
        }
        self.complete(taken, result);
        true
    }

    /// Callbacks in the order of the log. What costs time and is not waited for comes after them.
    fn complete(&self, mut taken: Taken, result: Result<(), StorageError>) {
        for item in &mut taken.raft {
            if let Some(done) = item.done() {
                done(result.clone().map_err(Into::into));
            }
        }
        if result.is_ok() {
            self.queue.count_written(taken.raft.len());
            if let Some(last) = taken.data.last() {
                self.durable.advance(last.seq);
            }
        }
        self.shrink_caches(&taken);
    }

    /// Entries that are on disk now leave memory beyond the cache's bound.
    fn shrink_caches(&self, taken: &Taken) {
        let mut last = None;
        for group in taken.runs().map(|run| run.group()) {
            if last.replace(group) != Some(group)
                && let Some(index) = self.groups.known(group)
            {
                lock(&index).shrink_cache(self.options.raft_cache_bytes);
            }
        }
    }

    fn write_frame(&self, state: &mut State, taken: &Taken) -> Result<(), StorageError> {
        if taken.only_barriers() {
            self.queue.give_back(&taken.lazy);
            return Ok(());
        }
        let payload = taken.payload_bytes();
        if state.end.offset as usize + frame::aligned(frame::HEADER + payload) > self.options.segment_bytes {
            self.roll(state)?;
        }
        let mut buf = std::mem::take(&mut state.buf);
        frame::begin(&mut buf);
        buf.reserve(payload + frame::HEADER);
        encode(&mut buf, &mut state.runs_at, state.end.offset, taken);
        assert!(buf.len() <= frame::HEADER + payload, "a frame is as large as its records were counted");
        let end = &mut state.end;
        end.number += 1;
        frame::seal(&mut buf, frame::Kind::Batch, end.segment, end.offset, end.number);
        assert!(
            end.offset as usize + buf.len() <= self.options.segment_bytes,
            "a frame of {} bytes at {} ends behind its segment",
            buf.len(),
            end.offset
        );
        let begun = Instant::now();
        end.file.write_at(&buf, end.offset).map_err(StorageError::io("write the log"))?;
        if !kv_types::mutant!(AckBeforeFsync) || end.number.is_multiple_of(16) {
            end.file.sync_data().map_err(StorageError::io("sync the log"))?;
        }
        end.offset += buf.len() as u64;
        self.progress.wrote(taken.records(), buf.len(), begun.elapsed());
        self.progress.set_active(end.offset);
        if buf.capacity() > 2 * self.options.raft_bytes_per_write {
            buf = Vec::new();
        }
        account(end, taken);
        for (run, at) in taken.runs().zip(&state.runs_at) {
            if let Some(index) = self.groups.known(run.group()) {
                lock(&index).located(run, end.segment, *at);
            }
        }
        state.buf = buf;
        Ok(())
    }

    /// Closes the current segment and opens the next, whose head is synced before anything is written behind
    /// it.
    fn roll(&self, state: &mut State) -> Result<(), StorageError> {
        let id = state.end.segment + 1;
        let file = self.next.take(id)?;
        let previous = (state.end.segment, state.end.offset);
        self.open_segment(state, id, file, previous)?;
        self.life.wake_background();
        Ok(())
    }

    fn open_segment(
        &self,
        state: &mut State,
        id: u64,
        file: Arc<dyn DiskFile>,
        previous: (u64, u64),
    ) -> Result<(), StorageError> {
        let buf = &mut state.buf;
        let end = &mut state.end;
        frame::begin(buf);
        frame::Head::encode(buf, previous, end.last_seq, end.small.rows().iter());
        end.number += 1;
        frame::seal(buf, frame::Kind::Head, id, 0, end.number);
        file.write_at(buf, 0).map_err(StorageError::io("write a segment head"))?;
        file.sync_data().map_err(StorageError::io("sync a segment head"))?;
        (end.segment, end.offset, end.file) = (id, buf.len() as u64, file.clone());
        end.segments.add(id, 0);
        self.files.add(id, file);
        self.progress.set_segments(end.segments.len());
        self.progress.set_active(end.offset);
        Ok(())
    }

    /// What must be kept, given up to which data batch the tier is on disk.
    pub(crate) fn kept(&self, checkpointed: u64) -> Kept {
        let state = lock(&self.state);
        let segments = &state.end.segments;
        Kept {
            first: segments.first().unwrap_or(0),
            keep_from: segments.keep_from(checkpointed),
            pinned_by: segments.pinned_by(checkpointed),
        }
    }

    /// Forgets the segments before one that the log durably names as its first; which they were.
    pub(crate) fn forget_before(&self, first: u64) -> Vec<u64> {
        let mut state = lock(&self.state);
        let gone = state.end.segments.forget_before(first);
        self.progress.set_segments(state.end.segments.len());
        gone
    }

    /// The groups whose live entries alone keep a segment, if that is so.
    pub(crate) fn movable(&self, segment: u64, checkpointed: u64) -> Option<Vec<u32>> {
        let groups = lock(&self.state).end.segments.movable(segment, checkpointed)?;
        Some(groups.into_iter().collect())
    }
}

/// The records of a frame, in the order in which they count.
fn encode(buf: &mut Vec<u8>, runs_at: &mut Vec<u32>, offset: u64, taken: &Taken) {
    runs_at.clear();
    for (key, value) in &taken.lazy {
        frame::put_small(buf, key, Some(value));
    }
    for item in &taken.raft {
        match item {
            Item::Run(run, _) => {
                runs_at.push((offset as usize + buf.len() + frame::RECORD_HEAD) as u32);
                for RaftEntry { id, payload } in run.entries() {
                    let head =
                        EntryHead { group: run.group(), term: id.term, node: id.node, index: id.index };
                    frame::put_entry(buf, run.is_copied(), head, payload);
                }
            }
            Item::Truncate { group, after } => frame::put_truncate(buf, *group, *after),
            Item::Small { key, value, .. } => frame::put_small(buf, key, value.as_deref()),
            Item::Barrier { .. } => {}
        }
    }
    for data in &taken.data {
        frame::put_data(buf, data.seq, &data.encoded);
    }
}

/// Brings the writer's own account up to the frame just written, in the order of its records.
fn account(end: &mut End, taken: &Taken) {
    for (key, value) in &taken.lazy {
        end.small.set(key, Some(value));
    }
    let segment = end.segment;
    for item in &taken.raft {
        match item {
            Item::Run(run, _) if run.is_copied() => {
                run.entries().iter().for_each(|e| end.segments.copied(run.group(), e.id.index, segment));
            }
            Item::Run(run, _) => {
                if let Some(first) = run.entries().first() {
                    end.segments.appended(run.group(), first.id.index, run.entries().len(), segment);
                }
            }
            Item::Truncate { group, after } => end.segments.truncate(*group, *after),
            Item::Small { key, value, .. } => {
                if let Some(group) = small_key::purged_group(key)
                    && let Some(id) = value.as_deref().and_then(RaftLogId::decode)
                {
                    end.segments.purge(group, id.index);
                }
                end.small.set(key, value.as_deref());
            }
            Item::Barrier { .. } => {}
        }
    }
    for data in &taken.data {
        assert_eq!(data.seq, end.last_seq + 1, "data batches are written in order");
        if data.has_small
            && let Some((_, ops)) = batch::decode(&data.encoded)
        {
            end.small.apply(&ops);
        }
        end.last_seq = data.seq;
        end.segments.wrote_data(segment, data.seq);
    }
}
