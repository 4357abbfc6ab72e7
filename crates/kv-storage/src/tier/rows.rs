//! Reading the ordered map of a library: what the tiers have in common, whichever library keeps their rows.

use std::ops::Bound;

use bytes::Bytes;

use super::{TierChunk, TierError, mark};

/// Keys from one (inclusive) to another (exclusive).
pub(super) type Range<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The range of a scan; `None` if nothing can be in it.
pub(super) fn range<'a>(from: &'a [u8], to: Option<&'a [u8]>) -> Option<Range<'a>> {
    let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
    to.is_none_or(|to| from < to).then_some((Bound::Included(from), upper))
}

/// Copies rows of a library up to both bounds, one row at least if there is one. The mark is not a row of the
/// caller's.
pub(super) fn chunk<K: AsRef<[u8]>, V: AsRef<[u8]>>(
    rows: impl Iterator<Item = Result<(K, V), TierError>>,
    limit_rows: usize,
    limit_bytes: usize,
) -> Result<TierChunk, TierError> {
    let rows = rows.filter(|row| !matches!(row, Ok((key, _)) if key.as_ref() == mark::KEY));
    let copied = rows.map(|row| row.map(|(key, value)| (copy(key), copy(value))));
    TierChunk::collect(copied, limit_rows, limit_bytes)
}

/// A copy, which does not keep a page or a block of the library in memory.
pub(super) fn copy(bytes: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(bytes.as_ref())
}
