//! The two public services: a thin skin over [`Router`] that reads the deadline and turns failures into statuses.

use std::collections::BTreeMap;
use std::sync::Arc;

use kv_proto::admin::admin_service_server::AdminService;
use kv_proto::v1::kv_service_server::KvService;
use kv_proto::{admin, status_from_failure, v1};
use kv_types::catalogue::{Catalogue, token};
use kv_types::{Failure, Key, Placement};
use tonic::{Request, Response, Status};

use crate::requests::{self, Deadline};
use crate::router::{Hop, Router};

/// Both services.
#[derive(Clone)]
pub(crate) struct Services(pub(crate) Arc<Router>);

type Answer<T> = Result<Response<T>, Status>;

impl Services {
    /// The request and the time that its caller grants.
    fn open<T>(&self, request: Request<T>) -> Result<(T, Deadline), Status> {
        let longest = self.0.config.limits.max_deadline;
        let time =
            requests::time_granted(request.metadata(), longest).map_err(|f| status_from_failure(&f))?;
        Ok((request.into_inner(), Deadline::after(time)))
    }
}

fn answer<T>(result: Result<T, Failure>) -> Answer<T> {
    result.map(Response::new).map_err(|failure| status_from_failure(&failure))
}

#[tonic::async_trait]
impl KvService for Services {
    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::GetResponse> {
        let (request, deadline) = self.open(request)?;
        answer(self.0.get(request, deadline, Hop::Client).await)
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Answer<v1::PutResponse> {
        let (request, deadline) = self.open(request)?;
        answer(self.0.put(request, deadline, Hop::Client).await)
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        let (request, deadline) = self.open(request)?;
        answer(self.0.delete(request, deadline, Hop::Client).await)
    }

    async fn compare_and_set(
        &self,
        request: Request<v1::CompareAndSetRequest>,
    ) -> Answer<v1::CompareAndSetResponse> {
        let (request, deadline) = self.open(request)?;
        answer(self.0.compare_and_set(request, deadline, Hop::Client).await)
    }
}

#[tonic::async_trait]
impl AdminService for Services {
    async fn create_namespace(
        &self,
        request: Request<admin::CreateNamespaceRequest>,
    ) -> Answer<admin::CreateNamespaceResponse> {
        let (request, deadline) = self.open(request)?;
        answer(self.0.create_namespace(request, deadline, Hop::Client).await)
    }

    async fn list_namespaces(
        &self,
        request: Request<admin::ListNamespacesRequest>,
    ) -> Answer<admin::ListNamespacesResponse> {
        self.open(request)?;
        let catalogue = self.0.catalogue();
        answer(Ok(admin::ListNamespacesResponse {
            namespaces: namespaces(&catalogue),
            epoch: catalogue.epoch.0,
        }))
    }

    async fn get_topology(
        &self,
        request: Request<admin::GetTopologyRequest>,
    ) -> Answer<admin::GetTopologyResponse> {
        self.open(request)?;
        let router = &self.0;
        let catalogue = router.catalogue();
        // Before there is a catalogue the configuration names the members: a client can begin to look around.
        let members = match catalogue.members.is_empty() {
            true => router.config.members.iter().map(admin::Member::from).collect(),
            false => catalogue.members.values().map(admin::Member::from).collect(),
        };
        let leader = |group: admin::GroupStatus| admin::GroupLeader {
            group: group.group,
            leader: group.leader,
            term: group.term,
        };
        answer(Ok(admin::GetTopologyResponse {
            cluster_id: kv_proto::cluster_id_bytes(router.config.cluster_id),
            answered_by: router.node().0,
            epoch: catalogue.epoch.0,
            members,
            namespaces: namespaces(&catalogue),
            leaders: router.strong.status().into_iter().map(leader).collect(),
        }))
    }

    async fn get_status(
        &self,
        request: Request<admin::GetStatusRequest>,
    ) -> Answer<admin::GetStatusResponse> {
        self.open(request)?;
        let router = &self.0;
        let hints: BTreeMap<_, _> = router.available.hints_pending();
        let peers = router.peers.snapshot().into_iter().map(|(node, liveness)| admin::PeerStatus {
            node: node.0,
            state: liveness.state.to_string(),
            last_heard_ms: liveness.last_heard.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
            hints_pending: hints.get(&node).copied().unwrap_or(0),
        });
        let stats = router.storage.stats();
        answer(Ok(admin::GetStatusResponse {
            node: router.node().0,
            cluster_id: kv_proto::cluster_id_bytes(router.config.cluster_id),
            epoch: router.catalogue().epoch.0,
            groups: router.strong.status(),
            peers: peers.collect(),
            storage: Some(admin::StorageStatus {
                fsyncs: stats.fsyncs,
                records: stats.records,
                bytes: stats.bytes,
                checkpoints: stats.checkpoints,
                log_bytes: stats.log_bytes,
                memtable_bytes: stats.memtable_bytes,
            }),
            keys_with_siblings: router.available.keys_with_siblings().map_err(|f| status_from_failure(&f))?,
            hints_pending: hints.values().sum(),
            rebuilding_partitions: router.available.rebuilding_partitions(),
            version: crate::VERSION.to_owned(),
            writes_acknowledged: router.acknowledged(),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<admin::TransferLeaderRequest>,
    ) -> Answer<admin::TransferLeaderResponse> {
        let (request, deadline) = self.open(request)?;
        answer(self.0.transfer_leader(request, deadline, Hop::Client).await)
    }

    async fn get_ring_owners(
        &self,
        request: Request<admin::GetRingOwnersRequest>,
    ) -> Answer<admin::GetRingOwnersResponse> {
        let (request, deadline) = self.open(request)?;
        answer(owners(&self.0, &request, deadline).await.map_err(Failure::of_read))
    }

    async fn get_digest(
        &self,
        request: Request<admin::GetDigestRequest>,
    ) -> Answer<admin::GetDigestResponse> {
        let (request, deadline) = self.open(request)?;
        answer(digest(&self.0, &request, deadline).await.map_err(Failure::of_read))
    }
}

fn namespaces(catalogue: &Catalogue) -> Vec<admin::Namespace> {
    let mut all: Vec<admin::Namespace> = catalogue
        .namespaces
        .values()
        .map(|namespace| {
            let group = match namespace.placement {
                Placement::Strong { group } => catalogue.groups.get(&group),
                Placement::Available { .. } => None,
            };
            admin::Namespace::of(namespace, group)
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

async fn owners(
    router: &Router,
    request: &admin::GetRingOwnersRequest,
    deadline: Deadline,
) -> Result<admin::GetRingOwnersResponse, Failure> {
    let namespace = router.namespace(&request.namespace, deadline).await?;
    let key = Key::new(request.key.clone())?;
    match namespace.placement {
        Placement::Available { .. } => router.available.owners(&namespace, key.as_bytes()),
        Placement::Strong { group } => {
            let catalogue = router.catalogue();
            let voters =
                catalogue.groups.get(&group).map(|group| group.voters.as_slice()).unwrap_or_default();
            Ok(admin::GetRingOwnersResponse {
                ring: 0,
                partition: 0,
                token: token(namespace.id, key.as_bytes()),
                primaries: voters.iter().map(|node| node.0).collect(),
                fallbacks: Vec::new(),
                epoch: catalogue.epoch.0,
            })
        }
    }
}

async fn digest(
    router: &Router,
    request: &admin::GetDigestRequest,
    deadline: Deadline,
) -> Result<admin::GetDigestResponse, Failure> {
    let namespace = router.namespace(&request.namespace, deadline).await?;
    match namespace.placement {
        Placement::Available { .. } => router.available.digest(&namespace).await,
        Placement::Strong { .. } => router.strong.digest(&namespace, deadline.work).await,
    }
}
