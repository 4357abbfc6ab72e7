//! Changes of the catalogue that clients ask for: namespaces that are made and deleted, and the level of what
//! the cluster may use.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering;

use kv_proto::peer::forward::Request as Forwarded;
use kv_proto::{admin, v1};
use kv_types::catalogue::FeatureLevel;
use kv_types::{
    ClientId, Failure, GroupId, Guarantee, Hop, Mutation, Namespace, NamespaceId, NamespaceName, NodeId,
    Placement, Reason,
};
use tokio::time::{Instant, timeout_at};

use super::answer::{FromLeader, unexpected_reply};
use super::new_namespace::namespace_spec;
use super::{Effectless, Strong, passed_on};
use crate::catalogue_machine::CatalogueCommand;
use crate::groups::{Group, Leadership, Unserved};
use crate::proposal::{Effect, Point, Reply, Written};

/// A change of a namespace that was decided, and its evidence.
struct Changed {
    namespace: admin::Namespace,
    receipt: v1::Receipt,
}

impl Strong {
    /// Creates a namespace.
    pub async fn create_namespace(
        &self,
        request: admin::CreateNamespaceRequest,
        deadline: Instant,
        hop: Hop,
    ) -> Result<admin::CreateNamespaceResponse, Failure> {
        let mutation = v1::Mutation::read(request.mutation.as_ref())?;
        let local = async {
            let (members, deletes) = self.members_and_deletion()?;
            let spec = namespace_spec(&request, members)?;
            // Where nothing can have been deleted every resend is recognized.
            let again = (deletes && mutation.attempt > 1).then_some(mutation.issued_at_ms);
            let command = CatalogueCommand::CreateNamespace { spec, request_id: mutation.request_id, again };
            let Changed { namespace, receipt } = self.change(&command, &mutation, deadline).await?;
            Ok(admin::CreateNamespaceResponse { namespace: Some(namespace), receipt: Some(receipt) })
        };
        let onward = || Forwarded::CreateNamespace(request.clone());
        self.change_at_leader(&mutation, local, onward, deadline, hop).await
    }

    /// Deletes a namespace. From the answer on this node knows of it no more, and others as soon as they have
    /// the catalogue of that epoch; what was stored for it is removed in the background. The first deletion
    /// of a cluster raises its level, for which every member has to be up.
    pub async fn delete_namespace(
        &self,
        request: admin::DeleteNamespaceRequest,
        deadline: Instant,
        hop: Hop,
    ) -> Result<admin::DeleteNamespaceResponse, Failure> {
        let mutation = v1::Mutation::read(request.mutation.as_ref())?;
        let name = NamespaceName::new(request.name.clone())?;
        let local = async {
            let (_, deletes) = self.members_and_deletion()?;
            if !deletes {
                self.raise_here(self.group(GroupId::CATALOGUE)?, FeatureLevel::DELETION, deadline).await?;
            }
            let again = mutation.attempt > 1;
            let Mutation { request_id, issued_at_ms, .. } = mutation;
            let command = CatalogueCommand::DeleteNamespace { name, request_id, issued_at_ms, again };
            let Changed { namespace, receipt } = self.change(&command, &mutation, deadline).await?;
            Ok(admin::DeleteNamespaceResponse { namespace: Some(namespace), receipt: Some(receipt) })
        };
        let onward = || Forwarded::DeleteNamespace(request.clone());
        self.change_at_leader(&mutation, local, onward, deadline, hop).await
    }

    /// How many members the cluster has, and whether its level allows deletions.
    fn members_and_deletion(&self) -> Result<(usize, bool), Failure> {
        let catalogue = self.0.catalogue.borrow();
        match catalogue.members.len() {
            0 => Err(not_initialized()),
            members => Ok((members, catalogue.allows(FeatureLevel::DELETION))),
        }
    }

    /// Has a change of a namespace decided at the leader of group 0. A client that asked this node finds it
    /// done here, when this node keeps up.
    async fn change_at_leader<T: FromLeader>(
        &self,
        mutation: &Mutation,
        local: impl Future<Output = Result<T, Unserved>>,
        onward: impl FnOnce() -> Forwarded,
        deadline: Instant,
        hop: Hop,
    ) -> Result<T, Failure> {
        let named = |failure: Failure| failure.of_request(mutation.request_id);
        let group = self.group(GroupId::CATALOGUE)?;
        let local = pin!(local);
        let onward = || passed_on(onward());
        let about = NamespaceId::default();
        let changed = self.at_leader(group, about, Effectless::No, local, onward, deadline, hop);
        let changed = changed.await.map_err(named)?;
        if let Some(epoch) = changed.epoch() {
            let patience = deadline.min(Instant::now() + self.0.config.election_max);
            let mut shown = self.0.catalogue.clone();
            let _ = timeout_at(patience, shown.wait_for(|catalogue| catalogue.epoch.0 >= epoch)).await;
        }
        Ok(changed)
    }

    /// Proposes a change of a namespace where this node leads group 0.
    async fn change(
        &self,
        command: &CatalogueCommand,
        mutation: &Mutation,
        deadline: Instant,
    ) -> Result<Changed, Unserved> {
        self.check_level(command.needs())?;
        let group = self.group(GroupId::CATALOGUE)?;
        let (about, client) = (NamespaceId::default(), mutation.request_id.client_id);
        let response = group.propose(about, client, command.encode(), deadline).await?;
        let Reply::Catalogue(decided) = response.data else { return Err(unexpected_reply().into()) };
        let done = decided?;
        self.0.writes.fetch_add(1, Ordering::Relaxed);
        let namespace = done.namespace.as_ref().ok_or_else(unexpected_reply)?;
        let written = Written {
            effect: Effect::Put,
            // What is applied is published: the change is in there.
            namespace_revision: self.0.catalogue.borrow().epoch.0,
            point: Point { term: response.log_id.leader_id.term, index: response.log_id.index },
            deduplicated: done.deduplicated,
        };
        let receipt = self.receipt_of_write(Guarantee::Linearizable, group, mutation, &written);
        Ok(Changed { namespace: self.shown(namespace), receipt: (&receipt).into() })
    }

    fn shown(&self, namespace: &Namespace) -> admin::Namespace {
        let catalogue = self.0.catalogue.borrow();
        let data_group = match namespace.placement {
            Placement::Strong { group } => catalogue.groups.get(&group),
            Placement::Available { .. } => None,
        };
        admin::Namespace::of(namespace, data_group)
    }

    /// Raises what the cluster may use, once every member supports it; the level afterwards. Asks the
    /// members, so it is for the leader of group 0; `NOT_LEADER` elsewhere. `NOT_READY` names a member that
    /// has to be upgraded, or did not answer.
    pub async fn raise_level(&self, to: FeatureLevel, deadline: Instant) -> Result<FeatureLevel, Failure> {
        let group = self.group(GroupId::CATALOGUE)?;
        match group.leadership() {
            Leadership::Leads => {}
            Leadership::Follows(leader) => return Err(self.not_leader(group, leader)),
            Leadership::Lost => return Err(group.no_quorum("it hears no leader")),
        }
        match self.raise_here(group, to, deadline).await {
            Ok(level) => Ok(level),
            Err(Unserved::Failed(failure)) => Err(failure),
            Err(Unserved::Elsewhere(Some(leader))) => Err(self.not_leader(group, leader)),
            Err(Unserved::Elsewhere(None)) => Err(group.no_quorum("it does not lead any more")),
        }
    }

    /// Raises the level where this node leads group 0.
    async fn raise_here(
        &self,
        group: &Group,
        to: FeatureLevel,
        deadline: Instant,
    ) -> Result<FeatureLevel, Unserved> {
        let members: Vec<NodeId> = self.0.catalogue.borrow().members.keys().copied().collect();
        let late =
            |_| Failure::new(Reason::DeadlineExpired, "the members were not all heard by the deadline");
        let reports = timeout_at(deadline, group.levels(members.into_iter())).await.map_err(late)?;
        let command = CatalogueCommand::RaiseLevel { to, reports };
        let (about, client) = (NamespaceId::default(), ClientId::default());
        let response = group.propose(about, client, command.encode(), deadline).await?;
        let Reply::Catalogue(decided) = response.data else { return Err(unexpected_reply().into()) };
        decided?;
        Ok(self.0.catalogue.borrow().level)
    }

    /// Refuses what the cluster's level does not allow: a member of an older release could not read it.
    pub(super) fn check_level(&self, needed: FeatureLevel) -> Result<(), Failure> {
        let catalogue = self.0.catalogue.borrow();
        if catalogue.allows(needed) {
            return Ok(());
        }
        let message = format!(
            "this needs {needed}, and the cluster is at {}: upgrade every member, then raise the level",
            catalogue.level
        );
        Err(Failure::new(Reason::NotReady, message).with("level", catalogue.level.0))
    }
}

fn not_initialized() -> Failure {
    Failure::new(Reason::NotReady, "the cluster has not been initialized yet")
}
