//! `jepsen-tests check`: judges recorded histories, ours and those of others.
//!
//! Histories of others are checked for linearizability by the model that is named. Ours say more: namespaces,
//! receipts, contexts, digests; `--model quorate` judges all of it, by namespace.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::{Args, ValueEnum};
use kv_check::format::{self, Format};
use kv_check::judge::{Expectation, NamespacePlan};
use kv_check::linear::{self, Convention, Options, Verdict};
use kv_check::service::Window;
use kv_check::{Event, Function, Json, Operation, Plan, Ruling, Workload, operation};

/// Checks of parts that finding the smallest failing one may take.
const SHRINKING: usize = 400;

/// What is asked on the command line.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Histories; several are judged each by itself
    #[arg(required = true, value_name = "HISTORY")]
    pub histories: Vec<PathBuf>,
    /// What a key is; without it, quorate for histories with namespaces, else cas-register
    #[arg(long, value_enum)]
    pub model: Option<ModelName>,
    /// How histories are written; told by their beginnings unless named
    #[arg(long, value_enum, default_value = "auto")]
    pub format: FormatName,
    /// Failed operations: strict takes a cas that failed as an observation (Porcupine), removed leaves them
    /// out, and lets a read of nothing see anything (Knossos)
    #[arg(long, value_enum, default_value = "strict")]
    pub failed: Failed,
    /// Threads; one per core unless said
    #[arg(long, value_name = "N")]
    pub jobs: Option<NonZeroUsize>,
    /// Configurations per key before the verdict is unknown
    #[arg(long, value_name = "N", default_value_t = Options::default().max_configurations)]
    pub max_configurations: usize,
    /// quorate: namespaces that are available, where their reads do not show it
    #[arg(long, value_name = "NS")]
    pub available: Vec<String>,
    /// quorate: when the final reads began, milliseconds; histories of runs say it themselves
    #[arg(long, value_name = "MS")]
    pub settled_ms: Option<u64>,
    /// Print the smallest failing part of every violation; of a single history it is printed anyway
    #[arg(long)]
    pub explain: bool,
}

/// What a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModelName {
    /// Read, write, compare and set, delete; absent at first
    CasRegister,
    /// Read and write; absent at first
    Register,
    /// Get, put and append to strings; empty at first
    KvAppend,
    /// Our own histories, judged by namespace
    Quorate,
}

/// How histories are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// Told by the beginning of each
    Auto,
    /// Our JSON lines
    Jsonl,
    /// Jepsen's EDN
    Edn,
    /// The logs of the public test vectors
    Porcupine,
}

/// What failed operations say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Failed {
    /// A cas that failed saw another value
    Strict,
    /// Nothing
    Removed,
}

/// What became of one history.
struct Judged {
    path: PathBuf,
    operations: usize,
    took: Duration,
    /// The ruling, and what explains it; else what is wrong with the file.
    outcome: Result<(Ruling, String), String>,
}

/// Exit code: all valid.
pub const VALID: u8 = 0;
/// Exit code: a violation.
pub const INVALID: u8 = 1;
/// Exit code: undecided.
pub const UNKNOWN: u8 = 2;
/// Exit code: the arguments, or what they name, make no sense.
pub const ARGUMENTS: u8 = 254;
/// Exit code: the harness itself broke.
pub const BROKEN: u8 = 255;

/// Judges the histories, prints a line for each and one for all.
pub fn run(args: &CheckArgs) -> ExitCode {
    ExitCode::from(check(args, &mut io::stdout().lock()).unwrap_or(BROKEN))
}

/// The same, printing elsewhere; returns the exit code.
pub fn check(args: &CheckArgs, out: &mut dyn Write) -> io::Result<u8> {
    let jobs = args.jobs.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    // One history is spread over the threads by its keys, several as they are.
    let keys = if args.histories.len() == 1 { jobs } else { 1 };
    let begun = now();
    let judged = in_parallel(&args.histories, jobs, |path| judge_file(path, args, keys));
    let took = begun.elapsed();

    let explain = args.explain || judged.len() == 1;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut worst = Ruling::Valid;
    for Judged { path, operations, took, outcome } in &judged {
        let word = outcome.as_ref().map_or("unreadable", |(ruling, _)| ruling.name());
        *counts.entry(word).or_default() += 1;
        let ms = took.as_secs_f64() * 1e3;
        writeln!(out, "{word:<10} {operations:>7} operations {ms:>9.2} ms  {}", path.display())?;
        match outcome {
            Ok((ruling, detail)) => {
                worst = worst.max(*ruling);
                if explain && !detail.is_empty() {
                    writeln!(out, "{detail}")?;
                }
            }
            Err(why) => writeln!(out, "  {why}")?,
        }
    }
    let operations: usize = judged.iter().map(|judged| judged.operations).sum();
    let checking: Duration = judged.iter().map(|judged| judged.took).sum();
    let counts: Vec<String> = counts.iter().map(|(word, count)| format!("{count} {word}")).collect();
    writeln!(
        out,
        "{} histories: {}; {operations} operations checked in {:.1} ms ({:.1} ms with reading, {jobs} threads)",
        judged.len(),
        counts.join(", "),
        checking.as_secs_f64() * 1e3,
        took.as_secs_f64() * 1e3,
    )?;
    Ok(match worst {
        _ if judged.iter().any(|judged| judged.outcome.is_err()) => ARGUMENTS,
        Ruling::Valid => VALID,
        Ruling::Invalid => INVALID,
        Ruling::Unknown => UNKNOWN,
    })
}

#[allow(clippy::disallowed_methods, reason = "measures this tool; no history holds it")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fn judge_file(path: &Path, args: &CheckArgs, jobs: usize) -> Judged {
    let path = path.to_owned();
    let failed =
        |why: String| Judged { path: path.clone(), operations: 0, took: Duration::ZERO, outcome: Err(why) };
    let format = match args.format {
        FormatName::Auto => None,
        FormatName::Jsonl => Some(Format::Jsonl),
        FormatName::Edn => Some(Format::Edn),
        FormatName::Porcupine => Some(Format::Porcupine),
    };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => return failed(error.to_string()),
    };
    let events = match format::read(&bytes, format) {
        Ok(events) => events,
        Err(error) => return failed(error.to_string()),
    };
    let ours = events.iter().any(|event| event.ns.is_some());
    let model = args.model.unwrap_or(if ours { ModelName::Quorate } else { ModelName::CasRegister });
    let model = match model {
        ModelName::CasRegister | ModelName::Register => linear::Model::Register,
        ModelName::KvAppend => linear::Model::Strings,
        ModelName::Quorate => return judge_ours(path, &events, args),
    };
    let operations = match operation::pair(&events) {
        Ok(operations) => operations,
        Err(error) => return failed(error.to_string()),
    };
    let convention = if args.failed == Failed::Strict { Convention::Strict } else { Convention::Lenient };
    let options =
        Options { model, convention, max_configurations: args.max_configurations, ..Options::default() };
    let begun = now();
    let outcome = judge_keys(&operations, &options, jobs);
    let took = begun.elapsed();
    Judged {
        path,
        operations: operations.len(),
        took,
        outcome: Ok(explained(outcome, &operations, &options)),
    }
}

/// The worst verdict of the keys, of equally bad ones that of the shortest. Once one is invalid no other is
/// begun: keys are begun from the shortest on, so every key that is shorter has its verdict as well.
fn judge_keys(operations: &[Operation], options: &Options, jobs: usize) -> Verdict {
    if operations.is_empty() {
        return Verdict::Unknown {
            key: String::new(),
            why: "the history is empty: nothing was shown".into(),
        };
    }
    let mut keys: Vec<Vec<&Operation>> = linear::by_key(operations).into_values().collect();
    keys.sort_by_key(Vec::len);
    let decided = AtomicBool::new(false);
    let verdicts = in_parallel(&keys, jobs, |operations| {
        let verdict = (!decided.load(Ordering::Relaxed)).then(|| linear::check_key(operations, options))?;
        decided.fetch_or(matches!(verdict, Verdict::Invalid(_)), Ordering::Relaxed);
        Some(verdict)
    });
    let badness = |verdict: &Verdict| match verdict {
        Verdict::Valid => 0,
        Verdict::Unknown { .. } => 1,
        Verdict::Invalid(_) => 2,
    };
    verdicts.into_iter().flatten().rev().max_by_key(badness).unwrap_or(Verdict::Valid)
}

fn explained(verdict: Verdict, operations: &[Operation], options: &Options) -> (Ruling, String) {
    match verdict {
        Verdict::Valid => (Ruling::Valid, String::new()),
        Verdict::Unknown { key, why } => (Ruling::Unknown, format!("  key {key:?}: {why}")),
        Verdict::Invalid(witness) => {
            let key: Vec<&Operation> =
                operations.iter().filter(|op| op.key == witness.key && op.ns == witness.ns).collect();
            let text = match linear::shrink(&key, options, SHRINKING) {
                Some(part) => part.text(),
                None => witness.to_string(),
            };
            let text = text.replace('\n', "\n  ");
            (Ruling::Invalid, format!("  key {:?}: {text}", witness.key))
        }
    }
}

/// Our own histories: every namespace by what its operations are.
fn judge_ours(path: PathBuf, events: &[Event], args: &CheckArgs) -> Judged {
    let convention = if args.failed == Failed::Strict { Convention::Strict } else { Convention::Lenient };
    let plan = Plan {
        namespaces: namespaces(events, &args.available),
        windows: windows(events),
        minority: Some(crate::judge_plan::minority()),
        settled: args.settled_ms.map(|ms| ms.saturating_mul(1_000_000)),
        limits: Options { convention, max_configurations: args.max_configurations, ..Options::default() },
        ..Plan::default()
    };
    let begun = now();
    let judgement = kv_check::judge(events, &plan);
    let took = begun.elapsed();
    let operations = events.iter().filter(|event| event.kind == kv_check::EventType::Invoke).count();
    let outcome = judgement.map_err(|error| error.to_string()).map(|judgement| {
        let mut lines = Vec::new();
        for property in &judgement.properties {
            lines.push(format!(
                "  {:<8} {:<12} {:<30} {:<18} {:>7}  {}",
                property.ruling.name(),
                property.ns,
                property.name,
                property.checker,
                property.examined,
                property.detail.lines().next().unwrap_or_default(),
            ));
            if let Some(evidence) = &property.evidence {
                lines.push(format!("    {}", evidence.text.replace('\n', "\n    ")));
            }
        }
        (judgement.ruling, lines.join("\n"))
    });
    Judged { path, operations, took, outcome }
}

/// The network partitions that a run of ours noted: when who was certainly cut off from whom.
pub fn windows(events: &[Event]) -> Vec<Window> {
    let window = |event: &Event| {
        let value = &event.value;
        let sides: BTreeMap<String, String> = serde_json::from_value(value.get("sides")?.clone()).ok()?;
        let moment = |name: &str| value.get(name).and_then(Json::as_u64);
        let proven = value.get("proven") == Some(&Json::Bool(true)) && !sides.is_empty();
        let name = value.get("ends").and_then(Json::as_str)?.to_owned();
        proven.then_some(Window { name, from: moment("from")?, to: moment("until")?, sides })
    };
    events.iter().filter(|event| event.process == kv_check::Process::Nemesis).filter_map(window).collect()
}

/// The namespaces of a history, and what their operations say about them: lists are read where siblings, sets
/// or lists are kept; who appends keeps lists; who adds keeps a set, or a counter if an integer is read.
pub fn namespaces(events: &[Event], available: &[String]) -> BTreeMap<String, NamespacePlan> {
    let mut names: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    let clients = events.iter().filter(|event| event.process != kv_check::Process::Nemesis);
    for event in clients {
        // A completion may leave out what its invocation says.
        if let Some(ns) = event.ns.as_deref() {
            names.entry(ns).or_default().push(event);
        }
    }
    if names.is_empty() && !events.is_empty() {
        names.insert("", events.iter().collect());
    }
    let plan = |name: &str, events: &[&Event]| {
        let does = |f: &Function| events.iter().any(|event| event.f == *f);
        let reads = |which: fn(&Json) -> bool| {
            let ok = |event: &&&Event| event.f == Function::Read && event.kind == kv_check::EventType::Ok;
            events.iter().filter(ok).any(|event| which(&event.value))
        };
        let (strong, workload) = if does(&Function::Append) {
            (true, Workload::Append)
        } else if does(&Function::Add) {
            (true, if reads(Json::is_array) { Workload::Set } else { Workload::Counter })
        } else if reads(Json::is_array) {
            (false, Workload::Siblings)
        } else {
            (true, Workload::Register)
        };
        let strong = strong && !available.iter().any(|other| other == name);
        NamespacePlan { strong, workload, expect: Expectation::default() }
    };
    names.into_iter().map(|(name, events)| (name.to_owned(), plan(name, &events))).collect()
}

/// Maps items on several threads, in their order.
fn in_parallel<T: Sync, R: Send>(items: &[T], jobs: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(items.len()) {
            scope.spawn(|| {
                while let at = next.fetch_add(1, Ordering::Relaxed)
                    && let Some(item) = items.get(at)
                {
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_check::{EventType, Process};
    use serde_json::json;

    #[test]
    fn a_history_says_itself_when_who_was_cut_off() {
        let event = |process, value| Event::new(9, process, EventType::Info, "partition".into(), value);
        let sides = json!({"n1": "minority", "n2": "majority"});
        let ends = |proven: bool, sides: &Json| json!({"ends": "n1 | n2", "proven": proven, "from": 3, "until": 7, "sides": sides});
        let events = [
            event(Process::Nemesis, json!({"begins": "n1 | n2", "proven": true})),
            event(Process::Nemesis, ends(true, &sides)),
            event(Process::Nemesis, ends(false, &sides)),
            event(Process::Nemesis, ends(true, &json!({}))),
            event(Process::Client(1), ends(true, &sides)),
        ];
        let found = windows(&events);
        let [window] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((window.from, window.to, window.side("n1")), (3, 7, "minority"));
    }

    /// The operations of one client on one key: writes, and reads with what they say.
    fn on_key(key: &str, steps: &[(&str, i64)]) -> Vec<Event> {
        let one = |(at, (f, value)): (usize, &(&str, i64))| {
            let kinds = [EventType::Invoke, EventType::Ok];
            let read = *f == "read";
            let events = kinds.map(|kind| {
                let said = if read && kind == EventType::Invoke { Json::Null } else { json!(value) };
                let time = (at * 2 + usize::from(kind == EventType::Ok)) as u64;
                let mut event = Event::new(time, Process::Client(1), kind, (*f).into(), said);
                event.key = Some(key.into());
                event
            });
            events.into_iter().collect::<Vec<_>>()
        };
        steps.iter().enumerate().flat_map(one).collect()
    }

    /// Of several keys the worst verdict counts, and of equally bad ones that of the shortest.
    #[test]
    fn a_history_is_as_bad_as_its_worst_key() {
        let good = || on_key("good", &[("write", 1), ("read", 1), ("write", 2), ("read", 2)]);
        let short = || on_key("short", &[("write", 1), ("read", 7)]);
        let long = || on_key("long", &[("write", 1), ("read", 1), ("write", 2), ("read", 9)]);
        let judged = |parts: Vec<Vec<Event>>, most: usize, jobs: usize| {
            // One client after the other, as its number says.
            let clients = parts.into_iter().zip(1_u64..).flat_map(|(events, client)| {
                events.into_iter().map(move |event| Event { process: Process::Client(client), ..event })
            });
            let events: Vec<Event> = clients
                .enumerate()
                .map(|(at, event)| Event { index: at as u64, time: at as u64, ..event })
                .collect();
            let operations = operation::pair(&events).unwrap();
            let options = Options { max_configurations: most, ..Options::default() };
            match judge_keys(&operations, &options, jobs) {
                Verdict::Valid => "valid".to_owned(),
                Verdict::Unknown { key, .. } => format!("unknown: {key}"),
                Verdict::Invalid(witness) => format!("invalid: {}", witness.key),
            }
        };
        let most = Options::default().max_configurations;
        for jobs in [1, 3] {
            assert_eq!(judged(vec![good()], most, jobs), "valid");
            assert_eq!(judged(vec![good(), long()], most, jobs), "invalid: long");
            assert_eq!(judged(vec![long(), good(), short()], most, jobs), "invalid: short");
            assert_eq!(judged(vec![good()], 0, jobs), "unknown: good");
        }
        assert!(judged(Vec::new(), most, 1).starts_with("unknown"), "nothing was shown");
    }
}
