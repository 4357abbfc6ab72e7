//! When to try again, as values: no clock, no randomness, no sockets. Time and random numbers are arguments,
//! so that the whole discipline is tested without waiting.

use std::time::Duration;

use kv_types::{Applied, Failure, Reason};
use tokio::time::Instant;

use crate::limits::{
    ATTEMPTS, BACKOFF_BASE, BACKOFF_CAP, BREAKER_CAP, BREAKER_FAILURES, BREAKER_FIRST, BUDGET_CAP,
    MAX_ATTEMPTS, MIN_SHARE, RETRY_AFTER_CAP, RETRY_COST, WAIT_CAP,
};

/// What sending an operation twice would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing: a read.
    None,
    /// Nothing more than once: a write with a request id.
    Once,
    /// As `Once`, and it was sent before by another process: what became of it then is not known.
    Again,
    /// Perhaps something twice: never resent after its fate became unknown.
    Repeats,
}

/// What a failed attempt suggests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Trying again changes nothing, or is not allowed.
    Stop,
    /// Another node is the right one: try there, free of charge.
    Redirect,
    /// Try again, elsewhere where there is an elsewhere.
    Elsewhere,
    /// Try again where it was tried: the place is right but busy.
    Same,
    /// The cluster elects a leader or starts, or a write whose fate is open was refused for the moment, or
    /// left open again soon: ask again while there is time, elsewhere where there is an elsewhere. Such
    /// answers are cheap; each costs the retry budget, and none of them counts as an attempt.
    Await,
}

/// Bounded attempts with full jitter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryPolicy {
    attempts: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new(ATTEMPTS)
    }
}

impl RetryPolicy {
    pub(crate) fn new(attempts: u32) -> Self {
        Self { attempts: attempts.clamp(1, MAX_ATTEMPTS) }
    }

    pub(crate) fn attempts(self) -> u32 {
        self.attempts
    }

    /// What to do after `attempt` (from 1) failed so.
    /// `replicas`: the next node is another replica of a key.
    pub(crate) fn next(self, effect: Effect, attempt: u32, failure: &Failure, replicas: bool) -> Next {
        let fate_open = failure.applied == Applied::Unknown;
        if self.attempts > 1 && is_passing(failure) {
            return Next::Await;
        }
        if attempt >= self.attempts || (effect == Effect::Repeats && fate_open) {
            return Next::Stop;
        }
        match failure.reason {
            Reason::NotLeader | Reason::WrongEpoch | Reason::WrongGroup | Reason::WrongNode => Next::Redirect,
            // A replica has its own disk; a leader's is the one that counts.
            Reason::LimitStorage if !replicas => Next::Stop,
            Reason::PartialWrite | Reason::ResultUnknown | Reason::ConnectionLost => Next::Elsewhere,
            // What passed is the time that this attempt had, or the longest that a node allows.
            Reason::DeadlineExpired => Next::Elsewhere,
            // So does a replica of an older release have its own table of requests.
            Reason::LimitRequests if replicas => Next::Elsewhere,
            reason if refused_for_itself(reason) => Next::Elsewhere,
            // It may have been taken back since, where this node was cut off.
            Reason::DeletionPending if attempt == 1 => Next::Elsewhere,
            // So may it have been created.
            Reason::NamespaceUnknown if attempt == 1 && !fate_open => Next::Elsewhere,
            Reason::Overloaded | Reason::LimitRequests => Next::Same,
            _ => Next::Stop,
        }
    }

    /// The pause before retry number `retry` (from 1): a random part of the exponential step, after what the
    /// server asked for.
    pub(crate) fn pause(self, retry: u32, retry_after: Option<Duration>, random: u64) -> Duration {
        jittered(step(retry), retry_after, random)
    }

    /// The same of what is waited out for `remaining`, where the retry budget pays for `left` more: once the
    /// step has grown to the longest of a pause, it is so long that these last, [`WAIT_CAP`] at most.
    pub(crate) fn wait(
        self,
        retry: u32,
        retry_after: Option<Duration>,
        remaining: Duration,
        left: u32,
        random: u64,
    ) -> Duration {
        let mut step = step(retry);
        if step == BACKOFF_CAP {
            // Of a step a random part is waited, half of it as a rule.
            step = (remaining.saturating_mul(2) / left.max(1)).clamp(BACKOFF_CAP, WAIT_CAP);
        }
        jittered(step, retry_after, random)
    }

    /// How much of the remaining time `attempt` may use: half of it while others may follow, so that one
    /// silent node does not use up the operation.
    pub(crate) fn share(self, attempt: u32, remaining: Duration) -> Duration {
        if attempt >= self.attempts { remaining } else { (remaining / 2).max(MIN_SHARE).min(remaining) }
    }
}

/// The step before retry number `retry`, from 1: each is twice the one before.
fn step(retry: u32) -> Duration {
    BACKOFF_BASE.saturating_mul(1 << retry.saturating_sub(1).min(16)).min(BACKOFF_CAP)
}

/// A random part of a step, after what the server asked for.
fn jittered(step: Duration, retry_after: Option<Duration>, random: u64) -> Duration {
    let micros = u64::try_from(step.as_micros()).unwrap_or(u64::MAX);
    let jitter = Duration::from_micros(random % micros.saturating_add(1));
    retry_after.unwrap_or_default().min(RETRY_AFTER_CAP) + jitter
}

/// The outcome of an operation over all its attempts: once one attempt's fate is open, a later refusal of a
/// resend says nothing about it.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    open: Option<Failure>,
    last: Option<Failure>,
    /// What a node said last that cannot reach enough others.
    cut_off: Option<Failure>,
    /// Attempts that a node may have taken.
    sent: u32,
    /// It has no effect whatever becomes of it.
    effectless: bool,
    /// A request id that belongs to other bytes proves that these were not applied.
    ids_taken_once: bool,
}

impl Verdict {
    /// Before the first attempt of an operation with this effect.
    pub(crate) fn of(effect: Effect) -> Self {
        let sent =
            || Failure::new(Reason::ResultUnknown, "what became of it when it was sent first is not known");
        let again = effect == Effect::Again;
        let effectless = effect == Effect::None;
        Self { open: again.then(sent), sent: u32::from(again), effectless, ..Self::default() }
    }

    /// The number that the next attempt bears, from 1. What was surely not taken counts for nothing: a node
    /// treats a resend otherwise than a first attempt.
    pub(crate) fn attempt(&self) -> u32 {
        self.sent + 1
    }

    /// Of an operation with this effect that is decided in the log of a group, which takes each request id
    /// once: that an id of before belongs to other bytes proves that these were not applied. The replicas of
    /// an available key each have a table of their own, so that one which refuses says nothing of the others.
    pub(crate) fn in_one_log(mut self, effect: Effect, is: bool) -> Self {
        self.ids_taken_once = is && effect == Effect::Again;
        self
    }

    /// Takes a failed attempt into account. Only a refusal that every node must give to these very bytes,
    /// whenever it sees them, closes what an earlier attempt left open.
    pub(crate) fn add(&mut self, failure: &Failure) {
        if failure.applied == Applied::Unknown {
            self.sent += 1;
            self.open.get_or_insert_with(|| failure.clone());
        } else if refused_by_its_bytes(failure.reason)
            || (self.ids_taken_once && failure.reason == Reason::RequestIdReused)
        {
            self.open = None;
        }
        if matches!(failure.reason, Reason::NoQuorum | Reason::QuorumNotMet) {
            self.cut_off = Some(failure.clone());
        }
        self.last = Some(failure.clone());
    }

    /// Whether this is waited out: what became of an attempt is open, and the same request under its id
    /// settles it as soon as a node takes it. Only what passes by itself is waited for: a refusal for the
    /// moment, and not a full disk. Or that a node which took it could not settle it, if it said so `soon`:
    /// what took long has used up the time of an attempt, and a connection that broke may be the node's end.
    pub(crate) fn waits_out(&self, failure: &Failure, soon: bool) -> bool {
        if failure.applied == Applied::Unknown {
            return soon && matches!(failure.reason, Reason::PartialWrite | Reason::ResultUnknown);
        }
        let passes = matches!(
            failure.reason,
            Reason::NoQuorum
                | Reason::QuorumNotMet
                | Reason::NotLeader
                | Reason::NotReady
                | Reason::ShuttingDown
                | Reason::Unreachable
                | Reason::Overloaded
                | Reason::DeadlineExpired
        );
        self.open.is_some() && passes
    }

    /// The failure to report where no time was left to send attempt number `attempts`: what the attempt
    /// before it met says more than that.
    pub(crate) fn out_of_time(mut self, attempts: u32) -> Failure {
        let made = attempts.saturating_sub(1);
        let last = self.last.take().unwrap_or_else(nothing_sent);
        self.conclude(last, made)
    }

    /// The failure to report, `last` being that of the last attempt.
    pub(crate) fn conclude(self, last: Failure, attempts: u32) -> Failure {
        let mut failure = match self.open {
            Some(open) if last.applied != Applied::Unknown => {
                open.with("last_reason", last.reason).with("last_message", last.message)
            }
            _ => last,
        };
        // One that is not there says nothing about the cluster; one that answered does.
        if failure.reason == Reason::Unreachable
            && failure.applied == Applied::No
            && let Some(said) = self.cut_off.clone()
        {
            failure = said.with("last_reason", failure.reason).with("last_message", failure.message);
        }
        // A node was silent: of a read nothing is open but its answer. What another one said tells more.
        if self.effectless && failure.reason == Reason::ResultUnknown {
            failure = match self.cut_off {
                Some(said) => Failure {
                    message: format!("{}; other nodes did not answer", said.message),
                    ..said.with("last_message", failure.message)
                },
                None => Failure { reason: Reason::DeadlineExpired, ..failure },
            };
        }
        if kv_types::mutant!(UnknownAsNotApplied) {
            return Failure { applied: Applied::No, ..failure };
        }
        if attempts > 1 { failure.with("attempts", attempts) } else { failure }
    }
}

/// Refusals for what the node is or sees: another one may serve.
pub(crate) fn refused_for_itself(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoQuorum
            | Reason::QuorumNotMet
            | Reason::NotReady
            | Reason::ShuttingDown
            | Reason::Unreachable
            | Reason::LimitHints
            | Reason::LimitStorage
            | Reason::StorageFailed
    )
}

/// Whether a refusal ends by itself within seconds: a group whose majority can be reached elects a leader, or
/// a node has just started. A node that cannot reach a majority will not soon: that is a refusal at once.
fn is_passing(failure: &Failure) -> bool {
    let number = |name| failure.detail(name).and_then(|text| text.parse::<u64>().ok());
    failure.applied == Applied::No
        && match failure.reason {
            Reason::NoQuorum => match (number("reachable"), number("required")) {
                (Some(reachable), Some(required)) => reachable >= required,
                _ => false,
            },
            Reason::NotLeader => failure.detail("leader_address").is_none(),
            Reason::NotReady => true,
            _ => false,
        }
}

/// No time was left to send anything.
pub(crate) fn nothing_sent() -> Failure {
    Failure::new(Reason::DeadlineExpired, "the deadline passed before anything was sent")
}

/// Refusals that every node gives at any time, so that no earlier attempt can have been taken. A request id
/// is not among them: one that claims to come from the future is refused by the clock of the node that was
/// asked.
fn refused_by_its_bytes(reason: Reason) -> bool {
    matches!(reason, Reason::EmptyKey | Reason::LimitKey | Reason::LimitValue)
}

/// A token bucket for retries (AWS SDK, retry 2.1): when most first tries fail, retries stop, and a
/// struggling cluster is left alone.
#[derive(Debug)]
pub(crate) struct Budget {
    tokens: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { tokens: BUDGET_CAP }
    }
}

impl Budget {
    /// Pays for a retry, if there is enough: for how many more there is, then.
    pub(crate) fn spend(&mut self) -> Option<u32> {
        self.tokens = self.tokens.checked_sub(RETRY_COST)?;
        Some(self.tokens / RETRY_COST)
    }

    /// An operation succeeded at its first try.
    pub(crate) fn earn(&mut self) {
        self.tokens = (self.tokens + 1).min(BUDGET_CAP);
    }
}

/// A breaker for one endpoint. After [`BREAKER_FAILURES`] connections in a row that failed, calls are refused
/// at once, and one probe at a time finds out when the endpoint is back.
///
/// It counts connections and not calls: when one connection is lost with many calls on it, or many calls wait
/// for one dial that fails, each reports the same connection number, and the breaker counts it once.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// Consecutive failures.
    failures: u32,
    /// The newest connection whose failure was counted; 0 before the first.
    counted: u64,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    /// No call before this time.
    until: Instant,
    /// How long it stays open; each failed probe doubles it.
    period: Duration,
    /// Whether a probe was let through since the last failure.
    probing: bool,
}

impl Breaker {
    /// Whether a call may go there now. An open breaker whose time is up lets one probe through and waits for
    /// as long again, so that a probe whose caller gave up does not block the endpoint.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        match &mut self.open {
            None => true,
            Some(open) if now < open.until => false,
            Some(open) => {
                open.until = now + open.period;
                open.probing = true;
                true
            }
        }
    }

    /// The endpoint answered, whatever it said.
    pub(crate) fn success(&mut self) {
        self.failures = 0;
        self.open = None;
    }

    /// Connection number `connection` (from 1, increasing) could not be opened, or was lost. An open breaker
    /// learns from its probes only: what else fails then was begun before it opened.
    pub(crate) fn failure(&mut self, now: Instant, connection: u64) {
        if connection <= self.counted {
            return;
        }
        self.counted = connection;
        self.failures = self.failures.saturating_add(1);
        self.open = match self.open {
            None if self.failures < BREAKER_FAILURES => None,
            None => Some(Open { until: now + BREAKER_FIRST, period: BREAKER_FIRST, probing: false }),
            Some(open) if !open.probing => Some(open),
            Some(Open { period, .. }) => {
                let period = (period * 2).min(BREAKER_CAP);
                Some(Open { until: now + period, period, probing: false })
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(reason: Reason) -> Failure {
        Failure::new(reason, "x")
    }

    #[test]
    fn every_reason_has_a_next_step_within_the_attempts() {
        let policy = RetryPolicy::default();
        for reason in Reason::ALL {
            let last = match reason {
                Reason::NotReady | Reason::NotLeader => Next::Await,
                _ => Next::Stop,
            };
            assert_eq!(policy.next(Effect::Once, ATTEMPTS, &failure(*reason), false), last, "{reason}");
            if reason.applied() == Applied::Unknown {
                assert_eq!(policy.next(Effect::Repeats, 1, &failure(*reason), false), Next::Stop, "{reason}");
            }
        }
        let elsewhere = failure(Reason::NotLeader).with("leader_address", "h:1");
        assert_eq!(policy.next(Effect::Once, 1, &elsewhere, false), Next::Redirect);
        assert_eq!(policy.next(Effect::Once, ATTEMPTS, &elsewhere, false), Next::Stop);
        assert_eq!(policy.next(Effect::Once, 1, &failure(Reason::ResultUnknown), false), Next::Elsewhere);
        assert_eq!(policy.next(Effect::None, 2, &failure(Reason::ConnectionLost), false), Next::Elsewhere);
        assert_eq!(policy.next(Effect::Once, 1, &failure(Reason::Overloaded), false), Next::Same);
        assert_eq!(policy.next(Effect::Once, 1, &failure(Reason::LimitStorage), false), Next::Stop);
        assert_eq!(policy.next(Effect::Once, 1, &failure(Reason::LimitStorage), true), Next::Elsewhere);
        assert_eq!(policy.next(Effect::Once, 1, &failure(Reason::LimitRequests), true), Next::Elsewhere);
        assert_eq!(policy.next(Effect::Once, 1, &failure(Reason::LimitRequests), false), Next::Same);
        for last in [Reason::SessionExpired, Reason::RequestExpired, Reason::LimitKey, Reason::ModeMismatch] {
            assert_eq!(policy.next(Effect::Once, 1, &failure(last), false), Next::Stop, "{last}");
        }
        assert_eq!(RetryPolicy::new(0).attempts(), 1);
        assert_eq!(RetryPolicy::new(1).next(Effect::Once, 1, &failure(Reason::NotReady), false), Next::Stop);
        assert_eq!(RetryPolicy::new(99).attempts(), MAX_ATTEMPTS);
    }

    #[test]
    fn an_election_is_waited_for_and_a_minority_is_not() {
        let policy = RetryPolicy::default();
        let sees =
            |reachable: u64| failure(Reason::NoQuorum).with("reachable", reachable).with("required", 3);
        for attempt in [1, ATTEMPTS, 100] {
            assert_eq!(policy.next(Effect::Once, attempt, &sees(3), false), Next::Await);
            assert_eq!(policy.next(Effect::Repeats, attempt, &sees(5), false), Next::Await);
        }
        assert_eq!(policy.next(Effect::Once, 1, &sees(2), false), Next::Elsewhere);
        assert_eq!(policy.next(Effect::Once, ATTEMPTS, &sees(2), false), Next::Stop);
        // It is not said what can be reached.
        assert_eq!(policy.next(Effect::Once, ATTEMPTS, &failure(Reason::NoQuorum), false), Next::Stop);
        // Its fate is open.
        let open = sees(3).after_sending();
        assert_eq!(policy.next(Effect::Repeats, 1, &open, false), Next::Stop);
    }

    #[test]
    fn pauses_are_jittered_capped_and_obey_the_server() {
        let policy = RetryPolicy::default();
        for retry in 1..40 {
            for random in [0, 1, 24_999, u64::MAX] {
                assert!(policy.pause(retry, None, random) <= BACKOFF_CAP);
            }
        }
        assert_eq!(policy.pause(1, None, 25_000), BACKOFF_BASE);
        assert_eq!(policy.pause(1, None, 25_001), Duration::ZERO);
        assert_eq!(policy.pause(3, None, 100_000), BACKOFF_BASE * 4);
        let asked = Duration::from_millis(300);
        assert!(policy.pause(1, Some(asked), 0) >= asked);
        assert!(policy.pause(1, Some(Duration::from_secs(3_600)), 0) <= RETRY_AFTER_CAP);
    }

    #[test]
    fn what_is_waited_out_is_paced_so_that_the_budget_lasts() {
        let policy = RetryPolicy::default();
        let second = Duration::from_secs(1);
        // Soon at first, whatever time there is.
        for (retry, random) in (1..=6).flat_map(|retry| [0, 24_999, u64::MAX].map(|random| (retry, random))) {
            let pause = policy.pause(retry, None, random);
            assert_eq!(policy.wait(retry, None, second * 60, 30, random), pause, "{retry}");
        }
        // Then so that as many as can be paid for last, on average half of a step each.
        let longest = |remaining: Duration, left| {
            (0..4_000_u64).map(|part| policy.wait(9, None, remaining, left, part * 1_999)).max().unwrap()
        };
        let (minute, near) = (longest(second * 60, 30), Duration::from_millis(10));
        assert!(minute <= second * 4 && minute + near > second * 4, "{minute:?}");
        assert!(longest(second * 5, 30) <= BACKOFF_CAP);
        // None is longer than the bound, and none is left without one.
        assert!(longest(second * 86_400, 30) <= WAIT_CAP);
        assert!(longest(second * 2, 0) <= second * 4);
        assert!(policy.wait(9, Some(second), second * 60, 30, 0) >= second, "the server's own");
    }

    #[test]
    fn what_is_open_is_waited_out_where_that_was_said_soon() {
        let open = || {
            let mut verdict = Verdict::of(Effect::Once);
            verdict.add(&failure(Reason::PartialWrite));
            verdict
        };
        for reason in [Reason::PartialWrite, Reason::ResultUnknown] {
            assert!(open().waits_out(&failure(reason), true), "{reason}");
            assert!(!open().waits_out(&failure(reason), false), "{reason}: it had its time");
        }
        // Who sends a request twice to nodes that end of it ends the cluster.
        assert!(!open().waits_out(&failure(Reason::ConnectionLost), true));
        assert!(!open().waits_out(&failure(Reason::Internal).after_sending(), true));
        assert!(open().waits_out(&failure(Reason::NoQuorum), false), "a refusal");
        assert!(!open().waits_out(&failure(Reason::LimitStorage), true));
        assert!(!Verdict::of(Effect::Once).waits_out(&failure(Reason::NoQuorum), true), "nothing is open");
    }

    #[test]
    fn an_attempt_leaves_time_for_the_next_one() {
        let policy = RetryPolicy::default();
        let second = Duration::from_secs(1);
        assert_eq!(policy.share(1, second), second / 2);
        assert_eq!(policy.share(ATTEMPTS, second), second);
        assert_eq!(policy.share(1, Duration::from_millis(10)), Duration::from_millis(10));
        assert_eq!(RetryPolicy::new(1).share(1, second), second);
    }

    #[test]
    fn what_one_attempt_left_open_no_refusal_closes() {
        for refusal in [Reason::NoQuorum, Reason::NotLeader, Reason::Unreachable, Reason::NamespaceUnknown] {
            let mut verdict = Verdict::default();
            verdict.add(&failure(Reason::ConnectionLost));
            verdict.add(&failure(refusal));
            let whole = verdict.conclude(failure(refusal), 2);
            assert_eq!(
                (whole.reason, whole.applied),
                (Reason::ConnectionLost, Applied::Unknown),
                "{refusal}"
            );
            assert_eq!(whole.detail("last_reason"), Some(refusal.code_name()));
        }
    }

    #[test]
    fn a_refusal_of_what_was_sent_before_leaves_it_open() {
        let mut verdict = Verdict::of(Effect::Again);
        verdict.add(&failure(Reason::NoQuorum));
        let whole = verdict.conclude(failure(Reason::NoQuorum), 1);
        assert_eq!((whole.reason, whole.applied), (Reason::ResultUnknown, Applied::Unknown));
        assert_eq!(Verdict::of(Effect::Again).out_of_time(1).applied, Applied::Unknown);
        let mut proven = Verdict::of(Effect::Again);
        proven.add(&failure(Reason::LimitValue));
        assert_eq!(proven.conclude(failure(Reason::LimitValue), 1).applied, Applied::No);
        assert_eq!(Verdict::of(Effect::Once).out_of_time(1).applied, Applied::No);
    }

    #[test]
    fn an_id_of_other_bytes_closes_what_one_log_decides() {
        let after = |effect, in_one_log| {
            let mut verdict = Verdict::of(effect).in_one_log(effect, in_one_log);
            verdict.add(&failure(Reason::ConnectionLost));
            verdict.add(&failure(Reason::RequestIdReused));
            verdict.conclude(failure(Reason::RequestIdReused), 2).applied
        };
        assert_eq!(after(Effect::Again, true), Applied::No);
        assert_eq!(after(Effect::Again, false), Applied::Unknown);
        // An id of its own is no other's: this would be a defect, and proves nothing.
        assert_eq!(after(Effect::Once, true), Applied::Unknown);
    }

    #[test]
    fn an_attempt_is_a_resend_only_after_one_that_may_have_been_taken() {
        let mut verdict = Verdict::of(Effect::Once);
        for (reason, attempt) in [
            (Reason::NotReady, 1),
            (Reason::Unreachable, 1),
            (Reason::ConnectionLost, 2),
            (Reason::NoQuorum, 2),
        ] {
            verdict.add(&failure(reason));
            assert_eq!(verdict.attempt(), attempt, "{reason}");
        }
        assert_eq!(Verdict::of(Effect::Again).attempt(), 2);
    }

    #[test]
    fn definite_attempts_make_a_definite_whole() {
        let mut verdict = Verdict::default();
        verdict.add(&failure(Reason::NotLeader));
        verdict.add(&failure(Reason::NoQuorum));
        assert_eq!(verdict.conclude(failure(Reason::NoQuorum), 2).applied, Applied::No);
        let mut proven = Verdict::default();
        proven.add(&failure(Reason::ConnectionLost));
        proven.add(&failure(Reason::LimitValue));
        assert_eq!(proven.conclude(failure(Reason::LimitValue), 2).applied, Applied::No);
    }

    #[test]
    fn nothing_of_a_read_is_unknown() {
        let mut verdict = Verdict::of(Effect::None);
        let silent = failure(Reason::ResultUnknown).of_read();
        verdict.add(&silent);
        let whole = verdict.conclude(silent, 1);
        assert_eq!((whole.reason, whole.applied), (Reason::DeadlineExpired, Applied::No));
    }

    #[test]
    fn an_attempt_that_had_no_time_hides_nothing() {
        let whole = Verdict::default().out_of_time(1);
        assert_eq!((whole.reason, whole.applied), (Reason::DeadlineExpired, Applied::No));
        let mut verdict = Verdict::default();
        verdict.add(&failure(Reason::NoQuorum));
        verdict.add(&failure(Reason::Unreachable));
        let whole = verdict.out_of_time(3);
        // Of the two the one that says something about the cluster.
        assert_eq!((whole.reason, whole.applied), (Reason::NoQuorum, Applied::No));
        assert_eq!(whole.detail("last_reason"), Some("UNREACHABLE"));
        assert_eq!(whole.detail("attempts"), Some("2"));
        let mut verdict = Verdict::default();
        verdict.add(&failure(Reason::ConnectionLost));
        verdict.add(&failure(Reason::Unreachable));
        let whole = verdict.out_of_time(3);
        assert_eq!((whole.reason, whole.applied), (Reason::ConnectionLost, Applied::Unknown));
    }

    #[test]
    fn the_budget_runs_dry_and_recovers_slowly() {
        let mut budget = Budget::default();
        let most = BUDGET_CAP / RETRY_COST;
        let left: Vec<u32> = (0..1_000).filter_map(|_| budget.spend()).collect();
        assert_eq!(left, (0..most).rev().collect::<Vec<_>>(), "each says for how many there is enough");
        assert_eq!(budget.spend(), None);
        for _ in 0..RETRY_COST {
            budget.earn();
        }
        assert_eq!(budget.spend(), Some(0));
        for _ in 0..10_000 {
            budget.earn();
        }
        assert_eq!(budget.tokens, BUDGET_CAP);
    }

    /// A breaker that has just opened, the number of the last failed connection, and the time.
    fn opened() -> (Breaker, u64, Instant) {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for connection in 1..=u64::from(BREAKER_FAILURES) {
            assert!(breaker.admit(start), "{connection}");
            breaker.failure(start, connection);
        }
        assert!(!breaker.admit(start));
        (breaker, BREAKER_FAILURES.into(), start)
    }

    #[tokio::test(start_paused = true)]
    async fn a_breaker_opens_probes_and_closes() {
        let (mut breaker, last, start) = opened();
        let later = start + BREAKER_FIRST;
        assert!(breaker.admit(later), "the probe");
        assert!(!breaker.admit(later), "one at a time");
        breaker.failure(later, last + 1);
        assert!(!breaker.admit(later + BREAKER_FIRST), "twice as long");
        assert!(breaker.admit(later + BREAKER_FIRST * 2));
        breaker.success();
        assert!(breaker.admit(later + BREAKER_FIRST * 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_counts_once_however_many_calls_were_on_it() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for connection in 1..u64::from(BREAKER_FAILURES) {
            for _ in 0..256 {
                breaker.failure(start, connection);
            }
            assert!(breaker.admit(start), "{connection} connections were lost");
        }
        breaker.failure(start, 1);
        assert!(breaker.admit(start), "an older connection was counted already");
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_breaker_learns_from_its_probes_only() {
        let (mut breaker, last, start) = opened();
        for connection in last + 1..last + 60 {
            breaker.failure(start, connection);
        }
        assert!(breaker.admit(start + BREAKER_FIRST), "the period did not grow");
    }

    #[tokio::test(start_paused = true)]
    async fn a_breaker_never_stays_open_beyond_its_cap() {
        let (mut breaker, mut connection, mut now) = opened();
        for _ in 0..60 {
            now += BREAKER_CAP;
            assert!(breaker.admit(now));
            connection += 1;
            breaker.failure(now, connection);
        }
        assert!(breaker.admit(now + BREAKER_CAP));
    }
}
