//! The engine as its callers see it: commits, reads, checkpoints, and how it is closed.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use kv_types::{GroupId, LatencySummary};

use crate::{
    batch::{self, Batch, Op, Position, Row, SMALL_USER, TableId, full_key, prefix_end, split_key},
    error::StorageError,
    identity::{self, Identity},
    journals,
    lifecycle::Phase,
    limits,
    memtable::Mem,
    merge::consistently,
    options::Drive,
    parts::{KeepOpen, Parts},
    raft_log::RaftLog,
    snapshot::Snapshots,
    steps,
    wal::{
        entry::{durably, when_durable},
        small::small_key,
    },
};

/// Figures of a running engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Rows of the tier that are kept in memory, with what each costs.
    pub cache_bytes: u64,
    /// Memory for the keys of [`StorageOptions::filtered_tables`].
    pub filter_bytes: u64,
    /// Log writes, each one `fdatasync`.
    pub fsyncs: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Data waiting for the log.
    pub data_queue_bytes: u64,
    /// Raft records waiting for the log.
    pub raft_queue_bytes: u64,
    /// Data not yet in the tier.
    pub memtable_bytes: u64,
    /// Size of the log.
    pub log_bytes: u64,
    /// Segments of the log.
    pub segments: u64,
    /// Tier batches.
    pub drains: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Commits refused for a bound.
    pub refusals: u64,
    /// What keeps the oldest segment.
    pub pinned_by: String,
    /// Memory of the index of all Raft entries: at most [`crate::limits::INDEX_ENTRY_BYTES`] each.
    pub raft_index_bytes: u64,
    /// Payloads of Raft entries in memory.
    pub raft_cache_bytes: u64,
    /// Files of the journals.
    pub journal_bytes: u64,
}

/// The storage engine of a node. Clones share it; the last one closes it.
#[derive(Debug, Clone)]
pub struct Storage {
    open: Arc<KeepOpen>,
}

fn commit(parts: &Parts, batch: Batch, bulk: bool) -> Result<Position, StorageError> {
    let o = &parts.options;
    let encoded = batch.finish(o.max_record_bytes)?;
    let (_, ops) = batch::decode(&encoded).ok_or_else(|| StorageError::Invalid("not a batch".into()))?;
    parts.life.check()?;
    parts.space.check()?;
    parts.log.admit_data()?;
    let max = if bulk { o.bulk_memtable_bytes } else { o.memtable_for_commits() };
    let log = |ops: &[Op]| parts.log.push_data(encoded.clone(), ops, bulk);
    let follows = |mem: &Mem, ops: &[Op]| journals::follows(&parts.journals, mem, ops);
    parts.memtable.commit(ops, encoded.len(), max, follows, log).map(Position)
}

/// Adds a derived batch, waiting for room for a bounded time. The time in which the drain waits for room on
/// the disk does not count: the node would come back to the same disk.
pub(crate) async fn apply(parts: &Parts, batch: Batch) -> Result<(), StorageError> {
    let o = &parts.options;
    let encoded = batch.finish(o.memtable_bytes)?;
    let (_, mut ops) = batch::decode(&encoded).ok_or_else(|| StorageError::Invalid("not a batch".into()))?;
    if ops.iter().any(|op| matches!(op, Op::Small(..))) {
        return Err(StorageError::Invalid("small state cannot be derived: commit it".into()));
    }
    let mut deadline = tokio::time::Instant::now() + o.apply_wait;
    loop {
        let mut room = pin!(parts.memtable.room());
        room.as_mut().enable();
        parts.life.check()?;
        let pushed = || parts.log.raft_pushed();
        match parts.memtable.apply(ops, encoded.len(), o.memtable_bytes, pushed) {
            Ok(()) => {
                if o.drive == Drive::Manual {
                    parts.life.wake_driver();
                }
                return Ok(());
            }
            Err(back) => ops = back,
        }
        parts.life.wake_background();
        tokio::select! { biased;
            () = room => {}
            () = parts.life.ended() => {}
            () = tokio::time::sleep_until(deadline) => if parts.space.is_drain_waiting() {
                deadline += o.apply_wait;
            } else {
                return Err(StorageError::Overloaded { what: "the memtable" });
            }
        }
    }
}

impl Storage {
    pub(crate) fn new(parts: Arc<Parts>) -> Storage {
        Storage { open: Arc::new(KeepOpen::new(parts)) }
    }

    pub(crate) fn parts(&self) -> &Arc<Parts> {
        self.open.parts()
    }

    /// Logs a batch. It is visible to reads at once, in the order of the calls, and durable when
    /// [`Storage::durable`] says so. After an error nothing was changed.
    pub fn commit(&self, batch: Batch) -> Result<Position, StorageError> {
        self.parts().refusals.count(commit(self.parts(), batch, false))
    }

    /// As [`Storage::commit`], within a smaller budget: transfer and repair cannot crowd out the foreground.
    pub fn commit_bulk(&self, batch: Batch) -> Result<Position, StorageError> {
        self.parts().refusals.count(commit(self.parts(), batch, true))
    }

    /// Resolves when everything up to `position` is on disk, or with the error that poisoned the log.
    pub async fn durable(&self, position: Position) -> Result<(), StorageError> {
        self.parts().log.durable(position.0).await
    }

    /// True when everything up to `position` is on disk.
    pub fn is_durable(&self, position: Position) -> bool {
        self.parts().log.durable_seq() >= position.0
    }

    /// Adds derived rows: state that a log can rebuild. Visible at once, never logged, and in the tier as a
    /// whole or not at all, after everything committed before. Waits for room in the memtable, `apply_wait`
    /// at most.
    pub async fn apply(&self, batch: Batch) -> Result<(), StorageError> {
        apply(self.parts(), batch).await
    }

    /// The value of a key, with the position to wait for before it may be revealed.
    pub fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Row>, StorageError> {
        let full = [full_key(table, key)];
        let parts = self.parts();
        let (known, seen) = parts.memtable.rows(&full);
        if let Some(row) = known.into_iter().flatten().next() {
            return Ok(row);
        }
        let [full] = full;
        let value = parts.tier.handle()?.get(&full).map_err(|e| {
            let e = StorageError::from(e);
            parts.tier_failed(&e);
            e
        })?;
        parts.memtable.found(&full, value.as_ref(), seen);
        Ok(value.map(|value| Row { value, position: Position::DURABLE }))
    }

    /// Rows from `from` (inclusive) to `to` (exclusive) in key order, at most `limit`: one consistent view.
    pub fn scan(
        &self,
        table: TableId,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Row)>, StorageError> {
        let parts = self.parts();
        let from = full_key(table, from);
        let to = match to {
            Some(to) => Some(full_key(table, to)),
            None => prefix_end(&full_key(table, &[])),
        };
        consistently(parts, (&from, to.as_deref()), limit, |merge| {
            let mut out = Vec::new();
            while out.len() < limit
                && let Some((key, value, seq)) = merge.next().inspect_err(|e| parts.tier_failed(e))?
            {
                if let Some((_, key)) = split_key(&key) {
                    out.push((key, Row { value, position: Position(seq) }));
                }
            }
            Ok(out)
        })
    }

    /// A value of the small state.
    pub fn small_get(&self, key: &[u8]) -> Option<Bytes> {
        let mut own = vec![SMALL_USER];
        own.extend_from_slice(key);
        self.parts().log.small_get(&own)
    }

    /// The small state under a prefix, in key order.
    pub fn small_scan(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        let mut own = vec![SMALL_USER];
        own.extend_from_slice(prefix);
        self.parts().log.small_scan(&own).into_iter().map(|(k, v)| (k.slice(1..), v)).collect()
    }

    /// Resolves when everything committed or applied before the call is in the tier and on disk there.
    pub async fn checkpoint(&self) -> Result<(), StorageError> {
        let parts = self.parts();
        parts.life.check()?;
        let ord = parts.memtable.read().last_ord;
        parts.tier.ask(ord);
        tokio::select! { biased;
            () = parts.life.ended() => Err(parts.life.check().err().unwrap_or(StorageError::Closed)),
            done = parts.tier.on_disk(ord) => done,
        }
    }

    /// As [`Storage::checkpoint`], and true; or false when what was written has waited for room on the disk
    /// for [`limits::NO_ROOM_FOR_LONG`]: a checkpoint would wait as long as there is none.
    pub async fn checkpoint_if_room(&self) -> Result<bool, StorageError> {
        tokio::select! { biased;
            done = self.checkpoint() => done.map(|()| true),
            () = self.parts().space.until_drain_waits_for_long() => Ok(false),
        }
    }

    /// Whether proposals should be refused for now: the log or the disk is full, or the Raft queue is long.
    pub fn log_pressure(&self) -> Result<(), StorageError> {
        let parts = self.parts();
        parts.life.check()?;
        parts.space.check()?;
        parts.log.admit_data()?;
        if parts.log.raft_queue_bytes() > parts.options.raft_queue_bytes {
            return Err(StorageError::Overloaded { what: "the log's Raft queue" });
        }
        Ok(())
    }

    /// Size of the log beyond which commits are refused, bytes: [`crate::StorageOptions::max_log_bytes`].
    /// What trims the log by size must start well below it.
    pub fn max_log_bytes(&self) -> u64 {
        self.parts().options.max_log_bytes
    }

    /// The error that poisoned the engine, or that it is closed.
    pub fn check(&self) -> Result<(), StorageError> {
        self.parts().life.check()
    }

    /// Resolves with the error that poisoned the engine: the node must stop then.
    pub async fn failed(&self) -> StorageError {
        self.parts().life.failed().await
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        let parts = self.parts();
        let log = parts.log.stats();
        let (drains, checkpoints) = parts.tier.counts();
        Stats {
            cache_bytes: parts.memtable.cache_bytes(),
            filter_bytes: parts.tier.filter_bytes(),
            fsyncs: log.writes,
            records: log.records,
            bytes: log.bytes,
            data_queue_bytes: log.data_queue_bytes,
            raft_queue_bytes: log.raft_queue_bytes,
            memtable_bytes: parts.memtable.read().bytes as u64,
            log_bytes: log.log_bytes,
            segments: log.segments,
            drains,
            checkpoints,
            refusals: parts.refusals.so_far(),
            pinned_by: log.pinned_by,
            raft_index_bytes: log.index_bytes,
            raft_cache_bytes: log.cache_bytes,
            journal_bytes: parts.journals.disk_bytes(),
        }
    }

    /// How long the parts of storage took since the start, by name.
    pub fn latencies(&self) -> Vec<(&'static str, LatencySummary)> {
        let parts = self.parts();
        vec![
            ("log_write", parts.log.write_latency()),
            ("tier_read", parts.readers.latency()),
            ("drain_step", parts.latencies.drain.summary()),
            ("checkpoint", parts.latencies.checkpoint.summary()),
        ]
    }

    /// A Raft group's log; made when it is first asked for.
    pub fn raft(&self, group: GroupId) -> RaftLog {
        RaftLog::new(self.open.clone(), group.0)
    }

    /// Groups of which this node has a vote, a purge point or entries.
    pub fn raft_groups(&self) -> Vec<GroupId> {
        let known = self.parts().log.groups().into_iter().map(GroupId).filter(|group| {
            let log = self.raft(*group);
            log.bounds().last.is_some() || log.vote().is_some()
        });
        known.collect()
    }

    /// The snapshot files of a group.
    pub fn snapshots(&self, group: GroupId) -> Snapshots {
        let parts = self.parts();
        let dir = parts.options.dir.join("snapshots").join(group.0.to_string());
        Snapshots::new(parts.disk.clone(), dir, parts.temporaries.clone(), parts.space.clone())
    }

    /// Whose data this is, if that was ever said.
    pub fn identity(&self) -> Result<Option<Identity>, StorageError> {
        identity::read(&*self.parts().disk, &self.parts().options.dir)
    }

    /// Signs a directory that was opened without identity; an error if it belongs to another node.
    pub fn set_identity(&self, identity: Identity) -> Result<(), StorageError> {
        identity::check(&*self.parts().disk, &self.parts().options.dir, Some(identity)).map(|_| ())
    }

    /// What a lost tier held has been rebuilt: later starts no longer report the loss.
    pub async fn acknowledge_tier_lost(&self) -> Result<(), StorageError> {
        let (done, durable) = when_durable();
        self.parts().log.put_small(Bytes::from_static(small_key::TIER_LOST), None, Some(done));
        durably(durable).await.map_err(StorageError::io("acknowledge the lost tier"))
    }

    /// One round of all background work on this thread; true if there was any. For [`Drive::Manual`].
    pub fn pump(&self) -> bool {
        steps::pump(self.parts())
    }

    /// Resolves when [`Storage::pump`] has something to do.
    pub async fn work_ready(&self) {
        self.parts().life.driver_woken().await;
    }

    /// Pumps until the engine is closed: what a simulation spawns instead of threads.
    pub fn drive(&self) -> impl Future<Output = ()> + Send + 'static {
        // Not a handle: the driver does not keep the engine open.
        let parts = self.parts().clone();
        async move {
            let idle = limits::IDLE_WAIT.min(parts.options.drain_interval);
            loop {
                let open = parts.life.check().is_ok();
                let waiting = !parts.log.is_idle();
                let latency = if open && waiting { parts.disk.latency() } else { Duration::ZERO };
                if !latency.is_zero() {
                    tokio::time::sleep(latency).await;
                }
                while steps::pump(&parts) {}
                if !open {
                    parts.log.refuse_rest();
                    return;
                }
                let _ = tokio::time::timeout(idle, parts.life.driver_woken()).await;
            }
        }
    }

    /// Writes what waits, stops the threads and closes the tier. Returns within
    /// [`limits::THREADS_STOP_WAIT`] and [`limits::TIER_CLOSE_WAIT`] together, also if a call of the disk or
    /// of the tier never returns: what it held up is then as after a kill.
    pub async fn shutdown(&self) {
        let parts = self.parts();
        parts.log.write_lazy();
        parts.stop(Phase::Draining);
        if parts.options.drive == Drive::Manual {
            while parts.log.write_step() {}
            parts.log.refuse_rest();
        }
        let ended = parts.life.threads_ended(limits::THREADS_STOP_WAIT).await;
        if ended {
            parts.unlock();
        } else {
            tracing::error!("a storage thread does not end: the disk hangs; the stop goes on without it");
            parts.stop(Phase::Halted);
            parts.log.refuse_rest();
        }
        parts.tier.close();
        if !parts.tier.closed(limits::TIER_CLOSE_WAIT).await {
            tracing::error!("the lower tier does not close; it is left open, as by a kill");
        }
    }

    /// Stops at once, as a power cut would: what waits for the log is never written. For tests and
    /// simulation. Bounded as [`Storage::shutdown`].
    pub fn halt(&self) {
        let parts = self.parts();
        parts.stop(Phase::Halted);
        if parts.life.wait_for_threads(limits::THREADS_STOP_WAIT) {
            parts.unlock();
        } else {
            tracing::error!("a storage thread does not end: the disk hangs; the stop goes on without it");
        }
        parts.log.refuse_rest();
        parts.tier.close();
        if !parts.tier.wait_until_closed(limits::TIER_CLOSE_WAIT) {
            tracing::error!("the lower tier does not close; it is left open, as by a kill");
        }
    }
}
