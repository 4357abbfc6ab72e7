//! One Raft group on this node: how it starts, whether it leads, and why it refuses. Its parts: what peers
//! send it (`peer_messages`), its steward (`steward`, `trim`), how a node with a fresh directory joins it
//! (`join`), how lost history comes back (`mend`), and how deleted namespaces go (`removal`).

mod graces;
mod join;
mod mend;
mod peer_messages;
mod removal;
mod steward;
mod trim;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kv_env::Env;
use kv_peer::Peers;
use kv_storage::{RaftLog, Storage};
use kv_types::catalogue::Catalogue;
use kv_types::{Failure, GroupId, Latency, NodeId, Reason};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{Fatal, ForwardReason, ForwardToLeader};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::applied::Applied;
use crate::attendance::Attendance;
use crate::backlog::Load;
use crate::builder::{Account, SnapshotWork};
use crate::config::{Decided, RaftConfig, TypeConfig};
use crate::disk_watch::DiskWatch;
use crate::handover::{TooSoon, Transfers};
use crate::incoming::{Check, Refusals};
use crate::ingest::Ingest;
use crate::limits::{RETRY_AFTER_MS, TOLD_WAIT};
use crate::log_store::LogStore;
use crate::machine::{Domain, Machine, Raft};
use crate::machine_error::MachineError;
use crate::network::Network;
use crate::read_index::Confirmed;
use crate::recent::RecentWrites;
use crate::rejoin::{self, Heard, JoinState, Role};
use crate::rounds::Rounds;
use crate::runtime::NodeRuntime;
use crate::snapshot_in::{Gate, Incoming};
use crate::snapshot_out::{Outgoing, Pace};

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
        /// openraft's message.
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
    /// When the node's groups were begun.
    pub(crate) began: Instant,
}

/// A Raft group as this node knows it.
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) raft: Raft,
    pub(crate) around: Surroundings,
    pub(crate) applied: Applied,
    pub(crate) recent: Arc<RecentWrites>,
    pub(crate) latencies: Latencies,
    account: Arc<Account>,
    /// What is to be proposed here, or was and is not applied.
    pub(crate) ingest: Ingest<Decided>,
    /// In which a quorum confirms this node as the leader, for reads.
    pub(crate) confirmations: Rounds<Confirmed>,
    /// Whether a proposal of this group can be applied.
    check: Check,
    /// Messages of peers that were refused.
    refusals: Refusals,
    /// Whether the log answers.
    disk: DiskWatch,
    /// Whether its steward and its proposer run.
    pub(crate) attendance: Attendance,
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
    /// Held while a member that has lost entries of a history is given some.
    giving_history: Arc<tokio::sync::Mutex<()>>,
    /// Snapshots that it gives to followers.
    outgoing: Arc<Outgoing>,
    /// Snapshots that it gets from a leader.
    incoming: Arc<Incoming>,
    /// Other voters that said lately that they acknowledge entries, with the end of their logs.
    able: Mutex<BTreeMap<NodeId, u64>>,
}

/// How long the parts of requests take that succeed.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    /// From a proposal, its wait for a turn included, until it is applied here.
    pub(crate) proposal: Latency,
    /// Until a quorum has confirmed the leader and what was decided before is applied, for a read.
    pub(crate) read_index: Latency,
    /// A step of entries that are applied.
    pub(crate) apply: Arc<Latency>,
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

/// While it lives, the leadership is being moved.
pub(crate) struct TransferTurn<'a>(&'a Group);

impl Drop for TransferTurn<'_> {
    fn drop(&mut self) {
        lock(&self.0.transfers).end(Instant::now());
    }
}

/// Why a voter that joins is not made the leader.
const NOT_ELIGIBLE_TO_LEAD: &str = "its directory was fresh; it takes no leadership before it has caught up";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sender and the receiver of a group's snapshots.
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

/// What this node may take part in when it starts.
fn first_role(storage: &Storage, id: GroupId) -> Result<Role, MachineError> {
    let log = storage.raft(id);
    Ok(match storage.small_get(&rejoin::note_key(id)) {
        Some(note) => Role::Joining(JoinState::decode(note)?),
        None if log.vote().is_none() && log.bounds().last.is_none() => Role::Asking,
        None => Role::Settled,
    })
}

/// What a process before this one was writing, or kept for a follower, holds room that a snapshot needs.
async fn remove_leftovers(account: Arc<Account>, storage: Storage, id: GroupId) -> Result<(), MachineError> {
    Ok(NodeRuntime::blocking(move || account.remove_old_files(&storage, id)).await??)
}

/// The queue and the account of a group's proposals.
fn ingest(around: &Surroundings) -> Ingest<Decided> {
    let config = &around.config;
    let bytes = config.backlog_bytes(around.storage.max_log_bytes());
    let account = Load { entries: config.backlog_entries(), bytes };
    Ingest::new(account, Load { entries: config.pipeline_entries, bytes: config.pipeline_bytes })
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
        let latencies = Latencies { apply: machine.latency(), ..Latencies::default() };
        remove_leftovers(account.clone(), around.storage.clone(), id).await?;
        let (outgoing, incoming) = snapshots_on_the_way(id, &around, account.clone());
        let network = Network {
            group: id,
            peers: around.peers.clone(),
            catalogue: around.catalogue.clone(),
            outgoing: outgoing.clone(),
        };
        let fatal = |error: Fatal<TypeConfig>| StartError::Raft { group: id, why: error.to_string() };
        let me = around.config.node_id.0;
        let role = first_role(&around.storage, id)?;
        let mut settings =
            around.config.openraft().map_err(|error| StartError::Settings(error.to_string()))?;
        // From its first tick on: a voter that forgot something must not campaign.
        settings.enable_elect = role == Role::Settled;
        let disk = DiskWatch::default();
        let log = LogStore::new(log, disk.clone());
        let raft = Raft::new(me, Arc::new(settings), network, log, machine).await.map_err(fatal)?;
        tell_of_progress(&raft, &account);
        if let Role::Joining(joining) = &role
            && !join::promise(&raft, joining).await.map_err(fatal)?
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
            latencies,
            account,
            ingest: ingest(&around),
            confirmations: Rounds::default(),
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
            giving_history: Arc::default(),
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

    /// Why this node cannot lead, as a message for an operator.
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

    /// Number of messages of peers that were refused because no correct peer sends them.
    pub(crate) fn refused(&self) -> u64 {
        self.refusals.total()
    }

    /// Begins to move the leadership, or refuses with the time to wait. The move ends when the result is
    /// dropped.
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

    /// Refuses a message that no correct peer sends: counts it, and changes nothing.
    fn malformed(&self, from: NodeId, why: &dyn std::fmt::Display) -> Failure {
        if self.refusals.count() {
            tracing::warn!(group = %self.id, %from, %why, count = self.refusals.total(), "a message of a peer was refused");
        }
        Failure::new(Reason::InvalidRequest, format!("{} of {}: {why}", self.id, self.around.config.node_id))
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

    /// The leader's wall clock, for a command.
    pub(crate) fn wall_ms(&self) -> u64 {
        self.around.env.clock.wall_ms()
    }
}
