//! When a snapshot is taken and how far the log is purged, so that the log keeps within its bound and keeps
//! what followers need after a snapshot.

use kv_storage::StorageError;
use kv_types::NodeId;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::Fatal;
use tokio::time::Instant;

use super::Group;
use crate::config::{LogId, TypeConfig, log_bytes_wanted};
use crate::limits::{APPEND_ENTRIES, HELD_LOG_SHARE, SNAPSHOT_PAUSE};
use crate::machine_error::MachineError;
use crate::runtime::NodeRuntime;
use crate::schedule::{self, Growth};
use crate::transfer::purge_target;

fn share_of(bytes: u64, (part, whole): (u64, u64)) -> u64 {
    bytes / whole * part
}

impl Group {
    /// Takes a snapshot when the last one is old enough, and lets go of the log when there is too much of it.
    pub(super) async fn trim(&self, asked: &mut Option<Instant>) -> Result<(), Fatal<TypeConfig>> {
        let config = &self.around.config;
        let (applied, snapshot, purged) = {
            let metrics = self.raft.data_metrics();
            let metrics = metrics.borrow_watched();
            let next = |id: &Option<LogId>| id.as_ref().map_or(0, |id| id.index + 1);
            (next(&metrics.last_applied), next(&metrics.snapshot), next(&metrics.purged))
        };
        let fresh = applied.saturating_sub(snapshot);
        let storage = &self.around.storage;
        let log_bytes = storage.stats().log_bytes;
        let held_bound = share_of(storage.max_log_bytes(), HELD_LOG_SHARE);
        let holds = self.holds();
        // What is held for a follower is not let go by another snapshot either.
        let held = holds.iter().any(|hold| hold.needs < snapshot) && log_bytes < held_bound;
        let wanted = log_bytes_wanted(storage.max_log_bytes());
        // Not for a full disk: a snapshot takes room before it gives any. That of a small state is taken from
        // the reserve.
        let refused = storage.log_pressure().is_err_and(|e| !matches!(e, StorageError::DiskFull { .. }));
        let pressed = refused || (log_bytes > wanted && !held);
        let rested = asked.is_none_or(|at| at.elapsed() > SNAPSHOT_PAUSE);
        let (bytes, state_bytes) = self.account.growth();
        let growth = Growth { entries: fresh, bytes, state_bytes, most_entries: config.snapshot_every };
        let due = growth.is_due(schedule::slot(config.node_id.0, self.id.0));
        let due = due || (pressed && fresh > 0) || self.account.needs_snapshot();
        let sheds = self.account.is_to_shed(&self.around.snapshots);
        let expected = if sheds { self.account.without_shed(state_bytes) } else { state_bytes };
        let room = storage.snapshots(self.id).room_for(expected);
        if due && room.is_err() {
            // The next snapshot is worth more than the rest of a transfer.
            self.account.sent().clear();
        }
        if rested && (due || sheds) && room.is_ok() {
            *asked = Some(Instant::now());
            self.raft.trigger().snapshot().await?;
            return Ok(());
        }
        let kept_from = snapshot.saturating_sub(config.entries_kept).max(self.account.given_up());
        let wanted = if pressed { snapshot } else { kept_from.min(snapshot) };
        let target = purge_target(wanted, holds.into_iter(), log_bytes, held_bound);
        let at_once = pressed || purged < self.account.given_up();
        let batch = if at_once { 1 } else { (config.entries_kept / 8).clamp(1, APPEND_ENTRIES) };
        if target >= purged.saturating_add(batch) {
            self.raft.trigger().purge_log(target - 1).await?;
        }
        Ok(())
    }

    /// Removes the snapshot that was kept for a follower when it is not needed any more.
    pub(super) async fn remove_spare_snapshot(&self) {
        let (storage, account, group) = (self.around.storage.clone(), self.account.clone(), self.id);
        if !account.has_spare_file() || account.kept_file(&storage, group).is_some() {
            return;
        }
        let removed = NodeRuntime::blocking(move || account.remove_old_files(&storage, group)).await;
        if let Err(error) = removed.map_err(MachineError::from).and_then(|removed| Ok(removed?)) {
            tracing::warn!(%group, %error, "a snapshot that is not needed any more was not removed");
        }
    }

    /// Followers for which this node keeps entries, when it leads.
    fn holds(&self) -> Vec<crate::transfer::Hold> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let next = |id: &Option<LogId>| id.as_ref().map_or(0, |id| id.index + 1);
        let Some(replication) = &metrics.replication else {
            self.outgoing.let_go();
            return Vec::new();
        };
        let matched = |to: NodeId| replication.get(&to.0).map_or(0, next);
        let near = self.around.config.entries_kept / 2;
        self.outgoing.holds(matched, metrics.last_log_index.map_or(0, |index| index + 1), near)
    }
}
