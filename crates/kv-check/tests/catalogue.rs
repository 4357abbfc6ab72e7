//! The catalogue of known-bad histories: each is rejected for the property it breaks, and accepted once its
//! one bad line is repaired.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs, reason = "a test")]

use kv_check::format::{self, edn};
use kv_check::judge::{DIGESTS, Expectation, Judgement, Minority, NamespacePlan};
use kv_check::service::Window;
use kv_check::{Event, EventType, Json, Plan, Process, Ruling, Workload, history, judge};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const MS: u64 = 1_000_000;

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
        let namespace =
            NamespacePlan { strong, workload, expect: Expectation { stale, ..Expectation::default() } };
        let mut plan = Plan { namespaces: [("t".into(), namespace)].into(), ..Plan::default() };
        if columns[3] == "cut" {
            let side = |n| if n < 3 { "minority" } else { "majority" };
            let sides = (1..=5).map(|n| (format!("n{n}"), side(n).to_owned())).collect();
            plan.windows = vec![Window { name: "n1,n2 | n3,n4,n5".into(), from: 0, to: 100 * MS, sides }];
            plan.minority = Some(Minority { sides: ["minority".into()].into(), grace_ns: 10 * MS });
        }
        Case { name: columns[0].into(), plan, property: columns[4].into() }
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
    // A final read is no stale one: what it misses is lost.
    let at_rest = judge(&events, &plan).unwrap();
    let meter = at_rest.properties.iter().find(|property| property.name == "staleness is seen").unwrap();
    assert_eq!((meter.ruling, at_rest.quantities["t"].stale_reads), (Ruling::Unknown, 0));
    plan.settled = Some(u64::MAX);
    let with_meter = judge(&events, &plan).unwrap();
    let meter = with_meter.properties.iter().find(|property| property.name == "staleness is seen").unwrap();
    assert_eq!((meter.ruling, with_meter.quantities["t"].stale_reads), (Ruling::Valid, 1));
    let json = serde_json::to_string(&with_meter).unwrap();
    assert_eq!(serde_json::from_str::<Judgement>(&json).unwrap(), with_meter);
}

/// The events of the repaired history of this name, its plan, and the ruling of a property in it.
struct Trial {
    events: Vec<Event>,
    plan: Plan,
}

impl Trial {
    fn new(name: &str) -> Trial {
        let case = cases().into_iter().find(|case| case.name == name).unwrap();
        Trial { events: events(&text(&folder().join("good"), &case)), plan: case.plan }
    }

    fn ruling(&self, property: &str) -> Option<(Ruling, String)> {
        let judgement = judge(&self.events, &self.plan).unwrap();
        let found = judgement.properties.into_iter().find(|found| found.name == property)?;
        Some((found.ruling, found.detail))
    }
}

#[test]
fn digests_that_are_demanded_have_to_be_there_and_of_the_end() {
    const NAME: &str = "replicas equal in the end";
    let with = |moments: &[(u64, Option<&str>, Json)], demanded: bool| {
        let mut trial = Trial::new("lost-write");
        let last = trial.events.last().unwrap().time;
        for (after, part, digests) in moments {
            // Before everything else (0), or after it.
            let time = if *after == 0 { 0 } else { last + after };
            let mut event =
                Event::new(time, Process::Nemesis, EventType::Info, DIGESTS.into(), digests.clone());
            (event.ns, event.key) = (Some("t".into()), part.map(str::to_owned));
            trial.events.push(event);
        }
        trial.events = history::arrange(std::mem::take(&mut trial.events));
        if demanded {
            trial.plan.digests.insert("t".into());
        }
        trial.plan.healed = Some(1);
        trial.ruling(NAME).map(|(ruling, _)| ruling)
    };
    let equal = || json!({"n1": "aa", "n2": "aa"});
    let different = || json!({"n1": "aa", "n2": "bb"});
    assert_eq!(with(&[], false), None);
    assert_eq!(with(&[], true), Some(Ruling::Unknown));
    for demanded in [false, true] {
        assert_eq!(with(&[(1, None, equal())], demanded), Some(Ruling::Valid));
        assert_eq!(with(&[(1, None, different())], demanded), Some(Ruling::Invalid));
        assert_eq!(with(&[(1, None, different()), (2, None, equal())], demanded), Some(Ruling::Valid));
        // Each part has an end of its own.
        let parts = [(1, Some("7"), different()), (2, Some("8"), equal())];
        assert_eq!(with(&parts, demanded), Some(Ruling::Invalid));
        // A replica that does not tell, and one that is alone, prove nothing; a difference does.
        for too_little in
            [json!({"n1": "aa", "n2": "aa", "n3": null}), json!({"n1": "aa"}), json!({}), json!(null)]
        {
            assert_eq!(with(&[(1, None, too_little)], demanded), Some(Ruling::Unknown));
        }
        let silent = json!({"n1": "aa", "n2": "bb", "n3": null});
        assert_eq!(with(&[(1, None, silent)], demanded), Some(Ruling::Invalid));
    }
    // Before the writes they say nothing of the end.
    assert_eq!(with(&[(0, None, equal())], true), Some(Ruling::Unknown));
}

#[test]
fn a_minority_that_no_client_asked_and_a_cut_too_short_show_nothing() {
    const NAME: &str = "a minority refuses";
    let ruling = |change: &dyn Fn(&mut Plan)| {
        let mut trial = Trial::new("minority-answers");
        change(&mut trial.plan);
        trial.ruling(NAME).map(|(ruling, _)| ruling)
    };
    assert_eq!(ruling(&|_| {}), Some(Ruling::Valid));
    assert_eq!(ruling(&|plan| plan.windows[0].from = 15 * MS), Some(Ruling::Unknown));
    assert_eq!(ruling(&|plan| plan.windows[0].to = 20 * MS), None);
    assert_eq!(ruling(&|plan| plan.minority = None), None);
}

#[test]
fn receipts_that_are_demanded_have_to_be_there() {
    let ruling = |name: &str, property: &str, demanded: bool, lacking: &[usize]| {
        let mut trial = Trial::new(name);
        trial.plan.receipts = demanded;
        let answers = trial.events.iter_mut().filter(|event| event.receipt.is_some());
        for (at, event) in answers.enumerate() {
            if lacking.contains(&at) {
                event.receipt = None;
            }
        }
        trial.ruling(property).map(|(ruling, _)| ruling)
    };
    const ORDER: &str = "receipts name one order";
    let all: Vec<usize> = (0..100).collect();
    let forged = "forged-receipt-of-a-counter";
    assert_eq!(ruling(forged, ORDER, true, &[]), Some(Ruling::Valid));
    assert_eq!(ruling(forged, ORDER, true, &[0]), Some(Ruling::Unknown));
    assert_eq!(ruling(forged, ORDER, true, &all), Some(Ruling::Unknown));
    assert_eq!(
        (ruling(forged, ORDER, false, &[0]), ruling(forged, ORDER, false, &all)),
        (Some(Ruling::Valid), None)
    );
    const ABSENCE: &str = "no false absence";
    assert_eq!(ruling("false-absence", ABSENCE, true, &[]), Some(Ruling::Valid));
    assert_eq!(ruling("false-absence", ABSENCE, true, &all), Some(Ruling::Unknown));
    assert_eq!(ruling("false-absence", ABSENCE, false, &all), None);
}

#[test]
fn a_lie_stays_one_where_another_answer_lacks_its_receipt() {
    let case = cases().into_iter().find(|case| case.name == "forged-receipt-of-a-stale-read").unwrap();
    let mut events = events(&text(&folder(), &case));
    events.push(unread(&events, EventType::Invoke));
    events.push(unread(&events, EventType::Ok));
    let plan = Plan { receipts: true, ..case.plan.clone() };
    let judgement = judge(&history::arrange(events), &plan).unwrap();
    let found =
        judgement.properties.iter().find(|property| property.name == "receipts name one order").unwrap();
    assert_eq!(found.ruling, Ruling::Invalid, "{}", found.detail);
}

/// Half of a read of another key that found nothing and has no receipt.
fn unread(events: &[Event], kind: EventType) -> Event {
    let time = events.last().unwrap().time + 1;
    let mut event = Event::new(time, Process::Client(999), kind, "read".into(), Json::Null);
    (event.ns, event.key, event.node) = (Some("t".into()), Some("unread".into()), Some("n1".into()));
    event
}

#[test]
fn a_lost_delete_is_counted_where_losses_are_allowed() {
    const NAME: &str = "deleted values stay deleted";
    let case = cases().into_iter().find(|case| case.property == NAME).unwrap();
    let events = events(&text(&folder(), &case));
    let ruling = |lost: bool| {
        let mut plan = case.plan.clone();
        plan.namespaces.get_mut("t").unwrap().expect.lost = lost;
        let judgement = judge(&events, &plan).unwrap();
        let found = judgement.properties.into_iter().find(|property| property.name == NAME).unwrap();
        (found.ruling, found.detail, judgement.quantities["t"].resurrected)
    };
    assert_eq!(ruling(false).0, Ruling::Invalid);
    let allowed = "1 came back, which this configuration allows".to_owned();
    assert_eq!(ruling(true), (Ruling::Valid, allowed, 1));
}

#[test]
fn staleness_is_a_part_of_the_reads_before_the_store_had_settled() {
    let case =
        cases().into_iter().find(|case| case.plan.namespaces["t"].expect.stale == Some(false)).unwrap();
    let mut events = events(&text(&folder(), &case));
    events.retain(|event| event.f.name() != "settled");
    let found = judge(&events, &case.plan).unwrap().quantities.remove("t").unwrap();
    assert!(found.stale_reads > 0 && found.stale_fraction > 0.0, "{found:?}");
    // Everything is read once more at rest: nothing changes.
    let settled = events.last().unwrap().time + 1;
    events.extend([unread(&events, EventType::Invoke)]);
    events.extend([unread(&events, EventType::Ok)]);
    let plan = Plan { settled: Some(settled), ..case.plan.clone() };
    let again = judge(&history::arrange(events), &plan).unwrap().quantities.remove("t").unwrap();
    assert_eq!(
        (again.reads, again.stale_reads, again.stale_fraction, &again.freshness),
        (found.reads, found.stale_reads, found.stale_fraction, &found.freshness)
    );
}
