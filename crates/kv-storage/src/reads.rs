//! Reads in which no async worker waits: what is not in memory is read by a few threads, from a
//! bounded queue.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    batch::{Position, Row, TableId, full_key, prefix_end, split_key},
    engine::Storage,
    entries,
    error::StorageError,
    journal::JournalEntry,
    limits,
    memtable::Seen,
    merge::{Merge, consistently},
    options::Drive,
    parts::Parts,
    readers::Class,
};

/// Rows of a range in key order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowChunk {
    /// Keys and rows.
    pub rows: Vec<(Bytes, Row)>,
    /// A bound ended the chunk: more rows follow its last one.
    pub more: bool,
}

/// Starts the reader threads. They do not keep the engine in memory.
pub(crate) fn start(parts: &Arc<Parts>) -> Result<(), StorageError> {
    let parts_of = Arc::downgrade(parts);
    parts.readers.start(move |e| {
        if let Some(parts) = Weak::upgrade(&parts_of) {
            parts.log.fail(&e);
        }
    })
}

/// Runs a read on a reader thread, or here where the caller drives the engine.
async fn off_the_workers<T: Send + 'static>(
    parts: &Arc<Parts>,
    class: Class,
    bytes: usize,
    read: impl FnOnce(&Parts) -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    if parts.options.drive == Drive::Manual {
        return read(parts);
    }
    let (send, receive) = oneshot::channel();
    // Not a handle: a read that hangs does not keep the engine open.
    let own = parts.clone();
    let job = move || {
        // A caller that went away is not read for.
        if !send.is_closed() {
            let _ = send.send(read(&own));
        }
    };
    parts.readers.push(class, bytes, Box::new(job))?;
    receive.await.unwrap_or(Err(StorageError::Closed))
}

/// Values from the tier, in the order of the keys.
/// They were not in memory when `seen` was.
fn tier_values(
    parts: &Parts,
    class: Class,
    keys: &[Vec<u8>],
    seen: Seen,
) -> Result<Vec<Option<Bytes>>, StorageError> {
    let tier = parts.tier.handle()?;
    let mut bytes = 0;
    let mut values = Vec::with_capacity(keys.len());
    for key in keys {
        let value = tier.get(key).map_err(StorageError::from);
        let value = value.inspect_err(|e| parts.tier_failed(e))?;
        bytes += value.as_ref().map_or(0, Bytes::len);
        if bytes > limits::MAX_READ_BYTES && values.iter().any(Option::is_some) {
            return Err(StorageError::TooLarge {
                what: "the answer of a read",
                bytes,
                max: limits::MAX_READ_BYTES,
            });
        }
        // A key that apply does not find is about to be written, and need not be read for that.
        if value.is_some() || class == Class::Client {
            parts.memtable.found(key, value.as_ref(), seen);
        }
        values.push(value);
    }
    Ok(values)
}

async fn read_rows(
    parts: &Arc<Parts>,
    class: Class,
    keys: Vec<(TableId, Vec<u8>)>,
) -> Result<Vec<Option<Row>>, StorageError> {
    if keys.len() > limits::MAX_READ_KEYS {
        let (bytes, max) = (keys.len(), limits::MAX_READ_KEYS);
        return Err(StorageError::TooLarge { what: "the number of keys of a read", bytes, max });
    }
    let keys: Vec<Vec<u8>> = keys.iter().map(|(table, key)| full_key(*table, key)).collect();
    let mut rows = Vec::with_capacity(keys.len());
    let mut missing = Vec::new();
    let (found, seen) = parts.memtable.rows(&keys);
    for (at, (key, found)) in keys.into_iter().zip(found).enumerate() {
        rows.push(match found {
            Some(row) => row,
            None => {
                missing.push((at, key));
                None
            }
        });
    }
    if missing.is_empty() {
        return Ok(rows);
    }
    let (places, keys): (Vec<usize>, Vec<Vec<u8>>) = missing.into_iter().unzip();
    let bytes = keys.iter().map(Vec::len).sum();
    let read = move |parts: &Parts| tier_values(parts, class, &keys, seen);
    let values = off_the_workers(parts, class, bytes, read).await?;
    for (at, value) in places.into_iter().zip(values) {
        if let Some(row) = rows.get_mut(at) {
            *row = value.map(|value| Row { value, position: Position::DURABLE });
        }
    }
    Ok(rows)
}

impl Storage {
    /// The row of a key as far as memory knows it; `None` if only the tier can tell. Memory also knows which
    /// keys of [`crate::StorageOptions::filtered_tables`] have no row. Does not wait for the
    /// tier.
    pub fn recent(&self, table: TableId, key: &[u8]) -> Option<Option<Row>> {
        self.parts().memtable.row(&full_key(table, key))
    }

    /// The rows of some keys, in their order: from memory at once if all are there, otherwise with
    /// one hop to a thread that reads the tier. Each row is as at some moment of the call. At most
    /// [`limits::MAX_READ_KEYS`] keys, and rows of [`limits::MAX_READ_BYTES`] from the tier: beyond that
    /// `TooLarge`, ask for fewer. `Overloaded` when too many reads wait.
    pub async fn read_rows(&self, keys: Vec<(TableId, Vec<u8>)>) -> Result<Vec<Option<Row>>, StorageError> {
        read_rows(self.parts(), Class::Client, keys).await
    }

    /// What memory has of some keys, in their order and at one moment: `None` for a key of which only the
    /// tier can tell, and `Some(None)` where there is no row. Waits for nothing.
    pub fn rows_in_memory(&self, keys: &[(TableId, Vec<u8>)]) -> Vec<Option<Option<Row>>> {
        let keys: Vec<Vec<u8>> = keys.iter().map(|(table, key)| full_key(*table, key)).collect();
        self.parts().memtable.rows(&keys).0
    }

    /// As [`Storage::read_rows`], for the apply of committed entries: before the reads of clients, and with
    /// places that these cannot take. One call of a group at a time.
    pub async fn read_rows_for_apply(
        &self,
        keys: Vec<(TableId, Vec<u8>)>,
    ) -> Result<Vec<Option<Row>>, StorageError> {
        read_rows(self.parts(), Class::Apply, keys).await
    }

    /// Rows from `from` (inclusive) to `to` (exclusive) in key order, one consistent view, read on another
    /// thread: at most `limit_rows` of them with keys and values of together `limit_bytes`, but at least
    /// one. `Overloaded` when too many reads wait.
    pub async fn read_range(
        &self,
        table: TableId,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<RowChunk, StorageError> {
        let from = full_key(table, from);
        let to = to.map_or_else(|| prefix_end(&full_key(table, &[])), |to| Some(full_key(table, to)));
        let bytes = from.len() + to.as_ref().map_or(0, Vec::len);
        let job = move |parts: &Parts| range_chunk(parts, &from, to.as_deref(), limit_rows, limit_bytes);
        off_the_workers(self.parts(), Class::Client, bytes, job).await
    }

    /// As [`Storage::read_entries`], read on another thread. `Overloaded` when too many reads wait.
    pub async fn read_stream(
        &self,
        table: TableId,
        stream: &[u8],
        ids: (u64, u64),
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Vec<JournalEntry>, StorageError> {
        let place = (table, Bytes::copy_from_slice(stream));
        let job = move |parts: &Parts| entries::entries(parts, &place, ids, max_entries, max_bytes);
        off_the_workers(self.parts(), Class::Client, stream.len(), job).await
    }
}

fn range_chunk(
    parts: &Parts,
    from: &[u8],
    to: Option<&[u8]>,
    limit_rows: usize,
    limit_bytes: usize,
) -> Result<RowChunk, StorageError> {
    let limit_rows = limit_rows.max(1);
    let read = |merge: &mut Merge| {
        let mut chunk = RowChunk::default();
        let mut bytes = 0;
        while let Some((key, value, seq)) = merge.next().inspect_err(|e| parts.tier_failed(e))? {
            bytes += key.len() + value.len();
            if !chunk.rows.is_empty() && (chunk.rows.len() >= limit_rows || bytes > limit_bytes) {
                chunk.more = true;
                break;
            }
            if let Some((_, key)) = split_key(&key) {
                chunk.rows.push((key, Row { value, position: Position(seq) }));
            }
        }
        Ok(chunk)
    };
    consistently(parts, (from, to), limit_rows.saturating_add(1), read)
}
