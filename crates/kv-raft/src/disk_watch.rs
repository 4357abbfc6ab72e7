//! Whether the log of this node still makes progress. A leader whose disk hangs keeps its followers with
//! heartbeats and cannot take writes for long, although they could: it has to notice and to give up. An
//! account of what was handed to the log and is not durable yet; it has no clock of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What was handed to the log and is not durable.
#[derive(Debug, Default)]
struct Outstanding {
    writes: u64,
    /// When the log last completed one, or was handed the first.
    since: Option<Instant>,
}

impl Outstanding {
    fn begin(&mut self, now: Instant) {
        if self.writes == 0 {
            self.since = Some(now);
        }
        self.writes += 1;
    }

    fn end(&mut self, now: Instant) {
        assert!(self.writes > 0, "a write ends once");
        self.writes -= 1;
        self.since = (self.writes > 0).then_some(now);
    }

    fn silent_for(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// The account of one group's writes. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct DiskWatch(Arc<Mutex<Outstanding>>);

impl DiskWatch {
    fn lock(&self) -> MutexGuard<'_, Outstanding> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write is handed to the log; it ends when what is returned is dropped.
    pub(crate) fn begin(&self) -> Write {
        self.lock().begin(Instant::now());
        Write(self.clone())
    }

    /// How long the log has owed an answer without giving any.
    pub(crate) fn silent_for(&self) -> Duration {
        self.lock().silent_for(Instant::now())
    }
}

/// A write that is not durable yet.
#[derive(Debug)]
pub(crate) struct Write(DiskWatch);

impl Drop for Write {
    fn drop(&mut self) {
        self.0.lock().end(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_from_the_last_answer() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut outstanding = Outstanding::default();
        assert_eq!(outstanding.silent_for(at(9_000)), Duration::ZERO);
        outstanding.begin(at(0));
        outstanding.begin(at(100));
        assert_eq!(outstanding.silent_for(at(1_500)), Duration::from_millis(1_500));
        // A slow disk that answers is not a silent one.
        outstanding.end(at(1_500));
        assert_eq!(outstanding.silent_for(at(2_900)), Duration::from_millis(1_400));
        outstanding.end(at(3_000));
        assert_eq!(outstanding.silent_for(at(60_000)), Duration::ZERO);
        outstanding.begin(at(60_000));
        assert_eq!(outstanding.silent_for(at(60_100)), Duration::from_millis(100));
    }
}
