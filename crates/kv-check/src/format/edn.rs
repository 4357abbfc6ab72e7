//! Jepsen's EDN: the part of the notation that histories are written in, and histories in it.
//!
//! An event is a map with Jepsen's keys, `{:index 12, :time 123, :process 7, :type :invoke, :f :cas, :value
//! [4 9]}`. We add `:key`, `:ns`, `:node` and what else an [`Event`] knows; where there is a key, the value
//! is Jepsen's `[key value]` of independent keys, so that its tools can split the history. Keywords become
//! strings.

use crate::history::Malformed;
use crate::operation::MISMATCH;
use crate::{Event, EventType, Function, Json, Process};
use std::fmt::Write as _;
use std::io::{self, Write};

/// Deeper nesting is refused.
const MAX_DEPTH: usize = 64;

/// A form of EDN.
#[derive(Clone, Debug, PartialEq)]
pub enum Edn {
    /// `nil`, truth values and numbers as in JSON, and strings.
    Plain(Json),
    /// `:name`.
    Keyword(String),
    /// `name`.
    Symbol(String),
    /// `[...]`, `(...)` and `#{...}`.
    Sequence(Vec<Edn>),
    /// `{...}`, in its order.
    Map(Vec<(Edn, Edn)>),
}

impl Edn {
    /// As JSON: keywords and symbols as strings, keys of maps as strings.
    pub fn json(&self) -> Result<Json, String> {
        Ok(match self {
            Edn::Plain(value) => value.clone(),
            Edn::Keyword(name) | Edn::Symbol(name) => Json::String(name.clone()),
            Edn::Sequence(forms) => forms.iter().map(Edn::json).collect::<Result<_, _>>()?,
            Edn::Map(pairs) => {
                let pair = |(key, value): &(Edn, Edn)| Ok((key.text()?, value.json()?));
                Json::Object(pairs.iter().map(pair).collect::<Result<_, String>>()?)
            }
        })
    }

    /// As a name: strings and keywords as they are, numbers as they are written.
    fn text(&self) -> Result<String, String> {
        match self {
            Edn::Plain(Json::String(text)) | Edn::Keyword(text) => Ok(text.clone()),
            Edn::Plain(Json::Number(number)) => Ok(number.to_string()),
            other => Err(format!("{} is not a name", other.json()?)),
        }
    }

    fn get(&self, name: &str) -> Option<&Edn> {
        let Edn::Map(pairs) = self else { return None };
        let found = pairs.iter().find(|(key, _)| matches!(key, Edn::Keyword(key) if key == name));
        found.map(|(_, value)| value).filter(|value| **value != Edn::Plain(Json::Null))
    }
}

/// Parses all forms of a text, each with the line it begins in.
pub fn parse(text: &str) -> Result<Vec<(usize, Edn)>, Malformed> {
    let mut parser = Parser { rest: text.chars().peekable(), line: 1, depth: 0 };
    let mut forms = Vec::new();
    loop {
        let outcome = parser.blank().and_then(|()| {
            let line = parser.line;
            Ok((line, if parser.rest.peek().is_some() { parser.form()? } else { None }))
        });
        match outcome {
            Ok((_, None)) if parser.rest.peek().is_none() => return Ok(forms),
            Ok((_, None)) => {}
            Ok((line, Some(form))) => forms.push((line, form)),
            Err(message) => return Err(Malformed { line: parser.line, message }),
        }
    }
}

struct Parser<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    depth: usize,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    /// Skips blanks, commas and comments.
    fn blank(&mut self) -> Result<(), String> {
        while let Some(next) = self.rest.peek() {
            if *next == ';' {
                while self.rest.peek().is_some_and(|next| *next != '\n') {
                    self.next();
                }
            } else if next.is_whitespace() || *next == ',' {
                self.next();
            } else {
                break;
            }
        }
        Ok(())
    }

    /// The form that begins here; none for one that is to be discarded.
    fn form(&mut self) -> Result<Option<Edn>, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH}"));
        }
        let form = match self.rest.peek().copied() {
            None => return Err("ends within a form".into()),
            Some('[') => Some(Edn::Sequence(self.sequence(']')?)),
            Some('(') => Some(Edn::Sequence(self.sequence(')')?)),
            Some('{') => Some(Edn::Map(pairs(self.sequence('}')?)?)),
            Some('"') => Some(Edn::Plain(Json::String(self.string()?))),
            Some('#') => self.dispatched()?,
            Some('\\') => Some(Edn::Plain(Json::String(self.character()?))),
            Some(_) => Some(atom(&self.word())?),
        };
        self.depth -= 1;
        Ok(form)
    }

    /// The forms up to the closing character; the opening one comes next.
    fn sequence(&mut self, close: char) -> Result<Vec<Edn>, String> {
        self.next();
        let mut forms = Vec::new();
        loop {
            self.blank()?;
            match self.rest.peek() {
                None => return Err(format!("ends before {close:?}")),
                Some(next) if *next == close => {
                    self.next();
                    return Ok(forms);
                }
                Some(_) => forms.extend(self.form()?),
            }
        }
    }

    /// After `#`: a set, a form to discard, or a tag, which is dropped.
    fn dispatched(&mut self) -> Result<Option<Edn>, String> {
        self.next();
        match self.rest.peek() {
            Some('{') => Ok(Some(Edn::Sequence(self.sequence('}')?))),
            Some('_') => {
                self.next();
                self.blank()?;
                self.form()?;
                Ok(None)
            }
            Some(next) if next.is_alphabetic() => {
                self.word();
                self.blank()?;
                self.form()
            }
            _ => Err("nothing known follows #".into()),
        }
    }

    /// A character: `\a`, `\newline`, `\u0041`.
    fn character(&mut self) -> Result<String, String> {
        self.next();
        let first = self.next().ok_or("ends within a character")?;
        let name = format!("{first}{}", self.word());
        Ok(match name.as_str() {
            "newline" => "\n".into(),
            "return" => "\r".into(),
            "space" => " ".into(),
            "tab" => "\t".into(),
            one if one.chars().count() == 1 => name,
            code => {
                let code = code.strip_prefix('u').and_then(|code| u32::from_str_radix(code, 16).ok());
                code.and_then(char::from_u32).ok_or_else(|| format!("no character \\{name}"))?.to_string()
            }
        })
    }

    fn string(&mut self) -> Result<String, String> {
        self.next();
        let mut text = String::new();
        loop {
            match self.next().ok_or("ends within a string")? {
                '"' => return Ok(text),
                '\\' => match self.next().ok_or("ends within a string")? {
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'n' => text.push('\n'),
                    'b' => text.push('\u{8}'),
                    'f' => text.push('\u{c}'),
                    'u' => {
                        let code: String = (0..4).filter_map(|_| self.next()).collect();
                        let code = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
                        text.push(code.ok_or("no character after \\u")?);
                    }
                    same @ ('"' | '\\' | '/') => text.push(same),
                    other => return Err(format!("\\{other} is not an escape")),
                },
                other => text.push(other),
            }
        }
    }

    /// Everything up to a blank or a bracket.
    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(next) = self.rest.peek().copied() {
            if next.is_whitespace() || matches!(next, ',' | ';' | '"' | '(' | ')' | '[' | ']' | '{' | '}') {
                break;
            }
            word.push(next);
            self.next();
        }
        word
    }
}

fn pairs(forms: Vec<Edn>) -> Result<Vec<(Edn, Edn)>, String> {
    let mut pairs = Vec::with_capacity(forms.len() / 2);
    let mut forms = forms.into_iter();
    while let Some(key) = forms.next() {
        pairs.push((key, forms.next().ok_or("a map with a key that has no value")?));
    }
    Ok(pairs)
}

fn atom(word: &str) -> Result<Edn, String> {
    if let Some(name) = word.strip_prefix(':') {
        return if name.is_empty() {
            Err("a keyword without a name".into())
        } else {
            Ok(Edn::Keyword(name.into()))
        };
    }
    Ok(match word {
        "" => return Err("a bracket that closes nothing".into()),
        "nil" => Edn::Plain(Json::Null),
        "true" => Edn::Plain(true.into()),
        "false" => Edn::Plain(false.into()),
        _ if word.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '-' | '+'))
            && word.contains(|digit: char| digit.is_ascii_digit()) =>
        {
            let digits = word.strip_prefix('+').unwrap_or(word);
            let digits = digits.strip_suffix(['N', 'M']).unwrap_or(digits);
            let number = serde_json::from_str(digits).ok().filter(Json::is_number);
            Edn::Plain(number.ok_or_else(|| format!("{word:?} is not a number"))?)
        }
        name => Edn::Symbol(name.into()),
    })
}

pub(super) fn process(form: &Edn) -> Result<Process, String> {
    match form {
        Edn::Plain(Json::Number(number)) if number.is_u64() => {
            Ok(Process::Client(number.as_u64().unwrap_or_default()))
        }
        Edn::Keyword(name) if name == "nemesis" => Ok(Process::Nemesis),
        other => Err(format!(":process is a number or :nemesis, not {}", other.json()?)),
    }
}

pub(super) fn kind(name: &str) -> Result<EventType, String> {
    match name {
        "invoke" => Ok(EventType::Invoke),
        "ok" => Ok(EventType::Ok),
        "fail" => Ok(EventType::Fail),
        "info" => Ok(EventType::Info),
        other => Err(format!(":type is :invoke, :ok, :fail or :info, not :{other}")),
    }
}

/// Other stores get and put where ours reads and writes.
pub(super) fn function(name: &str) -> Function {
    match name {
        "get" => Function::Read,
        "put" => Function::Write,
        name => Function::from(name),
    }
}

/// An event from a map; index and time are 0 where it has none.
pub(super) fn event(map: &Edn) -> Result<Event, String> {
    if !matches!(map, Edn::Map(_)) {
        return Err("an event is a map".into());
    }
    let required = |name: &str| map.get(name).ok_or_else(|| format!("no :{name}"));
    let number = |name: &str| match map.get(name) {
        None => Ok(None),
        Some(Edn::Plain(Json::Number(number))) if number.is_u64() => Ok(number.as_u64()),
        Some(other) => Err(format!(":{name} is a number, not {}", other.json()?)),
    };
    let text = |name: &str| map.get(name).map(Edn::text).transpose();
    let json = |name: &str| map.get(name).map(Edn::json).transpose();
    let kind = kind(&required("type")?.text()?)?;
    let f = function(&required("f")?.text()?);
    let value = json("value")?.unwrap_or_default();
    let mut event = Event::new(number("time")?.unwrap_or(0), process(required("process")?)?, kind, f, value);
    event.index = number("index")?.unwrap_or(0);
    event.key = text("key")?;
    event.node = text("node")?;
    event.ns = text("ns")?;
    event.err = match (map.get("err"), json("error")?) {
        (Some(err), _) => Some(err.text()?),
        (None, Some(Json::String(error))) => Some(error),
        (None, error) => error.map(|error| error.to_string()),
    };
    event.revision = number("revision")?;
    event.expect_revision = number("expect-revision")?;
    event.observed = match json("observed")? {
        None => None,
        Some(Json::Array(values)) => Some(values),
        Some(other) => return Err(format!(":observed is a vector, not {other}")),
    };
    event.covers_unseen = json("covers-unseen")? == Some(Json::Bool(true));
    event.receipt = json("receipt")?;
    if let (Some(key), Json::Array(pair)) = (&event.key, &mut event.value)
        && pair.len() == 2
        && pair.first().and_then(Json::as_str) == Some(key)
    {
        event.value = pair.pop().unwrap_or_default();
    }
    if event.kind == EventType::Fail && event.f == Function::Cas && event.err.is_none() {
        // Jepsen's way to say that the value was not as expected.
        event.err = Some(MISMATCH.into());
    }
    Ok(event)
}

/// Reads a history: maps, or one vector of maps. Where none has a time, time is the position, and so with
/// indices.
pub fn read(text: &str) -> Result<Vec<Event>, Malformed> {
    let mut forms = parse(text)?;
    if let [(line, Edn::Sequence(maps))] = forms.as_slice() {
        forms = maps.iter().map(|map| (*line, map.clone())).collect();
    }
    let mut events = Vec::with_capacity(forms.len());
    for (line, map) in &forms {
        events.push(event(map).map_err(|message| Malformed { line: *line, message })?);
    }
    for (name, at) in [("time", 1), ("index", 0)] {
        let without = forms.iter().position(|(_, map)| map.get(name).is_none());
        let Some((line, _)) = without.and_then(|at| forms.get(at)) else { continue };
        if forms.iter().any(|(_, map)| map.get(name).is_some()) {
            return Err(Malformed { line: *line, message: format!("no :{name}, which others have") });
        }
        for (position, event) in (at..).zip(&mut events) {
            *if name == "time" { &mut event.time } else { &mut event.index } = position;
        }
    }
    split_keys(&mut events);
    Ok(events)
}

/// Jepsen's independent keys: where every client's value is a pair, though some read or write, it is `[key
/// value]`.
fn split_keys(events: &mut [Event]) {
    let clients = || events.iter().filter(|event| event.process != Process::Nemesis);
    let pair = |event: &Event| matches!(&event.value, Json::Array(pair) if pair.len() == 2);
    let simple = |event: &Event| matches!(event.f, Function::Read | Function::Write);
    if !clients().any(simple) || !clients().all(|event| event.key.is_none() && pair(event)) {
        return;
    }
    for event in events.iter_mut().filter(|event| event.process != Process::Nemesis) {
        if let Json::Array(pair) = &mut event.value
            && let (Some(value), Some(key)) = (pair.pop(), pair.pop())
        {
            event.key = Some(key.as_str().map_or_else(|| key.to_string(), str::to_owned));
            event.value = value;
        }
    }
}

/// Writes events as EDN, one map a line.
pub fn write(mut sink: impl Write, events: &[Event]) -> io::Result<()> {
    for event in events {
        writeln!(sink, "{}", line(event))?;
    }
    sink.flush()
}

fn line(event: &Event) -> String {
    let kind = match event.kind {
        EventType::Invoke => "invoke",
        EventType::Ok => "ok",
        EventType::Fail => "fail",
        EventType::Info => "info",
    };
    let process = match event.process {
        Process::Client(number) => number.to_string(),
        Process::Nemesis => ":nemesis".into(),
    };
    let mut line =
        format!("{{:index {}, :time {}, :process {process}, :type :{kind}, :f ", event.index, event.time);
    keyword(&mut line, event.f.name());
    line.push_str(", :value ");
    match &event.key {
        Some(key) => form(&mut line, &Json::Array(vec![key.as_str().into(), event.value.clone()])),
        None => form(&mut line, &event.value),
    }
    let text = |value: &Option<String>| value.clone().map(Json::String);
    for (name, value) in [
        ("key", text(&event.key)),
        ("ns", text(&event.ns)),
        ("node", text(&event.node)),
        ("err", text(&event.err)),
        ("revision", event.revision.map(Json::from)),
        ("expect-revision", event.expect_revision.map(Json::from)),
        ("observed", event.observed.clone().map(Json::Array)),
        ("covers-unseen", event.covers_unseen.then_some(Json::Bool(true))),
        ("receipt", event.receipt.clone()),
    ] {
        if let Some(value) = value {
            // Writing into a string does not fail.
            let _ = write!(line, ", :{name} ");
            form(&mut line, &value);
        }
    }
    line.push('}');
    line
}

/// A name as a keyword where it can be one, else as a string.
fn keyword(line: &mut String, name: &str) {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.' | '?' | '!');
    if !name.is_empty() && name.chars().all(fits) {
        line.push(':');
        line.push_str(name);
    } else {
        form(line, &name.into());
    }
}

fn form(line: &mut String, value: &Json) {
    match value {
        Json::Null => line.push_str("nil"),
        Json::Array(values) => {
            line.push('[');
            for (at, value) in values.iter().enumerate() {
                line.push_str(if at == 0 { "" } else { " " });
                form(line, value);
            }
            line.push(']');
        }
        Json::Object(pairs) => {
            line.push('{');
            for (at, (key, value)) in pairs.iter().enumerate() {
                line.push_str(if at == 0 { "" } else { ", " });
                form(line, &key.as_str().into());
                line.push(' ');
                form(line, value);
            }
            line.push('}');
        }
        // Numbers, truth values and strings are written as in JSON.
        other => line.push_str(&other.to_string()),
    }
}
