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
use crate::config::{Entry, TypeConfig, Vote};
use crate::incoming::{Malformed, check_answer};
use crate::limits::{APPEND_AT_MOST, APPEND_IDLE};
use crate::pace::Pace;
use crate::snapshot::Snapshot;
use crate::snapshot::SnapshotData;
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
            Response::RaftVote(reply) => taken_vote(&request.vote, reply),
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

/// An answer to a question for a vote, if one with this vote may be answered so.
fn taken_vote(asked: &Vote, reply: peer::RaftVoteReply) -> Result<VoteResponse<TypeConfig>, RpcError> {
    let vote = codec::from_wire_vote(reply.vote).map_err(undecodable)?;
    let last_log_id = reply.last_log_id.map(codec::from_wire_id);
    check_answer(Some(&vote), last_log_id.as_ref(), asked.leader_id.term).map_err(implausible)?;
    Ok(VoteResponse { vote, vote_granted: reply.granted, last_log_id })
}

/// An answer to an append of which `sent` entries travelled, if it may be answered so.
fn taken_append(
    request: &AppendEntriesRequest<TypeConfig>,
    sent: &[Entry],
    reply: peer::RaftAppendReply,
) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
    use peer::raft_append_reply::Result as Reply;
    match reply.result {
        Some(Reply::Success(true)) => Ok(match sent.last().filter(|_| sent.len() < request.entries.len()) {
            Some(last) => AppendEntriesResponse::PartialSuccess(Some(last.log_id)),
            None => AppendEntriesResponse::Success,
        }),
        Some(Reply::Partial(id)) => {
            let id = codec::from_wire_id(id);
            // openraft takes it for what matches, so it has to be something that was sent.
            let was_sent = request.prev_log_id == Some(id) || sent.iter().any(|entry| entry.log_id == id);
            was_sent.then_some(AppendEntriesResponse::PartialSuccess(Some(id))).ok_or_else(unexpected)
        }
        Some(Reply::MatchedNone(true)) if request.prev_log_id.is_none() => {
            Ok(AppendEntriesResponse::PartialSuccess(None))
        }
        // Nothing conflicts with the beginning of the log.
        Some(Reply::Conflict(true)) if request.prev_log_id.is_some() => Ok(AppendEntriesResponse::Conflict),
        Some(Reply::HigherVote(vote)) => {
            let vote = codec::from_wire_vote(Some(vote)).map_err(undecodable)?;
            check_answer(Some(&vote), None, request.vote.leader_id.term).map_err(implausible)?;
            Ok(AppendEntriesResponse::HigherVote(vote))
        }
        _ => Err(unexpected()),
    }
}

fn implausible(why: Malformed) -> RpcError {
    RpcError::Unreachable(Unreachable::from_string(format!("the peer's answer is refused: {why}")))
}

fn unexpected() -> RpcError {
    RpcError::Unreachable(Unreachable::from_string("unexpected response type of the peer"))
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
        taken_append(&request, entries, reply)
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
            Either::Right((Ok(answered), _)) => {
                check_answer(Some(&answered), None, vote.leader_id.term).map_err(implausible)?;
                Ok(SnapshotResponse { vote: answered })
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::log_id;
    use openraft::vote::RaftLeaderId;
    use peer::raft_append_reply::Result as Reply;

    fn vote(term: u64) -> Vote {
        Vote { leader_id: RaftLeaderId::new(term, 1), committed: true }
    }

    fn request(prev_log_id: Option<crate::config::LogId>, entries: u64) -> AppendEntriesRequest<TypeConfig> {
        let first = prev_log_id.map_or(0, |id| id.index + 1);
        let entry = |index| Entry { log_id: log_id(5, 1, index), payload: EntryPayload::Blank };
        let entries = (first..first + entries).map(entry).collect();
        AppendEntriesRequest { vote: vote(5), prev_log_id, leader_commit: None, entries }
    }

    #[test]
    fn answers_to_an_append_are_of_what_was_sent() {
        let request_of = request(Some(log_id(5, 1, 9)), 4);
        let answer = |sent: usize, result| {
            let reply = peer::RaftAppendReply { result: Some(result) };
            taken_append(&request_of, &request_of.entries[..sent], reply).ok()
        };
        let id = |term, index| peer::LogId { term, node: 1, index };
        let partial = |index| Some(AppendEntriesResponse::PartialSuccess(Some(log_id(5, 1, index))));
        assert_eq!(answer(4, Reply::Success(true)), Some(AppendEntriesResponse::Success));
        assert_eq!(answer(2, Reply::Success(true)), partial(11));
        assert_eq!(answer(4, Reply::Partial(id(5, 9))), partial(9));
        assert_eq!(answer(4, Reply::Partial(id(5, 13))), partial(13));
        // Beyond what was sent, of another leader, or before it.
        for (sent, refused) in
            [(2, id(5, 12)), (4, id(5, 14)), (4, id(4, 12)), (4, id(5, 8)), (4, id(5, u64::MAX))]
        {
            assert_eq!(answer(sent, Reply::Partial(refused)), None, "{refused:?}");
        }
        assert_eq!(answer(4, Reply::Conflict(true)), Some(AppendEntriesResponse::Conflict));
        assert_eq!(answer(4, Reply::MatchedNone(true)), None);
        assert_eq!(answer(4, Reply::Success(false)), None);
        let higher = |term| Reply::HigherVote(codec::to_wire_vote(&vote(term)));
        assert_eq!(answer(4, higher(6)), Some(AppendEntriesResponse::HigherVote(vote(6))));
        assert_eq!(answer(4, higher(u64::MAX)), None);

        let first = request(None, 1);
        let answer = |result| {
            let reply = peer::RaftAppendReply { result: Some(result) };
            taken_append(&first, &first.entries, reply).ok()
        };
        assert_eq!(answer(Reply::Conflict(true)), None, "nothing conflicts with the beginning");
        assert_eq!(answer(Reply::MatchedNone(true)), Some(AppendEntriesResponse::PartialSuccess(None)));
    }
}
