//! How much of a group is to be proposed on this node, or was and is not applied yet, by namespace. A
//! proposal is counted before it waits for anything and leaves the account when it is applied or can no
//! longer be, whether or not its caller still waits. So the queues behind it are bounded, and what is refused
//! here was never proposed.
//!
//! No namespace may fill the account: each may hold at most half of what the others leave. One alone gets a
//! half, two that flood get a third each, and so on, and a part stays free for those who come (the rule of
//! dynamic thresholds that shared switch buffers use: Choudhury and Hahne, 1998).

use std::collections::BTreeMap;

use kv_types::NamespaceId;

/// Entries and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Load {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

impl Load {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            entries: self.entries.saturating_add(other.entries),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    /// None if there was less.
    pub(crate) fn minus(self, other: Self) -> Option<Self> {
        Some(Self {
            entries: self.entries.checked_sub(other.entries)?,
            bytes: self.bytes.checked_sub(other.bytes)?,
        })
    }

    pub(crate) fn fits(self, bound: Self) -> bool {
        self.entries <= bound.entries && self.bytes <= bound.bytes
    }
}

/// A namespace may hold one part in so many of what the others leave.
const SHARE: u64 = 2;

/// Why a proposal is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The group has as much to apply as it may.
    Group,
    /// The namespace has as much to apply as it may while others could need the rest.
    Namespace,
}

/// The account of one group.
#[derive(Debug)]
pub(crate) struct Backlog {
    bound: Load,
    total: Load,
    by_namespace: BTreeMap<NamespaceId, Load>,
}

impl Backlog {
    pub(crate) fn new(bound: Load) -> Self {
        Self { bound, total: Load::default(), by_namespace: BTreeMap::new() }
    }

    /// What it holds at most.
    pub(crate) fn bound(&self) -> Load {
        self.bound
    }

    /// What is in the account.
    pub(crate) fn total(&self) -> Load {
        self.total
    }

    /// Counts a proposal, or says why there is no room. The first proposal of a namespace needs no share,
    /// only room; an empty account takes a proposal of any size, or it would never be applied.
    pub(crate) fn admit(&mut self, namespace: NamespaceId, bytes: u64) -> Result<(), Full> {
        let one = Load { entries: 1, bytes };
        let total = self.total.plus(one);
        if self.total.entries > 0 && !total.fits(self.bound) {
            return Err(Full::Group);
        }
        let held = self.by_namespace.get(&namespace).copied();
        if let Some(held) = held {
            let others = self.total.minus(held).unwrap_or_default();
            let left = self.bound.minus(others).unwrap_or_default();
            let share = Load { entries: left.entries / SHARE, bytes: left.bytes / SHARE };
            if !held.plus(one).fits(share) {
                return Err(Full::Namespace);
            }
        }
        self.total = total;
        self.by_namespace.insert(namespace, held.unwrap_or_default().plus(one));
        Ok(())
    }

    /// Takes out a proposal that was admitted.
    pub(crate) fn settle(&mut self, namespace: NamespaceId, bytes: u64) {
        let one = Load { entries: 1, bytes };
        let held = self.by_namespace.get(&namespace).and_then(|held| held.minus(one));
        let total = self.total.minus(one);
        assert!(held.is_some() && total.is_some(), "a proposal leaves the account once");
        self.total = total.unwrap_or_default();
        match held {
            Some(held) if held.entries > 0 => self.by_namespace.insert(namespace, held),
            _ => self.by_namespace.remove(&namespace),
        };
        assert_eq!(
            self.total.entries == 0,
            self.by_namespace.is_empty(),
            "the total is the sum of the namespaces"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUND: Load = Load { entries: 64, bytes: 64_000 };

    fn namespace(n: u64) -> NamespaceId {
        NamespaceId(n)
    }

    /// How many of its entries a namespace gets in until it is refused.
    fn flood(backlog: &mut Backlog, n: u64, bytes: u64) -> u64 {
        let mut admitted = 0;
        while backlog.admit(namespace(n), bytes).is_ok() {
            admitted += 1;
        }
        admitted
    }

    #[test]
    fn one_that_floods_leaves_half_and_two_leave_a_third() {
        let mut backlog = Backlog::new(BOUND);
        assert_eq!(flood(&mut backlog, 1, 10), 32);
        assert_eq!(backlog.admit(namespace(1), 10), Err(Full::Namespace));
        assert_eq!(flood(&mut backlog, 2, 10), 16);
        // What the first gave back it gets again only up to the new share.
        for _ in 0..32 {
            backlog.settle(namespace(1), 10);
        }
        assert_eq!(flood(&mut backlog, 1, 10), 24);
        assert_eq!(backlog.admit(namespace(3), 10), Ok(()));
    }

    #[test]
    fn bytes_are_bounded_as_entries_are() {
        let mut backlog = Backlog::new(BOUND);
        assert_eq!(flood(&mut backlog, 1, 1_000), 32);
        let mut backlog = Backlog::new(BOUND);
        assert_eq!(flood(&mut backlog, 1, 10_000), 3);
        assert_eq!(backlog.admit(namespace(2), 34_001), Err(Full::Group));
        assert_eq!(backlog.admit(namespace(2), 34_000), Ok(()));
        assert_eq!(backlog.total(), Load { entries: 4, bytes: 64_000 });
        // Nothing waits: even what is larger than the whole may pass, alone.
        let mut backlog = Backlog::new(BOUND);
        assert_eq!(backlog.admit(namespace(1), 100_000), Ok(()));
        assert_eq!(backlog.admit(namespace(2), 1), Err(Full::Group));
        backlog.settle(namespace(1), 100_000);
        assert_eq!(backlog.total(), Load::default());
    }

    #[test]
    #[should_panic(expected = "leaves the account once")]
    fn what_was_never_admitted_is_not_settled() {
        Backlog::new(BOUND).settle(namespace(1), 1);
    }

    proptest! {
        /// Whatever comes and goes in whatever order, the sum stays within the bound and equals what is held.
        #[test]
        fn the_sum_never_exceeds_the_bound(steps in prop::collection::vec((0u64..6, 1u64..9_000, any::<bool>()), 1..400)) {
            let mut backlog = Backlog::new(BOUND);
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (n, bytes, settle) in steps {
                if settle && !held.is_empty() {
                    let (n, bytes) = held.remove(usize::try_from(n).unwrap() % held.len());
                    backlog.settle(namespace(n), bytes);
                } else if backlog.admit(namespace(n), bytes).is_ok() {
                    held.push((n, bytes));
                }
                let sum = held.iter().map(|(_, bytes)| bytes).sum::<u64>();
                prop_assert_eq!(backlog.total(), Load { entries: held.len() as u64, bytes: sum });
                prop_assert!(backlog.total().fits(BOUND));
            }
        }

        /// Entries are applied in the order in which they were admitted, and every namespace asks again and
        /// again, the greedy ones many times in a row. A calm one is admitted before as much was applied as
        /// the account holds.
        #[test]
        fn no_namespace_with_demand_is_starved(
            greed in prop::collection::vec((1u64..4_000, 1usize..200), 1..12),
            calm_bytes in 1u64..4_000,
        ) {
            let mut backlog = Backlog::new(BOUND);
            let mut queue = std::collections::VecDeque::new();
            let calm = 1_000;
            let mut last_served = 0;
            for applied in 0..400u64 {
                for (n, (bytes, tries)) in greed.iter().enumerate() {
                    for _ in 0..*tries {
                        if backlog.admit(namespace(n as u64), *bytes).is_ok() {
                            queue.push_back((n as u64, *bytes));
                        }
                    }
                }
                if backlog.admit(namespace(calm), calm_bytes).is_ok() {
                    queue.push_back((calm, calm_bytes));
                    last_served = applied;
                }
                prop_assert!(applied - last_served <= BOUND.entries, "starved at {applied}");
                if let Some((n, bytes)) = queue.pop_front() {
                    backlog.settle(namespace(n), bytes);
                }
            }
        }
    }
}
