//! The path of a client's write: to a primary that serves the key, or to a fallback when none can be reached;
//! then to W nodes. A write that was begun is carried on to its deadline even when its client has gone: a
//! primary that did not get it gets a hint.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use kv_peer::{Lane, PeerError};
use kv_proto::peer::{self, request_frame, response_frame};
use kv_types::call::{Delete, Put};
use kv_types::causal::Seen;
use kv_types::{
    Answer, Applied, AvailableEvidence, Call, Degradation, Evidence, Failure, Hop, Mutation, Namespace,
    NodeId, Outcome, Reason, Receipt, ReplicaReply, WriteContext, counted, noun,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::limits;
use crate::node::{Node, View, context_of, count, keeps_promise, replica_write};
use crate::quorum::{NotMet, Reply, WriteAction, WriteCoordinator};
use crate::replica::{Minted, Order, Role, Supersedes, nothing_to_delete};

/// A put or a delete, as it was asked for and as it may be passed on.
#[derive(Clone)]
pub(crate) enum Change {
    Put(Put),
    Delete(Delete),
}

/// What both have in common, checked.
struct Wanted {
    view: View,
    order: Order,
    w: u8,
    strict: bool,
}

/// Whether it is clear what a write supersedes at the node that it is to be passed on to.
enum Settled {
    Yes,
    /// That node knows nothing of the key that is to be deleted.
    Unknown,
    /// That node did not answer.
    Silent,
}

/// The result of a forward.
enum Forwarded {
    Answer(Box<Result<Answer, Failure>>),
    /// Another node may be asked; `open`: this one may still do it.
    Next {
        open: bool,
    },
}

impl Forwarded {
    fn answer(answer: Result<Answer, Failure>) -> Self {
        Self::Answer(Box::new(answer))
    }
}

impl Change {
    fn check(&self, node: &Node, namespace: &Namespace) -> Result<Wanted, Failure> {
        let (key, value, mutation, context, quorum) = match self {
            Self::Put(Put { key, value, mutation, context, quorum }) => {
                (key, Some(value.as_bytes().clone()), *mutation, context, quorum)
            }
            Self::Delete(Delete { key, mutation, context, quorum }) => {
                (key, None, *mutation, context, quorum)
            }
        };
        let view = node.view(namespace, key.clone())?;
        let supersedes = match context {
            Some(WriteContext::Causal(token)) => Supersedes::Seen(view.seen_of(token)?),
            Some(WriteContext::Observed) => Supersedes::Observed,
            Some(WriteContext::Blind) => Supersedes::Nothing,
            None => {
                let message = "say what the write supersedes: the context of a read, what the replica observes, or nothing (blind)";
                return Err(Failure::new(Reason::ContextMissing, message));
            }
        };
        // Without the context: what is observed is settled on the way.
        let mut body = crc32c::crc32c(&[u8::from(value.is_some())]);
        body = crc32c::crc32c_append(body, key.as_bytes());
        body = crc32c::crc32c_append(body, value.as_deref().unwrap_or_default());
        let w = count(quorum.replicas, view.replication.w, view.replication.n)?;
        keeps_promise(namespace, w, view.replication.w)?;
        let strict = quorum.strict || !view.replication.sloppy;
        Ok(Wanted { view, order: Order { mutation, body, value, supersedes }, w, strict })
    }

    /// States what the write supersedes.
    fn supersede(&mut self, with: WriteContext) {
        match self {
            Self::Put(Put { context, .. }) | Self::Delete(Delete { context, .. }) => *context = Some(with),
        }
    }

    fn forward(&self, namespace: &Namespace) -> request_frame::Body {
        let call = match self.clone() {
            Self::Put(put) => Call::Put(put),
            Self::Delete(delete) => Call::Delete(delete),
        };
        request_frame::Body::Forward(peer::Forward::call(namespace, &call))
    }

    fn outcome(&self, context: Bytes) -> Outcome {
        match self {
            Self::Put(_) => Outcome::Put { revision: 0, context },
            Self::Delete(_) => Outcome::Deleted { existed: false, revision: 0, context },
        }
    }
}

/// What the coordinator tells the caller.
struct Account {
    covered: Seen,
    receipt: Receipt,
}

impl Node {
    /// Serves a write: here, by another replica, or by a fallback.
    pub(crate) async fn write(
        self: &Arc<Self>,
        namespace: &Namespace,
        change: Change,
        deadline: Instant,
        hop: Hop,
    ) -> Result<Answer, Failure> {
        let wanted = change.check(self, namespace)?;
        let id = wanted.order.mutation.request_id;
        let served = self.route(namespace, &change, wanted, deadline, hop).await;
        served.map_err(|failure| {
            // Every other node refused it for that too.
            let deleted = failure.applied == Applied::No && self.catalogue().was_deleted(namespace.id);
            let failure = if deleted { deleted_meanwhile(namespace) } else { failure };
            failure.of_request(id)
        })
    }

    async fn route(
        self: &Arc<Self>,
        namespace: &Namespace,
        change: &Change,
        wanted: Wanted,
        deadline: Instant,
        hop: Hop,
    ) -> Result<Answer, Failure> {
        let view = &wanted.view;
        if self.may_coordinate(view) {
            return self.coordinate(namespace, change, wanted, &[], deadline).await;
        }
        let may_stand_in = !wanted.strict && view.fallbacks.contains(&self.me);
        if hop == Hop::Forwarded {
            if may_stand_in {
                return self.coordinate(namespace, change, wanted, &[], deadline).await;
            }
            let message = format!("{} cannot coordinate this key now", self.me);
            return Err(Failure::new(Reason::NotReady, message));
        }
        // On the heap: those that are coordinated here have no room for it.
        Box::pin(self.pass_on(namespace, change, wanted, deadline)).await
    }

    /// Lets another node coordinate: a primary, then this node in its place, then a fallback.
    async fn pass_on(
        self: &Arc<Self>,
        namespace: &Namespace,
        change: &Change,
        mut wanted: Wanted,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let view = &wanted.view;
        let may_stand_in = !wanted.strict && view.fallbacks.contains(&self.me);
        let (mut tried, mut open, mut unknown) = (Vec::new(), false, false);
        let mut change = change.clone();
        for primary in &view.primaries {
            if *primary == self.me || !self.is_up(*primary) {
                continue;
            }
            tried.push(*primary);
            match self.settle(*primary, view, &mut wanted.order, &mut change, deadline).await {
                Settled::Yes => {}
                Settled::Unknown | Settled::Silent => continue,
            }
            match self.forward(*primary, namespace, view, &change, deadline).await {
                Forwarded::Answer(answer) => return answer.map_err(|failure| open_if(open, failure)),
                Forwarded::Next { open: maybe } => open |= maybe,
            }
        }
        if may_stand_in {
            let answer = self.coordinate(namespace, &change, wanted, &tried, deadline).await;
            return answer.map_err(|failure| open_if(open, failure));
        }
        for fallback in view.fallbacks.iter().filter(|_| !wanted.strict) {
            if !self.is_up(*fallback) {
                continue;
            }
            match self.settle(*fallback, view, &mut wanted.order, &mut change, deadline).await {
                Settled::Yes => {}
                Settled::Silent => continue,
                Settled::Unknown => {
                    unknown = true;
                    continue;
                }
            }
            match self.forward(*fallback, namespace, view, &change, deadline).await {
                Forwarded::Answer(answer) => return answer.map_err(|failure| open_if(open, failure)),
                Forwarded::Next { open: maybe } => open |= maybe,
            }
        }
        if unknown {
            return Err(open_if(open, nothing_to_delete()));
        }
        Err(not_met(NotMet { needed: usize::from(wanted.w), reached: 0 }, open))
    }

    /// A forward that is given up may still arrive, seconds later. What it supersedes is therefore settled
    /// before anything is sent: both twins are the same write, and the late one drops nothing that came
    /// between.
    async fn settle(
        self: &Arc<Self>,
        at: NodeId,
        view: &View,
        order: &mut Order,
        change: &mut Change,
        deadline: Instant,
    ) -> Settled {
        if matches!(order.supersedes, Supersedes::Observed)
            && order.is_resent()
            && !kv_types::mutant!(ObservedResendSupersedes)
        {
            // As the one who mints it would: a resend is never told from a late twin by what is observed now.
            // One that deletes is answered by who has its trace alone, and supersedes nothing on the way.
            if order.value.is_some() {
                change.supersede(WriteContext::Blind);
                order.supersedes = Supersedes::Nothing;
            }
            return Settled::Yes;
        }
        if matches!(order.supersedes, Supersedes::Observed) {
            let Some((seen, knows)) = self.observe(at, view, deadline).await else { return Settled::Silent };
            if !knows && order.value.is_none() {
                return Settled::Unknown;
            }
            let token = view.context_of(&seen);
            change.supersede(WriteContext::Causal(token));
            order.supersedes = Supersedes::Seen(seen);
        }
        Settled::Yes
    }

    /// Passes a request on to a node that can coordinate it.
    async fn forward(
        &self,
        to: NodeId,
        namespace: &Namespace,
        view: &View,
        change: &Change,
        deadline: Instant,
    ) -> Forwarded {
        let until = deadline.min(Instant::now() + self.config.forward_patience);
        let call = self.peers.call(to, Lane::Data, view.address(), change.forward(namespace), until);
        tokio::pin!(call);
        let reply = loop {
            tokio::select! {
                biased;
                reply = &mut call => break reply,
                () = tokio::time::sleep(limits::LOOK_AROUND) => {
                    if !self.is_up(to) {
                        return Forwarded::Next { open: true };
                    }
                }
            }
        };
        match reply {
            Ok(response_frame::Body::Forward(peer::ForwardReply { response: Some(response) })) => {
                Forwarded::answer(Answer::try_from(response).map(Answer::forwarded))
            }
            Ok(_) => Forwarded::answer(Err(Failure::new(
                Reason::Internal,
                format!("{to} sent an unexpected response type"),
            ))),
            Err(PeerError::Refused(failure))
                if failure.applied == Applied::No && is_of_the_node(failure.reason) =>
            {
                Forwarded::Next { open: false }
            }
            Err(PeerError::Refused(failure)) => Forwarded::answer(Err(failure)),
            Err(error) => Forwarded::Next { open: error.was_sent() },
        }
    }

    /// Mints, waits for the log, and begins to spread the write; the task goes on when the caller is gone.
    async fn coordinate(
        self: &Arc<Self>,
        namespace: &Namespace,
        change: &Change,
        wanted: Wanted,
        avoid: &[NodeId],
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let busy = |_| {
            Failure::new(Reason::Overloaded, "this node coordinates as many requests as it may")
                .retry_after_ms(50)
        };
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(busy)?;
        if Instant::now() >= deadline {
            return Err(Failure::new(
                Reason::DeadlineExpired,
                "the deadline passed before the write was begun",
            ));
        }
        let plan = self.plan(&wanted.view, wanted.w, wanted.strict, avoid);
        let quorum = WriteCoordinator::new(plan).map_err(|missing| not_met(missing, false))?;
        let (place, catalogue) = (wanted.view.place.clone(), Arc::clone(&wanted.view.catalogue));
        let (sender, answer) = oneshot::channel();
        let spread = Spread {
            node: Arc::clone(self),
            promised: namespace.guarantee,
            wanted,
            quorum,
            deadline,
            noting: FuturesUnordered::new(),
            notes: 0,
            answer: Some(sender),
            _room: room,
        };
        // On the heap: a task of that size is aligned as few allocators do quickly.
        tokio::spawn(Box::pin(spread.run()));
        let lost = |_| Failure::new(Reason::Internal, "the coordinator ended without an answer");
        let Account { covered, receipt } = answer.await.map_err(lost)??;
        let context = context_of(&catalogue, &place, &covered);
        Ok(Answer { outcome: change.outcome(context), receipt })
    }
}

fn open_if(open: bool, failure: Failure) -> Failure {
    if open && failure.applied == Applied::No { failure.after_sending() } else { failure }
}

fn deleted_meanwhile(namespace: &Namespace) -> Failure {
    Failure::new(Reason::NamespaceUnknown, format!("namespace `{}` was deleted", namespace.name))
}

/// A refusal that is about the node that was asked, not about the request.
fn is_of_the_node(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NotReady
            | Reason::ShuttingDown
            | Reason::Overloaded
            | Reason::WrongEpoch
            | Reason::WrongNode
            | Reason::LimitHints
            | Reason::LimitRequests
            | Reason::LimitStorage
            | Reason::StorageFailed
            | Reason::NamespaceUnknown
            | Reason::DeadlineExpired
    )
}

pub(crate) fn not_met(missing: NotMet, sent: bool) -> Failure {
    let reason = if sent { Reason::PartialWrite } else { Reason::QuorumNotMet };
    let (reached, is) = (counted(missing.reached, "node", "nodes"), noun(missing.needed, "is", "are"));
    let message = format!("{reached} can be reached; {} {is} needed", missing.needed);
    Failure::new(reason, message)
        .with("reachable", missing.reached)
        .with("required", missing.needed)
        .retry_after_ms(100)
}

/// A write on its way to W nodes, and then to the other primaries.
struct Spread {
    node: Arc<Node>,
    promised: kv_types::Guarantee,
    wanted: Wanted,
    quorum: WriteCoordinator,
    deadline: Instant,
    /// Hints that are being noted here: whether each was.
    noting: FuturesUnordered<BoxFuture<'static, bool>>,
    /// Hints noted here.
    notes: u32,
    answer: Option<oneshot::Sender<Result<Account, Failure>>>,
    _room: OwnedSemaphorePermit,
}

impl Spread {
    async fn run(mut self) {
        let view = &self.wanted.view;
        let primary = view.primaries.contains(&self.node.me);
        let role = if primary { Role::Primary } else { Role::Fallback(&view.primaries) };
        let mint = self.node.replica.mint(&view.place, role, &self.wanted.order, self.deadline);
        let minted = match mint.await {
            Ok(minted) => minted,
            Err(failure) => return self.reply(Err(failure)),
        };
        if let Err(failure) = self.node.durable_by(minted.position, self.deadline).await {
            // It is in the log and will be durable yet: the others get it then. A fallback's copy is a hint
            // already.
            let (me, mut lacking) = (self.node.me, if primary { view.primaries.clone() } else { Vec::new() });
            lacking.retain(|target| *target != me);
            for target in lacking {
                self.note(&minted, target);
            }
            self.reply(Err(Failure { reason: Reason::PartialWrite, ..failure }.after_sending()));
        } else {
            self.spread(minted).await;
        }
        while let Some(noted) = self.noting.next().await {
            self.notes += u32::from(noted);
        }
    }

    fn reply(&mut self, answer: Result<Account, Failure>) {
        if let Some(sender) = self.answer.take() {
            // The caller may have gone; the write goes on without it.
            let _ = sender.send(answer);
        }
    }

    async fn spread(&mut self, minted: Minted) {
        let begun = Instant::now();
        let record = minted.state.encode();
        let mut calls = FuturesUnordered::new();
        let mut actions = self.quorum.begin(begun.elapsed());
        loop {
            for action in std::mem::take(&mut actions) {
                match action {
                    WriteAction::Send { to, hint_for } => {
                        let (_, body) = replica_write(&self.wanted.view.place, record.clone(), hint_for);
                        let (node, about, deadline) =
                            (Arc::clone(&self.node), self.wanted.view.address(), self.deadline);
                        let slice = self.wanted.view.place.slice;
                        calls.push(async move {
                            let reply = match node.peers.call(to, Lane::Data, about, body, deadline).await {
                                Ok(response_frame::Body::ReplicaWrite(reply)) if reply.fsynced => Reply::Ok,
                                _ if kv_types::mutant!(SilenceAsAck) => Reply::Ok,
                                Err(PeerError::Refused(failure)) => {
                                    node.replica.learn_of_reuse(slice, &failure).await;
                                    Reply::Failed
                                }
                                _ => Reply::Failed,
                            };
                            (to, reply)
                        });
                    }
                    WriteAction::HintHere { target } => self.note(&minted, target),
                    WriteAction::Done => {
                        let answer = self.account(&minted);
                        self.reply(Ok(answer));
                    }
                    WriteAction::Impossible => {
                        let reached = self.quorum.acknowledged();
                        self.reply(Err(not_met(
                            NotMet { needed: usize::from(self.wanted.w), reached },
                            true,
                        )));
                    }
                }
            }
            if self.quorum.is_settled() || (calls.is_empty() && self.answer.is_none()) {
                break;
            }
            let look = Instant::now() + limits::LOOK_AROUND;
            let tick = self.quorum.next_tick().map_or(look, |tick| look.min(begun + tick));
            tokio::select! {
                biased;
                Some(noted) = self.noting.next(), if !self.noting.is_empty() => self.notes += u32::from(noted),
                Some((node, reply)) = calls.next(), if !calls.is_empty() => {
                    actions = self.quorum.on_reply(node, reply, begun.elapsed());
                }
                () = sleep_until(tick.min(self.deadline)) => {
                    if Instant::now() >= self.deadline {
                        actions = self.quorum.on_deadline();
                        continue;
                    }
                    let waiting: BTreeSet<NodeId> = self.quorum.waiting_for().collect();
                    for silent in waiting.into_iter().filter(|node| !self.node.is_up(*node)) {
                        actions.extend(self.quorum.on_suspect(silent, begun.elapsed()));
                    }
                    actions.extend(self.quorum.on_tick(begun.elapsed()));
                }
            }
        }
        for action in self.quorum.on_deadline() {
            if let WriteAction::HintHere { target } = action {
                self.note(&minted, target);
            }
        }
    }

    fn note(&mut self, minted: &Minted, target: NodeId) {
        let (node, place) = (Arc::clone(&self.node), self.wanted.view.place.clone());
        let writes = minted.state.writes.clone();
        self.noting.push(Box::pin(async move {
            let deadline = Instant::now() + limits::BACKGROUND_READ;
            let noted = node.replica.note_missing(&place, target, writes, deadline).await;
            // It did not count; the target is left to read repair and anti-entropy.
            noted
                .inspect_err(|failure| {
                    tracing::warn!(%target, %failure, "a primary that missed a write could not be noted");
                })
                .is_ok()
        }));
        // Usually at once: the answer does not wait for one that has to read first, nor counts it.
        while let Some(Some(noted)) = self.noting.next().now_or_never() {
            self.notes += u32::from(noted);
        }
    }

    fn account(&self, minted: &Minted) -> Account {
        let Wanted { view, order, w, .. } = &self.wanted;
        let asked = self.quorum.asked();
        let reply = |node, fallback, answered| ReplicaReply {
            node,
            fallback,
            answered,
            fsynced: answered,
            knows: answered,
        };
        // Of one that may answer yet there is nothing to say; of one that was not asked, that it was silent.
        let told = asked.iter().filter(|asked| asked.answered || !asked.is_awaited());
        let told = told.map(|asked| reply(asked.node, asked.stands_in_for.is_some(), asked.answered));
        let unasked = view.primaries.iter().filter(|node| !asked.iter().any(|asked| asked.node == **node));
        let replies: Vec<ReplicaReply> = told.chain(unasked.map(|node| reply(*node, false, false))).collect();
        let acknowledged = replies.iter().filter(|reply| reply.answered);
        let primaries = acknowledged.clone().filter(|reply| !reply.fallback).count();
        let elsewhere = acknowledged.filter(|reply| reply.fallback && reply.node != self.node.me).count();
        let i_stand_in = !view.primaries.contains(&self.node.me);
        let here = if i_stand_in { view.primaries.len() } else { 0 };
        let evidence = AvailableEvidence {
            n: view.replication.n,
            r: view.replication.r,
            w: *w,
            strict: primaries >= usize::from(*w),
            settled: primaries >= usize::from(view.replication.w),
            hints: self.notes + u32::try_from(elsewhere + here).unwrap_or(u32::MAX),
            repair: false,
            siblings: u32::try_from(minted.state.record.values().len()).unwrap_or(u32::MAX),
            staleness_bound_ms: None,
            replies,
        };
        let Mutation { attempt, .. } = order.mutation;
        let mut receipt = Receipt {
            promised: self.promised,
            epoch: view.epoch,
            served_by: self.node.me,
            attempts: attempt,
            deduplicated: minted.deduplicated,
            degraded: Vec::new(),
            evidence: Evidence::Available(evidence),
        };
        if elsewhere > 0 {
            receipt.degrade(Degradation::Fallback);
        }
        if i_stand_in {
            receipt.degrade(Degradation::Fallback);
            receipt.degrade(Degradation::FallbackCoordinator);
        }
        let heard = |node: &NodeId| asked.iter().any(|a| a.node == *node && (a.answered || a.is_awaited()));
        if !view.primaries.iter().all(heard) {
            receipt.degrade(Degradation::PrimarySilent);
        }
        Account { covered: minted.covered.clone(), receipt }
    }
}
