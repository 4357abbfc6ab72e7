//! The life of a node: start in an order in which nothing is served before it can be, stop in the reverse.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kv_dynamo::{Available, AvailableConfig};
use kv_env::{Env, Listener};
use kv_peer::{PeerConfig, Peers};
use kv_proto::admin::admin_service_server::AdminServiceServer;
use kv_proto::v1::kv_service_server::KvServiceServer;
use kv_raft::{RaftConfig, Strong};
use kv_storage::disk::Disk;
use kv_storage::tier::{TierFolders, TierSource};
use kv_storage::{Drive, Identity, Recovery, Storage, StorageError, StorageOptions};
use kv_types::NamespaceId;
use kv_types::catalogue::Catalogue;
use kv_types::limits::MAX_PUBLIC_MESSAGE_BYTES;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};

use crate::connections::{Opens, Ports, bounded, descriptor_limit};
use crate::limits::{DRAIN, HAND_OVER, MAX_REQUEST_BYTES, STOP};
use crate::membership::{advertised, differences};
use crate::router::{PeerRouter, Router};
use crate::serve::{Public, serve};
use crate::services::Services;
use crate::{NodeConfig, StartError, health, reflection};

/// What opens the lower tiers of a node, made of what would open them.
pub type TiersInstead = Arc<dyn Fn(Arc<dyn TierSource>) -> Arc<dyn TierSource> + Send + Sync>;

/// What a node may not take for itself.
#[derive(Clone)]
pub struct NodeEnv {
    /// Clock, entropy, network.
    pub env: Env,
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// Given what opens the lower tier that the configuration names, what opens the one that is used.
    pub tiers: TiersInstead,
    /// Who runs the background steps of storage.
    pub drive: Drive,
}

impl NodeEnv {
    /// The real world.
    pub fn real() -> Self {
        Self {
            env: Env::real(),
            disk: Arc::new(kv_storage::disk::RealDisk),
            tiers: Arc::new(|named| named),
            drive: Drive::Threads,
        }
    }
}

impl std::fmt::Debug for NodeEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeEnv")
    }
}

/// A running node. Stop it with [`Node::shutdown`]; dropping it leaves its tasks to the runtime.
pub struct Node {
    router: Arc<Router>,
    client_address: String,
    peer_address: String,
    stop: watch::Sender<bool>,
    clients: JoinHandle<()>,
    others: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({})", self.router.node())
    }
}

impl Node {
    /// Starts a node and returns when it listens. It serves strong namespaces once a leader is elected.
    pub async fn start(config: NodeConfig, node_env: NodeEnv) -> Result<Self, StartError> {
        config.check_reach()?;
        // Ports first: a node that is started twice says so before storage says that its directory is in use.
        let listening = Listening::open(&config, &node_env.env).await?;
        let reflection = reflection::service()
            .map_err(|error| StartError::Failed(format!("the description of the interface: {error}")))?;
        let router = Arc::new(open_parts(config, &node_env).await?);
        Ok(Self::serve(router, listening, reflection).await)
    }

    /// Serves peers and clients.
    async fn serve(router: Arc<Router>, listening: Listening, reflection: Routes) -> Self {
        let Listening { clients, from_peers, client_address, peer_address } = listening;
        let (stop, stopping) = watch::channel(false);
        let until_stopped = {
            let mut stopping = stopping.clone();
            async move {
                let _ = stopping.wait_for(|stop| *stop).await;
            }
        };
        let peer_service = kv_peer::service(&router.peers, Arc::new(PeerRouter(Arc::clone(&router))));
        let serve_peers = kv_peer::server_builder()
            .add_service(peer_service)
            .serve_with_incoming_shutdown(from_peers, until_stopped);
        let (reporter, health_service) = tonic_health::server::health_reporter();
        health::announce(&reporter, false, false).await;
        let public = Arc::new(public(&router, health_service, reflection));
        let clients = tokio::spawn(serve(clients, public, stopping.clone()));
        let others = vec![
            tokio::spawn(served("peers", serve_peers)),
            tokio::spawn(health::follow(Arc::clone(&router), reporter, stopping.clone())),
            tokio::spawn(follow_members(Arc::clone(&router), router.strong.catalogue(), stopping)),
        ];
        tracing::info!(node = %router.node(), %client_address, %peer_address, "listening");
        Self { router, client_address, peer_address, stop, clients, others }
    }

    /// Where it listens for clients.
    pub fn client_address(&self) -> &str {
        &self.client_address
    }

    /// Where it listens for peers.
    pub fn peer_address(&self) -> &str {
        &self.peer_address
    }

    /// Bytes of client requests and answers that it holds now, and the most that it ever held; see `[limits]
    /// buffered_size`.
    pub fn buffered_bytes(&self) -> (usize, usize) {
        let (now, most) = self.router.gate.held();
        (now.bytes, most)
    }

    /// Client requests that are arriving, being served, or being answered.
    pub fn open_requests(&self) -> usize {
        self.router.gate.held().0.requests
    }

    /// How many rows it has of a namespace, of either mode; in words why that cannot be told. It walks whole
    /// tables: for those who look at a node from outside, such as a simulation.
    pub fn rows_of(&self, namespace: NamespaceId) -> Result<usize, String> {
        let strong = self.router.strong.rows_of(namespace).map_err(|error| error.to_string())?;
        let available = self.router.available.rows_of(namespace).map_err(|error| error.to_string())?;
        Ok(strong + available)
    }

    /// Resolves when the node has to stop: its log or a Raft group failed, so it can promise nothing any
    /// more.
    pub async fn stopped(&self) -> String {
        self.router.strong.failed().await.message
    }

    /// Lets other members lead, refuses new requests, lets those under way end, then stops every part,
    /// storage last.
    pub async fn shutdown(self) {
        let Self { router, stop, clients, others, .. } = self;
        tracing::info!(node = %router.node(), "stopping");
        router.strong.resign(Instant::now() + HAND_OVER).await;
        router.gate.stop();
        stop.send_replace(true);
        let abort = clients.abort_handle();
        if timeout(DRAIN, clients).await.is_err() {
            tracing::warn!("some clients did not end in time");
            abort.abort();
        }
        router.available.shutdown();
        within(STOP, "strong namespaces", router.strong.shutdown()).await;
        router.peers.shutdown();
        for other in others {
            let abort = other.abort_handle();
            if timeout(DRAIN, other).await.is_err() {
                abort.abort();
            }
        }
        within(STOP, "storage", router.storage.shutdown()).await;
        tracing::info!(node = %router.node(), "stopped");
    }
}

/// The ports of a node, bounded in how many connections they take.
struct Listening {
    clients: Listener,
    from_peers: Listener,
    client_address: String,
    peer_address: String,
}

impl Listening {
    async fn open(config: &NodeConfig, env: &Env) -> Result<Self, StartError> {
        let own = config
            .member()
            .ok_or_else(|| StartError::ConfigInvalid(format!("{} is not among the nodes", config.node_id)))?;
        if config.insecure {
            tracing::warn!(
                client_address = own.client_address,
                peer_address = own.peer_address,
                "INSECURE: the cluster file says insecure = true. Anyone who reaches these addresses can read and change \
                 everything: nothing is encrypted and no caller is authenticated"
            );
        }
        let ports = Ports::within(config.limits.connections, config.members.len(), descriptor_limit())?;
        let clients = listen(env, &own.client_address, "client_address", config).await?;
        let from_peers = listen(env, &own.peer_address, "peer_address", config).await?;
        Ok(Self {
            client_address: clients.local_address.clone(),
            peer_address: from_peers.local_address.clone(),
            clients: bounded(clients, "client_address", ports.clients, Opens::WithPreface),
            from_peers: bounded(from_peers, "peer_address", ports.peers, Opens::WithIntroduction),
        })
    }
}

/// Opens storage, and on it both kinds of namespaces.
async fn open_parts(config: NodeConfig, node_env: &NodeEnv) -> Result<Router, StartError> {
    let (storage, recovery) = open(&config, node_env).await?;
    let env = || node_env.env.clone();
    let peers = Peers::new(peer_config(&config), env());
    peers.set_members(config.members.clone());
    let failed = |what: &str, error: &dyn std::fmt::Display| StartError::Failed(format!("{what}: {error}"));
    let strong = Strong::start(raft_config(&config), storage.clone(), peers.clone(), env())
        .await
        .map_err(|error| failed("strong namespaces", &error))?;
    let catalogue = strong.catalogue();
    let settings = dynamo_config(&config, recovery.tier_lost);
    let available = Available::start(settings, storage.clone(), peers.clone(), env(), catalogue.clone())
        .await
        .map_err(|error| failed("available namespaces", &error))?;
    if recovery.tier_lost {
        // The available side has recorded that it must rebuild; the strong side rebuilds from its log.
        storage.acknowledge_tier_lost().await.map_err(|error| failed("storage", &error))?;
    }
    Ok(Router::new(config, storage, peers, strong, available, catalogue))
}

async fn within<T>(time: Duration, what: &str, work: impl Future<Output = T>) {
    if timeout(time, work).await.is_err() {
        tracing::warn!(what, "did not stop in time");
    }
}

async fn served(what: &str, server: impl Future<Output = Result<(), tonic::transport::Error>>) {
    if let Err(error) = server.await {
        tracing::error!(what, %error, "serving ended");
    }
}

async fn listen(env: &Env, address: &str, key: &str, config: &NodeConfig) -> Result<Listener, StartError> {
    env.network.listen(address).await.map_err(|error| {
        let node = config.node_id;
        if error.kind() == io::ErrorKind::AddrInUse {
            StartError::PortBusy(format!(
                "{address} ({key} of {node}) is in use; does {node} run already? Otherwise stop what listens there, or \
                 give {node} another address"
            ))
        } else {
            StartError::ConfigInvalid(format!("cannot listen on {address} ({key} of {node}): {error}"))
        }
    })
}

async fn open(config: &NodeConfig, node_env: &NodeEnv) -> Result<(Storage, Recovery), StartError> {
    let settings = &config.storage;
    let dir = config.data_dir.clone();
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    let options = StorageOptions {
        identity: Some(Identity { cluster: config.cluster_id, node: config.node_id }),
        drive: node_env.drive,
        segment_bytes: bytes(settings.segment_size),
        max_log_bytes: settings.max_log_size,
        memtable_bytes: bytes(settings.memtable_size),
        cache_bytes: bytes(settings.cache_size),
        filtered_tables: vec![kv_raft::VALUES, kv_dynamo::RECORDS],
        checkpoint_log_bytes: settings.checkpoint_log_size,
        checkpoint_interval: settings.checkpoint_interval,
        disk_reserve_bytes: settings.disk_reserve_size,
        ..fitted(settings.segment_size, settings.memtable_size, &dir)
    };
    let disk = Arc::clone(&node_env.disk);
    let tiers = (node_env.tiers)(Arc::new(TierFolders::new(settings.tier)));
    let opened = match node_env.drive {
        // Replaying a log blocks; peers and clients only wait meanwhile.
        Drive::Threads => tokio::task::spawn_blocking(move || Storage::open(options, disk, tiers))
            .await
            .map_err(|error| StartError::Failed(format!("opening storage: {error}")))?,
        Drive::Manual => Storage::open(options, disk, tiers),
    };
    let (storage, recovery) = opened.map_err(|error| match error {
        StorageError::ForeignDataDir { .. } | StorageError::ForeignTier(_) | StorageError::InUse(_) => {
            StartError::ForeignDataDir(format!("{}: {error}", dir.display()))
        }
        StorageError::CorruptLog { .. } => StartError::LogCorrupt(format!("{}: {error}", dir.display())),
        StorageError::Invalid(_) => StartError::ConfigInvalid(error.to_string()),
        error => StartError::Failed(format!("{}: {error}", dir.display())),
    })?;
    if node_env.drive == Drive::Manual {
        // Instead of threads; it ends with the engine.
        tokio::spawn(storage.drive());
    }
    tracing::info!(
        fresh = recovery.fresh,
        replayed = recovery.replayed,
        torn_tail_bytes = recovery.torn_tail_bytes,
        tier_lost = recovery.tier_lost,
        "storage is open"
    );
    Ok((storage, recovery))
}

/// The defaults that must not exceed what the operator has set.
fn fitted(segment: u64, memtable: u64, dir: &std::path::Path) -> StorageOptions {
    let mut options = StorageOptions::new(dir);
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    options.max_record_bytes = options.max_record_bytes.min(bytes(segment / 2).saturating_sub(1024));
    options.bulk_memtable_bytes = options.bulk_memtable_bytes.min(bytes(memtable / 2));
    options.drain_start_bytes = options.drain_start_bytes.min(bytes(memtable / 4));
    // Room for what Raft has committed, as long as one record still fits beside it.
    let beside_a_record = bytes(memtable).saturating_sub(options.max_record_bytes);
    options.apply_reserve_bytes = options.apply_reserve_bytes.min(bytes(memtable / 4)).min(beside_a_record);
    options
}

fn peer_config(config: &NodeConfig) -> PeerConfig {
    PeerConfig {
        address_map: config.address_map.clone(),
        ping_every: config.peer.ping_every,
        suspect_after: config.peer.suspect_after,
        down_after: config.peer.down_after,
        ..PeerConfig::new(config.cluster_id, config.node_id)
    }
}

fn raft_config(config: &NodeConfig) -> RaftConfig {
    RaftConfig {
        heartbeat: config.raft.heartbeat,
        election_min: config.raft.election_min,
        election_max: config.raft.election_max,
        snapshot_every: config.raft.snapshot_every,
        snapshot_bytes_per_second: config.storage.snapshot_rate,
        entries_kept: config.raft.entries_kept,
        transfer_chunk_bytes: usize::try_from(config.raft.transfer_chunk_size).unwrap_or(usize::MAX),
        transfer_bytes_per_second: config.raft.transfer_rate,
        pipeline_entries: config.raft.pipeline_entries,
        pipeline_bytes: config.raft.pipeline_size,
        ..RaftConfig::new(config.cluster_id, config.node_id, config.members.clone())
    }
}

fn dynamo_config(config: &NodeConfig, tier_lost: bool) -> AvailableConfig {
    AvailableConfig {
        hint_bytes: config.dynamo.max_hints_size,
        compares: config.dynamo.compare_clocks,
        log_bytes: config.dynamo.max_dot_log_size,
        ..AvailableConfig::new(config.node_id, tier_lost)
    }
}

fn public<H: Health>(router: &Arc<Router>, health: HealthServer<H>, reflection: Routes) -> Public<H> {
    let services = Services(Arc::clone(router));
    Public {
        gate: Arc::clone(&router.gate),
        services: services.clone(),
        kv: KvServiceServer::new(services.clone())
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_PUBLIC_MESSAGE_BYTES),
        admin: AdminServiceServer::new(services)
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_PUBLIC_MESSAGE_BYTES),
        health,
        reflection,
        max_deadline: router.config.limits.max_deadline,
    }
}

/// Keeps the links in step with the catalogue. Where both know a node, the address of the configuration
/// holds: it is what the operator changes when a node moves. What else differs is said once, when the
/// catalogue is there.
async fn follow_members(
    router: Arc<Router>,
    mut catalogue: watch::Receiver<Arc<Catalogue>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut compared = false;
    loop {
        let known = Arc::clone(&catalogue.borrow_and_update());
        let file = &router.config.members;
        if !compared && !known.members.is_empty() {
            compared = true;
            for difference in differences(&known, file) {
                tracing::warn!("the cluster file differs from the catalogue: {difference}");
            }
        }
        let mut members = advertised(&known, file);
        members.extend(file.iter().map(|member| (member.id, member.clone())));
        router.peers.set_members(members.into_values().collect());
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            changed = catalogue.changed() => if changed.is_err() { return },
        }
    }
}
