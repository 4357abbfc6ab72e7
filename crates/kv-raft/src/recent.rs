//! Which rows of a group were written lately. A read takes what the disk has without keeping entries from
//! being applied; here it learns whether what it took still stands when it comes back.

use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use crate::config::LogId;
use crate::limits::RECENT_SLOTS;
use crate::tables::Table;

/// The last entry that wrote a row, for each of so many shares of all rows. Rows that share a slot count as
/// written together: a false *yes* costs a read another attempt, and there is no false *no*.
///
/// Written and asked under the lock of the applied state only.
#[derive(Debug)]
pub(crate) struct RecentWrites {
    /// The index after the entry's.
    slots: Box<[AtomicU64]>,
}

fn next(entry: Option<&LogId>) -> u64 {
    entry.map_or(0, |entry| entry.index + 1)
}

impl Default for RecentWrites {
    fn default() -> Self {
        Self { slots: (0..RECENT_SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl RecentWrites {
    fn slot(&self, table: Table, key: &[u8]) -> Option<&AtomicU64> {
        let hash = xxh3_64(key).wrapping_add(u64::from(table.id().get()));
        self.slots.get(usize::try_from(hash % RECENT_SLOTS).ok()?)
    }

    /// A step up to this entry writes the row.
    pub(crate) fn wrote(&self, table: Table, key: &[u8], entry: Option<&LogId>) {
        if let Some(slot) = self.slot(table, key) {
            slot.store(next(entry), Ordering::Relaxed);
        }
    }

    /// Whether an entry after this one may have written the row.
    pub(crate) fn since(&self, table: Table, key: &[u8], entry: Option<&LogId>) -> bool {
        self.slot(table, key).is_none_or(|slot| slot.load(Ordering::Relaxed) > next(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::log_id;

    #[test]
    fn what_was_written_after_a_point_is_told_from_what_was_not() {
        let recent = RecentWrites::default();
        let at = |index| Some(log_id(1, 1, index));
        assert!(!recent.since(Table::Data, b"a", None));
        recent.wrote(Table::Data, b"a", at(0).as_ref());
        assert!(recent.since(Table::Data, b"a", None));
        assert!(!recent.since(Table::Data, b"a", at(0).as_ref()));
        recent.wrote(Table::Data, b"a", at(7).as_ref());
        assert!(recent.since(Table::Data, b"a", at(6).as_ref()));
        assert!(!recent.since(Table::Data, b"a", at(7).as_ref()));
        assert!(!recent.since(Table::Meta, b"a", None), "of another table");
        assert!(!recent.since(Table::Data, b"b", None), "another key");
    }
}
