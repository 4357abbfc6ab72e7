//! Changes of the catalogue that clients ask for: namespaces that are made, changed, deleted and taken back,
//! and the level of what the cluster may use.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kv_proto::peer::forward::Request as Forwarded;
use kv_proto::{admin, v1};
use kv_types::catalogue::FeatureLevel;
use kv_types::{
    ClientId, Deletion, Failure, GroupId, Guarantee, Hop, Mutation, Namespace, NamespaceId, NamespaceName,
    NodeId, Placement, Reason, deletion_grace,
};
use tokio::time::{Instant, timeout_at};

use super::answer::{Changed, FromLeader, unexpected_reply};
use super::new_namespace::{altered_counts, namespace_spec};
use super::{Effectless, Strong, passed_on};
use crate::catalogue_machine::{Asked, CatalogueCommand, CatalogueMachine};
use crate::groups::{Group, Leadership, Unserved};
use crate::proposal::{Effect, Point, Reply, Written};

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
            let (members, level) = self.members_and_level()?;
            let spec = namespace_spec(&request, members)?;
            // Where nothing can have been deleted every resend is recognized.
            let again =
                (level >= FeatureLevel::DELETION && mutation.attempt > 1).then_some(mutation.issued_at_ms);
            let command = CatalogueCommand::CreateNamespace { spec, request_id: mutation.request_id, again };
            self.change(&command, &mutation, deadline).await.map(Into::into)
        };
        let onward = || Forwarded::CreateNamespace(request.clone());
        self.change_at_leader(&mutation, local, onward, deadline, hop).await
    }

    /// Deletes a namespace at once. From the answer on this node knows of it no more, and others as soon as
    /// they have the catalogue of that epoch; what was stored for it is removed in the background. The first
    /// deletion of a cluster raises its level, for which every member has to be up.
    pub async fn delete_namespace(
        &self,
        request: admin::DeleteNamespaceRequest,
        deadline: Instant,
        hop: Hop,
    ) -> Result<admin::DeleteNamespaceResponse, Failure> {
        let mutation = v1::Mutation::read(request.mutation.as_ref())?;
        let name = NamespaceName::new(request.name.clone())?;
        let local = async {
            let command = CatalogueCommand::DeleteNamespace { name, asked: asked(&mutation) };
            self.raise_and_change(&command, &mutation, deadline).await.map(Into::into)
        };
        let onward = || Forwarded::DeleteNamespace(request.clone());
        self.change_at_leader(&mutation, local, onward, deadline, hop).await
    }

    /// Deletes a namespace with a grace: it serves nothing from now on, and goes when that is over by the
    /// clocks of a majority. The first one of a cluster raises its level, as a deletion does.
    pub async fn schedule_deletion(
        &self,
        request: admin::ScheduleDeletionRequest,
        deadline: Instant,
        hop: Hop,
    ) -> Result<admin::ScheduleDeletionResponse, Failure> {
        let mutation = v1::Mutation::read(request.mutation.as_ref())?;
        let name = NamespaceName::new(request.name.clone())?;
        let grace = deletion_grace(request.grace_ms.map(Duration::from_millis))?;
        let local = async {
            let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
            let command = |due_ms| {
                let deletion = Deletion { due_ms, grace_ms };
                CatalogueCommand::ScheduleDeletion { name: name.clone(), deletion, asked: asked(&mutation) }
            };
            // Those of an older release do not tell the time.
            self.raise_for(&command(0), deadline).await?;
            let group = self.group(GroupId::CATALOGUE)?;
            let late = |_| Failure::new(Reason::DeadlineExpired, "the clocks were not heard by the deadline");
            let time = timeout_at(deadline, group.time()).await.map_err(late)?;
            let time = time.ok_or_else(|| group.no_quorum("the clocks of a majority are not heard"))?;
            let command = command(time.latest_ms.saturating_add(grace_ms));
            self.change(&command, &mutation, deadline).await.map(Into::into)
        };
        let onward = || Forwarded::ScheduleDeletion(request.clone());
        self.change_at_leader(&mutation, local, onward, deadline, hop).await
    }

    /// Takes a namespace back whose grace is not over.
    pub async fn undelete_namespace(
        &self,
        request: admin::UndeleteNamespaceRequest,
        deadline: Instant,
        hop: Hop,
    ) -> Result<admin::UndeleteNamespaceResponse, Failure> {
        let mutation = v1::Mutation::read(request.mutation.as_ref())?;
        let name = NamespaceName::new(request.name.clone())?;
        let local = async {
            let command = CatalogueCommand::UndeleteNamespace { name, asked: asked(&mutation) };
            self.raise_and_change(&command, &mutation, deadline).await.map(Into::into)
        };
        let onward = || Forwarded::UndeleteNamespace(request.clone());
        self.change_at_leader(&mutation, local, onward, deadline, hop).await
    }

    /// Changes what reads and writes of an available namespace wait for.
    pub async fn alter_namespace(
        &self,
        request: admin::AlterNamespaceRequest,
        deadline: Instant,
        hop: Hop,
    ) -> Result<admin::AlterNamespaceResponse, Failure> {
        let mutation = v1::Mutation::read(request.mutation.as_ref())?;
        let (name, r, w) = altered_counts(&request)?;
        let local = async {
            let command = CatalogueCommand::AlterNamespace { name, r, w, asked: asked(&mutation) };
            self.raise_and_change(&command, &mutation, deadline).await.map(Into::into)
        };
        let onward = || Forwarded::AlterNamespace(request.clone());
        self.change_at_leader(&mutation, local, onward, deadline, hop).await
    }

    /// How many members the cluster has, and its level.
    fn members_and_level(&self) -> Result<(usize, FeatureLevel), Failure> {
        let catalogue = self.0.catalogue.borrow();
        match catalogue.members.len() {
            0 => Err(not_initialized()),
            members => Ok((members, catalogue.level)),
        }
    }

    /// Proposes a change where this node leads group 0, and before that the level that it needs.
    async fn raise_and_change(
        &self,
        command: &CatalogueCommand,
        mutation: &Mutation,
        deadline: Instant,
    ) -> Result<Changed, Unserved> {
        self.raise_for(command, deadline).await?;
        self.change(command, mutation, deadline).await
    }

    /// Raises the level for a change where this node leads group 0, unless it is high enough. A level is
    /// never lowered, so it is not raised for a change that would be refused.
    async fn raise_for(&self, command: &CatalogueCommand, deadline: Instant) -> Result<(), Unserved> {
        let (_, level) = self.members_and_level()?;
        if level < command.needs() {
            let group = self.group(GroupId::CATALOGUE)?;
            group.confirm(deadline).await?;
            let catalogue = Arc::clone(&self.0.catalogue.borrow());
            CatalogueMachine::rehearse(&catalogue, command.clone())?;
            self.raise_here(group, command.needs(), deadline).await?;
        }
        Ok(())
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

fn asked(mutation: &Mutation) -> Asked {
    let Mutation { request_id, issued_at_ms, attempt, .. } = *mutation;
    Asked { request_id, issued_at_ms, again: attempt > 1 }
}

fn not_initialized() -> Failure {
    Failure::new(Reason::NotReady, "the cluster has not been initialized yet")
}
