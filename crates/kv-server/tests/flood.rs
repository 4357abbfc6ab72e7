//! Bulk traffic must not cause elections: while every fsync takes 100 ms and clients flood the available
//! namespace, the leaders of both groups stay, and a strong write still gets through.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "a test"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{PATIENCE, blind, config, eventually, members, within};
use kv_proto::admin::admin_service_client::AdminServiceClient;
use kv_proto::v1::kv_service_client::KvServiceClient;
use kv_proto::{admin, v1};
use kv_server::{Node, NodeEnv, TiersInstead};
use kv_storage::disk::MemDisk;
use kv_storage::tier::{MemTiers, TierSource};
use kv_types::ClientId;
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};

const SLOW_SYNC: Duration = Duration::from_millis(100);
const FLOOD_FOR: Duration = Duration::from_secs(4);
const FLOODERS: u64 = 64;
const VALUE_BYTES: usize = 16 << 10;

fn channel(node: &Node) -> Channel {
    Endpoint::from_shared(format!("http://{}", node.client_address())).unwrap().connect_lazy()
}

/// A request identity that is not used yet.
fn mutation() -> Option<v1::Mutation> {
    static CLIENTS: AtomicU64 = AtomicU64::new(1);
    let client = u128::from(CLIENTS.fetch_add(1, Ordering::Relaxed)) << 64 | 3;
    Some(v1::Mutation {
        client_id: kv_proto::client_id_bytes(ClientId(client)),
        seq: 1,
        issued_at_ms: kv_env::Env::real().clock.wall_ms(),
        lowest_unacked: 1,
        attempt: 1,
    })
}

async fn status(node: &Node) -> admin::GetStatusResponse {
    let asked = AdminServiceClient::new(channel(node)).get_status(within(admin::GetStatusRequest {})).await;
    asked.unwrap().into_inner()
}

fn in_memory() -> TiersInstead {
    let tiers: Arc<dyn TierSource> = Arc::new(MemTiers::default());
    Arc::new(move |_| Arc::clone(&tiers))
}

/// Group to leader and term, once the node knows all of it.
async fn leaders(node: &Node) -> BTreeMap<u32, (u64, u64)> {
    status(node).await.groups.iter().map(|group| (group.group, (group.leader, group.term))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_on_a_slow_disk_causes_no_election() {
    let members = members(3);
    let disks: Vec<Arc<MemDisk>> = (0..3).map(|seed| Arc::new(MemDisk::new(seed))).collect();
    let mut nodes = Vec::new();
    for (member, disk) in members.iter().zip(&disks) {
        let env = NodeEnv { disk: disk.clone(), tiers: in_memory(), ..NodeEnv::real() };
        let config = config(member.id, members.clone(), Path::new("data"));
        nodes.push(Node::start(config, env).await.unwrap());
    }
    for node in &nodes {
        eventually("both groups have a leader and nothing is rebuilt", async || {
            let status = status(node).await;
            status.epoch > 0
                && status.groups.len() == 2
                && status.groups.iter().all(|group| group.leader > 0 && group.quorum)
                && status.rebuilding_partitions == 0
        })
        .await;
    }
    for (name, mode) in [("bank", admin::Mode::Strong), ("cart", admin::Mode::Available)] {
        let request = admin::CreateNamespaceRequest {
            name: name.into(),
            mode: mode.into(),
            mutation: mutation(),
            ..Default::default()
        };
        AdminServiceClient::new(channel(&nodes[0])).create_namespace(within(request)).await.unwrap();
    }
    for node in &nodes {
        eventually("the namespaces are known", async || status(node).await.epoch >= 3).await;
    }

    let before = leaders(&nodes[0]).await;
    disks.iter().for_each(|disk| disk.set_sync_delay(SLOW_SYNC));
    let stop = Instant::now() + FLOOD_FOR;
    let mut flooders = Vec::new();
    for flooder in 0..FLOODERS {
        let mut cart = KvServiceClient::new(channel(&nodes[flooder as usize % nodes.len()]));
        flooders.push(tokio::spawn(async move {
            let (mut acknowledged, mut waited) = (0u64, Duration::ZERO);
            while Instant::now() < stop {
                let begun = Instant::now();
                let put = v1::PutRequest {
                    namespace: "cart".into(),
                    key: format!("{flooder} {acknowledged}").into(),
                    value: vec![flooder as u8; VALUE_BYTES].into(),
                    mutation: mutation(),
                    context: blind(),
                    ..Default::default()
                };
                if cart.put(within(put)).await.is_ok() {
                    acknowledged += 1;
                    waited += begun.elapsed();
                }
            }
            (acknowledged, waited)
        }));
    }
    let mut strong = 0;
    while Instant::now() < stop {
        let put = v1::PutRequest {
            namespace: "bank".into(),
            key: "k".into(),
            value: "v".into(),
            mutation: mutation(),
            ..Default::default()
        };
        let mut bank = KvServiceClient::new(channel(&nodes[strong % nodes.len()]));
        timeout(PATIENCE, bank.put(within(put))).await.unwrap().expect("Raft goes first on the log");
        strong += 1;
    }
    let (mut acknowledged, mut waited) = (0, Duration::ZERO);
    for flooder in flooders {
        let (count, time) = flooder.await.unwrap();
        (acknowledged, waited) = (acknowledged + count, waited + time);
    }
    disks.iter().for_each(|disk| disk.set_sync_delay(Duration::ZERO));

    println!("{acknowledged} available writes and {strong} strong ones during the flood");
    assert!(acknowledged >= FLOODERS, "it was a flood: {acknowledged}");
    assert!(waited / u32::try_from(acknowledged).unwrap() >= SLOW_SYNC, "the disk was slow");
    assert!(strong >= 4, "strong writes went on: {strong}");
    for node in &nodes {
        assert_eq!(leaders(node).await, before, "an election happened");
    }
    for node in nodes {
        node.shutdown().await;
    }
}
