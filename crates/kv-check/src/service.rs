//! Who was served, where and when: availability, silence and recovery, from times and outcomes alone.
//!
//! **Served** means that the store gave an answer: success, or the mismatch of a cas. *Key absent* is a
//! success. Operations belong to the window in which they were called. Meaningful only for an open-loop load,
//! whose requests come at a fixed rate with a deadline: closed-loop clients stop asking when no node answers,
//! and hide the outage.

use crate::{Function, Operation, Outcome, operation, receipts};
use std::collections::{BTreeMap, BTreeSet};

/// A span of time, and which side of a network partition each node is on during it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// Its name in the report, such as `partition`.
    pub name: String,
    /// Its first nanosecond.
    pub from: u64,
    /// The first nanosecond after it.
    pub to: u64,
    /// Node to side (`minority`, `majority`); nodes not named are on the side `whole`.
    pub sides: BTreeMap<String, String>,
}

impl Window {
    /// The side of a node.
    pub fn side(&self, node: &str) -> &str {
        self.sides.get(node).map_or("whole", String::as_str)
    }

    fn contains(&self, moment: u64) -> bool {
        (self.from..self.to).contains(&moment)
    }
}

/// How one namespace was served on one side during one window.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    /// The namespace.
    pub ns: String,
    /// The window.
    pub window: String,
    /// The side.
    pub side: String,
    /// Writes, cas and deletes; else reads.
    pub mutations: bool,
    /// Operations that were answered.
    pub answered: u64,
    /// Operations that were refused, as *not applied*; and reads without an answer.
    pub refused: u64,
    /// Mutations of unknown outcome.
    pub unknown: u64,
    /// The longest time within the window without an answer; without any, the whole window.
    pub longest_gap_ns: u64,
    /// When the last answer of the window came, from the beginning of the window.
    pub last_answer_ns: Option<u64>,
}

impl Served {
    /// Answered, as a part of everything asked: between 0 and 1.
    pub fn availability(&self) -> f64 {
        let asked = self.answered + self.refused + self.unknown;
        if asked == 0 { 0.0 } else { self.answered as f64 / asked as f64 }
    }
}

/// How each namespace was served, per window, side and kind of operation; only combinations that were asked.
pub fn served(operations: &[Operation], windows: &[Window]) -> Vec<Served> {
    let mut rows = Vec::new();
    for window in windows {
        let mut groups: BTreeMap<(&str, &str, bool), Vec<&Operation>> = BTreeMap::new();
        for op in operations.iter().filter(|op| window.contains(op.call)) {
            groups.entry((&op.ns, window.side(&op.node), op.f.mutates())).or_default().push(op);
        }
        for ((ns, side, mutations), group) in groups {
            let answers =
                answers(group.iter().copied().filter(|op| op.ret.is_some_and(|ret| window.contains(ret))));
            rows.push(Served {
                ns: ns.to_owned(),
                window: window.name.clone(),
                side: side.to_owned(),
                mutations,
                answered: group.iter().filter(|op| op.answered()).count() as u64,
                refused: group.iter().filter(|op| op.outcome == Outcome::Fail && !op.answered()).count()
                    as u64,
                unknown: group.iter().filter(|op| op.outcome == Outcome::Info).count() as u64,
                longest_gap_ns: longest_gap(&answers, window.from, window.to),
                last_answer_ns: answers.last().map(|last| last - window.from),
            });
        }
    }
    rows
}

/// What was asked for on the cut-off sides of a partition, while they were cut off for certain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CutOff<'a> {
    /// Mutations and linearizable reads that were called there.
    pub asked: Vec<&'a Operation>,
    /// Those of them that were also answered in that time: a node answered without a majority.
    pub answered: Vec<&'a Operation>,
}

/// What needs a majority and was asked of nodes on these sides of a window, from one grace after its
/// beginning to one grace before its end; none if no node is on such a side, or nothing is left of the
/// window.
///
/// What was called before may be answered inside: its quorum may be older than the cut. And what is answered
/// in the last grace may have met the healed network, which its harness notices a little later.
pub fn cut_off<'a>(
    operations: &'a [Operation],
    window: &Window,
    sides: &BTreeSet<String>,
    grace_ns: u64,
) -> Option<CutOff<'a>> {
    let inside = window.from.saturating_add(grace_ns)..window.to.saturating_sub(grace_ns);
    if inside.is_empty() || !window.sides.values().any(|side| sides.contains(side)) {
        return None;
    }
    let needs_majority =
        |op: &Operation| op.f.mutates() || (op.f == Function::Read && receipts::promises_linearizable(op));
    let asked: Vec<&Operation> = operations
        .iter()
        .filter(|op| sides.contains(window.side(&op.node)) && inside.contains(&op.call) && needs_majority(op))
        .collect();
    let in_time = |op: &&Operation| op.answered() && op.ret.is_some_and(|ret| inside.contains(&ret));
    let answered = asked.iter().copied().filter(in_time).collect();
    Some(CutOff { asked, answered })
}

/// The moments of answers, in order.
pub(crate) fn answers<'a>(operations: impl Iterator<Item = &'a Operation>) -> Vec<u64> {
    let mut moments: Vec<u64> = operations.filter(|op| op.answered()).filter_map(|op| op.ret).collect();
    moments.sort_unstable();
    moments
}

/// The longest time between two neighbours of: the beginning, the moments (in order), the end.
pub fn longest_gap(moments: &[u64], from: u64, to: u64) -> u64 {
    let mut longest = 0;
    let mut before = from;
    for moment in moments.iter().filter(|moment| (from..=to).contains(*moment)).chain([&to]) {
        longest = longest.max(moment - before);
        before = *moment;
    }
    longest
}

/// Answers in a row that mean *serves again*. Twice as many would be more than the load of a slow scenario
/// leaves room for.
pub const STREAK: usize = 5;

/// From a moment to the answer of the first of [`STREAK`] operations in a row (by call, called since then)
/// that were all answered; none if that never came. Give it the operations of one namespace at one node or
/// side. Who lost a race was served, and is left out.
pub fn recovery<'a>(operations: impl IntoIterator<Item = &'a Operation>, from: u64) -> Option<u64> {
    let fair = |op: &&Operation| op.err.as_deref() != Some(operation::CONTENDED);
    let since = operations.into_iter().filter(|op| op.call >= from).filter(fair);
    let mut since: Vec<&Operation> = since.collect();
    since.sort_by_key(|op| op.call);
    let row = since.windows(STREAK).find(|row| row.iter().all(|op| op.answered()))?;
    row.first()?.ret.map(|ret| ret - from)
}

/// The same at each of these nodes, and there where it took longest; none if it never came at one of them.
/// Give it the operations of one namespace.
pub fn recovery_everywhere<'a>(
    operations: &[Operation],
    nodes: impl IntoIterator<Item = &'a str>,
    from: u64,
) -> Option<u64> {
    let at = |node: &str| recovery(operations.iter().filter(|op| op.node == node), from);
    let times: Option<Vec<u64>> = nodes.into_iter().map(at).collect();
    times?.into_iter().max()
}

/// One cell of a timeline: what a namespace at a node answered in one span.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Cell {
    /// Operations that were answered.
    pub answered: u64,
    /// Operations that were refused; and reads without an answer.
    pub refused: u64,
    /// Mutations of unknown outcome.
    pub unknown: u64,
}

/// For each (namespace, node), the cells of equal width that cover `from..to`, by the operations' calls.
pub fn timeline(
    operations: &[Operation],
    from: u64,
    to: u64,
    width: u64,
) -> BTreeMap<(String, String), Vec<Cell>> {
    let width = width.max(1);
    let cells = to.saturating_sub(from).div_ceil(width) as usize;
    let mut rows: BTreeMap<(String, String), Vec<Cell>> = BTreeMap::new();
    for op in operations.iter().filter(|op| (from..to).contains(&op.call)) {
        let row =
            rows.entry((op.ns.clone(), op.node.clone())).or_insert_with(|| vec![Cell::default(); cells]);
        let Some(cell) = row.get_mut(((op.call - from) / width) as usize) else { continue };
        match op.outcome {
            _ if op.answered() => cell.answered += 1,
            Outcome::Info => cell.unknown += 1,
            _ => cell.refused += 1,
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_history::{History, absent};

    fn cut() -> Window {
        let sides = [("n1", "minority"), ("n4", "majority")];
        let sides = sides.map(|(node, side)| (node.to_owned(), side.to_owned())).into();
        Window { name: "partition".into(), from: 100, to: 200, sides }
    }

    #[test]
    fn each_side_is_counted_in_its_window() {
        let operations = History::new()
            .write(50..60, "before", &[])
            .write(110..120, "a", &[])
            .failed_write(130..131, "b", &[])
            .at("n1")
            .unknown_write(140, "c", &[])
            .at("n1")
            .write(110..115, "d", &[])
            .at("n4")
            .write(150..170, "e", &[])
            .at("n4")
            .read(111..112, absent())
            .at("n4")
            .write(200..210, "after", &[])
            .operations();
        let rows = served(&operations, &[cut()]);
        let find = |side: &str, mutations| {
            rows.iter().find(|row| row.side == side && row.mutations == mutations).unwrap()
        };
        assert_eq!(rows.len(), 4);
        let minority = find("minority", true);
        assert_eq!((minority.answered, minority.refused, minority.unknown), (0, 1, 1));
        assert_eq!((minority.longest_gap_ns, minority.last_answer_ns), (100, None));
        let majority = find("majority", true);
        assert_eq!((majority.answered, majority.longest_gap_ns, majority.last_answer_ns), (2, 55, Some(70)));
        assert_eq!((minority.availability(), majority.availability()), (0.0, 1.0));
        assert_eq!((find("majority", false).answered, find("whole", true).answered), (1, 1));
    }

    fn indices(operations: &[&Operation]) -> Vec<u64> {
        operations.iter().map(|op| op.index).collect()
    }

    #[test]
    fn what_a_minority_answers_counts_while_it_is_cut_off_for_certain() {
        let operations = History::new()
            .write(90..130, "called before", &[])
            .at("n1")
            .write(105..112, "it may not have noticed", &[])
            .at("n1")
            .write(110..111, "a lie", &[])
            .at("n1")
            .read(120..121, absent())
            .at("n1")
            .read(120..121, absent())
            .at("n1")
            .delivered("stale")
            .failed_write(130..140, "refused", &[])
            .at("n1")
            .mismatch(130..140, "no", "x")
            .at("n1")
            .unknown_write(150, "open", &[])
            .at("n1")
            .write(180..195, "answered when it may have healed", &[])
            .at("n1")
            .write(130..131, "the majority", &[])
            .at("n4")
            .write(130..131, "nowhere", &[])
            .at("n9")
            .operations();
        let minority = BTreeSet::from(["minority".to_owned()]);
        let found = cut_off(&operations, &cut(), &minority, 10).unwrap();
        assert_eq!(indices(&found.asked), [2, 3, 5, 6, 7, 8]);
        assert_eq!(indices(&found.answered), [2, 3, 6]);
        // Everybody alone: the sides share a name, and none of them has a majority.
        let alone = Window {
            sides: [("n1".into(), "minority".into()), ("n4".into(), "minority".into())].into(),
            ..cut()
        };
        assert_eq!(indices(&cut_off(&operations, &alone, &minority, 10).unwrap().answered), [2, 3, 6, 9]);
        assert_eq!(cut_off(&operations, &cut(), &minority, 50), None);
        assert_eq!(cut_off(&operations, &Window { sides: BTreeMap::new(), ..cut() }, &minority, 10), None);
        assert_eq!(cut_off(&operations, &cut(), &BTreeSet::new(), 10), None);
    }

    #[test]
    fn silence_is_measured_to_the_edges_of_the_window() {
        assert_eq!(longest_gap(&[], 10, 50), 40);
        assert_eq!(longest_gap(&[40], 10, 50), 30);
        assert_eq!(longest_gap(&[12, 20, 45], 10, 50), 25);
        assert_eq!(longest_gap(&[5, 12, 99], 10, 50), 38);
    }

    /// Operations at a node, ten nanoseconds apart, that take five: `.` is answered, `c` lost its races, `x`
    /// failed.
    fn told(mut history: History, node: &str, from: u64, how: &str) -> History {
        for (at, how) in (0..).zip(how.chars()) {
            let at = from + at * 10..from + at * 10 + 5;
            history = match how {
                '.' => history.write(at, "a", &[]),
                'c' => history.failed_write(at, "a", &[]).err(operation::CONTENDED),
                _ => history.failed_write(at, "a", &[]),
            };
            history = history.at(node);
        }
        history
    }

    #[test]
    fn recovery_needs_answers_in_a_row() {
        let time = |from, how| recovery(&told(History::new(), "n1", 100, how).operations(), from);
        assert_eq!(time(100, "....."), Some(5));
        assert_eq!(time(90, "....."), Some(15), "from the moment, not from the first operation");
        assert_eq!(time(101, "....."), None, "one was called before");
        assert_eq!(time(100, "...x.x....."), Some(65));
        assert_eq!(time(100, "....x...."), None);
        assert_eq!(time(100, ".c.c..c."), Some(5), "who lost a race was served");
        assert_eq!(time(100, "ccccc"), None, "and shows nothing by itself");
    }

    #[test]
    fn the_slowest_node_decides_when_all_serve() {
        let history = told(told(History::new(), "n1", 100, "....."), "n2", 100, "x.....");
        let operations = history.operations();
        let time = |nodes: &[&str]| recovery_everywhere(&operations, nodes.iter().copied(), 100);
        assert_eq!((time(&["n1"]), time(&["n1", "n2"])), (Some(5), Some(15)));
        assert_eq!(time(&["n1", "n3"]), None, "it was not asked");
        assert_eq!(time(&[]), None);
    }

    #[test]
    fn the_timeline_has_a_cell_for_every_span() {
        let operations = History::new()
            .write(100..105, "a", &[])
            .failed_write(119..120, "b", &[])
            .unknown_write(125, "c", &[])
            .operations();
        let rows = timeline(&operations, 100, 130, 10);
        let cells: Vec<_> =
            rows.values().flatten().map(|cell| (cell.answered, cell.refused, cell.unknown)).collect();
        assert_eq!(cells, [(1, 0, 0), (0, 1, 0), (0, 0, 1)]);
    }
}
