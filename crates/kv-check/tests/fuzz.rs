//! The checkers against brute force on tens of thousands of small random histories, properties that every
//! verdict must obey, and histories of the size a run produces. Seeds are fixed: a failure is reproduced by
//! running again.
//!
//! `cargo run --release -p kv-check --example fuzz -- --histories 2000000 --seed 1` does the same for as many
//! as wanted.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs, reason = "a test")]

mod random;

use fastrand::Rng;
use kv_check::linear::{Options, Verdict, check};
use kv_check::operation::Expected;
use kv_check::{Function, Json, Operation};
use random::{KINDS, arbitrary, correct, differential};

fn valid(operations: &[Operation]) -> bool {
    match check(operations, &Options::default()) {
        Verdict::Valid => true,
        Verdict::Invalid(_) => false,
        verdict => panic!("{verdict:?}"),
    }
}

/// Seeds of histories on which the checker was wrong once.
const FOUND: [u64; 1] = [
    // An unknown mutation that had to come before a mismatch, which told a revision and no value.
    7_696_583_263_032,
];

#[test]
fn agrees_with_brute_force() {
    let mut counts = [[0u32; 2]; KINDS.len()];
    for seed in (0..40_000).chain(FOUND) {
        match differential(seed) {
            Ok((kind, linearizable)) => counts[kind][usize::from(linearizable)] += 1,
            Err(disagreement) => panic!("{disagreement}"),
        }
    }
    for (name, counts) in KINDS.iter().zip(counts) {
        assert!(counts.iter().all(|count| *count > 80), "one-sided: {name}: {counts:?}");
    }
}

#[test]
fn what_a_correct_store_shows_is_accepted_and_stays_so() {
    for seed in 0..300 {
        let mut rng = Rng::with_seed(seed);
        let operations = correct(&mut rng, 60, 5, 0.1, 0.3);
        assert!(valid(&operations), "seed {seed}");

        let mut wider = operations.clone();
        for op in &mut wider {
            op.call = op.call.saturating_sub(rng.u64(0..40));
            op.ret = op.ret.map(|ret| ret + rng.u64(0..40));
        }
        assert!(valid(&wider), "seed {seed}: a wider interval allows more");

        let mut fewer = operations.clone();
        fewer.retain(|op| op.f.mutates() || rng.bool());
        assert!(valid(&fewer), "seed {seed}: a read less allows more");

        let mut renamed = operations.clone();
        let rename = |value: &mut Json| {
            if !value.is_null() {
                *value = Json::from(format!("<{value}>"));
            }
        };
        for op in &mut renamed {
            op.process += 1000;
            rename(&mut op.input);
            rename(&mut op.output);
            if let Some(Expected::Value(value)) = &mut op.expected {
                rename(value);
            }
        }
        assert!(valid(&renamed), "seed {seed}: names do not matter");
        rng.shuffle(&mut renamed);
        assert!(valid(&renamed), "seed {seed}: nor does the order of the list");
    }
}

#[test]
fn renaming_widening_and_order_never_turn_a_verdict_the_wrong_way() {
    for seed in 0..4_000 {
        let mut rng = Rng::with_seed(seed);
        let mut operations = arbitrary(&mut rng, false);
        let before = valid(&operations);
        rng.shuffle(&mut operations);
        for op in &mut operations {
            (op.call, op.ret) = (op.call * 10 + 5, op.ret.map(|ret| ret * 10 + 5));
        }
        assert_eq!(valid(&operations), before, "seed {seed}: neither order nor scale matters");
        for op in &mut operations {
            op.call -= rng.u64(0..6);
        }
        assert!(!before || valid(&operations), "seed {seed}: a wider interval allows more");
    }
}

#[test]
fn damage_to_a_correct_history_is_noticed() {
    let mut noticed = [0; 3];
    for seed in 0..100 {
        let mut rng = Rng::with_seed(seed);
        // One process: there is one order, so every damage below is a violation.
        let operations = correct(&mut rng, 60, 1, 0.0, 0.0);
        let shown = |value: &Json| operations.iter().any(|op| op.f == Function::Read && op.output == *value);
        let reads: Vec<usize> =
            (0..operations.len()).filter(|at| operations[*at].f == Function::Read).collect();
        let (first, last) = (reads[0], reads[reads.len() - 1]);
        if operations[first].output != operations[last].output {
            let mut swapped = operations.clone();
            swapped[first].output = operations[last].output.clone();
            swapped[last].output = operations[first].output.clone();
            assert!(!valid(&swapped), "seed {seed}: swapped reads");
            noticed[0] += 1;
            let mut stale = operations.clone();
            stale[last].output = operations[first].output.clone();
            assert!(!valid(&stale), "seed {seed}: a stale read");
            noticed[1] += 1;
        }
        if let Some(at) = operations.iter().position(|op| op.f == Function::Write && shown(&op.input)) {
            let mut dropped = operations.clone();
            dropped.remove(at);
            assert!(!valid(&dropped), "seed {seed}: a write that was never made");
            noticed[2] += 1;
        }
    }
    assert!(noticed.iter().all(|count| *count > 50), "{noticed:?}");
}

#[test]
fn a_read_that_is_wrong_at_the_end_of_a_long_history_is_rejected_without_going_back_to_its_beginning() {
    let mut operations = correct(&mut Rng::with_seed(1), 20_000, 10, 0.0, 0.0);
    let read = operations.iter().rposition(|op| op.f == Function::Read).unwrap();
    let write = operations.iter().position(|op| op.f == Function::Write).unwrap();
    // As many configurations as the valid history takes, and few more.
    let limited = |max_configurations| Options { max_configurations, ..Options::default() };
    let enough = (1..).map(|n| n * 10_000).find(|n| check(&operations, &limited(*n)) == Verdict::Valid);
    let frugal = limited(enough.unwrap() + 20_000);
    for wrong in ["never written".into(), operations[write].input.clone()] {
        operations[read].output = wrong;
        let Verdict::Invalid(witness) = check(&operations, &frugal) else { panic!("undecided, or accepted") };
        assert!(witness.linearization.len() > 15_000, "{}", witness.linearization.len());
        let patient = Options { patience: usize::MAX, ..frugal };
        assert!(matches!(check(&operations, &patient), Verdict::Unknown { .. }));
    }
}

#[test]
fn a_thousand_operations_of_ten_processes_are_decided() {
    for seed in 0..4 {
        let mut rng = Rng::with_seed(seed);
        assert!(valid(&correct(&mut rng, 1000, 10, 0.05, 0.0)), "seed {seed}: no revisions");
        let mut operations = correct(&mut rng, 1000, 10, 0.05, 1.0);
        assert!(valid(&operations), "seed {seed}");
        let read = operations.iter().rposition(|op| op.f == Function::Read).unwrap();
        operations[read].output = "never written".into();
        let Verdict::Invalid(witness) = check(&operations, &Options::default()) else {
            panic!("seed {seed}")
        };
        assert!(witness.linearization.len() > 500, "seed {seed}: the explanation goes as far as it can");
    }
}
