//! A node's disk inside the simulation: storage's forgetful disk, with the latency of its writes drawn from
//! the seed. What is asked for and not yet written when the power goes was never there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kv_env::Entropy;
use kv_storage::disk::{Disk, DiskFile, FreeSpace, MemDisk};

/// Latency of a healthy disk, microseconds.
const HEALTHY_US: (u64, u64) = (200, 2_500);

/// A disk that takes its time. Clones share it.
#[derive(Debug, Clone)]
pub struct SimDisk {
    memory: MemDisk,
    entropy: Entropy,
    /// Added to every write while the disk is slow.
    slow_us: Arc<AtomicU64>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(entropy: &Entropy) -> Self {
        Self { memory: MemDisk::new(entropy.next_u64()), entropy: entropy.fork(), slow_us: Arc::default() }
    }

    /// Faults of its contents.
    pub fn memory(&self) -> &MemDisk {
        &self.memory
    }

    /// Makes every write take up to so much longer.
    pub fn slow(&self, by: Duration) {
        self.slow_us.store(u64::try_from(by.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.memory.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.memory.list(dir)
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.memory.open(path, create)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.memory.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.memory.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.memory.sync_dir(dir)
    }

    fn exists(&self, path: &Path) -> bool {
        self.memory.exists(path)
    }

    fn free_space(&self, dir: &Path) -> io::Result<Option<FreeSpace>> {
        self.memory.free_space(dir)
    }

    fn latency(&self) -> Duration {
        let (least, most) = HEALTHY_US;
        let slow = self.slow_us.load(Ordering::Relaxed);
        Duration::from_micros(least + self.entropy.below(most - least + 1) + self.entropy.below(slow + 1))
    }
}
