//! A node's disk inside the simulation: storage's forgetful disk, with the latency of its writes drawn from
//! the seed. What is asked for and not yet written when the power goes was never there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
    hang: Arc<Mutex<Hang>>,
}

/// Whether a disk hangs, and how often that was felt.
#[derive(Debug, Default)]
struct Hang {
    /// Until when, in the time of the simulation.
    until: Duration,
    held: u64,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(entropy: &Entropy) -> Self {
        Self {
            memory: MemDisk::new(entropy.next_u64()),
            entropy: entropy.fork(),
            slow_us: Arc::default(),
            hang: Arc::default(),
        }
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

impl SimDisk {
    /// Completes no write until then, in the time of the simulation.
    pub fn hang(&self, until: Duration) {
        self.hang.lock().unwrap_or_else(PoisonError::into_inner).until = until;
    }

    /// Writes that waited because it hung.
    pub fn held(&self) -> u64 {
        self.hang.lock().unwrap_or_else(PoisonError::into_inner).held
    }

    fn hangs_for(&self) -> Duration {
        let mut hang = self.hang.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = hang.until.saturating_sub(turmoil::sim_elapsed().unwrap_or_default());
        hang.held += u64::from(!rest.is_zero());
        rest
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
        self.hangs_for()
            + Duration::from_micros(
                least + self.entropy.below(most - least + 1) + self.entropy.below(slow + 1),
            )
    }
}
