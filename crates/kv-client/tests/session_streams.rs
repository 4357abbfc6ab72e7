//! The client on session streams, against a node that plays a script.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may fail loudly"
)]

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::Stream;
use futures_util::future::join_all;
use kv_client::{Client, ClientOptions, Error, Strong, Via};
use kv_proto::v1::session_answer::Answer;
use kv_proto::v1::session_request::Request as Part;
use kv_proto::v1::session_service_server::{SessionService, SessionServiceServer};
use kv_proto::{status_from_failure, v1};
use kv_types::{Applied, Failure, Reason, RequestId};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tonic::{Request, Response, Status, Streaming};

/// What the node does with the next request.
enum Act {
    Answer,
    Refuse(Failure),
    /// It takes it, and ends the stream.
    Break,
    /// It answers it, and takes no more.
    Drain,
    /// It answers another that was never asked.
    Confuse,
    /// It answers when it is told to.
    Hold,
}

#[derive(Default)]
struct Script {
    acts: VecDeque<Act>,
    holding: bool,
    /// So many streams are refused first.
    refusals: usize,
    /// Requests that may be open; 0 for 64.
    bounds: u32,
    streams: usize,
    requests: Vec<(usize, RequestId, u32)>,
    largest_frame: usize,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Script>>, Arc<Notify>);

fn put_answer() -> Answer {
    let evidence = v1::StrongEvidence {
        group: 1,
        term: 1,
        index: 7,
        path: v1::ReadPath::Log.into(),
        ..Default::default()
    };
    let linearizable = v1::Guarantee::Linearizable.into();
    Answer::Put(v1::PutResponse {
        revision: 3,
        receipt: Some(v1::Receipt {
            promised: linearizable,
            delivered: linearizable,
            evidence: Some(v1::receipt::Evidence::Strong(evidence)),
            ..Default::default()
        }),
        ..Default::default()
    })
}

impl Fake {
    fn plays(acts: impl IntoIterator<Item = Act>) -> Self {
        let fake = Self::default();
        fake.script(|script| script.acts = acts.into_iter().collect());
        fake
    }

    async fn until(&self, met: impl Fn(&Script) -> bool) {
        while !self.script(|script| met(script)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn script<T>(&self, act: impl FnOnce(&mut Script) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    async fn start(&self) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server = tonic::transport::Server::builder().add_service(SessionServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        Client::connect(ClientOptions::pinned(address)).unwrap()
    }

    /// Plays one stream.
    async fn play(
        &self,
        mut incoming: Streaming<v1::SessionFrame>,
        outgoing: mpsc::Sender<Result<v1::SessionFrame, Status>>,
    ) {
        let number = self.script(|script| {
            script.streams += 1;
            script.streams
        });
        let requests = self.script(|script| if script.bounds > 0 { script.bounds } else { 64 });
        let bounds = Some(v1::SessionBounds { requests, bytes: 1 << 20 });
        let say = |frame| outgoing.send(Ok(frame));
        say(v1::SessionFrame { bounds, ..Default::default() }).await.unwrap();
        while let Ok(Some(frame)) = incoming.message().await {
            self.script(|script| script.largest_frame = script.largest_frame.max(frame.requests.len()));
            let mut answers = Vec::new();
            let mut drain = false;
            for request in frame.requests {
                let Some(Part::Put(put)) = request.request else { panic!("only puts") };
                let mutation = v1::Mutation::read(put.mutation.as_ref()).unwrap();
                let act = self.script(|script| {
                    script.requests.push((number, mutation.request_id, mutation.attempt));
                    script.acts.pop_front().unwrap_or(Act::Answer)
                });
                let (id, answer) = match act {
                    Act::Answer => (request.id, put_answer()),
                    Act::Refuse(failure) => {
                        (request.id, Answer::Status(status_from_failure(&failure).details().to_vec().into()))
                    }
                    Act::Hold => {
                        self.script(|script| script.holding = true);
                        self.1.notified().await;
                        (request.id, put_answer())
                    }
                    Act::Break => return,
                    Act::Drain => {
                        drain = true;
                        (request.id, put_answer())
                    }
                    Act::Confuse => (request.id + 9, put_answer()),
                };
                answers.push(v1::SessionAnswer { id, answer: Some(answer) });
            }
            // The last first: they come in any order.
            answers.reverse();
            say(v1::SessionFrame { answers, drain, ..Default::default() }).await.unwrap();
            if drain {
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl SessionService for Fake {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::SessionFrame, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let refuses = self.script(|script| {
            let refuses = script.refusals > 0;
            script.refusals -= usize::from(refuses);
            refuses
        });
        if refuses {
            let failure = Failure::new(Reason::Overloaded, "too many streams").retry_after_ms(1);
            return Err(status_from_failure(&failure));
        }
        let (outgoing, mut frames) = mpsc::channel(4);
        let fake = self.clone();
        tokio::spawn(async move { fake.play(request.into_inner(), outgoing).await });
        Ok(Response::new(Box::pin(futures_util::stream::poll_fn(move |cx| frames.poll_recv(cx)))))
    }
}

async fn put(bank: &Strong) -> Result<(), Error> {
    bank.put("k", "v").await.map(drop)
}

#[tokio::test]
async fn one_stream_carries_all_in_batches() {
    let fake = Fake::default();
    let bank = fake.start().await.strong("bank");
    put(&bank).await.unwrap();
    for written in join_all((0..200).map(|_| put(&bank))).await {
        written.unwrap();
    }
    fake.script(|script| {
        assert_eq!((script.streams, script.requests.len()), (1, 201));
        assert!(script.largest_frame > 10, "{}", script.largest_frame);
    });
}

#[tokio::test]
async fn what_was_open_when_a_stream_ended_is_sent_again_under_its_identity() {
    let fake = Fake::plays([Act::Answer, Act::Break]);
    let bank = fake.start().await.strong("bank");
    put(&bank).await.unwrap();
    put(&bank).await.unwrap();
    fake.script(|script| {
        assert_eq!(script.streams, 2);
        let [_, (_, lost, first), (_, again, second)] = script.requests[..] else {
            panic!("{:?}", script.requests)
        };
        assert_eq!((lost, first, second), (again, 1, 2));
    });
}

#[tokio::test]
async fn the_end_of_a_stream_leaves_the_fate_of_its_mutations_open() {
    let fake = Fake::plays([Act::Answer, Act::Break, Act::Break, Act::Break]);
    let bank = fake.start().await.strong("bank");
    put(&bank).await.unwrap();
    let Error::Unknown(failure) = put(&bank).await.unwrap_err() else { panic!("its fate is open") };
    assert_eq!((failure.reason, failure.applied), (Reason::ConnectionLost, Applied::Unknown), "{failure}");
    assert!(failure.message.contains("session"), "{failure}");
    // An answer to what was never asked says nothing about the rest either.
    let fake = Fake::plays([Act::Answer, Act::Confuse]);
    let client = fake.start().await;
    let options = ClientOptions { attempts: 1, ..ClientOptions::pinned(client.endpoints()[0].clone()) };
    let bank = Client::connect(options).unwrap().strong("bank");
    put(&bank).await.unwrap();
    let Error::Unknown(failure) = put(&bank).await.unwrap_err() else { panic!("its fate is open") };
    assert!(failure.message.contains("was not open"), "{failure}");
}

#[tokio::test]
async fn a_node_that_drains_is_asked_on_another_stream_and_nothing_fails() {
    let fake = Fake::plays([Act::Answer, Act::Drain]);
    let bank = fake.start().await.strong("bank");
    for _ in 0..5 {
        put(&bank).await.unwrap();
    }
    fake.script(|script| {
        assert_eq!(script.streams, 2);
        assert!(script.requests.iter().all(|(_, _, attempt)| *attempt == 1), "{:?}", script.requests);
    });
}

#[tokio::test]
async fn refusals_are_the_nodes_words() {
    let refusal = Failure::new(Reason::LimitValue, "too large for this namespace").with("limit", 9);
    let fake = Fake::plays([Act::Refuse(refusal)]);
    let bank = fake.start().await.strong("bank");
    let Error::Failed(failure) = put(&bank).await.unwrap_err() else { panic!("it has a reason") };
    assert_eq!((failure.reason, failure.applied), (Reason::LimitValue, Applied::No));
    assert_eq!(failure.detail("limit"), Some("9"));
}

#[tokio::test]
async fn a_client_that_wants_none_opens_none() {
    let fake = Fake::default();
    let client = fake.start().await;
    let mut options = ClientOptions::pinned(client.endpoints()[0].clone());
    (options.via, options.write_timeout) = (Via::Unary, Duration::from_millis(300));
    // The node knows nothing but streams.
    put(&Client::connect(options).unwrap().strong("bank")).await.unwrap_err();
    assert_eq!(fake.script(|script| script.streams), 0);
}

/// Something that listens and is no node, as a web server: the same words and the same detail whichever way
/// it was asked, and no other failure is said so.
#[tokio::test]
async fn what_is_no_node_is_named_the_same_on_both_ways() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let serve = async |answer: &'static [u8]| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    // More than a greeting: the request.
                    let (mut came, mut some) = (0, [0; 1_024]);
                    while came < 120
                        && let Ok(more @ 1..) = socket.read(&mut some).await
                    {
                        came += more;
                    }
                    let _ = socket.write_all(answer).await;
                    while !answer.is_empty() && matches!(socket.read(&mut some).await, Ok(1..)) {}
                });
            }
        });
        address
    };
    let web: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    let mail: &[u8] = b"220 mail.example.com ESMTP\r\n500 no such command\r\n";
    // It closes the connection and says nothing.
    let silent: &[u8] = b"";
    for (answer, is_named) in [(web, true), (mail, true), (silent, false)] {
        let address = serve(answer).await;
        for via in [Via::Session, Via::Unary] {
            let options = ClientOptions { via, attempts: 1, ..ClientOptions::pinned(address.clone()) };
            let bank = Client::connect(options).unwrap().strong("bank");
            let read = bank.get("k").await.unwrap_err();
            for error in [read, put(&bank).await.unwrap_err()] {
                let failure = error.failure();
                let named = is_named.then_some(address.as_str());
                assert_eq!(failure.detail("not_a_node"), named, "{via:?}: {failure}");
                let says = format!("what listens at {address} is no kvd: it does not speak gRPC");
                assert_eq!(failure.message == says, is_named, "{via:?}: {failure}");
                // Of what waited for a stream it is known that it was not sent.
                assert!(via == Via::Unary || !error.is_unknown(), "{failure}");
            }
        }
    }
}

/// A node that opens no stream: what waits for one was never sent.
#[tokio::test]
async fn what_waits_for_a_stream_that_does_not_open_was_not_applied() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let accepts = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((socket, _)) = silent.accept().await {
            kept.push(socket);
        }
    });
    let mut options = ClientOptions::pinned(address);
    options.write_timeout = Duration::from_secs(2);
    let error = put(&Client::connect(options).unwrap().strong("bank")).await.unwrap_err();
    assert!(matches!(&error, Error::Failed(f) if f.reason == Reason::Unreachable), "{error}");
    assert!(error.failure().message.contains("nothing could be sent"), "{error}");
    accepts.abort();
}

/// A caller that leaves before its request is in a frame takes it back; what others have open is not
/// disturbed.
#[tokio::test]
async fn a_request_that_is_given_up_before_it_is_sent_ends_no_stream() {
    let fake = Fake::default();
    fake.script(|script| script.bounds = 1);
    let bank = fake.start().await.strong("bank");
    put(&bank).await.unwrap();
    // One is open; the second waits for room, and gives up.
    fake.script(|script| script.acts = [Act::Hold].into());
    let open = tokio::spawn({
        let bank = bank.clone();
        async move { put(&bank).await }
    });
    fake.until(|script| script.holding).await;
    for _ in 0..3 {
        assert!(tokio::time::timeout(Duration::from_millis(50), put(&bank)).await.is_err());
    }
    fake.script(|script| script.holding = false);
    fake.1.notify_one();
    open.await.unwrap().unwrap();
    put(&bank).await.unwrap();
    fake.script(|script| assert_eq!((script.streams, script.requests.len()), (1, 3)));
}

/// A node that opens no stream says why: nothing broke, and it is asked again after its pause.
#[tokio::test]
async fn a_stream_that_is_refused_is_no_broken_connection() {
    let fake = Fake::default();
    fake.script(|script| script.refusals = 2);
    let bank = fake.start().await.strong("bank");
    put(&bank).await.unwrap();
    fake.script(|script| script.refusals = 20);
    let client = fake.start().await;
    for _ in 0..6 {
        let error = put(&client.strong("bank")).await.unwrap_err();
        let Error::Failed(failure) = &error else { panic!("nothing was sent: {error}") };
        assert_eq!(failure.reason, Reason::Overloaded, "{failure}");
    }
    fake.script(|script| script.refusals = 0);
    put(&client.strong("bank")).await.unwrap();
}
