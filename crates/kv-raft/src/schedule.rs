//! When a snapshot is due, and how fast it is written: decisions without clock or disk.

use std::time::Duration;

use crate::config::limits::{SNAPSHOT_BURST_BYTES, SNAPSHOT_LOG_BYTES};

/// An account of bytes per second. It says how long to wait, and lets a burst through after a rest.
#[derive(Debug, Clone)]
pub(crate) struct Rate {
    per_second: u64,
    /// When everything that was spent will have been earned, since the account was opened.
    earned_at: Duration,
}

impl Rate {
    /// So many bytes per second; 0 counts as one.
    pub(crate) fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1), earned_at: Duration::ZERO }
    }

    fn time_of(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Spends bytes at a time since the account was opened, and says how long to wait before the next.
    pub(crate) fn spend(&mut self, now: Duration, bytes: u64) -> Duration {
        self.earned_at = self.earned_at.max(now).saturating_add(self.time_of(bytes));
        self.earned_at.saturating_sub(now).saturating_sub(self.time_of(SNAPSHOT_BURST_BYTES))
    }
}

/// How much a group's log has grown, and the settings that decide whether it is enough for a snapshot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growth {
    /// Entries applied since the last snapshot.
    pub(crate) entries: u64,
    /// Their bytes, as far as this process has applied them.
    pub(crate) bytes: u64,
    /// Size of the last snapshot.
    pub(crate) state_bytes: u64,
    /// Entries that are enough, whatever their size.
    pub(crate) most_entries: u64,
}

/// Replicas are spread over so many steps, by [`slot`].
const SLOTS: u64 = 8;

/// The step of a group's replica on a node: the same at every start, and different for nodes with
/// neighbouring ids.
pub(crate) fn slot(node: u64, group: u32) -> u64 {
    node.wrapping_mul(3).wrapping_add(u64::from(group).wrapping_mul(5)) % SLOTS
}

impl Growth {
    /// Whether a snapshot is due: after half the state's size of log, 256 MiB at least, or after
    /// `most_entries`. A step later in bytes for each slot, and a step earlier in entries, so that the
    /// replicas of a group do not all write at once.
    pub(crate) fn is_due(&self, slot: u64) -> bool {
        let bytes = SNAPSHOT_LOG_BYTES.max(self.state_bytes / 2);
        let bytes = bytes.saturating_add(bytes / (2 * SLOTS) * slot);
        let entries = self.most_entries - self.most_entries / (4 * SLOTS) * slot;
        self.entries > 0 && (self.bytes >= bytes || self.entries >= entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_holds_over_any_time_and_lets_a_burst_through() {
        let mut rate = Rate::new(1 << 20);
        let mut now = Duration::from_secs(5);
        assert_eq!(rate.spend(now, SNAPSHOT_BURST_BYTES), Duration::ZERO);
        let mut spent = SNAPSHOT_BURST_BYTES;
        for bytes in [1 << 20, 3 << 20, 0, 100, 5 << 20] {
            now += rate.spend(now, bytes);
            spent += bytes;
            let over = (now - Duration::from_secs(5)).as_secs_f64() * f64::from(1 << 20);
            assert!(spent as f64 <= over + SNAPSHOT_BURST_BYTES as f64 + 1.0);
        }
        assert_eq!(spent - SNAPSHOT_BURST_BYTES, (9 << 20) + 100);
        assert!(now - Duration::from_secs(5) >= Duration::from_secs(9));
        // A rest earns a burst, not more.
        now += Duration::from_secs(3_600);
        assert_eq!(rate.spend(now, SNAPSHOT_BURST_BYTES), Duration::ZERO);
        assert_eq!(rate.spend(now, 1 << 20), Duration::from_secs(1));
        assert!(Rate::new(0).spend(now, 1 << 40) > Duration::from_secs(1 << 20));
    }

    #[test]
    fn a_snapshot_is_due_by_bytes_or_by_entries() {
        let growth = Growth { entries: 10, bytes: 0, state_bytes: 0, most_entries: 1_000 };
        assert!(!growth.is_due(0));
        assert!(!Growth { bytes: SNAPSHOT_LOG_BYTES - 1, ..growth }.is_due(0));
        assert!(Growth { bytes: SNAPSHOT_LOG_BYTES, ..growth }.is_due(0));
        let large = Growth { bytes: SNAPSHOT_LOG_BYTES, state_bytes: 4 * SNAPSHOT_LOG_BYTES, ..growth };
        assert!(!large.is_due(0) && Growth { bytes: 2 * SNAPSHOT_LOG_BYTES, ..large }.is_due(0));
        assert!(
            Growth { entries: 1_000, ..growth }.is_due(0) && !Growth { entries: 999, ..growth }.is_due(0)
        );
        assert!(!Growth { entries: 0, most_entries: 0, ..growth }.is_due(0), "nothing new");
        // Never later than the settings say in entries, and never much later in bytes.
        for slot in 0..SLOTS {
            assert!(Growth { entries: 1_000, ..growth }.is_due(slot));
            assert!(Growth { bytes: SNAPSHOT_LOG_BYTES * 3 / 2, ..growth }.is_due(slot));
        }
    }

    #[test]
    fn the_replicas_of_a_group_are_due_at_different_times() {
        for group in 0..4 {
            for first in [1, 2, 7, u64::MAX - 2] {
                let slots: Vec<u64> = (0..5).map(|n| slot(first.wrapping_add(n), group)).collect();
                let mut distinct = slots.clone();
                distinct.sort_unstable();
                distinct.dedup();
                assert_eq!(distinct.len(), slots.len(), "{slots:?}");
            }
        }
        let due = |node| {
            let slot = slot(node, 1);
            (0..).find(|n| {
                let bytes = n * (8 << 20);
                Growth { entries: 1, bytes, state_bytes: 0, most_entries: 1_000 }.is_due(slot)
            })
        };
        assert!(due(1) != due(2) && due(2) != due(3) && due(1) != due(3));
    }
}
