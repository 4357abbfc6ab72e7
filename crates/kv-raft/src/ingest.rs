//! The way of proposals into a group. A few are with Raft, as many as keep a quorum busy; the others wait
//! here, where the turn goes by namespace and client, and not in the log, where it goes by arrival. So a calm
//! client waits for what is with Raft and for a turn of each other client, not for all that others have asked
//! for; and a namespace that has little with Raft waits for no turn. What waits here was not proposed: its
//! caller takes it back at the deadline, and nothing is *unknown*.
//!
//! All of it is within the account of the group (`backlog`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kv_types::{ClientId, NamespaceId};
use openraft::raft::responder::Responder;
use openraft::{OptionalSend, RaftTypeConfig};
use tokio::sync::{Notify, oneshot};

use crate::backlog::{Backlog, Full, Load};
use crate::fair_queue::{FairQueue, Spot};
use crate::limits::{CALM_BYTES, CALM_ENTRIES, CALM_SHARE, PROPOSAL_OVERHEAD_BYTES};
use crate::proposal::Proposal;

/// What becomes of a proposal that was let in. No answer at all: Raft had it and stopped.
#[derive(Debug)]
pub(crate) enum Fate<T> {
    /// Raft has decided.
    Decided(T),
    /// The group stopped before Raft had it.
    NeverProposed,
}

/// Why a proposal is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no room in the account.
    Full(Full),
    /// The group has stopped.
    Stopped,
}

/// A proposal for Raft, with what carries its result back.
pub(crate) type Handed<T> = (Proposal, Answering<T>);

/// Where a proposal went that was let in.
pub(crate) enum Entry<T> {
    /// It is to go to Raft at once.
    Now(Handed<T>),
    /// It waits for its turn.
    Waits(Ticket<T>),
}

/// The queue and the account of one group, shared by those who propose, the proposer, and what is under way.
#[derive(Debug)]
pub(crate) struct Ingest<T>(Arc<Shared<T>>);

impl<T> Clone for Ingest<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// Told when something that waits may go to Raft, or the group stops.
    wake: Notify,
}

#[derive(Debug)]
struct State<T> {
    account: Backlog,
    queue: FairQueue<Handed<T>>,
    /// What Raft has and is not applied, but for what it got of calm namespaces.
    pipeline: Load,
    pipeline_bound: Load,
    /// What it has of each namespace, that of calm ones included.
    with_raft: BTreeMap<NamespaceId, Load>,
    stopped: bool,
}

impl<T> State<T> {
    /// Whether Raft may be given so much now: within the bound, or alone.
    fn may_go(&self, bytes: u64) -> bool {
        let one = Load { entries: 1, bytes };
        self.pipeline.entries == 0 || self.pipeline.plus(one).fits(self.pipeline_bound)
    }

    /// Whether a namespace may add to Raft at once whatever others have there, since it has little: a calm
    /// one does not wait for a turn at all. What goes this way is in no one's way: it has a bound of its own.
    fn is_calm(&self, namespace: NamespaceId, bytes: u64) -> bool {
        let allowed = CALM_ENTRIES.min(self.pipeline_bound.entries / CALM_SHARE);
        let has = self.with_raft.get(&namespace).copied().unwrap_or_default();
        let one = Load { entries: 1, bytes };
        has.plus(one).fits(Load { entries: allowed, bytes: CALM_BYTES }) && !self.queue.has_any(namespace)
    }

    fn next_may_go(&mut self) -> bool {
        self.queue.next_cost().is_some_and(|bytes| self.may_go(bytes))
    }

    /// Counts what goes to Raft.
    fn enters(&mut self, namespace: NamespaceId, bytes: u64, held: Held) {
        let one = Load { entries: 1, bytes };
        if held == Held::Pipeline {
            self.pipeline = self.pipeline.plus(one);
        }
        if held != Held::Waits {
            let has = self.with_raft.entry(namespace).or_default();
            *has = has.plus(one);
        }
    }

    fn leaves(&mut self, namespace: NamespaceId, bytes: u64, held: Held) {
        let one = Load { entries: 1, bytes };
        if held == Held::Waits {
            return;
        }
        let has = self.with_raft.get(&namespace).and_then(|has| has.minus(one));
        let pipeline = if held == Held::Pipeline { self.pipeline.minus(one) } else { Some(self.pipeline) };
        assert!(has.is_some() && pipeline.is_some(), "a proposal leaves Raft once");
        self.pipeline = pipeline.unwrap_or_default();
        match has {
            Some(has) if has.entries > 0 => self.with_raft.insert(namespace, has),
            _ => self.with_raft.remove(&namespace),
        };
    }
}

impl<T> Ingest<T> {
    /// An empty one, with the bounds of the account and of what Raft is given at a time.
    pub(crate) fn new(account: Load, pipeline: Load) -> Self {
        let state = State {
            account: Backlog::new(account),
            queue: FairQueue::default(),
            pipeline: Load::default(),
            pipeline_bound: pipeline,
            with_raft: BTreeMap::new(),
            stopped: false,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), wake: Notify::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits or is with Raft.
    pub(crate) fn total(&self) -> Load {
        self.lock().account.total()
    }

    /// What may wait or be with Raft.
    pub(crate) fn bound(&self) -> Load {
        self.lock().account.bound()
    }

    /// Lets a proposal in. It need not wait for its turn where nothing waits and Raft may be given
    /// more, or where its namespace has little there.
    pub(crate) fn admit(
        &self,
        namespace: NamespaceId,
        client: ClientId,
        proposal: Proposal,
    ) -> Result<(Entry<T>, oneshot::Receiver<Fate<T>>), Refusal> {
        let bytes =
            u64::try_from(proposal.0.len()).unwrap_or(u64::MAX).saturating_add(PROPOSAL_OVERHEAD_BYTES);
        let mut state = self.lock();
        if state.stopped {
            return Err(Refusal::Stopped);
        }
        state.account.admit(namespace, bytes).map_err(Refusal::Full)?;
        let (answer, waiting) = oneshot::channel();
        let held = match () {
            () if state.queue.is_empty() && state.may_go(bytes) => Held::Pipeline,
            () if state.is_calm(namespace, bytes) => Held::Calm,
            () => Held::Waits,
        };
        let share = Share { ingest: self.clone(), namespace, bytes, held };
        let answering = Answering { answer, share };
        if held == Held::Waits {
            let spot = state.queue.push(namespace, client, bytes, (proposal, answering));
            return Ok((Entry::Waits(Ticket { ingest: self.clone(), spot }), waiting));
        }
        state.enters(namespace, bytes, held);
        Ok((Entry::Now((proposal, answering)), waiting))
    }

    /// Takes what may go to Raft now, in its order; waits until there is something. `None` when the group has
    /// stopped. For one task: what it took and drops is *unknown* to its callers.
    pub(crate) async fn turn(&self) -> Option<Vec<Handed<T>>> {
        loop {
            let woken = self.0.wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let handed = {
                let mut state = self.lock();
                if state.stopped {
                    return None;
                }
                self.take(&mut state)
            };
            if !handed.is_empty() {
                return Some(handed);
            }
            woken.await;
        }
    }

    fn take(&self, state: &mut State<T>) -> Vec<Handed<T>> {
        let mut handed = Vec::new();
        while state.next_may_go()
            && let Some((proposal, mut answering)) = state.queue.pop()
        {
            let share = &mut answering.share;
            assert!(share.held == Held::Waits, "what waits is not with Raft");
            share.held = Held::Pipeline;
            state.enters(share.namespace, share.bytes, Held::Pipeline);
            handed.push((proposal, answering));
        }
        handed
    }

    /// Lets nothing in any more and nothing go to Raft; what waits is told.
    pub(crate) fn stop(&self) {
        let waiting: Vec<_> = {
            let mut state = self.lock();
            state.stopped = true;
            std::iter::from_fn(|| state.queue.pop()).collect()
        };
        self.0.wake.notify_one();
        for (_, answering) in waiting {
            answering.send(Fate::NeverProposed);
        }
    }
}

/// A proposal that waits for its turn. Dropped, it takes it back if it has not had it.
#[derive(Debug)]
pub(crate) struct Ticket<T> {
    ingest: Ingest<T>,
    spot: Spot,
}

impl<T> Ticket<T> {
    /// Takes the proposal back. False if Raft has it.
    pub(crate) fn withdraw(&self) -> bool {
        let withdrawn = {
            let mut state = self.ingest.lock();
            if kv_types::mutant!(WithdrawnProposed) {
                return state.queue.has(self.spot);
            }
            state.queue.withdraw(self.spot)
        };
        // Its share takes the lock, and tells the proposer when the next one may go.
        withdrawn.is_some()
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// Where a proposal counts besides the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// Nowhere: it waits for its turn.
    Waits,
    /// Raft has it, or it is on its way there.
    Pipeline,
    /// The same, of a calm namespace.
    Calm,
}

/// A proposal's share of the account.
#[derive(Debug)]
struct Share<T> {
    ingest: Ingest<T>,
    namespace: NamespaceId,
    bytes: u64,
    held: Held,
}

impl<T> Drop for Share<T> {
    fn drop(&mut self) {
        let wake = {
            let mut state = self.ingest.lock();
            state.account.settle(self.namespace, self.bytes);
            state.leaves(self.namespace, self.bytes, self.held);
            state.next_may_go()
        };
        if wake {
            self.ingest.0.wake.notify_one();
        }
    }
}

/// Carries the result of a proposal to who waits for it, and the proposal's share of the account: that
/// is free when Raft is done with the proposal, whether or not a caller still waits.
#[derive(Debug)]
pub(crate) struct Answering<T> {
    answer: oneshot::Sender<Fate<T>>,
    share: Share<T>,
}

impl<T> Answering<T> {
    fn send(self, answer: Fate<T>) {
        // First: who is answered finds room for the next one.
        drop(self.share);
        // The caller may have left at its deadline.
        let _ = self.answer.send(answer);
    }
}

impl<C: RaftTypeConfig, T: OptionalSend + 'static> Responder<C, T> for Answering<T> {
    fn on_complete(self, result: T) {
        self.send(Fate::Decided(result));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::time::timeout;

    use super::*;

    type Queue = Ingest<u8>;

    const ACCOUNT: Load = Load { entries: 1_000, bytes: 1 << 30 };

    fn ingest(entries: u64) -> Queue {
        Ingest::new(ACCOUNT, Load { entries, bytes: 1 << 20 })
    }

    fn proposal(bytes: usize) -> Proposal {
        Proposal(Bytes::from(vec![0; bytes]))
    }

    struct Asked {
        entry: Entry<u8>,
        answer: oneshot::Receiver<Fate<u8>>,
    }

    fn ask(ingest: &Queue, namespace: u64, client: u128, bytes: usize) -> Asked {
        let admitted = ingest.admit(NamespaceId(namespace), ClientId(client), proposal(bytes));
        let (entry, answer) = admitted.unwrap();
        Asked { entry, answer }
    }

    fn now(asked: Asked) -> Handed<u8> {
        match asked.entry {
            Entry::Now(handed) => handed,
            Entry::Waits(_) => panic!("it waits"),
        }
    }

    fn waits(asked: Asked) -> (Ticket<u8>, oneshot::Receiver<Fate<u8>>) {
        match asked.entry {
            Entry::Waits(ticket) => (ticket, asked.answer),
            Entry::Now(_) => panic!("it goes at once"),
        }
    }

    async fn turn(ingest: &Queue) -> Vec<Handed<u8>> {
        timeout(Duration::from_secs(5), ingest.turn()).await.expect("something may go").expect("it runs")
    }

    async fn nothing_goes(ingest: &Queue) {
        assert!(timeout(Duration::from_millis(20), ingest.turn()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn raft_has_so_many_and_the_others_wait_for_their_turn() {
        let ingest = ingest(8);
        let mut with_raft: Vec<_> = (0..8).map(|n| now(ask(&ingest, n % 2, 1, 10))).collect();
        let flood: Vec<_> = (0..20).map(|n| waits(ask(&ingest, 0, n, 4_000))).collect();
        let (_other, other_answer) = waits(ask(&ingest, 1, 9, 10));
        assert_eq!(ingest.total().entries, 29);
        nothing_goes(&ingest).await;
        let mut order = Vec::new();
        while ingest.total().entries > 1 {
            drop(with_raft.pop());
            if order.len() < 21 {
                for handed in turn(&ingest).await {
                    order.push(handed.1.share.namespace.0);
                    with_raft.insert(0, handed);
                }
            }
            assert!(with_raft.len() <= 8);
        }
        let other = order.iter().position(|namespace| *namespace == 1).unwrap();
        assert!(other <= 2, "after a turn of the first: {order:?}");
        assert_eq!(order.len(), 21);
        drop(with_raft);
        assert_eq!(ingest.total(), Load::default());
        // Dropped by Raft: there is no answer.
        assert!(other_answer.await.is_err());
        drop(flood);
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_with_little_under_way_waits_for_no_turn() {
        let ingest = ingest(128);
        let mut flood: Vec<_> = (0..128).map(|n| now(ask(&ingest, 1, n, 4_000))).collect();
        let waiting: Vec<_> = (0..100).map(|n| waits(ask(&ingest, 1, n, 4_000))).collect();
        let mut calm: Vec<_> = (0..CALM_ENTRIES).map(|_| now(ask(&ingest, 2, 9, 10))).collect();
        let (fifth, _) = waits(ask(&ingest, 2, 9, 10));
        drop(calm.pop());
        // Behind its own that waits.
        let (sixth, _) = waits(ask(&ingest, 2, 9, 10));
        drop((fifth, sixth));
        calm.push(now(ask(&ingest, 2, 9, 10)));
        let (_large, _) = waits(ask(&ingest, 3, 9, 100 << 10));
        // However many are calm, those that wait have their turns.
        let _others: Vec<_> = (10..60).map(|namespace| now(ask(&ingest, namespace, 9, 10))).collect();
        drop(flood.pop());
        assert_eq!(turn(&ingest).await.len(), 1);
        assert_eq!(ingest.total().entries, 127 + 99 + CALM_ENTRIES + 1 + 50);
        drop(waiting);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_bound_what_raft_has_and_a_large_one_goes_alone() {
        let ingest = ingest(100);
        let first = now(ask(&ingest, 1, 1, 600 << 10));
        let (_small, _) = waits(ask(&ingest, 1, 1, 600 << 10));
        let (_large, _) = waits(ask(&ingest, 1, 1, 3 << 20));
        nothing_goes(&ingest).await;
        drop(first);
        let second = turn(&ingest).await;
        assert_eq!(second.len(), 1);
        nothing_goes(&ingest).await;
        drop(second);
        assert_eq!(turn(&ingest).await.len(), 1, "above the bound, alone");
        assert_eq!(ingest.total(), Load::default());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_back_never_goes_and_holds_nothing() {
        let ingest = ingest(CALM_ENTRIES);
        let first: Vec<_> = (0..CALM_ENTRIES).map(|_| now(ask(&ingest, 1, 1, 10))).collect();
        let (late, _answer) = waits(ask(&ingest, 1, 1, 10));
        let (left, _) = waits(ask(&ingest, 1, 2, 10));
        let (stays, _) = waits(ask(&ingest, 1, 3, 10));
        assert!(late.withdraw());
        assert!(!late.withdraw(), "once");
        drop(left);
        assert_eq!(ingest.total().entries, CALM_ENTRIES + 1);
        drop(first);
        assert_eq!(turn(&ingest).await.len(), 1);
        assert!(!stays.withdraw(), "it had its turn");
        assert_eq!(ingest.total(), Load::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_one_that_is_taken_back_lets_the_next_go() {
        let ingest = ingest(100);
        let _first = now(ask(&ingest, 1, 1, 600 << 10));
        let (large, _) = waits(ask(&ingest, 1, 1, 600 << 10));
        let (_small, _) = waits(ask(&ingest, 1, 1, 10));
        nothing_goes(&ingest).await;
        drop(large);
        assert_eq!(turn(&ingest).await.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_when_the_group_stops_was_never_proposed() {
        let ingest = ingest(CALM_ENTRIES);
        let first: Vec<_> = (0..CALM_ENTRIES).map(|_| now(ask(&ingest, 1, 1, 10))).collect();
        let (_ticket, answer) = waits(ask(&ingest, 1, 1, 10));
        ingest.stop();
        assert!(matches!(answer.await, Ok(Fate::NeverProposed)));
        drop(first);
        assert!(ingest.turn().await.is_none());
        let refused = ingest.admit(NamespaceId(1), ClientId(1), proposal(1));
        assert!(matches!(refused, Err(Refusal::Stopped)));
        assert_eq!(ingest.total(), Load::default());
    }
}
