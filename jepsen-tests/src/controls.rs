//! Whether the alarms of this very program ring: the checkers are run on histories that are known to be bad,
//! each time a run is judged, and what the seeded bugs showed last is read if it is there. A page that says
//! *valid* says this too.

use std::path::Path;

use kv_check::judge::{Expectation, Minority, NamespacePlan, Ruling};
use kv_check::service::Window;
use kv_check::{Plan, Workload, format};
use kv_report::Control;

use crate::mutants::Row;

/// Name and text of the known-bad histories.
const KNOWN_BAD: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/known_bad.rs"));
/// How each is to be judged, and what is to be found.
const EXPECTED: &str = include_str!("../known-bad/expected.tsv");
/// The namespace of all of them.
const NS: &str = "t";
/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;

/// Judges the known-bad histories. One that is not in the table, or not rejected for its reason, is not
/// caught.
pub fn known_bad() -> Vec<Control> {
    KNOWN_BAD.iter().map(|(name, text)| one(name, text)).collect()
}

fn one(name: &str, text: &str) -> Control {
    let judged = expected(name).and_then(|(plan, property)| {
        let events = format::read(text.as_bytes(), None).map_err(|error| error.to_string())?;
        let judgement = kv_check::judge(&events, &plan).map_err(|error| error.to_string())?;
        let broken = judgement
            .properties
            .iter()
            .any(|found| found.name == property && found.ruling == Ruling::Invalid);
        if broken { Ok(property) } else { Err(format!("{property}: nothing was red")) }
    });
    Control {
        name: format!("known-bad/{name}"),
        kind: "known-bad history".into(),
        caught: judged.is_ok(),
        by: judged.unwrap_or_else(|why| why),
        seeds: None,
        seconds: None,
    }
}

/// The plan of a known-bad history, and the property that it breaks.
fn expected(name: &str) -> Result<(Plan, String), String> {
    let line = EXPECTED.lines().skip(1).find(|line| line.split('\t').next() == Some(name));
    let columns: Vec<&str> = line.ok_or("it is not in expected.tsv")?.split('\t').collect();
    let [_, mode, workload, expect, property, ..] = columns.as_slice() else {
        return Err("its line in expected.tsv lacks columns".into());
    };
    let workload =
        serde_json::from_value::<Workload>((*workload).into()).map_err(|error| error.to_string())?;
    let cause = *expect;
    let stale = (cause == "no-stale").then_some(false);
    let expect = Expectation { stale, ..Expectation::default() };
    let namespace = NamespacePlan { strong: *mode == "strong", workload, expect };
    let mut plan = Plan { namespaces: [(NS.to_owned(), namespace)].into(), ..Plan::default() };
    match cause {
        "cut" => {
            let side = |node| if node < 3 { "minority" } else { "majority" };
            let sides = (1..=5).map(|node| (format!("n{node}"), side(node).to_owned())).collect();
            plan.windows = vec![Window { name: "n1,n2 | n3,n4,n5".into(), from: 0, to: 100 * MS, sides }];
            plan.minority = Some(Minority { grace_ns: 10 * MS, ..crate::judge_plan::minority() });
        }
        "-" | "no-stale" => {}
        other => return Err(format!("expected.tsv asks for {other}, which is not known")),
    }
    Ok((plan, (*property).to_owned()))
}

/// What the seeded bugs showed when they were tried last: `mutants.json` of the command of that name. Nothing
/// if it is not there.
pub fn mutants(file: &Path) -> Vec<Control> {
    let Ok(text) = std::fs::read(file) else { return Vec::new() };
    let rows: Vec<Row> = serde_json::from_slice(&text).unwrap_or_default();
    let control = |row: Row| Control {
        caught: row.works(),
        by: format!("{} ({})", row.property, row.caught_by),
        name: row.mutant,
        kind: "seeded bug".into(),
        seeds: None,
        seconds: Some(row.seconds),
    };
    rows.into_iter().map(control).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_bad_history_is_caught_for_its_reason() {
        let controls = known_bad();
        assert!(controls.len() >= 30, "{}", controls.len());
        for control in controls {
            assert!(control.caught, "{}: {}", control.name, control.by);
        }
    }

    #[test]
    fn an_alarm_that_does_not_ring_is_said() {
        let good = include_str!("../known-bad/good/stale-read.jsonl");
        let silent = one("stale-read", good);
        assert_eq!((silent.caught, silent.by.as_str()), (false, "linearizable: nothing was red"));
        assert_eq!(one("unheard-of", good).by, "it is not in expected.tsv");
        assert!(!one("stale-read", "{").caught);
    }

    #[test]
    fn seeded_bugs_are_read_where_they_were_tried() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mutants.json");
        assert!(mutants(&file).is_empty());
        let row = Row {
            mutant: "ack-early".into(),
            breaks: "durability".into(),
            caught_by: "simulation".into(),
            caught: true,
            seed: Some(3),
            seconds: 4.5,
            property: "no acknowledged write lost".into(),
            clean: false,
            clean_said: "red too".into(),
        };
        std::fs::write(&file, serde_json::to_string(&[row]).unwrap()).unwrap();
        let [control] = mutants(&file).try_into().unwrap();
        assert_eq!(
            (control.caught, control.seconds),
            (false, Some(4.5)),
            "an alarm that always rings is none"
        );
    }
}
