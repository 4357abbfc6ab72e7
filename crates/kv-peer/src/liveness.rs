//! This node's own opinion of another: when did it last answer? Only answers count, not what arrives unasked:
//! under a one-way cut a peer can be heard and yet not be reached, and choices are made by who can be
//! reached.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

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

/// When a peer last answered.
#[derive(Debug)]
pub(crate) struct Heard {
    since: Instant,
    // Milliseconds after `since`, plus one; 0 for never.
    last: AtomicU64,
}

impl Heard {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), last: AtomicU64::new(0) }
    }

    pub(crate) fn now(&self) {
        let ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.last.fetch_max(ms + 1, Ordering::Relaxed);
    }

    /// How long ago it last answered; none when it never did.
    pub(crate) fn ago(&self) -> Option<Duration> {
        let last = self.last.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.since.elapsed().saturating_sub(Duration::from_millis(last)))
    }

    pub(crate) fn opinion(&self, suspect_after: Duration, down_after: Duration) -> Liveness {
        let alive_for = self.since.elapsed();
        let last_heard = self.ago();
        let state = match last_heard.unwrap_or(alive_for) {
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

    #[tokio::test(start_paused = true)]
    async fn opinions_follow_silence() {
        let (suspect, down) = (Duration::from_millis(300), Duration::from_secs(3));
        let heard = Heard::new();
        let state = || heard.opinion(suspect, down).state;
        assert_eq!((state(), heard.opinion(suspect, down).last_heard), (PeerState::Suspected, None));
        heard.now();
        assert_eq!(state(), PeerState::Up);
        tokio::time::advance(Duration::from_millis(299)).await;
        assert_eq!(state(), PeerState::Up);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(state(), PeerState::Suspected);
        tokio::time::advance(Duration::from_millis(2_700)).await;
        assert_eq!(state(), PeerState::Down);
        heard.now();
        assert_eq!(state(), PeerState::Up);
    }
}
