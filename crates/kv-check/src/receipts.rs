//! The receipt-assisted check: the server names the serialization point of every answer, so that a history of any
//! size is verified in *n log n* instead of searched.
//!
//! A receipt of a strong namespace says `{"strong": {"term": 2, "index": 90, "revision": 41}}`, perhaps with a
//! `group`: the answer was given by the state after the namespace's 41st change, which the log held up to index 90. If
//! all receipts are honest, these points are a linearization of the whole namespace, all keys together. So the checker
//! believes none of them, and looks for a contradiction:
//!
//! - every change has a revision of its own, and the same as its answer;
//! - revisions and log indices order the changes alike, terms never go back, and reads stand between the right ones;
//! - an operation called after another one returned has no lower point;
//! - what was read, or found by a cas, is the newest change of that key up to the point, with value and revision;
//! - a cas took effect exactly if its condition held at its point.
//!
//! It trusts nothing, but it sees only what receipts tell: that the values alone are linearizable is
//! [`crate::linear`]'s independent proof.

use crate::linear::{by_key, describe};
use crate::operation::Expected;
use crate::{Function, Json, Operation, Outcome};
use std::collections::{BTreeMap, BTreeSet};

/// What the receipts of a history are worth.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Answers with a receipt that were examined.
    pub examined: usize,
    /// Answers without one: not judged.
    pub without: usize,
    /// Contradictions, at most [`MAX_FINDINGS`] of each kind.
    pub findings: Vec<Finding>,
    /// All contradictions.
    pub contradictions: usize,
}

/// Of each kind that many are kept.
pub const MAX_FINDINGS: usize = 10;

/// Something receipts say that cannot be.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What kind of contradiction.
    pub kind: Kind,
    /// The key of the operation.
    pub key: String,
    /// Indices of the invocations that contradict each other.
    pub indices: Vec<u64>,
    /// The contradiction in words, with the operations.
    pub text: String,
}

/// The kinds of contradictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A receipt that names no point, or a point that its own answer contradicts.
    Malformed,
    /// Two changes share a revision.
    Shared,
    /// Revisions, log indices and terms do not go together.
    Order,
    /// A point lies before one that was known when the operation was called.
    RealTime,
    /// What was read is not the newest change up to the point.
    Read,
    /// A cas whose condition did not hold took effect, or one whose condition held did not.
    Condition,
}

/// The point an answer claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    group: u64,
    term: u64,
    index: u64,
    revision: u64,
}

impl Point {
    /// The point of a receipt; none where it claims none, an error where it is not what a receipt is.
    fn of(receipt: &Json) -> Result<Option<Point>, String> {
        let Some(strong) = receipt.get("strong") else { return Ok(None) };
        let number = |name: &str| {
            let number = strong.get(name).and_then(Json::as_u64);
            number.ok_or_else(|| format!("its receipt names no {name}"))
        };
        let group = if strong.get("group").is_some() { number("group")? } else { 0 };
        Ok(Some(Point {
            group,
            term: number("term")?,
            index: number("index")?,
            revision: number("revision")?,
        }))
    }
}

/// An answer with its point.
#[derive(Clone, Copy)]
struct Answer<'a> {
    op: &'a Operation,
    point: Point,
    /// Whether it changed the namespace at its point; else it looked.
    changes: bool,
    /// Whether it promises to be as new as anything known when it was called.
    fresh: bool,
}

/// Examines the receipts of operations of strong namespaces.
pub fn check(operations: &[Operation]) -> Account {
    let mut account = Account::default();
    let mut namespaces: BTreeMap<(&str, u64), Vec<Answer<'_>>> = BTreeMap::new();
    for op in operations.iter().filter(|op| op.answered()) {
        match op.receipt.as_ref().map_or(Ok(None), Point::of) {
            Ok(None) => account.without += 1,
            Ok(Some(point)) => {
                account.examined += 1;
                let delivered = op.receipt.as_ref().and_then(|receipt| receipt.get("delivered"));
                let fresh = delivered.and_then(Json::as_str).is_none_or(|word| word == "linearizable");
                // A delete that found nothing changed nothing.
                let changes =
                    op.ok() && op.f.mutates() && (op.f != Function::Delete || op.revision.is_some());
                if changes && op.revision.is_some_and(|revision| revision != point.revision) {
                    let text = format!("its receipt says revision {}:\n  {}", point.revision, describe(op));
                    account.find(Kind::Malformed, &[op], text);
                }
                namespaces.entry((&op.ns, point.group)).or_default().push(Answer {
                    op,
                    point,
                    changes,
                    fresh,
                });
            }
            Err(why) => {
                account.examined += 1;
                account.find(Kind::Malformed, &[op], format!("{why}:\n  {}", describe(op)));
            }
        }
    }
    for answers in namespaces.values_mut() {
        order(answers, &mut account);
        real_time(answers, &mut account);
    }
    // What a key of a set, a list or a counter held is the sum of its changes, which other checkers judge.
    let composite: BTreeSet<&str> = operations
        .iter()
        .filter(|op| matches!(op.f, Function::Add | Function::Append))
        .map(|op| op.ns.as_str())
        .collect();
    for ((ns, _), operations) in by_key(operations) {
        if !composite.contains(ns) {
            contents(&operations, &mut account);
        }
    }
    account
}

impl Account {
    fn find(&mut self, kind: Kind, operations: &[&Operation], text: String) {
        self.contradictions += 1;
        if self.findings.iter().filter(|finding| finding.kind == kind).count() < MAX_FINDINGS {
            let mut indices: Vec<u64> = operations.iter().map(|op| op.index).collect();
            indices.sort_unstable();
            let key = operations.first().map(|op| op.key.clone()).unwrap_or_default();
            self.findings.push(Finding { kind, key, indices, text });
        }
    }

    fn find_pair(&mut self, kind: Kind, what: &str, one: &Operation, other: &Operation) {
        self.find(kind, &[one, other], format!("{what}:\n  {}\n  {}", describe(one), describe(other)));
    }
}

/// Revisions, indices and terms of all points order them alike.
fn order(answers: &mut [Answer<'_>], account: &mut Account) {
    // By log, changes before those who look at the same index.
    answers.sort_by_key(|answer| (answer.point.index, !answer.changes, answer.point.revision));
    let mut newest: Option<Answer<'_>> = None; // change with the highest revision so far
    let mut latest: Option<Answer<'_>> = None; // with the highest term so far
    for answer in answers.iter() {
        if let Some(before) = newest {
            if answer.changes && answer.point.revision == before.point.revision {
                account.find_pair(Kind::Shared, "two changes with one revision", answer.op, before.op);
            } else if answer.point.revision < before.point.revision
                && (answer.op.f == Function::Read || answer.point.index > before.point.index)
            {
                // (Several operations of one log entry may share its index; a read has seen them all.)
                let what = "log index and revision order them differently";
                account.find_pair(Kind::Order, what, answer.op, before.op);
            }
        }
        if let Some(before) = latest.filter(|before| before.point.term > answer.point.term) {
            account.find_pair(Kind::Order, "a later log index with an earlier term", answer.op, before.op);
        }
        if answer.changes {
            newest = newest.filter(|before| before.point.revision > answer.point.revision).or(Some(*answer));
            latest = latest.filter(|before| before.point.term > answer.point.term).or(Some(*answer));
        }
    }
    // Who looks must not know of changes behind its index; and equal revisions far apart are equal all the same.
    let mut next: Option<Answer<'_>> = None; // change with the lowest revision of a higher index
    let mut at = answers.len();
    while let Some(answer) = at.checked_sub(1).and_then(|last| answers.get(last)) {
        at -= 1;
        if let Some(after) = next.filter(|after| after.point.index > answer.point.index)
            && !answer.changes
            && answer.point.revision >= after.point.revision
        {
            let what = "its revision includes a change that lies behind its log index";
            account.find_pair(Kind::Order, what, answer.op, after.op);
        }
        if answer.changes {
            next = next.filter(|after| after.point.revision < answer.point.revision).or(Some(*answer));
        }
    }
    let mut by_revision: BTreeMap<u64, &Operation> = BTreeMap::new();
    for answer in answers.iter().filter(|answer| answer.changes) {
        if let Some(other) = by_revision.insert(answer.point.revision, answer.op) {
            let known = account
                .findings
                .iter()
                .any(|finding| finding.kind == Kind::Shared && finding.indices.contains(&answer.op.index));
            if !known {
                account.find_pair(Kind::Shared, "two changes with one revision", answer.op, other);
            }
        }
    }
}

/// A later call has no lower point, and a change a higher one.
fn real_time(answers: &mut [Answer<'_>], account: &mut Account) {
    let mut returns: Vec<Answer<'_>> =
        answers.iter().copied().filter(|answer| answer.op.ret.is_some()).collect();
    returns.sort_by_key(|answer| answer.op.ret);
    answers.sort_by_key(|answer| answer.op.call);
    let mut returned = returns.into_iter().peekable();
    let mut highest: Option<Answer<'_>> = None;
    for answer in answers.iter().filter(|answer| answer.fresh) {
        while let Some(before) = returned.next_if(|before| before.op.ret < Some(answer.op.call)) {
            if highest.is_none_or(|highest| place(before.point) > place(highest.point)) {
                highest = Some(before);
            }
        }
        let Some(before) = highest else { continue };
        let behind = answer.point.revision < before.point.revision || answer.point.index < before.point.index;
        let not_after = answer.changes && answer.point.revision == before.point.revision;
        if behind || not_after {
            let what = "the first was called after the second had returned, yet its point is not after it";
            account.find_pair(Kind::RealTime, what, answer.op, before.op);
        }
    }
}

fn place(point: Point) -> (u64, u64) {
    (point.revision, point.index)
}

/// One change of a key.
#[derive(Clone, Copy)]
struct Change<'a> {
    op: &'a Operation,
    /// The value afterwards; `null`: absent.
    value: &'a Json,
}

const ABSENT: &Json = &Json::Null;

/// What was read or found is the newest change of the key up to the point; conditions held or not accordingly.
fn contents(operations: &[&Operation], account: &mut Account) {
    let point = |op: &Operation| {
        let point = op.receipt.as_ref().and_then(|receipt| Point::of(receipt).ok()).flatten();
        point.filter(|_| op.answered())
    };
    // Known changes by revision. Where two claim one revision, that is reported elsewhere.
    let mut changes: BTreeMap<u64, Change<'_>> = BTreeMap::new();
    for op in operations.iter().filter(|op| op.ok()) {
        let revision = point(op).map(|point| point.revision).or(op.revision);
        match (&op.f, revision) {
            (Function::Write | Function::Cas, Some(revision)) => {
                changes.insert(revision, Change { op, value: &op.input });
            }
            (Function::Delete, Some(revision)) if op.revision.is_some() => {
                changes.insert(revision, Change { op, value: ABSENT });
            }
            _ => {}
        }
    }
    // Changes without a receipt may lie anywhere; what a look shows of them tells their revision.
    let untold: Vec<&Operation> = operations
        .iter()
        .copied()
        .filter(|op| match op.outcome {
            Outcome::Info => op.f.mutates(),
            Outcome::Ok => op.f.mutates() && point(op).is_none() && op.revision.is_none(),
            Outcome::Fail => false,
        })
        .collect();
    let mut by_value: BTreeMap<String, Vec<&Operation>> = BTreeMap::new();
    for op in untold {
        let value = if op.f == Function::Delete { ABSENT } else { &op.input };
        by_value.entry(value.to_string()).or_default().push(op);
    }
    // First what looks tell of changes that told nothing themselves, then everything against all that is known.
    let mut looks = Vec::new();
    for op in operations.iter().copied() {
        let seen = match op.f {
            Function::Read if op.ok() => Some(&op.output),
            Function::Cas if op.mismatch() => {
                op.observed.as_ref().map(|found| found.first().unwrap_or(ABSENT))
            }
            _ => None,
        };
        let (Some(point), Some(value)) = (point(op), seen) else { continue };
        looks.push((op, point, value));
        let Some(revision) = op.revision.filter(|_| !value.is_null()) else { continue };
        let author = by_value.get(&value.to_string()).and_then(|authors| authors.first());
        if let Some(author) = author.filter(|author| Some(author.call) <= op.ret) {
            changes.entry(revision).or_insert(Change { op: author, value });
        }
    }
    let deletes = by_value.get(&ABSENT.to_string()).map(Vec::as_slice).unwrap_or_default();
    for (op, point, value) in looks {
        let newest = changes.range(..=point.revision).next_back();
        // A delete of unknown outcome that was called before the look returned may be the reason.
        let may_be_deleted = deletes.iter().any(|delete| Some(delete.call) <= op.ret);
        let fits = match newest {
            None => value.is_null(),
            Some((_, change)) if value.is_null() => change.value.is_null() || may_be_deleted,
            Some((revision, change)) => {
                change.value == value && op.revision.is_none_or(|seen| seen == *revision)
            }
        };
        let may_be_untold = op.revision.is_none()
            && by_value
                .get(&value.to_string())
                .is_some_and(|authors| authors.iter().any(|author| Some(author.call) <= op.ret));
        if !fits && !may_be_untold {
            let what = format!("at revision {} this is not what the key held", point.revision);
            match newest {
                Some((_, change)) => account.find_pair(Kind::Read, &what, op, change.op),
                None => account.find(Kind::Read, &[op], format!("{what}:\n  {}", describe(op))),
            }
        }
    }
    for op in operations.iter().filter(|op| op.f == Function::Cas) {
        let (Some(point), Some(expected)) = (point(op), &op.expected) else { continue };
        // The state that a cas met: before its own change.
        let end = if op.ok() { point.revision } else { point.revision.saturating_add(1) };
        let newest = changes.range(..end).next_back();
        let (revision, value) = newest.map_or((0, ABSENT), |(revision, change)| (*revision, change.value));
        let held = match expected {
            Expected::Value(wanted) => value == wanted,
            Expected::Revision(0) => value.is_null(),
            Expected::Revision(wanted) => revision == *wanted && !value.is_null(),
        };
        // A change that nobody told may have come between.
        let may_have_changed = by_value.values().flatten().any(|untold| Some(untold.call) <= op.ret);
        if held != op.ok() && !may_have_changed {
            let what =
                if op.ok() { "it took effect, but its condition did not hold" } else { "its condition held" };
            match newest {
                Some((_, change)) => account.find_pair(Kind::Condition, what, op, change.op),
                None => account.find(Kind::Condition, &[op], format!("{what}:\n  {}", describe(op))),
            }
        }
    }
}
