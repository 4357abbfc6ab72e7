//! Whole nodes in one process: real sockets on loopback, real storage in temporary folders.

pub mod process;
pub mod raw;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use kv_env::choose_port;
use kv_proto::admin::admin_service_client::AdminServiceClient;
use kv_proto::v1::kv_service_client::KvServiceClient;
use kv_proto::{admin, failure_from_status, v1};
use kv_server::{Node, NodeConfig, NodeEnv, StartError};
use kv_types::catalogue::Member;
use kv_types::{ClusterId, Failure, NodeId, Reason};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

pub const CLUSTER: ClusterId = ClusterId(0x5155_304f);
/// Generous, for a machine with two busy cores; nothing waits that long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Cluster {
    folder: TempDir,
    members: Vec<Member>,
    nodes: BTreeMap<NodeId, Node>,
    next_client: u128,
}

/// A program that is being started holds all sockets of this process until it runs, closed ones too. Who
/// listens again where another listened before waits for that.
static STARTING: Mutex<()> = Mutex::new(());

/// Starts a node where another may have been.
pub async fn start(config: NodeConfig) -> Result<Node, StartError> {
    drop(STARTING.lock().unwrap());
    Node::start(config, NodeEnv::real()).await
}

pub fn members(count: u64) -> Vec<Member> {
    let address = || format!("127.0.0.1:{}", choose_port().unwrap());
    (1..=count)
        .map(NodeId)
        .map(|id| Member { id, client_address: address(), peer_address: address(), zone: String::new() })
        .collect()
}

pub fn config(node_id: NodeId, members: Vec<Member>, data_dir: &Path) -> NodeConfig {
    let mut config = NodeConfig {
        cluster_id: CLUSTER,
        node_id,
        members,
        insecure: false,
        data_dir: data_dir.to_owned(),
        address_map: BTreeMap::new(),
        raft: Default::default(),
        storage: Default::default(),
        dynamo: Default::default(),
        peer: Default::default(),
        limits: Default::default(),
    };
    config.storage.segment_size = 16 << 20;
    config.storage.max_log_size = 256 << 20;
    config
}

impl Cluster {
    /// Starts nodes and waits until each serves strong namespaces.
    pub async fn start(count: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Self::new(folder, members(count));
        for id in 1..=count {
            cluster.start_node(NodeId(id)).await;
        }
        cluster.serving().await;
        cluster
    }

    /// As many nodes as there are members, which do not run yet.
    pub fn new(folder: TempDir, members: Vec<Member>) -> Self {
        Self { folder, members, nodes: BTreeMap::new(), next_client: 1 }
    }

    pub async fn start_node(&mut self, id: NodeId) {
        let data_dir = self.folder.path().join(id.to_string());
        let node = start(config(id, self.members.clone(), &data_dir)).await.unwrap();
        self.nodes.insert(id, node);
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    pub fn data_dir(&self, id: u64) -> std::path::PathBuf {
        self.folder.path().join(NodeId(id).to_string())
    }

    pub fn node(&self, id: u64) -> &Node {
        &self.nodes[&NodeId(id)]
    }

    pub async fn stop_node(&mut self, id: u64) {
        self.nodes.remove(&NodeId(id)).unwrap().shutdown().await;
    }

    pub async fn stop(mut self) {
        while let Some((_, node)) = self.nodes.pop_first() {
            node.shutdown().await;
        }
    }

    /// Waits until every running node reports a leader and a quorum of both groups.
    pub async fn serving(&self) {
        for id in self.nodes.keys() {
            eventually("both groups have a leader and a quorum", async || {
                let Ok(status) = self.admin(id.0).get_status(within(admin::GetStatusRequest {})).await else {
                    return false;
                };
                let status = status.into_inner();
                status.epoch > 0
                    && status.groups.len() >= 2
                    && status.groups.iter().all(|group| group.leader > 0 && group.quorum)
            })
            .await;
        }
    }

    pub fn member(&self, id: u64) -> &Member {
        self.members.iter().find(|member| member.id.0 == id).unwrap()
    }

    pub fn channel(&self, id: u64) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.member(id).client_address)).unwrap().connect_lazy()
    }

    pub fn kv(&self, id: u64) -> KvServiceClient<Channel> {
        KvServiceClient::new(self.channel(id)).max_decoding_message_size(16 << 20)
    }

    pub fn admin(&self, id: u64) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel(id))
    }

    pub fn health(&self, id: u64) -> tonic_health::pb::health_client::HealthClient<Channel> {
        tonic_health::pb::health_client::HealthClient::new(self.channel(id))
    }

    /// A request identity that is not used yet: the first of a new client.
    pub fn mutation(&mut self) -> Option<v1::Mutation> {
        self.next_client += 1;
        Some(v1::Mutation {
            client_id: kv_proto::client_id_bytes(kv_types::ClientId(self.next_client << 64 | 7)),
            seq: 1,
            issued_at_ms: kv_env::Env::real().clock.wall_ms(),
            lowest_unacked: 1,
            attempt: 1,
        })
    }

    /// Creates a namespace and waits until every node knows it, and has pulled what a fresh directory may
    /// lack.
    pub async fn create(&mut self, name: &str, mode: admin::Mode, n: u32) {
        let request = admin::CreateNamespaceRequest {
            name: name.into(),
            mode: mode.into(),
            n,
            mutation: self.mutation(),
            ..Default::default()
        };
        let id = self.nodes.keys().next().unwrap().0;
        self.admin(id).create_namespace(within(request)).await.unwrap();
        for id in self.nodes.keys() {
            eventually("the namespace is known", async || {
                let all =
                    self.admin(id.0).list_namespaces(within(admin::ListNamespacesRequest {})).await.unwrap();
                all.into_inner().namespaces.iter().any(|namespace| namespace.name == name)
            })
            .await;
        }
        if mode != admin::Mode::Available {
            return;
        }
        for id in self.nodes.keys() {
            eventually("nothing is left to pull", async || {
                let status = self.admin(id.0).get_status(within(admin::GetStatusRequest {})).await.unwrap();
                status.into_inner().rebuilding_partitions == 0
            })
            .await;
        }
    }
}

/// A request with a deadline.
pub fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(5));
    request
}

pub fn failed<T: std::fmt::Debug>(result: Result<Response<T>, Status>) -> Failure {
    failure_from_status(&result.unwrap_err())
}

pub fn reason<T: std::fmt::Debug>(result: Result<Response<T>, Status>) -> Reason {
    failed(result).reason
}

/// Waits for a condition.
pub async fn eventually(what: &str, condition: impl AsyncFn() -> bool) -> Duration {
    let begun = Instant::now();
    timeout(PATIENCE, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"));
    begun.elapsed()
}

pub fn observed() -> Option<v1::WriteContext> {
    Some(v1::WriteContext { context: Some(v1::write_context::Context::Observed(true)) })
}

pub fn causal(context: impl Into<bytes::Bytes>) -> Option<v1::WriteContext> {
    Some(v1::WriteContext { context: Some(v1::write_context::Context::Causal(context.into())) })
}

pub fn blind() -> Option<v1::WriteContext> {
    Some(v1::WriteContext { context: Some(v1::write_context::Context::Blind(true)) })
}
