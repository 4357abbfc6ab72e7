//! The catalogue of known-bad histories: each is rejected for the property it breaks, and accepted once its one bad
//! line is repaired.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs, reason = "a test")]

use kv_check::format::{self, edn};
use kv_check::judge::{Expectation, Judgement, NamespacePlan};
use kv_check::{Event, Plan, Ruling, Workload, history, judge};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

struct Case {
    name: String,
    plan: Plan,
    property: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../jepsen-tests/known-bad")
}

fn cases() -> Vec<Case> {
    let table = std::fs::read_to_string(folder().join("expected.tsv")).unwrap();
    let case = |line: &str| {
        let columns: Vec<&str> = line.split('\t').collect();
        let workload = match columns[2] {
            "register" => Workload::Register,
            "set" => Workload::Set,
            "counter" => Workload::Counter,
            "append" => Workload::Append,
            "siblings" => Workload::Siblings,
            other => panic!("no workload {other}"),
        };
        let stale = (columns[3] == "no-stale").then_some(false);
        let strong = columns[1] == "strong";
        let namespace = NamespacePlan { strong, workload, expect: Expectation { lost: false, stale } };
        Case {
            name: columns[0].into(),
            plan: Plan { namespaces: [("t".into(), namespace)].into(), ..Plan::default() },
            property: columns[4].into(),
        }
    };
    table.lines().skip(1).map(case).collect()
}

fn text(folder: &Path, case: &Case) -> String {
    std::fs::read_to_string(folder.join(format!("{}.jsonl", case.name))).unwrap()
}

fn events(text: &str) -> Vec<Event> {
    format::read(text.as_bytes(), None).unwrap()
}

fn rulings(judgement: &Judgement) -> Vec<(&str, Ruling, &str)> {
    let ruling = |property: &'_ kv_check::judge::Property| property.ruling;
    judgement.properties.iter().map(|p| (p.name.as_str(), ruling(p), p.detail.as_str())).collect()
}

#[test]
fn each_is_rejected_for_its_reason_and_accepted_when_repaired() {
    let cases = cases();
    assert!(cases.len() >= 16);
    for case in &cases {
        let (bad, good) = (text(&folder(), case), text(&folder().join("good"), case));
        let different = bad.lines().zip(good.lines()).filter(|(bad, good)| bad != good).count();
        assert_eq!((different, bad.lines().count()), (1, good.lines().count()), "{}", case.name);

        let judgement = judge(&events(&bad), &case.plan).unwrap();
        assert_eq!(judgement.ruling, Ruling::Invalid, "{}: {:?}", case.name, rulings(&judgement));
        let broken = judgement.properties.iter().find(|property| property.name == case.property);
        let broken = broken.unwrap_or_else(|| panic!("{}: {} was not judged", case.name, case.property));
        assert_eq!(broken.ruling, Ruling::Invalid, "{}: {:?}", case.name, rulings(&judgement));
        let evidence = broken.evidence.as_ref().unwrap();
        assert!(!evidence.indices.is_empty() && !evidence.text.is_empty(), "{}: {evidence:?}", case.name);
        assert!(evidence.from <= evidence.to, "{}: {evidence:?}", case.name);

        let judgement = judge(&events(&good), &case.plan).unwrap();
        assert_eq!(judgement.ruling, Ruling::Valid, "{}, repaired: {:?}", case.name, rulings(&judgement));
        let kept = judgement.properties.iter().find(|property| property.name == case.property).unwrap();
        assert!(kept.examined > 0 && kept.evidence.is_none(), "{}: {kept:?}", case.name);
    }
}

#[test]
fn every_file_is_in_the_table() {
    let named: BTreeSet<String> = cases().into_iter().map(|case| format!("{}.jsonl", case.name)).collect();
    for folder in [folder(), folder().join("good")] {
        let names =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| name.ends_with(".jsonl")).collect::<BTreeSet<_>>(), named);
    }
}

#[test]
fn each_says_the_same_in_every_format() {
    for case in cases() {
        let events = events(&text(&folder(), &case));
        let (mut as_edn, mut as_json) = (Vec::new(), Vec::new());
        edn::write(&mut as_edn, &events).unwrap();
        history::write(&mut as_json, &events).unwrap();
        assert_eq!(format::read(&as_edn, None).unwrap(), events, "{}", case.name);
        assert_eq!(format::read(&as_json, None).unwrap(), events, "{}", case.name);
    }
}

#[test]
fn too_little_proves_nothing() {
    for case in cases() {
        let judgement = judge(&[], &case.plan).unwrap();
        assert_eq!(judgement.ruling, Ruling::Unknown, "{}: {:?}", case.name, rulings(&judgement));
        let demanding = Plan { enough: 1000, ..case.plan.clone() };
        let judgement = judge(&events(&text(&folder().join("good"), &case)), &demanding).unwrap();
        assert_eq!(judgement.ruling, Ruling::Unknown, "{}", case.name);
        let judgement = judge(&events(&text(&folder(), &case)), &demanding).unwrap();
        assert_eq!(
            judgement.ruling,
            Ruling::Invalid,
            "{}: a violation is one however few were asked",
            case.name
        );
    }
    assert_eq!(judge(&[], &Plan::default()).unwrap().ruling, Ruling::Unknown);
}

#[test]
fn losses_that_the_configuration_allows_are_counted_and_staleness_that_must_show_is_missed() {
    let case = cases().into_iter().find(|case| case.name == "lost-sibling").unwrap();
    let events = events(&text(&folder(), &case));
    let mut plan = case.plan.clone();
    let namespace = plan.namespaces.get_mut("t").unwrap();
    namespace.expect.lost = true;
    let judgement = judge(&events, &plan).unwrap();
    assert_eq!((judgement.ruling, judgement.quantities["t"].lost), (Ruling::Valid, 1));
    plan.namespaces.get_mut("t").unwrap().expect.stale = Some(true);
    let with_meter = judge(&events, &plan).unwrap();
    let meter = with_meter.properties.iter().find(|property| property.name == "staleness is seen").unwrap();
    assert_eq!((meter.ruling, with_meter.quantities["t"].stale_reads), (Ruling::Valid, 1));
    let json = serde_json::to_string(&with_meter).unwrap();
    assert_eq!(serde_json::from_str::<Judgement>(&json).unwrap(), with_meter);
}
