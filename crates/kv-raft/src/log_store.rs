//! openraft's view of a group's part of the node's log. The log itself - group commit, recovery, segments - is
//! kv-storage's; here are only the two ways in which the libraries name things, and the byte cap that keeps one append
//! within one message.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use kv_storage::RaftLog;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};

use crate::codec;
use crate::config::limits::APPEND_BYTES;
use crate::config::{Entry, LogId, TypeConfig, Vote};

/// The log of one group. Readers and the writer are the same handle.
#[derive(Clone)]
pub(crate) struct LogStore(RaftLog);

impl LogStore {
    pub(crate) fn new(log: RaftLog) -> Self {
        Self(log)
    }

    fn read(&self, range: impl RangeBounds<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let entries = self.0.read(range, max_bytes)?;
        entries.into_iter().map(|entry| Ok(codec::from_storage_entry(entry)?)).collect()
    }
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
        Ok(self.0.vote().map(codec::decode_vote).transpose()?)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let bounds = self.0.bounds();
        Ok(LogState {
            last_purged_log_id: bounds.purged.map(codec::from_storage_id),
            last_log_id: bounds.last.map(codec::from_storage_id),
        })
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.0.save_vote(codec::encode_vote(vote)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.0.save_committed(committed.as_ref().map(codec::encode_log_id));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let committed = self.0.committed().map(codec::decode_log_id).transpose()?;
        // It is written without an fsync of its own: never say more than the log holds.
        Ok(committed.min(self.0.bounds().last.map(codec::from_storage_id)))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| codec::to_storage_entry(&entry)).collect();
        self.0.append(entries, Box::new(move |result| callback.io_completed(result)))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.0.truncate_after(last.map(|last| last.index))
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.0.purge(codec::to_storage_id(&upto))
    }
}
