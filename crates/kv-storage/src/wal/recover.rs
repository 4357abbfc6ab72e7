//! Reading the log at start: what is durable, what is torn, what is damaged.
//!
//! A frame is written only after everything before it was synced. So a hole with a valid frame behind it is damage, and
//! the node refuses to start; a hole with nothing valid behind it in the last segment is the write that the crash
//! interrupted, and is cut. A segment that has a successor must end exactly where the successor's head says.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;

use super::{
    FIRST_SEGMENT,
    frame::{self, Found, Frame, Head, Kind, Record},
    segment_id, segment_path, small_key,
};
use crate::{
    codec::Cursor,
    disk::{self, Disk, DiskFile},
    error::StorageError,
    raft_log::{Group, Location, Meta, RaftLogId},
};

/// A segment that holds something.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) file: Arc<dyn DiskFile>,
    /// Where its frames end.
    pub(crate) end: u64,
    pub(crate) max_seq: u64,
}

/// The log as found.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) segments: BTreeMap<u64, Recovered>,
    pub(crate) small: BTreeMap<Bytes, Bytes>,
    pub(crate) groups: BTreeMap<u32, Group>,
    pub(crate) last_seq: u64,
    pub(crate) frame_number: u64,
    /// The last frame, and where it stands in the last segment. No frame behind it proves that it is durable.
    pub(crate) unproven: Option<(u64, Vec<u8>)>,
    /// Bytes behind the end of the last segment that must be zeroed before it is written again.
    pub(crate) torn: Option<(u64, usize)>,
    /// Files that hold nothing that counts: after the last segment, or before the first.
    pub(crate) empty: Vec<u64>,
}

impl Log {
    /// True if no segment was ever dropped.
    pub(crate) fn is_whole(&self) -> bool {
        self.segments.keys().next().is_none_or(|first| *first == FIRST_SEGMENT)
    }
}

fn corrupt(segment: u64, offset: usize, what: impl Into<String>) -> StorageError {
    StorageError::CorruptLog { segment, offset: offset as u64, what: what.into() }
}

fn head_of(segment: u64, bytes: &[u8]) -> Result<Option<(Head, usize)>, StorageError> {
    match frame::read(segment, bytes, 0) {
        Found::Frame(Frame { kind: Kind::Head, payload, end, .. }) => match Head::decode(payload) {
            Some(head) => Ok(Some((head, end))),
            None => Err(corrupt(segment, 0, "the head has a format that this release does not know")),
        },
        Found::Frame(_) => Err(corrupt(segment, 0, "a segment must start with a head")),
        Found::Unknown(what) => Err(corrupt(segment, 0, format!("{what} is newer than this release"))),
        Found::Nothing => Ok(None),
    }
}

/// Reads the whole log without changing anything.
pub(crate) fn scan(disk: &dyn Disk, dir: &Path) -> Result<Log, StorageError> {
    let files = disk.list(dir).map_err(StorageError::io("list the log"))?;
    let mut ids: Vec<u64> = files.iter().filter_map(|p| segment_id(p)).collect();
    ids.sort_unstable();
    let mut log = Log::default();
    let mut replay = Replay::default();
    // Segments at the end that hold nothing were prepared, or were being started when the power went.
    let mut last = None;
    while let Some(id) = ids.last().copied() {
        let (file, bytes) = load(disk, dir, id)?;
        if head_of(id, &bytes)?.is_some() {
            last = Some((id, file, bytes));
            break;
        }
        if bytes.iter().any(|b| *b != 0)
            && let Some(at) = frame::find(id, &bytes, 0)
        {
            return Err(corrupt(
                id,
                0,
                format!("the head is damaged, but a valid frame stands at offset {at}"),
            ));
        }
        log.empty.push(id);
        ids.pop();
    }
    let Some((last_id, last_file, last_bytes)) = last else {
        // Prepared files only. Number 1 among them: a first start that crashed. Otherwise the log itself is gone.
        return match log.empty.iter().min() {
            Some(id) if *id != FIRST_SEGMENT => {
                Err(corrupt(*id, 0, "the segments before this one are missing"))
            }
            _ => Ok(log),
        };
    };
    // Removal goes from the front, but a crash may have kept any of the removed files: what stands before a gap is
    // ignored, provided that the log itself says that it may be missing.
    let gap = ids.windows(2).rposition(|pair| matches!(pair, [a, b] if a + 1 != *b));
    let suffix = ids.split_off(gap.map_or(0, |at| at + 1));
    let before_gap = std::mem::replace(&mut ids, suffix);
    for (position, id) in ids.iter().copied().enumerate() {
        let (file, bytes) = match id == last_id {
            true => (last_file.clone(), last_bytes.clone()),
            false => load(disk, dir, id)?,
        };
        let Some((head, head_end)) = head_of(id, &bytes)? else {
            return Err(corrupt(id, 0, "the head is damaged"));
        };
        if position == 0 {
            replay.last_seq = head.last_seq;
        } else if head.last_seq != replay.last_seq {
            return Err(corrupt(id, 0, "the head does not continue the segment before it"));
        }
        if let Some((before, found)) = log.segments.last_key_value()
            && (head.previous, head.previous_end) != (*before, found.end)
        {
            let what = format!("ends here, but was durable up to {}", head.previous_end);
            return Err(corrupt(*before, found.end as usize, what));
        }
        replay.small = head.small.into_iter().collect();
        replay.max_seq = 0;
        let (mut at, mut last_at) = (head_end, 0);
        replay.number(id, 0, &bytes)?;
        loop {
            match frame::read(id, &bytes, at) {
                Found::Frame(f) => {
                    replay.number(id, at, &bytes)?;
                    if f.kind != Kind::Batch || f.durable != at as u64 {
                        return Err(corrupt(id, at, "a frame in a place that it was not written for"));
                    }
                    replay.frame(id, at, &f)?;
                    (last_at, at) = (at, f.end);
                }
                Found::Unknown(what) => {
                    return Err(corrupt(id, at, format!("{what} is newer than this release")));
                }
                Found::Nothing => break,
            }
        }
        let rest = bytes.get(at..).unwrap_or_default();
        let used = rest.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1);
        if used > 0
            && let Some(next) = frame::find(id, &bytes, at + 1)
        {
            return Err(corrupt(id, at, format!("damaged, but a valid frame follows at offset {next}")));
        }
        if id == last_id {
            log.torn = (used > 0).then_some((at as u64, used));
            log.unproven = bytes.get(last_at..at).map(|frame| (last_at as u64, frame.to_vec()));
        }
        log.segments.insert(id, Recovered { file, end: at as u64, max_seq: replay.max_seq });
    }
    let first =
        replay.small.get(small_key::FIRST).and_then(|v| Cursor::new(v).u64()).unwrap_or(FIRST_SEGMENT);
    if let Some(found) = ids.first()
        && *found > first
    {
        return Err(corrupt(*found - 1, 0, "this segment is missing"));
    }
    log.empty.extend(before_gap);
    log.frame_number = replay.last_number.unwrap_or(0);
    log.last_seq = replay.last_seq;
    for (group, entries) in std::mem::take(&mut replay.entries) {
        let purged = replay.purged(group);
        let group_state = Group::recovered(purged, entries).map_err(|index| {
            let first = ids.first().copied().unwrap_or(FIRST_SEGMENT);
            corrupt(first, 0, format!("Raft group {group} misses the entry with index {index}"))
        })?;
        log.groups.insert(group, group_state);
    }
    for key in replay.small.keys() {
        if let Some(group) = small_key::any_group(key)
            && !log.groups.contains_key(&group)
        {
            let state = Group::recovered(replay.purged(group), BTreeMap::new()).unwrap_or_default();
            log.groups.insert(group, state);
        }
    }
    log.small = replay.small;
    Ok(log)
}

fn load(disk: &dyn Disk, dir: &Path, id: u64) -> Result<(Arc<dyn DiskFile>, Vec<u8>), StorageError> {
    let file = disk.open(&segment_path(dir, id), false).map_err(StorageError::io("open a log segment"))?;
    let bytes = disk::read_all(&*file).map_err(StorageError::io("read a log segment"))?;
    Ok((file, bytes))
}

/// The data batches of a recovered segment, in order.
pub(crate) fn data_of(id: u64, segment: &Recovered) -> Result<Vec<Bytes>, StorageError> {
    let bytes = disk::read_all(&*segment.file).map_err(StorageError::io("read a log segment"))?;
    let mut out = Vec::new();
    let mut at = 0;
    while (at as u64) < segment.end {
        let Found::Frame(f) = frame::read(id, &bytes, at) else {
            return Err(corrupt(id, at, "changed while it was read"));
        };
        if f.kind == Kind::Batch {
            for record in frame::records(&f).unwrap_or_default() {
                if let Some(Record::Data(body)) = record.decode(&f) {
                    out.push(Bytes::copy_from_slice(body));
                }
            }
        }
        at = f.end;
    }
    Ok(out)
}

#[derive(Default)]
struct Replay {
    small: BTreeMap<Bytes, Bytes>,
    entries: BTreeMap<u32, BTreeMap<u64, Meta>>,
    last_seq: u64,
    max_seq: u64,
    last_number: Option<u64>,
}

impl Replay {
    fn purged(&self, group: u32) -> Option<RaftLogId> {
        self.small.get(&small_key::purged(group)).and_then(|v| RaftLogId::decode(v))
    }

    fn number(&mut self, id: u64, at: usize, bytes: &[u8]) -> Result<(), StorageError> {
        let Found::Frame(f) = frame::read(id, bytes, at) else {
            return Ok(());
        };
        if self.last_number.is_some_and(|last| f.number != last + 1) {
            return Err(corrupt(id, at, "a frame is missing before this one"));
        }
        self.last_number = Some(f.number);
        Ok(())
    }

    fn frame(&mut self, id: u64, at: usize, f: &Frame<'_>) -> Result<(), StorageError> {
        let unknown = || corrupt(id, at, "a record that this release does not know");
        for record in frame::records(f).ok_or_else(unknown)? {
            match record.decode(f).ok_or_else(unknown)? {
                Record::Entry { copied, entry, payload_at, payload } => {
                    let entries = self.entries.entry(entry.group).or_default();
                    if !copied && !kv_types::mutant!(TailNotTruncated) {
                        // An append says what the tail is, whether or not a truncation was written before it.
                        entries.split_off(&entry.index);
                    }
                    let location =
                        Location { segment: id, offset: payload_at as u32, bytes: payload.len() as u32 };
                    let id = RaftLogId { term: entry.term, node: entry.node, index: entry.index };
                    entries.insert(entry.index, Meta::on_disk(id, location));
                }
                Record::Truncate { group, after } => {
                    let entries = self.entries.entry(group).or_default();
                    match after {
                        _ if kv_types::mutant!(TailNotTruncated) => {}
                        Some(after) => drop(entries.split_off(&after.saturating_add(1))),
                        None => entries.clear(),
                    }
                }
                Record::Small { key, value } => {
                    if let Some(group) = small_key::purged_group(key)
                        && let Some(purged) = value.and_then(RaftLogId::decode)
                    {
                        let entries = self.entries.entry(group).or_default();
                        *entries = entries.split_off(&purged.index.saturating_add(1));
                    }
                    match value {
                        Some(value) => {
                            self.small.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                        }
                        None => drop(self.small.remove(key)),
                    }
                }
                Record::Data(body) => {
                    let seq = Cursor::new(body).u64().ok_or_else(unknown)?;
                    let (_, ops) = crate::batch::decode(&Bytes::copy_from_slice(body)).ok_or_else(unknown)?;
                    if seq != self.last_seq + 1 {
                        return Err(corrupt(id, at, format!("data batch {seq} follows {}", self.last_seq)));
                    }
                    (self.last_seq, self.max_seq) = (seq, seq);
                    for op in ops {
                        if let crate::batch::Op::Small(key, value) = op {
                            match value {
                                Some(value) => {
                                    // Copies: the small state outlives the frame by far.
                                    self.small
                                        .insert(Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value));
                                }
                                None => drop(self.small.remove(&key)),
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
