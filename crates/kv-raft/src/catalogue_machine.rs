//! The state of group 0: the catalogue, and which request made each namespace, changed it, or deleted it.
//! Every change takes an epoch and is published whole, so that a node routes by its last known epoch also
//! when it is cut off.
//!
//! A deletion with a grace marks the namespace with the time at which it is due. Whether that time has come
//! is said by the leader, in a command that names the mark: the state stays a function of the log alone.

mod command;
mod parts;
mod requests;
mod row;

use std::collections::BTreeMap;
use std::sync::Arc;

use kv_storage::Storage;
use kv_types::catalogue::{Catalogue, FeatureLevel, Group, Member, Ring};
use kv_types::causal::ContextKeys;
use kv_types::limits::{MAX_NAMESPACES, MAX_VOTERS, RING_PARTITIONS};
use kv_types::{
    ClusterId, Deletion, Epoch, Failure, GroupId, Guarantee, Namespace, NamespaceId, NamespaceName,
    NamespaceSpec, NodeId, Placement, Reason, Replication, RequestId, RingId,
};
use tokio::sync::watch;

pub(crate) use command::{Asked, CatalogueCommand};
pub(crate) use row::decode_catalogue;

use requests::{Before, By, Requests, What};
use row::encode_catalogue;

use crate::codec::CodecError;
use crate::machine::Domain;
use crate::machine_error::MachineError;
use crate::proposal::{Catalogued, Point, Proposal, Reply};
use crate::tables::{Space, Stage, Table, keys};

/// Replicas per key of the ring that every cluster has, where there are so many members.
const DEFAULT_N: u8 = 3;

/// What applying a command gives, and whether the catalogue has changed.
type Decided = Result<(Catalogued, bool), Failure>;

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

    /// Whether this catalogue would refuse a command, whatever the level of the cluster. Which requests came
    /// before is not considered.
    pub(crate) fn rehearse(catalogue: &Catalogue, command: CatalogueCommand) -> Result<(), Failure> {
        let mut machine = Self::new(watch::channel(Arc::default()).0);
        machine.catalogue = catalogue.clone();
        machine.decide(command).map(drop)
    }

    /// Whether a proposal is a command that this machine can apply.
    pub(crate) fn check(proposal: &Proposal) -> Result<(), CodecError> {
        CatalogueCommand::decode(proposal.0.clone()).map(drop)
    }

    fn decide(&mut self, command: CatalogueCommand) -> Decided {
        match command {
            CatalogueCommand::InitCluster { cluster_id, members, level, context_key } => {
                let first = self.catalogue.members.is_empty();
                if first {
                    self.catalogue.level = level;
                    self.catalogue.context_keys = ContextKeys::new(context_key);
                    self.initialize(cluster_id, members);
                }
                Ok((Catalogued { namespace: None, deduplicated: !first }, first))
            }
            CatalogueCommand::RaiseLevel { to, reports } => self.raise(to, &reports),
            CatalogueCommand::CreateNamespace { spec, request_id, again } => {
                self.create(&spec, request_id, again).map_err(|failure| failure.of_request(request_id))
            }
            CatalogueCommand::DeleteNamespace { name, asked } => self.delete(&name, asked),
            CatalogueCommand::ScheduleDeletion { name, deletion, asked } => {
                self.schedule(&name, deletion, asked)
            }
            CatalogueCommand::UndeleteNamespace { name, asked } => self.undelete(&name, asked),
            CatalogueCommand::AlterNamespace { name, r, w, asked } => self.alter(&name, r, w, asked),
            CatalogueCommand::DeleteDue { namespace, due_ms } => Ok(self.delete_due(namespace, due_ms)),
        }
    }

    fn initialize(&mut self, cluster_id: ClusterId, members: Vec<Member>) {
        let catalogue = &mut self.catalogue;
        catalogue.cluster_id = cluster_id;
        catalogue.epoch = Epoch(1);
        catalogue.next_namespace = 1;
        catalogue.members = members.into_iter().map(|member| (member.id, member)).collect();
        let voters = catalogue.members.keys().copied().take(MAX_VOTERS).collect();
        catalogue.groups.insert(GroupId::FIRST_DATA, Group { id: GroupId::FIRST_DATA, voters });
        let n = u8::try_from(catalogue.members.len()).unwrap_or(DEFAULT_N).min(DEFAULT_N);
        self.ring_for(n);
    }

    /// Raises the level when every member said that it supports as much.
    fn raise(&mut self, to: FeatureLevel, reports: &BTreeMap<NodeId, FeatureLevel>) -> Decided {
        self.check_initialized()?;
        let catalogue = &mut self.catalogue;
        let raised = to > catalogue.level;
        if raised {
            for member in catalogue.members.keys() {
                let message = match reports.get(member) {
                    Some(supported) if *supported >= to => continue,
                    Some(supported) => format!("{member} supports up to {supported}: upgrade it first"),
                    None => format!(
                        "{member} did not say what it supports: the first use of a feature needs every member to be up"
                    ),
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
        let assignment = Ring::assign(n, RING_PARTITIONS, &catalogue.members, &[]);
        catalogue.rings.insert(id, Ring { id, n, assignment, epoch: catalogue.epoch });
        id
    }

    fn create(&mut self, spec: &NamespaceSpec, request_id: RequestId, again: Option<u64>) -> Decided {
        self.check_initialized()?;
        let made = match self.requests.look_up(request_id, again)? {
            Before::Made(id) => Some(self.catalogue.namespaces.get(&id)),
            // It answers as it did, though the namespace is gone: it must not be made again.
            Before::MadeAndGone(made) => Some(Some(made)),
            Before::Changed(..) => Some(None),
            Before::Nothing => None,
        };
        if let Some(made) = made {
            let made = made.filter(|made| was_made_as(made, spec)).ok_or_else(reused)?;
            return Ok((Catalogued { namespace: Some(made.clone()), deduplicated: true }, false));
        }
        if let Some(namespace) = self.catalogue.namespace(spec.name.as_str()) {
            return Err(exists(namespace, spec));
        }
        spec.check(self.catalogue.members.len())?;
        if self.catalogue.namespaces.len() >= MAX_NAMESPACES {
            let mut message = format!("there are {MAX_NAMESPACES} namespaces already");
            let marked = self.catalogue.marked().count();
            if marked > 0 {
                message.push_str(&format!("; {marked} of them are deleted and count until their grace is over, or until they are deleted at once"));
            }
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
            deletion: None,
            guarantee: spec.guarantee,
            placement,
        };
        self.catalogue.namespaces.insert(id, namespace.clone());
        self.requests.creators.insert(id, request_id);
        Ok((Catalogued { namespace: Some(namespace), deduplicated: false }, true))
    }

    /// Takes a namespace out of the catalogue, also one whose grace is not over. What is stored for it goes
    /// afterwards: every group, and every node for itself, removes what is of an id that was given out and is
    /// not there any more.
    fn delete(&mut self, name: &NamespaceName, asked: Asked) -> Decided {
        if let Some(gone) = self.done_before(name, asked, What::Deleted)? {
            return Ok((Catalogued { namespace: Some(gone), deduplicated: true }, false));
        }
        let id = self.named(name, asked)?.id;
        let namespace = self.remove(id, What::Deleted, by(asked));
        Ok((Catalogued { namespace, deduplicated: false }, true))
    }

    /// The deletion that was due then, once. One that was undone, or done at once, is not due any more, and
    /// one that was asked for again is due at another time.
    fn delete_due(&mut self, id: NamespaceId, due_ms: u64) -> (Catalogued, bool) {
        let due = self.catalogue.namespaces.get(&id).and_then(Namespace::deletion_due_ms);
        let asked = self.requests.scheduled.get(&id).copied().filter(|_| due == Some(due_ms));
        let ignored = kv_types::mutant!(DueIgnoresUndelete);
        let asked = if ignored { asked.or(Some(By::default())) } else { asked };
        let removed = asked.and_then(|by| self.remove(id, What::Due, by));
        let changed = removed.is_some();
        (Catalogued { namespace: removed, deduplicated: !changed }, changed)
    }

    fn remove(&mut self, id: NamespaceId, what: What, by: By) -> Option<Namespace> {
        let namespace = self.catalogue.namespaces.remove(&id)?;
        self.catalogue.epoch.0 += 1;
        self.requests.keep(what, namespace.clone(), by);
        Some(namespace)
    }

    /// Marks a namespace as deleted: what is stored stays until that is due.
    fn schedule(&mut self, name: &NamespaceName, deletion: Deletion, asked: Asked) -> Decided {
        self.change(name, asked, What::Scheduled, |namespace| {
            namespace.check_present()?;
            namespace.deletion = Some(deletion);
            Ok(())
        })
    }

    /// Takes the mark away.
    fn undelete(&mut self, name: &NamespaceName, asked: Asked) -> Decided {
        self.change(name, asked, What::Undeleted, |namespace| {
            let taken_back = namespace.deletion.take();
            let message = || format!("namespace `{name}` is not deleted: there is nothing to undo");
            taken_back.map(drop).ok_or_else(|| Failure::new(Reason::NamespaceExists, message()))
        })
    }

    /// Changes what reads and writes wait for.
    fn alter(&mut self, name: &NamespaceName, r: Option<u8>, w: Option<u8>, asked: Asked) -> Decided {
        let counts =
            |known: Replication| Replication { r: r.unwrap_or(known.r), w: w.unwrap_or(known.w), ..known };
        if let Before::Changed(What::Altered, altered) = self.before(asked)? {
            let as_asked = match altered.placement {
                Placement::Available { replication, .. } => counts(replication) == replication,
                Placement::Strong { .. } => false,
            };
            if !as_asked {
                return Err(reused().of_request(asked.request_id));
            }
        }
        self.change(name, asked, What::Altered, |namespace| {
            namespace.check_present()?;
            let Placement::Available { replication, .. } = &mut namespace.placement else {
                let message = format!(
                    "namespace `{name}` is strong: it has no R and no W, and nothing of it can be altered"
                );
                return Err(Failure::new(Reason::ModeMismatch, message).with("mode", namespace.mode()));
            };
            let before = std::mem::replace(replication, counts(*replication));
            replication.check_counts()?;
            let promise = namespace.guarantee;
            // What was written by the W of before must be read by the R from now on.
            let why = match promise != Guarantee::Eventual && replication.r < before.r {
                true => Some(format!("R may not fall below {}, by which earlier writes are read", before.r)),
                false => replication.falls_short_of(promise),
            };
            why.map_or(Ok(()), |why| {
                let message = format!("namespace `{name}` promises {promise}, and could not: {why}");
                Err(Failure::new(Reason::NamespaceInvalid, message))
            })
        })
    }

    /// Changes a namespace that is there, once per request, and counts the change.
    fn change(
        &mut self,
        name: &NamespaceName,
        asked: Asked,
        what: What,
        change: impl FnOnce(&mut Namespace) -> Result<(), Failure>,
    ) -> Decided {
        if let Some(changed) = self.done_before(name, asked, what)? {
            return Ok((Catalogued { namespace: Some(changed), deduplicated: true }, false));
        }
        let known = self.named(name, asked)?;
        let mut changed = known.clone();
        change(&mut changed).map_err(|failure| failure.of_request(asked.request_id))?;
        // As it is already: remembered all the same, so that another attempt does not change it later.
        if changed != *known {
            changed.settings_version = changed.settings_version.saturating_add(1);
        }
        self.catalogue.epoch.0 += 1;
        self.catalogue.namespaces.insert(changed.id, changed.clone());
        self.requests.keep(what, changed.clone(), by(asked));
        Ok((Catalogued { namespace: Some(changed), deduplicated: false }, true))
    }

    fn before(&self, asked: Asked) -> Result<Before<'_>, Failure> {
        let again = asked.again.then_some(asked.issued_at_ms);
        self.requests.look_up(asked.request_id, again).map_err(|failure| failure.of_request(asked.request_id))
    }

    /// What an earlier attempt of the request made of the namespace. An id that was used for anything else is
    /// refused.
    fn done_before(
        &self,
        name: &NamespaceName,
        asked: Asked,
        what: What,
    ) -> Result<Option<Namespace>, Failure> {
        self.check_initialized().map_err(|failure| failure.of_request(asked.request_id))?;
        match self.before(asked)? {
            Before::Nothing => Ok(None),
            Before::Changed(did, namespace) if did.answers(what) && namespace.name == *name => {
                Ok(Some(namespace.clone()))
            }
            Before::Changed(..) | Before::Made(_) | Before::MadeAndGone(_) => {
                Err(reused().of_request(asked.request_id))
            }
        }
    }

    fn named(&self, name: &NamespaceName, asked: Asked) -> Result<&Namespace, Failure> {
        self.catalogue.namespace(name.as_str()).ok_or_else(|| {
            let message = format!("there is no namespace `{name}`");
            Failure::new(Reason::NamespaceUnknown, message).of_request(asked.request_id)
        })
    }
}

fn by(asked: Asked) -> By {
    By { request: asked.request_id, issued_at_ms: asked.issued_at_ms }
}

fn reused() -> Failure {
    Failure::new(Reason::RequestIdReused, "this request id was used before for something else")
}

/// Why a name cannot be given to a new namespace.
fn exists(namespace: &Namespace, spec: &NamespaceSpec) -> Failure {
    let failure = |message| Failure::new(Reason::NamespaceExists, message).with("mode", namespace.mode());
    if let Some(due_ms) = namespace.deletion_due_ms() {
        let message = format!(
            "namespace `{}` is deleted, and its name is free when the grace is over: undelete it, or delete it at once",
            spec.name
        );
        return failure(message).with("deleted_until_ms", due_ms);
    }
    let settings = if is_as_asked(namespace, spec) { "these" } else { "other" };
    failure(format!("namespace `{}` exists already, with {settings} settings", spec.name))
}

fn is_as_asked(namespace: &Namespace, spec: &NamespaceSpec) -> bool {
    let replication = match namespace.placement {
        Placement::Strong { .. } => None,
        Placement::Available { replication, .. } => Some(replication),
    };
    namespace.name == spec.name && namespace.guarantee == spec.guarantee && replication == spec.replication
}

/// Whether a namespace can have been made as this says: R and W may have been altered since.
fn was_made_as(namespace: &Namespace, spec: &NamespaceSpec) -> bool {
    let mut first = namespace.clone();
    if let (Placement::Available { replication, .. }, Some(asked)) = (&mut first.placement, spec.replication)
        && first.settings_version > 1
    {
        (replication.r, replication.w) = (asked.r, asked.w);
    }
    is_as_asked(&first, spec)
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

#[cfg(test)]
mod tests {
    use super::row::{VERSION, VERSION_WITH_DELETIONS, VERSION_WITH_GRACES, VERSION_WITH_KEYS};
    use super::*;
    use crate::codec;
    use crate::limits::{CHANGES_KEPT, FORGOTTEN_AROUND};
    use bytes::Bytes;
    use kv_types::causal::ContextKey;
    use kv_types::{Applied, ClientId};
    use proptest::prelude::*;

    const ISSUED: u64 = 1_700_000_000_000;

    fn machine() -> (CatalogueMachine, watch::Receiver<Arc<Catalogue>>) {
        let (published, shown) = watch::channel(Arc::default());
        let mut machine = CatalogueMachine::new(published);
        machine.decide(init(7, five())).unwrap();
        (machine, shown)
    }

    /// As an older release founded a cluster.
    fn init(cluster_id: u128, members: Vec<Member>) -> CatalogueCommand {
        let (cluster_id, level) = (ClusterId(cluster_id), FeatureLevel::FIRST);
        CatalogueCommand::InitCluster { cluster_id, members, level, context_key: None }
    }

    fn keyed() -> CatalogueCommand {
        let (cluster_id, level) = (ClusterId(7), FeatureLevel::KEYED);
        let context_key = Some(ContextKey::new([3; 32]));
        CatalogueCommand::InitCluster { cluster_id, members: five(), level, context_key }
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
            asked: asked(seq, again),
        }
    }

    fn asked(seq: u64, again: bool) -> Asked {
        Asked { request_id: id(seq), issued_at_ms: ISSUED, again }
    }

    fn schedule(name: &str, due_ms: u64, seq: u64) -> CatalogueCommand {
        let name = NamespaceName::new(name).unwrap();
        let deletion = Deletion { due_ms, grace_ms: 60_000 };
        CatalogueCommand::ScheduleDeletion { name, deletion, asked: asked(seq, false) }
    }

    fn undelete(name: &str, seq: u64) -> CatalogueCommand {
        let name = NamespaceName::new(name).unwrap();
        CatalogueCommand::UndeleteNamespace { name, asked: asked(seq, false) }
    }

    fn alter(name: &str, r: Option<u8>, w: Option<u8>, seq: u64) -> CatalogueCommand {
        let name = NamespaceName::new(name).unwrap();
        CatalogueCommand::AlterNamespace { name, r, w, asked: asked(seq, false) }
    }

    fn due(namespace: u64, due_ms: u64) -> CatalogueCommand {
        CatalogueCommand::DeleteDue { namespace: NamespaceId(namespace), due_ms }
    }

    /// The reason of a refusal, which changes nothing.
    fn refusal(result: Decided) -> Reason {
        let failure = result.unwrap_err();
        assert_eq!(failure.applied, Applied::No, "{failure}");
        failure.reason
    }

    /// A command that is sent again and was issued then.
    fn at(command: CatalogueCommand, issued: u64) -> CatalogueCommand {
        match command {
            CatalogueCommand::CreateNamespace { spec, request_id, .. } => {
                CatalogueCommand::CreateNamespace { spec, request_id, again: Some(issued) }
            }
            CatalogueCommand::DeleteNamespace { name, asked } => CatalogueCommand::DeleteNamespace {
                name,
                asked: Asked { issued_at_ms: issued, again: true, ..asked },
            },
            other => other,
        }
    }

    /// The id of the namespace that a command was about, whether an earlier attempt did it, and whether it
    /// changed anything.
    fn done(result: Decided) -> (u64, bool, bool) {
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
        let again = init(8, Vec::new());
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
        let beyond = format!("is at feature level {}", FeatureLevel::SUPPORTED.0 + 1);
        let own = format!("up to feature level {}", FeatureLevel::SUPPORTED.0);
        for part in [beyond.as_str(), own.as_str(), "upgrade this node"] {
            assert!(error.contains(part), "{error}");
        }
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
        let later = [
            schedule("cart", ISSUED, 6),
            undelete("cart", 7),
            alter("cart", Some(1), None, 8),
            alter("cart", None, Some(3), 9),
            due(2, ISSUED),
        ];
        for command in later {
            let bytes = command.encode().0;
            for cut in 0..bytes.len() {
                assert!(CatalogueCommand::decode(bytes.slice(..cut)).is_err(), "{command:?} cut at {cut}");
            }
            assert_eq!(CatalogueCommand::decode(bytes).unwrap(), command);
        }
        let unknown = CatalogueCommand::decode(Bytes::from_static(&[codec::VERSION, 77])).unwrap_err();
        assert_eq!(unknown, CodecError::Newer { what: "catalogue command", field: "kind", found: 77 });
        let init = init(7, five());
        assert_eq!(CatalogueCommand::decode(init.encode().0).unwrap(), init);
        let keyed = keyed();
        assert_eq!(CatalogueCommand::decode(keyed.encode().0).unwrap(), keyed);
        assert!(init.encode().0[1] == 0 && keyed.encode().0[1] != 0, "an older release reads the first one");
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
        machine.catalogue.level = FeatureLevel::GRACE;
        assert_eq!(row(&machine)[0], VERSION_WITH_GRACES);
        let graces =
            [schedule("a", ISSUED, 1), undelete("a", 2), alter("a", Some(1), None, 3), due(1, ISSUED)];
        assert!(graces.iter().all(|command| command.needs() == FeatureLevel::GRACE));
    }

    #[test]
    fn the_key_of_contexts_is_kept_and_not_shown() {
        let mut machine = CatalogueMachine::new(watch::channel(Arc::default()).0);
        machine.decide(keyed()).unwrap();
        let row = encode_catalogue(&machine.catalogue, &machine.requests);
        assert_eq!(row[0], VERSION_WITH_KEYS);
        let (read, _) = decode_catalogue(row.clone().into()).unwrap();
        assert_eq!((read.level, read.context_keys.iter().len()), (FeatureLevel::KEYED, 1));
        assert_eq!(read, machine.catalogue);
        let shown = format!("{:?} {:?}", keyed(), machine.catalogue);
        assert!(!shown.contains("3, 3, 3") && !shown.contains("0303"), "{shown}");
        // No more of them than may be in force.
        let mut more = row[..row.len() - 36].to_vec();
        more.extend(3_u32.to_be_bytes());
        (1..=3).for_each(|secret| more.extend([secret; 32]));
        assert!(decode_catalogue(more.into()).unwrap_err().to_string().contains("keys of contexts"));
    }

    /// A row of the level before, as that release wrote it, is read, and written anew at the next one.
    #[test]
    fn deletions_of_the_level_before_are_changes_of_the_next_one() {
        let (mut machine, _) = machine();
        machine.decide(create("bank", None, 1)).unwrap();
        machine.decide(create("cart", Some(N3), 2)).unwrap();
        machine.decide(delete("bank", 3, false)).unwrap();
        machine.catalogue.level = FeatureLevel::DELETION;
        let old = encode_catalogue(&machine.catalogue, &machine.requests);
        (machine.catalogue, machine.requests) = decode_catalogue(old.into()).unwrap();
        machine.catalogue.level = FeatureLevel::GRACE;
        let new = encode_catalogue(&machine.catalogue, &machine.requests);
        assert_eq!(decode_catalogue(new.into()), Ok((machine.catalogue.clone(), machine.requests.clone())));
        assert_eq!(done(machine.decide(delete("bank", 3, true))), (1, true, false));
    }

    #[test]
    fn rows_that_do_not_hold_together_are_refused_by_name() {
        let (mut machine, _) = machine();
        machine.catalogue.level = FeatureLevel::GRACE;
        machine.decide(create("bank", None, 1)).unwrap();
        machine.decide(schedule("bank", ISSUED, 2)).unwrap();
        let refused = |machine: &CatalogueMachine| {
            let row = encode_catalogue(&machine.catalogue, &machine.requests);
            decode_catalogue(row.into()).unwrap_err().to_string()
        };
        let whole = (machine.catalogue.clone(), machine.requests.clone());
        machine.requests.scheduled.clear();
        assert!(refused(&machine).contains("do not fit the requests"));
        (machine.catalogue, machine.requests) = whole.clone();
        machine.catalogue.namespaces.get_mut(&NamespaceId(1)).unwrap().deletion = None;
        assert!(refused(&machine).contains("do not fit the requests"));
        (machine.catalogue, machine.requests) = whole;
        let change = machine.requests.changes[0].clone();
        machine.requests.changes.resize(CHANGES_KEPT, change.clone());
        let row = encode_catalogue(&machine.catalogue, &machine.requests);
        assert!(decode_catalogue(row.into()).is_ok(), "as many as are kept");
        machine.requests.changes.push_back(change);
        assert!(refused(&machine).contains("257 changes are remembered"));
        let newer = decode_catalogue(Bytes::from_static(&[VERSION_WITH_KEYS + 1, 0])).unwrap_err();
        assert_eq!(newer, CodecError::Newer { what: "catalogue", field: "version", found: 6 });
        let older = decode_catalogue(Bytes::from_static(&[VERSION - 1, 0])).unwrap_err();
        assert_eq!(older, CodecError::Unknown { what: "catalogue", field: "version", found: 1 });
    }

    #[test]
    fn a_deletion_with_a_grace_can_be_undone_until_it_is_due() {
        let (mut machine, mut shown) = machine();
        machine.catalogue.level = FeatureLevel::GRACE;
        machine.decide(create("bank", None, 1)).unwrap();
        assert_eq!(refusal(machine.decide(schedule("cart", 500, 2))), Reason::NamespaceUnknown);
        assert_eq!(done(machine.decide(schedule("bank", 500, 2))), (1, false, true));
        machine.publish();
        let seen = shown.borrow_and_update().clone();
        let marked = seen.namespace("bank").unwrap();
        assert_eq!((marked.deletion_due_ms(), marked.settings_version), (Some(500), 2));
        assert!(!seen.was_deleted(NamespaceId(1)), "what is stored stays");
        assert!(seen.deleted(|_| true).is_empty(), "what is stored stays");
        let refused = marked.check_present().unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::DeletionPending, Applied::No));
        assert_eq!(refused.detail("deleted_until_ms"), Some("500"));
        // Once per request; another one finds that it is done, and the name is not free.
        assert_eq!(done(machine.decide(schedule("bank", 900, 2))), (1, true, false));
        assert_eq!(refusal(machine.decide(schedule("bank", 900, 3))), Reason::DeletionPending);
        let exists = machine.decide(create("bank", None, 4)).unwrap_err();
        assert_eq!(
            (exists.reason, exists.detail("deleted_until_ms")),
            (Reason::NamespaceExists, Some("500"))
        );
        assert_eq!(refusal(machine.decide(undelete("bank", 2))), Reason::RequestIdReused);
        // Taken back: everything is as before, and what was due then deletes nothing.
        assert_eq!(done(machine.decide(undelete("bank", 5))), (1, false, true));
        assert_eq!(done(machine.decide(undelete("bank", 5))), (1, true, false));
        assert_eq!(refusal(machine.decide(undelete("bank", 6))), Reason::NamespaceExists);
        let late = Ok((Catalogued { namespace: None, deduplicated: true }, false));
        assert_eq!(machine.decide(due(1, 500)), late);
        let back = machine.catalogue.namespace("bank").unwrap();
        assert_eq!((back.deletion, back.settings_version), (None, 3));
        assert_eq!(back.check_present(), Ok(()));
        // The request that marked it answers as it did, and marks nothing again.
        assert_eq!(done(machine.decide(schedule("bank", 500, 2))), (1, true, false));
        assert_eq!(machine.catalogue.namespace("bank").unwrap().deletion, None);
        // Another deletion is due at its own time only.
        assert_eq!(done(machine.decide(schedule("bank", 800, 7))), (1, false, true));
        assert_eq!(machine.decide(due(1, 500)), late);
        assert_eq!(done(machine.decide(due(1, 800))), (1, false, true));
        assert!(machine.catalogue.was_deleted(NamespaceId(1)) && machine.requests.scheduled.is_empty());
        assert_eq!(machine.decide(due(1, 800)), late, "a second leader deletes nothing more");
        assert_eq!(refusal(machine.decide(undelete("bank", 8))), Reason::NamespaceUnknown);
        // All requests answer as they did.
        for (resent, of) in [(schedule("bank", 1, 7), 800), (schedule("bank", 1, 2), 500)] {
            let (answer, changed) = machine.decide(resent).unwrap();
            assert!(answer.deduplicated && !changed);
            assert_eq!(answer.namespace.unwrap().deletion_due_ms(), Some(of));
        }
        assert_eq!(done(machine.decide(create("bank", None, 1))), (1, true, false));
        assert!(machine.catalogue.namespace("bank").is_none());
        assert_eq!(done(machine.decide(create("bank", None, 9))), (2, false, true));
    }

    #[test]
    fn a_marked_namespace_can_be_deleted_at_once() {
        let (mut machine, _) = machine();
        machine.catalogue.level = FeatureLevel::GRACE;
        machine.decide(create("bank", None, 1)).unwrap();
        machine.decide(schedule("bank", 500, 2)).unwrap();
        assert_eq!(done(machine.decide(delete("bank", 3, false))), (1, false, true));
        assert!(machine.catalogue.namespaces.is_empty() && machine.requests.scheduled.is_empty());
        assert!(!machine.decide(due(1, 500)).unwrap().1);
        assert_eq!(done(machine.decide(schedule("bank", 500, 2))), (1, true, false));
        assert_eq!(done(machine.decide(delete("bank", 3, true))), (1, true, false));
        let row = encode_catalogue(&machine.catalogue, &machine.requests);
        assert_eq!(decode_catalogue(row.into()), Ok((machine.catalogue.clone(), machine.requests.clone())));
    }

    #[test]
    fn what_reads_and_writes_wait_for_can_be_altered_within_n() {
        let (mut machine, _) = machine();
        machine.catalogue.level = FeatureLevel::GRACE;
        machine.decide(create("bank", None, 1)).unwrap();
        machine.decide(create("cart", Some(N3), 2)).unwrap();
        let counts = |machine: &CatalogueMachine| match machine.catalogue.namespace("cart").unwrap().placement
        {
            Placement::Available { replication: Replication { n, r, w, sloppy }, .. } => (n, r, w, sloppy),
            Placement::Strong { .. } => panic!("strong"),
        };
        assert_eq!(done(machine.decide(alter("cart", Some(1), None, 3))), (2, false, true));
        assert_eq!(counts(&machine), (3, 1, 2, true));
        assert_eq!(done(machine.decide(alter("cart", None, Some(3), 4))), (2, false, true));
        assert_eq!(counts(&machine), (3, 1, 3, true));
        assert_eq!(machine.catalogue.namespace("cart").unwrap().settings_version, 3);
        // Resent: as they were, also the creation, which knew other counts.
        assert_eq!(done(machine.decide(alter("cart", Some(1), None, 3))), (2, true, false));
        assert_eq!(done(machine.decide(create("cart", Some(N3), 2))), (2, true, false));
        let other = Replication { n: 5, ..N3 };
        assert_eq!(refusal(machine.decide(create("cart", Some(other), 2))), Reason::RequestIdReused);
        for reused in [alter("cart", Some(2), None, 3), alter("bank", Some(1), None, 3), undelete("cart", 3)]
        {
            assert_eq!(refusal(machine.decide(reused)), Reason::RequestIdReused);
        }
        for (r, w) in [(Some(0), None), (Some(4), None), (None, Some(0)), (None, Some(4)), (Some(1), Some(9))]
        {
            assert_eq!(refusal(machine.decide(alter("cart", r, w, 5))), Reason::NamespaceInvalid);
        }
        assert_eq!(refusal(machine.decide(alter("bank", Some(1), None, 5))), Reason::ModeMismatch);
        assert_eq!(refusal(machine.decide(alter("none", Some(1), None, 5))), Reason::NamespaceUnknown);
        machine.decide(schedule("cart", 500, 6)).unwrap();
        assert_eq!(refusal(machine.decide(alter("cart", Some(1), None, 7))), Reason::DeletionPending);
        assert_eq!(counts(&machine), (3, 1, 3, true));
    }

    /// What was written by an earlier W must be read by every later R.
    #[test]
    fn a_promise_outlives_changes_of_its_numbers() {
        let (mut machine, _) = machine();
        machine.catalogue.level = FeatureLevel::SUPPORTED;
        let strict = Replication { n: 3, r: 2, w: 2, sloppy: false };
        let CatalogueCommand::CreateNamespace { mut spec, request_id, again } =
            create("cart", Some(strict), 1)
        else {
            panic!("it creates")
        };
        spec.guarantee = Guarantee::MonotonicReads;
        let create = CatalogueCommand::CreateNamespace { spec, request_id, again };
        assert_eq!(create.needs(), FeatureLevel::PROMISES);
        machine.decide(create).unwrap();
        for (r, w) in [(Some(1), Some(3)), (None, Some(1)), (Some(1), None)] {
            assert_eq!(
                refusal(machine.decide(alter("cart", r, w, 2))),
                Reason::NamespaceInvalid,
                "{r:?} {w:?}"
            );
        }
        for (seq, r, w) in [(3, None, Some(3)), (4, None, Some(2)), (5, Some(3), Some(1))] {
            machine.decide(alter("cart", r, w, seq)).unwrap();
        }
        assert_eq!(refusal(machine.decide(alter("cart", Some(2), Some(2), 6))), Reason::NamespaceInvalid);
    }

    /// Changes share the bound of the deletions, and what is forgotten is never done again.
    #[test]
    fn what_is_remembered_of_changes_is_bounded() {
        let (mut machine, _) = machine();
        machine.catalogue.level = FeatureLevel::GRACE;
        machine.decide(create("cart", Some(N3), 1)).unwrap();
        let kept = CHANGES_KEPT as u64;
        let again = |command| match command {
            CatalogueCommand::AlterNamespace { name, r, w, .. } => {
                CatalogueCommand::AlterNamespace { name, r, w, asked: asked(2, true) }
            }
            other => other,
        };
        for seq in 2..2 + kept {
            machine.decide(alter("cart", Some(1), None, seq)).unwrap();
        }
        assert_eq!(done(machine.decide(again(alter("cart", Some(1), None, 2)))), (1, true, false));
        machine.decide(schedule("cart", 500, 2 + kept)).unwrap();
        assert_eq!(machine.requests.changes.len(), CHANGES_KEPT);
        let forgotten = machine.decide(again(alter("cart", Some(1), None, 2))).unwrap_err();
        assert_eq!((forgotten.reason, forgotten.applied), (Reason::RequestExpired, Applied::Unknown));
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
        let kept = CHANGES_KEPT as u64;
        for seq in 1..=kept + 1 {
            machine.decide(create("scratch", None, 2 * seq)).unwrap();
            machine.decide(delete("scratch", 2 * seq + 1, false)).unwrap();
        }
        assert_eq!(machine.requests.changes.len(), CHANGES_KEPT);
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
            let kept = std::iter::repeat_n(ISSUED, CHANGES_KEPT);
            for (seq, issued_at_ms) in (1..).zip(issued.into_iter().chain(kept)) {
                machine.decide(create("scratch", None, 2 * seq)).unwrap();
                let name = NamespaceName::new("scratch").unwrap();
                let asked = Asked { issued_at_ms, ..asked(2 * seq + 1, false) };
                machine.decide(CatalogueCommand::DeleteNamespace { name, asked }).unwrap();
            }
            assert_eq!(machine.requests.forgotten_until_ms, until);
            for forgotten in [0, until, until + around] {
                let resend = at(create("scratch", None, 2), forgotten);
                assert_eq!(machine.decide(resend).unwrap_err().reason, Reason::RequestExpired, "{forgotten}");
            }
            assert!(done(machine.decide(at(create("new", None, 9_000), until + around + 1))).2);
        }
    }

    /// A change of one of two namespaces, by one of few requests, so that resends and reuse occur.
    fn changes() -> impl Strategy<Value = CatalogueCommand> {
        let count = || proptest::option::of(0..5_u8);
        let parts = (0..6, proptest::bool::ANY, 1..40_u64, 1..6_u64, 1..4_u64, (count(), count()));
        parts.prop_map(|(kind, first, seq, id, due_ms, (r, w))| {
            let name = if first { "bank" } else { "cart" };
            match kind {
                0 => create(name, (!first).then_some(N3), seq),
                1 => delete(name, seq, false),
                2 => schedule(name, due_ms, seq),
                3 => undelete(name, seq),
                4 => alter(name, r, w, seq),
                _ => due(id, due_ms),
            }
        })
    }

    proptest! {
        /// Whatever is asked for: the row and the commands survive their encoding, a member that loads the
        /// row goes on as the others, the same request again changes nothing, and only deletions remove.
        #[test]
        fn any_changes_are_done_once_and_survive_a_restart(
            commands in proptest::collection::vec(changes(), 1..40),
            restart in 0..40_usize,
        ) {
            let ((mut machine, _), (mut other, _)) = (machine(), machine());
            machine.catalogue.level = FeatureLevel::GRACE;
            other.catalogue.level = FeatureLevel::GRACE;
            for (number, command) in commands.into_iter().enumerate() {
                prop_assert_eq!(&CatalogueCommand::decode(command.encode().0).unwrap(), &command);
                if number == restart {
                    let row = encode_catalogue(&other.catalogue, &other.requests);
                    (other.catalogue, other.requests) = decode_catalogue(row.into()).unwrap();
                }
                let before = machine.catalogue.clone();
                let decided = machine.decide(command.clone());
                prop_assert_eq!(&other.decide(command.clone()), &decided);
                let changed = matches!(decided, Ok((_, true)));
                prop_assert_eq!(machine.catalogue.epoch.0 - before.epoch.0, u64::from(changed));
                prop_assert!(changed || machine.catalogue == before);
                let gone = before.namespaces.keys().any(|id| machine.catalogue.was_deleted(*id));
                let removes = match &command {
                    CatalogueCommand::DeleteNamespace { .. } => true,
                    CatalogueCommand::DeleteDue { namespace, due_ms } => {
                        before.namespaces.get(namespace).is_some_and(|one| one.deletion_due_ms() == Some(*due_ms))
                    }
                    _ => false,
                };
                prop_assert!(removes || !gone, "{command:?} removed a namespace");
                if changed {
                    let (once, _) = decided.unwrap();
                    let (again, changed) = machine.decide(command.clone()).unwrap();
                    prop_assert!(!changed && again.deduplicated);
                    let due = matches!(command, CatalogueCommand::DeleteDue { .. });
                    prop_assert!(due || again.namespace == once.namespace);
                }
            }
            prop_assert_eq!(&machine.catalogue, &other.catalogue);
            prop_assert_eq!(&machine.requests, &other.requests);
        }

        #[test]
        fn bad_bytes_are_errors(mut bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            for version in [VERSION, VERSION_WITH_DELETIONS, VERSION_WITH_GRACES, VERSION_WITH_KEYS] {
                bytes[0] = version;
                let _ = decode_catalogue(bytes.clone().into());
            }
            bytes[0] = codec::VERSION;
            let _ = CatalogueCommand::decode(bytes.into());
        }
    }
}
