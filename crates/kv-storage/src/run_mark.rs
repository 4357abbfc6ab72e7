//! The rows in which a tier keeps how far each journal was when a batch was drained: in storage's own table,
//! in the same batch as the rows. A disk that loses what it had synced can cut the tail of a journal; the
//! rows show it at the next start.

use bytes::Bytes;

use crate::{
    batch::{TableId, after},
    codec::Cursor,
    error::StorageError,
    limits,
    tier::{Tier, TierError},
};

/// What the keys begin with; the number of the journal's table follows. Callers' tables begin at 16 and never
/// meet them.
const PREFIX: [u8; 3] = [0, 0, b'j'];
const END: [u8; 3] = [0, 0, b'k'];
const VERSION: u8 = 1;

/// The row which says that a journal has its runs up to `run`.
pub(crate) fn row(table: TableId, run: u64) -> (Bytes, Option<Bytes>) {
    let key = Bytes::from([PREFIX.as_slice(), &table.get().to_be_bytes()].concat());
    let mut value = vec![VERSION];
    value.extend_from_slice(&run.to_le_bytes());
    let sum = crc32c::crc32c(&value);
    value.extend_from_slice(&sum.to_le_bytes());
    let value = Bytes::from(value);
    assert_eq!(decode(&key, &value), Some((table, run)), "a run mark reads as it was meant");
    (key, Some(value))
}

fn decode(key: &[u8], value: &[u8]) -> Option<(TableId, u64)> {
    let table: [u8; 2] = key.strip_prefix(&PREFIX)?.try_into().ok()?;
    let mut c = Cursor::new(value);
    (c.u8()? == VERSION).then_some(())?;
    let run = c.u64()?;
    let body = value.get(..c.position())?;
    (c.u32()? == crc32c::crc32c(body) && c.is_empty()).then_some(())?;
    Some((TableId::new(u16::from_be_bytes(table)), run))
}

/// All of these rows of a tier.
pub(crate) fn rows(tier: &dyn Tier) -> Result<Vec<(Bytes, Bytes)>, TierError> {
    let (mut found, mut from) = (Vec::new(), Bytes::from_static(&PREFIX));
    loop {
        let (rows, bytes) = (limits::TIER_CHUNK_ROWS, limits::TIER_CHUNK_BYTES);
        let chunk = tier.scan(&from, Some(&END), rows, bytes)?;
        found.extend(chunk.rows);
        match found.last() {
            Some((last, _)) if chunk.more => from = after(last),
            _ => return Ok(found),
        }
    }
}

/// What these rows say.
pub(crate) fn read(rows: &[(Bytes, Bytes)]) -> Result<Vec<(TableId, u64)>, StorageError> {
    let unknown = || StorageError::CorruptFile {
        file: "the lower tier".into(),
        what: "it says how far a journal was in a format that this release does not know: start the release \
               that wrote it, or this node with an empty data directory"
            .into(),
    };
    rows.iter().map(|(key, value)| decode(key, value).ok_or_else(unknown)).collect()
}

#[cfg(test)]
mod tests {
    use super::{rows as rows_of, *};
    use crate::tier::{MemTiers, TierMark, TierSource};

    #[test]
    fn marks_are_read_back_and_no_other_bytes_are_taken_for_one() {
        let tier = MemTiers::new().open("/data".as_ref()).unwrap();
        let tables = 0..2 * limits::TIER_CHUNK_ROWS as u16 + 1;
        let rows: Vec<_> = tables.clone().map(|n| row(TableId::new(n), u64::from(n) << 40)).collect();
        tier.apply(&rows, TierMark::default()).unwrap();
        let wanted: Vec<_> = tables.map(|n| (TableId::new(n), u64::from(n) << 40)).collect();
        let read = || read(&rows_of(&*tier).unwrap());
        assert_eq!(read().unwrap(), wanted);
        let (key, value) = rows[1].clone();
        let value = value.unwrap();
        for at in 0..value.len() {
            let mut other = value.to_vec();
            other[at] ^= 1;
            tier.apply(&[(key.clone(), Some(other.into()))], TierMark::default()).unwrap();
            let refused = read().unwrap_err().to_string();
            assert!(refused.contains("a format that this release does not know"), "{refused}");
        }
        assert_eq!(decode(&key, &value[..value.len() - 1]), None);
        assert_eq!(decode(&key[..4], &value), None);
    }
}
