//! How an engine lives and ends: its phase, its failure, its threads, and what wakes whom. It uses no
//! other owner.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::sync::{Notify, watch};

use crate::{error::StorageError, limits, locks::lock, options::Drive};

/// Phases follow each other in this order; none comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    Running = 0,
    /// What waits for the log is written, nothing new is taken.
    Draining = 1,
    /// Nothing is written any more.
    Halted = 2,
}

/// The life of one engine.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    dir: PathBuf,
    drive: Drive,
    phase: AtomicU8,
    has_failed: AtomicBool,
    failed: watch::Sender<Option<StorageError>>,
    /// Told when the engine fails or leaves the phase `Running`.
    ended: Notify,
    /// Counts what may give a background thread something to do.
    wakes: Mutex<u64>,
    woken: Condvar,
    /// Wakes the caller that pumps, with [`Drive::Manual`].
    driver: Notify,
    /// Threads that have not ended.
    alive: watch::Sender<usize>,
}

impl Lifecycle {
    pub(crate) fn new(dir: PathBuf, drive: Drive) -> Lifecycle {
        Lifecycle {
            dir,
            drive,
            phase: AtomicU8::new(Phase::Running as u8),
            has_failed: AtomicBool::new(false),
            failed: watch::Sender::new(None),
            ended: Notify::new(),
            wakes: Mutex::new(0),
            woken: Condvar::new(),
            driver: Notify::new(),
            alive: watch::Sender::new(0),
        }
    }

    pub(crate) fn has_threads(&self) -> bool {
        self.drive == Drive::Threads
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Draining,
            _ => Phase::Halted,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.phase() == Phase::Running
    }

    pub(crate) fn is_halted(&self) -> bool {
        self.phase() == Phase::Halted
    }

    /// The error that stopped the engine.
    pub(crate) fn failure(&self) -> Option<StorageError> {
        if !self.has_failed.load(Ordering::Acquire) {
            return None;
        }
        self.failed.borrow().clone()
    }

    /// True while background steps may change anything.
    pub(crate) fn may_work(&self) -> bool {
        !self.has_failed.load(Ordering::Acquire) && !self.is_halted()
    }

    /// An error unless the engine runs.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        match self.failure() {
            Some(e) => Err(e),
            None if !self.is_running() => Err(StorageError::Closed),
            None => Ok(()),
        }
    }

    /// Records what stopped the engine: nothing is acknowledged from now on. The first error stays.
    pub(crate) fn fail(&self, e: &StorageError) {
        let first = self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            if first {
                *failed = Some(e.clone());
                // Before those who wait for the failure are woken: none of them finds a commit accepted after
                // it.
                self.has_failed.store(true, Ordering::Release);
            }
            first
        });
        if first && *e != StorageError::Closed {
            tracing::error!(error = %e, dir = %self.dir.display(), "storage failed; the node must stop");
        }
        self.wake_all();
    }

    /// Enters a later phase.
    pub(crate) fn stop(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
        self.wake_all();
    }

    fn wake_all(&self) {
        self.ended.notify_waiters();
        self.driver.notify_one();
        self.wake_background();
    }

    /// Lets the background threads look for work.
    pub(crate) fn wake_background(&self) {
        *lock(&self.wakes) += 1;
        self.woken.notify_all();
    }

    /// Lets the caller that pumps look for work.
    pub(crate) fn wake_driver(&self) {
        self.driver.notify_one();
    }

    /// Resolves when [`Lifecycle::wake_driver`] was called.
    pub(crate) async fn driver_woken(&self) {
        self.driver.notified().await;
    }

    /// Waits until something changed since `seen`, or for `most`.
    pub(crate) fn idle(&self, seen: &mut u64, most: Duration) {
        let mut now = lock(&self.wakes);
        if *now == *seen && self.is_running() {
            now = self.woken.wait_timeout(now, most).unwrap_or_else(PoisonError::into_inner).0;
        }
        *seen = *now;
    }

    /// Resolves when the engine fails or is stopped.
    pub(crate) async fn ended(&self) {
        loop {
            let mut told = std::pin::pin!(self.ended.notified());
            told.as_mut().enable();
            if self.check().is_err() {
                return;
            }
            told.await;
        }
    }

    /// Resolves with the error that stopped the engine.
    pub(crate) async fn failed(&self) -> StorageError {
        let mut failed = self.failed.subscribe();
        let error = failed.wait_for(Option::is_some).await;
        error.ok().and_then(|e| e.clone()).unwrap_or(StorageError::Closed)
    }

    /// Starts a thread of the engine. If its body panics, `panicked` is called on it.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        name: &'static str,
        body: impl FnOnce() + Send + 'static,
        panicked: impl FnOnce(StorageError) + Send + 'static,
    ) -> Result<(), StorageError> {
        let life = self.clone();
        self.alive.send_modify(|n| *n += 1);
        let run = move || {
            if catch_unwind(AssertUnwindSafe(body)).is_err() {
                panicked(StorageError::ThreadPanicked { thread: name });
            }
            life.alive.send_modify(|n| *n -= 1);
        };
        let spawned = thread::Builder::new().name(name.into()).spawn(run);
        if spawned.is_err() {
            self.alive.send_modify(|n| *n -= 1);
        }
        spawned.map(drop).map_err(StorageError::io("start a storage thread"))
    }

    /// Resolves when every thread has ended, or after `most`; false if one has not.
    pub(crate) async fn threads_ended(&self, most: Duration) -> bool {
        let mut alive = self.alive.subscribe();
        tokio::time::timeout(most, alive.wait_for(|n| *n == 0)).await.is_ok()
    }

    /// As [`Lifecycle::threads_ended`], for callers that cannot await.
    pub(crate) fn wait_for_threads(&self, most: Duration) -> bool {
        let looks = most.as_millis() / limits::STOP_LOOK.as_millis().max(1);
        for _ in 0..looks {
            if *self.alive.borrow() == 0 {
                return true;
            }
            thread::sleep(limits::STOP_LOOK);
        }
        *self.alive.borrow() == 0
    }
}
