//! Types and settings of openraft, in one place; no other file says what a node id or a lease is.

use std::time::Duration;

use kv_types::catalogue::{FeatureLevel, Member};
use kv_types::{ClusterId, NodeId};
use openraft::{ConfigError, SnapshotPolicy};

use crate::ingest::Answering;
use crate::limits;
use crate::proposal::{Proposal, Reply};
use crate::runtime::NodeRuntime;

/// Every group speaks of opaque proposals and typed replies; members are known by id, addresses are
/// kv-peer's. Written out because openraft's macro cannot name a responder of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = Reply;
    type NodeId = u64;
    type Node = openraft::EmptyNode;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Self::D, Self::NodeId, Self::Node>;
    type Entry = openraft::Entry<<Self::LeaderId as openraft::vote::RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = NodeRuntime;
    type Responder<T>
        = Answering<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// What Raft made of a proposal.
pub(crate) type Decided =
    Result<openraft::raft::ClientWriteResponse<TypeConfig>, openraft::errors::ClientWriteError<TypeConfig>>;
pub(crate) type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, openraft::EmptyNode>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// What a node's Raft groups are started with.
#[derive(Debug, Clone)]
pub struct RaftConfig {
    /// This node.
    pub node_id: NodeId,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The members that the cluster starts with; the first five by id vote.
    pub members: Vec<Member>,
    /// What this node says that its program supports. Less than that only in tests, where a node stands for
    /// one of an older release.
    pub supports: FeatureLevel,
    /// A leader is heard this often.
    pub heartbeat: Duration,
    /// The shortest election timeout.
    pub election_min: Duration,
    /// The longest election timeout, and the lease of a leader.
    pub election_max: Duration,
    /// A snapshot is taken after so many entries at the latest; usually the size of the log decides earlier.
    pub snapshot_every: u64,
    /// Snapshots are taken again, and the log below them goes, when namespaces of so many bytes and of half
    /// the last snapshot were removed.
    pub snapshot_freed_bytes: u64,
    /// Snapshots of this node are written at this rate, bytes per second, one at a time.
    pub snapshot_bytes_per_second: u64,
    /// Entries kept in the log below a snapshot, so that a short absence needs no snapshot.
    pub entries_kept: u64,
    /// Bytes of a snapshot that go to a follower in one message, at most 1 MiB.
    pub transfer_chunk_bytes: usize,
    /// Bytes of a snapshot that go to one follower in a second; 0 for as many as it takes.
    pub transfer_bytes_per_second: u64,
    /// Bytes of a snapshot that is received that are synced together, at most 8 MiB.
    pub transfer_sync_bytes: u64,
    /// Entries of a group that may wait to be proposed or applied; more are refused with `OVERLOADED`.
    pub backlog_entries: u64,
    /// Their bytes.
    pub backlog_bytes: u64,
    /// Of these, entries that may be proposed and not applied; the others wait for their turn, which comes by
    /// namespace and client. A namespace with little under way adds a few to them at once.
    pub pipeline_entries: u64,
    /// Their bytes.
    pub pipeline_bytes: u64,
    /// Entries that a follower may know to be committed and not have applied; with more it refuses appends
    /// that carry entries, and answers the others.
    pub apply_lag_entries: u64,
}

impl RaftConfig {
    /// The defaults for a node of a cluster.
    pub fn new(cluster_id: ClusterId, node_id: NodeId, members: Vec<Member>) -> Self {
        Self {
            node_id,
            cluster_id,
            members,
            supports: FeatureLevel::SUPPORTED,
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(250),
            election_max: Duration::from_millis(500),
            snapshot_every: 4_000_000,
            snapshot_freed_bytes: limits::SNAPSHOT_FREED_BYTES,
            snapshot_bytes_per_second: limits::SNAPSHOT_BYTES_PER_SECOND,
            entries_kept: 50_000,
            transfer_chunk_bytes: 512 << 10,
            transfer_bytes_per_second: 32 << 20,
            transfer_sync_bytes: 8 << 20,
            backlog_entries: limits::BACKLOG_ENTRIES,
            backlog_bytes: limits::BACKLOG_BYTES,
            pipeline_entries: limits::PIPELINE_ENTRIES,
            pipeline_bytes: limits::PIPELINE_BYTES,
            apply_lag_entries: limits::APPLY_LAG_ENTRIES,
        }
    }

    /// Entries that may be proposed on this node and not applied.
    pub(crate) fn backlog_entries(&self) -> u64 {
        self.backlog_entries.min(limits::MAX_BACKLOG_ENTRIES)
    }

    /// Their bytes, given the bound of the log. What the accounts of the groups let in while the log is just
    /// below its bound must fit above it: a failed append ends its group.
    pub(crate) fn backlog_bytes(&self, max_log_bytes: u64) -> u64 {
        self.backlog_bytes.min(max_log_bytes / limits::BACKLOG_LOG_SHARE)
    }

    /// Entries that this node may know to be committed, and not have applied, when it takes more of them.
    pub(crate) fn apply_lag_entries(&self) -> u64 {
        self.apply_lag_entries.min(limits::MAX_APPLY_LAG_ENTRIES)
    }

    /// Places in openraft's queue of work for the state machine: more than it can be given. Each step of the
    /// commit index takes one, so they are at most as many as entries are committed and not applied: what a
    /// follower may lag behind when it takes an append, that append, and what two leaders, this node and the
    /// one before it, had under way: each at most what its account lets in above as much that it found.
    fn apply_queue(&self) -> u64 {
        self.apply_lag_entries() + limits::APPEND_ENTRIES + 4 * self.backlog_entries()
    }

    /// How far the ticks of the groups may be put off to come together: two of openraft's, and never so far
    /// that a heartbeat which may be left out, the next and its tick come after the shortest election time.
    pub(crate) fn ticks_together(&self) -> Duration {
        let gap = self.heartbeat + self.heartbeat / 2;
        (self.heartbeat * 2 / 5).min(self.election_min.saturating_sub(gap) / 2)
    }

    /// openraft's settings. `docs/decisions` has the reasons; the two that guard safety are the last.
    pub(crate) fn openraft(&self) -> Result<openraft::Config, ConfigError> {
        let heartbeat = millis(self.heartbeat);
        let lease = millis(self.election_max);
        let settings = openraft::Config {
            cluster_name: self.cluster_id.to_string(),
            heartbeat_interval: heartbeat,
            heartbeat_min_interval: Some(heartbeat / 2),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: lease,
            max_payload_entries: limits::APPEND_ENTRIES,
            // Raft's only loop waits when this queue is full, with its ticks and heartbeats.
            state_machine_channel_size: Some(self.apply_queue()),
            // The trigger is ours (`groups`): openraft's counts from zero at every start.
            snapshot_policy: SnapshotPolicy::Never,
            // So is the purge: it waits for followers that a snapshot is on its way to.
            max_in_snapshot_log_to_keep: u64::MAX,
            replication_lag_threshold: self.snapshot_every.min(limits::LEARNER_LAG_ENTRIES).saturating_mul(2),
            install_snapshot_timeout: millis(limits::SNAPSHOT_IDLE),
            // One-way partitions: a leader that is heard but hears no one falls silent, so that others may
            // campaign.
            quorum_loss_probe_interval: Some(lease * 2),
            enable_pre_vote: Some(true),
            // A restarted leader must be elected: its applied state is not fsynced, so its read index could
            // be stale.
            enable_leader_restore: Some(false),
            // A node that lost its disk comes back with an empty log, under the conditions of `rejoin`.
            allow_log_reversion: Some(true),
            ..openraft::Config::default()
        };
        settings.validate()
    }
}

/// Bytes of the node's log above which its groups trim it, given the bound of the log.
pub(crate) fn log_bytes_wanted(max_log_bytes: u64) -> u64 {
    max_log_bytes / limits::LOG_WANTED_SHARE
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{APPEND_ENTRIES, APPLY_LAG_ENTRIES, BACKLOG_ENTRIES};

    #[test]
    fn the_defaults_are_valid_and_safe() {
        let settings = RaftConfig::new(ClusterId(1), NodeId(1), Vec::new()).openraft().unwrap();
        assert_eq!(settings.enable_leader_restore, Some(false));
        assert_eq!(settings.enable_pre_vote, Some(true));
        assert_eq!(settings.quorum_loss_probe_interval, Some(1_000));
        assert_eq!(settings.snapshot_policy, SnapshotPolicy::Never);
        assert_eq!(settings.max_in_snapshot_log_to_keep, u64::MAX);
        assert_eq!(settings.allow_log_reversion, Some(true));
    }

    #[test]
    fn the_queue_for_the_state_machine_holds_all_that_can_be_unapplied() {
        for (backlog_entries, apply_lag_entries) in
            [(BACKLOG_ENTRIES, APPLY_LAG_ENTRIES), (1, 1), (100_000, 1), (u64::MAX, u64::MAX)]
        {
            let config = RaftConfig {
                backlog_entries,
                apply_lag_entries,
                ..RaftConfig::new(ClusterId(1), NodeId(1), Vec::new())
            };
            let places = config.openraft().unwrap().state_machine_channel_size.unwrap();
            let leader = 2 * config.backlog_entries();
            let follower = config.apply_lag_entries() + APPEND_ENTRIES;
            assert!(places >= leader + leader + follower, "{places}");
            assert!(places <= 1 << 20, "a bound of its own: {places}");
        }
    }
}
