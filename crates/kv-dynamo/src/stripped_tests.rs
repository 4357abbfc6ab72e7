//! Records without what the node clock says: deletes that leave nothing, late messages that bring nothing
//! back, pulls that bring over what is absent too.

use kv_types::limits::MAX_CLOCK_RANGES;

use super::super::pull::Page;
use super::*;

const TARGETS: [NodeId; 2] = [NodeId(1), NodeId(2)];

fn delete(seq: u64, supersedes: Supersedes) -> Order {
    Order { value: None, ..order(seq, "", supersedes) }
}

async fn mint(replica: &Replica, key: &str, order: &Order) -> Minted {
    replica.mint(&place(key), Role::Primary, order, soon()).await.unwrap()
}

async fn stand_in(replica: &Replica, key: &str, order: &Order) -> Minted {
    replica.mint(&place(key), Role::Fallback(&TARGETS), order, soon()).await.unwrap()
}

async fn apply(replica: &Replica, key: &str, state: &State) {
    replica.apply(&place(key), state, false, soon()).await.unwrap();
}

async fn read(replica: &Replica, key: &str) -> State {
    replica.read(&place(key), soon()).await.unwrap().state
}

async fn shown(replica: &Replica, key: &str) -> Vec<String> {
    values(&replica.read(&place(key), soon()).await.unwrap())
}

/// The only dot that a request was given in a state.
fn dot_of(state: &State, seq: u64) -> Dot {
    let mut dots = state.writes.iter().filter(|(_, write)| write.request.seq == seq).map(|(dot, _)| *dot);
    let dot = dots.next().unwrap();
    assert_eq!(dots.next(), None);
    dot
}

async fn strip_all(replica: &Replica) {
    let mut after = None;
    loop {
        after = replica.strip(after.as_ref(), soon()).await.unwrap();
        if after.is_none() {
            return;
        }
    }
}

/// Lets the storage work until something is done.
async fn driven<T>(storage: &Storage, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::task::yield_now() => drop(storage.pump()),
        }
    }
}

/// Records, records that are ahead, and keys with siblings.
async fn rows(storage: &Storage) -> [usize; 3] {
    [rows_in(storage, RECORDS).await, rows_in(storage, AHEAD).await, rows_in(storage, CONFLICTS).await]
}

#[tokio::test]
async fn a_deleted_key_leaves_no_row_and_is_known_to_be_gone() {
    let world = World::new(90);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let first = mint(&replica, "k", &order(1, "a", Supersedes::Observed)).await.state;
    let second = mint(&replica, "k", &order(2, "b", Supersedes::Nothing)).await.state;
    mint(&replica, "other", &order(3, "o", Supersedes::Observed)).await;
    assert_eq!(rows(&storage).await, [2, 0, 1]);
    let gone = mint(&replica, "k", &delete(4, Supersedes::Observed)).await;
    assert_eq!(rows(&storage).await, [1, 0, 0]);
    // What is sent on says what is gone.
    let dots = [dot_of(&first, 1), dot_of(&second, 2), dot_of(&gone.state, 4)];
    assert!(
        dots.iter().all(|dot| gone.state.record.context.covers(*dot) && gone.state.writes.contains_key(dot))
    );
    // The proof of it must be durable before it is shown; then it outlives the power.
    let copy = replica.read(&place("k"), soon()).await.unwrap();
    assert!(copy.known && copy.position >= gone.position);
    replica.durable(copy.position).await.unwrap();
    world.cut(&storage);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let absent = read(&replica, "k").await;
    assert!(absent.record.siblings.is_empty() && dots.iter().all(|dot| absent.record.context.covers(*dot)));
    assert_eq!(replica.in_memory(&place("k")).map(|copy| copy.state), Some(absent));
    assert_eq!(rows(&storage).await, [1, 0, 0]);
    // It may come again, and what was before it does not.
    mint(&replica, "k", &order(5, "c", Supersedes::Nothing)).await;
    apply(&replica, "k", &second).await;
    assert_eq!(shown(&replica, "k").await, ["c"]);
}

/// The state that a delete makes is shown once it is durable, not before.
#[tokio::test]
async fn what_is_absent_is_shown_once_its_delete_is_durable() {
    let world = World::new(91);
    let (storage, replica) = by_hand(&world).await;
    let pump = || while storage.pump() {};
    let put = mint(&replica, "k", &order(1, "a", Supersedes::Observed)).await.state;
    pump();
    let position = || replica.in_memory(&place("k")).unwrap().position;
    assert!(replica.is_durable(position()));
    mint(&replica, "k", &delete(2, Supersedes::Observed)).await;
    assert!(!replica.is_durable(position()), "no row tells of it, and its delete may be lost yet");
    // Nor is it said before that what comes again is known.
    let known = replica.apply(&place("k"), &put, false, soon()).await.unwrap();
    assert!(!replica.is_durable(known));
    pump();
    assert!(replica.is_durable(position()) && replica.is_durable(known));
}

#[tokio::test]
async fn a_late_hint_brings_nothing_back() {
    let (world_a, world_f) = (World::new(92), World::new(93));
    let (storage, a) = world_a.open(false, 1 << 20).await;
    let (_, fallback) = world_f.open(false, 1 << 20).await;
    let hint = stand_in(&fallback, "k", &order(1, "a", Supersedes::Nothing)).await.state;
    // It comes, is deleted, and comes again.
    apply(&a, "k", &hint).await;
    assert_eq!(shown(&a, "k").await, ["a"]);
    mint(&a, "k", &delete(2, Supersedes::Observed)).await;
    for _ in 0..2 {
        apply(&a, "k", &hint).await;
        assert!(shown(&a, "k").await.is_empty());
        assert_eq!(rows(&storage).await, [0, 0, 0]);
    }
    // Another key: its delete comes first, without a word of what it deletes.
    let hint = stand_in(&fallback, "l", &order(3, "b", Supersedes::Nothing)).await.state;
    let mut gone = stand_in(&fallback, "l", &delete(4, Supersedes::Observed)).await.state;
    let (put, deleted) = (dot_of(&hint, 3), dot_of(&gone, 4));
    gone.writes.retain(|dot, _| *dot == deleted);
    apply(&a, "l", &gone).await;
    assert_eq!(rows(&storage).await, [1, 1, 0], "what it deletes may be yet to come");
    assert!(a.clock(place("l").slice).0.has(deleted) && !a.clock(place("l").slice).0.has(put));
    apply(&a, "l", &hint).await;
    assert!(shown(&a, "l").await.is_empty() && a.clock(place("l").slice).0.has(put));
    assert_eq!(rows(&storage).await, [0, 0, 0], "then it has come");
}

/// As a read of two replicas does it: one has the key and missed the delete.
#[tokio::test]
async fn a_read_of_two_replicas_says_absent_and_its_repair_brings_nothing_back() {
    let (world_a, world_b) = (World::new(94), World::new(95));
    let (storage_a, a) = world_a.open(false, 1 << 20).await;
    let (storage_b, b) = world_b.open(false, 1 << 20).await;
    let put = mint(&a, "k", &order(1, "a", Supersedes::Observed)).await.state;
    apply(&b, "k", &put).await;
    let gone = mint(&a, "k", &delete(2, Supersedes::Observed)).await.state;
    assert_eq!((rows(&storage_a).await, rows(&storage_b).await), ([0, 0, 0], [1, 0, 0]));
    let (of_a, of_b) = (read(&a, "k").await, read(&b, "k").await);
    let mut merged = of_a.clone();
    merged.merge(&of_b);
    a.bury_known(&place("k"), &mut merged);
    assert!(merged.record.siblings.is_empty());
    assert!(of_a.record.knows_values_of(&merged.record), "nothing is to be repaired there");
    assert!(!of_b.record.knows_values_of(&merged.record));
    for (replica, key) in [(&b, "k"), (&a, "k")] {
        apply(replica, key, &merged).await;
        assert!(shown(replica, key).await.is_empty());
    }
    // Nor does what the other had before.
    apply(&a, "k", &of_b).await;
    assert!(shown(&a, "k").await.is_empty());
    assert_eq!(rows(&storage_a).await, [0, 0, 0]);
    // A read does not tell which request the delete was: the row goes when the delete itself arrives.
    assert_eq!(rows(&storage_b).await, [1, 1, 0]);
    let due = async || a.due(NodeId(2), None, 10, soon()).await.unwrap();
    a.note_missing(&place("k"), NodeId(2), gone.writes, soon()).await.unwrap();
    let note = a.message_of(&due().await.remove(0), soon()).await.unwrap().0;
    assert!(note.record.siblings.is_empty());
    apply(&b, "k", &note).await;
    assert_eq!(rows(&storage_b).await, [0, 0, 0]);
    assert!(shown(&b, "k").await.is_empty());
    // Both know the requests.
    for seq in [1, 2] {
        let order =
            if seq == 1 { order(1, "a", Supersedes::Observed) } else { delete(2, Supersedes::Observed) };
        assert!(mint(&b, "k", &order).await.deduplicated);
    }
}

/// A state that leaves one replica names what that has of other keys as well. Here they come later.
#[tokio::test]
async fn records_that_were_ahead_are_stripped_once_the_clock_is() {
    let (world_a, world_b) = (World::new(96), World::new(97));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (storage, b) = world_b.open(false, 1 << 20).await;
    let keys = limits::STRIP.1 as u64 + 10;
    let mut sent = Vec::new();
    for seq in 1..=keys {
        let key = format!("k{seq}");
        sent.push((key.clone(), mint(&a, &key, &order(seq, "v", Supersedes::Observed)).await.state));
    }
    // The first comes last.
    for (key, state) in sent.iter().skip(1) {
        apply(&b, key, state).await;
    }
    let all = keys as usize;
    assert_eq!(rows(&storage).await, [all - 1, all - 1, 0]);
    assert_eq!(b.records_ahead(), keys - 1);
    strip_all(&b).await;
    assert_eq!(b.records_ahead(), keys - 1, "the clock has not got it yet");
    apply(&b, &sent[0].0, &sent[0].1).await;
    // The count is that of the disk.
    storage.durable(b.clock(place("k").slice).1).await.unwrap();
    world_b.cut(&storage);
    let (storage, b) = world_b.open(false, 1 << 20).await;
    assert_eq!(b.records_ahead(), keys - 1);
    let first = b.strip(None, soon()).await.unwrap();
    assert!(first.is_some(), "a few at a time");
    assert_eq!(b.records_ahead(), keys - 1 - limits::STRIP.1 as u64);
    assert_eq!(b.strip(first.as_ref(), soon()).await.unwrap(), None);
    assert_eq!(rows(&storage).await, [all, 0, 0]);
    assert_eq!(b.records_ahead(), 0);
    for (key, state) in &sent {
        let stored = read(&b, key).await;
        assert_eq!(stored.record.siblings, state.record.siblings);
        assert!(stored.record.context.contains_all(&state.record.context));
    }
    // One that outlived its record goes too.
    drop(b);
    storage.commit(Batch::new().put(AHEAD, place("lost").record_key(), [])).unwrap();
    let env = Env { clock: world_b.clock.clone(), ..Env::real() };
    let b = Replica::open(storage.clone(), env, world_b.catalogue.subscribe(), false, 1 << 20).await.unwrap();
    assert_eq!(b.records_ahead(), 1);
    assert_eq!(b.strip(None, soon()).await.unwrap(), None);
    assert_eq!((b.records_ahead(), rows(&storage).await), (0, [all, 0, 0]));
}

#[tokio::test]
async fn what_is_missing_is_what_records_claim_and_the_clock_has_not() {
    let (world_a, world_b) = (World::new(130), World::new(131));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (storage, b) = world_b.open(false, 1 << 20).await;
    let mut sent = Vec::new();
    for seq in 1..=3 {
        sent.push(mint(&a, &format!("k{seq}"), &order(seq, "v", Supersedes::Observed)).await.state);
    }
    let slice = place("").slice;
    let dot = |counter| Dot { incarnation: a.incarnation, counter };
    let dots = |counters: &[u64]| counters.iter().map(|counter| dot(*counter)).collect::<Context>();
    let missing = |counters: &[u64]| vec![(slice, dots(counters))];
    assert!(b.slices_behind().is_empty());
    apply(&b, "k3", &sent[2]).await;
    assert_eq!(b.slices_behind(), missing(&[1, 2]));
    apply(&b, "k1", &sent[0]).await;
    assert_eq!(b.slices_behind(), missing(&[2]));
    // After a start it is known as soon as the records were looked at.
    storage.durable(b.clock(slice).1).await.unwrap();
    world_b.cut(&storage);
    let (_, b) = world_b.open(false, 1 << 20).await;
    strip_all(&b).await;
    assert_eq!(b.slices_behind(), missing(&[2]));
    apply(&b, "k2", &sent[1]).await;
    assert_eq!((b.slices_behind(), b.records_ahead()), (vec![], 1), "though the record is not stripped yet");
    // What only a deleted namespace claimed is missed no more.
    let other = Place { namespace: NamespaceId(8), ..place("l") };
    let claims = |counter| {
        let mut state = world_state(9, counter, "w");
        state.record.context.insert(dot(counter));
        state
    };
    apply(&b, "m", &claims(91)).await;
    b.apply(&other, &claims(92), false, soon()).await.unwrap();
    assert_eq!(b.slices_behind(), missing(&[91, 92]));
    world_b.catalogued(true);
    while b.remove_records(slice, (1, 7), None, soon()).await.unwrap().last.is_some() {}
    strip_all(&b).await;
    assert_eq!(b.slices_behind(), missing(&[92]));
}

#[tokio::test]
async fn a_clock_has_so_many_gaps_and_no_more() {
    let world = World::new(98);
    let (_, replica) = world.open(false, 1 << 20).await;
    let mut gaps = NodeClock::new();
    (1..=MAX_CLOCK_RANGES as u64).for_each(|n| gaps.add(Dot { incarnation: Incarnation(9), counter: 2 * n }));
    replica.adopt(place("k").slice, &gaps, soon()).await.unwrap();
    let far = 3 * MAX_CLOCK_RANGES as u64;
    let refused = replica.apply(&place("k"), &world_state(9, far, "far"), false, soon()).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::Overloaded, kv_types::Applied::No));
    assert!(shown(&replica, "k").await.is_empty());
    let mut more = NodeClock::new();
    more.add(Dot { incarnation: Incarnation(9), counter: far });
    assert_eq!(reason(replica.adopt(place("k").slice, &more, soon()).await), Reason::Overloaded);
    // What closes a gap makes room.
    apply(&replica, "k", &world_state(9, 3, "near")).await;
    apply(&replica, "l", &world_state(9, far, "far")).await;
    assert_eq!(
        (shown(&replica, "k").await, shown(&replica, "l").await),
        (vec!["near".into()], vec!["far".into()])
    );
}

#[tokio::test]
async fn the_gaps_of_several_writes_in_one_message_count_together() {
    let world = World::new(134);
    let (storage, replica) = world.open(false, 1 << 20).await;
    let slice = place("k").slice;
    let mut gaps = NodeClock::new();
    (1..MAX_CLOCK_RANGES as u64).for_each(|n| gaps.add(Dot { incarnation: Incarnation(9), counter: 2 * n }));
    replica.adopt(slice, &gaps, soon()).await.unwrap();
    let far = 3 * MAX_CLOCK_RANGES as u64;
    let both = |one, other| {
        let mut state = world_state(9, one, "one");
        state.merge(&world_state(9, other, "other"));
        state
    };
    // There is room for one range.
    let refused = replica.apply(&place("k"), &both(far, far + 2), false, soon()).await.unwrap_err();
    assert_eq!((refused.reason, refused.applied), (Reason::Overloaded, kv_types::Applied::No));
    assert!(shown(&replica, "k").await.is_empty());
    assert_eq!((replica.clock(slice).0, rows(&storage).await), (gaps.clone(), [0, 0, 0]));
    apply(&replica, "k", &both(far, far + 1)).await;
    let ranges = || replica.clock(slice).0.dots().ranges().len();
    assert_eq!((shown(&replica, "k").await.len(), ranges()), (2, MAX_CLOCK_RANGES));
    // Now for none, until one of the two closes a gap.
    let refused = replica.apply(&place("l"), &both(far + 5, far + 7), false, soon()).await;
    assert_eq!(reason(refused), Reason::Overloaded);
    apply(&replica, "l", &both(3, far + 5)).await;
    assert_eq!((shown(&replica, "l").await.len(), ranges()), (2, MAX_CLOCK_RANGES));
}

#[tokio::test]
async fn a_record_that_cannot_be_read_keeps_none_behind_it_from_being_stripped() {
    let (world_a, world_b) = (World::new(135), World::new(136));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (storage, b) = world_b.open(false, 1 << 20).await;
    let keys = limits::STRIP.1 as u64 + 10;
    let mut sent = Vec::new();
    for seq in 1..=keys {
        let key = format!("k{seq:03}");
        sent.push((key.clone(), mint(&a, &key, &order(seq, "v", Supersedes::Observed)).await.state));
    }
    for (key, state) in sent.iter().skip(1).chain(sent.first()) {
        apply(&b, key, state).await;
    }
    // The first of the list, one in the midst of a step, and one of the next step.
    let mut batch = Batch::new();
    for key in ["a", "k002", "k068"] {
        batch.push_put(RECORDS, place(key).record_key(), [9]);
        batch.push_put(AHEAD, place(key).record_key(), []);
    }
    let position = storage.commit(batch).unwrap();
    storage.durable(position).await.unwrap();
    world_b.cut(&storage);
    let (storage, b) = world_b.open(false, 1 << 20).await;
    assert_eq!(b.records_ahead(), keys);
    strip_all(&b).await;
    assert_eq!((b.records_ahead(), rows_in(&storage, AHEAD).await), (3, 3));
    for (key, _) in sent.iter().filter(|(key, _)| key != "k002" && key != "k068") {
        assert_eq!(shown(&b, key).await, ["v"]);
    }
}

/// A start costs the clocks of all replicas a range where something is minted, and nowhere else.
#[tokio::test]
async fn a_start_that_mints_nothing_adds_no_range_to_any_clock() {
    let (world_a, world_b) = (World::new(137), World::new(138));
    let (_, b) = world_b.open(false, 1 << 20).await;
    let slice = place("k").slice;
    let elsewhere = Place { slice: Slice { partition: RingPartition(4), ..slice }, ..place("k") };
    let mut clocks = Vec::new();
    for start in 0..6u64 {
        let (storage, a) = world_a.open(false, 1 << 20).await;
        // Every other start mints, in one ring partition; each reads, merges, strips and stands in.
        if start % 2 == 0 {
            let state = mint(&a, "k", &order(start + 1, "v", Supersedes::Observed)).await.state;
            apply(&b, "k", &state).await;
        }
        apply(&a, "k", &read(&b, "k").await).await;
        a.apply(&elsewhere, &world_state(9, 1, "w"), false, soon()).await.unwrap();
        strip_all(&a).await;
        let position = a.clock(slice).1.max(a.clock(elsewhere.slice).1);
        storage.durable(position).await.unwrap();
        clocks.push([a.clock(slice).0, a.clock(elsewhere.slice).0, b.clock(slice).0]);
        world_a.cut(&storage);
    }
    let ranges = |at: usize| clocks.iter().map(|all| all[at].dots().ranges().len()).collect::<Vec<_>>();
    assert_eq!(ranges(0), [1, 1, 2, 2, 3, 3]);
    assert_eq!(ranges(1), [1; 6]);
    assert_eq!(ranges(2), ranges(0));
}

/// The rows of a key that is written often while its replicas are away do not repeat each other.
#[tokio::test]
async fn hints_of_a_hot_key_do_not_repeat_each_other() {
    let world = World::new(99);
    let (storage, fallback) = world.open(false, 1 << 30).await;
    let writes = 5 * limits::HINT_ROW_WRITES as u64;
    for seq in 0..writes {
        stand_in(&fallback, "k", &order(seq, "v", Supersedes::Observed)).await;
    }
    let mut told = std::collections::BTreeSet::new();
    let mut carried = 0;
    for due in fallback.due(TARGETS[0], None, 1_000, soon()).await.unwrap() {
        let (state, _) = fallback.message_of(&due, soon()).await.unwrap();
        carried += state.writes.len();
        told.extend(state.writes.into_values().map(|write| write.request.seq));
    }
    assert_eq!(told.len() as u64, writes, "every one is told of");
    assert!(carried < 2 * writes as usize, "{carried}");
    assert!(rows_in(&storage, crate::layout::HINTS).await <= 2 * 7);
    assert!(stand_in(&fallback, "k", &order(3, "v", Supersedes::Observed)).await.deduplicated);
}

/// A pull, step by step.
struct Pull<'a> {
    source: &'a Replica,
    target: &'a Replica,
    clock: NodeClock,
}

impl<'a> Pull<'a> {
    async fn begin(source: &'a Replica, target: &'a Replica) -> Self {
        let slice = place("").slice;
        let clock = source.clock(slice).0;
        target.begin_pull(slice, &clock, target.is_whole(), soon()).await.unwrap();
        let requests = source.page_of_requests(slice, &[], 1 << 20).unwrap();
        let decode = |(request, row)| (request, Taken::decode(row).unwrap());
        let told: Vec<_> = requests.rows.into_iter().map(decode).collect();
        target.learn_taken(slice, &told, soon()).await.unwrap();
        Self { source, target, clock }
    }

    /// Merges a page behind a key; the last key, if there may be more.
    async fn page(&self, after: &[u8], max_bytes: usize) -> Option<Bytes> {
        let slice = place("").slice;
        let Page { records, clock, next, .. } =
            self.source.page(slice, after, max_bytes, soon()).await.unwrap();
        let mut listed = std::collections::BTreeSet::new();
        for (place, record) in records {
            let mut state = State::decode(record).unwrap();
            state.record.fill(&clock);
            listed.insert(place.record_key().freeze());
            self.target.merge_pulled(&place, &state, soon()).await.unwrap();
        }
        self.target.pass(slice, after, next.as_deref(), &listed, soon()).await.unwrap();
        next
    }

    async fn records(&self) -> usize {
        let (mut after, mut pages) = (Bytes::new(), 1);
        while let Some(next) = self.page(&after, 1).await {
            (after, pages) = (next, pages + 1);
        }
        pages
    }

    async fn end(self) {
        self.target.adopt(place("").slice, &self.clock, soon()).await.unwrap();
    }
}

async fn pull(source: &Replica, target: &Replica) {
    let pull = Pull::begin(source, target).await;
    pull.records().await;
    pull.end().await;
}

/// A node that lost its disk, and is not told yet that it lacks nothing.
async fn wiped(world: &World) -> (Storage, Replica) {
    world.open_with(options(), true, 1 << 20).await
}

#[tokio::test]
async fn a_pull_brings_everything_and_moves_the_clock_at_its_end() {
    let (world_a, world_b) = (World::new(100), World::new(101));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (storage, b) = wiped(&world_b).await;
    for seq in 0..20 {
        let key = format!("k{:02}", seq % 10);
        let supersedes = if seq % 10 == 3 { Supersedes::Nothing } else { Supersedes::Observed };
        mint(&a, &key, &order(seq, &seq.to_string(), supersedes)).await;
    }
    mint(&a, "k05", &delete(20, Supersedes::Observed)).await;
    let pull = Pull::begin(&a, &b).await;
    assert_eq!(pull.records().await, 9, "a row each");
    assert!(b.clock(place("k").slice).0.is_empty());
    pull.end().await;
    assert_eq!(b.clock(place("k").slice).0, a.clock(place("k").slice).0);
    for key in (0..10).map(|n| format!("k{n:02}")) {
        assert_eq!(read(&b, &key).await.record, read(&a, &key).await.record, "{key}");
    }
    assert_eq!(rows(&storage).await, [9, 0, 1], "and no row waits to be stripped");
    b.set_whole(false).await.unwrap();
    for seq in 0..20 {
        let key = format!("k{:02}", seq % 10);
        let supersedes = if seq % 10 == 3 { Supersedes::Nothing } else { Supersedes::Observed };
        assert!(mint(&b, &key, &order(seq, &seq.to_string(), supersedes)).await.deduplicated);
    }
}

#[tokio::test]
async fn what_a_source_does_not_have_is_dead_where_it_is_pulled() {
    // Of each key the hint of the put comes to the one that pulls, at another time; at the source all were
    // deleted.
    let (world_a, world_b, world_f) = (World::new(102), World::new(103), World::new(104));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (storage, b) = wiped(&world_b).await;
    let (_, fallback) = world_f.open(false, 1 << 20).await;
    let mut hints = BTreeMap::new();
    for (seq, key) in (1..).zip(["a", "c", "e", "g"]) {
        let hint = stand_in(&fallback, key, &order(10 * seq, key, Supersedes::Nothing)).await.state;
        apply(&a, key, &hint).await;
        mint(&a, key, &delete(10 * seq + 1, Supersedes::Observed)).await;
        hints.insert(key, hint);
    }
    // Two keys that are there, so that there are pages.
    mint(&a, "b", &order(100, "b", Supersedes::Observed)).await;
    mint(&a, "f", &order(101, "f", Supersedes::Observed)).await;
    // One that only this node knows.
    apply(&b, "d", &world_state(9, 200, "d")).await;
    let late = async |key: &str| apply(&b, key, &hints[key]).await;

    late("a").await;
    let pull = Pull::begin(&a, &b).await;
    late("c").await;
    let first = pull.page(&[], 1).await.unwrap();
    assert_eq!(first, place("b").record_key().freeze());
    assert!(shown(&b, "a").await.is_empty(), "it lies before the first key");
    assert_eq!(shown(&b, "c").await, ["c"], "the pull has not come there");
    late("a").await;
    assert!(shown(&b, "a").await.is_empty(), "the pull has passed it");
    assert_eq!(pull.page(&first, 1).await, None);
    for key in ["a", "c", "e", "g"] {
        late(key).await;
        assert!(shown(&b, key).await.is_empty(), "{key}: between the pages and the clock");
    }
    pull.end().await;
    for key in ["a", "c", "e", "g"] {
        late(key).await;
        assert!(shown(&b, key).await.is_empty(), "{key}");
    }
    assert_eq!([shown(&b, "b").await, shown(&b, "d").await, shown(&b, "f").await].concat(), ["b", "d", "f"]);
    strip_all(&b).await;
    assert_eq!(rows(&storage).await, [3, 0, 0]);
}

/// The delete was acknowledged by the one that pulls; the source does not know it, and the process that pulls
/// ends before the pull does.
#[tokio::test]
async fn what_is_acknowledged_during_a_pull_does_not_depend_on_its_end() {
    for passed in [true, false] {
        let (world_a, world_b, world_c) = (World::new(105), World::new(106), World::new(107));
        let (_, a) = world_a.open(false, 1 << 20).await;
        let (_, b) = world_b.open(false, 1 << 20).await;
        let (storage, c) = wiped(&world_c).await;
        let put = mint(&a, "k", &order(1, "a", Supersedes::Observed)).await.state;
        apply(&b, "k", &put).await;
        // It does not say which request the write was that it deletes.
        let mut gone = mint(&a, "k", &delete(2, Supersedes::Observed)).await.state;
        let deleted = dot_of(&gone, 2);
        gone.writes.retain(|dot, _| *dot == deleted);
        let pulling = Pull::begin(&b, &c).await;
        if passed {
            pulling.records().await;
        }
        let position = c.apply(&place("k"), &gone, false, soon()).await.unwrap();
        if !passed {
            pulling.records().await;
        }
        assert!(shown(&c, "k").await.is_empty());
        let last = c.clock(place("k").slice).1;
        storage.durable(position.max(last)).await.unwrap();
        world_c.cut(&storage);
        let (_, c) = world_c.open_with(options(), false, 1 << 20).await;
        assert!(!c.is_whole());
        pull(&b, &c).await;
        assert!(shown(&c, "k").await.is_empty(), "passed: {passed}");
    }
}

/// A wiped node has taken a delete before the pull comes to its key. The clock of the source, of many lives
/// of many nodes, need not be written down with that row, nor with any other.
#[tokio::test]
async fn rows_that_were_there_before_a_pull_do_not_take_the_clock_of_the_source() {
    let (world_a, world_c) = (World::new(132), World::new(133));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (storage, c) = wiped(&world_c).await;
    let mut lives = NodeClock::new();
    (1..=500).for_each(|n| lives.add(Dot { incarnation: Incarnation(1_000 + n), counter: 1 }));
    a.adopt(place("k").slice, &lives, soon()).await.unwrap();
    let put = mint(&a, "k", &order(1, "a", Supersedes::Observed)).await.state;
    mint(&a, "l", &order(2, "b", Supersedes::Observed)).await;
    // It deletes by a dot alone, without a word of what that was.
    let superseded = dot_of(&put, 1);
    let mut gone = world_state(9, 3, "c");
    gone.record.context.insert(superseded);
    apply(&c, "k", &gone).await;
    let ranges = |key: &str| {
        let row = storage.recent(RECORDS, &place(key).record_key()).flatten().unwrap();
        State::decode(row.value).unwrap().ranges()
    };
    let before = ranges("k");
    let given_up = Pull::begin(&a, &c).await;
    given_up.records().await;
    assert_eq!((ranges("k"), ranges("l")), (before, 0));
    // Without the end of the pull the row is as true as it was.
    c.give_up_pull(place("k").slice);
    let row = storage.recent(RECORDS, &place("k").record_key()).flatten().unwrap();
    assert!(State::decode(row.value).unwrap().record.context.covers(superseded));
    apply(&c, "k", &put).await;
    assert_eq!(shown(&c, "k").await, ["c"]);
    pull(&a, &c).await;
    strip_all(&c).await;
    assert_eq!((shown(&c, "k").await, shown(&c, "l").await), (vec!["c".into()], vec!["b".into()]));
    assert_eq!(rows(&storage).await, [2, 0, 0]);
}

/// A page was read, and keys are written and deleted before the lock is taken: its rows and its clock are of
/// one moment.
#[tokio::test]
async fn a_page_has_rows_and_clock_of_one_moment() {
    let world = World::new(108);
    let (storage, replica, gate) = gated(&world).await;
    for (seq, key) in (1..).zip(["changed", "deleted", "kept"]) {
        mint(&replica, key, &order(seq, key, Supersedes::Observed)).await;
    }
    storage.checkpoint().await.unwrap();
    let page = tokio::spawn({
        let (replica, gate) = (Arc::clone(&replica), gate.clone());
        let slice = place("").slice;
        let (from, to) = (slice.prefix().freeze(), prefix_end(&slice.prefix()).map(Bytes::from));
        let mut held = false;
        async move {
            let read = |partition: &mut Partition, rows: &mut Rows<'_>| {
                let (found, next) = rows.records(&from, to.as_ref(), 1 << 20)?;
                // The page is here. What the operation waits for now, it does not get at once.
                if !std::mem::replace(&mut held, true) {
                    gate.hold(1);
                }
                rows.row(RECORDS, place("kept").record_key())?;
                Ok((found, next, partition.clock.clone()))
            };
            replica.run(slice, soon(), read).await.unwrap()
        }
    });
    until("the page was read", || gate.waiting() == 1).await;
    let changed = mint(&replica, "changed", &order(10, "again", Supersedes::Observed)).await;
    let gone = mint(&replica, "deleted", &delete(11, Supersedes::Observed)).await;
    let new = mint(&replica, "new", &order(12, "new", Supersedes::Observed)).await;
    let minted = [changed, gone, new];
    // Nothing but what was kept for the page tells of them.
    storage.checkpoint().await.unwrap();
    assert!(!page.is_finished());
    gate.release();
    let (found, next, clock) = page.await.unwrap();
    assert!(!gate.is_overdue());
    assert_eq!(next, None);
    let keys: Vec<Bytes> = found.keys().map(|key| Place::of_record_key(key).unwrap().key).collect();
    assert_eq!(keys, ["changed", "kept", "new"]);
    let state = |row: &Row| State::decode(row.value.clone()).unwrap();
    let read = found.values().flat_map(|row| values(&Copy { state: state(row), ..Copy::default() }));
    assert_eq!(read.collect::<Vec<_>>(), ["again", "kept", "new"]);
    for (minted, seq) in minted.iter().zip(10..) {
        assert!(clock.has(dot_of(&minted.state, seq)));
    }
}

/// A twin of which the requests of the source tell: no record does any more.
#[tokio::test]
async fn a_pull_tells_of_twins_that_no_record_names() {
    let (world_a, world_b, world_c) = (World::new(109), World::new(110), World::new(111));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (_, b) = world_b.open(false, 1 << 20).await;
    let (storage, c) = wiped(&world_c).await;
    // One request became two writes, of which one was deleted; the other comes late.
    mint(&a, "k", &order(1, "twice", Supersedes::Nothing)).await;
    let twin = mint(&b, "k", &order(1, "twice", Supersedes::Nothing)).await.state;
    mint(&a, "k", &delete(2, Supersedes::Observed)).await;
    apply(&c, "k", &twin).await;
    assert_eq!(shown(&c, "k").await, ["twice"]);
    pull(&a, &c).await;
    assert!(shown(&c, "k").await.is_empty(), "one that it had before");
    apply(&c, "k", &twin).await;
    assert!(shown(&c, "k").await.is_empty());
    strip_all(&c).await;
    assert_eq!(rows(&storage).await, [0, 0, 0]);
}

#[tokio::test]
async fn the_hints_of_a_fallback_are_pulled_raw_and_stay() {
    let (world_f, world_c) = (World::new(112), World::new(113));
    let (_, fallback) = world_f.open(false, 1 << 20).await;
    let (_, c) = wiped(&world_c).await;
    for seq in 0..20 {
        stand_in(&fallback, &format!("k{seq}"), &order(seq, "v", Supersedes::Nothing)).await;
    }
    let slice = place("").slice;
    let elsewhere = Place { slice: Slice { partition: RingPartition(4), ..slice }, ..place("k0") };
    fallback.store_hint(&elsewhere, TARGETS[1], world_state(9, 1, "w"), true, soon()).await.unwrap();
    fallback.note_missing(&place("n"), TARGETS[1], BTreeMap::new(), soon()).await.unwrap();
    let (mut after, mut pages, mut found) = (Bytes::new(), 0, 0);
    loop {
        let page = fallback.page_of_hints(TARGETS[1], slice, &after, 400, soon()).await.unwrap();
        pages += 1;
        for (place, state) in &page.rows {
            assert_eq!(state.record.context.ranges().len(), 1, "not filled");
            c.apply(place, state, true, soon()).await.unwrap();
            found += 1;
        }
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert!(pages > 3 && found == 20, "{pages} {found}");
    for seq in 0..20 {
        assert_eq!(shown(&c, &format!("k{seq}")).await, ["v"]);
    }
    assert_eq!(fallback.hints_pending()[&TARGETS[1]], 22);
}

/// A replica whose storage works when it is told to.
pub(super) async fn by_hand(world: &World) -> (Storage, Replica) {
    let options = StorageOptions { drive: kv_storage::Drive::Manual, ..options() };
    let (storage, _) =
        Storage::open(options, Arc::new(world.disk.clone()), Arc::new(world.tiers.clone())).unwrap();
    let env = Env { clock: world.clock.clone(), ..Env::real() };
    let opened = Replica::open(storage.clone(), env, world.catalogue.subscribe(), false, 1 << 20);
    let replica = driven(&storage, opened).await.unwrap();
    driven(&storage, replica.set_whole(false)).await.unwrap();
    (storage, replica)
}

#[tokio::test]
async fn a_reader_waits_for_the_writes_of_its_own_key_alone() {
    let world = World::new(114);
    let (storage, replica) = by_hand(&world).await;
    let first = mint(&replica, "k", &order(1, "a", Supersedes::Observed)).await.state;
    mint(&replica, "gone", &order(2, "g", Supersedes::Observed)).await;
    mint(&replica, "gone", &delete(3, Supersedes::Observed)).await;
    let second = mint(&replica, "k", &order(4, "b", Supersedes::Observed)).await.state;
    while storage.pump() {}
    // Another key is written all the time.
    let other = mint(&replica, "other", &order(5, "o", Supersedes::Observed)).await.state;
    for key in ["k", "gone"] {
        let copy = replica.in_memory(&place(key)).unwrap();
        assert!(copy.known && replica.is_durable(copy.position), "{key}");
        // It says all that is durable, and nothing that is not.
        let context = &copy.state.record.context;
        assert!([dot_of(&first, 1), dot_of(&second, 4)].iter().all(|dot| context.covers(*dot)), "{key}");
        assert!(!context.covers(dot_of(&other, 5)), "{key}");
        assert_eq!(values(&copy), if key == "k" { vec!["b"] } else { Vec::new() });
    }
    assert!(!replica.is_durable(replica.in_memory(&place("other")).unwrap().position));
    // What the power takes away was not shown.
    let shown = replica.in_memory(&place("k")).unwrap().state.record;
    world.cut(&storage);
    let (_, replica) = world.open(false, 1 << 20).await;
    assert!(read(&replica, "k").await.record.context.contains_all(&shown.context));
    assert!(!read(&replica, "k").await.record.context.covers(dot_of(&other, 5)));
}

/// Writes of a deleted namespace are refused, and leave no gap behind.
#[tokio::test]
async fn what_is_refused_of_a_deleted_namespace_leaves_no_gap() {
    let (world_a, world_b) = (World::new(115), World::new(116));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (storage, b) = world_b.open(false, 1 << 20).await;
    let refused = mint(&a, "k", &order(1, "a", Supersedes::Observed)).await.state;
    world_b.catalogued(true);
    let failure = b.apply(&place("k"), &refused, false, soon()).await.unwrap_err();
    assert_eq!(failure.reason, Reason::NamespaceUnknown);
    let there = |key: &str| Place { namespace: NamespaceId(8), ..place(key) };
    let mut last = State::default();
    for seq in 2..10 {
        let order = order(seq, "v", Supersedes::Observed);
        last = a.mint(&there("l"), Role::Primary, &order, soon()).await.unwrap().state;
        b.apply(&there("l"), &last, false, soon()).await.unwrap();
    }
    assert_eq!(rows(&storage).await, [1, 1, 0], "it may be yet to come");
    for _ in 0..2 {
        b.pass_over(place("k").slice, &refused, soon()).await.unwrap();
    }
    assert_eq!(b.clock(place("k").slice).0, a.clock(place("k").slice).0);
    strip_all(&b).await;
    assert_eq!(rows(&storage).await, [1, 0, 0]);
    let gone = a.mint(&there("l"), Role::Primary, &delete(10, Supersedes::Observed), soon()).await.unwrap();
    b.apply(&there("l"), &gone.state, false, soon()).await.unwrap();
    assert_eq!(rows(&storage).await, [0, 0, 0]);
    assert!(last.record.context.covers(dot_of(&refused, 1)));
}

/// What was left out of a pull is claimed by nothing here, and what was not left out is filled as ever.
#[tokio::test]
async fn a_key_that_was_left_out_of_a_pull_keeps_what_comes_of_it() {
    let (world_a, world_b, world_f) = (World::new(117), World::new(118), World::new(119));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (_, b) = wiped(&world_b).await;
    let (_, fallback) = world_f.open(false, 1 << 20).await;
    let hint = stand_in(&fallback, "gone", &order(1, "g", Supersedes::Nothing)).await.state;
    apply(&a, "gone", &hint).await;
    mint(&a, "gone", &delete(2, Supersedes::Observed)).await;
    let large = mint(&a, "large", &order(3, "l", Supersedes::Observed)).await.state;
    let small = mint(&a, "small", &order(4, "s", Supersedes::Observed)).await.state;
    // As `rebuild` does it with a record that this node cannot take.
    let slice = place("").slice;
    let (clock, _) = a.clock(slice);
    b.begin_pull(slice, &clock, false, soon()).await.unwrap();
    let listed = [place("large").record_key().freeze(), place("small").record_key().freeze()].into();
    b.leave_out(&place("large"));
    b.merge_pulled(&place("small"), &small, soon()).await.unwrap();
    b.pass(slice, &[], None, &listed, soon()).await.unwrap();
    b.end_pull(slice, &clock, soon()).await.unwrap();
    assert!(!b.clock(slice).0.has(dot_of(&large, 3)), "the clock does not claim it");
    // Before, its dot was claimed, and the value would have been dropped as one that was superseded.
    apply(&b, "large", &large).await;
    assert_eq!(shown(&b, "large").await, ["l"]);
    apply(&b, "gone", &hint).await;
    assert!(shown(&b, "gone").await.is_empty(), "what the source knows to be gone stays so");
    // A second source takes nothing of that away.
    b.begin_pull(slice, &clock, false, soon()).await.unwrap();
    b.leave_out(&place("small"));
    b.pass(slice, &[], None, &listed, soon()).await.unwrap();
    b.end_pull(slice, &clock, soon()).await.unwrap();
    apply(&b, "gone", &hint).await;
    assert!(shown(&b, "gone").await.is_empty());
}

/// A node that serves and catches up, and does not come to the end: what it has got is the whole truth of
/// each key that it has got.
#[tokio::test]
async fn a_pull_that_is_given_up_leaves_nothing_that_may_come_back() {
    let (world_a, world_b, world_f) = (World::new(120), World::new(121), World::new(122));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (storage, b) = world_b.open(false, 1 << 20).await;
    let (_, fallback) = world_f.open(false, 1 << 20).await;
    let old = stand_in(&fallback, "k", &order(1, "old", Supersedes::Nothing)).await.state;
    let gone = stand_in(&fallback, "l", &order(2, "gone", Supersedes::Nothing)).await.state;
    let both = stand_in(&fallback, "m", &order(3, "both", Supersedes::Nothing)).await.state;
    for (key, state) in [("k", &old), ("l", &gone), ("m", &both)] {
        apply(&a, key, state).await;
    }
    // The writes that carry it do not name the request: it is superseded by its dot alone.
    mint(&a, "k", &order(4, "new", Supersedes::Observed)).await;
    mint(&a, "l", &delete(5, Supersedes::Observed)).await;
    apply(&b, "m", &both).await;
    let slice = place("").slice;
    let given_up = Pull::begin(&a, &b).await;
    given_up.records().await;
    b.give_up_pull(slice);
    assert_eq!((shown(&b, "k").await, shown(&b, "m").await), (vec!["new".into()], vec!["both".into()]));
    apply(&b, "k", &old).await;
    assert_eq!(shown(&b, "k").await, ["new"]);
    // Of what it had alike nothing was written.
    assert!(rows(&storage).await[1] <= 1);
    pull(&a, &b).await;
    apply(&b, "l", &gone).await;
    assert!(shown(&b, "l").await.is_empty());
    strip_all(&b).await;
    assert_eq!(rows(&storage).await, [2, 0, 0]);
}

/// A node that catches up learns of a request before it has its write, and the pull goes no further.
#[tokio::test]
async fn a_request_is_answered_for_where_its_write_is_and_nowhere_else() {
    let (world_a, world_b) = (World::new(123), World::new(124));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (_, b) = world_b.open(false, 1 << 20).await;
    let there = mint(&a, "k", &order(1, "v", Supersedes::Nothing)).await.state;
    let pull = Pull::begin(&a, &b).await;
    let mut resent = order(1, "v", Supersedes::Nothing);
    resent.mutation.attempt = 2;
    for given_up in [false, true] {
        if given_up {
            pull.target.give_up_pull(place("").slice);
        }
        let minted = mint(&b, "k", &resent).await;
        // The second time it is the one that was taken here.
        assert_eq!(minted.deduplicated, given_up);
        assert_eq!(values(&Copy { state: minted.state, ..Copy::default() }), ["v"]);
        assert_eq!(shown(&b, "k").await, ["v"]);
    }
    // Both are one write.
    apply(&b, "k", &there).await;
    assert_eq!(shown(&b, "k").await, ["v"]);
    mint(&b, "k", &delete(2, Supersedes::Observed)).await;
    apply(&b, "k", &there).await;
    assert!(shown(&b, "k").await.is_empty());
}

/// A source goes in the midst of a pull, and another one, which has missed what superseded a value, and a
/// delete, has to do. What came of the first is not shown beside what it superseded.
#[tokio::test]
async fn what_a_source_had_superseded_stays_so_when_another_one_has_to_do() {
    let (world_a, world_b, world_c) = (World::new(140), World::new(141), World::new(142));
    let (_, a) = world_a.open(false, 1 << 20).await;
    let (_, b) = world_b.open(false, 1 << 20).await;
    let (storage, c) = wiped(&world_c).await;
    for (seq, key) in (1..).zip(["gone", "k", "later", "same"]) {
        let old = mint(&b, key, &order(seq, "old", Supersedes::Observed)).await.state;
        apply(&a, key, &old).await;
    }
    mint(&a, "gone", &delete(11, Supersedes::Observed)).await;
    mint(&a, "k", &order(12, "new", Supersedes::Observed)).await;
    mint(&a, "later", &order(13, "new", Supersedes::Observed)).await;
    // It ends twice behind the first two keys, the second time without a word.
    for told in [true, false] {
        let given_up = Pull::begin(&a, &c).await;
        given_up.page(&[], 1).await.unwrap();
        if told {
            c.give_up_pull(place("").slice);
        }
        assert_eq!((shown(&c, "k").await, shown(&c, "later").await), (vec!["new".to_owned()], vec![]));
    }
    let given_up = || lock(&c.partition(place("").slice)).state.given_up.len();
    let last = Pull::begin(&b, &c).await;
    assert_eq!(given_up(), 1, "the second says what the first did");
    last.records().await;
    last.end().await;
    assert_eq!(given_up(), 0);
    let expected = [("gone", vec![]), ("k", vec!["new"]), ("later", vec!["old"]), ("same", vec!["old"])];
    for (key, values) in &expected {
        assert_eq!(shown(&c, key).await, *values, "{key}");
    }
    // It is written down.
    storage.durable(c.clock(place("").slice).1).await.unwrap();
    world_c.cut(&storage);
    let (storage, c) = world_c.open_with(options(), false, 1 << 20).await;
    apply(&c, "k", &read(&b, "k").await).await;
    for (key, values) in &expected {
        assert_eq!(shown(&c, key).await, *values, "{key}");
    }
    pull(&a, &c).await;
    strip_all(&c).await;
    assert_eq!((shown(&c, "later").await, rows(&storage).await), (vec!["new".to_owned()], [3, 0, 0]));
}
