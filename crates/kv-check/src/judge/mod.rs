//! The judgement of a whole run: for every namespace the properties it promises, each with the checker that
//! judged it and how much it saw, and the quantities that are measured rather than judged.
//!
//! A property that too little was seen of is [`Ruling::Unknown`]: an empty history proves nothing.

mod available;
mod common;
mod quantities;
mod strong;

use common::Case;
pub use common::{DIGESTS, HEALED, SETTLED};
pub use quantities::{Freshness, Quantities, Share};

use crate::history::Malformed;
use crate::service::Window;
use crate::{Event, Operation, Process, linear, operation};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

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

/// What is known about a promise. Of several, the greatest is that of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ruling {
    /// It was kept.
    Valid,
    /// It cannot be decided.
    Unknown,
    /// It was broken.
    Invalid,
}

impl Ruling {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Ruling::Valid => "valid",
            Ruling::Unknown => "unknown",
            Ruling::Invalid => "invalid",
        }
    }
}

impl std::fmt::Display for Ruling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// One promise, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Property {
    /// What was promised, in words: `linearizable`, `no acknowledged write lost`.
    pub name: String,
    /// The namespace.
    pub ns: String,
    /// What judged it: `wgl`, `receipts`, `set-full`, `causal accounting`, ...
    pub checker: String,
    /// How many operations (or writes, reads, replicas) it looked at.
    pub examined: u64,
    /// The judgement.
    pub ruling: Ruling,
    /// What was found, in a line.
    pub detail: String,
    /// Where a promise was broken: the smallest part of the history that shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

/// The smallest failing part of a history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The key.
    pub key: String,
    /// Indices of the invocations, in order.
    pub indices: Vec<u64>,
    /// The part as people read it.
    pub text: String,
    /// When the first of its operations was called, nanoseconds.
    pub from: u64,
    /// When the last of them returned, nanoseconds.
    pub to: u64,
}

/// The judgement of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The worst of the properties.
    pub ruling: Ruling,
    /// The properties, by namespace.
    pub properties: Vec<Property>,
    /// What was measured, by namespace.
    pub quantities: BTreeMap<String, Quantities>,
}

/// Judges a history by a plan.
///
/// Fails if the history is not well formed (see [`operation::pair`]), or if two writes of a key in an
/// available namespace share a value.
pub fn judge(events: &[Event], plan: &Plan) -> Result<Judgement, Malformed> {
    let mut operations: BTreeMap<String, Vec<Operation>> = BTreeMap::new();
    for op in operation::pair(events)? {
        operations.entry(op.ns.clone()).or_default().push(op);
    }
    let last = |name: &str| {
        let event = events.iter().rev().find(|e| e.process == Process::Nemesis && e.f.name() == name);
        event.map(|event| event.time)
    };
    let plan = &Plan {
        healed: plan.healed.or_else(|| last(HEALED)),
        settled: plan.settled.or_else(|| last(SETTLED)),
        ..plan.clone()
    };
    let mut properties = Vec::new();
    let mut all = BTreeMap::new();
    for (name, namespace) in &plan.namespaces {
        let operations = operations.get(name).map(Vec::as_slice).unwrap_or_default();
        let quantities = quantities::measure(operations, namespace, plan);
        let answered = quantities.answered;
        let mut case =
            Case { name, namespace, plan, operations, properties: Vec::new(), quantities, stale: Vec::new() };
        if namespace.strong {
            strong::judge(&mut case);
        } else {
            available::judge(&mut case)?;
        }
        case.convergence(events);
        if answered < plan.enough.max(1) {
            for property in case.properties.iter_mut().filter(|property| property.ruling == Ruling::Valid) {
                property.ruling = Ruling::Unknown;
                property.detail = format!("only {answered} operations were answered: nothing was shown");
            }
        }
        case.quantities.round_up();
        properties.append(&mut case.properties);
        all.insert(name.clone(), case.quantities);
    }
    let ruling = properties.iter().map(|property| property.ruling).max().unwrap_or(Ruling::Unknown);
    Ok(Judgement { ruling, properties, quantities: all })
}
