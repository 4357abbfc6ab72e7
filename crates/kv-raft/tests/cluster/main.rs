//! Three nodes in one process, over real loopback connections and real data directories: what a client is
//! promised holds through elections, restarts, cuts and snapshots. Nothing sleeps in place of a condition;
//! every wait has an end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod deletions;
mod disks;
mod requests;
mod snapshots;
mod support;
