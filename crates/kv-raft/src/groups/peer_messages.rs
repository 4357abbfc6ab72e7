//! What peers send to the group: each message is checked, and refused by name where no peer may send it or
//! this node must not take part, before openraft sees it.

use std::sync::atomic::Ordering;

use kv_peer::PeerRequest;
use kv_proto::peer;
use kv_proto::peer::request_frame::Body as Request;
use kv_proto::peer::response_frame::Body as Response;
use kv_types::{Failure, NodeId, Reason};
use openraft::AsyncRuntime;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::Fatal;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};
use tokio::time::{Instant, timeout_at};

use super::{Group, NOT_ELIGIBLE_TO_LEAD, lock};
use crate::codec::{self, CodecError};
use crate::config::{Entry, LogId, TypeConfig, Vote};
use crate::incoming::{Known, check_append, check_vote, committed_in_log};
use crate::limits::FULL_LOG_RETRY_MS;
use crate::rejoin::{self, Role};
use crate::runtime::NodeRuntime;
use crate::snapshot::Snapshot;
use crate::snapshot_in::{self, Standing};

impl Group {
    /// Answers a message of Raft, by the deadline that it carries.
    pub(crate) async fn handle(&self, request: PeerRequest) -> Result<Response, Failure> {
        let late = || Failure::new(Reason::ResultUnknown, "the request was not finished by its deadline");
        let (from, deadline) = (request.from, request.deadline);
        let served = async {
            match request.body {
                Request::RaftSnapshot(sent) => Box::pin(self.take_snapshot(from, sent)).await,
                Request::RaftHistory(_) => Box::pin(self.answer_history(request)).await,
                body => self.serve(from, body).await,
            }
        };
        timeout_at(deadline, served).await.map_err(|_| late())?
    }

    /// Takes one step of a snapshot's transfer.
    async fn take_snapshot(&self, from: NodeId, sent: peer::RaftSnapshot) -> Result<Response, Failure> {
        use peer::raft_snapshot_reply::Result as Reply;
        let answer = |result| Ok(Response::RaftSnapshot(peer::RaftSnapshotReply { result: Some(result) }));
        self.admit(&Request::RaftSnapshot(peer::RaftSnapshot::default()))?;
        let vote = codec::from_wire_vote(sent.vote).map_err(|error| self.malformed(from, &error))?;
        let known_term = self.leader_and_term().1;
        check_vote(from, &vote, true, known_term).map_err(|why| self.malformed(from, &why))?;
        let step = sent.step.ok_or_else(|| {
            Failure::new(Reason::InvalidRequest, "a step of a snapshot that is unknown here")
        })?;
        let standing = Standing {
            vote: self.raft.server_metrics().borrow_watched().vote,
            committed: self.raft.data_metrics().borrow_watched().local_committed,
        };
        if standing.vote > vote {
            return answer(Reply::HigherVote(codec::to_wire_vote(&standing.vote)));
        }
        let raft = self.raft.clone();
        let install = move |snapshot: Snapshot| async move {
            let failed = |fatal: Fatal<TypeConfig>| Failure::new(Reason::Internal, fatal.to_string());
            // Minutes have passed since it was announced. openraft asserts what is asked here, and does so
            // next.
            let committed = raft.with_raft_state(|state| state.local_committed().copied());
            if snapshot_in::contradicts(snapshot.meta.last_log_id, committed.await.map_err(failed)?) {
                return Err(Failure::new(Reason::InvalidRequest, snapshot_in::CONTRADICTS_COMMITTED));
            }
            let installed = raft.install_full_snapshot(vote, snapshot).await;
            installed.map(|reply| reply.vote).map_err(failed)
        };
        // In a task of its own: the step is finished whether or not the caller waits, since bytes may be on
        // their way to the disk.
        let step = self.incoming.clone().step(from, vote, step, standing, install);
        let taken = NodeRuntime::spawn(step).await;
        let reply = taken.map_err(|error| Failure::new(Reason::Internal, error.to_string()))??;
        if matches!(reply, Reply::Installed(_)) {
            // What is here already may not be durable yet, and will count as acknowledged.
            let durable = self.around.storage.raft(self.id).barrier().await;
            durable.map_err(|error| Failure::new(Reason::StorageFailed, error.to_string()))?;
        }
        self.heard_leader();
        answer(reply)
    }

    /// Refuses messages in which a node with a fresh directory must not take part.
    fn admit(&self, body: &Request) -> Result<(), Failure> {
        let why = match (&*lock(&self.role), body) {
            (Role::Settled, _) | (_, Request::RaftSurvey(_)) => return Ok(()),
            (Role::Joining(_), Request::RaftAppend(_) | Request::RaftSnapshot(_)) => return Ok(()),
            (Role::Joining(joining), Request::RaftVote(ask))
                if joining.may_vote(ask.last_log_id.map(codec::from_wire_id)) =>
            {
                return Ok(());
            }
            (Role::Joining(_), Request::RaftTransferLeader(_)) => NOT_ELIGIBLE_TO_LEAD,
            (Role::Joining(_), _) => "its directory was fresh; it gives no vote before it has caught up",
            (Role::Asking, _) => "its directory is fresh, and it has not heard yet from enough members",
        };
        Err(Failure::new(Reason::NotReady, format!("{}: {why}", self.around.config.node_id)))
    }

    /// Refuses an append that no leader sends, and entries of `bytes` bytes in all when the log has no room
    /// for them or too many committed entries wait to be applied. An append that the log refuses would end
    /// the group. Heartbeats are answered, so the leader stays.
    fn vet_append(
        &self,
        from: NodeId,
        append: &AppendEntriesRequest<TypeConfig>,
        bytes: usize,
    ) -> Result<(), Failure> {
        let log = self.around.storage.raft(self.id);
        let (committed, applied) = {
            let metrics = self.raft.data_metrics();
            let metrics = metrics.borrow_watched();
            (metrics.local_committed, metrics.last_applied)
        };
        let known = Known {
            term: self.leader_and_term().1,
            committed: committed_in_log(committed, applied, self.incoming.is_receiving()),
            id_of: &|index| log.id_of(index).map(codec::from_storage_id),
        };
        check_append(from, append, &known, self.check).map_err(|why| self.malformed(from, &why))?;
        if append.entries.is_empty() {
            return Ok(());
        }
        // Only what is committed counts: it is applied without any help of a leader.
        let next = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
        let unapplied = next(committed).saturating_sub(next(applied));
        if unapplied > self.around.config.apply_lag_entries() {
            let me = self.around.config.node_id;
            let why = format!("{me} has {unapplied} committed entries of {} to apply", self.id);
            return Err(Failure::new(Reason::Overloaded, why).retry_after_ms(FULL_LOG_RETRY_MS));
        }
        let room = log.room_for(bytes);
        if self.full.swap(room.is_err(), Ordering::AcqRel) != room.is_err() {
            match &room {
                Err(full) => tracing::warn!(group = %self.id, %full, "entries of the leader are refused"),
                Ok(()) => {
                    tracing::info!(group = %self.id, "the log has room for entries of the leader again")
                }
            }
        }
        room.map_err(|full| {
            Failure::new(Reason::LimitStorage, full.to_string()).retry_after_ms(FULL_LOG_RETRY_MS)
        })
    }

    async fn take_append(&self, from: NodeId, append: peer::RaftAppend) -> Result<Response, Failure> {
        let bad = |error: CodecError| self.malformed(from, &error);
        let bytes = append.entries.iter().map(|entry| entry.payload.len()).sum();
        let vote = codec::from_wire_vote(append.vote).map_err(bad)?;
        let entries = append.entries.into_iter().map(codec::from_wire_entry);
        let request = AppendEntriesRequest {
            vote,
            prev_log_id: append.previous.map(codec::from_wire_id),
            entries: entries.collect::<Result<Vec<Entry>, _>>().map_err(bad)?,
            leader_commit: append.committed.map(codec::from_wire_id),
        };
        self.vet_append(from, &request, bytes)?;
        let position = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        lock(&self.heard).offered(vote.leader_id, position, request.leader_commit);
        let reply = self.raft.append_entries(request).await;
        let reply = reply.map_err(|error| self.fatal(&error.unwrap_fatal()))?;
        if matches!(reply, AppendEntriesResponse::Success) {
            lock(&self.heard).taken(vote.leader_id, position);
        }
        Ok(Response::RaftAppend(self.append_reply(reply)))
    }

    /// Checks a message other than a step of a snapshot, and answers it.
    async fn serve(&self, from: NodeId, body: Request) -> Result<Response, Failure> {
        self.admit(&body)?;
        match body {
            Request::RaftAppend(append) => self.take_append(from, append).await,
            Request::RaftVote(ask) => self.answer_vote(from, ask).await,
            Request::RaftTransferLeader(order) => self.take_leadership(from, order).await,
            Request::RaftSurvey(_) => self.answer_survey(from),
            _ => Err(Failure::new(Reason::InvalidRequest, "not a message of Raft")),
        }
    }

    /// Refuses a vote that this peer cannot have.
    fn check_vote_of(&self, from: NodeId, vote: &Vote, elected: bool) -> Result<(), Failure> {
        let known_term = self.leader_and_term().1;
        check_vote(from, vote, elected, known_term).map_err(|why| self.malformed(from, &why))
    }

    /// Answers a candidate, or a node that asks whether it may campaign.
    async fn answer_vote(&self, from: NodeId, ask: peer::RaftVote) -> Result<Response, Failure> {
        // A leader that hands over has stopped serving by itself, so no lease is broken.
        let rests = Instant::now() < self.rested && !self.formed.load(Ordering::Acquire);
        if rests && !ask.leadership_transfer {
            let why =
                "this node has just started and may have promised its vote; it gives none for one lease";
            return Err(Failure::new(Reason::NotReady, why));
        }
        let vote = codec::from_wire_vote(ask.vote).map_err(|error| self.malformed(from, &error))?;
        self.check_vote_of(from, &vote, false)?;
        if !ask.pre_vote && vote.leader_id.term <= rejoin::FORMING_TERM {
            let why = "no vote is given in the term in which a group is formed; a later campaign asks first";
            return Err(Failure::new(Reason::NotReady, why));
        }
        let request = VoteRequest {
            vote,
            last_log_id: ask.last_log_id.map(codec::from_wire_id),
            leadership_transfer: ask.leadership_transfer,
        };
        let reply = match ask.pre_vote {
            true => self.raft.pre_vote(request).await,
            false => self.raft.vote(request).await,
        };
        let reply = reply.map_err(|error| self.fatal(&error.unwrap_fatal()))?;
        Ok(Response::RaftVote(peer::RaftVoteReply {
            vote: Some(codec::to_wire_vote(&reply.vote)),
            granted: reply.vote_granted,
            last_log_id: reply.last_log_id.as_ref().map(codec::to_wire_id),
        }))
    }

    /// Takes over the leadership on the order of its leader.
    async fn take_leadership(
        &self,
        from: NodeId,
        order: peer::RaftTransferLeader,
    ) -> Result<Response, Failure> {
        let vote = codec::from_wire_vote(order.from).map_err(|error| self.malformed(from, &error))?;
        self.check_vote_of(from, &vote, true)?;
        let last_log_id = order.last_log_id.map(codec::from_wire_id);
        let request = TransferLeaderRequest::new(vote, order.to, last_log_id);
        lock(&self.transfers).ordered(Instant::now());
        match self.raft.handle_transfer_leader(request).await.map_err(|fatal| self.fatal(&fatal))? {
            Ok(()) => Ok(Response::RaftTransferLeader(peer::RaftTransferLeaderReply {})),
            Err(refused) => Err(Failure::new(Reason::NotReady, refused.to_string())),
        }
    }

    /// Says what this node has of the group and may do in it.
    fn answer_survey(&self, from: NodeId) -> Result<Response, Failure> {
        // The role first: bounds from before it settled must not pass for those of a settled member.
        let settled = *lock(&self.role) == Role::Settled;
        // From the log itself: what counts is what this node has promised durably.
        let log = self.around.storage.raft(self.id);
        let vote = log.vote().map(codec::decode_vote).transpose();
        let vote = vote.map_err(|error| self.malformed(from, &error))?;
        let last = log.bounds().last.map(codec::from_storage_id);
        Ok(Response::RaftSurvey(peer::RaftSurveyReply {
            vote: vote.as_ref().map(codec::to_wire_vote),
            last_log_id: last.as_ref().map(codec::to_wire_id),
            settled,
            feature_level: self.around.config.supports.0,
            receiving: self.incoming.is_receiving(),
            wall_ms: self.wall_ms(),
        }))
    }

    fn append_reply(&self, reply: AppendEntriesResponse<TypeConfig>) -> peer::RaftAppendReply {
        use peer::raft_append_reply::Result as Wire;
        if !matches!(reply, AppendEntriesResponse::HigherVote(_)) {
            self.heard_leader();
        }
        let result = match reply {
            AppendEntriesResponse::Success => Wire::Success(true),
            AppendEntriesResponse::PartialSuccess(Some(id)) => Wire::Partial(codec::to_wire_id(&id)),
            AppendEntriesResponse::PartialSuccess(None) => Wire::MatchedNone(true),
            AppendEntriesResponse::Conflict => Wire::Conflict(true),
            AppendEntriesResponse::HigherVote(vote) => Wire::HigherVote(codec::to_wire_vote(&vote)),
        };
        peer::RaftAppendReply { result: Some(result) }
    }

    fn heard_leader(&self) {
        *lock(&self.leader_heard) = Some(Instant::now());
    }
}
