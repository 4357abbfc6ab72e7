//! A key-value machine on a storage in memory, without Raft: commands go in, answers come out.

use bytes::Bytes;
use kv_storage::Storage;
use kv_types::{Applied, ClientId, Failure, GroupId, Mutation, NamespaceId, Reason, RequestId};
use tokio::sync::watch;

use crate::generations::Generations;
use crate::kv_machine::{KvMachine, Operation, WriteCommand};
use crate::limits::LOG_TIME_STEP;
use crate::machine::Domain;
use crate::proposal::{Point, Reply, Written};
use crate::sessions::{AllOpenings, Openings, SessionBounds};
use crate::tables::{Space, Stage};

pub(super) const GROUP: GroupId = GroupId(1);
pub(super) const SPACE: Space = Space::first(GROUP);

/// Where the state of the group stands that counts: an installation moves it.
pub(super) fn present(storage: &Storage) -> Space {
    Space { generation: Generations::read(storage, GROUP).unwrap().current, ..SPACE }
}

/// Writes now and then, so that time passes.
const TICKER: u128 = u128::MAX;

pub(super) struct Bench {
    pub(super) storage: Storage,
    pub(super) machine: KvMachine,
    bounds: SessionBounds,
    pub(super) term: u64,
    pub(super) index: u64,
    /// The wall clock of clients and of the leader, ms.
    pub(super) now: u64,
    ticks: u64,
    shown: watch::Receiver<AllOpenings>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::bounded(SessionBounds::default())
    }

    pub(super) fn bounded(bounds: SessionBounds) -> Self {
        let (publish, shown) = watch::channel(AllOpenings::default());
        let machine = KvMachine::bounded(publish, bounds);
        let now = 1_000_000_000;
        Self { storage: super::memory(1), machine, bounds, term: 1, index: 0, now, ticks: 0, shown }
    }

    /// When an opening may have been issued, as shown to others.
    pub(super) fn openings(&self) -> Openings {
        self.openings_of(NamespaceId(1))
    }

    pub(super) fn openings_of(&self, namespace: NamespaceId) -> Openings {
        self.shown.borrow().of(namespace)
    }

    /// Applies commands as one step; the stage with all its changes.
    pub(super) fn stage<'a>(
        &mut self,
        mut stage: Stage<'a>,
        commands: &[WriteCommand],
    ) -> (Stage<'a>, Vec<Result<Written, Failure>>) {
        let mut replies = Vec::new();
        for command in commands {
            self.index += 1;
            let point = Point { term: self.term, index: self.index };
            let Reply::Write(reply) = self.machine.apply(&mut stage, point, &command.encode()).unwrap()
            else {
                panic!("a write is answered as one")
            };
            replies.push(reply);
        }
        self.machine.seal(&mut stage);
        (stage, replies)
    }

    pub(super) async fn apply_all(&mut self, commands: &[WriteCommand]) -> Vec<Result<Written, Failure>> {
        let storage = self.storage.clone();
        let (stage, replies) = self.stage(Stage::new(&storage, present(&storage)), commands);
        storage.apply(stage.into_batch()).await.unwrap();
        self.machine.publish();
        replies
    }

    pub(super) async fn apply(&mut self, command: &WriteCommand) -> Result<Written, Failure> {
        self.apply_all(std::slice::from_ref(command)).await.pop().unwrap()
    }

    /// A write of client `client`, issued now.
    pub(super) async fn write(
        &mut self,
        client: u128,
        seq: u64,
        key: &str,
        operation: Operation,
    ) -> Result<Written, Failure> {
        let command = self.command(client, seq, key, operation);
        self.apply(&command).await
    }

    /// As sent for the second time, so that refusals that prove nothing are *unknown*.
    pub(super) fn command(&self, client: u128, seq: u64, key: &str, operation: Operation) -> WriteCommand {
        let request_id = RequestId { client_id: ClientId(client), seq };
        let mutation = Mutation { request_id, issued_at_ms: self.now, lowest_unacked: 0, attempt: 2 };
        let key = Bytes::copy_from_slice(key.as_bytes());
        WriteCommand { proposed_at_ms: self.now, mutation, namespace: NamespaceId(1), key, operation }
    }

    /// Lets time pass while little is written.
    pub(super) async fn rest(&mut self, mut ms: u64) {
        while ms > 0 {
            let step = ms.min(LOG_TIME_STEP.as_millis() as u64);
            (self.now, ms) = (self.now + step, ms - step);
            self.ticks += 1;
            let mut tick = self.command(TICKER, self.ticks, "tick", Operation::Delete);
            tick.mutation.lowest_unacked = self.ticks;
            self.apply(&tick).await.unwrap();
        }
    }

    pub(super) fn reload(&mut self) {
        let (publish, shown) = watch::channel(AllOpenings::default());
        (self.machine, self.shown) = (KvMachine::bounded(publish, self.bounds), shown);
        self.machine.load(&self.storage, present(&self.storage)).unwrap();
        self.machine.publish();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.storage.halt();
    }
}

pub(super) fn put(value: &str) -> Operation {
    Operation::Put(Bytes::copy_from_slice(value.as_bytes()))
}

pub(super) fn swap(expected: u64, value: &str) -> Operation {
    Operation::CompareAndSet { expected, value: Bytes::copy_from_slice(value.as_bytes()) }
}

pub(super) fn revision(written: Result<Written, Failure>) -> u64 {
    written.unwrap().namespace_revision
}

pub(super) fn refusal(written: Result<Written, Failure>) -> (Reason, Applied) {
    let failure = written.unwrap_err();
    (failure.reason, failure.applied)
}
