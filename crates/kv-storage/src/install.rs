//! Writing a whole state beside the present one: rows go straight into the lower tier, not through the log
//! and the memtable, and what is not wanted any more is removed there. Both in bounded steps through the same
//! turn as the drain, which goes first when it is due: an installation of any size neither fills the memtable
//! nor holds up the writes of others.
//!
//! These keys are not read yet, or no longer: scans and copies expect that rows reach the tier through the
//! memtable. A state that is written this way counts once a record says so that was made durable after
//! [`Storage::finish_load`].

use std::{
    collections::{BTreeMap, VecDeque},
    pin::pin,
};

use bytes::Bytes;

use crate::{
    batch::{Batch, TableId, after, full_key},
    copy::CopyRow,
    drain,
    engine::{Storage, apply},
    error::StorageError,
    limits,
    wal::{
        entry::{durably, when_durable},
        small::small_key,
    },
};

/// What a step removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Bytes of keys and values.
    pub bytes: u64,
    /// The key from which on there may be more; `None` at the end.
    pub next: Option<Bytes>,
}

fn record_key(name: &[u8]) -> Result<Bytes, StorageError> {
    if name.is_empty() || name.len() > limits::MAX_RECORD_NAME {
        let (bytes, max) = (name.len(), limits::MAX_RECORD_NAME);
        return Err(StorageError::TooLarge { what: "the name of a record", bytes, max });
    }
    Ok(Bytes::from([small_key::RECORD, name].concat()))
}

impl Storage {
    /// Writes the first of these rows into the tier, as many as go into one of its batches, and takes them
    /// off. Later rows of one key count. The keys are not read yet. Refused while less than the reserve is
    /// free on the disk. Blocks: call it off the async workers, and [`Storage::let_drain`] after it.
    pub fn load(&self, rows: &mut VecDeque<CopyRow>) -> Result<(), StorageError> {
        let parts = self.parts();
        parts.life.check()?;
        parts.space.check_file(0)?;
        let most = parts.options.drain_batch_bytes.min(parts.tier.handle()?.batch_bytes());
        let (mut batch, mut bytes) = (BTreeMap::new(), 0);
        while let Some((table, key, value)) = rows.front() {
            if table.get() < limits::FIRST_USER_TABLE {
                return Err(StorageError::Invalid("tables below 16 belong to storage".into()));
            }
            if key.len() > limits::MAX_KEY_BYTES {
                return Err(StorageError::TooLarge {
                    what: "a key",
                    bytes: key.len(),
                    max: limits::MAX_KEY_BYTES,
                });
            }
            bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
            if bytes > most && !batch.is_empty() {
                break;
            }
            batch.insert(Bytes::from(full_key(*table, key)), value.clone());
            rows.pop_front();
        }
        let above = parts.memtable.read();
        if batch.keys().any(|key| above.has(key)) {
            return Err(StorageError::Invalid("a row is loaded under a key that is in use".into()));
        }
        drop(above);
        self.write_to_tier(&batch.into_iter().collect::<Vec<_>>())
    }

    fn write_to_tier(&self, rows: &[(Bytes, Option<Bytes>)]) -> Result<(), StorageError> {
        let parts = self.parts();
        if rows.is_empty() {
            return Ok(());
        }
        parts.tier.turn().load(rows).inspect_err(|e| parts.tier_failed(e))?;
        parts.memtable.loaded(rows.iter().map(|(key, _)| key));
        Ok(())
    }

    /// Makes everything that was loaded durable: after a crash the tier has it, or the tier counts as lost.
    pub async fn finish_load(&self) -> Result<(), StorageError> {
        // An empty batch, so that there is something which the checkpoint has to have.
        apply(self.parts(), Batch::new()).await?;
        self.checkpoint().await
    }

    /// Removes rows from `from` (inclusive) to `to` (exclusive) from the tier, in one bounded step. The keys
    /// are no longer read or written. Blocks.
    pub fn remove(&self, table: TableId, from: &[u8], to: &[u8]) -> Result<Removed, StorageError> {
        let parts = self.parts();
        parts.life.check()?;
        let (from, to) = (full_key(table, from), full_key(table, to));
        let (rows, bytes) = (limits::TIER_CHUNK_ROWS, limits::TIER_CHUNK_BYTES);
        let chunk = parts.tier.handle()?.scan(&from, Some(&to), rows, bytes).map_err(|e| {
            let e = StorageError::from(e);
            parts.tier_failed(&e);
            e
        })?;
        let next = chunk.rows.last().filter(|_| chunk.more).map(|(last, _)| after(last).slice(2..));
        let bytes = chunk.rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
        let gone: Vec<(Bytes, Option<Bytes>)> = chunk.rows.into_iter().map(|(key, _)| (key, None)).collect();
        self.write_to_tier(&gone)?;
        Ok(Removed { bytes, next })
    }

    /// Returns when the drain has had its turn, if one is due: what writes to the tier directly calls it
    /// between its steps.
    pub async fn let_drain(&self) {
        let parts = self.parts();
        let mut drained = pin!(parts.memtable.room());
        drained.as_mut().enable();
        if drain::is_due(parts) {
            parts.life.wake_background();
            parts.life.wake_driver();
            let _ = tokio::time::timeout(limits::DRAIN_TURN, drained).await;
        }
    }

    /// Changes a record, durably when this returns. Records are few and small: which of several states
    /// counts. They are found room for where commits are refused, as votes are.
    pub async fn put_record(&self, name: &[u8], value: &[u8]) -> Result<(), StorageError> {
        if value.len() > limits::MAX_RECORD_BYTES {
            let (bytes, max) = (value.len(), limits::MAX_RECORD_BYTES);
            return Err(StorageError::TooLarge { what: "a record", bytes, max });
        }
        let key = record_key(name)?;
        self.parts().life.check()?;
        let (done, durable) = when_durable();
        self.parts().log.put_small(key, Some(Bytes::copy_from_slice(value)), Some(done));
        durably(durable).await.map_err(StorageError::io("put a record"))
    }

    /// A record as last put.
    pub fn record(&self, name: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.parts().log.small_get(&record_key(name)?))
    }
}
