//! Counters: every read lies between what must have been added and what may have been.

use crate::linear::by_key;
use crate::{Function, Json, Operation, Outcome};

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
    /// Adds (by index) of something that is no integer: not judged.
    pub no_numbers: Vec<u64>,
}

/// Accounts for operations `add` (of integers) and `read` of counters, each key a counter that begins at 0.
///
/// A read must show every add that was acknowledged before it was called, none that was called after it returned or
/// was refused, and any part of the others; each at most once.
pub fn account(operations: &[Operation]) -> Account {
    let mut account = Account::default();
    for ((_, key), operations) in by_key(operations) {
        let mut adds: Vec<(&Operation, i64)> = Vec::new();
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
        for read in operations.iter().filter(|op| op.f == Function::Read && op.ok()) {
            let (least, most) = sums.bounds(read);
            account.reads += 1;
            account.exact += usize::from(least == most);
            // A counter that nobody ever added to may be absent.
            let value = if read.output.is_null() { Some(0) } else { read.output.as_i64() };
            if value.is_none_or(|value| value < least || value > most) {
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
    }
    account
}

/// Running sums, so that each read costs a search and not a walk.
struct Sums {
    /// By return of acknowledged adds: what has surely been added, and of that the increments and the decrements.
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
        // Calls at the moment of the return may come before it.
        let (up, down) = until(&self.begun, read.ret.unwrap_or(u64::MAX).saturating_add(1));
        (sure_up.saturating_add(down), up.saturating_add(sure_down))
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
