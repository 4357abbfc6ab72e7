//! Replacing whole ranges, as the installation of a snapshot does: readers see the old content, a refusal, or the new.

use bytes::Bytes;

use crate::{
    batch::{Batch, TableId, full_key, prefix_end, split_key},
    codec::{Cursor, put_bytes},
    engine::{Storage, read, write},
    error::StorageError,
    limits,
    raft_log::{wait, when_durable},
    wal::small_key,
};

/// A replacement under way. Dropped before [`Replace::finish`], its ranges stay refused until it is done again.
#[derive(Debug)]
#[must_use = "a replacement that is not finished leaves its ranges refused"]
pub struct Replace {
    storage: Storage,
    name: Bytes,
}

fn key_of(name: &[u8]) -> Bytes {
    let mut key = small_key::REPLACE.to_vec();
    key.extend_from_slice(name);
    Bytes::from(key)
}

fn encode_ranges(ranges: &[Bytes]) -> Bytes {
    let mut out = Vec::new();
    for range in ranges {
        put_bytes(&mut out, range);
    }
    Bytes::from(out)
}

pub(crate) fn decode_ranges(bytes: &[u8]) -> Option<Vec<Bytes>> {
    let mut c = Cursor::new(bytes);
    let mut out = Vec::new();
    while !c.is_empty() {
        out.push(Bytes::copy_from_slice(c.bytes()?));
    }
    Some(out)
}

impl Storage {
    /// Starts to replace everything under some prefixes. The intention is durable when this returns, and the old rows are
    /// gone; from now on reads inside the ranges answer [`StorageError::Replacing`], across restarts, until
    /// [`Replace::finish`]. The rows are derived state: after a crash they come again from the same source.
    pub async fn replace(&self, name: &[u8], ranges: &[(TableId, &[u8])]) -> Result<Replace, StorageError> {
        let inner = self.inner();
        inner.check()?;
        if name.len() > limits::MAX_KEY_BYTES || ranges.is_empty() {
            return Err(StorageError::Invalid(
                "a replacement needs a short name and at least one range".into(),
            ));
        }
        if ranges.iter().any(|(table, _)| table.get() < limits::FIRST_USER_TABLE) {
            return Err(StorageError::Invalid("tables below 16 belong to storage".into()));
        }
        let full: Vec<Bytes> = ranges.iter().map(|(table, prefix)| full_key(*table, prefix).into()).collect();
        let name = Bytes::copy_from_slice(name);
        let (done, durable) = when_durable();
        write(&inner.mem).replacing.insert(name.clone(), full.clone());
        inner.put_own(key_of(&name), Some(encode_ranges(&full)), Some(done));
        wait(durable).await.map_err(StorageError::io("record a replacement"))?;
        for from in full {
            self.clear(from.to_vec()).await?;
        }
        Ok(Replace { storage: self.clone(), name })
    }

    async fn clear(&self, mut from: Vec<u8>) -> Result<(), StorageError> {
        let to = prefix_end(&from);
        loop {
            let mut batch = Batch::new();
            {
                let inner = self.inner();
                let _gate = read(&inner.gate);
                let mut merge = inner.merge(from.clone(), to.clone(), limits::TIER_CHUNK_ROWS)?;
                while batch.len() < limits::TIER_CHUNK_ROWS
                    && let Some((key, ..)) = merge.next()?
                {
                    if let Some((table, key)) = split_key(&key) {
                        batch.push_delete(table, &key);
                    }
                    from = key.to_vec();
                    from.push(0);
                }
            }
            if batch.is_empty() {
                return Ok(());
            }
            self.inner().apply(batch).await?;
        }
    }
}

impl Replace {
    /// Adds rows.
    pub async fn push(&mut self, batch: Batch) -> Result<(), StorageError> {
        self.storage.inner().apply(batch).await
    }

    /// Adds the last rows, puts everything on disk, and opens the ranges for readers. Durable when this returns.
    pub async fn finish(self, batch: Batch) -> Result<(), StorageError> {
        let inner = self.storage.inner();
        if !batch.is_empty() {
            inner.apply(batch).await?;
        }
        self.storage.checkpoint().await?;
        let (done, durable) = when_durable();
        inner.put_own(key_of(&self.name), None, Some(done));
        wait(durable).await.map_err(StorageError::io("record the end of a replacement"))?;
        write(&inner.mem).replacing.remove(&self.name);
        Ok(())
    }
}
