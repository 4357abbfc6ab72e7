//! Who runs the steps: four threads, or one caller that pumps; and how they end.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    thread,
};

use tokio::sync::oneshot;

use crate::{
    engine::{DRAINING, HALTED, Inner, RUNNING, lock, write},
    error::StorageError,
    limits,
    options::Drive,
    wal::Item,
};

impl Inner {
    /// Waits until something changed or the idle time is over.
    fn idle(&self, seen: &mut u64) {
        let mut now = lock(&self.background);
        if *now == *seen && self.state.load(Ordering::Acquire) == RUNNING {
            let wait = limits::IDLE_WAIT.min(self.options.drain_interval);
            now = self.background_changed.wait_timeout(now, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        *seen = *now;
    }

    pub(crate) fn stop(&self, how: u64) {
        self.state.fetch_max(how, Ordering::AcqRel);
        {
            let mut q = lock(&self.queues);
            q.closed = true;
        }
        self.readers.close();
        self.queued.notify_all();
        self.prepared_changed.notify_all();
        self.wake_background();
        self.work.notify_one();
        self.room.notify_waiters();
    }

    /// Lets go of the tier on a thread of its own: libraries write and wait when their last handle goes, and a disk that hangs
    /// must not hold up the stop. Resolves when the tier is closed; `None` if that has happened, or no thread may be started.
    pub(crate) fn close_tier(&self) -> Option<oneshot::Receiver<()>> {
        let tier = write(&self.tier).take()?;
        if self.options.drive == Drive::Manual {
            return None;
        }
        let (closed, receive) = oneshot::channel();
        let close = move || {
            drop(tier);
            let _ = closed.send(());
        };
        // Without a thread the closure, and the tier with it, was dropped here.
        thread::Builder::new().name("kv-close".into()).spawn(close).ok().map(|_| receive)
    }

    /// What still waits gets an answer.
    pub(crate) fn refuse_rest(&self) {
        let (raft, _data) = {
            let mut q = lock(&self.queues);
            q.closed = true;
            (std::mem::take(&mut q.raft), std::mem::take(&mut q.data))
        };
        let e = self.failure().unwrap_or(StorageError::Closed);
        refuse(raft, &e);
        let waiting = std::mem::take(&mut lock(&self.waiters).waiting);
        for waiter in waiting.into_values().flatten() {
            let _ = waiter.send(Err(e.clone()));
        }
        self.poison(StorageError::Closed);
    }

    fn run_writer(&self) {
        loop {
            {
                let mut q = lock(&self.queues);
                while q.is_empty()
                    && self.state.load(Ordering::Acquire) == RUNNING
                    && self.failure().is_none()
                {
                    let waited = self.queued.wait_timeout(q, limits::IDLE_WAIT);
                    q = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
            let stop = self.state.load(Ordering::Acquire);
            if stop == HALTED || self.failure().is_some() || (!self.writer_step() && stop == DRAINING) {
                self.refuse_rest();
                return;
            }
        }
    }

    /// Small state that waits for a write is written when the engine closes.
    pub(crate) fn write_lazy(&self) {
        let lazy = std::mem::take(&mut lock(&self.queues).lazy);
        let mut q = lock(&self.queues);
        self.raft_pushed.fetch_add(lazy.len() as u64, Ordering::AcqRel);
        for (key, value) in lazy {
            let item = Item::Small { key, value: Some(value), done: None };
            q.raft_bytes += item.bytes();
            q.raft.push_back(item);
        }
    }

    fn run(self: &Arc<Self>, step: impl Fn(&Arc<Inner>) -> bool) {
        let mut seen = 0;
        while self.state.load(Ordering::Acquire) == RUNNING && self.failure().is_none() {
            if !step(self) {
                self.idle(&mut seen);
            }
        }
    }

    pub(crate) fn pump(self: &Arc<Self>) -> bool {
        if self.halted() {
            return false;
        }
        let mut worked = self.writer_step();
        worked |= self.prepare_step();
        worked |= self.drain_is_due() && self.drain_step();
        worked |= self.checkpoint_step();
        worked | self.collect_step()
    }

    pub(crate) fn start_threads(self: &Arc<Self>) -> Result<(), StorageError> {
        type Body = fn(&Arc<Inner>);
        let bodies: [(&str, Body); 4] = [
            ("kv-log", |i| i.run_writer()),
            ("kv-prepare", |i| i.run(|i| i.prepare_step())),
            ("kv-drain", |i| i.run(|i| i.drain_is_due() && i.drain_step())),
            ("kv-checkpoint", |i| i.run(|i| i.checkpoint_step() | i.collect_step())),
        ];
        for (name, body) in bodies {
            let inner = self.clone();
            self.alive.send_modify(|n| *n += 1);
            let spawned = thread::Builder::new().name(name.into()).spawn(move || {
                let panicked =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&inner))).is_err();
                if panicked {
                    inner.poison(StorageError::Invalid("a storage thread panicked".into()));
                    inner.refuse_rest();
                }
                inner.alive.send_modify(|n| *n -= 1);
            });
            lock(&self.threads).push(spawned.map_err(StorageError::io("start a storage thread"))?);
        }
        Ok(())
    }
}

pub(crate) fn refuse(items: impl IntoIterator<Item = Item>, e: &StorageError) {
    for mut item in items {
        if let Some(done) = item.done() {
            done(Err(e.clone().into()));
        }
    }
}
