//! Starting: read the log, decide whether the tier can be trusted, replay what it misses.

use std::{
    collections::BTreeMap,
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;

use crate::{
    batch::Op,
    cache::RowCache,
    disk::{DirLock, Disk, MemDisk, RealDisk},
    drain,
    engine::Storage,
    error::StorageError,
    identity::{self, Identity},
    journals::Journals,
    key_filter::KeyFilter,
    lifecycle::Lifecycle,
    lower::{LowerTier, clear_suspect, decode_mark, encode_mark, is_suspect},
    memtable::{Mem, Memtable},
    options::{Drive, StorageOptions},
    parts::{Latencies, Parts, Refusals},
    reads, run_mark,
    space::DiskSpace,
    steps,
    tier::{MemTiers, Tier, TierError, TierFolders, TierKind, TierMark, TierSource},
    wal::{
        entry::when_durable,
        log::Log,
        recover::{self, FoundLog, Recovered},
        segments::FIRST_SEGMENT,
        small::small_key,
    },
};

/// What a start found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// The directory was empty.
    pub fresh: bool,
    /// The tier was lost and the log no longer reaches back to the beginning: rebuild from snapshots or
    /// peers, then call [`Storage::acknowledge_tier_lost`]. Reported at every start until then.
    pub tier_lost: bool,
    /// The tier was lost, and all of it replayed from the log.
    pub tier_rebuilt: bool,
    /// Why the tier was set aside, if it was.
    pub tier_error: Option<String>,
    /// Data batches replayed from the log.
    pub replayed: u64,
    /// Bytes of the write that the crash interrupted.
    pub torn_tail_bytes: u64,
    /// Whose directory it is.
    pub identity: Option<Identity>,
}

/// A number that no other tier has. Not for order or decisions, only for telling tiers apart.
fn random_id() -> u128 {
    let half = || u128::from(RandomState::new().build_hasher().finish());
    (half() << 64) | half()
}

struct OpenedTier {
    tier: Arc<dyn Tier>,
    mark: TierMark,
    /// The rows that say how far the journals were.
    runs: Vec<(Bytes, Bytes)>,
    lost: Option<String>,
}

/// A tier as it was found.
enum FirstLook {
    /// No other process has it open.
    Held(Arc<dyn Tier>),
    /// It was found damaged while running, whatever it looks like now.
    Suspect(Option<Arc<dyn Tier>>),
    /// It cannot be read, and why.
    Damaged(String),
}

/// Opens the tier.
fn look(tiers: &dyn TierSource, disk: &dyn Disk, dir: &Path) -> Result<FirstLook, StorageError> {
    let suspect = is_suspect(disk, dir);
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
        FirstLook::Held(tier) => match tier.mark().and_then(|mark| Ok((mark, run_mark::rows(&*tier)?))) {
            Err(TierError::Damaged(why)) => why,
            Err(e) => return Err(e.into()),
            Ok((found, runs)) => match (known, found) {
                (None, None) => {
                    let mark = TierMark { id: random_id(), ..TierMark::default() };
                    return Ok(OpenedTier { tier, mark, runs, lost: None });
                }
                // Nothing was ever checkpointed, so an empty tier misses nothing.
                (Some(known), None) if known.batch == 0 => {
                    return Ok(OpenedTier { tier, mark: known, runs, lost: None });
                }
                (Some(known), Some(found)) if found.id == known.id && found.batch >= known.batch => {
                    return Ok(OpenedTier { tier, mark: found, runs, lost: None });
                }
                (None, Some(found)) => {
                    // The log knows its tier before the tier gets a row: this log is not the one that filled
                    // it.
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
    Ok(OpenedTier { tier, mark, runs: Vec::new(), lost: Some(reason) })
}

/// What the log says about its tier.
fn known_mark(log: &FoundLog) -> Result<Option<TierMark>, StorageError> {
    let Some(bytes) = log.small.get(small_key::TIER) else { return Ok(None) };
    let unknown = || StorageError::CorruptFile {
        file: "the log's small state".into(),
        what: "the mark of the tier has a format that this release does not know".into(),
    };
    decode_mark(bytes).map(Some).ok_or_else(unknown)
}

/// Errors that can be seen before anything is opened or changed.
fn check_owner(disk: &dyn Disk, options: &StorageOptions) -> Result<Option<Identity>, StorageError> {
    let found = identity::read(disk, &options.dir)?;
    match (found, options.identity) {
        (Some(found), Some(expected)) if found != expected => {
            Err(StorageError::ForeignDataDir { found: found.to_string(), expected: expected.to_string() })
        }
        _ => Ok(found),
    }
}

/// The log is never behind its tier: everything was durable in it before it was drained.
fn check_order(log: &FoundLog, mark: TierMark) -> Result<(), StorageError> {
    if mark.drained <= log.last_seq {
        return Ok(());
    }
    let (segment, offset) = log.end();
    let what = format!("the log ends at batch {}, but the tier has batch {}", log.last_seq, mark.drained);
    Err(StorageError::CorruptLog { segment, offset, what })
}

impl Storage {
    /// Opens a data directory, creating it if missing. Blocks while the log is read: call it at start-up or
    /// off the async workers.
    pub fn open(
        options: StorageOptions,
        disk: Arc<dyn Disk>,
        tiers: Arc<dyn TierSource>,
    ) -> Result<(Storage, Recovery), StorageError> {
        options.check()?;
        let dir = options.dir.clone();
        let wal_dir = dir.join("wal");
        disk.create_dir_all(&wal_dir).map_err(StorageError::io("create the data directory"))?;
        let owner = check_owner(&*disk, &options)?;
        // The lock comes before the log is read: the process that had the directory until now may have
        // written more just before it released the lock. And the log comes before the tier is opened, which
        // may change that: a directory with a damaged log is left alone.
        let lock = disk.lock(&dir).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => StorageError::InUse(format!("{} is locked", dir.display())),
            _ => StorageError::io("lock the data directory")(e),
        })?;
        let log = recover::scan(&*disk, &wal_dir)?;
        if log.segments.is_empty() && owner.is_some() {
            // The name is written after the first segment.
            let what = "the log is missing, but the directory has an owner".to_string();
            return Err(StorageError::CorruptLog { segment: FIRST_SEGMENT, offset: 0, what });
        }
        // Before the tier, which may be set aside: journals of another release leave the directory as it is.
        let journals = Journals::open(disk.clone(), dir.join("journals"), options.journal_file_bytes)?;
        if log.segments.is_empty() && !journals.is_empty() {
            let what = "the log is missing or new, but there are journals".to_string();
            return Err(StorageError::CorruptLog { segment: FIRST_SEGMENT, offset: 0, what });
        }
        let found = look(&*tiers, &*disk, &dir)?;
        let known = known_mark(&log)?;
        let opened = settle_tier(&*tiers, &dir, found, known)?;
        check_order(&log, opened.mark)?;
        journals.check_marks(run_mark::read(&opened.runs)?)?;
        let whole = log.is_whole();
        let recovery = Recovery {
            fresh: log.segments.is_empty(),
            tier_error: opened.lost.clone(),
            torn_tail_bytes: log.torn.map_or(0, |(_, n)| n as u64),
            tier_rebuilt: opened.lost.is_some() && whole,
            tier_lost: (opened.lost.is_some() && !whole) || log.small.get(small_key::TIER_LOST).is_some(),
            ..Recovery::default()
        };
        let checkpointed = if opened.lost.is_none() { known.map_or(0, |known| known.drained) } else { 0 };
        let start = Start { options, disk, lock, checkpointed, opened, known, recovery };
        start.finish(log, journals)
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
}

/// A start that has found nothing wrong.
struct Start {
    options: StorageOptions,
    disk: Arc<dyn Disk>,
    lock: DirLock,
    /// Data batches that are on disk in the tier.
    checkpointed: u64,
    opened: OpenedTier,
    known: Option<TierMark>,
    recovery: Recovery,
}

impl Start {
    fn finish(mut self, log: FoundLog, journals: Journals) -> Result<(Storage, Recovery), StorageError> {
        let dir = self.options.dir.clone();
        let drained = self.opened.mark.drained;
        let missing: BTreeMap<u64, Recovered> = log
            .segments
            .iter()
            .filter(|(_, s)| s.max_seq > drained)
            .map(|(id, s)| (*id, s.clone()))
            .collect();
        let storage = self.assemble(log, journals)?;
        let parts = storage.parts();
        self.recovery.identity = identity::check(&*self.disk, &dir, parts.options.identity)?;
        self.record_tier(parts)?;
        self.recovery.replayed = replay(parts, &missing, drained)?;
        clear_suspect(&*self.disk, &dir)?;
        if parts.options.drive == Drive::Threads {
            steps::start_threads(parts)?;
            reads::start(parts)?;
            steps::start_learner(parts)?;
        }
        Ok((storage, self.recovery))
    }

    fn assemble(&mut self, log: FoundLog, journals: Journals) -> Result<Storage, StorageError> {
        let options = Arc::new(self.options.clone());
        let life = Arc::new(Lifecycle::new(options.dir.clone(), options.drive));
        let mem = Mem::new(self.opened.mark.drained);
        let cache = RowCache::new(options.cache_bytes, options.drive)?;
        let around = (self.disk.clone(), options.clone(), life.clone());
        let filter = Arc::new(KeyFilter::new(&options));
        let below = (self.opened.tier.clone(), filter.clone());
        let tier = LowerTier::new(around, below, self.opened.mark, self.checkpointed);
        let log = Log::open(options.clone(), life.clone(), self.disk.clone(), options.dir.join("wal"), log)?;
        let space = Arc::new(DiskSpace::new(self.disk.clone(), &options));
        let parts = Parts {
            options,
            disk: self.disk.clone(),
            life,
            log,
            memtable: Memtable::new(mem, cache, filter),
            tier,
            journals,
            temporaries: Arc::default(),
            refusals: Refusals::default(),
            latencies: Latencies::default(),
            readers: Arc::default(),
            space,
            lock: Mutex::new(Some(self.lock.clone())),
        };
        Ok(Storage::new(Arc::new(parts)))
    }

    /// Which tier belongs to the log is durable before the tier gets its first row.
    fn record_tier(&self, parts: &Parts) -> Result<(), StorageError> {
        if self.known.is_some_and(|known| known.id == self.opened.mark.id) {
            return Ok(());
        }
        let mut marks = vec![(Bytes::from_static(small_key::TIER), Some(encode_mark(self.opened.mark)))];
        if self.recovery.tier_lost {
            // First: a crash between the two must not make an empty tier look like one that never lost
            // anything.
            marks.insert(0, (Bytes::from_static(small_key::TIER_LOST), Some(Bytes::from_static(b"1"))));
        }
        for (key, value) in marks {
            let (done, mut durable) = when_durable();
            parts.log.put_small(key, value, Some(done));
            while parts.log.write_step() {}
            let written = durable.try_recv().unwrap_or_else(|_| Err(StorageError::Closed.into()));
            written.map_err(StorageError::io("record the tier in the log"))?;
        }
        Ok(())
    }
}

/// Puts the data batches that the tier misses into the memtable; drains when that is full. How many there
/// were.
fn replay(parts: &Parts, segments: &BTreeMap<u64, Recovered>, drained: u64) -> Result<u64, StorageError> {
    let (mut last, mut replayed) = (None, 0);
    for (id, segment) in segments {
        segment.replay(*id, drained, |seq, ops, bytes| {
            // The first one that is missing may be gone with its segment: then the loss of the tier was
            // reported.
            assert!(last.is_none_or(|last| seq == last + 1), "data batch {seq} is replayed after {last:?}");
            (last, replayed) = (Some(seq), replayed + 1);
            // The small state is already as the whole log leaves it.
            let ops = ops.into_iter().filter(|op| !matches!(op, Op::Small(..))).collect();
            let full = {
                let mut mem = parts.memtable.write();
                mem.insert(ops, Some(seq), 0, bytes);
                mem.bytes > parts.options.memtable_bytes / 2
            };
            if full {
                while drain::step(parts) {}
                // The memtable must not grow to the size of the log.
                if parts.space.is_drain_waiting() {
                    return Err(parts.space.full());
                }
            }
            parts.life.failure().map_or(Ok(()), Err)
        })?;
    }
    Ok(replayed)
}
