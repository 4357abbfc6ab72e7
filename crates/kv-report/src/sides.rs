//! What each side of a cut experienced, and what that means in words: the sentences that let a stranger
//! read CAP off the strip, and those that say why reads are stale and keys have siblings. The figures are
//! those that [`Report::observe`] counted.

use std::collections::BTreeMap;

use kv_types::noun;

use crate::model::{Answer, Fault, Namespace, Report, Side, Tally};
use crate::words::{counted, duration, grouped, percent};

/// A share above which a side is said to go on.
const GOES_ON: f64 = 0.6;
/// A share above which it is said to go on as if nothing had happened.
const UNHARMED: f64 = 0.97;
/// A share below which it is said to refuse.
const REFUSES: f64 = 0.1;
/// A silence worth a word, in milliseconds.
const SILENCE_MS: u64 = 250;
/// In nanoseconds.
const MILLISECOND: u64 = 1_000_000;

/// What one namespace did on one side of a fault.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reading {
    /// The side.
    pub(super) side: String,
    /// Its nodes.
    pub(super) nodes: Vec<String>,
    /// Answered operations of all.
    pub(super) share: f64,
    /// What became of most.
    pub(super) mostly: Answer,
    /// What that means.
    pub(super) words: String,
}

/// The fault that the sentences are about: the longest that makes sides.
pub(super) fn main_fault(report: &Report) -> Option<&Fault> {
    let sided = report.faults.iter().filter(|fault| !fault.sides.is_empty());
    sided.max_by_key(|fault| fault.to.saturating_sub(fault.from))
}

/// A moment that the picture names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) at: u64,
    pub(super) what: String,
    /// One of the report's marks; else the beginning of the main fault.
    pub(super) mark: bool,
}

/// What happened, in its order.
pub(super) fn events(report: &Report) -> Vec<Event> {
    let cut = main_fault(report).map(|fault| Event {
        at: fault.from,
        what: format!("{}: {}", fault.kind, fault.what),
        mark: false,
    });
    let marks = report.marks.iter().map(|mark| Event { at: mark.at, what: mark.what.clone(), mark: true });
    let mut events: Vec<Event> = cut.into_iter().chain(marks).collect();
    events.sort_by_key(|event| event.at);
    events
}

/// The sides of a fault, the smaller first, each with its nodes in the order of the report.
pub(super) fn sides(report: &Report, fault: &Fault) -> Vec<(String, Vec<String>)> {
    let mut sides: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for node in &report.nodes {
        if let Some(side) = fault.sides.get(node) {
            sides.entry(side).or_default().push(node.clone());
        }
    }
    let mut sides: Vec<_> = sides.into_iter().map(|(side, nodes)| (side.to_owned(), nodes)).collect();
    sides.sort_by_key(|(_, nodes)| nodes.len());
    sides
}

/// What a namespace did on a side of a fault, as it was counted; nothing where nothing was asked.
fn counts<'a>(report: &'a Report, fault: &Fault, ns: &str, side: &str) -> Option<&'a Side> {
    let of = |mine: &&Side| {
        mine.ns == ns && mine.side == side && report.faults.get(mine.fault).is_some_and(|of| of == fault)
    };
    report.sides.iter().find(of)
}

/// Answered of all, by side, over all faults that made sides.
pub(super) fn shares(report: &Report, ns: &str) -> Vec<(String, f64)> {
    let mut tallies: Vec<(&str, usize, Tally)> = Vec::new();
    for mine in report.sides.iter().filter(|side| side.ns == ns) {
        let nodes = report
            .faults
            .get(mine.fault)
            .map_or(0, |fault| fault.sides.values().filter(|side| **side == mine.side).count());
        match tallies.iter_mut().find(|(known, ..)| *known == mine.side) {
            Some((_, _, tally)) => tally.join(mine.tally),
            None => tallies.push((&mine.side, nodes, mine.tally)),
        }
    }
    // The smaller side first, as everywhere.
    tallies.sort_by_key(|(_, nodes, _)| *nodes);
    tallies.into_iter().filter_map(|(side, _, tally)| Some((side.to_owned(), tally.share()?))).collect()
}

/// What a namespace did on each side of a fault; sides that were not asked say nothing.
pub(super) fn readings(report: &Report, ns: &Namespace, fault: &Fault) -> Vec<Reading> {
    let reading = |(side, nodes): (String, Vec<String>)| {
        let mine = counts(report, fault, &ns.name, &side)?;
        let share = mine.tally.share()?;
        let words = words(ns, share, mine.first_write_ms, || price(report, ns, fault, &nodes));
        Some(Reading { side, nodes, share, mostly: mine.tally.mostly(), words })
    };
    sides(report, fault).into_iter().filter_map(reading).collect()
}

/// What it comes to for the whole run, where there are figures.
pub(super) fn sum(report: &Report, ns: &Namespace, readings: &[Reading]) -> Option<String> {
    let figures = report.quantities.get(&ns.name)?;
    let lost = match figures.lost {
        0 => "no acknowledged write was lost".to_owned(),
        lost => {
            format!("{} LOST", counted(lost, "acknowledged write was", "acknowledged writes were"))
        }
    };
    Some(match (ns.strong, figures.stale_reads, figures.conflicted_keys) {
        (true, 0, _) => format!("no read was stale, {lost}"),
        (true, stale, _) => format!("{} STALE, {lost}", counted(stale, "read was", "reads were")),
        (false, _, 0) => lost,
        (false, _, keys) => {
            let both = readings.len() > 1 && readings.iter().all(|reading| reading.share > REFUSES);
            let meeting = if both { "on both sides" } else { "at the same time" };
            let keep = noun(keys, "keeps", "keep");
            format!(
                "{} written {meeting} {keep} every value (siblings) for their clients; {lost}",
                counted(keys, "key", "keys")
            )
        }
    })
}

fn words(ns: &Namespace, share: f64, first_write_ms: Option<u64>, price: impl Fn() -> String) -> String {
    let answers = percent(share);
    let silence = first_write_ms.filter(|ms| *ms > SILENCE_MS);
    let after = silence.map_or_else(String::new, |ms| format!(" after {}", duration(ms * MILLISECOND)));
    match (ns.strong, share) {
        (true, 0.0) => {
            "refuses everything. Without a majority it cannot know, so it does not guess: CONSISTENT".into()
        }
        (true, ..REFUSES) => {
            format!("refuses ({answers} answered). Without a majority it does not guess: CONSISTENT")
        }
        (true, GOES_ON..UNHARMED) => {
            format!("goes on{after}: a majority can agree without the others ({answers} answered)")
        }
        (true, UNHARMED..) => {
            format!("goes on: a majority can agree without the others ({answers} answered)")
        }
        (false, UNHARMED..) => format!("goes on answering ({answers}): AVAILABLE{}", price()),
        (false, GOES_ON..) => format!("goes on{after} ({answers} answered){}", price()),
        (_, ..REFUSES) => format!("answers {answers}: too few replicas within reach"),
        (..) => format!("answers {answers}"),
    }
}

/// What answering cost there: stale reads.
fn price(report: &Report, ns: &Namespace, fault: &Fault, nodes: &[String]) -> String {
    let mine = report.stale.iter().filter(|stale| stale.ns == ns.name && nodes.contains(&stale.node));
    match mine.filter(|stale| fault.during(stale.at)).count() as u64 {
        0 => String::new(),
        stale => format!(", and pays with {} (hatched)", counted(stale, "stale read", "stale reads")),
    }
}

/// How many of these moments lie before the fault, while it was in force, and after it.
fn split(fault: Option<&Fault>, moments: impl Iterator<Item = u64>) -> [u64; 3] {
    let mut counts = [0; 3];
    for moment in moments {
        let [before, during, after] = &mut counts;
        match fault {
            Some(fault) if fault.during(moment) => *during += 1,
            Some(fault) if moment >= fault.from => *after += 1,
            _ => *before += 1,
        }
    }
    counts
}

/// Why reads of an available namespace were stale, and when, in plain sentences; none if none was.
pub(super) fn why_stale(report: &Report, ns: &Namespace) -> Option<String> {
    let fault = main_fault(report);
    let mine = report.stale.iter().filter(|stale| stale.ns == ns.name && !ns.strong);
    let [before, during, after] = split(fault, mine.map(|stale| stale.at));
    let all = before + during + after;
    (all > 0).then_some(())?;
    let what = "A read is stale if it misses even one write that was acknowledged before it began.";
    if fault.is_none() {
        return Some(format!("{what} Here {} stale.", counted(all, "read was", "reads were")));
    }
    let mut words = format!(
        "{what} {} of {} came before the cut, {} while it lasted, {} after it.",
        counted(before, "stale read", "stale reads"),
        ns.name,
        grouped(during),
        grouped(after)
    );
    if during > 0 {
        words += " During the cut each side misses what the other side acknowledges, and clients of both sides write the same few keys, so most reads miss something.";
    }
    if before + after > 0 {
        words += " Without a cut a read can miss a write as well: the first R answers count, and one of them may come from a fallback or from a replica that has not heard of the write yet.";
    }
    Some(words)
}

/// Why reads of an available namespace showed siblings, and when; none if none did.
pub(super) fn why_siblings(report: &Report, ns: &Namespace) -> Option<String> {
    let fault = main_fault(report);
    let mine = report.siblings.iter().filter(|siblings| siblings.ns == ns.name && siblings.at < report.to);
    let [before, during, after] = split(fault, mine.map(|siblings| siblings.at));
    (before + during + after > 0).then_some(())?;
    let when = match fault {
        Some(_) => format!(
            " {} of {} showed several values before the cut, {} while it lasted, {} after it.",
            counted(before, "read", "reads"),
            ns.name,
            grouped(during),
            grouped(after)
        ),
        None => String::new(),
    };
    Some(format!(
        "Siblings need no cut: clients at different nodes write the same key at the same time, none of them has seen the \
         other's value, and so both values stay until a client that has read them writes again.{when}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Siblings, Stale};

    #[test]
    fn each_mode_is_put_into_its_own_words() {
        let ns = |strong| Namespace { name: "x".into(), strong, setting: String::new() };
        let say = |strong, share, ms| words(&ns(strong), share, ms, || ", PRICE".into());
        assert!(say(true, 0.0, None).contains("CONSISTENT"));
        assert!(say(true, 0.93, Some(900)).starts_with("goes on after 900 ms"));
        assert!(say(true, 0.93, Some(250)).starts_with("goes on: "));
        assert!(say(false, 1.0, Some(3)).ends_with("AVAILABLE, PRICE"));
        assert!(say(false, 0.02, None).contains("too few replicas"));
        assert_eq!(say(true, 0.4, None), "answers 40.0 %");
    }

    #[test]
    fn stale_reads_and_siblings_are_explained_by_when_they_came() {
        let cart = Namespace { name: "cart".into(), strong: false, setting: String::new() };
        let stale = |at| Stale { ns: "cart".into(), node: "n1".into(), at, lag: 1, behind: 1 };
        let several = |at| Siblings { ns: "cart".into(), at, count: 2 };
        let sides = BTreeMap::from([("n1".to_owned(), "minority".to_owned())]);
        let fault = Fault { from: 10, until: 20, to: 22, kind: String::new(), what: String::new(), sides };
        let mut report = Report {
            to: 40,
            faults: vec![fault],
            stale: vec![stale(12), stale(13), stale(20)],
            siblings: vec![several(3), several(9), several(11), several(50)],
            ..Report::default()
        };
        let words = why_stale(&report, &cart).unwrap();
        assert!(words.contains("0 stale reads of cart came before the cut, 2 while it lasted, 1 after it"));
        assert!(words.contains("Without a cut a read can miss a write as well"));
        report.stale.pop();
        assert!(!why_stale(&report, &cart).unwrap().contains("Without a cut"));
        let words = why_siblings(&report, &cart).unwrap();
        assert!(
            words
                .contains("2 reads of cart showed several values before the cut, 1 while it lasted, 0 after")
        );
        let strong = Namespace { strong: true, ..cart.clone() };
        assert_eq!((why_stale(&report, &strong), why_siblings(&Report::default(), &cart)), (None, None));
        report.faults.clear();
        assert!(why_stale(&report, &cart).unwrap().ends_with("Here 2 reads were stale."));
    }
}
