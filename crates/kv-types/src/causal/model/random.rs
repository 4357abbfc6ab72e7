//! Random schedules: writes and deletes through primaries and fallbacks, resends, messages and hints that are
//! lost, late, repeated or out of order, anti-entropy from the dot logs in part, pulls in pages, disks that
//! are wiped or put back to an older copy, replicas that move, crashes before the fsync.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fastrand::Rng;

use super::super::{Dot, NodeClock, Seen, State, Write, encode_context_token};
use super::node::{Break, KEYS, Key, Message, Node, Oracle, Order, keys, namespace, shown};
use crate::Incarnation;

/// A pull of a whole ring partition under way, a page at a time.
#[derive(Debug, Clone)]
struct Pull {
    to: usize,
    from: usize,
    /// The source's clock when it began.
    clock: NodeClock,
    /// Pages that have come: one for each key, then the dot log.
    pages: usize,
}

/// What may happen in a run.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    resends: bool,
    /// Disks are wiped and put back, replicas move, nodes crash.
    disks: bool,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Found {
    /// Reads and copies that differed from their history on the way.
    wrong: usize,
    /// Copies that differed from their history, or from each other, in the end.
    diverged: usize,
    /// Acknowledged values that are gone.
    lost: usize,
    /// Values that an acknowledged write superseded, and that are shown.
    returned: usize,
    /// Acknowledged writes that fewer than two nodes know although all serve.
    thin: usize,
    /// Rows without values in the end, and rows that claim what the clock does not have.
    left: usize,
}

impl Found {
    fn is_bad(&self) -> bool {
        *self != Self::default()
    }

    /// A resent write may show beside what superseded it until its twin is known.
    fn is_bad_in_the_end(&self) -> bool {
        Self { wrong: 0, ..self.clone() }.is_bad()
    }
}

struct World {
    random: Rng,
    broken: Break,
    faults: Faults,
    primaries: Vec<Node>,
    fallbacks: Vec<Node>,
    network: Vec<(usize, Message)>,
    pulls: Vec<Pull>,
    /// Copies of directories.
    copies: BTreeMap<usize, Node>,
    /// Incarnations that mint nothing up to a counter any more.
    dead: Vec<(Incarnation, u64)>,
    names: u64,
    /// Orders, by their number; the last few may be sent again.
    orders: BTreeMap<u64, Order>,
    recent: Vec<u64>,
    /// Those that two nodes had when they were answered.
    acknowledged: BTreeSet<u64>,
    clients: BTreeMap<(usize, Key), (Bytes, BTreeSet<u64>)>,
    found: Found,
}

impl World {
    fn new(seed: u64, broken: Break, faults: Faults) -> Self {
        let mut world = Self {
            random: Rng::with_seed(seed),
            broken,
            faults,
            primaries: Vec::new(),
            fallbacks: Vec::new(),
            network: Vec::new(),
            pulls: Vec::new(),
            copies: BTreeMap::new(),
            dead: Vec::new(),
            names: 0,
            orders: BTreeMap::new(),
            recent: Vec::new(),
            acknowledged: BTreeSet::new(),
            clients: BTreeMap::new(),
            found: Found::default(),
        };
        world.primaries = (0..3).map(|_| world.node(true)).collect();
        world.fallbacks = (0..2).map(|_| world.node(false)).collect();
        world
    }

    fn incarnation(&mut self) -> Incarnation {
        self.names += 1;
        Incarnation(self.names)
    }

    fn node(&mut self, primary: bool) -> Node {
        Node::new(self.incarnation().0, primary)
    }

    fn chance(&mut self, p: f64) -> bool {
        self.random.f64() < p
    }

    fn below(&mut self, n: usize) -> usize {
        self.random.usize(..n)
    }

    fn serving(&self) -> Vec<usize> {
        (0..3).filter(|at| self.primaries[*at].serving).collect()
    }

    fn find(&self, name: usize) -> Option<&Node> {
        self.primaries.iter().chain(&self.fallbacks).find(|node| node.name == name)
    }

    fn deliver(&mut self, to: usize, message: &Message) {
        let broken = self.broken;
        if let Some(node) = self.primaries.iter_mut().find(|node| node.name == to) {
            node.apply(message, broken);
        }
    }

    /// A client reads through one or two nodes.
    fn read(&mut self, key: Key) {
        let (mut state, mut oracle) = (State::default(), Oracle::default());
        let serving = self.serving();
        for _ in 0..1 + self.below(2) {
            let at = self.below(serving.len() + 2);
            let (s, o) = match serving.get(at) {
                Some(at) => {
                    let (_, state, oracle) = self.primaries[*at].message(key, self.broken);
                    (State::decode(state).unwrap(), oracle)
                }
                None => self.fallbacks[at - serving.len()].raw(key, self.broken),
            };
            state.merge(&s);
            oracle.merge(&o);
        }
        if self.broken != Break::Twins {
            state.bury_twins(|_| Vec::new());
        }
        self.found.wrong += usize::from(shown(&state) != oracle.live);
        let token = encode_context_token(&keys(), namespace(key), &[key], &state.seen());
        let client = self.below(3);
        self.clients.insert((client, key), (token, oracle.seen));
    }

    fn order(&mut self, key: Key) -> Order {
        if self.faults.resends && !self.recent.is_empty() && self.chance(0.15) {
            let back = self.below(self.recent.len().min(6));
            let id = self.recent[self.recent.len() - 1 - back];
            return self.orders[&id].clone();
        }
        let client = self.below(3);
        let nothing =
            || (encode_context_token(&keys(), namespace(key), &[key], &Seen::default()), BTreeSet::new());
        let known = self.clients.get(&(client, key)).cloned().unwrap_or_else(nothing);
        let (token, seen) = if self.chance(0.8) { known } else { nothing() };
        let id = self.orders.len() as u64 + 1;
        let mut request = id;
        if self.faults.resends && id > 1 && self.chance(0.03) {
            let other = self.orders[&(1 + self.random.u64(..id - 1))].request;
            if self.orders.values().all(|order| (order.request, order.key) != (other, key)) {
                request = other;
            }
        }
        let order = Order { key, token, seen, puts: !self.chance(0.4), id, request };
        self.orders.insert(id, order.clone());
        self.recent.push(id);
        order
    }

    fn write(&mut self, key: Key) {
        let order = self.order(key);
        let serving = self.serving();
        if serving.is_empty() || self.chance(0.25) {
            let targets: BTreeSet<usize> = self.primaries.iter().map(|p| p.name).collect();
            // Either of them alone, or both: then it is acknowledged.
            let (first, both) = (self.below(2), self.chance(0.5));
            let message = self.fallbacks[first].stand_in(&order, targets.clone(), self.broken);
            if both {
                self.fallbacks[1 - first].keep_hint(message, targets);
                self.acknowledge(&order, 2);
            }
            return;
        }
        let at = serving[self.below(serving.len())];
        if self.faults.disks && self.chance(0.05) {
            return self.crash(at, &order);
        }
        if let Some(message) = self.primaries[at].coordinate(&order, self.broken) {
            self.ship(at, &order, &message);
        }
    }

    /// Sends a write on: some have it at once, for some a fallback stands in, some get it late or never.
    fn ship(&mut self, at: usize, order: &Order, message: &Message) {
        let mut copies = 1;
        for to in (0..3).filter(|to| *to != at) {
            let name = self.primaries[to].name;
            let x = self.random.f64();
            if x < 0.3 {
                self.deliver(name, message);
                copies += 1;
            } else if x < 0.5 {
                let fallback = self.below(2);
                self.fallbacks[fallback].keep_hint(message.clone(), [name].into());
                copies += 1;
            } else if x < 0.8 {
                self.network.push((name, message.clone()));
            }
        }
        self.acknowledge(order, copies);
    }

    fn acknowledge(&mut self, order: &Order, copies: usize) {
        if copies >= 2 {
            self.acknowledged.insert(order.id);
        }
    }

    /// A write that is shipped before its fsync, which never comes.
    fn crash(&mut self, at: usize, order: &Order) {
        let before = self.primaries[at].clone();
        let sent = self.primaries[at].coordinate(order, self.broken);
        let counter = self.primaries[at].counter;
        self.primaries[at] = before;
        for to in (0..3).filter(|to| *to != at) {
            if let Some(message) = sent.as_ref().filter(|_| self.random.bool()) {
                self.network.push((self.primaries[to].name, message.clone()));
            }
        }
        if self.broken == Break::ReuseLostDots {
            return;
        }
        // What was leased is not minted again: it goes on behind it, or under another incarnation.
        let lease = counter + self.random.u64(..3);
        self.dead.push((self.primaries[at].incarnation, lease));
        if self.random.bool() {
            self.primaries[at].counter = lease;
        } else {
            self.primaries[at].incarnation = self.incarnation();
            self.primaries[at].counter = 0;
        }
    }

    /// A hint reaches one of its targets, and goes once all have acknowledged it.
    fn deliver_hint(&mut self) {
        let fallback = self.below(2);
        if self.fallbacks[fallback].hints.is_empty() {
            return;
        }
        let at = self.below(self.fallbacks[fallback].hints.len());
        let hint = self.fallbacks[fallback].hints[at].clone();
        let targets: Vec<usize> = hint.targets.iter().copied().collect();
        let to = targets[self.below(targets.len())];
        self.deliver(to, &hint.message);
        if self.chance(0.8) {
            let hints = &mut self.fallbacks[fallback].hints;
            hints[at].targets.remove(&to);
            if hints[at].targets.is_empty() {
                let hint = hints.remove(at);
                // A fallback put back to an older copy delivers it again, much later.
                if self.faults.disks && self.chance(0.1) {
                    self.network.push((to, hint.message));
                }
            }
        }
        if self.broken == Break::DropHints && self.chance(0.3) {
            let hints = &mut self.fallbacks[fallback].hints;
            (!hints.is_empty()).then(|| hints.remove(0));
        }
    }

    /// Anti-entropy: what a primary lacks by its clock, from the other's dot log; now and then in part.
    /// False when the log does not reach back far enough.
    fn catch_up(&mut self, to: usize, from: usize, part: f64) -> bool {
        let (Some(target), Some(source)) = (self.find(to), self.find(from)) else { return true };
        let Some(messages) = source.lacking(&target.clock, self.broken) else { return false };
        for message in messages {
            if part >= 1.0 || self.chance(part) {
                self.deliver(to, &message);
            }
        }
        true
    }

    fn begin_pull(&mut self, to: usize, from: usize) {
        if let Some(source) = self.find(from) {
            self.pulls.push(Pull { to, from, clock: source.clock.clone(), pages: 0 });
        }
    }

    /// The next page of a pull; the clock of the source when all have come.
    fn turn_page(&mut self, at: usize) {
        let broken = self.broken;
        let pull = self.pulls[at].clone();
        let Some(source) = self.find(pull.from).cloned() else { return drop(self.pulls.remove(at)) };
        let Some(target) = self.primaries.iter_mut().find(|node| node.name == pull.to) else {
            return drop(self.pulls.remove(at));
        };
        self.pulls[at].pages += 1;
        if target.take_page(&source, &pull.clock, pull.pages, broken) {
            target.pulled.insert(pull.from);
            self.pulls.remove(at);
        }
    }

    /// Whom a node pulls from, in this order: hints move from fallbacks to primaries, so a hint that is gone
    /// from its fallback has reached a primary that is asked later.
    fn sources(&self, of: usize) -> Vec<usize> {
        let fallbacks = self.fallbacks.iter().filter(|_| self.broken != Break::SkipFallbacks);
        let all = fallbacks.chain(&self.primaries).map(|node| node.name);
        all.filter(|name| *name != of).collect()
    }

    /// A whole pull from all others, at once.
    fn pull_from_all(&mut self, to: usize) {
        for from in self.sources(to) {
            self.begin_pull(to, from);
            let at = self.pulls.len() - 1;
            while self.pulls.get(at).is_some() {
                self.turn_page(at);
            }
        }
    }

    /// Nodes that do not serve go on pulling, and serve once they have pulled from all.
    fn rebuild(&mut self) {
        for at in 0..3 {
            if self.primaries[at].serving || !self.chance(0.5) {
                continue;
            }
            let name = self.primaries[at].name;
            if let Some(pull) = self.pulls.iter().position(|pull| pull.to == name) {
                // A pull that fails begins again.
                if self.chance(0.1) {
                    drop(self.pulls.remove(pull))
                } else {
                    self.turn_page(pull)
                }
                continue;
            }
            let missing = self.sources(name);
            match missing.iter().find(|from| !self.primaries[at].pulled.contains(from)) {
                Some(from) => self.begin_pull(name, *from),
                None => {
                    self.primaries[at].serving = true;
                    self.count_copies();
                }
            }
        }
    }

    /// A new node takes the place of a primary.
    fn replace(&mut self, at: usize, mut new: Node) {
        let name = new.name;
        std::mem::swap(&mut self.primaries[at], &mut new);
        self.pulls.retain(|pull| pull.to != new.name && pull.from != new.name);
        for (to, _) in &mut self.network {
            if *to == new.name {
                *to = name;
            }
        }
        for hint in self.fallbacks.iter_mut().flat_map(|f| &mut f.hints) {
            if hint.targets.remove(&new.name) {
                hint.targets.insert(name);
            }
        }
        self.dead.push((new.incarnation, u64::MAX));
    }

    fn wipe(&mut self, at: usize) {
        let mut new = self.node(true);
        new.serving = false;
        if self.broken == Break::SameIncarnation {
            new.incarnation = self.primaries[at].incarnation;
        }
        self.replace(at, new);
        if self.broken == Break::SameIncarnation {
            self.dead.pop();
        }
    }

    /// A directory is put back to an older copy of itself.
    fn restore(&mut self, at: usize) {
        let name = self.primaries[at].name;
        let Some(mut copy) = self.copies.get(&name).cloned() else { return };
        let lost = self.primaries[at].incarnation;
        self.pulls.retain(|pull| pull.to != name && pull.from != name);
        match self.broken {
            Break::RestoredAtOnce => {}
            Break::RestoredAsks => {
                let others = self.primaries.iter().filter(|p| p.name != name).chain(&self.fallbacks);
                let known = others.map(|other| other.highest(copy.incarnation));
                copy.counter = known.chain([copy.counter]).max().unwrap();
                copy.serving = false;
                copy.pulled.clear();
            }
            _ => {
                self.dead.push((copy.incarnation, u64::MAX));
                if lost != copy.incarnation {
                    self.dead.push((lost, u64::MAX));
                }
                copy.incarnation = self.incarnation();
                copy.counter = 0;
                copy.serving = false;
                copy.pulled.clear();
            }
        }
        self.primaries[at] = copy;
    }

    /// Ownership moves: streamed in full from the old owner and from all others, then switched.
    fn relocate(&mut self, at: usize) {
        let new = self.node(true);
        let name = new.name;
        let old = self.primaries[at].clone();
        self.replace(at, new);
        let spare = self.fallbacks.len();
        self.fallbacks.push(old);
        self.pull_from_all(name);
        self.fallbacks.remove(spare);
        self.count_copies();
    }

    /// Looks for acknowledged writes that the next loss of a disk would take away.
    fn count_copies(&mut self) {
        for order in self.acknowledged.iter().map(|id| &self.orders[id]) {
            let kept = self.primaries.iter().filter(|p| p.oracle(order.key).seen.contains(&order.id)).count();
            let hinted = |f: &&Node| f.hints.iter().any(|hint| hint.message.2.seen.contains(&order.id));
            self.found.thin += usize::from(kept + self.fallbacks.iter().filter(hinted).count() < 2);
        }
    }

    /// The writes that a message or a hint may still bring somewhere.
    fn under_way(&self) -> Vec<(Dot, Write)> {
        let hints = self.fallbacks.iter().flat_map(|f| &f.hints).map(|hint| &hint.message);
        let messages = self.network.iter().map(|(_, message)| message).chain(hints);
        messages.flat_map(|(_, state, _)| State::decode(state.clone()).unwrap().writes).collect()
    }

    /// Forgets what old dots stood for: those that every replica has, of requests that can neither be sent
    /// again nor arrive late.
    fn trim(&mut self, at: usize) {
        let resent = self.recent.iter().rev().take(6).copied();
        let mut late: Vec<u64> = self.under_way().iter().map(|(_, write)| write.issued_at_ms).collect();
        if self.broken == Break::TrimEarly {
            late.clear();
        }
        let oldest = late.into_iter().chain(resent).min().unwrap_or(u64::MAX);
        let clocks: Vec<NodeClock> = self.primaries.iter().map(|p| p.clock.clone()).collect();
        self.primaries[at].trim(oldest, &clocks);
    }

    /// Seals dead incarnations, as soon as all replicas have applied the same of them and nothing else of
    /// them can arrive.
    fn seal(&mut self) {
        if !self.primaries.iter().all(|p| p.serving) {
            return;
        }
        let under_way: Vec<Dot> = self.under_way().into_iter().map(|(dot, _)| dot).collect();
        let early = self.broken == Break::SealEarly;
        for (incarnation, last) in std::mem::take(&mut self.dead) {
            let mut all = NodeClock::new();
            all.seal(incarnation, last);
            let lacks = |p: &Node| all.dots().difference(p.clock.dots());
            let same = self.primaries.iter().all(|p| lacks(p) == lacks(&self.primaries[0]));
            let lacking = lacks(&self.primaries[0]);
            if early || (same && !under_way.iter().any(|dot| lacking.covers(*dot))) {
                self.primaries.iter_mut().for_each(|p| p.clock.seal(incarnation, last));
            } else {
                self.dead.push((incarnation, last));
            }
        }
    }

    fn background(&mut self) {
        let at = self.below(3);
        let x = self.random.f64();
        if x < 0.4 {
            let broken = self.broken;
            self.primaries[at].strip_again(broken);
        } else if x < 0.7 {
            self.trim(at);
        } else {
            self.seal();
        }
    }

    fn disk(&mut self) {
        let at = self.below(3);
        if !self.primaries.iter().all(|p| p.serving) {
            return;
        }
        let x = self.random.f64();
        if x < 0.4 {
            let node = self.primaries[at].clone();
            self.copies.insert(node.name, node);
        } else if x < 0.6 {
            self.restore(at);
        } else if x < 0.8 {
            self.wipe(at);
        } else {
            self.relocate(at);
        }
    }

    fn step(&mut self) {
        let key = KEYS[self.below(2)];
        let x = self.random.f64();
        if x < 0.18 {
            self.read(key);
        } else if x < 0.52 {
            self.write(key);
        } else if x < 0.70 && !self.network.is_empty() {
            let at = self.below(self.network.len());
            let (to, message) = self.network[at].clone();
            self.deliver(to, &message);
            if self.chance(0.85) {
                self.network.remove(at);
            }
        } else if x < 0.78 {
            self.deliver_hint();
        } else if x < 0.86 {
            let to = self.below(3);
            let from = (to + 1 + self.below(2)) % 3;
            let from = match self.below(4) {
                other @ (0 | 1) if self.broken != Break::SkipFallbacks => self.fallbacks[other].name,
                _ => self.primaries[from].name,
            };
            let part = if self.chance(0.5) { 0.5 } else { 1.0 };
            let to = self.primaries[to].name;
            if !self.catch_up(to, from, part) {
                self.begin_pull(to, from);
            }
        } else if x < 0.92 {
            if !self.pulls.is_empty() {
                let at = self.below(self.pulls.len());
                self.turn_page(at);
            }
        } else if x < 0.97 {
            self.background();
        } else if self.faults.disks {
            self.disk();
        }
        self.rebuild();
        let broken = self.broken;
        let differs = |p: &Node, key: Key| shown(&p.load(key, broken)) != p.oracle(key).live;
        self.found.wrong +=
            self.primaries.iter().map(|p| KEYS.iter().filter(|key| differs(p, **key)).count()).sum::<usize>();
    }

    /// Lets everything arrive, and looks at what is there then.
    fn end(mut self) -> Found {
        for (to, message) in std::mem::take(&mut self.network) {
            self.deliver(to, &message);
        }
        for fallback in 0..2 {
            for hint in std::mem::take(&mut self.fallbacks[fallback].hints) {
                hint.targets.iter().for_each(|to| self.deliver(*to, &hint.message));
            }
        }
        let names: Vec<usize> = self.primaries.iter().map(|p| p.name).collect();
        self.pulls.clear();
        for (at, name) in names.iter().enumerate() {
            if !self.primaries[at].serving {
                self.pull_from_all(*name);
                self.primaries[at].serving = true;
            }
        }
        for _ in 0..2 {
            for (to, from) in names.iter().flat_map(|to| names.iter().map(move |from| (*to, *from))) {
                if to != from && !self.catch_up(to, from, 1.0) {
                    self.pull_from_all(to);
                }
            }
        }
        self.seal();
        let broken = self.broken;
        self.primaries.iter_mut().for_each(|p| p.strip_again(broken));
        self.judge();
        self.found
    }

    fn judge(&mut self) {
        let mut superseded: BTreeSet<u64> = BTreeSet::new();
        let mut known_dead: BTreeSet<u64> = BTreeSet::new();
        for order in self.orders.values() {
            superseded.extend(&order.seen);
            if self.acknowledged.contains(&order.id) {
                known_dead.extend(&order.seen);
            }
        }
        for key in KEYS {
            let first = shown(&self.primaries[0].load(key, self.broken));
            for node in &self.primaries {
                let mine = shown(&node.load(key, self.broken));
                self.found.diverged += usize::from(mine != first || mine != node.oracle(key).live);
                let stored = node.stored(key);
                let left = |row: &State| row.record.siblings.is_empty() || row.record.is_ahead();
                self.found.left += usize::from(stored.as_ref().is_some_and(left));
            }
            let owed = self.orders.values().filter(|order| {
                order.key == key
                    && order.puts
                    && self.acknowledged.contains(&order.id)
                    && !superseded.contains(&order.id)
            });
            self.found.lost += owed.filter(|order| !first.contains(&order.id)).count();
            self.found.returned += first.intersection(&known_dead).count();
        }
    }
}

const STEPS: usize = 260;

fn run(seed: u64, broken: Break, faults: Faults) -> Found {
    let mut world = World::new(seed, broken, faults);
    (0..STEPS).for_each(|_| world.step());
    world.end()
}

const CALM: Faults = Faults { resends: false, disks: false };
const RESENDS: Faults = Faults { resends: true, disks: false };
const DISKS: Faults = Faults { resends: false, disks: true };
const ALL: Faults = Faults { resends: true, disks: true };

/// Runs of each kind.
const SEEDS: u64 = 120;

#[test]
fn every_read_is_what_history_says() {
    for seed in 0..SEEDS {
        assert_eq!(run(seed, Break::Nothing, CALM), Found::default(), "seed {seed}");
    }
}

#[test]
fn every_read_is_what_history_says_whatever_happens_to_disks() {
    for seed in 0..SEEDS {
        assert_eq!(run(seed, Break::Nothing, DISKS), Found::default(), "seed {seed}");
    }
}

#[test]
fn with_resends_all_is_well_in_the_end() {
    let mut wrong = 0;
    for seed in 0..SEEDS {
        for faults in [RESENDS, ALL] {
            let found = run(seed, Break::Nothing, faults);
            assert!(!found.is_bad_in_the_end(), "seed {seed}: {found:?}");
            wrong += usize::from(found.wrong > 0);
        }
    }
    // On the way a resent write may show beside what superseded it, where its twin is not known yet: seldom.
    assert!(wrong as u64 <= SEEDS / 10, "{wrong} of {} runs", 2 * SEEDS);
}

/// The seed that shows that a rule is broken, of the first so many.
fn noticed(broken: Break, faults: Faults, seeds: u64) -> Option<u64> {
    (0..seeds).find(|seed| {
        let found = run(*seed, broken, faults);
        if faults.resends { found.is_bad_in_the_end() } else { found.is_bad() }
    })
}

/// What else is broken shows in the schedules of `exhaustive` alone, or sooner there.
const BROKEN: [(Break, Faults); 16] = [
    (Break::Fill, CALM),
    (Break::StripAll, CALM),
    (Break::Twins, RESENDS),
    (Break::TwinsOfAnyKey, RESENDS),
    (Break::CarryLive, ALL),
    (Break::FallbackFills, CALM),
    (Break::DropHints, DISKS),
    (Break::SkipFallbacks, DISKS),
    (Break::SameIncarnation, DISKS),
    (Break::RestoredAtOnce, DISKS),
    (Break::RestoredAsks, DISKS),
    (Break::ReuseLostDots, DISKS),
    (Break::AdoptEarly, DISKS),
    (Break::AbsentIgnored, DISKS),
    (Break::SealEarly, DISKS),
    (Break::KeepAll, CALM),
];

#[test]
fn every_broken_rule_is_noticed() {
    for (broken, faults) in BROKEN {
        assert!(noticed(broken, faults, 2 * SEEDS).is_some(), "{broken:?}");
    }
}
