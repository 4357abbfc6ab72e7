//! What callers write: tables, batches and positions; and the one encoding of a batch, which is also what the
//! log holds.

use bytes::Bytes;

use crate::{
    codec::Cursor,
    error::StorageError,
    journal::{JournalOp, MAX_STREAM_BYTES},
    limits,
};

/// A table: an ordered map of its own. Callers choose numbers from 16 up; they are stored on disk and never
/// change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(u16);

impl TableId {
    /// A caller's table. Numbers below 16 belong to storage; they are refused by [`crate::Storage::commit`].
    pub const fn new(id: u16) -> TableId {
        TableId(id)
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// A place in the log's order of data batches. Wait for it with [`crate::Storage::durable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

impl Position {
    /// The position of everything that needs no waiting: drained rows and derived state.
    pub const DURABLE: Position = Position(0);
}

/// A value that was read, and what must be durable before it may be revealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The value.
    pub value: Bytes,
    /// Its position in the log.
    pub position: Position,
}

const OP_PUT: u8 = 1;
const OP_DELETE: u8 = 2;
const OP_SMALL_PUT: u8 = 3;
const OP_SMALL_DELETE: u8 = 4;
const OP_APPEND: u8 = 5;
const OP_TRIM: u8 = 6;
/// Bytes before the name of a stream: table and id.
const STREAM_HEAD: usize = 10;

/// Fixed part of an encoded batch: its sequence number, which the engine fills in.
pub(crate) const BATCH_HEAD: usize = 8;

/// Writes that happen together or not at all. Later operations win over earlier ones.
#[derive(Debug, Clone)]
pub struct Batch {
    encoded: Vec<u8>,
    ops: usize,
    oversized_key: Option<usize>,
    oversized_stream: Option<usize>,
    reserved_table: bool,
}

impl Default for Batch {
    fn default() -> Self {
        Batch::new()
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch {
            encoded: vec![0; BATCH_HEAD],
            ops: 0,
            oversized_key: None,
            oversized_stream: None,
            reserved_table: false,
        }
    }

    /// Adds: set `key` of `table` to `value`.
    #[must_use]
    pub fn put(mut self, table: TableId, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Batch {
        self.push_put(table, key, value);
        self
    }

    /// Adds: remove `key` of `table`.
    #[must_use]
    pub fn delete(mut self, table: TableId, key: impl AsRef<[u8]>) -> Batch {
        self.push_delete(table, key);
        self
    }

    /// Adds: set `key` of the small state.
    #[must_use]
    pub fn small_put(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Batch {
        self.push_small_put(key, value);
        self
    }

    /// Adds: remove `key` of the small state.
    #[must_use]
    pub fn small_delete(mut self, key: impl AsRef<[u8]>) -> Batch {
        self.push_small_delete(key);
        self
    }

    /// Adds: append an entry to a stream of the journal of `table`. Ids of a stream increase.
    #[must_use]
    pub fn append(mut self, table: TableId, stream: &[u8], id: u64, content: impl AsRef<[u8]>) -> Batch {
        self.push_append(table, stream, id, content);
        self
    }

    /// Adds: give up the entries of a stream below an id.
    #[must_use]
    pub fn trim(mut self, table: TableId, stream: &[u8], below: u64) -> Batch {
        self.push_trim(table, stream, below);
        self
    }

    /// As [`Batch::put`], in place.
    pub fn push_put(&mut self, table: TableId, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.op(OP_PUT, &table.0.to_be_bytes(), key.as_ref(), value.as_ref());
        self.reserved_table |= table.0 < limits::FIRST_USER_TABLE;
    }

    /// As [`Batch::delete`], in place.
    pub fn push_delete(&mut self, table: TableId, key: impl AsRef<[u8]>) {
        self.op(OP_DELETE, &table.0.to_be_bytes(), key.as_ref(), &[]);
        self.reserved_table |= table.0 < limits::FIRST_USER_TABLE;
    }

    /// As [`Batch::small_put`], in place.
    pub fn push_small_put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.op(OP_SMALL_PUT, &[SMALL_USER], key.as_ref(), value.as_ref());
    }

    /// As [`Batch::small_delete`], in place.
    pub fn push_small_delete(&mut self, key: impl AsRef<[u8]>) {
        self.op(OP_SMALL_DELETE, &[SMALL_USER], key.as_ref(), &[]);
    }

    /// As [`Batch::append`], in place.
    pub fn push_append(&mut self, table: TableId, stream: &[u8], id: u64, content: impl AsRef<[u8]>) {
        self.stream_op(OP_APPEND, table, stream, id, content.as_ref());
    }

    /// As [`Batch::trim`], in place.
    pub fn push_trim(&mut self, table: TableId, stream: &[u8], below: u64) {
        self.stream_op(OP_TRIM, table, stream, below, &[]);
    }

    fn stream_op(&mut self, kind: u8, table: TableId, stream: &[u8], id: u64, content: &[u8]) {
        if stream.len() > MAX_STREAM_BYTES {
            self.oversized_stream = Some(stream.len());
        }
        let mut head = [0; STREAM_HEAD];
        let (of, number) = head.split_at_mut(2);
        of.copy_from_slice(&table.0.to_be_bytes());
        number.copy_from_slice(&id.to_be_bytes());
        self.op(kind, &head, stream, content);
        self.reserved_table |= table.0 < limits::FIRST_USER_TABLE;
    }

    /// Bytes of the batch as the log holds it.
    pub fn bytes(&self) -> usize {
        self.encoded.len()
    }

    /// How many operations it has.
    pub fn len(&self) -> usize {
        self.ops
    }

    /// True without operations.
    pub fn is_empty(&self) -> bool {
        self.ops == 0
    }

    fn op(&mut self, kind: u8, space: &[u8], key: &[u8], value: &[u8]) {
        if key.len() > limits::MAX_KEY_BYTES {
            self.oversized_key = Some(key.len());
        }
        let klen = (space.len() + key.len()) as u32;
        self.encoded.push(kind);
        self.encoded.extend_from_slice(&klen.to_le_bytes());
        self.encoded.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.encoded.extend_from_slice(space);
        self.encoded.extend_from_slice(key);
        self.encoded.extend_from_slice(value);
        self.ops += 1;
    }

    /// Checks the bounds and hands out the encoding.
    pub(crate) fn finish(self, max: usize) -> Result<Bytes, StorageError> {
        if let Some(bytes) = self.oversized_key {
            return Err(StorageError::TooLarge { what: "a key", bytes, max: limits::MAX_KEY_BYTES });
        }
        if let Some(bytes) = self.oversized_stream {
            return Err(StorageError::TooLarge {
                what: "the name of a stream",
                bytes,
                max: MAX_STREAM_BYTES,
            });
        }
        if self.reserved_table {
            return Err(StorageError::Invalid("tables below 16 belong to storage".into()));
        }
        if self.encoded.len() > max {
            return Err(StorageError::TooLarge { what: "a batch", bytes: self.encoded.len(), max });
        }
        Ok(Bytes::from(self.encoded))
    }
}

/// First byte of a small-state key that a caller wrote.
pub(crate) const SMALL_USER: u8 = 1;

/// One operation of an encoded batch. Keys carry their table (big-endian) or the first byte of the small
/// state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Table(Bytes, Option<Bytes>),
    Small(Bytes, Option<Bytes>),
    Journal(TableId, JournalOp),
}

/// An operation on a journal: its head says table and id.
fn stream_op(kind: u8, key: &Bytes, value: Bytes) -> Option<Op> {
    let (head, _) = key.split_first_chunk::<STREAM_HEAD>()?;
    let [a, b, id @ ..] = *head;
    let (table, id) = (TableId(u16::from_be_bytes([a, b])), u64::from_be_bytes(id));
    let stream = key.slice(STREAM_HEAD..);
    Some(Op::Journal(
        table,
        match kind {
            OP_APPEND => JournalOp::Append { stream, id, content: value },
            _ => JournalOp::Trim { stream, below: id },
        },
    ))
}

/// Splits an encoded batch into operations that share its memory; `None` if the bytes are not a batch.
pub(crate) fn decode(encoded: &Bytes) -> Option<(u64, Vec<Op>)> {
    let mut c = Cursor::new(encoded);
    let seq = c.u64()?;
    let mut ops = Vec::new();
    while !c.is_empty() {
        let kind = c.u8()?;
        let (klen, vlen) = (c.u32()? as usize, c.u32()? as usize);
        let at = c.position();
        c.take(klen)?;
        c.take(vlen)?;
        let key = encoded.slice(at..at + klen);
        let value = encoded.slice(at + klen..at + klen + vlen);
        ops.push(match kind {
            OP_PUT if klen >= 2 => Op::Table(key, Some(value)),
            OP_DELETE if klen >= 2 => Op::Table(key, None),
            OP_SMALL_PUT if klen >= 1 => Op::Small(key, Some(value)),
            OP_SMALL_DELETE if klen >= 1 => Op::Small(key, None),
            OP_APPEND | OP_TRIM => stream_op(kind, &key, value)?,
            _ => return None,
        });
    }
    Some((seq, ops))
}

/// A table key as the memtable and the tier hold it.
pub(crate) fn full_key(table: TableId, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + key.len());
    out.extend_from_slice(&table.0.to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// The table and key of a full key.
pub(crate) fn split_key(full: &Bytes) -> Option<(TableId, Bytes)> {
    let table: [u8; 2] = full.get(..2)?.try_into().ok()?;
    Some((TableId(u16::from_be_bytes(table)), full.slice(2..)))
}

/// The least key after another.
pub(crate) fn after(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// The first key after every key that starts with `prefix`, or `None` if there is none.
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_decodes_to_its_operations() {
        let t = TableId::new(16);
        let encoded = Batch::new()
            .put(t, b"k", b"v")
            .delete(t, b"d")
            .small_put(b"s", b"1")
            .append(t, b"st", 7, b"c")
            .trim(t, b"st", 5)
            .finish(1 << 20)
            .unwrap();
        let stream = Bytes::from_static(b"st");
        let (seq, ops) = decode(&encoded).unwrap();
        assert_eq!(seq, 0);
        assert_eq!(
            ops,
            [
                Op::Table(Bytes::from_static(b"\0\x10k"), Some(Bytes::from_static(b"v"))),
                Op::Table(Bytes::from_static(b"\0\x10d"), None),
                Op::Small(Bytes::from_static(b"\x01s"), Some(Bytes::from_static(b"1"))),
                Op::Journal(
                    t,
                    JournalOp::Append { stream: stream.clone(), id: 7, content: Bytes::from_static(b"c") }
                ),
                Op::Journal(t, JournalOp::Trim { stream, below: 5 }),
            ]
        );
        for cut in BATCH_HEAD + 1..encoded.len() {
            let _ = decode(&encoded.slice(..cut)); // never panics
        }
        assert_eq!(decode(&encoded.slice(..encoded.len() - 1)), None);
    }

    #[test]
    fn bounds_are_checked() {
        let big = vec![0; limits::MAX_KEY_BYTES + 1];
        assert!(Batch::new().put(TableId::new(16), &big, b"").finish(1 << 20).is_err());
        assert!(Batch::new().put(TableId::new(15), b"k", b"").finish(1 << 20).is_err());
        assert!(Batch::new().put(TableId::new(16), b"k", vec![0; 100]).finish(100).is_err());
        let stream = [b's'; MAX_STREAM_BYTES + 1];
        let named =
            |bytes: usize| Batch::new().append(TableId::new(16), &stream[..bytes], 1, b"").finish(999);
        assert!(named(MAX_STREAM_BYTES).is_ok());
        let refused = named(MAX_STREAM_BYTES + 1);
        assert!(matches!(refused, Err(StorageError::TooLarge { what: "the name of a stream", .. })));
        assert!(Batch::new().trim(TableId::new(15), b"s", 1).finish(999).is_err());
    }

    #[test]
    fn prefix_ends() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(b"a\xff"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"\xff\xff"), None);
    }
}
