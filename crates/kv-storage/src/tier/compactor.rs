//! Compaction on a thread of ours, for a tier whose own threads do it badly: a thread that compacts whenever
//! it is woken until there is nothing left to do, and the account of readers that says which old versions of
//! rows it may drop.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use super::{TierError, files::failed, watched::guarded};
use crate::locks::lock;

/// The thread. It ends with this, after the step that it is in.
pub(super) struct Compactor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    woken: bool,
    stopped: bool,
    failed: Option<TierError>,
}

impl Compactor {
    /// Starts the thread, which looks for work at once. `step` says whether it found any; an error, or a
    /// panic, ends the thread.
    pub(super) fn start(
        mut step: impl FnMut() -> Result<bool, TierError> + Send + 'static,
    ) -> Result<Compactor, TierError> {
        let shared = Arc::new(Shared::default());
        shared.wake();
        let own = shared.clone();
        let body = move || {
            while own.wait() {
                loop {
                    match guarded(&mut step) {
                        Ok(true) if !lock(&own.state).stopped => {}
                        Ok(_) => break,
                        Err(e) => {
                            tracing::error!(error = %e, "the compaction of the tier failed");
                            lock(&own.state).failed = Some(e);
                            return;
                        }
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("kv-compact".into()).spawn(body).map_err(failed)?;
        Ok(Compactor { shared, thread: Some(thread) })
    }

    /// There may be work.
    pub(super) fn wake(&self) {
        self.shared.wake();
    }

    /// The error that ended the thread, if one did.
    pub(super) fn check(&self) -> Result<(), TierError> {
        lock(&self.shared.state).failed.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        lock(&self.shared.state).stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It does not panic: its steps are guarded.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn wake(&self) {
        lock(&self.state).woken = true;
        self.changed.notify_all();
    }

    /// Waits until it is woken; false once it is to stop.
    fn wait(&self) -> bool {
        let mut state = lock(&self.state);
        while !state.woken && !state.stopped {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.woken = false;
        !state.stopped
    }
}

/// The sequence numbers at which readers stand.
#[derive(Default)]
pub(super) struct Views(Mutex<BTreeMap<u64, usize>>);

/// A reader that stands at one.
pub(super) struct View<'a> {
    views: &'a Views,
    at: u64,
}

impl Views {
    /// A reader begins at what is visible now, or later.
    pub(super) fn begin(&self, visible: impl FnOnce() -> u64) -> View<'_> {
        let mut views = lock(&self.0);
        // Under the lock: no version is dropped between this look and the entry.
        let at = visible();
        *views.entry(at).or_default() += 1;
        View { views: self, at }
    }

    /// The sequence number below which every reader, present or future, sees the newest version only.
    pub(super) fn oldest(&self, visible: impl FnOnce() -> u64) -> u64 {
        let views = lock(&self.0);
        views.first_key_value().map_or_else(visible, |(at, _)| *at)
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        let mut views = lock(&self.views.0);
        match views.get_mut(&self.at) {
            Some(readers) if *readers > 1 => *readers -= 1,
            Some(_) => drop(views.remove(&self.at)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{SyncSender, sync_channel},
        time::Duration,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A compactor with so much work, and what tells each of its steps.
    fn with_work(
        work: usize,
        mut fail: impl FnMut(usize) -> Result<(), TierError> + Send + 'static,
    ) -> (Compactor, std::sync::mpsc::Receiver<bool>) {
        let (told, steps): (SyncSender<bool>, _) = sync_channel(100);
        let mut left = work;
        let compactor = Compactor::start(move || {
            fail(left)?;
            let worked = left > 0;
            left = left.saturating_sub(1);
            told.send(worked).expect("heard");
            Ok(worked)
        });
        (compactor.expect("a thread"), steps)
    }

    #[test]
    fn it_works_until_there_is_nothing_to_do_and_again_when_woken() {
        let (compactor, steps) = with_work(3, |_| Ok(()));
        let heard: Vec<bool> = (0..4).map(|_| steps.recv_timeout(PATIENCE).expect("a step")).collect();
        assert_eq!(heard, [true, true, true, false]);
        compactor.wake();
        assert!(!steps.recv_timeout(PATIENCE).expect("woken"));
        assert_eq!(compactor.check(), Ok(()));
        drop(compactor);
        assert!(steps.recv().is_err(), "the thread has ended");
    }

    #[test]
    fn an_error_and_a_panic_end_it_and_are_told() {
        for panics in [false, true] {
            let fail = move |left| match (left, panics) {
                (1, true) => panic!("a broken table"),
                (1, false) => Err(TierError::Io("no space".into())),
                _ => Ok(()),
            };
            let (compactor, steps) = with_work(2, fail);
            assert!(steps.recv_timeout(PATIENCE).expect("a step"));
            assert!(steps.recv_timeout(PATIENCE).is_err(), "the thread ends");
            let told = compactor.check().expect_err("and says why").to_string();
            assert!(told.contains(if panics { "a broken table" } else { "no space" }), "{told}");
            compactor.wake();
        }
    }

    #[test]
    fn what_a_reader_sees_is_not_dropped() {
        let views = Views::default();
        assert_eq!(views.oldest(|| 7), 7);
        let first = views.begin(|| 7);
        let (second, third) = (views.begin(|| 9), views.begin(|| 9));
        assert_eq!(views.oldest(|| 11), 7);
        drop(first);
        assert_eq!(views.oldest(|| 11), 9);
        drop(second);
        assert_eq!(views.oldest(|| 11), 9);
        drop(third);
        assert_eq!(views.oldest(|| 11), 11);
    }
}
