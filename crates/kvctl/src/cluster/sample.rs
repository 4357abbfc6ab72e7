//! A cluster of five for tests, of which n3 leads.

use std::collections::BTreeMap;

use kv_client::{GroupStatus, NamespaceInfo, NodeStatus, PeerState, PeerStatus, Topology};
use kv_types::{GroupId, NodeId, Placement, Replication};

/// What a node says of itself and of the others, of which it does not hear these.
pub(super) fn status(node: u64, quorum: bool, lost: &[u64]) -> NodeStatus {
    let state = |id: &u64| if lost.contains(id) { PeerState::Down } else { PeerState::Up };
    let others = (1..=5).filter(|id| *id != node);
    let peers = others.map(|id| PeerStatus { node: id, state: state(&id).into(), ..Default::default() });
    let reachable_voters = 5 - u32::try_from(lost.len()).unwrap();
    let group = GroupStatus {
        group: 1,
        role: kv_client::GroupRole::Follower.into(),
        leader: if quorum { 3 } else { 0 },
        voters: (1..=5).collect(),
        quorum,
        reachable_voters,
        able_voters: reachable_voters,
        ..Default::default()
    };
    NodeStatus { node, epoch: 1, peers: peers.collect(), groups: vec![group], ..Default::default() }
}

/// One namespace of each mode.
pub(super) fn topology(replication: Replication) -> Topology {
    use kv_types::catalogue::Member;
    use kv_types::{ClusterId, Epoch, Guarantee, Namespace, NamespaceId, NamespaceName, RingId};
    let namespace = |name: &str, placement| NamespaceInfo {
        namespace: Namespace {
            id: NamespaceId(1),
            name: NamespaceName::new(name).unwrap(),
            settings_version: 1,
            deletion: None,
            guarantee: Guarantee::Eventual,
            placement,
        },
        voters: 5,
    };
    let member = |id| Member {
        id: NodeId(id),
        client_address: format!("h:{id}"),
        peer_address: String::new(),
        zone: String::new(),
    };
    Topology {
        cluster_id: ClusterId(1),
        answered_by: NodeId(1),
        epoch: Epoch(1),
        members: (1..=5).map(|id| (NodeId(id), member(id))).collect(),
        namespaces: [
            ("bank".to_owned(), namespace("bank", Placement::Strong { group: GroupId(1) })),
            ("cart".to_owned(), namespace("cart", Placement::Available { ring: RingId(1), replication })),
        ]
        .into(),
        leaders: BTreeMap::new(),
        rings: BTreeMap::new(),
    }
}
