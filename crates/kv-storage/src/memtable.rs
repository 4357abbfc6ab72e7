//! What is not yet in the tier: one ordered map, and the batches it came from in order; and before the tier,
//! the rows of it that are kept in memory.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

use crate::{
    batch::{Op, Position, Row, TableId, after},
    cache::RowCache,
    error::StorageError,
    journal::JournalOp,
    key_filter::KeyFilter,
    locks,
    pending::Streams,
    tee::Tees,
};

/// The newest value of a key that is not in the tier.
#[derive(Debug, Clone)]
struct Slot {
    value: Option<Bytes>,
    /// Place of its batch in the memtable's order.
    ord: u64,
    /// Its data batch in the log; 0 for derived rows.
    seq: u64,
}

/// A row of the memtable with what a reader needs: `None` is a tombstone.
pub(crate) type MemRow = (Bytes, Option<Bytes>, u64);

#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) ord: u64,
    /// `None`: derived, not in the log itself.
    pub(crate) seq: Option<u64>,
    /// Derived: how many Raft records had been handed to the log when this was applied. The tier must not get
    /// ahead of the log that would have to explain it after a crash.
    pub(crate) after_raft: u64,
    pub(crate) ops: Vec<(Bytes, Option<Bytes>)>,
    pub(crate) journal: Vec<(TableId, JournalOp)>,
    pub(crate) bytes: usize,
    pub(crate) at: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Mem {
    map: BTreeMap<Bytes, Slot>,
    pub(crate) streams: Streams,
    pub(crate) fifo: VecDeque<Pending>,
    pub(crate) bytes: usize,
    pub(crate) last_ord: u64,
    pub(crate) drained_ord: u64,
    pub(crate) drained_seq: u64,
    /// Writes that went past the memtable, so far.
    loads: u64,
    /// Copies under way: they get every batch.
    pub(crate) tees: Tees,
}

/// What the tier had got when a reader looked into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    drained_ord: u64,
    loads: u64,
}

/// What memory knows of a key: nothing, that it has no row, or its row.
pub(crate) type Known = Option<Option<Row>>;

impl Mem {
    /// An empty memtable above a tier that has the data batches up to `drained_seq`.
    pub(crate) fn new(drained_seq: u64) -> Mem {
        Mem { drained_seq, ..Mem::default() }
    }

    /// Adds a batch; its operations are visible from now on.
    pub(crate) fn insert(&mut self, ops: Vec<Op>, seq: Option<u64>, after_raft: u64, bytes: usize) -> u64 {
        self.last_ord += 1;
        let ord = self.last_ord;
        let mut table = Vec::with_capacity(ops.len());
        let mut journal = Vec::new();
        for op in ops {
            match op {
                Op::Table(key, value) => {
                    let slot = Slot { value: value.clone(), ord, seq: seq.unwrap_or(0) };
                    self.map.insert(key.clone(), slot);
                    table.push((key, value));
                }
                Op::Journal(table, op) => {
                    self.streams.insert(table, &op, ord);
                    journal.push((table, op));
                }
                // The small state is the log's.
                Op::Small(..) => {}
            }
        }
        self.tees.push(&table);
        self.bytes += bytes;
        self.fifo.push_back(Pending { ord, seq, after_raft, ops: table, journal, bytes, at: Instant::now() });
        ord
    }

    /// Whether the memtable itself has something of a key.
    pub(crate) fn has(&self, key: &[u8]) -> bool {
        self.map.contains_key(key)
    }

    fn seen(&self) -> Seen {
        Seen { drained_ord: self.drained_ord, loads: self.loads }
    }

    /// Rows of a range in order, tombstones included, until `limit` live ones.
    pub(crate) fn range(&self, from: &[u8], to: Option<&[u8]>, limit: usize) -> Vec<MemRow> {
        if to.is_some_and(|to| to <= from) {
            return Vec::new();
        }
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        let mut live = 0;
        let mut out = Vec::new();
        for (key, slot) in self.map.range::<[u8], _>((Bound::Included(from), upper)) {
            if live == limit {
                break;
            }
            live += usize::from(slot.value.is_some());
            out.push((key.clone(), slot.value.clone(), slot.seq));
        }
        out
    }

    /// Rows from `from` on, tombstones included, at most `max_rows` and about `max_bytes`; and where it
    /// stopped, if there may be more.
    pub(crate) fn piece(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        max_rows: usize,
        max_bytes: usize,
    ) -> (Vec<(Bytes, Option<Bytes>)>, Option<Bytes>) {
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut out, mut bytes) = (Vec::new(), 0);
        if to.is_some_and(|to| to <= from) {
            return (out, None);
        }
        for (key, slot) in self.map.range::<[u8], _>((Bound::Included(from), upper)) {
            bytes += key.len() + slot.value.as_ref().map_or(0, Bytes::len);
            out.push((key.clone(), slot.value.clone()));
            if out.len() >= max_rows || bytes >= max_bytes {
                let end = after(key);
                return (out, Some(end));
            }
        }
        (out, None)
    }

    /// Whole batches from the front that may go to the tier, merged: rows in key order, last batch, last
    /// logged batch.
    pub(crate) fn take_drainable(
        &self,
        durable: u64,
        raft_written: u64,
        max_bytes: usize,
    ) -> Option<Drainable> {
        let mut rows: BTreeMap<Bytes, Option<Bytes>> = BTreeMap::new();
        let mut journal: BTreeMap<TableId, Vec<JournalOp>> = BTreeMap::new();
        let (mut ord, mut seq, mut bytes, mut batches) = (0, self.drained_seq, 0, 0);
        for pending in &self.fifo {
            let ready = pending.seq.map_or(pending.after_raft <= raft_written, |seq| seq <= durable);
            if !ready || (batches > 0 && bytes + pending.bytes > max_bytes) {
                break;
            }
            bytes += pending.bytes;
            batches += 1;
            ord = pending.ord;
            seq = pending.seq.unwrap_or(seq);
            rows.extend(pending.ops.iter().cloned());
            for (table, op) in &pending.journal {
                journal.entry(*table).or_default().push(op.clone());
            }
        }
        (batches > 0).then(|| Drainable { rows: rows.into_iter().collect(), journal, ord, seq })
    }

    /// The batches up to `ord` are in the tier.
    pub(crate) fn drained(&mut self, done: &Drainable) {
        for (key, _) in &done.rows {
            if self.map.get(key).is_some_and(|slot| slot.ord <= done.ord) {
                self.map.remove(key);
            }
        }
        for (table, ops) in &done.journal {
            ops.iter().for_each(|op| self.streams.drained(*table, op, done.ord));
        }
        while self.fifo.front().is_some_and(|p| p.ord <= done.ord) {
            self.bytes -= self.fifo.pop_front().map_or(0, |p| p.bytes);
        }
        (self.drained_ord, self.drained_seq) = (done.ord, done.seq);
    }
}

/// Batches on their way to the tier.
#[derive(Debug)]
pub(crate) struct Drainable {
    pub(crate) rows: Vec<(Bytes, Option<Bytes>)>,
    /// What belongs into journals, in the order of the batches.
    pub(crate) journal: BTreeMap<TableId, Vec<JournalOp>>,
    pub(crate) ord: u64,
    pub(crate) seq: u64,
}

/// The memtable of an engine.
#[derive(Debug)]
pub(crate) struct Memtable {
    mem: RwLock<Mem>,
    cache: RowCache,
    filter: Arc<KeyFilter>,
    /// Told when batches left it.
    drained: Notify,
}

impl Memtable {
    pub(crate) fn new(mem: Mem, cache: RowCache, filter: Arc<KeyFilter>) -> Memtable {
        Memtable { mem: RwLock::new(mem), cache, filter, drained: Notify::new() }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Mem> {
        locks::read(&self.mem)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Mem> {
        locks::write(&self.mem)
    }

    /// What is in memory of some keys, at one moment; and that moment, for [`Memtable::found`].
    pub(crate) fn rows(&self, keys: &[Vec<u8>]) -> (Vec<Known>, Seen) {
        let mem = self.read();
        (keys.iter().map(|key| self.known(&mem, key)).collect(), mem.seen())
    }

    /// What is in memory of a key.
    pub(crate) fn row(&self, key: &[u8]) -> Known {
        self.known(&self.read(), key)
    }

    fn known(&self, mem: &Mem, key: &[u8]) -> Known {
        match mem.map.get(key) {
            Some(slot) => {
                let position = Position(slot.seq);
                Some(slot.value.clone().map(|value| Row { value, position }))
            }
            None => {
                let position = Position::DURABLE;
                let kept = self.cache.get(key).map(|value| value.map(|value| Row { value, position }));
                kept.or_else(|| self.filter.denies(key).then_some(None))
            }
        }
    }

    /// The tier has this row of a key that was not in memory when `seen` was: kept, if that still holds.
    pub(crate) fn found(&self, key: &[u8], value: Option<&Bytes>, seen: Seen) {
        let Some(row) = self.cache.own(key, value) else { return };
        let mem = self.read();
        if mem.seen() == seen && !mem.has(key) {
            self.cache.keep(row);
        }
    }

    /// The tier has got rows that did not come through the memtable.
    pub(crate) fn loaded<'a>(&self, keys: impl Iterator<Item = &'a Bytes>) {
        self.write().loads += 1;
        keys.for_each(|key| self.cache.forget(key));
    }

    /// Bytes of the rows of the tier that are kept in memory.
    pub(crate) fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Adds a batch of `bytes` bytes that `log` puts into the log under the number that it returns. Within
    /// `max` bytes, or alone; `follows` judges it by what is there already. After an error nothing was
    /// changed. Batches are in the memtable in the order of their numbers.
    pub(crate) fn commit(
        &self,
        ops: Vec<Op>,
        bytes: usize,
        max: usize,
        follows: impl FnOnce(&Mem, &[Op]) -> Result<(), StorageError>,
        log: impl FnOnce(&[Op]) -> Result<u64, StorageError>,
    ) -> Result<u64, StorageError> {
        let mut mem = self.write();
        follows(&mem, &ops)?;
        if mem.bytes > 0 && mem.bytes + bytes > max {
            return Err(StorageError::Overloaded { what: "the memtable" });
        }
        let seq = log(&ops)?;
        mem.insert(ops, Some(seq), 0, bytes);
        Ok(seq)
    }

    /// Adds a derived batch if it fits within `max` bytes, or is alone; gives it back otherwise.
    /// `raft_pushed` tells how many Raft records were handed to the log before.
    pub(crate) fn apply(
        &self,
        ops: Vec<Op>,
        bytes: usize,
        max: usize,
        raft_pushed: impl FnOnce() -> u64,
    ) -> Result<(), Vec<Op>> {
        let mut mem = self.write();
        if mem.bytes > 0 && mem.bytes + bytes > max {
            return Err(ops);
        }
        mem.insert(ops, None, raft_pushed(), bytes);
        Ok(())
    }

    /// The batches up to this one are in the tier.
    pub(crate) fn drained(&self, done: &Drainable) {
        // They are not looked at before they have left the memtable.
        done.rows.iter().for_each(|(key, value)| self.cache.change(key, value.as_ref()));
        self.write().drained(done);
        self.drained.notify_waiters();
    }

    /// Resolves when batches left the memtable after this call.
    pub(crate) fn room(&self) -> Notified<'_> {
        self.drained.notified()
    }

    /// Waiters for room check again.
    pub(crate) fn wake(&self) {
        self.drained.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        batch::full_key,
        options::{Drive, StorageOptions},
    };

    const T: TableId = TableId::new(20);

    fn memtable() -> Memtable {
        let filter = Arc::new(KeyFilter::new(&StorageOptions::small("/memtable")));
        Memtable::new(Mem::new(0), RowCache::new(1 << 20, Drive::Manual).unwrap(), filter)
    }

    fn put(memtable: &Memtable, key: &[u8], value: &'static [u8], seq: u64) {
        let ops = vec![Op::Table(Bytes::from(full_key(T, key)), Some(Bytes::from_static(value)))];
        memtable.commit(ops, 10, 1 << 20, |_, _| Ok(()), |_| Ok(seq)).unwrap();
    }

    fn drain(memtable: &Memtable, durable: u64) {
        let batch = memtable.read().take_drainable(durable, 0, 1 << 20).unwrap();
        memtable.drained(&batch);
    }

    fn known(memtable: &Memtable, key: &[u8]) -> Option<Option<Bytes>> {
        let (rows, _) = memtable.rows(&[full_key(T, key)]);
        rows.into_iter().next().unwrap().map(|row| row.map(|row| row.value))
    }

    const NEW: Option<Option<Bytes>> = Some(Some(Bytes::from_static(b"new")));

    /// A reader looked into memory, and reads the tier; what it finds comes late.
    #[test]
    fn what_was_read_before_a_write_is_not_kept_after_it() {
        let old = Bytes::from_static(b"old");
        let key = full_key(T, b"k");
        let write_after = |steps: &[&dyn Fn(&Memtable)]| {
            let memtable = memtable();
            let (rows, seen) = memtable.rows(std::slice::from_ref(&key));
            assert_eq!(rows, [None]);
            steps.iter().for_each(|step| step(&memtable));
            memtable.found(&key, Some(&old), seen);
            known(&memtable, b"k")
        };
        assert_eq!(write_after(&[]), Some(Some(old.clone())), "nothing was written");
        assert_eq!(write_after(&[&|m| put(m, b"k", b"new", 1)]), NEW);
        assert_eq!(write_after(&[&|m| put(m, b"k", b"new", 1), &|m| drain(m, 1)]), None);
        let loaded = |m: &Memtable| m.loaded(std::iter::once(&Bytes::from(key.clone())));
        assert_eq!(write_after(&[&loaded]), None);
    }

    #[test]
    fn what_is_kept_follows_the_drain_and_leaves_when_something_is_loaded() {
        let memtable = memtable();
        let key = full_key(T, b"k");
        let (_, seen) = memtable.rows(std::slice::from_ref(&key));
        memtable.found(&key, None, seen);
        assert_eq!(known(&memtable, b"k"), Some(None), "the tier has no row");
        put(&memtable, b"k", b"old", 1);
        drain(&memtable, 1);
        assert_eq!(known(&memtable, b"k"), None, "it was not read yet");
        let (_, seen) = memtable.rows(std::slice::from_ref(&key));
        memtable.found(&key, Some(&Bytes::from_static(b"old")), seen);
        put(&memtable, b"k", b"new", 2);
        put(&memtable, b"other", b"new", 3);
        assert_eq!(known(&memtable, b"k"), NEW);
        drain(&memtable, 3);
        assert_eq!(known(&memtable, b"k"), NEW);
        assert_eq!(known(&memtable, b"other"), None, "it was never read");
        let (rows, _) = memtable.rows(std::slice::from_ref(&key));
        assert_eq!(rows[0].as_ref().unwrap().as_ref().unwrap().position, Position::DURABLE);
        memtable.loaded(std::iter::once(&Bytes::from(key)));
        assert_eq!(known(&memtable, b"k"), None);
    }
}
