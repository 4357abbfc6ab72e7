//! Which key an operation takes: few hot ones, so that clients meet, and none for long, so that the search of
//! a checker stays small. A key is left for a fresh one after so many operations (each key its own number, or
//! all would change at once), and also when so many of its operations are open or unknown that a checker
//! would have to try too many orders.

use std::sync::Mutex;

use crate::lock;

/// Bounds on what happens to one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyLimits {
    /// Keys in use at once.
    pub hot: usize,
    /// Operations on one key at most; each key takes between two thirds and all of them.
    pub operations: u64,
    /// Operations open on one key at once.
    pub open: u64,
    /// Unknown outcomes on one key.
    pub unknown: u64,
}

impl KeyLimits {
    /// At most ten processes and a thousand operations a key, as the checkers like it.
    pub fn new(hot: usize) -> Self {
        Self { hot: hot.max(1), operations: 1000, open: 10, unknown: 8 }
    }
}

/// The keys of one load, shared by its clients.
#[derive(Debug)]
pub struct Keys {
    prefix: String,
    limits: KeyLimits,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    slots: Vec<Slot>,
    used: Vec<String>,
}

#[derive(Debug)]
struct Slot {
    name: String,
    generation: u64,
    left: u64,
    open: u64,
    unknown: u64,
}

impl Keys {
    /// No key is used yet. Names begin with the prefix.
    pub fn new(prefix: &str, limits: KeyLimits) -> Self {
        let inner = Inner { slots: Vec::new(), used: Vec::new() };
        Self { prefix: prefix.to_owned(), limits, inner: Mutex::new(inner) }
    }

    /// A key for an operation that begins now; [`Keys::done`] must follow.
    pub fn take(&self, dice: &mut fastrand::Rng) -> String {
        let at = dice.usize(0..self.limits.hot.max(1));
        let jitter = dice.u64(0..=self.limits.operations / 3);
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        while inner.slots.len() <= at {
            let slot = self.slot(inner.slots.len(), 0, self.limits.operations.max(1));
            inner.used.push(slot.name.clone());
            inner.slots.push(slot);
        }
        let limits = &self.limits;
        let Some(slot) = inner.slots.get_mut(at) else { return self.prefix.clone() };
        if slot.left == 0 || slot.open >= limits.open || slot.unknown >= limits.unknown {
            *slot = self.slot(at, slot.generation + 1, limits.operations.saturating_sub(jitter).max(1));
            inner.used.push(slot.name.clone());
        }
        slot.left -= 1;
        slot.open += 1;
        slot.name.clone()
    }

    /// The operation on this key is over.
    pub fn done(&self, key: &str, unknown: bool) {
        let mut inner = lock(&self.inner);
        if let Some(slot) = inner.slots.iter_mut().find(|slot| slot.name == key) {
            slot.open = slot.open.saturating_sub(1);
            slot.unknown += u64::from(unknown);
        }
    }

    /// Every key that was used, in order of its first use.
    pub fn used(&self) -> Vec<String> {
        lock(&self.inner).used.clone()
    }

    /// The key in the first slot: one that is hot now.
    pub fn hot(&self) -> Option<String> {
        lock(&self.inner).slots.first().map(|slot| slot.name.clone())
    }

    fn slot(&self, at: usize, generation: u64, left: u64) -> Slot {
        let name = format!("{}{at}.{generation}", self.prefix);
        Slot { name, generation, left, open: 0, unknown: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn no_key_takes_more_than_its_bound_and_keys_change_at_different_times() {
        let limits = KeyLimits { hot: 3, operations: 100, open: 10, unknown: 8 };
        let keys = Keys::new("k", limits);
        let mut dice = fastrand::Rng::with_seed(1);
        let mut taken: BTreeMap<String, u64> = BTreeMap::new();
        for _ in 0..5_000 {
            let key = keys.take(&mut dice);
            *taken.entry(key.clone()).or_default() += 1;
            keys.done(&key, false);
        }
        assert!(taken.values().all(|count| *count <= 100), "{taken:?}");
        let retired: Vec<u64> = taken.values().copied().filter(|count| *count >= 66).collect();
        assert!(retired.len() > 40, "{taken:?}");
        assert!(retired.windows(2).any(|pair| pair[0] != pair[1]), "jittered: {retired:?}");
        let mut used = keys.used();
        used.sort();
        assert_eq!(used, taken.into_keys().collect::<Vec<_>>());
    }

    #[test]
    fn a_key_is_left_when_too_much_on_it_is_open_or_unknown() {
        let limits = KeyLimits { hot: 1, operations: 100, open: 3, unknown: 2 };
        let keys = Keys::new("k", limits);
        let mut dice = fastrand::Rng::with_seed(1);
        let taken: Vec<_> = (0..4).map(|_| keys.take(&mut dice)).collect();
        assert_eq!(taken, ["k0.0", "k0.0", "k0.0", "k0.1"]);
        keys.done("k0.0", true); // of a key that is no longer hot
        keys.done("k0.1", true);
        assert_eq!(keys.take(&mut dice), "k0.1");
        keys.done("k0.1", true);
        assert_eq!(keys.take(&mut dice), "k0.2");
        assert_eq!(keys.hot().unwrap(), "k0.2");
    }
}
