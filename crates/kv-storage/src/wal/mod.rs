//! The shared log: segments, the writer, recovery, retention, small state, and the index of the Raft groups'
//! entries.
//!
//! [`log::Log`] owns the parts and is what the rest of the crate sees. Each part owns its state and its lock.
//! Locks are taken in this order, left to right, and never the other way: a group's index, the memtable
//! (outside), the queue; the writer, the next segment, the open files; the writer, a group's index.

pub(crate) mod durable;
pub(crate) mod entry;
pub(crate) mod files;
pub(crate) mod frame;
pub(crate) mod groups;
pub(crate) mod index;
pub(crate) mod log;
pub(crate) mod prepare;
pub(crate) mod progress;
pub(crate) mod queue;
pub(crate) mod recover;
pub(crate) mod retention;
pub(crate) mod runs;
pub(crate) mod segments;
pub(crate) mod slots;
pub(crate) mod small;
pub(crate) mod writer;
