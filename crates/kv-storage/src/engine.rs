//! The engine: commits, reads, and the threads that carry them to the log, the tier and the disk.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    future::Future,
    io,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use kv_types::GroupId;
use tokio::sync::{
    Notify,
    oneshot::{self, error::TryRecvError},
    watch,
};

use crate::{
    batch::{self, Batch, Op, Position, Row, SMALL_USER, TableId, full_key, prefix_end, split_key},
    checkpoint::Checkpointer,
    cut::{Cuts, Merge},
    disk::{Disk, DiskFile},
    error::StorageError,
    identity::{self, Identity},
    limits,
    memtable::Mem,
    options::{Drive, StorageOptions},
    raft_log::{Group, Location, RaftLog, RaftLogId},
    reads::Readers,
    snapshot::{Snapshots, Temporaries},
    threads::refuse,
    tier::{Tier, TierError, TierMark},
    wal::{
        DataItem, Item, Queues,
        frame::{ENTRY_HEAD, EntryHead},
        segments::Prepared,
        writer::Writer,
    },
};

/// A lock whose holder panicked is taken over: every critical section leaves whole values behind.
pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn read<T>(m: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    m.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write<T>(m: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    m.write().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) const RUNNING: u64 = 0;
pub(crate) const DRAINING: u64 = 1;
pub(crate) const HALTED: u64 = 2;

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) fsyncs: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) drains: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    pub(crate) refusals: AtomicU64,
}

/// Figures of a running engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Log writes, each one `fdatasync`.
    pub fsyncs: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Data waiting for the log.
    pub data_queue_bytes: u64,
    /// Raft records waiting for the log.
    pub raft_queue_bytes: u64,
    /// Data not yet in the tier.
    pub memtable_bytes: u64,
    /// Size of the log.
    pub log_bytes: u64,
    /// Segments of the log.
    pub segments: u64,
    /// Tier batches.
    pub drains: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Commits refused for a bound.
    pub refusals: u64,
    /// Who keeps the oldest segment.
    pub pinned_by: String,
}

#[derive(Debug, Default)]
pub(crate) struct Waiters {
    pub(crate) waiting: BTreeMap<u64, Vec<oneshot::Sender<Result<(), StorageError>>>>,
}

/// What the handles and the threads share. Order of locks: group, memtable, queues; writer, files; writer, prepared.
pub(crate) struct Inner {
    pub(crate) options: StorageOptions,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) wal_dir: PathBuf,
    pub(crate) mem: RwLock<Mem>,
    pub(crate) queues: Mutex<Queues>,
    pub(crate) queued: Condvar,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) files: RwLock<BTreeMap<u64, Arc<dyn DiskFile>>>,
    pub(crate) prepared: Mutex<Prepared>,
    pub(crate) prepared_changed: Condvar,
    pub(crate) prepare_failed: AtomicBool,
    /// The writer waits for the segment being prepared.
    pub(crate) segment_wanted: AtomicBool,
    pub(crate) groups: RwLock<BTreeMap<u32, Arc<Mutex<Group>>>>,
    pub(crate) tier: RwLock<Option<Arc<dyn Tier>>>,
    pub(crate) drain_mark: Mutex<TierMark>,
    pub(crate) gate: RwLock<()>,
    pub(crate) cuts: Mutex<Cuts>,
    pub(crate) checkpointer: Mutex<Checkpointer>,
    pub(crate) removable: AtomicU64,
    pub(crate) durable_seq: AtomicU64,
    /// Raft records handed to the log, and how many of them are in it: derived rows stay out of the tier until the log
    /// holds what they derive from.
    pub(crate) raft_pushed: AtomicU64,
    pub(crate) raft_written: AtomicU64,
    pub(crate) waiters: Mutex<Waiters>,
    pub(crate) checkpointed_seq: AtomicU64,
    pub(crate) checkpointed: watch::Sender<u64>,
    pub(crate) wanted_ord: AtomicU64,
    pub(crate) closed_segments: AtomicU64,
    pub(crate) active_bytes: AtomicU64,
    pub(crate) pinned_by: Mutex<String>,
    pub(crate) failed: watch::Sender<Option<StorageError>>,
    pub(crate) has_failed: AtomicBool,
    pub(crate) state: AtomicU64,
    pub(crate) work: Notify,
    pub(crate) room: Notify,
    pub(crate) background: Mutex<u64>,
    pub(crate) background_changed: Condvar,
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
    pub(crate) alive: watch::Sender<usize>,
    pub(crate) counters: Counters,
    pub(crate) temporaries: Arc<Mutex<Temporaries>>,
    pub(crate) readers: Readers,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").field("dir", &self.options.dir).finish_non_exhaustive()
    }
}

/// Stops the threads when the last handle goes.
#[derive(Debug)]
struct Guard(Arc<Inner>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.stop(DRAINING);
    }
}

/// The storage engine of a node. Clones share it.
#[derive(Debug, Clone)]
pub struct Storage {
    guard: Arc<Guard>,
}

impl Inner {
    pub(crate) fn failure(&self) -> Option<StorageError> {
        if !self.has_failed.load(Ordering::Acquire) {
            return None;
        }
        self.failed.borrow().clone()
    }

    pub(crate) fn check(&self) -> Result<(), StorageError> {
        match self.failure() {
            Some(e) => Err(e),
            None if self.state.load(Ordering::Acquire) != RUNNING => Err(StorageError::Closed),
            None => Ok(()),
        }
    }

    pub(crate) fn halted(&self) -> bool {
        self.state.load(Ordering::Acquire) == HALTED
    }

    /// Nothing is acknowledged from now on.
    pub(crate) fn poison(&self, e: StorageError) {
        let first = self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            if first {
                *failed = Some(e.clone());
                // Before the waiters of `failed` are woken: none of them finds a commit accepted after it.
                self.has_failed.store(true, Ordering::Release);
            }
            first
        });
        if first && e != StorageError::Closed {
            tracing::error!(error = %e, dir = %self.options.dir.display(), "storage failed; the node must stop");
        }
        let waiting = std::mem::take(&mut lock(&self.waiters).waiting);
        for waiter in waiting.into_values().flatten() {
            let _ = waiter.send(Err(e.clone()));
        }
        self.room.notify_waiters();
        self.queued.notify_all();
        self.work.notify_one();
    }

    /// The tier failed while running. A damaged one is marked, so that the next start sets it aside.
    pub(crate) fn tier_failed(&self, e: StorageError) {
        if let StorageError::Tier(TierError::Damaged(_)) = &e
            && let Err(e) = crate::open::mark_suspect(&*self.disk, &self.options.dir)
        {
            tracing::error!(error = %e, "the damaged tier could not be marked");
        }
        self.poison(e);
    }

    pub(crate) fn tier(&self) -> Result<Arc<dyn Tier>, StorageError> {
        read(&self.tier).clone().ok_or(StorageError::Closed)
    }

    pub(crate) fn log_bytes(&self) -> u64 {
        let closed = self.closed_segments.load(Ordering::Relaxed) * self.options.segment_bytes as u64;
        closed + self.active_bytes.load(Ordering::Relaxed)
    }

    fn log_full(&self, max: u64) -> Result<(), StorageError> {
        let bytes = self.log_bytes();
        if self.prepare_failed.load(Ordering::Relaxed)
            && let Prepared::Failed(e) = &*lock(&self.prepared)
        {
            return Err(StorageError::LogFull { bytes, max, pinned_by: format!("the disk ({e})") });
        }
        if bytes < max { Ok(()) } else { Err(self.refusal_of_log(max)) }
    }

    /// The error that says who keeps the log long; also asks for what shortens it.
    fn refusal_of_log(&self, max: u64) -> StorageError {
        let pinned_by = {
            let named = lock(&self.pinned_by).clone();
            if named.is_empty() { "data that is not yet in the tier".into() } else { named }
        };
        self.wake_checkpointer();
        StorageError::LogFull { bytes: self.log_bytes(), max, pinned_by }
    }

    /// Raft records may use a quarter more than commits; beyond that the group must wait for a purge.
    pub(crate) fn admit_raft(&self, bytes: usize, max: u64) -> Result<(), StorageError> {
        let queued = (lock(&self.queues).raft_bytes + bytes) as u64;
        if self.log_bytes() + queued > max { Err(self.refusal_of_log(max)) } else { Ok(()) }
    }

    fn commit(&self, batch: Batch, bulk: bool) -> Result<Position, StorageError> {
        let result = self.try_commit(batch, bulk);
        if result.as_ref().is_err_and(StorageError::is_refusal) {
            self.counters.refusals.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    fn try_commit(&self, batch: Batch, bulk: bool) -> Result<Position, StorageError> {
        let o = &self.options;
        let encoded = batch.finish(o.max_record_bytes)?;
        let (_, ops) = batch::decode(&encoded).ok_or_else(|| StorageError::Invalid("not a batch".into()))?;
        self.check()?;
        self.log_full(o.max_log_bytes)?;
        let n = encoded.len();
        let mut mem = write(&self.mem);
        let memtable_max = if bulk { o.bulk_memtable_bytes } else { o.memtable_bytes };
        if mem.bytes > 0 && mem.bytes + n > memtable_max {
            return Err(StorageError::Overloaded { what: "the memtable" });
        }
        let growth = mem.small_growth(&ops);
        // Half of the small state is for callers: votes and purge points always find room.
        if growth > 0 && mem.small_bytes + growth > o.small_state_bytes() / 2 {
            let (bytes, max) = (mem.small_bytes + growth, o.small_state_bytes() / 2);
            return Err(StorageError::TooLarge { what: "the small state", bytes, max });
        }
        let seq = mem.last_seq + 1;
        let has_small = ops.iter().any(|op| matches!(op, Op::Small(..)));
        let item = DataItem { seq, encoded, bulk, has_small };
        let bytes = item.bytes();
        {
            let mut q = lock(&self.queues);
            if q.closed {
                return Err(StorageError::Closed);
            }
            if q.data_bytes > 0 && q.data_bytes + bytes > o.data_queue_bytes {
                return Err(StorageError::Overloaded { what: "the log's queue" });
            }
            if bulk && q.bulk_bytes > 0 && q.bulk_bytes + bytes > o.bulk_queue_bytes {
                return Err(StorageError::Overloaded { what: "the log's bulk queue" });
            }
            q.data_bytes += bytes;
            if bulk {
                q.bulk_bytes += bytes;
            }
            q.data.push_back(item);
        }
        mem.last_seq = seq;
        mem.insert(ops, Some(seq), 0, n);
        drop(mem);
        self.wake_writer();
        Ok(Position(seq))
    }

    pub(crate) fn wake_writer(&self) {
        match self.options.drive {
            Drive::Threads => self.queued.notify_one(),
            Drive::Manual => self.work.notify_one(),
        }
    }

    /// Raft records always find room; `log_pressure` tells the group to slow down.
    pub(crate) fn push_raft(&self, items: Vec<Item>) {
        let mut q = lock(&self.queues);
        if q.closed {
            drop(q);
            refuse(items, &self.failure().unwrap_or(StorageError::Closed));
            return;
        }
        self.raft_pushed.fetch_add(items.len() as u64, Ordering::AcqRel);
        for item in items {
            q.raft_bytes += item.bytes();
            q.raft.push_back(item);
        }
        drop(q);
        self.wake_writer();
    }

    /// Changes storage's own small state through the Raft queue.
    pub(crate) fn put_own(&self, key: Bytes, value: Option<Bytes>, done: Option<crate::raft_log::Done>) {
        let mut mem = write(&self.mem);
        mem.set_small(&key, value.as_deref());
        self.push_raft(vec![Item::Small { key, value, done }]);
    }

    pub(crate) fn put_lazy(&self, key: Bytes, value: Bytes) {
        let mut mem = write(&self.mem);
        mem.set_small(&key, Some(&value));
        lock(&self.queues).lazy.insert(key, value);
    }

    pub(crate) fn small_get(&self, key: &[u8]) -> Option<Bytes> {
        read(&self.mem).small.get(key).cloned()
    }

    pub(crate) fn advance_durable(&self, seq: u64) {
        self.durable_seq.store(seq, Ordering::Release);
        let ready = {
            let mut waiters = lock(&self.waiters);
            let later = waiters.waiting.split_off(&(seq + 1));
            std::mem::replace(&mut waiters.waiting, later)
        };
        for waiter in ready.into_values().rev().flatten() {
            let _ = waiter.send(Ok(()));
        }
    }

    async fn durable(&self, seq: u64) -> Result<(), StorageError> {
        if self.durable_seq.load(Ordering::Acquire) >= seq {
            return Ok(());
        }
        let receive = {
            let mut waiters = lock(&self.waiters);
            if let Some(e) = self.failure() {
                return Err(e);
            }
            if self.durable_seq.load(Ordering::Acquire) >= seq {
                return Ok(());
            }
            let (send, receive) = oneshot::channel();
            waiters.waiting.entry(seq).or_default().push(send);
            receive
        };
        receive.await.unwrap_or(Err(StorageError::Closed))
    }

    /// Adds a derived batch, waiting for room for a bounded time.
    pub(crate) async fn apply(&self, batch: Batch) -> Result<(), StorageError> {
        let o = &self.options;
        let encoded = batch.finish(o.memtable_bytes)?;
        let (_, ops) = batch::decode(&encoded).ok_or_else(|| StorageError::Invalid("not a batch".into()))?;
        if ops.iter().any(|op| matches!(op, Op::Small(..))) {
            return Err(StorageError::Invalid("small state cannot be derived: commit it".into()));
        }
        let deadline = tokio::time::Instant::now() + o.apply_wait;
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            self.check()?;
            {
                let mut mem = write(&self.mem);
                if mem.bytes == 0 || mem.bytes + encoded.len() <= o.memtable_bytes {
                    mem.insert(ops, None, self.raft_pushed.load(Ordering::Acquire), encoded.len());
                    drop(mem);
                    if o.drive == Drive::Manual {
                        self.work.notify_one();
                    }
                    return Ok(());
                }
            }
            self.wake_background();
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                return Err(StorageError::Overloaded { what: "the memtable" });
            }
        }
    }

    /// Starts a scan of full keys: a view that does not change while the caller holds the gate.
    pub(crate) fn merge(
        &self,
        from: Vec<u8>,
        to: Option<Vec<u8>>,
        limit: usize,
    ) -> Result<Merge, StorageError> {
        let rows = read(&self.mem).range(&from, to.as_deref(), limit);
        Ok(Merge::new(self.tier()?, rows, from, to))
    }

    pub(crate) fn read_entry(&self, group: u32, id: RaftLogId, location: Location) -> io::Result<Bytes> {
        let file = read(&self.files).get(&location.segment).cloned();
        let file =
            file.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the entry was purged meanwhile"))?;
        let mut body = vec![0; ENTRY_HEAD + location.bytes as usize];
        let n = file.read_at(&mut body, u64::from(location.offset))?;
        let expected = EntryHead { group, term: id.term, node: id.node, index: id.index };
        match body.get(..n).and_then(EntryHead::decode) {
            Some((head, _)) if head == expected => Ok(Bytes::from(body).slice(ENTRY_HEAD..)),
            _ => Err(StorageError::CorruptLog {
                segment: location.segment,
                offset: u64::from(location.offset),
                what: format!("entry {id} of group {group} fails its checksum"),
            }
            .into()),
        }
    }

    pub(crate) fn group_if_known(&self, group: u32) -> Option<Arc<Mutex<Group>>> {
        read(&self.groups).get(&group).cloned()
    }

    pub(crate) fn wake_background(&self) {
        *lock(&self.background) += 1;
        self.background_changed.notify_all();
    }

    pub(crate) fn wake_checkpointer(&self) {
        self.wake_background();
    }

    pub(crate) fn wake_preparer(&self) {
        self.wake_background();
    }
}

impl Storage {
    pub(crate) fn new(inner: Arc<Inner>) -> Storage {
        Storage { guard: Arc::new(Guard(inner)) }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.guard.0
    }

    /// Logs a batch. It is visible to reads at once, in the order of the calls, and durable when [`Storage::durable`]
    /// says so. After an error nothing happened.
    pub fn commit(&self, batch: Batch) -> Result<Position, StorageError> {
        self.inner().commit(batch, false)
    }

    /// As [`Storage::commit`], within a smaller budget: transfer and repair cannot crowd out the foreground.
    pub fn commit_bulk(&self, batch: Batch) -> Result<Position, StorageError> {
        self.inner().commit(batch, true)
    }

    /// Resolves when everything up to `position` is on disk, or with the error that poisoned the log.
    pub async fn durable(&self, position: Position) -> Result<(), StorageError> {
        self.inner().durable(position.0).await
    }

    /// True when everything up to `position` is on disk.
    pub fn is_durable(&self, position: Position) -> bool {
        self.inner().durable_seq.load(Ordering::Acquire) >= position.0
    }

    /// Adds derived rows: state that a log can rebuild. Visible at once, never logged, and in the tier as a whole or not
    /// at all, after everything committed before. Waits for room in the memtable, `apply_wait` at most.
    pub async fn apply(&self, batch: Batch) -> Result<(), StorageError> {
        self.inner().apply(batch).await
    }

    /// The value of a key, with the position to wait for before it may be revealed.
    pub fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Row>, StorageError> {
        let full = full_key(table, key);
        let found = {
            let mem = read(&self.inner().mem);
            if !mem.replacing.is_empty() {
                let mut next = full.clone();
                next.push(0);
                if mem.is_replacing(&full, Some(&next)) {
                    return Err(StorageError::Replacing);
                }
            }
            mem.get(&full)
        };
        match found {
            Some((value, seq)) => Ok(value.map(|value| Row { value, position: Position(seq) })),
            None => {
                let value = self.tier_read(|tier| tier.get(&full))?;
                Ok(value.map(|value| Row { value, position: Position::DURABLE }))
            }
        }
    }

    fn tier_read<T>(&self, f: impl FnOnce(&dyn Tier) -> Result<T, TierError>) -> Result<T, StorageError> {
        let tier = self.inner().tier()?;
        f(&*tier).map_err(|e| {
            let e = StorageError::from(e);
            self.inner().tier_failed(e.clone());
            e
        })
    }

    /// Rows from `from` (inclusive) to `to` (exclusive) in key order, at most `limit`: one consistent view.
    pub fn scan(
        &self,
        table: TableId,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Row)>, StorageError> {
        let inner = self.inner();
        let from = full_key(table, from);
        let to = match to {
            Some(to) => Some(full_key(table, to)),
            None => prefix_end(&full_key(table, &[])),
        };
        let _gate = read(&inner.gate);
        if read(&inner.mem).is_replacing(&from, to.as_deref()) {
            return Err(StorageError::Replacing);
        }
        let mut merge = inner.merge(from, to, limit)?;
        let mut out = Vec::new();
        while out.len() < limit
            && let Some((key, value, seq)) = merge.next().inspect_err(|e| inner.tier_failed(e.clone()))?
        {
            if let Some((_, key)) = split_key(&key) {
                out.push((key, Row { value, position: Position(seq) }));
            }
        }
        Ok(out)
    }

    /// A value of the small state.
    pub fn small_get(&self, key: &[u8]) -> Option<Bytes> {
        let mut own = vec![SMALL_USER];
        own.extend_from_slice(key);
        self.inner().small_get(&own)
    }

    /// The small state under a prefix, in key order.
    pub fn small_scan(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        let mut own = vec![SMALL_USER];
        own.extend_from_slice(prefix);
        let mem = read(&self.inner().mem);
        let rows = mem
            .small
            .range::<[u8], _>((std::ops::Bound::Included(own.as_slice()), std::ops::Bound::Unbounded));
        rows.take_while(|(k, _)| k.starts_with(&own)).map(|(k, v)| (k.slice(1..), v.clone())).collect()
    }

    /// Resolves when everything committed or applied before the call is in the tier and on disk there. Do not hold a
    /// [`crate::Cut`] meanwhile: it stops the drain.
    pub async fn checkpoint(&self) -> Result<(), StorageError> {
        let inner = self.inner();
        inner.check()?;
        let ord = read(&inner.mem).last_ord;
        let mut done = inner.checkpointed.subscribe();
        let mut failed = inner.failed.subscribe();
        inner.wanted_ord.fetch_max(ord, Ordering::AcqRel);
        inner.wake_background();
        inner.work.notify_one();
        tokio::select! { biased;
            e = failed.wait_for(Option::is_some) => Err(e.ok().and_then(|e| e.clone()).unwrap_or(StorageError::Closed)),
            r = done.wait_for(|now| *now >= ord) => r.map(|_| ()).map_err(|_| StorageError::Closed),
            () = self.closed() => Err(StorageError::Closed),
        }
    }

    async fn closed(&self) {
        while self.inner().state.load(Ordering::Acquire) == RUNNING {
            let room = self.inner().room.notified();
            let _ = tokio::time::timeout(limits::IDLE_WAIT, room).await;
        }
    }

    /// Whether proposals should be refused for now: the log is full or the Raft queue is long.
    pub fn log_pressure(&self) -> Result<(), StorageError> {
        let inner = self.inner();
        inner.check()?;
        inner.log_full(inner.options.max_log_bytes)?;
        if lock(&inner.queues).raft_bytes > inner.options.raft_queue_bytes {
            return Err(StorageError::Overloaded { what: "the log's Raft queue" });
        }
        Ok(())
    }

    /// Size of the log beyond which commits are refused, bytes: [`StorageOptions::max_log_bytes`]. What trims the log by size
    /// must start well below it.
    pub fn max_log_bytes(&self) -> u64 {
        self.inner().options.max_log_bytes
    }

    /// The error that poisoned the engine, or that it is closed.
    pub fn check(&self) -> Result<(), StorageError> {
        self.inner().check()
    }

    /// Resolves with the error that poisoned the engine: the node must stop then.
    pub async fn failed(&self) -> StorageError {
        let mut failed = self.inner().failed.subscribe();
        let error = failed.wait_for(Option::is_some).await;
        error.ok().and_then(|e| e.clone()).unwrap_or(StorageError::Closed)
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        let i = self.inner();
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let (data, raft) = {
            let q = lock(&i.queues);
            (q.data_bytes as u64, q.raft_bytes as u64)
        };
        Stats {
            fsyncs: of(&i.counters.fsyncs),
            records: of(&i.counters.records),
            bytes: of(&i.counters.bytes),
            data_queue_bytes: data,
            raft_queue_bytes: raft,
            memtable_bytes: read(&i.mem).bytes as u64,
            log_bytes: i.log_bytes(),
            segments: of(&i.closed_segments) + 1,
            drains: of(&i.counters.drains),
            checkpoints: of(&i.counters.checkpoints),
            refusals: of(&i.counters.refusals),
            pinned_by: lock(&i.pinned_by).clone(),
        }
    }

    /// A Raft group's log; made when it is first asked for.
    pub fn raft(&self, group: GroupId) -> RaftLog {
        let state = write(&self.inner().groups).entry(group.0).or_default().clone();
        RaftLog::new(self.clone(), group.0, state)
    }

    /// Groups of which this node has a vote, a purge point or entries.
    pub fn raft_groups(&self) -> Vec<GroupId> {
        let inner = self.inner();
        let groups: Vec<_> = read(&inner.groups).iter().map(|(id, g)| (*id, g.clone())).collect();
        let known = groups.into_iter().filter(|(id, _)| {
            let log = self.raft(GroupId(*id));
            log.bounds().last.is_some() || log.vote().is_some()
        });
        known.map(|(id, _)| GroupId(id)).collect()
    }

    /// The snapshot files of a group.
    pub fn snapshots(&self, group: GroupId) -> Snapshots {
        let dir = self.inner().options.dir.join("snapshots").join(group.0.to_string());
        Snapshots::new(self.inner().disk.clone(), dir, self.inner().temporaries.clone())
    }

    /// Whose data this is, if that was ever said.
    pub fn identity(&self) -> Result<Option<Identity>, StorageError> {
        identity::read(&*self.inner().disk, &self.inner().options.dir)
    }

    /// Signs a directory that was opened without identity; an error if somebody else's name is on it.
    pub fn set_identity(&self, identity: Identity) -> Result<(), StorageError> {
        identity::check(&*self.inner().disk, &self.inner().options.dir, Some(identity)).map(|_| ())
    }

    /// What a lost tier held has been rebuilt: later starts no longer report the loss.
    pub async fn acknowledge_tier_lost(&self) -> Result<(), StorageError> {
        let (done, durable) = crate::raft_log::when_durable();
        self.inner().put_own(Bytes::from_static(crate::wal::small_key::TIER_LOST), None, Some(done));
        crate::raft_log::wait(durable).await.map_err(StorageError::io("acknowledge the lost tier"))
    }

    /// One round of all background work on this thread; true if there was any. For [`Drive::Manual`].
    pub fn pump(&self) -> bool {
        self.inner().pump()
    }

    /// Resolves when [`Storage::pump`] has something to do.
    pub async fn work_ready(&self) {
        self.inner().work.notified().await;
    }

    /// Pumps until the engine is closed: what a simulation spawns instead of threads.
    pub fn drive(&self) -> impl Future<Output = ()> + Send + 'static {
        // Not a handle: the driver does not keep the engine open.
        let inner = self.inner().clone();
        async move {
            let idle = limits::IDLE_WAIT.min(inner.options.drain_interval);
            loop {
                let open = inner.check().is_ok();
                let waiting = !lock(&inner.queues).is_empty();
                let latency = if open && waiting { inner.disk.latency() } else { Duration::ZERO };
                if !latency.is_zero() {
                    tokio::time::sleep(latency).await;
                }
                while inner.pump() {}
                if !open {
                    inner.refuse_rest();
                    return;
                }
                let _ = tokio::time::timeout(idle, inner.work.notified()).await;
            }
        }
    }

    /// Writes what waits, stops the threads and lets go of the tier.
    pub async fn shutdown(&self) {
        let inner = self.inner();
        inner.write_lazy();
        inner.stop(DRAINING);
        if inner.options.drive == Drive::Manual {
            while inner.writer_step() {}
            inner.refuse_rest();
        }
        let mut alive = inner.alive.subscribe();
        let _ = alive.wait_for(|n| *n == 0).await;
        if let Some(closed) = inner.close_tier()
            && tokio::time::timeout(limits::TIER_CLOSE_WAIT, closed).await.is_err()
        {
            tracing::error!("the lower tier does not close; it is left open, as by a kill");
        }
    }

    /// Stops at once, as a power cut would: what waits for the log is never written. For tests and simulation.
    pub fn halt(&self) {
        let inner = self.inner();
        inner.stop(HALTED);
        let threads = std::mem::take(&mut *lock(&inner.threads));
        for thread in threads {
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
        inner.refuse_rest();
        if let Some(mut closed) = inner.close_tier() {
            let mut waited = Duration::ZERO;
            while waited < limits::TIER_CLOSE_WAIT && closed.try_recv() == Err(TryRecvError::Empty) {
                thread::sleep(limits::TIER_CLOSE_LOOK);
                waited += limits::TIER_CLOSE_LOOK;
            }
        }
    }
}

/// Segments that hold live entries of recovered groups, for the writer's account.
pub(crate) fn live_of(groups: &BTreeMap<u32, Group>) -> Vec<(u32, u64, VecDeque<u64>)> {
    groups.iter().filter_map(|(id, g)| g.live().map(|(first, segments)| (*id, first, segments))).collect()
}
