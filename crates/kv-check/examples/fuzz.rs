//! The checkers against brute force: `cargo run --release -p kv-check --example fuzz -- --histories 2000000
//! --seed 1`.
//!
//! Prints how many histories of each kind were linearizable and how many were not. The first disagreement
//! ends it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::disallowed_methods, reason = "measures")]

#[path = "../tests/random/mod.rs"]
mod random;

use random::{KINDS, differential};
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let (mut histories, mut seed) = (2_000_000u64, 1u64);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let number = args.next().and_then(|number| number.replace('_', "").parse().ok());
        match (name.as_str(), number) {
            ("--histories", Some(number)) => histories = number,
            ("--seed", Some(number)) => seed = number,
            _ => {
                eprintln!("usage: fuzz [--histories N] [--seed N]");
                return ExitCode::from(254);
            }
        }
    }
    let first = seed.wrapping_mul(1 << 40);
    let begun = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let results: Vec<Result<Vec<[u64; 2]>, String>> = std::thread::scope(|scope| {
        let part = |thread: u64| {
            let mut counts = vec![[0; 2]; KINDS.len()];
            for number in (thread..histories).step_by(threads as usize) {
                let (kind, linearizable) = differential(first.wrapping_add(number))?;
                counts[kind][usize::from(linearizable)] += 1;
            }
            Ok(counts)
        };
        let workers: Vec<_> = (0..threads).map(|thread| scope.spawn(move || part(thread))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let mut total = vec![[0; 2]; KINDS.len()];
    for result in results {
        match result {
            Ok(counts) => {
                for (total, counts) in total.iter_mut().flatten().zip(counts.iter().flatten()) {
                    *total += counts;
                }
            }
            Err(disagreement) => {
                println!("MISMATCH {disagreement}");
                return ExitCode::FAILURE;
            }
        }
    }
    for (name, [not, linearizable]) in KINDS.iter().zip(&total) {
        println!("{name:<36} {linearizable:>9} linearizable {not:>9} not");
    }
    let sum: u64 = total.iter().flatten().sum();
    println!("{sum} histories, seed {seed}, no mismatch, {:.1} s", begun.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}
