//! How much of the log goes to a peer at once, learned from how long appends take: so much that one takes
//! about half a second at most, and no less than one entry. On a slow link large appends hold up what comes
//! behind them; on a fast one small ones waste round trips. A value: it is told what happened and has no
//! clock.

use std::time::Duration;

use crate::limits::{APPEND_BYTES, APPEND_BYTES_MIN, APPEND_TARGET};

/// The size of appends to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    budget: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { budget: APPEND_BYTES }
    }
}

impl Pace {
    /// How many of the entries, given by their bytes, go into the next append: as many as fit, and at least
    /// one.
    pub(crate) fn prefix(&self, entries: impl IntoIterator<Item = usize>) -> usize {
        let mut bytes = 0usize;
        let fits = entries.into_iter().take_while(|entry| {
            bytes = bytes.saturating_add(*entry);
            bytes <= self.budget
        });
        fits.count().max(1)
    }

    /// An append of so many bytes was answered after so long.
    pub(crate) fn took(&mut self, bytes: usize, elapsed: Duration) {
        // Small ones say more about the peer's disk than about the link.
        if bytes < APPEND_BYTES_MIN {
            return;
        }
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
        let target = u64::try_from(APPEND_TARGET.as_micros()).unwrap_or(u64::MAX);
        let within = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(target) / micros;
        let within = usize::try_from(within).unwrap_or(usize::MAX);
        if within < self.budget {
            self.budget = within.max(APPEND_BYTES_MIN);
        } else if bytes >= self.budget / 2 {
            // It was the budget that kept it small: at most twice as much next time, whatever one fast answer
            // seems to say.
            self.budget = within.min(self.budget.saturating_mul(2)).min(APPEND_BYTES);
        }
    }

    /// An append was not answered although it was given time.
    pub(crate) fn stalled(&mut self) {
        self.budget = (self.budget / 2).max(APPEND_BYTES_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How long a link of `rate` bytes a second, with a disk behind it, takes for an append.
    fn over(rate: usize, bytes: usize) -> Duration {
        Duration::from_micros(bytes as u64 * 1_000_000 / rate as u64) + Duration::from_millis(5)
    }

    #[test]
    fn a_slow_link_gets_small_appends_at_once_and_a_fast_one_large_ones_again() {
        let mut pace = Pace::default();
        pace.took(1_000_000, over(800_000, 1_000_000));
        assert!((300_000..=400_000).contains(&pace.budget), "{pace:?}");
        for _ in 0..10 {
            let bytes = pace.budget;
            pace.took(bytes, over(100_000_000, bytes));
        }
        assert_eq!(pace, Pace::default());
    }

    #[test]
    fn one_entry_always_goes() {
        let mut pace = Pace::default();
        assert_eq!(pace.prefix([APPEND_BYTES * 9, 1]), 1);
        assert_eq!(pace.prefix(vec![APPEND_BYTES / 4; 9]), 4);
        (0..20).for_each(|_| pace.stalled());
        assert_eq!(pace.prefix([APPEND_BYTES_MIN + 1, 1]), 1);
        assert_eq!(pace.prefix(vec![APPEND_BYTES_MIN / 2; 9]), 2);
    }

    #[test]
    fn what_is_small_says_nothing() {
        let mut pace = Pace::default();
        pace.took(APPEND_BYTES_MIN - 1, Duration::from_secs(9));
        assert_eq!(pace, Pace::default());
    }

    proptest! {
        /// After a few full appends over a steady link one takes no longer than the target, unless it is as
        /// small as may be.
        #[test]
        fn it_settles(rate in 50_000usize..200_000_000, start in APPEND_BYTES_MIN..=APPEND_BYTES) {
            let mut pace = Pace { budget: start };
            for _ in 0..12 {
                let bytes = pace.budget;
                pace.took(bytes, over(rate, bytes));
                prop_assert!((APPEND_BYTES_MIN..=APPEND_BYTES).contains(&pace.budget));
            }
            let takes = over(rate, pace.budget);
            prop_assert!(takes <= APPEND_TARGET + Duration::from_millis(20) || pace.budget == APPEND_BYTES_MIN);
            prop_assert!(takes * 2 >= APPEND_TARGET || pace.budget == APPEND_BYTES);
        }
    }
}
