//! The history format: JSON lines with Jepsen's keys, so that Jepsen's own tools can read them after a
//! conversion.
//!
//! One object a line, in the order of time, calls before returns where times tie:
//!
//! ```json
//! {"index":12,"time":123456789,"process":7,"type":"invoke","f":"cas","key":"k3","value":[4,9],
//!  "node":"n2","ns":"bank"}
//! ```
//!
//! Unknown keys are ignored: the format only grows.

use crate::Json;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::io::{self, BufRead, Read, Write};

/// Longest line of a history, bytes: a read of the largest siblings, each byte of them escaped, and room.
pub const MAX_LINE_BYTES: u64 = 32 << 20;

/// One line of a history: an operation begins or ends, or the nemesis did something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Position in the history, from 0.
    pub index: u64,
    /// Nanoseconds since the test began, from the one monotonic clock of the harness.
    pub time: u64,
    /// Who did it.
    pub process: Process,
    /// Beginning, or which kind of end.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// What was asked.
    pub f: Function,
    /// The key; the nemesis has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Read: `null` when invoked, then what was read (`null`: absent; in an available namespace the list of
    /// siblings). Write: the value. Cas: `[old, new]`, or with [`Event::expect_revision`] only the new value.
    /// Delete: `null`. Add and append: the element or number. Read of a set or list: the list of its
    /// elements; of a counter: the sum.
    #[serde(default)]
    pub value: Json,
    /// The node that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns: Option<String>,
    /// Why it failed, as the error's code name; [`crate::operation::MISMATCH`] for a cas whose condition did
    /// not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub err: Option<String>,
    /// The revision a mutation got, a read saw, or a mismatch found. A delete that found nothing carries
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Invocation of a cas on a revision: the revision it requires; 0 requires that the key is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_revision: Option<u64>,
    /// Mutation of an available namespace: the values its causal context covered (none: a blind write).
    /// Mismatch of a cas: the value found, as a list of one, or an empty list where the key was absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<Vec<Json>>,
    /// Mutation of an available namespace: it covers what the store has of the key where it arrives, and its
    /// client does not know which values that are. It may cover every write of the key that was called before
    /// it ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub covers_unseen: bool,
    /// The receipt of the answer, carried along as it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Json>,
}

impl Event {
    /// An event with nothing optional set, at index 0: the writer numbers events.
    pub fn new(time: u64, process: Process, kind: EventType, f: Function, value: Json) -> Event {
        Event {
            index: 0,
            time,
            process,
            kind,
            f,
            key: None,
            value,
            node: None,
            ns: None,
            err: None,
            revision: None,
            expect_revision: None,
            observed: None,
            covers_unseen: false,
            receipt: None,
        }
    }
}

/// Who acts: a logical client, which does one thing at a time, or the nemesis. `7` or `"nemesis"` in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    /// A logical client. After an outcome that is not known it is dead, and its worker goes on under another
    /// number.
    Client(u64),
    /// The driver of faults, which cuts, pauses and kills.
    Nemesis,
}

/// The `type` of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventType {
    /// The operation begins, stamped just before the request leaves its caller.
    Invoke,
    /// It took effect.
    Ok,
    /// It definitely did not take effect.
    Fail,
    /// It is not known whether it took effect, or ever will.
    Info,
}

/// The `f` of an event: what was asked of the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Function {
    /// Read one key.
    Read,
    /// Overwrite one key.
    Write,
    /// Overwrite one key if it still is as expected.
    Cas,
    /// Remove one key.
    Delete,
    /// Add an element to a set, or a number to a counter.
    Add,
    /// Append an element to a list.
    Append,
    /// Anything else, above all what the nemesis does; the checkers pass over it.
    Other(String),
}

impl Function {
    /// The name used in histories.
    pub fn name(&self) -> &str {
        match self {
            Function::Read => "read",
            Function::Write => "write",
            Function::Cas => "cas",
            Function::Delete => "delete",
            Function::Add => "add",
            Function::Append => "append",
            Function::Other(name) => name,
        }
    }

    /// Whether it may change what the store holds.
    pub fn mutates(&self) -> bool {
        !matches!(self, Function::Read | Function::Other(_))
    }
}

impl From<&str> for Function {
    fn from(name: &str) -> Function {
        match name {
            "read" => Function::Read,
            "write" => Function::Write,
            "cas" => Function::Cas,
            "delete" => Function::Delete,
            "add" => Function::Add,
            "append" => Function::Append,
            other => Function::Other(other.to_owned()),
        }
    }
}

impl Serialize for Function {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Function {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Function, D::Error> {
        Ok(Function::from(String::deserialize(deserializer)?.as_str()))
    }
}

impl Serialize for Process {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Process::Client(number) => serializer.serialize_u64(*number),
            Process::Nemesis => serializer.serialize_str("nemesis"),
        }
    }
}

impl<'de> Deserialize<'de> for Process {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Process, D::Error> {
        match Json::deserialize(deserializer)? {
            Json::Number(number) if number.is_u64() => {
                Ok(Process::Client(number.as_u64().unwrap_or_default()))
            }
            Json::String(name) if name == "nemesis" => Ok(Process::Nemesis),
            other => Err(de::Error::custom(format!("process is a number or \"nemesis\", not {other}"))),
        }
    }
}

/// A history that cannot be judged, and where it goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Line of the file, from 1; for a history in memory the position of the event, from 1.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for Malformed {}

/// Reads JSON lines of [`MAX_LINE_BYTES`] at most; empty lines are passed over. The first bad line ends it,
/// and is named.
pub fn read(source: impl BufRead) -> Result<Vec<Event>, Malformed> {
    read_within(source, MAX_LINE_BYTES)
}

fn read_within(mut source: impl BufRead, most: u64) -> Result<Vec<Event>, Malformed> {
    let (mut events, mut line) = (Vec::new(), Vec::new());
    for number in 1.. {
        let bad = |message: String| Malformed { line: number, message };
        line.clear();
        let read = source.by_ref().take(most.saturating_add(1)).read_until(b'\n', &mut line);
        if read.map_err(|error| bad(format!("cannot be read: {error}")))? == 0 {
            break;
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        if text.len() as u64 > most {
            return Err(bad(format!("it has more than the {most} bytes that a line may have")));
        }
        let text = text.trim_ascii();
        if !text.is_empty() {
            events.push(serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?);
        }
    }
    Ok(events)
}

/// Writes events as JSON lines. Their order and their indices are the caller's: see [`arrange`].
pub fn write(mut sink: impl Write, events: &[Event]) -> io::Result<()> {
    for event in events {
        serde_json::to_writer(&mut sink, event)?;
        sink.write_all(b"\n")?;
    }
    sink.flush()
}

/// Merges what several workers recorded into one history: in the order of time, invocations before
/// completions where times tie (an interval may only widen), each worker's own order kept, numbered from 0.
pub fn arrange(mut events: Vec<Event>) -> Vec<Event> {
    events.sort_by_key(|event| (event.time, event.kind != EventType::Invoke));
    for (index, event) in (0..).zip(&mut events) {
        event.index = index;
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_without_end_is_an_error_that_names_it() {
        let line = r#"{"index":0,"time":1,"process":1,"type":"invoke","f":"read","key":"k"}"#;
        let bound = line.len() as u64;
        let read = |text: String| read_within(text.as_bytes(), bound);
        // At the bound, with an end of line and without, and as on Windows.
        assert_eq!(read(format!("{line}\n\n{line}")).unwrap().len(), 2);
        assert_eq!(read_within(format!("{line}\r\n").as_bytes(), bound + 1).unwrap().len(), 1);
        let longer = read(format!("{line}\n{line} \n{line}")).unwrap_err();
        assert_eq!(
            longer.to_string(),
            format!("line 2: it has more than the {bound} bytes that a line may have")
        );
        // No more of it is read than that.
        let endless = std::io::repeat(0);
        let refused = super::read(std::io::BufReader::new(endless)).unwrap_err();
        assert!(refused.line == 1 && refused.message.contains("33554432 bytes"), "{refused}");
    }

    #[test]
    fn a_history_survives_the_round_trip() {
        let mut cas = Event::new(5, Process::Client(7), EventType::Fail, Function::Cas, json!([4, "new"]));
        cas.key = Some("k\"3\n".into());
        cas.node = Some("n2".into());
        cas.ns = Some("bank".into());
        cas.err = Some("mismatch".into());
        cas.revision = Some(u64::MAX);
        cas.expect_revision = Some(0);
        cas.observed = Some(vec![json!("other"), Json::Null]);
        cas.receipt = Some(json!({"delivered": "linearizable", "epoch": 3}));
        let cut = Event::new(6, Process::Nemesis, EventType::Info, "cut".into(), json!({"n1": ["n2"]}));
        let events = arrange(vec![cut, cas]);
        assert_eq!(events.iter().map(|event| event.index).collect::<Vec<_>>(), [0, 1]);
        let mut bytes = Vec::new();
        write(&mut bytes, &events).unwrap();
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 2);
        assert_eq!(read(bytes.as_slice()).unwrap(), events);
    }

    #[test]
    fn jepsens_keys_are_understood_and_unknown_ones_ignored() {
        let line = r#"{"index":12,"time":9,"process":7,"type":"info","f":"write","key":"k","value":3,"rev":null,"session":3}"#;
        let event = read(line.as_bytes()).unwrap().remove(0);
        assert_eq!((event.index, event.process, event.kind), (12, Process::Client(7), EventType::Info));
        assert_eq!((event.f, event.value), (Function::Write, json!(3)));
    }

    #[test]
    fn a_bad_line_is_named() {
        let good = r#"{"index":0,"time":1,"process":0,"type":"invoke","f":"read"}"#;
        for bad in [
            "{",
            "[]",
            r#"{"time":1,"process":0,"type":"invoke","f":"read"}"#,
            r#"{"index":1,"process":0,"type":"invoke","f":"read"}"#,
            r#"{"index":1,"time":1,"process":0,"type":"maybe","f":"read"}"#,
            r#"{"index":1,"time":1,"process":-1,"type":"ok","f":"read"}"#,
            r#"{"index":1,"time":1,"process":"someone","type":"ok","f":"read"}"#,
            r#"{"index":1,"time":-1,"process":0,"type":"ok","f":"read"}"#,
        ] {
            let text = format!("{good}\n\n{bad}\n{good}\n");
            assert_eq!(read(text.as_bytes()).unwrap_err().line, 3, "{bad}");
        }
        let not_text: &[u8] = b"\xff\xfe\n";
        assert_eq!(read(not_text).unwrap_err().line, 1);
    }

    #[test]
    fn ties_put_calls_before_returns() {
        let event = |time, kind| Event::new(time, Process::Client(0), kind, Function::Read, Json::Null);
        let events =
            arrange(vec![event(2, EventType::Ok), event(2, EventType::Invoke), event(1, EventType::Info)]);
        let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventType::Info, EventType::Invoke, EventType::Ok]);
    }
}
