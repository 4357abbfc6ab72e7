//! What must hold of the records of a snapshot that another node sent, before its file exists here: what
//! cannot be read would end this group at every start.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_types::{GroupId, NamespaceId};

use crate::catalogue_machine::decode_catalogue;
use crate::codec::{self, CodecError};
use crate::dropped::Dropped;
use crate::history::{Past, check_entry};
use crate::machine_error::MachineError;
use crate::row::Row;
use crate::sessions;
use crate::snapshot::rows_of;
use crate::tables::{Space, Table, keys};

/// The contents of a file, block by block.
#[derive(Default)]
pub(crate) struct Contents {
    /// What the records say last of each history: its account, and the row of its marks.
    pasts: BTreeMap<NamespaceId, (Past, Option<Bytes>)>,
}

impl Contents {
    /// The next block. An error names the first record that no node writes.
    pub(crate) fn check(&mut self, block: Bytes) -> Result<(), MachineError> {
        // Any space: keys in a file have none, and are read with one.
        let space = Space::first(GroupId(0));
        let prefix = keys::of_space(space);
        for (table, bare, row) in rows_of(block)? {
            let key = [&prefix[..], &bare].concat();
            self.record(table, &key, row)?;
        }
        Ok(())
    }

    fn record(&mut self, table: Table, key: &[u8], row: Option<Bytes>) -> Result<(), MachineError> {
        match (table, row) {
            (Table::Data, row) => {
                keys::of_data(key)?;
                row.map(Row::decode).transpose()?;
            }
            (Table::Tombstones, _) => drop(keys::of_tombstone(key)?),
            (Table::History, content) => {
                let (_, revision) = keys::of_entry(key)?;
                check_entry(revision, content.unwrap_or_default())?;
            }
            (Table::Sessions, row) => {
                keys::of_session(key)?;
                row.map(sessions::check_row).transpose()?;
            }
            (Table::Catalogue, row) => drop(row.map(decode_catalogue).transpose()?),
            (Table::Applied, row) => drop(row.map(codec::decode_mark).transpose()?),
            (Table::Meta, row) => self.meta(key, row)?,
        }
        Ok(())
    }

    fn meta(&mut self, key: &[u8], row: Option<Bytes>) -> Result<(), CodecError> {
        let Some(row) = row else {
            // What goes of a history goes with all of it.
            if let Some(namespace) = keys::of_revision(key)?.or(keys::of_marks(key)?) {
                self.pasts.remove(&namespace);
            }
            return Ok(());
        };
        if let Some(namespace) = keys::of_revision(key)? {
            self.pasts.entry(namespace).or_default().0 = Past::decode(row)?;
        } else if let Some(namespace) = keys::of_marks(key)? {
            self.pasts.entry(namespace).or_default().1 = Some(row);
        } else if keys::is_dropped(key) {
            Dropped::decode(row)?;
        } else {
            sessions::check_meta_row(key, row)?;
        }
        Ok(())
    }

    /// After the last block: what records say of each other.
    pub(crate) fn end(self) -> Result<(), MachineError> {
        for (past, marks) in self.pasts.into_values() {
            if let Some(marks) = marks {
                past.with_marks(marks)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Entry;
    use crate::row::Live;
    use crate::snapshot::Block;

    const SPACE: Space = Space::first(GroupId(7));
    const NS: NamespaceId = NamespaceId(1);

    fn block(records: &[(Table, Vec<u8>, Option<Bytes>)]) -> Bytes {
        let mut block = Block::new();
        for (table, key, row) in records {
            block.push(table.id().get(), key, row.as_deref()).unwrap();
        }
        block.take().into()
    }

    fn check(records: &[(Table, Vec<u8>, Option<Bytes>)]) -> Result<(), MachineError> {
        let mut contents = Contents::default();
        contents.check(block(records))?;
        contents.end()
    }

    #[test]
    fn what_no_node_writes_is_found_wherever_it_stands() {
        let live = |revision| Bytes::from(Live::after(None, revision, Bytes::from_static(b"v")).encode());
        let mut entry = Entry::new();
        entry.change(b"k", None, &live(5));
        let entry = entry.finish();
        let mut past = Past::default();
        past.append(&entry, 0);
        let good = [
            (Table::Data, keys::data(SPACE, NS, b"k"), Some(live(5))),
            (Table::Data, keys::data(SPACE, NS, b"gone"), None),
            (Table::Tombstones, keys::tombstone(SPACE, NS, 4), Some(Bytes::new())),
            (Table::History, keys::entry(SPACE, NS, 5), Some(entry.clone())),
            (Table::Meta, keys::revision(SPACE, NS), Some(past.encode().into())),
            (Table::Meta, keys::marks(SPACE, NS), Some(past.encode_marks().into())),
        ];
        check(&good).unwrap();
        let nonsense = || Some(Bytes::from_static(&[99, 1, 2, 3]));
        let session = keys::session(SPACE, (NS, kv_types::ClientId(1)));
        let bad = [
            (Table::Data, keys::of_space(SPACE), Some(live(5))),
            (Table::Data, keys::data(SPACE, NS, b"k"), nonsense()),
            (Table::Tombstones, keys::of_space(SPACE), None),
            (Table::History, keys::entry(SPACE, NS, 6), Some(entry)),
            (Table::History, keys::entry(SPACE, NS, 5), nonsense()),
            (Table::Sessions, session.clone(), nonsense()),
            (Table::Sessions, keys::of_space(SPACE), None),
            (Table::Catalogue, keys::of_space(SPACE), nonsense()),
            (Table::Applied, keys::of_space(SPACE), nonsense()),
            (Table::Meta, keys::revision(SPACE, NS), nonsense()),
            (Table::Meta, keys::horizon(SPACE, NS), nonsense()),
            (Table::Meta, keys::clock(SPACE), nonsense()),
            (Table::Meta, keys::dropped(SPACE), nonsense()),
            (Table::Meta, keys::marks(SPACE, NS), nonsense()),
        ];
        for record in bad {
            let found = check(&[&good[..], std::slice::from_ref(&record)].concat());
            assert!(found.is_err(), "{record:?}");
        }
        assert!(Contents::default().check(Bytes::from_static(b"no block")).is_err());
    }
}
