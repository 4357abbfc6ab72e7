//! Hand-written histories for unit tests, an operation a line, so that a test reads like its story.

use crate::{Function, Json, Operation, Outcome};
use std::ops::Range;

/// Operations of one key, in the order written; each one by a process of its own.
pub(crate) struct History(Vec<Operation>);

/// A read that showed these siblings.
pub(crate) fn values(values: &[&str]) -> Json {
    values.iter().map(|value| Json::from(*value)).collect()
}

/// A read that showed this value.
pub(crate) fn value(value: &str) -> Json {
    value.into()
}

/// A read that found nothing.
pub(crate) fn absent() -> Json {
    Json::Null
}

impl History {
    pub(crate) fn new() -> History {
        History(Vec::new())
    }

    fn push(
        mut self,
        f: Function,
        at: Range<u64>,
        outcome: Outcome,
        input: Json,
        observed: &[&str],
    ) -> History {
        let index = self.0.len() as u64;
        self.0.push(Operation {
            index,
            process: index,
            f,
            ns: "ns".into(),
            key: "k".into(),
            node: String::new(),
            call: at.start,
            ret: (outcome != Outcome::Info).then_some(at.end),
            outcome,
            input,
            output: Json::Null,
            expected: None,
            revision: None,
            observed: Some(observed.iter().map(|value| Json::from(*value)).collect()),
            covers_unseen: false,
            err: None,
            receipt: None,
        });
        self
    }

    /// The last operation covers what its client has not seen.
    pub(crate) fn of_what_is_there(self) -> History {
        self.with(|op| (op.observed, op.covers_unseen) = (None, true))
    }

    pub(crate) fn write(self, at: Range<u64>, value: &str, observed: &[&str]) -> History {
        self.push(Function::Write, at, Outcome::Ok, value.into(), observed)
    }

    pub(crate) fn failed_write(self, at: Range<u64>, value: &str, observed: &[&str]) -> History {
        self.push(Function::Write, at, Outcome::Fail, value.into(), observed)
    }

    pub(crate) fn unknown_write(self, call: u64, value: &str, observed: &[&str]) -> History {
        self.push(Function::Write, call..call, Outcome::Info, value.into(), observed)
    }

    pub(crate) fn delete(self, at: Range<u64>, observed: &[&str]) -> History {
        self.push(Function::Delete, at, Outcome::Ok, Json::Null, observed)
    }

    pub(crate) fn unknown_delete(self, call: u64, observed: &[&str]) -> History {
        self.push(Function::Delete, call..call, Outcome::Info, Json::Null, observed)
    }

    pub(crate) fn add(self, at: Range<u64>, element: &str) -> History {
        self.push(Function::Add, at, Outcome::Ok, element.into(), &[])
    }

    pub(crate) fn failed_add(self, at: Range<u64>, element: &str) -> History {
        self.push(Function::Add, at, Outcome::Fail, element.into(), &[])
    }

    pub(crate) fn unknown_add(self, call: u64, element: &str) -> History {
        self.push(Function::Add, call..call, Outcome::Info, element.into(), &[])
    }

    pub(crate) fn add_number(self, at: Range<u64>, delta: i64) -> History {
        self.push(Function::Add, at, Outcome::Ok, delta.into(), &[])
    }

    pub(crate) fn failed_add_number(self, at: Range<u64>, delta: i64) -> History {
        self.push(Function::Add, at, Outcome::Fail, delta.into(), &[])
    }

    pub(crate) fn unknown_add_number(self, call: u64, delta: i64) -> History {
        self.push(Function::Add, call..call, Outcome::Info, delta.into(), &[])
    }

    pub(crate) fn append(self, at: Range<u64>, element: &str) -> History {
        self.push(Function::Append, at, Outcome::Ok, element.into(), &[])
    }

    pub(crate) fn failed_append(self, at: Range<u64>, element: &str) -> History {
        self.push(Function::Append, at, Outcome::Fail, element.into(), &[])
    }

    pub(crate) fn unknown_append(self, call: u64, element: &str) -> History {
        self.push(Function::Append, call..call, Outcome::Info, element.into(), &[])
    }

    pub(crate) fn read(self, at: Range<u64>, output: Json) -> History {
        self.push(Function::Read, at, Outcome::Ok, Json::Null, &[]).with(|op| op.output = output)
    }

    /// A cas from one value to another that was answered with a mismatch.
    pub(crate) fn mismatch(self, at: Range<u64>, old: &str, new: &str) -> History {
        self.push(Function::Cas, at, Outcome::Fail, new.into(), &[]).with(|op| {
            op.expected = Some(crate::operation::Expected::Value(old.into()));
            (op.observed, op.err) = (None, Some(crate::operation::MISMATCH.into()));
        })
    }

    /// Gives the last operation a receipt that says what was delivered.
    pub(crate) fn delivered(self, word: &str) -> History {
        self.with(|op| op.receipt = Some(serde_json::json!({"delivered": word})))
    }

    /// Gives the last operation a receipt that names the namespace's revision as its point, and log index
    /// alike.
    pub(crate) fn point(self, revision: u64) -> History {
        let point = serde_json::json!({"term": 1, "index": revision, "revision": revision});
        self.with(|op| op.receipt = Some(serde_json::json!({"strong": point})))
    }

    /// These operations after those.
    pub(crate) fn then(mut self, more: History) -> History {
        for mut op in more.0 {
            op.index = self.0.len() as u64;
            op.process = op.index;
            self.0.push(op);
        }
        self
    }

    /// Names the node of the last operation.
    pub(crate) fn at(self, node: &str) -> History {
        self.with(|op| op.node = node.into())
    }

    /// Gives the last operation an error.
    pub(crate) fn err(self, err: &str) -> History {
        self.with(|op| op.err = Some(err.into()))
    }

    /// Names the key of the last operation.
    pub(crate) fn key(self, key: &str) -> History {
        self.with(|op| op.key = key.into())
    }

    /// Gives the last operation a revision.
    pub(crate) fn revision(self, revision: u64) -> History {
        self.with(|op| op.revision = Some(revision))
    }

    fn with(mut self, change: impl FnOnce(&mut Operation)) -> History {
        if let Some(last) = self.0.last_mut() {
            change(last);
        }
        self
    }

    pub(crate) fn operations(self) -> Vec<Operation> {
        self.0
    }
}
