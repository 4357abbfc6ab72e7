//! Draws the report of a run again, from the `report.json` in its folder: after a change of the page, or to
//! read an old run with today's. `strip.svg`, beside it, is the CAP strip alone; the picture of the README is
//! that of a demo.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: cargo run -p kv-report --example report -- FOLDER");
        return ExitCode::from(254);
    };
    match kv_report::read(&folder).and_then(|run| kv_report::write(&run, &folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
