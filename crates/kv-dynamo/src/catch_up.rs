//! Closes gaps in a node clock that nothing else closes: a note that was lost with the memory or the disk of
//! its coordinator, a hint that went with its fallback. A node meets such a gap when another one sends a
//! record that claims more than this node's clock has, or when clocks are compared. Usually a hint brings
//! what is missing, and as long as any of it comes, as after a long outage, the node waits. Where none does,
//! it asks the other primaries for the records of those writes, by their dot logs ([`crate::missing`]). What
//! still misses after that it gets by a pull of the ring partition from those of the others that have some of
//! it, as one does that has lost its disk, and goes on serving it: what it gets is more than what it has.
//!
//! Not covered: a write that no primary has, which only a client has seen: it keeps the record of its key
//! ahead, and the others are asked for their clocks more and more rarely.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use kv_types::catalogue::FeatureLevel;
use kv_types::causal::Context;
use tokio::time::{Instant, sleep};

use crate::layout::Slice;
use crate::limits;
use crate::missing::ask_for;
use crate::node::{Node, stopped};
use crate::rebuild::pull_from;

/// How the others are asked for what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// By their dot logs, for the records of these writes.
    ByLog,
    /// For the whole ring partition.
    Whole,
}

/// A ring partition to ask for, with what is missing.
pub(crate) type Due = (Slice, How, Context);

/// Which ring partitions are behind, and when the others are asked. A value: time is an argument.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    slices: BTreeMap<Slice, Wait>,
}

#[derive(Debug)]
struct Wait {
    by_log: Watch,
    whole: Watch,
    /// Asked for by log; what of it is still missing the logs do not know.
    in_vain: Context,
    /// How long it waits once the others were asked for all of it.
    pause: Duration,
}

/// Dots that stay away.
#[derive(Debug)]
struct Watch {
    /// What was missing when the wait began; empty until the next look.
    dots: Context,
    due: Instant,
}

impl Watch {
    fn begin(dots: Context, due: Instant) -> Self {
        Self { dots, due }
    }

    /// Whether the wait is over for dots none of which has come. If some have, the others may be on their
    /// way, and have to stay away for as long again.
    fn is_over(&mut self, missing: &Context, patience: Duration, now: Instant) -> bool {
        if self.dots.is_empty() {
            self.dots = missing.clone();
            return false;
        }
        if self.due > now {
            return false;
        }
        if missing.contains_all(&self.dots) {
            return true;
        }
        self.dots.subtract(&self.dots.difference(missing));
        self.due = now + patience;
        false
    }
}

impl Behind {
    /// The ring partitions that are due, with what they have lacked since their wait began, of those that
    /// are behind now. What others write keeps adding to what is missing, and comes at once; so only the dots
    /// of the beginning count.
    pub(crate) fn due(&mut self, behind: Vec<(Slice, Context)>, now: Instant) -> Vec<Due> {
        let (by_log, (_, first, _)) = (limits::CATCH_UP_BY_LOG, limits::CATCH_UP);
        self.slices.retain(|slice, _| behind.iter().any(|(other, _)| other == slice));
        let mut due = Vec::new();
        for (slice, missing) in behind {
            let wait = match self.slices.entry(slice) {
                Entry::Vacant(new) => {
                    new.insert(Wait {
                        by_log: Watch::begin(missing.clone(), now + by_log),
                        whole: Watch::begin(missing, now + first),
                        in_vain: Context::new(),
                        pause: first,
                    });
                    continue;
                }
                Entry::Occupied(known) => known.into_mut(),
            };
            wait.in_vain.subtract(&wait.in_vain.difference(&missing));
            let unasked = missing.difference(&wait.in_vain);
            if wait.by_log.dots.is_empty() {
                wait.by_log.due = now + by_log;
            }
            if wait.by_log.is_over(&unasked, by_log, now) {
                due.push((slice, How::ByLog, wait.by_log.dots.clone()));
            } else if wait.whole.is_over(&missing, first, now) {
                due.push((slice, How::Whole, wait.whole.dots.clone()));
            }
        }
        due
    }

    /// The others were asked. For the whole of a ring partition they are asked after twice as long as the
    /// last time.
    pub(crate) fn asked(&mut self, (slice, how, dots): &Due, now: Instant) {
        let (_, _, longest) = limits::CATCH_UP;
        let Some(wait) = self.slices.get_mut(slice) else { return };
        match how {
            How::ByLog => {
                wait.in_vain.merge(dots);
                wait.by_log.dots = Context::new();
            }
            How::Whole => {
                wait.pause = (wait.pause * 2).min(longest);
                wait.whole = Watch::begin(Context::new(), now + wait.pause);
            }
        }
    }
}

/// Gets what stays behind until the node stops: a few ring partitions at a time by the logs of others, and
/// one of which everything is pulled.
pub(crate) async fn run(node: Arc<Node>) {
    let mut stop = node.stop.subscribe();
    let mut behind = Behind::default();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            () = sleep(limits::CATCH_UP.0) => {}
        }
        if !node.is_whole() {
            continue;
        }
        let due = behind.due(node.replica.slices_behind(), Instant::now());
        let (by_log, whole): (Vec<Due>, Vec<Due>) =
            due.into_iter().partition(|(_, how, _)| *how == How::ByLog);
        let asks = stream::iter(by_log.clone().into_iter().map(|due| ask(Arc::clone(&node), due)));
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            () = asks.buffer_unordered(limits::PULLS).collect::<()>() => {}
        }
        by_log.iter().for_each(|due| behind.asked(due, Instant::now()));
        for due in whole {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                () = ask(Arc::clone(&node), due.clone()) => behind.asked(&due, Instant::now()),
            }
        }
    }
}

/// Asks the other primaries one after the other, until nothing is missing.
async fn ask(node: Arc<Node>, (slice, how, mut missing): Due) {
    if how == How::ByLog && !node.catalogue().allows(FeatureLevel::LOGGED) {
        return;
    }
    for source in node.others_of(slice).unwrap_or_default() {
        missing.subtract(node.replica.clock(slice).0.dots());
        if missing.is_empty() {
            return;
        }
        if !node.is_up(source) || node.replica.is_put_back() {
            continue;
        }
        let asked = match how {
            How::ByLog => ask_for(&node, slice, source, &missing).await.map(Some),
            How::Whole => pull_from(&node, slice, source, Some(&missing)).await.map(|_| None),
        };
        match asked {
            Ok(Some(0)) => {}
            Ok(Some(records)) => {
                tracing::info!(?slice, %source, records, "what stayed behind came by the log")
            }
            Ok(None) => tracing::info!(?slice, %source, "what stayed behind was pulled"),
            Err(error) if error.is_of_own_storage() => {
                let failure = error.failure();
                return tracing::error!(?slice, %source, %failure, "what stays behind cannot be stored");
            }
            Err(error) => {
                tracing::debug!(?slice, %source, ?how, failure = %error.failure(), "what stays behind did not come");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kv_types::causal::Dot;
    use kv_types::{Incarnation, RingId, RingPartition};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn slice(n: u32) -> Slice {
        Slice { ring: RingId(1), partition: RingPartition(n) }
    }

    fn dots(counters: impl IntoIterator<Item = u64>) -> Context {
        counters.into_iter().map(|counter| Dot { incarnation: Incarnation(1), counter }).collect()
    }

    /// What is to be pulled whole; the logs know nothing.
    fn whole(behind: &mut Behind, missing: Vec<(Slice, Context)>, now: Instant) -> Vec<(Slice, Context)> {
        let mut found = Vec::new();
        for due in behind.due(missing, now) {
            match due.1 {
                How::ByLog => behind.asked(&due, now),
                How::Whole => found.push((due.0, due.2)),
            }
        }
        found
    }

    #[test]
    fn the_others_are_asked_after_a_while_and_ever_more_rarely() {
        let (_, first, longest) = limits::CATCH_UP;
        let (one, two) = ((slice(1), dots([5])), (slice(2), dots([7])));
        let both = || vec![one.clone(), two.clone()];
        let (mut behind, begun) = (Behind::default(), Instant::now());
        assert!(whole(&mut behind, vec![one.clone()], begun).is_empty());
        let mut now = begun + first;
        assert!(whole(&mut behind, vec![one.clone()], now - MS).is_empty());
        assert_eq!(whole(&mut behind, both(), now), vec![one.clone()]);
        let mut pause = first;
        for _ in 0..20 {
            behind.asked(&(slice(1), How::Whole, dots([5])), now);
            pause = (pause * 2).min(longest);
            assert!(!whole(&mut behind, both(), now + pause - MS).contains(&one));
            now += pause;
            assert!(whole(&mut behind, both(), now).contains(&one));
        }
        // One that has caught up begins anew.
        assert!(whole(&mut behind, vec![], now).is_empty());
        assert!(whole(&mut behind, vec![one], now).is_empty());
    }

    #[test]
    fn the_logs_are_asked_first_and_once_for_each_dot() {
        let patience = limits::CATCH_UP_BY_LOG;
        let (mut behind, begun) = (Behind::default(), Instant::now());
        let mut due = |missing: Context, now: Instant| {
            let due = behind.due(vec![(slice(1), missing)], now).pop();
            due.iter().for_each(|due| behind.asked(due, now));
            due.map(|(_, how, dots)| (how, dots))
        };
        assert_eq!(due(dots([5]), begun), None);
        assert_eq!(due(dots([5]), begun + patience - MS), None);
        assert_eq!(due(dots([5, 6]), begun + patience), Some((How::ByLog, dots([5]))), "6 has just begun");
        let mut now = begun + patience;
        let mut asked = Vec::new();
        while asked.last().is_none_or(|(how, _)| *how == How::ByLog) {
            now += limits::CATCH_UP.0;
            asked.extend(due(dots([5, 6]), now));
        }
        // 5 is in no log.
        assert_eq!(asked, [(How::ByLog, dots([6])), (How::Whole, dots([5]))]);
        assert!(now <= begun + limits::CATCH_UP.1 + limits::CATCH_UP.0);
        // It comes, is lost again with a directory, and may be in a log by then.
        assert_eq!(due(dots([6]), now), None);
        let again: Vec<_> = (1..10).filter_map(|n| due(dots([5, 6]), now + n * patience)).collect();
        assert_eq!(again[0], (How::ByLog, dots([5])));
    }

    /// Looks as often as the task does; when what is due is due, and what it is.
    fn first_due(missing: impl Fn(u64) -> Context, seconds: u64, how: How) -> Option<(u64, Context)> {
        let (mut behind, begun) = (Behind::default(), Instant::now());
        (0..seconds).find_map(|second| {
            let seen = Some(missing(second)).filter(|dots| !dots.is_empty()).map(|dots| (slice(1), dots));
            let now = begun + Duration::from_secs(second);
            let due = behind.due(seen.into_iter().collect(), now).pop();
            due.iter().filter(|due| due.1 == How::ByLog).for_each(|due| behind.asked(due, now));
            due.filter(|due| due.1 == how).map(|(_, _, dots)| (second, dots))
        })
    }

    #[test]
    fn a_node_that_is_being_brought_up_to_date_does_not_ask() {
        // After a long outage hints come for ten minutes, and more is written all the time.
        let hints = |second: u64| dots((second * 10..6_000).chain([10_000 + second]));
        assert_eq!(first_due(hints, 600, How::ByLog), None);
        assert_eq!(first_due(hints, 600, How::Whole), None);
        // They end halfway.
        let half = |second: u64| dots((second.min(300) * 10..6_000).chain([10_000 + second]));
        let (at, what) = first_due(half, 1_000, How::ByLog).unwrap();
        assert!((300..=310).contains(&at), "{at}");
        assert_eq!(what, dots(3_000..6_000));
        let (at, what) = first_due(half, 1_000, How::Whole).unwrap();
        assert!((300..=340).contains(&at), "{at}");
        assert_eq!(what, dots(3_000..6_000));
    }

    #[test]
    fn what_never_comes_is_due_beside_all_that_comes_at_once() {
        let first = limits::CATCH_UP.1.as_secs();
        assert_eq!(first_due(|_| dots([3]), 100, How::Whole), Some((first, dots([3]))));
        // Others are missing for a moment each.
        let busy = |second: u64| dots([3, 100 + second]);
        assert_eq!(first_due(busy, 100, How::Whole), Some((2 * first, dots([3]))));
        assert_eq!(first_due(|second| dots([100 + second]), 1_000, How::Whole), None);
        let soon = limits::CATCH_UP_BY_LOG.as_secs();
        assert_eq!(first_due(busy, 100, How::ByLog), Some((2 * soon, dots([3]))));
        assert_eq!(first_due(|second| dots([100 + second]), 1_000, How::ByLog), None);
    }

    /// One dot was seen by a client alone; later another one is missed that others have.
    #[test]
    fn what_no_one_has_does_not_hide_what_is_missed_later() {
        let (mut behind, begun) = (Behind::default(), Instant::now());
        let (mut pulled, mut logged) = (Vec::new(), Vec::new());
        for second in 0..300 {
            let missing = if second < 60 { dots([3]) } else { dots([3, 9]) };
            let now = begun + Duration::from_secs(second);
            for due in behind.due(vec![(slice(1), missing)], now) {
                behind.asked(&due, now);
                let asked = if due.1 == How::Whole { &mut pulled } else { &mut logged };
                asked.push((second, due.2));
            }
        }
        assert!(pulled.len() > 2 && pulled.len() < 6, "{pulled:?}");
        assert_eq!(pulled.last().unwrap().1, dots([3, 9]));
        let soon = limits::CATCH_UP_BY_LOG.as_secs();
        assert_eq!(logged, [(soon, dots([3])), (60 + soon, dots([9]))]);
    }
}
