//! The search itself, for any model of a key.

use crate::{Json, Operation};
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// The number that the model gave to the value; 0 for that of the beginning.
    pub(super) value: u32,
    /// Its revision if `exact`, else a revision it lies above.
    pub(super) revision: u64,
    /// Whether the revision is known: a mutation of unknown outcome told none.
    pub(super) exact: bool,
}

pub(super) const START: State = State { value: 0, revision: 0, exact: true };

/// A key as a machine: what an operation asks of it, and what becomes of it.
pub(super) trait Model {
    /// What an operation asks of the key at its moment.
    type Action: Copy + PartialEq;

    /// Whether a mutation wipes out what earlier ones did, so that one of unknown outcome is needed only
    /// where it makes legal what was not.
    const FORGETS: bool;

    /// The state afterwards, if the action is legal in this one.
    fn apply(&self, action: Self::Action, state: State) -> Option<State>;

    /// The state after a mutation of unknown outcome, whether or not its condition holds in this one; at
    /// least as much must be legal in it as in the real one.
    fn after(&self, action: Self::Action, state: State) -> State;

    /// Whether it is a mutation with a condition.
    fn conditional(&self, action: Self::Action) -> bool;

    /// Whether it only looks.
    fn looks(&self, action: Self::Action) -> bool;

    /// Whether it may be linearized at once: it leaves the state as it is, in every state where it is legal.
    fn at_once(&self, action: Self::Action, state: State) -> bool {
        self.looks(action) && self.apply(action, state) == Some(state)
    }

    /// The revision the key must have at its moment, if it told one.
    fn revision(&self, action: Self::Action) -> Option<u64>;

    /// Whether a mutation of unknown outcome that leads to this state can be of any use.
    fn useful(&self, state: State) -> bool;

    /// Whether, apart from mutations that replace it, a value only grows: then no look ever sees what follows
    /// a state that is not useful until the next of these.
    fn only_grows(&self) -> bool {
        false
    }

    /// Whether it is a mutation that replaces the value.
    fn replaces(&self, _: Self::Action) -> bool {
        false
    }

    /// The action without what it told of its moment: at least as much is legal.
    fn forget(&self, action: Self::Action) -> Self::Action;

    /// All states in which a part of a history with these actions could begin, as far as they can tell them
    /// apart; none if there are too many to say.
    fn starts(&self, actions: &mut dyn Iterator<Item = Self::Action>) -> Option<Vec<State>>;

    /// Whether the model has reached its own limit: what it says is no longer right.
    fn exhausted(&self) -> bool;

    /// The value of a state.
    fn show(&self, state: State) -> Json;
}

/// A completed operation.
struct Done<'a, A> {
    op: &'a Operation,
    action: A,
    /// Whether it told its revision, and how many completed operations told a lower one: those come before.
    told: bool,
    lower: u32,
    /// Its entries.
    call: u32,
    ret: u32,
}

/// An operation of unknown outcome.
struct Open<'a, A> {
    op: &'a Operation,
    action: A,
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
    /// Whether operations of unknown outcome are still to be considered.
    unknown: bool,
    /// Length of the path, state and window to go back to.
    depth: usize,
    state: State,
    window: usize,
}

/// Where an explanation could not go on.
struct DeadEnd {
    done: usize,
    path: Vec<Step>,
    /// How many steps of it are also the first steps of the present path.
    shared: usize,
    state: State,
    /// The completed operation whose return comes first and cannot be explained.
    stuck: u32,
}

/// How many operations before the one that is stuck [`Search::hopeless`] looks at, in turn.
const STRETCHES: [usize; 5] = [2, 8, 32, 128, 512];

/// Configurations that one of these stretches may take.
const MAX_FOR_STRETCH: usize = 100_000;

pub(super) struct Search<'a, M: Model> {
    pub(super) model: &'a M,
    /// Completed operations, by call.
    done: Vec<Done<'a, M::Action>>,
    /// Operations of unknown outcome, by call.
    open: Vec<Open<'a, M::Action>>,
    /// Entry 0 is the sentinel before the first and after the last.
    entries: Vec<Entry>,
    state: State,
    path: Vec<Step>,
    /// How many operations on the path told their revision; they are the lowest.
    told: u32,
    /// Completed operations that only look and are not on the path.
    looks_left: usize,
    /// Mutations that replace the value, of known or unknown outcome, that are not on the path.
    replacements_left: usize,
    /// Bits of the completed operations on the path; none set from word `window` on.
    used: Vec<u64>,
    window: usize,
    /// Bits of the unknown operations on the path.
    opened: Vec<u64>,
    seen: HashSet<Box<[u64]>, BuildHasherDefault<Quick>>,
    /// The dead end before which most completed operations were explained.
    best: Option<DeadEnd>,
    /// After how many configurations without getting further it is asked whether going back can help at all,
    /// and the number of them at which it is asked next.
    patience: usize,
    ask_at: usize,
}

impl<'a, M: Model> Search<'a, M> {
    /// A search from a state, that loses patience after so many configurations without getting further.
    pub(super) fn new(
        model: &'a M,
        state: State,
        done: Vec<(&'a Operation, M::Action)>,
        open: Vec<(&'a Operation, M::Action)>,
        patience: usize,
    ) -> Search<'a, M> {
        let mut told: Vec<u64> = done.iter().filter_map(|(_, action)| model.revision(*action)).collect();
        told.sort_unstable();
        let with_order = |(op, action): (&'a Operation, M::Action)| {
            let at = model.revision(action);
            let lower = at.map_or(0, |at| told.partition_point(|other| *other < at) as u32);
            Done { op, action, told: at.is_some(), lower, call: 0, ret: 0 }
        };
        let mut done: Vec<Done<'_, M::Action>> = done.into_iter().map(with_order).collect();

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

        let mut opens: Vec<Open<'_, M::Action>> = Vec::with_capacity(open.len());
        for (op, action) in open {
            let twin = opens.iter().rposition(|other| other.action == action).map(|twin| twin as u32);
            opens.push(Open { op, action, twin });
        }
        let looks_left = done.iter().filter(|done| model.looks(done.action)).count();
        let mutations = done.iter().map(|done| done.action).chain(opens.iter().map(|open| open.action));
        let replacements_left = mutations.filter(|action| model.replaces(*action)).count();
        Search {
            model,
            looks_left,
            replacements_left,
            used: vec![0; done.len().div_ceil(64)],
            opened: vec![0; opens.len().div_ceil(64)],
            done,
            open: opens,
            entries,
            state,
            path: Vec::new(),
            told: 0,
            window: 0,
            seen: HashSet::default(),
            best: None,
            patience,
            ask_at: patience,
        }
    }

    /// Whether there is a linearization; none if a limit was reached before that was decided.
    pub(super) fn run(&mut self, max_configurations: usize) -> Option<bool> {
        let mut choices: Vec<Choice> = Vec::new();
        loop {
            self.look();
            if self.model.exhausted() {
                return None;
            }
            if self.entries[0].next == 0 {
                return Some(true);
            }
            let fresh = self.seen.insert(self.configuration());
            if self.seen.len() > max_configurations {
                return None;
            }
            let untried = if fresh { self.completed() } else { Vec::new() };
            let (depth, state, window) = (self.path.len(), self.state, self.window);
            choices.push(Choice { untried, unknown: fresh, depth, state, window });
            let step = loop {
                let Some(choice) = choices.last_mut() else { return Some(false) };
                let next = choice.untried.pop();
                let (depth, state, window) = (choice.depth, choice.state, choice.window);
                self.go_back(depth);
                (self.state, self.window) = (state, window);
                if let Some(step) = next {
                    break step;
                }
                if std::mem::take(&mut choice.unknown) {
                    choice.untried = self.unknown();
                    if choice.untried.is_empty() {
                        self.note_dead_end();
                        if self.seen.len() >= self.ask_at {
                            if self.hopeless() {
                                return Some(false);
                            }
                            self.patience = self.patience.max(1).saturating_mul(4);
                            self.ask_at = self.seen.len().saturating_add(self.patience);
                        }
                    }
                } else {
                    choices.pop();
                }
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
            if self.in_order(op) && self.model.at_once(action, self.state) {
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

    /// The completed operations that may be linearized next, the most promising last: the one that must
    /// return first.
    fn completed(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut at = self.entries[0].next;
        while !self.entries[at as usize].returns {
            let Entry { op, next, .. } = self.entries[at as usize];
            let Done { action, ret, .. } = self.done[op as usize];
            // What leads where no look that is left can be explained any more is a dead end already.
            let replaced = self.replacements_left > usize::from(self.model.replaces(action));
            let leads_on = |after| {
                self.looks_left == 0 || replaced || !self.model.only_grows() || self.model.useful(after)
            };
            if self.in_order(op) && self.model.apply(action, self.state).is_some_and(leads_on) {
                steps.push((ret, Step::Done(op)));
            }
            at = next;
        }
        steps.sort_by_key(|(ret, _)| std::cmp::Reverse(*ret));
        steps.into_iter().map(|(_, step)| step).collect()
    }

    /// The operations of unknown outcome that may be linearized next, and might be of use.
    fn unknown(&self) -> Vec<Step> {
        let first_return = self.first_return();
        let horizon = self.done[self.entries[first_return as usize].op as usize].op.ret.unwrap_or(u64::MAX);
        let callable = (0..self.open.len() as u32)
            .take_while(|op| self.open[*op as usize].op.call <= horizon)
            .filter(|op| !bit(&self.opened, *op));
        // With the state that each leads to, if its condition holds; of twins only the first.
        let mut pool: Vec<(u32, M::Action, State)> = callable
            .filter(|op| self.open[*op as usize].twin.is_none_or(|twin| bit(&self.opened, twin)))
            .map(|op| (op, self.open[op as usize].action))
            .map(|(op, action)| (op, action, self.model.after(action, self.state)))
            .filter(|(.., after)| self.model.useful(*after))
            .collect();
        if M::FORGETS {
            self.keep_helpful(&mut pool, first_return);
        }
        let mut legal: Vec<(u32, M::Action, State)> = pool
            .into_iter()
            .filter_map(|(op, action, _)| Some((op, action, self.model.apply(action, self.state)?)))
            .collect();
        if M::FORGETS {
            // Of two that lead to one state, one without a condition can do later whatever one with it can.
            let conditional: Vec<State> = legal
                .iter()
                .filter(|(_, action, _)| self.model.conditional(*action))
                .map(|(.., after)| *after)
                .collect();
            legal
                .retain(|(_, action, after)| self.model.conditional(*action) || !conditional.contains(after));
        }
        legal.into_iter().map(|(op, ..)| Step::Open(op)).collect()
    }

    /// Keeps what helps a completed operation, directly or through others that it helps: one that is not
    /// legal now, or a look that is legal only by settling which revision the state has. With another
    /// mutation before it, it would have settled the revision of that one.
    fn keep_helpful(&self, pool: &mut Vec<(u32, M::Action, State)>, first_return: u32) {
        let mut wanted: Vec<M::Action> = Vec::new();
        let mut at = self.entries[0].next;
        while at != first_return {
            let Entry { op, next, .. } = self.entries[at as usize];
            let action = self.done[op as usize].action;
            let settles = |after| after != self.state && self.model.looks(action);
            if self.in_order(op) && self.model.apply(action, self.state).is_none_or(settles) {
                wanted.push(action);
            }
            at = next;
        }
        let mut helpful = Vec::new();
        let mut looked = 0;
        while looked < wanted.len() {
            let these = looked..wanted.len();
            looked = wanted.len();
            let (help, rest): (Vec<_>, Vec<_>) = std::mem::take(pool).into_iter().partition(|(.., after)| {
                wanted[these.clone()].iter().any(|action| self.model.apply(*action, *after).is_some())
            });
            let blocked = help.iter().map(|(_, action, _)| *action);
            wanted.extend(blocked.filter(|action| self.model.apply(*action, self.state).is_none()));
            helpful.extend(help);
            *pool = rest;
        }
        *pool = helpful;
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
                self.looks_left -= usize::from(self.model.looks(action));
                action
            }
            Step::Open(op) => {
                flip(&mut self.opened, op);
                self.open[op as usize].action
            }
        };
        self.replacements_left -= usize::from(self.model.replaces(action));
        self.path.push(step);
        // Only legal steps are taken.
        self.state = self.model.apply(action, self.state).unwrap_or(self.state);
    }

    /// Takes back the steps beyond this depth; the caller restores state and window.
    fn go_back(&mut self, depth: usize) {
        if let Some(best) = &mut self.best {
            best.shared = best.shared.min(depth);
        }
        while self.path.len() > depth {
            match self.path.pop() {
                Some(Step::Done(op)) => {
                    let Done { action, call, ret, told, .. } = self.done[op as usize];
                    self.looks_left += usize::from(self.model.looks(action));
                    self.replacements_left += usize::from(self.model.replaces(action));
                    self.unlift(ret);
                    self.unlift(call);
                    flip(&mut self.used, op);
                    self.told -= u32::from(told);
                }
                Some(Step::Open(op)) => {
                    flip(&mut self.opened, op);
                    self.replacements_left += usize::from(self.model.replaces(self.open[op as usize].action));
                }
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
            // Only what differs is copied, or a long history with many dead ends would cost its square.
            let (mut path, shared) =
                self.best.take().map(|best| (best.path, best.shared)).unwrap_or_default();
            path.truncate(shared);
            path.extend_from_slice(&self.path[path.len()..]);
            self.best = Some(DeadEnd { done, shared: path.len(), path, state: self.state, stuck });
            self.ask_at = self.ask_at.max(self.seen.len().saturating_add(self.patience));
        }
    }

    /// Whether what lies right before the operation that is stuck cannot be explained from any state
    /// whatever. Then nothing that is tried further back can help, and a long history need not be gone
    /// through to its beginning.
    ///
    /// The stretch holds the operations that were called since some moment and had returned when the stuck
    /// one did: they must be explained. What had returned before that moment comes before all of them, so all
    /// that remains of it is the state in which they begin. What was called later than the end comes after
    /// all of them. And a mutation that overlaps either edge may lie among them or not: it is taken for one
    /// of unknown outcome, which allows more. So if the whole had an explanation, the stretch would have one.
    fn hopeless(&self) -> bool {
        let Some(DeadEnd { stuck, .. }) = self.best else { return false };
        let to = self.done[stuck as usize].op.ret.unwrap_or(u64::MAX);
        STRETCHES.iter().any(|length| {
            let from = self.done[(stuck as usize).saturating_sub(*length)].op.call;
            let mut done = Vec::new();
            let mut open: Vec<_> = self.open.iter().map(|open| (open.op, open.action)).collect();
            for Done { op, action, .. } in self.done.iter().take_while(|done| done.op.call <= to) {
                let ret = op.ret.unwrap_or(u64::MAX);
                if op.call >= from && ret <= to {
                    done.push((*op, *action));
                } else if ret >= from && !self.model.looks(*action) {
                    open.push((*op, self.model.forget(*action)));
                }
            }
            open.retain(|(op, _)| op.call <= to);
            open.sort_by_key(|(op, _)| op.call);
            let mut actions = done.iter().chain(&open).map(|(_, action)| *action);
            let Some(starts) = self.model.starts(&mut actions) else { return false };
            let mut left = MAX_FOR_STRETCH;
            starts.into_iter().all(|start| {
                let mut search = Search::new(self.model, start, done.clone(), open.clone(), usize::MAX);
                let found = search.run(left);
                left = left.saturating_sub(search.seen.len());
                found == Some(false)
            })
        })
    }

    /// The longest explanation there is, once the search has failed: its steps, the state after them, and the
    /// operation that cannot be explained.
    pub(super) fn dead_end(&self) -> Option<(Vec<&'a Operation>, State, &'a Operation)> {
        let DeadEnd { path, state, stuck, .. } = self.best.as_ref()?;
        let op = |step: &Step| match step {
            Step::Done(op) => self.done[*op as usize].op,
            Step::Open(op) => self.open[*op as usize].op,
        };
        Some((path.iter().map(op).collect(), *state, self.done[*stuck as usize].op))
    }
}

/// A quick hash of words (Fx): configurations are our own numbers, so they are not chosen to collide.
#[derive(Default)]
pub(super) struct Quick(u64);

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        // The table looks at the lowest bits, which the multiplications leave almost as they were.
        let mixed = (self.0 ^ self.0 >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ mixed >> 32
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
