//! The command line of `kv-sim`: a parent that hands out seeds, and children that run one seed each and print
//! its summary. One seed a process, because a run repeats only from a fresh one.

mod table;

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::{Parser, Subcommand};
use kv_check::Ruling;

use crate::sim::{self, Options, Run, Summary};
use table::Tally;

/// Exit code for arguments that make no sense, as Jepsen's.
const BAD_ARGUMENTS: u8 = 254;
/// Exit code when the harness itself broke.
const BROKEN: u8 = 255;
/// Lines of a child's standard error that are shown when it died.
const LAST_WORDS: usize = 12;

/// Runs whole clusters in a simulation, one seed a process.
#[derive(Debug, Parser)]
#[command(name = "kv-sim", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Task>,
    /// Seeds, the last one excluded: 0..200
    #[arg(long, value_parser = seeds)]
    seeds: Option<Range<u64>>,
    /// Processes at once
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Run every seed twice and compare the traces byte for byte
    #[arg(long)]
    repeat: bool,
    #[command(flatten)]
    each: Each,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Runs one seed in this process and prints its summary as JSON
    Seed {
        /// The seed
        seed: u64,
        #[command(flatten)]
        each: Each,
        /// Also keep the nodes' logs
        #[arg(long)]
        log: bool,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct Each {
    /// How long the phase of faults lasts, in simulated seconds
    #[arg(long, default_value_t = 15)]
    simulated_seconds: u64,
    /// A seeded bug (in a build with --cfg quorate_mutants)
    #[arg(long)]
    mutant: Option<String>,
    /// Where failing seeds leave history.jsonl, trace.txt, summary.json and nodes.log
    #[arg(long, default_value = "target/jepsen/sim")]
    out: PathBuf,
    /// Keep the files of valid seeds too
    #[arg(long)]
    keep: bool,
    /// Also write the trace to this file; for a single seed
    #[arg(long)]
    trace: Option<PathBuf>,
}

impl Each {
    fn dir(&self, seed: u64) -> PathBuf {
        self.out.join(seed.to_string())
    }

    /// The arguments of a child.
    fn pass_on(&self, command: &mut Command) {
        command.arg("--simulated-seconds").arg(self.simulated_seconds.to_string());
        command.arg("--out").arg(&self.out);
        if let Some(mutant) = &self.mutant {
            command.arg("--mutant").arg(mutant);
        }
        if self.keep {
            command.arg("--keep");
        }
        if let Some(trace) = &self.trace {
            command.arg("--trace").arg(trace);
        }
    }

    /// What replays a seed.
    fn replay(&self, seed: u64) -> String {
        let mut words = format!("jepsen-tests sim --seeds {seed}..{}", seed + 1);
        if self.simulated_seconds != 15 {
            words.push_str(&format!(" --simulated-seconds {}", self.simulated_seconds));
        }
        if let Some(mutant) = &self.mutant {
            words.push_str(&format!(" --mutant {mutant}"));
        }
        words
    }
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let parts = text.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    match parts {
        Some((from, to)) if from < to => Ok(from..to),
        _ => Err("write seeds as 0..200; the last one is excluded".into()),
    }
}

/// The program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(BAD_ARGUMENTS) } else { ExitCode::SUCCESS };
        }
    };
    let done = match (arguments.command, arguments.seeds) {
        (Some(Task::Seed { seed, each, log }), _) => one(seed, &each, log),
        (None, Some(seeds)) if arguments.jobs > 0 => {
            all(seeds, arguments.jobs, arguments.repeat, &arguments.each)
        }
        _ => {
            eprintln!("error: say which seeds, as in --seeds 0..200, and at least one job");
            return ExitCode::from(BAD_ARGUMENTS);
        }
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(BROKEN)
        }
    }
}

#[cfg(quorate_mutants)]
fn choose(mutant: &str) -> Result<(), String> {
    kv_types::mutants::choose(mutant).map(|_| ()).map_err(|error| error.to_string())
}

#[cfg(not(quorate_mutants))]
fn choose(_mutant: &str) -> Result<(), String> {
    Err("this build has no seeded bugs; build with --cfg quorate_mutants".into())
}

fn code(ruling: Ruling) -> u8 {
    match ruling {
        Ruling::Valid => 0,
        Ruling::Invalid => 1,
        Ruling::Unknown => 2,
    }
}

/// The child: one seed in this process.
fn one(seed: u64, each: &Each, log: bool) -> io::Result<u8> {
    if let Some(mutant) = &each.mutant
        && let Err(why) = choose(mutant)
    {
        eprintln!("error: --mutant {mutant}: {why}");
        return Ok(BAD_ARGUMENTS);
    }
    let dir = each.dir(seed);
    if log {
        fs::create_dir_all(&dir)?;
        log_to(fs::File::create(dir.join("nodes.log"))?);
    }
    let Run { summary, history, trace } =
        sim::run(seed, Options { faults: Duration::from_secs(each.simulated_seconds) });
    if each.keep || summary.ruling != Ruling::Valid {
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("trace.txt"), &trace)?;
        fs::write(dir.join("summary.json"), serde_json::to_vec_pretty(&summary)?)?;
        kv_check::history::write(io::BufWriter::new(fs::File::create(dir.join("history.jsonl"))?), &history)?;
    }
    if let Some(file) = &each.trace {
        fs::write(file, &trace)?;
    }
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &summary)?;
    writeln!(out)?;
    Ok(code(summary.ruling))
}

/// The nodes' own log, with simulated times.
fn log_to(file: fs::File) {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_timer(sim::trace::SimTime)
        .with_writer(Mutex::new(file))
        .init();
}

/// What became of a seed.
#[derive(Debug)]
enum Outcome {
    Judged(Box<Summary>),
    /// The process ended without a summary: a panic.
    Died(String),
    /// The arguments were refused.
    Refused(String),
}

fn child(seed: u64, each: &Each, log: bool) -> io::Result<Outcome> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("seed").arg(seed.to_string());
    each.pass_on(&mut command);
    if log {
        command.arg("--log");
    }
    let output = command.stdin(Stdio::null()).output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(i32::from(BAD_ARGUMENTS)) {
        return Ok(Outcome::Refused(words.trim().to_owned()));
    }
    match serde_json::from_slice(&output.stdout) {
        Ok(summary) => Ok(Outcome::Judged(Box::new(summary))),
        Err(_) => {
            let lines: Vec<&str> = words.lines().collect();
            let from = lines.len().saturating_sub(LAST_WORDS);
            Ok(Outcome::Died(format!(
                "{}\n{}",
                output.status,
                lines.get(from..).unwrap_or_default().join("\n")
            )))
        }
    }
}

/// Runs a seed again and compares. None if the traces are the same.
fn repeated(seed: u64, each: &Each) -> io::Result<(Outcome, Option<String>)> {
    let dir = each.dir(seed);
    fs::create_dir_all(&dir)?;
    let files = [dir.join("trace.txt"), dir.join("again.txt")];
    let mut outcomes = Vec::new();
    for file in &files {
        outcomes.push(child(seed, &Each { trace: Some(file.clone()), ..each.clone() }, false)?);
    }
    let [first, second] = files.map(fs::read);
    let (first, second) = (first.unwrap_or_default(), second.unwrap_or_default());
    let outcome = outcomes.into_iter().next().unwrap_or(Outcome::Died("it was not run".into()));
    if first == second && !first.is_empty() {
        fs::remove_file(dir.join("again.txt"))?;
        if !each.keep && matches!(&outcome, Outcome::Judged(summary) if summary.ruling == Ruling::Valid) {
            fs::remove_dir_all(&dir)?;
        }
        return Ok((outcome, None));
    }
    let line =
        first.split(|byte| *byte == b'\n').zip(second.split(|byte| *byte == b'\n')).position(|(a, b)| a != b);
    let line =
        line.map_or_else(|| "the end of the shorter one".to_owned(), |line| format!("line {}", line + 1));
    Ok((outcome, Some(format!("two runs differ from {line} on: {} and again.txt", files_of(&dir)))))
}

fn files_of(dir: &Path) -> String {
    dir.join("trace.txt").display().to_string()
}

/// The parent.
fn all(seeds: Range<u64>, jobs: usize, repeat: bool, each: &Each) -> io::Result<u8> {
    if let Some(mutant) = &each.mutant
        && let Err(why) = choose(mutant)
    {
        eprintln!("error: --mutant {mutant}: {why}");
        return Ok(BAD_ARGUMENTS);
    }
    let queue = Mutex::new(seeds.clone());
    let tally = Mutex::new(Tally::default());
    let failed = Mutex::new(None);
    let began = real_now();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let Some(seed) = lock(&queue).next() else { return };
                    if let Err(error) = run_one(seed, repeat, each, &tally) {
                        lock(&failed).get_or_insert(error);
                        return;
                    }
                }
            });
        }
    });
    if let Some(error) = lock(&failed).take() {
        return Err(error);
    }
    let tally = lock(&tally);
    print!("{}", tally.table(began.elapsed()));
    Ok(tally.code())
}

fn run_one(seed: u64, repeat: bool, each: &Each, tally: &Mutex<Tally>) -> io::Result<()> {
    let began = real_now();
    let (mut outcome, differs) =
        if repeat { repeated(seed, each)? } else { (child(seed, each, false)?, None) };
    let took = began.elapsed() / if repeat { 2 } else { 1 };
    if let (Outcome::Judged(summary), Some(why)) = (&mut outcome, differs) {
        summary.broken.push(why);
        summary.ruling = Ruling::Invalid;
    }
    let line = match outcome {
        Outcome::Refused(why) => return Err(io::Error::other(why)),
        Outcome::Died(why) => {
            lock(tally).died();
            // Again with logs: the run repeats, so does its end.
            let _ = child(seed, each, true)?;
            format!("seed {seed}: INVALID, its process died: {why}\n  replay: {}", each.replay(seed))
        }
        Outcome::Judged(summary) => {
            lock(tally).add(&summary, took);
            let mut line = table::line(&summary, took);
            if summary.ruling != Ruling::Valid {
                let _ = child(seed, each, true)?;
                for why in table::reasons(&summary) {
                    line.push_str(&format!("\n  {why}"));
                }
                line.push_str(&format!(
                    "\n  files: {}\n  replay: {}",
                    each.dir(seed).display(),
                    each.replay(seed)
                ));
            }
            line
        }
    };
    // A reader that has read enough is no reason to end otherwise.
    let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{line}\n"));
    Ok(())
}

#[allow(
    clippy::disallowed_methods,
    reason = "how fast the simulation is, is measured by the machine's clock"
)]
fn real_now() -> std::time::Instant {
    std::time::Instant::now()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_range_without_its_end() {
        assert_eq!(seeds("3..5").unwrap(), 3..5);
        for wrong in ["", "3", "5..3", "3..3", "a..b", "3...5"] {
            assert!(seeds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_failing_seed_is_replayed_with_all_that_made_it() {
        let parsed = Arguments::try_parse_from([
            "kv-sim",
            "--seeds",
            "0..9",
            "--mutant",
            "x",
            "--simulated-seconds",
            "5",
        ]);
        let each = parsed.unwrap().each;
        assert_eq!(each.replay(7), "jepsen-tests sim --seeds 7..8 --simulated-seconds 5 --mutant x");
    }
}
