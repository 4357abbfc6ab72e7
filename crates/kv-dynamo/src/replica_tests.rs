//! One replica on an in-memory disk that loses what was not synced: dots are never used twice, what was
//! acknowledged is there after a power cut, requests are recognized, hints stay until they are delivered.

use kv_env::Clock;
use kv_storage::StorageOptions;
use kv_storage::disk::MemDisk;
use kv_storage::tier::MemTiers;
use kv_types::causal::{CARRIED_WRITES, Dot, Sibling, Write};
use kv_types::limits::{MAX_SIBLINGS, REQUEST_WINDOW};
use kv_types::{ClientId, RequestId, RingId, RingPartition};
use tokio::time::sleep;

use super::*;
use crate::layout::Taken;

#[path = "bounds_tests.rs"]
mod bounds;
#[path = "dot_log_tests.rs"]
mod dot_log;
#[path = "../tests/gate/mod.rs"]
mod gate;
#[path = "replica_promise_tests.rs"]
mod promises;
#[path = "removal_tests.rs"]
mod removal;
#[path = "stripped_tests.rs"]
mod stripped;
#[path = "waiting_tests.rs"]
mod waiting;

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
    catalogue: watch::Sender<Arc<Catalogue>>,
}

fn options() -> StorageOptions {
    StorageOptions { max_record_bytes: 1 << 20, ..StorageOptions::memory("/data") }
}

impl World {
    fn new(seed: u64) -> Self {
        let clock = Arc::new(TestClock(NOW.into()));
        Self { disk: MemDisk::new(seed), tiers: MemTiers::new(), clock, catalogue: watch::Sender::default() }
    }

    async fn open(&self, tier_lost: bool, hint_bytes: u64) -> (Storage, Replica) {
        let (storage, replica) = self.open_with(options(), tier_lost, hint_bytes).await;
        if !replica.is_whole() && !tier_lost {
            replica.set_whole(false).await.unwrap();
        }
        (storage, replica)
    }

    async fn open_with(
        &self,
        options: StorageOptions,
        tier_lost: bool,
        hint_bytes: u64,
    ) -> (Storage, Replica) {
        let (storage, _) =
            Storage::open(options, Arc::new(self.disk.clone()), Arc::new(self.tiers.clone())).unwrap();
        let env = Env { clock: self.clock.clone(), ..Env::real() };
        let replica = Replica::open(storage.clone(), env, self.catalogue.subscribe(), tier_lost, hint_bytes)
            .await
            .unwrap();
        (storage, replica)
    }

    fn cut(&self, storage: &Storage) {
        self.disk.crash();
        self.tiers.crash();
        storage.halt();
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
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
            assert_eq!(
                values(&replica.read(&place(key), soon()).await.unwrap()),
                vec![format!("v{key}")],
                "life {life}"
            );
        }
        for n in 0..20u64 {
            let key = format!("{life}-{n}");
            let minted = replica
                .mint(
                    &place(&key),
                    Role::Primary,
                    &order(life * 100 + n, &format!("v{key}"), Supersedes::Observed),
                    soon(),
                )
                .await
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
    let first =
        replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed), soon()).await.unwrap();
    let again =
        replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed), soon()).await.unwrap();
    assert!(!first.deduplicated && again.deduplicated);
    assert_eq!(again.position, first.position, "the proof must be durable before it is shown");
    let other = async |key: &str, value| {
        reason(replica.mint(&place(key), Role::Primary, &order(1, value, Supersedes::Observed), soon()).await)
    };
    assert_eq!(other("k", "b").await, Reason::RequestIdReused);
    assert_eq!(other("l", "a").await, Reason::RequestIdReused);

    // Another replica knows the request as soon as it has merged the write, also when the value is
    // superseded.
    replica.mint(&place("k"), Role::Primary, &order(2, "b", Supersedes::Observed), soon()).await.unwrap();
    let world_b = World::new(3);
    let (_, other) = world_b.open(false, 1 << 20).await;
    other
        .apply(&place("k"), &replica.read(&place("k"), soon()).await.unwrap().state, false, soon())
        .await
        .unwrap();
    let resent =
        other.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed), soon()).await.unwrap();
    assert!(resent.deduplicated);
    assert_eq!(values(&other.read(&place("k"), soon()).await.unwrap()), vec!["b"]);

    // Also after a power cut.
    replica.durable(replica.read(&place("k"), soon()).await.unwrap().position).await.unwrap();
    world.cut(&storage);
    let (_, replica) = world.open(false, 1 << 20).await;
    assert!(
        replica
            .mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed), soon())
            .await
            .unwrap()
            .deduplicated
    );
}

#[tokio::test]
async fn a_resend_is_told_what_its_write_supersedes() {
    let (world_a, world_b) = (World::new(41), World::new(42));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (_, b) = world_b.open(false, 1 << 20).await;
    let targets = [NodeId(1), NodeId(2)];
    for role in [Role::Primary, Role::Fallback(&targets)] {
        let key = format!("{role:?}");
        let seq = if matches!(role, Role::Primary) { 10 } else { 20 };
        a.mint(&place(&key), Role::Primary, &order(seq, "old", Supersedes::Observed), soon()).await.unwrap();
        let old = a.read(&place(&key), soon()).await.unwrap().state;
        let seen = old.seen();
        let write = order(seq + 1, "new", Supersedes::Seen(seen));
        let first = b.mint(&place(&key), role, &write, soon()).await.unwrap();
        let again = b.mint(&place(&key), role, &write, soon()).await.unwrap();
        assert!(again.deduplicated && first.covered == again.covered);

        // The next write of this client, taken by one who knows neither, supersedes the old value all the
        // same.
        let world_c = World::new(43);
        let (_, c) = world_c.open(false, 1 << 20).await;
        let next = order(seq + 2, "next", Supersedes::Seen(again.covered));
        let mut merged = c.mint(&place(&key), Role::Primary, &next, soon()).await.unwrap().state;
        merged.merge(&old);
        assert_eq!(values(&Copy { state: merged, ..Copy::default() }), vec!["next"]);
    }
}

#[tokio::test]
async fn a_read_knows_twins_that_records_no_longer_tell_of() {
    let (world_a, world_b) = (World::new(44), World::new(45));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (_, b) = world_b.open(false, 1 << 20).await;
    let mint = async |replica: &Replica, order: &Order| {
        replica.mint(&place("k"), Role::Primary, order, soon()).await.unwrap()
    };
    // One request, two dots; then one of them is superseded again and again, until its record forgets whose
    // it was.
    mint(&a, &order(1, "twice", Supersedes::Nothing)).await;
    mint(&b, &order(1, "twice", Supersedes::Nothing)).await;
    for seq in 2..CARRIED_WRITES as u64 + 4 {
        mint(&b, &order(seq, &seq.to_string(), Supersedes::Observed)).await;
    }
    let mut merged = a.read(&place("k"), soon()).await.unwrap().state;
    merged.merge(&b.read(&place("k"), soon()).await.unwrap().state);
    merged.bury_twins(|_| Vec::new());
    assert_eq!(merged.record.values().len(), 2, "the records alone cannot tell");
    b.bury_known(&place("k"), &mut merged);
    assert_eq!(merged.record.values().len(), 1);
}

/// A read of one replica shows its record as it is stored: no twin in it is left to bury, whatever came in
/// which order.
#[tokio::test]
async fn what_a_replica_stored_has_no_twin_that_it_could_bury() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut replicas = Vec::new();
        for n in 0..3 {
            let world = World::new(1_000 + 3 * seed + n);
            let (_, replica) = world.open(false, 1 << 20).await;
            replicas.push((world, replica));
        }
        let mut sent: Vec<State> = Vec::new();
        for _ in 0..60 {
            let at = random.usize(..replicas.len());
            let replica = &replicas[at].1;
            if random.bool() && !sent.is_empty() {
                let state = &sent[random.usize(..sent.len())];
                replica.apply(&place("k"), state, false, soon()).await.unwrap();
            } else {
                // Few requests, so that one is often minted at several nodes, and deletes among them.
                let seq = random.u64(1..12);
                let supersedes = if random.bool() { Supersedes::Observed } else { Supersedes::Nothing };
                let deletes = seq.is_multiple_of(4);
                let written = order(seq, if deletes { "" } else { "v" }, supersedes);
                let written = Order { value: written.value.filter(|_| !deletes), ..written };
                sent.push(replica.mint(&place("k"), Role::Primary, &written, soon()).await.unwrap().state);
            }
            let stored = replica.read(&place("k"), soon()).await.unwrap().state;
            let mut buried = stored.clone();
            replica.bury_known(&place("k"), &mut buried);
            assert_eq!(buried, stored, "seed {seed}");
        }
    }
}

#[tokio::test]
async fn a_late_twin_does_not_bring_back_what_was_deleted() {
    let (world_a, world_b) = (World::new(47), World::new(48));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (_, b) = world_b.open(false, 1 << 20).await;
    let mint = async |replica: &Replica, order: &Order| {
        replica.mint(&place("k"), Role::Primary, order, soon()).await.unwrap()
    };
    mint(&a, &order(1, "twice", Supersedes::Nothing)).await;
    let twin = mint(&b, &order(1, "twice", Supersedes::Nothing)).await.state;
    mint(&a, &Order { value: None, ..order(2, "", Supersedes::Observed) }).await;
    let mut merged = a.read(&place("k"), soon()).await.unwrap().state;
    assert!(merged.record.values().is_empty());
    merged.merge(&twin);
    assert_eq!(merged.record.values().len(), 1, "nothing covers its dot");
    a.bury_known(&place("k"), &mut merged);
    assert!(merged.record.values().is_empty());
}

#[tokio::test]
async fn a_clock_that_was_ahead_and_is_set_right_silences_no_node() {
    let world = World::new(46);
    let (_, replica) = world.open(false, 1 << 20).await;
    let at = |ms: u64| world.clock.0.store(NOW + ms, std::sync::atomic::Ordering::Relaxed);
    let mint = async |seq, issued: u64| {
        let mut order = order(seq, &seq.to_string(), Supersedes::Observed);
        order.mutation.issued_at_ms = NOW + issued;
        replica.mint(&place("k"), Role::Primary, &order, soon()).await
    };
    let shown = |minted: crate::replica::Minted| {
        let siblings = minted.state.record.siblings.into_values();
        siblings.map(|sibling| (sibling.value, sibling.stamp.wall_ms() - NOW)).collect::<Vec<_>>()
    };
    // Beyond the window every request looks old: nothing is minted.
    let window = REQUEST_WINDOW.as_millis() as u64;
    at(window + 1);
    assert_eq!(reason(mint(1, 0).await), Reason::RequestExpired);
    // Within it stamps run ahead with the clock; once it is right they are right, whatever was minted
    // meanwhile, and the later write supersedes the earlier one although its stamp is smaller.
    at(4_000);
    assert_eq!(shown(mint(2, 0).await.unwrap()), [("2".into(), 4_000)]);
    at(0);
    assert_eq!(shown(mint(3, 0).await.unwrap()), [("3".into(), 0)]);
}

/// How many requests are forgotten where all other primaries have everything and it is calm.
async fn forget_old(replica: &Replica) -> u64 {
    let slice = place("").slice;
    let known = || lock(&replica.partition(slice)).requests.len();
    let before = known();
    replica.trim_logs(&[(slice, Vec::new())], u64::MAX, true).await.unwrap();
    before - known()
}

#[tokio::test]
async fn old_requests_are_refused_then_forgotten() {
    let world = World::new(4);
    let (_, replica) = world.open(false, 1 << 20).await;
    replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed), soon()).await.unwrap();
    let window = REQUEST_WINDOW.as_millis() as u64;
    let at = |ms: u64| world.clock.0.store(NOW + ms, std::sync::atomic::Ordering::Relaxed);
    at(window);
    replica.mint(&place("k"), Role::Primary, &order(2, "b", Supersedes::Observed), soon()).await.unwrap();
    at(window + 1);
    assert_eq!(
        reason(replica.mint(&place("k"), Role::Primary, &order(3, "c", Supersedes::Observed), soon()).await),
        Reason::RequestExpired
    );
    assert!(
        replica
            .mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed), soon())
            .await
            .unwrap()
            .deduplicated
    );
    let mut future = order(4, "d", Supersedes::Observed);
    future.mutation.issued_at_ms = NOW + 3 * window;
    assert_eq!(
        reason(replica.mint(&place("k"), Role::Primary, &future, soon()).await),
        Reason::RequestIdInvalid
    );
    assert_eq!(forget_old(&replica).await, 0);
    at(2 * window + 1);
    assert_eq!(forget_old(&replica).await, 2);
    assert_eq!(
        reason(replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed), soon()).await),
        Reason::RequestExpired
    );
}

#[tokio::test]
async fn what_a_write_supersedes_is_what_it_says() {
    let world = World::new(5);
    let (_, replica) = world.open(false, 1 << 20).await;
    let put = async |seq, value, supersedes| {
        replica.mint(&place("k"), Role::Primary, &order(seq, value, supersedes), soon()).await.unwrap()
    };
    put(1, "a", Supersedes::Observed).await;
    let seen = replica.read(&place("k"), soon()).await.unwrap().state.seen();
    put(2, "b", Supersedes::Nothing).await;
    assert_eq!(values(&replica.read(&place("k"), soon()).await.unwrap()), vec!["a", "b"]);
    assert_eq!(replica.keys_with_siblings(), 1);
    let third = put(3, "c", Supersedes::Seen(seen)).await;
    assert_eq!(values(&replica.read(&place("k"), soon()).await.unwrap()), vec!["b", "c"], "b was not seen");
    // The writer's context does not cover b either: writing with it must not drop b.
    put(4, "d", Supersedes::Seen(third.covered)).await;
    assert_eq!(values(&replica.read(&place("k"), soon()).await.unwrap()), vec!["b", "d"]);
    put(5, "e", Supersedes::Observed).await;
    assert_eq!(values(&replica.read(&place("k"), soon()).await.unwrap()), vec!["e"]);
    assert_eq!(replica.keys_with_siblings(), 0);
    let never = Dot { incarnation: replica.incarnation, counter: 1_000 };
    let forged = Seen { context: [never].into_iter().collect(), ..Seen::default() };
    assert_eq!(
        reason(
            replica.mint(&place("k"), Role::Primary, &order(6, "f", Supersedes::Seen(forged)), soon()).await
        ),
        Reason::BadContext
    );
}

#[tokio::test]
async fn siblings_are_bounded_for_clients_and_not_for_merges() {
    let (a, b) = (World::new(6), World::new(7));
    let ((_, a), (_, b)) = (a.open(false, 1 << 20).await, b.open(false, 1 << 20).await);
    for (base, replica) in [(0, &a), (10_000, &b)] {
        for n in 0..MAX_SIBLINGS as u64 {
            replica
                .mint(&place("k"), Role::Primary, &order(base + n, "v", Supersedes::Nothing), soon())
                .await
                .unwrap();
        }
        let more = replica
            .mint(&place("k"), Role::Primary, &order(base + 999, "v", Supersedes::Nothing), soon())
            .await;
        assert_eq!(reason(more), Reason::LimitSiblings);
    }
    a.apply(&place("k"), &b.read(&place("k"), soon()).await.unwrap().state, false, soon()).await.unwrap();
    assert_eq!(a.read(&place("k"), soon()).await.unwrap().state.record.siblings.len(), 2 * MAX_SIBLINGS);
    a.mint(&place("k"), Role::Primary, &order(20_000, "v", Supersedes::Observed), soon()).await.unwrap();
    assert_eq!(
        a.read(&place("k"), soon()).await.unwrap().state.record.siblings.len(),
        1,
        "the way out is open"
    );
}

#[tokio::test]
async fn hints_stay_until_they_are_delivered_unchanged() {
    let (world, target) = (World::new(8), World::new(9));
    let (storage, fallback) = world.open(false, 1 << 20).await;
    let (_, primary) = target.open(false, 1 << 20).await;
    let targets = [NodeId(1), NodeId(2)];
    let minted = fallback
        .mint(&place("k"), Role::Fallback(&targets), &order(1, "a", Supersedes::Observed), soon())
        .await
        .unwrap();
    fallback.durable(minted.position).await.unwrap();
    world.cut(&storage);

    let (_, fallback) = world.open(false, 1 << 20).await;
    assert_eq!(
        fallback.hints_pending().into_iter().collect::<Vec<_>>(),
        vec![(NodeId(1), 1), (NodeId(2), 1)]
    );
    assert_eq!(values(&fallback.read_hints(&place("k"), &targets, soon()).await.unwrap()), vec!["a"]);
    assert!(!fallback.read_hints(&place("other"), &targets, soon()).await.unwrap().known);
    let again = fallback
        .mint(&place("k"), Role::Fallback(&targets), &order(1, "a", Supersedes::Observed), soon())
        .await
        .unwrap();
    assert!(again.deduplicated);

    let due = fallback.due(NodeId(1), None, 10, soon()).await.unwrap().remove(0);
    let (state, _) = fallback.message_of(&due, soon()).await.unwrap();
    fallback
        .mint(&place("k"), Role::Fallback(&targets), &order(2, "b", Supersedes::Observed), soon())
        .await
        .unwrap();
    primary.apply(&due.place, &state, true, soon()).await.unwrap();
    assert!(!fallback.forget(NodeId(1), &due, soon()).await.unwrap(), "it grew since it was sent");
    let due = fallback.due(NodeId(1), None, 10, soon()).await.unwrap().remove(0);
    primary
        .apply(&due.place, &fallback.message_of(&due, soon()).await.unwrap().0, true, soon())
        .await
        .unwrap();
    assert!(fallback.forget(NodeId(1), &due, soon()).await.unwrap());
    assert_eq!(values(&primary.read(&place("k"), soon()).await.unwrap()), vec!["b"]);
    assert_eq!(fallback.hints_pending().into_iter().collect::<Vec<_>>(), vec![(NodeId(2), 1)]);
    let resent =
        primary.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed), soon()).await.unwrap();
    assert!(resent.deduplicated, "the hint brought the request along");
}

#[tokio::test]
async fn a_full_node_refuses_to_be_a_fallback() {
    let world = World::new(10);
    let (_, fallback) = world.open(false, 1).await;
    fallback.store_hint(&place("k"), NodeId(1), State::default(), true, soon()).await.unwrap();
    assert_eq!(
        reason(fallback.store_hint(&place("l"), NodeId(1), State::default(), true, soon()).await),
        Reason::LimitHints
    );
}

#[tokio::test]
async fn a_lost_tier_begins_a_new_incarnation_that_must_pull() {
    let world = World::new(11);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let first = replica.incarnation;
    let minted =
        replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed), soon()).await.unwrap();
    replica.durable(minted.position).await.unwrap();
    world.cut(&storage);
    let (_, replica) = world.open(true, 1 << 20).await;
    assert!(replica.incarnation != first && !replica.is_whole());
    assert!(replica.clock(place("k").slice).0.is_empty(), "the clock may claim what is gone");
    replica.set_whole(true).await.unwrap();
    let late = replica.mint(&place("l"), Role::Primary, &order(2, "b", Supersedes::Observed), soon()).await;
    assert_eq!(reason(late), Reason::RequestExpired, "it may have been taken before the loss");
}

#[tokio::test]
async fn a_refused_batch_leaves_no_hint_in_the_accounts() {
    let world = World::new(12);
    // A memtable that is never drained.
    let options = StorageOptions {
        max_record_bytes: 16 << 10,
        memtable_bytes: 16 << 10,
        apply_reserve_bytes: 0,
        bulk_memtable_bytes: 8 << 10,
        drain_start_bytes: 1 << 30,
        drain_interval: Duration::from_secs(3_600),
        ..StorageOptions::memory("/data")
    };
    let (_, fallback) = world.open_with(options, false, 1 << 20).await;
    let targets = [NodeId(1), NodeId(2)];
    let mint = async |key: &str, seq, bytes: usize| {
        fallback
            .mint(
                &place(key),
                Role::Fallback(&targets),
                &order(seq, &"v".repeat(bytes), Supersedes::Nothing),
                soon(),
            )
            .await
    };
    assert_eq!(reason(mint("k", 1, 10 << 10).await), Reason::LimitStorage, "both copies are one batch");
    assert!(fallback.hints_pending().is_empty());
    fallback.storage.commit(Batch::new().put(RECORDS, b"full", vec![0; 10 << 10])).unwrap();
    assert_eq!(reason(mint("k", 2, 5 << 10).await), Reason::Overloaded);
    assert!(fallback.hints_pending().is_empty());
    let state = world_state(9, 1, "v".repeat(10 << 10).as_str());
    assert_eq!(
        reason(fallback.store_hint(&place("k"), NodeId(1), state, true, soon()).await),
        Reason::Overloaded
    );
    assert!(fallback.hints_pending().is_empty());
    mint("k", 3, 10).await.unwrap();
    assert_eq!(fallback.hints_pending().into_values().collect::<Vec<_>>(), vec![1, 1]);
}

/// A state with one value, as the incarnation of another node minted it for request `seq`.
fn world_state(incarnation: u64, seq: u64, value: &str) -> State {
    let of = order(seq, value, Supersedes::Nothing);
    let dot = Dot { incarnation: Incarnation(incarnation), counter: seq };
    let request = of.mutation.request_id;
    let mut state = State::default();
    let sibling = Sibling { stamp: Hlc::mint(Hlc::default(), NOW), request, value: of.value.unwrap() };
    state.record.update(&Context::new(), dot, Some(sibling));
    state.writes.insert(dot, Write { request, issued_at_ms: NOW, body: of.body });
    state
}

#[tokio::test]
async fn a_resend_without_a_trace_supersedes_nothing() {
    let world = World::new(13);
    let (_, replica) = world.open(false, 1 << 20).await;
    // Request 1 became a write elsewhere, request 2 superseded it; only the latter, without a trace of the
    // former, is here.
    replica.apply(&place("k"), &world_state(9, 2, "w2"), false, soon()).await.unwrap();
    let mut resent = order(1, "r", Supersedes::Observed);
    resent.mutation.attempt = 2;
    replica.mint(&place("k"), Role::Primary, &resent, soon()).await.unwrap();
    let mut shown = values(&replica.read(&place("k"), soon()).await.unwrap());
    shown.sort();
    assert_eq!(shown, vec!["r", "w2"], "an acknowledged value was destroyed");
    // The trace arrives: the twin goes, and nothing else.
    let mut trace = State::default();
    let dot = Dot { incarnation: Incarnation(9), counter: 1 };
    trace.record.context.insert(dot);
    trace
        .writes
        .insert(dot, Write { request: resent.mutation.request_id, issued_at_ms: NOW, body: resent.body });
    replica.apply(&place("k"), &trace, false, soon()).await.unwrap();
    assert_eq!(values(&replica.read(&place("k"), soon()).await.unwrap()), vec!["w2"]);
}

#[tokio::test]
async fn a_directory_that_was_put_back_mints_no_more_and_begins_anew() {
    let world = World::new(14);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let first =
        replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed), soon()).await.unwrap();
    let life = replica.incarnation;
    assert!(!replica.is_put_back());
    // Another node returns the 40th write of this incarnation.
    let position = replica.apply(&place("l"), &world_state(life.0, 40, "lost"), true, soon()).await.unwrap();
    assert!(replica.is_put_back() && !replica.is_whole());
    for role in [Role::Primary, Role::Fallback(&[NodeId(1)])] {
        let refused =
            replica.mint(&place("m"), role, &order(2, "b", Supersedes::Nothing), soon()).await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::NotReady, kv_types::Applied::No));
    }
    assert!(replica.set_whole(true).await.is_err());
    let again =
        replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Observed), soon()).await.unwrap();
    assert!(again.deduplicated && first.covered == again.covered, "what is proven is still said");
    replica.durable(position).await.unwrap();
    world.cut(&storage);

    let (_, replica) = world.open_with(options(), false, 1 << 20).await;
    assert!(replica.incarnation != life && !replica.is_whole() && !replica.is_put_back());
    assert_eq!(
        values(&replica.read(&place("l"), soon()).await.unwrap()),
        vec!["lost"],
        "what it has, it keeps"
    );

    // The clock of a source tells as much as a write.
    let world = World::new(15);
    let (_, replica) = world.open(false, 1 << 20).await;
    let mut clock = NodeClock::new();
    clock.add(Dot { incarnation: replica.incarnation, counter: 3 });
    replica.adopt(place("k").slice, &clock, soon()).await.unwrap();
    assert!(replica.is_put_back());
}

#[tokio::test]
async fn concurrent_values_are_bounded_so_that_every_merge_of_them_can_be_stored() {
    assert!(StorageOptions::new("/data").max_record_bytes >= limits::BATCH_BYTES);
    let (max, nodes) = (limits::RECORD_BYTES, usize::from(kv_types::limits::MAX_REPLICAS));
    let worlds: Vec<World> = (0..nodes as u64).map(|n| World::new(20 + n)).collect();
    let mut replicas = Vec::new();
    for world in &worlds {
        let options = StorageOptions {
            max_record_bytes: limits::BATCH_BYTES,
            segment_bytes: 36 << 20,
            ..StorageOptions::new("/data")
        };
        let replica = world.open_with(options, false, 1 << 30).await.1;
        replica.set_whole(false).await.unwrap();
        replicas.push(replica);
    }
    // As much on every replica as it takes.
    let half = "v".repeat(max / 2);
    for (n, replica) in replicas.iter().enumerate() {
        let seq = 10 * n as u64;
        let put = async |seq, value: &str| {
            replica.mint(&place("k"), Role::Primary, &order(seq, value, Supersedes::Nothing), soon()).await
        };
        put(seq, &half).await.unwrap();
        put(seq + 1, &half).await.unwrap();
        let more = put(seq + 2, "v").await.unwrap_err();
        assert_eq!((more.reason, more.applied), (Reason::LimitSiblings, kv_types::Applied::No));
        assert_eq!(replica.read(&place("k"), soon()).await.unwrap().state.record.siblings.len(), 2);
    }
    let mut merged = State::default();
    for replica in &replicas {
        merged.merge(&replica.read(&place("k"), soon()).await.unwrap().state);
    }
    replicas[0].apply(&place("k"), &merged, true, soon()).await.unwrap();
    assert_eq!(replicas[0].read(&place("k"), soon()).await.unwrap().state.record.siblings.len(), 2 * nodes);

    // A fallback that coordinates keeps a copy for each replica, in one batch.
    let targets: Vec<NodeId> = (1..=nodes as u64).map(NodeId).collect();
    for seq in 0..2 {
        let role = Role::Fallback(&targets);
        replicas[1]
            .mint(&place("l"), role, &order(1_000 + seq, &half, Supersedes::Nothing), soon())
            .await
            .unwrap();
        replicas[1]
            .durable(replicas[1].read_hints(&place("l"), &targets, soon()).await.unwrap().position)
            .await
            .unwrap();
    }
    let more = replicas[1]
        .mint(&place("l"), Role::Fallback(&targets), &order(1_002, "v", Supersedes::Nothing), soon())
        .await;
    assert_eq!(reason(more), Reason::LimitSiblings);
}

#[tokio::test]
async fn a_request_known_for_one_target_is_hinted_for_all_before_it_is_called_taken() {
    let world = World::new(40);
    let (_, fallback) = world.open(false, 1 << 20).await;
    let targets = [NodeId(1), NodeId(2), NodeId(3)];
    // Another coordinator stored request 1 here, in place of node 2.
    let stored =
        fallback.store_hint(&place("k"), NodeId(2), world_state(9, 1, "a"), true, soon()).await.unwrap();
    let taken = async || {
        fallback
            .mint(&place("k"), Role::Fallback(&targets), &order(1, "a", Supersedes::Observed), soon())
            .await
            .unwrap()
    };
    let minted = taken().await;
    assert!(minted.deduplicated && minted.position > stored);
    let pending: Vec<_> = fallback.hints_pending().into_iter().collect();
    assert_eq!(pending, vec![(NodeId(1), 1), (NodeId(2), 1), (NodeId(3), 1)]);
    for target in targets {
        let due = fallback.due(target, None, 10, soon()).await.unwrap().remove(0);
        assert_eq!(fallback.message_of(&due, soon()).await.unwrap().0.record.siblings.len(), 1);
    }
    assert_eq!(taken().await.position, minted.position, "once is enough");

    // Without room the fate is open: the write is here.
    let world = World::new(41);
    let (_, full) = world.open(false, 1).await;
    full.store_hint(&place("k"), NodeId(2), world_state(9, 1, "a"), true, soon()).await.unwrap();
    let refused = full
        .mint(&place("k"), Role::Fallback(&targets), &order(1, "a", Supersedes::Observed), soon())
        .await
        .unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::LimitHints, kv_types::Applied::Unknown));
}

#[tokio::test]
async fn the_list_of_conflicts_outlives_a_lost_tier_and_is_completed() {
    let world = World::new(42);
    let (storage, replica) = world.open(false, 1 << 20).await;
    replica.mint(&place("k"), Role::Primary, &order(1, "a", Supersedes::Nothing), soon()).await.unwrap();
    let second =
        replica.mint(&place("k"), Role::Primary, &order(2, "b", Supersedes::Nothing), soon()).await.unwrap();
    replica.durable(second.position).await.unwrap();
    world.cut(&storage);
    let (storage, replica) = world.open(true, 1 << 20).await;
    assert_eq!(replica.keys_with_siblings(), 1);

    // A row that is missing comes back with any merge, also of what is known.
    let state = replica.read(&place("k"), soon()).await.unwrap().state;
    replica.apply(&place("k"), &state, true, soon()).await.unwrap();
    let again = async |batch: Batch| {
        storage.commit(batch).unwrap();
        let env = Env { clock: world.clock.clone(), ..Env::real() };
        Replica::open(storage.clone(), env, world.catalogue.subscribe(), false, 1 << 20).await.unwrap()
    };
    let replica = again(Batch::new().delete(CONFLICTS, place("k").record_key())).await;
    assert_eq!(replica.keys_with_siblings(), 0);
    replica.apply(&place("k"), &state, true, soon()).await.unwrap();
    assert_eq!(replica.keys_with_siblings(), 1);
    // One that is left over goes.
    let replica = again(Batch::new().put(CONFLICTS, place("l").record_key(), [])).await;
    assert_eq!(replica.keys_with_siblings(), 2);
    replica.apply(&place("l"), &world_state(9, 3, "c"), true, soon()).await.unwrap();
    assert_eq!(replica.keys_with_siblings(), 1);
}

/// A replica above a tier whose reads can be held up; nothing goes there but by a checkpoint.
async fn gated(world: &World) -> (Storage, Arc<Replica>, gate::Gate) {
    let gate = gate::Gate::default();
    let tiers = gate::GatedTiers(world.tiers.clone(), gate.clone());
    let mut options = options();
    options.drain_interval = Duration::from_secs(3_600);
    options.drain_start_bytes = options.memtable_bytes;
    // What has left the memtable is read from the tier, each time.
    options.cache_bytes = 0;
    let (storage, _) = Storage::open(options, Arc::new(world.disk.clone()), Arc::new(tiers)).unwrap();
    let env = Env { clock: world.clock.clone(), ..Env::real() };
    let replica =
        Replica::open(storage.clone(), env, world.catalogue.subscribe(), false, 1 << 20).await.unwrap();
    replica.set_whole(false).await.unwrap();
    (storage, Arc::new(replica), gate)
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// What is in a table.
async fn rows_in(storage: &Storage, table: TableId) -> usize {
    let mut rows = 0;
    each_row(storage, table, |_, _| rows += 1).await.unwrap();
    rows
}
