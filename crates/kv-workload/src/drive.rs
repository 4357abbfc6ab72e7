//! Loads as data, and what drives them. The same functions serve real processes and the simulation: they take
//! the nodes' addresses, a recorder, an [`Env`], a seed and a phase, use `tokio::time` only, and spawn on the
//! runtime they are called in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use kv_client::{ClientOptions, Error};
use kv_env::Env;
use kv_types::NodeId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::keys::{KeyLimits, Keys};
use crate::recorder::{Ending, Recorder};
use crate::{AvailableClient, Covers, Phase, StrongClient};

/// Operations of one client that may be open at once; one more is not begun and counted as shed.
pub const MAX_OPEN: usize = 128;
/// Lists and sets are read whole, so their keys are left sooner: histories would grow with the square.
const LIST_OPERATIONS: u64 = 120;
/// Values that a causal context covers are recorded with each write: the same.
const SIBLING_OPERATIONS: u64 = 300;
/// A closed-loop client that was refused waits this long: refusals return at once and would be all that it
/// does.
const AFTER_REFUSAL: Duration = Duration::from_millis(20);
/// How often a final read that had no answer is tried again.
const AGAIN: Duration = Duration::from_millis(50);
/// Largest step of a counter.
const MAX_DELTA: i64 = 5;

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Read, write, swap and delete single keys. Strong.
    CasRegister,
    /// Read and write single keys. Strong.
    Register,
    /// Add elements to a set by swaps, and read it whole. Strong.
    Set,
    /// Add to a counter by swaps, and read it. Strong.
    Counter,
    /// Append to a list by swaps, and read it whole. Strong.
    Append,
    /// Read, then write or delete what was read; a few writes are blind. Available.
    Siblings,
    /// Write without having read. Available.
    Blind,
    /// Write and delete what is there, without having read it; a few writes go on from a read. Available.
    Observed,
}

impl Kind {
    /// All of them, with their names.
    pub const ALL: [(Self, &str); 8] = [
        (Self::CasRegister, "cas-register"),
        (Self::Register, "register"),
        (Self::Set, "set"),
        (Self::Counter, "counter"),
        (Self::Append, "append"),
        (Self::Siblings, "siblings"),
        (Self::Blind, "blind"),
        (Self::Observed, "observed"),
    ];

    /// Whether it is for strong namespaces; else for available ones.
    pub fn strong(self) -> bool {
        !matches!(self, Self::Siblings | Self::Blind | Self::Observed)
    }

    /// Operations on one key at most.
    fn operations(self) -> u64 {
        match self {
            // Nothing supersedes a blind write, and the store keeps only so many values beside each other.
            Self::Set | Self::Append | Self::Blind => LIST_OPERATIONS,
            Self::Siblings | Self::Observed => SIBLING_OPERATIONS,
            Self::CasRegister | Self::Register | Self::Counter => 1000,
        }
    }
}

/// One load on one namespace: clients at every node.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// The namespace. It exists, and every node knows it.
    pub ns: String,
    /// What the clients do.
    pub kind: Kind,
    /// Operations a second at each node that begin whatever became of the earlier ones; 0 for none.
    pub rate: u32,
    /// Clients at each node that begin the next operation when the last one is over; 0 for none.
    pub closed: u32,
    /// The pause of such a client between two operations, on average.
    pub think: Duration,
    /// Keys in use at once.
    pub keys: usize,
    /// Deadline of an operation, over all attempts.
    pub deadline: Duration,
    /// Attempts of the client library. They are one operation; with 1 the history shows what one node does.
    pub attempts: u32,
    /// Bytes of the values of single keys, at least; 0 for short ones.
    pub value_bytes: usize,
    /// What keys begin with: two loads on one namespace must not share keys.
    pub prefix: String,
    /// All choices come from it.
    pub seed: u64,
}

impl Load {
    /// An open loop of 10 operations a second at each node on 3 keys, with a deadline of a second and one
    /// attempt.
    pub fn new(ns: &str, kind: Kind, seed: u64) -> Self {
        Self {
            ns: ns.to_owned(),
            kind,
            rate: 10,
            closed: 0,
            think: Duration::from_millis(50),
            keys: 3,
            deadline: Duration::from_secs(1),
            attempts: 1,
            value_bytes: 0,
            prefix: "k".into(),
            seed,
        }
    }

    fn limits(&self) -> KeyLimits {
        KeyLimits { operations: self.kind.operations(), ..KeyLimits::new(self.keys) }
    }

    fn client(
        &self,
        recorder: &Arc<Recorder>,
        node: NodeId,
        address: &str,
        env: &Env,
    ) -> Result<NodeClient, Error> {
        let options = ClientOptions {
            attempts: self.attempts,
            read_timeout: self.deadline,
            write_timeout: self.deadline,
            ..ClientOptions::pinned(address)
        };
        let (recorder, env) = (Arc::clone(recorder), env.clone());
        Ok(match self.kind.strong() {
            true => {
                let client = StrongClient::with_options(recorder, &self.ns, node, options, env)?;
                NodeClient::Strong(client.with_values_of(self.value_bytes))
            }
            false => {
                let client = AvailableClient::with_options(recorder, &self.ns, node, options, env)?;
                NodeClient::Available(client.with_values_of(self.value_bytes))
            }
        })
    }
}

/// A client at one node, of either mode.
#[derive(Debug)]
pub enum NodeClient {
    /// Of a strong namespace.
    Strong(StrongClient),
    /// Of an available namespace.
    Available(AvailableClient),
}

impl NodeClient {
    /// One operation of a load of this kind. `dice` is from 0 to 99 and decides which.
    pub async fn operate(&self, kind: Kind, intended: Instant, key: &str, dice: u8) -> Ending {
        match self {
            Self::Strong(client) => match (kind, dice) {
                (Kind::CasRegister, 0..38) | (Kind::Register, 0..50) => client.read(intended, key).await,
                (Kind::CasRegister, 38..65) | (Kind::Register, _) => client.write(intended, key).await,
                (Kind::CasRegister, 65..97) => client.cas(intended, key).await,
                (Kind::CasRegister, _) => client.delete(intended, key).await,
                (Kind::Set, 0..60) => client.add(intended, key).await,
                (Kind::Append, 0..60) => client.append(intended, key).await,
                (Kind::Counter, 0..60) => client.count(intended, key, 1 + i64::from(dice) % MAX_DELTA).await,
                (Kind::Counter, _) => client.read_count(intended, key).await,
                (Kind::Set | Kind::Append | Kind::Siblings | Kind::Blind | Kind::Observed, _) => {
                    self.read(kind, key).await
                }
            },
            Self::Available(client) => match (kind, dice) {
                (Kind::Blind, 0..60) => client.write(intended, key, Covers::Nothing).await,
                (Kind::Blind, _) | (_, 0..38) => client.read(intended, key).await,
                (Kind::Observed, 38..85) => client.write(intended, key, Covers::WhatIsThere).await,
                (Kind::Observed, 85..92) => client.delete(intended, key, Covers::WhatIsThere).await,
                (_, 38..92) | (Kind::Observed, _) => client.write(intended, key, Covers::WhatIsKnown).await,
                (_, 92..97) => client.write(intended, key, Covers::Nothing).await,
                _ => client.delete(intended, key, Covers::WhatIsKnown).await,
            },
        }
    }

    /// A read as loads of this kind read.
    pub async fn read(&self, kind: Kind, key: &str) -> Ending {
        let now = Instant::now();
        match (self, kind) {
            (Self::Strong(client), Kind::Set | Kind::Append) => client.read_list(now, key).await,
            (Self::Strong(client), Kind::Counter) => client.read_count(now, key).await,
            (Self::Strong(client), _) => client.read(now, key).await,
            (Self::Available(client), _) => client.read(now, key).await,
        }
    }

    /// The same client, whose reads ask every replica of an available namespace.
    pub fn reading_all(self) -> Self {
        match self {
            Self::Available(client) => Self::Available(client.reading_all()),
            strong => strong,
        }
    }
}

/// A load that runs. Dropping it ends its clients.
#[derive(Debug)]
pub struct Driving {
    load: Load,
    nodes: BTreeMap<NodeId, String>,
    recorder: Arc<Recorder>,
    env: Env,
    keys: Arc<Keys>,
    clients: JoinSet<u64>,
}

/// Starts a load: clients at every node, until the phase is [`Phase::Stop`]. `nodes` are the addresses where
/// clients reach them. Everything random comes from the load's seed.
pub fn drive(
    load: &Load,
    nodes: &BTreeMap<NodeId, String>,
    recorder: &Arc<Recorder>,
    env: &Env,
    phase: &watch::Receiver<Phase>,
) -> Result<Driving, Error> {
    let keys = Arc::new(Keys::new(&load.prefix, load.limits()));
    let mut clients = JoinSet::new();
    let per_node = u32::try_from(nodes.len()).unwrap_or(1).max(1);
    for (at, (node, address)) in (0..).zip(nodes) {
        let mut dice = fastrand::Rng::with_seed(load.seed ^ (node.0 << 32));
        if load.rate > 0 {
            let client = Arc::new(load.client(recorder, *node, address, env)?);
            let (keys, kind, mut dice) = (Arc::clone(&keys), load.kind, dice.fork());
            let every = Duration::from_secs(1) / load.rate;
            // Not at even distances: operations of different nodes would never overlap where each is quick.
            let mut moments = dice.fork();
            let wait = move || every.mul_f64(0.5 + moments.f64());
            clients.spawn(open_loop(wait, every * at / per_node, phase.clone(), move |intended| {
                let (client, keys, key) = (Arc::clone(&client), Arc::clone(&keys), keys.take(&mut dice));
                let choice = dice.u8(0..100);
                async move {
                    let ending = client.operate(kind, intended, &key, choice).await;
                    keys.done(&key, ending.is_unknown());
                }
            }));
        }
        for _ in 0..load.closed {
            let client = load.client(recorder, *node, address, env)?;
            let (keys, phase) = (Arc::clone(&keys), phase.clone());
            clients.spawn(closed_loop(client, load.kind, load.think, keys, phase, dice.fork()));
        }
    }
    let (nodes, recorder) = (nodes.clone(), Arc::clone(recorder));
    Ok(Driving { load: load.clone(), nodes, recorder, env: env.clone(), keys, clients })
}

impl Driving {
    /// Its keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The same, to keep.
    pub fn shared_keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys)
    }

    /// What it does.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Waits for clients that were told to stop. Returns how many operations they did not begin because too
    /// many were open.
    pub async fn finished(&mut self) -> u64 {
        let mut shed = 0;
        while let Some(ended) = self.clients.join_next().await {
            shed += ended.unwrap_or(0);
        }
        shed
    }

    /// Reads every key that was used through every node, an available one from all its replicas; tries again
    /// until `give_up`. Returns what was not read, in words.
    pub async fn read_everything(&self, give_up: Instant) -> Result<Vec<String>, Error> {
        let keys = self.keys.used();
        let mut readers = Vec::new();
        for (node, address) in &self.nodes {
            let client = self.load.client(&self.recorder, *node, address, &self.env)?.reading_all();
            let (keys, kind) = (&keys, self.load.kind);
            readers.push(async move {
                let mut unread = Vec::new();
                for key in keys {
                    loop {
                        let ending = client.read(kind, key).await;
                        if ending.is_ok() {
                            break;
                        }
                        if Instant::now() >= give_up {
                            let why = ending.why().unwrap_or_default();
                            unread.push(format!("{} {key} at {node}: {why}", self.load.ns));
                            break;
                        }
                        tokio::time::sleep(AGAIN).await;
                    }
                }
                unread
            });
        }
        Ok(join_all(readers).await.into_iter().flatten().collect())
    }
}

/// Begins operations, the first after `offset` and each of the others after another `wait`, until the phase
/// is [`Phase::Stop`]; then waits for those still open. Nothing begins during [`Phase::Pause`]. Returns how
/// many could not be begun because [`MAX_OPEN`] were.
pub async fn open_loop<F>(
    mut wait: impl FnMut() -> Duration,
    offset: Duration,
    mut phase: watch::Receiver<Phase>,
    mut operate: impl FnMut(Instant) -> F,
) -> u64
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut open = JoinSet::new();
    let mut next = Instant::now() + offset;
    let mut shed = 0;
    let now = phase.clone();
    loop {
        tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase == Phase::Stop) => break,
            Some(_) = open.join_next() => {}
            () = tokio::time::sleep_until(next) => {
                let begins = *now.borrow() == Phase::ReadWrite;
                if begins && open.len() < MAX_OPEN {
                    open.spawn(operate(next));
                } else {
                    shed += u64::from(begins);
                }
                next += wait();
            }
        }
    }
    open.join_all().await;
    shed
}

/// One operation after the other, with pauses, until the phase is [`Phase::Stop`].
async fn closed_loop(
    client: NodeClient,
    kind: Kind,
    think: Duration,
    keys: Arc<Keys>,
    mut phase: watch::Receiver<Phase>,
    mut dice: fastrand::Rng,
) -> u64 {
    loop {
        let Ok(now) = phase.wait_for(|phase| *phase != Phase::Pause).await.map(|phase| *phase) else {
            return 0;
        };
        if now == Phase::Stop {
            return 0;
        }
        let (key, choice) = (keys.take(&mut dice), dice.u8(0..100));
        let ending = client.operate(kind, Instant::now(), &key, choice).await;
        keys.done(&key, ending.is_unknown());
        let pause = think.mul_f64(2.0 * dice.f64());
        let pause = if ending.is_ok() { pause } else { pause.max(AFTER_REFUSAL) };
        tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase == Phase::Stop) => return 0,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn kinds_have_the_names_that_files_use() {
        for (kind, name) in Kind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{name:?}"));
        }
        assert_eq!(Kind::ALL.iter().filter(|(kind, _)| kind.strong()).count(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_begins_during_a_pause() {
        let (stop, phase) = watch::channel(Phase::Pause);
        let begun = Arc::new(AtomicUsize::new(0));
        let count = begun.clone();
        let load = tokio::spawn(open_loop(
            || Duration::from_millis(50),
            Duration::ZERO,
            phase,
            move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                async {}
            },
        ));
        tokio::time::sleep(Duration::from_millis(975)).await;
        assert_eq!(begun.load(Ordering::Relaxed), 0);
        stop.send_replace(Phase::ReadWrite);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(begun.load(Ordering::Relaxed), 10);
        stop.send_replace(Phase::Stop);
        assert_eq!(load.await.unwrap(), 0, "a pause sheds nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn clients_of_a_closed_port_record_refusals_and_stop_when_told() {
        let (stop, phase) = watch::channel(Phase::ReadWrite);
        let recorder = Arc::new(Recorder::default());
        // No process listens there; port 1 is refused at once.
        let nodes = BTreeMap::from([(NodeId(1), "127.0.0.1:1".to_owned())]);
        let mut loads = Vec::new();
        for (kind, name) in Kind::ALL {
            let load = Load { closed: 1, prefix: name.to_owned(), ..Load::new(name, kind, 7) };
            loads.push(drive(&load, &nodes, &recorder, &Env::real(), &phase).unwrap());
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        stop.send_replace(Phase::Stop);
        for load in &mut loads {
            load.finished().await;
            assert!(!load.keys().used().is_empty());
        }
        let operations = kv_check::operation::pair(&recorder.history()).unwrap();
        assert!(operations.len() > 7 * 10, "{}", operations.len());
        assert!(operations.iter().all(|op| !op.ok()));
        let unread = loads[0].read_everything(Instant::now()).await.unwrap();
        assert!(unread[0].contains("cas-register"), "{unread:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_keeps_its_rate_when_nothing_answers() {
        let (stop, phase) = watch::channel(Phase::ReadWrite);
        let begun = Arc::new(AtomicUsize::new(0));
        let count = begun.clone();
        let load = tokio::spawn(open_loop(
            || Duration::from_millis(50),
            Duration::ZERO,
            phase,
            move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(1))
            },
        ));
        tokio::time::sleep(Duration::from_millis(975)).await;
        assert_eq!(begun.load(Ordering::Relaxed), 20);
        stop.send_replace(Phase::Stop);
        assert_eq!(load.await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_is_bounded() {
        let (stop, phase) = watch::channel(Phase::ReadWrite);
        let load = tokio::spawn(open_loop(
            || Duration::from_millis(1),
            Duration::ZERO,
            phase,
            |_| tokio::time::sleep(Duration::from_secs(60)),
        ));
        tokio::time::sleep(Duration::from_micros(999_500)).await;
        stop.send_replace(Phase::Stop);
        assert_eq!(load.await.unwrap(), 1000 - MAX_OPEN as u64);
    }
}
