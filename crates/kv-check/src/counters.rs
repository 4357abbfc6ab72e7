//! Counters: every read lies between what must have been added and what may have been, and reads agree with
//! each other.
//!
//! Three conditions, each necessary for linearizability, none of them sufficient together: which of several
//! open adds a read contains is a subset sum, and this does not search for it. So a counter is never called
//! linearizable by this account; where receipts name points, [`crate::receipts`] knows which adds a read must
//! contain, and leaves no such room.
//!
//! - By itself, a read shows every add that was acknowledged before it was called, none that was called after
//!   it returned or was refused, and any part of the others; each at most once.
//! - What an earlier read contained, a later one contains: between them lies at most what may have been added
//!   since.
//! - Where nothing is ever taken away, a later read shows at least what any earlier one did and, on top of
//!   it, what was called after that one had returned and acknowledged before this one was called.

use crate::linear::by_key;
use crate::{Function, Json, Operation, Outcome};
use std::collections::BTreeMap;

/// A read outside its bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct OutOfBounds {
    /// The key.
    pub key: String,
    /// Index of the read.
    pub index: u64,
    /// What it showed.
    pub read: Json,
    /// The least it could have shown.
    pub least: i64,
    /// The most it could have shown.
    pub most: i64,
    /// Indices of the adds that had surely taken effect, if nothing else is open the only explanation.
    pub adds: Vec<u64>,
}

/// A read that does not go together with one that had returned before it was called.
#[derive(Clone, Debug, PartialEq)]
pub struct Shrunk {
    /// The key.
    pub key: String,
    /// Index of the earlier read.
    pub earlier: u64,
    /// Index of the later one.
    pub index: u64,
    /// What the later one showed.
    pub read: i64,
    /// The least it could have shown, after the earlier one.
    pub least: i64,
    /// The most it could have shown, after the earlier one.
    pub most: i64,
}

/// The account of the counters of a history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Acknowledged adds.
    pub acknowledged: usize,
    /// Adds of unknown outcome.
    pub unknown: usize,
    /// Successful reads.
    pub reads: usize,
    /// Reads whose bounds were equal: there was one right answer.
    pub exact: usize,
    /// Reads outside their bounds. The promise is: none.
    pub out_of_bounds: Vec<OutOfBounds>,
    /// Reads that were called after another had returned: compared with it.
    pub compared: usize,
    /// Those of them that do not follow from it. The promise is: none.
    pub shrunk: Vec<Shrunk>,
    /// Adds (by index) of something that is no integer: not judged.
    pub no_numbers: Vec<u64>,
}

/// What a read showed, as a number: a counter that was never added to may be absent.
pub(crate) fn shown(read: &Operation) -> Option<i64> {
    if read.output.is_null() { Some(0) } else { read.output.as_i64() }
}

/// Accounts for operations `add` (of integers) and `read` of counters, each key a counter that begins at 0.
pub fn account(operations: &[Operation]) -> Account {
    let mut account = Account::default();
    for ((_, key), operations) in by_key(operations) {
        let mut adds: Vec<(&Operation, i64)> = Vec::new();
        let no_numbers = account.no_numbers.len();
        for add in
            operations.iter().copied().filter(|op| op.f == Function::Add && op.outcome != Outcome::Fail)
        {
            match add.input.as_i64() {
                Some(delta) => adds.push((add, delta)),
                None => account.no_numbers.push(add.index),
            }
            account.acknowledged += usize::from(add.ok());
            account.unknown += usize::from(add.outcome == Outcome::Info);
        }
        let sums = Sums::new(&adds);
        let reads: Vec<&Operation> =
            operations.iter().copied().filter(|op| op.f == Function::Read && op.ok()).collect();
        for read in &reads {
            let (least, most) = sums.bounds(read);
            account.reads += 1;
            account.exact += usize::from(least == most);
            if shown(read).is_none_or(|value| value < least || value > most) {
                let before = adds.iter().filter(|(add, _)| add.ok() && add.ended_before(read.call));
                account.out_of_bounds.push(OutOfBounds {
                    key: key.to_owned(),
                    index: read.index,
                    read: read.output.clone(),
                    least,
                    most,
                    adds: before.map(|(add, _)| add.index).collect(),
                });
            }
        }
        if account.no_numbers.len() == no_numbers {
            compare(key, &adds, &sums, &reads, &mut account);
        }
    }
    account
}

/// Compares each read with those that had returned before it was called.
fn compare(key: &str, adds: &[(&Operation, i64)], sums: &Sums, reads: &[&Operation], account: &mut Account) {
    // (What is no number is out of bounds already.)
    let mut calls: Vec<(&Operation, i64)> =
        reads.iter().filter_map(|read| Some((*read, shown(read)?))).collect();
    let mut returns = calls.clone();
    calls.sort_by_key(|(read, _)| read.call);
    returns.retain(|(read, _)| read.ret.is_some());
    returns.sort_by_key(|(read, _)| read.ret);
    let mut acknowledged: Vec<(&Operation, i64)> =
        adds.iter().copied().filter(|(add, _)| add.ok() && add.ret.is_some()).collect();
    acknowledged.sort_by_key(|(add, _)| add.ret);

    let grows = adds.iter().all(|(_, delta)| *delta >= 0);
    let mut returns = returns.into_iter().peekable();
    let mut acknowledged = acknowledged.into_iter().peekable();
    let mut owed = Owed::default();
    // Of the reads that have returned the one that was called last: it leaves the least open.
    let mut latest: Option<(&Operation, i64)> = None;
    for (read, value) in calls {
        // Returns and acknowledgements before the call, in the order of time; of one moment the read returns
        // first, so that it owes no more than it must.
        loop {
            let returned = returns.peek().and_then(|(before, _)| before.ret).filter(|ret| *ret < read.call);
            let added = acknowledged.peek().and_then(|(add, _)| add.ret).filter(|ret| *ret < read.call);
            match (returned, added) {
                (None, None) => break,
                (Some(returned), added) if added.is_none_or(|added| returned <= added) => {
                    let Some((before, value)) = returns.next() else { break };
                    owed.returned(before, value);
                    latest = latest.filter(|(other, _)| other.call > before.call).or(Some((before, value)));
                }
                _ => {
                    let Some((add, delta)) = acknowledged.next() else { break };
                    owed.added(add, delta);
                }
            }
        }
        let Some((before, had)) = latest else { continue };
        account.compared += 1;
        let (down, up) = sums.between(before, read);
        let (least, most) = (had.saturating_add(down), had.saturating_add(up));
        let mut worst = (before, least, most);
        if grows && let Some((before, least)) = owed.most().filter(|(_, owed)| *owed > least) {
            worst = (before, least, most);
        }
        let (earlier, least, most) = worst;
        if value < least || value > most {
            let (key, earlier) = (key.to_owned(), earlier.index);
            account.shrunk.push(Shrunk { key, earlier, index: read.index, read: value, least, most });
        }
    }
}

/// What a read that is called now must show at least, because of the reads that have returned, where adds
/// only add.
///
/// Each of these owes what it showed and the adds that were called after it returned and are acknowledged by
/// now. An add counts for all that returned before its call, so of two reads the earlier one's debt grows at
/// least as fast: a later read matters only while its debt is higher. Kept are therefore those with ever
/// higher debts, as differences.
#[derive(Default)]
struct Owed<'a> {
    /// By the return of a read: by how much its debt is higher than that of the one before.
    steps: BTreeMap<(u64, u64), (i64, &'a Operation)>,
    /// The highest debt: the sum of the steps.
    total: i64,
}

impl<'a> Owed<'a> {
    fn returned(&mut self, read: &'a Operation, value: i64) {
        let Some(ret) = read.ret else { return };
        if self.steps.is_empty() || value > self.total {
            self.steps.insert((ret, read.index), (value.saturating_sub(self.total), read));
            self.total = value;
        }
    }

    fn added(&mut self, add: &Operation, delta: i64) {
        // The debts of reads that had returned before the call grow; those after them shrink relative to
        // them.
        let Some(mut first) = self.steps.first_entry().filter(|first| first.key().0 < add.call) else {
            return;
        };
        first.get_mut().0 = first.get().0.saturating_add(delta);
        self.total = self.total.saturating_add(delta);
        let mut rest = delta;
        while rest > 0 {
            let Some((at, step)) =
                self.steps.range((add.call, 0)..).next().map(|(at, (step, _))| (*at, *step))
            else {
                return;
            };
            if step > rest {
                if let Some((step, _)) = self.steps.get_mut(&at) {
                    *step -= rest;
                }
            } else {
                self.steps.remove(&at);
            }
            self.total -= rest.min(step);
            rest -= rest.min(step);
        }
    }

    /// The highest debt, and who has it.
    fn most(&self) -> Option<(&'a Operation, i64)> {
        self.steps.last_key_value().map(|(_, (_, read))| (*read, self.total))
    }
}

/// Running sums, so that each read costs a search and not a walk.
struct Sums {
    /// By return of acknowledged adds: what has surely been added, and of that the increments and the
    /// decrements.
    sure: Vec<(u64, i64, i64)>,
    /// By call of all adds: the increments and the decrements that may have been.
    begun: Vec<(u64, i64, i64)>,
}

impl Sums {
    fn new(adds: &[(&Operation, i64)]) -> Sums {
        let sure =
            adds.iter().filter(|(add, _)| add.ok()).filter_map(|(add, delta)| Some((add.ret?, *delta)));
        let begun = adds.iter().map(|(add, delta)| (add.call, *delta));
        Sums { sure: running(sure.collect()), begun: running(begun.collect()) }
    }

    fn bounds(&self, read: &Operation) -> (i64, i64) {
        let (sure_up, sure_down) = until(&self.sure, read.call);
        let (up, down) = self.begun_by(read);
        (sure_up.saturating_add(down), up.saturating_add(sure_down))
    }

    /// What may have been begun by the return of the read. Calls at that moment may come before it.
    fn begun_by(&self, read: &Operation) -> (i64, i64) {
        until(&self.begun, read.ret.unwrap_or(u64::MAX).saturating_add(1))
    }

    /// The most that may have been taken away and added between two reads: all that was begun by the return
    /// of the later one, but for what was acknowledged before the earlier one was called, which that
    /// contains.
    fn between(&self, earlier: &Operation, later: &Operation) -> (i64, i64) {
        let (sure_up, sure_down) = until(&self.sure, earlier.call);
        let (up, down) = self.begun_by(later);
        (down.saturating_sub(sure_down), up.saturating_sub(sure_up))
    }
}

fn running(mut moments: Vec<(u64, i64)>) -> Vec<(u64, i64, i64)> {
    moments.sort_unstable();
    let mut sums = (0i64, 0i64);
    let mut add = |(at, delta): (u64, i64)| {
        sums = (sums.0.saturating_add(delta.max(0)), sums.1.saturating_add(delta.min(0)));
        (at, sums.0, sums.1)
    };
    moments.drain(..).map(&mut add).collect()
}

/// Sums of the increments and of the decrements before the moment.
fn until(sums: &[(u64, i64, i64)], moment: u64) -> (i64, i64) {
    let count = sums.partition_point(|(at, ..)| *at < moment);
    count.checked_sub(1).and_then(|last| sums.get(last)).map_or((0, 0), |(_, up, down)| (*up, *down))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_history::History;
    use serde_json::json;

    fn out(history: History) -> Vec<(i64, i64)> {
        let account = account(&history.operations());
        account.out_of_bounds.iter().map(|read| (read.least, read.most)).collect()
    }

    #[test]
    fn a_read_lies_between_what_must_and_what_may_have_been_added() {
        let history = |shown: i64| {
            History::new()
                .add_number(1..2, 10)
                .add_number(1..2, -3)
                .add_number(4..9, 5)
                .unknown_add_number(1, 100)
                .unknown_add_number(1, -100)
                .failed_add_number(1..2, 1000)
                .add_number(8..9, 1)
                .read(5..6, json!(shown))
        };
        for fine in [7, 12, 107, 112, -93, -88] {
            assert_eq!(out(history(fine)), [], "{fine}");
        }
        for wrong in [113, -94, 1007] {
            assert_eq!(out(history(wrong)), [(-93, 112)], "{wrong}");
        }
    }

    fn shrunk(history: History) -> Vec<(u64, u64, i64, i64)> {
        let account = account(&history.operations());
        account.shrunk.iter().map(|read| (read.earlier, read.index, read.least, read.most)).collect()
    }

    #[test]
    fn a_later_read_contains_what_an_earlier_one_showed() {
        let open = || History::new().unknown_add_number(1, 5).add_number(1..90, 2);
        let then = |shown: i64| open().read(3..4, json!(5)).read(6..7, json!(shown));
        assert_eq!(shrunk(then(5)), []);
        assert_eq!(shrunk(then(7)), []);
        // By itself each of these is possible.
        for less in [0, 2] {
            assert_eq!(out(then(less)), []);
            assert_eq!(shrunk(then(less)), [(2, 3, 5, 12)]);
        }
        // Reads that overlap may go either way.
        assert_eq!(shrunk(open().read(3..9, json!(5)).read(6..7, json!(0))), []);
        // On top of it comes what was added in between: all that is known of the others is that they are
        // still there.
        let between = |shown: i64| {
            let first = open().read(3..4, json!(7)).add_number(5..6, 1).add_number(6..9, 10);
            first.read(7..8, json!(shown))
        };
        assert_eq!(shrunk(between(8)), []);
        assert_eq!(shrunk(between(18)), []);
        assert_eq!(shrunk(between(7)), [(2, 5, 8, 25)]);
    }

    #[test]
    fn where_something_is_taken_away_a_later_read_may_show_less_but_not_anything() {
        let history = |shown: i64| {
            let first = History::new().unknown_add_number(1, 9).unknown_add_number(5, -1);
            first.add_number(1..2, 3).read(3..4, json!(12)).read(6..7, json!(shown))
        };
        assert_eq!((shrunk(history(12)), shrunk(history(11))), (vec![], vec![]));
        // 3 and 2 lie within the bounds that a read alone has: the unknown add need not have taken effect.
        for less in [3, 2] {
            assert_eq!(out(history(less)), []);
            assert_eq!(shrunk(history(less)), [(3, 4, 11, 21)]);
        }
    }

    /// The debts by their definition: over all pairs of reads.
    fn owed_by_definition(operations: &[Operation], read: &Operation) -> Option<i64> {
        let before = |op: &&Operation, moment: u64| op.ok() && op.ret.is_some_and(|ret| ret < moment);
        let reads = operations.iter().filter(|op| op.f == Function::Read && before(op, read.call));
        let owes = |earlier: &Operation| {
            let ret = earlier.ret.unwrap();
            let adds = operations.iter().filter(|op| op.f == Function::Add && before(op, read.call));
            let more: i64 = adds.filter(|add| add.call > ret).map(|add| add.input.as_i64().unwrap()).sum();
            shown(earlier).unwrap() + more
        };
        reads.map(owes).max()
    }

    #[test]
    fn debts_are_those_of_all_pairs() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut owing = 0;
        for _ in 0..300 {
            let mut history = History::new();
            for _ in 0..30 {
                let call = rng.u64(0..60);
                let at = call..call + rng.u64(1..12);
                history = match rng.u8(0..5) {
                    0 | 1 => history.read(at, json!(rng.i64(0..40))),
                    2 => history.unknown_add_number(call, rng.i64(0..9)),
                    _ => history.add_number(at, rng.i64(0..9)),
                };
            }
            let operations = history.operations();
            let account = account(&operations);
            for read in operations.iter().filter(|op| op.f == Function::Read) {
                let Some(owed) = owed_by_definition(&operations, read) else { continue };
                let found = account.shrunk.iter().find(|found| found.index == read.index);
                if shown(read).unwrap() < owed {
                    owing += 1;
                    assert_eq!(found.unwrap().least, owed, "{operations:#?}");
                } else {
                    assert!(found.is_none_or(|found| found.read > found.most), "{operations:#?}");
                }
            }
        }
        assert!(owing > 1000, "{owing}");
    }

    #[test]
    fn a_settled_counter_has_one_right_answer() {
        let history = |shown: Json| History::new().add_number(1..2, 1).add_number(3..4, 1).read(5..6, shown);
        assert_eq!(account(&history(json!(2)).operations()).exact, 1);
        for wrong in [json!(1), json!(3), Json::Null, json!("2"), json!([2])] {
            assert_eq!(out(history(wrong)), [(2, 2)]);
        }
        assert_eq!(out(History::new().read(1..2, Json::Null)), []);
    }
}
