//! Causality of available namespaces, as pure values: dots, contexts, records and their one [`State::merge`],
//! node clocks, hybrid-logical-clock stamps, and the encodings of all of them on disk and on the wire.
//!
//! A **dot** names one write: the incarnation of the replica that minted it and a counter per ring partition
//! and incarnation. A **context** is a set of dots: those whose effect is known. A **record** keeps every
//! value that nothing known supersedes, each under its own dot, beside one context that covers them and all
//! that they superseded. A record that has a dot in its context but not among its values has seen it
//! superseded, and that is the whole of the merge rule.
//!
//! A **node clock** is the set of dots that a primary has applied, over all keys of a ring partition. A
//! record is **filled** with it when it is loaded, and **stripped** of it when it is stored ([`primary`]): so
//! a context on disk is usually empty, and a deleted key leaves no row.
//!
//! A **state** is a record with the list of writes that it carries: which request each dot stands for. The
//! same request may have been given two dots (a resend that reached another replica); they are one write: if
//! either was superseded both are dead, and a read shows one value.

mod codec;
mod dots;
mod hlc;
mod keys;
#[cfg(test)]
mod model;
pub mod primary;
mod record;

pub use codec::{CodecError, Why, decode_context_token, encode_context_token};
pub use dots::{Context, Dot, DotRange, DotSet, NodeClock};
pub use hlc::Hlc;
pub use keys::{CONTEXT_KEYS, ContextKey, ContextKeys};
pub use record::{CARRIED_WRITES, Record, Seen, Sibling, State, Write};
