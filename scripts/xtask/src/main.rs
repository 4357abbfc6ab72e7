//! The task runner behind `cargo xtask`: the demo, the gate, and the command that mends what can be mended.
//!
//! There is one gate, and it only reads; everything the project demands of a change is behind `cargo xtask
//! test`.

mod cargo;
mod gate;
mod mutants;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask demo [-- ARGS]   builds, then cuts a real cluster in two and prints a receipt (`-- --help` for ARGS)
cargo xtask test             the whole gate, read-only: format, tidy, lints, tests, demo, simulation, scenarios
cargo xtask test --quick     the gate up to the tests
cargo xtask mutants          builds with the seeded bugs, and says where the programs are
cargo xtask tidy             the rules of the workspace that no compiler checks
cargo xtask fix              formats, applies what clippy can apply, and shortens tidy's lists of exceptions";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let Some(compiled) = mutants::compiler(&args) {
        return compiled.unwrap_or_else(|error| {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        });
    }
    let done = match args.as_slice() {
        ["demo", "--", rest @ ..] | ["demo", rest @ ..] => gate::demo(rest),
        ["test"] => gate::test(true),
        ["test", "--quick"] => gate::test(false),
        ["mutants"] => mutants::build(),
        ["tidy"] => gate::tidy(),
        ["fix"] => gate::fix(),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error}");
        ExitCode::FAILURE
    })
}
