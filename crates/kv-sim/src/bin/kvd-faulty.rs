//! `kvd-faulty`: the program that `kvd` is, with a disk that forgets what was not synced, a lower tier that
//! stalls and a clock that lies when told to. For tests only.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use kv_env::Env;
use kv_server::NodeEnv;
use kv_server::program::{self, Arguments};
use kv_sim::faulty::clock::FaultyClock;
use kv_sim::faulty::control::{self, Parts};
use kv_sim::faulty::disk::LossyDisk;
use kv_sim::faulty::tier::TierFaults;

/// A node whose disk and clock fail on demand. A kill is a power cut: unsynced bytes die with the process.
#[derive(Debug, Parser)]
#[command(name = "kvd-faulty", version)]
struct KvdFaulty {
    #[command(flatten)]
    arguments: Arguments,
    /// A socket that takes commands, one JSON line each, such as {"do":"status"}.
    #[arg(long, env = "KVD_FAULTY_CONTROL", value_name = "PATH")]
    control: Option<PathBuf>,
    /// Decides which unsynced sectors reach the disk early.
    #[arg(long, env = "KVD_FAULTY_SEED", default_value_t = 0)]
    seed: u64,
    /// A seeded bug that this node shall have; only in a build with them.
    #[arg(long, env = "KVD_FAULTY_MUTANT", value_name = "NAME")]
    mutant: Option<String>,
}

fn main() -> ExitCode {
    let KvdFaulty { arguments, control, seed, mutant } = KvdFaulty::parse();
    let refuse = |why: String| {
        let _ = writeln!(std::io::stderr(), "kvd-faulty: {why}");
        ExitCode::from(2)
    };
    if let Some(name) = &mutant
        && let Err(why) = kv_sim::faulty::choose_mutant(name)
    {
        return refuse(why);
    }
    let parts = Parts {
        disk: LossyDisk::new(seed),
        tier: TierFaults::default(),
        clock: FaultyClock::default(),
        mutant,
    };
    let (real, tier) = (NodeEnv::real(), parts.tier.clone());
    let node_env = NodeEnv {
        env: Env { clock: Arc::new(parts.clock.clone()), ..real.env },
        disk: Arc::new(parts.disk.clone()),
        tiers: Arc::new(move |named| tier.over(named)),
        ..real
    };
    if let Some(path) = &control
        && let Err(error) = control::listen(path, parts)
    {
        return refuse(format!("cannot listen on {}: {error}", path.display()));
    }
    program::run("kvd-faulty", &arguments, node_env)
}
