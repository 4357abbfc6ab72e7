//! The serving side of peer streams: identity first, then bounds, then the handler. Work that has expired
//! before it was begun is refused unstarted.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use kv_env::{ConnectionInfo, Introduced, ReceivedBytes};
use kv_proto::peer::peer_service_server::{PeerService, PeerServiceServer};
use kv_proto::peer::{
    ExchangeRequest, ExchangeResponse, Pong, RequestFrame, ResponseFrame, request_frame, response_frame,
};
use kv_types::limits::MAX_PEER_MESSAGE_BYTES;
use kv_types::{Epoch, Failure, GroupId, NamespaceId, NodeId, Reason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status, Streaming};

use crate::delay::Delays;
use crate::{Address, PeerConfig, PeerHandler, PeerRequest, Peers, limits};

/// The peer service, ready for a tonic router.
pub type PeerServer = PeerServiceServer<Service>;

/// Serves peers for the node whose [`Peers`] these are, until [`Peers::shutdown`]: checks the cluster and the
/// target of every frame, answers pings itself, bounds what one stream has under way, and passes the rest to
/// the handler.
pub fn service(peers: &Peers, handler: Arc<dyn PeerHandler>) -> PeerServer {
    let config = peers.config();
    let cluster_id = kv_proto::cluster_id_bytes(config.cluster_id);
    let bytes = Arc::new(Semaphore::new(config.request_bytes));
    let unsent = Arc::new(Semaphore::new(config.answer_bytes));
    PeerServiceServer::new(Service { config, cluster_id, handler, bytes, unsent, stopped: peers.stopped() })
        .max_decoding_message_size(MAX_PEER_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_PEER_MESSAGE_BYTES)
}

/// A tonic server with the windows and the keep-alive that peer links need on the accepting side.
pub fn server_builder() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(limits::ACCEPTED_KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(limits::KEEP_ALIVE_TIMEOUT))
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_frame_size(limits::H2_FRAME_BYTES)
        .max_concurrent_streams(limits::CONNECTION_STREAMS)
}

/// See [`service`].
pub struct Service {
    config: Arc<PeerConfig>,
    cluster_id: bytes::Bytes,
    handler: Arc<dyn PeerHandler>,
    /// What is left for the bytes of requests of all streams.
    bytes: Arc<Semaphore>,
    /// What is left for the bytes of answers to reads that wait to be sent on all streams.
    unsent: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "peer service of {}", self.config.node_id)
    }
}

/// A response, and what its request holds until the response is on its way out.
struct Answer {
    frame: ResponseFrame,
    /// Of a large answer to a read: when no one waits for it any more.
    until: Option<Instant>,
    _held: Option<Held>,
    _unsent: Option<OwnedSemaphorePermit>,
}

/// The place of a request among those of its stream that are under way, and its bytes among those of all.
struct Held {
    _place: OwnedSemaphorePermit,
    _bytes: Option<OwnedSemaphorePermit>,
}

#[tonic::async_trait]
impl PeerService for Service {
    type ExchangeStream = BoxStream<'static, Result<ExchangeResponse, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let concurrency = self.config.stream_concurrency;
        let connection = request.extensions().get::<ConnectionInfo>().cloned().unwrap_or_default();
        // Twice the requests under way: refusals and pongs hold no place among them.
        let (out, answers) = mpsc::channel(concurrency * 2);
        let exchange = Exchange {
            config: Arc::clone(&self.config),
            cluster_id: self.cluster_id.clone(),
            handler: Arc::clone(&self.handler),
            places: Arc::new(Semaphore::new(concurrency)),
            bytes: Arc::clone(&self.bytes),
            unsent: Arc::clone(&self.unsent),
            out,
            introduced: connection.introduced,
        };
        let stopped = |mut stopped: watch::Receiver<bool>| async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let (until, also_until) = (stopped(self.stopped.clone()), stopped(self.stopped.clone()));
        let arriving = connection.received;
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = until => {}
                () = exchange.run(request.into_inner(), arriving) => {}
            }
        });
        let answers =
            Answers { answers, ready: Vec::new(), gathered: false }.map(Ok).take_until(Box::pin(also_until));
        Ok(Response::new(answers.boxed()))
    }
}

/// One incoming stream.
struct Exchange {
    config: Arc<PeerConfig>,
    cluster_id: bytes::Bytes,
    handler: Arc<dyn PeerHandler>,
    places: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    unsent: Arc<Semaphore>,
    out: mpsc::Sender<Answer>,
    /// Told when a frame says who sends and is for this node.
    introduced: Introduced,
}

impl Exchange {
    /// Serves until the stream ends. `arriving` counts what its connection has received.
    async fn run(self, mut requests: Streaming<ExchangeRequest>, arriving: ReceivedBytes) {
        let mut told = arriving.total();
        let mut delays = Delays::new(Instant::now());
        // Since when bytes arrive that are not told of.
        let mut report = None;
        loop {
            let moved = arriving.reach(told + limits::REPORT_BYTES);
            let message = tokio::select! {
                biased;
                () = async { match report { None => moved.await, Some(at) => sleep_until(at).await } } => {
                    if report.take().is_none() {
                        report = Some(Instant::now() + limits::REPORT_EVERY);
                        continue;
                    }
                    // A large message on a slow link: who waits for its answer learns that it moves.
                    let now = arriving.total();
                    let moves = now >= std::mem::replace(&mut told, now) + limits::REPORT_BYTES;
                    if !moves || self.answer(0, pong()) { continue } else { return }
                }
                message = requests.message() => message,
            };
            let Ok(Some(message)) = message else { return };
            let arrived = Instant::now();
            told = arriving.total();
            for frame in message.frames {
                let id = frame.id;
                let delay = match frame.sent_ms {
                    0 => Duration::ZERO,
                    sent_ms => delays.of(sent_ms, arrived),
                };
                let answer = match self.begin(frame, arrived, delay) {
                    Ok(None) => continue,
                    Ok(Some(body)) => body,
                    Err(failure) => refusal(&failure),
                };
                if !self.answer(id, answer) {
                    return;
                }
            }
        }
    }

    /// Answers at once; false when the stream must end.
    fn answer(&self, id: u64, body: response_frame::Body) -> bool {
        let frame = ResponseFrame { id, body: Some(body) };
        let sent = self.out.try_send(Answer { frame, until: None, _held: None, _unsent: None }).is_ok();
        if !sent {
            // The peer asks and does not read, or is gone.
            tracing::warn!("a peer does not read its answers; its stream is closed");
        }
        sent
    }

    /// A place for a request among those under way.
    fn hold(&self, body: &request_frame::Body) -> Result<Held, Failure> {
        let node = self.config.node_id;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let limit = self.config.stream_concurrency;
            let message = format!("{node} has {limit} requests of this stream under way");
            Failure::new(Reason::Overloaded, message).with("limit", limit)
        })?;
        let size = body.encoded_len();
        if size <= limits::SMALL_BYTES {
            return Ok(Held { _place: place, _bytes: None });
        }
        let wanted = u32::try_from(size).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(wanted).map_err(|_| {
            let limit = self.config.request_bytes;
            let message = format!("{node} has {limit} bytes of requests of other nodes under way, or nearly");
            Failure::new(Reason::Overloaded, message).with("limit", limit)
        })?;
        Ok(Held { _place: place, _bytes: Some(bytes) })
    }

    /// Checks a frame; an immediate answer, or none when the handler was begun. `delay`: how long it was held
    /// up on its way, while its time ran.
    fn begin(
        &self,
        frame: RequestFrame,
        arrived: Instant,
        delay: Duration,
    ) -> Result<Option<response_frame::Body>, Failure> {
        let node = self.config.node_id;
        if frame.cluster_id != self.cluster_id {
            return Err(Failure::new(Reason::WrongCluster, format!("{node} belongs to another cluster")));
        }
        if frame.to_node != node.0 {
            let wanted = NodeId(frame.to_node);
            return Err(Failure::new(
                Reason::WrongNode,
                format!("this is {node}, the message was for {wanted}"),
            ));
        }
        self.introduced.now();
        let body = frame.body.ok_or_else(|| {
            Failure::new(Reason::InvalidRequest, "the frame asks for something unknown here")
        })?;
        if matches!(body, request_frame::Body::Ping(_)) {
            return Ok(Some(pong()));
        }
        let delay = if runs_out_on_the_way(&body) { delay } else { Duration::ZERO };
        let left = Duration::from_millis(frame.deadline_ms.into()).saturating_sub(delay);
        if left.is_zero() {
            return Err(expired());
        }
        let held = self.hold(&body)?;
        let request = PeerRequest {
            from: NodeId(frame.from_node),
            about: Address {
                group: GroupId(frame.group),
                namespace: NamespaceId(frame.namespace_id),
                epoch: Epoch(frame.epoch),
            },
            deadline: arrived + left,
            body,
        };
        let (id, handler, out) = (frame.id, Arc::clone(&self.handler), self.out.clone());
        let (unsent, limit) = (Arc::clone(&self.unsent), self.config.answer_bytes);
        let (is_read, deadline) = (is_read(&request.body), request.deadline);
        tokio::spawn(async move {
            let result = if Instant::now() >= request.deadline {
                Err(expired())
            } else {
                handler.handle(request).await
            };
            let result = result.and_then(within_bounds);
            let room = match &result {
                Ok(body) if is_read => hold_unsent(&unsent, limit, body.encoded_len()),
                _ => Ok(None),
            };
            let (body, unsent) = match (result, room) {
                (Ok(body), Ok(unsent)) => (body, unsent),
                (Err(failure), _) | (_, Err(failure)) => (refusal(&failure), None),
            };
            let (frame, until) =
                (ResponseFrame { id, body: Some(body) }, unsent.is_some().then_some(deadline));
            // There is room for every place; when the stream is gone no caller waits for the answer.
            let _ = out.try_send(Answer { frame, until, _held: Some(held), _unsent: unsent });
        });
        Ok(None)
    }
}

/// Whether a request is not to be begun once its sender has given up. Messages of Raft and writes to replicas
/// do no harm when they are late, and good where a network has become slow: a late heartbeat is one.
fn runs_out_on_the_way(body: &request_frame::Body) -> bool {
    is_read(body) || matches!(body, request_frame::Body::Forward(_))
}

/// Whether a request changes nothing, so that its answer may be left out.
fn is_read(body: &request_frame::Body) -> bool {
    use kv_proto::peer::forward::Request as Forwarded;
    match body {
        request_frame::Body::ReplicaRead(_)
        | request_frame::Body::PullPartition(_)
        | request_frame::Body::CompareClocks(_)
        | request_frame::Body::PullMissing(_)
        | request_frame::Body::RaftHistory(_) => true,
        request_frame::Body::Forward(forward) => matches!(forward.request, Some(Forwarded::Get(_))),
        _ => false,
    }
}

/// Room for an answer to a read until it is on its way out; none is needed for a small one.
fn hold_unsent(
    unsent: &Arc<Semaphore>,
    limit: usize,
    bytes: usize,
) -> Result<Option<OwnedSemaphorePermit>, Failure> {
    if bytes <= limits::SMALL_BYTES {
        return Ok(None);
    }
    let wanted = u32::try_from(bytes).unwrap_or(u32::MAX);
    Arc::clone(unsent).try_acquire_many_owned(wanted).map(Some).map_err(|_| {
        let message = format!("{limit} bytes of answers to other nodes, or nearly, wait to be sent");
        Failure::new(Reason::Overloaded, message).with("limit", limit)
    })
}

fn pong() -> response_frame::Body {
    response_frame::Body::Pong(Pong {})
}

fn expired() -> Failure {
    Failure::new(Reason::DeadlineExpired, "the deadline passed before this was begun")
}

fn refusal(failure: &Failure) -> response_frame::Body {
    response_frame::Body::Failure(failure.into())
}

fn within_bounds(body: response_frame::Body) -> Result<response_frame::Body, Failure> {
    let bytes = body.encoded_len();
    if bytes <= limits::MAX_BODY_BYTES {
        return Ok(body);
    }
    Err(Failure::new(Reason::Internal, format!("an answer of {bytes} bytes is too large for one message")))
}

/// Answers as they come, as many at once as are there.
struct Answers {
    answers: mpsc::Receiver<Answer>,
    /// Received and not sent, last first.
    ready: Vec<Answer>,
    /// The tasks that were ready ran once since something was there: what they had to say goes along.
    gathered: bool,
}

impl Stream for Answers {
    type Item = ExchangeResponse;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ExchangeResponse>> {
        let this = &mut *self;
        if this.ready.is_empty() {
            if !this.answers.is_empty() && !std::mem::replace(&mut this.gathered, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            this.gathered = false;
            match this.answers.poll_recv_many(cx, &mut this.ready, limits::COALESCE_FRAMES) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(0) => return Poll::Ready(None),
                Poll::Ready(_) => this.ready.reverse(),
            }
        }
        let (mut frames, mut bytes) = (Vec::with_capacity(this.ready.len()), 0);
        while let Some(mut answer) = this.ready.pop() {
            if answer.until.is_some_and(|until| Instant::now() >= until) {
                answer.frame.body = Some(refusal(&expired()));
            }
            let size = answer.frame.body.as_ref().map_or(0, response_frame::Body::encoded_len);
            if !frames.is_empty() && bytes + size > limits::COALESCE_BYTES {
                this.ready.push(answer);
                break;
            }
            bytes += size;
            frames.push(answer.frame);
        }
        Poll::Ready(Some(ExchangeResponse { frames }))
    }
}
