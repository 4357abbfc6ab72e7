//! Client sessions in the state machine (Ongaro's dissertation, 6.3): a write is applied once, however often
//! it is sent.
//!
//! A session belongs to a client and a namespace. Its first write (seq 1) opens it. Results are kept per seq,
//! in a window and above what the client has acknowledged; a resend gets the first result. What is kept is
//! small: of a comparison that did not hold, only that it did not. What can no longer be proved is refused: a
//! session that was forgotten (`SESSION_EXPIRED`), a seq below what is kept (`REQUEST_EXPIRED`), an opening
//! that may have been forgotten. Such a refusal is *unknown*, unless the write was sent for the first time:
//! then nothing of it was applied.
//!
//! **Why a late opening is not applied twice.** Forgetting a session moves the *horizon* of its namespace to
//! its issue time or beyond, and the horizon never goes back; an opening that was issued at or before the
//! horizon is refused. A resend repeats the issue time. So once the session that an opening made is
//! forgotten, every resend of it is refused.
//!
//! **Why no client is locked out by another's clock.** Clients say when they issued an opening, so the
//! horizon must not follow a clock that is ahead. A session is forgotten only when the latest wall clock of a
//! leader ([`LogTime::latest`]) has reached its issue time. So the horizon never passes the latest clock of a
//! leader, whatever clients say, and an opening that is issued after that is taken. Until then such a session
//! stays; there is a bound for how far ahead an opening may be issued, and one for how many such sessions
//! there are.
//!
//! **Bounds.** Sessions are bounded in number and in bytes, counted by fixed prices. Where there is no room,
//! the session unused longest of the namespace that has most is forgotten, so that no namespace pushes out
//! the sessions of another that has less; where none may be forgotten, the write is refused before it is
//! applied (`OVERLOADED`).
//!
//! Everything here is a function of the log. A row per session, one for the horizon of each namespace and one
//! for the time are the whole persistent state, written at most once a step ([`Sessions::seal`]); the index
//! in memory is read from the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use kv_storage::Storage;
use kv_types::limits::{MAX_SESSIONS, SESSION_IDLE, SESSION_WINDOW};
use kv_types::{ClientId, Failure, Mutation, NamespaceId, Reason};

use crate::codec::{self, CodecError, Reader, Write};
use crate::limits::{
    MAX_SESSION_AHEAD, MAX_SESSIONS_AHEAD, RETRY_AFTER_MS, SESSION_BYTES, SESSION_RESULT_BYTES,
    SESSIONS_BYTES, SESSIONS_FORGOTTEN_AT_ONCE,
};
use crate::log_time::LogTime;
use crate::machine_error::MachineError;
use crate::proposal::{Effect, Point, Written};
use crate::session_shares::{Scarce, Shares, Use};
use crate::tables::{Space, Stage, Table, for_each_row, keys};

/// What is to be done with a write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is new: apply it, then [`Sessions::keep`] its result.
    New,
    /// It was applied before, with this result.
    Known(Kept),
    /// It must not be applied.
    Refused(Failure),
}

/// What is kept of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// A hash of what was asked for.
    body: u64,
    /// Where it was applied.
    pub(crate) point: Point,
    /// The namespace's revision then.
    pub(crate) revision: u64,
    /// What it did.
    pub(crate) outcome: Outcome,
}

/// An [`Effect`] without values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The key has the value.
    Put,
    /// The key has no value; it had one before, or not.
    Deleted { existed: bool },
    /// The comparison held.
    Swapped,
    /// The comparison did not hold. What was found is not kept: values are large, and a session must stay
    /// small.
    Mismatch,
}

impl Outcome {
    fn of(effect: &Effect) -> Self {
        match effect {
            Effect::Put => Self::Put,
            Effect::Deleted { existed } => Self::Deleted { existed: *existed },
            Effect::Swapped => Self::Swapped,
            Effect::Mismatch { .. } => Self::Mismatch,
        }
    }
}

/// How many sessions a group has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionBounds {
    /// Sessions at most.
    pub(crate) sessions: usize,
    /// Of them, issued later than the latest clock of a leader.
    pub(crate) ahead: usize,
    /// Bytes of all, by the prices in `limits`.
    pub(crate) bytes: u64,
}

impl Default for SessionBounds {
    fn default() -> Self {
        Self { sessions: MAX_SESSIONS, ahead: MAX_SESSIONS_AHEAD, bytes: SESSIONS_BYTES }
    }
}

/// When an opening in a namespace may have been issued: from behind the horizon up to a little after the
/// latest clock of a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Openings {
    /// Sessions issued at or before it may have been forgotten, ms.
    pub(crate) horizon: u64,
    /// The latest clock of a leader, ms.
    pub(crate) latest: u64,
}

impl Openings {
    /// With a clock that may be later than the ones in the log.
    pub(crate) fn at(self, wall_ms: u64) -> Self {
        Self { latest: self.latest.max(wall_ms), ..self }
    }

    /// Refuses an opening by its issue time. For one that is sent for the first time the refusal is definite,
    /// so the node that is asked can say it before it proposes anything; others have to go through the log,
    /// which may know them.
    pub(crate) fn check(self, mutation: &Mutation) -> Result<(), Failure> {
        let Self { horizon, latest } = self;
        let issued = mutation.issued_at_ms;
        let ahead = issued.saturating_sub(latest);
        if ahead > millis(MAX_SESSION_AHEAD) {
            // Whatever was refused so was never taken before: the latest clock never goes back.
            let message = format!(
                "a session cannot be opened at {issued} ms, which is {ahead} ms from now: set the client's clock"
            );
            return Err(Failure::new(Reason::RequestIdInvalid, message).with("clock_ahead_ms", ahead));
        }
        if issued > horizon {
            return Ok(());
        }
        let behind = latest.saturating_sub(issued);
        let message = format!(
            "a session cannot be opened at {issued} ms, which is {behind} ms ago: sessions up to {horizon} ms have been \
             forgotten. If it was issued now, set the client's clock"
        );
        Err(if mutation.attempt == 1 {
            Failure::new(Reason::RequestIdInvalid, message).with("clock_behind_ms", behind)
        } else {
            let message = format!("{message}; otherwise it may have been applied before");
            Failure::new(Reason::RequestExpired, message).with("clock_behind_ms", behind)
        })
    }
}

/// When openings may have been issued, in every namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AllOpenings {
    latest: u64,
    /// Of the namespaces of which sessions were forgotten.
    horizons: Arc<BTreeMap<NamespaceId, u64>>,
}

impl AllOpenings {
    /// In this one.
    pub(crate) fn of(&self, namespace: NamespaceId) -> Openings {
        Openings { horizon: self.horizons.get(&namespace).copied().unwrap_or(0), latest: self.latest }
    }
}

/// Where a session is: a client has one per namespace.
type Place = (NamespaceId, ClientId);

/// The sessions of one group.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    bounds: SessionBounds,
    by_place: BTreeMap<Place, Session>,
    /// Those that may be forgotten: the one unused longest comes first.
    by_use: BTreeSet<(Use, Place)>,
    /// The others, by the time of issue that must be reached first.
    ahead: BTreeSet<(u64, Place)>,
    /// What each namespace has of them, by what they count for.
    shares: Shares,
    time: LogTime,
    /// By namespace: sessions whose opening was issued at or before this time may have been forgotten.
    horizons: Arc<BTreeMap<NamespaceId, u64>>,
    /// Sessions that changed since the last seal.
    changed: BTreeSet<Place>,
    /// Namespaces whose horizon did.
    moved: BTreeSet<NamespaceId>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Session {
    last_used: Use,
    /// When its opening was issued, which a resend repeats.
    issued: u64,
    /// Results below this seq are not kept.
    floor: u64,
    /// The results by seq.
    kept: BTreeMap<u64, Kept>,
}

impl Sessions {
    /// No sessions yet, within these bounds.
    pub(crate) fn bounded(bounds: SessionBounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Reads the index from the tables.
    pub(crate) fn load(storage: &Storage, space: Space, bounds: SessionBounds) -> Result<Self, MachineError> {
        let mut sessions = Self { bounds, ..Self::default() };
        if let Some(row) = storage.get(Table::Meta.id(), &keys::clock(space))? {
            sessions.time = decode_clock(row.value)?;
        }
        let mut horizons = BTreeMap::new();
        for_each_row(storage, space, Table::Meta, |key, value| {
            if let Some(namespace) = keys::of_horizon(key)? {
                horizons.insert(namespace, decode_horizon(value)?);
            }
            Ok::<(), MachineError>(())
        })?;
        sessions.horizons = Arc::new(horizons);
        for_each_row(storage, space, Table::Sessions, |key, value| {
            let session = Session::decode(value)?;
            sessions.insert(keys::of_session(key)?, session);
            Ok::<(), MachineError>(())
        })?;
        Ok(sessions)
    }

    /// When openings may have been issued.
    pub(crate) fn openings(&self) -> AllOpenings {
        AllOpenings { horizons: self.horizons.clone(), latest: self.time.latest() }
    }

    /// Bounds of this group's sessions.
    pub(crate) fn bounds(&self) -> SessionBounds {
        self.bounds
    }

    /// Takes the time of a command into account, and forgets a few idle sessions on the way.
    pub(crate) fn advance(&mut self, stage: &mut Stage<'_>, term: u64, proposed_at_ms: u64) {
        self.time.advance(term, proposed_at_ms);
        while let Some((issued, place)) = self.ahead.first().copied()
            && issued <= self.time.latest()
        {
            self.ahead.pop_first();
            if let Some(last_used) = self.by_place.get(&place).map(|session| session.last_used) {
                self.by_use.insert((last_used, place));
                self.shares.may_go(place, last_used);
            }
        }
        for _ in 0..SESSIONS_FORGOTTEN_AT_ONCE {
            match self.by_use.first() {
                Some(((used, _), place)) if self.is_idle(*used) => self.forget(stage, *place),
                _ => break,
            }
        }
    }

    fn is_idle(&self, last_used: u64) -> bool {
        last_used.saturating_add(millis(SESSION_IDLE)) <= self.time.now()
    }

    fn insert(&mut self, place: Place, session: Session) {
        let may_go = session.issued <= self.time.latest();
        self.shares.add(place, session.price(), may_go.then_some(session.last_used));
        if may_go {
            self.by_use.insert((session.last_used, place));
        } else {
            self.ahead.insert((session.issued, place));
        }
        self.by_place.insert(place, session);
    }

    fn remove(&mut self, place: Place) -> Option<Session> {
        let session = self.by_place.remove(&place)?;
        self.by_use.remove(&(session.last_used, place));
        self.ahead.remove(&(session.issued, place));
        self.shares.take(place, session.price(), session.last_used);
        Some(session)
    }

    fn forget(&mut self, stage: &mut Stage<'_>, place: Place) {
        let Some(session) = self.remove(place) else { return };
        let horizon = Arc::make_mut(&mut self.horizons).entry(place.0).or_default();
        *horizon = session.issued.max(*horizon);
        self.moved.insert(place.0);
        assert!(
            *horizon <= self.time.latest() || kv_types::mutant!(HorizonMovedByEviction),
            "the horizon stays behind the latest clock of a leader"
        );
        self.changed.remove(&place);
        stage.delete(Table::Sessions, keys::session(stage.space(), place));
    }

    /// Forgets what was unused longest, of the namespace that has most, until one more result, or one more
    /// session, has room beside `place`'s.
    fn make_room(&mut self, stage: &mut Stage<'_>, place: Place) -> bool {
        let opens = !self.by_place.contains_key(&place);
        let price = SESSION_RESULT_BYTES + if opens { SESSION_BYTES } else { 0 };
        loop {
            let too_many = opens && self.by_place.len() >= self.bounds.sessions;
            if !too_many && self.shares.bytes() + price <= self.bounds.bytes {
                return true;
            }
            let (scarce, more) = if too_many { (Scarce::Sessions, 1) } else { (Scarce::Bytes, price) };
            let mut unused = self.shares.to_forget(scarce, place, more);
            if kv_types::mutant!(HorizonMovedByEviction) {
                unused = self.ahead.first().map(|(_, other)| *other).or(unused);
            }
            let Some(other) = unused else { return false };
            self.forget(stage, other);
        }
    }

    /// Whether a write is new. `body` is a hash of what it asks for.
    pub(crate) fn admit(
        &mut self,
        stage: &mut Stage<'_>,
        namespace: NamespaceId,
        mutation: &Mutation,
        body: u64,
    ) -> Admission {
        let place = (namespace, mutation.request_id.client_id);
        let idle = |session: &Session| self.is_idle(session.last_used.0);
        if self
            .by_place
            .get(&place)
            .is_some_and(|session| idle(session) && session.issued <= self.time.latest())
        {
            self.forget(stage, place);
        }
        match self.judge(stage, place, mutation, body) {
            Ok(None) => Admission::New,
            Ok(Some(kept)) => Admission::Known(kept),
            Err(failure) => Admission::Refused(failure.of_request(mutation.request_id)),
        }
    }

    /// The kept result of a write, none when it is new.
    fn judge(
        &mut self,
        stage: &mut Stage<'_>,
        place: Place,
        mutation: &Mutation,
        body: u64,
    ) -> Result<Option<Kept>, Failure> {
        let seq = mutation.request_id.seq;
        match self.by_place.get(&place) {
            Some(session) if !kv_types::mutant!(ResendAppliedAgain) => {
                if let Some(kept) = session.kept.get(&seq) {
                    if kept.body != body {
                        let message = "this request id was used before for something else";
                        return Err(Failure::new(Reason::RequestIdReused, message));
                    }
                    return Ok(Some(*kept));
                }
                if seq < session.floor {
                    let message =
                        format!("seq {seq} is too old: results are kept from seq {} on", session.floor);
                    return Err(unproved(Reason::RequestExpired, message, mutation));
                }
            }
            Some(_) => {}
            None => self.judge_opening(place.0, mutation)?,
        }
        if self.make_room(stage, place) {
            return Ok(None);
        }
        let message = "the sessions of this group have no room, and none of them may be forgotten yet";
        Err(Failure::new(Reason::Overloaded, message).retry_after_ms(RETRY_AFTER_MS))
    }

    fn judge_opening(&self, namespace: NamespaceId, mutation: &Mutation) -> Result<(), Failure> {
        if mutation.request_id.seq != 1 {
            let why = "the session is not known here: it was never opened by seq 1, or it was forgotten";
            return Err(unproved(Reason::SessionExpired, why.to_owned(), mutation));
        }
        self.openings().of(namespace).check(mutation)?;
        if mutation.issued_at_ms > self.time.latest() && self.ahead.len() >= self.bounds.ahead {
            let message = format!(
                "{} sessions were opened by clients whose clocks are ahead, and no more are: set the client's clock",
                self.ahead.len()
            );
            return Err(Failure::new(Reason::Overloaded, message).retry_after_ms(RETRY_AFTER_MS));
        }
        Ok(())
    }

    /// Keeps the result of a write that was admitted as new.
    pub(crate) fn keep(
        &mut self,
        stage: &mut Stage<'_>,
        namespace: NamespaceId,
        mutation: &Mutation,
        body: u64,
        written: &Written,
    ) {
        let (place, seq) = ((namespace, mutation.request_id.client_id), mutation.request_id.seq);
        // How far ahead an opening may be issued was checked when it was admitted.
        let opened = || Session { issued: mutation.issued_at_ms, ..Session::default() };
        let mut session = self.remove(place).unwrap_or_else(opened);
        session.last_used = (self.time.now(), written.point.index);
        let Written { effect, namespace_revision, point, deduplicated: _ } = written;
        let kept = Kept { body, point: *point, revision: *namespace_revision, outcome: Outcome::of(effect) };
        session.kept.insert(seq, kept);
        let highest = session.kept.last_key_value().map_or(seq, |(highest, _)| *highest);
        session.floor =
            session.floor.max(mutation.lowest_unacked).max(highest.saturating_sub(SESSION_WINDOW - 1));
        while session.kept.first_key_value().is_some_and(|(oldest, _)| *oldest < session.floor) {
            session.kept.pop_first();
        }
        // What the step will write of it, counted when it is known that it will.
        let grown = if self.changed.insert(place) { session.price() } else { SESSION_RESULT_BYTES };
        stage.expect(grown);
        self.insert(place, session);
        assert!(self.by_place.len() <= self.bounds.sessions, "sessions are bounded in number");
        assert!(
            self.shares.bytes() <= self.bounds.bytes || kv_types::mutant!(ResendAppliedAgain),
            "sessions are bounded in bytes"
        );
    }

    /// Whether there are sessions of these namespaces.
    pub(crate) fn any_of(&self, run: &RangeInclusive<u64>) -> bool {
        let namespaces = NamespaceId(*run.start())..=NamespaceId(*run.end());
        self.by_place.range(places(run)).next().is_some() || self.horizons.range(namespaces).next().is_some()
    }

    /// Removes sessions of dropped namespaces, `most` of them; true when none is left. Their horizons go with
    /// the last ones: nothing is opened there any more.
    pub(crate) fn drop_some(
        &mut self,
        stage: &mut Stage<'_>,
        run: &RangeInclusive<u64>,
        most: usize,
    ) -> bool {
        let some: Vec<Place> = self.by_place.range(places(run)).map(|(place, _)| *place).take(most).collect();
        for place in some {
            self.remove(place);
            self.changed.remove(&place);
            stage.delete(Table::Sessions, keys::session(stage.space(), place));
        }
        if self.by_place.range(places(run)).next().is_some() {
            return false;
        }
        let namespaces = NamespaceId(*run.start())..=NamespaceId(*run.end());
        let gone: Vec<NamespaceId> =
            self.horizons.range(namespaces).map(|(namespace, _)| *namespace).collect();
        for namespace in gone {
            Arc::make_mut(&mut self.horizons).remove(&namespace);
            self.moved.remove(&namespace);
            stage.delete(Table::Meta, keys::horizon(stage.space(), namespace));
        }
        true
    }

    /// Brings what changed to the stage: a row for each session, one for the time.
    pub(crate) fn seal(&mut self, stage: &mut Stage<'_>) {
        let space = stage.space();
        for place in std::mem::take(&mut self.changed) {
            if let Some(session) = self.by_place.get(&place) {
                stage.put(Table::Sessions, keys::session(space, place), session.encode());
            }
        }
        for namespace in std::mem::take(&mut self.moved) {
            let horizon = self.horizons.get(&namespace).copied().unwrap_or(0);
            stage.put(Table::Meta, keys::horizon(space, namespace), encode_horizon(horizon));
        }
        stage.put(Table::Meta, keys::clock(space), encode_clock(self.time));
    }
}

/// Where the sessions of namespaces are.
fn places(run: &RangeInclusive<u64>) -> RangeInclusive<Place> {
    (NamespaceId(*run.start()), ClientId(0))..=(NamespaceId(*run.end()), ClientId(u128::MAX))
}

/// A refusal because nothing is known any more: *unknown*, unless nothing of the write was sent before.
fn unproved(reason: Reason, message: String, mutation: &Mutation) -> Failure {
    let failure = Failure::new(reason, message);
    if mutation.attempt == 1 { failure.not_applied() } else { failure }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// ---- encodings

/// Version of the row of a session: the first had a row for each result.
const VERSION: u8 = 2;
/// Version of the group's clock: the second had one horizon for all namespaces.
const CLOCK_VERSION: u8 = 3;
const WHAT: &str = "session";
const PUT: u8 = 0;
const DELETED: u8 = 1;
const DELETED_NOTHING: u8 = 2;
const SWAPPED: u8 = 3;
const MISMATCH: u8 = 4;

fn encode_clock(time: LogTime) -> Vec<u8> {
    let mut out = codec::versioned(CLOCK_VERSION, 32);
    time.encode(&mut out);
    out
}

fn decode_clock(bytes: Bytes) -> Result<LogTime, CodecError> {
    let mut reader = Reader::versioned(bytes, "group clock", CLOCK_VERSION)?;
    let time = LogTime::decode(&mut reader)?;
    reader.end().map(|()| time)
}

fn encode_horizon(horizon: u64) -> Vec<u8> {
    let mut out = codec::versioned(codec::VERSION, 8);
    out.put_u64(horizon);
    out
}

fn decode_horizon(bytes: Bytes) -> Result<u64, CodecError> {
    let mut reader = Reader::versioned(bytes, "horizon", codec::VERSION)?;
    let horizon = reader.u64()?;
    reader.end().map(|()| horizon)
}

/// Whether a row of a session can be read.
pub(crate) fn check_row(row: Bytes) -> Result<(), CodecError> {
    Session::decode(row).map(drop)
}

/// Whether a row of what is known of sessions in general can be read. Rows of others pass.
pub(crate) fn check_meta_row(key: &[u8], row: Bytes) -> Result<(), CodecError> {
    match keys::of_horizon(key)? {
        Some(_) => decode_horizon(row).map(drop),
        None if keys::is_clock(key) => decode_clock(row).map(drop),
        None => Ok(()),
    }
}

impl Session {
    /// What it counts for in the bound of all sessions.
    fn price(&self) -> u64 {
        SESSION_BYTES + self.kept.len() as u64 * SESSION_RESULT_BYTES
    }

    /// What must hold of every session.
    fn is_sound(&self) -> bool {
        let newest = self.kept.values().map(|kept| kept.point.index).max().unwrap_or(0);
        let first = self.kept.first_key_value().map_or(self.floor, |(seq, _)| *seq);
        let last = self.kept.last_key_value().map_or(self.floor, |(seq, _)| *seq);
        self.floor <= first && last - first < SESSION_WINDOW && newest <= self.last_used.1
    }

    /// Results follow each other by seq, their numbers as differences to those of the one before.
    fn encode(&self) -> Vec<u8> {
        assert!(self.is_sound(), "a session is written as it may be: {self:?}");
        let mut out = codec::versioned(VERSION, 40 + 16 * self.kept.len());
        let Self { last_used, issued, floor, kept } = self;
        [last_used.0, last_used.1, *issued, *floor].into_iter().for_each(|number| out.put_u64(number));
        out.put_varint(kept.len() as u64);
        let mut before = (*floor, Point::default(), 0);
        for (seq, kept) in kept {
            let Kept { body, point, revision, outcome } = *kept;
            out.put_u64(body);
            out.put_u8(match outcome {
                Outcome::Put => PUT,
                Outcome::Deleted { existed: true } => DELETED,
                Outcome::Deleted { existed: false } => DELETED_NOTHING,
                Outcome::Swapped => SWAPPED,
                Outcome::Mismatch => MISMATCH,
            });
            out.put_varint(seq - before.0);
            out.put_varint(zigzag(before.1.term, point.term));
            out.put_varint(zigzag(before.1.index, point.index));
            out.put_varint(zigzag(before.2, revision));
            before = (*seq, point, revision);
        }
        assert!(out.len() as u64 <= self.price(), "a session's row costs no more than it counts for");
        out
    }

    fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(bytes, WHAT, VERSION)?;
        let (last_used, issued, floor) = ((reader.u64()?, reader.u64()?), reader.u64()?, reader.u64()?);
        let mut session = Self { last_used, issued, floor, kept: BTreeMap::new() };
        let mut before = (floor, Point::default(), 0);
        for at in 0..reader.varint()? {
            let body = reader.u64()?;
            let outcome = match reader.u8()? {
                PUT => Outcome::Put,
                DELETED => Outcome::Deleted { existed: true },
                DELETED_NOTHING => Outcome::Deleted { existed: false },
                SWAPPED => Outcome::Swapped,
                MISMATCH => Outcome::Mismatch,
                found => return Err(reader.newer("outcome", found)),
            };
            let step = reader.varint()?;
            let seq = before.0.checked_add(step).filter(|_| step > 0 || at == 0);
            let seq = seq.ok_or_else(|| reader.invalid("its results are not in order"))?;
            let term = unzigzag(before.1.term, reader.varint()?);
            let point = Point { term, index: unzigzag(before.1.index, reader.varint()?) };
            let revision = unzigzag(before.2, reader.varint()?);
            session.kept.insert(seq, Kept { body, point, revision, outcome });
            before = (seq, point, revision);
            if session.kept.len() as u64 > SESSION_WINDOW {
                return Err(reader.invalid("it has more results than it may keep"));
            }
        }
        if !session.is_sound() {
            return Err(reader.invalid("its results do not fit its floor and its last use"));
        }
        reader.end().map(|()| session)
    }
}

/// The difference to another number, small when they are near each other, whichever is larger.
fn zigzag(from: u64, to: u64) -> u64 {
    let difference = to.wrapping_sub(from).cast_signed();
    ((difference << 1) ^ (difference >> 63)).cast_unsigned()
}

fn unzigzag(from: u64, coded: u64) -> u64 {
    from.wrapping_add((coded >> 1) ^ 0_u64.wrapping_sub(coded & 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_session() -> impl Strategy<Value = Session> {
        let number = || prop_oneof![any::<u64>(), 0..1_000_u64];
        let kept = (number(), number(), number(), number(), 0..5_u8).prop_map(
            |(body, term, index, revision, outcome)| {
                let outcome = match outcome {
                    0 => Outcome::Put,
                    1 => Outcome::Deleted { existed: true },
                    2 => Outcome::Deleted { existed: false },
                    3 => Outcome::Swapped,
                    _ => Outcome::Mismatch,
                };
                Kept { body, point: Point { term, index }, revision, outcome }
            },
        );
        let window = proptest::collection::btree_map(0..SESSION_WINDOW, kept, 0..20);
        (number(), number(), 0..u64::MAX / 2, window).prop_map(|(used, issued, floor, window)| {
            let newest = window.values().map(|kept: &Kept| kept.point.index).max().unwrap_or(0);
            let kept = window.into_iter().map(|(seq, kept)| (floor + seq, kept)).collect();
            Session { last_used: (used, newest), issued, floor, kept }
        })
    }

    proptest! {
        #[test]
        fn sessions_survive_their_encoding(session in any_session()) {
            let bytes = Bytes::from(session.encode());
            prop_assert_eq!(Session::decode(bytes.clone()).unwrap(), session);
            for cut in 0..bytes.len() {
                prop_assert!(Session::decode(bytes.slice(..cut)).is_err(), "cut at {}", cut);
            }
            prop_assert!(Session::decode([&bytes[..], &[0]].concat().into()).is_err());
        }

        #[test]
        fn bad_sessions_are_errors(mut bytes in proptest::collection::vec(any::<u8>(), 1..120)) {
            bytes[0] = VERSION;
            if let Ok(session) = Session::decode(bytes.clone().into()) {
                prop_assert_eq!(session.encode(), bytes);
            }
        }

        #[test]
        fn differences_survive(from: u64, to: u64) {
            prop_assert_eq!(unzigzag(from, zigzag(from, to)), to);
        }
    }

    #[test]
    fn a_full_window_of_an_ordinary_session_is_small() {
        let kept = |seq: u64| Kept {
            body: u64::MAX - seq,
            point: Point { term: 7, index: 1_000_000_000 + 40 * seq },
            revision: 900_000_000 + 35 * seq,
            outcome: Outcome::Put,
        };
        let session = Session {
            last_used: (1 << 40, 2_000_000_000),
            issued: 1 << 41,
            floor: 1 << 30,
            kept: (1..=SESSION_WINDOW).map(|seq| ((1 << 30) + seq, kept(seq))).collect(),
        };
        assert!(session.encode().len() <= 16 << 10, "{}", session.encode().len());
    }

    #[test]
    fn other_versions_are_refused() {
        let rows = [
            (Session::default().encode(), VERSION, WHAT),
            (encode_clock(LogTime::default()), CLOCK_VERSION, "group clock"),
            (encode_horizon(7), codec::VERSION, "horizon"),
        ];
        for (row, version, what) in rows {
            let read = |version: u8| {
                let row = Bytes::from([&[version], &row[1..]].concat());
                match what {
                    WHAT => Session::decode(row).map(drop),
                    "group clock" => decode_clock(row).map(drop),
                    _ => decode_horizon(row).map(drop),
                }
            };
            assert_eq!(read(version), Ok(()));
            let found = |version: u8| (what, "version", u64::from(version));
            let (what, field, found) = found(version - 1);
            assert_eq!(read(version - 1), Err(CodecError::Unknown { what, field, found }));
            assert_eq!(read(version + 1), Err(CodecError::Newer { what, field, found: found + 2 }));
        }
    }
}
