//! Results go to standard output, messages to standard error. Text may change between versions; JSON only
//! grows.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use kv_types::{Degradation, Evidence, NodeId, ReadPath, Receipt, counted, noun};
use serde_json::{Map, Value, json};

use crate::exit::Exit;
use crate::fold::{WIDTH, fold, fold_error};
use crate::problem::Problem;

/// Where the shell says to a command which line of its script it is; 0 where a person types.
pub(crate) const SHELL_LINE: &str = "KVCTL_SHELL_LINE";

/// Where the shell says to its lines that no namespace is selected, because this `use` failed.
pub(crate) const FAILED_USE: &str = "KVCTL_SHELL_FAILED_USE";

/// The `use` that failed in this shell. What is set elsewhere, as in the context, does not take its place.
pub(crate) fn failed_use() -> Option<String> {
    std::env::var(FAILED_USE).ok()
}

/// Whether this is one of the lines of `kvctl shell`.
pub(crate) fn is_in_shell() -> bool {
    std::env::var_os(SHELL_LINE).is_some()
}

/// Columns between those of a table.
const GAP: usize = 2;
const PADDING: u16 = 2;
/// Longest name that stands in its row.
const LONG_NAME: usize = 28;

/// The form of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    // For people.
    Text,
    // One object, JSON Lines for several.
    Json,
    // The bytes of the value and nothing else.
    Raw,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    // On a terminal, unless NO_COLOR is set.
    Auto,
    // Always.
    Always,
    // Never.
    Never,
}

/// Where and how a command speaks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) format: Format,
    pub(crate) quiet: bool,
    pub(crate) verbose: bool,
    color: bool,
    pub(crate) terminal: bool,
    /// Messages go to a terminal.
    speaks_to_terminal: bool,
    /// The terminal knows escape sequences.
    knows_escapes: bool,
    /// Of a command that the shell runs: the line of its script, 0 where a person types.
    shell_line: Option<u64>,
}

impl Output {
    pub(crate) fn new(format: Format, quiet: bool, verbose: bool, color: Color) -> Self {
        let (speaks_to_terminal, knows_escapes) = (io::stderr().is_terminal(), knows_escapes());
        let wanted = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                let plain = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
                speaks_to_terminal && knows_escapes && !plain
            }
        };
        let terminal = io::stdout().is_terminal();
        let shell_line = std::env::var(SHELL_LINE).ok().and_then(|line| line.parse().ok());
        Self {
            format,
            quiet,
            verbose,
            color: wanted,
            terminal,
            speaks_to_terminal,
            knows_escapes,
            shell_line,
        }
    }

    /// The same for the shell itself, at this line of its script.
    pub(crate) fn at_line(self, line: u64) -> Self {
        Self { shell_line: Some(line), ..self }
    }

    /// Whether other commands write to the same place after this one.
    pub(crate) fn is_in_shell(&self) -> bool {
        self.shell_line.is_some()
    }

    /// What errors of a script begin with.
    pub(crate) fn place(&self) -> String {
        match self.shell_line {
            Some(line) if line > 0 => format!("line {line}: "),
            _ => String::new(),
        }
    }

    /// Whether a person reads the messages.
    pub(crate) fn speaks_to_terminal(&self) -> bool {
        self.speaks_to_terminal
    }

    /// Whether it is said what is waited for.
    pub(crate) fn shows_progress(&self) -> bool {
        self.speaks_to_terminal && !self.quiet && !self.is_json()
    }

    /// Whether what was written on the terminal can be taken back and drawn over.
    pub(crate) fn redraws(&self) -> bool {
        self.knows_escapes
    }

    /// Whether messages have colour.
    pub(crate) fn has_color(&self) -> bool {
        self.color
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// A line of a result.
    pub(crate) fn line(&self, text: impl std::fmt::Display) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{text}")
    }

    /// A line about a deed; `-q` silences it.
    pub(crate) fn done(&self, text: impl std::fmt::Display) -> io::Result<()> {
        match (self.quiet, self.terminal) {
            (true, _) => Ok(()),
            (false, true) => self.line(fold(&text.to_string())),
            (false, false) => self.line(text),
        }
    }

    /// A JSON object, versioned, on one line.
    pub(crate) fn json(&self, object: &Value) -> io::Result<()> {
        self.line(versioned(object))
    }

    /// What a change that was applied ends with, once it was said. Where it cannot be said it stays applied,
    /// and a script must not take it for refused.
    pub(crate) fn acknowledged(&self, said: io::Result<()>) -> Exit {
        match said {
            Ok(()) => Exit::Done,
            // A reader that has read enough missed nothing that it wanted.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.unread(),
            Err(error) => {
                let what = "it was applied, but standard output cannot be written";
                self.warn(format!("{what}: {error}"));
                Exit::Done
            }
        }
    }

    /// How a command ends whose reader has read enough: well; a line of a shell tells it so, for the lines
    /// that follow have no reader either.
    pub(crate) fn unread(&self) -> Exit {
        if self.is_in_shell() { Exit::Unread } else { Exit::Done }
    }

    /// Bytes as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// A message on standard error; `-q` silences it.
    pub(crate) fn note(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            self.say("note", text);
        }
    }

    /// A message that nothing silences.
    pub(crate) fn warn(&self, text: impl std::fmt::Display) {
        self.say("warning", text);
    }

    /// A line on the terminal in the place of the one that was written so before.
    pub(crate) fn passing(&self, line: &str) {
        let mut err = io::stderr().lock();
        // There is nowhere left to report that this cannot be written.
        let _ = match self.redraws() {
            true => write!(err, "\r\x1b[K{line}"),
            false => writeln!(err, "{line}"),
        };
        let _ = err.flush();
    }

    /// In the form of the results.
    fn say(&self, kind: &str, text: impl std::fmt::Display) {
        let text = text.to_string();
        let whole = if self.is_json() {
            versioned(&json!({ kind: text.strip_prefix(&format!("{kind}: ")).unwrap_or(&text) }))
        } else if kind == "note" {
            harmless(&text)
        } else {
            format!("{kind}: {}", harmless(&text))
        };
        let whole = if self.speaks_to_terminal && !self.is_json() { fold(&whole) } else { whole };
        // There is nowhere left to report that reporting failed.
        let _ = writeln!(io::stderr().lock(), "{whole}");
    }

    /// An error, which nothing silences.
    pub(crate) fn problem(&self, problem: &Problem) {
        let place = self.place();
        let text = if self.is_json() {
            let mut whole = problem.json();
            if let Some(error) = whole.get_mut("error").and_then(Value::as_object_mut)
                && let Some(line) = self.shell_line.filter(|line| *line > 0)
            {
                error.insert("line".into(), line.into());
            }
            versioned(&whole)
        } else {
            let mut text = harmless(&format!("{place}error: {problem}"));
            if self.speaks_to_terminal {
                text = fold_error(&text);
            }
            match self.color {
                true => text.replacen("error:", "\x1b[1;31merror:\x1b[0m", 1),
                false => text,
            }
        };
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

/// Writes what the parser says as help, in colour where that is wanted.
pub(crate) fn help(text: &clap::builder::StyledStr, to_messages: bool) {
    let (out, err) = (io::stdout(), io::stderr());
    let terminal = if to_messages { err.is_terminal() } else { out.is_terminal() };
    let colour = match of_parser() {
        clap::ColorChoice::Never => false,
        clap::ColorChoice::Always => true,
        clap::ColorChoice::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
    };
    let text = fold(&if colour { text.ansi().to_string() } else { text.to_string() });
    // Where it goes has been closed: there is no one to tell.
    let _ = if to_messages { write!(err.lock(), "{text}") } else { write!(out.lock(), "{text}") };
}

/// When help, and what the parser says, have colour: the line is not read yet, so its words are looked at.
pub(crate) fn of_parser() -> clap::ColorChoice {
    let words: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().replacen("--color=", "--color ", 1)).collect();
    let words = words.join(" ");
    let asked = |when: &str| {
        words.contains(&format!("--color {when}"))
            || std::env::var("KVCTL_COLOR").is_ok_and(|set| set == when)
    };
    match (asked("never"), asked("always"), knows_escapes()) {
        (true, _, _) | (_, false, false) => clap::ColorChoice::Never,
        (_, true, _) => clap::ColorChoice::Always,
        _ => clap::ColorChoice::Auto,
    }
}

/// Whether the terminal, if there is one, knows escape sequences: one without a name, or that calls itself
/// dumb, prints them.
fn knows_escapes() -> bool {
    std::env::var_os("TERM").is_some_and(|name| !name.is_empty() && name != "dumb")
}

fn versioned(object: &Value) -> String {
    let text = object.to_string();
    match text.strip_prefix('{') {
        Some("}") | None => "{\"v\":1}".to_owned(),
        Some(rest) => format!("{{\"v\":1,{rest}"),
    }
}

/// A JSON object of these fields, those with `null` left out.
pub(crate) fn object(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Map<String, Value> {
    fields
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Bytes as a field: `name` when they are text, `name_b64` otherwise.
pub(crate) fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_b64"), base64(bytes).into()),
    };
}

/// Bytes for a person's eyes: text as it is, anything else escaped.
pub(crate) fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t')) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// The same on one line, as keys are shown: a newline in one would look like the end of a message.
pub(crate) fn on_a_line(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// A message without a character that would do something to a terminal, wherever its words come from.
fn harmless(message: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.to_string().as_bytes().escape_ascii().to_string(),
        c => c.to_string(),
    };
    message.chars().map(shown).collect()
}

/// A receipt as JSON.
pub(crate) fn receipt_json(receipt: &Receipt) -> Value {
    let evidence = match &receipt.evidence {
        Evidence::Strong(strong) => json!({
            "group": strong.group.0, "term": strong.term, "index": strong.index,
            "namespace_revision": strong.namespace_revision, "path": read_path(strong.path),
            "applied_lag": strong.applied_lag,
        }),
        Evidence::Available(available) => {
            let replies: Vec<Value> = available
                .replies
                .iter()
                .map(|reply| {
                    json!({
                        "node": reply.node.to_string(), "fallback": reply.fallback, "answered": reply.answered,
                        "fsynced": reply.fsynced, "knows": reply.knows,
                    })
                })
                .collect();
            json!({
                "n": available.n, "r": available.r, "w": available.w, "strict": available.strict, "replies": replies,
                "hints": available.hints, "repair": available.repair, "siblings": available.siblings,
                "staleness_bound_ms": available.staleness_bound_ms, "settled": available.settled,
            })
        }
    };
    json!({
        "promised": receipt.promised.to_string(), "delivered": receipt.delivered().to_string(),
        "epoch": receipt.epoch.0, "served_by": receipt.served_by.to_string(), "attempts": receipt.attempts,
        "deduplicated": receipt.deduplicated, "degraded": receipt.degraded.iter().map(degradation).collect::<Vec<_>>(),
        "evidence": evidence,
    })
}

/// A receipt in one line, for `-v`.
pub(crate) fn receipt_line(receipt: &Receipt, latency: std::time::Duration) -> String {
    let evidence = match &receipt.evidence {
        Evidence::Strong(strong) => {
            format!(
                "{}, term {}, index {} ({})",
                strong.group,
                strong.term,
                strong.index,
                read_path(strong.path)
            )
        }
        Evidence::Available(available) => {
            let names = |fallback| {
                let nodes =
                    available.replies.iter().filter(|reply| reply.answered && reply.fallback == fallback);
                nodes.map(|reply| reply.node.to_string()).collect::<Vec<_>>().join(" ")
            };
            let fallbacks = names(true);
            format!(
                "N={} R={} W={}, primaries {}{}{}",
                available.n,
                available.r,
                available.w,
                names(false),
                if fallbacks.is_empty() { String::new() } else { format!(", fallbacks {fallbacks}") },
                if available.strict { "" } else { ", strict quorum NOT met" },
            )
        }
    };
    // Passed on by another node is how it came there, and no less than was promised.
    let (forwarded, degraded): (Vec<_>, Vec<_>) =
        receipt.degraded.iter().partition(|how| **how == Degradation::Forwarded);
    let degraded: Vec<&str> = degraded.into_iter().map(degradation).collect();
    format!(
        "served by {}{}   {}   {evidence}{}{}   {}   {:.1} ms",
        receipt.served_by,
        if forwarded.is_empty() { "" } else { ", passed on by another node" },
        receipt.delivered(),
        if degraded.is_empty() { String::new() } else { format!("   degraded: {}", degraded.join(", ")) },
        if receipt.deduplicated { "   deduplicated" } else { "" },
        counted(receipt.attempts.max(1), "attempt", "attempts"),
        latency.as_secs_f64() * 1e3,
    )
}

/// In a few words, how an answer is less than was promised; none if it is not. Passed on to another node is
/// no less.
pub(crate) fn less(receipt: &Receipt) -> Option<String> {
    let named = |fallback: bool, answered: bool| {
        let Evidence::Available(available) = &receipt.evidence else { return Vec::new() };
        let those = available.replies.iter();
        let those = those.filter(|reply| reply.fallback == fallback && reply.answered == answered);
        those.map(|reply| reply.node.to_string()).collect::<Vec<_>>()
    };
    let said = |nodes: Vec<String>, unnamed: &str, one: &str, several: &str| match nodes.len() {
        0 => format!("{unnamed} {one}"),
        count => format!("{} {}", nodes.join(" "), noun(count, one, several)),
    };
    let has = |how| receipt.degraded.contains(&how);
    let words = [
        has(Degradation::PrimarySilent)
            .then(|| said(named(false, false), "a primary", "did not answer", "did not answer")),
        (has(Degradation::Fallback) || has(Degradation::FallbackCoordinator))
            .then(|| said(named(true, true), "a fallback", "stands in", "stand in")),
        has(Degradation::Divergent).then(|| "its replicas differed".to_owned()),
    ];
    let words: Vec<String> = words.into_iter().flatten().collect();
    (!words.is_empty()).then(|| words.join(", "))
}

fn read_path(path: ReadPath) -> &'static str {
    match path {
        ReadPath::ReadIndex => "read_index",
        ReadPath::Lease => "lease",
        ReadPath::Stale => "stale",
        ReadPath::Log => "log",
    }
}

fn degradation(reason: &Degradation) -> &'static str {
    match reason {
        Degradation::Fallback => "fallback",
        Degradation::FallbackCoordinator => "fallback_coordinator",
        Degradation::PrimarySilent => "primary_silent",
        Degradation::Divergent => "divergent",
        Degradation::Forwarded => "forwarded",
    }
}

/// `n1 n2 n3`.
pub(crate) fn nodes(ids: &[u64]) -> String {
    ids.iter().map(|id| NodeId(*id).to_string()).collect::<Vec<_>>().join(" ")
}

/// A table without lines. Where it is wider than the narrowest screen, cells of several words are broken
/// between them; a word never is.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let head = header.iter().map(|&name| name.to_owned()).collect();
    let mut cells: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    narrow(&mut cells);
    columns(cells)
}

/// The cells below each other.
fn columns(cells: Vec<Vec<String>>) -> String {
    let mut cells = cells.into_iter();
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(cells.next().unwrap_or_default());
    for row in cells {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, PADDING));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Breaks cells, those of the widest column first, until the whole fits or nothing is left to break.
fn narrow(cells: &mut [Vec<String>]) {
    let columns = cells.iter().map(Vec::len).max().unwrap_or(0);
    let width = |text: &str| text.chars().count();
    let widest = |column: usize, part: fn(&str) -> usize| {
        cells.iter().filter_map(|row| row.get(column)).map(|cell| part(cell)).max().unwrap_or(0)
    };
    let longest_word = |text: &str| text.split(' ').map(|word| word.chars().count()).max().unwrap_or(0);
    let mut widths: Vec<usize> = (0..columns).map(|column| widest(column, width)).collect();
    let least: Vec<usize> = (0..columns).map(|column| widest(column, longest_word)).collect();
    while widths.iter().sum::<usize>() + GAP * columns.saturating_sub(1) > WIDTH {
        let breakable = widths.iter_mut().zip(&least).filter(|(width, least)| **width > **least);
        let Some((width, _)) = breakable.max_by_key(|(width, _)| **width) else { break };
        *width -= 1;
    }
    for row in cells {
        for (cell, most) in row.iter_mut().zip(&widths).filter(|(cell, most)| width(cell) > **most) {
            *cell = broken_at(cell, *most);
        }
    }
}

/// The words in lines of at most so many columns, unless a word has more.
pub(crate) fn broken_at(text: &str, most: usize) -> String {
    let (mut lines, mut at) = (String::new(), 0);
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if at > 0 && at + 1 + width > most {
            lines.push('\n');
            at = 0;
        } else if at > 0 {
            lines.push(' ');
            at += 1;
        }
        lines.push_str(word);
        at += width;
    }
    lines
}

/// A table whose rows each have a name and something that is said of them: beside the row where a screen has
/// room, or else below it. A name that would push the row off the screen stands above it.
pub(crate) fn table_of_named(header: &[&str], rows: Vec<(Vec<String>, String)>) -> String {
    let is_long = |row: &[String]| row.first().is_some_and(|name| name.chars().count() > LONG_NAME);
    let above: Vec<Option<String>> =
        rows.iter().map(|(row, _)| if is_long(row) { row.first().cloned() } else { None }).collect();
    let (rows, remarks): (Vec<Vec<String>>, Vec<String>) = rows.into_iter().unzip();
    let short = rows.into_iter().zip(&above).map(|(mut row, above)| {
        if let (Some(_), Some(name)) = (above, row.first_mut()) {
            name.clear();
        }
        row
    });
    let head = header.iter().map(|&name| name.to_owned()).collect();
    // A row stays on its line.
    let text = columns(std::iter::once(head).chain(short).collect());
    let columns = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    let mut lines: Vec<String> = text.lines().next().map(str::to_owned).into_iter().collect();
    for ((line, remark), above) in text.lines().skip(1).zip(&remarks).zip(above) {
        lines.extend(above);
        let beside = format!("{line:<columns$}  {remark}");
        match beside.chars().count() <= WIDTH {
            true => lines.push(beside.trim_end().to_owned()),
            false => lines.push(format!("{line}\n    {remark}")),
        }
    }
    lines.join("\n")
}

/// A number for JSON without digits that were not measured.
pub(crate) fn round(number: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (number * scale).round() / scale
}

/// `14:02:15` of a wall time.
pub(crate) fn time_of_day(wall_ms: u64) -> String {
    let seconds = wall_ms / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard base64 with padding (RFC 4648, section 4).
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = usize::try_from(word >> (18 - 6 * place) & 63).unwrap_or(0);
            let digit = ALPHABET.get(digit).copied().unwrap_or(b'=');
            text.push(char::from(if place <= chunk.len() { digit } else { b'=' }));
        }
    }
    text
}

/// The bytes of a base64 text; `None` when it is none.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut word, mut bits) = (0_u32, 0);
    for digit in digits.bytes() {
        let value = ALPHABET.iter().position(|known| *known == digit)?;
        word = word << 6 | u32::try_from(value).ok()?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(word >> bits & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::{GroupId, StrongEvidence};

    #[test]
    fn base64_is_the_usual_one() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foobar", "Zm9vYmFy"),
            (&[0xff, 0xfc], "//w="),
        ] {
            assert_eq!(base64(bytes), text);
            assert_eq!(from_base64(text).as_deref(), Some(bytes));
        }
        for wrong in ["Z", "Zg=", "Z===", "Zm9v!", "=Zm9"] {
            assert_eq!(from_base64(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_was_passed_on_is_not_called_degraded() {
        let evidence = StrongEvidence {
            group: GroupId(1),
            term: 2,
            index: 3,
            namespace_revision: 4,
            path: ReadPath::Log,
            applied_lag: 0,
        };
        let mut receipt = Receipt {
            promised: kv_types::Guarantee::Linearizable,
            epoch: kv_types::Epoch(1),
            served_by: NodeId(1),
            attempts: 1,
            deduplicated: false,
            degraded: vec![Degradation::Forwarded],
            evidence: Evidence::Strong(evidence),
        };
        let line = |receipt: &Receipt| receipt_line(receipt, std::time::Duration::from_millis(1));
        assert!(line(&receipt).contains("n1, passed on by another node"), "{}", line(&receipt));
        assert!(!line(&receipt).contains("degraded"), "{}", line(&receipt));
        receipt.degraded = vec![Degradation::Fallback];
        assert!(line(&receipt).contains("degraded: fallback"), "{}", line(&receipt));
    }

    #[test]
    fn what_is_less_than_was_promised_is_said_in_words() {
        let reply = |node, fallback, answered| kv_types::ReplicaReply {
            node: NodeId(node),
            fallback,
            answered,
            fsynced: answered,
            knows: answered,
        };
        let evidence = |replies| {
            Evidence::Available(kv_types::AvailableEvidence {
                n: 3,
                r: 2,
                w: 2,
                settled: false,
                strict: false,
                replies,
                hints: 2,
                repair: false,
                siblings: 1,
                staleness_bound_ms: None,
            })
        };
        let mut receipt = Receipt {
            promised: kv_types::Guarantee::Eventual,
            epoch: kv_types::Epoch(1),
            served_by: NodeId(1),
            attempts: 1,
            deduplicated: false,
            degraded: vec![Degradation::Forwarded],
            evidence: evidence(vec![reply(1, true, true), reply(4, false, false), reply(5, false, false)]),
        };
        assert_eq!(less(&receipt), None, "passed on is no less");
        receipt.degraded =
            vec![Degradation::Fallback, Degradation::FallbackCoordinator, Degradation::PrimarySilent];
        assert_eq!(less(&receipt).as_deref(), Some("n4 n5 did not answer, n1 stands in"));
        receipt.degraded = vec![Degradation::PrimarySilent, Degradation::Divergent];
        receipt.evidence = evidence(Vec::new());
        assert_eq!(less(&receipt).as_deref(), Some("a primary did not answer, its replicas differed"));
    }

    #[test]
    fn json_begins_with_its_version() {
        assert_eq!(versioned(&json!({ "key": "a" })), r#"{"v":1,"key":"a"}"#);
        assert_eq!(versioned(&json!({})), r#"{"v":1}"#);
    }

    #[test]
    fn bytes_are_text_or_base64() {
        let mut fields = Map::new();
        put_bytes(&mut fields, "key", b"acc/1");
        put_bytes(&mut fields, "value", &[0xff, 0]);
        assert_eq!(Value::Object(fields), json!({ "key": "acc/1", "value_b64": "/wA=" }));
    }

    #[test]
    fn terminals_never_get_control_characters() {
        assert_eq!(readable("ü\n".as_bytes()), "ü\n");
        assert_eq!(readable(b"\x1b[2J"), "\\x1b[2J");
        assert_eq!(readable(&[0xff]), "\\xff");
        // Of a key nothing is left that ends a line.
        assert_eq!(on_a_line("ü:1".as_bytes()), "ü:1");
        assert_eq!(
            ["a\nb", "a\tb", "a\u{9b}b"].map(|key| on_a_line(key.as_bytes())),
            ["a\\nb", "a\\tb", "a\\xc2\\x9bb"]
        );
        assert_eq!(on_a_line(&[b'a', 0xff]), "a\\xff");
        assert_eq!(harmless("ü\n  try: \u{1b}[2J\r\u{9b}"), "ü\n  try: \\x1b[2J\\r\\xc2\\x9b");
    }

    #[test]
    fn tables_are_plain_columns() {
        let text = table(&["node", "state"], [vec!["n1".to_owned(), "up".to_owned()]]);
        assert_eq!(text.lines().map(str::trim_end).collect::<Vec<_>>(), ["node  state", "n1    up"]);
    }

    #[test]
    fn a_wide_table_is_broken_between_words_until_it_fits() {
        let addresses = (1..=9).map(|n| format!("127.0.0.1:{}", 7_100 + n)).collect::<Vec<_>>().join(" ");
        let text = table(
            &["", "context", "endpoints", ""],
            [
                vec!["*".to_owned(), "lab".to_owned(), addresses.clone(), "LAB".to_owned()],
                vec![String::new(), "prod".to_owned(), "db1:7101".to_owned(), String::new()],
            ],
        );
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(addresses.split(' ').all(|address| text.contains(address)), "{text}");
        // A word is left whole, however long it is.
        let key = "k".repeat(2 * WIDTH);
        assert!(table(&["key"], [vec![key.clone()]]).contains(&key));
    }

    #[test]
    fn what_is_said_of_a_row_and_a_long_name_find_room() {
        let row = |name: &str| vec![name.to_owned(), "strong".to_owned()];
        let name = "n".repeat(64);
        let rows = vec![
            (row("bank"), "deleted".to_owned()),
            (row(&name), "x".repeat(WIDTH - 4)),
            (row("cart"), String::new()),
        ];
        let text = table_of_named(&["namespace", "mode"], rows);
        let below = format!("    {}", "x".repeat(WIDTH - 4));
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "namespace  mode",
                "bank       strong  deleted",
                &name,
                "           strong",
                &below,
                "cart       strong"
            ]
        );
    }
}
