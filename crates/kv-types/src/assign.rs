//! Which nodes keep which ring partitions: as spread over zones as there are zones, as even as that allows,
//! and with as little movement as that allows from an assignment before.
//!
//! Every node gets a quota first (`Quotas`). Then what was assigned before is kept as far as the quotas and
//! the zones allow, and what is missing is filled in one replica after the other, each along an augmenting
//! path of the flow *ring partition, zone, node*: to a node with room, or to one that is made room on by
//! moving others. The quotas divide every ring partition alike, so a whole flow exists (it does in fractions,
//! and all bounds are whole numbers), and augmenting reaches it (Ford and Fulkerson; for lower bounds Ahuja,
//! Magnanti and Orlin, *Network Flows*, 6.7). As Garage does it, without its costs: what is kept at the
//! beginning is moved only where a path has no other way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::NodeId;

/// Assigns `partitions` ring partitions to the members, given with their zones: `n` distinct ones each, or
/// all of them, if there are fewer. Each is in as many zones as there are, up to `n`; a member that names no
/// zone is one by itself. The loads of two nodes of a zone differ by at most one, and so do those of any two
/// nodes that zones do not keep apart. From `before` as little is moved as that allows, or nearly so. Pure:
/// the same arguments give the same assignment.
pub(crate) fn assign(
    n: u8,
    partitions: u32,
    members: &BTreeMap<NodeId, &str>,
    before: &[Vec<NodeId>],
) -> Vec<Vec<NodeId>> {
    let partitions = usize::try_from(partitions).unwrap_or(0);
    let mut solver = Solver::new(usize::from(n), partitions, members, before);
    let keepable = solver.keepable(before);
    if solver.every_zone {
        // One in every zone first; that is the lower bound for what follows.
        solver.keep(&keepable, 1);
        solver.fill(1, 0, Solver::covers_zones);
        solver.keep(&keepable, solver.in_zone);
        solver.fill(solver.in_zone, 1, Solver::is_whole);
    } else {
        solver.keep(&keepable, solver.in_zone);
        solver.fill(solver.in_zone, 0, Solver::is_whole);
    }
    solver.ordered()
}

/// A zone, by its place among the zones.
type Zone = usize;
/// A node, by its place among the members.
type Node = usize;

struct Solver {
    ids: Vec<NodeId>,
    /// Of each node.
    zone: Vec<Zone>,
    /// The nodes of each zone.
    zones: Vec<Vec<Node>>,
    quota: Vec<u32>,
    load: Vec<u32>,
    /// Replicas of each ring partition.
    wanted: usize,
    /// Most of them in one zone.
    in_zone: usize,
    /// There are fewer zones than replicas: each has at least one of every ring partition.
    every_zone: bool,
    kept: Vec<BTreeSet<Node>>,
    /// How often two nodes keep the same ring partition: preferring strangers spreads the load of a lost
    /// node.
    together: Vec<Vec<u32>>,
}

/// Where an augmenting path stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Partition(usize),
    Zone(usize, Zone),
    Node(Node),
}

impl Solver {
    fn new(n: usize, partitions: usize, members: &BTreeMap<NodeId, &str>, before: &[Vec<NodeId>]) -> Self {
        let ids: Vec<NodeId> = members.keys().copied().collect();
        let mut names: BTreeMap<(&str, Option<NodeId>), Zone> = BTreeMap::new();
        let (mut zone, mut zones) = (Vec::new(), Vec::<Vec<Node>>::new());
        for (at, (id, name)) in members.iter().enumerate() {
            let own = name.is_empty().then_some(*id);
            let of = *names.entry((name, own)).or_insert(zones.len());
            zone.push(of);
            match zones.get_mut(of) {
                Some(nodes) => nodes.push(at),
                None => zones.push(vec![at]),
            }
        }
        let wanted = n.min(ids.len());
        let every_zone = zones.len() < wanted;
        let fits = |most: &usize| zones.iter().map(|nodes| nodes.len().min(*most)).sum::<usize>() >= wanted;
        let in_zone = (1..=wanted).find(fits).unwrap_or(wanted);
        let had: Vec<u32> = ids
            .iter()
            .map(|id| count(before.iter().filter(|replicas| replicas.contains(id)).count()))
            .collect();
        let bounds = (if every_zone { partitions } else { 0 }, in_zone * partitions);
        let quota = quotas(&zones, &had, wanted * partitions, bounds, partitions);
        Self {
            load: vec![0; ids.len()],
            together: vec![vec![0; ids.len()]; ids.len()],
            kept: vec![BTreeSet::new(); partitions],
            ids,
            zone,
            zones,
            quota,
            wanted,
            in_zone,
            every_zone,
        }
    }

    /// What each node may keep of what was assigned before. One that has more than its quota gives up what a
    /// node with room can take in its place, as its zone allows, and what the fewest others gave up.
    fn keepable(&self, before: &[Vec<NodeId>]) -> Vec<Vec<usize>> {
        let place: BTreeMap<NodeId, Node> = self.ids.iter().copied().zip(0..).collect();
        let mut given_up = vec![0_u32; self.kept.len()];
        let mut lists: Vec<Vec<usize>> = vec![Vec::new(); self.ids.len()];
        for (partition, replicas) in before.iter().enumerate().take(self.kept.len()) {
            for node in replicas.iter().filter_map(|id| place.get(id)) {
                if let Some(list) = lists.get_mut(*node) {
                    list.push(partition);
                }
            }
        }
        let had: Vec<usize> = lists.iter().map(Vec::len).collect();
        let quota_of = |node: Node| usize::try_from(self.quota.get(node).copied().unwrap_or(0)).unwrap_or(0);
        let gains: Vec<Node> =
            (0..had.len()).filter(|node| had.get(*node) < Some(&quota_of(*node))).collect();
        let can_be_taken = |partition: usize, from: Node| {
            let replicas =
                before.get(partition).into_iter().flatten().filter_map(|id| place.get(id).copied());
            let others: Vec<Node> = replicas.filter(|other| *other != from).collect();
            gains.iter().any(|to| others.iter().all(|other| self.zone_of(*other) != self.zone_of(*to)))
        };
        for (node, list) in lists.iter_mut().enumerate() {
            let quota = quota_of(node);
            let given = |partition: &usize| given_up.get(*partition).copied().unwrap_or(0);
            // Those of equal rank in an order of each node's own.
            list.sort_by_cached_key(|partition| {
                let order = partition.wrapping_mul(node + 7) % 251;
                (can_be_taken(*partition, node), Reverse(given(partition)), order)
            });
            for partition in list.split_off(quota.min(list.len())) {
                if let Some(given) = given_up.get_mut(partition) {
                    *given += 1;
                }
            }
        }
        lists
    }

    /// Keeps of that as much as fits, at most so many replicas of a ring partition in a zone.
    fn keep(&mut self, keepable: &[Vec<usize>], in_zone: usize) {
        for (node, list) in keepable.iter().enumerate() {
            for partition in list.iter().copied() {
                let fits = self.in_zone_of(partition, self.zone_of(node)) < in_zone
                    && !self.is_whole(partition)
                    && !self.has(partition, node);
                if fits && self.has_room(node) {
                    self.change(partition, node, true);
                }
            }
        }
    }

    fn zone_of(&self, node: Node) -> Zone {
        self.zone.get(node).copied().unwrap_or(0)
    }

    fn in_zone_of(&self, partition: usize, zone: Zone) -> usize {
        let nodes = self.kept.get(partition).into_iter().flatten();
        nodes.filter(|node| self.zone_of(**node) == zone).count()
    }

    fn has(&self, partition: usize, node: Node) -> bool {
        self.kept.get(partition).is_some_and(|kept| kept.contains(&node))
    }

    fn has_room(&self, node: Node) -> bool {
        self.load.get(node) < self.quota.get(node)
    }

    fn change(&mut self, partition: usize, node: Node, add: bool) {
        let Some(kept) = self.kept.get_mut(partition) else { return };
        let changed = if add { kept.insert(node) } else { kept.remove(&node) };
        assert!(changed, "a replica is added once, and removed where it is");
        let others: Vec<Node> = kept.iter().copied().filter(|other| *other != node).collect();
        let step = |number: &mut u32| *number = if add { *number + 1 } else { *number - 1 };
        self.load.get_mut(node).into_iter().for_each(step);
        for other in others {
            for (a, b) in [(node, other), (other, node)] {
                self.together.get_mut(a).and_then(|row| row.get_mut(b)).into_iter().for_each(step);
            }
        }
    }

    /// Fills every ring partition until it is done, with `least` to `most` of it in each zone.
    fn fill(&mut self, most: usize, least: usize, is_done: impl Fn(&Self, usize) -> bool) {
        for partition in 0..self.kept.len() {
            while !is_done(self, partition) {
                let path = self.path(partition, most, least);
                assert!(!path.is_empty(), "the quotas allow a whole assignment");
                self.follow(&path);
            }
        }
    }

    fn is_whole(&self, partition: usize) -> bool {
        self.kept.get(partition).is_none_or(|kept| kept.len() == self.wanted)
    }

    fn covers_zones(&self, partition: usize) -> bool {
        (0..self.zones.len()).all(|zone| self.in_zone_of(partition, zone) > 0)
    }

    /// The shortest path by which a ring partition gets one more replica. Among the shortest the one to the
    /// node that is least full, and then least familiar with those that keep it.
    fn path(&self, partition: usize, most: usize, least: usize) -> Vec<At> {
        let mut came_from: BTreeMap<At, At> = BTreeMap::new();
        let mut open = VecDeque::from([At::Partition(partition)]);
        let rank = self.ranks(partition);
        let mut direct: Option<Node> = None;
        while let Some(at) = open.pop_front() {
            // All nodes that are reached at once come before any other.
            let is_near = matches!(at, At::Partition(near) | At::Zone(near, _) if near == partition);
            if let Some(found) = direct.filter(|_| !is_near) {
                return self.back(At::Node(found), &came_from);
            }
            for next in self.next(at, most, least) {
                if next == At::Partition(partition) || came_from.contains_key(&next) {
                    continue;
                }
                came_from.insert(next, at);
                match next {
                    At::Node(node) if self.has_room(node) => {
                        if at != At::Zone(partition, self.zone_of(node)) {
                            return self.back(next, &came_from);
                        }
                        if direct.is_none_or(|found| rank.get(node) < rank.get(found)) {
                            direct = Some(node);
                        }
                    }
                    _ => open.push_back(next),
                }
            }
        }
        direct.map(|found| self.back(At::Node(found), &came_from)).unwrap_or_default()
    }

    fn back(&self, end: At, came_from: &BTreeMap<At, At>) -> Vec<At> {
        let mut path = vec![end];
        let mut at = end;
        while let Some(before) = came_from.get(&at) {
            path.push(*before);
            at = *before;
        }
        path.reverse();
        path
    }

    /// Where a unit of the flow may go from here.
    fn next(&self, at: At, most: usize, least: usize) -> Vec<At> {
        match at {
            At::Partition(partition) => (0..self.zones.len())
                .filter(|zone| self.in_zone_of(partition, *zone) < most)
                .map(|zone| At::Zone(partition, zone))
                .collect(),
            At::Zone(partition, zone) => {
                let nodes = self.zones.get(zone).into_iter().flatten();
                let mut next: Vec<At> = nodes
                    .filter(|node| !self.has(partition, **node) && self.quota.get(**node) > Some(&0))
                    .map(|node| At::Node(*node))
                    .collect();
                if self.in_zone_of(partition, zone) > least {
                    next.push(At::Partition(partition));
                }
                next
            }
            // It is full: it gives up another one, which needs a node in its place.
            At::Node(node) => (0..self.kept.len())
                .filter(|partition| self.has(*partition, node))
                .map(|partition| At::Zone(partition, self.zone_of(node)))
                .collect(),
        }
    }

    fn follow(&mut self, path: &[At]) {
        for step in path.windows(2) {
            match step {
                [At::Node(node), At::Zone(partition, _)] => self.change(*partition, *node, false),
                [At::Zone(partition, _), At::Node(node)] => self.change(*partition, *node, true),
                _ => {}
            }
        }
    }

    /// Of each node, which place it has among those that should get a replica of this ring partition.
    fn ranks(&self, partition: usize) -> Vec<usize> {
        let of = |list: &[u32], node: Node| list.get(node).copied().unwrap_or(0);
        let rank_by = |node: Node| {
            let quota = of(&self.quota, node).max(1);
            let fullness = u64::from(of(&self.load, node)) * FULL / u64::from(quota);
            let kept = self.kept.get(partition).into_iter().flatten();
            let familiar: u32 =
                kept.filter_map(|other| self.together.get(*other)).map(|row| of(row, node)).sum();
            (fullness, familiar, node)
        };
        let mut nodes: Vec<_> = (0..self.ids.len()).map(rank_by).collect();
        nodes.sort_unstable();
        let mut ranks = vec![0; nodes.len()];
        for (rank, (_, _, node)) in nodes.into_iter().enumerate() {
            if let Some(place) = ranks.get_mut(node) {
                *place = rank;
            }
        }
        ranks
    }

    /// The assignment, the node first in each ring partition that came first least often.
    fn ordered(self) -> Vec<Vec<NodeId>> {
        let mut first: Vec<u32> = vec![0; self.ids.len()];
        let mut assignment = Vec::with_capacity(self.kept.len());
        for kept in self.kept {
            let mut nodes: Vec<Node> = kept.into_iter().collect();
            nodes.sort_by_key(|node| (first.get(*node).copied().unwrap_or(0), *node));
            if let Some(times) = nodes.first().and_then(|head| first.get_mut(*head)) {
                *times += 1;
            }
            assignment.push(nodes.into_iter().filter_map(|node| self.ids.get(node).copied()).collect());
        }
        assignment
    }
}

/// A node that has its quota, in the units in which nodes are compared.
const FULL: u64 = 1 << 20;

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// How many replicas each node gets: `total` in all, so many of each zone as the bounds allow (per zone, and
/// `partitions` for a node), the fullest node as empty as can be. Where it does not come out even, those that
/// had more keep more.
fn quotas(
    zones: &[Vec<Node>],
    had: &[u32],
    total: usize,
    (least, most): (usize, usize),
    partitions: usize,
) -> Vec<u32> {
    let mut of_zone: Vec<usize> = vec![least; zones.len()];
    let limit = |zone: usize| zones.get(zone).map_or(0, |nodes| most.min(nodes.len() * partitions));
    let had_by = |zone: usize| -> u64 {
        zones
            .get(zone)
            .into_iter()
            .flatten()
            .filter_map(|node| had.get(*node))
            .map(|had| u64::from(*had))
            .sum()
    };
    for _ in (least * zones.len())..total {
        let size = |zone: usize| zones.get(zone).map_or(1, |nodes| nodes.len().max(1)) as u64;
        let filled = |zone: usize| of_zone.get(zone).copied().unwrap_or(0);
        let emptiest = (0..zones.len())
            .filter(|zone| filled(*zone) < limit(*zone))
            // What each of its nodes would have at least after the next one.
            .min_by_key(|zone| {
                let per_node = filled(*zone) as u64 / size(*zone);
                (per_node, Reverse(had_by(*zone) / size(*zone)), *zone)
            });
        match emptiest.and_then(|zone| of_zone.get_mut(zone)) {
            Some(filled) => *filled += 1,
            None => break,
        }
    }
    let mut quota = vec![0; had.len()];
    for (nodes, replicas) in zones.iter().zip(of_zone) {
        let mut nodes = nodes.clone();
        nodes.sort_by_key(|node| (Reverse(had.get(*node).copied().unwrap_or(0)), *node));
        let (each, more) = (replicas / nodes.len().max(1), replicas % nodes.len().max(1));
        for (at, node) in nodes.into_iter().enumerate() {
            if let Some(quota) = quota.get_mut(node) {
                *quota = count(each + usize::from(at < more));
            }
        }
    }
    quota
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Members in zones of these sizes; of size 0: one that names no zone.
    fn members(zones: &[u64]) -> BTreeMap<NodeId, &'static str> {
        const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];
        let mut members = BTreeMap::new();
        for (at, size) in zones.iter().enumerate() {
            let zone = if *size == 0 { "" } else { NAMES[at] };
            for _ in 0..(*size).max(1) {
                members.insert(NodeId(members.len() as u64 + 1), zone);
            }
        }
        members
    }

    fn loads(
        members: &BTreeMap<NodeId, &'static str>,
        assignment: &[Vec<NodeId>],
    ) -> BTreeMap<NodeId, usize> {
        let count = |id: &NodeId| assignment.iter().filter(|replicas| replicas.contains(id)).count();
        members.keys().map(|id| (*id, count(id))).collect()
    }

    fn zone_of(members: &BTreeMap<NodeId, &'static str>, id: NodeId) -> (&'static str, Option<NodeId>) {
        let zone = members[&id];
        let own = zone.is_empty().then_some(id);
        (zone, own)
    }

    fn moved(before: &[Vec<NodeId>], after: &[Vec<NodeId>]) -> usize {
        let pairs = before.iter().zip(after);
        pairs.map(|(old, new)| new.iter().filter(|node| !old.contains(node)).count()).sum()
    }

    /// What must hold of every assignment.
    fn check(
        n: u8,
        members: &BTreeMap<NodeId, &'static str>,
        assignment: &[Vec<NodeId>],
    ) -> Result<(), TestCaseError> {
        let zones: BTreeSet<_> = members.keys().map(|id| zone_of(members, *id)).collect();
        let wanted = usize::from(n).min(members.len());
        for replicas in assignment {
            let distinct: BTreeSet<_> = replicas.iter().collect();
            prop_assert_eq!((distinct.len(), replicas.len()), (wanted, wanted));
            let spread: BTreeSet<_> = replicas.iter().map(|id| zone_of(members, *id)).collect();
            prop_assert_eq!(spread.len(), wanted.min(zones.len()), "{:?}", replicas);
        }
        let loads = loads(members, assignment);
        for zone in zones {
            let own = || loads.iter().filter(|(id, _)| zone_of(members, **id) == zone).map(|(_, load)| *load);
            prop_assert!(own().max().unwrap() - own().min().unwrap() <= 1, "{:?}: {:?}", zone, loads);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn zones_are_spread_and_nodes_are_even(zones in prop::collection::vec(0..5_u64, 1..7), n in 1..6_u8) {
            let members = members(&zones);
            let assignment = assign(n, 64, &members, &[]);
            prop_assert_eq!(assignment.len(), 64);
            check(n, &members, &assignment)?;
            // Nothing moves where nothing changes.
            prop_assert_eq!(moved(&assignment, &assign(n, 64, &members, &assignment)), 0);
        }

        #[test]
        fn little_moves_when_a_node_comes_or_goes(
            zones in prop::collection::vec(0..5_u64, 1..6),
            grown: usize,
            n in 1..5_u8,
        ) {
            let mut larger = zones.clone();
            let at = grown % larger.len();
            larger[at] += 1;
            let (small, large) = (members(&zones), members(&larger));
            for (from, to) in [(&small, &large), (&large, &small)] {
                let before = assign(n, 64, from, &[]);
                let after = assign(n, 64, to, &before);
                check(n, to, &after)?;
                // At least what nodes have more than before; not many times that, though zones may demand
                // that others make room.
                let (had, has) = (loads(&large, &before), loads(&large, &after));
                let least: usize = has.iter().map(|(id, load)| load.saturating_sub(had[id])).sum();
                prop_assert!(moved(&before, &after) <= 3 * least + 16, "{} of {}", moved(&before, &after), least);
            }
        }
    }

    #[test]
    fn movement_is_within_a_tenth_of_the_least() {
        for (count, more) in [(3, 4), (5, 6), (6, 5), (9, 10), (20, 21), (21, 20), (40, 41)] {
            let nodes = |count: usize| members(&vec![0; count]);
            let before = assign(3, 256, &nodes(count), &[]);
            let after = assign(3, 256, &nodes(more), &before);
            check(3, &nodes(more), &after).unwrap();
            let (had, has) =
                (loads(&nodes(count.max(more)), &before), loads(&nodes(count.max(more)), &after));
            let least: usize = has.iter().map(|(id, load)| load.saturating_sub(had[id])).sum();
            let moved = moved(&before, &after);
            assert!(moved * 10 <= least * 11, "{count} to {more}: {moved} moved, at least {least}");
        }
        // In zones: a fourth node in one of three.
        let before = assign(3, 256, &members(&[3, 3, 3]), &[]);
        let grown = members(&[3, 3, 4]);
        let after = assign(3, 256, &grown, &before);
        check(3, &grown, &after).unwrap();
    }

    /// Members apply the creation of a ring each by itself, so the assignment is a part of the format, and
    /// another one needs a feature level of its own.
    #[test]
    fn what_is_assigned_does_not_change_from_release_to_release() {
        let hash = |zones: &[u64], n| {
            let assignment = assign(n, 256, &members(zones), &[]);
            let mut hash = xxhash_rust::xxh3::Xxh3::new();
            assignment.iter().flatten().for_each(|id| hash.update(&id.0.to_be_bytes()));
            format!("{:016x}", hash.digest())
        };
        let of =
            [hash(&[0; 3], 3), hash(&[0; 5], 3), hash(&[2, 2, 2], 3), hash(&[1, 3], 3), hash(&[0; 20], 5)];
        assert_eq!(
            of,
            [
                "cf1736a9a897f07f",
                "1e10c8e623633817",
                "a417b19c490219b8",
                "792b6479f39766e3",
                "b6f2be699a6c79e7",
            ]
        );
    }

    #[test]
    fn a_small_zone_has_what_it_must_and_no_more() {
        let load = |zones: &[u64], n| {
            let members = members(zones);
            let assignment = assign(n, 256, &members, &[]);
            check(n, &members, &assignment).unwrap();
            loads(&members, &assignment).into_values().collect::<Vec<_>>()
        };
        // Three zones, three replicas: the lone node has them all, for the sake of the zones.
        assert_eq!(load(&[1, 3, 3], 3), [256, 86, 85, 85, 86, 85, 85]);
        // A fourth zone lets it have as many as the others, within one.
        let even = load(&[1, 3, 3, 3], 3);
        assert!(even.iter().all(|load| (76..=77).contains(load)), "{even:?}");
        // Two zones, three replicas: both have one of each, and the third goes where there is room.
        assert_eq!(load(&[1, 3], 3), [256, 171, 171, 170]);
        let even = load(&[2, 4], 3);
        assert!(even.iter().all(|load| *load == 128), "{even:?}");
    }
}
