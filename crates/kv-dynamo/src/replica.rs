//! What one node keeps, on kv-storage: records, node clocks, the request table and hints. Everything here is
//! short and synchronous under the lock of one ring partition: load, merge, one batch, commit. The position
//! that comes back must be durable before anything about it leaves the node; the callers see to that.
//!
//! Invariants: a dot is minted in the batch that writes its value; its counter never goes back; a node clock
//! never claims a dot whose write is not in the same or an earlier batch; hints that counted are removed by
//! delivery alone; what is counted of hints is what was committed, under the lock of their ring partition.
//!
//! Node clocks are kept on disk from the first day, but contexts are not yet filled from them, nor stripped
//! by them: a deleted key keeps a record without values. Both belong into `load` and `stage`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kv_env::Env;
use kv_storage::{Batch, Position, Storage, StorageError};
use kv_types::catalogue::token;
use kv_types::causal::{Context, Dot, Hlc, Minter, NodeClock, RECENT_WRITES, Sibling, State, Write};
use kv_types::limits::{MAX_CLOCK_SKEW, MAX_SIBLINGS, REQUEST_WINDOW};
use kv_types::{Failure, Incarnation, Mutation, NamespaceId, NodeId, Reason, RequestId};
use tokio::sync::Notify;

use crate::layout::{
    CLOCKS, CONFLICTS, Hint, INCARNATION, Place, RECORDS, REQUEST_TIMES, REQUESTS, Slice, Taken, WHOLE,
    of_request_time_key, prefix_end,
};
use crate::limits;

mod hints;

pub(crate) use hints::Due;
use hints::Held;

/// What a write supersedes.
#[derive(Debug, Clone)]
pub(crate) enum Supersedes {
    /// What an earlier read saw.
    Seen(Context),
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
    /// What the replicas have to merge.
    pub(crate) state: State,
    /// What the client may say it has seen: its write and what that superseded, never a value it has not
    /// seen.
    pub(crate) covered: Context,
    pub(crate) position: Position,
    /// The request had been taken before.
    pub(crate) deduplicated: bool,
}

/// A node's copy of a key.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    /// There is a copy, perhaps one without values.
    pub(crate) known: bool,
    pub(crate) state: State,
    pub(crate) position: Position,
}

/// A page of a ring partition.
pub(crate) struct Page {
    pub(crate) records: Vec<(Place, Bytes)>,
    pub(crate) position: Position,
    /// The last key, when more may follow.
    pub(crate) next: Option<Bytes>,
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
    /// Rows of the request table.
    requests: u64,
}

/// One node's share of all rings.
pub(crate) struct Replica {
    storage: Storage,
    env: Env,
    incarnation: Incarnation,
    hint_bytes_max: u64,
    partitions: Mutex<BTreeMap<Slice, Arc<Mutex<Partition>>>>,
    stamp: Mutex<Hlc>,
    held: Mutex<BTreeMap<NodeId, Held>>,
    /// Requests issued before this cannot be told from new ones: their traces may have been lost.
    proves_since_ms: Mutex<u64>,
    /// Another node returned a write of this incarnation that the directory does not know: it was put back to
    /// an older state, and any dot that it mints may be used already.
    put_back: AtomicBool,
    /// A hint was added.
    pub(crate) hinted: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn storage_failure(error: StorageError) -> Failure {
    let reason = match &error {
        StorageError::Overloaded { .. } => Reason::Overloaded,
        StorageError::LogFull { .. } | StorageError::DiskFull { .. } | StorageError::TooLarge { .. } => {
            Reason::LimitStorage
        }
        _ => Reason::StorageFailed,
    };
    let failure = Failure::new(reason, error.to_string());
    if reason == Reason::Overloaded { failure.retry_after_ms(50) } else { failure }
}

fn corrupt(what: &str) -> Failure {
    Failure::new(Reason::StorageFailed, format!("a row of {what} cannot be read"))
}

impl Replica {
    /// Opens what the directory holds. A fresh or damaged directory gets a new incarnation: a dot must never
    /// be minted twice, and what was lost must not be taken for what never was.
    pub(crate) async fn open(
        storage: Storage,
        env: Env,
        tier_lost: bool,
        hint_bytes_max: u64,
    ) -> Result<Self, Failure> {
        let known = storage.small_get(INCARNATION).filter(|_| !tier_lost);
        let incarnation = match known.and_then(|bytes| <[u8; 8]>::try_from(bytes.as_ref()).ok()) {
            Some(bytes) => Incarnation(u64::from_be_bytes(bytes)),
            None => {
                let incarnation = Incarnation(env.entropy.next_u64().max(1));
                let mut batch =
                    Batch::new().small_put(INCARNATION, incarnation.0.to_be_bytes()).small_delete(WHOLE);
                for (key, _) in storage.small_scan(b"dynamo/dot/") {
                    batch.push_small_delete(key);
                }
                // What is left of the node clocks may claim writes that are gone. The other tables stay: what
                // is left of them is true, and merging what is pulled completes them.
                for (key, _) in storage.scan(CLOCKS, &[], None, usize::MAX).map_err(storage_failure)? {
                    batch.push_delete(CLOCKS, key);
                }
                let position = storage.commit(batch).map_err(storage_failure)?;
                storage.durable(position).await.map_err(storage_failure)?;
                tracing::info!(%incarnation, tier_lost, "a new incarnation begins");
                incarnation
            }
        };
        let replica = Self {
            incarnation,
            hint_bytes_max,
            partitions: Mutex::default(),
            stamp: Mutex::default(),
            held: Mutex::default(),
            proves_since_ms: Mutex::new(u64::MAX),
            put_back: AtomicBool::new(false),
            hinted: Notify::new(),
            storage,
            env,
        };
        if kv_types::mutant!(HintsInMemoryOnly) {
            replica.lose_hints()?;
        }
        replica.count_hints()?;
        if let Some(since) = replica.whole_since() {
            *lock(&replica.proves_since_ms) = since;
        }
        Ok(replica)
    }

    /// Since when this incarnation can prove what it took, if it is known to lack nothing.
    fn whole_since(&self) -> Option<u64> {
        let mut mark = self.storage.small_get(WHOLE)?;
        let incarnation = Incarnation(mark.try_get_u64().ok()?);
        mark.try_get_u64().ok().filter(|_| incarnation == self.incarnation)
    }

    /// Whether this incarnation is known to lack nothing that others rely on.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole_since().is_some()
    }

    /// Writes down that this incarnation lacks nothing. `pulled`: others had to give it what it lacked.
    /// Returns how long requests that are issued now cannot yet be told from those that were taken before the
    /// loss.
    pub(crate) async fn set_whole(&self, pulled: bool) -> Result<Duration, Failure> {
        self.refuse_put_back()?;
        let skew = if pulled { MAX_CLOCK_SKEW } else { Duration::ZERO };
        let since = if pulled { self.env.clock.wall_ms().saturating_add(skew.as_millis() as u64) } else { 0 };
        let mut mark = BytesMut::new();
        mark.put_u64(self.incarnation.0);
        mark.put_u64(since);
        let position = self.storage.commit(Batch::new().small_put(WHOLE, mark)).map_err(storage_failure)?;
        self.durable(position).await?;
        *lock(&self.proves_since_ms) = since;
        Ok(skew)
    }

    /// Whether this directory turned out to have been put back to an older state. Nothing is minted then, and
    /// nothing spoken for, until the next start, which begins a new incarnation and pulls.
    pub(crate) fn is_put_back(&self) -> bool {
        self.put_back.load(Ordering::Acquire)
    }

    fn refuse_put_back(&self) -> Result<(), Failure> {
        if !self.is_put_back() {
            return Ok(());
        }
        // Not STORAGE_FAILED: that leaves the fate of the request open, and it is not.
        let message = "the data directory was put back to an older state: restart this node, it then begins anew and pulls";
        Err(Failure::new(Reason::NotReady, message))
    }

    /// Lets the batch forget who this directory is, if it was put back: a counter of this incarnation is
    /// known elsewhere that it does not know itself.
    fn stage_put_back(&self, slice: Slice, mine: u64, next: &mut Partition, batch: &mut Batch) -> bool {
        if mine <= next.counter {
            return false;
        }
        next.counter = mine;
        batch.push_small_put(slice.counter_key(), self.counter_mark(mine));
        batch.push_small_delete(WHOLE);
        batch.push_small_delete(INCARNATION);
        // At once, even should the batch be refused: then the same write comes again.
        if !self.put_back.swap(true, Ordering::AcqRel) {
            tracing::error!(
                ?slice,
                counter = mine,
                "another node returned a write that this directory has lost: it was put back to an older state; this node \
                 mints and serves nothing more until it is restarted and has pulled"
            );
        }
        true
    }

    /// Waits until everything up to there is fsynced.
    pub(crate) async fn durable(&self, position: Position) -> Result<(), Failure> {
        self.storage.durable(position).await.map_err(storage_failure)
    }

    fn partition(&self, slice: Slice) -> Result<Arc<Mutex<Partition>>, Failure> {
        let mut partitions = lock(&self.partitions);
        if let Some(partition) = partitions.get(&slice) {
            return Ok(Arc::clone(partition));
        }
        let mut loaded = Partition::default();
        if let Some(row) = self.storage.get(CLOCKS, &slice.clock_key()).map_err(storage_failure)? {
            let mut value = row.value;
            loaded.requests = value.try_get_u64().map_err(|_| corrupt("the node clocks"))?;
            loaded.clock = NodeClock::decode(value).map_err(|_| corrupt("the node clocks"))?;
        }
        let minted = self.storage.small_get(&slice.counter_key()).and_then(|mut bytes| {
            let incarnation = Incarnation(bytes.try_get_u64().ok()?);
            bytes.try_get_u64().ok().filter(|_| incarnation == self.incarnation)
        });
        loaded.counter = minted.unwrap_or(0).max(loaded.clock.highest(self.incarnation));
        if kv_types::mutant!(IncarnationReused) {
            loaded.counter = 0;
        }
        let partition = Arc::new(Mutex::new(loaded));
        partitions.insert(slice, Arc::clone(&partition));
        Ok(partition)
    }

    fn load(&self, place: &Place) -> Result<Copy, Failure> {
        let Some(row) = self.storage.get(RECORDS, &place.record_key()).map_err(storage_failure)? else {
            return Ok(Copy::default());
        };
        let state = State::decode(row.value).map_err(|error| corrupt(&error.to_string()))?;
        Ok(Copy { known: true, state, position: row.position })
    }

    fn taken(&self, slice: Slice, request: RequestId) -> Result<Option<(Taken, Position)>, Failure> {
        let row = self.storage.get(REQUESTS, &slice.request_key(request)).map_err(storage_failure)?;
        row.map(|row| {
            Taken::decode(row.value).map(|taken| (taken, row.position)).ok_or_else(|| corrupt("the requests"))
        })
        .transpose()
    }

    /// The rule of twins for what a read merged, with the requests that this node knows: records carry the
    /// last few only.
    pub(crate) fn bury_known(&self, place: &Place, merged: &mut State) {
        merged.bury_twins(|request| match self.taken(place.slice, request) {
            Ok(Some((taken, _))) => taken.dots,
            // What cannot be known shows both; nothing is lost by it.
            Ok(None) | Err(_) => Vec::new(),
        });
    }

    /// The stored copy of a key, of a node that keeps the ring partition.
    pub(crate) fn read(&self, place: &Place) -> Result<Copy, Failure> {
        let partition = self.partition(place.slice)?;
        let _order = lock(&partition);
        self.load(place)
    }

    /// Takes a client's write: mints its dot and logs it, or finds that it was taken before.
    pub(crate) fn mint(&self, place: &Place, role: Role<'_>, order: &Order) -> Result<Minted, Failure> {
        let partition = self.partition(place.slice)?;
        let mut partition = lock(&partition);
        let request = order.mutation.request_id;
        let before = match role {
            Role::Primary => self.load(place)?,
            Role::Fallback(targets) => self.raw(place, targets)?,
        };
        if let Some(mut minted) = self.taken_before(place, role, order, &before)? {
            if let Role::Fallback(targets) = role {
                // The request is here already: a refusal now cannot promise that it will not be applied.
                let position =
                    self.complete_hints(place, targets, request, &minted).map_err(Failure::after_sending)?;
                minted.position = minted.position.max(position);
            }
            return Ok(minted);
        }
        self.refuse_put_back()?;
        self.admit(&partition, role, order)?;
        let supersedes = match &order.supersedes {
            Supersedes::Seen(context) if context.highest(self.incarnation) > partition.counter => {
                return Err(Failure::new(
                    Reason::BadContext,
                    "the causal context names writes that were never made",
                ));
            }
            Supersedes::Seen(context) => context.clone(),
            // A resend may be a twin of a write that was acknowledged elsewhere and superseded since: what is
            // observed now is not what the client meant, and may be what superseded it.
            Supersedes::Observed if order.is_resent() && !kv_types::mutant!(ObservedResendSupersedes) => {
                Context::new()
            }
            Supersedes::Observed => before.state.record.context.clone(),
            Supersedes::Nothing => Context::new(),
        };
        let dot = Dot { incarnation: self.incarnation, counter: partition.counter + 1 };
        let stamp = self.stamp(&before.state);
        let sibling = order.value.clone().map(|value| Sibling { stamp, request, value });
        let minter = if matches!(role, Role::Primary) { Minter::Primary } else { Minter::Fallback };
        let mut state = before.state;
        state.record.update(&supersedes, dot, sibling, minter);
        let write = Write { request, issued_at_ms: order.mutation.issued_at_ms, body: order.body };
        state.writes.insert(dot, write);
        self.check_size(&state, order)?;
        let mut next = Partition { counter: dot.counter, ..partition.clone() };
        let mut batch = Batch::new();
        let mut growth = Vec::new();
        match role {
            Role::Primary => {
                self.stage(place, &mut state, &[(dot, write)], &mut next, &mut batch)?;
            }
            Role::Fallback(targets) => {
                state.trim_writes(RECENT_WRITES);
                let hint = Hint { counted: true, note: false, state: state.clone() };
                growth = self.stage_hints(place, targets, &hint, &mut batch)?;
            }
        }
        batch.push_small_put(place.slice.counter_key(), self.counter_mark(dot.counter));
        let position = self.commit(batch, false)?;
        self.account_all(&growth);
        *partition = next;
        drop(partition);
        tracing::debug!(%place, %dot, %request, ?role, "minted");
        if matches!(role, Role::Fallback(_)) {
            self.hinted.notify_one();
        }
        let mut covered = supersedes;
        covered.insert(dot);
        Ok(Minted { state, covered, position, deduplicated: false })
    }

    fn counter_mark(&self, counter: u64) -> BytesMut {
        let mut mark = BytesMut::with_capacity(16);
        mark.put_u64(self.incarnation.0);
        mark.put_u64(counter);
        mark
    }

    /// The proof that this request was taken before, if there is one.
    fn taken_before(
        &self,
        place: &Place,
        role: Role<'_>,
        order: &Order,
        before: &Copy,
    ) -> Result<Option<Minted>, Failure> {
        let request = order.mutation.request_id;
        let mut position = before.position;
        let (body, dots, same_key) = match role {
            Role::Primary => match self.taken(place.slice, request)? {
                Some((taken, at)) => {
                    position = position.max(at);
                    (taken.body, taken.dots, taken.token == token(place.namespace, &place.key))
                }
                None => return Ok(None),
            },
            Role::Fallback(_) => {
                let mine = before.state.writes.iter().filter(|(_, write)| write.request == request);
                let dots: Vec<Dot> = mine.clone().map(|(dot, _)| *dot).collect();
                match mine.map(|(_, write)| write.body).next() {
                    Some(body) => (body, dots, true),
                    None => return Ok(None),
                }
            }
        };
        if body != order.body || !same_key {
            let message = format!("request {request} was used before for something else");
            return Err(Failure::new(Reason::RequestIdReused, message));
        }
        // As the first answer said it. What the client states that it has seen is superseded by this write
        // wherever it was minted; what a replica observed then is not known any more.
        let mut covered = match &order.supersedes {
            Supersedes::Seen(context) => context.clone(),
            _ => Context::new(),
        };
        dots.into_iter().for_each(|dot| covered.insert(dot));
        Ok(Some(Minted { state: before.state.clone(), covered, position, deduplicated: true }))
    }

    /// Whether a new request may still be told from an old one, and has room.
    fn admit(&self, partition: &Partition, role: Role<'_>, order: &Order) -> Result<(), Failure> {
        let now = self.env.clock.wall_ms();
        let window = REQUEST_WINDOW.as_millis() as u64;
        let issued = order.mutation.issued_at_ms;
        if issued.saturating_add(window) < now {
            let message =
                "the request was issued too long ago to tell whether it was taken: read, then decide";
            return Err(Failure::new(Reason::RequestExpired, message).with("window_ms", window));
        }
        if issued > now.saturating_add(window) {
            let message = "the request claims to have been issued in the future: set the client's clock";
            return Err(Failure::new(Reason::RequestIdInvalid, message).with("window_ms", window));
        }
        if let Role::Fallback(targets) = role {
            return if targets.is_empty() {
                Err(Failure::new(Reason::Internal, "nobody to stand in for"))
            } else {
                Ok(())
            };
        }
        if issued < *lock(&self.proves_since_ms) {
            let message = "this replica lost its disk after the request was issued and cannot tell whether it was taken";
            return Err(Failure::new(Reason::RequestExpired, message));
        }
        if partition.requests >= limits::REQUESTS {
            let message = "the table of request ids of this ring partition is full";
            return Err(Failure::new(Reason::LimitRequests, message).with("limit", limits::REQUESTS));
        }
        Ok(())
    }

    fn check_size(&self, state: &State, order: &Order) -> Result<(), Failure> {
        let siblings = state.record.siblings.len();
        if order.value.is_some() && siblings > MAX_SIBLINGS {
            let message = format!(
                "the key would have {siblings} concurrent values: read it and write with its context"
            );
            return Err(Failure::new(Reason::LimitSiblings, message).with("limit", MAX_SIBLINGS));
        }
        let bytes: usize = state.record.siblings.values().map(|sibling| sibling.value.len()).sum();
        if order.value.is_some() && siblings > 1 && bytes > limits::RECORD_BYTES {
            let message = format!("the concurrent values of the key would have {bytes} bytes together");
            return Err(
                Failure::new(Reason::LimitSiblings, message).with("limit_bytes", limits::RECORD_BYTES)
            );
        }
        Ok(())
    }

    fn stamp(&self, before: &State) -> Hlc {
        let now = self.env.clock.wall_ms();
        let mut last = lock(&self.stamp);
        let seen = before.record.siblings.values().map(|sibling| sibling.stamp);
        let after = seen.fold(*last, |last, seen| Hlc::observe(last, seen, now));
        *last = Hlc::mint(after, now);
        *last
    }

    /// Merges what another node knows of a key. Returns what must be durable before this is acknowledged.
    pub(crate) fn apply(&self, place: &Place, incoming: &State, bulk: bool) -> Result<Position, Failure> {
        let partition = self.partition(place.slice)?;
        let mut partition = lock(&partition);
        let before = self.load(place)?;
        let mut state = before.state.clone();
        state.merge(incoming);
        let new: Vec<(Dot, Write)> = incoming
            .writes
            .iter()
            .filter(|(dot, _)| !partition.clock.has(**dot))
            .map(|(dot, write)| (*dot, *write))
            .collect();
        let mut next = partition.clone();
        let mut batch = Batch::new();
        let listed = self.stage(place, &mut state, &new, &mut next, &mut batch)?;
        if before.known && new.is_empty() && state == before.state && !listed {
            return Ok(before.position);
        }
        let mine = new
            .iter()
            .filter(|(dot, _)| dot.incarnation == self.incarnation)
            .map(|(dot, _)| dot.counter)
            .max();
        let put_back = self.stage_put_back(place.slice, mine.unwrap_or(0), &mut next, &mut batch);
        let position = self.commit(batch, bulk && !put_back)?;
        *partition = next;
        for (dot, write) in &new {
            tracing::debug!(%place, %dot, request = %write.request, "merged");
        }
        Ok(position)
    }

    /// Prepares the batch by which a record replaces the one before it: twins buried, requests remembered,
    /// the clock moved on. Says whether the list of keys with siblings changes.
    fn stage(
        &self,
        place: &Place,
        state: &mut State,
        new: &[(Dot, Write)],
        next: &mut Partition,
        batch: &mut Batch,
    ) -> Result<bool, Failure> {
        let mut failed = None;
        state.bury_twins(|request| match self.taken(place.slice, request) {
            Ok(taken) => taken.map(|(taken, _)| taken.dots).unwrap_or_default(),
            Err(failure) => {
                failed = Some(failure);
                Vec::new()
            }
        });
        if let Some(failure) = failed {
            return Err(failure);
        }
        state.trim_writes(RECENT_WRITES);
        batch.push_put(RECORDS, place.record_key(), state.encode());
        let conflict = state.record.siblings.len() > 1 && state.record.values().len() > 1;
        let listed = self.storage.get(CONFLICTS, &place.record_key()).map_err(storage_failure)?.is_some();
        match (listed, conflict) {
            (false, true) => batch.push_put(CONFLICTS, place.record_key(), []),
            (true, false) => batch.push_delete(CONFLICTS, place.record_key()),
            _ => {}
        }
        let forgotten = self.env.clock.wall_ms().saturating_sub(limits::REQUEST_KEPT.as_millis() as u64);
        let mut rows: BTreeMap<RequestId, Taken> = BTreeMap::new();
        for (dot, write) in new {
            next.clock.add(*dot);
            if write.issued_at_ms < forgotten {
                continue;
            }
            let row = match rows.get_mut(&write.request) {
                Some(row) => row,
                None => {
                    let known = self.taken(place.slice, write.request)?;
                    if known.is_none() {
                        next.requests += 1;
                        batch.push_put(
                            REQUEST_TIMES,
                            place.slice.request_time_key(write.issued_at_ms, write.request),
                            [],
                        );
                    }
                    let first = || Taken {
                        issued_at_ms: write.issued_at_ms,
                        body: write.body,
                        token: token(place.namespace, &place.key),
                        dots: Vec::new(),
                    };
                    rows.entry(write.request).or_insert(known.map_or_else(first, |(taken, _)| taken))
                }
            };
            if !row.dots.contains(dot) {
                row.dots.push(*dot);
            }
        }
        for (request, row) in rows {
            batch.push_put(REQUESTS, place.slice.request_key(request), row.encode());
        }
        if !new.is_empty() {
            self.stage_clock(place.slice, next, batch);
        }
        Ok(listed != conflict)
    }

    fn stage_clock(&self, slice: Slice, next: &Partition, batch: &mut Batch) {
        let mut row = BytesMut::new();
        row.put_u64(next.requests);
        row.put_slice(&next.clock.encode());
        batch.push_put(CLOCKS, slice.clock_key(), row);
    }

    fn commit(&self, batch: Batch, bulk: bool) -> Result<Position, Failure> {
        let committed = if bulk { self.storage.commit_bulk(batch) } else { self.storage.commit(batch) };
        committed.map_err(storage_failure)
    }

    /// Forgets requests that are older than they can matter: a few of one ring partition.
    pub(crate) fn sweep(&self, slice: Slice) -> Result<usize, Failure> {
        let old = self.env.clock.wall_ms().saturating_sub(limits::REQUEST_KEPT.as_millis() as u64);
        let partition = self.partition(slice)?;
        let mut partition = lock(&partition);
        let (from, mut to) = (slice.prefix(), slice.prefix());
        to.put_u64(old);
        let rows =
            self.storage.scan(REQUEST_TIMES, &from, Some(&to), limits::SWEEP.1).map_err(storage_failure)?;
        if rows.is_empty() {
            return Ok(0);
        }
        let mut batch = Batch::new();
        for (key, _) in &rows {
            if let Some((_, request)) = of_request_time_key(key) {
                batch.push_delete(REQUESTS, slice.request_key(request));
            }
            batch.push_delete(REQUEST_TIMES, key);
        }
        let mut next = partition.clone();
        next.requests = next.requests.saturating_sub(rows.len() as u64);
        self.stage_clock(slice, &next, &mut batch);
        self.commit(batch, true)?;
        *partition = next;
        Ok(rows.len())
    }

    /// The ring partitions that were touched since the start.
    pub(crate) fn slices(&self) -> Vec<Slice> {
        lock(&self.partitions).keys().copied().collect()
    }

    /// A page of a ring partition after a key of it.
    pub(crate) fn page(&self, slice: Slice, after: &[u8], max_bytes: usize) -> Result<Page, Failure> {
        let prefix = slice.prefix();
        let from = if after.is_empty() { prefix.to_vec() } else { [after, &[0]].concat() };
        let to = prefix_end(&prefix);
        let mut page = Page { records: Vec::new(), position: Position::DURABLE, next: None };
        let rows =
            self.storage.scan(RECORDS, &from, to.as_deref(), limits::SCAN_ROWS).map_err(storage_failure)?;
        let full = rows.len() == limits::SCAN_ROWS;
        let (mut bytes, mut last, mut cut) = (0, None, false);
        for (key, row) in rows {
            if bytes > 0 && bytes + row.value.len() > max_bytes {
                cut = true;
                break;
            }
            bytes += key.len() + row.value.len();
            page.position = page.position.max(row.position);
            let place = Place::of_record_key(&key).ok_or_else(|| corrupt("the records"))?;
            page.records.push((place, row.value));
            last = Some(key);
        }
        page.next = last.filter(|_| full || cut);
        Ok(page)
    }

    /// The node clock of a ring partition, and what must be durable before it is shown.
    pub(crate) fn clock(&self, slice: Slice) -> Result<(NodeClock, Position), Failure> {
        let partition = self.partition(slice)?;
        let partition = lock(&partition);
        let row = self.storage.get(CLOCKS, &slice.clock_key()).map_err(storage_failure)?;
        Ok((partition.clock.clone(), row.map_or(Position::DURABLE, |row| row.position)))
    }

    /// Adds the clock of a replica whose whole ring partition was merged here.
    pub(crate) fn adopt(&self, slice: Slice, clock: &NodeClock) -> Result<Position, Failure> {
        let partition = self.partition(slice)?;
        let mut partition = lock(&partition);
        let mut next = partition.clone();
        next.clock.adopt(clock);
        let mut batch = Batch::new();
        self.stage_clock(slice, &next, &mut batch);
        let mine = clock.highest(self.incarnation);
        let put_back = self.stage_put_back(slice, mine, &mut next, &mut batch);
        let position = self.commit(batch, !put_back)?;
        *partition = next;
        Ok(position)
    }

    /// What a reader of one namespace could see in a ring partition here.
    pub(crate) fn digest(&self, slice: Slice, namespace: NamespaceId) -> Result<SliceDigest, Failure> {
        let prefix = slice.namespace_prefix(namespace);
        let to = prefix_end(&prefix);
        let mut digest = SliceDigest::default();
        let mut from = prefix.to_vec();
        loop {
            let rows = self
                .storage
                .scan(RECORDS, &from, to.as_deref(), limits::SCAN_ROWS)
                .map_err(storage_failure)?;
            for (key, row) in &rows {
                let place = Place::of_record_key(key).ok_or_else(|| corrupt("the records"))?;
                let state = State::decode(row.value.clone()).map_err(|error| corrupt(&error.to_string()))?;
                digest.digest ^= state.record.digest(namespace, &place.key);
                let values = state.record.values().len();
                digest.keys += u64::from(values > 0);
                digest.with_siblings += u64::from(values > 1);
            }
            match rows.last() {
                Some((last, _)) if rows.len() == limits::SCAN_ROWS => from = [last.as_ref(), &[0]].concat(),
                _ => return Ok(digest),
            }
        }
    }

    /// How many keys have more than one value here.
    pub(crate) fn keys_with_siblings(&self) -> Result<u64, Failure> {
        self.storage
            .scan(CONFLICTS, &[], None, usize::MAX)
            .map(|rows| rows.len() as u64)
            .map_err(storage_failure)
    }
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
