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

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kv_storage::journal::JournalError;
use kv_storage::{Batch, Position, StorageError};
use kv_types::causal::{Context, Dot, NodeClock, State, Write};
use kv_types::{ClientId, Failure, Incarnation, NamespaceId, NodeId, RequestId};
use tokio::time::Instant;

use super::rows::{Rows, Stop, Want, in_time, lock};
use super::{Partition, RECORDS, Replica, corrupt, storage_failure};
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
    /// The last entry, and the clock, of a moment; in their order.
    marks: Vec<(u64, Context)>,
    /// The last entry up to which a primary has everything.
    covered: BTreeMap<NodeId, u64>,
}

impl Marks {
    /// Notes the present moment. A clock with many gaps is not kept: one that is alike says as much.
    fn note(&mut self, last: u64, clock: &NodeClock) {
        let known = self.marks.last().is_some_and(|(end, _)| *end == last);
        if known || clock.dots().ranges().len() > limits::LOG_MARK_RANGES {
            return;
        }
        if self.marks.len() >= limits::LOG_MARKS {
            // The first one frees room first; of the others every second goes.
            let mut at = 0;
            self.marks.retain(|_| {
                at += 1;
                at == 1 || at % 2 == 0
            });
        }
        self.marks.push((last, clock.dots().clone()));
    }

    /// A primary has everything up to that entry.
    fn cover(&mut self, other: NodeId, last: u64) {
        let covered = self.covered.entry(other).or_default();
        *covered = last.max(*covered);
    }

    /// A primary has these dots.
    fn cover_dots(&mut self, other: NodeId, dots: &Context) {
        let all_of = self.marks.iter().rev().find(|(_, clock)| dots.contains_all(clock));
        if let Some((last, _)) = all_of {
            self.cover(other, *last);
        }
    }

    /// The last entry that none of them needs.
    fn covered_by_all(&self, others: &[NodeId], last: u64) -> u64 {
        let of = |other: &NodeId| self.covered.get(other).copied().unwrap_or(0);
        others.iter().map(of).min().unwrap_or(last).min(last)
    }

    fn trimmed(&mut self, to: u64) {
        self.marks.retain(|(last, _)| *last > to);
    }

    /// The last entry before which none of these dots is.
    fn before(&self, dots: &Context) -> u64 {
        self.marks.iter().rev().find(|(_, clock)| !clock.meets(dots)).map_or(0, |(last, _)| *last)
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
    /// The log knows of more.
    pub(crate) more: bool,
}

impl Replica {
    /// The last entry of a ring partition's log, as storage knows it.
    pub(super) fn last_logged(&self, slice: Slice) -> u64 {
        self.storage.stream_bounds(DOT_LOG, &slice.prefix()).1.unwrap_or(0)
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
        next.logged += 1;
        let (namespace, key) = (place.namespace, place.key.clone());
        let entry = Entry { namespace, key, writes: new.to_vec() };
        rows.append(DOT_LOG, &place.slice.prefix(), next.logged, &entry.encode());
    }

    /// The clock of a ring partition, to be compared with those of others.
    pub(crate) fn compared(&self, slice: Slice) -> Compared {
        let partition = self.partition(slice);
        let state = &mut lock(&partition).state;
        Arc::make_mut(&mut state.marks).note(state.logged, &state.clock);
        Compared { clock: state.clock.clone(), last: state.logged }
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
    pub(crate) fn trim_logs(&self, slices: &[(Slice, Vec<NodeId>)], max_bytes: u64) -> Result<(), Failure> {
        let of = |(slice, _): &(Slice, Vec<NodeId>)| self.storage.stream_bytes(DOT_LOG, &slice.prefix());
        let crowded = slices.iter().map(of).sum::<u64>() > max_bytes;
        let mut batch = Batch::new();
        let mut trimmed = 0;
        for (slice, others) in slices {
            let stream = slice.prefix();
            let first = self.storage.stream_bounds(DOT_LOG, &stream).0.max(1);
            let partition = self.partition(*slice);
            let state = &mut lock(&partition).state;
            let mut to = state.marks.covered_by_all(others, state.logged);
            let kept = state.logged.saturating_sub(first - 1);
            if kept > limits::LOG_ENTRIES || (crowded && kept > 1) {
                to = to.max(state.logged - kept / 2);
            }
            if to >= first {
                batch.push_trim(DOT_LOG, &stream, to + 1);
                Arc::make_mut(&mut state.marks).trimmed(to);
                trimmed += 1;
            }
        }
        if trimmed > 0 {
            self.storage.commit_bulk(batch).map_err(storage_failure)?;
        }
        Ok(())
    }

    /// The records of the keys that `missing` is of, as far as this node has those dots and its log knows
    /// them: `max_bytes` of them, but at least one.
    pub(crate) async fn lacked(
        &self,
        slice: Slice,
        missing: &Context,
        max_bytes: usize,
        deadline: Instant,
    ) -> Result<Lacked, Failure> {
        let (found, mut more) = self.find_logged(slice, missing, deadline).await?;
        let (clock, position) = self.clock(slice);
        let mut lacked = Lacked { records: Vec::new(), clock, position, more: false };
        let mut bytes = 0;
        for some in found.chunks(limits::LOG_KEYS) {
            if bytes >= max_bytes {
                more = true;
                break;
            }
            let read = |_: &mut Partition, rows: &mut Rows<'_>| self.lacked_now(slice, some, rows);
            // The clock is older than these rows: so filled they claim less than they could.
            for (place, state, at) in self.run(slice, deadline, read).await? {
                let record = state.encode_readable().map_err(|error| corrupt(&error.to_string()))?;
                bytes += record.len() + place.key.len();
                lacked.position = lacked.position.max(at);
                lacked.records.push((place, record));
            }
        }
        lacked.more = more;
        Ok(lacked)
    }

    /// The rows of some keys with the writes that the log names.
    fn lacked_now(
        &self,
        slice: Slice,
        keys: &[Entry],
        rows: &mut Rows<'_>,
    ) -> Result<Vec<(Place, State, Position)>, Stop> {
        let place = |entry: &Entry| Place { slice, namespace: entry.namespace, key: entry.key.clone() };
        rows.expect(keys.iter().map(|entry| Want::Row(RECORDS, place(entry).record_key().freeze())))?;
        let mut found = Vec::with_capacity(keys.len());
        for entry in keys {
            let place = place(entry);
            let stored = self.stored(&place, rows)?.filter(|_| !kv_types::mutant!(LogWithoutRecord));
            let (mut state, at) = stored.unwrap_or((State::default(), Position::DURABLE));
            state.writes.extend(entry.writes.iter().copied());
            found.push((place, state, at));
        }
        Ok(found)
    }

    /// The keys of these dots, each with all of them that are found; and whether there may be more.
    async fn find_logged(
        &self,
        slice: Slice,
        missing: &Context,
        deadline: Instant,
    ) -> Result<(Vec<Entry>, bool), Failure> {
        let stream = slice.prefix();
        let (mut from, last, wanted) = {
            let partition = self.partition(slice);
            let state = &lock(&partition).state;
            let wanted = missing.difference(&missing.difference(state.clock.dots()));
            (state.marks.before(missing) + 1, state.logged, wanted)
        };
        let (mut found, mut at): (Vec<Entry>, HashMap<(NamespaceId, Bytes), usize>) = Default::default();
        let mut dots = Context::new();
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
            for (_, content) in page {
                let mut entry = Entry::decode(content).ok_or_else(|| corrupt("the dot log"))?;
                entry.writes.retain(|(dot, _)| wanted.covers(*dot));
                if entry.writes.is_empty() {
                    continue;
                }
                entry.writes.iter().for_each(|(dot, _)| dots.insert(*dot));
                let place = (entry.namespace, entry.key.clone());
                match at.get(&place).and_then(|at| found.get_mut(*at)) {
                    Some(known) => known.writes.extend(entry.writes),
                    None => {
                        at.insert(place, found.len());
                        found.push(entry);
                    }
                }
            }
            if found.iter().map(|entry| entry.writes.len()).sum::<usize>() >= limits::LOG_DOTS {
                return Ok((found, true));
            }
        }
        Ok((found, false))
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
        }
        let mut gaps = NodeClock::new();
        (0..=limits::LOG_MARK_RANGES as u64).for_each(|n| gaps.add(dot(2 * n + 1)));
        let before = marks.marks.len();
        marks.note(1_000, &gaps);
        assert_eq!(marks.marks.len(), before, "a clock with many gaps is not kept");
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
