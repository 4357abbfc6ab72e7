//! Five nodes in one process over real loopback connections, each with its own storage, and a network that
//! can be cut in silence: bytes are held back, nothing is closed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "an integration test"
)]

mod gate;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use gate::{Gate, GatedTiers};
use kv_dynamo::{Available, AvailableConfig};
use kv_env::{Connection, Env, Listener, Network, TcpNetwork};
use kv_peer::{Address, PeerConfig, PeerHandler, PeerRequest, Peers};
use kv_proto::peer::{request_frame, response_frame};
use kv_proto::{DataRequest, client_id_bytes, peer, v1};
use kv_storage::disk::MemDisk;
use kv_storage::tier::MemTiers;
use kv_storage::{Storage, StorageOptions};
use kv_types::catalogue::{Catalogue, FeatureLevel, Member, Ring};
use kv_types::causal::{Dot, Hlc, Seen, Sibling, State, Write};
use kv_types::{
    Applied, ClientId, ClusterId, Epoch, Failure, Hop, Incarnation, Namespace, NamespaceId, NamespaceName,
    NamespaceSpec, NodeId, Placement, Reason, Replication, RequestId, RingId,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

const CLUSTER: ClusterId = ClusterId(77);
const NODES: u64 = 5;

/// On which side of the cut each node is; bytes pass only within a side.
type Sides = BTreeMap<NodeId, u8>;

struct CutNetwork {
    me: NodeId,
    peers: Arc<BTreeMap<String, NodeId>>,
    sides: watch::Receiver<Sides>,
    /// Bytes a second of each connection and direction.
    rate: watch::Receiver<u64>,
}

async fn carry(bytes: usize, rate: &watch::Receiver<u64>) {
    let rate = *rate.borrow();
    if rate < u64::MAX {
        sleep(Duration::from_micros(bytes as u64 * 1_000_000 / rate)).await;
    }
}

fn open(sides: &Sides, a: NodeId, b: NodeId) -> bool {
    sides.get(&a).unwrap_or(&0) == sides.get(&b).unwrap_or(&0)
}

impl Network for CutNetwork {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Listener>> {
        TcpNetwork.listen(address)
    }

    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let (me, to) = (self.me, self.peers[address]);
            let mut sides = self.sides.clone();
            let _ = sides.wait_for(|sides| open(sides, me, to)).await;
            let (mut read, mut write) = tokio::io::split(TcpNetwork.dial(address).await?);
            let (near, far) = tokio::io::duplex(64 << 10);
            let (mut far_read, mut far_write) = tokio::io::split(far);
            let (mut up, mut down) = (self.sides.clone(), self.sides.clone());
            let (up_rate, down_rate) = (self.rate.clone(), self.rate.clone());
            tokio::spawn(async move {
                let mut buffer = vec![0; 16 << 10];
                while let Ok(n @ 1..) = far_read.read(&mut buffer).await {
                    carry(n, &up_rate).await;
                    if up.wait_for(|sides| open(sides, me, to)).await.is_err()
                        || write.write_all(&buffer[..n]).await.is_err()
                    {
                        break;
                    }
                }
                let _ = write.shutdown().await;
            });
            tokio::spawn(async move {
                let mut buffer = vec![0; 16 << 10];
                while let Ok(n @ 1..) = read.read(&mut buffer).await {
                    carry(n, &down_rate).await;
                    if down.wait_for(|sides| open(sides, me, to)).await.is_err()
                        || far_write.write_all(&buffer[..n]).await.is_err()
                    {
                        break;
                    }
                }
                let _ = far_write.shutdown().await;
            });
            Ok(Connection::new(near, Some(address.to_owned())))
        })
    }
}

/// Routes peers' requests as kv-server does, for one namespace.
struct Handler(Available, Namespace);

impl PeerHandler for Handler {
    fn handle(&self, request: PeerRequest) -> BoxFuture<'static, Result<response_frame::Body, Failure>> {
        use kv_proto::peer::forward::Request as Forwarded;
        let (available, namespace, deadline) = (self.0.clone(), self.1.clone(), request.deadline);
        let request_frame::Body::Forward(message) = request.body else { return available.handle(request) };
        Box::pin(async move {
            let (_, call) = match message.request.unwrap() {
                Forwarded::Get(request) => request.read()?,
                Forwarded::Put(request) => request.read()?,
                Forwarded::Delete(request) => request.read()?,
                other => panic!("{other:?}"),
            };
            let answer = available.serve(&namespace, call, deadline, Hop::Forwarded).await?;
            Ok(response_frame::Body::Forward(answer.try_into()?))
        })
    }
}

struct Node {
    dynamo: Available,
    disk: MemDisk,
    storage: Storage,
    /// Before the reads of its tier.
    gate: Gate,
    peers: Peers,
    server: tokio::task::JoinHandle<()>,
}

struct Cluster {
    nodes: BTreeMap<NodeId, Node>,
    addresses: Arc<BTreeMap<String, NodeId>>,
    sides: watch::Sender<Sides>,
    rate: watch::Sender<u64>,
    catalogue: watch::Sender<Arc<Catalogue>>,
    namespace: Namespace,
    options: StorageOptions,
    seq: std::sync::atomic::AtomicU64,
}

impl Cluster {
    async fn start() -> Self {
        Self::start_with(StorageOptions::memory("/data")).await
    }

    async fn start_with(options: StorageOptions) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..NODES {
            listeners.push(TcpNetwork.listen("127.0.0.1:0").await.unwrap());
        }
        let addresses: BTreeMap<String, NodeId> =
            (1..).map(NodeId).zip(&listeners).map(|(id, l)| (l.local_address.clone(), id)).collect();
        let members: BTreeMap<NodeId, Member> = addresses
            .iter()
            .map(|(address, id)| {
                let (client_address, peer_address) = (String::new(), address.clone());
                (*id, Member { id: *id, client_address, peer_address, zone: String::new() })
            })
            .collect();
        let assignment = Ring::assign(3, 16, &members, &[]);
        let ring = Ring { id: RingId(1), n: 3, assignment, epoch: Epoch(1) };
        let rings = BTreeMap::from([(RingId(1), ring)]);
        let catalogue =
            Catalogue { cluster_id: CLUSTER, epoch: Epoch(1), members, rings, ..Catalogue::default() };
        let replication = Replication { n: 3, r: 2, w: 2, sloppy: true };
        let spec = NamespaceSpec::available(NamespaceName::new("cart").unwrap(), replication);
        let namespace = Namespace {
            id: NamespaceId(1),
            name: spec.name,
            settings_version: 1,
            deletion: None,
            guarantee: spec.guarantee,
            placement: Placement::Available { ring: RingId(1), replication },
        };
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            addresses: Arc::new(addresses),
            sides: watch::Sender::new(Sides::new()),
            rate: watch::Sender::new(u64::MAX),
            catalogue: watch::Sender::new(Arc::new(catalogue)),
            namespace,
            options: StorageOptions { max_record_bytes: 1 << 20, ..options },
            seq: 0.into(),
        };
        for (id, listener) in (1..).map(NodeId).zip(listeners) {
            cluster.start_node(id, listener, MemDisk::new(id.0)).await;
        }
        cluster
            .until("a new cluster serves without a pull", |c| {
                c.nodes.values().all(|n| n.dynamo.rebuilding_partitions() == 0)
            })
            .await;
        cluster.catalogue.send_modify(|catalogue| {
            let mut next = Catalogue::clone(catalogue);
            next.epoch = Epoch(2);
            next.namespaces.insert(cluster.namespace.id, cluster.namespace.clone());
            *catalogue = Arc::new(next);
        });
        cluster
            .until("all nodes are up", |c| {
                c.nodes.values().all(|n| n.peers.snapshot().iter().all(|(_, liveness)| liveness.is_up()))
            })
            .await;
        cluster
    }

    async fn start_node(&mut self, id: NodeId, listener: Listener, disk: MemDisk) {
        let (sides, rate) = (self.sides.subscribe(), self.rate.subscribe());
        let network = CutNetwork { me: id, peers: Arc::clone(&self.addresses), sides, rate };
        let env = Env { network: Arc::new(network), ..Env::real() };
        let peers = Peers::new(PeerConfig::new(CLUSTER, id), env.clone());
        let gate = Gate::default();
        let tiers = GatedTiers(MemTiers::new(), gate.clone());
        let (storage, recovery) =
            Storage::open(self.options.clone(), Arc::new(disk.clone()), Arc::new(tiers)).unwrap();
        let config = AvailableConfig::new(id, recovery.tier_lost);
        let catalogue = self.catalogue.subscribe();
        let dynamo = Available::start(config, storage.clone(), peers.clone(), env, catalogue).await.unwrap();
        let service = kv_peer::service(&peers, Arc::new(Handler(dynamo.clone(), self.namespace.clone())));
        let server = tokio::spawn(async move {
            let _ = kv_peer::server_builder().add_service(service).serve_with_incoming(listener).await;
        });
        peers.set_members(self.catalogue.borrow().members.values().cloned().collect());
        self.nodes.insert(id, Node { dynamo, disk, storage, gate, peers, server });
    }

    /// The node comes back with an empty disk.
    async fn wipe(&mut self, id: NodeId) {
        self.restart(id, MemDisk::new(id.0)).await;
    }

    /// The node's process ends, and another one begins on this disk.
    async fn restart(&mut self, id: NodeId, disk: MemDisk) {
        let node = self.nodes.remove(&id).unwrap();
        node.dynamo.shutdown();
        node.peers.shutdown();
        node.server.abort();
        let _ = node.server.await;
        let address = self.addresses.iter().find(|(_, node)| **node == id).unwrap().0.clone();
        let mut listener = TcpNetwork.listen(&address).await;
        while listener.is_err() {
            sleep(Duration::from_millis(20)).await;
            listener = TcpNetwork.listen(&address).await;
        }
        self.start_node(id, listener.unwrap(), disk).await;
    }

    fn cut(&self, minority: &[u64]) {
        self.sides.send_replace(minority.iter().map(|id| (NodeId(*id), 1)).collect());
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
            sleep(Duration::from_millis(10)).await;
        }
        begun.elapsed()
    }

    fn mutation(&self) -> v1::Mutation {
        let seq = 1 + self.seq.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        v1::Mutation {
            client_id: client_id_bytes(ClientId(9)),
            seq,
            issued_at_ms: Env::real().clock.wall_ms(),
            lowest_unacked: 0,
            attempt: 1,
        }
    }

    fn request(&self, key: &str, value: &str, context: v1::write_context::Context) -> v1::PutRequest {
        v1::PutRequest {
            namespace: "cart".into(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            mutation: Some(self.mutation()),
            context: Some(v1::WriteContext { context: Some(context) }),
            ..Default::default()
        }
    }

    async fn send(&self, node: u64, request: v1::PutRequest) -> Result<v1::PutResponse, Failure> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let dynamo = &self.nodes[&NodeId(node)].dynamo;
        let (_, call) = request.read()?;
        let served = dynamo.serve(&self.namespace, call, deadline, Hop::Client);
        let served = timeout(Duration::from_millis(1_100), served).await;
        served.expect("every wait ends by the deadline")?.try_into()
    }

    async fn put(&self, node: u64, key: &str, value: &str) -> Result<v1::PutResponse, Failure> {
        self.send(node, self.request(key, value, v1::write_context::Context::Observed(true))).await
    }

    /// Deletes what a read has seen.
    async fn delete(&self, node: u64, key: &str, seen: Bytes) -> Result<v1::DeleteResponse, Failure> {
        let request = v1::DeleteRequest {
            namespace: "cart".into(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            mutation: Some(self.mutation()),
            context: Some(v1::WriteContext { context: Some(v1::write_context::Context::Causal(seen)) }),
            ..Default::default()
        };
        let deadline = Instant::now() + Duration::from_secs(1);
        let (_, call) = request.read()?;
        let dynamo = &self.nodes[&NodeId(node)].dynamo;
        dynamo.serve(&self.namespace, call, deadline, Hop::Client).await?.try_into()
    }

    async fn get(&self, node: u64, key: &str, replicas: u32) -> Result<v1::GetResponse, Failure> {
        self.get_from(node, key, replicas, false).await
    }

    /// `strict`: from primaries alone.
    async fn get_from(
        &self,
        node: u64,
        key: &str,
        replicas: u32,
        strict: bool,
    ) -> Result<v1::GetResponse, Failure> {
        let request = v1::GetRequest {
            namespace: "cart".into(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            read_replicas: Some(v1::ReplicaCount { count: Some(v1::replica_count::Count::Number(replicas)) }),
            strict,
            ..Default::default()
        };
        let deadline = Instant::now() + Duration::from_secs(1);
        let dynamo = &self.nodes[&NodeId(node)].dynamo;
        let (_, call) = request.read()?;
        let served = dynamo.serve(&self.namespace, call, deadline, Hop::Client);
        let served = timeout(Duration::from_millis(1_100), served).await;
        served.expect("every wait ends by the deadline")?.try_into()
    }

    async fn until_shown(&self, key: &str, value: &str) {
        let begun = Instant::now();
        while !self.get(1, key, 3).await.is_ok_and(|response| shown(&response) == [value]) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{key} never became {value}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Until all replicas of every ring partition have the same digest and no hint is left.
    async fn converge(&self) -> Duration {
        let begun = Instant::now();
        loop {
            let mut digests: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
            let mut hints = 0;
            for node in self.nodes.values() {
                let digest = node.dynamo.digest(&self.namespace).await.unwrap();
                hints += digest.hints_pending;
                for partition in digest.partitions {
                    digests.entry(partition.partition).or_default().push(partition.digest);
                }
            }
            assert!(digests.values().all(|d| d.len() == 3));
            if hints == 0 && digests.values().all(|d| d.iter().all(|one| *one == d[0])) {
                return begun.elapsed();
            }
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(20), "not converged: {hints} hints, {digests:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn available(receipt: Option<&v1::Receipt>) -> v1::AvailableEvidence {
    match receipt.and_then(|receipt| receipt.evidence.clone()) {
        Some(v1::receipt::Evidence::Available(evidence)) => evidence,
        other => panic!("{other:?}"),
    }
}

fn shown(response: &v1::GetResponse) -> Vec<String> {
    let mut values: Vec<String> =
        response.siblings.iter().map(|s| String::from_utf8_lossy(&s.value).into_owned()).collect();
    values.sort();
    values
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_of_a_silent_cut_go_on_and_converge_after_it() {
    let cluster = Cluster::start().await;
    let keys: Vec<String> = (0..60).map(|n| format!("key-{n}")).collect();
    for result in join_all(keys.iter().map(|key| cluster.put(1, key, "before"))).await {
        result.unwrap();
    }
    let whole = cluster.get(5, &keys[0], 3).await.unwrap();
    assert_eq!((shown(&whole), whole.presence()), (vec!["before".to_owned()], v1::Presence::Found));

    // From the very first request on, both sides answer within a second.
    cluster.cut(&[4, 5]);
    let begun = Instant::now();
    let minority = join_all(keys.iter().map(|key| cluster.put(4, key, "minority")));
    let majority = join_all(keys.iter().map(|key| cluster.put(1, key, "majority")));
    let (minority, majority) = tokio::join!(minority, majority);
    eprintln!("the first requests of both sides took {:?}", begun.elapsed());
    let receipts: Vec<v1::Receipt> =
        minority.into_iter().chain(majority).map(|answer| answer.unwrap().receipt.unwrap()).collect();
    let fallbacks = receipts.iter().filter(|r| r.degraded().any(|d| d == v1::Degradation::Fallback)).count();
    assert!(fallbacks > 0, "a fallback stood in");
    for key in &keys {
        assert_eq!(shown(&cluster.get(5, key, 2).await.unwrap()), vec!["minority"]);
        assert_eq!(shown(&cluster.get(2, key, 2).await.unwrap()), vec!["majority"]);
    }
    // Once the others are suspected, nothing costs patience.
    let begun = Instant::now();
    cluster.put(4, &keys[0], "minority").await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    let hints: u64 = cluster.nodes.values().map(|n| n.dynamo.hints_pending().values().sum::<u64>()).sum();
    assert!(hints > 0);

    // A key that no node on this side knows, and whose primaries are all on the other, is not called absent.
    let unknown = (0..).map(|n| format!("unknown-{n}")).find(|key| {
        let owners = cluster.nodes[&NodeId(4)].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
        owners.primaries.iter().all(|primary| *primary < 4)
    });
    let unknown = unknown.unwrap();
    assert_eq!(cluster.get(4, &unknown, 1).await.unwrap().presence(), v1::Presence::NoKnowledge);
    let absent = cluster.get(1, &unknown, 2).await.unwrap();
    assert_eq!(absent.presence(), v1::Presence::Absent);
    let evidence = available(absent.receipt.as_ref());
    assert!(
        evidence.replies.iter().filter(|r| r.answered).all(|r| r.knows),
        "a primary knows that there is none"
    );
    let evidence = available(cluster.get(4, &unknown, 1).await.unwrap().receipt.as_ref());
    assert!(evidence.replies.iter().all(|r| !r.knows), "a fallback without a hint knows nothing");

    // A strict write that cannot be met is refused before anything is written.
    let mut strict = cluster.request(&unknown, "x", v1::write_context::Context::Observed(true));
    strict.strict = true;
    let refused = cluster.send(4, strict).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::QuorumNotMet, Applied::No));

    cluster.cut(&[]);
    let took = cluster.converge().await;
    eprintln!("{hints} hints, converged {took:?} after the heal");
    assert!(took < Duration::from_secs(5));
    for key in &keys {
        for node in 1..=NODES {
            let all = cluster.get(node, key, 3).await.unwrap();
            assert_eq!(shown(&all), vec!["majority", "minority"], "{key} at n{node}");
        }
    }
    // Reading and writing with what was read resolves a conflict.
    let conflict = cluster.get(3, &keys[7], 2).await.unwrap();
    let resolve = cluster.request(&keys[7], "both", v1::write_context::Context::Causal(conflict.context));
    cluster.send(2, resolve).await.unwrap();
    cluster.converge().await;
    assert_eq!(shown(&cluster.get(5, &keys[7], 3).await.unwrap()), vec!["both"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_resent_anywhere_is_one_write() {
    let cluster = Cluster::start().await;
    let first = cluster.request("k", "a", v1::write_context::Context::Observed(true));
    cluster.send(1, first.clone()).await.unwrap();
    // What a write supersedes is what its coordinator has: every replica has the first one by then.
    cluster.converge().await;
    cluster.put(2, "k", "b").await.unwrap();
    for node in 1..=NODES {
        cluster.send(node, first.clone()).await.unwrap();
    }
    cluster.converge().await;
    assert_eq!(shown(&cluster.get(3, "k", 3).await.unwrap()), vec!["b"]);
    let again = cluster.send(4, first.clone()).await.unwrap().receipt.unwrap();
    assert!(again.deduplicated);
    let mut other = first;
    other.value = Bytes::from_static(b"c");
    assert_eq!(cluster.send(1, other).await.unwrap_err().reason, Reason::RequestIdReused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_pulls_before_it_serves() {
    let mut cluster = Cluster::start().await;
    let keys: Vec<String> = (0..60).map(|n| format!("key-{n}")).collect();
    for result in join_all(keys.iter().map(|key| cluster.put(1, key, "kept"))).await {
        result.unwrap();
    }
    cluster.converge().await;
    // It comes back alone: it may not speak for anything, and says so.
    cluster.cut(&[2]);
    cluster.wipe(NodeId(2)).await;
    assert!(cluster.nodes[&NodeId(2)].dynamo.rebuilding_partitions() > 0);
    let mine = keys.iter().find(|key| {
        let owners = cluster.nodes[&NodeId(2)].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
        owners.primaries.contains(&2)
    });
    let refused = cluster.get(2, mine.unwrap(), 1).await.unwrap_err();
    assert_eq!(refused.applied, Applied::No, "{refused}");
    cluster.cut(&[]);
    cluster
        .until("the wiped node is whole", |c| c.nodes[&NodeId(2)].dynamo.rebuilding_partitions() == 0)
        .await;
    cluster.converge().await;
    for key in &keys {
        assert_eq!(shown(&cluster.get(2, key, 1).await.unwrap()), vec!["kept"]);
    }
}

/// Records of the namespace, and those that claim more than the clocks have.
fn records(cluster: &Cluster) -> usize {
    let of_table = |node: &Node, table: u16| {
        node.storage.scan(kv_storage::TableId::new(table), &[], None, usize::MAX).unwrap().len()
    };
    cluster.nodes.values().map(|node| of_table(node, 48) + of_table(node, 54)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_keys_leave_no_record_on_any_node_and_do_not_come_back_with_a_pull() {
    let mut cluster = Cluster::start().await;
    let keys: Vec<String> = (0..60).map(|n| format!("key-{n}")).collect();
    for result in join_all(keys.iter().map(|key| cluster.put(1, key, "before"))).await {
        result.unwrap();
    }
    // Some are deleted while their replicas are apart, through nodes that stand in as well.
    cluster.cut(&[4, 5]);
    for (side, keys) in [1, 4].into_iter().zip(keys.chunks(30)) {
        for key in keys {
            let seen = cluster.get(side, key, 1).await.unwrap();
            cluster.put(side, key, "cut").await.unwrap();
            cluster.delete(side, key, seen.context).await.unwrap();
        }
    }
    cluster.cut(&[]);
    cluster.converge().await;
    // What was put meanwhile was not seen, nor anything where no primary was: it goes now.
    for key in &keys {
        let seen = cluster.get(1, key, 3).await.unwrap();
        assert!(shown(&seen).contains(&"cut".to_owned()), "{key}");
        cluster.delete(2, key, seen.context).await.unwrap();
    }
    cluster.converge().await;
    cluster.until("no record is left, nor one to be stripped", |c| records(c) == 0).await;
    for node in 1..=NODES {
        for key in &keys {
            assert_eq!(cluster.get(node, key, 2).await.unwrap().presence(), v1::Presence::Absent);
        }
    }
    cluster.wipe(NodeId(2)).await;
    cluster
        .until("the wiped node is whole", |c| c.nodes[&NodeId(2)].dynamo.rebuilding_partitions() == 0)
        .await;
    cluster.converge().await;
    assert_eq!(records(&cluster), 0);
    for key in &keys {
        assert!(shown(&cluster.get(2, key, 1).await.unwrap()).is_empty());
    }
}

/// A delete arrives that names a write of another key, which comes later: no message of its own key is to
/// come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_was_ahead_of_the_clock_goes_by_itself() {
    let cluster = Cluster::start().await;
    let owners = |key: &str| cluster.nodes[&NodeId(1)].dynamo.owners(&cluster.namespace, key.as_bytes());
    let of_first = owners("key-0").unwrap();
    let other = (1..).map(|n| format!("key-{n}"));
    let other = other.into_iter().find(|key| owners(key).unwrap().partition == of_first.partition).unwrap();
    let dot = |counter| Dot { incarnation: Incarnation(9), counter };
    let write = |seq| {
        let request = RequestId { client_id: ClientId(3), seq };
        Write { issued_at_ms: Env::real().clock.wall_ms(), request, body: 1 }
    };
    let (mut gone, mut there) = (State::default(), State::default());
    let seen = Seen { context: [dot(1)].into_iter().collect(), ..Seen::default() };
    gone.update(&seen, dot(2), write(2), None);
    let sibling = Sibling { stamp: Hlc::at(1), request: write(1).request, value: Bytes::from_static(b"v") };
    there.update(&Seen::default(), dot(1), write(1), Some(sibling));
    let primary = &cluster.nodes[&NodeId(of_first.primaries[0])].dynamo;
    let send = async |key: &str, state: &State| {
        let body = request_frame::Body::ReplicaWrite(peer::ReplicaWrite {
            ring: of_first.ring,
            partition: of_first.partition,
            key: Bytes::copy_from_slice(key.as_bytes()),
            record: state.encode(),
            ..Default::default()
        });
        let about = Address { namespace: cluster.namespace.id, epoch: Epoch(0), ..Address::default() };
        let deadline = Instant::now() + Duration::from_secs(1);
        primary.handle(PeerRequest { from: NodeId(9), about, deadline, body }).await.unwrap();
    };
    send("key-0", &gone).await;
    assert_eq!(records(&cluster), 2, "the record, and its place in the list");
    send(&other, &there).await;
    cluster.until("the other key alone is left", |c| records(c) == 1).await;
}

/// A primary and a fallback have acknowledged; then the disk of the primary is lost. What the fallback holds
/// is for another primary, and this one asks for it before all others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_asks_those_that_hold_hints() {
    let mut cluster = Cluster::start().await;
    let wiped = NodeId(1);
    let keys: Vec<String> = (0..200)
        .map(|n| format!("key-{n}"))
        .filter(|key| {
            let owners = cluster.nodes[&wiped].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
            owners.primaries.contains(&1) && [4, 5].iter().all(|node| owners.fallbacks.contains(node))
        })
        .take(10)
        .collect();
    assert!(keys.len() > 3);
    cluster.cut(&[2, 3]);
    let put = async |key: &String| loop {
        // Until it is known who is away.
        if cluster.put(1, key, "kept").await.is_ok() {
            break;
        }
    };
    join_all(keys.iter().map(put)).await;
    let rows = |c: &Cluster| c.nodes[&wiped].dynamo.rows_of(c.namespace.id).unwrap();
    assert!(rows(&cluster) > 0);
    cluster.wipe(wiped).await;
    // The other primaries are still away.
    cluster.until("the hints were pulled", |c| rows(c) >= keys.len()).await;
    assert!(cluster.nodes[&wiped].dynamo.rebuilding_partitions() > 0);
    cluster.cut(&[]);
    cluster.until("the wiped node is whole", |c| c.nodes[&wiped].dynamo.rebuilding_partitions() == 0).await;
    for key in &keys {
        assert_eq!(shown(&cluster.get(1, key, 1).await.unwrap()), ["kept"], "{key}");
    }
}

/// Each of those that may stand in holds a hint that no other has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_asks_all_of_those_that_may_hold_hints() {
    let mut cluster = Cluster::start().await;
    let wiped = NodeId(1);
    let owners = |key: &str| cluster.nodes[&wiped].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
    let first = key_of(&cluster, "key", &[1, 2, 3]);
    let of_first = owners(&first);
    let mut same =
        (0..).map(|n| format!("same-{n}")).filter(|key| owners(key).partition == of_first.partition);
    cluster.cut(&[2, 3]);
    let away = |c: &Cluster| {
        let up =
            |node: u64| [4, 5].iter().any(|at| c.nodes[&NodeId(*at)].peers.liveness(NodeId(node)).is_up());
        !up(2) && !up(3)
    };
    cluster.until("two primaries are away", away).await;
    let mut held = Vec::new();
    for (counter, (holder, target)) in (1..).zip([(4, 2), (4, 3), (5, 2), (5, 3)]) {
        let request = RequestId { client_id: ClientId(3), seq: counter };
        let write = Write { issued_at_ms: Env::real().clock.wall_ms(), request, body: 1 };
        let sibling = Sibling { stamp: Hlc::at(1), request, value: Bytes::from_static(b"kept") };
        let mut state = State::default();
        let dot = Dot { incarnation: Incarnation(9), counter: 2 * counter };
        state.update(&Seen::default(), dot, write, Some(sibling));
        let key = same.next().unwrap();
        let body = request_frame::Body::ReplicaWrite(peer::ReplicaWrite {
            ring: of_first.ring,
            partition: of_first.partition,
            key: Bytes::copy_from_slice(key.as_bytes()),
            record: state.encode(),
            hint_for: target,
            counted: true,
        });
        let about = Address { namespace: cluster.namespace.id, epoch: Epoch(0), ..Address::default() };
        let deadline = Instant::now() + Duration::from_secs(5);
        let kept = PeerRequest { from: NodeId(target), about, deadline, body };
        cluster.nodes[&NodeId(holder)].dynamo.handle(kept).await.unwrap();
        held.push(key);
    }
    drop(same);
    cluster.wipe(wiped).await;
    // The other primaries are still away.
    let records = |c: &Cluster| {
        let rows = c.nodes[&wiped].storage.scan(kv_storage::TableId::new(48), &[], None, usize::MAX).unwrap();
        let of = |key: &String| rows.iter().any(|(row, _)| row.ends_with(key.as_bytes()));
        held.iter().filter(|key| of(key)).count()
    };
    cluster.until("all hints were pulled", |c| records(c) == held.len()).await;
    assert!(cluster.nodes[&wiped].dynamo.rebuilding_partitions() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_outlive_the_process_that_holds_them() {
    let mut cluster = Cluster::start().await;
    let keys: Vec<String> = (0..30).map(|n| format!("key-{n}")).collect();
    cluster.cut(&[4, 5]);
    for answer in join_all(keys.iter().map(|key| cluster.put(4, key, "kept"))).await {
        answer.unwrap();
    }
    let held = |cluster: &Cluster| cluster.nodes[&NodeId(4)].dynamo.hints_pending();
    let before = held(&cluster);
    assert!(before.values().sum::<u64>() > 0);
    let disk = cluster.nodes[&NodeId(4)].disk.clone();
    disk.kill();
    cluster.restart(NodeId(4), disk).await;
    assert_eq!(held(&cluster), before);
    cluster.cut(&[]);
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resend_that_left_no_trace_is_a_sibling_wherever_it_arrives() {
    let cluster = Cluster::start().await;
    for node in 1..=NODES {
        let key = format!("key-{node}");
        cluster.put(1, &key, "acknowledged").await.unwrap();
        // Its first attempt was taken by a node that is not here, and superseded; no node here can tell.
        let mut resent = cluster.request(&key, "resent", v1::write_context::Context::Observed(true));
        resent.mutation.as_mut().unwrap().attempt = 2;
        cluster.send(node, resent).await.unwrap();
        assert_eq!(
            shown(&cluster.get(node, &key, 3).await.unwrap()),
            vec!["acknowledged", "resent"],
            "at n{node}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_refuses_what_counts_for_another_epoch_of_its_ring() {
    let cluster = Cluster::start().await;
    let owners = cluster.nodes[&NodeId(1)].dynamo.owners(&cluster.namespace, b"k").unwrap();
    let primary = &cluster.nodes[&NodeId(owners.primaries[0])].dynamo;
    let ask = |epoch: u64, body: request_frame::Body| {
        primary.handle(PeerRequest {
            from: NodeId(owners.primaries[1]),
            about: Address { namespace: cluster.namespace.id, epoch: Epoch(epoch), ..Address::default() },
            deadline: Instant::now() + Duration::from_secs(1),
            body,
        })
    };
    let (ring, partition, key) = (owners.ring, owners.partition, Bytes::from_static(b"k"));
    let write = || {
        request_frame::Body::ReplicaWrite(peer::ReplicaWrite {
            ring,
            partition,
            key: key.clone(),
            record: State::default().encode(),
            hint_for: 0,
            counted: false,
        })
    };
    let read = || request_frame::Body::ReplicaRead(peer::ReplicaRead { ring, partition, key: key.clone() });
    // The ring is of epoch 1, the catalogue of epoch 2; 0 is merge traffic.
    for (epoch, taken) in [(1, true), (2, false), (7, false), (0, true)] {
        for body in [write(), read()] {
            match ask(epoch, body).await {
                Ok(_) => assert!(taken, "epoch {epoch} was taken"),
                Err(failure) => assert!(
                    !taken && (failure.reason, failure.applied) == (Reason::WrongEpoch, Applied::No),
                    "epoch {epoch}: {failure}"
                ),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_leaves_the_fate_open_by_the_deadline() {
    let cluster = Cluster::start().await;
    cluster.put(1, "k", "before").await.unwrap();
    for node in cluster.nodes.values() {
        node.disk.set_sync_delay(Duration::from_secs(3));
    }
    let begun = Instant::now();
    let (failure, unread) = tokio::join!(cluster.put(1, "k", "slow"), cluster.put(1, "l", "slow"));
    let failure = failure.unwrap_err();
    assert_eq!(failure.applied, Applied::Unknown, "{failure}");
    assert_eq!(unread.unwrap_err().applied, Applied::Unknown);
    let took = begun.elapsed();
    assert!((Duration::from_millis(200)..Duration::from_millis(1_100)).contains(&took), "{took:?}");
    for node in cluster.nodes.values() {
        node.disk.set_sync_delay(Duration::ZERO);
    }
    // It was in the log: it is there once the disk is done with it, and finds its way without being read.
    cluster.converge().await;
    cluster.until_shown("k", "slow").await;
    cluster.until_shown("l", "slow").await;
}

/// A key that all of these nodes keep.
fn key_of(cluster: &Cluster, prefix: &str, nodes: &[u64]) -> String {
    let keeps = |key: &String| {
        let owners = cluster.nodes[&NodeId(1)].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
        nodes.iter().all(|node| owners.primaries.contains(node))
    };
    (0..).map(|n| format!("{prefix}-{n}")).find(keeps).unwrap()
}

// One thread for everything, as the runtime of a node has.
#[tokio::test]
async fn a_stalled_tier_holds_up_the_requests_that_need_it_alone() {
    // What is new stays in memory until a checkpoint asks for it.
    let mut options = StorageOptions::memory("/data");
    options.drain_interval = Duration::from_secs(3_600);
    options.drain_start_bytes = options.memtable_bytes;
    options.cache_bytes = 0;
    let cluster = Cluster::start_with(options).await;
    let [cold, hot, new] = ["cold", "hot", "new"].map(|name| key_of(&cluster, name, &[1, 2]));
    for key in [&cold, &hot] {
        cluster.put(1, key, "before").await.unwrap();
    }
    cluster.converge().await;
    let first = &cluster.nodes[&NodeId(1)];
    first.storage.checkpoint().await.unwrap();
    cluster.put(1, &hot, "in memory").await.unwrap();

    first.gate.hold(usize::MAX);
    let ended = std::sync::atomic::AtomicUsize::new(0);
    let end = || ended.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let reading = async {
        let read = cluster.get_from(1, &cold, 3, true).await;
        end();
        read
    };
    let writing = async {
        let written = cluster.put(1, &cold, "never").await;
        end();
        written
    };
    let others = async {
        cluster.until("the tier is asked", |_| first.gate.waiting() >= 2).await;
        let (mut rounds, mut during) = (0, 0);
        while ended.load(std::sync::atomic::Ordering::SeqCst) < 2 {
            cluster.put(1, &hot, &rounds.to_string()).await.unwrap();
            assert_eq!(shown(&cluster.get(1, &hot, 2).await.unwrap()), [rounds.to_string()]);
            sleep(Duration::from_millis(10)).await;
            rounds += 1;
            during += usize::from(ended.load(std::sync::atomic::Ordering::SeqCst) == 0);
        }
        assert!(during > 0, "nothing went on while the others waited");
        // The others answer for it, and take what it cannot look up.
        assert_eq!(shown(&cluster.get(1, &cold, 2).await.unwrap()), ["before"]);
        cluster.put(2, &new, "new").await.unwrap();
        let up = |node: &Node| node.peers.snapshot().iter().all(|(_, liveness)| liveness.is_up());
        assert!(cluster.nodes.values().all(up), "heartbeats go on");
    };
    let (read, written, ()) = tokio::join!(reading, writing, others);
    assert!(!first.gate.is_overdue(), "the node stood still");
    let refused = |failure: Failure| (failure.reason, failure.applied);
    assert_eq!(refused(read.unwrap_err()), (Reason::QuorumNotMet, Applied::No));
    assert_eq!(refused(written.unwrap_err()), (Reason::DeadlineExpired, Applied::No));

    first.gate.release();
    assert_eq!(shown(&cluster.get_from(1, &cold, 3, true).await.unwrap()), ["before"]);
    cluster.put(1, &cold, "after").await.unwrap();
    cluster.until_shown(&cold, "after").await;
    cluster.until_shown(&new, "new").await;
    cluster.converge().await;
}

/// Records that a link carries in three seconds, far longer than a message of the background may find it at
/// rest: they arrive all the same, as hints and in a rebuild.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_records_pass_over_a_slow_link() {
    let mut cluster = Cluster::start().await;
    let value = "v".repeat(400 << 10);
    cluster.cut(&[5]);
    let key = key_of(&cluster, "key", &[5]);
    cluster.put(1, &key, &value).await.unwrap();
    let hints = |c: &Cluster| c.nodes.values().map(|n| n.dynamo.hints_pending().len()).sum::<usize>();
    cluster.until("a hint is kept", |c| hints(c) > 0).await;
    cluster.rate.send_replace(150_000);
    cluster.cut(&[]);
    let took = cluster.converge().await;
    assert!(took > Duration::from_secs(2), "the link was not slow: {took:?}");

    cluster.wipe(NodeId(5)).await;
    let whole = |c: &Cluster| c.nodes[&NodeId(5)].dynamo.rebuilding_partitions() == 0;
    let took = cluster.until("the wiped node is whole", whole).await;
    assert!(took > Duration::from_secs(2), "the link was not slow: {took:?}");
    cluster.rate.send_replace(u64::MAX);
    assert_eq!(shown(&cluster.get(5, &key, 1).await.unwrap()), [value]);
}

impl Cluster {
    /// The catalogue without the namespace, as all nodes get it.
    fn delete_namespace(&self) {
        self.catalogue.send_modify(|catalogue| {
            let mut next = Catalogue::clone(catalogue);
            next.epoch = Epoch(next.epoch.0 + 1);
            next.next_namespace = self.namespace.id.0 + 1;
            next.namespaces.remove(&self.namespace.id);
            *catalogue = Arc::new(next);
        });
    }

    /// Rows of records, hints, conflicts and requests, on all nodes.
    fn rows(&self) -> usize {
        self.nodes.values().map(rows_of).sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_leaves_nothing_on_any_node_hints_included() {
    let mut cluster = Cluster::start().await;
    let keys: Vec<String> = (0..60).map(|n| format!("key-{n}")).collect();
    for result in join_all(keys.iter().map(|key| cluster.put(1, key, "before"))).await {
        result.unwrap();
    }
    // Hints on both sides, siblings when they are delivered.
    cluster.cut(&[4, 5]);
    for side in [1, 4] {
        for result in join_all(keys.iter().map(|key| cluster.put(side, key, "cut"))).await {
            result.unwrap();
        }
    }
    let hints = |c: &Cluster| c.nodes.values().any(|n| n.dynamo.hints_pending().values().sum::<u64>() > 0);
    assert!(hints(&cluster) && cluster.rows() > 200);
    cluster.delete_namespace();
    cluster.until("nothing is left", |c| c.rows() == 0).await;
    assert!(!hints(&cluster));
    assert!(cluster.nodes.values().all(|n| n.dynamo.keys_with_siblings() == 0));

    // Requests that were on their way, or come from a node whose catalogue is older.
    let refused = cluster.put(1, "key-1", "late").await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NamespaceUnknown, Applied::No), "{refused}");
    cluster.cut(&[]);
    cluster
        .until("all nodes are up", |c| {
            c.nodes.values().all(|n| n.peers.snapshot().iter().all(|(_, liveness)| liveness.is_up()))
        })
        .await;
    let owners = cluster.nodes[&NodeId(1)].dynamo.owners(&cluster.namespace, b"key-1").unwrap();
    let write = peer::ReplicaWrite {
        ring: owners.ring,
        partition: owners.partition,
        key: "key-1".into(),
        record: State::default().encode(),
        hint_for: 0,
        counted: false,
    };
    let to = NodeId(owners.primaries[0]);
    let from = cluster.nodes.keys().copied().find(|node| *node != to).unwrap();
    let about = Address { namespace: cluster.namespace.id, epoch: Epoch(0), ..Address::default() };
    let deadline = Instant::now() + Duration::from_secs(2);
    let body = request_frame::Body::ReplicaWrite(write);
    let refused = cluster.nodes[&from].peers.call(to, kv_peer::Lane::Bulk, about, body, deadline).await;
    match refused {
        Err(kv_peer::PeerError::Refused(failure)) => assert_eq!(failure.reason, Reason::NamespaceUnknown),
        other => panic!("{other:?}"),
    }

    // A node that begins anew pulls nothing of it.
    cluster.wipe(to).await;
    cluster.until("it serves again", |c| c.nodes[&to].dynamo.rebuilding_partitions() == 0).await;
    assert_eq!(cluster.rows(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_deleted_namespace_is_removed_after_a_start() {
    let mut cluster = Cluster::start().await;
    for key in 0..40 {
        cluster.put(1, &format!("key-{key}"), "v").await.unwrap();
    }
    let away = NodeId(2);
    let node = &cluster.nodes[&away];
    let disk = node.disk.clone();
    node.dynamo.shutdown();
    cluster.delete_namespace();
    let others = |c: &Cluster| c.rows() - rows_of(&c.nodes[&away]);
    cluster.until("nothing is left at the others", |c| others(c) == 0).await;
    assert!(rows_of(&cluster.nodes[&away]) > 0, "its background has ended");
    cluster.restart(away, disk).await;
    cluster.until("nothing is left", |c| c.rows() == 0).await;
}

/// A source that knows of the deletion, and has not removed what it has, gives it away with the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_source_still_has_of_a_deleted_namespace_does_not_come_back_with_a_pull() {
    let mut cluster = Cluster::start().await;
    let (pulls, source) = (NodeId(1), NodeId(2));
    let both = [pulls.0, source.0];
    let old = key_of(&cluster, "old", &both);
    cluster.put(1, &old, "old").await.unwrap();
    cluster.converge().await;
    // Its background ends, and it answers as before.
    cluster.nodes[&source].dynamo.shutdown();
    let gone = cluster.namespace.id;
    cluster.delete_namespace();
    let has = |c: &Cluster, node: NodeId| c.nodes[&node].dynamo.rows_of(gone).unwrap();
    let others =
        |c: &Cluster| c.nodes.keys().filter(|id| **id != source).map(|id| has(c, *id)).sum::<usize>();
    cluster.until("the others have removed it", |c| others(c) == 0).await;

    cluster.namespace.id = NamespaceId(gone.0 + 1);
    cluster.catalogue.send_modify(|catalogue| {
        let mut next = Catalogue::clone(catalogue);
        next.epoch = Epoch(next.epoch.0 + 1);
        next.next_namespace = cluster.namespace.id.0 + 1;
        next.namespaces.insert(cluster.namespace.id, cluster.namespace.clone());
        *catalogue = Arc::new(next);
    });
    let new = key_of(&cluster, "new", &both);
    cluster.put(1, &new, "new").await.unwrap();
    cluster.wipe(pulls).await;
    let whole = |c: &Cluster| c.nodes[&pulls].dynamo.rebuilding_partitions() == 0;
    cluster.until("it has pulled and serves again", whole).await;
    assert_eq!(has(&cluster, source), 1, "it was there to be pulled");
    assert_eq!(has(&cluster, pulls), 0);
    assert_eq!(shown(&cluster.get_from(1, &new, 1, true).await.unwrap()), ["new"]);
}

fn rows_of(node: &Node) -> usize {
    let of_table =
        |table: u16| node.storage.scan(kv_storage::TableId::new(table), &[], None, usize::MAX).unwrap().len();
    [48, 50, 52, 53, 54].map(of_table).iter().sum()
}

/// Keys that the nodes 1 and 5 keep, in the order of their ring partitions.
fn keys_of_one_and_five(cluster: &Cluster, many: usize) -> Vec<String> {
    let mut keys: Vec<String> = (0..many).map(|n| key_of(cluster, &format!("key-{n}"), &[1, 5])).collect();
    let dynamo = &cluster.nodes[&NodeId(1)].dynamo;
    keys.sort_by_key(|key| dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap().partition);
    keys
}

/// What a node takes of a record at once is its own affair: records that are too large for it hold up nothing
/// but themselves, neither as hints nor in a rebuild. There are more of them than are under way at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_a_node_cannot_take_hold_up_no_others() {
    const LARGE: u64 = 70;
    let mut cluster = Cluster::start().await;
    let five = NodeId(5);
    let keys = keys_of_one_and_five(&cluster, LARGE as usize + 20);
    let (large, small) = keys.split_at(LARGE as usize);
    cluster.cut(&[5]);
    for key in large {
        cluster.put(1, key, &"v".repeat(40 << 10)).await.unwrap();
    }
    for key in small {
        cluster.put(1, key, "small").await.unwrap();
    }
    let held = |c: &Cluster| {
        let of_five = |n: &Node| n.dynamo.hints_pending().get(&five).copied().unwrap_or(0);
        c.nodes.values().map(of_five).sum::<u64>()
    };
    cluster.until("all of them are noted", |c| held(c) == LARGE + 20).await;
    cluster.options.max_record_bytes = 20 << 10;
    let disk = cluster.nodes[&five].disk.clone();
    cluster.restart(five, disk).await;
    cluster.cut(&[]);
    cluster.until("the small ones arrive", |c| held(c) == LARGE).await;
    let set_aside = |c: &Cluster| c.nodes[&NodeId(1)].dynamo.hints_set_aside().get(&five).copied();
    cluster.until("the large ones are set aside", |c| set_aside(c) == Some(LARGE)).await;
    // Nor do they hold up what comes later.
    cluster.cut(&[5]);
    cluster.put(1, &small[0], "later").await.unwrap();
    cluster.until("it is noted", |c| held(c) == LARGE + 1).await;
    cluster.cut(&[]);
    cluster.until("it arrives", |c| held(c) == LARGE).await;

    // A node that begins anew says what it has, and leaves the large ones to others.
    cluster.wipe(five).await;
    let whole = |c: &Cluster| c.nodes[&five].dynamo.rebuilding_partitions() == 0;
    cluster.until("the wiped node serves", whole).await;
    for key in small {
        let expected = if key == &small[0] { "later" } else { "small" };
        assert_eq!(shown(&cluster.get_from(5, key, 1, true).await.unwrap()), [expected]);
    }
    for key in large {
        let read = cluster.get_from(5, key, 1, true).await.unwrap();
        assert_eq!(shown(&read).len(), 1, "it does not know that it is absent");
    }
    // With room for them the node gets them as it gets everything.
    cluster.options.max_record_bytes = 1 << 20;
    let disk = cluster.nodes[&five].disk.clone();
    cluster.restart(five, disk).await;
    cluster.converge().await;
    cluster.until("it serves again", whole).await;
    assert_eq!(set_aside(&cluster), None);
}

impl Cluster {
    fn owners(&self, key: &str) -> (Vec<u64>, Vec<u64>) {
        let of = &self.nodes[&NodeId(1)].dynamo;
        let owners = of.owners(&self.namespace, key.as_bytes()).unwrap();
        (owners.primaries, owners.fallbacks)
    }

    /// A delete of what is observed.
    async fn delete_observed(
        &self,
        node: u64,
        key: &str,
        attempt: u32,
    ) -> Result<v1::DeleteResponse, Failure> {
        let context = v1::write_context::Context::Observed(true);
        let request = v1::DeleteRequest {
            namespace: "cart".into(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            mutation: Some(v1::Mutation { attempt, ..self.mutation() }),
            context: Some(v1::WriteContext { context: Some(context) }),
            ..Default::default()
        };
        let deadline = Instant::now() + Duration::from_secs(1);
        let (_, call) = request.read()?;
        let served = self.nodes[&NodeId(node)].dynamo.serve(&self.namespace, call, deadline, Hop::Client);
        timeout(Duration::from_millis(1_100), served).await.unwrap()?.try_into()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_is_not_acknowledged_by_those_who_do_not_know_what_it_deletes() {
    let cluster = Cluster::start().await;
    let keys = |name: &str, cut_off: &[u64]| {
        let all_here = |key: &String| cluster.owners(key).0.iter().all(|node| !cut_off.contains(node));
        (0..).map(|n| format!("{name}-{n}")).find(all_here).unwrap()
    };
    // Keys whose primaries are all on the other side of the cut.
    let (deleted, put) = (keys("deleted", &[4, 5]), keys("put", &[4, 5]));
    for key in [&deleted, &put] {
        cluster.put(1, key, "before").await.unwrap();
    }
    cluster.converge().await;
    cluster.cut(&[4, 5]);
    for node in [4, 5] {
        let refused = cluster.delete_observed(node, &deleted, 1).await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::QuorumNotMet, Applied::No), "{refused}");
    }
    // A put is taken: this side goes on, and drops nothing that it has not seen.
    cluster.put(4, &put, "meanwhile").await.unwrap();
    // What this side has it deletes.
    assert_eq!(shown(&cluster.get(5, &put, 2).await.unwrap()), ["meanwhile"]);
    cluster.delete_observed(5, &put, 1).await.unwrap();
    assert!(shown(&cluster.get(4, &put, 2).await.unwrap()).is_empty());
    cluster.cut(&[]);
    cluster.converge().await;
    assert_eq!(shown(&cluster.get(4, &deleted, 3).await.unwrap()), ["before"]);
    assert_eq!(shown(&cluster.get(4, &put, 3).await.unwrap()), ["before"]);
    for node in 1..=NODES {
        let key = format!("key-{node}");
        cluster.put(1, &key, "before").await.unwrap();
        cluster.converge().await;
        // A resend without a trace, wherever it arrives; then a first attempt.
        let open = cluster.delete_observed(node, &key, 2).await.unwrap_err();
        assert_eq!(open.applied, Applied::Unknown, "at n{node}: {open}");
        assert_eq!(shown(&cluster.get(node, &key, 3).await.unwrap()), ["before"]);
        cluster.delete_observed(node, &key, 1).await.unwrap();
        assert!(shown(&cluster.get(node, &key, 3).await.unwrap()).is_empty(), "at n{node}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_names_writes_and_has_no_record_is_refused() {
    let cluster = Cluster::start().await;
    cluster.put(1, "k", "v").await.unwrap();
    let owners = cluster.nodes[&NodeId(1)].dynamo.owners(&cluster.namespace, b"k").unwrap();
    let request = kv_types::RequestId { client_id: ClientId(9), seq: 1_000 };
    let write = kv_types::causal::Write { issued_at_ms: Env::real().clock.wall_ms(), request, body: 1 };
    let dot = kv_types::causal::Dot { incarnation: kv_types::Incarnation(7), counter: 1 };
    let bare = State { writes: BTreeMap::from([(dot, write)]), ..State::default() };
    for hint_for in [0, owners.primaries[1]] {
        let body = request_frame::Body::ReplicaWrite(peer::ReplicaWrite {
            ring: owners.ring,
            partition: owners.partition,
            key: "k".into(),
            record: bare.encode(),
            hint_for,
            counted: false,
        });
        let refused = cluster.nodes[&NodeId(owners.primaries[0])].dynamo.handle(PeerRequest {
            from: NodeId(owners.primaries[1]),
            about: Address { namespace: cluster.namespace.id, epoch: Epoch(0), ..Address::default() },
            deadline: Instant::now() + Duration::from_secs(1),
            body,
        });
        let refused = refused.await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::InvalidRequest, Applied::No));
    }
}

/// n5 lacks a write of this key, and no node has a note or a hint of it: it was lost with the memory of its
/// coordinator.
async fn lose_a_note(cluster: &mut Cluster) -> String {
    const HINTS: kv_storage::TableId = kv_storage::TableId::new(52);
    let (one, five) = (NodeId(1), NodeId(5));
    let lost = key_of(cluster, "lost", &[1, 5]);
    cluster.cut(&[5]);
    // What is on its way when the cut begins arrives when it ends.
    let away = |c: &Cluster| c.nodes.iter().all(|(id, n)| *id == five || !n.peers.liveness(five).is_up());
    cluster.until("the others know that it is away", away).await;
    cluster.put(1, &lost, "lost").await.unwrap();
    let held = |c: &Cluster| c.nodes[&one].dynamo.hints_pending().get(&five).copied().unwrap_or(0);
    cluster.until("it is noted", |c| held(c) == 1).await;
    let storage = cluster.nodes[&one].storage.clone();
    let mut batch = kv_storage::Batch::new();
    for (key, _) in storage.scan(HINTS, &[], None, usize::MAX).unwrap() {
        batch.push_delete(HINTS, key);
    }
    let forgotten = storage.commit(batch).unwrap();
    storage.durable(forgotten).await.unwrap();
    let disk = cluster.nodes[&one].disk.clone();
    cluster.restart(one, disk).await;
    cluster.cut(&[]);
    let up = |c: &Cluster| c.nodes[&one].peers.snapshot().iter().all(|(_, liveness)| liveness.is_up());
    cluster.until("all nodes are up", up).await;
    assert!(shown(&cluster.get_from(5, &lost, 1, true).await.unwrap()).is_empty(), "nothing tells of it");
    lost
}

/// n5 shows a key that was not sent to it.
async fn comes_by_itself(cluster: &Cluster, key: &str) {
    let begun = Instant::now();
    while shown(&cluster.get_from(5, key, 1, true).await.unwrap()) != ["lost"] {
        assert!(begun.elapsed() < Duration::from_secs(90), "never");
        sleep(Duration::from_millis(50)).await;
    }
    // Nothing is ahead of the clock any more, so what is deleted leaves no row.
    let ahead = kv_storage::TableId::new(54);
    let rows = |c: &Cluster| c.nodes[&NodeId(5)].storage.scan(ahead, &[], None, usize::MAX).unwrap().len();
    cluster.until("records are stripped", |c| rows(c) == 0).await;
}

/// Of a key that is not read: the next write of its ring partition shows that something is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_hint_brings_is_pulled_once_it_is_missed() {
    let mut cluster = Cluster::start().await;
    let lost = lose_a_note(&mut cluster).await;
    let partition = |key: &str| {
        let of = &cluster.nodes[&NodeId(1)].dynamo;
        of.owners(&cluster.namespace, key.as_bytes()).unwrap().partition
    };
    let other = (0..).map(|n| format!("other-{n}")).find(|key| partition(key) == partition(&lost)).unwrap();
    cluster.put(1, &other, "other").await.unwrap();
    comes_by_itself(&cluster, &lost).await;
}

/// And without any read or write: the nodes compare their clocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nothing_tells_of_is_found_by_comparing_clocks() {
    let mut cluster = Cluster::start().await;
    let lost = lose_a_note(&mut cluster).await;
    cluster.catalogue.send_modify(|catalogue| Arc::make_mut(catalogue).level = FeatureLevel::KEYED);
    comes_by_itself(&cluster, &lost).await;
    // More at once than one question may have is refused by name.
    let marks = vec![peer::ClockMark::default(); kv_dynamo::limits::COMPARED + 1];
    let ask = |marks| PeerRequest {
        from: NodeId(1),
        about: Address::default(),
        deadline: Instant::now() + Duration::from_secs(1),
        body: request_frame::Body::CompareClocks(peer::CompareClocks { marks }),
    };
    let five = &cluster.nodes[&NodeId(5)].dynamo;
    let refused = five.handle(ask(marks.clone())).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::InvalidRequest, Applied::No));
    assert!(five.handle(ask(marks[1..].to_vec())).await.is_ok());
}

/// The disk of one source has failed, or a row of it cannot be read: what the others have comes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_whose_own_rows_cannot_be_read_ends_the_rebuild_from_no_other() {
    const REQUESTS: kv_storage::TableId = kv_storage::TableId::new(50);
    let mut cluster = Cluster::start().await;
    let key = key_of(&cluster, "key", &[1, 5]);
    cluster.put(1, &key, "kept").await.unwrap();
    cluster.converge().await;
    let owners = cluster.nodes[&NodeId(1)].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
    let of_others: Vec<u64> = owners.primaries.iter().copied().filter(|node| *node != 5).collect();
    // The one that is asked first.
    let broken = &cluster.nodes[&NodeId(of_others[0])].storage.clone();
    let row = [&owners.ring.to_be_bytes()[..], &owners.partition.to_be_bytes(), &[0]].concat();
    let damaged = broken.commit(kv_storage::Batch::new().put(REQUESTS, &row, [0])).unwrap();
    broken.durable(damaged).await.unwrap();

    let five = NodeId(5);
    cluster.wipe(five).await;
    let rows = |c: &Cluster| c.nodes[&five].dynamo.rows_of(c.namespace.id).unwrap();
    cluster.until("another source was asked", |c| rows(c) > 0).await;
    assert!(cluster.nodes[&five].dynamo.rebuilding_partitions() > 0, "two of them are needed");
    // The same later.
    let mended = broken.commit(kv_storage::Batch::new().delete(REQUESTS, &row)).unwrap();
    broken.durable(mended).await.unwrap();
    cluster.until("it serves again", |c| c.nodes[&five].dynamo.rebuilding_partitions() == 0).await;
    assert_eq!(shown(&cluster.get_from(5, &key, 1, true).await.unwrap()), ["kept"]);
}
