//! Puts the known-bad histories into the program, so that a run can show that its alarms ring wherever it is
//! run.
#![allow(clippy::expect_used, reason = "a build that cannot read its own folder has to stop")]

use std::fmt::Write as _;
use std::path::Path;

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    let folder = Path::new(&root).join("known-bad");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .expect("the known-bad histories are there")
        .map(|entry| entry.expect("the folder can be read").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".jsonl"))
        .collect();
    names.sort();
    let mut code = String::from("&[\n");
    for name in names {
        let path = folder.join(&name);
        let stem = name.trim_end_matches(".jsonl");
        writeln!(code, "    ({stem:?}, include_str!({:?})),", path.display().to_string())
            .expect("a string takes everything");
    }
    code.push_str("]\n");
    std::fs::write(Path::new(&out).join("known_bad.rs"), code).expect("the build's folder can be written");
}
