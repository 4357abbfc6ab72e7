//! How long a message was held up on its way. The clocks of two nodes cannot be compared, but the time from
//! sending to arrival can be compared with that of messages before: what a message took longer than the
//! quickest one was spent on the way. A deadline goes on meanwhile; without that a request which a cut held
//! back would be begun when the network heals, long after its sender told the client that its fate is open.

use std::time::Duration;

use tokio::time::Instant;

/// The quickest message counts for at least so long, and at most twice as long while messages come. It must
/// not count forever: the clocks of two machines differ in speed, by some milliseconds in that time.
const WINDOW: Duration = Duration::from_secs(60);

/// What one stream shows of its delays. A value.
#[derive(Debug)]
pub(crate) struct Delays {
    began: Instant,
    /// Of the quickest message of this window and of the one before: the time of arrival less that of
    /// sending, milliseconds of two clocks.
    least: Option<i64>,
    before: Option<i64>,
    window: Instant,
}

impl Delays {
    pub(crate) fn new(now: Instant) -> Self {
        Self { began: now, least: None, before: None, window: now }
    }

    /// How much longer than the quickest one a message took that was sent at this time of the sender's clock,
    /// milliseconds, and arrives now. The first one is taken for quick.
    pub(crate) fn of(&mut self, sent_ms: u64, now: Instant) -> Duration {
        let arrived = i64::try_from(now.duration_since(self.began).as_millis()).unwrap_or(i64::MAX);
        let offset = arrived.saturating_sub(i64::try_from(sent_ms).unwrap_or(i64::MAX));
        if now.duration_since(self.window) >= WINDOW {
            self.before = self.least.take().or(self.before);
            self.window = now;
        }
        let least = self.least.map_or(offset, |least| least.min(offset));
        self.least = Some(least);
        let quickest = self.before.map_or(least, |before| before.min(least));
        Duration::from_millis(u64::try_from(offset.saturating_sub(quickest)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_took_longer_than_the_quickest_was_held_up() {
        let began = Instant::now();
        let mut delays = Delays::new(began);
        // The sender's clock is far ahead.
        let sent = |ms: u64| 1_000_000 + ms;
        assert_eq!(delays.of(sent(0), began + 30 * MS), Duration::ZERO, "the first one");
        assert_eq!(delays.of(sent(100), began + 110 * MS), Duration::ZERO, "a quicker one");
        assert_eq!(delays.of(sent(200), began + 230 * MS), 20 * MS);
        assert_eq!(delays.of(sent(300), began + 5_310 * MS), 5_000 * MS);
        assert_eq!(delays.of(sent(5_400), began + 5_410 * MS), Duration::ZERO);
        // Nonsense is no panic.
        assert_eq!(delays.of(u64::MAX, began + 5_500 * MS), Duration::ZERO);
        let _ = delays.of(0, began + 5_500 * MS);
    }

    #[test]
    fn a_long_cut_hides_no_delay() {
        let began = Instant::now();
        let mut delays = Delays::new(began);
        assert_eq!(delays.of(0, began), Duration::ZERO);
        // Held back for an hour, and so is what was sent behind it.
        let hour = Duration::from_secs(3_600);
        assert_eq!(delays.of(1_000, began + hour), hour - Duration::from_secs(1));
        assert_eq!(delays.of(2_000, began + hour), hour - Duration::from_secs(2));
    }

    /// One clock is faster by five parts in ten thousand, which no machine is.
    #[test]
    fn clocks_of_different_speed_are_no_delay() {
        let began = Instant::now();
        let mut delays = Delays::new(began);
        let longest = (0..86_400_u64).map(|second| {
            let arrived = Duration::from_millis(second * 1_000 + second / 2);
            delays.of(second * 1_000, began + arrived)
        });
        let longest = longest.max().unwrap();
        assert!(longest <= 61 * MS, "{longest:?}");
    }
}
