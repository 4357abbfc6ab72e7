//! Append-only lists, after Elle's idea for a single key: the longest read is the order, so nothing is
//! searched.
//!
//! Elements are unique. Every read must be a beginning of the longest one; reads must grow with time; a read
//! owes every element whose append had ended before, and knows none whose append begins after; and the order
//! of the list must not contradict the order of times. These conditions are necessary, and sufficient for
//! linearizability.

use crate::linear::by_key;
use crate::{Function, Json, Operation, Outcome};
use std::collections::{BTreeMap, BTreeSet};

/// A contradiction.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What kind.
    pub kind: Kind,
    /// The key.
    pub key: String,
    /// Indices of the invocations that contradict each other.
    pub indices: Vec<u64>,
    /// In words.
    pub text: String,
}

/// The kinds of contradictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An acknowledged element is missing from a read that was called later.
    Lost,
    /// A read shows an element twice.
    Duplicated,
    /// Two reads order elements differently.
    Reordered,
    /// The order of the list, or of the reads, contradicts the order of times.
    RealTime,
    /// An element whose append had not begun.
    Phantom,
    /// An element whose append was reported as not applied.
    Refused,
}

/// The account of the lists of a history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Acknowledged appends.
    pub acknowledged: usize,
    /// Appends of unknown outcome, and those of them whose element was read.
    pub unknown: usize,
    /// See [`Account::unknown`].
    pub unknown_applied: usize,
    /// Successful reads.
    pub reads: usize,
    /// Acknowledged elements that no read was called after.
    pub never_read: usize,
    /// Contradictions.
    pub findings: Vec<Finding>,
}

/// Accounts for operations `append` and `read` of lists, each key a list.
pub fn account(operations: &[Operation]) -> Account {
    let mut account = Account::default();
    for ((_, key), operations) in by_key(operations) {
        let mut list = List { key, account: &mut account };
        list.judge(&operations);
    }
    account
}

struct List<'a> {
    key: &'a str,
    account: &'a mut Account,
}

impl List<'_> {
    fn find(&mut self, kind: Kind, indices: &[u64], text: String) {
        let mut indices = indices.to_vec();
        indices.sort_unstable();
        indices.dedup();
        self.account.findings.push(Finding { kind, key: self.key.to_owned(), indices, text });
    }

    fn judge(&mut self, operations: &[&Operation]) {
        let mut appends: BTreeMap<String, &Operation> = BTreeMap::new();
        for append in operations.iter().copied().filter(|op| op.f == Function::Append) {
            let fails = |op: &Operation| op.outcome == Outcome::Fail;
            let best = appends.entry(append.input.to_string()).or_insert(append);
            if fails(best) && !fails(append) {
                *best = append;
            }
            self.account.acknowledged += usize::from(append.ok());
            self.account.unknown += usize::from(append.outcome == Outcome::Info);
        }
        let mut reads: Vec<(&Operation, Vec<String>)> = operations
            .iter()
            .filter(|op| op.f == Function::Read && op.ok())
            .map(|op| (*op, op.values_read().iter().map(Json::to_string).collect()))
            .collect();
        reads.sort_by_key(|(read, _)| read.call);
        self.account.reads += reads.len();
        for (read, elements) in &reads {
            self.judge_elements(read, elements, &appends);
        }
        let longest = reads.iter().max_by_key(|(_, elements)| elements.len()).cloned();
        let order = longest.as_ref().map(|(_, elements)| elements.as_slice()).unwrap_or_default();
        let shown: BTreeSet<&String> = order.iter().collect();
        let applied = |op: &&&Operation| op.outcome == Outcome::Info && shown.contains(&op.input.to_string());
        self.account.unknown_applied += appends.values().filter(applied).count();
        for (read, elements) in &reads {
            if let Some((longest, _)) = longest.as_ref().filter(|_| !order.starts_with(elements)) {
                let at =
                    elements.iter().zip(order).position(|(one, other)| one != other).unwrap_or(order.len());
                let text = format!("reads #{} and #{} differ at position {at}", read.index, longest.index);
                self.find(Kind::Reordered, &[read.index, longest.index], text);
            }
        }
        self.judge_times(&reads, &appends, order);
    }

    /// What one read shows by itself.
    fn judge_elements(
        &mut self,
        read: &Operation,
        elements: &[String],
        appends: &BTreeMap<String, &Operation>,
    ) {
        let mut seen = BTreeSet::new();
        for element in elements {
            if !seen.insert(element) {
                let text = format!("read #{} shows {element} twice", read.index);
                let append = appends.get(element).map_or(read.index, |append| append.index);
                self.find(Kind::Duplicated, &[append, read.index], text);
            }
            match appends.get(element) {
                Some(append) if append.outcome == Outcome::Fail => {
                    let text =
                        format!("read #{} shows {element}, which was reported as not applied", read.index);
                    self.find(Kind::Refused, &[append.index, read.index], text);
                }
                Some(append) if Some(append.call) <= read.ret => {}
                Some(append) => {
                    let text =
                        format!("read #{} shows {element} before its append #{}", read.index, append.index);
                    self.find(Kind::Phantom, &[append.index, read.index], text);
                }
                None => {
                    let text = format!("read #{} shows {element}, which was never appended", read.index);
                    self.find(Kind::Phantom, &[read.index], text);
                }
            }
        }
    }

    fn judge_times(
        &mut self,
        reads: &[(&Operation, Vec<String>)],
        appends: &BTreeMap<String, &Operation>,
        order: &[String],
    ) {
        // Acknowledged appends by their end: what each later read owes.
        let mut ended: Vec<(u64, &String, &Operation)> = appends
            .iter()
            .filter_map(|(element, op)| Some((op.ret.filter(|_| op.ok())?, element, *op)))
            .collect();
        ended.sort_by_key(|(ret, ..)| *ret);
        let place: BTreeMap<&String, usize> = (0..).zip(order).map(|(at, element)| (element, at)).collect();
        let last_call = reads.last().map(|(read, _)| read.call);
        let unread = |(ret, element, _): &&(u64, &String, &Operation)| {
            last_call.is_none_or(|call| call <= *ret) && !place.contains_key(element)
        };
        self.account.never_read += ended.iter().filter(unread).count();

        // By the order of calls: the longest list a read owes, and by which append or read.
        let mut returned: Vec<&(&Operation, Vec<String>)> = reads.iter().collect();
        returned.sort_by_key(|(read, _)| read.ret);
        let mut returned = returned.into_iter().peekable();
        let mut due = ended.iter().peekable();
        let mut longest: Option<(&Operation, usize)> = None;
        let mut owed: Option<(&Operation, usize)> = None;
        let mut gone: Vec<(&String, &Operation)> = Vec::new();
        for (read, elements) in reads {
            while let Some((before, shown)) = returned.next_if(|(before, _)| before.ret < Some(read.call)) {
                if longest.is_none_or(|(_, length)| shown.len() > length) {
                    longest = Some((before, shown.len()));
                }
            }
            while let Some((_, element, append)) = due.next_if(|(ret, ..)| *ret < read.call) {
                match place.get(element) {
                    Some(at) if owed.is_none_or(|(_, length)| at + 1 > length) => {
                        owed = Some((append, at + 1))
                    }
                    Some(_) => {}
                    None => gone.push((element, append)),
                }
            }
            if let Some((before, _)) = longest.filter(|(_, length)| *length > elements.len()) {
                let text = format!("read #{} shows less than read #{} had", read.index, before.index);
                self.find(Kind::RealTime, &[before.index, read.index], text);
            }
            if let Some((append, _)) = owed.filter(|(_, length)| *length > elements.len()) {
                let text = format!("read #{} misses {}", read.index, append.input);
                self.find(Kind::Lost, &[append.index, read.index], text);
            }
            for (element, append) in gone.drain(..) {
                let text = format!(
                    "{element} was acknowledged; no read shows it, and #{} was called later",
                    read.index
                );
                self.find(Kind::Lost, &[append.index, read.index], text);
            }
        }
        self.judge_order(&ended, appends, order, &place);
    }

    /// An element whose append began after another's had ended comes after it.
    fn judge_order(
        &mut self,
        ended: &[(u64, &String, &Operation)],
        appends: &BTreeMap<String, &Operation>,
        order: &[String],
        place: &BTreeMap<&String, usize>,
    ) {
        let mut latest: Option<&Operation> = None; // of the elements so far, the append that began last
        for element in order {
            let Some(append) = appends.get(element) else { continue };
            if let (Some(ret), Some(before)) = (append.ret.filter(|_| append.ok()), latest)
                && ret < before.call
            {
                let text = format!("{} stands before {element}, whose append had ended", before.input);
                self.find(Kind::RealTime, &[append.index, before.index], text);
            }
            latest = latest.filter(|before| before.call > append.call).or(Some(append));
        }
        if let Some(before) = latest {
            for (_, element, append) in ended.iter().take_while(|(ret, ..)| *ret < before.call) {
                if !place.contains_key(element) {
                    let text = format!("{element} is missing, but the later {} is there", before.input);
                    self.find(Kind::Lost, &[append.index, before.index], text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_history::{History, values};

    fn kinds(history: History) -> Vec<Kind> {
        let mut kinds: Vec<_> =
            account(&history.operations()).findings.iter().map(|finding| finding.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    fn two() -> History {
        History::new().append(1..2, "a").append(3..4, "b")
    }

    #[test]
    fn what_grows_in_one_order_is_fine() {
        let history = two()
            .unknown_append(1, "c")
            .unknown_append(1, "d")
            .append(5..9, "e")
            .read(5..6, values(&["a", "b"]))
            .read(7..8, values(&["a", "b", "c", "e"]))
            .read(5..20, values(&["a", "b"]))
            .append(21..22, "unread");
        let account = account(&history.operations());
        assert_eq!(account.findings, []);
        assert_eq!((account.acknowledged, account.unknown, account.unknown_applied), (4, 2, 1));
        assert_eq!((account.reads, account.never_read), (3, 1));
    }

    #[test]
    fn each_kind_of_damage_is_told_apart() {
        assert_eq!(kinds(two().read(5..6, values(&["a"]))), [Kind::Lost]);
        assert_eq!(kinds(two().read(5..6, values(&["b"]))), [Kind::Lost]);
        assert_eq!(kinds(two().read(5..6, values(&["a", "b", "b"]))), [Kind::Duplicated]);
        assert_eq!(kinds(two().read(5..6, values(&["b", "a"]))), [Kind::RealTime]);
        assert_eq!(kinds(two().read(5..6, values(&["a", "b", "x"]))), [Kind::Phantom]);
        assert_eq!(kinds(two().append(7..8, "c").read(5..6, values(&["a", "b", "c"]))), [Kind::Phantom]);
        assert_eq!(
            kinds(two().failed_append(1..2, "c").read(5..6, values(&["a", "b", "c"]))),
            [Kind::Refused]
        );
        let concurrent = || History::new().append(1..9, "a").append(1..9, "b");
        let crossed = concurrent().read(2..8, values(&["a", "b"])).read(2..8, values(&["b"]));
        assert_eq!(kinds(crossed), [Kind::Reordered]);
        let shrunk = concurrent().read(2..3, values(&["a", "b"])).read(4..5, values(&["a"]));
        assert_eq!(kinds(shrunk), [Kind::RealTime]);
        // No operation was called late enough to owe "a", but "b" came later and is there.
        let overtaken = History::new().append(2..4, "a").append(5..9, "b").read(3..8, values(&["b"]));
        assert_eq!(kinds(overtaken), [Kind::Lost]);
    }
}
