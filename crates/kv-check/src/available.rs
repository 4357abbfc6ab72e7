//! Accounting for available namespaces: what a store that always answers still owes its clients.
//!
//! Causality is reconstructed from the clients' side alone. Every write has a value of its own, and every
//! mutation names the values its causal context covered ([`crate::Event::observed`]). Write *b*
//! **supersedes** *a* if *a* is among the values *b* covered, or is superseded by one of them. Two values
//! neither of which supersedes the other are **concurrent**, and the store must keep both.
//!
//! An acknowledged write that the final reads do not show is excused only by what is **accounted for**
//! itself: acknowledged writes and deletes, values that final reads show, and what these superseded in turn.
//! A write of unknown outcome that covered it, was read, and is gone in the end excuses nothing. A store that
//! merges cannot get there: a replica gives up a value only for a state that holds what superseded it, so if
//! that state is lost with a disk, the value is still on the replicas that had not merged it, and shows
//! again. Only if no copy of the value was outside of that disk is it gone as well, and that is the loss of
//! an acknowledged write: an acknowledgement by W replicas promises no more than that one of their disks
//! survives, and a configuration whose faults may take them all says so in
//! [`crate::judge::Expectation::lost`].
//!
//! What a client cannot know is never held against the store: a delete of unknown outcome leaves no trace, so
//! it only ever excuses. So does a mutation of what is there ([`crate::Event::covers_unseen`]), which covers
//! values that its client has not seen: every write of the key that was called before it ended may be among
//! them. What is there in the end excuses these, and all that they superseded or may have superseded in turn;
//! so does a delete. What was called after the last of them must be there in the end, and so must one at
//! least of those that overlap it.

use crate::history::Malformed;
use crate::linear::by_key;
use crate::{Function, Json, Operation, Outcome};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// An acknowledged write, named in a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// The namespace.
    pub ns: String,
    /// The key.
    pub key: String,
    /// The value written.
    pub value: Json,
    /// Index of its invocation in the history.
    pub index: u64,
}

impl Named {
    pub(crate) fn of(op: &Operation) -> Named {
        Named { ns: op.ns.clone(), key: op.key.clone(), value: op.input.clone(), index: op.index }
    }
}

/// A read that did not show what it could have shown.
#[derive(Clone, Debug, PartialEq)]
pub struct StaleRead {
    /// Index of its invocation in the history.
    pub index: u64,
    /// The node that answered.
    pub node: String,
    /// When it was called.
    pub call: u64,
    /// How many acknowledged mutations it did not show: how many versions it was behind.
    pub behind: usize,
    /// How long before its call the first of them had been acknowledged: how much time it was behind.
    pub lag_ns: u64,
    /// Whether it said *absent* although a value was there: a false absence.
    pub absent: bool,
}

/// The account of all available namespaces of a history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Acknowledged writes (deletes not counted).
    pub acknowledged: usize,
    /// Acknowledged writes that the final reads do not show and nothing supersedes. The promise is: none.
    pub lost: Vec<Named>,
    /// As lost, but a delete of unknown outcome that covered them may be the reason, or a mutation that may
    /// have covered them.
    pub uncertain: Vec<Named>,
    /// Acknowledged writes that are not judged: of keys that no read saw after settling, and no other
    /// acknowledged write supersedes them, so that only that one can be lost. One that a delete covered is
    /// among them: it could be there again.
    pub unread: Vec<Named>,
    /// Writes that the final reads show although an acknowledged delete covered them. The promise is: none.
    pub resurrected: Vec<Named>,
    /// (namespace, key) for which final reads differ from each other: replicas have not converged.
    pub diverged: Vec<(String, String)>,
    /// Reads (by index) of a value that was never written, or whose write was reported as not applied. The
    /// promise is: none.
    pub phantoms: Vec<u64>,
    /// Those of them whose write was reported as not applied.
    pub refused: Vec<u64>,
    /// Reads (by index) that showed a value beside one that supersedes it: a false conflict. The promise is:
    /// none.
    pub false_conflicts: Vec<u64>,
    /// Reads before settling that showed such a value of a write that may have a twin: it was forwarded or
    /// sent more than once, so two replicas may have taken it, each under a dot of its own. Until the dots
    /// meet, the one that was not superseded looks like a write of its own. The promise is: none in the end.
    pub late_twins: usize,
    /// Reads (by index) that miss a write, or show one that had been deleted, though a read that was over
    /// before they were called had not. Only where that is promised it is none.
    pub went_back: Vec<u64>,
    /// Successful reads.
    pub reads: usize,
    /// Reads that missed a mutation acknowledged before they were called. This is the price of answering
    /// always.
    pub stale: Vec<StaleRead>,
    /// Of reads of a key that had been mutated, the final ones not counted: how long before the call the last
    /// mutation had been acknowledged, and whether the read was fresh. Sorted.
    pub ages: Vec<(u64, bool)>,
    /// Reads that showed more than one value.
    pub reads_with_siblings: usize,
    /// The most values one read showed.
    pub max_siblings: usize,
    /// Keys with more than one value in the end: conflicts left to their clients.
    pub conflicted: usize,
    /// Mutations of unknown outcome.
    pub unknown: usize,
    /// Writes of unknown outcome whose value was read: they had been applied.
    pub unknown_applied: usize,
}

impl Account {
    /// Reads that said *absent* although a value was there.
    pub fn false_absences(&self) -> usize {
        self.stale.iter().filter(|read| read.absent).count()
    }

    /// Whether every promise was kept. Staleness and siblings break none.
    pub fn kept(&self) -> bool {
        self.lost.is_empty()
            && self.resurrected.is_empty()
            && self.diverged.is_empty()
            && self.phantoms.is_empty()
            && self.false_conflicts.is_empty()
    }
}

/// Accounts for operations of available namespaces. Successful reads called at or after `settled` are the
/// final ones; the caller lets the store settle before, and reads every key at every node.
///
/// Fails if two writes of a key have the same value: then they cannot be told apart.
pub fn account(operations: &[Operation], settled: u64) -> Result<Account, Malformed> {
    let mut account = Account::default();
    for ((ns, key), operations) in by_key(operations) {
        let history = KeyHistory::new(&operations)?;
        history.account_for(settled, &mut account);
        if history.differ(settled) {
            account.diverged.push((ns.to_owned(), key.to_owned()));
        }
    }
    account.ages.sort_unstable();
    Ok(account)
}

/// The number of a write among the writes of its key.
type Id = usize;

/// One key: its writes by value, and who covered whom.
struct KeyHistory<'a> {
    writes: Vec<&'a Operation>,
    /// What each write covered directly.
    covers: Vec<Vec<Id>>,
    deletes: Vec<(&'a Operation, Vec<Id>)>,
    reads: Vec<&'a Operation>,
    ids: BTreeMap<String, Id>,
    /// Writes whose value a read showed: certainly applied.
    seen: BTreeSet<Id>,
}

impl<'a> KeyHistory<'a> {
    fn new(operations: &[&'a Operation]) -> Result<KeyHistory<'a>, Malformed> {
        let mut ids = BTreeMap::new();
        let writes: Vec<_> = operations.iter().copied().filter(|op| op.writes_value()).collect();
        for (id, write) in writes.iter().enumerate() {
            if ids.insert(write.input.to_string(), id).is_some() {
                let message =
                    format!("{} was written twice to {:?}: values must be unique", write.input, write.key);
                return Err(Malformed { line: write.index as usize + 1, message });
            }
        }
        let known = |values: &[Json]| {
            values.iter().filter_map(|value| ids.get(&value.to_string()).copied()).collect()
        };
        let covers = |op: &Operation| known(op.observed.as_deref().unwrap_or_default());
        let reads: Vec<_> =
            operations.iter().copied().filter(|op| op.f == Function::Read && op.ok()).collect();
        let mut seen: BTreeSet<Id> = BTreeSet::new();
        for op in operations {
            seen.extend::<Vec<Id>>(known(op.values_read()));
            seen.extend::<Vec<Id>>(covers(op));
        }
        Ok(KeyHistory {
            covers: writes.iter().map(|op| covers(op)).collect(),
            deletes: operations
                .iter()
                .filter(|op| op.f == Function::Delete && op.outcome != Outcome::Fail)
                .map(|op| (*op, covers(op)))
                .collect(),
            writes,
            reads,
            ids,
            seen,
        })
    }

    /// These writes and everything they supersede.
    fn closure(&self, of: impl IntoIterator<Item = Id>) -> BTreeSet<Id> {
        let mut open: Vec<Id> = of.into_iter().collect();
        let mut all = BTreeSet::new();
        while let Some(id) = open.pop() {
            if all.insert(id) {
                open.extend(self.covers.get(id).into_iter().flatten());
            }
        }
        all
    }

    /// Everything superseded by one of these writes.
    fn superseded(&self, by: impl IntoIterator<Item = Id>) -> BTreeSet<Id> {
        self.closure(by.into_iter().flat_map(|id| self.covers.get(id).into_iter().flatten().copied()))
    }

    /// Everything that these mutations supersede, or may supersede: each with what it covered. What was
    /// covered took effect before that which covers it did, and so can have covered itself only what was
    /// called before then.
    fn perhaps_superseded<'b>(
        &self,
        by: impl IntoIterator<Item = (&'b Operation, &'b [Id])>,
    ) -> BTreeSet<Id> {
        // The latest bound first: so each is reached with its latest bound, and gone on from once.
        let mut open = BinaryHeap::new();
        let mut reached = BTreeSet::new();
        for (op, covers) in by {
            self.reach(op, covers, u64::MAX, &reached, &mut open);
        }
        while let Some((bound, id)) = open.pop() {
            if reached.insert(id)
                && let (Some(write), Some(covers)) = (self.writes.get(id), self.covers.get(id))
            {
                self.reach(write, covers, bound, &reached, &mut open);
            }
        }
        reached
    }

    /// What a mutation that took effect before `bound` covered, or may have covered.
    fn reach(
        &self,
        op: &Operation,
        covers: &[Id],
        bound: u64,
        reached: &BTreeSet<Id>,
        open: &mut BinaryHeap<(u64, Id)>,
    ) {
        let end = self.took_effect_before(op).min(bound);
        let fresh = |id: &Id| !reached.contains(id);
        open.extend(covers.iter().copied().filter(fresh).map(|id| (end, id)));
        if op.covers_unseen {
            let before = self.writes.iter().enumerate();
            let before = before.filter(|(_, write)| write.call < end && write.index != op.index);
            open.extend(before.map(|(id, _)| id).filter(fresh).map(|id| (end, id)));
        }
    }

    /// Until when a mutation may have taken what there was. A delete is sent with what its client read, so
    /// that is over with it. A write may be taken twice: by who answered, and later by who was asked before
    /// and was silent then; unless its receipt says that this was one and the same.
    fn took_effect_before(&self, op: &Operation) -> u64 {
        let ended = op.ret.unwrap_or(u64::MAX);
        if op.f == Function::Delete || minted_once(op) {
            return ended;
        }
        u64::MAX
    }

    fn mutations<'b>(&'b self, ids: &'b BTreeSet<Id>) -> impl Iterator<Item = (&'b Operation, &'b [Id])> {
        ids.iter().filter_map(|id| Some((*self.writes.get(*id)?, self.covers.get(*id)?.as_slice())))
    }

    fn shown(&self, read: &Operation) -> BTreeSet<Id> {
        read.values_read().iter().filter_map(|value| self.ids.get(&value.to_string()).copied()).collect()
    }

    fn final_reads(&self, settled: u64) -> impl Iterator<Item = &'a Operation> {
        self.reads.iter().copied().filter(move |read| read.call >= settled)
    }

    fn differ(&self, settled: u64) -> bool {
        self.final_reads(settled).map(|read| self.shown(read)).collect::<BTreeSet<_>>().len() > 1
    }

    fn account_for(&self, settled: u64, account: &mut Account) {
        let acknowledged = || self.writes.iter().enumerate().filter(|(_, write)| write.ok());
        let unknown = |op: &Operation| op.outcome == Outcome::Info;
        account.acknowledged += acknowledged().count();
        account.unknown += self.writes.iter().filter(|op| unknown(op)).count()
            + self.deletes.iter().filter(|(op, _)| unknown(op)).count();
        account.unknown_applied +=
            self.writes.iter().enumerate().filter(|(id, op)| unknown(op) && self.seen.contains(id)).count();
        self.judge_reads(settled, account);

        let finals: BTreeSet<Id> = self.final_reads(settled).flat_map(|read| self.shown(read)).collect();
        account.conflicted += usize::from(finals.len() > 1);
        let accounted = || acknowledged().map(|(id, _)| id).chain(finals.iter().copied());
        let superseded = self.superseded(accounted());
        let deletes = self.deletes.iter().filter(|(op, _)| op.ok());
        let deleted = self.closure(deletes.flat_map(|(_, covers)| covers.iter().copied()));
        // Also what follows from deletes of unknown outcome, and from what may have been covered.
        let perhaps_deleted =
            self.perhaps_superseded(self.deletes.iter().map(|(op, covers)| (*op, covers.as_slice())));
        // Of two that overlap either may have covered the other, but not both: so only what is there in the
        // end excuses by what it may have covered, and all that follows from it.
        let perhaps_superseded = self.perhaps_superseded(self.mutations(&finals));
        let judged = self.final_reads(settled).next().is_some();
        for (id, write) in acknowledged() {
            if !judged {
                let is_settled = superseded.contains(&id) && !deleted.contains(&id);
                account.unread.extend((!is_settled).then(|| Named::of(write)));
            } else if !finals.contains(&id) && !superseded.contains(&id) && !deleted.contains(&id) {
                let perhaps = perhaps_deleted.contains(&id) || perhaps_superseded.contains(&id);
                let list = if perhaps { &mut account.uncertain } else { &mut account.lost };
                list.push(Named::of(write));
            }
        }
        let risen = finals.intersection(&deleted).filter_map(|id| self.writes.get(*id));
        account.resurrected.extend(risen.map(|write| Named::of(write)));
    }

    /// When a delete that covers a write, or may, was first called (the write may be gone), and when one that
    /// covers it was acknowledged (it must be).
    fn gone(&self) -> (BTreeMap<Id, u64>, BTreeMap<Id, u64>) {
        let mut may_be_gone: BTreeMap<Id, u64> = BTreeMap::new();
        let mut must_be_gone: BTreeMap<Id, u64> = BTreeMap::new();
        for (delete, covers) in &self.deletes {
            let covered = self.closure(covers.iter().copied());
            for id in self.perhaps_superseded([(*delete, covers.as_slice())]).union(&covered) {
                lower(&mut may_be_gone, *id, delete.call);
            }
            if let Some(ret) = delete.ret.filter(|_| delete.ok()) {
                covered.into_iter().for_each(|id| lower(&mut must_be_gone, id, ret));
            }
        }
        (may_be_gone, must_be_gone)
    }

    /// Since when a read had shown each write (it was over by then), and since when one had shown that a
    /// delete had taken effect on a write: that had been acknowledged before the read was called, and was
    /// missing although nothing that the read showed may cover it.
    fn shown_since(&self) -> (BTreeMap<Id, u64>, BTreeMap<Id, u64>) {
        let (mut there, mut gone) = (BTreeMap::new(), BTreeMap::new());
        for read in &self.reads {
            let Some(ret) = read.ret else { continue };
            let shown = self.shown(read);
            let perhaps_superseded = self.perhaps_superseded(self.mutations(&shown));
            for (id, write) in self.writes.iter().enumerate() {
                if shown.contains(&id) {
                    lower(&mut there, id, ret);
                } else if write.ok() && write.ended_before(read.call) && !perhaps_superseded.contains(&id) {
                    lower(&mut gone, id, ret);
                }
            }
        }
        (there, gone)
    }

    /// Whether a read goes back behind one that was over before it was called.
    fn goes_back(
        &self,
        read: &Operation,
        (there, gone): &(BTreeMap<Id, u64>, BTreeMap<Id, u64>),
        may_be_gone: &BTreeMap<Id, u64>,
    ) -> bool {
        let shown = self.shown(read);
        let perhaps_superseded = self.perhaps_superseded(self.mutations(&shown));
        let before = |since: &&u64| **since < read.call;
        let excused = |id: &Id| may_be_gone.get(id).is_some_and(|call| Some(*call) < read.ret);
        let misses = there
            .iter()
            .filter(|(_, since)| before(since))
            .any(|(id, _)| !shown.contains(id) && !perhaps_superseded.contains(id) && !excused(id));
        // Where no delete may have taken it, its absence was no proof of one.
        let risen =
            shown.iter().any(|id| gone.get(id).filter(before).is_some() && may_be_gone.contains_key(id));
        misses || risen
    }

    fn judge_reads(&self, settled: u64, account: &mut Account) {
        let shown_since = self.shown_since();
        let (may_be_gone, must_be_gone) = self.gone();
        let deletes = self.deletes.iter().map(|(delete, _)| delete);
        let mut acknowledgements: Vec<u64> =
            self.writes.iter().chain(deletes).filter(|op| op.ok()).filter_map(|op| op.ret).collect();
        acknowledgements.sort_unstable();
        for read in &self.reads {
            let shown = self.shown(read);
            let superseded = self.superseded(shown.iter().copied());
            let perhaps_superseded = self.perhaps_superseded(self.mutations(&shown));
            account.reads += 1;
            if self.goes_back(read, &shown_since, &may_be_gone) {
                account.went_back.push(read.index);
            }
            account.reads_with_siblings += usize::from(read.values_read().len() > 1);
            account.max_siblings = account.max_siblings.max(read.values_read().len());
            let refused = |id: &Id| self.writes.get(*id).is_none_or(|op| op.outcome == Outcome::Fail);
            let unwritten = |value: &Json| self.ids.get(&value.to_string()).is_none_or(refused);
            if read.values_read().iter().any(unwritten) {
                account.phantoms.push(read.index);
            }
            if shown.iter().any(refused) {
                account.refused.push(read.index);
            }
            let mut beside = superseded.intersection(&shown).filter_map(|id| self.writes.get(*id)).peekable();
            if beside.peek().is_some() {
                if read.call >= settled || beside.any(|write| minted_once(write)) {
                    account.false_conflicts.push(read.index);
                } else {
                    account.late_twins += 1;
                }
            }
            let excused = |id: Id| may_be_gone.get(&id).is_some_and(|call| Some(*call) < read.ret);
            let missed_writes = self.writes.iter().enumerate().filter(|(id, write)| {
                write.ok()
                    && write.ended_before(read.call)
                    && !shown.contains(id)
                    && !perhaps_superseded.contains(id)
                    && !excused(*id)
            });
            let missed_deletes = shown.iter().filter_map(|id| must_be_gone.get(id).copied());
            let missed: Vec<u64> = missed_writes
                .filter_map(|(_, write)| write.ret)
                .chain(missed_deletes.filter(|ret| *ret < read.call))
                .collect();
            let before = acknowledgements.partition_point(|ret| *ret < read.call);
            let last = before.checked_sub(1).and_then(|at| acknowledgements.get(at));
            if let Some(last) = last.filter(|_| read.call < settled) {
                account.ages.push((read.call - last, missed.is_empty()));
            }
            if let Some(first) = missed.iter().min() {
                account.stale.push(StaleRead {
                    index: read.index,
                    node: read.node.clone(),
                    call: read.call,
                    behind: missed.len(),
                    lag_ns: read.call - first,
                    absent: read.values_read().is_empty(),
                });
            }
        }
    }
}

/// Whether a write certainly has one dot. Where its receipt says so: the node that was asked is a replica of
/// the key and took it itself, at the first attempt. One whose end is not known may have been forwarded to
/// anybody. Who gives no receipts is not excused.
fn minted_once(write: &Operation) -> bool {
    let Some(receipt) = &write.receipt else { return write.ok() };
    let by = receipt.get("by").and_then(Json::as_str);
    let once = receipt.get("attempts").is_none() && receipt.get("deduplicated").is_none();
    let replies = receipt.pointer("/available/replies").and_then(Json::as_array);
    // A fallback is marked with `*`, a silent node with `!`.
    let kept = replies.is_none_or(|replies| replies.iter().any(|reply| reply.as_str() == by));
    write.ok() && by == Some(write.node.as_str()) && once && kept
}

fn lower(moments: &mut BTreeMap<Id, u64>, id: Id, moment: u64) {
    moments.entry(id).and_modify(|earliest| *earliest = moment.min(*earliest)).or_insert(moment);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_history::{History, absent, values};
    use serde_json::json;
    use std::ops::Range;

    const SETTLED: u64 = 1000;

    fn account_of(history: History) -> Account {
        account(&history.operations(), SETTLED).unwrap()
    }

    fn lost(account: &Account) -> Vec<Json> {
        account.lost.iter().map(|write| write.value.clone()).collect()
    }

    #[test]
    fn superseded_and_present_writes_are_not_lost() {
        let account = account_of(
            History::new()
                .write(1..2, "a", &[])
                .write(3..4, "b", &["a"])
                .write(3..5, "blind", &[])
                .read(6..7, values(&["b", "blind"]))
                .read(1001..1002, values(&["blind", "b"])),
        );
        assert!(account.kept() && account.stale.is_empty(), "{account:?}");
        assert_eq!((account.acknowledged, account.reads, account.reads_with_siblings), (3, 2, 2));
        assert_eq!((account.max_siblings, account.conflicted), (2, 1));
    }

    #[test]
    fn a_concurrent_write_that_vanished_is_lost() {
        let history =
            History::new().write(1..2, "a", &[]).write(3..4, "b", &[]).read(1001..1002, values(&["b"]));
        let account = account_of(history);
        assert_eq!(lost(&account), [json!("a")]);
        assert!(!account.kept());
    }

    #[test]
    fn superseding_goes_through_what_an_acknowledged_write_covered() {
        // "b" has an unknown outcome: as "c" covered it, it was applied, and it had covered "a".
        let chain = |seen: &[&str]| {
            account_of(
                History::new()
                    .write(1..2, "a", &[])
                    .unknown_write(3, "b", &["a"])
                    .write(5..6, "c", seen)
                    .read(1001..1002, values(&["c"])),
            )
        };
        let seen = chain(&["b"]);
        assert!(seen.kept(), "{seen:?}");
        assert_eq!((seen.unknown, seen.unknown_applied), (1, 1));
        let unseen = chain(&[]);
        assert_eq!(lost(&unseen), [json!("a")]);
        assert_eq!((unseen.unknown, unseen.unknown_applied), (1, 0));
    }

    #[test]
    fn what_is_gone_in_the_end_excuses_nothing_by_having_been_seen() {
        // "b" covered the acknowledged "a", it was read, and it may have been applied on one replica
        // only.
        let history = |last: History| {
            let seen = History::new().write(1..2, "a", &[]).unknown_write(3, "b", &["a"]);
            account_of(seen.read(5..6, values(&["b"])).then(last))
        };
        let gone = history(History::new().write(7..8, "c", &[]).read(1001..1002, values(&["c"])));
        assert_eq!(lost(&gone), [json!("a")]);
        assert_eq!((gone.unknown, gone.unknown_applied), (1, 1));
        let all_gone = history(History::new().read(1001..1002, absent()));
        assert_eq!(lost(&all_gone), [json!("a")]);
        // A write that is accounted for passes the excuse on, over as many unknown writes as there are.
        for kept in [
            History::new().read(1001..1002, values(&["b"])),
            History::new().write(7..8, "c", &["b"]).read(1001..1002, values(&["c"])),
            History::new().unknown_write(7, "c", &["b"]).read(1001..1002, values(&["c"])),
            History::new().delete(7..8, &["b"]).read(1001..1002, absent()),
        ] {
            let account = history(kept);
            assert!(account.kept() && account.uncertain.is_empty(), "{account:?}");
        }
        // A delete that is itself of unknown outcome may be the reason, and a write that it did not cover is
        // not.
        let perhaps = history(History::new().unknown_delete(7, &["b"]).read(1001..1002, absent()));
        assert_eq!((perhaps.lost.len(), perhaps.uncertain.len()), (0, 1));
        let unseen = history(History::new().unknown_write(7, "c", &["b"]).read(1001..1002, absent()));
        assert_eq!(lost(&unseen), [json!("a")]);
    }

    #[test]
    fn deletes_excuse_and_what_returns_after_them_is_resurrected() {
        let gone = History::new().write(1..2, "a", &[]).delete(3..4, &["a"]).read(1001..1002, absent());
        assert!(account_of(gone).kept());
        let back = History::new().write(1..2, "a", &[]).delete(3..4, &["a"]).read(1001..1002, values(&["a"]));
        let account = account_of(back);
        assert_eq!(account.resurrected.len(), 1);
        assert_eq!(account.stale.len(), 1);
        let perhaps =
            History::new().write(1..2, "a", &[]).unknown_delete(3, &["a"]).read(1001..1002, absent());
        let account = account_of(perhaps);
        assert_eq!((account.lost.len(), account.uncertain.len()), (0, 1));
    }

    #[test]
    fn a_delete_covers_what_its_values_had_superseded() {
        let history = History::new()
            .write(1..2, "a", &[])
            .write(3..4, "b", &["a"])
            .delete(5..6, &["b"])
            .read(1001..1002, values(&["a"]));
        assert_eq!(account_of(history).resurrected[0].value, json!("a"));
    }

    #[test]
    fn staleness_counts_versions_and_time_from_the_first_missed() {
        let account = account_of(
            History::new()
                .write(10..20, "a", &[])
                .write(30..40, "b", &["a"])
                .write(50..60, "c", &["b"])
                .read(100..110, values(&["a"]))
                .read(100..110, absent())
                .read(100..110, values(&["c"])),
        );
        let stale: Vec<_> =
            account.stale.iter().map(|read| (read.behind, read.lag_ns, read.absent)).collect();
        assert_eq!(stale, [(2, 60, false), (3, 80, true)]);
        assert_eq!(account.false_absences(), 1);
    }

    #[test]
    fn of_a_key_that_was_not_read_what_is_superseded_for_good_cannot_be_lost() {
        let unread = |history: History| {
            let account = account_of(history);
            account.unread.iter().map(|write| write.value.clone()).collect::<Vec<_>>()
        };
        let chain = || History::new().write(1..2, "a", &[]).write(3..4, "b", &["a"]).write(5..6, "c", &["b"]);
        assert_eq!(unread(chain()), [json!("c")]);
        assert_eq!(unread(chain().write(7..8, "blind", &[])), [json!("c"), json!("blind")]);
        // What a delete covered could be there again, and no read says that it is not.
        assert_eq!(unread(chain().delete(7..8, &["c"])), [json!("a"), json!("b"), json!("c")]);
        assert!(unread(chain().read(1001..1002, values(&["c"]))).is_empty());
    }

    #[test]
    fn concurrent_reads_may_show_either() {
        let account = account_of(
            History::new()
                .write(10..20, "a", &[])
                .write(30..40, "b", &["a"])
                .read(40..45, values(&["a"]))
                .delete(50..60, &["b"])
                .read(55..56, values(&["b"]))
                .read(55..56, absent()),
        );
        assert!(account.stale.is_empty(), "{account:?}");
    }

    #[test]
    fn phantoms_false_conflicts_and_divergence_are_found() {
        let account = account_of(
            History::new()
                .write(1..2, "a", &[])
                .failed_write(3..4, "no", &[])
                .write(5..6, "b", &["a"])
                .read(7..8, values(&["b", "invented"]))
                .read(7..8, values(&["b", "no"]))
                .read(7..8, values(&["b", "a"]))
                .read(1001..1002, values(&["b"]))
                .read(1001..1002, absent()),
        );
        assert_eq!(
            (account.phantoms.len(), account.false_conflicts.len(), account.diverged.len()),
            (2, 1, 1)
        );
    }

    #[test]
    fn the_twin_of_a_write_that_was_sent_on_may_show_until_the_store_has_settled() {
        let found = |receipt: Json, at: Range<u64>| {
            let history = History::new()
                .write(1..2, "a", &[])
                .write(5..6, "b", &["a"])
                .read(at, values(&["a", "b"]))
                .read(1101..1102, values(&["b"]));
            let mut operations = history.operations();
            (operations[0].node, operations[0].receipt) = ("n2".into(), Some(receipt));
            let account = account(&operations, SETTLED).unwrap();
            (account.false_conflicts.len(), account.late_twins)
        };
        let by = |by: &str, first: &str| json!({"by": by, "available": {"replies": [first, "n4*"]}});
        let own = by("n2", "n2");
        assert_eq!(
            found(by("n5", "n5"), 7..8),
            (0, 1),
            "another node took it: who was asked before may have too"
        );
        assert_eq!(found(by("n2", "n2*"), 7..8), (0, 1), "a fallback asks primaries first");
        assert_eq!(found(own.clone(), 7..8), (1, 0), "a replica that took it at once gave it its only dot");
        for (sign, value) in [("attempts", json!(2)), ("deduplicated", json!(true))] {
            let mut again = own.clone();
            again[sign] = value;
            assert_eq!(found(again, 7..8), (0, 1), "{sign}");
        }
        assert_eq!(found(by("n5", "n5"), 1001..1002), (1, 0), "in the end the twins have met");
    }

    #[test]
    fn what_covers_the_unseen_excuses_what_was_called_before_its_end() {
        let puts = || History::new().write(1..2, "a", &[]).write(3..9, "b", &[]).of_what_is_there();
        // "c" overlaps "b"; either may cover the other. "d" was called after both.
        let race = || puts().write(8..10, "c", &[]).of_what_is_there();
        for (kept, last) in [(true, "b"), (true, "c"), (false, "a")] {
            let account = account_of(race().read(1001..1002, values(&[last])));
            assert_eq!(account.lost.is_empty(), kept, "{last}: {account:?}");
            assert_eq!(account.uncertain.len(), if kept { 2 } else { 0 }, "{last}: {account:?}");
        }
        let nothing = account_of(race().read(1001..1002, absent()));
        assert!(!nothing.lost.is_empty(), "one of the two must be there: {nothing:?}");
        // A cover that is known goes on over it, and what came later is not excused.
        let after = race().write(11..12, "d", &["c"]);
        assert!(account_of(after.then(History::new().read(1001..1002, values(&["d"])))).kept());
        let lost_d = account_of(race().write(11..12, "d", &["c"]).read(1001..1002, values(&["c"])));
        assert_eq!(lost(&lost_d), [json!("d")]);
        // A delete of what is there, acknowledged or not, may have taken what was called before its end.
        let deleted = puts().delete(8..10, &[]).of_what_is_there().read(1001..1002, absent());
        assert!(account_of(deleted).kept());
        let later = puts().delete(4..5, &[]).of_what_is_there().write(6..7, "e", &[]);
        assert_eq!(lost(&account_of(later.read(1001..1002, absent()))), [json!("e")]);
        let open = puts().unknown_delete(4, &[]).of_what_is_there().write(6..7, "e", &[]);
        assert!(account_of(open.read(1001..1002, absent())).lost.is_empty());
    }

    #[test]
    fn a_read_is_stale_only_where_nothing_that_it_shows_may_cover_what_it_misses() {
        let history = || History::new().write(1..2, "a", &[]).write(3..9, "b", &[]).of_what_is_there();
        let stale = |history: History| account_of(history).stale.len();
        assert_eq!(stale(history().read(20..21, values(&["b"]))), 0);
        assert_eq!(stale(history().read(20..21, values(&["a"]))), 1);
        assert_eq!(stale(history().read(20..21, absent())), 1);
        assert_eq!(stale(history().delete(10..12, &[]).of_what_is_there().read(20..21, absent())), 0);
    }

    #[test]
    fn a_read_goes_back_only_behind_one_that_was_over() {
        let back = |history: History| account_of(history).went_back.len();
        // Of a write whose fate is open: it is not stale to miss it, until it was seen.
        let open = || History::new().write(1..2, "a", &[]).unknown_write(3, "b", &["a"]);
        assert_eq!(back(open().read(10..20, values(&["a"])).read(30..40, values(&["b"]))), 0);
        assert_eq!(back(open().read(10..20, values(&["b"])).read(30..40, values(&["a"]))), 1);
        assert_eq!(back(open().read(10..20, values(&["b"])).read(20..40, values(&["a"]))), 0, "they meet");
        assert_eq!(back(open().read(10..20, values(&["b"])).read(30..40, absent())), 1);
        assert_eq!(
            back(open().read(10..20, values(&["b"])).write(21..22, "c", &["b"]).read(30..40, values(&["c"]))),
            0
        );
        // A delete whose fate is open: once it was seen the value does not come back.
        let gone = || History::new().write(1..2, "a", &[]).unknown_delete(3, &["a"]);
        assert_eq!(back(gone().read(10..20, values(&["a"])).read(30..40, absent())), 0);
        assert_eq!(back(gone().read(10..20, absent()).read(30..40, values(&["a"]))), 1);
    }

    #[test]
    fn equal_values_cannot_be_judged() {
        let history = History::new().write(1..2, "a", &[]).write(3..4, "a", &[]);
        assert!(account(&history.operations(), SETTLED).unwrap_err().message.contains("unique"));
    }
}
