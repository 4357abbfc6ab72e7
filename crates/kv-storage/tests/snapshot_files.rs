//! Snapshot files when the disk is nearly full, damaged, or cut off from power.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test"
)]

mod world;

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use kv_storage::{
    BlockKind, Drive, Snapshots, Storage, StorageError, StorageOptions,
    disk::{Disk, DiskFile, MemDisk},
    tier::MemTiers,
};
use kv_types::GroupId;
use world::{Mem, T, World};

const PIECE: usize = 1 << 20;

fn manual(seed: u64) -> Mem {
    let mut w = Mem::new(seed);
    w.options().drive = Drive::Manual;
    w
}

/// A disk with so much room beyond a reserve of 1 MiB.
fn nearly_full(w: &mut Mem, room: u64) -> Storage {
    w.options().disk_reserve_bytes = 1 << 20;
    let (s, _) = w.open();
    while s.pump() {}
    // Large enough that an eighth of it is above the reserve.
    let filler = w.disk.open("/filler".as_ref(), true).unwrap();
    let used = w.disk.used();
    filler.write_at(&vec![1; 32 << 20], 0).unwrap();
    w.disk.set_capacity(Some(used + (32 << 20) + (1 << 20) + room));
    s
}

/// Room for so many bytes, after a look.
fn room_for(files: &Snapshots, bytes: u64) -> Result<(), StorageError> {
    drop(files.create().unwrap());
    files.room_for(bytes)
}

fn finished(files: &Snapshots, id: u64, header: &[u8], fill: u8) {
    let mut file = files.create().unwrap();
    for _ in 0..4 {
        file.write(BlockKind::Base, &[fill; 2_000]).unwrap();
    }
    file.finish(id, header).unwrap();
}

#[test]
fn a_snapshot_stops_at_the_reserve_of_the_disk() {
    let mut w = manual(1);
    let s = nearly_full(&mut w, 24 << 20);
    let files = s.snapshots(GroupId(1));
    room_for(&files, 20 << 20).unwrap();
    assert!(matches!(room_for(&files, 28 << 20), Err(StorageError::DiskFull { .. })));
    let mut file = files.create().unwrap();
    let full = loop {
        if let Err(e) = file.write(BlockKind::Base, &vec![7; PIECE]) {
            break e;
        }
        assert!(file.bytes() < 64 << 20, "there is an end");
    };
    assert!(matches!(full, StorageError::DiskFull { .. }) && full.is_refusal(), "{full}");
    assert_eq!(w.disk.refused(), 0, "no write found the disk full");
    assert!(files.create().is_ok(), "a small one may be begun");
    drop(file);
    // Its room is back, also on this disk, which remembers a file until its folder is synced.
    files.keep_newest(1).unwrap();
    room_for(&files, 20 << 20).unwrap();
    s.check().unwrap();
}

#[test]
fn what_is_received_stops_at_the_reserve_of_the_disk() {
    let mut w = manual(2);
    let s = nearly_full(&mut w, 24 << 20);
    let files = s.snapshots(GroupId(1));
    let mut part = files.receive(b"a", 64 << 20, PIECE as u64).unwrap();
    let full = loop {
        if let Err(e) = part.write(&vec![7; PIECE]) {
            break e;
        }
    };
    assert!(matches!(full, StorageError::DiskFull { .. }), "{full}");
    assert_eq!(w.disk.refused(), 0, "no write found the disk full");
    drop(part);
    files.discard_part().unwrap();
    room_for(&files, 20 << 20).unwrap();
}

#[test]
fn a_state_is_not_loaded_into_a_nearly_full_disk() {
    let mut w = manual(3);
    let s = nearly_full(&mut w, 0);
    let filler = w.disk.open("/more".as_ref(), true).unwrap();
    filler.write_at(&[1; 1000], 0).unwrap();
    let mut rows = VecDeque::from([(T, Bytes::from_static(b"k"), Some(Bytes::from_static(b"v")))]);
    assert!(matches!(s.load(&mut rows), Err(StorageError::DiskFull { .. })));
    assert_eq!(rows.len(), 1, "nothing was taken");
    w.disk.set_capacity(None);
    s.load(&mut rows).unwrap();
    assert!(rows.is_empty());
}

#[test]
fn a_damaged_file_is_replaced_by_a_good_one_of_the_same_state() {
    let w = manual(4);
    let (s, _) = w.open();
    let files = s.snapshots(GroupId(1));
    finished(&files, 5, b"header", 1);
    // The same again changes nothing.
    finished(&files, 5, b"header", 2);
    assert_eq!(files.open(5).unwrap().next_block().unwrap().unwrap().1[0], 1);
    let path = PathBuf::from("/data/snapshots/1/0000000000000005.snap");
    assert!(w.disk.exists(&path));
    w.disk.flip(&path, 3_000, 1).unwrap();
    assert!(matches!(files.verify(5), Err(StorageError::CorruptFile { .. })));
    finished(&files, 5, b"header", 2);
    files.verify(5).unwrap();
}

#[test]
fn a_file_that_was_renamed_before_a_kill_is_durable_once_it_is_believed() {
    for seed in 0..16 {
        let w = manual(seed);
        let (s, _) = w.open();
        let files = s.snapshots(GroupId(1));
        finished(&files, 4, b"old", 1);
        finished(&files, 5, b"header", 1);
        // As a process leaves it that is killed between the rename and the sync of the folder.
        let dir = Path::new("/data/snapshots/1");
        let (from, to) = (dir.join("0000000000000005.snap"), dir.join("0000000000000009.tmp"));
        w.disk.rename(&from, &to).unwrap();
        w.disk.sync_dir(dir).unwrap();
        w.disk.rename(&to, &from).unwrap();
        s.halt();
        drop(s);
        w.disk.kill();
        let (s, _) = w.open();
        let newest = |s: &Storage| s.snapshots(GroupId(1)).list().unwrap().last().map(|info| info.id);
        assert_eq!(newest(&s), Some(5));
        w.crash(s);
        let (s, _) = w.open();
        assert_eq!(newest(&s), Some(5), "seed {seed}");
    }
}

type Hook = Box<dyn FnOnce() + Send>;

/// A disk on which something happens right after a folder was listed.
#[derive(Clone, Default)]
struct Busy(Option<MemDisk>, Arc<Mutex<Option<Hook>>>);

impl std::fmt::Debug for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Busy")
    }
}

impl Busy {
    fn disk(&self) -> &MemDisk {
        self.0.as_ref().unwrap()
    }
}

impl Disk for Busy {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.disk().open(path, create)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk().create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let found = self.disk().list(dir);
        if dir.ends_with("snapshots/1") {
            let hook = self.1.lock().unwrap().take();
            hook.into_iter().for_each(|hook| hook());
        }
        found
    }
    fn exists(&self, path: &Path) -> bool {
        self.disk().exists(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk().rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk().remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk().sync_dir(dir)
    }
    fn lock(&self, dir: &Path) -> io::Result<kv_storage::disk::DirLock> {
        self.disk().lock(dir)
    }
    fn free_space(&self, dir: &Path) -> io::Result<Option<kv_storage::disk::FreeSpace>> {
        self.disk().free_space(dir)
    }
}

#[test]
fn a_list_sees_the_file_that_takes_the_place_of_another() {
    let disk = Busy(Some(MemDisk::new(1)), Arc::default());
    let mut options = StorageOptions::small("/data");
    options.drive = Drive::Manual;
    let (s, _) = Storage::open(options, Arc::new(disk.clone()), Arc::new(MemTiers::new())).unwrap();
    let files = s.snapshots(GroupId(1));
    finished(&files, 4, b"old", 1);
    let other = files.clone();
    *disk.1.lock().unwrap() = Some(Box::new(move || {
        finished(&other, 5, b"new", 1);
        other.keep_newest(1).unwrap();
    }));
    let ids: Vec<_> = files.list().unwrap().iter().map(|info| info.id).collect();
    assert_eq!(ids, [5]);
    assert!(disk.1.lock().unwrap().is_none(), "it happened");
}
