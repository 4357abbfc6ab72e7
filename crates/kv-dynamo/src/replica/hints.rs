//! Hints: the states of keys that this node keeps for primaries which could not be reached, until those have
//! fsynced them. Rows are changed under the lock of their ring partition; what is counted of them is what was
//! committed.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_storage::{Batch, Position};
use kv_types::causal::{Dot, State, Write};
use kv_types::{Failure, NodeId, Reason, RequestId};
use tokio::time::Instant;

use super::copy::{Copy, Known, raw};
use super::held::Growth;
use super::readable::unreadable;
use super::rows::{Rows, Stop, Want, in_time, lock, storage_failure};
use super::{Minted, Partition, Replica, corrupt, each_row};
use crate::layout::{Due, HINTS, Hint, Place, key_after, prefix_end};
use crate::limits;

impl Replica {
    /// Counts the hints that the directory holds.
    pub(super) async fn count_hints(&self) -> Result<(), Failure> {
        each_row(&self.storage, HINTS, |key, value| {
            if let Some((target, _, _)) = Place::of_hint_key(key) {
                lock(&self.held).grow(&[(target, 1, (key.len() + value.len()) as i64)]);
            }
        })
        .await
    }

    /// A seeded bug: hints do not outlive the process.
    pub(super) async fn lose_hints(&self) -> Result<(), Failure> {
        let mut keys = Vec::new();
        each_row(&self.storage, HINTS, |key, _| keys.push(key.clone())).await?;
        for key in keys {
            self.storage.commit(Batch::new().delete(HINTS, &key)).map_err(storage_failure)?;
        }
        Ok(())
    }

    /// What the hints here say of a key: raw, and perhaps nothing.
    pub(crate) async fn read_hints(
        &self,
        place: &Place,
        primaries: &[NodeId],
        deadline: Instant,
    ) -> Result<Copy, Failure> {
        let read =
            |_: &mut Partition, rows: &mut Rows<'_>| Ok(raw(&self.known_hints(place, primaries, rows)?));
        self.run(place.slice, deadline, read).await
    }

    /// The hints for some targets as they are now. No row is read for a target for which nothing is held.
    pub(super) fn known_hints(
        &self,
        place: &Place,
        targets: &[NodeId],
        rows: &mut Rows<'_>,
    ) -> Result<Known, Stop> {
        let some: Vec<NodeId> = {
            let held = lock(&self.held);
            targets.iter().copied().filter(|target| !held.nothing_for(*target)).collect()
        };
        rows.expect(some.iter().map(|target| Want::Hints(place.hint_prefix(*target).freeze())))?;
        let mut known = Known::new();
        for target in some {
            // A longer key cannot have this prefix: its length is part of it.
            let found = rows.hints(place.hint_prefix(target))?.into_iter();
            let decoded = found.map(|(key, row)| {
                let hint = Hint::decode(row.value).ok_or_else(|| corrupt("the hints"))?;
                Ok((key, hint, row.position))
            });
            known.insert(target, decoded.collect::<Result<_, Failure>>()?);
        }
        Ok(known)
    }

    /// Keeps a state for a node that could not be reached. `counted`: this node acknowledges it in the
    /// target's place.
    pub(crate) async fn store_hint(
        &self,
        place: &Place,
        target: NodeId,
        state: State,
        counted: bool,
        deadline: Instant,
    ) -> Result<Position, Failure> {
        self.keep_hint(place, target, &Hint { counted, note: false, state }, deadline).await
    }

    /// A primary notes which writes another primary lacks.
    pub(crate) async fn note_missing(
        &self,
        place: &Place,
        target: NodeId,
        writes: BTreeMap<Dot, Write>,
        deadline: Instant,
    ) -> Result<Position, Failure> {
        let state = State { writes, ..State::default() };
        self.keep_hint(place, target, &Hint { counted: false, note: true, state }, deadline).await
    }

    async fn keep_hint(
        &self,
        place: &Place,
        target: NodeId,
        hint: &Hint,
        deadline: Instant,
    ) -> Result<Position, Failure> {
        let keep = |_: &mut Partition, rows: &mut Rows<'_>| {
            self.refuse_deleted(place.namespace)?;
            let known = self.known_hints(place, &[target], rows)?;
            let growth = self.stage_hints(place, &[target], hint, &known, rows)?;
            let position = rows.commit(false)?;
            lock(&self.held).grow(&growth);
            Ok(position)
        };
        let position = self.run(place.slice, deadline, keep).await?;
        for (dot, write) in &hint.state.writes {
            let (note, request) = (hint.note, write.request);
            tracing::debug!(%place, %target, %dot, %request, note, "hint kept");
        }
        self.hinted.notify_one();
        Ok(position)
    }

    /// A request that was taken here as a hint for some of the primaries becomes one for all of them: the
    /// coordinator assumes that everything it minted is settled everywhere.
    pub(super) fn complete_hints(
        &self,
        place: &Place,
        known: &Known,
        targets: &[NodeId],
        request: RequestId,
        minted: &Minted,
        rows: &mut Rows<'_>,
    ) -> Result<Position, Failure> {
        let hint = Hint { counted: true, note: false, state: minted.state.clone() };
        let mut position = Position::DURABLE;
        for target in targets {
            let there = known.get(target).map_or(&[][..], Vec::as_slice);
            let of_request = minted.state.writes.iter().filter(|(_, write)| write.request == request);
            let has = |dot: &Dot| there.iter().any(|(_, hint, _)| hint.state.writes.contains_key(dot));
            if of_request.map(|(dot, _)| dot).all(has) {
                continue;
            }
            // One batch each: what was merged here may be larger than what a client may write.
            let growth = self.stage_hints(place, &[*target], &hint, known, rows)?;
            position = position.max(rows.commit(false)?);
            lock(&self.held).grow(&growth);
        }
        Ok(position)
    }

    /// Prepares the hints, and says what to account once they are committed.
    ///
    /// Errors: `LIMIT_HINTS`; of [`unreadable`].
    pub(super) fn stage_hints(
        &self,
        place: &Place,
        targets: &[NodeId],
        hint: &Hint,
        known: &Known,
        rows: &mut Rows<'_>,
    ) -> Result<Vec<Growth>, Failure> {
        lock(&self.held).admit()?;
        let mut growth = Vec::with_capacity(targets.len());
        for target in targets {
            let last = known.get(target).and_then(|there| there.last());
            let number =
                last.and_then(|(key, _, _)| Place::of_hint_key(key)).map_or(0, |(_, _, number)| number);
            let open = last.filter(|(_, row, _)| row.state.writes.len() < limits::HINT_ROW_WRITES);
            // Gathered, unless together they could not be read back.
            let gathered = open.and_then(|(key, row, _)| {
                let before = key.len() + row.encode().ok()?.len();
                let mut row = row.clone();
                row.merge(hint);
                Some((key.clone(), row.encode().ok()?, before))
            });
            let (key, value, before) = match gathered {
                Some(gathered) => gathered,
                None => {
                    let alone = hint.encode().map_err(|error| unreadable(&hint.state, error))?;
                    (place.hint_key(*target, number.saturating_add(1)).freeze(), alone, 0)
                }
            };
            growth.push((*target, i64::from(before == 0), (key.len() + value.len()) as i64 - before as i64));
            rows.put(HINTS, key, value);
        }
        Ok(growth)
    }

    /// Number of hints that are held, by target.
    pub(crate) fn hints_pending(&self) -> BTreeMap<NodeId, u64> {
        lock(&self.held).rows()
    }

    /// The next hints for a target, after a row: at least one if there is one.
    pub(crate) async fn due(
        &self,
        target: NodeId,
        after: Option<&Bytes>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Vec<Due>, Failure> {
        let prefix = target.0.to_be_bytes();
        let (mut from, to) =
            (after.map_or_else(|| prefix.to_vec(), |row| key_after(row)), prefix_end(&prefix));
        loop {
            let read = self.storage.read_range(HINTS, &from, to.as_deref(), limit, limits::SCAN_BYTES);
            let chunk = in_time(deadline, read).await?;
            let last = chunk.rows.last().map(|(key, _)| key_after(key));
            let due = chunk.rows.into_iter().filter_map(|(key, row)| {
                let (_, place, _) = Place::of_hint_key(&key)?;
                Some(Due { row: key, place, value: row.value })
            });
            let due: Vec<Due> = due.collect();
            match last {
                // Rows whose keys cannot be read hold up none behind them.
                Some(last) if chunk.more && due.is_empty() => from = last,
                _ => return Ok(due),
            }
        }
    }

    /// What a hint has to say now, with what must be durable first: a note sends the record as it is at this
    /// moment, filled; a hint says what it says.
    ///
    /// Errors: `NOT_READY` while the record here lacks a write that the hint names, as after the loss of a
    /// tier. The target would take its request for one that it has, and forget about the write; so the hint
    /// stays until the record has the write again.
    pub(crate) async fn message_of(
        &self,
        due: &Due,
        deadline: Instant,
    ) -> Result<(State, Position), Failure> {
        let hint = Hint::decode(due.value.clone()).ok_or_else(|| corrupt("the hints"))?;
        // What has left the memtable is durable.
        let row = self.storage.recent(HINTS, &due.row).flatten();
        let mut position = row.map_or(Position::DURABLE, |row| row.position);
        let mut state = hint.state;
        let named: Vec<Dot> = state.writes.keys().copied().collect();
        // A row that gathered notes beside hints is a hint, and its notes have no record yet.
        if hint.note || !state.covers_its_writes() {
            let copy = self.read(&due.place, deadline).await?;
            state.merge(&copy.state);
            position = position.max(copy.position);
        }
        let record = &state.record;
        if !named.iter().all(|dot| record.context.covers(*dot)) {
            let message =
                "the record here lacks a write that the hint names: the hint stays until it is back";
            return Err(Failure::new(Reason::NotReady, message));
        }
        state.writes.retain(|dot, _| record.context.covers(*dot));
        Ok((state, position))
    }

    /// Forgets a hint that its target has fsynced, unless it has grown since it was sent.
    pub(crate) async fn forget(&self, target: NodeId, due: &Due, deadline: Instant) -> Result<bool, Failure> {
        let forget = |_: &mut Partition, rows: &mut Rows<'_>| {
            if rows.row(HINTS, due.row.clone())?.is_none_or(|row| row.value != due.value) {
                return Ok(false);
            }
            rows.delete(HINTS, due.row.clone());
            rows.commit(true)?;
            lock(&self.held).grow(&[(target, -1, -((due.row.len() + due.value.len()) as i64))]);
            tracing::debug!(place = %due.place, %target, "hint forgotten");
            Ok(true)
        };
        self.run(due.place.slice, deadline, forget).await
    }
}
