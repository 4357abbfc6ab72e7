//! Durable ordered tables and the shared log of one node.
//!
//! One segmented log ([`Storage::commit`], [`RaftLog`]) is the truth for every Raft group and for leaderless
//! replicas; a memtable above a lower tier ([`tier`]) answers reads. The tier may be lost at any time: it is
//! rebuilt from the log, or the loss is reported ([`Recovery::tier_lost`]) and the layers above rebuild it.
//!
//! Invariants of this crate:
//! - fjall is named in `tier/fjall.rs` alone, sled in `tier/sled.rs`, the operating system's files in
//!   `disk/real.rs` alone.
//! - Nothing read from a disk panics; damage is an error with a name.
//! - Nothing is acknowledged before the log's `fdatasync` returned; after an error of it nothing is
//!   acknowledged again.
//! - A segment is removed only when the tier is on disk up to it, and no live Raft entry is in it.
//! - A journal is never behind the tier: a drain step syncs its run before the tier takes the rows.
//! - The writer, drain and checkpoint are plain functions (`*_step`); threads or [`Storage::pump`] call them.

mod batch;
mod cache;
mod checkpoint;
mod codec;
mod copy;
pub mod disk;
mod drain;
mod engine;
mod entries;
mod error;
mod identity;
mod install;
pub mod journal;
mod journals;
mod key_filter;
mod lifecycle;
pub mod limits;
mod locks;
mod lower;
mod memtable;
mod merge;
mod open;
mod options;
mod parts;
mod pending;
mod raft_log;
mod readers;
mod reads;
mod run_mark;
mod snapshot;
mod snapshot_parts;
mod space;
mod steps;
mod tee;
pub mod tier;
mod wal;

pub use batch::{Batch, Position, Row, TableId};
pub use copy::{Copy, CopyRow, Piece};
pub use engine::{Stats, Storage};
pub use error::StorageError;
pub use identity::Identity;
pub use install::Removed;
pub use open::Recovery;
pub use options::{Drive, StorageOptions};
pub use raft_log::{FoundEntries, RaftLog};
pub use reads::RowChunk;
pub use snapshot::{BlockKind, SnapshotInfo, SnapshotReader, SnapshotWriter, Snapshots};
pub use snapshot_parts::{SnapshotBytes, SnapshotPart};
pub use wal::entry::{Done, RaftBounds, RaftEntry, RaftLogId};
