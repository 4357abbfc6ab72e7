//! Snapshot files: opaque chunks with checksums, complete or absent.
//!
//! ```text
//! "QSNP" version u16 0 u16 | id u64 | header length u32 | header | CRC32C
//! chunk: length u32 | CRC32C over number and bytes | bytes         (any number)
//! end:   u32::MAX | chunks u64 | bytes u64 | CRC32C
//! ```
//!
//! Written to a temporary name, synced, renamed, the folder synced: a file under its own name is complete.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;

use crate::{
    codec::Cursor,
    disk::{Disk, DiskFile},
    error::StorageError,
    limits,
    locks::lock,
};

const MAGIC: &[u8] = b"QSNP";
const VERSION: u16 = 1;
const FIXED: usize = 20;
const END: u32 = u32::MAX;

/// What is known of a snapshot file without reading its chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The caller's number: larger is newer.
    pub id: u64,
    /// The caller's header.
    pub header: Bytes,
    /// Size of the file.
    pub bytes: u64,
}

/// The snapshot files of a Raft group. All calls block.
#[derive(Debug, Clone)]
pub struct Snapshots {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    temporaries: Arc<Mutex<Temporaries>>,
}

/// Files being written by this process; others with such names are what crashes left behind.
#[derive(Debug, Default)]
pub(crate) struct Temporaries {
    next: u64,
    open: BTreeSet<PathBuf>,
}

fn io(e: std::io::Error) -> StorageError {
    StorageError::io("snapshot file")(e)
}

fn sum_of(number: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), bytes)
}

impl Snapshots {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf, temporaries: Arc<Mutex<Temporaries>>) -> Snapshots {
        Snapshots { disk, dir, temporaries }
    }

    pub(crate) fn path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:016x}.snap"))
    }

    /// Starts a snapshot file. It appears in [`Snapshots::list`] only when it is finished.
    pub fn create(&self, id: u64, header: &[u8]) -> Result<SnapshotWriter, StorageError> {
        if header.len() > limits::MAX_SNAPSHOT_HEADER {
            let (bytes, max) = (header.len(), limits::MAX_SNAPSHOT_HEADER);
            return Err(StorageError::TooLarge { what: "a snapshot header", bytes, max });
        }
        self.disk.create_dir_all(&self.dir).map_err(io)?;
        let temporary = {
            let mut names = lock(&self.temporaries);
            names.next += 1;
            let path = self.dir.join(format!("{id:016x}.{}.tmp", names.next));
            names.open.insert(path.clone());
            path
        };
        let file = self.disk.open(&temporary, true).map_err(io)?;
        file.set_len(0).map_err(io)?;
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&[0; 2]);
        head.extend_from_slice(&id.to_le_bytes());
        head.extend_from_slice(&(header.len() as u32).to_le_bytes());
        head.extend_from_slice(header);
        let sum = crc32c::crc32c(&head);
        head.extend_from_slice(&sum.to_le_bytes());
        file.write_at(&head, 0).map_err(io)?;
        Ok(SnapshotWriter {
            store: self.clone(),
            id,
            header: Bytes::copy_from_slice(header),
            file,
            temporary: Some(temporary),
            at: head.len() as u64,
            chunks: 0,
            payload: 0,
        })
    }

    /// Complete files, oldest first. Files whose head cannot be read are left out.
    pub fn list(&self) -> Result<Vec<SnapshotInfo>, StorageError> {
        let mut out = Vec::new();
        for path in self.disk.list(&self.dir).map_err(io)? {
            let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".snap"));
            let Some(id) = name.and_then(|n| u64::from_str_radix(n, 16).ok()) else { continue };
            match self.open(id) {
                Ok(reader) => out.push(reader.info),
                Err(e) => {
                    tracing::warn!(error = %e, path = %path.display(), "a snapshot file cannot be read")
                }
            }
        }
        out.sort_by_key(|info| info.id);
        Ok(out)
    }

    /// Opens a complete file for reading from its first chunk.
    pub fn open(&self, id: u64) -> Result<SnapshotReader, StorageError> {
        self.open_at(&self.path(id), id)
    }

    /// Opens a file under another name than its own: one that was received and is not yet complete by that name.
    pub(crate) fn open_at(&self, path: &Path, id: u64) -> Result<SnapshotReader, StorageError> {
        let name = path.display().to_string();
        let file = self.disk.open(path, false).map_err(io)?;
        let bytes = file.len().map_err(io)?;
        let damaged = |what: &str| StorageError::CorruptFile { file: name.clone(), what: what.into() };
        let mut fixed = vec![0; FIXED];
        if file.read_at(&mut fixed, 0).map_err(io)? != FIXED {
            return Err(damaged("shorter than its head"));
        }
        let mut c = Cursor::new(&fixed);
        if c.take(4) != Some(MAGIC) || c.u16() != Some(VERSION) {
            return Err(damaged("not a snapshot of a format that this release knows"));
        }
        let (_, found, len) = (c.u16(), c.u64(), c.u32().unwrap_or(END) as usize);
        if len > limits::MAX_SNAPSHOT_HEADER {
            return Err(damaged("the header is longer than its bound"));
        }
        let mut head = vec![0; FIXED + len + 4];
        let n = file.read_at(&mut head, 0).map_err(io)?;
        let (body, sum) = head.split_at(FIXED + len);
        if n != head.len() || Cursor::new(sum).u32() != Some(crc32c::crc32c(body)) || found != Some(id) {
            return Err(damaged("the head fails its checksum"));
        }
        let header = Bytes::copy_from_slice(body.get(FIXED..).unwrap_or_default());
        let at = head.len() as u64;
        Ok(SnapshotReader { info: SnapshotInfo { id, header, bytes }, name, file, at, chunks: 0, payload: 0 })
    }

    /// Reads a file to its end and checks everything.
    pub fn verify(&self, id: u64) -> Result<(), StorageError> {
        let mut reader = self.open(id)?;
        while reader.next_chunk()?.is_some() {}
        Ok(())
    }

    /// Removes a file.
    pub fn remove(&self, id: u64) -> Result<(), StorageError> {
        self.disk.remove(&self.path(id)).map_err(io)?;
        self.disk.sync_dir(&self.dir).map_err(io)
    }

    /// Removes all complete files but the newest `n`, and what crashes left behind.
    pub fn keep_newest(&self, n: usize) -> Result<(), StorageError> {
        let files = self.disk.list(&self.dir).map_err(io)?;
        let (mut complete, rest): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|p| p.extension().is_some_and(|e| e == "snap"));
        complete.sort();
        let spare = complete.len().saturating_sub(n);
        let names = lock(&self.temporaries);
        let temporary = rest.into_iter().filter(|p| is_temporary(p) && !names.open.contains(p));
        for path in complete.into_iter().take(spare).chain(temporary) {
            self.disk.remove(&path).map_err(io)?;
        }
        self.disk.sync_dir(&self.dir).map_err(io)
    }
}

fn is_temporary(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "tmp")
}

/// A snapshot file being written. Dropped before [`SnapshotWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct SnapshotWriter {
    store: Snapshots,
    id: u64,
    header: Bytes,
    file: Arc<dyn DiskFile>,
    temporary: Option<PathBuf>,
    at: u64,
    chunks: u64,
    payload: u64,
}

impl SnapshotWriter {
    /// Adds a chunk of at most 4 MiB.
    pub fn write(&mut self, chunk: &[u8]) -> Result<(), StorageError> {
        if chunk.len() > limits::MAX_SNAPSHOT_CHUNK {
            let (bytes, max) = (chunk.len(), limits::MAX_SNAPSHOT_CHUNK);
            return Err(StorageError::TooLarge { what: "a snapshot chunk", bytes, max });
        }
        let mut out = Vec::with_capacity(chunk.len() + 8);
        out.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
        out.extend_from_slice(&sum_of(self.chunks, chunk).to_le_bytes());
        out.extend_from_slice(chunk);
        self.file.write_at(&out, self.at).map_err(io)?;
        self.at += out.len() as u64;
        self.chunks += 1;
        self.payload += chunk.len() as u64;
        Ok(())
    }

    /// Makes the file complete and durable. It replaces one with the same id.
    pub fn finish(mut self) -> Result<SnapshotInfo, StorageError> {
        let mut end = END.to_le_bytes().to_vec();
        end.extend_from_slice(&self.chunks.to_le_bytes());
        end.extend_from_slice(&self.payload.to_le_bytes());
        let sum = crc32c::crc32c(&end);
        end.extend_from_slice(&sum.to_le_bytes());
        self.file.write_at(&end, self.at).map_err(io)?;
        self.file.sync_all().map_err(io)?;
        if let Some(temporary) = self.temporary.as_ref() {
            self.store.disk.rename(temporary, &self.store.path(self.id)).map_err(io)?;
        }
        if let Some(temporary) = self.temporary.take() {
            lock(&self.store.temporaries).open.remove(&temporary);
        }
        self.store.disk.sync_dir(&self.store.dir).map_err(io)?;
        Ok(SnapshotInfo { id: self.id, header: self.header.clone(), bytes: self.at + end.len() as u64 })
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            let _ = self.store.disk.remove(&temporary);
            lock(&self.store.temporaries).open.remove(&temporary);
        }
    }
}

/// A snapshot file being read.
#[derive(Debug)]
pub struct SnapshotReader {
    info: SnapshotInfo,
    name: String,
    file: Arc<dyn DiskFile>,
    at: u64,
    chunks: u64,
    payload: u64,
}

impl SnapshotReader {
    /// Id, header and size.
    pub fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    /// The caller's header.
    pub fn header(&self) -> &Bytes {
        &self.info.header
    }

    /// The next chunk, checked; `None` after the last.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StorageError> {
        let damaged = |what: String| StorageError::CorruptFile { file: self.name.clone(), what };
        let mut head = [0; 8];
        let n = self.file.read_at(&mut head, self.at).map_err(io)?;
        let mut c = Cursor::new(head.get(..n).unwrap_or_default());
        let (len, sum) = (c.u32(), c.u32());
        if len == Some(END) {
            let mut end = [0; 24];
            let n = self.file.read_at(&mut end, self.at).map_err(io)?;
            let mut c = Cursor::new(end.get(..n).unwrap_or_default());
            let (_, chunks, payload, sum) = (c.u32(), c.u64(), c.u64(), c.u32());
            let right = chunks == Some(self.chunks)
                && payload == Some(self.payload)
                && sum == Some(crc32c::crc32c(end.get(..20).unwrap_or_default()));
            return if right { Ok(None) } else { Err(damaged("the end fails its checksum".into())) };
        }
        let (Some(len), Some(sum)) = (len, sum) else {
            return Err(damaged("cut short".into()));
        };
        if len as usize > limits::MAX_SNAPSHOT_CHUNK {
            return Err(damaged(format!("chunk {} is longer than its bound", self.chunks)));
        }
        let mut chunk = vec![0; len as usize];
        let n = self.file.read_at(&mut chunk, self.at + 8).map_err(io)?;
        if n != chunk.len() || sum_of(self.chunks, &chunk) != sum {
            return Err(damaged(format!("chunk {} fails its checksum", self.chunks)));
        }
        self.at += 8 + u64::from(len);
        self.chunks += 1;
        self.payload += u64::from(len);
        Ok(Some(Bytes::from(chunk)))
    }
}
