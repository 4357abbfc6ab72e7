//! Who may come in, as a value: no clock, no socket, no lock. It keeps two kinds of account, of the requests
//! that are under way and of the bytes that they make this node hold, and no holder gets more than a share of
//! either.
//!
//! *Connections* share what arrives and what waits to be sent. *Classes* (each namespace, administration,
//! health, reflection, names that are unknown) share what is being worked on, and so do the *kinds* of
//! classes: strong, available, other. The rule is that of dynamic thresholds (Choudhury and Hahne, 1998): a
//! holder may take more only while it holds no more than what is free. One holder alone gets half, k equal
//! ones 1/(k+1) each, and after k floods, one begun after the other, 1/2^k is free still: there is room for a
//! calm one without a reservation that would lie idle.

use std::collections::HashMap;
use std::hash::Hash;

use kv_types::{Mode, NamespaceId};

/// An amount of requests and of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Amount {
    /// Requests.
    pub(crate) requests: usize,
    /// Bytes.
    pub(crate) bytes: usize,
}

impl Amount {
    pub(crate) const ONE: Self = Self { requests: 1, bytes: 0 };

    pub(crate) fn bytes(bytes: usize) -> Self {
        Self { requests: 0, bytes }
    }

    fn plus(self, more: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(more.requests),
            bytes: self.bytes.saturating_add(more.bytes),
        }
    }

    /// What is left of it; nothing when `less` is more.
    fn minus(self, less: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(less.requests),
            bytes: self.bytes.saturating_sub(less.bytes),
        }
    }

    fn covers(self, other: Self) -> bool {
        self.requests >= other.requests && self.bytes >= other.bytes
    }
}

/// What a request is counted under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Operations of a namespace.
    Namespace(Mode, NamespaceId),
    /// Requests for a namespace that is not known here.
    Unknown,
    /// Administration.
    Admin,
    /// Health checks.
    Health,
    /// Questions about the interface itself.
    Reflection,
}

/// Classes that share a bulkhead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Mode(bool),
    Other,
}

impl Class {
    fn kind(self) -> Kind {
        match self {
            Self::Namespace(mode, _) => Kind::Mode(mode == Mode::Strong),
            Self::Unknown | Self::Admin | Self::Health | Self::Reflection => Kind::Other,
        }
    }
}

/// Which bound was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The share of the connection.
    Connection,
    /// The share of the class.
    Class,
}

/// One account: what may be held in all, and what each holder holds.
#[derive(Debug)]
struct Shares<K> {
    most: Amount,
    held: Amount,
    by_holder: HashMap<K, Amount>,
}

impl<K: Copy + Eq + Hash> Shares<K> {
    fn new(most: Amount) -> Self {
        Self { most, held: Amount::default(), by_holder: HashMap::new() }
    }

    fn of(&self, holder: K) -> Amount {
        self.by_holder.get(&holder).copied().unwrap_or_default()
    }

    /// What this holder may take now: what is free, less what it holds.
    fn room(&self, holder: K) -> Amount {
        self.most.minus(self.held).minus(self.of(holder))
    }

    fn add(&mut self, holder: K, more: Amount) {
        self.held = self.held.plus(more);
        let of = self.by_holder.entry(holder).or_default();
        *of = of.plus(more);
    }

    fn remove(&mut self, holder: K, less: Amount) {
        let of = self.of(holder);
        assert!(of.covers(less) && self.held.covers(less), "more is given back than was taken");
        self.held = self.held.minus(less);
        if of == less {
            self.by_holder.remove(&holder);
        } else {
            self.by_holder.insert(holder, of.minus(less));
        }
    }
}

/// Everything that is under way.
#[derive(Debug)]
pub(crate) struct Admission {
    connections: Shares<u64>,
    kinds: Shares<Kind>,
    classes: HashMap<Class, Amount>,
    /// The most bytes that connections ever held together.
    most_bytes: usize,
}

impl Admission {
    /// At most `streams` requests on all connections, `requests` of them being worked on, and `bytes`.
    pub(crate) fn new(streams: usize, requests: usize, bytes: usize) -> Self {
        Self {
            connections: Shares::new(Amount { requests: streams, bytes }),
            kinds: Shares::new(Amount { requests, bytes }),
            classes: HashMap::new(),
            most_bytes: 0,
        }
    }

    /// Requests and bytes of all connections now, and the most bytes so far.
    pub(crate) fn held(&self) -> (Amount, usize) {
        (self.connections.held, self.most_bytes)
    }

    /// Requests and bytes of all classes now.
    #[cfg(test)]
    fn worked_on(&self) -> Amount {
        self.kinds.held
    }

    /// Counts `more` under a connection.
    pub(crate) fn arrive(&mut self, connection: u64, more: Amount) -> Result<(), Full> {
        if !self.connections.room(connection).covers(more) {
            return Err(Full::Connection);
        }
        self.arrive_anyway(connection, more);
        Ok(())
    }

    /// The same beyond every bound: for the answer of a write that was applied, which must not be lost.
    pub(crate) fn arrive_anyway(&mut self, connection: u64, more: Amount) {
        self.connections.add(connection, more);
        self.most_bytes = self.most_bytes.max(self.connections.held.bytes);
    }

    /// Counts `more` under a class. The room of its kind is shared by its classes by the same rule.
    pub(crate) fn enter(&mut self, class: Class, more: Amount) -> Result<(), Full> {
        let of = self.classes.get(&class).copied().unwrap_or_default();
        if !self.kinds.room(class.kind()).minus(of).covers(more) {
            return Err(Full::Class);
        }
        self.enter_anyway(class, more);
        Ok(())
    }

    /// The same beyond every bound.
    pub(crate) fn enter_anyway(&mut self, class: Class, more: Amount) {
        self.kinds.add(class.kind(), more);
        let of = self.classes.entry(class).or_default();
        *of = of.plus(more);
    }

    /// Gives back what was counted under a connection.
    pub(crate) fn depart(&mut self, connection: u64, less: Amount) {
        self.connections.remove(connection, less);
    }

    /// Gives back what was counted under a class.
    pub(crate) fn leave(&mut self, class: Class, less: Amount) {
        self.kinds.remove(class.kind(), less);
        let of = self.classes.get(&class).copied().unwrap_or_default();
        assert!(of.covers(less), "more is given back than was taken");
        if of == less {
            self.classes.remove(&class);
        } else {
            self.classes.insert(class, of.minus(less));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REQUESTS: usize = 1_024;
    const BYTES: usize = 1 << 20;

    fn admission() -> Admission {
        Admission::new(2 * REQUESTS, REQUESTS, BYTES)
    }

    fn strong(id: u64) -> Class {
        Class::Namespace(Mode::Strong, NamespaceId(id))
    }

    fn available(id: u64) -> Class {
        Class::Namespace(Mode::Available, NamespaceId(id))
    }

    fn flood(admission: &mut Admission, class: Class, each: Amount) -> usize {
        (0..10 * REQUESTS).take_while(|_| admission.enter(class, each).is_ok()).count()
    }

    #[test]
    fn one_flood_takes_a_third_and_leaves_room_for_its_neighbours() {
        let mut admission = admission();
        assert_eq!(flood(&mut admission, strong(1), Amount::ONE), REQUESTS / 3 + 1);
        // Another namespace of the same mode, and each of the others.
        let others = [Class::Admin, Class::Health, Class::Reflection, Class::Unknown];
        let neighbours = [strong(2), available(3)].into_iter().chain(others);
        let share = 320 / neighbours.clone().count();
        for class in neighbours {
            for _ in 0..share {
                admission.enter(class, Amount::ONE).unwrap();
            }
        }
        assert_eq!(admission.enter(strong(1), Amount::ONE), Err(Full::Class));
    }

    #[test]
    fn a_mode_that_is_flooded_through_many_namespaces_leaves_room_for_the_other() {
        let mut admission = admission();
        for id in 0..500 {
            flood(&mut admission, strong(id), Amount::ONE);
        }
        assert!(admission.worked_on().requests <= REQUESTS / 2);
        assert!(flood(&mut admission, available(1_000), Amount::ONE) >= REQUESTS / 8);
    }

    #[test]
    fn bytes_are_shared_like_requests() {
        let mut admission = admission();
        let large = Amount { requests: 1, bytes: 64 << 10 };
        assert_eq!(flood(&mut admission, strong(1), large), BYTES / 3 / (64 << 10) + 1);
        admission.enter(strong(2), large).unwrap();
        let mut connections = self::admission();
        let taken = (0..100).take_while(|_| connections.arrive(1, large).is_ok()).count();
        assert_eq!(taken, BYTES / 2 / (64 << 10));
        connections.arrive(2, large).unwrap();
    }

    #[test]
    fn floods_one_after_the_other_leave_room_for_a_calm_one() {
        let mut connections = admission();
        for flood in 0..8 {
            while connections.arrive(flood, Amount::ONE).is_ok() {}
        }
        connections.arrive(99, Amount::ONE).unwrap();
    }

    proptest! {
        #[test]
        fn nothing_exceeds_its_bound_and_everything_comes_back(
            steps in proptest::collection::vec((0_u64..4, 0_usize..4, 0_usize..200_000, any::<bool>()), 1..400),
        ) {
            let mut admission = admission();
            let classes = [strong(1), strong(2), available(3), Class::Admin];
            let mut places: Vec<(u64, Class, Amount)> = Vec::new();
            for (connection, class, bytes, leaves) in steps {
                let (class, amount) = (classes[class], Amount { requests: 1, bytes });
                if leaves && !places.is_empty() {
                    let (connection, class, amount) = places.swap_remove(bytes % places.len());
                    admission.depart(connection, amount);
                    admission.leave(class, amount);
                } else if admission.arrive(connection, amount).is_ok() {
                    match admission.enter(class, amount) {
                        Ok(()) => places.push((connection, class, amount)),
                        Err(_) => admission.depart(connection, amount),
                    }
                }
                let (held, most) = admission.held();
                prop_assert!(held.bytes <= BYTES && most <= BYTES && held.requests <= 2 * REQUESTS);
                prop_assert!(admission.worked_on().requests <= REQUESTS && admission.worked_on().bytes <= BYTES);
                prop_assert_eq!(held, admission.worked_on());
            }
            for (connection, class, amount) in places {
                admission.depart(connection, amount);
                admission.leave(class, amount);
            }
            prop_assert_eq!(admission.held().0, Amount::default());
            prop_assert_eq!(admission.worked_on(), Amount::default());
            prop_assert!(admission.classes.is_empty() && admission.kinds.by_holder.is_empty());
        }

        #[test]
        fn whatever_one_namespace_does_another_gets_in(
            bytes in proptest::collection::vec(0_usize..100_000, 1..2_000), calm in 0_usize..100_000,
        ) {
            let mut admission = admission();
            for bytes in bytes {
                let _ = admission.enter(strong(1), Amount { requests: 1, bytes });
            }
            for class in [strong(2), available(3)] {
                let calm = Amount { requests: 1, bytes: calm };
                prop_assert_eq!(admission.enter(class, calm), Ok(()));
            }
        }
    }
}
