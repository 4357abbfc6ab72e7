//! Conversions between the wire and the vocabulary. What comes from the wire is checked here once and is a
//! named failure when it does not fit.

use std::collections::HashMap;
use std::fmt;

use bytes::Bytes;
use kv_types::catalogue::{Group, Member, Ring};
use kv_types::limits::{MAX_REPLICAS, RING_PARTITIONS};
use kv_types::{
    Applied, AvailableEvidence, ClientId, ClusterId, Degradation, Deletion, Epoch, Evidence, Failure,
    GroupId, Guarantee, Mutation, Namespace, NamespaceId, NamespaceName, NodeId, Placement, ReadPath, Reason,
    Receipt, ReplicaCount, ReplicaReply, Replication, RequestId, RingId, StrongEvidence,
};

use crate::{admin, peer, v1};

/// Ring partitions that a message may name at most: as many as a later release may split them into.
const MAX_RING_PARTITIONS: u32 = RING_PARTITIONS << 6;

/// A message that does not fit the vocabulary.
pub type DecodeError = Failure;

fn invalid(what: &str) -> Failure {
    Failure::new(Reason::InvalidRequest, format!("the message has no valid {what}"))
}

fn narrow(number: u32, what: &str) -> Result<u8, Failure> {
    u8::try_from(number).map_err(|_| invalid(what))
}

/// The 16 bytes of a cluster id.
pub fn cluster_id_bytes(id: ClusterId) -> Bytes {
    Bytes::copy_from_slice(&id.0.to_be_bytes())
}

/// A cluster id from its 16 bytes: `WRONG_CLUSTER` for anything else.
pub fn cluster_id_from_bytes(bytes: &[u8]) -> Result<ClusterId, DecodeError> {
    bytes.try_into().map(|bytes| ClusterId(u128::from_be_bytes(bytes))).map_err(|_| {
        Failure::new(Reason::WrongCluster, format!("a cluster id has 16 bytes, not {}", bytes.len()))
    })
}

/// The 16 bytes of a client id.
pub fn client_id_bytes(id: ClientId) -> Bytes {
    Bytes::copy_from_slice(&id.0.to_be_bytes())
}

/// A client id from its 16 bytes: `REQUEST_ID_INVALID` for anything else.
pub fn client_id_from_bytes(bytes: &[u8]) -> Result<ClientId, DecodeError> {
    let message = match bytes.try_into().map(u128::from_be_bytes) {
        Ok(0) => "a client id has 16 random bytes, not 16 zeros".to_owned(),
        Ok(id) => return Ok(ClientId(id)),
        Err(_) => format!("a client id has 16 random bytes, not {}", bytes.len()),
    };
    Err(Failure::new(Reason::RequestIdInvalid, message))
}

impl From<Mutation> for v1::Mutation {
    fn from(mutation: Mutation) -> Self {
        Self {
            client_id: client_id_bytes(mutation.request_id.client_id),
            seq: mutation.request_id.seq,
            issued_at_ms: mutation.issued_at_ms,
            lowest_unacked: mutation.lowest_unacked,
            attempt: mutation.attempt,
        }
    }
}

impl v1::Mutation {
    /// Reads the field of a request: `REQUEST_ID_INVALID` when it is missing or malformed.
    pub fn read(message: Option<&Self>) -> Result<Mutation, DecodeError> {
        let message = message.ok_or_else(|| {
            Failure::new(Reason::RequestIdInvalid, "a mutation needs a request id; this one has none")
        })?;
        let client_id = client_id_from_bytes(&message.client_id)?;
        if message.seq == 0 || message.lowest_unacked > message.seq {
            return Err(Failure::new(
                Reason::RequestIdInvalid,
                format!(
                    "seq {} and lowest unacknowledged {} do not fit",
                    message.seq, message.lowest_unacked
                ),
            ));
        }
        Ok(Mutation {
            request_id: RequestId { client_id, seq: message.seq },
            issued_at_ms: message.issued_at_ms,
            lowest_unacked: message.lowest_unacked,
            attempt: message.attempt.max(1),
        })
    }
}

impl From<ReplicaCount> for v1::ReplicaCount {
    fn from(count: ReplicaCount) -> Self {
        use v1::replica_count::Count;
        Self {
            count: Some(match count {
                ReplicaCount::Number(number) => Count::Number(number.into()),
                ReplicaCount::Quorum => Count::Quorum(true),
                ReplicaCount::All => Count::All(true),
            }),
        }
    }
}

impl TryFrom<&v1::ReplicaCount> for ReplicaCount {
    type Error = DecodeError;

    fn try_from(message: &v1::ReplicaCount) -> Result<Self, DecodeError> {
        use v1::replica_count::Count;
        match message.count {
            Some(Count::Number(number)) => narrow(number, "count of replicas").map(Self::Number),
            Some(Count::Quorum(true)) => Ok(Self::Quorum),
            Some(Count::All(true)) => Ok(Self::All),
            _ => Err(invalid("count of replicas")),
        }
    }
}

impl From<Guarantee> for v1::Guarantee {
    fn from(guarantee: Guarantee) -> Self {
        match guarantee {
            Guarantee::Linearizable => Self::Linearizable,
            Guarantee::BoundedStaleness => Self::BoundedStaleness,
            Guarantee::ReadYourWrites => Self::ReadYourWrites,
            Guarantee::MonotonicReads => Self::MonotonicReads,
            Guarantee::Eventual => Self::Eventual,
            Guarantee::StrictQuorum => Self::StrictQuorum,
        }
    }
}

impl TryFrom<v1::Guarantee> for Guarantee {
    type Error = DecodeError;

    fn try_from(message: v1::Guarantee) -> Result<Self, DecodeError> {
        match message {
            v1::Guarantee::Unspecified => Err(invalid("guarantee")),
            v1::Guarantee::Linearizable => Ok(Self::Linearizable),
            v1::Guarantee::BoundedStaleness => Ok(Self::BoundedStaleness),
            v1::Guarantee::ReadYourWrites => Ok(Self::ReadYourWrites),
            v1::Guarantee::MonotonicReads => Ok(Self::MonotonicReads),
            v1::Guarantee::Eventual => Ok(Self::Eventual),
            v1::Guarantee::StrictQuorum => Ok(Self::StrictQuorum),
        }
    }
}

impl From<ReadPath> for v1::ReadPath {
    fn from(path: ReadPath) -> Self {
        match path {
            ReadPath::ReadIndex => Self::ReadIndex,
            ReadPath::Lease => Self::Lease,
            ReadPath::Stale => Self::Stale,
            ReadPath::Log => Self::Log,
        }
    }
}

impl TryFrom<v1::ReadPath> for ReadPath {
    type Error = DecodeError;

    fn try_from(message: v1::ReadPath) -> Result<Self, DecodeError> {
        match message {
            v1::ReadPath::Unspecified => Err(invalid("read path")),
            v1::ReadPath::ReadIndex => Ok(Self::ReadIndex),
            v1::ReadPath::Lease => Ok(Self::Lease),
            v1::ReadPath::Stale => Ok(Self::Stale),
            v1::ReadPath::Log => Ok(Self::Log),
        }
    }
}

impl From<Degradation> for v1::Degradation {
    fn from(reason: Degradation) -> Self {
        match reason {
            Degradation::Fallback => Self::Fallback,
            Degradation::FallbackCoordinator => Self::FallbackCoordinator,
            Degradation::PrimarySilent => Self::PrimarySilent,
            Degradation::Divergent => Self::Divergent,
            Degradation::Forwarded => Self::Forwarded,
        }
    }
}

impl TryFrom<v1::Degradation> for Degradation {
    type Error = DecodeError;

    fn try_from(message: v1::Degradation) -> Result<Self, DecodeError> {
        match message {
            v1::Degradation::Unspecified => Err(invalid("degradation")),
            v1::Degradation::Fallback => Ok(Self::Fallback),
            v1::Degradation::FallbackCoordinator => Ok(Self::FallbackCoordinator),
            v1::Degradation::PrimarySilent => Ok(Self::PrimarySilent),
            v1::Degradation::Divergent => Ok(Self::Divergent),
            v1::Degradation::Forwarded => Ok(Self::Forwarded),
        }
    }
}

impl From<&Receipt> for v1::Receipt {
    fn from(receipt: &Receipt) -> Self {
        use v1::receipt::Evidence as Wire;
        let evidence = match &receipt.evidence {
            Evidence::Strong(strong) => Wire::Strong(v1::StrongEvidence {
                group: strong.group.0,
                term: strong.term,
                index: strong.index,
                namespace_revision: strong.namespace_revision,
                path: v1::ReadPath::from(strong.path).into(),
                applied_lag: strong.applied_lag,
            }),
            Evidence::Available(available) => Wire::Available(v1::AvailableEvidence {
                n: available.n.into(),
                r: available.r.into(),
                w: available.w.into(),
                strict: available.strict,
                settled: available.settled,
                replies: available
                    .replies
                    .iter()
                    .map(|reply| v1::ReplicaReply {
                        node: reply.node.0,
                        fallback: reply.fallback,
                        answered: reply.answered,
                        fsynced: reply.fsynced,
                        knows: reply.knows,
                    })
                    .collect(),
                hints: available.hints,
                repair: available.repair,
                siblings: available.siblings,
                staleness_bound_ms: available.staleness_bound_ms,
            }),
        };
        Self {
            promised: v1::Guarantee::from(receipt.promised).into(),
            delivered: v1::Guarantee::from(receipt.delivered()).into(),
            epoch: receipt.epoch.0,
            served_by: receipt.served_by.0,
            attempts: receipt.attempts,
            deduplicated: receipt.deduplicated,
            degraded: receipt.degraded.iter().map(|reason| v1::Degradation::from(*reason).into()).collect(),
            evidence: Some(evidence),
        }
    }
}

impl TryFrom<&v1::Receipt> for Receipt {
    type Error = DecodeError;

    /// `delivered` is computed again from the evidence; a receipt that claims something else is refused.
    fn try_from(message: &v1::Receipt) -> Result<Self, DecodeError> {
        use v1::receipt::Evidence as Wire;
        let evidence = match message.evidence.as_ref().ok_or_else(|| invalid("evidence"))? {
            Wire::Strong(strong) => Evidence::Strong(StrongEvidence {
                group: GroupId(strong.group),
                term: strong.term,
                index: strong.index,
                namespace_revision: strong.namespace_revision,
                path: strong.path().try_into()?,
                applied_lag: strong.applied_lag,
            }),
            Wire::Available(available) => Evidence::Available(AvailableEvidence {
                n: narrow(available.n, "N")?,
                r: narrow(available.r, "R")?,
                w: narrow(available.w, "W")?,
                strict: available.strict,
                settled: available.settled,
                replies: available
                    .replies
                    .iter()
                    .map(|reply| ReplicaReply {
                        node: NodeId(reply.node),
                        fallback: reply.fallback,
                        answered: reply.answered,
                        fsynced: reply.fsynced,
                        knows: reply.knows,
                    })
                    .collect(),
                hints: available.hints,
                repair: available.repair,
                siblings: available.siblings,
                staleness_bound_ms: available.staleness_bound_ms,
            }),
        };
        let receipt = Self {
            promised: message.promised().try_into()?,
            epoch: Epoch(message.epoch),
            served_by: NodeId(message.served_by),
            attempts: message.attempts,
            deduplicated: message.deduplicated,
            degraded: message.degraded().map(Degradation::try_from).collect::<Result<_, _>>()?,
            evidence,
        };
        if v1::Guarantee::from(receipt.delivered()) != message.delivered() {
            return Err(invalid("receipt: what it says was delivered does not follow from its evidence"));
        }
        Ok(receipt)
    }
}

impl From<&Member> for admin::Member {
    fn from(member: &Member) -> Self {
        Self {
            id: member.id.0,
            client_address: member.client_address.clone(),
            peer_address: member.peer_address.clone(),
            zone: member.zone.clone(),
        }
    }
}

impl From<&admin::Member> for Member {
    fn from(message: &admin::Member) -> Self {
        Self {
            id: NodeId(message.id),
            client_address: message.client_address.clone(),
            peer_address: message.peer_address.clone(),
            zone: message.zone.clone(),
        }
    }
}

impl From<&Ring> for admin::Ring {
    fn from(ring: &Ring) -> Self {
        Self {
            id: ring.id.0,
            partitions: u32::try_from(ring.assignment.len()).unwrap_or(u32::MAX),
            primaries: ring.assignment.iter().flatten().map(|node| node.0).collect(),
            epoch: ring.epoch.0,
        }
    }
}

impl TryFrom<&admin::Ring> for Ring {
    type Error = DecodeError;

    fn try_from(message: &admin::Ring) -> Result<Self, DecodeError> {
        let partitions = usize::try_from(message.partitions).unwrap_or(usize::MAX);
        if !partitions.is_power_of_two() || message.partitions > MAX_RING_PARTITIONS {
            return Err(invalid("number of ring partitions"));
        }
        let each = message.primaries.len() / partitions;
        let n = u8::try_from(each).ok().filter(|n| (1..=MAX_REPLICAS).contains(n));
        let n = n.filter(|_| message.primaries.len().is_multiple_of(partitions));
        let n = n.ok_or_else(|| invalid("number of primaries for each ring partition"))?;
        let nodes = |primaries: &[u64]| primaries.iter().copied().map(NodeId).collect();
        let assignment = message.primaries.chunks_exact(each).map(nodes).collect();
        Ok(Self { id: RingId(message.id), n, assignment, epoch: Epoch(message.epoch) })
    }
}

impl admin::Namespace {
    /// A namespace on the wire; `group` is the Raft group of a strong one, for its number of voters.
    pub fn of(namespace: &Namespace, group: Option<&Group>) -> Self {
        let mut message = Self {
            id: namespace.id.0,
            name: namespace.name.as_str().to_owned(),
            settings_version: namespace.settings_version,
            guarantee: v1::Guarantee::from(namespace.guarantee).into(),
            deleted_until_ms: namespace.deletion_due_ms(),
            grace_ms: namespace.deletion.map_or(0, |deletion| deletion.grace_ms),
            ..Self::default()
        };
        match namespace.placement {
            Placement::Strong { group: id } => {
                message.mode = admin::Mode::Strong.into();
                message.group = id.0;
                message.voters =
                    group.map_or(0, |group| u32::try_from(group.voters.len()).unwrap_or(u32::MAX));
            }
            Placement::Available { ring, replication: Replication { n, r, w, sloppy } } => {
                message.mode = admin::Mode::Available.into();
                message.ring = ring.0;
                (message.n, message.r, message.w, message.sloppy) = (n.into(), r.into(), w.into(), sloppy);
            }
        }
        message
    }
}

impl TryFrom<&admin::Namespace> for Namespace {
    type Error = DecodeError;

    fn try_from(message: &admin::Namespace) -> Result<Self, DecodeError> {
        let placement = match message.mode() {
            admin::Mode::Unspecified => return Err(invalid("mode")),
            admin::Mode::Strong => Placement::Strong { group: GroupId(message.group) },
            admin::Mode::Available => Placement::Available {
                ring: RingId(message.ring),
                replication: Replication {
                    n: narrow(message.n, "N")?,
                    r: narrow(message.r, "R")?,
                    w: narrow(message.w, "W")?,
                    sloppy: message.sloppy,
                },
            },
        };
        Ok(Self {
            id: NamespaceId(message.id),
            name: NamespaceName::new(message.name.clone())?,
            settings_version: message.settings_version,
            deletion: message.deleted_until_ms.map(|due_ms| Deletion { due_ms, grace_ms: message.grace_ms }),
            guarantee: message.guarantee().try_into()?,
            placement,
        })
    }
}

impl fmt::Display for admin::GroupRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "unknown",
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
        })
    }
}

impl fmt::Display for admin::PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "unknown",
            Self::Up => "up",
            Self::Suspected => "suspected",
            Self::Down => "down",
        })
    }
}

impl From<&Failure> for peer::Failure {
    fn from(failure: &Failure) -> Self {
        Self {
            reason: failure.reason.code_name().to_owned(),
            applied: if failure.applied == Applied::No { 1 } else { 2 },
            message: failure.message.clone(),
            retry_after_ms: failure.retry_after_ms.unwrap_or(0),
            details: failure.details.iter().cloned().collect::<HashMap<_, _>>(),
        }
    }
}

impl From<&peer::Failure> for Failure {
    /// A reason that this node does not know (a newer peer) is a defect with an unknown outcome.
    fn from(message: &peer::Failure) -> Self {
        let reason = Reason::from_code_name(&message.reason);
        let mut failure = Self::new(reason.unwrap_or(Reason::Internal), message.message.clone());
        failure.applied =
            if reason.is_some() && message.applied == 1 { Applied::No } else { Applied::Unknown };
        failure.retry_after_ms = (message.retry_after_ms > 0).then_some(message.retry_after_ms);
        failure.details = message.details.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        failure.details.sort();
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt() -> Receipt {
        Receipt {
            promised: Guarantee::Eventual,
            epoch: Epoch(3),
            served_by: NodeId(2),
            attempts: 1,
            deduplicated: false,
            degraded: vec![Degradation::Fallback, Degradation::Divergent],
            evidence: Evidence::Available(AvailableEvidence {
                n: 3,
                r: 2,
                w: 2,
                strict: false,
                settled: false,
                replies: vec![ReplicaReply {
                    node: NodeId(4),
                    fallback: true,
                    answered: true,
                    fsynced: true,
                    knows: false,
                }],
                hints: 1,
                repair: true,
                siblings: 2,
                staleness_bound_ms: None,
            }),
        }
    }

    #[test]
    fn receipts_survive_the_wire() {
        let receipt = receipt();
        assert_eq!(Receipt::try_from(&v1::Receipt::from(&receipt)), Ok(receipt));
    }

    #[test]
    fn a_receipt_cannot_claim_more_than_its_evidence() {
        let mut message = v1::Receipt::from(&receipt());
        message.delivered = v1::Guarantee::Linearizable.into();
        assert!(Receipt::try_from(&message).is_err());
    }

    #[test]
    fn namespaces_survive_the_wire_deleted_or_not() {
        for (deletion, placement) in [
            (None, Placement::Strong { group: GroupId(1) }),
            (
                Some(Deletion { due_ms: 1_700_000_000_000, grace_ms: 60_000 }),
                Placement::Strong { group: GroupId(1) },
            ),
            (
                Some(Deletion { due_ms: 0, grace_ms: 0 }),
                Placement::Available {
                    ring: RingId(2),
                    replication: Replication { n: 3, r: 1, w: 3, sloppy: false },
                },
            ),
        ] {
            let namespace = Namespace {
                id: NamespaceId(7),
                name: NamespaceName::new("cart").unwrap(),
                settings_version: 4,
                deletion,
                guarantee: Guarantee::Eventual,
                placement,
            };
            assert_eq!(Namespace::try_from(&admin::Namespace::of(&namespace, None)), Ok(namespace));
        }
    }

    #[test]
    fn rings_survive_the_wire_and_impossible_ones_are_refused() {
        let member = |id| Member {
            id: NodeId(id),
            client_address: String::new(),
            peer_address: String::new(),
            zone: String::new(),
        };
        for (n, members) in [(1, 1), (3, 5), (7, 64)] {
            let members = (1..=members).map(|id| (NodeId(id), member(id))).collect();
            let assignment = Ring::assign(n, RING_PARTITIONS, &members, &[]);
            let ring = Ring { id: RingId(3), n, assignment, epoch: Epoch(9) };
            assert_eq!(Ring::try_from(&admin::Ring::from(&ring)), Ok(ring));
        }
        let good = admin::Ring { id: 1, partitions: 4, primaries: vec![1; 12], epoch: 1 };
        assert!(Ring::try_from(&good).is_ok());
        let broken = |change: fn(&mut admin::Ring)| {
            let mut message = good.clone();
            change(&mut message);
            Ring::try_from(&message).is_err()
        };
        assert!(broken(|ring| ring.partitions = 0));
        assert!(broken(|ring| ring.partitions = 3));
        assert!(broken(|ring| ring.partitions = MAX_RING_PARTITIONS * 2));
        assert!(broken(|ring| ring.primaries.clear()));
        assert!(broken(|ring| ring.primaries.truncate(11)));
        assert!(broken(|ring| ring.primaries = vec![1; 4 * (usize::from(MAX_REPLICAS) + 1)]));
    }

    #[test]
    fn compact_receipts_are_small() {
        let bytes = prost::Message::encoded_len(&v1::Receipt::from(&receipt()));
        assert!(bytes <= 64, "{bytes} bytes");
    }

    #[test]
    fn mutations_without_identity_are_refused() {
        let good = Mutation {
            request_id: RequestId { client_id: ClientId(9), seq: 4 },
            issued_at_ms: 5,
            lowest_unacked: 2,
            attempt: 1,
        };
        assert_eq!(v1::Mutation::read(Some(&good.into())), Ok(good));
        let broken = |change: fn(&mut v1::Mutation)| {
            let mut message = v1::Mutation::from(good);
            change(&mut message);
            v1::Mutation::read(Some(&message)).map_err(|e| e.reason)
        };
        assert_eq!(v1::Mutation::read(None).map_err(|e| e.reason), Err(Reason::RequestIdInvalid));
        assert_eq!(broken(|m| m.seq = 0), Err(Reason::RequestIdInvalid));
        assert_eq!(broken(|m| m.client_id = Bytes::new()), Err(Reason::RequestIdInvalid));
        assert_eq!(broken(|m| m.lowest_unacked = 5), Err(Reason::RequestIdInvalid));
        let words = |id: &[u8]| client_id_from_bytes(id).unwrap_err().message;
        assert_eq!(words(&[0; 16]), "a client id has 16 random bytes, not 16 zeros");
        assert_eq!(words(&[1; 15]), "a client id has 16 random bytes, not 15");
    }

    #[test]
    fn peer_failures_keep_their_outcome() {
        for reason in Reason::ALL {
            let failure = Failure::new(*reason, "x").with("a", 1).retry_after_ms(7);
            assert_eq!(Failure::from(&peer::Failure::from(&failure)), failure);
        }
        let newer = peer::Failure { reason: "FROM_THE_FUTURE".into(), applied: 1, ..Default::default() };
        assert_eq!(Failure::from(&newer).applied, Applied::Unknown);
    }
}
