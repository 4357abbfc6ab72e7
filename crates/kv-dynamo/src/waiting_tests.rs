//! Operations that wait for rows which only the tier can tell, and how most need not.

use super::*;

#[tokio::test]
async fn a_write_that_waits_for_its_row_sees_what_others_wrote_meanwhile() {
    let targets = [NodeId(1), NodeId(2)];
    for primary in [true, false] {
        let world = World::new(50);
        let (storage, replica, gate) = gated(&world).await;
        let role = || if primary { Role::Primary } else { Role::Fallback(&targets) };
        replica.mint(&place("k"), role(), &order(1, "a", Supersedes::Nothing), soon()).await.unwrap();
        storage.checkpoint().await.unwrap();
        // The row is read, and comes back late.
        gate.hold(if primary { 1 } else { 2 });
        let late = tokio::spawn({
            let replica = Arc::clone(&replica);
            async move {
                let role = if primary { Role::Primary } else { Role::Fallback(&targets) };
                replica.mint(&place("k"), role, &order(2, "c", Supersedes::Nothing), soon()).await
            }
        });
        until("the row is being read", || gate.waiting() > 0).await;
        gate.hold(0);
        let other = order(3, "b", Supersedes::Observed);
        let before = replica.mint(&place("k"), role(), &other, soon()).await.unwrap();
        if primary {
            // It has left memory again: nothing but what was kept for the one that waits tells of it.
            storage.checkpoint().await.unwrap();
            assert_eq!(storage.recent(RECORDS, &place("k").record_key()), None);
        }
        assert!(!late.is_finished());
        gate.release();
        let minted = late.await.unwrap().unwrap();
        let dot = |minted: &Minted| *minted.state.record.siblings.keys().next_back().unwrap();
        assert_ne!(dot(&before), dot(&minted));
        let copy = match role() {
            Role::Primary => replica.read(&place("k"), soon()).await.unwrap(),
            Role::Fallback(targets) => replica.read_hints(&place("k"), targets, soon()).await.unwrap(),
        };
        assert_eq!(values(&copy), ["b", "c"], "primary: {primary}");
        assert!(!gate.is_overdue());
    }
}

#[tokio::test]
async fn an_operation_that_gives_up_waiting_has_done_nothing_and_leaves_nothing() {
    let world = World::new(51);
    let (storage, replica, gate) = gated(&world).await;
    replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Nothing), soon()).await.unwrap();
    storage.checkpoint().await.unwrap();
    gate.hold(usize::MAX);
    let near = Instant::now() + Duration::from_millis(30);
    let write = order(2, "b", Supersedes::Observed);
    let refused = replica.mint(&place("k"), Role::Primary, &write, near).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::DeadlineExpired, kv_types::Applied::No));
    assert_eq!(reason(replica.read(&place("k"), near).await), Reason::DeadlineExpired);
    assert_eq!(
        reason(replica.apply(&place("k"), &world_state(9, 3, "c"), false, near).await),
        Reason::DeadlineExpired
    );
    let partition = replica.partition(place("k").slice);
    assert_eq!(lock(&partition).pinned(), 0, "nothing is kept for them");
    // What is in memory is served all the same.
    replica
        .mint(&place("l"), Role::Fallback(&[NodeId(1)]), &order(4, "d", Supersedes::Nothing), soon())
        .await
        .unwrap();
    gate.release();
    assert_eq!(values(&replica.read(&place("k"), soon()).await.unwrap()), ["a"]);
    assert!(!replica.mint(&place("k"), Role::Primary, &write, soon()).await.unwrap().deduplicated);
    assert!(!gate.is_overdue());
}

/// Without a look at the tier.
#[tokio::test]
async fn requests_from_before_a_start_are_known_after_it() {
    let world = World::new(52);
    let (storage, replica, gate) = gated(&world).await;
    let write = |seq: u64| order(seq, &seq.to_string(), Supersedes::Observed);
    for seq in 0..300 {
        replica.mint(&place("k"), Role::Primary, &write(seq), soon()).await.unwrap();
    }
    storage.checkpoint().await.unwrap();
    let env = Env { clock: world.clock.clone(), ..Env::real() };
    let replica =
        Replica::open(storage.clone(), env, world.catalogue.subscribe(), false, 1 << 20).await.unwrap();
    let known = async |seq: u64| {
        replica.mint(&place("k"), Role::Primary, &write(seq), soon()).await.unwrap().deduplicated
    };
    // The record is read once.
    assert!(known(7).await && !known(1_000).await);
    gate.hold(usize::MAX);
    for seq in 0..300 {
        assert!(known(seq).await, "{seq}");
    }
    assert!(known(1_000).await && !known(1_001).await);
    gate.release();
    assert!(!gate.is_overdue());
}
