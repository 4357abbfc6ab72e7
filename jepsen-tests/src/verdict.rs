//! What a run means: the judgement of its history and of the promises that no history shows, and the coverage
//! that makes it count.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_check::judge::{self, Property, Ruling};
use kv_check::operation;
use kv_report::{Coverage, Report};
use kv_types::NodeId;

use crate::coverage::Covered;
use crate::judge_plan::{minorities_judged, plan};
use crate::options::RunOptions;
use crate::page::page;
use crate::recorded::Recorded;
use crate::scenario::Scenario;
use crate::summary::Summary;
use crate::{Broke, controls, properties};

/// Part of all operations that may not have been begun because too many were open.
const SHED: f64 = 0.01;
/// What the seeded bugs showed last.
const MUTANTS: &str = "target/jepsen/mutants.json";

/// A run, judged.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The figures: `summary.json`.
    pub summary: Summary,
    /// The page.
    pub report: Report,
    /// The logs of the nodes.
    pub logs: BTreeMap<NodeId, PathBuf>,
}

/// Judges a run.
pub fn judge(
    scenario: &Scenario,
    options: &RunOptions,
    recorded: Recorded,
    took: Duration,
) -> Result<Verdict, Broke> {
    let begun = tokio::time::Instant::now();
    let operations = operation::pair(&recorded.history).map_err(Broke::history)?;
    let plan = plan(scenario, &recorded.marks, &recorded.faults);
    let mut judgement = judge::judge(&recorded.history, &plan).map_err(Broke::history)?;
    properties::measure(scenario, &recorded, &operations, &mut judgement);
    let covered = Covered::count(
        &recorded.nodes,
        &recorded.states,
        recorded.marks.healed,
        &recorded.faults,
        recorded.planned,
        recorded.seen.elections(),
        &operations,
    );
    let names: Vec<&str> = scenario.namespaces.iter().map(|namespace| namespace.name.as_str()).collect();
    let mut coverage = covered.rows(&scenario.expect, &names);
    let most = (operations.len() as f64 * SHED) as u64;
    coverage.push(Coverage {
        name: "operations not begun, too many being open".into(),
        wanted: format!("at most {most}"),
        got: recorded.shed.to_string(),
        enough: recorded.shed <= most,
    });
    if let Some(judged) = minorities_judged(scenario, &recorded.faults, &operations) {
        coverage.push(Coverage {
            name: "cuts in which a minority was judged".into(),
            wanted: "1".into(),
            got: judged.to_string(),
            enough: judged > 0,
        });
    }
    coverage.extend(scenario.expect.logged.iter().map(|words| logged(words, &recorded.logs)));
    let alarms = controls::known_bad();
    coverage.push(Coverage {
        name: "known-bad histories that are rejected".into(),
        wanted: alarms.len().max(1).to_string(),
        got: alarms.iter().filter(|alarm| alarm.caught).count().to_string(),
        enough: !alarms.is_empty() && alarms.iter().all(|alarm| alarm.caught),
    });
    let ruling = ruling(&judgement.properties, &coverage);
    let summary = Summary {
        scenario: scenario.name.clone(),
        seed: options.seed,
        ruling,
        reasons: reasons(&judgement.properties, &coverage),
        replay: format!("jepsen-tests replay {}", options.out.display()),
        commit: kv_report::commit(),
        seconds: took.as_secs_f64(),
        judged_in_seconds: begun.elapsed().as_secs_f64(),
        events: recorded.history.len() as u64,
        covered,
        coverage,
        properties: judgement.properties,
        quantities: judgement.quantities,
        faults: recorded.faults.clone(),
        marks: recorded.marks.clone(),
    };
    let mut report = page(scenario, &summary, &recorded, &operations)?;
    report.controls = alarms;
    report.controls.extend(controls::mutants(Path::new(MUTANTS)));
    Ok(Verdict { summary, report, logs: recorded.logs })
}

/// Whether the log of some node says this.
fn logged(words: &str, logs: &BTreeMap<NodeId, PathBuf>) -> Coverage {
    let says =
        |log: &PathBuf| std::fs::read(log).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(words));
    let said = logs.values().filter(|log| says(log)).count();
    Coverage {
        name: format!("nodes whose log says `{words}`"),
        wanted: "1".into(),
        got: said.to_string(),
        enough: said > 0,
    }
}

/// The verdict: the worst of what was judged, and *unknown* at best when too little happened.
pub fn ruling(properties: &[Property], coverage: &[Coverage]) -> Ruling {
    let judged = properties.iter().map(|property| property.ruling).max().unwrap_or(Ruling::Unknown);
    let enough = coverage.iter().all(|row| row.enough);
    if enough { judged } else { judged.max(Ruling::Unknown) }
}

fn reasons(properties: &[Property], coverage: &[Coverage]) -> Vec<String> {
    let mut reasons: Vec<String> = properties
        .iter()
        .filter(|property| property.ruling != Ruling::Valid)
        .map(|property| {
            format!("{} {}: {} ({})", property.ns, property.name, property.ruling, property.detail)
        })
        .map(|reason| reason.trim_start().to_owned())
        .collect();
    let missing = coverage.iter().filter(|row| !row.enough);
    reasons.extend(missing.map(|row| format!("{}: wanted {}, got {}", row.name, row.wanted, row.got)));
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn property(ruling: Ruling) -> Property {
        Property {
            name: "linearizable".into(),
            ns: "bank".into(),
            checker: "wgl".into(),
            examined: 1,
            ruling,
            detail: "why".into(),
            evidence: None,
        }
    }

    fn row(enough: bool) -> Coverage {
        Coverage { name: "elections".into(), wanted: "1".into(), got: "0".into(), enough }
    }

    #[test]
    fn too_little_coverage_is_unknown_and_never_hides_a_violation() {
        use Ruling::*;
        for (judged, enough, expected) in [
            (Valid, true, Valid),
            (Valid, false, Unknown),
            (Unknown, true, Unknown),
            (Invalid, true, Invalid),
            (Invalid, false, Invalid),
        ] {
            assert_eq!(ruling(&[property(Valid), property(judged)], &[row(true), row(enough)]), expected);
        }
        assert_eq!(ruling(&[], &[]), Unknown, "nothing judged is nothing shown");
    }

    #[test]
    fn reasons_name_what_is_not_valid_and_what_is_missing() {
        let found = reasons(&[property(Ruling::Valid), property(Ruling::Invalid)], &[row(true), row(false)]);
        assert_eq!(found, ["bank linearizable: invalid (why)", "elections: wanted 1, got 0"]);
    }
}
