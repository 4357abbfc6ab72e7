//! A group's state as a file: rows of its tables in checksummed blocks. kv-storage keeps the file (fsynced, renamed,
//! its directory fsynced); what is in the blocks is decided here, and is the same on the wire.

use bytes::{Buf, BufMut, Bytes};
use kv_storage::{Batch, BlockKind, SnapshotInfo, SnapshotReader, Snapshots, StorageError};

use crate::codec::{self, CodecError, Reader, Write};
use crate::config::limits::SNAPSHOT_BLOCK_BYTES;
use crate::config::{LogId, SnapshotMeta};
use crate::machine::MachineError;
use crate::tables::{Space, Table, keys};

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
    /// As received from the leader.
    Wire(Bytes),
}

impl std::fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { id, .. } => write!(f, "snapshot file {id}"),
            Self::Wire(bytes) => write!(f, "snapshot of {} bytes", bytes.len()),
        }
    }
}

/// Files are named by the state that they hold, so that they sort by age.
pub(crate) fn id_of(last: Option<&LogId>) -> u64 {
    last.map_or(0, |last| last.index.saturating_add(1))
}

fn has(files: &Snapshots, id: u64, header: &Bytes) -> Result<bool, StorageError> {
    Ok(files.list()?.iter().any(|file| file.id == id && file.header == *header))
}

/// The newest complete file and its mark.
pub(crate) fn newest(files: &Snapshots) -> Result<Option<(SnapshotInfo, SnapshotMeta)>, MachineError> {
    let Some(newest) = files.list()?.pop() else { return Ok(None) };
    let mark = codec::decode_mark(newest.header.clone())?;
    Ok(Some((newest, mark)))
}

/// The contents of a snapshot for the wire: each block behind its length and checksum. Refused above `bound` bytes. Blocks.
pub(crate) fn pack(data: &SnapshotData, bound: usize) -> Result<Bytes, MachineError> {
    let mut packed = Vec::new();
    let mut blocks = data.blocks()?;
    while let Some((kind, block)) = blocks.next()? {
        if packed.len() + block.len() + PACKED_HEAD > bound {
            return Err(MachineError::SnapshotTooLarge { bound });
        }
        packed.put_u32(codec::length(block.len()));
        packed.put_u8(u8::from(kind == BlockKind::Tail));
        packed.put_u32(crc32c::crc32c(&block));
        packed.put_slice(&block);
    }
    Ok(packed.into())
}

/// Length, kind and checksum before each block on the wire.
const PACKED_HEAD: usize = 9;

/// The blocks of a snapshot, each checked when it is read.
pub(crate) enum Blocks {
    File(SnapshotReader),
    Wire(Bytes),
}

impl Blocks {
    /// The next block; none after the last. Blocks.
    pub(crate) fn next(&mut self) -> Result<Option<(BlockKind, Bytes)>, MachineError> {
        let rest = match self {
            Self::File(file) => return Ok(file.next_block()?),
            Self::Wire(rest) if rest.is_empty() => return Ok(None),
            Self::Wire(rest) => rest,
        };
        let truncated = CodecError::Truncated { what: "snapshot" };
        let head = (rest.try_get_u32(), rest.try_get_u8(), rest.try_get_u32());
        let (Ok(length), Ok(kind), Ok(checksum)) = head else {
            return Err(truncated.into());
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if rest.len() < length {
            return Err(truncated.into());
        }
        let block = rest.split_to(length);
        if crc32c::crc32c(&block) == checksum {
            let kind = if kind == 0 { BlockKind::Base } else { BlockKind::Tail };
            return Ok(Some((kind, block)));
        }
        let why = "a block does not match its checksum".to_owned();
        Err(CodecError::Invalid { what: "snapshot", why }.into())
    }
}

impl SnapshotData {
    /// Its blocks from the first on. Blocks.
    pub(crate) fn blocks(&self) -> Result<Blocks, MachineError> {
        Ok(match self {
            Self::File { files, id } => Blocks::File(files.open(*id)?),
            Self::Wire(bytes) => Blocks::Wire(bytes.clone()),
        })
    }

    /// Makes it a durable file of this node, unless it is one. All blocks are checked before the file exists. Blocks.
    pub(crate) fn import(&self, files: &Snapshots, mark: &SnapshotMeta) -> Result<u64, MachineError> {
        let id = id_of(mark.last_log_id.as_ref());
        let header = codec::encode_mark(mark);
        if !has(files, id, &header)? {
            let mut file = files.create()?;
            let mut blocks = self.blocks()?;
            while let Some((kind, block)) = blocks.next()? {
                rows_of(block.clone())?;
                file.write(kind, &block)?;
            }
            file.finish(id, &header)?;
        }
        Ok(id)
    }
}

/// A record of a block: table, key without its space, value; `None` removes.
pub(crate) type Record = (Table, Bytes, Option<Bytes>);

/// The records of a block, in order: a later one of the same key counts.
pub(crate) fn rows_of(block: Bytes) -> Result<Vec<Record>, MachineError> {
    let mut reader = Reader::versioned(block, "snapshot block", codec::VERSION)?;
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

/// The records of a block as a batch for a space.
pub(crate) fn batch_of(block: Bytes, space: Space) -> Result<Batch, MachineError> {
    let mut batch = Batch::new();
    let space = keys::of_space(space);
    for (table, key, value) in rows_of(block)? {
        let key = [&space[..], &key].concat();
        match value {
            Some(value) => batch.push_put(table.id(), key, value),
            None => batch.push_delete(table.id(), key),
        }
    }
    Ok(batch)
}

const ABSENT: u8 = 0;
const PRESENT: u8 = 1;

/// Records on their way into a file. Keys are without the space: that is a node's own business.
pub(crate) struct Block(Vec<u8>);

impl Block {
    pub(crate) fn new() -> Self {
        Self(codec::versioned(codec::VERSION, SNAPSHOT_BLOCK_BYTES))
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
