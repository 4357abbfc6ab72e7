//! The local cluster of real processes: `kv-lab` does the work, this starts and shows it. A lab that came up
//! is the selected context.

use std::path::PathBuf;

use kv_lab::LabOptions;
use kv_lab::control::{self, Reply, Request, Status};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::app::App;
use crate::cli::{Lab, LabUp};
use crate::config::Context;
use crate::exit::Exit;
use crate::output::table;
use crate::problem::Problem;

/// Name of the context that `lab up` writes.
const CONTEXT: &str = "lab";

pub(crate) async fn run(app: &App, command: &Lab) -> Result<Exit, Problem> {
    match command {
        Lab::Up(args) => up(app, args).await,
        Lab::Supervise(args) => {
            control::supervise(options(args)).await?;
            Ok(Exit::Done)
        }
        Lab::Down => {
            control::ask(&folder(app), Request::Down).await?;
            app.out.done("the lab is down")?;
            Ok(Exit::Done)
        }
        Lab::Status => {
            if let Reply::Status(status) = control::ask(&folder(app), Request::Status).await? {
                show(app, &status)?;
            }
            Ok(Exit::Done)
        }
        Lab::Demo { port_base, seed, out } => demo(*port_base, *seed, out.clone()).await,
    }
}

/// Folder of the lab that is meant: the context's, else the usual one.
pub(crate) fn folder(app: &App) -> PathBuf {
    app.target().ok().and_then(|target| target.lab).unwrap_or_else(kv_lab::default_dir)
}

fn options(args: &LabUp) -> LabOptions {
    let mut options = LabOptions::new(args.dir.clone().unwrap_or_else(kv_lab::default_dir));
    (options.nodes, options.port_base, options.keep) = (args.nodes, args.port_base, args.keep);
    options
}

async fn up(app: &App, args: &LabUp) -> Result<Exit, Problem> {
    let begun = Instant::now();
    let options = options(args);
    if args.foreground {
        let endpoints =
            (1..=args.nodes).map(|node| format!("127.0.0.1:{}", u64::from(args.port_base) + node)).collect();
        select(app, endpoints, options.dir.clone())?;
        app.out.note(format!("{} nodes from port {}; Ctrl-C ends them", args.nodes, args.port_base + 1));
        control::supervise(options).await?;
        return Ok(Exit::Done);
    }
    let mut supervise = std::process::Command::new(std::env::current_exe()?);
    supervise.args(["lab", "supervise", "--dir"]).arg(&options.dir);
    supervise.args(["--nodes", &args.nodes.to_string(), "--port-base", &args.port_base.to_string()]);
    if args.keep {
        supervise.arg("--keep");
    }
    let status = control::launch(&options, supervise).await?;
    let endpoints: Vec<String> = status.nodes.iter().map(|node| node.client_address.clone()).collect();
    select(app, endpoints.clone(), options.dir)?;
    if app.out.is_json() {
        app.out.json(&status_json(&status))?;
        return Ok(Exit::Done);
    }
    let seconds = begun.elapsed().as_secs_f64();
    app.out.done(format!("{} nodes up in {seconds:.1} s   {}", status.nodes.len(), endpoints.join(" ")))?;
    app.out.note("context `lab` is selected. Next: kvctl ns create bank --mode strong   End: kvctl lab down");
    Ok(Exit::Done)
}

fn select(app: &App, endpoints: Vec<String>, dir: PathBuf) -> Result<(), Problem> {
    let mut config = app.config()?;
    let namespace = config.contexts.get(CONTEXT).and_then(|known| known.namespace.clone());
    config.contexts.insert(CONTEXT.into(), Context { endpoints, namespace, lab: Some(dir) });
    config.current = Some(CONTEXT.into());
    config.save(&app.config_path)
}

fn status_json(status: &Status) -> Value {
    json!({ "lab": status })
}

fn show(app: &App, status: &Status) -> Result<(), Problem> {
    if app.out.is_json() {
        return Ok(app.out.json(&status_json(status))?);
    }
    let faults = match status.faults_for_ms {
        Some(ms) => {
            format!("{} links cut or slow for {} s (kvctl fault list)", status.faults.len(), ms / 1_000)
        }
        None => "no faults".to_owned(),
    };
    app.out.line(format!("lab in {}   supervisor {}   {faults}", status.dir.display(), status.pid))?;
    let rows = status.nodes.iter().map(|node| {
        let pid = node.pid.map_or("-".to_owned(), |pid| pid.to_string());
        vec![
            node.node.to_string(),
            if node.up { "up" } else { "down" }.into(),
            node.client_address.clone(),
            pid,
        ]
    });
    Ok(app.out.line(table(&["node", "process", "clients", "pid"], rows))?)
}

async fn demo(port_base: u16, seed: u64, out: PathBuf) -> Result<Exit, Problem> {
    let mut options = kv_report::demo::DemoOptions::new(out);
    (options.port_base, options.seed) = (port_base, seed);
    let outcome = kv_report::demo::run(options).await?;
    Ok(if outcome.broken.is_empty() { Exit::Done } else { Exit::No })
}
