//! The request table of a node beside its operations: old rows go, and memory learns after a start, and again
//! after much has gone, which requests have a row.

use std::sync::Mutex;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use kv_types::Failure;
use tokio::time::{Instant, sleep};

use super::rows::{Want, in_time, lock};
use super::{Guarded, Replica};
use crate::layout::{
    REQUEST_TIMES, REQUESTS, Slice, key_after, of_request_key, of_request_time_key, prefix_end,
};
use crate::limits;

impl Replica {
    /// Forgets requests that are older than they can matter: a few of one ring partition.
    ///
    /// A crowded table forgets by age alone, as soon as no node takes a resend any more. A hint that is still
    /// kept somewhere may carry a twin of such a request: where the record has forgotten whose its dots were,
    /// the twin then shows as a sibling, or brings back a value that was superseded, until a client resolves
    /// it. Without that the table would be full while a node is away, and every write refused.
    pub(crate) async fn sweep(&self, slice: Slice, deadline: Instant) -> Result<usize, Failure> {
        let kept = if self.is_crowded(slice) { limits::REQUEST_KEPT_CROWDED } else { limits::REQUEST_KEPT };
        let old = self.env.clock.wall_ms().saturating_sub(kept.as_millis() as u64);
        let (from, mut to) = (slice.prefix(), slice.prefix());
        to.put_u64(old);
        let (rows, bytes) = (limits::SWEEP.1, limits::SCAN_BYTES);
        let read = self.storage.read_range(REQUEST_TIMES, &from, Some(&to), rows, bytes);
        // Below those that the removal of a deleted namespace took meanwhile are left out.
        let found = in_time(deadline, read).await?.rows;
        if found.is_empty() {
            return Ok(0);
        }
        self.run(slice, deadline, |partition, rows| {
            rows.expect(found.iter().map(|(key, _)| Want::Row(REQUEST_TIMES, key.clone())))?;
            let (mut gone, mut last) = (0, 0);
            for (key, _) in &found {
                if rows.row(REQUEST_TIMES, key.clone())?.is_none() {
                    continue;
                }
                if let Some((issued_at_ms, request)) = of_request_time_key(key) {
                    rows.delete(REQUESTS, slice.request_key(request));
                    last = last.max(issued_at_ms);
                }
                rows.delete(REQUEST_TIMES, key.clone());
                gone += 1;
            }
            if gone == 0 {
                return Ok(0);
            }
            let mut next = partition.clone();
            next.requests = next.requests.saturating_sub(gone);
            next.swept_ms = next.swept_ms.max(last.saturating_add(1));
            self.stage_clock(slice, &next, rows);
            rows.commit(true)?;
            *partition = next;
            Ok(found.len())
        })
        .await
    }

    /// Forgets old requests of all ring partitions; without `calm` of those whose table is crowded. One that
    /// is refused, or does not end within `patience`, waits for the next time.
    pub(crate) async fn sweep_all(&self, calm: bool, patience: Duration) {
        for slice in self.slices() {
            if !calm && !self.is_crowded(slice) {
                continue;
            }
            match self.sweep(slice, Instant::now() + patience).await {
                Ok(0) => {}
                Ok(gone) => {
                    tracing::debug!(?slice, gone, "old requests forgotten");
                    self.renew_requests(slice).await;
                }
                Err(failure) => tracing::debug!(?slice, %failure, "old requests stay for now"),
            }
            tokio::task::yield_now().await;
        }
    }

    fn is_crowded(&self, slice: Slice) -> bool {
        lock(&self.partition(slice)).state.requests > limits::REQUESTS_CROWDED
    }

    /// The ring partitions with requests to forget.
    pub(crate) fn slices(&self) -> Vec<Slice> {
        let known = lock(&self.partitions).known.clone();
        let with_rows = |guarded: &Mutex<Guarded>| lock(guarded).state.requests > 0;
        known.into_iter().filter(|(_, guarded)| with_rows(guarded)).map(|(slice, _)| slice).collect()
    }

    /// Reads the request tables from before the start into memory, until all of them are known: then almost
    /// no write asks the tier whether it is a resend.
    pub(crate) async fn learn_requests(&self) {
        let mut from = Vec::new();
        while !lock(&self.partitions).learned {
            match self.page_of(REQUESTS, &from, None).await {
                Ok(chunk) => {
                    for (key, _) in &chunk.rows {
                        if let Some((slice, _)) = of_request_key(key) {
                            lock(&self.partition(slice)).requests.add(key);
                        }
                    }
                    match chunk.rows.last() {
                        Some((last, _)) if chunk.more => from = key_after(last),
                        _ => return self.all_learned(),
                    }
                }
                Err(failure) => {
                    tracing::debug!(%failure, "the request tables are read later");
                    sleep(limits::LEARN_PAUSE).await;
                }
            }
        }
    }

    fn all_learned(&self) {
        let mut partitions = lock(&self.partitions);
        partitions.learned = true;
        for guarded in partitions.known.values() {
            lock(guarded).requests.complete();
        }
    }

    /// Reads the request table of a ring partition again if memory knows many more rows than it has.
    pub(crate) async fn renew_requests(&self, slice: Slice) {
        let partition = self.partition(slice);
        {
            let mut guarded = lock(&partition);
            if !guarded.requests.is_stale(guarded.state.requests) {
                return;
            }
            guarded.requests.begin_renewal();
        }
        let to = prefix_end(&slice.prefix());
        let mut from = slice.prefix().to_vec();
        let whole = loop {
            let Ok(chunk) = self.page_of(REQUESTS, &from, to.as_deref()).await else { break false };
            let keys: Vec<Bytes> = chunk.rows.iter().map(|(key, _)| key.clone()).collect();
            lock(&partition).requests.renew(&keys);
            match keys.last() {
                Some(last) if chunk.more => from = key_after(last),
                _ => break true,
            }
        };
        lock(&partition).requests.end_renewal(whole);
    }
}
