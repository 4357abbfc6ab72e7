//! What one node keeps, on kv-storage: records, node clocks, dot logs with the requests that were taken, and
//! hints. Every change is
//! short and synchronous under the lock of one ring partition: load, merge, one batch, commit. Rows that are
//! not in memory are read before, without the lock ([`rows`]), until the deadline of the caller. The position
//! that comes back must be durable before anything about it leaves the node; the callers see to that.
//!
//! Invariants: a dot is minted in the batch that writes its value; its counter never goes back; a node clock
//! never claims a dot whose write is not in the same or an earlier batch; hints that counted are removed by
//! delivery alone, or with their namespace; what is counted of hints is what was committed, under the lock of
//! their ring partition.
//!
//! A record is stored without what the node clock says anyway, and filled with it when it is loaded
//! (`kv_types::causal::primary`): a deleted key has no row. Row and clock are therefore read under one lock,
//! or the one would speak for the other's past; and both must be durable before the filled record is shown
//! ([`settling`]). Hints are kept as they came, and are never filled.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kv_env::Env;
use kv_storage::{Batch, Position, Row, RowChunk, Storage, TableId};
use kv_types::catalogue::{Catalogue, token};
use kv_types::causal::primary::{self, Change};
use kv_types::causal::{Context, Hlc, NodeClock, Seen, State};
use kv_types::limits::MAX_CLOCK_SKEW;
use kv_types::{Failure, Incarnation, Mutation, NamespaceId, NodeId, Reason};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::layout::{
    AHEAD, CLOCKS, CONFLICTS, ClockRow, DOT_LOG, INCARNATION, Place, RECORDS, Slice, WHOLE, key_after,
    prefix_end,
};
use crate::limits;

mod copy;
mod dot_log;
mod gaps;
mod held;
mod hints;
mod mint;
mod pull;
mod pulling;
mod put_back;
mod readable;
mod removal;
mod requests;
mod rows;
mod settling;
mod strip;

use copy::Copy;
pub(crate) use dot_log::Compared;
use held::Held;
pub(crate) use mint::nothing_to_delete;
use pulling::Pulling;
pub(crate) use removal::{List, Removed};
use requests::Requests;
use rows::{Rows, Stop, Want, in_time, lock};
pub(crate) use rows::{is_too_large, storage_failure};
use settling::Settling;

/// What a write supersedes.
#[derive(Debug, Clone)]
pub(crate) enum Supersedes {
    /// What an earlier read saw.
    Seen(Seen),
    /// What the coordinating replica sees now.
    Observed,
    /// Nothing.
    Nothing,
}

/// A client's write, checked.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) mutation: Mutation,
    /// A checksum of what is asked for.
    pub(crate) body: u32,
    /// None deletes.
    pub(crate) value: Option<Bytes>,
    pub(crate) supersedes: Supersedes,
}

impl Order {
    /// Whether the client sent it before: it may have been taken, without a trace here.
    pub(crate) fn is_resent(&self) -> bool {
        self.mutation.attempt > 1
    }
}

/// As what a node mints.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role<'a> {
    Primary,
    /// In place of all of these.
    Fallback(&'a [NodeId]),
}

/// A write that is in the log.
#[derive(Debug)]
pub(crate) struct Minted {
    /// What the replicas have to merge: filled, if a primary minted it.
    pub(crate) state: State,
    /// What the client may say it has seen: its write and what that superseded, never a value it has not
    /// seen.
    pub(crate) covered: Seen,
    pub(crate) position: Position,
    /// The request had been taken before.
    pub(crate) deduplicated: bool,
}

/// What one ring partition here looks like to a reader.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SliceDigest {
    pub(crate) digest: u64,
    pub(crate) keys: u64,
    pub(crate) with_siblings: u64,
}

#[derive(Debug, Clone, Default)]
struct Partition {
    clock: NodeClock,
    /// The last dot minted here under the present incarnation.
    counter: u64,
    /// Rows of the list of keys that have siblings.
    conflicts: u64,
    /// Requests that were issued before this may have been forgotten: too long ago to be sent again, or too
    /// many have come since.
    forgotten_ms: u64,
    /// Rows of the list of records that are ahead of the clock.
    ahead: u64,
    /// What those claim, with what of it the clock has: in memory alone. Never less than they claim, but for
    /// those that were not looked at since the start.
    claimed: Arc<Context>,
    /// What other primaries have and the clock had not, when they were asked: in memory alone.
    heard: Arc<Context>,
    /// What the dot log has.
    logged: dot_log::Length,
    /// The last entry of the dot log when the clock was written down last, and [`Self::forgotten_ms`] then.
    written: u64,
    forgotten_written_ms: u64,
    /// How far the dot log has come with the other primaries.
    marks: Arc<dot_log::Marks>,
    /// Where the log stands: what must be durable before a record is shown.
    settling: Settling,
    /// While the ring partition is pulled from a source.
    pulling: Option<Arc<Pulling>>,
    /// What sources had, but for the keys that this node cannot take.
    pulled: Option<Arc<Pulling>>,
    /// Pulls that were given up, while this node does not serve the ring partition.
    given_up: Vec<Arc<Pulling>>,
}

impl Partition {
    /// A copy as it may be merged, shown or sent, of the row of this moment.
    fn fill(&self, place: &Place, stored: Option<State>) -> State {
        let mut state = primary::load(stored, &self.clock);
        self.passed(place).for_each(|pulled| state.record.fill(&pulled.clock));
        state
    }

    /// The pulls that have passed a key.
    fn passed(&self, place: &Place) -> impl Iterator<Item = &Arc<Pulling>> {
        let all = self.pulling.iter().chain(&self.pulled).chain(&self.given_up);
        all.filter(|pulled| pulled.has_passed(place))
    }

    /// The copy of this moment, durable or not.
    fn copy(&self, place: &Place, stored: Option<(State, Position)>) -> Copy {
        let at = stored.as_ref().map_or(Position::DURABLE, |(_, position)| *position);
        let state = self.fill(place, stored.map(|(state, _)| state));
        Copy { known: true, state, position: self.settling.changed().max(at) }
    }

    /// A copy to be shown: of this moment if all of it is durable; else, if the row is, filled with what of
    /// the clock is. So the reader of a key does not wait for the writes of others.
    fn shown(
        &self,
        place: &Place,
        stored: Option<(State, Position)>,
        is_durable: impl Fn(Position) -> bool,
    ) -> Copy {
        if is_durable(self.settling.changed()) {
            return self.copy(place, stored);
        }
        let position = self.settling.needed_by(stored.as_ref().map(|(_, position)| *position));
        if !is_durable(position) {
            return self.copy(place, stored);
        }
        let mut clock = self.clock.dots().clone();
        clock.subtract(&self.settling.unsettled(is_durable));
        let mut state = stored.map(|(state, _)| state).unwrap_or_default();
        state.record.context.merge(&clock);
        self.passed(place).for_each(|pulled| state.record.fill(&pulled.clock));
        Copy { known: true, state, position }
    }
}

type Guarded = rows::Guarded<Partition>;

/// One node's share of all rings.
pub(crate) struct Replica {
    storage: Storage,
    env: Env,
    /// Which namespaces were deleted.
    catalogue: watch::Receiver<Arc<Catalogue>>,
    /// Of this start.
    incarnation: Incarnation,
    partitions: Mutex<BTreeMap<Slice, Arc<Mutex<Guarded>>>>,
    stamp: Mutex<Hlc>,
    held: Mutex<Held>,
    /// Requests issued before this cannot be told from new ones: their traces may have been lost.
    proves_since_ms: Mutex<u64>,
    /// The wall clock when this directory was opened.
    opened_ms: u64,
    /// The dot logs were damaged at this start: what they knew of requests is gone.
    damaged: bool,
    /// Another node returned a write of this directory that it does not know: it was put back to an older
    /// state.
    put_back: AtomicBool,
    /// A hint was added.
    pub(crate) hinted: Notify,
}

fn corrupt(what: &str) -> Failure {
    Failure::new(Reason::StorageFailed, format!("a row of {what} cannot be read"))
}

impl Replica {
    /// Opens what the directory holds, under a new incarnation: a dot must never be minted twice, whatever
    /// became of the directory meanwhile. A fresh or damaged one is moreover not whole: what was lost must
    /// not be taken for what never was.
    ///
    /// Not covered: a whole directory that was put back to an older state proves its mark, and speaks for
    /// what it has forgotten until a write or a clock of another node names a dot of it that it does not know
    /// ([`Self::stage_put_back`]).
    pub(crate) async fn open(
        storage: Storage,
        env: Env,
        catalogue: watch::Receiver<Arc<Catalogue>>,
        tier_lost: bool,
        hint_bytes_max: u64,
    ) -> Result<Self, Failure> {
        let known = storage.small_get(INCARNATION).filter(|_| !tier_lost);
        let directory = match known.and_then(|bytes| <[u8; 8]>::try_from(bytes.as_ref()).ok()) {
            Some(bytes) => Incarnation(u64::from_be_bytes(bytes)),
            None => begin_anew(&storage, &env).await?,
        };
        let mut replica = Self {
            incarnation: incarnation_of(directory, &env),
            partitions: Mutex::default(),
            stamp: Mutex::default(),
            held: Mutex::new(Held::new(hint_bytes_max)),
            proves_since_ms: Mutex::new(u64::MAX),
            opened_ms: env.clock.wall_ms(),
            damaged: false,
            put_back: AtomicBool::new(false),
            hinted: Notify::new(),
            storage,
            env,
            catalogue,
        };
        if !replica.load_partitions().await? {
            tracing::error!(
                "the disk has lost entries of the dot logs: the directory begins anew, and pulls"
            );
            replica.damaged = true;
            replica.incarnation =
                incarnation_of(begin_anew(&replica.storage, &replica.env).await?, &replica.env);
            if !replica.load_partitions().await? {
                return Err(corrupt("the dot logs"));
            }
        }
        if kv_types::mutant!(HintsInMemoryOnly) {
            replica.lose_hints().await?;
        }
        replica.count_hints().await?;
        if let Some(since) = replica.whole_since() {
            *lock(&replica.proves_since_ms) = since;
        }
        Ok(replica)
    }

    /// Since when this directory can prove what it took, if it is known to lack nothing.
    fn whole_since(&self) -> Option<u64> {
        let mut mark = self.storage.small_get(WHOLE)?;
        let incarnation = Incarnation(mark.try_get_u64().ok()?);
        mark.try_get_u64().ok().filter(|_| put_back::are_of_one(incarnation, self.incarnation))
    }

    /// Whether this directory is known to lack nothing that others rely on.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole_since().is_some()
    }

    /// Writes down that this directory lacks nothing. `pulled`: others had to give it what it lacked.
    /// Returns how long requests that are issued now cannot yet be told from those that were taken before the
    /// loss.
    pub(crate) async fn set_whole(&self, pulled: bool) -> Result<Duration, Failure> {
        self.refuse_put_back()?;
        let (since, skew) = self.proves_since(pulled);
        let mut mark = BytesMut::new();
        mark.put_u64(self.incarnation.0);
        mark.put_u64(since);
        let position = self.storage.commit(Batch::new().small_put(WHOLE, mark)).map_err(storage_failure)?;
        self.durable(position).await?;
        *lock(&self.proves_since_ms) = since;
        Ok(skew)
    }

    /// As [`Self::set_whole`] of a pull, until the next start: that pulls again.
    pub(crate) fn set_whole_for_now(&self) -> Result<Duration, Failure> {
        self.refuse_put_back()?;
        let (since, skew) = self.proves_since(true);
        *lock(&self.proves_since_ms) = since;
        Ok(skew)
    }

    fn proves_since(&self, pulled: bool) -> (u64, Duration) {
        let pulled = pulled || self.damaged;
        let skew = if pulled { MAX_CLOCK_SKEW } else { Duration::ZERO };
        let since = if pulled { self.env.clock.wall_ms().saturating_add(skew.as_millis() as u64) } else { 0 };
        (since, skew)
    }

    /// Refuses to write for a namespace that was deleted, under the lock of the ring partition: once this
    /// node knows of the deletion nothing is added to what is removed.
    fn refuse_deleted(&self, namespace: NamespaceId) -> Result<(), Failure> {
        match self.catalogue.borrow().was_deleted(namespace) {
            true => Err(Failure::new(Reason::NamespaceUnknown, format!("{namespace} was deleted"))),
            false => Ok(()),
        }
    }

    /// Whether everything up to there is fsynced.
    pub(crate) fn is_durable(&self, position: Position) -> bool {
        self.storage.is_durable(position)
    }

    /// Waits until everything up to there is fsynced.
    pub(crate) async fn durable(&self, position: Position) -> Result<(), Failure> {
        self.storage.durable(position).await.map_err(storage_failure)
    }

    /// Reads the node clocks and the dot logs, and counts what the partitions need to know from the start.
    /// Whether nothing is lost of what the clocks need.
    async fn load_partitions(&self) -> Result<bool, Failure> {
        let mut loaded: BTreeMap<Slice, Partition> = BTreeMap::new();
        let mut unreadable = None;
        each_row(&self.storage, CLOCKS, |key, value| {
            let mut key = key.as_ref();
            match (Slice::read(&mut key), ClockRow::decode(value)) {
                (Some(slice), Ok(row)) if key.is_empty() => {
                    let partition = loaded.entry(slice).or_default();
                    (partition.written, partition.forgotten_ms) = (row.entry, row.forgotten_ms);
                    partition.forgotten_written_ms = row.forgotten_ms;
                    partition.clock = row.clock;
                }
                (_, Err(why)) => unreadable = Some(why),
                _ => unreadable = Some("the key of a node clock cannot be read"),
            }
        })
        .await?;
        if let Some(why) = unreadable {
            return Err(Failure::new(Reason::StorageFailed, why));
        }
        each_row(&self.storage, CONFLICTS, |key, _| {
            if let Some(place) = Place::of_record_key(key) {
                loaded.entry(place.slice).or_default().conflicts += 1;
            }
        })
        .await?;
        each_row(&self.storage, AHEAD, |key, _| {
            if let Some(place) = Place::of_record_key(key) {
                loaded.entry(place.slice).or_default().ahead += 1;
            }
        })
        .await?;
        for stream in self.storage.streams(DOT_LOG, &[], &[u8::MAX; 9]) {
            let slice = Slice::read(&mut stream.as_ref()).ok_or_else(|| corrupt("the dot logs"))?;
            loaded.entry(slice).or_default();
        }
        let mut known = BTreeMap::new();
        for (slice, mut partition) in loaded {
            let mut requests = Requests::default();
            if !self.load_log(slice, &mut partition, &mut requests).await? {
                return Ok(false);
            }
            partition.counter = match kv_types::mutant!(IncarnationReused) {
                true => 0,
                false => partition.clock.highest(self.incarnation),
            };
            known.insert(slice, Arc::new(Mutex::new(Guarded::new(partition, requests))));
        }
        *lock(&self.partitions) = known;
        Ok(true)
    }

    fn partition(&self, slice: Slice) -> Arc<Mutex<Guarded>> {
        let mut partitions = lock(&self.partitions);
        Arc::clone(partitions.entry(slice).or_default())
    }

    /// Runs an operation on a ring partition: see [`rows::run`].
    async fn run<T>(
        &self,
        slice: Slice,
        deadline: Instant,
        operation: impl FnMut(&mut Partition, &mut Rows<'_>) -> Result<T, Stop>,
    ) -> Result<T, Failure> {
        rows::run(&self.storage, self.partition(slice), deadline, operation).await
    }

    /// The row of a key: stripped.
    fn stored(&self, place: &Place, rows: &mut Rows<'_>) -> Result<Option<(State, Position)>, Stop> {
        Ok(rows.row(RECORDS, place.record_key())?.map(stored_of).transpose()?)
    }

    /// The rule of twins for what a read merged, with the requests that this node knows: records carry the
    /// last few only.
    pub(crate) fn bury_known(&self, place: &Place, merged: &mut State) {
        let token = token(place.namespace, &place.key);
        let partition = self.partition(place.slice);
        let guarded = lock(&partition);
        merged.bury_twins(|request| guarded.requests.dots_of(request, token));
    }

    /// The copy of a key, of a node that keeps the ring partition; none where only the tier can tell, or
    /// where it cannot be read.
    pub(crate) fn in_memory(&self, place: &Place) -> Option<Copy> {
        let partition = self.partition(place.slice);
        // Row and clock are of one moment.
        let guarded = lock(&partition);
        let row = self.storage.recent(RECORDS, &place.record_key())?;
        let stored = row.map(stored_of).transpose().ok()?;
        Some(guarded.state.shown(place, stored, |position| self.is_durable(position)))
    }

    /// The copy of a key, of a node that keeps the ring partition.
    pub(crate) async fn read(&self, place: &Place, deadline: Instant) -> Result<Copy, Failure> {
        let read = |partition: &mut Partition, rows: &mut Rows<'_>| {
            let stored = self.stored(place, rows)?;
            Ok(partition.shown(place, stored, |position| self.is_durable(position)))
        };
        self.run(place.slice, deadline, read).await
    }

    /// Merges what another node knows of a key. Returns what must be durable before this is acknowledged.
    pub(crate) async fn apply(
        &self,
        place: &Place,
        incoming: &State,
        bulk: bool,
        deadline: Instant,
    ) -> Result<Position, Failure> {
        let merge = |partition: &mut Partition, rows: &mut Rows<'_>| {
            self.apply_now(place, incoming, bulk, partition, rows)
        };
        let merged = self.run(place.slice, deadline, merge).await;
        if let Err(failure) = &merged {
            // A dot of this node itself may be the one.
            self.learn_of_reuse(place.slice, failure).await;
        }
        merged
    }

    fn apply_now(
        &self,
        place: &Place,
        incoming: &State,
        bulk: bool,
        partition: &mut Partition,
        rows: &mut Rows<'_>,
    ) -> Result<Position, Stop> {
        self.refuse_deleted(place.namespace)?;
        self.expect(place, partition, rows)?;
        let stored = self.stored(place, rows)?;
        let at = stored.as_ref().map_or(Position::DURABLE, |(_, position)| *position);
        let stored = stored.map(|(state, _)| state);
        let filled = partition.fill(place, stored.clone());
        self.refuse_reuse(incoming, &filled, partition, rows)?;
        let mut next = partition.clone();
        let token = token(place.namespace, &place.key);
        let mut known = |request| rows.requests().dots_of(request, token);
        let change = primary::merge(Some(filled), incoming, &mut next.clock, &mut known);
        self.refuse_gaps(&change, partition)?;
        if !self.stage(place, stored.as_ref(), &change, &mut next, rows)? {
            return Ok(partition.settling.changed().max(at));
        }
        let new = change.new.iter().map(|(dot, _)| *dot);
        let put_back = self.stage_put_back(place.slice, new, partition, rows);
        let position = rows.commit(bulk && !put_back)?;
        self.settle(&mut next, position, &change);
        *partition = next;
        for (dot, write) in &change.new {
            tracing::debug!(%place, %dot, request = %write.request, "merged");
        }
        Ok(position)
    }

    /// Notes a change that was committed.
    fn settle(&self, next: &mut Partition, position: Position, change: &Change) {
        let new = change.new.iter().map(|(dot, _)| *dot);
        next.settling.change(position, change.row.is_none(), new, |position| self.is_durable(position));
    }

    /// Looks for the rows that a change of a record needs, so that what is missing is read together.
    fn expect(&self, place: &Place, partition: &Partition, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let key = place.record_key().freeze();
        // Without a key in the list this one is not in it.
        let listed = (partition.conflicts > 0).then(|| Want::Row(CONFLICTS, key.clone()));
        rows.expect(listed.into_iter().chain([Want::Row(RECORDS, key)]))
    }

    /// Prepares the batch by which a record replaces the one before it, with the lists that it stands in and
    /// what is new in the dot log. False if nothing changes.
    ///
    /// Errors: of [`readable::row_of`].
    ///
    /// A row carries the last few superseded writes of its key ([`State::carry`]): the requests do not tell
    /// by key which there were. Those of a deleted key have no row, and are known by their requests alone.
    fn stage(
        &self,
        place: &Place,
        stored: Option<&State>,
        change: &Change,
        next: &mut Partition,
        rows: &mut Rows<'_>,
    ) -> Result<bool, Stop> {
        let mut row = change.row.clone();
        row.iter_mut().for_each(|row| row.carry(change.state.applied()));
        let listing = self.stage_listing(place, &change.state, next, rows)?;
        if stored == row.as_ref() && change.new.is_empty() && !listing {
            return Ok(false);
        }
        self.stage_ahead(place, stored, row.as_ref(), next, rows);
        match &row {
            Some(row) => rows.put(RECORDS, place.record_key(), readable::row_of(row)?),
            None if stored.is_some() => rows.delete(RECORDS, place.record_key()),
            None => {}
        }
        self.stage_log(place, &change.new, next, rows);
        Ok(true)
    }

    /// Keeps the list of keys with siblings true; whether it changes.
    fn stage_listing(
        &self,
        place: &Place,
        state: &State,
        next: &mut Partition,
        rows: &mut Rows<'_>,
    ) -> Result<bool, Stop> {
        let conflict = state.record.siblings.len() > 1 && state.record.values().len() > 1;
        let listed = next.conflicts > 0 && rows.row(CONFLICTS, place.record_key())?.is_some();
        match (listed, conflict) {
            (false, true) => {
                next.conflicts += 1;
                rows.put(CONFLICTS, place.record_key(), Bytes::new());
            }
            (true, false) => {
                next.conflicts -= 1;
                rows.delete(CONFLICTS, place.record_key());
            }
            _ => {}
        }
        Ok(listed != conflict)
    }

    /// Rows of a table, read for the background.
    async fn page_of(&self, table: TableId, from: &[u8], to: Option<&[u8]>) -> Result<RowChunk, Failure> {
        page_of(&self.storage, table, from, to).await
    }

    /// What a reader of one namespace could see in a ring partition here.
    pub(crate) async fn digest(&self, slice: Slice, namespace: NamespaceId) -> Result<SliceDigest, Failure> {
        let prefix = slice.namespace_prefix(namespace);
        let to = prefix_end(&prefix);
        let mut digest = SliceDigest::default();
        let mut from = prefix.to_vec();
        loop {
            let chunk = self.page_of(RECORDS, &from, to.as_deref()).await?;
            for (key, row) in &chunk.rows {
                let place = Place::of_record_key(key).ok_or_else(|| corrupt("the records"))?;
                let state = State::decode(row.value.clone()).map_err(|error| corrupt(&error.to_string()))?;
                digest.digest ^= state.record.digest(namespace, &place.key);
                let values = state.record.values().len();
                digest.keys += u64::from(values > 0);
                digest.with_siblings += u64::from(values > 1);
            }
            match chunk.rows.last() {
                Some((last, _)) if chunk.more => from = key_after(last),
                _ => return Ok(digest),
            }
        }
    }

    /// How many keys have more than one value here.
    pub(crate) fn keys_with_siblings(&self) -> u64 {
        let known = lock(&self.partitions).clone();
        known.values().map(|guarded| lock(guarded).state.conflicts).sum()
    }
}

fn stored_of(row: Row) -> Result<(State, Position), Failure> {
    let state = State::decode(row.value).map_err(|error| corrupt(&error.to_string()))?;
    Ok((state, row.position))
}

/// The incarnation of this start of a directory.
fn incarnation_of(directory: Incarnation, env: &Env) -> Incarnation {
    match kv_types::mutant!(IncarnationReused) {
        true => directory,
        false => put_back::incarnation_of(directory, env.entropy.next_u64()),
    }
}

/// Begins a directory that is new, or has lost something. What is left of the node clocks and the dot logs
/// may claim writes that are gone. The other tables stay: what is left of them is true, and merging what is
/// pulled completes them. Records that were stripped by a clock that is gone claim less than they could,
/// which is no untruth.
async fn begin_anew(storage: &Storage, env: &Env) -> Result<Incarnation, Failure> {
    let directory = Incarnation(env.entropy.next_u64().max(1));
    let mut batch = Batch::new().small_put(INCARNATION, directory.0.to_be_bytes()).small_delete(WHOLE);
    each_row(storage, CLOCKS, |key, _| batch.push_delete(CLOCKS, key)).await?;
    for stream in storage.streams(DOT_LOG, &[], &[u8::MAX; 9]) {
        let last = storage.stream_bounds(DOT_LOG, &stream).1.unwrap_or(0);
        batch.push_trim(DOT_LOG, &stream, last + 1);
    }
    let position = storage.commit(batch).map_err(storage_failure)?;
    storage.durable(position).await.map_err(storage_failure)?;
    tracing::info!(%directory, "a directory begins anew");
    Ok(directory)
}

/// Rows of a table, read for the background or at a start.
async fn page_of(
    storage: &Storage,
    table: TableId,
    from: &[u8],
    to: Option<&[u8]>,
) -> Result<RowChunk, Failure> {
    let deadline = Instant::now() + limits::BACKGROUND_READ;
    in_time(deadline, storage.read_range(table, from, to, limits::SCAN_ROWS, limits::SCAN_BYTES)).await
}

/// Calls for every row of a table.
async fn each_row(
    storage: &Storage,
    table: TableId,
    mut each: impl FnMut(&Bytes, Bytes),
) -> Result<(), Failure> {
    let mut from = Vec::new();
    loop {
        let chunk = page_of(storage, table, &from, None).await?;
        let last = chunk.rows.last().map(|(key, _)| key_after(key));
        chunk.rows.into_iter().for_each(|(key, row)| each(&key, row.value));
        match last {
            Some(last) if chunk.more => from = last,
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
