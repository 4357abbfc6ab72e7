//! Up to which data batch the log is durable, and who waits for that.

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

    pub(crate) fn advance(&self, seq: u64) {
        let before = self.seq.swap(seq, Ordering::AcqRel);
        assert!(before < seq, "data batch {seq} became durable after {before}");
        let ready = {
            let mut waiting = lock(&self.waiting);
            let later = waiting.split_off(&(seq + 1));
            std::mem::replace(&mut *waiting, later)
        };
        for waiter in ready.into_values().rev().flatten() {
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

    /// All who wait get the error. The lifecycle has failed before, so that no one waits afterwards.
    pub(crate) fn refuse(&self, e: &StorageError) {
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        for waiter in waiting.into_values().flatten() {
            let _ = waiter.send(Err(e.clone()));
        }
    }
}
