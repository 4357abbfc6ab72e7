//! The local cluster of real processes: `kv-lab` does the work, this starts and shows it. A lab that came up
//! is the selected context.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use kv_lab::control::{self, Reply, Request, Status};
use kv_lab::{LabError, LabOptions, NodeName, Proof};
use kv_types::{NodeId, counted, noun};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::app::App;
use crate::cli::{Lab, LabNode, LabUp, WhichLab};
use crate::config::{Config, Context, named};
use crate::ctx::warn_of_environment;
use crate::exit::Exit;
use crate::fold::{WIDTH, fold};
use crate::line::Line;
use crate::output::{SHELL_LINE, readable, table};
use crate::problem::Problem;
use crate::progress::while_waiting;

/// Name of a lab, and of its context, when none is named.
const LAB: &str = "lab";
/// A lab's nodes share a laptop: small segments, of which each node prepares one. No smaller, for half of one
/// must take what a fallback writes at once: three copies of the largest values of a key.
const SETTINGS: &str = "[storage]\nsegment_size = \"16MiB\"\n";
/// How much of a log is read for its last lines, bytes.
const LOG_END: u64 = 8 << 20;

pub(crate) async fn run(app: &App, command: &Lab) -> Result<Exit, Problem> {
    match command {
        Lab::Up(args) => up(app, args).await,
        Lab::Supervise(args) => {
            control::supervise(options(app, args, LAB)?).await?;
            Ok(Exit::Done)
        }
        Lab::Down(which) => down(app, &find(app, which).await?).await,
        Lab::Status(which) => {
            if let Reply::Status(status) = ask(app, &find(app, which).await?, Request::Status).await? {
                show(app, &status)?;
            }
            Ok(Exit::Done)
        }
        Lab::Kill(node) => change(app, node, |node| Request::Kill { node }).await,
        Lab::Restart { node, empty } => {
            change(app, node, |node| Request::Restart { node, empty: *empty }).await
        }
        Lab::Pause(node) => change(app, node, |node| Request::Pause { node }).await,
        Lab::Resume(node) => change(app, node, |node| Request::Resume { node }).await,
        Lab::Logs { node, lines } => logs(app, node, *lines).await,
        Lab::Demo { port_base, seed, out } => demo(*port_base, *seed, out.clone()).await,
    }
}

/// The folder of the lab that is meant. What was typed counts before the environment, and both before what
/// is selected. An unknown context, a context that is no lab, and a node named by its address are errors:
/// another lab is never meant.
pub(crate) async fn find(app: &App, which: &WhichLab) -> Result<PathBuf, Problem> {
    refuse_endpoint(app)?;
    let name = which.name.as_ref().or(app.global.context.as_ref());
    if let (None, Some(dir)) = (name, &which.dir) {
        return absolute(dir); // whatever the file of contexts says
    }
    let config = app.config()?;
    let typed = which.dir.as_ref().filter(|_| app.line.has("dir"));
    let wanted = name.or(config.current.as_ref()).map_or(LAB, String::as_str);
    if let Some(dir) = restored(app, &config, wanted).await? {
        return Ok(dir);
    }
    // A selection of what is not there selects nothing.
    let current = config.current.as_ref().filter(|current| config.contexts.contains_key(*current));
    let name = name.or(current);
    match (name, typed) {
        (Some(name), Some(dir)) => {
            let (named, dir) = (lab_of(&config, name)?, absolute(dir)?);
            let differs = format!("`{name}` is the lab in {}, not in {}", named.display(), dir.display());
            if named == dir { Ok(dir) } else { Err(Problem::usage(differs)) }
        }
        (Some(name), None) => lab_of(&config, name),
        (None, _) => match restored(app, &config, LAB).await? {
            Some(dir) => Ok(dir),
            None => {
                let known = config.contexts.get(LAB).and_then(|context| context.lab.clone());
                Ok(known.unwrap_or_else(|| kv_lab::dir_of(LAB)))
            }
        },
    }
}

/// The folder of a lab of this name that runs although no context has the name, as where the file of contexts
/// was moved away: its context is written again.
async fn restored(app: &App, config: &Config, name: &str) -> Result<Option<PathBuf>, Problem> {
    if config.contexts.contains_key(name) || named(name).is_err() {
        return Ok(None);
    }
    let dir = absolute(&kv_lab::dir_of(name))?;
    let Ok(Reply::Status(status)) = control::ask(&dir, Request::Status).await else { return Ok(None) };
    let endpoints = status.nodes.into_iter().map(|node| node.client_address).collect();
    let context = Context { endpoints, namespace: None, lab: Some(dir.clone()) };
    Config::change(&app.config_path, |config| {
        config.contexts.entry(name.to_owned()).or_insert(context);
        let known = config.current.as_ref().is_some_and(|current| config.contexts.contains_key(current));
        if !known {
            config.current = Some(name.to_owned());
        }
        Ok(())
    })?;
    app.out.note(format!("the lab runs, and no context had its name: `{name}` is written again"));
    Ok(Some(dir))
}

fn refuse_endpoint(app: &App) -> Result<(), Problem> {
    let Some(endpoint) = app.global.endpoints.first() else { return Ok(()) };
    let message = format!("{endpoint} names a node of some cluster; a lab is named by --name, --dir or -c");
    Err(Problem::usage(message).try_this("kvctl ctx list", "which labs there are"))
}

fn absolute(dir: &Path) -> Result<PathBuf, Problem> {
    Ok(std::path::absolute(dir)?)
}

fn lab_of(config: &Config, name: &str) -> Result<PathBuf, Problem> {
    config.context(name)?.lab.clone().ok_or_else(|| {
        let message = format!(
            "context `{name}` is not a lab; faults and processes are only for clusters that `kvctl lab up` started"
        );
        Problem::usage(message).try_this("kvctl ctx list", "which labs there are")
    })
}

/// Asks a lab; one that does not run is said with the line that starts it.
pub(crate) async fn ask(app: &App, dir: &Path, request: Request) -> Result<Reply, Problem> {
    let answered = while_waiting(app, "the lab has done it", control::ask(dir, request)).await;
    answered.map_err(|error| match error {
        LabError::NotRunning { .. } => {
            let up = app.line.of_lab(&["lab", "up"]).to_string();
            let problem = Problem::from(error);
            Problem { message: not_running(app, dir), ..problem }.try_this(up, "starts it")
        }
        error => error.into(),
    })
}

/// How the lab in this folder is called by the person who asks: none where they named the folder, or where no
/// name stands for it.
fn name_in_use(app: &App, dir: &Path) -> Option<String> {
    if app.line.has("dir") {
        return None;
    }
    let config = app.config().unwrap_or_default();
    let is_it = |name: &&String| {
        let context = config.contexts.get(*name);
        context.is_some_and(|context| context.lab.as_deref() == Some(dir))
    };
    let known = config.current.iter().chain(config.contexts.keys()).find(is_it).cloned();
    // A lab that no context names any more is still where its name puts it.
    let usual = || {
        let name = dir.file_name()?.to_str()?.to_owned();
        (kv_lab::dir_of(&name) == dir).then_some(name)
    };
    known.or_else(usual)
}

/// That no lab runs, by the name that was meant, or else by its folder.
fn not_running(app: &App, dir: &Path) -> String {
    match name_in_use(app, dir) {
        Some(name) if name == LAB => "no lab runs".to_owned(),
        Some(name) => format!("the lab `{name}` does not run"),
        None => format!("no lab runs in {}", dir.display()),
    }
}

/// The name of the lab that is to start: the one named, that of the context, or the usual one.
fn name_of(app: &App, args: &LabUp) -> Result<String, Problem> {
    let config = app.config()?;
    let is_lab = |name: &String| config.contexts.get(name).is_some_and(|context| context.lab.is_some());
    let name = match (&args.which.name, &app.global.context) {
        (Some(name), _) => name.clone(),
        (None, Some(context)) => lab_of(&config, context).map(|_| context.clone())?,
        // A folder that is named is a lab of its own, whatever is selected.
        (None, None) if args.which.dir.is_some() => LAB.into(),
        (None, None) => config.current.clone().filter(is_lab).unwrap_or_else(|| LAB.into()),
    };
    named(&name)?;
    Ok(name)
}

fn options(app: &App, args: &LabUp, name: &str) -> Result<LabOptions, Problem> {
    let known = app.config()?.contexts.get(name).and_then(|context| context.lab.clone());
    // A name that was said counts before a folder of the environment.
    let named = args.which.name.is_some() || app.global.context.is_some();
    let dir = match (args.which.dir.as_ref().filter(|_| !named || app.line.has("dir")), known) {
        (Some(dir), _) => absolute(dir)?,
        (None, Some(known)) => known,
        (None, None) => absolute(&kv_lab::dir_of(name))?,
    };
    let mut options = LabOptions::new(dir);
    let (nodes, ports) = kv_lab::kept(&options.dir).unwrap_or((options.nodes, options.port_base));
    let nodes = args.nodes.unwrap_or(nodes);
    (options.nodes, options.port_base, options.keep) = (nodes, args.port_base.unwrap_or(ports), !args.fresh);
    options.settings = SETTINGS.into();
    Ok(options)
}

/// Refuses a name that another lab has which still runs: it could not be reached any more. What the name
/// stands for now.
async fn refuse_taken(app: &App, name: &str, dir: &Path) -> Result<Option<Context>, Problem> {
    let known = app.config()?.contexts.get(name).cloned();
    let Some(context) = &known else { return Ok(None) };
    let Some(lab) = &context.lab else {
        let message = format!("context `{name}` is not a lab, and this would replace it");
        let line = app.line.clone().with("--name", format!("{name}-lab"));
        return Err(Problem::usage(message).try_this(line.to_string(), "a lab of another name"));
    };
    if lab == dir || !kv_lab::runs(lab).await {
        return Ok(known);
    }
    let message =
        format!("`{name}` is the lab in {}, which runs: give this one a name of its own", lab.display());
    let other = app.line.clone().with("--name", format!("{name}2"));
    Err(Problem::usage(message).try_this(other.to_string(), "beside it"))
}

async fn up(app: &App, args: &LabUp) -> Result<Exit, Problem> {
    let begun = Instant::now();
    refuse_endpoint(app)?;
    let name = name_of(app, args)?;
    if args.which.dir.is_none() {
        restored(app, &app.config()?, &name).await?;
    }
    let options = options(app, args, &name)?;
    let before = refuse_taken(app, &name, &options.dir).await?;
    control::check(&options).await.map_err(|error| elsewhere(app, &options, error))?;
    let kept = options.keep && options.dir.join("cluster.toml").exists();
    if kept {
        app.out
            .note(format!("with the data of the lab before in {} (--fresh: without)", options.dir.display()));
    }
    if args.foreground {
        let (nodes, ports) = (options.nodes, u64::from(options.port_base));
        let endpoints = (1..=nodes).map(|node| format!("127.0.0.1:{}", ports + node)).collect();
        select(app, &name, before, endpoints, options.dir.clone())?;
        warn_of_environment(app, &name);
        app.out.note(format!(
            "{} from port {}; Ctrl-C ends {}",
            counted(nodes, "node", "nodes"),
            ports + 1,
            noun(nodes, "it", "them")
        ));
        control::supervise(options).await?;
        return Ok(Exit::Done);
    }
    let mut supervise = std::process::Command::new(std::env::current_exe()?);
    supervise.args(["lab", "supervise", "--dir"]).arg(&options.dir).env_remove(SHELL_LINE);
    supervise.args(["--nodes", &options.nodes.to_string(), "--port-base", &options.port_base.to_string()]);
    if args.fresh {
        supervise.arg("--fresh");
    }
    let launched = control::launch(&options, supervise);
    let status = while_waiting(app, "the nodes serve", launched).await;
    let status = status.map_err(|error| elsewhere(app, &options, error))?;
    let endpoints: Vec<String> = status.nodes.iter().map(|node| node.client_address.clone()).collect();
    select(app, &name, before, endpoints.clone(), options.dir)?;
    warn_of_environment(app, &name);
    if app.out.is_json() {
        app.out.json(&status_json(&status))?;
        return Ok(Exit::Done);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let up = counted(status.nodes.len(), "node", "nodes");
    app.out.done(format!("{up} up in {seconds:.1} s   {}", endpoints.join(" ")))?;
    let next = if kept { "ns list" } else { "ns create bank --mode strong" };
    app.out.note(format!("context `{name}` is selected. Next: kvctl {next}   End: kvctl lab down"));
    Ok(Exit::Done)
}

/// A busy port is said with the line that takes others.
fn elsewhere(app: &App, options: &LabOptions, error: LabError) -> Problem {
    match &error {
        LabError::PortBusy { port, holder, instead } => {
            let holder =
                holder.as_ref().map(|holder| format!(": {holder} listens there")).unwrap_or_default();
            Problem::usage(format!("port {port} is busy{holder}"))
                .try_this(app.line.clone().with("--port-base", instead).to_string(), "on other ports")
        }
        LabError::OtherNodes { had, .. } => {
            let same = app.line.clone().with("--nodes", had).to_string();
            let mut problem = Problem::usage(error.to_string());
            if (1..=kv_lab::cluster::MAX_NODES).contains(had) {
                problem = problem.try_this(same, "with that data");
            }
            problem.try_this(app.line.clone().flag("--fresh").to_string(), "without it")
        }
        LabError::Damaged { .. } => Problem::usage(error.to_string())
            .try_this(app.line.clone().flag("--fresh").to_string(), "begins anew, without its data"),
        LabError::Interrupted(signal) => {
            let message =
                "interrupted: the lab was not up yet. What had started is ended, and its data stays";
            Problem::new(Exit::of_signal(*signal), message).try_this(app.line.to_string(), "starts it again")
        }
        LabError::AlreadyRunning { .. } => {
            let this = |words: &[&str]| Line::new(words).with("--dir", options.dir.display()).to_string();
            Problem::usage(error.to_string())
                .try_this(this(&["lab", "status"]), "which nodes run")
                .try_this(this(&["lab", "down"]), "stops them")
        }
        _ => error.into(),
    }
}

/// Ends a lab. One that does not run is as asked.
async fn down(app: &App, dir: &Path) -> Result<Exit, Problem> {
    let ended = control::ask(dir, Request::Down);
    let ran = match while_waiting(app, "the nodes have stopped", ended).await {
        Ok(_) => true,
        Err(LabError::NotRunning { .. }) => false,
        Err(error) => return Err(error.into()),
    };
    if app.out.is_json() {
        let name = name_in_use(app, dir);
        app.out.json(&json!({ "lab": dir, "name": name, "ran": ran, "down": true }))?;
    } else {
        app.out.done(match (ran, name_in_use(app, dir)) {
            (true, Some(name)) if name == LAB => "the lab is down".to_owned(),
            (true, Some(name)) => format!("the lab `{name}` is down"),
            (true, None) => format!("the lab in {} is down", dir.display()),
            (false, _) => format!("{}: nothing to do", not_running(app, dir)),
        })?;
    }
    Ok(Exit::Done)
}

/// Kills a node, starts it again, makes it stand still, or lets it go on.
async fn change(
    app: &App,
    args: &LabNode,
    request: impl FnOnce(NodeName) -> Request,
) -> Result<Exit, Problem> {
    let dir = find(app, &args.which).await?;
    match ask(app, &dir, request(NodeName(args.node))).await {
        Ok(Reply::Process(proof)) => process(app, &proof),
        Ok(_) => Ok(Exit::Done),
        Err(problem) => Err(to_start(app, &dir, args.node, problem).await),
    }
}

/// With the line that starts the node, if it is one that does not run.
pub(crate) async fn to_start(app: &App, dir: &Path, node: NodeId, problem: Problem) -> Problem {
    let Ok(Reply::Status(status)) = control::ask(dir, Request::Status).await else { return problem };
    let is_down = status.nodes.iter().any(|known| known.node == NodeName(node) && !known.up);
    if !is_down || !problem.tries.is_empty() {
        return problem;
    }
    let restart = app.line.of_lab(&["lab", "restart"]).operand("node", node.to_string());
    problem.try_this(restart.to_string(), "starts it")
}

/// What was done to a process, with what shows it.
pub(crate) fn process(app: &App, proof: &Proof) -> Result<Exit, Problem> {
    let (is, node, then) = match proof {
        Proof::Paused { node, .. } => ("stands still", node, Some(("resume", "end it"))),
        Proof::Resumed { node, stood_still: true, .. } => ("goes on", node, None),
        // As the next but one, that is as it was asked for.
        Proof::Resumed { node, .. } => ("did not stand still", node, None),
        Proof::Killed { node, by_signal: true, .. } => ("was killed", node, Some(("restart", "start it"))),
        // That is as it was asked for.
        Proof::Killed { node, .. } => ("did not run", node, Some(("restart", "start it"))),
        Proof::Started { node, .. } => ("runs again", node, None),
        _ => return Ok(Exit::Done),
    };
    let proven = proof.is_proven() || matches!(proof, Proof::Killed { .. });
    let seen = matches!(proof, Proof::Paused { .. } | Proof::Resumed { .. });
    if app.out.is_json() {
        app.out.json(&json!({ "node": node.to_string(), "is": is, "verified": proven }))?;
    } else if proven {
        let then = then.map_or(String::new(), |(word, why)| {
            format!("    {why}: {}", app.line.of_lab(&["lab", word]).operand("node", node.to_string()))
        });
        let seen = if seen { ". Verified: its process says so." } else { "" };
        app.out.done(format!("{node} {is}{seen}{then}"))?;
    }
    if proven {
        return Ok(Exit::Done);
    }
    app.out.warn(format!("it was asked, but the process of {node} does not say that it {is}"));
    Ok(Exit::No)
}

/// The last lines of a node's log, which is there also when the lab is down.
async fn logs(app: &App, args: &LabNode, lines: u32) -> Result<Exit, Problem> {
    let dir = find(app, &args.which).await?;
    let file = dir.join("logs").join(format!("{}.log", args.node));
    let unreadable = |error: std::io::Error| {
        let is_missing = error.kind() == std::io::ErrorKind::NotFound;
        let message = match kv_lab::kept(&dir).filter(|_| is_missing) {
            Some((nodes, _)) if args.node.0 > nodes => {
                LabError::UnknownNode { node: args.node, nodes }.to_string()
            }
            Some(_) => format!("{} has no log yet: {} is not there", args.node, file.display()),
            None if is_missing => format!("there is no lab in {}, so no log of {}", dir.display(), args.node),
            None => format!("cannot read {}: {error}", file.display()),
        };
        Problem::usage(message)
            .try_this(app.line.of_lab(&["lab", "status"]).to_string(), "which nodes there are")
    };
    let mut log = std::fs::File::open(&file).map_err(unreadable)?;
    let from = log.metadata().map_err(unreadable)?.len().saturating_sub(LOG_END);
    log.seek(SeekFrom::Start(from)).map_err(unreadable)?;
    let mut end = Vec::new();
    log.read_to_end(&mut end).map_err(unreadable)?;
    let text = String::from_utf8_lossy(&end);
    let skip = text.lines().count().saturating_sub(usize::try_from(lines).unwrap_or(usize::MAX));
    for line in text.lines().skip(skip) {
        if app.out.is_json() {
            app.out.json(&json!({ "node": args.node.to_string(), "line": line }))?;
        } else {
            app.out.line(readable(line.as_bytes()))?;
        }
    }
    Ok(Exit::Done)
}

/// Selects a lab, unless its name came to mean something else since `before`.
fn select(
    app: &App,
    name: &str,
    before: Option<Context>,
    endpoints: Vec<String>,
    dir: PathBuf,
) -> Result<(), Problem> {
    Config::change(&app.config_path, |config| {
        let now = config.contexts.get(name);
        if now.is_some_and(|now| now.lab.as_ref() != Some(&dir)) && now != before.as_ref() {
            let down = Line::new(&["lab", "down"]).with("--dir", dir.display()).to_string();
            let message =
                format!("the lab in {} runs, but `{name}` became another context meanwhile", dir.display());
            return Err(Problem::new(Exit::Refused, message).try_this(down, "stops it"));
        }
        let namespace = config.contexts.get(name).and_then(|known| known.namespace.clone());
        config.contexts.insert(name.into(), Context { endpoints, namespace, lab: Some(dir) });
        config.current = Some(name.into());
        Ok(())
    })
}

fn status_json(status: &Status) -> Value {
    json!({ "lab": status })
}

/// The groups of nodes that hear each other in spite of the faults in force, directly or through others, as
/// in `n1,n2 / n3`.
pub(crate) fn sides(status: &Status) -> String {
    let cut = |a: NodeName, b: NodeName| {
        let ways = [(a, b), (b, a)];
        status
            .faults
            .iter()
            .any(|fault| fault.flow == kv_lab::Flow::Swallow && ways.contains(&(fault.from, fault.to)))
    };
    let mut sides: Vec<Vec<NodeName>> = Vec::new();
    for node in status.nodes.iter().map(|node| node.node) {
        let (joined, mut apart): (Vec<_>, Vec<_>) =
            sides.into_iter().partition(|side: &Vec<NodeName>| side.iter().any(|other| !cut(node, *other)));
        let mut whole: Vec<NodeName> = joined.into_iter().flatten().chain([node]).collect();
        whole.sort_unstable();
        apart.push(whole);
        apart.sort_unstable();
        sides = apart;
    }
    let named = |side: &Vec<NodeName>| side.iter().map(NodeName::to_string).collect::<Vec<_>>().join(",");
    sides.iter().map(named).collect::<Vec<_>>().join(" / ")
}

/// What is broken on purpose, in one line.
pub(crate) fn broken(status: &Status) -> String {
    let links = status.faults_for_ms.map(|ms| {
        let links = counted(status.faults.len(), "link", "links");
        let sides = Some(sides(status)).filter(|sides| sides.contains('/'));
        let sides = sides.map_or(String::new(), |sides| format!(": {sides}"));
        format!("{links} cut or slow for {} s{sides}", ms / 1_000)
    });
    let those = |what: &str, is: &dyn Fn(&control::NodeView) -> bool| {
        let nodes: Vec<String> =
            status.nodes.iter().filter(|node| is(node)).map(|node| node.node.to_string()).collect();
        (!nodes.is_empty()).then(|| format!("{} {what}", nodes.join(" ")))
    };
    let still = those("paused", &|node| node.up && node.paused);
    let down = those("down", &|node| !node.up);
    let all: Vec<String> = [links, still, down].into_iter().flatten().collect();
    if all.is_empty() { "no faults".to_owned() } else { all.join(", ") }
}

fn show(app: &App, status: &Status) -> Result<(), Problem> {
    if app.out.is_json() {
        return Ok(app.out.json(&status_json(status))?);
    }
    let list = app.line.of_lab(&["fault", "list"]);
    let listed = if status.faults.is_empty() { String::new() } else { format!(" ({list})") };
    let faults = format!("{}{listed}", broken(status));
    let name = name_in_use(app, &status.dir).map_or_else(|| "lab".to_owned(), |name| format!("lab `{name}`"));
    let head = format!("{name}   supervisor {}", status.pid);
    let beside = format!("{head}   {faults}");
    let fits = beside.chars().count() <= WIDTH;
    app.out.line(if fits { beside } else { format!("{head}\n{}", fold(&faults)) })?;
    app.out.line(format!("in {}", status.dir.display()))?;
    let rows = status.nodes.iter().map(|node| {
        let pid = node.pid.map_or("-".to_owned(), |pid| pid.to_string());
        vec![
            node.node.to_string(),
            match (node.up, node.paused) {
                (true, true) => "stands still",
                (true, false) => "up",
                (false, _) => "down",
            }
            .into(),
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
