//! How a client behaves.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kv_types::WriteId;

use crate::limits::{ADMIN_TIMEOUT, ATTEMPTS, MAX_IN_FLIGHT, READ_TIMEOUT, WRITE_TIMEOUT};

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
    /// Deadline of a write, over all attempts. A node honours at most
    /// [`kv_types::limits::MAX_DEADLINE`] of it at a time; a write whose fate is open is sent again under its
    /// id until this deadline, ever less often, or until the retry budget is used up.
    pub write_timeout: Duration,
    /// Deadline of a change of the cluster, over all attempts: a new namespace, a moved leadership.
    pub admin_timeout: Duration,
    /// Attempts of one operation, the first one included; 1 to [`crate::limits::MAX_ATTEMPTS`]. Refusals that
    /// pass by themselves, as while a group elects, or as those of a write whose fate is open, and answers
    /// that leave it open again soon, count only for the retry budget; with 1 nothing is tried again.
    pub attempts: u32,
    /// Operations in flight; one more fails at once with `CLIENT_LIMIT`.
    pub max_in_flight: usize,
    /// Begin with a random node, so that many clients spread over the cluster. Without it every client begins
    /// with the first node that answers: for tools whose every run should show the same view.
    pub spread: bool,
    /// How reads and writes travel.
    pub via: Via,
    /// Told how each write is named, before it is sent for the first time: a caller that is to end before the
    /// answer comes can still say which request it was. None by default.
    pub observer: Option<WriteObserver>,
}

/// What is told of the writes of a client: their ids. See [`ClientOptions::observer`].
#[derive(Clone)]
pub struct WriteObserver(Arc<dyn Fn(WriteId) + Send + Sync>);

impl WriteObserver {
    /// One that calls this for each put, delete, compare-and-set and change of a namespace that is not itself
    /// a resend, on the task that writes. It must not block. It is called once for a write, however many
    /// attempts that takes; a write for which it was not called was not sent.
    pub fn new(observe: impl Fn(WriteId) + Send + Sync + 'static) -> Self {
        Self(Arc::new(observe))
    }

    /// Tells it of a write that is about to be sent.
    pub(crate) fn observe(&self, id: WriteId) {
        (self.0)(id);
    }
}

impl fmt::Debug for WriteObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WriteObserver")
    }
}

/// How reads and writes travel; they mean the same either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Via {
    /// Many on one stream to each node, in batches; by themselves where they are large, or where the node
    /// knows no such streams.
    #[default]
    Session,
    /// Each by itself.
    Unary,
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
            via: Via::default(),
            observer: None,
        }
    }

    /// Pinned to one node.
    pub fn pinned(endpoint: impl Into<String>) -> Self {
        Self { pinned: true, ..Self::new([endpoint]) }
    }
}
