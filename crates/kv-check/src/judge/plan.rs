//! What is to be judged: the namespaces with what their clients did, the faults, and the bounds of the
//! searches.

use crate::linear;
use crate::service::Window;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The `f` of an event of the nemesis that carries the digest of every replica of a namespace, by node:
///
/// ```json
/// {"index":9,"time":5,"process":"nemesis","type":"info","f":"digests","ns":"bank",
///  "value":{"n1":"aa","n2":"aa","n3":"aa"}}
/// ```
///
/// Digests are any JSON values, compared as they are; `null` is that of a replica that did not tell. With a
/// `key` it speaks of the replicas of a part of the namespace, such as a ring partition, and each part is
/// judged by itself. The last event of a part counts as the end, so it is recorded once no mutation is under
/// way any more; see [`Plan::digests`].
pub const DIGESTS: &str = "digests";
/// The `f` of an event of the nemesis: the last fault has been taken back; see [`Plan::healed`].
pub const HEALED: &str = "healed";
/// The `f` of an event of the nemesis: the store has settled; see [`Plan::settled`].
pub const SETTLED: &str = "settled";

/// What the clients of a namespace did, and so what can be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Read, write, cas and delete of single values.
    Register,
    /// `add` an element; `read` the whole set as a list.
    Set,
    /// `add` an integer; `read` the sum.
    Counter,
    /// `append` an element; `read` the list in its order.
    Append,
    /// Reads of siblings, and writes and deletes that say what they cover. For available namespaces.
    Siblings,
}

/// What a configuration makes likely, so that its absence or presence is no surprise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Expectation {
    /// Acknowledged writes may be lost: they are counted, and not held against the store. For faults that may
    /// take the disks of all replicas that acknowledged a write; see [`crate::available`].
    pub lost: bool,
    /// Available namespaces. `false`: no read may be stale; `true`: at least one must be, which proves the
    /// meter.
    pub stale: Option<bool>,
    /// Available namespaces: no read may miss what one had shown that was over before it was called.
    pub monotonic: bool,
}

/// One namespace of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespacePlan {
    /// Whether it promises linearizability; else it is available.
    pub strong: bool,
    /// What its clients did.
    pub workload: Workload,
    /// What is to be expected.
    #[serde(default)]
    pub expect: Expectation,
}

/// What is to be judged, by what.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The namespaces; what the history says of others is not judged.
    pub namespaces: BTreeMap<String, NamespacePlan>,
    /// Spans for which availability is measured, with the sides of the nodes.
    pub windows: Vec<Window>,
    /// When the last fault was taken back, nanoseconds: recovery and convergence are counted from here.
    /// Without it, the last event [`HEALED`].
    pub healed: Option<u64>,
    /// When the store had settled, nanoseconds: successful reads called since then are the final reads.
    /// Without it, the last event [`SETTLED`].
    pub settled: Option<u64>,
    /// Namespaces whose replicas have to be shown to be equal in the end, by events [`DIGESTS`] that were
    /// recorded once the faults were over and the mutations done: without them nothing is known. Of others
    /// the digests are judged where there are any.
    pub digests: BTreeSet<String>,
    /// Whether strong namespaces are held to refuse on the sides of [`Plan::windows`] that have no majority.
    pub minority: Option<Minority>,
    /// Whether every answer is owed a receipt: where one lacks it, what receipts show is unknown. Else they
    /// are judged where there are any.
    pub receipts: bool,
    /// Limits of the searches.
    pub limits: linear::Options,
    /// Fewer answered operations of a namespace than this prove nothing; 0 counts as 1.
    pub enough: u64,
}

/// Which sides of a network partition cannot have a quorum, and how long they may take to notice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Minority {
    /// Names of sides whose nodes reach no majority of the voters. It is by name, because several such sides
    /// may share one: when every node is alone, all of them are on a side that counts as many nodes as there
    /// are.
    pub sides: BTreeSet<String>,
    /// Nanoseconds: an old leader notices within an election timeout or two. As much is left out at the end
    /// of a window, because a network heals before the harness has seen that it did.
    pub grace_ns: u64,
}
