//! When the leadership of a group may be moved on request. Each move interrupts the group for a moment, so
//! there is one at a time and a pause after it, which the new leader keeps too: a loop of requests does not
//! take a group out of service.

use tokio::time::Instant;

use crate::limits::TRANSFER_PAUSE;

/// Why the leadership is not moved now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TooSoon {
    /// It is being moved.
    UnderWay,
    /// It was moved less than a pause ago; so many milliseconds are left.
    Pause { left_ms: u32 },
}

/// The moves of one group, as far as this node took part.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    under_way: bool,
    last: Option<Instant>,
}

impl Transfers {
    /// A move begins, or must not yet.
    pub(crate) fn begin(&mut self, now: Instant) -> Result<(), TooSoon> {
        if self.under_way {
            return Err(TooSoon::UnderWay);
        }
        if let Some(last) = self.last {
            let left = TRANSFER_PAUSE.saturating_sub(now.saturating_duration_since(last));
            if !left.is_zero() {
                return Err(TooSoon::Pause {
                    left_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1),
                });
            }
        }
        self.under_way = true;
        Ok(())
    }

    /// The move that began has ended, with or without success.
    pub(crate) fn end(&mut self, now: Instant) {
        self.under_way = false;
        self.last = Some(now);
    }

    /// This node was told to take the leadership over.
    pub(crate) fn ordered(&mut self, now: Instant) {
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_at_a_time_and_a_pause_after_each() {
        let start = Instant::now();
        let mut transfers = Transfers::default();
        assert_eq!(transfers.begin(start), Ok(()));
        assert_eq!(transfers.begin(start), Err(TooSoon::UnderWay));
        transfers.end(start);
        let pause = u32::try_from(TRANSFER_PAUSE.as_millis()).unwrap();
        assert_eq!(transfers.begin(start), Err(TooSoon::Pause { left_ms: pause }));
        let almost = start + TRANSFER_PAUSE - Duration::from_millis(1);
        assert_eq!(transfers.begin(almost), Err(TooSoon::Pause { left_ms: 1 }));
        assert_eq!(transfers.begin(start + TRANSFER_PAUSE), Ok(()));
    }

    #[test]
    fn who_was_told_to_lead_keeps_the_pause() {
        let start = Instant::now();
        let mut transfers = Transfers::default();
        transfers.ordered(start);
        assert!(matches!(transfers.begin(start), Err(TooSoon::Pause { .. })));
        assert_eq!(transfers.begin(start + TRANSFER_PAUSE), Ok(()));
    }
}
