//! A voter whose directory is fresh: the cluster is new, or its disk was lost. In the second case it has
//! forgotten entries that it acknowledged and votes that it gave, and Raft's proof does not cover it: it
//! could elect a leader that lacks what was committed, or confirm one that was deposed. So it asks before it
//! takes part.
//!
//! Let *q* be a majority of *n* voters, and call this voter X. Whatever was committed, and whoever was
//! elected, with the help of X was so with *q* - 1 others; any *n* - *q* + 1 of the others include one of
//! those, and one of any majority that X was not in. With that many answers:
//!
//! - nobody has voted for another, or has more than the entry every group begins with: no leader was ever
//!   elected. The group is new, and is formed. (Whoever forms it campaigns at once, in [`FORMING_TERM`], and
//!   has its own vote on its disk before anybody else need be there. Nobody gives a vote in that term, so
//!   such a vote tells nothing; in later ones a majority has agreed to a campaign before it begins, and so
//!   the group exists.)
//! - somebody has: X **joins**. It notes the newest log and the newest vote it heard of and promises to
//!   follow no older leader, so that none can use it, and takes entries. It settles - votes and campaigns
//!   again - when it has all that it ever acknowledged and that may count as committed.
//!
//! **When to ask.** A vote that X gave just before its disk was lost may still be counted. A candidate waits
//! for an answer less than one election timeout, so X asks only after one, and then every leader it ever
//! elected has its *q* - 1 other votes, one of them among the answers. If all *n* - 1 others answer, X need
//! not wait: the candidate is one of them, and its own vote was on its disk before it asked anybody. So a new
//! cluster of which all nodes are up is formed at once.
//!
//! **When it settles.** X follows leader L, no older than its note, and an entry of L is applied here, so L
//! and this entry have a majority. Let e be an entry that leader M commits by counting what X acknowledged
//! before.
//!
//! - M older than L: the majorities of L and of e have a voter in common that acknowledged e before it voted
//!   for L; if only X is in both, it did so with its memory, for it gives no vote while it joins, except as
//!   below. So L was elected with e, and e stands before the applied entry.
//! - M newer than L: X followed M before, so M was elected before X asked, one of its voters answered, and
//!   the note is at least M. X follows nobody older than its note: this does not happen.
//! - M is L: an entry of L comes here only after L has found out that this log was lost and has forgotten
//!   what X had acknowledged. What L committed by then is in the commit index of every append that it sends
//!   with a position in its log since, and X waits until it has applied as much as the one that it knew of
//!   when it first looked ([`Heard`]).
//!
//! A leader begins with an entry of its own, so an idle group lets X settle; so does one whose log begins
//! with a snapshot, for that entry is in it, behind it, or superseded by one that is. What is *applied*, and
//! durable, counts, not what is known to be committed: a snapshot that is being installed is not there yet.
//!
//! **Votes while it joins.** If all others answered, as settled members, then whoever leads or led has
//! answered, with a log that ended not before any entry of its own that X had acknowledged: the note,
//! `beyond`, is at least every such entry, and X may vote as a voter whose log ends there. It gives its vote
//! to candidates whose log ends at `beyond` or later, and that are no older than its promise. Let c be the
//! first leader newer than M that is elected without e. Then its log ends at `beyond` or later, hence at e or
//! later: with an entry of M, and it has e, since logs that share an entry agree before it; or with an entry
//! of a leader between M and c, which had e. So there is no c. Without this two voters, one of them fresh,
//! wait for each other.
//!
//! Only answers of settled members prove what there is, so one voter at a time may lose its disk. After
//! Ongaro's dissertation, section 3.8, which leaves a lost disk to the operator; the rule is that of decision
//! 5 for available data.

use bytes::{BufMut, Bytes, BytesMut};
use kv_types::{GroupId, majority};

use crate::codec::{self, CodecError};
use crate::config::{LeaderId, LogId, Vote};

/// What a member says of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SurveyReply {
    /// It is not itself fresh or joining.
    pub(crate) settled: bool,
    /// A snapshot is on its way to it or being installed.
    pub(crate) receiving: bool,
    /// Whom its vote is for.
    pub(crate) leader: Option<LeaderId>,
    /// The end of its log.
    pub(crate) last: Option<LogId>,
}

/// The term in which whoever forms a group campaigns, without having asked whether others would vote. They do
/// not.
pub(crate) const FORMING_TERM: u64 = 1;

impl SurveyReply {
    /// Whether the group exists, by what this member says: somebody was voted for, or led.
    fn knows_the_group(&self) -> bool {
        // The entry at 0 says the same everywhere and is written by everybody who forms.
        self.leader.is_some_and(|leader| leader.term > FORMING_TERM)
            || self.last.is_some_and(|last| last.index > 0)
    }
}

/// Where a voter stands that began with a fresh directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// It takes part in everything.
    Settled,
    /// It does not know yet whether the group is new; it takes part in nothing.
    Asking,
    /// It takes entries, does not campaign, and votes only as [`JoinState::may_vote`] says.
    Joining(JoinState),
}

/// What a voter noted when it began to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JoinState {
    /// No older leader is followed.
    pub(crate) leader: LeaderId,
    /// Until something not older than this is known as committed.
    pub(crate) beyond: Option<LogId>,
    /// All others had answered, as settled members.
    pub(crate) heard_all: bool,
}

/// What the answers mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Too few have answered, or too soon.
    Ask,
    /// The group is new.
    Form,
    /// The group exists.
    Join(JoinState),
}

/// Judges the answers of the other voters, of `voters` in all. `rested`: the questions were sent an election
/// timeout or more after this process began.
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

/// Where the note of a group that is being joined is kept.
pub(crate) fn note_key(group: GroupId) -> Bytes {
    let mut key = BytesMut::from(&b"raft/joining/"[..]);
    key.put_u32(group.0);
    key.freeze()
}

/// Ends the note of a voter that has heard from all.
const HEARD_ALL: u8 = 1;

impl JoinState {
    /// As the vote that this node keeps from now on.
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

    /// Whether this voter may give its vote, or say that it would, to a candidate whose log ends here.
    pub(crate) fn may_vote(&self, candidate_last: Option<LogId>) -> bool {
        self.heard_all && candidate_last >= self.beyond
    }
}

/// What a joining voter heard from the leader that it follows, since this process began.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// The newest that sent an append with a position in its log.
    leader: Option<LeaderId>,
    /// Such an append was taken.
    followed: bool,
    /// The highest commit index in those appends.
    committed: Option<LogId>,
    /// What has to be applied: `committed`, when an entry of this leader was first seen as applied.
    aim: Option<Option<LogId>>,
}

impl Heard {
    /// A leader sent an append; noted before it is looked at, so that nothing is applied by it that is not
    /// noted. An append that stands nowhere in the log of the leader fits any log, and proves nothing.
    pub(crate) fn offered(&mut self, leader: LeaderId, position: Option<LogId>, committed: Option<LogId>) {
        if position.is_none() || self.leader > Some(leader) {
            return;
        }
        if self.leader != Some(leader) {
            *self = Self { leader: Some(leader), ..Self::default() };
        }
        self.committed = self.committed.max(committed);
    }

    /// It was taken.
    pub(crate) fn taken(&mut self, leader: LeaderId, position: Option<LogId>) {
        self.followed |= position.is_some() && self.leader == Some(leader);
    }

    /// Whether all that this voter ever acknowledged, and that may count, is applied here, given the last
    /// applied entry.
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
    fn whoever_joins_notes_the_newest_of_what_enough_settled_members_have() {
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
