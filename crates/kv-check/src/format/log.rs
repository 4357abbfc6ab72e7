//! The logs of the public test vectors.

use super::edn::{self, Edn};
use crate::Event;
use crate::history::Malformed;
use crate::operation::MISMATCH;
use crate::{EventType, Function, Json};

/// What stands before the process in a line of the log.
const LOGGER: &str = "jepsen.util - ";

/// Reads lines of a Jepsen log, or maps without times. Time is the position of the line.
pub(super) fn read(text: &str) -> Result<Vec<Event>, Malformed> {
    let mut events = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |message: String| Malformed { line: at + 1, message };
        let mut event = if line.trim_start().starts_with('{') {
            let mut maps = edn::parse(line).map_err(|error| bad(error.message))?;
            match (maps.pop(), maps.is_empty()) {
                (Some((_, map)), true) => edn::event(&map).map_err(bad)?,
                _ => return Err(bad("a line holds one map".into())),
            }
        } else {
            logged(line).map_err(bad)?
        };
        (event.index, event.time) = (events.len() as u64, at as u64 + 1);
        events.push(event);
    }
    Ok(events)
}

/// `INFO  jepsen.util - PROCESS :TYPE :F VALUE`, separated by any blanks.
fn logged(line: &str) -> Result<Event, String> {
    let (_, said) = line.split_once(LOGGER).ok_or_else(|| format!("no line of {LOGGER:?}"))?;
    let forms = edn::parse(said).map_err(|error| error.message)?;
    let forms: Vec<Edn> = forms.into_iter().map(|(_, form)| form).collect();
    let [process, Edn::Keyword(kind), Edn::Keyword(f), value] = forms.as_slice() else {
        return Err("not PROCESS :TYPE :FUNCTION VALUE".into());
    };
    let mut event = Event::new(0, edn::process(process)?, edn::kind(kind)?, edn::function(f), value.json()?);
    if event.kind != EventType::Invoke && matches!(value, Edn::Keyword(_)) {
        // `:timed-out` is a reason, not a value.
        event.err = event.value.as_str().map(str::to_owned);
        event.value = Json::Null;
    }
    if event.kind == EventType::Fail && event.f == Function::Cas && event.err.is_none() {
        event.err = Some(MISMATCH.into());
    }
    Ok(event)
}
