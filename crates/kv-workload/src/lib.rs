//! Workloads, and the history they leave. Clients are pinned to their nodes, so that an outage is seen as one
//! and not as clients who went elsewhere; and in an open loop operations begin at planned moments whatever
//! became of the earlier ones, so that silence is not hidden by clients who had stopped asking.
//!
//! - [`Recorder`]: every operation as `kv-check` wants it;
//! - [`StrongClient`], [`AvailableClient`]: one operation of one client at one node, recorded;
//! - [`converge`]: when replicas are equal, found by asking every node, and written into the history;
//! - [`drive`]: whole loads as data ([`Load`]), for real processes and for the simulation alike. Only
//!   `tokio::time`, only the seed, only the [`kv_env::Env`] that is given.

#![allow(
    clippy::result_large_err,
    reason = "the client library's own error, made once for a client and not in a loop"
)]

mod available;
pub mod converge;
mod drive;
mod keys;
mod recorder;
mod strong;

pub use available::{AvailableClient, Covers};
pub use drive::{Driving, Kind, Load, MAX_OPEN, NodeClient, drive, open_loop};
pub use keys::{KeyLimits, Keys};
pub use recorder::{Call, Ending, Recorder, Sample};
pub use strong::StrongClient;

pub use kv_check::operation::CONTENDED;

/// The `err` of a read that was answered truthfully by nodes that keep no copy: it says nothing about the
/// key.
pub const NO_KNOWLEDGE: &str = "NO_KNOWLEDGE";

/// What clients are to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Read and write.
    ReadWrite,
    /// Begin nothing for now.
    Pause,
    /// Nothing more.
    Stop,
}

/// What values are filled up with to their size; none ends with it by itself.
const FILL: char = '~';

/// A value as it is stored: filled up to so many bytes.
fn filled(value: &str, bytes: usize) -> String {
    let missing = bytes.saturating_sub(value.len());
    value.chars().chain(std::iter::repeat_n(FILL, missing)).collect()
}

/// A value as the history has it, of one that was stored.
fn text(bytes: &[u8]) -> kv_check::Json {
    kv_check::Json::String(String::from_utf8_lossy(bytes).trim_end_matches(FILL).to_owned())
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_value_is_the_same_however_it_was_filled_up() {
        for bytes in [0, 3, 4, 5, 1000] {
            let stored = super::filled("n1.7", bytes);
            assert_eq!(stored.len(), bytes.max(4));
            assert_eq!(super::text(stored.as_bytes()), kv_check::Json::from("n1.7"));
        }
    }
}
