//! The tail of a copy: what was written since it began and was not taken yet. A value under locks of its own;
//! it knows neither the memtable that feeds it nor the tier.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use bytes::Bytes;

use crate::{error::StorageError, limits, locks::lock};

/// Full keys with their new values.
pub(crate) type Writes = Vec<(Bytes, Option<Bytes>)>;

/// A range of full keys: from (inclusive) to (exclusive).
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) from: Bytes,
    pub(crate) to: Option<Bytes>,
}

impl Span {
    fn contains(&self, key: &[u8]) -> bool {
        key >= self.from.as_ref() && self.to.as_ref().is_none_or(|to| key < to.as_ref())
    }
}

/// What was written since a copy began and was not taken yet.
#[derive(Debug)]
pub(crate) struct Tee {
    spans: Vec<Span>,
    max: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    batches: VecDeque<(Writes, usize)>,
    bytes: usize,
    overrun: bool,
}

impl Tee {
    /// Nothing was written yet. At most `max` bytes wait.
    pub(crate) fn new(spans: Vec<Span>, max: usize) -> Tee {
        Tee { spans, max, waiting: Mutex::default() }
    }

    /// Whether the copy was abandoned.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        match lock(&self.waiting).overrun {
            true => Err(StorageError::CopyOverrun { max: self.max }),
            false => Ok(()),
        }
    }

    /// Whether more waits than half of what may.
    pub(crate) fn is_pressed(&self) -> bool {
        lock(&self.waiting).bytes > self.max / 2
    }

    /// Keeps what a batch writes inside the copy's ranges. Never waits and never fails: a copy that is too
    /// slow is given up.
    pub(crate) fn push(&self, writes: &[(Bytes, Option<Bytes>)]) {
        let inside = writes.iter().filter(|(key, _)| self.spans.iter().any(|span| span.contains(key)));
        let inside: Writes = inside.cloned().collect();
        if inside.is_empty() {
            return;
        }
        let size = |(key, value): &(Bytes, Option<Bytes>)| {
            limits::COPY_ROW_BYTES + key.len() + value.as_ref().map_or(0, Bytes::len)
        };
        let bytes = inside.iter().map(size).sum();
        let mut waiting = lock(&self.waiting);
        if waiting.overrun {
            return;
        }
        if waiting.bytes + bytes > self.max {
            *waiting = Waiting { overrun: true, ..Waiting::default() };
            return;
        }
        waiting.bytes += bytes;
        waiting.batches.push_back((inside, bytes));
    }

    /// The oldest batches, at most `max_bytes` of them or one.
    pub(crate) fn take(&self, max_bytes: usize) -> Result<Writes, StorageError> {
        self.check()?;
        let mut waiting = lock(&self.waiting);
        let (mut out, mut taken) = (Vec::new(), 0);
        while let Some((_, bytes)) = waiting.batches.front() {
            if taken > 0 && taken + bytes > max_bytes {
                break;
            }
            let Some((writes, bytes)) = waiting.batches.pop_front() else { break };
            taken += bytes;
            out.extend(writes);
        }
        waiting.bytes -= taken;
        Ok(out)
    }

    /// A copy that is closed without its last batch: the seeded bug.
    pub(crate) fn lose_last(&self) {
        let mut waiting = lock(&self.waiting);
        if let Some((_, bytes)) = waiting.batches.pop_back() {
            waiting.bytes -= bytes;
        }
    }
}

/// The tees of a memtable.
#[derive(Debug, Default)]
pub(crate) struct Tees(Vec<Arc<Tee>>);

impl Tees {
    /// From now on this copy gets every batch.
    pub(crate) fn attach(&mut self, tee: Arc<Tee>) -> Result<(), StorageError> {
        if self.0.len() >= limits::MAX_COPIES {
            return Err(StorageError::Overloaded { what: "the number of copies" });
        }
        self.0.push(tee);
        Ok(())
    }

    pub(crate) fn push(&self, writes: &[(Bytes, Option<Bytes>)]) {
        for tee in &self.0 {
            tee.push(writes);
        }
    }

    pub(crate) fn remove(&mut self, tee: &Arc<Tee>) {
        self.0.retain(|other| !Arc::ptr_eq(other, tee));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(keys: &[&str]) -> Writes {
        keys.iter()
            .map(|key| (Bytes::copy_from_slice(key.as_bytes()), Some(Bytes::from_static(b"v"))))
            .collect()
    }

    fn tee(max: usize) -> Tee {
        Tee::new(vec![Span { from: Bytes::from_static(b"b"), to: Some(Bytes::from_static(b"d")) }], max)
    }

    #[test]
    fn it_keeps_what_is_inside_in_order_and_whole_batches() {
        let tee = tee(1 << 20);
        tee.push(&writes(&["a", "c", "d"]));
        tee.push(&writes(&["a"]));
        tee.push(&writes(&["b", "bb"]));
        assert_eq!(tee.take(1).unwrap(), writes(&["c"]), "one batch at least");
        tee.push(&writes(&["c"]));
        assert_eq!(tee.take(usize::MAX).unwrap(), writes(&["b", "bb", "c"]));
        assert_eq!(tee.take(usize::MAX).unwrap(), []);
    }

    #[test]
    fn at_its_bound_it_is_given_up_and_costs_nothing_more() {
        let row = limits::COPY_ROW_BYTES + 2;
        let tee = tee(3 * row);
        tee.push(&writes(&["b", "c"]));
        tee.push(&writes(&["c"]));
        assert_eq!(lock(&tee.waiting).bytes, 3 * row, "the bound itself is allowed");
        tee.check().unwrap();
        tee.push(&writes(&["b"]));
        assert_eq!(tee.check(), Err(StorageError::CopyOverrun { max: 3 * row }));
        tee.push(&writes(&["b"]));
        assert!(tee.take(1).is_err() && lock(&tee.waiting).batches.is_empty());
        assert_eq!(lock(&tee.waiting).bytes, 0);
    }
}
