//! What is known to be broken of the cluster that is meant. Only the process of a lab knows it: which nodes
//! are down or stand still, which links are cut. Advice begins with what mends that.

use std::path::PathBuf;
use std::time::Duration;

use kv_lab::control::{self, NodeView, Reply, Request, Status};
use kv_lab::{Flow, NodeName};
use kv_types::NodeId;
use kv_types::limits::MAX_VOTERS;
use tokio::time::timeout;

use crate::app::App;
use crate::config::Context;
use crate::line::Line;

/// Time for a lab to say what is broken.
const LAB_WITHIN: Duration = Duration::from_millis(400);

/// Command lines, each with what it would do.
pub(crate) type Tries = Vec<(String, String)>;

/// The lab that is meant, as its process sees it.
pub(crate) struct Broken {
    /// The name of its context, if it has one.
    name: Option<String>,
    pub(crate) lab: Status,
}

impl Broken {
    /// None where no lab is meant, or where its process does not answer.
    pub(crate) async fn of(app: &App) -> Option<Self> {
        let (name, dir) = lab_that_is_meant(app);
        match timeout(LAB_WITHIN, control::ask(&dir?, Request::Status)).await {
            Ok(Ok(Reply::Status(lab))) => Some(Self { name, lab }),
            _ => None,
        }
    }

    /// A command for this lab.
    fn line(&self, commands: &[&str]) -> Line {
        let line = Line::new(commands);
        self.name.iter().fold(line, |line, name| line.with("--name", name))
    }

    /// Lines that start the nodes that are down, or let go on those that stand still; of these addresses if
    /// there are any.
    pub(crate) fn nodes(&self, asked: &[String]) -> Tries {
        let troubled = self.lab.nodes.iter().filter(|node| !is_well(node));
        let meant = troubled.filter(|node| asked.is_empty() || asked.contains(&node.client_address));
        let line = |node: &NodeView| {
            let (word, why) = if node.up { ("resume", "stands still") } else { ("restart", "is down") };
            let line = self.line(&["lab", word]).operand("node", node.node.to_string());
            (line.to_string(), format!("{} {why}", node.node))
        };
        meant.map(line).collect()
    }

    /// Whether links are cut or slow on purpose.
    pub(crate) fn is_cut(&self) -> bool {
        !self.lab.faults.is_empty()
    }

    /// The line that shows the faults between nodes.
    pub(crate) fn list(&self) -> Line {
        self.line(&["fault", "list"])
    }

    /// Lines that mend all of it: its nodes first.
    pub(crate) fn mend(&self) -> Tries {
        let mut found = self.nodes(&[]);
        if self.is_cut() {
            let heal = self.line(&["fault", "heal"]).to_string();
            found.push((heal, "ends all faults between nodes".to_owned()));
        }
        found
    }

    /// When a line is typed again whose trouble this is.
    pub(crate) fn when_mended(&self) -> &'static str {
        match (self.nodes(&[]).is_empty(), self.is_cut()) {
            (false, true) => "again, when they are back and the links are healed",
            (true, true) => "again, when the links are healed",
            (_, false) => "again, when they are back",
        }
    }

    /// The nodes that hear, and are heard by, a majority of these voters: one of them leads, or will soon.
    /// Without voters that are known, those that a cluster of so many nodes has.
    pub(crate) fn could_lead(&self, voters: &[NodeId]) -> Vec<&NodeView> {
        let nodes = &self.lab.nodes;
        let is_voter = |node: &NodeView| voters.is_empty() || voters.contains(&node.node.0);
        let most = if voters.is_empty() { MAX_VOTERS } else { usize::MAX };
        let voters: Vec<&NodeView> = nodes.iter().filter(|node| is_voter(node)).take(most).collect();
        let hears = |a: NodeName, b: NodeName| {
            let blocks = |flow| matches!(flow, Flow::Swallow | Flow::Reset);
            let ways = [(a, b), (b, a)];
            !self.lab.faults.iter().any(|fault| blocks(fault.flow) && ways.contains(&(fault.from, fault.to)))
        };
        let heard = |one: &NodeView| {
            voters.iter().filter(|other| is_well(other) && hears(one.node, other.node)).count()
        };
        let needed = voters.len() / 2 + 1;
        voters.iter().copied().filter(|node| is_well(node) && heard(node) >= needed).collect()
    }
}

/// Whether its process runs and does not stand still.
fn is_well(node: &NodeView) -> bool {
    node.up && !node.paused
}

/// The name of the cluster of which one node was asked alone, if it has a name and other nodes.
pub(crate) fn wider(app: &App) -> Option<String> {
    let target = app.target().ok().filter(|target| target.pinned)?;
    let asked = target.endpoints.first()?;
    let config = app.config().ok()?;
    let of = |context: &Context| context.endpoints.len() > 1 && context.endpoints.contains(asked);
    let selected = config.current.iter().filter_map(|name| config.contexts.get_key_value(name));
    let (name, _) = selected.chain(&config.contexts).find(|(_, context)| of(context))?;
    Some(name.clone())
}

/// The name of the cluster that is meant, also by one of its nodes, and its folder if it is a lab.
pub(crate) fn lab_that_is_meant(app: &App) -> (Option<String>, Option<PathBuf>) {
    let named = wider(app).or_else(|| app.target().ok().and_then(|target| target.context));
    let config = app.config().unwrap_or_default();
    let dir = named.as_ref().and_then(|name| config.contexts.get(name)).and_then(|known| known.lab.clone());
    (named, dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_lab::Fault;

    /// A lab of so many nodes, of which these are down, with these links cut one way or both.
    fn lab(nodes: u64, down: &[u64], cut: &[(u64, u64)]) -> Broken {
        let name = |id| NodeName(NodeId(id));
        let node = |id| NodeView {
            node: name(id),
            client_address: format!("h:{id}"),
            peer_address: String::new(),
            up: !down.contains(&id),
            pid: None,
            paused: false,
        };
        let faults = cut.iter().map(|(a, b)| Fault { from: name(*a), to: name(*b), flow: Flow::Swallow });
        let lab = Status {
            pid: 1,
            dir: "/lab".into(),
            port_base: 7_100,
            nodes: (1..=nodes).map(node).collect(),
            faults: faults.collect(),
            faults_for_ms: None,
        };
        Broken { name: Some("lab".into()), lab }
    }

    fn could_lead(broken: &Broken) -> Vec<u64> {
        broken.could_lead(&[]).iter().map(|node| node.node.0.0).collect()
    }

    #[test]
    fn a_node_could_lead_that_hears_a_majority_itself() {
        assert_eq!(could_lead(&lab(5, &[], &[])), [1, 2, 3, 4, 5]);
        let minority = [(1, 3), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5)];
        assert_eq!(could_lead(&lab(5, &[], &minority)), [3, 4, 5]);
        assert_eq!(could_lead(&lab(5, &[5], &minority)), [0; 0], "two of five on either side");
        let three: Vec<_> = minority.into_iter().chain([(3, 4), (3, 5)]).collect();
        assert_eq!(could_lead(&lab(5, &[], &three)), [0; 0], "n1,n2 / n3 / n4,n5");
        assert_eq!(could_lead(&lab(5, &[1, 2], &[])), [3, 4, 5]);
        assert_eq!(could_lead(&lab(5, &[1, 2, 3], &[])), [0; 0]);
        // Who hears the others through a third one alone cannot count on them.
        let path = [(1, 3), (1, 4), (1, 5), (2, 4), (2, 5), (3, 5)];
        assert_eq!(could_lead(&lab(5, &[], &path)), [2, 3, 4], "n1 - n2 - n3 - n4 - n5");
        // Of the voters alone: those that a larger cluster has, or that are known.
        let many = u64::try_from(MAX_VOTERS).unwrap() + 2;
        let others: Vec<u64> = (1..=many).skip(MAX_VOTERS / 2).collect();
        assert_eq!(could_lead(&lab(many, &others, &[])), [0; 0]);
        let one = [NodeId(2)];
        assert_eq!(lab(5, &[1, 3, 4, 5], &[]).could_lead(&one).len(), 1);
    }

    #[test]
    fn what_mends_a_lab_begins_with_its_nodes() {
        let lines = |broken: &Broken| broken.mend().into_iter().map(|(line, _)| line).collect::<Vec<_>>();
        let both = lab(3, &[2], &[(1, 3)]);
        assert_eq!(lines(&both), ["kvctl lab restart --name lab n2", "kvctl fault heal --name lab"]);
        assert_eq!(both.when_mended(), "again, when they are back and the links are healed");
        assert_eq!(lab(3, &[2], &[]).when_mended(), "again, when they are back");
        assert_eq!(lab(3, &[], &[(1, 3)]).when_mended(), "again, when the links are healed");
        assert_eq!(lines(&lab(3, &[], &[])), [""; 0]);
    }
}
