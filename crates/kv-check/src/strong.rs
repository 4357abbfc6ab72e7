//! Accounting for strong namespaces: acknowledged writes that are gone, without any search.
//!
//! It judges the final reads alone, in the manner of Jepsen's set-full, and so it counts where
//! [`crate::linear::check`] only says yes or no. A history it faults is never linearizable; the reverse is
//! the checker's work.

use crate::available::Named;
use crate::linear::by_key;
use crate::{Function, Operation, Outcome};
use std::collections::BTreeSet;

/// The account of all strong namespaces of a history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Acknowledged writes and deletes, and successful cas.
    pub acknowledged: usize,
    /// Those of them whose key, in a final read, was older than they: its revision was lower, or nothing that
    /// could have come after explains what was read. The promise is: none.
    pub lost: Vec<Named>,
    /// Those of them that are not judged: no final read began after they had ended, or showed them or what is
    /// newer, and no acknowledged mutation of the key came after them. Of one that another came after, only
    /// that one can be lost.
    pub unread: Vec<Named>,
    /// Reads (by index) of a value that was never written, or that only refused mutations wrote. The promise
    /// is: none.
    pub phantoms: Vec<u64>,
    /// Those of them that only refused mutations wrote: what was reported as not applied was applied.
    pub refused: Vec<u64>,
    /// Successful reads.
    pub reads: usize,
    /// Mutations of unknown outcome.
    pub unknown: usize,
    /// Writes of unknown outcome whose value was read: they had been applied.
    pub unknown_applied: usize,
}

impl Account {
    /// Whether every promise judged here was kept.
    pub fn kept(&self) -> bool {
        self.lost.is_empty() && self.phantoms.is_empty()
    }
}

/// Accounts for operations of strong namespaces. Successful reads called at or after `settled` are the final
/// ones.
pub fn account(operations: &[Operation], settled: u64) -> Account {
    let mut account = Account::default();
    for operations in by_key(operations).into_values() {
        account_for_key(&operations, settled, &mut account);
    }
    account
}

fn account_for_key(operations: &[&Operation], settled: u64, account: &mut Account) {
    let mutations = || operations.iter().filter(|op| op.f.mutates() && op.outcome != Outcome::Fail);
    let values = |failed: bool| -> BTreeSet<String> {
        let writes = operations.iter().filter(|op| op.writes_value());
        writes.filter(|op| (op.outcome == Outcome::Fail) == failed).map(|op| op.input.to_string()).collect()
    };
    let (written, refused) = (values(false), values(true));
    let reads = operations.iter().copied().filter(|op| op.f == Function::Read && op.ok());
    let reads: Vec<&Operation> = reads.collect();
    let finals: Vec<&Operation> = reads.iter().copied().filter(|read| read.call >= settled).collect();

    account.reads += reads.len();
    let seen: BTreeSet<String> = reads.iter().map(|read| read.output.to_string()).collect();
    for read in reads.iter().filter(|read| !read.output.is_null()) {
        let value = read.output.to_string();
        if !written.contains(&value) {
            account.phantoms.push(read.index);
            account.refused.extend(refused.contains(&value).then_some(read.index));
        }
    }
    for op in mutations() {
        if op.outcome == Outcome::Info {
            account.unknown += 1;
            account.unknown_applied += usize::from(op.writes_value() && seen.contains(&op.input.to_string()));
        } else {
            account.acknowledged += 1;
            let after = |read: &Operation| read.call > op.ret.unwrap_or(u64::MAX);
            if finals.iter().any(|read| after(read) && misses(read, op, operations)) {
                account.lost.push(Named::of(op));
            } else if !finals.iter().any(|read| after(read) || shows(read, op))
                && !operations.iter().any(|later| supersedes(later, op))
            {
                account.unread.push(Named::of(op));
            }
        }
    }
}

/// Whether a read shows this write, or what is newer, whenever it began.
fn shows(read: &Operation, write: &Operation) -> bool {
    match (read.revision, write.revision) {
        (Some(saw), Some(got)) if !read.output.is_null() => saw >= got,
        _ => write.writes_value() && read.output == write.input,
    }
}

/// Whether an acknowledged mutation surely came after another one.
fn supersedes(later: &Operation, op: &Operation) -> bool {
    later.f.mutates()
        && later.ok()
        && match (later.revision, op.revision) {
            (Some(later), Some(earlier)) => later > earlier,
            _ => op.ended_before(later.call),
        }
}

/// Whether a read that began after the write ended shows a state from before the write.
fn misses(read: &Operation, write: &Operation, operations: &[&Operation]) -> bool {
    if let (Some(saw), Some(got), false) = (read.revision, write.revision, read.output.is_null()) {
        return saw < got;
    }
    let explains = |op: &&&Operation| match op.f {
        Function::Write | Function::Cas => op.input == read.output,
        Function::Delete => read.output.is_null(),
        _ => false,
    };
    !operations.iter().filter(explains).any(|op| op.outcome != Outcome::Fail && !op.ended_before(write.call))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_history::{History, absent, value};
    use serde_json::json;

    fn account_of(history: History) -> Account {
        account(&history.operations(), 1000)
    }

    #[test]
    fn what_was_overwritten_or_deleted_is_not_lost() {
        let account = account_of(
            History::new().write(1..2, "a", &[]).write(3..4, "b", &[]).read(1001..1002, value("b")),
        );
        assert!(account.kept());
        assert_eq!((account.acknowledged, account.reads), (2, 1));
        assert!(
            account_of(History::new().write(1..9, "a", &[]).delete(3..4, &[]).read(1001..1002, absent()))
                .kept()
        );
        let perhaps = History::new().write(3..4, "a", &[]).unknown_delete(1, &[]).read(1001..1002, absent());
        assert!(account_of(perhaps).kept());
    }

    #[test]
    fn an_acknowledged_write_behind_an_older_state_is_lost() {
        let rolled_back =
            History::new().write(1..2, "a", &[]).write(3..4, "b", &[]).read(1001..1002, value("a"));
        let account = account_of(rolled_back);
        assert_eq!(account.lost.iter().map(|write| &write.value).collect::<Vec<_>>(), [&json!("b")]);
        let gone = History::new().delete(1..2, &[]).write(3..4, "a", &[]).read(1001..1002, absent());
        assert_eq!(account_of(gone).lost.len(), 1);
    }

    #[test]
    fn a_delete_is_lost_where_what_it_removed_is_there() {
        let deleted = || History::new().write(1..2, "a", &[]).delete(3..4, &[]);
        let account = account_of(deleted().read(1001..1002, value("a")));
        assert_eq!((account.acknowledged, account.lost.len(), account.kept()), (2, 1, false));
        assert_eq!(account.lost[0].index, 1, "the delete");
        assert!(account_of(deleted().read(1001..1002, absent())).kept());
        assert!(account_of(deleted().write(5..6, "a", &[]).read(1001..1002, value("a"))).kept());
    }

    #[test]
    fn what_no_final_read_tells_of_is_not_judged_unless_something_came_after_it() {
        let unread = |history: History| {
            let account = account_of(history);
            assert!(account.kept());
            account.unread.iter().map(|op| op.index).collect::<Vec<_>>()
        };
        // Of a key that was not read the last mutation, also where that is a delete.
        let twice = || History::new().write(1..2, "a", &[]).write(3..4, "b", &[]);
        assert_eq!(unread(twice()), [1]);
        assert_eq!(unread(twice().delete(5..6, &[])), [2]);
        assert_eq!(unread(History::new().delete(1..2, &[])), [0]);
        // What is not known to have been applied supersedes nothing.
        assert_eq!(unread(twice().unknown_write(5, "c", &[])), [1]);
        // Of two at once either may be the last, unless their revisions say which.
        let at_once = || History::new().write(1..9, "a", &[]).revision(8).write(1..9, "b", &[]);
        assert_eq!(unread(at_once()), [0, 1]);
        assert_eq!(unread(at_once().revision(7)), [0]);
        // A final read that began before a write had ended tells nothing of it, unless it shows it.
        let late = || History::new().write(1..2, "a", &[]).write(990..1500, "b", &[]);
        assert_eq!(unread(late().read(1001..1002, value("a"))), [1]);
        assert_eq!(unread(late().read(1001..1002, value("b"))), [0; 0]);
        assert_eq!(unread(late().read(1001..1002, value("a")).read(1501..1502, value("b"))), [0; 0]);
        let newer = late().revision(4).read(1001..1002, value("c")).revision(5);
        let newer = newer.unknown_write(995, "c", &[]);
        assert_eq!(unread(newer), [0; 0], "it shows what is newer");
    }

    #[test]
    fn revisions_decide_where_times_overlap() {
        let history = History::new()
            .write(1..9, "a", &[])
            .revision(7)
            .write(1..9, "b", &[])
            .revision(8)
            .read(1001..1002, value("a"))
            .revision(7);
        assert_eq!(account_of(history).lost[0].value, json!("b"));
    }

    #[test]
    fn a_refused_write_must_never_be_seen() {
        let account = account_of(
            History::new()
                .failed_write(1..2, "no", &[])
                .unknown_write(3, "maybe", &[])
                .unknown_write(3, "never", &[])
                .read(5..6, value("no"))
                .read(7..8, value("maybe"))
                .read(9..10, absent()),
        );
        assert_eq!((account.phantoms.len(), account.refused.len()), (1, 1));
        assert_eq!((account.unknown, account.unknown_applied), (2, 1));
    }
}
