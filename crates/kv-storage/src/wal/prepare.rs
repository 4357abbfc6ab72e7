//! The segment after the current one, made ahead: its zeros are written while the log is at rest, so that the
//! writer's own syncs carry no metadata.

use std::{
    mem,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tokio::time::Instant;

use super::{progress::Progress, queue::Queue, segments::segment_path};
use crate::{
    disk::{Disk, DiskFile},
    error::StorageError,
    lifecycle::Lifecycle,
    limits,
    locks::lock,
};

#[derive(Debug, Default)]
enum Made {
    /// Wanted.
    #[default]
    Missing,
    /// A thread writes zeros.
    InProgress,
    /// It is there.
    Ready(u64, Arc<dyn DiskFile>),
    /// The last attempt failed.
    Failed,
}

#[derive(Debug)]
struct Next {
    /// The segment that the writer has. Only the one after it may be made.
    current: u64,
    made: Made,
}

/// The next segment.
pub(crate) struct NextSegment {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: usize,
    life: Arc<Lifecycle>,
    queue: Arc<Queue>,
    progress: Arc<Progress>,
    next: Mutex<Next>,
    changed: Condvar,
    /// Why the last attempt failed, until one succeeds.
    failed: Mutex<Option<StorageError>>,
    /// The writer waits for it.
    wanted: AtomicBool,
    /// A thread makes segments, or will as soon as it runs.
    has_maker: AtomicBool,
}

impl NextSegment {
    pub(crate) fn new(
        (disk, dir, segment_bytes): (Arc<dyn Disk>, PathBuf, usize),
        life: Arc<Lifecycle>,
        queue: Arc<Queue>,
        progress: Arc<Progress>,
        current: u64,
    ) -> NextSegment {
        NextSegment {
            disk,
            dir,
            segment_bytes,
            life,
            queue,
            progress,
            next: Mutex::new(Next { current, made: Made::Missing }),
            changed: Condvar::new(),
            failed: Mutex::default(),
            wanted: AtomicBool::new(false),
            has_maker: AtomicBool::new(false),
        }
    }

    /// A thread is about to start that calls [`NextSegment::prepare_step`] as long as the engine runs.
    pub(crate) fn maker_starts(&self) {
        self.has_maker.store(true, Ordering::Release);
    }

    /// Why the last attempt failed, until one succeeds.
    pub(crate) fn failure(&self) -> Option<StorageError> {
        lock(&self.failed).clone()
    }

    /// Hands out the segment with this number, which becomes the writer's, once it is made. Where none will
    /// be made, one without zeros, whose room is not sure: at a start or a stop, and where it could not be
    /// made. Then commits are refused until the one after it is made.
    pub(crate) fn take(&self, id: u64) -> Result<Arc<dyn DiskFile>, StorageError> {
        let mut next = lock(&self.next);
        assert_eq!(id, next.current + 1, "segments follow each other");
        let give_up = Instant::now() + limits::PREPARE_WAIT;
        loop {
            match mem::take(&mut next.made) {
                Made::Ready(ready, file) if ready == id => {
                    next.current = id;
                    return Ok(file);
                }
                made if self.is_to_come(&made) => {
                    next.made = made;
                    if !self.wanted.swap(true, Ordering::AcqRel) {
                        self.life.wake_background();
                    }
                    let waited = self.changed.wait_timeout(next, limits::IDLE_WAIT);
                    next = waited.unwrap_or_else(PoisonError::into_inner).0;
                    if self.life.is_halted() {
                        return Err(StorageError::Closed);
                    }
                    if let Some(failure) = self.life.failure() {
                        return Err(failure);
                    }
                    if Instant::now() > give_up {
                        let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
                        return Err(StorageError::io("prepare the next segment of the log")(late));
                    }
                }
                _ => {
                    let file = create(&*self.disk, &self.dir, id, self.segment_bytes, false, &|_| true)?;
                    next.current = id;
                    return Ok(file);
                }
            }
        }
    }

    /// True while a thread makes the segment, or will. None begins with one before the threads start, nor
    /// once the engine ends.
    fn is_to_come(&self, made: &Made) -> bool {
        match made {
            Made::InProgress => self.life.has_threads(),
            Made::Missing => self.has_maker.load(Ordering::Acquire) && self.life.is_running(),
            Made::Ready(..) | Made::Failed => false,
        }
    }

    /// Makes the next segment, if it is wanted and `room` finds so many bytes for it; true if it is there
    /// now.
    pub(crate) fn prepare_step(&self, room: &dyn Fn(u64) -> Result<(), StorageError>) -> bool {
        let id = {
            let mut next = lock(&self.next);
            match &next.made {
                Made::Missing | Made::Failed => next.made = Made::InProgress,
                Made::Ready(id, _) if *id <= next.current => next.made = Made::InProgress,
                _ => return false,
            }
            next.current + 1
        };
        let made = room(self.segment_bytes as u64).and_then(|()| {
            create(&*self.disk, &self.dir, id, self.segment_bytes, true, &|done| self.pace_zeros(done))
        });
        let ok = made.is_ok();
        let before = std::mem::replace(&mut *lock(&self.failed), made.as_ref().err().cloned());
        if let Err(e) = &made
            && !self.life.is_halted()
        {
            match before {
                None => {
                    tracing::warn!(error = %e, "the next log segment could not be prepared; commits are refused until it can");
                }
                Some(_) => tracing::debug!(error = %e, "the next log segment could not be prepared again"),
            }
        }
        lock(&self.next).made = match made {
            Ok(file) => Made::Ready(id, file),
            Err(_) => Made::Failed,
        };
        self.wanted.store(false, Ordering::Release);
        self.changed.notify_all();
        ok
    }

    /// The engine ends: the writer does not wait on.
    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Waits until the next piece of zeros may be written; false to give up. While the log is being written,
    /// zeros keep just so far ahead of it that they are done in time; they take the disk for themselves while
    /// it rests.
    fn pace_zeros(&self, done: usize) -> bool {
        let (to, of) = limits::ZERO_LEAD;
        while self.life.has_threads() && self.life.is_running() {
            let active = self.progress.active_bytes();
            let behind = (done as u64) * of < active * to;
            if behind || self.wanted.load(Ordering::Acquire) || self.life.failure().is_some() {
                break;
            }
            thread::sleep(limits::ZERO_PAUSE);
            if self.queue.waiting_bytes() == (0, 0) && active == self.progress.active_bytes() {
                break;
            }
        }
        !self.life.is_halted()
    }
}

/// Makes a segment file. With `zeros` its blocks are written, so that later syncs need no metadata; `go_on`
/// is asked before each piece, given what is done, and may take its time to answer.
pub(crate) fn create(
    disk: &dyn Disk,
    dir: &Path,
    id: u64,
    bytes: usize,
    zeros: bool,
    go_on: &dyn Fn(usize) -> bool,
) -> Result<Arc<dyn DiskFile>, StorageError> {
    let fail = StorageError::io("prepare a log segment");
    let file = disk.open(&segment_path(dir, id), true).map_err(&fail)?;
    fill(&*file, bytes, zeros, go_on).inspect_err(|_| {
        // A disk that is full has better use for these zeros.
        if let Err(e) = file.set_len(0) {
            tracing::debug!(error = %e, "an unfinished segment keeps its room");
        }
    })?;
    disk.sync_dir(dir).map_err(&fail)?;
    Ok(file)
}

fn fill(
    file: &dyn DiskFile,
    bytes: usize,
    zeros: bool,
    go_on: &dyn Fn(usize) -> bool,
) -> Result<(), StorageError> {
    let fail = StorageError::io("prepare a log segment");
    if zeros {
        let chunk = vec![0; limits::ZERO_CHUNK.min(bytes)];
        let mut at = 0;
        while at < bytes {
            if !go_on(at) {
                return Err(StorageError::Closed);
            }
            let n = chunk.len().min(bytes - at);
            file.write_at(chunk.get(..n).unwrap_or_default(), at as u64).map_err(&fail)?;
            at += n;
            // In pieces: one sync of a whole segment would hold up the log's own syncs.
            file.sync_data().map_err(&fail)?;
        }
    }
    file.set_len(bytes as u64).map_err(&fail)?;
    file.sync_all().map_err(&fail)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{disk::MemDisk, options::StorageOptions, wal::small::SmallState};

    const SEGMENT: usize = 256 << 10;

    fn next_segment(disk: &MemDisk) -> Arc<NextSegment> {
        let options = StorageOptions::small("/data");
        assert_eq!(options.segment_bytes, SEGMENT);
        let life = Arc::new(Lifecycle::new("/data".into(), options.drive));
        assert!(life.has_threads());
        let queue = Arc::new(Queue::new(&options, life.clone(), SmallState::default(), 0));
        let made_in: (Arc<dyn Disk>, _, _) = (Arc::new(disk.clone()), PathBuf::from("/data"), SEGMENT);
        let next = NextSegment::new(made_in, life, queue, Arc::new(Progress::new(SEGMENT)), 1);
        next.maker_starts();
        Arc::new(next)
    }

    /// Makes the segment that a thread asks for, as `room` allows, once it waits; what the thread got.
    fn made_for_a_writer(
        next: &Arc<NextSegment>,
        room: Result<(), StorageError>,
    ) -> Result<Arc<dyn DiskFile>, StorageError> {
        let writer = thread::spawn({
            let next = next.clone();
            move || next.take(2)
        });
        let give_up = Instant::now() + Duration::from_secs(10);
        while !next.wanted.load(Ordering::Acquire) {
            assert!(!writer.is_finished() && Instant::now() < give_up, "the writer waits for the segment");
            thread::sleep(Duration::from_millis(1));
        }
        let _ = next.prepare_step(&|_| room.clone());
        writer.join().expect("no panic")
    }

    /// The thread that makes segments may be late: the writer takes none that has no room, whose end could be
    /// an end of the node.
    #[test]
    fn a_writer_that_comes_first_waits_for_room_that_is_sure() {
        let disk = MemDisk::new(1);
        let next = next_segment(&disk);
        made_for_a_writer(&next, Ok(())).expect("there is room");
        assert_eq!((next.failure(), disk.used()), (None, SEGMENT as u64));
    }

    #[test]
    fn a_segment_without_room_is_the_last_word_and_says_so() {
        let disk = MemDisk::new(1);
        let next = next_segment(&disk);
        let full = StorageError::DiskFull { free: 1, reserve: 2 };
        made_for_a_writer(&next, Err(full.clone())).expect("one without zeros");
        assert_eq!((next.failure(), disk.used()), (Some(full), 0));
    }

    /// What a start records in the log, and what a stop still writes: no thread makes a segment for that.
    #[test]
    fn a_writer_without_a_thread_that_makes_segments_waits_for_none() {
        for ends in [false, true] {
            let disk = MemDisk::new(1);
            let next = next_segment(&disk);
            match ends {
                true => next.life.stop(crate::lifecycle::Phase::Draining),
                false => next.has_maker.store(false, Ordering::Release),
            }
            next.take(2).expect("one without zeros");
            assert!(!next.wanted.load(Ordering::Acquire));
        }
    }
}
