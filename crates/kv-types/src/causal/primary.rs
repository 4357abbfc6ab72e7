//! What a primary does with its copy of a key, in the one order that is right: fill, merge or write, move the
//! clock on, bury twins, strip. Fallbacks do none of this: they keep what they were given, merge it raw with
//! [`State::merge`], and never fill, because they forget what they delivered.

use super::{Dot, NodeClock, Seen, Sibling, State, Write};
use crate::RequestId;

/// What a merge or a write makes of a primary's copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The copy as it may leave the node: filled.
    pub state: State,
    /// The copy as it is stored: stripped. None: there is nothing to keep, the row goes.
    pub row: Option<State>,
    /// The dots that the clock has got, with what they stand for: they belong into the dot log.
    pub new: Vec<(Dot, Write)>,
}

/// A primary's copy of a key, as it may be merged, shown or sent. A key without a row was never written, or
/// deleted: the clock says of which writes that is known.
pub fn load(stored: Option<State>, clock: &NodeClock) -> State {
    let mut state = stored.unwrap_or_default();
    state.record.fill(clock);
    state
}

/// A copy, filled by that clock, as it is stored: without what the clock has, as far as that makes it
/// smaller, and without what superseded dots stood for.
pub fn keep(mut state: State, clock: &NodeClock) -> Option<State> {
    state.forget_superseded();
    state.record.strip_for_storage(clock);
    if crate::mutant!(StripAhead) {
        state.record.context = state.record.siblings.keys().copied().collect();
    }
    (!state.record.is_nothing()).then_some(state)
}

/// Merges what another node says of a key, and moves the clock on. `known` tells the dots of a request **on
/// this key** that stand in the dot log.
pub fn merge(
    stored: Option<State>,
    incoming: &State,
    clock: &mut NodeClock,
    known: impl FnMut(RequestId) -> Vec<Dot>,
) -> Change {
    // Before the clock moves on: a dot that it has and the copy has not is dead.
    let mut state = load(stored, clock);
    state.merge(incoming);
    settle(state, clock, known)
}

/// Takes a client's write under a new dot: supersedes what the client has seen.
pub fn write(
    stored: Option<State>,
    seen: &Seen,
    (dot, write): (Dot, Write),
    sibling: Option<Sibling>,
    clock: &mut NodeClock,
    known: impl FnMut(RequestId) -> Vec<Dot>,
) -> Change {
    let mut state = load(stored, clock);
    state.update(seen, dot, write, sibling);
    settle(state, clock, known)
}

fn settle(mut state: State, clock: &mut NodeClock, known: impl FnMut(RequestId) -> Vec<Dot>) -> Change {
    state.bury_twins(known);
    let new: Vec<(Dot, Write)> = state.applied().filter(|(dot, _)| !clock.has(*dot)).collect();
    new.iter().for_each(|(dot, _)| clock.add(*dot));
    Change { row: keep(state.clone(), clock), state, new }
}

#[cfg(test)]
mod tests {
    use super::super::{Context, Hlc};
    use super::*;
    use crate::{ClientId, Incarnation};
    use bytes::Bytes;

    fn dot(incarnation: u64, counter: u64) -> Dot {
        Dot { incarnation: Incarnation(incarnation), counter }
    }

    fn of(dot: Dot) -> (Write, Sibling) {
        let request = RequestId { client_id: ClientId(dot.incarnation.0.into()), seq: dot.counter };
        let write = Write { issued_at_ms: dot.counter, request, body: 0 };
        (write, Sibling { stamp: Hlc(0), request, value: Bytes::from_static(b"v") })
    }

    fn put(stored: Option<State>, seen: &Seen, dot: Dot, clock: &mut NodeClock) -> Change {
        let (write, sibling) = of(dot);
        super::write(stored, seen, (dot, write), Some(sibling), clock, |_| Vec::new())
    }

    fn delete(stored: Option<State>, seen: &Seen, dot: Dot, clock: &mut NodeClock) -> Change {
        super::write(stored, seen, (dot, of(dot).0), None, clock, |_| Vec::new())
    }

    fn merge(stored: Option<State>, incoming: &State, clock: &mut NodeClock) -> Change {
        super::merge(stored, incoming, clock, |_| Vec::new())
    }

    #[test]
    fn a_delete_leaves_nothing_and_nothing_comes_back() {
        let mut clock = NodeClock::new();
        let first = put(None, &Seen::default(), dot(1, 1), &mut clock);
        let row = first.row.clone().unwrap();
        assert!(!row.record.is_ahead() && row.writes.len() == 1);
        let gone = delete(first.row, &first.state.seen(), dot(1, 2), &mut clock);
        assert_eq!(gone.row, None);
        // The answer for the absent key names all that is known of it: who has read it supersedes that.
        let absent = load(None, &clock);
        assert!(absent.record.context.covers(dot(1, 1)) && absent.record.context.covers(dot(1, 2)));
        // A hint that comes late.
        let late = merge(None, &first.state, &mut clock);
        assert_eq!((late.row, late.new), (None, Vec::new()));
    }

    #[test]
    fn gaps_cost_nothing() {
        let mut clock = NodeClock::new();
        [3, 7, 8, 20].into_iter().for_each(|counter| clock.add(dot(2, counter)));
        let first = put(None, &Seen::default(), dot(1, 5), &mut clock);
        let seen = first.state.seen();
        let row = first.row.unwrap();
        assert_eq!(row.record.context, Context::from_iter([dot(1, 5)]));
        assert_eq!(delete(Some(row), &seen, dot(1, 9), &mut clock).row, None);
    }

    /// A replica that was away and gets what it missed out of order: each row that comes before the rest is
    /// ahead of as many gaps as there are, and says so in one range.
    #[test]
    fn rows_that_are_ahead_do_not_repeat_the_gaps_of_the_clock() {
        let (mut theirs, mut clock) = (NodeClock::new(), NodeClock::new());
        let rows = 2_000u64;
        let mut bytes = (0, 0);
        for counter in 1..=rows {
            let sent = put(None, &Seen::default(), dot(1, counter), &mut theirs);
            if counter % 2 == 0 {
                let kept = merge(None, &sent.state, &mut clock);
                let (row, mut exact) = (kept.row.unwrap(), kept.state);
                exact.record.strip(&clock);
                assert!(row.record.is_ahead());
                bytes = (bytes.0 + row.encode().len(), bytes.1 + exact.encode().len());
            }
        }
        assert!(bytes.0 < 100 * rows as usize / 2, "{} bytes, and {} with all gaps", bytes.0, bytes.1);
    }

    #[test]
    fn what_is_ahead_of_the_clock_is_kept_until_the_clock_has_it() {
        // This replica missed the put and got the delete.
        let (mut theirs, mut clock) = (NodeClock::new(), NodeClock::new());
        let first = put(None, &Seen::default(), dot(1, 1), &mut theirs);
        let gone = delete(first.row, &first.state.seen(), dot(1, 2), &mut theirs).state;
        let mut without = gone.clone();
        without.writes.retain(|d, _| *d == dot(1, 2));
        let kept = merge(None, &without, &mut clock);
        let row = kept.row.unwrap();
        assert!(row.record.is_ahead() && row.record.siblings.is_empty());
        let late = merge(Some(row.clone()), &first.state, &mut clock);
        assert_eq!((late.row, late.state.record.siblings.len()), (None, 0));
        // Or the put is not to come any more.
        clock.seal(Incarnation(1), u64::MAX);
        assert_eq!(merge(Some(row), &State::default(), &mut clock).row, None);
        // With what it superseded a delete need not be kept at all.
        assert_eq!(merge(None, &gone, &mut NodeClock::new()).row, None);
    }

    #[test]
    fn a_write_that_the_record_does_not_hold_stays_out_of_the_clock() {
        let mut clock = NodeClock::new();
        let mut told = State::default();
        told.writes.insert(dot(1, 1), of(dot(1, 1)).0);
        assert_eq!(merge(None, &told, &mut clock).new, Vec::new());
        assert!(clock.is_empty());
    }
}
