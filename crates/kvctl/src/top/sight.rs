//! What `kvctl top` knows: a value, made of what the nodes say and of the probes of the last minute.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use kv_client::{NodeStatus, PeerState, Topology};
use kv_env::{Clock as _, SystemClock};
use kv_types::{GroupId, Mode, NodeId, Reason};
use serde_json::{Value, json};

/// Probes of one namespace at one node that are remembered: a minute of them.
const REMEMBERED: usize = 60;

/// How a probe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probed {
    Answered(Duration),
    Refused(Reason),
}

/// The last probes, by namespace and node.
#[derive(Debug, Default)]
pub(crate) struct Probes(BTreeMap<(String, NodeId), VecDeque<Probed>>);

impl Probes {
    /// Takes in what was probed now; what is not probed any more is forgotten.
    pub(crate) fn add(&mut self, probed: Vec<(String, NodeId, Probed)>) {
        self.0.retain(|(name, node), _| probed.iter().any(|(n, at, _)| n == name && at == node));
        for (name, node, how) in probed {
            let last = self.0.entry((name, node)).or_default();
            last.push_back(how);
            if last.len() > REMEMBERED {
                last.pop_front();
            }
        }
    }

    fn last(&self, name: &str, node: NodeId) -> Option<Probed> {
        self.0.get(&(name.to_owned(), node))?.back().copied()
    }

    /// How many of all were answered, and how long the answers took, in order.
    fn tally(&self, names: &[&str]) -> Tally {
        let of = self.0.iter().filter(|((name, _), _)| names.contains(&name.as_str()));
        let all: Vec<Probed> = of.flat_map(|(_, last)| last.iter().copied()).collect();
        let mut took: Vec<Duration> = all
            .iter()
            .filter_map(|probed| match probed {
                Probed::Answered(took) => Some(*took),
                Probed::Refused(_) => None,
            })
            .collect();
        took.sort_unstable();
        Tally {
            asked: all.len(),
            answered: took.len(),
            median: took.get(took.len() / 2).copied(),
            longest: took.last().copied(),
        }
    }
}

/// The probes of one mode in the last minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    pub(crate) asked: usize,
    pub(crate) answered: usize,
    pub(crate) median: Option<Duration>,
    pub(crate) longest: Option<Duration>,
}

/// A namespace, and how its last probe ended at each node.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) at: Vec<(NodeId, Option<Probed>)>,
}

/// What a node says of itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    pub(crate) role: String,
    pub(crate) term: u64,
    pub(crate) log: u64,
    pub(crate) hints: u64,
    pub(crate) siblings: u64,
    pub(crate) hears: BTreeMap<NodeId, PeerState>,
}

/// Everything at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Sight {
    pub(crate) at_ms: u64,
    /// None of a node that does not answer.
    pub(crate) nodes: Vec<(NodeId, Option<Said>)>,
    pub(crate) served: Vec<Served>,
    pub(crate) strong: Tally,
    pub(crate) available: Tally,
    /// Namespaces that are not probed.
    pub(crate) more: usize,
    /// The node that named the namespaces.
    pub(crate) named_by: NodeId,
    /// It reaches no quorum of the catalogue: there may be others by now.
    pub(crate) may_be_old: bool,
    /// Of a lab: the faults in force.
    pub(crate) faults: Option<String>,
    /// Why this is not of now.
    pub(crate) trouble: Option<String>,
}

impl Sight {
    pub(crate) fn new(
        topology: &Topology,
        views: BTreeMap<NodeId, Option<NodeStatus>>,
        names: Vec<(String, Mode)>,
        probes: &Probes,
        faults: Option<String>,
    ) -> Self {
        let named_by = topology.answered_by;
        let may_be_old = views.get(&named_by).and_then(Option::as_ref).is_some_and(|status| {
            let catalogue = status.groups.iter().find(|group| group.group == GroupId::CATALOGUE.0);
            !catalogue.is_some_and(|group| group.quorum && group.leader != 0)
        });
        let nodes: Vec<_> = views.into_iter().map(|(node, view)| (node, view.as_ref().map(said))).collect();
        let tally = |mode| {
            let names = names.iter().filter(|(_, known)| *known == mode);
            probes.tally(&names.map(|(name, _)| name.as_str()).collect::<Vec<_>>())
        };
        let namespaces = topology.namespaces.values();
        let present = namespaces.filter(|info| info.namespace.deletion.is_none()).count();
        Self {
            at_ms: SystemClock.wall_ms(),
            named_by,
            may_be_old,
            strong: tally(Mode::Strong),
            available: tally(Mode::Available),
            more: present.saturating_sub(names.len()),
            served: names
                .into_iter()
                .map(|(name, mode)| {
                    let at = nodes.iter().map(|(node, _)| (*node, probes.last(&name, *node))).collect();
                    Served { name, mode, at }
                })
                .collect(),
            nodes,
            faults,
            trouble: None,
        }
    }

    pub(crate) fn json(&self) -> Value {
        let probed = |probed: &Option<Probed>| match probed {
            Some(Probed::Answered(took)) => json!({ "answered": true, "ms": took.as_secs_f64() * 1e3 }),
            Some(Probed::Refused(reason)) => json!({ "answered": false, "reason": reason.code_name() }),
            None => Value::Null,
        };
        let served = self.served.iter().map(|served| {
            let at = served.at.iter().map(|(node, how)| (node.to_string(), probed(how)));
            json!({ "namespace": served.name, "mode": served.mode.to_string(), "at": at.collect::<Value>() })
        });
        let nodes = self.nodes.iter().map(|(node, said)| match said {
            Some(said) => json!({
                "node": node.to_string(), "answers": true, "role": said.role, "term": said.term, "log": said.log,
                "hints": said.hints, "siblings": said.siblings,
                "hears": said.hears.iter().map(|(other, state)| (other.to_string(), json!(state.to_string()))).collect::<Value>(),
            }),
            None => json!({ "node": node.to_string(), "answers": false }),
        });
        json!({
            "at_ms": self.at_ms, "namespaces": served.collect::<Vec<_>>(), "nodes": nodes.collect::<Vec<_>>(),
            "faults": self.faults, "namespaces_of": self.named_by.to_string(), "may_be_old": self.may_be_old,
        })
    }
}

fn said(status: &NodeStatus) -> Said {
    let group = status.groups.iter().find(|group| group.group == GroupId::FIRST_DATA.0);
    Said {
        role: group.map_or("-".to_owned(), |group| group.role().to_string()),
        term: group.map_or(0, |group| group.term),
        log: group.map_or(0, |group| group.last_index),
        hints: status.hints_pending,
        siblings: status.keys_with_siblings,
        hears: status.peers.iter().map(|peer| (NodeId(peer.node), peer.state())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_remembered_and_what_is_gone_is_forgotten() {
        let mut probes = Probes::default();
        let answered = |ms| Probed::Answered(Duration::from_millis(ms));
        for n in 0..100 {
            probes.add(vec![
                ("bank".into(), NodeId(1), Probed::Refused(Reason::NoQuorum)),
                ("cart".into(), NodeId(1), answered(n)),
            ]);
        }
        let bank = probes.tally(&["bank"]);
        assert_eq!((bank.asked, bank.answered, bank.median), (REMEMBERED, 0, None));
        let cart = probes.tally(&["cart"]);
        assert_eq!((cart.asked, cart.answered), (REMEMBERED, REMEMBERED));
        assert_eq!(
            (cart.median, cart.longest),
            (Some(Duration::from_millis(70)), Some(Duration::from_millis(99)))
        );
        probes.add(vec![("cart".into(), NodeId(1), answered(1))]);
        assert_eq!(probes.tally(&["bank"]).asked, 0);
        assert_eq!(probes.last("cart", NodeId(1)), Some(answered(1)));
    }
}
