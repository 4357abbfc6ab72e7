//! Delivers hints to their targets as soon as these are up, many at a time, until none is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use kv_peer::{Address, Lane, Patience, PeerError, Unsent};
use kv_proto::peer::response_frame;
use kv_types::{Epoch, Failure, NodeId, Reason};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::layout::Due;
use crate::limits;
use crate::node::{Node, replica_write, stopped};
use crate::replica::is_too_large;

/// Which targets are served when: one round at a time per target, with a back-off after a failed one that a
/// new life of the target ends at once. A value: time is a duration since the start.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    targets: BTreeMap<NodeId, Round>,
}

#[derive(Debug, Default)]
struct Round {
    running: bool,
    failures: u32,
    not_before: Duration,
}

impl Rounds {
    /// The targets whose round begins now.
    pub(crate) fn begin(
        &mut self,
        pending: impl IntoIterator<Item = NodeId>,
        up: impl Fn(NodeId) -> bool,
        now: Duration,
    ) -> Vec<NodeId> {
        let mut due = Vec::new();
        for target in pending {
            let round = self.targets.entry(target).or_default();
            if !up(target) {
                (round.failures, round.not_before) = (0, Duration::ZERO);
            } else if !round.running && round.not_before <= now {
                round.running = true;
                due.push(target);
            }
        }
        due
    }

    /// A round is over; `clean`: everything that it saw was delivered.
    pub(crate) fn end(&mut self, target: NodeId, clean: bool, now: Duration) {
        let Some(round) = self.targets.get_mut(&target) else { return };
        round.running = false;
        if clean {
            self.targets.remove(&target);
        } else {
            let (first, longest) = limits::BACK_OFF;
            let pause = first.saturating_mul(1 << round.failures.min(16)).min(longest);
            round.failures += 1;
            round.not_before = now + pause;
        }
    }
}

/// Delivers hints until the node stops.
pub(crate) async fn run(node: Arc<Node>) {
    let begun = Instant::now();
    let mut stop = node.stop.subscribe();
    let mut rounds = Rounds::default();
    let mut running = JoinSet::new();
    loop {
        let pending = node.replica.hints_pending();
        for target in node.aside.rows().into_keys() {
            if !node.is_up(target) || !pending.contains_key(&target) {
                node.aside.forget(target);
            }
        }
        for target in rounds.begin(pending.keys().copied(), |target| node.is_up(target), begun.elapsed()) {
            let node = Arc::clone(&node);
            running.spawn(async move { (target, round(&node, target).await) });
        }
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            Some(ended) = running.join_next(), if !running.is_empty() => {
                if let Ok((target, clean)) = ended {
                    rounds.end(target, clean, begun.elapsed());
                }
            }
            () = node.replica.hinted.notified() => {}
            () = sleep(limits::BACK_OFF.0) => {}
        }
    }
}

/// Delivers what is pending for one target; false when something is left that could not be delivered.
async fn round(node: &Arc<Node>, target: NodeId) -> bool {
    let (mut after, mut clean, mut delivered) = (None, true, 0u64);
    let mut aside = BTreeSet::new();
    loop {
        let deadline = Instant::now() + limits::BACKGROUND_READ;
        let due = match node.replica.due(target, after.as_ref(), limits::HINT_PAGE, deadline).await {
            Ok(due) => due,
            Err(failure) => {
                tracing::warn!(%target, %failure, "hints cannot be read");
                return false;
            }
        };
        let Some(last) = due.last() else { break };
        after = Some(last.row.clone());
        let now = Instant::now();
        let (wait, due): (Vec<Due>, Vec<Due>) =
            due.into_iter().partition(|due| node.aside.waits(target, &due.row, now));
        aside.extend(wait.into_iter().map(|due| due.row));
        let room = &Room::new();
        let mut sent = stream::iter(due)
            .map(|due| async move { (deliver(node, target, &due, room).await, due.row) })
            .buffer_unordered(limits::HINTS_IN_FLIGHT);
        while let Some((fate, row)) = sent.next().await {
            match fate {
                Fate::Delivered => delivered += 1,
                Fate::Refused => clean = false,
                Fate::Unfit => {
                    node.aside.put(target, &row, Instant::now());
                    aside.insert(row);
                }
                Fate::Unreachable => return false,
            }
        }
    }
    if delivered > 0 {
        tracing::info!(%target, delivered, "hints delivered");
    }
    node.aside.keep(target, &aside);
    clean && aside.is_empty()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Delivered,
    /// The next round may deliver it.
    Refused,
    /// The target does not take this one, and will hardly change its mind: it is set aside.
    Unfit,
    /// None of the rest would be taken either.
    Unreachable,
}

/// What a refusal says of the hint that it answers, and of the others of the target.
fn fate_of(failure: &Failure) -> Fate {
    match failure.reason {
        Reason::LimitStorage if is_too_large(failure) => Fate::Unfit,
        Reason::WrongNode | Reason::InvalidRequest => Fate::Unfit,
        Reason::LimitStorage | Reason::ShuttingDown => Fate::Unreachable,
        _ => Fate::Refused,
    }
}

fn tell(node: &Node, target: NodeId, due: &Due, why: &dyn std::fmt::Display) {
    if node.aside.is_to_tell(target, Instant::now()) {
        tracing::warn!(%target, place = %due.place, why = %why, "a hint stays; others like it are not told of for a while");
    } else {
        tracing::debug!(%target, place = %due.place, why = %why, "a hint stays");
    }
}

/// What the hints for one target may take of memory.
struct Room {
    reading: Semaphore,
    bytes: Semaphore,
}

impl Room {
    fn new() -> Self {
        Self {
            reading: Semaphore::new(limits::HINTS_READ),
            bytes: Semaphore::new(limits::HINT_BYTES_IN_FLIGHT),
        }
    }
}

/// Sends a hint, once there is room for its bytes beside those that are under way. Few are read before that.
async fn deliver(node: &Arc<Node>, target: NodeId, due: &Due, room: &Room) -> Fate {
    let Ok(reading) = room.reading.acquire().await else { return Fate::Refused };
    let deadline = Instant::now() + limits::BACKGROUND_CALL;
    let message = match node.replica.message_of(due, deadline).await {
        Ok((state, position)) => node.durable_by(position, deadline).await.map(|()| state),
        Err(failure) => Err(failure),
    };
    let state = match message {
        Ok(state) => state,
        Err(failure) => {
            tell(node, target, due, &failure);
            // A row that cannot be read never will be.
            return if failure.reason == Reason::StorageFailed { Fate::Unfit } else { Fate::Refused };
        }
    };
    let record = state.encode();
    let bytes = u32::try_from(record.len().min(limits::HINT_BYTES_IN_FLIGHT)).unwrap_or(u32::MAX);
    let Ok(_bytes) = room.bytes.acquire_many(bytes).await else { return Fate::Refused };
    drop(reading);
    if kv_types::mutant!(ForgetHint) {
        let forgotten = node.replica.forget(target, due, deadline).await;
        return forgotten.map_or(Fate::Refused, |_| Fate::Delivered);
    }
    // A slow link takes its time for a large record, and would never carry it if it were given up.
    let patience =
        Patience::WhileMoving { idle: limits::BACKGROUND_CALL, at_most: limits::BACKGROUND_AT_MOST };
    let mut pause = limits::BACK_OFF.0;
    let answer = loop {
        let (namespace, body) = replica_write(&due.place, record.clone(), None);
        let about = Address { namespace, epoch: Epoch(0), ..Address::default() };
        match node.peers.call_with(target, Lane::Bulk, about, body, patience).await {
            // It keeps its place meanwhile, so a target without room is not sent one hint after the other.
            Err(PeerError::Refused(failure))
                if failure.reason == Reason::Overloaded && pause < limits::BACK_OFF.1 =>
            {
                sleep(pause).await;
                pause *= 2;
            }
            answer => break answer,
        }
    };
    match answer {
        Ok(response_frame::Body::ReplicaWrite(reply)) if reply.fsynced => {
            let deadline = Instant::now() + limits::BACKGROUND_READ;
            match node.replica.forget(target, due, deadline).await {
                Ok(true) => Fate::Delivered,
                // It grew meanwhile, or could not be removed now: the next round sends it again.
                Ok(false) => Fate::Delivered,
                Err(_) => Fate::Refused,
            }
        }
        Ok(_) => Fate::Refused,
        Err(PeerError::Refused(failure)) => {
            node.replica.learn_of_reuse(due.place.slice, &failure).await;
            tell(node, target, due, &failure);
            fate_of(&failure)
        }
        Err(error @ PeerError::NotSent { cause: Unsent::Invalid, .. }) => {
            tell(node, target, due, &error);
            Fate::Unfit
        }
        Err(error) => {
            tracing::debug!(%target, place = %due.place, %error, "a hint did not arrive");
            Fate::Unreachable
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::storage_failure;

    const T: NodeId = NodeId(3);

    #[test]
    fn a_target_has_one_round_at_a_time_and_rests_after_a_failure() {
        let mut rounds = Rounds::default();
        let ms = Duration::from_millis;
        assert_eq!(rounds.begin([T], |_| true, ms(0)), vec![T]);
        assert!(rounds.begin([T], |_| true, ms(1)).is_empty(), "it runs already");
        rounds.end(T, false, ms(10));
        assert!(rounds.begin([T], |_| true, ms(11)).is_empty(), "it rests");
        assert_eq!(rounds.begin([T], |_| true, ms(10) + limits::BACK_OFF.0), vec![T]);
        for _ in 0..40 {
            rounds.end(T, false, ms(100));
            let later = ms(100) + limits::BACK_OFF.1;
            assert_eq!(rounds.begin([T], |_| true, later), vec![T], "never longer than the longest pause");
        }
        rounds.end(T, true, ms(200));
        assert_eq!(rounds.begin([T], |_| true, ms(200)), vec![T], "after success at once");
    }

    #[test]
    fn a_refusal_for_what_is_in_a_hint_stops_no_other() {
        let too_large = kv_storage::StorageError::TooLarge { what: "a batch", bytes: 2, max: 1 };
        let full = kv_storage::StorageError::DiskFull { free: 1, reserve: 2 };
        let of = |reason| Failure::new(reason, "x");
        for (failure, expected) in [
            (storage_failure(too_large), Fate::Unfit),
            (of(Reason::WrongNode), Fate::Unfit),
            (of(Reason::InvalidRequest), Fate::Unfit),
            (of(Reason::Overloaded), Fate::Refused),
            (of(Reason::NotReady), Fate::Refused),
            (storage_failure(full), Fate::Unreachable),
            (of(Reason::ShuttingDown), Fate::Unreachable),
        ] {
            assert_eq!(fate_of(&failure), expected, "{failure}");
        }
    }

    #[test]
    fn a_target_that_comes_back_is_served_at_once() {
        let mut rounds = Rounds::default();
        let now = Duration::from_millis(5);
        rounds.begin([T], |_| true, now);
        rounds.end(T, false, now);
        assert!(rounds.begin([T], |_| false, now).is_empty(), "no round begins for a target that is down");
        assert_eq!(rounds.begin([T], |_| true, now), vec![T]);
    }
}
