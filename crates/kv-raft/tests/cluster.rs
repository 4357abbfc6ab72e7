//! Three nodes in one process, over real loopback connections and real data directories: what a client is
//! promised holds through elections, restarts, cuts and snapshots. Nothing sleeps in place of a condition;
//! every wait has an end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kv_env::Env;
use kv_peer::{Address, Lane, PeerConfig, PeerHandler, PeerRequest, Peers};
use kv_proto::peer::raft_snapshot::Step;
use kv_proto::peer::raft_snapshot_reply::Result as SnapshotReply;
use kv_proto::peer::request_frame::Body as Request;
use kv_proto::peer::response_frame::Body as Response;
use kv_proto::{admin, client_id_bytes, peer, v1};
use kv_raft::{Hop, RaftConfig, Strong};
use kv_storage::tier::TierKind;
use kv_storage::{Storage, StorageOptions};
use kv_types::catalogue::{FeatureLevel, Member};
use kv_types::{Applied, ClientId, ClusterId, Failure, GroupId, Namespace, NodeId, Reason};
use tokio::time::Instant;

const CLUSTER: ClusterId = ClusterId(77);
const PATIENCE: Duration = Duration::from_secs(20);

/// What a node takes of the first data group's messages.
#[derive(Debug, Default)]
struct Valve {
    /// Takes no appends.
    deaf: bool,
    /// Takes no entries after this one.
    up_to: Option<u64>,
    /// Does not say what it has.
    mute: bool,
    /// Offsets of the pieces of snapshots that came.
    pieces: Vec<u64>,
    /// So many pieces are taken; the next ones are not answered well.
    pieces_taken: Option<usize>,
    /// Of so many pieces that come next, a bit flips on the way.
    flips: usize,
}

impl Valve {
    /// Narrows a request to what is taken of it; tells the last entry that is, if not all are.
    fn narrow(&mut self, request: &mut PeerRequest) -> Result<Option<peer::LogId>, Failure> {
        let shut = Err(Failure::new(Reason::NotReady, "the test does not let it through"));
        match &mut request.body {
            _ if request.about.group != GroupId::FIRST_DATA => Ok(None),
            Request::RaftSurvey(_) if self.mute => shut,
            Request::RaftSnapshot(peer::RaftSnapshot { step: Some(Step::Chunk(chunk)), .. }) => {
                if self.pieces_taken.is_some_and(|taken| self.pieces.len() >= taken) {
                    return shut;
                }
                self.pieces.push(chunk.offset);
                if self.flips > 0 {
                    self.flips -= 1;
                    let mut data = chunk.data.to_vec();
                    data[0] ^= 1;
                    chunk.data = data.into();
                }
                Ok(None)
            }
            Request::RaftAppend(_) if self.deaf => shut,
            Request::RaftAppend(append) => {
                let index = |entry: &peer::LogEntry| entry.id.unwrap().index;
                let sent = append.entries.len();
                append.entries.retain(|entry| self.up_to.is_none_or(|up_to| index(entry) <= up_to));
                match append.entries.last() {
                    _ if sent == append.entries.len() => Ok(None),
                    Some(last) => Ok(last.id),
                    None => shut,
                }
            }
            _ => Ok(None),
        }
    }
}

/// Routes peers' requests as kv-server does.
#[derive(Default)]
struct Router(OnceLock<Strong>, Arc<Mutex<Valve>>);

impl PeerHandler for Router {
    fn handle(&self, request: PeerRequest) -> BoxFuture<'static, Result<Response, Failure>> {
        let Some(strong) = self.0.get().cloned() else {
            return async { Err(Failure::new(Reason::NotReady, "starting")) }.boxed();
        };
        match request.body {
            Request::Forward(peer::Forward { request: Some(forwarded) }) => {
                forward(strong, forwarded, request.deadline).boxed()
            }
            body => {
                let mut request = PeerRequest { body, ..request };
                let narrowed = self.1.lock().unwrap().narrow(&mut request);
                async move {
                    use peer::raft_append_reply::Result as Taken;
                    let partial =
                        narrowed?.map(|last| peer::RaftAppendReply { result: Some(Taken::Partial(last)) });
                    match (strong.handle(request).await?, partial) {
                        (
                            Response::RaftAppend(peer::RaftAppendReply {
                                result: Some(Taken::Success(true)),
                            }),
                            Some(partial),
                        ) => Ok(Response::RaftAppend(partial)),
                        (response, _) => Ok(response),
                    }
                }
                .boxed()
            }
        }
    }
}

async fn forward(
    strong: Strong,
    request: peer::forward::Request,
    deadline: Instant,
) -> Result<Response, Failure> {
    use peer::forward::Request as R;
    use peer::forward_reply::Response as A;
    let namespace = |name: &str| {
        let catalogue = strong.catalogue().borrow().clone();
        catalogue.namespace(name).cloned().ok_or_else(|| Failure::new(Reason::NamespaceUnknown, name))
    };
    let hop = Hop::Forwarded;
    let response = match request {
        R::Get(r) => A::Get(strong.get(&namespace(&r.namespace)?, r, deadline, hop).await?),
        R::Put(r) => A::Put(strong.put(&namespace(&r.namespace)?, r, deadline, hop).await?),
        R::Delete(r) => A::Delete(strong.delete(&namespace(&r.namespace)?, r, deadline, hop).await?),
        R::CompareAndSet(r) => {
            A::CompareAndSet(strong.compare_and_set(&namespace(&r.namespace)?, r, deadline, hop).await?)
        }
        R::CreateNamespace(r) => A::CreateNamespace(strong.create_namespace(r, deadline, hop).await?),
        R::TransferLeader(r) => A::TransferLeader(strong.transfer_leader(r, deadline, hop).await?),
    };
    Ok(Response::Forward(peer::ForwardReply { response: Some(response) }))
}

struct Node {
    strong: Strong,
    peers: Peers,
    storage: Storage,
    server: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start(
        member: &Member,
        members: &[Member],
        dir: &Path,
        valve: Arc<Mutex<Valve>>,
        tune: impl Fn(&mut RaftConfig),
    ) -> Self {
        let env = Env::real();
        let options =
            StorageOptions { segment_bytes: 4 << 20, max_record_bytes: 1 << 20, ..StorageOptions::new(dir) };
        let (storage, _) = tokio::task::spawn_blocking(|| Storage::open_dir(options, TierKind::default()))
            .await
            .unwrap()
            .unwrap();
        let peers = Peers::new(PeerConfig::new(CLUSTER, member.id), env.clone());
        let router = Arc::new(Router(OnceLock::new(), valve));
        // The port was free a moment ago, or belonged to this node before it stopped.
        let listener =
            within("listen", || async { env.network.listen(&member.peer_address).await.ok() }).await;
        let service = kv_peer::service(&peers, router.clone());
        let server = tokio::spawn(async move {
            kv_peer::server_builder().add_service(service).serve_with_incoming(listener).await.unwrap();
        });
        let mut config = RaftConfig::new(CLUSTER, member.id, members.to_vec());
        tune(&mut config);
        let strong = Strong::start(config, storage.clone(), peers.clone(), env).await.unwrap();
        let _ = router.0.set(strong.clone());
        Self { strong, peers, storage, server }
    }

    /// As a process that is killed: no goodbye, and what was not synced is gone.
    async fn kill(self) {
        self.server.abort();
        self.peers.shutdown();
        self.storage.halt();
        self.strong.shutdown().await;
    }

    async fn stop(self) {
        self.strong.shutdown().await;
        self.peers.shutdown();
        self.server.abort();
        self.storage.shutdown().await;
    }
}

struct Cluster {
    members: Vec<Member>,
    dirs: Vec<PathBuf>,
    nodes: BTreeMap<u64, Node>,
    valves: BTreeMap<u64, Arc<Mutex<Valve>>>,
    tune: fn(&mut RaftConfig),
    _root: tempfile::TempDir,
}

impl Cluster {
    async fn start(tune: fn(&mut RaftConfig)) -> Self {
        Self::start_with(3, tune).await
    }

    async fn start_with(nodes: u64, tune: fn(&mut RaftConfig)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let members: Vec<Member> = (1..=nodes).map(member).collect();
        let dirs = (1..=nodes).map(|id| root.path().join(format!("n{id}"))).collect();
        let valves = (1..=nodes).map(|id| (id, Arc::default())).collect();
        let mut cluster = Self { members, dirs, nodes: BTreeMap::new(), valves, tune, _root: root };
        for id in 1..=nodes {
            cluster.bring_up(id).await;
        }
        let catalogued = |node: &Node| !node.strong.catalogue().borrow().members.is_empty();
        within("a catalogue everywhere", || async { cluster.nodes.values().all(catalogued).then_some(()) })
            .await;
        cluster
    }

    async fn bring_up(&mut self, id: u64) {
        let at = usize::try_from(id).unwrap() - 1;
        let valve = self.valves[&id].clone();
        let node = Node::start(&self.members[at], &self.members, &self.dirs[at], valve, self.tune).await;
        self.nodes.insert(id, node);
    }

    async fn kill(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().kill().await;
    }

    /// Kills a node and takes its disk away.
    async fn wipe(&mut self, id: u64) {
        self.kill(id).await;
        std::fs::remove_dir_all(&self.dirs[usize::try_from(id).unwrap() - 1]).unwrap();
    }

    fn valve(&self, id: u64) -> MutexGuard<'_, Valve> {
        self.valves[&id].lock().unwrap()
    }

    /// Where a node stands in the first data group.
    fn data(&self, id: u64) -> admin::GroupStatus {
        self.strong(id).status().into_iter().find(|group| group.group == GroupId::FIRST_DATA.0).unwrap()
    }

    /// Whether a node is still joining a group.
    fn joins(&self, id: u64, group: GroupId) -> bool {
        let note = [&b"raft/joining/"[..], &group.0.to_be_bytes()].concat();
        self.nodes[&id].storage.small_get(&note).is_some()
    }

    fn strong(&self, id: u64) -> &Strong {
        &self.nodes[&id].strong
    }

    /// The leader that a quorum agrees on.
    async fn leader(&self, group: GroupId) -> u64 {
        within("a leader", || async {
            let claims = |node: &Node| {
                let status = node.strong.status().into_iter().find(|status| status.group == group.0).unwrap();
                (status.role == "leader", status.term, status.leader)
            };
            let leads = self.nodes.iter().find(|(_, node)| claims(node).0)?;
            let (_, term, _) = claims(leads.1);
            let followers =
                self.nodes.values().filter(|node| claims(node).1 == term && claims(node).2 == *leads.0);
            (followers.count() >= 2).then_some(*leads.0)
        })
        .await
    }

    async fn namespace(&self, name: &str, client: &Client) -> Namespace {
        let request = admin::CreateNamespaceRequest {
            name: name.into(),
            mode: admin::Mode::Strong.into(),
            mutation: Some(client.mutation()),
            ..Default::default()
        };
        let via = *self.nodes.keys().next().unwrap();
        within("a namespace", || async {
            self.strong(via).create_namespace(request.clone(), soon(), Hop::Client).await.ok()
        })
        .await;
        within("the namespace everywhere", || async {
            let known = |node: &Node| node.strong.catalogue().borrow().namespace(name).cloned();
            self.nodes.values().map(known).collect::<Option<Vec<_>>>()?.pop()
        })
        .await
    }

    async fn stop(self) {
        for node in self.nodes.into_values() {
            node.stop().await;
        }
    }
}

fn member(id: u64) -> Member {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    Member {
        id: NodeId(id),
        client_address: format!("client-of-n{id}"),
        peer_address: format!("127.0.0.1:{port}"),
        zone: String::new(),
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(3)
}

/// Tries until it is so.
async fn within<T, F: Future<Output = Option<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    loop {
        pause.tick().await;
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
    }
}

/// A session.
struct Client {
    id: u128,
    next: AtomicU64,
}

impl Client {
    fn new(id: u128) -> Self {
        Self { id, next: AtomicU64::new(1) }
    }

    fn mutation(&self) -> v1::Mutation {
        self.mutation_of(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn mutation_of(&self, seq: u64) -> v1::Mutation {
        let now = Env::real().clock.wall_ms();
        v1::Mutation {
            client_id: client_id_bytes(ClientId(self.id)),
            seq,
            issued_at_ms: now,
            lowest_unacked: seq,
            attempt: 1,
        }
    }

    fn put(&self, key: &str, value: &str) -> v1::PutRequest {
        v1::PutRequest {
            namespace: "bank".into(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            mutation: Some(self.mutation()),
            ..Default::default()
        }
    }
}

fn get(key: &str) -> v1::GetRequest {
    v1::GetRequest {
        namespace: "bank".into(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        ..Default::default()
    }
}

/// Sends the same request until it is answered, as a client does.
async fn put(node: &Strong, bank: &Namespace, request: v1::PutRequest) -> v1::PutResponse {
    within("a put", || async { node.put(bank, request.clone(), soon(), Hop::Client).await.ok() }).await
}

async fn value(node: &Strong, bank: &Namespace, key: &str) -> (Bytes, u64) {
    let read = within("a get", || async { node.get(bank, get(key), soon(), Hop::Client).await.ok() }).await;
    (read.value, read.revision)
}

fn evidence(receipt: Option<&v1::Receipt>) -> v1::StrongEvidence {
    match receipt.and_then(|receipt| receipt.evidence.as_ref()) {
        Some(v1::receipt::Evidence::Strong(strong)) => *strong,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_serves_and_says_how() {
    let cluster = Cluster::start(|_| {}).await;
    let client = Client::new(1);
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();

    let written = put(cluster.strong(leader), &bank, client.put("a", "1")).await;
    assert_eq!(written.revision, 1);
    let proof = evidence(written.receipt.as_ref());
    assert_eq!((proof.group, proof.namespace_revision, proof.path()), (1, 1, v1::ReadPath::Log));

    // A follower passes the request on, once, and says so.
    let request = client.put("a", "2");
    let through = put(cluster.strong(follower), &bank, request.clone()).await;
    let receipt = through.receipt.as_ref().unwrap();
    assert_eq!((through.revision, receipt.served_by, receipt.deduplicated), (2, leader, false));
    assert_eq!(receipt.degraded, vec![i32::from(v1::Degradation::Forwarded)]);
    let refused =
        cluster.strong(follower).put(&bank, request.clone(), soon(), Hop::Forwarded).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NotLeader, Applied::No));
    assert_eq!(refused.detail("leader"), Some(format!("n{leader}").as_str()));
    assert_eq!(refused.detail("leader_address"), Some(format!("client-of-n{leader}").as_str()));

    // Resent, anywhere: the first result.
    for id in 1..=3 {
        let again = put(cluster.strong(id), &bank, request.clone()).await;
        assert!(again.receipt.as_ref().unwrap().deduplicated);
        assert_eq!(evidence(again.receipt.as_ref()), evidence(through.receipt.as_ref()));
    }
    let reused = v1::PutRequest { value: Bytes::from_static(b"3"), ..request };
    let refused = cluster.strong(follower).put(&bank, reused, soon(), Hop::Client).await.unwrap_err();
    assert_eq!(refused.reason, Reason::RequestIdReused);

    for id in 1..=3 {
        let read = cluster.strong(id).get(&bank, get("a"), soon(), Hop::Client).await.unwrap();
        assert_eq!((read.presence(), &read.value[..], read.revision), (v1::Presence::Found, &b"2"[..], 2));
        let proof = evidence(read.receipt.as_ref());
        assert_eq!((proof.path(), proof.namespace_revision), (v1::ReadPath::ReadIndex, 2));
    }
    let absent = cluster.strong(leader).get(&bank, get("b"), soon(), Hop::Client).await.unwrap();
    assert_eq!((absent.presence(), absent.revision), (v1::Presence::Absent, 0));

    let swap = |expected| v1::CompareAndSetRequest {
        namespace: "bank".into(),
        key: Bytes::from_static(b"a"),
        expected_revision: expected,
        value: Bytes::from_static(b"3"),
        mutation: Some(client.mutation()),
        ..Default::default()
    };
    let strong = cluster.strong(follower);
    let mismatch = strong.compare_and_set(&bank, swap(1), soon(), Hop::Client).await.unwrap();
    assert_eq!((mismatch.swapped, mismatch.revision, &mismatch.found[..]), (false, 2, &b"2"[..]));
    let swapped = strong.compare_and_set(&bank, swap(2), soon(), Hop::Client).await.unwrap();
    assert_eq!((swapped.swapped, swapped.revision), (true, 3));
    let delete = v1::DeleteRequest {
        namespace: "bank".into(),
        key: Bytes::from_static(b"a"),
        mutation: Some(client.mutation()),
        ..Default::default()
    };
    let deleted = strong.delete(&bank, delete, soon(), Hop::Client).await.unwrap();
    assert_eq!((deleted.existed, deleted.revision), (true, 4));

    let past = Instant::now();
    let late = strong.get(&bank, get("a"), past, Hop::Client).await.unwrap_err();
    assert_eq!((late.reason, late.applied), (Reason::DeadlineExpired, Applied::No));
    let status = cluster.strong(leader).status();
    assert!(status.iter().all(|group| group.quorum && group.voters == [1, 2, 3]), "{status:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_on_request() {
    let cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    put(cluster.strong(1), &bank, client.put("a", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let to = leader % 3 + 1;
    // Asked of the node that is neither.
    let other = (1..=3).find(|id| *id != leader && *id != to).unwrap();
    let request = admin::TransferLeaderRequest { group: 1, to };
    let moved = cluster.strong(other).transfer_leader(request, soon(), Hop::Client).await.unwrap();
    assert_eq!(moved.leader, to);
    assert_eq!(cluster.leader(GroupId::FIRST_DATA).await, to);
    assert_eq!(put(cluster.strong(leader), &bank, client.put("a", "2")).await.revision, 2);
    // Not again at once, wherever it is asked: each move interrupts the group.
    for id in 1..=3 {
        let back = admin::TransferLeaderRequest { group: 1, to: leader };
        let refused = cluster.strong(id).transfer_leader(back, soon(), Hop::Client).await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::Overloaded, Applied::No), "{refused}");
        assert!(refused.retry_after_ms.is_some_and(|ms| ms > 1_000), "{refused:?}");
    }
    assert_eq!(cluster.leader(GroupId::FIRST_DATA).await, to);
    let nobody = admin::TransferLeaderRequest { group: 1, to: 9 };
    let refused = cluster.strong(1).transfer_leader(nobody, soon(), Hop::Client).await.unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidRequest);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_the_death_of_every_process() {
    let mut cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    let requests: Vec<_> = (1..=20).map(|n| client.put(&format!("k{n}"), &n.to_string())).collect();
    for request in &requests {
        put(cluster.strong(1), &bank, request.clone()).await;
    }
    for id in 1..=3 {
        cluster.kill(id).await;
    }
    for id in 1..=3 {
        cluster.bring_up(id).await;
    }
    for n in 1..=20 {
        let expected = (Bytes::from(n.to_string()), n);
        assert_eq!(value(cluster.strong(n % 3 + 1), &bank, &format!("k{n}")).await, expected);
    }
    // Sessions too: the last request is still known.
    let again = put(cluster.strong(2), &bank, requests[19].clone()).await;
    assert_eq!((again.revision, again.receipt.unwrap().deduplicated), (20, true));
    assert!(cluster.strong(1).catalogue().borrow().namespace("bank").is_some());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_refuses_soon_and_says_that_nothing_happened() {
    let mut cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    put(cluster.strong(1), &bank, client.put("a", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    for other in (1..=3).filter(|id| *id != leader) {
        cluster.kill(other).await;
    }
    let cut = Instant::now();
    let strong = cluster.strong(leader);
    // What is proposed before the lease is over may stay open; afterwards refusals are definite and quick.
    let refused = within("a definite refusal", || async {
        let deadline = Instant::now() + Duration::from_millis(300);
        let failure = strong.put(&bank, client.put("a", "2"), deadline, Hop::Client).await.unwrap_err();
        (failure.applied == Applied::No).then_some(failure)
    })
    .await;
    assert_eq!(refused.reason, Reason::NoQuorum);
    assert!(cut.elapsed() < Duration::from_secs(2), "{:?}", cut.elapsed());
    within("both are suspected", || async {
        let failure = strong.get(&bank, get("a"), soon(), Hop::Client).await.unwrap_err();
        assert_eq!((failure.reason, failure.applied), (Reason::NoQuorum, Applied::No), "{failure}");
        (failure.detail("reachable") == Some("1") && failure.detail("required") == Some("2")).then_some(())
    })
    .await;
    for write in [true, false] {
        let asked = Instant::now();
        let failure = match write {
            true => strong.put(&bank, client.put("a", "3"), soon(), Hop::Client).await.unwrap_err(),
            false => strong.get(&bank, get("a"), soon(), Hop::Client).await.unwrap_err(),
        };
        assert_eq!((failure.reason, failure.applied), (Reason::NoQuorum, Applied::No), "{failure}");
        assert!(asked.elapsed() < Duration::from_millis(100), "{:?}", asked.elapsed());
    }
    // With one of them back there is a quorum, and nothing refused is there.
    let back = leader % 3 + 1;
    cluster.bring_up(back).await;
    let (value, _) = value(cluster.strong(back), &bank, "a").await;
    assert_ne!(&value[..], b"3");
    cluster.stop().await;
}

/// The write is acknowledged by two of three; one of the two loses its disk, the other is away. Whoever is
/// left must not make a leader out of a node that forgot and a node that never knew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_lost_its_disk_does_not_help_to_forget() {
    let mut cluster = Cluster::start(|_| {}).await;
    let client = Client::new(1);
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    put(cluster.strong(1), &bank, client.put("a", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let mut others = (1..=3).filter(|id| *id != leader);
    let (wiped, away) = (others.next().unwrap(), others.next().unwrap());
    cluster.kill(away).await;
    put(cluster.strong(leader), &bank, client.put("a", "2")).await;
    cluster.kill(leader).await;
    cluster.wipe(wiped).await;

    cluster.bring_up(wiped).await;
    cluster.bring_up(away).await;
    let together = Instant::now();
    while together.elapsed() < Duration::from_secs(3) {
        // Whatever is answered meanwhile is the truth.
        let deadline = Instant::now() + Duration::from_millis(300);
        if let Ok(read) = cluster.strong(away).get(&bank, get("a"), deadline, Hop::Client).await {
            panic!("answered by a node that forgot and one that never knew: {read:?}");
        }
    }
    cluster.bring_up(leader).await;
    assert_eq!(value(cluster.strong(wiped), &bank, "a").await.0, Bytes::from_static(b"2"));

    // Once it has caught up it counts again: with it and without the leader there is a majority that knows.
    within("the wiped voter votes", || async {
        let settled = (0..=1).all(|group| !cluster.joins(wiped, GroupId(group)));
        let caught_up = cluster.strong(wiped).status().iter().all(|group| group.applied_index > 0);
        (settled && caught_up).then_some(())
    })
    .await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    cluster.kill(if leader == wiped { away } else { leader }).await;
    assert_eq!(value(cluster.strong(wiped), &bank, "a").await.0, Bytes::from_static(b"2"));
    put(cluster.strong(wiped), &bank, client.put("a", "3")).await;
    cluster.stop().await;
}

/// A leader counts what a voter acknowledged before it lost its disk, and commits with one more that had
/// answered the voter's questions before. The voter then has all that it was told of, and not what was
/// committed: it must not yet help those who have not either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_joins_waits_for_what_was_committed_behind_its_back() {
    let mut cluster = Cluster::start_with(5, |_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    put(cluster.strong(1), &bank, client.put("a", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let others: Vec<u64> = (1..=5).filter(|id| *id != leader).collect();
    let (wiped, third, behind) = (others[0], others[1], [others[2], others[3]]);
    let known = cluster.data(leader).last_index;
    within("the same log everywhere", || async {
        (1..=5).all(|id| cluster.data(id).applied_index == known).then_some(())
    })
    .await;

    // Two writes reach the leader and one voter. The second is sent when the leader has heard that the first
    // is there.
    for id in [third, behind[0], behind[1]] {
        cluster.valve(id).up_to = Some(known);
    }
    let write = |request: v1::PutRequest| {
        let (strong, bank) = (cluster.strong(leader).clone(), bank.clone());
        tokio::spawn(async move { strong.put(&bank, request, Instant::now() + PATIENCE, Hop::Client).await })
    };
    let written = write(client.put("a", "2"));
    within("the write at one voter", || async { (cluster.data(wiped).last_index > known).then_some(()) })
        .await;
    let next = write(Client::new(2).put("b", "1"));
    within("the next one", || async { (cluster.data(wiped).last_index > known + 1).then_some(()) }).await;
    cluster.wipe(wiped).await;

    // It asks the three that do not know; then one of them learns, and that is a majority with what was
    // forgotten.
    cluster.valve(leader).mute = true;
    cluster.valve(wiped).deaf = true;
    cluster.bring_up(wiped).await;
    within("a note", || async { cluster.joins(wiped, GroupId::FIRST_DATA).then_some(()) }).await;
    assert!(!written.is_finished());
    cluster.valve(third).up_to = None;
    assert_eq!(written.await.unwrap().unwrap().revision, 2);

    // It gets what it noted, and what tells it that this is not all.
    *cluster.valve(wiped) = Valve { up_to: Some(known), ..Valve::default() };
    within("what it noted", || async { (cluster.data(wiped).applied_index == known).then_some(()) }).await;
    // Nor is it given the leadership: refused at once, before anybody stops serving.
    let transfer = admin::TransferLeaderRequest { group: 1, to: wiped };
    let asked = Instant::now();
    let refused = cluster.strong(leader).transfer_leader(transfer, soon(), Hop::Client).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NotReady, Applied::No), "{refused}");
    assert!(refused.message.contains("its directory was fresh"), "{refused}");
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(cluster.data(leader).role, "leader");
    let (told, mut pause) = (Instant::now(), tokio::time::interval(Duration::from_millis(20)));
    while told.elapsed() < Duration::from_secs(1) {
        pause.tick().await;
        assert!(cluster.joins(wiped, GroupId::FIRST_DATA), "settled without what was committed");
    }

    // Without those who know, nobody may answer.
    cluster.kill(leader).await;
    cluster.kill(third).await;
    let left = Instant::now();
    while left.elapsed() < Duration::from_secs(3) {
        let deadline = Instant::now() + Duration::from_millis(300);
        if let Ok(read) = cluster.strong(behind[0]).get(&bank, get("a"), deadline, Hop::Client).await {
            panic!("answered by a node that forgot and two that never knew: {read:?}");
        }
    }
    next.abort();
    for valve in cluster.valves.values() {
        *valve.lock().unwrap() = Valve::default();
    }
    cluster.bring_up(third).await;
    assert_eq!(value(cluster.strong(wiped), &bank, "a").await.0, Bytes::from_static(b"2"));
    within("it settles", || async { (!cluster.joins(wiped, GroupId::FIRST_DATA)).then_some(()) }).await;
    cluster.stop().await;
}

/// Neither of two can lead without the other's vote. The one with the empty disk has heard from all others,
/// which is one, and votes for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_voters_one_may_lose_its_disk() {
    let mut cluster = Cluster::start_with(2, |_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    put(cluster.strong(1), &bank, client.put("a", "1")).await;
    let wiped = cluster.leader(GroupId::FIRST_DATA).await;
    let kept = 3 - wiped;
    cluster.kill(kept).await;
    cluster.wipe(wiped).await;
    cluster.bring_up(wiped).await;
    cluster.bring_up(kept).await;
    assert_eq!(value(cluster.strong(wiped), &bank, "a").await.0, Bytes::from_static(b"1"));
    within("it settles", || async {
        (0..=1).all(|group| !cluster.joins(wiped, GroupId(group))).then_some(())
    })
    .await;
    let transfer = admin::TransferLeaderRequest { group: 1, to: wiped };
    within("its leadership", || async {
        cluster.strong(kept).transfer_leader(transfer, soon(), Hop::Client).await.ok()
    })
    .await;
    assert_eq!(put(cluster.strong(kept), &bank, client.put("a", "2")).await.revision, 2);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_long_gets_a_snapshot() {
    let mut cluster = Cluster::start(|config| {
        config.snapshot_every = 40;
        config.entries_kept = 5;
    })
    .await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    put(cluster.strong(1), &bank, client.put("first", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let away = leader % 3 + 1;
    let had = cluster.strong(away).status().into_iter().find(|s| s.group == 1).unwrap().last_index;
    cluster.kill(away).await;
    let last = client.put("last", "x");
    for n in 0..100 {
        put(cluster.strong(leader), &bank, client.put(&format!("k{n}"), "v")).await;
    }
    put(cluster.strong(leader), &bank, v1::PutRequest { mutation: Some(client.mutation()), ..last.clone() })
        .await;
    let data =
        |cluster: &Cluster, id: u64| cluster.strong(id).status().into_iter().find(|s| s.group == 1).unwrap();
    // Beyond what the member has; not further for a while, because the snapshot that it is offered holds the
    // log.
    within("a purged log", || async { (data(&cluster, leader).purged_index > had).then_some(()) }).await;
    let purged = data(&cluster, leader).purged_index;
    cluster.bring_up(away).await;
    within("the state of the others", || async {
        let (there, here) = (data(&cluster, leader), data(&cluster, away));
        (here.applied_index >= there.applied_index && here.snapshot_index >= purged).then_some(())
    })
    .await;
    // All of them have the same, and each says so for itself.
    within("one digest of every replica", || async {
        let mut said = Vec::new();
        for id in 1..=3 {
            said.push(cluster.strong(id).digest(&bank, soon()).await.unwrap());
        }
        assert!(said.iter().all(|one| one.applied_index.is_some() && one.partitions.len() == 1));
        (said[0].partitions[0].keys == 102 && said.iter().all(|one| *one == said[0])).then_some(())
    })
    .await;
    // It can lead with what it was given, and knows the sessions.
    let transfer = admin::TransferLeaderRequest { group: 1, to: away };
    within("its leadership", || async {
        cluster.strong(away).transfer_leader(transfer, soon(), Hop::Client).await.ok()
    })
    .await;
    assert_eq!(value(cluster.strong(away), &bank, "last").await.1, 102);
    assert_eq!(value(cluster.strong(away), &bank, "first").await.1, 1);
    assert_eq!(put(cluster.strong(away), &bank, client.put("more", "x")).await.revision, 103);
    // And starts again from what it installed, also when it lost its tables: the log below the snapshot is
    // gone.
    cluster.kill(away).await;
    std::fs::remove_dir_all(cluster.dirs[usize::try_from(away).unwrap() - 1].join("tier")).unwrap();
    cluster.bring_up(away).await;
    within("its state", || async { (data(&cluster, away).applied_index > purged).then_some(()) }).await;
    assert_eq!(value(cluster.strong(away), &bank, "more").await.1, 103);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_without_its_leader_refuses_at_once() {
    let mut cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    put(cluster.strong(1), &bank, client.put("a", "1")).await;
    let left = cluster.leader(GroupId::FIRST_DATA).await % 3 + 1;
    for other in (1..=3).filter(|id| *id != left) {
        cluster.kill(other).await;
    }
    let strong = cluster.strong(left);
    within("a lost leader", || async { (!strong.status()[1].quorum).then_some(()) }).await;
    tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            let asked = Instant::now();
            let failure = strong.put(&bank, client.put("a", "2"), soon(), Hop::Client).await.unwrap_err();
            assert_eq!((failure.reason, failure.applied), (Reason::NoQuorum, Applied::No), "{failure}");
            assert!(failure.retry_after_ms.is_some());
            if asked.elapsed() < Duration::from_millis(50) {
                break;
            }
        }
    })
    .await
    .unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sixth_member_learns() {
    let cluster = Cluster::start_with(6, |_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    assert_eq!(put(cluster.strong(6), &bank, Client::new(1).put("a", "1")).await.revision, 1);
    let learner = within("its first entries", || async {
        let group = cluster.strong(6).status().into_iter().find(|group| group.group == 1)?;
        (group.role == "learner" && group.applied_index > 0).then_some(group)
    })
    .await;
    assert_eq!(learner.voters, [1, 2, 3, 4, 5]);
    cluster.stop().await;
}

/// Small pieces, so that a small state is far larger than a message.
fn in_pieces(config: &mut RaftConfig) {
    config.snapshot_every = 40;
    config.entries_kept = 5;
    config.transfer_chunk_bytes = 2 << 10;
    config.transfer_sync_bytes = 8 << 10;
    // Some two seconds for the whole.
    config.transfer_bytes_per_second = 256 << 10;
}

const VALUE_BYTES: usize = 8 << 10;

/// Kills a follower and writes until the leader has purged what it would need; returns leader and follower.
async fn left_behind(cluster: &mut Cluster, bank: &Namespace, client: &Client) -> (u64, u64) {
    put(cluster.strong(1), bank, client.put("first", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let away = leader % 3 + 1;
    let left = cluster.data(away).last_index;
    cluster.kill(away).await;
    let value = "v".repeat(VALUE_BYTES);
    for n in 0..64 {
        put(cluster.strong(leader), bank, client.put(&format!("k{n}"), &value)).await;
    }
    within("a purged log", || async { (cluster.data(leader).purged_index > left).then_some(()) }).await;
    (leader, away)
}

async fn same_digest_everywhere(cluster: &Cluster, bank: &Namespace) {
    within("one digest of every replica", || async {
        let mut said = Vec::new();
        for id in 1..=3 {
            said.push(cluster.strong(id).digest(bank, soon()).await.ok()?);
        }
        said.iter().all(|one| *one == said[0]).then_some(())
    })
    .await;
}

/// Entries come faster than the follower gets the snapshot: what follows the snapshot is kept for it, or it
/// would be behind the purge point again at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_larger_than_a_message_reaches_a_member_while_writes_go_on() {
    let mut cluster = Cluster::start(in_pieces).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    let (leader, away) = left_behind(&mut cluster, &bank, &client).await;

    let (strong, load_bank) = (cluster.strong(leader).clone(), bank.clone());
    let written = Arc::new(AtomicU64::new(0));
    let counted = written.clone();
    let load = tokio::spawn(async move {
        let client = Client::new(2);
        loop {
            let n = counted.load(Ordering::Relaxed);
            put(&strong, &load_bank, client.put(&format!("k{}", n % 64), "w")).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    cluster.bring_up(away).await;
    // It comes near the end of a log that goes on growing, having begun behind the purge point.
    within("the follower near the end", || async {
        let (there, here) = (cluster.data(leader), cluster.data(away));
        (here.applied_index > 0 && here.applied_index + 20 >= there.last_index).then_some(())
    })
    .await;
    assert!(written.load(Ordering::Relaxed) > 40, "a snapshot was due meanwhile: {written:?}");
    assert!(!load.is_finished());
    let pieces = cluster.valve(away).pieces.clone();
    assert!(pieces.len() > 100, "{} pieces", pieces.len());
    // One transfer, in order: nothing was sent twice.
    assert!(pieces.windows(2).all(|pair| pair[0] < pair[1]), "{pieces:?}");
    load.abort();
    same_digest_everywhere(&cluster, &bank).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_goes_on_where_it_was_after_a_restart_of_the_receiver() {
    let mut cluster = Cluster::start(in_pieces).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    let (leader, away) = left_behind(&mut cluster, &bank, &client).await;
    *cluster.valve(away) = Valve { pieces_taken: Some(60), flips: 3, ..Valve::default() };
    cluster.bring_up(away).await;
    within("half of it", || async { (cluster.valve(away).pieces.len() >= 60).then_some(()) }).await;
    // Pieces that were damaged on the way were sent again, not taken.
    assert_eq!(cluster.strong(away).snapshot_refusals().get("wrong_checksum"), Some(&3));
    assert_eq!(cluster.valve(away).pieces[..4], [0, 0, 0, 0]);
    // Not able to acknowledge anything meanwhile, and not counted as if it were.
    within("it is reachable and not able", || async {
        let status = cluster.data(leader);
        (status.reachable_voters == 3 && status.able_voters == 2).then_some(())
    })
    .await;
    cluster.kill(away).await;
    *cluster.valve(away) = Valve::default();
    cluster.bring_up(away).await;
    within("the state", || async {
        (cluster.data(away).applied_index == cluster.data(leader).applied_index).then_some(())
    })
    .await;
    let first = cluster.valve(away).pieces[0];
    assert!(first >= 60 * 1024, "it began again at {first}");
    same_digest_everywhere(&cluster, &bank).await;
    within("it counts again", || async { (cluster.data(leader).able_voters == 3).then_some(()) }).await;
    cluster.stop().await;
}

/// Bits rot in the only snapshot of a leader, and no writes come that would make another one due. (The other
/// member has one of its own, so it is not asked.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_taken_again_for_the_follower_that_needs_it() {
    let mut cluster = Cluster::start(in_pieces).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    let (leader, away) = left_behind(&mut cluster, &bank, &client).await;
    let place = usize::try_from(leader - 1).unwrap();
    let files = cluster.dirs[place].join("snapshots").join(GroupId::FIRST_DATA.0.to_string());
    let mut damaged = Vec::new();
    for file in std::fs::read_dir(&files).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        damaged.push((path, bytes));
    }
    cluster.bring_up(away).await;
    // Another one may have its name.
    within("the damaged file is gone", || async {
        damaged.iter().all(|(path, bytes)| std::fs::read(path).ok().as_ref() != Some(bytes)).then_some(())
    })
    .await;
    within("the state", || async {
        (cluster.data(away).applied_index == cluster.data(leader).applied_index).then_some(())
    })
    .await;
    same_digest_everywhere(&cluster, &bank).await;
    cluster.stop().await;
}

/// Whatever is announced or sent: refused by name, and the node goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_that_cannot_be_are_refused_by_name() {
    let cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    put(cluster.strong(1), &bank, Client::new(1).put("a", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let to = leader % 3 + 1;
    let term = cluster.data(leader).term;
    let vote = peer::Vote { term, node: leader, committed: true };
    let send = |vote: peer::Vote, step: Option<Step>| {
        let body = Request::RaftSnapshot(peer::RaftSnapshot { vote: Some(vote), step });
        let about = Address { group: GroupId::FIRST_DATA, ..Address::default() };
        let peers = cluster.nodes[&leader].peers.clone();
        async move { peers.call(NodeId(to), Lane::Bulk, about, body, soon()).await }
    };
    let result = |answer: Result<Response, kv_peer::PeerError>| match answer.unwrap() {
        Response::RaftSnapshot(reply) => reply.result.unwrap(),
        other => panic!("{other:?}"),
    };
    let name = |answer| match result(answer) {
        SnapshotReply::Refused(refused) => refused.reason(),
        other => panic!("{other:?}"),
    };
    let last = peer::LogId { term, node: leader, index: 1_000_000 };
    let membership = {
        // Version, no log id, one configuration of one voter, one node.
        let words: [u32; 2] = [1, 1];
        let mut bytes = vec![1, 0];
        words.iter().for_each(|word| bytes.extend_from_slice(&word.to_be_bytes()));
        bytes.extend_from_slice(&1_u64.to_be_bytes());
        bytes.extend_from_slice(&1_u32.to_be_bytes());
        bytes.extend_from_slice(&1_u64.to_be_bytes());
        Bytes::from(bytes)
    };
    let good = peer::SnapshotBegin {
        last_log_id: Some(last),
        membership: membership.clone(),
        snapshot_id: 1_000_001,
        length: 10_000,
        checksum: 1,
    };
    let begin = |begin: peer::SnapshotBegin| send(vote, Some(Step::Begin(begin)));
    use peer::SnapshotRefusal as R;

    // Announcements.
    let newer = peer::LogId { term: term + 1, ..last };
    let beyond = peer::LogId { index: u64::MAX, ..last };
    for (bad, refusal) in [
        (peer::SnapshotBegin { last_log_id: None, ..good.clone() }, R::Invalid),
        (peer::SnapshotBegin { last_log_id: Some(newer), ..good.clone() }, R::Invalid),
        (
            peer::SnapshotBegin { last_log_id: Some(beyond), snapshot_id: u64::MAX, ..good.clone() },
            R::Invalid,
        ),
        (peer::SnapshotBegin { membership: Bytes::from_static(b"no"), ..good.clone() }, R::Invalid),
        (peer::SnapshotBegin { membership: vec![1; 20 << 10].into(), ..good.clone() }, R::Invalid),
        (peer::SnapshotBegin { snapshot_id: 3, ..good.clone() }, R::Invalid),
        (peer::SnapshotBegin { length: 0, ..good.clone() }, R::Invalid),
        (peer::SnapshotBegin { length: (1 << 40) + 1, ..good.clone() }, R::TooLarge),
        (peer::SnapshotBegin { length: u64::MAX, ..good.clone() }, R::TooLarge),
    ] {
        assert_eq!(name(begin(bad.clone()).await), refusal, "{bad:?}");
    }
    // Votes: an older leader is told of the newer one; who is not the leader by its own vote is refused.
    let older = peer::Vote { term: term - 1, ..vote };
    match result(send(older, Some(Step::Begin(good.clone()))).await) {
        SnapshotReply::HigherVote(higher) => assert_eq!(higher.term, term),
        other => panic!("{other:?}"),
    }
    let false_votes = [
        (peer::Vote { node: to, ..vote }, "FOREIGN_VOTE"),
        (peer::Vote { committed: false, ..vote }, "NOT_ELECTED"),
    ];
    for (false_vote, why) in false_votes {
        let refused = send(false_vote, Some(Step::Begin(good.clone()))).await.unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
    assert!(send(vote, None).await.unwrap_err().to_string().contains("unknown here"));
    // Pieces of nothing.
    let chunk = |transfer, offset, data: &[u8], checksum| {
        let data = Bytes::copy_from_slice(data);
        send(vote, Some(Step::Chunk(peer::SnapshotChunk { transfer, offset, data, checksum })))
    };
    assert_eq!(name(chunk(1, 0, b"x", 0).await), R::UnknownTransfer);
    assert_eq!(
        name(send(vote, Some(Step::End(peer::SnapshotEnd { transfer: 1 }))).await),
        R::UnknownTransfer
    );
    // Pieces that do not fit.
    let SnapshotReply::Wanted(wanted) = result(begin(good.clone()).await) else { panic!("not wanted") };
    let (transfer, piece) = (wanted.transfer, vec![7; 6_000]);
    let sum = crc32c::crc32c(&piece);
    assert_eq!(wanted.offset, 0);
    assert_eq!(name(chunk(transfer, 0, &piece, sum ^ 1).await), R::WrongChecksum);
    assert_eq!(name(chunk(transfer, 5, &piece, sum).await), R::WrongOffset);
    assert_eq!(name(chunk(transfer, u64::MAX, &piece, sum).await), R::WrongOffset);
    assert_eq!(name(chunk(transfer + 1, 0, &piece, sum).await), R::UnknownTransfer);
    assert_eq!(name(chunk(transfer, 0, b"", 0).await), R::Invalid);
    let end = || send(vote, Some(Step::End(peer::SnapshotEnd { transfer })));
    assert_eq!(name(end().await), R::Incomplete);
    assert!(matches!(result(chunk(transfer, 0, &piece, sum).await), SnapshotReply::Wanted(_)));
    assert_eq!(name(chunk(transfer, 6_000, &piece, sum).await), R::BeyondLength);
    let rest = vec![8; 4_000];
    assert!(matches!(
        result(chunk(transfer, 6_000, &rest, crc32c::crc32c(&rest)).await),
        SnapshotReply::Wanted(wanted) if wanted.offset == 10_000
    ));
    // The whole is not what was announced.
    let refused = within("a verdict", || async {
        match result(end().await) {
            SnapshotReply::Working(_) => None,
            SnapshotReply::Refused(refused) => Some(refused.reason()),
            other => panic!("{other:?}"),
        }
    })
    .await;
    assert_eq!(refused, R::Damaged);
    let refusals = cluster.strong(to).snapshot_refusals();
    assert_eq!(refusals.get("damaged"), Some(&1), "{refusals:?}");
    assert_eq!(refusals.get("too_large"), Some(&2), "{refusals:?}");
    // Nothing of it is left, what is committed here is not asked for, and the node serves.
    assert_eq!(name(end().await), R::UnknownTransfer);
    let known = peer::LogId { index: 1, term: 1, node: leader };
    let have = peer::SnapshotBegin { last_log_id: Some(known), snapshot_id: 2, ..good };
    assert!(matches!(result(begin(have).await), SnapshotReply::Installed(_)));
    assert_eq!(value(cluster.strong(to), &bank, "a").await.0, Bytes::from_static(b"1"));
    assert_eq!(put(cluster.strong(to), &bank, Client::new(2).put("b", "1")).await.revision, 2);
    cluster.stop().await;
}

/// A client whose clock is wrong hears so from its first attempt, and nothing of it reaches the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opening_from_the_future_is_refused_before_it_is_proposed() {
    let cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    put(cluster.strong(leader), &bank, Client::new(1).put("a", "1")).await;
    let before = cluster.data(leader).last_index;
    let mut ahead = Client::new(2).put("a", "2");
    ahead.mutation.as_mut().unwrap().issued_at_ms += 10 * 60_000;
    for id in 1..=3 {
        let refused = cluster.strong(id).put(&bank, ahead.clone(), soon(), Hop::Client).await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::RequestIdInvalid, Applied::No), "{refused}");
        assert!(refused.detail("clock_ahead_ms").is_some(), "{refused:?}");
    }
    assert_eq!(cluster.data(leader).last_index, before);
    assert_eq!(value(cluster.strong(leader), &bank, "a").await.1, 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_is_not_raised_beyond_what_members_support() {
    let mut cluster = Cluster::start(|_| {}).await;
    let leader = cluster.leader(GroupId::CATALOGUE).await;
    let supported = FeatureLevel::SUPPORTED;
    assert_eq!(cluster.strong(leader).raise_level(supported, soon()).await, Ok(supported));
    let beyond = FeatureLevel(supported.0 + 1);
    let refused = cluster.strong(leader).raise_level(beyond, soon()).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NotReady, Applied::No));
    assert!(refused.message.contains("upgrade it first"), "{refused}");
    let follower = leader % 3 + 1;
    let refused = cluster.strong(follower).raise_level(beyond, soon()).await.unwrap_err();
    assert_eq!(refused.reason, Reason::NotLeader);
    // One that does not answer may be of an older release.
    cluster.kill(follower).await;
    let refused = cluster.strong(leader).raise_level(beyond, soon()).await.unwrap_err();
    assert!(
        refused.message.contains("upgrade it first") || refused.message.contains("did not say"),
        "{refused}"
    );
    assert_eq!(cluster.strong(leader).catalogue().borrow().level, supported);
    cluster.stop().await;
}
