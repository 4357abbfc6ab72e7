//! Client sessions in the state machine (Ongaro's dissertation, 6.3): a write is applied once, however often it is sent.
//!
//! The first write of a session (seq 1) opens it. Results are kept per seq, in a window and above what the client has
//! acknowledged; a resend gets the first result. What can no longer be proved is refused, as *unknown*: a session that
//! was forgotten (`SESSION_EXPIRED`), a seq below what is kept, or an opening write issued before the time up to which
//! sessions have been forgotten (`REQUEST_EXPIRED`) - else a late resend of seq 1 would open its session again and be
//! applied twice.
//!
//! Everything here is a function of the log: time is the leader's wall clock as proposed with each command, made monotone.
//! It decides when a session is idle, nothing else.
//! The rows of results are the whole persistent state; the index in memory is read from them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes};
use kv_storage::Storage;
use kv_types::limits::{MAX_SESSIONS, SESSION_IDLE, SESSION_WINDOW};
use kv_types::{ClientId, Failure, Mutation, Reason};

use crate::codec::{self, CodecError, Reader, Write};
use crate::config::limits::{SESSION_RESULT_BYTES, SESSIONS_FORGOTTEN_AT_ONCE};
use crate::machine::MachineError;
use crate::proposal::{Effect, Point, Written};
use crate::tables::{Space, Stage, Table, for_each_row, keys};

/// What is to be done with a write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is new: apply it, then [`Sessions::keep`] its result.
    New,
    /// It was applied before, with this result.
    Known(Written),
    /// It must not be applied.
    Refused(Failure),
}

/// The sessions of one group.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    by_client: BTreeMap<ClientId, Session>,
    /// The one unused longest comes first. While log time stands still, because a clock was ahead, the order of the log
    /// decides.
    by_use: BTreeSet<(Use, ClientId)>,
    /// Log time: never goes back.
    now: u64,
    /// Sessions whose opening was issued at or before this time may have been forgotten. By the clients' clocks alone: a
    /// leader whose clock was far ahead for a while must not shut out everybody until time has caught up.
    horizon: u64,
}

/// When a session was used: log time, then the entry's index.
type Use = (u64, u64);

#[derive(Debug, Default)]
struct Session {
    last_used: Use,
    /// When its opening was issued, which a resend repeats.
    issued: u64,
    /// Results below this seq are not kept.
    floor: u64,
    /// Bytes of the result by seq.
    kept: BTreeMap<u64, u64>,
    bytes: u64,
}

/// A result as a row, with what the session was then: the last row of a session says all of it.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    body: u64,
    used: u64,
    issued: u64,
    floor: u64,
    written: Written,
}

impl Sessions {
    /// Reads the index from the tables.
    pub(crate) fn load(storage: &Storage, space: Space) -> Result<Self, MachineError> {
        let mut sessions = Self::default();
        if let Some(row) = storage.get(Table::Meta.id(), &keys::clock(space))? {
            (sessions.now, sessions.horizon) = decode_clock(row.value)?;
        }
        for_each_row(storage, space, Table::Sessions, |key, value| {
            let (client, seq) = decode_place(key)?;
            let bytes = value.len() as u64;
            let record = Record::decode(value)?;
            let session = sessions.by_client.entry(client).or_default();
            session.last_used = session.last_used.max((record.used, record.written.point.index));
            session.issued = session.issued.max(record.issued);
            session.floor = session.floor.max(record.floor);
            session.kept.insert(seq, bytes);
            session.bytes += bytes;
            Ok::<(), MachineError>(())
        })?;
        sessions.by_use =
            sessions.by_client.iter().map(|(client, session)| (session.last_used, *client)).collect();
        Ok(sessions)
    }

    /// Moves log time forward, never back, and forgets a few idle sessions on the way.
    pub(crate) fn advance(&mut self, stage: &mut Stage<'_>, proposed_at_ms: u64) {
        self.now = self.now.max(proposed_at_ms);
        for _ in 0..SESSIONS_FORGOTTEN_AT_ONCE {
            match self.by_use.first() {
                Some(((used, _), client)) if self.is_idle(*used) => self.forget(stage, *client),
                _ => break,
            }
        }
        stage.put(Table::Meta, keys::clock(stage.space()), encode_clock(self.now, self.horizon));
    }

    fn is_idle(&self, last_used: u64) -> bool {
        last_used.saturating_add(idle_ms()) <= self.now
    }

    fn forget(&mut self, stage: &mut Stage<'_>, client: ClientId) {
        let Some(session) = self.by_client.remove(&client) else { return };
        self.by_use.remove(&(session.last_used, client));
        self.horizon = self.horizon.max(session.issued);
        for seq in session.kept.into_keys() {
            stage.delete(Table::Sessions, keys::result(stage.space(), client.0, seq));
        }
        stage.put(Table::Meta, keys::clock(stage.space()), encode_clock(self.now, self.horizon));
    }

    /// Whether a write is new. `body` is a hash of what it asks for.
    pub(crate) fn admit(
        &mut self,
        stage: &mut Stage<'_>,
        mutation: &Mutation,
        body: u64,
    ) -> Result<Admission, MachineError> {
        let (client, seq) = (mutation.request_id.client_id, mutation.request_id.seq);
        let refuse = |reason, message: String| {
            Ok(Admission::Refused(Failure::new(reason, message).of_request(mutation.request_id)))
        };
        if self.by_client.get(&client).is_some_and(|session| self.is_idle(session.last_used.0)) {
            self.forget(stage, client);
        }
        let Some(session) = self.by_client.get(&client) else {
            if seq != 1 {
                let why = "the session is not known here: it was never opened by seq 1, or it was forgotten";
                return refuse(Reason::SessionExpired, why.into());
            }
            if mutation.issued_at_ms <= self.horizon {
                let message = format!(
                    "issued at {} ms; sessions up to {} ms have been forgotten, so it may have been applied before",
                    mutation.issued_at_ms, self.horizon
                );
                return refuse(Reason::RequestExpired, message);
            }
            if mutation.issued_at_ms > self.now.saturating_add(idle_ms()) {
                // Once forgotten, such a session could not be told from a new one.
                let why = "the request claims to have been issued in the future: set the client's clock";
                return refuse(Reason::RequestIdInvalid, why.into());
            }
            return Ok(Admission::New);
        };
        if session.kept.contains_key(&seq) && !kv_types::mutant!(ResendAppliedAgain) {
            let row = stage.get(Table::Sessions, keys::result(stage.space(), client.0, seq))?;
            let record = Record::decode(row.ok_or(MachineError::Lost { what: "a session's result" })?)?;
            if record.body != body {
                let message = "this request id was used before for something else".to_owned();
                return refuse(Reason::RequestIdReused, message);
            }
            return Ok(Admission::Known(Written { deduplicated: true, ..record.written }));
        }
        if seq < session.floor && !kv_types::mutant!(ResendAppliedAgain) {
            let message = format!("seq {seq} is too old: results are kept from seq {} on", session.floor);
            return refuse(Reason::RequestExpired, message);
        }
        Ok(Admission::New)
    }

    /// Keeps the result of a write that was admitted as new.
    pub(crate) fn keep(&mut self, stage: &mut Stage<'_>, mutation: &Mutation, body: u64, written: &Written) {
        let (client, seq) = (mutation.request_id.client_id, mutation.request_id.seq);
        if !self.by_client.contains_key(&client)
            && self.by_client.len() >= MAX_SESSIONS
            && let Some((_, longest_unused)) = self.by_use.first().copied()
        {
            self.forget(stage, longest_unused);
        }
        let space = stage.space();
        // How far ahead an opening may be issued, `admit` bounds: the horizon moves for everybody.
        let opened = || Session { issued: mutation.issued_at_ms, ..Session::default() };
        let session = self.by_client.entry(client).or_insert_with(opened);
        self.by_use.remove(&(session.last_used, client));
        session.last_used = (self.now, written.point.index);
        let highest = session.kept.last_key_value().map_or(seq, |(highest, _)| seq.max(*highest));
        let window = highest.saturating_sub(SESSION_WINDOW - 1);
        session.floor = session.floor.max(mutation.lowest_unacked).max(window);
        let mut record = Record {
            body,
            used: self.now,
            issued: session.issued,
            floor: session.floor,
            written: written.clone(),
        };
        let bytes = record.encode().len() as u64;
        session.kept.insert(seq, bytes);
        session.bytes += bytes;
        while let Some(oldest) = session.kept.first_entry() {
            let too_many_bytes = session.bytes > SESSION_RESULT_BYTES && *oldest.key() != seq;
            if *oldest.key() >= session.floor && !too_many_bytes {
                break;
            }
            let (old, bytes) = oldest.remove_entry();
            session.bytes -= bytes;
            session.floor = session.floor.max(old + 1);
            stage.delete(Table::Sessions, keys::result(space, client.0, old));
        }
        record.floor = session.floor;
        self.by_use.insert((session.last_used, client));
        if session.kept.contains_key(&seq) {
            stage.put(Table::Sessions, keys::result(space, client.0, seq), record.encode());
        }
    }
}

fn idle_ms() -> u64 {
    u64::try_from(SESSION_IDLE.as_millis()).unwrap_or(u64::MAX)
}

fn encode_clock(now: u64, horizon: u64) -> Vec<u8> {
    let mut out = codec::versioned(codec::VERSION, 16);
    out.put_u64(now);
    out.put_u64(horizon);
    out
}

fn decode_clock(bytes: Bytes) -> Result<(u64, u64), CodecError> {
    let mut reader = Reader::versioned(bytes, "group clock", codec::VERSION)?;
    let clock = (reader.u64()?, reader.u64()?);
    reader.end().map(|()| clock)
}

fn decode_place(key: &[u8]) -> Result<(ClientId, u64), CodecError> {
    let error = || CodecError::Truncated { what: "key of a session's result" };
    let (client, seq) =
        key.get(keys::SPACE_BYTES..).and_then(|place| place.split_first_chunk::<16>()).ok_or_else(error)?;
    let seq: [u8; 8] = seq.try_into().map_err(|_| error())?;
    Ok((ClientId(u128::from_be_bytes(*client)), u64::from_be_bytes(seq)))
}

const PUT: u8 = 0;
const DELETED: u8 = 1;
const SWAPPED: u8 = 2;
const MISMATCH: u8 = 3;

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut out = codec::versioned(codec::VERSION, 72);
        for number in [self.body, self.used, self.issued, self.floor] {
            out.put_u64(number);
        }
        let Written { effect, namespace_revision, point, deduplicated: _ } = &self.written;
        for number in [*namespace_revision, point.term, point.index] {
            out.put_u64(number);
        }
        match effect {
            Effect::Put => out.put_u8(PUT),
            Effect::Deleted { existed } => {
                out.put_u8(DELETED);
                out.put_flag(*existed);
            }
            Effect::Swapped => out.put_u8(SWAPPED),
            Effect::Mismatch { found } => {
                out.put_u8(MISMATCH);
                out.put_flag(found.is_some());
                if let Some((revision, value)) = found {
                    out.put_u64(*revision);
                    out.put_slice(value);
                }
            }
        }
        out
    }

    fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(bytes, "session's result", codec::VERSION)?;
        let (body, used, issued, floor) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
        let namespace_revision = reader.u64()?;
        let point = Point { term: reader.u64()?, index: reader.u64()? };
        let effect = match reader.u8()? {
            PUT => Effect::Put,
            DELETED => Effect::Deleted { existed: reader.flag()? },
            SWAPPED => Effect::Swapped,
            MISMATCH => {
                let found = if reader.flag()? { Some(reader.u64()?) } else { None };
                let value = reader.rest();
                let found = found.map(|revision| (revision, value));
                let written = Written {
                    effect: Effect::Mismatch { found },
                    namespace_revision,
                    point,
                    deduplicated: false,
                };
                return Ok(Self { body, used, issued, floor, written });
            }
            found => return Err(reader.unknown("effect", found)),
        };
        reader.end()?;
        Ok(Self {
            body,
            used,
            issued,
            floor,
            written: Written { effect, namespace_revision, point, deduplicated: false },
        })
    }
}
