//! One run of one seed: the loop around the simulation that moves time, lets the nemesis act between the
//! steps, and leads through the phases: warm-up, faults, heal, convergence, service, final reads.
//!
//! One run per process: tokio numbers its tasks per process, and drops those of a crashed host in an order
//! that depends on it.

use std::time::Duration;

use kv_check::history::arrange;
use kv_check::{Event, EventType, Process};
use kv_server::DynamoSettings;
use serde_json::json;

use super::cluster::{Cluster, Settings};
use super::load::{Clients, Progress, Report, parts};
use super::nemesis::{LATENCY, Nemesis};
use super::trace::{self, Trace};
use super::verdict::{self, Facts, Summary};
use super::{mix, plan};

/// Load without faults before the first one.
const WARM_UP: Duration = Duration::from_millis(1_500);
/// Load without faults after the last one: what recovers is tested while it recovers.
const AFTER: Duration = Duration::from_millis(2_500);
/// A step of the network: within it every host lives on its own, to the millisecond. At one millisecond a
/// third of the time of a run went into stepping.
const TICK: Duration = Duration::from_millis(2);
/// So few bytes of hints that a run may need more.
const FEW_HINTS: u64 = 1 << 20;
/// Bytes on their way through one socket.
const SOCKET_BYTES: usize = 65_536;
/// A run that is not over after so much simulated time never will be.
const END: Duration = Duration::from_secs(400);

/// How long and what.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long the phase of faults lasts.
    pub faults: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { faults: Duration::from_secs(15) }
    }
}

/// What is left of a run.
#[derive(Debug)]
pub struct Run {
    /// The judgement, and figures.
    pub summary: Summary,
    /// The history.
    pub history: Vec<Event>,
    /// Everything that happened, one line an event; the history is its second part.
    pub trace: String,
}

/// Runs a seed.
pub fn run(seed: u64, options: Options) -> Run {
    let trace = Trace::default();
    let mut dice = fastrand::Rng::with_seed(mix(seed, 0xfa17));
    let many_keys = seed % 6 == 5;
    let mut settings = Settings::draw(&mut dice);
    if many_keys {
        settings.dynamo.max_hints_size = DynamoSettings::default().max_hints_size;
    }
    // On the others hints alone have to bring everything, or reads where a death may have taken some of them.
    settings.dynamo.compare_clocks = seed % 2 == 1 && !many_keys;
    let compares = settings.dynamo.compare_clocks;
    // On some of those the dot logs have soon given up what is missing.
    if seed % 4 == 1 {
        settings.dynamo.max_dot_log_size = 4 << 10;
    }
    // When the bound of hints is soon reached, hints are refused, and only reads repair that.
    let few_hints = settings.dynamo.max_hints_size < FEW_HINTS;
    let plan = plan::draw(&mut dice, options.faults);
    let mut broken = Vec::new();
    let parts = parts(&mut dice, many_keys).unwrap_or_else(|failure| {
        broken.push(format!("the namespaces of this seed: {failure}"));
        Vec::new()
    });
    trace.line("seed", format_args!("{seed} {settings:?}"));

    let mut sim = network(seed);
    let cluster = Cluster::new(seed, &settings, &trace);
    let clients = Clients::new(parts.clone(), seed, cluster.clone(), trace.clone());
    let nemesis = Nemesis::new(cluster.clone(), plan, trace.clone());
    cluster.register(&mut sim);
    sim.client("clients", clients.clone().live());
    let phases = Phases::default();
    let mut scene = Scene { cluster, clients, nemesis, phases, faults: options.faults, few_hints, compares };
    broken.extend(scene.play(&mut sim).err());
    let simulated = sim.elapsed();
    drop(sim);

    let Scene { cluster, clients, nemesis, phases, .. } = scene;
    let report = clients.report();
    let history = history_of(&report, &nemesis);
    broken.extend(report.broken.iter().cloned());
    broken.extend(nemesis.broken().iter().map(|what| format!("no fault explains that a node ended: {what}")));
    let facts = Facts {
        seed,
        parts: &parts,
        report: &report,
        cluster: &cluster,
        installed: nemesis.installed(),
        cuts: nemesis.cuts(),
        disturbances: nemesis.disturbances().filter(|_| !few_hints),
        healed: phases.healed,
        simulated,
        broken,
    };
    let mut summary = verdict::judge(&history, &facts);
    drop(report);
    trace::set_now(simulated);
    trace.line("seed", json!({"ruling": summary.ruling, "broken": summary.broken}));
    let mut text = trace.text();
    for event in &history {
        text.push_str(&serde_json::to_string(event).unwrap_or_default());
        text.push('\n');
    }
    summary.fingerprint = format!("{:016x}", trace::fingerprint(&text));
    Run { summary, history, trace: text }
}

/// The simulated network and its clock.
fn network(seed: u64) -> turmoil::Sim<'static> {
    turmoil::Builder::new()
        .rng_seed(mix(seed, 0x707)) // turmoil: latencies, the order of hosts, tokio's own choices
        .enable_random_order()
        .tcp_capacity(SOCKET_BYTES)
        .tick_duration(TICK)
        .min_message_latency(LATENCY.0)
        .max_message_latency(LATENCY.1)
        .simulation_duration(END + END)
        .build()
}

/// Which phases of a run have begun.
#[derive(Debug, Default)]
struct Phases {
    /// When the loads began.
    loading_since: Option<Duration>,
    faulty: bool,
    /// When the faults ended.
    healed: Option<Duration>,
    /// The loads were stopped.
    stopped: bool,
}

/// What takes part in a run.
struct Scene {
    cluster: Cluster,
    clients: Clients,
    nemesis: Nemesis,
    phases: Phases,
    /// How long the phase of faults lasts.
    faults: Duration,
    few_hints: bool,
    /// Replicas compare their clocks: then nothing has to be read.
    compares: bool,
}

impl Scene {
    /// Moves time until the clients are done. An error says in words why the run ended before.
    fn play(&mut self, sim: &mut turmoil::Sim<'_>) -> Result<(), String> {
        loop {
            let now = sim.elapsed();
            trace::set_now(now);
            let (progress, roles) = {
                let report = self.clients.report();
                (report.progress, report.roles)
            };
            if progress == Progress::Loading {
                self.change_phase(sim, now);
            }
            self.nemesis.tick(sim, now, roles);
            match sim.step() {
                Ok(false) if now < END => {}
                Ok(true) => return Ok(()),
                Ok(false) => return Err(format!("the run did not end within {END:?} of simulated time")),
                // A host ended or a task of it panicked.
                Err(error) => return Err(format!("a host ended: {error}")),
            }
        }
    }

    /// Begins the next phase when it is time, while the loads run.
    fn change_phase(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let since = *self.phases.loading_since.get_or_insert(now);
        if !self.phases.faulty && now >= since + WARM_UP {
            self.nemesis.begin(now);
            self.phases.faulty = true;
        }
        if self.phases.healed.is_none() && now >= since + WARM_UP + self.faults {
            self.nemesis.heal(sim, now);
            self.phases.healed = Some(now);
        }
        if !self.phases.stopped && self.phases.healed.is_some_and(|healed| now >= healed + AFTER) {
            let died = self.cluster.machines().any(|machine| machine.lives() > 1);
            let full = self.nemesis.installed().get("full-disk").is_some_and(|count| *count > 0);
            self.clients.report().may_read = !self.compares && (died || full || self.few_hints);
            self.clients.stop();
            self.phases.stopped = true;
        }
    }
}

/// What the clients and the nemesis did, in the order of time.
fn history_of(report: &Report, nemesis: &Nemesis) -> Vec<Event> {
    let mut events = report.recorder.as_ref().map(|recorder| recorder.history()).unwrap_or_default();
    events.extend(nemesis.deeds().iter().map(|deed| {
        let what = deed.what.as_str().into();
        Event::new(deed.time, Process::Nemesis, EventType::Info, what, deed.value.clone())
    }));
    arrange(events)
}
