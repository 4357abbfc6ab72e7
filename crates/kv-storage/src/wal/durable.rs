//! Up to which data batch the log is durable, and the waiters for that.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::oneshot;

use crate::{error::StorageError, lifecycle::Lifecycle, locks::lock};

type Waiter = oneshot::Sender<Result<(), StorageError>>;

#[derive(Debug)]
pub(crate) struct Durable {
    life: Arc<Lifecycle>,
    seq: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Vec<Waiter>>>,
}

impl Durable {
    pub(crate) fn new(life: Arc<Lifecycle>, seq: u64) -> Durable {
        Durable { life, seq: AtomicU64::new(seq), waiting: Mutex::default() }
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
        for waiter in ready.into_values().flatten() {
            let _ = waiter.send(Ok(()));
        }
    }

    /// Resolves when `seq` is durable, or with the error that stopped the engine.
    pub(crate) async fn wait(&self, seq: u64) -> Result<(), StorageError> {
        if self.seq() >= seq {
            return Ok(());
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

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Wake, Waker};

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
}
