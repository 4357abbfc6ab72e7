//! How long the checkers take: `cargo run --release -p kv-check --example bench [FOLDER OF THE PUBLIC VECTORS]`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::disallowed_methods, reason = "measures")]

#[path = "../tests/random/mod.rs"]
mod random;

use fastrand::Rng;
use kv_check::linear::{Options, Verdict, check};
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

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Valid => "valid",
        Verdict::Invalid(_) => "invalid",
        Verdict::Unknown { .. } => "unknown",
    }
}

fn main() {
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
        println!("{:>10.2} ms  {kind}: {}", took.as_secs_f64() * 1e3, word(&verdict));
        let read = operations.iter().rposition(|op| op.f == kv_check::Function::Read).unwrap();
        let first = operations.iter().position(|op| op.f == kv_check::Function::Write && op.ok()).unwrap();
        let long_gone = operations[first].input.clone();
        for (what, output) in [("never written", "never written".into()), ("long gone", long_gone)] {
            (operations[read].output, operations[read].revision) = (output, None);
            let (took, verdict) = best(3, || check(&operations, &Options::default()));
            println!("{:>10.2} ms  {kind}, one read {what}: {}", took.as_secs_f64() * 1e3, word(&verdict));
        }
    }
    let operations = random::with_receipts(&mut Rng::with_seed(2), 100_000, 10);
    let (took, account) = best(3, || receipts::check(&operations, Shape::Value));
    println!(
        "{:>10.2} ms  100000 operations by receipts: {} contradictions",
        took.as_secs_f64() * 1e3,
        account.contradictions
    );
    let Some(folder) = std::env::args().nth(1) else { return };
    let mut logs: Vec<_> = std::fs::read_dir(std::path::Path::new(&folder).join("jepsen"))
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
    println!("{:>10.2} ms  {} etcd logs: {valid} valid", took.as_secs_f64() * 1e3, logs.len());
}
