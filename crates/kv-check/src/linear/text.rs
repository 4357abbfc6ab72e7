//! Strings and lists that grow: a state is a text, and every text that comes up gets a number.
//!
//! A list is the text of its elements as JSON, each ended by a character that JSON escapes, so that lists
//! extend each other exactly where their texts do.

use super::search::{self, START, State};
use super::{Convention, Model, Options};
use crate::{Function, Json, Operation, Outcome};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Ends an element of a list; JSON never contains it unescaped.
const END: char = '\u{1f}';

/// The number of every text that does not begin one that a read saw. Appending keeps it so and no read is
/// legal in it, so all of these texts are one state: only a write or a delete leads out of it.
const LOST: u32 = u32::MAX;

/// What an operation asks, by the numbers of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Saw this text.
    Saw(u32),
    /// Replaced it by this one.
    Put(u32),
    /// Appended this one.
    Append(u32),
}

/// The model of one key.
pub(super) struct Texts {
    lists: bool,
    strict: bool,
    /// Whether lost texts are one state.
    one_lost: bool,
    interned: RefCell<Interned>,
    /// What reads saw, sorted: a state that does not begin one of these is never seen again.
    seen: Vec<Rc<str>>,
    max_bytes: usize,
    /// Set when the texts took more.
    full: Cell<bool>,
}

#[derive(Default)]
struct Interned {
    numbers: HashMap<Rc<str>, u32>,
    texts: Vec<Rc<str>>,
    /// Text and appended text to the text that results.
    appended: HashMap<(u32, u32), u32>,
    useful: BTreeMap<u32, bool>,
    bytes: usize,
}

impl Interned {
    fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.texts.len() as u32;
        let text: Rc<str> = text.into();
        self.bytes += text.len();
        self.numbers.insert(text.clone(), number);
        self.texts.push(text);
        number
    }
}

impl Texts {
    pub(super) fn new(operations: &[&Operation], options: &Options) -> Texts {
        let mut interned = Interned::default();
        interned.number(""); // the beginning is number 0
        let mut texts = Texts {
            lists: options.model == Model::Lists,
            strict: options.convention == Convention::Strict,
            one_lost: options.one_lost_text,
            interned: RefCell::new(interned),
            seen: Vec::new(),
            max_bytes: options.max_state_bytes,
            full: Cell::new(false),
        };
        let reads = operations.iter().filter(|op| op.f == Function::Read && op.ok());
        texts.seen = reads.filter_map(|op| texts.read(&op.output).ok()).map(Rc::from).collect();
        texts.seen.sort_unstable();
        texts
    }

    /// What the operation asks, none for one that asks nothing; an error names a value that this model has
    /// not.
    pub(super) fn action(&mut self, op: &Operation) -> Result<Option<Action>, String> {
        let known = |f: fn(u32) -> Action, text: String, texts: &mut Texts| {
            Ok(Some(f(texts.interned.get_mut().number(&text))))
        };
        match (&op.f, op.outcome) {
            (Function::Read, Outcome::Ok) if self.strict || !op.output.is_null() => {
                known(Action::Saw, self.read(&op.output)?, self)
            }
            (Function::Read, _) | (_, Outcome::Fail) => Ok(None),
            (Function::Append, _) => known(Action::Append, self.piece(&op.input)?, self),
            (Function::Write, _) => known(Action::Put, self.read(&op.input)?, self),
            (Function::Delete, _) => Ok(Some(Action::Put(START.value))),
            (f, _) => Err(format!("{} is not an operation on a string or list", f.name())),
        }
    }

    /// The whole value as text.
    fn read(&self, value: &Json) -> Result<String, String> {
        match value {
            Json::Null => Ok(String::new()),
            Json::String(text) if !self.lists => Ok(text.clone()),
            Json::Array(elements) if self.lists => {
                Ok(elements.iter().map(|element| format!("{element}{END}")).collect())
            }
            other => Err(format!("{other} is no {}", if self.lists { "list" } else { "string" })),
        }
    }

    /// Whether some read saw this text or one that it begins.
    fn begins_a_read(&self, text: &str) -> bool {
        let at = self.seen.partition_point(|seen| **seen < *text);
        self.seen.get(at).is_some_and(|seen| seen.starts_with(text))
    }

    /// An appended value as text.
    fn piece(&self, value: &Json) -> Result<String, String> {
        if self.lists { Ok(format!("{value}{END}")) } else { self.read(value) }
    }
}

impl search::Model for Texts {
    type Action = Action;

    const FORGETS: bool = false;

    fn apply(&self, action: Action, state: State) -> Option<State> {
        match action {
            Action::Saw(text) => (state.value == text).then_some(state),
            Action::Put(text) => {
                let written = State { value: text, ..state };
                let lost = self.one_lost && !self.useful(written);
                Some(if lost { State { value: LOST, ..state } } else { written })
            }
            Action::Append(_) if state.value == LOST => Some(state),
            Action::Append(piece) => {
                let mut interned = self.interned.borrow_mut();
                let value = match interned.appended.get(&(state.value, piece)) {
                    Some(value) => *value,
                    None => {
                        let mut text = String::from(&*interned.texts[state.value as usize]);
                        text.push_str(&interned.texts[piece as usize]);
                        let lost = self.one_lost && !self.begins_a_read(&text);
                        let value = if lost { LOST } else { interned.number(&text) };
                        interned.appended.insert((state.value, piece), value);
                        value
                    }
                };
                if interned.bytes > self.max_bytes {
                    self.full.set(true);
                }
                Some(State { value, ..state })
            }
        }
    }

    fn after(&self, action: Action, state: State) -> State {
        self.apply(action, state).unwrap_or(state)
    }

    fn conditional(&self, _: Action) -> bool {
        false
    }

    fn looks(&self, action: Action) -> bool {
        matches!(action, Action::Saw(_))
    }

    fn revision(&self, _: Action) -> Option<u64> {
        None
    }

    /// Appending is always possible and never demanded, so one of unknown outcome is needed only where a read
    /// shows it.
    fn useful(&self, state: State) -> bool {
        if state.value == LOST {
            return false;
        }
        let mut interned = self.interned.borrow_mut();
        if let Some(useful) = interned.useful.get(&state.value) {
            return *useful;
        }
        let useful = self.begins_a_read(&interned.texts[state.value as usize]);
        interned.useful.insert(state.value, useful);
        useful
    }

    fn replaces(&self, action: Action) -> bool {
        matches!(action, Action::Put(_))
    }

    fn only_grows(&self) -> bool {
        true
    }

    fn forget(&self, action: Action) -> Action {
        action
    }

    /// A text may begin with anything.
    fn starts(&self, _: &mut dyn Iterator<Item = Action>) -> Option<Vec<State>> {
        None
    }

    fn exhausted(&self) -> bool {
        self.full.get()
    }

    fn show(&self, state: State) -> Json {
        if state.value == LOST {
            return "(a value that no read shows)".into();
        }
        let text = self.interned.borrow().texts[state.value as usize].to_string();
        if !self.lists {
            return text.into();
        }
        let element = |text: &str| serde_json::from_str::<Json>(text).unwrap_or_default();
        text.split_terminator(END).map(element).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::linear::{Model, Options, Verdict, check};
    use crate::test_history::{History, values};

    /// Appends of which eight are open at any time, and nothing is read until all are over.
    fn unobserved(order: &[usize]) -> Verdict {
        let names: Vec<String> = (0..order.len()).map(|at| format!("e{at:02}")).collect();
        let mut history = History::new();
        for (at, name) in (0..).zip(&names) {
            history = history.append(at * 10..at * 10 + 75, name);
        }
        let shown: Vec<&str> = order.iter().map(|at| names[*at].as_str()).collect();
        let end = order.len() as u64 * 10;
        let operations = history.read(end + 100..end + 101, values(&shown)).operations();
        let few = Options { model: Model::Lists, max_configurations: 500, ..Options::default() };
        check(&operations, &few)
    }

    /// Found by the simulation (seed 60794): nineteen appends during an outage, between one read and the
    /// next, took all the memory that a search may have, for it tried orders that the next read contradicts.
    #[test]
    fn the_next_look_leads_the_search_through_what_no_read_saw() {
        let mut order: Vec<usize> = (0..40).collect();
        order.chunks_mut(4).for_each(<[usize]>::reverse);
        assert_eq!(unobserved(&order), Verdict::Valid);
        order.swap(3, 30);
        assert!(matches!(unobserved(&order), Verdict::Invalid(_)), "the one was over before the other began");
    }
}
