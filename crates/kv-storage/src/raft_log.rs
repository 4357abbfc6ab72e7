//! One Raft group's view of the shared log: its entries, votes and purge points.

use std::{
    fmt, io,
    ops::{Bound, RangeBounds},
    sync::Arc,
};

use bytes::Bytes;
use kv_types::GroupId;

use crate::{
    error::StorageError,
    locks::lock,
    parts::{KeepOpen, Parts},
    wal::{
        entry::{Done, RaftBounds, RaftEntry, RaftLogId, durably, when_durable},
        files::Stretch,
        frame::{ENTRY_HEAD, RECORD_HEAD},
        groups::SharedIndex,
        index::{Location, Place},
        log::Log,
        queue::{Item, Run},
        small::small_key,
    },
};

/// Entries that were looked up, in memory or at their places in the log.
#[derive(Debug)]
pub struct FoundEntries {
    log: RaftLog,
    found: Vec<(RaftLogId, Place)>,
}

impl FoundEntries {
    /// True if reading them does not block.
    pub fn are_in_memory(&self) -> bool {
        self.found.iter().all(|(_, place)| matches!(place, Place::Memory(_)))
    }

    /// The entries. What is not in memory is read from the log in as few reads as it takes: off the async
    /// workers.
    pub fn read(self) -> io::Result<Vec<RaftEntry>> {
        let on_disk = self.found.iter().filter_map(|(id, place)| match place {
            Place::Disk(at) => Some((*id, *at)),
            Place::Memory(_) => None,
        });
        let mut loaded = Vec::new();
        for stretch in Stretch::plan(on_disk) {
            loaded.extend(self.log.load(&stretch)?);
        }
        let mut loaded = loaded.into_iter();
        let entries = self.found.into_iter().filter_map(|(id, place)| match place {
            Place::Memory(payload) => Some(RaftEntry { id, payload }),
            Place::Disk(_) => loaded.next().map(|payload| RaftEntry { id, payload }),
        });
        Ok(entries.collect())
    }
}

/// A Raft group's log. Clones share it, and keep the engine open.
#[derive(Clone)]
pub struct RaftLog {
    open: Arc<KeepOpen>,
    group: u32,
    index: SharedIndex,
}

impl fmt::Debug for RaftLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftLog").field("group", &self.group).finish_non_exhaustive()
    }
}

impl RaftLog {
    pub(crate) fn new(open: Arc<KeepOpen>, group: u32) -> RaftLog {
        let index = open.parts().log.group(group);
        RaftLog { open, group, index }
    }

    fn parts(&self) -> &Parts {
        self.open.parts()
    }

    fn log(&self) -> &Log {
        &self.open.parts().log
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        GroupId(self.group)
    }

    /// The ends of the log.
    pub fn bounds(&self) -> RaftBounds {
        lock(&self.index).bounds()
    }

    /// Adds entries; their indexes must follow the last one. They can be read at once; `done` is called when
    /// they are durable. On an error nothing happened, and `done` is dropped.
    pub fn append(&self, entries: Vec<RaftEntry>, done: Done) -> io::Result<()> {
        let options = &self.parts().options;
        self.parts().life.check()?;
        let mut total = 0;
        for entry in &entries {
            let (bytes, max) = (entry.payload.len(), options.max_record_bytes);
            if bytes > max {
                return Err(StorageError::TooLarge { what: "a Raft entry", bytes, max }.into());
            }
            total += bytes + ENTRY_HEAD;
        }
        self.log().admit_raft(total, options.hard_log_bytes())?;
        let mut index = lock(&self.index);
        let mut expected = index.next_index();
        for entry in &entries {
            let found = entry.id.index;
            if expected.is_some_and(|e| e != found) {
                let message =
                    format!("append of index {found} to a log that ends before {}", expected.unwrap_or(0));
                return Err(StorageError::Invalid(message).into());
            }
            expected = Some(found + 1);
        }
        let append_id = index.append(&entries);
        let items = if entries.is_empty() {
            vec![Item::Barrier { done: Some(done) }]
        } else {
            // A run goes into one frame, as a single entry does, so it may not be larger than that may be.
            let most = options.raft_bytes_per_write.min(options.max_record_bytes);
            self.runs(entries, append_id, most, done)
        };
        // Under the index's lock, so that the log has this group's records in the order of the calls. The
        // cache shrinks when the writer has written them: before that they cannot leave it.
        self.log().push(items);
        Ok(())
    }

    /// Whether entries of `bytes` payload bytes may be appended now. Ask before an append from a leader is
    /// handed on: an append that is refused ends the group, a question that is answered with no costs
    /// nothing. An append that follows a yes finds room, also if several groups asked at the same time: the
    /// answer is no at half of the reserve for Raft records ([`crate::limits::RAFT_RESERVE_SHARE`]) already.
    /// Votes, truncations and purges need not ask.
    ///
    /// Errors: [`StorageError::LogFull`] until the log is trimmed, [`StorageError::DiskFull`] until the disk
    /// has room, or the error that stopped the engine.
    pub fn room_for(&self, bytes: usize) -> Result<(), StorageError> {
        self.parts().life.check()?;
        self.parts().space.check()?;
        self.log().admit_raft(bytes, self.parts().options.askable_log_bytes())
    }

    /// Entries of one append as runs of at most `most` bytes, or of a single entry.
    fn runs(&self, entries: Vec<RaftEntry>, mut append_id: u64, most: usize, done: Done) -> Vec<Item> {
        let run = |entries: Vec<RaftEntry>, append_id, done| {
            Item::Run(Run::new(self.group, append_id, false, entries), done)
        };
        let bytes = |e: &RaftEntry| RECORD_HEAD + ENTRY_HEAD + e.payload.len();
        if entries.iter().map(bytes).sum::<usize>() <= most {
            return vec![run(entries, append_id, Some(done))];
        }
        let (mut items, mut next, mut sum) = (Vec::new(), Vec::new(), 0);
        for entry in entries {
            let n = bytes(&entry);
            if sum + n > most && !next.is_empty() {
                let full = std::mem::take(&mut next);
                let count = full.len() as u64;
                items.push(run(full, append_id, None));
                append_id += count;
                sum = 0;
            }
            sum += n;
            next.push(entry);
        }
        items.push(run(next, append_id, Some(done)));
        items
    }

    /// Entries of a range, as [`RaftLog::find`] finds them, read. Blocks unless all are in memory.
    pub fn read(&self, range: impl RangeBounds<u64>, max_bytes: usize) -> io::Result<Vec<RaftEntry>> {
        self.find(range, max_bytes).read()
    }

    /// Looks entries of a range up, as many as fit in `max_bytes` of payload, but at least one if there are
    /// any. Does not block.
    pub fn find(&self, range: impl RangeBounds<u64>, max_bytes: usize) -> FoundEntries {
        let from = match range.start_bound() {
            Bound::Included(n) => *n,
            Bound::Excluded(n) => n.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(n) => n.saturating_add(1),
            Bound::Excluded(n) => *n,
            Bound::Unbounded => u64::MAX,
        };
        let found = lock(&self.index).find(from..to, max_bytes);
        FoundEntries { log: self.clone(), found }
    }

    fn load(&self, stretch: &Stretch) -> io::Result<Vec<Bytes>> {
        let payloads: Vec<io::Result<Bytes>> = match self.log().read_stretch(self.group, stretch) {
            Ok(payloads) => payloads,
            Err(e) => {
                let again = |_| Err(io::Error::new(e.kind(), e.to_string()));
                stretch.entries().iter().map(again).collect()
            }
        };
        let found = stretch.entries().iter().zip(payloads);
        found.map(|((id, at), payload)| payload.or_else(|e| self.load_moved(*id, *at, e))).collect()
    }

    /// Reads an entry that was not found at `at`. Between the look-up and that read it may have been copied
    /// forward and its old segment removed. Each round sees it at another place, and an entry moves only when
    /// a whole log's worth has been written.
    fn load_moved(&self, id: RaftLogId, mut at: Location, mut error: io::Error) -> io::Result<Bytes> {
        loop {
            match lock(&self.index).location_of(id) {
                Some(now) if now != at => at = now,
                _ => return Err(error),
            }
            match self.log().read_entry(self.group, id, at) {
                Ok(payload) => return Ok(payload),
                Err(e) => error = e,
            }
        }
    }

    /// The name of an entry; also of the last purged one.
    pub fn id_of(&self, index: u64) -> Option<RaftLogId> {
        lock(&self.index).id_of(index)
    }

    /// Removes the entries above `after`, or all with `None`. Ordered with appends; not waited for.
    pub fn truncate_after(&self, after: Option<u64>) -> io::Result<()> {
        self.parts().life.check()?;
        let mut index = lock(&self.index);
        index.drop_after(after);
        self.log().push(vec![Item::Truncate { group: self.group, after }]);
        Ok(())
    }

    /// Removes the entries up to `id` and remembers it. Ordered with appends; not waited for.
    pub fn purge(&self, id: RaftLogId) -> io::Result<()> {
        self.parts().life.check()?;
        let mut index = lock(&self.index);
        if index.purge(id) {
            self.log().put_small(small_key::purged(self.group), Some(id.encode()), None);
        }
        Ok(())
    }

    /// Saves the vote; durable, like everything before it, when this returns.
    pub async fn save_vote(&self, vote: Bytes) -> io::Result<()> {
        if kv_types::mutant!(VoteNotSynced) {
            self.log().put_lazy(small_key::vote(self.group), vote);
            return Ok(());
        }
        let (done, durable) = when_durable();
        {
            self.parts().life.check()?;
            let _order = lock(&self.index);
            self.log().put_small(small_key::vote(self.group), Some(vote), Some(done));
        }
        durably(durable).await
    }

    /// Returns when everything that this group handed to the log before is durable, the committed hint
    /// included.
    pub async fn barrier(&self) -> io::Result<()> {
        let (done, durable) = when_durable();
        {
            self.parts().life.check()?;
            let _order = lock(&self.index);
            self.log().write_lazy();
            self.log().push(vec![Item::Barrier { done: Some(done) }]);
        }
        durably(durable).await
    }

    /// The vote as last saved.
    pub fn vote(&self) -> Option<Bytes> {
        self.log().small_get(&small_key::vote(self.group))
    }

    /// Remembers how far the group has committed: written with the next write of the log, and not waited for.
    pub fn save_committed(&self, committed: Option<Bytes>) {
        self.log().put_lazy(small_key::committed(self.group), committed.unwrap_or_default());
    }

    /// The committed hint.
    pub fn committed(&self) -> Option<Bytes> {
        self.log().small_get(&small_key::committed(self.group)).filter(|c| !c.is_empty())
    }

    /// Removes the group from this node: entries, vote, purge point. Durable when this returns.
    pub async fn destroy(&self) -> io::Result<()> {
        let (done, durable) = when_durable();
        {
            self.parts().life.check()?;
            let mut index = lock(&self.index);
            index.clear();
            let log = self.log();
            log.push(vec![Item::Truncate { group: self.group, after: None }]);
            log.put_small(small_key::committed(self.group), None, None);
            log.put_small(small_key::purged(self.group), None, None);
            log.put_small(small_key::vote(self.group), None, Some(done));
        }
        durably(durable).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Drive, Storage, StorageOptions, disk::MemDisk, tier::MemTiers};

    #[test]
    fn an_entry_that_moved_between_look_up_and_read_is_found() {
        let options =
            StorageOptions { drive: Drive::Manual, raft_cache_bytes: 0, ..StorageOptions::new("/data") };
        let (storage, _) =
            Storage::open(options, Arc::new(MemDisk::new(1)), Arc::new(MemTiers::default())).unwrap();
        let log = storage.raft(GroupId(1));
        let id = RaftLogId { term: 1, node: 1, index: 1 };
        log.append(vec![RaftEntry { id, payload: Bytes::from_static(b"x") }], Box::new(drop)).unwrap();
        while storage.pump() {}
        let found = lock(&log.index).find(1..2, 0);
        let [(_, Place::Disk(present))] = found.as_slice() else { panic!("not on disk: {found:?}") };
        let missing = Location { segment: 999, ..*present };
        let read = |at| log.load(&Stretch::plan([(id, at)]).remove(0));
        assert_eq!(read(missing).unwrap(), [Bytes::from_static(b"x")]);
        lock(&log.index).moved(1, 999);
        assert_eq!(read(missing).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
