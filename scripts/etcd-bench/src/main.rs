//! Quorate beside etcd: three nodes of each on this machine, the same load on both in turns, and a table of
//! medians. Both sync their logs before they answer. `scripts/bench-etcd` runs it.

mod etcdserverpb;
mod load;
mod servers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kv_client::Via;
use serde_json::json;

use load::{Found, Plan, Store, Workload};

type Problem = Box<dyn std::error::Error + Send + Sync>;

/// Compares Quorate with the etcd on the PATH.
#[derive(Debug, Parser)]
#[command(before_help = "\
Examples:
  scripts/bench-etcd                                     every workload, some 25 minutes
  scripts/bench-etcd --workloads put-new,get --in-flight 64 --seconds 60")]
struct Arguments {
    /// What is done
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["put-new", "put-hot", "get", "mixed", "available-put", "available-get"])]
    workloads: Vec<Workload>,
    /// Operations in flight
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    in_flight: Vec<usize>,
    /// Rounds; in each all stores take their turn, and the table has the medians
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of one run
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Keys that are written first
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 100)]
    value: usize,
    /// The server of Quorate [default: beside this program]
    #[arg(long)]
    kvd: Option<PathBuf>,
    /// Where data goes; what is there is removed
    #[arg(long, default_value = "target/bench-etcd")]
    dir: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(Problem::from).and_then(|runtime| runtime.block_on(compare(&arguments))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("bench-etcd: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// What a column of the table is about.
type Row = (usize, usize);

async fn compare(arguments: &Arguments) -> Result<(), Problem> {
    let Some(etcd) = servers::on_path("etcd") else {
        return Err("there is no etcd on the PATH. Get one with `apt-get install etcd-server` (Debian, Ubuntu) or \
                    `brew install etcd`, or unpack a release of github.com/etcd-io/etcd and add its folder to the PATH"
            .into());
    };
    let beside = std::env::current_exe()?.with_file_name("kvd");
    let kvd = arguments.kvd.clone().unwrap_or(beside);
    if !kvd.is_file() {
        return Err(format!(
            "no kvd at {}: build it with `cargo build --release -p kv-server`",
            kvd.display()
        )
        .into());
    }
    if arguments.dir.exists() {
        std::fs::remove_dir_all(&arguments.dir)?;
    }
    let dirs = ["quorate", "etcd"].map(|name| arguments.dir.join(name));
    for dir in &dirs {
        std::fs::create_dir_all(dir)?;
    }
    let [quorate, other] = dirs.map(|dir| dir.canonicalize());
    let quorate = Arc::new(servers::quorate(&kvd, &quorate?).await?);
    let etcd = Arc::new(servers::etcd(&etcd, &other?).await?);
    let next = Arc::new(AtomicU64::new(arguments.keys));
    let store = |name, servers: &Arc<servers::Servers>, via, next: &Arc<AtomicU64>| Store {
        name,
        servers: servers.clone(),
        via,
        next: next.clone(),
    };
    let stores = [
        store("etcd", &etcd, None, &Arc::new(AtomicU64::new(arguments.keys))),
        store("session", &quorate, Some(Via::Session), &next),
        store("unary", &quorate, Some(Via::Unary), &next),
    ];
    eprintln!("writing {} keys to each store", arguments.keys);
    let [etcd, session, _] = &stores;
    etcd.preload(false, arguments.keys, arguments.value).await?;
    session.preload(false, arguments.keys, arguments.value).await?;
    session.preload(true, arguments.keys, arguments.value).await?;
    let measured = measure(arguments, &stores).await?;
    println!("{}", table(arguments, &measured));
    Ok(())
}

/// What each store found in each round, by row of the table.
type Measured = BTreeMap<Row, BTreeMap<&'static str, Vec<Found>>>;

async fn measure(arguments: &Arguments, stores: &[Store]) -> Result<Measured, Problem> {
    let mut measured = Measured::new();
    for round in 1..=arguments.rounds {
        for (place, workload) in arguments.workloads.iter().enumerate() {
            for (column, in_flight) in arguments.in_flight.iter().enumerate() {
                for store in stores {
                    let plan = Plan {
                        workload: *workload,
                        in_flight: *in_flight,
                        lasting: Duration::from_secs(arguments.seconds),
                        hot: arguments.keys,
                        value: arguments.value,
                    };
                    let found = store.run(plan).await?;
                    let name = word(*workload);
                    eprintln!(
                        "round {round} of {}: {name}, {in_flight} in flight, {}: {:.0}/s, p99 {:.1} ms",
                        arguments.rounds, store.name, found.per_second, found.p99_ms
                    );
                    println!(
                        "{}",
                        json!({
                            "round": round, "workload": name, "in_flight": in_flight, "store": store.name,
                            "per_second": found.per_second, "p50_ms": found.p50_ms, "p99_ms": found.p99_ms,
                            "cpu_s_per_10k": found.cpu, "failed": found.failed,
                        })
                    );
                    let row = measured.entry((place, column)).or_default();
                    row.entry(store.name).or_default().push(found);
                }
            }
        }
    }
    Ok(measured)
}

fn word(workload: Workload) -> String {
    workload.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn median(found: &[Found], of: fn(&Found) -> f64) -> f64 {
    let mut figures: Vec<f64> = found.iter().map(of).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}

fn table(arguments: &Arguments, measured: &Measured) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header([
        "workload",
        "in flight",
        "store",
        "per second",
        "of etcd",
        "p50 ms",
        "p99 ms",
        "CPU s / 10,000",
        "failed",
    ]);
    for ((place, column), stores) in measured {
        let workload = arguments.workloads.get(*place).copied().map(word).unwrap_or_default();
        let in_flight = arguments.in_flight.get(*column).copied().unwrap_or(0);
        let base = stores.get("etcd").map_or(0.0, |found| median(found, |found| found.per_second));
        for (name, found) in stores {
            let per_second = median(found, |found| found.per_second);
            table.add_row([
                workload.clone(),
                in_flight.to_string(),
                (*name).to_owned(),
                format!("{per_second:.0}"),
                format!("{:.1}", per_second / base.max(1.0)),
                format!("{:.2}", median(found, |found| found.p50_ms)),
                format!("{:.2}", median(found, |found| found.p99_ms)),
                format!("{:.2}", median(found, |found| found.cpu)),
                found.iter().map(|found| found.failed).sum::<u64>().to_string(),
            ]);
        }
    }
    table
}
