//! The state of a key-value group: per namespace a dense 64-bit revision that every effective write takes one
//! of, values by key, and the sessions that make writes happen once. A pure function of the log.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes};
use kv_storage::Storage;
use kv_types::catalogue::FeatureLevel;
use kv_types::{ClientId, Failure, Key, Mutation, NamespaceId, Reason, RequestId, Value};
use tokio::sync::watch;
use xxhash_rust::xxh3::Xxh3;

use crate::codec::{self, CodecError, Reader, Write};
use crate::machine::{Domain, MachineError};
use crate::proposal::{Effect, Point, Proposal, Reply, Written};
use crate::row::Live;
use crate::sessions::{Admission, AllOpenings, Kept, Outcome, SessionBounds, Sessions};
use crate::tables::{Space, Stage, Table, for_each_row, keys};

/// A write to a strong namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WriteCommand {
    /// The leader's wall clock when it proposed this.
    pub(crate) proposed_at_ms: u64,
    /// Who asks.
    pub(crate) mutation: Mutation,
    /// Where.
    pub(crate) namespace: NamespaceId,
    /// Which key.
    pub(crate) key: Bytes,
    /// What.
    pub(crate) operation: Operation,
}

/// What a write does to its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Sets the value.
    Put(Bytes),
    /// Removes the value.
    Delete,
    /// Sets the value if the present one has this revision; 0 expects none.
    CompareAndSet { expected: u64, value: Bytes },
}

/// Version of a write command: the first did not tell the attempt.
const VERSION: u8 = 2;
impl Operation {
    /// The level of the cluster from which on it may be proposed.
    pub(crate) fn needs(&self) -> FeatureLevel {
        match self {
            Self::Put(_) | Self::Delete | Self::CompareAndSet { .. } => FeatureLevel::FIRST,
        }
    }
}

const PUT: u8 = 0;
const DELETE: u8 = 1;
const COMPARE_AND_SET: u8 = 2;

impl WriteCommand {
    pub(crate) fn encode(&self) -> Proposal {
        let (kind, expected, value): (u8, u64, &[u8]) = match &self.operation {
            Operation::Put(value) => (PUT, 0, value),
            Operation::Delete => (DELETE, 0, &[]),
            Operation::CompareAndSet { expected, value } => (COMPARE_AND_SET, *expected, value),
        };
        let mut out = codec::versioned(VERSION, 76 + self.key.len() + value.len());
        out.put_u64(self.proposed_at_ms);
        out.put_u128(self.mutation.request_id.client_id.0);
        out.put_u64(self.mutation.request_id.seq);
        out.put_u64(self.mutation.issued_at_ms);
        out.put_u64(self.mutation.lowest_unacked);
        out.put_u32(self.mutation.attempt);
        out.put_u64(self.namespace.0);
        out.put_u8(kind);
        out.put_u64(expected);
        out.put_block(&self.key);
        out.put_slice(value);
        Proposal(out.into())
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(bytes, "write command", VERSION)?;
        let proposed_at_ms = reader.u64()?;
        let request_id = RequestId { client_id: ClientId(reader.u128()?), seq: reader.u64()? };
        let (issued_at_ms, lowest_unacked, attempt) = (reader.u64()?, reader.u64()?, reader.u32()?);
        let mutation = Mutation { request_id, issued_at_ms, lowest_unacked, attempt };
        let namespace = NamespaceId(reader.u64()?);
        let kind = reader.u8()?;
        let expected = reader.u64()?;
        let key = reader.bytes()?;
        let operation = match kind {
            PUT => Operation::Put(reader.rest()),
            DELETE => {
                reader.end()?;
                Operation::Delete
            }
            COMPARE_AND_SET => Operation::CompareAndSet { expected, value: reader.rest() },
            found => return Err(reader.newer("operation", found)),
        };
        Ok(Self { proposed_at_ms, mutation, namespace, key, operation })
    }

    /// Where its key's row is.
    fn place(&self, space: Space) -> Vec<u8> {
        keys::data(space, self.namespace, &self.key)
    }

    /// A hash of what is asked for, without who asks and when: a resend has the same.
    fn body(&self) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(&self.namespace.0.to_be_bytes());
        hash.update(&codec::length(self.key.len()).to_be_bytes());
        hash.update(&self.key);
        match &self.operation {
            Operation::Put(value) => {
                hash.update(&[PUT]);
                hash.update(value);
            }
            Operation::Delete => hash.update(&[DELETE]),
            Operation::CompareAndSet { expected, value } => {
                hash.update(&[COMPARE_AND_SET]);
                hash.update(&expected.to_be_bytes());
                hash.update(value);
            }
        }
        hash.digest()
    }
}

/// A namespace's revision, as a row.
fn encode_revision(revision: u64) -> Vec<u8> {
    let mut out = codec::versioned(codec::VERSION, 8);
    out.put_u64(revision);
    out
}

pub(crate) fn decode_revision(bytes: Bytes) -> Result<u64, CodecError> {
    let mut reader = Reader::versioned(bytes, "revision", codec::VERSION)?;
    let revision = reader.u64()?;
    reader.end().map(|()| revision)
}

/// A key-value group's state. Counters, clock and sessions are in memory; what a step changed of them reaches
/// the tables with it.
#[derive(Debug)]
pub(crate) struct KvMachine {
    sessions: Sessions,
    /// The revision of each namespace that was written to.
    revisions: BTreeMap<NamespaceId, u64>,
    /// Namespaces whose revision changed since the last seal.
    counted: BTreeSet<NamespaceId>,
    published: watch::Sender<AllOpenings>,
}

impl KvMachine {
    /// It shows when an opening of a session may have been issued.
    pub(crate) fn new(published: watch::Sender<AllOpenings>) -> Self {
        Self::bounded(published, SessionBounds::default())
    }

    /// With other bounds for its sessions.
    pub(crate) fn bounded(published: watch::Sender<AllOpenings>, bounds: SessionBounds) -> Self {
        let sessions = Sessions::bounded(bounds);
        Self { sessions, revisions: BTreeMap::new(), counted: BTreeSet::new(), published }
    }

    /// Whether a proposal is a write that this machine can apply.
    pub(crate) fn check(proposal: &Proposal) -> Result<(), CodecError> {
        let command = WriteCommand::decode(proposal.0.clone())?;
        let invalid = |why: Failure| CodecError::Invalid { what: "write command", why: why.message };
        Key::new(command.key).map_err(invalid)?;
        match command.operation {
            Operation::Put(value) | Operation::CompareAndSet { value, .. } => {
                Value::new(value).map(drop).map_err(invalid)
            }
            Operation::Delete => Ok(()),
        }
    }

    fn write(
        &mut self,
        stage: &mut Stage<'_>,
        point: Point,
        command: &WriteCommand,
    ) -> Result<Written, MachineError> {
        let place = command.place(stage.space());
        let found = stage.get(Table::Data, place.clone())?.map(Live::decode).transpose()?;
        let revision = self.revisions.get(&command.namespace).copied().unwrap_or(0);
        let next = revision + 1;
        if let Some(row) = found.as_ref().filter(|row| row.revision > revision)
            && !kv_types::mutant!(RevisionReused)
        {
            let why = format!("it is of revision {}, and its namespace is at {revision}", row.revision);
            return Err(CodecError::Invalid { what: "row of a key", why }.into());
        }
        let effect = match &command.operation {
            Operation::Put(value) => {
                stage.put(Table::Data, place, Live::after(found.as_ref(), next, value.clone()).encode());
                Effect::Put
            }
            Operation::Delete => {
                if found.is_some() {
                    stage.delete(Table::Data, place);
                }
                Effect::Deleted { existed: found.is_some() }
            }
            Operation::CompareAndSet { expected, value } => {
                let present = found.as_ref().map_or(0, |row| row.revision);
                if present == *expected
                    || (kv_types::mutant!(StaleCas) && *expected > 0 && present > *expected)
                {
                    stage.put(Table::Data, place, Live::after(found.as_ref(), next, value.clone()).encode());
                    Effect::Swapped
                } else {
                    Effect::Mismatch { found: found.map(|row| (row.revision, row.value)) }
                }
            }
        };
        let effective = !matches!(effect, Effect::Deleted { existed: false } | Effect::Mismatch { .. });
        if effective && !(kv_types::mutant!(RevisionReused) && effect == Effect::Swapped) {
            self.revisions.insert(command.namespace, next);
            self.counted.insert(command.namespace);
        }
        let namespace_revision = if effective { next } else { revision };
        Ok(Written { effect, namespace_revision, point, deduplicated: false })
    }

    /// The answer to a resend. Of a comparison that did not hold, what was found then is not kept. It changed
    /// nothing, so it may as well be answered as if it were made now: where it does not hold now either, the
    /// answer is what is found now, at this point of the log. Where it would hold now, it must not: the first
    /// answer may have been received.
    fn known(
        &self,
        stage: &Stage<'_>,
        point: Point,
        command: &WriteCommand,
        kept: Kept,
    ) -> Result<Result<Written, Failure>, MachineError> {
        let effect = match kept.outcome {
            Outcome::Put => Effect::Put,
            Outcome::Deleted { existed } => Effect::Deleted { existed },
            Outcome::Swapped => Effect::Swapped,
            Outcome::Mismatch => {
                let row = stage.get(Table::Data, command.place(stage.space()))?;
                let found = row.map(Live::decode).transpose()?.map(|row| (row.revision, row.value));
                let present = found.as_ref().map_or(0, |(revision, _)| *revision);
                if matches!(&command.operation, Operation::CompareAndSet { expected, .. } if *expected == present)
                {
                    let why = "the comparison did not hold when this request was taken, nothing was written, and what was \
                               found then is not kept; it would hold now: send it as a new request if it is still wanted";
                    let failure = Failure::new(Reason::RequestExpired, why).not_applied();
                    return Ok(Err(failure.of_request(command.mutation.request_id)));
                }
                let namespace_revision = self.revisions.get(&command.namespace).copied().unwrap_or(0);
                let effect = Effect::Mismatch { found };
                return Ok(Ok(Written { effect, namespace_revision, point, deduplicated: true }));
            }
        };
        let Kept { point, revision: namespace_revision, .. } = kept;
        Ok(Ok(Written { effect, namespace_revision, point, deduplicated: true }))
    }
}

impl Domain for KvMachine {
    fn load(&mut self, storage: &Storage, space: Space) -> Result<(), MachineError> {
        self.sessions = Sessions::load(storage, space, self.sessions.bounds())?;
        self.counted.clear();
        self.revisions.clear();
        for_each_row(storage, space, Table::Meta, |key, row| {
            if let Some(namespace) = keys::of_revision(key)? {
                self.revisions.insert(namespace, decode_revision(row)?);
            }
            Ok::<(), MachineError>(())
        })
    }

    fn reads(&self, space: Space, proposal: &Proposal) -> Result<Option<(Table, Vec<u8>)>, MachineError> {
        Ok(Some((Table::Data, WriteCommand::decode(proposal.0.clone())?.place(space))))
    }

    fn apply(
        &mut self,
        stage: &mut Stage<'_>,
        point: Point,
        proposal: &Proposal,
    ) -> Result<Reply, MachineError> {
        let command = WriteCommand::decode(proposal.0.clone())?;
        let (namespace, mutation) = (command.namespace, &command.mutation);
        self.sessions.advance(stage, point.term, command.proposed_at_ms);
        let body = command.body();
        Ok(Reply::Write(match self.sessions.admit(stage, namespace, mutation, body) {
            Admission::Known(kept) => self.known(stage, point, &command, kept)?,
            Admission::Refused(failure) => Err(failure),
            Admission::New => {
                let written = self.write(stage, point, &command)?;
                self.sessions.keep(stage, namespace, mutation, body, &written);
                if kv_types::mutant!(FoundValueKept)
                    && let Effect::Mismatch { found: Some((_, value)) } = &written.effect
                {
                    let place = (NamespaceId(point.index), mutation.request_id.client_id);
                    stage.put(Table::Sessions, keys::session(stage.space(), place), value.clone());
                }
                Ok(written)
            }
        }))
    }

    fn seal(&mut self, stage: &mut Stage<'_>) {
        let space = stage.space();
        for namespace in std::mem::take(&mut self.counted) {
            let revision = self.revisions.get(&namespace).copied().unwrap_or(0);
            stage.put(Table::Meta, keys::revision(space, namespace), encode_revision(revision));
        }
        self.sessions.seal(stage);
    }

    fn publish(&self) {
        let openings = self.sessions.openings();
        self.published.send_if_modified(|shown| {
            let changed = *shown != openings;
            *shown = openings;
            changed
        });
    }
}
