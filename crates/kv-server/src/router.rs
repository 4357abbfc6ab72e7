//! Where every request passes, whether a client or a peer brings it: admission, checks, the mode that serves
//! it, and an answer by the deadline whatever that mode does.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kv_dynamo::Available;
use kv_peer::{PeerHandler, PeerRequest, Peers};
use kv_proto::peer::{Forward, ForwardReply, forward, forward_reply, request_frame, response_frame};
use kv_proto::{DataRequest, admin, v1};
use kv_raft::Strong;
use kv_storage::Storage;
use kv_types::call::Kind;
use kv_types::catalogue::Catalogue;
use kv_types::{
    Answer, Call, Failure, GroupId, Hop, Mode, Mutation, Namespace, NamespaceId, NodeId, Reason, RequestId,
};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::NodeConfig;
use crate::admission::Class;
use crate::directory::{Directory, Names};
use crate::gate::{Gate, Place};
use crate::latencies::{Latencies, MessageKind};
use crate::limits::NAMESPACE_WAIT;
use crate::mode::ModeService;
use crate::requests::{self, Deadline};

/// What every request brings beside its message.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) hop: Hop,
    pub(crate) deadline: Deadline,
    /// What it is counted by, until its answer was sent.
    pub(crate) place: Arc<Place>,
    /// Its caller drives the call to its end, also when the client left: it needs no task of its own.
    pub(crate) seen_through: bool,
}

/// How a request says which namespace it is about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum About<'a> {
    /// By name, from a client.
    Name(&'a str),
    /// By id, from a node that read it by these settings.
    Id(NamespaceId, u64),
}

/// The parts of a running node, shared by its services.
pub(crate) struct Router {
    pub(crate) config: NodeConfig,
    pub(crate) storage: Storage,
    pub(crate) peers: Peers,
    pub(crate) strong: Strong,
    pub(crate) available: Available,
    pub(crate) gate: Arc<Gate>,
    catalogue: watch::Receiver<Arc<Catalogue>>,
    directory: Directory,
    acknowledged: Arc<AtomicU64>,
    pub(crate) latencies: Latencies,
}

impl Router {
    pub(crate) fn new(
        config: NodeConfig,
        storage: Storage,
        peers: Peers,
        strong: Strong,
        available: Available,
        catalogue: watch::Receiver<Arc<Catalogue>>,
    ) -> Self {
        Self {
            gate: Arc::new(Gate::new(config.node_id, &config.limits)),
            config,
            storage,
            peers,
            strong,
            available,
            catalogue,
            directory: Directory::default(),
            acknowledged: Arc::default(),
            latencies: Latencies::default(),
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.config.node_id
    }

    pub(crate) fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&self.catalogue.borrow())
    }

    /// Writes acknowledged by this node as leader or coordinator.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    fn names(&self) -> Arc<Names> {
        self.directory.names(&self.catalogue.borrow())
    }

    /// The namespace, once the request is let in under it. One that was created or changed elsewhere just now
    /// is waited for; a name that is unknown is looked for among its neighbours once, under a class of its
    /// own. What was read by settings that are not those known here is refused, and so is, at once, what is
    /// about a namespace that is deleted, though that can be undone.
    pub(crate) async fn namespace(
        &self,
        about: About<'_>,
        caller: &Caller,
    ) -> Result<Arc<Namespace>, Failure> {
        let look = |names: &Names| match about {
            About::Name(name) => names.get(name),
            About::Id(id, version) => names.of_id(id).filter(|known| known.settings_version >= version),
        };
        let enter = |namespace: Arc<Namespace>| match about {
            About::Id(_, version)
                if namespace.settings_version != version && namespace.deletion.is_none() =>
            {
                Err(self.other_settings(&namespace, version))
            }
            _ if namespace.deletion.is_some() => namespace.check_present().map(|()| namespace),
            _ => caller.place.enter(Class::Namespace(namespace.mode(), namespace.id)).map(|()| namespace),
        };
        if let Some(namespace) = look(&self.names()) {
            return enter(namespace);
        }
        caller.place.enter(Class::Unknown)?;
        self.check_deleted(about)?;
        let mut catalogue = self.catalogue.clone();
        let found = async {
            loop {
                if let Some(namespace) = look(&self.names()) {
                    return Some(namespace);
                }
                catalogue.changed().await.ok()?;
            }
        };
        let until = caller.deadline.work.min(Instant::now() + NAMESPACE_WAIT);
        if let Ok(Some(namespace)) = timeout_at(until, found).await {
            return enter(namespace);
        }
        let names = self.names();
        Err(match about {
            // It may have been created since this node was cut off.
            About::Name(name) if self.is_cut_off() => requests::unknowable_namespace(self.node(), name),
            About::Name(name) => requests::unknown_namespace(names.catalogue(), name),
            About::Id(id, version) => match names.of_id(id) {
                Some(known) => self.other_settings(&known, version),
                // The node that passed it on has it in a catalogue: this one is behind, or was.
                None => self.check_deleted(about).err().unwrap_or_else(requests::not_ready),
            },
        })
    }

    /// Whether this node knows the catalogue of old, and can ask no one for the present one.
    fn is_cut_off(&self) -> bool {
        let hears = |group: &admin::GroupStatus| group.leader > 0 && group.quorum;
        !self.catalogue.borrow().members.is_empty()
            && !self.strong.status().iter().any(|group| group.group == GroupId::CATALOGUE.0 && hears(group))
    }

    /// Refuses a request that another node read by a namespace which was deleted since.
    fn check_deleted(&self, about: About<'_>) -> Result<(), Failure> {
        match about {
            About::Id(id, _) if self.catalogue.borrow().was_deleted(id) => {
                Err(requests::deleted_namespace(id))
            }
            About::Id(..) | About::Name(_) => Ok(()),
        }
    }

    fn other_settings(&self, known: &Namespace, version: u64) -> Failure {
        let (node, here) = (self.node(), known.settings_version);
        let message =
            format!("{node} knows version {here} of the settings of `{}`, and not {version}", known.name);
        Failure::new(Reason::WrongEpoch, message).with("settings_version", here)
    }

    fn mode(&self, mode: Mode) -> &dyn ModeService {
        match mode {
            Mode::Strong => &self.strong,
            Mode::Available => &self.available,
        }
    }

    /// Serves a request of the data service.
    pub(crate) async fn call<R: DataRequest>(&self, request: R, caller: &Caller) -> Result<Answer, Failure> {
        let (name, call) = request.read()?;
        self.serve(About::Name(&name), call, caller).await
    }

    async fn serve(&self, about: About<'_>, call: Call, caller: &Caller) -> Result<Answer, Failure> {
        let (kind, request) = (call.kind(), call.mutation().map(|mutation| mutation.request_id));
        let served = async {
            let namespace = self.namespace(about, caller).await?;
            let side = namespace.mode();
            let answer = self.serve_in(namespace, call, caller).await;
            self.latencies.served(side, request.is_none(), caller.place.arrived());
            answer.and_then(|answer| belonging(kind, answer))
        };
        served.await.map_err(|mut failure: Failure| match request {
            None => failure.of_read(),
            Some(request) => {
                failure.request_id.get_or_insert(request);
                failure
            }
        })
    }

    /// Serves a call by the mode of its namespace.
    async fn serve_in(
        &self,
        namespace: Arc<Namespace>,
        call: Call,
        caller: &Caller,
    ) -> Result<Answer, Failure> {
        call.check_mode(&namespace)?;
        let request = call.mutation().map(|mutation| mutation.request_id);
        let mode = self.mode(namespace.mode());
        let work = mode.serve(namespace, call, caller.deadline.work, caller.hop);
        match request {
            None => self.read(caller.deadline, work).await,
            Some(request) => {
                self.mutate(request, caller, work, |answer| Some(answer.receipt.served_by)).await
            }
        }
    }

    /// A read: given up when its caller is gone.
    pub(crate) async fn read<T>(
        &self,
        deadline: Deadline,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match timeout_at(deadline.answer, work).await {
            Ok(result) => result.map_err(Failure::of_read),
            Err(_) => Err(Failure::new(
                Reason::DeadlineExpired,
                format!("{}: no answer by the deadline", self.node()),
            )),
        }
    }

    /// A mutation: once begun it is seen through, even if its caller is gone; at the deadline its fate is
    /// open.
    async fn mutate<T: Send + 'static>(
        &self,
        request: RequestId,
        caller: &Caller,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
        served_by: impl FnOnce(&T) -> Option<NodeId>,
    ) -> Result<T, Failure> {
        let late = |_| {
            let message = format!("{} has no result by the deadline; it may still be applied", self.node());
            Failure::new(Reason::ResultUnknown, message)
        };
        let place = Arc::clone(&caller.place);
        let mut work = Box::pin(work);
        let result = if caller.seen_through {
            let ended = timeout_at(caller.deadline.answer, &mut work).await.map_err(late);
            if ended.is_err() {
                drop(tokio::spawn(async move {
                    let _ = work.await;
                    drop(place);
                }));
            }
            ended
        } else {
            let task = tokio::spawn(async move {
                let result = work.await;
                drop(place);
                result
            });
            let failed =
                |_| Failure::new(Reason::Internal, format!("{} failed while it served this", self.node()));
            let ended = timeout_at(caller.deadline.answer, task).await.map_err(late);
            ended.and_then(|ended| ended.map_err(failed))
        };
        let result = result.and_then(|result| result);
        if result.as_ref().ok().and_then(served_by) == Some(self.node()) {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        result.map_err(|mut failure| {
            failure.request_id.get_or_insert(request);
            failure
        })
    }

    /// A change of the catalogue, whose request was checked.
    async fn change<T: Send + 'static>(
        &self,
        checked: Result<Mutation, Failure>,
        caller: &Caller,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
        receipt: impl FnOnce(&T) -> Option<&v1::Receipt>,
    ) -> Result<T, Failure> {
        caller.place.enter(Class::Admin)?;
        let request = checked?.request_id;
        if self.catalogue.borrow().members.is_empty() {
            return Err(requests::not_ready().of_request(request));
        }
        let served_by = |changed: &T| receipt(changed).map(|receipt| NodeId(receipt.served_by));
        self.mutate(request, caller, work, served_by).await
    }

    pub(crate) async fn create_namespace(
        &self,
        request: admin::CreateNamespaceRequest,
        caller: &Caller,
    ) -> Result<admin::CreateNamespaceResponse, Failure> {
        let checked =
            requests::create_namespace(&request).map_err(|failure| named(failure, request.mutation.as_ref()));
        let (strong, until, hop) = (self.strong.clone(), caller.deadline.work, caller.hop);
        let work = async move { strong.create_namespace(request, until, hop).await };
        self.change(checked, caller, work, |changed| changed.receipt.as_ref()).await
    }

    pub(crate) async fn delete_namespace(
        &self,
        request: admin::DeleteNamespaceRequest,
        caller: &Caller,
    ) -> Result<admin::DeleteNamespaceResponse, Failure> {
        let checked = requests::named_change(&request.name, request.mutation.as_ref())
            .map_err(|failure| named(failure, request.mutation.as_ref()));
        let (strong, until, hop) = (self.strong.clone(), caller.deadline.work, caller.hop);
        let work = async move { strong.delete_namespace(request, until, hop).await };
        self.change(checked, caller, work, |changed| changed.receipt.as_ref()).await
    }

    pub(crate) async fn schedule_deletion(
        &self,
        request: admin::ScheduleDeletionRequest,
        caller: &Caller,
    ) -> Result<admin::ScheduleDeletionResponse, Failure> {
        let checked = requests::named_change(&request.name, request.mutation.as_ref())
            .map_err(|failure| named(failure, request.mutation.as_ref()));
        let (strong, until, hop) = (self.strong.clone(), caller.deadline.work, caller.hop);
        let work = async move { strong.schedule_deletion(request, until, hop).await };
        self.change(checked, caller, work, |changed| changed.receipt.as_ref()).await
    }

    pub(crate) async fn undelete_namespace(
        &self,
        request: admin::UndeleteNamespaceRequest,
        caller: &Caller,
    ) -> Result<admin::UndeleteNamespaceResponse, Failure> {
        let checked = requests::named_change(&request.name, request.mutation.as_ref())
            .map_err(|failure| named(failure, request.mutation.as_ref()));
        let (strong, until, hop) = (self.strong.clone(), caller.deadline.work, caller.hop);
        let work = async move { strong.undelete_namespace(request, until, hop).await };
        self.change(checked, caller, work, |changed| changed.receipt.as_ref()).await
    }

    pub(crate) async fn alter_namespace(
        &self,
        request: admin::AlterNamespaceRequest,
        caller: &Caller,
    ) -> Result<admin::AlterNamespaceResponse, Failure> {
        let checked = requests::named_change(&request.name, request.mutation.as_ref())
            .map_err(|failure| named(failure, request.mutation.as_ref()));
        let (strong, until, hop) = (self.strong.clone(), caller.deadline.work, caller.hop);
        let work = async move { strong.alter_namespace(request, until, hop).await };
        self.change(checked, caller, work, |changed| changed.receipt.as_ref()).await
    }

    pub(crate) async fn transfer_leader(
        &self,
        request: admin::TransferLeaderRequest,
        caller: &Caller,
    ) -> Result<admin::TransferLeaderResponse, Failure> {
        caller.place.enter(Class::Admin)?;
        let Caller { hop, deadline, .. } = *caller;
        timeout_at(deadline.answer, self.strong.transfer_leader(request, deadline.work, hop))
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(Reason::ResultUnknown, "no new leader was seen by the deadline"))
            })
    }

    async fn forwarded(
        &self,
        message: Forward,
        namespace: NamespaceId,
        left: Duration,
    ) -> Result<ForwardReply, Failure> {
        use forward::Request;
        use forward_reply::Response;
        let place = self.gate.forwarded();
        let deadline = Deadline::of(place.arrived(), left);
        let caller = &Caller { hop: Hop::Forwarded, deadline, place, seen_through: false };
        let about = About::Id(namespace, message.settings_version);
        let request = message
            .request
            .ok_or_else(|| Failure::new(Reason::InvalidRequest, "a forwarded request of an unknown kind"))?;
        let call = match request {
            Request::Get(request) => request.read(),
            Request::Put(request) => request.read(),
            Request::Delete(request) => request.read(),
            Request::CompareAndSet(request) => request.read(),
            Request::CreateNamespace(request) => {
                let created = self.create_namespace(request, caller).await?;
                return Ok(ForwardReply { response: Some(Response::CreateNamespace(created)) });
            }
            Request::DeleteNamespace(request) => {
                let deleted = self.delete_namespace(request, caller).await?;
                return Ok(ForwardReply { response: Some(Response::DeleteNamespace(deleted)) });
            }
            Request::ScheduleDeletion(request) => {
                let scheduled = self.schedule_deletion(request, caller).await?;
                return Ok(ForwardReply { response: Some(Response::ScheduleDeletion(scheduled)) });
            }
            Request::UndeleteNamespace(request) => {
                let undeleted = self.undelete_namespace(request, caller).await?;
                return Ok(ForwardReply { response: Some(Response::UndeleteNamespace(undeleted)) });
            }
            Request::AlterNamespace(request) => {
                let altered = self.alter_namespace(request, caller).await?;
                return Ok(ForwardReply { response: Some(Response::AlterNamespace(altered)) });
            }
            Request::TransferLeader(request) => {
                let moved = self.transfer_leader(request, caller).await?;
                return Ok(ForwardReply { response: Some(Response::TransferLeader(moved)) });
            }
        };
        let (_, call) = call?;
        self.serve(about, call, caller).await?.try_into()
    }

    async fn peer_message(&self, request: PeerRequest) -> Result<response_frame::Body, Failure> {
        use request_frame::Body;
        match request.body {
            Body::RaftAppend(_)
            | Body::RaftVote(_)
            | Body::RaftSnapshot(_)
            | Body::RaftTransferLeader(_)
            | Body::RaftSurvey(_)
            | Body::RaftHistory(_) => self.strong.handle(request).await,
            Body::ReplicaWrite(_)
            | Body::ReplicaRead(_)
            | Body::PullPartition(_)
            | Body::PullMissing(_)
            | Body::CompareClocks(_) => self.available.handle(request).await,
            Body::Forward(message) => {
                let left = request.deadline.saturating_duration_since(Instant::now());
                // On the heap: the other messages have no room for it.
                let reply = Box::pin(self.forwarded(message, request.about.namespace, left)).await?;
                Ok(response_frame::Body::Forward(reply))
            }
            Body::Ping(_) => Err(Failure::new(Reason::Internal, "pings are answered before they come here")),
        }
    }

    fn is_member(&self, node: NodeId) -> bool {
        self.config.members.iter().any(|member| member.id == node)
            || self.catalogue.borrow().members.contains_key(&node)
    }
}

/// An answer that came from elsewhere may be one to something else, and says nothing about this call.
fn belonging(to: Kind, answer: Answer) -> Result<Answer, Failure> {
    match answer.outcome.kind() == to {
        true => Ok(answer),
        false => Err(Failure::new(Reason::Internal, "the answer does not belong to what was asked")),
    }
}

/// Names the request in a refusal, as far as it can be read.
fn named(mut failure: Failure, mutation: Option<&v1::Mutation>) -> Failure {
    if let Ok(mutation) = v1::Mutation::read(mutation) {
        failure.request_id.get_or_insert(mutation.request_id);
    }
    failure
}

/// Peers reach the modes through the same router.
pub(crate) struct PeerRouter(pub(crate) Arc<Router>);

impl PeerHandler for PeerRouter {
    fn handle(&self, request: PeerRequest) -> BoxFuture<'static, Result<response_frame::Body, Failure>> {
        let router = Arc::clone(&self.0);
        if !router.is_member(request.from) {
            let message =
                format!("{} is not a member of the cluster that {} knows", request.from, router.node());
            return Box::pin(std::future::ready(Err(Failure::new(Reason::WrongNode, message))));
        }
        let kind = MessageKind::of(&request.body);
        Box::pin(async move {
            let begun = Instant::now();
            let answer = router.peer_message(request).await;
            router.latencies.handled(kind, begun);
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::call::{Presence, Read};
    use kv_types::{
        Applied, Epoch, Evidence, GroupId, Guarantee, Outcome, ReadPath, Receipt, StrongEvidence,
    };

    /// A node that answers a put with what it read, or with a comparison that found something else, has not
    /// said that the put was not applied.
    #[test]
    fn an_answer_to_something_else_leaves_the_fate_of_a_mutation_open() {
        let receipt = Receipt {
            promised: Guarantee::Linearizable,
            epoch: Epoch(1),
            served_by: NodeId(2),
            attempts: 1,
            deduplicated: false,
            degraded: Vec::new(),
            evidence: Evidence::Strong(StrongEvidence {
                group: GroupId::FIRST_DATA,
                term: 1,
                index: 1,
                namespace_revision: 1,
                path: ReadPath::Log,
                applied_lag: 0,
            }),
        };
        let read = Read {
            presence: Presence::Absent,
            value: Default::default(),
            revision: 0,
            siblings: Vec::new(),
            context: Default::default(),
        };
        let outcomes = [
            (Kind::Get, Outcome::Read(read)),
            (Kind::Put, Outcome::Put { revision: 1, context: Default::default() }),
            (Kind::Delete, Outcome::Deleted { existed: true, revision: 1, context: Default::default() }),
            (
                Kind::CompareAndSet,
                Outcome::Compared { swapped: false, revision: 1, found: Default::default() },
            ),
        ];
        for asked in [Kind::Get, Kind::Put, Kind::Delete, Kind::CompareAndSet] {
            for (kind, outcome) in outcomes.clone() {
                let answer = Answer { outcome, receipt: receipt.clone() };
                match belonging(asked, answer) {
                    Ok(_) => assert_eq!(asked, kind),
                    Err(failure) => {
                        assert_ne!(asked, kind);
                        assert_eq!((failure.reason, failure.applied), (Reason::Internal, Applied::Unknown));
                    }
                }
            }
        }
    }
}
