//! The path of a read: R answers, merged; the values that nothing known supersedes. Any node may coordinate
//! one, because it mints nothing. Replicas that lacked something get it after the answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use kv_peer::{Address, Lane, Patience, PeerError};
use kv_proto::peer::{self, request_frame, response_frame};
use kv_types::call::{Get, Presence, Read};
use kv_types::causal::{Seen, State};
use kv_types::{
    Answer, AvailableEvidence, Degradation, Epoch, Evidence, Failure, Guarantee, Namespace, NodeId, Outcome,
    Reason, Receipt, ReplicaReply,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::limits;
use crate::node::{Node, View, count, keeps_promise, replica_write};
use crate::quorum::{Asked, NotMet, ReadAction, ReadCoordinator, Reply};
use crate::write::not_met;

/// One node's answer.
pub(crate) struct Heard {
    node: NodeId,
    /// It keeps the ring partition and knows all of it.
    pub(crate) primary: bool,
    pub(crate) known: bool,
    pub(crate) state: State,
    /// Its bytes among those of all answers that this node holds.
    room: Option<OwnedSemaphorePermit>,
}

impl Heard {
    /// An answer that holds no room.
    pub(crate) fn of(node: NodeId, primary: bool, known: bool, state: State) -> Self {
        Self { node, primary, known, state, room: None }
    }

    /// It keeps the key, and a merge with what a read found would change nothing here. Not only for the
    /// values: what was deleted, or superseded, where the read was told of it, may come to this node yet.
    fn has(&self, found: &State) -> bool {
        let record = &self.state.record;
        self.primary
            && record.knows_values_of(&found.record)
            && record.context.contains_all(&found.record.context)
    }

    /// It holds this room as long as it lives.
    pub(crate) fn hold(&mut self, room: Option<OwnedSemaphorePermit>) {
        self.room = room;
    }
}

/// The answer that a read gives. `by_primary`: a node that keeps the key told of it, so absence is known too.
fn answer(view: &View, state: State, by_primary: bool, (mut receipt, repair): (Receipt, bool)) -> Answer {
    let values = state.record.values();
    let presence = if !values.is_empty() {
        Presence::Found
    } else if by_primary || kv_types::mutant!(AbsenceFromNoKnowledge) {
        Presence::Absent
    } else {
        Presence::NoKnowledge
    };
    if let Evidence::Available(evidence) = &mut receipt.evidence {
        evidence.repair = repair;
        evidence.siblings = u32::try_from(values.len()).unwrap_or(u32::MAX);
    }
    let siblings = values.into_iter().map(|(dot, sibling)| (dot, sibling.clone())).collect();
    let context = view.context_of(&state.seen());
    let read = Read { presence, value: Bytes::new(), revision: 0, siblings, context };
    Answer { outcome: Outcome::Read(read), receipt }
}

fn bytes_of(state: &State) -> usize {
    state.record.siblings.values().map(|sibling| sibling.value.len()).sum()
}

impl Node {
    pub(crate) async fn get(
        self: &Arc<Self>,
        namespace: &Namespace,
        get: Get,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let view = self.view(namespace, get.key)?;
        let r = count(get.quorum.replicas, view.replication.r, view.replication.n)?;
        keeps_promise(namespace, r, view.replication.r)?;
        // As many as must have what is shown: mostly they have it, and that costs a read, not a write.
        let settles = namespace.guarantee == Guarantee::MonotonicReads;
        let r = if settles { r.max(view.replication.w) } else { r };
        let strict = get.quorum.strict || !view.replication.sloppy;
        let busy = |_| {
            Failure::new(Reason::Overloaded, "this node coordinates as many requests as it may")
                .retry_after_ms(50)
        };
        let _room = self.room.try_acquire().map_err(busy)?;
        if r == 1
            && !settles
            && let Some(own) = self.own(&view)
        {
            let asked = [Asked::answered(self.me)];
            let receipt = self.read_receipt(namespace, &view, r, &asked, std::slice::from_ref(&own), 1);
            // Neither buried nor repaired: a record is stored with the rule of twins applied, by all that
            // this node knows of its requests, and each that it learns of later changes the record.
            return Ok(answer(&view, own.state, true, (receipt, false)));
        }
        let i_count = if view.primaries.contains(&self.me) {
            self.knows(&view.place)
        } else {
            view.fallbacks.contains(&self.me)
        };
        let plan = self.plan(&view, r, strict, &[]);
        let mut quorum = ReadCoordinator::new(plan, i_count).map_err(|missing| not_met(missing, false))?;
        let heard = self.collect(&view, &mut quorum, r, deadline).await?;

        let mut merged = State::default();
        heard.iter().for_each(|heard| merged.merge(&heard.state));
        // A single value too: it may be the late twin of one that was deleted.
        self.replica.bury_known(&view.place, &mut merged);
        let mut have: BTreeSet<NodeId> =
            heard.iter().filter(|heard| heard.has(&merged)).map(|heard| heard.node).collect();
        let wanted = usize::from(view.replication.w);
        let repair = if settles && have.len() < wanted && !kv_types::mutant!(ReadUnsettled) {
            self.settle_read(&view, &merged, (&mut have, wanted), deadline).await?;
            true
        } else {
            self.repair(&view, &heard, &merged)
        };
        let by_primary = heard.iter().any(|heard| heard.primary);
        let receipt = self.read_receipt(namespace, &view, r, quorum.asked(), &heard, have.len());
        Ok(answer(&view, merged, by_primary, (receipt, repair)))
    }

    /// Gives what a read found to primaries until as many have it as a write needs: then each strict read
    /// that begins later asks one of them, and no value that was shown disappears but for what supersedes it.
    ///
    /// Errors: `QUORUM_NOT_MET` where too few take it by the deadline. Those that have taken it keep it.
    async fn settle_read(
        self: &Arc<Self>,
        view: &View,
        found: &State,
        (have, wanted): (&mut BTreeSet<NodeId>, usize),
        deadline: Instant,
    ) -> Result<(), Failure> {
        let record = found.encode();
        let lacking = view.primaries.iter().copied().filter(|node| !have.contains(node) && self.is_up(*node));
        let mut calls: FuturesUnordered<_> = lacking
            .map(|node| {
                let (me, place, state) = (Arc::clone(self), view.place.clone(), found.clone());
                let (_, body) = replica_write(&view.place, record.clone(), None);
                let about = view.address();
                async move {
                    if node == me.me {
                        let position = me.replica.apply(&place, &state, false, deadline).await.ok()?;
                        return me.durable_by(position, deadline).await.ok().map(|()| node);
                    }
                    match me.peers.call(node, Lane::Data, about, body, deadline).await {
                        Ok(response_frame::Body::ReplicaWrite(reply)) if reply.fsynced => Some(node),
                        Err(PeerError::Refused(failure)) => {
                            me.replica.learn_of_reuse(place.slice, &failure).await;
                            None
                        }
                        _ => None,
                    }
                }
            })
            .collect();
        while have.len() < wanted {
            match timeout_at(deadline, calls.next()).await {
                Ok(Some(taken)) => have.extend(taken),
                Ok(None) | Err(_) => {
                    return Err(not_met(NotMet { needed: wanted, reached: have.len() }, false));
                }
            }
        }
        Ok(())
    }

    /// What this node itself has of a key that it keeps and serves: a read asks it first. None where that is
    /// not known at once.
    fn own(&self, view: &View) -> Option<Heard> {
        if !view.primaries.contains(&self.me) || !self.knows(&view.place) {
            return None;
        }
        let copy = self.replica.in_memory(&view.place)?;
        if !self.replica.is_durable(copy.position) {
            return None;
        }
        Some(Heard::of(self.me, true, copy.known, copy.state))
    }

    /// R answers, or why there are fewer.
    async fn collect(
        self: &Arc<Self>,
        view: &View,
        quorum: &mut ReadCoordinator,
        r: u8,
        deadline: Instant,
    ) -> Result<Vec<Heard>, Failure> {
        let begun = Instant::now();
        let mut calls = FuturesUnordered::new();
        let mut heard = Vec::new();
        let mut actions = quorum.begin(begun.elapsed());
        loop {
            for action in std::mem::take(&mut actions) {
                match action {
                    ReadAction::Ask { node } => {
                        let ask = self.ask(view, node, deadline);
                        calls.push(async move { (node, ask.await) });
                    }
                    ReadAction::Done => return Ok(heard),
                    ReadAction::Impossible => {
                        return Err(not_met(
                            NotMet { needed: usize::from(r), reached: quorum.answers() },
                            false,
                        ));
                    }
                }
            }
            let look = Instant::now() + limits::LOOK_AROUND;
            let tick = quorum.next_tick().map_or(look, |tick| look.min(begun + tick));
            tokio::select! {
                biased;
                Some((node, answer)) = calls.next(), if !calls.is_empty() => {
                    let reply = if answer.is_some() { Reply::Ok } else { Reply::Failed };
                    if let Some(mut answer) = answer {
                        answer.hold(self.hold_answer(&answer.state)?);
                        heard.push(answer);
                    }
                    actions = quorum.on_reply(node, reply, begun.elapsed());
                }
                () = sleep_until(tick.min(deadline)) => {
                    if Instant::now() >= deadline {
                        return Err(not_met(NotMet { needed: usize::from(r), reached: quorum.answers() }, false));
                    }
                    let waiting: BTreeSet<NodeId> = quorum.waiting_for().collect();
                    for silent in waiting.into_iter().filter(|node| !self.is_up(*node)) {
                        actions.extend(quorum.on_suspect(silent, begun.elapsed()));
                    }
                    actions.extend(quorum.on_tick(begun.elapsed()));
                }
            }
        }
    }

    /// Room for an answer until the read ends; none is needed for a small one. A read that is refused has
    /// changed nothing.
    pub(crate) fn hold_answer(&self, state: &State) -> Result<Option<OwnedSemaphorePermit>, Failure> {
        let bytes = bytes_of(state);
        if bytes <= limits::SMALL_ANSWER_BYTES {
            return Ok(None);
        }
        let bytes = u32::try_from(bytes.min(limits::ANSWER_BYTES)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.answers).try_acquire_many_owned(bytes);
        room.map(Some).map_err(|_| {
            let why = "this node holds as many bytes of answers of replicas as it may";
            Failure::new(Reason::Overloaded, why).retry_after_ms(50)
        })
    }

    pub(crate) fn ask(
        self: &Arc<Self>,
        view: &View,
        node: NodeId,
        deadline: Instant,
    ) -> BoxFuture<'static, Option<Heard>> {
        let me = Arc::clone(self);
        let (place, address, primaries) = (view.place.clone(), view.address(), view.primaries.clone());
        Box::pin(async move {
            if node == me.me {
                let primary = primaries.contains(&node);
                let copy = if primary {
                    me.replica.read(&place, deadline).await
                } else {
                    me.replica.read_hints(&place, &primaries, deadline).await
                }
                .ok()?;
                me.durable_by(copy.position, deadline).await.ok()?;
                return Some(Heard::of(node, primary, copy.known, copy.state));
            }
            let message = peer::ReplicaRead {
                ring: place.slice.ring.0,
                partition: place.slice.partition.0,
                key: place.key.clone(),
            };
            let body = request_frame::Body::ReplicaRead(message);
            match me.peers.call(node, Lane::Data, address, body, deadline).await.ok()? {
                response_frame::Body::ReplicaRead(reply) => {
                    let state =
                        if reply.knows { State::decode(reply.record).ok()? } else { State::default() };
                    Some(Heard::of(node, reply.primary, reply.knows, state))
                }
                _ => None,
            }
        })
    }

    /// What a reader sees of a key at a node, if it answers in time, and whether that node knows what the key
    /// has: a fallback that holds nothing of it does not.
    pub(crate) async fn observe(
        self: &Arc<Self>,
        node: NodeId,
        view: &View,
        deadline: Instant,
    ) -> Option<(Seen, bool)> {
        let until = deadline.min(Instant::now() + self.config.patience);
        let heard = self.ask(view, node, until).await?;
        Some((heard.state.seen(), heard.primary || heard.known))
    }

    /// Gives the primaries that answered what they lacked; false when none lacked anything, or when too many
    /// repairs are under way.
    fn repair(self: &Arc<Self>, view: &View, heard: &[Heard], merged: &State) -> bool {
        let lacking: Vec<NodeId> = heard
            .iter()
            .filter(|heard| heard.primary && !heard.state.record.knows_values_of(&merged.record))
            .map(|heard| heard.node)
            .collect();
        if lacking.is_empty() {
            return false;
        }
        let Ok(room) = Arc::clone(&self.repairs).try_acquire_owned() else { return false };
        let (me, place, mut state) = (Arc::clone(self), view.place.clone(), merged.clone());
        if kv_types::mutant!(ReadRepairDrops) {
            state.record.siblings.clear();
        }
        tokio::spawn(async move {
            let _room = room;
            let deadline = Instant::now() + limits::BACKGROUND_CALL;
            let record = state.encode();
            for node in lacking {
                let result = if node == me.me {
                    let applied = me.replica.apply(&place, &state, true, deadline).await;
                    applied.map(|_| ()).map_err(|failure| failure.to_string())
                } else {
                    let (namespace, body) = replica_write(&place, record.clone(), None);
                    let about = Address { namespace, epoch: Epoch(0), ..Address::default() };
                    let (idle, at_most) = (limits::BACKGROUND_CALL, limits::BACKGROUND_AT_MOST);
                    let patience = Patience::WhileMoving { idle, at_most };
                    let answer = me.peers.call_with(node, Lane::Bulk, about, body, patience).await;
                    if let Err(PeerError::Refused(failure)) = &answer {
                        me.replica.learn_of_reuse(place.slice, failure).await;
                    }
                    answer.map(|_| ()).map_err(|error| error.to_string())
                };
                if let Err(why) = result {
                    tracing::debug!(%node, why, "a read repair did not arrive");
                }
            }
        });
        true
    }

    fn read_receipt(
        &self,
        namespace: &Namespace,
        view: &View,
        r: u8,
        asked: &[Asked],
        heard: &[Heard],
        have: usize,
    ) -> Receipt {
        let replies: Vec<ReplicaReply> = asked
            .iter()
            .map(|asked| ReplicaReply {
                node: asked.node,
                fallback: asked.stands_in_for.is_some(),
                answered: asked.answered,
                fsynced: asked.answered,
                // A primary without a copy knows that there is none.
                knows: heard.iter().any(|h| h.node == asked.node && (h.primary || h.known)),
            })
            .collect();
        let primaries = heard.iter().filter(|heard| heard.primary).count();
        let fallback = replies.iter().any(|reply| reply.fallback && reply.answered);
        let late = asked.iter().any(|a| a.stands_in_for.is_none() && !a.answered && !a.is_awaited());
        let shown = |heard: &Heard| heard.state.record.siblings.keys().copied().collect::<Vec<_>>();
        let mut told = heard.iter().filter(|heard| heard.primary || heard.known).map(shown);
        let first = told.next();
        let divergent = told.any(|other| Some(other) != first);
        let mut receipt = Receipt {
            promised: namespace.guarantee,
            epoch: view.epoch,
            served_by: self.me,
            attempts: 1,
            deduplicated: false,
            degraded: Vec::new(),
            evidence: Evidence::Available(AvailableEvidence {
                n: view.replication.n,
                r,
                w: view.replication.w,
                strict: primaries >= usize::from(r),
                settled: have >= usize::from(view.replication.w),
                replies,
                hints: 0,
                repair: false,
                siblings: 0,
                staleness_bound_ms: None,
            }),
        };
        for (holds, reason) in [
            (fallback, Degradation::Fallback),
            (late || fallback, Degradation::PrimarySilent),
            (divergent, Degradation::Divergent),
        ] {
            if holds {
                receipt.degrade(reason);
            }
        }
        receipt
    }
}
