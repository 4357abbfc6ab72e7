//! What a replica lacks and nothing brings: it finds out, and asks the others.

use super::*;

/// n5 lacks a write of this key, and no node has a note or a hint of it: it was lost with the memory of its
/// coordinator.
async fn lose_a_note(cluster: &mut Cluster) -> String {
    const HINTS: kv_storage::TableId = kv_storage::TableId::new(52);
    let (one, five) = (NodeId(1), NodeId(5));
    let lost = key_of(cluster, "lost", &[1, 5]);
    cluster.cut(&[5]);
    // What is on its way when the cut begins arrives when it ends.
    let away = |c: &Cluster| c.nodes.iter().all(|(id, n)| *id == five || !n.peers.liveness(five).is_up());
    cluster.until("the others know that it is away", away).await;
    cluster.put(1, &lost, "lost").await.unwrap();
    let held = |c: &Cluster| c.nodes[&one].dynamo.hints_pending().get(&five).copied().unwrap_or(0);
    cluster.until("it is noted", |c| held(c) == 1).await;
    let storage = cluster.nodes[&one].storage.clone();
    let mut batch = kv_storage::Batch::new();
    for (key, _) in storage.scan(HINTS, &[], None, usize::MAX).unwrap() {
        batch.push_delete(HINTS, key);
    }
    let forgotten = storage.commit(batch).unwrap();
    storage.durable(forgotten).await.unwrap();
    let disk = cluster.nodes[&one].disk.clone();
    cluster.restart(one, disk).await;
    cluster.cut(&[]);
    let up = |c: &Cluster| c.nodes[&one].peers.snapshot().iter().all(|(_, liveness)| liveness.is_up());
    cluster.until("all nodes are up", up).await;
    assert!(shown(&cluster.get_from(5, &lost, 1, true).await.unwrap()).is_empty(), "nothing tells of it");
    lost
}

/// n5 shows a key that was not sent to it.
async fn comes_by_itself(cluster: &Cluster, key: &str) {
    let begun = Instant::now();
    while shown(&cluster.get_from(5, key, 1, true).await.unwrap()) != ["lost"] {
        assert!(begun.elapsed() < Duration::from_secs(90), "never");
        sleep(Duration::from_millis(50)).await;
    }
    // Nothing is ahead of the clock any more, so what is deleted leaves no row.
    let ahead = kv_storage::TableId::new(54);
    let rows = |c: &Cluster| c.nodes[&NodeId(5)].storage.scan(ahead, &[], None, usize::MAX).unwrap().len();
    cluster.until("records are stripped", |c| rows(c) == 0).await;
}

/// Of a key that is not read: the next write of its ring partition shows that something is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_hint_brings_is_pulled_once_it_is_missed() {
    let mut cluster = Cluster::start().await;
    let lost = lose_a_note(&mut cluster).await;
    let partition = |key: &str| {
        let of = &cluster.nodes[&NodeId(1)].dynamo;
        of.owners(&cluster.namespace, key.as_bytes()).unwrap().partition
    };
    let other = (0..).map(|n| format!("other-{n}")).find(|key| partition(key) == partition(&lost)).unwrap();
    cluster.put(1, &other, "other").await.unwrap();
    comes_by_itself(&cluster, &lost).await;
}

/// And without any read or write: the nodes compare their clocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nothing_tells_of_is_found_by_comparing_clocks() {
    let mut cluster = Cluster::start().await;
    let lost = lose_a_note(&mut cluster).await;
    cluster.catalogue.send_modify(|catalogue| Arc::make_mut(catalogue).level = FeatureLevel::KEYED);
    comes_by_itself(&cluster, &lost).await;
    // More at once than one question may have is refused by name.
    let marks = vec![peer::ClockMark::default(); kv_dynamo::limits::COMPARED + 1];
    let ask = |marks| PeerRequest {
        from: NodeId(1),
        about: Address::default(),
        deadline: Instant::now() + Duration::from_secs(1),
        body: request_frame::Body::CompareClocks(peer::CompareClocks { marks }),
    };
    let five = &cluster.nodes[&NodeId(5)].dynamo;
    let refused = five.handle(ask(marks.clone())).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::InvalidRequest, Applied::No));
    assert!(five.handle(ask(marks[1..].to_vec())).await.is_ok());
}

const DOT_LOG: kv_storage::TableId = kv_storage::TableId::new(55);

/// How often any node was asked for pages of a ring partition, and by its log.
fn asked(cluster: &Cluster) -> (u64, u64) {
    let of = |count: fn(&Asked) -> &AtomicU64| {
        cluster.nodes.values().map(|node| count(&node.asked).load(Ordering::Relaxed)).sum()
    };
    (of(|asked| &asked.whole), of(|asked| &asked.by_log))
}

/// One write is missing in a ring partition full of others: its record comes, and nothing else is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_write_comes_alone_by_the_log_of_another() {
    let mut cluster = Cluster::start().await;
    cluster.catalogue.send_modify(|catalogue| Arc::make_mut(catalogue).level = FeatureLevel::LOGGED);
    let keys: Vec<String> = (0..200).map(|n| format!("other-{n}")).collect();
    for result in join_all(keys.iter().map(|key| cluster.put(2, key, "other"))).await {
        result.unwrap();
    }
    let lost = lose_a_note(&mut cluster).await;
    comes_by_itself(&cluster, &lost).await;
    let (whole, by_log) = asked(&cluster);
    assert_eq!(whole, 0);
    assert!(by_log > 0);
    cluster.converge().await;
}

/// A log goes from the disk of a running node, not in tests alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_room_for_its_logs_keeps_none() {
    let mut cluster = Cluster::start().await;
    let five = NodeId(5);
    let key = key_of(&cluster, "key", &[5]);
    cluster.put(1, &key, "v").await.unwrap();
    cluster.converge().await;
    let kept = |cluster: &Cluster| {
        let storage = &cluster.nodes[&five].storage;
        let streams = storage.streams(DOT_LOG, &[], &[255]);
        let bounds = streams.iter().map(|stream| storage.stream_bounds(DOT_LOG, stream));
        bounds.filter(|(first, last)| last.is_some_and(|last| *first <= last)).count()
    };
    assert!(kept(&cluster) > 0);
    cluster.log_bytes = 0;
    let disk = cluster.nodes[&five].disk.clone();
    cluster.restart(five, disk).await;
    cluster.until("its logs are gone", |cluster| kept(cluster) == 0).await;
    let read = async |cluster: &Cluster| shown(&cluster.get_from(5, &key, 1, true).await.unwrap());
    assert_eq!(read(&cluster).await, ["v"]);
    let disk = cluster.nodes[&five].disk.clone();
    cluster.restart(five, disk).await;
    cluster.until("it serves", |c| c.nodes[&five].dynamo.rebuilding_partitions() == 0).await;
    assert_eq!(read(&cluster).await, ["v"]);
}

/// The logs of the others do not know the write any more: then all of the ring partition comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_log_knows_comes_with_its_ring_partition() {
    let mut cluster = Cluster::start().await;
    cluster.catalogue.send_modify(|catalogue| Arc::make_mut(catalogue).level = FeatureLevel::LOGGED);
    let lost = lose_a_note(&mut cluster).await;
    for node in cluster.nodes.values() {
        for stream in node.storage.streams(DOT_LOG, &[], &[255]) {
            let last = node.storage.stream_bounds(DOT_LOG, &stream).1.unwrap();
            node.storage.commit(kv_storage::Batch::new().trim(DOT_LOG, &stream, last + 1)).unwrap();
        }
    }
    comes_by_itself(&cluster, &lost).await;
    let (whole, by_log) = asked(&cluster);
    assert!(whole > 0 && by_log > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_about_missing_writes_is_checked() {
    let cluster = Cluster::start().await;
    let ask = |ring, partition, dots: Bytes| PeerRequest {
        from: NodeId(1),
        about: Address::default(),
        deadline: Instant::now() + Duration::from_secs(1),
        body: request_frame::Body::PullMissing(peer::PullMissing {
            ring,
            partition,
            dots,
            max_bytes: 1,
            from: 0,
        }),
    };
    let key = key_of(&cluster, "key", &[5]);
    let five = &cluster.nodes[&NodeId(5)].dynamo;
    let owners = five.owners(&cluster.namespace, key.as_bytes()).unwrap();
    let foreign = (0..16).find(|partition| {
        let of = |key: &str| five.owners(&cluster.namespace, key.as_bytes()).unwrap();
        let mut keys = (0..).map(|n| of(&format!("k{n}")));
        !keys.find(|owners| owners.partition == *partition).unwrap().primaries.contains(&5)
    });
    let gaps = |count: usize| {
        let dot = |n: usize| Dot { incarnation: Incarnation(1), counter: 2 * n as u64 + 1 };
        NodeClock::of((0..count).map(dot).collect()).encode()
    };
    let most = kv_dynamo::limits::LOG_DOTS;
    let answered = five.handle(ask(owners.ring, owners.partition, gaps(most))).await;
    let Ok(response_frame::Body::PullMissing(reply)) = answered else { panic!("{answered:?}") };
    assert!(reply.records.is_empty() && reply.next == 0);
    for (ring, partition, dots, reason) in [
        (owners.ring, owners.partition, gaps(most + 1), Reason::InvalidRequest),
        (owners.ring, owners.partition, Bytes::from_static(b"?"), Reason::InvalidRequest),
        (owners.ring, foreign.unwrap(), gaps(1), Reason::WrongNode),
        (owners.ring + 1, owners.partition, gaps(1), Reason::WrongNode),
        (owners.ring, u32::MAX, gaps(1), Reason::WrongNode),
    ] {
        assert_eq!(five.handle(ask(ring, partition, dots)).await.unwrap_err().reason, reason);
    }
}
