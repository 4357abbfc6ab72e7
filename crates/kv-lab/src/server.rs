//! Where the server programs are. Tools never link server crates: they find `kvd` and start it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::LabError;

/// The variable that names the server where it is not beside its tools.
pub const KVD_BIN: &str = "KVD_BIN";
/// The variable that names the server with faults where it is not beside its tools.
pub const KVD_FAULTY_BIN: &str = "KVD_FAULTY_BIN";

/// Which server a lab runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// The server as it is shipped.
    #[default]
    Kvd,
    /// The same server on a disk that forgets what was not synced and a clock that can be moved, with a
    /// control socket.
    Faulty,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Kvd => "kvd",
            Self::Faulty => "kvd-faulty",
        }
    }

    fn variable(self) -> &'static str {
        match self {
            Self::Kvd => KVD_BIN,
            Self::Faulty => KVD_FAULTY_BIN,
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Kvd => "kv-server",
            Self::Faulty => "kv-sim",
        }
    }
}

/// The file that was asked for; else the one beside this executable (or above it, for tests, which cargo puts
/// into `deps/`); else the one that its variable names.
pub fn find(program: Program, wanted: Option<&Path>) -> Result<PathBuf, LabError> {
    let executable = std::env::current_exe().map_err(LabError::system("cannot find this executable"))?;
    let beside = executable.parent().unwrap_or(Path::new(".")).to_path_buf();
    let name = format!("{}{}", program.name(), std::env::consts::EXE_SUFFIX);
    let above = beside.ends_with("deps").then(|| beside.parent().map(|above| above.join(&name))).flatten();
    let candidates = match wanted {
        Some(wanted) => vec![wanted.to_path_buf()],
        None => [Some(beside.join(&name)), above, std::env::var_os(program.variable()).map(PathBuf::from)]
            .into_iter()
            .flatten()
            .collect(),
    };
    candidates.into_iter().find(|candidate| candidate.is_file()).ok_or(LabError::NoServer {
        program: program.name(),
        variable: program.variable(),
        package: program.package(),
        beside,
    })
}
