//! Rows of the tier that are also in memory: those that were read lately need no thread that reads the tier.
//!
//! The memtable hides what is here: a reader looks there first, under the memtable's lock. Of a key that is
//! not in the memtable, a row here is the newest that was drained or loaded. What keeps it so:
//! - A drain changes the rows that are here after the tier has them, and before they leave the memtable.
//! - What a reader found in the tier is kept only if, since it looked into the memtable, nothing was drained
//!   or loaded and the key did not come into the memtable. Both are decided under the memtable's lock.
//! - What is written past the memtable takes its keys out of here, after the tier has it.

use std::{
    fmt,
    hash::{BuildHasher, DefaultHasher, RandomState},
};

use bytes::{Bytes, BytesMut};
use quick_cache::{OptionsBuilder, Weighter, sync::Cache, sync::DefaultLifecycle};

use crate::{error::StorageError, limits, options::Drive};

/// Clients choose keys: where rows fall is not for them to know, except in a simulation, which repeats.
#[derive(Clone)]
enum Hashing {
    Secret(RandomState),
    Fixed,
}

impl BuildHasher for Hashing {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        match self {
            Hashing::Secret(keys) => keys.build_hasher(),
            Hashing::Fixed => DefaultHasher::new(),
        }
    }
}

#[derive(Clone)]
struct RowBytes;

impl Weighter<Bytes, Option<Bytes>> for RowBytes {
    fn weight(&self, key: &Bytes, value: &Option<Bytes>) -> u64 {
        (key.len() + value.as_ref().map_or(0, Bytes::len) + limits::CACHED_ROW_OVERHEAD) as u64
    }
}

type Rows = Cache<Bytes, Option<Bytes>, RowBytes, Hashing>;

/// A bounded part of the tier's rows; `None` is a key that the tier does not have.
pub(crate) struct RowCache(Option<Rows>);

/// A row in a buffer of its own, as the cache keeps it.
pub(crate) struct OwnRow(Bytes, Option<Bytes>);

impl fmt::Debug for RowCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowCache").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl RowCache {
    /// Room for rows of `bytes` bytes with what each costs; none for 0. Which rows stay is the same in every
    /// run where the caller drives the engine.
    pub(crate) fn new(bytes: usize, drive: Drive) -> Result<RowCache, StorageError> {
        if bytes == 0 {
            return Ok(RowCache(None));
        }
        let options = OptionsBuilder::new()
            .shards(limits::CACHE_SHARDS)
            .estimated_items_capacity(bytes / limits::CACHED_ROW_OVERHEAD)
            .ghost_allocation(limits::CACHE_REMEMBERS)
            .weight_capacity(bytes as u64)
            .build()
            .map_err(|e| StorageError::Invalid(format!("cache_bytes: {e}")))?;
        let hashing = match drive {
            Drive::Manual => Hashing::Fixed,
            Drive::Threads => Hashing::Secret(RandomState::new()),
        };
        Ok(RowCache(Some(Rows::with_options(options, RowBytes, hashing, DefaultLifecycle::default()))))
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.0.as_ref()?.get(key)
    }

    /// The row as it would be kept; `None` if it would not be. It keeps no larger buffer in memory.
    pub(crate) fn own(&self, key: &[u8], value: Option<&Bytes>) -> Option<OwnRow> {
        let bytes = key.len() + value.map_or(0, Bytes::len);
        if self.0.is_none() || bytes > limits::MAX_CACHED_ROW_BYTES {
            return None;
        }
        let mut row = BytesMut::with_capacity(bytes);
        row.extend_from_slice(key);
        row.extend_from_slice(value.map_or(&[], |value| value));
        let mut key_of = row.freeze();
        let value_of = key_of.split_off(key.len());
        Some(OwnRow(key_of, value.map(|_| value_of)))
    }

    pub(crate) fn keep(&self, row: OwnRow) {
        if let Some(rows) = &self.0 {
            rows.insert(row.0, row.1);
        }
    }

    /// The tier has another row under this key now. What is only written does not come here, nor stay when
    /// there was no row before: that leaves the room to what is read.
    pub(crate) fn change(&self, key: &[u8], value: Option<&Bytes>) {
        let Some(rows) = &self.0 else { return };
        let Some(before) = rows.peek(key) else { return };
        match self.own(key, value) {
            Some(OwnRow(key, value)) if before.is_some() || value.is_none() => {
                // An error says that it left meanwhile.
                let _ = rows.replace(key, value, true);
            }
            _ => {
                rows.remove(key);
            }
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

    const ROOM: usize = 256 << 10;

    fn value(len: usize) -> Bytes {
        Bytes::from(vec![7; len])
    }

    fn keep(cache: &RowCache, key: &[u8], value: Option<&Bytes>) {
        if let Some(row) = cache.own(key, value) {
            cache.keep(row);
        }
    }

    #[test]
    fn it_stays_within_its_bytes_and_what_is_too_large_stays_out() {
        let cache = RowCache::new(ROOM, Drive::Manual).unwrap();
        // Small ones first: what finds them grows with their number, and never shrinks.
        for n in 0..10_000_u32 {
            keep(&cache, &n.to_be_bytes(), None);
            assert!(cache.bytes() <= ROOM as u64);
        }
        for n in 0..10_000_u32 {
            keep(&cache, &n.to_be_bytes(), Some(&value(2_000)));
            assert!(cache.bytes() <= ROOM as u64);
        }
        assert!(cache.bytes() > ROOM as u64 / 2, "{} bytes", cache.bytes());
        let used = cache.0.as_ref().unwrap().memory_used();
        assert!(used.entries + used.map <= ROOM, "{used:?}");
        keep(&cache, b"k", Some(&value(limits::MAX_CACHED_ROW_BYTES)));
        assert_eq!(cache.get(b"k"), None);
        // A row that outgrows it leaves, instead of staying as it was.
        keep(&cache, b"k", Some(&value(1)));
        cache.change(b"k", Some(&value(limits::MAX_CACHED_ROW_BYTES)));
        assert_eq!(cache.get(b"k"), None);
        assert_eq!(RowCache::new(0, Drive::Manual).unwrap().get(b"k"), None);
    }

    #[test]
    fn a_row_keeps_no_larger_buffer() {
        let cache = RowCache::new(ROOM, Drive::Threads).unwrap();
        let batch = value(100 << 10);
        keep(&cache, &batch[..4], Some(&batch.slice(4..10)));
        let kept = cache.get(&batch[..4]).flatten().unwrap();
        assert_eq!(kept, batch.slice(4..10));
        assert!(!batch.as_ptr_range().contains(&kept.as_ptr()));
    }

    #[test]
    fn a_change_reaches_what_is_read_and_brings_nothing_else() {
        let cache = RowCache::new(ROOM, Drive::Threads).unwrap();
        let (one, two) = (value(1), value(2));
        keep(&cache, b"read", Some(&one));
        keep(&cache, b"none", None);
        cache.change(b"read", Some(&two));
        cache.change(b"none", Some(&two));
        cache.change(b"new", Some(&two));
        assert_eq!(cache.get(b"read"), Some(Some(two)));
        assert_eq!((cache.get(b"none"), cache.get(b"new")), (None, None));
        cache.change(b"read", None);
        assert_eq!(cache.get(b"read"), Some(None));
        cache.forget(b"read");
        assert_eq!(cache.get(b"read"), None);
    }

    /// Keys that fall together for any seed of a hash whose other parameters are public.
    #[test]
    fn no_client_knows_where_its_keys_fall() {
        let [one, other] = [0, 1].map(|_| RowCache::new(ROOM, Drive::Threads).unwrap());
        let places = |cache: &RowCache| {
            let rows = cache.0.as_ref().unwrap();
            (0..64_u8).map(|n| rows.shard_index(&[n; 60][..])).collect::<Vec<_>>()
        };
        assert_ne!(places(&one), places(&other));
        let word = [0xdd, 0x50, 0x7c, 0xc9, 0xb7, 0x29, 0xac, 0xc0];
        let crafted = |n: u8| [&[n; 30][..], &word, &word, &[n; 14]].concat();
        let hashing = Hashing::Secret(RandomState::new());
        let hashes: std::collections::BTreeSet<u64> =
            (0..64).map(|n| hashing.hash_one(Bytes::from(crafted(n)))).collect();
        assert_eq!(hashes.len(), 64);
    }
}
