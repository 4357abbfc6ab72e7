//! Compares node clocks with the other primaries, so that a replica learns what it lacks although nothing is
//! read and nothing is sent: a write whose note went with the memory of its coordinator, a hint that went
//! with its fallback.
//!
//! From time to time a node sends every other member the hashes of the clocks of the ring partitions that
//! both keep. The answer has the clocks that differ. What they have beyond this node's is on its way, or
//! lost: [`crate::catch_up`] waits for it, and pulls the ring partition where it does not come.

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

/// Asks the others, until the node stops.
pub(crate) async fn run(node: Arc<Node>) {
    let mut stop = node.stop.subscribe();
    for turn in 0.. {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            () = sleep(limits::COMPARE) => {}
        }
        let catalogue = node.catalogue();
        if !node.config.compares || !catalogue.allows(FeatureLevel::KEYED) || !node.is_whole() {
            continue;
        }
        for (other, slices) in shared(&catalogue, node.me) {
            if !node.is_up(other) {
                continue;
            }
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
        let asked: Vec<Slice> = slices.collect();
        let marks = asked.iter().map(|slice| mark(*slice, &self.replica.clock(*slice).0)).collect();
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
            if asked.contains(&slice) {
                self.replica.hear_of(slice, &clock);
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
        for theirs in message.marks {
            let slice = Slice { ring: RingId(theirs.ring), partition: RingPartition(theirs.partition) };
            if !self.keeps(slice) {
                continue;
            }
            let (clock, position) = self.replica.clock(slice);
            let node_clock: Bytes = clock.encode();
            if xxh3_64(&node_clock) == theirs.hash {
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
