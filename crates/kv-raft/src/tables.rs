//! Where a group's state lives: tables of kv-storage, keyed by [`Space`], and a [`Stage`] on which entries
//! are applied before their changes reach the tables as one batch. A stage shows its own changes, so that
//! entries of one step see each other.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_storage::journal::JournalOp;
use kv_storage::{Batch, CopyRow, Storage, StorageError, TableId};
use kv_types::{ClientId, GroupId, NamespaceId};

use crate::codec::CodecError;
use crate::limits::ROWS_AT_ONCE;
use crate::machine_error::MachineError;

/// The tables of this crate: 16 to 31 belong to it. The numbers are on disk and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// One row per group: how far it was applied, and the membership.
    Applied,
    /// One row: the catalogue.
    Catalogue,
    /// Values by namespace and key.
    Data,
    /// The group's clock, the revision and the horizon of sessions of each namespace, and which namespaces
    /// were dropped.
    Meta,
    /// Sessions by namespace and client.
    Sessions,
    /// Keys that have a tombstone, by namespace and the tombstone's revision.
    Tombstones,
    /// A journal: the history of each namespace. It has streams where the others have rows; in a snapshot an
    /// entry is a record as well, under the name of its stream and its revision.
    History,
}

impl Table {
    /// Every table with rows: together with the history they are a group's state.
    pub(crate) const ALL: [Self; 6] =
        [Self::Applied, Self::Catalogue, Self::Data, Self::Meta, Self::Sessions, Self::Tombstones];

    /// Its number in storage.
    pub(crate) const fn id(self) -> TableId {
        TableId::new(match self {
            Self::Applied => 16,
            Self::Catalogue => 17,
            Self::Data => 18,
            Self::Meta => 19,
            Self::Sessions => 20,
            Self::Tombstones => 21,
            Self::History => 22,
        })
    }

    /// The table of that number.
    pub(crate) fn of(number: u16) -> Option<Self> {
        Self::ALL.into_iter().chain([Self::History]).find(|table| table.id().get() == number)
    }
}

/// Where the rows of a group's state stand: every key in every table of this crate begins with it, so that a
/// whole state is a few prefixes and the next one can be written beside the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Space {
    /// The group.
    pub(crate) group: GroupId,
    /// Which of its states: a replacement is written under the next one. A node's own business, never
    /// compared with others'.
    pub(crate) generation: u64,
}

impl Space {
    /// The space of a group whose state was never replaced.
    pub(crate) const fn first(group: GroupId) -> Self {
        Self { group, generation: 1 }
    }

    /// The first key behind every key of this space; none behind the last space of all.
    fn end(self) -> Option<Vec<u8>> {
        let next = match self.generation.checked_add(1) {
            Some(generation) => Self { generation, ..self },
            None => Self { group: GroupId(self.group.0.checked_add(1)?), generation: 0 },
        };
        Some(keys::of_space(next))
    }
}

/// The keys of a group's rows. All integers are big endian, so that keys sort by what they mean.
///
/// A data key is `space | namespace | user key, escaped | 0 1`, where a zero byte within the user key is
/// written `0 255`. Keys sort by namespace and user key, and none is a prefix of another: a suffix (a
/// revision) can follow.
pub(crate) mod keys {
    use super::*;

    /// Bytes of a space before a key.
    pub(crate) const SPACE_BYTES: usize = 12;
    const ZERO: u8 = 0;
    const ESCAPED: u8 = 255;
    const TERMINATOR: [u8; 2] = [ZERO, 1];

    /// The prefix of every row of a space, and the key of its single rows.
    pub(crate) fn of_space(space: Space) -> Vec<u8> {
        with(space, &[], 0)
    }

    fn with(space: Space, rest: &[&[u8]], more: usize) -> Vec<u8> {
        let bytes = rest.iter().map(|part| part.len()).sum::<usize>();
        let mut key = Vec::with_capacity(SPACE_BYTES + bytes + more);
        key.extend_from_slice(&space.group.0.to_be_bytes());
        key.extend_from_slice(&space.generation.to_be_bytes());
        rest.iter().for_each(|part| key.extend_from_slice(part));
        key
    }

    /// The prefix of every value of a namespace.
    pub(crate) fn of_namespace(space: Space, namespace: NamespaceId) -> Vec<u8> {
        with(space, &[&namespace.0.to_be_bytes()], 0)
    }

    /// The namespace of a stream of a space; none for those of other spaces.
    pub(crate) fn of_stream(space: Space, stream: &[u8]) -> Option<NamespaceId> {
        let namespace = stream.strip_prefix(of_space(space).as_slice())?;
        namespace.try_into().ok().map(|namespace| NamespaceId(u64::from_be_bytes(namespace)))
    }

    /// A value.
    pub(crate) fn data(space: Space, namespace: NamespaceId, key: &[u8]) -> Vec<u8> {
        let mut place = with(space, &[&namespace.0.to_be_bytes()], key.len() + TERMINATOR.len());
        for byte in key {
            place.push(*byte);
            if *byte == ZERO {
                place.push(ESCAPED);
            }
        }
        place.extend_from_slice(&TERMINATOR);
        place
    }

    /// Namespace and user key of a data key.
    pub(crate) fn of_data(place: &[u8]) -> Result<(NamespaceId, Vec<u8>), CodecError> {
        const WHAT: &str = "key of a value";
        let truncated = || CodecError::Truncated { what: WHAT };
        let (_, place) = place.split_at_checked(SPACE_BYTES).ok_or_else(truncated)?;
        let (namespace, escaped) = place.split_first_chunk::<8>().ok_or_else(truncated)?;
        let mut key = Vec::with_capacity(escaped.len());
        let mut rest = escaped.iter().copied();
        loop {
            match rest.next().ok_or_else(truncated)? {
                ZERO => match rest.next().ok_or_else(truncated)? {
                    ESCAPED => key.push(ZERO),
                    1 if rest.len() == 0 => return Ok((NamespaceId(u64::from_be_bytes(*namespace)), key)),
                    1 => return Err(CodecError::Trailing { what: WHAT, bytes: rest.len() }),
                    found => {
                        return Err(CodecError::Unknown { what: WHAT, field: "escape", found: found.into() });
                    }
                },
                byte => key.push(byte),
            }
        }
    }

    /// The clock.
    pub(crate) fn clock(space: Space) -> Vec<u8> {
        with(space, &[&[0]], 0)
    }

    /// Whether that is the key of the clock.
    pub(crate) fn is_clock(place: &[u8]) -> bool {
        place.get(SPACE_BYTES..) == Some(&[0])
    }

    /// A namespace's revision.
    pub(crate) fn revision(space: Space, namespace: NamespaceId) -> Vec<u8> {
        with(space, &[&[1], &namespace.0.to_be_bytes()], 0)
    }

    /// The namespace of a row with this number beside others; none for those of other numbers.
    fn of_beside(number: u8, what: &'static str, place: &[u8]) -> Result<Option<NamespaceId>, CodecError> {
        match place.get(SPACE_BYTES..).and_then(|place| place.split_first()) {
            Some((found, namespace)) if *found == number => {
                let namespace = namespace.try_into().map_err(|_| CodecError::Truncated { what })?;
                Ok(Some(NamespaceId(u64::from_be_bytes(namespace))))
            }
            _ => Ok(None),
        }
    }

    /// The namespace of a revision; none for other rows beside it.
    pub(crate) fn of_revision(place: &[u8]) -> Result<Option<NamespaceId>, CodecError> {
        of_beside(1, "key of a revision", place)
    }

    /// The namespace of the marks of a history; none for other rows beside them.
    pub(crate) fn of_marks(place: &[u8]) -> Result<Option<NamespaceId>, CodecError> {
        of_beside(3, "key of the marks of a history", place)
    }

    /// The marks of a namespace's history.
    pub(crate) fn marks(space: Space, namespace: NamespaceId) -> Vec<u8> {
        with(space, &[&[3], &namespace.0.to_be_bytes()], 0)
    }

    /// The namespaces that were dropped.
    pub(crate) fn dropped(space: Space) -> Vec<u8> {
        with(space, &[&[4]], 0)
    }

    /// Whether that is the key of the namespaces that were dropped.
    pub(crate) fn is_dropped(place: &[u8]) -> bool {
        place.get(SPACE_BYTES..) == Some(&[4])
    }

    /// Namespace and number behind it, of a tombstone or of an entry of a history.
    fn of_numbered(what: &'static str, place: &[u8]) -> Result<(NamespaceId, u64), CodecError> {
        let truncated = || CodecError::Truncated { what };
        let (_, place) = place.split_at_checked(SPACE_BYTES).ok_or_else(truncated)?;
        let (namespace, number) = place.split_first_chunk::<8>().ok_or_else(truncated)?;
        let number = number.try_into().map_err(|_| truncated())?;
        Ok((NamespaceId(u64::from_be_bytes(*namespace)), u64::from_be_bytes(number)))
    }

    /// A tombstone, by the revision that it is of.
    pub(crate) fn tombstone(space: Space, namespace: NamespaceId, revision: u64) -> Vec<u8> {
        with(space, &[&namespace.0.to_be_bytes(), &revision.to_be_bytes()], 0)
    }

    /// Namespace and revision of a tombstone.
    pub(crate) fn of_tombstone(place: &[u8]) -> Result<(NamespaceId, u64), CodecError> {
        of_numbered("key of a tombstone", place)
    }

    /// An entry of a history, as a record.
    pub(crate) fn entry(space: Space, namespace: NamespaceId, revision: u64) -> Vec<u8> {
        with(space, &[&namespace.0.to_be_bytes(), &revision.to_be_bytes()], 0)
    }

    /// Namespace and revision of an entry.
    pub(crate) fn of_entry(place: &[u8]) -> Result<(NamespaceId, u64), CodecError> {
        of_numbered("key of an entry", place)
    }

    /// A namespace's horizon of sessions.
    pub(crate) fn horizon(space: Space, namespace: NamespaceId) -> Vec<u8> {
        with(space, &[&[2], &namespace.0.to_be_bytes()], 0)
    }

    /// The namespace of a horizon; none for other rows beside it.
    pub(crate) fn of_horizon(place: &[u8]) -> Result<Option<NamespaceId>, CodecError> {
        of_beside(2, "key of a horizon", place)
    }

    /// A client's session with a namespace.
    pub(crate) fn session(space: Space, (namespace, client): (NamespaceId, ClientId)) -> Vec<u8> {
        with(space, &[&namespace.0.to_be_bytes(), &client.0.to_be_bytes()], 0)
    }

    /// Namespace and client of a session.
    pub(crate) fn of_session(place: &[u8]) -> Result<(NamespaceId, ClientId), CodecError> {
        let truncated = || CodecError::Truncated { what: "key of a session" };
        let (_, place) = place.split_at_checked(SPACE_BYTES).ok_or_else(truncated)?;
        let (namespace, client) = place.split_first_chunk::<8>().ok_or_else(truncated)?;
        let client = client.try_into().map_err(|_| truncated())?;
        Ok((NamespaceId(u64::from_be_bytes(*namespace)), ClientId(u128::from_be_bytes(client))))
    }
}

/// Rows of a table from a key (inclusive) to another (exclusive).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) table: Table,
    pub(crate) from: Vec<u8>,
    pub(crate) to: Vec<u8>,
}

/// Changes that are not in the tables yet, above the tables.
pub(crate) struct Stage<'a> {
    storage: &'a Storage,
    space: Space,
    /// What the tables have of some keys.
    found: Rows,
    changes: Rows,
    /// What is appended to histories, and given up of them, in order.
    history: Vec<JournalOp>,
    bytes: usize,
    /// Bytes of histories that go with their namespaces.
    freed: u64,
}

/// Rows by table and key; none where there is no such row.
pub(crate) type Rows = BTreeMap<(Table, Vec<u8>), Option<Bytes>>;

impl<'a> Stage<'a> {
    pub(crate) fn new(storage: &'a Storage, space: Space) -> Self {
        Self {
            storage,
            space,
            found: Rows::new(),
            changes: Rows::new(),
            history: Vec::new(),
            bytes: 0,
            freed: 0,
        }
    }

    /// Takes rows that were read before, so that they need not be read one by one.
    pub(crate) fn with_found(self, found: Rows) -> Self {
        Self { found, ..self }
    }

    pub(crate) fn space(&self) -> Space {
        self.space
    }

    /// Bytes that were staged or are expected, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts bytes that will be staged at the end.
    pub(crate) fn expect(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    /// How many rows are changed.
    #[cfg(test)]
    pub(crate) fn changes(&self, table: Table) -> usize {
        self.changes.keys().filter(|(of, _)| *of == table).count()
    }

    pub(crate) fn get(&self, table: Table, key: Vec<u8>) -> Result<Option<Bytes>, StorageError> {
        let place = (table, key);
        match self.changes.get(&place).or_else(|| self.found.get(&place)) {
            Some(row) => Ok(row.clone()),
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

    /// Appends an entry to the history of a namespace.
    pub(crate) fn append(&mut self, namespace: NamespaceId, revision: u64, content: Bytes) {
        self.bytes += keys::SPACE_BYTES + content.len();
        let stream = keys::of_namespace(self.space, namespace).into();
        self.history.push(JournalOp::Append { stream, id: revision, content });
    }

    /// Gives up the entries of a namespace up to a revision.
    pub(crate) fn trim(&mut self, namespace: NamespaceId, floor: u64) {
        let stream = keys::of_namespace(self.space, namespace).into();
        self.history.push(JournalOp::Trim { stream, below: floor + 1 });
    }

    /// The whole history of a namespace goes, which has so many bytes.
    pub(crate) fn frees(&mut self, bytes: u64) {
        self.freed = self.freed.saturating_add(bytes);
    }

    /// Bytes of the histories that go.
    pub(crate) fn freed(&self) -> u64 {
        self.freed
    }

    /// The rows that are changed.
    pub(crate) fn changed(&self) -> impl Iterator<Item = (Table, &[u8])> {
        self.changes.keys().map(|(table, key)| (*table, key.as_slice()))
    }

    /// All changes as one batch.
    pub(crate) fn into_batch(self) -> Batch {
        let mut batch = Batch::new();
        for op in self.history {
            match op {
                JournalOp::Append { stream, id, content } => {
                    batch.push_append(Table::History.id(), &stream, id, content);
                }
                JournalOp::Trim { stream, below } => batch.push_trim(Table::History.id(), &stream, below),
            }
        }
        for ((table, key), value) in self.changes {
            match value {
                Some(value) => batch.push_put(table.id(), key, value),
                None => batch.push_delete(table.id(), key),
            }
        }
        batch
    }
}

/// A record of a snapshot that is an entry of a history.
pub(crate) fn entry_of((_, key, content): CopyRow) -> Result<(NamespaceId, u64, JournalOp), CodecError> {
    let (namespace, id) = keys::of_entry(&key)?;
    let stream = key.slice(..key.len() - size_of::<u64>());
    let content = content.unwrap_or_default();
    Ok((namespace, id, JournalOp::Append { stream, id, content }))
}

/// Calls `visit` with every row of a space's table, in order. For the start of a node; pages keep the memory
/// small.
pub(crate) fn for_each_row<E: From<StorageError>>(
    storage: &Storage,
    space: Space,
    table: Table,
    mut visit: impl FnMut(&[u8], Bytes) -> Result<(), E>,
) -> Result<(), E> {
    let mut from = keys::of_space(space);
    let to = space.end();
    loop {
        let page = storage.scan(table.id(), &from, to.as_deref(), ROWS_AT_ONCE)?;
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

/// How many rows of a space are of a namespace, each stream of the history counted as one. Walks whole
/// tables.
pub(crate) fn rows_of(
    storage: &Storage,
    space: Space,
    namespace: NamespaceId,
) -> Result<usize, MachineError> {
    let mut found = 0;
    let id = namespace.0.to_be_bytes();
    for table in [Table::Data, Table::Sessions, Table::Tombstones] {
        for_each_row(storage, space, table, |key, _| {
            found += usize::from(key.get(keys::SPACE_BYTES..).is_some_and(|rest| rest.starts_with(&id)));
            Ok::<(), MachineError>(())
        })?;
    }
    for_each_row(storage, space, Table::Meta, |key, _| {
        let of = keys::of_revision(key)?.or(keys::of_marks(key)?).or(keys::of_horizon(key)?);
        found += usize::from(of == Some(namespace));
        Ok::<(), MachineError>(())
    })?;
    let next = NamespaceId(namespace.0.saturating_add(1));
    let (from, to) = (keys::of_namespace(space, namespace), keys::of_namespace(space, next));
    Ok(found + storage.streams(Table::History.id(), &from, &to).len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Keys that are hard to tell apart: short, of few different bytes, the least and the greatest among
    /// them.
    fn any_key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0), Just(1), Just(254), Just(255), any::<u8>()], 1..6)
    }

    fn any_space() -> impl Strategy<Value = Space> {
        let number = prop_oneof![0..3_u64, Just(u64::MAX)];
        (0..3_u32, number).prop_map(|(group, generation)| Space { group: GroupId(group), generation })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn data_keys_sort_by_meaning_and_none_is_a_prefix_of_another(
            left in (any_space(), 0..3_u64, any_key()), right in (any_space(), 0..3_u64, any_key()),
        ) {
            let encoded = |(space, namespace, key): &(Space, u64, Vec<u8>)| keys::data(*space, NamespaceId(*namespace), key);
            let (a, b) = (encoded(&left), encoded(&right));
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
            prop_assert_eq!(a.starts_with(&b), left == right);
            prop_assert!(a.starts_with(&keys::of_namespace(left.0, NamespaceId(left.1))));
            prop_assert!(keys::of_space(left.0) < a);
            prop_assert!(left.0.end().is_none_or(|end| a < end));
            prop_assert_eq!(keys::of_data(&a).unwrap(), (NamespaceId(left.1), left.2.clone()));
            // What follows a key stays between it and the next key.
            if left < right {
                prop_assert!([&a[..], &[255; 16]].concat() < b);
            }
        }

        #[test]
        fn bad_data_keys_are_errors(place in proptest::collection::vec(prop_oneof![0..3_u8, any::<u8>()], 0..40)) {
            if let Ok((namespace, key)) = keys::of_data(&place) {
                let space = Space { group: GroupId(0), generation: 0 };
                prop_assert_eq!(&keys::data(space, namespace, &key)[keys::SPACE_BYTES..], &place[keys::SPACE_BYTES..]);
            }
        }
    }

    #[test]
    fn cut_keys_are_named() {
        let place = keys::data(Space::first(GroupId(1)), NamespaceId(7), b"a\0b");
        for cut in 0..place.len() {
            let error = keys::of_data(&place[..cut]).unwrap_err();
            assert_eq!(error, CodecError::Truncated { what: "key of a value" }, "cut at {cut}");
        }
        let longer = [&place[..], &[0]].concat();
        assert_eq!(keys::of_data(&longer), Err(CodecError::Trailing { what: "key of a value", bytes: 1 }));
    }
}
