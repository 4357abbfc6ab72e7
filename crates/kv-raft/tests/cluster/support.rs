//! A cluster of real nodes in this process, the valve in front of each, and a client.

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
use kv_peer::{PeerConfig, PeerHandler, PeerRequest, Peers};
use kv_proto::peer::raft_snapshot::Step;
use kv_proto::peer::request_frame::Body as Request;
use kv_proto::peer::response_frame::Body as Response;
use kv_proto::{admin, client_id_bytes, peer, v1};
use kv_raft::{RaftConfig, Strong};
use kv_storage::tier::TierKind;
use kv_storage::{Storage, StorageOptions};
use kv_types::catalogue::{FeatureLevel, Member};
use kv_types::{ClientId, ClusterId, Failure, GroupId, Hop, Namespace, NamespaceId, NodeId, Reason};
use tokio::time::Instant;

pub(crate) use wire::Asked;

#[path = "../wire/mod.rs"]
mod wire;

pub(crate) const CLUSTER: ClusterId = ClusterId(77);

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a node takes of the first data group's messages.
#[derive(Debug, Default)]
pub(crate) struct Valve {
    /// Takes no appends.
    pub(crate) deaf: bool,
    /// Takes no entries after this one.
    pub(crate) up_to: Option<u64>,
    /// Does not say what it has.
    pub(crate) mute: bool,
    /// Offsets of the pieces of snapshots that came.
    pub(crate) pieces: Vec<u64>,
    /// So many pieces are taken; the next ones are not answered well.
    pub(crate) pieces_taken: Option<usize>,
    /// Of so many pieces that come next, a bit flips on the way.
    pub(crate) flips: usize,
}

impl Valve {
    /// Narrows a request to what is taken of it; tells the last entry that is, if not all are.
    pub(crate) fn narrow(&mut self, request: &mut PeerRequest) -> Result<Option<peer::LogId>, Failure> {
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
pub(crate) struct Router(OnceLock<Strong>, Arc<Mutex<Valve>>);

impl PeerHandler for Router {
    fn handle(&self, request: PeerRequest) -> BoxFuture<'static, Result<Response, Failure>> {
        let Some(strong) = self.0.get().cloned() else {
            return async { Err(Failure::new(Reason::NotReady, "starting")) }.boxed();
        };
        match request.body {
            Request::Forward(peer::Forward { request: Some(forwarded), .. }) => {
                forward(strong, request.about.namespace, forwarded, request.deadline).boxed()
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

pub(crate) async fn forward(
    strong: Strong,
    about: NamespaceId,
    request: peer::forward::Request,
    deadline: Instant,
) -> Result<Response, Failure> {
    use peer::forward::Request as R;
    use peer::forward_reply::Response as A;
    let known = strong.catalogue().borrow().namespaces.get(&about).cloned();
    let bank = || known.ok_or_else(|| Failure::new(Reason::NamespaceUnknown, about.to_string()));
    let hop = Hop::Forwarded;
    let response = match request {
        R::Get(r) => A::Get(strong.get(&bank()?, r, deadline, hop).await?),
        R::Put(r) => A::Put(strong.put(&bank()?, r, deadline, hop).await?),
        R::Delete(r) => A::Delete(strong.delete(&bank()?, r, deadline, hop).await?),
        R::CompareAndSet(r) => A::CompareAndSet(strong.compare_and_set(&bank()?, r, deadline, hop).await?),
        R::CreateNamespace(r) => A::CreateNamespace(strong.create_namespace(r, deadline, hop).await?),
        R::DeleteNamespace(r) => A::DeleteNamespace(strong.delete_namespace(r, deadline, hop).await?),
        R::ScheduleDeletion(r) => A::ScheduleDeletion(strong.schedule_deletion(r, deadline, hop).await?),
        R::UndeleteNamespace(r) => A::UndeleteNamespace(strong.undelete_namespace(r, deadline, hop).await?),
        R::AlterNamespace(r) => A::AlterNamespace(strong.alter_namespace(r, deadline, hop).await?),
        R::TransferLeader(r) => A::TransferLeader(strong.transfer_leader(r, deadline, hop).await?),
    };
    Ok(Response::Forward(peer::ForwardReply { response: Some(response) }))
}

pub(crate) struct Node {
    pub(crate) strong: Strong,
    pub(crate) peers: Peers,
    pub(crate) storage: Storage,
    pub(crate) server: tokio::task::JoinHandle<()>,
}

impl Node {
    pub(crate) async fn start(
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
    pub(crate) async fn kill(self) {
        self.server.abort();
        self.peers.shutdown();
        self.storage.halt();
        self.strong.shutdown().await;
    }

    pub(crate) async fn stop(self) {
        self.strong.shutdown().await;
        self.peers.shutdown();
        self.server.abort();
        self.storage.shutdown().await;
    }
}

pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) valves: BTreeMap<u64, Arc<Mutex<Valve>>>,
    pub(crate) tune: fn(&mut RaftConfig),
    pub(crate) _root: tempfile::TempDir,
}

impl Cluster {
    pub(crate) async fn start(tune: fn(&mut RaftConfig)) -> Self {
        Self::start_with(3, tune).await
    }

    pub(crate) async fn start_with(nodes: u64, tune: fn(&mut RaftConfig)) -> Self {
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

    pub(crate) async fn bring_up(&mut self, id: u64) {
        let at = usize::try_from(id).unwrap() - 1;
        let valve = self.valves[&id].clone();
        let node = Node::start(&self.members[at], &self.members, &self.dirs[at], valve, self.tune).await;
        self.nodes.insert(id, node);
    }

    /// A cluster of members of the first release, each of which was then brought up to this one.
    pub(crate) async fn upgraded() -> Self {
        let mut cluster = Self::start(|config| config.supports = FeatureLevel::FIRST).await;
        let leader = cluster.leader(GroupId::CATALOGUE).await;
        assert_eq!(cluster.strong(leader).catalogue().borrow().level, FeatureLevel::FIRST);
        cluster.tune = |_| {};
        for id in 1..=3 {
            cluster.kill(id).await;
            cluster.bring_up(id).await;
        }
        cluster
    }

    pub(crate) async fn kill(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().kill().await;
    }

    /// Kills a node and takes its disk away.
    pub(crate) async fn wipe(&mut self, id: u64) {
        self.kill(id).await;
        std::fs::remove_dir_all(&self.dirs[usize::try_from(id).unwrap() - 1]).unwrap();
    }

    pub(crate) fn valve(&self, id: u64) -> MutexGuard<'_, Valve> {
        self.valves[&id].lock().unwrap()
    }

    /// Where a node stands in the first data group.
    pub(crate) fn data(&self, id: u64) -> admin::GroupStatus {
        self.strong(id).status().into_iter().find(|group| group.group == GroupId::FIRST_DATA.0).unwrap()
    }

    /// Whether a node is still joining a group.
    pub(crate) fn joins(&self, id: u64, group: GroupId) -> bool {
        let note = [&b"raft/joining/"[..], &group.0.to_be_bytes()].concat();
        self.nodes[&id].storage.small_get(&note).is_some()
    }

    pub(crate) fn strong(&self, id: u64) -> &Strong {
        &self.nodes[&id].strong
    }

    /// The leader that a quorum agrees on.
    pub(crate) async fn leader(&self, group: GroupId) -> u64 {
        within("a leader", || async {
            let claims = |node: &Node| {
                let status = node.strong.status().into_iter().find(|status| status.group == group.0).unwrap();
                (status.role() == admin::GroupRole::Leader, status.term, status.leader)
            };
            let leads = self.nodes.iter().find(|(_, node)| claims(node).0)?;
            let (_, term, _) = claims(leads.1);
            let followers =
                self.nodes.values().filter(|node| claims(node).1 == term && claims(node).2 == *leads.0);
            (followers.count() >= 2).then_some(*leads.0)
        })
        .await
    }

    pub(crate) async fn namespace(&self, name: &str, client: &Client) -> Namespace {
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

    pub(crate) async fn stop(self) {
        for node in self.nodes.into_values() {
            node.stop().await;
        }
    }
}

pub(crate) fn member(id: u64) -> Member {
    let port = kv_env::choose_port().unwrap();
    Member {
        id: NodeId(id),
        client_address: format!("client-of-n{id}"),
        peer_address: format!("127.0.0.1:{port}"),
        zone: String::new(),
    }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(3)
}

/// Tries until it is so.
pub(crate) async fn within<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> T {
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
pub(crate) struct Client {
    pub(crate) id: u128,
    pub(crate) next: AtomicU64,
}

impl Client {
    pub(crate) fn new(id: u128) -> Self {
        Self { id, next: AtomicU64::new(1) }
    }

    pub(crate) fn mutation(&self) -> v1::Mutation {
        self.mutation_of(self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn mutation_of(&self, seq: u64) -> v1::Mutation {
        let now = Env::real().clock.wall_ms();
        v1::Mutation {
            client_id: client_id_bytes(ClientId(self.id)),
            seq,
            issued_at_ms: now,
            lowest_unacked: seq,
            attempt: 1,
        }
    }

    pub(crate) fn put(&self, key: &str, value: &str) -> v1::PutRequest {
        v1::PutRequest {
            namespace: "bank".into(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            mutation: Some(self.mutation()),
            ..Default::default()
        }
    }
}

pub(crate) fn get(key: &str) -> v1::GetRequest {
    v1::GetRequest {
        namespace: "bank".into(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        ..Default::default()
    }
}

/// Sends the same request until it is answered, as a client does.
pub(crate) async fn put(node: &Strong, bank: &Namespace, request: v1::PutRequest) -> v1::PutResponse {
    within("a put", || async { node.put(bank, request.clone(), soon(), Hop::Client).await.ok() }).await
}

pub(crate) async fn value(node: &Strong, bank: &Namespace, key: &str) -> (Bytes, u64) {
    let read = within("a get", || async { node.get(bank, get(key), soon(), Hop::Client).await.ok() }).await;
    (read.value, read.revision)
}

pub(crate) fn evidence(receipt: Option<&v1::Receipt>) -> v1::StrongEvidence {
    match receipt.and_then(|receipt| receipt.evidence.as_ref()) {
        Some(v1::receipt::Evidence::Strong(strong)) => *strong,
        other => panic!("{other:?}"),
    }
}
