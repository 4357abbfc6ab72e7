//! What the tables say of a key of a strong namespace, as bytes.
//!
//! A row is `version | kind | create | mod | version of the key | lease | value`, the four numbers as 64
//! bits, big endian. There are two kinds: a live value, and a tombstone, which a delete leaves until the
//! floor of the namespace's history has passed it; of that only the second number is set. For users a
//! tombstone is as no row. A kind that is not known here was written by a newer node, and is refused by name.

use bytes::{BufMut, Bytes};

use crate::codec::{CodecError, Reader, versioned};

/// Version of this encoding: the first had a revision and a value alone, the second no tombstones.
const VERSION: u8 = 3;
const LIVE: u8 = 1;
const TOMBSTONE: u8 = 2;
const WHAT: &str = "row of a key";
/// Bytes of a row before its value.
pub(crate) const HEAD_BYTES: usize = 34;

/// A key that has a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Live {
    /// The revision that gave the key a value when it had none.
    pub(crate) create: u64,
    /// The revision of this value.
    pub(crate) revision: u64,
    /// Writes since the key was created, that one included.
    pub(crate) version: u64,
    /// The lease that it ends with; 0 is none.
    pub(crate) lease: u64,
    /// The value.
    pub(crate) value: Bytes,
}

impl Live {
    /// The row after a write at `revision`, given the row before.
    pub(crate) fn after(before: Option<&Self>, revision: u64, value: Bytes) -> Self {
        let (create, version) = before.map_or((revision, 0), |row| (row.create, row.version));
        Self { create, revision, version: version.saturating_add(1), lease: 0, value }
    }

    /// What must hold of every row.
    fn is_sound(&self) -> bool {
        1 <= self.create && self.create <= self.revision && 1 <= self.version
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        assert!(self.is_sound(), "a row is written as it may be: {self:?}");
        let mut out = versioned(VERSION, 33 + self.value.len());
        out.put_u8(LIVE);
        [self.create, self.revision, self.version, self.lease].into_iter().for_each(|n| out.put_u64(n));
        out.put_slice(&self.value);
        out
    }

    /// The row of a key that has a value; none for a tombstone.
    pub(crate) fn of_row(bytes: Bytes) -> Result<Option<Self>, CodecError> {
        match Row::decode(bytes)? {
            Row::Live(live) => Ok(Some(live)),
            Row::Tombstone { .. } => Ok(None),
        }
    }
}

/// What stands in a key's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Row {
    /// A value.
    Live(Live),
    /// It was deleted.
    Tombstone {
        /// By this revision.
        revision: u64,
    },
}

impl Row {
    /// The revision that wrote it.
    pub(crate) fn revision(&self) -> u64 {
        match self {
            Self::Live(live) => live.revision,
            Self::Tombstone { revision } => *revision,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let revision = match self {
            Self::Live(live) => return live.encode(),
            Self::Tombstone { revision } => *revision,
        };
        assert!(revision >= 1, "a tombstone is written by a revision");
        let mut out = versioned(VERSION, HEAD_BYTES);
        out.put_u8(TOMBSTONE);
        [0, revision, 0, 0].into_iter().for_each(|n| out.put_u64(n));
        out
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(bytes, WHAT, VERSION)?;
        let kind = reader.u8()?;
        if kind != LIVE && kind != TOMBSTONE {
            return Err(reader.newer("kind", kind));
        }
        let (create, revision, version, lease) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
        let invalid = || {
            let why = format!("created at {create}, changed at {revision}, version {version}, lease {lease}");
            CodecError::Invalid { what: WHAT, why }
        };
        if kind == TOMBSTONE {
            let sound = (create, version, lease) == (0, 0, 0) && revision >= 1;
            reader.end()?;
            return if sound { Ok(Self::Tombstone { revision }) } else { Err(invalid()) };
        }
        let live = Live { create, revision, version, lease, value: reader.rest() };
        if live.is_sound() { Ok(Self::Live(live)) } else { Err(invalid()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_survive(numbers: [u32; 4], value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let [create, more, version, lease] = numbers.map(u64::from);
            let (create, version) = (create + 1, version + 1);
            let row = Live { create, revision: create + more, version, lease, value: value.into() };
            prop_assert_eq!(Row::decode(row.encode().into()).unwrap(), Row::Live(row));
        }

        #[test]
        fn bad_rows_are_errors(mut bytes in proptest::collection::vec(any::<u8>(), 0..60), kind in 0..4_u8) {
            if kind > 0 && bytes.len() > 1 {
                (bytes[0], bytes[1]) = (VERSION, kind);
            }
            if let Ok(row) = Row::decode(bytes.clone().into()) {
                prop_assert_eq!(row.encode(), bytes);
            }
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let row = Live::after(None, 7, Bytes::from_static(b"v"));
        let changed = |at: usize, byte: u8| {
            let mut bytes = row.encode();
            bytes[at] = byte;
            Row::decode(bytes.into()).unwrap_err()
        };
        for older in [1, 2] {
            let found = u64::from(older);
            assert_eq!(changed(0, older), CodecError::Unknown { what: WHAT, field: "version", found });
        }
        assert_eq!(changed(0, 4), CodecError::Newer { what: WHAT, field: "version", found: 4 });
        let newer = changed(1, 3);
        assert_eq!(newer, CodecError::Newer { what: WHAT, field: "kind", found: 3 });
        assert!(newer.to_string().contains("upgrade this node"), "{newer}");
        assert!(matches!(changed(17, 1), CodecError::Invalid { .. }), "created after it was changed");
    }

    #[test]
    fn a_tombstone_is_as_no_row() {
        let row = Row::Tombstone { revision: 9 };
        let bytes = Bytes::from(row.encode());
        assert_eq!((bytes.len(), row.revision()), (HEAD_BYTES, 9));
        assert_eq!(Row::decode(bytes.clone()), Ok(row));
        assert_eq!(Live::of_row(bytes.clone()), Ok(None));
        let longer = [&bytes[..], b"v"].concat();
        assert_eq!(Row::decode(longer.into()), Err(CodecError::Trailing { what: WHAT, bytes: 1 }));
        assert!(matches!(
            Row::decode([&bytes[..9], &[1], &bytes[10..]].concat().into()),
            Err(CodecError::Invalid { .. })
        ));
    }

    #[test]
    fn a_write_counts_from_the_creation_on() {
        let first = Live::after(None, 5, Bytes::new());
        let second = Live::after(Some(&first), 9, Bytes::new());
        assert_eq!((first.create, first.revision, first.version), (5, 5, 1));
        assert_eq!((second.create, second.revision, second.version, second.lease), (5, 9, 2, 0));
    }
}
