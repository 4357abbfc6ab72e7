//! Entries and floors of journals that are not in their files yet, by stream. A value in the memtable.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    batch::TableId,
    journal::{JournalEntry, JournalOp},
};

/// A stream of the journal of a table.
pub(crate) type StreamId = (TableId, Bytes);

/// One stream.
#[derive(Debug, Default)]
struct Stream {
    /// Entries below were given up by a batch that is in the memtable, or was.
    floor: u64,
    /// Entries with the place of their batch in the memtable's order.
    entries: BTreeMap<u64, (Bytes, u64)>,
    /// Place of the last batch that is about this stream.
    ord: u64,
}

/// What of a stream is in the memtable, from an id on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Above {
    pub(crate) floor: u64,
    pub(crate) entries: Vec<JournalEntry>,
}

/// All streams that are not wholly in their files.
#[derive(Debug, Default)]
pub(crate) struct Streams(BTreeMap<StreamId, Stream>);

impl Streams {
    pub(crate) fn insert(&mut self, table: TableId, op: &JournalOp, ord: u64) {
        match op {
            JournalOp::Append { stream, id, content } => {
                let own = self.0.entry((table, stream.clone())).or_default();
                own.ord = ord;
                own.entries.insert(*id, (content.clone(), ord));
            }
            JournalOp::Trim { stream, below } => {
                let own = self.0.entry((table, stream.clone())).or_default();
                own.ord = ord;
                own.floor = own.floor.max(*below);
            }
        }
    }

    /// The batch of this operation, and all before `ord`, are in the files.
    pub(crate) fn drained(&mut self, table: TableId, op: &JournalOp, ord: u64) {
        let place = (table, op.stream().clone());
        let Some(own) = self.0.get_mut(&place) else { return };
        if let JournalOp::Append { id, .. } = op
            && own.entries.get(id).is_some_and(|(_, of)| *of <= ord)
        {
            own.entries.remove(id);
        }
        if own.ord <= ord && own.entries.is_empty() {
            self.0.remove(&place);
        }
    }

    /// Entries of a stream from an id on, at most so many and so many bytes of content, but at least one.
    pub(crate) fn from(&self, stream: &StreamId, from: u64, max_entries: usize, max_bytes: usize) -> Above {
        let Some(own) = self.0.get(stream) else { return Above::default() };
        let mut above = Above { floor: own.floor, entries: Vec::new() };
        let mut bytes = 0;
        for (id, (content, _)) in own.entries.range(from..) {
            bytes += content.len();
            if !above.entries.is_empty() && (above.entries.len() >= max_entries || bytes > max_bytes) {
                break;
            }
            above.entries.push((*id, content.clone()));
        }
        above
    }

    /// The floor and the last entry of a stream, as far as they are here.
    pub(crate) fn bounds(&self, stream: &StreamId) -> (u64, Option<u64>) {
        let own = self.0.get(stream);
        let last = own.and_then(|own| own.entries.last_key_value()).map(|(id, _)| *id);
        (own.map_or(0, |own| own.floor), last)
    }

    /// Names of the streams of a table.
    pub(crate) fn names(&self, table: TableId) -> Vec<Bytes> {
        let from = (table, Bytes::new());
        let of = self.0.range(from..).take_while(|((of, _), _)| *of == table);
        of.map(|((_, name), _)| name.clone()).collect()
    }
}
