//! Writes whose fate is open: what is said of them, and how they are sent again.

use super::*;

#[tokio::test]
async fn a_write_is_sent_again_under_its_id() {
    let fake = Fake::plays([refuse(Reason::LimitStorage), Act::Answer, refuse(Reason::LimitStorage)]);
    let client = pinned(&fake).await;
    let error = client.strong("bank").put("alice", "1").await.unwrap_err();
    let id = error.write_id().unwrap();
    assert_eq!(id.to_string().parse(), Ok(id));
    // In another process.
    let other = pinned(&fake).await.strong("bank").resending(id);
    assert!(other.put("alice", "1").await.is_ok());
    let mutations = fake.script(|s| s.mutations.clone());
    assert_eq!((mutations[0].0, mutations[1].0), (id.request_id, id.request_id));
    assert!(mutations[1].1 > 1, "a resend is never a first attempt");
    // What refuses the resend says nothing of the first time.
    let error = other.put("alice", "1").await.unwrap_err();
    assert!(
        error.is_unknown() && error.failure().detail("last_reason") == Some("LIMIT_STORAGE"),
        "{error:?}"
    );
}

/// A strong namespace has one account of ids: one that belongs to another body proves that this body was not
/// applied. Another replica of an available one may have taken it.
#[tokio::test]
async fn an_id_of_another_body_closes_what_was_open_where_there_is_one_account() {
    let id = "5f2c0000000000000000000000000000:41@1700000000000".parse().unwrap();
    let reused = || refuse(Reason::RequestIdReused);
    let fake = Fake::plays([reused(), reused()]);
    let client = pinned(&fake).await;
    let error = client.strong("bank").resending(id).put("alice", "2").await.unwrap_err();
    assert!(!error.is_unknown() && error.reason() == Reason::RequestIdReused, "{error:?}");
    let again = client.available("cart").resending(id);
    let error = again.put("k", "2", WriteContext::Blind).await.unwrap_err();
    let last = error.failure().detail("last_reason");
    assert!(error.is_unknown() && last == Some("REQUEST_ID_REUSED"), "{error:?}");
}

/// A node that gets a delete of what is observed a second time cannot tell what the first meant. So the
/// client says what it means.
#[tokio::test]
async fn a_delete_of_what_is_observed_reads_and_says_what_it_saw() {
    use v1::write_context::Context;
    let delete = async |fake: &Fake, handle: Available| {
        let deleted = handle.delete("k", WriteContext::Observed).await;
        let sent = fake.script(|s| (std::mem::take(&mut s.superseded), std::mem::take(&mut s.mutations)));
        (deleted, sent.0, sent.1.into_iter().map(|(_, attempt, _)| attempt).collect::<Vec<_>>())
    };
    let fake = Fake::plays([Act::Answer, refuse(Reason::Overloaded), refuse(Reason::ResultUnknown)]);
    fake.script(|s| s.read = Some((v1::Presence::Found, b"seen")));
    let client = pinned(&fake).await;
    let (deleted, superseded, attempts) = delete(&fake, client.available("cart")).await;
    assert_eq!(deleted.unwrap().value.saw_value, Some(true));
    assert_eq!(superseded, vec![Context::Causal(b"seen".as_slice().into()); 3]);
    assert_eq!(attempts, [1, 1, 2]);

    // What is absent, is; what is not known, is not.
    fake.script(|s| s.read = Some((v1::Presence::Absent, b"gone")));
    let (deleted, superseded, _) = delete(&fake, client.available("cart")).await;
    assert_eq!(deleted.unwrap().value.saw_value, Some(false));
    assert_eq!(superseded, [Context::Causal(b"gone".as_slice().into())]);
    fake.script(|s| s.read = Some((v1::Presence::NoKnowledge, b"")));
    let (deleted, superseded, _) = delete(&fake, client.available("cart")).await;
    let error = deleted.unwrap_err();
    assert!(!error.is_unknown() && error.reason() == Reason::QuorumNotMet, "{error:?}");
    assert!(superseded.is_empty(), "nothing was sent");
    fake.script(|s| s.acts = vec![refuse(Reason::StorageFailed); 9].into());
    let (deleted, superseded, _) = delete(&fake, client.available("cart")).await;
    assert!(!deleted.unwrap_err().is_unknown() && superseded.is_empty(), "a read changes nothing");

    // Another process that sends it again does not know what the first one saw: who has a trace of it does.
    fake.script(|s| (s.acts, s.read) = (VecDeque::new(), Some((v1::Presence::Found, b"later".as_slice()))));
    let id = "5f2c0000000000000000000000000000:41@1700000000000".parse().unwrap();
    let (deleted, superseded, attempts) = delete(&fake, client.available("cart").resending(id)).await;
    assert_eq!(deleted.unwrap().value.saw_value, None);
    assert_eq!((superseded, attempts), (vec![Context::Observed(true)], vec![2]));
}

#[tokio::test]
async fn a_resend_that_succeeds_makes_the_operation_succeed() {
    let fake = Fake::plays([refuse(Reason::ResultUnknown), Act::Answer]);
    assert!(pinned(&fake).await.strong("bank").put("alice", "1").await.is_ok());
    assert_eq!(fake.script(|s| s.calls), 2);
}

#[tokio::test]
async fn unknown_stays_unknown_whatever_a_resend_is_told() {
    for later in [
        Reason::NoQuorum,
        Reason::NotLeader,
        Reason::NotReady,
        Reason::NamespaceUnknown,
        Reason::ModeMismatch,
    ] {
        let laters = (0..1_000).map(|_| refuse(later));
        let fake = Fake::plays([refuse(Reason::PartialWrite)].into_iter().chain(laters));
        let mut options = ClientOptions::pinned(fake.start().await);
        options.write_timeout = Duration::from_millis(300);
        let client = Client::connect(options).unwrap();
        let error = client.available("cart").put("k", "v", WriteContext::Blind).await.unwrap_err();
        assert!(error.is_unknown(), "{later}: {error}");
        assert_eq!(error.reason(), Reason::PartialWrite);
    }
}

/// A node that is cut off for longer than three attempts take. Nothing else tells what became of the write.
#[tokio::test(start_paused = true)]
async fn a_write_whose_fate_is_open_is_sent_again_until_its_deadline() {
    let node = "a:1".to_owned();
    let client = |fake: &Fake, timeout| {
        let network = Arc::new(InMemory(BTreeMap::from([(node.clone(), fake.clone())])));
        let options = ClientOptions { write_timeout: timeout, ..ClientOptions::pinned(node.clone()) };
        Client::connect_in(options, Env { network, ..Env::real() }).unwrap()
    };
    let cut_off = || {
        let said = Failure::new(Reason::NoQuorum, "2 of 5").with("reachable", 2).with("required", 3);
        Act::Refuse(said.retry_after_ms(100))
    };
    let open = || std::iter::once(refuse(Reason::ResultUnknown));
    // It is healed after more refusals than there are attempts.
    let fake = Fake::plays(open().chain(std::iter::repeat_with(cut_off).take(8)).chain([Act::Answer]));
    client(&fake, Duration::from_secs(20)).strong("bank").put("alice", "1").await.unwrap();
    let mutations = fake.script(|script| script.mutations.clone());
    assert_eq!(mutations.len(), 10);
    assert_eq!(mutations.iter().map(|(id, ..)| id).collect::<BTreeSet<_>>().len(), 1, "one request");
    let attempts: Vec<u32> = mutations.iter().map(|(_, attempt, _)| *attempt).collect();
    assert_eq!((attempts[0], &attempts[1..]), (1, &[2; 9][..]), "one that was taken, and its resends");
    // It is not healed: that is said at the deadline and not before.
    let timeout = Duration::from_secs(5);
    let fake = Fake::plays(open().chain(std::iter::repeat_with(cut_off).take(1_000)));
    let begun = Instant::now();
    let error = client(&fake, timeout).strong("bank").put("alice", "1").await.unwrap_err();
    let last = error.failure().detail("last_reason");
    assert!(error.is_unknown() && last == Some("NO_QUORUM"), "{error:?}");
    let took = begun.elapsed();
    assert!(took > timeout * 3 / 4 && took <= timeout + Duration::from_millis(100), "{took:?}");
    // What was never taken is refused after as many attempts as there are.
    let fake = Fake::plays(std::iter::repeat_with(cut_off).take(1_000));
    let error = client(&fake, timeout).strong("bank").put("alice", "1").await.unwrap_err();
    assert!(!error.is_unknown() && fake.script(|script| script.calls) == ATTEMPTS as usize, "{error:?}");
}

/// A resend that a node takes and cannot settle leaves the fate open as the first one did. It is not for more
/// than three of them that it ends before its deadline; nor is a cluster in trouble flooded with them.
#[tokio::test(start_paused = true)]
async fn a_resend_that_leaves_it_open_again_does_not_end_a_write_early() {
    let names = ["a:1", "b:1", "c:1"].map(str::to_owned);
    let paid = (BUDGET_CAP / RETRY_COST) as usize;
    let cluster = |acts: &dyn Fn() -> Vec<Act>, timeout| {
        let nodes = [acts(), acts(), acts()].map(Fake::plays);
        for node in &nodes {
            node.script(|script| (script.members, script.replicas) = (names.to_vec(), vec![3, 1]));
        }
        let network = Arc::new(InMemory(names.iter().cloned().zip(nodes.iter().cloned()).collect()));
        let options =
            ClientOptions { spread: false, write_timeout: timeout, ..ClientOptions::new(names.to_vec()) };
        (Client::connect_in(options, Env { network, ..Env::real() }).unwrap(), nodes)
    };
    let sent = |nodes: &[Fake; 3]| -> Vec<_> {
        nodes.iter().flat_map(|node| node.script(|script| script.mutations.clone())).collect()
    };
    for reason in [Reason::PartialWrite, Reason::ResultUnknown] {
        // Each node leaves it open three times, and then it can be done.
        let (client, nodes) = cluster(&|| vec![refuse(reason); 3], Duration::from_secs(20));
        client.available("cart").put("k", "v", WriteContext::Blind).await.unwrap();
        let all = sent(&nodes);
        assert!(all.len() > ATTEMPTS as usize, "{reason}: {}", all.len());
        assert_eq!(all.iter().map(|(id, ..)| id).collect::<BTreeSet<_>>().len(), 1, "one request");
        let numbers: BTreeSet<u32> = all.iter().map(|(_, attempt, _)| *attempt).collect();
        assert_eq!(numbers.len(), all.len(), "no two bear the same number");
        // It cannot be done: that is said at the deadline, and what was sent was paid for.
        for timeout in [5, 60].map(Duration::from_secs) {
            let (client, nodes) = cluster(&|| vec![refuse(reason); 1_000], timeout);
            let begun = Instant::now();
            let error = client.available("cart").put("k", "v", WriteContext::Blind).await.unwrap_err();
            assert!(error.is_unknown() && error.reason() == reason, "{error:?}");
            let took = begun.elapsed();
            assert!(took > timeout * 3 / 4 && took <= timeout + Duration::from_millis(100), "{took:?}");
            let all = sent(&nodes);
            assert!(all.len() <= paid + 1, "{reason}: {} in {took:?}", all.len());
            let asked = nodes.iter().filter(|node| node.script(|script| script.calls) > 1).count();
            assert_eq!(asked, 3, "{reason}: others are asked too");
        }
    }
    // Nodes that are silent have as much of the time as before: three attempts, however long it is.
    let silent = || vec![Act::Wait(Duration::from_secs(600)); 50];
    let (client, nodes) = cluster(&silent, Duration::from_secs(4));
    let error = client.available("cart").put("k", "v", WriteContext::Blind).await.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    assert_eq!(sent(&nodes).len(), ATTEMPTS as usize);
    // Nor is a write with which connections break sent to one node after the other.
    let (client, nodes) = cluster(&|| vec![refuse(Reason::ConnectionLost); 50], Duration::from_secs(20));
    let error = client.available("cart").put("k", "v", WriteContext::Blind).await.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    assert_eq!(sent(&nodes).len(), ATTEMPTS as usize);
}

#[tokio::test]
async fn foreign_words_prove_nothing_about_a_write() {
    for status in [Status::unavailable("a proxy"), Status::internal("?"), Status::unimplemented("?")] {
        let fake = Fake::plays((0..3).map(|_| Act::Foreign(status.clone())));
        let client = pinned(&fake).await;
        assert!(client.strong("bank").put("k", "v").await.unwrap_err().is_unknown(), "{status}");
        let fake = Fake::plays((0..3).map(|_| Act::Foreign(status.clone())));
        let client = pinned(&fake).await;
        assert!(!client.strong("bank").get("k").await.unwrap_err().is_unknown(), "a read has no effect");
    }
}

#[tokio::test]
async fn the_first_write_of_a_session_completes_before_others_are_sent() {
    let fake = Fake::plays([Act::Wait(Duration::from_millis(150))]);
    let client = pinned(&fake).await;
    let writes: Vec<_> = (0..8)
        .map(|_| {
            let bank = client.strong("bank");
            tokio::spawn(async move { bank.put("k", "v").await })
        })
        .collect();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(fake.script(|s| s.calls), 1, "the others wait");
    for write in writes {
        write.await.unwrap().unwrap();
    }
    let mutations = fake.script(|s| s.mutations.clone());
    assert_eq!(mutations.iter().map(|m| m.0.client_id).collect::<BTreeSet<_>>().len(), 1);
    assert_eq!(mutations.iter().map(|m| m.0.seq).collect::<BTreeSet<_>>(), (1..=8).collect());
    assert!(mutations.iter().all(|m| m.2 <= m.0.seq));
}

#[tokio::test]
async fn a_session_that_failed_to_open_or_expired_is_replaced() {
    let fake =
        Fake::plays([refuse(Reason::LimitStorage), Act::Answer, refuse(Reason::SessionExpired), Act::Answer]);
    let bank = pinned(&fake).await.strong("bank");
    assert!(bank.put("k", "1").await.is_err());
    assert!(bank.put("k", "2").await.is_ok());
    assert!(bank.put("k", "3").await.unwrap_err().is_unknown());
    assert!(bank.put("k", "4").await.is_ok());
    let ids: Vec<_> = fake.script(|s| s.mutations.iter().map(|m| m.0).collect());
    assert_eq!(ids.iter().map(|id| id.seq).collect::<Vec<_>>(), [1, 1, 2, 1]);
    assert_eq!(ids[1].client_id, ids[2].client_id);
    assert_eq!(ids.iter().map(|id| id.client_id).collect::<BTreeSet<_>>().len(), 3);
}

#[tokio::test]
async fn a_write_without_identity_is_not_resent_once_its_fate_is_open() {
    let fake = Fake::plays([refuse(Reason::ResultUnknown)]);
    let admin = pinned(&fake).await.admin();
    let error = admin.transfer_leader(kv_types::GroupId(1), kv_types::NodeId(2)).await.unwrap_err();
    assert!(error.is_unknown());
    assert_eq!(fake.script(|s| s.calls), 1);
}
