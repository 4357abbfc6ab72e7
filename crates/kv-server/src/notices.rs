//! What the log tells an operator about the cluster: nodes lost and back, who leads, where a quorum is out of
//! reach, and whom a first start waits for. Decided as values from what the node sees now and saw before; the
//! loop that follows the node's health looks, and logs what comes out.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kv_peer::{Liveness, PeerState};
use kv_proto::admin::GroupStatus;
use kv_types::{NodeId, counted};

use crate::limits::{WAIT_BEFORE_NOTICE, WAIT_BETWEEN_NOTICES};

/// Something that an operator would want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A node answers no more, or never did.
    Lost { node: NodeId, silent_for: Option<Duration> },
    /// It answers again.
    Back { node: NodeId },
    /// A group has another leader, or a new term.
    Leads { group: u32, leader: NodeId, term: u64 },
    /// A group hears no leader, though a majority of it can be reached.
    NoLeader { group: u32, reachable: u32, voters: usize },
    /// A majority of a group cannot be reached.
    NoQuorum { group: u32, reachable: u32, voters: usize },
    /// It can again.
    Quorum { group: u32 },
    /// The cluster was never started, and these nodes have not been heard.
    Waits { absent: Vec<NodeId> },
}

impl Notice {
    /// Whether it is bad news.
    pub(crate) fn is_bad(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::NoQuorum { .. } | Self::Waits { .. })
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { node, silent_for: Some(silent_for) } => {
                write!(f, "{node} is lost: it has not answered for {:.1} s", silent_for.as_secs_f64())
            }
            Self::Lost { node, silent_for: None } => write!(f, "{node} has not answered yet"),
            Self::Back { node } => write!(f, "{node} is back: it answers"),
            Self::Leads { group, leader, term } => write!(f, "{leader} leads group {group} in term {term}"),
            Self::NoLeader { group, reachable, voters } => {
                let of = counted(*voters, "voter", "voters");
                write!(f, "group {group} hears no leader here: {reachable} of {of} can be reached")
            }
            Self::NoQuorum { group, reachable, voters } => {
                let of = counted(*voters, "voter", "voters");
                write!(f, "group {group} has no quorum here: {reachable} of {of} can be reached")
            }
            Self::Quorum { group } => write!(f, "group {group} has a quorum here"),
            Self::Waits { absent } if absent.is_empty() => {
                f.write_str("waits for the first start of the cluster: all nodes answer")
            }
            Self::Waits { absent } => {
                let names: Vec<String> = absent.iter().map(NodeId::to_string).collect();
                write!(f, "waits for the first start of the cluster: {} did not answer yet", names.join(", "))
            }
        }
    }
}

/// What a node sees at one moment.
pub(crate) struct Sight {
    pub(crate) peers: BTreeMap<NodeId, Liveness>,
    pub(crate) groups: Vec<GroupStatus>,
    /// Whether the catalogue is there: the cluster has been started once.
    pub(crate) started: bool,
    /// How long this process runs.
    pub(crate) runs_for: Duration,
}

/// What was told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    lost: BTreeMap<NodeId, bool>,
    leaders: BTreeMap<u32, (u64, u64)>,
    quorums: BTreeMap<u32, bool>,
    waits_at: Option<Duration>,
}

impl Told {
    /// What is new.
    pub(crate) fn look(&mut self, sight: &Sight) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (node, liveness) in &sight.peers {
            let lost = self.lost.entry(*node).or_default();
            match (*lost, liveness.state) {
                (false, PeerState::Down) => {
                    *lost = true;
                    notices.push(Notice::Lost { node: *node, silent_for: liveness.last_heard });
                }
                (true, PeerState::Up) => {
                    *lost = false;
                    notices.push(Notice::Back { node: *node });
                }
                _ => {}
            }
        }
        for group in &sight.groups {
            self.look_at(group, &mut notices);
        }
        if !sight.started && sight.runs_for >= self.waits_at.unwrap_or(WAIT_BEFORE_NOTICE) {
            self.waits_at = Some(sight.runs_for + WAIT_BETWEEN_NOTICES);
            let absent = sight.peers.iter().filter(|(_, liveness)| !liveness.is_up());
            notices.push(Notice::Waits { absent: absent.map(|(node, _)| *node).collect() });
        }
        notices
    }

    fn look_at(&mut self, group: &GroupStatus, notices: &mut Vec<Notice>) {
        let (id, leader) = (group.group, (group.leader, group.term));
        if group.quorum && group.leader != 0 && self.leaders.insert(id, leader) != Some(leader) {
            notices.push(Notice::Leads { group: id, leader: NodeId(group.leader), term: group.term });
        }
        // A group that has just started had no quorum that it could have lost.
        match self.quorums.get(&id) {
            Some(true) if !group.quorum => {
                let (reachable, voters) = (group.reachable_voters, group.voters.len());
                let majority = usize::try_from(reachable).is_ok_and(|reachable| reachable > voters / 2);
                notices.push(match majority {
                    true => Notice::NoLeader { group: id, reachable, voters },
                    false => Notice::NoQuorum { group: id, reachable, voters },
                });
            }
            Some(false) if group.quorum => notices.push(Notice::Quorum { group: id }),
            _ => {}
        }
        if group.quorum || self.quorums.contains_key(&id) {
            self.quorums.insert(id, group.quorum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(peers: [PeerState; 2], leader: u64, quorum: bool) -> Sight {
        let seen = |state| Liveness { state, last_heard: Some(Duration::from_millis(3_100)) };
        let group = GroupStatus {
            group: 1,
            leader,
            term: leader + 1,
            quorum,
            reachable_voters: 1 + u32::from(quorum),
            voters: vec![1, 2, 3],
            ..GroupStatus::default()
        };
        Sight {
            peers: [(NodeId(2), seen(peers[0])), (NodeId(3), seen(peers[1]))].into(),
            groups: vec![group],
            started: true,
            runs_for: Duration::from_secs(60),
        }
    }

    fn words(told: &mut Told, sight: &Sight) -> Vec<String> {
        told.look(sight).iter().map(Notice::to_string).collect()
    }

    #[test]
    fn each_change_is_told_once() {
        use PeerState::{Down, Suspected, Up};
        let mut told = Told::default();
        assert_eq!(
            words(&mut told, &sight([Up, Up], 0, false)),
            [""; 0],
            "an election at the start is no loss"
        );
        assert_eq!(words(&mut told, &sight([Up, Up], 2, true)), ["n2 leads group 1 in term 3"]);
        assert_eq!(words(&mut told, &sight([Up, Suspected], 2, true)), [""; 0], "it may be slow");
        let lost = ["n3 is lost: it has not answered for 3.1 s"];
        assert_eq!(words(&mut told, &sight([Up, Down], 2, true)), lost);
        assert_eq!(words(&mut told, &sight([Up, Down], 2, true)), [""; 0]);
        assert_eq!(
            words(&mut told, &sight([Suspected, Down], 2, false)),
            ["group 1 has no quorum here: 1 of 3 voters can be reached"]
        );
        let mut elects = sight([Up, Up], 2, true);
        let mut other = Told::default();
        words(&mut other, &elects);
        elects.groups[0].quorum = false;
        assert_eq!(
            words(&mut other, &elects),
            ["group 1 hears no leader here: 2 of 3 voters can be reached"]
        );
        assert_eq!(
            words(&mut told, &sight([Up, Up], 1, true)),
            ["n3 is back: it answers", "n1 leads group 1 in term 2", "group 1 has a quorum here"]
        );
    }

    #[test]
    fn a_first_start_says_whom_it_waits_for() {
        let mut told = Told::default();
        let at = |runs_for, peers| Sight { started: false, runs_for, ..sight(peers, 0, false) };
        use PeerState::{Suspected, Up};
        assert!(told.look(&at(Duration::ZERO, [Up, Suspected])).is_empty());
        let waits = "waits for the first start of the cluster: n3 did not answer yet";
        assert_eq!(words(&mut told, &at(WAIT_BEFORE_NOTICE, [Up, Suspected])), [waits]);
        assert!(told.look(&at(WAIT_BEFORE_NOTICE * 2, [Up, Suspected])).is_empty());
        let later = WAIT_BEFORE_NOTICE + WAIT_BETWEEN_NOTICES;
        assert!(words(&mut told, &at(later, [Up, Up]))[0].ends_with("all nodes answer"));
        assert!(told.look(&sight([Up, Up], 0, false)).is_empty());
    }
}
