//! Session streams: the same answers as the unary calls, and what ends a stream ends nothing else.
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

use std::collections::BTreeSet;

use bytes::Bytes;
use common::raw::{message, open, raw, status, whole};
use common::{Cluster, PATIENCE, eventually, observed, within};
use kv_proto::v1::session_request::Request as Part;
use kv_proto::v1::session_service_client::SessionServiceClient;
use kv_proto::{SessionCall, admin, failure_from_status, v1};
use kv_types::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use kv_types::{Applied, Failure, Reason};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// One stream, by hand.
struct Stream {
    frames: mpsc::Sender<v1::SessionFrame>,
    answers: Streaming<v1::SessionFrame>,
    bounds: v1::SessionBounds,
    next_id: u64,
}

impl Stream {
    async fn open(channel: Channel) -> Self {
        let (frames, mut outgoing) = mpsc::channel(16);
        let outgoing = futures_util::stream::poll_fn(move |cx| outgoing.poll_recv(cx));
        let mut client = SessionServiceClient::new(channel).max_decoding_message_size(16 << 20);
        let mut answers = client.session(outgoing).await.unwrap().into_inner();
        let bounds = answers.message().await.unwrap().unwrap().bounds.unwrap();
        Self { frames, answers, bounds, next_id: 1 }
    }

    async fn greeted(channel: Channel) -> Self {
        let stream = Self::open(channel).await;
        stream.say(v1::SessionFrame { version: 1, ..Default::default() }).await;
        stream
    }

    async fn say(&self, frame: v1::SessionFrame) {
        self.frames.send(frame).await.unwrap();
    }

    async fn send(&mut self, request: impl Into<Part>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.say(frame([asked(id, request)])).await;
        id
    }

    /// The next frame; `None` at the end of the stream.
    async fn hear(&mut self) -> Result<Option<v1::SessionFrame>, Status> {
        timeout(PATIENCE, self.answers.message()).await.expect("the node answers")
    }

    async fn call<R: SessionCall>(&mut self, request: R) -> Result<R::Response, Failure> {
        let id = self.send(request).await;
        let mut frame = self.hear().await.unwrap().unwrap();
        let answer = frame.answers.pop().unwrap();
        assert_eq!((answer.id, frame.answers.len()), (id, 0));
        R::answered(answer.answer)
    }

    /// How the node ends it.
    async fn ends(&mut self) -> Failure {
        loop {
            match self.hear().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended in order"),
                Err(status) => return failure_from_status(&status),
            }
        }
    }
}

fn asked(id: u64, request: impl Into<Part>) -> v1::SessionRequest {
    v1::SessionRequest { id, timeout_ms: 5_000, request: Some(request.into()) }
}

fn frame(requests: impl IntoIterator<Item = v1::SessionRequest>) -> v1::SessionFrame {
    v1::SessionFrame { requests: requests.into_iter().collect(), ..Default::default() }
}

async fn one_node() -> Cluster {
    let mut cluster = Cluster::start(1).await;
    for name in ["bank-one", "bank-two"] {
        cluster.create(name, admin::Mode::Strong, 0).await;
    }
    for name in ["cart-one", "cart-two"] {
        cluster.create(name, admin::Mode::Available, 1).await;
    }
    cluster
}

fn get(namespace: &str, key: impl Into<Bytes>) -> v1::GetRequest {
    v1::GetRequest { namespace: namespace.into(), key: key.into(), ..Default::default() }
}

fn put(cluster: &mut Cluster, namespace: &str, key: &'static str, value: impl Into<Bytes>) -> v1::PutRequest {
    v1::PutRequest {
        namespace: namespace.into(),
        key: key.into(),
        value: value.into(),
        mutation: cluster.mutation(),
        ..Default::default()
    }
}

/// What must be the same of two answers: all but when and as what they were written.
fn shape(answer: impl std::fmt::Debug, of: &str) -> String {
    let words = format!("{answer:?}").replace(of, "");
    let changes =
        ["index: ", "term: ", "epoch: ", "incarnation: ", "counter: ", "written_at_ms: ", "client_id: "];
    let mut kept = String::new();
    let mut rest = words.as_str();
    while let Some((at, change)) =
        changes.iter().filter_map(|change| rest.find(change).map(|at| (at, change))).min()
    {
        kept.push_str(&rest[..at + change.len()]);
        rest = &rest[at + change.len()..];
        rest = &rest[rest.find([',', ' ', '}']).unwrap_or(rest.len())..];
    }
    let context = |text: &str| text.find("context: b\"").map(|at| at + 11);
    kept.push_str(rest);
    // Contexts name dots.
    if let Some(at) = context(&kept) {
        let end = at + kept[at..].find("\", ").unwrap_or(0);
        kept.replace_range(at..end, "");
    }
    kept
}

macro_rules! same {
    ($kv:ident.$method:ident, $stream:ident, $what:expr, $unary:expr, $session:expr) => {{
        let unary = $kv.$method(within($unary)).await;
        let unary = unary.map(tonic::Response::into_inner).map_err(|status| failure_from_status(&status));
        let session = $stream.call($session).await;
        assert_eq!(shape(&session, "-two"), shape(&unary, "-one"), "{}", $what);
        session
    }};
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_answers_as_the_unary_calls_do() {
    let mut cluster = one_node().await;
    let mut kv = cluster.kv(1);
    let mut stream = Stream::greeted(cluster.channel(1)).await;
    let c = &mut cluster;
    let put_pair = |c: &mut Cluster, mode: &str, value: &'static [u8]| {
        let (u, s) = (format!("{mode}-one"), format!("{mode}-two"));
        let context = (mode == "cart").then(observed).flatten();
        let with = |put: v1::PutRequest| v1::PutRequest { context: context.clone(), ..put };
        (with(put(c, &u, "k", value)), with(put(c, &s, "k", value)))
    };
    same!(kv.get, stream, "absent", get("bank-one", "k"), get("bank-two", "k")).unwrap();
    same!(kv.get, stream, "absent, available", get("cart-one", "k"), get("cart-two", "k")).unwrap();
    for mode in ["bank", "cart"] {
        let (u, s) = put_pair(c, mode, b"v1");
        same!(kv.put, stream, "put", u.clone(), s.clone()).unwrap();
        same!(kv.put, stream, "sent again", u, s).unwrap();
        let (u, s) = (format!("{mode}-one"), format!("{mode}-two"));
        same!(kv.get, stream, "found", get(&u, "k"), get(&s, "k")).unwrap();
    }
    let cas = |c: &mut Cluster, namespace: &str, expected_revision| v1::CompareAndSetRequest {
        namespace: namespace.into(),
        key: "k".into(),
        expected_revision,
        value: "v2".into(),
        mutation: c.mutation(),
        ..Default::default()
    };
    for (what, expected) in [("holds", 1), ("does not hold", 1)] {
        let (u, s) = (cas(c, "bank-one", expected), cas(c, "bank-two", expected));
        same!(kv.compare_and_set, stream, what, u, s).unwrap();
    }
    let (u, s) = (cas(c, "cart-one", 1), cas(c, "cart-two", 1));
    same!(kv.compare_and_set, stream, "of the other mode", u, s).unwrap_err();
    let delete = |c: &mut Cluster, namespace: &str, context| v1::DeleteRequest {
        namespace: namespace.into(),
        key: "k".into(),
        mutation: c.mutation(),
        context,
        ..Default::default()
    };
    for (mode, context) in [("bank", None), ("bank", None), ("cart", observed())] {
        let u = delete(c, &format!("{mode}-one"), context.clone());
        let s = delete(c, &format!("{mode}-two"), context);
        same!(kv.delete, stream, "delete", u, s).unwrap();
    }
    // Refusals, each in its words.
    let huge = Bytes::from(vec![0; MAX_KEY_BYTES + 1]);
    same!(kv.get, stream, "empty key", get("bank-one", ""), get("bank-two", "")).unwrap_err();
    same!(kv.get, stream, "huge key", get("bank-one", huge.clone()), get("bank-two", huge)).unwrap_err();
    same!(kv.get, stream, "no namespace", get("none-one", "k"), get("none-two", "k")).unwrap_err();
    let (u, s) = (put(c, "cart-one", "k", "v"), put(c, "cart-two", "k", "v"));
    same!(kv.put, stream, "no context", u, s).unwrap_err();
    let strip = |put: v1::PutRequest| v1::PutRequest { mutation: None, ..put };
    let (u, s) = (strip(put(c, "bank-one", "k", "v")), strip(put(c, "bank-two", "k", "v")));
    same!(kv.put, stream, "no identity", u, s).unwrap_err();
    let with = |put: v1::PutRequest| v1::PutRequest { context: observed(), ..put };
    let (u, s) = (with(put(c, "bank-one", "k", "v")), with(put(c, "bank-two", "k", "v")));
    same!(kv.put, stream, "a context on a strong key", u, s).unwrap_err();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_in_a_frame_have_their_answers() {
    const KEYS: u64 = 100;
    let mut cluster = one_node().await;
    let mut stream = Stream::greeted(cluster.channel(1)).await;
    let keyed = |put: v1::PutRequest, n| v1::PutRequest { key: format!("k{n}").into(), ..put };
    let writes: Vec<_> = (1..=KEYS)
        .map(|n| asked(n, keyed(put(&mut cluster, "bank-two", "", format!("value {n}")), n)))
        .collect();
    stream.say(frame(writes)).await;
    let mut open: BTreeSet<u64> = (1..=KEYS).collect();
    while !open.is_empty() {
        for answer in stream.hear().await.unwrap().unwrap().answers {
            assert!(open.remove(&answer.id), "{} twice", answer.id);
            v1::PutRequest::answered(answer.answer).unwrap();
        }
    }
    // Reads of what was written, writes of the other mode, and refusals, all in one.
    let mut requests = Vec::new();
    for id in KEYS + 1..=4 * KEYS {
        requests.push(match id % 3 {
            0 => asked(id, v1::PutRequest { context: observed(), ..put(&mut cluster, "cart-two", "k", "v") }),
            1 => asked(id, get("bank-two", format!("k{}", id % KEYS + 1))),
            _ => asked(id, get("none", "k")),
        });
    }
    stream.say(frame(requests)).await;
    let mut open: BTreeSet<u64> = (KEYS + 1..=4 * KEYS).collect();
    while !open.is_empty() {
        for answer in stream.hear().await.unwrap().unwrap().answers {
            assert!(open.remove(&answer.id), "{} twice", answer.id);
            match answer.id % 3 {
                0 => drop(v1::PutRequest::answered(answer.answer).unwrap()),
                1 => {
                    let read = v1::GetRequest::answered(answer.answer).unwrap();
                    assert_eq!(read.value, format!("value {}", answer.id % KEYS + 1), "{}", answer.id);
                }
                _ => {
                    let refused = v1::GetRequest::answered(answer.answer).unwrap_err();
                    assert_eq!(refused.reason, Reason::NamespaceUnknown);
                }
            }
        }
    }
    // Closed by the client: the node ends it in order.
    let Stream { frames, mut answers, .. } = stream;
    drop(frames);
    assert!(timeout(PATIENCE, answers.message()).await.unwrap().unwrap().is_none());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_the_protocol_ends_its_stream_and_nothing_else() {
    let cluster = one_node().await;
    let channel = cluster.channel(1);
    let mut calm = Stream::greeted(channel.clone()).await;
    let read = |id| asked(id, get("bank-two", "k"));
    let beyond = {
        let bounds = calm.bounds.requests;
        (1..=u64::from(bounds) + 1).map(read).collect::<Vec<_>>()
    };
    let large = v1::PutRequest { value: vec![0; MAX_VALUE_BYTES].into(), ..Default::default() };
    let greeting = || v1::SessionFrame { version: 1, ..Default::default() };
    let table: Vec<(&str, Vec<v1::SessionFrame>)> = vec![
        ("version 2", vec![v1::SessionFrame { version: 2, ..Default::default() }]),
        ("version 0", vec![frame([read(1)])]),
        ("version 1", vec![greeting(), greeting()]),
        ("only rise", vec![greeting(), frame([read(1), read(1)])]),
        ("only rise", vec![greeting(), frame([read(7)]), frame([read(3)])]),
        ("only rise", vec![greeting(), frame([read(0)])]),
        ("says nothing", vec![greeting(), frame([])]),
        ("only a node says", vec![greeting(), v1::SessionFrame { drain: true, ..frame([read(1)]) }]),
        (
            "only a node says",
            vec![greeting(), v1::SessionFrame { answers: vec![v1::SessionAnswer::default()], ..frame([]) }],
        ),
        ("at most", vec![greeting(), frame([asked(1, large)])]),
        ("are open", vec![greeting(), frame(beyond)]),
    ];
    for (words, frames) in table {
        let mut stream = Stream::open(channel.clone()).await;
        for frame in frames {
            stream.say(frame).await;
        }
        let ended = stream.ends().await;
        assert_eq!((ended.reason, ended.applied), (Reason::InvalidRequest, Applied::No), "{words}: {ended}");
        assert!(ended.message.contains(words), "{words}: {ended}");
        // Its neighbour on the same connection notices nothing.
        calm.call(get("bank-two", "k")).await.unwrap();
    }
    // Of one request: it has its refusal, and the stream goes on.
    let nothing = v1::SessionRequest { id: 500, timeout_ms: 1_000, request: None };
    calm.next_id = 501;
    calm.say(frame([nothing])).await;
    let answer = calm.hear().await.unwrap().unwrap().answers.remove(0);
    assert_eq!(v1::GetRequest::answered(answer.answer).unwrap_err().reason, Reason::InvalidRequest);
    let timeless = v1::SessionRequest { timeout_ms: 0, ..read(600) };
    calm.next_id = 601;
    calm.say(frame([timeless])).await;
    let answer = calm.hear().await.unwrap().unwrap().answers.remove(0);
    assert_eq!(v1::GetRequest::answered(answer.answer).unwrap_err().reason, Reason::DeadlineMissing);
    calm.call(get("bank-two", "k")).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_a_client_that_leaves_are_seen_through() {
    let mut cluster = one_node().await;
    for round in 0..20 {
        let key = format!("left-{round}");
        let mut stream = Stream::greeted(cluster.channel(1)).await;
        let write = put(&mut cluster, "bank-two", "left", "v");
        stream.send(v1::PutRequest { key: key.clone().into(), ..write }).await;
        // Once the next answer is there, the one before was taken.
        let id = stream.send(get("none", "k")).await;
        loop {
            if stream.hear().await.unwrap().unwrap().answers.iter().any(|answer| answer.id == id) {
                break;
            }
        }
        drop(stream);
        let kv = cluster.kv(1);
        eventually("the write is there", async || {
            let read = kv.clone().get(within(get("bank-two", key.clone()))).await.unwrap().into_inner();
            read.presence() == v1::Presence::Found
        })
        .await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_says_so_and_ends_its_streams_in_order() {
    let mut cluster = one_node().await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = Stream::greeted(cluster.channel(1)).await;
        stream.call(put(&mut cluster, "bank-two", "k", "v")).await.unwrap();
        streams.push(stream);
    }
    let stop = tokio::spawn(cluster.stop());
    for mut stream in streams {
        assert!(stream.hear().await.unwrap().unwrap().drain);
        // One that crosses with this is refused by name.
        let crossed = stream.call(get("bank-two", "k")).await.unwrap_err();
        assert_eq!((crossed.reason, crossed.applied), (Reason::ShuttingDown, Applied::No));
        let Stream { frames, mut answers, .. } = stream;
        drop(frames);
        assert!(timeout(PATIENCE, answers.message()).await.unwrap().unwrap().is_none());
    }
    timeout(PATIENCE, stop).await.expect("it stops").unwrap();
}

/// What a client asks for and does not take has a bound: reads wait for room in what is to be sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_costs_a_bounded_amount_and_others_nothing() {
    let mut cluster = one_node().await;
    let large = put(&mut cluster, "bank-two", "large", vec![7; 1 << 20]);
    cluster.kv(1).put(within(large)).await.unwrap();
    let mut greedy = Stream::greeted(cluster.channel(1)).await;
    for _ in 0..greedy.bounds.requests {
        greedy.send(get("bank-two", "large")).await;
    }
    let mut calm = Stream::greeted(cluster.channel(1)).await;
    for _ in 0..20 {
        calm.call(get("bank-two", "k")).await.unwrap();
    }
    let (_, most) = cluster.node(1).buffered_bytes();
    assert!(most < 32 << 20, "{most} bytes");
    // It takes them after all: the first ones, and of the rest some after their deadline.
    let (mut answers, mut values) = (0, 0);
    while answers < greedy.bounds.requests as usize {
        let Ok(Some(frame)) = greedy.hear().await else { panic!("it ended after {answers}") };
        for answer in frame.answers {
            answers += 1;
            match v1::GetRequest::answered(answer.answer) {
                Ok(read) => {
                    assert_eq!(read.value.len(), 1 << 20);
                    values += 1;
                }
                Err(failure) => assert_eq!(failure.reason, Reason::DeadlineExpired, "{failure}"),
            }
        }
    }
    assert!(values >= 4, "{values}");
    cluster.stop().await;
}

/// A stream on which nothing is open holds no place of a request, and no bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_counted_no_more() {
    let mut cluster = one_node().await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = Stream::greeted(cluster.channel(1)).await;
        stream.call(put(&mut cluster, "bank-two", "k", vec![7; 30_000])).await.unwrap();
        stream.call(get("bank-two", "k")).await.unwrap();
        streams.push(stream);
    }
    eventually("only the streams themselves are counted", async || {
        cluster.node(1).open_requests() == streams.len() && cluster.node(1).buffered_bytes().0 == 0
    })
    .await;
    drop(streams);
    eventually("nothing is counted", async || cluster.node(1).open_requests() == 0).await;
    cluster.stop().await;
}

/// A connection has one session stream, and another while that ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_two_session_streams_at_most() {
    let cluster = one_node().await;
    let channel = cluster.channel(1);
    let mut streams = [Stream::greeted(channel.clone()).await, Stream::greeted(channel.clone()).await];
    let mut client = SessionServiceClient::new(channel.clone());
    let refused = client.session(futures_util::stream::pending()).await.unwrap_err();
    assert_eq!(failure_from_status(&refused).reason, Reason::Overloaded, "{refused}");
    for stream in &mut streams {
        stream.call(get("bank-two", "k")).await.unwrap();
    }
    drop(streams);
    eventually("another one is served", async || {
        client.clone().session(futures_util::stream::empty()).await.is_ok()
    })
    .await;
    cluster.stop().await;
}

/// Bytes that are no frames: the stream ends by name, and its neighbour on the connection goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_frames_end_their_stream_by_name() {
    const PATH: &str = "/quorate.v1.SessionService/Session";
    let cluster = one_node().await;
    let mut send = raw(&cluster.member(1).client_address, 65_535).await;
    let greeting = whole(&v1::SessionFrame { version: 1, ..Default::default() });
    let cut = greeting.slice(..greeting.len() - 1);
    let mut compressed = greeting.to_vec();
    compressed[0] = 1;
    let table: [(&str, Vec<Bytes>); 5] = [
        ("cannot be read", vec![message(3, &[0xff, 0xff, 0xff])]),
        ("compressed", vec![compressed.into()]),
        ("at most", vec![greeting.clone(), message(1 << 20, b"begun")]),
        ("ends within a frame", vec![cut]),
        ("ends within a frame", vec![greeting.clone(), Bytes::from_static(&[0, 0])]),
    ];
    for (words, pieces) in table {
        let (answer, mut body) = open(&mut send, PATH, None).await;
        let last = pieces.len() - 1;
        for (at, piece) in pieces.into_iter().enumerate() {
            body.send_data(piece, at == last).unwrap();
        }
        let ended = failure_from_status(&timeout(PATIENCE, status(answer)).await.unwrap());
        assert_eq!((ended.reason, ended.applied), (Reason::InvalidRequest, Applied::No), "{words}: {ended}");
        assert!(ended.message.contains(words), "{words}: {ended}");
    }
    // The connection is as good as before.
    let (answer, mut body) = open(&mut send, PATH, None).await;
    body.send_data(greeting, true).unwrap();
    assert_eq!(timeout(PATIENCE, status(answer)).await.unwrap().code(), tonic::Code::Ok);
    cluster.stop().await;
}
