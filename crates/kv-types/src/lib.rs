//! The vocabulary of Quorate: what every crate means by a key, a namespace, a mode, a guarantee, a request,
//! an outcome and a receipt. Pure values: no runtime, no input or output, no clock. Beside them, the counter
//! by which every crate says how long things take.

mod assign;
pub mod call;
pub mod catalogue;
pub mod causal;
mod failure;
mod ids;
mod key;
mod latency;
pub mod limits;
#[cfg(quorate_mutants)]
pub mod mutants;
mod namespace;
mod receipt;
mod words;

pub use call::{Answer, Call, Hop, Outcome, WriteContext};
pub use failure::{Applied, Failure, Reason};
pub use ids::{
    ClientId, ClusterId, Epoch, GroupId, Incarnation, Mutation, NamespaceId, NodeId, ParseIdError, RequestId,
    RingId, RingPartition, WriteId,
};
pub use key::{Key, NamespaceName, Value};
pub use latency::{Latency, LatencySummary};
pub use namespace::{
    Deletion, Guarantee, Mode, Namespace, NamespaceSpec, Placement, ReplicaCount, Replication,
    deletion_grace, majority,
};
pub use receipt::{
    AvailableEvidence, Degradation, Evidence, ReadPath, Receipt, ReplicaReply, StrongEvidence,
};
pub use words::{counted, noun};

/// Whether a seeded bug is on: the constant `false`, unless the build has them.
#[cfg(not(quorate_mutants))]
#[macro_export]
macro_rules! mutant {
    ($mutant:ident) => {
        false
    };
}

/// Whether a seeded bug is on.
#[cfg(quorate_mutants)]
#[macro_export]
macro_rules! mutant {
    ($mutant:ident) => {
        $crate::mutants::on($crate::mutants::Mutant::$mutant)
    };
}
