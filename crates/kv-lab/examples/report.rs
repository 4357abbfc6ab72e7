//! Draws the report of a run again, from the `report.json` in its folder: after a change of the page, or to read an old run
//! with today's. `strip.svg`, beside it, is the CAP strip alone; the picture of the README is that of a demo.

use std::path::PathBuf;
use std::process::ExitCode;

use kv_lab::report;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: cargo run -p kv-lab --example report -- FOLDER");
        return ExitCode::from(254);
    };
    match report::read(&folder).and_then(|run| report::write(&run, &folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
