//! What clients can make a node hold, by a client written on bare HTTP/2: connections that say nothing,
//! requests that do not end, answers that are not read, one namespace that floods.
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

use bytes::Bytes;
use common::process::{cluster_file, ends, kvd, most_memory, ready, spawn, terminate};
use common::raw::{message, open, raw, status, whole};
use common::{Cluster, eventually, failed, members, within};
use kv_proto::admin::admin_service_client::AdminServiceClient;
use kv_proto::v1::kv_service_client::KvServiceClient;
use kv_proto::{admin, failure_from_status, v1};
use kv_types::limits::{MAX_PUBLIC_MESSAGE_BYTES, MAX_VALUE_BYTES};
use kv_types::{Applied, Reason};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const GET: &str = "/quorate.v1.KvService/Get";
const PUT: &str = "/quorate.v1.KvService/Put";
const TOPOLOGY: &str = "/quorate.admin.v1.AdminService/GetTopology";
const CHECK: &str = "/grpc.health.v1.Health/Check";

fn get(namespace: &str, key: &str) -> v1::GetRequest {
    v1::GetRequest { namespace: namespace.into(), key: key.to_owned().into(), ..Default::default() }
}

async fn one_node() -> Cluster {
    let mut cluster = Cluster::start(1).await;
    cluster.create("bank", admin::Mode::Strong, 0).await;
    cluster
}

async fn put_large(cluster: &mut Cluster, key: &str) {
    let request = large_put(cluster, "bank", key);
    cluster.kv(1).put(within(request)).await.unwrap();
}

/// Waits until nothing is under way but what this asks itself.
async fn calm(cluster: &Cluster) {
    eventually("nothing is held any more", async || {
        let node = cluster.node(1);
        node.open_requests() == 0 && node.buffered_bytes().0 == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_do_not_end_are_admitted_by_their_length_and_end_at_their_deadline() {
    let cluster = one_node().await;
    let mut send = raw(&cluster.member(1).client_address, 65_535).await;
    // Larger than a request may be: refused by the length alone, before any of it is there.
    let (answer, mut body) = open(&mut send, PUT, Some("5S")).await;
    body.send_data(message(MAX_PUBLIC_MESSAGE_BYTES, b"begun"), false).unwrap();
    let refused = status(answer).await;
    let failure = failure_from_status(&refused);
    assert_eq!((failure.reason, failure.applied), (Reason::InvalidRequest, Applied::No), "{refused:?}");
    assert!(failure.detail("limit_bytes").is_some(), "{failure}");

    // More than there is room for: what is over it is refused at once, the rest at its deadline.
    let mut kept = Vec::new();
    for _ in 0..600 {
        let (answer, mut body) = open(&mut send, PUT, Some("2S")).await;
        body.send_data(message(MAX_VALUE_BYTES, b"begun"), false).unwrap();
        kept.push((answer, body));
    }
    let limit = usize::try_from(kv_server::LimitSettings::default().buffered_size).unwrap();
    let (mut overloaded, mut expired) = (0, 0);
    // Meanwhile another connection is served.
    cluster.kv(1).get(within(get("bank", "k"))).await.unwrap();
    for (answer, body) in kept {
        let failure = failure_from_status(&status(answer).await);
        drop(body);
        assert_eq!(failure.applied, Applied::No, "{failure}");
        match failure.reason {
            Reason::Overloaded => overloaded += 1,
            Reason::DeadlineExpired => expired += 1,
            other => panic!("{other}: {failure}"),
        }
    }
    let (_, most) = cluster.node(1).buffered_bytes();
    println!("{overloaded} refused, {expired} expired, at most {most} bytes");
    assert!(overloaded > 100 && expired > 100, "{overloaded} {expired}");
    assert!(most <= limit / 2 + MAX_VALUE_BYTES, "one connection has half: {most}");
    calm(&cluster).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_not_read_are_counted_and_dropped_at_their_deadline() {
    let mut cluster = one_node().await;
    cluster.create("calm", admin::Mode::Strong, 0).await;
    put_large(&mut cluster, "large").await;
    // A window of zero: nothing of any answer is ever taken.
    let mut send = raw(&cluster.member(1).client_address, 0).await;
    let mut kept = Vec::new();
    for _ in 0..500 {
        let (answer, mut body) = open(&mut send, GET, Some("3S")).await;
        body.send_data(whole(&get("bank", "large")), true).unwrap();
        kept.push((answer, body));
    }
    for (path, request) in [
        (TOPOLOGY, whole(&admin::GetTopologyRequest {})),
        (CHECK, whole(&tonic_health::pb::HealthCheckRequest { service: String::new() })),
    ] {
        for _ in 0..100 {
            let (answer, mut body) = open(&mut send, path, Some("3S")).await;
            body.send_data(request.clone(), true).unwrap();
            kept.push((answer, body));
        }
    }
    eventually("answers wait", async || cluster.node(1).buffered_bytes().0 > 80 * MAX_VALUE_BYTES).await;
    // Meanwhile another namespace is served, and this one refuses.
    cluster.kv(1).get(within(get("calm", "k"))).await.unwrap();
    let failure = failed(cluster.kv(1).get(within(get("bank", "large"))).await);
    assert_eq!((failure.reason, failure.applied), (Reason::Overloaded, Applied::No), "{failure}");
    let limit = usize::try_from(kv_server::LimitSettings::default().buffered_size).unwrap();
    // The streams are still open on this side, and the node has let go of all of them.
    calm(&cluster).await;
    let (_, most) = cluster.node(1).buffered_bytes();
    assert!(most <= limit, "{most}");
    let (mut reset, mut overloaded) = (0, 0);
    for (answer, _) in kept {
        let (head, mut body) = answer.await.unwrap().into_parts();
        match Status::from_header_map(&head.headers) {
            Some(status) => {
                assert_eq!(failure_from_status(&status).reason, Reason::Overloaded, "{status:?}");
                overloaded += 1;
            }
            None => {
                let ended = body.data().await.unwrap().unwrap_err();
                assert_eq!(ended.reason(), Some(h2::Reason::CANCEL), "{ended}");
                reset += 1;
            }
        }
    }
    println!("{reset} reset, {overloaded} refused, at most {most} bytes");
    assert!(reset >= 250 && overloaded >= 300, "{reset} {overloaded}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_a_deadline_and_watches_do_not_stay() {
    let cluster = one_node().await;
    let mut send = raw(&cluster.member(1).client_address, 65_535).await;
    let (answer, body) = open(&mut send, GET, None).await;
    let failure = failure_from_status(&status(answer).await);
    assert_eq!((failure.reason, failure.applied), (Reason::DeadlineExpired, Applied::No), "{failure}");
    drop(body);
    // A watch lives on, and ends with the node.
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let (answer, mut body) = open(&mut send, "/grpc.health.v1.Health/Watch", None).await;
    body.send_data(whole(&request), true).unwrap();
    let mut watched = answer.await.unwrap().into_body();
    assert!(watched.data().await.unwrap().is_ok());
    let begun = std::time::Duration::from_secs(2);
    tokio::time::timeout(begun * 5, cluster.stop()).await.unwrap();
    assert!(!matches!(watched.data().await, Some(Ok(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_refused_in_our_words() {
    let cluster = one_node().await;
    let mut send = raw(&cluster.member(1).client_address, 65_535).await;
    let two = [whole(&get("bank", "k")), whole(&get("bank", "k"))].concat();
    let mut compressed = whole(&get("bank", "k")).to_vec();
    compressed[0] = 1;
    for (path, bytes, code) in [
        (GET, message(3, b"\xff\xff\xff"), Code::InvalidArgument),
        (GET, message(100, b"cut short"), Code::InvalidArgument),
        (GET, Bytes::new(), Code::InvalidArgument),
        (GET, two.into(), Code::InvalidArgument),
        (GET, compressed.into(), Code::InvalidArgument),
        ("/quorate.v1.KvService/Unknown", whole(&get("bank", "k")), Code::Unimplemented),
        ("/unknown.Service/Get", whole(&get("bank", "k")), Code::Unimplemented),
        ("/", Bytes::new(), Code::Unimplemented),
    ] {
        let (answer, mut body) = open(&mut send, path, Some("5S")).await;
        body.send_data(bytes.clone(), true).unwrap();
        let refused = status(answer).await;
        let failure = failure_from_status(&refused);
        assert_eq!(
            (refused.code(), failure.reason, failure.applied),
            (code, Reason::InvalidRequest, Applied::No),
            "{path} {bytes:?}: {refused:?}"
        );
    }
    // Digests end by their deadline with a name, too.
    let mut short = tonic::Request::new(admin::GetDigestRequest { namespace: "unknown".into() });
    // Without a timer of the client, which is the first one to know on a busy machine.
    short.metadata_mut().insert("grpc-timeout", "50m".parse().unwrap());
    let failure = failed(cluster.admin(1).get_digest(short).await);
    assert_eq!(failure.applied, Applied::No, "{failure}");
    assert_ne!(failure.reason, Reason::ConnectionLost, "{failure}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_one_namespace_leaves_the_others_alone() {
    let mut cluster = one_node().await;
    cluster.create("calm", admin::Mode::Strong, 0).await;
    cluster.create("cart", admin::Mode::Available, 1).await;
    put_large(&mut cluster, "large").await;
    // As many unread answers as the node takes, over many connections.
    let mut kept = Vec::new();
    for _ in 0..8 {
        let mut send = raw(&cluster.member(1).client_address, 0).await;
        for _ in 0..100 {
            let (answer, mut body) = open(&mut send, GET, Some("4S")).await;
            body.send_data(whole(&get("bank", "large")), true).unwrap();
            kept.push((answer, body));
        }
    }
    let limit = usize::try_from(kv_server::LimitSettings::default().buffered_size).unwrap();
    eventually("the flood has its share", async || cluster.node(1).buffered_bytes().0 > limit / 4).await;
    let mut calm_client = cluster.kv(1);
    for round in 0..20 {
        for (namespace, context) in [("calm", None), ("cart", common::observed())] {
            let request = v1::PutRequest {
                namespace: namespace.into(),
                key: format!("k{round}").into(),
                value: vec![1; 64 << 10].into(),
                mutation: cluster.mutation(),
                context,
                ..Default::default()
            };
            calm_client.put(within(request)).await.unwrap();
            calm_client.get(within(get(namespace, &format!("k{round}")))).await.unwrap();
        }
    }
    // The flood is still there, and is what is refused.
    assert!(cluster.node(1).buffered_bytes().0 > limit / 4);
    let failure = failed(calm_client.get(within(get("bank", "large"))).await);
    assert_eq!((failure.reason, failure.applied), (Reason::Overloaded, Applied::No), "{failure}");
    assert!(failure.retry_after_ms.is_some(), "{failure}");
    calm(&cluster).await;
    calm_client.get(within(get("bank", "large"))).await.unwrap();
    drop(kept);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_cost_a_seat_for_seconds_and_do_not_keep_others_out() {
    const SILENT: usize = 3_000;
    let cluster = one_node().await;
    let address = cluster.member(1).client_address.clone();
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(TcpStream::connect(&address).await.unwrap());
        if silent.len() % 500 == 0 {
            // A new connection each time, as a client that starts now.
            cluster.kv(1).get(within(get("bank", "k"))).await.unwrap();
        }
    }
    for mut socket in silent {
        let read = tokio::time::timeout(common::PATIENCE, socket.read(&mut [0; 64])).await.unwrap();
        // The settings of the node, then the end; or the end at once.
        if matches!(read, Ok(read) if read > 0) {
            let mut rest = Vec::new();
            let _ = tokio::time::timeout(common::PATIENCE, socket.read_to_end(&mut rest)).await.unwrap();
        }
    }
    cluster.kv(1).get(within(get("bank", "k"))).await.unwrap();
    cluster.stop().await;
}

fn large_put(cluster: &mut Cluster, namespace: &str, key: &str) -> v1::PutRequest {
    v1::PutRequest {
        namespace: namespace.into(),
        key: key.to_owned().into(),
        value: vec![7; MAX_VALUE_BYTES].into(),
        mutation: cluster.mutation(),
        ..Default::default()
    }
}

/// A node of its own, as a process, with few descriptors; it has a namespace `bank` with a large value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_under_attack_stays_small_serves_others_and_stops() {
    const DESCRIPTORS: usize = 600;
    const MOST_MEMORY: usize = 900 << 20;
    let folder = tempfile::tempdir().unwrap();
    let members = members(1);
    let file = cluster_file(folder.path(), &members, "");
    let ready_file = folder.path().join("ready");
    let node = kvd(&file, "n1");
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("ulimit -n {DESCRIPTORS}; exec \"$@\""))
        .arg("sh")
        .arg(node.as_std().get_program());
    command.args(node.as_std().get_args()).arg("--ready-file").arg(&ready_file);
    command.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).kill_on_drop(true);
    let child = spawn(&mut command);
    ready(&ready_file).await;
    let address = members[0].client_address.clone();
    let channel: Channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let mut client =
        KvServiceClient::new(channel.clone()).max_decoding_message_size(MAX_PUBLIC_MESSAGE_BYTES);
    let mut admin_client = AdminServiceClient::new(channel);
    let mut ids = Cluster::new(tempfile::tempdir().unwrap(), members.clone());
    let mut create =
        admin::CreateNamespaceRequest { name: "bank".into(), mutation: ids.mutation(), ..Default::default() };
    create.set_mode(admin::Mode::Strong);
    eventually("the namespace is there", async || {
        admin_client.clone().create_namespace(within(create.clone())).await.is_ok()
    })
    .await;
    admin_client.get_status(within(admin::GetStatusRequest {})).await.unwrap();
    client.put(within(large_put(&mut ids, "bank", "large"))).await.unwrap();
    let quiet = most_memory(&child);

    // Far more connections than it has descriptors.
    let mut silent = Vec::new();
    for _ in 0..3 * DESCRIPTORS {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    client.get(within(get("bank", "large"))).await.unwrap();
    // Answers that are not read and requests that do not end, on connections that speak.
    let mut kept = Vec::new();
    for _ in 0..4 {
        let mut send = raw(&address, 0).await;
        for _ in 0..200 {
            let (answer, mut body) = open(&mut send, GET, Some("3S")).await;
            body.send_data(whole(&get("bank", "large")), true).unwrap();
            kept.push((answer, body));
            let (answer, mut body) = open(&mut send, PUT, Some("3S")).await;
            body.send_data(message(MAX_VALUE_BYTES, &vec![1; 32 << 10]), false).unwrap();
            kept.push((answer, body));
        }
    }
    let mut others = AdminServiceClient::connect(format!("http://{address}")).await.unwrap();
    others.get_status(within(admin::GetStatusRequest {})).await.unwrap();
    eventually("all of them are over", async || {
        client.clone().get(within(get("bank", "large"))).await.is_ok()
    })
    .await;
    let most = most_memory(&child);
    println!("{} MiB before, {} MiB at most", quiet >> 20, most >> 20);
    assert!(most < MOST_MEMORY, "{} MiB", most >> 20);
    terminate(&child).await;
    let (code, words) = ends(child).await;
    assert_eq!(code, Some(0), "{words}");
    assert!(!words.contains("too many open files") && words.lines().count() < 50, "{words}");
    drop((silent, kept));
}
