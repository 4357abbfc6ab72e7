//! What clients ask of a group on the node that leads it: proposals, which find a place in the account of
//! what is not applied before anything is queued, and linearizable reads.

use std::future::IntoFuture;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::admin;
use kv_storage::StorageError;
use kv_types::{ClientId, Failure, NamespaceId, Reason};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, LinearizableReadError, RaftError};
use openraft::raft::ClientWriteResponse;
use tokio::sync::OwnedRwLockReadGuard;
use tokio::time::{Instant, timeout, timeout_at};

use crate::applied::AppliedState;
use crate::backlog::Full;
#[cfg(test)]
use crate::backlog::Load;
use crate::config::{Decided, LogId, TypeConfig};
use crate::digest::Digesting;
use crate::dropped::no_namespace;
use crate::groups::{Group, Leadership, Unserved};
use crate::ingest::{Entry, Fate, Handed, Refusal};
use crate::limits::{DIGEST_CLOSE_WAIT, READ_ATTEMPTS, RETRY_AFTER_MS};
use crate::machine_error::MachineError;
use crate::proposal::Proposal;
use crate::read_index::confirmation;
use crate::runtime::NodeRuntime;
use crate::tables::{Space, Table};

/// The point of a group's log that a read is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadPoint {
    /// The term in which this node was confirmed as the leader.
    pub(crate) term: u64,
    /// The last entry in the state.
    pub(crate) index: u64,
    /// Entries that were committed and are not in the state.
    pub(crate) lag: u64,
}

/// Rows by their places: none where there is no such row.
type Found<const N: usize> = [Option<Bytes>; N];

/// All of the rows, if all are known.
fn whole<const N: usize>(rows: [Option<Option<Bytes>>; N]) -> Option<Found<N>> {
    rows.iter().all(Option::is_some).then(|| rows.map(Option::flatten))
}

/// The failure of a read that found what it cannot decode, or that the disk refused.
pub(crate) fn unreadable(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Reason::StorageFailed, error.to_string()).of_read()
}

impl Group {
    /// Refuses what this node should not propose now.
    fn check_pressure(&self) -> Result<(), Failure> {
        if let Err(pressure) = self.around.storage.log_pressure() {
            let reason = match pressure {
                StorageError::LogFull { .. } | StorageError::DiskFull { .. } => Reason::LimitStorage,
                _ => Reason::Overloaded,
            };
            return Err(Failure::new(reason, pressure.to_string()).retry_after_ms(RETRY_AFTER_MS));
        }
        // What earlier leaders proposed counts too, though it is in no account here.
        let unapplied = {
            let metrics = self.raft.data_metrics();
            let metrics = metrics.borrow_watched();
            let index = |id: &Option<LogId>| id.as_ref().map_or(0, |id| id.index);
            index(&metrics.last_log).saturating_sub(index(&metrics.last_applied))
        };
        if unapplied > self.ingest.bound().entries {
            return Err(self.overloaded("has not applied its log"));
        }
        Ok(())
    }

    fn overloaded(&self, what: &str) -> Failure {
        let (waiting, bound) = (self.ingest.total(), self.ingest.bound());
        let message = format!(
            "{} {what}: {} entries of {} bytes wait to be applied; nothing was proposed",
            self.id, waiting.entries, waiting.bytes
        );
        Failure::new(Reason::Overloaded, message)
            .with("limit_entries", bound.entries)
            .with("limit_bytes", bound.bytes)
            .retry_after_ms(RETRY_AFTER_MS)
    }

    /// A proposal was taken back at its deadline, before its turn.
    fn turn_missed(&self) -> Failure {
        let (reachable, required) = self.reach();
        match reachable < required {
            true => self.no_quorum("its turn to be proposed had not come by the deadline"),
            false => self.overloaded("had not come to its turn by the deadline"),
        }
    }

    /// Why a proposal was not let in.
    fn not_let_in(&self, refusal: Refusal) -> Failure {
        match refusal {
            Refusal::Full(Full::Group) => self.overloaded("has as much to apply as it may"),
            Refusal::Full(Full::Namespace) => {
                self.overloaded("has as much to apply for this namespace as it may")
            }
            Refusal::Stopped => Failure::new(Reason::ShuttingDown, "the node is stopping"),
        }
    }

    /// What was proposed here and is not applied.
    #[cfg(test)]
    pub(crate) fn backlog(&self) -> Load {
        self.ingest.total()
    }

    /// Proposals that openraft has taken.
    #[cfg(test)]
    pub(crate) fn with_raft(&self) -> u64 {
        let metrics = self.raft.data_metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<LogId>| id.as_ref().map_or(0, |id| id.index);
        index(&metrics.last_log) - index(&metrics.last_applied)
    }

    /// Nothing is applied while this lives.
    #[cfg(test)]
    pub(crate) async fn stand_still(&self) -> OwnedRwLockReadGuard<AppliedState> {
        self.applied.clone().read_owned().await
    }

    /// Proposes a command of a client for a namespace, when its turn comes, and waits until it is applied
    /// here. It has its share of the account until Raft is done with it, also when the deadline passes
    /// before.
    pub(crate) async fn propose(
        &self,
        namespace: NamespaceId,
        client: ClientId,
        proposal: Proposal,
        deadline: Instant,
    ) -> Result<ClientWriteResponse<TypeConfig>, Unserved> {
        let begun = Instant::now();
        self.check_pressure()?;
        let admitted = self.ingest.admit(namespace, client, proposal);
        let (entry, answer) = admitted.map_err(|refusal| self.not_let_in(refusal))?;
        let ticket = match entry {
            Entry::Waits(ticket) => Some(ticket),
            Entry::Now(handed) => {
                self.hand_over(handed, deadline).await?;
                None
            }
        };
        let unknown = |why: String| Failure::new(Reason::ResultUnknown, why);
        match timeout_at(deadline, answer).await {
            Ok(Ok(Fate::Decided(Ok(response)))) => {
                self.latencies.proposal.record(begun.elapsed());
                Ok(response)
            }
            Err(_) if ticket.is_some_and(|ticket| ticket.withdraw()) => Err(self.turn_missed().into()),
            Err(_) if kv_types::mutant!(TimeoutAsRefusal) => {
                Err(self.no_quorum("nothing was decided").into())
            }
            Err(_) => Err(unknown("it was proposed, and not applied by the deadline".into()).into()),
            Ok(Ok(Fate::Decided(Err(ClientWriteError::ForwardToLeader(forward))))) => {
                Err(self.forwarded(forward))
            }
            Ok(Ok(Fate::Decided(Err(error)))) => Err(unknown(error.to_string()).into()),
            Ok(Ok(Fate::NeverProposed)) => Err(self.not_let_in(Refusal::Stopped).into()),
            // The group stopped; it may have been proposed before.
            Ok(Err(_)) => {
                let state = self.raft.metrics().borrow_watched().running_state.clone();
                Err(self.fatal(&state.err().unwrap_or(Fatal::Stopped)).after_sending().into())
            }
        }
    }

    /// Gives a proposal to Raft by the deadline.
    async fn hand_over(
        &self,
        (proposal, answering): Handed<Decided>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let handed = self.raft.write(proposal).responder(answering).into_future();
        match timeout_at(deadline, handed).await {
            Ok(Ok(())) => Ok(()),
            // Raft's own queue had no room up to the deadline: it has not taken the message and will not.
            Err(_) => {
                let why = format!("{} did not take the proposal by the deadline", self.id);
                Err(Failure::new(Reason::Overloaded, why).retry_after_ms(RETRY_AFTER_MS))
            }
            Ok(Err(fatal)) => Err(self.fatal(&fatal).after_sending()),
        }
    }

    /// Gives Raft what waits for its turn, until the group stops.
    pub(crate) async fn proposer(self: Arc<Self>) {
        let _present = self.attendance.begin();
        while let Some(handed) = self.ingest.turn().await {
            for (proposal, answering) in handed {
                if self.raft.write(proposal).responder(answering).await.is_err() {
                    // openraft has ended, which is noticed elsewhere; nothing more can be proposed.
                    return self.ingest.stop();
                }
            }
        }
    }

    /// Some rows of a namespace at one point of the log, which includes everything that was decided before
    /// this call: the leader lets a quorum confirm it (read index), then waits until it has applied as much.
    /// `places` says which rows, given where the state stands. A namespace that was dropped by then is
    /// unknown, whatever rows are left of it.
    ///
    /// Nothing waits for a read: what only the disk has is read without the lock of the applied state, and
    /// counts if it was not written meanwhile.
    pub(crate) async fn read<const N: usize>(
        &self,
        namespace: NamespaceId,
        places: impl Fn(Space) -> [(Table, Vec<u8>); N],
        deadline: Instant,
    ) -> Result<(ReadPoint, Found<N>), Unserved> {
        let term = self.confirm(deadline).await?;
        let mut before = self.still(deadline).await?;
        for _ in 0..READ_ATTEMPTS {
            let (space, from, places) = (before.space, before.last(), places(before.space));
            let known = self.in_memory(&places);
            let found = if known.iter().all(Option::is_some) {
                known
            } else {
                drop(before);
                let read = self.read_disk(&places, deadline).await?;
                before = self.still(deadline).await?;
                self.that_stand(from, &before, &places, read)
            };
            if before.dropped.has(namespace) {
                return Err(no_namespace(namespace).of_read().into());
            }
            if before.space == space
                && let Some(rows) = whole(found)
            {
                return Ok((self.point(term, &before), rows));
            }
        }
        let why = format!("{} is written to faster than these keys are read", self.id);
        Err(Failure::new(Reason::Overloaded, why).of_read().retry_after_ms(RETRY_AFTER_MS).into())
    }

    /// The state stands still while what is returned lives: for no longer than it takes to look at memory.
    async fn still(&self, deadline: Instant) -> Result<OwnedRwLockReadGuard<AppliedState>, Failure> {
        let behind =
            |_| Failure::new(Reason::Overloaded, "the state did not catch up with the log by the deadline");
        timeout_at(deadline, self.applied.clone().read_owned()).await.map_err(behind)
    }

    fn in_memory<const N: usize>(&self, places: &[(Table, Vec<u8>); N]) -> [Option<Option<Bytes>>; N] {
        let keys = places.iter().map(|(table, key)| (table.id(), key.clone())).collect::<Vec<_>>();
        let mut rows = self.around.storage.rows_in_memory(&keys).into_iter();
        std::array::from_fn(|_| rows.next().flatten().map(|row| row.map(|row| row.value)))
    }

    /// Rows as of some moments of the call, read together and off this thread.
    async fn read_disk<const N: usize>(
        &self,
        places: &[(Table, Vec<u8>); N],
        deadline: Instant,
    ) -> Result<Found<N>, Failure> {
        let keys = places.iter().map(|(table, key)| (table.id(), key.clone())).collect();
        let late =
            |_| Failure::new(Reason::DeadlineExpired, "the state was not read by the deadline").of_read();
        let rows = timeout_at(deadline, self.around.storage.read_rows(keys)).await.map_err(late)?;
        let rows = rows.map_err(|error| match error {
            StorageError::Overloaded { .. } => {
                Failure::new(Reason::Overloaded, error.to_string()).of_read().retry_after_ms(RETRY_AFTER_MS)
            }
            error => unreadable(&error),
        })?;
        let mut rows = rows.into_iter();
        Ok(std::array::from_fn(|_| rows.next().flatten().map(|row| row.value)))
    }

    /// Of rows that were read since `from`, those as of `now`: what was not written, and what memory has. The
    /// state stands still.
    fn that_stand<const N: usize>(
        &self,
        from: Option<LogId>,
        now: &AppliedState,
        places: &[(Table, Vec<u8>); N],
        read: Found<N>,
    ) -> [Option<Option<Bytes>>; N] {
        if from == now.last() {
            return read.map(Some);
        }
        let mut read = read.into_iter().zip(places).zip(self.in_memory(places));
        std::array::from_fn(|_| {
            let ((read, (table, key)), known) = read.next()?;
            known.or_else(|| (!self.recent.since(*table, key, from.as_ref())).then_some(read))
        })
    }

    fn point(&self, term: u64, state: &AppliedState) -> ReadPoint {
        let index = state.last().as_ref().map_or(0, |id| id.index);
        let committed = self.raft.data_metrics().borrow_watched().local_committed.map_or(0, |id| id.index);
        ReadPoint { term, index, lag: committed.saturating_sub(index) }
    }

    /// Lets a quorum confirm that this node leads, in a round that begins now and is shared with other reads,
    /// and waits until it has applied what was decided before; the term in which it does.
    pub(crate) async fn confirm(&self, deadline: Instant) -> Result<u64, Unserved> {
        let late = || self.late("a quorum confirmed the leader");
        let behind =
            || Failure::new(Reason::Overloaded, "the state did not catch up with the log by the deadline");
        if kv_types::mutant!(SkipReadIndex) && self.leadership() == Leadership::Leads {
            return Ok(self.leader_and_term().1);
        }
        let begun = Instant::now();
        let round =
            self.confirmations.next(|| confirmation(self.raft.clone(), self.around.config.election_max));
        let confirmed = timeout_at(deadline, round).await.map_err(|_| late())?;
        let linearizer = confirmed.map_err(|error| match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => self.forwarded(forward),
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => {
                Unserved::Failed(self.no_quorum("no quorum confirmed that it still leads"))
            }
            RaftError::Fatal(fatal) => Unserved::Failed(self.fatal(&fatal)),
        })?;
        let term = linearizer.read_log_id().committed_leader_id().term;
        let applied = self.raft.data_metrics().borrow_watched().last_applied;
        if applied.as_ref() < Some(linearizer.read_log_id().log_id()) {
            let left = deadline.saturating_duration_since(Instant::now());
            // On the heap: most reads wait for nothing here.
            let ready = Box::pin(linearizer.try_await_ready(&self.raft, Some(left)));
            ready.await.map_err(|fatal| self.fatal(&fatal))?.map_err(|_| behind())?;
        }
        self.latencies.read_index.record(begun.elapsed());
        Ok(term)
    }

    /// A digest of this node's own replica of a namespace at one point of the log, which it names. No other
    /// node is asked.
    ///
    /// The lock is held for the few parts that were written to since they were read, so that a namespace of
    /// any size does not keep entries from being applied. One at a time.
    pub(crate) async fn digest(
        &self,
        namespace: NamespaceId,
        deadline: Instant,
    ) -> Result<admin::GetDigestResponse, Failure> {
        let late = || {
            Failure::new(Reason::Overloaded, format!("{} was not digested by the deadline", self.id))
                .retry_after_ms(RETRY_AFTER_MS)
        };
        let failed = |error: MachineError| match error {
            MachineError::Storage(StorageError::CopyOverrun { .. } | StorageError::Overloaded { .. }) => {
                let why = "too much is written for a digest; ask again when less is written";
                Failure::new(Reason::Overloaded, why).retry_after_ms(RETRY_AFTER_MS)
            }
            error => Failure::new(Reason::StorageFailed, error.to_string()).of_read(),
        };
        let off_the_workers = |error: std::io::Error| failed(error.into());
        // Gone when the caller is: the threads that digest look at it, since they cannot be stopped.
        let asked = Arc::new(());
        let waits = Arc::downgrade(&asked);
        let digest = async {
            // The next one begins when the threads of this one have ended, not when its caller left: each has
            // one of the few copies that snapshots need as well.
            let alone = self.digesting.clone().lock_owned().await;
            let space = self.applied.read().await.space;
            let storage = self.around.storage.clone();
            let digesting = NodeRuntime::blocking(move || {
                let mut digesting = Digesting::begin(&storage, space, namespace, waits)?;
                digesting.read().map(|()| (digesting, alone))
            });
            let (digesting, alone) = digesting.await.map_err(off_the_workers)?.map_err(failed)?;
            let applied = self.applied.read().await;
            if applied.space != space {
                return Err(failed(StorageError::Overloaded { what: "an installation" }.into()));
            }
            // Its rows go at each node in its own time.
            if applied.dropped.has(namespace) {
                return Err(no_namespace(namespace).of_read());
            }
            let closing = NodeRuntime::blocking(move || {
                let _alone = alone;
                digesting.close()
            });
            // Nothing is applied meanwhile, so it is not the caller who says how long that may be.
            let digested = timeout(DIGEST_CLOSE_WAIT, closing).await.map_err(|_| late())?;
            let (digest, keys) = digested.map_err(off_the_workers)?.map_err(failed)?;
            Ok(admin::GetDigestResponse {
                partitions: vec![admin::PartitionDigest { partition: 0, digest, keys }],
                applied_index: Some(applied.last().as_ref().map_or(0, |applied| applied.index)),
                ..admin::GetDigestResponse::default()
            })
        };
        let digested = timeout_at(deadline, digest).await.map_err(|_| late())?;
        drop(asked);
        digested
    }
}
