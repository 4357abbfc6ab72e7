//! Deleted keys and namespaces: nothing is left, and nothing comes back.

use super::*;

/// Records of the namespace, and those that claim more than the clocks have.
fn records(cluster: &Cluster) -> usize {
    let of_table = |node: &Node, table: u16| {
        node.storage.scan(kv_storage::TableId::new(table), &[], None, usize::MAX).unwrap().len()
    };
    cluster.nodes.values().map(|node| of_table(node, 48) + of_table(node, 54)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_keys_leave_no_record_on_any_node_and_do_not_come_back_with_a_pull() {
    let mut cluster = Cluster::start().await;
    let keys: Vec<String> = (0..60).map(|n| format!("key-{n}")).collect();
    for result in join_all(keys.iter().map(|key| cluster.put(1, key, "before"))).await {
        result.unwrap();
    }
    // Some are deleted while their replicas are apart, through nodes that stand in as well.
    cluster.cut(&[4, 5]);
    for (side, keys) in [1, 4].into_iter().zip(keys.chunks(30)) {
        for key in keys {
            let seen = cluster.get(side, key, 1).await.unwrap();
            cluster.put(side, key, "cut").await.unwrap();
            cluster.delete(side, key, seen.context).await.unwrap();
        }
    }
    cluster.cut(&[]);
    cluster.converge().await;
    // What was put meanwhile was not seen, nor anything where no primary was: it goes now.
    for key in &keys {
        let seen = cluster.get(1, key, 3).await.unwrap();
        assert!(shown(&seen).contains(&"cut".to_owned()), "{key}");
        cluster.delete(2, key, seen.context).await.unwrap();
    }
    cluster.converge().await;
    cluster.until("no record is left, nor one to be stripped", |c| records(c) == 0).await;
    for node in 1..=NODES {
        for key in &keys {
            assert_eq!(cluster.get(node, key, 2).await.unwrap().presence(), v1::Presence::Absent);
        }
    }
    cluster.wipe(NodeId(2)).await;
    cluster
        .until("the wiped node is whole", |c| c.nodes[&NodeId(2)].dynamo.rebuilding_partitions() == 0)
        .await;
    cluster.converge().await;
    assert_eq!(records(&cluster), 0);
    for key in &keys {
        assert!(shown(&cluster.get(2, key, 1).await.unwrap()).is_empty());
    }
}

/// A delete arrives that names a write of another key, which comes later: no message of its own key is to
/// come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_was_ahead_of_the_clock_goes_by_itself() {
    let cluster = Cluster::start().await;
    let owners = |key: &str| cluster.nodes[&NodeId(1)].dynamo.owners(&cluster.namespace, key.as_bytes());
    let of_first = owners("key-0").unwrap();
    let other = (1..).map(|n| format!("key-{n}"));
    let other = other.into_iter().find(|key| owners(key).unwrap().partition == of_first.partition).unwrap();
    let dot = |counter| Dot { incarnation: Incarnation(9), counter };
    let write = |seq| {
        let request = RequestId { client_id: ClientId(3), seq };
        Write { issued_at_ms: Env::real().clock.wall_ms(), request, body: 1 }
    };
    let (mut gone, mut there) = (State::default(), State::default());
    let seen = Seen { context: [dot(1)].into_iter().collect(), ..Seen::default() };
    gone.update(&seen, dot(2), write(2), None);
    let sibling = Sibling { stamp: Hlc::at(1), request: write(1).request, value: Bytes::from_static(b"v") };
    there.update(&Seen::default(), dot(1), write(1), Some(sibling));
    let primary = &cluster.nodes[&NodeId(of_first.primaries[0])].dynamo;
    let send = async |key: &str, state: &State| {
        let body = request_frame::Body::ReplicaWrite(peer::ReplicaWrite {
            ring: of_first.ring,
            partition: of_first.partition,
            key: Bytes::copy_from_slice(key.as_bytes()),
            record: state.encode(),
            ..Default::default()
        });
        let about = Address { namespace: cluster.namespace.id, epoch: Epoch(0), ..Address::default() };
        let deadline = Instant::now() + Duration::from_secs(1);
        primary.handle(PeerRequest { from: NodeId(9), about, deadline, body }).await.unwrap();
    };
    send("key-0", &gone).await;
    assert_eq!(records(&cluster), 2, "the record, and its place in the list");
    send(&other, &there).await;
    cluster.until("the other key alone is left", |c| records(c) == 1).await;
}

impl Cluster {
    /// The catalogue without the namespace, as all nodes get it.
    fn delete_namespace(&self) {
        self.catalogue.send_modify(|catalogue| {
            let mut next = Catalogue::clone(catalogue);
            next.epoch = Epoch(next.epoch.0 + 1);
            next.next_namespace = self.namespace.id.0 + 1;
            next.namespaces.remove(&self.namespace.id);
            *catalogue = Arc::new(next);
        });
    }

    /// Rows of records, hints, conflicts and requests, on all nodes.
    fn rows(&self) -> usize {
        self.nodes.values().map(rows_of).sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_leaves_nothing_on_any_node_hints_included() {
    let mut cluster = Cluster::start().await;
    let keys: Vec<String> = (0..60).map(|n| format!("key-{n}")).collect();
    for result in join_all(keys.iter().map(|key| cluster.put(1, key, "before"))).await {
        result.unwrap();
    }
    // Hints on both sides, siblings when they are delivered.
    cluster.cut(&[4, 5]);
    for side in [1, 4] {
        for result in join_all(keys.iter().map(|key| cluster.put(side, key, "cut"))).await {
            result.unwrap();
        }
    }
    let hints = |c: &Cluster| c.nodes.values().any(|n| n.dynamo.hints_pending().values().sum::<u64>() > 0);
    assert!(hints(&cluster) && cluster.rows() > 200);
    cluster.delete_namespace();
    cluster.until("nothing is left", |c| c.rows() == 0).await;
    assert!(!hints(&cluster));
    assert!(cluster.nodes.values().all(|n| n.dynamo.keys_with_siblings() == 0));

    // Requests that were on their way, or come from a node whose catalogue is older.
    let refused = cluster.put(1, "key-1", "late").await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NamespaceUnknown, Applied::No), "{refused}");
    cluster.cut(&[]);
    cluster
        .until("all nodes are up", |c| {
            c.nodes.values().all(|n| n.peers.snapshot().iter().all(|(_, liveness)| liveness.is_up()))
        })
        .await;
    let owners = cluster.nodes[&NodeId(1)].dynamo.owners(&cluster.namespace, b"key-1").unwrap();
    let write = peer::ReplicaWrite {
        ring: owners.ring,
        partition: owners.partition,
        key: "key-1".into(),
        record: State::default().encode(),
        hint_for: 0,
        counted: false,
    };
    let to = NodeId(owners.primaries[0]);
    let from = cluster.nodes.keys().copied().find(|node| *node != to).unwrap();
    let about = Address { namespace: cluster.namespace.id, epoch: Epoch(0), ..Address::default() };
    let deadline = Instant::now() + Duration::from_secs(2);
    let body = request_frame::Body::ReplicaWrite(write);
    let refused = cluster.nodes[&from].peers.call(to, kv_peer::Lane::Bulk, about, body, deadline).await;
    match refused {
        Err(kv_peer::PeerError::Refused(failure)) => assert_eq!(failure.reason, Reason::NamespaceUnknown),
        other => panic!("{other:?}"),
    }

    // A node that begins anew pulls nothing of it.
    cluster.wipe(to).await;
    cluster.until("it serves again", |c| c.nodes[&to].dynamo.rebuilding_partitions() == 0).await;
    assert_eq!(cluster.rows(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_deleted_namespace_is_removed_after_a_start() {
    let mut cluster = Cluster::start().await;
    for key in 0..40 {
        cluster.put(1, &format!("key-{key}"), "v").await.unwrap();
    }
    let away = NodeId(2);
    let node = &cluster.nodes[&away];
    let disk = node.disk.clone();
    node.dynamo.shutdown();
    cluster.delete_namespace();
    let others = |c: &Cluster| c.rows() - rows_of(&c.nodes[&away]);
    cluster.until("nothing is left at the others", |c| others(c) == 0).await;
    assert!(rows_of(&cluster.nodes[&away]) > 0, "its background has ended");
    cluster.restart(away, disk).await;
    cluster.until("nothing is left", |c| c.rows() == 0).await;
}

/// A source that knows of the deletion, and has not removed what it has, gives it away with the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_source_still_has_of_a_deleted_namespace_does_not_come_back_with_a_pull() {
    let mut cluster = Cluster::start().await;
    let (pulls, source) = (NodeId(1), NodeId(2));
    let both = [pulls.0, source.0];
    let old = key_of(&cluster, "old", &both);
    cluster.put(1, &old, "old").await.unwrap();
    cluster.converge().await;
    // Its background ends, and it answers as before.
    cluster.nodes[&source].dynamo.shutdown();
    let gone = cluster.namespace.id;
    cluster.delete_namespace();
    let has = |c: &Cluster, node: NodeId| c.nodes[&node].dynamo.rows_of(gone).unwrap();
    let others =
        |c: &Cluster| c.nodes.keys().filter(|id| **id != source).map(|id| has(c, *id)).sum::<usize>();
    cluster.until("the others have removed it", |c| others(c) == 0).await;

    cluster.namespace.id = NamespaceId(gone.0 + 1);
    cluster.catalogue.send_modify(|catalogue| {
        let mut next = Catalogue::clone(catalogue);
        next.epoch = Epoch(next.epoch.0 + 1);
        next.next_namespace = cluster.namespace.id.0 + 1;
        next.namespaces.insert(cluster.namespace.id, cluster.namespace.clone());
        *catalogue = Arc::new(next);
    });
    let new = key_of(&cluster, "new", &both);
    cluster.put(1, &new, "new").await.unwrap();
    cluster.wipe(pulls).await;
    let whole = |c: &Cluster| c.nodes[&pulls].dynamo.rebuilding_partitions() == 0;
    cluster.until("it has pulled and serves again", whole).await;
    assert_eq!(has(&cluster, source), 1, "it was there to be pulled");
    assert_eq!(has(&cluster, pulls), 0);
    assert_eq!(shown(&cluster.get_from(1, &new, 1, true).await.unwrap()), ["new"]);
}
