//! sled 0.34.7 as lower tier: the only file that names it. Its `flush` does not reach the disk on Linux, its `open` may
//! panic on damage, its iterators are not point-in-time; each is answered here or by the engine above.

use std::{
    fs::{self, File},
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{Tier, TierError, TierMark, TierSource, TierWrites};
use crate::{codec::Cursor, limits};

/// sled's page cache. Small: the working set is in the memtable and the system's page cache, and sled overshoots.
const CACHE_BYTES: u64 = 64 << 20;
/// The row of storage's own table that holds the mark.
const MARK_KEY: &[u8] = &[0, 0, b'm'];
const MARK_VERSION: u8 = 1;
/// Too many open files, in the system and in the process.
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// sled databases in the folder `tier` of a data directory.
#[derive(Debug, Clone, Copy, Default)]
pub struct SledTiers;

#[derive(Debug)]
struct SledTier {
    db: sled::Db,
    dir: PathBuf,
}

fn error(e: sled::Error) -> TierError {
    match e {
        sled::Error::Io(e) if e.to_string().contains("could not acquire lock") => {
            TierError::InUse(e.to_string())
        }
        sled::Error::Io(e) => match e.kind() {
            // Refusals of the file system that another start may not meet. Everything else (a short file, a missing
            // one, a read error) is damage, though sled reports it as input and output.
            ErrorKind::PermissionDenied
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::OutOfMemory => TierError::Io(e.to_string()),
            _ if matches!(e.raw_os_error(), Some(EMFILE | ENFILE)) => TierError::Io(e.to_string()),
            _ => TierError::Damaged(e.to_string()),
        },
        other => TierError::Damaged(other.to_string()),
    }
}

fn io(e: std::io::Error) -> TierError {
    TierError::Io(e.to_string())
}

/// sled panics on some kinds of damage instead of saying so.
fn guarded<T>(f: impl FnOnce() -> Result<T, TierError>) -> Result<T, TierError> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let what =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(TierError::Damaged(format!("sled panicked: {}", what.unwrap_or("no message"))))
    })
}

impl TierSource for SledTiers {
    fn open(&self, dir: &Path) -> Result<Arc<dyn Tier>, TierError> {
        let dir = dir.join("tier");
        let db = guarded(|| {
            let config = sled::Config::new().path(&dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
            config.mode(sled::Mode::HighThroughput).open().map_err(error)
        })?;
        Ok(Arc::new(SledTier { db, dir }))
    }

    fn set_aside(&self, dir: &Path) -> Result<(), TierError> {
        let tier = dir.join("tier");
        if !tier.exists() {
            return Ok(());
        }
        let mut lost: Vec<(u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let number = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("tier.lost-"));
            if let Some(number) = number.and_then(|n| n.parse().ok()) {
                lost.push((number, path));
            }
        }
        lost.sort();
        let next = lost.last().map_or(1, |(n, _)| n + 1);
        fs::rename(&tier, dir.join(format!("tier.lost-{next}"))).map_err(io)?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(io)?;
        let spare = (lost.len() + 1).saturating_sub(limits::KEEP_LOST_TIERS);
        for (_, path) in lost.into_iter().take(spare) {
            fs::remove_dir_all(path).map_err(io)?;
        }
        Ok(())
    }
}

impl Tier for SledTier {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TierError> {
        guarded(|| Ok(self.db.get(key).map_err(error)?.map(|v| Bytes::copy_from_slice(&v))))
    }

    fn scan(&self, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<(Bytes, Bytes)>, TierError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(Vec::new());
        }
        guarded(|| {
            let rows = match to {
                Some(to) => self.db.range(from..to),
                None => self.db.range(from..),
            };
            // The mark is not a row of the caller's.
            let rows = rows.filter(|row| !matches!(row, Ok((k, _)) if k.as_ref() == MARK_KEY));
            rows.take(limit)
                .map(|row| {
                    let (k, v) = row.map_err(error)?;
                    Ok((Bytes::copy_from_slice(&k), Bytes::copy_from_slice(&v)))
                })
                .collect()
        })
    }

    fn apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError> {
        guarded(|| {
            let mut batch = sled::Batch::default();
            for (key, value) in writes {
                match value {
                    Some(value) => batch.insert(key.as_ref(), value.as_ref()),
                    None => batch.remove(key.as_ref()),
                }
            }
            let mut encoded = vec![MARK_VERSION];
            encoded.extend_from_slice(&mark.id.to_le_bytes());
            encoded.extend_from_slice(&mark.drained.to_le_bytes());
            encoded.extend_from_slice(&mark.batch.to_le_bytes());
            let sum = crc32c::crc32c(&encoded);
            encoded.extend_from_slice(&sum.to_le_bytes());
            batch.insert(MARK_KEY, encoded);
            self.db.apply_batch(batch).map_err(error)
        })
    }

    fn mark(&self) -> Result<Option<TierMark>, TierError> {
        let Some(bytes) = self.get(MARK_KEY)? else {
            return Ok(None);
        };
        let damaged = || TierError::Damaged("the mark of the tier cannot be read".into());
        let mut c = Cursor::new(&bytes);
        let version = c.u8().ok_or_else(damaged)?;
        let id = c.u128().ok_or_else(damaged)?;
        let (drained, batch) = (c.u64().ok_or_else(damaged)?, c.u64().ok_or_else(damaged)?);
        let body = bytes.get(..c.position()).ok_or_else(damaged)?;
        if c.u32() != Some(crc32c::crc32c(body)) || version != MARK_VERSION {
            return Err(damaged());
        }
        Ok(Some(TierMark { id, drained, batch }))
    }

    fn checkpoint(&self) -> Result<(), TierError> {
        guarded(|| self.db.flush().map_err(error).map(|_| ()))?;
        // `flush` calls sync_file_range only: no metadata, no device cache. These calls make it true.
        for dir in [self.dir.join("blobs"), self.dir.clone()] {
            for entry in fs::read_dir(&dir).map_err(io)? {
                let path = entry.map_err(io)?.path();
                match File::open(&path) {
                    Ok(file) if path.is_file() => file.sync_data().map_err(io)?,
                    Ok(_) => {}
                    // sled removes its own old snapshots and blobs while we look.
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    Err(e) => return Err(io(e)),
                }
            }
            File::open(&dir).and_then(|d| d.sync_all()).map_err(io)?;
        }
        if let Some(parent) = self.dir.parent() {
            File::open(parent).and_then(|d| d.sync_all()).map_err(io)?;
        }
        Ok(())
    }
}
