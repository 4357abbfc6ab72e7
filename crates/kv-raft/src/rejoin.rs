//! A voter whose directory is empty: either the cluster is new, or the disk was lost. In the second case the
//! voter has forgotten entries that it acknowledged and votes that it gave. Raft's proof does not cover that:
//! it could help to elect a leader that lacks a committed entry, or confirm a deposed one. So it asks the
//! other voters before it takes part.
//!
//! Let *n* be the number of voters, *q* a majority of them, and X this voter. An entry that was committed, or
//! a leader that was elected, with the help of X had the help of *q* - 1 others. Any *n* - *q* + 1 of the
//! others include at least one of those, and at least one of any majority without X. With that many answers:
//!
//! - No one has voted for another node, or has more than the entry that every group begins with: no leader
//!   was ever elected. The group is new, and X forms it. (The node that forms a group campaigns at once, in
//!   [`FORMING_TERM`], and its own vote is on its disk before any other node has to be up. No voter grants a
//!   vote in that term, so such a vote says nothing. In later terms a majority agrees to a campaign before it
//!   begins, so the group exists.)
//! - Otherwise the group exists, and X **joins** it. It records the newest log and the newest vote that it
//!   heard of, promises to follow no older leader, and takes entries. It is *settled* - it votes and
//!   campaigns again - when it has everything that it ever acknowledged and that may count as committed.
//!
//! **When to ask.** A vote that X gave just before its disk was lost may still be counted. A candidate waits
//! for an answer for less than one election timeout, so X asks after one: by then every leader that it helped
//! to elect has its *q* - 1 other votes, and one of these voters is among the answers. If all *n* - 1 others
//! answer, X need not wait: the candidate is one of them, and its own vote was on its disk before it asked
//! for others. So a new cluster forms at once when all its nodes are up.
//!
//! **When it is settled.** X follows leader L, which is not older than the one it recorded, and has applied
//! an entry of L. So L and this entry have a majority. Let e be an entry that a leader M commits by counting
//! an acknowledgement that X gave before it lost its disk.
//!
//! - M is older than L. The majorities of L and of e have a voter in common that acknowledged e before it
//!   voted for L. If that is only X, it voted with its memory, because it gives no vote while it joins,
//!   except as described below. So L was elected with e, and e comes before the applied entry.
//! - M is newer than L. X followed M before, so M was elected before X asked, one of M's voters answered, and
//!   X recorded a leader that is at least M. X follows no leader older than that, so this case does not
//!   occur.
//! - M is L. An entry of L arrives only after L has found out that this log was lost, and has forgotten what
//!   X acknowledged. What L had committed by then is in the commit index of every append since that names a
//!   position in its log. X waits until it has applied as much as the commit index that it knew when it first
//!   looked ([`Heard`]).
//!
//! A leader begins with an entry of its own, so X settles in an idle group too. It also settles when its log
//! begins with a snapshot: that entry is in the snapshot, or after it, or is superseded by one in it. What
//! counts is what is *applied* and durable, not what is known to be committed: a snapshot that is still being
//! installed is not there yet.
//!
//! **Votes while it joins.** If all others answered as settled members, every leader so far has answered,
//! and its log did not end before any of its own entries that X had acknowledged. So the recorded `beyond` is
//! at least every such entry, and X may vote like a voter whose log ends there: for candidates whose log ends
//! at `beyond` or later and that are not older than its promise. Let c be the first leader newer than M that
//! is elected without e. Its log ends at `beyond` or later, so at e or later. Either it ends with an entry of
//! M, and then it has e, because logs that share an entry agree before it; or it ends with an entry of a
//! leader between M and c, which had e. So there is no such c. Without these votes two voters, one of them
//! fresh, would wait for each other.
//!
//! Only the answers of settled members prove what exists, so only one voter at a time may lose its disk.
//! Ongaro's dissertation, section 3.8, leaves a lost disk to the operator; this rule follows decision 5,
//! which is for available data.

use bytes::{BufMut, Bytes, BytesMut};
use kv_types::{GroupId, majority};

use crate::codec::{self, CodecError};
use crate::config::{LeaderId, LogId, Vote};

/// What a member answers when it is asked about a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SurveyReply {
    /// It is neither fresh nor joining.
    pub(crate) settled: bool,
    /// A snapshot is on its way to it or being installed.
    pub(crate) receiving: bool,
    /// The leader or candidate that its vote is for.
    pub(crate) leader: Option<LeaderId>,
    /// The end of its log.
    pub(crate) last: Option<LogId>,
}

/// The term in which the node that forms a group campaigns, without asking first whether others would vote
/// for it. No voter grants a vote in this term.
pub(crate) const FORMING_TERM: u64 = 1;

impl SurveyReply {
    /// Whether this answer shows that the group exists: another node was voted for, or led.
    fn knows_the_group(&self) -> bool {
        // The entry at 0 is the same everywhere: every node that forms the group writes it.
        self.leader.is_some_and(|leader| leader.term > FORMING_TERM)
            || self.last.is_some_and(|last| last.index > 0)
    }
}

/// What a voter that began with a fresh directory may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// It takes part in everything.
    Settled,
    /// It does not know yet whether the group is new, and takes no part in it.
    Asking,
    /// It takes entries, does not campaign, and votes only as [`JoinState::may_vote`] says.
    Joining(JoinState),
}

/// What a voter recorded when it began to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JoinState {
    /// It follows no older leader.
    pub(crate) leader: LeaderId,
    /// It joins until it has applied an entry that is not older than this one.
    pub(crate) beyond: Option<LogId>,
    /// All other voters had answered, as settled members.
    pub(crate) heard_all: bool,
}

/// What follows from the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Ask again: too few have answered, or too soon after the start.
    Ask,
    /// Form the group: it is new.
    Form,
    /// Join the group: it exists.
    Join(JoinState),
}

/// Decides by the answers of the other voters; the group has `voters` in all. `rested`: the questions were
/// sent at least one election timeout after this process began.
pub(crate) fn judge(voters: usize, answers: &[SurveyReply], rested: bool) -> Decision {
    let n = u8::try_from(voters).unwrap_or(u8::MAX);
    let others = voters.saturating_sub(1);
    let enough = |answered: usize| {
        let needed = (voters - usize::from(majority(n)).min(voters) + 1).min(others);
        answered >= if rested { needed } else { others }
    };
    if !answers.iter().any(SurveyReply::knows_the_group) {
        return if enough(answers.len()) { Decision::Form } else { Decision::Ask };
    }
    let settled: Vec<_> = answers.iter().filter(|said| said.settled).collect();
    if !enough(settled.len()) {
        return Decision::Ask;
    }
    let heard_all = settled.len() >= others;
    let beyond = settled.iter().filter_map(|said| said.last).max();
    let leader = answers.iter().filter_map(|said| said.leader).max();
    leader.map_or(Decision::Ask, |leader| Decision::Join(JoinState { leader, beyond, heard_all }))
}

/// The key under which [`JoinState`] is kept while a group is joined.
pub(crate) fn note_key(group: GroupId) -> Bytes {
    let mut key = BytesMut::from(&b"raft/joining/"[..]);
    key.put_u32(group.0);
    key.freeze()
}

/// Last byte of the record of a voter that has heard from all others.
const HEARD_ALL: u8 = 1;

impl JoinState {
    /// The vote that this node keeps from now on.
    pub(crate) fn vote(&self) -> Vote {
        Vote { leader_id: self.leader, committed: false }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::from(codec::encode_vote(&self.vote()).as_ref());
        if let Some(beyond) = &self.beyond {
            out.put(codec::encode_log_id(beyond));
        }
        if self.heard_all {
            out.put_u8(HEARD_ALL);
        }
        out.freeze()
    }

    pub(crate) fn decode(mut note: Bytes) -> Result<Self, CodecError> {
        let vote = note.split_to(codec::VOTE_BYTES.min(note.len()));
        let leader = codec::decode_vote(vote)?.leader_id;
        let heard_all = note.last() == Some(&HEARD_ALL) && note.len() % codec::LOG_ID_BYTES == 1;
        note.truncate(note.len() - usize::from(heard_all));
        let beyond = if note.is_empty() { None } else { Some(codec::decode_log_id(note)?) };
        Ok(Self { leader, beyond, heard_all })
    }

    /// Whether this voter may vote for a candidate whose log ends at `candidate_last`, or say that it would.
    pub(crate) fn may_vote(&self, candidate_last: Option<LogId>) -> bool {
        self.heard_all && candidate_last >= self.beyond
    }
}

/// What a joining voter has heard from the leader that it follows, since this process began.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// The newest leader that sent an append with a position in its log.
    leader: Option<LeaderId>,
    /// Such an append was accepted.
    followed: bool,
    /// The highest commit index in those appends.
    committed: Option<LogId>,
    /// What has to be applied: `committed` at the time when an entry of this leader was first applied.
    aim: Option<Option<LogId>>,
}

impl Heard {
    /// A leader sent an append. This is recorded before the append is handled, so that nothing is applied
    /// because of it before that. An append without a position in the leader's log fits any log and proves
    /// nothing.
    pub(crate) fn offered(&mut self, leader: LeaderId, position: Option<LogId>, committed: Option<LogId>) {
        if position.is_none() || self.leader > Some(leader) {
            return;
        }
        if self.leader != Some(leader) {
            *self = Self { leader: Some(leader), ..Self::default() };
        }
        self.committed = self.committed.max(committed);
    }

    /// The append was accepted.
    pub(crate) fn taken(&mut self, leader: LeaderId, position: Option<LogId>) {
        self.followed |= position.is_some() && self.leader == Some(leader);
    }

    /// Whether everything that this voter ever acknowledged, and that may count as committed, is applied
    /// here. `applied` is the last applied entry.
    pub(crate) fn is_over(&mut self, joining: &JoinState, applied: Option<LogId>) -> bool {
        let Some(applied) = applied.filter(|id| self.followed && Some(id.leader_id) == self.leader) else {
            return false;
        };
        let aim = *self.aim.get_or_insert(self.committed);
        Some(applied) >= joining.beyond.max(aim)
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId { leader_id: RaftLeaderId::new(term, 1), index }
    }

    fn says(term: u64, last: Option<LogId>) -> SurveyReply {
        SurveyReply { settled: true, receiving: false, leader: Some(LeaderId::new(term, 2)), last }
    }

    #[test]
    fn a_group_is_formed_only_when_no_majority_can_know_more() {
        let nothing = SurveyReply { settled: false, receiving: false, leader: None, last: None };
        let formed = SurveyReply { settled: true, receiving: false, leader: None, last: Some(id(0, 0)) };
        for (voters, needed) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3)] {
            for answers in 0..voters {
                for rested in [false, true] {
                    let verdict = judge(voters, &vec![nothing.clone(); answers], rested);
                    // Before an election timeout has passed, only the answers of all others say enough.
                    let enough = answers >= if rested { needed } else { voters - 1 };
                    let expected = if enough { Decision::Form } else { Decision::Ask };
                    assert_eq!(verdict, expected, "{answers} answers, {voters} voters, rested: {rested}");
                }
            }
        }
        assert_eq!(judge(5, &[nothing.clone(), formed.clone(), formed.clone()], true), Decision::Form);
        // The campaign that ends the forming tells nothing; a later vote does, though nothing was written
        // yet: its candidate may have won with this voter's help.
        assert_eq!(judge(2, &[says(FORMING_TERM, Some(id(0, 0)))], true), Decision::Form);
        let joining = JoinState { leader: LeaderId::new(2, 2), beyond: Some(id(0, 0)), heard_all: true };
        assert_eq!(judge(2, &[says(2, Some(id(0, 0)))], true), Decision::Join(joining));
        assert_eq!(judge(5, &[nothing, formed, says(2, Some(id(0, 0)))], true), Decision::Ask);
    }

    #[test]
    fn a_voter_that_joins_records_the_newest_of_what_enough_settled_members_have() {
        let fresh = SurveyReply {
            settled: false,
            receiving: false,
            leader: Some(LeaderId::new(9, 1)),
            last: Some(id(8, 8)),
        };
        let (old, new) = (says(4, Some(id(2, 70))), says(5, Some(id(4, 60))));
        assert_eq!(judge(5, &[old.clone(), new.clone(), fresh.clone()], true), Decision::Ask);
        let some = [old.clone(), new.clone(), fresh, old.clone()];
        let joining = JoinState { leader: LeaderId::new(9, 1), beyond: Some(id(4, 60)), heard_all: false };
        assert_eq!(judge(5, &some, true), Decision::Join(joining.clone()));
        assert_eq!(judge(5, &some, false), Decision::Ask);
        assert_eq!(JoinState::decode(joining.encode()).unwrap(), joining);
        let all = JoinState { leader: LeaderId::new(5, 2), ..joining };
        let all = JoinState { heard_all: true, ..all };
        for rested in [false, true] {
            let answers = [old.clone(), new.clone(), old.clone(), old.clone()];
            assert_eq!(judge(5, &answers, rested), Decision::Join(all.clone()));
        }
        assert_eq!(JoinState::decode(all.encode()).unwrap(), all);
    }

    #[test]
    fn a_vote_needs_the_answers_of_all_and_a_log_that_ends_late_enough() {
        let all = JoinState { leader: LeaderId::new(5, 2), beyond: Some(id(4, 60)), heard_all: true };
        for (last, may) in [
            (None, false),
            (Some(id(4, 59)), false),
            (Some(id(3, 99)), false),
            (Some(id(4, 60)), true),
            (Some(id(5, 1)), true),
        ] {
            assert_eq!(all.may_vote(last), may, "{last:?}");
            assert!(!JoinState { heard_all: false, ..all.clone() }.may_vote(last), "{last:?}");
        }
    }

    #[test]
    fn it_settles_with_an_entry_of_its_leader_and_all_that_the_leader_had_committed() {
        let (leader, at) = (LeaderId::new(7, 1), Some(id(7, 90)));
        let joining = JoinState { leader: LeaderId::new(5, 2), beyond: Some(id(4, 60)), heard_all: false };
        let over = |heard: &mut Heard, applied| heard.is_over(&joining, Some(applied));

        // Nothing is taken yet, or only an append that fits any log.
        let mut heard = Heard::default();
        assert!(!over(&mut heard, id(7, 99)));
        heard.offered(leader, None, at);
        heard.taken(leader, None);
        assert!(!over(&mut heard, id(7, 99)));
        heard.offered(leader, at, at);
        assert!(!over(&mut heard, id(7, 99)));
        heard.taken(leader, at);
        assert!(!heard.is_over(&joining, None));

        // Committed and newer than the note, but no entry of this leader: an older one's, or another's of the
        // same term.
        assert!(!over(&mut heard, id(6, 95)));
        assert!(!over(&mut heard, LogId { leader_id: LeaderId::new(7, 0), index: 95 }));
        // This leader had committed more.
        assert!(!over(&mut heard, id(7, 89)));
        // What it commits later does not count: under load the end would never come.
        heard.offered(leader, Some(id(7, 120)), Some(id(7, 110)));
        assert!(!over(&mut heard, id(7, 89)));
        assert!(over(&mut heard, id(7, 90)));

        // All of it is asked again of a newer leader; an older one, late, changes nothing.
        let newer = LeaderId::new(8, 3);
        heard.offered(newer, at, Some(id(7, 130)));
        assert!(!over(&mut heard, id(7, 130)));
        heard.taken(leader, at);
        heard.offered(leader, at, Some(id(7, 999)));
        let first = LogId { leader_id: newer, index: 131 };
        assert!(!over(&mut heard, first));
        heard.taken(newer, at);
        assert!(over(&mut heard, first));
    }

    #[test]
    fn it_does_not_settle_before_what_it_noted() {
        let joining = JoinState { leader: LeaderId::new(5, 1), beyond: Some(id(5, 60)), heard_all: true };
        let (leader, at) = (LeaderId::new(5, 1), Some(id(5, 10)));
        let mut heard = Heard::default();
        heard.offered(leader, at, at);
        heard.taken(leader, at);
        assert!(!heard.is_over(&joining, Some(id(5, 59))));
        assert!(heard.is_over(&joining, Some(id(5, 60))));
        assert!(heard.is_over(&JoinState { beyond: None, ..joining }, Some(id(5, 10))));
    }

    #[test]
    fn a_damaged_note_is_an_error() {
        for heard_all in [false, true] {
            let without = JoinState { leader: LeaderId::new(3, 3), beyond: None, heard_all };
            assert!(JoinState::decode(without.encode().slice(..9)).is_err());
            assert!(JoinState::decode(Bytes::from([without.encode().as_ref(), b"?"].concat())).is_err());
            assert_eq!(JoinState::decode(without.encode()).unwrap(), without);
            let with = JoinState { beyond: Some(id(3, 4)), ..without };
            assert_eq!(JoinState::decode(with.encode()).unwrap(), with);
            for extra in [&b"?"[..], &[HEARD_ALL, HEARD_ALL]] {
                assert!(JoinState::decode(Bytes::from([with.encode().as_ref(), extra].concat())).is_err());
            }
        }
    }
}
