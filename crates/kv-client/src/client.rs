//! A client, its options, and the two kinds of outcome.

use std::sync::Arc;
use std::time::Duration;

use kv_env::Env;
use kv_proto::v1;
use kv_types::{Applied, Failure, Reason, Receipt, RequestId};
use tokio::time::Instant;

use crate::attempts::Attempts;
use crate::limits::{ADMIN_TIMEOUT, ATTEMPTS, MAX_IN_FLIGHT, READ_TIMEOUT, WRITE_TIMEOUT};
use crate::{Admin, Available, Strong};

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Nodes to begin with, `host:port`. One that answers is enough: it names the others.
    pub endpoints: Vec<String>,
    /// Talk to the one endpoint given and to no other: no discovery, no redirects. Shows what *this* node can
    /// do.
    pub pinned: bool,
    /// Deadline of a read, over all attempts.
    pub read_timeout: Duration,
    /// Deadline of a write, over all attempts.
    pub write_timeout: Duration,
    /// Deadline of a change of the cluster, over all attempts: a new namespace, a moved leadership.
    pub admin_timeout: Duration,
    /// Attempts of one operation, the first one included; 1 to [`crate::limits::MAX_ATTEMPTS`].
    pub attempts: u32,
    /// Operations in flight; one more fails at once with `CLIENT_LIMIT`.
    pub max_in_flight: usize,
    /// Begin with a random node, so that many clients spread over the cluster. Without it every client begins
    /// with the first node that answers: for tools whose every run should show the same view.
    pub spread: bool,
}

impl ClientOptions {
    /// The defaults, beginning with these nodes.
    pub fn new<S: Into<String>>(endpoints: impl IntoIterator<Item = S>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            pinned: false,
            read_timeout: READ_TIMEOUT,
            write_timeout: WRITE_TIMEOUT,
            admin_timeout: ADMIN_TIMEOUT,
            attempts: ATTEMPTS,
            max_in_flight: MAX_IN_FLIGHT,
            spread: true,
        }
    }

    /// Pinned to one node.
    pub fn pinned(endpoint: impl Into<String>) -> Self {
        Self { pinned: true, ..Self::new([endpoint]) }
    }
}

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

    /// Names the request, unless the node did.
    pub(crate) fn of_request(mut self, request_id: RequestId) -> Self {
        match &mut self {
            Self::Failed(failure) | Self::Unknown(failure) => failure.request_id.get_or_insert(request_id),
        };
        self
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

/// A client of one cluster. Cheap to clone; clones share connections, budget, breakers and sessions.
#[derive(Clone)]
pub struct Client(pub(crate) Arc<Attempts>);

impl Client {
    /// A client for these nodes. Connections are opened by the operations that need them, so a cluster that
    /// is down is reported by those; options that make no sense are refused here.
    pub fn connect(options: ClientOptions) -> Result<Self, Error> {
        Self::connect_in(options, Env::real())
    }

    /// The same with another clock, randomness and network, as inside a simulation.
    pub fn connect_in(options: ClientOptions, env: Env) -> Result<Self, Error> {
        Ok(Self(Arc::new(Attempts::new(options, env)?)))
    }

    /// A strong namespace: linearizable, refuses in a minority.
    pub fn strong(&self, namespace: impl Into<String>) -> Strong {
        Strong::new(Arc::clone(&self.0), namespace.into())
    }

    /// An available namespace: answers in a minority, keeps concurrent writes as siblings.
    pub fn available(&self, namespace: impl Into<String>) -> Available {
        Available::new(Arc::clone(&self.0), namespace.into())
    }

    /// Namespaces, topology, status.
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.0))
    }

    /// The endpoints it was given, as `host:port`.
    pub fn endpoints(&self) -> &[String] {
        &self.0.options.endpoints
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoints", &self.0.options.endpoints).finish_non_exhaustive()
    }
}
