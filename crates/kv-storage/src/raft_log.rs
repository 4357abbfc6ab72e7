//! One Raft group's view of the shared log: an index of entries, a cache of the tail, votes and purge points.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    ops::{Bound, RangeBounds},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use kv_types::GroupId;
use tokio::sync::oneshot;

use crate::{
    codec::Cursor,
    engine::{Storage, lock},
    error::StorageError,
    wal::{
        Item, Run,
        frame::{ENTRY_HEAD, RECORD_HEAD},
        small_key,
    },
};

/// Called once, in order, when everything up to its append is durable, or with the error that poisoned the log.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// The name of a Raft entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RaftLogId {
    /// The leader's term.
    pub term: u64,
    /// The leader.
    pub node: u64,
    /// The place in the group's log.
    pub index: u64,
}

impl fmt::Display for RaftLogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.term, self.node, self.index)
    }
}

const ID_VERSION: u8 = 1;

impl RaftLogId {
    fn encode(&self) -> Bytes {
        let mut out = vec![ID_VERSION];
        for n in [self.term, self.node, self.index] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        Bytes::from(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<RaftLogId> {
        let mut c = Cursor::new(bytes);
        (c.u8()? == ID_VERSION).then_some(())?;
        Some(RaftLogId { term: c.u64()?, node: c.u64()?, index: c.u64()? })
    }
}

/// A Raft entry; the payload is opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftEntry {
    /// Its name.
    pub id: RaftLogId,
    /// Its content.
    pub payload: Bytes,
}

/// The ends of a group's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RaftBounds {
    /// The last purged entry; it may lie beyond everything that was ever appended (a snapshot was installed).
    pub purged: Option<RaftLogId>,
    /// The last entry, or the last purged one if there are none.
    pub last: Option<RaftLogId>,
}

/// Where the payload of an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: u64,
    /// Of the entry's head; the payload follows it.
    pub(crate) offset: u32,
    /// Of the payload.
    pub(crate) bytes: u32,
}

/// What is known of an entry. It has a location, a payload, or both.
#[derive(Debug, Clone)]
pub(crate) struct Meta {
    id: RaftLogId,
    append_id: u64,
    location: Option<Location>,
    payload: Option<Bytes>,
}

impl Meta {
    pub(crate) fn on_disk(id: RaftLogId, location: Location) -> Meta {
        Meta { id, append_id: 0, location: Some(location), payload: None }
    }

    pub(crate) fn segment(&self) -> Option<u64> {
        self.location.map(|l| l.segment)
    }

    fn bytes(&self) -> usize {
        match (&self.payload, self.location) {
            (Some(payload), _) => payload.len(),
            (None, Some(location)) => location.bytes as usize,
            (None, None) => 0,
        }
    }
}

/// The state of a group, shared by its handles and the writer.
#[derive(Debug, Default)]
pub(crate) struct Group {
    purged: Option<RaftLogId>,
    entries: VecDeque<Meta>,
    cached_bytes: usize,
    /// Entries before this place of the deque have no payload in memory.
    cached_from: usize,
    next_append_id: u64,
}

impl Group {
    /// The state after a restart; the index of a missing entry if there is a hole.
    pub(crate) fn recovered(purged: Option<RaftLogId>, entries: BTreeMap<u64, Meta>) -> Result<Group, u64> {
        let mut expected = match purged {
            Some(purged) => Some(purged.index + 1),
            None => entries.keys().next().copied(),
        };
        for index in entries.keys() {
            match expected {
                Some(e) if *index != e => return Err(e),
                _ => expected = Some(index + 1),
            }
        }
        let entries: VecDeque<Meta> = entries.into_values().collect();
        Ok(Group { purged, cached_from: entries.len(), entries, cached_bytes: 0, next_append_id: 1 })
    }

    fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|m| m.id.index)
    }

    fn last(&self) -> Option<RaftLogId> {
        self.entries.back().map(|m| m.id).or(self.purged)
    }

    fn place(&self, index: u64) -> Option<usize> {
        let place = usize::try_from(index.checked_sub(self.first_index()?)?).ok()?;
        (place < self.entries.len()).then_some(place)
    }

    fn drop_after(&mut self, after: Option<u64>) {
        let keep = match (after, self.first_index()) {
            (Some(after), Some(first)) if after >= first => (after - first + 1) as usize,
            _ => 0,
        };
        for meta in self.entries.drain(keep.min(self.entries.len())..) {
            self.cached_bytes -= meta.payload.map_or(0, |p| p.len());
        }
        self.cached_from = self.cached_from.min(self.entries.len());
    }

    fn drop_up_to(&mut self, index: u64) {
        while self.first_index().is_some_and(|first| first <= index) {
            let meta = self.entries.pop_front();
            self.cached_bytes -= meta.and_then(|m| m.payload).map_or(0, |p| p.len());
            self.cached_from = self.cached_from.saturating_sub(1);
        }
    }

    pub(crate) fn shrink_cache(&mut self, max: usize) {
        while self.cached_bytes > max
            && let Some(meta) = self.entries.get_mut(self.cached_from)
        {
            // An entry that the writer has not written yet stays.
            if meta.location.is_none() {
                break;
            }
            self.cached_bytes -= meta.payload.take().map_or(0, |p| p.len());
            self.cached_from += 1;
        }
    }

    /// The writer wrote a run; its first entry has its head at `offset`.
    pub(crate) fn located(&mut self, run: &Run, segment: u64, offset: u32) {
        for (entry, append_id, offset) in run.placed(offset) {
            // Removed, or removed and appended again meanwhile: the place is nobody's, or another's.
            if let Some(place) = self.place(entry.id.index)
                && let Some(meta) = self.entries.get_mut(place)
                && meta.append_id == append_id
            {
                meta.location = Some(Location { segment, offset, bytes: entry.payload.len() as u32 });
            }
        }
    }

    /// First index and segments of the live entries.
    pub(crate) fn live(&self) -> Option<(u64, VecDeque<u64>)> {
        Some((self.first_index()?, self.entries.iter().filter_map(Meta::segment).collect()))
    }

    /// Bytes of the entries in a segment.
    pub(crate) fn bytes_in(&self, segment: u64) -> usize {
        self.entries.iter().filter(|m| m.segment() == Some(segment)).map(|m| m.bytes() + ENTRY_HEAD).sum()
    }

    /// Index and name of the entries in a segment, for copying them forward.
    pub(crate) fn ids_in(&self, segment: u64) -> Vec<(RaftLogId, u64, Option<Bytes>, Location)> {
        let entries = self.entries.iter().filter(|m| m.segment() == Some(segment));
        entries.filter_map(|m| Some((m.id, m.append_id, m.payload.clone(), m.location?))).collect()
    }
}

/// A Raft group's log. Clones share it.
#[derive(Debug, Clone)]
pub struct RaftLog {
    storage: Storage,
    group: u32,
    state: Arc<Mutex<Group>>,
}

impl RaftLog {
    pub(crate) fn new(storage: Storage, group: u32, state: Arc<Mutex<Group>>) -> RaftLog {
        RaftLog { storage, group, state }
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        GroupId(self.group)
    }

    /// The ends of the log.
    pub fn bounds(&self) -> RaftBounds {
        let g = lock(&self.state);
        RaftBounds { purged: g.purged, last: g.last() }
    }

    /// Appends entries that continue the log. They are readable when this returns; `done` is called when they, and
    /// everything before them, are durable.
    pub fn append(&self, entries: Vec<RaftEntry>, done: Done) -> io::Result<()> {
        self.storage.inner().check()?;
        let options = &self.storage.inner().options;
        let mut total = 0;
        for entry in &entries {
            let (bytes, max) = (entry.payload.len(), options.max_record_bytes);
            if bytes > max {
                return Err(StorageError::TooLarge { what: "a Raft entry", bytes, max }.into());
            }
            total += bytes + ENTRY_HEAD;
        }
        self.storage.inner().admit_raft(total, options.hard_log_bytes())?;
        let mut g = lock(&self.state);
        let mut expected = g.last().map(|last| last.index + 1);
        for entry in &entries {
            let index = entry.id.index;
            if expected.is_some_and(|e| e != index) {
                let message =
                    format!("append of index {index} to a log that ends before {}", expected.unwrap_or(0));
                return Err(StorageError::Invalid(message).into());
            }
            expected = Some(index + 1);
        }
        let first_append_id = g.next_append_id + 1;
        g.next_append_id += entries.len() as u64;
        g.cached_bytes += total - entries.len() * ENTRY_HEAD;
        g.entries.extend(entries.iter().zip(first_append_id..).map(|(entry, append_id)| Meta {
            id: entry.id,
            append_id,
            location: None,
            payload: Some(entry.payload.clone()),
        }));
        let items = if entries.is_empty() {
            vec![Item::Barrier { done: Some(done) }]
        } else {
            // A run goes into one frame, as a single entry does, so it may not be larger than that may be.
            let most = options.raft_bytes_per_write.min(options.max_record_bytes);
            self.runs(entries, first_append_id, most, done)
        };
        // Under the group's lock, so that the log has this group's records in the order of the calls. The cache shrinks
        // when the writer has written them: before that they cannot leave it.
        self.storage.inner().push_raft(items);
        Ok(())
    }

    /// Whether entries of `bytes` payload bytes may be appended now. Ask before an append from a leader is handed on: an
    /// append that is refused ends the group, a question that is answered with no costs nothing. An append that follows a yes
    /// finds room, also if several groups asked at the same time: the answer is no at half of the reserve for Raft records
    /// ([`crate::limits::RAFT_RESERVE_SHARE`]) already. Votes, truncations and purges need not ask.
    ///
    /// Errors: [`StorageError::LogFull`] until the log is trimmed, or the error that stopped the engine.
    pub fn room_for(&self, bytes: usize) -> Result<(), StorageError> {
        let inner = self.storage.inner();
        inner.check()?;
        inner.admit_raft(bytes, inner.options.askable_log_bytes())
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

    /// Entries of a range, as many as fit in `max_bytes` of payload, but at least one if there are any.
    pub fn read(&self, range: impl RangeBounds<u64>, max_bytes: usize) -> io::Result<Vec<RaftEntry>> {
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
        let mut metas = Vec::new();
        {
            let g = lock(&self.state);
            let first = g.first_index().unwrap_or(0);
            let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
            let mut bytes = 0;
            for meta in g.entries.range(skip.min(g.entries.len())..).take_while(|m| m.id.index < to) {
                bytes += meta.bytes();
                if bytes > max_bytes && !metas.is_empty() {
                    break;
                }
                metas.push(meta.clone());
            }
        }
        metas.into_iter().map(|meta| self.load(meta)).collect()
    }

    fn load(&self, meta: Meta) -> io::Result<RaftEntry> {
        if let Some(payload) = meta.payload {
            return Ok(RaftEntry { id: meta.id, payload });
        }
        let Some(mut location) = meta.location else {
            return Err(io::Error::other("an entry is neither in memory nor on disk"));
        };
        loop {
            let error = match self.storage.inner().read_entry(self.group, meta.id, location) {
                Ok(payload) => return Ok(RaftEntry { id: meta.id, payload }),
                Err(error) => error,
            };
            // Between the look-up and this read the entry may have been copied forward and its old segment removed. Each
            // round sees it at another place, and an entry moves only when a whole log's worth has been written.
            match self.location_of(&meta) {
                Some(now) if now != location => location = now,
                _ => return Err(error),
            }
        }
    }

    /// Where that very entry is now.
    fn location_of(&self, meta: &Meta) -> Option<Location> {
        let g = lock(&self.state);
        g.entries.get(g.place(meta.id.index)?).filter(|now| now.id == meta.id)?.location
    }

    /// The name of an entry; also of the last purged one.
    pub fn id_of(&self, index: u64) -> Option<RaftLogId> {
        let g = lock(&self.state);
        if let Some(place) = g.place(index) {
            return g.entries.get(place).map(|m| m.id);
        }
        g.purged.filter(|p| p.index == index)
    }

    /// Removes the entries above `after`, or all with `None`. Ordered with appends; not waited for.
    pub fn truncate_after(&self, after: Option<u64>) -> io::Result<()> {
        self.storage.inner().check()?;
        let mut g = lock(&self.state);
        g.drop_after(after);
        self.storage.inner().push_raft(vec![Item::Truncate { group: self.group, after }]);
        Ok(())
    }

    /// Removes the entries up to `id` and remembers it. Ordered with appends; not waited for.
    pub fn purge(&self, id: RaftLogId) -> io::Result<()> {
        self.storage.inner().check()?;
        let mut g = lock(&self.state);
        if g.purged.is_some_and(|p| p.index >= id.index) {
            return Ok(());
        }
        g.drop_up_to(id.index);
        g.purged = Some(id);
        self.storage.inner().put_own(small_key::purged(self.group), Some(id.encode()), None);
        Ok(())
    }

    /// Saves the vote; durable, like everything before it, when this returns.
    pub async fn save_vote(&self, vote: Bytes) -> io::Result<()> {
        if kv_types::mutant!(VoteNotSynced) {
            self.storage.inner().put_lazy(small_key::vote(self.group), vote);
            return Ok(());
        }
        let (done, durable) = when_durable();
        {
            self.storage.inner().check()?;
            let _order = lock(&self.state);
            self.storage.inner().put_own(small_key::vote(self.group), Some(vote), Some(done));
        }
        wait(durable).await
    }

    /// Returns when everything that this group handed to the log before is durable.
    pub async fn barrier(&self) -> io::Result<()> {
        let (done, durable) = when_durable();
        {
            self.storage.inner().check()?;
            let _order = lock(&self.state);
            self.storage.inner().push_raft(vec![Item::Barrier { done: Some(done) }]);
        }
        wait(durable).await
    }

    /// The vote as last saved.
    pub fn vote(&self) -> Option<Bytes> {
        self.storage.inner().small_get(&small_key::vote(self.group))
    }

    /// Remembers how far the group has committed: written with the next write of the log, waited for by nobody.
    pub fn save_committed(&self, committed: Option<Bytes>) {
        self.storage.inner().put_lazy(small_key::committed(self.group), committed.unwrap_or_default());
    }

    /// The committed hint.
    pub fn committed(&self) -> Option<Bytes> {
        self.storage.inner().small_get(&small_key::committed(self.group)).filter(|c| !c.is_empty())
    }

    /// Removes the group from this node: entries, vote, purge point. Durable when this returns.
    pub async fn destroy(&self) -> io::Result<()> {
        let (done, durable) = when_durable();
        {
            self.storage.inner().check()?;
            let mut g = lock(&self.state);
            g.drop_after(None);
            g.purged = None;
            let inner = self.storage.inner();
            inner.push_raft(vec![Item::Truncate { group: self.group, after: None }]);
            inner.put_own(small_key::committed(self.group), None, None);
            inner.put_own(small_key::purged(self.group), None, None);
            inner.put_own(small_key::vote(self.group), None, Some(done));
        }
        wait(durable).await
    }
}

/// A callback, and what to await for it.
pub(crate) fn when_durable() -> (Done, oneshot::Receiver<io::Result<()>>) {
    let (send, receive) = oneshot::channel();
    (Box::new(move |result| drop(send.send(result))), receive)
}

pub(crate) async fn wait(durable: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
    durable.await.unwrap_or_else(|_| Err(StorageError::Closed.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemDisk;
    use crate::tier::MemTiers;
    use crate::{Drive, StorageOptions};

    #[test]
    fn an_entry_that_moved_between_look_up_and_read_is_found() {
        let options = StorageOptions { drive: Drive::Manual, ..StorageOptions::new("/data") };
        let (storage, _) =
            Storage::open(options, Arc::new(MemDisk::new(1)), Arc::new(MemTiers::default())).unwrap();
        let log = storage.raft(GroupId(1));
        let id = RaftLogId { term: 1, node: 1, index: 1 };
        log.append(vec![RaftEntry { id, payload: Bytes::from_static(b"x") }], Box::new(drop)).unwrap();
        while storage.pump() {}
        lock(&log.state).shrink_cache(0);
        let present = lock(&log.state).entries[0].clone();
        assert!(present.payload.is_none());
        let moved = |segment| Location { segment, ..present.location.unwrap() };
        let before = Meta { location: Some(moved(999)), ..present.clone() };
        assert_eq!(log.load(before.clone()).unwrap().payload, Bytes::from_static(b"x"));
        lock(&log.state).entries[0].location = Some(moved(999));
        assert_eq!(log.load(before).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
