//! The program around a node: command line, logging, ready file, signals. What the node takes from the world
//! is handed in, so that another program can be the same one in another world.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use kv_types::NodeId;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::connections::raise_descriptor_limit;
use crate::limits::{LAST_WORDS, STOP_WHOLE};
use crate::stopping;
use crate::{Node, NodeEnv, Overrides, StartError, VERSION, load};

/// The flags of a node.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The cluster file, the same for every node.
    #[arg(long, env = "KVD_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Which of its nodes this is, such as n1.
    #[arg(long, env = "KVD_NODE")]
    node: NodeId,
    /// Where this node keeps its data, instead of the file's data_dir.
    #[arg(long, env = "KVD_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A TOML file whose [dial] table maps advertised peer addresses to the addresses to dial.
    #[arg(long, env = "KVD_ADDRESS_MAP", value_name = "FILE")]
    address_map: Option<PathBuf>,
    /// Written as JSON once the node listens.
    #[arg(long, env = "KVD_READY_FILE", value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Stop when standard input closes, so that the node ends with the process that started it.
    #[arg(long, env = "KVD_UNTIL_STDIN_CLOSES")]
    until_stdin_closes: bool,
    /// How to log, to standard error.
    #[arg(long, env = "KVD_LOG_FORMAT", value_enum, default_value = "text")]
    log: LogFormat,
    /// Threads that serve. One is measured to be best while cores are few; storage has its own.
    #[arg(long, env = "KVD_WORKER_THREADS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    worker_threads: u16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Runs a node until it is asked to stop or cannot go on, and says which as an exit code; `name` is the
/// program's, for what it prints.
pub fn run(name: &'static str, arguments: &Arguments, node_env: NodeEnv) -> ExitCode {
    abort_on_panic(name);
    match node(name, arguments, node_env) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{name}: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn node(name: &'static str, arguments: &Arguments, node_env: NodeEnv) -> Result<(), StartError> {
    start_logging(arguments.log)?;
    raise_descriptor_limit();
    let overrides =
        Overrides { data_dir: arguments.data_dir.clone(), address_map: arguments.address_map.clone() };
    let config = load(&arguments.config, arguments.node, &overrides)?;
    let mut builder = match arguments.worker_threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads.into());
            builder
        }
    };
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| StartError::Failed(format!("starting the runtime: {error}")))?;
    let result = runtime.block_on(async {
        let node = Node::start(config, node_env).await?;
        // Before anyone is told that there is a node to stop.
        let asked = asked_to_stop(arguments.until_stdin_closes, name)
            .map_err(|error| StartError::Failed(format!("waiting for signals: {error}")))?;
        if let Some(path) = &arguments.ready_file {
            write_ready_file(path, arguments.node, &node).map_err(|error| {
                StartError::ConfigInvalid(format!("cannot write the ready file {}: {error}", path.display()))
            })?;
        }
        let why = tokio::select! {
            biased;
            failure = node.stopped() => Some(failure),
            _ = asked => None,
        };
        if why.is_some() {
            end_after(STOP_WHOLE, name);
        }
        if let Some(path) = &arguments.ready_file {
            // It says that the node serves. One that cannot be removed is replaced by the next start.
            let _ = std::fs::remove_file(path);
        }
        if why.is_none() {
            stopping::begin();
        }
        node.shutdown().await;
        match why {
            Some(failure) => Err(StartError::Stopped(format!(
                "{failure}. The node has stopped. What it acknowledged is safe: check the disk, then start the node again"
            ))),
            None => Ok(()),
        }
    });
    runtime.shutdown_background();
    result
}

/// A stop always ends: after this time the process ends by itself, whatever hangs. What was acknowledged is
/// on disk.
fn end_after(time: Duration, name: &'static str) {
    // A thread and not a task: what hangs may be the thread that runs the tasks.
    std::thread::spawn(move || {
        std::thread::sleep(time);
        say_at_the_end(format!(
            "{name}: NODE_FAILED: the node did not stop within {} s, and the process ends without waiting any longer. \
             What was acknowledged is safe",
            time.as_secs()
        ));
        std::process::exit(1);
    });
}

/// Writes to standard error, if somebody reads it: a full pipe must not hold up the end of the process.
fn say_at_the_end(words: String) {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let _ = writeln!(std::io::stderr(), "{words}");
        let _ = tell.send(());
    });
    let _ = told.recv_timeout(LAST_WORDS);
}

/// A defect must not leave half a node behind: the process ends at once, and what was acknowledged is on
/// disk.
fn abort_on_panic(name: &'static str) {
    std::panic::set_hook(Box::new(move |info| {
        say_at_the_end(format!(
            "{name} {VERSION}: {info}\nThis is a defect. What was acknowledged is on disk and the node can be started again. \
             Please report the lines above with the version.\n{}",
            std::backtrace::Backtrace::capture()
        ));
        std::process::abort();
    }));
}

fn start_logging(format: LogFormat) -> Result<(), StartError> {
    let level = match std::env::var("KVD_LOG").as_deref() {
        Ok("error") => LevelFilter::ERROR,
        Ok("warn") => LevelFilter::WARN,
        Ok("info") | Err(_) => LevelFilter::INFO,
        Ok("debug") => LevelFilter::DEBUG,
        Ok(other) => {
            let message = format!("KVD_LOG is `{other}`; it is one of error, warn, info, debug");
            return Err(StartError::ConfigInvalid(message));
        }
    };
    // Our own crates speak at that level, libraries only of what is wrong. openraft warns of every
    // unreachable peer, which kv-peer says once.
    let others = level.min(LevelFilter::WARN);
    let filter = Targets::new()
        .with_default(others)
        .with_target("kv", level)
        .with_target("openraft", LevelFilter::ERROR.min(level))
        // A line for every connection that a client cuts or floods.
        .with_target("h2", LevelFilter::ERROR.min(level));
    let registry = tracing_subscriber::registry().with(filter).with(stopping::Quiet);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            registry.with(lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))).init()
        }
        LogFormat::Json => registry.with(lines.json()).init(),
    }
    Ok(())
}

/// Written beside and renamed, so that a process that waits for it never reads half of it.
fn write_ready_file(path: &Path, id: NodeId, node: &Node) -> std::io::Result<()> {
    let text = serde_json::json!({
        "node": id.to_string(),
        "client_address": node.client_address(),
        "peer_address": node.peer_address(),
        "pid": std::process::id(),
    });
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    std::fs::write(&beside, format!("{text}\n"))?;
    std::fs::rename(&beside, path)
}

/// Resolves when the node is asked to stop, and ends the process if it does not. It waits on a thread of its
/// own: what hangs may be the thread that runs the tasks.
fn asked_to_stop(until_stdin_closes: bool, name: &'static str) -> std::io::Result<oneshot::Receiver<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (tell, asked) = oneshot::channel();
    // From here on they are heard, however late the thread begins.
    let (interrupts, terminations) = {
        let _within = runtime.enter();
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    };
    std::thread::Builder::new().name("kv-signals".into()).spawn(move || {
        runtime.block_on(async {
            let interrupted = signalled(interrupts);
            let terminated = signalled(terminations);
            tokio::select! {
                biased;
                () = interrupted => {}
                () = terminated => {}
                () = stdin_closed(), if until_stdin_closes => {}
            }
        });
        end_after(STOP_WHOLE, name);
        let _ = tell.send(());
        // A thread that still reads standard input must not hold up the exit.
        runtime.shutdown_background();
    })?;
    Ok(asked)
}

async fn signalled(signals: std::io::Result<Signal>) {
    match signals {
        Ok(mut signals) => {
            signals.recv().await;
        }
        // Without a handler the signal ends the process by itself.
        Err(_) => std::future::pending().await,
    }
}

async fn stdin_closed() {
    let mut stdin = tokio::io::stdin();
    let mut ignored = [0; 256];
    while !matches!(stdin.read(&mut ignored).await, Ok(0) | Err(_)) {}
}
