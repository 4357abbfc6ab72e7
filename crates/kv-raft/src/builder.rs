//! Taking a snapshot of a group: a copy of its rows into a file, while entries are applied, and its histories
//! as far as the rows in it say. Nothing waits for it; a copy that cannot keep up is given up, and the
//! steward asks again.
//!
//! An entry of a history never changes, so it may be read at any time: of each namespace those are taken that
//! the row of its account, as it passes by, says to be applied. What the floor passes meanwhile is not
//! missed, unless the account at the end has it above the floor: then the copy is given up. Nor is what is
//! dropped with its namespace.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kv_storage::{
    BlockKind, Copy, Piece, SnapshotInfo, SnapshotWriter, Snapshots, Storage, StorageError, TableId,
};
use kv_types::{GroupId, NamespaceId};
use openraft::storage::RaftSnapshotBuilder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::applied::Applied;
use crate::codec;
use crate::config::{LogId, SnapshotMeta, TypeConfig};
use crate::history::{self, Page, Past};
use crate::holes::Holes;
use crate::limits::{HISTORY_PAGE_BYTES, MEND_WAIT, PIECE_BYTES, ROWS_AT_ONCE, SNAPSHOT_BYTES_PER_SECOND};
use crate::machine_error::MachineError;
use crate::runtime::NodeRuntime;
use crate::schedule::{Haste, Rate};
use crate::sent_files::SentFiles;
use crate::snapshot::Snapshot;
use crate::snapshot::{self, Block, SnapshotData, id_of};
use crate::tables::{Space, Table, keys};

/// What the snapshots of all groups of a node share.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotWork {
    /// One snapshot is written at a time.
    turn: Arc<Semaphore>,
    /// Bytes written per second.
    per_second: u64,
    /// How long it waits for lost entries of a history.
    mend_wait: Duration,
    /// How often so much was removed that the last snapshots are not worth their room any more.
    shed: Arc<AtomicU64>,
}

impl SnapshotWork {
    /// Much was removed: every group of this node takes a snapshot and lets go of the log below it. All of
    /// them, because they share the log.
    fn shed(&self) {
        self.shed.fetch_add(1, Ordering::Relaxed);
    }

    /// While what is returned lives no snapshot is written.
    pub(crate) async fn alone(&self) -> io::Result<OwnedSemaphorePermit> {
        self.turn.clone().acquire_owned().await.map_err(io::Error::other)
    }

    pub(crate) fn new(per_second: u64) -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), per_second, mend_wait: MEND_WAIT, shed: Arc::default() }
    }

    /// Whether a snapshot is being written.
    #[cfg(test)]
    pub(crate) fn is_busy(&self) -> bool {
        self.turn.available_permits() == 0
    }

    #[cfg(test)]
    pub(crate) fn with_mend_wait(self, mend_wait: Duration) -> Self {
        Self { mend_wait, ..self }
    }
}

impl Default for SnapshotWork {
    fn default() -> Self {
        Self::new(SNAPSHOT_BYTES_PER_SECOND)
    }
}

/// Waits until openraft has heard that so much was applied.
pub(crate) type Told = Box<dyn Fn(LogId) -> BoxFuture<'static, io::Result<()>> + Send + Sync>;

/// Figures that a group's state machine, its snapshots and its steward share.
#[derive(Default)]
pub(crate) struct Account {
    /// Bytes of entries applied by this process.
    applied_bytes: AtomicU64,
    /// How many of them are in the last snapshot.
    snapshot_at: AtomicU64,
    /// Size of the last snapshot's file.
    snapshot_bytes: AtomicU64,
    /// The last snapshot cannot be read: a follower waits for another one.
    lost: AtomicBool,
    /// Bytes that were removed with namespaces and may still be in the last snapshot.
    freed: AtomicU64,
    /// Those of them that are reason enough for the next one.
    to_shed: AtomicU64,
    /// Which of the times that much was removed on this node the last snapshot is of.
    shed: AtomicU64,
    /// The log below this index is not kept for followers that were away shortly.
    given_up: AtomicU64,
    /// Which files followers have parts of.
    sent: Mutex<SentFiles>,
    /// A file besides the newest was kept for a follower.
    spare: AtomicBool,
    /// Held while files are removed.
    removing: Mutex<()>,
    /// Entries of histories that snapshots did not find.
    holes: Mutex<Holes>,
    /// Set once openraft runs.
    pub(crate) told: OnceLock<Told>,
}

impl Account {
    pub(crate) fn applied(&self, bytes: u64) {
        self.applied_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A snapshot of this size has everything up to `at` bytes.
    pub(crate) fn has_snapshot(&self, at: u64, size: u64) {
        self.snapshot_at.fetch_max(at, Ordering::Relaxed);
        self.snapshot_bytes.store(size, Ordering::Relaxed);
        self.lost.store(false, Ordering::Relaxed);
    }

    /// The last snapshot cannot be read.
    pub(crate) fn has_lost_snapshot(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// Whether the last snapshot cannot be read, so that another one is due at once.
    pub(crate) fn needs_snapshot(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// So many bytes of dropped namespaces went.
    pub(crate) fn freed(&self, bytes: u64) {
        self.freed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All that there was of dropped namespaces went. If that is at least `least` bytes, and half of the last
    /// snapshot, then new ones are due, so that the room comes back.
    pub(crate) fn settle_freed(&self, work: &SnapshotWork, least: u64) {
        let (freed, state) =
            (self.freed.load(Ordering::Relaxed), self.snapshot_bytes.load(Ordering::Relaxed));
        if freed >= least.max(state / 2) {
            self.to_shed.store(freed, Ordering::Relaxed);
            work.shed();
        }
    }

    /// Whether much was removed on this node since the last snapshot was begun.
    pub(crate) fn is_to_shed(&self, work: &SnapshotWork) -> bool {
        self.shed.load(Ordering::Relaxed) < work.shed.load(Ordering::Relaxed)
    }

    /// How large the next snapshot of a state of so many bytes is, about.
    pub(crate) fn without_shed(&self, state_bytes: u64) -> u64 {
        state_bytes.saturating_sub(self.to_shed.load(Ordering::Relaxed))
    }

    /// A snapshot has none of what had been removed when it was begun: `freed` bytes, for the `shed`th time
    /// on this node. `next` is the first entry that it does not cover.
    fn has_shed(&self, freed: u64, shed: u64, next: u64) {
        self.freed.fetch_sub(freed, Ordering::Relaxed);
        if self.shed.fetch_max(shed, Ordering::Relaxed) < shed {
            self.to_shed.store(0, Ordering::Relaxed);
            self.given_up.fetch_max(next, Ordering::Relaxed);
        }
    }

    /// The index below which no entries are kept that only a short absence needs.
    pub(crate) fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }

    /// The transfers of this group's files to followers.
    pub(crate) fn sent(&self) -> MutexGuard<'_, SentFiles> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries of histories that snapshots did not find.
    pub(crate) fn holes(&self) -> MutexGuard<'_, Holes> {
        self.holes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file that is kept for a follower which has a part of it. Where the log begins is read from the
    /// group's log.
    pub(crate) fn kept_file(&self, storage: &Storage, group: GroupId) -> Option<u64> {
        let purged = storage.raft(group).bounds().purged;
        let log_begins = purged.map_or(0, |purged| purged.index.saturating_add(1));
        self.sent().kept(log_begins, Instant::now())
    }

    /// Whether a file is there besides the newest that was kept for a follower.
    pub(crate) fn has_spare_file(&self) -> bool {
        self.spare.load(Ordering::Relaxed)
    }

    /// Removes the group's files, except for the newest and the one that is kept for a follower. Blocks.
    pub(crate) fn remove_old_files(&self, storage: &Storage, group: GroupId) -> Result<(), StorageError> {
        let _alone = self.removing.lock().unwrap_or_else(PoisonError::into_inner);
        let files = storage.snapshots(group);
        let kept = self.kept_file(storage, group);
        self.spare.store(snapshot::remove_old(&files, kept)?, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn now(&self) -> u64 {
        self.applied_bytes.load(Ordering::Relaxed)
    }

    /// Bytes applied since the last snapshot, and its size.
    pub(crate) fn growth(&self) -> (u64, u64) {
        let since = self.now().saturating_sub(self.snapshot_at.load(Ordering::Relaxed));
        (since, self.snapshot_bytes.load(Ordering::Relaxed))
    }
}

/// Builds a snapshot of the state at the time when it ends.
pub(crate) struct Builder {
    pub(crate) space: Space,
    pub(crate) storage: Storage,
    pub(crate) files: Snapshots,
    pub(crate) applied: Applied,
    pub(crate) account: Arc<Account>,
    pub(crate) work: SnapshotWork,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    /// A snapshot that cannot be taken now (the disk is full, too much is written) does not stop a voter:
    /// the newest one stays, nothing is purged, and the steward asks again.
    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        match self.build().await {
            Ok(snapshot) => Ok(snapshot),
            Err(error) => {
                tracing::warn!(group = self.space.group.0, %error, "no snapshot was taken; the log is kept until one is");
                let files = self.files.clone();
                let newest = NodeRuntime::blocking(move || snapshot::newest(&files)).await??;
                // One that was received counts when its state is loaded: openraft takes what is returned here
                // for flushed.
                let applied = self.applied.read().await.last();
                let newest = newest.filter(|(_, meta)| meta.last_log_id <= applied);
                let (id, meta) = newest.map_or_else(Default::default, |(file, meta)| (file.id, meta));
                Ok(Snapshot { meta, snapshot: SnapshotData::File { files: self.files.clone(), id } })
            }
        }
    }
}

impl Builder {
    async fn build(&self) -> Result<Snapshot, MachineError> {
        let _turn = self.work.turn.acquire().await.map_err(io::Error::other)?;
        let (freed, shed) =
            (self.account.freed.load(Ordering::Relaxed), self.work.shed.load(Ordering::Relaxed));
        let prefix = keys::of_space(self.space);
        let ranges = Table::ALL.map(|table| (table.id(), prefix.as_slice()));
        let copy = self.storage.copy(&ranges)?;
        let (files, storage, space) = (self.files.clone(), self.storage.clone(), self.space);
        let waits = (self.account.clone(), self.work.mend_wait);
        let mut filling = NodeRuntime::blocking(move || {
            Ok::<_, MachineError>(Filling::new(storage, space, copy, files.create()?, waits))
        })
        .await??;
        let mut pace = Pace::new(self);
        while !filling.copy.base_is_read() || filling.histories.behind().is_some() {
            filling = self.fill(filling, &mut pace).await?;
        }
        let (mark, at) = {
            let applied = self.applied.read().await;
            if applied.space != self.space {
                return Err(StorageError::Overloaded { what: "an installation" }.into());
            }
            filling.copy.close()?;
            (applied.mark.clone(), self.account.now())
        };
        while !filling.is_whole {
            filling = self.fill(filling, &mut pace).await?;
        }
        self.check_space().await?;
        // What is applied may not be durable in this node's log yet; after a crash no snapshot must be ahead
        // of the log.
        self.storage.raft(self.space.group).barrier().await?;
        // openraft hears of what was applied after the tables have it, and takes no snapshot ahead of that.
        if let (Some(told), Some(last)) = (self.account.told.get(), mark.last_log_id) {
            told(last).await?;
        }
        self.make_durable(filling.file.bytes()).await?;
        let (account, meta) = (self.account.clone(), mark.clone());
        let info = NodeRuntime::blocking(move || filling.finish(&account, &meta)).await??;
        self.account.has_snapshot(at, info.bytes);
        self.account.has_shed(freed, shed, mark.last_log_id.map_or(0, |id| id.index.saturating_add(1)));
        tracing::info!(group = self.space.group.0, last = ?mark.last_log_id, bytes = info.bytes, "snapshot taken");
        Ok(Snapshot { meta: mark, snapshot: SnapshotData::File { files: self.files.clone(), id: info.id } })
    }

    /// Brings what the snapshot of `bytes` bytes covers to the tier, durably. The log is purged up to the
    /// snapshot, and what of that is only in memory would have to come from its file, with all the rest, if
    /// this node were killed. On a full disk that is the price of a log that makes room, where it makes as
    /// much as the file would need then; elsewhere the snapshot is given up.
    async fn make_durable(&self, bytes: u64) -> Result<(), MachineError> {
        while !self.storage.checkpoint_if_room().await? {
            let stats = self.storage.stats();
            if stats.log_bytes >= bytes.saturating_add(stats.memtable_bytes) {
                let group = self.space.group.0;
                tracing::warn!(
                    group,
                    "a snapshot goes without what waits for room, so that the log makes some"
                );
                return Ok(());
            }
            self.storage.log_pressure()?;
        }
        Ok(())
    }

    /// Gives up after an installation: what the copy was of is being removed, and its histories first.
    async fn check_space(&self) -> Result<(), MachineError> {
        match self.applied.read().await.space == self.space {
            true => Ok(()),
            false => Err(StorageError::Overloaded { what: "an installation" }.into()),
        }
    }

    /// Writes the next piece, at this node's pace. Pieces of the tail are not paced: they come as fast as
    /// entries are applied, and a copy that is slower than that is given up.
    async fn fill(&self, mut filling: Filling, pace: &mut Pace) -> Result<Filling, MachineError> {
        self.check_space().await?;
        let before = filling.paced;
        let filling = NodeRuntime::blocking(move || filling.step().map(|()| filling)).await??;
        let wait = pace.wait(&self.storage, self.work.per_second, filling.paced, before);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(filling)
    }
}

/// How fast a snapshot is written.
struct Pace {
    rate: Rate,
    opened: Instant,
    /// Bytes that the file will have, about.
    expected: u64,
    /// Bytes that had been written to the node's log when it was begun.
    log_at_first: u64,
    /// It should be done while the log may still grow by so much: half of what it could when it was begun.
    room_kept: u64,
}

impl Pace {
    fn new(builder: &Builder) -> Self {
        let (since, last) = builder.account.growth();
        let stats = builder.storage.stats();
        Self {
            rate: Rate::new(builder.work.per_second),
            opened: Instant::now(),
            expected: last.saturating_add(since),
            log_at_first: stats.bytes,
            room_kept: builder.storage.max_log_bytes().saturating_sub(stats.log_bytes) / 2,
        }
    }

    /// How long to wait after a piece, with which what is paced has grown from `before` to `bytes`.
    fn wait(&mut self, storage: &Storage, base: u64, bytes: u64, before: u64) -> Duration {
        let (stats, elapsed) = (storage.stats(), self.opened.elapsed());
        let haste = Haste {
            left: self.expected.saturating_sub(bytes),
            room: storage.max_log_bytes().saturating_sub(stats.log_bytes + self.room_kept),
            written: stats.bytes.saturating_sub(self.log_at_first),
            elapsed,
        };
        self.rate.change(haste.per_second(base));
        self.rate.spend(elapsed, bytes - before)
    }
}

/// A copy on its way into a file.
struct Filling {
    storage: Storage,
    space: Space,
    copy: Copy,
    file: SnapshotWriter,
    histories: Histories,
    /// Bytes of the file without pieces of the tail.
    paced: u64,
    /// The last step was a page of a history: rows have their turn.
    history_was_last: bool,
    /// The copy is closed and has no more pieces.
    is_whole: bool,
    /// Where lost entries are noted, and how long to wait for them.
    waits: (Arc<Account>, Duration),
}

impl Filling {
    fn new(
        storage: Storage,
        space: Space,
        copy: Copy,
        file: SnapshotWriter,
        waits: (Arc<Account>, Duration),
    ) -> Self {
        Self {
            storage,
            space,
            copy,
            file,
            histories: Histories::default(),
            paced: 0,
            history_was_last: false,
            is_whole: false,
            waits,
        }
    }

    /// Moves one piece: of the rows, or of a history. Blocks.
    fn step(&mut self) -> Result<(), MachineError> {
        let before = self.file.bytes();
        let behind = self.histories.behind().filter(|_| self.copy.base_is_read());
        if let Some((namespace, range)) = behind
            && !self.history_was_last
            && !self.copy.tail_is_long()
        {
            self.history_was_last = true;
            self.history(namespace, range)?;
            self.paced += self.file.bytes() - before;
            return Ok(());
        }
        self.history_was_last = false;
        let Some(piece) = self.copy.next_piece(ROWS_AT_ONCE, PIECE_BYTES)? else {
            if self.copy.is_closed() && self.histories.behind().is_none() {
                self.histories.check()?;
                self.is_whole = true;
            }
            return Ok(());
        };
        let kind = match piece {
            Piece::Base(_) => BlockKind::Base,
            Piece::Tail(_) => BlockKind::Tail,
        };
        let mut block = Block::new();
        for (table, key, value) in piece.into_rows() {
            if kv_types::mutant!(DedupLostInSnapshot) && table == Table::Sessions.id() {
                continue;
            }
            self.histories.note(table, &key, value.as_ref())?;
            if kv_types::mutant!(SnapshotDropsValues) && table == Table::Data.id() && drops(&key)? {
                continue;
            }
            block.push(table.get(), &key, value.as_deref())?;
            if block.is_full() {
                self.file.write(kind, &block.take())?;
            }
        }
        if !block.is_empty() {
            self.file.write(kind, &block.take())?;
        }
        if kind == BlockKind::Base {
            self.paced += self.file.bytes() - before;
        }
        Ok(())
    }

    /// Moves some entries of a namespace.
    fn history(&mut self, namespace: NamespaceId, range: (u64, u64)) -> Result<(), MachineError> {
        let page = history::read(&self.storage, self.space, namespace, range, HISTORY_PAGE_BYTES)?;
        if let Page::Entries(entries) = &page {
            let mut block = Block::new();
            for (id, content) in entries {
                let key = keys::entry(self.space, namespace, *id);
                block.push(Table::History.id().get(), &key, Some(content))?;
                if block.is_full() {
                    self.file.write(BlockKind::Base, &block.take())?;
                }
            }
            if !block.is_empty() {
                self.file.write(BlockKind::Base, &block.take())?;
            }
        }
        if let Page::Lost(next) = page {
            let (account, wait) = &self.waits;
            if account.holes().meet(namespace, (range.0, next - 1), Instant::now(), *wait) {
                return Err(StorageError::Overloaded { what: "the mending of a history" }.into());
            }
        }
        self.histories.took(namespace, range, &page);
        Ok(())
    }

    /// Makes the file complete, under the mark of its close. Blocks.
    fn finish(self, account: &Account, mark: &SnapshotMeta) -> Result<SnapshotInfo, MachineError> {
        let info = self.file.finish(id_of(mark.last_log_id.as_ref()), &codec::encode_mark(mark))?;
        account.remove_old_files(&self.storage, self.space.group)?;
        Ok(info)
    }
}

/// How far the histories are in a file.
#[derive(Debug, Default)]
struct Histories(BTreeMap<NamespaceId, Taken>);

#[derive(Debug, Default)]
struct Taken {
    /// The revision and the floor, as the rows in the file say last.
    revision: u64,
    floor: u64,
    /// The next revision to take.
    next: u64,
    /// The last one that was trimmed before it was taken.
    missed: u64,
}

impl Histories {
    /// Takes note of a record of the copy.
    fn note(&mut self, table: TableId, key: &[u8], row: Option<&Bytes>) -> Result<(), MachineError> {
        if table == Table::Meta.id()
            && let Some(namespace) = keys::of_revision(key)?
        {
            // A namespace that was dropped has no history any more.
            let Some(row) = row else {
                self.0.remove(&namespace);
                return Ok(());
            };
            let past = Past::decode(row.clone())?;
            let taken = self.0.entry(namespace).or_default();
            (taken.revision, taken.floor) = (past.revision, past.floor);
            taken.next = taken.next.max(past.floor + 1);
        }
        Ok(())
    }

    /// A namespace with entries that are still to be taken: from and to.
    fn behind(&self) -> Option<(NamespaceId, (u64, u64))> {
        let behind = self.0.iter().find(|(_, taken)| taken.next <= taken.revision);
        behind.map(|(namespace, taken)| (*namespace, (taken.next, taken.revision)))
    }

    fn took(&mut self, namespace: NamespaceId, (_, to): (u64, u64), page: &Page) {
        let Some(taken) = self.0.get_mut(&namespace) else { return };
        match page {
            Page::Entries(entries) => taken.next = entries.last().map_or(to, |(id, _)| *id) + 1,
            Page::Trimmed(first) => {
                taken.missed = first.saturating_sub(1);
                taken.next = (*first).max(taken.next + 1);
            }
            Page::Lost(next) => {
                tracing::error!(%namespace, from = taken.next, to = next - 1, "a snapshot lacks lost entries of a history");
                taken.next = *next;
            }
        }
    }

    /// Everything above the floors was taken, unless it is lost.
    fn check(&self) -> Result<(), MachineError> {
        match self.0.values().any(|taken| taken.missed > taken.floor) {
            true => Err(StorageError::Overloaded { what: "what is trimmed during a snapshot" }.into()),
            false => Ok(()),
        }
    }
}

/// Whether the seeded bug leaves out this row.
fn drops(place: &[u8]) -> Result<bool, codec::CodecError> {
    Ok(keys::of_data(place)?.1.ends_with(b"0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The account passed by, and its entries are given up with the namespace before they are taken.
    #[test]
    fn what_is_dropped_with_its_namespace_is_not_missed() {
        let space = Space::first(GroupId(1));
        let mut past = Past::default();
        for _ in 0..5 {
            past.append(b"entry", u64::MAX);
        }
        let account = Bytes::from(past.encode());
        for dropped in [false, true] {
            let mut histories = Histories::default();
            let note = |histories: &mut Histories, row: Option<&Bytes>| {
                let place = keys::revision(space, NamespaceId(3));
                histories.note(Table::Meta.id(), &place, row).unwrap();
            };
            note(&mut histories, Some(&account));
            assert_eq!(histories.behind(), Some((NamespaceId(3), (1, 5))));
            histories.took(NamespaceId(3), (1, 5), &Page::Trimmed(6));
            assert_eq!(histories.behind(), None);
            if dropped {
                note(&mut histories, None);
            }
            assert_eq!(histories.check().is_ok(), dropped, "trimmed, with or without its namespace");
        }
    }
}
