//! What a run leaves in memory, for its verdict: the history, the faults, what the nodes said, and the
//! moments.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kv_check::Event;
use kv_types::NodeId;
use kv_workload::converge::Convergence;
use kv_workload::{Recorder, Sample};

use crate::nemesis::{Done, State};
use crate::observe::Seen;

/// Everything that a run leaves in memory.
#[derive(Debug)]
pub struct Recorded {
    /// The history.
    pub history: Vec<Event>,
    /// One row per operation, with its intended beginning.
    pub samples: Vec<Sample>,
    /// The faults.
    pub faults: Vec<Done>,
    /// How many were planned.
    pub planned: usize,
    /// States of network and nodes.
    pub states: Vec<State>,
    /// What the nodes said of themselves.
    pub seen: Seen,
    /// The moments.
    pub marks: Marks,
    /// What the store did that it may not do, beside what the history shows.
    pub broken: Vec<String>,
    /// Keys that the final reads did not get.
    pub unread: Vec<String>,
    /// Operations that were not begun because too many were open.
    pub shed: u64,
    /// The wall clock when the history's stood at 0, milliseconds since 1970.
    pub begun_wall_ms: u64,
    /// The nodes.
    pub nodes: Vec<NodeId>,
    /// The logs of the nodes.
    pub logs: BTreeMap<NodeId, PathBuf>,
}

/// The moments of a run, nanoseconds since the history's beginning.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Marks {
    /// The faults begin.
    pub faults: u64,
    /// Everything is healed.
    pub healed: u64,
    /// Replicas were equal, by available namespace; none if that never came.
    pub converged: BTreeMap<String, Option<u64>>,
    /// Why replicas were not equal when they were looked at last, by available namespace.
    #[serde(default)]
    pub unequal: BTreeMap<String, String>,
    /// Where hints left ring partitions that differ, after a run in which a node died: when the reading of
    /// every key began, and the keys of each of these ring partitions; by available namespace.
    #[serde(default)]
    pub reads: BTreeMap<String, (u64, Vec<Vec<String>>)>,
    /// Available namespaces are used again.
    pub resumed: u64,
    /// The load has ended.
    #[serde(default)]
    pub stopped: u64,
    /// Replicas were equal after the load had ended and before the final reads, by namespace; of a strong
    /// one, as each node applied it.
    #[serde(default)]
    pub equal_again: BTreeMap<String, u64>,
    /// Why they were not, by namespace.
    #[serde(default)]
    pub unequal_in_the_end: BTreeMap<String, String>,
    /// The final reads begin.
    pub settled: u64,
    /// The end.
    pub ended: u64,
}

impl Marks {
    /// Takes what was found while available namespaces rested after healing.
    pub(crate) fn rested(&mut self, recorder: &Recorder, found: BTreeMap<String, Convergence>) {
        for (ns, convergence) in found {
            self.converged.insert(ns.clone(), convergence.at.map(|at| recorder.at(at)));
            if let Some(needed) = convergence.reads {
                self.reads.insert(ns.clone(), (recorder.at(needed.at), needed.partitions));
            }
            self.unequal.extend(convergence.unequal.map(|why| (ns, why)));
        }
    }

    /// Takes what was found after the load.
    pub(crate) fn ended_with(&mut self, recorder: &Recorder, found: BTreeMap<String, Convergence>) {
        for (ns, convergence) in found {
            self.equal_again.extend(convergence.at.map(|at| (ns.clone(), recorder.at(at))));
            self.unequal_in_the_end.extend(convergence.unequal.map(|why| (ns, why)));
        }
    }
}
