//! Records that claim more than the node clock has. Such a row is written when a state arrives before what it
//! supersedes, or before other writes of the ring partition that its sender had applied. It stands in a list,
//! and is stripped again later: by then the clock usually has what was missing, and of a deleted key nothing
//! is left.
//!
//! What other primaries say that they have counts as missing too.
//!
//! Not done: nothing seals an incarnation that is gone. A dot of it that no replica has, and that a client
//! alone has seen, leaves the row of the key that it superseded in the list forever.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use kv_types::Failure;
use kv_types::causal::{Context, NodeClock, State};
use kv_types::limits::MAX_CLOCK_RANGES;
use tokio::time::Instant;

use super::rows::{Rows, Stop, in_time, lock};
use super::{Guarded, Partition, Replica};
use crate::layout::{AHEAD, Place, Slice, key_after};
use crate::limits;

impl Partition {
    /// A record that is ahead of the clock claims this.
    fn claim(&mut self, context: &Context) {
        if !self.claimed.contains_all(context) {
            Arc::make_mut(&mut self.claimed).merge(context);
        }
    }

    /// Another primary has this clock.
    pub(super) fn hear_of(&mut self, clock: &NodeClock) {
        let beyond = clock.dots().difference(self.clock.dots());
        // With more gaps the clock would refuse it. What is known to be missing is enough to begin with.
        if self.heard.ranges().len() + beyond.ranges().len() <= MAX_CLOCK_RANGES {
            Arc::make_mut(&mut self.heard).merge(&beyond);
        }
    }

    /// What of it the clock has not; what the clock has is forgotten.
    fn missing(&mut self) -> Context {
        if self.ahead == 0 {
            self.claimed = Arc::default();
        }
        let mut missing = Context::new();
        if !self.claimed.is_empty() {
            missing = self.claimed.difference(self.clock.dots());
            self.claimed = Arc::new(self.claimed.closing_gaps_of(&missing));
        }
        if !self.heard.is_empty() {
            // Keys that this node cannot take keep out of the clock what was pulled of all others.
            let pulled = self.pulled.as_deref();
            let mut heard = self.heard.difference(self.clock.dots());
            pulled.into_iter().for_each(|pulled| heard.subtract(pulled.clock.dots()));
            missing.merge(&heard);
            self.heard = Arc::new(heard);
        }
        missing
    }
}

impl Replica {
    /// Keeps the list of records that are ahead of the clock true.
    pub(super) fn stage_ahead(
        &self,
        place: &Place,
        stored: Option<&State>,
        row: Option<&State>,
        next: &mut Partition,
        rows: &mut Rows<'_>,
    ) {
        let is_ahead = |state: Option<&State>| state.is_some_and(|state| state.record.is_ahead());
        if let Some(row) = row.filter(|row| row.record.is_ahead()) {
            next.claim(&row.record.context);
        }
        match (is_ahead(stored), is_ahead(row)) {
            (false, true) => {
                next.ahead += 1;
                rows.put(AHEAD, place.record_key(), Bytes::new());
            }
            (true, false) => self.stage_not_ahead(place, next, rows),
            _ => {}
        }
    }

    fn stage_not_ahead(&self, place: &Place, next: &mut Partition, rows: &mut Rows<'_>) {
        next.ahead = next.ahead.saturating_sub(1);
        rows.delete(AHEAD, place.record_key());
    }

    /// What is missing, by ring partition: the dots that records which are ahead claim, and that the clock
    /// has not. After a start it is known once such records were looked at to be stripped.
    pub(crate) fn slices_behind(&self) -> Vec<(Slice, Context)> {
        let known = lock(&self.partitions).clone();
        let missing = |guarded: &Mutex<Guarded>| lock(guarded).state.missing();
        let all = known.into_iter().map(|(slice, guarded)| (slice, missing(&guarded)));
        all.filter(|(_, missing)| !missing.is_empty()).collect()
    }

    /// How many records are ahead of their clocks here.
    pub(crate) fn records_ahead(&self) -> u64 {
        let known = lock(&self.partitions).clone();
        known.values().map(|guarded| lock(guarded).state.ahead).sum()
    }

    /// Strips a few of the records that are ahead, from behind a key of the list on. The last key that was
    /// looked at, if there may be more.
    pub(crate) async fn strip(
        &self,
        after: Option<&Bytes>,
        deadline: Instant,
    ) -> Result<Option<Bytes>, Failure> {
        let from = after.map_or_else(Vec::new, |key| key_after(key));
        let (rows, bytes) = (limits::STRIP.1, limits::SCAN_BYTES);
        let chunk = in_time(deadline, self.storage.read_range(AHEAD, &from, None, rows, bytes)).await?;
        let last = chunk.rows.last().map(|(key, _)| key.clone());
        for (key, _) in chunk.rows {
            let Some(place) = Place::of_record_key(&key) else { continue };
            let strip =
                |partition: &mut Partition, rows: &mut Rows<'_>| self.strip_now(&place, partition, rows);
            // One that cannot be stripped keeps no other from it.
            if let Err(failure) = self.run(place.slice, deadline, strip).await {
                tracing::debug!(slice = ?place.slice, %failure, "a record stays ahead of the node clock");
            }
        }
        Ok(last.filter(|_| chunk.more))
    }

    fn strip_now(&self, place: &Place, partition: &mut Partition, rows: &mut Rows<'_>) -> Result<(), Stop> {
        // What is removed of a deleted namespace is removed by another.
        if self.refuse_deleted(place.namespace).is_err() {
            return Ok(());
        }
        let stored = self.stored(place, rows)?;
        if let Some((state, _)) = stored.filter(|(state, _)| state.record.is_ahead()) {
            partition.claim(&state.record.context);
            return self.apply_now(place, &State::default(), true, partition, rows).map(drop);
        }
        // A row of the list that outlived its record, as after the loss of a tier.
        if rows.row(AHEAD, place.record_key())?.is_some() {
            let mut next = partition.clone();
            self.stage_not_ahead(place, &mut next, rows);
            rows.commit(true)?;
            *partition = next;
        }
        Ok(())
    }
}
