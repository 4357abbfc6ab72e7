//! What each namespace did on each side of a fault, counted once, from the history. The picture, the tables,
//! the terminal and the receipt print these figures and count nothing of the kind themselves, so that a fact
//! has one figure wherever one looks.

use kv_check::Operation;
use kv_check::service::{self, Window};

use crate::model::{Fault, Side, Tally};

/// In nanoseconds.
const MILLISECOND: u64 = 1_000_000;

impl Fault {
    /// While it was certainly in force, with its sides.
    pub(super) fn window(&self) -> Window {
        let until = if self.until == 0 { self.to } else { self.until };
        Window { name: self.what.clone(), from: self.from, to: until, sides: self.sides.clone() }
    }

    /// Whether what began at this moment is counted as during the fault.
    pub(super) fn during(&self, moment: u64) -> bool {
        let window = self.window();
        (window.from..window.to).contains(&moment)
    }
}

/// What each namespace did on each side of the faults that made sides; only where something was asked.
pub(super) fn sides(operations: &[Operation], faults: &[Fault]) -> Vec<Side> {
    let sided = faults.iter().enumerate().filter(|(_, fault)| !fault.sides.is_empty());
    sided.flat_map(|(at, fault)| of_window(operations, at, &fault.window())).collect()
}

/// The same of one fault, given its window and its place among the faults.
pub(super) fn of_window(operations: &[Operation], fault: usize, window: &Window) -> Vec<Side> {
    let mut sides: Vec<Side> = Vec::new();
    for row in service::served(operations, std::slice::from_ref(window)) {
        let tally = Tally { answered: row.answered, unknown: row.unknown, refused: row.refused };
        let place = sides.iter().position(|side| side.ns == row.ns && side.side == row.side);
        let new = || Side {
            fault,
            longest_gap_ms: milliseconds(window.to.saturating_sub(window.from)),
            first_write_ms: first_write(operations, window, &row.ns, &row.side),
            ns: row.ns.clone(),
            side: row.side.clone(),
            ..Side::default()
        };
        let mut side = place.map_or_else(new, |place| sides.swap_remove(place));
        side.tally.join(tally);
        if row.mutations {
            (side.mutations, side.longest_gap_ms) = (row.answered, milliseconds(row.longest_gap_ns));
        }
        sides.push(side);
    }
    sides.sort_by(|a, b| (&a.ns, &a.side).cmp(&(&b.ns, &b.side)));
    sides
}

/// From the beginning of a window to the first acknowledgement of a write that began in it, on one side.
fn first_write(operations: &[Operation], window: &Window, ns: &str, side: &str) -> Option<u64> {
    let mine = operations.iter().filter(|op| op.ns == ns && window.side(&op.node) == side);
    let writes = mine.filter(|op| op.f.mutates() && op.ok() && (window.from..window.to).contains(&op.call));
    let first = writes.filter_map(|op| op.ret).min()?;
    Some(milliseconds(first.saturating_sub(window.from)))
}

/// Whole milliseconds.
pub(super) fn milliseconds(ns: u64) -> u64 {
    ns / MILLISECOND
}

/// The same time in whole milliseconds, in nanoseconds: what a receipt in milliseconds and a page in
/// nanoseconds both print.
pub(super) fn whole(ns: u64) -> u64 {
    milliseconds(ns) * MILLISECOND
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kv_check::{Function, Json, Outcome};

    use super::*;

    fn operation(node: &str, call_ms: u64, f: Function, outcome: Outcome) -> Operation {
        Operation {
            index: call_ms,
            process: 1,
            f,
            ns: "bank".into(),
            key: "k".into(),
            node: node.into(),
            call: call_ms * MILLISECOND,
            ret: Some((call_ms + 2) * MILLISECOND + 1),
            outcome,
            input: Json::Null,
            output: Json::Null,
            expected: None,
            revision: None,
            observed: None,
            covers_unseen: false,
            err: None,
            receipt: None,
        }
    }

    #[test]
    fn a_side_is_counted_from_the_beginning_of_its_fault_until_it_is_taken_back() {
        let fault = Fault {
            from: 100 * MILLISECOND,
            until: 200 * MILLISECOND,
            to: 250 * MILLISECOND,
            kind: "network partition".into(),
            what: "n1 | n2,n3".into(),
            sides: BTreeMap::from([("n1", "minority"), ("n2", "majority"), ("n3", "majority")])
                .into_iter()
                .map(|(node, side)| (node.to_owned(), side.to_owned()))
                .collect(),
        };
        let operations = [
            operation("n2", 99, Function::Write, Outcome::Ok),
            operation("n2", 100, Function::Write, Outcome::Info),
            operation("n2", 110, Function::Read, Outcome::Ok),
            operation("n3", 130, Function::Write, Outcome::Ok),
            operation("n1", 199, Function::Write, Outcome::Fail),
            operation("n1", 200, Function::Write, Outcome::Ok),
        ];
        let sides = sides(&operations, &[Fault { sides: BTreeMap::new(), ..fault.clone() }, fault]);
        let [majority, minority] = sides.as_slice() else { panic!("{sides:?}") };
        assert_eq!(
            (majority.fault, majority.side.as_str(), minority.side.as_str()),
            (1, "majority", "minority")
        );
        assert_eq!(majority.tally, Tally { answered: 2, unknown: 1, refused: 0 });
        assert_eq!((majority.mutations, majority.first_write_ms), (1, Some(32)));
        assert_eq!(majority.longest_gap_ms, 67, "from 132 to the end");
        assert_eq!(minority.tally, Tally { answered: 0, unknown: 0, refused: 1 });
        assert_eq!((minority.first_write_ms, minority.longest_gap_ms), (None, 100));
    }
}
