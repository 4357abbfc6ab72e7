//! All of the file system that the engine uses, so that a disk can be lost, torn and filled up in a test.

mod mem;
mod real;

use std::{fmt::Debug, io, path::Path, path::PathBuf, sync::Arc, time::Duration};

pub use mem::MemDisk;
pub use real::RealDisk;

/// Keeps a folder locked while it or a clone of it lives.
pub type DirLock = Arc<dyn Debug + Send + Sync>;

/// The bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeSpace {
    /// Bytes that this process may still write.
    pub free: u64,
    /// All.
    pub total: u64,
}

/// A file system. Names are durable only after [`Disk::sync_dir`] of their folder.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Creates a folder and its parents, durably.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Files of a folder by name, in order; empty if the folder is missing.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Opens a file for reading and writing; with `create` it is made if missing.
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives a file another name, replacing what had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names of a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// True if the file exists.
    fn exists(&self, path: &Path) -> bool;
    /// Locks a folder against other processes, and other handles of this one: the kind of the error is
    /// `WouldBlock` if one of them has it. A disk that no other process can reach need not lock.
    fn lock(&self, dir: &Path) -> io::Result<DirLock> {
        let _ = dir;
        Ok(Arc::new(()))
    }
    /// The free space of the file system of a folder; `None` if that has no bound.
    fn free_space(&self, dir: &Path) -> io::Result<Option<FreeSpace>> {
        let _ = dir;
        Ok(None)
    }
    /// How long the next write of the log takes, where nothing may block: [`crate::Storage::drive`] sleeps as
    /// long before it. A simulation lives in that gap between asked and written; real disks take their time
    /// inside the calls.
    fn latency(&self) -> Duration {
        Duration::ZERO
    }
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync {
    /// Reads at most `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `data`.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Length of the file.
    fn len(&self) -> io::Result<u64>;
    /// True if it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes content durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// Makes content and attributes durable (`fsync`).
    fn sync_all(&self) -> io::Result<()>;
}

/// Reads a whole file.
pub(crate) fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut buf = vec![0; len];
    let n = file.read_at(&mut buf, 0)?;
    buf.truncate(n);
    Ok(buf)
}

/// Replaces a small file durably: temporary file, fsync, rename, fsync of the folder.
pub(crate) fn write_durably(disk: &dyn Disk, dir: &Path, name: &str, data: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    let file = disk.open(&temporary, true)?;
    file.set_len(0)?;
    file.write_at(data, 0)?;
    file.sync_all()?;
    drop(file);
    disk.rename(&temporary, &dir.join(name))?;
    disk.sync_dir(dir)
}
