//! Faults in the network and the processes of a lab, and of nothing else.

use std::path::Path;
use std::time::Duration;

use kv_lab::control::{InForce, Reply, Request, Status};
use kv_lab::{Fault, Flow, Installed, NodeName};
use kv_types::counted;
use serde_json::json;

use crate::app::App;
use crate::cli;
use crate::exit::Exit;
use crate::lab::{ask, find, process, sides, to_start};
use crate::output::table;
use crate::problem::Problem;

pub(crate) async fn run(app: &App, command: &cli::Fault) -> Result<Exit, Problem> {
    let folder = find(app, command.which()).await?;
    let millis =
        |lasting: &Option<Duration>| lasting.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let (request, healing) = match command {
        cli::Fault::Partition { groups, lasting, .. } => {
            let groups = kv_lab::parse_groups(&groups.join(" "))?;
            let groups = groups.into_iter().map(|group| group.into_iter().map(NodeName).collect()).collect();
            (Request::Partition { groups, for_ms: millis(lasting) }, *lasting)
        }
        cli::Fault::Isolate { node, lasting, .. } => {
            (Request::Isolate { node: NodeName(*node), for_ms: millis(lasting) }, *lasting)
        }
        cli::Fault::Reset { from, to, lasting, .. } => {
            (flow(*from, *to, Flow::Reset, millis(lasting)), *lasting)
        }
        cli::Fault::Slow { from, to, bytes, lasting, .. } => {
            let slow = Flow::Slow { bytes_per_second: *bytes };
            (flow(*from, *to, slow, millis(lasting)), *lasting)
        }
        cli::Fault::Pause(of) => (Request::Pause { node: NodeName(of.node) }, None),
        cli::Fault::Resume(of) => (Request::Resume { node: NodeName(of.node) }, None),
        cli::Fault::Heal(_) => (Request::Heal, None),
        cli::Fault::List(_) => (Request::List, None),
    };
    let done = match command {
        cli::Fault::Partition { .. } | cli::Fault::Isolate { .. } => Done::Cut,
        cli::Fault::Reset { .. } => Done::Reset,
        cli::Fault::Slow { .. } => Done::Slowed,
        _ => Done::Healed,
    };
    let asked = ask(app, &folder, request).await;
    let reply = match (asked, command) {
        (Err(problem), cli::Fault::Pause(of) | cli::Fault::Resume(of)) => {
            return Err(to_start(app, &folder, of.node, problem).await);
        }
        (asked, _) => asked?,
    };
    match reply {
        Reply::Installed(installed) => {
            let now = match ask(app, &folder, Request::Status).await {
                Ok(Reply::Status(now)) => Some(now),
                _ => None,
            };
            let exit = report(app, &installed, done, healing, now.as_ref())?;
            if done == Done::Healed {
                remind(app, &folder).await;
            }
            Ok(exit)
        }
        Reply::Process(proof) => process(app, &proof),
        Reply::Faults { faults, paused } => {
            list(app, &faults, &paused)?;
            Ok(Exit::Done)
        }
        Reply::Status(_) | Reply::Done | Reply::Error { .. } => Ok(Exit::Done),
    }
}

/// Links that heal are not all that can be broken: nodes that stand still, or are down, stay so.
async fn remind(app: &App, folder: &Path) {
    let Ok(Reply::Status(status)) = ask(app, folder, Request::Status).await else { return };
    for node in &status.nodes {
        let (is, word) = match (node.up, node.paused) {
            (false, _) => ("is down", "restart"),
            (true, true) => ("stands still", "resume"),
            (true, false) => continue,
        };
        let line = app.line.of_lab(&["lab", word]).operand("node", node.node.to_string());
        app.out.note(format!("note: {} {is}: {line}", node.node));
    }
}

fn list(app: &App, faults: &[InForce], paused: &[NodeName]) -> Result<(), Problem> {
    let words = |flows: &[Flow]| flows.iter().map(Flow::to_string).collect::<Vec<_>>();
    if app.out.is_json() {
        for InForce { fault, ends_in_ms, beneath } in faults {
            let (from, to) = (fault.from.to_string(), fault.to.to_string());
            app.out.json(&json!({
                "from": from, "to": to, "flow": fault.flow.to_string(), "ends_in_ms": ends_in_ms,
                "beneath": words(beneath),
            }))?;
        }
        for node in paused {
            app.out.json(&json!({ "node": node.to_string(), "is": "stands still" }))?;
        }
        return Ok(());
    }
    if !faults.is_empty() {
        app.out.line(links(faults))?;
    }
    for node in paused {
        let resume = app.line.of_lab(&["lab", "resume"]).operand("node", node.to_string());
        app.out.line(format!("{node} stands still: {resume}"))?;
    }
    if faults.is_empty() && paused.is_empty() {
        app.out.note("no faults");
    }
    Ok(())
}

/// What is in force between nodes, a row for each link: the same both ways is said once. What lies beneath is
/// said where there is something, each kind once.
fn links(faults: &[InForce]) -> String {
    let ends = |found: &InForce| found.ends_in_ms.map(|ms| ms.div_ceil(1_000));
    let beneath = |found: &InForce| {
        let mut words: Vec<String> = found.beneath.iter().map(Flow::to_string).collect();
        words.dedup();
        words.join(", ")
    };
    let same =
        |a: &InForce, b: &InForce| (a.fault.flow, ends(a), beneath(a)) == (b.fault.flow, ends(b), beneath(b));
    let back = |of: &InForce| {
        let is_back = |other: &&InForce| (other.fault.from, other.fault.to) == (of.fault.to, of.fault.from);
        faults.iter().find(is_back).filter(|back| same(back, of))
    };
    let has_beneath = faults.iter().any(|found| !found.beneath.is_empty());
    let row = |found: &InForce| {
        let Fault { from, to, flow } = found.fault;
        let link = match back(found) {
            Some(_) if from > to => return None,
            Some(_) => format!("{from} and {to}"),
            None => format!("{from} to {to}"),
        };
        let ends = ends(found).map_or("-".to_owned(), |seconds| format!("in {seconds} s"));
        let beneath = has_beneath.then(|| beneath(found));
        Some([link, flow.to_string(), ends].into_iter().chain(beneath).collect())
    };
    let heads = ["link", "flow", "ends", "beneath"];
    let heads = heads.get(..if has_beneath { 4 } else { 3 }).unwrap_or_default();
    table(heads, faults.iter().filter_map(row))
}

fn flow(from: kv_types::NodeId, to: kv_types::NodeId, flow: Flow, for_ms: Option<u64>) -> Request {
    Request::Flow { from: NodeName(from), to: NodeName(to), flow, for_ms }
}

/// What was done to links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Cut,
    Reset,
    Slowed,
    Healed,
}

/// What is in force in all, where that is more than what was just done; `list` is the line that shows it.
fn in_force(status: &Status, links: usize, list: &str) -> Option<String> {
    if status.faults.len() <= links {
        return None;
    }
    let sides = sides(status);
    Some(format!(
        "in force now, with what was before: {} ({list}), {sides}",
        counted(status.faults.len(), "link", "links")
    ))
}

fn report(
    app: &App,
    installed: &Installed,
    done: Done,
    healing: Option<Duration>,
    now: Option<&Status>,
) -> Result<Exit, Problem> {
    let Installed { links, probes, as_expected, .. } = installed;
    if app.out.is_json() {
        app.out.json(&json!({
            "links": links, "probes": probes, "as_expected": as_expected, "in_force": now.map(|now| now.faults.len()),
        }))?;
    } else {
        let end = match healing {
            Some(time) => format!("heals itself in {}", humantime::format_duration(time)),
            None => format!("heal: {}", app.line.of_lab(&["fault", "heal"])),
        };
        let of = format!("{as_expected} of {}", counted(*probes, "probe", "probes"));
        let links = counted(*links, "link", "links");
        app.out.done(match done {
            Done::Cut => format!("cut {links} (both ways). Verified: {of} blocked.    {end}"),
            Done::Reset | Done::Slowed if installed.links == 0 => {
                format!("already cut: it applies when that ends.    {end}")
            }
            Done::Reset => format!("resets {links}. Verified: {of} reset.    {end}"),
            Done::Slowed => format!("slowed {links}. Verified: {of} late.    {end}"),
            Done::Healed => format!("healed {links}. Verified: {of} answered."),
        })?;
        let list = app.line.of_lab(&["fault", "list"]).to_string();
        if let Some(more) = now.and_then(|now| in_force(now, installed.links, &list)) {
            app.out.done(format!("{more}    heal all: {}", app.line.of_lab(&["fault", "heal"])))?;
        }
    }
    if as_expected == probes {
        return Ok(Exit::Done);
    }
    app.out.warn("the network is not in the state that was asked for; do not trust what is measured now");
    Ok(Exit::No)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_lab::control::NodeView;
    use kv_types::NodeId;

    /// A lab of five with these links cut both ways.
    fn lab(cut: &[(u64, u64)]) -> Status {
        let node = |id| NodeView {
            node: NodeName(NodeId(id)),
            client_address: String::new(),
            peer_address: String::new(),
            up: true,
            pid: None,
            paused: false,
        };
        let fault = |from: u64, to: u64| Fault {
            from: NodeName(NodeId(from)),
            to: NodeName(NodeId(to)),
            flow: Flow::Swallow,
        };
        Status {
            pid: 1,
            dir: "/lab".into(),
            port_base: 7_100,
            nodes: (1..=5).map(node).collect(),
            faults: cut.iter().flat_map(|(a, b)| [fault(*a, *b), fault(*b, *a)]).collect(),
            faults_for_ms: None,
        }
    }

    #[test]
    fn a_link_that_is_cut_both_ways_is_listed_once() {
        let found = |from: u64, to: u64, flow, ends_in_ms, beneath: &[Flow]| InForce {
            fault: Fault { from: NodeName(NodeId(from)), to: NodeName(NodeId(to)), flow },
            ends_in_ms,
            beneath: beneath.to_vec(),
        };
        let slow = Flow::Slow { bytes_per_second: 4_000 };
        let rows = |faults: &[InForce]| -> Vec<Vec<String>> {
            let text = links(faults);
            let cells = |line: &str| {
                line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
            };
            text.lines().map(cells).collect()
        };
        let cut = Flow::Swallow;
        // A moment between the two of one cut makes no difference.
        let both = [
            found(1, 2, cut, Some(4_100), &[]),
            found(2, 1, cut, Some(4_099), &[]),
            found(1, 3, slow, None, &[]),
        ];
        let said = rows(&both);
        assert_eq!(said[0], ["link", "flow", "ends"]);
        assert_eq!(said[1], ["n1 and n2".to_owned(), cut.to_string(), "in 5 s".to_owned()]);
        assert_eq!(said[2], ["n1 to n3".to_owned(), slow.to_string(), "-".to_owned()]);
        assert_eq!(said.len(), 3);
        // Other ways are other rows; what lies beneath is said once.
        let ways = [found(1, 2, cut, None, &[slow, slow]), found(2, 1, cut, None, &[])];
        let said = rows(&ways);
        assert_eq!(said[0], ["link", "flow", "ends", "beneath"]);
        assert_eq!(said[1], ["n1 to n2".to_owned(), cut.to_string(), "-".to_owned(), slow.to_string()]);
        assert_eq!(said[2], ["n2 to n1".to_owned(), cut.to_string(), "-".to_owned()]);
    }

    #[test]
    fn what_is_in_force_beside_is_said_with_who_hears_whom() {
        let minority = [(1, 3), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5)];
        assert_eq!(in_force(&lab(&minority), 12, ""), None, "that is all that there is");
        let both: Vec<_> = minority.into_iter().chain([(1, 2)]).collect();
        let said = in_force(&lab(&both), 2, "kvctl fault list").unwrap();
        assert!(
            said.contains("14 links (kvctl fault list)") && said.ends_with(", n1 / n2 / n3,n4,n5"),
            "{said}"
        );
        assert_eq!(
            crate::lab::broken(&Status { faults_for_ms: Some(3_000), ..lab(&minority) }),
            "12 links cut or slow for 3 s: n1,n2 / n3,n4,n5"
        );
        assert_eq!(
            crate::lab::broken(&Status { faults_for_ms: Some(3_000), ..lab(&[(1, 3)]) }),
            "2 links cut or slow for 3 s",
            "all hear each other through n2"
        );
        let bridge = [(1, 4), (1, 5), (2, 4), (2, 5)];
        assert!(in_force(&lab(&bridge), 2, "").unwrap().ends_with(", n1,n2,n3,n4,n5"), "n3 hears both");
    }
}
