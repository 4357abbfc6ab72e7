//! Which requests a ring partition may have taken: almost every write asks for one that is not in the table,
//! and is told so from memory.

use std::fmt;

use fastbloom::BloomFilter;

use crate::limits;

/// Share of absent keys for which a full layer says that they may be there: such a write reads the tier, and
/// waits for it when it stalls. It costs 19 bits for a key: 22 MiB for ten million requests.
const FALSE_POSITIVES: f64 = 0.000_1;
/// Keys of the first layer; each further one has room for four times as many, until it has room for all rows
/// that a table may have.
const FIRST_LAYER: usize = 1024;
/// The same on every node and in every run: a client that finds collisions makes its own writes slower.
const SEED: u128 = 0x51_75_6f_72_61_74_65;

/// A set of keys that never forgets one and may claim one too many.
#[derive(Default)]
struct Filter {
    layers: Vec<BloomFilter>,
    /// Keys that the last layer still has room for.
    room: usize,
    keys: usize,
}

impl Filter {
    fn add(&mut self, key: &[u8]) {
        if self.room == 0 {
            let layers = u32::try_from(self.layers.len()).unwrap_or(u32::MAX);
            let most = usize::try_from(limits::REQUESTS).unwrap_or(usize::MAX);
            let keys = FIRST_LAYER.saturating_mul(4usize.saturating_pow(layers)).min(most);
            self.layers.push(BloomFilter::with_false_pos(FALSE_POSITIVES).seed(&SEED).expected_items(keys));
            self.room = keys;
        }
        if let Some(layer) = self.layers.last_mut() {
            layer.insert(key);
        }
        self.room -= 1;
        self.keys += 1;
    }

    fn may_have(&self, key: &[u8]) -> bool {
        self.layers.iter().any(|layer| layer.contains(key))
    }
}

/// The keys of a request table, as far as memory knows them.
#[derive(Default)]
pub(super) struct Requests {
    known: Filter,
    /// The rows that were there at the start are in `known` too.
    complete: bool,
    /// What takes the place of `known` once it has all rows: without those that were forgotten.
    next: Option<Filter>,
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("keys", &self.known.keys).field("complete", &self.complete).finish()
    }
}

impl Requests {
    /// Of a table without rows.
    pub(super) fn of_nothing() -> Self {
        Self { complete: true, ..Self::default() }
    }

    /// The table has no such row.
    pub(super) fn lacks(&self, key: &[u8]) -> bool {
        self.complete && !self.known.may_have(key)
    }

    /// The table has got a row, or has had it since before the start.
    pub(super) fn add(&mut self, key: &[u8]) {
        self.known.add(key);
        if let Some(next) = &mut self.next {
            next.add(key);
        }
    }

    /// All rows from before the start have been added.
    pub(super) fn complete(&mut self) {
        self.complete = true;
    }

    /// Whether most of what is known here has been forgotten by the table, which has `rows`: then the rows
    /// are worth reading again.
    pub(super) fn is_stale(&self, rows: u64) -> bool {
        let rows = usize::try_from(rows).unwrap_or(usize::MAX);
        self.complete && self.known.keys > rows.saturating_mul(2).saturating_add(4 * FIRST_LAYER)
    }

    /// Begins anew: rows that are added from now on, and those given to [`Self::renew`].
    pub(super) fn begin_renewal(&mut self) {
        self.next = Some(Filter::default());
    }

    /// Rows that the table has.
    pub(super) fn renew(&mut self, keys: &[bytes::Bytes]) {
        if let Some(next) = &mut self.next {
            keys.iter().for_each(|key| next.add(key));
        }
    }

    /// All rows of the table have been given, or (`whole` is false) could not be read.
    pub(super) fn end_renewal(&mut self, whole: bool) {
        if let Some(next) = self.next.take().filter(|_| whole) {
            self.known = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&n.to_be_bytes())
    }

    #[test]
    fn no_row_is_ever_denied_and_few_are_claimed_that_are_not_there() {
        let mut requests = Requests::of_nothing();
        let most = u32::try_from(limits::REQUESTS).unwrap();
        assert!(requests.lacks(&key(0)));
        (0..most).for_each(|n| requests.add(&key(n)));
        assert!((0..most).all(|n| !requests.lacks(&key(n))));
        let claimed = (most..2 * most).filter(|n| !requests.lacks(&key(*n))).count();
        assert!(claimed < most as usize / 1_000, "{claimed} of {most}");
        assert!(!requests.is_stale(limits::REQUESTS) && requests.is_stale(limits::REQUESTS / 4));
    }

    #[test]
    fn before_the_stored_rows_are_known_nothing_is_denied() {
        let mut requests = Requests::default();
        requests.add(&key(1));
        assert!(!requests.lacks(&key(2)), "it may be a row from before the start");
        requests.complete();
        assert!(requests.lacks(&key(2)) && !requests.lacks(&key(1)));
    }

    #[test]
    fn a_renewal_forgets_what_the_table_has_forgotten_and_nothing_that_came_meanwhile() {
        let mut requests = Requests::of_nothing();
        (0..10_000).for_each(|n| requests.add(&key(n)));
        requests.begin_renewal();
        requests.renew(&[key(1)]);
        requests.add(&key(20_000));
        assert!(!requests.lacks(&key(9_999)), "not before it is whole");
        requests.end_renewal(true);
        assert!(!requests.lacks(&key(1)) && !requests.lacks(&key(20_000)));
        assert!((2..10_000).filter(|n| requests.lacks(&key(*n))).count() > 9_000);
        requests.begin_renewal();
        requests.end_renewal(false);
        assert!(!requests.lacks(&key(1)), "what could not be read changes nothing");
    }
}
