//! Random histories and the definition of linearizability, for every test and example that needs them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    reason = "a test; not all need all"
)]

use fastrand::Rng;
use kv_check::linear::{Convention, Model, Options, Verdict, check, shrink};
use kv_check::operation::{Expected, MISMATCH};
use kv_check::receipts::Shape;
use kv_check::{Function, Json, Operation, Outcome, counters, lists, receipts, sets};
use serde_json::json;
use std::collections::BTreeSet;

pub(crate) fn operation(f: Function, outcome: Outcome, call: u64, ret: u64) -> Operation {
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
        covers_unseen: false,
        err: None,
        receipt: None,
    }
}

/// Any history at all: most are not linearizable.
pub(crate) fn arbitrary(rng: &mut Rng, revisions: bool) -> Vec<Operation> {
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

/// A register that remembers, beside its value, what is known of its revision: exactly it, or only what it
/// exceeds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Register {
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

/// Anything that acts by its definition.
#[derive(Clone, Debug)]
pub(crate) enum Machine {
    Register(Register),
    Text(String),
    List(Vec<Json>),
    Set(BTreeSet<String>),
    Counter(i64),
}

impl Machine {
    pub(crate) fn register() -> Machine {
        Machine::Register(Register { value: Json::Null, exactly: Some(0), above: 0 })
    }

    /// What a read would show.
    fn shows(&self) -> Json {
        match self {
            Machine::Register(register) => register.value.clone(),
            Machine::Text(text) => text.as_str().into(),
            Machine::List(list) => Json::Array(list.clone()),
            Machine::Set(set) => set.iter().map(|name| serde_json::from_str::<Json>(name).unwrap()).collect(),
            Machine::Counter(sum) => (*sum).into(),
        }
    }

    /// Acts; false if the recorded answer is impossible.
    fn act(&mut self, op: &Operation) -> bool {
        if let Machine::Register(register) = self {
            return register.act(op);
        }
        if op.f == Function::Read {
            let Machine::Set(set) = self else { return self.shows() == op.output };
            let shown: BTreeSet<String> = op.values_read().iter().map(Json::to_string).collect();
            return shown == *set && op.values_read().len() == set.len();
        }
        match (self, &op.f) {
            (Machine::Text(text), Function::Append) => text.push_str(op.input.as_str().unwrap()),
            (Machine::Text(text), _) => *text = op.input.as_str().unwrap().into(),
            (Machine::List(list), _) => list.push(op.input.clone()),
            (Machine::Set(set), _) => {
                set.insert(op.input.to_string());
            }
            (Machine::Counter(sum), _) => *sum += op.input.as_i64().unwrap(),
            (Machine::Register(_), _) => unreachable!(),
        }
        true
    }
}

/// Every order of every subset that holds all completed operations, by the definition.
pub(crate) fn brute_force(operations: &[Operation], machine: &Machine) -> bool {
    let placed = |op: &&Operation| op.outcome != Outcome::Fail || op.mismatch();
    place(&mut operations.iter().filter(placed).collect(), machine)
}

fn place(left: &mut Vec<&Operation>, machine: &Machine) -> bool {
    if left.iter().all(|op| op.outcome == Outcome::Info) {
        return true;
    }
    for at in 0..left.len() {
        let op = left[at];
        // Nothing that returned before this call may come after it.
        if left.iter().any(|other| other.outcome != Outcome::Info && other.ret.unwrap() < op.call) {
            continue;
        }
        let mut after = machine.clone();
        if after.act(op) {
            left.remove(at);
            let found = place(left, &after);
            left.insert(at, op);
            if found {
                return true;
            }
        }
    }
    false
}

/// A history that the machine could have shown; then, half of the time, one answer of it is changed.
pub(crate) fn plausible(rng: &mut Rng, machine: &Machine) -> Vec<Operation> {
    let mut operations = honest(rng, machine);
    damage(rng, &mut operations);
    operations
}

/// A history that the machine could have shown, with receipts that name the points.
pub(crate) fn honest(rng: &mut Rng, machine: &Machine) -> Vec<Operation> {
    let mut operations: Vec<Operation> = (0..rng.usize(1..8))
        .map(|n| {
            let read = rng.bool();
            let f = match machine {
                _ if read => Function::Read,
                Machine::Text(_) if rng.u8(0..4) == 0 => Function::Write,
                Machine::Text(_) | Machine::List(_) => Function::Append,
                Machine::Set(_) | Machine::Counter(_) => Function::Add,
                Machine::Register(_) => Function::Write,
            };
            let outcome = match rng.u8(0..10) {
                0 | 1 if !read => Outcome::Info,
                2 if !read => Outcome::Fail,
                _ => Outcome::Ok,
            };
            let call = rng.u64(0..12);
            let mut op = operation(f, outcome, call, call + rng.u64(0..6));
            op.index = n as u64;
            if !read {
                op.input = match machine {
                    Machine::Text(_) => Json::from(["a", "b", "ab", ""][rng.usize(0..4)]),
                    Machine::Counter(_) => Json::from([1, 2, -1][rng.usize(0..3)]),
                    _ => Json::from(n),
                };
            }
            op
        })
        .collect();
    let mut moments: Vec<(u64, usize)> = Vec::new();
    for (at, op) in operations.iter().enumerate() {
        match op.outcome {
            Outcome::Ok => moments.push((rng.u64(op.call..=op.ret.unwrap()), at)),
            Outcome::Info if rng.bool() => moments.push((op.call + rng.u64(0..9), at)),
            _ => {}
        }
    }
    rng.shuffle(&mut moments);
    moments.sort_by_key(|(moment, _)| *moment);
    let mut now = machine.clone();
    let mut revision = 0;
    for (_, at) in moments {
        if operations[at].f == Function::Read {
            operations[at].output = now.shows();
        } else {
            now.act(&operations[at]);
            revision += 1;
        }
        if operations[at].ok() {
            let point = json!({"term": 1, "index": revision, "revision": revision});
            operations[at].receipt = Some(json!({"strong": point}));
        }
    }
    operations
}

/// Changes one answer, most of the time.
fn damage(rng: &mut Rng, operations: &mut [Operation]) {
    let reads: Vec<usize> = (0..operations.len()).filter(|at| operations[*at].f == Function::Read).collect();
    if let Some(&at) = reads.get(rng.usize(0..reads.len() + 1)).filter(|_| rng.u8(0..4) != 0) {
        let other = operations[reads[rng.usize(0..reads.len())]].output.clone();
        let any = Json::from(rng.usize(0..operations.len()));
        let spot = rng.usize(0..4);
        match &mut operations[at].output {
            Json::Array(list) => match rng.u8(0..4) {
                0 if !list.is_empty() => {
                    list.remove(spot % list.len());
                }
                1 => list.insert(spot.min(list.len()), any),
                2 if list.len() > 1 => {
                    let last = list.len() - 1;
                    list.swap(spot % last, last);
                }
                _ => operations[at].output = other,
            },
            Json::String(text) if rng.bool() => {
                text.pop();
            }
            Json::Number(number) if rng.bool() => {
                let changed = number.as_i64().unwrap() + rng.i64(-2..3);
                operations[at].output = changed.into();
            }
            output => *output = other,
        }
    }
}

/// As [`plausible`]; fails if the honest receipts are refused before anything is changed.
fn with_honest_receipts(
    seed: u64,
    rng: &mut Rng,
    machine: &Machine,
    shape: Shape,
) -> Result<Vec<Operation>, String> {
    let mut operations = honest(rng, machine);
    if receipts::check(&operations, shape).contradictions > 0 {
        return Err(format!("seed {seed}: honest receipts are refused: {operations:#?}"));
    }
    damage(rng, &mut operations);
    Ok(operations)
}

/// What a correct store shows: each operation acts at a random moment of its interval. Of the answers to
/// mutations this part is lost, and of all answers this part tells the revision.
pub(crate) fn correct(
    rng: &mut Rng,
    operations: usize,
    processes: usize,
    lost: f64,
    told: f64,
) -> Vec<Operation> {
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

/// What clients of a string that is read, written and appended to see of a correct store: each works on one
/// of the keys at a time, one operation after the other, each of which acts at a random moment of its
/// interval.
pub(crate) fn strings(rng: &mut Rng, operations: usize, clients: usize, keys: usize) -> Vec<Operation> {
    let mut free_at = vec![0u64; clients];
    let mut planned: Vec<(u64, Operation)> = (0..operations)
        .map(|n| {
            let client = (0..clients).min_by_key(|client| free_at[*client]).unwrap();
            let call = free_at[client] + rng.u64(1..30);
            let ret = call + rng.u64(2..200);
            free_at[client] = ret;
            let f = [Function::Read, Function::Append, Function::Append, Function::Write][rng.usize(0..4)]
                .clone();
            let mut op = operation(f, Outcome::Ok, call, ret);
            (op.index, op.process, op.key) = (n as u64, client as u64, rng.usize(0..keys).to_string());
            op.input = if op.f == Function::Read { Json::Null } else { format!("x {client} {n} y").into() };
            (rng.u64(call..=ret), op)
        })
        .collect();
    planned.sort_by_key(|(moment, op)| (*moment, op.index));
    let mut values = vec![String::new(); keys];
    for (_, op) in &mut planned {
        let value = &mut values[op.key.parse::<usize>().unwrap()];
        match op.f {
            Function::Read => op.output = value.clone().into(),
            Function::Append => value.push_str(op.input.as_str().unwrap()),
            _ => *value = op.input.as_str().unwrap().to_owned(),
        }
    }
    let mut operations: Vec<Operation> = planned.into_iter().map(|(_, op)| op).collect();
    operations.sort_by_key(|op| op.index);
    operations
}

/// Makes the last read of a key late in the history stale: it shows the value of the read before it although
/// something was changed in between.
pub(crate) fn make_stale(operations: &mut [Operation], key: &str) -> bool {
    let reads: Vec<usize> = (0..operations.len())
        .filter(|at| operations[*at].f == Function::Read && operations[*at].key == key)
        .collect();
    for pair in reads.windows(2).rev() {
        let (before, after) = (operations[pair[0]].clone(), operations[pair[1]].clone());
        let changed = before.output != after.output && before.ret < Some(after.call);
        let between = operations.iter().any(|op| {
            op.key == key && op.f.mutates() && before.ret < Some(op.call) && op.ret < Some(after.call)
        });
        if changed && between {
            operations[pair[1]].output = before.output;
            return true;
        }
    }
    false
}

/// A correct history whose answers all carry receipts, over several keys of one namespace.
pub(crate) fn with_receipts(rng: &mut Rng, operations: usize, processes: usize) -> Vec<Operation> {
    let mut operations = correct(rng, operations, processes, 0.0, 1.0);
    for op in &mut operations {
        let revision = op.revision.unwrap_or(0);
        let point = json!({"term": 1, "index": revision * 2, "revision": revision});
        op.receipt = Some(json!({"delivered": "linearizable", "strong": point}));
    }
    operations
}

/// The kinds of histories that [`differential`] makes.
pub(crate) const KINDS: [&str; 10] = [
    "register",
    "register, other values",
    "register with revisions",
    "register, failed operations removed",
    "register, plausible",
    "strings",
    "lists",
    "sets",
    "counters",
    "receipts",
];

fn model(model: Model) -> Options {
    Options { model, ..Options::default() }
}

fn valid(operations: &[Operation], options: &Options) -> bool {
    match check(operations, options) {
        Verdict::Valid => true,
        Verdict::Invalid(_) => false,
        verdict => panic!("{verdict:?}"),
    }
}

/// One random history of the kind that the seed names, against brute force, and what follows from its verdict
/// for its relatives. Returns the kind and whether it is linearizable; an error says what disagreed.
pub(crate) fn differential(seed: u64) -> Result<(usize, bool), String> {
    let mut rng = Rng::with_seed(seed);
    let kind = (seed % KINDS.len() as u64) as usize;
    let rng = &mut rng;
    let (operations, options, machine) = match kind {
        0 | 1 => (arbitrary(rng, false), model(Model::Register), Machine::register()),
        2 => (arbitrary(rng, true), model(Model::Register), Machine::register()),
        3 => {
            let lenient = Options { convention: Convention::Lenient, ..Options::default() };
            (arbitrary(rng, false), lenient, Machine::register())
        }
        4 => (plausible(rng, &Machine::register()), model(Model::Register), Machine::register()),
        5 => (
            plausible(rng, &Machine::Text(String::new())),
            model(Model::Strings),
            Machine::Text(String::new()),
        ),
        6 => {
            let machine = Machine::List(Vec::new());
            (with_honest_receipts(seed, rng, &machine, Shape::List)?, model(Model::Lists), machine)
        }
        7 => return account_agrees(seed, kind, Machine::Set(BTreeSet::new()), rng),
        8 => return account_agrees(seed, kind, Machine::Counter(0), rng),
        _ => return receipts_agree(seed, kind, rng),
    };
    let definition: Vec<Operation> = if kind == 3 {
        let kept =
            |op: &&Operation| op.outcome != Outcome::Fail && !(op.f == Function::Read && op.output.is_null());
        operations.iter().filter(kept).cloned().collect()
    } else {
        operations.clone()
    };
    let expected = brute_force(&definition, &machine);
    let wrong = |what: &str| Err(format!("seed {seed} ({}): {what}: {operations:#?}", KINDS[kind]));
    if valid(&operations, &options) != expected {
        return wrong("the checker disagrees with brute force");
    }
    if valid(&operations, &Options { patience: 0, ..options }) != expected {
        return wrong("without patience the checker disagrees with brute force");
    }
    if kind == 6 && lists::account(&operations).findings.is_empty() != expected {
        return wrong("the order of the longest read disagrees with brute force");
    }
    if !expected {
        let all: Vec<&Operation> = operations.iter().collect();
        if let Some(part) = shrink(&all, &options, 50)
            && brute_force(&part.operations, &machine)
        {
            return wrong("the part that fails can be explained");
        }
        return Ok((kind, expected));
    }
    let mut relative = operations.clone();
    for op in &mut relative {
        op.call = op.call.saturating_sub(rng.u64(0..3));
        op.ret = op.ret.map(|ret| ret + rng.u64(0..3));
    }
    if !valid(&relative, &options) {
        return wrong("wider intervals allow more");
    }
    let mut relative = operations.clone();
    relative.retain(|op| op.f.mutates() && !op.mismatch() || rng.bool());
    if !valid(&relative, &options) {
        return wrong("an operation less that only looks allows more");
    }
    // (A mismatch on a revision says more to who knows that its value was written once.)
    let on_revision = |op: &Operation| op.mismatch() && matches!(op.expected, Some(Expected::Revision(1..)));
    if !operations.iter().any(on_revision) && !valid(&operations, &Options { revisions: false, ..options }) {
        return wrong("without revisions more is allowed");
    }
    Ok((kind, expected))
}

/// Sets: the accounting says no exactly if brute force does. Counters: only if it does.
fn account_agrees(seed: u64, kind: usize, machine: Machine, rng: &mut Rng) -> Result<(usize, bool), String> {
    let shape = if let Machine::Set(_) = machine { Shape::Set } else { Shape::Counter };
    let operations = with_honest_receipts(seed, rng, &machine, shape)?;
    let expected = brute_force(&operations, &machine);
    let agrees = if let Machine::Set(_) = machine {
        let a = sets::account(&operations);
        let fine =
            a.lost.is_empty() && a.stale.is_empty() && a.duplicated.is_empty() && a.phantoms.is_empty();
        (fine && a.refused.is_empty() && a.incomparable.is_empty() && a.overtaken.is_empty()) == expected
    } else {
        let account = counters::account(&operations);
        !expected || account.out_of_bounds.is_empty() && account.shrunk.is_empty()
    };
    if agrees { Ok((kind, expected)) } else { Err(format!("seed {seed} ({}): {operations:#?}", KINDS[kind])) }
}

/// What a correct store shows is accepted with its receipts; and whatever is accepted is linearizable.
fn receipts_agree(seed: u64, kind: usize, rng: &mut Rng) -> Result<(usize, bool), String> {
    let mut operations = with_receipts(rng, 7, 3);
    if receipts::check(&operations, Shape::Value).contradictions > 0 {
        return Err(format!("seed {seed}: honest receipts are refused: {operations:#?}"));
    }
    for _ in 0..rng.usize(0..5) {
        let other = operations[rng.usize(0..operations.len())].clone();
        let at = rng.usize(0..operations.len());
        let op = &mut operations[at];
        match rng.u8(0..4) {
            0 if op.f == Function::Read => (op.output, op.revision) = (other.output, other.revision),
            1 if op.revision.is_some() => op.revision = Some(rng.u64(0..8)),
            2 => op.receipt = other.receipt,
            _ => {
                let strong = &mut op.receipt.as_mut().unwrap()["strong"];
                let name = ["revision", "index"][rng.usize(0..2)];
                strong[name] = Json::from(rng.u64(0..10));
            }
        }
    }
    // Revisions may be forged as well, so the definition is not told of them.
    let mut plain = operations.clone();
    for op in &mut plain {
        op.revision = None;
    }
    let linearizable = brute_force(&plain, &Machine::register());
    if !linearizable && receipts::check(&operations, Shape::Value).contradictions == 0 {
        return Err(format!("seed {seed}: forged receipts are believed: {operations:#?}"));
    }
    Ok((kind, linearizable))
}
