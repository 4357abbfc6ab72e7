//! The dot log: who lacks single writes gets the records of their keys and no others.

use kv_types::causal::Context;

use super::super::dot_log::Lacked;
use super::*;
use crate::layout::DOT_LOG;

const OTHERS: [NodeId; 2] = [NodeId(2), NodeId(3)];
const PAGE: usize = 1 << 20;

fn slice() -> Slice {
    place("").slice
}

fn clock(replica: &Replica) -> Context {
    replica.clock(slice()).0.dots().clone()
}

async fn mint(replica: &Replica, key: &str, order: &Order) -> Minted {
    replica.mint(&place(key), Role::Primary, order, soon()).await.unwrap()
}

async fn shown(replica: &Replica, key: &str) -> Vec<String> {
    values(&replica.read(&place(key), soon()).await.unwrap())
}

async fn lacked(from: &Replica, by: &Replica, max_bytes: usize) -> Lacked {
    let missing = clock(from).difference(&clock(by));
    from.lacked(slice(), &missing, (0, max_bytes), soon()).await.unwrap()
}

/// As `missing::ask_for` does it.
async fn take(to: &Replica, lacked: Lacked) -> Vec<String> {
    let mut keys = Vec::new();
    for (place, record) in lacked.records {
        let mut state = State::decode(record).unwrap();
        state.record.fill(&lacked.clock);
        to.apply(&place, &state, true, soon()).await.unwrap();
        keys.push(String::from_utf8(place.key.to_vec()).unwrap());
    }
    keys
}

async fn bring(from: &Replica, to: &Replica) -> Vec<String> {
    take(to, lacked(from, to, PAGE).await).await
}

fn kept(storage: &Storage) -> (u64, u64) {
    let (first, last) = storage.stream_bounds(DOT_LOG, &slice().prefix());
    (first.max(1), last.unwrap_or(0))
}

/// `a` has written; `b` got all of it but for some keys.
async fn two(seed: u64, lacks: &[&str]) -> ((World, Storage, Replica), (World, Storage, Replica)) {
    let (world_a, world_b) = (World::new(seed), World::new(seed + 1));
    let (storage_a, a) = world_a.open(false, 1 << 20).await;
    let (storage_b, b) = world_b.open(false, 1 << 20).await;
    let mut seq = 0;
    let mut next = |key: String, order: Order| {
        seq += 1;
        let mutation =
            Mutation { request_id: RequestId { seq, ..order.mutation.request_id }, ..order.mutation };
        (key, Order { mutation, ..order })
    };
    let mut orders = Vec::new();
    for n in 0..30 {
        orders.push(next(format!("k{n}"), order(0, "first", Supersedes::Nothing)));
    }
    for n in 0..20 {
        orders.push(next(format!("k{n}"), order(0, "second", Supersedes::Observed)));
    }
    for n in 0..10 {
        let gone = Order { value: None, ..order(0, "", Supersedes::Observed) };
        orders.push(next(format!("k{n}"), gone));
    }
    for (key, order) in &orders {
        let minted = mint(&a, key, order).await;
        if !lacks.contains(&key.as_str()) {
            b.apply(&place(key), &minted.state, false, soon()).await.unwrap();
        }
    }
    ((world_a, storage_a, a), (world_b, storage_b, b))
}

#[tokio::test]
async fn who_lacks_some_writes_gets_the_records_of_their_keys_alone() {
    // A deleted key, one that was written again, one that was written once.
    let lacks = ["k5", "k15", "k25"];
    let ((_, _, a), (_, storage, b)) = two(400, &lacks).await;
    assert!(shown(&b, "k15").await.is_empty());
    let mut keys = bring(&a, &b).await;
    keys.sort_unstable();
    assert_eq!(keys, ["k15", "k25", "k5"]);
    assert_eq!(clock(&a), clock(&b));
    assert!(shown(&b, "k5").await.is_empty());
    assert_eq!(
        (shown(&b, "k15").await, shown(&b, "k25").await),
        (vec!["second".into()], vec!["first".into()])
    );
    let mut after = None;
    loop {
        after = b.strip(after.as_ref(), soon()).await.unwrap();
        if after.is_none() {
            break;
        }
    }
    assert_eq!(b.records_ahead(), 0);
    assert_eq!(rows_in(&storage, RECORDS).await, 20, "a deleted key has no row");
    assert!(bring(&a, &b).await.is_empty());
}

/// Also of writes that were superseded since: a resend is no new write.
#[tokio::test]
async fn who_gets_them_knows_their_requests() {
    let ((_, _, a), (_, _, b)) = two(410, &["k15"]).await;
    bring(&a, &b).await;
    // The put of the first round: request 16.
    let again = order(16, "first", Supersedes::Nothing);
    let resent = Order { mutation: Mutation { attempt: 2, ..again.mutation }, ..again };
    assert!(mint(&b, "k15", &resent).await.deduplicated);
    assert_eq!(shown(&b, "k15").await, ["second"]);
    // And passes them on.
    let third = World::new(412);
    let (_, c) = third.open(false, 1 << 20).await;
    bring(&b, &c).await;
    assert_eq!(clock(&b), clock(&c));
    assert!(mint(&c, "k15", &resent).await.deduplicated);
}

#[tokio::test]
async fn the_log_outlives_the_power_and_says_nothing_of_what_a_disk_has_lost() {
    let ((world, storage, a), (_, _, b)) = two(420, &["k15", "k25"]).await;
    let (_, last) = kept(&storage);
    assert_eq!(last, 60);
    a.durable(a.clock(slice()).1).await.unwrap();
    world.cut(&storage);
    let (storage, a) = world.open(false, 1 << 20).await;
    assert_eq!(kept(&storage), (1, 60));
    assert_eq!(lacked(&a, &b, PAGE).await.records.len(), 2);
    mint(&a, "new", &order(100, "n", Supersedes::Nothing)).await;
    assert_eq!(kept(&storage), (1, 61), "it goes on behind its end");
    // The tier is lost: what the log says is not here any more.
    world.cut(&storage);
    let missing = clock(&a).difference(&clock(&b));
    let (_, a) = world.open(true, 1 << 20).await;
    assert_eq!(lock(&a.partition(slice())).requests.len(), 0);
    let nothing = a.lacked(slice(), &missing, (0, PAGE), soon()).await.unwrap();
    assert!(nothing.records.is_empty() && nothing.clock.is_empty());
}

#[tokio::test]
async fn an_entry_goes_once_all_others_have_it_and_its_request_is_forgotten() {
    let ((world, storage, a), (_, _, b)) = two(430, &["k15"]).await;
    let later = NOW + limits::REQUEST_KEPT.as_millis() as u64 + 1;
    world.clock.0.store(later, std::sync::atomic::Ordering::Relaxed);
    let slices = [(slice(), OTHERS.to_vec())];
    let compared = a.compared(slice());
    a.is_alike(slice(), OTHERS[0], compared.last);
    a.trim_logs(&slices, u64::MAX, true).await.unwrap();
    assert_eq!(kept(&storage), (1, 60));
    a.hear_of(slice(), OTHERS[1], &b.clock(slice()).0);
    a.trim_logs(&slices, u64::MAX, true).await.unwrap();
    assert_eq!(kept(&storage), (1, 60), "the other one lacks something of it");
    bring(&a, &b).await;
    let written = order(100, "l", Supersedes::Nothing);
    mint(&a, "later", &Order { mutation: Mutation { issued_at_ms: later, ..written.mutation }, ..written })
        .await;
    a.hear_of(slice(), OTHERS[1], &b.clock(slice()).0);
    a.trim_logs(&slices, u64::MAX, true).await.unwrap();
    assert_eq!(kept(&storage), (61, 61));
    assert_eq!(bring(&a, &b).await, ["later"]);
    // Who asks for what is gone is told nothing, and no untruth.
    let third = World::new(433);
    let (_, c) = third.open(false, 1 << 20).await;
    assert_eq!(bring(&a, &c).await, ["later"]);
    assert!(!clock(&c).contains_all(&clock(&a)));
}

#[tokio::test]
async fn a_log_that_is_too_long_gives_up_its_oldest_entries() {
    let ((_, storage, a), _) = two(440, &[]).await;
    let slices = [(slice(), OTHERS.to_vec())];
    let most = 60 * (limits::LOG_ENTRY_BYTES + 200);
    a.trim_logs(&slices, most, false).await.unwrap();
    assert_eq!(kept(&storage), (1, 60));
    a.trim_logs(&slices, most / 3, false).await.unwrap();
    let (first, last) = kept(&storage);
    assert!((20..45).contains(&first) && last == 60, "{first}");
    // By their number.
    for seq in 1_000..1_000 + limits::LOG_ENTRIES + 8_192 {
        mint(&a, "k", &order(seq, "v", Supersedes::Observed)).await;
        if seq % 4_096 == 0 {
            a.trim_logs(&slices, u64::MAX, false).await.unwrap();
            let (first, last) = kept(&storage);
            assert!(last - first <= limits::LOG_ENTRIES + 4_096);
        }
    }
    assert!(kept(&storage).0 > limits::LOG_ENTRIES / 8 - 4_096);
    assert!(lock(&a.partition(slice())).requests.len() <= limits::LOG_ENTRIES + 4_096);
}

#[tokio::test]
async fn a_page_is_bounded_and_the_next_goes_on() {
    let (world_a, world_b) = (World::new(450), World::new(451));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (_, b) = world_b.open(false, 1 << 20).await;
    let value = "v".repeat(10_000);
    for n in 0..40 {
        mint(&a, &format!("k{n}"), &order(n + 1, &value, Supersedes::Nothing)).await;
    }
    let missing = clock(&a);
    let (mut pages, mut from) = (0, 0);
    loop {
        let page = a.lacked(slice(), &missing, (from, 20_000), soon()).await.unwrap();
        let (bytes, next) = (page.records.iter().map(|(_, row)| row.len()).sum::<usize>(), page.next);
        assert!(bytes <= 20_000 + 10_300, "{bytes}");
        assert!(!take(&b, page).await.is_empty());
        pages += 1;
        let Some(next) = next else { break };
        assert!(next > from, "it gets on, whatever the other node took");
        from = next;
    }
    assert_eq!(pages, 20);
    assert_eq!(clock(&a), clock(&b));
    // And in dots, of one key.
    for n in 0..2 * limits::LOG_DOTS as u64 {
        mint(&a, "hot", &order(1_000 + n, "h", Supersedes::Observed)).await;
    }
    let page = lacked(&a, &b, PAGE).await;
    let dots = |page: &Lacked| State::decode(page.records[0].1.clone()).unwrap().writes.len();
    assert!(page.next.is_some());
    assert!(dots(&page) >= limits::LOG_DOTS && dots(&page) < limits::LOG_DOTS + limits::SCAN_ROWS);
    while clock(&a) != clock(&b) {
        assert_eq!(bring(&a, &b).await, ["hot"]);
    }
    assert_eq!(shown(&b, "hot").await, ["h"]);
}

/// A delete comes while records are gathered: it was not durable when the clock was taken, and may never be.
#[tokio::test]
async fn what_is_gone_is_shown_once_its_delete_is_durable() {
    let world = World::new(460);
    let (storage, a) = stripped::by_hand(&world).await;
    let pump = || while storage.pump() {};
    mint(&a, "k", &order(1, "v", Supersedes::Nothing)).await;
    pump();
    let missing = clock(&a);
    let found = a.find_logged(slice(), &missing, 0, soon()).await.unwrap();
    let at = a.clock(slice());
    assert!(a.is_durable(at.1));
    mint(&a, "k", &Order { value: None, ..order(2, "", Supersedes::Observed) }).await;
    let gathered = a.gather(slice(), found, at, PAGE, soon()).await.unwrap();
    assert_eq!(gathered.records.len(), 1);
    assert!(!a.is_durable(gathered.position));
    pump();
    assert!(a.is_durable(gathered.position));
}
