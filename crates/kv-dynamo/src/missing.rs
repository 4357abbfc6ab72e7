//! Gets single writes that this node misses from another primary of their ring partition, by the dot log of
//! that one: the records of their keys and no others. What the other node has and its log does not know any
//! more stays missing, and is pulled with the whole ring partition ([`crate::catch_up`]).
//!
//! Also the background of a node's own dot logs: entries go that no other primary needs and whose requests
//! are forgotten.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::FutureExt;
use kv_peer::{Address, Lane, PeerError};
use kv_proto::peer::{self, request_frame, response_frame};
use kv_storage::Position;
use kv_types::causal::{Context, NodeClock};
use kv_types::limits::REQUEST_WINDOW;
use kv_types::{Failure, NodeId, Reason, RingId, RingPartition};
use tokio::time::{Instant, sleep};

use crate::layout::Slice;
use crate::limits;
use crate::node::{Node, stopped};
use crate::rebuild::{PageSize, PullError, clock_of, decoded, invalid, patiently, pulled_record};
use crate::replica::is_too_large;

/// As many of these dots as one question may name.
fn some_of(missing: &Context) -> Context {
    let mut some = Context::new();
    missing.ranges().iter().take(limits::LOG_DOTS).for_each(|range| some.insert_range(*range));
    some
}

/// Asks a source for the records of what is missing here, until it has told all that its log knows. How many
/// records came. What cannot be taken here counts as told.
pub(crate) async fn ask_for(
    node: &Arc<Node>,
    slice: Slice,
    source: NodeId,
    missing: &Context,
) -> Result<usize, PullError> {
    let (mut came, mut position, mut size) = (0, Position::DURABLE, PageSize::default());
    let mut left = missing.clone();
    while !left.is_empty() {
        let (mut asked, mut from) = (some_of(&left), 0);
        left.subtract(&asked);
        loop {
            asked.subtract(node.replica.clock(slice).0.dots());
            if asked.is_empty() {
                break;
            }
            let reply = ask_once(node, slice, source, (&asked, from), &mut size).await?;
            let clock = clock_of(reply.node_clock)?;
            let told = reply.records.len();
            came += told;
            for pulled in reply.records {
                position = position.max(take(node, slice, source, pulled, &clock).await?);
            }
            if reply.next == 0 {
                break;
            }
            // At least one record comes with each answer that ends before the log does.
            if told == 0 || reply.next <= from {
                let message = format!("{source} does not get on with its log");
                return Err(PullError::Source(Failure::new(Reason::Internal, message)));
            }
            from = reply.next;
        }
    }
    node.replica.durable(position).await?;
    Ok(came)
}

async fn ask_once(
    node: &Node,
    slice: Slice,
    source: NodeId,
    (missing, from): (&Context, u64),
    size: &mut PageSize,
) -> Result<peer::PullMissingReply, PullError> {
    loop {
        let message = peer::PullMissing {
            ring: slice.ring.0,
            partition: slice.partition.0,
            dots: NodeClock::of(missing.clone()).encode(),
            max_bytes: size.bytes(),
            from,
        };
        let body = request_frame::Body::PullMissing(message);
        let begun = Instant::now();
        let reply = node.peers.call(source, Lane::Bulk, Address::default(), body, begun + size.wait()).await;
        if matches!(reply, Err(PeerError::TimedOut)) && size.late() {
            continue;
        }
        size.came(begun.elapsed());
        return match reply {
            Ok(response_frame::Body::PullMissing(reply)) => Ok(reply),
            Ok(_) => {
                let message = format!("{source} sent an unexpected response type");
                Err(PullError::Source(Failure::new(Reason::Internal, message)))
            }
            Err(error) => Err(PullError::Source(error.into_failure(source))),
        };
    }
}

/// Merges the record of a key as a write that came late. One that this node cannot take stays missing.
async fn take(
    node: &Arc<Node>,
    slice: Slice,
    source: NodeId,
    pulled: peer::PulledRecord,
    clock: &NodeClock,
) -> Result<Position, PullError> {
    let (place, state) = decoded(slice, pulled);
    let mut state = state.map_err(PullError::Source)?;
    state.record.fill(clock);
    let applied = patiently(|deadline| {
        let (place, state) = (&place, &state);
        async move {
            match node.replica.apply(place, state, true, deadline).await {
                Err(failure) if failure.reason == Reason::NamespaceUnknown => {
                    node.replica.pass_over(slice, state, deadline).await?;
                    Ok(Position::DURABLE)
                }
                applied => applied,
            }
        }
        .boxed()
    });
    match applied.await {
        Err(failure) if is_too_large(&failure) || failure.reason == Reason::InvalidRequest => {
            tracing::warn!(%place, %source, %failure, "a missing write cannot be taken");
            Ok(Position::DURABLE)
        }
        applied => Ok(applied?),
    }
}

impl Node {
    /// The records of keys of which another primary misses writes.
    ///
    /// Errors: `WRONG_NODE` of a node that does not keep the ring partition, `NOT_READY` of one that lacks
    /// some of it itself.
    pub(crate) async fn pull_missing(
        &self,
        message: peer::PullMissing,
        deadline: Instant,
    ) -> Result<peer::PullMissingReply, Failure> {
        let slice = Slice { ring: RingId(message.ring), partition: RingPartition(message.partition) };
        if !self.keeps(slice) {
            let message = format!("{} does not keep {}", self.me, slice.partition);
            return Err(Failure::new(Reason::WrongNode, message));
        }
        if !self.standing.knows_all_of(slice) || self.replica.is_put_back() {
            let message = format!("{} lacks some of {} itself", self.me, slice.partition);
            return Err(Failure::new(Reason::NotReady, message));
        }
        let missing = NodeClock::decode(message.dots).map_err(invalid)?;
        if missing.dots().ranges().len() > limits::LOG_DOTS {
            let message = format!("more than {} ranges of writes are asked for at once", limits::LOG_DOTS);
            return Err(Failure::new(Reason::InvalidRequest, message));
        }
        let max_bytes = message.max_bytes.min(limits::PULL_PAGE_BYTES) as usize;
        let place = (message.from, max_bytes);
        let lacked = self.replica.lacked(slice, missing.dots(), place, deadline).await?;
        self.durable_by(lacked.position, deadline).await?;
        let records = lacked.records.into_iter();
        Ok(peer::PullMissingReply {
            records: records.map(|(place, record)| pulled_record(place, record)).collect(),
            node_clock: lacked.clock.encode(),
            next: lacked.next.unwrap_or(0),
        })
    }

    /// Gives up entries of the dot logs that nothing needs any more.
    async fn trim_logs(&self, calm: bool) -> Result<(), Failure> {
        let catalogue = self.catalogue();
        let kept = catalogue.rings.values().flat_map(|ring| self.kept(ring));
        let slices: Vec<_> = kept.map(|slice| (slice, self.others_of(slice).unwrap_or_default())).collect();
        self.replica.trim_logs(&slices, self.config.log_bytes, calm).await
    }
}

/// Since when every member has been up and no hint pending here.
#[derive(Debug, Default)]
struct Calm {
    since: Option<Duration>,
}

impl Calm {
    /// Whether it is calm, and has been for longer than any request can be resent: hints of other nodes have
    /// been delivered by then too, because they are sent as soon as their targets are up.
    fn lasts(&mut self, calm: bool, now: Duration) -> bool {
        if !calm {
            self.since = None;
            return false;
        }
        now.saturating_sub(*self.since.get_or_insert(now)) > REQUEST_WINDOW
    }
}

/// Trims the dot logs from time to time, until the node stops.
pub(crate) async fn trim(node: Arc<Node>) {
    let begun = Instant::now();
    let mut calm = Calm::default();
    let mut stop = node.stop.subscribe();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            () = sleep(limits::TRIM) => {}
        }
        // Members alone: a node that is named in the file and not yet one has no hints.
        let all_up = node.catalogue().members.keys().all(|member| node.is_up(*member));
        let calm = calm.lasts(all_up && node.replica.hints_pending().is_empty(), begun.elapsed());
        if let Err(failure) = node.trim_logs(calm).await {
            tracing::debug!(%failure, "the dot logs stay as they are for now");
        }
    }
}

#[cfg(test)]
mod tests {
    use kv_types::Incarnation;
    use kv_types::causal::Dot;

    use super::*;

    #[test]
    fn a_question_names_as_many_ranges_as_it_may() {
        let dots = |count: usize| -> Context {
            let dot = |n: usize| Dot { incarnation: Incarnation(1), counter: 2 * n as u64 + 1 };
            (0..count).map(dot).collect()
        };
        assert_eq!(some_of(&dots(7)), dots(7));
        assert_eq!(some_of(&dots(limits::LOG_DOTS + 7)), dots(limits::LOG_DOTS));
    }

    #[test]
    fn only_a_long_calm_counts() {
        let mut calm = Calm::default();
        let (start, tick) = (Duration::from_secs(5), Duration::from_millis(1));
        assert!(!calm.lasts(true, start));
        assert!(!calm.lasts(true, start + REQUEST_WINDOW));
        assert!(calm.lasts(true, start + REQUEST_WINDOW + tick));
        assert!(!calm.lasts(false, start + REQUEST_WINDOW + tick * 2));
        assert!(!calm.lasts(true, start + REQUEST_WINDOW + tick * 3), "it begins again");
    }
}
