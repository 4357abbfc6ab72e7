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
    /// Acknowledged writes and successful cas (deletes not counted).
    pub acknowledged: usize,
    /// Acknowledged writes whose key, in a final read, was older than them: its revision was lower, or
    /// nothing that could have come after the write explains what was read. The promise is: none.
    pub lost: Vec<Named>,
    /// Acknowledged writes of keys that no read saw after settling: not judged.
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
    let reads: Vec<_> = operations.iter().filter(|op| op.f == Function::Read && op.ok()).collect();
    let finals: Vec<_> = reads.iter().filter(|read| read.call >= settled).collect();

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
        } else if op.writes_value() {
            account.acknowledged += 1;
            if finals.is_empty() {
                account.unread.push(Named::of(op));
            } else if finals
                .iter()
                .any(|read| read.call > op.ret.unwrap_or(u64::MAX) && misses(read, op, operations))
            {
                account.lost.push(Named::of(op));
            }
        }
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
