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
//! - Its workers rotate memtables between other work, so a busy one lets the memtable grow. Here the writer
//!   does it.
//! - Of two workers or more the first spins, sending an order to compact back to the queue and taking it
//!   again, for as long as the other one compacts; a single one writes no memtable out while it compacts.
//!   Here the single one has nothing to merge (it still moves tables that overlap nothing), and a thread of
//!   ours does it ([`super::compactor`]). It may drop what no reader sees, by our own account of readers:
//!   fjall's is not public. A reader that walks all rows needs that; one of a range holds the tables that
//!   it began with.
//! - It reports only that it is poisoned, never why. Reading everything back tells damage from a refusal of
//!   the disk.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
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
    compactor::{Compactor, View, Views},
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
/// Its own threads: it writes memtables out.
const WORKERS: usize = 1;
/// Tables of the first level, and the size of a table, at which its own thread would merge some: hardly ever.
const IDLE: (u8, u64) = (u8::MAX, 1 << 50);
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
    // Before the rows: its thread has a handle of them.
    compactor: Compactor,
    views: Arc<Views>,
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
        .compaction_strategy(Arc::new(
            Leveled::default().with_l0_threshold(IDLE.0).with_table_target_size(IDLE.1),
        ))
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
    let views = Arc::<Views>::default();
    let compactor = Compactor::start({
        let (rows, db, views) = (rows.clone(), db.clone(), views.clone());
        move || compact(&db, &rows, &views)
    })?;
    Ok(FjallTier { compactor, views, rows, db, dir: dir.to_path_buf() })
}

/// One compaction, if one is due; whether there was any.
fn compact(db: &Database, rows: &Keyspace, views: &Views) -> Result<bool, TierError> {
    let strategy = Arc::new(Leveled::default().with_table_target_size(TABLE_BYTES));
    // What is written from now on is visible only to readers that begin later.
    let unseen = views.oldest(|| db.visible_seqno()).saturating_sub(1);
    let before = rows.tree.current_version().id();
    rows.tree.compact(strategy, unseen).map_err(|e| match e {
        // Whether that is damage is for `explain` to find out.
        LsmError::Io(e) => failed(e),
        other => error(Error::Storage(other)),
    })?;
    Ok(rows.tree.current_version().id() != before)
}

impl FjallTier {
    /// Waits until the workers are behind by less than a bound.
    fn wait_until(&self, what: &'static str, ready: impl Fn(&Keyspace) -> bool) -> Result<(), TierError> {
        let deadline = Instant::now() + limits::TIER_WAIT;
        while !ready(&self.rows) {
            self.compactor.check()?;
            // What was written out since it was woken last may be work.
            self.compactor.wake();
            // Nothing is written by this mode; it is the only call that reports poison.
            self.db.persist(PersistMode::Buffer).map_err(error)?;
            if Instant::now() >= deadline {
                return Err(TierError::Stalled { what, bound: limits::TIER_WAIT });
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Keeps what a read sees that begins now.
    fn view(&self) -> View<'_> {
        self.views.begin(|| self.db.visible_seqno())
    }

    fn wait_for_workers(&self) -> Result<(), TierError> {
        self.wait_until("a batch of the lower tier", |rows| {
            rows.sealed_memtable_count() < MAX_SEALED && rows.tree.l0_run_count() < MAX_RUNS
        })
    }

    fn try_apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError> {
        self.compactor.check()?;
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
            self.compactor.wake();
        }
        Ok(())
    }

    fn try_checkpoint(&self) -> Result<(), TierError> {
        self.compactor.check()?;
        if !self.rows.tree.active_memtable().is_empty() {
            self.rows.rotate_memtable().map_err(error)?;
        }
        self.wait_until("a checkpoint of the lower tier", |rows| rows.sealed_memtable_count() == 0)?;
        self.compactor.wake();
        self.db.persist(PersistMode::SyncAll).map_err(error)?;
        // fjall syncs the files of values, and never the folder of their names.
        sync_folder(&self.rows.path().join("blobs"))?;
        self.dir.parent().map_or(Ok(()), sync_folder)
    }

    /// Why fjall gave up, if it did: it keeps that to itself. So with a compaction that failed.
    fn explain(&self, e: TierError) -> TierError {
        let gave_up = self.db.persist(PersistMode::Buffer).is_err() || self.compactor.check().is_err();
        if !gave_up || !matches!(e, TierError::Io(_)) {
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
            let _view = self.view();
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
            let _view = self.view();
            let found = self.rows.range::<&[u8], _>(range).map(|row| row.into_inner().map_err(error));
            rows::chunk(found, limit_rows, limit_bytes)
        })
    }

    fn keys(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<(Vec<Bytes>, bool), TierError> {
        let Some(range) = rows::range(from, to) else { return Ok((Vec::new(), false)) };
        guarded(|| {
            let _view = self.view();
            let found = self.rows.range::<&[u8], _>(range).map(|row| row.key().map_err(error));
            rows::chunk(found.map(|key| key.map(|key| (key, b""))), limit_rows, limit_bytes)
        })
        .map(|chunk| (chunk.rows.into_iter().map(|(key, _)| key).collect(), chunk.more))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(round: u64) -> Vec<(Bytes, Option<Bytes>)> {
        let key = |n: u64| Bytes::from(format!("{n:04}"));
        // Every round overwrites half of the rows and deletes one, so that tables overlap.
        let written = (round % 2..200).step_by(2).map(|n| (key(n), Some(Bytes::from(format!("{round}")))));
        let mut rows: Vec<_> = written.chain([(key(1_000 + round), None)]).collect();
        rows.sort();
        rows
    }

    fn rows_of(tier: &FjallTier) -> Vec<(Bytes, Bytes)> {
        tier.scan(b"0", Some(b"1"), usize::MAX, usize::MAX).expect("a scan").rows
    }

    /// Each checkpoint leaves a table in the first level.
    #[test]
    fn tables_that_overlap_are_merged_and_readers_see_what_they_should() {
        let dir = tempfile::tempdir().expect("a folder");
        let tier = open(dir.path()).expect("a tier");
        for round in 0..12 {
            tier.apply(&batch(round), TierMark::default()).expect("a batch");
            tier.checkpoint().expect("a checkpoint");
            let rows = rows_of(&tier);
            let newest = |n: usize| if n as u64 % 2 == round % 2 { round } else { round - 1 };
            for (n, (_, value)) in rows.iter().enumerate().filter(|_| round > 0) {
                assert_eq!(*value, newest(n).to_string(), "row {n} after round {round}");
            }
        }
        let give_up = Instant::now() + Duration::from_secs(20);
        while tier.rows.tree.l0_run_count() >= 4 {
            assert!(Instant::now() < give_up, "{} runs are left", tier.rows.tree.l0_run_count());
            thread::sleep(LOOK);
        }
        assert_eq!(rows_of(&tier).len(), 200);
        assert_eq!(tier.compactor.check(), Ok(()));
    }

    /// An error of the file system is no damage where all can be read.
    #[test]
    fn a_compaction_that_the_disk_refuses_is_told_and_condemns_no_rows() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut tier = open(dir.path()).expect("a tier");
        tier.apply(&batch(0), TierMark::default()).expect("a batch");
        tier.checkpoint().expect("a checkpoint");
        let refused = || Err(failed(std::io::Error::other("the disk hiccups")));
        tier.compactor = Compactor::start(refused).expect("a thread");
        let give_up = Instant::now() + Duration::from_secs(20);
        while tier.compactor.check().is_ok() {
            assert!(Instant::now() < give_up, "it ends");
            thread::sleep(LOOK);
        }
        for told in [tier.apply(&batch(1), TierMark::default()), tier.checkpoint()] {
            assert!(matches!(&told, Err(TierError::Io(why)) if why.contains("hiccups")), "{told:?}");
        }
    }
}
