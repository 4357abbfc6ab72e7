//! The outcomes of an operation: an answer with its evidence, or an error that says whether it was applied.

use std::time::Duration;

use kv_proto::v1;
use kv_types::{Applied, Failure, Reason, Receipt, WriteId};
use tokio::time::Instant;

/// The detail of a failure that holds its [`WriteId`].
const WRITE_ID: &str = "write_id";

/// An operation that has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It was not applied and never will be: trying again is safe.
    #[error("{0}")]
    Failed(Failure),
    /// It may have been applied, or may still be: read, then decide.
    #[error("{0}")]
    Unknown(Failure),
}

impl Error {
    /// What happened.
    pub fn failure(&self) -> &Failure {
        match self {
            Self::Failed(failure) | Self::Unknown(failure) => failure,
        }
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.failure().reason
    }

    /// Names the request, unless the node did, and says how it is named to send it again.
    pub(crate) fn of_write(mut self, id: WriteId) -> Self {
        let (Self::Failed(failure) | Self::Unknown(failure)) = &mut self;
        failure.request_id.get_or_insert(id.request_id);
        failure.details.push((WRITE_ID.to_owned(), id.to_string()));
        self
    }

    /// How the write is named to send it again: see [`crate::Strong::resending`].
    pub fn write_id(&self) -> Option<WriteId> {
        self.failure().detail(WRITE_ID)?.parse().ok()
    }

    /// Whether the mutation may have been applied.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure.applied {
            Applied::No => Self::Failed(failure),
            Applied::Yes | Applied::Unknown => Self::Unknown(failure),
        }
    }
}

/// An answer with its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    /// What was asked for.
    pub value: T,
    /// What was promised, what was delivered, and how it can be checked.
    pub receipt: Receipt,
    /// From the call to the answer, all attempts and waits included.
    pub latency: Duration,
}

impl<T> Answer<T> {
    /// Joins an answer and its receipt. `begun` is when the operation was called.
    pub(crate) fn new(value: T, receipt: Option<&v1::Receipt>, begun: Instant) -> Result<Self, Error> {
        let receipt =
            receipt.ok_or_else(|| Failure::new(Reason::Internal, "the node answered without a receipt"));
        let receipt = receipt.and_then(|message| {
            Receipt::try_from(message).map_err(|e| {
                Failure::new(Reason::Internal, format!("the node's receipt cannot be read: {}", e.message))
            })
        });
        Ok(Self { value, receipt: receipt?, latency: begun.elapsed() })
    }
}

/// The answer of a node has no valid `what`.
pub(crate) fn malformed(what: &str) -> Failure {
    Failure::new(Reason::Internal, format!("the node's answer has no valid {what}"))
}
