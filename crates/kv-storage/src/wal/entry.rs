//! Raft entries as callers see them: names, payloads, and how they hear that one is durable.

use std::{fmt, io};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{codec::Cursor, error::StorageError};

/// Called once, in order, when everything up to its append is durable, or with the error that stopped the
/// log.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// The name of a Raft entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RaftLogId {
    /// The leader's term.
    pub term: u64,
    /// The leader.
    pub node: u64,
    /// The place in the group's log.
    pub index: u64,
}

impl fmt::Display for RaftLogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.term, self.node, self.index)
    }
}

const ID_VERSION: u8 = 1;

impl RaftLogId {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = vec![ID_VERSION];
        for n in [self.term, self.node, self.index] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        Bytes::from(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<RaftLogId> {
        let mut c = Cursor::new(bytes);
        (c.u8()? == ID_VERSION).then_some(())?;
        Some(RaftLogId { term: c.u64()?, node: c.u64()?, index: c.u64()? })
    }
}

/// A Raft entry; the payload is opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftEntry {
    /// Its name.
    pub id: RaftLogId,
    /// Its content.
    pub payload: Bytes,
}

/// The ends of a group's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RaftBounds {
    /// The last purged entry; it may lie beyond everything that was ever appended (a snapshot was installed).
    pub purged: Option<RaftLogId>,
    /// The last entry, or the last purged one if there are none.
    pub last: Option<RaftLogId>,
}

/// A callback, and what to await for it.
pub(crate) fn when_durable() -> (Done, oneshot::Receiver<io::Result<()>>) {
    let (send, receive) = oneshot::channel();
    (Box::new(move |result| drop(send.send(result))), receive)
}

/// The result of what [`when_durable`] announced; an error if the engine ended first.
pub(crate) async fn durably(durable: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
    durable.await.unwrap_or_else(|_| Err(StorageError::Closed.into()))
}
