//! Whether enough happened for a verdict to mean anything. Pure: figures from what was recorded, compared
//! with what the scenario demands. Below its minimum a run is *unknown*, whatever the checkers say.

use std::collections::BTreeMap;

use kv_check::{Operation, Outcome};
use kv_report::Coverage;
use kv_types::NodeId;
use serde::{Deserialize, Serialize};

use crate::nemesis::{Done, State};
use crate::plan::with_quorum;
use crate::scenario::Expect;

/// What happened, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Covered {
    /// Faults that were planned.
    pub faults_planned: u64,
    /// Faults whose proof came back.
    pub faults_proven: u64,
    /// Seconds during which some node that ran saw no majority.
    pub minority_s: f64,
    /// Seconds during which no node saw a majority.
    pub no_quorum_s: f64,
    /// Seconds without a majority in sight, by node.
    pub without_quorum_s: BTreeMap<String, f64>,
    /// Elections after the first.
    pub elections: u64,
    /// Mutations of unknown outcome.
    pub unknown: u64,
    /// Keys with mutations that overlap in time.
    pub concurrent_keys: u64,
    /// Answered operations of each namespace.
    pub answered: BTreeMap<String, u64>,
}

impl Covered {
    /// Counts. `end` is the moment up to which the last state held.
    pub fn count(
        nodes: &[NodeId],
        states: &[State],
        end: u64,
        done: &[Done],
        planned: usize,
        elections: u64,
        operations: &[Operation],
    ) -> Self {
        let mut covered = Self {
            faults_planned: planned as u64,
            faults_proven: done.iter().filter(|done| done.proven).count() as u64,
            elections,
            unknown: operations.iter().filter(|op| op.outcome == Outcome::Info).count() as u64,
            concurrent_keys: concurrent_keys(operations),
            ..Self::default()
        };
        for (at, state) in states.iter().enumerate() {
            let until = states.get(at + 1).map_or(end, |next| next.at);
            let seconds = until.saturating_sub(state.at) as f64 / 1e9;
            let quorate = with_quorum(nodes, &state.links, &state.down);
            let runs = |node: &&NodeId| !state.down.contains(node);
            let minority: Vec<_> = nodes.iter().filter(runs).filter(|node| !quorate.contains(node)).collect();
            covered.minority_s += if minority.is_empty() { 0.0 } else { seconds };
            covered.no_quorum_s += if quorate.is_empty() { seconds } else { 0.0 };
            for node in minority {
                *covered.without_quorum_s.entry(node.to_string()).or_default() += seconds;
            }
        }
        for op in operations.iter().filter(|op| op.answered()) {
            *covered.answered.entry(op.ns.clone()).or_default() += 1;
        }
        covered
    }

    /// Compares with what the scenario demands, row by row.
    pub fn rows(&self, expect: &Expect, namespaces: &[&str]) -> Vec<Coverage> {
        let row = |name: &str, wanted: f64, got: f64, unit: &str| Coverage {
            name: name.to_owned(),
            wanted: format!("{}{unit}", short(wanted)),
            got: format!("{}{unit}", short(got)),
            enough: got >= wanted,
        };
        let faults = expect.faults.unwrap_or(self.faults_planned);
        let mut rows = vec![Coverage {
            name: "faults proven in force".into(),
            wanted: faults.to_string(),
            got: format!("{} of {}", self.faults_proven, self.faults_planned),
            enough: self.faults_proven >= faults,
        }];
        rows.push(row("time with a node that sees no majority", expect.minority_s, self.minority_s, " s"));
        rows.push(row("time without any majority", expect.no_quorum_s, self.no_quorum_s, " s"));
        rows.push(row("elections after the first", expect.elections as f64, self.elections as f64, ""));
        rows.push(row("operations of unknown outcome", expect.unknown as f64, self.unknown as f64, ""));
        let (wanted, got) = (expect.concurrent_keys as f64, self.concurrent_keys as f64);
        rows.push(row("keys with concurrent mutations", wanted, got, ""));
        for ns in namespaces {
            let got = self.answered.get(*ns).copied().unwrap_or(0);
            rows.push(row(&format!("{ns}: operations answered"), expect.answered as f64, got as f64, ""));
        }
        rows
    }
}

fn short(number: f64) -> String {
    if number.fract() == 0.0 { format!("{number:.0}") } else { format!("{number:.1}") }
}

/// Keys with two mutations of which each began before the other ended.
fn concurrent_keys(operations: &[Operation]) -> u64 {
    let mut keys: BTreeMap<(&str, &str), Vec<(u64, u64)>> = BTreeMap::new();
    let mutations =
        operations.iter().filter(|op| op.f != kv_check::Function::Read && op.outcome != Outcome::Fail);
    for op in mutations {
        let end = op.ret.filter(|_| op.outcome == Outcome::Ok).unwrap_or(u64::MAX);
        keys.entry((&op.ns, &op.key)).or_default().push((op.call, end));
    }
    let concurrent = |spans: &mut Vec<(u64, u64)>| {
        spans.sort_unstable();
        let mut latest = 0;
        spans.iter().any(|(from, to)| {
            let overlaps = *from < latest;
            latest = latest.max(*to);
            overlaps
        })
    };
    keys.into_values().filter_map(|mut spans| concurrent(&mut spans).then_some(())).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_check::{Event, EventType, Json, Process, operation};
    use kv_lab::Faults;
    use std::collections::BTreeSet;

    const SECOND: u64 = 1_000_000_000;

    fn state(at_s: u64, links: Faults, down: &[u64]) -> State {
        let down: BTreeSet<NodeId> = down.iter().copied().map(NodeId).collect();
        State { at: at_s * SECOND, links, down }
    }

    fn operations(spans: &[(u64, u64, &str)]) -> Vec<Operation> {
        let mut events = Vec::new();
        for (process, (call, ret, key)) in (0..).zip(spans) {
            for (time, kind) in [(*call, EventType::Invoke), (*ret, EventType::Ok)] {
                let mut event =
                    Event::new(time, Process::Client(process), kind, "write".into(), Json::from(process));
                (event.ns, event.key) = (Some("bank".into()), Some((*key).to_owned()));
                events.push(event);
            }
        }
        operation::pair(&kv_check::history::arrange(events)).unwrap()
    }

    #[test]
    fn time_without_a_majority_is_counted_by_state() {
        let nodes: Vec<NodeId> = (1..=5).map(NodeId).collect();
        let states = [
            State::default(),
            state(2, Faults::isolate(NodeId(1), &nodes), &[]),
            state(5, Faults::none(), &[1, 2, 3]),
            state(6, Faults::none(), &[]),
        ];
        let covered = Covered::count(&nodes, &states, 10 * SECOND, &[], 2, 3, &[]);
        assert_eq!((covered.minority_s, covered.no_quorum_s), (4.0, 1.0));
        assert_eq!(covered.without_quorum_s["n1"], 3.0, "a dead node misses nothing");
        assert_eq!(covered.without_quorum_s["n4"], 1.0);
        let expect = Expect { minority_s: 4.5, elections: 3, concurrent_keys: 0, ..Expect::default() };
        let rows = covered.rows(&expect, &["bank"]);
        let short: Vec<_> = rows.iter().filter(|row| !row.enough).map(|row| row.name.as_str()).collect();
        let wanted =
            ["faults proven in force", "time with a node that sees no majority", "bank: operations answered"];
        assert_eq!(short, wanted);
    }

    #[test]
    fn keys_count_once_and_only_when_mutations_overlap() {
        let ops =
            operations(&[(0, 10, "a"), (10, 20, "a"), (0, 10, "b"), (5, 8, "b"), (6, 7, "b"), (0, 9, "c")]);
        assert_eq!(concurrent_keys(&ops), 1);
        let nested = operations(&[(0, 100, "a"), (1, 2, "a")]);
        assert_eq!(concurrent_keys(&nested), 1);
    }
}
