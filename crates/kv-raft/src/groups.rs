//! One Raft group on this node: where it stands, what peers send it, what is proposed to it, and its steward,
//! which takes snapshots, lets go of the log and brings a new cluster into being.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::join_all;
use kv_env::Env;
use kv_peer::{Address, Lane, PeerRequest, Peers};
use kv_proto::peer;
use kv_proto::peer::request_frame::Body as Request;
use kv_proto::peer::response_frame::Body as Response;
use kv_storage::{Batch, RaftLog, Storage, StorageError};
use kv_types::catalogue::{Catalogue, FeatureLevel};
use kv_types::limits::MAX_VOTERS;
use kv_types::{Failure, GroupId, NodeId, Reason};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{Fatal, ForwardReason, ForwardToLeader, InitializeError, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};
use openraft::{AsyncRuntime, EmptyNode, ServerState};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::applied::Applied;
use crate::attendance::Attendance;
use crate::backlog::{Load, SharedBacklog};
use crate::builder::{Account, SnapshotWork};
use crate::catalogue_machine::CatalogueCommand;
use crate::codec::{self, CodecError};
use crate::config::{Entry, LogId, RaftConfig, TypeConfig, Vote, log_bytes_wanted};
use crate::disk_watch::DiskWatch;
use crate::handover::{TooSoon, Transfers};
use crate::incoming::{Check, Known, Refusals, check_answer, check_append, check_vote, committed_in_log};
use crate::limits::{
    ABILITY_EVERY, APPEND_ENTRIES, DISK_SILENCE, FULL_LOG_RETRY_MS, GIVE_UP_EVERY, HELD_LOG_SHARE,
    RETRY_AFTER_MS, SNAPSHOT_PAUSE, STEWARD_DEADLINE, STEWARD_TICK, SURVEY_DEADLINE, TOLD_WAIT,
};
use crate::log_store::LogStore;
use crate::machine::{Domain, Machine, Raft};
use crate::machine_error::MachineError;
use crate::network::Network;
use crate::proposal::Reply;
use crate::recent::RecentWrites;
use crate::rejoin::{self, Decision, Heard, JoinState, Role, SurveyReply};
use crate::runtime::NodeRuntime;
use crate::schedule::{self, Growth};
use crate::snapshot::Snapshot;
use crate::snapshot_in::{self, Gate, Incoming, Standing};
use crate::snapshot_out::{Outgoing, Pace};
use crate::transfer::purge_target;

/// Why the groups of a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The timings or bounds do not fit together.
    #[error("the settings of Raft do not fit together: {0}")]
    Settings(String),
    /// The state in the tables or snapshots cannot be read.
    #[error("the replicated state cannot be read: {0}")]
    State(#[from] MachineError),
    /// Raft refused.
    #[error("{group} did not start: {why}")]
    Raft {
        /// The group.
        group: GroupId,
        /// Raft's words.
        why: String,
    },
}

/// What every group of a node shares.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) config: Arc<RaftConfig>,
    pub(crate) storage: Storage,
    pub(crate) peers: Peers,
    pub(crate) env: Env,
    pub(crate) catalogue: watch::Receiver<Arc<Catalogue>>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) snapshots: SnapshotWork,
}

/// A Raft group as this node knows it.
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) raft: Raft,
    pub(crate) around: Surroundings,
    pub(crate) applied: Applied,
    pub(crate) recent: Arc<RecentWrites>,
    account: Arc<Account>,
    /// What was proposed here and is not applied.
    pub(crate) backlog: SharedBacklog,
    /// Whether a proposal of this group can be applied.
    check: Check,
    /// Messages of peers that were refused.
    refusals: Refusals,
    /// Whether the log answers.
    disk: DiskWatch,
    /// Whether its steward runs.
    attendance: Attendance,
    /// The log does not answer: this node neither leads nor campaigns.
    hangs: AtomicBool,
    /// The log has no room for entries of the leader.
    full: AtomicBool,
    /// When the leadership may be moved.
    transfers: Mutex<Transfers>,
    /// Held while the state is digested, until the last thread has let go of its copy.
    pub(crate) digesting: Arc<tokio::sync::Mutex<()>>,
    /// One election timeout after the start: what this node granted before - a lease, a vote - is over by
    /// then.
    rested: Instant,
    /// It never granted anything before this process began.
    formed: AtomicBool,
    /// When a leader that this node follows was last heard.
    leader_heard: Mutex<Option<Instant>>,
    /// What this node may take part in, when its directory is or was fresh.
    role: Mutex<Role>,
    /// What its leader has sent while it joins.
    heard: Mutex<Heard>,
    /// Snapshots that it gives to followers.
    outgoing: Arc<Outgoing>,
    /// Snapshots that it gets from a leader.
    incoming: Arc<Incoming>,
    /// Other voters that said lately that they acknowledge entries, with the end of their logs.
    able: Mutex<BTreeMap<NodeId, u64>>,
}

/// Where this node stands in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leadership {
    /// It leads, as far as it knows.
    Leads,
    /// It hears this leader.
    Follows(NodeId),
    /// It hears no leader.
    Lost,
}

/// Why a request was not served here. In both cases nothing was proposed, unless the failure says otherwise.
#[derive(Debug)]
pub(crate) enum Unserved {
    /// This node does not lead; this one may.
    Elsewhere(Option<NodeId>),
    /// It failed.
    Failed(Failure),
}

impl From<Failure> for Unserved {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The leadership is being moved while this lives.
pub(crate) struct TransferTurn<'a>(&'a Group);

impl Drop for TransferTurn<'_> {
    fn drop(&mut self) {
        lock(&self.0.transfers).end(Instant::now());
    }
}

/// Why a voter that joins is not made the leader.
const NOT_ELIGIBLE_TO_LEAD: &str = "its directory was fresh; it takes no leadership before it has caught up";

fn share_of(bytes: u64, (part, whole): (u64, u64)) -> u64 {
    bytes / whole * part
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What sends and what receives the snapshots of a group.
fn snapshots_on_the_way(
    id: GroupId,
    around: &Surroundings,
    account: Arc<Account>,
) -> (Arc<Outgoing>, Arc<Incoming>) {
    let config = &around.config;
    let pace =
        Pace { chunk_bytes: config.transfer_chunk_bytes, bytes_per_second: config.transfer_bytes_per_second };
    let files = around.storage.snapshots(id);
    let seed = around.env.entropy.below(u64::MAX);
    let incoming = Incoming::new(id, files, config.transfer_sync_bytes, around.gate.clone(), seed);
    (Outgoing::new(id, config.node_id, pace, account), incoming)
}

/// Takes the newest vote of the others for its own, durably: no older leader is followed. False if that was
/// refused.
async fn promise(raft: &Raft, joining: &JoinState) -> Result<bool, Fatal<TypeConfig>> {
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

/// Lets snapshots wait until openraft has heard how far the state was applied.
fn tell_of_progress(raft: &Raft, account: &Account) {
    let progress = raft.watch_apply_progress();
    let _ = account.told.set(Box::new(move |last| {
        let mut progress = progress.clone();
        Box::pin(async move {
            let deadline = Instant::now() + TOLD_WAIT;
            let told = timeout_at(deadline, progress.wait_until_ge(&Some(last))).await?;
            told.map(drop).map_err(std::io::Error::other)
        })
    }));
}

impl Group {
    /// Recovers the group and runs it. With a fresh directory it takes part in nothing before its steward has
    /// asked the other voters.
    pub(crate) async fn start(
        id: GroupId,
        around: Surroundings,
        domain: impl Domain,
        check: Check,
    ) -> Result<Arc<Self>, StartError> {
        let log: RaftLog = around.storage.raft(id);
        let newborn = log.vote().is_none();
        let machine = Machine::open(around.storage.clone(), id, domain).await?;
        let machine = machine.with_snapshot_work(around.snapshots.clone());
        let (applied, recent, account) = (machine.applied(), machine.recent(), machine.account());
        let (outgoing, incoming) = snapshots_on_the_way(id, &around, account.clone());
        let network = Network {
            group: id,
            peers: around.peers.clone(),
            catalogue: around.catalogue.clone(),
            outgoing: outgoing.clone(),
        };
        let fatal = |error: Fatal<TypeConfig>| StartError::Raft { group: id, why: error.to_string() };
        let me = around.config.node_id.0;
        let role = match around.storage.small_get(&rejoin::note_key(id)) {
            Some(note) => Role::Joining(JoinState::decode(note).map_err(MachineError::from)?),
            None if newborn && log.bounds().last.is_none() => Role::Asking,
            None => Role::Settled,
        };
        let mut settings =
            around.config.openraft().map_err(|error| StartError::Settings(error.to_string()))?;
        // From its first tick on: whoever forgot something must not campaign.
        settings.enable_elect = role == Role::Settled;
        let disk = DiskWatch::default();
        let log = LogStore::new(log, disk.clone());
        let raft = Raft::new(me, Arc::new(settings), network, log, machine).await.map_err(fatal)?;
        tell_of_progress(&raft, &account);
        if let Role::Joining(joining) = &role
            && !promise(&raft, joining).await.map_err(fatal)?
        {
            let why =
                format!("{:?} was noted as the newest leader, and its vote was refused", joining.leader);
            return Err(StartError::Raft { group: id, why });
        }
        Ok(Arc::new(Self {
            id,
            raft,
            applied,
            recent,
            account,
            backlog: SharedBacklog::new(Load {
                entries: around.config.backlog_entries(),
                bytes: around.config.backlog_bytes(around.storage.max_log_bytes()),
            }),
            check,
            refusals: Refusals::default(),
            disk,
            attendance: Attendance::default(),
            hangs: AtomicBool::new(false),
            full: AtomicBool::new(false),
            transfers: Mutex::default(),
            digesting: Arc::default(),
            rested: Instant::now() + around.config.election_max,
            formed: AtomicBool::new(newborn && role == Role::Settled),
            leader_heard: Mutex::new(None),
            role: Mutex::new(role),
            heard: Mutex::default(),
            outgoing,
            incoming,
            able: Mutex::default(),
            around,
        }))
    }

    // ---- standing

    pub(crate) fn leadership(&self) -> Leadership {
        let (leads, leader) = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            (metrics.state == ServerState::Leader, metrics.current_leader)
        };
        let heard = *lock(&self.leader_heard);
        match leader {
            // It gives up: it may still be called the leader until another one is heard.
            _ if leads && self.hangs.load(Ordering::Acquire) => Leadership::Lost,
            _ if leads => Leadership::Leads,
            Some(leader) if heard.is_some_and(|at| at.elapsed() < self.around.config.election_max) => {
                Leadership::Follows(NodeId(leader))
            }
            _ => Leadership::Lost,
        }
    }

    /// The leader and the term, as far as known here.
    pub(crate) fn leader_and_term(&self) -> (Option<NodeId>, u64) {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        (metrics.current_leader.map(NodeId), metrics.vote.leader_id.term)
    }

    pub(crate) fn voters(&self) -> Vec<NodeId> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.voter_ids().collect::<BTreeSet<_>>().into_iter().map(NodeId).collect()
    }

    /// How many voters this node can reach, itself included, and how many are needed.
    pub(crate) fn reach(&self) -> (usize, usize) {
        let me = self.around.config.node_id;
        let voters = self.voters();
        let reachable =
            voters.iter().filter(|id| **id == me || self.around.peers.liveness(**id).is_up()).count();
        (reachable, voters.len() / 2 + 1)
    }

    pub(crate) fn no_quorum(&self, why: &str) -> Failure {
        let (reachable, required) = self.reach();
        Failure::new(
            Reason::NoQuorum,
            format!("{} sees no quorum of {}: {why}", self.around.config.node_id, self.id),
        )
        .with("reachable", reachable)
        .with("required", required)
        .retry_after_ms(RETRY_AFTER_MS)
    }

    /// The deadline passed before `what`. That is a lost quorum only where no quorum can be reached; what did
    /// not happen was not begun, so nothing was applied.
    pub(crate) fn late(&self, what: &str) -> Failure {
        let (reachable, required) = self.reach();
        if reachable < required {
            return self.no_quorum(what);
        }
        Failure::new(Reason::DeadlineExpired, format!("{}: the deadline passed before {what}", self.id))
            .retry_after_ms(RETRY_AFTER_MS)
    }

    /// Why this node serves nothing of the group when it hears no leader.
    pub(crate) fn lost(&self) -> Failure {
        match self.impediment() {
            Some(why) => Failure::new(Reason::NotLeader, why).retry_after_ms(RETRY_AFTER_MS),
            None => self.no_quorum("it hears no leader"),
        }
    }

    /// What keeps this node from leading, for people.
    pub(crate) fn impediment(&self) -> Option<String> {
        self.hangs.load(Ordering::Acquire).then(|| {
            format!(
                "{} does not lead {}: its disk has completed no write of the log for {:.1} s",
                self.around.config.node_id,
                self.id,
                self.disk.silent_for().as_secs_f64()
            )
        })
    }

    /// Messages of peers that were refused because no peer sends such.
    pub(crate) fn refused(&self) -> u64 {
        self.refusals.total()
    }

    /// Begins to move the leadership, or says why not now. What is returned ends it when it is dropped.
    pub(crate) fn begin_transfer(&self) -> Result<TransferTurn<'_>, Failure> {
        lock(&self.transfers).begin(Instant::now()).map_err(|too_soon| match too_soon {
            TooSoon::UnderWay => {
                Failure::new(Reason::Overloaded, format!("the leadership of {} is being moved", self.id))
                    .retry_after_ms(RETRY_AFTER_MS)
            }
            TooSoon::Pause { left_ms } => Failure::new(
                Reason::Overloaded,
                format!("the leadership of {} was moved a moment ago; it stays for {left_ms} ms", self.id),
            )
            .retry_after_ms(left_ms),
        })?;
        Ok(TransferTurn(self))
    }

    pub(crate) fn fatal(&self, fatal: &Fatal<TypeConfig>) -> Failure {
        match fatal {
            Fatal::Stopped => Failure::new(Reason::ShuttingDown, "the node is stopping").after_sending(),
            Fatal::StorageError(error) => {
                Failure::new(Reason::StorageFailed, format!("{}: {error}", self.id))
            }
            Fatal::Panicked => Failure::new(Reason::Internal, format!("{} has panicked", self.id)),
        }
    }

    pub(crate) fn forwarded(&self, forward: ForwardToLeader<TypeConfig>) -> Unserved {
        match forward.reason {
            ForwardReason::NotLeader => {
                let other =
                    forward.leader_id.map(NodeId).filter(|leader| *leader != self.around.config.node_id);
                Unserved::Elsewhere(other)
            }
            ForwardReason::LeadershipTransfer => Unserved::Failed(
                Failure::new(Reason::NotLeader, format!("the leadership of {} is being moved", self.id))
                    .retry_after_ms(RETRY_AFTER_MS),
            ),
            ForwardReason::LeaseExpired => {
                Unserved::Failed(self.no_quorum("it leads, but no quorum has answered it for a lease"))
            }
        }
    }

    // ---- from peers

    pub(crate) async fn handle(&self, request: PeerRequest) -> Result<Response, Failure> {
        let late = || Failure::new(Reason::ResultUnknown, "the request was not finished by its deadline");
        let PeerRequest { from, deadline, body, .. } = request;
        let served = async {
            match body {
                Request::RaftSnapshot(sent) => self.take_snapshot(from, sent).await,
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

    /// Refuses what a node with a fresh directory must not take part in.
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

    /// A message that no peer sends: refused by name, counted, and nothing is changed.
    fn malformed(&self, from: NodeId, why: &dyn std::fmt::Display) -> Failure {
        if self.refusals.count() {
            tracing::warn!(group = %self.id, %from, %why, count = self.refusals.total(), "a message of a peer was refused");
        }
        Failure::new(Reason::InvalidRequest, format!("{} of {}: {why}", self.id, self.around.config.node_id))
    }

    /// Refuses what no leader sends, and entries of together `bytes` bytes for which the log has no room, or
    /// while much that is committed is not applied. A refused append would end the group; heartbeats are
    /// answered, so the leader stays.
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

    async fn serve(&self, from: NodeId, body: Request) -> Result<Response, Failure> {
        self.admit(&body)?;
        let bad = |error: CodecError| self.malformed(from, &error);
        let known_term = self.leader_and_term().1;
        let fatal = |error: RaftError<TypeConfig>| self.fatal(&error.unwrap_fatal());
        let plausible = |vote: &Vote, elected| {
            check_vote(from, vote, elected, known_term).map_err(|why| self.malformed(from, &why))
        };
        match body {
            Request::RaftAppend(append) => self.take_append(from, append).await,
            Request::RaftVote(ask) => {
                // A leader that hands over has stopped serving by itself, so no lease is broken.
                let rests = Instant::now() < self.rested && !self.formed.load(Ordering::Acquire);
                if rests && !ask.leadership_transfer {
                    let why = "this node has just started and may have promised its vote; it gives none for one lease";
                    return Err(Failure::new(Reason::NotReady, why));
                }
                let vote = codec::from_wire_vote(ask.vote).map_err(bad)?;
                plausible(&vote, false)?;
                if !ask.pre_vote && vote.leader_id.term <= rejoin::FORMING_TERM {
                    let why =
                        "a node that forms a group has asked nobody whether it may campaign; it asks soon";
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
                let reply = reply.map_err(fatal)?;
                Ok(Response::RaftVote(peer::RaftVoteReply {
                    vote: Some(codec::to_wire_vote(&reply.vote)),
                    granted: reply.vote_granted,
                    last_log_id: reply.last_log_id.as_ref().map(codec::to_wire_id),
                }))
            }
            Request::RaftTransferLeader(order) => {
                let vote = codec::from_wire_vote(order.from).map_err(bad)?;
                plausible(&vote, true)?;
                let request =
                    TransferLeaderRequest::new(vote, order.to, order.last_log_id.map(codec::from_wire_id));
                lock(&self.transfers).ordered(Instant::now());
                match self.raft.handle_transfer_leader(request).await.map_err(|f| self.fatal(&f))? {
                    Ok(()) => Ok(Response::RaftTransferLeader(peer::RaftTransferLeaderReply {})),
                    Err(refused) => Err(Failure::new(Reason::NotReady, refused.to_string())),
                }
            }
            Request::RaftSurvey(_) => {
                // The role first: bounds from before it settled must not pass for those of a settled member.
                let settled = *lock(&self.role) == Role::Settled;
                // From the log itself: what counts is what this node has promised durably.
                let log = self.around.storage.raft(self.id);
                let vote = log.vote().map(codec::decode_vote).transpose().map_err(bad)?;
                let vote = vote.as_ref().map(codec::to_wire_vote);
                let last_log_id =
                    log.bounds().last.map(codec::from_storage_id).as_ref().map(codec::to_wire_id);
                let receiving = self.incoming.is_receiving();
                let feature_level = FeatureLevel::SUPPORTED.0;
                Ok(Response::RaftSurvey(peer::RaftSurveyReply {
                    vote,
                    last_log_id,
                    settled,
                    feature_level,
                    receiving,
                }))
            }
            _ => Err(Failure::new(Reason::InvalidRequest, "not a message of Raft")),
        }
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

    // ---- failure

    /// Resolves when the group cannot go on.
    pub(crate) async fn failed(&self) -> Failure {
        let unattended = async {
            self.attendance.panicked().await;
            Failure::new(Reason::Internal, format!("what looks after {} has panicked", self.id))
        };
        tokio::select! {
            failure = self.raft_failed() => failure,
            failure = unattended => failure,
        }
    }

    async fn raft_failed(&self) -> Failure {
        let mut metrics = self.raft.metrics();
        loop {
            let state = metrics.borrow_watched().running_state.clone();
            if let Err(fatal) = state {
                return self.fatal(&fatal);
            }
            if metrics.changed().await.is_err() {
                return self.fatal(&Fatal::Stopped);
            }
        }
    }

    // ---- the steward

    /// Looks after the group until it is dropped.
    pub(crate) async fn steward(self: Arc<Self>) {
        let _present = self.attendance.begin();
        let mut tick = tokio::time::interval(STEWARD_TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut asked, mut gave_up, mut looked) = (None, None, None);
        loop {
            tick.tick().await;
            let done = async {
                self.watch_disk(&mut gave_up).await?;
                self.settle().await?;
                self.trim(&mut asked).await?;
                self.remove_spare_snapshot().await;
                self.incoming.tidy().await;
                self.look_around(&mut looked).await;
                if self.leadership() == Leadership::Leads {
                    self.enroll().await?;
                    self.initialize_cluster().await?;
                }
                Ok::<(), Fatal<TypeConfig>>(())
            };
            if done.await.is_err() {
                return;
            }
        }
    }

    /// Gives the leadership up, and keeps from campaigning, while the log does not answer. The followers
    /// acknowledge what this node has not written, so the group goes on without it.
    async fn watch_disk(&self, gave_up: &mut Option<Instant>) -> Result<(), Fatal<TypeConfig>> {
        let silent_for = self.disk.silent_for();
        let hangs = silent_for >= DISK_SILENCE;
        if self.hangs.swap(hangs, Ordering::AcqRel) != hangs {
            if hangs {
                tracing::error!(group = %self.id, ?silent_for, "the disk completes no write of the log: this node gives up leading");
            } else {
                tracing::info!(group = %self.id, "the disk writes the log again");
            }
            self.raft.runtime_config().heartbeat(!hangs);
            self.raft.runtime_config().elect(!hangs && *lock(&self.role) == Role::Settled);
        }
        let again = gave_up.is_none_or(|at| at.elapsed() >= GIVE_UP_EVERY);
        if hangs
            && again
            && let Some(successor) = self.successor()
        {
            *gave_up = Some(Instant::now());
            self.raft.trigger().transfer_leader(successor).await?;
        }
        Ok(())
    }

    /// The voter that has most of the log of those that answer, where this node leads. Without one the
    /// followers elect when they have heard no heartbeat for long enough.
    fn successor(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let me = self.around.config.node_id.0;
        let replication = metrics.replication.as_ref()?;
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let up = |id: u64| id != me && voters.contains(&id) && self.around.peers.liveness(NodeId(id)).is_up();
        let candidates = replication.iter().filter(|(id, _)| up(**id));
        candidates.max_by_key(|(_, matched)| *matched).map(|(id, _)| *id)
    }

    /// One step of a node with a fresh directory towards taking part.
    async fn settle(&self) -> Result<(), Fatal<TypeConfig>> {
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
        others.chain([(me, FeatureLevel::SUPPORTED)]).collect()
    }

    /// What another member says of the group.
    async fn ask(&self, other: NodeId) -> Option<SurveyReply> {
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

    /// Takes a snapshot when the last one is old enough, and lets go of the log when there is too much of it.
    async fn trim(&self, asked: &mut Option<Instant>) -> Result<(), Fatal<TypeConfig>> {
        let config = &self.around.config;
        let (applied, snapshot, purged) = {
            let metrics = self.raft.data_metrics();
            let metrics = metrics.borrow_watched();
            let next = |id: &Option<LogId>| id.as_ref().map_or(0, |id| id.index + 1);
            (next(&metrics.last_applied), next(&metrics.snapshot), next(&metrics.purged))
        };
        let fresh = applied.saturating_sub(snapshot);
        let storage = &self.around.storage;
        let log_bytes = storage.stats().log_bytes;
        let held_bound = share_of(storage.max_log_bytes(), HELD_LOG_SHARE);
        let holds = self.holds();
        // What is held for a follower is not let go by another snapshot either.
        let held = holds.iter().any(|hold| hold.needs < snapshot) && log_bytes < held_bound;
        let wanted = log_bytes_wanted(storage.max_log_bytes());
        // Not for a full disk: a snapshot takes room before it gives any. That of a small state is taken from
        // the reserve.
        let refused = storage.log_pressure().is_err_and(|e| !matches!(e, StorageError::DiskFull { .. }));
        let pressed = refused || (log_bytes > wanted && !held);
        let rested = asked.is_none_or(|at| at.elapsed() > SNAPSHOT_PAUSE);
        let (bytes, state_bytes) = self.account.growth();
        let growth = Growth { entries: fresh, bytes, state_bytes, most_entries: config.snapshot_every };
        let due = growth.is_due(schedule::slot(config.node_id.0, self.id.0));
        let due = due || (pressed && fresh > 0) || self.account.needs_snapshot();
        let room = storage.snapshots(self.id).room_for(state_bytes);
        if due && room.is_err() {
            // The next snapshot is worth more than the rest of a transfer.
            self.account.sent().clear();
        }
        if rested && due && room.is_ok() {
            *asked = Some(Instant::now());
            self.raft.trigger().snapshot().await?;
            return Ok(());
        }
        let wanted = if pressed { snapshot } else { snapshot.saturating_sub(config.entries_kept) };
        let target = purge_target(wanted, holds.into_iter(), log_bytes, held_bound);
        let batch = if pressed { 1 } else { (config.entries_kept / 8).clamp(1, APPEND_ENTRIES) };
        if target >= purged.saturating_add(batch) {
            self.raft.trigger().purge_log(target - 1).await?;
        }
        Ok(())
    }

    /// Removes the snapshot that was kept for a follower when it is not needed any more.
    async fn remove_spare_snapshot(&self) {
        let (storage, account, group) = (self.around.storage.clone(), self.account.clone(), self.id);
        if !account.has_spare_file() || account.kept_file(&storage, group).is_some() {
            return;
        }
        let removed = NodeRuntime::blocking(move || account.remove_old_files(&storage, group)).await;
        if let Err(error) = removed.map_err(MachineError::from).and_then(|removed| Ok(removed?)) {
            tracing::warn!(%group, %error, "a snapshot that is not needed any more was not removed");
        }
    }

    /// Followers for which this node keeps entries, when it leads.
    fn holds(&self) -> Vec<crate::transfer::Hold> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let next = |id: &Option<LogId>| id.as_ref().map_or(0, |id| id.index + 1);
        let Some(replication) = &metrics.replication else {
            self.outgoing.let_go();
            return Vec::new();
        };
        let matched = |to: NodeId| replication.get(&to.0).map_or(0, next);
        let near = self.around.config.entries_kept / 2;
        self.outgoing.holds(matched, metrics.last_log_index.map_or(0, |index| index + 1), near)
    }

    /// Asks the other voters whether they acknowledge entries, from time to time.
    async fn look_around(&self, looked: &mut Option<Instant>) {
        if looked.is_some_and(|at: Instant| at.elapsed() < ABILITY_EVERY) {
            return;
        }
        *looked = Some(Instant::now());
        let me = self.around.config.node_id;
        let voters =
            self.voters().into_iter().filter(|id| *id != me && self.around.peers.liveness(*id).is_up());
        let asked = voters.map(|other| async move { (other, self.ask(other).await) });
        let answers = join_all(asked).await;
        let able = answers.into_iter().filter_map(|(other, said)| {
            let said = said.filter(|said| said.settled && !said.receiving)?;
            Some((other, said.last.map_or(0, |last| last.index.saturating_add(1))))
        });
        *lock(&self.able) = able.collect();
    }

    /// How many voters can acknowledge entries now, as far as this node knows, itself included: those that
    /// can be reached, are not joining, and need no snapshot first.
    pub(crate) fn able_voters(&self) -> usize {
        let me = self.around.config.node_id;
        let purged = {
            let metrics = self.raft.data_metrics();
            let purged = metrics.borrow_watched().purged;
            purged.map_or(0, |id| id.index + 1)
        };
        let myself = *lock(&self.role) == Role::Settled && !self.incoming.is_receiving();
        let able = lock(&self.able).clone();
        let other = |id: &NodeId| {
            self.around.peers.liveness(*id).is_up() && able.get(id).is_some_and(|end| *end >= purged)
        };
        self.voters().iter().filter(|id| if **id == me { myself } else { other(id) }).count()
    }

    /// Members that do not vote learn.
    async fn enroll(&self) -> Result<(), Fatal<TypeConfig>> {
        let known: BTreeSet<u64> = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().nodes().map(|(id, _)| *id).collect()
        };
        let missing =
            self.around.config.members.iter().map(|member| member.id.0).find(|id| !known.contains(id));
        let Some(missing) = missing else { return Ok(()) };
        let deadline = Instant::now() + STEWARD_DEADLINE;
        match timeout_at(deadline, self.raft.add_learner(missing, EmptyNode {}, false)).await {
            Ok(Err(RaftError::Fatal(fatal))) => Err(fatal),
            // Not the leader any more, or too slow: the next tick sees.
            _ => Ok(()),
        }
    }

    /// The first leader of group 0 fills the catalogue. A second command would have no effect.
    async fn initialize_cluster(&self) -> Result<(), Fatal<TypeConfig>> {
        if self.id != GroupId::CATALOGUE || !self.around.catalogue.borrow().members.is_empty() {
            return Ok(());
        }
        let RaftConfig { cluster_id, members, .. } = self.around.config.as_ref();
        let command = CatalogueCommand::InitCluster { cluster_id: *cluster_id, members: members.clone() };
        let deadline = Instant::now() + STEWARD_DEADLINE;
        match timeout_at(deadline, self.raft.client_write(command.encode())).await {
            Ok(Err(RaftError::Fatal(fatal))) => Err(fatal),
            Ok(Ok(response)) if response.data != Reply::None => {
                tracing::info!(index = response.log_id.index, "the catalogue is initialized");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The leader's wall clock, for a command.
    pub(crate) fn wall_ms(&self) -> u64 {
        self.around.env.clock.wall_ms()
    }
}
