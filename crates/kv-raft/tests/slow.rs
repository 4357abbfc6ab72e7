//! Three nodes on one thread in virtual time, over links that carry a stated number of bytes a second and on
//! disks whose writes take as long as a test says. A value that takes longer than any fixed deadline of an
//! append is sent once, commits, and holds up nothing for good; a leader whose disk hangs hands over.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kv_env::{Connection, Env, Listener, Network};
use kv_peer::{PeerConfig, PeerHandler, PeerRequest, Peers};
use kv_proto::admin::{GroupRole, GroupStatus};
use kv_proto::peer::forward::Request as Forwarded;
use kv_proto::peer::request_frame::Body as Request;
use kv_proto::peer::response_frame::Body as Response;
use kv_proto::{client_id_bytes, peer, v1};
use kv_raft::{RaftConfig, Strong};
use kv_storage::disk::{Disk, DiskFile, MemDisk};
use kv_storage::tier::MemTiers;
use kv_storage::{Drive, Storage, StorageOptions};
use kv_types::catalogue::Member;
use kv_types::{
    Applied, ClientId, ClusterId, Failure, GroupId, Guarantee, Hop, Namespace, NamespaceId, NamespaceName,
    NodeId, Placement, Reason,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;

use wire::Asked;

#[path = "wire/mod.rs"]
mod wire;

const CLUSTER: ClusterId = ClusterId(9);
const PATIENCE: Duration = Duration::from_secs(30);

/// A direction: from a node to another.
type Direction = (u64, u64);

/// The network of all nodes: who listens, how many bytes a second a direction carries, and how many it has
/// carried.
#[derive(Default)]
struct Hub {
    listeners: Mutex<BTreeMap<String, mpsc::Sender<io::Result<Connection>>>>,
    rates: Mutex<BTreeMap<Direction, u64>>,
    carried: Mutex<BTreeMap<Direction, u64>>,
}

impl Hub {
    async fn pump(
        self: Arc<Self>,
        direction: Direction,
        mut from: ReadHalf<tokio::io::DuplexStream>,
        mut to: WriteHalf<tokio::io::DuplexStream>,
    ) {
        let mut buffer = vec![0; 4 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let rate = self.rates.lock().unwrap().get(&direction).copied();
            if let Some(rate) = rate {
                tokio::time::sleep(Duration::from_micros(read as u64 * 1_000_000 / rate)).await;
            }
            *self.carried.lock().unwrap().entry(direction).or_default() += read as u64;
            if to.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    }

    fn carried(&self, direction: Direction) -> u64 {
        self.carried.lock().unwrap().get(&direction).copied().unwrap_or(0)
    }
}

/// The network as one node sees it.
struct NodeNetwork {
    hub: Arc<Hub>,
    me: u64,
}

fn bank() -> Namespace {
    Namespace {
        id: NamespaceId(1),
        name: NamespaceName::new("bank").unwrap(),
        settings_version: 1,
        deletion: None,
        guarantee: Guarantee::Linearizable,
        placement: Placement::Strong { group: GroupId::FIRST_DATA },
    }
}

fn address(id: u64) -> String {
    format!("n{id}:1")
}

impl Network for NodeNetwork {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Listener>> {
        let (accepted, accepting) = mpsc::channel(64);
        self.hub.listeners.lock().unwrap().insert(address.to_owned(), accepted);
        let incoming = futures_util::stream::unfold(accepting, |mut accepting| async move {
            accepting.recv().await.map(|connection| (connection, accepting))
        });
        async move { Ok(Listener::new(address.to_owned(), incoming)) }.boxed()
    }

    fn dial<'a>(&'a self, to: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        async move {
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let listener = self.hub.listeners.lock().unwrap().get(to).cloned().ok_or_else(refused)?;
            let peer = (1..=3).find(|id| address(*id) == to).unwrap();
            let (near, near_end) = tokio::io::duplex(64 << 10);
            let (far_end, far) = tokio::io::duplex(64 << 10);
            let (near_in, near_out) = tokio::io::split(near_end);
            let (far_in, far_out) = tokio::io::split(far_end);
            tokio::spawn(self.hub.clone().pump((self.me, peer), near_in, far_out));
            tokio::spawn(self.hub.clone().pump((peer, self.me), far_in, near_out));
            listener.send(Ok(Connection::new(far, None))).await.map_err(|_| refused())?;
            Ok(Connection::new(near, None))
        }
        .boxed()
    }
}

#[derive(Default)]
struct Router(OnceLock<Strong>);

impl PeerHandler for Router {
    fn handle(&self, request: PeerRequest) -> BoxFuture<'static, Result<Response, Failure>> {
        match (self.0.get().cloned(), request.body) {
            (Some(strong), Request::Forward(forward)) => {
                let Some(Forwarded::Get(get)) = forward.request else {
                    unreachable!("only reads are passed on")
                };
                async move {
                    let read = strong.get(&bank(), get, request.deadline, Hop::Forwarded).await?;
                    let response = Some(peer::forward_reply::Response::Get(read));
                    Ok(Response::Forward(peer::ForwardReply { response }))
                }
                .boxed()
            }
            (Some(strong), body) => strong.handle(PeerRequest { body, ..request }),
            (None, _) => async { Err(Failure::new(Reason::NotReady, "starting")) }.boxed(),
        }
    }
}

/// A disk whose log writes take as long as was set.
#[derive(Debug)]
struct SlowDisk {
    disk: MemDisk,
    latency: Mutex<Duration>,
}

impl Disk for SlowDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(dir)
    }
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(path, create)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }
    fn latency(&self) -> Duration {
        *self.latency.lock().unwrap()
    }
}

struct Cluster {
    hub: Arc<Hub>,
    nodes: BTreeMap<u64, (Strong, Arc<SlowDisk>)>,
}

impl Cluster {
    async fn start() -> Self {
        let hub = Arc::new(Hub::default());
        let members: Vec<Member> = (1..=3)
            .map(|id| Member {
                id: NodeId(id),
                client_address: format!("client-of-n{id}"),
                peer_address: address(id),
                zone: String::new(),
            })
            .collect();
        let mut nodes = BTreeMap::new();
        for member in &members {
            let id = member.id.0;
            let options = StorageOptions {
                drive: Drive::Manual,
                max_record_bytes: 1 << 20,
                ..StorageOptions::memory(format!("/n{id}"))
            };
            let disk = Arc::new(SlowDisk { disk: MemDisk::new(id), latency: Mutex::default() });
            let (storage, _) = Storage::open(options, disk.clone(), Arc::new(MemTiers::new())).unwrap();
            tokio::spawn({
                let storage = storage.clone();
                async move { storage.drive().await }
            });
            let network = Arc::new(NodeNetwork { hub: hub.clone(), me: id });
            let env = Env { network, ..Env::real() };
            let listener = env.network.listen(&member.peer_address).await.unwrap();
            let peers = Peers::new(PeerConfig::new(CLUSTER, member.id), env.clone());
            let router = Arc::new(Router::default());
            let service = kv_peer::service(&peers, router.clone());
            tokio::spawn(kv_peer::server_builder().add_service(service).serve_with_incoming(listener));
            let config = RaftConfig::new(CLUSTER, member.id, members.clone());
            let strong = Strong::start(config, storage, peers, env).await.unwrap();
            let _ = router.0.set(strong.clone());
            nodes.insert(id, (strong, disk));
        }
        Self { hub, nodes }
    }

    /// Writes through the leader.
    async fn put(&self, client: u128, bytes: usize, deadline: Instant) -> Result<u64, Failure> {
        let request = v1::PutRequest {
            namespace: "bank".into(),
            key: Bytes::from(format!("k{client}")),
            value: Bytes::from(vec![b'v'; bytes]),
            mutation: Some(v1::Mutation {
                client_id: client_id_bytes(ClientId(client)),
                seq: 1,
                issued_at_ms: Env::real().clock.wall_ms(),
                lowest_unacked: 1,
                attempt: 1,
            }),
            ..Default::default()
        };
        let leader = self.leader().await;
        let put = self.nodes[&leader].0.put(&bank(), request, deadline, Hop::Client).await?;
        Ok(put.revision)
    }

    fn leads(&self, id: u64) -> bool {
        let status = self.status(id);
        status.role() == GroupRole::Leader && status.quorum
    }

    async fn leader(&self) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The catalogue says at which feature level the cluster is, and a leader writes nothing before it
            // does.
            let knows = |id: &u64| !self.nodes[id].0.catalogue().borrow().members.is_empty();
            if let Some(leader) = self.nodes.keys().find(|id| self.leads(**id) && knows(id)) {
                return *leader;
            }
            assert!(Instant::now() < deadline, "no leader within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn status(&self, id: u64) -> GroupStatus {
        let groups = self.nodes[&id].0.status();
        groups.into_iter().find(|group| group.group == GroupId::FIRST_DATA.0).unwrap()
    }

    fn set_latency(&self, id: u64, latency: Duration) {
        *self.nodes[&id].1.latency.lock().unwrap() = latency;
    }

    /// Waits until it is so; how long that took.
    async fn until(&self, what: &str, condition: impl Fn() -> bool) -> Duration {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        begun.elapsed()
    }

    fn slow(&self, from: u64, rate: u64) {
        let others = (1..=3).filter(|id| *id != from);
        self.hub.rates.lock().unwrap().extend(others.map(|to| ((from, to), rate)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_takes_longer_than_a_second_commits_and_is_sent_once() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.put(1, 10, Instant::now() + PATIENCE).await.unwrap(), 1);
    let leader = cluster.leader().await;
    // 1.25 s a copy; then 5 s, far above the time after which a silent connection is given up.
    for (round, rate) in [(0, 800_000), (1, 200_000)] {
        cluster.slow(leader, rate);
        let carried = |to: u64| cluster.hub.carried((leader, to));
        let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
        let before: Vec<u64> = others.iter().map(|to| carried(*to)).collect();
        let begun = Instant::now();
        let revision = cluster.put(10 + round, 1_000_000, begun + PATIENCE).await.unwrap();
        let needed = Duration::from_millis(1_000_000_000 / rate);
        assert!(begun.elapsed() < needed + Duration::from_secs(1), "{:?} at {rate} B/s", begun.elapsed());
        assert_eq!(cluster.leader().await, leader);
        for n in 0..20 {
            let late = Instant::now() + Duration::from_secs(5);
            let later = cluster.put(100 * (round + 1) + n, 100, late).await.unwrap();
            assert_eq!(later, revision + 1 + u64::try_from(n).unwrap());
        }
        for (to, before) in others.iter().zip(before) {
            assert!(carried(*to) - before < 1_500_000, "{} bytes to n{to}", carried(*to) - before);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_disk_hangs_hands_over_within_seconds_and_follows_afterwards() {
    let cluster = Cluster::start().await;
    cluster.put(1, 10, Instant::now() + PATIENCE).await.unwrap();
    let hanging = cluster.leader().await;
    let term = cluster.status(hanging).term;
    cluster.set_latency(hanging, Duration::from_secs(20));
    // Something to write. The followers have it, and it may well be acknowledged.
    let _ = cluster.put(2, 10, Instant::now() + Duration::from_millis(200)).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != hanging).collect();
    let took = cluster
        .until("another leader", || others.iter().any(|id| cluster.leads(*id)) && !cluster.leads(hanging))
        .await;
    assert!(took < Duration::from_secs(6), "{took:?}");
    let why = cluster.nodes[&hanging].0.impediments();
    assert!(why.iter().any(|why| why.contains("its disk has completed no write of the log")), "{why:?}");
    let leader = cluster.leader().await;
    for n in 0..10 {
        cluster.put(10 + n, 100_000, Instant::now() + Duration::from_secs(1)).await.unwrap();
    }
    // It does not campaign, so no one is disturbed: the new leader's term stands until the disk is back.
    let new_term = cluster.status(leader).term;
    assert!(new_term > term);
    cluster.set_latency(hanging, Duration::ZERO);
    cluster
        .until("the disk is back and the log caught up", || {
            cluster.nodes[&hanging].0.impediments().is_empty()
                && cluster.status(hanging).applied_index == cluster.status(leader).applied_index
        })
        .await;
    assert_eq!((cluster.leader().await, cluster.status(leader).term), (leader, new_term));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_slow_and_answers_costs_no_election() {
    let cluster = Cluster::start().await;
    cluster.put(1, 10, Instant::now() + PATIENCE).await.unwrap();
    let leader = cluster.leader().await;
    let term = cluster.status(leader).term;
    cluster.set_latency(leader, Duration::from_millis(1_500));
    for n in 0..20 {
        cluster.put(10 + n, 100, Instant::now() + Duration::from_secs(5)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!((cluster.leader().await, cluster.status(leader).term), (leader, term));
}

/// The quorum is there, only this read takes longer than its caller waits.
#[tokio::test(start_paused = true)]
async fn a_read_that_is_late_does_not_say_that_there_is_no_quorum() {
    let cluster = Cluster::start().await;
    cluster.put(1, 10, Instant::now() + PATIENCE).await.unwrap();
    let leader = cluster.leader().await;
    let asked = (1..=3).find(|id| *id != leader).unwrap();
    let get = |key: Vec<u8>| v1::GetRequest {
        namespace: "bank".into(),
        key: key.into(),
        ..v1::GetRequest::default()
    };
    let strong = &cluster.nodes[&asked].0;
    let soon = || Instant::now() + Duration::from_millis(300);
    assert!(strong.get(&bank(), get(b"k1".to_vec()), soon(), Hop::Client).await.is_ok());
    cluster.hub.rates.lock().unwrap().insert((asked, leader), 4_000);
    let late = strong.get(&bank(), get(vec![b'k'; 4_000]), soon(), Hop::Client).await.unwrap_err();
    assert_eq!((late.reason, late.applied), (Reason::DeadlineExpired, Applied::No), "{late}");
    assert_eq!(late.detail("required"), None, "{late:?}");
}
