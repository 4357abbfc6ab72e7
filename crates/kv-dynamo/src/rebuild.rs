//! How a node with a fresh or damaged directory gets what it lacks before it answers for its data.
//!
//! A directory is **whole** when it lacks nothing that other nodes rely on: it holds everything that it
//! acknowledged since its incarnation began, and what was acknowledged before that it has pulled from others,
//! if there was anything. One durable mark records that; rings and ring partitions that appear later need no
//! mark of their own. Without the mark the node asks the members:
//!
//! - So many others know of no available namespace that none can exist. Then the cluster is new, and nothing
//!   was ever acknowledged. The node itself does not count, because it may have known a namespace and lost
//!   it. A change of the catalogue has a majority of the voters, so at least half of the voters (rounded
//!   down) without this node. When fewer than that have not answered, one of the others would have known. So
//!   a new cluster of three needs all three nodes at its first start.
//! - A member knows one. Then this directory is fresh or damaged in a cluster with data. The node pulls each
//!   of its ring partitions from N-W+1 of the other primaries that are whole, because these include a node of
//!   every set of W; or from all other primaries, whole or not, when there are not so many.
//!
//! Until a ring partition is pulled, the node does not answer reads of it. Until all are pulled, it
//! coordinates no write, because it could not tell a resent request from a new one. It accepts writes and
//! hints.
//!
//! A record that this node cannot take (larger than its storage takes at once, or unreadable) holds up its
//! key alone: the node speaks for the rest, leaves the key to the other primaries, and pulls again after its
//! next start.
//!
//! The question is sent as a pull of ring 0, which does not exist. The answer is in the field of the node
//! clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use kv_peer::{Address, Lane, PeerError};
use kv_proto::peer::{self, request_frame, response_frame};
use kv_types::catalogue::{Catalogue, Ring};
use kv_types::causal::{NodeClock, State};
use kv_types::limits::MAX_VOTERS;
use kv_types::{Epoch, Failure, Namespace, NamespaceId, NodeId, Placement, Reason, RingId, RingPartition};
use tokio::time::{Instant, sleep};

use crate::layout::{Place, Slice};
use crate::limits;
use crate::node::{Node, stopped};
use crate::replica::{is_reuse, is_too_large};

/// What a member says of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Survey {
    /// It knows an available namespace.
    namespaces: bool,
    /// The epoch of its catalogue.
    epoch: Epoch,
}

impl Survey {
    fn of(catalogue: &Catalogue) -> Self {
        let available = |placement: &Placement| matches!(placement, Placement::Available { .. });
        let namespaces = catalogue.namespaces.values().any(|namespace| available(&namespace.placement));
        Self { namespaces, epoch: catalogue.epoch }
    }

    fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(9);
        out.put_u8(u8::from(self.namespaces));
        out.put_u64(self.epoch.0);
        out.freeze()
    }

    fn decode(mut bytes: Bytes) -> Option<Self> {
        Some(Self { namespaces: bytes.try_get_u8().ok()? != 0, epoch: Epoch(bytes.try_get_u64().ok()?) })
    }
}

/// What follows from the answers of the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The cluster is new: nothing was ever acknowledged.
    New,
    /// There is data; the node that pulls must know the catalogue at least as of this epoch.
    Pull(Epoch),
    /// Too few members answered.
    Unknown,
}

fn judge(mine: Survey, others: &[Option<Survey>]) -> Verdict {
    let answers = others.iter().flatten();
    if mine.namespaces || answers.clone().any(|survey| survey.namespaces) {
        return Verdict::Pull(answers.map(|survey| survey.epoch).max().unwrap_or(mine.epoch));
    }
    // A majority less this node: m - 1 with m = voters / 2 + 1. Who votes is not in the catalogue; no more
    // than that do.
    let knowers = (others.len() + 1).min(MAX_VOTERS) / 2;
    if others.is_empty() || answers.count() + knowers > others.len() {
        Verdict::New
    } else {
        Verdict::Unknown
    }
}

/// How many whole sources include a node of every set of W without this node; at most as many as there are.
fn sources_needed(n: usize, lowest_w: usize) -> usize {
    (n + 1).saturating_sub(lowest_w).min(n.saturating_sub(1))
}

/// Runs until this node is whole.
pub(crate) async fn establish(node: Arc<Node>) {
    let mut stop = node.stop.subscribe();
    if node.replica.is_whole() {
        return;
    }
    if kv_types::mutant!(EmptyDiskSpeaks) && node.replica.set_whole(false).await.is_ok() {
        node.standing.set_whole();
        return;
    }
    let mut pause = limits::BACK_OFF.0;
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            attempted = attempt(&node) => match attempted {
                Ok(Some(pulled)) => match conclude(&node, pulled).await {
                    Ok(proves_from) => {
                        // Until then even a new request looks like one that the lost directory may have
                        // taken.
                        tokio::select! {
                            biased;
                            () = stopped(&mut stop) => return,
                            () = sleep(proves_from) => {}
                        }
                        node.standing.set_whole();
                        tracing::info!(pulled, "this node lacks nothing and serves what it keeps");
                        return;
                    }
                    Err(failure) => tracing::error!(%failure, "the mark of a whole directory cannot be written"),
                },
                Ok(None) => {}
                Err(failure) => tracing::warn!(%failure, "the pull of missing data goes on later"),
            }
        }
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            () = sleep(pause) => pause = (pause * 2).min(limits::BACK_OFF.1),
        }
    }
}

/// Writes down that nothing is missing. Where single keys are, it counts until the next start, which asks for
/// them again.
async fn conclude(node: &Node, pulled: bool) -> Result<Duration, Failure> {
    match node.standing.lacking() {
        0 => node.replica.set_whole(pulled).await,
        keys => {
            tracing::error!(
                keys,
                "this node serves without some keys, of which others have more than it can take: see the lines before, and                  restart it with room for them"
            );
            node.replica.set_whole_for_now()
        }
    }
}

/// Asks the members once and tries to get what this node lacks. When nothing is missing: whether data was
/// pulled.
async fn attempt(node: &Arc<Node>) -> Result<Option<bool>, Failure> {
    let catalogue = node.catalogue();
    if !catalogue.members.contains_key(&node.me) {
        return Ok(None);
    }
    let others = catalogue.members.keys().copied().filter(|member| *member != node.me);
    let answers = join_all(others.map(|member| survey(node, member))).await;
    // Again, for a change may have come while the others were asked.
    let catalogue = node.catalogue();
    match judge(Survey::of(&catalogue), &answers) {
        Verdict::Unknown => Ok(None),
        Verdict::New => Ok(Some(false)),
        Verdict::Pull(epoch) if catalogue.epoch < epoch => Ok(None),
        // This node cannot have lost what no other node ever had, so a pull that found nothing proves that
        // nothing is missing.
        Verdict::Pull(_) => Ok(pull_all(node, &catalogue).await?.then(|| node.standing.found_data())),
    }
}

async fn survey(node: &Node, member: NodeId) -> Option<Survey> {
    let body = request_frame::Body::PullPartition(peer::PullPartition::default());
    let deadline = Instant::now() + limits::BACKGROUND_CALL / 2;
    match node.peers.call(member, Lane::Control, Address::default(), body, deadline).await.ok()? {
        response_frame::Body::PullPartition(reply) => Survey::decode(reply.node_clock),
        _ => None,
    }
}

/// Pulls every ring partition that is not served yet. True when none is left.
async fn pull_all(node: &Arc<Node>, catalogue: &Catalogue) -> Result<bool, Failure> {
    let mut wanted: Vec<(Slice, Vec<NodeId>, usize)> = Vec::new();
    for ring in catalogue.rings.values() {
        let Some(lowest_w) = lowest_w(catalogue, ring) else { continue };
        for slice in node.kept(ring).into_iter().filter(|slice| !node.standing.serves(*slice)) {
            let primaries = ring.primaries(slice.partition);
            let others = primaries.iter().copied().filter(|other| *other != node.me).collect();
            wanted.push((slice, others, sources_needed(primaries.len(), lowest_w)));
        }
    }
    let mut pulls = stream::iter(wanted)
        .map(|(slice, others, needed)| async move { (slice, pull_slice(node, slice, &others, needed).await) })
        .buffer_unordered(limits::PULLS);
    let mut complete = true;
    while let Some((slice, pulled)) = pulls.next().await {
        if pulled? {
            node.standing.serve(slice);
        } else {
            complete = false;
        }
    }
    Ok(complete)
}

/// The smallest W by which something on this ring may have been acknowledged; none when there is no
/// namespace. What W was before it was altered is not known.
fn lowest_w(catalogue: &Catalogue, ring: &Ring) -> Option<usize> {
    let of = |namespace: &Namespace| match namespace.placement {
        Placement::Available { ring: id, .. } if id != ring.id => None,
        Placement::Available { .. } if namespace.settings_version > 1 => Some(1),
        Placement::Available { replication, .. } => Some(usize::from(replication.w)),
        Placement::Strong { .. } => None,
    };
    catalogue.namespaces.values().filter_map(of).min()
}

/// Pulls a ring partition from every source that can be reached. True when they were enough.
async fn pull_slice(
    node: &Arc<Node>,
    slice: Slice,
    others: &[NodeId],
    needed: usize,
) -> Result<bool, Failure> {
    let mut answers: BTreeMap<NodeId, bool> = BTreeMap::new();
    for source in others {
        match pull_from(node, slice, *source).await {
            Ok(whole) => {
                answers.insert(*source, whole);
            }
            Err(failure) if failure.reason == Reason::StorageFailed => return Err(failure),
            Err(failure) => tracing::debug!(%source, ?slice, %failure, "a source did not answer"),
        }
    }
    let whole = answers.values().filter(|whole| **whole).count();
    Ok(whole >= needed || answers.len() == others.len())
}

/// How much a source is asked for at a time, and how long that may take: by how its link carried what came
/// before. An answer cannot be told from a source that does not answer until it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageSize {
    bytes: u32,
    wait: Duration,
}

impl Default for PageSize {
    fn default() -> Self {
        Self { bytes: limits::PULL_PAGE_LEAST, wait: limits::PULL_TIME.1 }
    }
}

impl PageSize {
    fn came(&mut self, took: Duration) {
        if took <= limits::PULL_TIME.0 {
            self.bytes = self.bytes.saturating_mul(2).min(limits::PULL_PAGE_BYTES);
        }
    }

    /// Whether to ask for less, or to wait longer.
    fn late(&mut self) -> bool {
        let before = *self;
        self.bytes = limits::PULL_PAGE_LEAST;
        self.wait = (self.wait * 2).min(limits::BACKGROUND_AT_MOST);
        *self != before
    }
}

/// Merges everything that a source keeps of a ring partition. True when the source is whole.
async fn pull_from(node: &Arc<Node>, slice: Slice, source: NodeId) -> Result<bool, Failure> {
    let mut after = Bytes::new();
    let mut page = PageSize::default();
    let mut all_taken = true;
    loop {
        let message = peer::PullPartition {
            ring: slice.ring.0,
            partition: slice.partition.0,
            after: after.clone(),
            max_bytes: page.bytes,
        };
        let body = request_frame::Body::PullPartition(message);
        let begun = Instant::now();
        let reply = node.peers.call(source, Lane::Bulk, Address::default(), body, begun + page.wait).await;
        if matches!(reply, Err(PeerError::TimedOut)) && page.late() {
            continue;
        }
        page.came(begun.elapsed());
        let pulled_page = match reply.map_err(|error| error.into_failure(source))? {
            response_frame::Body::PullPartition(page) => page,
            _ => {
                return Err(Failure::new(
                    Reason::Internal,
                    format!("{source} sent an unexpected response type"),
                ));
            }
        };
        if !pulled_page.records.is_empty() {
            node.standing.note_data();
        }
        for pulled in pulled_page.records {
            all_taken &= take(node, slice, source, pulled).await?;
        }
        if !pulled_page.next.is_empty() {
            after = pulled_page.next;
            continue;
        }
        if pulled_page.node_clock.is_empty() {
            return Ok(false);
        }
        let clock = NodeClock::decode(pulled_page.node_clock)
            .map_err(|error| Failure::new(Reason::InvalidRequest, error.to_string()))?;
        if !clock.is_empty() {
            node.standing.note_data();
        }
        // It claims what was left out too.
        if !all_taken {
            return Ok(true);
        }
        // One log, one order: when the clock is durable, so is every record before it.
        let deadline = Instant::now() + limits::BACKGROUND_READ;
        let adopted = node.replica.adopt(slice, &clock, deadline).await?;
        node.replica.durable(adopted).await?;
        return Ok(true);
    }
}

/// Merges a record of a source. False if this node cannot take it, now or later: then it does not speak for
/// the key, and the other keys of the ring partition do not wait for it.
async fn take(
    node: &Arc<Node>,
    slice: Slice,
    source: NodeId,
    pulled: peer::PulledRecord,
) -> Result<bool, Failure> {
    let place = Place { slice, namespace: NamespaceId(pulled.namespace_id), key: pulled.key };
    let failure = match State::decode(pulled.record) {
        Ok(state) => match apply_patiently(node, &place, &state).await {
            Ok(()) => return Ok(true),
            // Of a dot that stands for two requests neither is the true one: the others have to tell.
            Err(failure) if is_too_large(&failure) || is_reuse(&failure) => failure,
            Err(failure) => return Err(failure),
        },
        Err(error) => Failure::new(Reason::InvalidRequest, error.to_string()),
    };
    match node.standing.lack(&place) {
        None => return Err(failure),
        Some(false) => {}
        Some(true) => {
            tracing::warn!(%place, %source, %failure, "what others have of a key cannot be taken: it is left to them");
        }
    }
    Ok(false)
}

/// Bulk writes are refused while the log has more urgent work.
async fn apply_patiently(node: &Arc<Node>, place: &Place, state: &State) -> Result<(), Failure> {
    let mut pause = Duration::from_millis(5);
    loop {
        let deadline = Instant::now() + limits::BACKGROUND_READ;
        match node.replica.apply(place, state, true, deadline).await {
            Err(failure) if failure.reason == Reason::Overloaded && pause < limits::BACKGROUND_CALL => {
                sleep(pause).await;
                pause *= 2;
            }
            // The source has not removed what is left of a deleted namespace.
            Err(failure) if failure.reason == Reason::NamespaceUnknown => return Ok(()),
            result => return result.map(|_| ()),
        }
    }
}

impl Node {
    /// A page of a ring partition for a node that may lack it, or the answer to a survey.
    pub(crate) async fn pull_partition(
        &self,
        message: peer::PullPartition,
        deadline: Instant,
    ) -> Result<peer::PullPartitionReply, Failure> {
        let catalogue = self.catalogue();
        if message.ring == 0 {
            let node_clock = Survey::of(&catalogue).encode();
            return Ok(peer::PullPartitionReply { node_clock, ..Default::default() });
        }
        let slice = Slice { ring: RingId(message.ring), partition: RingPartition(message.partition) };
        let primaries =
            catalogue.rings.get(&slice.ring).map_or(&[][..], |ring| ring.primaries(slice.partition));
        if !primaries.contains(&self.me) {
            return Err(Failure::new(
                Reason::WrongNode,
                format!("{} does not keep {}", self.me, slice.partition),
            ));
        }
        // The clock of the beginning travels along in the place to resume from.
        let (clock, position, after) = if message.after.is_empty() {
            let (clock, position) = self.replica.clock(slice);
            let speaks = self.standing.knows_all_of(slice) && !self.replica.is_put_back();
            (if speaks { clock.encode() } else { Bytes::new() }, Some(position), Bytes::new())
        } else {
            let (clock, after) = read_resume(message.after)
                .filter(|(_, after)| after.starts_with(&slice.prefix()))
                .ok_or_else(|| {
                    Failure::new(Reason::InvalidRequest, "`after` is not a place to resume from")
                })?;
            (clock, None, after)
        };
        let max_bytes = message.max_bytes.min(limits::PULL_PAGE_BYTES) as usize;
        let page = self.replica.page(slice, &after, max_bytes, deadline).await?;
        self.durable_by(position.unwrap_or_default().max(page.position), deadline).await?;
        let records = page.records.into_iter();
        let mut reply = peer::PullPartitionReply {
            records: records
                .map(|(place, record)| peer::PulledRecord {
                    namespace_id: place.namespace.0,
                    key: place.key,
                    record,
                })
                .collect(),
            ..Default::default()
        };
        match page.next {
            Some(last) => reply.next = write_resume(&clock, &last),
            None => reply.node_clock = clock,
        }
        Ok(reply)
    }
}

fn write_resume(clock: &[u8], last: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(4 + clock.len() + last.len());
    out.put_u32(u32::try_from(clock.len()).unwrap_or(u32::MAX));
    out.put_slice(clock);
    out.put_slice(last);
    out.freeze()
}

fn read_resume(mut bytes: Bytes) -> Option<(Bytes, Bytes)> {
    let length = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
    if length > bytes.len() {
        return None;
    }
    let clock = bytes.split_to(length);
    Some((clock, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(namespaces: bool, epoch: u64) -> Survey {
        Survey { namespaces, epoch: Epoch(epoch) }
    }

    #[test]
    fn a_new_cluster_needs_no_pull_once_no_other_node_can_know_better() {
        let new = says(false, 1);
        let judged = |answered: usize, others: usize| {
            let answers: Vec<_> = (0..others).map(|n| (n < answered).then_some(new)).collect();
            judge(new, &answers)
        };
        assert_eq!(judged(0, 0), Verdict::New, "a cluster of one");
        // Others of a cluster of 2, 3, 4, ..., and how many of them must answer.
        for (others, needed) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 4), (9, 8)] {
            for answered in 0..=others {
                let expected = if answered >= needed { Verdict::New } else { Verdict::Unknown };
                assert_eq!(judged(answered, others), expected, "{answered} of {others}");
            }
        }
    }

    #[test]
    fn a_wiped_node_always_asks_a_node_that_knows() {
        // The namespace was committed by a bare majority with the node that lost its disk.
        for nodes in 2..=MAX_VOTERS {
            let (others, knowers) = (nodes - 1, nodes / 2);
            for mask in 0u32..1 << others {
                let answers: Vec<_> =
                    (0..others).map(|n| (mask >> n & 1 == 1).then(|| says(n < knowers, 1))).collect();
                assert_ne!(judge(says(false, 1), &answers), Verdict::New, "{answers:?}");
            }
        }
    }

    /// What was acknowledged by a lower W before it was raised is still to be found.
    #[test]
    fn an_altered_w_does_not_lower_how_many_sources_are_asked() {
        let ring = Ring { id: RingId(1), n: 3, assignment: Vec::new(), epoch: Epoch(1) };
        let namespace = |id: u64, settings_version, w| {
            let replication = kv_types::Replication { n: 3, r: 1, w, sloppy: true };
            let namespace = Namespace {
                id: NamespaceId(id),
                name: kv_types::NamespaceName::new(format!("n{id}")).unwrap(),
                settings_version,
                deletion: None,
                guarantee: kv_types::Guarantee::Eventual,
                placement: Placement::Available { ring: ring.id, replication },
            };
            (namespace.id, namespace)
        };
        let of = |namespaces: Vec<_>| {
            let namespaces = namespaces.into_iter().collect();
            lowest_w(&Catalogue { namespaces, ..Catalogue::default() }, &ring)
        };
        assert_eq!(of(vec![]), None);
        assert_eq!(of(vec![namespace(1, 1, 3), namespace(2, 1, 2)]), Some(2));
        assert_eq!(of(vec![namespace(1, 2, 3), namespace(2, 1, 2)]), Some(1));
    }

    #[test]
    fn one_who_knows_a_namespace_is_enough_to_pull() {
        let new = says(false, 1);
        assert_eq!(judge(new, &[Some(new), Some(new), Some(says(true, 9)), None]), Verdict::Pull(Epoch(9)));
        assert_eq!(judge(says(true, 4), &[Some(new), Some(new)]), Verdict::Pull(Epoch(1)));
        assert_eq!(judge(says(true, 4), &[None]), Verdict::Pull(Epoch(4)));
    }

    #[test]
    fn the_sources_meet_every_write() {
        for n in 1..=7usize {
            for w in 1..=n {
                let needed = sources_needed(n, w);
                assert!(needed < n);
                // A write that W nodes acknowledged, this one among them, is on W-1 of the N-1 others: any
                // `needed` of those others include one of them.
                assert!(w == 1 || needed + (w - 1) > n - 1, "N={n} W={w}");
            }
        }
    }

    #[test]
    fn surveys_and_places_to_resume_survive() {
        for survey in [says(true, 7), says(false, 0)] {
            assert_eq!(Survey::decode(survey.encode()), Some(survey));
        }
        assert_eq!(Survey::decode(Bytes::new()), None);
        let resume = write_resume(b"clock", b"key");
        assert_eq!(read_resume(resume), Some((Bytes::from_static(b"clock"), Bytes::from_static(b"key"))));
        assert_eq!(read_resume(Bytes::from_static(&[0, 0, 0, 9, 1])), None);
    }
}
