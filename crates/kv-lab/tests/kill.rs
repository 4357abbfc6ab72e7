//! Nothing acknowledged is ever lost: kills of each node, of all at once, and of all at once with one node's
//! lower tier deleted, against real processes and both modes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::time::Duration;

use kv_lab::durability::{Ledger, kill_all, lose_tier, restart_all};
use kv_lab::{Lab, LabOptions};
use kv_types::NodeId;

/// Values written to each mode before every kill.
const COUNT: u64 = 100;

/// Limits so small that snapshots, checkpoints and the cutting of the log happen many times while a test
/// runs. The oldest segment goes once the log is half of `max_log_size`: only then is the catalogue's group,
/// which rests, copied forward.
const TINY: &str = r#"
[raft]
snapshot_every = 100
entries_kept = 20
[storage]
segment_size = "4MiB"
max_log_size = "16MiB"
checkpoint_log_size = "1MiB"
checkpoint_interval = "500ms"
"#;
/// How long it may take until the log of a node under load is cut.
const CUT_WITHIN: Duration = Duration::from_secs(60);

/// Five nodes, or words that say what is missing.
async fn lab(dir: &Path) -> Lab {
    let options = LabOptions { port_base: 0, settings: TINY.into(), ..LabOptions::new(dir) };
    Lab::start(options).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn nothing_is_missing(ledger: &Ledger) {
    let missing = ledger.missing().await;
    assert!(
        missing.is_empty(),
        "{} of {} acknowledged writes are missing, such as {:?}",
        missing.len(),
        ledger.acknowledged(),
        &missing[..missing.len().min(5)]
    );
}

/// Writes until the log of a node no longer reaches back to its beginning.
async fn write_until_the_log_is_cut(lab: &Lab, ledger: &Ledger, node: NodeId) {
    let first = lab.data_dir(node).join("wal").join(format!("{:016x}.seg", 1));
    let cut = async {
        while first.exists() {
            ledger.write(COUNT).await;
        }
    };
    let cut = tokio::time::timeout(CUT_WITHIN, cut).await;
    assert!(cut.is_ok(), "{node} still has {} after {} keys", first.display(), ledger.acknowledged());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_in_turn_is_killed_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(dir.path()).await;
    let ledger = Ledger::open(&lab).await.unwrap();
    assert_eq!(ledger.write(COUNT).await, 2 * COUNT, "nothing is broken yet: {:?}", ledger.refused());
    for node in lab.nodes() {
        let before = ledger.acknowledged();
        ledger.write_during(lab.kill(node)).await.unwrap();
        let killed = ledger.write(COUNT).await;
        assert!(killed > 0, "four of five nodes take writes");
        ledger.write_during(lab.restart(node)).await.unwrap();
        assert!(ledger.acknowledged() > before);
    }
    lab.serving().await.unwrap();
    nothing_is_missing(&ledger).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_are_killed_at_once_and_one_loses_its_tier() {
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(dir.path()).await;
    let ledger = Ledger::open(&lab).await.unwrap();
    let first = lab.data_dir(NodeId(2)).join("wal").join(format!("{:016x}.seg", 1));
    assert!(first.exists(), "the first segment is not where this test looks for it");
    assert_eq!(ledger.write(COUNT).await, 2 * COUNT, "nothing is broken yet: {:?}", ledger.refused());

    ledger.write_during(kill_all(&lab)).await.unwrap();
    restart_all(&lab).await.unwrap();
    nothing_is_missing(&ledger).await;

    write_until_the_log_is_cut(&lab, &ledger, NodeId(2)).await;
    ledger.write_during(kill_all(&lab)).await.unwrap();
    assert!(lose_tier(&lab, NodeId(2)).unwrap(), "the tier's folder is not where this test looks for it");
    restart_all(&lab).await.unwrap();
    let log = std::fs::read_to_string(lab.log_file(NodeId(2))).unwrap();
    assert!(
        log.contains("tier_lost=true"),
        "the log still reached back to the beginning: nothing was tested"
    );
    nothing_is_missing(&ledger).await;
    assert!(ledger.write(COUNT).await > 0, "and it goes on");
    lab.stop().await;
}
