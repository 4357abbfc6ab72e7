//! Where the server program is. Tools never link server crates: they find `kvd` and start it.

use std::path::{Path, PathBuf};

use crate::LabError;

/// The variable that names the program where it is not beside its tools.
pub const KVD_BIN: &str = "KVD_BIN";

/// The program that was asked for; else the one beside this executable (or above it, for tests, which cargo puts into
/// `deps/`); else the one that `KVD_BIN` names.
pub fn find(wanted: Option<&Path>) -> Result<PathBuf, LabError> {
    let executable = std::env::current_exe().map_err(LabError::system("cannot find this executable"))?;
    let beside = executable.parent().unwrap_or(Path::new(".")).to_path_buf();
    let name = format!("kvd{}", std::env::consts::EXE_SUFFIX);
    let above = beside.ends_with("deps").then(|| beside.parent().map(|above| above.join(&name))).flatten();
    let candidates = match wanted {
        Some(wanted) => vec![wanted.to_path_buf()],
        None => [Some(beside.join(&name)), above, std::env::var_os(KVD_BIN).map(PathBuf::from)]
            .into_iter()
            .flatten()
            .collect(),
    };
    candidates.into_iter().find(|candidate| candidate.is_file()).ok_or(LabError::NoServer { beside })
}
