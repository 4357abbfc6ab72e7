//! What the minority of a strong namespace says while the network is cut, between real processes: writes that
//! the old leader had taken are *unknown*, later ones are *not applied* at once, and nothing that was
//! reported *not applied* is ever read, from any node, during the cut or after it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kv_client::{Client, ClientOptions, Error, Strong};
use kv_lab::{Lab, LabOptions};
use kv_types::{GroupId, NamespaceName, NamespaceSpec, NodeId, Reason};
use tokio::time::{Instant, sleep};

/// Longer than this after the cut, the old leader must have noticed: `election_max` of the default
/// configuration.
const ELECTION_TIMEOUT: Duration = Duration::from_millis(500);
const KEYS: usize = 8;
const WRITERS_PER_NODE: usize = 4;

#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Applied,
    NotApplied(Reason),
    Unknown,
}

#[derive(Clone, Debug)]
struct Write {
    node: NodeId,
    key: String,
    value: String,
    begun: Instant,
    took: Duration,
    outcome: Outcome,
}

type Reads = Arc<Mutex<BTreeSet<(String, String)>>>;

/// One writer on one node: unique values, one operation at a time, one attempt, until told to stop.
async fn write_until(bank: Strong, node: NodeId, writer: usize, stop: Instant, reads: Reads) -> Vec<Write> {
    let mut writes = Vec::new();
    while Instant::now() < stop {
        let key = format!("k{}", (writer + writes.len()) % KEYS);
        let value = format!("{node}-{writer}-{}", writes.len());
        let begun = Instant::now();
        let outcome = match bank.put(&key, value.clone()).await {
            Ok(_) => Outcome::Applied,
            Err(Error::Failed(failure)) => Outcome::NotApplied(failure.reason),
            Err(Error::Unknown(_)) => Outcome::Unknown,
        };
        let refused = matches!(outcome, Outcome::NotApplied(_));
        writes.push(Write { node, key: key.clone(), value, begun, took: begun.elapsed(), outcome });
        note(&reads, &key, &bank).await;
        if refused {
            // Refusals return in a millisecond: without a pause the test would measure its own flood.
            sleep(Duration::from_millis(20)).await;
        }
    }
    writes
}

async fn note(reads: &Reads, key: &str, bank: &Strong) {
    if let Ok(answer) = bank.get(key).await
        && let Some(found) = answer.value
    {
        let value = String::from_utf8(found.value.to_vec()).unwrap();
        reads.lock().unwrap().insert((key.to_owned(), value));
    }
}

fn pinned(lab: &Lab, node: NodeId) -> Client {
    let options = ClientOptions { attempts: 1, ..ClientOptions::pinned(lab.client_address(node)) };
    Client::connect(options).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_leader_says_unknown_or_not_applied_and_never_lies() {
    let folder = tempfile::tempdir().unwrap();
    let lab = Lab::start(LabOptions { port_base: 7500, ..LabOptions::new(folder.path()) }).await.unwrap();
    let cluster = Client::connect(ClientOptions::new(lab.endpoints())).unwrap();
    let name = NamespaceName::new("bank").unwrap();
    let created = cluster.admin().create_namespace(NamespaceSpec::strong(name)).await;
    created.unwrap();
    let minority = vec![NodeId(1), NodeId(2)];
    let majority = vec![NodeId(3), NodeId(4), NodeId(5)];
    cluster.admin().transfer_leader(GroupId::FIRST_DATA, NodeId(1)).await.unwrap();

    let reads: Reads = Arc::default();
    let stop = Instant::now() + Duration::from_secs(7);
    let mut writers = Vec::new();
    for node in lab.nodes() {
        for writer in 0..WRITERS_PER_NODE {
            let bank = pinned(&lab, node).strong("bank");
            writers.push(tokio::spawn(write_until(bank, node, writer, stop, Arc::clone(&reads))));
        }
    }
    sleep(Duration::from_secs(1)).await; // load before the cut, not a condition
    let cut_begun = Instant::now();
    let installed = lab.partition(&[minority.clone(), majority.clone()]).await.unwrap();
    assert_eq!(
        (installed.links, installed.as_expected),
        (12, installed.probes),
        "the cut is proven: {installed:?}"
    );
    let cut = Instant::now();

    let mut writes = Vec::new();
    for writer in writers {
        writes.extend(writer.await.unwrap());
    }
    lab.heal().await.unwrap();

    // Every node agrees, and what it says is linearizable, so one read of each key settles it after the heal.
    for node in lab.nodes() {
        let bank = pinned(&lab, node).strong("bank");
        let give_up = Instant::now() + Duration::from_secs(10);
        for key in 0..KEYS {
            while let Err(error) = bank.get(format!("k{key}")).await {
                assert!(Instant::now() < give_up, "{node} does not serve after the heal: {error}");
                sleep(Duration::from_millis(50)).await;
            }
            note(&reads, &format!("k{key}"), &bank).await;
        }
    }
    lab.stop().await;

    let reads = reads.lock().unwrap();
    let count = |which: fn(&Outcome) -> bool| writes.iter().filter(|write| which(&write.outcome)).count();
    let (unknown, refused) =
        (count(|o| *o == Outcome::Unknown), count(|o| matches!(o, Outcome::NotApplied(_))));
    println!(
        "{} writes: {} applied, {refused} not applied, {unknown} unknown; {} distinct values read",
        writes.len(),
        count(|o| *o == Outcome::Applied),
        reads.len()
    );
    assert!(unknown > 0, "the old leader had taken writes when the network was cut: their fate is unknown");
    assert!(refused > 0, "the minority refuses");
    for write in &writes {
        if let Outcome::NotApplied(reason) = write.outcome {
            let read = reads.contains(&(write.key.clone(), write.value.clone()));
            assert!(
                !read,
                "{} was reported not applied ({reason}) by {} and then read",
                write.value, write.node
            );
        }
    }

    let late =
        |write: &&Write| write.begun > cut + ELECTION_TIMEOUT && write.begun < cut + Duration::from_secs(4);
    let mut refusals = Vec::new();
    for write in writes.iter().filter(|write| minority.contains(&write.node)).filter(late) {
        assert!(
            matches!(write.outcome, Outcome::NotApplied(Reason::NoQuorum | Reason::NotLeader)),
            "{write:?} began {:?} after the cut",
            write.begun - cut
        );
        refusals.push(write.took);
    }
    refusals.sort();
    assert!(refusals.len() > 20, "the minority was asked: {}", refusals.len());
    println!(
        "refused within {:?} (median), {:?} (worst)",
        refusals[refusals.len() / 2],
        refusals[refusals.len() - 1]
    );
    assert!(
        refusals[refusals.len() * 9 / 10] < Duration::from_millis(50),
        "refusals are immediate: {refusals:?}"
    );

    let first = writes
        .iter()
        .filter(|write| {
            majority.contains(&write.node) && write.outcome == Outcome::Applied && write.begun > cut
        })
        .map(|write| write.begun + write.took - cut_begun)
        .min()
        .expect("the majority writes again");
    println!("the majority wrote again {first:?} after the cut began");
    assert!(first < Duration::from_secs(2), "{first:?}");
}
