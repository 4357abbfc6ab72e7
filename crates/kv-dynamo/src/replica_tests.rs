//! One replica on an in-memory disk that loses what was not synced: dots are never used twice, what was acknowledged is
//! there after a power cut, requests are recognized, hints stay until they are delivered.

use kv_env::Clock;
use kv_storage::StorageOptions;
use kv_storage::disk::MemDisk;
use kv_storage::tier::MemTiers;
use kv_types::{ClientId, RingId, RingPartition};

use super::*;

const NOW: u64 = 1_700_000_000_000;

struct TestClock(std::sync::atomic::AtomicU64);

impl Clock for TestClock {
    fn wall_ms(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

struct World {
    disk: MemDisk,
    tiers: MemTiers,
    clock: Arc<TestClock>,
}

impl World {
    fn new(seed: u64) -> Self {
        let clock = Arc::new(TestClock(NOW.into()));
        Self { disk: MemDisk::new(seed), tiers: MemTiers::new(), clock }
    }

    async fn open(&self, tier_lost: bool, hint_bytes: u64) -> (Storage, Replica) {
        let options = StorageOptions { max_record_bytes: 1 << 20, ..StorageOptions::memory("/data") };
        let (storage, _) =
            Storage::open(options, Arc::new(self.disk.clone()), Arc::new(self.tiers.clone())).unwrap();
        let env = Env { clock: self.clock.clone(), ..Env::real() };
        let replica = Replica::open(storage.clone(), env, tier_lost, hint_bytes).await.unwrap();
        if !replica.is_whole() && !tier_lost {
            replica.set_whole(false).await.unwrap();
        }
        (storage, replica)
    }

    fn cut(&self, storage: &Storage) {
        self.disk.crash();
        self.tiers.crash();
        storage.halt();
    }
}

fn place(key: &str) -> Place {
    let slice = Slice { ring: RingId(1), partition: RingPartition(3) };
    Place { slice, namespace: NamespaceId(7), key: Bytes::copy_from_slice(key.as_bytes()) }
}

fn order(seq: u64, value: &str, supersedes: Supersedes) -> Order {
    let request_id = RequestId { client_id: ClientId(5), seq };
    let mutation = Mutation { request_id, issued_at_ms: NOW, lowest_unacked: 0, attempt: 1 };
    let value = Some(Bytes::copy_from_slice(value.as_bytes()));
    Order { mutation, body: crc32c::crc32c(value.as_deref().unwrap_or_default()), value, supersedes }
}

fn values(copy: &Copy) -> Vec<String> {
    copy.state.record.values().iter().map(|(_, s)| String::from_utf8_lossy(&s.value).into_owned()).collect()
}

fn reason<T: std::fmt::Debug>(result: Result<T, Failure>) -> Reason {
    result.unwrap_err().reason
}

#[tokio::test]
async fn acknowledged_writes_survive_and_no_dot_is_used_twice() {
    let world = World::new(1);
    let mut dots = std::collections::BTreeSet::new();
    let mut acknowledged: Vec<String> = Vec::new();
    for life in 0..6u64 {
        let (storage, replica) = world.open(false, 1 << 20).await;
        for key in &acknowledged {
            assert_eq!(values(&replica.read(&place(key)).unwrap()), vec![format!("v{key}")], "life {life}");
        }
        for n in 0..20u64 {
            let key = format!("{life}-{n}");
            let minted = replica
                .mint(
                    &place(&key),
                    Role::Primary,
                    &order(life * 100 + n, &format!("v{key}"), Supersedes::Observed),
                )
                .unwrap();
            // Half of them are acknowledged; a dot that left the node must never come again.
            if n % 2 == 0 {
                replica.durable(minted.position).await.unwrap();
                let dot = *minted.state.record.siblings.keys().next().unwrap();
                assert!(dots.insert(dot), "{dot} was used twice");
                acknowledged.push(key);
            }
        }
        world.cut(&storage);
    }
}

#[tokio::test]
async fn a_resend_is_recognized_and_another_body_refused() {
    let world = World::new(2);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let first = replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed)).unwrap();
    let again = replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed)).unwrap();
    assert!(!first.deduplicated && again.deduplicated);
    assert_eq!(again.position, first.position, "the proof must be durable before it is shown");
    let other = |key: &str, value| {
        reason(replica.mint(&place(key), Role::Primary, &order(1, value, Supersedes::Observed)))
    };
    assert_eq!(other("k", "b"), Reason::RequestIdReused);
    assert_eq!(other("l", "a"), Reason::RequestIdReused);

    // Another replica knows the request as soon as it has merged the write, also when the value is superseded.
    replica.mint(&place("k"), Role::Primary, &order(2, "b", Supersedes::Observed)).unwrap();
    let world_b = World::new(3);
    let (_, other) = world_b.open(false, 1 << 20).await;
    other.apply(&place("k"), &replica.read(&place("k")).unwrap().state, false).unwrap();
    let resent = other.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed)).unwrap();
    assert!(resent.deduplicated);
    assert_eq!(values(&other.read(&place("k")).unwrap()), vec!["b"]);

    // Also after a power cut.
    replica.durable(replica.read(&place("k")).unwrap().position).await.unwrap();
    world.cut(&storage);
    let (_, replica) = world.open(false, 1 << 20).await;
    assert!(
        replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed)).unwrap().deduplicated
    );
}

#[tokio::test]
async fn old_requests_are_refused_then_forgotten() {
    let world = World::new(4);
    let (_, replica) = world.open(false, 1 << 20).await;
    replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed)).unwrap();
    let window = REQUEST_WINDOW.as_millis() as u64;
    let at = |ms: u64| world.clock.0.store(NOW + ms, std::sync::atomic::Ordering::Relaxed);
    at(window);
    replica.mint(&place("k"), Role::Primary, &order(2, "b", Supersedes::Observed)).unwrap();
    at(window + 1);
    assert_eq!(
        reason(replica.mint(&place("k"), Role::Primary, &order(3, "c", Supersedes::Observed))),
        Reason::RequestExpired
    );
    assert!(
        replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed)).unwrap().deduplicated
    );
    let mut future = order(4, "d", Supersedes::Observed);
    future.mutation.issued_at_ms = NOW + 3 * window;
    assert_eq!(reason(replica.mint(&place("k"), Role::Primary, &future)), Reason::RequestIdInvalid);
    assert_eq!(replica.sweep(place("k").slice).unwrap(), 0);
    at(2 * window + 1);
    assert_eq!(replica.sweep(place("k").slice).unwrap(), 2);
    assert_eq!(
        reason(replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed))),
        Reason::RequestExpired
    );
}

#[tokio::test]
async fn what_a_write_supersedes_is_what_it_says() {
    let world = World::new(5);
    let (_, replica) = world.open(false, 1 << 20).await;
    let put = |seq, value, supersedes| {
        replica.mint(&place("k"), Role::Primary, &order(seq, value, supersedes)).unwrap()
    };
    put(1, "a", Supersedes::Observed);
    let seen = replica.read(&place("k")).unwrap().state.record.context;
    put(2, "b", Supersedes::Nothing);
    assert_eq!(values(&replica.read(&place("k")).unwrap()), vec!["a", "b"]);
    assert_eq!(replica.keys_with_siblings().unwrap(), 1);
    let third = put(3, "c", Supersedes::Seen(seen));
    assert_eq!(values(&replica.read(&place("k")).unwrap()), vec!["b", "c"], "b was not seen");
    // The writer's context does not cover b either: writing with it must not drop b.
    put(4, "d", Supersedes::Seen(third.covered));
    assert_eq!(values(&replica.read(&place("k")).unwrap()), vec!["b", "d"]);
    put(5, "e", Supersedes::Observed);
    assert_eq!(values(&replica.read(&place("k")).unwrap()), vec!["e"]);
    assert_eq!(replica.keys_with_siblings().unwrap(), 0);
    let mut forged = Context::new();
    forged.claim_through(Dot { incarnation: replica.incarnation, counter: 1_000 });
    assert_eq!(
        reason(replica.mint(&place("k"), Role::Primary, &order(6, "f", Supersedes::Seen(forged)))),
        Reason::BadContext
    );
}

#[tokio::test]
async fn siblings_are_bounded_for_clients_and_not_for_merges() {
    let (a, b) = (World::new(6), World::new(7));
    let ((_, a), (_, b)) = (a.open(false, 1 << 20).await, b.open(false, 1 << 20).await);
    for (base, replica) in [(0, &a), (10_000, &b)] {
        for n in 0..MAX_SIBLINGS as u64 {
            replica.mint(&place("k"), Role::Primary, &order(base + n, "v", Supersedes::Nothing)).unwrap();
        }
        let more = replica.mint(&place("k"), Role::Primary, &order(base + 999, "v", Supersedes::Nothing));
        assert_eq!(reason(more), Reason::LimitSiblings);
    }
    a.apply(&place("k"), &b.read(&place("k")).unwrap().state, false).unwrap();
    assert_eq!(a.read(&place("k")).unwrap().state.record.siblings.len(), 2 * MAX_SIBLINGS);
    a.mint(&place("k"), Role::Primary, &order(20_000, "v", Supersedes::Observed)).unwrap();
    assert_eq!(a.read(&place("k")).unwrap().state.record.siblings.len(), 1, "the way out is open");
}

#[tokio::test]
async fn hints_stay_until_they_are_delivered_unchanged() {
    let (world, target) = (World::new(8), World::new(9));
    let (storage, fallback) = world.open(false, 1 << 20).await;
    let (_, primary) = target.open(false, 1 << 20).await;
    let targets = [NodeId(1), NodeId(2)];
    let minted =
        fallback.mint(&place("k"), Role::Fallback(&targets), &order(1, "a", Supersedes::Observed)).unwrap();
    fallback.durable(minted.position).await.unwrap();
    world.cut(&storage);

    let (_, fallback) = world.open(false, 1 << 20).await;
    assert_eq!(
        fallback.hints_pending().into_iter().collect::<Vec<_>>(),
        vec![(NodeId(1), 1), (NodeId(2), 1)]
    );
    assert_eq!(values(&fallback.read_hints(&place("k"), &targets).unwrap()), vec!["a"]);
    assert!(!fallback.read_hints(&place("other"), &targets).unwrap().known);
    let again =
        fallback.mint(&place("k"), Role::Fallback(&targets), &order(1, "a", Supersedes::Observed)).unwrap();
    assert!(again.deduplicated);

    let due = fallback.due(NodeId(1), None, 10).unwrap().remove(0);
    let (state, _) = fallback.message_of(&due).unwrap();
    fallback.mint(&place("k"), Role::Fallback(&targets), &order(2, "b", Supersedes::Observed)).unwrap();
    primary.apply(&due.place, &state, true).unwrap();
    assert!(!fallback.forget(NodeId(1), &due).unwrap(), "it grew since it was sent");
    let due = fallback.due(NodeId(1), None, 10).unwrap().remove(0);
    primary.apply(&due.place, &fallback.message_of(&due).unwrap().0, true).unwrap();
    assert!(fallback.forget(NodeId(1), &due).unwrap());
    assert_eq!(values(&primary.read(&place("k")).unwrap()), vec!["b"]);
    assert_eq!(fallback.hints_pending().into_iter().collect::<Vec<_>>(), vec![(NodeId(2), 1)]);
    let resent = primary.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed)).unwrap();
    assert!(resent.deduplicated, "the hint brought the request along");
}

#[tokio::test]
async fn a_full_node_refuses_to_be_a_fallback() {
    let world = World::new(10);
    let (_, fallback) = world.open(false, 1).await;
    fallback.store_hint(&place("k"), NodeId(1), State::default(), true).unwrap();
    assert_eq!(
        reason(fallback.store_hint(&place("l"), NodeId(1), State::default(), true)),
        Reason::LimitHints
    );
}

#[tokio::test]
async fn a_lost_tier_begins_a_new_incarnation_that_must_pull() {
    let world = World::new(11);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let first = replica.incarnation;
    let minted = replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed)).unwrap();
    replica.durable(minted.position).await.unwrap();
    world.cut(&storage);
    let (_, replica) = world.open(true, 1 << 20).await;
    assert!(replica.incarnation != first && !replica.is_whole());
    assert!(replica.clock(place("k").slice).unwrap().0.is_empty(), "the clock may claim what is gone");
    replica.set_whole(true).await.unwrap();
    let late = replica.mint(&place("l"), Role::Primary, &order(2, "b", Supersedes::Observed));
    assert_eq!(reason(late), Reason::RequestExpired, "it may have been taken before the loss");
}
