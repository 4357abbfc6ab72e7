//! The program `jepsen-tests`; everything is in the library.

fn main() -> std::process::ExitCode {
    jepsen_tests::cli::main()
}
