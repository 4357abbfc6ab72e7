//! The one error that travels: what happened, and whether the mutation was applied. The second half is
//! decided by the reason's place in one table, never by the code that raises it, so that no layer can blur
//! the three outcomes.

use std::fmt;

use crate::RequestId;

/// What became of a mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Applied {
    /// It took effect.
    Yes,
    /// It did not and never will.
    No,
    /// It may have, or still may.
    Unknown,
}

impl Applied {
    /// `yes`, `no` or `unknown`, as in `ErrorInfo` and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $applied:ident;)*) => {
        /// Why a request failed. Key absent and compare mismatch are responses, not failures.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name on the wire, in JSON and in the documentation.
            pub fn code_name(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// What this reason says of a mutation.
            pub fn applied(self) -> Applied {
                match self { $(Self::$name => Applied::$applied,)* }
            }

            /// The reason of that name.
            pub fn from_code_name(name: &str) -> Option<Self> {
                match name { $($code => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// Refused before proposing: this node does not lead the group.
    NotLeader = "NOT_LEADER", No;
    /// No quorum of voters, or an election in progress.
    NoQuorum = "NO_QUORUM", No;
    /// R not met; or W out of reach, refused before anything was sent.
    QuorumNotMet = "QUORUM_NOT_MET", No;
    /// W not met after a replica was sent the write.
    PartialWrite = "PARTIAL_WRITE", Unknown;
    /// The fate of a proposal is not known by the deadline.
    ResultUnknown = "RESULT_UNKNOWN", Unknown;
    /// The deadline passed before anything was begun.
    DeadlineExpired = "DEADLINE_EXPIRED", No;
    /// The call states no deadline.
    DeadlineMissing = "DEADLINE_MISSING", No;
    /// The request id was used before with another body.
    RequestIdReused = "REQUEST_ID_REUSED", No;
    /// The request id is missing or malformed.
    RequestIdInvalid = "REQUEST_ID_INVALID", No;
    /// The mode of the namespace does not offer this operation or option.
    ModeMismatch = "MODE_MISMATCH", No;
    /// Too much at once: a queue is full.
    Overloaded = "OVERLOADED", No;
    /// The log or disk has no room.
    LimitStorage = "LIMIT_STORAGE", No;
    /// The key is empty.
    EmptyKey = "EMPTY_KEY", No;
    /// The key is too long.
    LimitKey = "LIMIT_KEY", No;
    /// The value is too long.
    LimitValue = "LIMIT_VALUE", No;
    /// The key would get too many concurrent values.
    LimitSiblings = "LIMIT_SIBLINGS", No;
    /// This node holds as many hints as it may.
    LimitHints = "LIMIT_HINTS", No;
    /// The table of request ids is full.
    LimitRequests = "LIMIT_REQUESTS", No;
    /// Too many namespaces.
    LimitNamespaces = "LIMIT_NAMESPACES", No;
    /// The causal context cannot be read.
    BadContext = "BAD_CONTEXT", No;
    /// The causal context is of another key or namespace.
    ForeignContext = "FOREIGN_CONTEXT", No;
    /// A write to an available namespace does not say what it supersedes.
    ContextMissing = "CONTEXT_MISSING", No;
    /// A stale or future epoch.
    WrongEpoch = "WRONG_EPOCH", No;
    /// A message for another cluster.
    WrongCluster = "WRONG_CLUSTER", No;
    /// A message for a group that is not here.
    WrongGroup = "WRONG_GROUP", No;
    /// A message for another node.
    WrongNode = "WRONG_NODE", No;
    /// The session is unknown or was forgotten.
    SessionExpired = "SESSION_EXPIRED", Unknown;
    /// The request id is too old to prove whether it was taken.
    RequestExpired = "REQUEST_EXPIRED", Unknown;
    /// No such namespace.
    NamespaceUnknown = "NAMESPACE_UNKNOWN", No;
    /// The namespace is deleted, and this can be undone until its grace is over.
    DeletionPending = "DELETION_PENDING", No;
    /// The namespace exists, or is not deleted and so cannot be taken back.
    NamespaceExists = "NAMESPACE_EXISTS", No;
    /// The name or the settings of a namespace do not hold together.
    NamespaceInvalid = "NAMESPACE_INVALID", No;
    /// Mode has no default.
    ModeMissing = "MODE_MISSING", No;
    /// A field of the request is out of its range or missing.
    InvalidRequest = "INVALID_REQUEST", No;
    /// The node is starting, or rebuilding what it lost.
    NotReady = "NOT_READY", No;
    /// The node is stopping.
    ShuttingDown = "SHUTTING_DOWN", No;
    /// Disk failure or corruption; the node stops serving.
    StorageFailed = "STORAGE_FAILED", Unknown;
    /// The connection broke or the server was not reached in a way that leaves the fate open.
    ConnectionLost = "CONNECTION_LOST", Unknown;
    /// The server was not reached: nothing was sent.
    Unreachable = "UNREACHABLE", No;
    /// The client's own bounds refused the call.
    ClientLimit = "CLIENT_LIMIT", No;
    /// A defect.
    Internal = "INTERNAL", Unknown;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code_name())
    }
}

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({reason}, applied: {applied})")]
pub struct Failure {
    /// Why.
    pub reason: Reason,
    /// What became of the mutation: from the reason's table, or [`Applied::No`] for a read.
    pub applied: Applied,
    /// For people: what happened and where it was seen.
    pub message: String,
    /// Which request, when there was one.
    pub request_id: Option<RequestId>,
    /// When to come back, milliseconds.
    pub retry_after_ms: Option<u32>,
    /// Counts, hints and limits, by name.
    pub details: Vec<(String, String)>,
}

impl Failure {
    /// A failure whose outcome is the one of its reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            applied: reason.applied(),
            message: message.into(),
            request_id: None,
            retry_after_ms: None,
            details: Vec::new(),
        }
    }

    /// A read has no effect, whatever went wrong.
    pub fn of_read(mut self) -> Self {
        self.applied = Applied::No;
        self
    }

    /// Something may have been sent before this happened: a definite *no* becomes *unknown*.
    pub fn after_sending(mut self) -> Self {
        self.applied = Applied::Unknown;
        self
    }

    /// Whatever raised it knows that nothing was applied, nor will be: *unknown* becomes *no*.
    pub fn not_applied(mut self) -> Self {
        self.applied = Applied::No;
        self
    }

    /// Adds a detail.
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.details.push((name.to_owned(), value.to_string()));
        self
    }

    /// Names the request.
    pub fn of_request(mut self, request_id: RequestId) -> Self {
        self.request_id = Some(request_id);
        self
    }

    /// Says when to come back.
    pub fn retry_after_ms(mut self, ms: u32) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// The detail of that name.
    pub fn detail(&self, name: &str) -> Option<&str> {
        self.details.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_one_name() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(Reason::from_code_name(reason.code_name()), Some(*reason));
            assert!(Reason::ALL[i + 1..].iter().all(|other| other.code_name() != reason.code_name()));
            assert_ne!(reason.applied(), Applied::Yes, "{reason}: a failure never says that it was applied");
        }
    }
}
