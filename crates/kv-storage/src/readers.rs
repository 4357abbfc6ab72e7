//! The threads that read the tier for async workers, and the bounded queue before them. The reads of clients
//! never have all threads: where those stand still in the tier, the apply of committed entries still reads.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use kv_types::{Latency, LatencySummary};
use tokio::time::Instant;

use crate::{error::StorageError, limits, locks::lock};

const THREAD: &str = "kv-read";

/// On whose behalf a read is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// The apply of committed entries: it goes first and has places of its own.
    Apply,
    /// All others.
    Client,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    apply: VecDeque<(Job, Instant)>,
    client: VecDeque<(Job, usize, Instant)>,
    /// Bytes of the keys that wait in `client`.
    bytes: usize,
    /// Threads that read for clients now.
    for_clients: usize,
    closed: bool,
}

/// The queue that the reader threads share.
#[derive(Default)]
pub(crate) struct Readers {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Of a read, from its arrival in the queue.
    latency: Latency,
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

impl Readers {
    /// Adds a read whose keys have `bytes` bytes.
    pub(crate) fn push(&self, class: Class, bytes: usize, job: Job) -> Result<(), StorageError> {
        let full = Err(StorageError::Overloaded { what: "the queue of reads" });
        let mut q = lock(&self.queue);
        if q.closed {
            return Err(StorageError::Closed);
        }
        match class {
            Class::Apply if q.apply.len() >= limits::READ_QUEUE_APPLY => return full,
            Class::Apply => q.apply.push_back((job, Instant::now())),
            Class::Client
                if q.client.len() >= limits::READ_QUEUE
                    || (!q.client.is_empty() && q.bytes + bytes > limits::READ_QUEUE_BYTES) =>
            {
                return full;
            }
            Class::Client => {
                q.bytes += bytes;
                q.client.push_back((job, bytes, Instant::now()));
            }
        }
        drop(q);
        self.changed.notify_one();
        Ok(())
    }

    /// The next job and its class, after one of class `done`; `None` once the engine stops. A job of a client
    /// that finds too many threads busy with others waits for one of them, which takes it here.
    fn next(&self, done: Option<Class>) -> Option<(Class, Job, Instant)> {
        let mut q = lock(&self.queue);
        if done == Some(Class::Client) {
            q.for_clients -= 1;
        }
        loop {
            if q.closed {
                return None;
            }
            if let Some((job, arrived)) = q.apply.pop_front() {
                return Some((Class::Apply, job, arrived));
            }
            if q.for_clients < limits::READERS_FOR_CLIENTS
                && let Some((job, bytes, arrived)) = q.client.pop_front()
            {
                q.bytes -= bytes;
                q.for_clients += 1;
                return Some((Class::Client, job, arrived));
            }
            q = self.changed.wait(q).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How long reads took, from their arrival in the queue.
    pub(crate) fn latency(&self) -> LatencySummary {
        self.latency.summary()
    }

    /// What waits is answered with `Closed`, and the threads end when their read returns.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut q = lock(&self.queue);
            q.closed = true;
            q.bytes = 0;
            (std::mem::take(&mut q.apply), std::mem::take(&mut q.client))
        };
        drop(waiting);
        self.changed.notify_all();
    }

    /// Starts the threads; `panicked` is called when a read panics. A stop does not wait for them: a read
    /// may hang as long as the disk does.
    pub(crate) fn start(
        self: &Arc<Self>,
        panicked: impl Fn(StorageError) + Clone + Send + 'static,
    ) -> Result<(), StorageError> {
        for _ in 0..limits::READERS {
            let (readers, panicked) = (self.clone(), panicked.clone());
            let body = move || {
                let mut done = None;
                while let Some((class, job, arrived)) = readers.next(done) {
                    done = Some(class);
                    if catch_unwind(AssertUnwindSafe(job)).is_err() {
                        panicked(StorageError::ThreadPanicked { thread: THREAD });
                    }
                    readers.latency.record(arrived.elapsed());
                }
            };
            let spawned = thread::Builder::new().name(THREAD.into()).spawn(body);
            spawned.map_err(StorageError::io("start a reader thread"))?;
        }
        Ok(())
    }
}
