//! Raft's messages over kv-peer. Heartbeats and votes have a lane of their own, so that entries never delay
//! an election; snapshots have another. Every call has a deadline; what did not leave this node makes
//! openraft back off.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use kv_peer::{Address, Lane, Patience, PeerError, Peers};
use kv_proto::peer;
use kv_proto::peer::request_frame::Body as Request;
use kv_proto::peer::response_frame::Body as Response;
use kv_types::catalogue::Catalogue;
use kv_types::{GroupId, NodeId};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, EntryPayload, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::codec;
use crate::config::limits::{APPEND_AT_MOST, APPEND_IDLE};
use crate::config::{Entry, Snapshot, TypeConfig, Vote};
use crate::machine::SnapshotData;
use crate::pace::Pace;
use crate::snapshot_out::Outgoing;

type RpcError = RPCError<TypeConfig>;

/// Makes the clients of one group.
pub(crate) struct Network {
    pub(crate) group: GroupId,
    pub(crate) peers: Peers,
    pub(crate) catalogue: watch::Receiver<Arc<Catalogue>>,
    pub(crate) outgoing: Arc<Outgoing>,
}

impl Network {
    fn client(&self, target: u64, append_lane: Lane) -> Client {
        Client {
            group: self.group,
            peers: self.peers.clone(),
            catalogue: self.catalogue.clone(),
            outgoing: self.outgoing.clone(),
            target: NodeId(target),
            append_lane,
            pace: Pace::default(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Client {
        self.client(target, Lane::Raft)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _: &EmptyNode) -> Client {
        self.client(target, Lane::Control)
    }

    async fn new_snapshot_client(&mut self, target: u64, _: &EmptyNode) -> Client {
        self.client(target, Lane::Bulk)
    }
}

/// Sends one group's messages to one peer.
pub(crate) struct Client {
    group: GroupId,
    peers: Peers,
    catalogue: watch::Receiver<Arc<Catalogue>>,
    outgoing: Arc<Outgoing>,
    target: NodeId,
    append_lane: Lane,
    /// How much the target gets at once.
    pace: Pace,
}

impl Client {
    async fn ask(&self, lane: Lane, body: Request, patience: Patience) -> Result<Response, PeerError> {
        let about = Address { group: self.group, epoch: self.catalogue.borrow().epoch, ..Address::default() };
        self.peers.call_with(self.target, lane, about, body, patience).await
    }

    async fn call(&self, lane: Lane, body: Request, within: Duration) -> Result<Response, RpcError> {
        self.call_with(lane, body, Patience::Until(Instant::now() + within)).await
    }

    async fn call_with(&self, lane: Lane, body: Request, patience: Patience) -> Result<Response, RpcError> {
        self.ask(lane, body, patience).await.map_err(|error| match error {
            // A refusal will be repeated for a while, a missing connection too: back off.
            PeerError::NotSent { .. } | PeerError::Refused(_) => {
                RpcError::Unreachable(Unreachable::from_string(error.to_string()))
            }
            PeerError::Lost { .. } | PeerError::TimedOut => {
                RpcError::Network(NetworkError::from_string(error.to_string()))
            }
        })
    }

    async fn ask_for_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        pre_vote: bool,
        within: Duration,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let body = Request::RaftVote(peer::RaftVote {
            vote: Some(codec::to_wire_vote(&request.vote)),
            last_log_id: request.last_log_id.as_ref().map(codec::to_wire_id),
            leadership_transfer: request.leadership_transfer,
            pre_vote,
        });
        match self.call(Lane::Control, body, within).await? {
            Response::RaftVote(reply) => Ok(VoteResponse {
                vote: codec::from_wire_vote(reply.vote).map_err(undecodable)?,
                vote_granted: reply.granted,
                last_log_id: reply.last_log_id.map(codec::from_wire_id),
            }),
            _ => Err(unexpected()),
        }
    }
}

/// What an entry weighs on the wire, about.
fn payload_bytes(entry: &Entry) -> usize {
    /// Its name and the envelope.
    const OVERHEAD: usize = 32;
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.0.len() + OVERHEAD,
        EntryPayload::Blank | EntryPayload::Membership(_) => OVERHEAD,
    }
}

fn unexpected() -> RpcError {
    RpcError::Unreachable(Unreachable::from_string("the peer's answer is to another question"))
}

fn undecodable(error: codec::CodecError) -> RpcError {
    RpcError::Unreachable(Unreachable::from_string(format!("the peer's answer: {error}")))
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        use peer::raft_append_reply::Result as Reply;
        let begun = Instant::now();
        let patience = match self.append_lane {
            Lane::Control => Patience::Until(begun + option.hard_ttl()),
            // openraft offers one heartbeat's time, which a slow fsync of the follower or a slow link
            // exceeds.
            _ => Patience::WhileMoving { idle: option.hard_ttl().max(APPEND_IDLE), at_most: APPEND_AT_MOST },
        };
        // What is over the budget is sent after the answer: openraft goes on behind a partial success.
        let keep = self.pace.prefix(request.entries.iter().map(payload_bytes));
        let entries = request.entries.get(..keep).unwrap_or(&request.entries);
        let last_of_part = entries.last().filter(|_| entries.len() < request.entries.len());
        let last_of_part = last_of_part.map(|entry| entry.log_id);
        let bytes = entries.iter().map(payload_bytes).sum();
        let body = Request::RaftAppend(peer::RaftAppend {
            vote: Some(codec::to_wire_vote(&request.vote)),
            previous: request.prev_log_id.as_ref().map(codec::to_wire_id),
            entries: entries.iter().map(codec::to_wire_entry).collect(),
            committed: request.leader_commit.as_ref().map(codec::to_wire_id),
        });
        let reply = match self.call_with(self.append_lane, body, patience).await {
            Ok(Response::RaftAppend(reply)) => reply,
            Ok(_) => return Err(unexpected()),
            Err(error) => {
                if matches!(error, RpcError::Network(_)) {
                    self.pace.stalled();
                }
                return Err(error);
            }
        };
        self.pace.took(bytes, begun.elapsed());
        match reply.result {
            Some(Reply::Success(true)) => Ok(match last_of_part {
                Some(last) => AppendEntriesResponse::PartialSuccess(Some(last)),
                None => AppendEntriesResponse::Success,
            }),
            Some(Reply::Partial(id)) => {
                Ok(AppendEntriesResponse::PartialSuccess(Some(codec::from_wire_id(id))))
            }
            Some(Reply::MatchedNone(true)) => Ok(AppendEntriesResponse::PartialSuccess(None)),
            Some(Reply::Conflict(true)) => Ok(AppendEntriesResponse::Conflict),
            Some(Reply::HigherVote(vote)) => {
                let vote = codec::from_wire_vote(Some(vote)).map_err(undecodable)?;
                Ok(AppendEntriesResponse::HigherVote(vote))
            }
            _ => Err(unexpected()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ask_for_vote(request, false, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ask_for_vote(request, true, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let give = self.outgoing.give(self.target, vote, snapshot, |body, within| {
            self.ask(Lane::Bulk, body, Patience::Until(Instant::now() + within))
        });
        match select(std::pin::pin!(cancel), std::pin::pin!(give)).await {
            Either::Left((closed, _)) => Err(StreamingError::Closed(closed)),
            Either::Right((Ok(vote), _)) => Ok(SnapshotResponse { vote }),
            // openraft comes back after a pause, with the newest snapshot there is then.
            Either::Right((Err(error), _)) => {
                tracing::warn!(group = self.group.0, to = %self.target, %error, "a snapshot has not arrived");
                Err(RpcError::Unreachable(Unreachable::from_string(error.to_string())).into())
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let body = Request::RaftTransferLeader(peer::RaftTransferLeader {
            from: Some(codec::to_wire_vote(request.from_leader())),
            to: *request.to_node_id(),
            last_log_id: request.last_log_id().map(codec::to_wire_id),
        });
        match self.call(Lane::Control, body, option.hard_ttl()).await? {
            Response::RaftTransferLeader(_) => Ok(Ok(())),
            _ => Err(unexpected()),
        }
    }
}
