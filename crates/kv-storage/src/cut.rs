//! Consistent views: the merge of memtable and tier, and cuts that outlive a call.

use std::{
    collections::{BTreeMap, VecDeque, vec_deque},
    iter::Peekable,
    sync::Arc,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    batch::{TableId, full_key, prefix_end, split_key},
    engine::{Inner, Storage, lock, read},
    error::StorageError,
    limits,
    memtable::MemRow,
    tier::Tier,
};

/// Rows of memtable and tier in key order, the memtable's first. The tier must not change while it is used.
#[derive(Debug)]
pub(crate) struct Merge {
    tier: Arc<dyn Tier>,
    mem: Peekable<vec_deque::IntoIter<MemRow>>,
    chunk: VecDeque<(Bytes, Bytes)>,
    /// Where the next chunk of the tier starts; `None` at its end.
    next: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
}

impl Merge {
    pub(crate) fn new(tier: Arc<dyn Tier>, rows: Vec<MemRow>, from: Vec<u8>, to: Option<Vec<u8>>) -> Merge {
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

/// Cuts that hold up the drain, with the time at which each gives way.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    next: u64,
    open: BTreeMap<u64, Instant>,
}

impl Inner {
    /// True while a cut holds up the drain; closes those whose time is over. The caller holds the gate for writing, so no
    /// cut is reading.
    pub(crate) fn cut_is_open(&self) -> bool {
        let mut cuts = lock(&self.cuts);
        let now = Instant::now();
        cuts.open.retain(|_, deadline| *deadline > now);
        !cuts.open.is_empty()
    }
}

/// A row of a cut: table, key, value.
pub type CutRow = (TableId, Bytes, Bytes);

/// The content of some ranges at one moment. While it lives nothing is drained, so keep it short; after
/// [`crate::StorageOptions::cut_max`] it answers [`StorageError::CutExpired`].
#[derive(Debug)]
pub struct Cut {
    storage: Storage,
    id: u64,
    ranges: VecDeque<Merge>,
}

impl Drop for Cut {
    fn drop(&mut self) {
        lock(&self.storage.inner().cuts).open.remove(&self.id);
        self.storage.inner().wake_checkpointer();
    }
}

impl Cut {
    /// The next rows, at most `max`; `None` at the end. Blocks on the tier: call it off the async workers.
    pub fn next_chunk(&mut self, max: usize) -> Result<Option<Vec<CutRow>>, StorageError> {
        let inner = self.storage.inner().clone();
        let _gate = read(&inner.gate);
        if !lock(&inner.cuts).open.contains_key(&self.id) {
            return Err(StorageError::CutExpired);
        }
        let mut out = Vec::new();
        while let Some(merge) = self.ranges.front_mut() {
            if out.len() >= max.max(1) {
                break;
            }
            match merge.next()? {
                Some((key, value, _)) => out.extend(split_key(&key).map(|(table, key)| (table, key, value))),
                None => drop(self.ranges.pop_front()),
            }
        }
        Ok((!out.is_empty()).then_some(out))
    }
}

impl Storage {
    /// Freezes the rows of some prefixes as they are now, all at one moment.
    pub fn cut(&self, ranges: &[(TableId, &[u8])]) -> Result<Cut, StorageError> {
        let inner = self.inner();
        inner.check()?;
        let tier = inner.tier()?;
        let _gate = read(&inner.gate);
        let mem = read(&inner.mem);
        let mut merges = VecDeque::new();
        for (table, prefix) in ranges {
            let from = full_key(*table, prefix);
            let to = prefix_end(&from);
            if mem.is_replacing(&from, to.as_deref()) {
                return Err(StorageError::Replacing);
            }
            let rows = mem.range(&from, to.as_deref(), usize::MAX);
            merges.push_back(Merge::new(tier.clone(), rows, from, to));
        }
        let mut cuts = lock(&inner.cuts);
        cuts.next += 1;
        let id = cuts.next;
        cuts.open.insert(id, Instant::now() + inner.options.cut_max);
        drop((cuts, mem));
        Ok(Cut { storage: self.clone(), id, ranges: merges })
    }
}
