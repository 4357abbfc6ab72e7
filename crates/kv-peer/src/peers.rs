//! All peers of a node: who they are, the links to them, and what this node thinks of them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kv_env::Env;
use kv_proto::peer::{Ping, request_frame, response_frame};
use kv_types::{ClusterId, NodeId, catalogue::Member};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use crate::link::Link;
use crate::liveness::Heard;
use crate::{Address, Lane, Liveness, Patience, PeerConfig, PeerError, Unsent};

/// Calls to other nodes. Clones share everything; [`Peers::shutdown`] ends them all.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<PeerConfig>,
    env: Env,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    stopped: watch::Sender<bool>,
}

struct Peer {
    address: String,
    heard: Arc<Heard>,
    links: BTreeMap<Lane, Arc<Link>>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.links.values().for_each(|link| link.stop());
    }
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peers of {}", self.inner.config.node_id)
    }
}

impl Peers {
    /// No peers yet: [`Self::set_members`] says who they are.
    pub fn new(config: PeerConfig, env: Env) -> Self {
        let inner = Inner {
            config: Arc::new(config),
            env,
            peers: RwLock::new(BTreeMap::new()),
            stopped: watch::Sender::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// This node.
    pub fn node_id(&self) -> NodeId {
        self.inner.config.node_id
    }

    /// Its cluster.
    pub fn cluster_id(&self) -> ClusterId {
        self.inner.config.cluster_id
    }

    pub(crate) fn config(&self) -> Arc<PeerConfig> {
        Arc::clone(&self.inner.config)
    }

    pub(crate) fn stopped(&self) -> watch::Receiver<bool> {
        self.inner.stopped.subscribe()
    }

    /// Says who the members are, this node perhaps among them. Idempotent: links to members that stay with
    /// the same address are kept. New ones are connected at once, and pinged when nothing else is asked.
    pub fn set_members(&self, members: Vec<Member>) {
        let mut peers = self.inner.peers.write().unwrap_or_else(PoisonError::into_inner);
        if *self.inner.stopped.borrow() {
            return;
        }
        let mut next = BTreeMap::new();
        for member in members {
            if member.id == self.node_id() {
                continue;
            }
            let peer = match peers.remove(&member.id) {
                Some(peer) if peer.address == member.peer_address => peer,
                _ => Arc::new(self.connect(&member)),
            };
            next.insert(member.id, peer);
        }
        *peers = next;
    }

    fn connect(&self, member: &Member) -> Peer {
        let Inner { config, env, .. } = &*self.inner;
        let dial = config.address_map.get(&member.peer_address).unwrap_or(&member.peer_address);
        let heard = Arc::new(Heard::new());
        let link = |lane| {
            let env = Env { entropy: env.entropy.fork(), ..env.clone() };
            Arc::new(Link::new(Arc::clone(config), env, member.id, lane, dial.clone(), Arc::clone(&heard)))
        };
        let links: BTreeMap<Lane, Arc<Link>> = Lane::ALL.into_iter().map(|lane| (lane, link(lane))).collect();
        let mut tasks: Vec<AbortHandle> =
            links.values().map(|link| tokio::spawn(Arc::clone(link).run()).abort_handle()).collect();
        if let Some(control) = links.get(&Lane::Control) {
            let ping = ping(Arc::clone(control), Arc::clone(&heard), Arc::clone(config));
            tasks.push(tokio::spawn(ping).abort_handle());
        }
        Peer { address: member.peer_address.clone(), heard, links, tasks }
    }

    fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.inner.peers.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    /// Asks a peer. Fails at once when there is no connection (except during the first attempt to get one) or
    /// no room; otherwise ends by the deadline. Dropping the future gives the call up: if it was still queued
    /// it is never sent.
    pub async fn call(
        &self,
        to: NodeId,
        lane: Lane,
        about: Address,
        body: request_frame::Body,
        deadline: Instant,
    ) -> Result<response_frame::Body, PeerError> {
        self.call_with(to, lane, about, body, Patience::Until(deadline)).await
    }

    /// As [`Self::call`], with another kind of patience.
    pub async fn call_with(
        &self,
        to: NodeId,
        lane: Lane,
        about: Address,
        body: request_frame::Body,
        patience: Patience,
    ) -> Result<response_frame::Body, PeerError> {
        let peer = self.peer(to);
        let link = peer.as_ref().and_then(|peer| peer.links.get(&lane)).cloned();
        drop(peer);
        match link {
            Some(link) => link.call(about, body, patience).await,
            None => {
                Err(PeerError::not_sent(Unsent::Invalid, format!("{to} is not a peer of {}", self.node_id())))
            }
        }
    }

    /// This node's own opinion of another.
    pub fn liveness(&self, node: NodeId) -> Liveness {
        self.peer(node).map_or(Liveness::STRANGER, |peer| self.opinion(&peer))
    }

    /// This node's opinion of every peer, by id.
    pub fn snapshot(&self) -> Vec<(NodeId, Liveness)> {
        let peers = self.inner.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.iter().map(|(node, peer)| (*node, self.opinion(peer))).collect()
    }

    fn opinion(&self, peer: &Peer) -> Liveness {
        peer.heard.opinion(self.inner.config.suspect_after, self.inner.config.down_after)
    }

    /// Closes all links and all streams that [`crate::service`] serves. Calls under way end as lost or not
    /// sent.
    pub fn shutdown(&self) {
        let mut peers = self.inner.peers.write().unwrap_or_else(PoisonError::into_inner);
        self.inner.stopped.send_replace(true);
        peers.clear();
    }
}

/// Asks whether the peer is there when it has answered nothing for a while; the link notes every answer.
async fn ping(control: Arc<Link>, heard: Arc<Heard>, config: Arc<PeerConfig>) {
    let mut asked: Option<Instant> = None;
    loop {
        let rest = |ago: Duration| config.ping_every.saturating_sub(ago);
        let answered = heard.ago().map_or(Duration::ZERO, rest);
        let wait = answered.max(asked.map_or(Duration::ZERO, |at| rest(at.elapsed())));
        if !wait.is_zero() {
            sleep(wait).await;
            continue;
        }
        asked = Some(Instant::now());
        let deadline = Instant::now() + config.suspect_after;
        let _ = control
            .call(Address::default(), request_frame::Body::Ping(Ping {}), Patience::Until(deadline))
            .await;
    }
}
