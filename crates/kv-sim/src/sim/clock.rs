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
    /// How far it was from true time, milliseconds, and until when: one item for each time that it was set.
    strayed: Vec<(Duration, u64)>,
}

impl Skew {
    fn offset_at(&self, now: Duration) -> i64 {
        let elapsed = i64::try_from(now.saturating_sub(self.since).as_micros()).unwrap_or(i64::MAX);
        self.offset_ms + elapsed.saturating_mul(self.gain_ppm) / 1_000_000_000
    }
}

impl Skew {
    /// Remembers how far it was from true time until now.
    fn note(&mut self, now: Duration) {
        let far = self.offset_at(now).unsigned_abs();
        self.strayed.push((now, far));
    }
}

impl SimClock {
    /// Sets it so far forward (or back) from where it stands.
    pub fn jump(&self, by_ms: i64) {
        let now = now();
        let mut skew = self.skew();
        skew.note(now);
        skew.offset_ms = skew.offset_at(now) + by_ms;
        skew.since = now;
    }

    /// Whether it was so far from true time at any moment since then.
    pub fn has_strayed(&self, by: Duration, since: Duration) -> bool {
        let skew = self.skew();
        let far = |ms: u64| u128::from(ms) >= by.as_millis();
        far(skew.offset_at(now()).unsigned_abs())
            || skew.strayed.iter().any(|(until, ms)| *until >= since && far(*ms))
    }

    /// Lets it gain so many millionths from now on.
    pub fn drift(&self, gain_ppm: i64) {
        let now = now();
        let mut skew = self.skew();
        skew.note(now);
        skew.offset_ms = skew.offset_at(now);
        (skew.since, skew.gain_ppm) = (now, gain_ppm);
    }

    /// True time again.
    pub fn reset(&self) {
        let now = now();
        let mut skew = self.skew();
        skew.note(now);
        let strayed = std::mem::take(&mut skew.strayed);
        *skew = Skew { strayed, ..Skew::default() };
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
        let since = Duration::from_secs(10);
        let mut skew = Skew { offset_ms: -500, gain_ppm: 100_000, since, strayed: Vec::new() };
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
        let (hour, second) = (Duration::from_secs(3_600), Duration::from_secs(1));
        let has_strayed = |by, since| clock.has_strayed(by, since);
        assert!(has_strayed(hour, now()) && !has_strayed(2 * hour, now()), "and that is not forgotten");
        assert!(!has_strayed(hour, now() + second), "and is over");
        clock.jump(3_600_000);
        assert!(has_strayed(hour, now() + second), "it is wrong still");
    }
}
