//! Tests of the page as a whole.

use std::collections::BTreeMap;

use kv_check::judge::{Evidence, Property, Quantities};

use crate::*;

fn names(nodes: &[&str]) -> Vec<String> {
    nodes.iter().map(|node| (*node).to_owned()).collect()
}

fn property(name: &str, ruling: Ruling, evidence: Option<Evidence>) -> Property {
    let detail = "a < b & c".into();
    Property {
        name: name.into(),
        ns: "bank".into(),
        checker: "wgl".into(),
        examined: 1_234,
        ruling,
        detail,
        evidence,
    }
}

/// A cut of eleven seconds between n1,n2 and n3,n4,n5, as it should go.
fn run() -> Report {
    const MS: u64 = 1_000_000;
    let groups = [names(&["n1", "n2"]), names(&["n3", "n4", "n5"])];
    let (cut, healed, to) = (3_000 * MS, 14_000 * MS, 17_000 * MS);
    let mut points = Vec::new();
    for at in (0..16_000).step_by(10) {
        for (ns, strong) in [("bank", true), ("cart", false)] {
            let node = 1 + at / 10 % 5;
            let in_cut = (3_000..14_000).contains(&at);
            let answer = match (strong && in_cut, node <= 2, at < 3_400) {
                (true, true, true) => Answer::Unknown,
                (true, true, false) => Answer::Refused,
                _ => Answer::Answered,
            };
            let (ns, node, mutation) = (ns.to_owned(), format!("n{node}"), at % 20 == 0);
            points.push(Point {
                ns,
                node,
                mutation,
                at: at * MS,
                latency: (1 + at % 37) * MS,
                answer,
                err: None,
            });
        }
    }
    let sides = groups.iter().zip(["minority", "majority"]);
    let sides =
        sides.flat_map(|(nodes, side)| nodes.iter().map(|node| (node.clone(), side.to_owned()))).collect();
    let sides_of = |ns: &str| {
        let side = |name: &str| {
            let mut mine = Side { ns: ns.into(), side: name.into(), ..Side::default() };
            let minority = |node: &str| node == "n1" || node == "n2";
            let on_side = |point: &&Point| minority(&point.node) == (name == "minority") && point.ns == ns;
            for point in points.iter().filter(on_side).filter(|point| (cut..healed).contains(&point.at)) {
                mine.tally.add(point.answer);
            }
            mine
        };
        ["minority", "majority"].map(side)
    };
    let counted = [sides_of("bank"), sides_of("cart")].concat();
    let stale = Stale { ns: "cart".into(), node: "n1".into(), at: 5_000 * MS, lag: 900 * MS, behind: 2 };
    let quantities = Quantities { reads: 800, stale_reads: 1, conflicted_keys: 12, ..Quantities::default() };
    let topology = |from, to, cut| Topology { from, to, cut, down: Vec::new() };
    Report {
        title: "A cut".into(),
        scenario: "majority-cut".into(),
        seed: 7,
        commit: "94e0360".into(),
        replay: "jepsen-tests run scenarios/majority-cut.toml --seed 7".into(),
        ruling: Ruling::Valid,
        claims: names(&["bank is linearizable"]),
        non_claims: names(&["that cart is"]),
        coverage: vec![Coverage {
            name: "links cut".into(),
            wanted: "12".into(),
            got: "12".into(),
            enough: true,
        }],
        properties: vec![property("linearizable", Ruling::Valid, None)],
        quantities: BTreeMap::from([("cart".to_owned(), quantities)]),
        nodes: groups.concat(),
        namespaces: [("bank", true), ("cart", false)]
            .map(|(name, strong)| Namespace { name: name.into(), strong, setting: "a setting".into() })
            .to_vec(),
        to,
        points,
        sides: counted,
        stale: vec![stale],
        siblings: vec![Siblings { ns: "cart".into(), at: 6_000 * MS, count: 3 }],
        topology: vec![
            topology(0, cut, Vec::new()),
            topology(cut, healed, Topology::between(&groups)),
            topology(healed, to, Vec::new()),
        ],
        leaders: vec![Leader { ns: "bank".into(), node: "n4".into(), from: 0, to }],
        faults: vec![Fault {
            from: cut,
            until: healed,
            to: healed,
            kind: "partition".into(),
            what: "n1,n2 | n3,n4,n5".into(),
            sides,
        }],
        marks: vec![Mark { at: healed, what: "healed".into(), ns: String::new() }],
        controls: vec![Control {
            name: "ack_before_fsync".into(),
            kind: "seeded bug".into(),
            caught: false,
            by: String::new(),
            seeds: Some(3),
            seconds: Some(1.5),
        }],
        ..Report::default()
    }
}

fn broken() -> Report {
    let evidence = Evidence {
        key: "k".into(),
        indices: vec![1, 2],
        text: "n1 <script> & so on".into(),
        from: 5,
        to: 90,
    };
    let step = |index, culprit| Step {
        index,
        process: 1,
        node: "n1".into(),
        what: "read = \"<b>\"".into(),
        from: index * 10,
        to: (index != 2).then_some(index * 10 + 9),
        answer: Answer::Answered,
        part: true,
        culprit,
    };
    let log = LogLine { node: "n1".into(), at: 7, text: "WARN <unclosed".into() };
    let failure = Failure {
        property: "linearizable".into(),
        ns: "bank".into(),
        key: "k".into(),
        operations: vec![step(1, false), step(2, true)],
        text: evidence.text.clone(),
        logs: vec![log],
    };
    Report {
        ruling: Ruling::Invalid,
        reasons: names(&["bank: x < y"]),
        properties: vec![property("linearizable", Ruling::Invalid, Some(evidence))],
        failures: vec![failure],
        ..run()
    }
}

#[test]
fn a_report_asks_for_nothing() {
    for report in [Report::default(), run(), broken()] {
        for page in [html(&report), strip_svg(&report).replace("http://www.w3.org/2000/svg", "")] {
            for request in ["http:", "https:", "src=", "<script", "<link", "@import", "<iframe", "<object"] {
                assert!(!page.contains(request), "{request}");
            }
            assert_eq!(page.matches("url(").count(), page.matches("url(#").count());
            assert_eq!(page.matches("href=").count(), page.matches("href=\"#").count());
        }
    }
}

#[test]
fn every_section_is_there_in_order_whatever_the_run() {
    for report in [Report::default(), run(), broken()] {
        let page = html(&report);
        let places: Vec<_> = SECTIONS
            .iter()
            .map(|(anchor, _)| page.find(&format!("<section id=\"{anchor}\">")).unwrap())
            .collect();
        assert!(places.is_sorted());
        // The picture comes before every table, and before what is to be doubted.
        assert!(page.find("<svg").unwrap() < page.find("<table").unwrap_or(usize::MAX));
        assert!(page.find("<svg").unwrap() < page.find("id=\"claims\"").unwrap());
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }
}

#[test]
fn a_stranger_is_told_what_cap_means_by_this_run() {
    let page = html(&run());
    for expected in [
        "jepsen-tests run scenarios/majority-cut.toml --seed 7",
        "VALID",
        "n1,n2 | n3,n4,n5",
        "CONSISTENT",
        "goes on answering (100 %): AVAILABLE, and pays with 1 stale read ",
        "12 keys written on both sides",
        "healed",
        "n4 leads bank",
        "cart n1, 5.00 s: 5 answered, 1 stale",
        "1 of 1 known wrongs were missed",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
}

#[test]
fn a_page_holds_a_drawing_for_wide_and_one_for_narrow_screens() {
    let page = html(&run());
    let mut ids: Vec<&str> =
        page.split(" id=\"").skip(1).map(|rest| rest.split_once('"').unwrap().0).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "an id is given once: {ids:?}");
    assert_eq!(page.matches("<svg class=\"strip").count(), 2);
    for used in page.split("url(#").skip(1).map(|rest| rest.split_once(')').unwrap().0) {
        assert!(ids.contains(&used), "{used}");
    }
}

#[test]
fn events_are_listed_in_the_order_of_their_times() {
    let mut report = run();
    let mark = |at, what: &str| Mark { at, what: what.into(), ns: String::new() };
    report.marks.insert(0, mark(14_300_000_000, "replicas equal"));
    report.marks.push(mark(3_400_000_000, "writes again"));
    let page = html(&report);
    let list = page.split_once("<ol class=\"events\">").unwrap().1.split_once("</ol>").unwrap().0;
    let places = ["n1,n2 | n3,n4,n5", "writes again", "healed", "replicas equal"].map(|what| list.find(what));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{list}");
}

#[test]
fn too_little_coverage_is_shown_before_any_result() {
    let mut report = run();
    report.ruling = Ruling::Unknown;
    report.coverage[0].enough = false;
    let page = html(&report);
    assert!(page.contains("UNKNOWN") && page.contains("1 of 1 were missed"));
    assert!(page.find("1 of 1 were missed") < page.find("judged by"));
}

#[test]
fn a_broken_promise_shows_its_evidence_escaped() {
    let page = html(&broken());
    for expected in [
        "INVALID",
        "bank: x &lt; y",
        "href=\"#part-bank-linearizable\"",
        "id=\"part-bank-linearizable\"",
        "class=\"culprit\"",
        "never came back",
        "n1 &lt;script&gt; &amp; so on",
        "WARN &lt;unclosed",
        "read = &quot;&lt;b&gt;&quot;",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
    assert!(!page.contains("<unclosed") && !page.contains("<b>\""));
}

#[test]
fn a_long_run_stays_a_small_file() {
    let mut report = run();
    report.to = 60_000_000_000;
    report.namespaces = (0..7)
        .map(|at| Namespace { name: format!("ns{at}"), strong: at == 0, setting: String::new() })
        .collect();
    report.points = (0..21_000_u64)
        .map(|at| Point {
            ns: format!("ns{}", at % 7),
            node: format!("n{}", 1 + at / 7 % 5),
            mutation: at % 2 == 0,
            at: at * 60_000_000_000 / 21_000,
            latency: 1_000_000 + at * 7_919 % 90_000_000,
            answer: if at % 11 == 0 { Answer::Refused } else { Answer::Answered },
            err: None,
        })
        .collect();
    let size = html(&report).len();
    assert!(size < 3_000_000, "{size} bytes");
}

#[test]
fn a_report_is_drawn_again_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    write(&broken(), folder.path()).unwrap();
    assert_eq!(read(folder.path()).unwrap(), broken());
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert_eq!(page, html(&broken()));
    assert!(read(&folder.path().join("nowhere")).is_err());
}
