//! Which segments exist and what keeps each: the account by which the log is trimmed. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::runs::RunMap;

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

/// Why a segment is kept.
#[derive(Debug, Default, Clone)]
struct SegmentInfo {
    /// The last data batch in it, 0 if none.
    max_seq: u64,
    /// Live Raft entries in it.
    live: u64,
}

/// The writer's account of the log. Only what was written counts: a purge that could be lost keeps its
/// entries.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    known: BTreeMap<u64, SegmentInfo>,
    /// Live entries of each group as the disk has them: the segment of each index.
    groups: BTreeMap<u32, RunMap<u64>>,
}

impl Segments {
    fn count(&mut self, segment: u64, by: i64) {
        if let Some(info) = self.known.get_mut(&segment) {
            let live = info.live.checked_add_signed(by);
            assert!(live.is_some(), "segment {segment} has {} live entries, {by} are to leave it", info.live);
            info.live = live.unwrap_or_default();
        }
    }

    /// A segment that was found, or that begins.
    pub(crate) fn add(&mut self, segment: u64, max_seq: u64) {
        let info = SegmentInfo { max_seq, live: 0 };
        assert!(self.known.insert(segment, info).is_none(), "segment {segment} begins twice");
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// The oldest.
    pub(crate) fn first(&self) -> Option<u64> {
        self.known.keys().next().copied()
    }

    /// Live entries of a group as they were found. Their segments are known.
    pub(crate) fn restore(&mut self, group: u32, segments: RunMap<u64>) {
        for (from, to, segment) in segments.iter() {
            self.count(segment, (to - from) as i64);
        }
        self.groups.insert(group, segments);
    }

    /// A data batch was written.
    pub(crate) fn wrote_data(&mut self, segment: u64, seq: u64) {
        if let Some(info) = self.known.get_mut(&segment) {
            info.max_seq = seq;
        }
    }

    /// `count` entries from `index` on were appended.
    pub(crate) fn appended(&mut self, group: u32, index: u64, count: usize, segment: u64) {
        self.truncate(group, index.checked_sub(1));
        let live = self.groups.entry(group).or_default();
        if live.is_empty() {
            *live = RunMap::starting_at(index);
        }
        assert_eq!(live.end(), index, "the entries of a group are written in order");
        live.push(count as u64, segment);
        self.count(segment, count as i64);
    }

    /// An entry was copied forward.
    pub(crate) fn copied(&mut self, group: u32, index: u64, segment: u64) {
        let Some(live) = self.groups.get_mut(&group) else { return };
        // Truncated or purged before the copy was written: nothing lives here any more.
        let Some(old) = live.get(index) else { return };
        live.set(index, segment);
        self.count(old, -1);
        self.count(segment, 1);
    }

    /// The entries of a group above `after`, all if `None`, are gone.
    pub(crate) fn truncate(&mut self, group: u32, after: Option<u64>) {
        let end = after.map_or(0, |after| after.saturating_add(1));
        if self.groups.get(&group).is_some_and(|live| live.end() > end) {
            self.change(group, |live| live.truncate(end));
        }
    }

    /// The entries of a group up to `index` are gone.
    pub(crate) fn purge(&mut self, group: u32, index: u64) {
        self.change(group, |live| live.drop_before(index.saturating_add(1).min(live.end())));
    }

    /// Changes the live entries of a group, and the counts of their segments with them.
    fn change(&mut self, group: u32, f: impl FnOnce(&mut RunMap<u64>)) {
        let Some(mut live) = self.groups.remove(&group) else { return };
        for (from, to, segment) in live.iter() {
            self.count(segment, -((to - from) as i64));
        }
        f(&mut live);
        for (from, to, segment) in live.iter() {
            self.count(segment, (to - from) as i64);
        }
        self.groups.insert(group, live);
    }

    /// Forgets the segments before `keep_from`; which they were.
    pub(crate) fn forget_before(&mut self, keep_from: u64) -> Vec<u64> {
        let kept = self.known.split_off(&keep_from);
        let gone = std::mem::replace(&mut self.known, kept);
        let live = gone.iter().find(|(_, info)| info.live > 0);
        assert!(live.is_none(), "a segment with live entries is let go: {live:?}");
        gone.into_keys().collect()
    }

    /// The groups with live entries in a segment; `None` if data in it is not in the tier.
    pub(crate) fn movable(&self, segment: u64, checkpointed: u64) -> Option<BTreeSet<u32>> {
        let info = self.known.get(&segment).filter(|info| info.max_seq <= checkpointed)?;
        Some(if info.live > 0 { self.groups_in(segment) } else { BTreeSet::new() })
    }

    /// The oldest segment that must stay, given how far the tier is on disk.
    pub(crate) fn keep_from(&self, checkpointed: u64) -> u64 {
        let current = self.known.keys().next_back().copied().unwrap_or(0);
        let held =
            self.known.iter().find(|(id, s)| s.max_seq > checkpointed || s.live > 0 || **id == current);
        held.map_or(current, |(id, _)| *id)
    }

    fn groups_in(&self, segment: u64) -> BTreeSet<u32> {
        let held = self.groups.iter().filter(|(_, live)| live.iter().any(|(_, _, of)| of == segment));
        held.map(|(group, _)| *group).collect()
    }

    /// What keeps the oldest segment, in words.
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
