//! Nodes that lost their disks, and what they get from the others.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_pulls_before_it_serves() {
    let mut cluster = Cluster::start().await;
    let keys: Vec<String> = (0..60).map(|n| format!("key-{n}")).collect();
    for result in join_all(keys.iter().map(|key| cluster.put(1, key, "kept"))).await {
        result.unwrap();
    }
    cluster.converge().await;
    // It comes back alone: it may not speak for anything, and says so.
    cluster.cut(&[2]);
    cluster.wipe(NodeId(2)).await;
    assert!(cluster.nodes[&NodeId(2)].dynamo.rebuilding_partitions() > 0);
    let mine = keys.iter().find(|key| {
        let owners = cluster.nodes[&NodeId(2)].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
        owners.primaries.contains(&2)
    });
    let refused = cluster.get(2, mine.unwrap(), 1).await.unwrap_err();
    assert_eq!(refused.applied, Applied::No, "{refused}");
    cluster.cut(&[]);
    cluster
        .until("the wiped node is whole", |c| c.nodes[&NodeId(2)].dynamo.rebuilding_partitions() == 0)
        .await;
    cluster.converge().await;
    for key in &keys {
        assert_eq!(shown(&cluster.get(2, key, 1).await.unwrap()), vec!["kept"]);
    }
}

/// A primary and a fallback have acknowledged; then the disk of the primary is lost. What the fallback holds
/// is for another primary, and this one asks for it before all others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_asks_those_that_hold_hints() {
    let mut cluster = Cluster::start().await;
    let wiped = NodeId(1);
    let keys: Vec<String> = (0..200)
        .map(|n| format!("key-{n}"))
        .filter(|key| {
            let owners = cluster.nodes[&wiped].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
            owners.primaries.contains(&1) && [4, 5].iter().all(|node| owners.fallbacks.contains(node))
        })
        .take(10)
        .collect();
    assert!(keys.len() > 3);
    cluster.cut(&[2, 3]);
    let put = async |key: &String| loop {
        // Until it is known who is away.
        if cluster.put(1, key, "kept").await.is_ok() {
            break;
        }
    };
    join_all(keys.iter().map(put)).await;
    let rows = |c: &Cluster| c.nodes[&wiped].dynamo.rows_of(c.namespace.id).unwrap();
    assert!(rows(&cluster) > 0);
    cluster.wipe(wiped).await;
    // The other primaries are still away.
    cluster.until("the hints were pulled", |c| rows(c) >= keys.len()).await;
    assert!(cluster.nodes[&wiped].dynamo.rebuilding_partitions() > 0);
    cluster.cut(&[]);
    cluster.until("the wiped node is whole", |c| c.nodes[&wiped].dynamo.rebuilding_partitions() == 0).await;
    for key in &keys {
        assert_eq!(shown(&cluster.get(1, key, 1).await.unwrap()), ["kept"], "{key}");
    }
}

/// Each of those that may stand in holds a hint that no other has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_asks_all_of_those_that_may_hold_hints() {
    let mut cluster = Cluster::start().await;
    let wiped = NodeId(1);
    let owners = |key: &str| cluster.nodes[&wiped].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
    let first = key_of(&cluster, "key", &[1, 2, 3]);
    let of_first = owners(&first);
    let mut same =
        (0..).map(|n| format!("same-{n}")).filter(|key| owners(key).partition == of_first.partition);
    cluster.cut(&[2, 3]);
    let away = |c: &Cluster| {
        let up =
            |node: u64| [4, 5].iter().any(|at| c.nodes[&NodeId(*at)].peers.liveness(NodeId(node)).is_up());
        !up(2) && !up(3)
    };
    cluster.until("two primaries are away", away).await;
    let mut held = Vec::new();
    for (counter, (holder, target)) in (1..).zip([(4, 2), (4, 3), (5, 2), (5, 3)]) {
        let request = RequestId { client_id: ClientId(3), seq: counter };
        let write = Write { issued_at_ms: Env::real().clock.wall_ms(), request, body: 1 };
        let sibling = Sibling { stamp: Hlc::at(1), request, value: Bytes::from_static(b"kept") };
        let mut state = State::default();
        let dot = Dot { incarnation: Incarnation(9), counter: 2 * counter };
        state.update(&Seen::default(), dot, write, Some(sibling));
        let key = same.next().unwrap();
        let body = request_frame::Body::ReplicaWrite(peer::ReplicaWrite {
            ring: of_first.ring,
            partition: of_first.partition,
            key: Bytes::copy_from_slice(key.as_bytes()),
            record: state.encode(),
            hint_for: target,
            counted: true,
        });
        let about = Address { namespace: cluster.namespace.id, epoch: Epoch(0), ..Address::default() };
        let deadline = Instant::now() + Duration::from_secs(5);
        let kept = PeerRequest { from: NodeId(target), about, deadline, body };
        cluster.nodes[&NodeId(holder)].dynamo.handle(kept).await.unwrap();
        held.push(key);
    }
    drop(same);
    cluster.wipe(wiped).await;
    // The other primaries are still away.
    let records = |c: &Cluster| {
        let rows = c.nodes[&wiped].storage.scan(kv_storage::TableId::new(48), &[], None, usize::MAX).unwrap();
        let of = |key: &String| rows.iter().any(|(row, _)| row.ends_with(key.as_bytes()));
        held.iter().filter(|key| of(key)).count()
    };
    cluster.until("all hints were pulled", |c| records(c) == held.len()).await;
    assert!(cluster.nodes[&wiped].dynamo.rebuilding_partitions() > 0);
}

/// Records that a link carries in three seconds, far longer than a message of the background may find it at
/// rest: they arrive all the same, as hints and in a rebuild.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_records_pass_over_a_slow_link() {
    let mut cluster = Cluster::start().await;
    let value = "v".repeat(400 << 10);
    cluster.cut(&[5]);
    let key = key_of(&cluster, "key", &[5]);
    cluster.put(1, &key, &value).await.unwrap();
    let hints = |c: &Cluster| c.nodes.values().map(|n| n.dynamo.hints_pending().len()).sum::<usize>();
    cluster.until("a hint is kept", |c| hints(c) > 0).await;
    cluster.rate.send_replace(150_000);
    cluster.cut(&[]);
    let took = cluster.converge().await;
    assert!(took > Duration::from_secs(2), "the link was not slow: {took:?}");

    cluster.wipe(NodeId(5)).await;
    let whole = |c: &Cluster| c.nodes[&NodeId(5)].dynamo.rebuilding_partitions() == 0;
    let took = cluster.until("the wiped node is whole", whole).await;
    assert!(took > Duration::from_secs(2), "the link was not slow: {took:?}");
    cluster.rate.send_replace(u64::MAX);
    assert_eq!(shown(&cluster.get(5, &key, 1).await.unwrap()), [value]);
}

/// Keys that the nodes 1 and 5 keep, in the order of their ring partitions.
fn keys_of_one_and_five(cluster: &Cluster, many: usize) -> Vec<String> {
    let mut keys: Vec<String> = (0..many).map(|n| key_of(cluster, &format!("key-{n}"), &[1, 5])).collect();
    let dynamo = &cluster.nodes[&NodeId(1)].dynamo;
    keys.sort_by_key(|key| dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap().partition);
    keys
}

/// What a node takes of a record at once is its own affair: records that are too large for it hold up nothing
/// but themselves, neither as hints nor in a rebuild. There are more of them than are under way at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_a_node_cannot_take_hold_up_no_others() {
    const LARGE: u64 = 70;
    let mut cluster = Cluster::start().await;
    let five = NodeId(5);
    let keys = keys_of_one_and_five(&cluster, LARGE as usize + 20);
    let (large, small) = keys.split_at(LARGE as usize);
    cluster.cut(&[5]);
    for key in large {
        cluster.put(1, key, &"v".repeat(40 << 10)).await.unwrap();
    }
    for key in small {
        cluster.put(1, key, "small").await.unwrap();
    }
    let held = |c: &Cluster| {
        let of_five = |n: &Node| n.dynamo.hints_pending().get(&five).copied().unwrap_or(0);
        c.nodes.values().map(of_five).sum::<u64>()
    };
    cluster.until("all of them are noted", |c| held(c) == LARGE + 20).await;
    cluster.options.max_record_bytes = 20 << 10;
    let disk = cluster.nodes[&five].disk.clone();
    cluster.restart(five, disk).await;
    cluster.cut(&[]);
    cluster.until("the small ones arrive", |c| held(c) == LARGE).await;
    let set_aside = |c: &Cluster| c.nodes[&NodeId(1)].dynamo.hints_set_aside().get(&five).copied();
    cluster.until("the large ones are set aside", |c| set_aside(c) == Some(LARGE)).await;
    // Nor do they hold up what comes later.
    cluster.cut(&[5]);
    cluster.put(1, &small[0], "later").await.unwrap();
    cluster.until("it is noted", |c| held(c) == LARGE + 1).await;
    cluster.cut(&[]);
    cluster.until("it arrives", |c| held(c) == LARGE).await;

    // A node that begins anew says what it has, and leaves the large ones to others.
    cluster.wipe(five).await;
    let whole = |c: &Cluster| c.nodes[&five].dynamo.rebuilding_partitions() == 0;
    cluster.until("the wiped node serves", whole).await;
    for key in small {
        let expected = if key == &small[0] { "later" } else { "small" };
        assert_eq!(shown(&cluster.get_from(5, key, 1, true).await.unwrap()), [expected]);
    }
    for key in large {
        let read = cluster.get_from(5, key, 1, true).await.unwrap();
        assert_eq!(shown(&read).len(), 1, "it does not know that it is absent");
    }
    // With room for them the node gets them as it gets everything.
    cluster.options.max_record_bytes = 1 << 20;
    let disk = cluster.nodes[&five].disk.clone();
    cluster.restart(five, disk).await;
    cluster.converge().await;
    cluster.until("it serves again", whole).await;
    assert_eq!(set_aside(&cluster), None);
}

/// The disk of one source has failed, or a row of it cannot be read: what the others have comes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_whose_own_rows_cannot_be_read_ends_the_rebuild_from_no_other() {
    const RECORDS: kv_storage::TableId = kv_storage::TableId::new(48);
    let mut cluster = Cluster::start().await;
    let key = key_of(&cluster, "key", &[1, 5]);
    cluster.put(1, &key, "kept").await.unwrap();
    cluster.converge().await;
    let owners = cluster.nodes[&NodeId(1)].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
    let of_others: Vec<u64> = owners.primaries.iter().copied().filter(|node| *node != 5).collect();
    // The one that is asked first.
    let broken = &cluster.nodes[&NodeId(of_others[0])].storage.clone();
    let row = [&owners.ring.to_be_bytes()[..], &owners.partition.to_be_bytes(), &[0]].concat();
    let damaged = broken.commit(kv_storage::Batch::new().put(RECORDS, &row, [0])).unwrap();
    broken.durable(damaged).await.unwrap();

    let five = NodeId(5);
    cluster.wipe(five).await;
    let rows = |c: &Cluster| c.nodes[&five].dynamo.rows_of(c.namespace.id).unwrap();
    cluster.until("another source was asked", |c| rows(c) > 0).await;
    assert!(cluster.nodes[&five].dynamo.rebuilding_partitions() > 0, "two of them are needed");
    // The same later.
    let mended = broken.commit(kv_storage::Batch::new().delete(RECORDS, &row)).unwrap();
    broken.durable(mended).await.unwrap();
    cluster.until("it serves again", |c| c.nodes[&five].dynamo.rebuilding_partitions() == 0).await;
    assert_eq!(shown(&cluster.get_from(5, &key, 1, true).await.unwrap()), ["kept"]);
}
