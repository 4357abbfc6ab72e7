//! Reads that no async worker waits in: what is not in the memtable is read by a few threads, from a bounded queue.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    batch::{Position, Row, TableId, full_key, prefix_end, split_key},
    engine::{Inner, Storage, lock, read},
    error::StorageError,
    limits,
    memtable::Mem,
    options::Drive,
};

/// Rows of a range in key order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowChunk {
    /// Keys and rows.
    pub rows: Vec<(Bytes, Row)>,
    /// A bound ended the chunk: more rows follow its last one.
    pub more: bool,
}

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// The apply of committed entries: it goes first and has places of its own.
    Apply,
    /// All others.
    Client,
}

type Job = Box<dyn FnOnce(&Inner) + Send>;

#[derive(Default)]
struct Queue {
    apply: VecDeque<Job>,
    client: VecDeque<(Job, usize)>,
    /// Bytes of the keys that wait in `client`.
    bytes: usize,
    closed: bool,
}

/// The queue that the reader threads share.
#[derive(Default)]
pub(crate) struct Readers {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

impl Readers {
    fn push(&self, class: Class, bytes: usize, job: Job) -> Result<(), StorageError> {
        let full = Err(StorageError::Overloaded { what: "the queue of reads" });
        let mut q = lock(&self.queue);
        if q.closed {
            return Err(StorageError::Closed);
        }
        match class {
            Class::Apply if q.apply.len() >= limits::READ_QUEUE_APPLY => return full,
            Class::Apply => q.apply.push_back(job),
            Class::Client
                if q.client.len() >= limits::READ_QUEUE
                    || (!q.client.is_empty() && q.bytes + bytes > limits::READ_QUEUE_BYTES) =>
            {
                return full;
            }
            Class::Client => {
                q.bytes += bytes;
                q.client.push_back((job, bytes));
            }
        }
        drop(q);
        self.changed.notify_one();
        Ok(())
    }

    /// The next job; `None` once the engine stops.
    fn next(&self) -> Option<Job> {
        let mut q = lock(&self.queue);
        loop {
            if q.closed {
                return None;
            }
            if let Some(job) = q.apply.pop_front() {
                return Some(job);
            }
            if let Some((job, bytes)) = q.client.pop_front() {
                q.bytes -= bytes;
                return Some(job);
            }
            q = self.changed.wait(q).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What waits is answered with `Closed`, and the threads end when their read returns.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut q = lock(&self.queue);
            q.closed = true;
            q.bytes = 0;
            (std::mem::take(&mut q.apply), std::mem::take(&mut q.client))
        };
        drop(waiting);
        self.changed.notify_all();
    }
}

/// True if one of the keys is being replaced.
fn any_replacing(mem: &Mem, keys: &[Vec<u8>]) -> bool {
    !mem.replacing.is_empty()
        && keys.iter().any(|key| {
            let mut next = key.clone();
            next.push(0);
            mem.is_replacing(key, Some(&next))
        })
}

impl Inner {
    /// Starts the reader threads. A stop does not wait for them: a read may hang as long as the disk does.
    pub(crate) fn start_readers(self: &Arc<Self>) -> Result<(), StorageError> {
        for _ in 0..limits::READERS {
            let inner = self.clone();
            let body = move || {
                while let Some(job) = inner.readers.next() {
                    let run = std::panic::AssertUnwindSafe(|| job(&inner));
                    if std::panic::catch_unwind(run).is_err() {
                        inner.poison(StorageError::Invalid("a reader thread panicked".into()));
                    }
                }
            };
            let spawned = thread::Builder::new().name("kv-read".into()).spawn(body);
            spawned.map_err(StorageError::io("start a reader thread"))?;
        }
        Ok(())
    }

    /// Runs a read on a reader thread, or here where the caller drives the engine.
    async fn off_the_workers<T: Send + 'static>(
        &self,
        class: Class,
        bytes: usize,
        read: impl FnOnce(&Inner) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        if self.options.drive == Drive::Manual {
            return read(self);
        }
        let (send, receive) = oneshot::channel();
        let job = move |inner: &Inner| {
            // A caller that went away is not read for.
            if !send.is_closed() {
                let _ = send.send(read(inner));
            }
        };
        self.readers.push(class, bytes, Box::new(job))?;
        receive.await.unwrap_or(Err(StorageError::Closed))
    }

    /// Values from the tier, in the order of the keys.
    fn tier_values(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let tier = self.tier()?;
        let mut bytes = 0;
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            let value = tier.get(key).map_err(StorageError::from);
            let value = value.inspect_err(|e| self.tier_failed(e.clone()))?;
            bytes += value.as_ref().map_or(0, Bytes::len);
            if bytes > limits::MAX_READ_BYTES && values.iter().any(Option::is_some) {
                return Err(StorageError::TooLarge {
                    what: "the answer of a read",
                    bytes,
                    max: limits::MAX_READ_BYTES,
                });
            }
            values.push(value);
        }
        Ok(values)
    }

    async fn read_rows(
        &self,
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
        {
            let mem = read(&self.mem);
            if any_replacing(&mem, &keys) {
                return Err(StorageError::Replacing);
            }
            for (at, key) in keys.into_iter().enumerate() {
                match mem.get(&key) {
                    Some((value, seq)) => {
                        rows.push(value.map(|value| Row { value, position: Position(seq) }));
                    }
                    None => {
                        rows.push(None);
                        missing.push((at, key));
                    }
                }
            }
        }
        if missing.is_empty() {
            return Ok(rows);
        }
        let (places, keys): (Vec<usize>, Vec<Vec<u8>>) = missing.into_iter().unzip();
        let bytes = keys.iter().map(Vec::len).sum();
        let (values, keys) = self
            .off_the_workers(class, bytes, move |inner| inner.tier_values(&keys).map(|values| (values, keys)))
            .await?;
        // A replacement that began meanwhile may have cleared what was read.
        if any_replacing(&read(&self.mem), &keys) {
            return Err(StorageError::Replacing);
        }
        for (at, value) in places.into_iter().zip(values) {
            if let Some(row) = rows.get_mut(at) {
                *row = value.map(|value| Row { value, position: Position::DURABLE });
            }
        }
        Ok(rows)
    }
}

impl Storage {
    /// The rows of some keys, in their order: from the memtable at once if all are there, otherwise with one hop to a thread
    /// that reads the tier. Each row is as at some moment of the call. At most [`limits::MAX_READ_KEYS`] keys, and rows of
    /// [`limits::MAX_READ_BYTES`] from the tier: beyond that `TooLarge`, ask for fewer. `Overloaded` when too many reads wait.
    pub async fn read_rows(&self, keys: Vec<(TableId, Vec<u8>)>) -> Result<Vec<Option<Row>>, StorageError> {
        self.inner().read_rows(Class::Client, keys).await
    }

    /// As [`Storage::read_rows`], for the apply of committed entries: before the reads of clients, and with places that these
    /// cannot take. One call of a group at a time.
    pub async fn read_rows_for_apply(
        &self,
        keys: Vec<(TableId, Vec<u8>)>,
    ) -> Result<Vec<Option<Row>>, StorageError> {
        self.inner().read_rows(Class::Apply, keys).await
    }

    /// Rows from `from` (inclusive) to `to` (exclusive) in key order, one consistent view, read on another thread: at most
    /// `limit_rows` of them with keys and values of together `limit_bytes`, but at least one. `Overloaded` when too many reads
    /// wait.
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
        // The job keeps no handle of the engine: a stop would wait for it.
        let job = move |inner: &Inner| inner.range_chunk(from, to, limit_rows, limit_bytes);
        self.inner().off_the_workers(Class::Client, bytes, job).await
    }
}

impl Inner {
    fn range_chunk(
        &self,
        from: Vec<u8>,
        to: Option<Vec<u8>>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<RowChunk, StorageError> {
        // The tier does not change under a scan.
        let _gate = read(&self.gate);
        if read(&self.mem).is_replacing(&from, to.as_deref()) {
            return Err(StorageError::Replacing);
        }
        let limit_rows = limit_rows.max(1);
        let mut merge = self.merge(from, to, limit_rows + 1)?;
        let mut chunk = RowChunk::default();
        let mut bytes = 0;
        while let Some((key, value, seq)) = merge.next().inspect_err(|e| self.tier_failed(e.clone()))? {
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
    }
}
