//! How a node with a fresh directory joins the group or forms it: it asks the other voters and acts on the
//! decisions of `rejoin`. Also the questions to other members that anything else needs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use kv_peer::{Address, Lane};
use kv_proto::peer;
use kv_proto::peer::request_frame::Body as Request;
use kv_proto::peer::response_frame::Body as Response;
use kv_storage::{Batch, StorageError};
use kv_types::catalogue::FeatureLevel;
use kv_types::limits::MAX_VOTERS;
use kv_types::{Failure, NodeId, Reason};
use openraft::EmptyNode;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{Fatal, InitializeError, RaftError};
use openraft::raft::VoteRequest;
use tokio::time::Instant;

use super::{Group, NOT_ELIGIBLE_TO_LEAD, lock};
use crate::agreed_time::AgreedTime;
use crate::codec;
use crate::config::TypeConfig;
use crate::incoming::check_answer;
use crate::limits::{RETRY_AFTER_MS, SURVEY_DEADLINE};
use crate::machine::Raft;
use crate::rejoin::{self, Decision, JoinState, Role, SurveyReply};

/// Takes the newest vote of the others for its own, durably: no older leader is followed. False if that was
/// refused.
pub(super) async fn promise(raft: &Raft, joining: &JoinState) -> Result<bool, Fatal<TypeConfig>> {
    // As if for a candidate that lacks nothing and whose answer is not awaited: only an even newer vote
    // stands against it.
    let own_last = raft.data_metrics().borrow_watched().last_log;
    let last_log_id = joining.beyond.max(own_last);
    let request = VoteRequest { vote: joining.vote(), last_log_id, leadership_transfer: true };
    let kept = raft.vote(request).await.map_err(RaftError::unwrap_fatal)?.vote;
    let promised = kept.leader_id >= joining.leader;
    if !promised {
        tracing::error!(%kept, newest = ?joining, "the vote of a voter that joins was refused");
    }
    Ok(promised)
}

impl Group {
    /// One step of a node with a fresh directory towards being settled.
    pub(super) async fn settle(&self) -> Result<(), Fatal<TypeConfig>> {
        let role = lock(&self.role).clone();
        let me = self.around.config.node_id.0;
        match role {
            Role::Settled => {}
            Role::Asking => {
                let voters = self.first_voters();
                let rested = Instant::now() >= self.rested;
                match rejoin::judge(voters.len(), &self.survey(&voters).await, rested) {
                    Decision::Form if voters.contains_key(&me) => {
                        tracing::info!(group = %self.id, "the group is new");
                        match self.raft.initialize(voters).await {
                            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                                self.formed.store(true, Ordering::Release);
                                self.settled();
                            }
                            Err(RaftError::APIError(error)) => {
                                tracing::error!(group = %self.id, %error, "the group was not formed");
                            }
                            Err(RaftError::Fatal(fatal)) => return Err(fatal),
                        }
                    }
                    Decision::Join(joining) => {
                        tracing::warn!(
                            group = %self.id, newest = ?joining,
                            "the group exists and this directory is fresh: no votes before it has caught up"
                        );
                        if self.note(Some(&joining)).await.is_ok() && promise(&self.raft, &joining).await? {
                            *lock(&self.role) = Role::Joining(joining);
                        }
                    }
                    Decision::Form | Decision::Ask => {}
                }
            }
            Role::Joining(joining) => {
                let applied = self.raft.data_metrics().borrow_watched().last_applied;
                let over = lock(&self.heard).is_over(&joining, applied);
                // What is applied may not be durable yet, and without the note it would count as if it were.
                let log = self.around.storage.raft(self.id);
                if over && log.barrier().await.is_ok() && self.note(None).await.is_ok() {
                    tracing::info!(group = %self.id, "caught up: it votes again");
                    self.settled();
                }
            }
        }
        Ok(())
    }

    fn settled(&self) {
        *lock(&self.role) = Role::Settled;
        self.raft.runtime_config().elect(!self.hangs.load(Ordering::Acquire));
    }

    /// Durable when this returns. A failure of the log stops the node by itself.
    async fn note(&self, joining: Option<&JoinState>) -> Result<(), StorageError> {
        let key = rejoin::note_key(self.id);
        let batch = match joining {
            Some(joining) => Batch::new().small_put(key, joining.encode()),
            None => Batch::new().small_delete(key),
        };
        let position = self.around.storage.commit(batch)?;
        self.around.storage.durable(position).await
    }

    /// The voters that the cluster starts with.
    fn first_voters(&self) -> BTreeMap<u64, EmptyNode> {
        let members = self.around.config.members.iter().map(|member| member.id.0).collect::<BTreeSet<_>>();
        members.into_iter().take(MAX_VOTERS).map(|id| (id, EmptyNode {})).collect()
    }

    async fn survey(&self, voters: &BTreeMap<u64, EmptyNode>) -> Vec<SurveyReply> {
        let others = voters.keys().map(|id| NodeId(*id)).filter(|id| *id != self.around.config.node_id);
        join_all(others.map(|other| self.ask(other))).await.into_iter().flatten().collect()
    }

    /// What each of these members, of which this node may be one, says that its program supports; nothing of
    /// one that does not answer.
    pub(crate) async fn levels(
        &self,
        members: impl Iterator<Item = NodeId>,
    ) -> BTreeMap<NodeId, FeatureLevel> {
        let me = self.around.config.node_id;
        let others = members.filter(|member| *member != me);
        let asked = others.map(async |member| (member, self.inquire(member).await));
        let heard = join_all(asked).await.into_iter();
        let others = heard.filter_map(|(member, reply)| Some((member, FeatureLevel(reply?.feature_level))));
        others.chain([(me, self.around.config.supports)]).collect()
    }

    /// What time it is by the clocks of the voters that can be reached; none without a majority.
    pub(crate) async fn time(&self) -> Option<AgreedTime> {
        let me = self.around.config.node_id;
        let voters = self.voters();
        let others = voters.iter().filter(|id| **id != me && self.around.peers.liveness(**id).is_up());
        let heard = join_all(others.map(|other| self.inquire(*other))).await.into_iter().flatten();
        let clocks = heard.map(|reply| reply.wall_ms).filter(|wall_ms| *wall_ms > 0);
        let own = voters.contains(&me).then(|| self.wall_ms());
        AgreedTime::of(clocks.chain(own).collect(), voters.len())
    }

    /// What another member says of the group.
    pub(super) async fn ask(&self, other: NodeId) -> Option<SurveyReply> {
        let reply = self.inquire(other).await?;
        let vote = reply.vote.map(|vote| codec::from_wire_vote(Some(vote))).transpose().ok()?;
        let last = reply.last_log_id.map(codec::from_wire_id);
        if let Err(why) = check_answer(vote.as_ref(), last.as_ref(), self.leader_and_term().1) {
            self.malformed(other, &why);
            return None;
        }
        let leader = vote.map(|vote| vote.leader_id);
        Some(SurveyReply { settled: reply.settled, receiving: reply.receiving, leader, last })
    }

    async fn inquire(&self, other: NodeId) -> Option<peer::RaftSurveyReply> {
        let about = Address { group: self.id, ..Address::default() };
        let body = Request::RaftSurvey(peer::RaftSurvey {});
        let deadline = Instant::now() + SURVEY_DEADLINE;
        match self.around.peers.call(other, Lane::Control, about, body, deadline).await {
            Ok(Response::RaftSurvey(reply)) => Some(reply),
            _ => None,
        }
    }

    /// Refuses to hand the leadership to a member that would not take it: between the order and its refusal
    /// nothing is served.
    pub(crate) async fn check_successor(&self, to: NodeId) -> Result<(), Failure> {
        if to == self.around.config.node_id {
            return Ok(());
        }
        match self.ask(to).await {
            Some(SurveyReply { settled: true, .. }) => Ok(()),
            Some(_) => Err(Failure::new(Reason::NotReady, format!("{to}: {NOT_ELIGIBLE_TO_LEAD}"))
                .retry_after_ms(RETRY_AFTER_MS)),
            None => Err(Failure::new(Reason::Unreachable, format!("{to} does not answer"))),
        }
    }
}
