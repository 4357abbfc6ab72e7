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
use super::load::{Clients, Progress, parts};
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
        settings.dynamo = DynamoSettings::default();
    }
    // A bound of hints that is soon reached makes notes be refused, and only reads mend that.
    let few_hints = settings.dynamo.max_hints_size < FEW_HINTS;
    let plan = plan::draw(&mut dice, options.faults);
    let mut broken = Vec::new();
    let parts = parts(&mut dice, many_keys).unwrap_or_else(|failure| {
        broken.push(format!("the namespaces of this seed: {failure}"));
        Vec::new()
    });
    trace.line("seed", format_args!("{seed} {settings:?}"));

    let mut sim = turmoil::Builder::new()
        .rng_seed(mix(seed, 0x707)) // turmoil: latencies, the order of hosts, tokio's own choices
        .enable_random_order()
        .tcp_capacity(SOCKET_BYTES)
        .tick_duration(TICK)
        .min_message_latency(LATENCY.0)
        .max_message_latency(LATENCY.1)
        .simulation_duration(END + END)
        .build();
    let cluster = Cluster::new(seed, &settings, &trace);
    let clients = Clients::new(parts.clone(), seed, trace.clone());
    let mut nemesis = Nemesis::new(cluster.clone(), plan, trace.clone());
    cluster.register(&mut sim);
    sim.client("clients", clients.clone().live());

    let mut loading_since = None;
    let mut faulty = false;
    let mut healed = None;
    let mut stopped = false;
    loop {
        let now = sim.elapsed();
        trace::set_now(now);
        let (progress, roles) = {
            let report = clients.report();
            (report.progress, report.roles)
        };
        if progress == Progress::Loading {
            let since = *loading_since.get_or_insert(now);
            if !faulty && now >= since + WARM_UP {
                nemesis.begin(now);
                faulty = true;
            }
            if healed.is_none() && now >= since + WARM_UP + options.faults {
                nemesis.heal(&mut sim, now);
                healed = Some(now);
            }
            if !stopped && healed.is_some_and(|healed| now >= healed + AFTER) {
                let died = cluster.machines().any(|machine| machine.lives() > 1);
                let full = nemesis.installed().get("full-disk").is_some_and(|count| *count > 0);
                clients.report().may_read = died || full || few_hints;
                clients.stop();
                stopped = true;
            }
        }
        nemesis.tick(&mut sim, now, roles);
        match sim.step() {
            Ok(false) if now < END => {}
            Ok(true) => break,
            Ok(false) => {
                broken.push(format!("the run did not end within {END:?} of simulated time"));
                break;
            }
            // A host ended or a task of it panicked.
            Err(error) => {
                broken.push(format!("a host ended: {error}"));
                break;
            }
        }
    }
    let simulated = sim.elapsed();
    drop(sim);

    let report = clients.report();
    let mut events = report.recorder.as_ref().map(|recorder| recorder.history()).unwrap_or_default();
    events.extend(nemesis.deeds().iter().map(|deed| {
        Event::new(
            deed.time,
            Process::Nemesis,
            EventType::Info,
            deed.what.as_str().into(),
            deed.value.clone(),
        )
    }));
    let history = arrange(events);
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
        healed,
        simulated,
        broken,
    };
    let summary = verdict::judge(&history, &facts);
    trace::set_now(simulated);
    trace.line("seed", json!({"ruling": summary.ruling, "broken": summary.broken}));
    let mut text = trace.text();
    for event in &history {
        text.push_str(&serde_json::to_string(event).unwrap_or_default());
        text.push('\n');
    }
    let mut summary = summary;
    summary.fingerprint = format!("{:016x}", trace::fingerprint(&text));
    drop(report);
    Run { summary, history, trace: text }
}
