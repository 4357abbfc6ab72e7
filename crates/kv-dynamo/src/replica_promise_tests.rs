//! What a replica promises where something is amiss: notes without records, request ids and dots that are
//! used twice, deletes of what is not known, refusals, full tables.

use kv_types::causal::CARRIED_WRITES;

use super::*;

/// The rows of hints may outlive those of records, as after the loss of a tier.
#[tokio::test]
async fn a_note_is_sent_with_its_record_alone() {
    let (world_a, world_b) = (World::new(70), World::new(71));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (_, b) = world_b.open(false, 1 << 20).await;
    let target = NodeId(2);
    let lost = world_state(9, 1, "v");
    a.note_missing(&place("k"), target, lost.writes.clone(), soon()).await.unwrap();
    let due = a.due(target, None, 10, soon()).await.unwrap().remove(0);
    assert_eq!(reason(a.message_of(&due, soon()).await), Reason::NotReady);
    // A record that has other writes of the key says nothing of this one.
    a.mint(&place("k"), Role::Primary, &order(2, "w", Supersedes::Nothing), soon()).await.unwrap();
    assert_eq!(reason(a.message_of(&due, soon()).await), Reason::NotReady);
    assert_eq!(a.hints_pending()[&target], 1, "it stays");
    // A hint of another coordinator in the same row does not make it whole.
    a.store_hint(&place("k"), target, world_state(8, 3, "x"), true, soon()).await.unwrap();
    let both = a.due(target, None, 10, soon()).await.unwrap().remove(0);
    assert_eq!(reason(a.message_of(&both, soon()).await), Reason::NotReady);

    // A node that is sent the like learns nothing: a resend is a write, not one that was taken.
    let dot = *lost.writes.keys().next().unwrap();
    let bare = State { writes: lost.writes.clone(), ..State::default() };
    b.apply(&place("k"), &bare, true, soon()).await.unwrap();
    assert!(!b.clock(place("k").slice).0.has(dot));
    let resent = order(1, "v", Supersedes::Nothing);
    let minted = b.mint(&place("k"), Role::Primary, &resent, soon()).await.unwrap();
    assert!(!minted.deduplicated);
    assert_eq!(values(&b.read(&place("k"), soon()).await.unwrap()), ["v"]);

    // Once the record has it again, all of it goes.
    a.apply(&place("k"), &lost, true, soon()).await.unwrap();
    for due in [&due, &both] {
        let (state, _) = a.message_of(due, soon()).await.unwrap();
        assert!(state.record.siblings.contains_key(&dot) && state.writes.contains_key(&dot));
    }
    let world_c = World::new(72);
    let (_, c) = world_c.open(false, 1 << 20).await;
    c.apply(&place("k"), &a.message_of(&both, soon()).await.unwrap().0, true, soon()).await.unwrap();
    let mut shown = values(&c.read(&place("k"), soon()).await.unwrap());
    shown.sort();
    assert_eq!(shown, ["v", "w", "x"]);
    assert!(c.clock(place("k").slice).0.has(dot));
}

/// A client may use a request id again for another key, though it must not.
#[tokio::test]
async fn a_request_id_used_for_another_key_buries_nothing_there() {
    let (world_a, world_b) = (World::new(73), World::new(74));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (_, b) = world_b.open(false, 1 << 20).await;
    let mint = async |replica: &Replica, key: &str, order: &Order| {
        replica.mint(&place(key), Role::Primary, order, soon()).await.unwrap().state
    };
    // Request 1 is of "k" here, and of "l" there. The record of "l" here covers the dot of the one of "k".
    mint(&a, "k", &order(1, "k's", Supersedes::Nothing)).await;
    mint(&a, "l", &order(2, "x", Supersedes::Nothing)).await;
    let there = mint(&b, "l", &order(1, "y", Supersedes::Nothing)).await;
    a.apply(&place("l"), &there, false, soon()).await.unwrap();
    let shown = |state: State| {
        let mut shown = values(&Copy { state, ..Copy::default() });
        shown.sort();
        shown
    };
    assert_eq!(shown(a.read(&place("l"), soon()).await.unwrap().state), ["x", "y"]);
    // Neither does a read.
    let mut merged = a.read(&place("l"), soon()).await.unwrap().state;
    a.bury_known(&place("l"), &mut merged);
    assert_eq!(shown(merged), ["x", "y"]);
    // The row stays that of "k": its dots are those of "k" alone.
    let again =
        a.mint(&place("k"), Role::Primary, &order(1, "k's", Supersedes::Nothing), soon()).await.unwrap();
    let dot = *there.writes.keys().next().unwrap();
    assert!(again.deduplicated && !again.covered.context.covers(dot));
}

/// A delete that says *done* and deletes nothing is a lie; a put that supersedes nothing is a sibling.
#[tokio::test]
async fn a_delete_of_what_is_observed_is_not_acknowledged_where_nothing_can_be() {
    let world = World::new(75);
    let (_, replica) = world.open(false, 1 << 20).await;
    let delete = |seq, attempt| {
        let mut delete = Order { value: None, ..order(seq, "", Supersedes::Observed) };
        delete.mutation.attempt = attempt;
        delete
    };
    let targets = [NodeId(1), NodeId(2)];
    for (seq, role) in [(10, Role::Primary), (20, Role::Fallback(&targets))] {
        let place = place(&seq.to_string());
        let shown = async || {
            let copy = match role {
                Role::Primary => replica.read(&place, soon()).await.unwrap(),
                Role::Fallback(targets) => replica.read_hints(&place, targets, soon()).await.unwrap(),
            };
            values(&copy)
        };
        let mint = async |order: &Order| replica.mint(&place, role, order, soon()).await;
        mint(&order(seq, "v", Supersedes::Nothing)).await.unwrap();
        // Sent again, without a trace of the first time: what is observed now may have come since.
        let refused = mint(&delete(seq + 1, 2)).await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::ResultUnknown, kv_types::Applied::Unknown));
        assert_eq!(shown().await, ["v"]);
        // The first attempt of another one deletes, and is known when it is sent again.
        assert!(!mint(&delete(seq + 2, 1)).await.unwrap().deduplicated);
        assert!(mint(&delete(seq + 2, 2)).await.unwrap().deduplicated);
        assert!(shown().await.is_empty());
        // There it is known that nothing is there: so there is nothing to delete.
        mint(&delete(seq + 3, 1)).await.unwrap();
    }
    // One who stands in and holds nothing of the key does not know what its primaries have.
    let unknown = place("unknown");
    let role = Role::Fallback(&targets);
    let refused = replica.mint(&unknown, role, &delete(30, 1), soon()).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::QuorumNotMet, kv_types::Applied::No));
    assert!(!replica.read_hints(&unknown, &targets, soon()).await.unwrap().known, "and keeps nothing of it");
    replica.mint(&unknown, role, &order(31, "w", Supersedes::Observed), soon()).await.unwrap();
}

impl World {
    /// What this directory knows of its writes goes back to before the first one.
    async fn put_back(&self, storage: &Storage, replica: &Replica, key: &str) -> (Storage, Replica) {
        let (stream, mut batch) = (place(key).slice.prefix(), Batch::new());
        for table in [CLOCKS, RECORDS] {
            each_row(storage, table, |row, _| batch.push_delete(table, row)).await.unwrap();
        }
        let last = lock(&replica.partition(place(key).slice)).state.logged.last;
        batch.push_trim(DOT_LOG, &stream, last + 1);
        let position = storage.commit(batch).unwrap();
        storage.durable(position).await.unwrap();
        self.cut(storage);
        self.open(false, 1 << 20).await
    }
}

/// What a directory mints after it was put back are new writes, whatever it has forgotten.
#[tokio::test]
async fn a_directory_that_was_put_back_mints_no_dot_twice() {
    let (world_a, world_b) = (World::new(86), World::new(87));
    let (storage, a) = world_a.open(false, 1 << 20).await;
    let (_, b) = world_b.open(false, 1 << 20).await;
    let mint = async |a: &Replica, key: &str, seq| {
        let written = order(seq, &seq.to_string(), Supersedes::Nothing);
        a.mint(&place(key), Role::Primary, &written, soon()).await.unwrap().state
    };
    for seq in 1..=3 {
        b.apply(&place("k"), &mint(&a, "k", seq).await, false, soon()).await.unwrap();
    }
    let (_, a) = world_a.put_back(&storage, &a, "k").await;
    assert!(a.is_whole(), "it does not know yet");
    for (key, seq) in [("k", 11), ("l", 12), ("m", 13)] {
        let state = mint(&a, key, seq).await;
        b.apply(&place(key), &state, false, soon()).await.unwrap();
        assert!(values(&b.read(&place(key), soon()).await.unwrap()).contains(&seq.to_string()), "{key}");
    }
    let mut all = values(&b.read(&place("k"), soon()).await.unwrap());
    all.sort();
    assert_eq!(all, ["1", "11", "2", "3"], "none took the place of another");
    // What the other has of its earlier life tells it that it has forgotten something.
    assert!(!a.is_put_back());
    let known = b.read(&place("k"), soon()).await.unwrap().state;
    a.apply(&place("k"), &known, true, soon()).await.unwrap();
    assert!(a.is_put_back() && !a.is_whole());
}

/// What a source says first, its clock, names writes that the directory has lost: it pulls nothing, and
/// serves nothing more.
#[tokio::test]
async fn a_directory_that_was_put_back_is_found_out_when_a_pull_begins() {
    for serves in [true, false] {
        let (world_a, world_b) = (World::new(88), World::new(89));
        let (storage, a) = world_a.open(false, 1 << 20).await;
        let (_, b) = world_b.open(false, 1 << 20).await;
        let mint = async |a: &Replica, key: &str, seq| {
            let written = order(seq, &seq.to_string(), Supersedes::Nothing);
            a.mint(&place(key), Role::Primary, &written, soon()).await.unwrap().state
        };
        for seq in 1..=3 {
            b.apply(&place("k"), &mint(&a, "k", seq).await, false, soon()).await.unwrap();
        }
        // One that has lost nothing begins.
        let slice = place("k").slice;
        a.begin_pull(slice, &b.clock(slice).0, serves, soon()).await.unwrap();
        a.give_up_pull(slice);
        let (storage, a) = world_a.put_back(&storage, &a, "k").await;
        let refused = a.begin_pull(slice, &b.clock(slice).0, serves, soon()).await;
        assert_eq!(reason(refused), Reason::NotReady);
        assert!(a.is_put_back() && !a.is_whole());
        let directory = |storage: &Storage| storage.small_get(crate::layout::INCARNATION);
        assert_eq!(directory(&storage), None, "it is written down");
        let record = b.read(&place("k"), soon()).await.unwrap().state;
        let taken = a.merge_pulled(&place("k"), &record, soon()).await;
        assert_eq!(reason(taken), Reason::Internal, "no pull is under way");
    }
}

/// Writes of the directory that reached the source after the pull had begun.
#[tokio::test]
async fn a_directory_that_was_put_back_is_found_out_by_a_record_that_is_pulled() {
    let (world_a, world_b) = (World::new(186), World::new(187));
    let (storage, a) = world_a.open(false, 1 << 20).await;
    let (_, b) = world_b.open(false, 1 << 20).await;
    let written = order(1, "v", Supersedes::Nothing);
    let late = a.mint(&place("k"), Role::Primary, &written, soon()).await.unwrap().state;
    let (_, a) = world_a.put_back(&storage, &a, "k").await;
    let slice = place("k").slice;
    a.begin_pull(slice, &b.clock(slice).0, true, soon()).await.unwrap();
    b.apply(&place("k"), &late, false, soon()).await.unwrap();
    let record = b.read(&place("k"), soon()).await.unwrap().state;
    a.merge_pulled(&place("k"), &record, soon()).await.unwrap();
    assert!(a.is_put_back() && !a.is_whole());
}

/// A state in which a write has another dot.
fn moved(mut state: State, seq: u64, to: Dot) -> State {
    let (dot, write) =
        state.writes.iter().find(|(_, w)| w.request.seq == seq).map(|(d, w)| (*d, *w)).unwrap();
    state.writes.remove(&dot);
    state.writes.insert(to, write);
    let sibling = state.record.siblings.remove(&dot).unwrap();
    state.record.siblings.insert(to, sibling);
    state.record.context.subtract(&[dot].into_iter().collect());
    state.record.context.insert(to);
    state
}

#[tokio::test]
async fn a_dot_that_stands_for_another_request_is_refused_and_its_minter_told() {
    let (world_a, world_b) = (World::new(76), World::new(77));
    let (storage, a) = world_a.open(false, 1 << 20).await;
    // For long enough that whatever is issued now has its request here.
    let clock = |ms| world_b.clock.0.store(ms, std::sync::atomic::Ordering::Relaxed);
    clock(NOW - 2 * REQUEST_WINDOW.as_millis() as u64);
    let (_, b) = world_b.open(false, 1 << 20).await;
    clock(NOW);
    let mint = async |a: &Replica, key: &str, seq, supersedes| {
        let written = order(seq, &seq.to_string(), supersedes);
        a.mint(&place(key), Role::Primary, &written, soon()).await.unwrap().state
    };
    // Of "k" the first is live; of "l" it was superseded so long ago that its record says nothing of it; of
    // "m" the dot is one of another key.
    b.apply(&place("k"), &mint(&a, "k", 1, Supersedes::Nothing).await, false, soon()).await.unwrap();
    b.apply(&place("l"), &mint(&a, "l", 2, Supersedes::Nothing).await, false, soon()).await.unwrap();
    let last = 4 + CARRIED_WRITES as u64;
    for seq in 3..=last {
        let state = mint(&a, "l", seq, Supersedes::Observed).await;
        b.apply(&place("l"), &state, false, soon()).await.unwrap();
    }
    b.apply(&place("m"), &mint(&a, "m", last + 1, Supersedes::Nothing).await, false, soon()).await.unwrap();
    let life = a.incarnation;

    // No start mints the dots of another one. A node that did it nonetheless is found out.
    let (_, a) = world_a.put_back(&storage, &a, "k").await;
    assert!(a.incarnation != life && super::put_back::are_of_one(a.incarnation, life));
    let mut told = None;
    for (counter, (key, shown)) in
        (1u64..).zip([("k", "1".to_owned()), ("l", last.to_string()), ("m", (last + 1).to_string())])
    {
        let dot = Dot { incarnation: life, counter };
        let state = moved(mint(&a, key, 100 + counter, Supersedes::Nothing).await, 100 + counter, dot);
        assert!(b.clock(place(key).slice).0.has(dot));
        let refused = b.apply(&place(key), &state, false, soon()).await.unwrap_err();
        assert_eq!(
            (refused.reason, refused.applied),
            (Reason::InvalidRequest, kv_types::Applied::No),
            "{key}"
        );
        assert_eq!(values(&b.read(&place(key), soon()).await.unwrap()), [shown], "nothing was taken");
        assert!(!b.is_put_back(), "it is not the one that minted it");
        b.learn_of_reuse(place(key).slice, &refused).await;
        assert!(!b.is_put_back());
        // Only what the record itself tells stops the minter.
        let named = refused.detail("reused_incarnation").is_some();
        assert_eq!(named, key == "k", "{key}");
        told = told.or(Some(refused).filter(|_| named));
    }
    assert!(!a.is_put_back());
    a.learn_of_reuse(place("k").slice, &told.unwrap()).await;
    assert!(a.is_put_back());
    let refused = a.mint(&place("n"), Role::Primary, &order(200, "n", Supersedes::Nothing), soon()).await;
    assert_eq!(reason(refused), Reason::NotReady);
}

/// What was merged before comes again, from any of the others: it is what it was.
#[tokio::test]
async fn a_write_that_comes_again_is_no_reuse_of_its_dot() {
    let (world_a, world_b) = (World::new(78), World::new(79));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (_, b) = world_b.open(false, 1 << 20).await;
    let mut sent = Vec::new();
    for seq in 1..3 * CARRIED_WRITES as u64 {
        let supersedes = if seq % 3 == 0 { Supersedes::Nothing } else { Supersedes::Observed };
        let written = order(seq, "v", supersedes);
        sent.push(a.mint(&place("k"), Role::Primary, &written, soon()).await.unwrap().state);
    }
    for state in sent.iter().chain(sent.iter().rev()) {
        b.apply(&place("k"), state, false, soon()).await.unwrap();
    }
    // Nor is one of which this node has nothing but the clock of a source, and nor is an old one whose
    // request was forgotten.
    let world_c = World::new(80);
    let (_, c) = world_c.open_with(options(), true, 1 << 20).await;
    c.apply(&place("k"), sent.last().unwrap(), false, soon()).await.unwrap();
    c.adopt(place("k").slice, &a.clock(place("k").slice).0, soon()).await.unwrap();
    for whole in [false, true] {
        for state in &sent {
            c.apply(&place("k"), state, false, soon()).await.unwrap();
        }
        if !whole {
            c.set_whole(true).await.unwrap();
        }
    }
    for (set_to, swept) in [(3 * REQUEST_WINDOW.as_millis() as u64, sent.len()), (0, 0)] {
        world_b.clock.0.store(NOW + set_to, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(forget_old(&b).await, swept as u64);
        for state in &sent {
            b.apply(&place("k"), state, false, soon()).await.unwrap();
        }
    }
}

/// What refuses a first attempt has changed nothing, whatever it is: only of a resend the fate is open.
#[tokio::test]
async fn a_first_attempt_that_is_refused_was_not_applied() {
    let fate = |refused: Result<Minted, Failure>| {
        let failure = refused.unwrap_err();
        (failure.reason, failure.applied)
    };
    let attempt = |seq, attempt, issued_at_ms| {
        let mut order = order(seq, "v", Supersedes::Observed);
        (order.mutation.attempt, order.mutation.issued_at_ms) = (attempt, issued_at_ms);
        order
    };
    let open = [(1, kv_types::Applied::No), (2, kv_types::Applied::Unknown)];
    // Too old.
    let world = World::new(81);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let old = NOW - REQUEST_WINDOW.as_millis() as u64 - 1;
    for (number, applied) in open {
        for role in [Role::Primary, Role::Fallback(&[NodeId(1)])] {
            let refused = replica.mint(&place("k"), role, &attempt(1, number, old), soon()).await;
            assert_eq!(fate(refused), (Reason::RequestExpired, applied), "attempt {number}");
        }
    }
    // Older than what this directory can prove.
    let lost = World::new(82);
    let (_, rebuilt) = lost.open_with(options(), true, 1 << 20).await;
    rebuilt.set_whole(true).await.unwrap();
    for (number, applied) in open {
        let refused = rebuilt.mint(&place("k"), Role::Primary, &attempt(1, number, NOW), soon()).await;
        assert_eq!(fate(refused), (Reason::RequestExpired, applied), "attempt {number}");
    }
    // Storage has failed.
    replica.mint(&place("k"), Role::Primary, &attempt(5, 1, NOW), soon()).await.unwrap();
    storage.halt();
    for (number, applied) in open {
        for role in [Role::Primary, Role::Fallback(&[NodeId(1)])] {
            let refused = replica.mint(&place("k"), role, &attempt(7, number, NOW), soon()).await;
            assert_eq!(fate(refused), (Reason::StorageFailed, applied), "attempt {number}");
        }
    }
    let known = replica.read(&place("k"), soon()).await.map(|copy| values(&copy));
    assert!(known.is_err() || known.unwrap() == ["v"]);
}

fn of_partition(partition: u32, key: &str) -> Place {
    let place = place(key);
    Place { slice: Slice { partition: RingPartition(partition), ..place.slice }, ..place }
}

/// The others have everything: then requests alone keep entries of the log.
fn covered(replica: &Replica, slice: Slice) -> [(Slice, Vec<NodeId>); 1] {
    let compared = replica.compared(slice);
    replica.is_alike(slice, NodeId(2), compared.last);
    [(slice, vec![NodeId(2)])]
}

#[tokio::test]
async fn requests_are_known_as_long_as_they_can_come_again() {
    let world = World::new(83);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let slice = place("k").slice;
    let at = |ms: u64| world.clock.0.store(NOW + ms, std::sync::atomic::Ordering::Relaxed);
    let issued = |seq, attempt, ms| {
        let mut order = order(seq, &seq.to_string(), Supersedes::Observed);
        order.mutation = Mutation { issued_at_ms: NOW + ms, attempt, ..order.mutation };
        order
    };
    let mint = async |replica: &Replica, order: Order| {
        replica.mint(&place("k"), Role::Primary, &order, soon()).await
    };
    let first = |storage: &Storage| storage.stream_bounds(DOT_LOG, &slice.prefix()).0.max(1);
    for seq in 1..=3 {
        mint(&replica, issued(seq, 1, 0)).await.unwrap();
    }
    let trim = async |calm: bool| replica.trim_logs(&covered(&replica, slice), u64::MAX, calm).await.unwrap();
    // Long enough that none is sent again, but a hint may carry a twin.
    let crowded = limits::REQUEST_KEPT_CROWDED.as_millis() as u64 + 1;
    at(crowded);
    trim(true).await;
    assert_eq!(first(&storage), 1, "with room they stay longer");
    let late = limits::REQUEST_KEPT.as_millis() as u64 + 1;
    at(late);
    mint(&replica, issued(4, 1, late)).await.unwrap();
    trim(false).await;
    assert_eq!(first(&storage), 1, "until no hint can");
    trim(true).await;
    assert_eq!(first(&storage), 4);
    assert!(mint(&replica, issued(4, 2, late)).await.unwrap().deduplicated);
    // What has gone is never taken for new, not even once the clock, which was ahead, is set right.
    at(0);
    let refused = mint(&replica, issued(1, 2, 0)).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::RequestExpired, kv_types::Applied::Unknown));
    assert!(!mint(&replica, issued(6, 1, 0)).await.unwrap().deduplicated);
}

#[tokio::test]
async fn a_log_that_is_too_long_forgets_and_takes_every_write() {
    let world = World::new(84);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let slice = place("k").slice;
    let resent = |seq| {
        let first = order(seq, "v", Supersedes::Nothing);
        Order { mutation: Mutation { attempt: 2, ..first.mutation }, ..first }
    };
    let mint = async |replica: &Replica, order: &Order| {
        replica
            .mint(&place(&format!("k{}", order.mutation.request_id.seq)), Role::Primary, order, soon())
            .await
    };
    for seq in 1..=100 {
        mint(&replica, &order(seq, "v", Supersedes::Nothing)).await.unwrap();
    }
    // No other primary has any of it.
    let bytes = lock(&replica.partition(slice)).state.logged.bytes();
    replica.trim_logs(&[(slice, vec![NodeId(2)])], bytes / 2, false).await.unwrap();
    let first = storage.stream_bounds(DOT_LOG, &slice.prefix()).0;
    assert!((50..70).contains(&first), "{first}");
    let left = lock(&replica.partition(slice)).requests.len();
    assert_eq!(left, 101 - first);
    let check = async |replica: &Replica| {
        assert!(mint(replica, &resent(first)).await.unwrap().deduplicated);
        let refused = mint(replica, &resent(first - 1)).await.unwrap_err();
        assert_eq!((refused.reason, refused.applied), (Reason::RequestExpired, kv_types::Applied::Unknown));
    };
    check(&replica).await;
    let clock = replica.clock(slice).0;
    // A start knows no less, and no more once the trim is on the disk.
    storage.checkpoint().await.unwrap();
    world.cut(&storage);
    let (storage, replica) = world.open(false, 1 << 20).await;
    check(&replica).await;
    assert_eq!(replica.clock(slice).0, clock);
    assert!(!mint(&replica, &order(200, "v", Supersedes::Nothing)).await.unwrap().deduplicated);
    // Of no log at all the clock stays, and all requests are forgotten.
    replica.trim_logs(&[(slice, vec![NodeId(2)])], 1, false).await.unwrap();
    assert_eq!(lock(&replica.partition(slice)).requests.len(), 0);
    let clock = replica.clock(slice).0;
    storage.checkpoint().await.unwrap();
    world.cut(&storage);
    let (_, replica) = world.open(false, 1 << 20).await;
    assert_eq!(replica.clock(slice).0, clock);
    assert_eq!(values(&replica.read(&place("k7"), soon()).await.unwrap()), ["v"]);
    assert_eq!(reason(mint(&replica, &resent(200)).await), Reason::RequestExpired);
}

/// The clock is written down with every so many writes, and after a start it is what it was, wherever the
/// power went; a write costs no row of it.
#[tokio::test]
async fn a_clock_is_its_row_and_what_the_log_got_since() {
    let world = World::new(88);
    let (mut storage, mut replica) = world.open(false, 1 << 20).await;
    let slice = place("k").slice;
    let row = |storage: &Storage| {
        let row = storage.get(CLOCKS, &slice.clock_key()).unwrap();
        row.map(|row| ClockRow::decode(row.value).unwrap())
    };
    let every = limits::LOG_CLOCK_EVERY;
    let mut seq = 0;
    for writes in [1, every - 2, 1, 1, every + 7] {
        for _ in 0..writes {
            seq += 1;
            let written = order(seq, "v", Supersedes::Observed);
            replica.mint(&place("k"), Role::Primary, &written, soon()).await.unwrap();
        }
        assert_eq!(row(&storage).map(|row| row.entry), Some(seq / every * every).filter(|entry| *entry > 0));
        let (clock, position) = replica.clock(slice);
        replica.durable(position).await.unwrap();
        world.cut(&storage);
        (storage, replica) = world.open(false, 1 << 20).await;
        assert_eq!(replica.clock(slice).0, clock, "{seq}");
    }
    // Nothing of what the clock has needs what was trimmed.
    let trim = async |replica: &Replica| {
        replica.trim_logs(&[(slice, Vec::new())], 1, false).await.unwrap();
    };
    trim(&replica).await;
    assert_eq!(row(&storage).unwrap().entry, seq);
    let clock = replica.clock(slice).0;
    world.cut(&storage);
    let (storage, replica) = world.open(false, 1 << 20).await;
    assert_eq!(replica.clock(slice).0, clock);
    world.cut(&storage);
}

/// The disk has lost an entry: one that the clock needs begins the directory anew, another is forgotten.
#[tokio::test]
async fn a_log_that_is_damaged_is_not_taken_for_a_whole_one() {
    for needed in [true, false] {
        let world = World::new(89);
        let (storage, replica) = world.open(false, 1 << 20).await;
        let slice = place("k").slice;
        let written = |seq| order(seq, "v", Supersedes::Observed);
        for seq in 1..=3 {
            replica.mint(&place("k"), Role::Primary, &written(seq), soon()).await.unwrap();
        }
        if !needed {
            let write_down = |partition: &mut Partition, rows: &mut Rows<'_>| {
                replica.stage_clock(slice, partition, rows);
                rows.commit(false).map_err(Stop::from)
            };
            let position = replica.run(slice, soon(), write_down).await.unwrap();
            replica.durable(position).await.unwrap();
        }
        storage.checkpoint().await.unwrap();
        // What is damaged at the end of a journal is lost: that is for storage to say.
        replica.mint(&of_partition(9, "other"), Role::Primary, &written(9), soon()).await.unwrap();
        storage.checkpoint().await.unwrap();
        world.cut(&storage);
        let file = std::path::Path::new("/data/journals/0037-0000000000000001.jrn");
        let entry = [2, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        let at = world.disk.contents(file).unwrap().windows(entry.len()).position(|bytes| bytes == entry);
        world.disk.flip(file, at.unwrap() as u64, 1).unwrap();
        let (_, replica) = world.open_with(options(), false, 1 << 20).await;
        assert_eq!(replica.is_whole(), !needed);
    }
}

/// One that does not come in time, or is refused, holds up no other.
#[tokio::test]
async fn a_trim_without_room_for_its_row_holds_up_no_other() {
    let world = World::new(91);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let slices = [3, 4].map(|partition| (of_partition(partition, "k").slice, vec![NodeId(2)]));
    // The first has its clock written down, the second has not.
    for (partition, writes) in [(3, limits::LOG_CLOCK_EVERY), (4, 1)] {
        for seq in 1..=writes {
            let written = order(1_000 * u64::from(partition) + seq, "v", Supersedes::Observed);
            replica.mint(&of_partition(partition, "k"), Role::Primary, &written, soon()).await.unwrap();
        }
        let slice = of_partition(partition, "k").slice;
        let compared = replica.compared(slice);
        replica.is_alike(slice, NodeId(2), compared.last);
        lock(&replica.partition(slice)).requests.forget(u64::MAX);
        replica.durable(replica.clock(slice).1).await.unwrap();
    }
    storage.checkpoint().await.unwrap();
    world.disk.set_capacity(Some(world.disk.used()));
    let begun = Instant::now();
    let refused = || storage.commit(Batch::new().small_put(b"test", b"test")).is_err();
    while !refused() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the disk is full");
        sleep(Duration::from_millis(1)).await;
    }
    replica.trim_logs(&slices, u64::MAX, true).await.unwrap();
    let kept = |(slice, _): &(Slice, Vec<NodeId>)| {
        let (first, last) = storage.stream_bounds(DOT_LOG, &slice.prefix());
        last.unwrap_or(0) + 1 - first.max(1)
    };
    assert_eq!([kept(&slices[0]), kept(&slices[1])], [0, 1]);
}

/// A page of hints whose keys cannot be read is not the end of the hints.
#[tokio::test]
async fn hints_that_cannot_be_read_hold_up_none_behind_them() {
    let world = World::new(85);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let target = NodeId(2);
    let mut batch = Batch::new();
    for n in 1..=5 {
        batch.push_put(crate::layout::HINTS, [&target.0.to_be_bytes()[..], &vec![0; n]].concat(), [0]);
    }
    storage.commit(batch).unwrap();
    replica.store_hint(&place("k"), target, world_state(9, 1, "v"), true, soon()).await.unwrap();
    let due = replica.due(target, None, 2, soon()).await.unwrap();
    assert_eq!(due.iter().map(|due| &due.place).collect::<Vec<_>>(), [&place("k")]);
    assert!(replica.due(target, Some(&due[0].row), 2, soon()).await.unwrap().is_empty());
}

/// What a source has forgotten, who pulls from it has forgotten too, also after a start.
#[tokio::test]
async fn who_pulls_forgets_what_its_source_has_forgotten() {
    let (world, slice) = (World::new(93), place("k").slice);
    let (storage, replica) = world.open(false, 1 << 20).await;
    replica.begin_pull(slice, &NodeClock::new(), true, soon()).await.unwrap();
    replica.learn_forgotten(slice, NOW + 1);
    replica.learn_forgotten(slice, NOW);
    let position = replica.end_pull(slice, &NodeClock::new(), soon()).await.unwrap();
    replica.durable(position).await.unwrap();
    world.cut(&storage);
    let (_, replica) = world.open(false, 1 << 20).await;
    assert_eq!(replica.forgotten_ms(slice), NOW + 1);
    let first = order(1, "v", Supersedes::Nothing);
    let resent = Order { mutation: Mutation { attempt: 2, ..first.mutation }, ..first.clone() };
    let mint = async |order| replica.mint(&place("k"), Role::Primary, &order, soon()).await;
    assert_eq!(reason(mint(resent).await), Reason::RequestExpired);
    assert!(!mint(first).await.unwrap().deduplicated);
}
