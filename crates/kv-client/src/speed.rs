//! How fast nodes answer, as values: which replica of a key to ask first. The ring's order of preference
//! stands unless a replica is much slower than another, so that the requests about a key mostly meet at one
//! node, and a node that is slow or silent is left after its first late answer.

use tokio::time::{Duration, Instant};

use crate::limits::{SPEED_HALF_LIFE, SPEED_OF_REFUSALS, SPEED_SLACK, SPEED_UNKNOWN};

/// How fast one node answers.
#[derive(Debug, Default)]
pub(crate) struct Speed {
    /// How long answers took lately.
    typical: Duration,
    /// When that was learnt, or last relied on.
    at: Option<Instant>,
}

impl Speed {
    /// A request was answered after so long.
    pub(crate) fn answered(&mut self, now: Instant, took: Duration) {
        self.typical = if self.at.is_some() { (self.typical + took) / 2 } else { took };
        self.at = Some(now);
    }

    /// A request failed after so long, or was given up. That makes no node look fast.
    pub(crate) fn failed(&mut self, now: Instant, took: Duration) {
        if took > self.typical().unwrap_or(SPEED_UNKNOWN) {
            self.answered(now, took);
        }
    }

    /// The node refused for what it is or sees, such as a quorum that it does not reach: another one may
    /// serve. It counts as slow, or each request about its keys would try it in vain before.
    pub(crate) fn refused(&mut self, now: Instant, took: Duration) {
        self.failed(now, took.max(SPEED_OF_REFUSALS));
    }

    /// How long its answers take, as it was when that was learnt; `None` if it was never asked.
    pub(crate) fn typical(&self) -> Option<Duration> {
        self.at.map(|_| self.typical)
    }

    /// How long an answer takes, as far as is known: what was learnt long ago counts little, so that a slow
    /// node is tried again.
    pub(crate) fn expected(&self, now: Instant) -> Duration {
        let age = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let halves = age.as_millis() / SPEED_HALF_LIFE.as_millis();
        self.typical / u32::try_from(1_u64 << halves.min(31)).unwrap_or(u32::MAX)
    }

    /// The node is asked now. Until it answers, others take it for as slow as it was: one request tries it
    /// again, not all.
    pub(crate) fn asked(&mut self, now: Instant) {
        self.at = self.at.map(|_| now);
    }
}

/// A replica, as far as its speed is known.
#[derive(Debug)]
pub(crate) struct Candidate<T> {
    pub(crate) replica: T,
    /// See [`Speed::typical`].
    pub(crate) typical: Option<Duration>,
    /// See [`Speed::expected`].
    pub(crate) expected: Duration,
}

/// The order in which to ask replicas, given in the ring's order of preference: those about as fast as the
/// fastest one, in that order, then the others, faster ones first. One that was never asked may be as fast
/// as nodes of one place are.
pub(crate) fn fastest_first<T>(replicas: Vec<Candidate<T>>) -> Vec<T> {
    let typical = |candidate: &Candidate<T>| candidate.typical.unwrap_or(SPEED_UNKNOWN);
    let best = replicas.iter().map(typical).min().unwrap_or_default();
    let limit = (best * 2).max(best + SPEED_SLACK);
    let (mut fast, mut slow): (Vec<_>, Vec<_>) =
        replicas.into_iter().partition(|candidate| candidate.expected <= limit);
    slow.sort_by_key(|candidate| candidate.expected);
    fast.append(&mut slow);
    fast.into_iter().map(|candidate| candidate.replica).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn order(expected: &[u64]) -> Vec<usize> {
        let known =
            |(replica, n): (usize, &u64)| Candidate { replica, typical: Some(ms(*n)), expected: ms(*n) };
        fastest_first(expected.iter().enumerate().map(known).collect())
    }

    #[test]
    fn the_ring_decides_among_replicas_that_are_about_as_fast() {
        assert_eq!(order(&[]), Vec::<usize>::new());
        assert_eq!(order(&[0, 0, 0]), [0, 1, 2]);
        assert_eq!(order(&[10, 0, 3]), [0, 1, 2]);
        assert_eq!(order(&[11, 0, 3]), [1, 2, 0]);
        assert_eq!(order(&[60, 40, 30]), [0, 1, 2]);
        assert_eq!(order(&[500, 40, 100]), [1, 2, 0]);
        assert_eq!(order(&[500, 40, 600]), [1, 0, 2]);
    }

    /// One key alone is asked about, so that its first replica answers and the others are forgotten.
    #[test]
    fn what_is_not_known_or_long_ago_draws_no_request_away() {
        let first = |other: Option<Duration>| {
            let asked = Candidate { replica: 1, typical: Some(ms(20)), expected: ms(20) };
            let idle = Candidate { replica: 2, typical: other, expected: Duration::ZERO };
            fastest_first(vec![asked, idle])[0]
        };
        assert_eq!(first(None), 1, "never asked");
        let slow = Candidate { replica: 1, typical: Some(ms(200)), expected: ms(200) };
        let unknown = Candidate { replica: 2, typical: None, expected: Duration::ZERO };
        assert_eq!(fastest_first(vec![slow, unknown]), [2, 1], "one that may be faster");
        assert_eq!(first(Some(ms(15))), 1, "as fast, some time ago");
        assert_eq!(first(Some(ms(2))), 2, "faster, whenever that was");
    }

    #[test]
    fn a_node_that_refuses_for_itself_is_left_as_a_slow_one() {
        let (mut speed, start) = (Speed::default(), Instant::now());
        speed.answered(start, ms(1));
        speed.refused(start, ms(1));
        assert!(speed.expected(start) > SPEED_SLACK + ms(2));
        speed.refused(start, ms(1));
        assert!(speed.expected(start) <= SPEED_OF_REFUSALS);
    }

    #[test]
    fn a_late_answer_is_noticed_at_once_and_forgotten_when_it_is_old() {
        let (mut speed, start) = (Speed::default(), Instant::now());
        assert_eq!(speed.expected(start), Duration::ZERO);
        speed.answered(start, ms(2));
        speed.failed(start, ms(1));
        assert_eq!(speed.expected(start), ms(2), "a quick refusal does not make it fast");
        speed.failed(start, ms(500));
        assert_eq!(speed.expected(start), ms(251));
        let later = start + SPEED_HALF_LIFE * 5;
        assert!(speed.expected(later) < SPEED_SLACK);
        // One request tries it: for the others it is as slow as it was, until it answers.
        speed.asked(later);
        assert_eq!(speed.expected(later), ms(251));
        for _ in 0..5 {
            speed.answered(later, ms(2));
        }
        assert!(speed.expected(later) <= SPEED_SLACK);
        assert_eq!(speed.expected(later + SPEED_HALF_LIFE * 1_000), Duration::ZERO);
    }

    #[test]
    fn a_node_that_was_never_asked_is_as_fast_as_can_be() {
        let (mut speed, start) = (Speed::default(), Instant::now());
        speed.asked(start);
        speed.failed(start, ms(1));
        assert_eq!((speed.expected(start), speed.typical()), (Duration::ZERO, None));
        speed.answered(start, ms(40));
        assert_eq!(speed.expected(start), ms(40));
    }
}
