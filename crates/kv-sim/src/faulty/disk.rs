//! The machine's files behind a layer that forgets. What is written stays in this process until it is synced,
//! names until their folder is; so a killed process has lost its power, and a missing fsync shows. By a seed,
//! single unsynced sectors reach the file before their time, as a drive's own cache lets them: a torn write,
//! and a torn end.
//!
//! A sync that fails drops what it should have written, as Linux does since 2018 with its page cache: the
//! process still reads the new bytes, the next sync succeeds, and the file never gets them.
//!
//! A disk that hangs keeps every write and every sync waiting until it is healed; reads go on, from memory.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use kv_storage::disk::{DirLock, Disk, DiskFile, FreeSpace, RealDisk};
use kv_storage::limits::DISK_RESERVE_SHARE;
use serde::{Deserialize, Serialize};

use super::lock;

/// What reaches a drive does so in units of this size.
pub const SECTOR: usize = 512;
/// Real files whose names are not synced yet begin so; no start ever sees them.
const UNNAMED: &str = ".unsynced-";
/// One write in so many leaks sectors early.
const LEAK_ONE_IN: u64 = 8;
/// Sectors of a write that may leak: those of a large one beyond it stay.
const LEAK_SECTORS: u64 = 256;
/// What a file system counts its blocks in.
const STAT_BLOCK: u64 = 512;

/// What is wrong with a disk, and what it has been through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Whether unsynced bytes die with the process.
    pub lose_unsynced: bool,
    /// Successful syncs until one fails; `None` while none will.
    pub fail_sync_after: Option<u64>,
    /// How many fail from there on.
    pub fail_sync_times: u64,
    /// Bytes that the files may take; `None` is the machine's limit.
    pub capacity_bytes: Option<u64>,
    /// How much longer a sync takes.
    pub sync_delay_ms: u64,
    /// Whether writes and syncs wait for good.
    pub hangs: bool,
    /// Writes and syncs that a disk which hung kept waiting.
    pub held_calls: u64,
    /// How often it was asked and said that less is free than an engine keeps in reserve.
    pub said_short: u64,
    /// Bytes that the files take now, as far as this process has looked into their folders.
    pub used_bytes: u64,
    /// Bytes that a kill would lose now.
    pub unsynced_bytes: u64,
    /// Syncs that succeeded.
    pub syncs: u64,
    /// Syncs that failed on purpose.
    pub failed_syncs: u64,
    /// Writes refused because the disk was full.
    pub refused_writes: u64,
    /// Sectors that reached their file before a sync.
    pub leaked_sectors: u64,
}

/// A file system that forgets what was not synced. Clones share it.
#[derive(Debug, Clone)]
pub struct LossyDisk {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    names: Mutex<Names>,
    faults: Mutex<Faults>,
    /// A disk that hung was healed.
    healed: Condvar,
    unsynced: AtomicU64,
}

#[derive(Debug)]
struct Faults {
    status: DiskStatus,
    leaks: bool,
    random: fastrand::Rng,
}

/// Names as the process sees them and as a crash would leave them.
#[derive(Debug, Default)]
struct Names {
    seen: Vec<PathBuf>,
    live: BTreeMap<PathBuf, Arc<Inode>>,
    durable: BTreeMap<PathBuf, Arc<Inode>>,
    unnamed: u64,
}

#[derive(Debug)]
struct Inode {
    /// Bytes that it takes on the disk: a hole takes none.
    allocated: AtomicU64,
    state: Mutex<State>,
}

type Sectors = BTreeMap<u64, Box<[u8; SECTOR]>>;

#[derive(Debug)]
struct State {
    file: File,
    /// Where the real file is.
    path: PathBuf,
    len: u64,
    /// Bytes of the real file beyond this were cut off, though the file may still have them.
    real: u64,
    /// Written and not synced.
    dirty: Sectors,
    /// What a failed sync dropped: read by this process, never written.
    dropped: Sectors,
}

impl LossyDisk {
    /// A disk whose early sectors `seed` decides.
    pub fn new(seed: u64) -> Self {
        Self::with(seed, true)
    }

    /// A disk from which nothing unsynced ever reaches a file.
    pub fn without_leaks() -> Self {
        Self::with(0, false)
    }

    fn with(seed: u64, leaks: bool) -> Self {
        let status = DiskStatus { lose_unsynced: true, ..DiskStatus::default() };
        let faults = Faults { status, leaks, random: fastrand::Rng::with_seed(seed) };
        let shared = Shared {
            names: Mutex::default(),
            faults: Mutex::new(faults),
            healed: Condvar::new(),
            unsynced: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Whether unsynced bytes die with the process; what waits is written when that ends.
    pub fn lose_unsynced(&self, lose: bool) -> io::Result<()> {
        lock(&self.shared.faults).status.lose_unsynced = lose;
        if lose {
            return Ok(());
        }
        let mut names = lock(&self.shared.names);
        for dir in names.seen.clone() {
            names.settle(&dir)?;
        }
        for inode in names.live.values() {
            self.shared.write_out(&mut lock(&inode.state))?;
        }
        Ok(())
    }

    /// After `after` more syncs, `times` syncs fail; `None` heals.
    pub fn fail_sync(&self, after: Option<u64>, times: u64) {
        let mut faults = lock(&self.shared.faults);
        faults.status.fail_sync_after = after.filter(|_| times > 0);
        faults.status.fail_sync_times = if after.is_some() { times } else { 0 };
    }

    /// Bytes that the files may take from now on.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        lock(&self.shared.faults).status.capacity_bytes = bytes;
    }

    /// Writes and syncs that begin wait until told otherwise.
    pub fn hang(&self, hangs: bool) {
        lock(&self.shared.faults).status.hangs = hangs;
        self.shared.healed.notify_all();
    }

    /// How much longer every sync takes.
    pub fn set_sync_delay(&self, delay: Duration) {
        lock(&self.shared.faults).status.sync_delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    }

    /// What is in force, and the counts so far.
    pub fn status(&self) -> DiskStatus {
        let used_bytes = lock(&self.shared.names).used();
        let unsynced_bytes = self.shared.unsynced.load(Ordering::Relaxed);
        DiskStatus { used_bytes, unsynced_bytes, ..lock(&self.shared.faults).status }
    }
}

impl Shared {
    /// Waits while the disk hangs. The caller holds no lock of this disk.
    fn wait_while_it_hangs(&self) {
        let mut faults = lock(&self.faults);
        faults.status.held_calls += u64::from(faults.status.hangs);
        while faults.status.hangs {
            faults = self.healed.wait(faults).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Counts a sync; an error if it is one that fails.
    fn count_sync(&self) -> io::Result<()> {
        let mut faults = lock(&self.faults);
        let status = &mut faults.status;
        match &mut status.fail_sync_after {
            Some(0) => {
                status.failed_syncs += 1;
                status.fail_sync_times = status.fail_sync_times.saturating_sub(1);
                if status.fail_sync_times == 0 {
                    status.fail_sync_after = None;
                }
                return Err(io::Error::other("injected: the disk failed to sync"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        status.syncs += 1;
        Ok(())
    }

    fn drop_dirty(&self, state: &mut State) -> Sectors {
        let dirty = std::mem::take(&mut state.dirty);
        self.unsynced.fetch_sub((dirty.len() * SECTOR) as u64, Ordering::Relaxed);
        dirty
    }

    /// Brings the real file to what the process sees, but for what was dropped.
    fn write_out(&self, state: &mut State) -> io::Result<()> {
        if state.file.metadata()?.len() > state.real {
            state.file.set_len(state.real)?;
        }
        let dirty = self.drop_dirty(state);
        let mut run: Vec<u8> = Vec::new();
        let mut from = 0;
        for (sector, bytes) in dirty {
            let at = sector * SECTOR as u64;
            if !run.is_empty() && at != from + run.len() as u64 {
                state.file.write_all_at(&run, from)?;
                run.clear();
            }
            if run.is_empty() {
                from = at;
            }
            run.extend_from_slice(&*bytes);
        }
        state.file.write_all_at(&run, from)?;
        // Also cuts what the last sector has too much.
        state.file.set_len(state.len)?;
        state.real = state.len;
        Ok(())
    }

    /// Lets some sectors of a write reach the file before their time.
    fn leak(&self, state: &State, first: u64, last: u64) -> io::Result<()> {
        let mut faults = lock(&self.faults);
        if !faults.leaks || faults.random.u64(..LEAK_ONE_IN) != 0 {
            return Ok(());
        }
        let last = last.min(first.saturating_add(LEAK_SECTORS));
        // Whole sectors, but for the last one of the file.
        let len = state.len.max(state.file.metadata()?.len());
        for (sector, bytes) in state.dirty.range(first..=last) {
            if faults.random.bool() {
                let at = sector * SECTOR as u64;
                let some = usize::try_from(len.saturating_sub(at)).unwrap_or(SECTOR).min(SECTOR);
                state.file.write_all_at(bytes.get(..some).unwrap_or_default(), at)?;
                faults.status.leaked_sectors += 1;
            }
        }
        Ok(())
    }

    /// A name is gone; a file that never had a durable one goes with it.
    fn forget(&self, names: &Names, inode: &Arc<Inode>) -> io::Result<()> {
        if names.live.values().any(|live| Arc::ptr_eq(live, inode)) {
            return Ok(());
        }
        let mut state = lock(&inode.state);
        self.drop_dirty(&mut state);
        if is_unnamed(&state.path) { fs::remove_file(&state.path) } else { Ok(()) }
    }

    fn loses(&self) -> bool {
        lock(&self.faults).status.lose_unsynced
    }

    /// Room for `more` bytes, or the error of a full disk.
    fn admit(&self, more: u64) -> io::Result<()> {
        let Some(capacity) = lock(&self.faults).status.capacity_bytes.filter(|_| more > 0) else {
            return Ok(());
        };
        if lock(&self.names).used().saturating_add(more) <= capacity {
            return Ok(());
        }
        lock(&self.faults).status.refused_writes += 1;
        Err(io::Error::new(io::ErrorKind::StorageFull, "injected: no space left on this disk"))
    }
}

impl Names {
    fn used(&self) -> u64 {
        self.live.values().map(|inode| inode.allocated.load(Ordering::Relaxed)).sum()
    }

    /// Looks into a folder for the first time: what is there survived a crash, so it is synced.
    fn look(&mut self, dir: &Path) -> io::Result<()> {
        if self.seen.iter().any(|seen| seen == dir) {
            return Ok(());
        }
        for path in RealDisk.list(dir)? {
            if is_unnamed(&path) {
                fs::remove_file(&path)?;
                continue;
            }
            let inode = Arc::new(Inode::open(&path, false)?);
            self.live.insert(path.clone(), Arc::clone(&inode));
            self.durable.insert(path, inode);
        }
        self.seen.push(dir.to_path_buf());
        Ok(())
    }

    fn look_beside(&mut self, path: &Path) -> io::Result<()> {
        self.look(parent(path))
    }

    fn next_unnamed(&mut self, dir: &Path) -> PathBuf {
        self.unnamed += 1;
        dir.join(format!("{UNNAMED}{}", self.unnamed))
    }

    /// Brings the real names of a folder to what the process sees.
    fn settle(&mut self, dir: &Path) -> io::Result<()> {
        let here: Vec<(PathBuf, Arc<Inode>)> = self
            .live
            .iter()
            .filter(|(path, _)| parent(path) == dir)
            .map(|(path, inode)| (path.clone(), Arc::clone(inode)))
            .collect();
        for (path, inode) in here {
            let from = lock(&inode.state).path.clone();
            if from == path {
                continue;
            }
            // Somebody who moved away has to go first, if another now has the name.
            if let Some(old) = self.durable.get(&path).cloned()
                && self.live.values().any(|live| Arc::ptr_eq(live, &old))
            {
                let aside = self.next_unnamed(dir);
                fs::rename(&path, &aside)?;
                lock(&old.state).path = aside;
            }
            // One step, so that a kill leaves the one name or the other.
            fs::rename(&from, &path)?;
            lock(&inode.state).path.clone_from(&path);
            self.durable.retain(|_, other| !Arc::ptr_eq(other, &inode));
            self.durable.insert(path, inode);
        }
        let gone: Vec<PathBuf> = self
            .durable
            .keys()
            .filter(|path| parent(path) == dir && !self.live.contains_key(*path))
            .cloned()
            .collect();
        for path in gone {
            if let Some(inode) = self.durable.remove(&path)
                && !self.live.values().any(|live| Arc::ptr_eq(live, &inode))
            {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_unnamed(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(UNNAMED))
}

impl Inode {
    fn open(path: &Path, create: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(create).truncate(create).open(path)?;
        let metadata = file.metadata()?;
        let len = metadata.len();
        let allocated = AtomicU64::new(len.min(metadata.blocks() * STAT_BLOCK));
        let state = State {
            file,
            path: path.to_path_buf(),
            len,
            real: len,
            dirty: Sectors::new(),
            dropped: Sectors::new(),
        };
        Ok(Self { allocated, state: Mutex::new(state) })
    }
}

impl State {
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = buf.len().min(rest);
        let buf = buf.get_mut(..wanted).unwrap_or_default();
        buf.fill(0);
        let from_file = usize::try_from(self.real.saturating_sub(offset)).unwrap_or(usize::MAX).min(wanted);
        let mut done = 0;
        while let Some(part) = buf.get_mut(done..from_file).filter(|part| !part.is_empty()) {
            match self.file.read_at(part, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let end = offset + wanted as u64;
        for sectors in [&self.dropped, &self.dirty] {
            for (sector, bytes) in sectors.range(offset / SECTOR as u64..end.div_ceil(SECTOR as u64)) {
                let at = sector * SECTOR as u64;
                let (from, to) = (at.max(offset), (at + SECTOR as u64).min(end));
                let source = bytes.get((from - at) as usize..(to - at) as usize);
                let target = buf.get_mut((from - offset) as usize..(to - offset) as usize);
                if let (Some(source), Some(target)) = (source, target) {
                    target.copy_from_slice(source);
                }
            }
        }
        Ok(wanted)
    }

    /// A sector as it reads now, to be changed.
    fn sector(&self, sector: u64) -> io::Result<Box<[u8; SECTOR]>> {
        let mut bytes = Box::new([0; SECTOR]);
        self.read(&mut *bytes, sector * SECTOR as u64)?;
        Ok(bytes)
    }

    fn cut(&mut self, len: u64) {
        self.len = len;
        self.real = self.real.min(len);
        let first_gone = len.div_ceil(SECTOR as u64);
        self.dropped.split_off(&first_gone);
        // The rest of the last sector reads as zeros if the file grows again.
        let within = (len % SECTOR as u64) as usize;
        for sectors in [&mut self.dropped, &mut self.dirty] {
            if let Some(tail) = sectors.get_mut(&(len / SECTOR as u64)).and_then(|b| b.get_mut(within..)) {
                tail.fill(0);
            }
        }
    }
}

#[derive(Debug)]
struct LossyFile {
    shared: Arc<Shared>,
    inode: Arc<Inode>,
}

impl LossyFile {
    fn sync(&self, sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        self.shared.wait_while_it_hangs();
        let delay = lock(&self.shared.faults).status.sync_delay_ms;
        if delay > 0 {
            // A wait that nothing ends: a slow disk. The bytes are still in this process alone.
            let never = Mutex::new(());
            drop(Condvar::new().wait_timeout(lock(&never), Duration::from_millis(delay)));
        }
        let mut state = lock(&self.inode.state);
        if let Err(failed) = self.shared.count_sync() {
            let mut dirty = self.shared.drop_dirty(&mut state);
            state.dropped.append(&mut dirty);
            return Err(failed);
        }
        self.shared.write_out(&mut state)?;
        sync(&state.file)
    }
}

impl DiskFile for LossyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        lock(&self.inode.state).read(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.shared.wait_while_it_hangs();
        let end = offset + data.len() as u64;
        let allocated = self.inode.allocated.load(Ordering::Relaxed);
        self.shared.admit(end.saturating_sub(allocated))?;
        let mut state = lock(&self.inode.state);
        let (first, last) = (offset / SECTOR as u64, (end - 1) / SECTOR as u64);
        for sector in first..=last {
            let at = sector * SECTOR as u64;
            let (from, to) = (at.max(offset), (at + SECTOR as u64).min(end));
            let mut bytes = match state.dirty.remove(&sector) {
                Some(bytes) => bytes,
                None => {
                    self.shared.unsynced.fetch_add(SECTOR as u64, Ordering::Relaxed);
                    if to - from == SECTOR as u64 { Box::new([0; SECTOR]) } else { state.sector(sector)? }
                }
            };
            let target = bytes.get_mut((from - at) as usize..(to - at) as usize);
            let source = data.get((from - offset) as usize..(to - offset) as usize);
            if let (Some(target), Some(source)) = (target, source) {
                target.copy_from_slice(source);
            }
            state.dropped.remove(&sector);
            state.dirty.insert(sector, bytes);
        }
        state.len = state.len.max(end);
        self.inode.allocated.fetch_max(end, Ordering::Relaxed);
        if self.shared.loses() {
            self.shared.leak(&state, first, last)
        } else {
            self.shared.write_out(&mut state)
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.inode.state).len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = lock(&self.inode.state);
        if len < state.len {
            let gone = state.dirty.split_off(&len.div_ceil(SECTOR as u64));
            self.shared.unsynced.fetch_sub((gone.len() * SECTOR) as u64, Ordering::Relaxed);
            state.cut(len);
            self.inode.allocated.fetch_min(len, Ordering::Relaxed);
        }
        state.len = len;
        if self.shared.loses() { Ok(()) } else { self.shared.write_out(&mut state) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(File::sync_data)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(File::sync_all)
    }
}

impl LossyDisk {
    fn unless_lossy(&self, names: &mut Names, dir: &Path) -> io::Result<()> {
        if self.shared.loses() { Ok(()) } else { names.settle(dir) }
    }
}

impl Disk for LossyDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut names = lock(&self.shared.names);
        names.look(dir)?;
        Ok(names.live.keys().filter(|path| parent(path) == dir).cloned().collect())
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut names = lock(&self.shared.names);
        names.look_beside(path)?;
        let inode = match names.live.get(path) {
            Some(inode) => Arc::clone(inode),
            None if create => {
                let dir = parent(path).to_path_buf();
                let inode = Arc::new(Inode::open(&names.next_unnamed(&dir), true)?);
                names.live.insert(path.to_path_buf(), Arc::clone(&inode));
                self.unless_lossy(&mut names, &dir)?;
                inode
            }
            None => return Err(io::Error::new(io::ErrorKind::NotFound, path.display().to_string())),
        };
        Ok(Arc::new(LossyFile { shared: Arc::clone(&self.shared), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = lock(&self.shared.names);
        names.look_beside(from)?;
        names.look_beside(to)?;
        let inode = names.live.remove(from).ok_or(io::ErrorKind::NotFound)?;
        if let Some(replaced) = names.live.insert(to.to_path_buf(), inode) {
            self.shared.forget(&names, &replaced)?;
        }
        self.unless_lossy(&mut names, parent(to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut names = lock(&self.shared.names);
        names.look_beside(path)?;
        let removed = names.live.remove(path).ok_or(io::ErrorKind::NotFound)?;
        self.shared.forget(&names, &removed)?;
        self.unless_lossy(&mut names, parent(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.shared.wait_while_it_hangs();
        let mut names = lock(&self.shared.names);
        names.look(dir)?;
        names.settle(dir)?;
        RealDisk.sync_dir(dir)
    }

    fn lock(&self, dir: &Path) -> io::Result<DirLock> {
        RealDisk.lock(dir)
    }

    fn free_space(&self, dir: &Path) -> io::Result<Option<FreeSpace>> {
        let Some(total) = lock(&self.shared.faults).status.capacity_bytes else {
            return RealDisk.free_space(dir);
        };
        let used = lock(&self.shared.names).used();
        let free = total.saturating_sub(used);
        lock(&self.shared.faults).status.said_short += u64::from(free < total / DISK_RESERVE_SHARE);
        Ok(Some(FreeSpace { free, total }))
    }

    fn exists(&self, path: &Path) -> bool {
        let mut names = lock(&self.shared.names);
        names.look_beside(path).is_ok() && names.live.contains_key(path)
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
