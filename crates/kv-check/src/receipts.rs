//! The receipt-assisted check: the server names the serialization point of every answer, so that a history of
//! any size is verified in *n log n* instead of searched.
//!
//! A receipt of a strong namespace says `{"strong": {"term": 2, "index": 90, "revision": 41}}`, perhaps with
//! a `group`: the answer was given by the state after the namespace's 41st change, which the log held up to
//! index 90. If all receipts are honest, these points are a linearization of the whole namespace, all keys
//! together. So the checker believes none of them, and looks for a contradiction:
//!
//! - every change has a revision of its own, and the same as its answer;
//! - revisions and log indices order the changes alike, terms never go back, and reads stand between the
//!   right ones;
//! - an operation called after another one returned has no lower point;
//! - what was read, or found by a cas, is the newest change of that key up to the point, with value and
//!   revision;
//! - a cas took effect exactly if its condition held at its point;
//! - a counter, set or list shows exactly the changes up to the point, a list in their order; of changes of
//!   unknown outcome any part, but once shown they stay.
//!
//! It trusts nothing, but it sees only what receipts tell: that the values alone are linearizable is
//! [`crate::linear`]'s independent proof.

use crate::linear::{by_key, describe};
use crate::operation::Expected;
use crate::{Function, Json, Operation, Outcome, counters};
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

/// What the keys of a namespace hold, and so what a read at a point shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// One value, that of the newest change.
    #[default]
    Value,
    /// The sum of what was added.
    Counter,
    /// The elements that were added.
    Set,
    /// The elements that were appended, in that order.
    List,
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

/// Whether an answer is as new as anything known when it was called: it says so, or says nothing else.
pub(crate) fn promises_linearizable(op: &Operation) -> bool {
    let delivered = op.receipt.as_ref().and_then(|receipt| receipt.get("delivered"));
    delivered.and_then(Json::as_str).is_none_or(|word| word == "linearizable")
}

/// Examines the receipts of operations of strong namespaces, whose keys have this shape.
pub fn check(operations: &[Operation], shape: Shape) -> Account {
    let mut account = Account::default();
    let mut namespaces: BTreeMap<(&str, u64), Vec<Answer<'_>>> = BTreeMap::new();
    for op in operations.iter().filter(|op| op.answered()) {
        match op.receipt.as_ref().map_or(Ok(None), Point::of) {
            Ok(None) => account.without += 1,
            Ok(Some(point)) => {
                account.examined += 1;
                let fresh = promises_linearizable(op);
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
    for operations in by_key(operations).into_values() {
        match shape {
            Shape::Value => contents(&operations, &mut account),
            Shape::Counter | Shape::Set | Shape::List => sums(&operations, shape, &mut account),
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
    // Who looks must not know of changes behind its index; and equal revisions far apart are equal all the
    // same.
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

/// The point of an answer, if it names one.
fn point_of(op: &Operation) -> Option<Point> {
    let point = op.receipt.as_ref().and_then(|receipt| Point::of(receipt).ok()).flatten();
    point.filter(|_| op.answered())
}

/// One change of a key.
#[derive(Clone, Copy)]
struct Change<'a> {
    op: &'a Operation,
    /// The value afterwards; `null`: absent.
    value: &'a Json,
}

const ABSENT: &Json = &Json::Null;

/// What was read or found is the newest change of the key up to the point; conditions held or not
/// accordingly.
fn contents(operations: &[&Operation], account: &mut Account) {
    // Known changes by revision. Where two claim one revision, that is reported elsewhere.
    let mut changes: BTreeMap<u64, Change<'_>> = BTreeMap::new();
    for op in operations.iter().filter(|op| op.ok()) {
        let revision = point_of(op).map(|point| point.revision).or(op.revision);
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
            Outcome::Ok => op.f.mutates() && point_of(op).is_none() && op.revision.is_none(),
            Outcome::Fail => false,
        })
        .collect();
    let mut by_value: BTreeMap<String, Vec<&Operation>> = BTreeMap::new();
    for op in untold {
        let value = if op.f == Function::Delete { ABSENT } else { &op.input };
        by_value.entry(value.to_string()).or_default().push(op);
    }
    // First what looks tell of changes that told nothing themselves, then everything against all that is
    // known.
    let mut looks = Vec::new();
    for op in operations.iter().copied() {
        let seen = match op.f {
            Function::Read if op.ok() => Some(&op.output),
            Function::Cas if op.mismatch() => {
                op.observed.as_ref().map(|found| found.first().unwrap_or(ABSENT))
            }
            _ => None,
        };
        let (Some(point), Some(value)) = (point_of(op), seen) else { continue };
        looks.push((op, point, value));
        let Some(revision) = op.revision.filter(|_| !value.is_null()) else { continue };
        let author = by_value.get(&value.to_string()).and_then(|authors| authors.first());
        if let Some(author) = author.filter(|author| Some(author.call) <= op.ret) {
            changes.entry(revision).or_insert(Change { op: author, value });
        }
    }
    looked(&looks, &changes, &by_value, account);
    compared(operations, &changes, &by_value, account);
}

/// A look shows the newest change up to its point.
fn looked(
    looks: &[(&Operation, Point, &Json)],
    changes: &BTreeMap<u64, Change<'_>>,
    by_value: &BTreeMap<String, Vec<&Operation>>,
    account: &mut Account,
) {
    let deletes = by_value.get(&ABSENT.to_string()).map(Vec::as_slice).unwrap_or_default();
    for (op, point, value) in looks.iter().copied() {
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
}

/// A condition held exactly if the change it led to took effect.
fn compared(
    operations: &[&Operation],
    changes: &BTreeMap<u64, Change<'_>>,
    by_value: &BTreeMap<String, Vec<&Operation>>,
    account: &mut Account,
) {
    for op in operations.iter().filter(|op| op.f == Function::Cas) {
        let (Some(point), Some(expected)) = (point_of(op), &op.expected) else { continue };
        // The state that a cas met: before its own change.
        let end = if op.ok() { point.revision } else { point.revision.saturating_add(1) };
        let newest = changes.range(..end).next_back();
        let (revision, value) = newest.map_or((0, ABSENT), |(revision, change)| (*revision, change.value));
        let held = match expected {
            Expected::Value(wanted) => value == wanted,
            Expected::Revision(0) => value.is_null(),
            Expected::Revision(wanted) => revision == *wanted && !value.is_null(),
        };
        // A change that was not reported may have come between.
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

/// The changes of a key that is the sum of them.
struct Parts<'a> {
    /// Those that told their revision, by it.
    told: Vec<(u64, &'a Operation)>,
    /// Those that may lie anywhere, if they happened at all, by call.
    untold: Vec<&'a Operation>,
}

impl<'a> Parts<'a> {
    /// How many of those that told lie up to the revision.
    fn up_to(&self, revision: u64) -> usize {
        self.told.partition_point(|(at, _)| *at <= revision)
    }

    /// Those of the others that may have happened before the read returned.
    fn open(&self, read: &Operation) -> &[&'a Operation] {
        self.untold.get(..self.untold.partition_point(|op| Some(op.call) <= read.ret)).unwrap_or_default()
    }
}

/// A read of a counter, set or list shows exactly the changes up to its point. Keys that are changed in
/// another way than by adding to them are not judged.
fn sums(operations: &[&Operation], shape: Shape, account: &mut Account) {
    let grows = if shape == Shape::List { Function::Append } else { Function::Add };
    let changes: Vec<&Operation> =
        operations.iter().copied().filter(|op| op.f.mutates() && op.outcome != Outcome::Fail).collect();
    if changes.iter().any(|op| op.f != grows) {
        return;
    }
    let mut parts = Parts { told: Vec::new(), untold: Vec::new() };
    for op in changes {
        match point_of(op).map(|point| point.revision).or(op.revision).filter(|_| op.ok()) {
            Some(revision) => parts.told.push((revision, op)),
            None => parts.untold.push(op),
        }
    }
    parts.told.sort_by_key(|(revision, _)| *revision);
    parts.untold.sort_by_key(|op| op.call);
    let mut reads: Vec<(u64, &Operation)> = operations
        .iter()
        .filter(|op| op.f == Function::Read && op.ok())
        .filter_map(|op| Some((point_of(op)?.revision, *op)))
        .collect();
    reads.sort_by_key(|(revision, _)| *revision);
    for (revision, read) in &reads {
        last_change(*revision, read, &parts, account);
    }
    match shape {
        Shape::Counter => counted(&reads, &parts, account),
        _ => elements(&reads, &parts, shape == Shape::List, account),
    }
}

/// The revision of what was read is that of the last change up to the point.
fn last_change(revision: u64, read: &Operation, parts: &Parts<'_>, account: &mut Account) {
    let Some(seen) = read.revision.filter(|_| !read.output.is_null()) else { return };
    let last = parts.up_to(revision).checked_sub(1).and_then(|last| parts.told.get(last));
    match last {
        Some((_, later)) if last.is_some_and(|(last, _)| *last > seen) => {
            let what = format!("at revision {revision} its last change is not the one at {seen}");
            account.find_pair(Kind::Read, &what, read, later);
        }
        _ if seen > revision
            || (last.is_none_or(|(last, _)| *last != seen) && parts.open(read).is_empty()) =>
        {
            let text = format!("nothing was changed at revision {seen}:\n  {}", describe(read));
            account.find(Kind::Read, &[read], text);
        }
        _ => {}
    }
}

fn counted(reads: &[(u64, &Operation)], parts: &Parts<'_>, account: &mut Account) {
    let delta = |op: &Operation| op.input.as_i64().map(i128::from);
    let told: Option<Vec<i128>> = parts.told.iter().map(|(_, op)| delta(op)).collect();
    let untold: Option<Vec<i128>> = parts.untold.iter().map(|op| delta(op)).collect();
    let (Some(told), Some(untold)) = (told, untold) else { return }; // no numbers: nothing can be said
    let running = |deltas: &mut dyn Iterator<Item = i128>| -> Vec<i128> {
        let mut sum = 0;
        let mut add = |delta| {
            sum += delta;
            sum
        };
        std::iter::once(0).chain(deltas.map(&mut add)).collect()
    };
    let sums = running(&mut told.into_iter());
    let ups = running(&mut untold.iter().map(|delta| *delta.max(&0)));
    let downs = running(&mut untold.iter().map(|delta| *delta.min(&0)));
    let at = |sums: &[i128], count: usize| sums.get(count).copied().unwrap_or_default();
    // What the read before showed beyond what had told: it stays, and only more of the same can come on top.
    let mut before: Option<(u64, i128, &Operation)> = None;
    for (revision, read) in reads {
        let known = at(&sums, parts.up_to(*revision));
        let open = parts.open(read).len();
        let (down, up) = (at(&downs, open), at(&ups, open));
        let Some(beyond) = counters::shown(read).map(|shown| i128::from(shown) - known) else {
            let text = format!("it shows no number:\n  {}", describe(read));
            account.find(Kind::Read, &[read], text);
            continue;
        };
        if beyond < down || beyond > up {
            let open = if open == 0 { String::new() } else { format!(", and {open} of unknown outcome") };
            let what = format!("at revision {revision} the sum of all changes is {known}{open}");
            match parts.up_to(*revision).checked_sub(1).and_then(|last| parts.told.get(last)) {
                Some((_, last)) => account.find_pair(Kind::Read, &what, read, last),
                None => account.find(Kind::Read, &[read], format!("{what}:\n  {}", describe(read))),
            }
        } else if let Some((earlier, other, one)) = before {
            let (least, most) = if earlier == *revision { (0, 0) } else { (down, up) };
            if beyond - other < least || beyond - other > most {
                let what = format!("revision {revision} does not follow from what revision {earlier} showed");
                account.find_pair(Kind::Read, &what, read, one);
            }
        }
        before = Some((*revision, beyond, read));
    }
}

/// Whether everything that was shown is shown again; in a list, before anything else.
fn stays(shown: &[String], later: &[String], ordered: bool) -> bool {
    if ordered {
        return later.starts_with(shown);
    }
    let later: BTreeSet<&String> = later.iter().collect();
    shown.iter().all(|element| later.contains(element))
}

fn elements(reads: &[(u64, &Operation)], parts: &Parts<'_>, ordered: bool, account: &mut Account) {
    // By element: the first revision at which it was added, and whether that was the only time.
    let mut first: BTreeMap<String, (u64, bool)> = BTreeMap::new();
    for (revision, op) in &parts.told {
        first.entry(op.input.to_string()).and_modify(|(_, once)| *once = false).or_insert((*revision, true));
    }
    let mut opened: BTreeMap<String, u64> = BTreeMap::new();
    for op in &parts.untold {
        opened.entry(op.input.to_string()).or_insert(op.call);
    }
    let mut revisions: Vec<u64> = first.values().map(|(revision, _)| *revision).collect();
    revisions.sort_unstable();
    let author = |element: &Json| parts.told.iter().find(|(_, op)| op.input == *element);
    // What the read before showed: a later one shows it too, a list at its beginning. This holds what is of
    // unknown outcome.
    let mut before: Option<(u64, Vec<String>, &Operation)> = None;
    for (revision, read) in reads {
        let shown: Vec<String> = read.values_read().iter().map(Json::to_string).collect();
        let mut known: BTreeSet<&str> = BTreeSet::new();
        let mut highest = 0;
        for (name, element) in shown.iter().zip(read.values_read()) {
            let told = first.get(name).filter(|(at, _)| at <= revision);
            let open = opened.get(name).is_some_and(|call| Some(*call) <= read.ret);
            if told.is_some() {
                known.insert(name);
            } else if !open {
                let what = format!("at revision {revision} {name} had not been added");
                match author(element) {
                    Some((_, later)) => account.find_pair(Kind::Read, &what, read, later),
                    None => account.find(Kind::Read, &[read], format!("{what}:\n  {}", describe(read))),
                }
            }
            if let Some((at, true)) = told.filter(|_| ordered && !open) {
                if *at < highest {
                    let what = format!("{name} was appended at revision {at}, and stands behind a later one");
                    match author(element) {
                        Some((_, op)) => account.find_pair(Kind::Read, &what, read, op),
                        None => account.find(Kind::Read, &[read], what),
                    }
                }
                highest = highest.max(*at);
            }
        }
        if known.len() < revisions.partition_point(|at| at <= revision) {
            let missing = parts.told.iter().take(parts.up_to(*revision));
            let missing =
                missing.map(|(_, op)| *op).find(|op| !known.contains(op.input.to_string().as_str()));
            if let Some(missing) = missing {
                let what = format!("at revision {revision} it was there, and is not shown");
                account.find_pair(Kind::Read, &what, read, missing);
            }
        } else if let Some((earlier, other, one)) = &before
            && (!stays(other, &shown, ordered) || (earlier == revision && shown.len() != other.len()))
        {
            let what = format!("revision {revision} does not follow from what revision {earlier} showed");
            account.find_pair(Kind::Read, &what, read, one);
        }
        before = Some((*revision, shown, read));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_history::{History, absent, values};
    use serde_json::json;

    fn found(history: History, shape: Shape) -> Vec<Kind> {
        check(&history.operations(), shape).findings.iter().map(|finding| finding.kind).collect()
    }

    /// Adds at revisions 2 and 5, between them other keys of the namespace.
    fn counted() -> History {
        History::new().add_number(1..9, 10).revision(2).point(2).add_number(5..9, 7).revision(5).point(5)
    }

    #[test]
    fn a_counter_is_the_sum_up_to_its_point() {
        let read = |at: u64, shown: Json| found(counted().read(6..8, shown).point(at), Shape::Counter);
        for (at, shown) in [(2, json!(10)), (4, json!(10)), (5, json!(17)), (9, json!(17)), (1, absent())] {
            assert_eq!(read(at, shown), [], "{at}");
        }
        // All of these lie within the bounds that times alone give.
        for (at, shown) in [(4, json!(17)), (5, json!(10)), (9, json!(10))] {
            assert_eq!(read(at, shown), [Kind::Read], "{at}");
        }
    }

    #[test]
    fn adds_of_unknown_outcome_count_once_and_stay() {
        let open = || counted().unknown_add_number(1, 3).unknown_add_number(20, 100);
        let reads = |first: i64, second: i64| {
            let history = open().read(6..7, json!(first)).point(4).read(10..11, json!(second)).point(6);
            found(history, Shape::Counter)
        };
        assert_eq!((reads(10, 17), reads(13, 20), reads(10, 20)), (vec![], vec![], vec![]));
        // It was there and is gone; it is not there twice; it began after the read.
        for (first, second) in [(13, 17), (13, 23), (10, 117), (16, 20)] {
            assert!(!reads(first, second).is_empty(), "{first} {second}");
        }
        // One revision is one state.
        let twice = |second: i64| {
            found(open().read(6..7, json!(10)).point(4).read(6..7, json!(second)).point(4), Shape::Counter)
        };
        assert_eq!((twice(10), twice(13)), (vec![], vec![Kind::Read]));
    }

    fn listed() -> History {
        let two =
            History::new().append(1..9, "a").revision(2).point(2).append(1..9, "b").revision(5).point(5);
        two.unknown_append(1, "x").failed_append(1..2, "no").append(20..21, "late").revision(8).point(8)
    }

    #[test]
    fn a_list_shows_what_was_appended_up_to_its_point_in_that_order() {
        let read =
            |at: u64, shown: &[&str]| found(listed().read(6..10, values(shown)).point(at), Shape::List);
        for (at, shown) in
            [(2, vec!["a"]), (4, vec!["a", "x"]), (5, vec!["x", "a", "b"]), (5, vec!["a", "b"])]
        {
            assert_eq!(read(at, &shown), [], "{at} {shown:?}");
        }
        assert_eq!(found(listed().read(6..10, absent()).point(1), Shape::List), []);
        for (at, shown) in [
            (2, vec!["a", "b"]),
            (5, vec!["a"]),
            (5, vec!["a", "x"]),
            (5, vec!["b", "a"]),
            (5, vec!["a", "b", "no"]),
            (5, vec!["a", "b", "late"]),
            (1, vec!["a"]),
        ] {
            assert_eq!(read(at, &shown), [Kind::Read], "{at} {shown:?}");
        }
        let then = |second: &[&str], at| {
            let first = listed().read(6..8, values(&["a", "x"])).point(3);
            found(first.read(6..8, values(second)).point(at), Shape::List)
        };
        assert_eq!((then(&["a", "x"], 3), then(&["a", "x"], 4)), (vec![], vec![]));
        assert_eq!((then(&["a"], 3), then(&["a"], 4)), (vec![Kind::Read], vec![Kind::Read]));
        // As long as before or longer, and yet what was shown is gone, or stands elsewhere.
        let open = || listed().unknown_append(1, "y");
        for (second, kept) in [(["a", "x", "y"], true), (["a", "y", "x"], false), (["y", "a", "x"], false)] {
            let history =
                open().read(6..8, values(&["a", "x"])).point(3).read(6..8, values(&second)).point(4);
            assert_eq!(found(history, Shape::List).is_empty(), kept, "{second:?}");
        }
        let gone = open().read(6..8, values(&["a", "x"])).point(3).read(6..8, values(&["a", "y"])).point(4);
        assert_eq!(found(gone, Shape::List), [Kind::Read]);
    }

    #[test]
    fn a_set_shows_what_was_added_up_to_its_point() {
        let set = || {
            let two = History::new().add(1..9, "a").revision(2).point(2).add(1..9, "b").revision(5).point(5);
            two.unknown_add(1, "x").add(1..9, "a").revision(6).point(6)
        };
        let read = |at: u64, shown: &[&str]| found(set().read(6..10, values(shown)).point(at), Shape::Set);
        for (at, shown) in [(2, vec!["a"]), (5, vec!["b", "x", "a"]), (7, vec!["b", "a"])] {
            assert_eq!(read(at, &shown), [], "{at} {shown:?}");
        }
        for (at, shown) in [(4, vec!["b", "a"]), (5, vec!["b"]), (7, vec!["x"])] {
            assert!(!read(at, &shown).is_empty(), "{at} {shown:?}");
        }
        // What is of unknown outcome stays once it was shown; another one in its place is no excuse.
        let open = || set().unknown_add(1, "y").read(6..8, values(&["a", "x"])).point(3);
        for (second, kept) in [(vec!["x", "a"], true), (vec!["y", "x", "a"], true), (vec!["a", "y"], false)] {
            assert_eq!(
                found(open().read(6..8, values(&second)).point(4), Shape::Set).is_empty(),
                kept,
                "{second:?}"
            );
        }
    }

    #[test]
    fn the_revision_of_what_was_read_is_that_of_its_last_change() {
        let read = |seen: u64, at: u64, shown: i64| {
            found(counted().read(6..8, json!(shown)).revision(seen).point(at), Shape::Counter)
        };
        assert_eq!((read(2, 4, 10), read(5, 5, 17), read(5, 7, 17)), (vec![], vec![], vec![]));
        for (seen, at, shown) in [(2, 5, 17), (3, 4, 10), (1, 3, 10), (6, 5, 17)] {
            assert_eq!(read(seen, at, shown), [Kind::Read], "{seen} {at}");
        }
        // A change of unknown outcome may be the last one.
        let open = counted().unknown_add_number(1, 3).read(6..8, json!(13)).revision(3).point(4);
        assert_eq!(found(open, Shape::Counter), []);
    }
}
