//! The state of a key-value group: per namespace a dense 64-bit revision that every effective write takes one
//! of, values by key, the history of what each revision changed, and the sessions that make writes happen
//! once. A pure function of the log, but for what has no meaning any more: when a tombstone is removed that
//! the floor of the history has passed, and when the rows of a dropped namespace are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use kv_storage::Storage;
use kv_types::catalogue::FeatureLevel;
use kv_types::{ClientId, Failure, Key, Mutation, NamespaceId, Reason, RequestId, Value};
use tokio::sync::watch;
use xxhash_rust::xxh3::Xxh3;

use crate::codec::{self, CodecError, Reader, Write};
use crate::dropped::{self, DropCommand, Dropped};
use crate::history::{Entry, Past};
use crate::limits::{HISTORY_BYTES, SESSIONS_DROPPED_AT_ONCE};
use crate::machine::Domain;
use crate::machine_error::MachineError;
use crate::proposal::{Effect, Point, Proposal, Reply, Written};
use crate::row::{Live, Row};
use crate::sessions::{Admission, AllOpenings, Kept, Outcome, SessionBounds, Sessions};
use crate::tables::{Range, Space, Stage, Table, for_each_row, keys};

/// A write to a strong namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WriteCommand {
    /// The leader's wall clock when it proposed this.
    pub(crate) proposed_at_ms: u64,
    /// The request.
    pub(crate) mutation: Mutation,
    /// The namespace.
    pub(crate) namespace: NamespaceId,
    /// The key.
    pub(crate) key: Bytes,
    /// The operation.
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

/// A key-value group's state. Counters, clock and sessions are in memory; what a step changed of them reaches
/// the tables with it.
#[derive(Debug)]
pub(crate) struct KvMachine {
    sessions: Sessions,
    /// The revision and the history of each namespace that was written to.
    pasts: BTreeMap<NamespaceId, Past>,
    /// Namespaces whose revision changed since the last seal, and whether their marks did.
    counted: BTreeMap<NamespaceId, bool>,
    /// What a history may count for, bytes.
    history_bytes: u64,
    /// Namespaces that may have tombstones which the floor has passed.
    sweeping: BTreeSet<NamespaceId>,
    /// Namespaces of which nothing is written any more.
    dropped: Arc<Dropped>,
    published: watch::Sender<AllOpenings>,
}

impl KvMachine {
    /// It shows when an opening of a session may have been issued.
    pub(crate) fn new(published: watch::Sender<AllOpenings>) -> Self {
        Self::bounded(published, SessionBounds::default())
    }

    /// With other bounds for its sessions.
    pub(crate) fn bounded(published: watch::Sender<AllOpenings>, bounds: SessionBounds) -> Self {
        Self {
            sessions: Sessions::bounded(bounds),
            pasts: BTreeMap::new(),
            counted: BTreeMap::new(),
            history_bytes: HISTORY_BYTES,
            sweeping: BTreeSet::new(),
            dropped: Arc::default(),
            published,
        }
    }

    /// With another bound for each history.
    #[cfg(test)]
    pub(crate) fn with_history_bytes(self, history_bytes: u64) -> Self {
        Self { history_bytes, ..self }
    }

    /// Whether a proposal is a command that this machine can apply.
    pub(crate) fn check(proposal: &Proposal) -> Result<(), CodecError> {
        if DropCommand::is_in(proposal) {
            return DropCommand::decode(proposal.0.clone()).map(drop);
        }
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

    fn revision(&self, namespace: NamespaceId) -> u64 {
        self.pasts.get(&namespace).map_or(0, |past| past.revision)
    }

    fn write(
        &mut self,
        stage: &mut Stage<'_>,
        point: Point,
        command: &WriteCommand,
    ) -> Result<Written, MachineError> {
        let place = command.place(stage.space());
        let before = stage.get(Table::Data, place)?;
        let found = before.clone().map(Row::decode).transpose()?;
        let revision = self.revision(command.namespace);
        let next = revision + 1;
        if let Some(row) = found.as_ref().filter(|row| row.revision() > revision)
            && !kv_types::mutant!(RevisionReused)
        {
            let why = format!("it is of revision {}, and its namespace is at {revision}", row.revision());
            return Err(CodecError::Invalid { what: "row of a key", why }.into());
        }
        let live = match &found {
            Some(Row::Live(live)) => Some(live),
            _ => None,
        };
        let written = |value: &Bytes| Some(Row::Live(Live::after(live, next, value.clone())));
        let (effect, after) = match &command.operation {
            Operation::Put(value) => (Effect::Put, written(value)),
            Operation::Delete if live.is_none() => (Effect::Deleted { existed: false }, None),
            Operation::Delete => (Effect::Deleted { existed: true }, Some(Row::Tombstone { revision: next })),
            Operation::CompareAndSet { expected, value } => {
                let present = live.map_or(0, |row| row.revision);
                if present == *expected
                    || (kv_types::mutant!(StaleCas) && *expected > 0 && present > *expected)
                {
                    (Effect::Swapped, written(value))
                } else {
                    let found = live.map(|row| (row.revision, row.value.clone()));
                    (Effect::Mismatch { found }, None)
                }
            }
        };
        let Some(after) = after else {
            return Ok(Written { effect, namespace_revision: revision, point, deduplicated: false });
        };
        let counts = !(kv_types::mutant!(RevisionReused) && effect == Effect::Swapped);
        self.change(stage, command, (before, found), after, counts);
        Ok(Written { effect, namespace_revision: next, point, deduplicated: false })
    }

    /// Brings the row of a key to the stage, what belongs to a tombstone, and the entry of the history.
    fn change(
        &mut self,
        stage: &mut Stage<'_>,
        command: &WriteCommand,
        (before, found): (Option<Bytes>, Option<Row>),
        after: Row,
        counts: bool,
    ) {
        let (space, namespace) = (stage.space(), command.namespace);
        if let Some(Row::Tombstone { revision }) = found {
            stage.delete(Table::Tombstones, keys::tombstone(space, namespace, revision));
        }
        if let Row::Tombstone { revision } = after {
            let key = command.key.clone();
            stage.put(Table::Tombstones, keys::tombstone(space, namespace, revision), key);
        }
        let row = Bytes::from(after.encode());
        stage.put(Table::Data, command.place(space), row.clone());
        if !counts {
            return;
        }
        let before = before.filter(|_| matches!(found, Some(Row::Live(_))));
        let mut entry = Entry::new();
        entry.change(&command.key, before.as_ref(), &row);
        let content = entry.finish();
        let past = self.pasts.entry(namespace).or_default();
        let appended = past.append(&content, self.history_bytes);
        assert_eq!(past.revision, after.revision(), "an entry is of the revision that its row says");
        stage.append(namespace, past.revision, content);
        *self.counted.entry(namespace).or_default() |= appended.marked;
        if appended.floor_rose {
            stage.trim(namespace, past.floor);
            self.sweeping.insert(namespace);
        }
    }

    /// Drops namespaces: from here on their writes are refused. What is kept in memory goes now, the sessions
    /// a few with each command, until `unfinished` is none; what only the tables have is removed by each node
    /// in its own time, for no one reads it any more.
    fn drop_namespaces(&mut self, stage: &mut Stage<'_>, run: &RangeInclusive<u64>) {
        let space = stage.space();
        let known = Arc::make_mut(&mut self.dropped);
        if known.add(run) {
            stage.put(Table::Meta, keys::dropped(space), known.encode());
        }
        let namespaces = NamespaceId(*run.start())..=NamespaceId(*run.end());
        let gone: Vec<NamespaceId> = self.pasts.range(namespaces).map(|(namespace, _)| *namespace).collect();
        for namespace in gone {
            let Some(past) = self.pasts.remove(&namespace) else { continue };
            self.counted.remove(&namespace);
            self.sweeping.remove(&namespace);
            stage.trim(namespace, past.revision);
            stage.frees(past.bytes());
            stage.delete(Table::Meta, keys::revision(space, namespace));
            stage.delete(Table::Meta, keys::marks(space, namespace));
        }
        self.sessions.drop_some(stage, run, SESSIONS_DROPPED_AT_ONCE);
        self.find_unfinished();
    }

    /// The next run of dropped namespaces with sessions.
    fn find_unfinished(&mut self) {
        let unfinished = self.dropped.runs().find(|(first, last)| self.sessions.any_of(&(*first..=*last)));
        Arc::make_mut(&mut self.dropped).unfinished = unfinished;
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
                let row = row.map(Live::of_row).transpose()?.flatten();
                let found = row.map(|row| (row.revision, row.value));
                let present = found.as_ref().map_or(0, |(revision, _)| *revision);
                if matches!(&command.operation, Operation::CompareAndSet { expected, .. } if *expected == present)
                {
                    let why = "the comparison did not hold when this request was taken, nothing was written, and what was \
                               found then is not kept; it would hold now: send it as a new request if it is still wanted";
                    let failure = Failure::new(Reason::RequestExpired, why).not_applied();
                    return Ok(Err(failure.of_request(command.mutation.request_id)));
                }
                let namespace_revision = self.revision(command.namespace);
                let effect = Effect::Mismatch { found };
                return Ok(Ok(Written { effect, namespace_revision, point, deduplicated: true }));
            }
        };
        let Kept { point, revision: namespace_revision, .. } = kept;
        Ok(Ok(Written { effect, namespace_revision, point, deduplicated: true }))
    }
}

impl Domain for KvMachine {
    fn anew(&self) -> Box<dyn Domain> {
        let fresh = Self::bounded(self.published.clone(), self.sessions.bounds());
        Box::new(Self { history_bytes: self.history_bytes, ..fresh })
    }

    fn load(&mut self, storage: &Storage, space: Space) -> Result<(), MachineError> {
        self.sessions = Sessions::load(storage, space, self.sessions.bounds())?;
        self.counted.clear();
        self.pasts.clear();
        for_each_row(storage, space, Table::Meta, |key, row| {
            if let Some(namespace) = keys::of_revision(key)? {
                self.pasts.insert(namespace, Past::decode(row)?);
            }
            Ok::<(), MachineError>(())
        })?;
        for (namespace, past) in &mut self.pasts {
            if let Some(marks) = storage.get(Table::Meta.id(), &keys::marks(space, *namespace))? {
                *past = std::mem::take(past).with_marks(marks.value)?;
            }
            // After a crash the journal is ahead of the rows, never behind them.
            let (_, last) =
                storage.stream_bounds(Table::History.id(), &keys::of_namespace(space, *namespace));
            if last.unwrap_or(0) < past.revision && past.floor < past.revision {
                tracing::error!(%namespace, ?last, revision = past.revision, "entries of a history are lost");
            }
        }
        self.sweeping = self.pasts.iter().filter(|(_, past)| past.floor > 0).map(|(id, _)| *id).collect();
        let dropped = storage.get(Table::Meta.id(), &keys::dropped(space))?;
        self.dropped =
            Arc::new(dropped.map(|row| Dropped::decode(row.value)).transpose()?.unwrap_or_default());
        self.find_unfinished();
        Ok(())
    }

    fn dropped(&self) -> Arc<Dropped> {
        Arc::clone(&self.dropped)
    }

    fn sweep(&self, space: Space) -> Option<Range> {
        let namespace = *self.sweeping.first()?;
        let floor = self.pasts.get(&namespace)?.floor;
        Some(Range {
            table: Table::Tombstones,
            from: keys::tombstone(space, namespace, 0),
            to: keys::tombstone(space, namespace, floor.saturating_add(1)),
        })
    }

    fn swept(
        &mut self,
        stage: &mut Stage<'_>,
        rows: Vec<(Bytes, Bytes)>,
        more: bool,
    ) -> Result<(), MachineError> {
        for (place, key) in rows {
            let (namespace, _) = keys::of_tombstone(&place)?;
            stage.delete(Table::Tombstones, place.into());
            stage.delete(Table::Data, keys::data(stage.space(), namespace, &key));
        }
        if !more {
            self.sweeping.pop_first();
        }
        Ok(())
    }

    fn reads(&self, space: Space, proposal: &Proposal) -> Result<Option<(Table, Vec<u8>)>, MachineError> {
        if DropCommand::is_in(proposal) {
            return Ok(None);
        }
        Ok(Some((Table::Data, WriteCommand::decode(proposal.0.clone())?.place(space))))
    }

    fn apply(
        &mut self,
        stage: &mut Stage<'_>,
        point: Point,
        proposal: &Proposal,
    ) -> Result<Reply, MachineError> {
        if DropCommand::is_in(proposal) {
            let DropCommand(run) = DropCommand::decode(proposal.0.clone())?;
            self.drop_namespaces(stage, &run);
            return Ok(Reply::Dropped);
        }
        let command = WriteCommand::decode(proposal.0.clone())?;
        let (namespace, mutation) = (command.namespace, &command.mutation);
        self.sessions.advance(stage, point.term, command.proposed_at_ms);
        if self.dropped.has(namespace) && !kv_types::mutant!(PutAfterDrop) {
            return Ok(Reply::Write(Err(dropped::refused(namespace, mutation))));
        }
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
        for (namespace, marked) in std::mem::take(&mut self.counted) {
            let Some(past) = self.pasts.get(&namespace) else { continue };
            stage.put(Table::Meta, keys::revision(space, namespace), past.encode());
            if marked {
                stage.put(Table::Meta, keys::marks(space, namespace), past.encode_marks());
            }
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
