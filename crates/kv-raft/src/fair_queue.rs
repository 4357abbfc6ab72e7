//! A queue that takes turns: over namespaces, and within each over its clients, so many bytes a turn. So
//! neither a namespace nor a client that asks for much keeps others waiting for longer than their own turns.
//! Within a client the order is that of arrival. It is deficit round robin (Shreedhar and Varghese, 1995) in
//! two levels; a value, bounded by the account of those who fill it.

use std::collections::{BTreeMap, VecDeque};

use kv_types::{ClientId, NamespaceId};

/// What a flow may take in one turn, bytes. What costs more waits for several turns, unless it is alone.
const TURN_BYTES: u64 = 4 << 10;

/// Where an item waits: it can be taken out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    namespace: NamespaceId,
    client: ClientId,
    number: u64,
}

/// Items of the type `T` that wait for their turn.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    flows: Turns<NamespaceId, Turns<ClientId, Line<T>>>,
    next: u64,
    len: usize,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { flows: Turns::default(), next: 0, len: 0 }
    }
}

impl<T> FairQueue<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an item of so many bytes.
    pub(crate) fn push(&mut self, namespace: NamespaceId, client: ClientId, cost: u64, item: T) -> Spot {
        let number = self.next;
        self.next += 1;
        self.len += 1;
        self.flows.flow(namespace).flow(client).items.insert(number, (cost, item));
        Spot { namespace, client, number }
    }

    /// What the item whose turn it is costs.
    pub(crate) fn next_cost(&mut self) -> Option<u64> {
        self.flows.next_cost()
    }

    /// Takes the item whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let item = self.flows.pop();
        self.len -= usize::from(item.is_some());
        assert_eq!(self.len == 0, self.flows.is_empty(), "an empty queue has no flows");
        item
    }

    /// Whether anything of a namespace waits.
    pub(crate) fn has_any(&self, namespace: NamespaceId) -> bool {
        self.flows.flows.contains_key(&namespace)
    }

    /// Whether an item still waits.
    pub(crate) fn has(&self, spot: Spot) -> bool {
        let clients = self.flows.flows.get(&spot.namespace);
        let line = clients.and_then(|clients| clients.flow.flows.get(&spot.client));
        line.is_some_and(|line| line.flow.items.contains_key(&spot.number))
    }

    /// Takes an item out of turn; `None` if it has had its turn.
    pub(crate) fn withdraw(&mut self, spot: Spot) -> Option<T> {
        let taken = self.flows.within(spot.namespace, |clients| {
            let of_client = |line: &mut Line<T>| line.items.remove(&spot.number).map(|(_, item)| item);
            clients.within(spot.client, of_client)
        });
        self.len -= usize::from(taken.is_some());
        taken
    }
}

/// Something that has items, one of which is next.
trait Flow {
    type Item;

    fn is_empty(&self) -> bool;

    /// What the next item costs; none if there is none.
    fn next_cost(&mut self) -> Option<u64>;

    fn pop(&mut self) -> Option<Self::Item>;
}

/// First come, first served.
#[derive(Debug)]
struct Line<T> {
    items: BTreeMap<u64, (u64, T)>,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { items: BTreeMap::new() }
    }
}

impl<T> Flow for Line<T> {
    type Item = T;

    fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn next_cost(&mut self) -> Option<u64> {
        self.items.first_key_value().map(|(_, (cost, _))| *cost)
    }

    fn pop(&mut self) -> Option<T> {
        self.items.pop_first().map(|(_, (_, item))| item)
    }
}

/// A flow and what it may still take in its turn.
#[derive(Debug)]
struct Turn<F> {
    left: u64,
    flow: F,
}

/// Flows that take turns. None of them is empty.
#[derive(Debug)]
struct Turns<K, F> {
    flows: BTreeMap<K, Turn<F>>,
    /// Whose turn it is, and in which order the others follow.
    order: VecDeque<K>,
}

impl<K, F> Default for Turns<K, F> {
    fn default() -> Self {
        Self { flows: BTreeMap::new(), order: VecDeque::new() }
    }
}

impl<K: Ord + Copy, F: Flow + Default> Turns<K, F> {
    /// A flow that something is about to be added to; a new one comes last.
    fn flow(&mut self, key: K) -> &mut F {
        let order = &mut self.order;
        let turn = self.flows.entry(key).or_insert_with(|| {
            order.push_back(key);
            Turn { left: TURN_BYTES, flow: F::default() }
        });
        &mut turn.flow
    }

    /// Does something in a flow, if it is there, and lets go of it when it is empty afterwards.
    fn within<T>(&mut self, key: K, act: impl FnOnce(&mut F) -> Option<T>) -> Option<T> {
        let turn = self.flows.get_mut(&key)?;
        let done = act(&mut turn.flow);
        if turn.flow.is_empty() {
            self.flows.remove(&key);
            self.order.retain(|other| *other != key);
        }
        done
    }
}

impl<K: Ord + Copy, F: Flow + Default> Flow for Turns<K, F> {
    type Item = F::Item;

    fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    fn next_cost(&mut self) -> Option<u64> {
        loop {
            let turn = self.flows.get_mut(self.order.front()?)?;
            let cost = turn.flow.next_cost()?;
            if cost <= turn.left || self.order.len() == 1 {
                return Some(cost);
            }
            turn.left += TURN_BYTES;
            self.order.rotate_left(1);
        }
    }

    fn pop(&mut self) -> Option<F::Item> {
        let cost = self.next_cost()?;
        let key = *self.order.front()?;
        let turn = self.flows.get_mut(&key)?;
        turn.left = turn.left.saturating_sub(cost);
        let item = turn.flow.pop();
        if turn.flow.is_empty() {
            self.flows.remove(&key);
            self.order.pop_front();
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Namespace, client, number.
    type Item = (u64, u64, u64);

    fn client_of((namespace, client, _): Item) -> (u64, u64) {
        (namespace, client)
    }

    fn push(queue: &mut FairQueue<(u64, u64)>, namespace: u64, client: u64, cost: u64) -> Spot {
        queue.push(NamespaceId(namespace), ClientId(client.into()), cost, (namespace, client))
    }

    #[test]
    fn one_after_the_other_where_nothing_competes() {
        let mut queue = FairQueue::default();
        for (n, cost) in (0..100_u64).zip([10, 5_000, 1 << 20].into_iter().cycle()) {
            queue.push(NamespaceId(1), ClientId(1), cost, n);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
        assert!(queue.is_empty());
    }

    #[test]
    fn a_newcomer_waits_for_one_turn_of_each_other() {
        let mut queue = FairQueue::default();
        for client in 0..1_000 {
            push(&mut queue, 1, client, 1_500);
            push(&mut queue, 2, 7, 1 << 20);
        }
        for _ in 0..50 {
            queue.pop();
        }
        push(&mut queue, 3, 1, 700);
        let waited = std::iter::from_fn(|| queue.pop()).take_while(|(namespace, _)| *namespace != 3).count();
        assert!(waited <= 4, "{waited}");
        // And so does a client within a namespace, however many others there are it is its turn once a round.
        let mut queue = FairQueue::default();
        for _ in 0..1_000 {
            push(&mut queue, 1, 1, 1_500);
            push(&mut queue, 1, 2, 1_500);
        }
        push(&mut queue, 1, 3, 700);
        let waited = std::iter::from_fn(|| queue.pop()).take_while(|(_, client)| *client != 3).count();
        assert!(waited <= 6, "{waited}");
    }

    #[test]
    fn what_is_withdrawn_is_gone_and_leaves_no_trace() {
        let mut queue = FairQueue::default();
        let spots: Vec<_> = (0..9).map(|n| push(&mut queue, n % 3, n % 2, 100)).collect();
        let popped = queue.pop().unwrap();
        assert_eq!(popped, (0, 0));
        assert_eq!(queue.withdraw(spots[0]), None, "it had its turn");
        assert_eq!(queue.withdraw(spots[4]), Some((1, 0)));
        assert_eq!(queue.withdraw(spots[4]), None, "once");
        for spot in spots {
            queue.withdraw(spot);
        }
        assert!(queue.is_empty() && queue.flows.flows.is_empty() && queue.flows.order.is_empty());
    }

    proptest! {
        /// Nothing is lost, repeated or overtaken within its client, whatever comes and goes.
        #[test]
        fn each_item_has_its_turn_once(
            steps in prop::collection::vec((0_u64..4, 0_u64..3, 1_u64..20_000, 0_u8..4), 1..300),
        ) {
            let mut queue = FairQueue::default();
            let mut waiting: Vec<(Spot, Item)> = Vec::new();
            let mut number = 0;
            for (namespace, client, cost, act) in steps {
                match act {
                    0 => if let Some(item) = queue.pop() {
                        let mine = |(_, of): &(Spot, Item)| client_of(*of) == client_of(item);
                        let first = waiting.iter().position(mine).unwrap();
                        prop_assert_eq!(waiting.remove(first).1, item);
                    } else {
                        prop_assert!(waiting.is_empty());
                    },
                    1 if !waiting.is_empty() => {
                        let at = usize::try_from(cost).unwrap() % waiting.len();
                        let (spot, item) = waiting.remove(at);
                        prop_assert_eq!(queue.withdraw(spot), Some(item));
                    }
                    _ => {
                        number += 1;
                        let item = (namespace, client, number);
                        let spot = queue.push(NamespaceId(namespace), ClientId(client.into()), cost, item);
                        waiting.push((spot, item));
                    }
                }
                prop_assert_eq!(queue.is_empty(), waiting.is_empty());
            }
        }

        /// Of namespaces that always have something, each gets the same bytes, up to a turn and its largest
        /// item.
        #[test]
        fn bytes_are_shared_alike(costs in prop::collection::vec(1_u64..30_000, 2..8)) {
            let mut queue = FairQueue::default();
            let mut got = vec![0; costs.len()];
            for (namespace, cost) in (0..).zip(&costs) {
                push(&mut queue, namespace, 1, *cost);
            }
            for _ in 0..2_000 {
                let (namespace, _) = queue.pop().unwrap();
                let at = usize::try_from(namespace).unwrap();
                got[at] += costs[at];
                push(&mut queue, namespace, 1, costs[at]);
                push(&mut queue, namespace, 1, costs[at]);
            }
            let slack = 2 * TURN_BYTES + costs.iter().max().unwrap();
            let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
            prop_assert!(most - least <= slack, "{got:?}");
        }
    }
}
