//! One lane to one peer: a queue, the calls that wait for an answer, and a task that keeps the stream open.
//! Whether a call left this node is decided under one lock: it is *sent* from the moment its frame is taken
//! out of the queue for the transport, and a call that is given up while still queued is taken out and never
//! sent.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use hyper_util::rt::TokioIo;
use kv_env::Env;
use kv_proto::peer::peer_service_client::PeerServiceClient;
use kv_proto::peer::{
    ExchangeRequest, ExchangeResponse, Ping, RequestFrame, ResponseFrame, request_frame, response_frame,
};
use kv_types::limits::MAX_PEER_MESSAGE_BYTES;
use kv_types::{Failure, NodeId, Reason};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::liveness::Heard;
use crate::{Address, Lane, Patience, PeerConfig, PeerError, Unsent, limits};

type Answer = Result<response_frame::Body, PeerError>;

/// One lane to one peer.
pub(crate) struct Link {
    config: Arc<PeerConfig>,
    env: Env,
    cluster_id: Bytes,
    to: NodeId,
    lane: Lane,
    dial: String,
    heard: Arc<Heard>,
    began: Instant,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    /// Counts connections: the sending half of an old one takes nothing from the queue.
    connection: u64,
    /// The next message of this connection begins with a frame that says who this is.
    greets: bool,
    next_id: u64,
    /// Not sent yet. Ids ascend, hence first in, first out.
    queue: BTreeMap<u64, Queued>,
    /// Waiting for an answer, queued or sent.
    calls: BTreeMap<u64, Call>,
    bytes: usize,
    /// When the peer was last heard on this link: an answer, or that bytes arrive there.
    moved: Instant,
    /// The sending half, when it found nothing to send.
    sender: Option<Waker>,
    /// It let the tasks that were ready run once since: what they had to send goes in the same message.
    gathered: bool,
}

enum Phase {
    /// The first attempt is under way: calls wait for it.
    First,
    Open,
    /// No connection: calls fail at once.
    Closed {
        why: String,
    },
}

/// Why there is no connection.
struct Broken {
    /// For callers, whose answers people read: no address that only this node uses, no library's words.
    said: String,
    /// For the log.
    detail: String,
}

struct Queued {
    about: Address,
    patience: Patience,
    body: request_frame::Body,
    bytes: usize,
}

struct Call {
    answer: oneshot::Sender<Answer>,
    bytes: usize,
}

impl State {
    /// Takes a call out. Whether it had been sent, when it was still there.
    fn remove(&mut self, id: u64) -> Option<(Call, bool)> {
        let call = self.calls.remove(&id)?;
        self.bytes = self.bytes.saturating_sub(call.bytes);
        let sent = self.queue.remove(&id).is_none();
        Some((call, sent))
    }

    fn wake_sender(&mut self) {
        if let Some(sender) = self.sender.take() {
            sender.wake();
        }
    }
}

/// Takes its call out when the caller gives up.
struct Waiting<'a> {
    link: &'a Link,
    id: u64,
    answered: bool,
}

impl Waiting<'_> {
    /// Takes the call out. Whether it had been sent; none when it was answered.
    fn give_up(&self) -> Option<bool> {
        let mut state = self.link.state();
        let (_, sent) = state.remove(self.id)?;
        if sent {
            // Something may have waited for its place among the calls in flight.
            state.wake_sender();
        }
        Some(sent)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.give_up();
        }
    }
}

impl Link {
    pub(crate) fn new(
        config: Arc<PeerConfig>,
        env: Env,
        to: NodeId,
        lane: Lane,
        dial: String,
        heard: Arc<Heard>,
    ) -> Self {
        let cluster_id = kv_proto::cluster_id_bytes(config.cluster_id);
        let state = Mutex::new(State {
            phase: Phase::First,
            connection: 0,
            greets: false,
            next_id: 1,
            queue: BTreeMap::new(),
            calls: BTreeMap::new(),
            bytes: 0,
            moved: Instant::now(),
            sender: None,
            gathered: false,
        });
        let began = Instant::now();
        Self { config, env, cluster_id, to, lane, dial, heard, began, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn call(&self, about: Address, body: request_frame::Body, patience: Patience) -> Answer {
        let begun = Instant::now();
        if matches!(patience, Patience::Until(deadline) if deadline <= begun) {
            return Err(PeerError::not_sent(Unsent::Late, "the deadline had passed"));
        }
        let body_bytes = body.encoded_len();
        if body_bytes > limits::MAX_BODY_BYTES {
            let why = format!("{body_bytes} bytes are too many for one message");
            return Err(PeerError::not_sent(Unsent::Invalid, why));
        }
        let (mut waiting, mut answer) =
            self.enqueue(about, body, body_bytes + limits::FRAME_OVERHEAD_BYTES, patience)?;
        loop {
            // Moves on while the link does: what passed before says nothing then.
            let end = self.end_of(patience, begun);
            match timeout_at(end, &mut answer).await {
                Ok(Ok(answer)) => {
                    waiting.answered = true;
                    return answer;
                }
                // The link dropped the call without a word; it never does.
                Ok(Err(_)) => return Err(PeerError::Lost { why: "the link was torn down".into() }),
                Err(_) if self.end_of(patience, begun) > end => {}
                Err(_) => {
                    return Err(match waiting.give_up() {
                        Some(false) => {
                            PeerError::not_sent(Unsent::Late, "the deadline passed while it was queued")
                        }
                        _ => PeerError::TimedOut,
                    });
                }
            }
        }
    }

    /// When a call that began at `begun` ends without an answer, as it looks now.
    fn end_of(&self, patience: Patience, begun: Instant) -> Instant {
        match patience {
            Patience::Until(deadline) => deadline,
            Patience::WhileMoving { idle, at_most } => {
                (self.state().moved.max(begun) + idle).min(begun + at_most)
            }
        }
    }

    fn enqueue(
        &self,
        about: Address,
        body: request_frame::Body,
        bytes: usize,
        patience: Patience,
    ) -> Result<(Waiting<'_>, oneshot::Receiver<Answer>), PeerError> {
        let mut state = self.state();
        if let Phase::Closed { why } = &state.phase {
            return Err(PeerError::not_sent(Unsent::NoConnection, why.clone()));
        }
        let too_large = state.bytes + bytes > self.config.link_bytes && !state.calls.is_empty();
        if state.calls.len() >= self.config.link_calls || too_large {
            let why = format!("the {:?} queue to {} is full", self.lane, self.to);
            return Err(PeerError::not_sent(Unsent::Full, why));
        }
        let id = state.next_id;
        state.next_id += 1;
        state.bytes += bytes;
        let (answer, receiver) = oneshot::channel();
        state.calls.insert(id, Call { answer, bytes });
        state.queue.insert(id, Queued { about, patience, body, bytes });
        state.wake_sender();
        Ok((Waiting { link: self, id, answered: false }, receiver))
    }

    /// Keeps a stream open until [`Self::stop`]; the task is aborted then.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            let connection = self.connecting();
            let why = match timeout(limits::CONNECT_TIMEOUT, self.connect(connection)).await {
                Ok(Ok((client, answers))) => {
                    tracing::debug!(peer = %self.to, lane = ?self.lane, "connected");
                    failures = 0;
                    let why = self.read(answers).await;
                    drop(client);
                    why
                }
                Ok(Err(why)) => why,
                Err(_) => {
                    let late = format!("no answer within {:?}", limits::CONNECT_TIMEOUT);
                    let detail = format!("{}: {late}", self.dial);
                    Broken { said: format!("no connection to {}: {late}", self.to), detail }
                }
            };
            if failures == 0 {
                tracing::debug!(peer = %self.to, lane = ?self.lane, why = why.detail, "not connected");
            }
            self.close(&why.said);
            tokio::time::sleep(self.pause(failures)).await;
            failures = failures.saturating_add(1);
        }
    }

    fn pause(&self, failures: u32) -> Duration {
        let full = limits::BACKOFF_MIN.saturating_mul(1 << failures.min(8)).min(limits::BACKOFF_MAX);
        let half = full / 2;
        half + Duration::from_micros(self.env.entropy.below(u64::try_from(half.as_micros()).unwrap_or(0)))
    }

    fn connecting(&self) -> u64 {
        let mut state = self.state();
        state.connection += 1;
        state.connection
    }

    /// Dials and opens the stream; done when the peer's side of it is open, which a socket that merely
    /// connects does not prove.
    async fn connect(
        self: &Arc<Self>,
        connection: u64,
    ) -> Result<(PeerServiceClient<Channel>, Streaming<ExchangeResponse>), Broken> {
        let (network, address) = (self.env.network.clone(), self.dial.clone());
        let connector = tower::service_fn(move |_: http::Uri| {
            let (network, address) = (network.clone(), address.clone());
            async move { network.dial(&address).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_shared(format!("http://{}", self.to))
            .map_err(|error| self.broken(&error))?
            .connect_timeout(limits::CONNECT_TIMEOUT)
            .http2_keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
            .connect_with_connector(connector)
            .await
            .map_err(|error| self.broken(&error))?;
        let mut client = PeerServiceClient::new(channel)
            .max_decoding_message_size(MAX_PEER_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_PEER_MESSAGE_BYTES);
        let outgoing = Outgoing { link: Arc::clone(self), connection };
        let answers = client.exchange(outgoing).await.map_err(|status| self.broken(&status))?.into_inner();
        let mut state = self.state();
        state.phase = Phase::Open;
        // A port closes connections that do not say soon whose they are, and this one may have nothing to do.
        state.greets = true;
        state.wake_sender();
        drop(state);
        Ok((client, answers))
    }

    /// Hands out answers until the stream ends; says why it did.
    async fn read(&self, mut answers: Streaming<ExchangeResponse>) -> Broken {
        loop {
            let message = match answers.message().await {
                Ok(Some(message)) => message,
                Ok(None) => {
                    let said = format!("{} closed the connection", self.to);
                    return Broken { detail: said.clone(), said };
                }
                Err(status) => return self.broken(&status),
            };
            // That bytes arrive (id 0) is said by the one that accepts them, before it knows for whom they
            // are.
            if message.frames.iter().any(|frame| frame.id != 0 && !is_identity_refusal(frame)) {
                self.heard.now();
            }
            let mut state = self.state();
            state.moved = Instant::now();
            let full = state.calls.len() - state.queue.len() >= self.config.link_in_flight;
            for frame in message.frames {
                // No caller waits for it any more: the answer of a call that was given up. One that is still
                // queued here cannot have been answered.
                if state.queue.contains_key(&frame.id) {
                    continue;
                }
                let Some((call, _)) = state.remove(frame.id) else { continue };
                let answer = match frame.body {
                    Some(response_frame::Body::Failure(failure)) => {
                        Err(PeerError::Refused(Failure::from(&failure)))
                    }
                    Some(body) => Ok(body),
                    None => {
                        Err(PeerError::Lost { why: format!("{} answered in a way unknown here", self.to) })
                    }
                };
                let _ = call.answer.send(answer);
            }
            if full {
                state.wake_sender();
            }
        }
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> Broken {
        Broken {
            said: format!("no connection to {}: {}", self.to, cause(error)),
            detail: format!("{}: {}", self.dial, chain(error)),
        }
    }

    /// Without a connection: what was sent is lost, what was queued was not sent.
    fn close(&self, why: &str) {
        let mut state = self.state();
        state.phase = Phase::Closed { why: why.to_owned() };
        state.connection += 1;
        let queue = std::mem::take(&mut state.queue);
        let calls = std::mem::take(&mut state.calls);
        state.bytes = 0;
        state.wake_sender();
        drop(state);
        for (id, call) in calls {
            let error = if queue.contains_key(&id) {
                PeerError::not_sent(Unsent::NoConnection, why)
            } else {
                PeerError::Lost { why: why.to_owned() }
            };
            let _ = call.answer.send(Err(error));
        }
    }

    /// For good; the task of [`Self::run`] must have been aborted.
    pub(crate) fn stop(&self) {
        self.close("this node has closed its links");
    }

    /// For the receiver, who sees by it how long messages are on their way. Not 0: that is for unsaid.
    fn sent_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// A ping whose answer is not waited for.
    fn greeting(&self) -> RequestFrame {
        RequestFrame {
            id: 0,
            cluster_id: self.cluster_id.clone(),
            from_node: self.config.node_id.0,
            to_node: self.to.0,
            sent_ms: self.sent_ms(),
            body: Some(request_frame::Body::Ping(Ping {})),
            ..RequestFrame::default()
        }
    }

    /// Takes what is queued for the transport: from here on it counts as sent.
    fn take(&self, connection: u64, cx: &Context<'_>) -> Poll<Option<ExchangeRequest>> {
        let mut state = self.state();
        if state.connection != connection {
            return Poll::Ready(None);
        }
        let (mut frames, mut bytes) = (Vec::new(), 0);
        if matches!(state.phase, Phase::Open) {
            let now = Instant::now();
            if std::mem::take(&mut state.greets) {
                // Alone: on a slow link what follows may take longer than the port waits.
                return Poll::Ready(Some(ExchangeRequest { frames: vec![self.greeting()] }));
            }
            if !state.queue.is_empty() && !std::mem::replace(&mut state.gathered, true) {
                // It is often woken by the first of many that are answered at once.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            while frames.len() < limits::COALESCE_FRAMES
                && state.calls.len() - state.queue.len() < self.config.link_in_flight
            {
                let Some(next) = state.queue.first_entry() else { break };
                if !frames.is_empty() && bytes + next.get().bytes > limits::COALESCE_BYTES {
                    break;
                }
                let (id, queued) = next.remove_entry();
                let (left, sent_ms) = match queued.patience {
                    Patience::Until(deadline) => (deadline.saturating_duration_since(now), self.sent_ms()),
                    // From when the whole has arrived.
                    Patience::WhileMoving { idle, .. } => (idle, 0),
                };
                let left = left.as_millis();
                let Some(deadline_ms) = u32::try_from(left).ok().or(Some(u32::MAX)).filter(|ms| *ms > 0)
                else {
                    if let Some((call, _)) = state.remove(id) {
                        let _ = call.answer.send(Err(PeerError::not_sent(
                            Unsent::Late,
                            "the deadline passed while it was queued",
                        )));
                    }
                    continue;
                };
                bytes += queued.bytes;
                frames.push(RequestFrame {
                    id,
                    cluster_id: self.cluster_id.clone(),
                    from_node: self.config.node_id.0,
                    to_node: self.to.0,
                    group: queued.about.group.0,
                    namespace_id: queued.about.namespace.0,
                    epoch: queued.about.epoch.0,
                    deadline_ms,
                    sent_ms,
                    body: Some(queued.body),
                });
            }
        }
        state.gathered = !state.queue.is_empty();
        if frames.is_empty() {
            state.sender = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Some(ExchangeRequest { frames }))
    }
}

/// The sending half of one connection.
struct Outgoing {
    link: Arc<Link>,
    connection: u64,
}

impl Stream for Outgoing {
    type Item = ExchangeRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ExchangeRequest>> {
        self.link.take(self.connection, cx)
    }
}

/// Somebody answered, but not the peer that was meant.
fn is_identity_refusal(frame: &ResponseFrame) -> bool {
    let wrong = [Reason::WrongCluster.code_name(), Reason::WrongNode.code_name()];
    matches!(&frame.body, Some(response_frame::Body::Failure(failure)) if wrong.contains(&failure.reason.as_str()))
}

/// An error with its causes: tonic says "transport error" and hides the rest below.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// What broke a connection, in the words of the system.
fn cause(error: &(dyn std::error::Error + 'static)) -> &'static str {
    use std::io::{self, ErrorKind};
    let io =
        |error: &(dyn std::error::Error + 'static)| error.downcast_ref::<io::Error>().map(io::Error::kind);
    // An error of the system that wraps another one does not name it as its source.
    let sources = std::iter::successors(Some(error), |error| {
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source())
    });
    match sources.filter_map(io).filter(|kind| *kind != ErrorKind::Other).last() {
        Some(ErrorKind::ConnectionRefused) => "connection refused",
        Some(ErrorKind::TimedOut) => "it does not answer",
        Some(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => "there is no way to it",
        Some(ErrorKind::NotFound) => "its name is not known",
        _ => "the connection was lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn callers_are_told_what_broke_without_addresses() {
        let inner = io::Error::new(io::ErrorKind::ConnectionRefused, "tcp connect error, 127.0.0.1:40123");
        assert_eq!(cause(&inner), "connection refused");
        assert_eq!(cause(&io::Error::other(inner)), "connection refused");
        let status = tonic::Status::unknown("h2 protocol error");
        assert_eq!(cause(&status), "the connection was lost");
    }
}
