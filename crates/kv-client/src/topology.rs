//! What a client knows of the cluster: members, namespaces and leaders, as some node told it. It orders
//! choices and is never trusted further than that; the nodes decide.

use std::collections::BTreeMap;

use kv_proto::{admin, cluster_id_from_bytes};
use kv_types::catalogue::{Member, Ring, token};
use kv_types::{ClusterId, Epoch, Failure, GroupId, Namespace, NamespaceId, NodeId, Placement, RingId};

/// The leader of a Raft group as one node knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    /// The node; `None` when it knows of none.
    pub node: Option<NodeId>,
    /// The term.
    pub term: u64,
}

/// A namespace as one node lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// The namespace.
    pub namespace: Namespace,
    /// Strong: voters of its group.
    pub voters: u32,
}

impl TryFrom<&admin::Namespace> for NamespaceInfo {
    type Error = Failure;

    fn try_from(message: &admin::Namespace) -> Result<Self, Failure> {
        Ok(Self { namespace: message.try_into()?, voters: message.voters })
    }
}

/// A cluster in the view of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Whose view this is.
    pub answered_by: NodeId,
    /// Version of the catalogue there.
    pub epoch: Epoch,
    /// Members.
    pub members: BTreeMap<NodeId, Member>,
    /// Namespaces, by name.
    pub namespaces: BTreeMap<String, NamespaceInfo>,
    /// Who leads.
    pub leaders: BTreeMap<GroupId, Leader>,
    /// Which nodes keep the keys of the available namespaces.
    pub rings: BTreeMap<RingId, Ring>,
}

impl TryFrom<&admin::GetTopologyResponse> for Topology {
    type Error = Failure;

    fn try_from(message: &admin::GetTopologyResponse) -> Result<Self, Failure> {
        let namespaces = message
            .namespaces
            .iter()
            .map(|namespace| NamespaceInfo::try_from(namespace).map(|info| (namespace.name.clone(), info)));
        let leader = |known: &admin::GroupLeader| {
            let node = (known.leader != 0).then_some(NodeId(known.leader));
            (GroupId(known.group), Leader { node, term: known.term })
        };
        // One that cannot be read, of a later release, costs a hop: nothing else is lost for it.
        let ring = |message| Ring::try_from(message).ok().map(|ring| (ring.id, ring));
        Ok(Self {
            cluster_id: cluster_id_from_bytes(&message.cluster_id)?,
            answered_by: NodeId(message.answered_by),
            epoch: Epoch(message.epoch),
            members: message.members.iter().map(|m| (NodeId(m.id), Member::from(m))).collect(),
            namespaces: namespaces.collect::<Result<_, _>>()?,
            leaders: message.leaders.iter().map(leader).collect(),
            rings: message.rings.iter().filter_map(ring).collect(),
        })
    }
}

impl Topology {
    /// Takes over what is newer in another node's view: the catalogue of the higher epoch, and of each group
    /// the leader of the higher term. Nothing of another cluster, which may run at the address of a member
    /// now: a client stays with the cluster that it met first.
    pub(crate) fn learn(&mut self, other: Self) {
        if other.cluster_id != self.cluster_id {
            return;
        }
        let mut leaders = std::mem::take(&mut self.leaders);
        for (group, leader) in &other.leaders {
            let known = leaders.entry(*group).or_insert(*leader);
            if leader.term > known.term || (leader.term == known.term && known.node.is_none()) {
                *known = *leader;
            }
        }
        if other.epoch >= self.epoch {
            *self = other;
        }
        self.leaders = leaders;
    }

    /// Where clients reach the leader of a strong namespace's group.
    pub(crate) fn leader_address(&self, namespace: &str) -> Option<&str> {
        let Placement::Strong { group } = self.namespaces.get(namespace)?.namespace.placement else {
            return None;
        };
        self.address(self.leaders.get(&group)?.node?)
    }

    /// Where clients reach the nodes that keep a key of an available namespace, in order of preference; empty
    /// where this view does not say.
    pub(crate) fn replicas(&self, namespace: &str, key: &[u8]) -> Vec<&str> {
        let Some((id, ring)) = self.ring_of(namespace) else { return Vec::new() };
        let primaries = ring.primaries(ring.partition_of(token(id, key)));
        primaries.iter().filter_map(|node| self.address(*node)).collect()
    }

    /// An available namespace and its ring, if this view has both.
    pub(crate) fn ring_of(&self, namespace: &str) -> Option<(NamespaceId, &Ring)> {
        let namespace = &self.namespaces.get(namespace)?.namespace;
        match namespace.placement {
            Placement::Available { ring, .. } => Some((namespace.id, self.rings.get(&ring)?)),
            Placement::Strong { .. } => None,
        }
    }

    /// Where clients reach a node.
    pub fn address(&self, node: NodeId) -> Option<&str> {
        self.members.get(&node).map(|member| member.client_address.as_str())
    }

    /// The node that clients reach at this address.
    pub fn node_at(&self, address: &str) -> Option<NodeId> {
        self.members.values().find(|member| member.client_address == address).map(|member| member.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(epoch: u64, leader: u64, term: u64) -> Topology {
        let member = |id: u64| admin::Member { id, client_address: format!("h:{id}"), ..Default::default() };
        let bank = admin::Namespace {
            id: 1,
            name: "bank".into(),
            mode: admin::Mode::Strong.into(),
            guarantee: 1,
            group: 1,
            voters: 5,
            ..Default::default()
        };
        let cart = admin::Namespace {
            id: 2,
            name: "cart".into(),
            mode: admin::Mode::Available.into(),
            guarantee: 2,
            ring: 1,
            n: 2,
            r: 1,
            w: 2,
            ..Default::default()
        };
        let message = admin::GetTopologyResponse {
            cluster_id: vec![7; 16].into(),
            answered_by: 1,
            epoch,
            members: (1..=3).map(member).collect(),
            namespaces: vec![bank, cart],
            leaders: vec![admin::GroupLeader { group: 1, leader, term }],
            rings: vec![admin::Ring { id: 1, partitions: 2, primaries: vec![1, 2, 3, 9], epoch: 1 }],
        };
        Topology::try_from(&message).unwrap()
    }

    #[test]
    fn the_newer_catalogue_and_the_newer_leader_win_separately() {
        let mut known = view(5, 1, 3);
        known.learn(view(4, 2, 4));
        assert_eq!((known.epoch, known.leader_address("bank")), (Epoch(5), Some("h:2")));
        known.learn(view(6, 1, 3));
        assert_eq!((known.epoch, known.leader_address("bank")), (Epoch(6), Some("h:2")));
        known.learn(view(6, 0, 5));
        assert_eq!(known.leader_address("bank"), None);
        known.learn(view(6, 3, 5));
        assert_eq!(known.leader_address("bank"), Some("h:3"));
        assert_eq!(known.node_at("h:3"), Some(NodeId(3)));
        assert_eq!(known.leader_address("cart"), None);
        let before = known.clone();
        known.learn(Topology { cluster_id: ClusterId(9), ..view(90, 1, 90) });
        assert_eq!(known, before, "another cluster's");
    }

    #[test]
    fn a_key_of_an_available_namespace_is_kept_where_the_ring_says() {
        let known = view(5, 1, 3);
        let key_of = |half: u64| {
            (0..100_u32).map(u32::to_be_bytes).find(|key| token(NamespaceId(2), key) >> 63 == half).unwrap()
        };
        assert_eq!(known.replicas("cart", &key_of(0)), ["h:1", "h:2"]);
        // A member that the view does not have is left out.
        assert_eq!(known.replicas("cart", &key_of(1)), ["h:3"]);
        assert!(known.replicas("bank", b"k").is_empty() && known.replicas("new", b"k").is_empty());
    }
}
