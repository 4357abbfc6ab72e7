//! The strong side of CAP as a service: the catalogue and the strong namespaces, served by the leader of
//! their group, and passed on to it once. Every failure says whether the request was applied; what cannot
//! have been proposed is refused as *not applied*, what may have been is *unknown*, and nothing waits beyond
//! the caller's deadline.

mod answer;
mod namespaces;
mod new_namespace;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all, select_all};
use kv_env::Env;
use kv_peer::{Address, Lane, PeerError, PeerRequest, Peers, Unsent};
use kv_proto::peer::forward::Request as Forwarded;
use kv_proto::peer::request_frame::Body as Request;
use kv_proto::peer::response_frame::Body as Response;
use kv_proto::{admin, peer};
use kv_storage::Storage;
use kv_types::call::{Presence, Read};
use kv_types::catalogue::Catalogue;
use kv_types::{
    Answer, Call, Evidence, Failure, GroupId, Guarantee, Hop, Key, LatencySummary, Mutation, Namespace,
    NamespaceId, NodeId, Outcome, Placement, ReadPath, Reason, Receipt, StrongEvidence,
};
use openraft::async_runtime::WatchReceiver;
use openraft::{AsyncRuntime, ServerState};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use answer::{FromLeader, unexpected_reply};

use crate::builder::SnapshotWork;
use crate::catalogue_machine::CatalogueMachine;
use crate::config::RaftConfig;
use crate::generations::Generations;
use crate::groups::{Group, Latencies, Leadership, StartError, Surroundings, Unserved};
use crate::history::Past;
use crate::kv_machine::{KvMachine, Operation, WriteCommand};
use crate::limits::RETRY_AFTER_MS;
use crate::machine_error::MachineError;
use crate::proposal::{Effect, Reply, Written};
use crate::requests::{ReadPoint, unreadable};
use crate::row::Live;
use crate::runtime::NodeRuntime;
use crate::sessions::AllOpenings;
use crate::snapshot_in::Gate;
use crate::tables::{self, Space, Table, keys};

/// The catalogue and the strong namespaces of a node.
#[derive(Clone)]
pub struct Strong(Arc<Inner>);

struct Inner {
    config: Arc<RaftConfig>,
    storage: Storage,
    peers: Peers,
    groups: BTreeMap<GroupId, Arc<Group>>,
    catalogue: watch::Receiver<Arc<Catalogue>>,
    /// When an opening of a session may have been issued, by data group.
    openings: BTreeMap<GroupId, watch::Receiver<AllOpenings>>,
    /// The stewards and proposers of the groups.
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    /// Set inside a seeded simulation: requests from peers come from tasks outside its scope.
    seeds: Option<AtomicU64>,
    writes: AtomicU64,
    gate: Arc<Gate>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop_tasks();
    }
}

impl Inner {
    fn stop_tasks(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Strong {
    /// Recovers and runs group 0 (the catalogue) and the first data group, and forms them where they never
    /// existed.
    pub async fn start(
        config: RaftConfig,
        storage: Storage,
        peers: Peers,
        env: Env,
    ) -> Result<Self, StartError> {
        peers.set_members(config.members.clone());
        NodeRuntime::wake_together(config.ticks_together());
        let config = Arc::new(config);
        let (published, catalogue) = watch::channel(Arc::default());
        let gate = Arc::<Gate>::default();
        let around = Surroundings {
            config: config.clone(),
            storage: storage.clone(),
            peers: peers.clone(),
            env,
            catalogue: catalogue.clone(),
            gate: gate.clone(),
            snapshots: SnapshotWork::new(config.snapshot_bytes_per_second),
            began: Instant::now(),
        };
        let catalogue_group = Group::start(
            GroupId::CATALOGUE,
            around.clone(),
            CatalogueMachine::new(published),
            CatalogueMachine::check,
        )
        .await?;
        let (shown, openings) = watch::channel(AllOpenings::default());
        let data_group =
            Group::start(GroupId::FIRST_DATA, around, KvMachine::new(shown), KvMachine::check).await?;
        let groups = BTreeMap::from([(catalogue_group.id, catalogue_group), (data_group.id, data_group)]);
        let tasks = groups.values().flat_map(|group| {
            [NodeRuntime::spawn(group.clone().steward()), NodeRuntime::spawn(group.clone().proposer())]
        });
        let tasks = tasks.collect();
        Ok(Self(Arc::new(Inner {
            config,
            storage,
            peers,
            groups,
            catalogue,
            openings: BTreeMap::from([(GroupId::FIRST_DATA, openings)]),
            tasks: Mutex::new(tasks),
            seeds: NodeRuntime::draw().map(AtomicU64::new),
            writes: AtomicU64::new(0),
            gate,
        })))
    }

    /// The catalogue as applied on this node, published at every change.
    pub fn catalogue(&self) -> watch::Receiver<Arc<Catalogue>> {
        self.0.catalogue.clone()
    }

    /// Serves a message of Raft from a peer (`raft_*` bodies).
    pub fn handle(&self, request: PeerRequest) -> BoxFuture<'static, Result<Response, Failure>> {
        let this = self.clone();
        let serve = async move {
            let known = this.0.config.members.iter().any(|member| member.id == request.from);
            if !known && !this.0.catalogue.borrow().members.contains_key(&request.from) {
                return Err(Failure::new(
                    Reason::WrongNode,
                    format!("{} is not a member of this cluster", request.from),
                ));
            }
            this.group(request.about.group)?.clone().handle(request).await
        };
        self.seeded(serve)
    }

    /// Work for a request. In a seeded simulation it draws, and works, in a scope of its own.
    fn seeded<'a, T>(&self, work: impl Future<Output = T> + Send + 'a) -> BoxFuture<'a, T> {
        match self.0.seeds.as_ref().map(|seeds| seeds.fetch_add(1, Ordering::Relaxed)) {
            Some(seed) => NodeRuntime::scope(seed, work).boxed(),
            None => work.boxed(),
        }
    }

    // ---- operations

    /// Serves a call about a key of a strong namespace: here when this node leads, otherwise by the leader.
    /// The call suits the mode of the namespace.
    pub async fn serve(
        &self,
        namespace: &Namespace,
        call: Call,
        deadline: Instant,
        hop: Hop,
    ) -> Result<Answer, Failure> {
        let (key, mutation, operation) = match &call {
            Call::Get(get) => {
                let read = self.read(namespace, &get.key, &call, deadline, hop);
                return read.await.map_err(Failure::of_read);
            }
            Call::Put(put) => (&put.key, put.mutation, Operation::Put(put.value.as_bytes().clone())),
            Call::Delete(delete) => (&delete.key, delete.mutation, Operation::Delete),
            Call::CompareAndSet(swap) => {
                let (expected, value) = (swap.expected_revision, swap.value.as_bytes().clone());
                (&swap.key, swap.mutation, Operation::CompareAndSet { expected, value })
            }
        };
        let written = self.write(namespace, key, mutation, operation, &call, deadline, hop).await;
        written.map_err(|failure| failure.of_request(mutation.request_id))
    }

    /// Reads a key, linearizably.
    async fn read(
        &self,
        namespace: &Namespace,
        key: &Key,
        call: &Call,
        deadline: Instant,
        hop: Hop,
    ) -> Result<Answer, Failure> {
        let group = self.group_of(namespace)?;
        let local = pin!(async {
            let places = |space| {
                let place = keys::data(space, namespace.id, key.as_bytes());
                [(Table::Data, place), (Table::Meta, keys::revision(space, namespace.id))]
            };
            let (point, [found, revision]) = group.read(namespace.id, places, deadline).await?;
            let found = found.map(Live::of_row).transpose().map_err(|error| unreadable(&error))?.flatten();
            let past = revision.map(Past::decode).transpose().map_err(|error| unreadable(&error))?;
            let revision = past.map_or(0, |past| past.revision);
            let receipt = self.receipt_of_read(namespace, group, point, revision);
            let presence = if found.is_some() { Presence::Found } else { Presence::Absent };
            let (revision, value) = found.map(|row| (row.revision, row.value)).unwrap_or_default();
            let (siblings, context) = (Vec::new(), Bytes::new());
            let read = Read { presence, value, revision, siblings, context };
            Ok(Answer { outcome: Outcome::Read(read), receipt })
        });
        let onward = || peer::Forward::call(namespace, call);
        self.at_leader(group, namespace.id, Effectless::Yes, local, onward, deadline, hop).await
    }

    /// Moves the leadership of a group.
    pub async fn transfer_leader(
        &self,
        request: admin::TransferLeaderRequest,
        deadline: Instant,
        hop: Hop,
    ) -> Result<admin::TransferLeaderResponse, Failure> {
        let group = self.group(GroupId(request.group))?;
        let to = NodeId(request.to);
        if !group.voters().contains(&to) {
            let message = format!("{to} is not a voter of {}", group.id);
            return Err(Failure::new(Reason::InvalidRequest, message));
        }
        let local = pin!(async {
            if group.leadership() != Leadership::Leads {
                return Err(Unserved::Elsewhere(group.leader_and_term().0));
            }
            if to == self.0.config.node_id {
                // Or it only believes so: one that was deposed behind a cut does not know.
                let term = group.confirm(deadline).await?;
                return Ok(admin::TransferLeaderResponse { leader: to.0, term });
            }
            if !self.0.peers.liveness(to).is_up() {
                return Err(Failure::new(Reason::Unreachable, format!("{to} does not answer")).into());
            }
            let late =
                |_| Failure::new(Reason::Unreachable, format!("{to} has not answered by the deadline"));
            timeout_at(deadline, group.check_successor(to)).await.map_err(late)??;
            let _turn = group.begin_transfer()?;
            let mut metrics = group.raft.server_metrics();
            let moved = async {
                loop {
                    let (leader, term) = group.leader_and_term();
                    if leader == Some(to) {
                        return Ok(admin::TransferLeaderResponse { leader: to.0, term });
                    }
                    // openraft sends the order once and serves nothing until it is obeyed: a lost one would
                    // cost an election.
                    if leader == Some(self.0.config.node_id) {
                        let stopped = |fatal| Failure::new(Reason::ResultUnknown, format!("{fatal}"));
                        group.raft.trigger().transfer_leader(to.0).await.map_err(stopped)?;
                    } else if leader.is_some() {
                        // Another member was elected meanwhile; the move is its to make.
                        return Err(Unserved::Elsewhere(leader));
                    }
                    let again = Instant::now() + self.0.config.heartbeat;
                    if matches!(timeout_at(again, metrics.changed()).await, Ok(Err(_))) {
                        return Err(Unserved::from(
                            Failure::new(Reason::ShuttingDown, "the node is stopping").after_sending(),
                        ));
                    }
                }
            };
            let late =
                |_| Failure::new(Reason::ResultUnknown, format!("{to} has not taken over by the deadline"));
            timeout_at(deadline, moved).await.map_err(late)?
        });
        let onward = || passed_on(Forwarded::TransferLeader(request));
        self.at_leader(group, NamespaceId::default(), Effectless::No, local, onward, deadline, hop).await
    }

    // ---- what this node sees

    /// Every group on this node.
    pub fn status(&self) -> Vec<admin::GroupStatus> {
        self.0.groups.values().map(|group| self.status_of(group)).collect()
    }

    /// A digest of this node's own replica of a strong namespace, and the index up to which it was applied:
    /// equal on replicas at the same one. It asks no other node, so it is not a read of the namespace.
    pub async fn digest(
        &self,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<admin::GetDigestResponse, Failure> {
        self.seeded(self.group_of(namespace)?.digest(namespace.id, deadline)).await
    }

    fn status_of(&self, group: &Group) -> admin::GroupStatus {
        let (reachable, required) = group.reach();
        let voters = group.voters();
        let (leader, term) = group.leader_and_term();
        let leadership = group.leadership();
        let role = {
            let metrics = group.raft.server_metrics();
            match metrics.borrow_watched().state {
                ServerState::Leader => admin::GroupRole::Leader,
                ServerState::Candidate => admin::GroupRole::Candidate,
                ServerState::Learner => admin::GroupRole::Learner,
                ServerState::Follower | ServerState::Shutdown => admin::GroupRole::Follower,
            }
        };
        let metrics = group.raft.data_metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<crate::config::LogId>| id.as_ref().map_or(0, |id| id.index);
        admin::GroupStatus {
            group: group.id.0,
            role: role.into(),
            term,
            leader: leader.map_or(0, |leader| leader.0),
            last_index: index(&metrics.last_log),
            applied_index: index(&metrics.last_applied),
            voters: voters.iter().map(|voter| voter.0).collect(),
            quorum: reachable >= required && leadership != Leadership::Lost,
            reachable_voters: u32::try_from(reachable).unwrap_or(u32::MAX),
            purged_index: index(&metrics.purged),
            snapshot_index: index(&metrics.snapshot),
            able_voters: u32::try_from(group.able_voters()).unwrap_or(u32::MAX),
            impediment: group.impediment().unwrap_or_default(),
        }
    }

    /// How long the parts of requests took on this node since the start: the name of the part, and the group.
    pub fn latencies(&self) -> Vec<(&'static str, GroupId, LatencySummary)> {
        let of = |group: &Arc<Group>| {
            let Latencies { proposal, read_index, apply } = &group.latencies;
            [("proposal", proposal), ("read_index", read_index), ("apply_step", apply)]
                .map(|(part, latency)| (part, group.id, latency.summary()))
        };
        self.0.groups.values().flat_map(of).collect()
    }

    /// Who leads each group, as far as this node knows.
    pub fn leaders(&self) -> Vec<admin::GroupLeader> {
        let leader_of = |group: &Arc<Group>| {
            let (leader, term) = group.leader_and_term();
            admin::GroupLeader { group: group.id.0, leader: leader.map_or(0, |leader| leader.0), term }
        };
        self.0.groups.values().map(leader_of).collect()
    }

    /// Steps of snapshots from other nodes that were refused since this node started, by the name of the
    /// reason.
    pub fn snapshot_refusals(&self) -> BTreeMap<&'static str, u64> {
        self.0.gate.refusals()
    }

    /// What keeps this node from leading its groups, for people: a disk that hangs.
    pub fn impediments(&self) -> Vec<String> {
        self.0.groups.values().filter_map(|group| group.impediment()).collect()
    }

    /// Messages of peers that were refused because no peer sends such.
    pub fn peer_messages_refused(&self) -> u64 {
        self.0.groups.values().map(|group| group.refused()).sum()
    }

    /// How many rows this node has of a namespace, in all its groups. It walks whole tables, on this thread:
    /// for those who look at a node from outside, such as a simulation.
    pub fn rows_of(&self, namespace: NamespaceId) -> Result<usize, MachineError> {
        let storage = &self.0.storage;
        let mut rows = 0;
        for group in self.0.groups.keys() {
            let generation = Generations::read(storage, *group)?.current;
            rows += tables::rows_of(storage, Space { group: *group, generation }, namespace)?;
        }
        Ok(rows)
    }

    /// Writes acknowledged by this node as a leader, since it started.
    pub fn writes_acknowledged(&self) -> u64 {
        self.0.writes.load(Ordering::Relaxed)
    }

    /// Resolves when a group or the storage cannot go on: the node must stop.
    pub async fn failed(&self) -> Failure {
        let storage =
            async { Failure::new(Reason::StorageFailed, self.0.storage.failed().await.to_string()) };
        let groups = self.0.groups.values().map(|group| group.failed().boxed());
        select_all(groups.chain([storage.boxed()])).await.0
    }

    /// Lets other members lead the groups that this node leads, as far as the deadline allows: before it
    /// stops.
    pub async fn resign(&self, deadline: Instant) {
        join_all(self.0.groups.values().map(|group| group.resign(deadline))).await;
    }

    /// Stops the groups of this node. What is under way ends as *unknown*, what waits as *not applied*.
    pub async fn shutdown(&self) {
        for group in self.0.groups.values() {
            group.ingest.stop();
        }
        self.0.stop_tasks();
        for group in self.0.groups.values() {
            if let Err(error) = group.raft.shutdown().await {
                tracing::warn!(group = group.id.0, %error, "the group did not stop cleanly");
            }
        }
    }

    // ---- inside

    pub(crate) fn group(&self, id: GroupId) -> Result<&Arc<Group>, Failure> {
        self.0.groups.get(&id).ok_or_else(|| {
            Failure::new(Reason::WrongGroup, format!("{} has no {id}", self.0.config.node_id))
                .with("group", id.0)
        })
    }

    fn group_of(&self, namespace: &Namespace) -> Result<&Arc<Group>, Failure> {
        match namespace.placement {
            Placement::Strong { group } => self.group(group),
            Placement::Available { .. } => Err(wrong_mode(namespace, "this operation")),
        }
    }

    /// Serves a request here when this node leads, passes it on when it came from a client, and says who
    /// leads otherwise.
    async fn at_leader<T: FromLeader>(
        &self,
        group: &Group,
        namespace: NamespaceId,
        effectless: Effectless,
        local: Pin<&mut impl Future<Output = Result<T, Unserved>>>,
        onward: impl FnOnce() -> peer::Forward,
        deadline: Instant,
        hop: Hop,
    ) -> Result<T, Failure> {
        if Instant::now() >= deadline {
            return Err(Failure::new(
                Reason::DeadlineExpired,
                "the deadline passed before anything was begun",
            ));
        }
        let leader = match group.leadership() {
            Leadership::Leads => match local.await {
                Ok(answer) => return Ok(answer),
                Err(Unserved::Failed(failure)) => return Err(failure),
                Err(Unserved::Elsewhere(leader)) => leader,
            },
            Leadership::Follows(leader) => Some(leader),
            Leadership::Lost => None,
        };
        match (leader, hop) {
            (Some(leader), Hop::Client) => {
                let body = Request::Forward(onward());
                // On the heap: those that are served here have no room for it.
                Box::pin(self.forward(group, namespace, leader, effectless, body, deadline)).await
            }
            (Some(leader), Hop::Forwarded) => Err(self.not_leader(group, leader)),
            (None, _) => Err(group.lost()),
        }
    }

    async fn forward<T: FromLeader>(
        &self,
        group: &Group,
        namespace: NamespaceId,
        leader: NodeId,
        effectless: Effectless,
        body: Request,
        deadline: Instant,
    ) -> Result<T, Failure> {
        let about = Address { group: group.id, namespace, epoch: self.0.catalogue.borrow().epoch };
        let why = match self.0.peers.call(leader, Lane::Raft, about, body, deadline).await {
            Ok(Response::Forward(peer::ForwardReply { response: Some(response) })) => {
                return T::from_reply(response);
            }
            Ok(_) => return Err(unexpected_reply()),
            Err(PeerError::Refused(failure)) => return Err(failure),
            Err(error) => error,
        };
        let what = format!("the leader of {} is {leader}: {why}", group.id);
        Err(match (why, effectless) {
            (PeerError::Lost { .. } | PeerError::TimedOut, Effectless::No) => {
                Failure::new(Reason::ResultUnknown, what)
            }
            (PeerError::TimedOut | PeerError::NotSent { cause: Unsent::Late, .. }, _) => {
                group.late(&format!("an answer came: {what}"))
            }
            (PeerError::NotSent { cause: Unsent::Full, .. }, _) => {
                Failure::new(Reason::Overloaded, what).retry_after_ms(RETRY_AFTER_MS)
            }
            _ => group.no_quorum(&what),
        }
        .with("leader", leader))
    }

    fn not_leader(&self, group: &Group, leader: NodeId) -> Failure {
        let catalogue = self.0.catalogue.borrow().clone();
        let members = &self.0.config.members;
        let member =
            members.iter().find(|member| member.id == leader).or_else(|| catalogue.members.get(&leader));
        let address = member.map_or("", |member| member.client_address.as_str());
        Failure::new(
            Reason::NotLeader,
            format!("{} is led by {leader}, not by {}", group.id, self.0.config.node_id),
        )
        .with("leader", leader)
        .with("leader_address", address)
    }

    async fn write(
        &self,
        namespace: &Namespace,
        key: &Key,
        mutation: Mutation,
        operation: Operation,
        call: &Call,
        deadline: Instant,
        hop: Hop,
    ) -> Result<Answer, Failure> {
        let group = self.group_of(namespace)?;
        let local = pin!(async {
            self.check_level(operation.needs())?;
            let proposed_at_ms = group.wall_ms();
            self.check_opening(group, namespace.id, &mutation, proposed_at_ms)?;
            let (namespace_id, key) = (namespace.id, key.as_bytes().clone());
            let command = WriteCommand { proposed_at_ms, mutation, namespace: namespace_id, key, operation };
            let client = mutation.request_id.client_id;
            let response = group.propose(namespace.id, client, command.encode(), deadline).await?;
            let Reply::Write(decided) = response.data else { return Err(unexpected_reply().into()) };
            let written = decided?;
            self.0.writes.fetch_add(1, Ordering::Relaxed);
            let receipt = self.receipt_of_write(namespace.guarantee, group, &mutation, &written);
            let outcome = outcome_of(call, &written).ok_or_else(unexpected_reply)?;
            Ok(Answer { outcome, receipt })
        });
        let onward = || peer::Forward::call(namespace, call);
        self.at_leader(group, namespace.id, Effectless::No, local, onward, deadline, hop).await
    }

    /// Refuses the first attempt of a session's opening when it would be refused for its issue time: nothing
    /// was proposed, so that is *not applied*. A later attempt goes through the log, which may know the
    /// session.
    fn check_opening(
        &self,
        group: &Group,
        namespace: NamespaceId,
        mutation: &Mutation,
        wall_ms: u64,
    ) -> Result<(), Failure> {
        if (mutation.attempt, mutation.request_id.seq) != (1, 1) {
            return Ok(());
        }
        let openings = self.0.openings.get(&group.id).map(|openings| openings.borrow().of(namespace));
        openings.map_or(Ok(()), |openings| openings.at(wall_ms).check(mutation))
    }

    fn receipt_of_write(
        &self,
        promised: Guarantee,
        group: &Group,
        mutation: &Mutation,
        written: &Written,
    ) -> Receipt {
        let evidence = StrongEvidence {
            group: group.id,
            term: written.point.term,
            index: written.point.index,
            namespace_revision: written.namespace_revision,
            path: ReadPath::Log,
            applied_lag: 0,
        };
        self.receipt(promised, mutation.attempt, written.deduplicated, evidence)
    }

    fn receipt_of_read(
        &self,
        namespace: &Namespace,
        group: &Group,
        point: ReadPoint,
        revision: u64,
    ) -> Receipt {
        let evidence = StrongEvidence {
            group: group.id,
            term: point.term,
            index: point.index,
            namespace_revision: revision,
            path: ReadPath::ReadIndex,
            applied_lag: point.lag,
        };
        self.receipt(namespace.guarantee, 1, false, evidence)
    }

    fn receipt(
        &self,
        promised: Guarantee,
        attempts: u32,
        deduplicated: bool,
        proof: StrongEvidence,
    ) -> Receipt {
        Receipt {
            promised,
            epoch: self.0.catalogue.borrow().epoch,
            served_by: self.0.config.node_id,
            attempts,
            deduplicated,
            degraded: Vec::new(),
            evidence: Evidence::Strong(proof),
        }
    }
}

/// What a call became of which the log has decided this; `None` if that belongs to another call.
fn outcome_of(call: &Call, written: &Written) -> Option<Outcome> {
    let (revision, context) = (written.namespace_revision, Bytes::new());
    Some(match (call, &written.effect) {
        (Call::Put(_), Effect::Put) => Outcome::Put { revision, context },
        (Call::Delete(_), Effect::Deleted { existed }) => {
            Outcome::Deleted { existed: *existed, revision, context }
        }
        (Call::CompareAndSet(_), Effect::Swapped) => {
            Outcome::Compared { swapped: true, revision, found: Bytes::new() }
        }
        (Call::CompareAndSet(_), Effect::Mismatch { found }) => {
            let (revision, found) = found.clone().unwrap_or_default();
            Outcome::Compared { swapped: false, revision, found }
        }
        _ => return None,
    })
}

/// A request that is not about a namespace, on its way to the leader.
fn passed_on(request: Forwarded) -> peer::Forward {
    peer::Forward { request: Some(request), settings_version: 0 }
}

/// Whether a request changes nothing, so that its loss on the way never makes the result *unknown*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effectless {
    Yes,
    No,
}

fn wrong_mode(namespace: &Namespace, what: &str) -> Failure {
    let mode = namespace.mode();
    Failure::new(
        Reason::ModeMismatch,
        format!("namespace `{}` is {mode}, which does not take {what}", namespace.name),
    )
    .with("mode", mode)
}
