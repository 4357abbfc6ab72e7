//! Five whole nodes as hosts of the simulation. What a node may keep across its lives - disk, lower tier,
//! wall clock - lives here, outside of its host; everything else dies with it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kv_env::{Entropy, Env};
use kv_raft::NodeRuntime;
use kv_server::{
    DynamoSettings, LimitSettings, Node, NodeConfig, NodeEnv, PeerSettings, RaftSettings, StorageSettings,
};
use kv_storage::Drive;
use kv_storage::tier::{MemTiers, TierSource};
use kv_types::catalogue::Member;
use kv_types::{ClusterId, NamespaceId, NodeId};

use super::clock::SimClock;
use super::disk::SimDisk;
use super::mix;
use super::network::SimNetwork;
use super::trace::Trace;

/// Nodes of the simulated cluster.
pub const NODES: u64 = 5;
/// Where each node listens for clients.
pub const CLIENT_PORT: u16 = 7101;
const PEER_PORT: u16 = 7201;
const DIR: &str = "/data";

/// Every node.
pub fn nodes() -> impl Iterator<Item = NodeId> + Clone {
    (1..=NODES).map(NodeId)
}

/// Where clients reach a node.
pub fn client_address(node: NodeId) -> String {
    format!("{node}:{CLIENT_PORT}")
}

/// What a node is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It opens its storage, or joins.
    Starting,
    /// It serves.
    Up,
    /// It stopped by itself, and why.
    Stopped(String),
    /// It did not start, and why.
    Refused(String),
    /// A fault took it down.
    Down,
}

/// Sizes and times that the seed chooses: small, so that what is rare in production happens every second.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[raft]`.
    pub raft: RaftSettings,
    /// `[storage]`.
    pub storage: StorageSettings,
    /// `[dynamo]`.
    pub dynamo: DynamoSettings,
    /// `[peer]`.
    pub peer: PeerSettings,
}

impl Settings {
    /// Of a seed.
    pub fn draw(dice: &mut fastrand::Rng) -> Self {
        let snapshot_every = [30, 60, 150, 1_000];
        let mut raft = RaftSettings {
            snapshot_every: *dice.choice(&snapshot_every).unwrap_or(&100),
            // On some seeds a short absence needs a snapshot, on others it tests the cutting of tails.
            entries_kept: *dice.choice(&[5_u64, 20, 500]).unwrap_or(&20),
            // Many messages for a small state, so that faults strike in the middle of a transfer.
            transfer_chunk_size: 1 << 10,
            ..RaftSettings::default()
        };
        let segment_size = *dice.choice(&[64_u64 << 10, 256 << 10, 1 << 20]).unwrap_or(&(256 << 10));
        // Of the smaller one a stalled tier leaves little after a while.
        let memtable_size = *dice.choice(&[512_u64 << 10, 2 << 20]).unwrap_or(&(2 << 20));
        let storage = StorageSettings {
            segment_size,
            max_log_size: segment_size * 32,
            memtable_size,
            // So little that rows leave it.
            cache_size: memtable_size / 32,
            checkpoint_log_size: segment_size,
            checkpoint_interval: Duration::from_secs(dice.u64(1..5)),
            ..StorageSettings::default()
        };
        let max_hints_size = *dice.choice(&[16_u64 << 10, 64 << 20]).unwrap_or(&(64 << 20));
        let dynamo = DynamoSettings { max_hints_size, compare_clocks: false, ..DynamoSettings::default() };
        // On some seeds proposals wait for their turn.
        raft.pipeline_entries = *dice.choice(&[1_u64, 2, 128]).unwrap_or(&128);
        Self { raft, storage, dynamo, peer: PeerSettings::default() }
    }
}

/// What outlives a node's lives.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The node.
    pub node: NodeId,
    /// Its disk.
    pub disk: SimDisk,
    /// Its lower tier.
    pub tiers: MemTiers,
    /// Its wall clock.
    pub clock: SimClock,
    settings: Settings,
    seed: u64,
    shared: Arc<Mutex<Shared>>,
    trace: Trace,
}

#[derive(Debug)]
struct Shared {
    state: State,
    lives: u64,
    /// While it lives: no one else keeps it.
    node: Weak<Node>,
}

impl Machine {
    fn new(node: NodeId, seed: u64, settings: Settings, trace: Trace) -> Self {
        let entropy = Entropy::seeded(mix(seed, 0x0d15_c000 + node.0));
        Self {
            node,
            disk: SimDisk::new(&entropy),
            tiers: MemTiers::new(),
            clock: SimClock::default(),
            settings,
            seed,
            shared: Arc::new(Mutex::new(Shared { state: State::Starting, lives: 0, node: Weak::new() })),
            trace,
        }
    }

    /// What the node is doing.
    pub fn state(&self) -> State {
        self.shared().state.clone()
    }

    /// Notes what it is doing.
    pub fn set_state(&self, state: State) {
        self.trace.line(self.node, format_args!("{state:?}"));
        self.shared().state = state;
    }

    /// How often it was started.
    pub fn lives(&self) -> u64 {
        self.shared().lives
    }

    /// The power goes: what was not synced is lost, or torn as the seed decides.
    pub fn power_cut(&self) {
        self.disk.memory().crash();
        self.tiers.crash();
    }

    /// The process dies and the machine lives on: what was written survives.
    pub fn killed(&self) {
        self.disk.memory().kill();
    }

    /// The lower tier is gone, as if its folder had been deleted.
    pub fn lose_tier(&self) {
        self.tiers.delete(&PathBuf::from(DIR));
    }

    /// The lower tier takes a batch only so long after the last one, or none with [`Duration::MAX`].
    pub fn pause_tier(&self, pause: Duration) {
        self.tiers.set_pause(&PathBuf::from(DIR), pause);
    }

    /// Batches for which the lower tier kept the engine waiting.
    pub fn tier_waits(&self) -> u64 {
        self.tiers.kept_waiting(&PathBuf::from(DIR))
    }

    /// How many rows the node has of a namespace; in words why that cannot be told.
    pub fn rows_of(&self, namespace: NamespaceId) -> Result<usize, String> {
        let node = self.shared().node.upgrade().ok_or("it does not run")?;
        node.rows_of(namespace)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> NodeConfig {
        let members = nodes().map(|id| Member {
            id,
            client_address: client_address(id),
            peer_address: format!("{id}:{PEER_PORT}"),
            zone: String::new(),
        });
        NodeConfig {
            cluster_id: ClusterId(u128::from(mix(self.seed, 0xc105))),
            node_id: self.node,
            members: members.collect(),
            // The hosts of the simulated network have names that only it resolves.
            insecure: true,
            data_dir: PathBuf::from(DIR),
            address_map: BTreeMap::new(),
            raft: self.settings.raft.clone(),
            storage: self.settings.storage.clone(),
            dynamo: self.settings.dynamo.clone(),
            peer: self.settings.peer.clone(),
            limits: LimitSettings::default(),
        }
    }

    /// One life: what the host of this node runs. Every life has a seed of its own, from which all its
    /// randomness follows.
    pub async fn live(self) -> turmoil::Result {
        let life = {
            let mut shared = self.shared();
            shared.lives += 1;
            shared.lives
        };
        self.set_state(State::Starting);
        let seed = mix(self.seed, self.node.0 * 1_000 + life);
        let env = Env {
            clock: Arc::new(self.clock.clone()),
            entropy: Entropy::seeded(seed),
            network: Arc::new(SimNetwork),
        };
        let tiers: Arc<dyn TierSource> = Arc::new(self.tiers.clone());
        let node_env = NodeEnv {
            env,
            disk: Arc::new(self.disk.clone()),
            tiers: Arc::new(move |_| Arc::clone(&tiers)),
            drive: Drive::Manual,
        };
        NodeRuntime::scope(mix(seed, 0x4af7), async move {
            match Node::start(self.config(), node_env).await {
                Ok(node) => {
                    let node = Arc::new(node);
                    self.shared().node = Arc::downgrade(&node);
                    self.set_state(State::Up);
                    let why = node.stopped().await;
                    self.set_state(State::Stopped(why));
                }
                Err(error) => self.set_state(State::Refused(error.to_string())),
            }
        })
        .await;
        // A process that ended is taken away by the supervisor; until then nothing of it moves.
        std::future::pending().await
    }
}

/// All machines, by node.
#[derive(Debug, Clone)]
pub struct Cluster(BTreeMap<NodeId, Machine>);

impl Cluster {
    /// Machines with empty disks.
    pub fn new(seed: u64, settings: &Settings, trace: &Trace) -> Self {
        let machine = |node| (node, Machine::new(node, seed, settings.clone(), trace.clone()));
        Self(nodes().map(machine).collect())
    }

    /// The machine of a node.
    pub fn machine(&self, node: NodeId) -> Option<&Machine> {
        self.0.get(&node)
    }

    /// All of them.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.0.values()
    }

    /// Nodes that serve.
    pub fn up(&self) -> Vec<NodeId> {
        self.0.values().filter(|machine| machine.state() == State::Up).map(|machine| machine.node).collect()
    }

    /// Makes every machine a host of the simulation.
    pub fn register(&self, sim: &mut turmoil::Sim<'_>) {
        for machine in self.0.values().cloned() {
            sim.host(machine.node.to_string(), move || machine.clone().live());
        }
    }
}
