//! openraft's view of a group's part of the node's log. The log itself - group commit, recovery, segments -
//! is kv-storage's; here are only the two ways in which the libraries name things, and the byte cap that
//! keeps one append within one message.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use futures_util::stream::{Stream, StreamExt, TryStreamExt, iter, try_unfold};
use kv_storage::RaftLog;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};

use crate::codec;
use crate::config::{Entry, LogId, TypeConfig, Vote};
use crate::disk_watch::DiskWatch;
use crate::limits::APPEND_BYTES;
use crate::runtime::NodeRuntime;

/// The log of one group. Readers and the writer are the same handle.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: RaftLog,
    watch: DiskWatch,
}

impl LogStore {
    /// The log, whose writes `watch` follows.
    pub(crate) fn new(log: RaftLog, watch: DiskWatch) -> Self {
        Self { log, watch }
    }

    /// What is not in memory is read off the runtime: a follower that lags asks for much of it.
    async fn read(
        &self,
        range: impl RangeBounds<u64> + OptionalSend,
        max_bytes: usize,
    ) -> io::Result<Vec<Entry>> {
        let found = self.log.find(range, max_bytes);
        let entries = match found.are_in_memory() {
            true => found.read()?,
            false => NodeRuntime::blocking(move || found.read()).await??,
        };
        entries.into_iter().map(|entry| Ok(codec::from_storage_entry(entry)?)).collect()
    }
}

/// What may be applied again after a restart. The committed mark travels ahead of the entries it speaks of,
/// without an fsync of its own, so the log may hold less than it says, or a tail of an older leader at the
/// same indices. Only an entry that is itself the marked one, or one of the same leader before it, is proven;
/// nothing is a safe answer.
fn proven_committed(committed: LogId, at_its_index: Option<LogId>, last: Option<LogId>) -> Option<LogId> {
    if at_its_index == Some(committed) {
        return Some(committed);
    }
    last.filter(|last| last.leader_id == committed.leader_id && last.index < committed.index)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read((range.start_bound().cloned(), range.end_bound().cloned()), usize::MAX).await
    }

    /// In pieces: after a start, one range may be all that was not known to be committed.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let next = match range.start_bound() {
            Bound::Included(first) => Some(*first),
            Bound::Excluded(before) => before.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let (log, end) = (self.clone(), range.end_bound().cloned());
        let pieces = try_unfold((log, next), move |(log, next)| async move {
            let is_past = |first: &u64| match end {
                Bound::Included(last) => *first > last,
                Bound::Excluded(end) => *first >= end,
                Bound::Unbounded => false,
            };
            let Some(first) = next.filter(|first| !is_past(first)) else { return Ok(None) };
            let entries = log.read((Bound::Included(first), end), APPEND_BYTES).await?;
            let Some(last) = entries.last() else { return Ok(None) };
            let next = last.log_id.index.checked_add(1);
            Ok::<_, io::Error>(Some((iter(entries.into_iter().map(Ok)), (log, next))))
        });
        pieces.try_flatten().boxed()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read((Bound::Included(start), Bound::Excluded(end)), APPEND_BYTES).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.log.vote().map(codec::decode_vote).transpose()?)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let bounds = self.log.bounds();
        Ok(LogState {
            last_purged_log_id: bounds.purged.map(codec::from_storage_id),
            last_log_id: bounds.last.map(codec::from_storage_id),
        })
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let _write = self.watch.begin();
        self.log.save_vote(codec::encode_vote(vote)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.log.save_committed(committed.as_ref().map(codec::encode_log_id));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let Some(committed) = self.log.committed().map(codec::decode_log_id).transpose()? else {
            return Ok(None);
        };
        let in_log = |index| self.log.id_of(index).map(codec::from_storage_id);
        let last = self.log.bounds().last.map(codec::from_storage_id);
        Ok(proven_committed(committed, in_log(committed.index), last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| codec::to_storage_entry(&entry)).collect();
        let write = self.watch.begin();
        self.log.append(
            entries,
            Box::new(move |result| {
                drop(write);
                callback.io_completed(result);
            }),
        )
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.log.truncate_after(last.map(|last| last.index))
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.log.purge(codec::to_storage_id(&upto))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kv_storage::disk::MemDisk;
    use kv_storage::tier::MemTiers;
    use kv_storage::{Storage, StorageOptions};
    use kv_types::GroupId;
    use openraft::EntryPayload;
    use openraft::vote::RaftLeaderId;

    use super::*;

    fn with_little_in_memory(disk: &MemDisk) -> Storage {
        let options = StorageOptions {
            raft_cache_bytes: 1 << 10,
            max_record_bytes: 1 << 20,
            ..StorageOptions::memory("/data")
        };
        Storage::open(options, Arc::new(disk.clone()), Arc::new(MemTiers::new())).unwrap().0
    }

    /// Waits until what was appended is written and has left memory as far as it has to: the writer does that
    /// after it has said that a step is done, and before the next one.
    async fn written_and_let_go(log: &RaftLog) {
        log.barrier().await.unwrap();
        log.barrier().await.unwrap();
    }

    /// The runtime of a node has one thread, which also answers heartbeats.
    #[tokio::test]
    async fn entries_that_left_memory_are_not_read_on_the_runtime() {
        let disk = MemDisk::new(1);
        let storage = with_little_in_memory(&disk);
        let log = storage.raft(GroupId(1));
        let entry =
            |index| codec::to_storage_entry(&Entry { log_id: id(1, index), payload: EntryPayload::Blank });
        log.append((1..=200).map(entry).collect(), Box::new(|result| result.unwrap())).unwrap();
        written_and_let_go(&log).await;
        disk.take_readers();
        let mut store = LogStore::new(log, DiskWatch::default());
        assert_eq!(store.try_get_log_entries(1..201).await.unwrap().len(), 200);
        let readers = disk.take_readers();
        assert!(!readers.is_empty(), "all of them were in memory");
        assert!(!readers.contains(&std::thread::current().id()));
        storage.halt();
    }

    /// What is applied after a start may be most of the log, and more than a node has memory.
    #[tokio::test]
    async fn a_long_range_is_read_in_pieces() {
        let disk = MemDisk::new(1);
        let storage = with_little_in_memory(&disk);
        let log = storage.raft(GroupId(1));
        let size = APPEND_BYTES / 4;
        for index in 1..=40 {
            let payload = EntryPayload::Normal(crate::proposal::Proposal(vec![7; size].into()));
            let entry = codec::to_storage_entry(&Entry { log_id: id(1, index), payload });
            log.append(vec![entry], Box::new(|result| result.unwrap())).unwrap();
        }
        written_and_let_go(&log).await;
        let before = disk.reads();
        let mut store = LogStore::new(log, DiskWatch::default());
        let mut entries = store.entries_stream(2..=40).await;
        assert_eq!(entries.next().await.unwrap().unwrap().log_id, id(1, 2));
        let first = disk.reads() - before;
        let rest: Vec<u64> = entries.map(|entry| entry.unwrap().log_id.index).collect().await;
        assert_eq!(rest, (3..=40).collect::<Vec<_>>());
        let all = disk.reads() - before;
        assert!(all >= 20 && first <= all / 4, "{first} reads for the first of {all}");
        assert_eq!(store.entries_stream(41..).await.count().await, 0);
        assert_eq!(store.entries_stream(7..7).await.count().await, 0);
        storage.halt();
    }

    fn id(term: u64, index: u64) -> LogId {
        LogId { leader_id: RaftLeaderId::new(term, 1), index }
    }

    #[test]
    fn a_stale_tail_is_never_called_committed() {
        let committed = id(3, 95);
        // The log ends in entries of an older leader: at the same index, or beyond it.
        assert_eq!(proven_committed(committed, Some(id(2, 95)), Some(id(2, 120))), None);
        assert_eq!(proven_committed(committed, None, Some(id(2, 90))), None);
        // It is there, or a part of what the same leader wrote is.
        assert_eq!(proven_committed(committed, Some(committed), Some(id(3, 97))), Some(committed));
        assert_eq!(proven_committed(committed, None, Some(id(3, 93))), Some(id(3, 93)));
        assert_eq!(proven_committed(committed, None, None), None);
    }
}
