//! From a history to a report: what every caller would have to work out for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use kv_check::history::Malformed;
use kv_check::judge::{Property, Ruling};
use kv_check::{Event, Function, Json, Operation, available};
use kv_types::counted;

use crate::facts;
use crate::model::{
    Answer, Failure, Leader, LogLine, Namespace, Point, Report, Siblings, Stale, Step, Topology,
};

/// Operations of a failing part that are shown; what happened meanwhile is left out first.
const MOST_STEPS: usize = 60;
/// Values are cut at this length.
const MOST_CHARS: usize = 48;

impl Report {
    /// Takes from the history which reads were stale and which showed siblings, of the namespaces that the
    /// report names, and what each side of the faults was answered, unless the caller counted it. Of
    /// samples, which know when an operation was to begin, the caller makes the [`Report::points`]; if
    /// there are none yet, they come from the history too.
    pub fn observe(&mut self, operations: &[Operation], settled: u64) -> Result<(), Malformed> {
        if self.points.is_empty() {
            self.points = operations.iter().map(Point::from).collect();
        }
        if self.sides.is_empty() {
            self.sides = facts::sides(operations, &self.faults);
        }
        for ns in &self.namespaces {
            let mine: Vec<_> = operations.iter().filter(|op| op.ns == ns.name).cloned().collect();
            if ns.strong {
                self.stale.extend(stale_by_revision(&mine));
                continue;
            }
            let account = available::account(&mine, settled)?;
            self.stale.extend(account.stale.iter().map(|read| Stale {
                ns: ns.name.clone(),
                node: read.node.clone(),
                at: read.call,
                lag: read.lag_ns,
                behind: read.behind as u64,
            }));
            let several = mine.iter().filter(|op| op.f == Function::Read && op.ok());
            self.siblings.extend(several.filter_map(|op| {
                let count = op.output.as_array().map_or(0, Vec::len) as u64;
                (count > 1).then(|| Siblings { ns: ns.name.clone(), at: op.call, count })
            }));
        }
        Ok(())
    }

    /// Takes from the receipts of strong answers who led when: the node that served a term, from its first
    /// answer to the first of the next term. A leader that no answer named is not drawn.
    pub fn observe_leaders(&mut self, events: &[Event]) {
        let strong = self.namespaces.iter().filter(|ns| ns.strong);
        for ns in strong.map(|ns| ns.name.clone()).collect::<Vec<_>>() {
            let mut terms: BTreeMap<u64, (u64, u64, String)> = BTreeMap::new();
            for event in events.iter().filter(|event| event.ns.as_ref() == Some(&ns)) {
                let Some(receipt) = &event.receipt else { continue };
                let term = receipt.pointer("/strong/term").and_then(Json::as_u64);
                let (Some(term), Some(by)) = (term, receipt.get("by").and_then(Json::as_str)) else {
                    continue;
                };
                let span = terms.entry(term).or_insert_with(|| (event.time, event.time, by.to_owned()));
                span.1 = event.time;
            }
            let last = terms.keys().next_back().copied();
            let first = terms.keys().next().copied();
            for (term, (from, to, node)) in terms {
                let from = if Some(term) == first { self.from } else { from };
                let to = if Some(term) == last { to.max(self.to) } else { to };
                self.leaders.push(Leader { ns: ns.clone(), node, from, to });
            }
        }
    }

    /// Draws the failing parts of all properties that were broken and say where.
    pub fn show_failures(&mut self, operations: &[Operation]) {
        let broken = self.properties.iter().filter(|property| property.ruling == Ruling::Invalid);
        self.failures = broken.filter_map(|property| Failure::of(property, operations)).collect();
    }
}

/// Reads of a strong namespace that show a revision older than one acknowledged before they were called.
/// Revisions are the order of a strong namespace, so nothing has to be searched for.
fn stale_by_revision(operations: &[Operation]) -> Vec<Stale> {
    let mut keys: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    for op in operations.iter().filter(|op| op.f.mutates() && op.ok()) {
        if let (Some(ret), Some(revision)) = (op.ret, op.revision) {
            keys.entry(&op.key).or_default().push((ret, revision));
        }
    }
    for acknowledged in keys.values_mut() {
        acknowledged.sort_unstable();
    }
    let stale = |read: &Operation| {
        let acknowledged = keys.get(read.key.as_str())?;
        // An absent key has no revision: a delete has to be looked at by the checkers.
        let seen = read.revision?;
        let missed = acknowledged.iter().take_while(|(ret, _)| *ret < read.call);
        let missed: Vec<_> = missed.filter(|(_, revision)| *revision > seen).collect();
        let (first, _) = missed.first()?;
        let (at, lag, behind) = (read.call, read.call - first, missed.len() as u64);
        Some(Stale { ns: read.ns.clone(), node: read.node.clone(), at, lag, behind })
    };
    operations.iter().filter(|op| op.f == Function::Read && op.ok()).filter_map(stale).collect()
}

impl Failure {
    /// The failing part that a property names, with what else happened to its key meanwhile; none if it names
    /// none.
    pub fn of(property: &Property, operations: &[Operation]) -> Option<Self> {
        let evidence = property.evidence.as_ref()?;
        let named: BTreeSet<u64> = evidence.indices.iter().copied().collect();
        let culprit = evidence.indices.last().copied();
        let overlaps = |op: &Operation| {
            op.call <= evidence.to && op.ret.is_none_or(|ret| ret >= evidence.from) && op.key == evidence.key
        };
        let mine = || operations.iter().filter(|op| op.ns == property.ns);
        let mut shown: Vec<&Operation> = mine().filter(|op| named.contains(&op.index)).collect();
        let room = MOST_STEPS.saturating_sub(shown.len());
        shown.extend(mine().filter(|op| !named.contains(&op.index) && overlaps(op)).take(room));
        shown.sort_by_key(|op| (op.call, op.index));
        let step = |op: &Operation| Step {
            index: op.index,
            process: op.process,
            node: op.node.clone(),
            what: words(op),
            from: op.call,
            to: op.ret.filter(|_| op.outcome != kv_check::Outcome::Info),
            answer: Point::from(op).answer,
            part: named.contains(&op.index),
            culprit: Some(op.index) == culprit,
        };
        Some(Self {
            property: property.name.clone(),
            ns: property.ns.clone(),
            key: evidence.key.clone(),
            operations: shown.into_iter().map(step).collect(),
            text: evidence.text.clone(),
            logs: Vec::new(),
        })
    }

    /// The span of the failing part.
    pub fn span(&self) -> (u64, u64) {
        let part = || self.operations.iter().filter(|step| step.part);
        let from = part().map(|step| step.from).min().unwrap_or(0);
        let to = part().map(|step| step.to.unwrap_or(step.from)).max().unwrap_or(from);
        (from, to)
    }

    /// Adds what a node logged around the failing part: lines that begin with a date and time in UTC, as
    /// `kvd` writes them. `begun` is when the history's clock stood at 0. At most `most` lines, those nearest
    /// to the end of the part.
    pub fn add_log(&mut self, node: &str, log: &str, begun: SystemTime, around: Duration, most: usize) {
        let (from, to) = self.span();
        let around = around.as_nanos() as u64;
        let (from, to) = (from.saturating_sub(around), to.saturating_add(around));
        let line = |text: &str| {
            let (stamp, rest) = text.split_once(' ')?;
            let moment = humantime::parse_rfc3339(stamp).ok()?;
            let at = moment.duration_since(begun).ok()?.as_nanos() as u64;
            let text = rest.trim().to_owned();
            (from..=to).contains(&at).then(|| LogLine { node: node.to_owned(), at, text })
        };
        let lines: Vec<_> = log.lines().filter_map(line).collect();
        let skipped = lines.len().saturating_sub(most);
        self.logs.extend(lines.into_iter().skip(skipped));
        self.logs.sort_by_key(|line| line.at);
    }
}

/// What an operation did, short.
fn words(op: &Operation) -> String {
    let name = op.f.name();
    let input = || short(&op.input.to_string());
    let mut words = match &op.f {
        Function::Read => name.to_owned(),
        Function::Cas => match &op.expected {
            Some(kv_check::operation::Expected::Value(old)) => {
                format!("{name} {} \u{2192} {}", short(&old.to_string()), input())
            }
            Some(kv_check::operation::Expected::Revision(revision)) => {
                format!("{name} revision {revision} \u{2192} {}", input())
            }
            None => format!("{name} {}", input()),
        },
        Function::Delete => name.to_owned(),
        _ => format!("{name} {}", input()),
    };
    let answer = Point::from(op).answer;
    if answer == Answer::Answered && !op.output.is_null() {
        words += &format!(" = {}", short(&op.output.to_string()));
    } else if answer == Answer::Answered && op.f == Function::Read {
        words += " = absent";
    }
    if let Some(revision) = op.revision {
        words += &format!(" @{revision}");
    }
    if let Some(err) = &op.err {
        words += &format!(" ({err})");
    }
    words
}

fn short(text: &str) -> String {
    if text.chars().count() <= MOST_CHARS {
        return text.to_owned();
    }
    text.chars().take(MOST_CHARS - 1).chain(['\u{2026}']).collect()
}

impl Topology {
    /// Whether one node can reach another.
    pub fn sees(&self, from: &str, to: &str) -> bool {
        let up = |node: &str| !self.down.iter().any(|down| down == node);
        up(from) && up(to) && !self.cut.iter().any(|(a, b)| a == from && b == to)
    }

    /// All directed links between nodes of different groups.
    pub fn between(groups: &[Vec<String>]) -> Vec<(String, String)> {
        let mut cut = Vec::new();
        for (at, group) in groups.iter().enumerate() {
            for (_, other) in groups.iter().enumerate().filter(|(other, _)| *other != at) {
                cut.extend(group.iter().flat_map(|a| other.iter().map(|b| (a.clone(), b.clone()))));
            }
        }
        cut
    }

    /// Who sees whom in words: groups of nodes that all reach each other, with bars between them; one-way
    /// links apart.
    pub fn words(&self, nodes: &[String]) -> String {
        let both = |a: &str, b: &str| self.sees(a, b) && self.sees(b, a);
        if nodes.iter().all(|a| nodes.iter().all(|b| a == b || both(a, b))) {
            return "all see all".into();
        }
        let mut groups: Vec<Vec<&str>> = Vec::new();
        let up: Vec<&str> =
            nodes.iter().map(String::as_str).filter(|n| !self.down.iter().any(|d| d == n)).collect();
        for node in &up {
            let mut joined = vec![*node];
            let (mine, rest) = groups
                .into_iter()
                .partition::<Vec<_>, _>(|group| group.iter().any(|other| both(node, other)));
            joined.splice(0..0, mine.into_iter().flatten());
            groups = rest;
            groups.push(joined);
        }
        groups.sort();
        let whole = groups.iter().all(|g| g.iter().all(|a| g.iter().all(|b| a == b || both(a, b))));
        let mut words = groups.iter().map(|group| group.join(",")).collect::<Vec<_>>().join(" | ");
        if !whole {
            words = format!("{} cut", counted(self.cut.len(), "link", "links"));
        } else if groups.len() == 1 {
            words.clear();
        }
        if !self.down.is_empty() {
            let all = nodes.iter().all(|node| self.down.contains(node));
            let down = if all { "all down".to_owned() } else { format!("{} down", self.down.join(",")) };
            words = if words.is_empty() { down } else { format!("{words}; {down}") };
        }
        words
    }
}

impl Namespace {
    /// The side of CAP in two letters.
    pub(super) fn side(&self) -> &'static str {
        if self.strong { "CP" } else { "AP" }
    }

    /// The mode.
    pub(super) fn mode(&self) -> &'static str {
        if self.strong { "strong" } else { "available" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_check::judge::Evidence;
    use kv_check::{EventType, Process, operation};
    use serde_json::json;

    fn names(nodes: &[&str]) -> Vec<String> {
        nodes.iter().map(|node| (*node).to_owned()).collect()
    }

    #[test]
    fn who_sees_whom_is_put_into_words() {
        let nodes = names(&["n1", "n2", "n3"]);
        let whole = Topology { from: 0, to: 1, cut: Vec::new(), down: Vec::new() };
        assert_eq!(whole.words(&nodes), "all see all");
        let halves =
            Topology { cut: Topology::between(&[names(&["n1"]), names(&["n2", "n3"])]), ..whole.clone() };
        assert_eq!((halves.cut.len(), halves.words(&nodes).as_str()), (4, "n1 | n2,n3"));
        assert!(!halves.sees("n1", "n3") && halves.sees("n2", "n3"));
        let down = Topology { down: names(&["n2"]), ..whole.clone() };
        assert_eq!(down.words(&nodes), "n2 down");
        let all_down = Topology { down: nodes.clone(), ..whole.clone() };
        assert_eq!(all_down.words(&nodes), "all down");
        let one_way = Topology { cut: vec![("n1".into(), "n2".into())], ..whole };
        assert_eq!(one_way.words(&nodes), "1 link cut");
    }

    fn history(rows: &[(u64, u64, &str, Json, Option<u64>)]) -> Vec<Operation> {
        let mut events = Vec::new();
        for (at, (call, ret, f, value, revision)) in (0..).zip(rows) {
            for (time, kind) in [(*call, EventType::Invoke), (*ret, EventType::Ok)] {
                let value =
                    if kind == EventType::Invoke && *f == "read" { Json::Null } else { value.clone() };
                let mut event = Event::new(time, Process::Client(at), kind, (*f).into(), value);
                (event.ns, event.node) = (Some("bank".into()), Some("n1".into()));
                (event.key, event.revision) = (Some("k".into()), *revision);
                events.push(event);
            }
        }
        operation::pair(&kv_check::history::arrange(events)).unwrap()
    }

    fn stale_read() -> Vec<Operation> {
        history(&[
            (0, 10, "write", json!("a"), Some(1)),
            (20, 30, "write", json!("b"), Some(2)),
            (50, 60, "read", json!("a"), Some(1)),
            (70, 80, "read", json!("b"), Some(2)),
        ])
    }

    #[test]
    fn stale_reads_of_strong_namespaces_are_found_by_revision() {
        let stale = stale_by_revision(&stale_read());
        assert_eq!(stale.iter().map(|s| (s.at, s.lag, s.behind)).collect::<Vec<_>>(), [(50, 20, 1)]);
    }

    #[test]
    fn a_failing_part_names_its_culprit_and_gets_the_logs_of_its_time() {
        let operations = stale_read();
        let indices = vec![operations[1].index, operations[2].index];
        let evidence = Evidence { key: "k".into(), indices, text: "no order".into(), from: 20, to: 60 };
        let property = Property {
            name: "linearizable".into(),
            ns: "bank".into(),
            checker: "wgl".into(),
            examined: 4,
            ruling: Ruling::Invalid,
            detail: String::new(),
            evidence: Some(evidence),
        };
        let mut failure = Failure::of(&property, &operations).unwrap();
        assert_eq!(failure.operations.len(), 2);
        let culprit = failure.operations.iter().find(|step| step.culprit).unwrap();
        assert_eq!((culprit.what.as_str(), failure.span()), ("read = \"a\" @1", (20, 60)));
        let begun = humantime::parse_rfc3339("2026-01-01T00:00:00Z").unwrap();
        let log =
            "2026-01-01T00:00:00.000000040Z  INFO x: hit\n2026-01-01T00:00:09Z  INFO x: late\nnonsense\n";
        failure.add_log("n1", log, begun, Duration::ZERO, 10);
        assert_eq!(
            failure.logs.iter().map(|l| (l.at, l.text.as_str())).collect::<Vec<_>>(),
            [(40, "INFO x: hit")]
        );
    }
}
