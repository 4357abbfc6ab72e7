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
use kv_types::NodeId;
use kv_types::catalogue::FeatureLevel;
use kv_types::causal::Context;
use tokio::time::{Instant, sleep};

use crate::layout::Slice;
use crate::limits;
use crate::missing::ask_for;
use crate::node::{Node, stopped};
use crate::rebuild::pull_from;

/// What is asked of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Due {
    /// The records of writes, by the dot logs of these nodes: each is asked for what it was not asked before.
    ByLog(Slice, Vec<(NodeId, Context)>),
    /// The whole ring partition, of any that has some of this.
    Whole(Slice, Context),
}

/// Which ring partitions are behind, and when the others are asked. A value: time is an argument.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    slices: BTreeMap<Slice, Wait>,
}

#[derive(Debug)]
struct Wait {
    since: Instant,
    by_log: Watch,
    whole: Watch,
    /// What the log of a node did not bring, of what is still missing.
    in_vain: BTreeMap<NodeId, Context>,
    /// A log was asked since the last look: what has come since then may be all that was missing, or the
    /// rest is in no log.
    by_log_asked: bool,
    /// How long it waits for a node that did not answer, and once the others were asked for all of it.
    pauses: (Duration, Duration),
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

impl Wait {
    fn begin(missing: Context, now: Instant) -> Self {
        let (by_log, (_, first, _)) = (limits::CATCH_UP_BY_LOG, limits::CATCH_UP);
        Self {
            since: now,
            by_log: Watch::begin(missing.clone(), now + by_log),
            whole: Watch::begin(missing, now + first),
            in_vain: BTreeMap::new(),
            by_log_asked: false,
            pauses: (by_log, first),
        }
    }

    /// Forgets of what was asked in vain what has come.
    fn look(&mut self, missing: &Context) {
        for vain in self.in_vain.values_mut() {
            vain.subtract(&vain.difference(missing));
        }
        if std::mem::take(&mut self.by_log_asked) {
            self.whole.dots.subtract(&self.whole.dots.difference(missing));
        }
    }

    /// What of these dots each node was not asked for.
    fn unasked(&self, dots: &Context, up: &[NodeId]) -> Vec<(NodeId, Context)> {
        let of = |node: &NodeId| match self.in_vain.get(node) {
            Some(vain) => dots.difference(vain),
            None => dots.clone(),
        };
        up.iter().map(|node| (*node, of(node))).filter(|(_, dots)| !dots.is_empty()).collect()
    }
}

impl Behind {
    /// What is due now, of the ring partitions that are behind now. What others write keeps adding to what
    /// is missing, and comes at once; so only the dots of the beginning of a wait count. `up`: the other
    /// primaries that are up; `arriving`: hints arrive, of whatever ring partition.
    pub(crate) fn due(
        &mut self,
        behind: Vec<(Slice, Context)>,
        up: impl Fn(Slice) -> Vec<NodeId>,
        arriving: bool,
        now: Instant,
    ) -> Vec<Due> {
        let (by_log, (_, first, _)) = (limits::CATCH_UP_BY_LOG, limits::CATCH_UP);
        self.slices.retain(|slice, _| behind.iter().any(|(other, _)| other == slice));
        let (mut due, mut asks) = (Vec::new(), 0);
        for (slice, missing) in behind {
            let wait = match self.slices.entry(slice) {
                Entry::Vacant(new) => {
                    new.insert(Wait::begin(missing, now));
                    continue;
                }
                Entry::Occupied(known) => known.into_mut(),
            };
            wait.look(&missing);
            let up = up(slice);
            let mut unasked = Context::new();
            wait.unasked(&missing, &up).iter().for_each(|(_, dots)| unasked.merge(dots));
            if wait.by_log.dots.is_empty() {
                wait.by_log.due = wait.by_log.due.max(now + by_log);
            }
            let hints_first = arriving && now < wait.since + limits::HINTS_FIRST;
            let over = wait.by_log.is_over(&unasked, by_log, now);
            if over && !hints_first && asks < limits::ASKED_BY_LOG {
                asks += 1;
                due.push(Due::ByLog(slice, wait.unasked(&wait.by_log.dots, &up)));
            } else if !over && wait.whole.is_over(&missing, first, now) {
                due.push(Due::Whole(slice, wait.whole.dots.clone()));
            }
        }
        due
    }

    /// Logs were asked. Those that `answered` will not be asked for the same again; another one is, after a
    /// while.
    pub(crate) fn asked_by_log(
        &mut self,
        slice: Slice,
        answered: Vec<(NodeId, Context)>,
        all: bool,
        now: Instant,
    ) {
        let Some(wait) = self.slices.get_mut(&slice) else { return };
        for (node, dots) in answered {
            wait.in_vain.entry(node).or_default().merge(&dots);
        }
        let (pause, _) = &mut wait.pauses;
        *pause = if all { limits::CATCH_UP_BY_LOG } else { (*pause * 2).min(limits::HINTS_FIRST) };
        wait.by_log = Watch::begin(Context::new(), now + *pause);
        wait.by_log_asked = true;
    }

    /// The others were asked for the whole of a ring partition: they are again after twice as long as the
    /// last time.
    pub(crate) fn asked_whole(&mut self, slice: Slice, now: Instant) {
        let (_, _, longest) = limits::CATCH_UP;
        let Some(wait) = self.slices.get_mut(&slice) else { return };
        let (_, pause) = &mut wait.pauses;
        *pause = (*pause * 2).min(longest);
        wait.whole = Watch::begin(Context::new(), now + *pause);
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
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            () = look(&node, &mut behind) => {}
        }
    }
}

async fn look(node: &Arc<Node>, behind: &mut Behind) {
    let logged = node.catalogue().allows(FeatureLevel::LOGGED);
    let up = |slice| {
        let others = node.others_of(slice).filter(|_| logged).unwrap_or_default();
        others.into_iter().filter(|other| node.is_up(*other)).collect()
    };
    let missing = node.replica.slices_behind();
    let due = behind.due(missing, up, node.hints_arrive(), Instant::now());
    let (mut asks, mut whole) = (Vec::new(), Vec::new());
    for due in due {
        match due {
            Due::ByLog(slice, questions) => asks.push(ask_logs(Arc::clone(node), slice, questions)),
            Due::Whole(slice, missing) => whole.push((slice, missing)),
        }
    }
    let mut asks = stream::iter(asks).buffer_unordered(limits::PULLS);
    while let Some((slice, answered, all)) = asks.next().await {
        behind.asked_by_log(slice, answered, all, Instant::now());
    }
    for (slice, missing) in whole {
        pull(node, slice, missing).await;
        behind.asked_whole(slice, Instant::now());
    }
}

/// Asks one after the other, until nothing is missing. Which of them have answered, with what they were asked
/// for, and whether all of them have that had to be asked.
async fn ask_logs(
    node: Arc<Node>,
    slice: Slice,
    questions: Vec<(NodeId, Context)>,
) -> (Slice, Vec<(NodeId, Context)>, bool) {
    let (mut answered, mut all) = (Vec::new(), true);
    for (source, dots) in questions {
        let missing = dots.difference(node.replica.clock(slice).0.dots());
        if missing.is_empty() {
            continue;
        }
        if node.replica.is_put_back() {
            all = false;
            break;
        }
        match ask_for(&node, slice, source, &missing).await {
            Ok(records) => {
                if records > 0 {
                    tracing::info!(?slice, %source, records, "what stayed behind came by the log");
                }
                answered.push((source, missing));
            }
            Err(error) if error.is_of_own_storage() => {
                let failure = error.failure();
                tracing::error!(?slice, %source, %failure, "what stays behind cannot be stored");
                return (slice, answered, false);
            }
            Err(error) => {
                all = false;
                tracing::debug!(?slice, %source, failure = %error.failure(), "a dot log did not answer");
            }
        }
    }
    (slice, answered, all)
}

/// Pulls from the other primaries one after the other, until nothing is missing.
async fn pull(node: &Arc<Node>, slice: Slice, mut missing: Context) {
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

    const OTHERS: [NodeId; 2] = [NodeId(2), NodeId(3)];

    /// Both others are up, their logs know nothing, and no hints arrive.
    struct Quiet {
        behind: Behind,
        asked: Vec<(Slice, Vec<(NodeId, Context)>)>,
    }

    impl Quiet {
        fn new() -> Self {
            Self { behind: Behind::default(), asked: Vec::new() }
        }

        /// What is to be pulled whole.
        fn whole(&mut self, missing: Vec<(Slice, Context)>, now: Instant) -> Vec<(Slice, Context)> {
            let mut found = Vec::new();
            for due in self.behind.due(missing, |_| OTHERS.to_vec(), false, now) {
                match due {
                    Due::ByLog(slice, questions) => {
                        self.asked.push((slice, questions.clone()));
                        self.behind.asked_by_log(slice, questions, true, now);
                    }
                    Due::Whole(slice, dots) => found.push((slice, dots)),
                }
            }
            found
        }
    }

    #[test]
    fn the_others_are_asked_after_a_while_and_ever_more_rarely() {
        let (_, first, longest) = limits::CATCH_UP;
        let (one, two) = ((slice(1), dots([5])), (slice(2), dots([7])));
        let both = || vec![one.clone(), two.clone()];
        let (mut quiet, begun) = (Quiet::new(), Instant::now());
        assert!(quiet.whole(vec![one.clone()], begun).is_empty());
        let mut now = begun + first;
        assert!(quiet.whole(vec![one.clone()], now - MS).is_empty());
        assert_eq!(quiet.whole(both(), now), vec![one.clone()]);
        let mut pause = first;
        for _ in 0..20 {
            quiet.behind.asked_whole(slice(1), now);
            pause = (pause * 2).min(longest);
            // Until the next look it is not known what is missing then.
            assert!(!quiet.whole(both(), now + MS).contains(&one));
            assert!(!quiet.whole(both(), now + pause - MS).contains(&one));
            now += pause;
            assert!(quiet.whole(both(), now).contains(&one));
        }
        // One that has caught up begins anew.
        assert!(quiet.whole(vec![], now).is_empty());
        assert!(quiet.whole(vec![one], now).is_empty());
    }

    #[test]
    fn each_log_is_asked_first_and_once_for_each_dot() {
        let patience = limits::CATCH_UP_BY_LOG;
        let (mut quiet, begun) = (Quiet::new(), Instant::now());
        let mut now = begun;
        let mut pulled = Vec::new();
        while pulled.is_empty() {
            let missing = if now < begun + patience { dots([5]) } else { dots([5, 6]) };
            pulled = quiet.whole(vec![(slice(1), missing)], now);
            now += limits::CATCH_UP.0;
        }
        let of = |counter| (slice(1), OTHERS.map(|node| (node, dots([counter]))).to_vec());
        assert_eq!(quiet.asked, [of(5), of(6)]);
        assert_eq!(
            (pulled, now),
            (vec![(slice(1), dots([5]))], begun + limits::CATCH_UP.1 + limits::CATCH_UP.0)
        );
        // It comes, is lost again with a directory, and may be in a log by then.
        quiet.whole(vec![(slice(1), dots([6]))], now);
        for n in 1..5 {
            quiet.whole(vec![(slice(1), dots([5, 6]))], now + n * patience);
        }
        assert_eq!(quiet.asked[2..], [of(5)]);
    }

    #[test]
    fn a_log_that_could_not_be_asked_is_asked_when_it_can_be() {
        let (mut behind, begun) = (Behind::default(), Instant::now());
        let mut asked = Vec::new();
        for second in 0..200 {
            let now = begun + Duration::from_secs(second);
            // n2 is away at first; n3 does not answer until later.
            let up = |_| if second < 100 { vec![NodeId(3)] } else { OTHERS.to_vec() };
            for due in behind.due(vec![(slice(1), dots([5]))], up, false, now) {
                let Due::ByLog(slice, questions) = due else { continue };
                let (answers, silent): (Vec<_>, Vec<_>) =
                    questions.into_iter().partition(|(node, _)| *node == NodeId(2) || second > 60);
                behind.asked_by_log(slice, answers.clone(), silent.is_empty(), now);
                asked.push((second, answers.len() + silent.len(), answers.len()));
            }
        }
        let in_vain = asked.iter().filter(|(_, _, answers)| *answers == 0).count();
        assert!((2..10).contains(&in_vain), "ever more rarely: {asked:?}");
        let answered: Vec<_> = asked.into_iter().filter(|(_, _, answers)| *answers > 0).collect();
        assert_eq!(answered.len(), 2, "each of them once: {answered:?}");
        assert!(answered[1].0 >= 100 && answered[1].1 == 1, "{answered:?}");
    }

    /// Looks as often as the task does; when a log is asked for the first time, and when all is to be pulled,
    /// with what is missing then.
    fn first_due(missing: impl Fn(u64) -> Context, seconds: u64) -> [Option<(u64, Context)>; 2] {
        let (mut quiet, begun) = (Quiet::new(), Instant::now());
        let (mut by_log, mut whole) = (None, None);
        for second in 0..seconds {
            let seen = Some(missing(second)).filter(|dots| !dots.is_empty()).map(|dots| (slice(1), dots));
            let found = quiet.whole(seen.into_iter().collect(), begun + Duration::from_secs(second)).pop();
            whole = whole.or_else(|| found.map(|(_, dots)| (second, dots)));
            let first = quiet.asked.first().map(|(_, questions)| (second, questions[0].1.clone()));
            by_log = by_log.or(first);
        }
        [by_log, whole]
    }

    #[test]
    fn a_node_that_is_being_brought_up_to_date_does_not_ask() {
        // After a long outage hints come for ten minutes, and more is written all the time.
        let hints = |second: u64| dots((second * 10..6_000).chain([10_000 + second]));
        assert_eq!(first_due(hints, 600), [None, None]);
        // They end halfway.
        let half = |second: u64| dots((second.min(300) * 10..6_000).chain([10_000 + second]));
        let [by_log, whole] = first_due(half, 1_000).map(Option::unwrap);
        assert!((300..=310).contains(&by_log.0) && (300..=340).contains(&whole.0));
        assert_eq!((by_log.1, whole.1), (dots(3_000..6_000), dots(3_000..6_000)));
    }

    /// Hints come in the order of their keys: of the last ring partition only in the end.
    #[test]
    fn logs_are_not_asked_while_hints_arrive_elsewhere_unless_that_takes_long() {
        let asked_at = |until: u64| {
            let (mut behind, begun) = (Behind::default(), Instant::now());
            (0..200).find(|second| {
                let now = begun + Duration::from_secs(*second);
                let missing = vec![(slice(1), dots([5]))];
                let due = behind.due(missing, |_| OTHERS.to_vec(), *second < until, now);
                due.iter().any(|due| matches!(due, Due::ByLog(..)))
            })
        };
        assert_eq!(asked_at(0), Some(limits::CATCH_UP_BY_LOG.as_secs()));
        assert_eq!(asked_at(20), Some(20));
        assert_eq!(asked_at(1_000), Some(limits::HINTS_FIRST.as_secs()));
    }

    #[test]
    fn what_never_comes_is_due_beside_all_that_comes_at_once() {
        let (first, soon) = (limits::CATCH_UP.1.as_secs(), limits::CATCH_UP_BY_LOG.as_secs());
        let three = |second| Some((second, dots([3])));
        assert_eq!(first_due(|_| dots([3]), 100), [three(soon), three(first)]);
        // Others are missing for a moment each.
        let busy = |second: u64| dots([3, 100 + second]);
        assert_eq!(first_due(busy, 100), [three(2 * soon), three(first)]);
        assert_eq!(first_due(|second| dots([100 + second]), 1_000), [None, None]);
    }

    /// The log brings some of what was missing: the rest is pulled no later than it would have been.
    #[test]
    fn what_the_log_brings_does_not_put_off_the_pull_of_the_rest() {
        let (first, soon) = (limits::CATCH_UP.1.as_secs(), limits::CATCH_UP_BY_LOG.as_secs());
        let some = |second: u64| if second <= soon { dots([3, 4, 5]) } else { dots([4]) };
        let [_, whole] = first_due(some, 100);
        assert_eq!(whole, Some((first, dots([4]))));
    }

    /// One dot was seen by a client alone; later another one is missed that others have.
    #[test]
    fn what_no_one_has_does_not_hide_what_is_missed_later() {
        let (mut quiet, begun) = (Quiet::new(), Instant::now());
        let mut pulled = Vec::new();
        for second in 0..300 {
            let missing = if second < 60 { dots([3]) } else { dots([3, 9]) };
            let now = begun + Duration::from_secs(second);
            for (slice, dots) in quiet.whole(vec![(slice(1), missing)], now) {
                pulled.push((second, dots));
                quiet.behind.asked_whole(slice, now);
            }
        }
        assert!(pulled.len() > 2 && pulled.len() < 6, "{pulled:?}");
        assert_eq!(pulled.last().unwrap().1, dots([3, 9]));
        let of = |counter| (slice(1), OTHERS.map(|node| (node, dots([counter]))).to_vec());
        assert_eq!(quiet.asked, [of(3), of(9)]);
    }
}
