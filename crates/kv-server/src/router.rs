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
use kv_proto::{admin, v1};
use kv_raft::Strong;
use kv_storage::Storage;
use kv_types::catalogue::Catalogue;
use kv_types::{Failure, Mode, Namespace, NodeId, Reason, RequestId};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::NodeConfig;
use crate::admission::Class;
use crate::directory::{Directory, Names};
use crate::gate::{Gate, Place};
use crate::limits::NAMESPACE_WAIT;
use crate::requests::{self, Deadline};

/// Who brings a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop {
    /// A client: it may be forwarded once.
    Client,
    /// A peer: it is served here or refused.
    Forwarded,
}

impl From<Hop> for kv_raft::Hop {
    fn from(hop: Hop) -> Self {
        match hop {
            Hop::Client => Self::Client,
            Hop::Forwarded => Self::Forwarded,
        }
    }
}

impl From<Hop> for kv_dynamo::Hop {
    fn from(hop: Hop) -> Self {
        match hop {
            Hop::Client => Self::Client,
            Hop::Forwarded => Self::Forwarded,
        }
    }
}

/// What every request brings beside its message.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) hop: Hop,
    pub(crate) deadline: Deadline,
    /// What it is counted by, until its answer was sent.
    pub(crate) place: Arc<Place>,
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

    /// The namespace, once the request is let in under it. One that was created elsewhere just now is waited
    /// for, and one that is unknown is looked for among its neighbours once, under a class of its own.
    pub(crate) async fn namespace(&self, name: &str, caller: &Caller) -> Result<Arc<Namespace>, Failure> {
        let enter = |namespace: Arc<Namespace>| {
            caller.place.enter(Class::Namespace(namespace.mode(), namespace.id)).map(|()| namespace)
        };
        if let Some(namespace) = self.names().get(name) {
            return enter(namespace);
        }
        caller.place.enter(Class::Unknown)?;
        let mut catalogue = self.catalogue.clone();
        let found = async {
            loop {
                if let Some(namespace) = self.names().get(name) {
                    return Some(namespace);
                }
                catalogue.changed().await.ok()?;
            }
        };
        let until = caller.deadline.work.min(Instant::now() + NAMESPACE_WAIT);
        match timeout_at(until, found).await {
            Ok(Some(namespace)) => enter(namespace),
            _ => Err(requests::unknown_namespace(self.names().catalogue(), name)),
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
        receipt: impl FnOnce(&T) -> Option<&v1::Receipt>,
    ) -> Result<T, Failure> {
        let place = Arc::clone(&caller.place);
        let task = tokio::spawn(async move {
            let result = work.await;
            drop(place);
            result
        });
        let result = match timeout_at(caller.deadline.answer, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                Err(Failure::new(Reason::Internal, format!("{} failed while it served this", self.node())))
            }
            Err(_) => Err(Failure::new(
                Reason::ResultUnknown,
                format!("{} has no result by the deadline; it may still be applied", self.node()),
            )),
        };
        if result.as_ref().ok().and_then(receipt).is_some_and(|receipt| receipt.served_by == self.node().0) {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        result.map_err(|mut failure| {
            failure.request_id.get_or_insert(request);
            failure
        })
    }

    pub(crate) async fn get(
        &self,
        request: v1::GetRequest,
        caller: &Caller,
    ) -> Result<v1::GetResponse, Failure> {
        let namespace = self.namespace(&request.namespace, caller).await.map_err(Failure::of_read)?;
        requests::get(&namespace, &request)?;
        let Caller { hop, deadline, .. } = *caller;
        self.read(deadline, async {
            match namespace.mode() {
                Mode::Strong => self.strong.get(&namespace, request, deadline.work, hop.into()).await,
                Mode::Available => self.available.get(&namespace, request, deadline.work, hop.into()).await,
            }
        })
        .await
    }

    pub(crate) async fn put(
        &self,
        request: v1::PutRequest,
        caller: &Caller,
    ) -> Result<v1::PutResponse, Failure> {
        let namespace = self.namespace(&request.namespace, caller).await?;
        let mutation =
            requests::put(&namespace, &request).map_err(|f| named(f, request.mutation.as_ref()))?;
        let Caller { hop, deadline, .. } = *caller;
        let (strong, available) = (self.strong.clone(), self.available.clone());
        let work = async move {
            match namespace.mode() {
                Mode::Strong => strong.put(&namespace, request, deadline.work, hop.into()).await,
                Mode::Available => available.put(&namespace, request, deadline.work, hop.into()).await,
            }
        };
        self.mutate(mutation.request_id, caller, work, |answer| answer.receipt.as_ref()).await
    }

    pub(crate) async fn delete(
        &self,
        request: v1::DeleteRequest,
        caller: &Caller,
    ) -> Result<v1::DeleteResponse, Failure> {
        let namespace = self.namespace(&request.namespace, caller).await?;
        let mutation =
            requests::delete(&namespace, &request).map_err(|f| named(f, request.mutation.as_ref()))?;
        let Caller { hop, deadline, .. } = *caller;
        let (strong, available) = (self.strong.clone(), self.available.clone());
        let work = async move {
            match namespace.mode() {
                Mode::Strong => strong.delete(&namespace, request, deadline.work, hop.into()).await,
                Mode::Available => available.delete(&namespace, request, deadline.work, hop.into()).await,
            }
        };
        self.mutate(mutation.request_id, caller, work, |answer| answer.receipt.as_ref()).await
    }

    pub(crate) async fn compare_and_set(
        &self,
        request: v1::CompareAndSetRequest,
        caller: &Caller,
    ) -> Result<v1::CompareAndSetResponse, Failure> {
        let namespace = self.namespace(&request.namespace, caller).await?;
        let mutation = requests::compare_and_set(&namespace, &request)
            .map_err(|f| named(f, request.mutation.as_ref()))?;
        let Caller { hop, deadline, .. } = *caller;
        let strong = self.strong.clone();
        let work =
            async move { strong.compare_and_set(&namespace, request, deadline.work, hop.into()).await };
        self.mutate(mutation.request_id, caller, work, |answer| answer.receipt.as_ref()).await
    }

    pub(crate) async fn create_namespace(
        &self,
        request: admin::CreateNamespaceRequest,
        caller: &Caller,
    ) -> Result<admin::CreateNamespaceResponse, Failure> {
        caller.place.enter(Class::Admin)?;
        let mutation =
            requests::create_namespace(&request).map_err(|f| named(f, request.mutation.as_ref()))?;
        if self.catalogue.borrow().members.is_empty() {
            return Err(requests::not_ready().of_request(mutation.request_id));
        }
        let Caller { hop, deadline, .. } = *caller;
        let strong = self.strong.clone();
        let work = async move { strong.create_namespace(request, deadline.work, hop.into()).await };
        self.mutate(mutation.request_id, caller, work, |answer| answer.receipt.as_ref()).await
    }

    pub(crate) async fn transfer_leader(
        &self,
        request: admin::TransferLeaderRequest,
        caller: &Caller,
    ) -> Result<admin::TransferLeaderResponse, Failure> {
        caller.place.enter(Class::Admin)?;
        let Caller { hop, deadline, .. } = *caller;
        timeout_at(deadline.answer, self.strong.transfer_leader(request, deadline.work, hop.into()))
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(Reason::ResultUnknown, "no new leader was seen by the deadline"))
            })
    }

    async fn forwarded(&self, message: Forward, left: Duration) -> Result<response_frame::Body, Failure> {
        use forward::Request;
        use forward_reply::Response;
        let place = self.gate.forwarded();
        let deadline = Deadline::of(place.arrived(), left);
        let caller = &Caller { hop: Hop::Forwarded, deadline, place };
        let request = message
            .request
            .ok_or_else(|| Failure::new(Reason::InvalidRequest, "a forwarded request of an unknown kind"))?;
        let response = match request {
            Request::Get(request) => Response::Get(self.get(request, caller).await?),
            Request::Put(request) => Response::Put(self.put(request, caller).await?),
            Request::Delete(request) => Response::Delete(self.delete(request, caller).await?),
            Request::CompareAndSet(request) => {
                Response::CompareAndSet(self.compare_and_set(request, caller).await?)
            }
            Request::CreateNamespace(request) => {
                Response::CreateNamespace(self.create_namespace(request, caller).await?)
            }
            Request::TransferLeader(request) => {
                Response::TransferLeader(self.transfer_leader(request, caller).await?)
            }
        };
        Ok(response_frame::Body::Forward(ForwardReply { response: Some(response) }))
    }

    fn is_member(&self, node: NodeId) -> bool {
        self.config.members.iter().any(|member| member.id == node)
            || self.catalogue.borrow().members.contains_key(&node)
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
        use request_frame::Body;
        let router = Arc::clone(&self.0);
        if !router.is_member(request.from) {
            let message =
                format!("{} is not a member of the cluster that {} knows", request.from, router.node());
            return Box::pin(std::future::ready(Err(Failure::new(Reason::WrongNode, message))));
        }
        match request.body {
            Body::RaftAppend(_)
            | Body::RaftVote(_)
            | Body::RaftSnapshot(_)
            | Body::RaftTransferLeader(_)
            | Body::RaftSurvey(_)
            | Body::RaftHistory(_) => Box::pin(async move { router.strong.handle(request).await }),
            Body::ReplicaWrite(_) | Body::ReplicaRead(_) | Body::PullPartition(_) => {
                Box::pin(async move { router.available.handle(request).await })
            }
            Body::Forward(message) => {
                let left = request.deadline.saturating_duration_since(Instant::now());
                Box::pin(async move { router.forwarded(message, left).await })
            }
            Body::Ping(_) => {
                let failure = Failure::new(Reason::Internal, "pings are answered before they come here");
                Box::pin(std::future::ready(Err(failure)))
            }
        }
    }
}
