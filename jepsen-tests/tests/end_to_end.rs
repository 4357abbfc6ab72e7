//! A whole short run through the library, against real processes: what it leaves, and that its verdict can be
//! each of the three: valid as it was, unknown when the scenario demands more than happened, invalid when the
//! history is doctored.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use jepsen_tests::options::RunOptions;
use jepsen_tests::recorded::Marks;
use jepsen_tests::run::{recorded, ruling_of, run};
use jepsen_tests::scenario::Scenario;
use jepsen_tests::summary::Summary;
use jepsen_tests::verdict::ruling;
use kv_check::judge::Ruling;
use kv_check::{Event, EventType, Function};

const SHORT: &str = r#"about = "One node alone for two seconds"
warm_up = "500ms"
after = "2s"
[cluster]
nodes = 3
[[namespace]]
name = "bank"
mode = "strong"
[[namespace]]
name = "tally"
mode = "strong"
[[namespace]]
name = "cart"
mode = "available"
[[workload]]
namespace = "bank"
kind = "cas-register"
rate = 8
[[workload]]
namespace = "tally"
kind = "counter"
rate = 4
[[workload]]
namespace = "cart"
kind = "siblings"
rate = 8
[[fault]]
for = "2s"
kind = "partition"
shape = "isolate"
target = "leader"
[[fault]]
at = "1s"
for = "1s"
kind = "pause"
target = "follower"
[expect]
minority_s = 1.0
answered = 20
recovery_ms_max = 20000
convergence_ms_max = 30000
"#;

/// A read that shows a value that could not be read any more: one that was overwritten, and acknowledged so,
/// before.
fn doctored(history: &[Event]) -> Vec<Event> {
    let mut history = history.to_vec();
    let acknowledged = |event: &&Event| {
        event.ns.as_deref() == Some("bank") && event.f == Function::Write && event.kind == EventType::Ok
    };
    let old = history.iter().find(acknowledged).unwrap().clone();
    let read = history.iter().rposition(|event| {
        let read =
            event.f == Function::Read && event.kind == EventType::Ok && event.ns.as_deref() == Some("bank");
        read && event.key == old.key && event.value != old.value
    });
    let read = &mut history[read.expect("its key was overwritten and read")];
    (read.value, read.revision) = (old.value, old.revision);
    history
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_leaves_everything_and_each_verdict_is_possible() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("short/7");
    let scenario = Scenario::parse("short", "short.toml", SHORT).unwrap();
    let options = RunOptions { quiet: true, ..RunOptions::new(7, &out) };
    let verdict = run(&scenario, &options).await.unwrap();
    let summary = &verdict.summary;
    // Promises about time may be unknown on a machine that stands still; nothing may be broken.
    assert_ne!(summary.ruling, Ruling::Invalid, "{:#?}", summary.reasons);
    assert_eq!((summary.covered.faults_proven, summary.covered.faults_planned), (2, 2), "{summary:#?}");
    assert!(summary.covered.minority_s > 1.0);

    for name in [
        "history.jsonl",
        "history.edn",
        "summary.json",
        "report.html",
        "faults.jsonl",
        "config.toml",
        "replay.txt",
        "nodes/n1.log",
        "nodes/n3.log",
    ] {
        let length =
            std::fs::metadata(out.join(name)).unwrap_or_else(|error| panic!("{name}: {error}")).len();
        assert!(length > 0, "{name} is empty");
    }
    assert_eq!(std::fs::read_link(folder.path().join("short/latest")).unwrap().to_str(), Some("7"));
    assert!(!out.join("lab/data").exists(), "only logs are kept");
    let read: Summary = serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!((read.seed, read.ruling), (7, summary.ruling));
    let (again, options) = recorded(&out, RunOptions::new(0, folder.path().join("again"))).unwrap();
    assert_eq!((again.name.as_str(), options.seed), ("short", 7));
    let (schedule, roles) = options.replay.unwrap();
    assert_eq!((schedule.faults.len(), roles.len()), (2, 2));

    // The same run with a demand that it did not meet.
    let greedy = Scenario::parse("short", "short.toml", &(SHORT.to_owned() + "elections = 1000\n")).unwrap();
    let rows = summary.covered.rows(&greedy.expect, &["bank"]);
    let kept: Vec<_> = summary.properties.iter().filter(|p| p.ruling == Ruling::Valid).cloned().collect();
    assert_eq!(ruling(&kept, &rows), Ruling::Unknown);

    // The same run with a lie in its history.
    let file = std::fs::File::open(out.join("history.jsonl")).unwrap();
    let history = kv_check::history::read(std::io::BufReader::new(file)).unwrap();
    let marks: Marks = summary.marks.clone();
    assert_ne!(ruling_of(&history, &scenario, &marks).unwrap(), Ruling::Invalid);
    assert_eq!(ruling_of(&doctored(&history), &scenario, &marks).unwrap(), Ruling::Invalid);
}
