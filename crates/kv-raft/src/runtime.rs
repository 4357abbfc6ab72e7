//! openraft's view of tokio, with two differences.
//!
//! *Randomness.* Inside [`NodeRuntime::scope`] every draw follows from one seed, so that a simulated cluster
//! repeats; outside it comes from the system. (openraft's own deterministic wrapper panics outside its scope,
//! which a production node never enters.)
//!
//! *Sleep.* openraft ticks each group five times a heartbeat and keeps their phases apart on purpose; a node
//! that does nothing else is then woken for its ticks more than for anything else. Here they are woken
//! together and half as often. (openraft's wait of a microsecond for more completions of the log, of which
//! tokio's timers make a millisecond, stays as it is: without it there are more rounds, and 7 % fewer puts.)

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::Either;
use openraft::{AsyncRuntime, Instant as _, OptionalSend, TokioRuntime};
use rand::SeedableRng;
use rand::rngs::SmallRng;

tokio::task_local! {
    static SEED: Cell<u64>;
}

type Instant = <TokioRuntime as AsyncRuntime>::Instant;

/// Sleeps that are shorter are no ticks, and end on their own.
const SHORT: Duration = Duration::from_micros(100);

/// What sleeps until a moment is woken at a multiple of this after the first one, microseconds.
static TOGETHER_US: AtomicU64 = AtomicU64::new(u64::MAX);
static FIRST: OnceLock<Instant> = OnceLock::new();

/// Draws that had no seed to follow.
static UNSCOPED: AtomicU64 = AtomicU64::new(0);

/// Separates the seeds of spawned tasks from the draws of their parent.
const BRANCH: u64 = 0x9e37_79b9_7f4a_7c15;
/// Moves a task's seed forward.
const STEP: u64 = 0x6a09_e667_f3bc_c908;

/// SplitMix64: a bijection for each increment.
fn mix(seed: u64, increment: u64) -> u64 {
    let mut bits = seed.wrapping_add(increment);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The runtime of all Raft tasks of a node.
#[derive(Debug)]
pub struct NodeRuntime(TokioRuntime);

impl NodeRuntime {
    /// Everything that `future` does, and every task that it spawns through this type, draws from `seed`.
    pub fn scope<F: Future>(seed: u64, future: F) -> impl Future<Output = F::Output> {
        SEED.scope(Cell::new(seed), future)
    }

    /// The next seed of this scope; none outside a scope.
    pub(crate) fn draw() -> Option<u64> {
        let seed = SEED.try_with(|seed| seed.replace(mix(seed.get(), STEP))).ok();
        if seed.is_none() {
            UNSCOPED.fetch_add(1, Ordering::Relaxed);
        }
        seed
    }

    /// A future that a set of tasks will run, as [`AsyncRuntime::spawn`] does: it draws from a seed of its
    /// own where its parent has one.
    pub(crate) fn branch<F: Future>(future: F) -> impl Future<Output = F::Output> {
        match Self::draw() {
            Some(seed) => Either::Left(Self::scope(mix(seed, BRANCH), future)),
            None => Either::Right(future),
        }
    }

    /// From now on what sleeps until a moment is woken up to `every` later, with all others. The shortest
    /// counts that was ever asked for. A simulation has its own time, and none of this.
    pub(crate) fn wake_together(every: Duration) {
        let every = u64::try_from(every.as_micros()).unwrap_or(u64::MAX);
        TOGETHER_US.fetch_min(every.max(1), Ordering::Relaxed);
    }

    /// When to wake what sleeps until a moment.
    fn wakes_at(deadline: Instant) -> Instant {
        let now = Instant::now();
        let together = TOGETHER_US.load(Ordering::Relaxed);
        let short = deadline.saturating_duration_since(now) < SHORT;
        if short || together == u64::MAX || SEED.try_with(|_| ()).is_ok() {
            return deadline;
        }
        let first = *FIRST.get_or_init(|| now);
        if deadline <= first {
            return deadline;
        }
        let since = deadline.saturating_duration_since(first).as_micros();
        let slots = since.div_ceil(u128::from(together));
        let at = u64::try_from(slots.saturating_mul(u128::from(together))).unwrap_or(u64::MAX);
        deadline.max(first + Duration::from_micros(at))
    }

    /// How often this process drew, spawned or blocked outside every scope. A simulation ends with 0 here, or
    /// it would not repeat.
    pub fn unscoped() -> u64 {
        UNSCOPED.load(Ordering::Relaxed)
    }

    /// Runs blocking work: on a thread of its own in production, inline where threads would break the
    /// repetition.
    pub(crate) async fn blocking<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        if SEED.try_with(|_| ()).is_ok() {
            return Ok(work());
        }
        UNSCOPED.fetch_add(1, Ordering::Relaxed);
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
    }
}

impl AsyncRuntime for NodeRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(Self::branch(future))
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(Self::wakes_at(deadline))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> SmallRng {
        SmallRng::seed_from_u64(Self::draw().unwrap_or_else(|| rand::Rng::next_u64(&mut rand::rng())))
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }

    #[allow(clippy::manual_async_fn, reason = "the trait asks for a future that is Send")]
    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = io::Result<T>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        Self::blocking(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    async fn draws() -> Vec<u64> {
        let child = NodeRuntime::spawn(async { NodeRuntime::thread_rng().next_u64() });
        let own = NodeRuntime::thread_rng().next_u64();
        vec![own, child.await.unwrap(), NodeRuntime::thread_rng().next_u64()]
    }

    #[tokio::test]
    async fn a_scope_repeats_and_its_tasks_differ() {
        let first = NodeRuntime::scope(7, draws()).await;
        assert_eq!(first, NodeRuntime::scope(7, draws()).await);
        assert_ne!(first, NodeRuntime::scope(8, draws()).await);
        let mut distinct = first.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), first.len());
    }

    #[tokio::test(start_paused = true)]
    async fn what_sleeps_is_woken_together_unless_it_sleeps_for_a_moment() {
        NodeRuntime::wake_together(Duration::from_millis(40));
        let begun = Instant::now();
        NodeRuntime::sleep_until(begun + Duration::from_micros(1)).await;
        assert!(Instant::now() - begun <= Duration::from_millis(1));
        let begun = Instant::now();
        let ticks = (0..20_u64).map(|n| {
            NodeRuntime::spawn(async move {
                NodeRuntime::sleep_until(begun + Duration::from_millis(41 + n)).await;
                Instant::now() - begun
            })
        });
        let mut woken = std::collections::BTreeSet::new();
        for (tick, asked) in ticks.collect::<Vec<_>>().into_iter().zip(41_u64..) {
            let after = tick.await.unwrap();
            let late = after.saturating_sub(Duration::from_millis(asked));
            assert!(late <= Duration::from_millis(41), "{late:?} late");
            woken.insert(after);
        }
        assert!(woken.len() <= 2, "{woken:?}");
        // A simulation repeats: its time does not depend on what else this process did.
        let scoped = NodeRuntime::scope(1, async {
            let begun = Instant::now();
            NodeRuntime::sleep_until(begun + Duration::from_millis(7)).await;
            Instant::now() - begun
        });
        assert_eq!(scoped.await, Duration::from_millis(7));
    }

    #[tokio::test]
    async fn outside_a_scope_the_system_decides() {
        assert_ne!(draws().await, draws().await);
    }
}
