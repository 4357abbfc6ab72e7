//! Answers on their way to the transport: no more at a time than it may send, and counted until it has taken
//! the last byte.

use std::any::Any;
use std::future::poll_fn;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use h2::SendStream;
use tonic::Status;

use crate::limits::SEND_BUFFER_BYTES;

/// A piece of an answer on its way. With the last one the transport took all of it.
pub(crate) struct Piece {
    data: Bytes,
    _held: Option<Held>,
}

/// What an answer holds until the transport has taken all of it.
pub(crate) type Held = Arc<dyn Any + Send + Sync>;

impl Piece {
    /// The end of a stream.
    pub(crate) fn end() -> Self {
        Self { data: Bytes::new(), _held: None }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }
}

/// The stream ended before its answer was sent.
pub(crate) struct Unsent;

impl From<h2::Error> for Unsent {
    fn from(_: h2::Error) -> Self {
        Self
    }
}

/// Hands the transport as much of the data as it may send now, and waits until that is something. Dropped
/// before it has, it has taken nothing.
pub(crate) async fn send_some(
    send: &mut SendStream<Piece>,
    data: &mut Bytes,
    held: &Held,
) -> Result<(), Unsent> {
    send.reserve_capacity(data.len().min(SEND_BUFFER_BYTES));
    while send.capacity() == 0 {
        poll_fn(|cx| send.poll_capacity(cx)).await.ok_or(Unsent)??;
    }
    let piece = data.split_to(send.capacity().min(data.len()));
    Ok(send.send_data(Piece { data: piece, _held: Some(Arc::clone(held)) }, false)?)
}

pub(crate) fn trailers_of(status: &Status) -> http::HeaderMap {
    let mut trailers = http::HeaderMap::new();
    // An error means that the message is no header value; the code alone is still an answer.
    let _ = status.add_header(&mut trailers);
    trailers
}
