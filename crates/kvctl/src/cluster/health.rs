//! `cluster health`: one word for a monitor, and everything that speaks against it.

use std::collections::BTreeMap;

use kv_client::PeerState;
use kv_types::{GroupId, NodeId, counted, noun};
use serde_json::json;

use crate::app::App;
use crate::exit::Exit;
use crate::fold::fold;
use crate::output::nodes;
use crate::problem::Problem;
use crate::views::{Views, views};

/// How well a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Ok,
    Degraded,
    Down,
}

impl Health {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// The verdict and everything that speaks against *ok*.
fn judge(views: &Views) -> (Health, Vec<String>) {
    let mut complaints = Vec::new();
    let mut served = false;
    for (node, view) in views {
        let Some(status) = view else {
            complaints.push(format!("{node} cannot be reached from here"));
            continue;
        };
        let mut quorum = !status.groups.is_empty();
        for group in &status.groups {
            let led = group.quorum && group.leader != 0;
            quorum &= led;
            let id = match GroupId(group.group) {
                GroupId::CATALOGUE => "the catalogue".to_owned(),
                id => id.to_string(),
            };
            match group.impediment.as_str() {
                "" if led => {}
                "" if group.quorum || u64::from(group.reachable_voters) * 2 > group.voters.len() as u64 => {
                    complaints.push(format!("{node}: {id} knows no leader"))
                }
                "" => complaints.push(format!("{node}: {id} has no quorum")),
                // Also of a member that the group goes on without: its disk hangs, or it cannot vote.
                why => complaints.push(why.to_owned()),
            }
        }
        served |= quorum;
        let lost: Vec<u64> =
            status.peers.iter().filter(|peer| peer.state() != PeerState::Up).map(|peer| peer.node).collect();
        if !lost.is_empty() {
            complaints.push(format!("{node} does not hear {}", nodes(&lost)));
        }
        if status.rebuilding_partitions > 0 {
            let count = counted(status.rebuilding_partitions, "ring partition", "ring partitions");
            complaints.push(format!("{node} rebuilds {count}"));
        }
    }
    let health = match (served, complaints.is_empty()) {
        (true, true) => Health::Ok,
        (true, false) => Health::Degraded,
        (false, _) => Health::Down,
    };
    (health, complaints)
}

/// How many hints all nodes hold, by the node that they are for.
fn waiting_hints(views: &Views) -> BTreeMap<NodeId, u64> {
    let mut waiting = BTreeMap::new();
    for peer in
        views.values().flatten().flat_map(|status| &status.peers).filter(|peer| peer.hints_pending > 0)
    {
        *waiting.entry(NodeId(peer.node)).or_default() += peer.hints_pending;
    }
    waiting
}

/// The same in words. It is no illness: a cluster that was cut hands over what it owes when it is whole.
fn owed(waiting: &BTreeMap<NodeId, u64>) -> Option<String> {
    let all: u64 = waiting.values().sum();
    let targets: Vec<String> = waiting.keys().map(NodeId::to_string).collect();
    let (wait, hints) = (noun(all, "waits", "wait"), counted(all, "hint", "hints"));
    (all > 0).then(|| format!("{hints} {wait} to be handed over to {}", targets.join(" ")))
}

/// A cluster of which no node can be asked is down, and that is an answer: a monitor wants the same word and
/// the same exit code as where every node says so itself. Why not, and what to do, is said beside it.
fn out_of_reach(app: &App, error: Problem) -> Problem {
    if error.exit != Exit::Unavailable {
        return error;
    }
    let complaints = [error.message.as_str()];
    let said = if app.out.is_json() {
        app.out.json(&json!({
            "health": Health::Down.word(), "complaints": complaints, "hints_pending": null,
        }))
    } else {
        app.out.line(format!("{}   no node that is known here can be asked", Health::Down.word()))
    };
    match said {
        Ok(()) => Problem { exit: Exit::No, ..error },
        Err(unsaid) => unsaid.into(),
    }
}

pub(super) async fn run(app: &App) -> Result<Exit, Problem> {
    let client = app.client()?;
    let topology = client.admin().topology().await.map_err(|error| out_of_reach(app, error.into()))?;
    let views = views(&client, &topology).await;
    let (health, complaints) = judge(&views);
    let waiting = waiting_hints(&views);
    if app.out.is_json() {
        let hints: u64 = waiting.values().sum();
        app.out
            .json(&json!({ "health": health.word(), "complaints": complaints, "hints_pending": hints }))?;
    } else {
        let what = match health {
            Health::Ok => "all nodes answer, hear each other and have a quorum",
            Health::Degraded => "strong namespaces are served, but not everything is well",
            Health::Down => "no node has a quorum: strong namespaces are not served",
        };
        app.out.line(format!("{}   {what}", health.word()))?;
        for line in complaints.iter().chain(&owed(&waiting)) {
            app.out.line(fold(&format!("  {line}")))?;
        }
    }
    Ok(if health == Health::Ok { Exit::Done } else { Exit::No })
}

#[cfg(test)]
mod tests {
    use super::super::sample::status;
    use super::*;
    use kv_client::{GroupStatus, NodeStatus};

    #[test]
    fn what_keeps_one_member_from_its_work_is_said_though_the_group_goes_on() {
        let views = |status| Views::from([(NodeId(1), Some(status))]);
        assert_eq!(judge(&views(status(1, true, &[]))), (Health::Ok, vec![]));
        let mut hangs = status(1, true, &[]);
        hangs.groups[0].impediment = "n1: its disk hangs".into();
        assert_eq!(judge(&views(hangs.clone())), (Health::Degraded, vec!["n1: its disk hangs".into()]));
        hangs.groups[0].leader = 0;
        assert_eq!(judge(&views(hangs)), (Health::Down, vec!["n1: its disk hangs".into()]));
    }

    #[test]
    fn degraded_is_a_state_of_its_own() {
        let well: Views = (1..=5).map(|id| (NodeId(id), Some(status(id, true, &[])))).collect();
        assert_eq!(judge(&well), (Health::Ok, Vec::new()));
        let mut lost = well.clone();
        lost.insert(NodeId(5), None);
        assert_eq!(judge(&lost).0, Health::Degraded);
        let cut: Views = (1..=5).map(|id| (NodeId(id), Some(status(id, false, &[3])))).collect();
        assert_eq!(judge(&cut).0, Health::Down);
        assert!(judge(&cut).1.iter().any(|complaint| complaint.contains("does not hear n3")));
        let catalogue = |status: &mut NodeStatus| {
            let group = GroupStatus { group: 0, ..status.groups[0].clone() };
            status.groups.push(group);
        };
        let mut cut = cut;
        cut.values_mut().flatten().for_each(catalogue);
        assert!(
            judge(&cut).1.contains(&"n1: the catalogue knows no leader".to_owned()),
            "{:?}",
            judge(&cut).1
        );
    }

    #[test]
    fn hints_that_wait_are_said_though_all_is_well() {
        let mut views: Views = (1..=5).map(|id| (NodeId(id), Some(status(id, true, &[])))).collect();
        assert_eq!(owed(&waiting_hints(&views)), None);
        let mut holds = |holder: u64, target: u64, hints: u64| {
            let peers = &mut views.get_mut(&NodeId(holder)).unwrap().as_mut().unwrap().peers;
            peers.iter_mut().find(|peer| peer.node == target).unwrap().hints_pending = hints;
        };
        holds(1, 4, 1);
        assert!(owed(&waiting_hints(&views)).unwrap().starts_with("1 hint waits to be handed over to n4"));
        let mut holds = |holder: u64, target: u64, hints: u64| {
            let peers = &mut views.get_mut(&NodeId(holder)).unwrap().as_mut().unwrap().peers;
            peers.iter_mut().find(|peer| peer.node == target).unwrap().hints_pending = hints;
        };
        holds(2, 4, 5);
        holds(2, 5, 3);
        assert!(owed(&waiting_hints(&views)).unwrap().starts_with("9 hints wait to be handed over to n4 n5"));
        assert_eq!(judge(&views), (Health::Ok, Vec::new()));
    }
}
