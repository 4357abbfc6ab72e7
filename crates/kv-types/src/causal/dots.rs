//! Sets of dots. A [`Context`] says what a value supersedes, a [`NodeClock`] what a replica has applied. Both
//! are the same set: ranges of counters by incarnation. A vector would claim dots that were never seen, and
//! did drop values in the model; a vector with a cloud of single dots grows with every gap.

use std::fmt;

use crate::Incarnation;
use crate::limits::MAX_CLOCK_RANGES;

/// The name of one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// The incarnation of the replica that minted it.
    pub incarnation: Incarnation,
    /// From 1, counted up per ring partition and incarnation.
    pub counter: u64,
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.incarnation, self.counter)
    }
}

/// The dots of one incarnation from one counter to another, both of them included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DotRange {
    /// Who minted them.
    pub incarnation: Incarnation,
    /// The first counter, at least 1.
    pub first: u64,
    /// The last counter, at least the first.
    pub last: u64,
}

impl DotRange {
    /// Whether all of it is before the dot.
    fn is_before(&self, dot: Dot) -> bool {
        (self.incarnation, self.last) < (dot.incarnation, dot.counter)
    }

    /// Whether it and a range that begins no earlier make one range.
    fn continues_in(&self, next: &Self) -> bool {
        self.incarnation == next.incarnation && next.first <= self.last.saturating_add(1)
    }
}

/// A set of dots as ranges that neither overlap nor touch, in order. The form is canonical: equal sets
/// compare equal. A look-up takes time logarithmic in the number of ranges, everything else linear.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct DotSet {
    ranges: Vec<DotRange>,
}

/// A causal context: the dots whose effect on a key is known.
pub type Context = DotSet;

impl DotSet {
    /// The set that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Its ranges, by incarnation and counter.
    pub fn ranges(&self) -> &[DotRange] {
        &self.ranges
    }

    /// The last dot of each range.
    pub fn last_dots(&self) -> impl Iterator<Item = Dot> + '_ {
        self.ranges.iter().map(|range| Dot { incarnation: range.incarnation, counter: range.last })
    }

    /// Whether the dot is in the set.
    pub fn covers(&self, dot: Dot) -> bool {
        self.range_at_or_after(dot)
            .is_some_and(|range| range.incarnation == dot.incarnation && range.first <= dot.counter)
    }

    /// Whether every dot of the other is in the set.
    pub fn contains_all(&self, other: &Self) -> bool {
        other.ranges.iter().all(|range| {
            let first = Dot { incarnation: range.incarnation, counter: range.first };
            self.range_at_or_after(first).is_some_and(|mine| {
                mine.incarnation == range.incarnation && mine.first <= range.first && range.last <= mine.last
            })
        })
    }

    /// Whether the two have a dot in common.
    pub fn meets(&self, other: &Self) -> bool {
        other.ranges.iter().any(|range| {
            let first = Dot { incarnation: range.incarnation, counter: range.first };
            self.range_at_or_after(first)
                .is_some_and(|mine| mine.incarnation == range.incarnation && mine.first <= range.last)
        })
    }

    /// The counter up to which every dot of that incarnation is in the set.
    pub fn base(&self, incarnation: Incarnation) -> u64 {
        let first = Dot { incarnation, counter: 1 };
        let range = self.range_at_or_after(first);
        range.filter(|range| range.incarnation == incarnation && range.first == 1).map_or(0, |r| r.last)
    }

    /// The highest counter of that incarnation in the set, 0 for none.
    pub fn highest(&self, incarnation: Incarnation) -> u64 {
        let after = self.ranges.partition_point(|range| range.incarnation <= incarnation);
        let last = after.checked_sub(1).and_then(|at| self.ranges.get(at));
        last.filter(|range| range.incarnation == incarnation).map_or(0, |range| range.last)
    }

    /// Adds a dot. One without number is none.
    pub fn insert(&mut self, dot: Dot) {
        self.insert_range(DotRange { incarnation: dot.incarnation, first: dot.counter, last: dot.counter });
    }

    /// Adds a range; an empty one, or one from 0, changes nothing.
    pub fn insert_range(&mut self, range: DotRange) {
        if range.first == 0 || range.last < range.first {
            return;
        }
        let mut joined = range;
        let from = self.ranges.partition_point(|mine| {
            mine.incarnation < range.incarnation
                || (mine.incarnation == range.incarnation && mine.last.saturating_add(1) < range.first)
        });
        let touched = self.ranges.iter().skip(from).take_while(|mine| range.continues_in(mine));
        let mut count = 0;
        for mine in touched {
            joined.first = joined.first.min(mine.first);
            joined.last = joined.last.max(mine.last);
            count += 1;
        }
        self.ranges.splice(from..from + count, [joined]);
    }

    /// Adds everything that the other holds.
    pub fn merge(&mut self, other: &Self) {
        if self.contains_all(other) {
            return;
        }
        let mut out: Vec<DotRange> = Vec::with_capacity(self.ranges.len() + other.ranges.len());
        let (mut mine, mut theirs) = (self.ranges.iter().peekable(), other.ranges.iter().peekable());
        loop {
            let next = match (mine.peek(), theirs.peek()) {
                (Some(a), Some(b)) if a <= b => mine.next(),
                (Some(_), None) => mine.next(),
                _ => theirs.next(),
            };
            let Some(next) = next else { break };
            match out.last_mut() {
                Some(last) if last.continues_in(next) => last.last = last.last.max(next.last),
                _ => out.push(*next),
            }
        }
        self.ranges = out;
    }

    /// Takes everything away that the other holds.
    pub fn subtract(&mut self, other: &Self) {
        let mut out = Vec::with_capacity(self.ranges.len());
        let mut holes = other.ranges.iter().peekable();
        for range in &self.ranges {
            let DotRange { incarnation, mut first, last } = *range;
            while holes.next_if(|hole| hole.is_before(Dot { incarnation, counter: first })).is_some() {}
            // One hole may reach over several ranges.
            let mut rest = true;
            for hole in holes.clone().take_while(|h| h.incarnation == incarnation && h.first <= last) {
                if first < hole.first {
                    out.push(DotRange { incarnation, first, last: hole.first - 1 });
                }
                rest = hole.last < last;
                first = hole.last.saturating_add(1);
            }
            if rest {
                out.push(DotRange { incarnation, first, last });
            }
        }
        self.ranges = out;
    }

    /// What it holds and the other does not.
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.subtract(other);
        out
    }

    /// The smallest set that holds `some`, of which this set holds all, with no gap that this set has not: of
    /// each range here, from the first to the last dot of `some` in it. So it has no more ranges than this
    /// set, however many `some` has.
    pub fn closing_gaps_of(&self, some: &Self) -> Self {
        let mut some = some.ranges.iter().peekable();
        let mut ranges = Vec::new();
        for whole in &self.ranges {
            let within =
                |range: &&DotRange| range.incarnation == whole.incarnation && range.last <= whole.last;
            let Some(first) = some.next_if(within) else { continue };
            let mut joined = *first;
            while let Some(next) = some.next_if(within) {
                joined.last = next.last;
            }
            ranges.push(joined);
        }
        Self { ranges }
    }

    /// The range that holds the dot, or else the first one after it.
    fn range_at_or_after(&self, dot: Dot) -> Option<&DotRange> {
        self.ranges.get(self.ranges.partition_point(|range| range.is_before(dot)))
    }
}

impl FromIterator<Dot> for DotSet {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut set = Self::new();
        dots.into_iter().for_each(|dot| set.insert(dot));
        set
    }
}

/// The dots whose effect one replica of a ring partition has applied, over all keys. What is in it is durable
/// here. It never claims a dot whose write was not applied, except those of which it is known that no write
/// will ever come (see [`NodeClock::seal`]).
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct NodeClock {
    dots: DotSet,
}

impl NodeClock {
    /// Nothing applied.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its dots.
    pub fn dots(&self) -> &DotSet {
        &self.dots
    }

    /// Whether nothing was applied.
    pub fn is_empty(&self) -> bool {
        self.dots.is_empty()
    }

    /// Whether the dot was applied.
    pub fn has(&self, dot: Dot) -> bool {
        self.dots.covers(dot)
    }

    /// The counter up to which everything of that incarnation was applied.
    pub fn base(&self, incarnation: Incarnation) -> u64 {
        self.dots.base(incarnation)
    }

    /// The highest counter of that incarnation, 0 for none.
    pub fn highest(&self, incarnation: Incarnation) -> u64 {
        self.dots.highest(incarnation)
    }

    /// Adds a dot whose write was applied.
    pub fn add(&mut self, dot: Dot) {
        self.dots.insert(dot);
    }

    /// Adds the clock of a replica whose whole state was merged here, all of its pages: never sooner.
    pub fn adopt(&mut self, other: &Self) {
        self.dots.merge(&other.dots);
    }

    /// Adds every dot of an incarnation up to a counter, those that are missing too: each of them is lost,
    /// and was never seen but by a client. That holds once the incarnation mints nothing below that counter
    /// any more, all replicas have applied the same of it, and no hint holds any other.
    pub fn seal(&mut self, incarnation: Incarnation, last: u64) {
        self.dots.insert_range(DotRange { incarnation, first: 1, last });
    }

    /// Whether the dot may be added: a clock has at most [`MAX_CLOCK_RANGES`] ranges. A replica with so many
    /// gaps has to learn what it lacks before it takes more.
    pub fn has_room_for(&self, dot: Dot) -> bool {
        let before = Dot { counter: dot.counter.saturating_sub(1), ..dot };
        let after = Dot { counter: dot.counter.saturating_add(1), ..dot };
        self.dots.ranges().len() < MAX_CLOCK_RANGES || [before, dot, after].iter().any(|dot| self.has(*dot))
    }

    /// The clock of a replica that has not applied these.
    pub fn without(&self, dots: &DotSet) -> Self {
        Self { dots: self.dots.difference(dots) }
    }

    /// The clock of a replica that has applied these and nothing else.
    pub fn of(dots: DotSet) -> Self {
        Self { dots }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    type Dots = BTreeSet<(u64, u64)>;

    fn dot((incarnation, counter): (u64, u64)) -> Dot {
        Dot { incarnation: Incarnation(incarnation), counter }
    }

    fn dots() -> impl Strategy<Value = Dots> {
        let counter = prop_oneof![1u64..12, (u64::MAX - 3)..=u64::MAX];
        proptest::collection::btree_set((1u64..4, counter), 0..24)
    }

    fn set(dots: &Dots) -> DotSet {
        dots.iter().rev().map(|d| dot(*d)).collect()
    }

    fn is_canonical(set: &DotSet) -> bool {
        let ordered = |pair: &[DotRange]| {
            (pair[0].incarnation, pair[0].last.saturating_add(1)) < (pair[1].incarnation, pair[1].first)
        };
        set.ranges().windows(2).all(ordered) && set.ranges().iter().all(|r| 0 < r.first && r.first <= r.last)
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_dots(a in dots(), b in dots()) {
            let (sa, sb) = (set(&a), set(&b));
            let mut merged = sa.clone();
            merged.merge(&sb);
            prop_assert_eq!(&merged, &set(&a.union(&b).copied().collect()));
            let rest = sa.difference(&sb);
            prop_assert_eq!(&rest, &set(&a.difference(&b).copied().collect()));
            prop_assert!(is_canonical(&sa) && is_canonical(&merged) && is_canonical(&rest));
            prop_assert_eq!(sa.contains_all(&sb), b.is_subset(&a));
            prop_assert_eq!(sa.meets(&sb), !a.is_disjoint(&b));
            for i in 0..5 {
                let of_i = |d: &&(u64, u64)| d.0 == i;
                let highest = a.iter().filter(of_i).map(|d| d.1).max().unwrap_or(0);
                prop_assert_eq!(sa.highest(Incarnation(i)), highest);
                let base = (1..).take_while(|c| a.contains(&(i, *c))).last().unwrap_or(0);
                prop_assert_eq!(sa.base(Incarnation(i)), base);
                for c in (0..14).chain(u64::MAX - 4..=u64::MAX) {
                    prop_assert_eq!(sa.covers(dot((i, c))), a.contains(&(i, c)));
                }
            }
        }

        #[test]
        fn union_and_difference_obey_their_laws(a in dots(), b in dots(), c in dots()) {
            let (a, b, c) = (set(&a), set(&b), set(&c));
            let union = |x: &DotSet, y: &DotSet| { let mut out = x.clone(); out.merge(y); out };
            prop_assert_eq!(union(&a, &b), union(&b, &a));
            prop_assert_eq!(union(&union(&a, &b), &c), union(&a, &union(&b, &c)));
            prop_assert_eq!(union(&a, &a), a.clone());
            prop_assert_eq!(a.difference(&union(&b, &c)), a.difference(&b).difference(&c));
            prop_assert_eq!(union(&a.difference(&b), &b), union(&a, &b));
            prop_assert!(a.difference(&a).is_empty());
        }

        #[test]
        fn gaps_are_closed_within_ranges_and_nowhere_else(a in dots(), b in dots()) {
            let (whole, some) = (set(&a), set(&a.intersection(&b).copied().collect()));
            let closed = whole.closing_gaps_of(&some);
            prop_assert!(is_canonical(&closed));
            prop_assert!(whole.contains_all(&closed) && closed.contains_all(&some));
            prop_assert!(closed.ranges().len() <= whole.ranges().len().min(some.ranges().len()));
            // Nothing smaller would do: each range begins and ends with a dot that was asked for.
            for range in closed.ranges() {
                let of = |counter| some.covers(Dot { incarnation: range.incarnation, counter });
                prop_assert!(of(range.first) && of(range.last));
            }
            prop_assert_eq!(whole.closing_gaps_of(&closed), closed);
        }

        #[test]
        fn ranges_are_many_dots(ranges in proptest::collection::vec((1u64..3, 0u64..9, 0u64..5), 0..12)) {
            let (mut by_range, mut by_dot) = (DotSet::new(), DotSet::new());
            for (incarnation, first, more) in ranges {
                let incarnation = Incarnation(incarnation);
                by_range.insert_range(DotRange { incarnation, first, last: first + more });
                (first..=first + more).filter(|_| first > 0).for_each(|counter| by_dot.insert(Dot { incarnation, counter }));
            }
            prop_assert!(is_canonical(&by_range));
            prop_assert_eq!(by_range, by_dot);
        }
    }

    #[test]
    fn a_sealed_incarnation_is_one_range() {
        let mut clock = NodeClock::new();
        [3, 7, 9].into_iter().for_each(|counter| clock.add(dot((1, counter))));
        assert_eq!(clock.dots().ranges().len(), 3);
        clock.seal(Incarnation(1), u64::MAX);
        clock.seal(Incarnation(2), 0);
        assert_eq!(clock.dots().ranges().len(), 1);
        assert!(clock.has(dot((1, 8))) && !clock.has(dot((2, 1))));
    }
}
