//! Requests on their way in: each message is admitted by the length that stands before it, before any of it
//! is buffered.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::Frame;
use kv_proto::status_from_failure;
use kv_types::{Failure, Reason};
use tonic::Status;

use crate::gate::Place;
use crate::limits::MAX_REQUEST_BYTES;

/// What the body of a request may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Messages {
    /// One message, of [`MAX_REQUEST_BYTES`] at most. Its place makes room for it.
    One,
    /// Any number of messages, one after the other, of so many bytes each at most. Their place has made room
    /// for them before.
    Many(usize),
}

impl Messages {
    fn most(self) -> usize {
        match self {
            Self::One => MAX_REQUEST_BYTES,
            Self::Many(most) => most,
        }
    }
}

/// The lengths that stand before the messages, as a value: bytes in, refusals out.
#[derive(Debug)]
struct Lengths {
    messages: Messages,
    /// Compression flag and length of the message, as far as they came.
    prefix: [u8; 5],
    seen: usize,
    /// Of the message, once its length is known.
    left: usize,
}

impl Lengths {
    fn new(messages: Messages) -> Self {
        Self { messages, prefix: [0; 5], seen: 0, left: 0 }
    }

    /// Takes what came, and says how many bytes the messages will have that begin in it.
    fn take(&mut self, mut data: &[u8]) -> Result<usize, Failure> {
        let mut begun = 0;
        loop {
            for (to, from) in self.prefix.iter_mut().skip(self.seen).zip(data) {
                *to = *from;
            }
            let of_prefix = data.len().min(self.prefix.len() - self.seen);
            self.seen += of_prefix;
            data = data.split_at(of_prefix).1;
            if of_prefix > 0 && self.seen == self.prefix.len() {
                self.left = self.announced()?;
                begun += self.left;
            }
            let of_message = data.len().min(self.left);
            self.left -= of_message;
            data = data.split_at(of_message).1;
            if data.is_empty() {
                return Ok(begun);
            }
            // A whole message is there, and more comes.
            if self.messages == Messages::One {
                let message = "the call has one request, and more than one message came";
                return Err(Failure::new(Reason::InvalidRequest, message));
            }
            self.seen = 0;
        }
    }

    /// No message is there in part.
    fn is_whole(&self) -> bool {
        self.left == 0 && (self.seen == 0 || self.seen == self.prefix.len())
    }

    /// The length of the message whose prefix is there.
    fn announced(&self) -> Result<usize, Failure> {
        let [_, length @ ..] = self.prefix;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        let most = self.messages.most();
        if length > most {
            let message = format!("the request has {length} bytes; at most {most} are taken");
            return Err(Failure::new(Reason::InvalidRequest, message).with("limit_bytes", most));
        }
        Ok(length)
    }
}

/// How far a request was read, for the one who answers it.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    whole: AtomicBool,
    refused: OnceLock<Failure>,
}

impl Reading {
    /// Why the request was not read to its end; nothing when it was.
    pub(crate) fn broken_off(&self) -> Option<Failure> {
        if self.whole.load(Ordering::Acquire) {
            return None;
        }
        let unreadable = || Failure::new(Reason::InvalidRequest, "a message of the request cannot be read");
        Some(self.refused.get().cloned().unwrap_or_else(unreadable))
    }
}

/// The body of a request.
pub(crate) struct Incoming {
    stream: RecvStream,
    place: Arc<Place>,
    lengths: Lengths,
    reading: Arc<Reading>,
    data_done: bool,
}

impl Incoming {
    pub(crate) fn new(stream: RecvStream, place: Arc<Place>, messages: Messages) -> Self {
        let (lengths, reading) = (Lengths::new(messages), Arc::default());
        Self { stream, place, lengths, reading, data_done: false }
    }

    /// How far it was read, also once it is in other hands.
    pub(crate) fn reading(&self) -> Arc<Reading> {
        Arc::clone(&self.reading)
    }

    fn admit(&mut self, data: &[u8]) -> Result<(), Failure> {
        let begun = self.lengths.take(data)?;
        if begun > 0 && self.lengths.messages == Messages::One {
            self.place.hold(begun)?;
        }
        Ok(())
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let broke = |error: h2::Error| Status::cancelled(format!("the request ended early: {error}"));
        if !this.data_done {
            match ready!(this.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    if let Err(failure) = this.admit(&data) {
                        let status = status_from_failure(&failure);
                        // The first one is the one that counts.
                        let _ = this.reading.refused.set(failure);
                        return Poll::Ready(Some(Err(status)));
                    }
                    // An error means that the stream is gone, which the next poll says.
                    let _ = this.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(broke(error)))),
                None => {
                    this.data_done = true;
                    this.reading.whole.store(this.lengths.is_whole(), Ordering::Release);
                }
            }
        }
        let trailers = ready!(this.stream.poll_trailers(cx)).map_err(broke)?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST: usize = 100;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        bytes.resize(5 + length, 7);
        bytes
    }

    /// What comes of a body that arrives in pieces of this size.
    fn taken(messages: Messages, body: &[u8], cut: usize) -> Result<usize, Failure> {
        let mut lengths = Lengths::new(messages);
        let begun =
            body.chunks(cut).try_fold(0, |begun, piece| Ok::<_, Failure>(begun + lengths.take(piece)?))?;
        assert!(lengths.is_whole() || body.len() < 5 + begun, "{lengths:?}");
        Ok(begun)
    }

    #[test]
    fn a_body_that_ends_within_a_message_is_not_whole() {
        for cut in [0, 1, 4, 5, 9, 10, 13, 20] {
            let body = [message(5), message(5)].concat();
            let mut lengths = Lengths::new(Messages::Many(MOST));
            lengths.take(&body[..cut]).unwrap();
            assert_eq!(lengths.is_whole(), cut % 10 == 0, "{cut}");
        }
    }

    #[test]
    fn a_message_is_refused_by_its_length_alone() {
        for (messages, most) in [(Messages::One, MAX_REQUEST_BYTES), (Messages::Many(MOST), MOST)] {
            let prefix = |length: usize| message(length)[..5].to_vec();
            assert_eq!(taken(messages, &prefix(most), 1).unwrap(), most);
            let refused = taken(messages, &prefix(most + 1), 1).unwrap_err();
            assert_eq!(refused.reason, Reason::InvalidRequest);
            assert_eq!(refused.detail("limit_bytes"), Some(most.to_string().as_str()));
        }
    }

    proptest! {
        /// However the bytes are cut up, the lengths are the same.
        #[test]
        fn lengths_are_found_in_any_pieces(
            lengths in prop::collection::vec(0..=MOST, 0..20), cut in 1_usize..300,
        ) {
            let body: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            prop_assert_eq!(taken(Messages::Many(MOST), &body, cut).unwrap(), lengths.iter().sum::<usize>());
            let one = taken(Messages::One, &body, cut);
            prop_assert_eq!(one.is_ok(), lengths.len() <= 1, "{:?}", one);
            let beyond = [body, message(MOST + 1)].concat();
            prop_assert!(taken(Messages::Many(MOST), &beyond, cut).is_err());
        }
    }
}
