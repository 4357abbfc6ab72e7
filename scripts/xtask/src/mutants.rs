//! The build with the seeded bugs. We are our own wrapper of the compiler: cargo calls it for members of the
//! workspace only and gives what it makes other names, so that every dependency is shared with the ordinary
//! build. Programs do get the same names, so these are copied away and the ordinary ones put back.

use crate::cargo::{Workspace, cargo};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Set for a process of ours that stands before the compiler.
const WRAPPER: &str = "QUORATE_RUSTC_WRAPPER";
/// What the seeded bugs are compiled under.
const CFG: &str = "quorate_mutants";
/// Programs that have the bugs, or choose them.
const PROGRAMS: [&str; 4] = ["kvd", "kvd-faulty", "kv-sim", "jepsen-tests"];
/// Tests that catch bugs which no run of a few seconds does: package and name, that of its library for the
/// tests within. Copied as `package-name`.
const TESTS: [(&str, &str); 10] = [
    ("kv-client", "session_streams"),
    ("kv-dynamo", "cluster"),
    ("kv-dynamo", "kv_dynamo"),
    ("kv-raft", "cluster"),
    ("kv-server", "session_streams"),
    ("kv-storage", "conformance"),
    ("kv-storage", "copies"),
    ("kv-storage", "journals"),
    ("kv-storage", "reads"),
    ("kv-raft", "kv_raft"),
];

/// As a wrapper: calls the compiler with the cfg. None if this process is not one.
pub(crate) fn compiler(args: &[&str]) -> Option<Result<ExitCode, String>> {
    std::env::var_os(WRAPPER)?;
    let (compiler, args) = args.split_first()?;
    let mut command = Command::new(compiler);
    command.args(args).args(["--cfg", CFG]);
    Some(match command.status() {
        Ok(status) if status.success() => Ok(ExitCode::SUCCESS),
        Ok(_) => Ok(ExitCode::FAILURE),
        Err(error) => Err(format!("cannot run {compiler}: {error}")),
    })
}

/// Builds everything with the bugs and says where it is.
pub(crate) fn build() -> Result<ExitCode, String> {
    let workspace = Workspace::load()?;
    let folder = build_into(&workspace)?;
    println!("{}", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// The folder of the programs that have the bugs.
pub(crate) fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join("mutants")
}

pub(crate) fn build_into(workspace: &Workspace) -> Result<PathBuf, String> {
    let folder = folder(workspace);
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    // Not ourselves: cargo would replace the file that it calls as the wrapper.
    let mut programs = vec!["build", "--workspace"];
    programs.extend(PROGRAMS.iter().flat_map(|name| ["--bin", name]));
    run(&mut wrapped(&programs)?, "the build with seeded bugs failed")?;
    for name in PROGRAMS {
        let name = format!("{name}{}", std::env::consts::EXE_SUFFIX);
        copy(&workspace.target.join("debug").join(&name), &folder.join(&name))?;
    }
    let messages = test_programs()?;
    for (package, name) in TESTS {
        let from = executable(&messages, package, name)
            .ok_or_else(|| format!("cargo does not say where the test {name} of {package} is"))?;
        copy(&from, &folder.join(format!("{package}-{name}{}", std::env::consts::EXE_SUFFIX)))?;
    }
    run(&mut cargo(&programs), "the ordinary programs could not be put back")?;
    Ok(folder)
}

/// A call of cargo in which this program stands before the compiler.
fn wrapped(args: &[&str]) -> Result<Command, String> {
    let me = std::env::current_exe().map_err(|error| format!("cannot find this executable: {error}"))?;
    let mut command = cargo(args);
    command.env("RUSTC_WORKSPACE_WRAPPER", me).env(WRAPPER, "1");
    Ok(command)
}

fn run(command: &mut Command, otherwise: &str) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("cannot run cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err(otherwise.to_owned()) }
}

/// Builds the tests with the bugs; what cargo says of them.
fn test_programs() -> Result<String, String> {
    // Of the whole workspace, whose members agree on the features of what they share: a test asked for by its
    // package would have half the tree compiled again. Left out is this one, which has no such test.
    let mut words = vec!["test", "--no-run", "--message-format", "json", "--workspace", "--lib"];
    words.extend(["--exclude", "xtask"]);
    let files = TESTS.iter().filter(|(package, name)| package.replace('-', "_") != *name);
    words.extend(files.flat_map(|(_, name)| ["--test", name]));
    let mut command = wrapped(&words)?;
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|error| format!("cannot run cargo: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err("the tests do not build with seeded bugs".to_owned())
    }
}

/// The executable of a package's target in cargo's messages. A package's folder has its name.
fn executable(messages: &str, package: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message.pointer("/target/name").and_then(serde_json::Value::as_str) == Some(name))
        .filter(|message| {
            let manifest = message.get("manifest_path").and_then(serde_json::Value::as_str).map(Path::new);
            manifest.and_then(|file| file.parent()?.file_name()).is_some_and(|folder| folder == package)
        })
        .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    // Removed first: what is there may be running, or be another name of the file that cargo writes next.
    let _ = std::fs::remove_file(to);
    std::fs::copy(from, to).map(drop).map_err(|error| format!("{}: {error}", from.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_messages() {
        let messages = concat!(
            r#"{"target":{"name":"kv_storage"},"manifest_path":"/w/kv-storage/Cargo.toml","executable":null}"#,
            "\n not json \n",
            r#"{"target":{"name":"same"},"manifest_path":"/w/other/Cargo.toml","executable":"/t/same-1"}"#,
            "\n",
            r#"{"target":{"name":"same"},"manifest_path":"/w/kv-storage/Cargo.toml","executable":"/t/same-2"}"#,
            "\n",
            r#"{"target":{"name":"kv_storage"},"manifest_path":"/w/kv-storage/Cargo.toml","executable":"/t/kv_storage-3"}"#
        );
        let found = |package, name| executable(messages, package, name);
        assert_eq!(found("kv-storage", "same"), Some(PathBuf::from("/t/same-2")));
        assert_eq!(
            found("kv-storage", "kv_storage"),
            Some(PathBuf::from("/t/kv_storage-3")),
            "the tests, not the library"
        );
        assert_eq!(found("kv-storage", "other"), None);
    }
}
