//! The client library of Quorate.
//!
//! A namespace chose its side of CAP when it was created; its handle has the operations of that side and no
//! others:
//!
//! ```no_run
//! # async fn example() -> Result<(), kv_client::Error> {
//! use kv_client::{Client, ClientOptions, Expect, WriteContext};
//!
//! let client = Client::connect(ClientOptions::new(["127.0.0.1:7101"]))?;
//!
//! let bank = client.strong("bank");
//! let revision = bank.put("alice", "100").await?.value;
//! bank.compare_and_set("alice", Expect::Revision(revision), "90").await?;
//!
//! let cart = client.available("cart");
//! let read = cart.get("user:42").await?.value;
//! cart.put("user:42", "apple,pear,plum", WriteContext::Causal(read.context)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Asking a leaderless namespace for a compare-and-set does not compile:
//!
//! ```compile_fail,E0599
//! # async fn example(client: kv_client::Client) {
//! use kv_client::Expect;
//!
//! let cart = client.available("cart");
//! cart.compare_and_set("user:42", Expect::Absent, "apple").await;
//! # }
//! ```
//!
//! Every operation has one deadline and one of three outcomes: an [`Answer`] with its receipt,
//! [`Error::Failed`] (it was definitely not applied) or [`Error::Unknown`] (it may have been, or may still
//! be). This is the one layer that retries: the same request id in every attempt, so that nothing is applied
//! twice.

mod admin;
mod attempts;
mod available;
mod client;
mod endpoint;
pub mod limits;
mod options;
mod outcome;
mod policy;
mod rpc;
mod session;
mod session_stream;
mod speed;
mod strong;
mod topology;

pub use admin::{
    Admin, CopyState, Digest, ExplainedCopy, ExplainedValue, Explanation, GroupRole, GroupStatus, NodeStatus,
    PartLatency, PartitionDigest, PeerState, PeerStatus, RefusalCount, RingOwners, StorageStatus,
};
pub use available::{Available, CausalContext, Removed, Sibling, Siblings, WriteContext};
pub use client::Client;
pub use kv_types::call::Presence;
pub use options::{ClientOptions, Via, WriteObserver};
pub use outcome::{Answer, Error};
pub use strong::{Deleted, Expect, Revision, Strong, Swap, Versioned};
pub use topology::{Leader, NamespaceInfo, Topology};
