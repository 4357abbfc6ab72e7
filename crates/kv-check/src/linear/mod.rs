//! Linearizability, one key at a time: registers with cas, delete and revisions; strings and lists that grow.
//!
//! A history of a key is linearizable if every operation that took effect can be given one moment between its
//! call and its return, so that the object, acting at those moments, gives the answers that were recorded.
//! Keys are independent (Herlihy and Wing's locality), so each is searched alone.
//!
//! The search is Wing and Gong's with Lowe's memo: linearize any operation whose call lies before the first
//! return still to be explained, remember configurations that led nowhere, go back. Five things keep it
//! short:
//!
//! - An operation that leaves the object as it is (a read, a mismatch) is linearized as soon as it is legal:
//!   whatever could follow without it can follow after it. (A write of the value that is there already is
//!   none of these: it may have to wait, because an operation that must come first changes the value.)
//! - An operation of unknown outcome never has to be linearized. It is tried last; on a register only where
//!   it makes something legal that was not: in any linearization it can be moved right before the first
//!   operation that needs it, or left out. To a string or list it is appended only where some read shows the
//!   result.
//! - Revisions only grow, so operations that told theirs are linearized in that order. They only steer: the
//!   linearization that is found explains the values and times alone. [`Options::revisions`] turns this off.
//! - A configuration is the first operation not yet linearized, a bit window after it, the unknown ones used,
//!   and the state: its size follows the concurrency, not the length of the history. Whole configurations are
//!   compared; a hash alone never prunes.
//! - Where a register gets stuck for long, the short part of the history right before that place is searched
//!   by itself, from every state. If it has no explanation, neither has the whole, and nothing further back
//!   needs to be tried.
//!
//! Deciding is NP-complete, so there is a limit, and reaching it is [`Verdict::Unknown`], never a violation.
//! Up to ten processes and a thousand operations a key, it takes about a millisecond.

#![allow(clippy::indexing_slicing, reason = "every index is made in this file, from the vector it indexes")]

mod register;
mod search;
mod shrink;
mod text;
#[cfg(test)]
mod unsound;

pub use shrink::{Part, shrink};

use crate::operation::Expected;
use crate::{Function, Json, Operation, Outcome};
use search::Search;
use std::collections::BTreeMap;
use std::fmt;

/// How answers that carry little are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Convention {
    /// A mismatch is an observation: the state was not as expected (Porcupine's). A read of `null` saw an
    /// absent key.
    #[default]
    Strict,
    /// Failed operations are left out, and a read of `null` may have seen anything (Knossos').
    Lenient,
}

/// What a key is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// A value that is read, written, compared and set, deleted; absent at first.
    #[default]
    Register,
    /// A string that is read, written, and appended to; empty at first.
    Strings,
    /// A list that is read as a JSON array, and appended to; empty at first.
    Lists,
}

/// What [`check`] is to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What a key is.
    pub model: Model,
    /// How answers that carry little are read.
    pub convention: Convention,
    /// Whether revisions may be used: they shorten the search, and are checked on the way. Without them a
    /// condition on a revision becomes one on the value that the history shows at that revision, or none.
    pub revisions: bool,
    /// Configurations visited per key before the search gives up; each costs some tens of bytes.
    pub max_configurations: usize,
    /// Configurations without getting further before it is asked whether the part of the history right before
    /// that place has any explanation by itself: without one, the search need not go back to the beginning.
    pub patience: usize,
    /// Bytes of all states of strings and lists before the search of a key gives up.
    pub max_state_bytes: usize,
    /// Whether all texts that no read shows, or goes on from, are one state. Off, the verdicts are the same
    /// and take longer: to measure what it saves.
    pub one_lost_text: bool,
    /// The known way to be wrong, for the test that the fuzz finds it: a write of the value that is there
    /// already is taken for an operation that may always be linearized at once.
    #[cfg(test)]
    pub(crate) same_write_is_pure: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            model: Model::Register,
            convention: Convention::Strict,
            revisions: true,
            max_configurations: 3_000_000,
            patience: 2_000,
            max_state_bytes: 256 << 20,
            one_lost_text: true,
            #[cfg(test)]
            same_write_is_pure: false,
        }
    }
}

/// The judgement of a history.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Every key is linearizable.
    Valid,
    /// This key is not.
    Invalid(Box<Witness>),
    /// Nothing wrong was found, but not everything could be decided.
    Unknown {
        /// The key that was given up.
        key: String,
        /// Which limit was reached.
        why: String,
    },
}

/// Why a key is not linearizable: how far an explanation gets, and what it cannot explain.
#[derive(Clone, Debug, PartialEq)]
pub struct Witness {
    /// The namespace.
    pub ns: String,
    /// The key.
    pub key: String,
    /// The longest partial linearization found: its operations in order.
    pub linearization: Vec<Operation>,
    /// What the key holds after it; `null`: absent.
    pub state: Json,
    /// The operation with the first return that can then not be placed.
    pub stuck: Operation,
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let placed = self.linearization.len();
        writeln!(f, "{}/{} is not linearizable: {placed} operations explained, then", self.ns, self.key)?;
        for operation in &self.linearization[placed.saturating_sub(5)..] {
            writeln!(f, "    {}", describe(operation))?;
        }
        writeln!(f, "  leave the value {}, which cannot be brought together with", self.state)?;
        write!(f, "  x {}", describe(&self.stuck))
    }
}

/// One operation in a line of a report.
pub fn describe(op: &Operation) -> String {
    let what = match (&op.f, &op.expected) {
        (Function::Read, _) => format!("read -> {}", op.output),
        (Function::Cas, Some(Expected::Value(old))) => format!("cas {old} to {}", op.input),
        (Function::Cas, Some(Expected::Revision(at))) => format!("cas revision {at} to {}", op.input),
        (Function::Write | Function::Add | Function::Append, _) => format!("{} {}", op.f.name(), op.input),
        (f, _) => f.name().to_owned(),
    };
    let revision = op.revision.map(|revision| format!(" @{revision}")).unwrap_or_default();
    let end = match op.outcome {
        Outcome::Ok => "ok",
        Outcome::Fail => "fail",
        Outcome::Info => "unknown",
    };
    let at = |time: u64| time as f64 / 1e9;
    let ret = op.ret.map(|ret| format!("{:.6}", at(ret))).unwrap_or_else(|| "open".into());
    let (index, process) = (op.index, op.process);
    format!("#{index} process {process} {what}{revision} {end} [{:.6} s .. {ret}] {}", at(op.call), op.node)
        .trim_end()
        .to_owned()
}

/// Judges every key of the operations, the shortest histories first. Ends at the first violation.
pub fn check(operations: &[Operation], options: &Options) -> Verdict {
    let mut unknown = None;
    let mut keys: Vec<_> = by_key(operations).into_values().collect();
    keys.sort_by_key(Vec::len);
    for operations in keys {
        match check_key(&operations, options) {
            Verdict::Valid => {}
            Verdict::Invalid(witness) => return Verdict::Invalid(witness),
            verdict => unknown = unknown.or(Some(verdict)),
        }
    }
    unknown.unwrap_or(Verdict::Valid)
}

/// The operations of each (namespace, key), in their order: the independent parts of a history.
pub fn by_key(operations: &[Operation]) -> BTreeMap<(&str, &str), Vec<&Operation>> {
    let mut keys: BTreeMap<_, Vec<&Operation>> = BTreeMap::new();
    for op in operations {
        keys.entry((op.ns.as_str(), op.key.as_str())).or_default().push(op);
    }
    keys
}

/// Judges operations of one key (whatever keys they name); callers with many keys may do so in parallel.
pub fn check_key(operations: &[&Operation], options: &Options) -> Verdict {
    match options.model {
        Model::Register => {
            let mut register = register::Register::new(operations, options);
            let actions = operations.iter().map(|op| register.action(op)).collect();
            search(operations, actions, register, options)
        }
        Model::Strings | Model::Lists => {
            let mut texts = text::Texts::new(operations, options);
            match operations.iter().map(|op| texts.action(op)).collect::<Result<Vec<_>, _>>() {
                Ok(actions) => search(operations, actions, texts, options),
                Err(why) => Verdict::Unknown { key: key_of(operations), why },
            }
        }
    }
}

fn key_of(operations: &[&Operation]) -> String {
    operations.first().map(|op| op.key.clone()).unwrap_or_default()
}

fn search<M: search::Model>(
    operations: &[&Operation],
    actions: Vec<Option<M::Action>>,
    model: M,
    options: &Options,
) -> Verdict {
    let mut done = Vec::new();
    let mut open = Vec::new();
    for (op, action) in operations.iter().zip(actions) {
        if let Some(action) = action {
            if op.outcome == Outcome::Info { open.push((*op, action)) } else { done.push((*op, action)) }
        }
    }
    done.sort_by_key(|(op, _)| op.call);
    open.sort_by_key(|(op, _)| op.call);
    let mut search = Search::new(&model, search::START, done, open, options.patience);
    let unknown = |why: String| Verdict::Unknown { key: key_of(operations), why };
    match search.run(options.max_configurations) {
        Some(true) => Verdict::Valid,
        Some(false) => match search.dead_end() {
            Some((path, state, stuck)) => Verdict::Invalid(Box::new(Witness {
                ns: stuck.ns.clone(),
                key: stuck.key.clone(),
                linearization: path.into_iter().cloned().collect(),
                state: model.show(state),
                stuck: stuck.clone(),
            })),
            None => unknown("the search failed without a dead end".into()),
        },
        None if model.exhausted() => {
            unknown(format!("undecided when its states took {} bytes", options.max_state_bytes))
        }
        None => unknown(format!("undecided after {} configurations", options.max_configurations)),
    }
}
