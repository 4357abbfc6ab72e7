//! kvd: a node as a value. It takes a configuration and an environment, opens storage, joins its peers, runs
//! both modes and serves clients; what it takes from the world comes through the environment, so that a
//! simulation runs the same node.

mod admission;
mod config;
mod connections;
mod directory;
mod gate;
mod health;
mod incoming;
mod inspect;
mod latencies;
mod limits;
mod membership;
mod mode;
mod near;
mod node;
mod notices;
mod pieces;
pub mod program;
mod reflection;
mod requests;
mod router;
mod serve;
mod services;
mod session_stream;
mod stopping;

pub use config::{
    DynamoSettings, LimitSettings, NodeConfig, Overrides, PeerSettings, RaftSettings, StorageSettings, load,
};
pub use node::{Node, NodeEnv, TiersInstead};

/// Version of the server.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why a node did not start, or ended without being asked. All but the last two name what the operator has to
/// change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The configuration does not hold together.
    #[error("CONFIG_INVALID: {0}")]
    ConfigInvalid(String),
    /// The data directory belongs to another node or cluster, or another process has it open.
    #[error("FOREIGN_DATA_DIR: {0}")]
    ForeignDataDir(String),
    /// Another process listens on an address of this node.
    #[error("PORT_BUSY: {0}")]
    PortBusy(String),
    /// The log is damaged in a place that was durable; nothing was changed.
    #[error("LOG_CORRUPT: {0}")]
    LogCorrupt(String),
    /// Storage or a mode did not start.
    #[error("START_FAILED: {0}")]
    Failed(String),
    /// It ran, and cannot go on.
    #[error("NODE_FAILED: {0}")]
    Stopped(String),
}

impl StartError {
    /// The exit code of `kvd`: 2 for what the operator has to change, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ConfigInvalid(_) | Self::ForeignDataDir(_) | Self::PortBusy(_) | Self::LogCorrupt(_) => 2,
            Self::Failed(_) | Self::Stopped(_) => 1,
        }
    }
}
