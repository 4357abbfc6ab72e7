//! The node as its requests and its background see it: what it is made of, what the catalogue says about a
//! key, and what this node may do about it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kv_peer::{Address, Peers};
use kv_proto::peer::{self, request_frame};
use kv_storage::Position;
use kv_types::catalogue::{Catalogue, Ring, token};
use kv_types::causal::{Seen, decode_context_token, encode_context_token};
use kv_types::{
    Epoch, Failure, Guarantee, Key, Namespace, NamespaceId, NodeId, Placement, Reason, ReplicaCount,
    Replication, RingPartition,
};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use crate::aside::Aside;
use crate::layout::{Place, Slice};
use crate::limits;
use crate::quorum::Plan;
use crate::replica::Replica;
use crate::standing::Standing;

/// The settings of a node.
#[derive(Debug, Clone)]
pub struct AvailableConfig {
    /// This node.
    pub node_id: NodeId,
    /// `kv_storage::Recovery::tier_lost`: this directory lost data that others rely on. The server
    /// acknowledges it to storage only after [`Available::start`] returned.
    pub tier_lost: bool,
    /// How long a replica may be silent before another stands in.
    pub patience: Duration,
    /// How long an entry node waits for the replica that coordinates for it.
    pub forward_patience: Duration,
    /// Bytes of hints that this node holds at most.
    pub hint_bytes: u64,
    /// Whether node clocks are compared with those of the other primaries.
    pub compares: bool,
    /// Bytes of the dot logs on the disk; beyond it the oldest entries of each are given up.
    pub log_bytes: u64,
}

impl AvailableConfig {
    /// The defaults.
    pub fn new(node_id: NodeId, tier_lost: bool) -> Self {
        Self {
            node_id,
            tier_lost,
            patience: limits::PATIENCE,
            forward_patience: limits::FORWARD_PATIENCE,
            hint_bytes: limits::HINT_BYTES,
            compares: true,
            log_bytes: limits::LOG_BYTES,
        }
    }
}

pub(crate) struct Node {
    pub(crate) me: NodeId,
    pub(crate) config: AvailableConfig,
    pub(crate) replica: Replica,
    pub(crate) peers: Peers,
    pub(crate) catalogue: watch::Receiver<Arc<Catalogue>>,
    pub(crate) standing: Standing,
    /// Hints that their targets do not take.
    pub(crate) aside: Aside,
    pub(crate) room: Arc<Semaphore>,
    pub(crate) repairs: Arc<Semaphore>,
    /// What is left for the bytes of answers of replicas.
    pub(crate) answers: Arc<Semaphore>,
    /// When a hint or a repair came last.
    pub(crate) hint_heard: Mutex<Option<Instant>>,
    pub(crate) stop: watch::Sender<bool>,
}

/// Everything that the catalogue says about one key.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) place: Place,
    pub(crate) primaries: Vec<NodeId>,
    pub(crate) fallbacks: Vec<NodeId>,
    pub(crate) replication: Replication,
    /// Of the ring's assignment: what requests that count are fenced by.
    pub(crate) ring_epoch: Epoch,
    /// Of the catalogue: what the receipt names.
    pub(crate) epoch: Epoch,
    pub(crate) catalogue: Arc<Catalogue>,
}

impl View {
    /// What a client has seen of the key, as it may hold it.
    pub(crate) fn context_of(&self, seen: &Seen) -> Bytes {
        context_of(&self.catalogue, &self.place, seen)
    }

    /// What a client says that it has seen of the key.
    ///
    /// Errors: `BAD_CONTEXT`, `FOREIGN_CONTEXT`.
    pub(crate) fn seen_of(&self, context: &Bytes) -> Result<Seen, Failure> {
        let Place { namespace, key, .. } = &self.place;
        decode_context_token(&self.catalogue.context_keys, *namespace, key, context)
    }

    pub(crate) fn address(&self) -> Address {
        Address { namespace: self.place.namespace, epoch: self.ring_epoch, ..Address::default() }
    }
}

/// What a client has seen of a key, as it may hold it.
pub(crate) fn context_of(catalogue: &Catalogue, place: &Place, seen: &Seen) -> Bytes {
    encode_context_token(&catalogue.context_keys, place.namespace, &place.key, seen)
}

pub(crate) fn ring_of<'a>(
    catalogue: &'a Catalogue,
    namespace: &Namespace,
) -> Result<(&'a Ring, Replication), Failure> {
    match namespace.placement {
        Placement::Strong { .. } => Err(Failure::new(
            Reason::ModeMismatch,
            format!("namespace `{}` is strong; this is offered by available namespaces", namespace.name),
        )),
        Placement::Available { ring, replication } => catalogue
            .rings
            .get(&ring)
            .map(|ring| (ring, replication))
            .ok_or_else(|| Failure::new(Reason::NotReady, format!("this node does not know {ring} yet"))),
    }
}

impl Node {
    pub(crate) fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&self.catalogue.borrow())
    }

    /// A hint or a repair has come.
    pub(crate) fn note_hint(&self) {
        *self.hint_heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether hints or repairs have come lately: more are likely to.
    pub(crate) fn hints_arrive(&self) -> bool {
        let heard = *self.hint_heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.is_some_and(|at| at.elapsed() < limits::CATCH_UP_BY_LOG)
    }

    /// Whether this node is a primary of a ring partition.
    pub(crate) fn keeps(&self, slice: Slice) -> bool {
        self.others_of(slice).is_some()
    }

    /// The other primaries of a ring partition that this node keeps.
    pub(crate) fn others_of(&self, slice: Slice) -> Option<Vec<NodeId>> {
        let catalogue = self.catalogue();
        let primaries = catalogue.rings.get(&slice.ring)?.primaries(slice.partition);
        let others = primaries.iter().copied().filter(|other| *other != self.me).collect();
        primaries.contains(&self.me).then_some(others)
    }

    /// The ring partitions of a ring that this node keeps as a primary.
    pub(crate) fn kept(&self, ring: &Ring) -> Vec<Slice> {
        (0u32..)
            .zip(&ring.assignment)
            .filter(|(_, primaries)| primaries.contains(&self.me))
            .map(|(partition, _)| Slice { ring: ring.id, partition: RingPartition(partition) })
            .collect()
    }

    pub(crate) fn view(&self, namespace: &Namespace, key: Key) -> Result<View, Failure> {
        let catalogue = self.catalogue();
        let (ring, replication) = ring_of(&catalogue, namespace)?;
        let partition = ring.partition_of(token(namespace.id, key.as_bytes()));
        let slice = Slice { ring: ring.id, partition };
        Ok(View {
            place: Place { slice, namespace: namespace.id, key: key.as_bytes().clone() },
            primaries: ring.primaries(partition).to_vec(),
            fallbacks: ring.fallbacks(partition, &catalogue.members),
            replication,
            ring_epoch: ring.epoch,
            epoch: catalogue.epoch,
            catalogue,
        })
    }

    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        node == self.me || self.peers.liveness(node).is_up()
    }

    /// Whether this node keeps the key's ring partition and can tell old requests for it from new ones. A
    /// node that still pulls cannot: the request may be one that its lost directory took.
    pub(crate) fn may_coordinate(&self, view: &View) -> bool {
        view.primaries.contains(&self.me) && self.is_whole() && self.knows(&view.place)
    }

    /// Whether this node lacks nothing of any ring.
    pub(crate) fn is_whole(&self) -> bool {
        self.standing.is_whole() && !self.replica.is_put_back()
    }

    /// Whether this node has all that it should have of a key, and may say so.
    pub(crate) fn knows(&self, place: &Place) -> bool {
        self.standing.knows(place) && !self.replica.is_put_back()
    }

    /// Whether the ring partition lacks nothing here, but for single keys.
    pub(crate) fn serves(&self, slice: Slice) -> bool {
        self.standing.serves(slice) && !self.replica.is_put_back()
    }

    /// The nodes that a request may use, by what this node knows of the others now. `avoid` did not answer
    /// lately.
    pub(crate) fn plan(&self, view: &View, needed: u8, strict: bool, avoid: &[NodeId]) -> Plan {
        let worth = |node: NodeId| self.is_up(node) && !avoid.contains(&node);
        Plan {
            me: self.me,
            primaries: view.primaries.iter().map(|node| (*node, worth(*node))).collect(),
            fallbacks: view
                .fallbacks
                .iter()
                .copied()
                .filter(|node| *node != self.me && worth(*node))
                .collect(),
            needed: usize::from(needed),
            strict,
            patience: self.config.patience,
        }
    }

    /// Waits for the log, until the deadline of the request.
    pub(crate) async fn durable_by(&self, position: Position, deadline: Instant) -> Result<(), Failure> {
        match timeout_at(deadline, self.replica.durable(position)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::new(Reason::ResultUnknown, "the disk did not answer by the deadline")),
        }
    }
}

/// Ends when the node stops.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the node is gone altogether.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// How many replicas a request wants: its own number, or the namespace's.
pub(crate) fn count(asked: Option<ReplicaCount>, default: u8, n: u8) -> Result<u8, Failure> {
    asked.map_or(Ok(default), |asked| asked.of(n))
}

/// Whether a request for so many replicas can keep what its namespace promises, whose number is `usual`.
/// Reads and writes may ask for more: fewer of the one would miss fewer of the other.
///
/// Errors: `INVALID_REQUEST`.
pub(crate) fn keeps_promise(namespace: &Namespace, asked: u8, usual: u8) -> Result<(), Failure> {
    if namespace.guarantee == Guarantee::Eventual || asked >= usual {
        return Ok(());
    }
    let Namespace { name, guarantee, .. } = namespace;
    let message = format!(
        "namespace `{name}` promises {guarantee}: a request may ask for more than {usual} of the replicas, not for {asked}"
    );
    Err(Failure::new(Reason::InvalidRequest, message))
}

/// A message that carries a state to one replica.
pub(crate) fn replica_write(
    place: &Place,
    record: Bytes,
    hint_for: Option<NodeId>,
) -> (NamespaceId, request_frame::Body) {
    let message = peer::ReplicaWrite {
        ring: place.slice.ring.0,
        partition: place.slice.partition.0,
        key: place.key.clone(),
        record,
        hint_for: hint_for.map_or(0, |node| node.0),
        counted: hint_for.is_some(),
    };
    (place.namespace, request_frame::Body::ReplicaWrite(message))
}
