//! What was acknowledged survives kills and the loss of a disk; a member that does not vote learns it.

use std::time::Duration;

use bytes::Bytes;
use kv_proto::{admin, v1};
use kv_types::{Applied, GroupId, Hop, Reason};
use tokio::time::Instant;

use crate::snapshots::same_digest_everywhere;
use crate::support::{Asked, Client, Cluster, PATIENCE, Valve, get, put, soon, value, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_the_death_of_every_process() {
    let mut cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    let requests: Vec<_> = (1..=20).map(|n| client.put(&format!("k{n}"), &n.to_string())).collect();
    for request in &requests {
        put(cluster.strong(1), &bank, request.clone()).await;
    }
    for id in 1..=3 {
        cluster.kill(id).await;
    }
    for id in 1..=3 {
        cluster.bring_up(id).await;
    }
    for n in 1..=20 {
        let expected = (Bytes::from(n.to_string()), n);
        assert_eq!(value(cluster.strong(n % 3 + 1), &bank, &format!("k{n}")).await, expected);
    }
    // Sessions too: the last request is still known.
    let again = put(cluster.strong(2), &bank, requests[19].clone()).await;
    assert_eq!((again.revision, again.receipt.unwrap().deduplicated), (20, true));
    assert!(cluster.strong(1).catalogue().borrow().namespace("bank").is_some());
    cluster.stop().await;
}

/// The write is acknowledged by two of three; one of the two loses its disk, the other is away. The
/// nodes that are left must not elect a leader from a node that forgot and a node that never knew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_lost_its_disk_does_not_help_to_forget() {
    let mut cluster = Cluster::start(|_| {}).await;
    let client = Client::new(1);
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    put(cluster.strong(1), &bank, client.put("a", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let mut others = (1..=3).filter(|id| *id != leader);
    let (wiped, away) = (others.next().unwrap(), others.next().unwrap());
    cluster.kill(away).await;
    put(cluster.strong(leader), &bank, client.put("a", "2")).await;
    cluster.kill(leader).await;
    cluster.wipe(wiped).await;

    cluster.bring_up(wiped).await;
    cluster.bring_up(away).await;
    let together = Instant::now();
    while together.elapsed() < Duration::from_secs(3) {
        // Whatever is answered meanwhile is the truth.
        let deadline = Instant::now() + Duration::from_millis(300);
        if let Ok(read) = cluster.strong(away).get(&bank, get("a"), deadline, Hop::Client).await {
            panic!("answered by a node that forgot and one that never knew: {read:?}");
        }
    }
    cluster.bring_up(leader).await;
    assert_eq!(value(cluster.strong(wiped), &bank, "a").await.0, Bytes::from_static(b"2"));

    // Once it has caught up it counts again: with it and without the leader there is a majority that knows.
    within("the wiped voter votes", || async {
        let settled = (0..=1).all(|group| !cluster.joins(wiped, GroupId(group)));
        let caught_up = cluster.strong(wiped).status().iter().all(|group| group.applied_index > 0);
        (settled && caught_up).then_some(())
    })
    .await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    cluster.kill(if leader == wiped { away } else { leader }).await;
    assert_eq!(value(cluster.strong(wiped), &bank, "a").await.0, Bytes::from_static(b"2"));
    put(cluster.strong(wiped), &bank, client.put("a", "3")).await;
    cluster.stop().await;
}

/// A leader counts what a voter acknowledged before it lost its disk, and commits with one more that had
/// answered the voter's questions before. The voter then has all that it was told of, and not what was
/// committed: it must not yet help those who have not either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_joins_waits_for_what_was_committed_behind_its_back() {
    let mut cluster = Cluster::start_with(5, |_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    put(cluster.strong(1), &bank, client.put("a", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let others: Vec<u64> = (1..=5).filter(|id| *id != leader).collect();
    let (wiped, third, behind) = (others[0], others[1], [others[2], others[3]]);
    let known = cluster.data(leader).last_index;
    within("the same log everywhere", || async {
        (1..=5).all(|id| cluster.data(id).applied_index == known).then_some(())
    })
    .await;

    // Two writes reach the leader and one voter. The second is sent when the leader has heard that the first
    // is there.
    for id in [third, behind[0], behind[1]] {
        cluster.valve(id).up_to = Some(known);
    }
    let write = |request: v1::PutRequest| {
        let (strong, bank) = (cluster.strong(leader).clone(), bank.clone());
        tokio::spawn(async move { strong.put(&bank, request, Instant::now() + PATIENCE, Hop::Client).await })
    };
    let written = write(client.put("a", "2"));
    within("the write at one voter", || async { (cluster.data(wiped).last_index > known).then_some(()) })
        .await;
    let next = write(Client::new(2).put("b", "1"));
    within("the next one", || async { (cluster.data(wiped).last_index > known + 1).then_some(()) }).await;
    cluster.wipe(wiped).await;

    // It asks the three that do not know; then one of them learns, and that is a majority with what was
    // forgotten.
    cluster.valve(leader).mute = true;
    cluster.valve(wiped).deaf = true;
    cluster.bring_up(wiped).await;
    within("a note", || async { cluster.joins(wiped, GroupId::FIRST_DATA).then_some(()) }).await;
    assert!(!written.is_finished());
    cluster.valve(third).up_to = None;
    assert_eq!(written.await.unwrap().unwrap().revision, 2);

    // It gets what it noted, and what tells it that this is not all.
    *cluster.valve(wiped) = Valve { up_to: Some(known), ..Valve::default() };
    within("what it noted", || async { (cluster.data(wiped).applied_index == known).then_some(()) }).await;
    // Nor is it given the leadership: refused at once, before anybody stops serving.
    let transfer = admin::TransferLeaderRequest { group: 1, to: wiped };
    let asked = Instant::now();
    let refused = cluster.strong(leader).transfer_leader(transfer, soon(), Hop::Client).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NotReady, Applied::No), "{refused}");
    assert!(refused.message.contains("its directory was fresh"), "{refused}");
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(cluster.data(leader).role(), admin::GroupRole::Leader);
    let (told, mut pause) = (Instant::now(), tokio::time::interval(Duration::from_millis(20)));
    while told.elapsed() < Duration::from_secs(1) {
        pause.tick().await;
        assert!(cluster.joins(wiped, GroupId::FIRST_DATA), "settled without what was committed");
    }

    // Without the nodes that know, none may answer.
    cluster.kill(leader).await;
    cluster.kill(third).await;
    let left = Instant::now();
    while left.elapsed() < Duration::from_secs(3) {
        let deadline = Instant::now() + Duration::from_millis(300);
        if let Ok(read) = cluster.strong(behind[0]).get(&bank, get("a"), deadline, Hop::Client).await {
            panic!("answered by a node that forgot and two that never knew: {read:?}");
        }
    }
    next.abort();
    for valve in cluster.valves.values() {
        *valve.lock().unwrap() = Valve::default();
    }
    cluster.bring_up(third).await;
    assert_eq!(value(cluster.strong(wiped), &bank, "a").await.0, Bytes::from_static(b"2"));
    within("it settles", || async { (!cluster.joins(wiped, GroupId::FIRST_DATA)).then_some(()) }).await;
    cluster.stop().await;
}

/// Neither of two can lead without the other's vote. The one with the empty disk has heard from all others,
/// which is one, and votes for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_voters_one_may_lose_its_disk() {
    let mut cluster = Cluster::start_with(2, |_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    put(cluster.strong(1), &bank, client.put("a", "1")).await;
    let wiped = cluster.leader(GroupId::FIRST_DATA).await;
    let kept = 3 - wiped;
    cluster.kill(kept).await;
    cluster.wipe(wiped).await;
    cluster.bring_up(wiped).await;
    cluster.bring_up(kept).await;
    assert_eq!(value(cluster.strong(wiped), &bank, "a").await.0, Bytes::from_static(b"1"));
    within("it settles", || async {
        (0..=1).all(|group| !cluster.joins(wiped, GroupId(group))).then_some(())
    })
    .await;
    let transfer = admin::TransferLeaderRequest { group: 1, to: wiped };
    within("its leadership", || async {
        cluster.strong(kept).transfer_leader(transfer, soon(), Hop::Client).await.ok()
    })
    .await;
    assert_eq!(put(cluster.strong(kept), &bank, client.put("a", "2")).await.revision, 2);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sixth_member_learns() {
    let cluster = Cluster::start_with(6, |_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    assert_eq!(put(cluster.strong(6), &bank, Client::new(1).put("a", "1")).await.revision, 1);
    let learner = within("its first entries", || async {
        let group = cluster.strong(6).status().into_iter().find(|group| group.group == 1)?;
        (group.role() == admin::GroupRole::Learner && group.applied_index > 0).then_some(group)
    })
    .await;
    assert_eq!(learner.voters, [1, 2, 3, 4, 5]);
    cluster.stop().await;
}

/// A member whose disk has damaged the history of a namespace gets it back from the others: before, it stayed
/// lost, and the digest another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_history_comes_back_from_another_member() {
    let mut cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    for n in 1..=20 {
        put(cluster.strong(1), &bank, client.put(&format!("key number {n}"), "v")).await;
        // So that there are as many blocks in the journal.
        let applied = cluster.data(1).applied_index;
        within("it everywhere", || async {
            (1..=3).all(|id| cluster.data(id).applied_index >= applied).then_some(())
        })
        .await;
        cluster.nodes[&2].storage.checkpoint().await.unwrap();
    }
    same_digest_everywhere(&cluster, &bank).await;
    cluster.kill(2).await;
    let journals = std::fs::read_dir(cluster.dirs[1].join("journals")).unwrap();
    let mut flipped = 0;
    for file in journals.map(|file| file.unwrap().path()) {
        let mut bytes = std::fs::read(&file).unwrap();
        for needle in [b"key number 5", b"key number 7", b"key number 8"] {
            let places: Vec<_> =
                (0..bytes.len() - needle.len()).filter(|at| bytes[*at..].starts_with(needle)).collect();
            for at in places {
                bytes[at] ^= 1;
                flipped += 1;
            }
        }
        std::fs::write(&file, bytes).unwrap();
    }
    assert_eq!(flipped, 3, "each is in the history once");
    cluster.bring_up(2).await;
    let whole = cluster.strong(1).digest(&bank, soon()).await.unwrap();
    let damaged = within("a digest of the damaged one", || async {
        let said = cluster.strong(2).digest(&bank, soon()).await.ok()?;
        (said.applied_index == whole.applied_index).then_some(said)
    });
    assert_ne!(damaged.await.partitions, whole.partitions, "what is damaged is not believed");
    same_digest_everywhere(&cluster, &bank).await;
    cluster.kill(2).await;
    cluster.bring_up(2).await;
    same_digest_everywhere(&cluster, &bank).await;
    cluster.stop().await;
}
