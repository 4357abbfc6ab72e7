//! What a strong put costs its node, by how many are under way at a time, and what the apply of its entry
//! costs: on new keys and on hot ones. `cargo bench -p kv-raft --bench apply [-- seconds]`
//!
//! The state machine is private, so a group of one node is asked through the public interface, without
//! network and on storage in memory. The processor time of a put is that of the whole process: codec, log,
//! openraft, apply and drain. How long the steps of apply take, and how many, is what the node counts itself.
//!
//! Apply alone is seen at a start without a tier: all entries of the log are applied again, 64 in a step, and
//! nothing else happens.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use kv_env::Env;
use kv_peer::{PeerConfig, Peers};
use kv_proto::admin;
use kv_raft::{RaftConfig, Strong};
use kv_storage::disk::MemDisk;
use kv_storage::tier::MemTiers;
use kv_storage::{Storage, StorageOptions};
use kv_types::call::{Put, Quorum};
use kv_types::catalogue::Member;
use kv_types::{
    Call, ClientId, ClusterId, GroupId, Hop, Key, LatencySummary, Mutation, Namespace, NodeId, RequestId,
    Value,
};

const DIR: &str = "memory";
const CLUSTER: ClusterId = ClusterId(9);
const ME: NodeId = NodeId(1);
const KEY: usize = 16;
const VALUE: usize = 100;
/// Puts that are under way at a time.
const UNDER_WAY: [usize; 3] = [1, 16, 256];
/// As many keys are hot.
const HOT: u64 = 64;
/// Entries that are applied again.
const AGAIN: u64 = 100_000;
/// Rounds before the clock runs: sessions are opened, threads are awake.
const WARM_UP: usize = 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// What outlives a node.
#[derive(Default)]
struct Media {
    disk: Option<Arc<MemDisk>>,
    tiers: Arc<MemTiers>,
}

impl Media {
    fn open(&mut self) -> Storage {
        let options = StorageOptions {
            segment_bytes: 16 << 20,
            // As a node has it.
            filtered_tables: vec![kv_raft::VALUES],
            filter_bytes: 64 << 20,
            ..StorageOptions::memory(DIR)
        };
        let disk = self.disk.get_or_insert_with(|| Arc::new(MemDisk::new(1)));
        Storage::open(options, disk.clone(), self.tiers.clone()).unwrap().0
    }

    fn lose_tier(&mut self) {
        self.tiers = Arc::default();
    }
}

/// A group of one node.
struct Node {
    strong: Strong,
    peers: Peers,
    storage: Storage,
}

impl Node {
    async fn start(media: &mut Media) -> Node {
        let (env, storage) = (Env::real(), media.open());
        let peers = Peers::new(PeerConfig::new(CLUSTER, ME), env.clone());
        let (client_address, peer_address) = ("client-of-n1".to_owned(), "peer-of-n1".to_owned());
        let member = Member { id: ME, client_address, peer_address, zone: String::new() };
        let mut config = RaftConfig::new(CLUSTER, ME, vec![member]);
        // All of a round at once: how they are divided among clients is not measured.
        config.pipeline_entries = config.pipeline_entries.max(UNDER_WAY[2] as u64);
        let strong = Strong::start(config, storage.clone(), peers.clone(), env).await.unwrap();
        Node { strong, peers, storage }
    }

    async fn put(&self, bank: &Namespace, key: Key, value: Value, mutation: Mutation) {
        let call = Call::Put(Put { key, value, mutation, context: None, quorum: Quorum::default() });
        let deadline = tokio::time::Instant::now() + PATIENCE;
        self.strong.serve(bank, call, deadline, Hop::Client).await.unwrap();
    }

    /// The steps of apply of the group of strong namespaces.
    fn steps(&self) -> LatencySummary {
        let all = self.strong.latencies();
        let of_apply =
            |(part, group, _): &(&str, GroupId, _)| *part == "apply_step" && *group == GroupId::FIRST_DATA;
        all.into_iter().find(of_apply).unwrap().2
    }

    async fn stop(self) {
        self.strong.shutdown().await;
        self.peers.shutdown();
        self.storage.shutdown().await;
    }
}

/// A strong namespace, as soon as the node leads.
async fn namespace(strong: &Strong) -> Namespace {
    let request = admin::CreateNamespaceRequest {
        name: "bank".into(),
        mode: admin::Mode::Strong.into(),
        mutation: Some(mutation(ClientId(1), 1).into()),
        ..Default::default()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut catalogue = strong.catalogue();
    loop {
        let created = strong.create_namespace(request.clone(), deadline, Hop::Client).await;
        if created.is_ok() {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{created:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let known = catalogue.wait_for(|catalogue| catalogue.namespace("bank").is_some()).await.unwrap();
    known.namespace("bank").unwrap().clone()
}

fn mutation(client_id: ClientId, seq: u64) -> Mutation {
    let request_id = RequestId { client_id, seq };
    Mutation { request_id, issued_at_ms: Env::real().clock.wall_ms(), lowest_unacked: seq, attempt: 1 }
}

/// Clients that put at the same time, again when all have their answers.
struct Clients {
    bank: Namespace,
    count: usize,
    /// Every put goes to a key that was never written.
    new_keys: bool,
    rounds: u64,
    value: Bytes,
}

impl Clients {
    /// With open sessions.
    async fn of(node: &Node, count: usize, new_keys: bool) -> Clients {
        let bank = namespace(&node.strong).await;
        let mut clients = Clients { bank, count, new_keys, rounds: 0, value: vec![7; VALUE].into() };
        for _ in 0..WARM_UP {
            clients.round(node).await;
        }
        clients
    }

    fn puts(&self) -> u64 {
        self.rounds * self.count as u64
    }

    fn key(&self, client: usize) -> Key {
        let number = self.puts() + client as u64;
        let number = if self.new_keys { number } else { number % HOT };
        // In no order, each once.
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut key = mixed.to_be_bytes().to_vec();
        key.resize(KEY, 0);
        Key::new(key).unwrap()
    }

    async fn round(&mut self, node: &Node) {
        let puts = (0..self.count).map(|client| {
            let mutation = mutation(ClientId(client as u128 + 2), self.rounds + 1);
            node.put(&self.bank, self.key(client), Value::new(self.value.clone()).unwrap(), mutation)
        });
        join_all(puts).await;
        self.rounds += 1;
    }
}

/// Seconds of processor time of this process.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn name(new_keys: bool) -> &'static str {
    if new_keys { "new" } else { "hot" }
}

/// Puts for a while: a line of the first table.
async fn puts(count: usize, new_keys: bool, time: Duration) {
    let node = Node::start(&mut Media::default()).await;
    let mut clients = Clients::of(&node, count, new_keys).await;
    let (steps_before, puts_before) = (node.steps().count, clients.puts());
    let (begun, cpu_before) = (Instant::now(), cpu());
    while begun.elapsed() < time {
        clients.round(&node).await;
    }
    let (took, busy) = (begun.elapsed().as_secs_f64(), cpu() - cpu_before);
    let (puts, steps) = ((clients.puts() - puts_before) as f64, node.steps());
    println!(
        "| {count} | {} | {:.0} | {:.0} | {:.1} | {} | {} |",
        name(new_keys),
        puts / took,
        busy * 1e9 / puts,
        puts / (steps.count - steps_before) as f64,
        steps.p50.as_micros(),
        steps.p99.as_micros(),
    );
    node.stop().await;
}

/// Applies the entries of a log again: a line of the second table.
async fn again(new_keys: bool) {
    let mut media = Media::default();
    let node = Node::start(&mut media).await;
    let mut clients = Clients::of(&node, UNDER_WAY[2], new_keys).await;
    while clients.puts() < AGAIN {
        clients.round(&node).await;
    }
    node.stop().await;
    media.lose_tier();
    let (begun, cpu_before) = (Instant::now(), cpu());
    let node = Node::start(&mut media).await;
    let (took, busy) = (begun.elapsed().as_secs_f64(), cpu() - cpu_before);
    let status = node.strong.status();
    let applied = status.iter().find(|group| group.group == GroupId::FIRST_DATA.0).unwrap().applied_index;
    let steps = node.steps();
    let in_a_step = applied as f64 / steps.count as f64;
    // The last of them may be found to be committed only when the node leads again.
    let all = applied + 2 * UNDER_WAY[2] as u64 > AGAIN && in_a_step <= 64.0;
    assert!(all, "{applied} entries were applied in {} steps", steps.count);
    let apply = steps.p50.as_secs_f64() * 1e9 / in_a_step;
    println!(
        "| {applied} | {} | {in_a_step:.1} | {:.0} | {:.0} | {apply:.0} | {:.0} |",
        name(new_keys),
        took * 1e9 / applied as f64,
        busy * 1e9 / applied as f64,
        (KEY + VALUE) as f64 * 1e3 / apply,
    );
    node.stop().await;
}

fn main() {
    let seconds = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(3);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    println!("keys of {KEY} B, values of {VALUE} B, {HOT} hot keys");
    println!("| under way | keys | puts/s | CPU, ns a put | entries a step | step, p50 µs | p99 µs |");
    println!("|---|---|---|---|---|---|---|");
    for new_keys in [true, false] {
        for count in UNDER_WAY {
            runtime.block_on(puts(count, new_keys, Duration::from_secs(seconds)));
        }
    }
    println!(
        "\na start that applies the log again; nanoseconds an entry, of the start and of its steps alone"
    );
    println!("| entries | keys | entries a step | start | CPU | apply | apply, MB/s |");
    println!("|---|---|---|---|---|---|---|");
    for new_keys in [true, false] {
        runtime.block_on(again(new_keys));
    }
}
