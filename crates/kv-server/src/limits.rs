//! Bounds and timings that only the server knows.
//!
//! What clients can make a node hold is bounded by `connections × (connection window + opening bytes and
//! codec buffers + two frames of session streams that are not whole) + buffered_size + overdraft`: what
//! arrives and is not admitted yet, what is admitted, and the answers of writes that were applied while the
//! account was full (`concurrent_requests` × the longest context). Besides, a session stream may have as many
//! refusals waiting as it may have requests open, of some 300 bytes each. The second term is
//! [`crate::admission`]'s account.

use std::time::Duration;

use kv_types::limits::{MAX_CONTEXT_BYTES, MAX_KEY_BYTES, MAX_NAMESPACE_NAME_BYTES, MAX_VALUE_BYTES};

/// Default of `[limits] concurrent_requests`.
pub(crate) const CONCURRENT_REQUESTS: usize = 4_096;
/// Default of `[limits] connections`.
pub(crate) const CONNECTIONS: usize = 1_024;
/// Default of `[limits] buffered_size`, bytes.
pub(crate) const BUFFERED_BYTES: u64 = 256 << 20;
/// Least `[storage] snapshot_rate`, bytes per second: slower, a snapshot would rarely be done before the next
/// one is due.
pub(crate) const SNAPSHOT_RATE_MIN: u64 = 1 << 20;
/// Streams that may be open for each request that may be worked on: those arriving and those being answered
/// count too.
pub(crate) const STREAMS_PER_REQUEST: usize = 2;
/// When a request that was refused for overload may come back.
pub(crate) const OVERLOAD_RETRY_MS: u32 = 50;
/// An answer leaves this long before the caller's deadline (or a tenth of its time, if that is less), so that
/// it arrives.
pub(crate) const ANSWER_MARGIN: Duration = Duration::from_millis(20);
/// How long past its deadline an answer may still be on its way; then its stream is reset.
pub(crate) const SEND_GRACE: Duration = Duration::from_millis(250);
/// How long a call that states no deadline may take to arrive and to take its refusal.
pub(crate) const UNSTATED_DEADLINE: Duration = Duration::from_secs(5);
/// How long a request for an unknown namespace waits for the catalogue to bring it: a little more than a
/// heartbeat, which is what a follower may lag behind the answer to `CreateNamespace`.
pub(crate) const NAMESPACE_WAIT: Duration = Duration::from_millis(250);
/// How often health is reconsidered.
pub(crate) const HEALTH_EVERY: Duration = Duration::from_millis(100);
/// How long a first start may wait for other nodes until it says for whom.
pub(crate) const WAIT_BEFORE_NOTICE: Duration = Duration::from_secs(2);
/// How often it says so.
pub(crate) const WAIT_BETWEEN_NOTICES: Duration = Duration::from_secs(10);
/// How long a node that stops tries to let other members lead.
pub(crate) const HAND_OVER: Duration = Duration::from_secs(1);
/// How long requests under way may take to end at shutdown.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);
/// How long each part may take to stop at shutdown.
pub(crate) const STOP: Duration = Duration::from_secs(10);
/// How long the whole stop may take before the process ends itself: every part at its bound, and a margin.
pub(crate) const STOP_WHOLE: Duration = Duration::from_secs(40);
/// How long a process that ends waits for the reader of its last message.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);

/// Largest request of a client: a value, a key, a context, and room for the rest.
pub(crate) const MAX_REQUEST_BYTES: usize = MAX_VALUE_BYTES + MAX_KEY_BYTES + MAX_CONTEXT_BYTES + (64 << 10);
/// Largest question about the interface (reflection): the name of a file or of what stands in one.
pub(crate) const REFLECTION_REQUEST_BYTES: usize = 4 << 10;
/// What a call that asks such questions counts for until it ends, bytes: the questions that arrive, and the
/// answers on their way, which are files of the interface. A test in [`crate::reflection`] adds them up.
pub(crate) const REFLECTION_BYTES: usize = 320 << 10;
/// HTTP/2 streams of one client connection.
pub(crate) const CLIENT_STREAMS: u32 = 1_024;
/// Flow-control window of one client stream: what may arrive of it before it is admitted, bytes.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 128 << 10;
/// Flow-control window of one client connection, bytes.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;
/// Overhead of small DATA frames that arrived and were not taken yet, bytes (h2 counts up to 256 for each):
/// one small frame on every stream fits twice, so that a burst of small requests does not end its connection.
pub(crate) const SMALL_FRAME_BYTES: usize = CLIENT_STREAMS as usize * 256 * 2;
/// Session streams of one client connection: one, and another while it ends.
pub(crate) const STREAMS_OF_SESSIONS: usize = 2;
/// Requests that a client may have open on one session stream.
pub(crate) const STREAM_OPEN_REQUESTS: usize = 1_024;
/// Bytes of their messages.
pub(crate) const STREAM_OPEN_BYTES: usize = 4 << 20;
/// Reads of a session stream begin while fewer bytes of answers wait to be sent or are expected.
pub(crate) const STREAM_UNSENT_BYTES: usize = 4 << 20;
/// What the first reads of a session stream are expected to find, and the most that any are, bytes.
pub(crate) const STREAM_READ_BYTES: usize = STREAM_UNSENT_BYTES / 16;
/// Answers that go out in one frame, bytes; one alone may be larger.
pub(crate) const STREAM_ANSWER_FRAME_BYTES: usize = 128 << 10;
/// How long a stream on which the node takes no more requests is kept for those on their way.
pub(crate) const STREAM_DRAIN: Duration = Duration::from_secs(1);
/// Longest headers of a request, bytes.
pub(crate) const HEADER_BYTES: u32 = 8 << 10;
/// What one stream hands to the connection at a time, bytes.
pub(crate) const SEND_BUFFER_BYTES: usize = 64 << 10;
/// A client connection is pinged this often, and closed when it does not answer within
/// [`CLIENT_KEEP_ALIVE_TIMEOUT`].
pub(crate) const CLIENT_KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long a client may leave a keep-alive ping unanswered.
pub(crate) const CLIENT_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A client connection without a request for this long is closed in order; the client opens another when it
/// needs one.
pub(crate) const CLIENT_IDLE: Duration = Duration::from_secs(300);
/// How long a piece of a stream without a deadline (`Health/Watch`) may wait to be taken.
pub(crate) const WATCH_STALL: Duration = Duration::from_secs(10);

/// How long a connection may take until its HTTP/2 preface is there, and on the port for other nodes until
/// it has said which node it is.
pub(crate) const OPENING_TIME: Duration = Duration::from_secs(3);
/// The preface with the header of the settings frame that follows it, bytes.
pub(crate) const OPENING_BYTES: usize = 24 + 9;
/// Connections that were told to close for newer ones and did not yet.
pub(crate) const CLOSING_CONNECTIONS: usize = 64;
/// Pause after the system could not accept a connection (no descriptors, no memory).
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Descriptors for storage, listeners, logs and what the runtime needs.
pub(crate) const RESERVED_DESCRIPTORS: usize = 256;
/// Connections from each member: four lanes, twice while one replaces the other.
pub(crate) const CONNECTIONS_PER_MEMBER: usize = 8;
/// A node that could serve fewer clients than this does not start.
pub(crate) const MIN_CONNECTIONS: usize = 16;

/// Namespaces named in an error at most.
pub(crate) const SUGGESTIONS: usize = 3;
/// Names that are compared with an unknown one at most.
pub(crate) const SUGGESTION_CANDIDATES: usize = 100;
/// Configuration files are small; a larger one is a mistake.
pub(crate) const CONFIG_BYTES: u64 = 1 << 20;

const _: () = assert!(
    MAX_REQUEST_BYTES > MAX_VALUE_BYTES + MAX_KEY_BYTES + MAX_CONTEXT_BYTES + MAX_NAMESPACE_NAME_BYTES
);
const _: () = assert!(STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES);
// A single request and a single answer of the largest size fit a class's share, a third.
const _: () = assert!(BUFFERED_BYTES >= 3 * kv_types::limits::MAX_PUBLIC_MESSAGE_BYTES as u64);
const _: () = assert!(
    STOP_WHOLE.as_secs() > HAND_OVER.as_secs() + DRAIN.as_secs() * 3 + STOP.as_secs() * 2
        && SEND_GRACE.as_millis() < DRAIN.as_millis()
);
