//! A group's state as a file: rows of its tables in checksummed blocks. kv-storage keeps the file (fsynced,
//! renamed, its directory fsynced); what is in the blocks is decided here. Between nodes the file travels as
//! it is (`transfer`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{BufMut, Bytes};
use kv_storage::{BlockKind, CopyRow, SnapshotInfo, SnapshotPart, SnapshotReader, Snapshots, StorageError};

use crate::codec::{self, CodecError, Reader, Write};
use crate::config::{LogId, SnapshotMeta, TypeConfig};
use crate::limits::{SNAPSHOT_BLOCK_BYTES, SNAPSHOTS_KEPT};
use crate::machine_error::MachineError;
use crate::tables::{Space, Table, keys};

/// A snapshot, as openraft hands it on.
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// A snapshot's contents, where they are.
#[derive(Clone)]
pub(crate) enum SnapshotData {
    /// In a file of a node's own.
    File {
        /// The group's files.
        files: Snapshots,
        /// Which of them.
        id: u64,
    },
    /// Received from the leader and checked; it becomes a file when it is installed.
    Received(ReceivedPart),
}

/// A part that holds a whole snapshot, checked. It can be taken once.
#[derive(Clone)]
pub(crate) struct ReceivedPart(Arc<Mutex<Option<SnapshotPart>>>);

impl ReceivedPart {
    pub(crate) fn new(part: SnapshotPart) -> Self {
        Self(Arc::new(Mutex::new(Some(part))))
    }

    /// The part, unless it was installed.
    pub(crate) fn take(&self) -> Option<SnapshotPart> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl std::fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { id, .. } => write!(f, "snapshot file {id}"),
            Self::Received(_) => write!(f, "received snapshot"),
        }
    }
}

/// Files are named by the state that they hold, so that they sort by age.
pub(crate) fn id_of(last: Option<&LogId>) -> u64 {
    last.map_or(0, |last| last.index.saturating_add(1))
}

/// A file that is damaged inside is none: it is replaced.
fn has(files: &Snapshots, id: u64, header: &Bytes) -> Result<bool, StorageError> {
    let named = files.list()?.iter().any(|file| file.id == id && file.header == *header);
    match named.then(|| files.verify(id)) {
        Some(Err(StorageError::CorruptFile { .. })) | None => Ok(false),
        Some(read) => read.map(|()| true),
    }
}

/// The newest complete file and its mark.
pub(crate) fn newest(files: &Snapshots) -> Result<Option<(SnapshotInfo, SnapshotMeta)>, MachineError> {
    let Some(newest) = files.list()?.pop() else { return Ok(None) };
    let mark = codec::decode_mark(newest.header.clone())?;
    Ok(Some((newest, mark)))
}

/// The file of that number and its mark; none when there is no such file, or it cannot be read.
pub(crate) fn numbered(
    files: &Snapshots,
    id: u64,
) -> Result<Option<(SnapshotInfo, SnapshotMeta)>, MachineError> {
    let Some(file) = files.list()?.into_iter().find(|file| file.id == id) else { return Ok(None) };
    let mark = codec::decode_mark(file.header.clone())?;
    Ok(Some((file, mark)))
}

/// Removes all files but the newest and `kept`. True when `kept` is there and not the newest. Blocks.
pub(crate) fn remove_old(files: &Snapshots, kept: Option<u64>) -> Result<bool, StorageError> {
    let present = files.list()?;
    let from_kept = kept.and_then(|kept| present.iter().position(|file| file.id == kept));
    let Some(at) = from_kept.filter(|at| at + SNAPSHOTS_KEPT < present.len()) else {
        files.keep_newest(SNAPSHOTS_KEPT)?;
        return Ok(false);
    };
    let newest = present.len() - SNAPSHOTS_KEPT;
    for file in present.iter().take(newest).skip(at + 1) {
        files.remove(file.id)?;
    }
    files.keep_newest(SNAPSHOTS_KEPT + 1)?;
    Ok(true)
}

/// The blocks of a snapshot file, each checked when it is read.
pub(crate) struct Blocks(SnapshotReader);

impl Blocks {
    /// The next block; none after the last. Blocks.
    pub(crate) fn next(&mut self) -> Result<Option<(BlockKind, Bytes)>, MachineError> {
        Ok(self.0.next_block()?)
    }
}

impl SnapshotData {
    /// Its blocks from the first on. Blocks.
    pub(crate) fn blocks(&self) -> Result<Blocks, MachineError> {
        match self {
            Self::File { files, id } => Ok(Blocks(files.open(*id)?)),
            Self::Received(_) => Err(MachineError::Lost { what: "the file of a received snapshot" }),
        }
    }

    /// Makes it a durable file of this node, unless it is one. All blocks are checked before the file exists.
    /// Blocks.
    pub(crate) fn import(&self, files: &Snapshots, mark: &SnapshotMeta) -> Result<u64, MachineError> {
        let id = id_of(mark.last_log_id.as_ref());
        let header = codec::encode_mark(mark);
        if has(files, id, &header)? {
            return Ok(id);
        }
        if let Self::Received(received) = self {
            let part = received.take().ok_or(MachineError::Lost { what: "a received snapshot" })?;
            let published = part.publish(id)?;
            // It was checked when it was received; what is on the disk now must still be that.
            if published.header != header {
                return Err(MachineError::Lost { what: "the header of a received snapshot" });
            }
            return Ok(id);
        }
        let mut file = files.create()?;
        let mut blocks = self.blocks()?;
        while let Some((kind, block)) = blocks.next()? {
            rows_of(block.clone())?;
            file.write(kind, &block)?;
        }
        file.finish(id, &header)?;
        Ok(id)
    }
}

/// A record of a block: table, key without its space, value; `None` removes.
pub(crate) type Record = (Table, Bytes, Option<Bytes>);

/// The records of a block, in order: a later one of the same key counts.
pub(crate) fn rows_of(block: Bytes) -> Result<Vec<Record>, MachineError> {
    let mut reader = Reader::versioned(block, "snapshot block", BLOCK_VERSION)?;
    let mut rows = Vec::new();
    while !reader.is_empty() {
        let number = reader.u16()?;
        let table = Table::of(number).ok_or_else(|| reader.newer("table", number))?;
        let key = reader.bytes()?;
        let value = match reader.u8()? {
            ABSENT => None,
            PRESENT => Some(reader.bytes()?),
            found => return Err(reader.unknown("presence", found).into()),
        };
        rows.push((table, key, value));
    }
    Ok(rows)
}

/// The records of a block as rows of a space.
pub(crate) fn rows_for(block: Bytes, space: Space) -> Result<VecDeque<CopyRow>, MachineError> {
    let space = keys::of_space(space);
    let rows = rows_of(block)?.into_iter();
    Ok(rows.map(|(table, key, value)| (table.id(), [&space[..], &key].concat().into(), value)).collect())
}

/// Version of a block: the first had no histories.
const BLOCK_VERSION: u8 = 2;
const ABSENT: u8 = 0;
const PRESENT: u8 = 1;

/// Records on their way into a file. Keys are without the space: that is a node's own business.
pub(crate) struct Block(Vec<u8>);

impl Block {
    pub(crate) fn new() -> Self {
        Self(codec::versioned(BLOCK_VERSION, SNAPSHOT_BLOCK_BYTES))
    }

    pub(crate) fn push(&mut self, table: u16, key: &[u8], value: Option<&[u8]>) -> Result<(), CodecError> {
        let bare = key.get(keys::SPACE_BYTES..).ok_or(CodecError::Truncated { what: "key of a row" })?;
        self.0.put_u16(table);
        self.0.put_block(bare);
        match value {
            Some(value) => {
                self.0.put_u8(PRESENT);
                self.0.put_block(value);
            }
            None => self.0.put_u8(ABSENT),
        }
        Ok(())
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= SNAPSHOT_BLOCK_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.len() <= 1
    }

    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::replace(self, Self::new()).0
    }
}
