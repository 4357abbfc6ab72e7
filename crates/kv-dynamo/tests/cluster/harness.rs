//! The cluster of these tests, and the network that can be cut.

use super::*;

pub(crate) const CLUSTER: ClusterId = ClusterId(77);
pub(crate) const NODES: u64 = 5;

/// On which side of the cut each node is; bytes pass only within a side.
pub(crate) type Sides = BTreeMap<NodeId, u8>;

pub(crate) struct CutNetwork {
    me: NodeId,
    peers: Arc<BTreeMap<String, NodeId>>,
    sides: watch::Receiver<Sides>,
    /// Bytes a second of each connection and direction.
    rate: watch::Receiver<u64>,
}

pub(crate) async fn carry(bytes: usize, rate: &watch::Receiver<u64>) {
    let rate = *rate.borrow();
    if rate < u64::MAX {
        sleep(Duration::from_micros(bytes as u64 * 1_000_000 / rate)).await;
    }
}

pub(crate) fn open(sides: &Sides, a: NodeId, b: NodeId) -> bool {
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

/// How often a node was asked for pages of ring partitions, and by its dot log for single writes.
#[derive(Default)]
pub(crate) struct Asked {
    pub(crate) whole: AtomicU64,
    pub(crate) by_log: AtomicU64,
}

impl Asked {
    fn count(&self, body: &request_frame::Body) {
        match body {
            request_frame::Body::PullPartition(pull) if pull.ring > 0 => {
                self.whole.fetch_add(1, Ordering::Relaxed);
            }
            request_frame::Body::PullMissing(_) => drop(self.by_log.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        }
    }
}

/// Routes peers' requests as kv-server does, for one namespace.
pub(crate) struct Handler(Available, Namespace, Arc<Asked>);

impl PeerHandler for Handler {
    fn handle(&self, request: PeerRequest) -> BoxFuture<'static, Result<response_frame::Body, Failure>> {
        use kv_proto::peer::forward::Request as Forwarded;
        let (available, namespace, deadline) = (self.0.clone(), self.1.clone(), request.deadline);
        self.2.count(&request.body);
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

pub(crate) struct Node {
    pub(crate) dynamo: Available,
    pub(crate) disk: MemDisk,
    pub(crate) storage: Storage,
    /// Before the reads of its tier.
    pub(crate) gate: Gate,
    pub(crate) peers: Peers,
    pub(crate) asked: Arc<Asked>,
    pub(crate) server: tokio::task::JoinHandle<()>,
}

pub(crate) struct Cluster {
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) addresses: Arc<BTreeMap<String, NodeId>>,
    pub(crate) sides: watch::Sender<Sides>,
    pub(crate) rate: watch::Sender<u64>,
    pub(crate) catalogue: watch::Sender<Arc<Catalogue>>,
    pub(crate) namespace: Namespace,
    pub(crate) options: StorageOptions,
    pub(crate) log_bytes: u64,
    pub(crate) seq: std::sync::atomic::AtomicU64,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(StorageOptions::memory("/data")).await
    }

    pub(crate) async fn start_with(options: StorageOptions) -> Self {
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
            log_bytes: kv_dynamo::limits::LOG_BYTES,
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

    pub(crate) async fn start_node(&mut self, id: NodeId, listener: Listener, disk: MemDisk) {
        let (sides, rate) = (self.sides.subscribe(), self.rate.subscribe());
        let network = CutNetwork { me: id, peers: Arc::clone(&self.addresses), sides, rate };
        let env = Env { network: Arc::new(network), ..Env::real() };
        let peers = Peers::new(PeerConfig::new(CLUSTER, id), env.clone());
        let gate = Gate::default();
        let tiers = GatedTiers(MemTiers::new(), gate.clone());
        let (storage, recovery) =
            Storage::open(self.options.clone(), Arc::new(disk.clone()), Arc::new(tiers)).unwrap();
        let log_bytes = self.log_bytes;
        let config = AvailableConfig { log_bytes, ..AvailableConfig::new(id, recovery.tier_lost) };
        let catalogue = self.catalogue.subscribe();
        let dynamo = Available::start(config, storage.clone(), peers.clone(), env, catalogue).await.unwrap();
        let asked = Arc::new(Asked::default());
        let service = kv_peer::service(
            &peers,
            Arc::new(Handler(dynamo.clone(), self.namespace.clone(), Arc::clone(&asked))),
        );
        let server = tokio::spawn(async move {
            let _ = kv_peer::server_builder().add_service(service).serve_with_incoming(listener).await;
        });
        peers.set_members(self.catalogue.borrow().members.values().cloned().collect());
        self.nodes.insert(id, Node { dynamo, disk, storage, gate, peers, asked, server });
    }

    /// The node comes back with an empty disk.
    pub(crate) async fn wipe(&mut self, id: NodeId) {
        self.restart(id, MemDisk::new(id.0)).await;
    }

    /// The node's process ends, and another one begins on this disk.
    pub(crate) async fn restart(&mut self, id: NodeId, disk: MemDisk) {
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

    pub(crate) fn cut(&self, minority: &[u64]) {
        self.sides.send_replace(minority.iter().map(|id| (NodeId(*id), 1)).collect());
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
            sleep(Duration::from_millis(10)).await;
        }
        begun.elapsed()
    }

    pub(crate) fn mutation(&self) -> v1::Mutation {
        let seq = 1 + self.seq.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        v1::Mutation {
            client_id: client_id_bytes(ClientId(9)),
            seq,
            issued_at_ms: Env::real().clock.wall_ms(),
            lowest_unacked: 0,
            attempt: 1,
        }
    }

    pub(crate) fn request(
        &self,
        key: &str,
        value: &str,
        context: v1::write_context::Context,
    ) -> v1::PutRequest {
        v1::PutRequest {
            namespace: "cart".into(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            mutation: Some(self.mutation()),
            context: Some(v1::WriteContext { context: Some(context) }),
            ..Default::default()
        }
    }

    pub(crate) async fn send(&self, node: u64, request: v1::PutRequest) -> Result<v1::PutResponse, Failure> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let dynamo = &self.nodes[&NodeId(node)].dynamo;
        let (_, call) = request.read()?;
        let served = dynamo.serve(&self.namespace, call, deadline, Hop::Client);
        let served = timeout(Duration::from_millis(1_100), served).await;
        served.expect("every wait ends by the deadline")?.try_into()
    }

    pub(crate) async fn put(&self, node: u64, key: &str, value: &str) -> Result<v1::PutResponse, Failure> {
        self.send(node, self.request(key, value, v1::write_context::Context::Observed(true))).await
    }

    /// Deletes what a read has seen.
    pub(crate) async fn delete(
        &self,
        node: u64,
        key: &str,
        seen: Bytes,
    ) -> Result<v1::DeleteResponse, Failure> {
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

    pub(crate) async fn get(&self, node: u64, key: &str, replicas: u32) -> Result<v1::GetResponse, Failure> {
        self.get_from(node, key, replicas, false).await
    }

    /// `strict`: from primaries alone.
    pub(crate) async fn get_from(
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

    pub(crate) async fn until_shown(&self, key: &str, value: &str) {
        let begun = Instant::now();
        while !self.get(1, key, 3).await.is_ok_and(|response| shown(&response) == [value]) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{key} never became {value}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Until all replicas of every ring partition have the same digest and no hint is left.
    pub(crate) async fn converge(&self) -> Duration {
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

pub(crate) fn available(receipt: Option<&v1::Receipt>) -> v1::AvailableEvidence {
    match receipt.and_then(|receipt| receipt.evidence.clone()) {
        Some(v1::receipt::Evidence::Available(evidence)) => evidence,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn shown(response: &v1::GetResponse) -> Vec<String> {
    let mut values: Vec<String> =
        response.siblings.iter().map(|s| String::from_utf8_lossy(&s.value).into_owned()).collect();
    values.sort();
    values
}

/// A key that all of these nodes keep.
pub(crate) fn key_of(cluster: &Cluster, prefix: &str, nodes: &[u64]) -> String {
    let keeps = |key: &String| {
        let owners = cluster.nodes[&NodeId(1)].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
        nodes.iter().all(|node| owners.primaries.contains(node))
    };
    (0..).map(|n| format!("{prefix}-{n}")).find(keeps).unwrap()
}

// One thread for everything, as the runtime of a node has.

pub(crate) fn rows_of(node: &Node) -> usize {
    let of_table =
        |table: u16| node.storage.scan(kv_storage::TableId::new(table), &[], None, usize::MAX).unwrap().len();
    [48, 50, 52, 53, 54].map(of_table).iter().sum()
}
