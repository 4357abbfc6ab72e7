//! The formats a history comes in: our JSON lines, Jepsen's EDN, and the logs of the public test vectors.

pub mod edn;
mod log;

use crate::Event;
use crate::history::{self, Malformed};

/// How a history is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line; see [`crate::history`].
    Jsonl,
    /// Jepsen's `history.edn`: one map a line, or one vector of maps.
    Edn,
    /// The vectors that Porcupine is tested with: lines of a Jepsen log, `INFO  jepsen.util - 0  :invoke
    /// :read  nil`, or maps without times. Time is the position of the line.
    Porcupine,
}

impl Format {
    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Jsonl => "jsonl",
            Format::Edn => "edn",
            Format::Porcupine => "porcupine",
        }
    }

    /// The format by the first characters; none where they fit no format, or there are none.
    pub fn detect(text: &[u8]) -> Option<Format> {
        let start = text.trim_ascii_start();
        let after_brace = start.strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
        match (start.first()?, after_brace.and_then(<[u8]>::first)) {
            (b'{', Some(b'"' | b'}')) => Some(Format::Jsonl),
            (b'{', _) | (b'[' | b'(' | b'#' | b';', _) => Some(Format::Edn),
            _ if start.starts_with(b"INFO") => Some(Format::Porcupine),
            _ => None,
        }
    }
}

/// Reads a history; without a format, the detected one. The first thing that is wrong ends it, and is named
/// with its line. No bytes at all are a history without events.
pub fn read(bytes: &[u8], format: Option<Format>) -> Result<Vec<Event>, Malformed> {
    let unknown = || Malformed { line: 1, message: "neither JSON lines nor EDN nor a log of Jepsen".into() };
    if bytes.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    match format.or_else(|| Format::detect(bytes)).ok_or_else(unknown)? {
        Format::Jsonl => history::read(bytes),
        Format::Edn => edn::read(text(bytes)?),
        Format::Porcupine => log::read(text(bytes)?),
    }
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Malformed { line, message: "not UTF-8".into() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventType, Function, Process};
    use serde_json::json;

    #[test]
    fn formats_are_told_apart_by_their_first_characters() {
        for (text, format) in [
            ("\n {\"index\":0}", Some(Format::Jsonl)),
            ("{:process 0}", Some(Format::Edn)),
            ("[{:process 0}]", Some(Format::Edn)),
            ("; a comment", Some(Format::Edn)),
            ("#jepsen.history.Op{:process 0}", Some(Format::Edn)),
            ("INFO  jepsen.util - 0\t:invoke", Some(Format::Porcupine)),
            ("file\tlinearizable", None),
            ("", None),
        ] {
            assert_eq!(Format::detect(text.as_bytes()), format, "{text}");
        }
        assert_eq!(read(b"  \n", None), Ok(Vec::new()));
        assert_eq!(read(b"hello", None).unwrap_err().line, 1);
        assert_eq!(read(b"{:a 1}\n\xff", None).unwrap_err().line, 2);
    }

    #[test]
    fn the_log_of_the_vectors_is_understood() {
        let log = "INFO  jepsen.util - 0\t:invoke\t:cas\t[3 0]\n\
                   INFO  jepsen.util - :nemesis :info :start nil\n\n\
                   INFO  jepsen.util - 0   :fail  :cas  [3 0]\n\
                   INFO  jepsen.util - 0\t:invoke\t:read\tnil\n\
                   INFO  jepsen.util - 0\t:fail\t:read\t:timed-out\n";
        let events = read(log.as_bytes(), None).unwrap();
        let kinds: Vec<_> = events.iter().map(|event| (event.time, event.kind)).collect();
        assert_eq!(
            kinds,
            [
                (1, EventType::Invoke),
                (2, EventType::Info),
                (4, EventType::Fail),
                (5, EventType::Invoke),
                (6, EventType::Fail)
            ]
        );
        assert_eq!((&events[0].f, &events[0].value), (&Function::Cas, &json!([3, 0])));
        assert_eq!(events[1].process, Process::Nemesis);
        assert_eq!(events[2].err.as_deref(), Some("mismatch"));
        assert_eq!((events[4].err.as_deref(), &events[4].value), (Some("timed-out"), &json!(null)));
    }

    #[test]
    fn a_bad_line_of_a_log_is_named() {
        let good = "INFO  jepsen.util - 0\t:invoke\t:read\tnil";
        for bad in [
            "INFO  jepsen.util - 0\t:invoke\t:read",
            "INFO  jepsen.util - 0\t:invoke\t:read\tnil nil",
            "INFO  jepsen.util - x\t:invoke\t:read\tnil",
            "INFO  jepsen.util - 0\tinvoke\t:read\tnil",
            "INFO  jepsen.util - 0\t:maybe\t:read\tnil",
            "INFO  jepsen.util - 0\t:invoke\t:read\t[1",
            "WARN  something else",
        ] {
            let error = read(format!("{good}\n\n{bad}\n").as_bytes(), None).unwrap_err();
            assert_eq!(error.line, 3, "{bad}: {error}");
        }
    }
}
