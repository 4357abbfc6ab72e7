//! Every bound that more than one crate must agree on. A limit that only one crate knows stands in that
//! crate's own `limits`; each is tested at the bound.

use std::time::Duration;

/// Longest key, bytes.
pub const MAX_KEY_BYTES: usize = 4 << 10;
/// Longest value, bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Longest name of a namespace, bytes.
pub const MAX_NAMESPACE_NAME_BYTES: usize = 64;
/// Namespaces in a cluster. They are metric labels, hence few.
pub const MAX_NAMESPACES: usize = 1_000;
/// How long a deletion of a namespace can be undone, unless said otherwise.
pub const DELETION_GRACE: Duration = Duration::from_secs(24 * 3_600);
/// The shortest such time that can be asked for.
pub const MIN_DELETION_GRACE: Duration = Duration::from_secs(1);
/// The longest one.
pub const MAX_DELETION_GRACE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Longest encoded causal context that a client may hand in, bytes.
pub const MAX_CONTEXT_BYTES: usize = 64 << 10;
/// Ranges of the dots that a node clock has: each gap is a write that has not arrived.
pub const MAX_CLOCK_RANGES: usize = 1 << 14;
/// Ranges of a causal context between nodes: several node clocks with gaps in different places.
pub const MAX_CONTEXT_RANGES: usize = 1 << 16;
/// Concurrent values of one key; a client write that would exceed it is refused, a merge never is.
pub const MAX_SIBLINGS: usize = 100;
/// Bytes of the concurrent values of one key that a client write may make; a merge may exceed it.
pub const MAX_SIBLINGS_BYTES: usize = 2 << 20;
/// Longest error message and detail on the wire, bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 10;
/// Longest deadline that a server honours; longer ones are capped.
pub const MAX_DEADLINE: Duration = Duration::from_secs(60);
/// Largest message between client and server, bytes: a value with room for key, contexts and siblings.
pub const MAX_PUBLIC_MESSAGE_BYTES: usize = 16 << 20;
/// Largest message between nodes, bytes: what a client may send or get, or the largest record of storage,
/// with room for an envelope. Snapshots travel in pieces.
pub const MAX_PEER_MESSAGE_BYTES: usize = 24 << 20;
/// Results of one session that a strong group keeps for deduplication.
pub const SESSION_WINDOW: u64 = 1_024;
/// Sessions that a strong group keeps; beyond it the one unused longest is forgotten.
pub const MAX_SESSIONS: usize = 100_000;
/// A session unused for this long is forgotten.
pub const SESSION_IDLE: Duration = Duration::from_secs(600);
/// How long an available namespace can prove that a request was already taken; an older resend is refused.
pub const REQUEST_WINDOW: Duration = Duration::from_secs(600);
/// Ring partitions of a ring.
pub const RING_PARTITIONS: u32 = 256;
/// Replicas per key at most.
pub const MAX_REPLICAS: u8 = 7;
/// Voters of a Raft group at most.
pub const MAX_VOTERS: usize = 5;
/// Members of a cluster at most.
pub const MAX_MEMBERS: usize = 64;
/// How far two nodes' wall clocks may differ before what one of them says is not followed when a stamp is
/// minted.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_millis(500);

const _: () = assert!(MAX_PUBLIC_MESSAGE_BYTES > MAX_VALUE_BYTES + MAX_KEY_BYTES + MAX_CONTEXT_BYTES);
const _: () = assert!(MAX_PEER_MESSAGE_BYTES > MAX_PUBLIC_MESSAGE_BYTES);
const _: () = assert!(RING_PARTITIONS.is_power_of_two());
const _: () = assert!(MIN_DELETION_GRACE.as_secs() <= DELETION_GRACE.as_secs());
const _: () = assert!(DELETION_GRACE.as_secs() <= MAX_DELETION_GRACE.as_secs());

/// The version of the protocol of session streams.
pub const STREAM_VERSION: u32 = 1;
/// Largest frame of a client on a session stream, bytes. Larger requests are calls of their own.
pub const MAX_STREAM_FRAME_BYTES: usize = 64 << 10;
