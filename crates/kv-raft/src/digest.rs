//! A digest of a namespace as it is at one point of the log, of any size, while entries are applied. The
//! namespace is read in parts without any lock; a copy's tail tells which parts were written to since, and
//! these few are read again at the end, under the applied lock. The history is read in order, up to where the
//! namespace stands then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;

use bytes::Bytes;
use kv_storage::{Copy, Piece, Storage, StorageError, TableId};
use kv_types::NamespaceId;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::codec;
use crate::history::{Past, Walk};
use crate::limits::{
    DIGEST_ENTRIES_AT_CLOSE, DIGEST_PARTS_AT_CLOSE, DIGEST_PASSES, PIECE_BYTES, ROWS_AT_ONCE,
};
use crate::machine_error::MachineError;
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
            let Past { revision, floor, floor_chain, chain, .. } = Past::decode(row)?;
            [revision, floor, floor_chain, chain].into_iter().for_each(|n| hash.update(&n.to_be_bytes()));
        } else {
            let (_, key) = keys::of_data(key)?;
            // A tombstone is as no row, and removed in a node's own time.
            let Some(Live { create, revision, version, lease, value }) = Live::of_row(row)? else {
                return Ok(());
            };
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
    space: Space,
    namespace: NamespaceId,
    copy: Copy,
    /// What was read of the history.
    walk: Option<Walk>,
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
        Ok(Self {
            storage: storage.clone(),
            space,
            namespace,
            copy,
            walk: None,
            parts,
            stale: BTreeSet::new(),
            ends,
            waits,
        })
    }

    /// What the namespace's row says of its history now.
    fn past(&self) -> Result<Past, MachineError> {
        let row = self.storage.get(Table::Meta.id(), &keys::revision(self.space, self.namespace))?;
        Ok(row.map(|row| Past::decode(row.value)).transpose()?.unwrap_or_default())
    }

    /// Reads the history, most of it: it begins again where the floor has passed it. Blocks.
    fn read_history(&mut self) -> Result<(), MachineError> {
        for _ in 0..DIGEST_PASSES {
            let past = self.past()?;
            let mut walk = match self.walk.take() {
                Some(walk) => walk,
                None => Walk::from(self.namespace, &past),
            };
            loop {
                self.is_wanted()?;
                let to = past.revision.min(walk.next() + DIGEST_ENTRIES_AT_CLOSE);
                if !walk.to(&self.storage, self.space, to, u64::MAX)? {
                    break;
                }
                if walk.next() > past.revision {
                    self.walk = Some(walk);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The hash of the entries that are stored, which is what the account says unless some are lost. The
    /// caller holds the applied lock.
    fn close_history(&mut self) -> Result<u64, MachineError> {
        let past = self.past()?;
        let moved = || StorageError::Overloaded { what: "what is written during a digest" };
        let mut walk = self.walk.take().ok_or_else(moved)?;
        // The namespace was dropped meanwhile.
        if past.revision + 1 < walk.next() {
            return Err(moved().into());
        }
        if !walk.to(&self.storage, self.space, past.revision, DIGEST_ENTRIES_AT_CLOSE)? {
            return Err(moved().into());
        }
        let found = walk.chain();
        if found != Some(past.chain) {
            tracing::error!(namespace = %self.namespace, "the history is not what its account says");
        }
        // Not equal to that of any whole replica.
        Ok(found.unwrap_or(!past.chain))
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
        self.read_history()?;
        self.take_pieces()
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
        let chain = self.close_history()?;
        let mut all = Part { sum: xxh3_64(&chain.to_be_bytes()), keys: 0 };
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
