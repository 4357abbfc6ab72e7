//! The catalogue as a value: members, rings, namespaces, groups. Group 0 replicates it; every node routes by
//! its last known epoch, also when it is cut off.

use std::collections::BTreeMap;
use std::fmt;

use xxhash_rust::xxh3::Xxh3;

use crate::assign;
use crate::causal::ContextKeys;
use crate::{
    ClusterId, Deletion, Epoch, GroupId, Namespace, NamespaceId, NodeId, Placement, RingId, RingPartition,
};

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Where clients reach it, `host:port`.
    pub client_address: String,
    /// Where peers reach it, `host:port`.
    pub peer_address: String,
    /// Its failure zone; empty when unsaid.
    pub zone: String,
}

/// A Raft group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// Its voters.
    pub voters: Vec<NodeId>,
}

/// A ring: an assignment of ring partitions to nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    /// Its id.
    pub id: RingId,
    /// Replicas per key.
    pub n: u8,
    /// By ring partition: its primaries in order of preference. A power of two of them.
    pub assignment: Vec<Vec<NodeId>>,
    /// Epoch in which the assignment was made.
    pub epoch: Epoch,
}

/// Where a key falls on every ring: a hash of namespace and key (xxh3, 64 bits).
pub fn token(namespace: NamespaceId, key: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&namespace.0.to_be_bytes());
    hash.update(key);
    hash.digest()
}

impl Ring {
    /// The ring partition of a token: its highest bits, so that splitting a ring partition later is a change
    /// of metadata.
    pub fn partition_of(&self, token: u64) -> RingPartition {
        let bits = self.assignment.len().max(1).ilog2();
        RingPartition(if bits == 0 { 0 } else { u32::try_from(token >> (64 - bits)).unwrap_or(0) })
    }

    /// The primaries of a ring partition in order of preference; empty for one that is not of this ring.
    pub fn primaries(&self, partition: RingPartition) -> &[NodeId] {
        usize::try_from(partition.0).ok().and_then(|at| self.assignment.get(at)).map_or(&[], Vec::as_slice)
    }

    /// The nodes that stand in for primaries, in order, at most N of them: the other members, beginning at a
    /// place that the ring partition decides, so that the load is spread; those first whose zones have the
    /// fewest of its copies.
    pub fn fallbacks(&self, partition: RingPartition, members: &BTreeMap<NodeId, Member>) -> Vec<NodeId> {
        let primaries = self.primaries(partition);
        let others: Vec<NodeId> = members.keys().copied().filter(|node| !primaries.contains(node)).collect();
        let start =
            if others.is_empty() { 0 } else { usize::try_from(partition.0).unwrap_or(0) % others.len() };
        let mut others: Vec<NodeId> = others.iter().cycle().skip(start).take(others.len()).copied().collect();
        if members.values().all(|member| member.zone.is_empty()) {
            others.truncate(usize::from(self.n));
            return others;
        }
        let zone = |node: &NodeId| members.get(node).map_or("", |member| member.zone.as_str());
        let mut copies: BTreeMap<&str, u32> = BTreeMap::new();
        // A member that names no zone is one by itself.
        primaries.iter().map(&zone).filter(|zone| !zone.is_empty()).for_each(|zone| {
            *copies.entry(zone).or_default() += 1;
        });
        let mut chosen = Vec::new();
        while chosen.len() < usize::from(self.n) && !others.is_empty() {
            let fewest = others.iter().enumerate().min_by_key(|(at, node)| (copies.get(zone(node)), *at));
            let Some((at, _)) = fewest else { break };
            let node = others.remove(at);
            if !zone(&node).is_empty() {
                *copies.entry(zone(&node)).or_default() += 1;
            }
            chosen.push(node);
        }
        chosen
    }

    /// Assigns `partitions` ring partitions to the members: every ring partition in as many zones as there
    /// are, up to N, and no node with more than its share of what the zones allow. From `before` (empty for a
    /// new ring) little is moved. Pure: the same arguments give the same assignment.
    pub fn assign(
        n: u8,
        partitions: u32,
        members: &BTreeMap<NodeId, Member>,
        before: &[Vec<NodeId>],
    ) -> Vec<Vec<NodeId>> {
        let zones = members.iter().map(|(id, member)| (*id, member.zone.as_str())).collect();
        assign::assign(n, partitions, &zones, before)
    }
}

/// What all members of a cluster understand, as one number that only grows. A kind of command, of row or of
/// message that came after the first release is used only when the cluster's level allows it, so that a
/// member of an older release never meets one it cannot read. A new cluster begins at the level of its
/// members; later the first use of a feature raises it, once every member runs a release that supports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FeatureLevel(pub u32);

impl FeatureLevel {
    /// That of the first release that knows levels. It has writes, deletes and comparisons of single keys,
    /// and the creation of namespaces.
    pub const FIRST: Self = Self(1);
    /// Namespaces can be deleted.
    pub const DELETION: Self = Self(2);
    /// Deletions have a grace in which they can be undone, and settings can be changed.
    pub const GRACE: Self = Self(3);
    /// The catalogue has a key under which causal contexts are authenticated, from the beginning of the
    /// cluster.
    pub const KEYED: Self = Self(4);
    /// Replicas ask each other for single writes that they miss.
    pub const LOGGED: Self = Self(5);
    /// Available namespaces may promise more than that replicas converge.
    pub const PROMISES: Self = Self(6);
    /// The highest one that this program supports.
    pub const SUPPORTED: Self = Self::PROMISES;
}

impl fmt::Display for FeatureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "feature level {}", self.0)
    }
}

/// Everything that the control plane decides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalogue {
    /// Which cluster.
    pub cluster_id: ClusterId,
    /// Counts changes.
    pub epoch: Epoch,
    /// What all members understand; 0 before the cluster is initialized.
    pub level: FeatureLevel,
    /// The nodes.
    pub members: BTreeMap<NodeId, Member>,
    /// The rings.
    pub rings: BTreeMap<RingId, Ring>,
    /// The namespaces.
    pub namespaces: BTreeMap<NamespaceId, Namespace>,
    /// The Raft groups that hold strong namespaces.
    pub groups: BTreeMap<GroupId, Group>,
    /// The next namespace id; ids are never reused.
    pub next_namespace: u64,
    /// Under which causal contexts are authenticated. Not to be shown to anybody.
    pub context_keys: ContextKeys,
}

impl Catalogue {
    /// Whether something that needs this level may be used.
    pub fn allows(&self, needed: FeatureLevel) -> bool {
        needed <= self.level
    }

    /// The namespace of that name.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.values().find(|ns| ns.name.as_str() == name)
    }

    /// The namespaces that are deleted and can be taken back.
    pub fn marked(&self) -> impl Iterator<Item = (NamespaceId, Deletion)> {
        self.namespaces.values().filter_map(|namespace| Some((namespace.id, namespace.deletion?)))
    }

    /// Whether this namespace was deleted: its id was given out here and it is not there any more. An id that
    /// is not given out yet, as far as this catalogue knows, may be one that others know already.
    pub fn was_deleted(&self, namespace: NamespaceId) -> bool {
        (1..self.next_namespace).contains(&namespace.0) && !self.namespaces.contains_key(&namespace)
    }

    /// The ids of deleted namespaces, as runs of successive ids. Those of other namespaces for which `lives`
    /// does not hold are in the runs too, so that there is at most one run more than namespaces for which it
    /// does.
    pub fn deleted(&self, lives: impl Fn(&Placement) -> bool) -> Vec<(u64, u64)> {
        let living = self.namespaces.values().filter(|namespace| lives(&namespace.placement));
        let ends = living.map(|namespace| namespace.id.0).chain([self.next_namespace]);
        let mut first = 1;
        let runs = ends.map(|end| {
            let run = (first, end.saturating_sub(1));
            first = end.saturating_add(1);
            run
        });
        let has_deleted = |(first, last): &(u64, u64)| {
            let there = self.namespaces.range(NamespaceId(*first)..=NamespaceId(*last)).count();
            last - first >= u64::try_from(there).unwrap_or(u64::MAX)
        };
        runs.filter(|(first, last)| first <= last).filter(has_deleted).collect()
    }
}

/// What some runs of ids have beyond others; both first to last, in order, and none touches the next.
pub fn runs_beyond(runs: impl IntoIterator<Item = (u64, u64)>, others: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut beyond = Vec::new();
    for (mut first, last) in runs {
        for (from, to) in others.iter().copied() {
            if to < first || last < from {
                continue;
            }
            if first < from {
                beyond.push((first, from - 1));
            }
            first = to.saturating_add(1);
        }
        if first <= last {
            beyond.push((first, last));
        }
    }
    beyond
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: u64, zones: u64) -> BTreeMap<NodeId, Member> {
        (1..=count)
            .map(|id| {
                let zone = if zones == 0 { String::new() } else { format!("z{}", id % zones) };
                let address = format!("127.0.0.1:{}", 7000 + id);
                (
                    NodeId(id),
                    Member { id: NodeId(id), client_address: address.clone(), peer_address: address, zone },
                )
            })
            .collect()
    }

    #[test]
    fn a_level_allows_what_it_covers() {
        let catalogue = Catalogue { level: FeatureLevel(2), ..Catalogue::default() };
        assert!(catalogue.allows(FeatureLevel::FIRST) && catalogue.allows(FeatureLevel(2)));
        assert!(!catalogue.allows(FeatureLevel(3)));
        assert!(!Catalogue::default().allows(FeatureLevel::FIRST), "there is no cluster yet");
    }

    #[test]
    fn deleted_ids_are_told_from_those_that_were_never_given_out() {
        let namespace = |id: u64, placement| Namespace {
            id: NamespaceId(id),
            name: crate::NamespaceName::new(format!("n{id}")).unwrap(),
            settings_version: 1,
            deletion: None,
            guarantee: crate::Guarantee::Eventual,
            placement,
        };
        let strong = Placement::Strong { group: GroupId::FIRST_DATA };
        let replication = crate::Replication { n: 3, r: 2, w: 2, sloppy: true };
        let available = Placement::Available { ring: RingId(1), replication };
        let is_strong = |placement: &Placement| matches!(placement, Placement::Strong { .. });
        let mut catalogue = Catalogue { next_namespace: 8, ..Catalogue::default() };
        for (id, placement) in [(2, strong), (3, available), (5, strong), (6, available)] {
            catalogue.namespaces.insert(NamespaceId(id), namespace(id, placement));
        }
        let deleted: Vec<u64> = (0..12).filter(|id| catalogue.was_deleted(NamespaceId(*id))).collect();
        assert_eq!(deleted, [1, 4, 7]);
        assert_eq!(catalogue.deleted(is_strong), [(1, 1), (3, 4), (6, 7)]);
        assert_eq!(catalogue.deleted(|placement| !is_strong(placement)), [(1, 2), (4, 5), (7, 7)]);
        catalogue.next_namespace = 7;
        assert_eq!(catalogue.deleted(is_strong), [(1, 1), (3, 4)], "nothing of the last run was deleted");
        assert!(Catalogue::default().deleted(is_strong).is_empty());
        let none = Catalogue { next_namespace: 4, ..Catalogue::default() };
        assert_eq!(none.deleted(is_strong), [(1, 3)]);
        assert_eq!(runs_beyond([(1, 9)], &[(2, 3), (5, 5), (9, 9)]), [(1, 1), (4, 4), (6, 8)]);
        assert_eq!(runs_beyond([(1, 2), (5, 6)], &[(2, 5)]), [(1, 1), (6, 6)]);
        assert!(runs_beyond([(3, 4), (6, 6)], &[(1, 9)]).is_empty());
    }

    #[test]
    fn assignment_is_balanced_and_distinct() {
        for (count, n) in [(1, 3), (3, 3), (5, 3), (7, 5)] {
            let members = members(count, 0);
            let assignment = Ring::assign(n, 256, &members, &[]);
            let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
            for replicas in &assignment {
                let mut distinct = replicas.clone();
                distinct.sort();
                distinct.dedup();
                assert_eq!(distinct.len(), usize::from(n).min(members.len()));
                replicas.iter().for_each(|node| *load.entry(*node).or_default() += 1);
            }
            let (least, most) = (load.values().min().unwrap(), load.values().max().unwrap());
            assert!(most - least <= 1, "{count} nodes, N={n}: {load:?}");
        }
    }

    #[test]
    fn zones_repeat_only_when_there_are_too_few() {
        let members = members(6, 3);
        for replicas in Ring::assign(3, 64, &members, &[]) {
            let mut zones: Vec<_> = replicas.iter().map(|node| members[node].zone.clone()).collect();
            zones.sort();
            zones.dedup();
            assert_eq!(zones.len(), 3);
        }
    }

    #[test]
    fn five_nodes_spread_every_choice_of_primaries() {
        // With N = 3 of 5 every one of the ten triples occurs: the demo needs ring partitions wholly on
        // either side.
        let mut triples: Vec<_> = Ring::assign(3, 256, &members(5, 0), &[])
            .into_iter()
            .map(|mut replicas| {
                replicas.sort();
                replicas
            })
            .collect();
        triples.sort();
        triples.dedup();
        assert_eq!(triples.len(), 10);
    }

    #[test]
    fn tokens_fall_into_partitions_by_their_highest_bits() {
        let members = members(5, 0);
        let ring =
            Ring { id: RingId(1), n: 3, assignment: Ring::assign(3, 256, &members, &[]), epoch: Epoch(1) };
        assert_eq!(ring.partition_of(0), RingPartition(0));
        assert_eq!(ring.partition_of(u64::MAX), RingPartition(255));
        for partition in 0..256 {
            let fallbacks = ring.fallbacks(RingPartition(partition), &members);
            assert_eq!(fallbacks.len(), 2);
            assert!(fallbacks.iter().all(|f| !ring.primaries(RingPartition(partition)).contains(f)));
        }
        assert!(ring.primaries(RingPartition(256)).is_empty());
    }

    #[test]
    fn fallbacks_stand_in_zones_that_have_the_fewest_copies() {
        // Four zones of two: the one that has no primary comes first, and then no zone twice.
        let members = members(8, 4);
        let ring =
            Ring { id: RingId(1), n: 3, assignment: Ring::assign(3, 64, &members, &[]), epoch: Epoch(1) };
        for partition in (0..64).map(RingPartition) {
            let zone = |node: &NodeId| members[node].zone.clone();
            let primaries: Vec<String> = ring.primaries(partition).iter().map(zone).collect();
            let fallbacks: Vec<String> = ring.fallbacks(partition, &members).iter().map(zone).collect();
            assert_eq!(fallbacks.len(), 3);
            assert!(!primaries.contains(&fallbacks[0]), "{primaries:?} {fallbacks:?}");
            assert_ne!(fallbacks[1], fallbacks[2], "{fallbacks:?}");
        }
        // The load is spread.
        let first = |partition| ring.fallbacks(RingPartition(partition), &members)[0];
        let distinct: std::collections::BTreeSet<NodeId> = (0..64).map(first).collect();
        assert_eq!(distinct.len(), 8);
    }
}
