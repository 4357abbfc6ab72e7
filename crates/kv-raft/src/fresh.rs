//! A voter whose directory is fresh: the cluster is new, or its disk was lost. In the second case it has forgotten entries
//! that it acknowledged and votes that it gave, and Raft's proof does not cover it: it could elect a leader that lacks what
//! was committed, or confirm one that was deposed. So it asks before it takes part.
//!
//! Let *q* be a majority of *n* voters. Whatever was committed, and whoever was elected, with the help of this voter was so
//! with *q* - 1 others; any *n* - *q* + 1 of the others include one of those. With that many answers:
//!
//! - nobody has more than the entry every group begins with: the group is new, and is formed;
//! - somebody has: this voter **joins**. It notes the newest log and the newest vote it heard of and promises to follow no
//!   older leader, so that none can use it, and takes entries. It gives no vote and does not campaign until it knows an
//!   entry as committed that is not older than what it noted: then it has all that it ever acknowledged.
//!
//! Only answers of settled members prove what there is, so one voter at a time may lose its disk. After Ongaro's
//! dissertation, section 3.8, which leaves a lost disk to the operator; the rule is that of decision 5 for available data.

use bytes::{BufMut, Bytes, BytesMut};
use kv_types::{GroupId, majority};

use crate::codec::{self, CodecError};
use crate::config::{LeaderId, LogId, Vote};

/// What a member says of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Testimony {
    /// It is not itself fresh or joining.
    pub(crate) settled: bool,
    /// Whom its vote is for.
    pub(crate) leader: Option<LeaderId>,
    /// The end of its log.
    pub(crate) last: Option<LogId>,
}

/// Where a voter stands that began with a fresh directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stance {
    /// It takes part in everything.
    Settled,
    /// It does not know yet whether the group is new; it takes part in nothing.
    Asking,
    /// It takes entries, and neither votes nor campaigns.
    Joining(Joining),
}

/// What a voter noted when it began to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joining {
    /// No older leader is followed.
    pub(crate) leader: LeaderId,
    /// Until something not older than this is known as committed.
    pub(crate) beyond: Option<LogId>,
}

/// What the answers mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Too few have answered.
    Ask,
    /// The group is new.
    Form,
    /// The group exists.
    Join(Joining),
}

/// Judges the answers of the other voters, of `voters` in all.
pub(crate) fn judge(voters: usize, answers: &[Testimony]) -> Verdict {
    let n = u8::try_from(voters).unwrap_or(u8::MAX);
    let needed = (voters - usize::from(majority(n)).min(voters) + 1).min(voters.saturating_sub(1));
    // The entry at 0 is the same everywhere and is written by everybody who forms; the next one needs a leader.
    let grown = |said: &&Testimony| said.last.as_ref().is_some_and(|last| last.index > 0);
    if answers.iter().any(|said| grown(&said)) {
        let settled: Vec<_> = answers.iter().filter(|said| said.settled).collect();
        if settled.len() < needed {
            return Verdict::Ask;
        }
        let leader = answers.iter().filter_map(|said| said.leader).max();
        let beyond = settled.iter().filter_map(|said| said.last).max();
        return leader.map_or(Verdict::Ask, |leader| Verdict::Join(Joining { leader, beyond }));
    }
    if answers.len() < needed { Verdict::Ask } else { Verdict::Form }
}

/// Where the note of a group that is being joined is kept.
pub(crate) fn note_key(group: GroupId) -> Bytes {
    let mut key = BytesMut::from(&b"raft/joining/"[..]);
    key.put_u32(group.0);
    key.freeze()
}

impl Joining {
    /// As the vote that this node keeps from now on.
    pub(crate) fn vote(&self) -> Vote {
        Vote { leader_id: self.leader, committed: false }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::from(codec::encode_vote(&self.vote()).as_ref());
        if let Some(beyond) = &self.beyond {
            out.put(codec::encode_log_id(beyond));
        }
        out.freeze()
    }

    pub(crate) fn decode(mut note: Bytes) -> Result<Self, CodecError> {
        let vote = note.split_to(codec::VOTE_BYTES.min(note.len()));
        let leader = codec::decode_vote(vote)?.leader_id;
        let beyond = if note.is_empty() { None } else { Some(codec::decode_log_id(note)?) };
        Ok(Self { leader, beyond })
    }

    /// Whether all that this voter ever acknowledged is in its log, given the last entry it knows as committed.
    pub(crate) fn is_over(&self, committed: Option<LogId>) -> bool {
        committed >= self.beyond
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId { leader_id: RaftLeaderId::new(term, 1), index }
    }

    fn says(term: u64, last: Option<LogId>) -> Testimony {
        Testimony { settled: true, leader: Some(LeaderId::new(term, 2)), last }
    }

    #[test]
    fn a_group_is_formed_only_when_no_majority_can_know_more() {
        let nothing = Testimony { settled: false, leader: None, last: None };
        let formed = says(1, Some(id(0, 0)));
        for (voters, needed) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3)] {
            for answers in 0..voters {
                let verdict = judge(voters, &vec![nothing.clone(); answers]);
                let expected = if answers < needed { Verdict::Ask } else { Verdict::Form };
                assert_eq!(verdict, expected, "{answers} answers, {voters} voters");
            }
        }
        assert_eq!(judge(5, &[nothing.clone(), formed.clone(), formed]), Verdict::Form);
    }

    #[test]
    fn whoever_joins_notes_the_newest_of_what_enough_settled_members_have() {
        let fresh = Testimony { settled: false, leader: Some(LeaderId::new(9, 1)), last: None };
        let (old, new) = (says(4, Some(id(2, 70))), says(5, Some(id(4, 60))));
        assert_eq!(judge(5, &[old.clone(), new.clone(), fresh.clone()]), Verdict::Ask);
        let joining = Joining { leader: LeaderId::new(9, 1), beyond: Some(id(4, 60)) };
        assert_eq!(judge(5, &[old.clone(), new, fresh, old]), Verdict::Join(joining.clone()));
        assert_eq!(Joining::decode(joining.encode()).unwrap(), joining);
        assert!(
            !joining.is_over(None) && !joining.is_over(Some(id(4, 59))) && !joining.is_over(Some(id(3, 99)))
        );
        assert!(joining.is_over(Some(id(4, 60))) && joining.is_over(Some(id(10, 60))));
    }

    #[test]
    fn a_damaged_note_is_an_error() {
        let without = Joining { leader: LeaderId::new(3, 3), beyond: None };
        assert!(Joining::decode(without.encode().slice(..9)).is_err());
        assert!(Joining::decode(Bytes::from([without.encode().as_ref(), b"?"].concat())).is_err());
        assert_eq!(Joining::decode(without.encode()).unwrap(), without);
        assert!(without.is_over(None));
    }
}
