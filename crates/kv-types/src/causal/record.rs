//! What a replica keeps of one key, and how two copies become one. Everything that reaches a replica (writes,
//! hints, repairs, pulls) funnels into [`State::merge`].

use std::collections::BTreeMap;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::{Context, Dot, Hlc};
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
/// A deleted key is a record without values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The values by their dots.
    pub siblings: BTreeMap<Dot, Sibling>,
    /// Covers at least the dots of the siblings.
    pub context: Context,
}

/// Who mints a dot decides what its context may claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Minter {
    /// A primary has applied every dot that it minted, hence claims them all.
    Primary,
    /// A fallback forgets what it delivered, hence claims the new dot alone.
    Fallback,
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
    pub fn update(&mut self, supersedes: &Context, dot: Dot, sibling: Option<Sibling>, minter: Minter) {
        self.discard(supersedes);
        if crate::mutant!(IgnoreContext) {
            self.siblings.clear();
        }
        match minter {
            Minter::Primary => self.context.claim_through(dot),
            Minter::Fallback => self.context.insert(dot),
        }
        self.siblings.extend(sibling.map(|sibling| (dot, sibling)));
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Write {
    /// The client's wall clock when the request was first issued, milliseconds since 1970.
    pub issued_at_ms: u64,
    /// The request.
    pub request: RequestId,
    /// A checksum of what it asked for, so that another request under the same id is noticed.
    pub body: u32,
}

/// How many of a record's last writes stay beside it, so that a replica that learns that a dot was superseded
/// also learns which request it stood for. The full list is the request table's.
pub const RECENT_WRITES: usize = 16;

/// A record with the writes that it carries: the form in which copies travel, and in which fallbacks keep
/// them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// The record.
    pub record: Record,
    /// What its dots stand for: all live ones and some superseded ones.
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
    /// the dots of a request that stand in the request table.
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

    /// Keeps the writes of all live dots, and of the superseded ones the `keep` that were issued last.
    pub fn trim_writes(&mut self, keep: usize) {
        let live = &self.record.siblings;
        let superseded = self.writes.iter().filter(|(dot, _)| !live.contains_key(dot));
        let mut old: Vec<(Write, Dot)> = superseded.map(|(dot, write)| (*write, *dot)).collect();
        old.sort();
        let surplus = old.len().saturating_sub(keep);
        for (_, dot) in old.into_iter().take(surplus) {
            self.writes.remove(&dot);
        }
    }

    /// Whether the record has every write, or what superseded it. A dot beyond the record is one whose write
    /// has not come along: it says nothing yet.
    pub fn covers_its_writes(&self) -> bool {
        self.writes.keys().all(|dot| self.record.context.covers(*dot))
    }

    /// Whether a merge with `other` would teach this one nothing about values.
    pub fn knows_all_of(&self, other: &Self) -> bool {
        let mut merged = self.record.clone();
        merged.merge(&other.record);
        merged == self.record
    }
}

#[cfg(test)]
pub(super) mod tests {
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
            prop_assert!(merged(&a, &b).knows_all_of(&a));
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
        fn trimming_keeps_live_dots(a in states(), keep in 0usize..6) {
            let mut t = a.clone();
            t.trim_writes(keep);
            prop_assert!(a.record.siblings.keys().all(|d| t.writes.contains_key(d)));
            prop_assert!(t.writes.len() <= keep + a.record.siblings.len());
        }
    }

    #[test]
    fn an_update_supersedes_what_its_context_covers_and_nothing_else() {
        let mut record = Record::default();
        record.update(&Context::new(), dot(1, 1), Some(sibling(dot(1, 1))), Minter::Primary);
        let seen = record.context.clone();
        record.update(&Context::new(), dot(1, 2), Some(sibling(dot(1, 4))), Minter::Primary);
        assert_eq!(record.values().len(), 2, "a blind write is a sibling");
        record.update(&seen, dot(1, 3), None, Minter::Primary);
        assert_eq!(record.siblings.keys().copied().collect::<Vec<_>>(), vec![dot(1, 2)]);
    }

    #[test]
    fn a_fallback_claims_its_dot_alone() {
        let mut record = Record::default();
        record.update(&Context::new(), dot(9, 5), None, Minter::Fallback);
        assert!(record.context.covers(dot(9, 5)) && !record.context.covers(dot(9, 4)));
    }

    #[test]
    fn two_dots_of_one_request_are_one_write() {
        let twin = || Sibling { stamp: Hlc(0), request: request(1), value: Bytes::from_static(b"v") };
        let told = Write { issued_at_ms: 0, request: request(1), body: 0 };
        let mut state = State::default();
        for d in [dot(1, 1), dot(2, 1)] {
            state.record.update(&Context::new(), d, Some(twin()), Minter::Primary);
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
        a.update(&Context::new(), dot(1, 1), Some(sibling(dot(1, 1))), Minter::Primary);
        let mut b = a.clone();
        b.context.insert(dot(3, 3));
        assert_eq!(a.digest(NamespaceId(1), b"k"), b.digest(NamespaceId(1), b"k"));
        assert_ne!(a.digest(NamespaceId(1), b"k"), a.digest(NamespaceId(1), b"l"));
        assert_ne!(a.digest(NamespaceId(1), b"k"), a.digest(NamespaceId(2), b"k"));
    }
}
