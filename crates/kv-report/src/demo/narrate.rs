//! What the demo says while it runs: six steps, each with the `kvctl` line that does it, so that the reader
//! can repeat it. Plain lines into a pipe; on a terminal, one line that moves while something is waited for.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use kv_check::Outcome;
use kv_types::NodeId;

use super::by_hand;
use super::judge::{BANK, CART, MAJORITY, MINORITY, Receipt};
use crate::words::{duration, percent};
use kv_workload::Sample;

/// Steps of the story.
const STEPS: usize = 6;
/// Columns of the narrowest screen that is usual. Only what is typed, and where files are, may be wider.
const WIDTH: usize = 80;
/// Width of the words of a step, before its command.
const STEP_WORDS: usize = 44;
/// Where notes begin.
const NOTE: usize = 8;
/// Where it stands what is to be known of the lines to type.
const ABOUT: usize = 6;
/// Where the tables begin.
const TABLE: usize = 4;
/// Widths in the table of the cut: of the second, of the namespace, and of what a side answered.
const SECOND: usize = 6;
const NAMESPACE: usize = 6;
const CELL: usize = 32;
/// Width of the words of a line of the receipt.
const LINE_WORDS: usize = 41;
/// In nanoseconds.
const MILLISECOND: u64 = 1_000_000;
/// Width of a line's column for the strong namespace.
const LINE_COLUMN: usize = 18;

const _: () = assert!(TABLE + SECOND + NAMESPACE + 2 * CELL == WIDTH);

pub(crate) struct Narrator {
    /// What was written can be taken back: a terminal that knows escape sequences.
    terminal: bool,
}

impl Narrator {
    pub(crate) fn new() -> Self {
        let redraws = std::env::var_os("TERM").is_some_and(|name| !name.is_empty() && name != "dumb");
        Self { terminal: redraws && std::io::stdout().is_terminal() }
    }

    /// A line for the reader. A reader that is gone is no reason to end.
    pub(crate) fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        let _ = writeln!(out, "{clear}{}", text.trim_end());
        let _ = out.flush();
    }

    /// What is waited for, on a terminal only; the next line replaces it.
    pub(crate) fn waiting(&self, text: &str) {
        if self.terminal {
            let mut out = std::io::stdout().lock();
            let _ = write!(out, "\r\x1b[K        {text}");
            let _ = out.flush();
        }
    }

    /// A step and how to do it oneself.
    pub(crate) fn step(&self, number: usize, words: &str, command: &str) {
        let number = format!("[{number}/{STEPS}] ");
        self.lines(beside(&format!("{number}{words:<STEP_WORDS$}"), number.len(), command));
    }

    /// Something to know about the step.
    pub(crate) fn note(&self, words: &str) {
        self.lines(wrapped(words, NOTE));
    }

    /// The same, and how to do it oneself.
    pub(crate) fn note_of(&self, words: &str, command: &str) {
        self.lines(beside(&format!("{:NOTE$}{words:<STEP_WORDS$}", ""), NOTE, command));
    }

    fn lines(&self, lines: impl IntoIterator<Item = String>) {
        lines.into_iter().for_each(|line| self.line(&line));
    }

    /// The head of the table of the cut: both sides, by their nodes.
    pub(crate) fn table_head(&self, groups: &[Vec<NodeId>; 2]) {
        let [minority, majority] = groups;
        let side = |name: &str, nodes: &[NodeId]| {
            let nodes: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
            format!("{name}: {}", nodes.join(" "))
        };
        self.lines(row("t", "", &[side(MINORITY, minority), side(MAJORITY, majority)]));
    }

    /// What each namespace answered on each side in one second: a row for each namespace.
    pub(crate) fn table_row(&self, second: u64, samples: &[Sample], groups: &[Vec<NodeId>; 2]) {
        for (namespace, first) in [(BANK, format!("+{second}s")), (CART, String::new())] {
            let cells = groups.each_ref().map(|nodes| {
                let here = |sample: &&Sample| sample.ns == namespace && nodes.contains(&sample.node);
                summary(samples.iter().filter(here))
            });
            self.lines(row(&first, namespace, &cells));
        }
    }

    /// The receipt as a table, what was broken, and where to go on.
    pub(crate) fn receipt(&self, receipt: &Receipt, broken: &[String], checked_in: Duration, out: &Path) {
        let verified = verified(receipt, checked_in);
        for Row { words, strong, available } in figures(receipt).iter().chain([&verified]) {
            self.line(&format!("{:TABLE$}{words:<LINE_WORDS$}{strong:<LINE_COLUMN$}{available}", ""));
        }
        self.line("");
        for words in broken {
            self.line(&format!("  BROKEN  {}", words.replace('\n', "\n          ")));
        }
        if broken.is_empty() {
            self.line("      Every promise was kept.");
        }
        for (what, file) in
            [("Report", "report.html"), ("Receipt", "receipt.json"), ("History", "history.jsonl")]
        {
            self.line(&format!("      {what:<9}{}", out.join(file).display()));
        }
    }

    /// How to do the same by hand.
    pub(crate) fn try_next(&self, port_base: u16) {
        self.line("      Try next  the same by hand, on a cluster of your own:");
        for line in by_hand::lines(&by_hand::program(), port_base) {
            self.line(&format!("        {line}"));
        }
        by_hand::ABOUT.iter().for_each(|words| self.lines(wrapped(words, ABOUT)));
    }
}

/// Words and how to do it oneself: beside them where there is room, or else below.
fn beside(words: &str, column: usize, command: &str) -> Vec<String> {
    let line = format!("{words}{command}");
    match line.chars().count() <= WIDTH {
        true => vec![line],
        false => vec![words.trim_end().to_owned(), format!("{:column$}{command}", "")],
    }
}

/// Words in lines that begin at this column and end on the screen.
fn wrapped(words: &str, column: usize) -> Vec<String> {
    let margin = " ".repeat(column);
    let mut lines: Vec<String> = Vec::new();
    for word in words.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("{margin}{word}")),
        }
    }
    lines
}

/// A row of the table of the cut; what does not fit a cell goes on below it.
fn row(second: &str, namespace: &str, cells: &[String; 2]) -> Vec<String> {
    let [minority, majority] = cells.each_ref().map(|cell| parts(cell));
    let count = minority.len().max(majority.len());
    let heads = std::iter::once((second, namespace)).chain(std::iter::repeat(("", "")));
    let part = |cell: &[String], at: usize| cell.get(at).cloned().unwrap_or_default();
    let line = |(at, (second, namespace)): (usize, (&str, &str))| {
        let (minority, majority) = (part(&minority, at), part(&majority, at));
        format!("{:TABLE$}{second:<SECOND$}{namespace:<NAMESPACE$}{minority:<CELL$}{majority}", "")
    };
    (0..count).zip(heads).map(line).collect()
}

/// A cell in pieces that fit it, broken after commas.
fn parts(cell: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for piece in cell.split_inclusive(", ") {
        match parts.last_mut() {
            Some(part) if part.chars().count() + piece.trim_end().chars().count() < CELL => {
                part.push_str(piece)
            }
            _ => parts.push(piece.to_owned()),
        }
    }
    parts.into_iter().map(|part| part.trim_end().to_owned()).collect()
}

/// A row of the receipt: what it is about, and both namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) words: String,
    pub(crate) strong: String,
    pub(crate) available: String,
}

/// The receipt's figures, as the page has them.
pub(crate) fn figures(receipt: &Receipt) -> Vec<Row> {
    let (bank, cart) = (&receipt.strong, &receipt.available);
    let row = |words: &str, strong: String, available: String| Row { words: words.into(), strong, available };
    let of = |lost: u64, all: u64| format!("{lost} of {all}");
    let time = |ms: u64| duration(ms.saturating_mul(MILLISECOND));
    let or_never = |ms: Option<u64>| ms.map_or_else(|| "never".into(), time);
    let unknown = |all: u64, applied: u64| match all {
        0 => "0".to_owned(),
        _ => format!("{all} ({applied})"),
    };
    let none = || "-".to_owned();
    vec![
        row("", format!("{BANK} (strong)"), format!("{CART} (available)")),
        row("acknowledged writes lost", of(bank.lost, bank.acknowledged), of(cart.lost, cart.acknowledged)),
        row(
            "answered during the cut    minority",
            percent(bank.minority_success_ratio),
            percent(cart.minority_success_ratio),
        ),
        row(
            "                           majority",
            percent(bank.majority_success_ratio),
            percent(cart.majority_success_ratio),
        ),
        row("longest time without a successful write", time(bank.longest_gap_ms), time(cart.longest_gap_ms)),
        row("                           majority", time(bank.majority_longest_gap_ms), String::new()),
        row("stale reads", bank.stale_reads.to_string(), cart.stale_reads.to_string()),
        row(
            "keys said to be absent that exist",
            bank.false_absent.to_string(),
            cart.false_absent.to_string(),
        ),
        row("\"no knowledge\" (no node with a copy)", none(), cart.no_knowledge.to_string()),
        row("keys with siblings after healing", none(), cart.keys_with_siblings.to_string()),
        row(
            "unknown outcomes (those seen applied)",
            unknown(bank.unknown, bank.unknown_applied),
            unknown(cart.unknown, cart.unknown_applied),
        ),
        row("majority writes again, after the cut", or_never(bank.recovery_ms), none()),
        row("every node serves again, after healing", or_never(bank.served_again_ms), none()),
        row("replicas are equal, after healing", none(), or_never(cart.convergence_ms)),
    ]
}

/// The last row: the verdict on each namespace.
fn verified(receipt: &Receipt, checked_in: Duration) -> Row {
    let (strong, available) = (&receipt.strong, &receipt.available);
    let linearizable = match &strong.linearizable {
        serde_json::Value::Bool(true) => "linearizable",
        serde_json::Value::Bool(false) => "NOT LINEARIZABLE",
        _ => "undecided",
    };
    let convergent = if available.replicas_agree && available.convergence_ms.is_some() {
        "convergent"
    } else {
        "DIVERGED"
    };
    Row {
        words: format!("verified from the history in {:.1} s", checked_in.as_secs_f64()),
        strong: linearizable.into(),
        available: convergent.into(),
    }
}

/// `ok 14, NO_QUORUM 9, UNKNOWN 2`, or `ok 20 (fallback 12)`.
fn summary<'a>(samples: impl Iterator<Item = &'a Sample>) -> String {
    let (mut ok, mut fallback) = (0, 0);
    let mut others: BTreeMap<&str, usize> = BTreeMap::new();
    for sample in samples {
        if sample.answered() {
            ok += 1;
            fallback += usize::from(sample.fallback);
        } else {
            let name = match (sample.outcome, sample.err.as_deref()) {
                (Outcome::Info, _) => "UNKNOWN",
                (_, None | Some("RESULT_UNKNOWN" | "CONNECTION_LOST" | "DEADLINE_EXPIRED")) => "no answer",
                (_, Some(reason)) => reason,
            };
            *others.entry(name).or_default() += 1;
        }
    }
    let mut parts = Vec::new();
    if fallback > 0 {
        parts.push(format!("ok {ok} (fallback {fallback})"));
    } else if ok > 0 {
        parts.push(format!("ok {ok}"));
    }
    parts.extend(others.iter().map(|(name, count)| format!("{name} {count}")));
    match parts.is_empty() {
        true => "-".into(),
        false => parts.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_say_what_was_answered_and_why_not() {
        let sample = |outcome, err: Option<&str>, fallback| Sample {
            ns: BANK.into(),
            node: NodeId(1),
            mutation: true,
            intended: 0,
            latency: 1,
            outcome,
            err: err.map(str::to_owned),
            fallback,
        };
        let row = [
            sample(Outcome::Ok, None, false),
            sample(Outcome::Fail, Some(kv_check::operation::MISMATCH), false),
            sample(Outcome::Info, Some("RESULT_UNKNOWN"), false),
            sample(Outcome::Fail, Some("NO_QUORUM"), false),
        ];
        assert_eq!(summary(row.iter()), "ok 2, NO_QUORUM 1, UNKNOWN 1");
        assert_eq!(summary([sample(Outcome::Ok, None, true)].iter()), "ok 1 (fallback 1)");
        assert_eq!(summary([].iter()), "-");
    }

    #[test]
    fn what_is_told_fits_a_screen() {
        let cells =
            ["ok 2, no answer 12, NO_QUORUM 9, UNKNOWN 2".to_owned(), "ok 40 (fallback 12)".to_owned()];
        let rows = row("+10s", "bank", &cells);
        assert_eq!(
            rows,
            [
                "    +10s  bank  ok 2, no answer 12,             ok 40 (fallback 12)",
                "                NO_QUORUM 9, UNKNOWN 2          ",
            ]
        );
        let lines = beside("[4/6] network partition", 6, "kvctl fault partition n1,n2 / n3,n4,n5");
        assert_eq!(lines.len(), 1);
        let lines =
            beside(&format!("[6/6] {:<44}", "receipt"), 6, &format!("kvctl check {}", "x".repeat(60)));
        assert_eq!((lines.len(), lines[0].as_str()), (2, "[6/6] receipt"));
        let about = by_hand::ABOUT.iter().flat_map(|words| wrapped(words, ABOUT));
        for line in about.chain(rows) {
            assert!(line.trim_end().chars().count() <= WIDTH, "{line}");
        }
    }

    #[test]
    fn the_receipt_fits_a_screen() {
        use super::super::judge::tests::{good, judged};
        let receipt = judged(good()).receipt;
        let rows = figures(&receipt);
        for Row { words, strong, .. } in rows.iter().chain([&verified(&receipt, Duration::from_secs(12))]) {
            assert!(words.chars().count() < LINE_WORDS && strong.chars().count() < LINE_COLUMN, "{words}");
        }
        assert!(TABLE + LINE_WORDS + LINE_COLUMN + "cart (available)".len() <= WIDTH);
    }
}
