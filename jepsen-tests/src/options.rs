//! How a scenario is run: its seed, where its files go, the server it starts, and the schedule of a run that
//! is replayed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::plan::{Roles, Schedule};

/// How to run a scenario.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// All choices of the harness come from it.
    pub seed: u64,
    /// Where everything is written.
    pub out: PathBuf,
    /// First port; 0 finds a free range.
    pub port_base: u16,
    /// The server program; otherwise it is looked for.
    pub server: Option<PathBuf>,
    /// Further arguments for the server, such as a mutant's name.
    pub server_arguments: Vec<String>,
    /// Keep the nodes' data.
    pub keep_data: bool,
    /// Say nothing on the way.
    pub quiet: bool,
    /// A schedule of an earlier run, with what was known then.
    pub replay: Option<(Schedule, BTreeMap<u64, Roles>)>,
}

impl RunOptions {
    /// With this seed into this folder.
    pub fn new(seed: u64, out: impl Into<PathBuf>) -> Self {
        Self {
            seed,
            out: out.into(),
            port_base: 0,
            server: None,
            server_arguments: Vec::new(),
            keep_data: false,
            quiet: false,
            replay: None,
        }
    }
}
