//! Our own encodings of everything that reaches a disk or a peer: nothing of openraft's types is serialized
//! by a library, so that a new version of openraft never touches data. Every encoding opens with a version
//! byte; what cannot be decoded is a named error, never a panic.

use std::collections::BTreeSet;

use bytes::{Buf, BufMut, Bytes};
use kv_proto::peer;
use kv_storage::{RaftEntry, RaftLogId};
use openraft::EntryPayload;
use openraft::vote::RaftLeaderId;

use crate::config::{Entry, LeaderId, LogId, Membership, SnapshotMeta, StoredMembership, Vote};
use crate::proposal::Proposal;

/// Version of every encoding in this crate that has not changed since the first release.
pub(crate) const VERSION: u8 = 1;

/// Bytes that do not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They end too early.
    #[error("{what} is cut short")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// There are more bytes after the end.
    #[error("{what} has {bytes} bytes too many")]
    Trailing {
        /// What was being read.
        what: &'static str,
        /// Number of bytes.
        bytes: usize,
    },
    /// A version, a kind or a flag with an undefined number.
    #[error("{what} has the unknown {field} {found}")]
    Unknown {
        /// What was being read.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// The number.
        found: u64,
    },
    /// A version or a kind that only a newer program can have written, if anything did.
    #[error(
        "{what} has the unknown {field} {found}: a newer version of the program may have written it; then upgrade this node"
    )]
    Newer {
        /// What was being read.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// The number.
        found: u64,
    },
    /// A part that is not valid by itself.
    #[error("{what} is not valid: {why}")]
    Invalid {
        /// What was being read.
        what: &'static str,
        /// The reason.
        why: String,
    },
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Reads an encoding from its front.
pub(crate) struct Reader {
    rest: Bytes,
    what: &'static str,
}

impl Reader {
    /// Reads `bytes`, which are called `what` in errors, and whose version must be `version`.
    pub(crate) fn versioned(bytes: Bytes, what: &'static str, version: u8) -> Result<Self, CodecError> {
        let mut reader = Self { rest: bytes, what };
        match reader.u8()? {
            found if found == version => Ok(reader),
            found if found > version => Err(reader.newer("version", found)),
            found => Err(reader.unknown("version", found)),
        }
    }

    pub(crate) fn unknown(&self, field: &'static str, found: impl Into<u64>) -> CodecError {
        CodecError::Unknown { what: self.what, field, found: found.into() }
    }

    /// A number that this version does not know and a newer one may.
    pub(crate) fn newer(&self, field: &'static str, found: impl Into<u64>) -> CodecError {
        CodecError::Newer { what: self.what, field, found: found.into() }
    }

    pub(crate) fn invalid(&self, why: impl ToString) -> CodecError {
        CodecError::Invalid { what: self.what, why: why.to_string() }
    }

    fn need(&self, bytes: usize) -> Result<(), CodecError> {
        if self.rest.len() < bytes { Err(CodecError::Truncated { what: self.what }) } else { Ok(()) }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CodecError> {
        self.need(1).map(|()| self.rest.get_u8())
    }

    pub(crate) fn u16(&mut self) -> Result<u16, CodecError> {
        self.need(2).map(|()| self.rest.get_u16())
    }

    pub(crate) fn u32(&mut self) -> Result<u32, CodecError> {
        self.need(4).map(|()| self.rest.get_u32())
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CodecError> {
        self.need(8).map(|()| self.rest.get_u64())
    }

    pub(crate) fn u128(&mut self) -> Result<u128, CodecError> {
        self.need(16).map(|()| self.rest.get_u128())
    }

    /// A number in as many bytes as it needs, seven bits in each, the lowest first. Only the shortest form is
    /// taken.
    pub(crate) fn varint(&mut self) -> Result<u64, CodecError> {
        let mut number = 0_u64;
        for shift in (0..64_u32).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits.checked_shl(shift).is_none_or(|shifted| shifted >> shift != bits) {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                let shortest = byte != 0 || shift == 0;
                return if shortest { Ok(number) } else { Err(self.invalid("a number is written too long")) };
            }
        }
        Err(self.invalid("a number is too large"))
    }

    pub(crate) fn flag(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(self.unknown("flag", found)),
        }
    }

    /// Bytes behind their length. Shares the input's memory.
    pub(crate) fn bytes(&mut self) -> Result<Bytes, CodecError> {
        let length = self.u32()?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.need(length).map(|()| self.rest.split_to(length))
    }

    pub(crate) fn text(&mut self) -> Result<String, CodecError> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.into()).map_err(|error| self.invalid(error))
    }

    /// Items behind their number. The number is trusted only as far as there are bytes.
    pub(crate) fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Vec<T>, CodecError> {
        let count = self.u32()?;
        let mut items = Vec::with_capacity(usize::try_from(count).unwrap_or(0).min(self.rest.len()));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// Something that may be missing.
    pub(crate) fn option<T>(
        &mut self,
        item: impl FnOnce(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Option<T>, CodecError> {
        if self.flag()? { item(self).map(Some) } else { Ok(None) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// All that is left.
    pub(crate) fn rest(self) -> Bytes {
        self.rest
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), CodecError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(CodecError::Trailing { what: self.what, bytes }),
        }
    }

    fn log_id(&mut self) -> Result<LogId, CodecError> {
        Ok(log_id(self.u64()?, self.u64()?, self.u64()?))
    }

    fn membership(&mut self) -> Result<Membership, CodecError> {
        let configs = self.list(|reader| Ok(BTreeSet::from_iter(reader.list(Self::u64)?)))?;
        let nodes: BTreeSet<u64> = self.list(Self::u64)?.into_iter().collect();
        if configs.is_empty() && nodes.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(configs, nodes).map_err(|error| self.invalid(error))
    }

    fn stored_membership(&mut self) -> Result<StoredMembership, CodecError> {
        Ok(StoredMembership::new(self.option(Self::log_id)?, self.membership()?))
    }
}

/// What an encoding is written with: `Vec<u8>` and these few forms.
pub(crate) trait Write: BufMut {
    /// Bytes behind their length.
    fn put_block(&mut self, bytes: &[u8]) {
        self.put_u32(length(bytes.len()));
        self.put_slice(bytes);
    }

    /// A number in as many bytes as it needs, ten at most.
    fn put_varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.put_u8((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.put_u8((number & 0x7f) as u8);
    }

    fn put_flag(&mut self, flag: bool) {
        self.put_u8(flag.into());
    }

    fn put_log_id(&mut self, id: &LogId) {
        self.put_u64(id.leader_id.term);
        self.put_u64(id.leader_id.node_id);
        self.put_u64(id.index);
    }

    fn put_log_id_option(&mut self, id: Option<&LogId>) {
        self.put_flag(id.is_some());
        if let Some(id) = id {
            self.put_log_id(id);
        }
    }

    fn put_membership(&mut self, membership: &Membership) {
        let configs = membership.get_joint_config();
        self.put_u32(length(configs.len()));
        for config in configs {
            self.put_u32(length(config.len()));
            config.iter().for_each(|id| self.put_u64(*id));
        }
        let nodes: Vec<u64> = membership.nodes().map(|(id, _)| *id).collect();
        self.put_u32(length(nodes.len()));
        nodes.iter().for_each(|id| self.put_u64(*id));
    }

    fn put_stored_membership(&mut self, membership: &StoredMembership) {
        self.put_log_id_option(membership.log_id().as_ref());
        self.put_membership(membership.membership());
    }
}

impl Write for Vec<u8> {}

/// Lengths of what was bounded before it came here; a longer one could not be read back and is caught then.
pub(crate) fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// A new encoding with room for `capacity` bytes.
pub(crate) fn versioned(version: u8, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(capacity + 1);
    out.put_u8(version);
    out
}

/// A log id from its parts.
pub(crate) fn log_id(term: u64, node: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new(term, node), index)
}

// ---- for the log on disk

pub(crate) fn to_storage_id(id: &LogId) -> RaftLogId {
    RaftLogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(crate) fn from_storage_id(id: RaftLogId) -> LogId {
    log_id(id.term, id.node, id.index)
}

const BLANK: u8 = 0;
const PROPOSAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// The payload of an entry, the same on disk and on the wire.
pub(crate) fn encode_payload(entry: &Entry) -> Bytes {
    let mut out = match &entry.payload {
        EntryPayload::Normal(proposal) => versioned(VERSION, proposal.0.len() + 1),
        EntryPayload::Blank | EntryPayload::Membership(_) => versioned(VERSION, 128),
    };
    match &entry.payload {
        EntryPayload::Blank => out.put_u8(BLANK),
        EntryPayload::Normal(proposal) => {
            out.put_u8(PROPOSAL);
            out.put_slice(&proposal.0);
        }
        EntryPayload::Membership(membership) => {
            out.put_u8(MEMBERSHIP);
            out.put_membership(membership);
        }
    }
    out.into()
}

/// An entry from its id and payload.
pub(crate) fn decode_entry(log_id: LogId, payload: Bytes) -> Result<Entry, CodecError> {
    let mut reader = Reader::versioned(payload, "log entry", VERSION)?;
    let payload = match reader.u8()? {
        BLANK => {
            reader.end()?;
            EntryPayload::Blank
        }
        PROPOSAL => EntryPayload::Normal(Proposal(reader.rest())),
        MEMBERSHIP => {
            let membership = reader.membership()?;
            reader.end()?;
            EntryPayload::Membership(membership)
        }
        found => return Err(reader.unknown("kind", found)),
    };
    Ok(Entry { log_id, payload })
}

pub(crate) fn to_storage_entry(entry: &Entry) -> RaftEntry {
    RaftEntry { id: to_storage_id(&entry.log_id), payload: encode_payload(entry) }
}

pub(crate) fn from_storage_entry(entry: RaftEntry) -> Result<Entry, CodecError> {
    decode_entry(from_storage_id(entry.id), entry.payload)
}

/// Bytes of a vote.
pub(crate) const VOTE_BYTES: usize = 18;

pub(crate) fn encode_vote(vote: &Vote) -> Bytes {
    let mut out = versioned(VERSION, VOTE_BYTES - 1);
    out.put_u64(vote.leader_id.term);
    out.put_u64(vote.leader_id.node_id);
    out.put_flag(vote.committed);
    out.into()
}

pub(crate) fn decode_vote(bytes: Bytes) -> Result<Vote, CodecError> {
    let mut reader = Reader::versioned(bytes, "vote", VERSION)?;
    let vote = Vote { leader_id: LeaderId::new(reader.u64()?, reader.u64()?), committed: reader.flag()? };
    reader.end().map(|()| vote)
}

/// Length of an encoded log id.
pub(crate) const LOG_ID_BYTES: usize = 25;

pub(crate) fn encode_log_id(id: &LogId) -> Bytes {
    let mut out = versioned(VERSION, LOG_ID_BYTES - 1);
    out.put_log_id(id);
    out.into()
}

pub(crate) fn decode_log_id(bytes: Bytes) -> Result<LogId, CodecError> {
    let mut reader = Reader::versioned(bytes, "log id", VERSION)?;
    let id = reader.log_id()?;
    reader.end().map(|()| id)
}

/// How far a state has been applied and the membership then: the applied mark, and the header of a snapshot.
pub(crate) fn encode_mark(mark: &SnapshotMeta) -> Bytes {
    let mut out = versioned(VERSION, 128);
    out.put_log_id_option(mark.last_log_id.as_ref());
    out.put_stored_membership(&mark.last_membership);
    out.into()
}

pub(crate) fn decode_mark(bytes: Bytes) -> Result<SnapshotMeta, CodecError> {
    let mut reader = Reader::versioned(bytes, "applied mark", VERSION)?;
    let last_log_id = reader.option(Reader::log_id)?;
    let last_membership = reader.stored_membership()?;
    reader.end().map(|()| SnapshotMeta { last_log_id, last_membership })
}

/// A membership on the wire, beside the log id that brought it.
pub(crate) fn encode_membership(membership: &StoredMembership) -> Bytes {
    let mut out = versioned(VERSION, 128);
    out.put_stored_membership(membership);
    out.into()
}

pub(crate) fn decode_membership(bytes: Bytes) -> Result<StoredMembership, CodecError> {
    let mut reader = Reader::versioned(bytes, "membership", VERSION)?;
    let membership = reader.stored_membership()?;
    reader.end().map(|()| membership)
}

// ---- for peers

pub(crate) fn to_wire_id(id: &LogId) -> peer::LogId {
    peer::LogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(crate) fn from_wire_id(id: peer::LogId) -> LogId {
    log_id(id.term, id.node, id.index)
}

pub(crate) fn to_wire_vote(vote: &Vote) -> peer::Vote {
    peer::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub(crate) fn from_wire_vote(vote: Option<peer::Vote>) -> Result<Vote, CodecError> {
    let vote = vote.ok_or(CodecError::Truncated { what: "message without a vote" })?;
    Ok(Vote { leader_id: LeaderId::new(vote.term, vote.node), committed: vote.committed })
}

pub(crate) fn to_wire_entry(entry: &Entry) -> peer::LogEntry {
    peer::LogEntry { id: Some(to_wire_id(&entry.log_id)), payload: encode_payload(entry) }
}

pub(crate) fn from_wire_entry(entry: peer::LogEntry) -> Result<Entry, CodecError> {
    let id = entry.id.ok_or(CodecError::Truncated { what: "log entry without an id" })?;
    decode_entry(from_wire_id(id), entry.payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_log_id() -> impl Strategy<Value = LogId> {
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(term, node, index)| log_id(term, node, index))
    }

    fn any_membership() -> impl Strategy<Value = Membership> {
        let voters = proptest::collection::btree_set(1..20_u64, 1..5);
        (proptest::collection::vec(voters, 1..3), proptest::collection::btree_set(20..30_u64, 0..4)).prop_map(
            |(configs, learners)| {
                let nodes: BTreeSet<u64> = configs.iter().flatten().copied().chain(learners).collect();
                Membership::new(configs, nodes).unwrap()
            },
        )
    }

    fn any_stored() -> impl Strategy<Value = StoredMembership> {
        (proptest::option::of(any_log_id()), any_membership())
            .prop_map(|(id, m)| StoredMembership::new(id, m))
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let payload = prop_oneof![
            Just(EntryPayload::Blank),
            proptest::collection::vec(any::<u8>(), 0..64)
                .prop_map(|b| EntryPayload::Normal(Proposal(b.into()))),
            any_membership().prop_map(EntryPayload::Membership),
        ];
        (any_log_id(), payload).prop_map(|(log_id, payload)| Entry { log_id, payload })
    }

    proptest! {
        #[test]
        fn entries_survive_disk_and_wire(entry in any_entry()) {
            prop_assert_eq!(from_storage_entry(to_storage_entry(&entry)).unwrap(), entry.clone());
            prop_assert_eq!(from_wire_entry(to_wire_entry(&entry)).unwrap(), entry);
        }

        #[test]
        fn marks_votes_and_ids_survive(id in any_log_id(), last_membership in any_stored(), committed: bool) {
            let mark = SnapshotMeta { last_log_id: Some(id), last_membership };
            prop_assert_eq!(decode_mark(encode_mark(&mark)).unwrap(), mark.clone());
            prop_assert_eq!(decode_membership(encode_membership(&mark.last_membership)).unwrap(), mark.last_membership);
            prop_assert_eq!(decode_log_id(encode_log_id(&id)).unwrap(), id);
            prop_assert_eq!(from_wire_id(to_wire_id(&id)), id);
            let vote = Vote { leader_id: id.leader_id, committed };
            prop_assert_eq!(decode_vote(encode_vote(&vote)).unwrap(), vote);
            prop_assert_eq!(from_wire_vote(Some(to_wire_vote(&vote))).unwrap(), vote);
        }

        #[test]
        fn bad_bytes_are_errors(bytes in proptest::collection::vec(any::<u8>(), 0..80), versioned: bool) {
            let mut bytes = bytes;
            if versioned && let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let bytes = Bytes::from(bytes);
            let _ = decode_entry(log_id(1, 1, 1), bytes.clone());
            let _ = decode_mark(bytes.clone());
            let _ = decode_membership(bytes.clone());
            let _ = decode_log_id(bytes.clone());
            let _ = decode_vote(bytes);
        }

        #[test]
        fn every_cut_of_a_mark_is_named(last_membership in any_stored(), id in any_log_id()) {
            let whole = encode_mark(&SnapshotMeta { last_log_id: Some(id), last_membership });
            for cut in 0..whole.len() {
                let truncated = matches!(decode_mark(whole.slice(..cut)), Err(CodecError::Truncated { .. }));
                prop_assert!(truncated, "cut at {}", cut);
            }
            let mut longer = whole.to_vec();
            longer.push(0);
            prop_assert_eq!(decode_mark(longer.into()), Err(CodecError::Trailing { what: "applied mark", bytes: 1 }));
        }
    }

    proptest! {
        #[test]
        fn short_numbers_survive_and_have_one_form(number in prop_oneof![any::<u64>(), 0..300_u64], more: bool) {
            let mut out = versioned(VERSION, 11);
            out.put_varint(number);
            prop_assert!(out.len() <= 11);
            let read = |out: &[u8]| Reader::versioned(Bytes::copy_from_slice(out), "number", VERSION).unwrap().varint();
            prop_assert_eq!(read(&out), Ok(number));
            // The same number, one byte longer.
            *out.last_mut().unwrap() |= 0x80;
            out.push(u8::from(more));
            prop_assert_ne!(read(&out), Ok(number));
        }
    }

    #[test]
    fn a_number_ends_after_64_bits() {
        let read = |bytes: &[u8]| {
            Reader::versioned([&[VERSION], bytes].concat().into(), "number", VERSION).unwrap().varint()
        };
        assert_eq!(read(&[[0xff; 9].as_slice(), &[1]].concat()), Ok(u64::MAX));
        assert!(matches!(read(&[[0xff; 9].as_slice(), &[2]].concat()), Err(CodecError::Invalid { .. })));
        assert!(matches!(read(&[0xff; 12]), Err(CodecError::Invalid { .. })));
        assert!(matches!(read(&[0xff; 3]), Err(CodecError::Truncated { .. })));
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let error = decode_vote(Bytes::from_static(&[9, 0, 0])).unwrap_err();
        assert_eq!(error, CodecError::Newer { what: "vote", field: "version", found: 9 });
        assert!(error.to_string().contains("upgrade this node"), "{error}");
        let error = decode_vote(Bytes::from_static(&[0, 0, 0])).unwrap_err();
        assert_eq!(error, CodecError::Unknown { what: "vote", field: "version", found: 0 });
    }

    #[test]
    fn a_huge_count_allocates_nothing() {
        let bytes = Bytes::from_static(&[VERSION, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(decode_mark(bytes), Err(CodecError::Truncated { .. })));
    }
}
