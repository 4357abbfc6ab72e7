//! Available namespaces: every key on N replicas of a ring, answered by the nodes that can be reached,
//! conflicts kept as siblings, everything merged again after a network partition heals.
//!
//! The layers: quorum arithmetic and the timing of hints are values without clock or socket (`quorum`,
//! `replay::Rounds`, `rebuild::judge`); `replica` is what one node keeps, on kv-storage; `write`, `read`,
//! `replay`, `rebuild`, `compare`, `catch_up`, `strip` and `removal` are thin drivers that carry out what the
//! values decide.
//!
//! Invariants of this crate:
//! - Nothing about a write leaves the node before the log record that holds it is fsynced.
//! - Dots are minted by the coordinating replica in the batch that writes the value; a fallback coordinates
//!   only when it was told, or found, that no primary can.
//! - Requests that count towards a quorum carry the epoch of the ring's assignment (`Ring::epoch`, not the
//!   catalogue's: a new namespace changes nothing about who keeps what) and are refused where it differs.
//!   Merge traffic (hints, repairs) carries epoch 0 and is never refused for an epoch.
//! - Nothing is written for a namespace that the catalogue known here has deleted: it is asked under the lock
//!   of the ring partition. So each node removes what it has of such a namespace by itself (`removal`), and
//!   nothing comes after it.
//! - A node that may have lost data neither coordinates nor answers reads until it has pulled what it may
//!   lack.

mod aside;
mod catch_up;
mod compare;
mod coordinator;
mod explain;
mod layout;
pub mod limits;
mod missing;
mod node;
mod quorum;
mod read;
mod rebuild;
mod removal;
mod replay;
mod replica;
mod standing;
mod strip;
mod write;

pub use coordinator::Available;
/// The table of records: every write asks whether it has one of its key.
pub use layout::RECORDS;
pub use node::AvailableConfig;
