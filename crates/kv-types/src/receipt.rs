//! Every answer carries a receipt: what was promised, what was delivered, and the evidence. *Delivered* is a
//! function of the evidence; there is no way to construct a receipt that claims it.

use crate::{Epoch, GroupId, Guarantee, NodeId};

/// How a strong answer was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReadPath {
    /// A quorum confirmed the leader after the read arrived.
    ReadIndex,
    /// The leader's lease.
    Lease,
    /// A local read of stated age.
    Stale,
    /// A write through the log.
    Log,
}

/// Why less was delivered than usual, or more was needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Degradation {
    /// A fallback stood in for a primary.
    Fallback,
    /// A fallback coordinated.
    FallbackCoordinator,
    /// A primary did not answer in time.
    PrimarySilent,
    /// Replicas disagreed.
    Divergent,
    /// The request went through another node.
    Forwarded,
}

/// The serialization point of a strong answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrongEvidence {
    /// The Raft group.
    pub group: GroupId,
    /// The term.
    pub term: u64,
    /// Log index of the write, or the read index.
    pub index: u64,
    /// The namespace's revision at that point.
    pub namespace_revision: u64,
    /// How it was served.
    pub path: ReadPath,
    /// Entries committed but not yet applied where it was served.
    pub applied_lag: u64,
}

/// One replica's part in an available answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaReply {
    /// The node.
    pub node: NodeId,
    /// It stands in for a primary.
    pub fallback: bool,
    /// It answered (otherwise it was asked and was silent).
    pub answered: bool,
    /// It had fsynced what it acknowledged.
    pub fsynced: bool,
    /// It had a copy, or it is a primary that knows that there is none.
    pub knows: bool,
}

/// Who took part in an available answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AvailableEvidence {
    /// Replicas per key.
    pub n: u8,
    /// Answers that a read needed.
    pub r: u8,
    /// Acknowledgements that a write needed.
    pub w: u8,
    /// Enough primaries answered for a strict quorum.
    pub strict: bool,
    /// As many primaries as a write needs (W) have, by fsync, all that was read or written here: no later
    /// strict read misses it.
    pub settled: bool,
    /// Those that answered and those that did not, in the order in which they were asked; at last the
    /// replicas that were not asked because they seem to be down. One that may answer yet is left out.
    pub replies: Vec<ReplicaReply>,
    /// Hints stored for this write.
    pub hints: u32,
    /// A repair was started.
    pub repair: bool,
    /// Concurrent values after this operation.
    pub siblings: u32,
    /// Upper bound of the answer's age, when one is known.
    pub staleness_bound_ms: Option<u64>,
}

/// By mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// Of a strong namespace.
    Strong(StrongEvidence),
    /// Of an available namespace.
    Available(AvailableEvidence),
}

/// What was promised, what was delivered, and the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// What the namespace promises.
    pub promised: Guarantee,
    /// Epoch of the catalogue used.
    pub epoch: Epoch,
    /// The node that served the request: the leader or the coordinator.
    pub served_by: NodeId,
    /// The attempt that was answered, from 1.
    pub attempts: u32,
    /// The answer of an earlier attempt was returned.
    pub deduplicated: bool,
    /// Sorted, without repetition.
    pub degraded: Vec<Degradation>,
    /// The proof.
    pub evidence: Evidence,
}

impl Receipt {
    /// What the evidence implies.
    pub fn delivered(&self) -> Guarantee {
        match &self.evidence {
            Evidence::Strong(strong) => match strong.path {
                ReadPath::ReadIndex | ReadPath::Lease | ReadPath::Log => Guarantee::Linearizable,
                ReadPath::Stale => Guarantee::Eventual,
            },
            Evidence::Available(available) => {
                let meet = available.strict && available.r + available.w > available.n;
                match self.promised {
                    Guarantee::StrictQuorum | Guarantee::ReadYourWrites if meet => self.promised,
                    Guarantee::MonotonicReads if meet && available.settled => self.promised,
                    _ if available.staleness_bound_ms.is_some() => Guarantee::BoundedStaleness,
                    _ => Guarantee::Eventual,
                }
            }
        }
    }

    /// Adds a reason once.
    pub fn degrade(&mut self, reason: Degradation) {
        if let Err(place) = self.degraded.binary_search(&reason) {
            self.degraded.insert(place, reason);
        }
    }
}
