//! What deaths of nodes may have left undone in available namespaces.
//!
//! The coordinator of a write goes on after its client was answered: until the deadline it waits for the
//! other replicas, and then notes hints for those that stayed silent. If it dies before, they are not noted,
//! and only a read makes these replicas alike at once. Hints that were noted survive a
//! death, unless the disk is lost. So after deaths reads may be needed for keys of which a mutation was under
//! way then, and for no other. A disk that refuses a note, for it is full, is as good as a death.

use crate::{Operation, Outcome};
use std::collections::BTreeSet;

/// A span of time, nanoseconds, both ends included.
pub type Span = (u64, u64);

/// From the deadline of a write until its hints are noted.
pub const NOTED_WITHIN_NS: u64 = 1_000_000_000;

/// When what happened to nodes and to what they sent each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disturbances {
    /// Nodes died, or could not note hints.
    pub deaths: Vec<Span>,
    /// Messages were kept back. They arrive at the end, and are begun then: the time that is left to a
    /// request travels with it, and no hour.
    pub held: Vec<Span>,
    /// Messages or nodes were slow or stood still: what is under way may go on all the while.
    pub slowed: Vec<Span>,
}

/// Keys of which a mutation may have been under way when nodes died, of operations on one namespace: for so
/// long after its call, its deadline and [`NOTED_WITHIN_NS`]. What was refused as *not applied* left nothing
/// anywhere.
pub fn left_open<'a>(
    operations: impl IntoIterator<Item = &'a Operation>,
    disturbances: &Disturbances,
    deadline_ns: u64,
) -> BTreeSet<&'a str> {
    let lasts_ns = deadline_ns.saturating_add(NOTED_WITHIN_NS);
    let may_be_open = |op: &&Operation| {
        let died =
            |(began, over): Span| disturbances.deaths.iter().any(|(from, to)| began <= *to && *from <= over);
        under_way(op.call, disturbances, lasts_ns).into_iter().any(died)
    };
    let may_be_left = |op: &&Operation| op.f.mutates() && op.outcome != Outcome::Fail;
    let mutations = operations.into_iter().filter(may_be_left);
    mutations.filter(may_be_open).map(|op| op.key.as_str()).collect()
}

/// When a mutation may have been under way: from its call on, and from the end of what kept it back, again
/// and again where spans follow each other.
fn under_way(call: u64, disturbances: &Disturbances, lasts_ns: u64) -> BTreeSet<Span> {
    let first = (call, call.saturating_add(lasts_ns));
    let mut found = BTreeSet::from([first]);
    let mut next = vec![first];
    while let Some((began, over)) = next.pop() {
        let met = |(from, to): &&Span| began <= *to && *from <= over;
        let late = |to: &u64| to.saturating_add(lasts_ns);
        let arrived = disturbances.held.iter().filter(met).map(|(_, to)| (*to, late(to)));
        let went_on = disturbances.slowed.iter().filter(met).map(|(_, to)| (began, over.max(late(to))));
        next.extend(arrived.chain(went_on).filter(|span| found.insert(*span)));
    }
    found
}

/// Of ring partitions that needed a read, each with its keys, those that no death explains: all that clients
/// wrote there was over when nodes died.
pub fn unexplained<'a>(partitions: &'a [Vec<String>], open: &BTreeSet<&str>) -> Vec<&'a [String]> {
    let explained = |keys: &[String]| keys.iter().any(|key| open.contains(key.as_str()));
    partitions.iter().map(Vec::as_slice).filter(|keys| !explained(keys)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_history::{History, absent};

    const S: u64 = 1_000_000_000;

    /// Mutations at 100, 150 and 200 s that last 40 s, and a read and a refusal.
    fn open(disturbances: &Disturbances) -> Vec<String> {
        let history = History::new()
            .write(100 * S..101 * S, "a", &[])
            .key("early")
            .unknown_write(150 * S, "b", &[])
            .key("open")
            .delete(200 * S..201 * S, &[])
            .key("late")
            .read(150 * S..151 * S, absent())
            .key("read")
            .failed_write(150 * S..151 * S, "c", &[])
            .key("refused")
            .operations();
        let open = left_open(&history, disturbances, 40 * S - NOTED_WITHIN_NS);
        open.into_iter().map(str::to_owned).collect()
    }

    fn spans(seconds: &[Span]) -> Vec<Span> {
        seconds.iter().map(|(from, to)| (from * S, to * S)).collect()
    }

    fn died(deaths: &[Span]) -> Disturbances {
        Disturbances { deaths: spans(deaths), ..Disturbances::default() }
    }

    #[test]
    fn a_mutation_goes_on_after_its_answer_and_a_read_or_a_refusal_leaves_nothing() {
        let none: [&str; 0] = [];
        assert_eq!(open(&died(&[])), none);
        assert_eq!(open(&died(&[(140, 140)])), ["early"]);
        assert_eq!(open(&died(&[(141, 149)])), none);
        assert_eq!(open(&died(&[(145, 150)])), ["open"]);
        assert_eq!(open(&died(&[(190, 200)])), ["late", "open"]);
        assert_eq!(open(&died(&[(10, 20), (240, 250)])), ["late"]);
    }

    #[test]
    fn what_was_kept_back_on_its_way_is_begun_when_it_arrives() {
        let open = |held: &[Span]| open(&Disturbances { held: spans(held), ..died(&[(400, 400)]) });
        let none: [&str; 0] = [];
        assert_eq!(open(&[(160, 380)]), ["late", "open"], "sent before or within, and it arrives");
        assert_eq!(open(&[(160, 350)]), none, "over again before the death");
        assert_eq!(open(&[(160, 401)]), none, "it has not arrived yet");
        assert_eq!(open(&[(300, 390)]), none, "over before anything was held");
        assert_eq!(open(&[(110, 120), (155, 170), (205, 370)]), ["early", "late", "open"]);
    }

    #[test]
    fn what_was_slowed_may_go_on_all_the_while() {
        let open = |slowed: &[Span]| open(&Disturbances { slowed: spans(slowed), ..died(&[(400, 400)]) });
        let none: [&str; 0] = [];
        assert_eq!(open(&[(160, 500)]), ["late", "open"]);
        assert_eq!(open(&[(160, 360)]), ["late", "open"], "and a write's time longer");
        assert_eq!(open(&[(160, 359)]), none);
        assert_eq!(open(&[(241, 500)]), none);
    }

    #[test]
    fn a_ring_partition_is_explained_by_any_of_its_keys() {
        let of = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        let partitions = [of(&["a", "b"]), of(&["c"]), of(&[])];
        let open = BTreeSet::from(["b", "d"]);
        assert_eq!(unexplained(&partitions, &open), [&of(&["c"])[..], &[]]);
    }
}
