//! The dot log of a ring partition: which dots are of which key, in the order in which they came here. It is
//! written with the record, in one batch. A primary that lacks some dots asks another one for the records of
//! their keys, and gets those alone (log-based anti-entropy: Gonçalves et al., "DottedDB", 2017).
//!
//! What the log says of a dot counts as long as the node clock has it: after the loss of a tier the log knows
//! more than the node. An answer may be incomplete, for the log is bounded and does not know what a pull
//! brought. Who asks sees which dots still miss, and pulls the ring partition.
//!
//! An entry goes once all other primaries have its dots. The node learns of their clocks when clocks are
//! compared, and keeps a few marks: how long the log was, and what the clock was. A primary that has all of a
//! mark's clock needs nothing of the log up to there.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kv_storage::journal::JournalError;
use kv_storage::{Batch, Position, StorageError};
use kv_types::causal::{Context, Dot, NodeClock, State, Write};
use kv_types::{ClientId, Failure, Incarnation, NamespaceId, NodeId, RequestId};
use tokio::time::Instant;

use super::rows::{Rows, Stop, Want, in_time, lock};
use super::{Partition, RECORDS, Replica, corrupt, is_too_large, storage_failure};
use crate::layout::{DOT_LOG, Place, Slice};
use crate::limits;

/// Of an entry.
const VERSION: u8 = 1;

/// What a key got: its dots with what they stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    namespace: NamespaceId,
    key: Bytes,
    writes: Vec<(Dot, Write)>,
}

impl Entry {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(13 + self.key.len() + 52 * self.writes.len());
        out.put_u8(VERSION);
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
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
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

    /// Writes down which key got these dots, in the batch that brings them.
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

    /// Gives up entries that no other primary needs, and the older half of logs that are too long. `slices`:
    /// the ring partitions that this node keeps, with the other primaries; `max_bytes`: of all logs together.
    ///
    /// Not logged: a trim that is lost is made again. So there is room for it where writes find none.
    pub(crate) async fn trim_logs(
        &self,
        slices: &[(Slice, Vec<NodeId>)],
        max_bytes: u64,
    ) -> Result<(), Failure> {
        let bytes = |(slice, _): &(Slice, Vec<NodeId>)| lock(&self.partition(*slice)).state.logged.bytes;
        let crowded = slices.iter().map(bytes).sum::<u64>() > max_bytes;
        let mut batch = Batch::new();
        let mut trims = Vec::new();
        for (slice, others) in slices {
            let stream = slice.prefix();
            let first = self.storage.stream_bounds(DOT_LOG, &stream).0.max(1);
            let partition = self.partition(*slice);
            let state = &lock(&partition).state;
            let last = state.logged.last;
            let kept = (last + 1).saturating_sub(first);
            let mut to = state.marks.covered_by_all(others, last);
            if kept > limits::LOG_ENTRIES || (crowded && kept > 1) {
                to = to.max(last - kept / 2);
            }
            if to >= first {
                batch.push_trim(DOT_LOG, &stream, to + 1);
                trims.push((*slice, to, to + 1 - first, kept));
            }
        }
        if trims.is_empty() {
            return Ok(());
        }
        self.storage.apply(batch).await.map_err(storage_failure)?;
        // What was refused is still there, and counts.
        for (slice, to, gone, kept) in trims {
            let partition = self.partition(slice);
            let state = &mut lock(&partition).state;
            Arc::make_mut(&mut state.marks).trimmed(to);
            state.logged.trim(gone, kept);
        }
        Ok(())
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
                Err(behind) => {
                    from = behind;
                    continue;
                }
            };
            let Some((end, _)) = page.last() else { break };
            from = end + 1;
            for (id, content) in page {
                let mut entry = Entry::decode(content).ok_or_else(|| corrupt("the dot log"))?;
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

/// A page of the log, or the first entry behind those that were trimmed or are lost.
async fn in_time_or<T>(
    deadline: Instant,
    read: impl Future<Output = Result<T, StorageError>>,
) -> Result<Result<T, u64>, Failure> {
    let read = async {
        match read.await {
            Ok(page) => Ok(Ok(page)),
            Err(StorageError::Journal(JournalError::Trimmed { floor })) => Ok(Err(floor)),
            Err(StorageError::Journal(JournalError::Damaged { last, .. })) => Ok(Err(last.saturating_add(1))),
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
        assert_eq!(Entry::decode(bytes.clone()), Some(entry.clone()));
        let none = Entry { writes: Vec::new(), ..entry };
        assert_eq!(Entry::decode(none.encode()), Some(none));
        for cut in 1..52 {
            assert_eq!(Entry::decode(bytes.slice(..bytes.len() - cut)), None, "{cut}");
        }
        assert_eq!(Entry::decode(Bytes::from_static(&[2, 0])), None);
        assert_eq!(Entry::decode(Bytes::from_static(&[1, 0, 0, 0, 0, 0, 0, 0, 1, 255, 0, 0, 0])), None);
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
