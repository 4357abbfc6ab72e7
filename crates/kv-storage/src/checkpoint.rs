//! Making the tier durable, and recording that in the log, which may then let segments go; and letting the
//! journals give space back.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::{lower::encode_mark, parts::Parts, wal::small::small_key};

/// A checkpoint, if one is due and everything that it must contain is in the tier.
pub(crate) fn step(parts: &Arc<Parts>) -> bool {
    if !parts.life.may_work() || !parts.tier.handle().is_ok_and(|tier| tier.takes_writes()) {
        return false;
    }
    let begun = Instant::now();
    let drained = || parts.memtable.read().drained_ord;
    let done = parts.tier.checkpoint_if_due(drained, parts.log.log_bytes(), parts.log.bytes_written());
    let made = match done {
        Ok(None) => return false,
        Ok(Some(made)) => made,
        Err(e) => {
            parts.tier_failed(&e);
            return false;
        }
    };
    parts.latencies.checkpoint.record(begun.elapsed());
    let value = encode_mark(made.mark());
    let life = parts.life.clone();
    let done = Box::new(move |result: std::io::Result<()>| {
        if result.is_ok() {
            made.recorded();
            life.wake_background();
        }
    });
    parts.log.put_small(Bytes::from_static(small_key::TIER), Some(value), Some(done));
    true
}

/// Lets segments go that nothing needs.
pub(crate) fn retention_step(parts: &Parts) -> bool {
    parts.log.retention_step(parts.tier.on_disk_seq())
}

/// Gives back what was trimmed of the journals, one bounded step of it.
pub(crate) fn reclaim_step(parts: &Parts) -> bool {
    parts.life.may_work()
        && parts.journals.reclaim().unwrap_or_else(|e| {
            let refused = parts.journal_failed(e);
            tracing::debug!(error = %refused, "a journal could not give back its room");
            false
        })
}
