//! Removing the segments that nothing needs. In two steps, so that a missing segment is always explained:
//! first the log records durably which segment is its first, then the files before it are removed.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

use super::{
    entry::RaftEntry,
    files::SegmentFiles,
    groups::{Groups, SharedIndex},
    index::Place,
    progress::Progress,
    queue::{Item, Queue, Run},
    segments::segment_path,
    small::small_key,
    writer::Writer,
};
use crate::{
    disk::Disk, error::StorageError, lifecycle::Lifecycle, limits, locks::lock, options::StorageOptions,
};

#[derive(Debug)]
struct Done {
    /// The front segment whose live entries were already copied forward.
    copied: u64,
    /// The log was told that this is its first segment.
    announced: u64,
}

pub(crate) struct Retention {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: Arc<StorageOptions>,
    life: Arc<Lifecycle>,
    queue: Arc<Queue>,
    writer: Arc<Writer>,
    files: Arc<SegmentFiles>,
    groups: Arc<Groups>,
    progress: Arc<Progress>,
    done: Mutex<Done>,
    /// Segments before this one may go: the log says so durably.
    removable: Arc<AtomicU64>,
    pinned_by: Mutex<String>,
}

/// What retention works with.
pub(crate) struct Around {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) options: Arc<StorageOptions>,
    pub(crate) life: Arc<Lifecycle>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) writer: Arc<Writer>,
    pub(crate) files: Arc<SegmentFiles>,
    pub(crate) groups: Arc<Groups>,
    pub(crate) progress: Arc<Progress>,
}

impl Retention {
    pub(crate) fn new(around: Around, first_segment: u64) -> Retention {
        let Around { disk, dir, options, life, queue, writer, files, groups, progress } = around;
        Retention {
            disk,
            dir,
            options,
            life,
            queue,
            writer,
            files,
            groups,
            progress,
            done: Mutex::new(Done { copied: 0, announced: first_segment }),
            removable: Arc::new(AtomicU64::new(first_segment)),
            pinned_by: Mutex::default(),
        }
    }

    /// What keeps the oldest segment, in words.
    pub(crate) fn pinned_by(&self) -> String {
        lock(&self.pinned_by).clone()
    }

    /// One step, given up to which data batch the tier is on disk; true if anything was done.
    pub(crate) fn step(&self, checkpointed: u64) -> Result<bool, StorageError> {
        let mut done = lock(&self.done);
        let gone = self.writer.forget_before(self.removable.load(Ordering::Acquire));
        let mut worked = !gone.is_empty();
        if worked {
            self.remove(&gone)?;
        }
        let kept = self.writer.kept(checkpointed);
        *lock(&self.pinned_by) = kept.pinned_by;
        if kept.keep_from > done.announced {
            done.announced = kept.keep_from;
            drop(done);
            self.announce(kept.keep_from);
            return Ok(true);
        }
        let tight = self.progress.log_bytes() > self.options.max_log_bytes / 2;
        if done.copied != kept.first && kept.keep_from == kept.first && tight {
            // Once per segment: the copies are under way until the segment goes.
            if self.copy_forward(kept.first, checkpointed) {
                done.copied = kept.first;
                worked = true;
            }
        }
        Ok(worked)
    }

    fn announce(&self, keep_from: u64) {
        let (removable, life) = (self.removable.clone(), self.life.clone());
        let done = Box::new(move |result: std::io::Result<()>| {
            if result.is_ok() {
                removable.fetch_max(keep_from, Ordering::AcqRel);
                life.wake_background();
            }
        });
        let value = Bytes::copy_from_slice(&keep_from.to_le_bytes());
        self.queue.put_small(Bytes::from_static(small_key::FIRST), Some(value), Some(done));
    }

    fn remove(&self, gone: &[u64]) -> Result<(), StorageError> {
        let fail = StorageError::io("remove a log segment");
        for id in gone {
            self.files.remove(*id);
            self.disk.remove(&segment_path(&self.dir, *id)).map_err(&fail)?;
        }
        self.disk.sync_dir(&self.dir).map_err(&fail)
    }

    /// Writes the few live entries of the oldest segment again, so that a group at rest does not hold the
    /// whole log.
    fn copy_forward(&self, segment: u64, checkpointed: u64) -> bool {
        let Some(groups) = self.writer.movable(segment, checkpointed) else { return false };
        let groups: Vec<_> = groups.into_iter().filter_map(|g| Some((g, self.groups.known(g)?))).collect();
        let bytes: usize = groups.iter().map(|(_, index)| lock(index).bytes_in(segment)).sum();
        if bytes > limits::MAX_COPY_FORWARD_BYTES.min(self.options.segment_bytes / 4) {
            return false;
        }
        let copied = groups.iter().all(|(group, index)| self.copy_group(*group, index, segment));
        self.life.wake_background();
        copied
    }

    fn copy_group(&self, group: u32, index: &SharedIndex, segment: u64) -> bool {
        let laggards = lock(index).laggards(segment);
        let mut copies = Vec::new();
        // Without the lock: those who ask where the log ends do not wait for the disk.
        for laggard in laggards {
            let payload = match laggard.place {
                Place::Memory(payload) => payload,
                Place::Disk(at) => match self.files.read_entry(group, laggard.id, at) {
                    Ok(payload) => payload,
                    Err(e) => {
                        tracing::error!(error = %e, "an entry could not be copied forward");
                        return false;
                    }
                },
            };
            copies.push((laggard.append_id, RaftEntry { id: laggard.id, payload }));
        }
        // Under the lock again: a truncation or purge comes before the copies or after them, never between.
        let index = lock(index);
        copies.retain(|(append_id, entry)| {
            index.name_of(entry.id.index) == Some(entry.id)
                && index.append_id_of(entry.id.index) == Some(*append_id)
        });
        let item = |(append_id, entry)| Item::Run(Run::new(group, append_id, true, vec![entry]), None);
        self.queue.push(copies.into_iter().map(item).collect());
        true
    }
}
