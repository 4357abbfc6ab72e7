//! Namespaces are deleted: no node serves them any more, and in the end no node has anything of them, also
//! one that was away or began again.

use kv_proto::admin;
use kv_storage::TableId;
use kv_types::catalogue::FeatureLevel;
use kv_types::{Applied, Failure, GroupId, Hop, Namespace, NamespaceId, Reason};

use crate::support::{Asked, Client, Cluster, Node, get, put, soon, value, within};

/// Values, sessions and tombstones, whose keys are: space, namespace, and the rest.
const TABLES: [u16; 3] = [18, 20, 21];
/// The journal of histories.
const HISTORY: u16 = 22;
/// Group and generation.
const SPACE_BYTES: usize = 12;

/// Rows and streams of a namespace on a node, in whatever generation.
fn rows(node: &Node, namespace: NamespaceId) -> usize {
    let id = namespace.0.to_be_bytes();
    let is_of = |key: &[u8]| key.get(SPACE_BYTES..SPACE_BYTES + 8) == Some(&id[..]);
    let of_table = |table: u16| {
        let rows = node.storage.scan(TableId::new(table), &[], None, usize::MAX).unwrap();
        rows.iter().filter(|(key, _)| is_of(key)).count()
    };
    let streams = node.storage.streams(TableId::new(HISTORY), &[], &[255; 40]);
    TABLES.into_iter().map(of_table).sum::<usize>() + streams.iter().filter(|name| is_of(name)).count()
}

fn deletion(name: &str, client: &Client) -> admin::DeleteNamespaceRequest {
    admin::DeleteNamespaceRequest { name: name.into(), mutation: Some(client.mutation()) }
}

async fn delete(
    cluster: &Cluster,
    via: u64,
    request: &admin::DeleteNamespaceRequest,
) -> Result<admin::DeleteNamespaceResponse, Failure> {
    cluster.strong(via).delete_namespace(request.clone(), soon(), Hop::Client).await
}

async fn deleted(
    cluster: &Cluster,
    via: u64,
    request: &admin::DeleteNamespaceRequest,
) -> admin::DeleteNamespaceResponse {
    within("the deletion", || async { delete(cluster, via, request).await.ok() }).await
}

async fn filled(cluster: &Cluster, name: &str, client: &Client, keys: usize) -> Namespace {
    let namespace = cluster.namespace(name, &Client::new(client.id + 1_000)).await;
    let node = cluster.strong(*cluster.nodes.keys().next().unwrap());
    for key in 0..keys {
        put(node, &namespace, client.put(&format!("k{key}"), "v")).await;
    }
    namespace
}

async fn nothing_is_left(cluster: &Cluster, namespace: &Namespace) {
    within("nothing is left", || async {
        cluster.nodes.values().all(|node| rows(node, namespace.id) == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_is_served_by_no_one_and_leaves_nothing() {
    let cluster = Cluster::start(|_| {}).await;
    let bank = filled(&cluster, "bank", &Client::new(1), 60).await;
    let other = filled(&cluster, "other", &Client::new(2), 5).await;
    assert!(cluster.nodes.values().any(|node| rows(node, bank.id) > 60));
    let admin = Client::new(3);
    let request = deletion("bank", &admin);
    let leader = cluster.leader(GroupId::CATALOGUE).await;
    let via = leader % 3 + 1;
    let done = deleted(&cluster, via, &request).await;
    assert_eq!(done.namespace.unwrap().id, bank.id.0);
    // The node that was asked knows at once, and the level came with the first deletion.
    let catalogue = cluster.strong(via).catalogue().borrow().clone();
    assert_eq!((catalogue.namespace("bank"), catalogue.level), (None, FeatureLevel::DELETION));
    // A resend answers the same; another request finds nothing.
    let mut again = request.clone();
    again.mutation.as_mut().unwrap().attempt = 2;
    let resent = deleted(&cluster, leader, &again).await;
    assert_eq!(resent.namespace.unwrap().id, bank.id.0);
    assert!(resent.receipt.unwrap().deduplicated);
    let refused = delete(&cluster, leader, &deletion("bank", &admin)).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NamespaceUnknown, Applied::No));

    nothing_is_left(&cluster, &bank).await;
    // As a node does whose catalogue is older: it proposes, and reads, for the namespace that it knows.
    let data_leader = cluster.leader(GroupId::FIRST_DATA).await;
    let late = Client::new(9).put("late", "x");
    let refused = cluster.strong(data_leader).put(&bank, late, soon(), Hop::Client).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NamespaceUnknown, Applied::No), "{refused}");
    let refused = cluster.strong(data_leader).get(&bank, get("k1"), soon(), Hop::Client).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NamespaceUnknown, Applied::No), "{refused}");
    nothing_is_left(&cluster, &bank).await;
    assert_eq!(value(cluster.strong(data_leader), &other, "k3").await, ("v".into(), 4));
    // The name is free again, with another id and nothing in it.
    let second = cluster.namespace("bank", &Client::new(4)).await;
    assert!(second.id > other.id);
    assert_eq!(value(cluster.strong(data_leader), &second, "k1").await.1, 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_or_starts_again_removes_what_it_has() {
    let mut cluster = Cluster::start(|_| {}).await;
    let scratch = filled(&cluster, "scratch", &Client::new(1), 3).await;
    let bank = filled(&cluster, "bank", &Client::new(2), 40).await;
    let admin = Client::new(3);
    deleted(&cluster, 1, &deletion("scratch", &admin)).await;
    nothing_is_left(&cluster, &scratch).await;
    let away = cluster.leader(GroupId::FIRST_DATA).await % 3 + 1;
    cluster.kill(away).await;
    let via = away % 3 + 1;
    deleted(&cluster, via, &deletion("bank", &admin)).await;
    nothing_is_left(&cluster, &bank).await;
    // At once after its start, perhaps in the middle of the removal, once more.
    for _ in 0..2 {
        cluster.bring_up(away).await;
        cluster.kill(away).await;
    }
    cluster.bring_up(away).await;
    nothing_is_left(&cluster, &bank).await;
    cluster.stop().await;
}

/// A member that is not heard may be of a release that cannot read a deletion.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_deletion_waits_for_every_member() {
    let mut cluster = Cluster::start(|_| {}).await;
    let bank = filled(&cluster, "bank", &Client::new(1), 3).await;
    let away = cluster.leader(GroupId::CATALOGUE).await % 3 + 1;
    cluster.kill(away).await;
    let request = deletion("bank", &Client::new(2));
    let leader = cluster.leader(GroupId::CATALOGUE).await;
    let refused = delete(&cluster, leader, &request).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NotReady, Applied::No), "{refused}");
    assert!(refused.message.contains("did not say"), "{refused}");
    assert_eq!(value(cluster.strong(leader), &bank, "k1").await.1, 2);
    cluster.bring_up(away).await;
    deleted(&cluster, leader, &request).await;
    nothing_is_left(&cluster, &bank).await;
    cluster.stop().await;
}
