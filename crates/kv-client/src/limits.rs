//! Every bound of the client library. Those that servers must agree on stand in `kv_types::limits`.

use std::time::Duration;

use kv_types::limits::{MAX_STREAM_FRAME_BYTES, SESSION_IDLE, SESSION_WINDOW};

/// Deadline of a read unless the options say otherwise.
pub const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Deadline of a write unless the options say otherwise.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Deadline of a change of the cluster unless the options say otherwise. Longer than the pause between two
/// moves of a leadership, so that a refused move is asked for once more.
pub const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts of one operation, the first one included.
pub const ATTEMPTS: u32 = 3;
/// Attempts that options may ask for (gRPC's retry design, A6).
pub const MAX_ATTEMPTS: u32 = 5;
/// First step of the exponential back-off.
pub const BACKOFF_BASE: Duration = Duration::from_millis(25);
/// Longest step of the back-off.
pub const BACKOFF_CAP: Duration = Duration::from_secs(1);
/// Longest step of the back-off of what is waited out until the deadline, where the retry budget would not
/// last with shorter ones.
pub const WAIT_CAP: Duration = Duration::from_secs(5);
/// Longest pause that a server may ask for and get.
pub const RETRY_AFTER_CAP: Duration = Duration::from_secs(5);
/// Tokens in a full retry budget.
pub const BUDGET_CAP: u32 = 500;
/// Tokens that one retry costs; a success at the first try earns one.
pub const RETRY_COST: u32 = 14;
/// Consecutive failed connections that open a breaker.
pub const BREAKER_FAILURES: u32 = 5;
/// How long a breaker stays open at first; each failed probe doubles it.
pub const BREAKER_FIRST: Duration = Duration::from_millis(250);
/// How long a breaker stays open at most: a restarted node is found again within this time.
pub const BREAKER_CAP: Duration = Duration::from_secs(2);
/// Operations in flight per client; one more is refused at once with `CLIENT_LIMIT`.
pub const MAX_IN_FLIGHT: usize = 256;
/// How long it takes until half of what a client knows about the speed of a node that it does not ask is
/// forgotten.
pub const SPEED_HALF_LIFE: Duration = Duration::from_secs(1);
/// What the answers of a node are taken to need that was never asked.
pub const SPEED_UNKNOWN: Duration = Duration::from_millis(20);
/// A replica that refuses for what it is or sees counts as one whose answers take so long, at least.
pub const SPEED_OF_REFUSALS: Duration = Duration::from_millis(100);
/// A replica that answers so much later than the fastest one is still asked first, if the ring prefers it.
pub const SPEED_SLACK: Duration = Duration::from_millis(10);
/// Endpoints that a client remembers.
pub const MAX_ENDPOINTS: usize = 128;
/// Strong namespaces whose session a client shares among its handles.
pub const MAX_SESSION_SLOTS: usize = 1_000;
/// Time to open a connection, within the operation's deadline.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How often the topology is fetched at most.
pub const TOPOLOGY_INTERVAL: Duration = Duration::from_secs(1);
/// Time to fetch the topology, within the operation's deadline.
pub const TOPOLOGY_TIMEOUT: Duration = Duration::from_millis(300);
/// Nodes asked for the topology at once.
pub const TOPOLOGY_FAN_OUT: usize = 3;
/// How long past an attempt's deadline the client waits for the words of the node that missed it.
pub const ATTEMPT_GRACE: Duration = Duration::from_millis(20);
/// An attempt with less time than this is not begun.
pub const MIN_ATTEMPT: Duration = Duration::from_millis(5);
/// An attempt that may be followed by another one keeps at least this much of the time.
pub const MIN_SHARE: Duration = Duration::from_millis(50);
/// Ping on idle connections with calls in flight, so that a silent cut is noticed.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// How long such a ping may stay unanswered.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Requests in one frame of a session stream, bytes: somewhat less than nodes take.
pub const STREAM_FRAME_BYTES: u64 = 56 << 10;
/// A larger request is a call of its own.
pub const STREAM_REQUEST_BYTES: u64 = 32 << 10;
/// Requests that wait for their frame; more wait in their callers.
pub const STREAM_QUEUE: usize = 1_024;
/// A session unused for this long is left before the servers forget it.
pub const SESSION_REST: Duration = Duration::from_secs(SESSION_IDLE.as_secs() / 2);
/// How far a session's newest request may run ahead of its oldest unanswered one.
pub const SESSION_SPAN: u64 = SESSION_WINDOW - 1;

const _: () = assert!(MAX_IN_FLIGHT as u64 <= SESSION_SPAN);
const _: () = assert!(STREAM_REQUEST_BYTES <= STREAM_FRAME_BYTES);
const _: () = assert!(STREAM_FRAME_BYTES < MAX_STREAM_FRAME_BYTES as u64);
const _: () = assert!(ATTEMPTS <= MAX_ATTEMPTS);
