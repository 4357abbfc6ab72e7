//! Real processes with a disk that forgets and a clock that lies: what was acknowledged survives all of it.
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

use kv_lab::durability::{Ledger, kill_all, restart_all};
use kv_lab::server::Program;
use kv_lab::{Lab, LabOptions};
use kv_sim::faulty::control::Answer;
use kv_types::NodeId;

/// Values written to each mode between two faults.
const COUNT: u64 = 40;
/// How long a node may take to see that it cannot go on, or to get over it.
const WITHIN: Duration = Duration::from_secs(40);
/// Small segments, so that the disk is asked for new ones while a test runs.
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

async fn lab(dir: &Path) -> Lab {
    let options = LabOptions {
        nodes: 3,
        port_base: 0,
        settings: TINY.into(),
        kvd: Some(env!("CARGO_BIN_EXE_kvd-faulty").into()),
        program: Program::Faulty,
        ..LabOptions::new(dir)
    };
    Lab::start(options).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn told(lab: &Lab, node: NodeId, command: &str) -> Answer {
    let answer =
        lab.control(node, command).await.unwrap_or_else(|error| panic!("{error}\n{}", last_words(lab)));
    let answer: Answer = serde_json::from_str(&answer).unwrap();
    assert!(answer.ok, "{command}: {:?}", answer.error);
    answer
}

async fn nothing_is_missing(ledger: &Ledger) {
    let missing = ledger.missing().await;
    assert!(missing.is_empty(), "{} of {} are missing: {missing:?}", missing.len(), ledger.acknowledged());
}

/// The last lines of every node's log, for a failure that only the nodes can explain.
fn last_words(lab: &Lab) -> String {
    let tail = |node: NodeId| {
        let log = std::fs::read_to_string(lab.log_file(node)).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = log.lines().collect();
        format!("node {node}:\n{}\n", lines[lines.len().saturating_sub(20)..].join("\n"))
    };
    lab.nodes().into_iter().map(tail).collect()
}

/// Writes until a condition holds.
async fn write_until(lab: &Lab, ledger: &Ledger, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let done = tokio::time::timeout(WITHIN, async {
        while !holds().await {
            ledger.write(4).await;
        }
    });
    assert!(done.await.is_ok(), "{what}; {:?}\n{}", ledger.refused(), last_words(lab));
}

/// Waits until a node has written what it has not synced.
async fn something_to_lose(lab: &Lab) {
    let seen = tokio::time::timeout(WITHIN, async {
        let mut nodes = lab.nodes().into_iter().cycle();
        while let Some(node) = nodes.next()
            && told(lab, node, r#"{"do":"status"}"#).await.disk.unsynced_bytes == 0
        {}
    });
    assert!(seen.await.is_ok(), "there was never anything to lose\n{}", last_words(lab));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cuts_of_all_nodes_lose_unsynced_bytes_and_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(dir.path()).await;
    let ledger = Ledger::open(&lab).await.unwrap();
    for round in 0..3 {
        assert!(ledger.write(COUNT).await > 0, "{:?}", ledger.refused());
        for node in lab.nodes() {
            // A slow disk keeps bytes waiting, so that the cut has something to lose.
            told(&lab, node, r#"{"do":"sync_delay_ms","ms":20}"#).await;
        }
        let cut = async {
            something_to_lose(&lab).await;
            kill_all(&lab).await
        };
        ledger.write_during(cut).await.unwrap();
        restart_all(&lab).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        nothing_is_missing(&ledger).await;
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_jump_by_an_hour_lose_nothing_and_the_store_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(dir.path()).await;
    let ledger = Ledger::open(&lab).await.unwrap();
    let nodes = lab.nodes();
    ledger.write(COUNT).await;
    for (node, offset) in nodes.iter().zip([3_600_000, -3_600_000, 60_000]) {
        let answer = told(&lab, *node, &format!(r#"{{"do":"clock","offset_ms":{offset},"rate":1.5}}"#)).await;
        assert!((answer.clock.offset_ms - offset).abs() < 5_000, "{answer:?}");
        ledger.write(COUNT / 4).await;
        nothing_is_missing(&ledger).await;
    }
    for node in &nodes {
        told(&lab, *node, r#"{"do":"clock","offset_ms":0,"rate":1.0}"#).await;
    }
    let before = ledger.acknowledged();
    write_until(&lab, &ledger, "nothing is acknowledged after the clocks are right", async || {
        ledger.acknowledged() > before + COUNT as usize
    })
    .await;
    ledger.write_during(kill_all(&lab)).await.unwrap();
    restart_all(&lab).await.unwrap();
    nothing_is_missing(&ledger).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_fsync_stops_its_node_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(dir.path()).await;
    let ledger = Ledger::open(&lab).await.unwrap();
    ledger.write(COUNT).await;
    let victim = NodeId(2);
    told(&lab, victim, r#"{"do":"fail_sync","after":3}"#).await;
    write_until(&lab, &ledger, "the node whose disk failed still runs", async || {
        !lab.running().await.contains_key(&victim) || lab.control(victim, r#"{"do":"status"}"#).await.is_err()
    })
    .await;
    let log = std::fs::read_to_string(lab.log_file(victim)).unwrap();
    assert!(log.contains("the disk failed to sync"), "the log names what happened:\n{log}");
    assert!(ledger.write(COUNT).await > 0, "two of three go on");
    let _ = lab.kill(victim).await;
    lab.restart(victim).await.unwrap_or_else(|error| panic!("{error}"));
    lab.serving().await.unwrap();
    nothing_is_missing(&ledger).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_and_recovers_when_space_returns() {
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(dir.path()).await;
    let ledger = Ledger::open(&lab).await.unwrap();
    ledger.write(COUNT).await;
    for node in lab.nodes() {
        told(&lab, node, r#"{"do":"capacity","free":0}"#).await;
    }
    // The node sees how little is free and refuses by name, also before a write finds the disk full.
    write_until(&lab, &ledger, "a full disk never refused anything", async || {
        ledger.refused().keys().any(|(_, reason)| *reason == "LIMIT_STORAGE")
    })
    .await;
    for node in lab.nodes() {
        told(&lab, node, r#"{"do":"capacity","bytes":null}"#).await;
    }
    let before = ledger.acknowledged();
    write_until(&lab, &ledger, "nothing is acknowledged though there is space again", async || {
        ledger.acknowledged() > before + COUNT as usize
    })
    .await;
    nothing_is_missing(&ledger).await;
    assert_eq!(lab.running().await.len(), 3, "a full disk stops no node");
    lab.stop().await;
}
