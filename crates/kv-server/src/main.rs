//! `kvd`, the server of one node. The node is `kv_server::Node`, the program around it `kv_server::program`.

use std::process::ExitCode;

use clap::Parser;
use kv_server::NodeEnv;
use kv_server::program::{self, Arguments};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One node of a Quorate cluster.
///
/// Examples:
///   kvd --config five-node.toml --node n1
///   kvd --config five-node.toml --node n1 --data-dir /var/lib/kvd --log json
///
/// Every flag can be given in the environment (KVD_CONFIG, KVD_NODE, ...); KVD_LOG sets the log level (error,
/// warn, info, debug). Exit codes: 0 stopped as asked; 1 failed; 2 something to change first (CONFIG_INVALID,
/// FOREIGN_DATA_DIR, PORT_BUSY, LOG_CORRUPT).
#[derive(Debug, Parser)]
#[command(name = "kvd", version, verbatim_doc_comment)]
struct Kvd {
    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> ExitCode {
    let Kvd { arguments } = Kvd::parse();
    program::run("kvd", &arguments, NodeEnv::real())
}
