//! A stream to one node on which many requests travel in batches: what is ready when the stream can be
//! written goes out in one frame, and answers come in any order. One task drives it, none is spawned for a
//! request.
//!
//! What is known when it ends: a request that was never put into a frame was not sent; of one that was, the
//! fate is open.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kv_proto::v1::session_answer::Answer;
use kv_proto::v1::session_request::Request;
use kv_proto::v1::session_service_client::SessionServiceClient;
use kv_proto::{failure_from_status, v1};
use kv_types::limits::{MAX_PUBLIC_MESSAGE_BYTES, STREAM_VERSION};
use kv_types::{Failure, Reason};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::limits::{ATTEMPT_GRACE, CONNECT_TIMEOUT, STREAM_FRAME_BYTES, STREAM_QUEUE};

/// Why a stream has ended, or did not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// What listens there is no node.
    NoNode,
    /// Anything else, in words.
    Other(Arc<str>),
}

impl From<&Status> for End {
    fn from(status: &Status) -> Self {
        match is_no_node(status) {
            true => Self::NoNode,
            false => Self::Other(format!("{}: {}", status.code(), status.message()).into()),
        }
    }
}

impl From<&str> for End {
    fn from(words: &str) -> Self {
        Self::Other(words.into())
    }
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// It was not sent: the stream takes nothing any more.
    NotSent(End),
    /// It may have been sent.
    Lost(End),
    /// The node knows no such streams, so nothing was sent.
    Unknown,
    /// The node said why it opens none, so nothing was sent.
    Refused(Failure),
    /// It was not sent by its deadline, and never will be.
    Late,
    /// It was sent, and there was no answer by its deadline.
    Silent,
}

type Outcome = Result<Option<Answer>, Unanswered>;

/// Who has a request: until it is put into a frame its caller may take it back, and then it was never sent.
#[derive(Debug, Clone, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    /// Takes the request, once and for all. False if the other side has.
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// One request on its way.
struct Ask {
    request: Request,
    deadline: Instant,
    answer: oneshot::Sender<Outcome>,
    claim: Claim,
}

/// A stream; clones share it, and the last one ends it.
#[derive(Debug, Clone)]
pub(crate) struct SessionStream {
    asks: mpsc::Sender<Ask>,
    /// It takes no more requests.
    over: Arc<AtomicBool>,
}

impl SessionStream {
    /// Begins to open a stream over a connection.
    pub(crate) fn open(channel: Channel) -> Self {
        let (asks, queue) = mpsc::channel(STREAM_QUEUE);
        let over = Arc::<AtomicBool>::default();
        tokio::spawn(drive(channel, queue, Arc::clone(&over)));
        Self { asks, over }
    }

    /// Whether another one is needed.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire) || self.asks.is_closed()
    }

    /// Sends a request, and waits for its answer until its deadline and a little longer.
    pub(crate) async fn ask(&self, request: Request, deadline: Instant) -> Outcome {
        let until = deadline + ATTEMPT_GRACE;
        let (answer, waiting) = oneshot::channel();
        let claim = Claim::default();
        let ask = Ask { request, deadline, answer, claim: claim.clone() };
        match timeout_at(until, self.asks.send(ask)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Unanswered::NotSent("the stream has ended".into())),
            Err(_) => return Err(Unanswered::Late),
        }
        match timeout_at(until, waiting).await {
            Ok(Ok(outcome)) => outcome,
            // Only a driver that was dropped with its runtime says nothing.
            Ok(Err(_)) if claim.take() => Err(Unanswered::NotSent("the stream was dropped".into())),
            Ok(Err(_)) => Err(Unanswered::Lost("the stream was dropped".into())),
            Err(_) if claim.take() => Err(Unanswered::Late),
            Err(_) => Err(Unanswered::Silent),
        }
    }
}

/// What is open on a stream, as a value.
#[derive(Default)]
struct Open {
    next_id: u64,
    bounds: v1::SessionBounds,
    bytes: u64,
    waiting: BTreeMap<u64, (u64, oneshot::Sender<Outcome>)>,
}

impl Open {
    /// Whether one more request of so many bytes may be sent; an empty stream takes any.
    fn has_room(&self, bytes: u64) -> bool {
        let requests = u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
        requests < u64::from(self.bounds.requests)
            && (requests == 0 || self.bytes + bytes <= self.bounds.bytes)
    }

    fn begin(&mut self, bytes: u64, answer: oneshot::Sender<Outcome>) -> u64 {
        self.next_id += 1;
        self.bytes += bytes;
        self.waiting.insert(self.next_id, (bytes, answer));
        self.next_id
    }

    /// Gives an answer to who waits for it. False if none does.
    fn answered(&mut self, answer: v1::SessionAnswer) -> bool {
        let Entry::Occupied(waiting) = self.waiting.entry(answer.id) else { return false };
        let (bytes, caller) = waiting.remove();
        self.bytes -= bytes;
        // It may have left at its deadline.
        let _ = caller.send(Ok(answer.answer));
        true
    }
}

async fn drive(channel: Channel, mut queue: mpsc::Receiver<Ask>, over: Arc<AtomicBool>) {
    let (mut open, mut next, mut opened) = (Open::default(), None, false);
    let ended = match timeout(CONNECT_TIMEOUT, begin(channel)).await {
        Ok(Ok((frames, answers, bounds))) => {
            (open.bounds, opened) = (bounds, true);
            converse(frames, answers, &mut queue, &mut next, &mut open, &over).await
        }
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded("the stream did not open in time")),
    };
    over.store(true, Ordering::Release);
    queue.close();
    let why = ended.as_ref().map_or_else(End::from, |_| "the node has ended the stream".into());
    for (_, (_, caller)) in std::mem::take(&mut open.waiting) {
        let _ = caller.send(Err(Unanswered::Lost(why.clone())));
    }
    let unsent = match ended {
        Err(status) if status.code() == Code::Unimplemented => Unanswered::Unknown,
        // Why it opens none holds for all that wait; why a stream ended does not.
        Err(status) if !opened => match failure_from_status(&status) {
            failure if failure.reason == Reason::ConnectionLost => Unanswered::NotSent(why),
            failure => Unanswered::Refused(failure),
        },
        Ok(()) | Err(_) => Unanswered::NotSent(why),
    };
    refuse(next, &mut queue, &unsent);
}

type Frames = mpsc::Sender<v1::SessionFrame>;
type Answers = Streaming<v1::SessionFrame>;

/// Opens the stream: the node speaks first.
async fn begin(channel: Channel) -> Result<(Frames, Answers, v1::SessionBounds), Status> {
    // One frame: the next is made when the transport has taken it, of all that waits by then.
    let (frames, outgoing) = mpsc::channel(1);
    let outgoing = futures_util::stream::unfold(outgoing, |mut frames| async move {
        let frame = frames.recv().await?;
        Some((frame, frames))
    });
    let mut client = SessionServiceClient::new(channel)
        .max_decoding_message_size(MAX_PUBLIC_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_PUBLIC_MESSAGE_BYTES);
    let greeting = v1::SessionFrame { version: STREAM_VERSION, ..Default::default() };
    let _ = frames.try_send(greeting);
    let mut answers = client.session(outgoing).await?.into_inner();
    let first = answers.message().await?;
    let bounds = first.and_then(|frame| frame.bounds).filter(|bounds| bounds.requests > 0);
    let bounds = bounds.ok_or_else(|| Status::internal("the node did not say what may be open"))?;
    Ok((frames, answers, bounds))
}

async fn converse(
    frames: Frames,
    mut answers: Answers,
    queue: &mut mpsc::Receiver<Ask>,
    next: &mut Option<Ask>,
    open: &mut Open,
    over: &AtomicBool,
) -> Result<(), Status> {
    let mut frames = Some(frames);
    loop {
        let room = next.as_ref().is_some_and(|ask| open.has_room(bytes_of(&ask.request)));
        tokio::select! {
            biased;
            message = answers.message() => {
                let Some(v1::SessionFrame { answers, drain, .. }) = message? else { return Ok(()) };
                for answer in answers {
                    let id = answer.id;
                    if !open.answered(answer) {
                        return Err(Status::internal(format!("the node answered {id}, which was not open")));
                    }
                }
                if drain {
                    // Then the node ends the stream.
                    frames = None;
                    no_more(next, queue, over);
                }
            }
            ask = queue.recv(), if next.is_none() && frames.is_some() => match ask {
                Some(ask) => *next = Some(ask),
                // Every handle is gone, and with it everyone who waits.
                None => frames = None,
            },
            permit = reserve(frames.clone()), if room && frames.is_some() => match permit {
                Some(permit) => {
                    let frame = frame_of(next, queue, open);
                    if !frame.requests.is_empty() {
                        drop(permit.send(frame));
                    }
                }
                // The node takes no more; what it still says is heard.
                None => {
                    frames = None;
                    no_more(next, queue, over);
                }
            }
        }
    }
}

/// A frame of what waits, as far as it fits and may be sent. What comes after that stays in `next`.
fn frame_of(next: &mut Option<Ask>, queue: &mut mpsc::Receiver<Ask>, open: &mut Open) -> v1::SessionFrame {
    let (mut frame, mut size) = (v1::SessionFrame::default(), 0);
    while let Some(ask) = next.take().or_else(|| queue.try_recv().ok()) {
        let bytes = bytes_of(&ask.request);
        if !open.has_room(bytes) || (size > 0 && size + bytes > STREAM_FRAME_BYTES) {
            *next = Some(ask);
            break;
        }
        // Its caller has left, or taken it back.
        if ask.answer.is_closed() || !ask.claim.take() {
            continue;
        }
        if ask.deadline <= Instant::now() {
            let _ = ask.answer.send(Err(Unanswered::Late));
            continue;
        }
        size += bytes;
        let id = open.begin(bytes, ask.answer);
        let left = ask.deadline.saturating_duration_since(Instant::now());
        let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        frame.requests.push(v1::SessionRequest { id, timeout_ms, request: Some(ask.request) });
    }
    frame
}

/// What a request counts for in a frame: its message, its id, its time, and what stands before them.
pub(crate) fn bytes_of(request: &Request) -> u64 {
    const AROUND: usize = 32;
    u64::try_from(request.encoded_len() + AROUND).unwrap_or(u64::MAX)
}

/// What was not sent goes elsewhere.
fn no_more(next: &mut Option<Ask>, queue: &mut mpsc::Receiver<Ask>, over: &AtomicBool) {
    over.store(true, Ordering::Release);
    queue.close();
    refuse(next.take(), queue, &Unanswered::NotSent("the node takes no more requests".into()));
}

/// Whether what was answered is not even HTTP/2, as by a web server, a mail server or a shell: this side
/// found bytes that are no frames, and ended the connection. One that breaks is none of it, nor is one that
/// the other side ends.
pub(crate) fn is_no_node(status: &Status) -> bool {
    let no_frames = [h2::Reason::PROTOCOL_ERROR, h2::Reason::FRAME_SIZE_ERROR];
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let found = error.reason().is_some_and(|reason| no_frames.contains(&reason));
            return found && error.is_go_away() && error.is_library();
        }
        source = error.source();
    }
    false
}

fn refuse(next: Option<Ask>, queue: &mut mpsc::Receiver<Ask>, why: &Unanswered) {
    for ask in next.into_iter().chain(std::iter::from_fn(|| queue.try_recv().ok())) {
        let _ = ask.answer.send(Err(why.clone()));
    }
}

/// Waits until the transport has taken the frame before; `None` if it takes none any more.
async fn reserve(frames: Option<Frames>) -> Option<mpsc::OwnedPermit<v1::SessionFrame>> {
    frames?.reserve_owned().await.ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use prost::Message;

    fn open(requests: u32, bytes: u64) -> Open {
        Open { bounds: v1::SessionBounds { requests, bytes }, ..Default::default() }
    }

    fn ask(value: usize) -> (Ask, oneshot::Receiver<Outcome>) {
        let ((answer, waiting), claim) = (oneshot::channel(), Claim::default());
        let put = v1::PutRequest { value: vec![0; value].into(), ..Default::default() };
        (
            Ask { request: put.into(), deadline: Instant::now() + Duration::from_secs(1), answer, claim },
            waiting,
        )
    }

    #[test]
    fn frames_hold_what_waits_within_their_bound_and_that_of_the_node() {
        let (asks, mut queue) = mpsc::channel(100);
        let mut callers = Vec::new();
        for _ in 0..20 {
            let (ask, waiting) = ask(5_000);
            asks.try_send(ask).unwrap();
            callers.push(waiting);
        }
        let (mut next, mut open) = (None, open(15, 1 << 20));
        let first = frame_of(&mut next, &mut queue, &mut open);
        assert_eq!(first.requests.len(), 11, "56 KiB");
        assert!(first.encoded_len() <= 56 << 10);
        let second = frame_of(&mut next, &mut queue, &mut open);
        assert_eq!(second.requests.len(), 4, "fifteen are open");
        let ids: Vec<u64> = first.requests.iter().chain(&second.requests).map(|request| request.id).collect();
        assert_eq!(ids, (1..=15).collect::<Vec<_>>());
        assert!(open.answered(v1::SessionAnswer { id: 4, answer: None }));
        assert!(!open.answered(v1::SessionAnswer { id: 4, answer: None }), "once");
        assert!(!open.answered(v1::SessionAnswer { id: 99, answer: None }), "it was never asked");
        callers[3].try_recv().unwrap().unwrap();
        assert_eq!(frame_of(&mut next, &mut queue, &mut open).requests.len(), 1);
    }

    #[test]
    fn bytes_are_bounded_and_a_large_one_goes_alone() {
        let (asks, mut queue) = mpsc::channel(100);
        let callers: Vec<_> = [5_000, 5_000, 100]
            .map(|size| {
                let (ask, waiting) = ask(size);
                asks.try_send(ask).unwrap();
                waiting
            })
            .into();
        let (mut next, mut open) = (None, open(100, 4_000));
        assert_eq!(frame_of(&mut next, &mut queue, &mut open).requests.len(), 1);
        assert!(frame_of(&mut next, &mut queue, &mut open).requests.is_empty());
        open.answered(v1::SessionAnswer { id: 1, answer: None });
        let second = frame_of(&mut next, &mut queue, &mut open);
        assert_eq!((second.requests.len(), next.is_some()), (1, true));
        open.answered(v1::SessionAnswer { id: 2, answer: None });
        assert_eq!((open.bytes, open.waiting.len()), (0, 0));
        assert_eq!(callers.len(), 3);
        let taken_back = next.take().unwrap();
        assert!(taken_back.claim.take());
        next = Some(taken_back);
        assert!(frame_of(&mut next, &mut queue, &mut open).requests.is_empty(), "its caller took it back");
        assert!(next.is_none());
    }
}
