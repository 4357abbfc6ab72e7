//! The history of a run while it grows: one clock, one operation at a time per process number, a fresh number
//! after an unknown outcome, values that are written once only.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kv_check::operation::{MISMATCH, Reply as Fate};
use kv_check::{Event, EventType, Function, Json, Outcome, Process};
use kv_client::Error;
use kv_types::{Degradation, Evidence, NodeId, Receipt};
use serde_json::json;
use tokio::time::Instant;

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
    /// An available write: it covers what the store has of the key where it arrives.
    pub covers_unseen: bool,
}

/// How it ended, as the history wants it.
#[derive(Debug, Clone)]
pub struct Ending {
    pub(super) kind: EventType,
    pub(super) value: Json,
    pub(super) err: Option<String>,
    pub(super) revision: Option<u64>,
    pub(super) observed: Option<Vec<Json>>,
    pub(super) receipt: Option<Receipt>,
}

impl Ending {
    pub(super) fn ok(value: Json, revision: Option<u64>, receipt: Receipt) -> Self {
        Self { kind: EventType::Ok, value, err: None, revision, observed: None, receipt: Some(receipt) }
    }

    pub(super) fn error(f: &Function, error: &Error) -> Self {
        let fate = if error.is_unknown() { Fate::Unknown } else { Fate::NotApplied };
        let err = Some(error.reason().code_name().to_owned());
        let kind = EventType::from(Outcome::of(f, fate));
        Self { kind, value: Json::Null, err, revision: None, observed: None, receipt: None }
    }

    /// The end of an operation whose first step, a read, had no answer: nothing was applied.
    pub(super) fn refused(error: &Error) -> Self {
        Self::gave_up(error.reason().code_name())
    }

    /// A refusal of the client's own, before anything that could matter was sent.
    pub(super) fn gave_up(why: &str) -> Self {
        let err = Some(why.to_owned());
        Self { kind: EventType::Fail, value: Json::Null, err, revision: None, observed: None, receipt: None }
    }

    /// Whether it took effect, or was read.
    pub fn is_ok(&self) -> bool {
        self.kind == EventType::Ok
    }

    /// Whether it is not known if it took effect.
    pub fn is_unknown(&self) -> bool {
        self.kind == EventType::Info
    }

    /// Why it did not succeed.
    pub fn why(&self) -> Option<&str> {
        self.err.as_deref()
    }

    /// Values that a read of an available key returned.
    pub fn values(&self) -> &[Json] {
        self.value.as_array().map(Vec::as_slice).unwrap_or_default()
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
    /// Operations that have begun and not ended, by namespace.
    open: BTreeMap<String, u64>,
    processes: u64,
    /// The time of the last event.
    last: u64,
    values: u64,
}

impl Recorded {
    /// A time of its own for each event, in their order: a simulated clock stands still while many things
    /// happen, and then an operation would seem to begin before its client's last one ended.
    fn stamp(&mut self, now: u64) -> u64 {
        self.last = now.max(self.last + 1);
        self.last
    }
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
        let _open = Open::count(self, &call.ns);
        let process = self.begin(&call);
        let ending = operation.await;
        self.end(process, intended, call, &ending);
        ending
    }

    /// Notes what the nemesis did.
    pub fn nemesis(&self, what: &str, value: Json) {
        self.note(None, what, value);
    }

    /// Notes what was found about a namespace from outside.
    pub fn nemesis_in(&self, ns: &str, what: &str, value: Json) {
        self.note(Some(ns.to_owned()), what, value);
    }

    fn note(&self, ns: Option<String>, what: &str, value: Json) {
        let mut inner = self.lock();
        let now = inner.stamp(self.now());
        let mut event = Event::new(now, Process::Nemesis, EventType::Info, what.into(), value);
        event.ns = ns;
        inner.events.push(event);
    }

    /// Operations on a namespace that have begun and not ended.
    pub fn open(&self, ns: &str) -> u64 {
        self.lock().open.get(ns).copied().unwrap_or(0)
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
        let now = inner.stamp(self.now());
        let mut event =
            Event::new(now, Process::Client(process), EventType::Invoke, call.f.clone(), call.value.clone());
        event.ns = Some(call.ns.clone());
        event.node = Some(call.node.to_string());
        event.key = Some(call.key.clone());
        event.expect_revision = call.expect_revision;
        event.observed = call.observed.clone();
        event.covers_unseen = call.covers_unseen;
        inner.events.push(event);
        process
    }

    fn end(&self, process: u64, intended: Instant, call: Call, ending: &Ending) {
        let now = self.now();
        let mut inner = self.lock();
        let now = inner.stamp(now);
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
            mutation: call.f != Function::Read,
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

/// Counts an operation as open for as long as somebody waits for it.
struct Open<'a> {
    recorder: &'a Recorder,
    ns: String,
}

impl<'a> Open<'a> {
    fn count(recorder: &'a Recorder, ns: &str) -> Self {
        *recorder.lock().open.entry(ns.to_owned()).or_default() += 1;
        Self { recorder, ns: ns.to_owned() }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(open) = self.recorder.lock().open.get_mut(&self.ns) {
            *open = open.saturating_sub(1);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn call(node: u64) -> Call {
        Call {
            ns: "bank".into(),
            node: NodeId(node),
            f: Function::Write,
            key: "k".into(),
            value: json!("v"),
            expect_revision: None,
            observed: None,
            covers_unseen: false,
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
            assert_eq!(recorder.open("bank"), 1);
            recorder.record(now, call(1), async { ending(EventType::Ok) }).await
        });
        unknown.await;
        nested.await;
        recorder.record(now, call(1), async { ending(EventType::Fail) }).await;
        assert_eq!((recorder.open("bank"), recorder.open("cart")), (0, 0));
        recorder.nemesis("cut", json!([]));
        let operations = kv_check::operation::pair(&recorder.history()).unwrap();
        let processes: Vec<_> = operations.iter().map(|op| op.process).collect();
        assert_eq!(processes.len(), 4);
        assert!(!processes[1..].contains(&processes[0]), "{processes:?}");
        assert_eq!(recorder.samples_since(0).1, 4);
    }
}
