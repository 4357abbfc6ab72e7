//! Sets of dots. A [`Context`] says what a value supersedes; a [`NodeClock`] says what a replica has applied.
//! Both are a contiguous part and the rest: a version vector alone would claim dots that were never seen, and
//! did drop values in the model.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::Incarnation;

/// The name of one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// The incarnation of the replica that minted it.
    pub incarnation: Incarnation,
    /// From 1, contiguous per ring partition and incarnation.
    pub counter: u64,
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.incarnation, self.counter)
    }
}

/// A causal context: a set of dots as a version vector plus a cloud of single dots. The form is canonical
/// (the cloud holds nothing that the vector covers or that continues it), so equal sets compare equal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Context {
    vector: BTreeMap<Incarnation, u64>,
    cloud: BTreeSet<Dot>,
}

impl Context {
    /// The set that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.vector.is_empty() && self.cloud.is_empty()
    }

    /// By incarnation, the counter up to which every dot is in the set.
    pub fn vector(&self) -> &BTreeMap<Incarnation, u64> {
        &self.vector
    }

    /// The dots beyond the vector.
    pub fn cloud(&self) -> &BTreeSet<Dot> {
        &self.cloud
    }

    /// Whether the dot is in the set.
    pub fn covers(&self, dot: Dot) -> bool {
        dot.counter <= self.base(dot.incarnation) || self.cloud.contains(&dot)
    }

    /// The highest counter of that incarnation in the set, 0 for none.
    pub fn highest(&self, incarnation: Incarnation) -> u64 {
        let last = Dot { incarnation, counter: u64::MAX };
        let first = Dot { incarnation, counter: 0 };
        let cloud = self.cloud.range(first..=last).next_back().map_or(0, |dot| dot.counter);
        self.base(incarnation).max(cloud)
    }

    /// Adds a single dot.
    pub fn insert(&mut self, dot: Dot) {
        if !self.covers(dot) {
            self.cloud.insert(dot);
            self.compact(dot.incarnation);
        }
    }

    /// Adds every dot of an incarnation up to a counter: only who has seen them all may claim that, hence
    /// only the primary that minted them.
    pub fn claim_through(&mut self, dot: Dot) {
        if dot.counter > self.base(dot.incarnation) {
            self.vector.insert(dot.incarnation, dot.counter);
            self.compact(dot.incarnation);
        }
    }

    /// Adds everything that the other holds.
    pub fn merge(&mut self, other: &Self) {
        for (incarnation, counter) in &other.vector {
            self.claim_through(Dot { incarnation: *incarnation, counter: *counter });
        }
        for dot in &other.cloud {
            self.insert(*dot);
        }
    }

    fn base(&self, incarnation: Incarnation) -> u64 {
        self.vector.get(&incarnation).copied().unwrap_or(0)
    }

    /// Drops what the vector covers and lets it grow over what continues it.
    fn compact(&mut self, incarnation: Incarnation) {
        let mut base = self.base(incarnation);
        let from = Dot { incarnation, counter: 0 };
        while let Some(dot) = self.cloud.range(from..).next().copied() {
            if dot.incarnation != incarnation || dot.counter > base.saturating_add(1) {
                break;
            }
            base = base.max(dot.counter);
            self.cloud.remove(&dot);
        }
        if base > 0 {
            self.vector.insert(incarnation, base);
        }
    }
}

impl FromIterator<Dot> for Context {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut context = Self::new();
        dots.into_iter().for_each(|dot| context.insert(dot));
        context
    }
}

/// The dots whose effect one replica of a ring partition has applied, over all keys: per incarnation disjoint
/// ranges that do not touch. What is in it is durable here; it never claims a dot whose write was not
/// applied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeClock {
    /// By incarnation: first counter of a range to its last.
    seen: BTreeMap<Incarnation, BTreeMap<u64, u64>>,
}

impl NodeClock {
    /// Nothing applied.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing was applied.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Whether the dot was applied.
    pub fn has(&self, dot: Dot) -> bool {
        self.seen
            .get(&dot.incarnation)
            .and_then(|ranges| ranges.range(..=dot.counter).next_back())
            .is_some_and(|(_, last)| dot.counter <= *last)
    }

    /// The counter up to which everything of that incarnation was applied.
    pub fn base(&self, incarnation: Incarnation) -> u64 {
        self.seen.get(&incarnation).and_then(|ranges| ranges.get(&1)).copied().unwrap_or(0)
    }

    /// The highest counter of that incarnation, 0 for none.
    pub fn highest(&self, incarnation: Incarnation) -> u64 {
        self.seen.get(&incarnation).and_then(|ranges| ranges.values().next_back()).copied().unwrap_or(0)
    }

    /// Adds a dot whose write was applied.
    pub fn add(&mut self, dot: Dot) {
        self.add_range(dot.incarnation, dot.counter, dot.counter);
    }

    /// Adds the clock of a replica whose whole state was merged here.
    pub fn adopt(&mut self, other: &Self) {
        for (incarnation, first, last) in other.ranges() {
            self.add_range(incarnation, first, last);
        }
    }

    /// All ranges in order: incarnation, first and last counter.
    pub fn ranges(&self) -> impl Iterator<Item = (Incarnation, u64, u64)> + '_ {
        self.seen.iter().flat_map(|(incarnation, ranges)| {
            ranges.iter().map(|(first, last)| (*incarnation, *first, *last))
        })
    }

    pub(super) fn add_range(&mut self, incarnation: Incarnation, mut first: u64, mut last: u64) {
        if first == 0 || last < first {
            return;
        }
        let ranges = self.seen.entry(incarnation).or_default();
        // Every range that overlaps or touches becomes one with the new one.
        while let Some((from, to)) =
            ranges.range(..=last.saturating_add(1)).next_back().map(|(f, t)| (*f, *t))
        {
            if to.saturating_add(1) < first {
                break;
            }
            ranges.remove(&from);
            first = first.min(from);
            last = last.max(to);
        }
        ranges.insert(first, last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dot(incarnation: u64, counter: u64) -> Dot {
        Dot { incarnation: Incarnation(incarnation), counter }
    }

    fn dots() -> impl Strategy<Value = BTreeSet<Dot>> {
        proptest::collection::btree_set((1u64..4, 1u64..12).prop_map(|(i, c)| dot(i, c)), 0..24)
    }

    proptest! {
        #[test]
        fn contexts_are_sets_of_dots(a in dots(), b in dots()) {
            let (ca, cb): (Context, Context) = (a.iter().copied().collect(), b.iter().copied().collect());
            let union: Context = a.union(&b).copied().collect();
            let mut merged = ca.clone();
            merged.merge(&cb);
            prop_assert_eq!(&merged, &union);
            for i in 1..4 {
                for c in 1..14 {
                    prop_assert_eq!(ca.covers(dot(i, c)), a.contains(&dot(i, c)));
                }
                let highest = a.iter().filter(|d| d.incarnation.0 == i).map(|d| d.counter).max().unwrap_or(0);
                prop_assert_eq!(ca.highest(Incarnation(i)), highest);
            }
        }

        #[test]
        fn node_clocks_are_sets_of_dots(a in dots(), b in dots()) {
            let clock = |dots: &BTreeSet<Dot>| {
                let mut clock = NodeClock::new();
                dots.iter().rev().for_each(|dot| clock.add(*dot));
                clock
            };
            let mut merged = clock(&a);
            merged.adopt(&clock(&b));
            prop_assert_eq!(&merged, &clock(&a.union(&b).copied().collect()));
            for i in 1..4 {
                for c in 1..14 {
                    prop_assert_eq!(merged.has(dot(i, c)), a.contains(&dot(i, c)) || b.contains(&dot(i, c)));
                }
                let base = (1..).take_while(|c| merged.has(dot(i, *c))).last().unwrap_or(0);
                prop_assert_eq!(merged.base(Incarnation(i)), base);
            }
        }
    }

    #[test]
    fn the_cloud_joins_the_vector_only_where_it_continues_it() {
        let mut context = Context::new();
        context.insert(dot(1, 3));
        assert_eq!((context.vector().len(), context.cloud().len()), (0, 1));
        context.claim_through(dot(1, 2));
        assert_eq!((context.vector()[&Incarnation(1)], context.cloud().len()), (3, 0));
        context.insert(dot(1, u64::MAX));
        context.claim_through(dot(1, u64::MAX - 1));
        assert_eq!((context.vector()[&Incarnation(1)], context.cloud().len()), (u64::MAX, 0));
    }
}
