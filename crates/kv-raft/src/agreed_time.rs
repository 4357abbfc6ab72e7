//! What time it is for a group: by the clocks of its voters, and never by one of them. A clock that jumps, or
//! was never set, ends no grace early while those of a majority are right.

/// Bounds of the time. With all clocks heard they are one: the median.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AgreedTime {
    /// The clocks of a majority have reached this, milliseconds since 1970.
    pub(crate) reached_ms: u64,
    /// The clocks of a majority have not gone beyond this.
    pub(crate) latest_ms: u64,
}

impl AgreedTime {
    /// By the clocks of those that were heard, of so many voters; none without a majority.
    pub(crate) fn of(mut clocks: Vec<u64>, voters: usize) -> Option<Self> {
        clocks.sort_unstable();
        let majority = voters / 2 + 1;
        let reached_ms = *clocks.get(clocks.len().checked_sub(majority)?)?;
        let latest_ms = *clocks.get(majority - 1)?;
        Some(Self { reached_ms, latest_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_time_is_that_of_a_majority() {
        let of = |clocks: &[u64], voters| {
            AgreedTime::of(clocks.to_vec(), voters).map(|time| (time.reached_ms, time.latest_ms))
        };
        assert_eq!(of(&[7], 1), Some((7, 7)));
        assert_eq!(of(&[9, 7, 8], 3), Some((8, 8)));
        assert_eq!(of(&[9, 7], 3), Some((7, 9)));
        assert_eq!(of(&[9], 3), None);
        assert_eq!(of(&[5, 1, 4, 2, 3], 5), Some((3, 3)));
        assert_eq!(of(&[5, 1, 4], 5), Some((1, 5)));
        assert_eq!(of(&[], 1), None);
    }

    proptest! {
        /// Whichever minority is wrong, and a majority is heard: what is reached is not later than a clock
        /// that is right, and the latest is not earlier than one.
        #[test]
        fn a_minority_of_wrong_clocks_ends_nothing_early(
            voters in 1..=5_usize,
            wrong in proptest::collection::vec(any::<u64>(), 0..3),
            unheard in 0..3_usize,
        ) {
            const RIGHT: u64 = 1_700_000_000_000;
            let minority = voters - (voters / 2 + 1);
            let wrong = wrong.into_iter().take(minority);
            let mut clocks: Vec<u64> = wrong.collect();
            clocks.resize(voters, RIGHT);
            // Those that are right may be the ones that are not heard.
            clocks.truncate(voters - unheard.min(minority));
            let time = AgreedTime::of(clocks, voters).unwrap();
            prop_assert!(time.reached_ms <= RIGHT && RIGHT <= time.latest_ms);
        }
    }
}
