//! Local clusters of real processes whose network can be cut, workloads against them, and the demo that shows what each
//! mode does in a network partition.
//!
//! - [`cluster`]: the processes and their files. Faults live outside the server: `kvd` knows only an address map.
//! - [`matrix`]: what a fault of the network is; [`plane`]: where it is made and what proves it. `link` and `fabric`: a proxy
//!   on every directed peer link; [`netns`]: a packet filter between namespaces.
//! - [`process`]: pauses, kills, damaged files, and their proof.
//! - [`control`]: a lab in the background and its socket.
//! - [`workload`]: open-loop clients and the history they leave.
//! - [`demo`]: the storyline, its verdict, its receipt and its report.
//! - [`report`]: what a run showed, as one page.
//! - [`durability`]: kill, and look whether anything acknowledged is gone.
//!
//! Nothing here links a server crate: `kvd` is found and started.

pub mod cluster;
pub mod control;
pub mod demo;
pub mod durability;
mod error;
mod fabric;
mod link;
pub mod matrix;
pub mod netns;
pub mod plane;
mod ports;
mod probe;
pub mod process;
pub mod report;
pub mod server;
pub mod workload;

pub use cluster::{Lab, LabOptions, Led};
pub use control::default_dir;
pub use error::LabError;
pub use matrix::{Direction, Fault, Faults, Flow, NodeName, Side, parse_groups};
pub use netns::Counters;
pub use plane::{Installed, Plane};
pub use process::Proof;
pub use server::Program;

/// Resolves when this process is asked to end: SIGINT, SIGTERM or SIGHUP.
pub async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
}
