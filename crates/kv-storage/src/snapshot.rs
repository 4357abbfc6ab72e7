//! Snapshot files: opaque blocks with checksums, complete or absent.
//!
//! ```text
//! head:    "QSNP" | version u16 | 0 u16 | CRC32C
//! block:   length u32 | kind u8 | CRC32C over number, kind and bytes | bytes         (any number)
//! header:  the caller's bytes
//! trailer: "QSNE" | version u16 | 0 u16 | id u64 | blocks u64 | bytes of them u64 |
//!          length of the header u32 | its CRC32C | CRC32C over the trailer
//! ```
//!
//! What a snapshot is of is known when its last block is written, so id and header stand at the end, and a
//! reader begins there. Written to a temporary name and synced in pieces, so that no sync has much to do; at
//! the end synced, renamed, and the folder synced: a file under its own name is complete and never changes.

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
    space::DiskSpace,
};

const MAGIC: &[u8] = b"QSNP";
const END_MAGIC: &[u8] = b"QSNE";
const VERSION: u16 = 2;
const HEAD: usize = 12;
const BLOCK_HEAD: usize = 9;
const TRAILER: usize = 44;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// Rows that were there while the file was written.
    Base,
    /// What was written meanwhile.
    Tail,
}

impl BlockKind {
    fn number(self) -> u8 {
        match self {
            BlockKind::Base => 1,
            BlockKind::Tail => 2,
        }
    }

    fn of(number: u8) -> Option<BlockKind> {
        [BlockKind::Base, BlockKind::Tail].into_iter().find(|kind| kind.number() == number)
    }
}

/// What is known of a snapshot file without reading its blocks.
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
    pub(crate) space: Arc<DiskSpace>,
}

/// Files being written by this process; others with such names are what crashes left behind.
#[derive(Debug, Default)]
pub(crate) struct Temporaries {
    next: u64,
    open: BTreeSet<PathBuf>,
    /// Folders whose names are durable as this process found them.
    settled: BTreeSet<PathBuf>,
}

fn io(e: std::io::Error) -> StorageError {
    StorageError::io("snapshot file")(e)
}

fn sum_of(number: u64, kind: u8, bytes: &[u8]) -> u32 {
    let place = crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &[kind]);
    crc32c::crc32c_append(place, bytes)
}

fn head() -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&[0; 2]);
    let sum = crc32c::crc32c(&head);
    head.extend_from_slice(&sum.to_le_bytes());
    head
}

/// The end of a file, as it is written and read.
#[derive(Debug, PartialEq, Eq)]
struct Trailer {
    id: u64,
    blocks: u64,
    payload: u64,
    header_bytes: u32,
    header_sum: u32,
}

impl Trailer {
    fn encode(&self) -> Vec<u8> {
        let mut out = END_MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        for number in [self.id, self.blocks, self.payload] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.header_bytes.to_le_bytes());
        out.extend_from_slice(&self.header_sum.to_le_bytes());
        let sum = crc32c::crc32c(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Trailer> {
        let mut c = Cursor::new(bytes);
        (c.take(4)? == END_MAGIC && c.u16()? == VERSION && c.u16()? == 0).then_some(())?;
        let (id, blocks, payload) = (c.u64()?, c.u64()?, c.u64()?);
        let trailer = Trailer { id, blocks, payload, header_bytes: c.u32()?, header_sum: c.u32()? };
        let body = bytes.get(..c.position())?;
        (c.u32()? == crc32c::crc32c(body) && c.is_empty()).then_some(trailer)
    }
}

impl Snapshots {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        temporaries: Arc<Mutex<Temporaries>>,
        space: Arc<DiskSpace>,
    ) -> Snapshots {
        Snapshots { disk, dir, temporaries, space }
    }

    /// Refuses when files of together `bytes` more would not leave the disk's reserve free, by what was seen
    /// last.
    pub fn room_for(&self, bytes: u64) -> Result<(), StorageError> {
        self.space.room_for(bytes)
    }

    pub(crate) fn path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:016x}.snap"))
    }

    /// Starts a snapshot file. It appears in [`Snapshots::list`] only when it is finished.
    /// Refused, as every write to it, when the disk's reserve is touched: see [`Snapshots::room_for`].
    pub fn create(&self) -> Result<SnapshotWriter, StorageError> {
        self.space.check_file(1)?;
        self.disk.create_dir_all(&self.dir).map_err(io)?;
        let temporary = {
            let mut names = lock(&self.temporaries);
            names.next += 1;
            let path = self.dir.join(format!("{:016x}.tmp", names.next));
            names.open.insert(path.clone());
            path
        };
        let started = self.disk.open(&temporary, true).and_then(|file| {
            file.set_len(0)?;
            file.write_at(&head(), 0)?;
            Ok(file)
        });
        let file = started.map_err(|e| {
            lock(&self.temporaries).open.remove(&temporary);
            io(e)
        })?;
        Ok(SnapshotWriter {
            store: self.clone(),
            file,
            temporary: Some(temporary),
            at: HEAD as u64,
            synced: 0,
            blocks: 0,
            payload: 0,
        })
    }

    /// Complete files, oldest first. Files whose two ends cannot be read are left out.
    pub fn list(&self) -> Result<Vec<SnapshotInfo>, StorageError> {
        self.settle()?;
        for _ in 0..limits::LIST_ROUNDS {
            if let Some(found) = self.try_list()? {
                return Ok(found);
            }
        }
        let busy = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
        Err(StorageError::io("list the snapshot files, which change all the time")(busy))
    }

    /// The complete files; none when one of them was removed meanwhile, and another may have taken its place.
    fn try_list(&self) -> Result<Option<Vec<SnapshotInfo>>, StorageError> {
        let mut out = Vec::new();
        for path in self.disk.list(&self.dir).map_err(io)? {
            let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".snap"));
            let Some(id) = name.and_then(|n| u64::from_str_radix(n, 16).ok()) else { continue };
            match self.open(id) {
                Ok(reader) => out.push(reader.info),
                Err(StorageError::Io { kind: std::io::ErrorKind::NotFound, .. }) => return Ok(None),
                Err(e @ StorageError::Io { .. }) => return Err(e),
                Err(e) => {
                    tracing::warn!(error = %e, path = %path.display(), "a snapshot file cannot be read")
                }
            }
        }
        out.sort_by_key(|info| info.id);
        Ok(Some(out))
    }

    /// A process that was killed may have renamed a file without syncing the folder. What is believed from
    /// here on is durable first: the log is purged up to it.
    fn settle(&self) -> Result<(), StorageError> {
        if lock(&self.temporaries).settled.contains(&self.dir) {
            return Ok(());
        }
        self.disk.create_dir_all(&self.dir).map_err(io)?;
        self.disk.sync_dir(&self.dir).map_err(io)?;
        lock(&self.temporaries).settled.insert(self.dir.clone());
        Ok(())
    }

    /// Opens a complete file for reading from its first block. Its end is read first.
    pub fn open(&self, id: u64) -> Result<SnapshotReader, StorageError> {
        self.open_at(&self.path(id), id)
    }

    /// Opens a file under another name than its own: one that was received and is not yet complete by that
    /// name.
    pub(crate) fn open_at(&self, path: &Path, id: u64) -> Result<SnapshotReader, StorageError> {
        let name = path.display().to_string();
        let file = self.disk.open(path, false).map_err(io)?;
        let bytes = file.len().map_err(io)?;
        let damaged = |what: &str| StorageError::CorruptFile { file: name.clone(), what: what.into() };
        let mut begin = [0; HEAD];
        let n = file.read_at(&mut begin, 0).map_err(io)?;
        let mut c = Cursor::new(begin.get(..n).unwrap_or_default());
        let (magic, version) = (c.take(4), c.u16());
        match version {
            Some(version) if magic == Some(MAGIC) && version != VERSION => {
                return Err(damaged(&format!(
                    "it is a snapshot of format {version}, and this release reads format {VERSION}"
                )));
            }
            _ if begin.get(..n) != Some(&head()[..]) => {
                return Err(damaged("it does not begin as a snapshot"));
            }
            _ => {}
        }
        let short = || damaged("shorter than its two ends");
        let trailer_at =
            bytes.checked_sub(TRAILER as u64).filter(|at| *at >= HEAD as u64).ok_or_else(short)?;
        let mut end = [0; TRAILER];
        let n = file.read_at(&mut end, trailer_at).map_err(io)?;
        let trailer = Trailer::decode(end.get(..n).unwrap_or_default());
        let trailer = trailer.ok_or_else(|| damaged("the trailer fails its checksum"))?;
        if trailer.header_bytes as usize > limits::MAX_SNAPSHOT_HEADER {
            return Err(damaged("the header is longer than its bound"));
        }
        let end = trailer_at.checked_sub(u64::from(trailer.header_bytes)).filter(|at| *at >= HEAD as u64);
        let end = end.ok_or_else(short)?;
        let mut header = vec![0; trailer.header_bytes as usize];
        let n = file.read_at(&mut header, end).map_err(io)?;
        if n != header.len() || crc32c::crc32c(&header) != trailer.header_sum || trailer.id != id {
            return Err(damaged("the header fails its checksum"));
        }
        let info = SnapshotInfo { id, header: Bytes::from(header), bytes };
        Ok(SnapshotReader { info, name, file, at: HEAD as u64, end, trailer, blocks: 0, payload: 0 })
    }

    /// Reads a file to its end and checks everything.
    pub fn verify(&self, id: u64) -> Result<(), StorageError> {
        let mut reader = self.open(id)?;
        while reader.next_block()?.is_some() {}
        Ok(())
    }

    /// Removes a file.
    pub fn remove(&self, id: u64) -> Result<(), StorageError> {
        self.disk.remove(&self.path(id)).map_err(io)?;
        self.disk.sync_dir(&self.dir).map_err(io)
    }

    /// Removes all complete files but the newest `n` that can be read and what is newer than those, and what
    /// crashes left behind.
    pub fn keep_newest(&self, n: usize) -> Result<(), StorageError> {
        let files = self.disk.list(&self.dir).map_err(io)?;
        let (mut complete, rest): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|p| p.extension().is_some_and(|e| e == "snap"));
        complete.sort();
        let mut readable = 0;
        let newest_first = complete.iter().rev().take_while(|path| {
            let wanted = readable < n;
            let id = path.file_stem().and_then(|name| u64::from_str_radix(name.to_str()?, 16).ok());
            readable += usize::from(wanted && id.is_some_and(|id| self.open_at(path, id).is_ok()));
            wanted
        });
        let spare = complete.len() - newest_first.count();
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
    file: Arc<dyn DiskFile>,
    temporary: Option<PathBuf>,
    at: u64,
    /// Up to where it is on disk.
    synced: u64,
    blocks: u64,
    payload: u64,
}

impl SnapshotWriter {
    /// Adds a block of at most [`limits::MAX_SNAPSHOT_BLOCK`]. Syncs each time when
    /// [`limits::SNAPSHOT_SYNC_BYTES`] more were written.
    pub fn write(&mut self, kind: BlockKind, block: &[u8]) -> Result<(), StorageError> {
        if block.len() > limits::MAX_SNAPSHOT_BLOCK {
            let (bytes, max) = (block.len(), limits::MAX_SNAPSHOT_BLOCK);
            return Err(StorageError::TooLarge { what: "a snapshot block", bytes, max });
        }
        let mut out = Vec::with_capacity(block.len() + BLOCK_HEAD);
        out.extend_from_slice(&(block.len() as u32).to_le_bytes());
        out.push(kind.number());
        out.extend_from_slice(&sum_of(self.blocks, kind.number(), block).to_le_bytes());
        out.extend_from_slice(block);
        self.file.write_at(&out, self.at).map_err(io)?;
        self.at += out.len() as u64;
        self.blocks += 1;
        self.payload += block.len() as u64;
        if self.at - self.synced >= limits::SNAPSHOT_SYNC_BYTES {
            self.store.space.check_file(self.at)?;
            self.file.sync_data().map_err(io)?;
            self.synced = self.at;
        }
        Ok(())
    }

    /// Bytes of the file so far.
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// Makes the file complete and durable under its id. A file that has the id already is kept and this one
    /// dropped if their headers are equal and all of it can be read: a finished file never changes. Otherwise
    /// it is replaced.
    pub fn finish(mut self, id: u64, header: &[u8]) -> Result<SnapshotInfo, StorageError> {
        if header.len() > limits::MAX_SNAPSHOT_HEADER {
            let (bytes, max) = (header.len(), limits::MAX_SNAPSHOT_HEADER);
            return Err(StorageError::TooLarge { what: "a snapshot header", bytes, max });
        }
        let whole = self.at + (header.len() + TRAILER) as u64;
        // Of two of one state the smaller one stays: rows that no one reads any more are not in it.
        if let Ok(present) = self.store.open(id)
            && present.header() == header
            && present.info.bytes <= whole
            && self.store.verify(id).is_ok()
        {
            return Ok(present.info);
        }
        let trailer = Trailer {
            id,
            blocks: self.blocks,
            payload: self.payload,
            header_bytes: header.len() as u32,
            header_sum: crc32c::crc32c(header),
        };
        let end = [header, &trailer.encode()].concat();
        self.file.write_at(&end, self.at).map_err(io)?;
        self.file.sync_all().map_err(io)?;
        if let Some(temporary) = self.temporary.as_ref() {
            self.store.disk.rename(temporary, &self.store.path(id)).map_err(io)?;
        }
        if let Some(temporary) = self.temporary.take() {
            lock(&self.store.temporaries).open.remove(&temporary);
        }
        self.store.disk.sync_dir(&self.store.dir).map_err(io)?;
        let header = Bytes::copy_from_slice(header);
        Ok(SnapshotInfo { id, header, bytes: self.at + end.len() as u64 })
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

/// A snapshot file being read. It stays readable when the file is removed meanwhile.
#[derive(Debug)]
pub struct SnapshotReader {
    info: SnapshotInfo,
    name: String,
    file: Arc<dyn DiskFile>,
    at: u64,
    /// Where the blocks end.
    end: u64,
    trailer: Trailer,
    blocks: u64,
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

    /// The next block, checked; `None` after the last.
    pub fn next_block(&mut self) -> Result<Option<(BlockKind, Bytes)>, StorageError> {
        let damaged = |what: String| StorageError::CorruptFile { file: self.name.clone(), what };
        if self.at == self.end {
            let whole = (self.blocks, self.payload) == (self.trailer.blocks, self.trailer.payload);
            return if whole { Ok(None) } else { Err(damaged("it lacks blocks that its end counts".into())) };
        }
        let mut head = [0; BLOCK_HEAD];
        let n = self.file.read_at(&mut head, self.at).map_err(io)?;
        let mut c = Cursor::new(head.get(..n).unwrap_or_default());
        let (Some(len), Some(kind), Some(sum)) = (c.u32(), c.u8(), c.u32()) else {
            return Err(damaged("cut short".into()));
        };
        let next = self.at + BLOCK_HEAD as u64 + u64::from(len);
        if len as usize > limits::MAX_SNAPSHOT_BLOCK || next > self.end {
            return Err(damaged(format!("block {} is longer than its bound", self.blocks)));
        }
        let mut block = vec![0; len as usize];
        let n = self.file.read_at(&mut block, self.at + BLOCK_HEAD as u64).map_err(io)?;
        if n != block.len() || sum_of(self.blocks, kind, &block) != sum {
            return Err(damaged(format!("block {} fails its checksum", self.blocks)));
        }
        let known = BlockKind::of(kind)
            .ok_or_else(|| damaged(format!("block {} is of the unknown kind {kind}", self.blocks)))?;
        self.at = next;
        self.blocks += 1;
        self.payload += u64::from(len);
        Ok(Some((known, Bytes::from(block))))
    }
}
