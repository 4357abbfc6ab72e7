//! Up to which data batch the log is durable, and the waiters for that.
//!
//! The log's thread hands those whom a write concerns to one task, and that task tells them. It runs in the
//! runtime in which one waited first: a node has one, and is to use no other that could stand still. So the
//! runtime is woken once for a write of the log and finds all of them ready together, and what they send next
//! goes in few messages.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
};

use crate::{error::StorageError, lifecycle::Lifecycle, locks::lock};

type Waiter = oneshot::Sender<Result<(), StorageError>>;

#[derive(Debug)]
pub(crate) struct Durable {
    life: Arc<Lifecycle>,
    seq: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Vec<Waiter>>>,
    ready: Arc<Ready>,
}

/// The waiters that the messenger has to tell.
#[derive(Debug, Default)]
struct Ready {
    state: Mutex<ReadyState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct ReadyState {
    /// The oldest batch first.
    waiters: Vec<Waiter>,
    /// A messenger runs, and tells them.
    has_messenger: bool,
    /// There will be no more.
    ended: bool,
}

impl Ready {
    /// Tells waiters that what they wait for is durable: by the messenger, if there is one.
    fn tell(&self, waiters: Vec<Waiter>) {
        let mut state = lock(&self.state);
        // A single one is woken as quickly from here.
        if state.has_messenger && (waiters.len() > 1 || !state.waiters.is_empty()) {
            state.waiters.extend(waiters);
            drop(state);
            self.changed.notify_one();
            return;
        }
        drop(state);
        tell(waiters);
    }

    /// Starts the messenger, in the runtime of the caller. Without one the log's thread tells each by itself.
    fn ensure_messenger(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        if state.has_messenger || state.ended {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        state.has_messenger = true;
        drop(state);
        runtime.spawn(Messenger(Arc::clone(self)).run());
    }

    fn end(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_one();
    }
}

/// Runs as long as its runtime and the log do.
struct Messenger(Arc<Ready>);

impl Messenger {
    async fn run(self) {
        loop {
            self.0.changed.notified().await;
            let (waiters, ended) = {
                let mut state = lock(&self.0.state);
                (std::mem::take(&mut state.waiters), state.ended)
            };
            tell(waiters);
            if ended {
                return;
            }
        }
    }
}

impl Drop for Messenger {
    fn drop(&mut self) {
        let waiters = {
            let mut state = lock(&self.0.state);
            state.has_messenger = false;
            std::mem::take(&mut state.waiters)
        };
        // They may wait in another runtime than the one that ends.
        tell(waiters);
    }
}

fn tell(waiters: Vec<Waiter>) {
    for waiter in waiters {
        let _ = waiter.send(Ok(()));
    }
}

impl Durable {
    pub(crate) fn new(life: Arc<Lifecycle>, seq: u64) -> Durable {
        Durable { life, seq: AtomicU64::new(seq), waiting: Mutex::default(), ready: Arc::default() }
    }

    pub(crate) fn seq(&self) -> u64 {
        self.seq.load(Ordering::Acquire)
    }

    /// The data batches up to `seq` are durable: its waiters are told, the oldest batch first.
    pub(crate) fn advance(&self, seq: u64) {
        let before = self.seq.swap(seq, Ordering::AcqRel);
        assert!(before < seq, "data batch {seq} became durable after {before}");
        let ready = {
            let mut waiting = lock(&self.waiting);
            let later = waiting.split_off(&(seq + 1));
            std::mem::replace(&mut *waiting, later)
        };
        self.ready.tell(ready.into_values().flatten().collect());
    }

    /// Resolves when `seq` is durable, or with the error that stopped the engine.
    pub(crate) async fn wait(&self, seq: u64) -> Result<(), StorageError> {
        if self.seq() >= seq {
            return Ok(());
        }
        if self.life.has_threads() {
            self.ready.ensure_messenger();
        }
        let receive = {
            let mut waiting = lock(&self.waiting);
            if let Some(e) = self.life.failure() {
                return Err(e);
            }
            if self.seq() >= seq {
                return Ok(());
            }
            let (send, receive) = oneshot::channel();
            waiting.entry(seq).or_default().push(send);
            receive
        };
        receive.await.unwrap_or(Err(StorageError::Closed))
    }

    /// All waiters get the error. The lifecycle has failed before, so there are no waiters afterwards.
    pub(crate) fn refuse(&self, e: &StorageError) {
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        for waiter in waiting.into_values().flatten() {
            let _ = waiter.send(Err(e.clone()));
        }
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        self.ready.end();
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Wake, Waker};
    use std::thread;

    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::options::Drive;

    /// Notes when it is woken.
    struct Noted(u64, Arc<Mutex<Vec<u64>>>);

    impl Wake for Noted {
        fn wake(self: Arc<Self>) {
            lock(&self.1).push(self.0);
        }
    }

    #[test]
    fn those_who_wait_are_told_in_the_order_of_their_batches() {
        let durable = Durable::new(Arc::new(Lifecycle::new("/data".into(), Drive::Manual)), 0);
        let woken = Arc::new(Mutex::new(Vec::new()));
        let mut waits: Vec<_> = [3, 1, 4, 2, 2].into_iter().map(|n| (n, Box::pin(durable.wait(n)))).collect();
        for (seq, wait) in &mut waits {
            let waker = Waker::from(Arc::new(Noted(*seq, woken.clone())));
            assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        durable.advance(3);
        assert_eq!(*lock(&woken), [1, 2, 2, 3], "4 still waits");
        for (seq, wait) in &mut waits {
            let polled = wait.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(polled == Poll::Ready(Ok(())), *seq <= 3);
        }
    }

    fn with_threads() -> Durable {
        Durable::new(Arc::new(Lifecycle::new("/data".into(), Drive::Threads)), 0)
    }

    fn runtime() -> Runtime {
        Builder::new_current_thread().build().unwrap()
    }

    type Waiting<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), StorageError>> + 'a>>;

    /// Waits for these, each of which is polled once in the runtime that is entered.
    fn waits<'a>(durable: &'a Durable, woken: &Arc<Mutex<Vec<u64>>>, of: &[u64]) -> Vec<Waiting<'a>> {
        let begin = |seq: &u64| {
            let mut wait: Waiting<'a> = Box::pin(durable.wait(*seq));
            let waker = Waker::from(Arc::new(Noted(*seq, woken.clone())));
            assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            wait
        };
        of.iter().map(begin).collect()
    }

    #[test]
    fn many_are_told_by_one_task_of_the_runtime_that_they_wait_in() {
        let (durable, runtime, woken) = (with_threads(), runtime(), Arc::new(Mutex::new(Vec::new())));
        let entered = runtime.enter();
        let _waits = waits(&durable, &woken, &[2, 1, 3, 4]);
        drop(entered);
        thread::scope(|scope| drop(scope.spawn(|| durable.advance(3)).join()));
        assert_eq!(*lock(&woken), [], "the thread of the log wakes none of them");
        runtime.block_on(tokio::task::yield_now());
        assert_eq!(*lock(&woken), [1, 2, 3]);
        durable.advance(4);
        assert_eq!(*lock(&woken), [1, 2, 3, 4], "a single one at once");
    }

    #[test]
    fn those_in_another_runtime_are_told_when_the_first_one_ends() {
        let (durable, first, second) = (with_threads(), runtime(), runtime());
        let woken = Arc::new(Mutex::new(Vec::new()));
        drop(first.block_on(async { waits(&durable, &woken, &[1]) }));
        // The runtime does not run any more, and its messenger is yet to be told so.
        let _waits = second.block_on(async { waits(&durable, &woken, &[2, 3]) });
        durable.advance(3);
        assert_eq!(*lock(&woken), []);
        drop(first);
        assert_eq!(*lock(&woken), [2, 3]);
        let _waits = second.block_on(async { waits(&durable, &woken, &[4, 5]) });
        durable.advance(5);
        second.block_on(tokio::task::yield_now());
        assert_eq!(*lock(&woken), [2, 3, 4, 5], "by a new messenger");
    }

    #[test]
    fn the_messenger_ends_with_the_log() {
        let (durable, runtime) = (with_threads(), runtime());
        drop(runtime.block_on(async { waits(&durable, &Arc::default(), &[1]) }));
        assert_eq!(runtime.metrics().num_alive_tasks(), 1);
        drop(durable);
        runtime.block_on(tokio::task::yield_now());
        assert_eq!(runtime.metrics().num_alive_tasks(), 0);
    }
}
