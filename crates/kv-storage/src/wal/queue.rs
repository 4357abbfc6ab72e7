//! What waits for the writer, within bounds, and the small state after the calls so far.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

use super::{
    entry::{Done, RaftEntry},
    frame,
    small::SmallState,
};
use crate::{
    batch::Op, error::StorageError, lifecycle::Lifecycle, limits, locks::lock, options::StorageOptions,
};

/// Raft entries of one group with successive indexes, which the writer writes next to each other.
pub(crate) struct Run {
    group: u32,
    /// Of the first; the others follow it.
    append_id: u64,
    /// Moved from an older segment.
    copied: bool,
    entries: Vec<RaftEntry>,
    bytes: usize,
}

impl Run {
    pub(crate) fn new(group: u32, append_id: u64, copied: bool, entries: Vec<RaftEntry>) -> Run {
        let follows = entries.windows(2).all(|p| matches!(p, [a, b] if a.id.index + 1 == b.id.index));
        assert!(follows && !entries.is_empty(), "a run has entries, with successive indexes");
        let bytes = entries.iter().map(|e| frame::RECORD_HEAD + frame::ENTRY_HEAD + e.payload.len()).sum();
        Run { group, append_id, copied, entries, bytes }
    }

    pub(crate) fn group(&self) -> u32 {
        self.group
    }

    pub(crate) fn is_copied(&self) -> bool {
        self.copied
    }

    pub(crate) fn entries(&self) -> &[RaftEntry] {
        &self.entries
    }

    /// Each entry with its append id and the offset of its head, given the first's.
    pub(crate) fn placed(&self, first: u32) -> impl Iterator<Item = (&RaftEntry, u64, u32)> {
        let mut next = first;
        self.entries.iter().zip(self.append_id..).map(move |(entry, append_id)| {
            let offset = next;
            next += (frame::RECORD_HEAD + frame::ENTRY_HEAD + entry.payload.len()) as u32;
            (entry, append_id, offset)
        })
    }
}

/// Something for the writer, in the order in which it must become durable.
pub(crate) enum Item {
    Run(Run, Option<Done>),
    Truncate {
        group: u32,
        after: Option<u64>,
    },
    Small {
        key: Bytes,
        value: Option<Bytes>,
        done: Option<Done>,
    },
    /// Nothing to write: `done` when everything before it is durable.
    Barrier {
        done: Option<Done>,
    },
}

impl Item {
    /// The callback to call.
    pub(crate) fn done(&mut self) -> Option<Done> {
        match self {
            Item::Run(_, done) | Item::Small { done, .. } | Item::Barrier { done } => done.take(),
            Item::Truncate { .. } => None,
        }
    }

    pub(crate) fn records(&self) -> usize {
        match self {
            Item::Run(run, _) => run.entries.len(),
            Item::Truncate { .. } | Item::Small { .. } => 1,
            Item::Barrier { .. } => 0,
        }
    }

    fn bytes(&self) -> usize {
        frame::RECORD_HEAD
            + match self {
                Item::Run(run, _) => return run.bytes,
                Item::Truncate { .. } => 13,
                Item::Small { key, value, .. } => 4 + key.len() + value.as_ref().map_or(0, Bytes::len),
                Item::Barrier { .. } => 0,
            }
    }
}

/// A data batch on its way to the log.
pub(crate) struct DataItem {
    pub(crate) seq: u64,
    pub(crate) encoded: Bytes,
    /// It changes small state, which the writer repeats in segment heads.
    pub(crate) has_small: bool,
    bulk: bool,
}

impl DataItem {
    fn bytes(&self) -> usize {
        frame::RECORD_HEAD + self.encoded.len()
    }
}

/// What the writer took for one write.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) raft: Vec<Item>,
    pub(crate) data: Vec<DataItem>,
    pub(crate) lazy: BTreeMap<Bytes, Bytes>,
    raft_bytes: usize,
    data_bytes: usize,
    bulk_bytes: usize,
}

impl Taken {
    pub(crate) fn is_empty(&self) -> bool {
        self.raft.is_empty() && self.data.is_empty() && self.lazy.is_empty()
    }

    /// Bytes that its records take in a frame, at most.
    pub(crate) fn payload_bytes(&self) -> usize {
        self.raft_bytes + self.data_bytes + lazy_bytes(&self.lazy)
    }

    pub(crate) fn records(&self) -> usize {
        self.raft.iter().map(Item::records).sum::<usize>() + self.data.len()
    }

    /// Nothing to write, only callbacks to call.
    pub(crate) fn only_barriers(&self) -> bool {
        self.data.is_empty() && self.raft.iter().all(|i| matches!(i, Item::Barrier { .. }))
    }

    pub(crate) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.raft.iter().filter_map(|item| match item {
            Item::Run(run, _) => Some(run),
            _ => None,
        })
    }
}

fn lazy_bytes(lazy: &BTreeMap<Bytes, Bytes>) -> usize {
    lazy.iter().map(|(k, v)| frame::RECORD_HEAD + 4 + k.len() + v.len()).sum()
}

/// Takes `n` from an account that must hold it.
fn settle(account: &mut usize, n: usize, name: &str) {
    assert!(*account >= n, "the account of {name} has {account} bytes, and {n} are to leave it");
    *account -= n;
}

#[derive(Default)]
struct Waiting {
    raft: VecDeque<Item>,
    data: VecDeque<DataItem>,
    /// Small state that rides with the next write but causes none.
    lazy: BTreeMap<Bytes, Bytes>,
    raft_bytes: usize,
    data_bytes: usize,
    bulk_bytes: usize,
    small: SmallState,
    last_seq: u64,
    closed: bool,
    /// The writer found nothing and waits to be woken. One that works looks again by itself.
    asleep: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.raft.is_empty() && self.data.is_empty()
    }

    fn push(&mut self, item: Item) {
        self.raft_bytes += item.bytes();
        self.raft.push_back(item);
    }

    /// Raft first, then data up to its own cap, so that bulk cannot delay a vote by more than that.
    fn take(&mut self, raft_max: usize, data_max: usize, frame_max: usize) -> Taken {
        let mut taken = Taken::default();
        if self.is_empty() {
            return taken;
        }
        taken.lazy = std::mem::take(&mut self.lazy);
        let mut room = frame_max.saturating_sub(lazy_bytes(&taken.lazy));
        while let Some(item) = self.raft.front() {
            let n = item.bytes();
            if n > room || (taken.raft_bytes + n > raft_max && !taken.raft.is_empty()) {
                break;
            }
            room -= n;
            taken.raft_bytes += n;
            taken.raft.extend(self.raft.pop_front());
        }
        while let Some(item) = self.data.front() {
            let n = item.bytes();
            if n > room || (taken.data_bytes + n > data_max && !taken.data.is_empty()) {
                break;
            }
            room -= n;
            taken.data_bytes += n;
            if item.bulk {
                taken.bulk_bytes += n;
            }
            taken.data.extend(self.data.pop_front());
        }
        taken
    }
}

/// The queue before the writer. Its order is the order of the log.
pub(crate) struct Queue {
    life: Arc<Lifecycle>,
    data_max: usize,
    bulk_max: usize,
    /// Half of the small state is for callers: votes and purge points always find room.
    small_max: usize,
    waiting: Mutex<Waiting>,
    filled: Condvar,
    /// Raft records handed to the log, and how many of them are in it: derived rows stay out of the tier
    /// until the log holds what they derive from.
    raft_pushed: AtomicU64,
    raft_written: AtomicU64,
}

impl Queue {
    pub(crate) fn new(o: &StorageOptions, life: Arc<Lifecycle>, small: SmallState, last_seq: u64) -> Queue {
        Queue {
            life,
            data_max: o.data_queue_bytes,
            bulk_max: o.bulk_queue_bytes,
            small_max: o.small_state_bytes() / 2,
            waiting: Mutex::new(Waiting { small, last_seq, ..Waiting::default() }),
            filled: Condvar::new(),
            raft_pushed: AtomicU64::new(0),
            raft_written: AtomicU64::new(0),
        }
    }

    /// Something was added: the writer is told if it sleeps.
    fn added(&self, mut q: MutexGuard<'_, Waiting>) {
        let asleep = std::mem::take(&mut q.asleep);
        drop(q);
        match self.life.has_threads() {
            true if asleep => self.filled.notify_one(),
            true => {}
            false => self.life.wake_driver(),
        }
    }

    /// Adds a data batch, decoded as `ops`, and names its place in the log. After an error nothing was
    /// changed.
    pub(crate) fn push_data(&self, encoded: Bytes, ops: &[Op], bulk: bool) -> Result<u64, StorageError> {
        let has_small = ops.iter().any(|op| matches!(op, Op::Small(..)));
        let mut q = lock(&self.waiting);
        let growth = if has_small { q.small.growth(ops) } else { 0 };
        if growth > 0 && q.small.bytes() + growth > self.small_max {
            let (bytes, max) = (q.small.bytes() + growth, self.small_max);
            return Err(StorageError::TooLarge { what: "the small state", bytes, max });
        }
        if q.closed {
            return Err(StorageError::Closed);
        }
        let seq = q.last_seq + 1;
        let item = DataItem { seq, encoded, has_small, bulk };
        let bytes = item.bytes();
        if q.data_bytes > 0 && q.data_bytes + bytes > self.data_max {
            return Err(StorageError::Overloaded { what: "the log's queue" });
        }
        if bulk && q.bulk_bytes > 0 && q.bulk_bytes + bytes > self.bulk_max {
            return Err(StorageError::Overloaded { what: "the log's bulk queue" });
        }
        q.data_bytes += bytes;
        if bulk {
            q.bulk_bytes += bytes;
        }
        q.data.push_back(item);
        q.last_seq = seq;
        if has_small {
            q.small.apply(ops);
        }
        self.added(q);
        Ok(seq)
    }

    /// Adds Raft records. They always find room; a caller that appends asks before
    /// ([`crate::RaftLog::room_for`]).
    pub(crate) fn push(&self, items: Vec<Item>) {
        self.push_with(items, |_| ());
    }

    /// Changes storage's own small state. Visible at once, durable when `done` is called.
    pub(crate) fn put_small(&self, key: Bytes, value: Option<Bytes>, done: Option<Done>) {
        let (name, set) = (key.clone(), value.clone());
        self.push_with(vec![Item::Small { key, value, done }], |small| small.set(&name, set.as_deref()));
    }

    fn push_with(&self, items: Vec<Item>, change: impl FnOnce(&mut SmallState)) {
        let mut q = lock(&self.waiting);
        if q.closed {
            drop(q);
            refuse(items, &self.life.failure().unwrap_or(StorageError::Closed));
            return;
        }
        change(&mut q.small);
        self.raft_pushed.fetch_add(items.len() as u64, Ordering::AcqRel);
        items.into_iter().for_each(|item| q.push(item));
        self.added(q);
    }

    /// Changes small state with the next write, without causing one.
    pub(crate) fn put_lazy(&self, key: Bytes, value: Bytes) {
        let mut q = lock(&self.waiting);
        q.small.set(&key, Some(&value));
        q.lazy.insert(key, value);
    }

    /// Lazy changes of a write that did not take place wait again, unless newer ones came.
    pub(crate) fn give_back(&self, lazy: &BTreeMap<Bytes, Bytes>) {
        let mut q = lock(&self.waiting);
        for (key, value) in lazy {
            q.lazy.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }

    /// Lazy changes cause a write now: the engine closes.
    pub(crate) fn write_lazy(&self) {
        let mut q = lock(&self.waiting);
        let lazy = std::mem::take(&mut q.lazy);
        self.raft_pushed.fetch_add(lazy.len() as u64, Ordering::AcqRel);
        for (key, value) in lazy {
            q.push(Item::Small { key, value: Some(value), done: None });
        }
    }

    pub(crate) fn small_get(&self, key: &[u8]) -> Option<Bytes> {
        lock(&self.waiting).small.get(key).cloned()
    }

    pub(crate) fn small_scan(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        lock(&self.waiting).small.scan(prefix)
    }

    /// What the next write holds. Its bytes count as waiting until [`Queue::settle`].
    pub(crate) fn take(&self, o: &StorageOptions) -> Taken {
        lock(&self.waiting).take(o.raft_bytes_per_write, o.data_bytes_per_write, o.frame_bytes())
    }

    /// The bytes of `taken` no longer wait.
    pub(crate) fn settle(&self, taken: &Taken) {
        let mut q = lock(&self.waiting);
        settle(&mut q.raft_bytes, taken.raft_bytes, "Raft records");
        settle(&mut q.data_bytes, taken.data_bytes, "data batches");
        settle(&mut q.bulk_bytes, taken.bulk_bytes, "bulk batches");
        if q.is_empty() {
            let left = (q.raft_bytes, q.data_bytes, q.bulk_bytes);
            assert!(left == (0, 0, 0) || q.closed, "an empty queue counts bytes: {left:?}");
        }
    }

    /// Waits until there is something, the engine ends, or the idle time is over.
    pub(crate) fn wait_for_work(&self) {
        let mut q = lock(&self.waiting);
        while q.is_empty() && self.life.check().is_ok() {
            q.asleep = true;
            q = self.filled.wait_timeout(q, limits::IDLE_WAIT).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Wakes the writer, which then sees that the engine ends.
    pub(crate) fn wake(&self) {
        self.filled.notify_all();
        self.life.wake_driver();
    }

    /// Takes nothing new.
    pub(crate) fn close(&self) {
        lock(&self.waiting).closed = true;
        self.wake();
    }

    /// What still waits is refused.
    pub(crate) fn refuse_rest(&self, e: &StorageError) {
        let raft = {
            let mut q = lock(&self.waiting);
            q.closed = true;
            q.data.clear();
            std::mem::take(&mut q.raft)
        };
        refuse(raft, e);
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.waiting).is_empty()
    }

    /// Bytes of data and of Raft records that wait or are being written.
    pub(crate) fn waiting_bytes(&self) -> (usize, usize) {
        let q = lock(&self.waiting);
        (q.data_bytes, q.raft_bytes)
    }

    pub(crate) fn raft_pushed(&self) -> u64 {
        self.raft_pushed.load(Ordering::Acquire)
    }

    pub(crate) fn raft_written(&self) -> u64 {
        self.raft_written.load(Ordering::Acquire)
    }

    /// So many Raft records are in the log.
    pub(crate) fn count_written(&self, items: usize) {
        let written = self.raft_written.fetch_add(items as u64, Ordering::AcqRel) + items as u64;
        assert!(written <= self.raft_pushed(), "{written} Raft records were written, fewer were handed over");
    }
}

fn refuse(items: impl IntoIterator<Item = Item>, e: &StorageError) {
    for mut item in items {
        if let Some(done) = item.done() {
            done(Err(e.clone().into()));
        }
    }
}
