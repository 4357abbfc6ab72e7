//! A node of the model: a primary or a fallback, by the store's own code as far as it goes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::super::primary::{self, Change};
use super::super::{
    ContextKey, ContextKeys, Dot, Hlc, NodeClock, Seen, Sibling, State, Write, decode_context_token,
};
use crate::{ClientId, Incarnation, NamespaceId, RequestId};

/// The rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Break {
    Nothing,
    /// Records are not filled.
    Fill,
    /// Rows without values go, although their context says more than the clock.
    StripAll,
    /// Twins are not buried.
    Twins,
    /// The dots of a request are looked up without asking for which key.
    TwinsOfAnyKey,
    /// Messages carry the writes of live dots alone.
    CarryLive,
    /// A client does not say which requests it was shown.
    SeenDots,
    /// Fallbacks fill with the dots that they have held.
    FallbackFills,
    /// Hints are forgotten before they are delivered.
    DropHints,
    /// A node that pulls asks the primaries alone.
    SkipFallbacks,
    /// A wiped disk comes back under its old incarnation.
    SameIncarnation,
    /// A directory put back to an older copy goes on as if nothing had happened.
    RestoredAtOnce,
    /// It asks all others for its highest dot, and goes on from there under its old incarnation.
    RestoredAsks,
    /// After a crash the dots that were shipped before the fsync are minted again.
    ReuseLostDots,
    /// The source's clock is adopted with the first page.
    AdoptEarly,
    /// A page says nothing of keys that the source does not have.
    AbsentIgnored,
    /// A pull brings records and no dot log.
    PullWithoutLog,
    /// The dot log is trimmed where all clocks have the dot, whatever hints and messages may bring.
    TrimEarly,
    /// A dead incarnation is sealed without looking at hints and messages.
    SealEarly,
    /// A merge takes the union of values.
    KeepAll,
}

/// The truth: the writes that are live, and all that are known. A resent request is one write.
#[derive(Debug, Clone, Default, Hash)]
pub(super) struct Oracle {
    pub(super) live: BTreeSet<u64>,
    pub(super) seen: BTreeSet<u64>,
}

impl Oracle {
    pub(super) fn merge(&mut self, other: &Self) {
        let dead = |w: &u64, o: &Self| o.seen.contains(w) && !o.live.contains(w);
        let mut live = &self.live | &other.live;
        live.retain(|w| !dead(w, self) && !dead(w, other));
        self.live = live;
        self.seen.extend(&other.seen);
    }

    pub(super) fn write(&mut self, order: &Order) {
        if self.seen.contains(&order.id) {
            return;
        }
        self.live.retain(|w| !order.seen.contains(w));
        if order.puts {
            self.live.insert(order.id);
        }
        self.seen.extend(&order.seen);
        self.seen.insert(order.id);
    }
}

pub(super) type Key = u8;
pub(super) const KEYS: [Key; 2] = [b'a', b'b'];

pub(super) fn namespace(key: Key) -> NamespaceId {
    NamespaceId(u64::from(key))
}

/// Those of the cluster of the model.
pub(super) fn keys() -> ContextKeys {
    ContextKeys::new([ContextKey::new([1; 32])])
}

/// The encoded state of a key on its way, with its history.
pub(super) type Message = (Key, Bytes, Oracle);

/// A client's write.
#[derive(Debug, Clone, Hash)]
pub(super) struct Order {
    pub(super) key: Key,
    /// What the client holds of its read.
    pub(super) token: Bytes,
    /// The writes that its history had there.
    pub(super) seen: BTreeSet<u64>,
    /// Puts its own number, or deletes.
    pub(super) puts: bool,
    pub(super) id: u64,
    /// Usually the number: a client may use one again, for another key.
    pub(super) request: u64,
}

impl Order {
    pub(super) fn write(&self) -> Write {
        Write {
            issued_at_ms: self.id,
            request: RequestId { client_id: ClientId(1), seq: self.request },
            body: 0,
        }
    }

    pub(super) fn sibling(&self) -> Option<Sibling> {
        let value = Bytes::from(self.id.to_be_bytes().to_vec());
        self.puts.then(|| Sibling { stamp: Hlc(0), request: self.write().request, value })
    }

    pub(super) fn seen(&self, broken: Break) -> Seen {
        let mut seen = decode_context_token(&keys(), namespace(self.key), &[self.key], &self.token).unwrap();
        if broken == Break::SeenDots {
            seen.writes.clear();
        }
        seen
    }
}

/// The values that a reader is shown.
pub(super) fn shown(state: &State) -> BTreeSet<u64> {
    let number = |value: &Bytes| u64::from_be_bytes(value.as_ref().try_into().unwrap());
    state.record.values().iter().map(|(_, sibling)| number(&sibling.value)).collect()
}

#[derive(Debug, Clone, Hash)]
pub(super) struct Hint {
    pub(super) message: Message,
    pub(super) targets: BTreeSet<usize>,
}

#[derive(Debug, Clone, Hash)]
pub(super) struct Node {
    pub(super) name: usize,
    pub(super) incarnation: Incarnation,
    pub(super) counter: u64,
    pub(super) rows: BTreeMap<Key, Bytes>,
    pub(super) oracle: BTreeMap<Key, Oracle>,
    pub(super) clock: NodeClock,
    /// What each dot stands for, with its key: source of anti-entropy and request table in one.
    pub(super) log: BTreeMap<Dot, (Key, Write)>,
    pub(super) hints: Vec<Hint>,
    pub(super) primary: bool,
    pub(super) serving: bool,
    /// While it does not serve: whom it has pulled from.
    pub(super) pulled: BTreeSet<usize>,
}

impl Node {
    pub(super) fn stored(&self, key: Key) -> Option<State> {
        self.rows.get(&key).map(|row| State::decode(row.clone()).unwrap())
    }

    pub(super) fn load(&self, key: Key, broken: Break) -> State {
        match broken {
            Break::Fill => self.stored(key).unwrap_or_default(),
            _ => primary::load(self.stored(key), &self.clock),
        }
    }

    pub(super) fn oracle(&self, key: Key) -> Oracle {
        self.oracle.get(&key).cloned().unwrap_or_default()
    }

    /// The dots of a request on a key.
    pub(super) fn dots_of(&self, key: Key, request: RequestId, broken: Break) -> Vec<Dot> {
        let right = |k: Key| k == key || broken == Break::TwinsOfAnyKey;
        let mine = self.log.iter().filter(|(_, (k, write))| right(*k) && write.request == request);
        mine.map(|(dot, _)| *dot).collect()
    }

    /// Runs a change of a key by the store's own code, and keeps what comes of it.
    pub(super) fn change(
        &mut self,
        key: Key,
        broken: Break,
        run: impl FnOnce(&Self, &mut NodeClock, Option<State>) -> Change,
    ) {
        let mut clock = self.clock.clone();
        let stored = self.stored(key);
        let mut change = run(self, &mut clock, stored);
        if broken == Break::StripAll {
            change.row = change.row.filter(|row| !row.record.siblings.is_empty());
        }
        self.log.extend(change.new.iter().map(|(dot, write)| (*dot, (key, *write))));
        self.clock = clock;
        match change.row {
            Some(row) => drop(self.rows.insert(key, row.encode())),
            None => drop(self.rows.remove(&key)),
        }
    }

    pub(super) fn merge(&mut self, key: Key, incoming: &State, oracle: &Oracle, broken: Break) {
        self.change(key, broken, |node, clock, stored| {
            let known = |request| match broken {
                Break::Twins => Vec::new(),
                _ => node.dots_of(key, request, broken),
            };
            match broken {
                Break::Fill | Break::Twins | Break::KeepAll => {
                    let mut state = node.load(key, broken);
                    let before = state.record.siblings.clone();
                    state.merge(incoming);
                    if broken == Break::KeepAll {
                        state.record.siblings.extend(before);
                    }
                    if broken != Break::Twins {
                        state.bury_twins(known);
                    }
                    let new: Vec<_> = state.applied().filter(|(dot, _)| !clock.has(*dot)).collect();
                    new.iter().for_each(|(dot, _)| clock.add(*dot));
                    Change { row: primary::keep(state.clone(), clock), state, new }
                }
                _ => primary::merge(stored, incoming, clock, known),
            }
        });
        self.oracle.entry(key).or_default().merge(oracle);
    }

    pub(super) fn apply(&mut self, (key, state, oracle): &Message, broken: Break) {
        self.merge(*key, &State::decode(state.clone()).unwrap(), oracle, broken);
    }

    /// Strips again what was ahead of the clock when it was stored.
    pub(super) fn strip_again(&mut self, broken: Break) {
        for key in KEYS {
            if self.stored(key).is_some_and(|stored| stored.record.is_ahead()) {
                self.merge(key, &State::default(), &Oracle::default(), broken);
            }
        }
    }

    /// What leaves this primary: filled, with what the dots of the key stand for that the log still has.
    pub(super) fn message(&self, key: Key, broken: Break) -> Message {
        let mut state = self.load(key, broken);
        if broken != Break::CarryLive {
            let of_key = self.log.iter().filter(|(_, (k, _))| *k == key);
            state.carry(of_key.map(|(dot, (_, write))| (*dot, *write)));
        }
        (key, state.encode(), self.oracle(key))
    }

    pub(super) fn mint(&mut self) -> Dot {
        self.counter += 1;
        Dot { incarnation: self.incarnation, counter: self.counter }
    }

    /// Takes a client's write as a primary. None: the request is known of another key, and refused.
    pub(super) fn coordinate(&mut self, order: &Order, broken: Break) -> Option<Message> {
        let known: Vec<Key> =
            self.log.values().filter(|(_, w)| w.request == order.write().request).map(|(k, _)| *k).collect();
        if known.iter().any(|key| *key != order.key) {
            return None;
        }
        if known.is_empty() {
            let dot = self.mint();
            let (seen, write, sibling) = (order.seen(broken), order.write(), order.sibling());
            self.change(order.key, broken, |node, clock, stored| {
                let known = |request| match broken {
                    Break::Twins => Vec::new(),
                    _ => node.dots_of(order.key, request, broken),
                };
                primary::write(stored, &seen, (dot, write), sibling, clock, known)
            });
            self.oracle.entry(order.key).or_default().write(order);
        }
        Some(self.message(order.key, broken))
    }

    /// What the hints here say of a key: raw.
    pub(super) fn raw(&self, key: Key, broken: Break) -> (State, Oracle) {
        let mut out = (State::default(), Oracle::default());
        for hint in self.hints.iter().filter(|hint| hint.message.0 == key) {
            out.0.merge(&State::decode(hint.message.1.clone()).unwrap());
            out.1.merge(&hint.message.2);
        }
        if broken == Break::FallbackFills {
            out.0.record.fill(&self.clock);
        }
        if broken != Break::Twins {
            out.0.bury_twins(|_| Vec::new());
        }
        out
    }

    pub(super) fn keep_hint(&mut self, message: Message, targets: BTreeSet<usize>) {
        // Only a fallback that breaks the rule looks at it.
        State::decode(message.1.clone()).unwrap().writes.keys().for_each(|dot| self.clock.add(*dot));
        self.hints.push(Hint { message, targets });
    }

    /// Takes a client's write as a fallback for all of these.
    pub(super) fn stand_in(&mut self, order: &Order, targets: BTreeSet<usize>, broken: Break) -> Message {
        let (mut state, mut oracle) = self.raw(order.key, broken);
        if state.writes.values().any(|write| write.request == order.write().request) {
            let message = (order.key, state.encode(), oracle);
            self.keep_hint(message.clone(), targets);
            return message;
        }
        let dot = self.mint();
        state.update(&order.seen(broken), dot, order.write(), order.sibling());
        if broken != Break::Twins {
            state.bury_twins(|_| Vec::new());
        }
        oracle.write(order);
        let message = (order.key, state.encode(), oracle);
        self.keep_hint(message.clone(), targets);
        message
    }
}

impl Node {
    pub(super) fn new(incarnation: u64, primary: bool) -> Self {
        Self {
            name: incarnation as usize,
            incarnation: Incarnation(incarnation),
            counter: 0,
            rows: BTreeMap::new(),
            oracle: BTreeMap::new(),
            clock: NodeClock::new(),
            log: BTreeMap::new(),
            hints: Vec::new(),
            primary,
            serving: true,
            pulled: BTreeSet::new(),
        }
    }

    /// What a target with that clock lacks of what this primary has, by its dot log; a fallback gives its
    /// hints. None: the log does not reach back far enough.
    pub(super) fn lacking(&self, clock: &NodeClock, broken: Break) -> Option<Vec<Message>> {
        if !self.primary {
            return Some(self.hints.iter().map(|hint| hint.message.clone()).collect());
        }
        let missing = self.clock.dots().difference(clock.dots());
        let mut keys: BTreeMap<Key, BTreeMap<Dot, Write>> = BTreeMap::new();
        let mut known = 0;
        for (dot, (key, write)) in self.log.iter().filter(|(dot, _)| missing.covers(**dot)) {
            keys.entry(*key).or_default().insert(*dot, *write);
            known += 1;
        }
        let wanted = missing.ranges().iter().map(|range| u128::from(range.last - range.first) + 1);
        if wanted.sum::<u128>() > known {
            return None;
        }
        let message = |(key, writes)| {
            let mut state = self.load(key, broken);
            state.writes.extend(writes);
            (key, state.encode(), self.oracle(key))
        };
        Some(keys.into_iter().map(message).collect())
    }

    /// Takes a page of a pull of everything that the source has, whose clock was `clock` when it began: each
    /// key, then the dot log, and with it that clock. True with the last page.
    pub(super) fn take_page(&mut self, source: &Self, clock: &NodeClock, page: usize, broken: Break) -> bool {
        if !source.primary {
            source.hints.iter().for_each(|hint| self.apply(&hint.message, broken));
            return true;
        }
        if let Some(key) = KEYS.get(page) {
            // A page has the keys that have rows, and the clock: what has no row is dead as far as that goes.
            let left_out = broken == Break::AbsentIgnored && !source.rows.contains_key(key);
            let state = if left_out { State::default() } else { source.load(*key, broken) };
            self.merge(*key, &state, &source.oracle(*key), broken);
            if broken == Break::AdoptEarly {
                self.clock.adopt(clock);
            }
            return false;
        }
        if broken != Break::PullWithoutLog {
            for (dot, entry) in source.log.iter().filter(|(dot, _)| clock.has(**dot)) {
                self.log.entry(*dot).or_insert(*entry);
            }
        }
        self.clock.adopt(clock);
        for key in KEYS {
            // Twins of which the log has told.
            self.merge(key, &State::default(), &Oracle::default(), broken);
        }
        true
    }

    /// Forgets what old dots stood for: of requests from before `oldest`, which can neither be sent again nor
    /// arrive late, those that every replica has.
    pub(super) fn trim(&mut self, oldest: u64, clocks: &[NodeClock]) {
        self.log.retain(|dot, (_, write)| {
            write.issued_at_ms >= oldest || clocks.iter().any(|clock| !clock.has(*dot))
        });
    }

    /// The highest dot of an incarnation that this node has, or holds for others.
    pub(super) fn highest(&self, incarnation: Incarnation) -> u64 {
        let hints = self.hints.iter().map(|hint| State::decode(hint.message.1.clone()).unwrap());
        let dots =
            hints.flat_map(|state| state.writes.into_keys()).filter(|dot| dot.incarnation == incarnation);
        dots.map(|dot| dot.counter).chain([self.clock.highest(incarnation)]).max().unwrap()
    }

    /// Pulls everything from a source, without a break.
    pub(super) fn pull(&mut self, source: &Self, broken: Break) {
        let mut page = 0;
        while !self.take_page(source, &source.clock, page, broken) {
            page += 1;
        }
    }
}
