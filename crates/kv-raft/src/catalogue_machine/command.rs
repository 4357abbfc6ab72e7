//! The commands of group 0, and how they are written in its log.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};
use kv_types::catalogue::{FeatureLevel, Member};
use kv_types::causal::ContextKey;
use kv_types::{ClusterId, Deletion, Mode, NamespaceId, NamespaceName, NamespaceSpec, NodeId, RequestId};

use super::parts::{
    context_key, deletion, guarantee, guarantee_number, members, name, put_deletion, put_members,
    put_replication, put_request_id, replication, request_id,
};
use crate::codec::{self, CodecError, Reader, Write};
use crate::proposal::Proposal;

/// A request for a change of a namespace that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// By which a resend is recognized.
    pub(crate) request_id: RequestId,
    /// When it was issued, milliseconds since 1970.
    pub(crate) issued_at_ms: u64,
    /// It was sent before.
    pub(crate) again: bool,
}

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
        /// What all of them support that could be asked.
        level: FeatureLevel,
        /// Under which contexts are authenticated, from the level on that has such keys.
        context_key: Option<ContextKey>,
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
        /// Who asks.
        asked: Asked,
    },
    /// A namespace serves nothing from now on, and goes at a later time unless that is undone.
    ScheduleDeletion {
        /// Its name.
        name: NamespaceName,
        /// When it goes.
        deletion: Deletion,
        /// Who asks.
        asked: Asked,
    },
    /// A namespace that was to go stays.
    UndeleteNamespace {
        /// Its name.
        name: NamespaceName,
        /// Who asks.
        asked: Asked,
    },
    /// What reads and writes of an available namespace wait for is changed.
    AlterNamespace {
        /// Its name.
        name: NamespaceName,
        /// Answers that a read needs, if that changes.
        r: Option<u8>,
        /// Acknowledgements that a write needs, if that changes.
        w: Option<u8>,
        /// Who asks.
        asked: Asked,
    },
    /// The grace of a deletion is over. It has an effect once, and none where the deletion was undone.
    DeleteDue {
        /// The namespace.
        namespace: NamespaceId,
        /// When it was due, as the catalogue says.
        due_ms: u64,
    },
}

const INIT_CLUSTER: u8 = 0;
const CREATE_NAMESPACE: u8 = 1;
const RAISE_LEVEL: u8 = 2;
const DELETE_NAMESPACE: u8 = 3;
const CREATE_NAMESPACE_AGAIN: u8 = 4;
const SCHEDULE_DELETION: u8 = 5;
const UNDELETE_NAMESPACE: u8 = 6;
const ALTER_NAMESPACE: u8 = 7;
const DELETE_DUE: u8 = 8;
const INIT_CLUSTER_AT_LEVEL: u8 = 9;

impl CatalogueCommand {
    /// The level of the cluster from which on it may be proposed.
    pub(crate) fn needs(&self) -> FeatureLevel {
        match self {
            Self::CreateNamespace { spec, .. } if spec.promises_more() => FeatureLevel::PROMISES,
            Self::InitCluster { .. }
            | Self::RaiseLevel { .. }
            | Self::CreateNamespace { again: None, .. } => FeatureLevel::FIRST,
            Self::CreateNamespace { again: Some(_), .. } | Self::DeleteNamespace { .. } => {
                FeatureLevel::DELETION
            }
            Self::ScheduleDeletion { .. }
            | Self::UndeleteNamespace { .. }
            | Self::AlterNamespace { .. }
            | Self::DeleteDue { .. } => FeatureLevel::GRACE,
        }
    }

    pub(crate) fn encode(&self) -> Proposal {
        let mut out = codec::versioned(codec::VERSION, 256);
        match self {
            Self::InitCluster { cluster_id, members, level, context_key } => {
                let first = *level <= FeatureLevel::FIRST && context_key.is_none();
                out.put_u8(if first { INIT_CLUSTER } else { INIT_CLUSTER_AT_LEVEL });
                out.put_u128(cluster_id.0);
                put_members(&mut out, members.iter());
                if !first {
                    out.put_u32(level.0);
                    out.put_flag(context_key.is_some());
                    context_key.iter().for_each(|key| out.put_slice(key.secret()));
                }
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
            Self::CreateNamespace { spec, request_id, again } => {
                put_creation(&mut out, spec, *request_id, *again);
            }
            Self::DeleteNamespace { name, asked } => put_asked(&mut out, DELETE_NAMESPACE, name, asked),
            Self::ScheduleDeletion { name, deletion, asked } => {
                put_asked(&mut out, SCHEDULE_DELETION, name, asked);
                put_deletion(&mut out, *deletion);
            }
            Self::UndeleteNamespace { name, asked } => put_asked(&mut out, UNDELETE_NAMESPACE, name, asked),
            Self::AlterNamespace { name, r, w, asked } => {
                put_asked(&mut out, ALTER_NAMESPACE, name, asked);
                for count in [r, w] {
                    out.put_flag(count.is_some());
                    count.iter().for_each(|count| out.put_u8(*count));
                }
            }
            Self::DeleteDue { namespace, due_ms } => {
                out.put_u8(DELETE_DUE);
                out.put_u64(namespace.0);
                out.put_u64(*due_ms);
            }
        }
        Proposal(out.into())
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(bytes, "catalogue command", codec::VERSION)?;
        let command = match reader.u8()? {
            INIT_CLUSTER => Self::InitCluster {
                cluster_id: ClusterId(reader.u128()?),
                members: members(&mut reader)?,
                level: FeatureLevel::FIRST,
                context_key: None,
            },
            INIT_CLUSTER_AT_LEVEL => Self::InitCluster {
                cluster_id: ClusterId(reader.u128()?),
                members: members(&mut reader)?,
                level: FeatureLevel(reader.u32()?),
                context_key: reader.option(context_key)?,
            },
            CREATE_NAMESPACE => creation(&mut reader, None)?,
            CREATE_NAMESPACE_AGAIN => {
                let issued_at_ms = reader.u64()?;
                creation(&mut reader, Some(issued_at_ms))?
            }
            DELETE_NAMESPACE => {
                let (name, asked) = asked(&mut reader)?;
                Self::DeleteNamespace { name, asked }
            }
            SCHEDULE_DELETION => {
                let (name, asked) = asked(&mut reader)?;
                Self::ScheduleDeletion { name, deletion: deletion(&mut reader)?, asked }
            }
            UNDELETE_NAMESPACE => {
                let (name, asked) = asked(&mut reader)?;
                Self::UndeleteNamespace { name, asked }
            }
            ALTER_NAMESPACE => {
                let (name, asked) = asked(&mut reader)?;
                let (r, w) = (reader.option(Reader::u8)?, reader.option(Reader::u8)?);
                Self::AlterNamespace { name, r, w, asked }
            }
            DELETE_DUE => Self::DeleteDue { namespace: NamespaceId(reader.u64()?), due_ms: reader.u64()? },
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

fn put_creation(out: &mut Vec<u8>, spec: &NamespaceSpec, request_id: RequestId, again: Option<u64>) {
    out.put_u8(if again.is_some() { CREATE_NAMESPACE_AGAIN } else { CREATE_NAMESPACE });
    again.iter().for_each(|issued_at_ms| out.put_u64(*issued_at_ms));
    put_request_id(out, request_id);
    out.put_block(spec.name.as_str().as_bytes());
    out.put_flag(spec.mode == Mode::Available);
    out.put_u8(guarantee_number(spec.guarantee));
    out.put_flag(spec.replication.is_some());
    if let Some(replication) = spec.replication {
        put_replication(out, replication);
    }
}

fn creation(reader: &mut Reader, again: Option<u64>) -> Result<CatalogueCommand, CodecError> {
    let request_id = request_id(reader)?;
    let name = name(reader)?;
    let mode = if reader.flag()? { Mode::Available } else { Mode::Strong };
    let guarantee = guarantee(reader)?;
    let replication = reader.option(replication)?;
    let spec = NamespaceSpec { name, mode, replication, guarantee };
    Ok(CatalogueCommand::CreateNamespace { spec, request_id, again })
}

fn put_asked(out: &mut Vec<u8>, kind: u8, name: &NamespaceName, asked: &Asked) {
    out.put_u8(kind);
    put_request_id(out, asked.request_id);
    out.put_block(name.as_str().as_bytes());
    out.put_u64(asked.issued_at_ms);
    out.put_flag(asked.again);
}

fn asked(reader: &mut Reader) -> Result<(NamespaceName, Asked), CodecError> {
    let request_id = request_id(reader)?;
    let name = name(reader)?;
    let asked = Asked { request_id, issued_at_ms: reader.u64()?, again: reader.flag()? };
    Ok((name, asked))
}
