//! Hints: the states of keys that this node keeps for primaries which could not be reached, until those have
//! fsynced them. Rows are changed under the lock of their ring partition; what is counted of them is what was
//! committed.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use kv_storage::{Batch, Position};
use kv_types::causal::{Dot, State, Write};
use kv_types::{Failure, NodeId, Reason, RequestId};

use super::{Copy, Minted, Replica, corrupt, lock, storage_failure};
use crate::layout::{HINTS, Hint, Place, prefix_end};
use crate::limits;

/// A hint to deliver.
#[derive(Debug, Clone)]
pub(crate) struct Due {
    pub(crate) row: Bytes,
    pub(crate) place: Place,
    value: Bytes,
}

/// By how much the hints for a target grow with a batch: rows and bytes.
type Growth = (NodeId, i64, i64);

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Held {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

impl Replica {
    /// Counts the hints that the directory holds.
    pub(super) fn count_hints(&self) -> Result<(), Failure> {
        let mut from = Bytes::new();
        loop {
            let rows = self.storage.scan(HINTS, &from, None, limits::SCAN_ROWS).map_err(storage_failure)?;
            for (key, row) in &rows {
                if let Some((target, _, _)) = Place::of_hint_key(key) {
                    self.account(target, 1, (key.len() + row.value.len()) as i64);
                }
            }
            match rows.last() {
                Some((last, _)) if rows.len() == limits::SCAN_ROWS => {
                    from = [last.as_ref(), &[0]].concat().into()
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// A seeded bug: hints do not outlive the process.
    pub(super) fn lose_hints(&self) -> Result<(), Failure> {
        for (key, _) in self.storage.scan(HINTS, &[], None, usize::MAX).map_err(storage_failure)? {
            self.commit(Batch::new().delete(HINTS, &key), false)?;
        }
        Ok(())
    }

    /// What the hints here say of a key: raw, and perhaps nothing.
    pub(crate) fn read_hints(&self, place: &Place, primaries: &[NodeId]) -> Result<Copy, Failure> {
        let partition = self.partition(place.slice)?;
        let _order = lock(&partition);
        self.raw(place, primaries)
    }

    pub(super) fn raw(&self, place: &Place, primaries: &[NodeId]) -> Result<Copy, Failure> {
        let mut copy = Copy::default();
        for target in primaries {
            for (_, hint, position) in self.hint_rows(place, *target)? {
                copy.known = true;
                copy.state.merge(&hint.state);
                copy.position = copy.position.max(position);
            }
        }
        copy.state.bury_twins(|_| Vec::new());
        Ok(copy)
    }

    pub(super) fn hint_rows(
        &self,
        place: &Place,
        target: NodeId,
    ) -> Result<Vec<(Bytes, Hint, Position)>, Failure> {
        let prefix = place.hint_prefix(target);
        let rows = self.storage.scan(HINTS, &prefix, prefix_end(&prefix).as_deref(), usize::MAX);
        let rows = rows.map_err(storage_failure)?.into_iter();
        // A longer key cannot have this prefix: its length is part of it.
        rows.map(|(key, row)| {
            let hint = Hint::decode(row.value).ok_or_else(|| corrupt("the hints"))?;
            Ok((key, hint, row.position))
        })
        .collect()
    }

    /// Keeps a state for a node that could not be reached. `counted`: this node acknowledges it in the
    /// target's place.
    pub(crate) fn store_hint(
        &self,
        place: &Place,
        target: NodeId,
        state: State,
        counted: bool,
    ) -> Result<Position, Failure> {
        self.keep_hint(place, target, &Hint { counted, note: false, state })
    }

    /// A primary notes which writes another primary lacks.
    pub(crate) fn note_missing(
        &self,
        place: &Place,
        target: NodeId,
        writes: BTreeMap<Dot, Write>,
    ) -> Result<Position, Failure> {
        let state = State { writes, ..State::default() };
        self.keep_hint(place, target, &Hint { counted: false, note: true, state })
    }

    fn keep_hint(&self, place: &Place, target: NodeId, hint: &Hint) -> Result<Position, Failure> {
        let partition = self.partition(place.slice)?;
        let order = lock(&partition);
        let mut batch = Batch::new();
        let growth = self.stage_hints(place, &[target], hint, &mut batch)?;
        let position = self.commit(batch, false)?;
        self.account_all(&growth);
        drop(order);
        for (dot, write) in &hint.state.writes {
            let (note, request) = (hint.note, write.request);
            tracing::debug!(%place, %target, %dot, %request, note, "hint kept");
        }
        self.hinted.notify_one();
        Ok(position)
    }

    /// A request that was taken here as a hint for some of the primaries becomes one for all of them: the
    /// coordinator takes whatever it minted for settled everywhere.
    pub(super) fn complete_hints(
        &self,
        place: &Place,
        targets: &[NodeId],
        request: RequestId,
        minted: &Minted,
    ) -> Result<Position, Failure> {
        let hint = Hint { counted: true, note: false, state: minted.state.clone() };
        let mut position = Position::DURABLE;
        for target in targets {
            let rows = self.hint_rows(place, *target)?;
            let of_request = minted.state.writes.iter().filter(|(_, write)| write.request == request);
            let has = |dot: &Dot| rows.iter().any(|(_, hint, _)| hint.state.writes.contains_key(dot));
            if of_request.map(|(dot, _)| dot).all(has) {
                continue;
            }
            // One batch each: what was merged here may be larger than what a client may write.
            let mut batch = Batch::new();
            let growth = self.stage_hints(place, &[*target], &hint, &mut batch)?;
            position = position.max(self.commit(batch, false)?);
            self.account_all(&growth);
            self.hinted.notify_one();
        }
        Ok(position)
    }

    /// Prepares the hints, and says what to account once they are committed.
    pub(super) fn stage_hints(
        &self,
        place: &Place,
        targets: &[NodeId],
        hint: &Hint,
        batch: &mut Batch,
    ) -> Result<Vec<Growth>, Failure> {
        let held: u64 = lock(&self.held).values().map(|held| held.bytes).sum();
        if held >= self.hint_bytes_max {
            let message = format!("this node holds {held} bytes of hints and takes no more");
            return Err(Failure::new(Reason::LimitHints, message).with("limit_bytes", self.hint_bytes_max));
        }
        let mut growth = Vec::with_capacity(targets.len());
        for target in targets {
            let rows = self.hint_rows(place, *target)?;
            let number = rows
                .last()
                .and_then(|(key, _, _)| Place::of_hint_key(key))
                .map_or(0, |(_, _, number)| number);
            let open = rows
                .into_iter()
                .next_back()
                .filter(|(_, row, _)| row.state.writes.len() < limits::HINT_ROW_WRITES);
            let (key, row, before) = match open {
                Some((key, mut row, _)) => {
                    let before = key.len() + row.encode().len();
                    row.merge(hint);
                    (BytesMut::from(key.as_ref()), row, before)
                }
                None => (place.hint_key(*target, number.saturating_add(1)), hint.clone(), 0),
            };
            let value = row.encode();
            growth.push((*target, i64::from(before == 0), (key.len() + value.len()) as i64 - before as i64));
            batch.push_put(HINTS, key, value);
        }
        Ok(growth)
    }

    pub(super) fn account_all(&self, growth: &[Growth]) {
        for (target, rows, bytes) in growth {
            self.account(*target, *rows, *bytes);
        }
    }

    pub(super) fn account(&self, target: NodeId, rows: i64, bytes: i64) {
        let mut held = lock(&self.held);
        let entry = held.entry(target).or_default();
        entry.rows = entry.rows.saturating_add_signed(rows);
        entry.bytes = entry.bytes.saturating_add_signed(bytes);
        if entry.rows == 0 {
            held.remove(&target);
        }
    }

    /// How many hints are held for whom.
    pub(crate) fn hints_pending(&self) -> BTreeMap<NodeId, u64> {
        lock(&self.held).iter().map(|(target, held)| (*target, held.rows)).collect()
    }

    /// The next hints for a target, after a row.
    pub(crate) fn due(
        &self,
        target: NodeId,
        after: Option<&Bytes>,
        limit: usize,
    ) -> Result<Vec<Due>, Failure> {
        let prefix = target.0.to_be_bytes();
        let from = after.map_or_else(|| prefix.to_vec(), |row| [row.as_ref(), &[0]].concat());
        let rows = self
            .storage
            .scan(HINTS, &from, prefix_end(&prefix).as_deref(), limit)
            .map_err(storage_failure)?;
        let due = rows.into_iter().filter_map(|(key, row)| {
            let (_, place, _) = Place::of_hint_key(&key)?;
            Some(Due { row: key, place, value: row.value })
        });
        Ok(due.collect())
    }

    /// What a hint has to say now, with what must be durable first: a note sends the record as it is at this
    /// moment.
    pub(crate) fn message_of(&self, due: &Due) -> Result<(State, Position), Failure> {
        let hint = Hint::decode(due.value.clone()).ok_or_else(|| corrupt("the hints"))?;
        let row = self.storage.get(HINTS, &due.row).map_err(storage_failure)?;
        let position = row.map_or(Position::DURABLE, |row| row.position);
        if !hint.note {
            return Ok((hint.state, position));
        }
        let mut copy = self.read(&due.place)?;
        copy.state.merge(&hint.state);
        Ok((copy.state, copy.position.max(position)))
    }

    /// Forgets a hint that its target has fsynced, unless it has grown since it was sent.
    pub(crate) fn forget(&self, target: NodeId, due: &Due) -> Result<bool, Failure> {
        let partition = self.partition(due.place.slice)?;
        let _order = lock(&partition);
        let row = self.storage.get(HINTS, &due.row).map_err(storage_failure)?;
        if row.is_none_or(|row| row.value != due.value) {
            return Ok(false);
        }
        self.commit(Batch::new().delete(HINTS, &due.row), true)?;
        self.account(target, -1, -((due.row.len() + due.value.len()) as i64));
        tracing::debug!(place = %due.place, %target, "hint forgotten");
        Ok(true)
    }
}
