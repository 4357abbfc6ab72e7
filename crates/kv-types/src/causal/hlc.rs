//! Hybrid-logical-clock stamps: they show when a value was written and order concurrent values where a
//! namespace asks for that. Causality never rests on them. How far a stamp may run ahead is enforced where it
//! is minted; a merge takes every stamp as it is, or replicas could not converge.

use std::fmt;
use std::time::Duration;

use crate::limits::MAX_CLOCK_SKEW;

/// 48 bits of wall milliseconds since 1970 and 16 bits of counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hlc(pub u64);

impl Hlc {
    const COUNTER_BITS: u32 = 16;

    /// The first stamp of a wall time.
    pub fn at(wall_ms: u64) -> Self {
        Self(wall_ms.min(u64::MAX >> Self::COUNTER_BITS) << Self::COUNTER_BITS)
    }

    /// Wall part, milliseconds since 1970.
    pub fn wall_ms(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }

    /// A stamp not before the wall clock, and after `last`, the latest that this node minted or observed,
    /// unless that runs ahead of the clock by more than [`MAX_CLOCK_SKEW`]: then the clock was wrong and has
    /// been set right, and what it said is not followed any more. So no stamp is further ahead of the clock
    /// than the bound, and stamps of a node rise as long as its clock is not put back.
    pub fn mint(last: Self, wall_ms: u64) -> Self {
        let now = Self::at(wall_ms);
        let next = Self(last.0.saturating_add(1)).max(now);
        let ahead = Duration::from_millis(next.wall_ms().saturating_sub(wall_ms));
        if ahead > MAX_CLOCK_SKEW { now } else { next }
    }

    /// What the next stamp must follow after another node's stamp was seen. One that is too far ahead is not
    /// followed: a node with a broken clock must not take the others with it.
    pub fn observe(last: Self, seen: Self, wall_ms: u64) -> Self {
        let ahead = Duration::from_millis(seen.wall_ms().saturating_sub(wall_ms));
        if ahead >= MAX_CLOCK_SKEW { last } else { last.max(seen) }
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.wall_ms(), self.0 & ((1 << Self::COUNTER_BITS) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_rise_and_stay_near_the_wall_clock() {
        let mut last = Hlc::default();
        for wall in [1_000, 1_000, 999, 1_001, 700] {
            let next = Hlc::mint(last, wall);
            assert!(next > last && next.wall_ms() >= wall);
            last = next;
        }
        assert_eq!(Hlc::mint(Hlc::at(1_500), 1_000).wall_ms(), 1_500, "at the bound it is followed");
    }

    #[test]
    fn a_clock_that_was_set_right_is_believed() {
        let ahead = Hlc::mint(Hlc::default(), 3_600_000);
        let right = Hlc::mint(ahead, 1_000);
        assert_eq!(right, Hlc::at(1_000), "it went back by more than the bound");
        assert!(Hlc::mint(right, 1_000) > right, "and from there on stamps rise again");
        assert_eq!(Hlc::mint(Hlc::at(1_501), 1_000).wall_ms(), 1_000, "one beyond the bound");
        assert_eq!(Hlc::mint(Hlc(u64::MAX), u64::MAX).wall_ms(), Hlc(u64::MAX).wall_ms());
    }

    #[test]
    fn a_broken_clock_is_not_followed() {
        let last = Hlc::at(1_000);
        assert_eq!(Hlc::observe(last, Hlc::at(1_200), 1_000), Hlc::at(1_200));
        assert_eq!(Hlc::observe(last, Hlc::at(9_000), 1_000), last);
        assert_eq!(Hlc::mint(Hlc::observe(last, Hlc::at(u64::MAX), 1_000), 1_000).wall_ms(), 1_000);
    }
}
