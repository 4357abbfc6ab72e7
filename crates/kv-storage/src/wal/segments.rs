//! Which segments exist, what keeps each, and the one being prepared.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
    sync::Arc,
};

use super::segment_path;
use crate::{
    disk::{Disk, DiskFile},
    error::StorageError,
    limits,
};

/// Why a segment is kept.
#[derive(Debug, Default, Clone)]
pub(crate) struct SegmentInfo {
    /// The last data batch in it, 0 if none.
    pub(crate) max_seq: u64,
    /// Live Raft entries in it.
    pub(crate) live: u64,
}

/// Live entries of a group as the disk has them: the segment of each index from `first` on.
#[derive(Debug, Default)]
struct Live {
    first: u64,
    segments: VecDeque<u64>,
}

/// The writer's account of the log. Only what was written counts: a purge that could be lost keeps its entries.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    pub(crate) known: BTreeMap<u64, SegmentInfo>,
    groups: BTreeMap<u32, Live>,
}

impl Segments {
    fn count(&mut self, segment: u64, by: i64) {
        if let Some(info) = self.known.get_mut(&segment) {
            info.live = info.live.saturating_add_signed(by);
        }
    }

    pub(crate) fn restore(&mut self, group: u32, first: u64, segments: VecDeque<u64>) {
        for segment in &segments {
            self.count(*segment, 1);
        }
        self.groups.insert(group, Live { first, segments });
    }

    /// `count` entries from `index` on were appended.
    pub(crate) fn appended(&mut self, group: u32, index: u64, count: usize, segment: u64) {
        self.truncate(group, index.checked_sub(1));
        let live = self.groups.entry(group).or_default();
        if live.segments.is_empty() {
            live.first = index;
        }
        live.segments.extend(std::iter::repeat_n(segment, count));
        self.count(segment, count as i64);
    }

    /// An entry was copied forward.
    pub(crate) fn copied(&mut self, group: u32, index: u64, segment: u64) {
        let live = self.groups.entry(group).or_default();
        let place = index.checked_sub(live.first).and_then(|n| usize::try_from(n).ok());
        // Truncated or purged before the copy was written: nothing lives here any more.
        let Some(old) = place.and_then(|p| live.segments.get_mut(p)) else { return };
        let old = std::mem::replace(old, segment);
        self.count(old, -1);
        self.count(segment, 1);
    }

    pub(crate) fn truncate(&mut self, group: u32, after: Option<u64>) {
        let Some(live) = self.groups.get_mut(&group) else { return };
        let keep = match after {
            Some(after) if after >= live.first => (after - live.first).saturating_add(1),
            _ => 0,
        };
        let keep = usize::try_from(keep).unwrap_or(usize::MAX).min(live.segments.len());
        let gone: Vec<u64> = live.segments.drain(keep..).collect();
        gone.into_iter().for_each(|s| self.count(s, -1));
    }

    pub(crate) fn purge(&mut self, group: u32, index: u64) {
        let mut gone = Vec::new();
        if let Some(live) = self.groups.get_mut(&group) {
            while live.first <= index
                && let Some(segment) = live.segments.pop_front()
            {
                live.first += 1;
                gone.push(segment);
            }
        }
        gone.into_iter().for_each(|s| self.count(s, -1));
    }

    /// The oldest segment that must stay, given how far the tier is on disk.
    pub(crate) fn keep_from(&self, checkpointed: u64) -> u64 {
        let current = self.known.keys().next_back().copied().unwrap_or(0);
        let held =
            self.known.iter().find(|(id, s)| s.max_seq > checkpointed || s.live > 0 || **id == current);
        held.map_or(current, |(id, _)| *id)
    }

    /// Groups with live entries in a segment.
    pub(crate) fn groups_in(&self, segment: u64) -> BTreeSet<u32> {
        let held = self.groups.iter().filter(|(_, live)| live.segments.contains(&segment));
        held.map(|(group, _)| *group).collect()
    }

    /// Who keeps the oldest segment, in words.
    pub(crate) fn pinned_by(&self, checkpointed: u64) -> String {
        let Some((id, info)) = self.known.first_key_value() else {
            return "nothing".into();
        };
        if info.max_seq > checkpointed {
            return "data that is not yet in the tier".into();
        }
        let groups: Vec<String> = self.groups_in(*id).iter().map(|g| format!("group {g}")).collect();
        if groups.is_empty() { "nothing".into() } else { format!("the Raft log of {}", groups.join(", ")) }
    }
}

/// The segment after the current one, made ahead.
#[derive(Debug, Default)]
pub(crate) enum Prepared {
    /// Wanted.
    #[default]
    Missing,
    /// A thread writes zeros.
    InProgress,
    /// It is there.
    Ready(u64, Arc<dyn DiskFile>),
    /// The last attempt failed.
    Failed(StorageError),
}

/// Makes a segment file. With `zeros` its blocks are written, so that later syncs need no metadata; `go_on` is asked before
/// each piece, given what is done, and may take its time to answer.
pub(crate) fn create(
    disk: &dyn Disk,
    dir: &Path,
    id: u64,
    bytes: usize,
    zeros: bool,
    go_on: &dyn Fn(usize) -> bool,
) -> Result<Arc<dyn DiskFile>, StorageError> {
    let fail = StorageError::io("prepare a log segment");
    let file = disk.open(&segment_path(dir, id), true).map_err(&fail)?;
    if zeros {
        let chunk = vec![0; limits::ZERO_CHUNK.min(bytes)];
        let mut at = 0;
        while at < bytes {
            if !go_on(at) {
                return Err(StorageError::Closed);
            }
            let n = chunk.len().min(bytes - at);
            file.write_at(chunk.get(..n).unwrap_or_default(), at as u64).map_err(&fail)?;
            at += n;
            // In pieces: one sync of a whole segment would hold up the log's own syncs.
            file.sync_data().map_err(&fail)?;
        }
    }
    file.set_len(bytes as u64).map_err(&fail)?;
    file.sync_all().map_err(&fail)?;
    disk.sync_dir(dir).map_err(&fail)?;
    Ok(file)
}
