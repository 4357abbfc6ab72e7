//! Rounds that callers share: a caller takes part in the next round to begin, never in one that has begun, so
//! that what the round finds is from after the call. Callers that are ready together, such as the reads of
//! one frame, cost one round.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

type Round<T> = Shared<BoxFuture<'static, T>>;

/// Rounds that each find a `T`. Its callers drive a round; without any, it stands still.
pub(crate) struct Rounds<T: Clone> {
    /// The round that callers may still take part in. It has not begun.
    next: Arc<Mutex<Option<Round<T>>>>,
}

impl<T: Clone> Default for Rounds<T> {
    fn default() -> Self {
        Self { next: Arc::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> Rounds<T> {
    /// What a round finds that begins after this call, with all callers that are ready by then. `round`
    /// makes one, and is called where none is to begin.
    pub(crate) fn next<F>(&self, round: impl FnOnce() -> F) -> Round<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        next.get_or_insert_with(|| self.begin(round())).clone()
    }

    fn begin<F>(&self, round: F) -> Round<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        // Not one that keeps itself alive.
        let next = Arc::downgrade(&self.next);
        let close = move || {
            if let Some(next) = next.upgrade() {
                *next.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
        };
        let round = async move {
            // Callers that are ready to run now run first, and take part.
            Woken::default().await;
            if kv_types::mutant!(ReadJoinsLate) {
                let found = round.await;
                close();
                return found;
            }
            close();
            round.await
        };
        round.boxed().shared()
    }
}

/// Gives way once: ready when the runtime has woken it. Each caller of a round polls it, which alone does not
/// make it ready, as it would the yield of the runtime.
#[derive(Default)]
struct Woken {
    flag: Option<Arc<Flag>>,
}

struct Flag {
    raised: AtomicBool,
    round: Waker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.raised.store(true, Ordering::Release);
        self.round.wake_by_ref();
    }
}

impl Future for Woken {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(flag) = &self.flag {
            return if flag.raised.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending };
        }
        let flag = Arc::new(Flag { raised: AtomicBool::new(false), round: cx.waker().clone() });
        self.flag = Some(flag.clone());
        let waker = Waker::from(flag);
        // It remembers the waker, and is not needed any more.
        pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use tokio::sync::Semaphore;

    use super::*;

    /// A round that counts itself as it begins, and ends when `gate` lets it.
    fn counted(begun: &Arc<AtomicU64>, gate: &Arc<Semaphore>) -> impl Future<Output = u64> + Send + use<> {
        let (begun, gate) = (begun.clone(), gate.clone());
        async move {
            let number = begun.fetch_add(1, Ordering::SeqCst) + 1;
            gate.acquire().await.expect("open").forget();
            number
        }
    }

    async fn until_begun(begun: &AtomicU64, rounds: u64) {
        while begun.load(Ordering::SeqCst) < rounds {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn callers_that_are_ready_together_share_a_round() {
        let (begun, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(100)));
        let rounds = Arc::new(Rounds::default());
        // Each asks when it runs for the first time. Not more than the runtime runs in one go.
        let ask = || {
            let (rounds, begun, gate) = (rounds.clone(), begun.clone(), gate.clone());
            tokio::spawn(async move { rounds.next(|| counted(&begun, &gate)).await })
        };
        let asked: Vec<_> = (0..30).map(|_| ask()).collect();
        for found in asked {
            assert_eq!(found.await.expect("no panic"), 1);
        }
    }

    /// What a round that has begun finds may be from before the call.
    #[tokio::test]
    async fn a_caller_never_takes_part_in_a_round_that_has_begun() {
        let (begun, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let rounds = Arc::new(Rounds::default());
        let first = tokio::spawn(rounds.next(|| counted(&begun, &gate)));
        until_begun(&begun, 1).await;
        let second = tokio::spawn(rounds.next(|| counted(&begun, &gate)));
        let third = tokio::spawn(rounds.next(|| counted(&begun, &gate)));
        // The first has not ended.
        let join = async {
            until_begun(&begun, 2).await;
            gate.add_permits(2);
            (first.await.expect("no panic"), second.await.expect("no panic"), third.await.expect("no panic"))
        };
        let found = tokio::time::timeout(std::time::Duration::from_secs(10), join).await;
        let (first, second, third) = found.expect("the second round begins while the first is under way");
        assert_eq!((first, second, third), (1, 2, 2));
    }

    /// A caller that leaves takes no round with it, begun or not.
    #[tokio::test]
    async fn a_round_goes_on_for_those_who_stay() {
        let (begun, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let rounds = Rounds::default();
        // No caller polls it before it is dropped: the next caller finds it and begins it.
        drop(rounds.next(|| counted(&begun, &gate)));
        let first = tokio::spawn(rounds.next(|| counted(&begun, &gate)));
        let second = tokio::spawn(rounds.next(|| counted(&begun, &gate)));
        until_begun(&begun, 1).await;
        first.abort();
        gate.add_permits(1);
        assert_eq!(second.await.expect("no panic"), 1);
        // With all callers gone it ends.
        let third = tokio::spawn(rounds.next(|| counted(&begun, &gate)));
        until_begun(&begun, 2).await;
        third.abort();
        assert!(third.await.is_err());
        gate.add_permits(1);
        assert_eq!(rounds.next(|| counted(&begun, &gate)).await, 3);
    }
}
