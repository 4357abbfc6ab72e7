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
/// Widths of the columns of the table of the cut: both sides of the strong namespace, then of the available
/// one.
const COLUMNS: [usize; 4] = [29, 38, 24, 24];
/// Width of the words of a step, before its command.
const STEP_WORDS: usize = 50;
/// Width of the words of a line of the receipt.
const LINE_WORDS: usize = 46;
/// In nanoseconds.
const MILLISECOND: u64 = 1_000_000;
/// Width of a line's column for the strong namespace.
const LINE_COLUMN: usize = 21;

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
        self.line(&format!("[{number}/{STEPS}] {words:<STEP_WORDS$}{command}"));
    }

    /// Something to know about the step.
    pub(crate) fn note(&self, words: &str) {
        self.line(&format!("        {words}"));
    }

    /// The head of the table of the cut: the four columns, by the first node of each side.
    pub(crate) fn table_head(&self, groups: &[Vec<NodeId>; 2]) {
        self.row(
            "t",
            columns(groups).map(|(ns, side, nodes)| {
                let first = nodes.first().copied().unwrap_or_default();
                format!("{ns} @{first}.. ({side})")
            }),
            "",
        );
    }

    /// A row: what each namespace answered on each side in one second.
    pub(crate) fn table_row(&self, second: u64, samples: &[Sample], groups: &[Vec<NodeId>; 2], remark: &str) {
        let cells = columns(groups).map(|(ns, _, nodes)| {
            summary(samples.iter().filter(|sample| sample.ns == ns && nodes.contains(&sample.node)))
        });
        self.row(&format!("+{second}s"), cells, remark);
    }

    fn row(&self, first: &str, cells: [String; 4], remark: &str) {
        let mut row = format!("        {first:<6}");
        for (cell, width) in cells.iter().zip(COLUMNS) {
            row += &format!("{cell:<width$} ");
        }
        self.line(&(row + remark));
    }

    /// The receipt as a table, what was broken, and where to go on.
    pub(crate) fn receipt(&self, receipt: &Receipt, broken: &[String], checked_in: Duration, out: &Path) {
        let verified = verified(receipt, checked_in);
        for Row { words, strong, available } in figures(receipt).iter().chain([&verified]) {
            self.line(&format!("        {words:<LINE_WORDS$}{strong:<LINE_COLUMN$}{available}"));
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
        by_hand::ABOUT.iter().for_each(|words| self.line(&format!("      {words}")));
    }
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
        _ => format!("{all} ({applied} seen applied)"),
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
        row("\"no knowledge\" (only nodes without a copy)", none(), cart.no_knowledge.to_string()),
        row("keys with siblings after healing", none(), cart.keys_with_siblings.to_string()),
        row(
            "unknown outcomes",
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
        words: format!("verified in {:.1} s from the history alone", checked_in.as_secs_f64()),
        strong: linearizable.into(),
        available: convergent.into(),
    }
}

/// The four columns: namespace, side, and the side's nodes.
fn columns(groups: &[Vec<NodeId>; 2]) -> [(&'static str, &'static str, &[NodeId]); 4] {
    let [minority, majority] = groups;
    [
        (BANK, MINORITY, minority.as_slice()),
        (BANK, MAJORITY, majority.as_slice()),
        (CART, MINORITY, minority.as_slice()),
        (CART, MAJORITY, majority.as_slice()),
    ]
}

/// `ok 14  UNKNOWN 2  NO_QUORUM 9`, or `ok 20 (fallback 12)`.
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
}
