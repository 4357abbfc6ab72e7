//! What a replica keeps of one key, and how two copies become one. Everything that reaches a replica (writes,
//! hints, repairs, pulls) funnels into [`State::merge`].

use std::collections::BTreeMap;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::{Context, Dot, Hlc, NodeClock};
use crate::{NamespaceId, RequestId};

/// One of the concurrent values of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// When it was written.
    pub stamp: Hlc,
    /// The request that wrote it.
    pub request: RequestId,
    /// The value.
    pub value: Bytes,
}

/// Every value that nothing known supersedes, and one context that covers them and all that they superseded.
/// The context may hold dots of other keys of the ring partition: they name
/// none of its values, so they claim nothing about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The values by their dots.
    pub siblings: BTreeMap<Dot, Sibling>,
    /// Covers at least the dots of the siblings.
    pub context: Context,
}

impl Record {
    /// Takes over what the other knows. Commutative, associative, idempotent.
    pub fn merge(&mut self, other: &Self) {
        if crate::mutant!(MergeByArrival) && !other.siblings.is_empty() {
            self.siblings.clear();
            self.context = Context::new();
        }
        self.siblings.retain(|dot, _| other.siblings.contains_key(dot) || !other.context.covers(*dot));
        for (dot, sibling) in &other.siblings {
            if !self.context.covers(*dot) {
                self.siblings.insert(*dot, sibling.clone());
            }
        }
        self.context.merge(&other.context);
        if crate::mutant!(DropSibling)
            && let Some((youngest, _)) = self.siblings.iter().max_by_key(|(_, sibling)| sibling.stamp)
        {
            let youngest = *youngest;
            self.siblings.retain(|dot, _| *dot == youngest);
        }
    }

    /// Drops every value that the context covers and remembers that it is superseded.
    pub fn discard(&mut self, context: &Context) {
        self.siblings.retain(|dot, _| !context.covers(*dot));
        self.context.merge(context);
    }

    /// A write: supersedes what its context covers and adds one value, or none (a delete).
    ///
    /// It claims its own dot alone. What else its minter may claim comes from [`Record::fill`].
    pub fn update(&mut self, supersedes: &Context, dot: Dot, sibling: Option<Sibling>) {
        self.discard(supersedes);
        if crate::mutant!(IgnoreContext) {
            self.siblings.clear();
        }
        self.context.insert(dot);
        self.siblings.extend(sibling.map(|sibling| (dot, sibling)));
    }

    /// Adds what a primary has applied to what its record claims: a dot that its node clock has is of another
    /// key, or a value here, or superseded. Only for the node's own copy of the record.
    pub fn fill(&mut self, clock: &NodeClock) {
        self.context.merge(clock.dots());
    }

    /// Takes out of the context what [`Record::fill`] gives back. The dots of the values stay.
    pub fn strip(&mut self, clock: &NodeClock) {
        self.context.subtract(clock.dots());
        self.siblings.keys().for_each(|dot| self.context.insert(*dot));
    }

    /// As [`Record::strip`] of a record that was filled by that clock, in as few ranges as say the same: of
    /// what is ahead of the clock the gaps stay closed that the filled record did not have. A replica that
    /// lacks every other write would else write each of its gaps down with each row.
    ///
    /// Nothing is claimed that the filled record did not claim, and what lies between two dots that are ahead
    /// the clock has.
    pub fn strip_for_storage(&mut self, clock: &NodeClock) {
        let filled = self.context.clone();
        self.strip(clock);
        let own: Context = self.siblings.keys().copied().collect();
        if own == self.context {
            return;
        }
        self.context = filled.closing_gaps_of(&self.context.difference(&own));
        self.context.merge(&own);
    }

    /// Whether a stripped record says nothing that the node clock does not say: then it need not be kept.
    pub fn is_nothing(&self) -> bool {
        self.siblings.is_empty() && self.context.is_empty()
    }

    /// Whether a stripped record claims dots that the node clock does not have: it is to be stripped again
    /// once the clock has them.
    pub fn is_ahead(&self) -> bool {
        let mut own = Context::new();
        self.siblings.keys().for_each(|dot| own.insert(*dot));
        own != self.context
    }

    /// Whether a merge with the other would neither add a value here nor take one away.
    pub fn knows_values_of(&self, other: &Self) -> bool {
        other.siblings.keys().all(|dot| self.context.covers(*dot))
            && self.siblings.keys().all(|dot| other.siblings.contains_key(dot) || !other.context.covers(*dot))
    }

    /// The values that a read shows: one per request, in the order of their dots.
    pub fn values(&self) -> Vec<(Dot, &Sibling)> {
        let mut shown: Vec<(Dot, &Sibling)> = Vec::with_capacity(self.siblings.len());
        for (dot, sibling) in &self.siblings {
            if shown.iter().all(|(_, other)| other.request != sibling.request) {
                shown.push((*dot, sibling));
            }
        }
        shown
    }

    /// A hash of what a reader can see, 0 without values: equal on replicas that converged, however their
    /// contexts are written down. Digests of keys combine by exclusive or.
    pub fn digest(&self, namespace: NamespaceId, key: &[u8]) -> u64 {
        if self.siblings.is_empty() {
            return 0;
        }
        let mut hash = Xxh3::new();
        hash.update(&namespace.0.to_be_bytes());
        hash.update(key);
        for (dot, sibling) in &self.siblings {
            hash.update(&dot.incarnation.0.to_be_bytes());
            hash.update(&dot.counter.to_be_bytes());
            hash.update(&(sibling.value.len() as u64).to_be_bytes());
            hash.update(&sibling.value);
        }
        hash.digest()
    }
}

/// What a dot stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Write {
    /// The client's wall clock when the request was first issued, milliseconds since 1970.
    pub issued_at_ms: u64,
    /// The request.
    pub request: RequestId,
    /// A checksum of what it asked for, so that another request under the same id is noticed.
    pub body: u32,
}

/// What a client has seen of a key: what its next write supersedes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// All that was superseded or shown where it read.
    pub context: Context,
    /// What the dots of the values stood for that it was shown: so that its write kills their twins too.
    pub writes: BTreeMap<Dot, Write>,
}

/// How many superseded writes a state carries that leaves a primary, so that a replica that learns that a dot
/// was superseded also learns which request it stood for. The rest comes with the dot log.
pub const CARRIED_WRITES: usize = 16;

/// A record with the writes that it carries: the form in which copies travel, and in which fallbacks keep
/// them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// The record.
    pub record: Record,
    /// What dots of this key stand for: all live ones and some superseded ones. The dot log has all.
    pub writes: BTreeMap<Dot, Write>,
}

impl State {
    /// Takes over what the other knows. Commutative, associative, idempotent.
    pub fn merge(&mut self, other: &Self) {
        self.record.merge(&other.record);
        for (dot, write) in &other.writes {
            // A dot stands for one request; should two tellers disagree, both orders must agree on whom to
            // believe.
            self.writes.entry(*dot).and_modify(|mine| *mine = (*mine).max(*write)).or_insert(*write);
        }
    }

    /// Applies the rule of twins: a value is dead if another dot of its request was superseded. `known` adds
    /// the dots of a request that are known from elsewhere.
    pub fn bury_twins(&mut self, mut known: impl FnMut(RequestId) -> Vec<Dot>) {
        let record = &self.record;
        let dead = |dot: &Dot| record.context.covers(*dot) && !record.siblings.contains_key(dot);
        let doomed: Vec<Dot> = record
            .siblings
            .iter()
            .filter(|(_, sibling)| {
                self.writes.iter().any(|(twin, write)| write.request == sibling.request && dead(twin))
                    || known(sibling.request).iter().any(dead)
            })
            .map(|(dot, _)| *dot)
            .collect();
        for dot in doomed {
            self.record.siblings.remove(&dot);
            self.record.context.insert(dot);
        }
    }

    /// A write: supersedes what its client has seen and adds one value, or none (a delete).
    pub fn update(&mut self, seen: &Seen, dot: Dot, write: Write, sibling: Option<Sibling>) {
        self.record.update(&seen.context, dot, sibling);
        let known = seen.writes.iter().filter(|(dot, _)| seen.context.covers(**dot));
        self.writes.extend(known.map(|(dot, write)| (*dot, *write)));
        self.writes.insert(dot, write);
    }

    /// Whether the record has every write, or what superseded it. A dot beyond the record is one whose write
    /// has not come along: it says nothing yet.
    pub fn covers_its_writes(&self) -> bool {
        self.writes.keys().all(|dot| self.record.context.covers(*dot))
    }

    /// What a reader has seen.
    pub fn seen(&self) -> Seen {
        let mut writes = self.writes.clone();
        writes.retain(|dot, _| self.record.siblings.contains_key(dot));
        Seen { context: self.record.context.clone(), writes }
    }

    /// The writes whose effect is in the record: a replica that has merged this state has applied them.
    pub fn applied(&self) -> impl Iterator<Item = (Dot, Write)> + '_ {
        let covered = self.writes.iter().filter(|(dot, _)| self.record.context.covers(**dot));
        covered.map(|(dot, write)| (*dot, *write))
    }

    /// Adds what superseded dots of this key stand for, before the state leaves a primary: of those that the
    /// dot log has, the [`CARRIED_WRITES`] that were issued last.
    pub fn carry(&mut self, logged: impl IntoIterator<Item = (Dot, Write)>) {
        let live = &self.record.siblings;
        let superseded = logged.into_iter().filter(|(dot, _)| !live.contains_key(dot));
        let mut superseded: Vec<(Write, Dot)> = superseded.map(|(dot, write)| (write, dot)).collect();
        superseded.sort_unstable();
        let last = superseded.into_iter().rev().take(CARRIED_WRITES);
        self.writes.extend(last.map(|(write, dot)| (dot, write)));
    }

    /// Forgets what superseded dots stood for.
    pub fn forget_superseded(&mut self) {
        self.writes.retain(|dot, _| self.record.siblings.contains_key(dot));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::primary;
    use super::*;
    use crate::{ClientId, Incarnation};
    use proptest::prelude::*;

    fn dot(incarnation: u64, counter: u64) -> Dot {
        Dot { incarnation: Incarnation(incarnation), counter }
    }

    fn request(seq: u64) -> RequestId {
        RequestId { client_id: ClientId(7), seq }
    }

    /// What a dot stands for is a function of the dot, as in life; two dots share a request now and then.
    fn sibling(dot: Dot) -> Sibling {
        let seq = dot.incarnation.0 * 100 + dot.counter / 2;
        Sibling { stamp: Hlc(dot.counter), request: request(seq), value: Bytes::from(seq.to_string()) }
    }

    /// Any state in which the context covers the siblings.
    pub(crate) fn states() -> impl Strategy<Value = State> {
        let any_dot = || (1u64..4, 1u64..10).prop_map(|(i, c)| dot(i, c));
        let dots = |n| proptest::collection::vec(any_dot(), 0..n);
        (dots(5), dots(8), dots(4)).prop_map(|(live, covered, told)| {
            let mut state = State::default();
            state.record.context = live.iter().chain(&covered).copied().collect();
            state.record.siblings = live.iter().map(|d| (*d, sibling(*d))).collect();
            state.writes = live
                .iter()
                .chain(&told)
                .map(|d| (*d, Write { issued_at_ms: d.counter, request: sibling(*d).request, body: 1 }))
                .collect();
            state
        })
    }

    fn clocks() -> impl Strategy<Value = NodeClock> {
        proptest::collection::vec((1u64..4, 1u64..10), 0..16)
            .prop_map(|dots| NodeClock::of(dots.into_iter().map(|(i, c)| dot(i, c)).collect()))
    }

    fn merged(a: &State, b: &State) -> State {
        let mut out = a.clone();
        out.merge(b);
        out
    }

    proptest! {
        #[test]
        fn merge_is_commutative_associative_idempotent(a in states(), b in states(), c in states()) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &a), a.clone());
            prop_assert!(merged(&a, &b).record.knows_values_of(&a.record));
        }

        #[test]
        fn contexts_cover_their_values(a in states(), b in states()) {
            let mut m = merged(&a, &b);
            m.bury_twins(|_| Vec::new());
            prop_assert!(m.record.siblings.keys().all(|d| m.record.context.covers(*d)));
        }

        #[test]
        fn burying_commutes_with_learning(a in states(), b in states()) {
            let bury = |mut state: State| { state.bury_twins(|_| Vec::new()); state };
            // A replica that buries early, late or both ends with the same.
            prop_assert_eq!(bury(merged(&bury(a.clone()), &bury(b.clone()))).record.values().len(),
                            bury(merged(&bury(b), &bury(a))).record.values().len());
        }

        #[test]
        fn what_was_stripped_is_filled_again(a in states(), b in states(), c in clocks()) {
            let fill = |mut state: State| { state.record.fill(&c); state };
            let strip = |mut state: State| { state.record.strip(&c); state };
            let filled = fill(a.clone());
            prop_assert_eq!(fill(strip(filled.clone())), filled.clone());
            prop_assert_eq!(fill(strip(a.clone())), filled.clone(), "a record that was not filled loses nothing either");
            prop_assert_eq!(strip(strip(a.clone())), strip(a.clone()));
            prop_assert_eq!(strip(filled.clone()), strip(a.clone()));
            prop_assert!(strip(a.clone()).record.siblings.keys().all(|d| strip(a.clone()).record.context.covers(*d)));
            // It does not matter whether a copy went to disk between two merges.
            prop_assert_eq!(merged(&fill(strip(filled.clone())), &b), merged(&filled, &b));
        }

        #[test]
        fn what_is_stored_has_no_gap_that_the_filled_record_had_not(
            a in states(), c in clocks(), later in clocks()
        ) {
            let mut filled = a.record.clone();
            filled.fill(&c);
            let (mut stored, mut exact) = (filled.clone(), filled.clone());
            stored.strip_for_storage(&c);
            exact.strip(&c);
            prop_assert!(filled.context.contains_all(&stored.context), "nothing more is claimed");
            prop_assert!(stored.context.contains_all(&exact.context));
            prop_assert_eq!(stored.is_ahead(), exact.is_ahead());
            prop_assert_eq!(stored.is_nothing(), exact.is_nothing());
            let ranges = |record: &Record| record.context.ranges().len();
            prop_assert!(ranges(&stored) <= ranges(&exact).min(ranges(&filled) + filled.siblings.len()));
            let loaded = |mut record: Record, clock: &NodeClock| { record.fill(clock); record };
            prop_assert_eq!(loaded(stored.clone(), &c), filled.clone());
            let stored_again = |record: Record, clock: &NodeClock| {
                let mut record = loaded(record, clock);
                record.strip_for_storage(clock);
                record
            };
            prop_assert_eq!(stored_again(stored.clone(), &c), stored.clone(), "a row is what it was");
            // The clock gets on, and does so by leaps.
            let mut both = c.clone();
            both.adopt(&later);
            prop_assert_eq!(loaded(stored.clone(), &both), loaded(filled, &both));
            let again = stored_again(stored.clone(), &both);
            prop_assert!(ranges(&again) <= ranges(&stored) + stored.siblings.len(), "it never grows by that");
            let mut exact = loaded(exact, &both);
            exact.strip(&both);
            prop_assert_eq!(again.is_ahead(), exact.is_ahead());
        }

        #[test]
        fn a_row_that_goes_says_what_the_clock_says(a in states(), c in clocks()) {
            let kept = primary::keep(primary::load(Some(a.clone()), &c), &c);
            if kept.is_none() {
                prop_assert!(a.record.siblings.is_empty());
            }
            let mut again = primary::load(Some(a), &c);
            again.forget_superseded();
            prop_assert_eq!(primary::load(kept, &c), again);
        }

        #[test]
        fn to_know_all_values_is_to_learn_none(a in states(), b in states()) {
            let learned = merged(&a, &b).record.siblings != a.record.siblings;
            prop_assert_eq!(a.record.knows_values_of(&b.record), !learned);
        }

        #[test]
        fn the_last_superseded_writes_are_carried(a in states(), logged in 0u64..40) {
            let log: Vec<(Dot, Write)> = (1..=logged)
                .map(|c| (dot(1, c), Write { issued_at_ms: c, request: request(c), body: 1 }))
                .collect();
            let mut carried = a.clone();
            carried.forget_superseded();
            carried.carry(log.clone());
            let live = |d: &Dot| a.record.siblings.contains_key(d);
            let superseded = log.iter().rev().filter(|(d, _)| !live(d)).take(CARRIED_WRITES);
            let expected: std::collections::BTreeSet<Dot> =
                superseded.map(|(d, _)| *d).chain(a.record.siblings.keys().copied()).collect();
            prop_assert!(carried.writes.keys().eq(expected.iter()));
        }

        #[test]
        fn superseded_writes_are_forgotten_and_no_others(a in states()) {
            let mut kept = a.clone();
            kept.forget_superseded();
            prop_assert!(a.record.siblings.keys().eq(kept.writes.keys()));
            prop_assert_eq!(kept.record, a.record);
        }
    }

    #[test]
    fn an_update_supersedes_what_its_context_covers_and_nothing_else() {
        let mut record = Record::default();
        record.update(&Context::new(), dot(1, 1), Some(sibling(dot(1, 1))));
        let seen = record.context.clone();
        record.update(&Context::new(), dot(1, 2), Some(sibling(dot(1, 4))));
        assert_eq!(record.values().len(), 2, "a blind write is a sibling");
        record.update(&seen, dot(1, 3), None);
        assert_eq!(record.siblings.keys().copied().collect::<Vec<_>>(), vec![dot(1, 2)]);
    }

    #[test]
    fn a_write_claims_its_dot_alone() {
        let mut record = Record::default();
        record.update(&Context::new(), dot(9, 5), None);
        assert!(record.context.covers(dot(9, 5)) && !record.context.covers(dot(9, 4)));
    }

    #[test]
    fn two_dots_of_one_request_are_one_write() {
        let twin = || Sibling { stamp: Hlc(0), request: request(1), value: Bytes::from_static(b"v") };
        let told = Write { issued_at_ms: 0, request: request(1), body: 0 };
        let mut state = State::default();
        for d in [dot(1, 1), dot(2, 1)] {
            state.record.update(&Context::new(), d, Some(twin()));
            state.writes.insert(d, told);
        }
        state.bury_twins(|_| Vec::new());
        assert_eq!(
            (state.record.siblings.len(), state.record.values().len()),
            (2, 1),
            "kept twice, shown once"
        );

        // Somebody superseded one of them.
        let seen: Context = [dot(1, 1)].into_iter().collect();
        state.record.discard(&seen);
        let mut by_table = state.clone();
        state.bury_twins(|_| Vec::new());
        assert!(state.record.siblings.is_empty());
        by_table.writes.clear();
        by_table.bury_twins(|asked| if asked == request(1) { vec![dot(1, 1)] } else { Vec::new() });
        assert!(by_table.record.siblings.is_empty());
    }

    #[test]
    fn digests_see_values_and_not_contexts() {
        let mut a = Record::default();
        assert_eq!(a.digest(NamespaceId(1), b"k"), 0);
        a.update(&Context::new(), dot(1, 1), Some(sibling(dot(1, 1))));
        let mut b = a.clone();
        b.context.insert(dot(3, 3));
        assert_eq!(a.digest(NamespaceId(1), b"k"), b.digest(NamespaceId(1), b"k"));
        assert_ne!(a.digest(NamespaceId(1), b"k"), a.digest(NamespaceId(1), b"l"));
        assert_ne!(a.digest(NamespaceId(1), b"k"), a.digest(NamespaceId(2), b"k"));
    }
}
