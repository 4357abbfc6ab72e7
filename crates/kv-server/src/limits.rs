//! Bounds and timings that only the server knows.

use std::time::Duration;

/// Default of `[limits] concurrent_requests`.
pub(crate) const CONCURRENT_REQUESTS: usize = 8_192;
/// When a request that was refused for overload may come back.
pub(crate) const OVERLOAD_RETRY_MS: u32 = 50;
/// An answer leaves this long before the caller's deadline (or a tenth of its time, if that is less), so that it arrives.
pub(crate) const ANSWER_MARGIN: Duration = Duration::from_millis(20);
/// How long a request for an unknown namespace waits for the catalogue to bring it: a little more than a heartbeat, which
/// is what a follower may lag behind the answer to `CreateNamespace`.
pub(crate) const NAMESPACE_WAIT: Duration = Duration::from_millis(250);
/// How often health is reconsidered.
pub(crate) const HEALTH_EVERY: Duration = Duration::from_millis(100);
/// How long requests under way may take to end at shutdown.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);
/// How long each part may take to stop at shutdown.
pub(crate) const STOP: Duration = Duration::from_secs(10);
/// HTTP/2 streams of one client connection.
pub(crate) const CLIENT_STREAMS: u32 = 4_096;
/// Flow-control window of one client stream and of one client connection.
pub(crate) const CLIENT_WINDOWS: (u32, u32) = (4 << 20, 32 << 20);
/// A silent client connection is pinged after this long, and closed after [`CLIENT_KEEP_ALIVE_TIMEOUT`] more.
pub(crate) const CLIENT_KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long a client may leave a keep-alive ping unanswered.
pub(crate) const CLIENT_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Namespaces named in an error at most.
pub(crate) const SUGGESTIONS: usize = 3;
/// Configuration files are small; a larger one is a mistake.
pub(crate) const CONFIG_BYTES: u64 = 1 << 20;
