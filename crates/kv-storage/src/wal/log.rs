//! The log as the rest of the crate sees it: what is handed to it, what is durable, how large it is, and the
//! steps that threads or a caller run.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use kv_types::LatencySummary;

use super::{
    durable::Durable,
    entry::{Done, RaftLogId},
    files::{SegmentFiles, Stretch},
    groups::{Groups, SharedIndex},
    index::Location,
    prepare::{self, NextSegment},
    progress::Progress,
    queue::{Item, Queue},
    recover::FoundLog,
    retention::{self, Retention},
    segments::{FIRST_SEGMENT, Segments, segment_path},
    writer::{self, End, Writer},
};
use crate::{
    batch::Op,
    disk::{Disk, DiskFile},
    error::StorageError,
    lifecycle::{Lifecycle, Phase},
    options::StorageOptions,
};

/// The shared log of a node.
pub(crate) struct Log {
    options: Arc<StorageOptions>,
    life: Arc<Lifecycle>,
    queue: Arc<Queue>,
    next: Arc<NextSegment>,
    files: Arc<SegmentFiles>,
    groups: Arc<Groups>,
    durable: Arc<Durable>,
    progress: Arc<Progress>,
    writer: Arc<Writer>,
    retention: Retention,
}

/// Figures of the log.
#[derive(Debug, Default)]
pub(crate) struct LogStats {
    pub(crate) writes: u64,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) data_queue_bytes: u64,
    pub(crate) raft_queue_bytes: u64,
    pub(crate) log_bytes: u64,
    pub(crate) segments: u64,
    pub(crate) pinned_by: String,
    pub(crate) index_bytes: u64,
    pub(crate) cache_bytes: u64,
}

impl Log {
    /// Continues the log that was found: cleans its end, and begins it if it is empty.
    pub(crate) fn open(
        options: Arc<StorageOptions>,
        life: Arc<Lifecycle>,
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        found: FoundLog,
    ) -> Result<Log, StorageError> {
        clean_end(&*disk, &dir, &found)?;
        let is_new = found.segments.is_empty();
        let first = found.segments.keys().next().copied().unwrap_or(FIRST_SEGMENT);
        let files: BTreeMap<u64, Arc<dyn DiskFile>> =
            found.segments.iter().map(|(id, s)| (*id, s.file.clone())).collect();
        let progress = Arc::new(Progress::new(options.segment_bytes));
        let queue = Arc::new(Queue::new(&options, life.clone(), found.small.clone(), found.last_seq));
        let durable = Arc::new(Durable::new(life.clone(), found.last_seq));
        let end = end_of(&*disk, &dir, &options, &found)?;
        let made_in = (disk.clone(), dir.clone(), options.segment_bytes);
        let next = NextSegment::new(made_in, life.clone(), queue.clone(), progress.clone(), end.segment);
        let (next, files) = (Arc::new(next), Arc::new(SegmentFiles::new(files)));
        let groups = Arc::new(Groups::new(found.groups));
        let writer = Arc::new(Writer::new(
            writer::Around {
                options: options.clone(),
                life: life.clone(),
                queue: queue.clone(),
                next: next.clone(),
                files: files.clone(),
                groups: groups.clone(),
                durable: durable.clone(),
                progress: progress.clone(),
            },
            end,
        ));
        if is_new {
            writer.begin()?;
        }
        let around = retention::Around {
            disk,
            dir,
            options: options.clone(),
            life: life.clone(),
            queue: queue.clone(),
            writer: writer.clone(),
            files: files.clone(),
            groups: groups.clone(),
            progress: progress.clone(),
        };
        let retention = Retention::new(around, first);
        Ok(Log { options, life, queue, next, files, groups, durable, progress, writer, retention })
    }

    /// Adds a data batch, decoded as `ops`, and names its place. After an error nothing was changed.
    pub(crate) fn push_data(&self, encoded: Bytes, ops: &[Op], bulk: bool) -> Result<u64, StorageError> {
        self.queue.push_data(encoded, ops, bulk)
    }

    /// Adds Raft records, which always find room: a caller that appends entries asks [`Log::admit_raft`]
    /// before.
    pub(crate) fn push(&self, items: Vec<Item>) {
        self.queue.push(items);
    }

    /// Changes storage's own small state. Visible at once, durable when `done` is called.
    pub(crate) fn put_small(&self, key: Bytes, value: Option<Bytes>, done: Option<Done>) {
        self.queue.put_small(key, value, done);
    }

    /// Changes small state with the next write, without causing one.
    pub(crate) fn put_lazy(&self, key: Bytes, value: Bytes) {
        self.queue.put_lazy(key, value);
    }

    pub(crate) fn small_get(&self, key: &[u8]) -> Option<Bytes> {
        self.queue.small_get(key)
    }

    pub(crate) fn small_scan(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.queue.small_scan(prefix)
    }

    /// The last data batch that is durable.
    pub(crate) fn durable_seq(&self) -> u64 {
        self.durable.seq()
    }

    /// Resolves when data batch `seq` is durable, or with the error that stopped the engine.
    pub(crate) async fn durable(&self, seq: u64) -> Result<(), StorageError> {
        self.durable.wait(seq).await
    }

    /// Raft records handed over so far.
    pub(crate) fn raft_pushed(&self) -> u64 {
        self.queue.raft_pushed()
    }

    /// Raft records that are in the log.
    pub(crate) fn raft_written(&self) -> u64 {
        self.queue.raft_written()
    }

    /// The index of a Raft group.
    pub(crate) fn group(&self, group: u32) -> SharedIndex {
        self.groups.of(group)
    }

    /// The Raft groups that are known.
    pub(crate) fn groups(&self) -> Vec<u32> {
        self.groups.all().into_iter().map(|(id, _)| id).collect()
    }

    /// The payload of an entry on disk.
    pub(crate) fn read_entry(&self, group: u32, id: RaftLogId, at: Location) -> io::Result<Bytes> {
        self.files.read_entry(group, id, at)
    }

    /// The payloads of entries that stand close to each other.
    pub(crate) fn read_stretch(&self, group: u32, stretch: &Stretch) -> io::Result<Vec<io::Result<Bytes>>> {
        self.files.read_stretch(group, stretch)
    }

    /// Whether commits find room: [`StorageError::LogFull`] otherwise.
    pub(crate) fn admit_data(&self) -> Result<(), StorageError> {
        let max = self.options.max_log_bytes;
        if let Some(e) = self.next.failure() {
            if matches!(e, StorageError::DiskFull { .. }) {
                return Err(e);
            }
            let pinned_by = format!("the disk ({e})");
            return Err(StorageError::LogFull { bytes: self.progress.log_bytes(), max, pinned_by });
        }
        if self.progress.log_bytes() < max { Ok(()) } else { Err(self.full(max)) }
    }

    /// Whether `bytes` of Raft entries find room below `max`: [`StorageError::LogFull`] otherwise.
    pub(crate) fn admit_raft(&self, bytes: usize, max: u64) -> Result<(), StorageError> {
        let (_, waiting) = self.queue.waiting_bytes();
        if self.progress.log_bytes() + (waiting + bytes) as u64 > max { Err(self.full(max)) } else { Ok(()) }
    }

    /// The error that names what keeps the log long; also starts what shortens it.
    fn full(&self, max: u64) -> StorageError {
        let named = self.retention.pinned_by();
        let pinned_by = if named.is_empty() { "data that is not yet in the tier".into() } else { named };
        self.life.wake_background();
        StorageError::LogFull { bytes: self.progress.log_bytes(), max, pinned_by }
    }

    /// Bytes of Raft records that wait.
    pub(crate) fn raft_queue_bytes(&self) -> usize {
        self.queue.waiting_bytes().1
    }

    pub(crate) fn log_bytes(&self) -> u64 {
        self.progress.log_bytes()
    }

    /// Bytes written to the log since the start.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.progress.bytes_written()
    }

    /// True if nothing waits for the writer.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// One write, if anything waits.
    pub(crate) fn write_step(&self) -> bool {
        self.writer.step()
    }

    /// A thread is about to start that makes segments as long as the engine runs.
    pub(crate) fn maker_starts(&self) {
        self.next.maker_starts();
    }

    /// Makes the next segment, if it is wanted and `room` finds so many bytes for it.
    pub(crate) fn prepare_step(&self, room: &dyn Fn(u64) -> Result<(), StorageError>) -> bool {
        self.next.prepare_step(room)
    }

    /// How long it took to write and sync a frame.
    pub(crate) fn write_latency(&self) -> LatencySummary {
        self.progress.write_latency()
    }

    /// Lets segments go that nothing needs, given up to which data batch the tier is on disk.
    pub(crate) fn retention_step(&self, checkpointed: u64) -> bool {
        if !self.life.may_work() {
            return false;
        }
        self.retention.step(checkpointed).unwrap_or_else(|e| {
            self.fail(&e);
            false
        })
    }

    /// The writer's thread: writes until the engine ends.
    pub(crate) fn run_writer(&self) {
        loop {
            self.queue.wait_for_work();
            let phase = self.life.phase();
            if phase == Phase::Halted || self.life.failure().is_some() {
                break;
            }
            if !self.write_step() && phase == Phase::Draining {
                break;
            }
        }
        self.refuse_rest();
    }

    /// Lazy small state is written now: the engine closes.
    pub(crate) fn write_lazy(&self) {
        self.queue.write_lazy();
    }

    /// Takes nothing new; wakes the threads that wait inside the log.
    pub(crate) fn close(&self) {
        self.queue.close();
        self.next.wake();
    }

    /// Stops the engine: all waiters of the log get the error.
    pub(crate) fn fail(&self, e: &StorageError) {
        self.life.fail(e);
        self.durable.refuse(e);
        self.queue.wake();
    }

    /// What still waits is refused; nothing is taken any more.
    pub(crate) fn refuse_rest(&self) {
        let e = self.life.failure().unwrap_or(StorageError::Closed);
        self.queue.refuse_rest(&e);
        self.fail(&e);
    }

    pub(crate) fn stats(&self) -> LogStats {
        let (data, raft) = self.queue.waiting_bytes();
        let (index, cache) = self.groups.memory_bytes();
        LogStats {
            writes: self.progress.writes(),
            records: self.progress.records(),
            bytes: self.progress.bytes_written(),
            data_queue_bytes: data as u64,
            raft_queue_bytes: raft as u64,
            log_bytes: self.progress.log_bytes(),
            segments: self.progress.segments(),
            pinned_by: self.retention.pinned_by(),
            index_bytes: index as u64,
            cache_bytes: cache as u64,
        }
    }
}

/// Removes what was never part of the log, and makes the rest durable.
fn clean_end(disk: &dyn Disk, dir: &std::path::Path, found: &FoundLog) -> Result<(), StorageError> {
    let fail = StorageError::io("clean the end of the log");
    for id in &found.empty {
        disk.remove(&segment_path(dir, *id)).map_err(&fail)?;
    }
    if !found.empty.is_empty() {
        disk.sync_dir(dir).map_err(&fail)?;
    }
    let Some((id, last)) = found.segments.last_key_value() else { return Ok(()) };
    if let Some((from, n)) = found.torn {
        tracing::warn!(segment = id, offset = from, bytes = n, "the last write was torn and is cut off");
        last.file.write_at(&vec![0; n], from).map_err(&fail)?;
    }
    // The last frame may have been written and never synced, by a process killed in between; the ones before
    // it were, or it would not be there. From here on it counts as durable, is voted by and answered from,
    // and what follows it must not outlive it. It is written again first: Linux drops the pages of a sync
    // that failed, shows them as long as it has them and calls them clean, so that a second sync alone would
    // succeed without them.
    let again = found.unproven.as_ref().map_or(Ok(()), |(from, frame)| last.file.write_at(frame, *from));
    again.and_then(|()| last.file.sync_data()).map_err(StorageError::io("make the end of the log durable"))
}

/// Where the writer goes on.
fn end_of(
    disk: &dyn Disk,
    dir: &std::path::Path,
    options: &StorageOptions,
    found: &FoundLog,
) -> Result<End, StorageError> {
    let mut segments = Segments::default();
    for (id, of) in &found.segments {
        segments.add(*id, of.max_seq);
    }
    for (group, index) in &found.groups {
        segments.restore(*group, index.segments().clone());
    }
    let (segment, file, offset) = match found.segments.last_key_value() {
        Some((id, last)) => (*id, last.file.clone(), last.end),
        None => {
            let file = prepare::create(disk, dir, FIRST_SEGMENT, options.segment_bytes, true, &|_| true)?;
            (FIRST_SEGMENT, file, 0)
        }
    };
    let (number, last_seq, small) = (found.frame_number, found.last_seq, found.small.clone());
    Ok(End { segment, file, offset, number, last_seq, small, segments })
}
