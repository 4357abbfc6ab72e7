//! Operations: an invocation joined with its completion, and the one place where an answer becomes an
//! outcome.

use crate::history::Malformed;
use crate::{Event, EventType, Function, Json, Process};
use std::collections::{BTreeMap, BTreeSet};

/// The `err` of a cas that was answered "the condition did not hold". It is a response of a working store,
/// not a failure of it: a strict checker takes it as an observation, and availability counts it as served.
pub const MISMATCH: &str = "mismatch";
/// The error of an operation of several steps that lost every race until its time was over. Nothing was
/// applied.
pub const CONTENDED: &str = "CONTENDED";

/// How an operation ended, as far as its client can ever know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It took effect between its call and its return.
    Ok,
    /// It never took effect and never will.
    Fail,
    /// It may have taken effect, may still do so at any later time, or never.
    Info,
}

/// What came back for a request, in the terms of every layer above the wire: *applied*, *not applied*,
/// *unknown*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// An answer.
    Answered,
    /// The store says that nothing was applied: a mismatch, or an error whose table entry says *not applied*.
    NotApplied,
    /// Everything else: deadlines, resets, a killed node, errors that say *unknown* or nothing.
    Unknown,
}

impl Outcome {
    /// Classifies a reply. An unanswered read has no effect that could matter later, so it is a failure and
    /// costs its process nothing.
    pub fn of(f: &Function, reply: Reply) -> Outcome {
        match reply {
            Reply::Answered => Outcome::Ok,
            Reply::NotApplied => Outcome::Fail,
            Reply::Unknown if *f == Function::Read => Outcome::Fail,
            Reply::Unknown => Outcome::Info,
        }
    }
}

impl From<Outcome> for EventType {
    fn from(outcome: Outcome) -> EventType {
        match outcome {
            Outcome::Ok => EventType::Ok,
            Outcome::Fail => EventType::Fail,
            Outcome::Info => EventType::Info,
        }
    }
}

/// One operation of one client.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Index of its invocation in the history: its name in reports.
    pub index: u64,
    /// The client.
    pub process: u64,
    /// What was asked.
    pub f: Function,
    /// The namespace; empty where the history names none.
    pub ns: String,
    /// The key; empty where the history names none.
    pub key: String,
    /// The node asked; empty where the history names none.
    pub node: String,
    /// When it began.
    pub call: u64,
    /// When its completion was recorded, whatever that said; none if it never was.
    pub ret: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// What was written: the new value of a write or cas, what was added or appended; `null` for a delete or
    /// read.
    pub input: Json,
    /// What was read; `null` for everything else.
    pub output: Json,
    /// What a cas required.
    pub expected: Option<Expected>,
    /// The revision it got, saw, or found.
    pub revision: Option<u64>,
    /// The values its context covered, or what a mismatch found; see [`Event::observed`].
    pub observed: Option<Vec<Json>>,
    /// It may cover what its client has not seen; see [`Event::covers_unseen`].
    pub covers_unseen: bool,
    /// Why it failed.
    pub err: Option<String>,
    /// The receipt of the answer; see [`Event::receipt`].
    pub receipt: Option<Json>,
}

/// The condition of a cas.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// The key has this value; `null`: it is absent.
    Value(Json),
    /// The key has this revision; 0: it is absent.
    Revision(u64),
}

impl Operation {
    /// Whether it certainly took effect.
    pub fn ok(&self) -> bool {
        self.outcome == Outcome::Ok
    }

    /// Whether it is a cas that was answered with a mismatch.
    pub fn mismatch(&self) -> bool {
        self.f == Function::Cas && self.outcome == Outcome::Fail && self.err.as_deref() == Some(MISMATCH)
    }

    /// Whether the store served it: it took effect, or was answered with a mismatch.
    pub fn answered(&self) -> bool {
        self.ok() || self.mismatch()
    }

    /// Whether it certainly ended before the moment: its effect, if any, lies before.
    pub fn ended_before(&self, moment: u64) -> bool {
        self.outcome != Outcome::Info && self.ret.is_some_and(|ret| ret < moment)
    }

    /// Whether it wrote a value (write, or cas).
    pub fn writes_value(&self) -> bool {
        matches!(self.f, Function::Write | Function::Cas)
    }

    /// The values a read returned: a list as it is, one value as a list of one, absence as an empty list.
    pub fn values_read(&self) -> &[Json] {
        match &self.output {
            Json::Null => &[],
            Json::Array(values) => values,
            value => std::slice::from_ref(value),
        }
    }
}

/// Joins invocations with completions, in the order of the invocations. Events of the nemesis are passed
/// over.
///
/// Refuses a history that no well-behaved harness writes: time that runs backwards, a process with two
/// operations in flight, a completion of something else than was invoked, or a process that lives on after an
/// unknown outcome. An operation whose completion is missing counts as [`Outcome::Info`] (a read:
/// [`Outcome::Fail`]).
pub fn pair(events: &[Event]) -> Result<Vec<Operation>, Malformed> {
    let mut operations: Vec<Operation> = Vec::with_capacity(events.len() / 2);
    let mut in_flight: BTreeMap<u64, usize> = BTreeMap::new();
    let mut dead: BTreeSet<u64> = BTreeSet::new();
    let mut latest = 0;
    for (at, event) in events.iter().enumerate() {
        let bad = |message: String| Malformed { line: at + 1, message };
        if event.time < latest {
            return Err(bad(format!("time runs backwards, from {latest} to {}", event.time)));
        }
        latest = event.time;
        let Process::Client(process) = event.process else { continue };
        if dead.contains(&process) {
            return Err(bad(format!("process {process} goes on after an unknown outcome")));
        }
        if event.kind == EventType::Invoke {
            if in_flight.insert(process, operations.len()).is_some() {
                return Err(bad(format!("process {process} has two operations in flight")));
            }
            operations.push(invoked(process, event).map_err(bad)?);
        } else {
            let open = in_flight.remove(&process).and_then(|at| operations.get_mut(at));
            let Some(operation) = open else {
                return Err(bad(format!("process {process} completes what it did not invoke")));
            };
            complete(operation, event).map_err(bad)?;
            if operation.outcome == Outcome::Info {
                dead.insert(process);
            }
        }
    }
    Ok(operations)
}

/// An operation of which only the invocation is known.
fn invoked(process: u64, event: &Event) -> Result<Operation, String> {
    let (input, expected) = match (&event.f, event.expect_revision, &event.value) {
        (Function::Cas, Some(revision), new) => (new.clone(), Some(Expected::Revision(revision))),
        (Function::Cas, None, Json::Array(pair)) => match pair.as_slice() {
            [old, new] => (new.clone(), Some(Expected::Value(old.clone()))),
            _ => return Err("the value of a cas is [old, new]".into()),
        },
        (Function::Cas, None, _) => {
            return Err("a cas without expect_revision has the value [old, new]".into());
        }
        (Function::Write | Function::Add | Function::Append, ..) => (event.value.clone(), None),
        _ => (Json::Null, None),
    };
    Ok(Operation {
        index: event.index,
        process,
        f: event.f.clone(),
        ns: event.ns.clone().unwrap_or_default(),
        key: event.key.clone().unwrap_or_default(),
        node: event.node.clone().unwrap_or_default(),
        call: event.time,
        ret: None,
        outcome: Outcome::of(&event.f, Reply::Unknown),
        input,
        output: Json::Null,
        expected,
        revision: None,
        observed: event.observed.clone(),
        covers_unseen: event.covers_unseen,
        err: None,
        receipt: None,
    })
}

/// Adds the completion to its invocation. Namespace, key and node may be left out of it, but not differ.
fn complete(operation: &mut Operation, event: &Event) -> Result<(), String> {
    let differs = |invoked: &str, now: &Option<String>| now.as_ref().is_some_and(|now| now != invoked);
    if event.f != operation.f || differs(&operation.key, &event.key) || differs(&operation.ns, &event.ns) {
        return Err(format!(
            "process {} completes another operation than it invoked ({} {:?})",
            operation.process,
            operation.f.name(),
            operation.key
        ));
    }
    operation.ret = Some(event.time);
    operation.outcome = match event.kind {
        EventType::Ok => Outcome::Ok,
        EventType::Fail => Outcome::Fail,
        EventType::Info | EventType::Invoke => Outcome::Info,
    };
    if operation.f == Function::Read && operation.ok() {
        operation.output = event.value.clone();
    }
    operation.revision = event.revision;
    if event.observed.is_some() {
        operation.observed = event.observed.clone();
    }
    operation.err = event.err.clone();
    operation.receipt = event.receipt.clone();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(time: u64, process: u64, kind: EventType, f: &str, value: Json) -> Event {
        let mut event = Event::new(time, Process::Client(process), kind, f.into(), value);
        event.key = Some("k".into());
        event
    }

    #[test]
    fn only_a_definite_no_is_a_failure_except_for_reads() {
        for f in [Function::Write, Function::Cas, Function::Delete] {
            assert_eq!(Outcome::of(&f, Reply::Answered), Outcome::Ok);
            assert_eq!(Outcome::of(&f, Reply::NotApplied), Outcome::Fail);
            assert_eq!(Outcome::of(&f, Reply::Unknown), Outcome::Info);
        }
        assert_eq!(Outcome::of(&Function::Read, Reply::Answered), Outcome::Ok);
        assert_eq!(Outcome::of(&Function::Read, Reply::NotApplied), Outcome::Fail);
        assert_eq!(Outcome::of(&Function::Read, Reply::Unknown), Outcome::Fail);
    }

    #[test]
    fn invocations_meet_their_completions() {
        use EventType::*;
        let mut nemesis = event(3, 0, Info, "cut", Json::Null);
        nemesis.process = Process::Nemesis;
        let operations = pair(&[
            event(1, 0, Invoke, "write", json!("a")),
            event(2, 1, Invoke, "read", Json::Null),
            nemesis,
            event(4, 1, Ok, "read", json!("a")),
            event(5, 0, Info, "write", json!("a")),
            event(6, 1, Invoke, "cas", json!(["a", "b"])),
            event(7, 2, Invoke, "read", Json::Null),
        ])
        .unwrap();
        let seen: Vec<_> = operations.iter().map(|op| (op.call, op.ret, op.outcome)).collect();
        let open_cas = (6, None, Outcome::Info);
        let open_read = (7, None, Outcome::Fail);
        assert_eq!(seen, [(1, Some(5), Outcome::Info), (2, Some(4), Outcome::Ok), open_cas, open_read]);
        assert_eq!(operations[1].values_read(), [json!("a")]);
        assert_eq!(operations[2].expected, Some(Expected::Value(json!("a"))));
        assert_eq!(operations[2].input, json!("b"));
    }

    #[test]
    fn histories_no_harness_writes_are_refused() {
        use EventType::*;
        let call = |time, process| event(time, process, Invoke, "write", json!(1));
        let cases: [(&str, usize, Vec<Event>); 7] = [
            ("time", 2, vec![call(2, 0), call(1, 1)]),
            ("in flight", 2, vec![call(1, 0), call(2, 0)]),
            ("did not invoke", 1, vec![event(1, 0, Ok, "write", json!(1))]),
            ("another", 2, vec![call(1, 0), event(2, 0, Ok, "read", json!(1))]),
            ("unknown outcome", 3, vec![call(1, 0), event(2, 0, Info, "write", json!(1)), call(3, 0)]),
            ("[old, new]", 1, vec![event(1, 0, Invoke, "cas", json!([1]))]),
            ("[old, new]", 1, vec![event(1, 0, Invoke, "cas", json!(1))]),
        ];
        for (what, line, events) in cases {
            let error = pair(&events).unwrap_err();
            assert!(error.message.contains(what), "{error}");
            assert_eq!(error.line, line, "{error}");
        }
    }
}
