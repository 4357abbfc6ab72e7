//! What the tables say of a key of a strong namespace, as bytes.
//!
//! A row is `version | kind | create | mod | version of the key | lease | value`, the four numbers as 64
//! bits, big endian. There is one kind today, a live value. The second is given away already: a delete will
//! leave a tombstone once there is history to be compacted. A kind that is not known here was written by a
//! newer node, and is refused by name.

use bytes::{BufMut, Bytes};

use crate::codec::{CodecError, Reader, versioned};

/// Version of this encoding: the first had a revision and a value alone.
const VERSION: u8 = 2;
const LIVE: u8 = 1;
/// Given away, written by nothing yet.
#[cfg(test)]
const TOMBSTONE: u8 = 2;
const WHAT: &str = "row of a key";

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

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(bytes, WHAT, VERSION)?;
        match reader.u8()? {
            LIVE => {}
            found => return Err(reader.newer("kind", found)),
        }
        let (create, revision, version, lease) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
        let row = Self { create, revision, version, lease, value: reader.rest() };
        if !row.is_sound() {
            let why = format!("created at {create}, changed at {revision}, version {version}");
            return Err(CodecError::Invalid { what: WHAT, why });
        }
        Ok(row)
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
            prop_assert_eq!(Live::decode(row.encode().into()).unwrap(), row);
        }

        #[test]
        fn bad_rows_are_errors(mut bytes in proptest::collection::vec(any::<u8>(), 0..60), right: bool) {
            if right && bytes.len() > 1 {
                (bytes[0], bytes[1]) = (VERSION, LIVE);
            }
            if let Ok(row) = Live::decode(bytes.clone().into()) {
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
            Live::decode(bytes.into()).unwrap_err()
        };
        assert_eq!(changed(0, 1), CodecError::Unknown { what: WHAT, field: "version", found: 1 });
        assert_eq!(changed(0, 3), CodecError::Newer { what: WHAT, field: "version", found: 3 });
        let newer = changed(1, TOMBSTONE);
        assert_eq!(newer, CodecError::Newer { what: WHAT, field: "kind", found: 2 });
        assert!(newer.to_string().contains("upgrade this node"), "{newer}");
        assert!(matches!(changed(17, 1), CodecError::Invalid { .. }), "created after it was changed");
    }

    #[test]
    fn a_write_counts_from_the_creation_on() {
        let first = Live::after(None, 5, Bytes::new());
        let second = Live::after(Some(&first), 9, Bytes::new());
        assert_eq!((first.create, first.revision, first.version), (5, 5, 1));
        assert_eq!((second.create, second.revision, second.version, second.lease), (5, 9, 2, 0));
    }
}
