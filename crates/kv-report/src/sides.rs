//! Who was answered on which side of a cut, and what that means in words: the sentences that let a stranger
//! read CAP off the strip. They are made from the same points that are drawn.

use std::collections::BTreeMap;

use crate::axis::{duration, percent};
use crate::model::{Answer, Fault, Namespace, Report};

/// A share above which a side is said to go on.
const GOES_ON: f64 = 0.6;
/// A share above which it is said to go on as if nothing had happened.
const UNHARMED: f64 = 0.97;
/// A share below which it is said to refuse.
const REFUSES: f64 = 0.1;
/// A silence worth a word.
const SILENCE: u64 = 250_000_000;

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

/// Answered, unknown and refused operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) answered: u64,
    pub(super) unknown: u64,
    pub(super) refused: u64,
}

impl Tally {
    pub(super) fn add(&mut self, answer: Answer) {
        match answer {
            Answer::Answered => self.answered += 1,
            Answer::Unknown => self.unknown += 1,
            Answer::Refused => self.refused += 1,
        }
    }

    pub(super) fn join(&mut self, other: Self) {
        self.answered += other.answered;
        self.unknown += other.unknown;
        self.refused += other.refused;
    }

    pub(super) fn all(self) -> u64 {
        self.answered + self.unknown + self.refused
    }

    /// Answered of all; nothing of nothing is nothing.
    pub(super) fn share(self) -> Option<f64> {
        (self.all() > 0).then(|| self.answered as f64 / self.all() as f64)
    }

    fn mostly(self) -> Answer {
        let Self { answered, unknown, refused } = self;
        match answered.max(unknown).max(refused) {
            most if most == answered => Answer::Answered,
            most if most == refused => Answer::Refused,
            _ => Answer::Unknown,
        }
    }
}

/// Operations of a namespace that began at these nodes during the fault.
pub(super) fn tally(report: &Report, ns: &str, fault: &Fault, nodes: &[String]) -> Tally {
    let mut tally = Tally::default();
    for point in &report.points {
        if point.ns == ns && (fault.from..fault.to).contains(&point.at) && nodes.contains(&point.node) {
            tally.add(point.answer);
        }
    }
    tally
}

/// What a namespace did on each side of a fault; sides that were not asked say nothing.
pub(super) fn readings(report: &Report, ns: &Namespace, fault: &Fault) -> Vec<Reading> {
    let reading = |(side, nodes): (String, Vec<String>)| {
        let tally = tally(report, &ns.name, fault, &nodes);
        let share = tally.share()?;
        let silence = first_silence(report, &ns.name, fault, &nodes);
        let words = words(ns, share, silence, || price(report, ns, fault, &nodes));
        Some(Reading { side, nodes, share, mostly: tally.mostly(), words })
    };
    sides(report, fault).into_iter().filter_map(reading).collect()
}

/// What it comes to for the whole run, where there are figures.
pub(super) fn sum(report: &Report, ns: &Namespace, readings: &[Reading]) -> Option<String> {
    let figures = report.quantities.get(&ns.name)?;
    let lost = match figures.lost {
        0 => "no acknowledged write was lost".to_owned(),
        lost => format!("{lost} acknowledged writes were LOST"),
    };
    Some(match (ns.strong, figures.stale_reads, figures.conflicted_keys) {
        (true, 0, _) => format!("no read was stale, {lost}"),
        (true, stale, _) => format!("{stale} reads were STALE, {lost}"),
        (false, _, 0) => lost,
        (false, _, keys) => {
            let both = readings.len() > 1 && readings.iter().all(|reading| reading.share > REFUSES);
            let meeting = if both { "on both sides" } else { "at the same time" };
            format!("{keys} keys written {meeting} keep every value (siblings) for their clients; {lost}")
        }
    })
}

fn words(ns: &Namespace, share: f64, silence: u64, price: impl Fn() -> String) -> String {
    let answers = percent(share);
    let after = if silence > SILENCE { format!(" after {}", duration(silence)) } else { String::new() };
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
    let during = |at: u64| (fault.from..fault.to).contains(&at);
    let stale =
        report.stale.iter().filter(|s| s.ns == ns.name && during(s.at) && nodes.contains(&s.node)).count();
    if stale == 0 { String::new() } else { format!(", and pays with {stale} stale reads (hatched)") }
}

/// From the beginning of the fault to the first answer that these nodes gave to an operation begun in it, if
/// something else came before.
fn first_silence(report: &Report, ns: &str, fault: &Fault, nodes: &[String]) -> u64 {
    let mine = report.points.iter().filter(|point| {
        point.ns == ns
            && point.mutation
            && nodes.contains(&point.node)
            && (fault.from..fault.to).contains(&point.at)
            && point.answer == Answer::Answered
    });
    let first = mine.map(|point| point.at + point.latency).min();
    first.map_or(0, |first| first.saturating_sub(fault.from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_is_put_into_its_own_words() {
        let ns = |strong| Namespace { name: "x".into(), strong, setting: String::new() };
        let say = |strong, share, silence| words(&ns(strong), share, silence, || ", PRICE".into());
        assert!(say(true, 0.0, 0).contains("CONSISTENT"));
        assert!(say(true, 0.93, 900_000_000).starts_with("goes on after 900 ms"));
        assert!(say(false, 1.0, 0).ends_with("AVAILABLE, PRICE"));
        assert!(say(false, 0.02, 0).contains("too few replicas"));
        assert_eq!(say(true, 0.4, 0), "answers 40.0 %");
    }
}
