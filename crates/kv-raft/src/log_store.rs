//! openraft's view of a group's part of the node's log. The log itself - group commit, recovery, segments -
//! is kv-storage's; here are only the two ways in which the libraries name things, and the byte cap that
//! keeps one append within one message.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use kv_storage::RaftLog;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};

use crate::codec;
use crate::config::{Entry, LogId, TypeConfig, Vote};
use crate::disk_watch::DiskWatch;
use crate::limits::APPEND_BYTES;

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

    fn read(&self, range: impl RangeBounds<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let entries = self.log.read(range, max_bytes)?;
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
        self.read((range.start_bound().cloned(), range.end_bound().cloned()), usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read((Bound::Included(start), Bound::Excluded(end)), APPEND_BYTES)
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
    use openraft::vote::RaftLeaderId;

    use super::*;

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
