//! What a ring partition gives to a node that pulls it, and what that node does with it.
//!
//! A source gives the requests that it knows, then its records a page at a time, each page with the node
//! clock of its moment, and all of it with the node clock as it was before the first row was read. Who has
//! everything has the effect of every dot of that first clock, and adopts it. Until then:
//!
//! - Pulled records do not move the clock of this node: it would have a gap for each of them.
//! - What the pull has passed is filled with the source's first clock as well, so that a late message about a
//!   key that the source knows to be deleted brings nothing back ([`Pulling`]). It is known in memory alone,
//!   so what this node acknowledges meanwhile is not stripped by it.
//! - A key of this node that the source did not list is dead as far as that clock goes.
//!
//! Not covered: a node that is started anew in the midst of a pull, does not serve yet, and then has to do
//! without that source. Of a key that the pull had passed it may show what the source had superseded beside
//! what that was superseded by, until it hears of the latter again.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use kv_storage::Position;
use kv_types::catalogue::token;
use kv_types::causal::primary::{self, Change};
use kv_types::causal::{NodeClock, State};
use kv_types::limits::MAX_CLOCK_RANGES;
use kv_types::{ClientId, Failure, NodeId, Reason, RequestId};
use tokio::time::Instant;

use super::pulling::Pulling;
use super::rows::{Rows, Stop, in_time, lock};
use super::{Partition, Replica, corrupt};
use crate::layout::{HINTS, Hint, Place, Slice, Taken, key_after, prefix_end};
use crate::limits;

/// A page of the records of a ring partition, as they are stored.
pub(crate) struct Page {
    pub(crate) records: Vec<(Place, Bytes)>,
    /// The clock at that moment.
    pub(crate) clock: NodeClock,
    /// What must be durable before it is shown.
    pub(crate) position: Position,
    /// The last key, when more may follow.
    pub(crate) next: Option<Bytes>,
}

/// A page of another table: rows, what must be durable, and the last key when more may follow.
pub(crate) struct RowPage<T> {
    pub(crate) rows: Vec<T>,
    pub(crate) position: Position,
    pub(crate) next: Option<Bytes>,
}

/// The side of the source.
impl Replica {
    /// A page of a ring partition after a key of it: row and clock of one moment.
    pub(crate) async fn page(
        &self,
        slice: Slice,
        after: &[u8],
        max_bytes: usize,
        deadline: Instant,
    ) -> Result<Page, Failure> {
        let prefix = slice.prefix();
        let from = Bytes::from(if after.is_empty() { prefix.to_vec() } else { key_after(after) });
        let to = prefix_end(&prefix).map(Bytes::from);
        self.run(slice, deadline, |partition, rows| {
            let (found, next) = rows.records(&from, to.as_ref(), max_bytes)?;
            let mut page = Page {
                records: Vec::with_capacity(found.len()),
                clock: partition.clock.clone(),
                position: partition.settling.changed(),
                next,
            };
            for (key, row) in found {
                page.position = page.position.max(row.position);
                let place = Place::of_record_key(&key).ok_or_else(|| corrupt("the records"))?;
                page.records.push((place, row.value));
            }
            Ok(page)
        })
        .await
    }

    /// A page of the requests that a ring partition took, behind the one that `after` names.
    ///
    /// Errors: `INVALID_REQUEST` where it names none.
    pub(crate) fn page_of_requests(
        &self,
        slice: Slice,
        after: &[u8],
        max_bytes: usize,
    ) -> Result<RowPage<(RequestId, Bytes)>, Failure> {
        let after = match after {
            [] => None,
            name => Some(request_of(name).ok_or_else(|| {
                Failure::new(Reason::InvalidRequest, "`after` is not a place to resume from")
            })?),
        };
        let partition = self.partition(slice);
        let guarded = lock(&partition);
        let mut page = RowPage { rows: Vec::new(), position: guarded.state.settling.changed(), next: None };
        let mut bytes = 0;
        for (request, taken) in guarded.requests.behind(after) {
            if let Some((last, _)) = page.rows.last()
                && (bytes >= max_bytes || page.rows.len() >= limits::SCAN_ROWS)
            {
                page.next = Some(name_of(*last));
                break;
            }
            let taken = taken.encode().freeze();
            bytes += taken.len() + size_of::<RequestId>();
            page.rows.push((request, taken));
        }
        Ok(page)
    }

    /// Requests that were issued before this may be forgotten here.
    pub(crate) fn forgotten_ms(&self, slice: Slice) -> u64 {
        lock(&self.partition(slice)).state.forgotten_ms
    }

    /// A page of the hints that this node holds for a target and of a ring partition, after a key of them:
    /// raw. Notes are left out: they name what a primary has.
    pub(crate) async fn page_of_hints(
        &self,
        target: NodeId,
        slice: Slice,
        after: &[u8],
        max_bytes: usize,
        deadline: Instant,
    ) -> Result<RowPage<(Place, State)>, Failure> {
        let prefix = slice.hints_prefix(target);
        let from = if after.is_empty() { prefix.to_vec() } else { key_after(after) };
        let to = prefix_end(&prefix);
        let read = self.storage.read_range(HINTS, &from, to.as_deref(), limits::SCAN_ROWS, max_bytes);
        let chunk = in_time(deadline, read).await?;
        let next = chunk.rows.last().filter(|_| chunk.more).map(|(key, _)| key.clone());
        let mut page = RowPage { rows: Vec::new(), position: Position::DURABLE, next };
        for (key, row) in chunk.rows {
            let (_, place, _) = Place::of_hint_key(&key).ok_or_else(|| corrupt("the hints"))?;
            let hint = Hint::decode(row.value).ok_or_else(|| corrupt("the hints"))?;
            if !hint.note {
                page.position = page.position.max(row.position);
                page.rows.push((place, hint.state));
            }
        }
        Ok(page)
    }

    /// The node clock of a ring partition, and what must be durable before it is shown.
    pub(crate) fn clock(&self, slice: Slice) -> (NodeClock, Position) {
        let partition = self.partition(slice);
        let guarded = lock(&partition);
        (guarded.state.clock.clone(), guarded.state.settling.changed())
    }
}

impl Partition {
    /// The pull under way, if there is one, has ended without success. What it brought to a node that does
    /// not serve claims less than the source did, so that what it passed stays filled with the clock of the
    /// source until a pull ends well: that one writes down what it does not bring itself.
    fn give_up(&mut self) {
        let given_up = self.pulling.take().filter(|pull| !pull.serves && !pull.passed.is_empty());
        let Some(given_up) = given_up else { return };
        self.given_up.retain(|before| !given_up.says_all_of(before));
        if self.given_up.len() >= limits::GIVEN_UP {
            self.given_up.remove(0);
        }
        self.given_up.push(given_up);
    }
}

/// The side of the node that pulls.
impl Replica {
    /// A pull from a source begins, or begins again; what one before had passed is not relied on any more.
    /// `serves`: this node answers for the ring partition meanwhile.
    ///
    /// Errors: `NOT_READY` if the clock of the source names writes of this directory that it does not know:
    /// it was put back to an older state, and pulls once it has begun anew.
    pub(crate) async fn begin_pull(
        &self,
        slice: Slice,
        clock: &NodeClock,
        serves: bool,
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.run(slice, deadline, |partition, rows| {
            let unknown = clock.dots().difference(partition.clock.dots());
            if self.stage_put_back(slice, unknown.last_dots(), partition, rows) {
                rows.commit(false)?;
                self.refuse_put_back()?;
            }
            // One that ended with its task.
            partition.give_up();
            let (clock, passed, left_out) = (clock.clone(), Bytes::new(), BTreeSet::new());
            partition.pulling = Some(Arc::new(Pulling { clock, serves, passed, left_out }));
            Ok(())
        })
        .await
    }

    /// This node cannot take what the source has of a key: what the source knows of it does not count here.
    pub(crate) fn leave_out(&self, place: &Place) {
        let partition = self.partition(place.slice);
        let pulling = &mut lock(&partition).state.pulling;
        if let Some(before) = pulling.as_deref() {
            let mut next = before.clone();
            next.left_out.insert(place.record_key().freeze());
            *pulling = Some(Arc::new(next));
        }
    }

    /// A pull has ended without success.
    pub(crate) fn give_up_pull(&self, slice: Slice) {
        lock(&self.partition(slice)).state.give_up();
    }

    /// A source may have forgotten requests that were issued before this: what is pulled from it comes
    /// without them. Written down with the clock, at the end of the pull.
    pub(crate) fn learn_forgotten(&self, slice: Slice, before_ms: u64) {
        let partition = self.partition(slice);
        let state = &mut lock(&partition).state;
        state.forgotten_ms = state.forgotten_ms.max(before_ms);
    }

    /// Adds what a source knows of requests: before its records, so that these are merged with it. Such a row
    /// may name writes that are not here yet, also on a node that serves meanwhile: a request is answered for
    /// where its write is, and nowhere else.
    pub(crate) async fn learn_taken(
        &self,
        slice: Slice,
        told: &[(RequestId, Taken)],
        deadline: Instant,
    ) -> Result<(), Failure> {
        let learn = |partition: &mut Partition, rows: &mut Rows<'_>| {
            // With what is known here: the entry before may go.
            let joined = |(request, theirs): &(RequestId, Taken)| match rows.requests().get(*request) {
                Some(mut mine) => mine.merge(theirs).then_some((*request, mine)),
                None => Some((*request, theirs.clone())),
            };
            let new: Vec<(RequestId, Taken)> = told.iter().filter_map(joined).collect();
            if new.is_empty() {
                return Ok(());
            }
            let mut next = partition.clone();
            self.stage_told(slice, &new, &mut next, rows);
            let position = rows.commit(true)?;
            next.settling.learn(position);
            *partition = next;
            Ok(())
        };
        self.run(slice, deadline, learn).await
    }

    /// Merges a record of a source, filled by its clock, and passes its key. Keys must come in their order.
    pub(crate) async fn merge_pulled(
        &self,
        place: &Place,
        incoming: &State,
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.run(place.slice, deadline, |partition, rows| {
            self.merge_pulled_now(place, incoming, partition, rows)
        })
        .await
    }

    fn merge_pulled_now(
        &self,
        place: &Place,
        incoming: &State,
        partition: &mut Partition,
        rows: &mut Rows<'_>,
    ) -> Result<(), Stop> {
        self.refuse_deleted(place.namespace)?;
        let Some(pulling) = partition.pulling.clone() else {
            let message = "the pull that this record belongs to was given up";
            return Err(Failure::new(Reason::Internal, message).into());
        };
        self.expect(place, partition, rows)?;
        let stored = self.stored(place, rows)?.map(|(state, _)| state);
        let mut next = partition.clone();
        let mut both = next.clock.clone();
        both.adopt(&pulling.clock);
        let mut state = partition.fill(place, stored.clone());
        self.refuse_reuse(incoming, &state, partition, rows)?;
        state.merge(incoming);
        let token = token(place.namespace, &place.key);
        state.bury_twins(|request| rows.requests().dots_of(request, token));
        // What came after the first clock.
        let new: Vec<_> = state.applied().filter(|(dot, _)| !both.has(*dot)).collect();
        for (dot, _) in &new {
            next.clock.add(*dot);
            both.add(*dot);
        }
        let of_same_values = |stored: &State| stored.record.siblings == state.record.siblings;
        let same = new.is_empty() && stored.as_ref().map_or(state.record.siblings.is_empty(), of_same_values);
        // A node that does not serve pulls again if this is given up: nothing is lost with what the source
        // has. What the row claims by itself stays, for this node may have acknowledged it; and so does what
        // a pull claims that was given up, for it may never be begun again.
        let strip_by = match (&stored, pulling.serves) {
            (_, true) => next.clock.clone(),
            (None, false) => both,
            (Some(row), false) => both.without(&row.record.context.difference(next.clock.dots())),
        };
        let change = Change { row: primary::keep(state.clone(), &strip_by), state, new };
        self.refuse_gaps(&change, partition)?;
        next.pulling = Some(Arc::new(Pulling { passed: place.record_key().freeze(), ..(*pulling).clone() }));
        // What the source claims beside values that are here alike need not be written down with each of
        // them: at its end the pull adds it to the clock.
        if pulling.serves && same {
            *partition = next;
            return Ok(());
        }
        if self.stage(place, stored.as_ref(), &change, &mut next, rows)? {
            let new = change.new.iter().map(|(dot, _)| *dot);
            let put_back = self.stage_put_back(place.slice, new, partition, rows);
            let position = rows.commit(!put_back)?;
            next.settling.learn(position);
        }
        *partition = next;
        Ok(())
    }

    /// Passes what a page covered: keys of this node from behind `after` to `last` that it did not list are
    /// dead there as far as the source's first clock goes. Without `last`: to the end of the ring partition.
    pub(crate) async fn pass(
        &self,
        slice: Slice,
        after: &[u8],
        last: Option<&[u8]>,
        listed: &BTreeSet<Bytes>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let prefix = slice.prefix();
        let end = last.map(key_after).or_else(|| prefix_end(&prefix));
        let clock = {
            let partition = self.partition(slice);
            let mut guarded = lock(&partition);
            let Some(pulling) = guarded.state.pulling.clone() else { return Ok(()) };
            let behind_all = || vec![u8::MAX; prefix.len()];
            let passed = last.map_or_else(behind_all, <[u8]>::to_vec).into();
            guarded.state.pulling = Some(Arc::new(Pulling { passed, ..(*pulling).clone() }));
            pulling.clock.clone()
        };
        // From here on what comes is filled; what came before is found.
        let mut dead = State::default();
        dead.record.fill(&clock);
        let mut from = if after.is_empty() { prefix.to_vec() } else { key_after(after) };
        loop {
            let chunk = self.page_of(super::RECORDS, &from, end.as_deref()).await?;
            for (key, _) in chunk.rows.iter().filter(|(key, _)| !listed.contains(key)) {
                let place = Place::of_record_key(key).ok_or_else(|| corrupt("the records"))?;
                // Also where no dot is dead by the clock: a twin may be.
                // A deadline for each: there may be many, and to begin again would not make them fewer.
                let each = deadline.max(Instant::now() + limits::BACKGROUND_READ);
                match self.apply(&place, &dead, true, each).await {
                    Err(failure) if failure.reason == Reason::NamespaceUnknown => {}
                    applied => drop(applied?),
                }
            }
            match chunk.rows.last() {
                Some((last, _)) if chunk.more => from = key_after(last),
                _ => return Ok(()),
            }
        }
    }

    /// A pull has come to its end: adds the clock of its beginning. Where keys were left out it counts in
    /// memory alone, for all others: the next start pulls again.
    ///
    /// Errors: as of [`Self::adopt`].
    pub(crate) async fn end_pull(
        &self,
        slice: Slice,
        clock: &NodeClock,
        deadline: Instant,
    ) -> Result<Position, Failure> {
        {
            let partition = self.partition(slice);
            let state = &mut lock(&partition).state;
            if let Some(pulling) = state.pulling.take_if(|pulling| !pulling.left_out.is_empty()) {
                let mut joined = (*pulling).clone();
                state.pulled.iter().for_each(|before| joined.join(before));
                refuse_ranges(&joined.clock)?;
                state.pulled = Some(Arc::new(joined));
                state.given_up.clear();
                return Ok(state.settling.changed());
            }
        }
        self.adopt(slice, clock, deadline).await
    }

    /// Adds the clock of a replica whose whole ring partition was merged here.
    ///
    /// Errors: `OVERLOADED` if the clock would have more gaps than it may.
    pub(crate) async fn adopt(
        &self,
        slice: Slice,
        clock: &NodeClock,
        deadline: Instant,
    ) -> Result<Position, Failure> {
        self.run(slice, deadline, |partition, rows| {
            let mut next = partition.clone();
            next.clock.adopt(clock);
            refuse_ranges(&next.clock)?;
            next.pulling = None;
            next.given_up.clear();
            self.stage_clock(slice, &mut next, rows);
            let unknown = clock.dots().difference(partition.clock.dots());
            let put_back = self.stage_put_back(slice, unknown.last_dots(), partition, rows);
            let position = rows.commit(!put_back)?;
            next.settling.learn(position);
            *partition = next;
            Ok(position)
        })
        .await
    }
}

/// A request as the place to resume from.
fn name_of(request: RequestId) -> Bytes {
    [&request.client_id.0.to_be_bytes()[..], &request.seq.to_be_bytes()].concat().into()
}

fn request_of(mut name: &[u8]) -> Option<RequestId> {
    let client_id = ClientId(name.try_get_u128().ok()?);
    let seq = name.try_get_u64().ok().filter(|_| name.is_empty())?;
    Some(RequestId { client_id, seq })
}

fn refuse_ranges(clock: &NodeClock) -> Result<(), Failure> {
    if clock.dots().ranges().len() <= MAX_CLOCK_RANGES {
        return Ok(());
    }
    let message = "the clocks of this replica and of the source have too many gaps together";
    Err(Failure::new(Reason::Overloaded, message))
}
