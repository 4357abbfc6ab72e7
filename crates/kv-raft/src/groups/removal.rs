//! What becomes of deleted namespaces in a group. The leader proposes to drop those that the catalogue has no
//! more (`dropped`); and each node removes, in the background and in bounded steps, the rows and the streams
//! of what was dropped. They are not read or written any more, so that need not be agreed on. What is left
//! after a restart, or came with a snapshot, is found again.

use std::ops::RangeInclusive;
use std::sync::Arc;

use kv_storage::{Batch, StorageError};
use kv_types::catalogue::FeatureLevel;
use kv_types::{GroupId, NamespaceId, Placement};
use openraft::errors::{Fatal, RaftError};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::Group;
use crate::config::TypeConfig;
use crate::dropped::{DropCommand, Dropped};
use crate::limits::{
    PIECE_BYTES, REMOVAL_PAUSE, REMOVAL_REST, REMOVED_BYTES_PER_SECOND, ROWS_AT_ONCE, STEWARD_DEADLINE,
};
use crate::machine_error::MachineError;
use crate::runtime::NodeRuntime;
use crate::schedule::Rate;
use crate::tables::{Space, Table, keys};

/// Tables with rows of namespaces that each node removes by itself. Sessions, and what stands beside the
/// clock, go with the drop.
const REMOVED: [Table; 2] = [Table::Data, Table::Tombstones];

/// The removal of what was dropped, in a task of its own.
#[derive(Default)]
pub(super) struct Removal {
    task: JoinSet<Option<(Space, Arc<Dropped>)>>,
    /// What was dropped when nothing was left of it, in which space.
    done: Option<(Space, Arc<Dropped>)>,
    not_before: Option<Instant>,
}

impl Removal {
    /// Begins to remove what was dropped since the last time.
    pub(super) fn look(&mut self, group: &Arc<Group>) {
        match self.task.try_join_next() {
            Some(Ok(Some(done))) => self.done = Some(done),
            Some(_) => self.not_before = Some(Instant::now() + REMOVAL_PAUSE),
            None if !self.task.is_empty() => return,
            None => {}
        }
        // The lock is held while entries are applied, for as long as the disk takes.
        let Ok(now) = group.applied.try_read().map(|applied| (applied.space, applied.dropped.clone())) else {
            return;
        };
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let nothing = Dropped::default();
        let done = self.done.as_ref().filter(|(space, _)| *space == now.0).map_or(&nothing, |(_, done)| done);
        let runs = now.1.without(done);
        if !runs.is_empty() {
            self.task.spawn(NodeRuntime::branch(Arc::clone(group).remove_dropped(now, runs)));
        }
    }
}

impl Group {
    /// Proposes to drop the next namespaces that were deleted, where this node leads: those that the state
    /// does not know to be, or of which sessions are left.
    pub(super) async fn drop_deleted(&self) -> Result<(), Fatal<TypeConfig>> {
        let Some(run) = self.to_drop() else { return Ok(()) };
        let deadline = Instant::now() + STEWARD_DEADLINE;
        match timeout_at(deadline, self.raft.client_write(DropCommand(run).encode())).await {
            Ok(Err(RaftError::Fatal(fatal))) => Err(fatal),
            // No longer the leader, or too slow: the next tick tries again, and to drop twice is no harm.
            _ => Ok(()),
        }
    }

    fn to_drop(&self) -> Option<RangeInclusive<u64>> {
        if self.id == GroupId::CATALOGUE {
            return None;
        }
        let dropped = self.applied.try_read().ok()?.dropped.clone();
        let catalogue = self.around.catalogue.borrow().clone();
        if !catalogue.allows(FeatureLevel::DELETION) {
            return None;
        }
        let mine = |placement: &Placement| *placement == Placement::Strong { group: self.id };
        let new =
            catalogue.deleted(mine).into_iter().find(|(first, last)| !dropped.covers(&(*first..=*last)));
        new.or(dropped.unfinished).map(|(first, last)| first..=last)
    }

    /// Removes what is stored of dropped namespaces. None if something may be left.
    async fn remove_dropped(
        self: Arc<Self>,
        (space, dropped): (Space, Arc<Dropped>),
        runs: Vec<(u64, u64)>,
    ) -> Option<(Space, Arc<Dropped>)> {
        match self.remove_runs(space, &runs).await {
            Ok(true) => Some((space, dropped)),
            Ok(false) => None,
            Err(error) => {
                tracing::warn!(group = %self.id, %error, "what is left of dropped namespaces is removed later");
                None
            }
        }
    }

    /// True when nothing is left.
    async fn remove_runs(&self, space: Space, runs: &[(u64, u64)]) -> Result<bool, MachineError> {
        let mut rate = Rate::new(REMOVED_BYTES_PER_SECOND);
        let opened = Instant::now();
        let mut removed = 0;
        for (first, last) in runs {
            let from = keys::of_namespace(space, NamespaceId(*first));
            let to = keys::of_namespace(space, NamespaceId(last.saturating_add(1)));
            for table in REMOVED {
                let mut next = Some(from.clone());
                while let Some(from) = next.take() {
                    if self.applied.read().await.space != space {
                        return Ok(false);
                    }
                    let began = Instant::now();
                    let bytes;
                    (bytes, next) = self.remove_step(table, &from, &to).await?;
                    let rest = began.elapsed().saturating_mul(REMOVAL_REST);
                    removed += bytes;
                    self.account.freed(bytes);
                    self.around.storage.let_drain().await;
                    sleep(rate.spend(opened.elapsed(), bytes).max(rest)).await;
                }
            }
        }
        if !self.forget_streams(space, runs).await? {
            return Ok(false);
        }
        self.account.settle_freed(&self.around.snapshots, self.around.config.snapshot_freed_bytes);
        if removed > 0 {
            tracing::info!(group = %self.id, bytes = removed, "rows of dropped namespaces were removed");
        }
        Ok(true)
    }

    /// Removes some rows: their bytes, and where there may be more.
    async fn remove_step(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
    ) -> Result<(u64, Option<Vec<u8>>), StorageError> {
        let storage = &self.around.storage;
        let chunk = storage.read_range(table.id(), from, Some(to), ROWS_AT_ONCE, PIECE_BYTES).await?;
        let Some((last, _)) = chunk.rows.last() else { return Ok((0, None)) };
        // The least key after the last one.
        let next = chunk.more.then(|| [last.as_ref(), &[0]].concat());
        let mut bytes = 0;
        let mut batch = Batch::new();
        for (key, row) in chunk.rows {
            bytes += (key.len() + row.value.len()) as u64;
            batch.push_delete(table.id(), key);
        }
        // Behind the drop, as everything that is applied: no tier has this and not that.
        storage.apply(batch).await?;
        Ok((bytes, next))
    }

    /// Forgets the histories, whose entries were given up with the drop. A snapshot that is being written may
    /// still read them, and what the memtable has of them would bring their names back: false if that cannot
    /// go to the tier now.
    async fn forget_streams(&self, space: Space, runs: &[(u64, u64)]) -> Result<bool, MachineError> {
        let storage = &self.around.storage;
        let dropped = || {
            let names = runs.iter().map(|(first, last)| {
                let from = keys::of_namespace(space, NamespaceId(*first));
                (from, keys::of_namespace(space, NamespaceId(last.saturating_add(1))))
            });
            let names = names.flat_map(|(from, to)| storage.streams(Table::History.id(), &from, &to));
            names.collect::<Vec<_>>()
        };
        if dropped().is_empty() {
            return Ok(true);
        }
        let _alone = self.around.snapshots.alone().await?;
        if !storage.checkpoint_if_room().await? {
            return Ok(false);
        }
        let (own, streams) = (storage.clone(), dropped());
        NodeRuntime::blocking(move || own.forget_streams(Table::History.id(), &streams)).await??;
        Ok(dropped().is_empty())
    }
}
