//! The node's side of available namespaces: what it offers to its server, and what it answers to peers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kv_env::Env;
use kv_peer::{Address, PeerRequest, Peers};
use kv_proto::admin;
use kv_proto::peer::{self, request_frame, response_frame};
use kv_storage::{Storage, StorageError};
use kv_types::catalogue::{Catalogue, token};
use kv_types::causal::State;
use kv_types::limits::MAX_DEADLINE;
use kv_types::{
    Answer, Call, Epoch, Failure, Hop, Key, Namespace, NamespaceId, NodeId, Reason, RingId, RingPartition,
};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::aside::Aside;
use crate::layout::{Place, Slice};
use crate::limits;
use crate::node::{AvailableConfig, Node, ring_of};
use crate::replica::Replica;
use crate::standing::Standing;
use crate::write::Change;
use crate::{catch_up, compare, missing, rebuild, removal, replay, strip};

/// The available namespaces of one node. Clones share everything.
#[derive(Clone)]
pub struct Available {
    pub(crate) node: Arc<Node>,
}

impl std::fmt::Debug for Available {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Available of {}", self.node.me)
    }
}

impl Available {
    /// Opens what the directory holds and begins to serve: at once if it lacks nothing, otherwise after a
    /// survey of the other members and a pull of what it may lack. Must run inside a tokio runtime.
    pub async fn start(
        config: AvailableConfig,
        storage: Storage,
        peers: Peers,
        env: Env,
        catalogue: watch::Receiver<Arc<Catalogue>>,
    ) -> Result<Self, Failure> {
        let opened = Replica::open(storage, env, catalogue.clone(), config.tier_lost, config.hint_bytes);
        let replica = opened.await?;
        let standing = Standing::new(replica.is_whole());
        let node = Arc::new(Node {
            me: config.node_id,
            config,
            replica,
            peers,
            catalogue,
            standing,
            aside: Aside::default(),
            room: Arc::new(Semaphore::new(limits::COORDINATED)),
            repairs: Arc::new(Semaphore::new(limits::REPAIRS)),
            answers: Arc::new(Semaphore::new(limits::ANSWER_BYTES)),
            hint_heard: Mutex::default(),
            stop: watch::Sender::new(false),
        });
        tokio::spawn(rebuild::establish(Arc::clone(&node)));
        tokio::spawn(replay::run(Arc::clone(&node)));
        tokio::spawn(strip::run(Arc::clone(&node)));
        tokio::spawn(compare::run(Arc::clone(&node)));
        tokio::spawn(catch_up::run(Arc::clone(&node)));
        tokio::spawn(missing::trim(Arc::clone(&node)));
        tokio::spawn(removal::run(Arc::clone(&node)));
        Ok(Self { node })
    }

    /// Serves a call about a key of an available namespace: a read from R nodes, a put or a delete by W. The
    /// call suits the mode of the namespace.
    pub async fn serve(
        &self,
        namespace: &Namespace,
        call: Call,
        deadline: Instant,
        hop: Hop,
    ) -> Result<Answer, Failure> {
        let deadline = capped(deadline);
        let change = match call {
            Call::Get(get) => {
                return self.node.get(namespace, get, deadline).await.map_err(Failure::of_read);
            }
            Call::Put(put) => Change::Put(put),
            Call::Delete(delete) => Change::Delete(delete),
            Call::CompareAndSet(_) => {
                let message = "available namespaces offer get, put and delete";
                return Err(Failure::new(Reason::ModeMismatch, message));
            }
        };
        self.node.write(namespace, change, deadline, hop).await
    }

    /// Answers a peer: `replica_write`, `replica_read`, `pull_partition`, `pull_missing` and
    /// `compare_clocks`.
    pub fn handle(&self, request: PeerRequest) -> BoxFuture<'static, Result<response_frame::Body, Failure>> {
        let dynamo = self.clone();
        Box::pin(async move {
            let deadline = capped(request.deadline);
            match request.body {
                request_frame::Body::ReplicaWrite(message) => {
                    dynamo.node.replica_write(request.about, message, deadline).await
                }
                request_frame::Body::ReplicaRead(message) => {
                    dynamo.node.replica_read(request.about, message, deadline).await
                }
                request_frame::Body::PullPartition(message) => dynamo
                    .node
                    .pull_partition(message, deadline)
                    .await
                    .map(response_frame::Body::PullPartition),
                request_frame::Body::CompareClocks(message) => dynamo
                    .node
                    .compare_clocks(message, deadline)
                    .await
                    .map(response_frame::Body::CompareClocks),
                request_frame::Body::PullMissing(message) => {
                    dynamo.node.pull_missing(message, deadline).await.map(response_frame::Body::PullMissing)
                }
                _ => {
                    Err(Failure::new(Reason::InvalidRequest, "this message is not for available namespaces"))
                }
            }
        })
    }

    /// Digests of the ring partitions of a namespace's ring that this node keeps as a primary: equal on
    /// replicas that converged.
    pub async fn digest(&self, namespace: &Namespace) -> Result<admin::GetDigestResponse, Failure> {
        let node = &self.node;
        let catalogue = node.catalogue();
        let (ring, _) = ring_of(&catalogue, namespace)?;
        let mut response = admin::GetDigestResponse {
            hints_pending: self.hints_pending().values().sum(),
            ..Default::default()
        };
        for slice in node.kept(ring) {
            let digest = node.replica.digest(slice, namespace.id).await?;
            response.keys_with_siblings += digest.with_siblings;
            let partition = slice.partition.0;
            response.partitions.push(admin::PartitionDigest {
                partition,
                digest: digest.digest,
                keys: digest.keys,
            });
            // A long namespace must not hold up the others on this worker.
            tokio::task::yield_now().await;
        }
        Ok(response)
    }

    /// Where a key lives.
    pub fn owners(&self, namespace: &Namespace, key: &[u8]) -> Result<admin::GetRingOwnersResponse, Failure> {
        let view = self.node.view(namespace, Key::new(Bytes::copy_from_slice(key))?)?;
        Ok(admin::GetRingOwnersResponse {
            ring: view.place.slice.ring.0,
            partition: view.place.slice.partition.0,
            token: token(namespace.id, key),
            primaries: view.primaries.iter().map(|node| node.0).collect(),
            fallbacks: view.fallbacks.iter().map(|node| node.0).collect(),
            epoch: view.epoch.0,
        })
    }

    /// What this node can find out about a key now.
    pub async fn explain(
        &self,
        namespace: &Namespace,
        key: &[u8],
        deadline: Instant,
    ) -> Result<admin::ExplainKeyResponse, Failure> {
        let owners = self.owners(namespace, key)?;
        let key = Key::new(Bytes::copy_from_slice(key))?;
        let explained = self.node.explain(namespace, key, capped(deadline)).await?;
        Ok(admin::ExplainKeyResponse { owners: Some(owners), ..explained })
    }

    /// Number of hints that are held here, by target.
    pub fn hints_pending(&self) -> BTreeMap<NodeId, u64> {
        self.node.replica.hints_pending()
    }

    /// Number of them that their targets refused for what is in them, and that are tried ever more rarely.
    pub fn hints_set_aside(&self) -> BTreeMap<NodeId, u64> {
        self.node.aside.rows()
    }

    /// How many records, hints and conflicts this node has of a namespace. It walks whole tables, on this
    /// thread: for those who look at a node from outside, such as a simulation.
    pub fn rows_of(&self, namespace: NamespaceId) -> Result<usize, StorageError> {
        self.node.replica.rows_of(namespace)
    }

    /// How many keys have more than one value here.
    pub fn keys_with_siblings(&self) -> u64 {
        self.node.replica.keys_with_siblings()
    }

    /// How many ring partitions this node keeps but does not serve yet.
    pub fn rebuilding_partitions(&self) -> u64 {
        let catalogue = self.node.catalogue();
        let kept = catalogue.rings.values().flat_map(|ring| self.node.kept(ring));
        let behind = kept.filter(|slice| !self.node.serves(*slice)).count() as u64;
        // Before the catalogue arrives the number is not known: it is reported as at least one.
        if self.node.is_whole() { 0 } else { behind.max(1) }
    }

    /// Ends the background tasks. Requests under way end by their deadlines.
    pub fn shutdown(&self) {
        self.node.stop.send_replace(true);
    }
}

impl Node {
    /// What a message of a peer is about, checked against this node's catalogue.
    fn addressed(
        &self,
        about: Address,
        ring: u32,
        partition: u32,
        key: Bytes,
    ) -> Result<(Place, Vec<NodeId>), Failure> {
        let catalogue = self.catalogue();
        let slice = Slice { ring: RingId(ring), partition: RingPartition(partition) };
        let wrong_epoch = |known: Epoch| {
            let message =
                format!("{} knows the ring of this key by {known}, not by {}", self.me, about.epoch);
            Failure::new(Reason::WrongEpoch, message).with("epoch", known.0)
        };
        let known = catalogue.rings.get(&slice.ring).ok_or_else(|| wrong_epoch(Epoch(0)))?;
        if about.epoch != Epoch(0) && about.epoch != known.epoch {
            return Err(wrong_epoch(known.epoch));
        }
        // An id that is not given out here yet may be known to the sender; this one never will be again.
        if catalogue.was_deleted(about.namespace) {
            let message = format!("{} was deleted", about.namespace);
            return Err(Failure::new(Reason::NamespaceUnknown, message));
        }
        let key = Key::new(key)?;
        if known.partition_of(token(about.namespace, key.as_bytes())) != slice.partition {
            return Err(Failure::new(
                Reason::InvalidRequest,
                "the key does not belong to that ring partition",
            ));
        }
        let place = Place { slice, namespace: about.namespace, key: key.as_bytes().clone() };
        Ok((place, known.primaries(slice.partition).to_vec()))
    }

    async fn replica_write(
        &self,
        about: Address,
        message: peer::ReplicaWrite,
        deadline: Instant,
    ) -> Result<response_frame::Body, Failure> {
        let state = State::decode(message.record)
            .map_err(|error| Failure::new(Reason::InvalidRequest, error.to_string()))?;
        let slice = Slice { ring: RingId(message.ring), partition: RingPartition(message.partition) };
        let addressed = self.addressed(about, message.ring, message.partition, message.key);
        let deleted = addressed.as_ref().is_err_and(|failure| failure.reason == Reason::NamespaceUnknown);
        if deleted && message.hint_for == 0 && self.keeps(slice) {
            self.replica.pass_over(slice, &state, deadline).await?;
        }
        let (place, primaries) = addressed?;
        if state.record.context.is_empty() && !state.writes.is_empty() {
            // An older node sends a note like this when it has lost the record.
            let message = "the state names writes and has no record: none of them could be kept";
            return Err(Failure::new(Reason::InvalidRequest, message));
        }
        let bulk = about.epoch == Epoch(0);
        if bulk {
            self.note_hint();
        }
        let keeper = if message.hint_for == 0 { self.me } else { NodeId(message.hint_for) };
        if !primaries.contains(&keeper) {
            return Err(Failure::new(
                Reason::WrongNode,
                format!("{keeper} does not keep {}", place.slice.partition),
            ));
        }
        let position = if message.hint_for == 0 || keeper == self.me {
            self.replica.apply(&place, &state, bulk, deadline).await?
        } else {
            Box::pin(self.replica.store_hint(&place, keeper, state, message.counted, deadline)).await?
        };
        self.durable_by(position, deadline).await?;
        Ok(response_frame::Body::ReplicaWrite(peer::ReplicaWriteReply { fsynced: true }))
    }

    async fn replica_read(
        &self,
        about: Address,
        message: peer::ReplicaRead,
        deadline: Instant,
    ) -> Result<response_frame::Body, Failure> {
        let (place, primaries) = self.addressed(about, message.ring, message.partition, message.key)?;
        let primary = primaries.contains(&self.me);
        let copy = if !primary {
            self.replica.read_hints(&place, &primaries, deadline).await?
        } else if self.knows(&place) {
            self.replica.read(&place, deadline).await?
        } else if self.serves(place.slice) {
            let message = format!("{} could not take what others have of this key", self.me);
            return Err(Failure::new(Reason::NotReady, message));
        } else {
            let message =
                format!("{} is rebuilding {} and does not know it yet", self.me, place.slice.partition);
            return Err(Failure::new(Reason::NotReady, message));
        };
        self.durable_by(copy.position, deadline).await?;
        let record = if copy.known { copy.state.encode() } else { Bytes::new() };
        Ok(response_frame::Body::ReplicaRead(peer::ReplicaReadReply { primary, knows: copy.known, record }))
    }
}

fn capped(deadline: Instant) -> Instant {
    deadline.min(Instant::now() + MAX_DEADLINE)
}
