//! Settings of a storage engine, with defaults for a server.

use std::{path::PathBuf, time::Duration};

use crate::{batch::TableId, error::StorageError, identity::Identity, journal, limits};

/// What runs the writer, drain and checkpoint steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    /// Threads of the engine.
    Threads,
    /// The caller, through [`crate::Storage::pump`] or [`crate::Storage::drive`]: deterministic tests and
    /// simulation.
    Manual,
}

/// Settings of [`crate::Storage::open`]. Start from [`StorageOptions::new`].
#[derive(Debug, Clone)]
pub struct StorageOptions {
    /// The data directory; created if missing.
    pub dir: PathBuf,
    /// Whose directory it must be. `None` skips the check.
    pub identity: Option<Identity>,
    /// What runs the background steps.
    pub drive: Drive,
    /// Size of a log segment, bytes.
    pub segment_bytes: usize,
    /// Size of the whole log beyond which commits are refused. Raft records may use a quarter more.
    pub max_log_bytes: u64,
    /// Free bytes of the file system below which commits and proposals are refused
    /// ([`StorageError::DiskFull`]), while all that makes room again goes on; but at most an eighth of the
    /// file system, and what is accepted and not yet written. 0 to never ask.
    pub disk_reserve_bytes: u64,
    /// Largest batch or Raft entry.
    pub max_record_bytes: usize,
    /// Data bytes (not Raft) taken into one log write: what a Raft record waits for at most.
    pub data_bytes_per_write: usize,
    /// Raft bytes taken into one log write.
    pub raft_bytes_per_write: usize,
    /// Data waiting for the log beyond which commits are refused.
    pub data_queue_bytes: usize,
    /// The part of it that bulk commits may use.
    pub bulk_queue_bytes: usize,
    /// Raft records waiting for the log beyond which `log_pressure` is an error.
    pub raft_queue_bytes: usize,
    /// Memtable size beyond which `apply` waits; commits are refused `apply_reserve_bytes` earlier.
    pub memtable_bytes: usize,
    /// The part of the memtable that commits cannot have: what is applied from committed Raft entries finds
    /// room there.
    pub apply_reserve_bytes: usize,
    /// Memtable size beyond which bulk commits are refused.
    pub bulk_memtable_bytes: usize,
    /// Rows of the tier that are kept in memory because they are read, with what each costs, bytes; 0 for
    /// none.
    pub cache_bytes: usize,
    /// Tables of which memory knows the keys that the tier has not: reads of such keys, and writes that first
    /// read one, are answered at once.
    pub filtered_tables: Vec<TableId>,
    /// Memory for the keys of those tables, bytes, at ten bits a key; 0 for none. With more keys than that
    /// ever more reads ask the tier for what it has not.
    pub filter_bytes: usize,
    /// How long `apply` waits for room in the memtable.
    pub apply_wait: Duration,
    /// Memtable size at which draining starts.
    pub drain_start_bytes: usize,
    /// Age of the oldest undrained batch at which draining starts.
    pub drain_interval: Duration,
    /// Bytes drained into the tier in one tier batch (a larger single batch goes whole).
    pub drain_batch_bytes: usize,
    /// Log written since the last checkpoint at which the next one starts.
    pub checkpoint_log_bytes: u64,
    /// Time since the last checkpoint after which the next one starts if something was drained.
    pub checkpoint_interval: Duration,
    /// Size of a file of a journal, bytes.
    pub journal_file_bytes: u64,
    /// Raft entries kept in memory per group, bytes.
    pub raft_cache_bytes: usize,
    /// Writes that wait to be taken by a [`crate::Copy`], bytes. A copy that falls further behind is given
    /// up.
    pub copy_tail_bytes: usize,
}

impl StorageOptions {
    /// Defaults for a server with its data in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> StorageOptions {
        StorageOptions {
            dir: dir.into(),
            identity: None,
            drive: Drive::Threads,
            segment_bytes: 64 << 20,
            max_log_bytes: 2 << 30,
            disk_reserve_bytes: 256 << 20,
            max_record_bytes: 16 << 20,
            data_bytes_per_write: 1 << 20,
            raft_bytes_per_write: 4 << 20,
            data_queue_bytes: 16 << 20,
            bulk_queue_bytes: 2 << 20,
            raft_queue_bytes: 32 << 20,
            memtable_bytes: 64 << 20,
            apply_reserve_bytes: 16 << 20,
            bulk_memtable_bytes: 32 << 20,
            cache_bytes: 64 << 20,
            filtered_tables: Vec::new(),
            filter_bytes: 64 << 20,
            // Far above the longest stall of a tier that works: what waits this long has no tier to drain
            // into.
            apply_wait: Duration::from_secs(90),
            drain_start_bytes: 8 << 20,
            drain_interval: Duration::from_millis(500),
            drain_batch_bytes: 4 << 20,
            checkpoint_log_bytes: 128 << 20,
            checkpoint_interval: Duration::from_secs(30),
            journal_file_bytes: journal::FILE_BYTES,
            raft_cache_bytes: 8 << 20,
            copy_tail_bytes: limits::COPY_TAIL_BYTES,
        }
    }

    /// Small sizes for tests: segments of 256 KiB, a log of 64 of them, and every other bound in proportion.
    pub fn small(dir: impl Into<PathBuf>) -> StorageOptions {
        StorageOptions {
            segment_bytes: 256 << 10,
            max_log_bytes: 16 << 20,
            disk_reserve_bytes: 0,
            max_record_bytes: 64 << 10,
            data_bytes_per_write: 64 << 10,
            raft_bytes_per_write: 64 << 10,
            data_queue_bytes: 1 << 20,
            bulk_queue_bytes: 256 << 10,
            memtable_bytes: 4 << 20,
            apply_reserve_bytes: 1 << 20,
            bulk_memtable_bytes: 2 << 20,
            cache_bytes: 64 << 10,
            filter_bytes: 64 << 10,
            drain_start_bytes: 64 << 10,
            drain_interval: Duration::from_millis(20),
            drain_batch_bytes: 32 << 10,
            checkpoint_log_bytes: 1 << 20,
            checkpoint_interval: Duration::from_secs(1),
            journal_file_bytes: 256 << 10,
            raft_cache_bytes: 64 << 10,
            copy_tail_bytes: 1 << 20,
            ..StorageOptions::new(dir)
        }
    }

    /// As [`StorageOptions::new`], for in-memory disks: sizes of a unit test's cluster.
    pub fn memory(dir: impl Into<PathBuf>) -> StorageOptions {
        StorageOptions {
            segment_bytes: 4 << 20,
            max_log_bytes: 256 << 20,
            max_record_bytes: 2 << 20,
            cache_bytes: 256 << 10,
            filter_bytes: 256 << 10,
            journal_file_bytes: 1 << 20,
            data_bytes_per_write: 512 << 10,
            raft_bytes_per_write: 1 << 20,
            checkpoint_log_bytes: 8 << 20,
            ..StorageOptions::new(dir)
        }
    }

    pub(crate) fn check(&self) -> Result<(), StorageError> {
        let bad = |why: &str| Err(StorageError::Invalid(format!("storage options: {why}")));
        if self.segment_bytes < limits::MIN_SEGMENT_BYTES || self.segment_bytes > limits::MAX_SEGMENT_BYTES {
            return bad("segment_bytes is out of range (16 KiB to 1 GiB)");
        }
        if !self.segment_bytes.is_multiple_of(4096) {
            return bad("segment_bytes must be a multiple of 4096");
        }
        if self.max_log_bytes < (limits::MIN_SEGMENTS * self.segment_bytes) as u64 {
            return bad("max_log_bytes must hold at least four segments");
        }
        // A write must fit a segment beside its head: half of it at most, the head takes a quarter at most.
        if self.max_record_bytes > self.segment_bytes / 2 - 1024 {
            return bad("max_record_bytes must be below half a segment");
        }
        let for_commits = self.memtable_for_commits();
        if self.data_queue_bytes < self.max_record_bytes || for_commits < self.max_record_bytes {
            return bad(
                "the data queue and the memtable without its reserve must each hold one record of max_record_bytes",
            );
        }
        if self.bulk_queue_bytes > self.data_queue_bytes || self.bulk_memtable_bytes > for_commits {
            return bad("bulk budgets must not exceed the whole");
        }
        Ok(())
    }

    /// Memtable size beyond which commits are refused.
    pub(crate) fn memtable_for_commits(&self) -> usize {
        let reserved = if kv_types::mutant!(ReserveIgnored) { 0 } else { self.apply_reserve_bytes };
        self.memtable_bytes.saturating_sub(reserved)
    }

    pub(crate) fn small_state_bytes(&self) -> usize {
        limits::MAX_SMALL_STATE_BYTES.min(self.segment_bytes / limits::SMALL_STATE_SEGMENT_SHARE - 1024)
    }

    /// Payload of one frame at most: what fits in a segment beside the largest head.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.segment_bytes - self.small_state_bytes() - 2048
    }

    /// Size of the log beyond which Raft entries are refused too.
    pub(crate) fn hard_log_bytes(&self) -> u64 {
        self.max_log_bytes + self.max_log_bytes / limits::RAFT_RESERVE_SHARE
    }

    /// Size of the log up to which [`crate::RaftLog::room_for`] allows an append.
    pub(crate) fn askable_log_bytes(&self) -> u64 {
        self.max_log_bytes + self.max_log_bytes / (2 * limits::RAFT_RESERVE_SHARE)
    }
}
