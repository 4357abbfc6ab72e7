//! Which keys the tier may have: a Bloom filter in memory, of the tables that the options name. A key that it
//! denies needs no thread that reads the tier, and most writes of new keys ask for such keys.
//!
//! It claims every key that the tier has, once it is whole:
//! - What writes to the tier adds its keys here before it does, the drain as well as what goes past the
//!   memtable; so a key that has left the memtable is here.
//! - What the tier had at the start is read from it in steps, and until the last of them nothing is denied.
//!
//! It never forgets a key: rows that are removed leave it only at the next start. Beyond its bytes it takes
//! keys still and claims more and more that are not there, which costs a read of the tier and nothing else.

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::BuildHasher,
    sync::{
        Mutex, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use fastbloom::AtomicBloomFilter;

use crate::{
    batch::{TableId, after, full_key, prefix_end},
    error::StorageError,
    limits,
    locks::{lock, read, write},
    options::{Drive, StorageOptions},
    tier::Tier,
};

/// Keys of the first layer; each further one has room for four times as many.
const FIRST_LAYER: usize = 64 << 10;

/// One filter of a fixed size.
struct Layer {
    keys: AtomicBloomFilter,
    /// How many more keys it was made for.
    room: AtomicUsize,
}

/// How far the rows from before the start are read.
enum Learning {
    /// From this key on, in the first of these tables.
    From(Vec<TableId>, Bytes),
    Done,
}

/// The keys of some tables, as far as memory knows them.
pub(crate) struct KeyFilter {
    tables: Vec<TableId>,
    seed: u128,
    max_bytes: usize,
    layers: RwLock<Vec<Layer>>,
    /// Held while a layer is made.
    growing: Mutex<()>,
    whole: AtomicBool,
    learning: Mutex<Learning>,
}

impl fmt::Debug for KeyFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFilter").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl KeyFilter {
    /// Without keys, and not whole. Clients choose keys: which of them are claimed falsely is not for them to
    /// know, except in a simulation, which repeats.
    pub(crate) fn new(options: &StorageOptions) -> KeyFilter {
        let secret = || {
            let half = |n: u8| u128::from(RandomState::new().hash_one(n));
            (half(0) << 64) | half(1)
        };
        let tables = if options.filter_bytes == 0 { Vec::new() } else { options.filtered_tables.clone() };
        let learning = match tables.first() {
            Some(first) => Learning::From(tables.clone(), Bytes::from(full_key(*first, &[]))),
            None => Learning::Done,
        };
        KeyFilter {
            seed: if options.drive == Drive::Manual { 0 } else { secret() },
            max_bytes: options.filter_bytes,
            layers: RwLock::default(),
            growing: Mutex::default(),
            whole: AtomicBool::new(false),
            learning: Mutex::new(learning),
            tables,
        }
    }

    fn covers(&self, key: &[u8]) -> bool {
        self.tables.iter().any(|table| key.starts_with(&table.get().to_be_bytes()))
    }

    /// The tier surely has no row of this key, unless it is in the memtable now or was a moment ago.
    pub(crate) fn denies(&self, key: &[u8]) -> bool {
        if !self.whole.load(Ordering::Acquire) || !self.covers(key) {
            return false;
        }
        let layers = read(&self.layers);
        let Some(first) = layers.first() else { return true };
        let hash = first.keys.source_hash(key);
        !layers.iter().any(|layer| layer.keys.contains_hash(hash))
    }

    /// The tier is about to get rows of these keys.
    pub(crate) fn add<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        for key in keys.filter(|key| self.covers(key)) {
            while !self.add_to_last(key) {
                self.grow();
            }
        }
    }

    /// False when there is no layer with room, and there may be a further one.
    fn add_to_last(&self, key: &[u8]) -> bool {
        let layers = read(&self.layers);
        let Some((last, older)) = layers.split_last() else { return false };
        let hash = last.keys.source_hash(key);
        if older.iter().any(|layer| layer.keys.contains_hash(hash)) || last.keys.contains_hash(hash) {
            return true;
        }
        let full = last.room.load(Ordering::Relaxed) == 0;
        if full && self.bytes_of_next(&layers).is_some() {
            return false;
        }
        last.keys.insert_hash(hash);
        let fewer = |room: usize| Some(room.saturating_sub(1));
        let _ = last.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        true
    }

    /// Bytes of the next layer; none when there is no room for a useful one.
    fn bytes_of_next(&self, layers: &[Layer]) -> Option<usize> {
        let used: usize = layers.iter().map(|layer| layer.keys.num_bits() / 8).sum();
        let depth = u32::try_from(layers.len()).unwrap_or(u32::MAX);
        let wanted = FIRST_LAYER.saturating_mul(4_usize.saturating_pow(depth));
        let bytes = wanted.saturating_mul(limits::FILTER_BITS_PER_KEY) / 8;
        let left = self.max_bytes.saturating_sub(used);
        // The first one is always made: without any there is no filter.
        (layers.is_empty() || left >= bytes / 4).then_some(bytes.min(left).max(limits::FILTER_LEAST_BYTES))
    }

    fn grow(&self) {
        let _alone = lock(&self.growing);
        let bytes = {
            let layers = read(&self.layers);
            // Another may have been here meanwhile.
            if layers.last().is_some_and(|last| last.room.load(Ordering::Relaxed) > 0) {
                return;
            }
            let Some(bytes) = self.bytes_of_next(&layers) else { return };
            bytes
        };
        // Zeros of some tens of megabytes: readers do not wait for them.
        let room = bytes * 8 / limits::FILTER_BITS_PER_KEY;
        let keys = AtomicBloomFilter::with_num_bits(bytes * 8).seed(&self.seed).expected_items(room);
        write(&self.layers).push(Layer { keys, room: AtomicUsize::new(room) });
    }

    /// Reads some of the rows that the tier had at the start; false when there is nothing left to read. For
    /// one caller at a time.
    pub(crate) fn learn(&self, tier: &dyn Tier) -> Result<bool, StorageError> {
        let mut learning = lock(&self.learning);
        let Learning::From(tables, from) = &mut *learning else { return Ok(false) };
        let Some(table) = tables.first() else {
            *learning = Learning::Done;
            self.whole.store(true, Ordering::Release);
            return Ok(false);
        };
        let end = prefix_end(&full_key(*table, &[]));
        let (rows, bytes) = (limits::TIER_CHUNK_ROWS, limits::TIER_CHUNK_BYTES);
        let (keys, more) = tier.keys(from, end.as_deref(), rows, bytes)?;
        self.add(keys.iter().map(|key| &key[..]));
        match keys.last().filter(|_| more) {
            Some(last) => *from = after(last),
            None => {
                tables.remove(0);
                *from = tables.first().map_or_else(Bytes::new, |next| Bytes::from(full_key(*next, &[])));
            }
        }
        Ok(true)
    }

    /// What it takes of memory.
    pub(crate) fn bytes(&self) -> u64 {
        read(&self.layers).iter().map(|layer| layer.keys.num_bits() as u64 / 8).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::{MemTiers, TierMark, TierSource};

    const T: TableId = TableId::new(20);
    const OTHER: TableId = TableId::new(21);

    fn filter(filter_bytes: usize) -> KeyFilter {
        let filtered_tables = vec![T];
        KeyFilter::new(&StorageOptions { filtered_tables, filter_bytes, ..StorageOptions::small("/filter") })
    }

    fn key(table: TableId, n: usize) -> Vec<u8> {
        full_key(table, &n.to_be_bytes())
    }

    fn add(filter: &KeyFilter, keys: impl Iterator<Item = usize>) {
        keys.for_each(|n| filter.add(std::iter::once(&key(T, n)[..])));
    }

    fn claimed(filter: &KeyFilter, keys: std::ops::Range<usize>) -> usize {
        keys.filter(|n| !filter.denies(&key(T, *n))).count()
    }

    #[test]
    fn no_key_is_denied_and_few_are_claimed_that_are_not_there() {
        let filter = filter(4 << 20);
        let tier = MemTiers::new().open("/t".as_ref()).unwrap();
        add(&filter, 0..10);
        assert!(!filter.denies(&key(T, 11)), "it may be there since before the start");
        while filter.learn(&*tier).unwrap() {}
        assert!(filter.denies(&key(T, 11)) && !filter.denies(&key(OTHER, 11)));
        // Into the third layer; keys that come again take no room.
        (0..3).for_each(|_| add(&filter, 0..500_000));
        assert_eq!(claimed(&filter, 0..500_000), 500_000);
        assert!(claimed(&filter, 500_000..1_000_000) < 15_000);
        assert_eq!(read(&filter.layers).len(), 3);
    }

    #[test]
    fn beyond_its_bytes_it_claims_more_and_denies_no_key() {
        let filter = filter(128 << 10);
        let tier = MemTiers::new().open("/t".as_ref()).unwrap();
        while filter.learn(&*tier).unwrap() {}
        add(&filter, 0..400_000);
        assert!(filter.bytes() <= 128 << 10, "{}", filter.bytes());
        assert_eq!(claimed(&filter, 0..400_000), 400_000);
        assert!(claimed(&filter, 400_000..410_000) > 1_000);
        add(&filter, 0..400_000);
        assert!(filter.bytes() <= 128 << 10);
    }

    #[test]
    fn what_the_tier_had_at_the_start_is_learned_in_steps() {
        let rows: Vec<_> =
            (0..1_000).map(|n| (Bytes::from(key(T, n)), Some(Bytes::from_static(b"v")))).collect();
        let tier = MemTiers::new().open("/t".as_ref()).unwrap();
        tier.apply(&rows, TierMark::default()).unwrap();
        let filter = filter(1 << 20);
        let mut steps = 0;
        while filter.learn(&*tier).unwrap() {
            assert!(!filter.denies(&key(T, 2_000)), "not before all are known");
            steps += 1;
        }
        assert_eq!(steps, 1_000_usize.div_ceil(limits::TIER_CHUNK_ROWS));
        assert_eq!(claimed(&filter, 0..1_000), 1_000);
        assert!(filter.denies(&key(T, 2_000)));
        assert!(!filter.learn(&*tier).unwrap());
        let none = KeyFilter::new(&StorageOptions { filter_bytes: 0, ..StorageOptions::small("/filter") });
        assert!(!none.learn(&*tier).unwrap() && !none.denies(&key(T, 2_000)));
    }
}
