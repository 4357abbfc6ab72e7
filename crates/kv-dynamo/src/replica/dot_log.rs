//! The dot log of a ring partition: which dots are of which key, in the order in which they came here. It is
//! written with the record, in one batch. A primary that lacks some dots asks another one for the records of
//! their keys, and gets those alone (log-based anti-entropy: Gonçalves et al., "DottedDB", 2017).
//!
//! An answer from it may be incomplete, for the log is bounded and does not know what a pull brought. Who
//! asks sees which dots still miss, and pulls the ring partition.
//!
//! The log is also where requests are on the disk ([`Requests`]), and what the node clock got since it was
//! written down last: a write adds one entry, and no other row beside its record's.
//!
//! An entry goes once all other primaries have its dots, no resend of its requests is taken any more, and no
//! hint can carry a twin of one ([`Replica::trim_logs`]). Of a log that is too long the oldest are given up:
//! a resend of what may have been forgotten is refused then, as one whose fate is open. The node learns of
//! the others' clocks when clocks are compared, and keeps a few marks: how long the log was, and what the
//! clock was. A primary that has all of a mark's clock needs nothing of the log up to there.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kv_storage::journal::JournalError;
use kv_storage::{Batch, Position, StorageError};
use kv_types::catalogue::token;
use kv_types::causal::{Context, Dot, NodeClock, State, Write};
use kv_types::limits::{MAX_CLOCK_SKEW, REQUEST_WINDOW};
use kv_types::{ClientId, Failure, Incarnation, NamespaceId, NodeId, RequestId};
use tokio::time::Instant;

use super::requests::Requests;
use super::rows::{Rows, Stop, Want, in_time, lock};
use super::{CLOCKS, Partition, RECORDS, Replica, corrupt, is_too_large, storage_failure};
use crate::layout::{ClockRow, DOT_LOG, Place, Slice, Taken};
use crate::limits;

/// Of an entry. The first one had no kind.
const VERSION: u8 = 2;
/// Its kinds: what a key got, and which requests a source of a pull named.
const OF_KEY: u8 = 0;
const OF_REQUESTS: u8 = 1;

/// What a key got: its dots with what they stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    namespace: NamespaceId,
    key: Bytes,
    writes: Vec<(Dot, Write)>,
}

impl Entry {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(14 + self.key.len() + 52 * self.writes.len());
        out.put_u8(VERSION);
        out.put_u8(OF_KEY);
        out.put_u64(self.namespace.0);
        out.put_u32(u32::try_from(self.key.len()).unwrap_or(u32::MAX));
        out.put_slice(&self.key);
        for (dot, write) in &self.writes {
            out.put_u64(dot.incarnation.0);
            out.put_u64(dot.counter);
            out.put_u64(write.issued_at_ms);
            out.put_u128(write.request.client_id.0);
            out.put_u64(write.request.seq);
            out.put_u32(write.body);
        }
        out.freeze()
    }

    fn decode(mut bytes: Bytes) -> Option<Self> {
        let namespace = NamespaceId(bytes.try_get_u64().ok()?);
        let length = usize::try_from(bytes.try_get_u32().ok()?).ok().filter(|n| *n <= bytes.len())?;
        let (key, mut writes) = (bytes.split_to(length), Vec::new());
        while bytes.has_remaining() {
            let incarnation = Incarnation(bytes.try_get_u64().ok()?);
            let dot = Dot { incarnation, counter: bytes.try_get_u64().ok()? };
            let issued_at_ms = bytes.try_get_u64().ok()?;
            let client_id = ClientId(bytes.try_get_u128().ok()?);
            let request = RequestId { client_id, seq: bytes.try_get_u64().ok()? };
            writes.push((dot, Write { issued_at_ms, request, body: bytes.try_get_u32().ok()? }));
        }
        Some(Self { namespace, key, writes })
    }
}

fn encode_told(told: &[(RequestId, Taken)]) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + 66 * told.len());
    out.put_u8(VERSION);
    out.put_u8(OF_REQUESTS);
    for (request, taken) in told {
        let taken = taken.encode();
        out.put_u128(request.client_id.0);
        out.put_u64(request.seq);
        out.put_u32(u32::try_from(taken.len()).unwrap_or(u32::MAX));
        out.put_slice(&taken);
    }
    out.freeze()
}

fn decode_told(mut bytes: Bytes) -> Option<Vec<(RequestId, Taken)>> {
    let mut told = Vec::new();
    while bytes.has_remaining() {
        let client_id = ClientId(bytes.try_get_u128().ok()?);
        let request = RequestId { client_id, seq: bytes.try_get_u64().ok()? };
        let length = usize::try_from(bytes.try_get_u32().ok()?).ok().filter(|n| *n <= bytes.len())?;
        told.push((request, Taken::decode(bytes.split_to(length))?));
    }
    Some(told)
}

/// An entry of either kind.
#[derive(Debug, PartialEq, Eq)]
enum Logged {
    Key(Entry),
    Requests(Vec<(RequestId, Taken)>),
}

impl Logged {
    fn decode(mut bytes: Bytes) -> Result<Self, Failure> {
        let unreadable = || corrupt("the dot log");
        if bytes.try_get_u8().ok() != Some(VERSION) {
            return Err(unreadable());
        }
        let kind = bytes.try_get_u8().map_err(|_| unreadable())?;
        let entry = match kind {
            OF_KEY => Entry::decode(bytes).map(Self::Key),
            OF_REQUESTS => decode_told(bytes).map(Self::Requests),
            _ => None,
        };
        entry.ok_or_else(unreadable)
    }
}

/// How far the log has come with the others: in memory alone.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    /// The clock at the first mark, or at the last one that was trimmed.
    base: Option<Context>,
    /// The last entry of a moment, and what the clock had got since the mark before; in their order. Only
    /// what is new, for a clock has a range for each start of a node.
    marks: Vec<(u64, Context)>,
    /// The last entry up to which a primary has everything.
    covered: BTreeMap<NodeId, u64>,
}

impl Marks {
    /// The clock at the last mark.
    fn clock(&self) -> Context {
        let mut clock = self.base.clone().unwrap_or_default();
        self.marks.iter().for_each(|(_, new)| clock.merge(new));
        clock
    }

    /// Notes the present moment. What filled very many gaps is not kept: a clock that is alike says as much.
    fn note(&mut self, last: u64, clock: &NodeClock) {
        let Some(base) = &self.base else {
            // All that the log has is of before this clock.
            self.base = Some(clock.dots().clone());
            self.marks.push((last, Context::new()));
            return;
        };
        if self.marks.last().is_some_and(|(end, _)| *end == last) {
            return;
        }
        let before = if self.marks.is_empty() { base.clone() } else { self.clock() };
        let new = clock.dots().difference(&before);
        if new.ranges().len() > limits::LOG_MARK_RANGES {
            return;
        }
        if self.marks.len() >= limits::LOG_MARKS {
            self.thin_out();
        }
        self.marks.push((last, new));
    }

    /// Joins every second mark with the next one. The first stays: it frees room first.
    fn thin_out(&mut self) {
        let mut kept: Vec<(u64, Context)> = Vec::with_capacity(limits::LOG_MARKS);
        for (at, (last, new)) in std::mem::take(&mut self.marks).into_iter().enumerate() {
            match kept.last_mut().filter(|_| at > 1 && at % 2 == 0) {
                Some(before) => {
                    before.0 = last;
                    before.1.merge(&new);
                }
                None => kept.push((last, new)),
            }
        }
        self.marks = kept;
    }

    /// A primary has everything up to that entry.
    fn cover(&mut self, other: NodeId, last: u64) {
        let covered = self.covered.entry(other).or_default();
        *covered = last.max(*covered);
    }

    /// A primary has these dots.
    fn cover_dots(&mut self, other: NodeId, dots: &Context) {
        if self.base.as_ref().is_none_or(|base| !dots.contains_all(base)) {
            return;
        }
        let all_of = self.marks.iter().take_while(|(_, new)| dots.contains_all(new));
        if let Some((last, _)) = all_of.last() {
            self.cover(other, *last);
        }
    }

    /// The last entry that none of them needs.
    fn covered_by_all(&self, others: &[NodeId], last: u64) -> u64 {
        let of = |other: &NodeId| self.covered.get(other).copied().unwrap_or(0);
        others.iter().map(of).min().unwrap_or(last).min(last)
    }

    fn trimmed(&mut self, to: u64) {
        let gone = self.marks.partition_point(|(last, _)| *last <= to);
        for (_, new) in self.marks.drain(..gone) {
            self.base.get_or_insert_default().merge(&new);
        }
    }

    /// The last entry before which none of these dots is.
    fn before(&self, dots: &Context) -> u64 {
        if self.base.as_ref().is_none_or(|base| base.meets(dots)) {
            return 0;
        }
        let without = self.marks.iter().take_while(|(_, new)| !new.meets(dots));
        without.last().map_or(0, |(last, _)| *last)
    }
}

/// What is in a log, counted: entries, and about their bytes, with what each costs in the journal's files and
/// index.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Length {
    /// The last entry.
    pub(super) last: u64,
    bytes: u64,
}

impl Length {
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn add(&mut self, content: usize) {
        self.last += 1;
        self.bytes += content as u64 + limits::LOG_ENTRY_BYTES;
    }

    /// Of `kept` entries the first are given up; which were large is not known.
    fn trim(&mut self, gone: u64, kept: u64) {
        self.bytes -= (u128::from(self.bytes) * u128::from(gone.min(kept)) / u128::from(kept.max(1))) as u64;
    }
}

/// A clock that is compared with others, and the last entry of the log at that moment.
pub(crate) struct Compared {
    pub(crate) clock: NodeClock,
    pub(crate) last: u64,
}

/// Records of keys that another primary lacks something of.
pub(crate) struct Lacked {
    /// As they are stored, with the writes that are lacked.
    pub(crate) records: Vec<(Place, Bytes)>,
    /// By which they are filled.
    pub(crate) clock: NodeClock,
    /// What must be durable before they are shown.
    pub(crate) position: Position,
    /// Where the log is to be read on, if it may know of more.
    pub(crate) next: Option<u64>,
}

/// A key that the log names, and the first entry that does.
pub(super) struct Found {
    first: u64,
    entry: Entry,
}

impl Replica {
    /// A ring partition's log, as storage knows it.
    pub(super) fn logged(&self, slice: Slice) -> Length {
        let (first, last) = self.storage.stream_bounds(DOT_LOG, &slice.prefix());
        let last = last.unwrap_or(0);
        let kept = (last + 1).saturating_sub(first.max(1));
        let bytes = self.storage.stream_bytes(DOT_LOG, &slice.prefix()) + kept * limits::LOG_ENTRY_BYTES;
        Length { last, bytes }
    }

    /// Writes down which key got these dots, in the batch that brings them, and with them their requests.
    /// After some entries the clock is written too: so a start has few to read for it, and the log can be
    /// trimmed where there is no room for a row.
    pub(super) fn stage_log(
        &self,
        place: &Place,
        new: &[(Dot, Write)],
        next: &mut Partition,
        rows: &mut Rows<'_>,
    ) {
        if new.is_empty() {
            return;
        }
        let (namespace, key) = (place.namespace, place.key.clone());
        let entry = Entry { namespace, key, writes: new.to_vec() }.encode();
        next.logged.add(entry.len());
        rows.append(DOT_LOG, &place.slice.prefix(), next.logged.last, &entry);
        let forgotten = self.env.clock.wall_ms().saturating_sub(limits::REQUEST_KEPT.as_millis() as u64);
        let token = token(place.namespace, &place.key);
        for (dot, write) in new {
            if write.issued_at_ms < forgotten {
                // By this clock, which may be ahead: what is not known is not told from what is new.
                next.forgotten_ms = next.forgotten_ms.max(write.issued_at_ms.saturating_add(1));
                continue;
            }
            rows.take(write.request, taken_of(*dot, write, token), next.logged.last);
        }
        if next.logged.last.saturating_sub(next.written) >= limits::LOG_CLOCK_EVERY {
            self.stage_clock(place.slice, next, rows);
        }
    }

    /// Writes down which requests a source of a pull has named.
    pub(super) fn stage_told(
        &self,
        slice: Slice,
        told: &[(RequestId, Taken)],
        next: &mut Partition,
        rows: &mut Rows<'_>,
    ) {
        let entry = encode_told(told);
        next.logged.add(entry.len());
        rows.append(DOT_LOG, &slice.prefix(), next.logged.last, &entry);
        told.iter().for_each(|(request, taken)| rows.take(*request, taken.clone(), next.logged.last));
    }

    /// Writes down the clock, with how long the log is now.
    pub(super) fn stage_clock(&self, slice: Slice, next: &mut Partition, rows: &mut Rows<'_>) {
        next.written = next.logged.last;
        next.forgotten_written_ms = next.forgotten_ms;
        let (entry, forgotten_ms) = (next.written, next.forgotten_ms);
        let row = ClockRow { entry, forgotten_ms, clock: next.clock.clone() };
        rows.put(CLOCKS, slice.clock_key(), row.encode());
    }

    /// Completes a ring partition of which the clock's row was read with what its log got since, and reads
    /// which requests it took. Whether nothing is lost of what the clock needs.
    pub(super) async fn load_log(
        &self,
        slice: Slice,
        partition: &mut Partition,
        requests: &mut Requests,
    ) -> Result<bool, Failure> {
        partition.logged = self.logged(slice);
        let (stream, last) = (slice.prefix(), partition.logged.last);
        let mut from = 1;
        while from <= last {
            let deadline = Instant::now() + limits::BACKGROUND_READ;
            let (rows, bytes) = (limits::SCAN_ROWS, limits::SCAN_BYTES);
            let read = self.storage.read_stream(DOT_LOG, &stream, (from, last), rows, bytes);
            let page = match in_time_or(deadline, read).await? {
                Ok(page) => page,
                Err(Gone { trimmed, next }) => {
                    // Without a row nothing is trimmed, but where a directory begins anew.
                    let began_anew = trimmed && partition.written == 0;
                    if next.saturating_sub(1) > partition.written && !began_anew {
                        return Ok(false);
                    }
                    if !trimmed {
                        let lost = self.env.clock.wall_ms() + MAX_CLOCK_SKEW.as_millis() as u64;
                        partition.forgotten_ms = partition.forgotten_ms.max(lost);
                    }
                    from = next;
                    continue;
                }
            };
            let Some((end, _)) = page.last() else { return Ok(false) };
            let ids = page.iter().map(|(id, _)| *id);
            let missing = (from..).zip(ids).find(|(expected, id)| expected != id);
            if missing.is_some_and(|(_, id)| id > partition.written) {
                return Ok(false);
            }
            from = end + 1;
            for (id, content) in page {
                match Logged::decode(content)? {
                    Logged::Key(entry) => {
                        let token = token(entry.namespace, &entry.key);
                        for (dot, write) in entry.writes {
                            if !kv_types::mutant!(ClockWithoutLog) {
                                partition.clock.add(dot);
                            }
                            requests.add(write.request, &taken_of(dot, &write, token), id);
                        }
                    }
                    Logged::Requests(told) => {
                        told.iter().for_each(|(request, taken)| requests.add(*request, taken, id));
                    }
                }
            }
        }
        Ok(true)
    }

    /// The clock of a ring partition, to be compared with those of others.
    pub(crate) fn compared(&self, slice: Slice) -> Compared {
        let partition = self.partition(slice);
        let state = &mut lock(&partition).state;
        Arc::make_mut(&mut state.marks).note(state.logged.last, &state.clock);
        Compared { clock: state.clock.clone(), last: state.logged.last }
    }

    /// Another primary had the same clock when this one's log was that long.
    pub(crate) fn is_alike(&self, slice: Slice, other: NodeId, last: u64) {
        Arc::make_mut(&mut lock(&self.partition(slice)).state.marks).cover(other, last);
    }

    /// Another primary has this clock. What it has beyond the one here is missing, until it comes; and what
    /// both have need not be kept for it.
    pub(crate) fn hear_of(&self, slice: Slice, other: NodeId, clock: &NodeClock) {
        let partition = self.partition(slice);
        let state = &mut lock(&partition).state;
        state.hear_of(clock);
        Arc::make_mut(&mut state.marks).cover_dots(other, clock.dots());
    }

    /// Gives up entries that no other primary needs and whose requests are forgotten, and the oldest of logs
    /// that are too long. `slices`: the ring partitions that this node keeps, with the other primaries;
    /// `max_bytes`: of all logs together; `calm`: no hint can carry a twin of an old request any more.
    ///
    /// The trims are not logged: one that is lost is made again. So there is room for them where writes find
    /// none, but for those that first need a row.
    pub(crate) async fn trim_logs(
        &self,
        slices: &[(Slice, Vec<NodeId>)],
        max_bytes: u64,
        calm: bool,
    ) -> Result<(), Failure> {
        let bytes = |(slice, _): &(Slice, Vec<NodeId>)| lock(&self.partition(*slice)).state.logged.bytes;
        let room = Room { bytes: slices.iter().map(bytes).sum(), max_bytes, calm };
        let (mut cuts, mut position) = (Vec::new(), Position::DURABLE);
        for (slice, others) in slices {
            let deadline = Instant::now() + limits::BACKGROUND_READ;
            let cut = |partition: &mut Partition, rows: &mut Rows<'_>| {
                self.cut_now(*slice, others, &room, partition, rows)
            };
            match self.run(*slice, deadline, cut).await {
                Ok(Some((cut, at))) => {
                    position = position.max(at);
                    cuts.push((*slice, cut));
                }
                Ok(None) => {}
                Err(failure) => tracing::debug!(?slice, %failure, "a dot log stays as it is for now"),
            }
        }
        if cuts.is_empty() {
            return Ok(());
        }
        self.durable(position).await?;
        let mut batch = Batch::new();
        cuts.iter().for_each(|(slice, cut)| batch.push_trim(DOT_LOG, &slice.prefix(), cut.to + 1));
        self.storage.apply(batch).await.map_err(storage_failure)?;
        // What was refused is still there, and counts.
        for (slice, Cut { to, gone, kept }) in cuts {
            let partition = self.partition(slice);
            let guarded = &mut *lock(&partition);
            Arc::make_mut(&mut guarded.state.marks).trimmed(to);
            guarded.state.logged.trim(gone, kept);
            guarded.requests.forget(to);
        }
        Ok(())
    }

    /// What of a log can go, and what must be durable before it does: the clock has it then without the log,
    /// and it is known which requests may be forgotten.
    fn cut_now(
        &self,
        slice: Slice,
        others: &[NodeId],
        room: &Room,
        partition: &mut Partition,
        rows: &mut Rows<'_>,
    ) -> Result<Option<(Cut, Position)>, Stop> {
        let first = self.storage.stream_bounds(DOT_LOG, &slice.prefix()).0.max(1);
        let last = partition.logged.last;
        let kept = (last + 1).saturating_sub(first);
        let requests = rows.requests();
        let needed = requests.needed_since(room.needed_since(kept, self.env.clock.wall_ms()));
        let calmly = partition.marks.covered_by_all(others, last);
        let calmly = needed.map_or(calmly, |needed| calmly.min(needed.saturating_sub(1)));
        let over = room.too_many(kept.max(requests.len()), kept);
        let to = calmly.max((first + over).saturating_sub(1)).min(last);
        if to < first {
            return Ok(None);
        }
        let cut = Cut { to, gone: to + 1 - first, kept };
        let forgotten = requests.last_issued(to).map_or(0, |issued| issued.saturating_add(1));
        let mut next = partition.clone();
        next.forgotten_ms = next.forgotten_ms.max(forgotten);
        let mut position = partition.settling.changed();
        let unwritten = next.written < to;
        // What is older is refused for its age.
        let window = self.env.clock.wall_ms().saturating_sub(REQUEST_WINDOW.as_millis() as u64);
        let unsaid = next.forgotten_ms > next.forgotten_written_ms && next.forgotten_ms > window;
        if (unwritten || unsaid) && !kv_types::mutant!(LogTrimmedEarly) {
            self.stage_clock(slice, &mut next, rows);
            // What is too long must get shorter, also while there is little room.
            position = rows.commit(to <= calmly)?;
        }
        *partition = next;
        Ok(Some((cut, position)))
    }

    /// The records of the keys that `missing` is of, as far as this node has those dots and its log names
    /// them from the entry `from` on: about `max_bytes` of them, but at least one.
    pub(crate) async fn lacked(
        &self,
        slice: Slice,
        missing: &Context,
        (from, max_bytes): (u64, usize),
        deadline: Instant,
    ) -> Result<Lacked, Failure> {
        let found = self.find_logged(slice, missing, from, deadline).await?;
        self.gather(slice, found, self.clock(slice), max_bytes, deadline).await
    }

    /// The records of these keys, to be filled by an earlier clock.
    pub(super) async fn gather(
        &self,
        slice: Slice,
        (found, next): (Vec<Found>, Option<u64>),
        (clock, position): (NodeClock, Position),
        max_bytes: usize,
        deadline: Instant,
    ) -> Result<Lacked, Failure> {
        let mut lacked = Lacked { records: Vec::new(), clock, position, next };
        let mut bytes = 0;
        let mut groups: VecDeque<&[Found]> = found.chunks(limits::LOG_KEYS).collect();
        while let Some(some) = groups.pop_front() {
            let read = |partition: &mut Partition, rows: &mut Rows<'_>| {
                self.lacked_now(slice, some, partition, rows)
            };
            let rows = match self.run(slice, deadline, read).await {
                // Each of them alone.
                Err(failure) if is_too_large(&failure) && some.len() > 1 => {
                    some.chunks(1).rev().for_each(|one| groups.push_front(one));
                    continue;
                }
                rows => rows?,
            };
            for (found, (place, state, at)) in some.iter().zip(rows) {
                if bytes >= max_bytes {
                    lacked.next = Some(found.first);
                    return Ok(lacked);
                }
                let record = state.encode_readable().map_err(|error| corrupt(&error.to_string()))?;
                bytes += record.len() + place.key.len();
                lacked.position = lacked.position.max(at);
                lacked.records.push((place, record));
            }
        }
        Ok(lacked)
    }

    /// The rows of some keys with the writes that the log names, and what must be durable before they are
    /// shown by an older clock: so filled a row claims less than it could, and one that went meanwhile, whose
    /// delete that clock has not, must have gone for good.
    fn lacked_now(
        &self,
        slice: Slice,
        keys: &[Found],
        partition: &Partition,
        rows: &mut Rows<'_>,
    ) -> Result<Vec<(Place, State, Position)>, Stop> {
        let place = |entry: &Entry| Place { slice, namespace: entry.namespace, key: entry.key.clone() };
        let row = |found: &Found| Want::Row(RECORDS, place(&found.entry).record_key().freeze());
        rows.expect(keys.iter().map(row))?;
        let mut all = Vec::with_capacity(keys.len());
        for Found { entry, .. } in keys {
            let place = place(entry);
            let stored = self.stored(&place, rows)?.filter(|_| !kv_types::mutant!(LogWithoutRecord));
            let at = partition.settling.needed_by(stored.as_ref().map(|(_, position)| *position));
            let mut state = stored.map(|(state, _)| state).unwrap_or_default();
            state.writes.extend(entry.writes.iter().copied());
            all.push((place, state, at));
        }
        Ok(all)
    }

    /// The keys of these dots, in the order in which the log names them, each with all of them that are
    /// found; and where the log is to be read on, if it may name more.
    pub(super) async fn find_logged(
        &self,
        slice: Slice,
        missing: &Context,
        from: u64,
        deadline: Instant,
    ) -> Result<(Vec<Found>, Option<u64>), Failure> {
        let stream = slice.prefix();
        let (mut from, last, wanted) = {
            let partition = self.partition(slice);
            let state = &lock(&partition).state;
            let wanted = missing.difference(&missing.difference(state.clock.dots()));
            (from.max(state.marks.before(missing) + 1), state.logged.last, wanted)
        };
        let (mut found, mut at): (Vec<Found>, HashMap<(NamespaceId, Bytes), usize>) = Default::default();
        let (mut dots, mut count) = (Context::new(), 0);
        while from <= last && dots != wanted {
            let (rows, bytes) = (limits::SCAN_ROWS, limits::SCAN_BYTES);
            let read = self.storage.read_stream(DOT_LOG, &stream, (from, last), rows, bytes);
            let page = match in_time_or(deadline, read).await? {
                Ok(page) => page,
                Err(Gone { next, .. }) => {
                    from = next;
                    continue;
                }
            };
            let Some((end, _)) = page.last() else { break };
            from = end + 1;
            for (id, content) in page {
                let Logged::Key(mut entry) = Logged::decode(content)? else { continue };
                entry.writes.retain(|(dot, _)| wanted.covers(*dot));
                if entry.writes.is_empty() {
                    continue;
                }
                count += entry.writes.len();
                entry.writes.iter().for_each(|(dot, _)| dots.insert(*dot));
                let place = (entry.namespace, entry.key.clone());
                match at.get(&place).and_then(|at| found.get_mut(*at)) {
                    Some(known) => known.entry.writes.extend(entry.writes),
                    None => {
                        at.insert(place, found.len());
                        found.push(Found { first: id, entry });
                    }
                }
            }
            if count >= limits::LOG_DOTS {
                return Ok((found, Some(from)));
            }
        }
        Ok((found, None))
    }
}

/// What an entry says of a request.
fn taken_of(dot: Dot, write: &Write, token: u64) -> Taken {
    Taken { issued_at_ms: write.issued_at_ms, body: write.body, token, dots: vec![dot] }
}

/// What of a log goes: the entries up to one, how many these are, and of how many.
#[derive(Debug)]
struct Cut {
    to: u64,
    gone: u64,
    kept: u64,
}

/// How much room the logs of a node have.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// Of all of them.
    bytes: u64,
    max_bytes: u64,
    /// No hint can carry a twin of an old request.
    calm: bool,
}

impl Room {
    /// Requests that were issued then or later are needed, in a log of so many entries. While it is not calm
    /// all of them are, as long as there is room.
    fn needed_since(&self, kept: u64, now_ms: u64) -> u64 {
        let crowded = kept > limits::LOG_ENTRIES / 2 || self.bytes > self.max_bytes / 2;
        match (crowded, self.calm) {
            (true, _) => now_ms.saturating_sub(limits::REQUEST_KEPT_CROWDED.as_millis() as u64),
            (false, true) => now_ms.saturating_sub(limits::REQUEST_KEPT.as_millis() as u64),
            (false, false) => 0,
        }
    }

    /// How many of `kept` entries are too many: an eighth more than that, so that it is not every time one.
    /// They count as `most`, if they name so many requests.
    fn too_many(&self, most: u64, kept: u64) -> u64 {
        let share = |have: u64, max: u64| match have > max {
            // Rounded up.
            true => (u128::from(kept) * u128::from(have - max / 8 * 7)).div_ceil(u128::from(have)) as u64,
            false => 0,
        };
        share(most, limits::LOG_ENTRIES).max(share(self.bytes, self.max_bytes)).min(kept)
    }
}

/// Entries that were trimmed or are lost: where the log goes on.
struct Gone {
    trimmed: bool,
    next: u64,
}

/// A page of the log, or where it goes on behind entries that are gone.
async fn in_time_or<T>(
    deadline: Instant,
    read: impl Future<Output = Result<T, StorageError>>,
) -> Result<Result<T, Gone>, Failure> {
    let read = async {
        match read.await {
            Ok(page) => Ok(Ok(page)),
            Err(StorageError::Journal(JournalError::Trimmed { floor })) => {
                Ok(Err(Gone { trimmed: true, next: floor }))
            }
            Err(StorageError::Journal(JournalError::Damaged { last, .. })) => {
                Ok(Err(Gone { trimmed: false, next: last.saturating_add(1) }))
            }
            Err(error) => Err(error),
        }
    };
    in_time(deadline, read).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(counter: u64) -> Dot {
        Dot { incarnation: Incarnation(1), counter }
    }

    fn clock(last: u64) -> NodeClock {
        let mut clock = NodeClock::new();
        (1..=last).for_each(|counter| clock.add(dot(counter)));
        clock
    }

    #[test]
    fn entries_survive() {
        let write =
            Write { issued_at_ms: 7, request: RequestId { client_id: ClientId(8), seq: 9 }, body: 10 };
        let (namespace, key) = (NamespaceId(3), Bytes::from_static(b"k\0\xff"));
        let entry = Entry { namespace, key, writes: vec![(dot(1), write), (dot(5), write)] };
        let bytes = entry.encode();
        assert_eq!(Logged::decode(bytes.clone()).unwrap(), Logged::Key(entry.clone()));
        let none = Entry { writes: Vec::new(), ..entry };
        assert_eq!(Logged::decode(none.encode()).unwrap(), Logged::Key(none));
        for cut in 1..52 {
            assert!(Logged::decode(bytes.slice(..bytes.len() - cut)).is_err(), "{cut}");
        }
        let taken = |dots: Vec<Dot>| Taken { issued_at_ms: 1, body: 2, token: 3, dots };
        let told = vec![(write.request, taken(vec![dot(1), dot(9)])), (write.request, taken(Vec::new()))];
        let bytes = encode_told(&told);
        assert_eq!(Logged::decode(bytes.clone()).unwrap(), Logged::Requests(told));
        for cut in 1..49 {
            assert!(Logged::decode(bytes.slice(..bytes.len() - cut)).is_err(), "{cut}");
        }
        for bad in
            [&[][..], &[VERSION], &[1, 0], &[VERSION, 2], &[VERSION, 0, 0, 0, 0, 0, 0, 0, 0, 1, 255, 0, 0, 0]]
        {
            assert!(Logged::decode(Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_log_has_room_until_it_is_full_and_is_crowded_before() {
        let room = |bytes: u64, calm: bool| Room { bytes, max_bytes: 1_000, calm };
        let now = 10 * limits::REQUEST_KEPT.as_millis() as u64;
        let since = |room: Room, kept: u64| now - room.needed_since(kept, now);
        let (long, short) =
            (limits::REQUEST_KEPT.as_millis() as u64, limits::REQUEST_KEPT_CROWDED.as_millis() as u64);
        let half = limits::LOG_ENTRIES / 2;
        assert_eq!((since(room(500, true), half), since(room(500, false), half)), (long, now));
        for calm in [true, false] {
            assert_eq!((since(room(501, calm), 1), since(room(0, calm), half + 1)), (short, short));
        }
        let most = limits::LOG_ENTRIES;
        assert_eq!(room(1_000, true).too_many(most, most), 0);
        assert_eq!(room(0, true).too_many(most + 1, most + 1), most / 8 + 1);
        assert_eq!(room(0, true).too_many(2 * most, 4), 3, "few entries that name many requests");
        assert_eq!(room(2_000, true).too_many(100, 100), 57, "to seven eighths of 1,000, rounded up");
        assert_eq!(room(1_001, true).too_many(1, 1), 1, "a single one that is too large goes");
        assert_eq!(Room { max_bytes: 0, ..room(5, true) }.too_many(9, 9), 9);
    }

    #[test]
    fn an_entry_is_needed_until_all_others_have_it() {
        let (two, three) = (NodeId(2), NodeId(3));
        let others = [two, three];
        let mut marks = Marks::default();
        for last in [10, 20, 30] {
            marks.note(last, &clock(last));
        }
        assert_eq!(marks.covered_by_all(&others, 30), 0);
        marks.cover(two, 30);
        assert_eq!(marks.covered_by_all(&others, 30), 0, "one of them is not all of them");
        marks.cover_dots(three, clock(25).dots());
        assert_eq!(marks.covered_by_all(&others, 30), 20);
        marks.cover_dots(three, clock(5).dots());
        assert_eq!(marks.covered_by_all(&others, 30), 20, "it does not go back");
        marks.trimmed(20);
        assert_eq!(marks.marks.len(), 1);
        assert_eq!(marks.covered_by_all(&[], 30), 30, "no other keeps the ring partition");
    }

    #[test]
    fn marks_are_few_and_the_first_stays() {
        let mut marks = Marks::default();
        for last in 1..1_000 {
            marks.note(last, &clock(last));
            marks.note(last, &clock(last));
            assert!(marks.marks.len() <= limits::LOG_MARKS);
            assert_eq!((marks.marks[0].0, marks.marks.last().unwrap().0), (1, last));
            assert_eq!(marks.clock(), *clock(last).dots(), "joined marks lose nothing");
        }
        for (other, has) in [(2, 1), (3, 700), (4, 999)] {
            marks.cover_dots(NodeId(other), clock(has).dots());
            let covered = marks.covered[&NodeId(other)];
            assert!(covered <= has && (has == 700 || covered == has), "{covered} of {has}");
        }
        let mut gaps = clock(999);
        (0..=limits::LOG_MARK_RANGES as u64).for_each(|n| gaps.add(dot(2 * n + 2_001)));
        let before = marks.marks.len();
        marks.note(1_000, &gaps);
        assert_eq!(marks.marks.len(), before, "what fills very many gaps is not kept");
    }

    /// Each start of a node adds a range to the clock, and none of them ever goes.
    #[test]
    fn marks_do_not_mind_how_many_lives_a_clock_names() {
        let mut lives = NodeClock::new();
        let life = |n: u64| Dot { incarnation: Incarnation(n), counter: 1 };
        (0..4_000).for_each(|n| lives.add(life(n)));
        let mut marks = Marks::default();
        marks.note(5, &lives);
        lives.add(life(9_000));
        marks.note(6, &lives);
        marks.cover_dots(NodeId(2), lives.dots());
        assert_eq!(marks.covered_by_all(&[NodeId(2)], 6), 6);
        marks.trimmed(6);
        lives.add(life(9_001));
        marks.note(7, &lives);
        assert_eq!(marks.before(&[life(9_001)].into_iter().collect()), 0);
        assert_eq!(marks.clock(), *lives.dots());
    }

    #[test]
    fn what_a_log_has_is_counted_by_its_entries() {
        let mut length = Length::default();
        (0..10).for_each(|_| length.add(100));
        assert_eq!((length.last, length.bytes), (10, 10 * (100 + limits::LOG_ENTRY_BYTES)));
        length.trim(4, 10);
        assert_eq!(length.bytes, 6 * (100 + limits::LOG_ENTRY_BYTES));
        length.trim(6, 6);
        assert_eq!(length.bytes, 0);
        length.trim(1, 0);
    }

    #[test]
    fn the_log_is_read_from_where_the_dots_may_be() {
        let mut marks = Marks::default();
        [10, 20, 30].into_iter().for_each(|last| marks.note(last, &clock(last)));
        let dots = |counters: &[u64]| counters.iter().map(|counter| dot(*counter)).collect::<Context>();
        assert_eq!(marks.before(&dots(&[25])), 20);
        assert_eq!(marks.before(&dots(&[31])), 30);
        assert_eq!(marks.before(&dots(&[3, 31])), 0);
    }
}
