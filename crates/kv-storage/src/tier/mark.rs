//! The row in which a tier on disk keeps its mark: in storage's own table, with a version and a checksum.

use bytes::Bytes;

use super::{TierError, TierMark};
use crate::codec::Cursor;

/// The key of the row. Scans of callers start at table 16 and never meet it.
pub(super) const KEY: &[u8] = &[0, 0, b'm'];
const VERSION: u8 = 1;

pub(super) fn encode(mark: TierMark) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&mark.id.to_le_bytes());
    out.extend_from_slice(&mark.drained.to_le_bytes());
    out.extend_from_slice(&mark.batch.to_le_bytes());
    let sum = crc32c::crc32c(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

/// The mark in a row that was read; none in an empty tier.
pub(super) fn decode(row: Option<Bytes>) -> Result<Option<TierMark>, TierError> {
    let Some(bytes) = row else {
        return Ok(None);
    };
    let damaged = || TierError::Damaged("the mark of the tier cannot be read".into());
    let mut c = Cursor::new(&bytes);
    let version = c.u8().ok_or_else(damaged)?;
    let id = c.u128().ok_or_else(damaged)?;
    let (drained, batch) = (c.u64().ok_or_else(damaged)?, c.u64().ok_or_else(damaged)?);
    let body = bytes.get(..c.position()).ok_or_else(damaged)?;
    if c.u32() != Some(crc32c::crc32c(body)) || version != VERSION || !c.is_empty() {
        return Err(damaged());
    }
    Ok(Some(TierMark { id, drained, batch }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_and_no_other_bytes_are_taken_for_one() {
        let mark = TierMark { id: 7 << 70, drained: 5, batch: u64::MAX };
        let encoded = encode(mark);
        assert_eq!(decode(Some(encoded.clone().into())), Ok(Some(mark)));
        assert_eq!(decode(None), Ok(None));
        for at in 0..encoded.len() {
            let mut flipped = encoded.clone();
            flipped[at] ^= 1;
            assert!(matches!(decode(Some(flipped.into())), Err(TierError::Damaged(_))), "byte {at}");
            assert!(decode(Some(encoded[..at].to_vec().into())).is_err());
        }
        let mut newer = encoded[..encoded.len() - 4].to_vec();
        newer[0] = VERSION + 1;
        newer.extend_from_slice(&crc32c::crc32c(&newer).to_le_bytes());
        assert!(matches!(decode(Some(newer.into())), Err(TierError::Damaged(_))));
    }
}
