//! What a peer sends is checked before Raft sees it, because what Raft takes is persisted: a term that leaps
//! would end all elections, and an entry that cannot be decoded would end every member that applies it,
//! restarts included. Until peers prove who they are this is all that stands between one bad frame and the
//! log. What is refused here changes nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use kv_types::NodeId;
use kv_types::limits::MAX_VOTERS;
use openraft::EntryPayload;
use openraft::raft::AppendEntriesRequest;

use crate::codec::CodecError;
use crate::config::{LogId, TypeConfig, Vote};
use crate::limits::{APPEND_ENTRIES, MAX_COMMAND_BYTES, MAX_INDEX, TERM_LEAP};
use crate::proposal::Proposal;

/// Whether a proposal of a group decodes and keeps within the limits of what it holds.
pub(crate) type Check = fn(&Proposal) -> Result<(), CodecError>;

/// Why a message of a peer is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("TERM_LEAPS: term {term} is more than {TERM_LEAP} above {known}, the term known here")]
    TermLeaps { term: u64, known: u64 },
    #[error("FOREIGN_VOTE: {from} speaks for n{of}")]
    ForeignVote { from: NodeId, of: u64 },
    #[error("NOT_ELECTED: an append, a snapshot or a transfer carries a vote that no quorum has granted")]
    NotElected,
    #[error("ALREADY_ELECTED: a candidate asks with a vote that a quorum has granted")]
    AlreadyElected,
    #[error("TOO_MANY_ENTRIES: {entries} entries in one append, the bound is {APPEND_ENTRIES}")]
    TooManyEntries { entries: usize },
    #[error("INDEX_TOO_LARGE: {index} is above {MAX_INDEX}")]
    IndexTooLarge { index: u64 },
    #[error("GAP: entry {found} stands where {expected} must")]
    Gap { expected: u64, found: u64 },
    #[error("LEADERS_GO_BACK: entry {index} has an older leader than the one before it")]
    LeadersGoBack { index: u64 },
    #[error("FROM_THE_FUTURE: {what} has a newer leader than the one that sends it")]
    FromTheFuture { what: &'static str },
    #[error("CONTRADICTS_COMMITTED: entry {index} is not the one that is committed there")]
    ContradictsCommitted { index: u64 },
    #[error("BAD_MEMBERSHIP: a membership of {voters} voters, from 1 to {MAX_VOTERS} may be")]
    BadMembership { voters: usize },
    #[error("COMMAND_TOO_LARGE: {bytes} bytes, the bound is {MAX_COMMAND_BYTES}")]
    CommandTooLarge { bytes: usize },
    #[error("BAD_ENTRY: {0}")]
    BadEntry(#[from] CodecError),
}

/// What this node knows of a group when a message arrives.
pub(crate) struct Known<'a> {
    /// Its term.
    pub(crate) term: u64,
    /// The last entry of its log that it knows to be committed: see [`committed_in_log`].
    pub(crate) committed: Option<LogId>,
    /// Names of the entries in its log.
    pub(crate) id_of: &'a dyn Fn(u64) -> Option<LogId>,
}

/// The last entry that is committed and in the log, as far as is known. While a snapshot is being installed,
/// openraft counts its point as committed, though the log still holds what an older leader left there.
pub(crate) fn committed_in_log(
    committed: Option<LogId>,
    applied: Option<LogId>,
    installing: bool,
) -> Option<LogId> {
    if installing { committed.min(applied) } else { committed }
}

/// How many messages of a group were refused.
#[derive(Debug, Default)]
pub(crate) struct Refusals(AtomicU64);

impl Refusals {
    /// Counts one; true when it is worth a line in the log: the first, and then ever fewer.
    pub(crate) fn count(&self) -> bool {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        count.is_power_of_two()
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether what a peer answers may be taken: a vote above our own is persisted like one that is asked for,
/// and an index is calculated with.
pub(crate) fn check_answer(
    vote: Option<&Vote>,
    last: Option<&LogId>,
    known_term: u64,
) -> Result<(), Malformed> {
    if let Some(vote) = vote {
        check_leap(vote, known_term)?;
    }
    match last {
        Some(last) if last.index > MAX_INDEX => Err(Malformed::IndexTooLarge { index: last.index }),
        Some(last) if last.leader_id.term > known_term.saturating_add(TERM_LEAP) => {
            Err(Malformed::TermLeaps { term: last.leader_id.term, known: known_term })
        }
        _ => Ok(()),
    }
}

fn check_leap(vote: &Vote, known_term: u64) -> Result<(), Malformed> {
    let term = vote.leader_id.term;
    if term > known_term.saturating_add(TERM_LEAP) {
        return Err(Malformed::TermLeaps { term, known: known_term });
    }
    Ok(())
}

/// Whether a vote may be what it claims to be; `elected` where only the vote of a leader makes sense.
pub(crate) fn check_vote(from: NodeId, vote: &Vote, elected: bool, known_term: u64) -> Result<(), Malformed> {
    let leader = vote.leader_id;
    check_leap(vote, known_term)?;
    if leader.node_id != from.0 {
        return Err(Malformed::ForeignVote { from, of: leader.node_id });
    }
    match (elected, vote.committed) {
        (true, false) => Err(Malformed::NotElected),
        (false, true) => Err(Malformed::AlreadyElected),
        _ => Ok(()),
    }
}

/// Whether an append may be what a leader sends.
pub(crate) fn check_append(
    from: NodeId,
    append: &AppendEntriesRequest<TypeConfig>,
    known: &Known<'_>,
    check: Check,
) -> Result<(), Malformed> {
    check_vote(from, &append.vote, true, known.term)?;
    let entries = append.entries.len();
    if u64::try_from(entries).unwrap_or(u64::MAX) > APPEND_ENTRIES {
        return Err(Malformed::TooManyEntries { entries });
    }
    for (what, id) in [("what precedes", &append.prev_log_id), ("what is committed", &append.leader_commit)] {
        let Some(id) = id else { continue };
        check_id(what, id, &append.vote)?;
    }
    let mut before = append.prev_log_id;
    if let Some(previous) = before {
        check_committed(&previous, known)?;
    }
    for entry in &append.entries {
        let id = entry.log_id;
        let expected = before.map_or(0, |before| before.index + 1);
        if id.index != expected {
            return Err(Malformed::Gap { expected, found: id.index });
        }
        check_id("an entry", &id, &append.vote)?;
        if before.is_some_and(|before| before.leader_id > id.leader_id) {
            return Err(Malformed::LeadersGoBack { index: id.index });
        }
        check_committed(&id, known)?;
        check_payload(&entry.payload, check)?;
        before = Some(id);
    }
    Ok(())
}

fn check_id(what: &'static str, id: &LogId, vote: &Vote) -> Result<(), Malformed> {
    if id.index > MAX_INDEX {
        return Err(Malformed::IndexTooLarge { index: id.index });
    }
    if id.leader_id > vote.leader_id {
        return Err(Malformed::FromTheFuture { what });
    }
    Ok(())
}

/// No leader has other entries than those that are committed.
fn check_committed(id: &LogId, known: &Known<'_>) -> Result<(), Malformed> {
    let index = id.index;
    if known.committed.is_some_and(|committed| index <= committed.index)
        && (known.id_of)(index).is_some_and(|ours| ours != *id)
    {
        return Err(Malformed::ContradictsCommitted { index });
    }
    Ok(())
}

fn check_payload(
    payload: &EntryPayload<Proposal, u64, openraft::EmptyNode>,
    check: Check,
) -> Result<(), Malformed> {
    match payload {
        EntryPayload::Blank => Ok(()),
        EntryPayload::Normal(proposal) => match proposal.0.len() {
            bytes if bytes > MAX_COMMAND_BYTES => Err(Malformed::CommandTooLarge { bytes }),
            _ => Ok(check(proposal)?),
        },
        EntryPayload::Membership(membership) => {
            // A change has two sets of voters while it is under way.
            let voters = membership.get_joint_config().iter().map(|voters| voters.len()).max().unwrap_or(0);
            match voters {
                1..=MAX_VOTERS => Ok(()),
                _ => Err(Malformed::BadMembership { voters }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::log_id;
    use openraft::vote::RaftLeaderId;

    /// An append as a new leader probes with while a snapshot up to 20 is being installed, into a log that
    /// holds entries 11 and on of an older leader, of which 10 is applied.
    #[test]
    fn what_an_older_leader_left_is_no_evidence_while_a_snapshot_is_installed() {
        let (snapshot, applied) = (Some(log_id(3, 3, 20)), Some(log_id(1, 1, 10)));
        let id_of = |index: u64| (index <= 15).then(|| log_id(if index > 10 { 2 } else { 1 }, 1, index));
        let vote = Vote { leader_id: RaftLeaderId::new(4, 2), committed: true };
        let probe = |previous| AppendEntriesRequest::<TypeConfig> {
            vote,
            prev_log_id: Some(previous),
            leader_commit: None,
            entries: Vec::new(),
        };
        let judged = |installing, previous| {
            let committed = committed_in_log(snapshot, applied, installing);
            let known = Known { term: 3, committed, id_of: &id_of };
            check_append(NodeId(2), &probe(previous), &known, |_| Ok(()))
        };
        assert_eq!(judged(true, log_id(3, 3, 12)), Ok(()));
        assert_eq!(judged(true, log_id(2, 2, 9)), Err(Malformed::ContradictsCommitted { index: 9 }));
        assert_eq!(judged(false, log_id(3, 3, 12)), Err(Malformed::ContradictsCommitted { index: 12 }));
        assert_eq!(committed_in_log(None, None, true), None);
    }

    #[test]
    fn answers_that_leap_are_refused() {
        let vote = |term| Vote { leader_id: RaftLeaderId::new(term, 2), committed: true };
        let check = |term, last: Option<LogId>| check_answer(Some(&vote(term)), last.as_ref(), 7);
        assert_eq!(check(7 + TERM_LEAP, None), Ok(()));
        let leaps = |term| Err(Malformed::TermLeaps { term, known: 7 });
        assert_eq!(check(8 + TERM_LEAP, None), leaps(8 + TERM_LEAP));
        assert_eq!(check(u64::MAX, None), leaps(u64::MAX));
        assert_eq!(check(8, Some(log_id(u64::MAX, 1, 1))), leaps(u64::MAX));
        let far = log_id(1, 1, MAX_INDEX + 1);
        assert_eq!(check(8, Some(far)), Err(Malformed::IndexTooLarge { index: MAX_INDEX + 1 }));
        assert_eq!(check_answer(None, None, 7), Ok(()));
    }
}
