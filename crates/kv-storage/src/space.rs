//! Room on the disk: commits are refused while the file system has less than a reserve, so that what makes
//! room again (drain, checkpoint, trimming) and what must not fail (votes, the log's own records) still finds
//! some.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::{sync::watch, time::Instant};

use crate::{disk::Disk, error::StorageError, limits, locks::lock, options::StorageOptions};

#[derive(Debug, Default)]
struct Look {
    at: Option<Instant>,
    /// Bytes that the log had written then.
    written: u64,
}

/// What is known of the file system of the data directory. Asked by the background steps, never by a commit:
/// a disk that hangs answers this question late too.
#[derive(Debug)]
pub(crate) struct DiskSpace {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    most: u64,
    last: Mutex<Look>,
    free: AtomicU64,
    reserve: AtomicU64,
    /// Bytes that are accepted and will still be written, as they were then.
    owed: AtomicU64,
    short: AtomicBool,
    /// When the drain looks again whether there is room for what goes into the journals; `None` while it
    /// goes on.
    drain_again: Mutex<Option<Instant>>,
    drain_waits: watch::Sender<bool>,
}

impl DiskSpace {
    /// Looks once.
    pub(crate) fn new(disk: Arc<dyn Disk>, o: &StorageOptions) -> DiskSpace {
        let space = DiskSpace {
            disk,
            dir: o.dir.clone(),
            most: o.disk_reserve_bytes,
            last: Mutex::default(),
            free: AtomicU64::new(u64::MAX),
            reserve: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            short: AtomicBool::new(false),
            drain_again: Mutex::default(),
            drain_waits: watch::Sender::new(false),
        };
        space.look(0, || 0);
        space
    }

    /// Asks the disk, if the last answer is old or much was `written` to the log since. `owed` tells how much
    /// of what is accepted will still be written to the file system.
    pub(crate) fn look(&self, written: u64, owed: impl FnOnce() -> u64) {
        let mut last = lock(&self.last);
        let fresh = last.at.is_some_and(|at| at.elapsed() < limits::SPACE_LOOK);
        let little = written.saturating_sub(last.written) <= self.reserve.load(Ordering::Relaxed) / 8;
        if self.most == 0 || (fresh && little) {
            return;
        }
        *last = Look { at: Some(Instant::now()), written };
        self.owed.store(owed(), Ordering::Relaxed);
        self.ask();
    }

    fn ask(&self) {
        if self.most == 0 {
            return;
        }
        match self.disk.free_space(&self.dir) {
            Ok(Some(space)) => self.saw(space.free, space.total),
            // Not known, or no longer bounded, is not full: the writes themselves say whether there is room.
            Ok(None) => self.saw(u64::MAX, 0),
            Err(e) => {
                tracing::debug!(error = %e, "the free space of the disk is not known");
                self.saw(u64::MAX, 0);
            }
        }
    }

    fn saw(&self, free: u64, total: u64) {
        let reserve = self.most.min(total / limits::DISK_RESERVE_SHARE);
        self.free.store(free, Ordering::Relaxed);
        self.reserve.store(reserve, Ordering::Relaxed);
        let reserve = self.kept_free();
        let short = free < reserve;
        if self.short.swap(short, Ordering::AcqRel) != short {
            match short {
                true => tracing::warn!(free, reserve, "the disk is nearly full: commits are refused"),
                false => tracing::info!(free, reserve, "the disk has room again"),
            }
        }
    }

    /// What must be free: the reserve, and what is owed.
    fn kept_free(&self) -> u64 {
        self.reserve.load(Ordering::Relaxed).saturating_add(self.owed.load(Ordering::Relaxed))
    }

    fn refusal(&self) -> StorageError {
        StorageError::DiskFull { free: self.free.load(Ordering::Relaxed), reserve: self.kept_free() }
    }

    /// Whether a file of `bytes` leaves what must be free, by what was seen last.
    pub(crate) fn leaves_reserve(&self, bytes: u64) -> Result<(), StorageError> {
        let enough = self.free.load(Ordering::Relaxed) >= self.kept_free().saturating_add(bytes);
        if enough { Ok(()) } else { Err(self.refusal()) }
    }

    /// Asks the disk whether a file that has `bytes` so far may grow. One that is small against
    /// the reserve may use half of it: a snapshot of a small state is what makes room in the log. Blocks.
    pub(crate) fn check_file(&self, bytes: u64) -> Result<(), StorageError> {
        self.ask();
        self.room_for(0).or_else(|full| if self.is_small(bytes, 0) { Ok(()) } else { Err(full) })
    }

    /// Whether a file of `bytes` leaves the reserve free, or is small, by what was seen last.
    pub(crate) fn room_for(&self, bytes: u64) -> Result<(), StorageError> {
        self.leaves_reserve(bytes)
            .or_else(|full| if self.is_small(bytes, bytes) { Ok(()) } else { Err(full) })
    }

    fn is_small(&self, bytes: u64, to_come: u64) -> bool {
        let (free, reserve) = (self.free.load(Ordering::Relaxed), self.reserve.load(Ordering::Relaxed));
        bytes > 0 && bytes <= reserve / 8 && free >= (reserve / 2).saturating_add(to_come)
    }

    /// The refusal of a write that found no room, with what is free now. Blocks.
    pub(crate) fn full(&self) -> StorageError {
        self.ask();
        self.refusal()
    }

    /// The drain found no room for its entries on the disk, and waits.
    pub(crate) fn drain_waits(&self, e: &StorageError) {
        *lock(&self.drain_again) = Some(Instant::now() + limits::SPACE_LOOK);
        if !self.drain_waits.send_replace(true) {
            tracing::warn!(error = %e, "what was written waits in memory and in the log for room on the disk");
        }
    }

    /// The drain found room.
    pub(crate) fn drain_goes_on(&self) {
        if self.is_drain_waiting() && self.drain_waits.send_replace(false) {
            *lock(&self.drain_again) = None;
            tracing::info!("what waited for room on the disk is written");
        }
    }

    /// True while the drain is not to try again yet.
    pub(crate) fn is_drain_to_wait(&self) -> bool {
        self.is_drain_waiting() && lock(&self.drain_again).is_some_and(|then| Instant::now() < then)
    }

    /// True while the drain waits for room.
    pub(crate) fn is_drain_waiting(&self) -> bool {
        *self.drain_waits.borrow()
    }

    /// Resolves when the drain has waited for room for [`limits::NO_ROOM_FOR_LONG`] without an end.
    pub(crate) async fn until_drain_waits_for_long(&self) {
        let mut waits = self.drain_waits.subscribe();
        // Neither wait is ever an error: the sender is in `self`.
        loop {
            let _ = waits.wait_for(|waits| *waits).await;
            let goes_on = waits.wait_for(|waits| !*waits);
            if tokio::time::timeout(limits::NO_ROOM_FOR_LONG, goes_on).await.is_err() {
                return;
            }
        }
    }

    /// An error while less is free than must be, or the drain waits for room.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        match self.short.load(Ordering::Acquire) || self.is_drain_waiting() {
            true => Err(self.refusal()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::disk::MemDisk;

    #[tokio::test(start_paused = true)]
    async fn a_disk_is_short_until_it_has_room_or_is_bounded_no_more() {
        let disk = MemDisk::new(1);
        let options = StorageOptions { disk_reserve_bytes: 1 << 20, ..StorageOptions::small("/data") };
        let space = DiskSpace::new(Arc::new(disk.clone()), &options);
        assert_eq!(space.check(), Ok(()));
        let file = disk.open("/f".as_ref(), true).unwrap();
        file.write_at(&[1; 1_000], 0).unwrap();
        for lifted in [None, Some(1 << 20)] {
            disk.set_capacity(Some(1_020));
            tokio::time::advance(limits::SPACE_LOOK + Duration::from_millis(1)).await;
            space.look(0, || 0);
            assert_eq!(space.check(), Err(StorageError::DiskFull { free: 20, reserve: 127 }));
            disk.set_capacity(lifted);
            tokio::time::advance(limits::SPACE_LOOK + Duration::from_millis(1)).await;
            space.look(0, || 0);
            assert_eq!(space.check(), Ok(()), "{lifted:?}");
        }
        assert_eq!(disk.said_short(), 2);
    }

    /// What is accepted and not yet in its place counts, and so does a file that is only made ahead.
    #[tokio::test(start_paused = true)]
    async fn what_is_owed_must_be_free_besides_the_reserve() {
        let disk = MemDisk::new(1);
        let options = StorageOptions { disk_reserve_bytes: 100, ..StorageOptions::small("/data") };
        let space = DiskSpace::new(Arc::new(disk.clone()), &options);
        disk.set_capacity(Some(1_000));
        for (owed, short) in [(0, false), (900, false), (901, true), (0, false)] {
            tokio::time::advance(limits::SPACE_LOOK + Duration::from_millis(1)).await;
            space.look(0, || owed);
            assert_eq!(space.check().is_err(), short, "{owed}");
        }
        assert_eq!(space.leaves_reserve(900), Ok(()));
        assert_eq!(space.leaves_reserve(901), Err(StorageError::DiskFull { free: 1_000, reserve: 100 }));
    }
}
