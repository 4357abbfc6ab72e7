//! What is asked about one key of a namespace, and what is answered: one vocabulary for both modes, and for
//! every way by which a request comes. What comes from the wire is read into it once, at the edge; its parts
//! are within their bounds from then on. Whether a call suits the mode of its namespace is
//! [`Call::check_mode`].

use bytes::Bytes;

use crate::causal::{Dot, Sibling};
use crate::limits::MAX_CONTEXT_BYTES;
use crate::{
    Degradation, Failure, Key, Mode, Mutation, Namespace, Placement, Reason, Receipt, ReplicaCount, Value,
};

/// How a request came to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// From a client: it may be passed on once.
    Client,
    /// From a node that took it from a client: it is served here or refused.
    Forwarded,
}

/// How many replicas of an available namespace must answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quorum {
    /// Instead of the namespace's R or W.
    pub replicas: Option<ReplicaCount>,
    /// Only primaries count.
    pub strict: bool,
}

/// What a write to an available namespace supersedes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteContext {
    /// Exactly what a read saw, whose answer had this opaque context.
    Causal(Bytes),
    /// What the coordinating replica has now.
    Observed,
    /// Nothing: the value becomes a sibling.
    Blind,
}

/// Reads a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Get {
    /// The key.
    pub key: Key,
    /// Of an available namespace.
    pub quorum: Quorum,
}

/// Writes a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The key.
    pub key: Key,
    /// Its new value.
    pub value: Value,
    /// Who asks, and which request this is.
    pub mutation: Mutation,
    /// Of an available namespace, which needs it.
    pub context: Option<WriteContext>,
    /// Of an available namespace.
    pub quorum: Quorum,
}

/// Deletes a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    /// The key.
    pub key: Key,
    /// Who asks, and which request this is.
    pub mutation: Mutation,
    /// Of an available namespace, which needs it.
    pub context: Option<WriteContext>,
    /// Of an available namespace.
    pub quorum: Quorum,
}

/// Writes a key of a strong namespace if its revision is the expected one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompareAndSet {
    /// The key.
    pub key: Key,
    /// 0 expects that there is no value.
    pub expected_revision: u64,
    /// Its new value.
    pub value: Value,
    /// Who asks, and which request this is.
    pub mutation: Mutation,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A read.
    Get(Get),
    /// A write.
    Put(Put),
    /// A delete.
    Delete(Delete),
    /// A conditional write.
    CompareAndSet(CompareAndSet),
}

/// Which call it is, and which an outcome belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Call::Get`].
    Get,
    /// [`Call::Put`].
    Put,
    /// [`Call::Delete`].
    Delete,
    /// [`Call::CompareAndSet`].
    CompareAndSet,
}

impl Call {
    /// Which call it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Get(_) => Kind::Get,
            Self::Put(_) => Kind::Put,
            Self::Delete(_) => Kind::Delete,
            Self::CompareAndSet(_) => Kind::CompareAndSet,
        }
    }

    /// The identity of a mutation; `None` for a read.
    pub fn mutation(&self) -> Option<&Mutation> {
        match self {
            Self::Get(_) => None,
            Self::Put(Put { mutation, .. })
            | Self::Delete(Delete { mutation, .. })
            | Self::CompareAndSet(CompareAndSet { mutation, .. }) => Some(mutation),
        }
    }

    /// Whether a namespace of this mode can be asked that: `MODE_MISMATCH`, and for an available one
    /// `CONTEXT_MISSING`, `BAD_CONTEXT`, or `INVALID_REQUEST` for a count of replicas that it does not have.
    pub fn check_mode(&self, namespace: &Namespace) -> Result<(), Failure> {
        match self {
            Self::Get(get) => get.quorum.check(namespace, "a count of read replicas"),
            Self::Put(Put { context, quorum, .. }) | Self::Delete(Delete { context, quorum, .. }) => {
                check_context(namespace, context.as_ref())?;
                quorum.check(namespace, "a count of write replicas")
            }
            Self::CompareAndSet(_) => match namespace.mode() {
                Mode::Strong => Ok(()),
                Mode::Available => Err(mismatch(namespace, "compare-and-set")),
            },
        }
    }
}

impl Quorum {
    fn check(&self, namespace: &Namespace, what: &str) -> Result<(), Failure> {
        match namespace.placement {
            Placement::Strong { .. } if self.replicas.is_some() => Err(mismatch(namespace, what)),
            Placement::Strong { .. } if self.strict => Err(mismatch(namespace, "strict quorums")),
            Placement::Strong { .. } => Ok(()),
            Placement::Available { replication, .. } => {
                self.replicas.map_or(Ok(()), |count| count.of(replication.n).map(|_| ()))
            }
        }
    }
}

/// An available write says what it supersedes, a strong one has nothing to say about it.
fn check_context(namespace: &Namespace, context: Option<&WriteContext>) -> Result<(), Failure> {
    match (namespace.mode(), context) {
        (Mode::Strong, None) => Ok(()),
        (Mode::Strong, Some(_)) => Err(mismatch(namespace, "write contexts")),
        (Mode::Available, Some(WriteContext::Causal(bytes))) if bytes.len() > MAX_CONTEXT_BYTES => {
            Err(Failure::new(
                Reason::BadContext,
                format!(
                    "the context has {} bytes; contexts that a node gives out have at most {MAX_CONTEXT_BYTES}",
                    bytes.len()
                ),
            ))
        }
        (Mode::Available, Some(_)) => Ok(()),
        (Mode::Available, None) => Err(Failure::new(
            Reason::ContextMissing,
            format!(
                "a write to `{}` must say what it supersedes: the context of a read (causal), what the replica has \
                 now (observed), or nothing (blind)",
                namespace.name
            ),
        )),
    }
}

fn mismatch(namespace: &Namespace, what: &str) -> Failure {
    let article = |mode| if mode == Mode::Strong { "a" } else { "an" };
    let mode = namespace.mode();
    let other = if mode == Mode::Strong { Mode::Available } else { Mode::Strong };
    let message = format!(
        "`{}` is {} {mode} namespace and does not support {what}; use {} {other} namespace",
        namespace.name,
        article(mode),
        article(other)
    );
    Failure::new(Reason::ModeMismatch, message).with("mode", mode).with("offered_by", other)
}

/// Whether a key is there, as far as the answering replicas know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// At least one value.
    Found,
    /// A replica that keeps this key says that it has no value.
    Absent,
    /// Only fallbacks without a copy answered: this says nothing about the key.
    NoKnowledge,
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Whether there is a value.
    pub presence: Presence,
    /// Strong: the value.
    pub value: Bytes,
    /// Strong: its revision, 0 when there is none.
    pub revision: u64,
    /// Available: every concurrent value.
    pub siblings: Vec<(Dot, Sibling)>,
    /// Available: the opaque context.
    pub context: Bytes,
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of [`Call::Get`].
    Read(Read),
    /// Of [`Call::Put`].
    Put {
        /// Strong: the namespace's revision of this write.
        revision: u64,
        /// Available: a context that covers this write and what it superseded.
        context: Bytes,
    },
    /// Of [`Call::Delete`].
    Deleted {
        /// Strong: whether there was a value.
        existed: bool,
        /// Strong: the namespace's revision of this delete.
        revision: u64,
        /// Available: a context that covers this delete.
        context: Bytes,
    },
    /// Of [`Call::CompareAndSet`].
    Compared {
        /// Whether the value was written.
        swapped: bool,
        /// Of the value now: of this write, or of what was found (0 when there is none).
        revision: u64,
        /// On a mismatch: what was found.
        found: Bytes,
    },
}

impl Outcome {
    /// The call that it belongs to.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Read(_) => Kind::Get,
            Self::Put { .. } => Kind::Put,
            Self::Deleted { .. } => Kind::Delete,
            Self::Compared { .. } => Kind::CompareAndSet,
        }
    }
}

/// What is answered, with its proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What became of the call.
    pub outcome: Outcome,
    /// What was delivered, and the evidence.
    pub receipt: Receipt,
}

impl Answer {
    /// It came through another node.
    pub fn forwarded(mut self) -> Self {
        self.receipt.degrade(Degradation::Forwarded);
        self
    }

    /// A read, or a comparison that found something else: nothing was changed.
    pub fn changed_nothing(&self) -> bool {
        matches!(self.outcome, Outcome::Read(_) | Outcome::Compared { swapped: false, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClientId, GroupId, Guarantee, NamespaceId, NamespaceName, Replication, RequestId, RingId};

    fn namespace_of(name: &str, placement: Placement) -> Namespace {
        Namespace {
            id: NamespaceId(1),
            name: NamespaceName::new(name).unwrap(),
            settings_version: 1,
            deletion: None,
            guarantee: Guarantee::Eventual,
            placement,
        }
    }

    fn bank() -> Namespace {
        namespace_of("bank", Placement::Strong { group: GroupId::FIRST_DATA })
    }

    fn cart() -> Namespace {
        let replication = Replication { n: 3, r: 2, w: 2, sloppy: true };
        namespace_of("cart", Placement::Available { ring: RingId(1), replication })
    }

    fn mutation() -> Mutation {
        let request_id = RequestId { client_id: ClientId(7), seq: 1 };
        Mutation { request_id, issued_at_ms: 1, lowest_unacked: 1, attempt: 1 }
    }

    fn put(context: Option<WriteContext>, replicas: Option<ReplicaCount>, strict: bool) -> Call {
        Call::Put(Put {
            key: Key::new("k").unwrap(),
            value: Value::default(),
            mutation: mutation(),
            context,
            quorum: Quorum { replicas, strict },
        })
    }

    #[test]
    fn each_call_that_does_not_suit_its_namespace_has_a_name() {
        let large = WriteContext::Causal(vec![0; MAX_CONTEXT_BYTES + 1].into());
        let (blind, observed) = (Some(WriteContext::Blind), Some(WriteContext::Observed));
        let table = [
            (put(blind.clone(), None, false), cart(), None),
            (put(observed, None, true), cart(), None),
            (put(None, None, false), bank(), None),
            (put(blind.clone(), None, false), bank(), Some(Reason::ModeMismatch)),
            (put(None, None, false), cart(), Some(Reason::ContextMissing)),
            (put(Some(large), None, false), cart(), Some(Reason::BadContext)),
            (put(blind, Some(ReplicaCount::Number(4)), false), cart(), Some(Reason::InvalidRequest)),
            (put(None, Some(ReplicaCount::All), false), bank(), Some(Reason::ModeMismatch)),
            (put(None, None, true), bank(), Some(Reason::ModeMismatch)),
        ];
        for (row, (call, namespace, reason)) in table.into_iter().enumerate() {
            let refused = call.check_mode(&namespace).err();
            assert_eq!(refused.map(|failure| failure.reason), reason, "row {row}");
        }
    }

    #[test]
    fn a_mismatch_names_the_mode_that_offers_it() {
        let swap = Call::CompareAndSet(CompareAndSet {
            key: Key::new("k").unwrap(),
            expected_revision: 0,
            value: Value::default(),
            mutation: mutation(),
        });
        assert!(swap.check_mode(&bank()).is_ok());
        let refused = swap.check_mode(&cart()).unwrap_err();
        assert_eq!((refused.reason, refused.detail("offered_by")), (Reason::ModeMismatch, Some("strong")));
        let quorum = Quorum { replicas: Some(ReplicaCount::All), strict: false };
        let read = Call::Get(Get { key: Key::new("k").unwrap(), quorum });
        assert!(read.check_mode(&cart()).is_ok());
        let refused = read.check_mode(&bank()).unwrap_err();
        assert_eq!((refused.reason, refused.detail("offered_by")), (Reason::ModeMismatch, Some("available")));
    }
}
