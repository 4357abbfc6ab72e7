//! Three and five nodes in one process: what each side of CAP answers, and what a node refuses by which name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "a test may fail loudly"
)]

mod common;

use std::time::Duration;

use common::{Cluster, blind, causal, eventually, failed, observed, reason, within};
use kv_proto::peer::peer_service_client::PeerServiceClient;
use kv_proto::peer::{ExchangeRequest, RequestFrame, request_frame, response_frame};
use kv_proto::{admin, v1};
use kv_types::limits::{MAX_CONTEXT_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use kv_types::{Applied, Failure, NamespaceId, NodeId, Reason, Receipt};
use tonic::Request;

fn get(namespace: &str, key: &str) -> v1::GetRequest {
    v1::GetRequest { namespace: namespace.into(), key: key.to_owned().into(), ..Default::default() }
}

fn put(cluster: &mut Cluster, namespace: &str, key: &str, value: &str) -> v1::PutRequest {
    v1::PutRequest {
        namespace: namespace.into(),
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        mutation: cluster.mutation(),
        ..Default::default()
    }
}

fn available_put(
    cluster: &mut Cluster,
    key: &str,
    value: &str,
    context: Option<v1::WriteContext>,
) -> v1::PutRequest {
    v1::PutRequest { context, ..put(cluster, "cart", key, value) }
}

fn compare(
    cluster: &mut Cluster,
    namespace: &str,
    key: &str,
    expected: u64,
    value: &str,
) -> v1::CompareAndSetRequest {
    v1::CompareAndSetRequest {
        namespace: namespace.into(),
        key: key.to_owned().into(),
        expected_revision: expected,
        value: value.to_owned().into(),
        mutation: cluster.mutation(),
        ..Default::default()
    }
}

fn values(response: &v1::GetResponse) -> Vec<String> {
    let text = |sibling: &v1::Sibling| String::from_utf8(sibling.value.to_vec()).unwrap();
    let mut values: Vec<String> = response.siblings.iter().map(text).collect();
    values.sort();
    values
}

async fn three() -> Cluster {
    let mut cluster = Cluster::start(3).await;
    cluster.create("bank", admin::Mode::Strong, 0).await;
    cluster.create("cart", admin::Mode::Available, 0).await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_modes_answer_at_every_node_with_receipts() {
    let mut cluster = three().await;
    for id in 1..=3 {
        let key = format!("k{id}");
        // Strong: written here, read everywhere, swapped once.
        let request = put(&mut cluster, "bank", &key, "one");
        let written = cluster.kv(id).put(within(request.clone())).await.unwrap().into_inner();
        assert!(written.revision > 0);
        let receipt = Receipt::try_from(written.receipt.as_ref().unwrap()).unwrap();
        assert_eq!(receipt.delivered(), kv_types::Guarantee::Linearizable);
        // The same request again is the same write.
        let again = cluster.kv(id).put(within(request)).await.unwrap().into_inner();
        assert_eq!((again.revision, again.receipt.unwrap().deduplicated), (written.revision, true));
        for reader in 1..=3 {
            let read = cluster.kv(reader).get(within(get("bank", &key))).await.unwrap().into_inner();
            assert_eq!((read.presence(), read.value.as_ref()), (v1::Presence::Found, b"one".as_ref()));
            assert_eq!(read.revision, written.revision);
        }
        let request = compare(&mut cluster, "bank", &key, written.revision, "two");
        let swapped = cluster.kv(id).compare_and_set(within(request)).await.unwrap().into_inner();
        assert!(swapped.swapped && swapped.revision > written.revision);
        let request = compare(&mut cluster, "bank", &key, written.revision, "three");
        let missed = cluster.kv(id).compare_and_set(within(request)).await.unwrap().into_inner();
        assert_eq!(
            (missed.swapped, missed.revision, missed.found.as_ref()),
            (false, swapped.revision, b"two".as_ref())
        );
        let request = v1::DeleteRequest {
            namespace: "bank".into(),
            key: key.clone().into(),
            mutation: cluster.mutation(),
            ..Default::default()
        };
        assert!(cluster.kv(id).delete(within(request)).await.unwrap().into_inner().existed);
        let read = cluster.kv(id).get(within(get("bank", &key))).await.unwrap().into_inner();
        assert_eq!((read.presence(), read.revision), (v1::Presence::Absent, 0));

        // Available: a blind write beside another makes siblings; a causal one supersedes what it saw.
        let request = available_put(&mut cluster, &key, "milk", observed());
        cluster.kv(id).put(within(request)).await.unwrap();
        let request = available_put(&mut cluster, &key, "eggs", blind());
        cluster.kv(id).put(within(request)).await.unwrap();
        let read = cluster.kv(id).get(within(get("cart", &key))).await.unwrap().into_inner();
        assert_eq!(values(&read), ["eggs", "milk"]);
        let receipt = Receipt::try_from(read.receipt.as_ref().unwrap()).unwrap();
        assert_eq!(receipt.delivered(), kv_types::Guarantee::Eventual);
        let request = available_put(&mut cluster, &key, "both", causal(read.context));
        cluster.kv(id).put(within(request)).await.unwrap();
        let read = cluster.kv(id % 3 + 1).get(within(get("cart", &key))).await.unwrap().into_inner();
        assert_eq!(values(&read), ["both"]);
        let request = v1::DeleteRequest {
            namespace: "cart".into(),
            key: key.clone().into(),
            mutation: cluster.mutation(),
            context: causal(read.context),
            ..Default::default()
        };
        cluster.kv(id).delete(within(request)).await.unwrap();
        let read = cluster.kv(id).get(within(get("cart", &key))).await.unwrap().into_inner();
        assert_eq!((read.presence(), values(&read).len()), (v1::Presence::Absent, 0));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_by_name() {
    let mut cluster = three().await;
    let mut client = cluster.kv(1);

    // Reads.
    assert_eq!(reason(client.get(Request::new(get("bank", "k"))).await), Reason::DeadlineMissing);
    let unknown = failed(client.get(within(get("banks", "k"))).await);
    assert_eq!((unknown.reason, unknown.detail("nearest")), (Reason::NamespaceUnknown, Some("bank")));
    assert_eq!(reason(client.get(within(get("bank", ""))).await), Reason::EmptyKey);
    let long = "x".repeat(MAX_KEY_BYTES + 1);
    assert_eq!(reason(client.get(within(get("bank", &long))).await), Reason::LimitKey);
    let quorum = Some(v1::ReplicaCount { count: Some(v1::replica_count::Count::Quorum(true)) });
    let request = v1::GetRequest { read_replicas: quorum, ..get("bank", "k") };
    assert_eq!(reason(client.get(within(request)).await), Reason::ModeMismatch);
    let nine = Some(v1::ReplicaCount { count: Some(v1::replica_count::Count::Number(9)) });
    let request = v1::GetRequest { read_replicas: nine, ..get("cart", "k") };
    assert_eq!(reason(client.get(within(request)).await), Reason::InvalidRequest);

    // Writes.
    let large = "x".repeat(MAX_VALUE_BYTES + 1);
    for namespace in ["bank", "cart"] {
        let context = if namespace == "cart" { observed() } else { None };
        let bad = [
            ("", "v", Reason::EmptyKey),
            (long.as_str(), "v", Reason::LimitKey),
            ("k", large.as_str(), Reason::LimitValue),
        ];
        for (key, value, reason) in bad {
            let request =
                v1::PutRequest { context: context.clone(), ..put(&mut cluster, namespace, key, value) };
            let refused = failed(client.put(within(request)).await);
            assert_eq!((refused.reason, refused.applied), (reason, Applied::No), "{namespace}: {refused}");
        }
    }
    let request = put(&mut cluster, "bank", "k", &large);
    let refused = failed(client.put(within(request)).await);
    assert_eq!((refused.reason, refused.applied), (Reason::LimitValue, Applied::No));
    assert!(refused.request_id.is_some());
    let request = put(&mut cluster, "cart", "k", "v");
    assert_eq!(reason(client.put(within(request)).await), Reason::ContextMissing);
    let request = v1::PutRequest { context: observed(), ..put(&mut cluster, "bank", "k", "v") };
    assert_eq!(reason(client.put(within(request)).await), Reason::ModeMismatch);
    let request = v1::PutRequest { mutation: None, ..put(&mut cluster, "bank", "k", "v") };
    assert_eq!(reason(client.put(within(request)).await), Reason::RequestIdInvalid);
    let request = available_put(&mut cluster, "k", "v", causal(&b"\xff\xff\xffno context"[..]));
    assert_eq!(reason(client.put(within(request)).await), Reason::BadContext);
    let request = available_put(&mut cluster, "k", "v", causal(vec![0; MAX_CONTEXT_BYTES + 1]));
    assert_eq!(reason(client.put(within(request)).await), Reason::BadContext);
    let request = available_put(&mut cluster, "k1", "v", observed());
    let written = client.put(within(request)).await.unwrap().into_inner();
    let request = available_put(&mut cluster, "k2", "v", causal(written.context));
    assert_eq!(reason(client.put(within(request)).await), Reason::ForeignContext);
    // Of the same key in another namespace.
    cluster.create("wish", admin::Mode::Available, 0).await;
    let request = v1::PutRequest { context: observed(), ..put(&mut cluster, "wish", "k1", "v") };
    let wished = client.put(within(request)).await.unwrap().into_inner();
    let request = available_put(&mut cluster, "k1", "v", causal(wished.context.clone()));
    let refused = failed(client.put(within(request)).await);
    assert_eq!((refused.reason, refused.applied), (Reason::ForeignContext, Applied::No), "{refused}");
    let request = v1::PutRequest { context: causal(wished.context), ..put(&mut cluster, "wish", "k1", "w") };
    client.put(within(request)).await.unwrap();
    let request = compare(&mut cluster, "cart", "k", 0, "v");
    let refused = failed(client.compare_and_set(within(request)).await);
    assert_eq!((refused.reason, refused.detail("offered_by")), (Reason::ModeMismatch, Some("strong")));
    // The same identity with another body.
    let request = put(&mut cluster, "bank", "reused", "v");
    client.put(within(request.clone())).await.unwrap();
    let other = v1::PutRequest { value: "other".into(), ..request };
    assert_eq!(reason(client.put(within(other)).await), Reason::RequestIdReused);

    // Namespaces.
    let mut admin_client = cluster.admin(2);
    let mut create = |name: &str, change: fn(&mut admin::CreateNamespaceRequest)| {
        let mut request = admin::CreateNamespaceRequest {
            name: name.into(),
            mutation: cluster.mutation(),
            ..Default::default()
        };
        change(&mut request);
        within(request)
    };
    let missing = failed(admin_client.create_namespace(create("new", |_| {})).await);
    assert_eq!((missing.reason, missing.message.lines().count()), (Reason::ModeMissing, 3));
    let strong = |r: &mut admin::CreateNamespaceRequest| r.set_mode(admin::Mode::Strong);
    assert_eq!(
        reason(admin_client.create_namespace(create("Not a name", strong)).await),
        Reason::NamespaceInvalid
    );
    assert_eq!(reason(admin_client.create_namespace(create("cart", strong)).await), Reason::NamespaceExists);
    let too_many = |r: &mut admin::CreateNamespaceRequest| {
        r.set_mode(admin::Mode::Available);
        r.n = 5;
    };
    assert_eq!(
        reason(admin_client.create_namespace(create("new", too_many)).await),
        Reason::NamespaceInvalid
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_with_a_wrong_identity_are_refused_by_name() {
    let mut cluster = three().await;
    // A ring of its own, made in a later epoch than the first.
    cluster.create("pair", admin::Mode::Available, 2).await;
    let epoch =
        cluster.admin(1).get_status(within(admin::GetStatusRequest {})).await.unwrap().into_inner().epoch;
    let address = format!("http://{}", cluster.member(1).peer_address);
    let read = || {
        let read = kv_proto::peer::ReplicaRead { ring: 2, partition: 0, key: "k".into() };
        Some(request_frame::Body::ReplicaRead(read))
    };
    let good = RequestFrame {
        id: 1,
        cluster_id: kv_proto::cluster_id_bytes(common::CLUSTER),
        from_node: 2,
        to_node: 1,
        namespace_id: 2,
        epoch,
        deadline_ms: 5_000,
        body: read(),
        ..RequestFrame::default()
    };
    let vote = kv_proto::peer::RaftVote { pre_vote: true, ..Default::default() };
    let vote = Some(request_frame::Body::RaftVote(vote));
    let table = [
        (RequestFrame { cluster_id: vec![9; 16].into(), ..good.clone() }, Reason::WrongCluster),
        (RequestFrame { to_node: 3, ..good.clone() }, Reason::WrongNode),
        (RequestFrame { from_node: 77, ..good.clone() }, Reason::WrongNode),
        (RequestFrame { group: 99, body: vote, ..good.clone() }, Reason::WrongGroup),
        (RequestFrame { epoch: epoch + 10, ..good.clone() }, Reason::WrongEpoch),
        (RequestFrame { epoch: 1, ..good.clone() }, Reason::WrongEpoch),
        (RequestFrame { deadline_ms: 0, ..good.clone() }, Reason::DeadlineExpired),
        (RequestFrame { body: None, ..good.clone() }, Reason::InvalidRequest),
    ];
    for (row, (frame, reason)) in table.into_iter().enumerate() {
        assert_eq!(refused(&address, frame).await.reason, reason, "row {row}");
    }
    // A call that was passed on names its namespace by id, and the settings by which it was read.
    let put = put(&mut cluster, "", "k", "passed on");
    let forward = |id: u64, settings_version: u64| {
        let request = Some(kv_proto::peer::forward::Request::Put(put.clone()));
        let body = kv_proto::peer::Forward { settings_version, request };
        RequestFrame { namespace_id: id, body: Some(request_frame::Body::Forward(body)), ..good.clone() }
    };
    for (row, (id, version, reason)) in [
        (1, 0, Reason::WrongEpoch),
        (1, 9, Reason::WrongEpoch),
        (0, 1, Reason::NotReady),
        (77, 1, Reason::NotReady),
    ]
    .into_iter()
    .enumerate()
    {
        let refusal = refused(&address, forward(id, version)).await;
        assert_eq!((refusal.reason, refusal.applied), (reason, Applied::No), "row {row}: {refusal}");
    }
    // What only a broken peer sends is refused too, and the status counts it.
    let refusals = async || {
        let status = cluster.admin(1).get_status(within(admin::GetStatusRequest {})).await.unwrap();
        status.into_inner().refusals.into_iter().map(|r| (r.reason, r.count)).collect::<Vec<_>>()
    };
    assert_eq!(refusals().await, []);
    let vote = kv_proto::peer::Vote { term: u64::MAX, node: 2, committed: false };
    let vote = kv_proto::peer::RaftVote { vote: Some(vote), pre_vote: true, ..Default::default() };
    let vote = Some(request_frame::Body::RaftVote(vote));
    let refusal = refused(&address, RequestFrame { group: 1, body: vote, ..good }).await;
    assert_eq!(refusal.reason, Reason::InvalidRequest, "{refusal}");
    assert_eq!(refusals().await, [("peer_message".to_owned(), 1)]);
    cluster.stop().await;
}

/// How the node at an address refuses a frame of a peer.
async fn refused(address: &str, frame: RequestFrame) -> Failure {
    let asked = frame.id;
    // A connection has few streams, and these are never ended.
    let mut peer = PeerServiceClient::connect(address.to_owned()).await.unwrap();
    let outgoing = tokio_stream::StreamExt::chain(
        tokio_stream::once(ExchangeRequest { frames: vec![frame] }),
        tokio_stream::pending(),
    );
    let mut answers = peer.exchange(outgoing).await.unwrap().into_inner();
    // Under load the node reports that bytes arrive, in frames of id 0, before it answers.
    let answer = loop {
        let frames = answers.message().await.unwrap().unwrap().frames;
        if let Some(answer) = frames.into_iter().find(|answer| answer.id == asked) {
            break answer;
        }
    };
    match answer.body {
        Some(response_frame::Body::Failure(failure)) => Failure::from(&failure),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_administrator_sees_and_moves() {
    let mut cluster = three().await;
    let topology =
        cluster.admin(3).get_topology(within(admin::GetTopologyRequest {})).await.unwrap().into_inner();
    assert_eq!((topology.answered_by, topology.members.len(), topology.namespaces.len()), (3, 3, 2));
    assert_eq!(topology.cluster_id, kv_proto::cluster_id_bytes(common::CLUSTER));
    let old = topology.leaders.iter().find(|leader| leader.group == 1).unwrap().leader;
    let next = old % 3 + 1;
    // Asked at a node that leads nothing, so that it has to be passed on.
    let asked = (1..=3).find(|id| *id != old).unwrap();
    let request = admin::TransferLeaderRequest { group: 1, to: next };
    let moved = cluster.admin(asked).transfer_leader(within(request)).await.unwrap().into_inner();
    assert_eq!(moved.leader, next);
    eventually("the node asked sees the new leader", async || {
        let topology = cluster.admin(asked).get_topology(within(admin::GetTopologyRequest {})).await.unwrap();
        topology.into_inner().leaders.iter().any(|leader| leader.group == 1 && leader.leader == next)
    })
    .await;

    for i in 0..5 {
        let request = available_put(&mut cluster, &format!("k{i}"), "v", observed());
        cluster.kv(1).put(within(request)).await.unwrap();
    }
    let status = cluster.admin(1).get_status(within(admin::GetStatusRequest {})).await.unwrap().into_inner();
    assert_eq!((status.node, status.peers.len(), status.groups.len()), (1, 2, 2));
    assert!(
        status.peers.iter().all(|peer| peer.state() == kv_proto::admin::PeerState::Up),
        "{:?}",
        status.peers
    );
    assert!(status.storage.unwrap().fsyncs > 0 && status.version == kv_server::VERSION);
    assert!(status.writes_acknowledged >= 5, "{}", status.writes_acknowledged);
    let counted = |part: &'static str| status.latencies.iter().filter(move |found| found.part == part);
    let written = counted("available_write").next().unwrap();
    assert_eq!((written.count, written.group), (5, None));
    assert!(written.p50_us > 0 && written.p50_us <= written.p99_us && written.p999_us <= written.max_us);
    assert!(counted("log_write").all(|found| found.count > 0) && counted("log_write").count() == 1);
    assert_eq!(
        counted("available_read").count(),
        0,
        "what never occurred is left out: {:?}",
        status.latencies
    );
    let applied: Vec<Option<u32>> = counted("apply_step").map(|found| found.group).collect();
    assert_eq!(applied, [Some(0), Some(1)]);
    assert_eq!(topology.rings.len(), 1);
    assert_eq!(topology.rings[0].primaries.len(), 3 * topology.rings[0].partitions as usize);

    let request = admin::GetRingOwnersRequest { namespace: "cart".into(), key: "k1".into() };
    let owners = cluster.admin(2).get_ring_owners(within(request)).await.unwrap().into_inner();
    assert_eq!((owners.primaries.len(), owners.fallbacks.len()), (3, 0));
    let request = admin::GetRingOwnersRequest { namespace: "bank".into(), key: "k1".into() };
    let owners = cluster.admin(2).get_ring_owners(within(request)).await.unwrap().into_inner();
    assert_eq!((owners.ring, owners.primaries), (0, vec![1, 2, 3]));
    let explain =
        |namespace: &str| within(admin::ExplainKeyRequest { namespace: namespace.into(), key: "k1".into() });
    let strong = cluster.admin(2).explain_key(explain("bank")).await.unwrap().into_inner();
    assert!((1..=3).contains(&strong.leader) && strong.viewpoint == 2 && strong.copies.is_empty());
    assert!(cluster.admin(2).explain_key(explain("nothing")).await.is_err());
    let available = cluster.admin(2).explain_key(explain("cart")).await.unwrap().into_inner();
    assert_eq!((available.viewpoint, available.copies.len(), available.strict_replicas), (2, 3, 3));
    assert!(available.known && available.copies.iter().all(|copy| copy.primary));

    eventually("the digests of the strong namespace agree at one index", async || {
        let mut digests = Vec::new();
        for id in 1..=3 {
            let request = admin::GetDigestRequest { namespace: "bank".into() };
            digests.push(cluster.admin(id).get_digest(within(request)).await.unwrap().into_inner());
        }
        digests[0].applied_index.is_some() && digests[0] == digests[1] && digests[1] == digests[2]
    })
    .await;
    eventually("the digests of all nodes agree", async || {
        let mut digests = Vec::new();
        for id in 1..=3 {
            let request = admin::GetDigestRequest { namespace: "cart".into() };
            digests
                .push(cluster.admin(id).get_digest(within(request)).await.unwrap().into_inner().partitions);
        }
        let keys: u64 = digests[0].iter().map(|partition| partition.keys).sum();
        keys == 5 && digests[0] == digests[1] && digests[1] == digests[2]
    })
    .await;
    cluster.stop().await;
}

async fn serves(cluster: &Cluster, id: u64, service: &str) -> bool {
    let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
    let status = cluster.health(id).check(within(request)).await.unwrap().into_inner().status;
    status == i32::from(tonic_health::pb::health_check_response::ServingStatus::Serving)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_refuses_on_one_side_and_answers_on_the_other() {
    let mut cluster = Cluster::start(5).await;
    cluster.create("bank", admin::Mode::Strong, 0).await;
    cluster.create("cart", admin::Mode::Available, 0).await;
    let request = put(&mut cluster, "bank", "k", "before");
    cluster.kv(1).put(within(request)).await.unwrap();
    let request = available_put(&mut cluster, "k", "before", observed());
    cluster.kv(1).put(within(request)).await.unwrap();
    for service in ["", "quorate.v1.KvService/strong", "quorate.v1.KvService/available"] {
        eventually(service, async || serves(&cluster, 1, service).await).await;
    }

    for id in [3, 4, 5] {
        cluster.stop_node(id).await;
    }
    // The last of them that led may have handed over to one of these: it leads until its lease is over, and
    // what it takes until then is unknown.
    let begun = tokio::time::Instant::now();
    for probe in 0.. {
        let request = put(&mut cluster, "bank", &format!("probe{probe}"), "minority");
        let mut request = within(request);
        request.set_timeout(Duration::from_millis(500));
        if failed(cluster.kv(1).put(request).await).applied == Applied::No {
            break;
        }
        assert!(begun.elapsed() < common::PATIENCE, "a lease does not end");
    }
    eventually("health tells that the strong side is gone", async || {
        !serves(&cluster, 1, "quorate.v1.KvService/strong").await
    })
    .await;
    assert!(serves(&cluster, 1, "").await && serves(&cluster, 1, "quorate.v1.KvService/available").await);
    let request = put(&mut cluster, "bank", "k", "minority");
    let refused = failed(cluster.kv(1).put(within(request)).await);
    assert_eq!(refused.applied, Applied::No, "{refused}");
    assert_eq!(kv_proto::code_of(refused.reason), tonic::Code::Unavailable, "{refused}");
    assert_eq!(failed(cluster.kv(2).get(within(get("bank", "k"))).await).applied, Applied::No);
    // Another side may have created it: a node that is cut off does not say that it does not exist.
    for id in [1, 2] {
        let refused = failed(cluster.kv(id).get(within(get("nowhere", "k"))).await);
        assert_eq!((refused.reason, refused.applied), (Reason::NoQuorum, Applied::No), "{refused}");
    }
    // Ring partitions with all kinds of primaries: W=2 is met by the two nodes that are left.
    for i in 0..10 {
        let request = available_put(&mut cluster, &format!("k{i}"), "minority", observed());
        let written = cluster.kv(1 + i % 2).put(within(request)).await.unwrap().into_inner();
        assert!(Receipt::try_from(written.receipt.as_ref().unwrap()).is_ok());
        let read =
            cluster.kv(2 - i % 2).get(within(get("cart", &format!("k{i}")))).await.unwrap().into_inner();
        assert_eq!(values(&read), ["minority"]);
    }

    // Back from their disks: what was written in the minority reaches its owners, and nothing acknowledged is
    // lost.
    for id in [3, 4, 5] {
        cluster.start_node(NodeId(id)).await;
    }
    cluster.serving().await;
    let read = cluster.kv(4).get(within(get("bank", "k"))).await.unwrap().into_inner();
    assert_eq!(read.value.as_ref(), b"before");
    eventually("the hints are delivered", async || {
        let mut pending = 0;
        for id in [1, 2] {
            let status = cluster.admin(id).get_status(within(admin::GetStatusRequest {})).await.unwrap();
            pending += status.into_inner().hints_pending;
        }
        pending == 0
    })
    .await;
    for i in 0..10 {
        let read = cluster.kv(5).get(within(get("cart", &format!("k{i}")))).await.unwrap().into_inner();
        assert_eq!(values(&read), ["minority"]);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_always_comes_by_the_deadline() {
    let mut cluster = three().await;
    cluster.stop_node(2).await;
    cluster.stop_node(3).await;
    for patience in [50, 300, 1_000] {
        let request = put(&mut cluster, "bank", "k", "v");
        let mut request = Request::new(request);
        request.set_timeout(Duration::from_millis(patience));
        let begun = tokio::time::Instant::now();
        let failure = failed(cluster.kv(1).put(request).await);
        // The answer is ours, with a name and an outcome, and not the transport giving up.
        assert!(failure.request_id.is_some(), "{failure}");
        assert!(begun.elapsed() < Duration::from_millis(patience + 150), "{:?}", begun.elapsed());
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_outlives_its_deadline_without_a_majority() {
    const PATIENCE: Duration = Duration::from_millis(500);
    let mut cluster = three().await;
    let request = available_put(&mut cluster, "k", "before", observed());
    cluster.kv(1).put(within(request)).await.unwrap();
    cluster.stop_node(2).await;
    cluster.stop_node(3).await;
    let all = Some(v1::ReplicaCount { count: Some(v1::replica_count::Count::All(true)) });
    fn short<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(PATIENCE);
        request
    }
    // More than once: first while the node still believes in its peers, then when it knows better.
    for round in 0..3 {
        let mut client = cluster.kv(1);
        let strong_get = short(get("bank", "k"));
        let available_get = short(v1::GetRequest { read_replicas: all, ..get("cart", "k") });
        let strict = available_put(&mut cluster, "k", "strict", observed());
        let strict = short(v1::PutRequest { strict: true, write_replicas: all, ..strict });
        let plain = short(available_put(&mut cluster, "k", "plain", observed()));
        let mut took = Vec::new();
        let mut begun = tokio::time::Instant::now();
        let mut lap = |what: &'static str, failure: Failure| {
            took.push((what, begun.elapsed(), failure));
            begun = tokio::time::Instant::now();
        };
        lap("strong get", failed(client.get(strong_get).await));
        lap("available get of all", failed(client.get(available_get).await));
        lap("available put to all", failed(client.put(strict).await));
        lap("available put", failed(client.put(plain).await));
        for (what, time, failure) in took {
            // The answer is the node's, with a name, and not the transport giving up. Reads have no request
            // id.
            assert_ne!(failure.reason, Reason::ConnectionLost, "round {round}, {what}: {failure}");
            assert_eq!(
                failure.request_id.is_some(),
                what.contains("put"),
                "round {round}, {what}: {failure}"
            );
            assert!(
                time < PATIENCE + Duration::from_millis(200),
                "round {round}, {what}: {time:?}, {failure}"
            );
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_is_unknown_at_every_node_and_nothing_of_it_is_left() {
    let mut cluster = three().await;
    let put_at = |request: v1::PutRequest, id: u64| {
        let mut client = cluster.kv(id);
        async move { client.put(within(request)).await }
    };
    let listed = |id: u64| {
        let mut client = cluster.admin(id);
        async move {
            let all = client.list_namespaces(within(admin::ListNamespacesRequest {})).await.unwrap();
            all.into_inner().namespaces.into_iter().map(|one| (one.name, one.id)).collect::<Vec<_>>()
        }
    };
    let ids: std::collections::BTreeMap<String, u64> = listed(1).await.into_iter().collect();
    for number in 0..40 {
        let key = format!("k{number}");
        let strong = v1::PutRequest { mutation: mutation_of(number), ..plain("bank", &key) };
        put_at(strong, number % 3 + 1).await.unwrap();
        let available = v1::PutRequest {
            mutation: mutation_of(1_000 + number),
            context: observed(),
            ..plain("cart", &key)
        };
        put_at(available, number % 3 + 1).await.unwrap();
    }
    let rows = |id: u64, name: &str| cluster.node(id).rows_of(NamespaceId(ids[name])).unwrap();
    for name in ["bank", "cart"] {
        assert!(rows(1, name) >= 40, "{} rows of {name}", rows(1, name));
    }
    for (number, name) in (2_000..).zip(["bank", "cart"]) {
        let request = admin::DeleteNamespaceRequest { name: name.into(), mutation: mutation_of(number) };
        let done = cluster.admin(2).delete_namespace(within(request.clone())).await.unwrap().into_inner();
        assert_eq!(done.namespace.map(|namespace| namespace.id), Some(ids[name]));
        assert!(listed(2).await.iter().all(|(known, _)| known != name), "{name} is gone where it was asked");
        // The same request again, from another node.
        let again = cluster.admin(3).delete_namespace(within(request)).await.unwrap().into_inner();
        assert!(again.receipt.is_some_and(|receipt| receipt.deduplicated));
        let other = admin::DeleteNamespaceRequest { name: name.into(), mutation: mutation_of(number + 50) };
        let refused = failed(cluster.admin(1).delete_namespace(within(other)).await);
        assert_eq!((refused.reason, refused.applied), (Reason::NamespaceUnknown, Applied::No), "{refused}");
    }
    for id in 1..=3 {
        eventually("the deletions are known", async || listed(id).await.is_empty()).await;
        for (number, name) in (3_000 + 10 * id..).zip(["bank", "cart"]) {
            let late =
                v1::PutRequest { mutation: mutation_of(number), context: observed(), ..plain(name, "late") };
            let refused = failed(put_at(late, id).await);
            assert_eq!(
                (refused.reason, refused.applied),
                (Reason::NamespaceUnknown, Applied::No),
                "{refused}"
            );
            assert_eq!(reason(cluster.kv(id).get(within(get(name, "k1"))).await), Reason::NamespaceUnknown);
            eventually("nothing is left", async || rows(id, name) == 0).await;
        }
    }
    cluster.create("bank", admin::Mode::Available, 0).await;
    let read = cluster.kv(1).get(within(get("bank", "k1"))).await.unwrap().into_inner();
    assert_eq!(read.presence(), v1::Presence::Absent);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_that_can_be_taken_back_is_refused_by_name_and_loses_nothing() {
    let cluster = three().await;
    let put = |number: u64, name: &str, key: &str| v1::PutRequest {
        mutation: mutation_of(number),
        context: if name == "cart" { observed() } else { None },
        ..plain(name, key)
    };
    for (number, name) in (1..).zip(["bank", "cart"]) {
        cluster.kv(1).put(within(put(number, name, "k"))).await.unwrap();
    }
    for (number, name) in (100..).zip(["bank", "cart"]) {
        let request = admin::ScheduleDeletionRequest {
            name: name.into(),
            grace_ms: None,
            mutation: mutation_of(number),
        };
        let done = cluster.admin(2).schedule_deletion(within(request)).await.unwrap().into_inner();
        let until = done.namespace.unwrap().deleted_until_ms;
        for id in 1..=3 {
            let known = async || {
                let listed = cluster.admin(id).list_namespaces(within(admin::ListNamespacesRequest {})).await;
                let all = listed.unwrap().into_inner().namespaces;
                all.iter().any(|one| one.name == name && one.deleted_until_ms == until)
            };
            eventually("the deletion is known", known).await;
            let refused = [
                failed(cluster.kv(id).put(within(put(1_000 * id + number, name, "k"))).await),
                failed(cluster.kv(id).get(within(get(name, "k"))).await),
                failed(cluster.kv(id).get(within(get(name, "absent"))).await),
            ];
            for refused in refused {
                assert_eq!(
                    (refused.reason, refused.applied),
                    (Reason::DeletionPending, Applied::No),
                    "{refused}"
                );
                assert_eq!(refused.detail("deleted_until_ms"), until.map(|ms| ms.to_string()).as_deref());
            }
        }
        let taken = admin::CreateNamespaceRequest {
            name: name.into(),
            mode: admin::Mode::Strong.into(),
            mutation: mutation_of(number + 10),
            ..Default::default()
        };
        assert_eq!(reason(cluster.admin(3).create_namespace(within(taken)).await), Reason::NamespaceExists);
        let back = admin::UndeleteNamespaceRequest { name: name.into(), mutation: mutation_of(number + 20) };
        cluster.admin(3).undelete_namespace(within(back)).await.unwrap();
        for id in 1..=3 {
            // One that has not heard yet refuses it still.
            eventually("it is served again", async || {
                match cluster.kv(id).get(within(get(name, "k"))).await {
                    Ok(read) => {
                        assert_eq!(read.into_inner().presence(), v1::Presence::Found, "{name} at n{id}");
                        true
                    }
                    Err(status) => {
                        let reason = kv_proto::failure_from_status(&status).reason;
                        assert_eq!(reason, Reason::DeletionPending, "{name} at n{id}: {status}");
                        false
                    }
                }
            })
            .await;
        }
        cluster.kv(1).put(within(put(number + 30, name, "more"))).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn altered_counts_are_those_that_reads_and_writes_wait_for() {
    let mut cluster = three().await;
    let put = |number: u64| v1::PutRequest {
        mutation: mutation_of(number),
        context: observed(),
        ..plain("cart", "k")
    };
    cluster.kv(1).put(within(put(1))).await.unwrap();
    let alter = |number: u64, r, w| admin::AlterNamespaceRequest {
        name: "cart".into(),
        r: Some(r),
        w: Some(w),
        mutation: mutation_of(number),
    };
    let altered = cluster.admin(2).alter_namespace(within(alter(2, 1, 3))).await.unwrap().into_inner();
    assert_eq!(altered.namespace.map(|one| (one.n, one.r, one.w)), Some((3, 1, 3)));
    for id in 1..=3 {
        // Whether it has heard or not: it is served by the settings before or after.
        cluster.kv(id).put(within(put(10 + id))).await.unwrap();
        eventually("the settings are known", async || {
            let listed = cluster.admin(id).list_namespaces(within(admin::ListNamespacesRequest {})).await;
            listed.unwrap().into_inner().namespaces.iter().any(|one| (one.r, one.w) == (1, 3))
        })
        .await;
    }
    cluster.stop_node(3).await;
    eventually("writes wait for three replicas", async || {
        let written = cluster.kv(1).put(within(put(kv_env::Env::real().clock.wall_ms()))).await;
        written.is_err_and(|status| {
            let reason = kv_proto::failure_from_status(&status).reason;
            matches!(reason, Reason::QuorumNotMet | Reason::PartialWrite)
        })
    })
    .await;
    let read = cluster.kv(1).get(within(get("cart", "k"))).await.unwrap().into_inner();
    assert_eq!(read.presence(), v1::Presence::Found);
    // The other way about, while a replica is away.
    eventually("it is altered again", async || {
        cluster.admin(2).alter_namespace(within(alter(3, 3, 1))).await.is_ok()
    })
    .await;
    eventually("reads wait for three replicas", async || {
        let read = cluster.kv(1).get(within(get("cart", "k"))).await;
        read.is_err_and(|status| kv_proto::failure_from_status(&status).reason == Reason::QuorumNotMet)
    })
    .await;
    cluster.kv(1).put(within(put(4))).await.unwrap();
    cluster.stop().await;
}

/// The only write of a client.
fn mutation_of(client: u64) -> Option<v1::Mutation> {
    Some(v1::Mutation {
        client_id: kv_proto::client_id_bytes(kv_types::ClientId(u128::from(client) << 64 | 9)),
        seq: 1,
        issued_at_ms: kv_env::Env::real().clock.wall_ms(),
        lowest_unacked: 1,
        attempt: 1,
    })
}

fn plain(namespace: &str, key: &str) -> v1::PutRequest {
    v1::PutRequest {
        namespace: namespace.into(),
        key: bytes::Bytes::copy_from_slice(key.as_bytes()),
        value: "v".into(),
        ..Default::default()
    }
}
