//! What available namespaces promise beyond that replicas converge.

use kv_types::{Guarantee, Incarnation, ReplicaCount};

use super::*;

/// The namespace promises something, by R and W.
fn promising(cluster: &mut Cluster, guarantee: Guarantee, r: u8, w: u8) {
    let replication = Replication { n: 3, r, w, sloppy: false };
    assert_eq!(replication.falls_short_of(guarantee), None);
    let placement = Placement::Available { ring: RingId(1), replication };
    cluster.namespace = Namespace { guarantee, placement, ..cluster.namespace.clone() };
}

/// A write whose fate is open: one replica has it. Without a value it deletes the one before it.
async fn reach_one(cluster: &Cluster, key: &str, at: NodeId, counter: u64, value: Option<&'static str>) {
    let owners = cluster.nodes[&at].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
    let request = kv_types::RequestId { client_id: ClientId(77), seq: counter };
    let dot = kv_types::causal::Dot { incarnation: Incarnation(7), counter };
    let write = kv_types::causal::Write { issued_at_ms: Env::real().clock.wall_ms(), request, body: 1 };
    let sibling = value.map(|value| kv_types::causal::Sibling {
        stamp: kv_types::causal::Hlc::default(),
        request,
        value: value.into(),
    });
    let mut seen = kv_types::causal::Seen::default();
    if value.is_none() {
        seen.context.insert(kv_types::causal::Dot { counter: counter - 1, ..dot });
    }
    let mut state = State::default();
    state.update(&seen, dot, write, sibling);
    let body = request_frame::Body::ReplicaWrite(peer::ReplicaWrite {
        ring: owners.ring,
        partition: owners.partition,
        key: Bytes::copy_from_slice(key.as_bytes()),
        record: state.encode(),
        hint_for: 0,
        counted: false,
    });
    let written = cluster.nodes[&at].dynamo.handle(PeerRequest {
        from: NodeId(9),
        about: Address { namespace: cluster.namespace.id, epoch: Epoch(0), ..Address::default() },
        deadline: Instant::now() + Duration::from_secs(1),
        body,
    });
    written.await.unwrap();
}

fn owners(cluster: &Cluster, key: &str) -> Vec<NodeId> {
    let owners = cluster.nodes[&NodeId(1)].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
    owners.primaries.into_iter().map(NodeId).collect()
}

async fn get(cluster: &Cluster, node: NodeId, key: &str) -> Result<v1::GetResponse, Failure> {
    cluster.get_from(node.0, key, 2, true).await
}

/// Of each key one replica has a write whose fate is open. Once a read has shown it every later read does,
/// whichever replicas are asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_read_has_shown_no_later_read_misses() {
    let mut cluster = Cluster::start().await;
    promising(&mut cluster, Guarantee::MonotonicReads, 2, 2);
    for n in 0..30 {
        let key = format!("key-{n}");
        let owners = owners(&cluster, &key);
        reach_one(&cluster, &key, owners[0], n + 1, Some("open")).await;
        let found = get(&cluster, owners[0], &key).await.unwrap();
        assert_eq!(shown(&found), ["open"]);
        let receipt = found.receipt.as_ref().unwrap();
        assert_eq!(receipt.delivered(), v1::Guarantee::MonotonicReads);
        let evidence = available(found.receipt.as_ref());
        assert!(evidence.settled && evidence.strict && evidence.repair);
        // By then another one has it. One of any two that are asked does.
        let mut have = 0;
        for owner in &owners {
            let read = peer::ReplicaRead {
                ring: 1,
                partition: cluster.nodes[owner]
                    .dynamo
                    .owners(&cluster.namespace, key.as_bytes())
                    .unwrap()
                    .partition,
                key: Bytes::copy_from_slice(key.as_bytes()),
            };
            let request = PeerRequest {
                from: NodeId(9),
                about: Address { namespace: cluster.namespace.id, epoch: Epoch(1), ..Address::default() },
                deadline: Instant::now() + Duration::from_secs(1),
                body: request_frame::Body::ReplicaRead(read),
            };
            let reply = cluster.nodes[owner].dynamo.handle(request).await.unwrap();
            let response_frame::Body::ReplicaRead(reply) = reply else { panic!("{reply:?}") };
            let state = State::decode(reply.record).unwrap_or_default();
            have += usize::from(reply.knows && !state.record.siblings.is_empty());
        }
        assert!(have >= 2, "{key}");
        for owner in &owners[1..] {
            assert_eq!(shown(&get(&cluster, *owner, &key).await.unwrap()), ["open"], "{key} at {owner}");
        }
    }
}

/// The same of a delete, of which a replica that never had the value knows nothing: the read is told of it by
/// one, and that the value is at a third must not show later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_read_has_shown_to_be_gone_does_not_come_back() {
    let mut cluster = Cluster::start().await;
    promising(&mut cluster, Guarantee::MonotonicReads, 2, 2);
    for n in 0..30 {
        let key = format!("key-{n}");
        let owners = owners(&cluster, &key);
        reach_one(&cluster, &key, owners[2], 2 * n + 1, Some("gone")).await;
        reach_one(&cluster, &key, owners[1], 2 * n + 2, None).await;
        // It may be told of the value as well, and then of the delete, too.
        let first = get(&cluster, owners[0], &key).await.unwrap();
        if !shown(&first).is_empty() {
            continue;
        }
        for owner in [owners[2], owners[0], owners[1]] {
            let after = get(&cluster, owner, &key).await.unwrap();
            assert!(shown(&after).is_empty(), "{key} at {owner}: {:?}", shown(&after));
        }
    }
}

/// What cannot be kept is refused: a read that too few replicas can be given, and numbers of a request by
/// which readers could miss writers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promise_that_cannot_be_kept_is_refused() {
    let mut cluster = Cluster::start().await;
    promising(&mut cluster, Guarantee::MonotonicReads, 2, 3);
    let owners = owners(&cluster, "key");
    reach_one(&cluster, "key", owners[0], 1, Some("open")).await;
    cluster.cut(&[owners[2].0]);
    let refused = get(&cluster, owners[0], "key").await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::QuorumNotMet, Applied::No));
    cluster.cut(&[]);
    cluster
        .until("the nodes hear each other again", |c| {
            c.nodes.values().all(|n| n.peers.snapshot().iter().all(|(_, liveness)| liveness.is_up()))
        })
        .await;
    assert_eq!(shown(&get(&cluster, owners[0], "key").await.unwrap()), ["open"]);

    for guarantee in [Guarantee::StrictQuorum, Guarantee::ReadYourWrites, Guarantee::MonotonicReads] {
        promising(&mut cluster, guarantee, 2, 2);
        let written = cluster.put(owners[0].0, "key", "v").await.unwrap();
        assert_eq!(written.receipt.unwrap().delivered(), v1::Guarantee::from(guarantee));
        let read = cluster.get(owners[0].0, "key", 2).await.unwrap();
        assert_eq!(read.receipt.unwrap().delivered(), v1::Guarantee::from(guarantee));
        let refused = cluster.get(owners[0].0, "key", 1).await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::InvalidRequest, Applied::No));
        assert!(refused.message.contains("not for 1"), "{refused}");
        let mut few = cluster.request("key", "few", v1::write_context::Context::Observed(true));
        few.write_replicas = Some(ReplicaCount::Number(1).into());
        let refused = cluster.send(owners[0].0, few).await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::InvalidRequest, Applied::No));
    }
}
