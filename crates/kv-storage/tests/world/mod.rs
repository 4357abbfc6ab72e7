//! Disks that a test can crash: the machine's own with each kind of tier, and one in memory that loses and
//! tears.

use std::{path::PathBuf, sync::Arc, time::Duration};

use kv_storage::{
    Recovery, Storage, StorageError, StorageOptions, TableId,
    disk::{Disk, MemDisk, RealDisk},
    tier::{MemTiers, TierFolders, TierKind},
};

#[allow(dead_code, reason = "each test binary uses its part")]
pub(crate) const T: TableId = TableId::new(16);
#[allow(dead_code, reason = "each test binary uses its part")]
pub(crate) const U: TableId = TableId::new(17);

/// Where a storage engine lives and can be made to suffer.
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
