//! Every bound and timing of this crate, in one place.

use std::time::Duration;

use kv_types::limits::MAX_PEER_MESSAGE_BYTES;

/// Queued frames are sent together up to so many bytes; a larger frame travels alone. Keeps single messages
/// short enough not to hold up their neighbours, and far above the 256 bytes under which h2 counts DATA
/// frames as suspicious.
pub(crate) const COALESCE_BYTES: usize = 256 << 10;
/// Frames sent together at most.
pub(crate) const COALESCE_FRAMES: usize = 1_024;
/// Room that a message needs beside the bodies of its frames.
pub(crate) const FRAME_OVERHEAD_BYTES: usize = 128;
/// Largest body of one frame.
pub(crate) const MAX_BODY_BYTES: usize = MAX_PEER_MESSAGE_BYTES - 1_024;

/// Calls of one link that wait or are under way.
pub(crate) const LINK_CALLS: usize = 8_192;
/// Their bytes; one call may be larger when it is alone.
pub(crate) const LINK_BYTES: usize = 64 << 20;
/// Calls of one link that were sent and not answered; more wait in the queue, where they count as not sent.
pub(crate) const LINK_IN_FLIGHT: usize = 4_096;
/// Requests that one incoming stream may have under way; above what an honest sender keeps in flight, since
/// those it has given up on still count here.
pub(crate) const STREAM_CONCURRENCY: usize = 8_192;

/// Bytes of the requests of all incoming streams that are under way: four links of the largest size. What is
/// larger than [`SMALL_BYTES`] is refused beyond it.
pub(crate) const REQUEST_BYTES: usize = 256 << 20;
/// Bytes of the answers to reads of other nodes that were not sent yet, of all streams. What is larger than
/// [`SMALL_BYTES`] is refused beyond it: a read that is refused has changed nothing.
pub(crate) const ANSWER_BYTES: usize = 256 << 20;
/// A request of at most so many bytes is not counted: heartbeats and votes pass while large ones are refused,
/// and [`STREAM_CONCURRENCY`] bounds them.
pub(crate) const SMALL_BYTES: usize = 1 << 10;

/// Streams of one incoming connection. An honest peer has one, for a moment perhaps two; each may hold a
/// message of the largest size while it arrives.
pub(crate) const CONNECTION_STREAMS: u32 = 4;

/// Dialling, handshake and the first answer of the peer.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// The first pause after a failed attempt.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest pause: short, because a cluster must converge within two seconds of healing.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_millis(300);
/// HTTP/2 pings a silent connection that this node dialled after this long, and gives
/// it up after [`KEEP_ALIVE_TIMEOUT`] more.
/// Without it a silent cut stalls TCP for many seconds after it heals.
pub(crate) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// The same of one that was accepted: the node that dialled it knows earlier, and comes again.
pub(crate) const ACCEPTED_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How long a keep-alive ping may stay unanswered.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the accepting side of a stream says that bytes of an unfinished message arrive. Well below the
/// shortest idle time that callers use, and below [`KEEP_ALIVE_INTERVAL`], whose ping would wait behind those
/// bytes.
pub(crate) const REPORT_EVERY: Duration = Duration::from_millis(250);
/// Fewer bytes are no part of a message worth a report: keep-alives, or a link below 4 kB a second.
pub(crate) const REPORT_BYTES: u64 = 1 << 10;

/// Flow-control window of one stream.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Flow-control window of one connection.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// Largest HTTP/2 frame. The keep-alive hears whole frames: one that takes longer than
/// [`KEEP_ALIVE_INTERVAL`] on a slow link makes the accepting side ping, the answer waits behind the bytes
/// that are on their way, and the connection is given up in the middle of a message, again and again. So
/// links down to 32 kB/s work.
pub(crate) const H2_FRAME_BYTES: u32 = 32 << 10;

/// Default of [`crate::PeerConfig::ping_every`].
pub(crate) const PING_EVERY: Duration = Duration::from_millis(100);
/// Default of [`crate::PeerConfig::suspect_after`].
pub(crate) const SUSPECT_AFTER: Duration = Duration::from_millis(300);
/// Default of [`crate::PeerConfig::down_after`].
pub(crate) const DOWN_AFTER: Duration = Duration::from_secs(3);

const _: () = assert!(STREAM_CONCURRENCY >= LINK_IN_FLIGHT);
const _: () = assert!(REPORT_EVERY.as_millis() * 2 <= KEEP_ALIVE_INTERVAL.as_millis());
const _: () = assert!(LINK_CALLS >= LINK_IN_FLIGHT);
const _: () = assert!(ANSWER_BYTES >= 4 * MAX_BODY_BYTES);
const _: () = assert!(REQUEST_BYTES >= 4 * LINK_BYTES && REQUEST_BYTES >= MAX_BODY_BYTES);
