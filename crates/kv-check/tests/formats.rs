//! Random histories survive every format, and no input whatever makes a reader panic.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs, reason = "a test")]

use fastrand::Rng;
use kv_check::format::{self, Format, edn};
use kv_check::{Event, EventType, Function, Json, Process, history};
use serde_json::json;

fn text(rng: &mut Rng) -> String {
    let letters =
        ['a', 'Z', '9', ' ', '"', '\\', '\n', '\t', ':', '[', ';', '}', 'ä', '\u{1}', '\u{1f}', '🦀'];
    (0..rng.usize(0..6)).map(|_| letters[rng.usize(0..letters.len())]).collect()
}

fn value(rng: &mut Rng, depth: usize) -> Json {
    match rng.u8(0..if depth == 0 { 7 } else { 9 }) {
        0 => Json::Null,
        1 => rng.bool().into(),
        2 => rng.u64(..).into(),
        3 => rng.i64(..).into(),
        4 => json!(rng.i32(-1000..1000) as f64 / 8.0 + 0.0625),
        5 | 6 => text(rng).into(),
        7 => (0..rng.usize(0..4)).map(|_| value(rng, depth - 1)).collect(),
        _ => Json::Object((0..rng.usize(0..4)).map(|_| (text(rng), value(rng, depth - 1))).collect()),
    }
}

fn event(rng: &mut Rng, index: u64) -> Event {
    let kinds = [EventType::Invoke, EventType::Ok, EventType::Fail, EventType::Info];
    let functions: [Function; 8] = [
        Function::Read,
        Function::Write,
        Function::Cas,
        Function::Delete,
        Function::Add,
        Function::Append,
        "cut".into(),
        "two words".into(),
    ];
    let process = if rng.u8(0..5) == 0 { Process::Nemesis } else { Process::Client(rng.u64(..)) };
    let (kind, f) = (kinds[rng.usize(0..4)], functions[rng.usize(0..8)].clone());
    let mut event = Event::new(rng.u64(..), process, kind, f, value(rng, 3));
    event.index = index;
    event.key = Some(text(rng)); // without, pairs might be taken for Jepsen's [key value]
    event.node = rng.bool().then(|| text(rng));
    event.ns = rng.bool().then(|| text(rng));
    event.err =
        (rng.bool() || (event.kind, &event.f) == (EventType::Fail, &Function::Cas)).then(|| text(rng));
    event.revision = rng.bool().then(|| rng.u64(..));
    event.expect_revision = rng.bool().then(|| rng.u64(..));
    event.observed = rng.bool().then(|| (0..rng.usize(0..3)).map(|_| value(rng, 2)).collect());
    event.receipt = Some(value(rng, 3)).filter(|receipt| !receipt.is_null());
    event
}

#[test]
fn histories_survive_json_lines_and_edn() {
    for seed in 0..2_000 {
        let mut rng = Rng::with_seed(seed);
        let events: Vec<Event> = (0..rng.u64(1..6)).map(|index| event(&mut rng, index)).collect();
        let (mut as_edn, mut as_json) = (Vec::new(), Vec::new());
        edn::write(&mut as_edn, &events).unwrap();
        history::write(&mut as_json, &events).unwrap();
        assert_eq!(Format::detect(&as_edn), Some(Format::Edn));
        assert_eq!(Format::detect(&as_json), Some(Format::Jsonl));
        assert_eq!(format::read(&as_json, None).unwrap(), events, "seed {seed}");
        let shown = String::from_utf8_lossy(&as_edn);
        assert_eq!(format::read(&as_edn, None).unwrap(), events, "seed {seed}: {shown}");
    }
}

#[test]
fn damaged_input_is_an_error_with_a_line_and_never_a_panic() {
    let mut refused = 0;
    for seed in 0..3_000 {
        let mut rng = Rng::with_seed(seed);
        let events: Vec<Event> = (0..4).map(|index| event(&mut rng, index)).collect();
        let mut bytes = Vec::new();
        match seed % 3 {
            0 => history::write(&mut bytes, &events).unwrap(),
            1 => edn::write(&mut bytes, &events).unwrap(),
            _ => bytes = b"INFO  jepsen.util - 0\t:invoke\t:cas\t[3 0]\n".repeat(4),
        }
        for _ in 0..rng.usize(1..6) {
            if bytes.is_empty() {
                break;
            }
            let at = rng.usize(0..bytes.len());
            match rng.u8(0..3) {
                0 => bytes[at] = rng.u8(..),
                1 => {
                    bytes.remove(at);
                }
                _ => bytes.truncate(at.max(1)),
            }
        }
        for format in [None, Some(Format::Jsonl), Some(Format::Edn), Some(Format::Porcupine)] {
            if let Err(error) = format::read(&bytes, format) {
                refused += 1;
                let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
                assert!(
                    (1..=lines).contains(&error.line) && !error.message.is_empty(),
                    "seed {seed}: {error}"
                );
            }
        }
    }
    assert!(refused > 3_000, "{refused}");
    let deep = "[".repeat(1_000_000);
    for format in [Format::Jsonl, Format::Edn, Format::Porcupine] {
        assert_eq!(format::read(deep.as_bytes(), Some(format)).unwrap_err().line, 1);
    }
}

#[test]
fn what_jepsen_writes_is_understood() {
    let events = format::read(
        br#"; a comment
            #jepsen.history.Op{:index 0, :time 10, :type :invoke, :process 3, :f :cas, :value ["x" [1 2]]}
            {:index 1 :time 20 :type :info :process :nemesis :f :start-partition :value {:n1 #{"n2" "n3"}}}
            {:index 2 :time 30 :type :fail :process 3 :f :cas :value ["x" [1 2]] :error :did-not-match}
            #_{:ignored true}
            {:index 3 :time 40 :type :invoke :process 3 :f :read :value [:y nil]}
            {:index 4 :time 50N :type :ok :process 3 :f :read :value [:y 2.5] :extra \newline}"#,
        None,
    )
    .unwrap();
    assert_eq!(events.len(), 5);
    assert_eq!((events[0].key.as_deref(), &events[0].value), (Some("x"), &json!([1, 2])));
    assert_eq!((events[1].process, &events[1].value), (Process::Nemesis, &json!({"n1": ["n2", "n3"]})));
    assert_eq!(events[2].err.as_deref(), Some("did-not-match"));
    assert_eq!((events[3].key.as_deref(), &events[3].value), (Some("y"), &Json::Null));
    assert_eq!((events[4].time, &events[4].value), (50, &json!(2.5)));
    // As one vector, and without times: their order is the time.
    let events = format::read(
        b"[{:type :invoke, :process 0, :f :put, :value 1}\n {:type :ok, :process 0, :f :put, :value 1}]",
        None,
    )
    .unwrap();
    assert_eq!((events[1].time, events[1].index, &events[1].f), (2, 1, &Function::Write));
    for (line, bad) in [
        (1, "{:type :ok"),
        (2, "\n{:type :ok, :process 0, :f :read :value}"),
        (1, "{:process 0, :f :read}"),
        (1, "{:type :ok, :process -1, :f :read}"),
        (3, "{:type :ok :process 0 :f :read :time 1}\n\n{:type :ok :process 0 :f :read}"),
        (1, "{:type :ok :process 0 :f :read :value 1x}"),
        (1, "{:type :ok :process 0 :f :read :value \"\\q\"}"),
        (1, "]"),
    ] {
        assert_eq!(format::read(bad.as_bytes(), Some(Format::Edn)).unwrap_err().line, line, "{bad}");
    }
}
