//! One run: warm-up, faults, heal all, converge, every node serves, the load ends, converge again, final
//! reads from every node, stop. Load continues until it ends, except that available namespaces rest while
//! their replicas become equal: reads repair what they find and writes make new differences, so under load
//! convergence could not be told from luck.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kv_check::judge::Ruling;
use kv_check::{Event, operation};
use kv_client::{Client, ClientOptions};
use kv_env::Env;
use kv_lab::{Lab, LabError, LabOptions, Program};
use kv_types::{NamespaceName, NamespaceSpec, NodeId, Replication};
use kv_workload::converge::{Asked, Convergence, Copies, Meanwhile, Patience, converge};
use kv_workload::{Driving, Load, Phase, Recorder, drive};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::judge_plan::plan;
use crate::nemesis::{LogLine, Nemesis};
use crate::observe::Observer;
use crate::options::RunOptions;
use crate::plan::{Roles, Schedule};
use crate::recorded::{Marks, Recorded};
use crate::scenario::{FaultKind, Mistake, Mode, Namespace, Plane, Scenario, Server};
use crate::verdict::{self, Verdict};
use crate::{Broke, files, flood};

/// How long the making of a namespace may take.
const CREATED_WITHIN: Duration = Duration::from_secs(15);
/// How long clients may take until every one of them was answered once.
const FIRST_ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// How often the cluster is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(50);
/// How long the final reads may take.
const FINAL_READS_WITHIN: Duration = Duration::from_secs(30);
/// In nanoseconds.
const MILLISECOND: u64 = 1_000_000;

/// Runs a scenario and judges it. Whatever happens, no process is left; dropping the future ends the run too.
pub async fn run(scenario: &Scenario, options: &RunOptions) -> Result<Verdict, Broke> {
    files::prepare(scenario, options)?;
    let begun = Instant::now();
    let recorded = play(scenario, options).await?;
    files::write_history(&options.out, &recorded.history)?;
    let verdict = verdict::judge(scenario, options, recorded, begun.elapsed())?;
    files::finish(&options.out, &verdict)?;
    Ok(verdict)
}

/// Runs a recorded schedule again.
pub async fn replay(dir: &Path, options: RunOptions) -> Result<Verdict, Broke> {
    let (scenario, options) = recorded(dir, options)?;
    run(&scenario, &options).await
}

/// What a run's folder says of it: its scenario, its seed, its schedule.
pub fn recorded(dir: &Path, mut options: RunOptions) -> Result<(Scenario, RunOptions), Broke> {
    let scenario = Scenario::load(&dir.join("config.toml"))?;
    let file = dir.join("faults.jsonl");
    let text = std::fs::read_to_string(&file).map_err(Broke::file(&file))?;
    let mut roles = BTreeMap::new();
    let mut planned = None;
    for (at, line) in text.lines().enumerate() {
        let read: LogLine = serde_json::from_str(line).map_err(|error| Mistake {
            file: file.display().to_string(),
            line: at + 1,
            message: error.to_string(),
        })?;
        match read {
            LogLine::Plan { seed, schedule, .. } => planned = Some((seed, schedule)),
            LogLine::Step { fault, begins: true, roles: known, .. } => {
                roles.insert(fault, known);
            }
            LogLine::Step { .. } => {}
        }
    }
    let (seed, schedule) = planned.ok_or_else(|| Mistake {
        file: file.display().to_string(),
        line: 1,
        message: "the plan of the run is missing".into(),
    })?;
    options.seed = seed;
    options.replay = Some((schedule, roles));
    Ok((scenario, options))
}

/// What is said on the way, on stderr.
fn narrator(options: &RunOptions) -> impl Fn(&str) + use<> {
    let (quiet, begun) = (options.quiet, Instant::now());
    move |words| {
        if !quiet {
            eprintln!("  {:5.1} s  {words}", begun.elapsed().as_secs_f64());
        }
    }
}

async fn play(scenario: &Scenario, options: &RunOptions) -> Result<Recorded, Broke> {
    let say = narrator(options);
    let lab = Lab::start(lab_options(scenario, options)?).await?;
    say(&format!("{} nodes serve", lab.nodes().len()));
    create_namespaces(scenario, &lab).await?;
    let recorder: Arc<Recorder> = Arc::default();
    let begun_wall_ms = Env::real().clock.wall_ms().saturating_sub(recorder.now() / MILLISECOND);
    let addresses: BTreeMap<NodeId, String> =
        lab.nodes().into_iter().map(|node| (node, lab.client_address(node))).collect();
    let observer = Observer::start(&addresses, &recorder, &options.out);
    let mut loads = Loads::start(scenario, options.seed, &addresses, &recorder)?;
    loads.answered(&addresses, &recorder).await?;
    say("clients are answered at every node");
    tokio::time::sleep(scenario.warm_up).await;

    let (schedule, roles) = schedule(scenario, options);
    let planned = schedule.faults.len();
    let mut marks = Marks { faults: recorder.now(), ..Marks::default() };
    let log = options.out.join("faults.jsonl");
    let named = (scenario.name.as_str(), options.seed);
    let mut nemesis = Nemesis::new(&lab, &recorder, &observer, named, schedule, roles, loads.hot(), &log)
        .map_err(Broke::file(&log))?;
    marks.healed = nemesis.play(&say).await?;
    loads.available.send_replace(Phase::Pause); // until the replicas are equal
    let died = !nemesis.broken.is_empty() || nemesis.done.iter().any(|done| done.fault.kind.kills());
    let resting = Meanwhile { may_read: died, strong_rests: false };
    marks.rested(&recorder, equal(scenario, &addresses, &recorder, &loads, resting).await?);
    let equal_now = marks.converged.values().all(Option::is_some);
    say(if equal_now { "replicas are equal" } else { "replicas did not become equal" });
    marks.resumed = recorder.now();
    loads.available.send_replace(Phase::ReadWrite);
    tokio::time::sleep(scenario.after).await;
    nemesis.look_for_the_dead().await;
    let shed = loads.stop().await;
    marks.stopped = recorder.now();
    // Whether what was done since then reached every replica has to be seen before the final reads, which
    // repair what they find. No node died meanwhile, so hints alone owe it.
    let resting = Meanwhile { may_read: false, strong_rests: true };
    marks.ended_with(&recorder, equal(scenario, &addresses, &recorder, &loads, resting).await?);
    if !marks.unequal_in_the_end.is_empty() {
        say("replicas are not equal in the end");
    }
    let seen = observer.seen();
    let (faults, states, broken) = (
        std::mem::take(&mut nemesis.done),
        std::mem::take(&mut nemesis.states),
        std::mem::take(&mut nemesis.broken),
    );
    drop(nemesis);

    let unread = end(&lab, &loads, &recorder, &mut marks, &say).await?;
    let logs = lab.nodes().into_iter().map(|node| (node, lab.log_file(node))).collect();
    let (samples, _) = recorder.samples_since(0);
    remove_data(options);
    Ok(Recorded {
        history: recorder.history(),
        samples,
        faults,
        planned,
        states,
        seen,
        marks,
        broken,
        unread,
        shed,
        begun_wall_ms,
        nodes: lab.nodes(),
        logs,
    })
}

/// The schedule of a run: that of the run that is replayed, with what was known then, or one of the scenario
/// and the seed.
fn schedule(scenario: &Scenario, options: &RunOptions) -> (Schedule, BTreeMap<u64, Roles>) {
    match &options.replay {
        Some((schedule, roles)) => (schedule.clone(), roles.clone()),
        None => (Schedule::of(scenario, options.seed), BTreeMap::new()),
    }
}

/// The final reads, and the end of the nodes. Returns what could not be read.
async fn end(
    lab: &Lab,
    loads: &Loads,
    recorder: &Recorder,
    marks: &mut Marks,
    say: &impl Fn(&str),
) -> Result<Vec<String>, Broke> {
    marks.settled = recorder.now();
    recorder.nemesis(kv_check::judge::SETTLED, serde_json::Value::Null);
    // Calls at the same nanosecond would be both before and after.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let unread = loads.read_everything().await?;
    say("everything was read at every node");
    lab.stop().await;
    marks.ended = recorder.now();
    Ok(unread)
}

/// Of the nodes' files only the logs are worth keeping.
fn remove_data(options: &RunOptions) {
    let _ = std::fs::remove_file(options.out.join(".machine"));
    if !options.keep_data {
        let _ = std::fs::remove_dir_all(options.out.join("lab/data"));
    }
}

fn lab_options(scenario: &Scenario, options: &RunOptions) -> Result<LabOptions, Broke> {
    let cluster = &scenario.cluster;
    let settings = toml::to_string(&cluster.settings).map_err(|error| Mistake {
        file: scenario.name.clone(),
        line: 1,
        message: format!("[cluster.settings]: {error}"),
    })?;
    let mut arguments = options.server_arguments.clone();
    let program = match cluster.server {
        Server::Kvd => Program::Kvd,
        Server::KvdFaulty => {
            arguments.extend(["--seed".into(), options.seed.to_string()]);
            Program::Faulty
        }
    };
    let plane = match cluster.plane {
        Plane::Proxy => kv_lab::Plane::Proxies,
        Plane::Netns => kv_lab::Plane::Netns,
    };
    let lab = LabOptions {
        nodes: cluster.nodes,
        port_base: options.port_base,
        kvd: options.server.clone(),
        program,
        plane,
        settings,
        ..LabOptions::new(options.out.join("lab"))
    };
    Ok(lab.with_arguments(&arguments))
}

async fn create_namespaces(scenario: &Scenario, lab: &Lab) -> Result<(), Broke> {
    let client = Client::connect(ClientOptions::new(lab.endpoints())).map_err(Broke::store)?;
    let mut specs = Vec::new();
    for namespace in &scenario.namespaces {
        let name = NamespaceName::new(&namespace.name).map_err(|failure| Broke::store(failure.into()))?;
        let replication =
            Replication { n: namespace.n, r: namespace.r, w: namespace.w, sloppy: namespace.sloppy };
        specs.push(match namespace.mode {
            Mode::Strong => NamespaceSpec::strong(name),
            Mode::Available => {
                let guarantee = namespace.promise.into();
                NamespaceSpec { guarantee, ..NamespaceSpec::available(name, replication) }
            }
        });
    }
    for fault in &scenario.faults {
        let FaultKind::Flood { mode, .. } = fault.kind else { continue };
        let name =
            NamespaceName::new(flood::namespace(mode)).map_err(|failure| Broke::store(failure.into()))?;
        let n = u8::try_from(scenario.cluster.nodes).unwrap_or(u8::MAX).min(3);
        specs.push(match mode {
            Mode::Strong => NamespaceSpec::strong(name),
            Mode::Available => NamespaceSpec::available(name, Replication { n, r: n, w: n, sloppy: false }),
        });
    }
    let names: Vec<String> = specs.iter().map(|spec| spec.name.as_str().to_owned()).collect();
    for spec in specs {
        // The same settings again are answered as if just made, so an election in between costs nothing.
        let give_up = Instant::now() + CREATED_WITHIN;
        while let Err(error) = client.admin().create_namespace(spec.clone()).await {
            if Instant::now() > give_up {
                return Err(Broke::store(error));
            }
            tokio::time::sleep(POLL).await;
        }
    }
    lab.every_node("all namespaces everywhere", |topology| {
        names.iter().all(|name| topology.namespaces.contains_key(name))
    })
    .await?;
    lab.serving().await?; // a node that rebuilds takes part in the ring only now
    Ok(())
}

/// The loads of a run, told apart by mode.
struct Loads {
    running: Vec<Driving>,
    strong: watch::Sender<Phase>,
    available: watch::Sender<Phase>,
}

impl Loads {
    fn start(
        scenario: &Scenario,
        seed: u64,
        nodes: &BTreeMap<NodeId, String>,
        recorder: &Arc<Recorder>,
    ) -> Result<Self, Broke> {
        let (strong, available) =
            (watch::Sender::new(Phase::ReadWrite), watch::Sender::new(Phase::ReadWrite));
        let mut running = Vec::new();
        for (at, workload) in (0_u64..).zip(&scenario.workloads) {
            let load = Load {
                rate: workload.rate,
                closed: workload.clients,
                keys: workload.keys,
                deadline: workload.deadline,
                attempts: workload.attempts,
                value_bytes: workload.value_bytes,
                prefix: format!("{}{at}.", workload.kind_initial()),
                ..Load::new(
                    &workload.namespace,
                    workload.kind,
                    seed.wrapping_add(at.wrapping_mul(0x9e37_79b9)),
                )
            };
            let phase = if workload.kind.strong() { strong.subscribe() } else { available.subscribe() };
            running.push(drive(&load, nodes, recorder, &Env::real(), &phase).map_err(Broke::store)?);
        }
        Ok(Self { running, strong, available })
    }

    /// Waits until every namespace answered at every node.
    async fn answered(&self, nodes: &BTreeMap<NodeId, String>, recorder: &Recorder) -> Result<(), LabError> {
        let namespaces: std::collections::BTreeSet<_> =
            self.running.iter().map(|load| &load.load().ns).collect();
        let give_up = Instant::now() + FIRST_ANSWERS_WITHIN;
        loop {
            let (samples, _) = recorder.samples_since(0);
            let answered =
                samples.iter().filter(|sample| sample.answered()).map(|sample| (&sample.ns, sample.node));
            if answered.collect::<std::collections::BTreeSet<_>>().len() == namespaces.len() * nodes.len() {
                return Ok(());
            }
            if Instant::now() > give_up {
                return Err(LabError::TooSlow {
                    what: "the first answer of every namespace at every node".into(),
                    seconds: FIRST_ANSWERS_WITHIN.as_secs(),
                    hint: "; the nodes' logs are in lab/logs".into(),
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A hot key of the first available namespace: (namespace, key).
    fn hot(&self) -> impl Fn() -> Option<(String, String)> + Send + Sync + use<> {
        let available = self.running.iter().find(|load| !load.load().kind.strong());
        let found = available.map(|load| (load.load().ns.clone(), load.shared_keys()));
        move || found.as_ref().and_then(|(ns, keys)| Some((ns.clone(), keys.hot()?)))
    }

    async fn stop(&mut self) -> u64 {
        self.strong.send_replace(Phase::Stop);
        self.available.send_replace(Phase::Stop);
        let mut shed = 0;
        for load in &mut self.running {
            shed += load.finished().await;
        }
        shed
    }

    async fn read_everything(&self) -> Result<Vec<String>, Broke> {
        let give_up = Instant::now() + FINAL_READS_WITHIN;
        let mut unread = Vec::new();
        for load in &self.running {
            unread.extend(load.read_everything(give_up).await.map_err(Broke::store)?);
        }
        Ok(unread)
    }
}

/// Waits until the replicas of every namespace that rests are equal, and marks when that was.
async fn equal(
    scenario: &Scenario,
    addresses: &BTreeMap<NodeId, String>,
    recorder: &Recorder,
    loads: &Loads,
    meanwhile: Meanwhile,
) -> Result<BTreeMap<String, Convergence>, Broke> {
    // Of a strong namespace every node keeps a replica: who does not vote learns.
    let nodes = u8::try_from(addresses.len()).unwrap_or(u8::MAX);
    let copies = |namespace: &Namespace| match namespace.mode {
        Mode::Available => Some(Copies { ns: namespace.name.clone(), n: namespace.n }),
        Mode::Strong => meanwhile.strong_rests.then(|| Copies { ns: namespace.name.clone(), n: nodes }),
    };
    let copies: Vec<Copies> = scenario.namespaces.iter().filter_map(copies).collect();
    let mut clients = BTreeMap::new();
    for (node, address) in addresses {
        clients.insert(*node, Client::connect(ClientOptions::pinned(address)).map_err(Broke::store)?);
    }
    let asked = Asked { addresses, clients: &clients, recorder, driven: &loads.running };
    Ok(converge(asked, &copies, meanwhile, Patience::default()).await)
}

/// Judges a recorded history again; for tests that doctor one.
pub fn ruling_of(history: &[Event], scenario: &Scenario, marks: &Marks) -> Result<Ruling, Broke> {
    operation::pair(history).map_err(Broke::history)?;
    let plan = plan(scenario, marks, &[]);
    Ok(kv_check::judge::judge(history, &plan).map_err(Broke::history)?.ruling)
}
