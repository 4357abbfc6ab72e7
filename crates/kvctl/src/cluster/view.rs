//! A cluster in the eyes of one node: what it serves, and what it knows of the others.

use kv_client::{GroupStatus, NamespaceInfo, NodeStatus, PeerState, PeerStatus, Topology};
use kv_env::{Clock, SystemClock};
use kv_types::{GroupId, Mode, NodeId, Placement, Replication, counted, noun};
use serde_json::{Value, json};

use crate::ns::deleted_until;
use crate::output::{nodes, object, table, table_of_named, time_of_day};
use crate::units::ago;

/// Lines about namespaces that fit a screen beside the nodes.
pub(super) const MOST_NAMESPACES: usize = 20;

/// A cluster in the eyes of one node.
pub(super) struct View<'a> {
    pub(super) topology: &'a Topology,
    pub(super) status: &'a NodeStatus,
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
    pub(super) fn text(&self, lab: Option<String>, most: usize, whole: &str) -> String {
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

    pub(super) fn json(&self) -> Value {
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
pub(super) fn status_json(status: &NodeStatus) -> serde_json::Map<String, Value> {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::sample::{status, topology};
    use super::*;
    use crate::fold::{WIDTH, fold};

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
}
