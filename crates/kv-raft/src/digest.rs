//! A digest of a namespace as it is at one point of the log, of any size, while entries are applied. The
//! namespace is read in parts without any lock; a copy's tail tells which parts were written to since, and
//! these few are read again at the end, under the applied lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;

use bytes::Bytes;
use kv_storage::{Copy, Piece, Storage, StorageError, TableId};
use kv_types::NamespaceId;
use xxhash_rust::xxh3::Xxh3;

use crate::codec;
use crate::config::limits::{DIGEST_PARTS_AT_CLOSE, DIGEST_PASSES, PIECE_BYTES, ROWS_AT_ONCE};
use crate::kv_machine::decode_revision;
use crate::machine::MachineError;
use crate::row::Live;
use crate::tables::{Space, Table, keys};

/// The first key of a part; it reaches to the next one's.
type Start = (TableId, Bytes);

/// Sum of the hashes of its rows, and how many of them are keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Part {
    sum: u64,
    keys: u64,
}

impl Part {
    /// What a row means is hashed, not how or where it is written: that may change between versions and
    /// differ between nodes.
    fn add(&mut self, table: TableId, key: &[u8], row: Bytes) -> Result<(), MachineError> {
        let mut hash = Xxh3::new();
        if table == Table::Meta.id() {
            hash.update(&decode_revision(row)?.to_be_bytes());
        } else {
            let (_, key) = keys::of_data(key)?;
            let Live { create, revision, version, lease, value } = Live::decode(row)?;
            hash.update(&codec::length(key.len()).to_be_bytes());
            hash.update(&key);
            [create, revision, version, lease].into_iter().for_each(|n| hash.update(&n.to_be_bytes()));
            hash.update(&value);
            self.keys += 1;
        }
        self.sum = self.sum.wrapping_add(hash.digest());
        Ok(())
    }
}

/// A digest under way.
pub(crate) struct Digesting {
    storage: Storage,
    copy: Copy,
    parts: BTreeMap<Start, Part>,
    /// Parts that were written to since they were read.
    stale: BTreeSet<Start>,
    /// Where the last part of each table ends.
    ends: [(TableId, Vec<u8>); 2],
    /// What the caller holds as long as it waits.
    waits: Weak<()>,
}

impl Digesting {
    /// Begins with the revision of a namespace and its keys. It ends with an error when what `waits` points
    /// to is gone.
    pub(crate) fn begin(
        storage: &Storage,
        space: Space,
        namespace: NamespaceId,
        waits: Weak<()>,
    ) -> Result<Self, MachineError> {
        let (meta, data) = (keys::revision(space, namespace), keys::of_namespace(space, namespace));
        let copy = storage.copy(&[(Table::Meta.id(), &meta), (Table::Data.id(), &data)])?;
        let next = NamespaceId(namespace.0.saturating_add(1));
        let ends = [
            (Table::Meta.id(), [&meta[..], &[0]].concat()),
            (Table::Data.id(), keys::of_namespace(space, next)),
        ];
        let first = [(Table::Meta.id(), meta.into()), (Table::Data.id(), data.into())];
        let parts = first.into_iter().map(|start| (start, Part::default())).collect();
        Ok(Self { storage: storage.clone(), copy, parts, stale: BTreeSet::new(), ends, waits })
    }

    /// Reads until few parts are stale. Blocks; entries are applied meanwhile.
    pub(crate) fn read(&mut self) -> Result<(), MachineError> {
        self.take_pieces()?;
        for _ in 0..DIGEST_PASSES {
            if self.stale.len() <= DIGEST_PARTS_AT_CLOSE {
                break;
            }
            for start in std::mem::take(&mut self.stale) {
                self.read_again(start)?;
                self.take_pieces()?;
            }
        }
        Ok(())
    }

    /// The digest as of now, and how many keys there are. The caller holds the applied lock.
    pub(crate) fn close(mut self) -> Result<(u64, u64), MachineError> {
        self.take_pieces()?;
        self.copy.close()?;
        if self.stale.len() > DIGEST_PARTS_AT_CLOSE {
            return Err(StorageError::Overloaded { what: "what is written during a digest" }.into());
        }
        for start in std::mem::take(&mut self.stale) {
            self.read_again(start)?;
        }
        let mut all = Part::default();
        for part in self.parts.values() {
            all.sum = all.sum.wrapping_add(part.sum);
            all.keys += part.keys;
        }
        Ok((all.sum, all.keys))
    }

    fn is_wanted(&self) -> Result<(), MachineError> {
        match self.waits.strong_count() {
            0 => Err(StorageError::Overloaded { what: "a digest whose caller left" }.into()),
            _ => Ok(()),
        }
    }

    /// Everything that the copy has for now.
    fn take_pieces(&mut self) -> Result<(), MachineError> {
        self.is_wanted()?;
        while let Some(piece) = self.copy.next_piece(ROWS_AT_ONCE, PIECE_BYTES)? {
            match piece {
                Piece::Base(rows) => {
                    let mut part = Part::default();
                    let start = rows.first().map(|(table, key, _)| (*table, key.clone()));
                    for (table, key, row) in rows {
                        part.add(table, &key, row.unwrap_or_default())?;
                    }
                    if let Some(start) = start {
                        // A tail before this piece may have counted for the part before, whose end this part
                        // takes over.
                        self.parts.insert(start, part);
                    }
                }
                Piece::Tail(rows) => {
                    for (table, key, _) in rows {
                        let start =
                            self.parts.range(..=(table, key)).next_back().map(|(start, _)| start.clone());
                        self.stale.extend(start);
                    }
                }
            }
            self.is_wanted()?;
        }
        Ok(())
    }

    fn read_again(&mut self, start: Start) -> Result<(), MachineError> {
        let table = start.0;
        let next = self.parts.range((std::ops::Bound::Excluded(&start), std::ops::Bound::Unbounded)).next();
        let next = next.map(|((table, key), _)| (*table, key.to_vec())).filter(|(next, _)| *next == table);
        let last = self.ends.iter().find(|(of, _)| *of == table).map(|(_, end)| end.clone());
        let end = next.map(|(_, key)| key).or(last);
        let mut part = Part::default();
        let mut from = start.1.to_vec();
        loop {
            self.is_wanted()?;
            let rows = self.storage.scan(table, &from, end.as_deref(), ROWS_AT_ONCE)?;
            let full = rows.len() >= ROWS_AT_ONCE;
            if let Some((last, _)) = rows.last() {
                from = [last.as_ref(), &[0]].concat();
            }
            for (key, row) in rows {
                part.add(table, &key, row.value)?;
            }
            if !full {
                break;
            }
        }
        self.parts.insert(start, part);
        Ok(())
    }
}
