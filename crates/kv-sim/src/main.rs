//! `kv-sim`: runs seeds of the simulation, one process each.

fn main() -> std::process::ExitCode {
    kv_sim::cli::main()
}
