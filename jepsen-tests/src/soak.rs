//! Many runs: the scenarios that come along, and random ones composed from a seed. A failure is kept and the
//! soak goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_check::judge::Ruling;
use kv_lab::interrupted;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::options::RunOptions;
use crate::plan::Schedule;
use crate::run::run;
use crate::scenario::{BUILT_IN, Mistake, Plane, Scenario};

/// The matrix of `smoke`: both modes; the leader in the minority and in the majority; kill, pause, lossy
/// disk.
pub const SMOKE: [&str; 5] =
    ["majority-cut", "leader-in-minority", "kill-leader", "pause-leader", "lossy-disks"];

/// How often a soak composes a scenario of its own, of so many runs.
const COMPOSED: u64 = 2;

/// How one of many runs ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// The scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// The verdict; none when the harness broke.
    pub ruling: Option<Ruling>,
    /// Seconds it took.
    pub seconds: f64,
    /// Faults proven, of those planned.
    pub faults: (u64, u64),
    /// Operations recorded.
    pub operations: u64,
    /// Why it is not valid.
    pub reasons: Vec<String>,
    /// Where everything is.
    pub out: PathBuf,
}

impl Row {
    /// Its exit code.
    pub fn exit_code(&self) -> u8 {
        match self.ruling {
            Some(Ruling::Valid) => 0,
            Some(Ruling::Invalid) => 1,
            Some(Ruling::Unknown) => 2,
            None => 255,
        }
    }
}

/// The exit code of several: what broke the store first, then what broke the harness, then what is unknown.
pub fn exit_code(rows: &[Row]) -> u8 {
    let codes: Vec<u8> = rows.iter().map(Row::exit_code).collect();
    [1, 255, 2].into_iter().find(|code| codes.contains(code)).unwrap_or(if rows.is_empty() { 2 } else { 0 })
}

/// Runs one scenario and keeps its row, whatever happens.
pub async fn one(scenario: &Scenario, options: &RunOptions) -> Row {
    let begun = Instant::now();
    let outcome = run(scenario, options).await;
    let row = Row {
        scenario: scenario.name.clone(),
        seed: options.seed,
        ruling: None,
        seconds: begun.elapsed().as_secs_f64(),
        faults: (0, 0),
        operations: 0,
        reasons: Vec::new(),
        out: options.out.clone(),
    };
    match outcome {
        Ok(verdict) => {
            let summary = verdict.summary;
            let operations = summary.quantities.values().map(|quantities| quantities.asked).sum();
            let faults = (summary.covered.faults_proven, summary.covered.faults_planned);
            Row { ruling: Some(summary.ruling), faults, operations, reasons: summary.reasons, ..row }
        }
        Err(broke) => Row { reasons: vec![format!("the harness broke: {broke}")], ..row },
    }
}

/// Runs until the time is over or somebody interrupts; each run is begun only if the time is not over yet.
pub async fn soak(
    minutes: f64,
    seed: u64,
    root: &Path,
    base: &RunOptions,
    mut tell: impl FnMut(&Row),
) -> Vec<Row> {
    let give_up = Instant::now() + Duration::from_secs_f64(minutes.max(0.0) * 60.0);
    let mut rows = Vec::new();
    let netns = kv_lab::netns::available().is_ok();
    for at in 0.. {
        if Instant::now() >= give_up {
            break;
        }
        let (scenario, run_seed) = match pick(seed, at, netns) {
            Ok(picked) => picked,
            // Composed scenarios are tested to be good; one that is not is a finding about this program.
            Err(mistake) => {
                eprintln!("error: {mistake}");
                continue;
            }
        };
        let out = root.join(&scenario.name).join(run_seed.to_string());
        let options = RunOptions { seed: run_seed, out, ..base.clone() };
        let row = tokio::select! {
            biased;
            _ = interrupted() => break,
            row = one(&scenario, &options) => row,
        };
        tell(&row);
        rows.push(row);
    }
    rows
}

/// The scenario and seed of one run of a soak: pure.
pub fn pick(seed: u64, at: u64, netns: bool) -> Result<(Scenario, u64), Mistake> {
    let run_seed = seed.wrapping_add(at);
    let mut dice = fastrand::Rng::with_seed(run_seed ^ 0x736f_616b);
    if at % COMPOSED == COMPOSED - 1 {
        return compose(run_seed).map(|scenario| (scenario, run_seed));
    }
    loop {
        let (name, text) = BUILT_IN.get(dice.usize(0..BUILT_IN.len())).copied().unwrap_or_default();
        let scenario = Scenario::parse(name, &format!("{name}.toml"), text)?;
        if netns || scenario.cluster.plane == Plane::Proxy {
            return Ok((scenario, run_seed));
        }
    }
}

/// A random scenario: a random part of the kinds of faults at random times, on tiny limits. It is a file like
/// any other, and its copy in the run's folder replays it.
pub fn compose(seed: u64) -> Result<Scenario, Mistake> {
    let mut dice = fastrand::Rng::with_seed(seed ^ 0x7377_6172_6d00);
    let mut text =
        String::from("about = \"Random faults, composed from a seed\"\nwarm_up = \"1s\"\nafter = \"4s\"\n\n");
    let snapshot = dice.u64(60..400);
    text += &format!(
        "[cluster]\nserver = \"kvd-faulty\"\n[cluster.settings.raft]\nsnapshot_every = {snapshot}\nentries_kept = {}\n\
         [cluster.settings.storage]\nsegment_size = \"4MiB\"\nmax_log_size = \"64MiB\"\ncheckpoint_log_size = \"1MiB\"\ncheckpoint_interval = \"500ms\"\n\n",
        snapshot / 2
    );
    let strong = ["set", "counter", "append"];
    let second = strong.get(dice.usize(0..strong.len())).copied().unwrap_or("set");
    let (n, r, w) = (3, dice.u8(1..=3), dice.u8(1..=3));
    let sloppy = dice.bool();
    text += "[[namespace]]\nname = \"bank\"\nmode = \"strong\"\n\n";
    text += "[[namespace]]\nname = \"ledger\"\nmode = \"strong\"\n\n";
    let faults = swarm(&mut dice);
    // Lossy disks take no acknowledged write: it is acknowledged after the sync. An empty disk may, with W=1.
    let may_lose = w == 1 && faults.iter().any(|fault| fault.contains("restart-empty"));
    text += &format!(
        "[[namespace]]\nname = \"cart\"\nmode = \"available\"\nn = {n}\nr = {r}\nw = {w}\nsloppy = {sloppy}\nmay_lose = {may_lose}\n\n"
    );
    for (ns, kind) in [("bank", "cas-register"), ("ledger", second), ("cart", "siblings")] {
        let rate = dice.u32(8..=20);
        let keys = dice.usize(2..=6);
        text += &format!(
            "[[workload]]\nnamespace = \"{ns}\"\nkind = \"{kind}\"\nrate = {rate}\nkeys = {keys}\n\n"
        );
    }
    for fault in faults {
        text += &fault;
    }
    // None of these faults makes a node end by itself.
    text += "[expect]\nrecovery_ms_max = 5000\nconvergence_ms_max = 20000\nconcurrent_keys = 1\n";
    let parse =
        |text: &str| Scenario::parse("swarm", "composed scenario", &format!("# scenario: swarm\n{text}"));
    // Some strike what is dead already, and cannot be proven. If most could not, little was tried. How many
    // there are is known only once they are planned: a flapping cut is many.
    let planned = Schedule::of(&parse(&text)?, seed).faults.len();
    parse(&format!("{text}faults = {}\n", planned.div_ceil(2)))
}

/// Two to five faults of different kinds. At most one of them takes a disk: a cluster is not promised to
/// survive two.
fn swarm(dice: &mut fastrand::Rng) -> Vec<String> {
    let shapes = [
        "halves",
        "leader-in-minority",
        "leader-in-majority",
        "majorities-ring",
        "bridge",
        "one-way",
        "isolate",
        "shatter",
    ];
    let roles = ["leader", "follower", "coordinator", "hint-holder", "random"];
    let kinds: [(&str, &str); 17] = [
        ("partition", "shape"),
        ("flapping", "shape"),
        ("delay", ""),
        ("slow", "role"),
        ("reset", "role"),
        ("kill", "role"),
        ("pause", "role"),
        ("kill-all", ""),
        ("lossy-kill", "role"),
        ("disk-nearly-full", "role"),
        ("disk-hang", "role"),
        ("disk-slow", "role"),
        ("tier-stall", "role"),
        ("tier-slow", "role"),
        ("clock-jump", "role"),
        ("clock-drift", "role"),
        ("restart-empty", "role"),
    ];
    let mut chosen: Vec<(&str, &str)> = kinds.to_vec();
    dice.shuffle(&mut chosen);
    chosen.truncate(dice.usize(2..=5));
    let mut faults = Vec::new();
    for (kind, choice) in chosen {
        // A disk is taken after everything else: with another fault at once more copies than one could be
        // gone.
        let alone = kind == "restart-empty";
        let at = if alone { 14_000 } else { dice.u64(0..10_000) };
        let lasts = [600, 1_500, 3_000, 5_000].get(dice.usize(0..4)).copied().unwrap_or(1_500);
        let lasts = if alone { 1_000 } else { lasts };
        let mut fault = format!("[[fault]]\nat = \"{at}ms\"\nfor = \"{lasts}ms\"\nkind = \"{kind}\"\n");
        match choice {
            "shape" => {
                fault +=
                    &format!("shape = {:?}\n", shapes.get(dice.usize(0..shapes.len())).unwrap_or(&"halves"))
            }
            "role" => {
                fault +=
                    &format!("target = {:?}\n", roles.get(dice.usize(0..roles.len())).unwrap_or(&"random"))
            }
            _ => {}
        }
        match kind {
            "clock-jump" => {
                fault += &format!("by = \"{}{}s\"\n", if dice.bool() { "-" } else { "" }, dice.u64(1..4_000))
            }
            "clock-drift" => fault += &format!("rate = {:.2}\n", 0.5 + 1.5 * dice.f64()),
            "disk-slow" | "tier-slow" => fault += &format!("ms = {}\n", dice.u64(10..400)),
            "slow" => fault += &format!("bytes = {}\n", dice.u64(20..100) * 1_000),
            "delay" => fault += &format!("ms = {}\njitter_ms = {}\n", dice.u64(5..120), dice.u64(0..60)),
            _ => {}
        }
        faults.push(fault + "\n");
    }
    faults
}

/// By scenario: runs, and how they ended.
pub fn tally(rows: &[Row]) -> BTreeMap<String, [u64; 4]> {
    let mut tally: BTreeMap<String, [u64; 4]> = BTreeMap::new();
    for row in rows {
        let [valid, invalid, unknown, broke] = tally.entry(row.scenario.clone()).or_default();
        match row.ruling {
            Some(Ruling::Valid) => *valid += 1,
            Some(Ruling::Invalid) => *invalid += 1,
            Some(Ruling::Unknown) => *unknown += 1,
            None => *broke += 1,
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composed_scenarios_are_good_and_the_same_for_the_same_seed() {
        for seed in 0..300 {
            let scenario = compose(seed).unwrap_or_else(|mistake| panic!("seed {seed}: {mistake}"));
            assert_eq!(scenario.text, compose(seed).unwrap().text);
            assert!((2..=5).contains(&scenario.faults.len()), "seed {seed}");
            let again = Scenario::parse("swarm", "copy", &scenario.text).unwrap();
            assert_eq!(Schedule::of(&again, seed), Schedule::of(&scenario, seed));
            let planned = Schedule::of(&scenario, seed).faults.len() as u64;
            let demanded = scenario.expect.faults.unwrap_or_default();
            assert!(2 * demanded >= planned && 2 * demanded <= planned + 1, "{demanded} of {planned}");
        }
        assert_ne!(compose(1).unwrap().text, compose(2).unwrap().text);
    }

    #[test]
    fn a_soak_needs_no_root_unless_it_has_it() {
        for at in 0..100 {
            let (scenario, seed) = pick(7, at, false).unwrap();
            assert_eq!(scenario.cluster.plane, Plane::Proxy);
            assert_eq!(seed, 7 + at);
        }
        let some =
            (0..200).map(|at| pick(7, at, true).unwrap().0.name).collect::<std::collections::BTreeSet<_>>();
        assert!(some.contains("swarm") && some.contains("netns-loss"), "{some:?}");
    }

    #[test]
    fn the_smoke_matrix_names_scenarios_that_exist() {
        for name in SMOKE {
            assert!(Scenario::find(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn the_worst_run_decides_the_exit_code() {
        let row = |ruling| Row {
            scenario: "x".into(),
            seed: 1,
            ruling,
            seconds: 1.0,
            faults: (1, 1),
            operations: 1,
            reasons: Vec::new(),
            out: PathBuf::new(),
        };
        let code =
            |rulings: &[Option<Ruling>]| exit_code(&rulings.iter().map(|r| row(*r)).collect::<Vec<_>>());
        use Ruling::*;
        assert_eq!(code(&[]), 2, "no run shows nothing");
        assert_eq!(code(&[Some(Valid), Some(Valid)]), 0);
        assert_eq!(code(&[Some(Valid), Some(Unknown)]), 2);
        assert_eq!(code(&[Some(Unknown), None]), 255);
        assert_eq!(code(&[None, Some(Invalid)]), 1);
        assert_eq!(tally(&[row(None), row(Some(Valid))])["x"], [1, 0, 0, 1]);
    }
}
