//! Two nodes over real loopback TCP, through a proxy that can swallow or cut what passes: what a caller is
//! told about its call is what happened to it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may fail loudly"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kv_env::Env;
use kv_peer::{Address, Lane, Patience, PeerConfig, PeerError, PeerHandler, PeerRequest, PeerState, Peers};
use kv_proto::peer::peer_service_client::PeerServiceClient;
use kv_proto::peer::{
    ExchangeRequest, LogEntry, RaftAppend, ReplicaRead, ReplicaReadReply, RequestFrame, request_frame,
    response_frame,
};
use kv_types::catalogue::Member;
use kv_types::{Applied, ClusterId, Failure, NodeId, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

const CLUSTER: ClusterId = ClusterId(7);
const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);

/// Answers a read with its key, once there is a permit.
struct Echo {
    begun: AtomicUsize,
    permits: Semaphore,
}

impl Echo {
    fn new(permits: usize) -> Arc<Self> {
        Arc::new(Self { begun: AtomicUsize::new(0), permits: Semaphore::new(permits) })
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

struct Handler(Arc<Echo>);

impl PeerHandler for Handler {
    fn handle(&self, request: PeerRequest) -> BoxFuture<'static, Result<response_frame::Body, Failure>> {
        let echo = Arc::clone(&self.0);
        echo.begun.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            assert_eq!(request.from, N1);
            let request_frame::Body::ReplicaRead(read) = request.body else {
                return Err(Failure::new(Reason::InvalidRequest, "only reads here"));
            };
            if read.key == "refuse" {
                return Err(Failure::new(Reason::LimitStorage, "full").with("bytes", 3));
            }
            if read.key != "free" {
                echo.permits.acquire().await.unwrap().forget();
            }
            Ok(response_frame::Body::ReplicaRead(ReplicaReadReply {
                primary: true,
                knows: true,
                record: read.key,
            }))
        })
    }
}

const UNBOUND: usize = 1_000_000;

/// n2, serving.
async fn serve(echo: &Arc<Echo>, change: impl FnOnce(&mut PeerConfig)) -> (String, Peers) {
    let env = Env::real();
    let mut config = PeerConfig::new(CLUSTER, N2);
    change(&mut config);
    let peers = Peers::new(config, env.clone());
    let listener = env.network.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address.clone();
    let service = kv_peer::service(&peers, Arc::new(Handler(Arc::clone(echo))));
    tokio::spawn(kv_peer::server_builder().add_service(service).serve_with_incoming(listener));
    (address, peers)
}

fn member(id: NodeId, peer_address: &str) -> Member {
    Member { id, client_address: String::new(), peer_address: peer_address.into(), zone: String::new() }
}

/// n1, calling `node` at `address`.
fn caller(node: NodeId, address: &str, change: impl FnOnce(&mut PeerConfig)) -> Peers {
    let mut config = PeerConfig::new(CLUSTER, N1);
    change(&mut config);
    let peers = Peers::new(config, Env::real());
    peers.set_members(vec![member(N1, "nowhere:1"), member(node, address)]);
    peers
}

fn read(key: &str) -> request_frame::Body {
    request_frame::Body::ReplicaRead(ReplicaRead { ring: 1, partition: 2, key: key.to_owned().into() })
}

async fn call(peers: &Peers, key: &str, patience: Duration) -> Result<String, PeerError> {
    let deadline = Instant::now() + patience;
    match peers.call(N2, Lane::Data, Address::default(), read(key), deadline).await? {
        response_frame::Body::ReplicaRead(reply) => Ok(String::from_utf8(reply.record.to_vec()).unwrap()),
        other => panic!("{other:?}"),
    }
}

/// Waits for a condition; says how long it took.
async fn eventually(within: Duration, what: &str, condition: impl AsyncFn() -> bool) -> Duration {
    let begun = Instant::now();
    timeout(within, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("not within {within:?}: {what}"));
    begun.elapsed()
}

#[derive(Clone, Copy, PartialEq)]
enum Flow {
    Pass,
    /// 16 KiB at a time, 20 times a second.
    Slow,
    Swallow,
    Cut,
}

/// Stands between the two. Swallowing neither reads nor writes and keeps sockets open; cutting closes them.
async fn proxy(target: String) -> (String, watch::Sender<Flow>) {
    let (control, flow) = watch::channel(Flow::Pass);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let (mut flow, target) = (flow.clone(), target.clone());
            tokio::spawn(async move {
                flow.wait_for(|flow| *flow != Flow::Swallow).await.ok();
                let Ok(far) = TcpStream::connect(target).await else { return };
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                tokio::select! {
                    () = pump(near_in, far_out, flow.clone()) => {}
                    () = pump(far_in, near_out, flow.clone()) => {}
                    _ = flow.wait_for(|flow| *flow == Flow::Cut) => {}
                }
            });
        }
    });
    (address, control)
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut flow: watch::Receiver<Flow>,
) {
    let moves = |flow: &Flow| matches!(flow, Flow::Pass | Flow::Slow);
    let mut buffer = vec![0; 16 << 10];
    loop {
        if flow.wait_for(moves).await.is_err() {
            return;
        }
        let read = tokio::select! {
            biased;
            changed = flow.changed() => match changed { Ok(()) => continue, Err(_) => return },
            read = from.read(&mut buffer) => read.unwrap_or(0),
        };
        if read == 0 || flow.wait_for(moves).await.is_err() {
            return;
        }
        if *flow.borrow() == Flow::Slow {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn calls_are_answered_on_every_lane_and_many_at_once() {
    let echo = Echo::new(UNBOUND);
    let (address, _server) = serve(&echo, |_| {}).await;
    let peers = caller(N2, &address, |_| {});
    for lane in Lane::ALL {
        let deadline = Instant::now() + Duration::from_secs(5);
        assert!(peers.call(N2, lane, Address::default(), read("x"), deadline).await.is_ok(), "{lane:?}");
    }
    let calls =
        (0..2_000).map(|i| {
            let peers = peers.clone();
            async move {
                assert_eq!(call(&peers, &i.to_string(), Duration::from_secs(10)).await, Ok(i.to_string()))
            }
        });
    futures_util::future::join_all(calls).await;
    assert_eq!(echo.begun(), 2_004);
}

#[tokio::test]
async fn large_bodies_pass_and_larger_ones_are_refused_here() {
    let echo = Echo::new(UNBOUND);
    let (address, _server) = serve(&echo, |_| {}).await;
    let peers = caller(N2, &address, |_| {});
    let large = "x".repeat(20 << 20);
    assert_eq!(call(&peers, &large, Duration::from_secs(20)).await.map(|key| key.len()), Ok(large.len()));
    let too_large = "x".repeat((24 << 20) + 1);
    assert!(!call(&peers, &too_large, Duration::from_secs(20)).await.unwrap_err().was_sent());
}

#[tokio::test]
async fn a_refusal_carries_its_own_outcome() {
    let echo = Echo::new(UNBOUND);
    let (address, _server) = serve(&echo, |_| {}).await;
    let peers = caller(N2, &address, |_| {});
    let refused = call(&peers, "refuse", Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(refused.applied(), Applied::No);
    let failure = refused.into_failure(N2);
    assert_eq!((failure.reason, failure.detail("bytes")), (Reason::LimitStorage, Some("3")));
}

#[tokio::test]
async fn messages_for_another_cluster_or_node_are_refused_and_prove_no_life() {
    let echo = Echo::new(UNBOUND);
    let (address, _server) = serve(&echo, |_| {}).await;
    for (peers, to, reason) in [
        (caller(N2, &address, |config| config.cluster_id = ClusterId(8)), N2, Reason::WrongCluster),
        (caller(NodeId(3), &address, |_| {}), NodeId(3), Reason::WrongNode),
    ] {
        let deadline = Instant::now() + Duration::from_secs(5);
        let refused = peers.call(to, Lane::Data, Address::default(), read("x"), deadline).await.unwrap_err();
        assert!(matches!(&refused, PeerError::Refused(failure) if failure.reason == reason), "{refused}");
        assert_eq!(peers.liveness(to).last_heard, None);
    }
    assert_eq!(echo.begun(), 0);
}

#[tokio::test]
async fn a_dead_or_unknown_peer_is_reported_at_once() {
    let vacant = format!("127.0.0.1:{}", kv_env::choose_port().unwrap());
    let peers = caller(N2, &vacant, |_| {});
    let begun = Instant::now();
    for _ in 0..3 {
        assert!(matches!(call(&peers, "x", Duration::from_secs(10)).await, Err(PeerError::NotSent { .. })));
    }
    let deadline = begun + Duration::from_secs(10);
    let stranger = peers.call(NodeId(9), Lane::Data, Address::default(), read("x"), deadline).await;
    assert!(matches!(stranger, Err(PeerError::NotSent { .. })));
    assert!(begun.elapsed() < Duration::from_millis(700), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_swallowed_call_times_out_at_its_deadline_and_the_link_heals() {
    let echo = Echo::new(UNBOUND);
    let (address, _server) = serve(&echo, |_| {}).await;
    let (through, flow) = proxy(address).await;
    let peers = caller(N2, &through, |_| {});
    assert!(call(&peers, "x", Duration::from_secs(5)).await.is_ok());

    flow.send_replace(Flow::Swallow);
    let begun = Instant::now();
    assert_eq!(call(&peers, "y", Duration::from_millis(250)).await, Err(PeerError::TimedOut));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(250) && took < Duration::from_millis(400), "{took:?}");

    // Keep-alive drops the dead connection; from then on calls fail before anything is sent.
    eventually(Duration::from_millis(2_600), "the dead connection is dropped", async || {
        matches!(call(&peers, "z", Duration::from_millis(50)).await, Err(PeerError::NotSent { .. }))
    })
    .await;
    flow.send_replace(Flow::Pass);
    let healed = eventually(Duration::from_millis(2_500), "the link heals", async || {
        call(&peers, "x", Duration::from_millis(200)).await.is_ok()
    })
    .await;
    println!("healed after {healed:?}");
}

/// A request of so many bytes, which n2 refuses when it has all of it.
fn large(bytes: usize) -> request_frame::Body {
    let entry = LogEntry { id: None, payload: vec![0; bytes].into() };
    request_frame::Body::RaftAppend(RaftAppend { entries: vec![entry], ..RaftAppend::default() })
}

#[tokio::test]
async fn a_large_call_may_take_as_long_as_its_link_moves() {
    let echo = Echo::new(0);
    let (address, _server) = serve(&echo, |_| {}).await;
    let (through, flow) = proxy(address).await;
    let peers = caller(N2, &through, |_| {});
    assert!(call(&peers, "free", Duration::from_secs(5)).await.is_ok());
    let patient = |idle: Duration, at_most: Duration, body| {
        let patience = Patience::WhileMoving { idle, at_most };
        peers.call_with(N2, Lane::Data, Address::default(), body, patience)
    };
    let (idle, long) = (Duration::from_millis(800), Duration::from_secs(30));

    // Three seconds for the whole, far more than the idle time, and it arrives once.
    flow.send_replace(Flow::Slow);
    let begun = Instant::now();
    let refused = patient(idle, long, large(960 << 10)).await;
    assert!(matches!(refused, Err(PeerError::Refused(_))), "{refused:?}");
    assert!(begun.elapsed() > idle * 2, "{:?}", begun.elapsed());
    assert_eq!(echo.begun(), 2);

    // However it moves, it ends.
    let begun = Instant::now();
    let cut_off = patient(idle, Duration::from_secs(1), large(960 << 10)).await;
    assert_eq!(cut_off, Err(PeerError::TimedOut));
    assert!(begun.elapsed() < Duration::from_millis(1_300), "{:?}", begun.elapsed());
    flow.send_replace(Flow::Pass);
    eventually(Duration::from_secs(5), "the rest has passed", async || echo.begun() == 3).await;

    // An answer that does not come is not progress.
    let begun = Instant::now();
    assert_eq!(patient(idle, long, read("held")).await, Err(PeerError::TimedOut));
    let took = begun.elapsed();
    assert!(took >= idle && took < idle * 2, "{took:?}");

    // Nor is a link that swallows what it is given.
    flow.send_replace(Flow::Swallow);
    let begun = Instant::now();
    assert_eq!(patient(idle, long, large(960 << 10)).await, Err(PeerError::TimedOut));
    let took = begun.elapsed();
    assert!(took >= idle && took < idle * 2, "{took:?}");
}

#[tokio::test]
async fn a_cut_connection_loses_what_was_sent() {
    let echo = Echo::new(0);
    let (address, _server) = serve(&echo, |_| {}).await;
    let (through, flow) = proxy(address).await;
    let peers = caller(N2, &through, |_| {});
    let lost = call(&peers, "x", Duration::from_secs(10));
    let cut = async {
        eventually(Duration::from_secs(5), "the call is begun", async || echo.begun() == 1).await;
        flow.send_replace(Flow::Cut);
    };
    let (lost, ()) = tokio::join!(lost, cut);
    assert!(matches!(lost, Err(PeerError::Lost { .. })), "{lost:?}");
    flow.send_replace(Flow::Pass);
    eventually(Duration::from_secs(2), "the link is back", async || {
        call(&peers, "free", Duration::from_millis(200)).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let echo = Echo::new(0);
    let (address, _server) = serve(&echo, |_| {}).await;
    let peers = caller(N2, &address, |config| config.link_calls = 2);
    let patience = Duration::from_secs(10);
    let third = async {
        eventually(Duration::from_secs(5), "two calls are begun", async || echo.begun() == 2).await;
        let begun = Instant::now();
        let refused = call(&peers, "x", patience).await;
        assert!(
            matches!(&refused, Err(PeerError::NotSent { why, .. }) if why.contains("full")),
            "{refused:?}"
        );
        assert!(begun.elapsed() < Duration::from_millis(100));
        echo.permits.add_permits(2);
    };
    let (one, two, ()) = tokio::join!(call(&peers, "1", patience), call(&peers, "2", patience), third);
    assert_eq!((one, two), (Ok("1".into()), Ok("2".into())));
}

#[tokio::test]
async fn a_call_given_up_in_the_queue_is_never_sent() {
    let echo = Echo::new(0);
    let (address, _server) = serve(&echo, |_| {}).await;
    let peers = caller(N2, &address, |config| config.link_in_flight = 1);
    let others = async {
        eventually(Duration::from_secs(5), "the first call is begun", async || echo.begun() == 1).await;
        let late = call(&peers, "late", Duration::from_millis(50)).await;
        assert!(matches!(late, Err(PeerError::NotSent { .. })), "{late:?}");
        let dropped =
            timeout(Duration::from_millis(50), call(&peers, "dropped", Duration::from_secs(10))).await;
        assert!(dropped.is_err());
        echo.permits.add_permits(1);
    };
    let (first, ()) = tokio::join!(call(&peers, "1", Duration::from_secs(10)), others);
    assert_eq!(first, Ok("1".into()));
    // The next call travels after whatever was queued before it.
    assert!(call(&peers, "free", Duration::from_secs(5)).await.is_ok());
    assert_eq!(echo.begun(), 2);
}

#[tokio::test]
async fn a_given_up_call_in_flight_makes_room_for_the_next() {
    let echo = Echo::new(0);
    let (address, _server) = serve(&echo, |_| {}).await;
    let peers = caller(N2, &address, |config| config.link_in_flight = 1);
    let (first, second) = tokio::join!(
        call(&peers, "1", Duration::from_millis(200)),
        call(&peers, "free", Duration::from_secs(5)),
    );
    assert_eq!((first, second), (Err(PeerError::TimedOut), Ok("free".into())));
}

#[tokio::test]
async fn one_stream_may_have_only_so_much_under_way() {
    let echo = Echo::new(0);
    let (address, _server) = serve(&echo, |config| config.stream_concurrency = 1).await;
    let peers = caller(N2, &address, |_| {});
    let second = async {
        eventually(Duration::from_secs(5), "the first call is begun", async || echo.begun() == 1).await;
        let refused = call(&peers, "free", Duration::from_secs(5)).await;
        assert!(
            matches!(&refused, Err(PeerError::Refused(failure)) if failure.reason == Reason::Overloaded),
            "{refused:?}"
        );
        echo.permits.add_permits(1);
    };
    let (first, ()) = tokio::join!(call(&peers, "1", Duration::from_secs(10)), second);
    assert_eq!(first, Ok("1".into()));
    assert_eq!(echo.begun(), 1);
}

/// The account is of all streams together; what is small passes, and what has ended gives its bytes back.
#[tokio::test]
async fn large_requests_of_all_streams_have_a_bound_in_bytes() {
    let echo = Echo::new(0);
    let (address, _server) = serve(&echo, |config| config.request_bytes = 10_000).await;
    let peers = caller(N2, &address, |_| {});
    let large = |fill: &str| fill.repeat(6_000);
    let call_on = |lane: Lane, key: String| {
        let (peers, deadline) = (peers.clone(), Instant::now() + Duration::from_secs(10));
        async move { peers.call(N2, lane, Address::default(), read(&key), deadline).await }
    };
    let others = async {
        eventually(Duration::from_secs(5), "the first call is begun", async || echo.begun() == 1).await;
        let refused = call_on(Lane::Bulk, large("b")).await;
        assert!(
            matches!(&refused, Err(PeerError::Refused(failure)) if failure.reason == Reason::Overloaded),
            "{refused:?}"
        );
        echo.permits.add_permits(2);
        assert!(call_on(Lane::Bulk, "small".into()).await.is_ok());
    };
    let (first, ()) = tokio::join!(call_on(Lane::Data, large("a")), others);
    assert!(first.is_ok(), "{first:?}");
    echo.permits.add_permits(1);
    assert!(call_on(Lane::Bulk, large("c")).await.is_ok());
}

/// Answers that are not taken have a bound in bytes, and are not sent when no one waits for them any more.
#[tokio::test]
async fn large_answers_that_are_not_sent_have_a_bound_in_bytes() {
    let echo = Echo::new(UNBOUND);
    let (address, _server) = serve(&echo, |config| config.answer_bytes = 2 << 20).await;
    let mut raw = PeerServiceClient::connect(format!("http://{address}")).await.unwrap();
    let key = "k".repeat(512 << 10);
    let frame = |id| RequestFrame {
        id,
        cluster_id: kv_proto::cluster_id_bytes(CLUSTER),
        from_node: 1,
        to_node: 2,
        deadline_ms: 2_000,
        body: Some(read(&key)),
        ..RequestFrame::default()
    };
    let messages: Vec<_> = (1..=20).map(|id| ExchangeRequest { frames: vec![frame(id)] }).collect();
    let outgoing = tokio_stream::StreamExt::chain(tokio_stream::iter(messages), tokio_stream::pending());
    let sent = Instant::now();
    let mut answers = raw.exchange(outgoing).await.unwrap().into_inner();
    // Nothing is read meanwhile.
    eventually(Duration::from_secs(5), "all are answered", async || echo.begun() == 20).await;
    tokio::time::sleep_until(sent + Duration::from_millis(2_500)).await;
    let mut seen = Vec::new();
    while seen.len() < 20 {
        seen.extend(
            answers.message().await.unwrap().unwrap().frames.into_iter().filter(|frame| frame.id > 0),
        );
    }
    let refused = |reason: Reason| {
        let failed = seen.iter().filter_map(|frame| match &frame.body {
            Some(response_frame::Body::Failure(failure)) => Some(Failure::from(failure).reason),
            _ => None,
        });
        failed.filter(|found| *found == reason).count()
    };
    let (full, late) = (refused(Reason::Overloaded), refused(Reason::DeadlineExpired));
    assert!(full >= 10 && late >= 1 && full + late < 20, "{full} refused, {late} too late");
}

#[tokio::test]
async fn expired_work_is_dropped_unstarted() {
    let echo = Echo::new(UNBOUND);
    let (address, _server) = serve(&echo, |_| {}).await;
    let mut raw = PeerServiceClient::connect(format!("http://{address}")).await.unwrap();
    let frame = |id, deadline_ms| RequestFrame {
        id,
        cluster_id: kv_proto::cluster_id_bytes(CLUSTER),
        from_node: 1,
        to_node: 2,
        deadline_ms,
        body: Some(read("x")),
        ..RequestFrame::default()
    };
    let message = ExchangeRequest { frames: vec![frame(1, 0), frame(2, 5_000)] };
    let outgoing = tokio_stream::StreamExt::chain(tokio_stream::once(message), tokio_stream::pending());
    let mut answers = raw.exchange(outgoing).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(answers.message().await.unwrap().unwrap().frames);
    }
    seen.sort_by_key(|frame| frame.id);
    let Some(response_frame::Body::Failure(failure)) = &seen[0].body else { panic!("{seen:?}") };
    assert_eq!(Failure::from(failure).reason, Reason::DeadlineExpired);
    assert!(matches!(seen[1].body, Some(response_frame::Body::ReplicaRead(_))));
    assert_eq!(echo.begun(), 1);
}

/// A cut holds a request back for longer than its time: when the network heals it is not begun any more.
#[tokio::test]
async fn what_a_cut_held_back_for_too_long_is_not_begun() {
    let echo = Echo::new(UNBOUND);
    let (address, _server) = serve(&echo, |_| {}).await;
    let (through, flow) = proxy(address).await;
    let peers = caller(N2, &through, |_| {});
    assert!(call(&peers, "x", Duration::from_secs(5)).await.is_ok());
    flow.send_replace(Flow::Swallow);
    assert_eq!(call(&peers, "late", Duration::from_millis(300)).await, Err(PeerError::TimedOut));
    let before = echo.begun();
    flow.send_replace(Flow::Pass);
    // What follows on the same stream arrives behind it, and is begun.
    assert!(call(&peers, "x", Duration::from_secs(5)).await.is_ok());
    assert_eq!(echo.begun(), before + 1);
}

/// Each stream may hold a message of the largest size while it arrives, so a connection has few.
#[tokio::test]
async fn a_connection_has_few_streams() {
    let echo = Echo::new(UNBOUND);
    let (address, _server) = serve(&echo, |_| {}).await;
    let client = PeerServiceClient::connect(format!("http://{address}")).await.unwrap();
    let open = || {
        let mut client = client.clone();
        // A stream of HTTP/2 ends when both its halves do.
        let (asking, asked) = tokio::sync::mpsc::channel::<ExchangeRequest>(1);
        async move {
            let asked = tokio_stream::wrappers::ReceiverStream::new(asked);
            (asking, client.exchange(asked).await.unwrap().into_inner())
        }
    };
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(open().await);
    }
    let fifth = tokio::spawn(open());
    assert!(
        timeout(Duration::from_millis(300), async {
            while !fifth.is_finished() {
                tokio::task::yield_now().await
            }
        })
        .await
        .is_err()
    );
    streams.pop();
    timeout(Duration::from_secs(5), fifth).await.expect("a place is free").unwrap();
}

#[tokio::test]
async fn liveness_follows_what_answers() {
    let echo = Echo::new(UNBOUND);
    let (address, _server) = serve(&echo, |_| {}).await;
    let (through, flow) = proxy(address).await;
    let peers = caller(N2, &through, |config| config.down_after = Duration::from_millis(800));
    let becomes = async |state: PeerState, within| {
        eventually(within, "liveness", async || peers.liveness(N2).state == state).await
    };
    assert_ne!(peers.liveness(N2).state, PeerState::Up);
    becomes(PeerState::Up, Duration::from_secs(2)).await;
    flow.send_replace(Flow::Swallow);
    becomes(PeerState::Suspected, Duration::from_millis(600)).await;
    becomes(PeerState::Down, Duration::from_millis(1_000)).await;
    assert_eq!(peers.snapshot().len(), 1);
    flow.send_replace(Flow::Pass);
    becomes(PeerState::Up, Duration::from_millis(2_500)).await;
    assert_eq!(peers.liveness(NodeId(9)).state, PeerState::Down);
}

#[tokio::test]
async fn members_come_and_go_and_shutdown_ends_everything() {
    let echo = Echo::new(0);
    let (address, server) = serve(&echo, |_| {}).await;
    let peers = caller(N2, &address, |_| {});
    let waiting = call(&peers, "1", Duration::from_secs(10));
    let again = async {
        eventually(Duration::from_secs(5), "the call is begun", async || echo.begun() == 1).await;
        // The same members: the link and its call stay.
        peers.set_members(vec![member(N2, &address)]);
        echo.permits.add_permits(1);
    };
    let (answer, ()) = tokio::join!(waiting, again);
    assert_eq!(answer, Ok("1".into()));

    let waiting = call(&peers, "2", Duration::from_secs(10));
    let stop = async {
        eventually(Duration::from_secs(5), "the call is begun", async || echo.begun() == 2).await;
        server.shutdown();
    };
    let (answer, ()) = tokio::join!(waiting, stop);
    assert!(matches!(answer, Err(PeerError::Lost { .. })), "{answer:?}");

    peers.set_members(Vec::new());
    assert!(!call(&peers, "x", Duration::from_secs(1)).await.unwrap_err().was_sent());
    peers.shutdown();
    peers.set_members(vec![member(N2, &address)]);
    assert!(peers.snapshot().is_empty());
}
