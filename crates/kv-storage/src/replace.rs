//! Replacing whole ranges, as the installation of a snapshot does: readers see the old content, a refusal, or the new.

use bytes::Bytes;

use crate::{
    batch::{Batch, TableId, full_key, prefix_end, split_key},
    codec::{Cursor, put_bytes},
    engine::{Storage, apply},
    error::StorageError,
    limits,
    merge::Merge,
    wal::{
        entry::{durably, when_durable},
        small::small_key,
    },
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
        let parts = self.parts();
        parts.life.check()?;
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
        parts.memtable.write().replacing.insert(name.clone(), full.clone());
        parts.log.put_small(key_of(&name), Some(encode_ranges(&full)), Some(done));
        durably(durable).await.map_err(StorageError::io("record a replacement"))?;
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
                let parts = self.parts();
                let _still = parts.tier.hold_still();
                let rows = parts.memtable.read().range(&from, to.as_deref(), limits::TIER_CHUNK_ROWS);
                let mut merge = Merge::new(parts.tier.handle()?, rows, from.clone(), to.clone());
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
            apply(self.parts(), batch).await?;
        }
    }
}

impl Replace {
    /// Adds rows.
    pub async fn push(&mut self, batch: Batch) -> Result<(), StorageError> {
        apply(self.storage.parts(), batch).await
    }

    /// Adds the last rows, puts everything on disk, and opens the ranges for readers. Durable when this returns.
    pub async fn finish(self, batch: Batch) -> Result<(), StorageError> {
        let parts = self.storage.parts();
        if !batch.is_empty() {
            apply(parts, batch).await?;
        }
        self.storage.checkpoint().await?;
        let (done, durable) = when_durable();
        parts.log.put_small(key_of(&self.name), None, Some(done));
        durably(durable).await.map_err(StorageError::io("record the end of a replacement"))?;
        parts.memtable.write().replacing.remove(&self.name);
        Ok(())
    }
}
