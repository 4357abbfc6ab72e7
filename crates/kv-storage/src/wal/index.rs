//! The index of one Raft group's entries: which there are, where each stands in the log, and the payloads of
//! the newest.
//!
//! An entry costs eight bytes ([`Slots`]); its term, its leader and its segment are stored once for each run
//! of entries that share them ([`RunMap`]). The writer writes the entries of a group in order, so the written
//! ones are a prefix: the map of segments ends where they end.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use bytes::Bytes;

use super::{
    entry::{RaftBounds, RaftEntry, RaftLogId},
    frame::ENTRY_HEAD,
    queue::Run,
    runs::RunMap,
    slots::{Slot, Slots},
};
use crate::limits;

/// Where the payload of an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: u64,
    /// Of the entry's head; the payload follows it.
    pub(crate) offset: u32,
    /// Of the payload.
    pub(crate) bytes: u32,
}

/// Where an entry is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Memory(Bytes),
    Disk(Location),
}

/// What successive entries of one term share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Named {
    term: u64,
    node: u64,
    /// Append id less index, wrapping: it changes where an entry was appended again after a truncation.
    appended: u64,
}

/// An entry that must be written again before its segment can be removed.
#[derive(Debug, Clone)]
pub(crate) struct Laggard {
    pub(crate) id: RaftLogId,
    pub(crate) append_id: u64,
    pub(crate) place: Place,
}

/// The index of a group, shared by its handles and the writer.
#[derive(Debug, Default)]
pub(crate) struct GroupIndex {
    purged: Option<RaftLogId>,
    slots: Slots,
    names: RunMap<Named>,
    /// Of the written entries, which are a prefix.
    segments: RunMap<u64>,
    /// Payloads of the last entries, as many as there are.
    cache: VecDeque<Bytes>,
    /// What they cost: with the overhead of each.
    cached_bytes: usize,
    last_append_id: u64,
}

fn cost(payload: &Bytes) -> usize {
    payload.len() + limits::CACHED_ENTRY_BYTES
}

impl GroupIndex {
    fn first(&self) -> u64 {
        self.names.first()
    }

    /// The index after the last entry.
    fn end(&self) -> u64 {
        self.names.end()
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn slot_at(&self, index: u64) -> usize {
        usize::try_from(index.saturating_sub(self.first())).unwrap_or(usize::MAX)
    }

    /// The name of a present entry.
    pub(crate) fn name_of(&self, index: u64) -> Option<RaftLogId> {
        self.names.get(index).map(|n| RaftLogId { term: n.term, node: n.node, index })
    }

    pub(crate) fn append_id_of(&self, index: u64) -> Option<u64> {
        self.names.get(index).map(|n| n.appended.wrapping_add(index))
    }

    /// The name of an entry; also of the last purged one.
    pub(crate) fn id_of(&self, index: u64) -> Option<RaftLogId> {
        self.name_of(index).or(self.purged.filter(|p| p.index == index))
    }

    pub(crate) fn bounds(&self) -> RaftBounds {
        let last = self.end().checked_sub(1).and_then(|last| self.name_of(last));
        RaftBounds { purged: self.purged, last: last.or(self.purged) }
    }

    /// The index that an append must start with; `None` if any will do.
    pub(crate) fn next_index(&self) -> Option<u64> {
        self.bounds().last.map(|last| last.index + 1)
    }

    fn begin_at(&mut self, index: u64) {
        debug_assert!(self.is_empty() && self.slots.len() == 0 && self.cache.is_empty());
        self.names = RunMap::starting_at(index);
        self.segments = RunMap::starting_at(index);
    }

    /// Adds entries whose indexes follow the last; the append id of the first.
    pub(crate) fn append(&mut self, entries: &[RaftEntry]) -> u64 {
        let first_append_id = self.last_append_id + 1;
        for entry in entries {
            if self.is_empty() {
                self.begin_at(entry.id.index);
            }
            assert_eq!(entry.id.index, self.end(), "entries are appended in order");
            self.last_append_id += 1;
            let appended = self.last_append_id.wrapping_sub(entry.id.index);
            self.names.push(1, Named { term: entry.id.term, node: entry.id.node, appended });
            self.slots.push(Slot { offset: 0, bytes: entry.payload.len() as u32 });
            self.cached_bytes += cost(&entry.payload);
            self.cache.push_back(entry.payload.clone());
        }
        first_append_id
    }

    /// Removes the entries above `after`, all if `None`.
    pub(crate) fn drop_after(&mut self, after: Option<u64>) {
        let end = after.map_or(0, |after| after.saturating_add(1)).clamp(self.first(), self.end());
        let gone = usize::try_from(self.end() - end).unwrap_or(usize::MAX);
        for payload in self.cache.drain(self.cache.len().saturating_sub(gone)..) {
            self.cached_bytes -= cost(&payload);
        }
        self.slots.truncate(self.slot_at(end));
        self.names.truncate(end);
        self.segments.truncate(end);
    }

    /// Removes the entries up to `index`.
    fn drop_up_to(&mut self, index: u64) {
        let first = index.saturating_add(1).clamp(self.first(), self.end());
        self.slots.drop_front(self.slot_at(first));
        self.names.drop_before(first);
        self.segments.drop_before(first);
        self.trim_cache_to(self.slots.len());
    }

    fn trim_cache_to(&mut self, entries: usize) {
        while self.cache.len() > entries
            && let Some(payload) = self.cache.pop_front()
        {
            self.cached_bytes -= cost(&payload);
        }
    }

    /// Removes the entries up to `id` and remembers it; false if that was done before.
    pub(crate) fn purge(&mut self, id: RaftLogId) -> bool {
        if self.purged.is_some_and(|p| p.index >= id.index) {
            return false;
        }
        self.drop_up_to(id.index);
        self.purged = Some(id);
        true
    }

    /// Forgets everything, as if the group had never been.
    pub(crate) fn clear(&mut self) {
        self.drop_after(None);
        self.purged = None;
    }

    /// Lets payloads of written entries go, oldest first, until the cache costs at most `max` bytes.
    pub(crate) fn shrink_cache(&mut self, max: usize) {
        while self.cached_bytes > max && !self.cache.is_empty() {
            // An entry that the writer has not written yet stays.
            if self.end() - self.cache.len() as u64 >= self.segments.end() {
                return;
            }
            self.trim_cache_to(self.cache.len() - 1);
        }
    }

    /// The writer wrote a run into a segment; its first entry has its head at `offset`.
    pub(crate) fn located(&mut self, run: &Run, segment: u64, offset: u32) {
        for (entry, append_id, offset) in run.placed(offset) {
            let index = entry.id.index;
            // Removed, or removed and appended again meanwhile: what was written is not this entry.
            if self.append_id_of(index) != Some(append_id) {
                continue;
            }
            let slot = Slot { offset, bytes: entry.payload.len() as u32 };
            if !run.is_copied() {
                assert_eq!(index, self.segments.end(), "the entries of a group are written in order");
                self.segments.push(1, segment);
            } else if self.segments.get(index).is_some() {
                self.segments.set(index, segment);
            } else {
                continue;
            }
            self.slots.set(self.slot_at(index), slot);
        }
    }

    /// Where a written entry is on disk.
    fn location(&self, index: u64) -> Option<Location> {
        let segment = self.segments.get(index)?;
        let slot = self.slots.get(self.slot_at(index))?;
        Some(Location { segment, offset: slot.offset, bytes: slot.bytes })
    }

    /// Where this same entry is on disk now.
    pub(crate) fn location_of(&self, id: RaftLogId) -> Option<Location> {
        (self.name_of(id.index) == Some(id)).then(|| self.location(id.index)).flatten()
    }

    fn cached(&self, index: u64) -> Option<&Bytes> {
        let from = self.end() - self.cache.len() as u64;
        self.cache.get(usize::try_from(index.checked_sub(from)?).ok()?)
    }

    fn place(&self, index: u64) -> Option<Place> {
        match self.cached(index) {
            Some(payload) => Some(Place::Memory(payload.clone())),
            None => self.location(index).map(Place::Disk),
        }
    }

    /// The entries of a range, as many as have `max_bytes` of payload, but one at least if there are any.
    pub(crate) fn find(&self, range: Range<u64>, max_bytes: usize) -> Vec<(RaftLogId, Place)> {
        let mut out = Vec::new();
        let mut bytes = 0;
        for index in range.start.max(self.first())..range.end.min(self.end()) {
            bytes += self.slots.get(self.slot_at(index)).map_or(0, |slot| slot.bytes as usize);
            if bytes > max_bytes && !out.is_empty() {
                break;
            }
            match self.name_of(index).zip(self.place(index)) {
                Some(found) => out.push(found),
                None => break,
            }
        }
        out
    }

    /// As if an entry had been copied to another segment.
    #[cfg(test)]
    pub(crate) fn moved(&mut self, index: u64, segment: u64) {
        self.segments.set(index, segment);
    }

    /// The segments of the written entries.
    pub(crate) fn segments(&self) -> &RunMap<u64> {
        &self.segments
    }

    fn indexes_in(&self, segment: u64) -> impl Iterator<Item = u64> {
        self.segments.iter().filter(move |(_, _, of)| *of == segment).flat_map(|(from, to, _)| from..to)
    }

    /// Bytes of the entries in a segment.
    pub(crate) fn bytes_in(&self, segment: u64) -> usize {
        let slots = self.indexes_in(segment).filter_map(|index| self.slots.get(self.slot_at(index)));
        slots.map(|slot| slot.bytes as usize + ENTRY_HEAD).sum()
    }

    /// The entries in a segment.
    pub(crate) fn laggards(&self, segment: u64) -> Vec<Laggard> {
        let found = self.indexes_in(segment).filter_map(|index| {
            Some(Laggard {
                id: self.name_of(index)?,
                append_id: self.append_id_of(index)?,
                place: self.place(index)?,
            })
        });
        found.collect()
    }

    /// Bytes of memory without the cache of payloads, about.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.slots.memory_bytes() + self.names.memory_bytes() + self.segments.memory_bytes()
    }

    /// What the cache of payloads costs, bytes.
    pub(crate) fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }
}

/// The index of a group while the log is read: it grows by what is found, in the order of the log.
#[derive(Debug, Default)]
pub(crate) struct Recovering {
    index: GroupIndex,
    /// Entries that were copied forward and whose first place is gone: they belong before what was found so
    /// far.
    early: BTreeMap<u64, (RaftLogId, Location)>,
}

/// Why entries do not form a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disorder {
    /// The entry with this index is missing.
    Missing(u64),
    /// A copy of the entry with this index has another name than the entry.
    Renamed(u64),
}

impl Recovering {
    fn push(index: &mut GroupIndex, id: RaftLogId, location: Location) {
        if index.is_empty() {
            index.begin_at(id.index);
        }
        index.last_append_id += 1;
        let appended = index.last_append_id.wrapping_sub(id.index);
        index.names.push(1, Named { term: id.term, node: id.node, appended });
        index.segments.push(1, location.segment);
        index.slots.push(Slot { offset: location.offset, bytes: location.bytes });
    }

    /// Gives a present entry another name and place.
    fn overwrite(&mut self, id: RaftLogId, location: Location) {
        let index = &mut self.index;
        let appended = index.names.get(id.index).map_or(0, |n| n.appended);
        index.names.set(id.index, Named { term: id.term, node: id.node, appended });
        index.segments.set(id.index, location.segment);
        index.slots.set(index.slot_at(id.index), Slot { offset: location.offset, bytes: location.bytes });
    }

    /// An entry was appended. It says what the tail is, whether or not a truncation was written before it.
    pub(crate) fn appended(&mut self, id: RaftLogId, location: Location) -> Result<(), Disorder> {
        if kv_types::mutant!(TailNotTruncated) && self.index.name_of(id.index).is_some() {
            self.overwrite(id, location);
            return Ok(());
        }
        self.truncate(id.index.checked_sub(1));
        if !self.index.is_empty() && id.index != self.index.end() {
            return Err(Disorder::Missing(self.index.end()));
        }
        Recovering::push(&mut self.index, id, location);
        Ok(())
    }

    /// An entry was copied forward.
    pub(crate) fn copied(&mut self, id: RaftLogId, location: Location) -> Result<(), Disorder> {
        match self.index.name_of(id.index) {
            Some(name) if name != id => return Err(Disorder::Renamed(id.index)),
            Some(_) => self.overwrite(id, location),
            None => drop(self.early.insert(id.index, (id, location))),
        }
        Ok(())
    }

    /// The entries above `after`, all if `None`, are gone.
    pub(crate) fn truncate(&mut self, after: Option<u64>) {
        self.index.drop_after(after);
        drop(self.early.split_off(&after.map_or(0, |after| after.saturating_add(1))));
    }

    /// The entries up to `index` are gone.
    pub(crate) fn purge(&mut self, index: u64) {
        self.index.drop_up_to(index);
        self.early = self.early.split_off(&index.saturating_add(1));
    }

    /// The index, if nothing is missing.
    pub(crate) fn finish(mut self, purged: Option<RaftLogId>) -> Result<GroupIndex, Disorder> {
        if let Some(purged) = purged {
            self.purge(purged.index);
        }
        let mut out = GroupIndex::default();
        if self.early.is_empty() {
            out = self.index;
        } else {
            let rest = &self.index;
            let found = (rest.first()..rest.end()).filter_map(|i| rest.name_of(i).zip(rest.location(i)));
            for (id, location) in self.early.into_values().chain(found) {
                if !out.is_empty() && id.index != out.end() {
                    return Err(Disorder::Missing(out.end()));
                }
                Recovering::push(&mut out, id, location);
            }
        }
        out.purged = purged;
        if let Some(purged) = purged
            && !out.is_empty()
            && out.first() != purged.index + 1
        {
            return Err(Disorder::Missing(purged.index + 1));
        }
        Ok(out)
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
