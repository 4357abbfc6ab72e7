//! Wall clocks of nodes: simulated time, seen through an offset and a rate of each node's own. Clocks jump
//! and drift while the durations that a node measures stay true, as on a machine whose wall clock is set.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kv_env::Clock;

/// What the wall clocks show when the simulation begins: the first second of 2026.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// A node's wall clock. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimClock(Arc<Mutex<Skew>>);

#[derive(Debug, Default)]
struct Skew {
    /// Milliseconds ahead of true time at `since`.
    offset_ms: i64,
    /// Millionths that it gains; negative when it loses.
    gain_ppm: i64,
    /// True time of the last change.
    since: Duration,
}

impl Skew {
    fn offset_at(&self, now: Duration) -> i64 {
        let elapsed = i64::try_from(now.saturating_sub(self.since).as_micros()).unwrap_or(i64::MAX);
        self.offset_ms + elapsed.saturating_mul(self.gain_ppm) / 1_000_000_000
    }
}

impl SimClock {
    /// Sets it so far forward (or back) from where it stands.
    pub fn jump(&self, by_ms: i64) {
        let now = now();
        let mut skew = self.skew();
        skew.offset_ms = skew.offset_at(now) + by_ms;
        skew.since = now;
    }

    /// Lets it gain so many millionths from now on.
    pub fn drift(&self, gain_ppm: i64) {
        let now = now();
        let mut skew = self.skew();
        skew.offset_ms = skew.offset_at(now);
        (skew.since, skew.gain_ppm) = (now, gain_ppm);
    }

    /// True time again.
    pub fn reset(&self) {
        *self.skew() = Skew::default();
    }

    fn skew(&self) -> MutexGuard<'_, Skew> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        let now = now();
        let shown = u64::try_from(now.as_millis()).unwrap_or(0) + EPOCH_MS;
        shown.saturating_add_signed(self.skew().offset_at(now))
    }
}

fn now() -> Duration {
    super::trace::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_jumps_and_drifts_from_where_it_stands() {
        let mut skew = Skew { offset_ms: -500, gain_ppm: 100_000, since: Duration::from_secs(10) };
        assert_eq!(skew.offset_at(Duration::from_secs(10)), -500);
        assert_eq!(skew.offset_at(Duration::from_secs(20)), 500);
        skew.gain_ppm = -100_000;
        assert_eq!(skew.offset_at(Duration::from_secs(20)), -1_500);
        let clock = SimClock::default();
        clock.jump(3_600_000);
        assert_eq!(clock.wall_ms(), EPOCH_MS + 3_600_000);
        clock.jump(-3_600_001);
        assert_eq!(clock.wall_ms(), EPOCH_MS - 1);
        clock.reset();
        assert_eq!(clock.wall_ms(), EPOCH_MS);
    }
}
