//! fjall 3 as lower tier: the only file that names it.
//!
//! What its source (3.1.13) asks of a user, and the answers:
//! - Its journal is not used. A batch that a power cut tore makes its recovery fail as a whole, a damaged
//!   record in the middle ends a journal silently, and nothing above needs it: our log is the journal. A
//!   checkpoint therefore writes the memtable out as tables, which are synced and have checksums, and an
//!   open empties the journals first. What is found is the state of a whole batch, with its mark.
//! - An open without any journal would start its sequence numbers again below those of the rows: one is
//!   left, empty.
//! - Writers wait for its workers in loops without an end, also after a worker died. Here the same waits
//!   look at poison and have a deadline, and end before its own would begin. What still does not return is
//!   given up by [`super::Watched`].
//! - Its workers rotate memtables between other work, so a busy pair of them lets the memtable grow. Here
//!   the writer does it.
//! - It reports only that it is poisoned, never why. Reading everything back tells damage from a refusal of
//!   the disk.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use bytes::Bytes;
use fjall::{
    AbstractTree, Database, Error, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, LsmError,
    PersistMode, compaction::Leveled,
};
use tokio::time::Instant;

use super::{
    Tier, TierChunk, TierError, TierMark, TierWrites,
    files::{failed, passed_on, sync_folder},
    mark, rows,
    watched::guarded,
};
use crate::limits;

/// Cache of blocks read from tables, bytes.
const CACHE_BYTES: u64 = 32 << 20;
/// Size of a memtable at which it is sealed and written out, bytes.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// Sealed memtables at which a batch waits: fjall's own endless wait begins at four.
const MAX_SEALED: usize = 3;
/// Runs of the first level at which a batch waits: fjall slows down at twenty and waits without end at
/// thirty.
const MAX_RUNS: usize = 24;
/// Its own threads: one prefers writing memtables out, the others compact.
const WORKERS: usize = 2;
/// Size of a table, bytes: what one compaction writes at least, and the unit of the levels.
const TABLE_BYTES: u64 = 16 << 20;
/// Size of a value from which it is kept apart from its key, in files that compactions do not copy.
const APART_BYTES: u32 = 4 << 10;
/// Size of a file of such values, bytes.
const APART_FILE_BYTES: u64 = 16 << 20;
/// The part of such a file that may be overwritten before the rest of it is copied and the file goes.
const APART_STALE: f32 = 0.2;
/// The part of the files due for that, the oldest, which one compaction copies. With all of them a
/// compaction took so long that the first level filled up behind it and batches waited for seconds.
const APART_AT_ONCE: f32 = 0.1;
/// Files of tables kept open.
const OPEN_FILES: usize = 128;
/// How long a wait for the workers sleeps before it looks again.
const LOOK: Duration = Duration::from_millis(2);
/// How long rows are read to find out why fjall gave up.
const DIAGNOSIS: Duration = Duration::from_secs(10);

/// The only keyspace: an idle one would pin journals.
const KEYSPACE: &str = "rows";
/// The file that a complete database has.
const VERSION_FILE: &str = "version";
const JOURNAL: &str = "jnl";

pub(super) struct FjallTier {
    // Before the database, which closes when its last handle goes.
    rows: Keyspace,
    db: Database,
    dir: PathBuf,
}

impl std::fmt::Debug for FjallTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FjallTier").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn error(e: Error) -> TierError {
    match e {
        Error::Io(e) | Error::Storage(LsmError::Io(e)) => passed_on(&e),
        Error::Locked => TierError::InUse("another process has the folder of the tier open".into()),
        Error::Poisoned => TierError::Io("an earlier write of the tier failed".into()),
        other => TierError::Damaged(other.to_string()),
    }
}

/// Leaves one journal, and that one empty. Nothing in them is missed: see the top of this file.
fn forget_journals(dir: &Path) -> Result<(), TierError> {
    if !dir.join(VERSION_FILE).exists() {
        return Ok(());
    }
    let mut journals: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none_or(|extension| extension != JOURNAL) {
            continue;
        }
        let number = path.file_stem().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
        let unknown = || TierError::Damaged(format!("{} is not a journal of fjall", path.display()));
        journals.push((number.ok_or_else(unknown)?, path));
    }
    journals.sort();
    let newest = journals.pop().map_or_else(|| dir.join(format!("0.{JOURNAL}")), |(_, path)| path);
    for (_, path) in journals {
        fs::remove_file(path).map_err(failed)?;
    }
    File::create(newest).and_then(|journal| journal.sync_all()).map_err(failed)?;
    sync_folder(dir)
}

fn options() -> KeyspaceCreateOptions {
    let apart = KvSeparationOptions::default()
        .separation_threshold(APART_BYTES)
        .file_target_size(APART_FILE_BYTES)
        .staleness_threshold(APART_STALE)
        .age_cutoff(APART_AT_ONCE);
    KeyspaceCreateOptions::default()
        .with_kv_separation(Some(apart))
        .manual_journal_persist(true)
        // Sealed by `apply`; larger than that, so that fjall's workers do not do it as well.
        .max_memtable_size(16 * MEMTABLE_BYTES)
        .compaction_strategy(std::sync::Arc::new(Leveled::default().with_table_target_size(TABLE_BYTES)))
}

/// Opens the fjall database in a folder, or creates one.
pub(super) fn open(dir: &Path) -> Result<FjallTier, TierError> {
    // The process that has the lock writes the journals: it is taken first, and again by fjall.
    let lock = dir.join("lock");
    if lock.exists() {
        let file = File::options().read(true).write(true).open(&lock).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => forget_journals(dir)?,
            Err(fs::TryLockError::WouldBlock) => return Err(error(Error::Locked)),
            Err(fs::TryLockError::Error(e)) => return Err(failed(e)),
        }
    }
    let (db, rows) = guarded(|| {
        let db = Database::builder(dir)
            .cache_size(CACHE_BYTES)
            .max_cached_files(Some(OPEN_FILES))
            .manual_journal_persist(true)
            .worker_threads(WORKERS)
            .open()
            .map_err(error)?;
        let rows = db.keyspace(KEYSPACE, options).map_err(error)?;
        Ok((db, rows))
    })?;
    Ok(FjallTier { rows, db, dir: dir.to_path_buf() })
}

impl FjallTier {
    /// Waits until the workers are behind by less than a bound.
    fn wait_until(&self, what: &'static str, ready: impl Fn(&Keyspace) -> bool) -> Result<(), TierError> {
        let deadline = Instant::now() + limits::TIER_WAIT;
        while !ready(&self.rows) {
            // Nothing is written by this mode; it is the only call that reports poison.
            self.db.persist(PersistMode::Buffer).map_err(error)?;
            if Instant::now() >= deadline {
                return Err(TierError::Stalled { what, bound: limits::TIER_WAIT });
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    fn wait_for_workers(&self) -> Result<(), TierError> {
        self.wait_until("a batch of the lower tier", |rows| {
            rows.sealed_memtable_count() < MAX_SEALED && rows.tree.l0_run_count() < MAX_RUNS
        })
    }

    fn try_apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError> {
        self.wait_for_workers()?;
        let mut batch = self.db.batch();
        for (key, value) in writes {
            match value {
                Some(value) => batch.insert(&self.rows, key.as_ref(), value.as_ref()),
                None => batch.remove(&self.rows, key.as_ref()),
            }
        }
        batch.insert(&self.rows, mark::KEY, mark::encode(mark));
        batch.commit().map_err(error)?;
        if self.rows.tree.active_memtable().size() >= MEMTABLE_BYTES {
            self.rows.rotate_memtable().map_err(error)?;
        }
        Ok(())
    }

    fn try_checkpoint(&self) -> Result<(), TierError> {
        if !self.rows.tree.active_memtable().is_empty() {
            self.rows.rotate_memtable().map_err(error)?;
        }
        self.wait_until("a checkpoint of the lower tier", |rows| rows.sealed_memtable_count() == 0)?;
        self.db.persist(PersistMode::SyncAll).map_err(error)?;
        // fjall syncs the files of values, and never the folder of their names.
        sync_folder(&self.rows.path().join("blobs"))?;
        self.dir.parent().map_or(Ok(()), sync_folder)
    }

    /// Why fjall gave up, if it did: it keeps that to itself.
    fn explain(&self, e: TierError) -> TierError {
        if self.db.persist(PersistMode::Buffer).is_ok() || !matches!(e, TierError::Io(_)) {
            return e;
        }
        let probe = self.dir.join("probe");
        let room = File::create(&probe)
            .and_then(|mut file| file.write_all(&[0; 64 << 10]).and_then(|()| file.sync_all()))
            .and_then(|()| fs::remove_file(&probe));
        if let Err(e) = room {
            return passed_on(&e);
        }
        let deadline = Instant::now() + DIAGNOSIS;
        let read = guarded(|| {
            for row in self.rows.iter().take_while(|_| Instant::now() < deadline) {
                row.into_inner().map_err(error)?;
            }
            Ok(())
        });
        match read {
            Err(damaged @ TierError::Damaged(_)) => damaged,
            _ => e,
        }
    }
}

impl Tier for FjallTier {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TierError> {
        guarded(|| Ok(self.rows.get(key).map_err(error)?.map(rows::copy)))
    }

    fn scan(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<TierChunk, TierError> {
        let Some(range) = rows::range(from, to) else { return Ok(TierChunk::default()) };
        guarded(|| {
            let found = self.rows.range::<&[u8], _>(range).map(|row| row.into_inner().map_err(error));
            rows::chunk(found, limit_rows, limit_bytes)
        })
    }

    fn make_room(&self) -> Result<(), TierError> {
        guarded(|| self.wait_for_workers()).map_err(|e| self.explain(e))
    }

    fn apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError> {
        guarded(|| self.try_apply(writes, mark)).map_err(|e| self.explain(e))
    }

    fn unwritten_bytes(&self) -> u64 {
        self.db.write_buffer_size()
    }

    fn mark(&self) -> Result<Option<TierMark>, TierError> {
        mark::decode(self.get(mark::KEY)?)
    }

    fn checkpoint(&self) -> Result<(), TierError> {
        guarded(|| self.try_checkpoint()).map_err(|e| self.explain(e))
    }
}
