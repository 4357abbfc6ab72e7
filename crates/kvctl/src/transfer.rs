//! `cluster transfer-leader`: moves a leadership, and says why it does not move. The leader refuses what is
//! meant for a node that it does not hear, or only finds out when the time is up; what the nodes say of each
//! other tells more.

use std::time::Duration;

use kv_client::{Client, GroupStatus, NodeStatus, PeerState};
use kv_types::{GroupId, NodeId, Reason};
use serde_json::json;
use tokio::time::timeout;

use crate::app::App;
use crate::broken::Broken;
use crate::exit::Exit;
use crate::line::Line;
use crate::problem::Problem;
use crate::progress::while_waiting;
use crate::units::ago;
use crate::views::{Views, views};

/// How long the nodes may take to say what they see.
const LOOK_WITHIN: Duration = Duration::from_millis(800);
/// A node whose log ends so many entries before the leader's lags behind.
const LAGS: u64 = 1_000;

pub(crate) async fn run(app: &App, node: NodeId, group: GroupId) -> Result<Exit, Problem> {
    let client = app.client()?;
    let admin = client.admin();
    let what = format!("{node} leads {group}");
    let moved = while_waiting(app, &what, admin.transfer_leader(group, node)).await;
    let leader = match moved {
        Ok(leader) => leader,
        Err(error) => return Err(explained(app, &client, node, group, error.into()).await),
    };
    let now = leader.node.map_or("none".to_owned(), |node| node.to_string());
    if app.out.is_json() {
        app.out.json(&json!({ "group": group.0, "leader": now, "term": leader.term }))?;
    } else {
        app.out.done(format!("{group} is now led by {now}, term {}", leader.term))?;
    }
    Ok(if leader.node == Some(node) { Exit::Done } else { Exit::No })
}

/// The same failure with what the nodes say of the one that was to lead, where that tells more.
async fn explained(app: &App, client: &Client, to: NodeId, group: GroupId, problem: Problem) -> Problem {
    let Some(failure) = problem.failure.clone() else { return problem };
    let tells_little = matches!(
        failure.reason,
        Reason::Unreachable
            | Reason::DeadlineExpired
            | Reason::ResultUnknown
            | Reason::ConnectionLost
            | Reason::NoQuorum
            | Reason::NotLeader
    );
    if !tells_little {
        return problem;
    }
    let looking = async {
        let topology = client.admin().topology().await.ok()?;
        Some(views(client, &topology).await)
    };
    let Ok(Some(views)) = timeout(LOOK_WITHIN, looking).await else { return problem };
    // The leader said that the other one does not answer; this client does not ask that one. What a node that
    // is cut off says may stand before it.
    let last = failure.detail("last_reason").unwrap_or(failure.reason.code_name());
    let refused = last == Reason::Unreachable.code_name() && failure.detail("endpoint").is_none();
    let Some((why, others)) = unmoved(&views, to, group, refused) else { return problem };
    let mut problem = Problem { message: format!("{}\n{why}", problem.message), ..problem };
    if let Some(broken) = Broken::of(app).await {
        problem.tries.extend(broken.mend());
    }
    if let Some(other) = others.first() {
        let line = app.line.clone().replaced("node", &other.to_string());
        problem = problem.try_this(line.to_string(), format!("{other} is heard, and has the log"));
    }
    let look: Line = app.line.cluster(&["cluster", "status"]).with("--as-seen-by", "all");
    problem.try_this(look.to_string(), "who leads, and who hears whom")
}

/// Why a node does not take over, as the leader and it say themselves, and who else could; none where no one
/// is known to lead. `refused`: a node said that it does not answer.
fn unmoved(views: &Views, to: NodeId, group: GroupId, refused: bool) -> Option<(String, Vec<NodeId>)> {
    let group_at = |status: &NodeStatus| -> Option<GroupStatus> {
        status.groups.iter().find(|known| known.group == group.0).cloned()
    };
    let known = views.values().flatten().filter_map(group_at).filter(|known| known.leader != 0);
    let newest = known.filter(|known| known.quorum).max_by_key(|known| known.term)?;
    let leader = NodeId(newest.leader);
    if leader == to {
        return Some((format!("{to} leads {group} now"), Vec::new()));
    }
    let status = views.get(&leader)?.as_ref()?;
    let peer = |node: NodeId| status.peers.iter().find(|peer| peer.node == node.0);
    let hears = |node: NodeId| peer(node).is_some_and(|peer| peer.state() == PeerState::Up);
    let ends = |node: NodeId| {
        let status = views.get(&node)?.as_ref()?;
        Some(group_at(status)?.last_index)
    };
    let end = ends(leader)?;
    let lags = |node: NodeId| ends(node).is_some_and(|own| own + LAGS < end);
    let voters = newest.voters.iter().copied().map(NodeId);
    let others =
        voters.filter(|node| *node != to && *node != leader && hears(*node) && !lags(*node)).collect();
    let why = if refused || !hears(to) {
        let heard = peer(to).and_then(|peer| peer.last_heard_ms).filter(|_| !hears(to));
        let heard = heard.map_or(String::new(), |ms| format!(" (last heard {} ago)", ago(ms)));
        format!(
            "{leader}, which leads {group}, does not hear {to}{heard}: a leadership moves to a voter that its leader hears"
        )
    } else if lags(to) {
        format!(
            "{to} lags behind: its log ends at {}, that of {leader}, which leads {group}, at {end}",
            ends(to).unwrap_or(0)
        )
    } else if views.get(&to).is_some_and(Option::is_none) {
        format!("{to} does not answer here either")
    } else {
        format!("{leader} leads {group} and hears {to}, which has not taken over")
    };
    Some((why, others))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_client::PeerStatus;

    /// What a node says of group 1, which n3 leads, and of the others, of which it does not hear these.
    fn view(node: u64, quorum: bool, last_index: u64, lost: &[u64]) -> NodeStatus {
        let leader = if quorum { 3 } else { 0 };
        let group = GroupStatus {
            group: 1,
            quorum,
            leader,
            last_index,
            voters: (1..=5).collect(),
            ..Default::default()
        };
        let state = |id: &u64| if lost.contains(id) { PeerState::Down } else { PeerState::Up };
        let peer = |id: u64| PeerStatus {
            node: id,
            state: state(&id).into(),
            last_heard_ms: Some(12_300),
            ..Default::default()
        };
        let peers = (1..=5).filter(|id| *id != node).map(peer).collect();
        NodeStatus { node, groups: vec![group], peers, ..Default::default() }
    }

    fn said(views: &[Option<NodeStatus>], to: u64, refused: bool) -> Option<(String, Vec<u64>)> {
        let views = (1..).map(NodeId).zip(views.iter().cloned()).collect();
        let (why, others) = unmoved(&views, NodeId(to), GroupId(1), refused)?;
        Some((why, others.into_iter().map(|node| node.0).collect()))
    }

    #[test]
    fn why_a_leadership_stays_is_what_the_nodes_say_of_each_other() {
        let whole = |id| Some(view(id, true, 9_000, &[]));
        let mut cut = [1, 2, 3, 4, 5].map(|id| match id {
            1 | 2 => Some(view(id, false, 100, &[3, 4, 5])),
            _ => Some(view(id, true, 9_000, &[1, 2])),
        });
        let (why, others) = said(&cut, 1, true).unwrap();
        let says = "n3, which leads group 1, does not hear n1 (last heard 12.3 s ago): a leadership moves to a voter that its leader hears";
        assert_eq!((why.as_str(), &others[..]), (says, &[4, 5][..]));
        // Before the leader noticed the cut itself.
        let mut fresh = [1, 2, 3, 4, 5].map(whole);
        let (why, _) = said(&fresh, 1, true).unwrap();
        assert!(why.starts_with("n3, which leads group 1, does not hear n1: "), "{why}");
        // One that lags is no better than the one that was meant.
        cut[3] = Some(view(4, true, 5_000, &[]));
        assert_eq!(said(&cut, 1, true).unwrap().1, [5]);
        let (why, others) = said(&cut, 4, false).unwrap();
        assert_eq!(why, "n4 lags behind: its log ends at 5000, that of n3, which leads group 1, at 9000");
        assert_eq!(others, [5]);
        assert_eq!(said(&fresh, 3, false).unwrap().0, "n3 leads group 1 now");
        assert_eq!(
            said(&fresh, 2, false).unwrap().0,
            "n3 leads group 1 and hears n2, which has not taken over"
        );
        fresh[1] = None;
        assert_eq!(said(&fresh, 2, false).unwrap().0, "n2 does not answer here either");
        // No one leads: that is another error.
        let none = [1, 2, 3, 4, 5].map(|id| Some(view(id, false, 9, &[])));
        assert!(said(&none, 1, true).is_none());
    }
}
