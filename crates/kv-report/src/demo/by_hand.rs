//! The demo as a person would type it, on a lab of their own: lines that run as they stand.

use std::path::PathBuf;

/// What the demo does, one line after the other.
pub const STEPS: [&str; 10] = [
    "lab up --name by-hand --fresh",
    "ns create bank --mode strong",
    "ns create cart --mode available",
    "put -n bank alice 100",
    "put -n cart user:1 apple",
    "fault partition n1,n2 / n3,n4,n5",
    "cluster status --as-seen-by all",
    "fault heal",
    "get -n cart user:1",
    "lab down --name by-hand",
];

/// How this program is called from here: its name is not on the PATH of everyone.
pub(crate) fn program() -> String {
    let near = || {
        let own = std::env::current_exe().ok()?;
        let here = std::env::current_dir().ok()?;
        Some(own.strip_prefix(here).map_or(own.clone(), |below| PathBuf::from(".").join(below)))
    };
    // The harness draws such pages too.
    let named = near().filter(|path| path.file_name().is_some_and(|name| name == "kvctl"));
    named.map_or("kvctl".into(), |path| path.display().to_string())
}

/// The lines, each whole.
pub(crate) fn lines(program: &str) -> Vec<String> {
    STEPS.iter().map(|step| format!("{program} {step}")).collect()
}
