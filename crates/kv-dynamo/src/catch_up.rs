//! Closes gaps in a node clock that nothing else closes: a note that was lost with the memory or the disk of
//! its coordinator, a hint that went with its fallback. A node meets such a gap when another one sends a
//! record that claims more than this node's clock has: the record stays ahead of the clock. Usually a hint
//! brings what is missing, and as long as any of it comes, as after a long outage, the node waits. Where none
//! does, it pulls the ring partition from those of the others that have some of what is missing, as one does
//! that has lost its disk, and goes on serving it: what it gets is more than what it has.
//!
//! Not covered: a ring partition of which nothing is sent any more; and a write that no primary has, which
//! only a client has seen: it keeps the record of its key ahead, and the others are asked for their clocks
//! more and more rarely.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use kv_types::causal::Context;
use tokio::time::{Instant, sleep};

use crate::layout::Slice;
use crate::limits;
use crate::node::{Node, stopped};
use crate::rebuild::pull_from;

/// Which ring partitions are behind, and when the others are asked. A value: time is an argument.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    slices: BTreeMap<Slice, Wait>,
}

#[derive(Debug)]
struct Wait {
    /// What was missing when the wait began; empty until the next look.
    dots: Context,
    due: Instant,
    /// How long it waits once the others were asked.
    pause: Duration,
}

impl Behind {
    /// The ring partitions that are due, with what they have lacked since their wait began, of those that
    /// are behind now. What others write keeps adding to what is missing, and comes at once; so only the dots
    /// of the beginning count. If some of those have come, the others may be on their way, and have to stay
    /// away for as long again.
    pub(crate) fn due(&mut self, behind: Vec<(Slice, Context)>, now: Instant) -> Vec<(Slice, Context)> {
        let (_, first, _) = limits::CATCH_UP;
        self.slices.retain(|slice, _| behind.iter().any(|(other, _)| other == slice));
        let mut due = Vec::new();
        for (slice, missing) in behind {
            let wait = match self.slices.entry(slice) {
                Entry::Vacant(new) => {
                    new.insert(Wait { dots: missing, due: now + first, pause: first });
                    continue;
                }
                Entry::Occupied(known) => known.into_mut(),
            };
            if wait.dots.is_empty() {
                wait.dots = missing;
            } else if wait.due <= now && missing.contains_all(&wait.dots) {
                due.push((slice, wait.dots.clone()));
            } else if wait.due <= now {
                wait.dots.subtract(&wait.dots.difference(&missing));
                wait.due = now + first;
            }
        }
        due
    }

    /// A ring partition was asked for: it waits twice as long as the last time.
    pub(crate) fn asked(&mut self, slice: Slice, now: Instant) {
        let (_, _, longest) = limits::CATCH_UP;
        if let Some(wait) = self.slices.get_mut(&slice) {
            wait.pause = (wait.pause * 2).min(longest);
            wait.due = now + wait.pause;
            wait.dots = Context::new();
        }
    }
}

/// Pulls what stays behind until the node stops: one ring partition at a time.
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
        for (slice, missing) in behind.due(node.replica.slices_behind(), Instant::now()) {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                () = catch_up(&node, slice, missing) => behind.asked(slice, Instant::now()),
            }
        }
    }
}

async fn catch_up(node: &Arc<Node>, slice: Slice, mut missing: Context) {
    for source in node.others_of(slice).unwrap_or_default() {
        missing.subtract(node.replica.clock(slice).0.dots());
        if missing.is_empty() {
            return;
        }
        if !node.is_up(source) || node.replica.is_put_back() {
            continue;
        }
        match pull_from(node, slice, source, Some(&missing)).await {
            Ok(_) => tracing::info!(?slice, %source, "what stayed behind was pulled"),
            Err(error) if error.is_of_own_storage() => {
                let failure = error.failure();
                return tracing::error!(?slice, %source, %failure, "what stays behind cannot be pulled");
            }
            Err(error) => {
                tracing::debug!(?slice, %source, failure = %error.failure(), "what stays behind was not pulled");
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

    #[test]
    fn the_others_are_asked_after_a_while_and_ever_more_rarely() {
        let (_, first, longest) = limits::CATCH_UP;
        let (one, two) = ((slice(1), dots([5])), (slice(2), dots([7])));
        let both = || vec![one.clone(), two.clone()];
        let (mut behind, begun) = (Behind::default(), Instant::now());
        assert!(behind.due(vec![one.clone()], begun).is_empty());
        let mut now = begun + first;
        assert!(behind.due(vec![one.clone()], now - MS).is_empty());
        assert_eq!(behind.due(both(), now), vec![one.clone()]);
        let mut pause = first;
        for _ in 0..20 {
            behind.asked(slice(1), now);
            pause = (pause * 2).min(longest);
            assert!(!behind.due(both(), now + pause - MS).contains(&one));
            now += pause;
            assert!(behind.due(both(), now).contains(&one));
        }
        // One that has caught up begins anew.
        assert!(behind.due(vec![], now).is_empty());
        assert!(behind.due(vec![one], now).is_empty());
    }

    /// Looks as often as the task does; when what is due is due, and what it is.
    fn first_due(missing: impl Fn(u64) -> Context, seconds: u64) -> Option<(u64, Context)> {
        let (mut behind, begun) = (Behind::default(), Instant::now());
        (0..seconds).find_map(|second| {
            let seen = Some(missing(second)).filter(|dots| !dots.is_empty()).map(|dots| (slice(1), dots));
            let due = behind.due(seen.into_iter().collect(), begun + Duration::from_secs(second)).pop();
            due.map(|(_, dots)| (second, dots))
        })
    }

    #[test]
    fn a_node_that_is_being_brought_up_to_date_does_not_pull() {
        // After a long outage hints come for ten minutes, and more is written all the time.
        let hints = |second: u64| dots((second * 10..6_000).chain([10_000 + second]));
        assert_eq!(first_due(hints, 600), None);
        // They end halfway.
        let half = |second: u64| dots((second.min(300) * 10..6_000).chain([10_000 + second]));
        let (at, what) = first_due(half, 1_000).unwrap();
        assert!((300..=340).contains(&at), "{at}");
        assert_eq!(what, dots(3_000..6_000));
    }

    #[test]
    fn what_never_comes_is_due_beside_all_that_comes_at_once() {
        let first = limits::CATCH_UP.1.as_secs();
        assert_eq!(first_due(|_| dots([3]), 100), Some((first, dots([3]))));
        // Others are missing for a moment each.
        let busy = |second: u64| dots([3, 100 + second]);
        assert_eq!(first_due(busy, 100), Some((2 * first, dots([3]))));
        assert_eq!(first_due(|second| dots([100 + second]), 1_000), None);
    }

    /// One dot was seen by a client alone; later another one is missed that others have.
    #[test]
    fn what_no_one_has_does_not_hide_what_is_missed_later() {
        let (mut behind, begun) = (Behind::default(), Instant::now());
        let mut asked = Vec::new();
        for second in 0..300 {
            let missing = if second < 60 { dots([3]) } else { dots([3, 9]) };
            let now = begun + Duration::from_secs(second);
            for (slice, dots) in behind.due(vec![(slice(1), missing)], now) {
                asked.push((second, dots));
                behind.asked(slice, now);
            }
        }
        assert!(asked.len() > 2 && asked.len() < 6, "{asked:?}");
        assert_eq!(asked.last().unwrap().1, dots([3, 9]));
    }
}
