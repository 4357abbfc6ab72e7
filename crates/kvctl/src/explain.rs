//! `kvctl explain`: why a read of a key shows what it shows. Which copies there are, what each of them has
//! and lacks, and how many replicas a read or a write would find now, from the viewpoint of one node.

use kv_client::{CopyState, ExplainedCopy, ExplainedValue, Explanation};
use kv_types::{NodeId, counted};
use serde_json::{Value, json};

use crate::app::App;
use crate::cli::Explain;
use crate::data::{self, label};
use crate::exit::Exit;
use crate::output::{nodes, object, on_a_line, put_bytes, table, time_of_day};
use crate::problem::Problem;

pub(crate) async fn run(app: &App, args: &Explain) -> Result<Exit, Problem> {
    let key = data::key(app, &args.key, &args.form).await?;
    let namespace = app.namespace()?;
    let client = app.client()?;
    let endpoint = match args.as_seen_by {
        None => None,
        Some(viewer) => {
            let topology = client.admin().topology().await?;
            let address = topology.address(viewer).map(str::to_owned);
            Some(address.ok_or_else(|| Problem::usage(format!("{viewer} is not a member")))?)
        }
    };
    let explained = client.admin().explain(endpoint.as_deref(), &namespace, &key).await?;
    if app.out.is_json() {
        app.out.json(&whole(&namespace, &key, &explained))?;
    } else {
        for line in lines(&namespace, &key, &explained) {
            app.out.line(line)?;
        }
    }
    Ok(Exit::Done)
}

/// Whether the key is of a strong namespace: the leader alone answers for it.
fn is_strong(explained: &Explanation) -> bool {
    explained.owners.as_ref().is_none_or(|owners| owners.ring == 0)
}

fn node(id: u64) -> String {
    NodeId(id).to_string()
}

fn lines(namespace: &str, key: &[u8], explained: &Explanation) -> Vec<String> {
    let owners = explained.owners.clone().unwrap_or_default();
    let name = format!("{namespace}/{}", on_a_line(key));
    let seen = format!("seen by {}", node(explained.viewpoint));
    if is_strong(explained) {
        let leader = match (explained.leader, explained.quorum) {
            (0, _) => "no leader is known".to_owned(),
            (leader, true) => format!("led by {}, through which reads and writes go", node(leader)),
            (leader, false) => format!("was led by {}", node(leader)),
        };
        let voters = format!("  voters {}: {leader}", nodes(&owners.primaries));
        let refused = "  this node hears no leader with a majority: reads and writes are refused here";
        let mut lines = vec![format!("{name}   strong, {seen}"), voters];
        lines.extend((!explained.quorum).then(|| refused.to_owned()));
        return lines;
    }
    let mut lines = vec![format!("{name}   ring partition {}, {seen}", owners.partition)];
    lines.extend(indented(&copies(explained)));
    lines.push(String::new());
    if explained.values.is_empty() {
        lines.push(format!("  {}", nothing(explained)));
    } else {
        lines.extend(indented(&values(&explained.values)));
    }
    lines.push(String::new());
    lines.extend(["R", "W"].map(|which| format!("  {}", reach(which, explained))));
    let is_silent = |copy: &ExplainedCopy| copy.primary && copy.state() == CopyState::Silent;
    if explained.strict_replicas < explained.w && explained.copies.iter().any(is_silent) {
        lines.push("  a primary that rebuilds what it keeps answers no read, and is not counted;".to_owned());
        lines.push("  it takes writes".to_owned());
    }
    lines
}

/// Values that are shown; programs get all.
const MOST_VALUES: usize = 20;
/// Labels that are shown of one copy.
const MOST_LABELS: usize = 5;

/// What it means that no copy which answered has a value.
fn nothing(explained: &Explanation) -> &'static str {
    let found = if explained.sloppy { explained.sloppy_replicas } else { explained.strict_replicas };
    let is_silent = |copy: &ExplainedCopy| copy.state() == CopyState::Silent;
    match (explained.known && explained.strict_replicas > 0, found >= explained.r) {
        (false, _) => "no node that keeps the key has answered: not even absence is known",
        (true, false) => "no copy that answered has a value; too few did to say that the key is absent",
        (true, true) if explained.copies.iter().any(is_silent) => {
            "no value: a read says absent; a copy that does not answer may have one"
        }
        (true, true) => "no value: the key is absent",
    }
}

fn indented(text: &str) -> Vec<String> {
    text.lines().map(|line| format!("  {line}")).collect()
}

/// The label of each value that is named.
fn labels(dots: &[String], values: &[ExplainedValue]) -> String {
    let place = |dot: &String| values.iter().position(|value| value.dot == *dot);
    let all: Vec<String> = dots.iter().filter_map(place).map(label).collect();
    let shown = all.iter().take(if all.len() > MOST_LABELS + 1 { MOST_LABELS } else { all.len() });
    let mut words: Vec<String> = shown.cloned().collect();
    let hidden = all.len().saturating_sub(words.len());
    words.extend((hidden > 0).then(|| format!("+{hidden}")));
    if words.is_empty() { "-".to_owned() } else { words.join(" ") }
}

fn copies(explained: &Explanation) -> String {
    let row = |copy: &ExplainedCopy| {
        let role = if copy.primary { "primary" } else { "fallback" };
        let said = match (copy.state(), copy.primary) {
            (CopyState::Silent, _) => "does not answer",
            (CopyState::Values, true) => "has values",
            (CopyState::Values, false) => "holds values for others",
            (CopyState::Absent, true) => "has none",
            (CopyState::Absent, false) => "holds a delete",
            (CopyState::Nothing, _) => "holds nothing",
        };
        let old = if copy.superseded == 0 { "-".to_owned() } else { copy.superseded.to_string() };
        let (has, lacks) = (labels(&copy.has, &explained.values), labels(&copy.lacks, &explained.values));
        vec![node(copy.node), role.to_owned(), said.to_owned(), has, lacks, old]
    };
    table(&["node", "role", "copy", "has", "lacks", "old"], explained.copies.iter().map(row))
}

fn values(values: &[ExplainedValue]) -> String {
    let row = |(place, value): (usize, &ExplainedValue)| {
        let (bytes, written) = (value.bytes.to_string(), time_of_day(value.written_ms));
        vec![label(place), bytes, written, value.request.clone()]
    };
    let shown = values.iter().enumerate().take(MOST_VALUES);
    let text = table(&["value", "bytes", "written (UTC)", "by request"], shown.map(row));
    match values.len().saturating_sub(MOST_VALUES) {
        0 => text,
        hidden => format!("{text}\n... and {hidden} more; -o json has all"),
    }
}

/// What a read, or a write, of as many replicas as the namespace says would find now, by the answers to
/// reads.
fn reach(which: &str, explained: &Explanation) -> String {
    let needed = if which == "R" { explained.r } else { explained.w };
    let (strict, sloppy) = (explained.strict_replicas, explained.sloppy_replicas);
    let met = |found: u32| found >= needed;
    let outcome = match (met(strict), explained.sloppy && met(sloppy)) {
        (true, _) => "met by primaries".to_owned(),
        (false, true) if which == "R" && (strict == 0 || !explained.known) => {
            "met by fallbacks, which may know nothing".to_owned()
        }
        (false, true) => "met with fallbacks".to_owned(),
        (false, false) => "not met: refused".to_owned(),
    };
    let with = if explained.sloppy { format!(", {sloppy} with fallbacks") } else { String::new() };
    let what = if which == "R" { "reads" } else { "writes" };
    let primaries = counted(strict, "primary answers", "primaries answer");
    format!("{what:<6} {which}={needed} of {}: {outcome} ({primaries}{with})", explained.n)
}

fn whole(namespace: &str, key: &[u8], explained: &Explanation) -> Value {
    let owners = explained.owners.clone().unwrap_or_default();
    let names = |ids: &[u64]| ids.iter().map(|id| node(*id)).collect::<Vec<_>>();
    let mut whole = object([
        ("namespace", json!(namespace)),
        ("mode", json!(if is_strong(explained) { "strong" } else { "available" })),
        ("seen_by", json!(node(explained.viewpoint))),
        ("epoch", json!(owners.epoch)),
    ]);
    put_bytes(&mut whole, "key", key);
    if is_strong(explained) {
        let leader = (explained.leader != 0).then(|| node(explained.leader));
        whole.extend(object([
            ("voters", json!(names(&owners.primaries))),
            ("leader", json!(leader)),
            ("quorum", json!(explained.quorum)),
        ]));
        return Value::Object(whole);
    }
    let copies: Vec<Value> = explained.copies.iter().map(copy_json).collect();
    let values: Vec<Value> = explained.values.iter().map(value_json).collect();
    whole.extend(object([
        ("ring", json!(owners.ring)),
        ("ring_partition", json!(owners.partition)),
        ("n", json!(explained.n)),
        ("r", json!(explained.r)),
        ("w", json!(explained.w)),
        ("sloppy", json!(explained.sloppy)),
        ("strict_replicas", json!(explained.strict_replicas)),
        ("sloppy_replicas", json!(explained.sloppy_replicas)),
        ("known", json!(explained.known)),
        ("copies", json!(copies)),
        ("values", json!(values)),
    ]));
    Value::Object(whole)
}

fn copy_json(copy: &ExplainedCopy) -> Value {
    let state = match copy.state() {
        CopyState::Silent => "silent",
        CopyState::Values => "values",
        CopyState::Absent => "absent",
        CopyState::Nothing => "nothing",
    };
    json!({
        "node": node(copy.node),
        "primary": copy.primary,
        "state": state,
        "has": copy.has,
        "lacks": copy.lacks,
        "superseded": copy.superseded,
    })
}

fn value_json(value: &ExplainedValue) -> Value {
    json!({
        "dot": value.dot,
        "bytes": value.bytes,
        "written_at_ms": value.written_ms,
        "request_id": value.request,
    })
}

#[cfg(test)]
mod tests {
    use kv_client::RingOwners;

    use super::*;

    fn copy(node: u64, primary: bool, state: CopyState, has: &[&str], lacks: &[&str]) -> ExplainedCopy {
        let dots = |dots: &[&str]| dots.iter().map(|dot| (*dot).to_owned()).collect();
        let superseded = u32::from(node == 3);
        let mut copy = ExplainedCopy {
            node,
            primary,
            has: dots(has),
            lacks: dots(lacks),
            superseded,
            ..Default::default()
        };
        copy.set_state(state);
        copy
    }

    fn value(dot: &str) -> ExplainedValue {
        let request = "0123456789abcdef0123456789abcdef-7".to_owned();
        ExplainedValue { dot: dot.to_owned(), bytes: 5, written_ms: 45_296_000, request }
    }

    fn cut_in_two() -> Explanation {
        let owners =
            RingOwners { ring: 1, partition: 17, primaries: vec![1, 2, 3], epoch: 4, ..Default::default() };
        Explanation {
            viewpoint: 1,
            owners: Some(owners),
            n: 3,
            r: 1,
            w: 3,
            sloppy: true,
            strict_replicas: 2,
            sloppy_replicas: 3,
            known: true,
            copies: vec![
                copy(1, true, CopyState::Values, &["9:1"], &["8:2"]),
                copy(2, true, CopyState::Silent, &[], &[]),
                copy(3, true, CopyState::Values, &[], &["9:1", "8:2"]),
                copy(4, false, CopyState::Values, &["8:2"], &["9:1"]),
                copy(5, false, CopyState::Nothing, &[], &[]),
            ],
            values: vec![value("9:1"), value("8:2")],
            ..Default::default()
        }
    }

    #[test]
    fn what_each_copy_has_is_shown_within_eighty_columns() {
        let lines = lines("cart", b"user:42", &cut_in_two());
        let expected = "\
cart/user:42   ring partition 17, seen by n1
  node  role      copy                     has  lacks  old
  n1    primary   has values               a    b      -
  n2    primary   does not answer          -    -      -
  n3    primary   has values               -    a b    1
  n4    fallback  holds values for others  b    a      -
  n5    fallback  holds nothing            -    -      -

  value  bytes  written (UTC)  by request
  a      5      12:34:56       0123456789abcdef0123456789abcdef-7
  b      5      12:34:56       0123456789abcdef0123456789abcdef-7

  reads  R=1 of 3: met by primaries (2 primaries answer, 3 with fallbacks)
  writes W=3 of 3: met with fallbacks (2 primaries answer, 3 with fallbacks)
  a primary that rebuilds what it keeps answers no read, and is not counted;
  it takes writes";
        assert_eq!(lines.join("\n"), expected);
        assert!(lines.iter().all(|line| line.chars().count() <= 80));
    }

    /// A key with as many values as it may have still fits a screen.
    #[test]
    fn of_many_values_the_first_are_shown_and_the_others_counted() {
        let dots: Vec<String> = (0..100).map(|counter| format!("9:{counter}")).collect();
        let all: Vec<&str> = dots.iter().map(String::as_str).collect();
        let explained = Explanation {
            copies: vec![
                copy(1, true, CopyState::Values, &all, &[]),
                copy(2, true, CopyState::Values, &all[..6], &all[6..]),
            ],
            values: dots.iter().map(|dot| value(dot)).collect(),
            strict_replicas: 1,
            ..cut_in_two()
        };
        let lines = lines("cart", b"k", &explained);
        assert!(lines.len() < 35 && lines.iter().all(|line| line.chars().count() <= 80), "{lines:#?}");
        assert!(lines[2].contains("  a b c d e +95  -"), "{}", lines[2]);
        assert!(lines[3].contains("  a b c d e f    g h i j k +89  -"), "{}", lines[3]);
        assert!(lines.iter().any(|line| line == "  ... and 80 more; -o json has all"), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("(1 primary answers, ")), "{lines:#?}");
        assert_eq!(whole("cart", b"k", &explained)["values"].as_array().unwrap().len(), 100);
    }

    #[test]
    fn what_is_absent_is_told_from_what_is_not_known() {
        let mut explained = Explanation { values: Vec::new(), ..cut_in_two() };
        let has = |explained: &Explanation, what: &str| {
            lines("cart", b"k", explained).iter().any(|line| line.contains(what))
        };
        assert!(has(&explained, "a copy that does not answer may have one"));
        let silent = explained.copies.remove(1);
        assert!(has(&explained, "no value: the key is absent"));
        explained.copies.insert(1, silent);
        (explained.strict_replicas, explained.sloppy_replicas, explained.r) = (1, 1, 2);
        assert!(has(&explained, "too few did to say that the key is absent"));
        (explained.sloppy_replicas, explained.r) = (3, 1);
        explained.known = false;
        explained.strict_replicas = 0;
        assert!(has(&explained, "not even absence is known") && has(&explained, "which may know nothing"));
        explained.sloppy = false;
        assert!(has(&explained, "not met: refused"));
    }

    #[test]
    fn of_a_strong_key_the_leader_is_named() {
        let owners = RingOwners { primaries: vec![1, 2, 3], ..Default::default() };
        let mut explained =
            Explanation { viewpoint: 2, owners: Some(owners), leader: 3, quorum: true, ..Default::default() };
        assert_eq!(
            lines("bank", b"alice", &explained)[1],
            "  voters n1 n2 n3: led by n3, through which reads and writes go"
        );
        assert_eq!(whole("bank", b"alice", &explained)["leader"], "n3");
        explained.quorum = false;
        let behind = lines("bank", b"alice", &explained);
        assert!(
            behind[1].ends_with("was led by n3") && behind[2].ends_with("are refused here"),
            "{behind:?}"
        );
        assert!(behind.iter().all(|line| line.chars().count() <= 80));
        explained.leader = 0;
        assert!(lines("bank", b"alice", &explained)[1].ends_with("no leader is known"));
        assert_eq!(whole("bank", b"alice", &explained)["leader"], Value::Null);
    }
}
