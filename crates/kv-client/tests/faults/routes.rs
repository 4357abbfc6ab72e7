//! Which node is asked first, and which one then.

use super::*;

/// A node that names the leader ends the search for it, also where all attempts are used up and a write is
/// only sent again because its fate is open.
#[tokio::test(start_paused = true)]
async fn a_hint_is_followed_where_no_attempt_is_left() {
    let names = ["a:1", "b:1", "c:1"].map(str::to_owned);
    let hint = Failure::new(Reason::NotLeader, "n3 leads").with("leader_address", &names[2]);
    let nodes = [
        Fake::plays(std::iter::repeat_n(refuse(Reason::ConnectionLost), 9)),
        Fake::plays(std::iter::repeat_n(Act::Refuse(hint), 9)),
        Fake::default(),
    ];
    for node in &nodes {
        node.script(|script| (script.members, script.leader) = (names.to_vec(), 1));
    }
    let network = Arc::new(InMemory(names.iter().cloned().zip(nodes.iter().cloned()).collect()));
    let options = ClientOptions { spread: false, attempts: 2, ..ClientOptions::new(names.to_vec()) };
    let client = Client::connect_in(options, Env { network, ..Env::real() }).unwrap();
    client.strong("bank").put("k", "v").await.unwrap();
    let calls = nodes.each_ref().map(|node| node.script(|script| script.calls));
    assert_eq!(calls, [1, 1, 1], "the leader, another one, and the leader that it named");
    // Two that name each other are not asked one after the other without end.
    let [a, b] =
        [0, 1].map(|at| Failure::new(Reason::NotLeader, "it leads").with("leader_address", &names[at]));
    let circle = [
        Fake::plays(
            [refuse(Reason::ResultUnknown)].into_iter().chain((0..10_000).map(|_| Act::Refuse(b.clone()))),
        ),
        Fake::plays((0..10_000).map(|_| Act::Refuse(a.clone()))),
    ];
    for node in &circle {
        node.script(|script| (script.members, script.leader) = (names[..2].to_vec(), 1));
    }
    let network = Arc::new(InMemory(names.iter().cloned().zip(circle.iter().cloned()).collect()));
    let options = ClientOptions { spread: false, ..ClientOptions::new(names[..2].to_vec()) };
    let client = Client::connect_in(options, Env { network, ..Env::real() }).unwrap();
    assert!(client.strong("bank").put("k", "v").await.unwrap_err().is_unknown());
    let calls: usize = circle.iter().map(|node| node.script(|script| script.calls)).sum();
    assert!(calls <= (BUDGET_CAP / RETRY_COST + ATTEMPTS) as usize, "{calls} calls");
}

#[tokio::test]
async fn operations_find_the_leader_and_follow_hints() {
    let (first, second) = (Fake::default(), Fake::default());
    let members = vec![first.start().await, second.start().await];
    for fake in [&first, &second] {
        fake.script(|s| (s.members, s.leader) = (members.clone(), 2));
    }
    let client = Client::connect(ClientOptions::new([members[0].clone()])).unwrap();
    let bank = client.strong("bank");
    bank.put("k", "1").await.unwrap();
    assert_eq!((first.script(|s| s.calls), second.script(|s| s.calls)), (0, 1), "straight to the leader");
    let moved =
        Failure::new(Reason::NotLeader, "n1 leads").with("leader", "n1").with("leader_address", &members[0]);
    second.script(|s| s.acts.push_back(Act::Refuse(moved)));
    bank.put("k", "2").await.unwrap();
    assert_eq!((first.script(|s| s.calls), second.script(|s| s.calls)), (1, 2), "redirected");
    bank.put("k", "3").await.unwrap();
    assert_eq!((first.script(|s| s.calls), second.script(|s| s.calls)), (2, 2), "and remembered");
    assert_eq!(first.script(|s| s.topologies), 1);
}

#[tokio::test]
async fn a_dead_node_is_passed_by() {
    let alive = Fake::default();
    let members = vec![no_server(), alive.start().await];
    alive.script(|s| (s.members, s.leader) = (members.clone(), 1));
    let client = Client::connect(ClientOptions::new(members.clone())).unwrap();
    for _ in 0..5 {
        client.strong("bank").put("k", "1").await.unwrap();
        client.strong("bank").get("k").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_is_asked_of_its_replicas_and_a_slow_one_is_left_for_a_while() {
    let names = ["a:1", "b:1", "c:1"].map(str::to_owned);
    let nodes = [Fake::default(), Fake::default(), Fake::default()];
    for node in &nodes {
        node.script(|script| (script.members, script.replicas) = (names.to_vec(), vec![3, 1]));
    }
    let network = Arc::new(InMemory(names.iter().cloned().zip(nodes.iter().cloned()).collect()));
    // The client knows one node, which keeps nothing.
    let options = ClientOptions::new(vec![names[1].clone()]);
    let cart = Client::connect_in(options, Env { network, ..Env::real() }).unwrap().available("cart");
    let calls = || nodes.each_ref().map(|node| node.script(|script| script.calls));
    for _ in 0..3 {
        cart.get("k").await.unwrap();
        cart.put("k", "v", WriteContext::Observed).await.unwrap();
    }
    assert_eq!(calls(), [0, 0, 6], "the first replica");
    nodes[2].script(|script| script.acts = [Act::Wait(Duration::from_millis(200))].into());
    cart.get("k").await.unwrap();
    for _ in 0..3 {
        cart.get("k").await.unwrap();
    }
    assert_eq!(calls(), [3, 0, 7], "the second, since the first is slow");
    sleep(SPEED_HALF_LIFE * 6).await;
    nodes[2].script(|script| script.acts = [Act::Wait(Duration::from_millis(200))].into());
    let (slow, other) = tokio::join!(cart.get("k"), cart.get("k"));
    slow.unwrap();
    other.unwrap();
    assert_eq!(calls(), [4, 0, 8], "one request tries it again");
    sleep(SPEED_HALF_LIFE * 6).await;
    for _ in 0..3 {
        cart.get("k").await.unwrap();
        sleep(SPEED_HALF_LIFE * 6).await;
    }
    assert_eq!(calls(), [4, 0, 11], "it is fast again");
    // It refuses for itself: the other replica is asked, and it is tried now and then.
    nodes[2].script(|script| script.acts = std::iter::repeat_n(refuse(Reason::NotReady), 500).collect());
    for n in 0..200 {
        cart.get("k").await.unwrap_or_else(|e| panic!("{n}: {e}"));
    }
    let refused = nodes[2].script(|script| std::mem::take(&mut script.acts).len());
    assert!((490..500).contains(&refused), "{} tries", 500 - refused);
    sleep(SPEED_HALF_LIFE * 6).await;
    let before = calls();
    cart.get("k").await.unwrap();
    assert_eq!(calls()[2], before[2] + 1, "it is asked again");
}

#[tokio::test(start_paused = true)]
async fn a_full_replica_is_passed_by_and_a_new_namespace_is_found() {
    let names = ["a:1", "b:1", "c:1"].map(str::to_owned);
    let nodes = [Fake::default(), Fake::default(), Fake::default()];
    let know = |replicas: Vec<u64>| {
        for node in &nodes {
            node.script(|script| (script.members, script.replicas) = (names.to_vec(), replicas.clone()));
        }
    };
    know(Vec::new());
    let network = Arc::new(InMemory(names.iter().cloned().zip(nodes.iter().cloned()).collect()));
    let options = ClientOptions { spread: false, ..ClientOptions::new(vec![names[1].clone()]) };
    let cart = Client::connect_in(options, Env { network, ..Env::real() }).unwrap().available("cart");
    cart.put("k", "v", WriteContext::Observed).await.unwrap();
    assert_eq!(nodes[2].script(|script| script.calls), 0, "no ring is known");
    know(vec![3, 1]);
    sleep(TOPOLOGY_INTERVAL * 2).await;
    cart.put("k", "v", WriteContext::Observed).await.unwrap();
    assert_eq!(nodes[2].script(|script| script.calls), 1, "it is looked for again");
    nodes[2].script(|script| script.acts = [refuse(Reason::LimitStorage)].into());
    cart.put("k", "v", WriteContext::Observed).await.unwrap();
    assert_eq!(nodes[2].script(|script| script.calls), 2, "the other replica has a disk of its own");
}

/// Four of five nodes are down: the fifth is found within one operation, by any of them.
#[tokio::test]
async fn a_node_that_cannot_be_reached_counts_for_no_attempt() {
    let names = ["a:1", "b:1", "c:1", "d:1", "e:1"].map(str::to_owned);
    let alive = Fake::default();
    let client = |attempts| {
        let network = Arc::new(InMemory(BTreeMap::from([(names[4].clone(), alive.clone())])));
        let options = ClientOptions { spread: false, attempts, ..ClientOptions::new(names.to_vec()) };
        Client::connect_in(options, Env { network, ..Env::real() }).unwrap()
    };
    client(ATTEMPTS).available("cart").get("k").await.unwrap();
    client(ATTEMPTS).available("cart").put("k", "v", WriteContext::Observed).await.unwrap();
    client(ATTEMPTS).strong("bank").put("k", "v").await.unwrap();
    assert!(alive.script(|script| script.mutations.iter().all(|(_, attempt, _)| *attempt == 1)));
    // Who asks for one attempt gets one.
    assert_eq!(client(1).available("cart").get("k").await.unwrap_err().reason(), Reason::Unreachable);
    // With none to be reached it ends.
    alive.script(|script| script.calls = 0);
    let network = Arc::new(InMemory(BTreeMap::new()));
    let options = ClientOptions { spread: false, ..ClientOptions::new(names.to_vec()) };
    let none = Client::connect_in(options, Env { network, ..Env::real() }).unwrap();
    let error = none.available("cart").put("k", "v", WriteContext::Observed).await.unwrap_err();
    assert!(!error.is_unknown() && error.reason() == Reason::Unreachable, "{error}");
}

#[tokio::test]
async fn a_replica_without_room_for_request_ids_is_passed_by() {
    let names = ["a:1", "b:1", "c:1"].map(str::to_owned);
    let nodes = [Fake::default(), Fake::default(), Fake::default()];
    for node in &nodes {
        node.script(|script| (script.members, script.replicas) = (names.to_vec(), vec![3, 1]));
    }
    nodes[2].script(|script| script.acts = vec![refuse(Reason::LimitRequests); 9].into());
    let network = Arc::new(InMemory(names.iter().cloned().zip(nodes.iter().cloned()).collect()));
    let options = ClientOptions { spread: false, ..ClientOptions::new(vec![names[1].clone()]) };
    let cart = Client::connect_in(options, Env { network, ..Env::real() }).unwrap().available("cart");
    cart.put("k", "v", WriteContext::Observed).await.unwrap();
    let calls = nodes.each_ref().map(|node| node.script(|script| script.calls));
    assert_eq!(calls, [1, 0, 1], "the other replica has a table of its own");
}

#[tokio::test]
async fn a_pinned_client_does_not_try_a_full_disk_again() {
    let fake = Fake::plays((0..3).map(|_| refuse(Reason::LimitStorage)));
    let cart = pinned(&fake).await.available("cart");
    let error = cart.put("k", "v", WriteContext::Observed).await.unwrap_err();
    assert!(matches!(error, Error::Failed(f) if f.reason == Reason::LimitStorage));
    assert_eq!(fake.script(|script| script.calls), 1);
}

#[tokio::test]
async fn a_pinned_client_ignores_hints_and_asks_for_no_topology() {
    let other = Fake::default();
    let hint = Failure::new(Reason::NotLeader, "elsewhere").with("leader_address", other.start().await);
    let fake = Fake::plays((0..3).map(|_| Act::Refuse(hint.clone())));
    let error = pinned(&fake).await.strong("bank").put("k", "v").await.unwrap_err();
    assert!(matches!(error, Error::Failed(f) if f.reason == Reason::NotLeader));
    assert_eq!(
        (fake.script(|s| s.calls), other.script(|s| s.calls), fake.script(|s| s.topologies)),
        (3, 0, 0)
    );
}

/// Three of five nodes are paused: they take connections and say nothing. A read finds those that are up, and
/// ends with what they say, not with the silence of the others.
#[tokio::test(start_paused = true)]
async fn what_a_cut_off_node_says_counts_for_more_than_the_silence_of_others() {
    let names = ["a:1", "b:1", "c:1", "d:1", "e:1"].map(str::to_owned);
    let paused = || Fake::plays(std::iter::repeat_n(Act::Wait(Duration::from_secs(60)), 50));
    let client = |nodes: [Fake; 5]| {
        let network = Arc::new(InMemory(names.iter().cloned().zip(nodes).collect()));
        let options = ClientOptions { spread: false, ..ClientOptions::new(names.to_vec()) };
        Client::connect_in(options, Env { network, ..Env::real() }).unwrap()
    };
    // An available read needs none of the silent ones.
    let alive = [paused(), paused(), paused(), Fake::default(), Fake::default()];
    client(alive).available("cart").get("k").await.unwrap();
    let cut_off = || {
        let said = Failure::new(Reason::NoQuorum, "2 of 5").with("reachable", 2).with("required", 3);
        Fake::plays(std::iter::repeat_n(Act::Refuse(said), 50))
    };
    for nodes in [
        [paused(), paused(), paused(), cut_off(), cut_off()],
        [paused(), cut_off(), paused(), cut_off(), paused()],
        [cut_off(), paused(), paused(), paused(), cut_off()],
    ] {
        let said = client(nodes.clone()).strong("bank").get("k").await.unwrap_err();
        assert_eq!((said.reason(), said.is_unknown()), (Reason::NoQuorum, false), "{said}");
        let calls: usize = nodes.iter().map(|node| node.script(|script| script.calls)).sum();
        assert!(calls <= MAX_ATTEMPTS as usize, "{calls} calls");
        // A write may have been taken by any that is silent.
        let said = client(nodes).strong("bank").put("k", "v").await.unwrap_err();
        assert!(said.is_unknown(), "{said}");
    }
}

/// A member that is cut off knows an old topology; one at whose address another cluster runs now, another's.
#[tokio::test]
async fn the_newest_topology_is_looked_for_at_every_member() {
    let fakes: Vec<Fake> = (0..5).map(|_| Fake::default()).collect();
    let mut members = Vec::new();
    for fake in &fakes {
        members.push(fake.start().await);
    }
    for (fake, (epoch, cluster)) in fakes.iter().zip([(1, 0), (7, 0), (90, 1), (3, 0), (8, 0)]) {
        fake.script(|script| {
            (script.epoch, script.cluster, script.members) = (epoch, cluster, members.clone());
        });
    }
    fakes[4].script(|script| script.silent = true);
    let client = Client::connect(ClientOptions::pinned(members[0].clone())).unwrap();
    let admin = client.admin();
    let known = admin.topology().await.unwrap();
    assert_eq!(known.epoch.0, 2);
    let newest = admin.newest_topology(known.clone()).await;
    assert_eq!((newest.epoch.0, newest.cluster_id), (8, known.cluster_id));
    // The one that was silent tells it later.
    fakes[4].script(|script| script.silent = false);
    assert_eq!(admin.newest_topology(known).await.epoch.0, 9);
}
