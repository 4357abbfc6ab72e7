//! Forged receipts are noticed, honest ones accepted, at any size.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs, reason = "a test")]

mod random;

use fastrand::Rng;
use kv_check::receipts::{Account, Kind, Shape, check};
use kv_check::{Function, Json, Operation, Outcome};
use random::with_receipts;

fn kinds(account: &Account) -> Vec<Kind> {
    account.findings.iter().map(|finding| finding.kind).collect()
}

fn forge(op: &mut Operation, member: &str, change: impl Fn(u64) -> u64) {
    let strong = &mut op.receipt.as_mut().unwrap()["strong"];
    strong[member] = Json::from(change(strong[member].as_u64().unwrap()));
}

/// Positions of operations of this function that took effect, not too near to the ends.
fn positions(operations: &[Operation], f: &Function) -> Vec<usize> {
    (20..operations.len() - 20).filter(|at| operations[*at].f == *f && operations[*at].ok()).collect()
}

#[test]
fn honest_receipts_are_accepted() {
    for seed in 0..20 {
        let mut operations = with_receipts(&mut Rng::with_seed(seed), 2_000, 10);
        let account = check(&operations, Shape::Value);
        assert_eq!(account.contradictions, 0, "seed {seed}: {:?}", account.findings.first());
        assert_eq!((account.examined, account.without), (2_000, 0));
        // Some answers are lost on the way.
        let mut rng = Rng::with_seed(seed);
        for op in &mut operations {
            if op.f.mutates() && op.ok() && rng.u8(0..20) == 0 {
                (op.outcome, op.revision, op.receipt) = (Outcome::Info, None, None);
            }
        }
        let account = check(&operations, Shape::Value);
        assert_eq!(account.contradictions, 0, "seed {seed}: {:?}", account.findings.first());
    }
}

#[test]
fn every_kind_of_forgery_is_noticed() {
    for seed in 0..20 {
        let mut rng = Rng::with_seed(seed);
        let honest = with_receipts(&mut rng, 300, 4);
        let (reads, writes) = (positions(&honest, &Function::Read), positions(&honest, &Function::Write));
        let (read, write) = (reads[rng.usize(0..reads.len())], writes[rng.usize(0..writes.len())]);
        let expect = |what: &str, wanted: Kind, forged: &[Operation]| {
            let found = kinds(&check(forged, Shape::Value));
            assert!(found.contains(&wanted), "seed {seed}: {what}: found {found:?}");
        };
        let with = |change: &dyn Fn(&mut Vec<Operation>)| {
            let mut forged = honest.clone();
            change(&mut forged);
            forged
        };
        let forged = with(&|ops| forge(&mut ops[read], "revision", |revision| revision.saturating_sub(40)));
        expect("a stale read that says so", Kind::RealTime, &forged);
        let forged = with(&|ops| {
            let op = *reads.last().unwrap();
            let other = |at: &&usize| !ops[**at].output.is_null() && ops[**at].output != ops[op].output;
            let old = ops[*reads.iter().find(other).unwrap()].clone();
            (ops[op].output, ops[op].revision) = (old.output, old.revision);
        });
        expect("a stale read that claims to be fresh", Kind::Read, &forged);
        let forged = with(&|ops| ops[read].output = Json::from("invented"));
        expect("another value at the right revision", Kind::Read, &forged);
        let forged = with(&|ops| {
            let other = ops[writes[0]].clone();
            let last = *writes.last().unwrap();
            (ops[last].revision, ops[last].receipt) = (other.revision, other.receipt);
        });
        expect("a write that claims the revision of another", Kind::Shared, &forged);
        let forged = with(&|ops| ops[write].revision = ops[write].revision.map(|revision| revision + 1000));
        expect("an answer that differs from its receipt", Kind::Malformed, &forged);
        let forged = with(&|ops| forge(&mut ops[write], "index", |index| index + 60));
        expect("a log index out of order", Kind::Order, &forged);
        let forged = with(&|ops| forge(&mut ops[write], "term", |_| 9));
        expect("a term that goes back afterwards", Kind::Order, &forged);
        let forged = with(&|ops| ops[write].receipt = Some(serde_json::json!({"strong": {"term": 1}})));
        expect("a receipt that names no point", Kind::Malformed, &forged);
        let mismatch = honest.iter().position(Operation::mismatch).unwrap();
        let forged = with(&|ops| {
            (ops[mismatch].outcome, ops[mismatch].err) = (Outcome::Ok, None);
            forge(&mut ops[mismatch], "revision", |revision| revision + 100_000);
            ops[mismatch].revision = ops[mismatch].revision.map(|revision| revision + 100_000);
        });
        expect("a cas that took effect although its condition did not hold", Kind::Condition, &forged);
    }
}
