//! A journal: entries in the order of an increasing 64-bit id, by stream, in append-only files of their own.
//! For what is ordered by time and never changed - the history of a namespace, the dots of a replica - where
//! a row in the tier would be written and merged again and again.
//!
//! One drain step appends one *run*: written, then `fdatasync`, before the tier takes the rows of the same
//! step. After a power loss the journal is therefore never behind the tier; where it is ahead, the same
//! entries come again from the log, and an append at or below the end of its stream is compared and skipped.
//!
//! Opening cuts a torn tail only: a run that is damaged with nothing valid behind it. Anything else that is
//! damaged was durable once: its range of ids is named and given up ([`Journal::lost`]), and reading it is an
//! error until it is filled in with what another replica has ([`Journal::fill`]), or the stream is trimmed
//! beyond it. Losing the tier does not lose the journals.
//!
//! Space comes back from the oldest file on: it is removed when no stream wants anything in it. A stream at
//! rest may hold a file up; [`Journal::reclaim`] then copies the few wanted blocks forward or gives them up,
//! as the table demands.

mod format;
mod index;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::{Range, RangeInclusive},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;

use self::{
    format::{BlockEntry, ENTRY_HEAD, Found, Kind, Line},
    index::{BlockRef, Index},
};
use crate::disk::{Disk, DiskFile};

/// Size of a journal file, bytes. A run that is larger has a file of its own size.
pub const FILE_BYTES: u64 = 64 << 20;
/// Bytes of a block at which the next one begins. A reader reads whole blocks; an entry may be larger.
pub const BLOCK_BYTES: usize = 64 << 10;
/// Longest name of a stream, bytes.
pub const MAX_STREAM_BYTES: usize = 64;
/// Streams of one journal at most: every file begins with a line for each.
pub const MAX_STREAMS: usize = 65_536;
/// Bytes of wanted blocks that one step copies out of the oldest file.
pub const COPY_BYTES: u64 = 4 << 20;
/// The oldest file is copied forward once at most one in so many of its bytes is wanted.
pub const COPY_SHARE: u64 = 4;
/// It is also copied forward when the files are larger than what is wanted of them, half of that again and so
/// many files: a stream at rest in the oldest file does not keep what others have trimmed.
pub const SPARE_FILES: u64 = 4;
/// Entries that come again are compared so many bytes at a time.
const COMPARE_BYTES: usize = 1 << 20;

/// What goes into a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalOp {
    /// Adds an entry. Ids of a stream increase.
    Append {
        /// The stream.
        stream: Bytes,
        /// The entry's place in it.
        id: u64,
        /// Its content.
        content: Bytes,
    },
    /// Gives up the entries below an id.
    Trim {
        /// The stream.
        stream: Bytes,
        /// The first id that is kept.
        below: u64,
    },
}

impl JournalOp {
    /// The stream that it is about.
    pub fn stream(&self) -> &Bytes {
        match self {
            JournalOp::Append { stream, .. } | JournalOp::Trim { stream, .. } => stream,
        }
    }
}

/// What happens to wanted blocks in a file that is otherwise no longer needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Laggards {
    /// They are written again, at the end.
    Copy,
    /// They are trimmed, once the journal is larger than so many bytes.
    GiveUp {
        /// The bound on the journal's files.
        above: u64,
    },
}

/// What can go wrong in a journal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The entries asked for were given up.
    #[error("entries below {floor} of this stream were trimmed")]
    Trimmed {
        /// The first id that is kept.
        floor: u64,
    },
    /// The entries asked for were lost to damage on the disk.
    #[error(
        "journal {table}: entries {first} to {last} of stream {stream:?} are damaged on the disk and were given up"
    )]
    Damaged {
        /// The table.
        table: u16,
        /// The stream.
        stream: Bytes,
        /// The first lost id.
        first: u64,
        /// The last lost id.
        last: u64,
    },
    /// An entry comes again with another content: two histories met.
    #[error("journal {table}: entry {id} of stream {stream:?} comes again with another content")]
    Conflict {
        /// The table.
        table: u16,
        /// The stream.
        stream: Bytes,
        /// The entry.
        id: u64,
    },
    /// A file was written by another release, or contradicts the files before it.
    #[error("{file}: {what}; start the release that wrote it, or move the data directory aside")]
    Foreign {
        /// The file.
        file: String,
        /// What was found.
        what: String,
    },
    /// A stream's name is too long, or there are too many streams.
    #[error("journal {table}: {what}")]
    Bound {
        /// The table.
        table: u16,
        /// Which bound.
        what: String,
    },
    /// The disk has no room for a run or for the next file. Nothing was appended; the same may be tried
    /// again.
    #[error("{op}: {message}; nothing was appended")]
    NoRoom {
        /// What was attempted.
        op: &'static str,
        /// The system's words.
        message: String,
    },
    /// An earlier write failed; what it left on the disk is not known.
    #[error("journal {table}: an earlier write failed, nothing is appended any more")]
    Broken {
        /// The table.
        table: u16,
    },
    /// The file system refused.
    #[error("{op}: {message}")]
    Io {
        /// What was attempted.
        op: &'static str,
        /// The kind, for matching.
        kind: io::ErrorKind,
        /// The system's words.
        message: String,
    },
}

fn failed(op: &'static str) -> impl Fn(io::Error) -> JournalError {
    move |e| JournalError::Io { op, kind: e.kind(), message: e.to_string() }
}

/// As [`failed`], for a step before the first sync: a disk without room has refused it, and that is all.
fn refused(op: &'static str) -> impl Fn(io::Error) -> JournalError {
    move |e| match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            JournalError::NoRoom { op, message: e.to_string() }
        }
        _ => failed(op)(e),
    }
}

/// Where the next run goes.
#[derive(Debug)]
struct Writer {
    file: u64,
    end: u64,
    next_run: u64,
    broken: bool,
}

/// An entry with its id.
pub type JournalEntry = (u64, Bytes);

/// The journal of one table. One thread appends; many read. Order of locks: writer, index, files.
#[derive(Debug)]
pub struct Journal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    table: u16,
    file_bytes: u64,
    writer: Mutex<Writer>,
    index: RwLock<Index>,
    files: RwLock<BTreeMap<u64, Arc<dyn DiskFile>>>,
}

fn path_of(dir: &Path, table: u16, file: u64) -> PathBuf {
    dir.join(format!("{table:04x}-{file:016x}.jrn"))
}

/// The files of the journals of a folder: table and number, in order.
fn files_in(disk: &dyn Disk, dir: &Path) -> Result<BTreeSet<(u16, u64)>, JournalError> {
    let paths = disk.list(dir).map_err(failed("list the journal's files"))?;
    let number = |path: &PathBuf| {
        let (table, file) = path.file_name()?.to_str()?.strip_suffix(".jrn")?.split_once('-')?;
        Some((u16::from_str_radix(table, 16).ok()?, u64::from_str_radix(file, 16).ok()?))
    };
    Ok(paths.iter().filter_map(number).collect())
}

/// The tables that have a journal in a folder.
pub fn tables_in(disk: &dyn Disk, dir: &Path) -> Result<BTreeSet<u16>, JournalError> {
    Ok(files_in(disk, dir)?.into_iter().map(|(table, _)| table).collect())
}

/// Consecutive entries of one stream on their way into a run.
struct Pending {
    stream: Bytes,
    before: Option<u64>,
    entries: Vec<JournalEntry>,
}

impl Journal {
    /// Opens the journal of a table in a folder, which is made if missing. Journals of other tables may be in
    /// it as well.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        table: u16,
        file_bytes: u64,
    ) -> Result<Journal, JournalError> {
        disk.create_dir_all(&dir).map_err(refused("create the journal's folder"))?;
        let numbers = files_in(&*disk, &dir)?.into_iter().filter(|(of, _)| *of == table);
        let numbers: Vec<u64> = numbers.map(|(_, number)| number).collect();
        let mut journal = Journal {
            writer: Mutex::new(Writer { file: 0, end: 0, next_run: 1, broken: false }),
            index: RwLock::default(),
            files: RwLock::default(),
            disk,
            dir,
            table,
            file_bytes,
        };
        let numbers = journal.used(numbers)?;
        let newest = numbers.last().copied();
        for (place, number) in numbers.iter().enumerate() {
            journal.recover(*number, place == 0, Some(*number) == newest)?;
        }
        if newest.is_some() {
            // The name of the newest may be in the cache alone, as its last run may.
            journal.disk.sync_dir(&journal.dir).map_err(failed("sync the journal's folder"))?;
        }
        Ok(journal)
    }

    /// These files without those at the end that were made and never used, which are removed: the last one
    /// that was used is the newest, whose tail may be torn.
    fn used(&self, mut numbers: Vec<u64>) -> Result<Vec<u64>, JournalError> {
        let fail = failed("look at a journal file");
        while let Some(number) = numbers.last().copied() {
            let path = path_of(&self.dir, self.table, number);
            let file = self.disk.open(&path, false).map_err(&fail)?;
            let nothing = matches!(format::read(&*file, self.table, number, 0), Ok(Found::Nothing))
                && format::find(&*file, self.table, number, 0).map_err(&fail)?.is_none();
            if !nothing {
                break;
            }
            self.disk.remove(&path).and_then(|()| self.disk.sync_dir(&self.dir)).map_err(&fail)?;
            numbers.pop();
        }
        Ok(numbers)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, number: u64) -> Option<Arc<dyn DiskFile>> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    fn foreign(&self, file: u64, what: String) -> JournalError {
        JournalError::Foreign { file: path_of(&self.dir, self.table, file).display().to_string(), what }
    }

    /// Reads the runs of a file. The tail of the newest is cut where it is torn, and its last run is written
    /// again: its sync may have failed before this start, and then it may be in the cache alone. The next
    /// sync would say that it is on the disk (Linux drops the pages of a sync that fails), and what follows
    /// it must not outlive it.
    fn recover(&mut self, number: u64, oldest: bool, newest: bool) -> Result<(), JournalError> {
        let path = path_of(&self.dir, self.table, number);
        let file = self.disk.open(&path, false).map_err(failed("open a journal file"))?;
        let (mut at, mut runs, mut last) = (0, 0, None);
        let mut next_run = self.writer().next_run;
        let index = self.index.get_mut().unwrap_or_else(PoisonError::into_inner);
        index.add_file(number);
        loop {
            let found =
                format::read(&*file, self.table, number, at).map_err(failed("read a journal file"))?;
            let run = match found {
                Found::Run(run) => run,
                Found::Unknown(what) => return Err(self.foreign(number, what)),
                Found::Nothing => {
                    let later = format::find(&*file, self.table, number, at + 8);
                    match later.map_err(failed("read a journal file"))? {
                        Some(place) => at = place,
                        None => break,
                    }
                    continue;
                }
            };
            // A torn run is one whose blocks do not hold and that nothing follows: the tier never took its
            // step.
            if newest && run.kind == Kind::Run && !holds(&*file, &run) {
                let later = format::find(&*file, self.table, number, run.end);
                if later.map_err(failed("read a journal file"))?.is_none() {
                    break;
                }
            }
            if run.number < next_run {
                return Err(self.foreign(number, format!("run {} after run {next_run}", run.number)));
            }
            let first_head = oldest && runs == 0 && run.kind == Kind::Head;
            let taken = index.take(number, run.payload_at, &run.lines, first_head);
            if let Err(index::Contradiction(what)) = taken {
                return Err(self.foreign(number, what));
            }
            last = Some(at..run.end);
            (at, runs, next_run) = (run.end, runs + 1, run.number + 1);
        }
        let last = last.unwrap_or(0..0);
        let end = last.end;
        if newest {
            write_again(&*file, last).map_err(failed("write the last run of a journal again"))?;
            let cut = clear(&*file, end).and_then(|()| match file.len()? {
                len if len < self.file_bytes => file.set_len(self.file_bytes),
                _ => Ok(()),
            });
            cut.and_then(|()| file.sync_all()).map_err(failed("cut a journal file"))?;
        }
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner);
        *writer = Writer { file: number, end, next_run, broken: false };
        self.files.get_mut().unwrap_or_else(PoisonError::into_inner).insert(number, file);
        Ok(())
    }

    /// Appends entries and trims, all at once, durably. Entries at or below the end of their stream must be
    /// those that are there, and are skipped. [`JournalError::NoRoom`] may be tried again; after any other
    /// error of the disk nothing is appended any more.
    pub fn append(&self, ops: &[JournalOp]) -> Result<(), JournalError> {
        let mut writer = self.writer();
        if writer.broken {
            return Err(JournalError::Broken { table: self.table });
        }
        let (pending, trims) = self.plan(ops)?;
        if pending.is_empty() && trims.is_empty() {
            return Ok(());
        }
        let (mut lines, payload) = self.blocks(&pending, false);
        lines.extend(trims.into_iter().map(|(stream, below)| Line::Trim { stream, below }));
        self.write(&mut writer, lines, &payload)
    }

    /// Puts entries back, durably, of a stream that has lost them: all that it had behind the id `after`
    /// (from its beginning, if there is none) up to the last of these. [`JournalError::Conflict`] where
    /// something from the first of them to the last is still there and can be read.
    pub fn fill(
        &self,
        stream: &Bytes,
        after: Option<u64>,
        entries: &[JournalEntry],
    ) -> Result<(), JournalError> {
        let mut writer = self.writer();
        if writer.broken {
            return Err(JournalError::Broken { table: self.table });
        }
        let (Some((first, _)), Some((last, _))) = (entries.first(), entries.last()) else { return Ok(()) };
        self.lose_unreadable(stream, *first..=*last)?;
        let ascends = entries.is_sorted_by(|(one, _), (next, _)| one < next);
        let lacks = self.index().streams.get(stream).is_some_and(|own| own.lacks(&(*first..=*last)));
        if !ascends || !lacks {
            return Err(self.conflict(stream, *first));
        }
        let pending = Pending { stream: stream.clone(), before: after, entries: entries.to_vec() };
        let (lines, payload) = self.blocks(&[pending], true);
        self.write(&mut writer, lines, &payload)
    }

    /// Gives up the blocks with ids of a range that cannot be read: a sector of the disk may have failed.
    fn lose_unreadable(&self, stream: &Bytes, range: RangeInclusive<u64>) -> Result<(), JournalError> {
        let blocks = self.index().streams.get(stream).map(|own| own.blocks_with(range)).unwrap_or_default();
        for block in blocks {
            match self.load(stream, &block) {
                Ok(_) => {}
                Err(JournalError::Damaged { .. }) => self.index_mut().lose(stream, &block),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// What of a batch is new: runs of entries by stream, and the floors that rise.
    fn plan(&self, ops: &[JournalOp]) -> Result<(Vec<Pending>, BTreeMap<Bytes, u64>), JournalError> {
        let mut entries: BTreeMap<Bytes, BTreeMap<u64, Bytes>> = BTreeMap::new();
        let mut trims: BTreeMap<Bytes, u64> = BTreeMap::new();
        for op in ops {
            match op {
                JournalOp::Append { stream, id, content } => {
                    let old = entries.entry(stream.clone()).or_default().insert(*id, content.clone());
                    if old.is_some_and(|old| old != *content) {
                        return Err(self.conflict(stream, *id));
                    }
                }
                JournalOp::Trim { stream, below } => {
                    let floor = trims.entry(stream.clone()).or_default();
                    *floor = (*floor).max(*below);
                }
            }
        }
        let known: BTreeMap<Bytes, (u64, Option<u64>)> = {
            let index = self.index();
            let new = |name: &&Bytes| !index.streams.contains_key(*name);
            let named: BTreeSet<&Bytes> = entries.keys().chain(trims.keys()).collect();
            let streams = index.streams.len() + named.iter().copied().filter(new).count();
            self.check_names(named.into_iter(), streams)?;
            trims.retain(|stream, below| index.streams.get(stream).map_or(0, |s| s.floor) < *below);
            let known = entries.keys().filter_map(|name| index.streams.get_key_value(name));
            known.map(|(name, s)| (name.clone(), (s.floor, s.last))).collect()
        };
        let mut pending = Vec::new();
        for (stream, mut entries) in entries {
            let (floor, before) = known.get(&stream).copied().unwrap_or((0, None));
            let new = match before {
                Some(last) => entries.split_off(&last.saturating_add(1)),
                None => std::mem::take(&mut entries),
            };
            self.compare(&stream, floor, &entries)?;
            if !new.is_empty() {
                pending.push(Pending { stream, before, entries: new.into_iter().collect() });
            }
        }
        Ok((pending, trims))
    }

    fn check_names<'a>(
        &self,
        names: impl Iterator<Item = &'a Bytes>,
        streams: usize,
    ) -> Result<(), JournalError> {
        let bound = |what: String| Err(JournalError::Bound { table: self.table, what });
        if streams > MAX_STREAMS {
            return bound(format!("{streams} streams, the bound is {MAX_STREAMS}"));
        }
        match names.map(|name| name.len()).max() {
            Some(bytes) if bytes > MAX_STREAM_BYTES => {
                bound(format!("a stream's name has {bytes} bytes, the bound is {MAX_STREAM_BYTES}"))
            }
            _ => Ok(()),
        }
    }

    fn conflict(&self, stream: &Bytes, id: u64) -> JournalError {
        JournalError::Conflict { table: self.table, stream: stream.clone(), id }
    }

    /// Entries that come again must be the ones that are there, where they are still there.
    fn compare(&self, stream: &Bytes, floor: u64, again: &BTreeMap<u64, Bytes>) -> Result<(), JournalError> {
        let mut rest = again.range(floor..).peekable();
        while let Some((from, _)) = rest.peek().copied() {
            let there = match self.read(stream, *from, usize::MAX, COMPARE_BYTES) {
                Ok(there) => there,
                // What was lost or trimmed cannot be compared.
                Err(JournalError::Damaged { last: end, .. }) => {
                    while rest.next_if(|(id, _)| **id <= end).is_some() {}
                    continue;
                }
                Err(JournalError::Trimmed { floor }) => {
                    while rest.next_if(|(id, _)| **id < floor).is_some() {}
                    continue;
                }
                Err(e) => return Err(e),
            };
            // All of these were appended before: one that is not among them never was.
            let end = there.last().map_or(*from, |(id, _)| *id);
            let there: BTreeMap<u64, Bytes> = there.into_iter().collect();
            while let Some((id, content)) = rest.next_if(|(id, _)| **id <= end) {
                if there.get(id) != Some(content) {
                    return Err(self.conflict(stream, *id));
                }
            }
        }
        Ok(())
    }

    /// The directory lines and the payload of new entries.
    fn blocks(&self, pending: &[Pending], copied: bool) -> (Vec<Line>, Vec<u8>) {
        let (mut lines, mut payload) = (Vec::new(), Vec::new());
        for Pending { stream, before, entries } in pending {
            let (mut rest, mut before) = (entries.as_slice(), *before);
            while let Some((first, _)) = rest.first() {
                let offset = payload.len();
                let mut taken = 0;
                for (id, content) in rest {
                    let grown = payload.len() - offset + ENTRY_HEAD + content.len();
                    if taken > 0 && grown > BLOCK_BYTES {
                        break;
                    }
                    format::put_entry(&mut payload, *id, content);
                    taken += 1;
                }
                let (block, later) = rest.split_at(taken);
                let last = block.last().map_or(*first, |(id, _)| *id);
                let bytes = payload.get(offset..).unwrap_or_default();
                lines.push(Line::Block(BlockEntry {
                    stream: stream.clone(),
                    before,
                    first: *first,
                    last,
                    count: taken as u32,
                    offset: offset as u32,
                    bytes: bytes.len() as u32,
                    crc: crc32c::crc32c(bytes),
                    copied,
                }));
                (rest, before) = (later, Some(last));
            }
        }
        (lines, payload)
    }

    /// Writes one run durably, in a new file where the present one has no room, and publishes it.
    fn write(&self, writer: &mut Writer, lines: Vec<Line>, payload: &[u8]) -> Result<(), JournalError> {
        let written = self.try_write(writer, &lines, payload);
        let published = written.and_then(|(file, at)| Ok((file, self.read_back(file, at, &lines)?)));
        // Also when it does not read back: the index does not know of it, so nothing may follow it.
        let refused = |e: &JournalError| matches!(e, JournalError::NoRoom { .. });
        let (file, payload_at) = published.inspect_err(|e| writer.broken = !refused(e))?;
        let taken = self.index_mut().take(file, payload_at, &lines, false);
        // Planned from this very index under the writer's lock.
        assert_eq!(taken, Ok(()), "a journal run contradicts the index it was planned from");
        Ok(())
    }

    fn try_write(
        &self,
        writer: &mut Writer,
        lines: &[Line],
        payload: &[u8],
    ) -> Result<(u64, u64), JournalError> {
        let encode = |number, place| format::encode(Kind::Run, self.table, number, place, lines, payload);
        let mut bytes = encode(writer.next_run, (writer.file, writer.end));
        let room = self.file(writer.file).map(|file| file.len()).transpose();
        let room = room.map_err(failed("read a journal file"))?;
        if room.is_none_or(|len| writer.end + bytes.len() as u64 > len) {
            self.roll(writer, bytes.len() as u64)?;
            bytes = encode(writer.next_run, (writer.file, writer.end));
        }
        let Some(file) = self.file(writer.file) else {
            return Err(JournalError::Broken { table: self.table });
        };
        let at = writer.end;
        if let Err(e) = file.write_at(&bytes, at) {
            clear(&*file, at).map_err(failed("clear the place of a journal run"))?;
            return Err(refused("write a journal run")(e));
        }
        if !kv_types::mutant!(JournalUnsynced) {
            file.sync_data().map_err(failed("sync a journal run"))?;
        }
        writer.end += bytes.len() as u64;
        writer.next_run += 1;
        Ok((writer.file, at))
    }

    /// Checks that the run that was written reads back unchanged. Returns where its payload starts.
    fn read_back(&self, file: u64, at: u64, lines: &[Line]) -> Result<u64, JournalError> {
        let Some(handle) = self.file(file) else { return Err(JournalError::Broken { table: self.table }) };
        match format::read(&*handle, self.table, file, at).map_err(failed("read a journal run back"))? {
            Found::Run(run) if run.lines == lines => Ok(run.payload_at),
            _ => Err(self.foreign(file, format!("the run written at offset {at} does not read back"))),
        }
    }

    /// Makes the next file, durably: its head records the position of every stream.
    fn roll(&self, writer: &mut Writer, run_bytes: u64) -> Result<(), JournalError> {
        let (fail, refuse) = (failed("make a journal file"), refused("make a journal file"));
        let number = writer.file + 1;
        let lines = self.index().head();
        let head = format::encode(Kind::Head, self.table, writer.next_run, (number, 0), &lines, &[]);
        let len = self.file_bytes.max(head.len() as u64 + run_bytes);
        let path = path_of(&self.dir, self.table, number);
        let file = self.disk.open(&path, true).map_err(&refuse)?;
        let filled = file.set_len(0).and_then(|()| file.set_len(len)).and_then(|()| file.write_at(&head, 0));
        if let Err(e) = filled {
            // Also its name: the file before it is the newest, and goes on.
            let gone = self.disk.remove(&path).and_then(|()| self.disk.sync_dir(&self.dir));
            gone.map_err(&fail)?;
            return Err(refuse(e));
        }
        file.sync_all().map_err(&fail)?;
        self.disk.sync_dir(&self.dir).map_err(&fail)?;
        self.index_mut().add_file(number);
        self.files.write().unwrap_or_else(PoisonError::into_inner).insert(number, file);
        (writer.file, writer.end, writer.next_run) = (number, head.len() as u64, writer.next_run + 1);
        Ok(())
    }

    /// Removes streams with all that was ever said of them, durably. A stream of that name begins anew.
    pub fn forget(&self, streams: &[Bytes]) -> Result<(), JournalError> {
        let mut writer = self.writer();
        if writer.broken {
            return Err(JournalError::Broken { table: self.table });
        }
        let lines: Vec<Line> = {
            let index = self.index();
            let known = streams.iter().filter(|stream| index.streams.contains_key(*stream));
            known.map(|stream| Line::Forget { stream: stream.clone() }).collect()
        };
        if lines.is_empty() { Ok(()) } else { self.write(&mut writer, lines, &[]) }
    }

    /// Entries of a stream from an id on, in order: at most `max_entries` and `max_bytes` of content, but at
    /// least one if there is any. Blocks on the disk. Ids below the floor are [`JournalError::Trimmed`], lost
    /// ones [`JournalError::Damaged`] once what comes before them was handed out.
    pub fn read(
        &self,
        stream: &Bytes,
        from: u64,
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Vec<JournalEntry>, JournalError> {
        let (mut out, mut bytes, mut from) = (Vec::new(), 0, from);
        loop {
            let next = self.next_block(stream, from);
            let block = match next {
                Ok(Some(block)) => block,
                Ok(None) => return Ok(out),
                Err(e) if out.is_empty() => return Err(e),
                Err(_) => return Ok(out),
            };
            let entries = match self.load(stream, &block) {
                Ok(Some(entries)) => entries,
                // Trimmed, copied forward or filled in since it was looked up.
                Ok(None) => continue,
                Err(JournalError::Damaged { .. }) if !out.is_empty() => return Ok(out),
                Err(e) => return Err(e),
            };
            for (id, content) in entries.into_iter().filter(|(id, _)| *id >= from) {
                if !out.is_empty() && (out.len() >= max_entries || bytes + content.len() > max_bytes) {
                    return Ok(out);
                }
                bytes += content.len();
                out.push((id, content));
            }
            match block.last.checked_add(1) {
                Some(next) => from = next,
                None => return Ok(out),
            }
        }
    }

    fn next_block(&self, stream: &Bytes, from: u64) -> Result<Option<BlockRef>, JournalError> {
        let index = self.index();
        let Some(own) = index.streams.get(stream) else { return Ok(None) };
        if from < own.floor {
            return Err(JournalError::Trimmed { floor: own.floor });
        }
        let block = own.block_at(from);
        let until = block.map_or(u64::MAX, |b| b.first.saturating_sub(1).max(from));
        match own.gap_in(from..=until) {
            Some((first, last)) if block.is_none_or(|b| first < b.first) => {
                Err(JournalError::Damaged { table: self.table, stream: stream.clone(), first, last })
            }
            _ => Ok(block),
        }
    }

    /// The entries of a block; none where they are not in it any more. A damaged one is given up; one that
    /// the disk fails to read counts as damaged, and is read again when it is asked for again.
    fn load(&self, stream: &Bytes, block: &BlockRef) -> Result<Option<Vec<JournalEntry>>, JournalError> {
        let Some(file) = self.file(block.file) else { return Ok(None) };
        let mut bytes = vec![0; block.bytes as usize];
        let damaged = || {
            let (first, last) = (block.first, block.last);
            JournalError::Damaged { table: self.table, stream: stream.clone(), first, last }
        };
        let n = file.read_at(&mut bytes, block.offset).map_err(|e| {
            tracing::error!(error = %e, table = self.table, ?stream, first = block.first, last = block.last,
                "a block of a journal cannot be read");
            damaged()
        })?;
        bytes.truncate(n);
        let sound = n == block.bytes as usize && crc32c::crc32c(&bytes) == block.crc;
        let entries = sound
            .then(|| format::entries(&Bytes::from(bytes), block.first, block.last, block.count))
            .flatten();
        match entries {
            Some(entries) => Ok(Some(entries)),
            None => {
                let mut index = self.index_mut();
                index.lose(stream, block);
                // None if all of it was filled in meanwhile.
                let lost = index.streams.get(stream).and_then(|own| own.gap_in(block.first..=block.last));
                lost.map_or(Ok(None), |(first, last)| {
                    Err(JournalError::Damaged { table: self.table, stream: stream.clone(), first, last })
                })
            }
        }
    }

    /// The first id that is kept and the last that was appended; none for a stream that never had an entry.
    pub fn bounds(&self, stream: &[u8]) -> Option<(u64, u64)> {
        let index = self.index();
        let own = index.streams.get(stream)?;
        Some((own.floor, own.last?))
    }

    /// The first id that is kept and the last that was appended, of a stream that is known.
    pub fn standing(&self, stream: &[u8]) -> Option<(u64, Option<u64>)> {
        self.index().streams.get(stream).map(|own| (own.floor, own.last))
    }

    /// The number of the last run that is durable; 0 if there is none. Numbers only grow.
    pub fn last_run(&self) -> u64 {
        self.writer().next_run - 1
    }

    /// The streams that were ever used.
    pub fn streams(&self) -> Vec<Bytes> {
        self.index().streams.keys().cloned().collect()
    }

    /// Bytes of the wanted entries of a stream; its owner trims by this figure.
    pub fn stream_bytes(&self, stream: &[u8]) -> u64 {
        self.index().bytes_of(stream)
    }

    /// Bytes of the journal's files.
    pub fn disk_bytes(&self) -> u64 {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.values().map(|file| file.len().unwrap_or(0)).sum()
    }

    /// The ranges of ids that were lost to damage: stream, first, last.
    pub fn lost(&self) -> Vec<(Bytes, u64, u64)> {
        self.index().lost()
    }

    /// One bounded step towards giving space back; true if there may be more to do.
    pub fn reclaim(&self, laggards: Laggards) -> Result<bool, JournalError> {
        let mut writer = self.writer();
        if writer.broken {
            return Err(JournalError::Broken { table: self.table });
        }
        let (oldest, live, files, wanted) = {
            let index = self.index();
            let Some((oldest, live)) = index.oldest() else { return Ok(false) };
            (oldest, live, index.files(), index.wanted())
        };
        if oldest == writer.file || files < 2 {
            return Ok(false);
        }
        if live == 0 {
            self.remove(oldest)?;
            return Ok(true);
        }
        match laggards {
            Laggards::Copy
                if live <= self.file_bytes / COPY_SHARE
                    || self.disk_bytes() > wanted + wanted / 2 + SPARE_FILES * self.file_bytes =>
            {
                self.copy_forward(&mut writer, oldest)
            }
            Laggards::GiveUp { above } if self.disk_bytes() > above => {
                let ends = self.index().ends_in(oldest);
                let lines = ends.into_iter().map(|(stream, below)| Line::Trim { stream, below }).collect();
                self.write(&mut writer, lines, &[])?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn remove(&self, number: u64) -> Result<(), JournalError> {
        self.index_mut().remove_file(number);
        self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
        let removed = self
            .disk
            .remove(&path_of(&self.dir, self.table, number))
            .and_then(|()| self.disk.sync_dir(&self.dir));
        removed.map_err(failed("remove a journal file"))
    }

    fn copy_forward(&self, writer: &mut Writer, oldest: u64) -> Result<bool, JournalError> {
        let (mut pending, mut bytes) = (Vec::new(), 0);
        // Before the loop: a damaged block changes the index.
        let blocks = self.index().blocks_in(oldest);
        for (stream, block) in blocks {
            if bytes > 0 && bytes + u64::from(block.bytes) > COPY_BYTES {
                break;
            }
            match self.load(&stream, &block) {
                Ok(Some(entries)) => {
                    bytes += u64::from(block.bytes);
                    pending.push(Pending { stream, before: block.before, entries });
                }
                Ok(None) => {}
                Err(JournalError::Damaged { .. }) => self.index_mut().lose(&stream, &block),
                Err(e) => return Err(e),
            }
        }
        if !pending.is_empty() {
            let (lines, payload) = self.blocks(&pending, true);
            self.write(writer, lines, &payload)?;
        }
        Ok(true)
    }
}

/// Writes what is in these places once more, so that a sync has to bring it to the disk.
fn write_again(file: &dyn DiskFile, places: Range<u64>) -> io::Result<()> {
    let mut at = places.start;
    let mut buffer = vec![0; (places.end - at).min(COMPARE_BYTES as u64) as usize];
    while at < places.end {
        let most = buffer.len().min((places.end - at) as usize);
        let part = buffer.get_mut(..most).unwrap_or_default();
        // What cannot be read is damage that was there before, and is met when it is asked for.
        match file.read_at(part, at) {
            Ok(read @ 1..) => {
                file.write_at(part.get(..read).unwrap_or_default(), at)?;
                at += read as u64;
            }
            Ok(0) => return Ok(()),
            Err(_) => at += most as u64,
        }
    }
    Ok(())
}

/// Makes a file zeros from `end` on: nothing of a torn run may be found behind a shorter one later.
fn clear(file: &dyn DiskFile, end: u64) -> io::Result<()> {
    let len = file.len()?;
    file.set_len(end.min(len)).and_then(|()| file.set_len(len))
}

/// True when every block of a run is what its directory says. One that the disk fails to read is not torn.
fn holds(file: &dyn DiskFile, run: &format::RunHead) -> bool {
    run.lines.iter().all(|line| {
        let Line::Block(block) = line else { return true };
        let mut bytes = vec![0; block.bytes as usize];
        let read = file.read_at(&mut bytes, run.payload_at + u64::from(block.offset));
        read.is_err() || (read.is_ok_and(|n| n == bytes.len()) && crc32c::crc32c(&bytes) == block.crc)
    })
}
