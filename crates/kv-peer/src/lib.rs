//! Calls between nodes. A call ends in an answer or in a [`PeerError`] that says exactly whether anything
//! left this node, because everything above decides *not applied* or *unknown* by it. Underneath: one
//! long-lived stream of frames per peer and [`Lane`], each on a connection of its own, so that bulk traffic
//! never stands before a heartbeat.

mod delay;
mod limits;
mod link;
mod liveness;
mod peers;
mod service;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kv_proto::peer::{request_frame, response_frame};
use kv_types::{Applied, ClusterId, Epoch, Failure, GroupId, NamespaceId, NodeId, Reason};
use tokio::time::Instant;

pub use liveness::{Liveness, PeerState};
pub use peers::Peers;
pub use service::{PeerServer, server_builder, service};

/// Which connection a call takes: traffic of one kind does not wait for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Heartbeats, votes, pings.
    Control,
    /// Log entries, forwarded strong operations.
    Raft,
    /// Replica reads and writes, forwarded available operations.
    Data,
    /// Hints, repair, pulls, snapshots.
    Bulk,
}

impl Lane {
    /// Every lane.
    pub const ALL: [Self; 4] = [Self::Control, Self::Raft, Self::Data, Self::Bulk];
}

/// What a node says of itself and its peers, and how patient it is.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// The cluster; a message of another one is refused.
    pub cluster_id: ClusterId,
    /// This node.
    pub node_id: NodeId,
    /// Advertised address to the address to dial; others are dialled as advertised.
    pub address_map: BTreeMap<String, String>,
    /// How long a peer may be silent before it is pinged, and the pause between two pings.
    pub ping_every: Duration,
    /// Without an answer for this long a peer is suspected.
    pub suspect_after: Duration,
    /// Without an answer for this long a peer is down.
    pub down_after: Duration,
    /// Calls of one link that wait or are under way; more are refused at once.
    pub link_calls: usize,
    /// Their bytes; one call may be larger when it is alone.
    pub link_bytes: usize,
    /// Calls of one link that were sent and not answered; more wait.
    pub link_in_flight: usize,
    /// Requests that one incoming stream may have under way; more are refused with `OVERLOADED`.
    pub stream_concurrency: usize,
    /// Bytes of the larger requests of all incoming streams that may be under way; more are refused with
    /// `OVERLOADED`. At least those of the largest message.
    pub request_bytes: usize,
    /// Bytes of the larger answers to reads that may wait to be sent on all incoming streams; more are
    /// refused with `OVERLOADED`. At least those of the largest message.
    pub answer_bytes: usize,
}

impl PeerConfig {
    /// The defaults, with no address map.
    pub fn new(cluster_id: ClusterId, node_id: NodeId) -> Self {
        Self {
            cluster_id,
            node_id,
            address_map: BTreeMap::new(),
            ping_every: limits::PING_EVERY,
            suspect_after: limits::SUSPECT_AFTER,
            down_after: limits::DOWN_AFTER,
            link_calls: limits::LINK_CALLS,
            link_bytes: limits::LINK_BYTES,
            link_in_flight: limits::LINK_IN_FLIGHT,
            stream_concurrency: limits::STREAM_CONCURRENCY,
            request_bytes: limits::REQUEST_BYTES,
            answer_bytes: limits::ANSWER_BYTES,
        }
    }
}

/// What a request is about: in every frame, checked by the node that serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Address {
    /// The Raft group, where there is one.
    pub group: GroupId,
    /// The namespace, where there is one.
    pub namespace: NamespaceId,
    /// Epoch of the sender's catalogue.
    pub epoch: Epoch,
}

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Up to this point in time.
    Until(Instant),
    /// As long as its link moves: answers come, or the peer says that bytes arrive. For calls that are large
    /// for the link they take, whose time no fixed deadline fits.
    WhileMoving {
        /// Without any of that for this long the call ends.
        idle: Duration,
        /// However it moves, it ends after this long.
        at_most: Duration,
    },
}

/// What kept a call from being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// There is no connection.
    NoConnection,
    /// The link has as much to do as it may.
    Full,
    /// The deadline passed while it was queued.
    Late,
    /// It is too large for a message, or for a peer that does not exist.
    Invalid,
}

/// Why a call has no answer, or that the answer was no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Nothing left this node, and nothing will.
    #[error("not sent: {why}")]
    NotSent {
        /// What stood in the way.
        cause: Unsent,
        /// The same, for people.
        why: String,
    },
    /// It was handed to the transport, then the stream broke: its fate is open.
    #[error("sent, then the connection was lost: {why}")]
    Lost {
        /// What broke.
        why: String,
    },
    /// It was handed to the transport and no answer came by the deadline.
    #[error("sent, no answer by the deadline")]
    TimedOut,
    /// The peer answered with a failure, whose `applied` is authoritative.
    #[error("refused: {0}")]
    Refused(Failure),
}

impl PeerError {
    pub(crate) fn not_sent(cause: Unsent, why: impl Into<String>) -> Self {
        Self::NotSent { cause, why: why.into() }
    }

    /// Whether anything may have reached the peer.
    pub fn was_sent(&self) -> bool {
        !matches!(self, Self::NotSent { .. })
    }

    /// Whether what was asked for may have happened, or may still.
    pub fn applied(&self) -> Applied {
        match self {
            Self::NotSent { .. } => Applied::No,
            Self::Lost { .. } | Self::TimedOut => Applied::Unknown,
            Self::Refused(failure) => failure.applied,
        }
    }

    /// As the failure of a request that was passed on to `to`: `UNREACHABLE`, `OVERLOADED` or
    /// `DEADLINE_EXPIRED` (not applied), `RESULT_UNKNOWN` (unknown), or what the peer said.
    pub fn into_failure(self, to: NodeId) -> Failure {
        match self {
            Self::NotSent { cause, why } => {
                let reason = match cause {
                    Unsent::NoConnection | Unsent::Invalid => Reason::Unreachable,
                    Unsent::Full => Reason::Overloaded,
                    Unsent::Late => Reason::DeadlineExpired,
                };
                Failure::new(reason, format!("{to} was not reached: {why}"))
            }
            Self::Lost { why } => Failure::new(
                Reason::ResultUnknown,
                format!("the connection to {to} broke before it answered: {why}"),
            ),
            Self::TimedOut => {
                Failure::new(Reason::ResultUnknown, format!("{to} did not answer by the deadline"))
            }
            Self::Refused(failure) => failure,
        }
    }
}

/// A request from a peer, whose cluster and target were checked. Whether `from` is a member is for the
/// handler to judge.
#[derive(Debug)]
pub struct PeerRequest {
    /// Who asks.
    pub from: NodeId,
    /// What it is about.
    pub about: Address,
    /// By when the answer is wanted.
    pub deadline: Instant,
    /// What is asked.
    pub body: request_frame::Body,
}

/// Serves peers. The future is never cancelled: it has to end by the request's deadline, give or take.
pub trait PeerHandler: Send + Sync + 'static {
    /// Serves one request. Requests of one stream run concurrently.
    fn handle(&self, request: PeerRequest) -> BoxFuture<'static, Result<response_frame::Body, Failure>>;
}
