//! What requests are answered: by every node, in a minority, while leaders change, and before anything is
//! proposed.

use std::time::Duration;

use bytes::Bytes;
use kv_proto::{admin, v1};
use kv_types::catalogue::FeatureLevel;
use kv_types::{Applied, GroupId, Hop, Reason};
use tokio::time::Instant;

use crate::support::{Asked, Client, Cluster, evidence, get, put, soon, value, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_serves_and_says_how() {
    let cluster = Cluster::start(|_| {}).await;
    let client = Client::new(1);
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();

    let written = put(cluster.strong(leader), &bank, client.put("a", "1")).await;
    assert_eq!(written.revision, 1);
    let proof = evidence(written.receipt.as_ref());
    assert_eq!((proof.group, proof.namespace_revision, proof.path()), (1, 1, v1::ReadPath::Log));

    // A follower passes the request on, once, and says so.
    let request = client.put("a", "2");
    let through = put(cluster.strong(follower), &bank, request.clone()).await;
    let receipt = through.receipt.as_ref().unwrap();
    assert_eq!((through.revision, receipt.served_by, receipt.deduplicated), (2, leader, false));
    assert_eq!(receipt.degraded, vec![i32::from(v1::Degradation::Forwarded)]);
    let refused =
        cluster.strong(follower).put(&bank, request.clone(), soon(), Hop::Forwarded).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NotLeader, Applied::No));
    assert_eq!(refused.detail("leader"), Some(format!("n{leader}").as_str()));
    assert_eq!(refused.detail("leader_address"), Some(format!("client-of-n{leader}").as_str()));

    // Resent, anywhere: the first result.
    for id in 1..=3 {
        let again = put(cluster.strong(id), &bank, request.clone()).await;
        assert!(again.receipt.as_ref().unwrap().deduplicated);
        assert_eq!(evidence(again.receipt.as_ref()), evidence(through.receipt.as_ref()));
    }
    let reused = v1::PutRequest { value: Bytes::from_static(b"3"), ..request };
    let refused = cluster.strong(follower).put(&bank, reused, soon(), Hop::Client).await.unwrap_err();
    assert_eq!(refused.reason, Reason::RequestIdReused);

    for id in 1..=3 {
        let read = cluster.strong(id).get(&bank, get("a"), soon(), Hop::Client).await.unwrap();
        assert_eq!((read.presence(), &read.value[..], read.revision), (v1::Presence::Found, &b"2"[..], 2));
        let proof = evidence(read.receipt.as_ref());
        assert_eq!((proof.path(), proof.namespace_revision), (v1::ReadPath::ReadIndex, 2));
    }
    let absent = cluster.strong(leader).get(&bank, get("b"), soon(), Hop::Client).await.unwrap();
    assert_eq!((absent.presence(), absent.revision), (v1::Presence::Absent, 0));

    let swap = |expected| v1::CompareAndSetRequest {
        namespace: "bank".into(),
        key: Bytes::from_static(b"a"),
        expected_revision: expected,
        value: Bytes::from_static(b"3"),
        mutation: Some(client.mutation()),
        ..Default::default()
    };
    let strong = cluster.strong(follower);
    let mismatch = strong.compare_and_set(&bank, swap(1), soon(), Hop::Client).await.unwrap();
    assert_eq!((mismatch.swapped, mismatch.revision, &mismatch.found[..]), (false, 2, &b"2"[..]));
    let swapped = strong.compare_and_set(&bank, swap(2), soon(), Hop::Client).await.unwrap();
    assert_eq!((swapped.swapped, swapped.revision), (true, 3));
    let delete = v1::DeleteRequest {
        namespace: "bank".into(),
        key: Bytes::from_static(b"a"),
        mutation: Some(client.mutation()),
        ..Default::default()
    };
    let deleted = strong.delete(&bank, delete, soon(), Hop::Client).await.unwrap();
    assert_eq!((deleted.existed, deleted.revision), (true, 4));

    let past = Instant::now();
    let late = strong.get(&bank, get("a"), past, Hop::Client).await.unwrap_err();
    assert_eq!((late.reason, late.applied), (Reason::DeadlineExpired, Applied::No));
    let status = cluster.strong(leader).status();
    assert!(status.iter().all(|group| group.quorum && group.voters == [1, 2, 3]), "{status:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_refuses_soon_and_says_that_nothing_happened() {
    let mut cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    put(cluster.strong(1), &bank, client.put("a", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    for other in (1..=3).filter(|id| *id != leader) {
        cluster.kill(other).await;
    }
    let cut = Instant::now();
    let strong = cluster.strong(leader);
    // What is proposed before the lease is over may stay open; afterwards refusals are definite and quick.
    let refused = within("a definite refusal", || async {
        let deadline = Instant::now() + Duration::from_millis(300);
        let failure = strong.put(&bank, client.put("a", "2"), deadline, Hop::Client).await.unwrap_err();
        (failure.applied == Applied::No).then_some(failure)
    })
    .await;
    assert_eq!(refused.reason, Reason::NoQuorum);
    assert!(cut.elapsed() < Duration::from_secs(2), "{:?}", cut.elapsed());
    within("both are suspected", || async {
        let failure = strong.get(&bank, get("a"), soon(), Hop::Client).await.unwrap_err();
        assert_eq!((failure.reason, failure.applied), (Reason::NoQuorum, Applied::No), "{failure}");
        (failure.detail("reachable") == Some("1") && failure.detail("required") == Some("2")).then_some(())
    })
    .await;
    for write in [true, false] {
        let asked = Instant::now();
        let failure = match write {
            true => strong.put(&bank, client.put("a", "3"), soon(), Hop::Client).await.unwrap_err(),
            false => strong.get(&bank, get("a"), soon(), Hop::Client).await.unwrap_err(),
        };
        assert_eq!((failure.reason, failure.applied), (Reason::NoQuorum, Applied::No), "{failure}");
        assert!(asked.elapsed() < Duration::from_millis(100), "{:?}", asked.elapsed());
    }
    // With one of them back there is a quorum, and nothing refused is there.
    let back = leader % 3 + 1;
    cluster.bring_up(back).await;
    let (value, _) = value(cluster.strong(back), &bank, "a").await;
    assert_ne!(&value[..], b"3");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_without_its_leader_refuses_at_once() {
    let mut cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    put(cluster.strong(1), &bank, client.put("a", "1")).await;
    let left = cluster.leader(GroupId::FIRST_DATA).await % 3 + 1;
    for other in (1..=3).filter(|id| *id != left) {
        cluster.kill(other).await;
    }
    let strong = cluster.strong(left);
    within("a lost leader", || async { (!strong.status()[1].quorum).then_some(()) }).await;
    tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            let asked = Instant::now();
            let failure = strong.put(&bank, client.put("a", "2"), soon(), Hop::Client).await.unwrap_err();
            assert_eq!((failure.reason, failure.applied), (Reason::NoQuorum, Applied::No), "{failure}");
            assert!(failure.retry_after_ms.is_some());
            if asked.elapsed() < Duration::from_millis(50) {
                break;
            }
        }
    })
    .await
    .unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_on_request() {
    let cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    put(cluster.strong(1), &bank, client.put("a", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let to = leader % 3 + 1;
    // Asked of the node that is neither.
    let other = (1..=3).find(|id| *id != leader && *id != to).unwrap();
    let request = admin::TransferLeaderRequest { group: 1, to };
    let moved = cluster.strong(other).transfer_leader(request, soon(), Hop::Client).await.unwrap();
    assert_eq!(moved.leader, to);
    assert_eq!(cluster.leader(GroupId::FIRST_DATA).await, to);
    assert_eq!(put(cluster.strong(leader), &bank, client.put("a", "2")).await.revision, 2);
    // Not again at once, wherever it is asked: each move interrupts the group.
    for id in 1..=3 {
        let back = admin::TransferLeaderRequest { group: 1, to: leader };
        let refused = cluster.strong(id).transfer_leader(back, soon(), Hop::Client).await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::Overloaded, Applied::No), "{refused}");
        assert!(refused.retry_after_ms.is_some_and(|ms| ms > 1_000), "{refused:?}");
    }
    assert_eq!(cluster.leader(GroupId::FIRST_DATA).await, to);
    let stranger = admin::TransferLeaderRequest { group: 1, to: 9 };
    let refused = cluster.strong(1).transfer_leader(stranger, soon(), Hop::Client).await.unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidRequest);
    cluster.stop().await;
}

/// One that was deposed behind a cut does not know it: it asks its quorum before it says that it leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_no_quorum_confirms_does_not_say_that_it_leads() {
    let mut cluster = Cluster::start(|_| {}).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let itself = || admin::TransferLeaderRequest { group: 1, to: leader };
    let led = cluster.strong(leader).transfer_leader(itself(), soon(), Hop::Client).await.unwrap();
    assert_eq!((led.leader, led.term), (leader, cluster.data(leader).term));
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.kill(id).await;
    }
    // It has not lost its role: nothing told it of another leader.
    assert_eq!(cluster.data(leader).role(), admin::GroupRole::Leader);
    let refused = cluster.strong(leader).transfer_leader(itself(), soon(), Hop::Client).await.unwrap_err();
    let why = matches!(refused.reason, Reason::NoQuorum | Reason::NotLeader);
    assert!(why && refused.applied == Applied::No, "{refused:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_hands_over_first() {
    let cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    put(cluster.strong(1), &bank, client.put("a", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let leads = |id: u64| {
        let status = cluster.strong(id).status();
        let led = |group: &admin::GroupStatus| group.role == i32::from(admin::GroupRole::Leader);
        status.iter().filter(|group| led(group)).count()
    };
    assert!(leads(leader) > 0);
    cluster.strong(leader).resign(soon()).await;
    assert_eq!(leads(leader), 0, "when it returns, and not when others have missed its heartbeats");
    assert_ne!(cluster.leader(GroupId::FIRST_DATA).await, leader);
    assert_eq!(put(cluster.strong(leader), &bank, client.put("a", "2")).await.revision, 2);
    // A follower has nothing to hand over.
    cluster.strong(leader).resign(soon()).await;
    cluster.stop().await;
}

/// A client whose clock is wrong hears so from its first attempt, and nothing of it reaches the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opening_from_the_future_is_refused_before_it_is_proposed() {
    let cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    put(cluster.strong(leader), &bank, Client::new(1).put("a", "1")).await;
    let before = cluster.data(leader).last_index;
    let mut ahead = Client::new(2).put("a", "2");
    ahead.mutation.as_mut().unwrap().issued_at_ms += 10 * 60_000;
    for id in 1..=3 {
        let refused = cluster.strong(id).put(&bank, ahead.clone(), soon(), Hop::Client).await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::RequestIdInvalid, Applied::No), "{refused}");
        assert!(refused.detail("clock_ahead_ms").is_some(), "{refused:?}");
    }
    assert_eq!(cluster.data(leader).last_index, before);
    assert_eq!(value(cluster.strong(leader), &bank, "a").await.1, 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_is_not_raised_beyond_what_members_support() {
    let mut cluster = Cluster::start(|_| {}).await;
    let leader = cluster.leader(GroupId::CATALOGUE).await;
    let supported = FeatureLevel::SUPPORTED;
    assert_eq!(cluster.strong(leader).raise_level(supported, soon()).await, Ok(supported));
    let beyond = FeatureLevel(supported.0 + 1);
    let refused = cluster.strong(leader).raise_level(beyond, soon()).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::NotReady, Applied::No));
    assert!(refused.message.contains("upgrade it first"), "{refused}");
    let follower = leader % 3 + 1;
    let refused = cluster.strong(follower).raise_level(beyond, soon()).await.unwrap_err();
    assert_eq!(refused.reason, Reason::NotLeader);
    // One that does not answer may be of an older release.
    cluster.kill(follower).await;
    let refused = cluster.strong(leader).raise_level(beyond, soon()).await.unwrap_err();
    assert!(
        refused.message.contains("upgrade it first") || refused.message.contains("did not say"),
        "{refused}"
    );
    assert_eq!(cluster.strong(leader).catalogue().borrow().level, supported);
    cluster.stop().await;
}
