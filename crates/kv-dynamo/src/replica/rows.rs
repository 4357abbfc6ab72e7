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
use kv_types::{Failure, Reason, RequestId};
use tokio::time::{Instant, timeout_at};

use super::requests::Requests;
use crate::layout::{self, HINTS, RECORDS, Taken};
use crate::limits;

/// What an operation reads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Want {
    /// One row.
    Row(TableId, Bytes),
    /// All hints for one target and key, by the prefix of their rows.
    Hints(Bytes),
    /// Records from one key to another (exclusive), as many as have so many bytes, but one.
    Records(Bytes, Option<Bytes>, usize),
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
#[derive(Debug, Clone, Default)]
struct Found {
    rows: BTreeMap<Bytes, Row>,
    /// Of [`Want::Records`]: there may be more behind them.
    more: bool,
}

impl Found {
    fn all(rows: impl IntoIterator<Item = (Bytes, Row)>) -> Self {
        Self { rows: rows.into_iter().collect(), more: false }
    }
}

/// Some records as they are at one moment, and the last key that was looked at if more may follow.
pub(super) type Records = (BTreeMap<Bytes, Row>, Option<Bytes>);

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
        if table == RECORDS {
            let first = Want::Records(Bytes::new(), None, 0);
            for (want, pin) in self.0.range_mut(first..) {
                if matches!(want, Want::Records(from, ..) if *from <= key) {
                    pin.since.insert(key.clone(), row.clone());
                }
            }
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
    /// Requests that entries of the dot log name which are in the batch.
    taken: Vec<(RequestId, Taken, u64)>,
}

impl Rows<'_> {
    /// The requests that were taken, but for those of this run.
    pub(super) fn requests(&self) -> &Requests {
        self.requests
    }

    /// A request that an entry of the batch names.
    pub(super) fn take(&mut self, request: RequestId, taken: Taken, entry: u64) {
        self.taken.push((request, taken, entry));
    }

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
        let mut rows = found.rows.clone();
        overlay(&mut rows, self.pins.since(&want).into_iter().flatten());
        Ok(rows.into_iter().collect())
    }

    /// A page of records: [`Want::Records`].
    pub(super) fn records(
        &mut self,
        from: &Bytes,
        to: Option<&Bytes>,
        max_bytes: usize,
    ) -> Result<Records, Stop> {
        let want = Want::Records(from.clone(), to.cloned(), max_bytes);
        let Some(found) = self.fetched.get(&want) else {
            self.missing.insert(want);
            return Err(Stop::Missing);
        };
        let mut rows = found.rows.clone();
        let last = rows.last_key_value().map(|(key, _)| key.clone()).filter(|_| found.more);
        let within = |key: &Bytes| match &last {
            Some(last) => key <= last,
            None => to.is_none_or(|to| key < to),
        };
        let since = self.pins.since(&want).into_iter().flatten();
        overlay(&mut rows, since.filter(|(key, _)| within(key)));
        Ok((rows, last))
    }

    /// Looks for all of these, so that what is missing is read together.
    pub(super) fn expect(&mut self, wants: impl IntoIterator<Item = Want>) -> Result<(), Stop> {
        for want in wants {
            match &want {
                Want::Row(..) => drop(self.now(&want)),
                _ if self.fetched.contains_key(&want) => {}
                _ => drop(self.missing.insert(want)),
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
        if let Some(row) = self.pins.since(want).and_then(|since| since.get(key)) {
            return Some(row.clone());
        }
        if let Some(row) = self.storage.recent(*table, key) {
            return Some(row);
        }
        let found = self.fetched.get(want).map(|found| found.rows.get(key).cloned());
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

    /// Adds an entry to a stream of a journal.
    pub(super) fn append(&mut self, table: TableId, stream: &[u8], id: u64, content: &[u8]) {
        self.batch.push_append(table, stream, id, content);
    }

    pub(super) fn small_delete(&mut self, key: impl AsRef<[u8]>) {
        self.batch.push_small_delete(key);
    }

    /// Commits what was written since the last commit, all of it or nothing. `bulk`: within the smaller
    /// budget of transfer and repair.
    pub(super) fn commit(&mut self, bulk: bool) -> Result<Position, Failure> {
        self.seen.clear();
        let (batch, written) = (std::mem::take(&mut self.batch), std::mem::take(&mut self.written));
        let taken = std::mem::take(&mut self.taken);
        let committed = if bulk { self.storage.commit_bulk(batch) } else { self.storage.commit(batch) };
        let position = committed.map_err(storage_failure)?;
        for (request, taken, entry) in taken {
            self.requests.add(request, &taken, entry);
        }
        for (table, key, value) in written {
            self.pins.committed(table, key, value.map(|value| Row { value, position }));
        }
        Ok(position)
    }
}

/// What was committed since a page was read counts before what was read.
fn overlay<'a>(rows: &mut BTreeMap<Bytes, Row>, since: impl Iterator<Item = (&'a Bytes, &'a Option<Row>)>) {
    for (key, row) in since {
        match row {
            Some(row) => drop(rows.insert(key.clone(), row.clone())),
            None => drop(rows.remove(key)),
        }
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
                taken: Vec::new(),
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
            range => ranges.push(range),
        }
    }
    let ranges = ranges.into_iter().map(|want| async move {
        let found = match &want {
            Want::Records(from, to, bytes) => {
                let to = to.as_deref();
                let chunk = storage.read_range(RECORDS, from, to, limits::SCAN_ROWS, *bytes).await?;
                Found { more: chunk.more && !chunk.rows.is_empty(), ..Found::all(chunk.rows) }
            }
            Want::Hints(prefix) => hints(storage, prefix).await?,
            Want::Row(..) => Found::default(),
        };
        Ok::<_, StorageError>((want, found))
    });
    let read = async {
        let mut all = try_join_all(ranges).await?;
        for some in keys.chunks(limits::READ_KEYS) {
            let named = some.iter().map(|(table, key)| (*table, key.to_vec())).collect();
            for ((table, key), row) in some.iter().zip(storage.read_rows(named).await?) {
                let found = Found::all(row.map(|row| (key.clone(), row)));
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
    let mut found = Found::default();
    loop {
        let chunk =
            storage.read_range(HINTS, &from, to.as_deref(), limits::SCAN_ROWS, limits::SCAN_BYTES).await?;
        let last = chunk.rows.last().map(|(key, _)| layout::key_after(key));
        found.rows.extend(chunk.rows);
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
pub(super) const TOO_LARGE: &str = "too_large_bytes";

/// Whether a refusal is about the size of one record, not about the room that the node has.
pub(crate) fn is_too_large(failure: &Failure) -> bool {
    failure.reason == Reason::LimitStorage && failure.detail(TOO_LARGE).is_some()
}
