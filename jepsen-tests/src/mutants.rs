//! Do the alarms ring? Every seeded bug of the store (`kv_types::mutants`) has a place where it must be
//! caught: seeds of the simulation, a test, or a scenario against real processes. This runs each of them
//! twice, with the bug and without: the one must turn red within its budget **by the property that the bug
//! breaks**, the other must be green on the same seed. A run that dies, or that is red for another reason,
//! catches nothing.
//!
//! It runs the programs beside this one, which a build with the bugs put there (`cargo xtask mutants`).
//! Without a bug they do what the ordinary ones do: none is on unless it is named.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use kv_lab::LabError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

use crate::Broke;

/// Names the bug of a process that takes no flag for it.
const VARIABLE: &str = "QUORATE_MUTANT";
/// Exit code of a run that holds.
const GREEN: i32 = 0;
/// Exit code of a run that found something.
const RED: i32 = 1;
/// Exit code of a run that shows nothing.
const SHOWS_NOTHING: i32 = 2;
/// Exit code of a test program that found something.
const TEST_RED: i32 = 101;
/// How long one run may take, with or without a bug: beyond it nothing was shown.
const ONE_RUN: Duration = Duration::from_secs(120);
/// How long a bug's seeds may take together before it counts as missed: on a machine that does nothing else
/// the seeds themselves are the bound.
const BUDGET: Duration = Duration::from_secs(240);
/// Seeds of the simulation that are tried after those which caught a bug when its trap was set.
const SEEDS: std::ops::Range<u64> = 0..24;
/// Characters of a finding that are kept.
const FINDING: usize = 240;

/// Where a bug must be caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Catch {
    /// By a seed of the simulation, these first.
    Simulation(&'static [u64]),
    /// By a test: the program and what its name contains.
    Test(&'static str, &'static str),
    /// By a scenario against real processes, on this seed.
    Scenario(&'static str, u64),
}

/// What must be found in a bug's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trap {
    /// The bug.
    pub mutant: &'static str,
    /// The promise that it breaks, in words.
    pub breaks: &'static str,
    /// Where it must be caught.
    pub catch: Catch,
    /// What must turn red: any of these. A finding begins with it.
    pub by: &'static [&'static str],
}

const fn trap(mutant: &'static str, breaks: &'static str, catch: Catch, by: &'static [&'static str]) -> Trap {
    Trap { mutant, breaks, catch, by }
}

/// Properties that say *linearizable*, whatever the workload.
const LINEARIZABLE: &[&str] = &[
    "linearizable of ",
    "receipts name one order of ",
    "not applied means not applied of ",
    "no element lost of ",
    "no element twice of ",
    "no element from nowhere of ",
    "no stale read of ",
    "reads grow in one order of ",
    "within its bounds of ",
    "no read goes back of ",
];
/// What a write that is gone looks like.
const LOST: &[&str] = &["no acknowledged write lost of ", "no element lost of "];
/// The trap of every bug.
pub fn traps() -> Vec<Trap> {
    let mut traps = traps_of_the_log();
    traps.extend(traps_of_machines());
    traps.extend(traps_of_namespaces());
    traps.extend(traps_of_available());
    traps.extend(traps_of_replicas());
    traps.push(trap(
        "unknown-as-not-applied",
        "the client library reports open fates as open",
        Catch::Simulation(&[0]),
        &["not applied means not applied of ", "no value from nowhere of ", "linearizable of "],
    ));
    traps.extend(traps_of_streams());
    traps.push(trap(
        "cut-not-installed",
        "a fault counts once it is proven in force",
        Catch::Scenario("majority-cut", 1),
        &["faults proven in force"],
    ));
    traps
}

/// Of bugs in session streams.
fn traps_of_streams() -> Vec<Trap> {
    vec![
        trap(
            "answers-swapped",
            "an answer belongs to its request",
            Catch::Test("kv-server-session_streams", "many_requests_in_a_frame_have_their_answers"),
            &["many_requests_in_a_frame"],
        ),
        trap(
            "stream-end-not-applied",
            "the end of a stream leaves the fate of its mutations open",
            Catch::Test(
                "kv-client-session_streams",
                "the_end_of_a_stream_leaves_the_fate_of_its_mutations_open",
            ),
            &["the_end_of_a_stream"],
        ),
        trap(
            "resend-lost",
            "what was open when a stream ended is sent again",
            Catch::Test("kv-client-session_streams", "what_was_open_when_a_stream_ended_is_sent_again"),
            &["what_was_open"],
        ),
    ]
}

/// Of bugs in the log.
fn traps_of_the_log() -> Vec<Trap> {
    use Catch::Test;
    vec![
        // In the simulation the disk often keeps some of the sixteen frames, and its node does not start.
        trap(
            "ack-before-fsync",
            "a write is acknowledged once it is durable",
            Test("kv-storage-conformance", "what_is_acknowledged_survives_a_power_cut"),
            &["what_is_acknowledged"],
        ),
        trap(
            "vote-not-synced",
            "a vote survives a power cut",
            Test("kv-storage-conformance", "a_vote_is_durable_when_it_is_saved"),
            &["a_vote"],
        ),
        trap(
            "tail-not-truncated",
            "a truncated tail stays away",
            Test("kv-storage-conformance", "raft_truncate_append_crash"),
            &["raft_truncate"],
        ),
        trap(
            "drain-past-the-filter",
            "what is written is read, wherever it is",
            Test("kv-storage-reads", "what_is_read_is_never_older_than_what_was_there_in_memory"),
            &["what_is_read"],
        ),
        trap(
            "tail-batch-lost",
            "a copy is what was there at its close",
            Test("kv-storage-copies", "a_copy_is_what_was_there_at_its_close"),
            &["a_copy"],
        ),
        trap(
            "journal-unsynced",
            "a journal is never behind its tier",
            Test("kv-storage-journals", "a_journal_is_on_the_disk_before_its_tier"),
            &["a_journal_is_on_the_disk"],
        ),
        trap(
            "switched-before-durable",
            "an installed snapshot survives a crash",
            Test("kv-raft-kv_raft", "an_installation_survives_a_power_cut_at_any_point"),
            &["an_installation", "tests::installs::an_installation"],
        ),
        trap(
            "reserve-ignored",
            "apply finds room whatever is committed",
            Test("kv-storage-conformance", "apply_finds_room_within_one_step_of_the_drain"),
            &["apply_finds_room"],
        ),
    ]
}

/// Of bugs in what a leader answers, in sessions and in snapshots.
fn traps_of_machines() -> Vec<Trap> {
    use Catch::{Simulation, Test};
    vec![
        trap(
            "skip-read-index",
            "a leader answers reads once a quorum confirmed it",
            Simulation(&[2]),
            LINEARIZABLE,
        ),
        trap(
            "read-joins-late",
            "a read is of a point after its call",
            Test("kv-raft-kv_raft", "a_caller_never_takes_part_in_a_round_that_has_begun"),
            &["a_caller_never_takes_part", "rounds::tests::a_caller_never_takes_part"],
        ),
        trap(
            "withdrawn-proposed",
            "what is not applied for want of a turn is never applied",
            Test("kv-raft-kv_raft", "what_waits_for_its_turn_is_taken_back_and_never_applied"),
            &["what_waits_for_its_turn", "tests::pressure::what_waits_for_its_turn"],
        ),
        trap(
            "dedup-lost-in-snapshot",
            "a snapshot carries the sessions",
            Simulation(&[19, 8, 38]),
            LINEARIZABLE,
        ),
        trap(
            "snapshot-drops-values",
            "a snapshot carries all that was applied",
            Simulation(&[1]),
            &["replicas equal in the end of "],
        ),
        trap(
            "chunk-checksum-ignored",
            "a piece of a snapshot that was damaged on the way is not taken",
            Test("kv-raft-cluster", "a_transfer_goes_on_where_it_was_after_a_restart_of_the_receiver"),
            &["a_transfer_goes_on"],
        ),
        trap("resend-applied-again", "a request is applied once", Simulation(&[1]), LINEARIZABLE),
        trap(
            "found-value-kept",
            "what is kept for resends is bounded in bytes",
            Test("kv-raft-kv_raft", "what_a_comparison_found_is_not_kept"),
            &["what_a_comparison_found"],
        ),
    ]
}

/// Of bugs in what becomes of namespaces, of clocks and of revisions.
fn traps_of_namespaces() -> Vec<Trap> {
    use Catch::{Simulation, Test};
    vec![
        trap(
            "put-after-drop",
            "nothing is written behind the drop of a namespace",
            Test("kv-raft-kv_raft", "after_the_drop_nothing_is_written_and_only_the_mark_stays"),
            &["after_the_drop", "tests::drops::after_the_drop"],
        ),
        trap(
            "due-ignores-undelete",
            "a namespace that was taken back stays",
            Test("kv-raft-kv_raft", "a_deletion_with_a_grace_can_be_undone_until_it_is_due"),
            &["a_deletion_with_a_grace", "catalogue_machine::tests::a_deletion_with_a_grace"],
        ),
        trap(
            "horizon-moved-by-eviction",
            "a client whose clock is ahead locks out no other",
            Test("kv-raft-kv_raft", "a_clock_that_is_ahead_locks_out_no_other"),
            &["a_clock_that_is_ahead"],
        ),
        trap("stale-cas", "a swap takes the present revision only", Simulation(&[0]), LINEARIZABLE),
        trap("revision-reused", "a revision is used once", Simulation(&[1, 0]), LINEARIZABLE),
        trap(
            "timeout-as-refusal",
            "what may yet be applied is unknown, not refused",
            Simulation(&[8]),
            LINEARIZABLE,
        ),
    ]
}

/// Of bugs in available namespaces.
fn traps_of_available() -> Vec<Trap> {
    use Catch::{Scenario, Simulation, Test};
    vec![
        trap("forget-hint", "a hint is kept until it is delivered", Simulation(&[6]), LOST),
        trap(
            "hints-in-memory-only",
            "a hint survives the process that holds it",
            Scenario("hint-holders", 1),
            &["replicas converge of "],
        ),
        trap("drop-sibling", "concurrent values are all kept", Simulation(&[0]), LOST),
        trap("ignore-context", "a write supersedes what its context covers, no more", Simulation(&[0]), LOST),
        trap("merge-by-arrival", "replicas merge, whatever arrives first", Simulation(&[1, 0]), LOST),
        trap(
            "observed-resend-supersedes",
            "a resend supersedes nothing that it did not see",
            Test("kv-dynamo-cluster", "a_resend_that_left_no_trace_is_a_sibling_wherever_it_arrives"),
            &["a_resend"],
        ),
        trap("incarnation-reused", "a dot is minted once", Simulation(&[0]), LOST),
        trap(
            "strip-ahead",
            "a record keeps what it claims until the node clock has it",
            Test("kv-dynamo-kv_dynamo", "a_late_hint_brings_nothing_back"),
            &["a_late_hint", "replica::tests::stripped::a_late_hint"],
        ),
        trap(
            "absence-from-no-knowledge",
            "only who keeps a key can say that it is absent",
            Simulation(&[0]),
            &["no false absence of "],
        ),
        trap("read-repair-drops", "repair hands over values with their context", Simulation(&[0]), LOST),
        trap(
            "silence-as-ack",
            "silence is no acknowledgement",
            Simulation(&[10]),
            &["no stale read of ", "no acknowledged write lost of "],
        ),
        trap(
            "empty-disk-speaks",
            "a node without its disk asks before it speaks",
            Test("kv-dynamo-cluster", "a_wiped_node_pulls_before_it_serves"),
            &["a_wiped_node", "pulls::a_wiped_node"],
        ),
    ]
}

/// Of bugs in what a replica keeps to converge, and in what a read promises.
fn traps_of_replicas() -> Vec<Trap> {
    use Catch::Test;
    vec![
        trap(
            "log-without-record",
            "who asks for missing writes gets their records",
            Test("kv-dynamo-kv_dynamo", "who_lacks_some_writes_gets_the_records_of_their_keys_alone"),
            &["who_lacks", "replica::tests::dot_log::who_lacks"],
        ),
        trap(
            "read-unsettled",
            "a read misses nothing that an earlier one showed",
            Test("kv-dynamo-cluster", "what_a_read_has_shown_no_later_read_misses"),
            &["what_a_read_has_shown", "promises::what_a_read_has_shown"],
        ),
        trap(
            "clock-without-log",
            "a node clock survives a start",
            Test("kv-dynamo-kv_dynamo", "a_clock_is_its_row_and_what_the_log_got_since"),
            &["a_clock_is_its_row", "replica::tests::promises::a_clock_is_its_row"],
        ),
        trap(
            "log-trimmed-early",
            "a node clock survives what its log gives up",
            Test("kv-dynamo-kv_dynamo", "a_clock_is_its_row_and_what_the_log_got_since"),
            &["a_clock_is_its_row", "replica::tests::promises::a_clock_is_its_row"],
        ),
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
    /// Processes at once. Scenarios run alone: they measure time.
    pub jobs: usize,
}

/// What became of a bug.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The bug.
    pub mutant: String,
    /// The promise that it breaks, in words.
    pub breaks: String,
    /// What caught it, or should have.
    pub caught_by: String,
    /// Whether it was caught.
    pub caught: bool,
    /// The seed that caught it.
    pub seed: Option<u64>,
    /// Seconds until it was caught, runs before it included.
    pub seconds: f64,
    /// The property that turned red, or what was said instead.
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

/// A row for people, while the others still run.
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

/// All rows as a table in Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| mutant | what it breaks | caught by | property | seed | seconds |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let caught_by = match (row.caught, row.clean) {
            (true, true) => row.caught_by.clone(),
            (true, false) => format!("**not green without it**: {}", row.caught_by),
            (false, _) => format!("**missed** by {}", row.caught_by),
        };
        // The particulars of a finding name keys and nodes of one run.
        let property = row.property.split_once(": ").map_or(row.property.as_str(), |(name, _)| name);
        let seed = row.seed.map_or("-".to_owned(), |seed| seed.to_string());
        let Row { mutant, breaks, seconds, .. } = row;
        text.push_str(&format!(
            "| `{mutant}` | {breaks} | {caught_by} | {property} | {seed} | {seconds:.1} |\n"
        ));
    }
    text
}

/// What a process said.
#[derive(Debug, Clone)]
struct Verdict {
    /// Everything that it found, what is broken first.
    found: Vec<String>,
    /// It found something, in an orderly way.
    red: bool,
    green: bool,
}

/// What all traps share.
#[derive(Debug)]
struct Traps {
    programs: PathBuf,
    out: PathBuf,
    /// Runs without a bug, by trap: several bugs are caught by the same one.
    clean: Mutex<BTreeMap<String, Arc<OnceCell<Verdict>>>>,
}

/// Sets every trap and tells `say` of each row as it comes. Writes `mutants.json`, whose rows are in the
/// order of the traps.
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
    let shared = Traps { programs, out: options.out.clone(), clean: Mutex::default() };
    let wanted = traps
        .iter()
        .enumerate()
        .filter(|(_, trap)| options.only.is_empty() || options.only.iter().any(|name| name == trap.mutant));
    let (alone, together): (Vec<_>, Vec<_>) =
        wanted.partition(|(_, trap)| matches!(trap.catch, Catch::Scenario(..)));
    let mut rows = BTreeMap::new();
    for (wanted, jobs) in [(together, options.jobs.max(1)), (alone, 1)] {
        let set = wanted.into_iter().map(async |(at, trap)| (at, shared.set(trap).await));
        let mut set = std::pin::pin!(stream::iter(set).buffer_unordered(jobs));
        while let Some((at, row)) = set.next().await {
            let row = row?;
            say(&row);
            rows.insert(at, row);
            // After each: a long table that is interrupted leaves what it found.
            write(&options.out, &rows.values().collect::<Vec<_>>())?;
        }
    }
    Ok(rows.into_values().collect())
}

fn write(out: &Path, rows: &[&Row]) -> Result<(), Broke> {
    let file = out.join("mutants.json");
    std::fs::create_dir_all(out).map_err(|error| io_error(&out.display().to_string(), error))?;
    let text = serde_json::to_string_pretty(rows)
        .map_err(|error| io_error("the table of seeded bugs", error.into()))?;
    std::fs::write(&file, text + "\n").map_err(|error| io_error(&file.display().to_string(), error))
}

fn io_error(file: &str, source: io::Error) -> Broke {
    Broke::File { file: file.to_owned(), source }
}

/// The seeds of a trap, in the order in which they are tried.
fn seeds(catch: Catch) -> Vec<u64> {
    match catch {
        Catch::Simulation(first) => {
            first.iter().copied().chain(SEEDS.filter(|seed| !first.contains(seed))).collect()
        }
        Catch::Scenario(_, seed) => vec![seed],
        Catch::Test(..) => vec![0],
    }
}

impl Traps {
    async fn set(&self, trap: &Trap) -> Result<Row, Broke> {
        let begun = Instant::now();
        let (caught_by, seeded) = match trap.catch {
            Catch::Simulation(_) => ("simulation".to_owned(), true),
            Catch::Scenario(name, _) => (format!("scenario {name}"), true),
            Catch::Test(program, test) => (format!("test {program} {test}"), false),
        };
        let mut row = Row {
            mutant: trap.mutant.to_owned(),
            breaks: trap.breaks.to_owned(),
            caught_by,
            caught: false,
            seed: None,
            seconds: 0.0,
            property: "nothing was red".into(),
            clean: true,
            clean_said: String::new(),
        };
        for seed in seeds(trap.catch) {
            if begun.elapsed() > BUDGET {
                break;
            }
            let bugged = self.ask(trap.catch, seed, Some(trap.mutant)).await?;
            row.seconds = begun.elapsed().as_secs_f64();
            let caught = bugged.found.iter().find(|found| trap.by.iter().any(|by| found.starts_with(by)));
            let Some(caught) = caught.filter(|_| bugged.red) else {
                if let Some(other) = bugged.found.first() {
                    row.property = format!("seed {seed} said something else: {other}");
                }
                continue;
            };
            (row.caught, row.seed, row.property) = (true, seeded.then_some(seed), caught.clone());
            // The same run without the bug: otherwise it was no alarm.
            let clean = self.ask_clean(trap.catch, seed).await?;
            row.clean = clean.green;
            if !clean.green {
                row.clean_said = clean.found.join("; ");
            }
            break;
        }
        Ok(row)
    }

    async fn ask_clean(&self, catch: Catch, seed: u64) -> Result<Verdict, Broke> {
        let (program, words) = call(catch, seed, None, Path::new(""));
        let key = format!("{program} {}", words.join(" "));
        let asked = {
            let mut clean = self.clean.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(clean.entry(key).or_default())
        };
        asked.get_or_try_init(|| self.ask(catch, seed, None)).await.cloned()
    }

    async fn ask(&self, catch: Catch, seed: u64, mutant: Option<&str>) -> Result<Verdict, Broke> {
        let folder = self.out.join("mutants").join(mutant.unwrap_or("clean"));
        let (name, arguments) = call(catch, seed, mutant, &folder);
        let program = self.programs.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
        let mut command = Command::new(&program);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        // A scenario's servers take it over from the harness that starts them.
        match mutant {
            Some(mutant) if !matches!(catch, Catch::Simulation(_)) => command.env(VARIABLE, mutant),
            _ => command.env_remove(VARIABLE),
        };
        Ok(match timeout(ONE_RUN, command.output()).await {
            Ok(output) => {
                judge(catch, &output.map_err(|error| io_error(&program.display().to_string(), error))?)
            }
            Err(_) => Verdict { found: vec!["it did not end in time".into()], red: false, green: false },
        })
    }
}

fn call(catch: Catch, seed: u64, mutant: Option<&str>, folder: &Path) -> (&'static str, Vec<String>) {
    let seed = seed.to_string();
    let folder = folder.display().to_string();
    let (name, words) = match catch {
        Catch::Simulation(_) => {
            let named = mutant.map(|mutant| ["--mutant", mutant]);
            let words = ["seed", &seed, "--out", &folder].into_iter().chain(named.into_iter().flatten());
            ("kv-sim", words.map(str::to_owned).collect())
        }
        Catch::Scenario(scenario, _) => {
            let words = ["run", scenario, "--seed", &seed, "--quiet", "--json", "--out", &folder];
            ("jepsen-tests", words.map(str::to_owned).to_vec())
        }
        Catch::Test(program, test) => (program, vec![test.to_owned()]),
    };
    (name, words)
}

fn judge(catch: Catch, output: &Output) -> Verdict {
    let said = String::from_utf8_lossy(&output.stdout);
    let code = output.status.code();
    if let Catch::Test(_, test) = catch {
        let said_of = |what: &str| {
            said.lines().any(|line| {
                line.starts_with("test ") && line.contains(test) && line.trim_end().ends_with(what)
            })
        };
        // Without a test of that name a test program is content.
        let (red, green) =
            (code == Some(TEST_RED) && said_of("FAILED"), code == Some(GREEN) && said_of("ok"));
        let panicked = said.lines().find(|line| line.contains("panicked at")).unwrap_or_default();
        let found = if green { Vec::new() } else { vec![short(&format!("{test}: {panicked}"))] };
        return Verdict { found, red, green };
    }
    // A process that dies leaves no summary.
    let Ok(summary) = serde_json::from_str::<Value>(&said) else {
        let words = String::from_utf8_lossy(&output.stderr);
        let found = vec![short(words.lines().last().unwrap_or("it said nothing"))];
        return Verdict { found, red: false, green: false };
    };
    let found = findings(&summary);
    // A fault that is not proven makes a scenario say nothing, which is all that it may say then.
    let red = match catch {
        Catch::Scenario(..) => code == Some(RED) || code == Some(SHOWS_NOTHING),
        _ => code == Some(RED),
    };
    Verdict { found, red, green: code == Some(GREEN) }
}

/// What a summary says is broken: properties first, then coverage that is missing, then words.
fn findings(summary: &Value) -> Vec<String> {
    let text = |of: &Value, name: &str| of.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |path: &str| summary.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut found: Vec<String> = ["/properties", "/judgement/properties"]
        .iter()
        .flat_map(|path| list(path))
        .filter(|property| text(property, "ruling") == "invalid")
        .map(|property| {
            let (name, ns, detail) =
                (text(&property, "name"), text(&property, "ns"), text(&property, "detail"));
            short(&format!("{name} of {ns}: {detail}"))
        })
        .collect();
    let missing = list("/coverage").into_iter().filter(|row| row.get("enough") == Some(&Value::Bool(false)));
    found.extend(missing.map(|row| short(&format!("{}: {}", text(&row, "name"), text(&row, "got")))));
    for path in ["/broken", "/reasons"] {
        found.extend(list(path).iter().filter_map(|word| word.as_str().map(short)));
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
            "coverage": [
                {"name": "faults proven in force", "got": "0 of 1", "enough": false},
                {"name": "elections", "got": "3", "enough": true}
            ],
            "broken": ["replicas differ"]
        });
        let wanted = ["linearizable of bank: key 3", "faults proven in force: 0 of 1", "replicas differ"];
        assert_eq!(findings(&summary), wanted);
        assert!(findings(&Value::Null).is_empty());
    }

    #[test]
    fn calls_name_the_bug_where_the_program_takes_it() {
        let words = |catch: Catch, mutant| call(catch, 7, mutant, Path::new("out")).1.join(" ");
        let simulation = Catch::Simulation(&[]);
        assert_eq!(words(simulation, Some("x")), "seed 7 --out out --mutant x");
        assert_eq!(words(simulation, None), "seed 7 --out out");
        let scenario = Catch::Scenario("ring", 1);
        assert_eq!(words(scenario, Some("x")), "run ring --seed 7 --quiet --json --out out");
    }

    #[test]
    fn the_seeds_that_caught_it_before_come_first() {
        let seeds = seeds(Catch::Simulation(&[7, 99]));
        assert_eq!(seeds.get(..4), Some([7, 99, 0, 1].as_slice()));
        assert_eq!(seeds.iter().filter(|seed| **seed == 7).count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn what_dies_and_what_tests_nothing_is_neither_red_nor_green() {
        use std::os::unix::process::ExitStatusExt;
        use std::process::ExitStatus;
        let ended = |catch, code: i32, said: &str| {
            let output = Output {
                status: ExitStatus::from_raw(code << 8),
                stdout: said.as_bytes().to_vec(),
                stderr: b"thread panicked".to_vec(),
            };
            let verdict = judge(catch, &output);
            (verdict.red, verdict.green)
        };
        let simulation = Catch::Simulation(&[]);
        assert_eq!(ended(simulation, 101, ""), (false, false));
        assert_eq!(ended(simulation, 1, ""), (false, false));
        assert_eq!(ended(simulation, 1, "{}"), (true, false));
        assert_eq!(ended(simulation, 2, "{}"), (false, false));
        assert_eq!(ended(simulation, 0, "{}"), (false, true));
        assert_eq!(ended(Catch::Scenario("ring", 1), 2, "{}"), (true, false));
        let test = Catch::Test("conformance", "votes");
        assert_eq!(ended(test, 0, "test result: ok. 0 passed"), (false, false));
        assert_eq!(ended(test, 0, "test real::votes ... ok"), (false, true));
        assert_eq!(ended(test, 101, "test real::votes ... FAILED"), (true, false));
        assert_eq!(ended(test, 101, ""), (false, false));
    }
}
