//! How often an operation is tried, for how long, and what is never tried again.

use super::*;

#[tokio::test]
async fn answers_come_with_receipts() {
    let fake = Fake::plays([Act::Answer, Act::Answer, Act::Answer, Act::Mismatch]);
    let bank = pinned(&fake).await.strong("bank");
    let read = bank.get("alice").await.unwrap();
    assert_eq!(read.value.unwrap().value, "100");
    assert_eq!(bank.put("alice", "1").await.unwrap().value.0, 6);
    assert!(matches!(
        bank.compare_and_set("alice", Expect::Absent, "2").await.unwrap().value,
        Swap::Swapped(_)
    ));
    let mismatch = bank.compare_and_set("alice", Expect::Absent, "2").await.unwrap().value;
    assert!(matches!(mismatch, Swap::Mismatch(Some(found)) if found.revision.0 == 8));
    assert!(fake.script(|s| s.deadlines.iter().all(|d| !d.is_empty())), "every call carries its deadline");
}

#[tokio::test]
async fn attempts_are_bounded_and_share_one_request_id() {
    let fake = Fake::plays((0..10).map(|_| refuse(Reason::NoQuorum)));
    let error = pinned(&fake).await.strong("bank").put("alice", "1").await.unwrap_err();
    assert!(
        matches!(&error, Error::Failed(f) if f.reason == Reason::NoQuorum && f.detail("attempts") == Some("3"))
    );
    let mutations = fake.script(|s| s.mutations.clone());
    assert_eq!(mutations.len(), ATTEMPTS as usize);
    assert_eq!(mutations.iter().map(|m| m.0).collect::<BTreeSet<_>>().len(), 1);
    // None of them was taken: none is a resend.
    assert_eq!(mutations.iter().map(|m| m.1).collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!(error.failure().request_id, Some(mutations[0].0));
}

#[tokio::test]
async fn an_election_is_waited_for_within_the_deadline() {
    let elects = || {
        let failure = Failure::new(Reason::NoQuorum, "it hears no leader");
        Act::Refuse(failure.with("reachable", 3).with("required", 3).retry_after_ms(1))
    };
    // More refusals than attempts.
    let fake = Fake::plays((0..5).map(|_| elects()).chain([Act::Answer]));
    assert!(pinned(&fake).await.strong("bank").put("alice", "1").await.is_ok());
    let mutations = fake.script(|s| s.mutations.clone());
    assert_eq!(mutations.len(), 6);
    assert_eq!(mutations.iter().map(|m| m.0).collect::<BTreeSet<_>>().len(), 1);
    // One that does not end ends with the deadline, and with what was refused.
    let fake = Fake::plays((0..10_000).map(|_| elects()));
    let mut options = ClientOptions::pinned(fake.start().await);
    options.write_timeout = Duration::from_millis(300);
    let begun = Instant::now();
    let error = Client::connect(options).unwrap().strong("bank").put("alice", "1").await.unwrap_err();
    assert!(matches!(&error, Error::Failed(f) if f.reason == Reason::NoQuorum), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    // Each costs a token, and waits longer than the one before: a cluster that elects is left alone.
    assert!(fake.script(|s| s.calls) <= (BUDGET_CAP / RETRY_COST) as usize + 1);
}

/// An attempt has a part of the time. That it passed does not end the operation.
#[tokio::test]
async fn a_deadline_of_one_attempt_is_not_that_of_the_operation() {
    let fake = Fake::plays([refuse(Reason::DeadlineExpired), Act::Answer]);
    pinned(&fake).await.strong("bank").put("alice", "1").await.unwrap();
    let fake = Fake::plays([refuse(Reason::DeadlineExpired), Act::Answer]);
    pinned(&fake).await.strong("bank").get("alice").await.unwrap();
    assert_eq!(fake.script(|script| script.calls), 2);
}

#[tokio::test]
async fn final_reasons_are_not_retried() {
    for reason in [Reason::LimitStorage, Reason::ModeMismatch, Reason::SessionExpired, Reason::RequestExpired]
    {
        let fake = Fake::plays([refuse(reason)]);
        let error = pinned(&fake).await.strong("bank").put("k", "v").await.unwrap_err();
        assert_eq!((error.reason(), error.is_unknown()), (reason, reason.applied() == Applied::Unknown));
        assert_eq!(fake.script(|s| s.calls), 1, "{reason}");
    }
}

#[tokio::test]
async fn keys_and_values_out_of_bounds_are_never_sent() {
    let fake = Fake::default();
    let bank = pinned(&fake).await.strong("bank");
    assert_eq!(bank.put("", "v").await.unwrap_err().reason(), Reason::EmptyKey);
    assert_eq!(bank.put("k", vec![0; 2 << 20]).await.unwrap_err().reason(), Reason::LimitValue);
    assert_eq!(fake.script(|s| s.calls), 0);
}

#[tokio::test]
async fn an_observer_is_told_of_each_write_before_it_is_sent() {
    // Two attempts of the first write, then one that is not answered while the caller waits.
    let long = Act::Wait(Duration::from_secs(30));
    let fake = Fake::plays([refuse(Reason::NoQuorum), Act::Answer, Act::Answer, Act::Answer, long]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let observer = {
        let (told, fake) = (Arc::clone(&told), fake.clone());
        WriteObserver::new(move |id: kv_types::WriteId| {
            told.lock().unwrap().push((id, fake.script(|script| script.mutations.len())));
        })
    };
    let address = fake.start().await;
    let options = ClientOptions { observer: Some(observer), ..ClientOptions::pinned(address) };
    let client = Client::connect(options).unwrap();
    let told = || told.lock().unwrap().clone();
    client.strong("bank").put("k", "v").await.unwrap();
    client.strong("bank").get("k").await.unwrap();
    assert_eq!(told().len(), 1, "a write is named once, and a read not at all");
    let id = told()[0].0;
    client.available("cart").put("k", "v", WriteContext::Blind).await.unwrap();
    // Given up before an answer comes: what is known of it was known before it was sent.
    let cart = client.available("cart");
    let waits = tokio::time::timeout(Duration::from_secs(1), cart.put("k", "v", WriteContext::Blind));
    assert!(waits.await.is_err());
    let sent = fake.script(|script| script.mutations.clone());
    let mut sent: Vec<_> = sent.into_iter().map(|(id, ..)| id).collect();
    assert_eq!(sent.len(), 4);
    sent.dedup();
    assert_eq!(told().iter().map(|(id, _)| id.request_id).collect::<Vec<_>>(), sent);
    assert_eq!(told().iter().map(|(_, before)| *before).collect::<Vec<_>>(), [0, 2, 3]);
    // The caller of a resend knows its name.
    client.strong("bank").resending(id).put("k", "v").await.unwrap();
    assert_eq!(told().len(), 3);
}

#[tokio::test]
async fn no_operation_outlives_its_deadline() {
    let long = Act::Wait(Duration::from_secs(30));
    let fake = Fake::plays((0..10).map(|_| long.clone()));
    let timeout = Duration::from_millis(300);
    let options = ClientOptions {
        read_timeout: timeout,
        write_timeout: timeout,
        ..ClientOptions::pinned(fake.start().await)
    };
    let client = Client::connect(options).unwrap();
    for _ in 0..2 {
        let begun = Instant::now();
        let error = client.strong("bank").put("k", "v").await.unwrap_err();
        assert!(begun.elapsed() < timeout + Duration::from_millis(100), "{:?}", begun.elapsed());
        assert!(matches!(&error, Error::Unknown(f) if f.reason == Reason::ResultUnknown), "{error}");
    }
    let busy =
        Fake::plays((0..10).map(|_| Act::Refuse(Failure::new(Reason::Overloaded, "").retry_after_ms(200))));
    let options = ClientOptions { write_timeout: timeout, ..ClientOptions::pinned(busy.start().await) };
    let begun = Instant::now();
    let error = Client::connect(options).unwrap().strong("bank").put("k", "v").await.unwrap_err();
    assert!(begun.elapsed() < timeout, "no pause reaches past the deadline");
    assert!(matches!(error, Error::Failed(_)));
    assert_eq!(busy.script(|s| s.calls), 2, "the server's pause is honoured");
}

#[tokio::test]
async fn the_retry_budget_is_shared_and_runs_dry() {
    let fake = Fake::plays((0..1_000).map(|_| refuse(Reason::ShuttingDown)));
    let client = pinned(&fake).await;
    let operations: usize = 40;
    for _ in 0..operations {
        let error = client.strong("bank").get("k").await.unwrap_err();
        assert_eq!(error.reason(), Reason::ShuttingDown);
    }
    let paid = usize::try_from(BUDGET_CAP / RETRY_COST).unwrap();
    assert_eq!(fake.script(|s| s.calls), operations + paid);
    let last = client.strong("bank").get("k").await.unwrap_err();
    assert!(last.failure().detail("gave_up").is_some());
}

#[tokio::test]
async fn a_full_client_fails_fast() {
    let fake = Fake::plays([Act::Wait(Duration::from_millis(300)), Act::Wait(Duration::from_millis(300))]);
    let options = ClientOptions { max_in_flight: 1, ..ClientOptions::pinned(fake.start().await) };
    let bank = Client::connect(options).unwrap().strong("bank");
    let held = tokio::spawn({
        let bank = bank.clone();
        async move { bank.get("k").await }
    });
    sleep(Duration::from_millis(100)).await;
    assert_eq!(bank.get("k").await.unwrap_err().reason(), Reason::ClientLimit);
    assert!(held.await.unwrap().is_ok());
    assert!(bank.get("k").await.is_ok());
}

#[tokio::test]
async fn options_without_sense_are_refused() {
    assert!(Client::connect(ClientOptions::new(Vec::<String>::new())).is_err());
    assert!(Client::connect(ClientOptions::new(["nowhere"])).is_err());
    let two = ClientOptions { pinned: true, ..ClientOptions::new(["h:1", "h:2"]) };
    assert!(Client::connect(two).is_err());
}
