//! Reading the streams of journals: what is in the files goes before what is still in the memtable. And
//! writing streams beside the present ones, for an installation.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{
    batch::TableId,
    engine::Storage,
    error::StorageError,
    journal::{JournalEntry, JournalError, JournalOp},
    journals::room_for_streams,
    limits,
    parts::Parts,
    pending::{Above, StreamId},
};

/// Entries of a stream from `from` to `to` (both inclusive), in order. What is in the files goes first; a
/// page never has entries of both.
pub(crate) fn entries(
    parts: &Parts,
    place: &StreamId,
    (from, to): (u64, u64),
    max_entries: usize,
    max_bytes: usize,
) -> Result<Vec<JournalEntry>, StorageError> {
    parts.life.check()?;
    // The memtable before the files: what has left it by then is in them.
    let Above { floor, entries: mut above } =
        parts.memtable.read().streams.from(place, from, max_entries, max_bytes);
    let floor = floor.max(parts.journals.bounds(place).0);
    if from < floor {
        return Err(JournalError::Trimmed { floor }.into());
    }
    let end = above.first().map_or(Some(to), |(first, _)| first.checked_sub(1).map(|end| end.min(to)));
    if let (Some(end), Some(journal)) = (end.filter(|end| from <= *end), parts.journals.of(place.0)) {
        let mut below = journal.read(&place.1, from, max_entries, max_bytes)?;
        below.retain(|(id, _)| *id <= end);
        if !below.is_empty() {
            return Ok(below);
        }
    }
    above.retain(|(id, _)| *id <= to);
    Ok(above)
}

impl Storage {
    /// Entries of a stream from `from` to `to` (both inclusive), in order: a page of at most `max_entries`
    /// and `max_bytes` of content, but at least one entry if there is any; the next page begins behind its
    /// last. Blocks on the disk: call it off the async workers. [`JournalError::Trimmed`] below the floor,
    /// [`JournalError::Damaged`] for what is lost, once what comes before was handed out.
    pub fn read_entries(
        &self,
        table: TableId,
        stream: &[u8],
        (from, to): (u64, u64),
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Vec<JournalEntry>, StorageError> {
        let place = (table, Bytes::copy_from_slice(stream));
        entries(self.parts(), &place, (from, to), max_entries, max_bytes)
    }

    /// The first id of a stream that is kept, and the last that was ever appended.
    pub fn stream_bounds(&self, table: TableId, stream: &[u8]) -> (u64, Option<u64>) {
        let place = (table, Bytes::copy_from_slice(stream));
        let (floor, last) = self.parts().memtable.read().streams.bounds(&place);
        let (floor_in_files, last_in_files) = self.parts().journals.bounds(&place);
        (floor.max(floor_in_files), last.max(last_in_files))
    }

    /// Bytes on the disk of what is kept of a stream; what is still in the memtable is not counted.
    pub fn stream_bytes(&self, table: TableId, stream: &[u8]) -> u64 {
        self.parts().journals.of(table).map_or(0, |journal| journal.stream_bytes(stream))
    }

    /// Names of the streams of a table from `from` (inclusive) to `to` (exclusive).
    pub fn streams(&self, table: TableId, from: &[u8], to: &[u8]) -> Vec<Bytes> {
        let mut names: BTreeSet<Bytes> =
            self.parts().memtable.read().streams.names(table).into_iter().collect();
        names.extend(self.parts().journals.of(table).map(|journal| journal.streams()).unwrap_or_default());
        names.into_iter().filter(|name| from <= name.as_ref() && name.as_ref() < to).collect()
    }

    /// Writes entries straight into a journal, durably: of streams that are not read yet, and of which
    /// nothing is in the memtable. Refused while less than the reserve is free on the disk. Blocks: call it
    /// off the async workers, with a few MiB at a time.
    pub fn load_entries(&self, table: TableId, ops: &[JournalOp]) -> Result<(), StorageError> {
        let parts = self.parts();
        parts.life.check()?;
        parts.space.check_file(0)?;
        if table.get() < limits::FIRST_USER_TABLE {
            return Err(StorageError::Invalid("tables below 16 belong to storage".into()));
        }
        {
            let mem = parts.memtable.read();
            let places: BTreeSet<StreamId> = ops.iter().map(|op| (table, op.stream().clone())).collect();
            if places.iter().any(|place| mem.streams.bounds(place).1.is_some()) {
                return Err(StorageError::Invalid("entries are loaded into a stream that is in use".into()));
            }
            room_for_streams(&parts.journals, &mem, places.iter())?;
        }
        parts.journals.append(table, ops).map_err(|e| parts.journal_failed(e))
    }

    /// Puts entries back that a stream has lost to damage, durably: everything that it had behind `after`
    /// (from its beginning, if there is none) up to the last of these, as another replica has it.
    /// [`JournalError::Conflict`] where something from the first to the last is still there;
    /// [`StorageError::DiskFull`] while less than the reserve is free. Blocks: call it off the async workers,
    /// with a few MiB at a time.
    pub fn fill_entries(
        &self,
        table: TableId,
        stream: &[u8],
        after: Option<u64>,
        entries: &[JournalEntry],
    ) -> Result<(), StorageError> {
        let parts = self.parts();
        parts.life.check()?;
        parts.space.check_file(0)?;
        let place = (table, Bytes::copy_from_slice(stream));
        parts.journals.fill(&place, after, entries).map_err(|e| match e {
            StorageError::Journal(JournalError::Conflict { .. }) | StorageError::Invalid(_) => e,
            e => parts.journal_failed(e),
        })
    }

    /// Removes streams that are no longer read or written, with their ends. [`StorageError::DiskFull`] if the
    /// disk has no room to say so; they are still there then. Blocks.
    pub fn forget_streams(&self, table: TableId, streams: &[Bytes]) -> Result<(), StorageError> {
        let parts = self.parts();
        parts.life.check()?;
        let Some(journal) = parts.journals.of(table) else { return Ok(()) };
        journal.forget(streams).map_err(|e| parts.journal_failed(e.into()))
    }

    /// The ranges of ids of a table's streams that are lost to damage: stream, first, last.
    pub fn lost_entries(&self, table: TableId) -> Vec<(Bytes, u64, u64)> {
        self.parts().journals.of(table).map(|journal| journal.lost()).unwrap_or_default()
    }
}
