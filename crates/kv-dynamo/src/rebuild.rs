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
//!   every set of W; or from all other primaries, whole or not, when there are not so many. Before the
//!   primaries it asks the fallbacks that are up for the hints that they hold, for any primary: a hint that
//!   is gone from its fallback has then reached a primary, which is asked later. One that is down keeps its
//!   hints until it is back.
//!
//! Until a ring partition is pulled, the node does not answer reads of it. Until all are pulled, it
//! coordinates no write, because it could not tell a resent request from a new one. It accepts writes and
//! hints.
//!
//! A record that this node cannot take (larger than its storage takes at once, or unreadable) holds up its
//! key alone: the node speaks for the rest, leaves the key to the other primaries, and pulls again after its
//! next start.
//!
//! What a source has is merged in one order: the requests that it knows, so that twins are known; its
//! records, and with each page the keys that it does not have; its node clock, which says that all of it is
//! known here.
//!
//! The question is sent as a pull of ring 0, which does not exist. The answer is in the field of the node
//! clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::{BoxFuture, FutureExt, TryFutureExt, join_all};
use futures_util::stream::{self, StreamExt};
use kv_peer::{Address, Lane, PeerError};
use kv_proto::peer::{self, request_frame, response_frame};
use kv_types::catalogue::{Catalogue, Ring};
use kv_types::causal::{CodecError, Context, NodeClock, State};
use kv_types::limits::MAX_VOTERS;
use kv_types::{
    ClientId, Epoch, Failure, Namespace, NamespaceId, NodeId, Placement, Reason, RequestId, RingId,
    RingPartition,
};
use tokio::time::{Instant, sleep};

use crate::layout::{Place, Slice, Taken};
use crate::limits;
use crate::node::{Node, stopped};
use crate::replica::is_too_large;

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
    // One that was put back meanwhile begins anew with its next start.
    while !node.replica.is_put_back() {
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

/// A ring partition to pull, and from whom.
struct Wanted {
    slice: Slice,
    /// Who may hold hints of it.
    fallbacks: Vec<NodeId>,
    /// The other primaries.
    others: Vec<NodeId>,
    /// How many of them, if they are whole.
    needed: usize,
}

/// Pulls every ring partition that is not served yet. True when none is left.
async fn pull_all(node: &Arc<Node>, catalogue: &Catalogue) -> Result<bool, Failure> {
    let mut all: Vec<Wanted> = Vec::new();
    for ring in catalogue.rings.values() {
        let Some(lowest_w) = lowest_w(catalogue, ring) else { continue };
        for slice in node.kept(ring).into_iter().filter(|slice| !node.standing.serves(*slice)) {
            let primaries = ring.primaries(slice.partition);
            all.push(Wanted {
                slice,
                fallbacks: catalogue.members.keys().copied().filter(|id| !primaries.contains(id)).collect(),
                others: primaries.iter().copied().filter(|other| *other != node.me).collect(),
                needed: sources_needed(primaries.len(), lowest_w),
            });
        }
    }
    let mut pulls = stream::iter(all)
        .map(|wanted| async move { (wanted.slice, pull_slice(node, &wanted).await) })
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
async fn pull_slice(node: &Arc<Node>, wanted: &Wanted) -> Result<bool, Failure> {
    let Wanted { slice, fallbacks, others, needed } = wanted;
    for fallback in fallbacks {
        match pull_hints(node, *slice, *fallback).await {
            Ok(()) => {}
            Err(error) if error.is_of_own_storage() => return Err(error.into_failure()),
            Err(error) => {
                let failure = error.failure();
                tracing::debug!(%fallback, ?slice, %failure, "a fallback did not say what hints it holds");
                if node.is_up(*fallback) {
                    return Ok(false);
                }
            }
        }
    }
    let mut answers: BTreeMap<NodeId, bool> = BTreeMap::new();
    for source in others {
        match pull_from(node, *slice, *source, None).await {
            Ok(whole) => {
                answers.insert(*source, whole);
            }
            Err(error) if error.is_of_own_storage() => return Err(error.into_failure()),
            Err(error) => {
                tracing::debug!(%source, ?slice, failure = %error.failure(), "a source did not answer");
            }
        }
    }
    let whole = answers.values().filter(|whole| **whole).count();
    Ok(whole >= *needed || answers.len() == others.len())
}

/// Why a pull from one source has ended without success.
#[derive(Debug)]
pub(crate) enum PullError {
    /// The source could not give what was asked for, its own disk included, or gave what cannot be used:
    /// another source may, or the same later.
    Source(Failure),
    /// This node could not take what it got.
    Here(Failure),
}

impl PullError {
    /// Whether the storage of this node has failed: then no source is of help.
    pub(crate) fn is_of_own_storage(&self) -> bool {
        matches!(self, Self::Here(failure) if failure.reason == Reason::StorageFailed)
    }

    pub(crate) fn failure(&self) -> &Failure {
        let (Self::Source(failure) | Self::Here(failure)) = self;
        failure
    }

    fn into_failure(self) -> Failure {
        let (Self::Source(failure) | Self::Here(failure)) = self;
        failure
    }
}

impl From<Failure> for PullError {
    fn from(failure: Failure) -> Self {
        Self::Here(failure)
    }
}

/// How much a source is asked for at a time, and how long that may take: by how its link carried what came
/// before. An answer cannot be told from a source that does not answer until it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageSize {
    bytes: u32,
    wait: Duration,
}

impl Default for PageSize {
    fn default() -> Self {
        Self { bytes: limits::PULL_PAGE_LEAST, wait: limits::PULL_TIME.1 }
    }
}

impl PageSize {
    pub(crate) fn bytes(self) -> u32 {
        self.bytes
    }

    pub(crate) fn wait(self) -> Duration {
        self.wait
    }

    pub(crate) fn came(&mut self, took: Duration) {
        if took <= limits::PULL_TIME.0 {
            self.bytes = self.bytes.saturating_mul(2).min(limits::PULL_PAGE_BYTES);
        }
    }

    /// Whether to ask for less, or to wait longer.
    pub(crate) fn late(&mut self) -> bool {
        let before = *self;
        self.bytes = limits::PULL_PAGE_LEAST;
        self.wait = (self.wait * 2).min(limits::BACKGROUND_AT_MOST);
        *self != before
    }
}

pub(crate) fn invalid(error: CodecError) -> Failure {
    Failure::new(Reason::InvalidRequest, error.to_string())
}

/// The clock of a source.
pub(crate) fn clock_of(bytes: Bytes) -> Result<NodeClock, PullError> {
    NodeClock::decode(bytes).map_err(|error| PullError::Source(invalid(error)))
}

/// The next page of a source.
async fn next_page(
    node: &Node,
    slice: Slice,
    source: NodeId,
    after: &Bytes,
    size: &mut PageSize,
) -> Result<peer::PullPartitionReply, PullError> {
    loop {
        let message = peer::PullPartition {
            ring: slice.ring.0,
            partition: slice.partition.0,
            after: after.clone(),
            max_bytes: size.bytes,
        };
        let body = request_frame::Body::PullPartition(message);
        let begun = Instant::now();
        let reply = node.peers.call(source, Lane::Bulk, Address::default(), body, begun + size.wait).await;
        if matches!(reply, Err(PeerError::TimedOut)) && size.late() {
            continue;
        }
        size.came(begun.elapsed());
        return match reply {
            Ok(response_frame::Body::PullPartition(page)) => Ok(page),
            Ok(_) => {
                let message = format!("{source} sent an unexpected response type");
                Err(PullError::Source(Failure::new(Reason::Internal, message)))
            }
            Err(error) => Err(PullError::Source(error.into_failure(source))),
        };
    }
}

/// Merges the hints that a fallback holds. It keeps them: their targets still need them.
async fn pull_hints(node: &Arc<Node>, slice: Slice, fallback: NodeId) -> Result<(), PullError> {
    let (mut after, mut size) = (Bytes::new(), PageSize::default());
    loop {
        let page = next_page(node, slice, fallback, &after, &mut size).await?;
        if !page.hints.is_empty() {
            node.standing.note_data();
        }
        for pulled in page.hints {
            let (place, state) = decoded(slice, pulled);
            let taken = match &state {
                Ok(state) => {
                    let apply = |deadline| node.replica.apply(&place, state, true, deadline).map_ok(drop);
                    patiently(|deadline| apply(deadline).boxed()).await
                }
                Err(failure) => Err(failure.clone()),
            };
            if let Err(failure) = taken {
                leave(node, &place, fallback, failure)?;
            }
        }
        if page.next.is_empty() {
            return Ok(());
        }
        after = page.next;
    }
}

pub(crate) fn decoded(slice: Slice, pulled: peer::PulledRecord) -> (Place, Result<State, Failure>) {
    let state = State::decode(pulled.record).map_err(invalid);
    (Place { slice, namespace: NamespaceId(pulled.namespace_id), key: pulled.key }, state)
}

/// Leaves a key to others of which this node cannot take what a source has, now or later: the node does not
/// speak for it, and the other keys of the ring partition do not wait for it. Any other failure ends the
/// pull.
fn leave(node: &Node, place: &Place, source: NodeId, failure: Failure) -> Result<(), Failure> {
    // Of a dot that stands for two requests neither is the true one: the others have to tell. A node that
    // serves the ring partition goes on to speak for the key, by what it has.
    let unfit = is_too_large(&failure) || failure.reason == Reason::InvalidRequest;
    if !unfit || node.standing.serves(place.slice) {
        return Err(failure);
    }
    match node.standing.lack(place) {
        None => return Err(failure),
        Some(false) => {}
        Some(true) => {
            tracing::warn!(%place, %source, %failure, "what others have of a key cannot be taken: it is left to them");
        }
    }
    Ok(())
}

/// Merges everything that a source keeps of a ring partition. True when the source is whole. `missing`: what
/// this node lacks, and of which the source must have something; its first page tells.
pub(crate) async fn pull_from(
    node: &Arc<Node>,
    slice: Slice,
    source: NodeId,
    missing: Option<&Context>,
) -> Result<bool, PullError> {
    let pulled = Box::pin(pull_pages(node, slice, source, missing)).await;
    if pulled.is_err() {
        node.replica.give_up_pull(slice);
    }
    pulled
}

async fn pull_pages(
    node: &Arc<Node>,
    slice: Slice,
    source: NodeId,
    missing: Option<&Context>,
) -> Result<bool, PullError> {
    let not_ready = |why: &str| PullError::Source(Failure::new(Reason::NotReady, format!("{source} {why}")));
    let (mut after, mut size) = (Bytes::new(), PageSize::default());
    let mut passed = Bytes::new();
    loop {
        let first = after.is_empty();
        let page = next_page(node, slice, source, &after, &mut size).await?;
        let clock = clock_of(page.node_clock)?;
        if !page.records.is_empty() || !clock.is_empty() {
            node.standing.note_data();
        }
        if first {
            let (serves, deadline) = (node.serves(slice), Instant::now() + limits::BACKGROUND_READ);
            // Before anything else: the clock may tell that this directory was put back.
            node.replica.begin_pull(slice, &clock, serves, deadline).await?;
            match worth(serves, page.whole, &clock, &node.replica.clock(slice).0, missing) {
                Worth::Pull => {}
                Worth::Nothing => {
                    node.replica.give_up_pull(slice);
                    return Ok(page.whole);
                }
                Worth::Refused(why) => return Err(not_ready(why)),
            }
        }
        // Before its writes: a resend of one that the source has forgotten is not new.
        node.replica.learn_forgotten(slice, page.forgotten_ms);
        learn_taken(node, slice, page.requests).await?;
        if !page.page_clock.is_empty() {
            let page_clock = clock_of(page.page_clock)?;
            // What it does not list would be taken for dead.
            if !page_clock.dots().contains_all(clock.dots()) {
                return Err(not_ready("has lost what it had when the pull began"));
            }
            let covered = (&passed, &page.covered);
            merge_page(node, (slice, source), page.records, &page_clock, covered).await?;
            passed = page.covered;
        }
        if !page.next.is_empty() {
            after = page.next;
            continue;
        }
        // One log, one order: when the clock is durable, so is every record before it.
        let deadline = Instant::now() + limits::BACKGROUND_READ;
        let pulled = node.replica.end_pull(slice, &clock, deadline).await?;
        node.replica.durable(pulled).await?;
        return Ok(page.whole);
    }
}

/// What the first page of a source says about a pull from it.
#[derive(Debug, PartialEq, Eq)]
enum Worth {
    Pull,
    /// The source has nothing that is not here.
    Nothing,
    /// It is of no help here.
    Refused(&'static str),
}

/// Whether a source of that clock is worth a pull. `mine`: the clock of this node; `missing`: what it looks
/// for. A node that does not serve the ring partition takes all that it can get.
fn worth(serves: bool, whole: bool, clock: &NodeClock, mine: &NodeClock, missing: Option<&Context>) -> Worth {
    if !serves {
        return Worth::Pull;
    }
    // What it does not list would have to be looked at here, key by key, for nothing.
    if !whole {
        return Worth::Refused("is not whole itself");
    }
    if missing.is_some_and(|missing| !clock.dots().meets(missing)) {
        return Worth::Refused("has nothing of what is missing here");
    }
    if mine.dots().contains_all(clock.dots()) { Worth::Nothing } else { Worth::Pull }
}

async fn learn_taken(
    node: &Arc<Node>,
    slice: Slice,
    requests: Vec<peer::PulledRequest>,
) -> Result<(), PullError> {
    if requests.is_empty() {
        return Ok(());
    }
    let mut told = Vec::with_capacity(requests.len());
    for peer::PulledRequest { client_id, seq, taken } in requests {
        let client_id = <[u8; 16]>::try_from(client_id.as_ref()).ok().map(u128::from_be_bytes);
        let (Some(client_id), Some(taken)) = (client_id, Taken::decode(taken)) else {
            let message = "a request that the source names cannot be read";
            return Err(PullError::Source(Failure::new(Reason::InvalidRequest, message)));
        };
        told.push((RequestId { client_id: ClientId(client_id), seq }, taken));
    }
    Ok(patiently(|deadline| node.replica.learn_taken(slice, &told, deadline).boxed()).await?)
}

/// Merges a page of records, and that nothing is there between them: from behind the key `after` to `last`,
/// or to the end.
async fn merge_page(
    node: &Arc<Node>,
    (slice, source): (Slice, NodeId),
    records: Vec<peer::PulledRecord>,
    clock: &NodeClock,
    (after, last): (&Bytes, &Bytes),
) -> Result<(), Failure> {
    let mut listed = BTreeSet::new();
    for pulled in records {
        let (place, state) = decoded(slice, pulled);
        listed.insert(place.record_key().freeze());
        let taken = match state {
            Ok(mut state) => {
                // Row and clock are of one moment there.
                state.record.fill(clock);
                patiently(|deadline| node.replica.merge_pulled(&place, &state, deadline).boxed()).await
            }
            Err(failure) => Err(failure),
        };
        if let Err(failure) = taken {
            leave(node, &place, source, failure)?;
            node.replica.leave_out(&place);
        }
    }
    let last = (!last.is_empty()).then_some(last.as_ref());
    patiently(|deadline| node.replica.pass(slice, after, last, &listed, deadline).boxed()).await
}

/// Bulk writes are refused while the log has more urgent work.
pub(crate) async fn patiently<'a, T: Default>(
    apply: impl Fn(Instant) -> BoxFuture<'a, Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut pause = Duration::from_millis(5);
    loop {
        match apply(Instant::now() + limits::BACKGROUND_READ).await {
            Err(failure) if failure.reason == Reason::Overloaded && pause < limits::BACKGROUND_CALL => {
                sleep(pause).await;
                pause *= 2;
            }
            // The source has not removed what is left of a deleted namespace.
            Err(failure) if failure.reason == Reason::NamespaceUnknown => return Ok(T::default()),
            result => return result,
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
        if primaries.is_empty() {
            return Err(Failure::new(
                Reason::WrongNode,
                format!("{} does not know {}", self.me, slice.partition),
            ));
        }
        let max_bytes = message.max_bytes.min(limits::PULL_PAGE_BYTES) as usize;
        let resume = match message.after.is_empty() {
            true => None,
            false => Some(Resume::decode(message.after).ok_or_else(|| {
                Failure::new(Reason::InvalidRequest, "`after` is not a place to resume from")
            })?),
        };
        match (primaries.contains(&self.me), resume) {
            (true, None) => {
                let (clock, position) = self.replica.clock(slice);
                self.durable_by(position, deadline).await?;
                let resume = Resume { of: Table::Requests, clock: clock.encode(), last: Bytes::new() };
                self.page_of_primary(slice, resume, max_bytes, deadline).await
            }
            (true, Some(resume)) => self.page_of_primary(slice, resume, max_bytes, deadline).await,
            (false, resume) => {
                let last = resume.map_or(Bytes::new(), |resume| resume.last);
                self.page_of_fallback(slice, primaries, last, max_bytes, deadline).await
            }
        }
    }

    /// Requests, then records, with the clock of the beginning.
    async fn page_of_primary(
        &self,
        slice: Slice,
        mut resume: Resume,
        max_bytes: usize,
        deadline: Instant,
    ) -> Result<peer::PullPartitionReply, Failure> {
        let mut reply = peer::PullPartitionReply {
            node_clock: resume.clock.clone(),
            whole: self.standing.knows_all_of(slice) && !self.replica.is_put_back(),
            forgotten_ms: self.replica.forgotten_ms(slice),
            ..Default::default()
        };
        if resume.of == Table::Requests {
            let page = self.replica.page_of_requests(slice, &resume.last, max_bytes)?;
            self.durable_by(page.position, deadline).await?;
            let requests = page.rows.into_iter().map(|(request, taken)| peer::PulledRequest {
                client_id: Bytes::copy_from_slice(&request.client_id.0.to_be_bytes()),
                seq: request.seq,
                taken,
            });
            reply.requests = requests.collect();
            let of = if page.next.is_some() { Table::Requests } else { Table::Records };
            resume = Resume { of, last: page.next.unwrap_or_default(), ..resume };
            if !reply.requests.is_empty() {
                reply.next = resume.encode();
                return Ok(reply);
            }
        }
        let page = self.replica.page(slice, &resume.last, max_bytes, deadline).await?;
        self.durable_by(page.position, deadline).await?;
        let records = page.records.into_iter();
        reply.records = records.map(|(place, record)| pulled_record(place, record)).collect();
        reply.page_clock = page.clock.encode();
        if let Some(last) = page.next {
            reply.covered = last.clone();
            reply.next = Resume { last, ..resume }.encode();
        }
        Ok(reply)
    }

    /// The hints that this node holds for the primaries, one after the other. The place to resume from is a
    /// target and the last key.
    async fn page_of_fallback(
        &self,
        slice: Slice,
        primaries: &[NodeId],
        mut last: Bytes,
        max_bytes: usize,
        deadline: Instant,
    ) -> Result<peer::PullPartitionReply, Failure> {
        let mut targets = primaries.to_vec();
        targets.sort_unstable();
        let begin = NodeId(last.try_get_u64().unwrap_or(0));
        let mut reply = peer::PullPartitionReply::default();
        for target in targets.into_iter().filter(|target| *target >= begin) {
            let after = if target == begin { std::mem::take(&mut last) } else { Bytes::new() };
            let page = self.replica.page_of_hints(target, slice, &after, max_bytes, deadline).await?;
            self.durable_by(page.position, deadline).await?;
            let hints = page.rows.into_iter().map(|(place, state)| pulled_record(place, state.encode()));
            reply.hints.extend(hints);
            let behind = match page.next {
                Some(key) => [&target.0.to_be_bytes()[..], &key].concat(),
                None if reply.hints.is_empty() => continue,
                None => target.0.saturating_add(1).to_be_bytes().to_vec(),
            };
            let resume = Resume { of: Table::Hints, clock: Bytes::new(), last: behind.into() };
            reply.next = resume.encode();
            return Ok(reply);
        }
        Ok(reply)
    }
}

pub(crate) fn pulled_record(place: Place, record: Bytes) -> peer::PulledRecord {
    peer::PulledRecord { namespace_id: place.namespace.0, key: place.key, record }
}

/// What a source gives, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    Requests,
    Records,
    Hints,
}

/// Where a pull goes on. The clock of its beginning travels along.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Resume {
    of: Table,
    clock: Bytes,
    /// The last key; empty for none.
    last: Bytes,
}

impl Resume {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(5 + self.clock.len() + self.last.len());
        out.put_u8(match self.of {
            Table::Requests => 1,
            Table::Records => 2,
            Table::Hints => 3,
        });
        out.put_u32(u32::try_from(self.clock.len()).unwrap_or(u32::MAX));
        out.put_slice(&self.clock);
        out.put_slice(&self.last);
        out.freeze()
    }

    fn decode(mut bytes: Bytes) -> Option<Self> {
        let of = match bytes.try_get_u8().ok()? {
            1 => Table::Requests,
            2 => Table::Records,
            3 => Table::Hints,
            _ => return None,
        };
        let length = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
        if length > bytes.len() {
            return None;
        }
        let clock = bytes.split_to(length);
        Some(Self { of, clock, last: bytes })
    }
}

#[cfg(test)]
mod tests {
    use kv_types::Incarnation;
    use kv_types::causal::Dot;

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
    fn a_node_that_serves_pulls_from_those_that_have_what_it_misses() {
        let dots = |counters: &[u64]| -> Context {
            let dot = |counter: &u64| Dot { incarnation: Incarnation(1), counter: *counter };
            counters.iter().map(dot).collect()
        };
        let clock = |counters: &[u64]| {
            let mut clock = NodeClock::new();
            counters.iter().for_each(|n| clock.add(Dot { incarnation: Incarnation(1), counter: *n }));
            clock
        };
        let (mine, missing) = (clock(&[1, 3]), dots(&[2, 7]));
        let of = |serves, whole, theirs: &[u64]| worth(serves, whole, &clock(theirs), &mine, Some(&missing));
        assert_eq!(of(true, true, &[1, 2, 3]), Worth::Pull);
        assert!(matches!(of(true, true, &[1, 3, 5]), Worth::Refused(_)), "what is written meanwhile comes");
        assert!(matches!(of(true, false, &[1, 2, 3]), Worth::Refused(_)));
        assert_eq!(worth(true, true, &clock(&[1, 3, 5]), &mine, None), Worth::Pull);
        assert_eq!(worth(true, true, &clock(&[3]), &mine, None), Worth::Nothing);
        // One that lacks its disk asks for everything.
        assert_eq!((of(false, false, &[1]), of(false, true, &[])), (Worth::Pull, Worth::Pull));
    }

    #[test]
    fn surveys_and_places_to_resume_survive() {
        for survey in [says(true, 7), says(false, 0)] {
            assert_eq!(Survey::decode(survey.encode()), Some(survey));
        }
        assert_eq!(Survey::decode(Bytes::new()), None);
        let (clock, last) = (Bytes::from_static(b"clock"), Bytes::from_static(b"key"));
        for of in [Table::Requests, Table::Records, Table::Hints] {
            let resume = Resume { of, clock: clock.clone(), last: last.clone() };
            assert_eq!(Resume::decode(resume.encode()), Some(resume));
        }
        assert_eq!(Resume::decode(Bytes::from_static(&[1, 0, 0, 0, 9, 1])), None);
        assert_eq!(Resume::decode(Bytes::from_static(&[9, 0, 0, 0, 0])), None);
    }
}
