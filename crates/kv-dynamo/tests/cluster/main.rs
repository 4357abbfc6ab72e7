//! Five nodes in one process over real loopback connections, each with its own storage, and a network that
//! can be cut in silence: bytes are held back, nothing is closed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "an integration test"
)]

mod behind;
mod deleted;
#[path = "../gate/mod.rs"]
mod gate;
mod harness;
mod promises;
mod pulls;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use gate::{Gate, GatedTiers};
use kv_dynamo::{Available, AvailableConfig};
use kv_env::{Connection, Env, Listener, Network, TcpNetwork};
use kv_peer::{Address, PeerConfig, PeerHandler, PeerRequest, Peers};
use kv_proto::peer::{request_frame, response_frame};
use kv_proto::{DataRequest, client_id_bytes, peer, v1};
use kv_storage::disk::MemDisk;
use kv_storage::tier::MemTiers;
use kv_storage::{Storage, StorageOptions};
use kv_types::catalogue::{Catalogue, FeatureLevel, Member, Ring};
use kv_types::causal::{Dot, Hlc, NodeClock, Seen, Sibling, State, Write};
use kv_types::{
    Applied, ClientId, ClusterId, Epoch, Failure, Hop, Incarnation, Namespace, NamespaceId, NamespaceName,
    NamespaceSpec, NodeId, Placement, Reason, Replication, RequestId, RingId,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use harness::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_of_a_silent_cut_go_on_and_converge_after_it() {
    let cluster = Cluster::start().await;
    let keys: Vec<String> = (0..60).map(|n| format!("key-{n}")).collect();
    for result in join_all(keys.iter().map(|key| cluster.put(1, key, "before"))).await {
        result.unwrap();
    }
    let whole = cluster.get(5, &keys[0], 3).await.unwrap();
    assert_eq!((shown(&whole), whole.presence()), (vec!["before".to_owned()], v1::Presence::Found));

    // From the very first request on, both sides answer within a second.
    cluster.cut(&[4, 5]);
    let begun = Instant::now();
    let minority = join_all(keys.iter().map(|key| cluster.put(4, key, "minority")));
    let majority = join_all(keys.iter().map(|key| cluster.put(1, key, "majority")));
    let (minority, majority) = tokio::join!(minority, majority);
    eprintln!("the first requests of both sides took {:?}", begun.elapsed());
    let receipts: Vec<v1::Receipt> =
        minority.into_iter().chain(majority).map(|answer| answer.unwrap().receipt.unwrap()).collect();
    let fallbacks = receipts.iter().filter(|r| r.degraded().any(|d| d == v1::Degradation::Fallback)).count();
    assert!(fallbacks > 0, "a fallback stood in");
    for key in &keys {
        assert_eq!(shown(&cluster.get(5, key, 2).await.unwrap()), vec!["minority"]);
        assert_eq!(shown(&cluster.get(2, key, 2).await.unwrap()), vec!["majority"]);
    }
    // Once the others are suspected, nothing costs patience.
    let begun = Instant::now();
    cluster.put(4, &keys[0], "minority").await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    let hints: u64 = cluster.nodes.values().map(|n| n.dynamo.hints_pending().values().sum::<u64>()).sum();
    assert!(hints > 0);

    // A key that no node on this side knows, and whose primaries are all on the other, is not called absent.
    let unknown = (0..).map(|n| format!("unknown-{n}")).find(|key| {
        let owners = cluster.nodes[&NodeId(4)].dynamo.owners(&cluster.namespace, key.as_bytes()).unwrap();
        owners.primaries.iter().all(|primary| *primary < 4)
    });
    let unknown = unknown.unwrap();
    assert_eq!(cluster.get(4, &unknown, 1).await.unwrap().presence(), v1::Presence::NoKnowledge);
    let absent = cluster.get(1, &unknown, 2).await.unwrap();
    assert_eq!(absent.presence(), v1::Presence::Absent);
    let evidence = available(absent.receipt.as_ref());
    assert!(
        evidence.replies.iter().filter(|r| r.answered).all(|r| r.knows),
        "a primary knows that there is none"
    );
    let evidence = available(cluster.get(4, &unknown, 1).await.unwrap().receipt.as_ref());
    assert!(evidence.replies.iter().all(|r| !r.knows), "a fallback without a hint knows nothing");

    // A strict write that cannot be met is refused before anything is written.
    let mut strict = cluster.request(&unknown, "x", v1::write_context::Context::Observed(true));
    strict.strict = true;
    let refused = cluster.send(4, strict).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::QuorumNotMet, Applied::No));

    cluster.cut(&[]);
    let took = cluster.converge().await;
    eprintln!("{hints} hints, converged {took:?} after the heal");
    assert!(took < Duration::from_secs(5));
    for key in &keys {
        for node in 1..=NODES {
            let all = cluster.get(node, key, 3).await.unwrap();
            assert_eq!(shown(&all), vec!["majority", "minority"], "{key} at n{node}");
        }
    }
    // Reading and writing with what was read resolves a conflict.
    let conflict = cluster.get(3, &keys[7], 2).await.unwrap();
    let resolve = cluster.request(&keys[7], "both", v1::write_context::Context::Causal(conflict.context));
    cluster.send(2, resolve).await.unwrap();
    cluster.converge().await;
    assert_eq!(shown(&cluster.get(5, &keys[7], 3).await.unwrap()), vec!["both"]);
}

/// A receipt names each primary that was not heard, and none of those that may answer yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_names_the_replicas_that_were_silent_and_no_others() {
    let cluster = Cluster::start().await;
    let key = key_of(&cluster, "key", &[1, 5]);
    let silent = |evidence: &v1::AvailableEvidence| -> Vec<u64> {
        evidence.replies.iter().filter(|reply| !reply.answered).map(|reply| reply.node).collect()
    };
    let degraded = |receipt: Option<&v1::Receipt>| receipt.unwrap().degraded().collect::<Vec<_>>();
    // All are up: W of them have answered, and of the third, which may answer yet, nothing is said.
    let healthy = cluster.put(1, &key, "before").await.unwrap();
    assert_eq!(silent(&available(healthy.receipt.as_ref())), [] as [u64; 0]);
    assert!(degraded(healthy.receipt.as_ref()).is_empty());

    cluster.cut(&[5]);
    let away = |c: &Cluster| !c.nodes[&NodeId(1)].peers.liveness(NodeId(5)).is_up();
    cluster.until("n1 knows that n5 is away", away).await;
    let put = cluster.put(1, &key, "during").await.unwrap();
    let evidence = available(put.receipt.as_ref());
    assert_eq!(silent(&evidence), [5], "it was not even asked");
    assert!(degraded(put.receipt.as_ref()).contains(&v1::Degradation::PrimarySilent));
    let answered = evidence.replies.iter().filter(|reply| reply.answered);
    assert!(answered.clone().count() >= 2 && answered.clone().all(|reply| reply.node != 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_resent_anywhere_is_one_write() {
    let cluster = Cluster::start().await;
    let first = cluster.request("k", "a", v1::write_context::Context::Observed(true));
    cluster.send(1, first.clone()).await.unwrap();
    // What a write supersedes is what its coordinator has: every replica has the first one by then.
    cluster.converge().await;
    cluster.put(2, "k", "b").await.unwrap();
    for node in 1..=NODES {
        cluster.send(node, first.clone()).await.unwrap();
    }
    cluster.converge().await;
    assert_eq!(shown(&cluster.get(3, "k", 3).await.unwrap()), vec!["b"]);
    let again = cluster.send(4, first.clone()).await.unwrap().receipt.unwrap();
    assert!(again.deduplicated);
    let mut other = first;
    other.value = Bytes::from_static(b"c");
    assert_eq!(cluster.send(1, other).await.unwrap_err().reason, Reason::RequestIdReused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_outlive_the_process_that_holds_them() {
    let mut cluster = Cluster::start().await;
    let keys: Vec<String> = (0..30).map(|n| format!("key-{n}")).collect();
    cluster.cut(&[4, 5]);
    for answer in join_all(keys.iter().map(|key| cluster.put(4, key, "kept"))).await {
        answer.unwrap();
    }
    let held = |cluster: &Cluster| cluster.nodes[&NodeId(4)].dynamo.hints_pending();
    let before = held(&cluster);
    assert!(before.values().sum::<u64>() > 0);
    let disk = cluster.nodes[&NodeId(4)].disk.clone();
    disk.kill();
    cluster.restart(NodeId(4), disk).await;
    assert_eq!(held(&cluster), before);
    cluster.cut(&[]);
    cluster.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resend_that_left_no_trace_is_a_sibling_wherever_it_arrives() {
    let cluster = Cluster::start().await;
    for node in 1..=NODES {
        let key = format!("key-{node}");
        cluster.put(1, &key, "acknowledged").await.unwrap();
        // Its first attempt was taken by a node that is not here, and superseded; no node here can tell.
        let mut resent = cluster.request(&key, "resent", v1::write_context::Context::Observed(true));
        resent.mutation.as_mut().unwrap().attempt = 2;
        cluster.send(node, resent).await.unwrap();
        assert_eq!(
            shown(&cluster.get(node, &key, 3).await.unwrap()),
            vec!["acknowledged", "resent"],
            "at n{node}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_refuses_what_counts_for_another_epoch_of_its_ring() {
    let cluster = Cluster::start().await;
    let owners = cluster.nodes[&NodeId(1)].dynamo.owners(&cluster.namespace, b"k").unwrap();
    let primary = &cluster.nodes[&NodeId(owners.primaries[0])].dynamo;
    let ask = |epoch: u64, body: request_frame::Body| {
        primary.handle(PeerRequest {
            from: NodeId(owners.primaries[1]),
            about: Address { namespace: cluster.namespace.id, epoch: Epoch(epoch), ..Address::default() },
            deadline: Instant::now() + Duration::from_secs(1),
            body,
        })
    };
    let (ring, partition, key) = (owners.ring, owners.partition, Bytes::from_static(b"k"));
    let write = || {
        request_frame::Body::ReplicaWrite(peer::ReplicaWrite {
            ring,
            partition,
            key: key.clone(),
            record: State::default().encode(),
            hint_for: 0,
            counted: false,
        })
    };
    let read = || request_frame::Body::ReplicaRead(peer::ReplicaRead { ring, partition, key: key.clone() });
    // The ring is of epoch 1, the catalogue of epoch 2; 0 is merge traffic.
    for (epoch, taken) in [(1, true), (2, false), (7, false), (0, true)] {
        for body in [write(), read()] {
            match ask(epoch, body).await {
                Ok(_) => assert!(taken, "epoch {epoch} was taken"),
                Err(failure) => assert!(
                    !taken && (failure.reason, failure.applied) == (Reason::WrongEpoch, Applied::No),
                    "epoch {epoch}: {failure}"
                ),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_leaves_the_fate_open_by_the_deadline() {
    let cluster = Cluster::start().await;
    cluster.put(1, "k", "before").await.unwrap();
    for node in cluster.nodes.values() {
        node.disk.set_sync_delay(Duration::from_secs(3));
    }
    let begun = Instant::now();
    let (failure, unread) = tokio::join!(cluster.put(1, "k", "slow"), cluster.put(1, "l", "slow"));
    let failure = failure.unwrap_err();
    assert_eq!(failure.applied, Applied::Unknown, "{failure}");
    assert_eq!(unread.unwrap_err().applied, Applied::Unknown);
    let took = begun.elapsed();
    assert!((Duration::from_millis(200)..Duration::from_millis(1_100)).contains(&took), "{took:?}");
    for node in cluster.nodes.values() {
        node.disk.set_sync_delay(Duration::ZERO);
    }
    // It was in the log: it is there once the disk is done with it, and finds its way without being read.
    cluster.converge().await;
    cluster.until_shown("k", "slow").await;
    cluster.until_shown("l", "slow").await;
}

#[tokio::test]
async fn a_stalled_tier_holds_up_the_requests_that_need_it_alone() {
    // What is new stays in memory until a checkpoint asks for it.
    let mut options = StorageOptions::memory("/data");
    options.drain_interval = Duration::from_secs(3_600);
    options.drain_start_bytes = options.memtable_bytes;
    options.cache_bytes = 0;
    let cluster = Cluster::start_with(options).await;
    let [cold, hot, new] = ["cold", "hot", "new"].map(|name| key_of(&cluster, name, &[1, 2]));
    for key in [&cold, &hot] {
        cluster.put(1, key, "before").await.unwrap();
    }
    cluster.converge().await;
    let first = &cluster.nodes[&NodeId(1)];
    first.storage.checkpoint().await.unwrap();
    cluster.put(1, &hot, "in memory").await.unwrap();

    first.gate.hold(usize::MAX);
    let ended = std::sync::atomic::AtomicUsize::new(0);
    let end = || ended.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let reading = async {
        let read = cluster.get_from(1, &cold, 3, true).await;
        end();
        read
    };
    let writing = async {
        let written = cluster.put(1, &cold, "never").await;
        end();
        written
    };
    let others = async {
        cluster.until("the tier is asked", |_| first.gate.waiting() >= 2).await;
        let (mut rounds, mut during) = (0, 0);
        while ended.load(std::sync::atomic::Ordering::SeqCst) < 2 {
            cluster.put(1, &hot, &rounds.to_string()).await.unwrap();
            assert_eq!(shown(&cluster.get(1, &hot, 2).await.unwrap()), [rounds.to_string()]);
            sleep(Duration::from_millis(10)).await;
            rounds += 1;
            during += usize::from(ended.load(std::sync::atomic::Ordering::SeqCst) == 0);
        }
        assert!(during > 0, "nothing went on while the others waited");
        // The others answer for it, and take what it cannot look up.
        assert_eq!(shown(&cluster.get(1, &cold, 2).await.unwrap()), ["before"]);
        cluster.put(2, &new, "new").await.unwrap();
        let up = |node: &Node| node.peers.snapshot().iter().all(|(_, liveness)| liveness.is_up());
        assert!(cluster.nodes.values().all(up), "heartbeats go on");
    };
    let (read, written, ()) = tokio::join!(reading, writing, others);
    assert!(!first.gate.is_overdue(), "the node stood still");
    let refused = |failure: Failure| (failure.reason, failure.applied);
    assert_eq!(refused(read.unwrap_err()), (Reason::QuorumNotMet, Applied::No));
    assert_eq!(refused(written.unwrap_err()), (Reason::DeadlineExpired, Applied::No));

    first.gate.release();
    assert_eq!(shown(&cluster.get_from(1, &cold, 3, true).await.unwrap()), ["before"]);
    cluster.put(1, &cold, "after").await.unwrap();
    cluster.until_shown(&cold, "after").await;
    cluster.until_shown(&new, "new").await;
    cluster.converge().await;
}

impl Cluster {
    fn owners(&self, key: &str) -> (Vec<u64>, Vec<u64>) {
        let of = &self.nodes[&NodeId(1)].dynamo;
        let owners = of.owners(&self.namespace, key.as_bytes()).unwrap();
        (owners.primaries, owners.fallbacks)
    }

    /// A delete of what is observed.
    async fn delete_observed(
        &self,
        node: u64,
        key: &str,
        attempt: u32,
    ) -> Result<v1::DeleteResponse, Failure> {
        let context = v1::write_context::Context::Observed(true);
        let request = v1::DeleteRequest {
            namespace: "cart".into(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            mutation: Some(v1::Mutation { attempt, ..self.mutation() }),
            context: Some(v1::WriteContext { context: Some(context) }),
            ..Default::default()
        };
        let deadline = Instant::now() + Duration::from_secs(1);
        let (_, call) = request.read()?;
        let served = self.nodes[&NodeId(node)].dynamo.serve(&self.namespace, call, deadline, Hop::Client);
        timeout(Duration::from_millis(1_100), served).await.unwrap()?.try_into()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_is_not_acknowledged_by_those_who_do_not_know_what_it_deletes() {
    let cluster = Cluster::start().await;
    let keys = |name: &str, cut_off: &[u64]| {
        let all_here = |key: &String| cluster.owners(key).0.iter().all(|node| !cut_off.contains(node));
        (0..).map(|n| format!("{name}-{n}")).find(all_here).unwrap()
    };
    // Keys whose primaries are all on the other side of the cut.
    let (deleted, put) = (keys("deleted", &[4, 5]), keys("put", &[4, 5]));
    for key in [&deleted, &put] {
        cluster.put(1, key, "before").await.unwrap();
    }
    cluster.converge().await;
    cluster.cut(&[4, 5]);
    for node in [4, 5] {
        let refused = cluster.delete_observed(node, &deleted, 1).await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::QuorumNotMet, Applied::No), "{refused}");
    }
    // A put is taken: this side goes on, and drops nothing that it has not seen.
    cluster.put(4, &put, "meanwhile").await.unwrap();
    // What this side has it deletes.
    assert_eq!(shown(&cluster.get(5, &put, 2).await.unwrap()), ["meanwhile"]);
    cluster.delete_observed(5, &put, 1).await.unwrap();
    assert!(shown(&cluster.get(4, &put, 2).await.unwrap()).is_empty());
    cluster.cut(&[]);
    cluster.converge().await;
    assert_eq!(shown(&cluster.get(4, &deleted, 3).await.unwrap()), ["before"]);
    assert_eq!(shown(&cluster.get(4, &put, 3).await.unwrap()), ["before"]);
    for node in 1..=NODES {
        let key = format!("key-{node}");
        cluster.put(1, &key, "before").await.unwrap();
        cluster.converge().await;
        // A resend without a trace, wherever it arrives; then a first attempt.
        let open = cluster.delete_observed(node, &key, 2).await.unwrap_err();
        assert_eq!(open.applied, Applied::Unknown, "at n{node}: {open}");
        assert_eq!(shown(&cluster.get(node, &key, 3).await.unwrap()), ["before"]);
        cluster.delete_observed(node, &key, 1).await.unwrap();
        assert!(shown(&cluster.get(node, &key, 3).await.unwrap()).is_empty(), "at n{node}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_names_writes_and_has_no_record_is_refused() {
    let cluster = Cluster::start().await;
    cluster.put(1, "k", "v").await.unwrap();
    let owners = cluster.nodes[&NodeId(1)].dynamo.owners(&cluster.namespace, b"k").unwrap();
    let request = kv_types::RequestId { client_id: ClientId(9), seq: 1_000 };
    let write = kv_types::causal::Write { issued_at_ms: Env::real().clock.wall_ms(), request, body: 1 };
    let dot = kv_types::causal::Dot { incarnation: kv_types::Incarnation(7), counter: 1 };
    let bare = State { writes: BTreeMap::from([(dot, write)]), ..State::default() };
    for hint_for in [0, owners.primaries[1]] {
        let body = request_frame::Body::ReplicaWrite(peer::ReplicaWrite {
            ring: owners.ring,
            partition: owners.partition,
            key: "k".into(),
            record: bare.encode(),
            hint_for,
            counted: false,
        });
        let refused = cluster.nodes[&NodeId(owners.primaries[0])].dynamo.handle(PeerRequest {
            from: NodeId(owners.primaries[1]),
            about: Address { namespace: cluster.namespace.id, epoch: Epoch(0), ..Address::default() },
            deadline: Instant::now() + Duration::from_secs(1),
            body,
        });
        let refused = refused.await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::InvalidRequest, Applied::No));
    }
}
