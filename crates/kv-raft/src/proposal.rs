//! What goes through a group's log, and what comes back when it has been applied. The log carries opaque
//! bytes: they are encoded once where they are proposed and decoded once on every member, when they are
//! applied.

use std::fmt;

use bytes::Bytes;
use kv_types::{Failure, Namespace};

/// An encoded command of the group's domain.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal(pub(crate) Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// The serialization point of a command: where it stands in the log of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Point {
    /// The term.
    pub term: u64,
    /// The index.
    pub index: u64,
}

/// What applying an entry returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// An entry that is Raft's own.
    None,
    /// A command of the catalogue.
    Catalogue(Result<Catalogued, Failure>),
    /// A write to a key-value group.
    Write(Result<Written, Failure>),
    /// Namespaces were dropped from a key-value group.
    Dropped,
}

/// A namespace was made, changed or deleted, now or before by the same request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Catalogued {
    /// As it was made or changed, or was before it was deleted; none when the command was not about a
    /// namespace, or found nothing to do.
    pub namespace: Option<Namespace>,
    /// By an earlier attempt.
    pub deduplicated: bool,
}

/// A write was decided, now or when an earlier attempt arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// The result of the first application.
    pub effect: Effect,
    /// The namespace's revision then.
    pub namespace_revision: u64,
    /// Where it was first applied.
    pub point: Point,
    /// By an earlier attempt.
    pub deduplicated: bool,
}

/// The result of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The key has the value, at the namespace's revision.
    Put,
    /// The key has no value.
    Deleted {
        /// It had one before. If not, no revision was used.
        existed: bool,
    },
    /// The comparison held: the key has the new value, at the namespace's revision.
    Swapped,
    /// The comparison did not hold; nothing changed.
    Mismatch {
        /// The value that was found and its revision.
        found: Option<(u64, Bytes)>,
    },
}
