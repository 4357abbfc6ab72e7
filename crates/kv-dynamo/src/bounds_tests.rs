//! What is written can be read again: states at the bounds of what may be stored of a key, on every path that
//! stores one.

use kv_types::Applied;
use kv_types::causal::DotRange;
use kv_types::limits::{MAX_CLOCK_RANGES, MAX_CONTEXT_RANGES};

use super::*;
use crate::layout::HINTS;

const TARGETS: [NodeId; 2] = [NodeId(1), NodeId(2)];

/// So many single dots of one incarnation, each with a gap behind it, from a counter on.
fn gaps(from: u64, ranges: usize) -> Context {
    (0..ranges as u64).map(|n| Dot { incarnation: Incarnation(9), counter: from + 2 * n }).collect()
}

/// A delete that claims all of these; its dot is one of another incarnation.
fn claims(seq: u64, context: Context) -> State {
    let dot = Dot { incarnation: Incarnation(3), counter: 2 * seq };
    let write = Write {
        issued_at_ms: NOW,
        request: order(seq, "", Supersedes::Nothing).mutation.request_id,
        body: 0,
    };
    let mut state = State::default();
    state.update(&Seen { context, ..Seen::default() }, dot, write, None);
    state
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Failure>) -> (Reason, Applied) {
    let failure = result.unwrap_err();
    (failure.reason, failure.applied)
}

const REFUSED: (Reason, Applied) = (Reason::Overloaded, Applied::No);

#[tokio::test]
async fn a_record_that_could_not_be_read_back_is_refused_before_it_is_stored() {
    let world = World::new(300);
    let (storage, replica) = world.open(false, 1 << 24).await;
    let apply = async |key: &str, state: &State| replica.apply(&place(key), state, false, soon()).await;
    apply("k", &claims(1, gaps(1_001, limits::ROW_RANGES))).await.unwrap();
    let before = replica.read(&place("k"), soon()).await.unwrap().state;
    assert_eq!(before.ranges(), limits::ROW_RANGES + 1, "with the dot of the delete, which the clock has");
    // One more, from others, from a client, in a pull.
    let more = claims(2, gaps(999, 1));
    assert_eq!(refusal(apply("k", &more).await), REFUSED);
    assert_eq!(refusal(apply("l", &claims(3, gaps(1_001, limits::ROW_RANGES + 1))).await), REFUSED);
    let seen = Seen { context: gaps(999, 1), ..Seen::default() };
    let written = order(4, "v", Supersedes::Seen(seen));
    assert_eq!(refusal(replica.mint(&place("k"), Role::Primary, &written, soon()).await), REFUSED);
    let slice = place("k").slice;
    replica.begin_pull(slice, &NodeClock::new(), true, soon()).await.unwrap();
    assert_eq!(refusal(replica.merge_pulled(&place("k"), &more, soon()).await), REFUSED);
    replica.give_up_pull(slice);
    assert_eq!(replica.read(&place("k"), soon()).await.unwrap().state, before);
    assert_eq!(replica.read(&place("l"), soon()).await.unwrap().state.record.siblings.len(), 0);
    // What claims no more than that goes on, and the row is read again after a start.
    let written = order(5, "v", Supersedes::Observed);
    let minted = replica.mint(&place("k"), Role::Primary, &written, soon()).await.unwrap();
    replica.durable(minted.position).await.unwrap();
    world.cut(&storage);
    let (_, replica) = world.open(false, 1 << 24).await;
    assert_eq!(values(&replica.read(&place("k"), soon()).await.unwrap()), ["v"]);
}

/// As much as may be claimed, by a record, by the clock, and by the clock of a source: it can be sent.
#[tokio::test]
async fn a_record_at_the_bound_can_be_sent_with_all_that_it_is_filled_with() {
    let world = World::new(301);
    let (_, replica) = world.open(false, 1 << 24).await;
    let slice = place("k").slice;
    replica.apply(&place("k"), &claims(1, gaps(1, limits::ROW_RANGES)), false, soon()).await.unwrap();
    let of = |incarnation, ranges| {
        let mut clock = NodeClock::new();
        (1..=ranges as u64)
            .for_each(|n| clock.add(Dot { incarnation: Incarnation(incarnation), counter: 2 * n }));
        clock
    };
    let own = replica.clock(slice).0.dots().ranges().len();
    replica.adopt(slice, &of(11, MAX_CLOCK_RANGES - own), soon()).await.unwrap();
    for (incarnation, ends) in [(12, true), (13, false)] {
        replica.begin_pull(slice, &of(incarnation, MAX_CLOCK_RANGES), true, soon()).await.unwrap();
        replica.leave_out(&place("other"));
        replica.pass(slice, &[], None, &[place("k").record_key().freeze()].into(), soon()).await.unwrap();
        if ends {
            replica.end_pull(slice, &NodeClock::new(), soon()).await.unwrap();
        }
    }
    let sent = replica.read(&place("k"), soon()).await.unwrap().state;
    assert_eq!(sent.ranges(), limits::ROW_RANGES + 3 * MAX_CLOCK_RANGES);
    assert_eq!(State::decode(sent.encode()), Ok(sent));
    // Of two such sources together there is no room for more.
    assert_eq!(refusal(replica.end_pull(slice, &NodeClock::new(), soon()).await), REFUSED);
}

/// What fills gaps of a row takes ranges away, and never adds one: a row that is stripped again stays
/// readable.
#[tokio::test]
async fn a_row_at_the_bound_is_stripped_again() {
    let world = World::new(302);
    let (storage, replica) = world.open(false, 1 << 24).await;
    let slice = place("k").slice;
    let mut wide = Context::new();
    for n in 0..limits::ROW_RANGES as u64 {
        wide.insert_range(DotRange { incarnation: Incarnation(9), first: 10 * n + 1, last: 10 * n + 8 });
    }
    replica.apply(&place("k"), &claims(1, wide.clone()), false, soon()).await.unwrap();
    // Dots in the midst of the ranges: taken out one by one they would leave two of each.
    let mut clock = NodeClock::new();
    (0..MAX_CLOCK_RANGES as u64 - 8)
        .for_each(|n| clock.add(Dot { incarnation: Incarnation(9), counter: 10 * n + 4 }));
    replica.adopt(slice, &clock, soon()).await.unwrap();
    assert_eq!(replica.strip(None, soon()).await.unwrap(), None);
    let row = storage.recent(RECORDS, &place("k").record_key()).flatten().unwrap();
    assert!(State::decode(row.value).unwrap().ranges() <= limits::ROW_RANGES);
    assert!(replica.read(&place("k"), soon()).await.unwrap().state.record.context.contains_all(&wide));
}

#[tokio::test]
async fn hints_that_could_not_be_read_back_together_are_kept_apart() {
    let world = World::new(303);
    let (storage, replica) = world.open(false, 1 << 24).await;
    let hint = async |state: State| replica.store_hint(&place("k"), TARGETS[0], state, true, soon()).await;
    let (at, over) = (gaps(1, MAX_CONTEXT_RANGES - 1), gaps(1, MAX_CONTEXT_RANGES));
    assert_eq!(refusal(hint(claims(1, over)).await), REFUSED, "with its own dot");
    hint(claims(2, at)).await.unwrap();
    hint(claims(3, gaps(1_000_000, 9))).await.unwrap();
    hint(claims(4, gaps(1_000_000, 9))).await.unwrap();
    assert_eq!(rows_in(&storage, HINTS).await, 2);
    let mut told = Vec::new();
    for due in replica.due(TARGETS[0], None, 9, soon()).await.unwrap() {
        let state = replica.message_of(&due, soon()).await.unwrap().0;
        told.extend(state.writes.values().map(|write| write.request.seq));
    }
    assert_eq!(told, [2, 3, 4]);
    // A write that gathers both is refused, and one that is taken in their place changes nothing of them.
    let written = order(5, "v", Supersedes::Nothing);
    let minted = replica.mint(&place("k"), Role::Fallback(&TARGETS), &written, soon()).await;
    assert_eq!(refusal(minted), REFUSED);
    assert_eq!(rows_in(&storage, HINTS).await, 2);
    assert!(replica.read_hints(&place("k"), &TARGETS, soon()).await.unwrap().known);
}
