//! What a node tells about its interface, and within which bounds it does.
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
use common::raw::{message, open, raw, status, whole};
use common::{Cluster, eventually, members, within};
use kv_proto::{admin, failure_from_status, v1};
use kv_types::{Applied, NodeId, Reason};
use prost::Message;
use tokio_stream::iter;
use tonic::{Code, Status};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest as Ask;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse as Told;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

const V1: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const V1ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

/// The parts of a `FileDescriptorProto` that are looked at here.
#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    package: String,
    #[prost(string, repeated, tag = "3")]
    imports: Vec<String>,
}

fn question(ask: Ask) -> ServerReflectionRequest {
    ServerReflectionRequest { host: String::new(), message_request: Some(ask) }
}

fn symbol(name: impl Into<String>) -> Ask {
    Ask::FileContainingSymbol(name.into())
}

fn services() -> ServerReflectionRequest {
    question(Ask::ListServices(String::new()))
}

/// Many questions in one call, and what was told.
async fn ask(cluster: &Cluster, asked: Vec<Ask>) -> Result<Vec<Told>, Status> {
    let mut client = ServerReflectionClient::new(cluster.channel(1));
    let questions = asked.into_iter().map(question).collect::<Vec<_>>();
    let mut answers = client.server_reflection_info(within(iter(questions))).await?.into_inner();
    let mut told = Vec::new();
    while let Some(answer) = answers.message().await? {
        told.push(answer.message_response.unwrap());
    }
    Ok(told)
}

fn files(told: Vec<Told>) -> Vec<File> {
    let of = |told| match told {
        Told::FileDescriptorResponse(files) => files.file_descriptor_proto,
        other => panic!("{other:?}"),
    };
    told.into_iter().flat_map(of).map(|bytes| File::decode(&*bytes).unwrap()).collect()
}

/// A node that serves; what it tells does not depend on it being ready.
async fn one_node() -> Cluster {
    let mut cluster = Cluster::new(tempfile::tempdir().unwrap(), members(1));
    cluster.start_node(NodeId(1)).await;
    cluster
}

/// Waits until nothing is under way.
async fn calm(cluster: &Cluster) {
    eventually("nothing is held any more", async || {
        let node = cluster.node(1);
        node.open_requests() == 0 && node.buffered_bytes().0 == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_its_services_and_the_files_that_describe_them() {
    let cluster = one_node().await;
    let told = ask(&cluster, vec![Ask::ListServices(String::new())]).await.unwrap();
    let [Told::ListServicesResponse(list)] = &told[..] else { panic!("{told:?}") };
    let mut names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "quorate.admin.v1.AdminService",
        "quorate.v1.KvService",
        "quorate.v1.SessionService",
    ];
    assert_eq!(names, expected);

    // As a tool does that is to call something: the file of each service, and everything that it imports. The
    // last one says what the details of an error are.
    let asked = expected.into_iter().chain(["google.rpc.ErrorInfo"]).map(symbol).collect();
    let mut found = files(ask(&cluster, asked).await.unwrap());
    assert_eq!(found.len(), expected.len() + 1);
    assert_eq!((found[4].name.as_str(), found[4].package.as_str()), ("quorate/v1/kv.proto", "quorate.v1"));
    let imports: Vec<String> = found.iter().flat_map(|file| file.imports.clone()).collect();
    assert!(imports.contains(&found[4].name), "{imports:?}");
    found.extend(files(ask(&cluster, imports.into_iter().map(Ask::FileByFilename).collect()).await.unwrap()));
    let inner = found.split_off(expected.len() + 1);
    assert!(inner.iter().all(|file| file.imports.is_empty()), "{inner:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_told_or_cannot_be_read_is_refused_in_our_words() {
    let cluster = one_node().await;
    for hidden in [
        Ask::FileByFilename("quorate/peer/v1/peer.proto".into()),
        symbol("quorate.peer.v1.PeerService"),
        symbol("quorate.v1.Unknown"),
        Ask::FileContainingExtension(Default::default()),
    ] {
        // What was asked before it is answered all the same.
        let mut client = ServerReflectionClient::new(cluster.channel(1));
        let asked = iter([services(), question(hidden)]);
        let mut answers = client.server_reflection_info(within(asked)).await.unwrap().into_inner();
        assert!(answers.message().await.unwrap().is_some());
        let refused = answers.message().await.unwrap_err();
        let failure = failure_from_status(&refused);
        assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
        assert_eq!((failure.reason, failure.applied), (Reason::InvalidRequest, Applied::No), "{failure}");
    }
    let mut send = raw(&cluster.member(1).client_address, 65_535).await;
    let mut compressed = whole(&services()).to_vec();
    compressed[0] = 1;
    for (path, bytes, code) in [
        (V1, message(3, b"\xff\xff\xff"), Code::InvalidArgument),
        (V1, compressed.into(), Code::InvalidArgument),
        (V1, message(100, b"cut short"), Code::InvalidArgument),
        (V1ALPHA, whole(&ServerReflectionRequest::default()), Code::InvalidArgument),
        ("/grpc.reflection.v1.ServerReflection/Watch", whole(&services()), Code::Unimplemented),
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
    // No question is a call, too.
    let (answer, mut body) = open(&mut send, V1, Some("5S")).await;
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(status(answer).await.code(), Code::Ok);
    calm(&cluster).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_has_a_largest_size() {
    let cluster = one_node().await;
    let mut send = raw(&cluster.member(1).client_address, 65_535).await;
    let (answer, mut body) = open(&mut send, V1, Some("5S")).await;
    // Refused by its length alone, and what came before it is answered.
    body.send_data(whole(&services()), false).unwrap();
    body.send_data(message(1 << 20, b"begun"), false).unwrap();
    let refused = failure_from_status(&status(answer).await);
    assert_eq!((refused.reason, refused.applied), (Reason::InvalidRequest, Applied::No), "{refused}");
    let limit: usize = refused.detail("limit_bytes").unwrap().parse().unwrap();

    let length = |name: usize| question(symbol("x".repeat(name))).encoded_len();
    let longest = (0..limit).rev().find(|name| length(*name) <= limit).unwrap();
    for (name, code) in [(longest, Code::NotFound), (longest + 1, Code::InvalidArgument)] {
        let (answer, mut body) = open(&mut send, V1, Some("5S")).await;
        body.send_data(whole(&question(symbol("x".repeat(name)))), true).unwrap();
        assert_eq!(status(answer).await.code(), code, "a name of {name} bytes");
    }
    assert_eq!(length(longest), limit);
    calm(&cluster).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_stay_open_have_a_share_and_an_end() {
    let mut cluster = Cluster::start(1).await;
    cluster.create("bank", admin::Mode::Strong, 0).await;
    let address = cluster.member(1).client_address.clone();
    // They ask more than they take answers for: nothing at all.
    let mut kept = Vec::new();
    for path in [V1, V1ALPHA] {
        let mut send = raw(&address, 0).await;
        for _ in 0..300 {
            let (answer, mut body) = open(&mut send, path, None).await;
            body.send_data(whole(&services()).repeat(20).into(), false).unwrap();
            kept.push((answer, body));
        }
    }
    let limit = usize::try_from(kv_server::LimitSettings::default().buffered_size).unwrap();
    eventually("they have their share", async || cluster.node(1).buffered_bytes().0 > limit / 4).await;
    // Meanwhile everything else is served.
    let get = v1::GetRequest { namespace: "bank".into(), key: "k".into(), ..Default::default() };
    cluster.kv(1).get(within(get)).await.unwrap();
    cluster.admin(1).get_topology(within(admin::GetTopologyRequest {})).await.unwrap();
    let check = tonic_health::pb::HealthCheckRequest { service: String::new() };
    cluster.health(1).check(within(check)).await.unwrap();
    let refused = ask(&cluster, vec![Ask::ListServices(String::new())]).await.unwrap_err();
    let refused = failure_from_status(&refused);
    assert_eq!((refused.reason, refused.applied), (Reason::Overloaded, Applied::No), "{refused}");

    // The streams are still open on this side, and the node has let go of all of them.
    calm(&cluster).await;
    let (_, most) = cluster.node(1).buffered_bytes();
    assert!(most <= limit / 2, "{most}");
    let (mut reset, mut overloaded) = (0, 0);
    for (answer, _asks) in kept {
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
    ask(&cluster, vec![Ask::ListServices(String::new())]).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_call_is_answered_as_it_asks_and_ends_with_the_node() {
    let cluster = one_node().await;
    let mut send = raw(&cluster.member(1).client_address, 65_535).await;
    let (answer, mut body) = open(&mut send, V1, Some("60S")).await;
    let mut answers = answer.await.unwrap().into_body();
    for _ in 0..3 {
        body.send_data(whole(&services()), false).unwrap();
        let told = answers.data().await.unwrap().unwrap();
        answers.flow_control().release_capacity(told.len()).unwrap();
        ServerReflectionResponse::decode(&told[5..]).unwrap();
    }
    // Long before its deadline, and by name: the connection is still there.
    cluster.stop().await;
    let ended = answers.data().await.unwrap().unwrap_err();
    assert_eq!(ended.reason(), Some(h2::Reason::CANCEL), "{ended}");
}
