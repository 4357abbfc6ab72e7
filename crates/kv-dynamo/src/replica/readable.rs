//! What is stored of a key must be read back, and read by those who get it: a state that would have more than
//! that is refused before it is staged, and what is there stays as it is.

use bytes::Bytes;
use kv_types::causal::{CodecError, State, Why};
use kv_types::limits::MAX_CONTEXT_RANGES;
use kv_types::{Failure, Reason};

use super::rows::TOO_LARGE;
use crate::limits::ROW_RANGES;

/// The row of a record.
///
/// Errors: `OVERLOADED` if it claims more separate runs of writes that this replica lacks than a row may;
/// `LIMIT_STORAGE` if it is too large to be read back.
pub(super) fn row_of(row: &State) -> Result<Bytes, Failure> {
    let ranges = row.ranges();
    if ranges > ROW_RANGES {
        return Err(too_many(ranges, ROW_RANGES));
    }
    row.encode_readable().map_err(|error| unreadable(row, error))
}

/// Why a state is not stored that could not be read back.
pub(super) fn unreadable(state: &State, error: CodecError) -> Failure {
    if matches!(error.why, Why::TooManyRanges(_)) {
        return too_many(state.ranges(), MAX_CONTEXT_RANGES);
    }
    let message = format!("what is known of the key could not be read back: {error}");
    let bytes: usize = state.record.siblings.values().map(|sibling| sibling.value.len()).sum();
    Failure::new(Reason::LimitStorage, message).with(TOO_LARGE, bytes)
}

fn too_many(ranges: usize, limit: usize) -> Failure {
    let message = format!(
        "the record of the key would name {ranges} separate runs of writes that this replica lacks, more than it \
         could read back: nothing was stored, and the replica first takes those that it lacks"
    );
    Failure::new(Reason::Overloaded, message).with("limit", limit).retry_after_ms(1_000)
}
