//! Disks that a test can crash: the machine's own with each kind of tier, and one in memory that loses and
//! tears.

use std::{path::PathBuf, sync::Arc, time::Duration};

use kv_storage::{
    Recovery, Storage, StorageError, StorageOptions, TableId,
    disk::{DirLock, Disk, DiskFile, FreeSpace, MemDisk, RealDisk},
    tier::{MemTiers, TierFolders, TierKind},
};

#[allow(dead_code, reason = "each test binary uses its part")]
pub(crate) const T: TableId = TableId::new(16);
#[allow(dead_code, reason = "each test binary uses its part")]
pub(crate) const U: TableId = TableId::new(17);

/// Runs to the end on two workers, within a minute.
#[allow(dead_code, reason = "each test binary uses its part")]
pub(crate) fn run<T>(f: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), f).await.expect("in time") })
}

/// Waits for a condition, ten seconds at most.
#[allow(dead_code, reason = "each test binary uses its part")]
pub(crate) async fn until(what: &str, mut f: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if f() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("not in time: {what}");
}

/// Where a storage engine lives, and how it can be crashed and damaged.
#[allow(dead_code, reason = "each test binary uses its part")]
pub(crate) trait World {
    fn options(&mut self) -> &mut StorageOptions;
    fn try_open(&self) -> Result<(Storage, Recovery), StorageError>;
    /// Ends the engine as a power cut (in memory) or a kill (on a real disk) would.
    fn crash(&self, storage: Storage);
    fn delete_tier(&self);
    fn files(&self) -> Vec<PathBuf>;
    fn remove(&self, path: &std::path::Path);
    fn flip(&self, path: &std::path::Path, offset: u64, mask: u8);
    /// Syncs of the disk so far, where they are counted.
    fn syncs(&self) -> Option<u64> {
        None
    }

    fn open(&self) -> (Storage, Recovery) {
        // A tier lets go of its lock a moment after its last handle.
        for _ in 0..500 {
            match self.try_open() {
                Err(StorageError::InUse(_)) => std::thread::sleep(Duration::from_millis(10)),
                other => return other.unwrap(),
            }
        }
        panic!("the directory stays locked");
    }
}

#[allow(dead_code, reason = "each test binary uses its part")]
pub(crate) struct Real {
    _dir: tempfile::TempDir,
    kind: TierKind,
    options: StorageOptions,
}

impl Real {
    #[allow(dead_code, reason = "each test binary uses its part")]
    pub(crate) fn new(kind: TierKind) -> Real {
        let dir = tempfile::tempdir().unwrap();
        let options = StorageOptions::small(dir.path());
        Real { _dir: dir, kind, options }
    }
}

impl World for Real {
    fn options(&mut self) -> &mut StorageOptions {
        &mut self.options
    }
    fn try_open(&self) -> Result<(Storage, Recovery), StorageError> {
        Storage::open(self.options.clone(), Arc::new(RealDisk), Arc::new(TierFolders::new(self.kind)))
    }
    fn crash(&self, storage: Storage) {
        storage.halt();
    }
    fn delete_tier(&self) {
        std::fs::remove_dir_all(self.options.dir.join("tier")).unwrap();
    }
    fn files(&self) -> Vec<PathBuf> {
        RealDisk.list(&self.options.dir.join("wal")).unwrap()
    }
    fn remove(&self, path: &std::path::Path) {
        std::fs::remove_file(path).unwrap();
    }
    fn flip(&self, path: &std::path::Path, offset: u64, mask: u8) {
        let file = RealDisk.open(path, false).unwrap();
        let mut byte = [0];
        file.read_at(&mut byte, offset).unwrap();
        file.write_at(&[byte[0] ^ mask], offset).unwrap();
    }
}

pub(crate) struct Mem {
    pub(crate) disk: MemDisk,
    pub(crate) tiers: MemTiers,
    options: StorageOptions,
}

impl Mem {
    #[allow(dead_code, reason = "each test binary uses its part")]
    pub(crate) fn new(seed: u64) -> Mem {
        Mem { disk: MemDisk::new(seed), tiers: MemTiers::new(), options: StorageOptions::small("/data") }
    }
}

impl World for Mem {
    fn options(&mut self) -> &mut StorageOptions {
        &mut self.options
    }
    fn try_open(&self) -> Result<(Storage, Recovery), StorageError> {
        Storage::open(self.options.clone(), Arc::new(self.disk.clone()), Arc::new(self.tiers.clone()))
    }
    fn crash(&self, storage: Storage) {
        storage.halt();
        self.disk.crash();
        self.tiers.crash();
    }
    fn delete_tier(&self) {
        self.tiers.delete(&self.options.dir);
    }
    fn files(&self) -> Vec<PathBuf> {
        self.disk.list(&self.options.dir.join("wal")).unwrap()
    }
    fn remove(&self, path: &std::path::Path) {
        self.disk.remove(path).unwrap();
        self.disk.sync_dir(path.parent().unwrap()).unwrap();
    }
    fn flip(&self, path: &std::path::Path, offset: u64, mask: u8) {
        self.disk.flip(path, offset, mask).unwrap();
    }
    fn syncs(&self) -> Option<u64> {
        Some(self.disk.syncs())
    }
}

/// A disk in memory whose calls can be watched, held up, and preceded by something.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "each test binary uses its part")]
pub(crate) struct Watched {
    pub(crate) disk: MemDisk,
    state: Arc<WatchedState>,
}

#[derive(Default)]
struct WatchedState {
    stuck: std::sync::Mutex<bool>,
    released: std::sync::Condvar,
    reads: std::sync::atomic::AtomicU64,
    read_bytes: std::sync::atomic::AtomicU64,
    before_lock: std::sync::Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for WatchedState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchedState").finish_non_exhaustive()
    }
}

#[allow(dead_code, reason = "each test binary uses its part")]
impl Watched {
    pub(crate) fn new(disk: MemDisk) -> Watched {
        Watched { disk, state: Arc::default() }
    }

    /// Every sync waits from now on, until `false`.
    pub(crate) fn hold_syncs(&self, hold: bool) {
        *self.state.stuck.lock().unwrap() = hold;
        self.state.released.notify_all();
    }

    /// Done by the next call of `lock`, before it returns.
    pub(crate) fn before_lock(&self, f: impl FnOnce() + Send + 'static) {
        *self.state.before_lock.lock().unwrap() = Some(Box::new(f));
    }

    /// Calls of `read_at` so far, and the bytes that they returned.
    pub(crate) fn reads(&self) -> (u64, u64) {
        let of = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::SeqCst);
        (of(&self.state.reads), of(&self.state.read_bytes))
    }
}

impl Disk for Watched {
    fn create_dir_all(&self, dir: &std::path::Path) -> std::io::Result<()> {
        self.disk.create_dir_all(dir)
    }
    fn list(&self, dir: &std::path::Path) -> std::io::Result<Vec<PathBuf>> {
        self.disk.list(dir)
    }
    fn open(&self, path: &std::path::Path, create: bool) -> std::io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(WatchedFile { file: self.disk.open(path, create)?, state: self.state.clone() }))
    }
    fn rename(&self, from: &std::path::Path, to: &std::path::Path) -> std::io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &std::path::Path) -> std::io::Result<()> {
        self.disk.remove(path)
    }
    fn sync_dir(&self, dir: &std::path::Path) -> std::io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn exists(&self, path: &std::path::Path) -> bool {
        self.disk.exists(path)
    }
    fn lock(&self, dir: &std::path::Path) -> std::io::Result<DirLock> {
        let before = self.state.before_lock.lock().unwrap().take();
        if let Some(before) = before {
            before();
        }
        self.disk.lock(dir)
    }
    fn free_space(&self, dir: &std::path::Path) -> std::io::Result<Option<FreeSpace>> {
        self.disk.free_space(dir)
    }
}

#[derive(Debug)]
struct WatchedFile {
    file: Arc<dyn DiskFile>,
    state: Arc<WatchedState>,
}

impl WatchedFile {
    fn wait(&self) {
        let mut stuck = self.state.stuck.lock().unwrap();
        while *stuck {
            stuck = self.state.released.wait(stuck).unwrap();
        }
    }
}

impl DiskFile for WatchedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let n = self.file.read_at(buf, offset)?;
        self.state.reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.state.read_bytes.fetch_add(n as u64, std::sync::atomic::Ordering::SeqCst);
        Ok(n)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> std::io::Result<()> {
        self.file.write_at(data, offset)
    }
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.wait();
        self.file.sync_data()
    }
    fn sync_all(&self) -> std::io::Result<()> {
        self.wait();
        self.file.sync_all()
    }
}
