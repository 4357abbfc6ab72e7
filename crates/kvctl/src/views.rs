//! What the members of a cluster say of themselves: status, benchmarks, advice and what is waited for are
//! made of it.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use kv_client::{Client, NodeStatus, Topology};
use kv_types::NodeId;

/// What each member says, `None` for those that cannot be asked.
pub(crate) type Views = BTreeMap<NodeId, Option<NodeStatus>>;

/// Asks every member at once.
pub(crate) async fn views(client: &Client, topology: &Topology) -> Views {
    let asked = topology
        .members
        .values()
        .map(|member| async move { (member.id, client.admin().status(&member.client_address).await.ok()) });
    join_all(asked).await.into_iter().collect()
}
