//! Set-full accounting, after Jepsen's: what became of every element that was added to a grow-only set.
//!
//! An element is **known** once its add was acknowledged or a read showed it. From then on every later read
//! owes it. It is **stable** if the last read called after that moment, and all that follow the last one
//! without it, show it; the time until then is its stable latency. It is **lost** if reads stop showing it
//! for good. For a linearizable set more holds: no read without an element that is known when it is called;
//! reads that can be put in one order, in which they only grow; and a read that shows an element shows those
//! whose adds had ended when its add began. Together these are not only necessary but sufficient, so for sets
//! no search is needed.

use crate::linear::by_key;
use crate::{Function, Json, Operation, Outcome};
use std::collections::{BTreeMap, BTreeSet};

/// An element, named in a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Element {
    /// The key.
    pub key: String,
    /// The element.
    pub value: Json,
    /// Index of the invocation of its add; of the read that showed it, where it was never added.
    pub index: u64,
    /// Index of the read that is the reason to name it.
    pub read: u64,
}

/// The account of the sets of a history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Acknowledged adds.
    pub acknowledged: usize,
    /// Adds of unknown outcome, and those of them whose element was read.
    pub unknown: usize,
    /// See [`Account::unknown`].
    pub unknown_applied: usize,
    /// Successful reads.
    pub reads: usize,
    /// Elements that are known and that later reads show.
    pub stable: usize,
    /// From known to stable, nanoseconds, sorted; 0 for elements that no later read missed.
    pub stable_latencies: Vec<u64>,
    /// Known elements that the last reads do not show. The promise is: none.
    pub lost: Vec<Element>,
    /// From known to the last read that showed it, nanoseconds, sorted.
    pub lost_latencies: Vec<u64>,
    /// Known elements that some later read missed before they were stable. Linearizable: none.
    pub stale: Vec<Element>,
    /// Reads that missed a known element: when they were called.
    pub stale_reads: Vec<u64>,
    /// Acknowledged elements that no read was called after.
    pub never_read: usize,
    /// Elements that a read showed more than once.
    pub duplicated: Vec<Element>,
    /// Elements that were read although their adds had not begun.
    pub phantoms: Vec<Element>,
    /// Elements that were read though their add was reported as not applied. The promise is: none.
    pub refused: Vec<Element>,
    /// Pairs of reads (by index) neither of which shows all that the other does. Linearizable: none.
    pub incomparable: Vec<(u64, u64)>,
    /// Elements that a read does not show although it shows a later one. Linearizable: none.
    pub overtaken: Vec<Element>,
}

/// What is known of one element.
struct Fate<'a> {
    add: Option<&'a Operation>,
    known: Option<u64>,
    /// The last read that shows it and the last that does not, by call.
    present: Option<&'a Operation>,
    absent: Option<&'a Operation>,
    /// A read that missed it although it was known when the read was called.
    missed: Option<&'a Operation>,
}

/// Accounts for operations `add` and `read` (of lists) of sets, each key a set.
pub fn account(operations: &[Operation]) -> Account {
    let mut account = Account::default();
    for ((_, key), operations) in by_key(operations) {
        account_for_key(key, &operations, &mut account);
    }
    account.stable_latencies.sort_unstable();
    account.lost_latencies.sort_unstable();
    account
}

/// What the adds promise of each element.
fn fates_of_adds<'a>(operations: &[&'a Operation]) -> BTreeMap<String, Fate<'a>> {
    let mut fates: BTreeMap<String, Fate<'a>> = BTreeMap::new();
    let empty = |add| Fate { add, known: None, present: None, absent: None, missed: None };
    // Of several adds of one element the one that promises most counts.
    for add in operations.iter().copied().filter(|op| op.f == Function::Add) {
        let fate = fates.entry(add.input.to_string()).or_insert_with(|| empty(None));
        if fate
            .add
            .is_none_or(|other| add.outcome < other.outcome || (other.outcome == Outcome::Fail && !add.ok()))
        {
            fate.add = Some(add);
        }
        if let Some(ret) = add.ret.filter(|_| add.ok()) {
            fate.known = Some(fate.known.map_or(ret, |known| known.min(ret)));
        }
    }
    fates
}

/// What became of each element, given the call of the last read.
fn judge_fates(
    fates: &BTreeMap<String, Fate<'_>>,
    last_call: Option<u64>,
    account: &mut Account,
    named: &impl Fn(&Json, Option<&Operation>, &Operation) -> Element,
) {
    for fate in fates.values() {
        let Some(add) = fate.add.filter(|add| add.outcome != Outcome::Fail) else { continue };
        if add.outcome == Outcome::Info {
            account.unknown += 1;
            account.unknown_applied += usize::from(fate.present.is_some());
        }
        let Some(known) = fate.known else { continue };
        if last_call.is_none_or(|call| call <= known) && fate.present.is_none() {
            account.never_read += usize::from(add.ok());
            continue;
        }
        let present = fate.present.map(|read| read.call);
        match (fate.absent.filter(|read| read.call > known), fate.missed) {
            (Some(absent), _) if present < Some(absent.call) => {
                account.lost.push(named(&add.input, Some(add), absent));
                account.lost_latencies.push(present.map_or(0, |call| call.saturating_sub(known)));
            }
            (absent, missed) => {
                account.stable += 1;
                account.stable_latencies.push(absent.map_or(0, |read| read.call - known));
                if let Some(read) = missed {
                    account.stale.push(named(&add.input, Some(add), read));
                }
            }
        }
    }
}

fn account_for_key<'a>(key: &str, operations: &[&'a Operation], account: &mut Account) {
    let adds: Vec<&Operation> = operations.iter().copied().filter(|op| op.f == Function::Add).collect();
    let mut reads: Vec<&Operation> =
        operations.iter().copied().filter(|op| op.f == Function::Read && op.ok()).collect();
    reads.sort_by_key(|read| read.call);
    account.reads += reads.len();
    account.acknowledged += adds.iter().filter(|add| add.ok()).count();

    let named = |value: &Json, add: Option<&Operation>, read: &Operation| Element {
        key: key.to_owned(),
        value: value.clone(),
        index: add.map_or(read.index, |add| add.index),
        read: read.index,
    };
    let mut fates = fates_of_adds(operations);
    let empty = |add| Fate { add, known: None, present: None, absent: None, missed: None };
    let mut shown: Vec<(&'a Operation, BTreeSet<String>)> = Vec::with_capacity(reads.len());
    for read in reads {
        let mut elements = BTreeSet::new();
        for value in read.values_read() {
            let name = value.to_string();
            let fate = fates.entry(name.clone()).or_insert_with(|| empty(None));
            match fate.add {
                Some(add) if add.outcome == Outcome::Fail => {
                    account.refused.push(named(value, Some(add), read));
                }
                Some(add) if Some(add.call) <= read.ret => {}
                add => account.phantoms.push(named(value, add, read)),
            }
            if let Some(ret) = read.ret {
                fate.known = Some(fate.known.map_or(ret, |known| known.min(ret)));
            }
            fate.present = Some(read);
            if !elements.insert(name) {
                account.duplicated.push(named(value, fate.add, read));
            }
        }
        shown.push((read, elements));
    }
    // Reads are in the order of their calls, so the last to say is the latest.
    for (read, elements) in &shown {
        let mut stale = false;
        for (name, fate) in &mut fates {
            if !elements.contains(name) {
                fate.absent = Some(read);
                if fate.known.is_some_and(|known| known < read.call) {
                    fate.missed = fate.missed.or(Some(read));
                    stale = true;
                }
            }
        }
        account.stale_reads.extend(stale.then_some(read.call));
    }
    let last_call = shown.last().map(|(read, _)| read.call);
    judge_fates(&fates, last_call, account, &named);
    in_one_order(&fates, &mut shown, account, &named);
}

/// What only a linearizable set promises: reads grow in one order, and adds are seen in the order of their
/// times.
fn in_one_order(
    fates: &BTreeMap<String, Fate<'_>>,
    shown: &mut [(&Operation, BTreeSet<String>)],
    account: &mut Account,
    named: &dyn Fn(&Json, Option<&Operation>, &Operation) -> Element,
) {
    shown.sort_by_key(|(_, elements)| elements.len());
    for pair in shown.windows(2) {
        if let [(smaller, few), (larger, many)] = pair
            && !few.is_subset(many)
        {
            account.incomparable.push((smaller.index, larger.index));
        }
    }
    // Acknowledged elements by the end of their add.
    let mut ended: Vec<(u64, &str, &Operation)> = fates
        .iter()
        .filter_map(|(name, fate)| {
            let add = fate.add.filter(|add| add.ok())?;
            Some((add.ret?, name.as_str(), add))
        })
        .collect();
    ended.sort_by_key(|(ret, ..)| *ret);
    for (read, elements) in shown.iter() {
        let began = elements.iter().filter_map(|name| fates.get(name)?.add).map(|add| add.call).max();
        let Some(began) = began else { continue };
        for (_, name, add) in ended.iter().take_while(|(ret, ..)| *ret < began) {
            if !elements.contains(*name) {
                account.overtaken.push(named(&add.input, Some(add), read));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_history::{History, values};

    fn account_of(history: History) -> Account {
        account(&history.operations())
    }

    #[test]
    fn elements_become_stable_or_are_lost() {
        let account = account_of(
            History::new()
                .add(10..20, "late")
                .add(10..20, "lost")
                .add(10..20, "prompt")
                .add(10..20, "seen and lost")
                .add(90..95, "unread")
                .unknown_add(10, "applied")
                .unknown_add(10, "never")
                .read(30..31, values(&["prompt", "seen and lost", "applied"]))
                .read(50..51, values(&["prompt", "applied"]))
                .read(70..71, values(&["prompt", "late", "applied"])),
        );
        assert_eq!((account.acknowledged, account.reads, account.stable, account.never_read), (5, 3, 3, 1));
        assert_eq!(account.stable_latencies, [0, 0, 30]);
        let lost: Vec<_> = account.lost.iter().map(|element| element.value.as_str().unwrap()).collect();
        assert_eq!(lost, ["lost", "seen and lost"]);
        assert_eq!(account.lost_latencies, [0, 10]);
        assert_eq!((account.stale.len(), account.stale_reads.len()), (1, 3));
        assert_eq!((account.unknown, account.unknown_applied), (2, 1));
    }

    #[test]
    fn what_cannot_be_in_a_set_is_named() {
        let account = account_of(
            History::new()
                .add(1..2, "twice")
                .failed_add(1..2, "no")
                .add(9..10, "future")
                .read(5..6, values(&["twice", "twice", "no", "future", "nowhere"])),
        );
        let counts = (account.duplicated.len(), account.refused.len(), account.phantoms.len());
        assert_eq!(counts, (1, 1, 2));
    }

    #[test]
    fn reads_of_a_linearizable_set_grow_in_one_order() {
        let crossed = History::new()
            .add(1..9, "a")
            .add(1..9, "b")
            .read(2..8, values(&["a"]))
            .read(2..8, values(&["b"]));
        assert_eq!(account_of(crossed).incomparable, [(2, 3)]);
        let overtaken = History::new().add(1..3, "a").add(4..9, "b").read(2..8, values(&["b"]));
        let account = account_of(overtaken);
        assert_eq!((account.overtaken.len(), account.incomparable.len(), account.stale.len()), (1, 0, 0));
        let fine = History::new().add(1..5, "a").add(4..9, "b").read(2..8, values(&["b"]));
        assert!(account_of(fine).overtaken.is_empty());
    }
}
