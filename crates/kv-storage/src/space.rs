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

use tokio::time::Instant;

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
    short: AtomicBool,
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
            short: AtomicBool::new(false),
        };
        space.look(0);
        space
    }

    /// Asks the disk, if the last answer is old or much was `written` to the log since.
    pub(crate) fn look(&self, written: u64) {
        let mut last = lock(&self.last);
        let fresh = last.at.is_some_and(|at| at.elapsed() < limits::SPACE_LOOK);
        let little = written.saturating_sub(last.written) <= self.reserve.load(Ordering::Relaxed) / 8;
        if self.most == 0 || (fresh && little) {
            return;
        }
        *last = Look { at: Some(Instant::now()), written };
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
        let short = free < reserve;
        if self.short.swap(short, Ordering::AcqRel) != short {
            match short {
                true => tracing::warn!(free, reserve, "the disk is nearly full: commits are refused"),
                false => tracing::info!(free, reserve, "the disk has room again"),
            }
        }
    }

    /// Asks the disk whether a file that has `bytes` so far may grow. One that is small against
    /// the reserve may use half of it: a snapshot of a small state is what makes room in the log. Blocks.
    pub(crate) fn check_file(&self, bytes: u64) -> Result<(), StorageError> {
        self.ask();
        self.room_for(0).or_else(|full| if self.is_small(bytes, 0) { Ok(()) } else { Err(full) })
    }

    /// Whether a file of `bytes` leaves the reserve free, or is small, by what was seen last.
    pub(crate) fn room_for(&self, bytes: u64) -> Result<(), StorageError> {
        let (free, reserve) = (self.free.load(Ordering::Relaxed), self.reserve.load(Ordering::Relaxed));
        match free >= reserve.saturating_add(bytes) || self.is_small(bytes, bytes) {
            true => Ok(()),
            false => Err(StorageError::DiskFull { free, reserve }),
        }
    }

    fn is_small(&self, bytes: u64, to_come: u64) -> bool {
        let (free, reserve) = (self.free.load(Ordering::Relaxed), self.reserve.load(Ordering::Relaxed));
        bytes > 0 && bytes <= reserve / 8 && free >= (reserve / 2).saturating_add(to_come)
    }

    /// The refusal of a write that found no room, with what is free now. Blocks.
    pub(crate) fn full(&self) -> StorageError {
        self.ask();
        let (free, reserve) = (self.free.load(Ordering::Relaxed), self.reserve.load(Ordering::Relaxed));
        StorageError::DiskFull { free, reserve }
    }

    /// An error while less is free than the reserve.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        if !self.short.load(Ordering::Acquire) {
            return Ok(());
        }
        let (free, reserve) = (self.free.load(Ordering::Relaxed), self.reserve.load(Ordering::Relaxed));
        Err(StorageError::DiskFull { free, reserve })
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
            space.look(0);
            assert_eq!(space.check(), Err(StorageError::DiskFull { free: 20, reserve: 51 }));
            disk.set_capacity(lifted);
            tokio::time::advance(limits::SPACE_LOOK + Duration::from_millis(1)).await;
            space.look(0);
            assert_eq!(space.check(), Ok(()), "{lifted:?}");
        }
        assert_eq!(disk.said_short(), 2);
    }
}
