//! The smallest failing part of a history that is not linearizable.
//!
//! Operations are left out while the rest stays a violation, and only such as may be left out: if the whole
//! could be explained, so could the rest. That holds for every operation that only looks, and for a mutation
//! of which nothing in the rest shows a trace. What remains therefore proves by itself that the history is
//! wrong: a read is never left behind without the write it shows.

use super::{Model, Options, Verdict, Witness, check_key_counting, describe};
use crate::operation::Expected;
use crate::{Function, Json, Operation, Outcome};
use std::collections::BTreeSet;

/// A part that is not linearizable by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its operations, by call.
    pub operations: Vec<Operation>,
    /// Why it is not linearizable.
    pub witness: Witness,
}

/// Configurations that a check of a part may visit: it is repeated often.
const MAX_CONFIGURATIONS: usize = 100_000;

/// Configurations that all checks of parts may visit together: what an explanation may cost beyond the
/// verdict.
const EXPLANATION_CONFIGURATIONS: usize = 400_000;

/// Finds a small part of the operations of one key that is not linearizable, with at most `checks` checks of
/// parts that visit a bounded number of configurations together; none if they all are.
pub fn shrink(operations: &[&Operation], options: &Options, checks: usize) -> Option<Part> {
    let shrinking = shrunk(operations, options, checks, EXPLANATION_CONFIGURATIONS)?;
    Some(Part { operations: shrinking.rest.into_iter().cloned().collect(), witness: shrinking.witness })
}

fn shrunk<'a>(
    operations: &[&'a Operation],
    options: &Options,
    checks: usize,
    configurations: usize,
) -> Option<Shrinking<'a>> {
    let (Verdict::Invalid(first), _) = check_key_counting(operations, options) else { return None };
    let mut shrinking = Shrinking {
        options: Options {
            max_configurations: MAX_CONFIGURATIONS.min(options.max_configurations),
            ..*options
        },
        checks,
        configurations,
        rest: operations.to_vec(),
        witness: *first,
    };
    shrinking.rest.sort_by_key(|op| op.call);
    // What asks nothing goes first, as far as the convention leaves it out.
    shrinking.try_without(|op| op.outcome == Outcome::Fail && !op.mismatch());
    // Nothing after the failure has a part in it, unless what is before it shows it.
    let end = shrinking.witness.stuck.ret.unwrap_or(u64::MAX);
    shrinking.try_without(|op| op.call > end);
    loop {
        let before = shrinking.rest.len();
        shrinking.pass();
        if shrinking.rest.len() == before || shrinking.checks == 0 {
            break;
        }
    }
    Some(shrinking)
}

impl Part {
    /// The part as people read it: the operations by time, and how far they can be put in an order.
    pub fn text(&self) -> String {
        let mut text = String::from("no order explains these operations:\n");
        for op in &self.operations {
            text.push_str(&format!("  {}\n", describe(op)));
        }
        if self.witness.linearization.is_empty() {
            text.push_str("from the beginning, when the key holds ");
        } else {
            let order: Vec<_> =
                self.witness.linearization.iter().map(|op| format!("#{}", op.index)).collect();
            text.push_str(&format!("after {} the key holds ", order.join(", ")));
        }
        text.push_str(&format!(
            "{}, and #{} cannot come next; no other order gets further",
            self.witness.state, self.witness.stuck.index
        ));
        text
    }
}

struct Shrinking<'a> {
    options: Options,
    checks: usize,
    /// Configurations that are left of the budget.
    configurations: usize,
    rest: Vec<&'a Operation>,
    witness: Witness,
}

impl<'a> Shrinking<'a> {
    /// Leaves out runs of operations, long ones first.
    fn pass(&mut self) {
        let mut length = (self.rest.len() / 2).max(1);
        loop {
            let mut to = self.rest.len();
            while to > 0 && self.checks > 0 {
                let from = to.saturating_sub(length);
                let run: BTreeSet<u64> = self.rest[from..to].iter().map(|op| op.index).collect();
                self.try_without(|op| run.contains(&op.index));
                to = from.min(self.rest.len());
            }
            if length == 1 || self.checks == 0 {
                return;
            }
            length /= 2;
        }
    }

    /// Leaves these out, as far as allowed, if the rest still is a violation.
    fn try_without(&mut self, leave: impl Fn(&Operation) -> bool) {
        if self.checks == 0 {
            return;
        }
        let mut rest: Vec<&'a Operation> = self.rest.clone();
        // A mutation may go once everything that shows it is gone, so the readers go first.
        rest.retain(|op| !(leave(op) && asks_nothing_of_later(op)));
        let traces = Traces::of(&rest, self.options.model);
        rest.retain(|op| !leave(op) || traces.shows(op));
        if rest.len() == self.rest.len() || rest.is_empty() {
            return;
        }
        self.checks -= 1;
        let max_configurations = self.options.max_configurations.min(self.configurations);
        let (verdict, visited) = check_key_counting(&rest, &Options { max_configurations, ..self.options });
        self.configurations = self.configurations.saturating_sub(visited);
        if self.configurations == 0 {
            self.checks = 0;
        }
        if let Verdict::Invalid(witness) = verdict {
            (self.rest, self.witness) = (rest, *witness);
        }
    }
}

/// Whether an operation has no effect of its own.
fn asks_nothing_of_later(op: &Operation) -> bool {
    op.f == Function::Read || op.outcome == Outcome::Fail
}

/// What operations show of the mutations before them.
struct Traces {
    model: Model,
    values: BTreeSet<String>,
    revisions: BTreeSet<u64>,
    /// Revisions that mutations told as theirs.
    told: BTreeSet<u64>,
    /// Whether some operation shows only what the value was *not*: any mutation may be the reason.
    unlike: bool,
}

impl Traces {
    fn of(operations: &[&Operation], model: Model) -> Traces {
        let mut traces = Traces {
            model,
            values: BTreeSet::new(),
            revisions: BTreeSet::new(),
            told: BTreeSet::new(),
            unlike: false,
        };
        for op in operations {
            let looked = op.f == Function::Read && op.ok();
            if looked {
                match &op.output {
                    Json::Array(elements) => traces.values.extend(elements.iter().map(Json::to_string)),
                    value => traces.see(value),
                }
                traces.revisions.extend(op.revision.filter(|_| !op.output.is_null()));
            }
            match &op.expected {
                Some(Expected::Value(value)) => traces.see(value),
                Some(Expected::Revision(0)) => traces.see(&Json::Null),
                Some(Expected::Revision(revision)) => {
                    traces.revisions.insert(*revision);
                }
                None => {}
            }
            if op.mismatch() {
                traces.unlike |= op.observed.is_none();
                for value in op.observed.iter().flatten() {
                    traces.see(value);
                }
                traces.revisions.extend(op.revision);
            } else if op.f.mutates() && op.ok() {
                traces.told.extend(op.revision);
            }
        }
        traces
    }

    fn see(&mut self, value: &Json) {
        self.values.insert(value.to_string());
    }

    /// Whether a trace of this operation is, or may be, among what was seen.
    fn shows(&self, op: &Operation) -> bool {
        if asks_nothing_of_later(op) {
            return true; // it was to be left out already, if it was
        }
        let value = op.input.to_string();
        let seen = match self.model {
            // What wipes out a text leaves no trace of its own.
            Model::Strings if op.f == Function::Delete => true,
            Model::Lists if op.f != Function::Append => true,
            Model::Register | Model::Lists => self.values.contains(&value),
            // A piece of a string may stand anywhere in one.
            Model::Strings => {
                let piece = value.trim_matches('"');
                self.values.iter().any(|seen| seen.contains(piece))
            }
        };
        let by_revision = match op.revision.filter(|_| op.ok()) {
            Some(revision) => self.revisions.contains(&revision),
            None => !self.revisions.is_subset(&self.told),
        };
        seen || by_revision || self.unlike
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventType;
    use crate::operation::pair;
    use crate::{Event, Process};

    /// Ten reads of a value that is never written, one after the other, between writes of others.
    fn operations() -> Vec<Operation> {
        let mut events = Vec::new();
        for at in 0..10_u64 {
            for (process, f, value) in [(1, "write", Json::from(at)), (2, "read", Json::from("never"))] {
                let time = at * 100 + process;
                let event = |time, kind, value| {
                    let mut event = Event::new(time, Process::Client(process), kind, f.into(), value);
                    event.key = Some("k".into());
                    event
                };
                let asked = if f == "read" { Json::Null } else { value.clone() };
                events.push(event(time, EventType::Invoke, asked));
                events.push(event(time + 50, EventType::Ok, value));
            }
        }
        pair(&crate::history::arrange(events)).unwrap()
    }

    #[test]
    fn an_explanation_keeps_to_its_budget_and_is_a_violation_all_the_same() {
        let operations = operations();
        let all: Vec<&Operation> = operations.iter().collect();
        let options = Options::default();
        let whole = shrunk(&all, &options, 400, EXPLANATION_CONFIGURATIONS).unwrap();
        assert_eq!(whole.rest.len(), 1, "one read of a value that was never written is enough");
        let none = shrunk(&all, &options, 400, 0).unwrap();
        assert_eq!((none.rest.len(), none.checks), (all.len(), 0), "without a budget the whole is the part");
        for budget in [1, 2, 5] {
            let shrunk = shrunk(&all, &options, 400, budget).unwrap();
            assert!(shrunk.configurations <= budget, "budget {budget}");
            assert!(matches!(check_key_counting(&shrunk.rest, &options).0, Verdict::Invalid(_)));
        }
    }
}
