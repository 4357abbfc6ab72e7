//! What deaths of nodes may have left undone in available namespaces.
//!
//! Whoever coordinates a write goes on after its client was answered: until the deadline it waits for the other replicas,
//! and then notes hints for those that stayed silent. If it dies before, nobody notes them, and until there is
//! anti-entropy only a read makes these replicas alike. Hints that were noted survive a death. So after deaths reads may be
//! needed for keys of which a mutation was under way then, and for no other.

use crate::Operation;
use std::collections::BTreeSet;

/// A span of time, nanoseconds, both ends included.
pub type Span = (u64, u64);

/// Keys of a namespace of which a mutation may have been under way in one of the spans in which nodes died.
///
/// A mutation is under way for `lasts_ns` from its call: its deadline, and what the noting of hints takes. What was sent
/// during a span of `held` may arrive at its end, and is begun then: the time left to it travels with a request, no hour.
pub fn left_open<'a>(
    operations: &'a [Operation],
    ns: &str,
    deaths: &[Span],
    held: &[Span],
    lasts_ns: u64,
) -> BTreeSet<&'a str> {
    let may_be_open = |op: &&Operation| {
        let met = |began: u64| {
            let over = began.saturating_add(lasts_ns);
            deaths.iter().any(|(from, to)| began <= *to && *from <= over)
        };
        beginnings(op.call, held, lasts_ns).into_iter().any(met)
    };
    let mutations = operations.iter().filter(|op| op.ns == ns && op.f.mutates());
    mutations.filter(may_be_open).map(|op| op.key.as_str()).collect()
}

/// When a mutation may have been begun, by whoever got it: at its call, and at the end of what kept it back on its way, again
/// and again where spans follow each other.
fn beginnings(call: u64, held: &[Span], lasts_ns: u64) -> BTreeSet<u64> {
    let mut found = BTreeSet::from([call]);
    let mut next = vec![call];
    while let Some(began) = next.pop() {
        let over = began.saturating_add(lasts_ns);
        let kept = held.iter().filter(|(from, to)| began <= *to && *from <= over);
        next.extend(kept.map(|(_, to)| *to).filter(|to| found.insert(*to)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_history::{History, absent};

    fn open(deaths: &[Span], held: &[Span]) -> Vec<String> {
        let history = History::new()
            .write(100..101, "a", &[])
            .key("early")
            .unknown_write(150, "b", &[])
            .key("open")
            .delete(200..201, &[])
            .key("late")
            .read(150..151, absent())
            .key("read")
            .operations();
        left_open(&history, "ns", deaths, held, 40).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn a_mutation_goes_on_after_its_answer_and_a_read_leaves_nothing() {
        assert_eq!(open(&[], &[]), Vec::<String>::new());
        assert_eq!(open(&[(140, 140)], &[]), ["early"]);
        assert_eq!(open(&[(141, 149)], &[]), Vec::<String>::new());
        assert_eq!(open(&[(145, 150)], &[]), ["open"]);
        assert_eq!(open(&[(190, 200)], &[]), ["late", "open"]);
        assert_eq!(open(&[(10, 20), (240, 250)], &[]), ["late"]);
    }

    #[test]
    fn what_was_kept_back_on_its_way_is_begun_when_it_arrives() {
        let death = [(400, 400)];
        assert_eq!(open(&death, &[(160, 380)]), ["late", "open"], "sent before or within, and it arrives");
        assert_eq!(open(&death, &[(160, 350)]), Vec::<String>::new(), "over again before the death");
        assert_eq!(open(&death, &[(300, 390)]), Vec::<String>::new(), "over before anything was held");
        assert_eq!(open(&death, &[(110, 120), (155, 170), (205, 370)]), ["early", "late", "open"]);
        assert_eq!(open(&death, &[(0, u64::MAX), (0, 1)]), Vec::<String>::new(), "never begun again");
    }

    #[test]
    fn other_namespaces_have_their_own() {
        let history = History::new().write(100..101, "a", &[]).operations();
        assert_eq!(left_open(&history, "other", &[(0, 1_000)], &[], 40).len(), 0);
    }
}
