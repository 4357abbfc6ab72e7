//! The rows of memtable and tier as one ordered view.
//!
//! A reader takes the rows of the memtable first. What the tier gets meanwhile of batches that were in the
//! memtable then changes nothing for it: it has these rows, and they hide those of the tier. Only when the
//! tier was handed a later batch before it had read all is the view mixed, and it reads again. So no reader
//! waits for a write of the tier, which may take long; a reader that is overtaken again and again holds the
//! tier still.

use std::{
    collections::{VecDeque, vec_deque},
    iter::Peekable,
    sync::Arc,
};

use bytes::Bytes;

use crate::{error::StorageError, limits, lower::OpenTier, memtable::MemRow, parts::Parts};

/// Reads a range as one consistent view: `read` takes rows from it, of which the memtable's are complete up
/// to `limit` live ones. It is called again when the view was mixed.
pub(crate) fn consistently<T>(
    parts: &Parts,
    (from, to): (&[u8], Option<&[u8]>),
    limit: usize,
    read: impl Fn(&mut Merge) -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    let attempt = || -> Result<(T, u64), StorageError> {
        let (rows, last) = {
            let mem = parts.memtable.read();
            (mem.range(from, to, limit), mem.last_ord)
        };
        let mut merge = Merge::new(parts.tier.handle()?, rows, from.to_vec(), to.map(<[u8]>::to_vec));
        Ok((read(&mut merge)?, last))
    };
    for _ in 0..limits::SCAN_TRIES {
        let (found, last) = attempt()?;
        if parts.tier.handed() <= last {
            return Ok(found);
        }
    }
    let _still = parts.tier.hold_still();
    attempt().map(|(found, _)| found)
}

/// Rows of memtable and tier in key order, the memtable's first. The tier must not change while it is used.
#[derive(Debug)]
pub(crate) struct Merge {
    tier: Arc<OpenTier>,
    mem: Peekable<vec_deque::IntoIter<MemRow>>,
    chunk: VecDeque<(Bytes, Bytes)>,
    /// Where the next chunk of the tier starts; `None` at its end.
    next: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
}

impl Merge {
    pub(crate) fn new(tier: Arc<OpenTier>, rows: Vec<MemRow>, from: Vec<u8>, to: Option<Vec<u8>>) -> Merge {
        let mem = VecDeque::from(rows).into_iter().peekable();
        Merge { tier, mem, chunk: VecDeque::new(), next: Some(from), to }
    }

    fn fill(&mut self) -> Result<(), StorageError> {
        if !self.chunk.is_empty() {
            return Ok(());
        }
        let Some(from) = self.next.take() else { return Ok(()) };
        let to = self.to.as_deref();
        let chunk = self.tier.scan(&from, to, limits::TIER_CHUNK_ROWS, limits::TIER_CHUNK_BYTES)?;
        if chunk.more
            && let Some((last, _)) = chunk.rows.last()
        {
            let mut next = last.to_vec();
            next.push(0);
            self.next = Some(next);
        }
        self.chunk = chunk.rows.into();
        Ok(())
    }

    /// The next live row: full key, value, sequence number (0 from the tier).
    pub(crate) fn next(&mut self) -> Result<Option<(Bytes, Bytes, u64)>, StorageError> {
        loop {
            self.fill()?;
            let from_mem = match (self.mem.peek(), self.chunk.front()) {
                (None, None) => return Ok(None),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some((key, ..)), Some((other, _))) => {
                    if key == other {
                        self.chunk.pop_front();
                        continue;
                    }
                    key < other
                }
            };
            if !from_mem {
                return Ok(self.chunk.pop_front().map(|(key, value)| (key, value, 0)));
            }
            if let Some((key, Some(value), seq)) = self.mem.next() {
                return Ok(Some((key, value, seq)));
            }
        }
    }
}
