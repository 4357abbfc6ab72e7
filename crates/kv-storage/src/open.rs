//! Starting: read the log, decide whether the tier can be trusted, replay what it misses.

use std::{
    collections::BTreeMap,
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    path::Path,
    sync::{
        Arc, Condvar, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64},
    },
};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use crate::{
    batch,
    checkpoint::{Checkpointer, decode_mark, encode_mark},
    codec::Cursor,
    disk::{Disk, DiskFile, MemDisk, RealDisk},
    engine::{Counters, Inner, Storage, Waiters, live_of, write},
    error::StorageError,
    identity::{self, Identity},
    memtable::Mem,
    options::{Drive, StorageOptions},
    raft_log::when_durable,
    reads::Readers,
    tier::{MemTiers, Tier, TierError, TierFolders, TierKind, TierMark, TierSource},
    wal::{
        FIRST_SEGMENT, Queues, recover, segment_path,
        segments::{self, Prepared, SegmentInfo, Segments},
        small_key,
        writer::Writer,
    },
};

/// What a start found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// The directory was empty.
    pub fresh: bool,
    /// The tier was lost and the log no longer reaches back to the beginning: rebuild from snapshots or peers, then call
    /// [`Storage::acknowledge_tier_lost`]. Reported at every start until then.
    pub tier_lost: bool,
    /// The tier was lost, and all of it replayed from the log.
    pub tier_rebuilt: bool,
    /// Why the tier was set aside, if it was.
    pub tier_error: Option<String>,
    /// Data batches replayed from the log.
    pub replayed: u64,
    /// Bytes of the write that the crash interrupted.
    pub torn_tail_bytes: u64,
    /// Replacements that never finished, by name: their ranges answer `Replacing` until they are done again.
    pub unfinished_replaces: Vec<Bytes>,
    /// Whose directory it is.
    pub identity: Option<Identity>,
}

const SUSPECT: &str = "TIER-SUSPECT";

/// Tells the next start to set the tier aside.
pub(crate) fn mark_suspect(disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
    disk.open(&dir.join(SUSPECT), true)
        .and_then(|_| disk.sync_dir(dir))
        .map_err(StorageError::io("mark the tier as damaged"))
}

/// A number that no other tier has. Not for order or decisions, only for telling tiers apart.
fn random_id() -> u128 {
    let half = || u128::from(RandomState::new().build_hasher().finish());
    (half() << 64) | half()
}

struct OpenedTier {
    tier: Arc<dyn Tier>,
    mark: TierMark,
    lost: Option<String>,
}

/// A tier as it was found.
enum FirstLook {
    /// Nobody else has it.
    Held(Arc<dyn Tier>),
    /// It was found damaged while running, whatever it looks like now.
    Suspect(Option<Arc<dyn Tier>>),
    /// It cannot be read, and why.
    Damaged(String),
}

/// Opens the tier: its lock keeps a second process away from the log too.
fn look(tiers: &dyn TierSource, disk: &dyn Disk, dir: &Path) -> Result<FirstLook, StorageError> {
    let suspect = disk.exists(&dir.join(SUSPECT));
    match tiers.open(dir) {
        Err(refused @ (TierError::InUse(_) | TierError::Foreign(_))) => Err(refused.into()),
        found if suspect => Ok(FirstLook::Suspect(found.ok())),
        Ok(tier) => Ok(FirstLook::Held(tier)),
        Err(TierError::Damaged(why)) => Ok(FirstLook::Damaged(why)),
        Err(other) => Err(other.into()),
    }
}

/// The tier that belongs to this log: the one that was found, or an empty one after it was set aside.
fn settle_tier(
    tiers: &dyn TierSource,
    dir: &Path,
    found: FirstLook,
    known: Option<TierMark>,
) -> Result<OpenedTier, StorageError> {
    let reason = match found {
        FirstLook::Suspect(tier) => {
            drop(tier);
            "it was found damaged while running".to_string()
        }
        FirstLook::Damaged(why) => why,
        FirstLook::Held(tier) => match tier.mark() {
            Err(TierError::Damaged(why)) => why,
            Err(e) => return Err(e.into()),
            Ok(found) => match (known, found) {
                (None, None) => {
                    let mark = TierMark { id: random_id(), ..TierMark::default() };
                    return Ok(OpenedTier { tier, mark, lost: None });
                }
                // Nothing was ever checkpointed, so an empty tier misses nothing.
                (Some(known), None) if known.batch == 0 => {
                    return Ok(OpenedTier { tier, mark: known, lost: None });
                }
                (Some(known), Some(found)) if found.id == known.id && found.batch >= known.batch => {
                    return Ok(OpenedTier { tier, mark: found, lost: None });
                }
                (None, Some(found)) => {
                    // The log knows its tier before the tier gets a row: this log is not the one that filled it.
                    let what = format!(
                        "the log is missing or new, but the tier has {} batches of it",
                        found.drained
                    );
                    return Err(StorageError::CorruptLog { segment: FIRST_SEGMENT, offset: 0, what });
                }
                (Some(_), None) => "it is empty".to_string(),
                (Some(known), Some(found)) if found.id != known.id => "it is another tier".to_string(),
                (Some(known), Some(found)) => {
                    format!("it is at batch {}, but was on disk up to {}", found.batch, known.batch)
                }
            },
        },
    };
    tracing::error!(reason, dir = %dir.display(), "the lower tier cannot be trusted and is set aside");
    tiers.set_aside(dir)?;
    let tier = tiers.open(dir)?;
    let mark = TierMark { id: random_id(), ..TierMark::default() };
    Ok(OpenedTier { tier, mark, lost: Some(reason) })
}

impl Storage {
    /// Opens a data directory, creating it if missing. Blocks while the log is read: call it at start-up or off the
    /// async workers.
    pub fn open(
        options: StorageOptions,
        disk: Arc<dyn Disk>,
        tiers: Arc<dyn TierSource>,
    ) -> Result<(Storage, Recovery), StorageError> {
        options.check()?;
        let dir = options.dir.clone();
        let wal_dir = dir.join("wal");
        disk.create_dir_all(&wal_dir).map_err(StorageError::io("create the data directory"))?;
        if let (Some(found), Some(expected)) = (identity::read(&*disk, &dir)?, options.identity)
            && found != expected
        {
            return Err(StorageError::ForeignDataDir {
                found: found.to_string(),
                expected: expected.to_string(),
            });
        }
        let log = recover::scan(&*disk, &wal_dir)?;
        if log.segments.is_empty() && identity::read(&*disk, &dir)?.is_some() {
            // The name is written after the first segment.
            let what = "the log is missing, but the directory has an owner".to_string();
            return Err(StorageError::CorruptLog { segment: FIRST_SEGMENT, offset: 0, what });
        }
        // A damaged log is left alone: nothing was changed before this line. Whoever has the tier writes the log, so it is read
        // again with the tier in hand: who had it until now may have written more.
        let found = look(&*tiers, &*disk, &dir)?;
        drop(log);
        let log = recover::scan(&*disk, &wal_dir)?;
        let known = match log.small.get(small_key::TIER) {
            Some(bytes) => Some(decode_mark(bytes).ok_or_else(|| StorageError::CorruptFile {
                file: "the log's small state".into(),
                what: "the mark of the tier has a format that this release does not know".into(),
            })?),
            None => None,
        };
        let opened = settle_tier(&*tiers, &dir, found, known)?;
        if opened.mark.drained > log.last_seq {
            let (segment, found) = log.segments.last_key_value().map_or((0, 0), |(id, s)| (*id, s.end));
            let what = format!(
                "the log ends at batch {}, but the tier has batch {}",
                log.last_seq, opened.mark.drained
            );
            return Err(StorageError::CorruptLog { segment, offset: found, what });
        }
        let mut recovery = Recovery {
            fresh: log.segments.is_empty(),
            tier_error: opened.lost.clone(),
            torn_tail_bytes: log.torn.map_or(0, |(_, n)| n as u64),
            ..Recovery::default()
        };
        let whole = log.is_whole();
        recovery.tier_rebuilt = opened.lost.is_some() && whole;
        recovery.tier_lost =
            (opened.lost.is_some() && !whole) || log.small.contains_key(small_key::TIER_LOST);
        let storage = Storage::assemble(options, disk.clone(), wal_dir, log, &opened, &mut recovery)?;
        let inner = storage.inner();
        recovery.identity = identity::check(&*disk, &dir, inner.options.identity)?;
        // Which tier belongs to the log is durable before the tier gets its first row.
        if known.is_none_or(|known| known.id != opened.mark.id) {
            let mut marks = vec![(Bytes::from_static(small_key::TIER), Some(encode_mark(opened.mark)))];
            if recovery.tier_lost {
                // First: a crash between the two must not make an empty tier look like one that never lost anything.
                marks.insert(0, (Bytes::from_static(small_key::TIER_LOST), Some(Bytes::from_static(b"1"))));
            }
            for (key, value) in marks {
                let (done, mut durable) = when_durable();
                inner.put_own(key, value, Some(done));
                while inner.writer_step() {}
                let written = durable.try_recv().unwrap_or_else(|_| Err(StorageError::Closed.into()));
                written.map_err(StorageError::io("record the tier in the log"))?;
            }
        }
        let suspect = dir.join(SUSPECT);
        if disk.exists(&suspect) {
            disk.remove(&suspect)
                .and_then(|()| disk.sync_dir(&dir))
                .map_err(StorageError::io("clear the mark"))?;
        }
        if inner.options.drive == Drive::Threads {
            inner.start_threads()?;
            inner.start_readers()?;
        }
        Ok((storage, recovery))
    }

    /// Opens a directory of this machine, with a lower tier of that kind.
    pub fn open_dir(options: StorageOptions, kind: TierKind) -> Result<(Storage, Recovery), StorageError> {
        Storage::open(options, Arc::new(RealDisk), Arc::new(TierFolders::new(kind)))
    }

    /// A new engine in memory, for tests.
    pub fn open_memory(seed: u64) -> Result<(Storage, Recovery), StorageError> {
        let options = StorageOptions::memory("/memory");
        Storage::open(options, Arc::new(MemDisk::new(seed)), Arc::new(MemTiers::new()))
    }

    fn assemble(
        options: StorageOptions,
        disk: Arc<dyn Disk>,
        wal_dir: std::path::PathBuf,
        log: recover::Log,
        opened: &OpenedTier,
        recovery: &mut Recovery,
    ) -> Result<Storage, StorageError> {
        let fail = StorageError::io("clean the end of the log");
        for id in &log.empty {
            disk.remove(&segment_path(&wal_dir, *id)).map_err(&fail)?;
        }
        if !log.empty.is_empty() {
            disk.sync_dir(&wal_dir).map_err(&fail)?;
        }
        if let (Some((from, n)), Some((id, last))) = (log.torn, log.segments.last_key_value()) {
            tracing::warn!(segment = id, offset = from, bytes = n, "the last write was torn and is cut off");
            last.file.write_at(&vec![0; n], from).map_err(&fail)?;
        }
        // The last frame may have been written and never synced, by a process killed in between; the ones before it were, or
        // it would not be there. From here on it counts as durable, is voted by and answered from, and what follows it must
        // not outlive it. It is written again first: Linux drops the pages of a sync that failed, shows them as long as it has
        // them and calls them clean, so that a second sync alone would succeed without them.
        if let Some(last) = log.segments.values().next_back() {
            let again =
                log.unproven.as_ref().map_or(Ok(()), |(from, frame)| last.file.write_at(frame, *from));
            again
                .and_then(|()| last.file.sync_data())
                .map_err(StorageError::io("make the end of the log durable"))?;
        }
        let mut mem = Mem::new(log.small.clone(), log.last_seq, opened.mark.drained);
        for (key, value) in &log.small {
            if let Some(name) = key.strip_prefix(small_key::REPLACE) {
                let name = Bytes::copy_from_slice(name);
                mem.replacing.insert(name.clone(), crate::replace::decode_ranges(value).unwrap_or_default());
                recovery.unfinished_replaces.push(name);
            }
        }
        let mut segments = Segments::default();
        for (id, found) in &log.segments {
            segments.known.insert(*id, SegmentInfo { max_seq: found.max_seq, live: 0 });
        }
        for (group, first, of) in live_of(&log.groups) {
            segments.restore(group, first, of);
        }
        let files: BTreeMap<u64, Arc<dyn DiskFile>> =
            log.segments.iter().map(|(id, s)| (*id, s.file.clone())).collect();
        let first_segment = log.segments.keys().next().copied().unwrap_or(FIRST_SEGMENT);
        let (segment, file, offset, start) = match log.segments.last_key_value() {
            Some((id, last)) => (*id, last.file.clone(), last.end, false),
            None => {
                let bytes = options.segment_bytes;
                let file = segments::create(&*disk, &wal_dir, FIRST_SEGMENT, bytes, true, &|_| true)?;
                (FIRST_SEGMENT, file, 0, true)
            }
        };
        let checkpointed = match (&opened.lost, log.small.get(small_key::TIER).and_then(|b| decode_mark(b))) {
            (None, Some(known)) => known.drained,
            _ => 0,
        };
        let writer = Writer {
            segment,
            file,
            offset,
            number: log.frame_number,
            small: log.small,
            last_seq: log.last_seq,
            segments,
            buf: Vec::new(),
            runs_at: Vec::new(),
        };
        let groups = log.groups.into_iter().map(|(id, g)| (id, Arc::new(Mutex::new(g)))).collect();
        let inner = Arc::new(Inner {
            options,
            disk,
            wal_dir,
            mem: RwLock::new(mem),
            queues: Mutex::new(Queues::default()),
            queued: Condvar::new(),
            closed_segments: AtomicU64::new(log.segments.len().saturating_sub(1) as u64),
            active_bytes: AtomicU64::new(offset),
            writer: Mutex::new(writer),
            files: RwLock::new(files),
            prepared: Mutex::new(Prepared::default()),
            prepared_changed: Condvar::new(),
            prepare_failed: AtomicBool::new(false),
            segment_wanted: AtomicBool::new(false),
            groups: RwLock::new(groups),
            tier: RwLock::new(Some(opened.tier.clone())),
            raft_pushed: Default::default(),
            raft_written: Default::default(),
            drain_mark: Mutex::new(opened.mark),
            gate: RwLock::new(()),
            cuts: Mutex::default(),
            checkpointer: Mutex::new(Checkpointer::new(first_segment)),
            removable: AtomicU64::new(first_segment),
            durable_seq: AtomicU64::new(log.last_seq),
            waiters: Mutex::<Waiters>::default(),
            checkpointed_seq: AtomicU64::new(checkpointed),
            checkpointed: watch::Sender::new(0),
            wanted_ord: AtomicU64::new(0),
            pinned_by: Mutex::default(),
            failed: watch::Sender::new(None),
            has_failed: AtomicBool::new(false),
            state: AtomicU64::new(0),
            work: Notify::new(),
            room: Notify::new(),
            background: Mutex::new(0),
            background_changed: Condvar::new(),
            threads: Mutex::default(),
            alive: watch::Sender::new(0),
            counters: Counters::default(),
            temporaries: Arc::default(),
            readers: Readers::default(),
        });
        if start {
            let mut w = crate::engine::lock(&inner.writer);
            let file = w.file.clone();
            inner.open_segment(&mut w, FIRST_SEGMENT, file, (0, 0))?;
        }
        for (id, found) in &log.segments {
            if found.max_seq > opened.mark.drained {
                recovery.replayed += inner.replay(*id, found, opened.mark.drained)?;
            }
        }
        Ok(Storage::new(inner))
    }
}

impl Inner {
    /// Puts the data batches of a segment that the tier misses into the memtable; drains when that is full.
    fn replay(&self, id: u64, segment: &recover::Recovered, drained: u64) -> Result<u64, StorageError> {
        let mut replayed = 0;
        for body in recover::data_of(id, segment)? {
            let seq = Cursor::new(&body).u64().unwrap_or(0);
            if seq <= drained {
                continue;
            }
            let Some((_, ops)) = batch::decode(&body) else { continue };
            // The small state is already as the whole log leaves it.
            let ops = ops.into_iter().filter(|op| matches!(op, batch::Op::Table(..))).collect();
            let full = {
                let mut mem = write(&self.mem);
                mem.insert(ops, Some(seq), 0, body.len());
                mem.bytes > self.options.memtable_bytes / 2
            };
            replayed += 1;
            if full {
                while self.drain_step() {}
                if let Some(e) = self.failure() {
                    return Err(e);
                }
            }
        }
        Ok(replayed)
    }
}
