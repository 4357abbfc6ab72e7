//! Snapshot files on their way between nodes, as bytes: reading a finished file from any offset, and
//! receiving one into a part that survives restarts and becomes a file only when all of it was checked.
//!
//! A group has one part at most: `incoming.part` holds the bytes, `incoming.note` says what they are:
//!
//! ```text
//! "QPRT" version u16 0 u16 | length u64 | identity length u32 | identity | CRC32C
//! received u64 | CRC32C of the bytes before it | CRC32C of this record        (one for each synced piece)
//! ```
//!
//! The bytes of a piece are synced before its record is written, and the checksum in the record is compared
//! when the part is resumed: what a crash left beyond the last good record is received again.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

use crate::{
    codec::{Cursor, put_bytes},
    disk::{DiskFile, read_all},
    error::StorageError,
    limits,
    snapshot::{SnapshotInfo, Snapshots},
};

const MAGIC: &[u8] = b"QPRT";
const VERSION: u16 = 1;
const RECORD_BYTES: usize = 16;

fn io(e: std::io::Error) -> StorageError {
    StorageError::io("part of a snapshot")(e)
}

/// A finished snapshot file as bytes. It stays readable while this lives, also when the file was removed
/// meanwhile.
#[derive(Debug, Clone)]
pub struct SnapshotBytes {
    file: Arc<dyn DiskFile>,
    name: String,
    length: u64,
}

impl SnapshotBytes {
    /// Bytes of the whole file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// At most `max` bytes from `offset` on; fewer only at the end of the file. Blocks.
    pub fn read(&self, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; max.min(left)];
        let n = self.file.read_at(&mut bytes, offset).map_err(io)?;
        if n != bytes.len() {
            let what = format!("{} bytes long, and shorter now", self.length);
            return Err(StorageError::CorruptFile { file: self.name.clone(), what });
        }
        Ok(bytes.into())
    }

    /// CRC32C of the whole file. Blocks.
    pub fn checksum(&self) -> Result<u32, StorageError> {
        let (mut at, mut sum) = (0, 0);
        while at < self.length {
            let piece = self.read(at, limits::PART_READ_BYTES)?;
            sum = crc32c::crc32c_append(sum, &piece);
            at += piece.len() as u64;
        }
        Ok(sum)
    }
}

/// A snapshot file that is being received. Dropped, it stays on the disk and can be resumed. One at a time in
/// a group.
#[derive(Debug)]
pub struct SnapshotPart {
    store: Snapshots,
    file: Arc<dyn DiskFile>,
    note: Arc<dyn DiskFile>,
    length: u64,
    sync_every: u64,
    /// Bytes received, and their checksum.
    received: u64,
    sum: u32,
    /// Bytes that are on the disk for certain.
    synced: u64,
    /// Where the next record of the note goes.
    note_at: u64,
}

/// How far a part is good: bytes, their checksum, length of the note up to that record.
struct Resumed {
    received: u64,
    sum: u32,
    note_at: u64,
}

impl Snapshots {
    fn part_path(&self) -> PathBuf {
        self.dir.join("incoming.part")
    }

    fn note_path(&self) -> PathBuf {
        self.dir.join("incoming.note")
    }

    /// A finished file as bytes. Blocks.
    pub fn bytes_of(&self, id: u64) -> Result<SnapshotBytes, StorageError> {
        let path = self.path(id);
        let file = self.disk.open(&path, false).map_err(io)?;
        let length = file.len().map_err(io)?;
        Ok(SnapshotBytes { file, name: path.display().to_string(), length })
    }

    /// Receives a file of `length` bytes. `identity` tells it from every other file; a part of the same
    /// identity is resumed, any other is discarded. Pieces of `sync_every` bytes are synced together. Reads
    /// what it resumes. Blocks.
    ///
    /// Refused when the disk has no room for the rest of the file and for a state of its size beside it, by
    /// what was seen last, and as too large above `MAX_SNAPSHOT_BYTES`, or with an identity above
    /// `MAX_PART_IDENTITY`. A refusal leaves no files behind, but what can be resumed.
    pub fn receive(
        &self,
        identity: &[u8],
        length: u64,
        sync_every: u64,
    ) -> Result<SnapshotPart, StorageError> {
        let bounded = |what, bytes: u64, max: u64| match bytes > max {
            true => Err(StorageError::TooLarge { what, bytes: clamped(bytes), max: clamped(max) }),
            false => Ok(()),
        };
        bounded("a snapshot file", length, limits::MAX_SNAPSHOT_BYTES)?;
        bounded("the identity of a snapshot", identity.len() as u64, limits::MAX_PART_IDENTITY as u64)?;
        self.disk.create_dir_all(&self.dir).map_err(io)?;
        let head = head_of(identity, length);
        let resumed = match self.disk.exists(&self.note_path()) && self.disk.exists(&self.part_path()) {
            true => {
                let open = |path| self.disk.open(path, false).map_err(io);
                resume(&*open(&self.part_path())?, &*open(&self.note_path())?, &head)?
            }
            false => None,
        };
        let rest = length - resumed.as_ref().map_or(0, |resumed| resumed.received);
        let sync_every = sync_every.clamp(1, limits::PART_SYNC_BYTES);
        let kept = resumed.as_ref().is_some_and(|resumed| resumed.received > 0);
        let room = self.room_for(rest.saturating_add(length));
        let opened = room.and_then(|()| self.open_part(resumed, &head, length, sync_every));
        if opened.is_err() && !kept {
            // Nothing of it could be resumed. What cannot be removed now is discarded by the next one.
            if let Err(e) = self.discard_part() {
                tracing::debug!(error = %e, "an empty part of a snapshot stays until the next one");
            }
        }
        opened
    }

    /// Opens the files of a part that goes on, or of a new one.
    fn open_part(
        &self,
        resumed: Option<Resumed>,
        head: &[u8],
        length: u64,
        sync_every: u64,
    ) -> Result<SnapshotPart, StorageError> {
        let file = self.disk.open(&self.part_path(), true).map_err(io)?;
        let note = self.disk.open(&self.note_path(), true).map_err(io)?;
        let resumed = match resumed {
            Some(resumed) => resumed,
            None => {
                // The note first: bytes of another file must not be found under this identity.
                note.set_len(0).map_err(io)?;
                note.write_at(head, 0).map_err(io)?;
                note.sync_all().map_err(io)?;
                Resumed { received: 0, sum: 0, note_at: head.len() as u64 }
            }
        };
        note.set_len(resumed.note_at).map_err(io)?;
        file.set_len(resumed.received).map_err(io)?;
        self.disk.sync_dir(&self.dir).map_err(io)?;
        let Resumed { received, sum, note_at } = resumed;
        let store = self.clone();
        Ok(SnapshotPart { store, file, note, length, sync_every, received, sum, synced: received, note_at })
    }

    /// Discards the part, if there is one. Blocks.
    pub fn discard_part(&self) -> Result<(), StorageError> {
        let paths = [self.note_path(), self.part_path()];
        let there: Vec<_> = paths.into_iter().filter(|path| self.disk.exists(path)).collect();
        if there.is_empty() {
            return Ok(());
        }
        for path in there {
            self.disk.remove(&path).map_err(io)?;
        }
        self.disk.sync_dir(&self.dir).map_err(io)
    }
}

fn clamped(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn head_of(identity: &[u8], length: u64) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&[0; 2]);
    head.extend_from_slice(&length.to_le_bytes());
    put_bytes(&mut head, identity);
    let sum = crc32c::crc32c(&head);
    head.extend_from_slice(&sum.to_le_bytes());
    head
}

fn record_of(received: u64, sum: u32) -> Vec<u8> {
    let mut record = received.to_le_bytes().to_vec();
    record.extend_from_slice(&sum.to_le_bytes());
    let own = crc32c::crc32c(&record);
    record.extend_from_slice(&own.to_le_bytes());
    record
}

/// What is said by a record, if it is whole.
fn read_record(record: &[u8]) -> Option<(u64, u32)> {
    let mut c = Cursor::new(record);
    let (received, sum, own) = (c.u64()?, c.u32()?, c.u32()?);
    let mut said = received.to_le_bytes().to_vec();
    said.extend_from_slice(&sum.to_le_bytes());
    (crc32c::crc32c(&said) == own).then_some((received, sum))
}

/// How much of a part can be kept; none when it is a part of another file, or of a format that this release
/// does not know.
fn resume(file: &dyn DiskFile, note: &dyn DiskFile, head: &[u8]) -> Result<Option<Resumed>, StorageError> {
    if note.len().map_err(io)? > limits::MAX_PART_NOTE {
        return Ok(None);
    }
    let note = read_all(note).map_err(io)?;
    let Some(records) = note.strip_prefix(head) else { return Ok(None) };
    let there = file.len().map_err(io)?;
    let mut good = Resumed { received: 0, sum: 0, note_at: head.len() as u64 };
    for record in records.chunks(RECORD_BYTES) {
        let Some((received, sum)) = read_record(record) else { break };
        if received <= good.received || received > there {
            break;
        }
        let mut found = good.sum;
        let mut at = good.received;
        while at < received {
            let mut piece = vec![0; clamped(received - at).min(limits::PART_READ_BYTES)];
            let n = file.read_at(&mut piece, at).map_err(io)?;
            if n != piece.len() {
                return Ok(Some(good));
            }
            found = crc32c::crc32c_append(found, &piece);
            at += n as u64;
        }
        if found != sum {
            break;
        }
        good = Resumed { received, sum, note_at: good.note_at + RECORD_BYTES as u64 };
    }
    Ok(Some(good))
}

impl SnapshotPart {
    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes of the whole file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Adds the next bytes, and syncs when a piece is full. After an error the part cannot be used: discard
    /// it. Blocks.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        let end = self.received + bytes.len() as u64;
        if end > self.length {
            let (bytes, max) = (clamped(end), clamped(self.length));
            return Err(StorageError::TooLarge { what: "a part of a snapshot", bytes, max });
        }
        self.file.write_at(bytes, self.received).map_err(io)?;
        self.received = end;
        self.sum = crc32c::crc32c_append(self.sum, bytes);
        if self.received - self.synced >= self.sync_every || self.received == self.length {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.store.space.check_file(self.received)?;
        self.file.sync_data().map_err(io)?;
        self.note.write_at(&record_of(self.received, self.sum), self.note_at).map_err(io)?;
        self.note.sync_data().map_err(io)?;
        self.note_at += RECORD_BYTES as u64;
        self.synced = self.received;
        Ok(())
    }

    /// Reads all of it back and compares it with the whole-file checksum, then as a snapshot file with the
    /// number `id`, whose blocks `see` is shown. Returns its header. `progress` grows by the bytes that were
    /// read. Blocks.
    pub fn verify(
        &self,
        id: u64,
        checksum: u32,
        progress: &AtomicU64,
        mut see: impl FnMut(Bytes),
    ) -> Result<Bytes, StorageError> {
        let path = self.store.part_path();
        let damaged = |what: String| StorageError::CorruptFile { file: path.display().to_string(), what };
        if self.received != self.length || self.synced != self.length {
            return Err(damaged(format!("{} of {} bytes are there", self.synced, self.length)));
        }
        let name = path.display().to_string();
        let whole = SnapshotBytes { file: self.file.clone(), name, length: self.length };
        let (mut at, mut sum) = (0, 0);
        while at < self.length {
            let piece = whole.read(at, limits::PART_READ_BYTES)?;
            sum = crc32c::crc32c_append(sum, &piece);
            at += piece.len() as u64;
            progress.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        if sum != checksum {
            return Err(damaged("the whole file does not match its checksum".into()));
        }
        let mut reader = self.store.open_at(&path, id)?;
        while let Some((_, block)) = reader.next_block()? {
            progress.fetch_add(block.len() as u64, Ordering::Relaxed);
            see(block);
        }
        Ok(reader.header().clone())
    }

    /// Makes a part that was verified a finished file, durably. It replaces one with the same id. Blocks.
    pub fn publish(self, id: u64) -> Result<SnapshotInfo, StorageError> {
        let disk = &self.store.disk;
        disk.rename(&self.store.part_path(), &self.store.path(id)).map_err(io)?;
        disk.sync_dir(&self.store.dir).map_err(io)?;
        // A note without its part is ignored: no record of it is good.
        disk.remove(&self.store.note_path()).map_err(io)?;
        Ok(self.store.open(id)?.info().clone())
    }
}
