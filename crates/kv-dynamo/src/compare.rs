//! Compares node clocks with the other primaries, so that a replica learns what it lacks although nothing is
//! read and nothing is sent: a write whose note went with the memory of its coordinator, a hint that went
//! with its fallback.
//!
//! From time to time a node sends every other member the hashes of the clocks of the ring partitions that
//! both keep. The answer has the clocks that differ. What they have beyond this node's is on its way, or
//! lost: [`crate::catch_up`] waits for it, and asks for it where it does not come. A node that was away is
//! asked as soon as it is back.
//!
//! What another primary has this node's dot log need not keep for it (`replica::dot_log`).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kv_peer::{Address, Lane};
use kv_proto::peer::{self, request_frame, response_frame};
use kv_storage::Position;
use kv_types::catalogue::{Catalogue, FeatureLevel};
use kv_types::causal::NodeClock;
use kv_types::{Failure, NodeId, Reason, RingId, RingPartition};
use tokio::time::{Instant, sleep};
use xxhash_rust::xxh3::xxh3_64;

use crate::layout::Slice;
use crate::limits;
use crate::node::{Node, stopped};
use crate::replica::Compared;

/// The ring partitions that a node keeps, by the other nodes that keep them.
fn shared(catalogue: &Catalogue, me: NodeId) -> BTreeMap<NodeId, Vec<Slice>> {
    let mut shared: BTreeMap<NodeId, Vec<Slice>> = BTreeMap::new();
    for ring in catalogue.rings.values() {
        for (primaries, number) in ring.assignment.iter().zip(0..) {
            if !primaries.contains(&me) {
                continue;
            }
            let slice = Slice { ring: ring.id, partition: RingPartition(number) };
            for other in primaries.iter().filter(|other| **other != me) {
                shared.entry(*other).or_default().push(slice);
            }
        }
    }
    shared
}

/// As many of them as one question may have, from `turn` times as many on: all of them come to their turn.
fn in_turn(slices: &[Slice], turn: usize) -> impl Iterator<Item = Slice> {
    let count = slices.len().min(limits::COMPARED);
    let first = if slices.is_empty() { 0 } else { turn.wrapping_mul(limits::COMPARED) % slices.len() };
    slices.iter().copied().cycle().skip(first).take(count)
}

fn mark(slice: Slice, clock: &NodeClock) -> peer::ClockMark {
    peer::ClockMark { ring: slice.ring.0, partition: slice.partition.0, hash: xxh3_64(&clock.encode()) }
}

/// When the others are asked. A value: time is an argument.
#[derive(Debug, Default)]
struct Turns {
    /// How often a node was asked, and when it is asked again.
    asked: BTreeMap<NodeId, (usize, Instant)>,
}

impl Turns {
    /// The turn of a node that is due. One that is not up is due when it is back.
    fn due(&mut self, other: NodeId, is_up: bool, now: Instant) -> Option<usize> {
        let (turn, due) = self.asked.entry(other).or_insert((0, now));
        if !is_up {
            *due = now;
        }
        (is_up && *due <= now).then(|| {
            *due = now + limits::COMPARE;
            *turn += 1;
            *turn - 1
        })
    }
}

/// Asks the others, until the node stops.
pub(crate) async fn run(node: Arc<Node>) {
    let mut stop = node.stop.subscribe();
    let mut turns = Turns::default();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            () = sleep(limits::COMPARE_LOOK) => {}
        }
        let catalogue = node.catalogue();
        if !node.config.compares || !catalogue.allows(FeatureLevel::KEYED) || !node.is_whole() {
            continue;
        }
        for (other, slices) in shared(&catalogue, node.me) {
            let Some(turn) = turns.due(other, node.is_up(other), Instant::now()) else { continue };
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                asked = node.ask_for_clocks(other, in_turn(&slices, turn)) => if let Err(failure) = asked {
                    tracing::debug!(%other, %failure, "clocks were not compared");
                }
            }
        }
    }
}

impl Node {
    async fn ask_for_clocks(
        &self,
        other: NodeId,
        slices: impl Iterator<Item = Slice>,
    ) -> Result<(), Failure> {
        let mut asked: Vec<(Slice, u64)> = Vec::new();
        let mut marks = Vec::new();
        for slice in slices {
            let Compared { clock, last } = self.replica.compared(slice);
            marks.push(mark(slice, &clock));
            asked.push((slice, last));
        }
        let body = request_frame::Body::CompareClocks(peer::CompareClocks { marks });
        let deadline = Instant::now() + limits::BACKGROUND_CALL;
        let reply = self.peers.call(other, Lane::Control, Address::default(), body, deadline).await;
        let unusable = |why: String| Failure::new(Reason::Internal, why);
        let response_frame::Body::CompareClocks(reply) =
            reply.map_err(|error| unusable(error.to_string()))?
        else {
            return Err(unusable("it sent an unexpected response type".to_owned()));
        };
        for told in reply.clocks {
            let slice = Slice { ring: RingId(told.ring), partition: RingPartition(told.partition) };
            let clock = NodeClock::decode(told.node_clock).map_err(|error| unusable(error.to_string()))?;
            if asked.iter().any(|(other, _)| *other == slice) {
                self.replica.hear_of(slice, other, &clock);
            }
        }
        for at in reply.alike {
            if let Some((slice, last)) = usize::try_from(at).ok().and_then(|at| asked.get(at)) {
                self.replica.is_alike(*slice, other, *last);
            }
        }
        Ok(())
    }

    /// Answers with those of the clocks that differ, as many as fit into one answer: the others have their
    /// turn when these are alike.
    pub(crate) async fn compare_clocks(
        &self,
        message: peer::CompareClocks,
        deadline: Instant,
    ) -> Result<peer::CompareClocksReply, Failure> {
        if message.marks.len() > limits::COMPARED {
            let message = format!("more than {} clocks are compared at once", limits::COMPARED);
            return Err(Failure::new(Reason::InvalidRequest, message));
        }
        let (mut reply, mut bytes) = (peer::CompareClocksReply::default(), 0);
        let mut durable = Position::DURABLE;
        if self.replica.is_put_back() {
            return Ok(reply);
        }
        for (theirs, at) in message.marks.into_iter().zip(0..) {
            let slice = Slice { ring: RingId(theirs.ring), partition: RingPartition(theirs.partition) };
            if !self.keeps(slice) {
                continue;
            }
            let (clock, position) = self.replica.clock(slice);
            let node_clock: Bytes = clock.encode();
            if xxh3_64(&node_clock) == theirs.hash {
                durable = durable.max(position);
                reply.alike.push(at);
                continue;
            }
            bytes += node_clock.len();
            if bytes > limits::COMPARED_BYTES && !reply.clocks.is_empty() {
                break;
            }
            durable = durable.max(position);
            let (ring, partition) = (theirs.ring, theirs.partition);
            reply.clocks.push(peer::DifferingClock { ring, partition, node_clock });
        }
        // What is not durable yet might never have been.
        self.durable_by(durable, deadline).await?;
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use kv_types::Epoch;
    use kv_types::catalogue::Ring;

    use super::*;

    #[test]
    fn each_is_asked_for_what_both_keep() {
        let nodes = |ids: &[u64]| ids.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
        let assignment = vec![nodes(&[1, 2]), nodes(&[2, 3]), nodes(&[3, 1]), nodes(&[1, 2])];
        let ring = Ring { id: RingId(1), n: 2, assignment, epoch: Epoch(1) };
        let catalogue = Catalogue { rings: [(ring.id, ring)].into(), ..Catalogue::default() };
        let slice = |partition| Slice { ring: RingId(1), partition: RingPartition(partition) };
        let found = shared(&catalogue, NodeId(1));
        assert_eq!(found[&NodeId(2)], [slice(0), slice(3)]);
        assert_eq!(found[&NodeId(3)], [slice(2)]);
        assert!(shared(&catalogue, NodeId(9)).is_empty());
    }

    #[test]
    fn a_node_that_was_away_is_asked_when_it_is_back() {
        let (other, begun) = (NodeId(2), Instant::now());
        let mut turns = Turns::default();
        assert_eq!(turns.due(other, true, begun), Some(0));
        let soon = begun + limits::COMPARE_LOOK;
        assert_eq!(turns.due(other, true, soon), None);
        assert_eq!(turns.due(other, false, soon), None);
        assert_eq!(turns.due(other, true, soon + limits::COMPARE_LOOK), Some(1));
        assert_eq!(turns.due(other, true, soon + limits::COMPARE), None);
        assert_eq!(turns.due(other, true, begun + 3 * limits::COMPARE), Some(2));
    }

    #[test]
    fn all_have_their_turn_at_the_bound() {
        let slice = |partition| Slice { ring: RingId(1), partition: RingPartition(partition) };
        let of = |count: u32| (0..count).map(slice).collect::<Vec<_>>();
        assert_eq!(in_turn(&[], 7).count(), 0);
        assert_eq!(in_turn(&of(5), 3).count(), 5);
        let bound = u32::try_from(limits::COMPARED).unwrap();
        assert_eq!(in_turn(&of(bound), 1).count(), limits::COMPARED);
        let more = of(2 * bound + 7);
        let mut seen: Vec<Slice> = (0..3).flat_map(|turn| in_turn(&more, turn)).collect();
        assert_eq!(seen.len(), 3 * limits::COMPARED);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, more);
    }
}
