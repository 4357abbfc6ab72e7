//! The rows that an operation on a ring partition reads and writes.
//!
//! An operation (load, merge, one batch, commit) runs under the lock of its ring partition and never waits
//! there. Rows that only the tier can tell end the run: they are read without the lock, by the threads of
//! kv-storage, and the operation runs again from its start. While it waits these rows are **pinned**: what
//! others commit to them is kept here and counts before what was fetched, which may be older. So every run
//! sees the rows as they are at its moment, and a row that does not come holds up the operations alone that
//! need it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::try_join_all;
use kv_storage::{Batch, Position, Row, Storage, StorageError, TableId};
use kv_types::{Failure, Reason};
use tokio::time::{Instant, timeout_at};

use super::requests::Requests;
use crate::layout::{self, HINTS, REQUESTS};
use crate::limits;

/// What an operation reads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Want {
    /// One row.
    Row(TableId, Bytes),
    /// All hints for one target and key, by the prefix of their rows.
    Hints(Bytes),
}

/// Why a run of an operation ended without a result.
#[derive(Debug)]
pub(super) enum Stop {
    /// Rows have to be read first.
    Missing,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The rows of one [`Want`] that exist.
type Found = BTreeMap<Bytes, Row>;

/// A row that operations wait for, and what was committed to it since the first of them began to.
#[derive(Debug, Default)]
struct Pin {
    users: usize,
    since: BTreeMap<Bytes, Option<Row>>,
}

/// The pinned rows of a ring partition.
#[derive(Debug, Default)]
pub(super) struct Pins(BTreeMap<Want, Pin>);

impl Pins {
    fn add(&mut self, wants: &[Want]) {
        for want in wants {
            self.0.entry(want.clone()).or_default().users += 1;
        }
    }

    fn remove(&mut self, wants: &[Want]) {
        for want in wants {
            let Some(pin) = self.0.get_mut(want) else { continue };
            pin.users -= 1;
            if pin.users == 0 {
                self.0.remove(want);
            }
        }
    }

    fn since(&self, want: &Want) -> Option<&BTreeMap<Bytes, Option<Row>>> {
        self.0.get(want).map(|pin| &pin.since)
    }

    fn committed(&mut self, table: TableId, key: Bytes, row: Option<Row>) {
        if self.0.is_empty() {
            return;
        }
        if table == HINTS
            && let Some(prefix) = layout::prefix_of_hint_key(&key)
            && let Some(pin) = self.0.get_mut(&Want::Hints(prefix))
        {
            pin.since.insert(key.clone(), row.clone());
        }
        if let Some(pin) = self.0.get_mut(&Want::Row(table, key.clone())) {
            pin.since.insert(key, row);
        }
    }
}

/// One ring partition: what operations change under its lock, and what they need beside it.
#[derive(Debug, Default)]
pub(super) struct Guarded<S> {
    pub(super) state: S,
    pub(super) requests: Requests,
    pins: Pins,
}

impl<S> Guarded<S> {
    pub(super) fn new(state: S, requests: Requests) -> Self {
        Self { state, requests, pins: Pins::default() }
    }

    #[cfg(test)]
    pub(super) fn pinned(&self) -> usize {
        self.pins.0.len()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One run of an operation: it reads rows as they are now, and writes them in batches.
pub(super) struct Rows<'a> {
    storage: &'a Storage,
    pins: &'a mut Pins,
    requests: &'a mut Requests,
    fetched: &'a BTreeMap<Want, Found>,
    /// What this run has looked for: nothing changes it before the commit.
    seen: BTreeMap<Want, Option<Row>>,
    missing: BTreeSet<Want>,
    batch: Batch,
    written: Vec<(TableId, Bytes, Option<Bytes>)>,
}

impl Rows<'_> {
    /// A row, if it exists. `Stop::Missing` if only the tier can tell.
    pub(super) fn row(&mut self, table: TableId, key: impl Into<Bytes>) -> Result<Option<Row>, Stop> {
        self.now(&Want::Row(table, key.into())).ok_or(Stop::Missing)
    }

    /// The hints under a prefix, in the order of their numbers.
    pub(super) fn hints(&mut self, prefix: impl Into<Bytes>) -> Result<Vec<(Bytes, Row)>, Stop> {
        let want = Want::Hints(prefix.into());
        let Some(found) = self.fetched.get(&want) else {
            self.missing.insert(want);
            return Err(Stop::Missing);
        };
        let mut rows = found.clone();
        for (key, row) in self.pins.since(&want).into_iter().flatten() {
            match row {
                Some(row) => drop(rows.insert(key.clone(), row.clone())),
                None => drop(rows.remove(key)),
            }
        }
        Ok(rows.into_iter().collect())
    }

    /// Looks for all of these, so that what is missing is read together.
    pub(super) fn expect(&mut self, wants: impl IntoIterator<Item = Want>) -> Result<(), Stop> {
        for want in wants {
            match &want {
                Want::Row(..) => drop(self.now(&want)),
                Want::Hints(_) if self.fetched.contains_key(&want) => {}
                Want::Hints(_) => drop(self.missing.insert(want)),
            }
        }
        if self.missing.is_empty() { Ok(()) } else { Err(Stop::Missing) }
    }

    /// The row as it is now.
    fn now(&mut self, want: &Want) -> Option<Option<Row>> {
        if let Some(row) = self.seen.get(want) {
            return Some(row.clone());
        }
        let row = self.look(want)?;
        self.seen.insert(want.clone(), row.clone());
        Some(row)
    }

    /// What was committed since the row was pinned, what memory has, what was fetched.
    fn look(&mut self, want: &Want) -> Option<Option<Row>> {
        let Want::Row(table, key) = want else { return None };
        if *table == REQUESTS && self.requests.lacks(key) {
            return Some(None);
        }
        if let Some(row) = self.pins.since(want).and_then(|since| since.get(key)) {
            return Some(row.clone());
        }
        if let Some(row) = self.storage.recent(*table, key) {
            return Some(row);
        }
        let found = self.fetched.get(want).map(|found| found.get(key).cloned());
        if found.is_none() {
            self.missing.insert(want.clone());
        }
        found
    }

    pub(super) fn put(&mut self, table: TableId, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        self.batch.push_put(table, &key, &value);
        self.written.push((table, key, Some(value)));
    }

    pub(super) fn delete(&mut self, table: TableId, key: impl Into<Bytes>) {
        let key = key.into();
        self.batch.push_delete(table, &key);
        self.written.push((table, key, None));
    }

    pub(super) fn small_put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.batch.push_small_put(key, value);
    }

    pub(super) fn small_delete(&mut self, key: impl AsRef<[u8]>) {
        self.batch.push_small_delete(key);
    }

    /// Commits what was written since the last commit, all of it or nothing. `bulk`: within the smaller
    /// budget of transfer and repair.
    pub(super) fn commit(&mut self, bulk: bool) -> Result<Position, Failure> {
        self.seen.clear();
        let (batch, written) = (std::mem::take(&mut self.batch), std::mem::take(&mut self.written));
        let committed = if bulk { self.storage.commit_bulk(batch) } else { self.storage.commit(batch) };
        let position = committed.map_err(storage_failure)?;
        for (table, key, value) in written {
            if table == REQUESTS && value.is_some() {
                self.requests.add(&key);
            }
            self.pins.committed(table, key, value.map(|value| Row { value, position }));
        }
        Ok(position)
    }
}

/// What an operation fetched so far; its rows stay pinned until this goes.
struct Fetched<S> {
    partition: Arc<Mutex<Guarded<S>>>,
    found: BTreeMap<Want, Found>,
    pinned: Vec<Want>,
}

impl<S> Drop for Fetched<S> {
    fn drop(&mut self) {
        if !self.pinned.is_empty() {
            lock(&self.partition).pins.remove(&self.pinned);
        }
    }
}

/// Runs an operation under the lock of its ring partition, as often as it takes until the rows that it reads
/// are there. A run that ends with `Stop::Missing` has committed nothing that a later run would not find.
///
/// Errors: what the operation says; `DEADLINE_EXPIRED` when a row did not come in time, `OVERLOADED` when too
/// many reads wait.
pub(super) async fn run<S, T>(
    storage: &Storage,
    partition: Arc<Mutex<Guarded<S>>>,
    deadline: Instant,
    mut operation: impl FnMut(&mut S, &mut Rows<'_>) -> Result<T, Stop>,
) -> Result<T, Failure> {
    let mut fetched = Fetched { partition, found: BTreeMap::new(), pinned: Vec::new() };
    for _ in 0..limits::READ_ROUNDS {
        let wants: Vec<Want> = {
            let mut guarded = lock(&fetched.partition);
            let Guarded { state, requests, pins } = &mut *guarded;
            let mut rows = Rows {
                storage,
                pins: &mut *pins,
                requests,
                fetched: &fetched.found,
                seen: BTreeMap::new(),
                missing: BTreeSet::new(),
                batch: Batch::new(),
                written: Vec::new(),
            };
            match operation(state, &mut rows) {
                Ok(done) => return Ok(done),
                Err(Stop::Failed(failure)) => return Err(failure),
                Err(Stop::Missing) => {}
            }
            let wants: Vec<Want> = std::mem::take(&mut rows.missing).into_iter().collect();
            pins.add(&wants);
            wants
        };
        if wants.is_empty() {
            return Err(Failure::new(Reason::Internal, "an operation lacks a row that it did not name"));
        }
        fetched.pinned.extend(wants.iter().cloned());
        fetched.found.extend(fetch(storage, wants, deadline).await?);
    }
    let message = "the key changed each time that its rows had been read";
    Err(Failure::new(Reason::Overloaded, message).retry_after_ms(50))
}

/// Reads rows from storage, together.
async fn fetch(
    storage: &Storage,
    wants: Vec<Want>,
    deadline: Instant,
) -> Result<Vec<(Want, Found)>, Failure> {
    let mut keys = Vec::new();
    let mut ranges = Vec::new();
    for want in wants {
        match want {
            Want::Row(table, key) => keys.push((table, key)),
            Want::Hints(prefix) => ranges.push(prefix),
        }
    }
    let hints = ranges.into_iter().map(|prefix| async move {
        let rows = hints(storage, &prefix).await?;
        Ok::<_, StorageError>((Want::Hints(prefix), rows))
    });
    let read = async {
        let mut all = try_join_all(hints).await?;
        for some in keys.chunks(limits::READ_KEYS) {
            let named = some.iter().map(|(table, key)| (*table, key.to_vec())).collect();
            for ((table, key), row) in some.iter().zip(storage.read_rows(named).await?) {
                let found = row.map(|row| (key.clone(), row)).into_iter().collect();
                all.push((Want::Row(*table, key.clone()), found));
            }
        }
        Ok(all)
    };
    in_time(deadline, read).await
}

/// All hints under a prefix.
async fn hints(storage: &Storage, prefix: &[u8]) -> Result<Found, StorageError> {
    let (mut from, to) = (prefix.to_vec(), layout::prefix_end(prefix));
    let mut found = Found::new();
    loop {
        let chunk =
            storage.read_range(HINTS, &from, to.as_deref(), limits::SCAN_ROWS, limits::SCAN_BYTES).await?;
        let last = chunk.rows.last().map(|(key, _)| layout::key_after(key));
        found.extend(chunk.rows);
        match last {
            Some(last) if chunk.more => from = last,
            _ => return Ok(found),
        }
    }
}

/// The answer of storage, if it comes by the deadline.
pub(super) async fn in_time<T>(
    deadline: Instant,
    read: impl Future<Output = Result<T, StorageError>>,
) -> Result<T, Failure> {
    match timeout_at(deadline, read).await {
        Ok(read) => read.map_err(storage_failure),
        Err(_) => Err(Failure::new(Reason::DeadlineExpired, "the stored rows were not read by the deadline")),
    }
}

/// What a refusal of storage means to the caller.
pub(crate) fn storage_failure(error: StorageError) -> Failure {
    let reason = match &error {
        StorageError::Overloaded { .. } => Reason::Overloaded,
        StorageError::LogFull { .. } | StorageError::DiskFull { .. } | StorageError::TooLarge { .. } => {
            Reason::LimitStorage
        }
        _ => Reason::StorageFailed,
    };
    let mut failure = Failure::new(reason, error.to_string());
    if let StorageError::TooLarge { bytes, max, .. } = error {
        failure = failure.with(TOO_LARGE, bytes).with("limit_bytes", max);
    }
    if reason == Reason::Overloaded { failure.retry_after_ms(50) } else { failure }
}

/// The detail of a `LIMIT_STORAGE` that is about what was to be stored: something smaller would be taken.
const TOO_LARGE: &str = "too_large_bytes";

/// Whether a refusal is about the size of one record, not about the room that the node has.
pub(crate) fn is_too_large(failure: &Failure) -> bool {
    failure.reason == Reason::LimitStorage && failure.detail(TOO_LARGE).is_some()
}
