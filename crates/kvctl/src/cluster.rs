//! The cluster as its nodes see it. Every view is labelled with its viewpoint, and a node that cannot be
//! asked stays in the table.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_client::{GroupStatus, NamespaceInfo, NodeStatus, PeerState, PeerStatus, Topology};
use kv_env::{Clock, SystemClock};
use kv_types::{GroupId, Mode, NodeId, Placement, Replication, counted, noun};
use serde_json::{Value, json};

use crate::app::App;
use crate::cli::{Cluster, Ring};
use crate::data;
use crate::exit::Exit;
use crate::fold::fold;
use crate::latency;
use crate::ns::deleted_until;
use crate::output::{nodes, object, on_a_line, put_bytes, table, table_of_named, time_of_day};
use crate::problem::Problem;
use crate::transfer;
use crate::units::ago;
use crate::views::{Views, views};

/// Lines about namespaces that fit a screen beside the nodes.
const MOST_NAMESPACES: usize = 20;

pub(crate) async fn run(app: &App, command: &Cluster) -> Result<Exit, Problem> {
    match command {
        Cluster::Status { as_seen_by, all } => status(app, as_seen_by.as_deref(), *all).await,
        Cluster::Latency { node } => latency(app, *node).await,
        Cluster::Health => health(app).await,
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

/// A cluster in the eyes of one node.
struct View<'a> {
    topology: &'a Topology,
    status: &'a NodeStatus,
}

/// What a namespace offers at a node.
struct Offer {
    name: String,
    mode: Mode,
    reads: bool,
    writes: bool,
    can_lose: u64,
    /// Why it does not serve.
    why: String,
    /// It is deleted and can be taken back: nothing is owed.
    deleted: bool,
    /// What keeps it from losing more.
    remark: String,
}

/// Of a node that has not seen the catalogue: whom it does not hear, in words; none if it hears all.
pub(crate) fn waits_for(status: &NodeStatus) -> Option<String> {
    let silent = status.peers.iter().filter(|peer| peer.state() != PeerState::Up);
    let silent: Vec<u64> = silent.map(|peer| peer.node).collect();
    let waits = status.epoch == 0 && !silent.is_empty();
    waits.then(|| {
        let (me, does) = (NodeId(status.node), noun(silent.len(), "does", "do"));
        let silent = nodes(&silent);
        format!("{me} waits for {silent}, which {does} not answer: a first start needs more than a majority")
    })
}

/// What one side of CAP offers at a node.
struct Serving {
    reads: bool,
    writes: bool,
    can_lose: u64,
    unavailable: Vec<String>,
    remark: String,
}

impl Offer {
    fn json(&self) -> Value {
        json!({
            "namespace": self.name, "mode": self.mode.to_string(), "reads": self.reads, "writes": self.writes,
            "can_lose": self.can_lose, "why": self.why, "deleted": self.deleted, "remark": self.remark,
        })
    }

    /// Whether it does not do all that it is there for.
    fn is_troubled(&self) -> bool {
        !(self.deleted || self.reads && self.writes)
    }

    fn row(&self) -> Vec<String> {
        let yes = |yes| if yes { "yes" } else { "NO" };
        let (serving, can_lose) = match self.deleted {
            true => ("-".to_owned(), "-".to_owned()),
            false => (
                format!("reads {}  writes {}", yes(self.reads), yes(self.writes)),
                format!("{} more", self.can_lose),
            ),
        };
        vec![self.name.clone(), self.mode.to_string(), serving, can_lose]
    }

    /// What is said of it beside its row.
    fn about(&self) -> &str {
        if self.why.is_empty() { &self.remark } else { &self.why }
    }
}

/// The namespaces, at most so many: then those in trouble come first, and the others are counted. `whole` is
/// the line that shows all.
fn serving(mut offers: Vec<Offer>, most: usize, whole: &str) -> String {
    if offers.len() > most {
        // By name among themselves.
        offers.sort_by_key(|offer| !offer.is_troubled());
    }
    let hidden = offers.split_off(offers.len().min(most));
    let rows = offers.iter().map(|offer| (offer.row(), offer.about().to_owned()));
    let shown = table_of_named(&["namespace", "mode", "serving here", "can lose"], rows.collect());
    if hidden.is_empty() {
        return shown;
    }
    let troubled = hidden.iter().filter(|offer| offer.is_troubled()).count();
    let deleted = hidden.iter().filter(|offer| offer.deleted).count();
    let counts =
        [(troubled, "not served in full"), (deleted, "deleted"), (hidden.len() - troubled - deleted, "well")];
    let some = counts.iter().filter(|(count, _)| *count > 0);
    let some: Vec<_> = some.map(|(count, what)| format!("{count} {what}")).collect();
    let how = match (troubled, deleted) {
        (0, 0) => "all well".to_owned(),
        _ => some.join(", "),
    };
    format!("{shown}\n... and {} more, {how}; see: {whole}", hidden.len())
}

impl View<'_> {
    /// Nodes that this one can reach, itself included.
    fn reachable(&self) -> u64 {
        let up = self.status.peers.iter().filter(|peer| peer.state() == PeerState::Up).count();
        u64::try_from(up).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Whether the node has seen the catalogue: before that it serves nothing, whatever it can reach.
    fn is_ready(&self) -> bool {
        self.status.epoch > 0
    }

    /// The namespaces that are not deleted: those are not owed to anyone.
    fn present(&self) -> impl Iterator<Item = (&String, &NamespaceInfo)> {
        self.topology.namespaces.iter().filter(|(_, info)| info.namespace.deletion.is_none())
    }

    /// What each namespace offers here.
    fn offers(&self) -> Vec<Offer> {
        let offer = |(name, info): (&String, &NamespaceInfo)| {
            let (until, placement) = (deleted_until(info), info.namespace.placement);
            let deleted = until.is_some();
            let (reads, writes, can_lose, why) = match (until, placement) {
                (Some(until), _) => (false, false, 0, until),
                (None, Placement::Strong { group }) => self.strong_offer(group),
                (None, Placement::Available { replication, .. }) => self.available_offer(replication),
            };
            let remark = match placement {
                Placement::Strong { group } if reads => self.starting(group),
                _ => String::new(),
            };
            let (name, mode) = (name.clone(), info.namespace.mode());
            Offer { name, mode, reads, writes, can_lose, why, deleted, remark }
        };
        self.topology.namespaces.iter().map(offer).collect()
    }

    fn strong_offer(&self, group: GroupId) -> (bool, bool, u64, String) {
        let Some(group) = self.status.groups.iter().find(|known| known.group == group.0) else {
            return (false, false, 0, "not kept here".to_owned());
        };
        let serves = self.is_ready() && group.quorum && group.leader != 0;
        let needed = u64::try_from(group.voters.len()).unwrap_or(0) / 2 + 1;
        let why = if serves {
            String::new()
        } else if u64::from(group.reachable_voters) < needed {
            let (reachable, voters) = (group.reachable_voters, group.voters.len());
            format!("{reachable} of {} reachable, {needed} needed", counted(voters, "voter", "voters"))
        } else {
            "no leader is heard: an election takes about a second".to_owned()
        };
        // A voter that joins or needs a snapshot first is reached, and makes up for no one.
        let spare = if serves { u64::from(group.able_voters).saturating_sub(needed) } else { 0 };
        (serves, serves, spare, why)
    }

    /// What is said of a group while voters that are reached do not make up for others yet: they join, need a
    /// snapshot, or their answers do not come in time, as over slow links of this node's own.
    fn starting(&self, group: GroupId) -> String {
        let known = self.status.groups.iter().find(|known| known.group == group.0);
        match known.map(|known| (known.able_voters, known.reachable_voters)) {
            Some((able, reachable)) if able < reachable => {
                let waits = reachable - able;
                let of = counted(reachable, "voter", "voters");
                // All that this node knows: they are heard, and have not said that they take entries.
                let why = noun(
                    waits,
                    "does not count yet: it catches up, or answers",
                    "do not count yet: they catch up, or answer",
                );
                format!("{waits} of {of} {why} too slowly")
            }
            _ => String::new(),
        }
    }

    fn available_offer(&self, plan: Replication) -> (bool, bool, u64, String) {
        let answering = if self.is_ready() { self.answering(plan) } else { 0 };
        let (reads, writes) = (answering >= u64::from(plan.r), answering >= u64::from(plan.w));
        let most = plan.r.max(plan.w);
        let why = if reads && writes {
            String::new()
        } else {
            let which = match plan.sloppy {
                true => counted(answering, "node", "nodes"),
                false => counted(answering, "replica of some keys", "replicas of some keys"),
            };
            format!("{which} reachable, {most} needed")
        };
        (reads, writes, answering.saturating_sub(u64::from(most)), why)
    }

    /// How many nodes can answer for a key, in the worst case: then all that are out of reach are its
    /// primaries.
    fn answering(&self, replication: Replication) -> u64 {
        let members = u64::try_from(self.topology.members.len()).unwrap_or(0);
        let reachable = self.reachable();
        let lost = members.saturating_sub(reachable);
        if replication.sloppy { reachable } else { u64::from(replication.n).saturating_sub(lost) }
    }

    fn strong(&self) -> Serving {
        let groups = || self.status.groups.iter().filter(|group| group.group != GroupId::CATALOGUE.0);
        let quorum = |group: &GroupStatus| u64::try_from(group.voters.len()).unwrap_or(0) / 2 + 1;
        let spare = |group: &GroupStatus| {
            // A voter that joins or needs a snapshot first is reached, and makes up for no one.
            if group.quorum { u64::from(group.able_voters).saturating_sub(quorum(group)) } else { 0 }
        };
        let serves = groups().next().is_some() && groups().all(|group| group.quorum && group.leader != 0);
        let out =
            |group: u32| groups().any(|known| known.group == group && !(known.quorum && known.leader != 0));
        let unavailable = self.present().filter_map(|(name, info)| match info.namespace.placement {
            Placement::Strong { group } if out(group.0) => Some(name.clone()),
            _ => None,
        });
        let remark = groups().find(|group| !group.quorum).map_or(String::new(), |group| {
            format!(
                "({} of {} reachable, {} needed)",
                group.reachable_voters,
                counted(group.voters.len(), "voter", "voters"),
                quorum(group)
            )
        });
        Serving {
            reads: serves,
            writes: serves,
            can_lose: groups().map(spare).min().unwrap_or(0),
            unavailable: unavailable.collect(),
            remark,
        }
    }

    fn available(&self) -> Serving {
        let plans = || {
            self.present().filter_map(|(name, info)| match info.namespace.placement {
                Placement::Available { replication, .. } => Some((name, replication)),
                Placement::Strong { .. } => None,
            })
        };
        let short = |need: fn(&Replication) -> u8| {
            plans()
                .filter(move |(_, plan)| self.answering(*plan) < u64::from(need(plan)))
                .map(|(name, _)| name.clone())
        };
        let spare = |plan: Replication| self.answering(plan).saturating_sub(u64::from(plan.r.max(plan.w)));
        let mut unavailable: Vec<String> = short(|plan| plan.r.max(plan.w)).collect();
        unavailable.dedup();
        // Each node counts what it keeps, so that the figures of several do not add up.
        let mut remark = format!(
            "{} itself counts {} with siblings and holds {}",
            NodeId(self.status.node),
            counted(self.status.keys_with_siblings, "key", "keys"),
            counted(self.status.hints_pending, "hint", "hints")
        );
        let targets: Vec<u64> =
            self.status.peers.iter().filter(|peer| peer.hints_pending > 0).map(|peer| peer.node).collect();
        if !targets.is_empty() {
            remark = format!("{remark} for {}", nodes(&targets));
        }
        Serving {
            reads: short(|plan| plan.r).next().is_none(),
            writes: short(|plan| plan.w).next().is_none(),
            // Without a namespace there is nothing that could be lost; one node answers.
            can_lose: plans()
                .map(|(_, plan)| spare(plan))
                .min()
                .unwrap_or(self.reachable().saturating_sub(1)),
            unavailable,
            remark,
        }
    }

    fn data_group(&self) -> Option<&GroupStatus> {
        self.status.groups.iter().find(|group| group.group == GroupId::FIRST_DATA.0)
    }

    /// With `most` namespaces; `whole` is the line that shows all.
    fn text(&self, lab: Option<String>, most: usize, whole: &str) -> String {
        let me = NodeId(self.status.node);
        let now = time_of_day(SystemClock.wall_ms());
        let head = format!("Seen by {me}, {now} UTC (others may disagree: --as-seen-by all)");
        let lab = lab.map_or(String::new(), |line| format!("\n{line}"));
        let offers = self.offers();
        let serving = if !self.is_ready() {
            let waits = waits_for(self.status).map_or(String::new(), |waits| format!("\n{waits}"));
            format!("NOT READY: {me} has not seen the catalogue yet, and serves nothing{waits}")
        } else if offers.is_empty() {
            "no namespaces yet: kvctl ns create NAME --mode strong|available".to_owned()
        } else {
            serving(offers, most, whole)
        };
        let kept = self.available().remark;
        let rows = self.topology.members.keys().map(|node| self.row(*node));
        format!(
            "{head}{lab}\n{serving}\n\n{}\n\n{kept}{}{}",
            table(&["node", "state", "role", "term", "log", "hints for it", "last heard"], rows),
            self.refusals(),
            self.differences()
        )
    }

    /// Lines about what the node's cluster file says and the catalogue says otherwise.
    fn differences(&self) -> String {
        let me = NodeId(self.status.node);
        let line = |difference: &String| format!("\n\nthe cluster file of {me} differs: {difference}");
        self.status.differences.iter().map(line).collect()
    }

    /// A line about what this node refused of its peers, if it refused anything.
    fn refusals(&self) -> String {
        if self.status.refusals.is_empty() {
            return String::new();
        }
        let counts =
            self.status.refusals.iter().map(|refusal| format!("{} {}", refusal.reason, refusal.count));
        let me = NodeId(self.status.node);
        format!("\n\n{me} refused of its peers since it started: {}", counts.collect::<Vec<_>>().join(", "))
    }

    fn row(&self, node: NodeId) -> Vec<String> {
        let group = self.data_group();
        if node.0 == self.status.node {
            let role = group.map_or("-".to_owned(), |group| group.role().to_string());
            let term = group.map_or("-".to_owned(), |group| group.term.to_string());
            let log = group.map_or("-".to_owned(), |group| group.last_index.to_string());
            return vec![node.to_string(), "up".into(), role, term, log, "-".into(), "self".into()];
        }
        let peer = self.status.peers.iter().find(|peer| peer.node == node.0);
        let state = peer.map_or(PeerState::Unspecified, PeerStatus::state);
        let leads = group.is_some_and(|group| group.leader == node.0);
        let role = match (leads, state == PeerState::Up) {
            (true, true) => "leader",
            (true, false) => "? (was leader)",
            (false, _) => "-",
        };
        let term =
            if leads { group.map_or("-".to_owned(), |group| group.term.to_string()) } else { "-".into() };
        let hints = peer.map_or("-".to_owned(), |peer| peer.hints_pending.to_string());
        let heard = peer.and_then(|peer| peer.last_heard_ms).map_or("never".to_owned(), ago);
        // That is all that this node can know: the other one may be well.
        let state = if state == PeerState::Down { "unreachable".to_owned() } else { state.to_string() };
        vec![node.to_string(), state, role.into(), term, "-".into(), hints, heard]
    }

    fn json(&self) -> Value {
        let side = |side: Serving| {
            json!({
                "reads": side.reads, "writes": side.writes, "can_lose": side.can_lose, "unavailable": side.unavailable,
            })
        };
        let mut whole = status_json(self.status);
        whole.extend(object([
            ("seen_by", json!(NodeId(self.status.node).to_string())),
            ("at_ms", json!(SystemClock.wall_ms())),
            ("strong", side(self.strong())),
            ("available", side(self.available())),
            ("ready", json!(self.is_ready())),
            ("namespaces", self.offers().iter().map(Offer::json).collect()),
        ]));
        Value::Object(whole)
    }
}

/// One node's own figures as JSON.
fn status_json(status: &NodeStatus) -> serde_json::Map<String, Value> {
    let groups: Vec<Value> = status
        .groups
        .iter()
        .map(|group| {
            json!({
                "group": group.group, "role": group.role().to_string(), "term": group.term,
                "leader": (group.leader != 0).then(|| NodeId(group.leader).to_string()),
                "last_index": group.last_index, "applied_index": group.applied_index,
                "voters": group.voters.iter().map(|node| NodeId(*node).to_string()).collect::<Vec<_>>(),
                "quorum": group.quorum, "reachable_voters": group.reachable_voters, "able_voters": group.able_voters,
                "purged_index": group.purged_index, "snapshot_index": group.snapshot_index,
            })
        })
        .collect();
    let peers: Vec<Value> = status
        .peers
        .iter()
        .map(|peer| {
            json!({
                "node": NodeId(peer.node).to_string(), "state": peer.state().to_string(), "last_heard_ms": peer.last_heard_ms,
                "hints_pending": peer.hints_pending,
            })
        })
        .collect();
    let storage = status.storage.as_ref().map(|storage| {
        json!({
            "fsyncs": storage.fsyncs, "records": storage.records, "bytes": storage.bytes,
            "checkpoints": storage.checkpoints, "log_bytes": storage.log_bytes, "memtable_bytes": storage.memtable_bytes,
        })
    });
    let refusals =
        status.refusals.iter().map(|refusal| (refusal.reason.clone(), json!(refusal.count))).collect();
    object([
        ("node", json!(NodeId(status.node).to_string())),
        ("reachable", json!(true)),
        ("epoch", json!(status.epoch)),
        ("version", json!(status.version)),
        ("groups", json!(groups)),
        ("peers", json!(peers)),
        ("storage", json!(storage)),
        ("keys_with_siblings", json!(status.keys_with_siblings)),
        ("hints_pending", json!(status.hints_pending)),
        ("rebuilding_partitions", json!(status.rebuilding_partitions)),
        ("writes_acknowledged", json!(status.writes_acknowledged)),
        ("refusals", Value::Object(refusals)),
        ("differences", json!(status.differences)),
    ])
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

async fn health(app: &App) -> Result<Exit, Problem> {
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
    use super::*;
    use crate::fold::WIDTH;

    fn status(node: u64, quorum: bool, lost: &[u64]) -> NodeStatus {
        let state = |id: &u64| if lost.contains(id) { PeerState::Down } else { PeerState::Up };
        let others = (1..=5).filter(|id| *id != node);
        let peers = others.map(|id| PeerStatus { node: id, state: state(&id).into(), ..Default::default() });
        let reachable_voters = 5 - u32::try_from(lost.len()).unwrap();
        let group = GroupStatus {
            group: 1,
            role: kv_client::GroupRole::Follower.into(),
            leader: if quorum { 3 } else { 0 },
            voters: (1..=5).collect(),
            quorum,
            reachable_voters,
            able_voters: reachable_voters,
            ..Default::default()
        };
        NodeStatus { node, epoch: 1, peers: peers.collect(), groups: vec![group], ..Default::default() }
    }

    fn topology(replication: Replication) -> Topology {
        use kv_types::catalogue::Member;
        use kv_types::{ClusterId, Epoch, Guarantee, Namespace, NamespaceId, NamespaceName, RingId};
        let namespace = |name: &str, placement| NamespaceInfo {
            namespace: Namespace {
                id: NamespaceId(1),
                name: NamespaceName::new(name).unwrap(),
                settings_version: 1,
                deletion: None,
                guarantee: Guarantee::Eventual,
                placement,
            },
            voters: 5,
        };
        let member = |id| Member {
            id: NodeId(id),
            client_address: format!("h:{id}"),
            peer_address: String::new(),
            zone: String::new(),
        };
        Topology {
            cluster_id: ClusterId(1),
            answered_by: NodeId(1),
            epoch: Epoch(1),
            members: (1..=5).map(|id| (NodeId(id), member(id))).collect(),
            namespaces: [
                ("bank".to_owned(), namespace("bank", Placement::Strong { group: GroupId(1) })),
                ("cart".to_owned(), namespace("cart", Placement::Available { ring: RingId(1), replication })),
            ]
            .into(),
            leaders: BTreeMap::new(),
            rings: BTreeMap::new(),
        }
    }

    /// As it is shown.
    fn text(view: &View<'_>) -> String {
        let text = fold(&view.text(None, MOST_NAMESPACES, "kvctl cluster status --all"));
        let long: Vec<&str> = text.lines().filter(|line| line.chars().count() > WIDTH).collect();
        assert!(long.is_empty(), "{long:#?}");
        text
    }

    /// A cluster with so many strong namespaces besides, of which every tenth is deleted.
    fn many(count: usize) -> Topology {
        let mut topology = topology(Replication { n: 3, r: 2, w: 2, sloppy: true });
        for number in 0..count {
            let mut info = topology.namespaces["bank"].clone();
            if number % 10 == 0 {
                info.namespace.deletion = Some(kv_types::Deletion { due_ms: 1, grace_ms: 1 });
            }
            topology.namespaces.insert(format!("a{number:04}"), info);
        }
        topology
    }

    #[test]
    fn of_many_namespaces_those_in_trouble_are_shown_and_the_others_counted() {
        let topology = many(998);
        let whole = status(1, true, &[]);
        let view = View { topology: &topology, status: &whole };
        let said = text(&view);
        assert!(said.lines().count() < 40, "{said}");
        assert!(
            said.contains("\n... and 980 more, 98 deleted, 882 well; see: kvctl cluster status --all\n"),
            "{said}"
        );
        assert_eq!(view.json()["namespaces"].as_array().unwrap().len(), 1_000);
        assert_eq!(view.text(None, usize::MAX, "").matches(" strong ").count(), 999);
        // What is in trouble comes first, wherever its name is.
        let mut strict = topology.clone();
        if let Some(info) = strict.namespaces.get_mut("cart")
            && let Placement::Available { replication, .. } = &mut info.namespace.placement
        {
            *replication = Replication { n: 5, r: 5, w: 5, sloppy: false };
        }
        let lost = status(1, true, &[5]);
        let said = text(&View { topology: &strict, status: &lost });
        let first = said.lines().nth(2).unwrap();
        assert!(first.starts_with("cart") && first.contains("reads NO  writes NO"), "{said}");
        let minority = status(1, false, &[3, 4, 5]);
        let said = text(&View { topology: &topology, status: &minority });
        assert!(
            said.contains("\n... and 980 more, 879 not served in full, 100 deleted, 1 well; see:"),
            "{said}"
        );
        let few: BTreeMap<_, _> = topology.namespaces.clone().into_iter().skip(1).take(19).collect();
        let all_well = few.into_iter().filter(|(_, info)| info.namespace.deletion.is_none());
        let mut well = topology.clone();
        well.namespaces = all_well.collect();
        let said = View { topology: &well, status: &whole }.text(None, 3, "kvctl cluster status --all");
        assert!(said.contains("\n... and 15 more, all well; see: kvctl cluster status --all\n"), "{said}");
    }

    #[test]
    fn what_is_deleted_for_a_while_is_said_and_not_missed() {
        let mut topology = topology(Replication { n: 5, r: 5, w: 5, sloppy: false });
        for info in topology.namespaces.values_mut() {
            info.namespace.deletion =
                Some(kv_types::Deletion { due_ms: 1_767_225_600_000, grace_ms: 60_000 });
        }
        let status = status(1, false, &[3, 4, 5]);
        let view = View { topology: &topology, status: &status };
        for offer in view.offers() {
            assert_eq!((offer.reads, offer.writes), (false, false), "{}", offer.name);
            assert_eq!(offer.why, "deleted; can be taken back until 2026-01-01T00:00:00Z");
            assert!(offer.deleted && !offer.is_troubled());
        }
        assert!(!text(&view).contains("NO"), "{}", text(&view));
        assert!(view.available().unavailable.is_empty() && view.strong().unavailable.is_empty());
        assert!(view.available().reads && view.available().writes);
    }

    #[test]
    fn each_namespace_says_what_it_offers_here() {
        let sloppy = |n, r, w| Replication { n, r, w, sloppy: true };
        let mut topology = topology(sloppy(3, 2, 2));
        let mut strict = topology.namespaces["cart"].clone();
        if let Placement::Available { replication, .. } = &mut strict.namespace.placement {
            *replication = Replication { n: 5, r: 3, w: 4, sloppy: false };
        }
        topology.namespaces.insert("votes".into(), strict);
        let offers = |status: &NodeStatus| {
            let offers = View { topology: &topology, status }.offers();
            offers.into_iter().map(|offer| (offer.name, offer.reads, offer.writes)).collect::<Vec<_>>()
        };
        let named = |bank: (bool, bool), cart: (bool, bool), votes: (bool, bool)| {
            [("bank", bank), ("cart", cart), ("votes", votes)].map(|(name, (r, w))| (name.to_owned(), r, w))
        };
        let (yes, no) = ((true, true), (false, false));
        assert_eq!(offers(&status(1, true, &[])), named(yes, yes, yes));
        // One that fails is not the others.
        assert_eq!(offers(&status(1, true, &[4, 5])), named(yes, yes, (true, false)));
        assert_eq!(offers(&status(1, false, &[3, 4, 5])), named(no, yes, no));
        // Before the catalogue is seen nothing is offered, and that is said.
        let early = NodeStatus { epoch: 0, ..status(1, true, &[]) };
        assert_eq!(offers(&early), named(no, no, no));
        let view = View { topology: &topology, status: &early };
        assert!(text(&view).contains("NOT READY"), "{}", text(&view));
        assert!(!text(&view).contains("waits for"), "it hears all: {}", text(&view));
        let alone = NodeStatus { epoch: 0, ..status(1, true, &[3, 5]) };
        let said = text(&View { topology: &topology, status: &alone });
        assert!(said.contains("\nn1 waits for n3 n5, which do not answer: a first start"), "{said}");
        assert_eq!(view.json()["ready"], false);
        assert_eq!(view.json()["namespaces"][1]["why"], "0 nodes reachable, 2 needed");
    }

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
    fn a_voter_that_cannot_acknowledge_yet_is_no_spare() {
        let topology = topology(Replication { n: 3, r: 2, w: 2, sloppy: true });
        let mut whole = status(1, true, &[]);
        let can_lose = |status: &NodeStatus| View { topology: &topology, status }.strong().can_lose;
        assert_eq!(can_lose(&whole), 2);
        whole.groups[0].able_voters = 3;
        assert_eq!(can_lose(&whole), 0, "all are reached, two of them join or wait for a snapshot");
        let view = View { topology: &topology, status: &whole };
        let says = "2 of 5 voters do not count yet: they catch up, or answer too slowly";
        assert!(text(&view).contains(says), "{}", text(&view));
        assert_eq!(
            (&view.json()["namespaces"][0]["remark"], &view.json()["namespaces"][0]["why"]),
            (&json!(says), &json!(""))
        );
    }

    #[test]
    fn a_minority_serves_one_side_of_cap_only() {
        let topology = topology(Replication { n: 3, r: 2, w: 2, sloppy: true });
        let minority = status(1, false, &[3, 4, 5]);
        let view = View { topology: &topology, status: &minority };
        let (strong, available) = (view.strong(), view.available());
        assert!(!strong.reads && !strong.writes && strong.can_lose == 0);
        assert_eq!(strong.unavailable, ["bank"]);
        assert!(strong.remark.contains("2 of 5 voters reachable, 3 needed"));
        assert!(available.reads && available.writes);
        assert_eq!((available.can_lose, available.unavailable.len()), (0, 0));
        let text = text(&view);
        assert!(text.starts_with("Seen by n1, ") && text.contains("reads NO  writes NO"), "{text}");
        assert!(text.contains("\nn3    unreachable  -") && !text.contains(" down "), "{text}");
        let rows = [
            "bank       strong     reads NO  writes NO    0 more\n    2 of 5 voters reachable, 3 needed",
            "cart       available  reads yes  writes yes  0 more\n",
        ];
        assert!(rows.iter().all(|row| text.contains(row)), "{text}");
    }

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

    #[test]
    fn strict_quorums_stop_where_sloppy_ones_go_on() {
        let topology = topology(Replication { n: 3, r: 2, w: 2, sloppy: false });
        let minority = status(1, false, &[3, 4, 5]);
        let available = View { topology: &topology, status: &minority }.available();
        assert!(!available.reads && !available.writes);
        assert_eq!(available.unavailable, ["cart"]);
    }

    #[test]
    fn the_whole_can_lose_a_minority() {
        let topology = topology(Replication { n: 3, r: 2, w: 2, sloppy: true });
        let whole = status(1, true, &[]);
        let view = View { topology: &topology, status: &whole };
        assert_eq!((view.strong().can_lose, view.available().can_lose), (2, 3));
        let json = view.json();
        assert_eq!((&json["seen_by"], &json["strong"]["writes"]), (&json!("n1"), &json!(true)));
    }

    #[test]
    fn what_was_refused_of_peers_is_shown() {
        let topology = topology(Replication { n: 3, r: 2, w: 2, sloppy: true });
        let mut status = status(1, true, &[]);
        let view = View { topology: &topology, status: &status };
        assert!(!text(&view).contains("refused") && view.json()["refusals"] == json!({}));
        status.refusals = ["peer_message", "snapshot_no_room"]
            .map(|reason| kv_client::RefusalCount { reason: reason.into(), count: 3 })
            .into();
        let view = View { topology: &topology, status: &status };
        let text = text(&view);
        let line = "\nn1 refused of its peers since it started: peer_message 3, snapshot_no_room 3";
        assert!(text.ends_with(line), "{text}");
        assert_eq!(view.json()["refusals"], json!({ "peer_message": 3, "snapshot_no_room": 3 }));
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

    #[test]
    fn ages_are_readable() {
        assert_eq!((ago(40), ago(12_140)), ("40 ms".to_owned(), "12.1 s".to_owned()));
    }
}
