//! The load of a benchmark: which operation comes next, on which key, and when; and what became of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use kv_client::{Available, Client, Error, Strong, WriteContext};
use kv_types::{Mode, Reason, counted};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution as _, Zipf};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, sleep_until, timeout_at};

use super::ending::Ending;
use crate::app::App;
use crate::cli::{Bench, Distribution, Workload};
use crate::exit::Exit;
use crate::problem::Problem;

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);
/// Every operation has a deadline of its own; this one is for a defect.
const LATEST: Duration = Duration::from_secs(60);
/// Skew of the popular keys: that of YCSB.
const ZIPF_EXPONENT: f64 = 0.99;
/// Random bytes of which every value is a part.
const VALUE_POOL: usize = 4 << 10;
/// Spreads the ranks over the keys, so that popular keys are no neighbours. Two ranks may share a key.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A namespace to write to and read from, whatever its side of CAP.
#[derive(Clone)]
pub(super) enum Handle {
    Strong(Strong),
    Available(Available),
}

impl Handle {
    pub(super) fn of(client: &Client, mode: Mode, namespace: &str) -> Self {
        match mode {
            Mode::Strong => Self::Strong(client.strong(namespace)),
            Mode::Available => Self::Available(client.available(namespace)),
        }
    }

    pub(super) async fn put(&self, key: &str, value: Bytes) -> Result<(), Error> {
        match self {
            Self::Strong(handle) => handle.put(key, value).await.map(drop),
            Self::Available(handle) => handle.put(key, value, WriteContext::Observed).await.map(drop),
        }
    }

    async fn get(&self, key: &str) -> Result<(), Error> {
        match self {
            Self::Strong(handle) => handle.get(key).await.map(drop),
            Self::Available(handle) => handle.get(key).await.map(drop),
        }
    }
}

/// The name of a key.
pub(super) fn key(number: u64) -> String {
    format!("bench/{number:07}")
}

/// Latencies of what was answered, up to a minute, in three digits.
pub(super) struct Tally {
    pub(super) puts_us: Histogram<u64>,
    pub(super) gets_us: Histogram<u64>,
    pub(super) not_applied: u64,
    pub(super) unknown: u64,
    pub(super) last_error: Option<Error>,
}

impl Tally {
    pub(super) fn new() -> Result<Self, Problem> {
        let histogram = || {
            Histogram::new_with_bounds(1, 60_000_000, 3)
                .map_err(|error| Problem::new(Exit::Refused, format!("cannot make a histogram: {error}")))
        };
        Ok(Self {
            puts_us: histogram()?,
            gets_us: histogram()?,
            not_applied: 0,
            unknown: 0,
            last_error: None,
        })
    }

    fn record(&mut self, write: bool, result: Result<(), Error>, latency: Duration) {
        let histogram = if write { &mut self.puts_us } else { &mut self.gets_us };
        match result {
            Ok(()) => {
                histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
            }
            Err(error) => {
                *(if error.is_unknown() { &mut self.unknown } else { &mut self.not_applied }) += 1;
                self.last_error = Some(error);
            }
        }
    }

    fn add(&mut self, other: &Self) {
        // The bounds are the same, so that nothing can fall outside.
        let _ = self.puts_us.add(&other.puts_us);
        let _ = self.gets_us.add(&other.gets_us);
        self.not_applied += other.not_applied;
        self.unknown += other.unknown;
        self.last_error = other.last_error.clone().or(self.last_error.take());
    }

    /// What was answered, whatever it was.
    pub(super) fn answered(&self) -> u64 {
        self.puts_us.len() + self.gets_us.len()
    }
}

/// The keys of one worker.
enum Keys {
    Uniform(u64),
    Zipfian(Zipf<f64>, u64),
    /// The next one that was never written, of all workers.
    New(Arc<AtomicU64>),
}

impl Keys {
    fn next(&self, random: &mut StdRng, write: bool) -> u64 {
        match self {
            Self::Uniform(keys) => random.random_range(0..*keys),
            Self::Zipfian(ranks, keys) => {
                // From 1.
                let rank = ranks.sample(random) as u64;
                scattered(rank, *keys)
            }
            Self::New(next) if write => next.fetch_add(1, Ordering::Relaxed),
            Self::New(next) => random.random_range(0..next.load(Ordering::Relaxed).max(1)),
        }
    }
}

/// The key of a rank, so that those of high ranks are no neighbours.
fn scattered(rank: u64, keys: u64) -> u64 {
    let product = u128::from(rank.wrapping_mul(SCATTER)) * u128::from(keys);
    u64::try_from(product >> 64).unwrap_or(0)
}

/// When operations begin.
struct Pace {
    begun: Instant,
    end: Instant,
    /// Of an open loop: between two of all workers, and how many have begun.
    every: Option<(Duration, AtomicU64)>,
    /// Whether no operation is begun any more.
    stopped: watch::Sender<bool>,
}

impl Pace {
    fn new(begun: Instant, end: Instant, rate: Option<f64>) -> Self {
        let every = rate.map(|rate| (Duration::from_secs_f64(1.0 / rate), AtomicU64::new(0)));
        Self { begun, end, every, stopped: watch::Sender::new(false) }
    }

    fn stop_if(&self, over: bool) {
        self.stopped.send_if_modified(|stopped| over && !std::mem::replace(stopped, true));
    }

    fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Waits until an operation is meant to begin; false if it is not begun any more.
    async fn is_due(&self, meant: Instant) -> bool {
        // A timer that is due takes up to a millisecond all the same.
        if meant <= Instant::now() {
            return true;
        }
        let mut stopped = self.stopped.subscribe();
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => false,
            () = sleep_until(meant) => true,
        }
    }

    /// When the next operation is meant to begin: now in a closed loop, by the clock in an open one, where it
    /// may be in the past. `None` at the end.
    fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        if now >= self.end || self.is_stopped() {
            return None;
        }
        let Some((every, number)) = &self.every else { return Some(now) };
        let number = number.fetch_add(1, Ordering::Relaxed);
        let since = every.as_nanos().checked_mul(number.into())?;
        Some(self.begun + Duration::from_nanos(u64::try_from(since).ok()?)).filter(|at| *at < self.end)
    }
}

/// One operation after the other, until the end.
struct Worker {
    handle: Handle,
    pace: Arc<Pace>,
    keys: Keys,
    workload: Workload,
    random: StdRng,
    pool: Bytes,
    value_size: usize,
    answered: Arc<AtomicU64>,
    gone: Arc<AtomicBool>,
}

impl Worker {
    async fn run(mut self, mut tally: Tally) -> Tally {
        while let Some(meant) = self.pace.next() {
            if !self.pace.is_due(meant).await {
                break;
            }
            let write = match self.workload {
                Workload::Put => true,
                Workload::Get => false,
                Workload::Mixed => self.random.random(),
            };
            let key = key(self.keys.next(&mut self.random, write));
            let result = if write {
                let from = self.random.random_range(0..VALUE_POOL);
                self.handle.put(&key, self.pool.slice(from..from + self.value_size)).await
            } else {
                self.handle.get(&key).await
            };
            self.answered.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
            self.gone.store(result.as_ref().is_err_and(says_gone), Ordering::Relaxed);
            tally.record(write, result, meant.elapsed());
        }
        tally
    }
}

/// Whether this is an answer of a namespace that was deleted.
fn says_gone(error: &Error) -> bool {
    matches!(error.reason(), Reason::NamespaceUnknown | Reason::DeletionPending)
}

/// What was measured.
pub(super) struct Measured {
    pub(super) total: Tally,
    /// How the namespace was found to be deleted, at the end.
    pub(super) gone: Option<Error>,
    pub(super) seconds: f64,
    pub(super) interrupted: bool,
    /// Keys that may have been written: those of smaller numbers.
    pub(super) keys: u64,
}

/// Runs a worker for every handle. Ctrl-C and SIGTERM end the load early, and what was measured until then
/// counts.
pub(super) async fn run(
    app: &App,
    handles: Vec<Handle>,
    args: &Bench,
    ending: &Ending,
) -> Result<Measured, Problem> {
    let begun = Instant::now();
    let end = begun + args.lasting;
    let pace = Arc::new(Pace::new(begun, end, args.rate));
    let answered = Arc::new(AtomicU64::new(0));
    let gone = Arc::new(AtomicBool::new(false));
    let fresh = Arc::new(AtomicU64::new(args.preloaded()));
    let mut workers = JoinSet::new();
    for (number, handle) in (0_u64..).zip(handles) {
        let mut random = StdRng::seed_from_u64(number);
        let mut pool = vec![0; args.value_size + VALUE_POOL];
        random.fill(pool.as_mut_slice());
        let worker = Worker {
            handle,
            pace: Arc::clone(&pace),
            keys: keys(args, &fresh)?,
            workload: args.workload,
            random,
            pool: pool.into(),
            value_size: args.value_size,
            answered: Arc::clone(&answered),
            gone: Arc::clone(&gone),
        };
        workers.spawn(worker.run(Tally::new()?));
    }
    let mut total = Tally::new()?;
    let mut ticks = interval_at(begun + PROGRESS, PROGRESS);
    let (mut told, mut latest, mut interrupted) = (0, end + LATEST, false);
    let asked_to_end = ending.asked(0);
    tokio::pin!(asked_to_end);
    loop {
        tokio::select! {
            biased;
            () = &mut asked_to_end, if !interrupted => {
                interrupted = true;
                pace.stop_if(true);
                latest = Instant::now() + LATEST;
                app.out.note("interrupted: what is under way is waited for");
            }
            finished = timeout_at(latest, workers.join_next()) => match finished {
                Ok(Some(Ok(tally))) => total.add(&tally),
                Ok(None) => break,
                Ok(Some(Err(error))) => return Err(Problem::new(Exit::Refused, format!("a worker failed: {error}"))),
                Err(_) => return Err(Problem::new(Exit::Refused, "a worker did not end in time")),
            },
            _ = ticks.tick() => {
                let now = answered.load(Ordering::Relaxed);
                app.out.note(format!(
                    "{:>4.0} s   {}/s",
                    begun.elapsed().as_secs_f64(),
                    counted(now - told, "operation", "operations")
                ));
                // One node may not have heard of it yet; for a second, all have.
                pace.stop_if(now == told && gone.load(Ordering::Relaxed));
                told = now;
            }
        }
    }
    let gone = total.last_error.clone().filter(|error| gone.load(Ordering::Relaxed) && says_gone(error));
    let keys = written(args, fresh.load(Ordering::Relaxed));
    // Also where the last operation of a low rate was answered before the time was over.
    let least = if pace.is_stopped() { Duration::ZERO } else { args.lasting };
    let seconds = begun.elapsed().max(least).as_secs_f64();
    Ok(Measured { total, gone, seconds, interrupted, keys })
}

/// How many keys may have been written, where the next new one would be `fresh`.
fn written(args: &Bench, fresh: u64) -> u64 {
    let by_load = match (args.workload, args.distribution) {
        (Workload::Get, _) => 0,
        (_, Distribution::New) => fresh,
        (_, Distribution::Uniform | Distribution::Zipfian) => args.keys,
    };
    by_load.max(args.preloaded())
}

fn keys(args: &Bench, fresh: &Arc<AtomicU64>) -> Result<Keys, Problem> {
    Ok(match args.distribution {
        Distribution::Uniform => Keys::Uniform(args.keys),
        Distribution::Zipfian => {
            let ranks = Zipf::new(args.keys as f64, ZIPF_EXPONENT)
                .map_err(|error| Problem::usage(format!("--keys {}: {error}", args.keys)))?;
            Keys::Zipfian(ranks, args.keys)
        }
        Distribution::New => Keys::New(Arc::clone(fresh)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::Failure;

    #[test]
    fn keys_that_may_have_been_written_are_counted() {
        use clap::Parser as _;
        let count = |line: &str, fresh| {
            let cli = crate::cli::Cli::try_parse_from(line.split(' ')).unwrap();
            let crate::cli::Command::Bench(args) = cli.command else { panic!("not a benchmark") };
            written(&args, fresh)
        };
        assert_eq!(count("kvctl bench --keys 7", 0), 7);
        assert_eq!(count("kvctl bench --keys 7 --preload 9", 0), 9);
        assert_eq!(count("kvctl bench --workload get --preload 0", 0), 0);
        assert_eq!(count("kvctl bench --workload put --distribution new", 31), 31);
    }

    #[test]
    fn tallies_add_up() {
        let (mut a, mut b) = (Tally::new().unwrap(), Tally::new().unwrap());
        a.record(true, Ok(()), Duration::from_micros(100));
        b.record(false, Ok(()), Duration::from_micros(300));
        b.record(true, Err(Failure::new(Reason::NoQuorum, "").into()), Duration::ZERO);
        b.record(true, Err(Failure::new(Reason::ResultUnknown, "").into()), Duration::ZERO);
        a.add(&b);
        assert_eq!((a.puts_us.len(), a.gets_us.len(), a.answered()), (1, 1, 2), "errors are not answers");
        assert_eq!((a.not_applied, a.unknown), (1, 1));
        assert_eq!(a.last_error.unwrap().reason(), Reason::ResultUnknown);
    }

    #[test]
    fn keys_are_drawn_as_their_distribution_says() {
        let mut random = StdRng::seed_from_u64(1);
        let mut count = |keys: &Keys| {
            let mut hits = std::collections::BTreeMap::<u64, u32>::new();
            (0..20_000).for_each(|_| *hits.entry(keys.next(&mut random, true)).or_default() += 1);
            hits
        };
        let uniform = count(&Keys::Uniform(100));
        assert_eq!((uniform.len(), uniform.keys().max()), (100, Some(&99)));
        assert!(uniform.values().all(|hits| (100..400).contains(hits)), "{uniform:?}");
        let zipfian = count(&Keys::Zipfian(Zipf::new(1_000.0, ZIPF_EXPONENT).unwrap(), 1_000));
        assert!(zipfian.keys().all(|key| *key < 1_000));
        let mut most: Vec<u32> = zipfian.values().copied().collect();
        most.sort_unstable_by(|a, b| b.cmp(a));
        assert!(most[0] > 2_000 && most[..100].iter().sum::<u32>() > 12_000, "{most:?}");
        let fresh = Arc::new(AtomicU64::new(7));
        let new = count(&Keys::New(Arc::clone(&fresh)));
        assert!(new.values().all(|hits| *hits == 1) && new.keys().min() == Some(&7));
        let read = Keys::New(fresh).next(&mut random, false);
        assert!(read < 20_007, "reads are of what is there: {read}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_begins_by_the_clock_and_a_closed_one_when_it_can() {
        let begun = Instant::now();
        let end = begun + Duration::from_millis(35);
        let pace = |rate| Pace::new(begun, end, rate);
        let open = pace(Some(100.0));
        tokio::time::advance(Duration::from_millis(15)).await;
        // Those that are late are begun all the same, and are late from when they were meant to begin.
        let meant: Vec<_> = std::iter::from_fn(|| open.next()).map(|at| (at - begun).as_millis()).collect();
        assert_eq!(meant, [0, 10, 20, 30]);
        let closed = pace(None);
        assert_eq!(closed.next(), Some(Instant::now()));
        closed.stop_if(true);
        assert_eq!(closed.next(), None);
        tokio::time::advance(Duration::from_millis(20)).await;
        assert_eq!(pace(None).next(), None);
    }
    /// Of a rate below one a second the next operation may be meant for long after the end is asked for.
    #[tokio::test(start_paused = true)]
    async fn what_waits_for_its_time_ends_when_that_is_asked() {
        let begun = Instant::now();
        let slow = Arc::new(Pace::new(begun, begun + Duration::from_secs(3_600), Some(0.001)));
        let (first, second) = (slow.next().unwrap(), slow.next().unwrap());
        assert!(slow.is_due(first).await && begun.elapsed().is_zero());
        let waits = tokio::spawn({
            let slow = Arc::clone(&slow);
            async move { slow.is_due(second).await }
        });
        sleep_until(begun + Duration::from_secs(5)).await;
        slow.stop_if(true);
        assert!(!waits.await.unwrap());
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        assert_eq!(slow.next(), None);
    }
}
