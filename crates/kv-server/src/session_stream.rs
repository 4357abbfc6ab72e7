//! A session stream on the public port: many requests on one stream, answered in any order. What a request
//! means is the unary call's affair (both end in [`Services`]); here is only the stream. It always reads, so
//! nothing that a client sends holds up its own answers; what it may have open is told to it in advance, and
//! a client that takes more ends its stream and nothing else.
//!
//! One task serves a stream, and no task is spawned for a request. What is ready when the stream can be
//! written goes out together.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::{RecvStream, SendStream};
use kv_proto::v1::session_request::Request;
use kv_proto::{SessionCall, status_from_failure, v1};
use kv_types::limits::{MAX_STREAM_FRAME_BYTES, STREAM_VERSION};
use kv_types::{Failure, Hop, Reason};
use prost::Message;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::gate::{Gate, Place};
use crate::limits::{
    CLIENT_IDLE, SEND_GRACE, STREAM_ANSWER_FRAME_BYTES, STREAM_DRAIN, STREAM_OPEN_BYTES,
    STREAM_OPEN_REQUESTS, STREAM_READ_BYTES, STREAM_UNSENT_BYTES, WATCH_STALL,
};
use crate::pieces::{Held, Piece, Unsent, send_some, trailers_of};
use crate::requests::{self, Deadline};
use crate::router::Caller;
use crate::services::Services;

/// Where session streams are opened.
pub(crate) const PATH: &str = "/quorate.v1.SessionService/Session";

/// What a client has open on one stream, as a value.
#[derive(Debug, Default)]
struct Ledger {
    last_id: u64,
    open: usize,
    bytes: usize,
}

impl Ledger {
    /// Takes a request of so many bytes, or says how the client broke the protocol.
    fn open(&mut self, id: u64, bytes: usize) -> Result<(), Failure> {
        if id <= self.last_id {
            let message = format!("request {id} came after request {}; ids only rise", self.last_id);
            return Err(Failure::new(Reason::InvalidRequest, message));
        }
        self.last_id = id;
        self.open += 1;
        self.bytes += bytes;
        if self.open > STREAM_OPEN_REQUESTS || self.bytes > STREAM_OPEN_BYTES {
            let message = format!(
                "{} requests of {} bytes are open on this stream; {STREAM_OPEN_REQUESTS} of {STREAM_OPEN_BYTES} may be",
                self.open, self.bytes
            );
            return Err(Failure::new(Reason::InvalidRequest, message)
                .with("limit", STREAM_OPEN_REQUESTS)
                .with("limit_bytes", STREAM_OPEN_BYTES));
        }
        Ok(())
    }

    /// A request was answered.
    fn close(&mut self, bytes: usize) {
        assert!(self.open > 0 && self.bytes >= bytes, "what is answered was open");
        self.open -= 1;
        self.bytes -= bytes;
    }
}

/// Finds messages in what a stream brings: each with five bytes before it, a flag and a length.
#[derive(Debug, Default)]
struct Deframer(BytesMut);

impl Deframer {
    fn push(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
    }

    /// The next whole message. What is too large is refused by its length, before it is there.
    fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some((&[flag, a, b, c, d], rest)) = self.0.split_first_chunk() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if flag != 0 {
            return Err(Failure::new(Reason::InvalidRequest, "a frame is compressed, which is not offered"));
        }
        if length > MAX_STREAM_FRAME_BYTES {
            let message = format!("a frame has {length} bytes; at most {MAX_STREAM_FRAME_BYTES} are taken");
            return Err(
                Failure::new(Reason::InvalidRequest, message).with("limit_bytes", MAX_STREAM_FRAME_BYTES)
            );
        }
        // Copied: a part of the buffer would keep all of it.
        let Some(message) = rest.get(..length).map(Bytes::copy_from_slice) else { return Ok(None) };
        self.0.advance(5 + length);
        Ok(Some(message))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A request on its way to an answer.
type Asked = BoxFuture<'static, Answered>;

/// What is to be sent, and the bytes of the request: it is open until then.
struct Answered {
    bytes: usize,
    answer: v1::SessionAnswer,
    /// Given back when the answer was taken by the transport.
    place: Option<Arc<Place>>,
    ready: Instant,
    /// Of a read: after this no one waits for what was found.
    until: Option<Instant>,
}

impl Answered {
    fn new(bytes: usize, answer: v1::SessionAnswer, place: Option<Arc<Place>>) -> Self {
        Self { bytes, answer, place, ready: Instant::now(), until: None }
    }

    /// What was found is not sent to one who waits no more.
    fn unless_late(self) -> Self {
        match self.until {
            Some(until) if Instant::now() >= until => {
                let failure =
                    Failure::new(Reason::DeadlineExpired, "the answer was not sent by the deadline");
                Self::refused(self.answer.id, self.bytes, &failure, self.place)
            }
            _ => self,
        }
    }

    fn refused(id: u64, bytes: usize, failure: &Failure, place: Option<Arc<Place>>) -> Self {
        Self::new(bytes, v1::SessionAnswer { id, answer: Some(failure.into()) }, place)
    }
}

/// How a stream ends that does not end in order.
enum End {
    /// The client is gone, or takes nothing.
    Gone,
    /// It sent what cannot be taken.
    Refused(Failure),
}

impl From<Unsent> for End {
    fn from(_: Unsent) -> Self {
        Self::Gone
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}

/// What a session stream needs of its node.
pub(crate) struct Around {
    pub(crate) services: Services,
    pub(crate) gate: Arc<Gate>,
    pub(crate) connection: u64,
    /// Longer deadlines are capped.
    pub(crate) longest: Duration,
}

struct SessionStream {
    around: Around,
    ledger: Ledger,
    /// A client says its version in its first frame.
    greeted: bool,
    /// The client sends no more.
    ended: bool,
    /// Since when the node takes no more.
    draining: Option<Instant>,
    /// Reads that begin when more answers were sent.
    held: VecDeque<Asked>,
    reads: FuturesUnordered<Asked>,
    /// Bytes of the largest answers of late, up to [`STREAM_READ_BYTES`].
    large_read: usize,
    mutations: FuturesUnordered<Asked>,
    outbox: Outbox,
    last_request: Instant,
}

/// Serves one stream until it ends; `stopped` resolves when the node stops.
pub(crate) async fn serve(
    around: Around,
    mut body: RecvStream,
    mut send: SendStream<Piece>,
    stopped: impl Future<Output = ()>,
) {
    let mut stream = SessionStream::new(around);
    let status = match stream.run(&mut body, &mut send, stopped).await {
        Ok(()) => tonic::Status::ok(""),
        Err(End::Refused(failure)) => status_from_failure(&failure),
        Err(End::Gone) => return send.send_reset(h2::Reason::CANCEL),
    };
    // An error means that the client is gone.
    let sent = send.send_trailers(trailers_of(&status)).is_ok();
    if sent && timeout(WATCH_STALL, &mut stream.outbox.taken).await.is_err() {
        send.send_reset(h2::Reason::CANCEL);
    }
}

impl Drop for SessionStream {
    /// Mutations that have begun are seen through without the client.
    fn drop(&mut self) {
        let mut mutations = std::mem::take(&mut self.mutations);
        // A runtime that is being dropped runs nothing any more: their fate is open, as that of all else.
        if let Ok(runtime) = Handle::try_current()
            && !mutations.is_empty()
        {
            drop(runtime.spawn(async move { while mutations.next().await.is_some() {} }));
        }
    }
}

impl SessionStream {
    fn new(around: Around) -> Self {
        let mut outbox = Outbox::new();
        let bounds = v1::SessionBounds {
            requests: u32::try_from(STREAM_OPEN_REQUESTS).unwrap_or(u32::MAX),
            bytes: STREAM_OPEN_BYTES as u64,
        };
        outbox.say(v1::SessionFrame { bounds: Some(bounds), ..Default::default() });
        Self {
            around,
            ledger: Ledger::default(),
            greeted: false,
            ended: false,
            draining: None,
            held: VecDeque::new(),
            reads: FuturesUnordered::new(),
            large_read: STREAM_READ_BYTES,
            mutations: FuturesUnordered::new(),
            outbox,
            last_request: Instant::now(),
        }
    }

    async fn run(
        &mut self,
        body: &mut RecvStream,
        send: &mut SendStream<Piece>,
        stopped: impl Future<Output = ()>,
    ) -> Result<(), End> {
        tokio::pin!(stopped);
        let mut looks = interval(WATCH_STALL / 4);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut frames = Deframer::default();
        loop {
            self.begin_reads();
            let over = self.draining.map(|since| since + STREAM_DRAIN);
            let no_more = self.ended || over.is_some_and(|over| Instant::now() >= over);
            if no_more && self.ledger.open == 0 && self.outbox.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = &mut stopped, if self.draining.is_none() => self.drain(),
                data = body.data(), if !self.ended => match data {
                    Some(Ok(data)) => {
                        frames.push(&data);
                        // An error means that the stream is gone, which the next look says.
                        let _ = body.flow_control().release_capacity(data.len());
                        while let Some(message) = frames.next()? {
                            self.take(message)?;
                        }
                    }
                    Some(Err(_)) => return Err(End::Gone),
                    None if frames.is_empty() => self.ended = true,
                    None => return Err(invalid("the stream ends within a frame").into()),
                },
                Some(answered) = self.mutations.next(), if !self.mutations.is_empty() => {
                    self.outbox.push(answered);
                }
                Some(answered) = self.reads.next(), if !self.reads.is_empty() => self.has_read(answered),
                sent = self.outbox.send(send, &mut self.ledger), if !self.outbox.is_empty() => sent?,
                () = sleep_until(over.unwrap_or_else(Instant::now)), if over.is_some() && !no_more => {}
                _ = looks.tick() => self.look()?,
            }
        }
    }

    /// What only time tells: whether the client takes what it asked for, and whether it asks for anything.
    fn look(&mut self) -> Result<(), End> {
        if self.outbox.stalled_since().is_some_and(|since| since.elapsed() >= WATCH_STALL) {
            return Err(End::Gone);
        }
        if self.ledger.open == 0 && self.last_request.elapsed() >= CLIENT_IDLE && self.draining.is_none() {
            self.drain();
        }
        Ok(())
    }

    fn drain(&mut self) {
        self.draining = Some(Instant::now());
        self.outbox.say(v1::SessionFrame { drain: true, ..Default::default() });
    }

    /// Takes a frame of the client.
    fn take(&mut self, message: Bytes) -> Result<(), Failure> {
        let length = message.len();
        let frame = v1::SessionFrame::decode(message)
            .map_err(|error| invalid(&format!("a frame cannot be read: {error}")))?;
        let v1::SessionFrame { version, requests, answers, bounds, drain } = frame;
        match (self.greeted, version) {
            (false, STREAM_VERSION) | (true, 0) => self.greeted = true,
            _ => {
                let message = format!(
                    "a frame says version {version} of the protocol; this node speaks {STREAM_VERSION}"
                );
                return Err(Failure::new(Reason::InvalidRequest, message).with("version", STREAM_VERSION));
            }
        }
        if !answers.is_empty() || bounds.is_some() || drain {
            return Err(invalid("a frame says what only a node says"));
        }
        if requests.is_empty() && version == 0 {
            return Err(invalid("a frame says nothing"));
        }
        let now = Instant::now();
        self.last_request = now;
        requests.into_iter().try_for_each(|request| self.begin(request, now, length))
    }

    /// Begins with a request that arrived in a frame of `length` bytes.
    fn begin(&mut self, asked: v1::SessionRequest, arrived: Instant, length: usize) -> Result<(), Failure> {
        let bytes = asked.encoded_len();
        let v1::SessionRequest { id, timeout_ms, request } = asked;
        self.ledger.open(id, bytes)?;
        let place = match self.around.gate.arrive(self.around.connection) {
            Ok(place) => place,
            // Small, and open until it is sent: as many as may be open.
            Err(failure) => {
                self.outbox.push(Answered::refused(id, bytes, &failure, None));
                return Ok(());
            }
        };
        let head = self.admit(&place, bytes, timeout_ms, arrived).and_then(|caller| {
            let request =
                request.ok_or_else(|| invalid("the request is of a kind that this node does not know"))?;
            Ok((Head { id, bytes, caller }, request))
        });
        let (head, mut request) = match head {
            Ok(head) => head,
            Err(failure) => {
                self.outbox.push(Answered::refused(id, bytes, &failure, Some(place)));
                return Ok(());
            }
        };
        // Its key and value are parts of the frame, which must not stay for a small one of them.
        if 2 * bytes < length {
            own(&mut request);
        }
        let services = self.around.services.clone();
        match request {
            Request::Get(request) => {
                let until = head.caller.deadline.answer + SEND_GRACE;
                let read = ask(services, head, request);
                self.held.push_back(read.map(move |found| Answered { until: Some(until), ..found }).boxed());
            }
            Request::Put(request) => self.mutations.push(ask(services, head, request)),
            Request::Delete(request) => self.mutations.push(ask(services, head, request)),
            Request::CompareAndSet(request) => self.mutations.push(ask(services, head, request)),
        }
        Ok(())
    }

    fn admit(
        &self,
        place: &Arc<Place>,
        bytes: usize,
        timeout_ms: u32,
        arrived: Instant,
    ) -> Result<Caller, Failure> {
        place.hold(bytes)?;
        let stated = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms.into()));
        let deadline = Deadline::of(arrived, requests::granted(stated, self.around.longest)?);
        if self.draining.is_some() {
            return Err(Failure::new(Reason::ShuttingDown, "this stream takes no more requests"));
        }
        Ok(Caller { hop: Hop::Client, deadline, place: Arc::clone(place), seen_through: true })
    }

    /// Reads begin while what waits to be sent leaves room for what they, and those that have begun, will
    /// find: about as much as the largest of late. A node without room for one refuses it.
    fn begin_reads(&mut self) {
        while self.outbox.bytes + self.reads.len() * self.large_read < STREAM_UNSENT_BYTES
            && let Some(read) = self.held.pop_front()
        {
            self.reads.push(read);
        }
    }

    fn has_read(&mut self, answered: Answered) {
        let bytes = answered.answer.encoded_len().min(STREAM_READ_BYTES);
        self.large_read = bytes.max(self.large_read - self.large_read / 16);
        self.outbox.push(answered);
    }
}

/// Copies what a request has of its frame.
fn own(request: &mut Request) {
    let own = |bytes: &mut Bytes| *bytes = Bytes::copy_from_slice(bytes);
    let context = |context: &mut Option<v1::WriteContext>| {
        if let Some(v1::write_context::Context::Causal(causal)) =
            context.as_mut().and_then(|context| context.context.as_mut())
        {
            own(causal);
        }
    };
    let mutation = |mutation: &mut Option<v1::Mutation>| {
        if let Some(mutation) = mutation {
            own(&mut mutation.client_id);
        }
    };
    match request {
        Request::Get(get) => own(&mut get.key),
        Request::Put(put) => {
            own(&mut put.key);
            own(&mut put.value);
            context(&mut put.context);
            mutation(&mut put.mutation);
        }
        Request::Delete(delete) => {
            own(&mut delete.key);
            context(&mut delete.context);
            mutation(&mut delete.mutation);
        }
        Request::CompareAndSet(swap) => {
            own(&mut swap.key);
            own(&mut swap.value);
            mutation(&mut swap.mutation);
        }
    }
}

/// What a request brings beside its message.
struct Head {
    id: u64,
    bytes: usize,
    caller: Caller,
}

fn ask<R: SessionCall>(services: Services, head: Head, request: R) -> Asked
where
    v1::session_answer::Answer: From<R::Response>,
{
    async move {
        let Head { id, bytes, caller } = head;
        // A defect in one request is that request's answer, as where each has a task.
        let answered = AssertUnwindSafe(services.answer(request, &caller)).catch_unwind().await;
        let answered = answered
            .unwrap_or_else(|_| Err(Failure::new(Reason::Internal, "the node failed while it served this")));
        let place = Some(caller.place);
        match answered {
            Ok(response) => {
                Answered::new(bytes, v1::SessionAnswer { id, answer: Some(response.into()) }, place)
            }
            Err(failure) => Answered::refused(id, bytes, &failure, place),
        }
    }
    .boxed()
}

fn invalid(why: &str) -> Failure {
    Failure::new(Reason::InvalidRequest, why)
}

/// What waits to be sent.
struct Outbox {
    said: VecDeque<v1::SessionFrame>,
    answers: VecDeque<Answered>,
    /// Of the answers.
    bytes: usize,
    /// What is left of a frame, and what its answers hold.
    sending: Bytes,
    held: Held,
    /// Ends when the transport has taken the last frame that was handed to it.
    taken: oneshot::Receiver<()>,
    /// When the transport last took something.
    moved: Instant,
}

impl Outbox {
    fn new() -> Self {
        let (said, answers, held) = (VecDeque::new(), VecDeque::new(), Arc::new(()));
        let (_, taken) = oneshot::channel();
        Self { said, answers, bytes: 0, sending: Bytes::new(), held, taken, moved: Instant::now() }
    }

    fn is_empty(&self) -> bool {
        self.sending.is_empty() && self.said.is_empty() && self.answers.is_empty()
    }

    /// Since when the transport has taken nothing although an answer waits.
    fn stalled_since(&self) -> Option<Instant> {
        match self.sending.is_empty() {
            true => self.answers.front().map(|answered| answered.ready.max(self.moved)),
            false => Some(self.moved),
        }
    }

    fn say(&mut self, frame: v1::SessionFrame) {
        self.said.push_back(frame);
    }

    fn push(&mut self, answered: Answered) {
        self.bytes += answered.answer.encoded_len();
        self.answers.push_back(answered);
    }

    /// Makes a frame of what waits, as much as fits in one; what is answered by it is no longer open.
    fn frame(&mut self, ledger: &mut Ledger) {
        let (mut frame, mut places) = (self.said.pop_front().unwrap_or_default(), Vec::new());
        let mut size = 0;
        if self.sending.is_empty() {
            self.moved = Instant::now();
        }
        while let Some(next) = self.answers.front() {
            let bytes = next.answer.encoded_len();
            if size > 0 && size + bytes > STREAM_ANSWER_FRAME_BYTES {
                break;
            }
            let Some(answered) = self.answers.pop_front() else { break };
            self.bytes -= bytes;
            let Answered { bytes: asked, answer, place, .. } = answered.unless_late();
            size += answer.encoded_len();
            ledger.close(asked);
            frame.answers.push(answer);
            places.extend(place);
        }
        if kv_types::mutant!(AnswersSwapped)
            && let [first, second, ..] = &mut *frame.answers
        {
            std::mem::swap(&mut first.id, &mut second.id);
        }
        let length = frame.encoded_len();
        let mut out = BytesMut::with_capacity(5 + length);
        out.put_u8(0);
        out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        // A buffer that grows refuses nothing.
        let _ = frame.encode(&mut out);
        let (untaken, taken) = oneshot::channel::<()>();
        (self.sending, self.held, self.taken) = (out.freeze(), Arc::new((places, untaken)), taken);
    }

    /// Hands a piece to the transport when it may send one. Where it is dropped, nothing is lost.
    async fn send(&mut self, send: &mut SendStream<Piece>, ledger: &mut Ledger) -> Result<(), Unsent> {
        if self.sending.is_empty() {
            self.frame(ledger);
        }
        send_some(send, &mut self.sending, &self.held).await?;
        self.moved = Instant::now();
        if self.sending.is_empty() {
            // The pieces have it, and give it back with the last of them.
            self.held = Arc::new(());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_rise_and_what_is_open_has_a_bound() {
        let mut ledger = Ledger::default();
        ledger.open(3, 10).unwrap();
        for id in [0, 1, 3] {
            assert_eq!(ledger.open(id, 10).unwrap_err().reason, Reason::InvalidRequest, "{id}");
        }
        let mut ledger = Ledger::default();
        for id in 1..=STREAM_OPEN_REQUESTS as u64 {
            ledger.open(id, 1).unwrap();
        }
        let beyond = ledger.open(u64::MAX, 1).unwrap_err();
        assert!(beyond.detail("limit").is_some() && beyond.detail("limit_bytes").is_some(), "{beyond}");
        let mut ledger = Ledger::default();
        ledger.open(1, STREAM_OPEN_BYTES).unwrap();
        assert!(ledger.open(2, 1).is_err());
    }

    #[test]
    fn what_is_answered_makes_room() {
        let mut ledger = Ledger::default();
        for id in 1..10 * STREAM_OPEN_REQUESTS as u64 {
            ledger.open(id, 100).unwrap();
            ledger.close(100);
        }
        assert_eq!((ledger.open, ledger.bytes), (0, 0));
    }

    proptest! {
        /// However the bytes are cut up, the messages are the same.
        #[test]
        fn messages_are_found_in_any_pieces(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            cut in 1_usize..50,
        ) {
            let mut stream = Vec::new();
            for message in &messages {
                stream.put_u8(0);
                stream.put_u32(u32::try_from(message.len()).unwrap());
                stream.extend_from_slice(message);
            }
            let (mut frames, mut found) = (Deframer::default(), Vec::new());
            for piece in stream.chunks(cut) {
                frames.push(piece);
                while let Some(message) = frames.next().unwrap() {
                    found.push(message.to_vec());
                }
            }
            prop_assert_eq!(found, messages);
            prop_assert!(frames.is_empty());
        }
    }

    #[test]
    fn frames_that_are_too_large_or_compressed_are_refused_by_their_head() {
        let mut frames = Deframer::default();
        let length = u32::try_from(MAX_STREAM_FRAME_BYTES).unwrap() + 1;
        frames.push(&[&[0][..], &length.to_be_bytes()].concat());
        assert!(frames.next().unwrap_err().detail("limit_bytes").is_some());
        let mut frames = Deframer::default();
        frames.push(&[1, 0, 0, 0, 0]);
        assert_eq!(frames.next().unwrap_err().reason, Reason::InvalidRequest);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_is_not_sent_to_one_who_waits_no_more() {
        let found = || {
            let answer = v1::GetResponse { value: vec![7; 100].into(), ..Default::default() };
            let answer = v1::SessionAnswer { id: 5, answer: Some(answer.into()) };
            let until = Some(Instant::now() + Duration::from_secs(1));
            Answered { until, ..Answered::new(40, answer, None) }
        };
        let (soon, late) = (found(), found());
        assert!(v1::GetRequest::answered(soon.unless_late().answer.answer).is_ok());
        tokio::time::advance(Duration::from_secs(2)).await;
        let late = late.unless_late();
        assert_eq!((late.bytes, late.answer.id), (40, 5));
        let refused = v1::GetRequest::answered(late.answer.answer).unwrap_err();
        assert_eq!(refused.reason, Reason::DeadlineExpired);
    }

    #[tokio::test(start_paused = true)]
    async fn a_transport_that_takes_nothing_is_noticed_and_a_slow_one_is_not() {
        let mut outbox = Outbox::new();
        assert_eq!(outbox.stalled_since(), None, "nothing waits");
        tokio::time::advance(Duration::from_secs(100)).await;
        let answer = v1::SessionAnswer { id: 1, answer: None };
        let begun = Instant::now();
        outbox.push(Answered::new(0, answer, None));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(outbox.stalled_since(), Some(begun));
        let mut ledger = Ledger::default();
        ledger.open(1, 0).unwrap();
        outbox.frame(&mut ledger);
        let framed = Instant::now();
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(outbox.stalled_since(), Some(framed));
    }
}
