//! Removes what is stored of deleted namespaces from one ring partition, a few rows at a time. The counts of
//! the ring partition follow: its lists of records, and its hints. The node clock stays: its dots were
//! minted, and are never minted again. What the dot log has goes with time, as all old entries do.

use std::sync::Arc;

use bytes::Bytes;
use kv_storage::{RowChunk, StorageError, TableId};
use kv_types::causal::State;
use kv_types::{Failure, NamespaceId, NodeId};
use tokio::time::Instant;

use super::rows::{Rows, Stop, Want, in_time, lock};
use super::{Partition, Replica};
use crate::layout::{AHEAD, CONFLICTS, HINTS, Place, RECORDS, Slice, hints_of, key_after, rows_of};
use crate::limits::REMOVED_AT_ONCE;

/// What a step removed: bytes of keys and values, and the last key if there may be more behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(crate) bytes: u64,
    pub(crate) last: Option<Bytes>,
}

/// Where the next step begins: what the steps before removed may still be there to be passed over.
fn from_there(first: &[u8], after: Option<&Bytes>) -> Vec<u8> {
    after.map_or_else(|| first.to_vec(), |last| key_after(last))
}

/// A record that goes.
struct Going {
    key: Bytes,
    ahead: bool,
}

/// A list of records, whose rows are counted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum List {
    /// Those with siblings.
    Conflicts,
    /// Those that are ahead of the node clock.
    Ahead,
}

impl List {
    fn table(self) -> TableId {
        match self {
            Self::Conflicts => CONFLICTS,
            Self::Ahead => AHEAD,
        }
    }

    fn rows(self, partition: &mut Partition) -> &mut u64 {
        match self {
            Self::Conflicts => &mut partition.conflicts,
            Self::Ahead => &mut partition.ahead,
        }
    }
}

impl Replica {
    /// Rows of a namespace, without what the dot log has.
    pub(crate) fn rows_of(&self, namespace: NamespaceId) -> Result<usize, StorageError> {
        let of_record =
            |key: &[u8]| Place::of_record_key(key).is_some_and(|place| place.namespace == namespace);
        let of_hint =
            |key: &[u8]| Place::of_hint_key(key).is_some_and(|(_, of, _)| of.namespace == namespace);
        let mut found = 0;
        for table in [RECORDS, CONFLICTS, AHEAD] {
            let rows = self.storage.scan(table, &[], None, usize::MAX)?;
            found += rows.iter().filter(|(key, _)| of_record(key)).count();
        }
        let hints = self.storage.scan(HINTS, &[], None, usize::MAX)?;
        Ok(found + hints.iter().filter(|(key, _)| of_hint(key)).count())
    }

    /// Returns when no operation on the ring partition is under way that began before.
    pub(crate) fn let_pass(&self, slice: Slice) {
        drop(lock(&self.partition(slice)));
    }

    /// As many rows of these namespaces as are removed at once, behind a key.
    async fn rows_behind(
        &self,
        table: TableId,
        slice: Slice,
        run: (u64, u64),
        after: Option<&Bytes>,
        deadline: Instant,
    ) -> Result<RowChunk, Failure> {
        let (from, to) = rows_of(slice, run);
        let from = from_there(&from, after);
        let (rows, bytes) = REMOVED_AT_ONCE;
        in_time(deadline, self.storage.read_range(table, &from, Some(&to), rows, bytes)).await
    }

    /// Removes some records of these namespaces, which this node knows to be deleted, behind a key.
    pub(crate) async fn remove_records(
        &self,
        slice: Slice,
        run: (u64, u64),
        after: Option<&Bytes>,
        deadline: Instant,
    ) -> Result<Removed, Failure> {
        let chunk = self.rows_behind(RECORDS, slice, run, after, deadline).await?;
        let Some((last, _)) = chunk.rows.last() else { return Ok(Removed::default()) };
        // Nothing changes them any more.
        let mut removed = Removed { bytes: 0, last: Some(last.clone()) };
        let mut going = Vec::new();
        for (key, row) in chunk.rows {
            removed.bytes += (key.len() + row.value.len()) as u64;
            // One that cannot be read goes too.
            let ahead = State::decode(row.value).is_ok_and(|state| state.record.is_ahead());
            going.push(Going { key, ahead });
        }
        let remove =
            |partition: &mut Partition, rows: &mut Rows<'_>| self.remove_now(&going, partition, rows);
        self.run(slice, deadline, remove).await.map(|()| removed)
    }

    fn remove_now(
        &self,
        going: &[Going],
        partition: &mut Partition,
        rows: &mut Rows<'_>,
    ) -> Result<(), Stop> {
        let conflicts = partition.conflicts > 0;
        let listed = going.iter().filter(|_| conflicts);
        rows.expect(listed.map(|one| Want::Row(CONFLICTS, one.key.clone())))?;
        let mut next = partition.clone();
        for Going { key, ahead } in going {
            if *ahead {
                next.ahead = next.ahead.saturating_sub(1);
                // What the others claim is looked at again.
                next.claimed = Arc::default();
                rows.delete(AHEAD, key.clone());
            }
            if conflicts && rows.row(CONFLICTS, key.clone())?.is_some() {
                next.conflicts = next.conflicts.saturating_sub(1);
                rows.delete(CONFLICTS, key.clone());
            }
            rows.delete(RECORDS, key.clone());
        }
        rows.commit(true)?;
        *partition = next;
        Ok(())
    }

    /// Removes what a list of records has of these namespaces without a record, as after the loss of a tier.
    pub(crate) async fn remove_listed(
        &self,
        list: List,
        slice: Slice,
        run: (u64, u64),
        after: Option<&Bytes>,
        deadline: Instant,
    ) -> Result<Removed, Failure> {
        if *list.rows(&mut lock(&self.partition(slice)).state) == 0 {
            return Ok(Removed::default());
        }
        let chunk = self.rows_behind(list.table(), slice, run, after, deadline).await?;
        let keys: Vec<Bytes> = chunk.rows.into_iter().map(|(key, _)| key).collect();
        let Some(last) = keys.last().cloned() else { return Ok(Removed::default()) };
        let remove = |partition: &mut Partition, rows: &mut Rows<'_>| {
            keys.iter().for_each(|key| rows.delete(list.table(), key.clone()));
            rows.commit(true)?;
            let counted = list.rows(partition);
            *counted = counted.saturating_sub(keys.len() as u64);
            Ok(())
        };
        self.run(slice, deadline, remove).await?;
        Ok(Removed { bytes: keys.iter().map(|key| key.len() as u64).sum(), last: Some(last) })
    }

    /// Removes some hints of these namespaces for a target.
    pub(crate) async fn remove_hints(
        &self,
        target: NodeId,
        slice: Slice,
        run: (u64, u64),
        after: Option<&Bytes>,
        deadline: Instant,
    ) -> Result<Removed, Failure> {
        let (from, to) = hints_of(target, slice, run);
        let from = from_there(&from, after);
        let (rows, bytes) = REMOVED_AT_ONCE;
        let read = self.storage.read_range(HINTS, &from, Some(&to), rows, bytes);
        let found: Vec<Bytes> = in_time(deadline, read).await?.rows.into_iter().map(|(key, _)| key).collect();
        let Some(last) = found.last().cloned() else { return Ok(Removed::default()) };
        let remove = |_: &mut Partition, rows: &mut Rows<'_>| {
            rows.expect(found.iter().map(|key| Want::Row(HINTS, key.clone())))?;
            let mut growth = Vec::new();
            for key in &found {
                // Some may have been delivered meanwhile.
                let Some(row) = rows.row(HINTS, key.clone())? else { continue };
                growth.push((target, -1, -((key.len() + row.value.len()) as i64)));
                rows.delete(HINTS, key.clone());
            }
            rows.commit(true)?;
            lock(&self.held).grow(&growth);
            Ok(growth.iter().map(|(_, _, bytes)| bytes.unsigned_abs()).sum())
        };
        let bytes = self.run(slice, deadline, remove).await?;
        Ok(Removed { bytes, last: Some(last) })
    }
}
