//! The state of group 0: the catalogue, and which request made each namespace, or deleted it. Every change
//! takes an epoch and is published whole, so that a node routes by its last known epoch also when it is cut
//! off.
//!
//! What is kept of requests is bounded: of every namespace that is there the one that made it, and of the
//! last deletions both requests and the namespace as it was. A resend that may be older than these is refused
//! as *unknown*, and nothing is done again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use kv_storage::Storage;
use kv_types::catalogue::{Catalogue, FeatureLevel, Group, Member, Ring};
use kv_types::limits::{MAX_NAMESPACES, MAX_VOTERS, RING_PARTITIONS};
use kv_types::{
    ClientId, ClusterId, Epoch, Failure, GroupId, Guarantee, Mode, Namespace, NamespaceId, NamespaceName,
    NamespaceSpec, NodeId, Placement, Reason, Replication, RequestId, RingId,
};
use tokio::sync::watch;

use crate::codec::{self, CodecError, Reader, Write};
use crate::limits::{DELETIONS_KEPT, FORGOTTEN_AROUND};
use crate::machine::Domain;
use crate::machine_error::MachineError;
use crate::proposal::{Catalogued, Point, Proposal, Reply};
use crate::tables::{Space, Stage, Table, keys};

/// Replicas per key of the ring that every cluster has, where there are so many members.
const DEFAULT_N: u8 = 3;

/// A change of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CatalogueCommand {
    /// The first change of a cluster: its members, the default ring and the first data group. It has no
    /// effect on a catalogue that has members.
    InitCluster {
        /// The cluster.
        cluster_id: ClusterId,
        /// Its members.
        members: Vec<Member>,
    },
    /// The cluster may use the features of a higher level from now on.
    RaiseLevel {
        /// The new level.
        to: FeatureLevel,
        /// What each member said that it supports, when the proposer asked.
        reports: BTreeMap<NodeId, FeatureLevel>,
    },
    /// A new namespace.
    CreateNamespace {
        /// Its name, mode and settings.
        spec: NamespaceSpec,
        /// The request, by which a resend is recognized.
        request_id: RequestId,
        /// When it was issued, if it was sent before: it may have been taken, and forgotten since. Said only
        /// at a level that has deletions.
        again: Option<u64>,
    },
    /// A namespace goes, with everything that is stored for it.
    DeleteNamespace {
        /// Its name.
        name: NamespaceName,
        /// The request, by which a resend is recognized.
        request_id: RequestId,
        /// When it was issued, milliseconds since 1970.
        issued_at_ms: u64,
        /// It was sent before.
        again: bool,
    },
}

const INIT_CLUSTER: u8 = 0;
const CREATE_NAMESPACE: u8 = 1;
const RAISE_LEVEL: u8 = 2;
const DELETE_NAMESPACE: u8 = 3;
const CREATE_NAMESPACE_AGAIN: u8 = 4;

/// Version of the catalogue's row: the first had no feature level.
const VERSION: u8 = 2;
/// As [`VERSION`], and deletions behind it: from the level on that has them.
const VERSION_WITH_DELETIONS: u8 = 3;

impl CatalogueCommand {
    /// The level of the cluster from which on it may be proposed.
    pub(crate) fn needs(&self) -> FeatureLevel {
        match self {
            Self::InitCluster { .. }
            | Self::RaiseLevel { .. }
            | Self::CreateNamespace { again: None, .. } => FeatureLevel::FIRST,
            Self::CreateNamespace { again: Some(_), .. } | Self::DeleteNamespace { .. } => {
                FeatureLevel::DELETION
            }
        }
    }

    pub(crate) fn encode(&self) -> Proposal {
        let mut out = codec::versioned(codec::VERSION, 256);
        match self {
            Self::InitCluster { cluster_id, members } => {
                out.put_u8(INIT_CLUSTER);
                out.put_u128(cluster_id.0);
                put_members(&mut out, members.iter());
            }
            Self::RaiseLevel { to, reports } => {
                out.put_u8(RAISE_LEVEL);
                out.put_u32(to.0);
                out.put_u32(codec::length(reports.len()));
                for (member, level) in reports {
                    out.put_u64(member.0);
                    out.put_u32(level.0);
                }
            }
            Self::DeleteNamespace { name, request_id, issued_at_ms, again } => {
                out.put_u8(DELETE_NAMESPACE);
                put_request_id(&mut out, *request_id);
                out.put_block(name.as_str().as_bytes());
                out.put_u64(*issued_at_ms);
                out.put_flag(*again);
            }
            Self::CreateNamespace { spec, request_id, again } => {
                out.put_u8(if again.is_some() { CREATE_NAMESPACE_AGAIN } else { CREATE_NAMESPACE });
                again.iter().for_each(|issued_at_ms| out.put_u64(*issued_at_ms));
                put_request_id(&mut out, *request_id);
                out.put_block(spec.name.as_str().as_bytes());
                out.put_flag(spec.mode == Mode::Available);
                out.put_u8(guarantee_number(spec.guarantee));
                out.put_flag(spec.replication.is_some());
                if let Some(replication) = spec.replication {
                    put_replication(&mut out, replication);
                }
            }
        }
        Proposal(out.into())
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(bytes, "catalogue command", codec::VERSION)?;
        let command = match reader.u8()? {
            INIT_CLUSTER => {
                Self::InitCluster { cluster_id: ClusterId(reader.u128()?), members: members(&mut reader)? }
            }
            kind @ (CREATE_NAMESPACE | CREATE_NAMESPACE_AGAIN) => {
                let again = if kind == CREATE_NAMESPACE_AGAIN { Some(reader.u64()?) } else { None };
                let request_id = request_id(&mut reader)?;
                let name = name(&mut reader)?;
                let mode = if reader.flag()? { Mode::Available } else { Mode::Strong };
                let guarantee = guarantee(&mut reader)?;
                let replication = reader.option(replication)?;
                Self::CreateNamespace {
                    spec: NamespaceSpec { name, mode, replication, guarantee },
                    request_id,
                    again,
                }
            }
            DELETE_NAMESPACE => {
                let request_id = request_id(&mut reader)?;
                let (name, issued_at_ms) = (name(&mut reader)?, reader.u64()?);
                Self::DeleteNamespace { name, request_id, issued_at_ms, again: reader.flag()? }
            }
            RAISE_LEVEL => {
                let to = FeatureLevel(reader.u32()?);
                let reports =
                    reader.list(|reader| Ok((NodeId(reader.u64()?), FeatureLevel(reader.u32()?))))?;
                Self::RaiseLevel { to, reports: reports.into_iter().collect() }
            }
            found => return Err(reader.newer("kind", found)),
        };
        reader.end().map(|()| command)
    }
}

/// A namespace that was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Deletion {
    /// As it was.
    namespace: Namespace,
    /// The request that made it.
    creator: Option<RequestId>,
    /// The request that deleted it, and when that was issued.
    by: RequestId,
    issued_at_ms: u64,
}

/// Which requests made and deleted namespaces, as far as that is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// By namespace that is there: its resends are always recognized.
    creators: BTreeMap<NamespaceId, RequestId>,
    /// The last deletions, the oldest first.
    deletions: VecDeque<Deletion>,
    /// When the latest of those before them was issued; 0 without any.
    forgotten_until_ms: u64,
}

/// What an earlier attempt of a request did.
enum Before<'a> {
    Made(NamespaceId),
    MadeAndGone(&'a Namespace),
    Deleted(&'a Namespace),
    Nothing,
}

impl Requests {
    /// What became of a request. `again`: when it was issued, if it was sent before.
    fn look_up(&self, request: RequestId, again: Option<u64>) -> Result<Before<'_>, Failure> {
        if let Some((made, _)) = self.creators.iter().find(|(_, by)| **by == request) {
            return Ok(Before::Made(*made));
        }
        for deletion in &self.deletions {
            if deletion.by == request {
                return Ok(Before::Deleted(&deletion.namespace));
            }
            if deletion.creator == Some(request) {
                return Ok(Before::MadeAndGone(&deletion.namespace));
            }
        }
        // A namespace is made before it is deleted, by clocks that differ by no more than that.
        let forgotten = self.forgotten_until_ms.saturating_add(FORGOTTEN_AROUND.as_millis() as u64);
        if self.forgotten_until_ms > 0 && again.is_some_and(|issued_at_ms| issued_at_ms <= forgotten) {
            let message = format!(
                "this request was sent before, and may have been taken: only the last {DELETIONS_KEPT} deletions are \
                 remembered"
            );
            return Err(Failure::new(Reason::RequestExpired, message));
        }
        Ok(Before::Nothing)
    }

    fn deleted(&mut self, namespace: Namespace, by: RequestId, issued_at_ms: u64) {
        let creator = self.creators.remove(&namespace.id);
        self.deletions.push_back(Deletion { namespace, creator, by, issued_at_ms });
        while self.deletions.len() > DELETIONS_KEPT
            && let Some(oldest) = self.deletions.pop_front()
        {
            // At least one: there is something that is forgotten.
            self.forgotten_until_ms = self.forgotten_until_ms.max(oldest.issued_at_ms).max(1);
        }
    }
}

/// Group 0's state.
#[derive(Debug)]
pub(crate) struct CatalogueMachine {
    catalogue: Catalogue,
    requests: Requests,
    published: watch::Sender<Arc<Catalogue>>,
}

impl CatalogueMachine {
    pub(crate) fn new(published: watch::Sender<Arc<Catalogue>>) -> Self {
        Self { catalogue: Catalogue::default(), requests: Requests::default(), published }
    }

    /// Whether a proposal is a command that this machine can apply.
    pub(crate) fn check(proposal: &Proposal) -> Result<(), CodecError> {
        CatalogueCommand::decode(proposal.0.clone()).map(drop)
    }

    fn decide(&mut self, command: CatalogueCommand) -> Result<(Catalogued, bool), Failure> {
        match command {
            CatalogueCommand::InitCluster { cluster_id, members } => {
                let first = self.catalogue.members.is_empty();
                if first {
                    self.initialize(cluster_id, members);
                }
                Ok((Catalogued { namespace: None, deduplicated: !first }, first))
            }
            CatalogueCommand::RaiseLevel { to, reports } => self.raise(to, &reports),
            CatalogueCommand::CreateNamespace { spec, request_id, again } => {
                self.create(&spec, request_id, again).map_err(|failure| failure.of_request(request_id))
            }
            CatalogueCommand::DeleteNamespace { name, request_id, issued_at_ms, again } => self
                .delete(&name, request_id, issued_at_ms, again)
                .map_err(|failure| failure.of_request(request_id)),
        }
    }

    fn initialize(&mut self, cluster_id: ClusterId, members: Vec<Member>) {
        let catalogue = &mut self.catalogue;
        catalogue.cluster_id = cluster_id;
        catalogue.epoch = Epoch(1);
        catalogue.level = FeatureLevel::FIRST;
        catalogue.next_namespace = 1;
        catalogue.members = members.into_iter().map(|member| (member.id, member)).collect();
        let voters = catalogue.members.keys().copied().take(MAX_VOTERS).collect();
        catalogue.groups.insert(GroupId::FIRST_DATA, Group { id: GroupId::FIRST_DATA, voters });
        let n = u8::try_from(catalogue.members.len()).unwrap_or(DEFAULT_N).min(DEFAULT_N);
        self.ring_for(n);
    }

    /// Raises the level when every member said that it supports as much.
    fn raise(
        &mut self,
        to: FeatureLevel,
        reports: &BTreeMap<NodeId, FeatureLevel>,
    ) -> Result<(Catalogued, bool), Failure> {
        self.check_initialized()?;
        let catalogue = &mut self.catalogue;
        let raised = to > catalogue.level;
        if raised {
            for member in catalogue.members.keys() {
                let message = match reports.get(member) {
                    Some(supported) if *supported >= to => continue,
                    Some(supported) => format!("{member} supports up to {supported}: upgrade it first"),
                    None => format!("{member} did not say what it supports; every member has to be up"),
                };
                return Err(Failure::new(Reason::NotReady, message).with("level", catalogue.level.0));
            }
            catalogue.level = to;
            catalogue.epoch.0 += 1;
        }
        Ok((Catalogued { namespace: None, deduplicated: !raised }, raised))
    }

    fn check_initialized(&self) -> Result<(), Failure> {
        match self.catalogue.members.is_empty() {
            true => Err(Failure::new(Reason::NotReady, "the cluster has not been initialized yet")),
            false => Ok(()),
        }
    }

    /// Refuses a catalogue that this program does not understand.
    fn check_level(&self) -> Result<(), MachineError> {
        let (level, supported) = (self.catalogue.level, FeatureLevel::SUPPORTED);
        if level > supported { Err(MachineError::TooOld { level, supported }) } else { Ok(()) }
    }

    /// The ring with that many replicas; a new one when there is none.
    fn ring_for(&mut self, n: u8) -> RingId {
        let catalogue = &mut self.catalogue;
        if let Some(ring) = catalogue.rings.values().find(|ring| ring.n == n) {
            return ring.id;
        }
        let id = RingId(catalogue.rings.last_key_value().map_or(1, |(last, _)| last.0 + 1));
        let assignment = Ring::assign(n, RING_PARTITIONS, &catalogue.members);
        catalogue.rings.insert(id, Ring { id, n, assignment, epoch: catalogue.epoch });
        id
    }

    fn create(
        &mut self,
        spec: &NamespaceSpec,
        request_id: RequestId,
        again: Option<u64>,
    ) -> Result<(Catalogued, bool), Failure> {
        self.check_initialized()?;
        let made = match self.requests.look_up(request_id, again)? {
            Before::Made(id) => Some(self.catalogue.namespaces.get(&id)),
            // It answers as it did, though the namespace is gone: it must not be made again.
            Before::MadeAndGone(made) => Some(Some(made)),
            Before::Deleted(_) => Some(None),
            Before::Nothing => None,
        };
        if let Some(made) = made {
            let made = made.filter(|made| is_as_asked(made, spec)).ok_or_else(reused)?;
            return Ok((Catalogued { namespace: Some(made.clone()), deduplicated: true }, false));
        }
        if let Some(namespace) = self.catalogue.namespace(spec.name.as_str()) {
            let settings = if is_as_asked(namespace, spec) { "these" } else { "other" };
            let message = format!("namespace `{}` exists already, with {settings} settings", spec.name);
            return Err(Failure::new(Reason::NamespaceExists, message).with("mode", namespace.mode()));
        }
        spec.check(self.catalogue.members.len())?;
        if self.catalogue.namespaces.len() >= MAX_NAMESPACES {
            let message = format!("there are {MAX_NAMESPACES} namespaces already");
            return Err(Failure::new(Reason::LimitNamespaces, message).with("limit", MAX_NAMESPACES));
        }
        self.catalogue.epoch.0 += 1;
        let placement = match spec.replication {
            Some(replication) => Placement::Available { ring: self.ring_for(replication.n), replication },
            None => Placement::Strong { group: GroupId::FIRST_DATA },
        };
        let id = NamespaceId(self.catalogue.next_namespace);
        self.catalogue.next_namespace += 1;
        let namespace = Namespace {
            id,
            name: spec.name.clone(),
            settings_version: 1,
            guarantee: spec.guarantee,
            placement,
        };
        self.catalogue.namespaces.insert(id, namespace.clone());
        self.requests.creators.insert(id, request_id);
        Ok((Catalogued { namespace: Some(namespace), deduplicated: false }, true))
    }

    /// Takes a namespace out of the catalogue. What is stored for it goes afterwards: every group, and every
    /// node for itself, removes what is of an id that was given out and is not there any more.
    fn delete(
        &mut self,
        name: &NamespaceName,
        request_id: RequestId,
        issued_at_ms: u64,
        again: bool,
    ) -> Result<(Catalogued, bool), Failure> {
        self.check_initialized()?;
        match self.requests.look_up(request_id, again.then_some(issued_at_ms))? {
            Before::Deleted(gone) if gone.name == *name => {
                return Ok((Catalogued { namespace: Some(gone.clone()), deduplicated: true }, false));
            }
            Before::Deleted(_) | Before::Made(_) | Before::MadeAndGone(_) => return Err(reused()),
            Before::Nothing => {}
        }
        let id = self.catalogue.namespace(name.as_str()).map(|namespace| namespace.id);
        let Some(namespace) = id.and_then(|id| self.catalogue.namespaces.remove(&id)) else {
            let message = format!("there is no namespace `{name}`");
            return Err(Failure::new(Reason::NamespaceUnknown, message));
        };
        self.catalogue.epoch.0 += 1;
        self.requests.deleted(namespace.clone(), request_id, issued_at_ms);
        Ok((Catalogued { namespace: Some(namespace), deduplicated: false }, true))
    }
}

fn reused() -> Failure {
    Failure::new(Reason::RequestIdReused, "this request id was used before for something else")
}

fn is_as_asked(namespace: &Namespace, spec: &NamespaceSpec) -> bool {
    let replication = match namespace.placement {
        Placement::Strong { .. } => None,
        Placement::Available { replication, .. } => Some(replication),
    };
    namespace.name == spec.name && namespace.guarantee == spec.guarantee && replication == spec.replication
}

impl Domain for CatalogueMachine {
    fn anew(&self) -> Box<dyn Domain> {
        Box::new(Self::new(self.published.clone()))
    }

    fn load(&mut self, storage: &Storage, space: Space) -> Result<(), MachineError> {
        (self.catalogue, self.requests) = match storage.get(Table::Catalogue.id(), &keys::of_space(space))? {
            Some(row) => decode_catalogue(row.value)?,
            None => Default::default(),
        };
        self.check_level()
    }

    fn apply(&mut self, stage: &mut Stage<'_>, _: Point, proposal: &Proposal) -> Result<Reply, MachineError> {
        let command = CatalogueCommand::decode(proposal.0.clone())?;
        let decided = self.decide(command);
        if let Ok((_, true)) = decided {
            let row = encode_catalogue(&self.catalogue, &self.requests);
            stage.put(Table::Catalogue, keys::of_space(stage.space()), row);
        }
        self.check_level()?;
        Ok(Reply::Catalogue(decided.map(|(done, _)| done)))
    }

    fn publish(&self) {
        self.published.send_if_modified(|shown| {
            let newer = shown.epoch != self.catalogue.epoch;
            if newer {
                *shown = Arc::new(self.catalogue.clone());
            }
            newer
        });
    }
}

// ---- encodings

fn put_request_id(out: &mut Vec<u8>, id: RequestId) {
    out.put_u128(id.client_id.0);
    out.put_u64(id.seq);
}

fn request_id(reader: &mut Reader) -> Result<RequestId, CodecError> {
    Ok(RequestId { client_id: ClientId(reader.u128()?), seq: reader.u64()? })
}

fn name(reader: &mut Reader) -> Result<NamespaceName, CodecError> {
    let text = reader.text()?;
    NamespaceName::new(text).map_err(|failure| reader.invalid(failure))
}

fn put_members<'a>(out: &mut Vec<u8>, members: impl ExactSizeIterator<Item = &'a Member>) {
    out.put_u32(codec::length(members.len()));
    for member in members {
        out.put_u64(member.id.0);
        for text in [&member.client_address, &member.peer_address, &member.zone] {
            out.put_block(text.as_bytes());
        }
    }
}

fn members(reader: &mut Reader) -> Result<Vec<Member>, CodecError> {
    reader.list(|reader| {
        Ok(Member {
            id: NodeId(reader.u64()?),
            client_address: reader.text()?,
            peer_address: reader.text()?,
            zone: reader.text()?,
        })
    })
}

fn put_replication(out: &mut Vec<u8>, replication: Replication) {
    let Replication { n, r, w, sloppy } = replication;
    out.put_slice(&[n, r, w]);
    out.put_flag(sloppy);
}

fn replication(reader: &mut Reader) -> Result<Replication, CodecError> {
    Ok(Replication { n: reader.u8()?, r: reader.u8()?, w: reader.u8()?, sloppy: reader.flag()? })
}

const GUARANTEES: [Guarantee; 5] = [
    Guarantee::Linearizable,
    Guarantee::BoundedStaleness,
    Guarantee::ReadYourWrites,
    Guarantee::MonotonicReads,
    Guarantee::Eventual,
];

fn guarantee_number(guarantee: Guarantee) -> u8 {
    GUARANTEES.iter().zip(0..).find(|(known, _)| **known == guarantee).map_or(u8::MAX, |(_, number)| number)
}

fn guarantee(reader: &mut Reader) -> Result<Guarantee, CodecError> {
    let number = reader.u8()?;
    GUARANTEES.get(usize::from(number)).copied().ok_or_else(|| reader.unknown("guarantee", number))
}

fn put_nodes(out: &mut Vec<u8>, nodes: &[NodeId]) {
    out.put_u32(codec::length(nodes.len()));
    nodes.iter().for_each(|node| out.put_u64(node.0));
}

fn nodes(reader: &mut Reader) -> Result<Vec<NodeId>, CodecError> {
    reader.list(|reader| reader.u64().map(NodeId))
}

fn put_namespace(out: &mut Vec<u8>, namespace: &Namespace, creator: Option<&RequestId>) {
    out.put_u64(namespace.id.0);
    out.put_block(namespace.name.as_str().as_bytes());
    out.put_u64(namespace.settings_version);
    out.put_u8(guarantee_number(namespace.guarantee));
    match namespace.placement {
        Placement::Strong { group } => {
            out.put_u8(0);
            out.put_u32(group.0);
        }
        Placement::Available { ring, replication } => {
            out.put_u8(1);
            out.put_u32(ring.0);
            put_replication(out, replication);
        }
    }
    out.put_flag(creator.is_some());
    if let Some(creator) = creator {
        put_request_id(out, *creator);
    }
}

fn namespace(reader: &mut Reader) -> Result<(Namespace, Option<RequestId>), CodecError> {
    let id = NamespaceId(reader.u64()?);
    let name = name(reader)?;
    let settings_version = reader.u64()?;
    let guarantee = guarantee(reader)?;
    let placement = match reader.u8()? {
        0 => Placement::Strong { group: GroupId(reader.u32()?) },
        1 => Placement::Available { ring: RingId(reader.u32()?), replication: replication(reader)? },
        found => return Err(reader.unknown("placement", found)),
    };
    let creator = reader.option(request_id)?;
    Ok((Namespace { id, name, settings_version, guarantee, placement }, creator))
}

fn encode_catalogue(catalogue: &Catalogue, requests: &Requests) -> Vec<u8> {
    let Catalogue { cluster_id, epoch, level, members, rings, namespaces, groups, next_namespace } =
        catalogue;
    let Requests { creators, deletions, forgotten_until_ms } = requests;
    let has_deletions = catalogue.allows(FeatureLevel::DELETION);
    let mut out = codec::versioned(if has_deletions { VERSION_WITH_DELETIONS } else { VERSION }, 8 << 10);
    out.put_u128(cluster_id.0);
    out.put_u64(epoch.0);
    out.put_u32(level.0);
    out.put_u64(*next_namespace);
    put_members(&mut out, members.values());
    out.put_u32(codec::length(rings.len()));
    for ring in rings.values() {
        out.put_u32(ring.id.0);
        out.put_u8(ring.n);
        out.put_u64(ring.epoch.0);
        out.put_u32(codec::length(ring.assignment.len()));
        ring.assignment.iter().for_each(|replicas| put_nodes(&mut out, replicas));
    }
    out.put_u32(codec::length(groups.len()));
    for group in groups.values() {
        out.put_u32(group.id.0);
        put_nodes(&mut out, &group.voters);
    }
    out.put_u32(codec::length(namespaces.len()));
    for namespace in namespaces.values() {
        put_namespace(&mut out, namespace, creators.get(&namespace.id));
    }
    if has_deletions {
        out.put_u64(*forgotten_until_ms);
        out.put_u32(codec::length(deletions.len()));
        for Deletion { namespace, creator, by, issued_at_ms } in deletions {
            put_namespace(&mut out, namespace, creator.as_ref());
            put_request_id(&mut out, *by);
            out.put_u64(*issued_at_ms);
        }
    }
    out
}

pub(crate) fn decode_catalogue(bytes: Bytes) -> Result<(Catalogue, Requests), CodecError> {
    let has_deletions = bytes.first() == Some(&VERSION_WITH_DELETIONS);
    let version = if has_deletions { VERSION_WITH_DELETIONS } else { VERSION };
    let mut reader = Reader::versioned(bytes, "catalogue", version)?;
    let cluster_id = ClusterId(reader.u128()?);
    let epoch = Epoch(reader.u64()?);
    let level = FeatureLevel(reader.u32()?);
    let next_namespace = reader.u64()?;
    let members = members(&mut reader)?;
    let rings = reader.list(|reader| {
        let (id, n, epoch) = (RingId(reader.u32()?), reader.u8()?, Epoch(reader.u64()?));
        Ok(Ring { id, n, assignment: reader.list(nodes)?, epoch })
    })?;
    let groups = reader.list(|reader| Ok(Group { id: GroupId(reader.u32()?), voters: nodes(reader)? }))?;
    let mut requests = Requests::default();
    let namespaces = reader.list(|reader| {
        let (namespace, creator) = namespace(reader)?;
        requests.creators.extend(creator.map(|creator| (namespace.id, creator)));
        Ok(namespace)
    })?;
    if has_deletions {
        requests.forgotten_until_ms = reader.u64()?;
        let deletion = |reader: &mut Reader| {
            let (namespace, creator) = namespace(reader)?;
            let (by, issued_at_ms) = (request_id(reader)?, reader.u64()?);
            Ok(Deletion { namespace, creator, by, issued_at_ms })
        };
        requests.deletions = reader.list(deletion)?.into();
    }
    reader.end()?;
    let catalogue = Catalogue {
        cluster_id,
        epoch,
        level,
        members: members.into_iter().map(|member| (member.id, member)).collect(),
        rings: rings.into_iter().map(|ring| (ring.id, ring)).collect(),
        namespaces: namespaces.into_iter().map(|namespace| (namespace.id, namespace)).collect(),
        groups: groups.into_iter().map(|group| (group.id, group)).collect(),
        next_namespace,
    };
    Ok((catalogue, requests))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ISSUED: u64 = 1_700_000_000_000;

    fn machine() -> (CatalogueMachine, watch::Receiver<Arc<Catalogue>>) {
        let (published, shown) = watch::channel(Arc::default());
        let mut machine = CatalogueMachine::new(published);
        machine.decide(CatalogueCommand::InitCluster { cluster_id: ClusterId(7), members: five() }).unwrap();
        (machine, shown)
    }

    fn five() -> Vec<Member> {
        let member = |id| Member {
            id: NodeId(id),
            client_address: format!("c{id}"),
            peer_address: format!("p{id}"),
            zone: String::new(),
        };
        (1..=5).map(member).collect()
    }

    fn create(name: &str, replication: Option<Replication>, seq: u64) -> CatalogueCommand {
        let name = NamespaceName::new(name).unwrap();
        let spec = replication.map_or_else(
            || NamespaceSpec::strong(name.clone()),
            |replication| NamespaceSpec::available(name.clone(), replication),
        );
        CatalogueCommand::CreateNamespace { spec, request_id: id(seq), again: None }
    }

    fn id(seq: u64) -> RequestId {
        RequestId { client_id: ClientId(1), seq }
    }

    fn delete(name: &str, seq: u64, again: bool) -> CatalogueCommand {
        CatalogueCommand::DeleteNamespace {
            name: NamespaceName::new(name).unwrap(),
            request_id: id(seq),
            issued_at_ms: ISSUED,
            again,
        }
    }

    /// A command that is sent again and was issued then.
    fn at(command: CatalogueCommand, issued: u64) -> CatalogueCommand {
        match command {
            CatalogueCommand::CreateNamespace { spec, request_id, .. } => {
                CatalogueCommand::CreateNamespace { spec, request_id, again: Some(issued) }
            }
            CatalogueCommand::DeleteNamespace { name, request_id, .. } => {
                CatalogueCommand::DeleteNamespace { name, request_id, issued_at_ms: issued, again: true }
            }
            other => other,
        }
    }

    /// The id of the namespace that a command was about, whether an earlier attempt did it, and whether it
    /// changed anything.
    fn done(result: Result<(Catalogued, bool), Failure>) -> (u64, bool, bool) {
        let (Catalogued { namespace, deduplicated }, changed) = result.unwrap();
        (namespace.unwrap().id.0, deduplicated, changed)
    }

    const N3: Replication = Replication { n: 3, r: 2, w: 2, sloppy: true };

    #[test]
    fn the_first_command_makes_a_cluster_once() {
        let (mut machine, mut shown) = machine();
        machine.publish();
        assert!(shown.has_changed().unwrap());
        let catalogue = shown.borrow_and_update().clone();
        assert_eq!((catalogue.epoch, catalogue.members.len(), catalogue.groups.len()), (Epoch(1), 5, 1));
        assert_eq!(catalogue.rings[&RingId(1)].assignment.len(), 256);
        assert_eq!(catalogue.rings[&RingId(1)].n, 3);
        let again = CatalogueCommand::InitCluster { cluster_id: ClusterId(8), members: Vec::new() };
        assert_eq!(machine.decide(again), Ok((Catalogued { namespace: None, deduplicated: true }, false)));
        machine.publish();
        assert!(!shown.has_changed().unwrap());
    }

    #[test]
    fn a_namespace_is_made_once_per_request() {
        let (mut machine, _) = machine();
        assert_eq!(done(machine.decide(create("bank", None, 1))), (1, false, true));
        assert_eq!(machine.catalogue.epoch, Epoch(2));
        assert_eq!(done(machine.decide(create("bank", None, 1))), (1, true, false));
        let reason = |result: Result<_, Failure>| result.unwrap_err().reason;
        assert_eq!(reason(machine.decide(create("bank", None, 2))), Reason::NamespaceExists);
        assert_eq!(reason(machine.decide(create("bank", Some(N3), 3))), Reason::NamespaceExists);
        assert_eq!(reason(machine.decide(create("other", None, 1))), Reason::RequestIdReused);
        assert_eq!(machine.catalogue.epoch, Epoch(2));
    }

    #[test]
    fn the_level_is_raised_once_every_member_supports_it() {
        let (mut machine, mut shown) = machine();
        machine.publish();
        assert_eq!(shown.borrow_and_update().level, FeatureLevel::FIRST);
        let all =
            |level: u32| (1..=5).map(|id| (NodeId(id), FeatureLevel(level))).collect::<BTreeMap<_, _>>();
        let raise = |to: u32, reports| CatalogueCommand::RaiseLevel { to: FeatureLevel(to), reports };
        let mut silent = all(3);
        silent.remove(&NodeId(4));
        let mut old = all(3);
        old.insert(NodeId(2), FeatureLevel(2));
        for (reports, words) in
            [(silent, "n4 did not say"), (old, "n2 supports up to feature level 2: upgrade it")]
        {
            let refused = machine.decide(raise(3, reports)).unwrap_err();
            assert_eq!((refused.reason, refused.applied), (Reason::NotReady, kv_types::Applied::No));
            assert!(refused.message.contains(words), "{refused}");
            assert_eq!((machine.catalogue.level, machine.catalogue.epoch), (FeatureLevel::FIRST, Epoch(1)));
        }
        let raised = Catalogued { namespace: None, deduplicated: false };
        assert_eq!(machine.decide(raise(3, all(3))), Ok((raised, true)));
        assert_eq!((machine.catalogue.level, machine.catalogue.epoch), (FeatureLevel(3), Epoch(2)));
        // Again, and downwards: nothing happens.
        for to in [3, 1] {
            let before = Catalogued { namespace: None, deduplicated: true };
            assert_eq!(machine.decide(raise(to, all(3))), Ok((before, false)));
        }
        assert_eq!(machine.catalogue.level, FeatureLevel(3));
        let mut empty = CatalogueMachine::new(watch::channel(Arc::default()).0);
        assert_eq!(empty.decide(raise(1, all(1))).unwrap_err().reason, Reason::NotReady);
    }

    /// What an older release would do in a cluster that was raised beyond it.
    #[test]
    fn a_level_beyond_this_program_stops_it_by_name() {
        let (mut machine, _) = machine();
        assert!(machine.check_level().is_ok());
        machine.catalogue.level = FeatureLevel(FeatureLevel::SUPPORTED.0 + 1);
        let error = machine.check_level().unwrap_err().to_string();
        assert!(error.contains("feature level 3") && error.contains("upgrade this node"), "{error}");
    }

    #[test]
    fn another_n_gets_a_ring_of_its_own() {
        let (mut machine, _) = machine();
        let ring_of = |machine: &CatalogueMachine, name: &str| match machine
            .catalogue
            .namespace(name)
            .unwrap()
            .placement
        {
            Placement::Available { ring, .. } => ring,
            Placement::Strong { .. } => panic!("strong"),
        };
        machine.decide(create("a", Some(N3), 1)).unwrap();
        machine.decide(create("b", Some(Replication { n: 5, ..N3 }), 2)).unwrap();
        machine.decide(create("c", Some(Replication { n: 5, ..N3 }), 3)).unwrap();
        assert_eq!(ring_of(&machine, "a"), RingId(1));
        assert_eq!(ring_of(&machine, "b"), RingId(2));
        assert_eq!(ring_of(&machine, "c"), RingId(2));
        let refused = machine.decide(create("d", Some(Replication { n: 6, ..N3 }), 4)).unwrap_err();
        assert_eq!(refused.reason, Reason::NamespaceInvalid);
    }

    #[test]
    fn namespaces_are_bounded() {
        let (mut machine, _) = machine();
        for seq in 1..=MAX_NAMESPACES as u64 {
            machine.decide(create(&format!("n{seq}"), None, seq)).unwrap();
        }
        let refused = machine.decide(create("one-more", None, 0)).unwrap_err();
        assert_eq!(refused.reason, Reason::LimitNamespaces);
    }

    #[test]
    fn catalogues_and_commands_survive_their_encoding() {
        let (mut machine, _) = machine();
        let again = |command| match command {
            CatalogueCommand::CreateNamespace { spec, request_id, .. } => {
                CatalogueCommand::CreateNamespace { spec, request_id, again: Some(ISSUED) }
            }
            other => other,
        };
        let made = [create("bank", None, 1), create("cart", Some(N3), 2), again(create("more", None, 3))];
        for command in made.into_iter().chain([delete("bank", 4, false), delete("cart", 5, true)]) {
            assert_eq!(CatalogueCommand::decode(command.encode().0).unwrap(), command);
            machine.decide(command).unwrap();
        }
        let reports = BTreeMap::from([(NodeId(1), FeatureLevel(2))]);
        let raise = CatalogueCommand::RaiseLevel { to: FeatureLevel(2), reports };
        assert_eq!(CatalogueCommand::decode(raise.encode().0).unwrap(), raise);
        let unknown = CatalogueCommand::decode(Bytes::from_static(&[codec::VERSION, 77])).unwrap_err();
        assert_eq!(unknown, CodecError::Newer { what: "catalogue command", field: "kind", found: 77 });
        let init = CatalogueCommand::InitCluster { cluster_id: ClusterId(7), members: five() };
        assert_eq!(CatalogueCommand::decode(init.encode().0).unwrap(), init);
        machine.catalogue.level = FeatureLevel::DELETION;
        machine.requests.forgotten_until_ms = ISSUED;
        let bytes = Bytes::from(encode_catalogue(&machine.catalogue, &machine.requests));
        assert_eq!(
            decode_catalogue(bytes.clone()),
            Ok((machine.catalogue.clone(), machine.requests.clone()))
        );
        for cut in 0..bytes.len() {
            assert!(decode_catalogue(bytes.slice(..cut)).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn before_the_level_of_deletions_the_row_is_as_older_members_read_it() {
        let (mut machine, _) = machine();
        machine.decide(create("bank", None, 1)).unwrap();
        let row = |machine: &CatalogueMachine| encode_catalogue(&machine.catalogue, &machine.requests);
        assert_eq!(row(&machine)[0], VERSION);
        assert_eq!(
            decode_catalogue(row(&machine).into()),
            Ok((machine.catalogue.clone(), machine.requests.clone()))
        );
        machine.catalogue.level = FeatureLevel::DELETION;
        assert_eq!(row(&machine)[0], VERSION_WITH_DELETIONS);
        let first = [
            create("a", None, 1),
            CatalogueCommand::RaiseLevel { to: FeatureLevel(2), reports: BTreeMap::new() },
        ];
        assert!(first.iter().all(|command| command.needs() == FeatureLevel::FIRST));
        assert_eq!(delete("a", 1, false).needs(), FeatureLevel::DELETION);
    }

    #[test]
    fn a_namespace_is_deleted_once_per_request_and_its_id_stays_used() {
        let (mut machine, mut shown) = machine();
        let reason = |result: Result<_, Failure>| {
            let failure: Failure = result.unwrap_err();
            (failure.reason, failure.applied)
        };
        machine.decide(create("bank", None, 1)).unwrap();
        machine.publish();
        shown.mark_unchanged();
        let no = kv_types::Applied::No;
        assert_eq!(reason(machine.decide(delete("cart", 2, false))), (Reason::NamespaceUnknown, no));
        assert_eq!(machine.catalogue.epoch, Epoch(2));
        assert_eq!(done(machine.decide(delete("bank", 2, false))), (1, false, true));
        machine.publish();
        let catalogue = shown.borrow_and_update().clone();
        assert_eq!((catalogue.epoch, catalogue.namespace("bank")), (Epoch(3), None));
        assert!(catalogue.was_deleted(NamespaceId(1)) && !catalogue.was_deleted(NamespaceId(2)));
        assert_eq!(done(machine.decide(delete("bank", 2, true))), (1, true, false));
        // Another request finds nothing, and the ids of requests are of one thing only.
        assert_eq!(reason(machine.decide(delete("bank", 3, false))), (Reason::NamespaceUnknown, no));
        assert_eq!(reason(machine.decide(delete("other", 2, true))), (Reason::RequestIdReused, no));
        assert_eq!(reason(machine.decide(delete("bank", 1, false))), (Reason::RequestIdReused, no));
        assert_eq!(reason(machine.decide(create("new", None, 2))), (Reason::RequestIdReused, no));
        // The creation that comes late makes nothing, and answers as it did.
        assert_eq!(done(machine.decide(create("bank", None, 1))), (1, true, false));
        assert_eq!(machine.catalogue.namespace("bank"), None);
        // The name is free, the id is not.
        assert_eq!(done(machine.decide(create("bank", None, 4))), (2, false, true));
        assert_eq!(done(machine.decide(delete("bank", 2, true))), (1, true, false), "the second bank stays");
        assert!(machine.catalogue.namespace("bank").is_some());
    }

    #[test]
    fn what_is_remembered_of_deletions_is_bounded_and_what_is_not_is_never_done_again() {
        let (mut machine, _) = machine();
        let kept = DELETIONS_KEPT as u64;
        for seq in 1..=kept + 1 {
            machine.decide(create("scratch", None, 2 * seq)).unwrap();
            machine.decide(delete("scratch", 2 * seq + 1, false)).unwrap();
        }
        assert_eq!(machine.requests.deletions.len(), DELETIONS_KEPT);
        assert!(machine.requests.creators.is_empty() && machine.catalogue.next_namespace == kept + 2);
        let again = |seq: u64| match create("scratch", None, seq) {
            CatalogueCommand::CreateNamespace { spec, request_id, .. } => {
                CatalogueCommand::CreateNamespace { spec, request_id, again: Some(ISSUED) }
            }
            other => other,
        };
        // The first ones are forgotten, the second ones are not.
        for resend in [again(2), delete("scratch", 3, true)] {
            let failure = machine.decide(resend).unwrap_err();
            assert_eq!(
                (failure.reason, failure.applied),
                (Reason::RequestExpired, kv_types::Applied::Unknown)
            );
        }
        assert_eq!(done(machine.decide(again(4))), (2, true, false));
        assert_eq!(done(machine.decide(delete("scratch", 5, true))), (2, true, false));
        assert!(machine.catalogue.namespaces.is_empty());
        // One that was issued later than all that is forgotten cannot be among it, sent before or not.
        let later = ISSUED + u64::try_from(FORGOTTEN_AROUND.as_millis()).unwrap() + 1;
        let expired = machine.decide(at(create("new", None, 9_000), later - 1)).unwrap_err();
        assert_eq!(expired.reason, Reason::RequestExpired);
        assert_eq!(done(machine.decide(at(create("new", None, 9_001), later))), (kept + 2, false, true));
        assert_eq!(done(machine.decide(at(delete("new", 9_002, true), later))), (kept + 2, false, true));
    }

    /// Clocks of clients differ: what is forgotten later may have been issued earlier, or at no time at all.
    #[test]
    fn what_is_forgotten_later_does_not_bring_back_what_was_forgotten_before() {
        let around = u64::try_from(FORGOTTEN_AROUND.as_millis()).unwrap();
        for (issued, until) in [([ISSUED + 9, ISSUED], ISSUED + 9), ([ISSUED, 0], ISSUED), ([0, 0], 1)] {
            let (mut machine, _) = machine();
            let kept = std::iter::repeat_n(ISSUED, DELETIONS_KEPT);
            for (seq, issued_at_ms) in (1..).zip(issued.into_iter().chain(kept)) {
                machine.decide(create("scratch", None, 2 * seq)).unwrap();
                let (name, request_id) = (NamespaceName::new("scratch").unwrap(), id(2 * seq + 1));
                let again = false;
                let first = CatalogueCommand::DeleteNamespace { name, request_id, issued_at_ms, again };
                machine.decide(first).unwrap();
            }
            assert_eq!(machine.requests.forgotten_until_ms, until);
            for forgotten in [0, until, until + around] {
                let resend = at(create("scratch", None, 2), forgotten);
                assert_eq!(machine.decide(resend).unwrap_err().reason, Reason::RequestExpired, "{forgotten}");
            }
            assert!(done(machine.decide(at(create("new", None, 9_000), until + around + 1))).2);
        }
    }

    proptest! {
        #[test]
        fn bad_bytes_are_errors(mut bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            bytes[0] = VERSION;
            let _ = decode_catalogue(bytes.clone().into());
            bytes[0] = codec::VERSION;
            let _ = CatalogueCommand::decode(bytes.into());
        }
    }
}
