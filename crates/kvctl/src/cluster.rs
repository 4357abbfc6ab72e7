//! The cluster as its nodes see it. Every view is labelled with its viewpoint, and a node that cannot be
//! asked stays in the table.

mod health;
#[cfg(test)]
mod sample;
mod view;

use std::time::Duration;

use kv_client::{NodeStatus, PeerState, Topology};
use kv_types::{GroupId, NodeId};
use serde_json::{Value, json};

pub(crate) use self::view::waits_for;
use self::view::{MOST_NAMESPACES, View, status_json};
use crate::app::App;
use crate::cli::{Cluster, Ring};
use crate::data;
use crate::exit::Exit;
use crate::fold::fold;
use crate::latency;
use crate::output::{nodes, object, on_a_line, put_bytes, table};
use crate::problem::Problem;
use crate::transfer;
use crate::views::{Views, views};

pub(crate) async fn run(app: &App, command: &Cluster) -> Result<Exit, Problem> {
    match command {
        Cluster::Status { as_seen_by, all } => status(app, as_seen_by.as_deref(), *all).await,
        Cluster::Latency { node } => latency(app, *node).await,
        Cluster::Health => health::run(app).await,
        Cluster::TransferLeader { node, group } => transfer::run(app, *node, GroupId(*group)).await,
    }
}

async fn status(app: &App, as_seen_by: Option<&str>, all: bool) -> Result<Exit, Problem> {
    let client = app.client()?;
    let topology = client.admin().topology().await?;
    if as_seen_by == Some("all") {
        return all_views(app, &topology, &views(&client, &topology).await);
    }
    let viewer = match as_seen_by {
        Some(name) => name.parse().map_err(|error| Problem::usage(format!("{error}, or `all`")))?,
        None => topology.answered_by,
    };
    let address =
        topology.address(viewer).ok_or_else(|| Problem::usage(format!("{viewer} is not a member")))?;
    let status = client.admin().status(address).await?;
    let view = View { topology: &topology, status: &status };
    if app.out.is_json() {
        app.out.json(&view.json())?;
    } else {
        let most = if all { usize::MAX } else { MOST_NAMESPACES };
        let whole = app.line.clone().flag("--all").to_string();
        app.out.line(fold(&view.text(lab_line(app).await, most, &whole)))?;
    }
    Ok(Exit::Done)
}

/// How long things take on one node, or on all that can be asked.
async fn latency(app: &App, node: Option<NodeId>) -> Result<Exit, Problem> {
    let client = app.client()?;
    let topology = client.admin().topology().await?;
    let statuses: Vec<NodeStatus> = match node {
        Some(node) => {
            let address =
                topology.address(node).ok_or_else(|| Problem::usage(format!("{node} is not a member")))?;
            vec![client.admin().status(address).await?]
        }
        None => views(&client, &topology).await.into_values().flatten().collect(),
    };
    latency::show(app, &statuses)
}

/// How long a lab may take to say what is broken on purpose: what its nodes say is shown without it.
const LAB_WITHIN: Duration = Duration::from_millis(400);

/// What is broken on purpose, if the context is a lab that can be asked.
pub(crate) async fn lab_line(app: &App) -> Option<String> {
    let dir = app.target().ok()?.lab?;
    let asked = kv_lab::control::ask(&dir, kv_lab::control::Request::Status);
    match tokio::time::timeout(LAB_WITHIN, asked).await {
        Ok(Ok(kv_lab::control::Reply::Status(lab))) => Some(format!("LAB  {}", crate::lab::broken(&lab))),
        Ok(_) => None,
        Err(_) => Some("LAB  the process that runs it does not answer (kvctl lab status)".to_owned()),
    }
}

fn all_views(app: &App, topology: &Topology, views: &Views) -> Result<Exit, Problem> {
    if app.out.is_json() {
        for (node, view) in views {
            match view {
                Some(status) => app.out.json(&Value::Object(status_json(status)))?,
                None => app.out.json(&json!({ "node": node.to_string(), "reachable": false }))?,
            }
        }
        return Ok(Exit::Done);
    }
    app.out.line(by_viewer(topology, views))?;
    Ok(Exit::Done)
}

/// A row for each viewer. One that cannot be asked stays in the table.
fn by_viewer(topology: &Topology, views: &Views) -> String {
    let silent = || std::iter::repeat_n("-".to_owned(), 7);
    let rows = views.iter().map(|(node, view)| {
        let Some(status) = view else {
            return [node.to_string(), "unreachable".to_owned()].into_iter().chain(silent()).collect();
        };
        let group = status.groups.iter().find(|group| group.group == GroupId::FIRST_DATA.0);
        let leader =
            group.filter(|group| group.leader != 0).map_or("none".into(), |g| NodeId(g.leader).to_string());
        let seen = |state: PeerState| {
            let peers: Vec<u64> =
                status.peers.iter().filter(|peer| peer.state() == state).map(|peer| peer.node).collect();
            if peers.is_empty() { "-".to_owned() } else { nodes(&peers) }
        };
        vec![
            node.to_string(),
            group.map_or("-".into(), |group| group.role().to_string()),
            group.map_or("-".into(), |group| group.term.to_string()),
            leader,
            group.map_or("-".into(), |group| format!("{}/{}", group.applied_index, group.last_index)),
            status.hints_pending.to_string(),
            seen(PeerState::Up),
            seen(PeerState::Suspected),
            seen(PeerState::Down),
        ]
    });
    let header = ["node", "role", "term", "leader", "applied/log", "hints", "hears", "doubts", "misses"];
    let unreachable = views.iter().filter(|(_, view)| view.is_none()).map(|(node, _)| {
        let address = topology.address(*node).unwrap_or("?");
        format!("\n{node} does not answer at {address}, as seen from here")
    });
    table(&header, rows) + &unreachable.collect::<String>()
}

pub(crate) async fn ring(app: &App, command: &Ring) -> Result<Exit, Problem> {
    let Ring::Owners { key, form } = command;
    let key = data::key(app, key, form).await?;
    let namespace = app.namespace()?;
    let owners = app.client()?.admin().ring_owners(&namespace, &key).await?;
    if app.out.is_json() {
        let names = |ids: &[u64]| ids.iter().map(|id| NodeId(*id).to_string()).collect::<Vec<_>>();
        let mut whole = object([
            ("namespace", json!(namespace)),
            ("ring", json!(owners.ring)),
            ("ring_partition", json!(owners.partition)),
            ("token", json!(format!("{:016x}", owners.token))),
            ("primaries", json!(names(&owners.primaries))),
            ("fallbacks", json!(names(&owners.fallbacks))),
            ("epoch", json!(owners.epoch)),
        ]);
        put_bytes(&mut whole, "key", &key);
        app.out.json(&Value::Object(whole))?;
    } else if owners.ring == 0 {
        let key = on_a_line(&key);
        app.out.line(format!("{key} → voters {}   (epoch {})", nodes(&owners.primaries), owners.epoch))?;
    } else {
        app.out.line(fold(&format!(
            "{} → token 0x{:016x}   ring partition {}   primaries {}   fallbacks {}   (epoch {})",
            on_a_line(&key),
            owners.token,
            owners.partition,
            nodes(&owners.primaries),
            nodes(&owners.fallbacks),
            owners.epoch
        )))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::sample::{status, topology};
    use super::*;
    use crate::fold::WIDTH;
    use kv_types::Replication;

    /// As a golden file would have it: nothing is cut, and nothing is wider than a screen.
    #[test]
    fn what_each_node_sees_of_the_others_fits_a_screen() {
        let topology = topology(Replication { n: 3, r: 2, w: 2, sloppy: true });
        let mut views: Views = (1..=5)
            .map(|id| (NodeId(id), Some(status(id, id > 2, if id > 2 { &[1, 2] } else { &[3, 4, 5] }))))
            .collect();
        for status in views.values_mut().flatten() {
            status.hints_pending = 123_456;
            status.groups[0].term = 1_234;
            (status.groups[0].applied_index, status.groups[0].last_index) = (1_234_567, 1_234_568);
        }
        views.insert(NodeId(5), None);
        let text = by_viewer(&topology, &views);
        assert_eq!(
            text,
            "\
node  role         term  leader  applied/log      hints   hears  doubts  misses
n1    follower     1234  none    1234567/1234568  123456  n2     -       n3 n4
                                                                         n5
n2    follower     1234  none    1234567/1234568  123456  n1     -       n3 n4
                                                                         n5
n3    follower     1234  n3      1234567/1234568  123456  n4 n5  -       n1 n2
n4    follower     1234  n3      1234567/1234568  123456  n3 n5  -       n1 n2
n5    unreachable  -     -       -                -       -      -       -
n5 does not answer at h:5, as seen from here"
        );
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let small: Views = (1..=3).map(|id| (NodeId(id), Some(status(id, true, &[])))).collect();
        assert!(by_viewer(&topology, &small).starts_with("node  role      term  leader"));
    }
}
