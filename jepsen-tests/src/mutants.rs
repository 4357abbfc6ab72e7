//! Do the alarms ring? Every seeded bug of the store (`kv_types::mutants`) has a place where it must be caught: seeds of the
//! simulation, a scenario against real processes, or a test of storage. This runs each of them twice, with the bug and
//! without: the one must turn red within its budget, the other must stay green on the same seed.
//!
//! It runs the programs beside this one, which a build with the bugs put there (`cargo xtask mutants`).

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use kv_lab::LabError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use crate::Broke;

/// Names the bug of a process that takes no flag for it.
const VARIABLE: &str = "QUORATE_MUTANT";
/// Exit code of a run that found something.
const RED: i32 = 1;
/// Exit code of a test program that found something.
const TEST_RED: i32 = 101;
/// How long one run may take, with or without a bug: beyond it nothing was shown.
const ONE_RUN: Duration = Duration::from_secs(180);
/// Characters of a finding that are kept.
const FINDING: usize = 240;

/// Where a bug must be caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Catch {
    /// By one of these seeds of the simulation.
    Simulation(Range<u64>),
    /// By a scenario against real processes, on one of these seeds.
    Scenario(&'static str, Range<u64>),
    /// By a test of storage, whose name contains this.
    Storage(&'static str),
}

/// What must be found in a bug's place, and within how many seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trap {
    /// The bug.
    pub mutant: &'static str,
    /// Where it must be caught.
    pub catch: Catch,
    /// Seconds for all its seeds together.
    pub budget_s: u64,
}

const fn trap(mutant: &'static str, catch: Catch) -> Trap {
    Trap { mutant, catch, budget_s: 300 }
}

/// The trap of every bug.
pub fn traps() -> Vec<Trap> {
    use Catch::{Scenario, Simulation, Storage};
    let any = || Simulation(0..40);
    vec![
        trap("ack-before-fsync", Storage("batches_are_atomic_and_survive")),
        trap("vote-not-synced", Storage("a_vote_is_durable_when_it_is_saved")),
        trap("tail-not-truncated", Storage("raft_truncate_append_crash")),
        trap("skip-read-index", any()),
        trap("dedup-lost-in-snapshot", any()),
        trap("resend-applied-again", any()),
        trap("stale-cas", any()),
        trap("revision-reused", any()),
        trap("timeout-as-refusal", any()),
        trap("forget-hint", any()),
        trap("hints-in-memory-only", any()),
        trap("drop-sibling", any()),
        trap("ignore-context", any()),
        trap("merge-by-arrival", any()),
        trap("observed-resend-supersedes", any()),
        trap("incarnation-reused", any()),
        trap("absence-from-no-knowledge", any()),
        trap("read-repair-drops", any()),
        trap("silence-as-ack", any()),
        trap("empty-disk-speaks", any()),
        trap("unknown-as-not-applied", any()),
        trap("cut-not-installed", Scenario("majority-cut", 1..3)),
    ]
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of the programs; that of this one without it.
    pub programs: Option<PathBuf>,
    /// Where runs and the table go.
    pub out: PathBuf,
    /// Only these bugs; all when empty.
    pub only: Vec<String>,
}

/// What became of a bug.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The bug.
    pub mutant: String,
    /// What caught it, or should have.
    pub caught_by: String,
    /// Whether it was caught.
    pub caught: bool,
    /// The seed that caught it.
    pub seed: Option<u64>,
    /// Seconds until it was caught, runs before it included.
    pub seconds: f64,
    /// The property that turned red, or what the test said.
    pub property: String,
    /// Whether the same run without the bug was green.
    pub clean: bool,
    /// What was said without the bug, if it was not.
    pub clean_said: String,
}

impl Row {
    /// Whether the alarm works: it rings, and only then.
    pub fn works(&self) -> bool {
        self.caught && self.clean
    }
}

/// A row for people.
pub fn line(row: &Row) -> String {
    let Row { mutant, caught_by, seconds, property, .. } = row;
    let seed = row.seed.map_or(String::new(), |seed| format!(" seed {seed}"));
    match (row.caught, row.clean) {
        (true, true) => format!("caught  {mutant:<28} {seconds:>6.1} s  {caught_by}{seed}: {property}"),
        (true, false) => {
            format!("NO ALARM {mutant:<27} {caught_by}{seed} is not green without it: {}", row.clean_said)
        }
        (false, _) => format!("MISSED  {mutant:<28} {seconds:>6.1} s  {caught_by}: {property}"),
    }
}

/// What a process said.
#[derive(Debug)]
struct Verdict {
    red: bool,
    green: bool,
    property: String,
}

/// Sets every trap and tells `say` of each row. Writes `mutants.json`.
pub async fn run(options: &Options, mut say: impl FnMut(&Row)) -> Result<Vec<Row>, Broke> {
    let traps = traps();
    if let Some(unknown) = options.only.iter().find(|name| traps.iter().all(|trap| trap.mutant != *name)) {
        let known: Vec<&str> = traps.iter().map(|trap| trap.mutant).collect();
        let message = format!("no seeded bug is called `{unknown}`; there are {}", known.join(", "));
        return Err(LabError::Usage(message).into());
    }
    let programs = match &options.programs {
        Some(programs) => programs.clone(),
        None => {
            let me = std::env::current_exe().map_err(|error| io_error("this executable", error))?;
            me.parent().unwrap_or(Path::new(".")).to_path_buf()
        }
    };
    let mut rows = Vec::new();
    for trap in &traps {
        if !options.only.is_empty() && !options.only.iter().any(|name| name == trap.mutant) {
            continue;
        }
        let row = set(trap, &programs, &options.out).await?;
        say(&row);
        rows.push(row);
        // After each: a long table that is interrupted leaves what it found.
        write(&options.out, &rows)?;
    }
    Ok(rows)
}

fn write(out: &Path, rows: &[Row]) -> Result<(), Broke> {
    let file = out.join("mutants.json");
    std::fs::create_dir_all(out).map_err(|error| io_error(&out.display().to_string(), error))?;
    let text = serde_json::to_string_pretty(rows)
        .map_err(|error| io_error("the table of seeded bugs", error.into()))?;
    std::fs::write(&file, text + "\n").map_err(|error| io_error(&file.display().to_string(), error))
}

fn io_error(file: &str, source: io::Error) -> Broke {
    Broke::File { file: file.to_owned(), source }
}

async fn set(trap: &Trap, programs: &Path, out: &Path) -> Result<Row, Broke> {
    let begun = Instant::now();
    let budget = Duration::from_secs(trap.budget_s);
    let (caught_by, seeds) = match &trap.catch {
        Catch::Simulation(seeds) => ("simulation".to_owned(), seeds.clone()),
        Catch::Scenario(name, seeds) => (format!("scenario {name}"), seeds.clone()),
        Catch::Storage(test) => (format!("storage test {test}"), 0..1),
    };
    let mut row = Row {
        mutant: trap.mutant.to_owned(),
        caught_by,
        caught: false,
        seed: None,
        seconds: 0.0,
        property: String::new(),
        clean: true,
        clean_said: String::new(),
    };
    for seed in seeds {
        if begun.elapsed() > budget {
            break;
        }
        let bugged = ask(&trap.catch, seed, Some(trap.mutant), programs, out).await?;
        row.property = bugged.property;
        if !bugged.red {
            continue;
        }
        (row.caught, row.seed) = (true, Some(seed));
        row.seconds = begun.elapsed().as_secs_f64();
        // The same seed without the bug: otherwise it was no alarm.
        let clean = ask(&trap.catch, seed, None, programs, out).await?;
        (row.clean, row.clean_said) = (clean.green, if clean.green { String::new() } else { clean.property });
        return Ok(row);
    }
    row.seconds = begun.elapsed().as_secs_f64();
    Ok(row)
}

async fn ask(
    catch: &Catch,
    seed: u64,
    mutant: Option<&str>,
    programs: &Path,
    out: &Path,
) -> Result<Verdict, Broke> {
    let folder = out.join("mutants").join(mutant.unwrap_or("clean"));
    let (name, arguments) = call(catch, seed, mutant, &folder);
    let program = programs.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let mut command = Command::new(&program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    // A scenario's servers take it over from the harness that starts them.
    match mutant {
        Some(mutant) if !matches!(catch, Catch::Simulation(_)) => command.env(VARIABLE, mutant),
        _ => command.env_remove(VARIABLE),
    };
    match timeout(ONE_RUN, command.output()).await {
        Ok(output) => {
            Ok(judge(catch, &output.map_err(|error| io_error(&program.display().to_string(), error))?))
        }
        Err(_) => Ok(Verdict { red: false, green: false, property: "it did not end in time".into() }),
    }
}

fn call(catch: &Catch, seed: u64, mutant: Option<&str>, folder: &Path) -> (&'static str, Vec<String>) {
    let mut words: Vec<String> = Vec::new();
    let mut add = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
    let seed = seed.to_string();
    let folder = folder.display().to_string();
    let name = match catch {
        Catch::Simulation(_) => {
            add(&["seed", &seed, "--out", &folder]);
            if let Some(mutant) = mutant {
                add(&["--mutant", mutant]);
            }
            "kv-sim"
        }
        Catch::Scenario(scenario, _) => {
            add(&["run", scenario, "--seed", &seed, "--quiet", "--json", "--out", &folder]);
            "jepsen-tests"
        }
        Catch::Storage(test) => {
            add(&[test]);
            "conformance"
        }
    };
    (name, words)
}

fn judge(catch: &Catch, output: &Output) -> Verdict {
    let said = String::from_utf8_lossy(&output.stdout);
    let (code, ended) = (output.status.code(), output.status.success());
    if matches!(catch, Catch::Storage(_)) {
        let panicked = said
            .lines()
            .find(|line| line.contains("panicked") || line.starts_with("test ") && line.ends_with("FAILED"));
        return Verdict {
            red: code == Some(TEST_RED),
            green: ended,
            property: short(panicked.unwrap_or("")),
        };
    }
    let summary: Value = serde_json::from_str(&said).unwrap_or(Value::Null);
    let property = match findings(&summary).first() {
        Some(first) => short(first),
        None if ended => String::new(),
        None => short(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("it said nothing")),
    };
    // A fault that is not proven makes a run say nothing, which counts as caught where the bug is in the harness.
    let unproven = matches!(catch, Catch::Scenario("majority-cut", _)) && !ended;
    Verdict { red: code == Some(RED) || unproven, green: ended, property }
}

/// What a summary says is broken: properties first, then words.
fn findings(summary: &Value) -> Vec<String> {
    let text = |of: &Value, name: &str| of.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |path: &str| summary.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut found: Vec<String> = ["/properties", "/judgement/properties"]
        .iter()
        .flat_map(|path| list(path))
        .filter(|property| text(property, "ruling") == "invalid")
        .map(|property| {
            format!("{} of {}: {}", text(&property, "name"), text(&property, "ns"), text(&property, "detail"))
        })
        .collect();
    for path in ["/broken", "/reasons"] {
        found.extend(list(path).iter().filter_map(|word| word.as_str().map(str::to_owned)));
    }
    found
}

fn short(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(FINDING).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_bug_has_one_trap() {
        let mut names: Vec<&str> = traps().iter().map(|trap| trap.mutant).collect();
        names.sort_unstable();
        let mut known: Vec<String> = source_names();
        known.sort_unstable();
        assert_eq!(names, known);
    }

    /// The names in the source, which an ordinary build does not compile.
    fn source_names() -> Vec<String> {
        let source = include_str!("../../crates/kv-types/src/mutants.rs");
        let lines =
            source.lines().skip_while(|line| !line.starts_with("mutants! {")).take_while(|line| *line != "}");
        lines.filter_map(|line| Some(line.split_once(" = \"")?.1.split_once('"')?.0.to_owned())).collect()
    }

    #[test]
    fn findings_name_the_property() {
        let summary = json!({
            "judgement": {"properties": [
                {"name": "set-full", "ns": "cart", "ruling": "valid", "detail": ""},
                {"name": "linearizable", "ns": "bank", "ruling": "invalid", "detail": "key 3"}
            ]},
            "broken": ["replicas differ"]
        });
        assert_eq!(findings(&summary), ["linearizable of bank: key 3", "replicas differ"]);
        assert!(findings(&Value::Null).is_empty());
    }

    #[test]
    fn calls_name_the_bug_where_the_program_takes_it() {
        let words = |catch: &Catch, mutant| call(catch, 7, mutant, Path::new("out")).1.join(" ");
        let simulation = Catch::Simulation(0..9);
        assert_eq!(words(&simulation, Some("x")), "seed 7 --out out --mutant x");
        assert_eq!(words(&simulation, None), "seed 7 --out out");
        let scenario = Catch::Scenario("ring", 1..2);
        assert_eq!(words(&scenario, Some("x")), "run ring --seed 7 --quiet --json --out out");
    }
}
