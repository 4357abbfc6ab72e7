//! Where a group's state lives: tables of kv-storage, keyed by group, and a [`Stage`] on which entries are applied before
//! their changes reach the tables as one batch. A stage shows its own changes, so that entries of one step see each other.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_storage::{Batch, Storage, StorageError, TableId};
use kv_types::{GroupId, NamespaceId};

use crate::config::limits::ROWS_AT_ONCE;

/// The tables of this crate: 16 to 31 belong to it. Numbers are on disk for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// One row per group: how far it was applied, and the membership.
    Applied,
    /// One row: the catalogue.
    Catalogue,
    /// Values by namespace and key.
    Data,
    /// The group's clock, and the revision of each namespace.
    Meta,
    /// Results by client and seq.
    Sessions,
}

impl Table {
    /// Every table: together they are a group's state.
    pub(crate) const ALL: [Self; 5] =
        [Self::Applied, Self::Catalogue, Self::Data, Self::Meta, Self::Sessions];

    /// Its number in storage.
    pub(crate) const fn id(self) -> TableId {
        TableId::new(match self {
            Self::Applied => 16,
            Self::Catalogue => 17,
            Self::Data => 18,
            Self::Meta => 19,
            Self::Sessions => 20,
        })
    }

    /// The table of that number.
    pub(crate) fn of(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.id().get() == number)
    }
}

/// The keys of a group's rows: all begin with the group, so that a snapshot is a few prefixes.
pub(crate) mod keys {
    use super::*;

    /// The prefix of every row of a group, and the key of its single rows.
    pub(crate) fn of_group(group: GroupId) -> Vec<u8> {
        group.0.to_be_bytes().to_vec()
    }

    /// A value.
    pub(crate) fn data(group: GroupId, namespace: NamespaceId, key: &[u8]) -> Vec<u8> {
        [&group.0.to_be_bytes()[..], &namespace.0.to_be_bytes(), key].concat()
    }

    /// The clock.
    pub(crate) fn clock(group: GroupId) -> Vec<u8> {
        [&group.0.to_be_bytes()[..], &[0]].concat()
    }

    /// A namespace's revision.
    pub(crate) fn revision(group: GroupId, namespace: NamespaceId) -> Vec<u8> {
        [&group.0.to_be_bytes()[..], &[1], &namespace.0.to_be_bytes()].concat()
    }

    /// A result.
    pub(crate) fn result(group: GroupId, client: u128, seq: u64) -> Vec<u8> {
        [&group.0.to_be_bytes()[..], &client.to_be_bytes(), &seq.to_be_bytes()].concat()
    }
}

/// Changes that are not in the tables yet, above the tables.
pub(crate) struct Stage<'a> {
    storage: &'a Storage,
    group: GroupId,
    changes: BTreeMap<(Table, Vec<u8>), Option<Bytes>>,
    bytes: usize,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(storage: &'a Storage, group: GroupId) -> Self {
        Self { storage, group, changes: BTreeMap::new(), bytes: 0 }
    }

    pub(crate) fn group(&self) -> GroupId {
        self.group
    }

    /// Bytes that were staged, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn get(&self, table: Table, key: Vec<u8>) -> Result<Option<Bytes>, StorageError> {
        let place = (table, key);
        match self.changes.get(&place) {
            Some(changed) => Ok(changed.clone()),
            None => Ok(self.storage.get(table.id(), &place.1)?.map(|row| row.value)),
        }
    }

    pub(crate) fn put(&mut self, table: Table, key: Vec<u8>, value: impl Into<Bytes>) {
        let value = value.into();
        self.bytes += key.len() + value.len();
        self.changes.insert((table, key), Some(value));
    }

    pub(crate) fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.bytes += key.len();
        self.changes.insert((table, key), None);
    }

    /// All changes as one batch.
    pub(crate) fn into_batch(self) -> Batch {
        let mut batch = Batch::new();
        for ((table, key), value) in self.changes {
            match value {
                Some(value) => batch.push_put(table.id(), key, value),
                None => batch.push_delete(table.id(), key),
            }
        }
        batch
    }
}

/// Calls `visit` with every row of a group's table, in order. For the start of a node; pages keep the memory small.
pub(crate) fn for_each_row<E: From<StorageError>>(
    storage: &Storage,
    group: GroupId,
    table: Table,
    mut visit: impl FnMut(&[u8], Bytes) -> Result<(), E>,
) -> Result<(), E> {
    let mut from = keys::of_group(group);
    let to = keys::of_group(GroupId(group.0.saturating_add(1)));
    loop {
        let page = storage.scan(table.id(), &from, Some(&to), ROWS_AT_ONCE)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        // The least key after `last`.
        from = [last.as_ref(), &[0]].concat();
        let full = page.len() >= ROWS_AT_ONCE;
        for (key, row) in page {
            visit(&key, row.value)?;
        }
        if !full {
            return Ok(());
        }
    }
}
