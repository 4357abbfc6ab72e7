//! Values of successive indexes, stored once for each run of equal ones: what an index of millions of entries
//! needs for what seldom changes (the term, the segment).

use std::collections::BTreeMap;

/// A value for every index from `first` to `end` (exclusive).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunMap<V> {
    /// Where each run starts; it ends where the next starts. The first key is `first` unless the map is
    /// empty.
    starts: BTreeMap<u64, V>,
    first: u64,
    end: u64,
}

impl<V> Default for RunMap<V> {
    fn default() -> Self {
        RunMap { starts: BTreeMap::new(), first: 0, end: 0 }
    }
}

impl<V: Copy + Eq> RunMap<V> {
    /// An empty map whose first index will be `first`.
    pub(crate) fn starting_at(first: u64) -> RunMap<V> {
        RunMap { starts: BTreeMap::new(), first, end: first }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first == self.end
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// The index after the last.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    pub(crate) fn get(&self, index: u64) -> Option<V> {
        if index < self.first || index >= self.end {
            return None;
        }
        self.starts.range(..=index).next_back().map(|(_, v)| *v)
    }

    /// Adds `count` indexes with that value at the end.
    pub(crate) fn push(&mut self, count: u64, value: V) {
        if count == 0 {
            return;
        }
        if self.starts.last_key_value().is_none_or(|(_, last)| *last != value) {
            self.starts.insert(self.end, value);
        }
        self.end += count;
    }

    /// Gives one index another value.
    pub(crate) fn set(&mut self, index: u64, value: V) {
        let Some(old) = self.get(index) else { return };
        if old == value {
            return;
        }
        let next = index + 1;
        if next < self.end {
            self.starts.entry(next).or_insert(old);
        }
        self.starts.insert(index, value);
        for at in [next, index] {
            let before = at.checked_sub(1).and_then(|before| self.get(before));
            if at > self.first && before.is_some() && self.starts.get(&at).copied() == before {
                self.starts.remove(&at);
            }
        }
    }

    /// Removes the indexes from `end` on.
    pub(crate) fn truncate(&mut self, end: u64) {
        if end >= self.end {
            return;
        }
        self.end = end.max(self.first);
        drop(self.starts.split_off(&self.end));
    }

    /// Removes the indexes before `first`.
    pub(crate) fn drop_before(&mut self, first: u64) {
        if first <= self.first {
            return;
        }
        let kept = self.get(first);
        self.starts = self.starts.split_off(&first);
        if let Some(value) = kept {
            self.starts.insert(first, value);
        }
        self.first = first;
        self.end = self.end.max(first);
    }

    /// The runs in order: first index, end, value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64, V)> {
        let ends = self.starts.keys().copied().skip(1).chain([self.end]);
        self.starts.iter().zip(ends).map(|((start, value), end)| (*start, end, *value))
    }

    /// Bytes of memory, about.
    pub(crate) fn memory_bytes(&self) -> usize {
        // A B-tree's nodes are between half full and full.
        self.starts.len() * 2 * (size_of::<u64>() + size_of::<V>())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Push(u64, u8),
        Set(u64, u8),
        Truncate(u64),
        DropBefore(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..6u64, 0..3u8).prop_map(|(n, v)| Step::Push(n, v)),
            4 => (0..60u64, 0..3u8).prop_map(|(i, v)| Step::Set(i, v)),
            1 => (0..60u64).prop_map(Step::Truncate),
            1 => (0..20u64).prop_map(Step::DropBefore),
        ]
    }

    proptest! {
        #[test]
        fn a_run_map_is_a_list(steps in proptest::collection::vec(step(), 0..80)) {
            let mut map = RunMap::starting_at(3);
            let mut first = 3u64;
            let mut list: Vec<u8> = Vec::new();
            for step in steps {
                match step {
                    Step::Push(n, v) => {
                        map.push(n, v);
                        list.extend((0..n).map(|_| v));
                    }
                    Step::Set(i, v) => {
                        map.set(i, v);
                        if let Some(place) = i.checked_sub(first).and_then(|p| list.get_mut(p as usize)) {
                            *place = v;
                        }
                    }
                    Step::Truncate(end) => {
                        map.truncate(end);
                        list.truncate(end.saturating_sub(first) as usize);
                    }
                    Step::DropBefore(to) => {
                        map.drop_before(to);
                        while first < to {
                            first += 1;
                            if !list.is_empty() {
                                list.remove(0);
                            }
                        }
                    }
                }
                let found: Vec<u8> = (map.first()..map.end()).map(|i| map.get(i).unwrap()).collect();
                prop_assert_eq!(&found, &list);
                prop_assert_eq!(map.first(), first);
                prop_assert!(map.get(map.end()).is_none());
                let runs: Vec<_> = map.iter().collect();
                prop_assert!(runs.windows(2).all(|p| p[0].1 == p[1].0 && p[0].2 != p[1].2), "{:?}", runs);
                prop_assert_eq!(runs.iter().map(|(a, b, _)| b - a).sum::<u64>(), list.len() as u64);
            }
        }
    }
}
