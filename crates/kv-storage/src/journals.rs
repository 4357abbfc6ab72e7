//! The journals of an engine, one for each table that has entries, and what a batch may do to them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, RwLock},
};

use bytes::Bytes;

use crate::{
    batch::{Op, TableId},
    disk::Disk,
    error::StorageError,
    journal::{self, Journal, JournalEntry, JournalOp, Laggards, MAX_STREAMS},
    locks::{read, write},
    memtable::Mem,
    pending::StreamId,
    run_mark,
};

/// All journals.
#[derive(Debug)]
pub(crate) struct Journals {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    file_bytes: u64,
    all: RwLock<BTreeMap<TableId, Arc<Journal>>>,
}

impl Journals {
    /// Opens those that have files. Ranges that are lost are named in the program's log.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: PathBuf, file_bytes: u64) -> Result<Journals, StorageError> {
        let mut all = BTreeMap::new();
        for table in journal::tables_in(&*disk, &dir)? {
            let journal = Journal::open(disk.clone(), dir.clone(), table, file_bytes)?;
            for (stream, first, last) in journal.lost() {
                tracing::error!(table, ?stream, first, last, "entries of a journal are lost to damage");
            }
            all.insert(TableId::new(table), Arc::new(journal));
        }
        Ok(Journals { disk, dir, file_bytes, all: RwLock::new(all) })
    }

    /// True when nothing was ever written to any of them.
    pub(crate) fn is_empty(&self) -> bool {
        read(&self.all).values().all(|journal| journal.streams().is_empty())
    }

    pub(crate) fn of(&self, table: TableId) -> Option<Arc<Journal>> {
        read(&self.all).get(&table).cloned()
    }

    fn all(&self) -> Vec<Arc<Journal>> {
        read(&self.all).values().cloned().collect()
    }

    /// Appends and trims durably. One thread of the drain, or of an installation, at a time.
    pub(crate) fn append(&self, table: TableId, ops: &[JournalOp]) -> Result<(), StorageError> {
        let journal = match self.of(table) {
            Some(journal) => journal,
            None => {
                let mut all = write(&self.all);
                let open = || {
                    let (disk, dir) = (self.disk.clone(), self.dir.clone());
                    Journal::open(disk, dir, table.get(), self.file_bytes)
                };
                match all.get(&table) {
                    Some(journal) => journal.clone(),
                    None => all.entry(table).or_insert(Arc::new(open()?)).clone(),
                }
            }
        };
        Ok(journal.append(ops)?)
    }

    /// Puts entries back of a stream that has lost them. Durably.
    pub(crate) fn fill(
        &self,
        (table, stream): &StreamId,
        after: Option<u64>,
        entries: &[JournalEntry],
    ) -> Result<(), StorageError> {
        let journal = self.of(*table);
        let journal =
            journal.ok_or_else(|| StorageError::Invalid(format!("table {} has no journal", table.get())))?;
        Ok(journal.fill(stream, after, entries)?)
    }

    /// The row of a tier batch that records how far the journal of a table is. Nothing for a table without
    /// one.
    pub(crate) fn mark(&self, table: TableId) -> Option<(Bytes, Option<Bytes>)> {
        self.of(table).map(|journal| run_mark::row(table, journal.last_run()))
    }

    /// Refuses a tier that is ahead of a journal: each run was synced before the tier took the batch that
    /// names it, so the disk has lost what it had said to be safe.
    pub(crate) fn check_marks(&self, marks: Vec<(TableId, u64)>) -> Result<(), StorageError> {
        for (table, run) in marks {
            let last = self.of(table).map_or(0, |journal| journal.last_run());
            if last < run {
                let first = last + 1;
                return Err(StorageError::CorruptFile {
                    file: format!("the journal of table {} in {}", table.get(), self.dir.display()),
                    what: format!(
                        "the disk has lost its runs {first} to {run}, which it had synced: the lower tier has what was \
                         written with them. Start this node with an empty data directory"
                    ),
                });
            }
        }
        Ok(())
    }

    /// The floor and the last entry of a stream in the files.
    pub(crate) fn bounds(&self, (table, stream): &StreamId) -> (u64, Option<u64>) {
        let journal = self.of(*table);
        journal.and_then(|journal| journal.standing(stream)).unwrap_or_default()
    }

    /// Bytes of all files.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.all().iter().map(|journal| journal.disk_bytes()).sum()
    }

    /// One bounded step towards giving space back; true if there may be more to do.
    pub(crate) fn reclaim(&self) -> Result<bool, StorageError> {
        let mut more = false;
        for journal in self.all() {
            more |= journal.reclaim(Laggards::Copy)?;
        }
        Ok(more)
    }
}

/// Refuses a batch whose entries are not behind the end of their streams, or name too many streams.
pub(crate) fn follows(journals: &Journals, mem: &Mem, ops: &[Op]) -> Result<(), StorageError> {
    let mut ends: BTreeMap<StreamId, Option<u64>> = BTreeMap::new();
    for op in ops {
        let Op::Journal(table, op) = op else { continue };
        let place = (*table, op.stream().clone());
        let end = match ends.get(&place) {
            Some(end) => *end,
            None => mem.streams.bounds(&place).1.or_else(|| journals.bounds(&place).1),
        };
        let end = match op {
            JournalOp::Append { id, .. } if end.is_some_and(|end| end >= *id) => {
                let why = format!("entry {id} is appended to a stream that has {}", end.unwrap_or(0));
                return Err(StorageError::Invalid(why));
            }
            JournalOp::Append { id, .. } => Some(*id),
            JournalOp::Trim { .. } => end,
        };
        ends.insert(place, end);
    }
    room_for_streams(journals, mem, ends.keys())
}

/// Refuses what would be one stream too many for a journal. Old names are not counted.
pub(crate) fn room_for_streams<'a>(
    journals: &Journals,
    mem: &Mem,
    named: impl Iterator<Item = &'a StreamId>,
) -> Result<(), StorageError> {
    let mut new: BTreeMap<TableId, usize> = BTreeMap::new();
    for place in named {
        let known = journals.of(place.0).is_some_and(|journal| journal.standing(&place.1).is_some());
        *new.entry(place.0).or_default() += usize::from(!known);
    }
    for (table, new) in new.into_iter().filter(|(_, new)| *new > 0) {
        // Those in the memtable may be in the files as well: counted twice, which only makes the check
        // stricter.
        let there = journals.of(table).map_or(0, |journal| journal.streams().len());
        let streams = there + mem.streams.names(table).len() + new;
        if streams > MAX_STREAMS {
            let what = "the streams of a journal";
            return Err(StorageError::TooLarge { what, bytes: streams, max: MAX_STREAMS });
        }
    }
    Ok(())
}
