//! How long the checkers take, for a history and for an operation of it:
//! `cargo bench -p kv-check --bench check [-- FOLDER OF THE PUBLIC VECTORS]`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::disallowed_methods, reason = "measures")]

#[path = "../tests/random/mod.rs"]
mod random;

use fastrand::Rng;
use kv_check::linear::{Model, Options, Verdict, check};
use kv_check::receipts::Shape;
use kv_check::{Operation, format, operation, receipts};
use std::time::{Duration, Instant};

/// Of several runs the shortest: what the machine does beside is not measured.
fn best<R>(runs: usize, mut work: impl FnMut() -> R) -> (Duration, R) {
    let mut run = || {
        let begun = Instant::now();
        let result = work();
        (begun.elapsed(), result)
    };
    let mut best = run();
    for _ in 1..runs {
        let next = run();
        if next.0 < best.0 {
            best = next;
        }
    }
    best
}

/// As it is printed: milliseconds a history, nanoseconds an operation.
fn cells(took: Duration, operations: usize) -> String {
    let seconds = took.as_secs_f64();
    format!("{:>10.2} ms {:>10.0} ns", seconds * 1e3, seconds * 1e9 / operations as f64)
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Valid => "valid",
        Verdict::Invalid(_) => "invalid",
        Verdict::Unknown { .. } => "unknown",
    }
}

fn main() {
    strings();
    registers();
    let operations = random::with_receipts(&mut Rng::with_seed(2), 100_000, 10);
    let (took, account) = best(3, || receipts::check(&operations, Shape::Value));
    println!(
        "{}  {} operations by receipts: {} contradictions",
        cells(took, operations.len()),
        operations.len(),
        account.contradictions
    );
    // cargo adds an argument of its own.
    if let Some(folder) = std::env::args().skip(1).find(|argument| !argument.starts_with("--")) {
        etcd_logs(&folder);
    }
}

/// Strings that 50 clients read, write and append to, with one stale read: decided with all lost texts as one
/// state, and in the same run without, which is how it was done before.
fn strings() {
    for seed in 0..6 {
        let mut operations = random::strings(&mut Rng::with_seed(seed), 2_000, 50, 10);
        for stale in [false, true] {
            if stale {
                let made = (0..10).any(|key| random::make_stale(&mut operations, &key.to_string()));
                assert!(made, "seed {seed}");
            }
            let mut line = String::new();
            for one_lost_text in [true, false] {
                let options = Options {
                    model: Model::Strings,
                    one_lost_text,
                    max_configurations: 300_000,
                    ..Options::default()
                };
                let (took, verdict) = best(1, || check(&operations, &options));
                line += &format!("{} {:<8}", cells(took, operations.len()), word(&verdict));
            }
            println!(
                "{line} strings, 50 clients, 2000 operations, seed {seed}, stale: {stale}; second: every text a state"
            );
        }
    }
}

fn registers() {
    for (count, processes, lost, told) in [
        (100_000, 10, 0.0, 0.0),
        (100_000, 10, 0.0, 1.0),
        (1_000, 10, 0.05, 0.0),
        (1_000, 10, 0.05, 1.0),
        (5_000, 10, 0.02, 0.0),
    ] {
        let mut operations = random::correct(&mut Rng::with_seed(1), count, processes, lost, told);
        let (took, verdict) = best(3, || check(&operations, &Options::default()));
        let kind =
            format!("{count} operations, {processes} processes, {lost} unknown, {told} with revisions");
        println!("{}  {kind}: {}", cells(took, count), word(&verdict));
        let read = operations.iter().rposition(|op| op.f == kv_check::Function::Read).unwrap();
        let first = operations.iter().position(|op| op.f == kv_check::Function::Write && op.ok()).unwrap();
        let long_gone = operations[first].input.clone();
        for (what, output) in [("never written", "never written".into()), ("long gone", long_gone)] {
            (operations[read].output, operations[read].revision) = (output, None);
            let (took, verdict) = best(3, || check(&operations, &Options::default()));
            println!("{}  {kind}, one read {what}: {}", cells(took, count), word(&verdict));
        }
    }
}

fn etcd_logs(folder: &str) {
    let mut logs: Vec<_> = std::fs::read_dir(std::path::Path::new(folder).join("jepsen"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    logs.sort();
    let logs: Vec<Vec<Operation>> = logs
        .iter()
        .map(|path| operation::pair(&format::read(&std::fs::read(path).unwrap(), None).unwrap()).unwrap())
        .collect();
    let (took, verdicts) =
        best(5, || logs.iter().map(|log| check(log, &Options::default())).collect::<Vec<_>>());
    let valid = verdicts.iter().filter(|verdict| **verdict == Verdict::Valid).count();
    let operations = logs.iter().map(Vec::len).sum();
    println!("{}  {} etcd logs: {valid} valid", cells(took, operations), logs.len());
}
