//! Open-loop clients, and the history they leave. Operations begin at planned moments whatever became of the earlier ones,
//! and each is pinned to one node, so that an outage is seen as one and not as clients who had stopped asking.
//!
//! Every operation is recorded as `kv-check` wants it: one clock, one operation at a time per process number, a fresh number
//! after an unknown outcome, values that are written once only, and for available namespaces what a write's context covered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kv_check::operation::{MISMATCH, Reply as Fate};
use kv_check::{Event, EventType, Function, Json, Outcome, Process};
use kv_client::{
    Available, CausalContext, Client, ClientOptions, Error, Expect, Presence, Revision, Strong, Swap,
    WriteContext,
};
use kv_types::{Degradation, Evidence, NodeId, Receipt};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::LabError;

/// The `err` of a read that was answered truthfully by nodes that keep no copy: it says nothing about the key.
pub const NO_KNOWLEDGE: &str = "NO_KNOWLEDGE";
/// What was tried when options make no sense.
const NO_CLIENT: &str = "cannot make a client";
/// Operations of one client that may be open at once; one more is not begun and counted as shed.
pub const MAX_OPEN: usize = 128;

/// What clients are to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Read and write.
    ReadWrite,
    /// Nothing more.
    Stop,
}

/// One operation as charts and tables need it.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The namespace.
    pub ns: String,
    /// The node asked.
    pub node: NodeId,
    /// A write, cas or delete.
    pub mutation: bool,
    /// When it was to begin, nanoseconds since the history's.
    pub intended: u64,
    /// From there to its end.
    pub latency: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it failed.
    pub err: Option<String>,
    /// A fallback took part.
    pub fallback: bool,
}

impl Sample {
    /// Whether the store gave an answer: success, or the mismatch of a cas.
    pub fn answered(&self) -> bool {
        self.outcome == Outcome::Ok || self.err.as_deref() == Some(MISMATCH)
    }
}

/// What is asked, before it is.
#[derive(Debug, Clone)]
pub struct Call {
    /// The namespace.
    pub ns: String,
    /// The node asked.
    pub node: NodeId,
    /// What.
    pub f: Function,
    /// The key.
    pub key: String,
    /// The value, as [`Event::value`] wants it.
    pub value: Json,
    /// A cas: the revision it requires.
    pub expect_revision: Option<u64>,
    /// An available write: what its context covers.
    pub observed: Option<Vec<Json>>,
}

/// How it ended, as the history wants it.
#[derive(Debug, Clone)]
pub struct Ending {
    kind: EventType,
    value: Json,
    err: Option<String>,
    revision: Option<u64>,
    observed: Option<Vec<Json>>,
    receipt: Option<Receipt>,
}

impl Ending {
    fn ok(value: Json, revision: Option<u64>, receipt: Receipt) -> Self {
        Self { kind: EventType::Ok, value, err: None, revision, observed: None, receipt: Some(receipt) }
    }

    fn error(f: &Function, error: &Error) -> Self {
        let fate = if error.is_unknown() { Fate::Unknown } else { Fate::NotApplied };
        let err = Some(error.reason().code_name().to_owned());
        let kind = EventType::from(Outcome::of(f, fate));
        Self { kind, value: Json::Null, err, revision: None, observed: None, receipt: None }
    }
}

/// The history of a run while it grows.
#[derive(Debug)]
pub struct Recorder {
    begun: Instant,
    inner: Mutex<Recorded>,
}

#[derive(Debug, Default)]
struct Recorded {
    events: Vec<Event>,
    samples: Vec<Sample>,
    /// Process numbers that are free, by namespace and node: a number stays with both.
    idle: BTreeMap<(String, NodeId), Vec<u64>>,
    processes: u64,
    values: u64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { begun: Instant::now(), inner: Mutex::default() }
    }
}

impl Recorder {
    /// Nanoseconds since the beginning.
    pub fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    /// A moment in nanoseconds since the beginning.
    pub fn at(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.begun).as_nanos() as u64
    }

    /// A value that no other write of the run has.
    pub fn fresh_value(&self, node: NodeId) -> String {
        let mut inner = self.lock();
        inner.values += 1;
        format!("{node}.{}", inner.values)
    }

    /// Does and records one operation that was to begin at `intended`.
    pub async fn record(
        &self,
        intended: Instant,
        call: Call,
        operation: impl Future<Output = Ending>,
    ) -> Ending {
        let process = self.begin(&call);
        let ending = operation.await;
        self.end(process, intended, call, &ending);
        ending
    }

    /// Notes what the nemesis did.
    pub fn nemesis(&self, what: &str, value: Json) {
        let mut inner = self.lock();
        let event = Event::new(self.now(), Process::Nemesis, EventType::Info, what.into(), value);
        inner.events.push(event);
    }

    /// Samples from this position on, and the position after them.
    pub fn samples_since(&self, position: usize) -> (Vec<Sample>, usize) {
        let inner = self.lock();
        (inner.samples.get(position..).unwrap_or_default().to_vec(), inner.samples.len())
    }

    /// The history so far, in order and numbered.
    pub fn history(&self) -> Vec<Event> {
        kv_check::history::arrange(self.lock().events.clone())
    }

    fn begin(&self, call: &Call) -> u64 {
        let mut inner = self.lock();
        let idle = inner.idle.get_mut(&(call.ns.clone(), call.node)).and_then(Vec::pop);
        let process = idle.unwrap_or_else(|| {
            inner.processes += 1;
            inner.processes - 1
        });
        // Stamped last, so that the interval of an operation only ever contains its effect.
        let mut event = Event::new(
            self.now(),
            Process::Client(process),
            EventType::Invoke,
            call.f.clone(),
            call.value.clone(),
        );
        event.ns = Some(call.ns.clone());
        event.node = Some(call.node.to_string());
        event.key = Some(call.key.clone());
        event.expect_revision = call.expect_revision;
        event.observed = call.observed.clone();
        inner.events.push(event);
        process
    }

    fn end(&self, process: u64, intended: Instant, call: Call, ending: &Ending) {
        let now = self.now();
        let mut inner = self.lock();
        let mut event =
            Event::new(now, Process::Client(process), ending.kind, call.f.clone(), ending.value.clone());
        event.ns = Some(call.ns.clone());
        event.node = Some(call.node.to_string());
        event.key = Some(call.key);
        event.err = ending.err.clone();
        event.revision = ending.revision;
        event.observed = ending.observed.clone();
        event.receipt = ending.receipt.as_ref().map(receipt_json);
        inner.events.push(event);
        let outcome = match ending.kind {
            EventType::Ok => Outcome::Ok,
            EventType::Fail => Outcome::Fail,
            EventType::Info | EventType::Invoke => Outcome::Info,
        };
        if outcome != Outcome::Info {
            inner.idle.entry((call.ns.clone(), call.node)).or_default().push(process);
        }
        let intended = self.at(intended);
        let degraded = ending.receipt.as_ref().map(|receipt| receipt.degraded.as_slice()).unwrap_or_default();
        inner.samples.push(Sample {
            mutation: call.f.mutates(),
            ns: call.ns,
            node: call.node,
            intended,
            latency: now.saturating_sub(intended),
            outcome,
            err: ending.err.clone(),
            fallback: degraded
                .iter()
                .any(|reason| matches!(reason, Degradation::Fallback | Degradation::FallbackCoordinator)),
        });
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Receipts in histories: short, and complete enough to verify an answer by its evidence.
fn receipt_json(receipt: &Receipt) -> Json {
    let mut compact = json!({
        "delivered": receipt.delivered().to_string(),
        "epoch": receipt.epoch.0,
        "by": receipt.served_by.to_string(),
    });
    let Some(fields) = compact.as_object_mut() else { return compact };
    if receipt.attempts > 1 {
        fields.insert("attempts".into(), receipt.attempts.into());
    }
    if receipt.deduplicated {
        fields.insert("deduplicated".into(), true.into());
    }
    match &receipt.evidence {
        Evidence::Strong(strong) => {
            let point =
                json!({"term": strong.term, "index": strong.index, "revision": strong.namespace_revision});
            fields.insert("strong".into(), point);
        }
        Evidence::Available(available) => {
            // A node's name, with * for a fallback and ! for one that was asked and was silent.
            let reply = |reply: &kv_types::ReplicaReply| {
                let mark = if reply.fallback { "*" } else { "" };
                let silence = if reply.answered { "" } else { "!" };
                format!("{}{mark}{silence}", reply.node)
            };
            let replies: Vec<_> = available.replies.iter().map(reply).collect();
            let hints = available.hints;
            let plan = json!({"replies": replies, "strict": available.strict, "hints": hints, "siblings": available.siblings});
            fields.insert("available".into(), plan);
        }
    }
    compact
}

/// A client of a strong namespace at one node.
#[derive(Debug)]
pub struct StrongClient {
    recorder: Arc<Recorder>,
    handle: Strong,
    ns: String,
    node: NodeId,
    /// The revision of each key that this client saw last.
    seen: Mutex<BTreeMap<String, u64>>,
}

impl StrongClient {
    /// Pinned to the node at this address. Nothing is tried twice: the history shows what this node does.
    pub fn new(
        recorder: Arc<Recorder>,
        ns: &str,
        node: NodeId,
        address: &str,
        deadline: Duration,
    ) -> Result<Self, LabError> {
        let options = ClientOptions {
            attempts: 1,
            read_timeout: deadline,
            write_timeout: deadline,
            ..ClientOptions::pinned(address)
        };
        let handle = Client::connect(options).map_err(LabError::store(NO_CLIENT))?.strong(ns);
        Ok(Self { recorder, handle, ns: ns.to_owned(), node, seen: Mutex::default() })
    }

    /// Reads.
    pub async fn read(&self, intended: Instant, key: &str) -> Ending {
        let call = self.call(Function::Read, key, Json::Null);
        let operation = async {
            match self.handle.get(key).await {
                Ok(answer) => {
                    let revision = answer.value.as_ref().map(|found| found.revision.0);
                    self.saw(key, revision.unwrap_or(0));
                    let value = answer.value.map_or(Json::Null, |found| text(&found.value));
                    Ending::ok(value, revision, answer.receipt)
                }
                Err(error) => Ending::error(&Function::Read, &error),
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    /// Writes a fresh value.
    pub async fn write(&self, intended: Instant, key: &str) -> Ending {
        let value = self.recorder.fresh_value(self.node);
        let call = self.call(Function::Write, key, json!(value));
        let operation = async {
            match self.handle.put(key, value.clone()).await {
                Ok(answer) => {
                    self.saw(key, answer.value.0);
                    Ending::ok(json!(value), Some(answer.value.0), answer.receipt)
                }
                Err(error) => Ending::error(&Function::Write, &error),
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    /// Writes a fresh value if the key is as this client saw it last.
    pub async fn cas(&self, intended: Instant, key: &str) -> Ending {
        let value = self.recorder.fresh_value(self.node);
        let revision = lock(&self.seen).get(key).copied().unwrap_or(0);
        let expect = if revision == 0 { Expect::Absent } else { Expect::Revision(Revision(revision)) };
        let call = Call { expect_revision: Some(revision), ..self.call(Function::Cas, key, json!(value)) };
        let operation = async {
            match self.handle.compare_and_set(key, expect, value.clone()).await {
                Ok(answer) => match answer.value {
                    Swap::Swapped(revision) => {
                        self.saw(key, revision.0);
                        Ending::ok(json!(value), Some(revision.0), answer.receipt)
                    }
                    Swap::Mismatch(found) => {
                        let revision = found.as_ref().map(|found| found.revision.0);
                        self.saw(key, revision.unwrap_or(0));
                        Ending {
                            kind: EventType::Fail,
                            err: Some(MISMATCH.into()),
                            observed: Some(found.iter().map(|found| text(&found.value)).collect()),
                            ..Ending::ok(json!(value), revision, answer.receipt)
                        }
                    }
                },
                Err(error) => Ending::error(&Function::Cas, &error),
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    fn call(&self, f: Function, key: &str, value: Json) -> Call {
        let (ns, key) = (self.ns.clone(), key.to_owned());
        Call { ns, node: self.node, f, key, value, expect_revision: None, observed: None }
    }

    fn saw(&self, key: &str, revision: u64) {
        lock(&self.seen).insert(key.to_owned(), revision);
    }
}

/// What a client of an available namespace knows of a key: a context, and the values that it covers.
#[derive(Debug, Clone)]
struct Known {
    context: CausalContext,
    values: Vec<Json>,
}

/// A client of an available namespace at one node.
#[derive(Debug)]
pub struct AvailableClient {
    recorder: Arc<Recorder>,
    handle: Available,
    ns: String,
    node: NodeId,
    known: Mutex<BTreeMap<String, Known>>,
}

impl AvailableClient {
    /// Pinned to the node at this address.
    pub fn new(recorder: Arc<Recorder>, ns: &str, node: NodeId, address: &str) -> Result<Self, LabError> {
        let handle = Client::connect(ClientOptions::pinned(address))
            .map_err(LabError::store(NO_CLIENT))?
            .available(ns);
        Ok(Self { recorder, handle, ns: ns.to_owned(), node, known: Mutex::default() })
    }

    /// The same client, whose reads ask every replica.
    pub fn reading_all(mut self) -> Self {
        self.handle = self.handle.reading(kv_types::ReplicaCount::All);
        self
    }

    /// Reads.
    pub async fn read(&self, intended: Instant, key: &str) -> Ending {
        let call = self.call(Function::Read, key, Json::Null, None);
        let operation = async {
            match self.handle.get(key).await {
                Ok(answer) if answer.value.presence == Presence::NoKnowledge => Ending {
                    kind: EventType::Fail,
                    err: Some(NO_KNOWLEDGE.into()),
                    ..Ending::ok(Json::Null, None, answer.receipt)
                },
                Ok(answer) => {
                    let values: Vec<Json> =
                        answer.value.values.iter().map(|sibling| text(&sibling.value)).collect();
                    let known = Known { context: answer.value.context, values: values.clone() };
                    lock(&self.known).insert(key.to_owned(), known);
                    Ending::ok(Json::Array(values), None, answer.receipt)
                }
                Err(error) => Ending::error(&Function::Read, &error),
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    /// Writes a fresh value that supersedes what this client knows of the key; with `blind`, or when it knows nothing, one
    /// that supersedes nothing.
    pub async fn write(&self, intended: Instant, key: &str, blind: bool) -> Ending {
        let value = self.recorder.fresh_value(self.node);
        let known = lock(&self.known).get(key).filter(|_| !blind).cloned();
        let observed = known.as_ref().map(|known| known.values.clone());
        let context = known.map_or(WriteContext::Blind, |known| WriteContext::Causal(known.context));
        let call = self.call(Function::Write, key, json!(value), observed.clone());
        let operation = async {
            match self.handle.put(key, value.clone(), context).await {
                Ok(answer) => {
                    let values = observed.into_iter().flatten().chain([json!(value)]).collect();
                    if !blind {
                        lock(&self.known).insert(key.to_owned(), Known { context: answer.value, values });
                    }
                    Ending::ok(json!(value), None, answer.receipt)
                }
                Err(error) => Ending::error(&Function::Write, &error),
            }
        };
        self.recorder.record(intended, call, operation).await
    }

    fn call(&self, f: Function, key: &str, value: Json, observed: Option<Vec<Json>>) -> Call {
        let (ns, key) = (self.ns.clone(), key.to_owned());
        Call { ns, node: self.node, f, key, value, expect_revision: None, observed }
    }
}

impl Ending {
    /// Whether it took effect, or was read.
    pub fn is_ok(&self) -> bool {
        self.kind == EventType::Ok
    }

    /// Values that a read of an available key returned.
    pub fn values(&self) -> &[Json] {
        self.value.as_array().map(Vec::as_slice).unwrap_or_default()
    }
}

/// Begins an operation every `every`, the first after `offset`, until the phase is [`Phase::Stop`]; then waits for those
/// still open. Returns how many could not be begun because [`MAX_OPEN`] were.
pub async fn open_loop<F>(
    every: Duration,
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
    loop {
        tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase == Phase::Stop) => break,
            Some(_) = open.join_next() => {}
            () = tokio::time::sleep_until(next) => {
                if open.len() < MAX_OPEN {
                    open.spawn(operate(next));
                } else {
                    shed += 1;
                }
                next += every;
            }
        }
    }
    open.join_all().await;
    shed
}

fn text(bytes: &[u8]) -> Json {
    Json::String(String::from_utf8_lossy(bytes).into_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn call(node: u64) -> Call {
        Call {
            ns: "bank".into(),
            node: NodeId(node),
            f: Function::Write,
            key: "k".into(),
            value: json!("v"),
            expect_revision: None,
            observed: None,
        }
    }

    fn ending(kind: EventType) -> Ending {
        Ending { kind, value: json!("v"), err: None, revision: None, observed: None, receipt: None }
    }

    #[tokio::test]
    async fn a_process_does_one_thing_at_a_time_and_dies_of_an_unknown_outcome() {
        let recorder = Recorder::default();
        let now = Instant::now();
        let unknown = recorder.record(now, call(1), async { ending(EventType::Info) });
        let nested = recorder.record(now, call(1), async {
            recorder.record(now, call(1), async { ending(EventType::Ok) }).await
        });
        unknown.await;
        nested.await;
        recorder.record(now, call(1), async { ending(EventType::Fail) }).await;
        recorder.nemesis("cut", json!([]));
        let operations = kv_check::operation::pair(&recorder.history()).unwrap();
        let processes: Vec<_> = operations.iter().map(|op| op.process).collect();
        assert_eq!(processes.len(), 4);
        assert!(!processes[1..].contains(&processes[0]), "{processes:?}");
        assert_eq!(recorder.samples_since(0).1, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_keeps_its_rate_when_nobody_answers() {
        let (stop, phase) = watch::channel(Phase::ReadWrite);
        let begun = Arc::new(AtomicUsize::new(0));
        let count = begun.clone();
        let load = tokio::spawn(open_loop(Duration::from_millis(50), Duration::ZERO, phase, move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1))
        }));
        tokio::time::sleep(Duration::from_millis(975)).await;
        assert_eq!(begun.load(Ordering::Relaxed), 20);
        stop.send_replace(Phase::Stop);
        assert_eq!(load.await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_is_bounded() {
        let (stop, phase) = watch::channel(Phase::ReadWrite);
        let load = tokio::spawn(open_loop(Duration::from_millis(1), Duration::ZERO, phase, |_| {
            tokio::time::sleep(Duration::from_secs(60))
        }));
        tokio::time::sleep(Duration::from_micros(999_500)).await;
        stop.send_replace(Phase::Stop);
        assert_eq!(load.await.unwrap(), 1000 - MAX_OPEN as u64);
    }
}
