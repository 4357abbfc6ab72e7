//! Reading the log at start: what is durable, what is torn, what is damaged.
//!
//! A frame is written only after everything before it was synced. So a hole with a valid frame behind it is
//! damage, and the node refuses to start; a hole with nothing valid behind it in the last segment is the
//! write that the crash interrupted, and is cut. A segment that has a successor must end exactly where the
//! successor's head says.
//!
//! The log is read once, a segment at a time. Data batches are checked and not kept: which of them are needed
//! is known when the tier is open. Then [`Recovered::replay`] reads those alone, from a place remembered
//! here.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;

use super::{
    entry::RaftLogId,
    frame::{self, Found, Frame, Head, Kind, Record},
    index::{Disorder, GroupIndex, Location, Recovering},
    segments::{FIRST_SEGMENT, segment_id, segment_path},
    small::{SmallState, small_key},
};
use crate::{
    batch::{self, Op},
    codec::Cursor,
    disk::{self, Disk, DiskFile},
    error::StorageError,
    limits,
};

/// A segment that holds something.
#[derive(Debug, Clone)]
pub(crate) struct Recovered {
    pub(crate) file: Arc<dyn DiskFile>,
    /// Where its frames end.
    pub(crate) end: u64,
    /// The last data batch in it, 0 if none.
    pub(crate) max_seq: u64,
    /// Where frames start that hold the data batches from a number on, some of them.
    data_at: Vec<(u64, u64)>,
}

/// The log as found.
#[derive(Debug, Default)]
pub(crate) struct FoundLog {
    pub(crate) segments: BTreeMap<u64, Recovered>,
    pub(crate) small: SmallState,
    pub(crate) groups: BTreeMap<u32, GroupIndex>,
    pub(crate) last_seq: u64,
    pub(crate) frame_number: u64,
    /// The last frame, and where it stands in the last segment. No frame behind it proves that it is durable.
    pub(crate) unproven: Option<(u64, Vec<u8>)>,
    /// Bytes behind the end of the last segment that must be zeroed before it is written again.
    pub(crate) torn: Option<(u64, usize)>,
    /// Files that hold nothing that counts: after the last segment, or before the first.
    pub(crate) empty: Vec<u64>,
}

impl FoundLog {
    /// True if no segment was ever dropped.
    pub(crate) fn is_whole(&self) -> bool {
        self.segments.keys().next().is_none_or(|first| *first == FIRST_SEGMENT)
    }

    /// Where the log ends: segment and offset.
    pub(crate) fn end(&self) -> (u64, u64) {
        self.segments.last_key_value().map_or((0, 0), |(id, s)| (*id, s.end))
    }
}

fn corrupt(segment: u64, offset: usize, what: impl Into<String>) -> StorageError {
    StorageError::CorruptLog { segment, offset: offset as u64, what: what.into() }
}

fn head_of(segment: u64, bytes: &[u8]) -> Result<Option<(Head, Frame<'_>)>, StorageError> {
    match frame::read(segment, bytes, 0) {
        Found::Frame(f) if f.kind == Kind::Head => match Head::decode(f.payload) {
            Some(head) => Ok(Some((head, f))),
            None => Err(corrupt(segment, 0, "the head has a format that this release does not know")),
        },
        Found::Frame(_) => Err(corrupt(segment, 0, "a segment must start with a head")),
        Found::Unknown(what) => Err(corrupt(segment, 0, format!("{what} is newer than this release"))),
        Found::Nothing => Ok(None),
    }
}

/// A segment in memory.
struct Loaded {
    id: u64,
    file: Arc<dyn DiskFile>,
    bytes: Bytes,
}

fn load(disk: &dyn Disk, dir: &Path, id: u64) -> Result<Loaded, StorageError> {
    let file = disk.open(&segment_path(dir, id), false).map_err(StorageError::io("open a log segment"))?;
    let bytes = disk::read_all(&*file).map_err(StorageError::io("read a log segment"))?;
    Ok(Loaded { id, file, bytes: Bytes::from(bytes) })
}

/// Reads the whole log without changing anything.
pub(crate) fn scan(disk: &dyn Disk, dir: &Path) -> Result<FoundLog, StorageError> {
    let files = disk.list(dir).map_err(StorageError::io("list the log"))?;
    let mut ids: Vec<u64> = files.iter().filter_map(|p| segment_id(p)).collect();
    ids.sort_unstable();
    let mut log = FoundLog::default();
    let Some(last) = find_last(disk, dir, &mut ids, &mut log.empty)? else {
        // Prepared files only. Number 1 among them: a first start that crashed. Otherwise the log itself is
        // gone.
        return match log.empty.iter().min() {
            Some(id) if *id != FIRST_SEGMENT => {
                Err(corrupt(*id, 0, "the segments before this one are missing"))
            }
            _ => Ok(log),
        };
    };
    // Removal goes from the front, but a crash may have kept any of the removed files: what stands before a
    // gap is ignored, provided that the log itself says that it may be missing.
    let gap = ids.windows(2).rposition(|pair| matches!(pair, [a, b] if a + 1 != *b));
    let suffix = ids.split_off(gap.map_or(0, |at| at + 1));
    let before_gap = std::mem::replace(&mut ids, suffix);
    let mut replay = Replay::default();
    let last_id = last.id;
    for id in ids.iter().copied().filter(|id| *id != last_id) {
        let loaded = load(disk, dir, id)?;
        replay.segment(&mut log, loaded, false)?;
    }
    replay.segment(&mut log, last, true)?;
    let first =
        replay.small.get(small_key::FIRST).and_then(|v| Cursor::new(v).u64()).unwrap_or(FIRST_SEGMENT);
    if let Some(found) = ids.first()
        && *found > first
    {
        return Err(corrupt(*found - 1, 0, "this segment is missing"));
    }
    log.empty.extend(before_gap);
    replay.finish(&mut log, ids.first().copied().unwrap_or(FIRST_SEGMENT))?;
    Ok(log)
}

/// The last segment that holds something. The ones after it were prepared, or were being started when the
/// power went.
fn find_last(
    disk: &dyn Disk,
    dir: &Path,
    ids: &mut Vec<u64>,
    empty: &mut Vec<u64>,
) -> Result<Option<Loaded>, StorageError> {
    while let Some(id) = ids.last().copied() {
        let loaded = load(disk, dir, id)?;
        if head_of(id, &loaded.bytes)?.is_some() {
            return Ok(Some(loaded));
        }
        if loaded.bytes.iter().any(|b| *b != 0)
            && let Some(at) = frame::find(id, &loaded.bytes, 0)
        {
            let what = format!("the head is damaged, but a valid frame stands at offset {at}");
            return Err(corrupt(id, 0, what));
        }
        empty.push(id);
        ids.pop();
    }
    Ok(None)
}

impl Recovered {
    /// Hands the data batches after `drained` to `take`, in order: number, operations, bytes.
    pub(crate) fn replay(
        &self,
        id: u64,
        drained: u64,
        mut take: impl FnMut(u64, Vec<Op>, usize) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        if self.max_seq <= drained {
            return Ok(());
        }
        let from = self.data_at.iter().rev().find(|(seq, _)| *seq <= drained + 1).or(self.data_at.first());
        let from = usize::try_from(from.map_or(0, |(_, at)| *at)).unwrap_or(usize::MAX);
        let end = usize::try_from(self.end).unwrap_or(usize::MAX);
        let mut bytes = vec![0; end.saturating_sub(from)];
        let n = self.file.read_at(&mut bytes, from as u64).map_err(StorageError::io("read a log segment"))?;
        bytes.truncate(n);
        let bytes = Bytes::from(bytes);
        let changed = |at: usize| corrupt(id, at, "changed while it was read");
        let mut at = from;
        while at < end {
            let Found::Frame(f) = frame::read_from(id, &bytes, from, at) else { return Err(changed(at)) };
            if f.kind == Kind::Batch {
                for record in frame::records(&f).ok_or_else(|| changed(at))? {
                    let Some(Record::Data(body)) = record.decode(&f) else { continue };
                    // A copy: what stays in the memtable does not pin the segment.
                    let body = Bytes::copy_from_slice(body);
                    let (seq, ops) = batch::decode(&body).ok_or_else(|| undecodable(id, at))?;
                    if seq > drained {
                        take(seq, ops, body.len())?;
                    }
                }
            }
            at = f.end;
        }
        Ok(())
    }
}

fn undecodable(segment: u64, at: usize) -> StorageError {
    corrupt(segment, at, "a data batch that this release does not know")
}

#[derive(Default)]
struct Replay {
    small: SmallState,
    groups: BTreeMap<u32, Recovering>,
    last_seq: u64,
    max_seq: u64,
    data_at: Vec<(u64, u64)>,
    last_number: Option<u64>,
}

impl Replay {
    fn purged(&self, group: u32) -> Option<RaftLogId> {
        self.small.get(&small_key::purged(group)).and_then(|v| RaftLogId::decode(v))
    }

    fn number(&mut self, id: u64, at: usize, number: u64) -> Result<(), StorageError> {
        if self.last_number.is_some_and(|last| number != last + 1) {
            return Err(corrupt(id, at, "a frame is missing before this one"));
        }
        self.last_number = Some(number);
        Ok(())
    }

    /// Takes a segment, which follows the ones before it.
    fn segment(&mut self, log: &mut FoundLog, loaded: Loaded, is_last: bool) -> Result<(), StorageError> {
        let Loaded { id, file, bytes } = loaded;
        let Some((head, f)) = head_of(id, &bytes)? else {
            return Err(corrupt(id, 0, "the head is damaged"));
        };
        match log.segments.last_key_value() {
            None => self.last_seq = head.last_seq,
            Some(_) if head.last_seq != self.last_seq => {
                return Err(corrupt(id, 0, "the head does not continue the segment before it"));
            }
            Some((before, found)) if (head.previous, head.previous_end) != (*before, found.end) => {
                let what = format!("ends here, but was durable up to {}", head.previous_end);
                return Err(corrupt(*before, found.end as usize, what));
            }
            Some(_) => {}
        }
        self.small = head.small.into_iter().collect();
        (self.max_seq, self.data_at) = (0, Vec::new());
        self.number(id, 0, f.number)?;
        let (last_at, end) = self.frames(id, &bytes, f.end)?;
        let rest = bytes.get(end..).unwrap_or_default();
        let used = rest.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1);
        if used > 0
            && let Some(next) = frame::find(id, &bytes, end + 1)
        {
            return Err(corrupt(id, end, format!("damaged, but a valid frame follows at offset {next}")));
        }
        if is_last {
            log.torn = (used > 0).then_some((end as u64, used));
            log.unproven = bytes.get(last_at..end).map(|frame| (last_at as u64, frame.to_vec()));
        }
        let (max_seq, data_at) = (self.max_seq, std::mem::take(&mut self.data_at));
        log.segments.insert(id, Recovered { file, end: end as u64, max_seq, data_at });
        Ok(())
    }

    /// Takes the frames behind the head: where the last starts (0: the head is the last), and where it ends.
    fn frames(&mut self, id: u64, bytes: &Bytes, head_end: usize) -> Result<(usize, usize), StorageError> {
        let (mut last_at, mut at) = (0, head_end);
        loop {
            match frame::read(id, bytes, at) {
                Found::Frame(f) => {
                    self.number(id, at, f.number)?;
                    if f.kind != Kind::Batch || f.durable != at as u64 {
                        return Err(corrupt(id, at, "a frame in a place that it was not written for"));
                    }
                    self.frame(id, at, &f, bytes)?;
                    (last_at, at) = (at, f.end);
                }
                Found::Unknown(what) => {
                    return Err(corrupt(id, at, format!("{what} is newer than this release")));
                }
                Found::Nothing => return Ok((last_at, at)),
            }
        }
    }

    fn frame(&mut self, id: u64, at: usize, f: &Frame<'_>, bytes: &Bytes) -> Result<(), StorageError> {
        let unknown = || corrupt(id, at, "a record that this release does not know");
        for record in frame::records(f).ok_or_else(unknown)? {
            match record.decode(f).ok_or_else(unknown)? {
                Record::Entry { copied, entry, payload_at, payload } => {
                    let place =
                        Location { segment: id, offset: payload_at as u32, bytes: payload.len() as u32 };
                    let name = RaftLogId { term: entry.term, node: entry.node, index: entry.index };
                    let index = self.groups.entry(entry.group).or_default();
                    let added = if copied { index.copied(name, place) } else { index.appended(name, place) };
                    added.map_err(|disorder| disordered(id, at, entry.group, disorder))?;
                }
                Record::Truncate { .. } if kv_types::mutant!(TailNotTruncated) => {}
                Record::Truncate { group, after } => self.groups.entry(group).or_default().truncate(after),
                Record::Small { key, value } => {
                    if let Some(group) = small_key::purged_group(key)
                        && let Some(purged) = value.and_then(RaftLogId::decode)
                    {
                        self.groups.entry(group).or_default().purge(purged.index);
                    }
                    self.small.set(key, value);
                }
                Record::Data(body) => self.data(id, at, &bytes.slice_ref(body))?,
            }
        }
        Ok(())
    }

    fn data(&mut self, id: u64, at: usize, body: &Bytes) -> Result<(), StorageError> {
        let (seq, ops) = batch::decode(body).ok_or_else(|| undecodable(id, at))?;
        if seq != self.last_seq + 1 {
            return Err(corrupt(id, at, format!("data batch {seq} follows {}", self.last_seq)));
        }
        (self.last_seq, self.max_seq) = (seq, seq);
        let apart = limits::REPLAY_MARK_BYTES;
        if self.data_at.last().is_none_or(|(_, last)| at as u64 >= last + apart) {
            self.data_at.push((seq, at as u64));
        }
        self.small.apply(&ops);
        Ok(())
    }

    /// Hands over what was found, if no entry is missing.
    fn finish(mut self, log: &mut FoundLog, first_segment: u64) -> Result<(), StorageError> {
        for group in self.small.rows().keys().filter_map(|key| small_key::any_group(key)) {
            self.groups.entry(group).or_default();
        }
        for (group, index) in std::mem::take(&mut self.groups) {
            let found = index.finish(self.purged(group));
            let found = found.map_err(|disorder| disordered(first_segment, 0, group, disorder))?;
            log.groups.insert(group, found);
        }
        log.frame_number = self.last_number.unwrap_or(0);
        log.last_seq = self.last_seq;
        log.small = self.small;
        Ok(())
    }
}

fn disordered(segment: u64, at: usize, group: u32, disorder: Disorder) -> StorageError {
    match disorder {
        Disorder::Missing(index) => {
            corrupt(segment, at, format!("Raft group {group} misses the entry with index {index}"))
        }
        Disorder::Renamed(index) => {
            corrupt(segment, at, format!("Raft group {group} has two entries with index {index}"))
        }
    }
}
