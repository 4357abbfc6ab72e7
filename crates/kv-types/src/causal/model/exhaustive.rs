//! Every schedule of a few steps: two primaries, a fallback, one key, one client. Messages that are not
//! delivered are lost; in the end hints arrive and the primaries catch up with each other. States that were
//! met before are not followed again.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::super::{Seen, State, encode_context_token};
use super::node::{Break, KEYS, Message, Node, Order, keys, namespace, shown};
use crate::Incarnation;

const KEY: u8 = KEYS[0];

/// What a schedule may have.
#[derive(Debug, Clone, Copy)]
struct Limits {
    steps: usize,
    /// New writes and deletes.
    orders: usize,
    resends: usize,
    /// Disks wiped or put back.
    losses: usize,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Read(usize),
    /// Through a primary, or the fallback (2). What a primary takes is hinted for the other, or sent.
    Write {
        at: usize,
        puts: bool,
        hinted: bool,
    },
    Resend {
        at: usize,
    },
    Deliver(usize),
    Hint {
        hint: usize,
        to: usize,
    },
    CatchUp {
        to: usize,
    },
    Trim(usize),
    Wipe(usize),
    /// Copies a directory, or puts it back.
    Copy(usize),
    Restore,
}

#[derive(Debug, Clone, Hash)]
struct Small {
    primaries: [Node; 2],
    fallback: Node,
    network: Vec<(usize, Message)>,
    token: Bytes,
    seen: BTreeSet<u64>,
    last: Option<Order>,
    orders: usize,
    resends: usize,
    losses: usize,
    copy: Option<(usize, Node)>,
    incarnations: u64,
}

impl Small {
    fn new() -> Self {
        Self {
            primaries: [Node::new(1, true), Node::new(2, true)],
            fallback: Node::new(3, false),
            network: Vec::new(),
            token: encode_context_token(&keys(), namespace(KEY), &[KEY], &Seen::default()),
            seen: BTreeSet::new(),
            last: None,
            orders: 0,
            resends: 0,
            losses: 0,
            copy: None,
            incarnations: 3,
        }
    }

    fn hash(&self) -> u64 {
        let mut hasher = Xxh3::new();
        Hash::hash(self, &mut hasher);
        hasher.finish()
    }

    fn steps(&self, limits: Limits) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.orders > 0 {
            steps.extend((0..3).map(Step::Read));
        }
        if self.orders < limits.orders {
            for puts in [true, false] {
                // Nothing has been read that a delete could supersede.
                if !puts && self.seen.is_empty() {
                    continue;
                }
                for at in 0..2 {
                    // The primaries are alike as long as nothing has happened.
                    if at == 0 || self.orders > 0 {
                        steps.extend([false, true].map(|hinted| Step::Write { at, puts, hinted }));
                    }
                }
                steps.push(Step::Write { at: 2, puts, hinted: true });
            }
        }
        if self.resends < limits.resends && self.last.is_some() {
            steps.extend((0..3).map(|at| Step::Resend { at }));
        }
        steps.extend((0..self.network.len()).map(Step::Deliver));
        for (hint, row) in self.fallback.hints.iter().enumerate() {
            steps.extend(row.targets.iter().map(|to| Step::Hint { hint, to: *to }));
        }
        steps.extend((0..2).map(|to| Step::CatchUp { to }));
        if self.primaries[0].log.len() + self.primaries[1].log.len() > 0 && limits.resends > 0 {
            steps.extend((0..2).map(Step::Trim));
        }
        if self.losses < limits.losses {
            steps.extend((0..2).filter(|_| self.orders > 0).map(Step::Wipe));
            match self.copy {
                Some(_) => steps.push(Step::Restore),
                None => steps.extend((0..2).map(Step::Copy)),
            }
        }
        steps
    }

    fn take(&mut self, order: &Order, at: usize, hinted: bool, broken: Break) {
        if at == 2 {
            self.fallback.stand_in(order, [0, 1].into(), broken);
            return;
        }
        let Some(message) = self.primaries[at].coordinate(order, broken) else { return };
        if hinted {
            self.fallback.keep_hint(message, [1 - at].into());
        } else {
            self.network.push((1 - at, message));
        }
    }

    fn take_step(&mut self, step: Step, limits: Limits, broken: Break) {
        match step {
            Step::Read(at) => {
                let (state, oracle) = match self.primaries.get(at) {
                    Some(primary) => {
                        let (_, state, oracle) = primary.message(KEY, broken);
                        (State::decode(state).unwrap(), oracle)
                    }
                    None => self.fallback.raw(KEY, broken),
                };
                self.token = encode_context_token(&keys(), namespace(KEY), &[KEY], &state.seen());
                self.seen = oracle.seen;
            }
            Step::Write { at, puts, hinted } => {
                self.orders += 1;
                let id = self.orders as u64;
                let (token, seen) = (self.token.clone(), self.seen.clone());
                let order = Order { key: KEY, token, seen, puts, id, request: id };
                self.take(&order, at, hinted, broken);
                self.last = Some(order);
            }
            Step::Resend { at } => {
                self.resends += 1;
                let order = self.last.clone().unwrap();
                self.take(&order, at, false, broken);
            }
            Step::Deliver(at) => {
                let (to, message) = self.network.remove(at);
                self.primaries[to].apply(&message, broken);
            }
            Step::Hint { hint, to } => self.deliver_hint(hint, to, broken),
            Step::CatchUp { to } => self.catch_up(to, broken),
            Step::Trim(at) => {
                let clocks = self.primaries.each_ref().map(|node| node.clock.clone());
                self.primaries[at].trim(self.oldest(limits, broken), &clocks);
            }
            Step::Wipe(at) => {
                let mut new = Node::new(self.incarnations + 1, true);
                if broken == Break::SameIncarnation {
                    new.incarnation = self.primaries[at].incarnation;
                }
                self.rebuild(at, new, broken);
            }
            Step::Copy(at) => self.copy = Some((at, self.primaries[at].clone())),
            Step::Restore => {
                let (at, mut copy) = self.copy.take().unwrap();
                match broken {
                    Break::RestoredAtOnce => {}
                    Break::RestoredAsks => {
                        let others = [&self.primaries[1 - at], &self.fallback];
                        let known = others.map(|other| other.highest(copy.incarnation));
                        copy.counter = known.into_iter().max().unwrap().max(copy.counter);
                    }
                    _ => {
                        copy.incarnation = Incarnation(self.incarnations + 1);
                        copy.counter = 0;
                    }
                }
                self.rebuild(at, copy, broken);
            }
        }
    }

    /// A disk is not what it was: the node pulls from all others before it serves.
    fn rebuild(&mut self, at: usize, mut node: Node, broken: Break) {
        self.losses += 1;
        self.incarnations += 1;
        if broken != Break::RestoredAtOnce {
            node.pull(&self.primaries[1 - at], broken);
            node.pull(&self.fallback, broken);
        }
        self.primaries[at] = node;
    }

    /// The oldest request that can be sent again or arrive late.
    fn oldest(&self, limits: Limits, broken: Break) -> u64 {
        let resent = self.last.iter().filter(|_| self.resends < limits.resends).map(|order| order.id);
        let hints = self.fallback.hints.iter().map(|hint| &hint.message);
        let late = self.network.iter().map(|(_, message)| message).chain(hints);
        let late = late.flat_map(|(_, state, _)| State::decode(state.clone()).unwrap().writes.into_values());
        let late = late.filter(|_| broken != Break::TrimEarly).map(|write| write.issued_at_ms);
        resent.chain(late).min().unwrap_or(u64::MAX)
    }

    fn deliver_hint(&mut self, hint: usize, to: usize, broken: Break) {
        let message = self.fallback.hints[hint].message.clone();
        self.primaries[to].apply(&message, broken);
        self.fallback.hints[hint].targets.remove(&to);
        if self.fallback.hints[hint].targets.is_empty() {
            self.fallback.hints.remove(hint);
        }
    }

    fn catch_up(&mut self, to: usize, broken: Break) {
        let source = self.primaries[1 - to].clone();
        match source.lacking(&self.primaries[to].clock, broken) {
            Some(messages) => messages.iter().for_each(|message| self.primaries[to].apply(message, broken)),
            None => self.primaries[to].pull(&source, broken),
        }
    }

    /// Whether a primary shows what its history says.
    fn is_true(&self, at: usize, broken: Break) -> bool {
        shown(&self.primaries[at].load(KEY, broken)) == self.primaries[at].oracle(KEY).live
    }

    /// Whether both end with what history says, and with no row that is not needed.
    fn ends_well(mut self, broken: Break) -> bool {
        self.network.clear();
        while let Some(to) = self.fallback.hints.first().and_then(|hint| hint.targets.first().copied()) {
            self.deliver_hint(0, to, broken);
        }
        (0..2).for_each(|to| self.catch_up(to, broken));
        (0..2).for_each(|to| self.catch_up(to, broken));
        // What a client alone has seen of a disk that is gone.
        let alive = self.primaries.each_ref().map(|node| node.incarnation);
        for incarnation in (1..=self.incarnations).map(Incarnation).filter(|i| !alive.contains(i)) {
            self.primaries.iter_mut().for_each(|primary| primary.clock.seal(incarnation, u64::MAX));
        }
        self.primaries.iter_mut().for_each(|primary| primary.strip_again(broken));
        let left = |node: &Node| {
            node.stored(KEY).is_some_and(|row| row.record.siblings.is_empty() || row.record.is_ahead())
        };
        let live = self.primaries.each_ref().map(|node| node.oracle(KEY).live);
        live[0] == live[1] && (0..2).all(|at| self.is_true(at, broken)) && !self.primaries.iter().any(left)
    }
}

#[derive(Debug, Default)]
struct Explored {
    /// Steps taken, each from a state that was new.
    steps: usize,
    states: usize,
    /// A schedule that ends in a state that history does not allow.
    bad: Option<Vec<Step>>,
}

struct Explorer {
    limits: Limits,
    broken: Break,
    /// By state: with how many steps left it was followed.
    met: BTreeMap<u64, usize>,
    path: Vec<Step>,
    found: Explored,
}

impl Explorer {
    fn run(limits: Limits, broken: Break) -> Explored {
        let mut explorer =
            Self { limits, broken, met: BTreeMap::new(), path: Vec::new(), found: Explored::default() };
        explorer.follow(&Small::new(), limits.steps);
        explorer.found
    }

    fn follow(&mut self, state: &Small, left: usize) {
        match self.met.insert(state.hash(), left) {
            Some(before) if before >= left => {
                self.met.insert(state.hash(), before);
                return;
            }
            Some(_) => {}
            None => {
                self.found.states += 1;
                // A resent write may show for a while beside what superseded it.
                let now = self.limits.resends > 0 || (0..2).all(|at| state.is_true(at, self.broken));
                if !now || !state.clone().ends_well(self.broken) {
                    self.found.bad = Some(self.path.clone());
                }
            }
        }
        if left == 0 || self.found.bad.is_some() {
            return;
        }
        for step in state.steps(self.limits) {
            let mut next = state.clone();
            next.take_step(step, self.limits, self.broken);
            self.found.steps += 1;
            self.path.push(step);
            self.follow(&next, left - 1);
            self.path.pop();
            if self.found.bad.is_some() {
                return;
            }
        }
    }
}

const CALM: Limits = Limits { steps: 6, orders: 3, resends: 0, losses: 0 };
const RESENT: Limits = Limits { steps: 6, orders: 2, resends: 1, losses: 0 };
const LOST: Limits = Limits { steps: 6, orders: 2, resends: 0, losses: 1 };
const BOTH: Limits = Limits { steps: 5, orders: 2, resends: 1, losses: 1 };

#[test]
fn every_schedule_of_a_few_steps_is_what_history_says() {
    let mut steps = 0;
    for limits in [CALM, RESENT, LOST, BOTH] {
        let explored = Explorer::run(limits, Break::Nothing);
        assert!(explored.bad.is_none(), "{limits:?}: {explored:?}");
        steps += explored.steps;
    }
    println!("{steps} steps");
    assert!(steps > 250_000, "{steps}: the schedules are not what they were");
}

#[test]
fn every_broken_rule_is_noticed() {
    for (broken, limits) in [
        (Break::Fill, CALM),
        (Break::StripAll, CALM),
        (Break::FallbackFills, CALM),
        (Break::KeepAll, CALM),
        (Break::Twins, RESENT),
        (Break::TrimEarly, RESENT),
        (Break::SameIncarnation, LOST),
        (Break::RestoredAtOnce, LOST),
        (Break::RestoredAsks, LOST),
        (Break::AbsentIgnored, LOST),
        (Break::CarryLive, BOTH),
        (Break::SeenDots, BOTH),
        (Break::PullWithoutLog, BOTH),
    ] {
        let explored = Explorer::run(limits, broken);
        println!("{broken:?}: {:?}", explored.bad);
        assert!(explored.bad.is_some(), "{broken:?}");
    }
}

#[test]
fn without_the_loss_of_a_disk_the_dot_log_alone_tells_of_twins() {
    for broken in [Break::CarryLive, Break::SeenDots] {
        assert!(Explorer::run(RESENT, broken).bad.is_none(), "{broken:?}");
    }
}

/// A write that a primary and the fallback acknowledged; then the disk of the primary is lost, and the hint
/// is delivered while the primary pulls.
#[test]
fn who_pulls_asks_those_that_hold_hints_first() {
    let knows_after = |hints_first: bool| {
        let mut world = Small::new();
        let broken = Break::Nothing;
        world.take_step(Step::Write { at: 0, puts: true, hinted: true }, LOST, broken);
        let mut new = Node::new(4, true);
        if hints_first {
            new.pull(&world.fallback, broken);
            world.deliver_hint(0, 1, broken);
            new.pull(&world.primaries[1], broken);
        } else {
            new.pull(&world.primaries[1], broken);
            world.deliver_hint(0, 1, broken);
            new.pull(&world.fallback, broken);
        }
        shown(&new.load(KEY, broken)) == BTreeSet::from([1])
    };
    assert!(knows_after(true));
    assert!(!knows_after(false), "the other order misses it: one disk alone has the write");
}
