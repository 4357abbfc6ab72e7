//! A register: a value with a revision, written, compared and set, deleted.

use super::search::{self, State};
use super::{Convention, Options};
use crate::operation::Expected;
use crate::{Function, Json, Operation, Outcome};
use std::collections::{BTreeMap, BTreeSet, HashMap};

const ABSENT: u32 = 0;

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

/// The model of one key.
pub(super) struct Register {
    values: Values,
    strict: bool,
    /// Without revisions: the value that the history shows at each of them, none where it contradicts itself,
    /// and whether it was written once only.
    shown: Option<BTreeMap<u64, Option<(u32, bool)>>>,
    #[cfg(test)]
    same_write_is_pure: bool,
}

impl Register {
    pub(super) fn new(operations: &[&Operation], options: &Options) -> Register {
        let mut values = Values::default();
        let shown = (!options.revisions).then(|| shown(operations, &mut values));
        Register {
            values,
            strict: options.convention == Convention::Strict,
            shown,
            #[cfg(test)]
            same_write_is_pure: options.same_write_is_pure,
        }
    }

    /// What the operation asks; none for one that asks nothing.
    pub(super) fn action(&mut self, op: &Operation) -> Option<Action> {
        let known = self.shown.is_none() && op.outcome != Outcome::Info;
        let revision = op.revision.filter(|_| known);
        match (&op.f, op.outcome) {
            (Function::Read, Outcome::Ok) if self.strict || !op.output.is_null() => {
                Some(Action::Saw { value: self.values.number(&op.output), revision })
            }
            (Function::Cas, Outcome::Fail) if self.strict && op.mismatch() => {
                let found = op
                    .observed
                    .as_deref()
                    .map(|found| found.first().map_or(ABSENT, |value| self.values.number(value)));
                match (self.guard(op, true), found) {
                    (Some(unlike), Some(value)) => Some(Action::Found { unlike, value, revision }),
                    (Some(unlike), None) => Some(Action::Mismatch { unlike, revision }),
                    (None, Some(value)) => Some(Action::Saw { value, revision }),
                    (None, None) => None,
                }
            }
            (_, Outcome::Fail) => None,
            (Function::Write | Function::Cas, _) => {
                let guard = self.guard(op, false);
                Some(Action::Set { guard, value: self.values.number(&op.input), revision })
            }
            (Function::Delete, _) => Some(Action::Set { guard: None, value: ABSENT, revision }),
            (Function::Read | Function::Add | Function::Append | Function::Other(_), _) => None,
        }
    }

    /// The condition of a cas. Where revisions do not count, one on a revision is one on the value seen
    /// there; that it was missed says only something if the value was there once.
    fn guard(&mut self, op: &Operation, missed: bool) -> Option<Guard> {
        match (op.expected.as_ref()?, &self.shown) {
            (Expected::Value(value), _) => Some(Guard::Value(self.values.number(value))),
            (Expected::Revision(0), _) => Some(Guard::Revision(0)),
            (Expected::Revision(revision), None) => Some(Guard::Revision(*revision)),
            (Expected::Revision(revision), Some(shown)) => match shown.get(revision) {
                Some(Some((value, once))) if *once || !missed => Some(Guard::Value(*value)),
                _ => None,
            },
        }
    }
}

/// The value that operations told beside each revision.
fn shown(operations: &[&Operation], values: &mut Values) -> BTreeMap<u64, Option<(u32, bool)>> {
    let mut writes: BTreeMap<u32, usize> = BTreeMap::new();
    let mut told = Vec::new();
    for op in operations {
        if op.writes_value() && op.outcome != Outcome::Fail {
            *writes.entry(values.number(&op.input)).or_default() += 1;
        }
        let value = match (&op.f, op.outcome) {
            (Function::Read, Outcome::Ok) => Some(&op.output),
            (Function::Write | Function::Cas, Outcome::Ok) => Some(&op.input),
            (Function::Cas, Outcome::Fail) => op.observed.as_ref().and_then(|found| found.first()),
            _ => None,
        };
        if let (Some(revision), Some(value)) = (op.revision, value.filter(|value| !value.is_null())) {
            told.push((revision, values.number(value)));
        }
    }
    let mut shown = BTreeMap::new();
    for (revision, value) in told {
        let once = writes.get(&value) == Some(&1);
        let entry = shown.entry(revision).or_insert(Some((value, once)));
        if entry.is_some_and(|(other, _)| other != value) {
            *entry = None;
        }
    }
    shown
}

impl search::Model for Register {
    type Action = Action;

    const FORGETS: bool = true;

    fn apply(&self, action: Action, state: State) -> Option<State> {
        action.apply(state)
    }

    fn after(&self, action: Action, state: State) -> State {
        match action {
            Action::Set { value, .. } => State { value, revision: state.revision, exact: false },
            _ => state,
        }
    }

    fn conditional(&self, action: Action) -> bool {
        matches!(action, Action::Set { guard: Some(_), .. })
    }

    fn looks(&self, action: Action) -> bool {
        !matches!(action, Action::Set { .. })
    }

    #[cfg(test)]
    fn at_once(&self, action: Action, state: State) -> bool {
        let same = matches!(action, Action::Set { guard: None, value, .. } if value == state.value);
        (self.same_write_is_pure && same) || (self.looks(action) && action.apply(state) == Some(state))
    }

    fn revision(&self, action: Action) -> Option<u64> {
        match action {
            Action::Saw { value, revision } | Action::Found { value, revision, .. } => {
                revision.filter(|_| value != ABSENT)
            }
            Action::Mismatch { .. } => None,
            Action::Set { revision, .. } => revision,
        }
    }

    fn useful(&self, _: State) -> bool {
        true
    }

    fn forget(&self, action: Action) -> Action {
        match action {
            Action::Set { guard, value, .. } => Action::Set { guard, value, revision: None },
            looks => looks,
        }
    }

    fn starts(&self, actions: &mut dyn Iterator<Item = Action>) -> Option<Vec<State>> {
        // A value that no action asks for is as good as any other of them.
        let mut values = BTreeSet::from([ABSENT, u32::MAX]);
        for action in actions {
            let guard = match action {
                Action::Saw { value, .. } => {
                    values.insert(value);
                    None
                }
                Action::Found { unlike, value, .. } => {
                    values.insert(value);
                    Some(unlike)
                }
                Action::Mismatch { unlike, .. } => Some(unlike),
                Action::Set { guard, .. } => guard,
            };
            if let Some(Guard::Value(value)) = guard {
                values.insert(value);
            }
        }
        Some(values.into_iter().map(|value| State { value, revision: 0, exact: false }).collect())
    }

    fn exhausted(&self) -> bool {
        false
    }

    fn show(&self, state: State) -> Json {
        self.values.value(state.value)
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
pub(super) enum Action {
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
pub(super) enum Guard {
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
}
