//! The load: closed loops that put or get, and what became of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use hdrhistogram::Histogram;
use kv_client::{Available, Client, ClientOptions, Strong, Via, WriteContext};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::etcdserverpb::kv_client::KvClient;
use crate::etcdserverpb::{PutRequest, RangeRequest};
use crate::servers::{Servers, cpu_of};

type Problem = Box<dyn std::error::Error + Send + Sync>;

/// Connections to etcd's leader, over which its operations are spread.
const ETCD_CONNECTIONS: usize = 8;
/// Keys that are read over each connection before the clock runs: some for each node.
const WARM: u64 = 16;
/// Deadline of an operation of etcd, as Quorate's client has one.
const ETCD_TIMEOUT: Duration = Duration::from_secs(2);
/// Operations that share one client of Quorate, which has one connection to each node.
const PER_CLIENT: usize = 64;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Puts of keys that were never written.
    PutNew,
    /// Puts of keys that were written before.
    PutHot,
    /// Linearizable gets.
    Get,
    /// Half puts, half gets, of keys that were written before.
    Mixed,
    /// Puts of an available namespace (W=2 of 3) beside etcd's.
    AvailablePut,
    /// Gets of an available namespace (R=1 of 3) beside etcd's.
    AvailableGet,
}

impl Workload {
    fn is_available(self) -> bool {
        matches!(self, Self::AvailablePut | Self::AvailableGet)
    }
}

/// One store, as one worker reaches it.
#[derive(Clone)]
enum Target {
    Strong(Strong),
    Available(Available),
    Etcd(KvClient<Channel>),
}

impl Target {
    async fn put(&mut self, key: String, value: Bytes) -> Result<(), Problem> {
        match self {
            Self::Strong(bank) => drop(bank.put(key, value).await?),
            Self::Available(cart) => drop(cart.put(key, value, WriteContext::Observed).await?),
            Self::Etcd(etcd) => drop(etcd.put(PutRequest { key: key.into(), value }).await?),
        }
        Ok(())
    }

    /// True if the key was there.
    async fn get(&mut self, key: String) -> Result<bool, Problem> {
        Ok(match self {
            Self::Strong(bank) => bank.get(key).await?.value.is_some(),
            Self::Available(cart) => !cart.get(key).await?.value.values.is_empty(),
            Self::Etcd(etcd) => {
                !etcd.range(RangeRequest { key: key.into() }).await?.into_inner().kvs.is_empty()
            }
        })
    }
}

/// A store under load.
pub(crate) struct Store {
    pub(crate) name: &'static str,
    pub(crate) servers: Arc<Servers>,
    /// `None`: etcd.
    pub(crate) via: Option<Via>,
    /// The next key that was never written.
    pub(crate) next: Arc<AtomicU64>,
}

/// What a run found.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Found {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Seconds of processor time of servers and client for 10,000 operations.
    pub(crate) cpu: f64,
    pub(crate) failed: u64,
}

/// What a run is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) workload: Workload,
    pub(crate) in_flight: usize,
    pub(crate) lasting: Duration,
    /// Keys that were written before.
    pub(crate) hot: u64,
    pub(crate) value: usize,
}

fn key(number: u64) -> String {
    format!("key-{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl Store {
    async fn targets(&self, count: usize, available: bool) -> Result<Vec<Target>, Problem> {
        let mut targets = Vec::new();
        match self.via {
            None => {
                let leader = self.servers.addresses.first().ok_or("etcd has an address")?;
                for _ in 0..count.min(ETCD_CONNECTIONS) {
                    let channel =
                        Endpoint::from_shared(leader.clone())?.timeout(ETCD_TIMEOUT).connect().await?;
                    targets.push(Target::Etcd(KvClient::new(channel)));
                }
            }
            Some(via) => {
                for _ in 0..count.div_ceil(PER_CLIENT) {
                    let options = ClientOptions { via, ..ClientOptions::new(self.servers.addresses.clone()) };
                    let client = Client::connect(options)?;
                    targets.push(match available {
                        true => Target::Available(client.available("cart")),
                        false => Target::Strong(client.strong("bank")),
                    });
                }
            }
        }
        // Connections, sessions and topology are there before the clock runs.
        for target in &mut targets {
            for number in 0..WARM {
                target.get(key(number)).await?;
            }
        }
        Ok(targets.into_iter().cycle().take(count).collect())
    }

    /// Writes keys 0 to `keys`.
    pub(crate) async fn preload(&self, available: bool, keys: u64, value: usize) -> Result<(), Problem> {
        let next = Arc::new(AtomicU64::new(0));
        let mut workers = JoinSet::new();
        for mut target in self.targets(PER_CLIENT, available).await? {
            let next = next.clone();
            workers.spawn(async move {
                let mut random = fastrand::Rng::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= keys {
                        return Ok::<_, Problem>(());
                    }
                    target.put(key(number), random_value(&mut random, value)).await?;
                }
            });
        }
        while let Some(done) = workers.join_next().await {
            done??;
        }
        Ok(())
    }

    /// One run of the load.
    pub(crate) async fn run(&self, plan: Plan) -> Result<Found, Problem> {
        let targets = self.targets(plan.in_flight, plan.workload.is_available()).await?;
        let cpu = || self.servers.cpu() + cpu_of("self");
        let (cpu_before, begun) = (cpu(), Instant::now());
        let mut workers = JoinSet::new();
        for target in targets {
            workers.spawn(work(target, plan, self.next.clone(), begun + plan.lasting));
        }
        let (mut times, mut failed) = (Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?, 0);
        while let Some(done) = workers.join_next().await {
            let (own, own_failed) = done??;
            times.add(&own)?;
            failed += own_failed;
        }
        let (took, used) = (begun.elapsed(), cpu() - cpu_before);
        Ok(found(&times, took, used, failed))
    }
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn found(times: &Histogram<u64>, took: Duration, cpu: f64, failed: u64) -> Found {
    let ms = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
    let answered = times.len() as f64;
    Found {
        per_second: answered / took.as_secs_f64(),
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        cpu: cpu / answered.max(1.0) * 10_000.0,
        failed,
    }
}

fn random_value(random: &mut fastrand::Rng, bytes: usize) -> Bytes {
    let mut value = vec![0; bytes];
    random.fill(&mut value);
    value.into()
}

/// One operation after the other, until the end.
async fn work(
    mut target: Target,
    plan: Plan,
    next: Arc<AtomicU64>,
    until: Instant,
) -> Result<(Histogram<u64>, u64), Problem> {
    let (mut random, mut failed) = (fastrand::Rng::new(), 0);
    let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
    loop {
        let begun = Instant::now();
        if begun >= until {
            return Ok((times, failed));
        }
        let put = match plan.workload {
            Workload::PutNew | Workload::PutHot | Workload::AvailablePut => true,
            Workload::Get | Workload::AvailableGet => false,
            Workload::Mixed => random.bool(),
        };
        let number = match plan.workload {
            Workload::PutNew => next.fetch_add(1, Ordering::Relaxed),
            _ => random.u64(0..plan.hot),
        };
        let done = match put {
            true => target.put(key(number), random_value(&mut random, plan.value)).await.map(|()| true),
            false => target.get(key(number)).await,
        };
        match done {
            Ok(true) => times.saturating_record(u64::try_from(begun.elapsed().as_micros())?),
            // What W=2 wrote, R=1 may miss.
            Ok(false) if matches!(target, Target::Available(_)) => failed += 1,
            Ok(false) => return Err(format!("{} was written and is absent", key(number)).into()),
            Err(_) => failed += 1,
        }
    }
}
