//! Namespaces, topology, and what single nodes see.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use kv_proto::{admin, v1};
use kv_types::{Failure, GroupId, Mode, NamespaceName, NamespaceSpec, NodeId, Reason, WriteId};
use tokio::time::{Instant, timeout};

use crate::attempts::{Attempts, Route};
use crate::endpoint::parse_address;
use crate::limits::TOPOLOGY_TIMEOUT;
use crate::outcome::{Answer, Error, malformed};
use crate::policy::Effect;
use crate::rpc::Rpc;
use crate::session::Session;
use crate::strong::checked;
use crate::topology::{Leader, NamespaceInfo, Topology};

pub use kv_proto::admin::{
    CopyState, ExplainKeyResponse as Explanation, ExplainedCopy, ExplainedValue, GetDigestResponse as Digest,
    GetRingOwnersResponse as RingOwners, GetStatusResponse as NodeStatus, GroupRole, GroupStatus,
    PartLatency, PartitionDigest, PeerState, PeerStatus, RefusalCount, StorageStatus,
};

/// The administrative handle.
#[derive(Clone)]
pub struct Admin {
    attempts: Arc<Attempts>,
    resend: Option<WriteId>,
}

impl Admin {
    pub(crate) fn new(attempts: Arc<Attempts>) -> Self {
        Self { attempts, resend: None }
    }

    /// A handle whose changes of namespaces are one that was sent before, under this id: it is applied once,
    /// and its answer is that of the first time. Everything that it says must be the same. The servers
    /// remember so many changes; one that is older is refused as `REQUEST_EXPIRED`, which leaves it unknown.
    pub fn resending(mut self, id: WriteId) -> Self {
        self.resend = Some(id);
        self
    }

    /// Creates a namespace. One of that name with the same settings is answered as if just made.
    pub async fn create_namespace(&self, spec: NamespaceSpec) -> Result<Answer<NamespaceInfo>, Error> {
        let begun = Instant::now();
        // Its own session: creating is rare, and a first request needs no other before it.
        let (n, r, w, strict) = match spec.replication {
            Some(replication) => {
                (replication.n.into(), replication.r.into(), replication.w.into(), !replication.sloppy)
            }
            None => (0, 0, 0, false),
        };
        let mode = match spec.mode {
            Mode::Strong => admin::Mode::Strong,
            Mode::Available => admin::Mode::Available,
        };
        let build = |mutation| admin::CreateNamespaceRequest {
            name: spec.name.as_str().to_owned(),
            mode: mode.into(),
            n,
            r,
            w,
            strict,
            guarantee: v1::Guarantee::from(spec.guarantee).into(),
            mutation,
        };
        let reply = self.change(build).await?;
        changed(reply.namespace.as_ref(), reply.receipt.as_ref(), begun)
    }

    /// Sends a change of the catalogue, which is applied once.
    async fn change<Q: Rpc>(&self, build: impl FnOnce(Option<v1::Mutation>) -> Q) -> Result<Q::Reply, Error> {
        let deadline = self.attempts.admin_deadline();
        if let Some(id) = self.resend {
            return self.attempts.resend(id, Route::Any, deadline, build).await;
        }
        let ticket = Session::new(&self.attempts.env.entropy).issue();
        let ticket = ticket.ok_or_else(|| Failure::new(Reason::ClientLimit, "a new session has no room"))?;
        let (mutation, id) = self.attempts.mutation(&ticket);
        let result = self.attempts.run(build(Some(mutation)), Effect::Once, Route::Any, deadline).await;
        result.map_err(|error| error.of_write(id))
    }

    /// Deletes a namespace and everything that is stored for it at once; the namespace as it was. There is no
    /// way back. A name that no namespace has is `NAMESPACE_UNKNOWN`.
    pub async fn delete_namespace(&self, name: &NamespaceName) -> Result<Answer<NamespaceInfo>, Error> {
        let begun = Instant::now();
        let name = name.as_str().to_owned();
        let build = |mutation| admin::DeleteNamespaceRequest { name, mutation };
        let reply = self.change(build).await?;
        changed(reply.namespace.as_ref(), reply.receipt.as_ref(), begun)
    }

    /// Deletes a namespace with a grace, by default a day: it serves nothing from now on
    /// (`DELETION_PENDING`), and goes for good when the grace is over. The namespace says until when it can
    /// be taken back.
    pub async fn schedule_deletion(
        &self,
        name: &NamespaceName,
        grace: Option<Duration>,
    ) -> Result<Answer<NamespaceInfo>, Error> {
        let begun = Instant::now();
        let name = name.as_str().to_owned();
        let grace_ms = grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        let build = |mutation| admin::ScheduleDeletionRequest { name, grace_ms, mutation };
        let reply = self.change(build).await?;
        changed(reply.namespace.as_ref(), reply.receipt.as_ref(), begun)
    }

    /// Takes a namespace back whose grace is not over, with everything that is stored for it.
    /// `NAMESPACE_EXISTS` for one that is not deleted, `NAMESPACE_UNKNOWN` when it is too late.
    pub async fn undelete_namespace(&self, name: &NamespaceName) -> Result<Answer<NamespaceInfo>, Error> {
        let begun = Instant::now();
        let name = name.as_str().to_owned();
        let build = |mutation| admin::UndeleteNamespaceRequest { name, mutation };
        let reply = self.change(build).await?;
        changed(reply.namespace.as_ref(), reply.receipt.as_ref(), begun)
    }

    /// Changes what reads (`r`) and writes (`w`) of an available namespace wait for, unless they say so
    /// themselves; what is `None` stays. `MODE_MISMATCH` for a strong one, of which nothing changes.
    pub async fn alter_namespace(
        &self,
        name: &NamespaceName,
        r: Option<u8>,
        w: Option<u8>,
    ) -> Result<Answer<NamespaceInfo>, Error> {
        let begun = Instant::now();
        let (name, r, w) = (name.as_str().to_owned(), r.map(Into::into), w.map(Into::into));
        let build = |mutation| admin::AlterNamespaceRequest { name, r, w, mutation };
        let reply = self.change(build).await?;
        changed(reply.namespace.as_ref(), reply.receipt.as_ref(), begun)
    }

    /// All namespaces, by name, as some node has them.
    pub async fn list_namespaces(&self) -> Result<Vec<NamespaceInfo>, Error> {
        let reply = self.read(admin::ListNamespacesRequest {}, Route::Any).await?;
        let namespaces: Result<Vec<_>, Failure> =
            reply.namespaces.iter().map(NamespaceInfo::try_from).collect();
        Ok(namespaces.map_err(Failure::of_read)?)
    }

    /// Members, namespaces and leaders, as some node knows them.
    pub async fn topology(&self) -> Result<Topology, Error> {
        let reply = self.read(admin::GetTopologyRequest {}, Route::Any).await?;
        let topology = Topology::try_from(&reply).map_err(Failure::of_read)?;
        self.attempts.learn_topology(topology.clone());
        Ok(topology)
    }

    /// The newest topology that any member knows which can be reached: one that is cut off may not have heard
    /// of the last changes. `known` is what one of them said; what is at the address of a member now and
    /// belongs to another cluster does not count.
    pub async fn newest_topology(&self, known: Topology) -> Topology {
        let ask = |address: String| async move {
            let address = parse_address(&address).ok()?;
            let reply = self.read(admin::GetTopologyRequest {}, Route::Node(&address));
            Topology::try_from(&timeout(TOPOLOGY_TIMEOUT, reply).await.ok()?.ok()?).ok()
        };
        let members = known.members.values().map(|member| ask(member.client_address.clone()));
        let said = join_all(members).await.into_iter().flatten();
        let said = said.filter(|said| said.cluster_id == known.cluster_id).collect::<Vec<_>>();
        let newest =
            said.into_iter().fold(known, |best, said| if said.epoch > best.epoch { said } else { best });
        self.attempts.learn_topology(newest.clone());
        newest
    }

    /// What the node at this endpoint sees of itself and of the others.
    pub async fn status(&self, endpoint: &str) -> Result<NodeStatus, Error> {
        self.read(admin::GetStatusRequest {}, Route::Node(&parse_address(endpoint)?)).await
    }

    /// Moves the leadership of a Raft group. Not resent when its fate is unknown.
    pub async fn transfer_leader(&self, group: GroupId, to: NodeId) -> Result<Leader, Error> {
        let request = admin::TransferLeaderRequest { group: group.0, to: to.0 };
        let reply =
            self.attempts.run(request, Effect::Repeats, Route::Any, self.attempts.admin_deadline()).await?;
        Ok(Leader { node: (reply.leader != 0).then_some(NodeId(reply.leader)), term: reply.term })
    }

    /// Where a key lives.
    pub async fn ring_owners(&self, namespace: &str, key: impl AsRef<[u8]>) -> Result<RingOwners, Error> {
        let request = admin::GetRingOwnersRequest { namespace: namespace.to_owned(), key: checked(key)? };
        self.read(request, Route::Any).await
    }

    /// What a node can find out about a key now: copies, values, and how many replicas a request would find.
    /// With an endpoint: from the viewpoint of that node.
    pub async fn explain(
        &self,
        endpoint: Option<&str>,
        namespace: &str,
        key: impl AsRef<[u8]>,
    ) -> Result<Explanation, Error> {
        let request = admin::ExplainKeyRequest { namespace: namespace.to_owned(), key: checked(key)? };
        match endpoint {
            Some(endpoint) => self.read(request, Route::Node(&parse_address(endpoint)?)).await,
            None => self.read(request, Route::Any).await,
        }
    }

    /// Digests of what the node at this endpoint keeps of a namespace: of its ring partitions, or of a strong
    /// one as applied there.
    pub async fn digest(&self, endpoint: &str, namespace: &str) -> Result<Digest, Error> {
        let request = admin::GetDigestRequest { namespace: namespace.to_owned() };
        self.read(request, Route::Node(&parse_address(endpoint)?)).await
    }

    async fn read<Q: crate::rpc::Rpc>(&self, request: Q, route: Route<'_>) -> Result<Q::Reply, Error> {
        self.attempts.run(request, Effect::None, route, self.attempts.read_deadline()).await
    }
}

/// The answer to a change of a namespace.
fn changed(
    namespace: Option<&admin::Namespace>,
    receipt: Option<&v1::Receipt>,
    begun: Instant,
) -> Result<Answer<NamespaceInfo>, Error> {
    let namespace = namespace.ok_or_else(|| malformed("namespace"))?;
    Answer::new(NamespaceInfo::try_from(namespace)?, receipt, begun)
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin")
    }
}
