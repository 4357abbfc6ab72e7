//! The one row of group 0, as it stands on the disk and in snapshots: the catalogue, and what is kept of
//! requests. Its version follows the level of the cluster, so that a member of an older release reads every
//! row that it can meet.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};
use kv_types::catalogue::{Catalogue, FeatureLevel, Group, Ring};
use kv_types::causal::{CONTEXT_KEYS, ContextKey, ContextKeys};
use kv_types::{ClusterId, Epoch, GroupId, Namespace, NamespaceId, NodeId, Placement, RequestId, RingId};

use super::parts::{
    context_key, deletion, guarantee, guarantee_number, members, name, put_deletion, put_members,
    put_replication, put_request_id, replication, request_id,
};
use super::requests::{By, Change, Requests, What};
use crate::codec::{self, CodecError, Reader, Write};
use crate::limits::CHANGES_KEPT;

/// Version of the catalogue's row: the first had no feature level.
pub(super) const VERSION: u8 = 2;
/// As [`VERSION`], and deletions behind it: from the level on that has them.
pub(super) const VERSION_WITH_DELETIONS: u8 = 3;
/// As that, and with each namespace when it goes; all changes instead of the deletions, and who asked for
/// what goes later: from the level on that has graces.
pub(super) const VERSION_WITH_GRACES: u8 = 4;

/// As that, and the keys of contexts behind it: from the level on that has them.
pub(super) const VERSION_WITH_KEYS: u8 = 5;

/// The version that a cluster at this level writes.
fn version_at(catalogue: &Catalogue) -> u8 {
    if catalogue.allows(FeatureLevel::KEYED) {
        VERSION_WITH_KEYS
    } else if catalogue.allows(FeatureLevel::GRACE) {
        VERSION_WITH_GRACES
    } else if catalogue.allows(FeatureLevel::DELETION) {
        VERSION_WITH_DELETIONS
    } else {
        VERSION
    }
}

const WHATS: [What; 5] = [What::Deleted, What::Due, What::Scheduled, What::Undeleted, What::Altered];

fn what_number(what: What) -> u8 {
    WHATS.iter().zip(0..).find(|(known, _)| **known == what).map_or(u8::MAX, |(_, number)| number)
}

fn what(reader: &mut Reader) -> Result<What, CodecError> {
    let number = reader.u8()?;
    WHATS.get(usize::from(number)).copied().ok_or_else(|| reader.unknown("change", number))
}

fn put_nodes(out: &mut Vec<u8>, nodes: &[NodeId]) {
    out.put_u32(codec::length(nodes.len()));
    nodes.iter().for_each(|node| out.put_u64(node.0));
}

fn nodes(reader: &mut Reader) -> Result<Vec<NodeId>, CodecError> {
    reader.list(|reader| reader.u64().map(NodeId))
}

fn put_by(out: &mut Vec<u8>, by: By) {
    put_request_id(out, by.request);
    out.put_u64(by.issued_at_ms);
}

fn by(reader: &mut Reader) -> Result<By, CodecError> {
    Ok(By { request: request_id(reader)?, issued_at_ms: reader.u64()? })
}

fn put_namespace(out: &mut Vec<u8>, version: u8, namespace: &Namespace, creator: Option<&RequestId>) {
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
    if version >= VERSION_WITH_GRACES {
        out.put_flag(namespace.deletion.is_some());
        if let Some(deletion) = namespace.deletion {
            put_deletion(out, deletion);
        }
    }
}

fn namespace(reader: &mut Reader, version: u8) -> Result<(Namespace, Option<RequestId>), CodecError> {
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
    let deletion = if version >= VERSION_WITH_GRACES { reader.option(deletion)? } else { None };
    Ok((Namespace { id, name, settings_version, deletion, guarantee, placement }, creator))
}

pub(super) fn encode_catalogue(catalogue: &Catalogue, requests: &Requests) -> Vec<u8> {
    let Catalogue {
        cluster_id,
        epoch,
        level,
        members,
        rings,
        namespaces,
        groups,
        next_namespace,
        context_keys,
    } = catalogue;
    let version = version_at(catalogue);
    let mut out = codec::versioned(version, 8 << 10);
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
        put_namespace(&mut out, version, namespace, requests.creators.get(&namespace.id));
    }
    if version >= VERSION_WITH_DELETIONS {
        put_requests(&mut out, version, requests);
    }
    if version >= VERSION_WITH_KEYS {
        out.put_u32(codec::length(context_keys.iter().len()));
        context_keys.iter().for_each(|key| out.put_slice(key.secret()));
    }
    out
}

/// What is kept of requests besides those that made the namespaces that are there.
fn put_requests(out: &mut Vec<u8>, version: u8, requests: &Requests) {
    let Requests { creators: _, scheduled, changes, forgotten_until_ms } = requests;
    out.put_u64(*forgotten_until_ms);
    out.put_u32(codec::length(changes.len()));
    for Change { what, namespace, creator, by } in changes {
        // Before there were graces every change was a deletion.
        if version >= VERSION_WITH_GRACES {
            out.put_u8(what_number(*what));
        }
        put_namespace(out, version, namespace, creator.as_ref());
        put_by(out, *by);
    }
    if version >= VERSION_WITH_GRACES {
        out.put_u32(codec::length(scheduled.len()));
        for (namespace, by) in scheduled {
            out.put_u64(namespace.0);
            put_by(out, *by);
        }
    }
}

pub(crate) fn decode_catalogue(bytes: Bytes) -> Result<(Catalogue, Requests), CodecError> {
    let known = |found: &&u8| (VERSION..=VERSION_WITH_KEYS).contains(*found);
    // What is unknown is compared with the newest, so that the error says whether the program is too old.
    let version = bytes.first().filter(known).copied().unwrap_or(VERSION_WITH_KEYS);
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
        let (namespace, creator) = namespace(reader, version)?;
        requests.creators.extend(creator.map(|creator| (namespace.id, creator)));
        Ok((namespace.id, namespace))
    })?;
    let namespaces: BTreeMap<_, _> = namespaces.into_iter().collect();
    if version >= VERSION_WITH_DELETIONS {
        read_requests(&mut reader, version, &mut requests)?;
    }
    check_scheduled(&reader, &namespaces, &requests)?;
    let context_keys = if version >= VERSION_WITH_KEYS { context_keys(&mut reader)? } else { Vec::new() };
    reader.end()?;
    let catalogue = Catalogue {
        cluster_id,
        epoch,
        level,
        members: members.into_iter().map(|member| (member.id, member)).collect(),
        rings: rings.into_iter().map(|ring| (ring.id, ring)).collect(),
        namespaces,
        groups: groups.into_iter().map(|group| (group.id, group)).collect(),
        next_namespace,
        context_keys: ContextKeys::new(context_keys),
    };
    Ok((catalogue, requests))
}

fn context_keys(reader: &mut Reader) -> Result<Vec<ContextKey>, CodecError> {
    let keys = reader.list(context_key)?;
    match keys.len() <= CONTEXT_KEYS {
        true => Ok(keys),
        false => Err(reader
            .invalid(format!("it has {} keys of contexts, and at most {CONTEXT_KEYS} may be", keys.len()))),
    }
}

fn read_requests(reader: &mut Reader, version: u8, requests: &mut Requests) -> Result<(), CodecError> {
    requests.forgotten_until_ms = reader.u64()?;
    let change = |reader: &mut Reader| {
        let what = if version >= VERSION_WITH_GRACES { what(reader)? } else { What::Deleted };
        let (namespace, creator) = namespace(reader, version)?;
        Ok(Change { what, namespace, creator, by: by(reader)? })
    };
    requests.changes = reader.list(change)?.into();
    if requests.changes.len() > CHANGES_KEPT {
        let message =
            format!("{} changes are remembered, and at most {CHANGES_KEPT} may be", requests.changes.len());
        return Err(reader.invalid(message));
    }
    if version >= VERSION_WITH_GRACES {
        let scheduled = reader.list(|reader| Ok((NamespaceId(reader.u64()?), by(reader)?)))?;
        requests.scheduled = scheduled.into_iter().collect();
    }
    Ok(())
}

/// What goes later, and who asked for that, are the same namespaces.
fn check_scheduled(
    reader: &Reader,
    namespaces: &BTreeMap<NamespaceId, Namespace>,
    requests: &Requests,
) -> Result<(), CodecError> {
    let due = namespaces.values().filter(|namespace| namespace.deletion.is_some());
    match due.map(|namespace| &namespace.id).eq(requests.scheduled.keys()) {
        true => Ok(()),
        false => Err(reader.invalid("deletions that are due later do not fit the requests for them")),
    }
}
