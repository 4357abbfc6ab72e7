//! The way of proposals into a group. A few are with Raft, as many as keep a quorum busy; the others wait here,
//! where the turn goes by namespace and client, and not in the log, where it goes by arrival. So a calm client
//! waits for what is with Raft and for a turn of each other client, not for all that others have asked for. What
//! waits here was not proposed: its caller takes it back at the deadline, and nothing is *unknown*.
//!
//! All of it is within the account of the group (`backlog`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kv_types::{ClientId, NamespaceId};
use openraft::OptionalSend;
use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResponse;
use openraft::raft::responder::Responder;
use tokio::sync::{Notify, oneshot};

use crate::backlog::{Backlog, Full, Load};
use crate::config::TypeConfig;
use crate::fair_queue::{FairQueue, Spot};
use crate::limits::PROPOSAL_OVERHEAD_BYTES;
use crate::proposal::Proposal;

/// What Raft made of a proposal.
pub(crate) type Decided = Result<ClientWriteResponse<TypeConfig>, ClientWriteError<TypeConfig>>;

/// What becomes of a proposal that was let in. No answer at all: Raft had it and stopped.
#[derive(Debug)]
pub(crate) enum Answer<T> {
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
pub(crate) type Handed = (Proposal, Answering<Decided>);

/// Where a proposal went that was let in.
pub(crate) enum Entry {
    /// It is to go to Raft at once.
    Now(Handed),
    /// It waits for its turn.
    Waits(Ticket),
}

/// The queue and the account of one group, shared by those who propose, the proposer, and what is under way.
#[derive(Debug, Clone)]
pub(crate) struct Ingest(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Told when something that waits may go to Raft, or the group stops.
    wake: Notify,
}

#[derive(Debug)]
struct State {
    account: Backlog,
    queue: FairQueue<Handed>,
    /// What Raft has and is not applied.
    pipeline: Load,
    pipeline_bound: Load,
    stopped: bool,
}

impl State {
    /// Whether Raft may be given so much now: within the bound, or alone.
    fn may_go(&self, bytes: u64) -> bool {
        let one = Load { entries: 1, bytes };
        self.pipeline.entries == 0 || self.pipeline.plus(one).fits(self.pipeline_bound)
    }

    fn next_may_go(&mut self) -> bool {
        self.queue.next_cost().is_some_and(|bytes| self.may_go(bytes))
    }
}

impl Ingest {
    /// An empty one, with the bounds of the account and of what Raft is given at a time.
    pub(crate) fn new(account: Load, pipeline: Load) -> Self {
        let state = State {
            account: Backlog::new(account),
            queue: FairQueue::default(),
            pipeline: Load::default(),
            pipeline_bound: pipeline,
            stopped: false,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), wake: Notify::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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

    /// Lets a proposal in. Where nothing waits and Raft may be given more, it need not wait for its turn.
    pub(crate) fn admit(
        &self,
        namespace: NamespaceId,
        client: ClientId,
        proposal: Proposal,
    ) -> Result<(Entry, oneshot::Receiver<Answer<Decided>>), Refusal> {
        let bytes =
            u64::try_from(proposal.0.len()).unwrap_or(u64::MAX).saturating_add(PROPOSAL_OVERHEAD_BYTES);
        let mut state = self.lock();
        if state.stopped {
            return Err(Refusal::Stopped);
        }
        state.account.admit(namespace, bytes).map_err(Refusal::Full)?;
        let (answer, waiting) = oneshot::channel();
        let at_once = state.queue.is_empty() && state.may_go(bytes);
        let place = Place { ingest: self.clone(), namespace, bytes, with_raft: at_once };
        let answering = Answering { answer, place };
        if at_once {
            state.pipeline = state.pipeline.plus(Load { entries: 1, bytes });
            return Ok((Entry::Now((proposal, answering)), waiting));
        }
        let spot = state.queue.push(namespace, client, bytes, (proposal, answering));
        Ok((Entry::Waits(Ticket { ingest: self.clone(), spot }), waiting))
    }

    /// Takes what may go to Raft now, in its order; waits until there is something. `None` when the group has
    /// stopped.
    pub(crate) async fn turn(&self) -> Option<Vec<Handed>> {
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

    fn take(&self, state: &mut State) -> Vec<Handed> {
        let mut handed = Vec::new();
        while state.next_may_go()
            && let Some((proposal, mut answering)) = state.queue.pop()
        {
            let one = Load { entries: 1, bytes: answering.place.bytes };
            assert!(!answering.place.with_raft, "what waits is not with Raft");
            answering.place.with_raft = true;
            state.pipeline = state.pipeline.plus(one);
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
            answering.send(Answer::NeverProposed);
        }
    }
}

/// A proposal that waits for its turn. Dropped, it takes it back if it has not had it.
#[derive(Debug)]
pub(crate) struct Ticket {
    ingest: Ingest,
    spot: Spot,
}

impl Ticket {
    /// Takes the proposal back. False if Raft has it.
    pub(crate) fn withdraw(&self) -> bool {
        let withdrawn = {
            let mut state = self.ingest.lock();
            if kv_types::mutant!(WithdrawnProposed) {
                return state.queue.has(self.spot);
            }
            state.queue.withdraw(self.spot)
        };
        // Its place takes the lock, and tells the proposer when the next one may go.
        withdrawn.is_some()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// A proposal's place in the account.
#[derive(Debug)]
struct Place {
    ingest: Ingest,
    namespace: NamespaceId,
    bytes: u64,
    /// Raft has it, or it is on its way there.
    with_raft: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let wake = {
            let mut state = self.ingest.lock();
            state.account.settle(self.namespace, self.bytes);
            if self.with_raft {
                let left = state.pipeline.minus(Load { entries: 1, bytes: self.bytes });
                assert!(left.is_some(), "a proposal leaves Raft once");
                state.pipeline = left.unwrap_or_default();
            }
            state.next_may_go()
        };
        if wake {
            self.ingest.0.wake.notify_one();
        }
    }
}

/// Carries the result of a proposal to who waits for it, and the proposal's place in the account: the place is
/// free when Raft is done with the proposal, whether or not a caller still waits.
#[derive(Debug)]
pub(crate) struct Answering<T> {
    answer: oneshot::Sender<Answer<T>>,
    place: Place,
}

impl<T> Answering<T> {
    fn send(self, answer: Answer<T>) {
        // First: who is answered finds room for the next one.
        drop(self.place);
        // The caller may have left at its deadline.
        let _ = self.answer.send(answer);
    }
}

impl<T: OptionalSend + 'static> Responder<TypeConfig, T> for Answering<T> {
    fn on_complete(self, result: T) {
        self.send(Answer::Decided(result));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::time::timeout;

    use super::*;

    const ACCOUNT: Load = Load { entries: 1_000, bytes: 1 << 30 };

    fn ingest(entries: u64) -> Ingest {
        Ingest::new(ACCOUNT, Load { entries, bytes: 1 << 20 })
    }

    fn proposal(bytes: usize) -> Proposal {
        Proposal(Bytes::from(vec![0; bytes]))
    }

    struct Asked {
        entry: Entry,
        answer: oneshot::Receiver<Answer<Decided>>,
    }

    fn ask(ingest: &Ingest, namespace: u64, client: u128, bytes: usize) -> Asked {
        let admitted = ingest.admit(NamespaceId(namespace), ClientId(client), proposal(bytes));
        let (entry, answer) = admitted.unwrap();
        Asked { entry, answer }
    }

    fn now(asked: Asked) -> Handed {
        match asked.entry {
            Entry::Now(handed) => handed,
            Entry::Waits(_) => panic!("it waits"),
        }
    }

    fn waits(asked: Asked) -> (Ticket, oneshot::Receiver<Answer<Decided>>) {
        match asked.entry {
            Entry::Waits(ticket) => (ticket, asked.answer),
            Entry::Now(_) => panic!("it goes at once"),
        }
    }

    async fn turn(ingest: &Ingest) -> Vec<Handed> {
        timeout(Duration::from_secs(5), ingest.turn()).await.expect("something may go").expect("it runs")
    }

    async fn nothing_goes(ingest: &Ingest) {
        assert!(timeout(Duration::from_millis(20), ingest.turn()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn raft_has_so_many_and_the_others_wait_for_their_turn() {
        let ingest = ingest(2);
        let mut with_raft = vec![now(ask(&ingest, 1, 1, 10)), now(ask(&ingest, 1, 2, 10))];
        let flood: Vec<_> = (0..20).map(|n| waits(ask(&ingest, 1, n, 4_000))).collect();
        let (_calm, calm_answer) = waits(ask(&ingest, 2, 9, 10));
        assert_eq!(ingest.total().entries, 23);
        nothing_goes(&ingest).await;
        let mut order = Vec::new();
        while let Some((_, answering)) = with_raft.pop() {
            drop(answering);
            if ingest.total().entries == 1 {
                break;
            }
            for handed in turn(&ingest).await {
                order.push(handed.1.place.namespace.0);
                with_raft.insert(0, handed);
            }
            assert!(with_raft.len() <= 2);
        }
        let calm = order.iter().position(|namespace| *namespace == 2).unwrap();
        assert!(calm <= 2, "after a turn of the other: {order:?}");
        assert_eq!(order.len(), 21);
        drop(with_raft);
        assert_eq!(ingest.total(), Load::default());
        // Dropped by Raft: there is no answer.
        assert!(calm_answer.await.is_err());
        drop(flood);
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
        let ingest = ingest(1);
        let first = now(ask(&ingest, 1, 1, 10));
        let (late, _answer) = waits(ask(&ingest, 1, 1, 10));
        let (left, _) = waits(ask(&ingest, 1, 2, 10));
        let (stays, _) = waits(ask(&ingest, 1, 3, 10));
        assert!(late.withdraw());
        assert!(!late.withdraw(), "once");
        drop(left);
        assert_eq!(ingest.total().entries, 2);
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
        let ingest = ingest(1);
        let first = now(ask(&ingest, 1, 1, 10));
        let (_ticket, answer) = waits(ask(&ingest, 1, 1, 10));
        ingest.stop();
        assert!(matches!(answer.await, Ok(Answer::NeverProposed)));
        drop(first);
        assert!(ingest.turn().await.is_none());
        let refused = ingest.admit(NamespaceId(1), ClientId(1), proposal(1));
        assert!(matches!(refused, Err(Refusal::Stopped)));
        assert_eq!(ingest.total(), Load::default());
    }
}
