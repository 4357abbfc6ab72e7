//! The checker against brute force on tens of thousands of small random histories, properties that every verdict
//! must obey, and histories of the size a run produces. Seeds are fixed: a failure is reproduced by running again.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs, reason = "a test")]

use fastrand::Rng;
use kv_check::linear::{Options, Verdict, check};
use kv_check::operation::{Expected, MISMATCH};
use kv_check::{Function, Json, Operation, Outcome};

fn operation(f: Function, outcome: Outcome, call: u64, ret: u64) -> Operation {
    Operation {
        index: 0,
        process: 0,
        f,
        ns: String::new(),
        key: String::new(),
        node: String::new(),
        call,
        ret: Some(ret),
        outcome,
        input: Json::Null,
        output: Json::Null,
        expected: None,
        revision: None,
        observed: None,
        err: None,
    }
}

/// Any history at all: most are not linearizable.
fn arbitrary(rng: &mut Rng, revisions: bool) -> Vec<Operation> {
    let values = rng.i64(2..5);
    let pick = |rng: &mut Rng| Json::from(rng.i64(1..values));
    let pick_or_absent =
        |rng: &mut Rng| if rng.u8(0..4) == 0 { Json::Null } else { Json::from(rng.i64(1..values)) };
    (0..rng.usize(1..8))
        .map(|_| {
            let call = rng.u64(0..12);
            let f = [Function::Read, Function::Write, Function::Write, Function::Cas, Function::Delete];
            let f = f[rng.usize(0..f.len())].clone();
            let outcome = match rng.u8(0..10) {
                0 | 1 if f.mutates() => Outcome::Info,
                2 | 3 if f == Function::Cas => Outcome::Fail,
                _ => Outcome::Ok,
            };
            let mut op = operation(f.clone(), outcome, call, call + rng.u64(0..6));
            match f {
                Function::Read => op.output = pick_or_absent(rng),
                Function::Write => op.input = pick(rng),
                Function::Cas => {
                    op.input = pick(rng);
                    op.expected = Some(if revisions && rng.bool() {
                        Expected::Revision(rng.u64(0..4))
                    } else {
                        Expected::Value(pick_or_absent(rng))
                    });
                }
                _ => {}
            }
            if outcome == Outcome::Fail {
                op.err = Some(MISMATCH.into());
                op.observed = rng
                    .bool()
                    .then(|| Some(pick_or_absent(rng)).filter(|v| !v.is_null()).into_iter().collect());
            }
            if revisions && outcome != Outcome::Info && rng.bool() {
                op.revision = Some(rng.u64(1..6));
            }
            op
        })
        .collect()
}

/// A register that remembers, beside its value, what is known of its revision: exactly it, or only what it exceeds.
#[derive(Clone, Debug, PartialEq)]
struct Register {
    value: Json,
    exactly: Option<u64>,
    above: u64,
}

impl Register {
    fn knows(&self, revision: u64) -> bool {
        self.exactly.map_or(revision > self.above, |exactly| exactly == revision)
    }

    fn learn(&mut self, revision: u64) -> bool {
        let possible = self.knows(revision);
        (self.exactly, self.above) = (Some(revision), revision);
        possible
    }

    /// Acts; false if the recorded answer is impossible.
    fn act(&mut self, op: &Operation) -> bool {
        let present = !self.value.is_null();
        match (&op.f, op.outcome) {
            (Function::Read, _) => {
                self.value == op.output && op.revision.filter(|_| present).is_none_or(|seen| self.learn(seen))
            }
            (Function::Cas, Outcome::Fail) => {
                let found = op.observed.as_ref().map(|found| found.first().cloned().unwrap_or(Json::Null));
                if found.is_some_and(|found| found != self.value) {
                    return false;
                }
                if let Some(seen) = op.revision.filter(|_| present)
                    && !self.learn(seen)
                {
                    return false;
                }
                match op.expected.as_ref().unwrap() {
                    Expected::Value(value) => self.value != *value,
                    Expected::Revision(0) => present,
                    Expected::Revision(revision) => !present || self.exactly != Some(*revision),
                }
            }
            _ => {
                let holds = match &op.expected {
                    None => true,
                    Some(Expected::Value(value)) => self.value == *value,
                    Some(Expected::Revision(0)) => !present,
                    Some(Expected::Revision(revision)) => present && self.learn(*revision),
                };
                self.value = op.input.clone();
                let grows = op.revision.is_none_or(|got| got > self.above);
                self.exactly = op.revision;
                self.above = self.above.max(op.revision.unwrap_or(0));
                holds && grows
            }
        }
    }
}

/// Every order of every subset that holds all completed operations, by the definition.
fn brute_force(left: &mut Vec<&Operation>, register: &Register) -> bool {
    if left.iter().all(|op| op.outcome == Outcome::Info) {
        return true;
    }
    for at in 0..left.len() {
        let op = left[at];
        // Nothing that returned before this call may come after it.
        if left.iter().any(|other| other.outcome != Outcome::Info && other.ret.unwrap() < op.call) {
            continue;
        }
        let mut after = register.clone();
        if after.act(op) {
            left.remove(at);
            let found = brute_force(left, &after);
            left.insert(at, op);
            if found {
                return true;
            }
        }
    }
    false
}

fn valid(operations: &[Operation]) -> bool {
    match check(operations, &Options::default()) {
        Verdict::Valid => true,
        Verdict::Invalid(_) => false,
        verdict => panic!("{verdict:?}"),
    }
}

#[test]
fn agrees_with_brute_force() {
    let mut agreed = [0; 2];
    for seed in 0..60_000 {
        let mut rng = Rng::with_seed(seed);
        let operations = arbitrary(&mut rng, seed % 2 == 0);
        let start = Register { value: Json::Null, exactly: Some(0), above: 0 };
        let expected = brute_force(&mut operations.iter().collect(), &start);
        assert_eq!(valid(&operations), expected, "seed {seed}: {operations:#?}");
        agreed[usize::from(expected)] += 1;
    }
    assert!(agreed.iter().all(|count| *count > 5_000), "one-sided: {agreed:?}");
}

/// What a correct store shows: each operation acts at a random moment of its interval. Of the answers to mutations
/// this part is lost, and of all answers this part tells the revision.
fn correct(rng: &mut Rng, operations: usize, processes: usize, lost: f64, told: f64) -> Vec<Operation> {
    let mut free_at = vec![0u64; processes];
    let mut planned: Vec<(u64, Operation)> = (0..operations)
        .map(|n| {
            let process = (0..processes).min_by_key(|process| free_at[*process]).unwrap();
            let call = free_at[process] + rng.u64(1..30);
            let ret = call + rng.u64(2..200);
            free_at[process] = ret;
            let f = [Function::Read, Function::Read, Function::Write, Function::Cas, Function::Delete];
            let weighted = [0, 0, 1, 1, 2, 2, 3, 3, 3, 4][rng.usize(0..10)];
            let mut op = operation(f[weighted].clone(), Outcome::Ok, call, ret);
            op.index = n as u64;
            op.input = Json::from(n + 1);
            (rng.u64(call..=ret), op)
        })
        .collect();
    planned.sort_by_key(|(moment, op)| (*moment, op.index));
    let (mut value, mut revision) = (Json::Null, 0);
    for (_, op) in &mut planned {
        match op.f {
            Function::Read => op.output = value.clone(),
            Function::Cas => {
                let matches = rng.u8(0..4) != 0;
                op.expected = Some(Expected::Value(if matches { value.clone() } else { Json::from("no") }));
                if matches {
                    value = op.input.clone();
                } else {
                    op.outcome = Outcome::Fail;
                    op.err = Some(MISMATCH.into());
                }
            }
            Function::Delete => (op.input, value) = (Json::Null, Json::Null),
            _ => value = op.input.clone(),
        }
        if op.f.mutates() && op.ok() {
            revision += 1;
            if rng.f64() < lost {
                op.outcome = Outcome::Info;
                continue;
            }
        }
        op.revision = (rng.f64() < told).then_some(revision);
    }
    let mut operations: Vec<Operation> = planned.into_iter().map(|(_, op)| op).collect();
    operations.sort_by_key(|op| op.index);
    operations
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
