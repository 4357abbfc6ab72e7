//! How long requests take on this node, by what they ask for: what an operator looks at first when a node is
//! slow. The parts below (log, proposals, applied steps) count their own.

use kv_proto::admin;
use kv_proto::peer::request_frame::Body;
use kv_raft::Strong;
use kv_storage::Storage;
use kv_types::{GroupId, Latency, LatencySummary, Mode};
use tokio::time::Instant;

/// Requests about a namespace that was found, from their arrival until their answer is known, refusals
/// included; not those whose caller left before.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    strong_read: Latency,
    strong_write: Latency,
    available_read: Latency,
    available_write: Latency,
    raft_append: Latency,
    replica_read: Latency,
    replica_write: Latency,
    forward: Latency,
}

impl Latencies {
    /// Counts a call of a client or one that was passed on.
    pub(crate) fn served(&self, mode: Mode, is_read: bool, arrived: Instant) {
        let latency = match (mode, is_read) {
            (Mode::Strong, true) => &self.strong_read,
            (Mode::Strong, false) => &self.strong_write,
            (Mode::Available, true) => &self.available_read,
            (Mode::Available, false) => &self.available_write,
        };
        latency.record(arrived.elapsed());
    }

    /// Counts a message of a peer whose handling began at `begun`, if it is of a kind that is counted.
    pub(crate) fn handled(&self, kind: Option<MessageKind>, begun: Instant) {
        let latency = match kind {
            Some(MessageKind::RaftAppend) => &self.raft_append,
            Some(MessageKind::ReplicaRead) => &self.replica_read,
            Some(MessageKind::ReplicaWrite) => &self.replica_write,
            Some(MessageKind::Forward) => &self.forward,
            None => return,
        };
        latency.record(begun.elapsed());
    }

    /// All that was counted on this node, by part; without parts that never occurred.
    pub(crate) fn summary(&self, strong: &Strong, storage: &Storage) -> Vec<admin::PartLatency> {
        let own = [
            ("strong_read", &self.strong_read),
            ("strong_write", &self.strong_write),
            ("available_read", &self.available_read),
            ("available_write", &self.available_write),
            ("forward", &self.forward),
            ("raft_append", &self.raft_append),
            ("replica_read", &self.replica_read),
            ("replica_write", &self.replica_write),
        ];
        let own = own.into_iter().map(|(part, latency)| of(part, None, latency.summary()));
        let groups = strong.latencies().into_iter().map(|(part, group, found)| of(part, Some(group), found));
        let storage = storage.latencies().into_iter().map(|(part, found)| of(part, None, found));
        own.chain(groups).chain(storage).filter(|part| part.count > 0).collect()
    }
}

/// Messages of peers that are counted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MessageKind {
    RaftAppend,
    ReplicaRead,
    ReplicaWrite,
    Forward,
}

impl MessageKind {
    pub(crate) fn of(body: &Body) -> Option<Self> {
        match body {
            Body::RaftAppend(_) => Some(Self::RaftAppend),
            Body::ReplicaRead(_) => Some(Self::ReplicaRead),
            Body::ReplicaWrite(_) => Some(Self::ReplicaWrite),
            Body::Forward(_) => Some(Self::Forward),
            _ => None,
        }
    }
}

fn of(part: &str, group: Option<GroupId>, found: LatencySummary) -> admin::PartLatency {
    let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    admin::PartLatency {
        part: part.to_owned(),
        group: group.map(|group| group.0),
        count: found.count,
        p50_us: micros(found.p50),
        p99_us: micros(found.p99),
        p999_us: micros(found.p999),
        max_us: micros(found.max),
    }
}
