//! Local clusters of real processes whose network can be cut, workloads against them, and the demo that shows what each
//! mode does in a network partition.
//!
//! - [`cluster`]: the processes and their files. Faults live outside the server: `kvd` knows only an address map.
//! - `link` and `fabric`: a proxy on every directed peer link; [`matrix`]: what a fault is.
//! - [`control`]: a lab in the background and its socket.
//! - [`workload`]: open-loop clients and the history they leave.
//! - [`demo`]: the storyline, its verdict, its receipt and its report.
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
mod ports;
mod probe;
pub mod server;
pub mod workload;

pub use cluster::{Lab, LabOptions};
pub use control::default_dir;
pub use error::LabError;
pub use fabric::Installed;
pub use matrix::{Direction, Fault, Faults, Flow, NodeName, parse_groups};

/// Resolves when this process is asked to end: SIGINT, SIGTERM or SIGHUP.
pub(crate) async fn interrupted() {
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
