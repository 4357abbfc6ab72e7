//! Namespaces are deleted: no node serves them any more, and in the end no node has anything of them, also
//! one that was away or began again. With a grace they can be taken back, and nothing is lost; when it is
//! over they go, once.

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
    // The node that was asked knows at once.
    let catalogue = cluster.strong(via).catalogue().borrow().clone();
    assert_eq!(catalogue.namespace("bank"), None);
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

/// The snapshots and the log of a large namespace that is gone would take their room until much else was
/// written: of the catalogue's group too, because the groups share the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_room_of_a_large_namespace_comes_back_soon_after_it() {
    let cluster = Cluster::start(|config| {
        config.snapshot_every = 40;
        config.snapshot_freed_bytes = 256 << 10;
    })
    .await;
    let files = |node: &Node| {
        let files = node.storage.snapshots(GroupId::FIRST_DATA);
        files.list().unwrap().into_iter().map(|file| file.bytes).sum::<u64>()
    };
    let all = |said: &dyn Fn(&Node) -> bool| cluster.nodes.values().all(said).then_some(());
    // Also where two go one after the other and nothing else is written: then the second snapshot is of the
    // same entries as the first.
    for (round, names) in [(1, ["bank", "shop"]), (2, ["lone", ""])] {
        let mut filled = Vec::new();
        for (name, client) in names.into_iter().zip(1..).filter(|(name, _)| !name.is_empty()) {
            let client = Client::new(round * 100 + client);
            let namespace = cluster.namespace(name, &Client::new(client.id + 10)).await;
            for key in 0..60 {
                let value = "v".repeat(8 << 10);
                put(cluster.strong(1), &namespace, client.put(&format!("k{key}"), &value)).await;
            }
            filled.push(namespace);
        }
        within("large snapshots", || async { all(&|node| files(node) > 256 << 10) }).await;
        let written = last_indexes(&cluster);
        for (name, client) in names.into_iter().zip(1..).filter(|(name, _)| !name.is_empty()) {
            deleted(&cluster, 1, &deletion(name, &Client::new(round * 100 + client + 20))).await;
        }
        for namespace in &filled {
            nothing_is_left(&cluster, namespace).await;
        }
        within("small snapshots", || async { all(&|node| files(node) < 128 << 10) }).await;
        within("logs without what was written", || async {
            let gone = |id: &u64| {
                let statuses = cluster.strong(*id).status().into_iter();
                statuses.zip(&written).all(|(status, before)| status.purged_index >= *before)
            };
            cluster.nodes.keys().all(gone).then_some(())
        })
        .await;
    }
    cluster.stop().await;
}

/// The last index of each group, as the first node has it.
fn last_indexes(cluster: &Cluster) -> Vec<u64> {
    cluster.strong(1).status().into_iter().map(|status| status.last_index).collect()
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

/// A new cluster has what its members have, and a key for the contexts of its clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_begins_at_the_level_of_its_members() {
    let mut cluster = Cluster::start(|_| {}).await;
    let leader = cluster.leader(GroupId::CATALOGUE).await;
    let catalogue = cluster.strong(leader).catalogue().borrow().clone();
    assert_eq!((catalogue.level, catalogue.context_keys.iter().len()), (FeatureLevel::SUPPORTED, 1));
    // The key is the same everywhere, and survives a restart. Nothing that is shown has it.
    filled(&cluster, "bank", &Client::new(1), 3).await;
    cluster.kill(leader % 3 + 1).await;
    deleted(&cluster, leader, &deletion("bank", &Client::new(2))).await;
    cluster.bring_up(leader % 3 + 1).await;
    let known = |node: &Node| node.strong.catalogue().borrow().context_keys == catalogue.context_keys;
    within("the key everywhere", || async { cluster.nodes.values().all(known).then_some(()) }).await;
    cluster.stop().await;

    let cluster = Cluster::start(|config| config.supports = FeatureLevel::GRACE).await;
    let leader = cluster.leader(GroupId::CATALOGUE).await;
    let catalogue = cluster.strong(leader).catalogue().borrow().clone();
    assert_eq!((catalogue.level, catalogue.context_keys.iter().len()), (FeatureLevel::GRACE, 0));
    cluster.stop().await;
}

/// A member that is not heard may be of a release that cannot read a deletion.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_deletion_after_an_upgrade_waits_for_every_member() {
    let mut cluster = Cluster::upgraded().await;
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

fn scheduled(name: &str, grace_ms: Option<u64>, client: &Client) -> admin::ScheduleDeletionRequest {
    admin::ScheduleDeletionRequest { name: name.into(), grace_ms, mutation: Some(client.mutation()) }
}

/// Asks until it is done.
async fn schedule(
    cluster: &Cluster,
    via: u64,
    request: &admin::ScheduleDeletionRequest,
) -> admin::ScheduleDeletionResponse {
    within("the deletion with a grace", || async {
        cluster.strong(via).schedule_deletion(request.clone(), soon(), Hop::Client).await.ok()
    })
    .await
}

fn undeletion(name: &str, client: &Client) -> admin::UndeleteNamespaceRequest {
    admin::UndeleteNamespaceRequest { name: name.into(), mutation: Some(client.mutation()) }
}

fn known(cluster: &Cluster, at: u64, name: &str) -> Option<Namespace> {
    cluster.strong(at).catalogue().borrow().namespace(name).cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_is_undone_loses_nothing() {
    let mut cluster = Cluster::start(|_| {}).await;
    let bank = filled(&cluster, "bank", &Client::new(1), 20).await;
    let admin = Client::new(3);
    let request = scheduled("bank", Some(3_600_000), &admin);
    let leader = cluster.leader(GroupId::CATALOGUE).await;
    let via = leader % 3 + 1;
    let done = schedule(&cluster, via, &request).await;
    let due = done.namespace.unwrap().deleted_until_ms;
    let clock = kv_env::Env::real().clock;
    assert!(due.is_some_and(|due| due > clock.wall_ms() + 3_000_000 && due < clock.wall_ms() + 3_700_000));
    // The node that was asked knows at once.
    let marked = known(&cluster, via, "bank").unwrap();
    assert_eq!((marked.deletion_due_ms(), marked.settings_version), (due, bank.settings_version + 1));
    // A resend answers the same, from any node; another request finds it deleted.
    let mut again = request.clone();
    again.mutation.as_mut().unwrap().attempt = 2;
    let resent = schedule(&cluster, leader, &again).await;
    assert_eq!(resent.namespace.unwrap().deleted_until_ms, due);
    assert!(resent.receipt.unwrap().deduplicated);
    let other = scheduled("bank", None, &admin);
    let refused = cluster.strong(leader).schedule_deletion(other, soon(), Hop::Client).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::DeletionPending, Applied::No), "{refused}");
    // The mark is on every disk.
    cluster.kill(via).await;
    cluster.bring_up(via).await;
    within("the mark after a start", || async { known(&cluster, via, "bank")?.deletion }).await;

    let back = undeletion("bank", &admin);
    let undone = within("the undeletion", || async {
        cluster.strong(via).undelete_namespace(back.clone(), soon(), Hop::Client).await.ok()
    })
    .await;
    assert_eq!(undone.namespace.unwrap().deleted_until_ms, None);
    for id in 1..=3 {
        within("taken back everywhere", || async {
            (known(&cluster, id, "bank")?.settings_version == bank.settings_version + 2).then_some(())
        })
        .await;
        let present = known(&cluster, id, "bank").unwrap();
        assert_eq!((present.id, present.deletion), (bank.id, None));
        assert_eq!(value(cluster.strong(id), &present, "k19").await, ("v".into(), 20));
    }
    let again = undeletion("bank", &admin);
    let refused = cluster.strong(via).undelete_namespace(again, soon(), Hop::Client).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NamespaceExists, Applied::No), "{refused}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grace_that_is_over_deletes_once_under_any_leader() {
    let mut cluster = Cluster::start(|_| {}).await;
    let bank = filled(&cluster, "bank", &Client::new(1), 20).await;
    let other = filled(&cluster, "other", &Client::new(2), 3).await;
    let admin = Client::new(3);
    let request = scheduled("bank", Some(1_000), &admin);
    let leader = cluster.leader(GroupId::CATALOGUE).await;
    let epoch = schedule(&cluster, leader, &request).await.receipt.unwrap().epoch;
    // Its leader goes before it is due.
    cluster.kill(leader).await;
    let via = leader % 3 + 1;
    within("the deletion that is due", || async { known(&cluster, via, "bank").is_none().then_some(()) })
        .await;
    nothing_is_left(&cluster, &bank).await;
    let late = cluster.strong(via).undelete_namespace(undeletion("bank", &admin), soon(), Hop::Client).await;
    let late = late.unwrap_err();
    assert_eq!((late.reason, late.applied), (Reason::NamespaceUnknown, Applied::No), "{late}");
    cluster.bring_up(leader).await;
    within("the deletion at the node that was away", || async {
        known(&cluster, leader, "bank").is_none().then_some(())
    })
    .await;
    nothing_is_left(&cluster, &bank).await;
    // One change, by either leader; the request that asked for it is remembered.
    assert_eq!(cluster.strong(via).catalogue().borrow().epoch.0, epoch + 1);
    let mut again = request.clone();
    again.mutation.as_mut().unwrap().attempt = 2;
    let resent = schedule(&cluster, via, &again).await;
    assert!(resent.receipt.unwrap().deduplicated);
    assert_eq!(resent.namespace.unwrap().id, bank.id.0);
    assert_eq!(value(cluster.strong(via), &other, "k2").await, ("v".into(), 3));
    cluster.stop().await;
}

/// A cluster that has deleted before is not yet at the level of graces: a member that is not heard may be of
/// a release that deletes, and cannot wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_grace_waits_for_every_member_and_deletions_do_not() {
    let mut cluster = Cluster::upgraded().await;
    for (id, name) in (10..).zip(["first", "second", "third"]) {
        filled(&cluster, name, &Client::new(id), 1).await;
    }
    let admin = Client::new(3);
    // What cannot succeed raises nothing: a level is never lowered again.
    let leader = cluster.leader(GroupId::CATALOGUE).await;
    let at = cluster.strong(leader);
    let refused = at.undelete_namespace(undeletion("first", &admin), soon(), Hop::Client).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NamespaceExists, Applied::No), "{refused}");
    let refused =
        at.schedule_deletion(scheduled("none", None, &admin), soon(), Hop::Client).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NamespaceUnknown, Applied::No), "{refused}");
    let refused = delete(&cluster, leader, &deletion("none", &admin)).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NamespaceUnknown, Applied::No), "{refused}");
    assert_eq!(at.catalogue().borrow().level, FeatureLevel::FIRST);
    deleted(&cluster, 1, &deletion("first", &admin)).await;
    let away = cluster.leader(GroupId::CATALOGUE).await % 3 + 1;
    cluster.kill(away).await;
    let leader = cluster.leader(GroupId::CATALOGUE).await;
    let request = scheduled("third", None, &admin);
    let refused = cluster.strong(leader).schedule_deletion(request.clone(), soon(), Hop::Client).await;
    let refused = refused.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NotReady, Applied::No), "{refused}");
    assert!(refused.message.contains("did not say"), "{refused}");
    deleted(&cluster, leader, &deletion("second", &admin)).await;
    assert_eq!(cluster.strong(leader).catalogue().borrow().level, FeatureLevel::DELETION);
    cluster.bring_up(away).await;
    assert!(schedule(&cluster, leader, &request).await.namespace.unwrap().deleted_until_ms.is_some());
    // What a grace may be is refused where it is asked for.
    for grace_ms in [0, 999, 30 * 24 * 3_600_000 + 1] {
        let wrong = scheduled("third", Some(grace_ms), &admin);
        let refused = cluster.strong(away).schedule_deletion(wrong, soon(), Hop::Client).await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::NamespaceInvalid, Applied::No), "{refused}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_available_namespace_waits_for_is_altered_once_per_request() {
    let cluster = Cluster::start(|_| {}).await;
    let bank = filled(&cluster, "bank", &Client::new(1), 1).await;
    let admin = Client::new(3);
    let create = admin::CreateNamespaceRequest {
        name: "cart".into(),
        mode: admin::Mode::Available.into(),
        mutation: Some(admin.mutation()),
        ..Default::default()
    };
    within("a namespace", || async {
        cluster.strong(1).create_namespace(create.clone(), soon(), Hop::Client).await.ok()
    })
    .await;
    let alter = |name: &str, r, w| admin::AlterNamespaceRequest {
        name: name.into(),
        r,
        w,
        mutation: Some(admin.mutation()),
    };
    let request = alter("cart", Some(1), Some(3));
    for (via, before) in [(2, false), (3, true)] {
        let altered = within("the alteration", || async {
            cluster.strong(via).alter_namespace(request.clone(), soon(), Hop::Client).await.ok()
        })
        .await;
        let namespace = altered.namespace.unwrap();
        assert_eq!((namespace.n, namespace.r, namespace.w, namespace.settings_version), (3, 1, 3, 2));
        assert!(altered.receipt.unwrap().deduplicated || !before);
    }
    let refused = [
        (alter("cart", Some(4), None), Reason::NamespaceInvalid),
        (alter("cart", None, None), Reason::NamespaceInvalid),
        (alter("bank", Some(1), None), Reason::ModeMismatch),
        (alter("none", Some(1), None), Reason::NamespaceUnknown),
    ];
    for (request, reason) in refused {
        let refused = cluster.strong(2).alter_namespace(request, soon(), Hop::Client).await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (reason, Applied::No), "{refused}");
    }
    assert_eq!(known(&cluster, 2, "bank").unwrap().settings_version, bank.settings_version);
    cluster.stop().await;
}
