//! Durations and sizes as people write them: always with a unit.

use std::time::Duration;

use kv_types::ReplicaCount;
use kv_types::limits::{MAX_DELETION_GRACE, MAX_VALUE_BYTES, MIN_DELETION_GRACE};

/// Longest time that can be said: nothing here lasts longer.
const LONGEST: Duration = Duration::from_secs(24 * 3_600);

/// Shortest deadline, milliseconds: a client sends nothing when less than half of it is left.
const SHORTEST_TIMEOUT_MS: u128 = 2 * kv_client::limits::MIN_ATTEMPT.as_millis();

/// The deadline of an operation.
pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(timeout) if timeout.as_millis() < SHORTEST_TIMEOUT_MS || timeout > LONGEST => Err(format!(
            "a deadline is {SHORTEST_TIMEOUT_MS}ms to 24h: nothing is sent that cannot be answered in time"
        )),
        // It says what a duration looks like.
        _ => duration(text),
    }
}

/// `5s`, `200ms`, `1m 30s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("it must be longer than 0".into()),
        Ok(duration) if duration > LONGEST => Err("it must be at most 24h".into()),
        Ok(duration) => Ok(duration),
        Err(_) if text.parse::<f64>().is_ok() => {
            Err(format!("it needs a unit, as in `{text}s` or `{text}ms`"))
        }
        Err(humantime::DurationError::UnknownUnit { unit, .. }) if !unit.is_empty() => {
            Err(format!("`{unit}` is not a unit of time: {TIMES}"))
        }
        Err(_) => Err(format!("a duration is a number with a unit, as in `5s` or `200ms`: {TIMES}")),
    }
}

/// The units of a duration.
const TIMES: &str = "ns, us, ms, s, m, h or days";

/// How long a deletion can be undone: `1h`, `7days`.
pub(crate) fn grace(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(grace) if kv_types::deletion_grace(Some(grace)).is_err() => {
            let (least, most) = (humantime::format_duration(MIN_DELETION_GRACE), MAX_DELETION_GRACE);
            let (days, hours) = (most.as_secs() / 86_400, most.as_secs() / 3_600);
            Err(format!("a grace is {least} to {days} days ({hours}h); to delete at once, say --now instead"))
        }
        Ok(grace) => Ok(grace),
        // It says what a duration looks like.
        Err(_) => duration(text),
    }
}

/// A moment that is given in milliseconds since 1970, in UTC.
pub(crate) fn moment(ms: u64) -> String {
    /// The last one that has four digits of a year.
    const LAST_MS: u64 = 253_402_300_799_000;
    let since = Duration::from_millis(ms.min(LAST_MS));
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}

/// How long ago something was, of milliseconds: `40 ms`, `12.1 s`.
pub(crate) fn ago(ms: u64) -> String {
    if ms < 1_000 { format!("{ms} ms") } else { format!("{}.{} s", ms / 1_000, ms % 1_000 / 100) }
}

/// `100B`, `4KiB`, `1MiB`, `1MB`.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: usize =
        number.parse().map_err(|_| "a size is a number with a unit, as in `100B` or `4KiB`")?;
    let scale = match unit.trim() {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "" => return Err(format!("it needs a unit, as in `{text}B` or `{text}KiB`")),
        other => {
            return Err(format!(
                "`{other}` is not a unit of a size: B, kB (1000 bytes), MB, KiB (1024 bytes) or MiB"
            ));
        }
    };
    number.checked_mul(scale).ok_or_else(|| "that is too large".into())
}

/// How large a value is: no larger than a value may be.
pub(crate) fn value_size(text: &str) -> Result<usize, String> {
    match size(text)? {
        bytes if bytes > MAX_VALUE_BYTES => Err(format!(
            "a value has at most {MAX_VALUE_BYTES} bytes ({}MiB): nothing was sent",
            MAX_VALUE_BYTES >> 20
        )),
        bytes => Ok(bytes),
    }
}

/// The least that a link may carry in a second, bytes: with less a probe of it takes longer than anyone
/// waits.
const SLOWEST: usize = 100;

/// How much a narrow link carries in a second: `4kB`.
pub(crate) fn per_second(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes < SLOWEST => Err(format!(
            "with less than {SLOWEST}B a second not even a heartbeat comes through in time; to stop all bytes, \
             cut the link: kvctl fault partition, or isolate"
        )),
        bytes => u64::try_from(bytes).map_err(|_| "that is too large".into()),
    }
}

/// Operations a second: `500`, `0.5`.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=1e7).contains(&rate) => Ok(rate),
        Ok(_) => Err("a rate is 0.001 to 10000000 operations a second".into()),
        Err(_) => Err("a rate is a number of operations a second, as in `500`".into()),
    }
}

/// `1`, `quorum`, `all`.
pub(crate) fn replica_count(text: &str) -> Result<ReplicaCount, String> {
    match text {
        "quorum" => Ok(ReplicaCount::Quorum),
        "all" => Ok(ReplicaCount::All),
        number => match number.parse() {
            Ok(count) if count > 0 => Ok(ReplicaCount::Number(count)),
            _ => Err("use a number from 1, `quorum` or `all`".into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graces_are_durations_within_their_bounds() {
        assert_eq!(grace("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(grace("30days"), Ok(Duration::from_secs(30 * 24 * 3_600)));
        let bounds = "1s to 30 days (720h); to delete at once, say --now";
        for (beyond, says) in [("0s", bounds), ("999ms", bounds), ("31d", bounds), ("5", "needs a unit")] {
            let refused = grace(beyond).unwrap_err();
            assert!(refused.contains(says), "{beyond}: {refused}");
        }
    }

    #[test]
    fn deadlines_are_durations_within_their_bounds() {
        assert_eq!(timeout("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(timeout("24h"), Ok(LONGEST));
        for (beyond, says) in
            [("1us", "10ms to 24h"), ("9ms", "10ms"), ("0s", "10ms"), ("25h", "24h"), ("5", "needs a unit")]
        {
            let refused = timeout(beyond).unwrap_err();
            assert!(refused.contains(says), "{beyond}: {refused}");
        }
    }

    #[test]
    fn moments_are_said_in_utc() {
        assert_eq!(moment(1_767_225_600_123), "2026-01-01T00:00:00Z");
        assert_eq!(moment(u64::MAX), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn rates_are_numbers_of_operations() {
        assert_eq!((rate("500"), rate("0.5")), (Ok(500.0), Ok(0.5)));
        for wrong in ["", "0", "-1", "NaN", "inf", "fast", "1e9"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_need_units() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(duration("5").unwrap_err().contains("`5s`"));
        for wrong in ["", "s", "-1s", "0s", "5 parsecs"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        // All that could be typed instead is said, and can be.
        let said = duration("5 parsecs").unwrap_err();
        assert_eq!(said, "`parsecs` is not a unit of time: ns, us, ms, s, m, h or days");
        for unit in ["ns", "us", "ms", "s", "m", "h"] {
            assert!(duration(&format!("5{unit}")).is_ok(), "{unit}");
        }
        assert_eq!(grace("2days"), Ok(Duration::from_secs(2 * 24 * 3_600)));
    }

    #[test]
    fn sizes_need_units() {
        assert_eq!(size("100B"), Ok(100));
        assert_eq!(size("4KiB"), Ok(4_096));
        assert_eq!(size("1 MiB"), Ok(1 << 20));
        assert_eq!(size("2kB"), Ok(2_000));
        assert!(size("100").unwrap_err().contains("`100B`"));
        let said = size("5XB").unwrap_err();
        assert_eq!(said, "`XB` is not a unit of a size: B, kB (1000 bytes), MB, KiB (1024 bytes) or MiB");
        assert_eq!(per_second("5XB").unwrap_err(), said);
        for unit in ["B", "kB", "MB", "KiB", "MiB"] {
            assert!(size(&format!("5{unit}")).is_ok(), "{unit}");
        }
        for wrong in ["", "B", "-1B", "1GiBi", "99999999999999999999B", "18446744073709551615MiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_value_is_no_larger_than_it_may_be() {
        assert_eq!((value_size("100B"), value_size("1MiB")), (Ok(100), Ok(MAX_VALUE_BYTES)));
        assert!(value_size("2MB").unwrap_err().contains("at most 1048576 bytes (1MiB)"));
        assert!(value_size("100").unwrap_err().contains("`100B`"));
    }

    #[test]
    fn what_a_link_carries_has_a_unit_and_a_least() {
        assert_eq!((per_second("4kB"), per_second("100B")), (Ok(4_000), Ok(100)));
        let bounds =
            [("4000", "needs a unit, as in `4000B`"), ("10", "needs a unit"), ("x", "a number with a unit")];
        for (wrong, says) in bounds.into_iter().chain([("99B", "kvctl fault partition"), ("0B", "100B")]) {
            let refused = per_second(wrong).unwrap_err();
            assert!(refused.contains(says), "{wrong}: {refused}");
        }
    }

    #[test]
    fn replica_counts_are_numbers_or_names() {
        assert_eq!(replica_count("2"), Ok(ReplicaCount::Number(2)));
        assert_eq!(replica_count("quorum"), Ok(ReplicaCount::Quorum));
        assert_eq!(replica_count("all"), Ok(ReplicaCount::All));
        for wrong in ["0", "-1", "some", "256"] {
            assert!(replica_count(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn network_partitions_are_groups_divided_by_a_slash() {
        use kv_types::NodeId;
        let groups = kv_lab::parse_groups("n1,n2 / n3,n4,n5").unwrap();
        assert_eq!(groups, [[1, 2].map(NodeId).to_vec(), [3, 4, 5].map(NodeId).to_vec()]);
        assert!(kv_lab::parse_groups("n1,x / n2").is_err());
    }

    #[test]
    fn ages_are_readable() {
        assert_eq!((ago(40), ago(12_140)), ("40 ms".to_owned(), "12.1 s".to_owned()));
    }
}
