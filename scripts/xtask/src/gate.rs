//! The gate: every step that a change must pass, in the order from quick to slow, ending at the first that
//! fails.

use crate::cargo::{Workspace, cargo, output};
use crate::tidy;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// What a step counted: itself, or for the tests each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Count {
    passed: u64,
    failed: u64,
}

impl Count {
    fn one(passed: bool) -> Count {
        Count { passed: u64::from(passed), failed: u64::from(!passed) }
    }

    fn and(self, other: Count) -> Count {
        Count { passed: self.passed + other.passed, failed: self.failed + other.failed }
    }
}

/// Seeds of the simulation that every change must pass.
const SEEDS: &str = "0..40";
/// Seeds that are run twice, and must leave the same trace byte for byte.
const REPEATED_SEEDS: &str = "0..2";

type Step<'a> = (&'static str, &'a dyn Fn() -> Result<Count, String>);

/// The whole gate. Prints a heading and the time of each step, then one line per step, and the sum as the
/// last line.
pub(crate) fn test(whole: bool) -> Result<ExitCode, String> {
    let workspace = Workspace::load()?;
    let format = || {
        component("fmt", "rustfmt")?;
        passes(&mut cargo(&["fmt", "--all", "--check"]), "the format differs: run `cargo xtask fix`")
    };
    let rules = || Ok(Count::one(tidy::run(&workspace)?));
    let lints = || {
        component("clippy", "clippy")?;
        let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
        passes(&mut cargo(&clippy), "clippy objects: `cargo xtask fix` mends what can be mended")
    };
    // Tests start the programs as processes, so these exist before any test does.
    let programs = || passes(&mut programs(), "the build failed");
    let tests = || count_tests(&mut cargo(&["test", "--workspace", "--no-fail-fast"]));
    let demo = || checked_demo(&workspace);
    let simulation = || {
        let seeds = ["sim", "--seeds", SEEDS, "--jobs", "2"];
        let repeated = ["sim", "--seeds", REPEATED_SEEDS, "--repeat"];
        Ok(passes(harness(&workspace).args(repeated), "a seed did not repeat, or was not valid")?
            .and(passes(harness(&workspace).args(seeds), "a seed was not valid")?))
    };
    let smoke = || passes(harness(&workspace).arg("smoke"), "the smoke matrix is not valid");
    let steps: [Step<'_>; 8] = [
        ("format", &format),
        ("tidy", &rules),
        ("lints", &lints),
        ("programs", &programs),
        ("tests", &tests),
        ("demo", &demo),
        ("sim", &simulation),
        ("smoke", &smoke),
    ];
    let steps = if whole { steps.as_slice() } else { &steps[..5] };
    Ok(if run(steps) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs steps up to the first failure and prints the summary; whether all passed.
fn run(steps: &[Step<'_>]) -> bool {
    let mut summary = Vec::new();
    let mut sum = Count::default();
    let mut failed = None;
    for (name, step) in steps {
        if failed.is_some() {
            summary.push(format!("  {name:<9} not run"));
            continue;
        }
        println!("== {name}");
        let (result, seconds) = timed(step);
        let count = result.unwrap_or_else(|error| {
            eprintln!("{error}");
            Count::one(false)
        });
        sum = sum.and(count);
        let verdict = if count.failed == 0 { "ok" } else { "FAILED" };
        println!("== {name}: {verdict} in {seconds:.1} s\n");
        summary.push(format!(
            "  {name:<9} {verdict:<6} {:>5} passed {:>5} failed {seconds:>8.1} s",
            count.passed, count.failed
        ));
        failed = failed.or((count.failed > 0).then_some(*name));
    }
    println!("{}", summary.join("\n"));
    if let Some(name) = failed {
        println!("failed at: {name}");
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    failed.is_none()
}

#[allow(clippy::disallowed_methods, reason = "a task runner measures real time, and is no node")]
fn timed<T>(action: impl Fn() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = action();
    (result, start.elapsed().as_secs_f64())
}

/// Makes sure that a component of the toolchain is there, or says how to get it.
fn component(subcommand: &str, name: &str) -> Result<(), String> {
    output(&mut cargo(&[subcommand, "--version"]))
        .map(drop)
        .map_err(|_| format!("{name} is missing: run `rustup component add {name}`"))
}

fn passes(command: &mut Command, otherwise: &str) -> Result<Count, String> {
    let status =
        command.status().map_err(|error| format!("cannot run {:?}: {error}", command.get_program()))?;
    if status.success() { Ok(Count::one(true)) } else { Err(otherwise.to_owned()) }
}

/// Runs tests, passes on what they print, and adds up their `test result:` lines. A run that fails without a
/// failed test (it did not compile, or crashed) counts as one failure.
fn count_tests(command: &mut Command) -> Result<Count, String> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().map_err(|error| format!("cannot run cargo: {error}"))?;
    let mut count = Count::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.map_err(|error| format!("cannot read what the tests print: {error}"))?;
            let line = String::from_utf8_lossy(&line);
            let result = test_result(&line).unwrap_or_default();
            count = count.and(result);
            writeln!(std::io::stdout(), "{line}").map_err(|error| format!("cannot print: {error}"))?;
        }
    }
    let status = child.wait().map_err(|error| format!("cannot wait for the tests: {error}"))?;
    if !status.success() && count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
}

/// The counts in a line such as `test result: ok. 24 passed; 0 failed; 0 ignored; ...`.
fn test_result(line: &str) -> Option<Count> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut numbers = counts.split("; ").filter_map(|part| part.split(' ').next()?.parse().ok());
    Some(Count { passed: numbers.next()?, failed: numbers.next()? })
}

/// Builds all programs: of the whole workspace, so that dependencies get the same features as in the tests.
fn programs() -> Command {
    cargo(&["build", "--workspace", "--bins"])
}

/// Builds the two programs that the demo runs, with cargo's progress, and gives the call that runs it. Their
/// dependencies have the features that they have in the tests (`features` in tidy), so nothing of this is
/// compiled again.
fn build_demo(workspace: &Workspace) -> Result<Command, String> {
    let mut build = cargo(&["build", "--package", "kv-server", "--package", "kvctl", "--bins"]);
    passes(&mut build, "the build failed")?;
    let mut command = Command::new(program(workspace, "kvctl"));
    command.args(["lab", "demo", "--out"]).arg(demo_output(workspace)).current_dir(&workspace.root);
    Ok(command)
}

/// The harness that the step "programs" built.
fn harness(workspace: &Workspace) -> Command {
    let mut command = Command::new(program(workspace, "jepsen-tests"));
    command.current_dir(&workspace.root);
    command
}

fn program(workspace: &Workspace, name: &str) -> PathBuf {
    workspace.target.join("debug").join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

fn demo_output(workspace: &Workspace) -> PathBuf {
    workspace.root.join("target").join("demo")
}

/// The demo, in our place: its signals and its exit code are its own.
pub(crate) fn demo(args: &[&str]) -> Result<ExitCode, String> {
    let mut command = build_demo(&Workspace::load()?)?;
    command.args(args);
    #[cfg(unix)]
    let error = std::os::unix::process::CommandExt::exec(&mut command);
    #[cfg(not(unix))]
    let error = match command.status() {
        Ok(status) => return Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))),
        Err(error) => error,
    };
    Err(format!("cannot run {}: {error}", command.get_program().to_string_lossy()))
}

/// The demo as a test: it must succeed, and leave a receipt of this run whose promises were kept.
fn checked_demo(workspace: &Workspace) -> Result<Count, String> {
    let mut command = build_demo(workspace)?;
    let receipt = demo_output(workspace).join("receipt.json");
    match std::fs::remove_file(&receipt) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("cannot remove {}, of an earlier run: {error}", receipt.display()));
        }
        _ => {}
    }
    let count = passes(&mut command, "the demo failed")?;
    read_receipt(&receipt).map_err(|error| format!("{}: {error}", receipt.display()))?;
    Ok(count)
}

fn read_receipt(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("the demo left no receipt: {error}"))?;
    let receipt = serde_json::from_str(&text).map_err(|error| format!("is no JSON: {error}"))?;
    check_receipt(&receipt)
}

/// What a number of a receipt must be.
#[derive(Clone, Copy, Debug)]
enum Must {
    Be(f64),
    BeAtLeast(f64),
    BeAtMost(f64),
    BeBelow(f64),
}

/// What every receipt must show, by the demo's names. The demo judges itself; this is the second opinion.
const PROMISES: [(&str, Must); 24] = [
    ("nodes", Must::Be(5.0)),
    ("partition_seconds", Must::BeAtLeast(10.0)),
    ("links_cut", Must::Be(12.0)),
    ("links_seen_cut", Must::Be(12.0)),
    ("shed", Must::Be(0.0)),
    ("strong/acknowledged", Must::BeAtLeast(1.0)),
    ("strong/lost", Must::Be(0.0)),
    ("strong/minority_asked", Must::BeAtLeast(50.0)),
    ("strong/majority_asked", Must::BeAtLeast(50.0)),
    ("strong/minority_success_ratio", Must::Be(0.0)),
    ("strong/majority_success_ratio", Must::BeAtLeast(0.7)),
    ("strong/stale_reads", Must::Be(0.0)),
    ("strong/false_absent", Must::Be(0.0)),
    ("strong/recovery_ms", Must::BeAtMost(2_000.0)),
    ("available/acknowledged", Must::BeAtLeast(400.0)),
    ("available/lost", Must::Be(0.0)),
    ("available/minority_success_ratio", Must::BeAtLeast(0.99)),
    ("available/majority_success_ratio", Must::BeAtLeast(0.99)),
    ("available/minority_acknowledged", Must::BeAtLeast(200.0)),
    ("available/majority_acknowledged", Must::BeAtLeast(200.0)),
    ("available/keys_with_siblings", Must::BeAtLeast(1.0)),
    ("available/convergence_ms", Must::BeBelow(5_000.0)),
    ("strong/unknown", Must::BeAtLeast(0.0)),
    ("available/unknown", Must::BeAtLeast(0.0)),
];
/// What every receipt must say yes to.
const YES: [&str; 2] = ["strong/linearizable", "available/replicas_agree"];

fn check_receipt(receipt: &Value) -> Result<(), String> {
    let field =
        |path: &str| receipt.pointer(&format!("/{path}")).ok_or_else(|| format!("it does not state {path}"));
    for (path, must) in PROMISES {
        let value = field(path)?;
        let kept = value.as_f64().is_some_and(|number| match must {
            Must::Be(wanted) => number == wanted,
            Must::BeAtLeast(least) => number >= least,
            Must::BeAtMost(most) => number <= most,
            Must::BeBelow(bound) => number < bound,
        });
        if !kept {
            return Err(format!("{path} is {value}, and must {must}"));
        }
    }
    for path in YES {
        let value = field(path)?;
        if *value != Value::Bool(true) {
            return Err(format!("{path} is {value}, and must be true"));
        }
    }
    Ok(())
}

impl std::fmt::Display for Must {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Must::Be(wanted) => write!(f, "be {wanted}"),
            Must::BeAtLeast(least) => write!(f, "be at least {least}"),
            Must::BeAtMost(most) => write!(f, "be at most {most}"),
            Must::BeBelow(bound) => write!(f, "be below {bound}"),
        }
    }
}

/// The rules of the workspace alone.
pub(crate) fn tidy() -> Result<ExitCode, String> {
    let clean = tidy::run(&Workspace::load()?)?;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The one command that writes: formats, and applies what clippy can apply.
pub(crate) fn fix() -> Result<ExitCode, String> {
    component("clippy", "clippy")?;
    component("fmt", "rustfmt")?;
    let clippy = ["clippy", "--fix", "--workspace", "--all-targets", "--allow-dirty", "--allow-staged"];
    passes(&mut cargo(&clippy), "clippy could not mend everything")?;
    passes(&mut cargo(&["fmt", "--all"]), "rustfmt failed")?;
    tidy::shrink(&Workspace::load()?)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::cell::Cell;

    #[test]
    fn the_lines_of_the_test_harness_are_counted() {
        let count = |line| test_result(line).map(|count| (count.passed, count.failed));
        let line =
            "test result: ok. 24 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(count(line), Some((24, 0)));
        assert_eq!(count("test result: FAILED. 13 passed; 2 failed; 0 ignored"), Some((13, 2)));
        assert_eq!(count("test result::tests::works ... ok"), None);
    }

    #[test]
    fn the_gate_ends_at_the_first_failure() {
        let ran = Cell::new(0);
        let step = |result: Result<Count, String>| {
            ran.set(ran.get() + 1);
            result
        };
        let good = || step(Ok(Count { passed: 7, failed: 0 }));
        let bad = || step(Err("reason".into()));
        assert!(run(&[("one", &good), ("two", &good)]));
        assert!(!run(&[("one", &good), ("two", &bad), ("three", &good)]));
        assert_eq!(ran.get(), 4);
    }

    /// As the demo writes it.
    fn receipt() -> Value {
        json!({
            "nodes": 5, "seed": 42, "partition_seconds": 11.003, "links_cut": 12, "links_seen_cut": 12, "shed": 0,
            "strong": {
                "acknowledged": 319, "lost": 0, "unknown": 18, "unknown_applied": 0,
                "minority_asked": 264, "majority_asked": 396,
                "minority_success_ratio": 0.0, "majority_success_ratio": 0.924,
                "longest_gap_ms": 11003, "majority_longest_gap_ms": 913, "stale_reads": 0, "false_absent": 0,
                "linearizable": true, "recovery_ms": 913, "served_again_ms": 255
            },
            "available": {
                "acknowledged": 911, "lost": 0, "unknown": 0, "unknown_applied": 0,
                "minority_success_ratio": 1.0, "majority_success_ratio": 1.0,
                "minority_acknowledged": 272, "majority_acknowledged": 434,
                "longest_gap_ms": 302, "stale_reads": 385, "false_absent": 0, "no_knowledge": 0,
                "keys_with_siblings": 12, "convergence_ms": 433, "replicas_agree": true
            }
        })
    }

    #[test]
    fn each_number_of_a_receipt_is_judged() {
        assert_eq!(check_receipt(&receipt()), Ok(()));
        let bad = [
            ("nodes", json!(4)),
            ("partition_seconds", json!(9.99)),
            ("links_cut", json!(11)),
            ("links_seen_cut", json!(11)),
            ("shed", json!(1)),
            ("strong/acknowledged", json!(0)),
            ("strong/lost", json!(1)),
            ("strong/minority_asked", json!(49)),
            ("strong/majority_asked", json!(49)),
            ("strong/minority_success_ratio", json!(0.001)),
            ("strong/majority_success_ratio", json!(0.69)),
            ("strong/stale_reads", json!(1)),
            ("strong/false_absent", json!(1)),
            ("strong/recovery_ms", json!(2_001)),
            ("strong/recovery_ms", Value::Null),
            ("strong/linearizable", json!("unknown")),
            ("strong/linearizable", json!(false)),
            ("strong/unknown", Value::Null),
            ("available/acknowledged", json!(399)),
            ("available/lost", json!(1)),
            ("available/unknown", Value::Null),
            ("available/minority_success_ratio", json!(0.989)),
            ("available/majority_success_ratio", json!(0.989)),
            ("available/minority_acknowledged", json!(199)),
            ("available/majority_acknowledged", json!(199)),
            ("available/keys_with_siblings", json!(0)),
            ("available/convergence_ms", json!(5_000)),
            ("available/convergence_ms", Value::Null),
            ("available/replicas_agree", json!(false)),
        ];
        let judged: Vec<&str> = bad.iter().map(|(path, _)| *path).collect();
        for (path, value) in bad {
            let mut receipt = receipt();
            *receipt.pointer_mut(&format!("/{path}")).expect(path) = value;
            let error = check_receipt(&receipt).expect_err(path);
            assert!(error.starts_with(&format!("{path} is ")), "{error}");
        }
        for path in PROMISES.iter().map(|(path, _)| *path).chain(YES) {
            assert!(judged.contains(&path), "{path} has no failing example");
            let mut receipt = receipt();
            let (parent, name) = path.rsplit_once('/').map_or(("", path), |(parent, name)| (parent, name));
            let parent = if parent.is_empty() { String::new() } else { format!("/{parent}") };
            let fields = receipt.pointer_mut(&parent).and_then(Value::as_object_mut).expect(path);
            fields.remove(name);
            assert_eq!(check_receipt(&receipt), Err(format!("it does not state {path}")));
        }
        assert!(check_receipt(&json!({})).is_err());
    }
}
