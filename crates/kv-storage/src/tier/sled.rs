//! sled 0.34.7 as lower tier: the only file that names it. Its `flush` does not reach the disk on Linux,
//! its `open` may panic on damage, its iterators are not point-in-time; each is answered here or by the
//! engine above.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;

use super::{
    Tier, TierChunk, TierError, TierMark, TierWrites,
    files::{failed, passed_on, sync_folder},
    mark, rows,
    watched::guarded,
};

/// sled's page cache. Small: the working set is in the memtable and the system's page cache, and sled
/// overshoots.
const CACHE_BYTES: u64 = 64 << 20;
/// Bytes of one batch: sled keeps a copy of every page that a batch touches until the next flush, so that
/// large batches of keys in random order hold many times their size.
const BATCH_BYTES: usize = 16 << 10;
/// Bytes written after which dirty pages are written back.
const FLUSH_BYTES: u64 = 16 << 20;

#[derive(Debug)]
pub(super) struct SledTier {
    db: sled::Db,
    dir: PathBuf,
    /// Bytes applied since the last flush.
    dirty: AtomicU64,
}

fn error(e: sled::Error) -> TierError {
    match e {
        sled::Error::Io(e) if e.to_string().contains("could not acquire lock") => {
            TierError::InUse(e.to_string())
        }
        sled::Error::Io(e) => passed_on(&e),
        other => TierError::Damaged(other.to_string()),
    }
}

/// Opens the sled database in a folder, or creates one.
pub(super) fn open(dir: &Path) -> Result<SledTier, TierError> {
    let db = guarded(|| {
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        config.mode(sled::Mode::HighThroughput).open().map_err(error)
    })?;
    Ok(SledTier { db, dir: dir.to_path_buf(), dirty: AtomicU64::new(0) })
}

impl Tier for SledTier {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TierError> {
        guarded(|| Ok(self.db.get(key).map_err(error)?.map(rows::copy)))
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
            let found = self.db.range::<&[u8], _>(range).map(|row| row.map_err(error));
            rows::chunk(found, limit_rows, limit_bytes)
        })
    }

    fn apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError> {
        guarded(|| {
            let mut batch = sled::Batch::default();
            let mut bytes = 0;
            for (key, value) in writes {
                bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
                match value {
                    Some(value) => batch.insert(key.as_ref(), value.as_ref()),
                    None => batch.remove(key.as_ref()),
                }
            }
            batch.insert(mark::KEY, mark::encode(mark));
            self.db.apply_batch(batch).map_err(error)?;
            if self.dirty.fetch_add(bytes as u64, Ordering::AcqRel) + bytes as u64 > FLUSH_BYTES {
                self.dirty.store(0, Ordering::Release);
                self.db.flush().map_err(error)?;
            }
            Ok(())
        })
    }

    fn mark(&self) -> Result<Option<TierMark>, TierError> {
        mark::decode(self.get(mark::KEY)?)
    }

    fn checkpoint(&self) -> Result<(), TierError> {
        guarded(|| self.db.flush().map_err(error).map(|_| ()))?;
        self.dirty.store(0, Ordering::Release);
        // `flush` calls sync_file_range only: no metadata, no device cache. These calls make it true.
        for dir in [self.dir.join("blobs"), self.dir.clone()] {
            for entry in fs::read_dir(&dir).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                match File::open(&path) {
                    Ok(file) if path.is_file() => file.sync_data().map_err(failed)?,
                    Ok(_) => {}
                    // sled removes its own old snapshots and blobs while we look.
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    Err(e) => return Err(failed(e)),
                }
            }
            sync_folder(&dir)?;
        }
        self.dir.parent().map_or(Ok(()), sync_folder)
    }

    fn batch_bytes(&self) -> usize {
        BATCH_BYTES
    }
}
