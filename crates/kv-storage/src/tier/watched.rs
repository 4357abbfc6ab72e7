//! A tier whose writes have a deadline. They run on a thread that is given up when one does not return:
//! libraries below wait in loops that look at no clock, and a disk may hang for good.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError, SyncSender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;

use super::{Tier, TierChunk, TierError, TierMark, TierWrites};

type Done = SyncSender<Result<(), TierError>>;

enum Work {
    MakeRoom(Done),
    Apply(Vec<(Bytes, Option<Bytes>)>, TierMark, Done),
    Checkpoint(Done),
}

/// A tier with a bound on how long its writes take. Reads pass through.
#[derive(Debug)]
pub struct Watched {
    tier: Arc<dyn Tier>,
    /// `None` once the thread was told to end.
    work: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
    bound: Duration,
    /// A write did not return: the tier takes no more of them.
    given_up: AtomicBool,
}

impl Watched {
    /// Watches a tier: a write that takes longer than `bound` is [`TierError::Stalled`].
    pub fn new(tier: Arc<dyn Tier>, bound: Duration) -> Result<Watched, TierError> {
        // One place: the engine makes one write at a time.
        let (work, todo) = mpsc::sync_channel::<Work>(1);
        let own = tier.clone();
        let thread = thread::Builder::new()
            .name("kv-tier".into())
            .spawn(move || {
                for work in todo {
                    let (done, result) = match work {
                        Work::MakeRoom(done) => (done, guarded(|| own.make_room())),
                        Work::Apply(rows, mark, done) => (done, guarded(|| own.apply(&rows, mark))),
                        Work::Checkpoint(done) => (done, guarded(|| own.checkpoint())),
                    };
                    // Without a receiver the write was given up.
                    let _ = done.send(result);
                }
            })
            .map_err(|e| TierError::Io(format!("start the thread of the tier: {e}")))?;
        let given_up = AtomicBool::new(false);
        Ok(Watched { tier, work: Some(work), thread: Some(thread), bound, given_up })
    }

    fn run(&self, what: &'static str, work: impl FnOnce(Done) -> Work) -> Result<(), TierError> {
        let stalled = || TierError::Stalled { what, bound: self.bound };
        if self.given_up.load(Ordering::Acquire) {
            return Err(stalled());
        }
        let gone = || TierError::Io("the thread of the tier has ended".into());
        let (done, result) = mpsc::sync_channel(1);
        self.work.as_ref().ok_or_else(gone)?.try_send(work(done)).map_err(|_| gone())?;
        match result.recv_timeout(self.bound) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                self.given_up.store(true, Ordering::Release);
                Err(stalled())
            }
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }
}

impl Drop for Watched {
    /// The tier is closed when this returns, unless another handle has it or a write was given up.
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take()
            && !self.given_up.load(Ordering::Acquire)
        {
            let _ = thread.join();
        }
    }
}

/// Calls a library that may panic on damage instead of saying so.
pub(super) fn guarded<T>(f: impl FnOnce() -> Result<T, TierError>) -> Result<T, TierError> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let what =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(TierError::Damaged(format!("the library panicked: {}", what.unwrap_or("no message"))))
    })
}

impl Tier for Watched {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TierError> {
        self.tier.get(key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<TierChunk, TierError> {
        self.tier.scan(from, to, limit_rows, limit_bytes)
    }

    fn keys(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<(Vec<Bytes>, bool), TierError> {
        self.tier.keys(from, to, limit_rows, limit_bytes)
    }

    fn make_room(&self) -> Result<(), TierError> {
        self.run("a wait of the lower tier for its own work", Work::MakeRoom)
    }

    fn apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError> {
        self.run("a batch of the lower tier", |done| Work::Apply(writes.to_vec(), mark, done))
    }

    fn mark(&self) -> Result<Option<TierMark>, TierError> {
        self.tier.mark()
    }

    fn checkpoint(&self) -> Result<(), TierError> {
        self.run("a checkpoint of the lower tier", Work::Checkpoint)
    }

    fn unwritten_bytes(&self) -> u64 {
        self.tier.unwritten_bytes()
    }

    fn batch_bytes(&self) -> usize {
        self.tier.batch_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;
    use crate::locks::lock;

    /// A tier whose writes wait until they are released.
    #[derive(Debug, Default)]
    struct Held {
        free: Mutex<bool>,
        changed: Condvar,
        applied: Mutex<Vec<TierMark>>,
    }

    impl Tier for Held {
        fn get(&self, _: &[u8]) -> Result<Option<Bytes>, TierError> {
            Ok(Some(Bytes::from_static(b"read")))
        }
        fn scan(&self, _: &[u8], _: Option<&[u8]>, _: usize, _: usize) -> Result<TierChunk, TierError> {
            Ok(TierChunk::default())
        }
        fn apply(&self, _: &TierWrites, mark: TierMark) -> Result<(), TierError> {
            let mut free = lock(&self.free);
            while !*free {
                free = self.changed.wait(free).unwrap();
            }
            lock(&self.applied).push(mark);
            Ok(())
        }
        fn mark(&self) -> Result<Option<TierMark>, TierError> {
            Ok(None)
        }
        fn checkpoint(&self) -> Result<(), TierError> {
            panic!("broken");
        }
    }

    #[test]
    fn a_write_that_does_not_return_is_an_error_and_the_last_one() {
        let held = Arc::new(Held::default());
        let watched = Watched::new(held.clone(), Duration::from_millis(20)).unwrap();
        let mark = |batch| TierMark { batch, ..TierMark::default() };
        let e = watched.apply(&[], mark(1)).unwrap_err();
        assert!(matches!(e, TierError::Stalled { what: "a batch of the lower tier", .. }), "{e}");
        assert_eq!(watched.get(b"k").unwrap().unwrap(), "read", "readers go on");
        *lock(&held.free) = true;
        held.changed.notify_all();
        while lock(&held.applied).is_empty() {
            thread::yield_now();
        }
        assert!(matches!(watched.apply(&[], mark(2)), Err(TierError::Stalled { .. })));
        drop(watched);
        assert_eq!(*lock(&held.applied), [mark(1)], "nothing is written after it");
    }

    #[test]
    fn a_panic_of_the_library_is_damage() {
        let held = Arc::new(Held { free: Mutex::new(true), ..Held::default() });
        let watched = Watched::new(held.clone(), Duration::from_secs(60)).unwrap();
        assert_eq!(watched.checkpoint(), Err(TierError::Damaged("the library panicked: broken".into())));
        watched.apply(&[], TierMark::default()).unwrap();
        assert_eq!(lock(&held.applied).len(), 1);
    }
}
