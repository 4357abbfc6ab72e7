//! What is printed: a line a seed, and the table at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use kv_check::Ruling;

use crate::sim::Summary;
use crate::sim::plan::KINDS;

/// Reasons shown for a seed that is not valid.
const REASONS: usize = 6;
/// From so many seeds on, every kind of fault has to have struck and every state that counts to have been
/// reached.
const MANY: u64 = 40;

/// One seed in a line.
pub(super) fn line(summary: &Summary, took: Duration) -> String {
    let Summary { seed, ok, fail, info, elections, simulated_seconds, .. } = summary;
    let faults: u64 = summary.faults.values().sum();
    let converged =
        summary.converged_ms.map_or_else(|| "never".to_owned(), |ms| format!("{:.1} s", ms as f64 / 1e3));
    let by = match (summary.converged_by.as_deref(), summary.needed_reads) {
        (Some("reads"), partitions) => format!(" by reads of {partitions} ring partitions"),
        _ => String::new(),
    };
    format!(
        "seed {seed}: {}  {simulated_seconds:.1} s in {:.1} s  ok {ok} fail {fail} info {info}  faults {faults}  \
         leaders {elections}  converged {converged}{by}  trace {}",
        summary.ruling,
        took.as_secs_f64(),
        summary.fingerprint,
    )
}

/// Why a seed is not valid.
pub(super) fn reasons(summary: &Summary) -> Vec<String> {
    let judged = summary.judgement.iter().flat_map(|judgement| &judgement.properties);
    let judged = judged.filter(|property| property.ruling != Ruling::Valid).map(|property| {
        format!(
            "{} {}: {} ({}) {}",
            property.ns, property.name, property.ruling, property.checker, property.detail
        )
    });
    summary.broken.iter().cloned().chain(judged).take(REASONS).collect()
}

/// Sums over seeds.
#[derive(Debug, Default)]
pub(super) struct Tally {
    valid: u64,
    invalid: u64,
    unknown: u64,
    died: u64,
    faults: BTreeMap<String, u64>,
    sometimes: BTreeMap<String, u64>,
    operations: [u64; 3],
    elections: u64,
    simulated: f64,
    computed: Duration,
}

impl Tally {
    pub(super) fn add(&mut self, summary: &Summary, took: Duration) {
        match summary.ruling {
            Ruling::Valid => self.valid += 1,
            Ruling::Invalid => self.invalid += 1,
            Ruling::Unknown => self.unknown += 1,
        }
        for (kind, count) in &summary.faults {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
        for (name, hit) in &summary.sometimes {
            *self.sometimes.entry(name.clone()).or_default() += u64::from(*hit);
        }
        for (sum, count) in self.operations.iter_mut().zip([summary.ok, summary.fail, summary.info]) {
            *sum += count;
        }
        self.elections += summary.elections;
        self.simulated += summary.simulated_seconds;
        self.computed += took;
    }

    pub(super) fn died(&mut self) {
        self.died += 1;
    }

    /// What so many seeds should have shown and did not.
    fn missing(&self) -> Vec<String> {
        if self.valid + self.invalid + self.unknown < MANY {
            return Vec::new();
        }
        let never = self.sometimes.iter().filter(|(_, count)| **count == 0).map(|(name, _)| name.clone());
        let idle = KINDS.into_iter().filter(|kind| self.faults.get(*kind).copied().unwrap_or(0) == 0);
        never.chain(idle.map(|kind| format!("a fault of the kind {kind}"))).collect()
    }

    /// The exit code of all seeds together.
    pub(super) fn code(&self) -> u8 {
        match (self.invalid + self.died, self.unknown + self.missing().len() as u64, self.valid) {
            (1.., _, _) => 1,
            (_, 1.., _) | (0, 0, 0) => 2,
            _ => 0,
        }
    }

    pub(super) fn table(&self, took: Duration) -> String {
        let mut text = String::from("\n");
        let [ok, fail, info] = self.operations;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "verdicts     {} valid, {} invalid, {} unknown, {} died",
            self.valid, self.invalid, self.unknown, self.died
        );
        let _ = writeln!(
            text,
            "operations   {ok} ok, {fail} refused, {info} unknown; {} leaders elected",
            self.elections
        );
        let speed = self.simulated / self.computed.as_secs_f64().max(f64::EPSILON);
        let _ = writeln!(
            text,
            "time         {:.0} simulated seconds in {:.0} s: {speed:.1} for each second of one process",
            self.simulated,
            took.as_secs_f64()
        );
        let faults = KINDS.map(|kind| format!("{kind} {}", self.faults.get(kind).copied().unwrap_or(0)));
        let _ = writeln!(text, "faults       {}", faults.join(", "));
        for (name, count) in &self.sometimes {
            let _ = writeln!(
                text,
                "sometimes    {name}: {}",
                if *count == 0 { "NEVER".into() } else { format!("{count} seeds") }
            );
        }
        for what in self.missing() {
            let _ = writeln!(text, "unknown      so many seeds, and never {what}: too little was shown");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_seed_decides_and_no_seed_proves_nothing() {
        let with = |valid, invalid, unknown, died| {
            Tally { valid, invalid, unknown, died, ..Tally::default() }.code()
        };
        assert_eq!(with(3, 0, 0, 0), 0);
        assert_eq!(with(3, 0, 1, 0), 2);
        assert_eq!(with(3, 1, 1, 0), 1);
        assert_eq!(with(3, 0, 0, 1), 1);
        assert_eq!(with(0, 0, 0, 0), 2);
    }

    #[test]
    fn many_seeds_that_never_reach_a_state_or_a_fault_show_too_little() {
        let states = |hits| BTreeMap::from([("a minority refused".to_owned(), hits)]);
        let faults = |kinds: &[&str]| kinds.iter().map(|kind| ((*kind).to_owned(), 1)).collect();
        let with = |valid, hits, kinds| {
            let tally = Tally { valid, sometimes: states(hits), faults: faults(kinds), ..Tally::default() };
            (tally.code(), tally.missing().len())
        };
        assert_eq!(with(MANY, 1, &KINDS), (0, 0));
        assert_eq!(with(MANY, 0, &KINDS), (2, 1));
        assert_eq!(with(MANY, 1, &KINDS[1..]), (2, 1));
        assert_eq!(with(MANY - 1, 0, &[]), (0, 0), "few seeds may see little");
    }
}
