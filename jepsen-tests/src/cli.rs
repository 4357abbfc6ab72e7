//! The command line. Verdicts go to standard output, progress to standard error.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use kv_check::judge::Ruling;
use kv_lab::interrupted;
use kv_report::Coverage;

use crate::options::RunOptions;
use crate::run::{replay, run};
use crate::scenario::{BUILT_IN, Mode, Scenario};
use crate::soak::{Row, SMOKE, exit_code, one, soak, tally};
use crate::summary::Summary;
use crate::{Broke, check, mutants};

/// Prints a line of a result. A reader that has read enough is no reason to end otherwise.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// Exit code for arguments that make no sense, as Jepsen's.
const BAD_ARGUMENTS: u8 = 254;
/// Exit code when the harness itself broke.
const BROKEN: u8 = 255;
/// The program of the simulation, found beside this one.
const SIMULATION: &str = "kv-sim";
/// Reasons that are printed for one run in a table.
const MOST_REASONS: usize = 3;

/// Cuts, kills and pauses a cluster, records everything, and judges what its clients saw.
#[derive(Debug, Parser)]
#[command(
    name = "jepsen-tests",
    version,
    after_help = "Exit codes: 0 valid, 1 invalid, 2 unknown, 254 bad arguments, 255 the harness broke."
)]
pub struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Runs one scenario and judges it
    Run(RunArgs),
    /// Runs the matrix that every change has to pass, in less than six minutes
    Smoke(SmokeArgs),
    /// Runs random scenarios until the time is over; goes on after failures
    Soak(SoakArgs),
    /// Shows the scenarios that come along
    List(ListArgs),
    /// Checks that the alarms ring: every seeded bug is caught, and the same run without it is green
    Mutants(MutantsArgs),
    /// Runs the recorded schedule of an earlier run again
    Replay(ReplayArgs),
    /// Judges recorded histories, ours and those of others
    Check(check::CheckArgs),
    /// Runs the seeded simulation: the same as `kv-sim`, with the same arguments
    #[command(disable_help_flag = true)]
    Sim {
        /// Arguments of kv-sim; `--help` shows them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct MutantsArgs {
    /// Only these bugs
    #[arg(value_name = "NAME")]
    only: Vec<String>,
    /// The folder of the programs with the seeded bugs (`cargo xtask mutants`); that of this one without it
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Where the table and the runs are written
    #[arg(long, default_value = "target/jepsen", value_name = "DIR")]
    out: PathBuf,
    /// Processes at once
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

/// What all runs take.
#[derive(Debug, Args)]
struct Common {
    /// First port; without it a free range is found
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "PORT")]
    port_base: u16,
    /// The server program; otherwise it is looked for beside this one
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
    /// A further argument for every server, such as `--mutant=NAME`; may be repeated
    #[arg(long = "server-arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    server_arguments: Vec<String>,
    /// Keep the data of the nodes
    #[arg(long)]
    keep_data: bool,
    /// Print the verdict as JSON
    #[arg(long)]
    json: bool,
    /// No progress on standard error
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// A file, or the name of a scenario that `list` shows
    scenario: String,
    /// All choices come from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where everything is written; target/jepsen/SCENARIO/SEED without it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct SmokeArgs {
    /// All choices come from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where everything is written
    #[arg(long, default_value = "target/jepsen", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct SoakArgs {
    /// Minutes; a run that has begun is finished
    #[arg(long)]
    minutes: f64,
    /// The first seed; each run takes the next one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where everything is written
    #[arg(long, default_value = "target/jepsen/soak", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ReplayArgs {
    /// The folder of the earlier run
    dir: PathBuf,
    /// Where everything is written; DIR-replay without it
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

impl Common {
    fn options(&self, seed: u64, out: impl Into<PathBuf>) -> RunOptions {
        RunOptions {
            port_base: self.port_base,
            server: self.server.clone(),
            server_arguments: self.server_arguments.clone(),
            keep_data: self.keep_data,
            quiet: self.quiet,
            ..RunOptions::new(seed, out)
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { BAD_ARGUMENTS } else { 0 });
        }
    };
    // Judging and simulating need no runtime.
    match &cli.task {
        Task::Check(args) => return check::run(args),
        Task::List(args) => return list(args),
        Task::Sim { arguments } => return simulate(arguments),
        _ => {}
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return broke(&format!("cannot start: {error}")),
    };
    runtime.block_on(async {
        match cli.task {
            Task::Run(args) => run_one(&args).await,
            Task::Replay(args) => replay_one(&args).await,
            Task::Smoke(args) => smoke(&args).await,
            Task::Soak(args) => soak_for(&args).await,
            Task::Mutants(args) => mutants(args).await,
            Task::Check(_) | Task::List(_) | Task::Sim { .. } => ExitCode::SUCCESS,
        }
    })
}

async fn mutants(args: MutantsArgs) -> ExitCode {
    let MutantsArgs { only, programs, out, jobs } = args;
    let say = |row: &mutants::Row| eprintln!("{}", mutants::line(row));
    match mutants::run(&mutants::Options { programs, out, only, jobs }, say).await {
        Ok(rows) => {
            print!("{}", mutants::markdown(&rows));
            match rows.iter().all(mutants::Row::works) {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }
        }
        Err(broken) => failed(&broken),
    }
}

async fn run_one(args: &RunArgs) -> ExitCode {
    let scenario = match Scenario::find(&args.scenario) {
        Ok(scenario) => scenario,
        Err(mistake) => return failed(&mistake.into()),
    };
    let out = args.out.clone().unwrap_or_else(|| scenario.default_out(args.seed));
    let options = args.common.options(args.seed, out);
    if !args.common.quiet {
        eprintln!("{}, seed {}: {}", scenario.name, args.seed, scenario.about);
    }
    conclude(run(&scenario, &options), &options.out, args.common.json).await
}

async fn replay_one(args: &ReplayArgs) -> ExitCode {
    let out = args.out.clone().unwrap_or_else(|| {
        let name = args.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        args.dir.with_file_name(format!("{name}-replay"))
    });
    let options = args.common.options(0, out.clone());
    conclude(replay(&args.dir, options), &out, args.common.json).await
}

async fn conclude(
    run: impl Future<Output = Result<crate::verdict::Verdict, Broke>>,
    out: &Path,
    json: bool,
) -> ExitCode {
    let outcome = tokio::select! {
        biased;
        signal = interrupted() => return ExitCode::from(signal.exit_code()),
        outcome = run => outcome,
    };
    match outcome {
        Ok(verdict) => {
            let summary = &verdict.summary;
            match json {
                true => say!("{}", serde_json::to_string_pretty(summary).unwrap_or_default()),
                false => show(summary, out),
            }
            ExitCode::from(code(summary.ruling))
        }
        Err(broke) => failed(&broke),
    }
}

async fn smoke(args: &SmokeArgs) -> ExitCode {
    let mut rows = Vec::new();
    for name in SMOKE {
        let scenario = match Scenario::find(name) {
            Ok(scenario) => scenario,
            Err(mistake) => return failed(&mistake.into()),
        };
        let options = args.common.options(args.seed, args.out.join(name).join(args.seed.to_string()));
        if !args.common.quiet {
            eprintln!("{name}, seed {}: {}", args.seed, scenario.about);
        }
        let row = tokio::select! {
            biased;
            signal = interrupted() => return ExitCode::from(signal.exit_code()),
            row = one(&scenario, &options) => row,
        };
        tell(&row, args.common.quiet);
        rows.push(row);
    }
    several(&rows, args.common.json)
}

async fn soak_for(args: &SoakArgs) -> ExitCode {
    let base = RunOptions { quiet: true, ..args.common.options(args.seed, &args.out) };
    let rows = soak(args.minutes, args.seed, &args.out, &base, |row| tell(row, args.common.quiet)).await;
    several(&rows, args.common.json)
}

fn tell(row: &Row, quiet: bool) {
    if quiet {
        return;
    }
    let (proven, planned) = row.faults;
    let ruling = row.ruling.map_or("BROKEN".to_owned(), |ruling| ruling.name().to_uppercase());
    eprintln!(
        "  {ruling}: {} seed {}, {:.0} s, {proven} of {planned} faults proven",
        row.scenario, row.seed, row.seconds
    );
    for reason in row.reasons.iter().take(MOST_REASONS) {
        eprintln!("    {}", first_line(reason));
    }
}

fn several(rows: &[Row], json: bool) -> ExitCode {
    if json {
        say!("{}", serde_json::to_string_pretty(rows).unwrap_or_default());
        return ExitCode::from(exit_code(rows));
    }
    let mut table =
        table(&["scenario", "runs", "valid", "invalid", "unknown", "broken", "operations", "seconds"]);
    for (scenario, [valid, invalid, unknown, broken]) in tally(rows) {
        let mine = || rows.iter().filter(|row| row.scenario == scenario);
        table.add_row(vec![
            scenario.clone(),
            mine().count().to_string(),
            valid.to_string(),
            invalid.to_string(),
            unknown.to_string(),
            broken.to_string(),
            mine().map(|row| row.operations).sum::<u64>().to_string(),
            format!("{:.0}", mine().map(|row| row.seconds).sum::<f64>()),
        ]);
    }
    say!("{table}");
    for row in rows.iter().filter(|row| row.exit_code() != 0) {
        let ruling = row.ruling.map_or("broken", Ruling::name);
        say!("\n{ruling}: {} seed {}\n  jepsen-tests replay {}", row.scenario, row.seed, row.out.display());
        for reason in row.reasons.iter().take(MOST_REASONS) {
            say!("  {}", first_line(reason));
        }
    }
    let count = |code: u8| rows.iter().filter(|row| row.exit_code() == code).count();
    say!(
        "\n{} runs: {} valid, {} invalid, {} unknown, {} broken",
        rows.len(),
        count(0),
        count(1),
        count(2),
        count(BROKEN)
    );
    ExitCode::from(exit_code(rows))
}

fn show(summary: &Summary, out: &Path) {
    say!(
        "{}: {}, seed {}, {:.0} s",
        summary.ruling.name().to_uppercase(),
        summary.scenario,
        summary.seed,
        summary.seconds
    );
    let missing: Vec<&Coverage> = summary.coverage.iter().filter(|row| !row.enough).collect();
    let mut coverage = table(&["what had to happen", "wanted", "got", ""]);
    for row in &summary.coverage {
        coverage.add_row(vec![
            row.name.as_str(),
            &row.wanted,
            &row.got,
            if row.enough { "" } else { "TOO LITTLE" },
        ]);
    }
    say!("\n{coverage}");
    let mut properties = table(&["namespace", "property", "checker", "examined", "verdict", ""]);
    for property in &summary.properties {
        let detail = first_line(&property.detail);
        let verdict = if property.ruling == Ruling::Valid {
            "valid".to_owned()
        } else {
            property.ruling.name().to_uppercase()
        };
        properties.add_row(vec![
            property.ns.clone(),
            property.name.clone(),
            property.checker.clone(),
            property.examined.to_string(),
            verdict,
            detail,
        ]);
    }
    say!("\n{properties}");
    if !missing.is_empty() {
        say!(
            "\nToo little happened for a verdict: {}",
            missing.iter().map(|row| row.name.as_str()).collect::<Vec<_>>().join("; ")
        );
    }
    say!("\nreport  {}\nreplay  {}", out.join("report.html").display(), summary.replay);
}

fn table(head: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(head.to_vec());
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table
}

fn first_line(text: &str) -> String {
    const LONGEST: usize = 100;
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or_default()),
        None => line.to_owned(),
    }
}

fn list(args: &ListArgs) -> ExitCode {
    let mut rows = Vec::new();
    for (name, _) in BUILT_IN {
        match Scenario::find(name) {
            Ok(scenario) => rows.push(scenario),
            Err(mistake) => return failed(&mistake.into()),
        }
    }
    if args.json {
        let rows: Vec<_> =
            rows.iter().map(|s| serde_json::json!({"name": s.name, "about": s.about})).collect();
        say!("{}", serde_json::to_string_pretty(&rows).unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    let mut table = table(&["scenario", "namespaces", "faults", "about"]);
    for scenario in rows {
        let count = |mode| scenario.namespaces.iter().filter(|namespace| namespace.mode == mode).count();
        let namespaces = format!("{} strong, {} available", count(Mode::Strong), count(Mode::Available));
        let mut faults: Vec<&str> = scenario.faults.iter().map(|fault| fault.kind.name()).collect();
        faults.dedup();
        table.add_row(vec![scenario.name.clone(), namespaces, faults.join(", "), scenario.about.clone()]);
    }
    say!("{table}");
    ExitCode::SUCCESS
}

/// Becomes the simulation: found beside this program, with the same arguments and its exit code.
fn simulate(arguments: &[String]) -> ExitCode {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(SIMULATION)));
    let Some(program) = beside.filter(|program| program.is_file()) else {
        return broke("kv-sim is not beside this program\n  try: cargo build -p kv-sim");
    };
    match std::process::Command::new(&program).args(arguments).status() {
        Ok(status) => {
            ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(BROKEN))
        }
        Err(error) => broke(&format!("cannot start {}: {error}", program.display())),
    }
}

fn code(ruling: Ruling) -> u8 {
    match ruling {
        Ruling::Valid => 0,
        Ruling::Invalid => 1,
        Ruling::Unknown => 2,
    }
}

fn failed(why: &Broke) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::from(why.exit_code())
}

fn broke(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::from(BROKEN)
}
