//! When a snapshot is due, and how fast it is written: decisions without clock or disk.

use std::time::Duration;

use crate::limits::{SNAPSHOT_BURST_BYTES, SNAPSHOT_LOG_BYTES};

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

    /// From now on so many bytes per second.
    pub(crate) fn change(&mut self, per_second: u64) {
        self.per_second = per_second.max(1);
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

/// What decides how fast a snapshot is written: the log cannot be trimmed before it is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Haste {
    /// Bytes of the snapshot that are still to be written, about.
    pub(crate) left: u64,
    /// Bytes that the log may still grow until the snapshot should be done.
    pub(crate) room: u64,
    /// Bytes that the log has grown meanwhile, and in what time.
    pub(crate) written: u64,
    pub(crate) elapsed: Duration,
}

impl Haste {
    /// The rate that has the snapshot done when the room is used up, if the log grows on as it did; at least
    /// `base`, which the log's syncs hardly feel.
    pub(crate) fn per_second(&self, base: u64) -> u64 {
        let nanos = self.elapsed.as_nanos().max(1);
        let room = u128::from(self.room).max(1);
        // left / (room / (written / seconds))
        let needed =
            u128::from(self.left).saturating_mul(u128::from(self.written)).saturating_mul(1_000_000_000);
        let needed = needed / room.saturating_mul(nanos);
        base.max(u64::try_from(needed).unwrap_or(u64::MAX))
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
    fn a_snapshot_is_written_as_fast_as_the_log_fills_up() {
        const MIB: u64 = 1 << 20;
        let second = Duration::from_secs(1);
        let calm = Haste { left: 1_000 * MIB, room: 1_000 * MIB, written: 10 * MIB, elapsed: second };
        assert_eq!(calm.per_second(64 * MIB), 64 * MIB);
        // 4 GiB are left, and 512 MiB last 5 s at 100 MiB a second.
        let busy = Haste { left: 4_096 * MIB, room: 512 * MIB, written: 1_000 * MIB, elapsed: 10 * second };
        assert_eq!(busy.per_second(64 * MIB), 800 * MIB);
        assert_eq!(Haste { written: 0, ..busy }.per_second(64 * MIB), 64 * MIB);
        // Whatever the load, the snapshot is done in time.
        for load in [1, 10, 50, 100, 200] {
            let (mut left, mut room, mut written, mut ticks) = (4_096 * MIB, 512 * MIB, 0, 0_u32);
            while left > 0 {
                ticks += 1;
                written += load * MIB / 10;
                room = room.saturating_sub(load * MIB / 10);
                let haste = Haste { left, room, written, elapsed: second / 10 * ticks };
                left = left.saturating_sub(haste.per_second(64 * MIB) / 10);
            }
            assert!(written <= 544 * MIB, "{load} MiB a second: {written}");
        }
        let most = Haste { left: u64::MAX, room: 0, written: u64::MAX, elapsed: Duration::ZERO };
        assert_eq!(most.per_second(1), u64::MAX);
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
