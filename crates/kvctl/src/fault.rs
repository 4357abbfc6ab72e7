//! Faults in the network of a lab, and of nothing else.

use std::time::Duration;

use kv_lab::control::{self, Reply, Request};
use kv_lab::{Installed, NodeName};
use serde_json::json;

use crate::app::App;
use crate::cli::Fault;
use crate::exit::Exit;
use crate::lab::folder;
use crate::output::table;
use crate::problem::Problem;

pub(crate) async fn run(app: &App, command: &Fault) -> Result<Exit, Problem> {
    let target = app.target()?;
    if let (Some(context), None) = (&target.context, &target.lab) {
        return Err(Problem::usage(format!(
            "context `{context}` is not a lab; fault injection works on clusters started by `kvctl lab up`"
        ))
        .try_this("kvctl lab up", "starts one and selects it"));
    }
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
        Fault::Heal => (Request::Heal, None),
        Fault::List => (Request::List, None),
    };
    let cutting = matches!(command, Fault::Partition { .. } | Fault::Isolate { .. });
    match control::ask(&folder(app), request).await? {
        Reply::Installed(installed) => report(app, &installed, cutting, healing),
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
        Reply::Status(_) | Reply::Process(_) | Reply::Done | Reply::Error { .. } => Ok(Exit::Done),
    }
}

fn report(
    app: &App,
    installed: &Installed,
    cutting: bool,
    healing: Option<Duration>,
) -> Result<Exit, Problem> {
    let Installed { links, probes, as_expected, .. } = installed;
    if app.out.is_json() {
        app.out.json(&json!({ "links": links, "probes": probes, "as_expected": as_expected }))?;
    } else if cutting {
        let end = match healing {
            Some(time) => format!("heals itself in {}", humantime::format_duration(time)),
            None => "heal: kvctl fault heal".to_owned(),
        };
        app.out.done(format!(
            "cut {links} links (both ways). Verified: {as_expected} of {probes} probes blocked.    {end}"
        ))?;
    } else {
        app.out
            .done(format!("healed {links} links. Verified: {as_expected} of {probes} probes answered."))?;
    }
    if as_expected == probes {
        return Ok(Exit::Done);
    }
    app.out.note(
        "warning: the network is not in the state that was asked for; do not trust what is measured now",
    );
    Ok(Exit::No)
}
