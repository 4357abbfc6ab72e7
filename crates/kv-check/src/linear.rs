//! Linearizability of registers with cas, delete and revisions, one key at a time.
//!
//! A history of a key is linearizable if every operation that took effect can be given one moment between its call
//! and its return, so that the register, acting at those moments, gives the answers that were recorded. Keys are
//! independent (Herlihy and Wing's locality), so each is searched alone.
//!
//! The search is Wing and Gong's with Lowe's memo: linearize any operation whose call lies before the first return
//! still to be explained, remember configurations that led nowhere, go back. Four things keep it short:
//!
//! - An operation that leaves the register as it is (a read, a mismatch) is linearized as soon as it is legal:
//!   whatever could follow without it can follow after it.
//! - An operation of unknown outcome never has to be linearized. It is tried only where it makes something legal
//!   that was not: in any linearization it can be moved right before the first operation that needs it, or left out.
//! - Revisions only grow, so operations that told theirs are linearized in that order.
//! - A configuration is the first operation not yet linearized, a bit window after it, the unknown ones used, and
//!   the state: its size follows the concurrency, not the length of the history. Whole configurations are compared;
//!   a hash alone never prunes.
//!
//! Deciding is NP-complete, so there is a limit, and reaching it is [`Verdict::Unknown`], never a violation. Up to
//! ten processes and a thousand operations a key, it takes about a millisecond.

#![allow(clippy::indexing_slicing, reason = "every index is made in this file, from the vector it indexes")]

use crate::operation::Expected;
use crate::{Function, Json, Operation, Outcome};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

/// How answers that carry little are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Convention {
    /// A mismatch is an observation: the state was not as expected (Porcupine's). A read of `null` saw an absent key.
    #[default]
    Strict,
    /// Failed operations are left out, and a read of `null` may have seen anything (Knossos').
    Lenient,
}

/// What [`check`] is to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How answers that carry little are read.
    pub convention: Convention,
    /// Configurations visited per key before the search gives up; each costs some tens of bytes.
    pub max_configurations: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { convention: Convention::Strict, max_configurations: 3_000_000 }
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
        (Function::Write, _) => format!("write {}", op.input),
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
    let mut values = Values::default();
    let mut done = Vec::new();
    let mut open = Vec::new();
    for op in operations {
        if let Some(action) = Action::of(op, options.convention, &mut values) {
            if op.outcome == Outcome::Info { open.push((*op, action)) } else { done.push((*op, action)) }
        }
    }
    done.sort_by_key(|(op, _)| op.call);
    open.sort_by_key(|(op, _)| op.call);
    let mut search = Search::new(done, open);
    let decided = search.run(options.max_configurations);
    match (decided, search.witness(&values)) {
        (Some(true), _) => Verdict::Valid,
        (Some(false), Some(witness)) => Verdict::Invalid(Box::new(witness)),
        _ => Verdict::Unknown {
            key: operations.first().map(|op| op.key.clone()).unwrap_or_default(),
            why: format!("undecided after {} configurations", options.max_configurations),
        },
    }
}

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    /// The number of the value in [`Values`]; [`ABSENT`] for none.
    value: u32,
    /// Its revision if `exact`, else a revision it lies above.
    revision: u64,
    /// Whether the revision is known: a mutation of unknown outcome told none.
    exact: bool,
}

const ABSENT: u32 = 0;
const START: State = State { value: ABSENT, revision: 0, exact: true };

impl State {
    /// The state in which the revision, if one was seen, is settled; none if it cannot be this one.
    fn at(self, seen: Option<u64>) -> Option<State> {
        match seen {
            Some(seen) if self.value != ABSENT => {
                let fits = if self.exact { seen == self.revision } else { seen > self.revision };
                fits.then_some(State { revision: seen, exact: true, ..self })
            }
            _ => Some(self),
        }
    }

    /// The state after a mutation: revisions only grow.
    fn then(self, value: u32, got: Option<u64>) -> Option<State> {
        match got {
            Some(got) => (got > self.revision).then_some(State { value, revision: got, exact: true }),
            None => Some(State { value, revision: self.revision, exact: false }),
        }
    }
}

/// Values as numbers, so that states compare and copy cheaply.
#[derive(Default)]
struct Values {
    numbers: HashMap<String, u32>,
    values: Vec<Json>,
}

impl Values {
    fn number(&mut self, value: &Json) -> u32 {
        if value.is_null() {
            return ABSENT;
        }
        let next = self.values.len() as u32 + 1;
        *self.numbers.entry(value.to_string()).or_insert_with(|| {
            self.values.push(value.clone());
            next
        })
    }

    fn value(&self, number: u32) -> Json {
        number.checked_sub(1).map(|at| self.values[at as usize].clone()).unwrap_or_default()
    }
}

/// What an operation asks of the register at its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Saw this value, and perhaps its revision.
    Saw { value: u32, revision: Option<u64> },
    /// A mismatch that told what it found.
    Found { unlike: Guard, value: u32, revision: Option<u64> },
    /// A mismatch that told nothing, or only a revision.
    Mismatch { unlike: Guard, revision: Option<u64> },
    /// Set this value, if the guard held.
    Set { guard: Option<Guard>, value: u32, revision: Option<u64> },
}

/// The condition of a cas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    Value(u32),
    Revision(u64),
}

impl Guard {
    /// Whether the state can meet the condition.
    fn may_hold(self, state: State) -> bool {
        match self {
            Guard::Value(value) => state.value == value,
            Guard::Revision(0) => state.value == ABSENT,
            Guard::Revision(revision) => state.value != ABSENT && state.at(Some(revision)).is_some(),
        }
    }

    /// Whether the state can miss the condition.
    fn may_miss(self, state: State) -> bool {
        match self {
            Guard::Revision(revision) if revision != 0 && state.value != ABSENT => {
                !state.exact || state.revision != revision
            }
            _ => !self.may_hold(state),
        }
    }
}

impl Action {
    /// What the operation asks; none for one that asks nothing.
    fn of(op: &Operation, convention: Convention, values: &mut Values) -> Option<Action> {
        let strict = convention == Convention::Strict;
        let guard = op.expected.as_ref().map(|expected| match expected {
            Expected::Value(value) => Guard::Value(values.number(value)),
            Expected::Revision(revision) => Guard::Revision(*revision),
        });
        let revision = if op.outcome == Outcome::Info { None } else { op.revision };
        match (&op.f, op.outcome) {
            (Function::Read, Outcome::Ok) if strict || !op.output.is_null() => {
                Some(Action::Saw { value: values.number(&op.output), revision })
            }
            (Function::Cas, Outcome::Fail) if strict && op.mismatch() => {
                let unlike = guard?;
                Some(match op.observed.as_deref() {
                    None => Action::Mismatch { unlike, revision },
                    Some(found) => {
                        let value = found.first().map_or(ABSENT, |value| values.number(value));
                        Action::Found { unlike, value, revision }
                    }
                })
            }
            (_, Outcome::Fail) => None,
            (Function::Write | Function::Cas, _) => {
                Some(Action::Set { guard, value: values.number(&op.input), revision })
            }
            (Function::Delete, _) => Some(Action::Set { guard: None, value: ABSENT, revision }),
            (Function::Read | Function::Other(_), _) => None,
        }
    }

    /// The state afterwards, if the action is legal in this one.
    fn apply(self, state: State) -> Option<State> {
        match self {
            Action::Saw { value, revision } if state.value == value => state.at(revision),
            Action::Found { unlike, value, revision } if state.value == value => {
                state.at(revision).filter(|settled| unlike.may_miss(*settled))
            }
            Action::Mismatch { unlike, revision } => {
                state.at(revision).filter(|settled| unlike.may_miss(*settled))
            }
            Action::Set { guard: None, value, revision } => state.then(value, revision),
            Action::Set { guard: Some(guard), value, revision } if guard.may_hold(state) => {
                let state = match guard {
                    Guard::Revision(expected) => state.at(Some(expected))?,
                    Guard::Value(_) => state,
                };
                state.then(value, revision)
            }
            _ => None,
        }
    }

    /// The revision the register must have at its moment, if it told one.
    fn revision(self) -> Option<u64> {
        match self {
            Action::Saw { value, revision } | Action::Found { value, revision, .. } => {
                revision.filter(|_| value != ABSENT)
            }
            Action::Mismatch { .. } => None,
            Action::Set { revision, .. } => revision,
        }
    }

    /// Whether it only looks.
    fn looks(self) -> bool {
        !matches!(self, Action::Set { .. })
    }
}

/// A completed operation.
struct Done<'a> {
    op: &'a Operation,
    action: Action,
    /// Whether it told its revision, and how many completed operations told a lower one: those come before.
    told: bool,
    lower: u32,
    /// Its entries.
    call: u32,
    ret: u32,
}

/// An operation of unknown outcome.
struct Open<'a> {
    op: &'a Operation,
    action: Action,
    /// An earlier one that asks the same: that is used first.
    twin: Option<u32>,
}

/// A call or a return of a completed operation, in a doubly linked list in the order of time.
#[derive(Clone, Copy)]
struct Entry {
    op: u32,
    returns: bool,
    previous: u32,
    next: u32,
}

/// One step of a partial linearization: a completed operation, or one of unknown outcome.
#[derive(Clone, Copy)]
enum Step {
    Done(u32),
    Open(u32),
}

/// A choice that was made and may be taken back.
struct Choice {
    /// What is tried after it.
    untried: Vec<Step>,
    /// Length of the path, state and window to go back to.
    depth: usize,
    state: State,
    window: usize,
}

/// Where an explanation could not go on.
struct DeadEnd {
    done: usize,
    path: Vec<Step>,
    state: State,
    /// The completed operation whose return comes first and cannot be explained.
    stuck: u32,
}

struct Search<'a> {
    /// Completed operations, by call.
    done: Vec<Done<'a>>,
    /// Operations of unknown outcome, by call.
    open: Vec<Open<'a>>,
    /// Entry 0 is the sentinel before the first and after the last.
    entries: Vec<Entry>,
    state: State,
    path: Vec<Step>,
    /// How many operations on the path told their revision; they are the lowest.
    told: u32,
    /// Bits of the completed operations on the path; none set from word `window` on.
    used: Vec<u64>,
    window: usize,
    /// Bits of the unknown operations on the path.
    opened: Vec<u64>,
    seen: HashSet<Box<[u64]>, BuildHasherDefault<Quick>>,
    /// The dead end before which most completed operations were explained.
    best: Option<DeadEnd>,
}

impl<'a> Search<'a> {
    fn new(done: Vec<(&'a Operation, Action)>, open: Vec<(&'a Operation, Action)>) -> Search<'a> {
        let mut told: Vec<u64> = done.iter().filter_map(|(_, action)| action.revision()).collect();
        told.sort_unstable();
        let with_order = |(op, action): (&'a Operation, Action)| {
            let lower = action.revision().map_or(0, |at| told.partition_point(|other| *other < at) as u32);
            Done { op, action, told: action.revision().is_some(), lower, call: 0, ret: 0 }
        };
        let mut done: Vec<Done<'_>> = done.into_iter().map(with_order).collect();

        let mut moments = Vec::with_capacity(done.len() * 2);
        for (at, Done { op, .. }) in (0u32..).zip(&done) {
            moments.push((op.call, false, at));
            moments.push((op.ret.unwrap_or(u64::MAX), true, at));
        }
        moments.sort_unstable(); // calls before returns where times tie: intervals only widen
        let count = moments.len() as u32;
        let mut entries = vec![Entry { op: u32::MAX, returns: false, previous: count, next: 1.min(count) }];
        for (at, (_, returns, op)) in (1u32..).zip(moments) {
            let place = &mut done[op as usize];
            *if returns { &mut place.ret } else { &mut place.call } = at;
            entries.push(Entry { op, returns, previous: at - 1, next: if at == count { 0 } else { at + 1 } });
        }

        let mut opens: Vec<Open<'_>> = Vec::with_capacity(open.len());
        for (op, action) in open {
            let twin = opens.iter().rposition(|other| other.action == action).map(|twin| twin as u32);
            opens.push(Open { op, action, twin });
        }
        Search {
            used: vec![0; done.len().div_ceil(64)],
            opened: vec![0; opens.len().div_ceil(64)],
            done,
            open: opens,
            entries,
            state: START,
            path: Vec::new(),
            told: 0,
            window: 0,
            seen: HashSet::default(),
            best: None,
        }
    }

    /// Whether there is a linearization; none if the limit was reached before that was decided.
    fn run(&mut self, max_configurations: usize) -> Option<bool> {
        let mut choices: Vec<Choice> = Vec::new();
        loop {
            self.look();
            if self.entries[0].next == 0 {
                return Some(true);
            }
            let mut untried = Vec::new();
            if self.seen.insert(self.configuration()) {
                if self.seen.len() > max_configurations {
                    return None;
                }
                untried = self.candidates();
                if untried.is_empty() {
                    self.note_dead_end();
                }
            }
            let (depth, state, window) = (self.path.len(), self.state, self.window);
            choices.push(Choice { untried, depth, state, window });
            let step = loop {
                let Some(choice) = choices.last_mut() else { return Some(false) };
                let next = choice.untried.pop();
                let (depth, state, window) = (choice.depth, choice.state, choice.window);
                self.go_back(depth);
                (self.state, self.window) = (state, window);
                if let Some(step) = next {
                    break step;
                }
                choices.pop();
            };
            self.take(step);
        }
    }

    /// Linearizes everything that may come next, is legal, and leaves the state as it is.
    fn look(&mut self) {
        let mut at = self.entries[0].next;
        while at != 0 && !self.entries[at as usize].returns {
            let Entry { op, next, .. } = self.entries[at as usize];
            let Done { action, ret, .. } = self.done[op as usize];
            if action.looks() && self.in_order(op) && action.apply(self.state) == Some(self.state) {
                let lets_in_later_calls = ret == self.first_return();
                self.take(Step::Done(op));
                at = if lets_in_later_calls { self.entries[0].next } else { next };
            } else {
                at = next;
            }
        }
    }

    /// Whether everything with a lower revision is on the path.
    fn in_order(&self, op: u32) -> bool {
        self.told >= self.done[op as usize].lower
    }

    /// The entry of the first return still to be explained. There is one while the list is not empty.
    fn first_return(&self) -> u32 {
        let mut at = self.entries[0].next;
        while at != 0 && !self.entries[at as usize].returns {
            at = self.entries[at as usize].next;
        }
        at
    }

    /// What may be linearized next, the most promising last: the one that must return first, before others;
    /// unknown ones only after all of those.
    fn candidates(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut blocked = Vec::new();
        let mut at = self.entries[0].next;
        while !self.entries[at as usize].returns {
            let Entry { op, next, .. } = self.entries[at as usize];
            let Done { action, ret, .. } = self.done[op as usize];
            if self.in_order(op) {
                match action.apply(self.state) {
                    Some(_) => steps.push((ret, Step::Done(op))),
                    None => blocked.push(action),
                }
            }
            at = next;
        }
        steps.sort_by_key(|(ret, _)| std::cmp::Reverse(*ret));

        let first_return = self.done[self.entries[at as usize].op as usize].op.ret.unwrap_or(u64::MAX);
        let callable = || self.unused().filter(|op| self.open[*op as usize].op.call <= first_return);
        let enables = |after: State| {
            let enabled =
                |action: Action| action.apply(self.state).is_none() && action.apply(after).is_some();
            blocked.iter().any(|action| enabled(*action))
                || callable().any(|op| enabled(self.open[op as usize].action))
        };
        let unknown = callable().filter(|op| {
            let Open { action, twin, .. } = self.open[*op as usize];
            twin.is_none_or(|twin| bit(&self.opened, twin)) && action.apply(self.state).is_some_and(enables)
        });
        unknown.map(Step::Open).chain(steps.into_iter().map(|(_, step)| step)).collect()
    }

    /// The operations of unknown outcome that are not on the path.
    fn unused(&self) -> impl Iterator<Item = u32> {
        (0..self.open.len() as u32).filter(|op| !bit(&self.opened, *op))
    }

    fn take(&mut self, step: Step) {
        let action = match step {
            Step::Done(op) => {
                let Done { action, call, ret, told, .. } = self.done[op as usize];
                self.lift(call);
                self.lift(ret);
                flip(&mut self.used, op);
                self.window = self.window.max(op as usize / 64 + 1);
                self.told += u32::from(told);
                action
            }
            Step::Open(op) => {
                flip(&mut self.opened, op);
                self.open[op as usize].action
            }
        };
        self.path.push(step);
        // Only legal steps are taken.
        self.state = action.apply(self.state).unwrap_or(self.state);
    }

    /// Takes back the steps beyond this depth; the caller restores state and window.
    fn go_back(&mut self, depth: usize) {
        while self.path.len() > depth {
            match self.path.pop() {
                Some(Step::Done(op)) => {
                    let Done { call, ret, told, .. } = self.done[op as usize];
                    self.unlift(ret);
                    self.unlift(call);
                    flip(&mut self.used, op);
                    self.told -= u32::from(told);
                }
                Some(Step::Open(op)) => flip(&mut self.opened, op),
                None => {}
            }
        }
    }

    fn lift(&mut self, at: u32) {
        let Entry { previous, next, .. } = self.entries[at as usize];
        self.entries[previous as usize].next = next;
        self.entries[next as usize].previous = previous;
    }

    fn unlift(&mut self, at: u32) {
        let Entry { previous, next, .. } = self.entries[at as usize];
        self.entries[previous as usize].next = at;
        self.entries[next as usize].previous = at;
    }

    /// Everything the future depends on, in as few words as the concurrency allows.
    fn configuration(&self) -> Box<[u64]> {
        // The head of the list is always a call, that of the first operation not yet linearized.
        let first = self.entries[self.entries[0].next as usize].op;
        let window = &self.used[(first as usize / 64).min(self.window)..self.window];
        let opened = self.opened.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        let State { value, revision, exact } = self.state;
        let mut words = Vec::with_capacity(3 + window.len() + opened);
        words.push(u64::from(first) << 32 | window.len() as u64);
        words.push(u64::from(value) << 1 | u64::from(exact));
        words.push(revision);
        words.extend_from_slice(window);
        words.extend_from_slice(&self.opened[..opened]);
        words.into_boxed_slice()
    }

    /// Keeps the path, if no other explained as many completed operations before it ended.
    fn note_dead_end(&mut self) {
        let unknown: u32 = self.opened.iter().map(|word| word.count_ones()).sum();
        let done = self.path.len() - unknown as usize;
        if self.best.as_ref().is_none_or(|best| done > best.done) {
            let stuck = self.entries[self.first_return() as usize].op;
            self.best = Some(DeadEnd { done, path: self.path.clone(), state: self.state, stuck });
        }
    }

    /// The longest explanation there is, once the search has failed: it ended in at least one dead end.
    fn witness(self, values: &Values) -> Option<Witness> {
        let DeadEnd { path, state, stuck, .. } = self.best?;
        let stuck = self.done[stuck as usize].op.clone();
        let linearization = path.iter().map(|step| match step {
            Step::Done(op) => self.done[*op as usize].op.clone(),
            Step::Open(op) => self.open[*op as usize].op.clone(),
        });
        Some(Witness {
            ns: stuck.ns.clone(),
            key: stuck.key.clone(),
            linearization: linearization.collect(),
            state: values.value(state.value),
            stuck,
        })
    }
}

/// A quick hash of words (Fx): configurations are our own numbers, so nobody chooses them to collide.
#[derive(Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

fn bit(words: &[u64], at: u32) -> bool {
    words[at as usize / 64] >> (at % 64) & 1 == 1
}

fn flip(words: &mut [u64], at: u32) {
    words[at as usize / 64] ^= 1 << (at % 64);
}
