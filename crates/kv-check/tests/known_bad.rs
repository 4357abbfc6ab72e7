//! Hand-made violations that the checker must reject, each beside the nearest history that it must accept: a
//! checker that has never failed has not been tested. They are JSON lines, as a run writes them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs, reason = "a test")]

use kv_check::linear::{Convention, Options, Verdict, check};
use kv_check::{Witness, history, operation};

/// Builds a history from lines like `1 0 invoke write "a"` (time, process, type, f, value, then other
/// members).
fn judge_as(lines: &str, options: &Options) -> Verdict {
    let mut json = String::new();
    for (index, line) in lines.trim().lines().enumerate() {
        let mut parts = line.trim().splitn(5, ' ');
        let mut part = || parts.next().unwrap();
        let (time, process, kind, f, value) = (part(), part(), part(), part(), part());
        json += &format!(
            r#"{{"index":{index},"time":{time},"process":{process},"type":"{kind}","f":"{f}","key":"k","value":{value}}}"#
        );
        json.push('\n');
    }
    check(&operation::pair(&history::read(json.as_bytes()).unwrap()).unwrap(), options)
}

fn judge(lines: &str) -> Verdict {
    judge_as(lines, &Options::default())
}

#[track_caller]
fn rejected(lines: &str) -> Witness {
    match judge(lines) {
        Verdict::Invalid(witness) => *witness,
        verdict => panic!("accepted: {verdict:?}"),
    }
}

#[track_caller]
fn accepted(lines: &str) {
    assert_eq!(judge(lines), Verdict::Valid);
}

#[test]
fn a_stale_read() {
    let witness = rejected(
        r#"1 0 invoke write "a"
           2 0 ok write "a"
           3 0 invoke write "b"
           4 0 ok write "b"
           5 1 invoke read null
           6 1 ok read "a""#,
    );
    assert_eq!(
        (witness.linearization.len(), witness.state, witness.stuck.output),
        (2, "b".into(), "a".into())
    );
    accepted(
        r#"1 0 invoke write "a"
           2 0 ok write "a"
           3 0 invoke write "b"
           4 1 invoke read null
           5 1 ok read "a"
           6 0 ok write "b""#,
    );
}

#[test]
fn a_lost_update_by_two_cas_from_one_value() {
    rejected(
        r#"1 0 invoke write 0
           2 0 ok write 0
           3 0 invoke cas [0, 1]
           3 1 invoke cas [0, 2]
           5 0 ok cas [0, 1]
           6 1 ok cas [0, 2]"#,
    );
    accepted(
        r#"1 0 invoke write 0
           2 0 ok write 0
           3 0 invoke cas [0, 1]
           3 1 invoke cas [1, 2]
           5 0 ok cas [0, 1]
           6 1 ok cas [1, 2]"#,
    );
}

#[test]
fn a_lost_update_by_two_cas_on_one_revision() {
    let history = |second: &str| {
        format!(
            r#"1 0 invoke write "a"
               2 0 ok write "a","revision":7
               3 0 invoke cas "b","expect_revision":7
               3 1 invoke cas "c","expect_revision":{second}
               5 0 ok cas "b","revision":8
               6 1 ok cas "c","revision":9"#
        )
    };
    rejected(&history("7"));
    accepted(&history("8"));
}

#[test]
fn a_value_that_was_reported_as_not_applied() {
    let history = |outcome: &str| {
        format!(
            r#"1 0 invoke write "a"
               2 0 {outcome} write "a"
               3 1 invoke read null
               4 1 ok read "a""#
        )
    };
    rejected(&history("fail"));
    accepted(&history("info"));
}

#[test]
fn a_deleted_value_that_comes_back() {
    let history = |last: &str| {
        format!(
            r#"1 0 invoke write "a"
               2 0 ok write "a"
               3 0 invoke delete null
               4 0 ok delete null
               5 1 invoke read null
               6 1 ok read null
               7 1 invoke read null
               8 1 ok read {last}"#
        )
    };
    rejected(&history("\"a\""));
    accepted(&history("null"));
}

#[test]
fn an_acknowledged_write_that_is_gone() {
    rejected(
        r#"1 0 invoke write "a"
           2 0 ok write "a"
           3 1 invoke read null
           4 1 ok read null"#,
    );
}

#[test]
fn reads_that_go_back_in_time() {
    rejected(
        r#"1 0 invoke write "a"
           2 1 invoke read null
           3 1 ok read "a"
           4 2 invoke read null
           5 2 ok read null
           6 0 info write "a""#,
    );
}

#[test]
fn a_revision_that_goes_back() {
    let history = |saw: u64| {
        format!(
            r#"1 0 invoke write "a"
               2 0 ok write "a","revision":5
               3 1 invoke read null
               4 1 ok read "a","revision":{saw}"#
        )
    };
    rejected(&history(4));
    accepted(&history(5));
    rejected(
        r#"1 0 invoke write "a"
           2 0 ok write "a","revision":5
           3 0 invoke write "b"
           4 0 ok write "b","revision":5"#,
    );
}

#[test]
fn a_retry_that_was_applied_twice() {
    // An unknown write of "a" may surface late, but once: after "b" was read, "a" must not come back a second
    // time.
    let history = |last: &str| {
        format!(
            r#"1 0 invoke write "a"
               2 0 info write "a"
               3 1 invoke write "b"
               4 1 ok write "b"
               5 1 invoke read null
               6 1 ok read "a"
               7 1 invoke write "c"
               8 1 ok write "c"
               9 1 invoke read null
               10 1 ok read {last}"#
        )
    };
    rejected(&history("\"a\""));
    accepted(&history("\"c\""));
}

#[test]
fn a_mismatch_that_should_have_matched() {
    let history = |more: &str| {
        format!(
            r#"1 0 invoke write "a"
               2 0 ok write "a","revision":5
               3 1 invoke cas {more}"#
        )
    };
    rejected(&history("[\"a\", \"b\"]\n4 1 fail cas null,\"err\":\"mismatch\""));
    rejected(&history("[\"z\", \"b\"]\n4 1 fail cas null,\"err\":\"mismatch\",\"observed\":[\"y\"]"));
    rejected(&history("\"b\",\"expect_revision\":5\n4 1 fail cas null,\"err\":\"mismatch\""));
    rejected(&history("\"b\",\"expect_revision\":5\n4 1 fail cas null,\"err\":\"mismatch\",\"revision\":5"));
    accepted(&history("[\"z\", \"b\"]\n4 1 fail cas null,\"err\":\"mismatch\",\"observed\":[\"a\"]"));
    accepted(&history("\"b\",\"expect_revision\":4\n4 1 fail cas null,\"err\":\"mismatch\",\"revision\":5"));
    accepted(&history(
        "\"b\",\"expect_revision\":0\n4 1 fail cas null,\"err\":\"mismatch\",\"observed\":[\"a\"]",
    ));
    // Refused for another reason than the condition: it says nothing.
    accepted(&history("[\"a\", \"b\"]\n4 1 fail cas null,\"err\":\"NO_QUORUM\""));
}

#[test]
fn the_lenient_convention_ignores_mismatches_and_empty_reads() {
    let lenient = Options { convention: Convention::Lenient, ..Options::default() };
    let lines = r#"1 0 invoke write "a"
                   2 0 ok write "a"
                   3 1 invoke cas ["a", "b"]
                   4 1 fail cas null,"err":"mismatch"
                   5 1 invoke read null
                   6 1 ok read null"#;
    rejected(lines);
    assert_eq!(judge_as(lines, &lenient), Verdict::Valid);
}

#[test]
fn the_witness_tells_its_story() {
    let text = rejected(
        r#"1000000000 0 invoke write "a"
           2000000000 0 ok write "a"
           3000000000 1 invoke read null
           4500000000 1 ok read null"#,
    )
    .to_string();
    assert!(text.contains("1 operations explained") && text.contains("write \"a\" ok"), "{text}");
    assert!(text.contains("x #2 process 1 read -> null ok [3.000000 s .. 4.500000]"), "{text}");
}

#[test]
fn a_limit_gives_unknown_and_never_a_violation() {
    let options = Options { max_configurations: 1, ..Options::default() };
    let lines = r#"1 0 invoke write "a"
                   1 1 invoke write "b"
                   1 2 invoke write "c"
                   2 0 ok write "a"
                   2 1 ok write "b"
                   2 2 ok write "c""#;
    assert!(matches!(judge_as(lines, &options), Verdict::Unknown { key, .. } if key == "k"));
}

#[test]
fn one_bad_key_among_good_ones_is_named() {
    let line = |time, kind: &str, f: &str, key: &str, value: &str| {
        format!(
            r#"{{"index":{time},"time":{time},"process":0,"type":"{kind}","f":"{f}","key":"{key}","ns":"bank","value":{value}}}"#
        )
    };
    let mut lines = Vec::new();
    for (n, key) in [(0, "good"), (4, "bad"), (8, "fine")] {
        let read = if key == "bad" { "2" } else { "1" };
        lines.push(line(n, "invoke", "write", key, "1"));
        lines.push(line(n + 1, "ok", "write", key, "1"));
        lines.push(line(n + 2, "invoke", "read", key, "null"));
        lines.push(line(n + 3, "ok", "read", key, read));
    }
    let operations = operation::pair(&history::read(lines.join("\n").as_bytes()).unwrap()).unwrap();
    let Verdict::Invalid(witness) = check(&operations, &Options::default()) else { panic!("accepted") };
    assert_eq!((witness.ns.as_str(), witness.key.as_str()), ("bank", "bad"));
}
