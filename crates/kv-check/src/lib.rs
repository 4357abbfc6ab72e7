//! Histories and checkers: what clients saw, and whether a store that keeps its promises could have shown it.
//!
//! Everything here is pure: values in, values out; no clock, no thread, no file, no network. Time appears
//! only as the nanoseconds recorded in a history, all of them from one monotonic clock of one harness
//! process, so that the interval of an operation only ever contains its effect.
//!
//! The way through: [`history::read`] parses JSON lines into [`Event`]s; [`operation::pair`] checks that they
//! are well formed and joins each invocation with its completion into an [`Operation`]; the checkers judge
//! operations:
//!
//! - [`linear::check`]: is every key of a strong namespace linearizable?
//! - [`strong::account`] and [`available::account`]: which acknowledged writes are lost, which reads were
//!   stale?
//! - [`deaths`]: of which keys may a death have left a write half done?
//! - [`service`]: who was served, on which side of a partition, and for how long none was.
//!
//! A checker that cannot decide says so ([`Verdict::Unknown`]); it never guesses.

#[cfg(test)]
extern crate self as kv_check; // what tests share names the crate as they do

pub mod available;
pub mod counters;
pub mod deaths;
pub mod format;
pub mod history;
pub mod judge;
pub mod linear;
pub mod lists;
pub mod operation;
pub mod receipts;
pub mod service;
pub mod sets;
pub mod strong;
#[cfg(test)]
mod test_history;

pub use history::{Event, EventType, Function, Process};
pub use judge::{Judgement, Plan, Ruling, Workload, judge};
pub use linear::{Options, Verdict, Witness};
pub use operation::{Operation, Outcome};

/// A value as a history records it: any JSON value, `null` for an absent key.
pub type Json = serde_json::Value;
