//! This node's own opinion of another: when did it last answer? Only answers count, not what arrives unasked:
//! under a one-way cut a peer can be heard and yet not be reached, and choices are made by who can be
//! reached.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::limits::AWAKE_EVERY;

/// How a peer seems from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerState {
    /// It answered lately.
    Up,
    /// It did not answer for a while, or not yet.
    Suspected,
    /// It did not answer for long.
    Down,
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Suspected => "suspected",
            Self::Down => "down",
        })
    }
}

/// An opinion. It orders choices and never decides truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// How it seems.
    pub state: PeerState,
    /// How long ago it answered; none when it never did.
    pub last_heard: Option<Duration>,
}

impl Liveness {
    /// Of a node that is not known.
    pub(crate) const STRANGER: Self = Self { state: PeerState::Down, last_heard: None };

    /// Whether it answered lately.
    pub fn is_up(&self) -> bool {
        self.state == PeerState::Up
    }
}

/// The time in which this node could have heard others. A process that is stopped, starved or suspended for a
/// while hears none of them, and finds itself awake before it has read what they said: its own stop is not
/// their silence, and the first request after it must not be refused for want of them.
#[derive(Debug)]
pub(crate) struct Watch {
    since: Instant,
    /// Milliseconds after `since` of the last [`Self::tick`].
    ticked: AtomicU64,
    /// Milliseconds in which this node was not awake, up to then.
    lost: AtomicU64,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), ticked: AtomicU64::new(0), lost: AtomicU64::new(0) }
    }

    /// This node is awake. Called every [`AWAKE_EVERY`], by one task.
    pub(crate) fn tick(&self) {
        let now = self.clock();
        let ticked = self.ticked.load(Ordering::Relaxed);
        // In this order, and read in the other one: a reader that sees the tick sees what was lost before it.
        // Between the two a stop counts twice: a peer seems to be heard too lately for a moment, and no more.
        self.lost.fetch_add(asleep(ticked, now), Ordering::Relaxed);
        self.ticked.store(now, Ordering::Release);
    }

    fn clock(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Milliseconds for which this node was awake.
    fn awake(&self) -> u64 {
        let ticked = self.ticked.load(Ordering::Acquire);
        let lost = self.lost.load(Ordering::Relaxed);
        let now = self.clock();
        now.saturating_sub(lost.saturating_add(asleep(ticked, now)))
    }
}

/// How much of the time since the last tick this node cannot have been awake: a tick may be late by one.
fn asleep(ticked: u64, now: u64) -> u64 {
    let awake = u64::try_from(AWAKE_EVERY.as_millis()).unwrap_or(u64::MAX).saturating_mul(2);
    now.saturating_sub(ticked).saturating_sub(awake)
}

/// When a peer last answered.
#[derive(Debug)]
pub(crate) struct Heard {
    since: Instant,
    watch: Arc<Watch>,
    /// How long this node had been awake when it began.
    begun: u64,
    // Milliseconds after `since`, plus one; 0 for never.
    last: AtomicU64,
    /// How long this node had been awake then.
    awake: AtomicU64,
}

impl Heard {
    pub(crate) fn new(watch: Arc<Watch>) -> Self {
        let begun = watch.awake();
        let (last, awake) = (AtomicU64::new(0), AtomicU64::new(begun));
        Self { since: Instant::now(), watch, begun, last, awake }
    }

    pub(crate) fn now(&self) {
        let ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.awake.fetch_max(self.watch.awake(), Ordering::Relaxed);
        self.last.fetch_max(ms + 1, Ordering::Relaxed);
    }

    /// How long ago it last answered; none when it never did.
    pub(crate) fn ago(&self) -> Option<Duration> {
        let last = self.last.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.since.elapsed().saturating_sub(Duration::from_millis(last)))
    }

    pub(crate) fn opinion(&self, suspect_after: Duration, down_after: Duration) -> Liveness {
        let last_heard = self.ago();
        let last = if last_heard.is_some() { self.awake.load(Ordering::Relaxed) } else { self.begun };
        let state = match Duration::from_millis(self.watch.awake().saturating_sub(last)) {
            silence if silence >= down_after => PeerState::Down,
            silence if silence >= suspect_after || last_heard.is_none() => PeerState::Suspected,
            _ => PeerState::Up,
        };
        Liveness { state, last_heard }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUSPECT: Duration = Duration::from_millis(300);
    const DOWN: Duration = Duration::from_secs(3);

    /// Time passes while this node is awake.
    async fn awake_for(watch: &Watch, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(AWAKE_EVERY);
            tokio::time::advance(step).await;
            watch.tick();
            left -= step;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn opinions_follow_silence() {
        let watch = Arc::new(Watch::new());
        let heard = Heard::new(Arc::clone(&watch));
        let state = || heard.opinion(SUSPECT, DOWN).state;
        assert_eq!((state(), heard.opinion(SUSPECT, DOWN).last_heard), (PeerState::Suspected, None));
        heard.now();
        assert_eq!(state(), PeerState::Up);
        awake_for(&watch, Duration::from_millis(299)).await;
        assert_eq!(state(), PeerState::Up);
        awake_for(&watch, Duration::from_millis(1)).await;
        assert_eq!(state(), PeerState::Suspected);
        awake_for(&watch, Duration::from_millis(2_700)).await;
        assert_eq!(state(), PeerState::Down);
        heard.now();
        assert_eq!(state(), PeerState::Up);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_of_ones_own_is_not_the_silence_of_others() {
        let watch = Arc::new(Watch::new());
        let heard = Heard::new(Arc::clone(&watch));
        let state = || heard.opinion(SUSPECT, DOWN).state;
        heard.now();
        awake_for(&watch, Duration::from_millis(150)).await;
        // Before the first tick after the stop, and after it.
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(state(), PeerState::Up);
        watch.tick();
        assert_eq!(state(), PeerState::Up);
        assert!(heard.ago() >= Some(Duration::from_secs(60)), "what is shown is the time of the clock");
        // A peer that stays silent is noticed as soon as ever.
        awake_for(&watch, Duration::from_millis(100)).await;
        assert_eq!(state(), PeerState::Suspected);
        awake_for(&watch, Duration::from_secs(3)).await;
        assert_eq!(state(), PeerState::Down);
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_lost_only_beyond_what_a_tick_may_be_late() {
        let watch = Watch::new();
        let awake = || Duration::from_millis(watch.awake());
        awake_for(&watch, Duration::from_secs(2)).await;
        assert_eq!(awake(), Duration::from_secs(2));
        tokio::time::advance(2 * AWAKE_EVERY).await;
        assert_eq!(awake(), Duration::from_secs(2) + 2 * AWAKE_EVERY, "at the bound");
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(awake(), Duration::from_secs(2) + 2 * AWAKE_EVERY);
        watch.tick();
        tokio::time::advance(AWAKE_EVERY).await;
        assert_eq!(awake(), Duration::from_secs(2) + 3 * AWAKE_EVERY);
    }
}
