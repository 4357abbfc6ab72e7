//! The command line of Quorate. Everything it does, `kv-client` and `kv-lab` do; it reads arguments, renders
//! answers, and ends with an exit code that scripts can trust.

mod app;
mod bench;
mod broken;
mod check;
mod cli;
mod cluster;
mod config;
mod ctx;
mod data;
mod definition;
mod exit;
mod explain;
mod fault;
mod fold;
mod help;
mod lab;
mod latency;
mod line;
mod ns;
mod output;
mod problem;
mod progress;
mod seen;
mod shell;
mod suggest;
mod top;
mod transfer;
mod units;
mod usage;
mod views;

use std::process::ExitCode;

use clap::{ArgMatches, FromArgMatches};
use kv_lab::EndSignal;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::app::App;
use crate::cli::{Cli, Command, Global, Lab, Ns};
use crate::exit::Exit;
use crate::line::Line;
use crate::output::{Output, is_in_shell};
use crate::problem::Problem;

fn main() -> ExitCode {
    let mut definition = definition::definition();
    let parsed = definition.try_get_matches_from_mut(std::env::args_os());
    let read = |matches: ArgMatches| {
        Cli::from_arg_matches(&matches).map(|cli| (cli, Line::given(&definition, &matches, is_in_shell())))
    };
    let (Cli { mut global, command }, line) = match parsed.and_then(read) {
        Ok(read) => read,
        Err(error) => return usage::refuse(&error, &definition),
    };
    let empty = names_nothing(&line, &global);
    global.forget_empty();
    let out = Output::new(global.output, global.quiet, global.verbose > 0, global.color);
    if global.verbose > 1 {
        log_attempts(out.has_color());
    }
    if let Some(problem) = empty {
        out.problem(&problem);
        return problem.exit.into();
    }
    let app = App::new(global, out, line, config::path());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            app.out.problem(&Problem::new(Exit::Refused, format!("cannot start: {error}")));
            return Exit::Refused.into();
        }
    };
    let exit = runtime.block_on(run(&app, &command));
    // A thread may still wait for standard input; the program does not.
    runtime.shutdown_background();
    exit.into()
}

/// An option that names a cluster or a namespace was typed with nothing behind it, as where a variable of a
/// script is empty: it must not mean another one. A variable of the environment that is empty is none.
fn names_nothing(line: &Line, global: &Global) -> Option<Problem> {
    let is_empty = |name: &Option<String>| name.as_ref().is_some_and(String::is_empty);
    let no_node = !global.endpoints.is_empty() && global.endpoints.iter().all(String::is_empty);
    let contexts = || Line::new(&["ctx", "list"]);
    let (option, what, list) = if line.says("context") && is_empty(&global.context) {
        ("-c", "context", contexts())
    } else if line.says("endpoints") && no_node {
        ("-e", "node", contexts())
    } else if line.says("namespace") && is_empty(&global.namespace) {
        ("-n", "namespace", line.cluster(&["ns", "list"]))
    } else {
        return None;
    };
    let message = format!("{option} names no {what}: what was given is empty");
    Some(Problem::usage(message).try_this(list.to_string(), "which there are"))
}

/// Shows on standard error what is asked of which node, and how that ends: the attempts, and no library.
fn log_attempts(color: bool) {
    let attempts = Targets::new().with_target("kv_client", LevelFilter::DEBUG);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = lines.without_time().with_target(false).with_ansi(color);
    tracing_subscriber::registry().with(attempts).with(lines).init();
}

async fn run(app: &App, command: &Command) -> Exit {
    // The lab hears Ctrl-C itself, to end its processes first; a benchmark, to say what it has measured and
    // to remove what it made; the shell, because only the command in it ends.
    let own_ending = matches!(
        command,
        Command::Lab(Lab::Up(_) | Lab::Supervise(_) | Lab::Demo { .. }) | Command::Bench(_) | Command::Shell
    );
    let result = tokio::select! {
        biased;
        signal = asked_to_end(), if !own_ending => {
            let exit = Exit::of_signal(signal);
            if let Some(problem) = suggest::of_interrupted(app, command, exit) {
                if app.out.shows_progress() && app.out.redraws() {
                    app.out.passing("");
                }
                app.out.problem(&problem);
            }
            return exit;
        }
        result = dispatch(app, command) => result,
    };
    match result {
        Ok(exit) => exit,
        Err(mut problem) => {
            // The reader of our output has read enough.
            if problem.exit == Exit::Done {
                return app.out.unread();
            }
            suggest::suggest(app, &mut problem).await;
            app.out.problem(&problem);
            problem.exit
        }
    }
}

/// Resolves at Ctrl-C or SIGTERM, and says which; never where the system lets neither be heard. SIGHUP ends
/// the process as the system does, or not at all, as under `nohup`.
async fn asked_to_end() -> EndSignal {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        biased;
        Ok(()) = tokio::signal::ctrl_c() => EndSignal::Interrupt,
        Some(()) = terminate.recv() => EndSignal::Terminate,
        else => std::future::pending().await,
    }
}

async fn dispatch(app: &App, command: &Command) -> Result<Exit, Problem> {
    match command {
        Command::Get(args) => data::get(app, args).await,
        Command::Put(args) => data::put(app, args).await,
        Command::Del(args) => data::del(app, args).await,
        Command::Cas(args) => data::cas(app, args).await,
        Command::Ns(command) => ns::run(app, command).await,
        Command::Cluster(command) => cluster::run(app, command).await,
        Command::Ring(command) => cluster::ring(app, command).await,
        Command::Explain(args) => explain::run(app, args).await,
        Command::Lab(command) => lab::run(app, command).await,
        Command::Fault(command) => fault::run(app, command).await,
        Command::Bench(args) => bench::run(app, args).await,
        Command::Top(args) => top::run(app, args).await,
        Command::Check(args) => check::run(app, args).await,
        Command::Ctx(command) => ctx::run(app, command).await,
        Command::Ls => ns::run(app, &Ns::List).await,
        Command::Help { topic } => help::run(app, topic),
        Command::Completion { shell } => help::completion(app, *shell),
        Command::Man { folder } => help::man(app, folder),
        Command::Shell => shell::run(app).await,
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            if app.out.is_json() {
                app.out.json(&serde_json::json!({ "version": version }))?;
            } else {
                app.out.line(format!("kvctl {version}"))?;
            }
            Ok(Exit::Done)
        }
    }
}
