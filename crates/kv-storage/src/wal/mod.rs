//! The shared log: segments, the writer, recovery.

pub(crate) mod frame;
pub(crate) mod recover;
pub(crate) mod segments;
pub(crate) mod writer;

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use crate::raft_log::{Done, RaftEntry};

/// The first segment of a data directory.
pub(crate) const FIRST_SEGMENT: u64 = 1;

/// The file of a segment.
pub(crate) fn segment_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.seg"))
}

/// The segment of a file name.
pub(crate) fn segment_id(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".seg")?;
    (name.len() == 16).then(|| u64::from_str_radix(name, 16).ok()).flatten()
}

/// Keys of the small state that belong to storage: `0`, a letter, and more.
pub(crate) mod small_key {
    use bytes::Bytes;

    const OWN: u8 = 0;

    fn of_group(kind: u8, group: u32) -> Bytes {
        let mut key = vec![OWN, kind];
        key.extend_from_slice(&group.to_be_bytes());
        Bytes::from(key)
    }

    /// The vote of a Raft group.
    pub(crate) fn vote(group: u32) -> Bytes {
        of_group(b'V', group)
    }

    /// The last purged log id of a Raft group.
    pub(crate) fn purged(group: u32) -> Bytes {
        of_group(b'P', group)
    }

    /// The committed hint of a Raft group.
    pub(crate) fn committed(group: u32) -> Bytes {
        of_group(b'C', group)
    }

    /// The group of a purge key.
    pub(crate) fn purged_group(key: &[u8]) -> Option<u32> {
        Some(u32::from_be_bytes(key.strip_prefix(&[OWN, b'P'])?.try_into().ok()?))
    }

    /// The group of a vote or purge key.
    pub(crate) fn any_group(key: &[u8]) -> Option<u32> {
        let group = key.strip_prefix(&[OWN, b'V']).or(key.strip_prefix(&[OWN, b'P']))?;
        Some(u32::from_be_bytes(group.try_into().ok()?))
    }

    /// Which tier belongs to this log, and up to where it was on disk.
    pub(crate) const TIER: &[u8] = &[OWN, b'T'];
    /// Set while the loss of a tier has not been made good.
    pub(crate) const TIER_LOST: &[u8] = &[OWN, b'L'];
    /// The first segment that must exist.
    pub(crate) const FIRST: &[u8] = &[OWN, b'F'];
    /// Ranges that are being replaced.
    pub(crate) const REPLACE: &[u8] = &[OWN, b'R'];
}

/// Raft entries of one group with successive indexes, which the writer writes next to each other.
pub(crate) struct Run {
    pub(crate) group: u32,
    /// Of the first; the others follow it.
    append_id: u64,
    /// Moved from an older segment.
    pub(crate) copied: bool,
    pub(crate) entries: Vec<RaftEntry>,
    bytes: usize,
}

impl Run {
    pub(crate) fn new(group: u32, append_id: u64, copied: bool, entries: Vec<RaftEntry>) -> Run {
        let bytes = entries.iter().map(|e| frame::RECORD_HEAD + frame::ENTRY_HEAD + e.payload.len()).sum();
        Run { group, append_id, copied, entries, bytes }
    }

    /// Each entry with its append id and the offset of its head, given the first's.
    pub(crate) fn placed(&self, first: u32) -> impl Iterator<Item = (&RaftEntry, u64, u32)> {
        let mut next = first;
        self.entries.iter().zip(self.append_id..).map(move |(entry, append_id)| {
            let offset = next;
            next += (frame::RECORD_HEAD + frame::ENTRY_HEAD + entry.payload.len()) as u32;
            (entry, append_id, offset)
        })
    }
}

/// Something for the writer, in the order in which it must become durable.
pub(crate) enum Item {
    Run(Run, Option<Done>),
    Truncate {
        group: u32,
        after: Option<u64>,
    },
    Small {
        key: Bytes,
        value: Option<Bytes>,
        done: Option<Done>,
    },
    /// Nothing to write: `done` when everything before it is durable.
    Barrier {
        done: Option<Done>,
    },
}

impl Item {
    /// Whom to tell.
    pub(crate) fn done(&mut self) -> Option<Done> {
        match self {
            Item::Run(_, done) | Item::Small { done, .. } | Item::Barrier { done } => done.take(),
            Item::Truncate { .. } => None,
        }
    }

    pub(crate) fn records(&self) -> usize {
        match self {
            Item::Run(run, _) => run.entries.len(),
            Item::Truncate { .. } | Item::Small { .. } => 1,
            Item::Barrier { .. } => 0,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        frame::RECORD_HEAD
            + match self {
                Item::Run(run, _) => return run.bytes,
                Item::Truncate { .. } => 13,
                Item::Small { key, value, .. } => 4 + key.len() + value.as_ref().map_or(0, Bytes::len),
                Item::Barrier { .. } => 0,
            }
    }
}

/// A data batch on its way to the log.
pub(crate) struct DataItem {
    pub(crate) seq: u64,
    pub(crate) encoded: Bytes,
    pub(crate) bulk: bool,
    /// It changes small state, which the writer repeats in segment heads.
    pub(crate) has_small: bool,
}

impl DataItem {
    pub(crate) fn bytes(&self) -> usize {
        frame::RECORD_HEAD + self.encoded.len()
    }
}

/// What waits for the writer. Bounds are kept by those who push.
#[derive(Default)]
pub(crate) struct Queues {
    pub(crate) raft: VecDeque<Item>,
    pub(crate) data: VecDeque<DataItem>,
    /// Small state that rides with the next write but causes none.
    pub(crate) lazy: BTreeMap<Bytes, Bytes>,
    pub(crate) raft_bytes: usize,
    pub(crate) data_bytes: usize,
    pub(crate) bulk_bytes: usize,
    pub(crate) closed: bool,
}

/// What the writer took for one write.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) raft: Vec<Item>,
    pub(crate) data: Vec<DataItem>,
    pub(crate) lazy: BTreeMap<Bytes, Bytes>,
    pub(crate) raft_bytes: usize,
    pub(crate) data_bytes: usize,
    pub(crate) bulk_bytes: usize,
}

impl Taken {
    pub(crate) fn is_empty(&self) -> bool {
        self.raft.is_empty() && self.data.is_empty() && self.lazy.is_empty()
    }
}

impl Queues {
    pub(crate) fn is_empty(&self) -> bool {
        self.raft.is_empty() && self.data.is_empty()
    }

    /// Takes the next write: Raft first, then data up to its own cap, so that bulk cannot delay a vote by more than that.
    pub(crate) fn take(&mut self, raft_max: usize, data_max: usize, frame_max: usize) -> Taken {
        let mut taken = Taken::default();
        if self.is_empty() {
            return taken;
        }
        taken.lazy = std::mem::take(&mut self.lazy);
        let mut room = frame_max.saturating_sub(lazy_bytes(&taken.lazy));
        while let Some(item) = self.raft.front() {
            let n = item.bytes();
            if n > room || (taken.raft_bytes + n > raft_max && !taken.raft.is_empty()) {
                break;
            }
            room -= n;
            taken.raft_bytes += n;
            taken.raft.extend(self.raft.pop_front());
        }
        while let Some(item) = self.data.front() {
            let n = item.bytes();
            if n > room || (taken.data_bytes + n > data_max && !taken.data.is_empty()) {
                break;
            }
            room -= n;
            taken.data_bytes += n;
            if item.bulk {
                taken.bulk_bytes += n;
            }
            taken.data.extend(self.data.pop_front());
        }
        taken
    }

    /// The bytes of `taken` no longer wait.
    pub(crate) fn settle(&mut self, taken: &Taken) {
        self.raft_bytes = self.raft_bytes.saturating_sub(taken.raft_bytes);
        self.data_bytes = self.data_bytes.saturating_sub(taken.data_bytes);
        self.bulk_bytes = self.bulk_bytes.saturating_sub(taken.bulk_bytes);
    }
}

pub(crate) fn lazy_bytes(lazy: &BTreeMap<Bytes, Bytes>) -> usize {
    lazy.iter().map(|(k, v)| frame::RECORD_HEAD + 4 + k.len() + v.len()).sum()
}
