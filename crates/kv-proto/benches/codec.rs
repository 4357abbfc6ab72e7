//! What it costs to write and to read what crosses the wires: frames of a client's session, the vocabulary
//! behind them, frames between nodes, and the states of available keys inside those. Of several rounds the
//! shortest counts. `cargo bench -p kv-proto --bench codec`
//!
//! The command of a strong write is private to kv-raft. Here its entry has as many bytes as the command of
//! such a put; what the command itself costs is part of `cargo bench -p kv-raft --bench apply`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kv_proto::peer::{self, forward_reply, request_frame, response_frame};
use kv_proto::{DataRequest, client_id_bytes, v1};
use kv_types::call::{Get, Presence, Put, Quorum, Read};
use kv_types::causal::{
    Context, ContextKey, ContextKeys, Dot, Hlc, NodeClock, Seen, Sibling, State, Write, decode_context_token,
    encode_context_token,
};
use kv_types::{
    Answer, AvailableEvidence, ClientId, Epoch, Evidence, GroupId, Guarantee, Incarnation, Key, Mutation,
    NamespaceId, NodeId, Outcome, ReadPath, Receipt, ReplicaReply, RequestId, StrongEvidence, Value,
    WriteContext,
};
use prost::Message;

/// Bytes of the key and of the value of every put.
const KEY: &[u8] = b"customer/0042/00";
const VALUE: usize = 100;
/// Bytes that the entry of such a put has in the log of a strong group.
const ENTRY: usize = 192;
const NAMESPACE: NamespaceId = NamespaceId(3);
/// A wall clock of our time: small numbers are short on the wire.
const NOW_MS: u64 = 1_800_000_000_000;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(40);
/// Turns between two looks at the clock.
const TURNS: u32 = 64;

/// Nanoseconds an item.
fn time<T>(items: usize, mut work: impl FnMut() -> T) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let (begun, mut turns) = (Instant::now(), 0);
        while begun.elapsed() < ROUND {
            (0..TURNS).for_each(|_| drop(black_box(work())));
            turns += TURNS;
        }
        best = best.min(begun.elapsed().as_secs_f64() * 1e9 / (f64::from(turns) * items as f64));
    }
    best
}

/// One line of the table. `bytes`: of all items together; none where nothing is written.
fn line<A, B>(
    name: &str,
    items: usize,
    bytes: Option<usize>,
    write: impl FnMut() -> A,
    read: impl FnMut() -> B,
) {
    let bytes = bytes.map(|bytes| bytes as f64 / items as f64);
    let cell = |ns: f64| match bytes {
        Some(bytes) => format!("{ns:.0} | {:.0}", bytes * 1e3 / ns),
        None => format!("{ns:.0} |"),
    };
    let size = bytes.map_or(String::new(), |bytes| format!("{bytes:.0}"));
    println!("| {name} | {size} | {} | {} |", cell(time(items, write)), cell(time(items, read)));
}

/// A message that carries so many items, into a buffer of its size and back.
fn message<M: Message + Default>(name: &str, items: usize, message: &M) {
    let write = || {
        let mut out = BytesMut::with_capacity(message.encoded_len());
        message.encode(&mut out).unwrap();
        out
    };
    let bytes = write().freeze();
    line(name, items, Some(bytes.len()), write, || M::decode(bytes.clone()).unwrap());
}

fn client() -> ClientId {
    ClientId(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834)
}

fn mutation(seq: u64) -> Mutation {
    let request_id = RequestId { client_id: client(), seq };
    Mutation { request_id, issued_at_ms: NOW_MS + seq, lowest_unacked: seq, attempt: 1 }
}

fn put(context: Option<WriteContext>) -> Put {
    let (key, value) = (Key::new(KEY).unwrap(), Value::new(vec![7; VALUE]).unwrap());
    Put { key, value, mutation: mutation(1_000), context, quorum: Quorum::default() }
}

fn get() -> Get {
    Get { key: Key::new(KEY).unwrap(), quorum: Quorum::default() }
}

fn receipt(promised: Guarantee, evidence: Evidence) -> Receipt {
    Receipt {
        promised,
        epoch: Epoch(12),
        served_by: NodeId(2),
        attempts: 1,
        deduplicated: false,
        degraded: Vec::new(),
        evidence,
    }
}

fn strong(path: ReadPath) -> Receipt {
    let (group, term, index) = (GroupId::FIRST_DATA, 3, 1_000_000);
    let evidence = StrongEvidence { group, term, index, namespace_revision: 900_000, path, applied_lag: 0 };
    receipt(Guarantee::Linearizable, Evidence::Strong(evidence))
}

fn available(replicas: u64) -> Receipt {
    let reply = |node| ReplicaReply {
        node: NodeId(node),
        fallback: false,
        answered: true,
        fsynced: true,
        knows: true,
    };
    let evidence = AvailableEvidence {
        n: 3,
        r: 1,
        w: 2,
        strict: true,
        settled: true,
        replies: (1..=replicas).map(reply).collect(),
        hints: 0,
        repair: false,
        siblings: 1,
        staleness_bound_ms: None,
    };
    receipt(Guarantee::Eventual, Evidence::Available(evidence))
}

/// The key's only value, as a strong or an available read finds it.
fn found(state: Option<&State>) -> Read {
    let shown = state.map_or(Vec::new(), |state| state.record.values());
    let context = state.map_or(Bytes::new(), |state| token(&keys(), &state.seen()));
    Read {
        presence: Presence::Found,
        value: if state.is_none() { vec![7; VALUE].into() } else { Bytes::new() },
        revision: if state.is_none() { 900_000 } else { 0 },
        siblings: shown.into_iter().map(|(dot, sibling)| (dot, sibling.clone())).collect(),
        context,
    }
}

/// The answers to a put and a get of both modes.
fn answers() -> [(&'static str, Answer); 4] {
    let state = state(1, 1);
    let context = token(&keys(), &state.seen());
    let strong_put = Outcome::Put { revision: 900_000, context: Bytes::new() };
    [
        ("strong put", Answer { outcome: strong_put, receipt: strong(ReadPath::Log) }),
        ("strong get", Answer { outcome: Outcome::Read(found(None)), receipt: strong(ReadPath::ReadIndex) }),
        ("available put", Answer { outcome: Outcome::Put { revision: 0, context }, receipt: available(3) }),
        ("available get", Answer { outcome: Outcome::Read(found(Some(&state))), receipt: available(1) }),
    ]
}

/// What a put and a get of both modes ask.
fn requests() -> [(&'static str, v1::session_request::Request); 4] {
    let causal = WriteContext::Causal(token(&keys(), &state(1, 1).seen()));
    let namespace = || "bank".to_owned();
    let put = |context| v1::PutRequest { namespace: namespace(), ..put(context).into() };
    let get = || v1::GetRequest { namespace: namespace(), ..get().into() };
    [
        ("strong put", put(None).into()),
        ("strong get", get().into()),
        ("available put", put(Some(causal)).into()),
        ("available get", get().into()),
    ]
}

/// Frames between a client and a node.
fn sessions() {
    for (name, request) in requests() {
        for count in [1, 64] {
            let request = |id| v1::SessionRequest { id, timeout_ms: 5_000, request: Some(request.clone()) };
            let frame =
                v1::SessionFrame { requests: (1..=count).map(request).collect(), ..Default::default() };
            message(&format!("session frame, {count} × {name} asked"), count as usize, &frame);
        }
    }
    for (name, answer) in answers() {
        for count in [1, 64] {
            let answer = |id| v1::SessionAnswer { id, answer: Some(answered(answer.clone())) };
            let frame = v1::SessionFrame { answers: (1..=count).map(answer).collect(), ..Default::default() };
            message(&format!("session frame, {count} × {name} answered"), count as usize, &frame);
        }
    }
}

fn answered(answer: Answer) -> v1::session_answer::Answer {
    match answer.outcome {
        Outcome::Read(_) => v1::GetResponse::try_from(answer).unwrap().into(),
        _ => v1::PutResponse::try_from(answer).unwrap().into(),
    }
}

/// From the vocabulary to messages and back, with a copy of what is converted, whose bytes are shared.
fn vocabulary() {
    let asked = put(Some(WriteContext::Causal(token(&keys(), &state(1, 1).seen()))));
    let sent = v1::PutRequest::from(asked.clone());
    let write = || v1::PutRequest::from(asked.clone());
    line("call of a put, as a message", 1, None, write, || sent.clone().read().unwrap());
    let sent = v1::GetRequest::from(get());
    line(
        "call of a get, as a message",
        1,
        None,
        || v1::GetRequest::from(get()),
        || sent.clone().read().unwrap(),
    );
    for (name, answer) in answers() {
        let write = || peer::ForwardReply::try_from(answer.clone()).unwrap();
        let sent: forward_reply::Response = write().response.unwrap();
        let read = || Answer::try_from(sent.clone()).unwrap();
        line(&format!("answer as a message, {name}"), 1, None, write, read);
    }
}

fn request_frame(id: u64, body: request_frame::Body) -> peer::RequestFrame {
    peer::RequestFrame {
        id: 1_000_000 + id,
        cluster_id: client_id_bytes(client()),
        from_node: 1,
        to_node: 2,
        group: 0,
        namespace_id: NAMESPACE.0,
        epoch: 12,
        deadline_ms: 4_990,
        sent_ms: 1_000_000,
        body: Some(body),
    }
}

fn response_frame(id: u64, body: response_frame::Body) -> peer::ResponseFrame {
    peer::ResponseFrame { id: 1_000_000 + id, body: Some(body) }
}

/// Frames between nodes.
fn peers() {
    let record = state(1, 1).encode();
    let (ring, partition, key) = (1, 200, Bytes::from_static(KEY));
    let write = peer::ReplicaWrite {
        ring,
        partition,
        key: key.clone(),
        record: record.clone(),
        hint_for: 0,
        counted: false,
    };
    let asked = [
        ("replica write", request_frame::Body::ReplicaWrite(write)),
        ("replica read", request_frame::Body::ReplicaRead(peer::ReplicaRead { ring, partition, key })),
    ];
    let read = peer::ReplicaReadReply { primary: true, knows: true, record };
    let answered = [
        ("replica write", response_frame::Body::ReplicaWrite(peer::ReplicaWriteReply { fsynced: true })),
        ("replica read", response_frame::Body::ReplicaRead(read)),
    ];
    for count in [1, 64] {
        for (name, body) in &asked {
            let frames = (0..count).map(|id| request_frame(id, body.clone())).collect();
            let frames = peer::ExchangeRequest { frames };
            message(&format!("peer frames, {count} × {name} asked"), count as usize, &frames);
        }
        for (name, body) in &answered {
            let frames = (0..count).map(|id| response_frame(id, body.clone())).collect();
            let frames = peer::ExchangeResponse { frames };
            message(&format!("peer frames, {count} × {name} answered"), count as usize, &frames);
        }
    }
    for count in [1, 64, 256] {
        let body = request_frame::Body::RaftAppend(append(count));
        let frames = peer::ExchangeRequest { frames: vec![request_frame(0, body)] };
        message(&format!("peer frame, an append of {count} strong puts"), count as usize, &frames);
    }
}

fn append(count: u64) -> peer::RaftAppend {
    let id = |index| Some(peer::LogId { term: 3, node: 1, index });
    let payload = Bytes::from(vec![7; ENTRY]);
    peer::RaftAppend {
        vote: Some(peer::Vote { term: 3, node: 1, committed: true }),
        previous: id(1_000_000),
        entries: (0..count)
            .map(|n| peer::LogEntry { id: id(1_000_001 + n), payload: payload.clone() })
            .collect(),
        committed: id(1_000_000),
    }
}

/// An incarnation as it is drawn.
fn incarnation(n: u64) -> Incarnation {
    Incarnation((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The clock of a primary that has all that three of them have minted.
fn clock() -> NodeClock {
    let mut clock = NodeClock::new();
    (0..3).for_each(|n| clock.seal(incarnation(n), 60_000));
    clock
}

/// The state of a key that was written `writes` times by three primaries, the last `values` of them
/// concurrently, as it leaves one of them: filled.
fn state(writes: u64, values: u64) -> State {
    let mut state = State::default();
    let mut seen = Context::new();
    for n in 1..=writes {
        let dot = Dot { incarnation: incarnation(n % 3), counter: 50_000 + n };
        let request = mutation(1_000 + n).request_id;
        let sibling = Sibling { stamp: Hlc::at(NOW_MS + n), request, value: Bytes::from(vec![7; VALUE]) };
        if n + values <= writes + 1 {
            seen = state.record.context.clone();
        }
        state.record.update(&seen, dot, Some(sibling));
        state.writes.insert(dot, Write { issued_at_ms: NOW_MS + n, request, body: 0x7f3a_9c21 });
    }
    assert_eq!(state.record.siblings.len() as u64, values);
    state.record.fill(&clock());
    state
}

fn keys() -> ContextKeys {
    ContextKeys::new([ContextKey::new([7; 32])])
}

fn token(keys: &ContextKeys, seen: &Seen) -> Bytes {
    encode_context_token(keys, NAMESPACE, KEY, seen)
}

/// Records of available keys, the same on disk and on the wire, and the contexts that clients hold.
fn states() {
    for (name, writes, values) in [
        ("state of a new key", 1, 1),
        ("state of one value, 16 writes before it", 17, 1),
        ("state of 5 siblings", 5, 5),
        ("state of 5 siblings, 12 writes before them", 17, 5),
    ] {
        let mut state = state(writes, values);
        let bytes = state.encode();
        line(name, 1, Some(bytes.len()), || state.encode(), || State::decode(bytes.clone()).unwrap());
        state.record.strip(&clock());
        let bytes = state.encode();
        let stored = format!("{name}, stored");
        line(&stored, 1, Some(bytes.len()), || state.encode(), || State::decode(bytes.clone()).unwrap());
    }
    let seen = state(17, 1).seen();
    let keys = keys();
    let bytes = token(&keys, &seen);
    let read = || decode_context_token(&keys, NAMESPACE, KEY, &bytes).unwrap();
    line("context of a client", 1, Some(bytes.len()), || token(&keys, &seen), read);
}

fn main() {
    println!("keys of {} B, values of {VALUE} B; nanoseconds an item", KEY.len());
    println!("| | B an item | written, ns | MB/s | read, ns | MB/s |");
    println!("|---|---|---|---|---|---|");
    sessions();
    vocabulary();
    peers();
    states();
}
