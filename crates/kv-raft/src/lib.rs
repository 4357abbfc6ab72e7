//! The catalogue and the strong namespaces, replicated by Raft groups. Group 0 holds the catalogue on every
//! member; the others hold key-value data with client sessions, so that a write is applied once.
//!
//! Layers, from the wire to the disk: [`Strong`] (requests, forwarding, receipts) over `groups` (one Raft
//! group: whether it leads, peers' messages, its steward) and `requests` (proposals and reads) over openraft,
//! which sees `network` (kv-peer), `log_store` (the node's log) and `machine` (tables, snapshots). What
//! entries mean is decided by the domains `catalogue_machine` and `kv_machine`, pure functions of the log.
//! `config` and `codec` keep openraft's types off the disk and the wire; this crate alone names it.
//!
//! Snapshots travel as files in checked pieces: `transfer` decides, `snapshot_out` sends, `snapshot_in`
//! receives, and `sent_files` says which older file is kept for a follower that has a part of it.
//!
//! Invariants:
//! - A vote is durable before it is given, an entry before it is acknowledged; the log is purged only below a
//!   durable snapshot.
//! - The tables are derived: they may be lost or lag behind, the log and the snapshot files bring them back.
//! - A failure that says *not applied* was raised before anything was proposed or sent.

mod agreed_time;
mod applied;
mod attendance;
mod backlog;
mod builder;
mod catalogue_machine;
mod codec;
mod config;
mod digest;
mod disk_watch;
mod dropped;
mod fair_queue;
mod generations;
mod groups;
mod handover;
mod history;
mod holes;
mod incoming;
mod ingest;
mod kv_machine;
mod limits;
mod log_store;
mod log_time;
mod machine;
mod machine_error;
mod network;
mod pace;
mod proposal;
mod read_index;
mod recent;
mod rejoin;
mod requests;
mod rounds;
mod row;
mod runtime;
mod schedule;
mod sent_files;
mod session_shares;
mod sessions;
mod snapshot;
mod snapshot_check;
mod snapshot_in;
mod snapshot_out;
mod strong;
mod tables;
#[cfg(test)]
mod tests;
mod transfer;

pub use codec::CodecError;
pub use config::RaftConfig;
pub use groups::StartError;
pub use machine_error::MachineError;
pub use runtime::NodeRuntime;
pub use strong::Strong;

/// The table of present values: almost every write asks whether it has a row of its key.
pub const VALUES: kv_storage::TableId = tables::Table::Data.id();
