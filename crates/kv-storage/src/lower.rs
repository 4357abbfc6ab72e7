//! The lower tier while the engine runs: its handle, the mark up to which rows are in it, and what of it is
//! on disk.
//!
//! The mark's lock is held through a drain and through a checkpoint, so neither runs during the other.
//! Readers that must see one state of the tier, and are overtaken by drains, hold it still
//! ([`LowerTier::hold_still`]). Order of the locks: mark, stillness, memtable.

use std::{
    ops::Deref,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};

use crate::{
    codec::Cursor,
    disk::Disk,
    error::StorageError,
    key_filter::KeyFilter,
    lifecycle::Lifecycle,
    limits,
    locks::{lock, read, write},
    options::StorageOptions,
    tier::{Tier, TierMark, TierWrites},
};

const MARK_VERSION: u8 = 1;
const SUSPECT: &str = "TIER-SUSPECT";

/// What the log knows of the tier.
pub(crate) fn encode_mark(mark: TierMark) -> Bytes {
    let mut out = vec![MARK_VERSION];
    out.extend_from_slice(&mark.id.to_le_bytes());
    out.extend_from_slice(&mark.drained.to_le_bytes());
    out.extend_from_slice(&mark.batch.to_le_bytes());
    Bytes::from(out)
}

pub(crate) fn decode_mark(bytes: &[u8]) -> Option<TierMark> {
    let mut c = Cursor::new(bytes);
    (c.u8()? == MARK_VERSION).then_some(())?;
    Some(TierMark { id: c.u128()?, drained: c.u64()?, batch: c.u64()? })
}

/// True if the tier was found damaged while an engine ran on it.
pub(crate) fn is_suspect(disk: &dyn Disk, dir: &Path) -> bool {
    disk.exists(&dir.join(SUSPECT))
}

/// Tells the next start to set the tier aside.
fn mark_suspect(disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
    disk.open(&dir.join(SUSPECT), true)
        .and_then(|_| disk.sync_dir(dir))
        .map_err(StorageError::io("mark the tier as damaged"))
}

/// The tier was set aside, or is another by now.
pub(crate) fn clear_suspect(disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
    if !is_suspect(disk, dir) {
        return Ok(());
    }
    disk.remove(&dir.join(SUSPECT))
        .and_then(|()| disk.sync_dir(dir))
        .map_err(StorageError::io("clear the mark"))
}

/// A tier in use. Tiers write and wait when their last handle goes, on a disk that hangs without an end; so
/// that happens on a thread of its own, wherever this is dropped.
#[derive(Debug)]
pub(crate) struct OpenTier {
    // In this order: the thread closes the tier when `dropped` is gone, and `tier` is gone by then.
    tier: Arc<dyn Tier>,
    dropped: Option<mpsc::SyncSender<()>>,
    own_thread: bool,
    closed: watch::Sender<bool>,
}

impl Deref for OpenTier {
    type Target = dyn Tier;
    fn deref(&self) -> &Self::Target {
        &*self.tier
    }
}

impl Drop for OpenTier {
    fn drop(&mut self) {
        let closed = self.closed.clone();
        if !self.own_thread {
            closed.send_replace(true);
            return;
        }
        let (dropped, other_is_gone) = mpsc::sync_channel(0);
        self.dropped = Some(dropped);
        let last = self.tier.clone();
        let close = move || {
            let _ = other_is_gone.recv();
            drop(last);
            closed.send_replace(true);
        };
        if let Err(e) = thread::Builder::new().name("kv-tier-close".into()).spawn(close) {
            tracing::error!(error = %e, "the lower tier is closed without a thread of its own");
            self.closed.send_replace(true);
        }
    }
}

/// What of the tier is on disk, as the log has it recorded.
#[derive(Debug)]
struct OnDisk {
    seq: AtomicU64,
    ord: watch::Sender<u64>,
    checkpoints: AtomicU64,
}

/// When the last checkpoint was made, and what it covers.
#[derive(Debug)]
struct LastCheckpoint {
    at: Instant,
    log_bytes: u64,
    ord: u64,
}

/// A checkpoint that the tier has made and that the log must record.
#[derive(Debug)]
pub(crate) struct Checkpointed {
    mark: TierMark,
    ord: u64,
    on_disk: Arc<OnDisk>,
}

impl Checkpointed {
    pub(crate) fn mark(&self) -> TierMark {
        self.mark
    }

    /// The log has recorded it.
    pub(crate) fn recorded(self) {
        let ord = self.ord;
        self.on_disk.seq.fetch_max(self.mark.drained, Ordering::AcqRel);
        self.on_disk.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.on_disk.ord.send_if_modified(|now| {
            let newer = ord > *now;
            *now = ord.max(*now);
            newer
        });
    }
}

/// The right to change the tier.
pub(crate) struct Turn<'a> {
    tier: &'a LowerTier,
    mark: MutexGuard<'a, TierMark>,
}

impl Turn<'_> {
    /// Writes rows that did not come through the memtable: what is drained stays as it is.
    pub(crate) fn load(&mut self, rows: &TierWrites) -> Result<(), StorageError> {
        let drained = self.mark.drained;
        self.write(rows, drained)
    }

    /// Writes a tier batch that ends with data batch `seq`, with the mark that says so. It ends with batch
    /// `ord` of the memtable, which has its rows until this returned.
    pub(crate) fn apply(&mut self, rows: &TierWrites, ord: u64, seq: u64) -> Result<(), StorageError> {
        let before = self.tier.handed.fetch_max(ord, Ordering::SeqCst);
        assert!(before < ord, "batch {ord} of the memtable is drained after {before}");
        self.write(rows, seq)
    }

    fn write(&mut self, rows: &TierWrites, seq: u64) -> Result<(), StorageError> {
        let tier = self.tier.handle()?;
        let last = *self.mark;
        assert!(seq >= last.drained, "batch {seq} is drained after {}", last.drained);
        let mark = TierMark { id: last.id, drained: seq, batch: last.batch + 1 };
        if !kv_types::mutant!(DrainPastTheFilter) {
            // Before the tier has them: who finds them gone from the memtable finds them here.
            self.tier.filter.add(rows.iter().filter(|(_, value)| value.is_some()).map(|(key, _)| &key[..]));
        }
        // Outside: a tier that is behind with its own work may take seconds, and readers go on meanwhile.
        tier.make_room()?;
        {
            // A scan that was overtaken by drains holds the tier still, so that it does not change under it.
            // Copies do not: they read in pieces and hear of every write.
            let _changing = write(&self.tier.still);
            tier.apply(rows, mark)?;
        }
        *self.mark = mark;
        self.tier.drains.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// The lower tier of an engine.
#[derive(Debug)]
pub(crate) struct LowerTier {
    disk: Arc<dyn Disk>,
    options: Arc<StorageOptions>,
    life: Arc<Lifecycle>,
    handle: RwLock<Option<Arc<OpenTier>>>,
    filter: Arc<KeyFilter>,
    closed: watch::Receiver<bool>,
    mark: Mutex<TierMark>,
    still: RwLock<()>,
    last: Mutex<LastCheckpoint>,
    on_disk: Arc<OnDisk>,
    /// Order number up to which a caller waits for the memtable to be in the tier and on disk.
    asked: AtomicU64,
    /// Order number of the last batch of the memtable that was handed to the tier: it may be there.
    handed: AtomicU64,
    drains: AtomicU64,
}

impl LowerTier {
    pub(crate) fn new(
        (disk, options, life): (Arc<dyn Disk>, Arc<StorageOptions>, Arc<Lifecycle>),
        (tier, filter): (Arc<dyn Tier>, Arc<KeyFilter>),
        mark: TierMark,
        checkpointed_seq: u64,
    ) -> LowerTier {
        assert!(checkpointed_seq <= mark.drained, "{checkpointed_seq} is on disk of {}", mark.drained);
        let (closing, closed) = watch::channel(false);
        let own_thread = life.has_threads();
        let handle = OpenTier { tier, dropped: None, own_thread, closed: closing };
        LowerTier {
            disk,
            options,
            life,
            handle: RwLock::new(Some(Arc::new(handle))),
            filter,
            closed,
            mark: Mutex::new(mark),
            still: RwLock::new(()),
            last: Mutex::new(LastCheckpoint { at: Instant::now(), log_bytes: 0, ord: 0 }),
            on_disk: Arc::new(OnDisk {
                seq: AtomicU64::new(checkpointed_seq),
                ord: watch::Sender::new(0),
                checkpoints: AtomicU64::new(0),
            }),
            asked: AtomicU64::new(0),
            handed: AtomicU64::new(0),
            drains: AtomicU64::new(0),
        }
    }

    /// The tier; an error after [`LowerTier::close`].
    pub(crate) fn handle(&self) -> Result<Arc<OpenTier>, StorageError> {
        read(&self.handle).clone().ok_or(StorageError::Closed)
    }

    /// Drops the handle of the tier. The tier is closed when its readers have dropped theirs.
    pub(crate) fn close(&self) {
        drop(write(&self.handle).take());
    }

    /// Resolves when the tier is closed, or after `most`; false if it is not.
    pub(crate) async fn closed(&self, most: Duration) -> bool {
        let mut closed = self.closed.clone();
        !self.life.has_threads() || tokio::time::timeout(most, closed.wait_for(|c| *c)).await.is_ok()
    }

    /// As [`LowerTier::closed`], for callers that cannot await.
    pub(crate) fn wait_until_closed(&self, most: Duration) -> bool {
        let looks = most.as_millis() / limits::STOP_LOOK.as_millis().max(1);
        for _ in 0..looks {
            if !self.life.has_threads() || *self.closed.borrow() {
                return true;
            }
            thread::sleep(limits::STOP_LOOK);
        }
        *self.closed.borrow()
    }

    /// Records that the tier is damaged, so that the next start sets it aside.
    pub(crate) fn mark_suspect(&self) {
        if let Err(e) = mark_suspect(&*self.disk, &self.options.dir) {
            tracing::error!(error = %e, "the damaged tier could not be marked");
        }
    }

    /// Reads some of the keys that the tier had at the start into memory; false when all of them were read.
    pub(crate) fn learn_keys(&self) -> Result<bool, StorageError> {
        self.filter.learn(&**self.handle()?)
    }

    /// Bytes of the keys that memory knows.
    pub(crate) fn filter_bytes(&self) -> u64 {
        self.filter.bytes()
    }

    /// While the guard lives the tier does not change.
    pub(crate) fn hold_still(&self) -> RwLockReadGuard<'_, ()> {
        read(&self.still)
    }

    /// Order number of the last batch of the memtable that the tier may have.
    pub(crate) fn handed(&self) -> u64 {
        self.handed.load(Ordering::SeqCst)
    }

    /// Waits for the right to change the tier.
    pub(crate) fn turn(&self) -> Turn<'_> {
        Turn { tier: self, mark: lock(&self.mark) }
    }

    /// Asks for a checkpoint that has the memtable up to `ord`.
    pub(crate) fn ask(&self, ord: u64) {
        self.asked.fetch_max(ord, Ordering::AcqRel);
        self.life.wake_background();
        self.life.wake_driver();
    }

    /// Order number up to which a checkpoint was asked for.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Acquire)
    }

    /// Resolves when the memtable up to `ord` is in the tier and on disk.
    pub(crate) async fn on_disk(&self, ord: u64) -> Result<(), StorageError> {
        let mut on_disk = self.on_disk.ord.subscribe();
        on_disk.wait_for(|now| *now >= ord).await.map(|_| ()).map_err(|_| StorageError::Closed)
    }

    /// The last data batch that is on disk in the tier, as the log has recorded it.
    pub(crate) fn on_disk_seq(&self) -> u64 {
        self.on_disk.seq.load(Ordering::Acquire)
    }

    /// Makes the tier durable, if that is due: `drained` tells the order number up to which the memtable is
    /// in it, `log_bytes` the size of the log, `written` the bytes written to it since the start.
    pub(crate) fn checkpoint_if_due(
        &self,
        drained: impl Fn() -> u64,
        log_bytes: u64,
        written: u64,
    ) -> Result<Option<Checkpointed>, StorageError> {
        let o = &self.options;
        let mut last = lock(&self.last);
        let grown = written.saturating_sub(last.log_bytes);
        let tight = log_bytes > o.max_log_bytes / 2 && grown >= o.segment_bytes as u64;
        let due =
            tight || grown >= o.checkpoint_log_bytes || last.at + o.checkpoint_interval <= Instant::now();
        let asked = last.ord < self.asked() && drained() >= self.asked();
        if !asked && (!due || drained() <= last.ord) {
            return Ok(None);
        }
        (last.at, last.log_bytes) = (Instant::now(), written);
        // The mark and the order number belong together: taken between two drains. And no drain runs while
        // the tier is flushed: sled holds a process-wide lock meanwhile, a waiting batch would make every
        // reader wait behind it, also those on the workers that answer heartbeats.
        let turn = self.turn();
        let (mark, ord) = (*turn.mark, drained());
        self.handle()?.checkpoint()?;
        drop(turn);
        last.ord = ord;
        Ok(Some(Checkpointed { mark, ord, on_disk: self.on_disk.clone() }))
    }

    /// Tier batches and checkpoints since the start.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.drains.load(Ordering::Relaxed), self.on_disk.checkpoints.load(Ordering::Relaxed))
    }
}
