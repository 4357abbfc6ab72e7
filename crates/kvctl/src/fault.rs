//! Faults in the network and the processes of a lab, and of nothing else.

use std::time::Duration;

use kv_lab::control::{Reply, Request};
use kv_lab::{Flow, Installed, NodeName};
use serde_json::json;

use crate::app::App;
use crate::cli::{Fault, WhichLab};
use crate::exit::Exit;
use crate::lab::{ask, find, process};
use crate::output::table;
use crate::problem::Problem;

pub(crate) async fn run(app: &App, command: &Fault) -> Result<Exit, Problem> {
    let folder = find(app, &WhichLab { name: None, dir: std::env::var_os("KVCTL_LAB_DIR").map(Into::into) })?;
    let millis =
        |lasting: &Option<Duration>| lasting.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let (request, healing) = match command {
        Fault::Partition { groups, lasting } => {
            let groups = kv_lab::parse_groups(&groups.join(" "))?;
            let groups = groups.into_iter().map(|group| group.into_iter().map(NodeName).collect()).collect();
            (Request::Partition { groups, for_ms: millis(lasting) }, *lasting)
        }
        Fault::Isolate { node, lasting } => {
            (Request::Isolate { node: NodeName(*node), for_ms: millis(lasting) }, *lasting)
        }
        Fault::Reset { from, to, lasting } => (flow(*from, *to, Flow::Reset, millis(lasting)), *lasting),
        Fault::Slow { from, to, bytes, lasting } => {
            let slow = Flow::Slow { bytes_per_second: *bytes };
            (flow(*from, *to, slow, millis(lasting)), *lasting)
        }
        Fault::Pause { node } => (Request::Pause { node: NodeName(*node) }, None),
        Fault::Resume { node } => (Request::Resume { node: NodeName(*node) }, None),
        Fault::Heal => (Request::Heal, None),
        Fault::List => (Request::List, None),
    };
    let done = match command {
        Fault::Partition { .. } | Fault::Isolate { .. } => Done::Cut,
        Fault::Reset { .. } => Done::Reset,
        Fault::Slow { .. } => Done::Slowed,
        _ => Done::Healed,
    };
    match ask(app, &folder, request).await? {
        Reply::Installed(installed) => report(app, &installed, done, healing),
        Reply::Process(proof) => process(app, &proof),
        Reply::Faults { faults } => {
            if app.out.is_json() {
                for fault in &faults {
                    let (from, to) = (fault.from.to_string(), fault.to.to_string());
                    app.out.json(&json!({ "from": from, "to": to, "flow": fault.flow.to_string() }))?;
                }
            } else if faults.is_empty() {
                app.out.note("no faults");
            } else {
                let row = |fault: &kv_lab::Fault| {
                    vec![fault.from.to_string(), fault.to.to_string(), fault.flow.to_string()]
                };
                app.out.line(table(&["from", "to", "flow"], faults.iter().map(row)))?;
            }
            Ok(Exit::Done)
        }
        Reply::Status(_) | Reply::Done | Reply::Error { .. } => Ok(Exit::Done),
    }
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

fn report(app: &App, installed: &Installed, done: Done, healing: Option<Duration>) -> Result<Exit, Problem> {
    let Installed { links, probes, as_expected, .. } = installed;
    if app.out.is_json() {
        app.out.json(&json!({ "links": links, "probes": probes, "as_expected": as_expected }))?;
    } else {
        let end = match healing {
            Some(time) => format!("heals itself in {}", humantime::format_duration(time)),
            None => format!("heal: {}", app.line.of_lab(&["fault", "heal"])),
        };
        let of = format!("{as_expected} of {probes} probes");
        app.out.done(match done {
            Done::Cut => format!("cut {links} links (both ways). Verified: {of} blocked.    {end}"),
            Done::Reset | Done::Slowed if *links == 0 => {
                format!("already cut: it applies when that ends.    {end}")
            }
            Done::Reset => format!("resets {links} links. Verified: {of} reset.    {end}"),
            Done::Slowed => format!("slowed {links} links. Verified: {of} late.    {end}"),
            Done::Healed => format!("healed {links} links. Verified: {of} answered."),
        })?;
    }
    if as_expected == probes {
        return Ok(Exit::Done);
    }
    app.out.note(
        "warning: the network is not in the state that was asked for; do not trust what is measured now",
    );
    Ok(Exit::No)
}
