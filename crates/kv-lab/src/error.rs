//! What can go wrong in a lab, in words for the person who asked for it, with what to do next.

use std::path::PathBuf;

use kv_types::{NodeId, counted, noun};

use crate::ending::EndSignal;
use crate::plane::Plane;

/// Why a lab did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The server program is nowhere.
    #[error(
        "{program} was not found beside {beside} or through {variable}\n  try: cargo build -p {package}   (or set {variable})"
    )]
    NoServer {
        /// Which.
        program: &'static str,
        /// The variable that may name it.
        variable: &'static str,
        /// The crate that it is built from.
        package: &'static str,
        /// Where it was looked for.
        beside: PathBuf,
    },
    /// Somebody else listens where a node would.
    #[error("port {port} is busy{}; from {instead} on they are free (--port-base)", .holder.as_ref().map(|holder| format!(": {holder} listens there")).unwrap_or_default())]
    PortBusy {
        /// The port.
        port: u16,
        /// Who holds it, if that can be seen.
        holder: Option<String>,
        /// A port base that is free.
        instead: u16,
    },
    /// A lab runs in this folder already.
    #[error("a lab already runs in {dir} (process {pid})")]
    AlreadyRunning {
        /// The folder.
        dir: PathBuf,
        /// Its supervisor.
        pid: u32,
    },
    /// The folder has the data of a lab of another size.
    #[error(
        "the lab in {dir} has the data of {}, and {wanted} {} asked for",
        counted(*had, "node", "nodes"),
        noun(*wanted, "is", "are")
    )]
    OtherNodes {
        /// The folder.
        dir: PathBuf,
        /// Nodes that it has data of.
        had: u64,
        /// Nodes that are asked for.
        wanted: u64,
    },
    /// The cluster file of the lab in this folder cannot be read.
    #[error("the cluster file of the lab in {dir} is damaged or missing: its data cannot be used without it")]
    Damaged {
        /// The folder.
        dir: PathBuf,
    },
    /// No lab runs in this folder.
    #[error("no lab runs in {dir}")]
    NotRunning {
        /// The folder.
        dir: PathBuf,
    },
    /// The process that runs the lab is there and says nothing, as one that was stopped.
    #[error("the process that runs the lab in {dir}{} does not answer within {seconds} s{}", with_pid(*pid), goes_on(*pid))]
    Silent {
        /// The folder.
        dir: PathBuf,
        /// Its supervisor, if the system says which.
        pid: Option<i32>,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A node ended without being asked to.
    #[error("{node} ended ({status}); the end of {log}:\n{tail}")]
    NodeEnded {
        /// The node.
        node: NodeId,
        /// How.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// Something took too long.
    #[error("{what} took longer than {seconds} s{hint}")]
    TooSlow {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// Where to look.
        hint: String,
    },
    /// A node that this lab does not have.
    #[error("this lab has no {node}, only {}", names(*nodes))]
    UnknownNode {
        /// The node.
        node: NodeId,
        /// How many there are.
        nodes: u64,
    },
    /// A node that does not run was to stand still, or to go on.
    #[error("{node} does not run: it can neither stand still nor go on, and nothing was done")]
    NodeDown {
        /// The node.
        node: NodeId,
    },
    /// A fault that is made on another plane.
    #[error(
        "{what} cannot be made on the plane `{plane}`\n  delay, slow links and resets need proxies; loss and carriers need netns"
    )]
    WrongPlane {
        /// The fault.
        what: String,
        /// The plane of this lab.
        plane: Plane,
    },
    /// The plane of network namespaces cannot be had here.
    #[error("network namespaces are not available: {why}")]
    NoNetns {
        /// Why not.
        why: String,
    },
    /// A fault of a process did not show.
    #[error("{node}: {what}")]
    NotProven {
        /// The node.
        node: NodeId,
        /// What was to be seen.
        what: String,
    },
    /// A request that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A file, socket or process that the system refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The store refused or failed something the lab itself needed.
    #[error("{what}: {source}")]
    Store {
        /// What was tried.
        what: String,
        /// Why not.
        source: Box<kv_client::Error>,
    },
    /// The supervisor said no.
    #[error("{message}")]
    Refused {
        /// In its words.
        message: String,
        /// The exit code that goes with it.
        exit_code: u8,
    },
    /// Ctrl-C, or another signal by which it was asked to end: of a start, what had started was ended again.
    #[error("interrupted")]
    Interrupted(EndSignal),
}

fn with_pid(pid: Option<i32>) -> String {
    pid.map_or(String::new(), |pid| format!(" (process {pid})"))
}

/// What to type next: a stopped process goes on by it, and to any other one it does nothing.
fn goes_on(pid: Option<i32>) -> String {
    pid.map_or(String::new(), |pid| format!("\n  try: kill -CONT {pid}"))
}

/// The names of the nodes of a lab of so many.
fn names(nodes: u64) -> String {
    if nodes == 1 { "n1".into() } else { format!("n1 to n{nodes}") }
}

impl LabError {
    /// The exit code of a program that ends with this: 2 usage, 3 no lab, 128 and the number of the signal
    /// where it was asked to end, else 5.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoServer { .. }
            | Self::PortBusy { .. }
            | Self::AlreadyRunning { .. }
            | Self::OtherNodes { .. }
            | Self::Damaged { .. }
            | Self::UnknownNode { .. }
            | Self::WrongPlane { .. }
            | Self::NoNetns { .. }
            | Self::Usage(_) => 2,
            Self::NotRunning { .. } | Self::Silent { .. } => 3,
            Self::Interrupted(signal) => signal.exit_code(),
            Self::Refused { exit_code, .. } => *exit_code,
            Self::NotProven { .. }
            | Self::NodeDown { .. }
            | Self::NodeEnded { .. }
            | Self::TooSlow { .. }
            | Self::System { .. }
            | Self::Store { .. } => 5,
        }
    }

    /// For `map_err`: what was tried when the system refused.
    pub fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// For `map_err`: what was tried when the store refused.
    pub fn store(what: &'static str) -> impl Fn(kv_client::Error) -> Self {
        move |source| Self::Store { what: what.into(), source: Box::new(source) }
    }
}
