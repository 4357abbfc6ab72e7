//! A disk in memory that forgets what was not synced, tears it, delays it, refuses it and flips its bits.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    thread::{self, ThreadId},
    time::Duration,
};

use super::{Disk, DiskFile, FreeSpace};
use crate::{limits, locks::lock};

/// What survives a crash or not is decided in units of this size.
const SECTOR: usize = 512;

/// A disk in memory. Clones share it. After [`MemDisk::crash`] every open file is dead, as after a power cut.
#[derive(Debug, Clone, Default)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    next_inode: u64,
    live: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
    inodes: BTreeMap<u64, Inode>,
    capacity: Option<u64>,
    /// A folder in which nothing has room.
    full_folder: Option<PathBuf>,
    /// Writes that found no room.
    refused: u64,
    /// Answers that said that little is free.
    said_short: u64,
    sync_delay: Duration,
    syncs: u64,
    reads: u64,
    /// The threads that read since it was last asked.
    readers: Vec<ThreadId>,
    fail_sync_after: Option<u64>,
    random: u64,
}

#[derive(Debug, Default)]
struct Inode {
    data: Vec<u8>,
    /// Up to here it takes room: what is behind was never written, only made longer.
    filled: usize,
    /// Reads that touch these bytes fail.
    unreadable: std::ops::Range<usize>,
    /// Oldest first: how to undo what was not synced.
    undo: Vec<Undo>,
    /// What the disk has, where it is not `data` without what was not synced: after a sync that failed.
    platter: Option<Vec<u8>>,
    /// Shared with open files, which keep a removed file readable.
    opened: Arc<()>,
}

#[derive(Debug)]
enum Undo {
    Write { offset: usize, old: Vec<u8>, old_len: usize, new_len: usize },
    Len { cut: Vec<u8>, old_len: usize },
}

impl State {
    fn next_random(&mut self) -> u64 {
        // splitmix64: never changed, so that a seed means the same crash in every release
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn used(&self) -> u64 {
        self.inodes.values().map(|i| i.filled.min(i.data.len()) as u64).sum()
    }

    fn inode(&mut self, path: &Path) -> io::Result<&mut Inode> {
        let id = self.live.get(path).copied().ok_or(io::ErrorKind::NotFound)?;
        self.inodes.get_mut(&id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn collect(&mut self) {
        let kept: std::collections::BTreeSet<u64> =
            self.live.values().chain(self.durable.values()).copied().collect();
        self.inodes.retain(|id, inode| kept.contains(id) || Arc::strong_count(&inode.opened) > 1);
    }
}

impl MemDisk {
    /// An empty disk; `seed` decides what crashes keep.
    pub fn new(seed: u64) -> MemDisk {
        let disk = MemDisk::default();
        lock(&disk.state).random = seed;
        disk
    }

    /// Cuts the power: unsynced content is lost or torn (sector by sector, by the seed), names that were not
    /// synced are gone, open files answer errors from now on.
    pub fn crash(&self) {
        let mut s = lock(&self.state);
        s.generation += 1;
        s.live = s.durable.clone();
        s.collect();
        let ids: Vec<u64> = s.inodes.keys().copied().collect();
        for id in ids {
            let seed = s.next_random();
            if let Some(inode) = s.inodes.get_mut(&id) {
                inode.crash(seed);
            }
        }
    }

    /// Cuts the power in the kindest way: everything written survives (a killed process, not a lost disk).
    pub fn kill(&self) {
        let mut s = lock(&self.state);
        s.generation += 1;
    }

    /// Every sync takes this long from now on.
    pub fn set_sync_delay(&self, delay: Duration) {
        lock(&self.state).sync_delay = delay;
    }

    /// After `after` more syncs, every sync fails; `None` heals. As with the page cache of Linux, a sync that
    /// fails drops what it should have written: it is still read, counts as clean, and reaches the disk only
    /// if it is written again.
    pub fn fail_syncs(&self, after: Option<u64>) {
        let mut s = lock(&self.state);
        s.fail_sync_after = after.map(|n| s.syncs + n);
    }

    /// Bytes that the disk holds at most; writes beyond it fail with `StorageFull`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        lock(&self.state).capacity = bytes;
    }

    /// Writes to files below this folder find no room, as where it is a file system of its own; `None` ends
    /// that.
    pub fn fill_folder(&self, folder: Option<&Path>) {
        lock(&self.state).full_folder = folder.map(Path::to_path_buf);
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        lock(&self.state).used()
    }

    /// Writes so far that found no room.
    pub fn refused(&self) -> u64 {
        lock(&self.state).refused
    }

    /// How often it was asked and said that less is free than an engine keeps in reserve.
    pub fn said_short(&self) -> u64 {
        lock(&self.state).said_short
    }

    /// Syncs so far.
    pub fn syncs(&self) -> u64 {
        lock(&self.state).syncs
    }

    /// Reads so far.
    pub fn reads(&self) -> u64 {
        lock(&self.state).reads
    }

    /// The threads that have read since the last call.
    pub fn take_readers(&self) -> Vec<ThreadId> {
        std::mem::take(&mut lock(&self.state).readers)
    }

    /// Flips the bits of `mask` in one byte, at rest.
    pub fn flip(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let mut s = lock(&self.state);
        let byte = s.inode(path)?.data.get_mut(offset as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
        *byte ^= mask;
        let at_rest = s.inode(path)?.platter.as_mut().and_then(|platter| platter.get_mut(offset as usize));
        if let Some(byte) = at_rest {
            *byte ^= mask;
        }
        Ok(())
    }

    /// Every read that touches one of these bytes fails from now on, as of a bad sector.
    pub fn fail_reads(&self, path: &Path, bytes: std::ops::Range<usize>) -> io::Result<()> {
        lock(&self.state).inode(path)?.unreadable = bytes;
        Ok(())
    }

    /// Overwrites bytes at rest, durably.
    pub fn overwrite(&self, path: &Path, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut s = lock(&self.state);
        let at = offset as usize;
        let target = s.inode(path)?.data.get_mut(at..at + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        target.copy_from_slice(data);
        let at_rest =
            s.inode(path)?.platter.as_mut().and_then(|platter| platter.get_mut(at..at + data.len()));
        if let Some(target) = at_rest {
            target.copy_from_slice(data);
        }
        Ok(())
    }

    /// Everything in a file, as it would be read now.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(lock(&self.state).inode(path)?.data.clone())
    }

    /// Removes every file under a folder, durably.
    pub fn wipe(&self, dir: &Path) {
        let mut s = lock(&self.state);
        s.live.retain(|p, _| !p.starts_with(dir));
        s.durable.retain(|p, _| !p.starts_with(dir));
        s.collect();
    }
}

impl Inode {
    fn write(&mut self, data: &[u8], offset: usize) {
        let old_len = self.data.len();
        let end = offset + data.len();
        let old = self.data.get(offset.min(old_len)..end.min(old_len)).unwrap_or_default().to_vec();
        if end > old_len {
            self.data.resize(end, 0);
        }
        self.filled = self.filled.max(end);
        self.undo.push(Undo::Write { offset, old, old_len, new_len: data.len() });
        if let Some(target) = self.data.get_mut(offset..end) {
            target.copy_from_slice(data);
        }
    }

    fn set_len(&mut self, len: usize) {
        let old_len = self.data.len();
        let cut = self.data.get(len.min(old_len)..).unwrap_or_default().to_vec();
        self.data.resize(len, 0);
        self.filled = self.filled.min(len);
        self.undo.push(Undo::Len { cut, old_len });
    }

    /// A sync that succeeds.
    fn synced(&mut self) {
        let Some(platter) = &mut self.platter else { return self.undo.clear() };
        platter.resize(self.data.len(), 0);
        for undo in self.undo.drain(..) {
            let Undo::Write { offset, new_len, .. } = undo else { continue };
            let written = offset..(offset + new_len).min(self.data.len());
            if let (Some(to), Some(from)) = (platter.get_mut(written.clone()), self.data.get(written)) {
                to.copy_from_slice(from);
            }
        }
    }

    /// A sync that fails: any of it may have arrived, and none of it is tried again.
    fn sync_failed(&mut self, seed: u64) {
        let shown = self.data.clone();
        self.crash(seed);
        self.platter = Some(std::mem::replace(&mut self.data, shown));
    }

    fn crash(&mut self, seed: u64) {
        if self.undo.is_empty() {
            self.data = self.platter.take().unwrap_or_else(|| std::mem::take(&mut self.data));
            return;
        }
        let newest = self.data.clone();
        let mut touched: Vec<(usize, usize)> = Vec::new();
        for undo in self.undo.drain(..).rev() {
            match undo {
                Undo::Write { offset, old, old_len, new_len } => {
                    touched.push((offset, offset + new_len));
                    if let Some(target) = self.data.get_mut(offset..offset + old.len()) {
                        target.copy_from_slice(&old);
                    }
                    self.data.truncate(old_len);
                    self.data.resize(old_len, 0);
                }
                Undo::Len { cut, old_len } => {
                    self.data.resize(old_len - cut.len(), 0);
                    self.data.extend_from_slice(&cut);
                }
            }
        }
        if let Some(platter) = self.platter.take() {
            self.data = platter;
        }
        let mut random = State { random: seed, ..State::default() };
        // One crash in four keeps nothing, one in four everything, the rest a mixture.
        let style = random.next_random() % 4;
        for (from, to) in touched {
            for sector in from / SECTOR..to.div_ceil(SECTOR) {
                let keep = match style {
                    0 => false,
                    1 => true,
                    _ => random.next_random().is_multiple_of(2),
                };
                let (a, b) = ((sector * SECTOR).max(from), ((sector + 1) * SECTOR).min(to));
                let Some(new) = newest.get(a..b).filter(|_| keep) else { continue };
                if self.data.len() < b {
                    self.data.resize(b, 0);
                }
                if let Some(target) = self.data.get_mut(a..b) {
                    target.copy_from_slice(new);
                }
            }
        }
    }
}

impl Disk for MemDisk {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let s = lock(&self.state);
        Ok(s.live.keys().filter(|p| p.parent() == Some(dir)).cloned().collect())
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut s = lock(&self.state);
        let inode = match s.live.get(path) {
            Some(inode) => *inode,
            None if create => {
                s.next_inode += 1;
                let id = s.next_inode;
                s.inodes.insert(id, Inode::default());
                s.live.insert(path.to_path_buf(), id);
                id
            }
            None => return Err(io::Error::new(io::ErrorKind::NotFound, path.display().to_string())),
        };
        let opened = s.inodes.entry(inode).or_default().opened.clone();
        Ok(Arc::new(MemFile { disk: self.clone(), inode, generation: s.generation, _opened: opened }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut s = lock(&self.state);
        let inode = s.live.remove(from).ok_or(io::ErrorKind::NotFound)?;
        s.live.insert(to.to_path_buf(), inode);
        s.collect();
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut s = lock(&self.state);
        s.live.remove(path).ok_or(io::ErrorKind::NotFound)?;
        s.collect();
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut s = lock(&self.state);
        s.durable.retain(|p, _| p.parent() != Some(dir));
        let names: Vec<_> =
            s.live.iter().filter(|(p, _)| p.parent() == Some(dir)).map(|(p, i)| (p.clone(), *i)).collect();
        s.durable.extend(names);
        s.collect();
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        lock(&self.state).live.contains_key(path)
    }

    fn free_space(&self, _dir: &Path) -> io::Result<Option<FreeSpace>> {
        let mut s = lock(&self.state);
        let Some(total) = s.capacity else { return Ok(None) };
        let free = total.saturating_sub(s.used());
        s.said_short += u64::from(free < total / limits::DISK_RESERVE_SHARE);
        Ok(Some(FreeSpace { free, total }))
    }
}

#[derive(Debug)]
struct MemFile {
    disk: MemDisk,
    inode: u64,
    generation: u64,
    _opened: Arc<()>,
}

impl MemFile {
    fn with<T>(&self, f: impl FnOnce(&mut State, u64) -> io::Result<T>) -> io::Result<T> {
        let mut s = lock(&self.disk.state);
        if s.generation != self.generation {
            return Err(io::Error::other("the power of this disk was cut"));
        }
        f(&mut s, self.inode)
    }

    fn sync(&self) -> io::Result<()> {
        let delay = lock(&self.disk.state).sync_delay;
        if !delay.is_zero() {
            // A wait that nothing ends: the delay of a slow disk.
            let never = Mutex::new(());
            let _ = Condvar::new().wait_timeout(lock(&never), delay);
        }
        self.with(|s, id| {
            s.syncs += 1;
            if s.fail_sync_after.is_some_and(|n| s.syncs > n) {
                let seed = s.next_random();
                if let Some(inode) = s.inodes.get_mut(&id) {
                    inode.sync_failed(seed);
                }
                return Err(io::Error::other("injected: sync failed"));
            }
            if let Some(inode) = s.inodes.get_mut(&id) {
                inode.synced();
            }
            Ok(())
        })
    }
}

impl DiskFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|s, id| {
            s.reads += 1;
            let reader = thread::current().id();
            if !s.readers.contains(&reader) {
                s.readers.push(reader);
            }
            let Some(inode) = s.inodes.get(&id) else { return Ok(0) };
            let rest = inode.data.get(offset as usize..).unwrap_or_default();
            let n = rest.len().min(buf.len());
            if inode.unreadable.start < offset as usize + n && (offset as usize) < inode.unreadable.end {
                return Err(io::Error::other("injected: a bad sector"));
            }
            for (to, from) in buf.iter_mut().zip(rest) {
                *to = *from;
            }
            Ok(n)
        })
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.with(|s, id| {
            let filled = s.inodes.get(&id).map_or(0, |i| i.filled.min(i.data.len()) as u64);
            let grows = (offset + data.len() as u64).saturating_sub(filled);
            let is_full = |folder: &PathBuf| {
                s.live.iter().any(|(path, inode)| *inode == id && path.starts_with(folder))
            };
            let full = s.full_folder.as_ref().is_some_and(is_full);
            if full || (grows > 0 && s.capacity.is_some_and(|c| s.used() + grows > c)) {
                s.refused += 1;
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    "injected: no space left on this disk",
                ));
            }
            s.inodes.entry(id).or_default().write(data, offset as usize);
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|s, id| Ok(s.inodes.get(&id).map_or(0, |i| i.data.len() as u64)))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|s, id| {
            s.inodes.entry(id).or_default().set_len(len as usize);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }
}
