//! The state of a key-value group: per namespace a dense 64-bit revision that every effective write takes one of, values
//! by key, and the sessions that make writes happen once. A pure function of the log.

use bytes::{BufMut, Bytes};
use kv_storage::{Cut, Storage, StorageError};
use kv_types::{ClientId, Failure, Key, Mutation, NamespaceId, RequestId, Value};
use xxhash_rust::xxh3::Xxh3;

use crate::codec::{self, CodecError, Reader, Write};
use crate::config::limits::ROWS_AT_ONCE;
use crate::machine::{Domain, MachineError};
use crate::proposal::{Effect, Point, Proposal, Reply, Written};
use crate::sessions::{Admission, Sessions};
use crate::tables::{Space, Stage, Table, keys};

/// A write to a strong namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WriteCommand {
    /// The leader's wall clock when it proposed this.
    pub(crate) proposed_at_ms: u64,
    /// Who asks. `attempt` is not part of the command.
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
        let mut out = codec::versioned(codec::VERSION, 72 + self.key.len() + value.len());
        out.put_u64(self.proposed_at_ms);
        out.put_u128(self.mutation.request_id.client_id.0);
        out.put_u64(self.mutation.request_id.seq);
        out.put_u64(self.mutation.issued_at_ms);
        out.put_u64(self.mutation.lowest_unacked);
        out.put_u64(self.namespace.0);
        out.put_u8(kind);
        out.put_u64(expected);
        out.put_block(&self.key);
        out.put_slice(value);
        Proposal(out.into())
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(bytes, "write command", codec::VERSION)?;
        let proposed_at_ms = reader.u64()?;
        let request_id = RequestId { client_id: ClientId(reader.u128()?), seq: reader.u64()? };
        let mutation =
            Mutation { request_id, issued_at_ms: reader.u64()?, lowest_unacked: reader.u64()?, attempt: 1 };
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
            found => return Err(reader.unknown("operation", found)),
        };
        Ok(Self { proposed_at_ms, mutation, namespace, key, operation })
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

/// A value with its revision, as a row.
fn encode_value(revision: u64, value: &[u8]) -> Vec<u8> {
    let mut out = codec::versioned(codec::VERSION, 8 + value.len());
    out.put_u64(revision);
    out.put_slice(value);
    out
}

pub(crate) fn decode_value(bytes: Bytes) -> Result<(u64, Bytes), CodecError> {
    let mut reader = Reader::versioned(bytes, "value", codec::VERSION)?;
    Ok((reader.u64()?, reader.rest()))
}

pub(crate) fn decode_revision(bytes: Bytes) -> Result<u64, CodecError> {
    let mut reader = Reader::versioned(bytes, "revision", codec::VERSION)?;
    let revision = reader.u64()?;
    reader.end().map(|()| revision)
}

/// Freezes what a group has of a namespace; whoever wants it of one point of the log holds the group's applied lock.
pub(crate) fn cut_of(storage: &Storage, space: Space, namespace: NamespaceId) -> Result<Cut, StorageError> {
    let (revision, data) = (keys::revision(space, namespace), keys::of_namespace(space, namespace));
    storage.cut(&[(Table::Meta.id(), &revision), (Table::Data.id(), &data)])
}

/// A hash of the revision of a namespace and of its keys with their revisions and values, in the order of the keys, and how
/// many keys there are. Equal on replicas that applied the same entries. Blocks: call it off the async workers.
pub(crate) fn digest(mut cut: Cut) -> Result<(u64, u64), MachineError> {
    let mut hash = Xxh3::new();
    let mut count = 0;
    while let Some(rows) = cut.next_chunk(ROWS_AT_ONCE)? {
        for (table, key, row) in rows {
            // What rows mean is hashed, not how they are written: that may change between versions.
            if table == Table::Meta.id() {
                hash.update(&decode_revision(row)?.to_be_bytes());
                continue;
            }
            // Where it stands on this node is not what it means.
            let (_, key) = keys::of_data(&key)?;
            let (revision, value) = decode_value(row)?;
            hash.update(&codec::length(key.len()).to_be_bytes());
            hash.update(&key);
            hash.update(&revision.to_be_bytes());
            hash.update(&codec::length(value.len()).to_be_bytes());
            hash.update(&value);
            count += 1;
        }
    }
    Ok((hash.digest(), count))
}

/// A key-value group's state.
#[derive(Debug, Default)]
pub(crate) struct KvMachine {
    sessions: Sessions,
}

impl KvMachine {
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

    fn write(stage: &mut Stage<'_>, point: Point, command: &WriteCommand) -> Result<Written, MachineError> {
        let space = stage.space();
        let place = || keys::data(space, command.namespace, &command.key);
        let counter = || keys::revision(space, command.namespace);
        let found = stage.get(Table::Data, place())?.map(decode_value).transpose()?;
        let revision = stage.get(Table::Meta, counter())?.map(decode_revision).transpose()?.unwrap_or(0);
        let next = revision + 1;
        let effect = match &command.operation {
            Operation::Put(value) => {
                stage.put(Table::Data, place(), encode_value(next, value));
                Effect::Put
            }
            Operation::Delete => {
                if found.is_some() {
                    stage.delete(Table::Data, place());
                }
                Effect::Deleted { existed: found.is_some() }
            }
            Operation::CompareAndSet { expected, value } => {
                let present = found.as_ref().map_or(0, |(revision, _)| *revision);
                if present == *expected
                    || (kv_types::mutant!(StaleCas) && *expected > 0 && present > *expected)
                {
                    stage.put(Table::Data, place(), encode_value(next, value));
                    Effect::Swapped
                } else {
                    Effect::Mismatch { found }
                }
            }
        };
        let effective = !matches!(effect, Effect::Deleted { existed: false } | Effect::Mismatch { .. });
        if effective && !(kv_types::mutant!(RevisionReused) && effect == Effect::Swapped) {
            let mut row = codec::versioned(codec::VERSION, 8);
            row.put_u64(next);
            stage.put(Table::Meta, counter(), row);
        }
        let namespace_revision = if effective { next } else { revision };
        Ok(Written { effect, namespace_revision, point, deduplicated: false })
    }
}

impl Domain for KvMachine {
    fn load(&mut self, storage: &Storage, space: Space) -> Result<(), MachineError> {
        self.sessions = Sessions::load(storage, space)?;
        Ok(())
    }

    fn apply(
        &mut self,
        stage: &mut Stage<'_>,
        point: Point,
        proposal: &Proposal,
    ) -> Result<Reply, MachineError> {
        let command = WriteCommand::decode(proposal.0.clone())?;
        self.sessions.advance(stage, command.proposed_at_ms);
        let body = command.body();
        Ok(Reply::Write(match self.sessions.admit(stage, &command.mutation, body)? {
            Admission::Known(written) => Ok(written),
            Admission::Refused(failure) => Err(failure),
            Admission::New => {
                let written = Self::write(stage, point, &command)?;
                self.sessions.keep(stage, &command.mutation, body, &written);
                Ok(written)
            }
        }))
    }

    fn publish(&self) {}
}
