//! Rows of the tier that are also in memory: those that were read lately need no thread that reads the tier.
//!
//! The memtable hides what is here: a reader looks there first, under the memtable's lock, so a row here may
//! be older than one there, and never than the tier's. What keeps it so:
//! - A drain changes the rows that are here after the tier has them, and before they leave the memtable.
//! - What a reader found in the tier is kept only if, since it looked into the memtable, nothing was drained
//!   or loaded and the key did not come into the memtable. Both are decided under the memtable's lock.
//! - What is written past the memtable takes its keys out of here, after the tier has it.

use std::fmt;

use bytes::{Bytes, BytesMut};
use foldhash::quality::FixedState;
use quick_cache::{OptionsBuilder, Weighter, sync::Cache, sync::DefaultLifecycle};

use crate::{error::StorageError, limits, options::Drive};

#[derive(Clone)]
struct RowBytes;

impl Weighter<Bytes, Option<Bytes>> for RowBytes {
    fn weight(&self, key: &Bytes, value: &Option<Bytes>) -> u64 {
        (key.len() + value.as_ref().map_or(0, Bytes::len) + limits::CACHED_ROW_OVERHEAD) as u64
    }
}

type Rows = Cache<Bytes, Option<Bytes>, RowBytes, FixedState>;

/// A bounded part of the tier's rows; `None` is a key that the tier does not have.
pub(crate) struct RowCache(Option<Rows>);

impl fmt::Debug for RowCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowCache").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

/// A row that keeps no larger buffer in memory than its own.
fn own(key: &[u8], value: Option<&Bytes>) -> (Bytes, Option<Bytes>) {
    let mut row = BytesMut::with_capacity(key.len() + value.map_or(0, Bytes::len));
    row.extend_from_slice(key);
    row.extend_from_slice(value.map_or(&[], |value| value));
    let mut key_of = row.freeze();
    let value_of = key_of.split_off(key.len());
    (key_of, value.map(|_| value_of))
}

fn fits(key: &[u8], value: Option<&Bytes>) -> bool {
    key.len() + value.map_or(0, Bytes::len) <= limits::MAX_CACHED_ROW_BYTES
}

impl RowCache {
    /// Room for rows of `bytes` bytes with what each costs; none for 0. Which rows stay is the same in every
    /// run where the caller drives the engine. Elsewhere it differs, so that no client can choose keys that
    /// fall together.
    pub(crate) fn new(bytes: usize, drive: Drive) -> Result<RowCache, StorageError> {
        if bytes == 0 {
            return Ok(RowCache(None));
        }
        let options = OptionsBuilder::new()
            .shards(limits::CACHE_SHARDS)
            .estimated_items_capacity(bytes / limits::USUAL_CACHED_ROW_BYTES)
            .weight_capacity(bytes as u64)
            .build()
            .map_err(|e| StorageError::Invalid(format!("cache_bytes: {e}")))?;
        let seed = match drive {
            Drive::Manual => 0,
            Drive::Threads => std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0),
        };
        let hasher = FixedState::with_seed(seed);
        Ok(RowCache(Some(Rows::with_options(options, RowBytes, hasher, DefaultLifecycle::default()))))
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.0.as_ref()?.get(key)
    }

    /// Keeps a row, if it is not too large.
    pub(crate) fn keep(&self, key: &[u8], value: Option<&Bytes>) {
        let Some(rows) = &self.0 else { return };
        if fits(key, value) {
            let (key, value) = own(key, value);
            rows.insert(key, value);
        }
    }

    /// The tier has another row under this key now. What is not here does not come: what is only written
    /// leaves the room to what is read.
    pub(crate) fn change(&self, key: &[u8], value: Option<&Bytes>) {
        let Some(rows) = &self.0 else { return };
        if !rows.contains_key(key) {
            return;
        }
        if fits(key, value) {
            let (key, value) = own(key, value);
            // An error says that it left meanwhile.
            let _ = rows.replace(key, value, true);
        } else {
            rows.remove(key);
        }
    }

    pub(crate) fn forget(&self, key: &[u8]) {
        if let Some(rows) = &self.0 {
            rows.remove(key);
        }
    }

    /// Bytes of all rows here, with what each costs.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, Rows::weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(len: usize) -> Bytes {
        Bytes::from(vec![7; len])
    }

    #[test]
    fn it_stays_within_its_bytes_and_what_is_too_large_stays_out() {
        let cache = RowCache::new(256 << 10, Drive::Manual).unwrap();
        for n in 0..10_000_u32 {
            cache.keep(&n.to_be_bytes(), Some(&value(200)));
            assert!(cache.bytes() <= 256 << 10);
        }
        assert!(cache.bytes() > 128 << 10, "{} bytes", cache.bytes());
        cache.keep(b"k", Some(&value(limits::MAX_CACHED_ROW_BYTES)));
        assert_eq!(cache.get(b"k"), None);
        // A row that outgrows it leaves, instead of staying as it was.
        cache.keep(b"k", Some(&value(1)));
        cache.change(b"k", Some(&value(limits::MAX_CACHED_ROW_BYTES)));
        assert_eq!(cache.get(b"k"), None);
        assert_eq!(RowCache::new(0, Drive::Manual).unwrap().get(b"k"), None);
    }

    #[test]
    fn a_row_keeps_no_larger_buffer() {
        let cache = RowCache::new(256 << 10, Drive::Threads).unwrap();
        let batch = value(100 << 10);
        cache.keep(&batch[..4], Some(&batch.slice(4..10)));
        let kept = cache.get(&batch[..4]).flatten().unwrap();
        assert_eq!(kept, batch.slice(4..10));
        assert!(!batch.as_ptr_range().contains(&kept.as_ptr()));
        cache.keep(b"gone", None);
        assert_eq!(cache.get(b"gone"), Some(None));
        cache.change(b"gone", Some(&value(1)));
        cache.change(b"new", Some(&value(1)));
        assert_eq!((cache.get(b"gone"), cache.get(b"new")), (Some(Some(value(1))), None));
        cache.forget(b"gone");
        assert_eq!(cache.get(b"gone"), None);
    }
}
