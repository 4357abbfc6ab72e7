//! A wall clock that jumps and drifts when it is told to. Only wall time lies: durations and deadlines come
//! from the monotonic clock, which no operator can set.

use std::sync::{Arc, Mutex};

use kv_env::{Clock, SystemClock};
use serde::{Deserialize, Serialize};

use super::lock;

/// What is wrong with the clock now.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// How far it is ahead of the true time, milliseconds; below zero when behind.
    pub offset_ms: i64,
    /// How many of its seconds pass in a true one.
    pub rate: f64,
}

#[derive(Debug, Clone, Copy)]
struct Course {
    /// True time at which this course was set, and what the clock showed then.
    since_ms: u64,
    shown_ms: u64,
    rate: f64,
}

impl Course {
    fn at(&self, true_ms: u64) -> u64 {
        let passed = true_ms.saturating_sub(self.since_ms) as f64 * self.rate;
        // The rate is between 0 and 1000, so this is neither negative nor near the end of the range.
        self.shown_ms.saturating_add(passed as u64)
    }
}

/// The clock of a faulty node. Clones share it.
#[derive(Clone)]
pub struct FaultyClock {
    truth: Arc<dyn Clock>,
    course: Arc<Mutex<Course>>,
}

impl std::fmt::Debug for FaultyClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FaultyClock").field(&self.status()).finish()
    }
}

impl Default for FaultyClock {
    fn default() -> Self {
        Self::over(Arc::new(SystemClock))
    }
}

impl FaultyClock {
    /// Fastest that it may run.
    pub const MAX_RATE: f64 = 1000.0;

    /// A clock that still shows what `truth` says.
    pub fn over(truth: Arc<dyn Clock>) -> Self {
        let now = truth.wall_ms();
        Self { truth, course: Arc::new(Mutex::new(Course { since_ms: now, shown_ms: now, rate: 1.0 })) }
    }

    /// Sets how far it is ahead and how fast it runs from now on; what is not given stays as it is.
    pub fn set(&self, offset_ms: Option<i64>, rate: Option<f64>) -> Result<ClockStatus, String> {
        if let Some(rate) = rate
            && !(0.0..=Self::MAX_RATE).contains(&rate)
        {
            return Err(format!("a rate is between 0 and {}, not {rate}", Self::MAX_RATE));
        }
        {
            let now = self.truth.wall_ms();
            let mut course = lock(&self.course);
            let shown_ms = match offset_ms {
                Some(offset) => now.saturating_add_signed(offset),
                None => course.at(now),
            };
            *course = Course { since_ms: now, shown_ms, rate: rate.unwrap_or(course.rate) };
        }
        Ok(self.status())
    }

    /// What is wrong now.
    pub fn status(&self) -> ClockStatus {
        let now = self.truth.wall_ms();
        let course = *lock(&self.course);
        let shown = course.at(now);
        let offset_ms = i64::try_from(i128::from(shown) - i128::from(now)).unwrap_or(i64::MAX);
        ClockStatus { offset_ms, rate: course.rate }
    }
}

impl Clock for FaultyClock {
    fn wall_ms(&self) -> u64 {
        lock(&self.course).at(self.truth.wall_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn wall_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn it_jumps_both_ways_drifts_without_a_jump_and_comes_back() {
        let hand = Arc::new(Hand(AtomicU64::new(1_000_000)));
        let clock = FaultyClock::over(hand.clone());
        let after = |ms| {
            hand.0.fetch_add(ms, Ordering::Relaxed);
            clock.wall_ms()
        };
        assert_eq!(after(5), 1_000_005);
        clock.set(Some(3_600_000), None).unwrap();
        assert_eq!(after(5), 4_600_010);
        assert_eq!(clock.status(), ClockStatus { offset_ms: 3_600_000, rate: 1.0 });
        clock.set(None, Some(2.0)).unwrap();
        assert_eq!(after(0), 4_600_010);
        assert_eq!(after(100), 4_600_210);
        assert_eq!(clock.status().offset_ms, 3_600_100);
        clock.set(Some(-500_000), Some(0.0)).unwrap();
        assert_eq!((after(0), after(1_000)), (500_110, 500_110));
        clock.set(Some(0), Some(1.0)).unwrap();
        assert_eq!(clock.status(), ClockStatus { offset_ms: 0, rate: 1.0 });
        for rate in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(clock.set(None, Some(rate)).is_err());
        }
    }
}
