//! Local clusters of real processes whose network can be cut.
//!
//! - [`cluster`]: the processes and their files. Faults live outside the server: `kvd` knows only an address
//!   map.
//! - [`matrix`]: what a fault of the network is; [`plane`]: where it is made; [`installed`]: what proves it.
//!   `link` and `fabric`: a proxy on every directed peer link; [`netns`]: a packet filter between namespaces;
//!   `network` is one or the other.
//! - [`process`]: pauses, kills, damaged files, and their proof.
//! - [`control`]: a lab in the background and its socket.
//! - [`durability`]: kill, and look whether anything acknowledged is gone.
//!
//! Nothing here links a server crate: `kvd` is found and started.

pub mod cluster;
pub mod control;
pub mod durability;
mod ending;
mod error;
mod fabric;
mod folder;
pub mod installed;
mod link;
pub mod matrix;
pub mod netns;
mod network;
pub mod plane;
mod ports;
mod probe;
pub mod process;
pub mod server;

pub use cluster::{Lab, LabOptions, Led};
pub use control::{dir_of, runs};
pub use ending::{EndSignal, interrupted};
pub use error::LabError;
pub use folder::kept;
pub use installed::{Counters, Installed};
pub use matrix::{Direction, Fault, Faults, Flow, NodeName, Side, parse_groups};
pub use plane::Plane;
pub use process::Proof;
pub use server::Program;
