//! Simulated time, and the trace of a run: one line an event, in the order in which things happened. Two runs
//! of a seed are the same run exactly if their traces are the same bytes.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

thread_local! {
    /// The time of the step under way, for code that runs between the steps of hosts.
    static STEP: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Simulated time: a host's own inside of it, that of the last step outside.
pub fn now() -> Duration {
    turmoil::in_simulation().then(turmoil::sim_elapsed).flatten().unwrap_or_else(|| STEP.get())
}

/// Says what [`now`] is between the steps of hosts.
pub fn set_now(now: Duration) {
    STEP.set(now);
}

/// The lines of a run. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Trace(Arc<Mutex<String>>);

impl Trace {
    /// Adds a line.
    pub fn line(&self, who: impl fmt::Display, what: impl fmt::Display) {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:>12.6} {who} {what}", now().as_secs_f64());
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Simulated time in the nodes' own log.
#[derive(Debug, Clone, Copy)]
pub struct SimTime;

impl tracing_subscriber::fmt::time::FormatTime for SimTime {
    fn format_time(&self, to: &mut tracing_subscriber::fmt::format::Writer<'_>) -> fmt::Result {
        write!(to, "{:>12.6}", now().as_secs_f64())
    }
}

/// FNV-1a of a trace: enough to see at a glance that two differ.
pub fn fingerprint(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
