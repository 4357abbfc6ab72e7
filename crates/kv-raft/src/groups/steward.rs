//! The steward of the group, a task beside openraft: every tick it watches the disk; and it lets the node
//! join, trims the log, removes what was dropped, and where the node leads, enrols members, initializes the
//! cluster, deletes namespaces whose grace is over, and drops deleted ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use kv_types::catalogue::FeatureLevel;
use kv_types::causal::ContextKey;
use kv_types::{GroupId, NodeId};
use openraft::EmptyNode;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{Fatal, RaftError};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::graces::Graces;
use super::removal::Removal;
use super::{Group, Leadership, lock};
use crate::catalogue_machine::CatalogueCommand;
use crate::config::{RaftConfig, TypeConfig};
use crate::limits::{ABILITY_EVERY, DISK_SILENCE, GIVE_UP_EVERY, MEND_EVERY, STEWARD_DEADLINE, STEWARD_TICK};
use crate::proposal::Reply;
use crate::rejoin::Role;
use crate::runtime::NodeRuntime;

/// The mending of histories, in a task of its own.
#[derive(Default)]
struct Mending {
    task: JoinSet<bool>,
    turns: Turns,
}

impl Mending {
    /// Begins to mend where something is missing, and not too often where no member has it.
    fn look(&mut self, group: &Arc<Group>) {
        let now = Instant::now();
        match self.task.try_join_next() {
            Some(whole) => self.turns.ended(whole.is_ok_and(|whole| whole), now),
            None if !self.task.is_empty() => return,
            None => {}
        }
        if self.turns.is_due(now) && group.has_holes() {
            self.task.spawn(NodeRuntime::branch(Arc::clone(group).mend()));
        }
    }
}

/// When to look next whether something is missing. A value.
#[derive(Debug, Default)]
struct Turns {
    failures: u32,
    next: Option<Instant>,
}

impl Turns {
    fn pause(&self) -> Duration {
        MEND_EVERY.0.saturating_mul(1 << self.failures.min(16)).min(MEND_EVERY.1)
    }

    /// Mending has ended, with everything back or not.
    fn ended(&mut self, whole: bool, now: Instant) {
        self.failures = if whole { 0 } else { self.failures + 1 };
        self.next = Some(now + self.pause());
    }

    /// Whether it is time to look; if so, the next time is later.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next.is_none_or(|next| now >= next);
        if due {
            self.next = Some(now + self.pause());
        }
        due
    }
}

impl Group {
    /// Runs until the task is dropped, or openraft fails.
    pub(crate) async fn steward(self: Arc<Self>) {
        let _present = self.attendance.begin();
        // What is looked after may wait for the disk; that the disk hangs is noticed all the same.
        tokio::select! {
            () = self.clone().look_after() => {}
            () = self.clone().watch() => {}
        }
    }

    /// At the same moments for all groups of the node: an idle one is woken once.
    fn ticks(&self) -> tokio::time::Interval {
        let mut ticks = tokio::time::interval_at(self.around.began, STEWARD_TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        ticks
    }

    async fn watch(self: Arc<Self>) {
        let mut tick = self.ticks();
        let mut gave_up = None;
        loop {
            tick.tick().await;
            if self.watch_disk(&mut gave_up).await.is_err() {
                return;
            }
        }
    }

    async fn look_after(self: Arc<Self>) {
        let mut tick = self.ticks();
        let (mut asked, mut looked, mut graces) = (None, None, Graces::default());
        let mut mending = Mending::default();
        let mut removal = Removal::default();
        loop {
            tick.tick().await;
            let done = async {
                self.settle().await?;
                self.trim(&mut asked).await?;
                self.remove_spare_snapshot().await;
                self.incoming.tidy().await;
                self.look_around(&mut looked).await;
                mending.look(&self);
                removal.look(&self);
                if self.leadership() == Leadership::Leads {
                    self.enroll().await?;
                    self.initialize_cluster().await?;
                    self.delete_due(&mut graces).await?;
                    self.drop_deleted().await?;
                } else {
                    graces = Graces::default();
                }
                Ok::<(), Fatal<TypeConfig>>(())
            };
            if done.await.is_err() {
                return;
            }
        }
    }

    /// Gives the leadership up, and keeps from campaigning, while the log does not answer. The followers
    /// acknowledge what this node has not written, so the group goes on without it.
    async fn watch_disk(&self, gave_up: &mut Option<Instant>) -> Result<(), Fatal<TypeConfig>> {
        let silent_for = self.disk.silent_for();
        let hangs = silent_for >= DISK_SILENCE;
        if self.hangs.swap(hangs, Ordering::AcqRel) != hangs {
            if hangs {
                tracing::error!(group = %self.id, ?silent_for, "the disk completes no write of the log: this node gives up leading");
            } else {
                tracing::info!(group = %self.id, "the disk writes the log again");
            }
            self.raft.runtime_config().heartbeat(!hangs);
            self.raft.runtime_config().elect(!hangs && *lock(&self.role) == Role::Settled);
        }
        let again = gave_up.is_none_or(|at| at.elapsed() >= GIVE_UP_EVERY);
        if hangs
            && again
            && let Some(successor) = self.successor()
        {
            *gave_up = Some(Instant::now());
            self.raft.trigger().transfer_leader(successor).await?;
        }
        Ok(())
    }

    /// Before this node stops: lets another voter lead where this one does, if one is up and willing. Writes
    /// that come meanwhile are refused as not applied, for the moment that it takes.
    pub(crate) async fn resign(&self, deadline: Instant) {
        let resigns = async {
            let mut metrics = self.raft.server_metrics();
            while self.leadership() == Leadership::Leads {
                let mut successor = None;
                for candidate in self.successors() {
                    if self.check_successor(NodeId(candidate)).await.is_ok() {
                        successor = Some(candidate);
                        break;
                    }
                }
                let Some(successor) = successor else { return };
                if self.raft.trigger().transfer_leader(successor).await.is_err() {
                    return;
                }
                // The order is sent once, and may be lost.
                let again = Instant::now() + self.around.config.heartbeat;
                let followed = async {
                    while self.leadership() == Leadership::Leads && metrics.changed().await.is_ok() {}
                };
                let _ = timeout_at(again, followed).await;
            }
        };
        let _ = timeout_at(deadline, resigns).await;
    }

    /// The voter that has most of the log of those that answer, where this node leads. Without one the
    /// followers elect when they have heard no heartbeat for long enough.
    fn successor(&self) -> Option<u64> {
        self.successors().into_iter().next()
    }

    /// The voters that answer, where this node leads: first those that have most of the log.
    fn successors(&self) -> Vec<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let me = self.around.config.node_id.0;
        let Some(replication) = metrics.replication.as_ref() else { return Vec::new() };
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let up = |id: u64| id != me && voters.contains(&id) && self.around.peers.liveness(NodeId(id)).is_up();
        let mut candidates: Vec<_> = replication.iter().filter(|(id, _)| up(**id)).collect();
        candidates.sort_by_key(|(_, matched)| std::cmp::Reverse(**matched));
        candidates.into_iter().map(|(id, _)| *id).collect()
    }

    /// Asks the other voters whether they acknowledge entries, from time to time.
    async fn look_around(&self, looked: &mut Option<Instant>) {
        if looked.is_some_and(|at: Instant| at.elapsed() < ABILITY_EVERY) {
            return;
        }
        *looked = Some(Instant::now());
        let me = self.around.config.node_id;
        let voters =
            self.voters().into_iter().filter(|id| *id != me && self.around.peers.liveness(*id).is_up());
        let asked = voters.map(|other| async move { (other, self.ask(other).await) });
        let answers = join_all(asked).await;
        let able = answers.into_iter().filter_map(|(other, said)| {
            let said = said.filter(|said| said.settled && !said.receiving)?;
            Some((other, said.last.map_or(0, |last| last.index.saturating_add(1))))
        });
        *lock(&self.able) = able.collect();
    }

    /// How many voters can acknowledge entries now, as far as this node knows, itself included: those that
    /// can be reached, are not joining, and need no snapshot first.
    pub(crate) fn able_voters(&self) -> usize {
        let me = self.around.config.node_id;
        let purged = {
            let metrics = self.raft.data_metrics();
            let purged = metrics.borrow_watched().purged;
            purged.map_or(0, |id| id.index + 1)
        };
        let myself = *lock(&self.role) == Role::Settled && !self.incoming.is_receiving();
        let able = lock(&self.able).clone();
        let other = |id: &NodeId| {
            self.around.peers.liveness(*id).is_up() && able.get(id).is_some_and(|end| *end >= purged)
        };
        self.voters().iter().filter(|id| if **id == me { myself } else { other(id) }).count()
    }

    /// Adds members that are missing from the group as learners.
    async fn enroll(&self) -> Result<(), Fatal<TypeConfig>> {
        let known: BTreeSet<u64> = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().nodes().map(|(id, _)| *id).collect()
        };
        let missing =
            self.around.config.members.iter().map(|member| member.id.0).find(|id| !known.contains(id));
        let Some(missing) = missing else { return Ok(()) };
        let deadline = Instant::now() + STEWARD_DEADLINE;
        match timeout_at(deadline, self.raft.add_learner(missing, EmptyNode {}, false)).await {
            Ok(Err(RaftError::Fatal(fatal))) => Err(fatal),
            // No longer the leader, or too slow: the next tick tries again.
            _ => Ok(()),
        }
    }

    /// The first leader of group 0 fills the catalogue: at the level that all members support that answer,
    /// and with a key for contexts. A second command would have no effect. A member that does not answer, and
    /// is of an older release, does not start: it says that its program is too old for the cluster.
    async fn initialize_cluster(&self) -> Result<(), Fatal<TypeConfig>> {
        if self.id != GroupId::CATALOGUE || !self.around.catalogue.borrow().members.is_empty() {
            return Ok(());
        }
        let RaftConfig { cluster_id, members, .. } = self.around.config.as_ref();
        let levels = self.levels(members.iter().map(|member| member.id)).await;
        let level = levels.into_values().min().unwrap_or(FeatureLevel::FIRST);
        let context_key = match level >= FeatureLevel::KEYED {
            true => match self.around.env.entropy.secret() {
                Ok(secret) => Some(ContextKey::new(secret)),
                Err(error) => {
                    tracing::error!(%error, "the system gives no random numbers: the catalogue is not initialized");
                    return Ok(());
                }
            },
            false => None,
        };
        let (cluster_id, members) = (*cluster_id, members.clone());
        let command = CatalogueCommand::InitCluster { cluster_id, members, level, context_key };
        let deadline = Instant::now() + STEWARD_DEADLINE;
        match timeout_at(deadline, self.raft.client_write(command.encode())).await {
            Ok(Err(RaftError::Fatal(fatal))) => Err(fatal),
            Ok(Ok(response)) if response.data != Reply::None => {
                tracing::info!(index = response.log_id.index, "the catalogue is initialized");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mending_that_fails_is_tried_less_and_less_often() {
        let (start, mut turns) = (Instant::now(), Turns::default());
        let mut begun = Vec::new();
        // Ticks of a steward; each attempt fails after one of them.
        for tick in 0..3_000 {
            let now = start + STEWARD_TICK * tick;
            if turns.is_due(now) {
                begun.push(now.duration_since(start).as_secs());
                turns.ended(false, now);
            }
        }
        assert_eq!(begun, [0, 4, 12, 28, 60, 124, 188, 252]);
        let now = start + Duration::from_secs(400);
        assert!(turns.is_due(now));
        turns.ended(true, now);
        assert!(!turns.is_due(now + MEND_EVERY.0 / 2) && turns.is_due(now + MEND_EVERY.0));
    }
}
