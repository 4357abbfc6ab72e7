//! How long something takes, counted as it happens. Cheap enough to be always on: two looks at the clock and
//! one atomic addition for each time, and 3 KiB for each thing that is measured.

use std::time::Duration;

use histogram::{AtomicHistogram, Quantile};

/// Each power of two has 16 buckets, so a figure is at most 7 % too high, or 1 µs.
const GROUPING_POWER: u8 = 4;
/// Times above 2^26 µs, 67 s, count as that: no deadline is longer.
const MAX_VALUE_POWER: u8 = 26;

/// How long something took, each time since the start of the node.
#[derive(Debug)]
pub struct Latency(AtomicHistogram);

/// What a [`Latency`] has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LatencySummary {
    /// How often.
    pub count: u64,
    /// Half of the times took no longer.
    pub p50: Duration,
    /// Of a hundred times 99 took no longer.
    pub p99: Duration,
    /// Of a thousand times 999 took no longer.
    pub p999: Duration,
    /// None took longer.
    pub max: Duration,
}

impl Default for Latency {
    fn default() -> Self {
        let Ok(histogram) = AtomicHistogram::new(GROUPING_POWER, MAX_VALUE_POWER) else {
            unreachable!("the constants above make a histogram")
        };
        Self(histogram)
    }
}

impl Latency {
    /// Counts one time.
    pub fn record(&self, took: Duration) {
        let most = (1_u64 << MAX_VALUE_POWER) - 1;
        let micros = u64::try_from(took.as_nanos().div_ceil(1_000)).unwrap_or(most).min(most);
        assert!(self.0.increment(micros).is_ok(), "{micros} µs are within the histogram");
    }

    /// What was counted so far.
    pub fn summary(&self) -> LatencySummary {
        let [half, most, nearly_all] = [0.5, 0.99, 0.999];
        let Ok(Some(found)) = self.0.load().quantiles(&[half, most, nearly_all]) else {
            return LatencySummary::default();
        };
        let at = |quantile: f64| {
            let bucket = Quantile::new(quantile).ok().and_then(|quantile| found.get(&quantile));
            Duration::from_micros(bucket.map_or(0, |bucket| bucket.end()))
        };
        LatencySummary {
            count: u64::try_from(found.total_count()).unwrap_or(u64::MAX),
            p50: at(half),
            p99: at(most),
            p999: at(nearly_all),
            max: Duration::from_micros(found.max().end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_counted_is_nothing() {
        assert_eq!(Latency::default().summary(), LatencySummary::default());
    }

    #[test]
    fn figures_are_at_most_seven_percent_too_high_and_never_too_low() {
        let latency = Latency::default();
        for micros in 1..=10_000 {
            latency.record(Duration::from_micros(micros));
        }
        let summary = latency.summary();
        assert_eq!(summary.count, 10_000);
        let figures =
            [(summary.p50, 5_000), (summary.p99, 9_900), (summary.p999, 9_990), (summary.max, 10_000)];
        for (found, exact) in figures {
            let found = found.as_micros();
            assert!(found >= exact && found <= exact * 107 / 100, "{found} for {exact}");
        }
    }

    #[test]
    fn the_shortest_and_the_longest_have_a_place() {
        let latency = Latency::default();
        latency.record(Duration::ZERO);
        latency.record(Duration::MAX);
        let summary = latency.summary();
        assert_eq!((summary.count, summary.p50), (2, Duration::ZERO));
        assert!(summary.max >= Duration::from_secs(67) && summary.max < Duration::from_secs(68));
    }
}
