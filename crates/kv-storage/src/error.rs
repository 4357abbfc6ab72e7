//! What can go wrong in storage, by name, each with what to do.

use std::io;

use crate::{journal::JournalError, tier::TierError};

/// An error of the storage engine. Cheap to clone: one failed `fdatasync` answers every waiter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// A bound was reached and nothing happened; try again later.
    #[error("storage is overloaded ({what} is full); nothing was written, retry later")]
    Overloaded {
        /// Which bound.
        what: &'static str,
    },
    /// The log has reached its bound and nothing happened.
    #[error("the log is full: {bytes} of {max} bytes, held by {pinned_by}; nothing was written")]
    LogFull {
        /// Size of the log.
        bytes: u64,
        /// Its bound (`max_log_bytes`).
        max: u64,
        /// What keeps its oldest segment.
        pinned_by: String,
    },
    /// The file system of the data directory is nearly full and nothing happened.
    #[error(
        "the disk is nearly full: {free} bytes are free, {reserve} are kept in reserve; nothing was written. Make room on the \
         file system of the data directory, and the node goes on by itself"
    )]
    DiskFull {
        /// Bytes that are free.
        free: u64,
        /// Bytes that must be.
        reserve: u64,
    },
    /// A batch, key, chunk or the small state is larger than its bound; nothing happened.
    #[error("{what} is too large: {bytes} bytes, the bound is {max}")]
    TooLarge {
        /// What was measured.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// More was written during a copy than its buffer holds (`copy_tail_bytes`): the copy was given up, the
    /// writes were not.
    #[error(
        "the copy fell behind the writes by more than {max} bytes and was given up; take a new one later"
    )]
    CopyOverrun {
        /// The bound.
        max: usize,
    },
    /// The log is damaged in a place that was durable. The node must not start from it.
    #[error(
        "the log is corrupt: segment {segment:016x} at offset {offset}: {what}. Do not delete anything: move this data \
         directory aside and start the node with an empty directory, under the same id. It asks the other nodes before it \
         takes part, and gets back from them what they have; so one node at a time, and not the only one. Do not put back an \
         older copy beside others: it has forgotten what the node promised since"
    )]
    CorruptLog {
        /// Segment id (the file is `wal/<id in hex>.seg`).
        segment: u64,
        /// Offset in it.
        offset: u64,
        /// What was found.
        what: String,
    },
    /// A file other than the log is damaged.
    #[error("{file} is corrupt: {what}")]
    CorruptFile {
        /// Which file.
        file: String,
        /// What was found.
        what: String,
    },
    /// The directory belongs to another node or cluster.
    #[error("the data directory belongs to {found}, this node is {expected}: point it to its own directory")]
    ForeignDataDir {
        /// The owner.
        found: String,
        /// The node that opened it.
        expected: String,
    },
    /// Another process (or another handle of this one) has the directory open.
    #[error("the data directory is in use: {0}")]
    InUse(String),
    /// The lower tier failed while running; the node must stop, and the next start decides what is left of
    /// it.
    #[error("the lower tier failed: {0}")]
    Tier(TierError),
    /// A journal refused or failed. While it is written, that stops the node, unless the disk has no room.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Another kind of tier, or another release, made the tier of the directory.
    #[error("{0}")]
    ForeignTier(String),
    /// An operation of the file system failed. If it was a log write, the log is poisoned.
    #[error("{op}: {message}")]
    Io {
        /// What was attempted.
        op: &'static str,
        /// The kind, for matching.
        kind: io::ErrorKind,
        /// The system's words.
        message: String,
    },
    /// A thread of the engine panicked: a defect of this program. The node must stop.
    #[error(
        "the storage thread {thread} panicked; the node must stop. This is a defect: please report it with the log"
    )]
    ThreadPanicked {
        /// Its name.
        thread: &'static str,
    },
    /// An option or argument makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Storage was shut down.
    #[error("storage is closed")]
    Closed,
}

impl StorageError {
    pub(crate) fn io(op: &'static str) -> impl Fn(io::Error) -> StorageError {
        move |e| StorageError::Io { op, kind: e.kind(), message: e.to_string() }
    }

    /// True if the content of the lower tier cannot be trusted.
    pub(crate) fn is_damaged_tier(&self) -> bool {
        matches!(self, StorageError::Tier(TierError::Damaged(_)))
    }

    /// True if a journal found no room on the disk. It has nothing of what was to be appended.
    pub(crate) fn is_journal_without_room(&self) -> bool {
        matches!(self, StorageError::Journal(JournalError::NoRoom { .. }))
    }

    /// True when nothing was written and the same request may be sent again later.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            StorageError::Overloaded { .. }
                | StorageError::LogFull { .. }
                | StorageError::DiskFull { .. }
                | StorageError::TooLarge { .. }
                | StorageError::Invalid(_)
        )
    }
}

impl From<TierError> for StorageError {
    fn from(e: TierError) -> Self {
        match e {
            TierError::InUse(m) => StorageError::InUse(m),
            TierError::Foreign(m) => StorageError::ForeignTier(m),
            other => StorageError::Tier(other),
        }
    }
}

impl From<StorageError> for io::Error {
    fn from(e: StorageError) -> Self {
        let kind = match &e {
            StorageError::Io { kind, .. } | StorageError::Journal(JournalError::Io { kind, .. }) => *kind,
            StorageError::LogFull { .. }
            | StorageError::DiskFull { .. }
            | StorageError::Journal(JournalError::NoRoom { .. }) => io::ErrorKind::StorageFull,
            StorageError::CorruptLog { .. } | StorageError::CorruptFile { .. } | StorageError::Journal(_) => {
                io::ErrorKind::InvalidData
            }
            StorageError::TooLarge { .. } | StorageError::Invalid(_) => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, e)
    }
}
