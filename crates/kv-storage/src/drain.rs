//! From the memtable into the journals and the tier: whole batches, in order, with the mark, and how far the
//! journals are, in the same tier batch. The journals first, and durably: the operating system may write the
//! tier back at any time, and a tier that is ahead of a journal would leave a gap in it that the log does not
//! fill.

use tokio::time::Instant;

use crate::{error::StorageError, parts::Parts};

/// True when the memtable is large or old enough, or a caller waits for it to be empty; not shortly after a
/// journal found no room.
pub(crate) fn is_due(parts: &Parts) -> bool {
    let mem = parts.memtable.read();
    let Some(oldest) = mem.fifo.front() else { return false };
    if parts.space.is_drain_to_wait() {
        return false;
    }
    mem.bytes >= parts.options.drain_start_bytes
        || mem.drained_ord < parts.tier.asked()
        || oldest.at + parts.options.drain_interval <= Instant::now()
}

/// One tier batch; true if something was drained.
pub(crate) fn step(parts: &Parts) -> bool {
    let begun = Instant::now();
    let drained = try_step(parts).unwrap_or_else(|e| {
        parts.tier_failed(&e);
        false
    });
    if drained {
        parts.latencies.drain.record(begun.elapsed());
    }
    drained
}

fn try_step(parts: &Parts) -> Result<bool, StorageError> {
    if !parts.life.may_work() {
        return Ok(false);
    }
    if !parts.tier.handle()?.takes_writes() {
        return Ok(false);
    }
    let mut turn = parts.tier.turn();
    let (durable, raft_written) = (parts.log.durable_seq(), parts.log.raft_written());
    let max_bytes = parts.options.drain_batch_bytes.min(parts.tier.handle()?.batch_bytes());
    let Some(mut batch) = parts.memtable.read().take_drainable(durable, raft_written, max_bytes) else {
        return Ok(false);
    };
    for (table, ops) in &batch.journal {
        match parts.journals.append(*table, ops) {
            // The batch stays in the memtable and comes again: what a journal has of it is skipped then.
            Err(e) if e.is_journal_without_room() => {
                parts.space.drain_waits(&e);
                return Ok(false);
            }
            appended => appended?,
        }
    }
    parts.space.drain_goes_on();
    let marks: Vec<_> = batch.journal.keys().filter_map(|table| parts.journals.mark(*table)).collect();
    // In key order: storage's own table is before those of callers.
    batch.rows.splice(0..0, marks);
    turn.apply(&batch.rows, batch.ord, batch.seq)?;
    parts.memtable.drained(&batch);
    drop(turn);
    parts.life.wake_background();
    Ok(true)
}
