//! What administrators ask a node about itself: topology, status, owners of a key, digests. Reads like any
//! other, behind the same admission.

use std::collections::BTreeMap;

use kv_peer::PeerState;
use kv_proto::admin;
use kv_types::catalogue::{Catalogue, token};
use kv_types::{Failure, Key, Placement};

use crate::admission::Class;
use crate::membership::{advertised, differences};
use crate::requests::not_ready;
use crate::router::{About, Caller, Router};

impl Router {
    pub(crate) fn list_namespaces(&self, caller: &Caller) -> Result<admin::ListNamespacesResponse, Failure> {
        caller.place.enter(Class::Admin)?;
        let catalogue = self.catalogue();
        if catalogue.members.is_empty() {
            return Err(not_ready());
        }
        Ok(admin::ListNamespacesResponse { namespaces: namespaces(&catalogue), epoch: catalogue.epoch.0 })
    }

    pub(crate) fn topology(&self, caller: &Caller) -> Result<admin::GetTopologyResponse, Failure> {
        caller.place.enter(Class::Admin)?;
        let catalogue = self.catalogue();
        let leader = |group: admin::GroupStatus| admin::GroupLeader {
            group: group.group,
            leader: group.leader,
            term: group.term,
        };
        Ok(admin::GetTopologyResponse {
            cluster_id: kv_proto::cluster_id_bytes(self.config.cluster_id),
            answered_by: self.node().0,
            epoch: catalogue.epoch.0,
            members: advertised(&catalogue, &self.config.members).values().map(admin::Member::from).collect(),
            namespaces: namespaces(&catalogue),
            leaders: self.strong.status().into_iter().map(leader).collect(),
            rings: catalogue.rings.values().map(admin::Ring::from).collect(),
        })
    }

    pub(crate) fn status(&self, caller: &Caller) -> Result<admin::GetStatusResponse, Failure> {
        caller.place.enter(Class::Admin)?;
        let hints: BTreeMap<_, _> = self.available.hints_pending();
        let peers = self.peers.snapshot().into_iter().map(|(node, liveness)| admin::PeerStatus {
            node: node.0,
            state: state_of(liveness.state).into(),
            last_heard_ms: liveness.last_heard.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
            hints_pending: hints.get(&node).copied().unwrap_or(0),
        });
        let stats = self.storage.stats();
        Ok(admin::GetStatusResponse {
            node: self.node().0,
            cluster_id: kv_proto::cluster_id_bytes(self.config.cluster_id),
            epoch: self.catalogue().epoch.0,
            groups: self.strong.status(),
            peers: peers.collect(),
            storage: Some(admin::StorageStatus {
                fsyncs: stats.fsyncs,
                records: stats.records,
                bytes: stats.bytes,
                checkpoints: stats.checkpoints,
                log_bytes: stats.log_bytes,
                memtable_bytes: stats.memtable_bytes,
            }),
            keys_with_siblings: self.available.keys_with_siblings(),
            hints_pending: hints.values().sum(),
            rebuilding_partitions: self.available.rebuilding_partitions(),
            version: crate::VERSION.to_owned(),
            writes_acknowledged: self.acknowledged(),
            refusals: self.refusals(),
            latencies: self.latencies.summary(&self.strong, &self.storage),
            differences: self.differences(),
        })
    }

    /// Where the cluster file differs from the catalogue, once that is there.
    fn differences(&self) -> Vec<String> {
        let catalogue = self.catalogue();
        if catalogue.members.is_empty() { Vec::new() } else { differences(&catalogue, &self.config.members) }
    }

    /// What was refused of peers, by reason.
    fn refusals(&self) -> Vec<admin::RefusalCount> {
        let messages = ("peer_message".to_owned(), self.strong.peer_messages_refused());
        let steps = self.strong.snapshot_refusals().into_iter();
        steps
            .map(|(reason, count)| (format!("snapshot_{reason}"), count))
            .chain([messages])
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| admin::RefusalCount { reason, count })
            .collect()
    }

    pub(crate) async fn owners(
        &self,
        request: &admin::GetRingOwnersRequest,
        caller: &Caller,
    ) -> Result<admin::GetRingOwnersResponse, Failure> {
        let namespace =
            self.namespace(About::Name(&request.namespace), caller).await.map_err(Failure::of_read)?;
        let key = Key::new(request.key.clone())?;
        match namespace.placement {
            Placement::Available { .. } => {
                self.available.owners(&namespace, key.as_bytes()).map_err(Failure::of_read)
            }
            Placement::Strong { group } => {
                let catalogue = self.catalogue();
                let voters =
                    catalogue.groups.get(&group).map(|group| group.voters.as_slice()).unwrap_or_default();
                Ok(admin::GetRingOwnersResponse {
                    ring: 0,
                    partition: 0,
                    token: token(namespace.id, key.as_bytes()),
                    primaries: voters.iter().map(|node| node.0).collect(),
                    fallbacks: Vec::new(),
                    epoch: catalogue.epoch.0,
                })
            }
        }
    }

    /// What is known of a key now. Of a strong namespace: its voters and the leader.
    pub(crate) async fn explain(
        &self,
        request: &admin::ExplainKeyRequest,
        caller: &Caller,
    ) -> Result<admin::ExplainKeyResponse, Failure> {
        let (name, key) = (request.namespace.clone(), request.key.clone());
        let namespace = self.namespace(About::Name(&name), caller).await.map_err(Failure::of_read)?;
        match namespace.placement {
            Placement::Available { .. } => {
                let work = self.available.explain(&namespace, &key, caller.deadline.work);
                self.read(caller.deadline, work).await
            }
            Placement::Strong { group } => {
                let owners =
                    self.owners(&admin::GetRingOwnersRequest { namespace: name, key }, caller).await?;
                let status = self.strong.status().into_iter().find(|known| known.group == group.0);
                Ok(admin::ExplainKeyResponse {
                    viewpoint: self.node().0,
                    owners: Some(owners),
                    leader: status.as_ref().map_or(0, |known| known.leader),
                    quorum: status.is_some_and(|known| known.quorum && known.leader > 0),
                    ..Default::default()
                })
            }
        }
    }

    pub(crate) async fn digest(
        &self,
        request: &admin::GetDigestRequest,
        caller: &Caller,
    ) -> Result<admin::GetDigestResponse, Failure> {
        let namespace =
            self.namespace(About::Name(&request.namespace), caller).await.map_err(Failure::of_read)?;
        self.read(caller.deadline, async {
            match namespace.placement {
                Placement::Available { .. } => self.available.digest(&namespace).await,
                Placement::Strong { .. } => self.strong.digest(&namespace, caller.deadline.work).await,
            }
        })
        .await
    }
}

fn state_of(state: PeerState) -> admin::PeerState {
    match state {
        PeerState::Up => admin::PeerState::Up,
        PeerState::Suspected => admin::PeerState::Suspected,
        PeerState::Down => admin::PeerState::Down,
    }
}

fn namespaces(catalogue: &Catalogue) -> Vec<admin::Namespace> {
    let mut all: Vec<admin::Namespace> = catalogue
        .namespaces
        .values()
        .map(|namespace| {
            let group = match namespace.placement {
                Placement::Strong { group } => catalogue.groups.get(&group),
                Placement::Available { .. } => None,
            };
            admin::Namespace::of(namespace, group)
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}
