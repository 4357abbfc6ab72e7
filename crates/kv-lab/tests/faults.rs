//! Every fault over real processes, with its proof, and what the store makes of it: how soon after a heal
//! everybody serves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use kv_client::{Client, ClientOptions, WriteContext};
use kv_lab::durability::{AVAILABLE, Ledger, STRONG};
use kv_lab::matrix::without;
use kv_lab::process::{Kept, written_length};
use kv_lab::{Faults, Flow, Installed, Lab, LabOptions, Plane, Proof, netns};
use kv_types::{GroupId, NodeId};
use tokio::time::Instant;

/// How long a cut lasts: TCP, left alone, would stay silent for about as long again.
const CUT: Duration = Duration::from_secs(6);
/// How soon after a heal every node serves.
const RECOVERED_WITHIN: Duration = Duration::from_secs(3);
/// How long a majority without its memory is watched: several elections.
const FORGETFUL: Duration = Duration::from_secs(4);
/// Between two looks at something that has no event.
const POLL: Duration = Duration::from_millis(20);
/// How long anything may take before it counts as never.
const SOON: Duration = Duration::from_secs(60);

async fn lab(dir: &Path, plane: Plane) -> Lab {
    let options = LabOptions { port_base: 0, plane, ..LabOptions::new(dir) };
    Lab::start(options).await.unwrap_or_else(|error| panic!("{error}"))
}

/// The namespaces of a ledger, made however busy the machine is: nothing here is about a first election.
async fn ledger(lab: &Lab) -> Ledger {
    let opened = async {
        loop {
            match Ledger::open(lab).await {
                Ok(ledger) => return ledger,
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    };
    tokio::time::timeout(SOON, opened).await.expect("a lab that serves takes namespaces")
}

/// Writes to both modes through one node until it takes both; how long that took from the given moment.
async fn serves(lab: &Lab, node: NodeId, from: Instant) -> Duration {
    let address = lab.client_address(node);
    let options = ClientOptions {
        read_timeout: Duration::from_millis(500),
        write_timeout: Duration::from_millis(500),
        ..ClientOptions::pinned(address)
    };
    let client = Client::connect(options).unwrap();
    let key = format!("served by {node}");
    let strong = async {
        while client.strong(STRONG).put(&key, "strong").await.is_err() {
            tokio::time::sleep(POLL).await;
        }
    };
    let available = async {
        while client.available(AVAILABLE).put(&key, "available", WriteContext::Blind).await.is_err() {
            tokio::time::sleep(POLL).await;
        }
    };
    let both = async { tokio::join!(strong, available) };
    tokio::time::timeout(SOON, both).await.unwrap_or_else(|_| panic!("{node} does not serve again"));
    from.elapsed()
}

/// How long it takes from now until every node serves.
async fn all_serve(lab: &Lab, what: &str) {
    let healed = Instant::now();
    let took = join_all(lab.nodes().into_iter().map(|node| serves(lab, node, healed))).await;
    eprintln!("{what}: nodes serve {took:?} after the heal");
    let slowest = took.into_iter().max().unwrap();
    assert!(slowest < RECOVERED_WITHIN, "{what}: the last node served after {slowest:?}");
}

fn proven(installed: Installed) -> Installed {
    assert!(installed.is_proven(), "{installed:?}");
    installed
}

/// Cuts the leader off with one other node for a while; the rest of the cluster has to elect another.
async fn leader_cut_off_and_back(lab: &Lab, what: &str) {
    let before = lab.leader(GroupId::FIRST_DATA).await.unwrap();
    let other = without(&lab.nodes(), &[before.node])[0];
    let minority = vec![before.node, other];
    let cut = lab.partition(&[minority.clone(), without(&lab.nodes(), &minority)]).await.unwrap();
    assert_eq!(proven(cut).links, 12);
    let begun = Instant::now();
    let elected = async {
        loop {
            match lab.leader(GroupId::FIRST_DATA).await {
                Some(led) if led.term > before.term && led.node != before.node => return led,
                _ => tokio::time::sleep(POLL).await,
            }
        }
    };
    let led = tokio::time::timeout(SOON, elected).await.unwrap();
    assert!(!minority.contains(&led.node));
    tokio::time::sleep_until(begun + CUT).await;
    proven(lab.verify().await.unwrap());
    // Everybody tries from before the heal on; what counts is when the network was whole, not when that was
    // probed.
    let trying = Instant::now();
    let (healed, served) =
        tokio::join!(lab.heal(), join_all(lab.nodes().into_iter().map(|node| serves(lab, node, trying))));
    let whole = proven(healed.unwrap()).since.unwrap() - trying;
    let served: Vec<_> = served.into_iter().map(|served| served.saturating_sub(whole)).collect();
    eprintln!("{what}: {CUT:?} cut, healed in {whole:?}, then nodes serve after {served:?}");
    let slowest = served.into_iter().max().unwrap();
    assert!(slowest < RECOVERED_WITHIN, "{what}: the last node served {slowest:?} after the heal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_of_proxies_are_cut_reset_and_delayed_and_everybody_is_back_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(dir.path(), Plane::Proxies).await;
    ledger(&lab).await;
    leader_cut_off_and_back(&lab, "silence on proxies").await;

    let nodes = lab.nodes();
    let reset = Faults::isolate(nodes[0], &nodes).instead_of_silence(Flow::Reset);
    let installed = proven(lab.install(reset).await.unwrap());
    assert_eq!((installed.links, installed.resets), (8, 8));
    proven(lab.heal().await.unwrap());
    all_serve(&lab, "resets on proxies").await;

    let late = Faults::none().with_all(&nodes[..1], &nodes[1..], Flow::Delay { ms: 60, jitter_ms: 20 });
    let late = proven(lab.install(late).await.unwrap());
    assert!(late.round_trip_ms >= Some(40), "{late:?}");
    let slow = Faults::none().with(nodes[0], nodes[1], Flow::Slow { bytes_per_second: 1000 });
    let slow = proven(lab.install(slow).await.unwrap());
    assert!(slow.round_trip_ms >= Some(50), "{slow:?}");
    assert!(lab.loss(nodes[0], nodes[1], 30).await.unwrap_err().to_string().contains("netns"));
    assert!(lab.unplug(nodes[0]).await.is_err());
    proven(lab.heal().await.unwrap());
    all_serve(&lab, "delay and slow links on proxies").await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_between_namespaces_are_dropped_counted_and_everybody_is_back_in_time() {
    if let Err(why) = netns::available() {
        eprintln!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(dir.path(), Plane::Netns).await;
    ledger(&lab).await;
    let before = lab.counters().await.unwrap().unwrap();
    leader_cut_off_and_back(&lab, "silence on netns").await;
    let after = lab.counters().await.unwrap().unwrap();
    assert!(after.cut_packets > before.cut_packets, "{before:?} {after:?}");
    assert_eq!(after.lost_packets, 0);

    let nodes = lab.nodes();
    let lossy = Faults::none().with_all(&nodes[..1], &nodes[1..], Flow::Loss { percent: 40 });
    let lossy = proven(lab.install(lossy).await.unwrap());
    assert!(lossy.dropped > Some(0), "{lossy:?}");
    assert!(lab.counters().await.unwrap().unwrap().lost_packets > 0);
    assert!(lab.delay(nodes[0], nodes[1], 10, 0).await.unwrap_err().to_string().contains("proxies"));

    let one_way = proven(lab.install(Faults::one_way(&nodes[..1], &nodes[1..])).await.unwrap());
    assert_eq!((one_way.links, one_way.probes), (4, 8));
    proven(lab.heal().await.unwrap());
    all_serve(&lab, "one way on netns").await;

    let unplugged = proven(lab.unplug(nodes[4]).await.unwrap());
    assert_eq!((unplugged.links, unplugged.dropped), (8, None));
    proven(lab.heal().await.unwrap());
    all_serve(&lab, "a carrier on netns").await;
    lab.stop().await;
}

/// A write that is acknowledged by the leader, the voter that loses its disk, and one more; then only those
/// are left that never had it, and the voter without its memory. They would be a majority, and must not act
/// as one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_with_an_empty_disk_makes_no_majority_with_those_who_missed_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(dir.path(), Plane::Proxies).await;
    let ledger = ledger(&lab).await;
    let led = lab.leader(GroupId::FIRST_DATA).await.unwrap();
    let others = without(&lab.nodes(), &[led.node]);
    let (wiped, witness, absent) = (others[0], others[1], &others[2..]);
    for node in absent {
        assert!(lab.kill(*node).await.unwrap().is_proven());
    }
    let known = async {
        while ledger.write(5).await == 0 {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(SOON, known).await.unwrap();
    for node in [led.node, witness] {
        assert!(lab.kill(node).await.unwrap().is_proven());
    }
    for node in absent {
        assert!(lab.start_node(*node).await.unwrap().is_proven());
    }
    let [emptied, _] = lab.restart_empty(wiped).await.unwrap();
    assert!(emptied.is_proven());

    let strong = |node| {
        let options = ClientOptions {
            write_timeout: Duration::from_millis(500),
            ..ClientOptions::pinned(lab.client_address(node))
        };
        let client = Client::connect(options).unwrap();
        async move { client.strong(STRONG).put("forgetful", "majority").await.is_ok() }
    };
    let until = Instant::now() + FORGETFUL;
    while Instant::now() < until {
        for node in [wiped, absent[0], absent[1]] {
            assert!(!strong(node).await, "{node} took a write from a majority that has forgotten one");
        }
    }
    lab.start_node(witness).await.unwrap();
    let taken = async {
        while !strong(witness).await {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(SOON, taken).await.expect("four of five serve, and one of them remembers");
    lab.start_node(led.node).await.unwrap();
    lab.serving().await.unwrap();
    let missing = ledger.missing().await;
    assert!(missing.is_empty(), "{missing:?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_are_paused_killed_emptied_and_their_files_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let lab = lab(dir.path(), Plane::Proxies).await;
    let ledger = ledger(&lab).await;
    assert!(ledger.write(20).await > 0);

    let before = lab.leader(GroupId::FIRST_DATA).await.unwrap();
    let paused = lab.pause(before.node).await.unwrap();
    assert!(matches!(paused, Proof::Paused { threads: 2.., .. }), "{paused:?}");
    assert_eq!(lab.paused().await.len(), 1);
    let elected = async {
        while lab.leader(GroupId::FIRST_DATA).await.is_none_or(|led| led.term <= before.term) {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(SOON, elected).await.unwrap();
    for stood in [true, false] {
        let resumed = lab.resume(before.node).await.unwrap();
        let said = matches!(resumed, Proof::Resumed { stood_still, .. } if stood_still == stood);
        assert!(said && resumed.is_proven(), "{resumed:?}");
    }
    all_serve(&lab, "a pause").await;

    let killed = lab.kill(NodeId(2)).await.unwrap();
    assert!(killed.is_proven(), "{killed:?}");
    assert!(!lab.kill(NodeId(2)).await.unwrap().is_proven(), "it does not run any more");
    assert!(lab.pause(NodeId(2)).await.is_err());
    // The last segment may be one that was only prepared.
    let logs = Kept::Log.files(&lab.data_dir(NodeId(2))).unwrap();
    let mut written = logs.into_iter().map(|log| (written_length(&log).unwrap(), log));
    let (written, log) = written.rfind(|(written, _)| *written > 0).unwrap();
    // The very end of what was written: a torn tail, which is cut away.
    let flipped = lab.flip_bit(NodeId(2), &log, written - 1, 0).await.unwrap();
    assert!(flipped.is_proven(), "{flipped:?}");
    assert!(lab.flip_bit(NodeId(3), &log, 0, 0).await.is_err(), "it runs, and the file is another's");
    let outside = dir.path().join("cluster.toml");
    assert!(lab.truncate(NodeId(2), &outside, 0).await.is_err());

    let [emptied, started] = lab.restart_empty(NodeId(2)).await.unwrap();
    assert!(emptied.is_proven() && started.is_proven(), "{emptied:?} {started:?}");
    lab.serving().await.unwrap();
    let marks = std::fs::read_to_string(lab.log_file(NodeId(2))).unwrap();
    for mark in ["n2 starts", "n2 was killed", "n2 has a flipped bit", "n2 gets an empty disk"] {
        assert!(marks.contains(mark), "{mark}");
    }
    let rolled = lab.rolling_restart().await.unwrap();
    assert!(rolled.len() == 10 && rolled.iter().all(Proof::is_proven), "{rolled:?}");
    let missing = ledger.missing().await;
    assert!(missing.is_empty(), "{missing:?}");
    lab.stop().await;
}
