//! Copies of some ranges at one point, taken while writes and the drain go on: a base that is read in pieces,
//! and a tail of what was written meanwhile.
//!
//! From [`Storage::copy`] on, every batch that enters the memtable is also given to the copy (the tee). The
//! base is read a piece at a time, the memtable first, then the tier. [`Copy::close`] ends the tee. The
//! pieces, written one after the other in the order in which they were handed out, give the rows as they were
//! at the close, if the last record of a key counts and a tombstone means that there is no row. Why this
//! holds, for each key k:
//!
//! 1. A write enters the memtable and the tee in one critical section of the memtable's lock, so the tee has
//!    all writes between the copy's beginning and its close, in their order.
//! 2. A base piece first reads its part of the memtable (at time t), then of the tier. The drain puts rows
//!    into the tier before it takes them out of the memtable, so a row is found in one of the two at any
//!    time: what the piece says of k is k's value at t, or, where the memtable has nothing, at some later
//!    time. It is never older than t.
//! 3. Tail records that were handed out before the piece were in the memtable before t: what the piece says
//!    of k is at least as new as they are. It overwrites them rightly.
//! 4. Tail records that are handed out after the piece may be older than what the piece saw. They are the
//!    whole rest of the writes to k up to the close, in order, so the last of them is k's value at the close.
//!    If there is none, k was not written between t and the close, and what the piece says is right. That a
//!    piece finds no row is said by silence: an older record of k in the file would contradict it. Such a
//!    record is from a tail piece before t (each key is in one base piece only), so it is the last write of k
//!    before t and is itself a tombstone, or the row would have been found.
//!
//! Only writes through the memtable are seen. What is written into the tier directly (an installation, the
//! removal of an old generation) must lie outside the ranges of a copy, or the copy's user must notice and
//! drop it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    batch::{TableId, after, full_key, prefix_end, split_key},
    engine::Storage,
    error::StorageError,
    limits,
    parts::Parts,
    tee::{Span, Tee, Writes},
};

/// A record of a copy: table, key, and value; `None` says that there is no such row.
pub type CopyRow = (TableId, Bytes, Option<Bytes>);

/// A part of a copy. Pieces count in the order in which they were handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Rows that were there, in the order of keys. May be empty.
    Base(Vec<CopyRow>),
    /// What was written meanwhile, in the order of writing.
    Tail(Vec<CopyRow>),
}

impl Piece {
    /// Its records.
    pub fn rows(&self) -> &[CopyRow] {
        match self {
            Piece::Base(rows) | Piece::Tail(rows) => rows,
        }
    }

    /// Its records, taken.
    pub fn into_rows(self) -> Vec<CopyRow> {
        match self {
            Piece::Base(rows) | Piece::Tail(rows) => rows,
        }
    }
}

/// A copy that is being taken. Dropped, it ends; nothing waits for it.
#[derive(Debug)]
#[must_use = "a copy that is not read costs memory for every write"]
pub struct Copy {
    storage: Storage,
    tee: Arc<Tee>,
    /// What of the base is still to be read.
    rest: VecDeque<Span>,
    closed: bool,
    /// Pieces of the tail since the last one of the base.
    tails_in_a_row: u32,
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.storage.parts().memtable.write().tees.remove(&self.tee);
    }
}

impl Copy {
    /// The next piece: of the tail if there is any, but at least every other one of the base, unless the tail
    /// [is long](Copy::tail_is_long): then one in eight ([`crate::limits::COPY_TAIL_TURNS`]). `None` before
    /// the close: the base is read, and nothing of the tail waits at this moment. `None` after the close: the
    /// copy is complete. A base piece has at most `max_rows` rows and about `max_bytes`; a tail piece has
    /// whole batches, at most `max_bytes` or one batch. Blocks on the tier: call it off the async workers.
    /// [`StorageError::CopyOverrun`] when the copy was given up.
    pub fn next_piece(&mut self, max_rows: usize, max_bytes: usize) -> Result<Option<Piece>, StorageError> {
        let most = if self.tail_is_long() { limits::COPY_TAIL_TURNS } else { 1 };
        if self.tails_in_a_row < most || self.rest.is_empty() {
            let tail = self.tee.take(max_bytes)?;
            if !tail.is_empty() {
                self.tails_in_a_row += 1;
                return Ok(Some(Piece::Tail(named(tail))));
            }
        }
        self.tails_in_a_row = 0;
        let Some(span) = self.rest.pop_front() else { return Ok(None) };
        let parts = self.storage.parts();
        parts.life.check()?;
        let (rows, next) = base_piece(parts, &span, max_rows.max(1), max_bytes.max(1))?;
        if let Some(from) = next {
            self.rest.push_front(Span { from, to: span.to });
        }
        Ok(Some(Piece::Base(named(rows))))
    }

    /// True while the tail has more than half of the bytes at which the copy is given up. What else its user
    /// would do then has to wait.
    pub fn tail_is_long(&self) -> bool {
        self.tee.is_pressed()
    }

    /// True when all of the base was handed out: what is missing is the tail alone, and the copy may be
    /// closed.
    pub fn base_is_read(&self) -> bool {
        self.rest.is_empty()
    }

    /// Ends the tee: the copy is of this moment. The caller keeps the writers of the ranges out for as long
    /// as this takes (it does not block) if it wants to know which moment that is. What waits in the tail is
    /// still to be taken.
    pub fn close(&mut self) -> Result<(), StorageError> {
        if !self.rest.is_empty() {
            return Err(StorageError::Invalid("a copy is closed before its base was read".into()));
        }
        self.storage.parts().memtable.write().tees.remove(&self.tee);
        self.closed = true;
        if kv_types::mutant!(TailBatchLost) {
            self.tee.lose_last();
        }
        self.tee.check()
    }

    /// True after [`Copy::close`].
    pub fn is_closed(&self) -> bool {
        self.closed
    }
}

fn named(writes: Writes) -> Vec<CopyRow> {
    writes
        .into_iter()
        .filter_map(|(key, value)| split_key(&key).map(|(table, key)| (table, key, value)))
        .collect()
}

/// Live rows from the beginning of a range, and where the next piece begins, if anything is left.
fn base_piece(
    parts: &Parts,
    span: &Span,
    max_rows: usize,
    max_bytes: usize,
) -> Result<(Writes, Option<Bytes>), StorageError> {
    // The memtable first: see the head of this file.
    let (above, mem_end) = parts.memtable.read().piece(&span.from, span.to.as_deref(), max_rows, max_bytes);
    let to = mem_end.as_ref().or(span.to.as_ref());
    let to = to.map(AsRef::as_ref);
    let chunk = parts.tier.handle()?.scan(&span.from, to, max_rows, max_bytes).map_err(|e| {
        let e = StorageError::from(e);
        parts.tier_failed(&e);
        e
    })?;
    let tier_end = chunk.rows.last().filter(|_| chunk.more).map(|(last, _)| after(last));
    let end = tier_end.or(mem_end);
    let mut found: BTreeMap<Bytes, Option<Bytes>> =
        chunk.rows.into_iter().map(|(key, value)| (key, Some(value))).collect();
    found.extend(above.into_iter().filter(|(key, _)| end.as_ref().is_none_or(|end| key < end)));
    Ok((found.into_iter().filter(|(_, value)| value.is_some()).collect(), end))
}

impl Storage {
    /// Begins a copy of the rows under some prefixes. Every batch that is committed or applied from now on
    /// inside them is part of it. At most [`crate::limits::MAX_COPIES`] at a time.
    pub fn copy(&self, ranges: &[(TableId, &[u8])]) -> Result<Copy, StorageError> {
        let parts = self.parts();
        parts.life.check()?;
        let spans: Vec<Span> = ranges
            .iter()
            .map(|(table, prefix)| {
                let from = full_key(*table, prefix);
                Span { to: prefix_end(&from).map(Bytes::from), from: from.into() }
            })
            .collect();
        let tee = Arc::new(Tee::new(spans.clone(), parts.options.copy_tail_bytes));
        parts.memtable.write().tees.attach(tee.clone())?;
        Ok(Copy { storage: self.clone(), tee, rest: spans.into(), closed: false, tails_in_a_row: 0 })
    }
}
