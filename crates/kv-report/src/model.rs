//! What a report says, as plain data: the program that ran something fills it, [`super::html`] draws it, and
//! `report.json` keeps it, so that a report can be drawn again without the run.
//!
//! Every moment is in nanoseconds since the run's beginning, on the clock of its history. Empty lists are
//! allowed everywhere: the page then says that nothing is there to show.

use std::collections::BTreeMap;

use kv_check::judge::{Property, Quantities, Ruling};
use kv_check::operation::MISMATCH;
use kv_check::{Operation, Outcome};
use serde::{Deserialize, Serialize};

use kv_workload::Sample;

/// Everything a report says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The headline, such as "One network partition, two sides of CAP".
    pub title: String,
    /// What was done, in a few sentences for a stranger.
    pub lead: String,
    /// The name of the scenario.
    pub scenario: String,
    /// The seed of the run.
    pub seed: u64,
    /// The commit that was tested; empty if that is not known.
    pub commit: String,
    /// Versions of programs and tools, as (what, version).
    pub versions: Vec<(String, String)>,
    /// The one command that runs the same again.
    pub replay: String,
    /// The verdict on the run.
    pub ruling: Ruling,
    /// Why the verdict is not *valid*: broken promises, missing coverage. Shown below it, one line each.
    pub reasons: Vec<String>,
    /// What the run claims.
    pub claims: Vec<String>,
    /// What it does not claim.
    pub non_claims: Vec<String>,
    /// What had to happen for the run to count.
    pub coverage: Vec<Coverage>,
    /// What was judged.
    pub properties: Vec<Property>,
    /// Figures, by namespace.
    pub quantities: BTreeMap<String, Quantities>,
    /// Names of the nodes, in the order of the rows.
    pub nodes: Vec<String>,
    /// The namespaces, in the order of the rows.
    pub namespaces: Vec<Namespace>,
    /// The first moment drawn.
    pub from: u64,
    /// The last moment drawn: usually where the final reads begin.
    pub to: u64,
    /// Every operation of a client.
    pub points: Vec<Point>,
    /// What each namespace did on each side of the faults that made sides. [`Report::observe`] counts it;
    /// every sentence, table and receipt about a side prints these figures.
    pub sides: Vec<Side>,
    /// Reads that were older than they could have been.
    pub stale: Vec<Stale>,
    /// Reads that returned several values.
    pub siblings: Vec<Siblings>,
    /// Who saw whom, span by span, in order, without gaps.
    pub topology: Vec<Topology>,
    /// Who led the strong namespaces, in order.
    pub leaders: Vec<Leader>,
    /// What was broken, and when.
    pub faults: Vec<Fault>,
    /// Moments that matter: healed, converged, serving again.
    pub marks: Vec<Mark>,
    /// Further figures over time, such as keys whose replicas differ, or hints that wait.
    pub series: Vec<Series>,
    /// Further consistency settings that had the same faults, of other runs; those of this run come from its
    /// namespaces.
    pub settings: Vec<Setting>,
    /// The smallest failing parts, when something failed.
    pub failures: Vec<Failure>,
    /// What the alarms did when they had to ring.
    pub controls: Vec<Control>,
    /// Remarks at the end, such as where the definitions stand.
    pub notes: Vec<String>,
    /// Commands that do the same by hand, one after the other: each runs as it stands.
    pub by_hand: Vec<String>,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            title: String::new(),
            lead: String::new(),
            scenario: String::new(),
            seed: 0,
            commit: String::new(),
            versions: Vec::new(),
            replay: String::new(),
            ruling: Ruling::Unknown,
            reasons: Vec::new(),
            claims: Vec::new(),
            non_claims: Vec::new(),
            coverage: Vec::new(),
            properties: Vec::new(),
            quantities: BTreeMap::new(),
            nodes: Vec::new(),
            namespaces: Vec::new(),
            from: 0,
            to: 0,
            points: Vec::new(),
            sides: Vec::new(),
            stale: Vec::new(),
            siblings: Vec::new(),
            topology: Vec::new(),
            leaders: Vec::new(),
            faults: Vec::new(),
            marks: Vec::new(),
            series: Vec::new(),
            settings: Vec::new(),
            failures: Vec::new(),
            controls: Vec::new(),
            notes: Vec::new(),
            by_hand: Vec::new(),
        }
    }
}

/// Something that had to happen, and whether it did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// What: "directed links cut", "seconds without quorum in the minority".
    pub name: String,
    /// The least that counts, in words with its unit.
    pub wanted: String,
    /// What was seen, and how it was proven.
    pub got: String,
    /// Whether that is enough. One that is not makes the run *unknown*.
    pub enough: bool,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Strong, else available.
    pub strong: bool,
    /// Its setting in words: "one Raft group, 5 voters" or "N=3 R=2 W=2, sloppy".
    pub setting: String,
}

/// What became of an operation. The three outcomes of every mutation; a read without an answer counts as
/// refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The store answered: success, or the mismatch of a cas.
    Answered,
    /// A mutation that was perhaps applied.
    Unknown,
    /// Certainly not applied, or a read without an answer.
    Refused,
}

impl Answer {
    fn of(outcome: Outcome, err: Option<&str>) -> Self {
        match outcome {
            Outcome::Ok => Self::Answered,
            Outcome::Fail if err == Some(MISMATCH) => Self::Answered,
            Outcome::Fail => Self::Refused,
            Outcome::Info => Self::Unknown,
        }
    }
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The namespace.
    pub ns: String,
    /// The node that was asked.
    pub node: String,
    /// Whether it was to change something.
    pub mutation: bool,
    /// When it was to begin.
    pub at: u64,
    /// From there to its end.
    pub latency: u64,
    /// What became of it.
    pub answer: Answer,
    /// Why it was not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub err: Option<String>,
}

impl From<&Sample> for Point {
    fn from(sample: &Sample) -> Self {
        Self {
            ns: sample.ns.clone(),
            node: sample.node.to_string(),
            mutation: sample.mutation,
            at: sample.intended,
            latency: sample.latency,
            answer: Answer::of(sample.outcome, sample.err.as_deref()),
            err: sample.err.clone(),
        }
    }
}

impl From<&Operation> for Point {
    /// For histories without samples. An operation that never came back has taken no time that anybody knows.
    fn from(op: &Operation) -> Self {
        Self {
            ns: op.ns.clone(),
            node: op.node.clone(),
            mutation: op.f.mutates(),
            at: op.call,
            latency: op.ret.unwrap_or(op.call).saturating_sub(op.call),
            answer: Answer::of(op.outcome, op.err.as_deref()),
            err: op.err.clone(),
        }
    }
}

/// Answered, unknown and refused operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// The store answered.
    pub answered: u64,
    /// Mutations that were perhaps applied.
    pub unknown: u64,
    /// Certainly not applied, and reads without an answer.
    pub refused: u64,
}

impl Tally {
    pub(super) fn add(&mut self, answer: Answer) {
        match answer {
            Answer::Answered => self.answered += 1,
            Answer::Unknown => self.unknown += 1,
            Answer::Refused => self.refused += 1,
        }
    }

    pub(super) fn join(&mut self, other: Self) {
        self.answered += other.answered;
        self.unknown += other.unknown;
        self.refused += other.refused;
    }

    /// All of them.
    pub fn all(self) -> u64 {
        self.answered + self.unknown + self.refused
    }

    /// Answered of all; nothing of nothing is nothing.
    pub fn share(self) -> Option<f64> {
        (self.all() > 0).then(|| self.answered as f64 / self.all() as f64)
    }

    /// What became of most.
    pub(super) fn mostly(self) -> Answer {
        let Self { answered, unknown, refused } = self;
        match answered.max(unknown).max(refused) {
            most if most == answered => Answer::Answered,
            most if most == refused => Answer::Refused,
            _ => Answer::Unknown,
        }
    }
}

/// What one namespace did on one side of a fault, of the operations that began while it was certainly in
/// force. Times are whole milliseconds, so that they read the same in whatever unit they are printed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Side {
    /// The fault: its place among the faults of the report.
    pub fault: usize,
    /// The namespace.
    pub ns: String,
    /// The side.
    pub side: String,
    /// What became of the operations.
    pub tally: Tally,
    /// Mutations that were answered.
    pub mutations: u64,
    /// The longest time within the fault without an answered mutation; all of it, if there was none.
    pub longest_gap_ms: u64,
    /// From the beginning of the fault to the first write that was acknowledged.
    pub first_write_ms: Option<u64>,
}

/// A read that did not show what had been acknowledged before it began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stale {
    /// The namespace.
    pub ns: String,
    /// The node that answered.
    pub node: String,
    /// When it was called.
    pub at: u64,
    /// How long before that the first write that it missed had been acknowledged.
    pub lag: u64,
    /// How many acknowledged mutations it missed.
    pub behind: u64,
}

/// A read that showed several concurrent values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Siblings {
    /// The namespace.
    pub ns: String,
    /// When it was called.
    pub at: u64,
    /// How many values it showed.
    pub count: u64,
}

/// Who sees whom, for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// The first moment.
    pub from: u64,
    /// The first moment after it.
    pub to: u64,
    /// Directed links, as (from, to), that carry nothing.
    pub cut: Vec<(String, String)>,
    /// Nodes that are down or stand still.
    pub down: Vec<String>,
}

/// Who leads a strong namespace, for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The namespace; empty: all strong ones.
    pub ns: String,
    /// The node.
    pub node: String,
    /// The first moment.
    pub from: u64,
    /// The first moment after it.
    pub to: u64,
}

/// Something that was broken, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The first moment at which it was certainly in force.
    pub from: u64,
    /// The last moment at which it was certainly in force: what is counted, is counted up to here. 0: `to`.
    #[serde(default)]
    pub until: u64,
    /// The first moment at which it was certainly no more.
    pub to: u64,
    /// Its kind; faults of a kind share a strip: "network partition", "kill", "pause", "clock".
    pub kind: String,
    /// What exactly: "n1,n2 | n3,n4,n5".
    pub what: String,
    /// Nodes by side, if the fault makes sides: node to "minority" or "majority" (or other words).
    pub sides: BTreeMap<String, String>,
}

/// A moment that matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When.
    pub at: u64,
    /// What, in few words: "healed", "cart: replicas equal".
    pub what: String,
    /// The namespace it is about; empty: the run.
    pub ns: String,
}

/// A figure over time, drawn as steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Its name: "keys whose replicas differ".
    pub name: String,
    /// The namespace it is about; empty: the run.
    pub ns: String,
    /// What it means, in a sentence.
    pub words: String,
    /// Its values, by moment, in order.
    pub values: Vec<(u64, f64)>,
}

/// A consistency setting, and what it cost under the faults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name, short: "strong", "R=2 W=2 sloppy".
    pub name: String,
    /// Strong, else available.
    pub strong: bool,
    /// Answered operations of all, under faults, between 0 and 1, by side: (side, share).
    pub availability: Vec<(String, f64)>,
    /// 99 of 100 answers were at most this late, in nanoseconds.
    pub p99: Option<u64>,
    /// Stale reads of all, between 0 and 1.
    pub stale: Option<f64>,
    /// 99 of 100 stale reads were at most so far behind, in nanoseconds.
    pub lag_p99: Option<u64>,
    /// Keys that ended with concurrent values.
    pub conflicts: Option<u64>,
    /// Acknowledged writes that are gone.
    pub lost: Option<u64>,
    /// From the healing until it served again, in nanoseconds; of an available namespace that rested
    /// meanwhile, from when it was used again.
    pub recovery: Option<u64>,
    /// From the healing, or from the read of every key if that was needed, until all replicas were equal, in
    /// nanoseconds.
    pub convergence: Option<u64>,
}

/// The smallest part of a history that breaks a property.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The property.
    pub property: String,
    /// The namespace.
    pub ns: String,
    /// The key.
    pub key: String,
    /// The operations, in the order of their calls.
    pub operations: Vec<Step>,
    /// What the checker says: the longest order it found, and what could not follow.
    pub text: String,
    /// What the nodes logged meanwhile.
    pub logs: Vec<LogLine>,
}

/// One operation of a failing part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Index of its invocation in the history.
    pub index: u64,
    /// Who did it.
    pub process: u64,
    /// The node that was asked.
    pub node: String,
    /// What it did, short: "write 7", "read -> 3".
    pub what: String,
    /// When it was called.
    pub from: u64,
    /// When it came back; none if it never did.
    pub to: Option<u64>,
    /// What became of it.
    pub answer: Answer,
    /// Whether it belongs to the smallest part that fails; the others happened meanwhile.
    pub part: bool,
    /// Whether it is the one that no order explains.
    pub culprit: bool,
}

/// A line that a node logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// The node.
    pub node: String,
    /// When.
    pub at: u64,
    /// The line.
    pub text: String,
}

/// A test of the alarms: something known to be wrong that had to be found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// Its name: "known-bad/stale-read" or "ack_before_fsync".
    pub name: String,
    /// "known-bad history" or "seeded bug".
    pub kind: String,
    /// Whether it was found.
    pub caught: bool,
    /// By which property, and how: "linearizable".
    pub by: String,
    /// Seeds that it took.
    pub seeds: Option<u64>,
    /// Seconds that it took.
    pub seconds: Option<f64>,
}
