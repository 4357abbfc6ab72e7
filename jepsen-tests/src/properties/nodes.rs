//! Promises about the nodes themselves: they stay up, they do not panic, and everything can be read from each
//! in the end.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kv_check::judge::{Property, Ruling};
use kv_types::NodeId;

use crate::recorded::Recorded;
use crate::scenario::Scenario;

/// What a node writes when it breaks its own rules.
const PANIC: &str = "panicked at";

/// Promises about the nodes themselves.
pub(super) fn judge(scenario: &Scenario, recorded: &Recorded) -> Vec<Property> {
    let property = |name: &str, checker: &str, found: &[String], fine: String| Property {
        name: name.to_owned(),
        ns: String::new(),
        checker: checker.to_owned(),
        examined: recorded.nodes.len() as u64,
        ruling: if found.is_empty() { Ruling::Valid } else { Ruling::Invalid },
        detail: if found.is_empty() { fine } else { found.join("; ") },
        evidence: None,
    };
    let panics = panics(&recorded.logs);
    let (excused, unexcused): (Vec<_>, Vec<_>) = recorded
        .broken
        .iter()
        .cloned()
        .partition(|what| scenario.expect.ends && what.contains("ended by itself"));
    let fine = match excused.len() {
        0 => "all ran whenever no fault held them down".to_owned(),
        count => format!("{count} ended, as this scenario lets them"),
    };
    let unread: Vec<String> = match recorded.unread.as_slice() {
        [] => Vec::new(),
        [first, ..] => vec![format!("{} final reads had no answer, such as {first}", recorded.unread.len())],
    };
    vec![
        property("nodes stay up and start again", "processes", &unexcused, fine),
        property("no panic", "logs", &panics, "no node panicked".into()),
        property(
            "everything can be read in the end",
            "final reads",
            &unread,
            "every key at every node".into(),
        ),
    ]
}

/// Nodes that panicked, by their logs. A log that is not there, cannot be read, or is empty shows no absence
/// of panics.
fn panics(logs: &BTreeMap<NodeId, PathBuf>) -> Vec<String> {
    let found = |(node, log): (&NodeId, &PathBuf)| {
        let bytes = match std::fs::read(log) {
            Ok(bytes) if bytes.is_empty() => return Some(format!("{node}: its log is empty")),
            Ok(bytes) => bytes,
            Err(error) => return Some(format!("{node}: its log cannot be read: {error}")),
        };
        let text = String::from_utf8_lossy(&bytes);
        let line = text.lines().find(|line| line.contains(PANIC))?;
        Some(format!("{node}: {}", line.trim()))
    };
    logs.iter().filter_map(found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_missing_or_empty_shows_no_absence_of_panics() {
        let folder = tempfile::tempdir().unwrap();
        let [good, empty, bad] = ["good", "empty", "bad"].map(|name| folder.path().join(name));
        std::fs::write(&good, "serves\n").unwrap();
        std::fs::write(&empty, "").unwrap();
        std::fs::write(&bad, "serves\nthread 'x' panicked at src/y.rs:1\n").unwrap();
        let missing = folder.path().join("missing");
        let logs = (1..).map(NodeId).zip([good, missing, empty, bad]).collect();
        let found = panics(&logs);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("n2: its log cannot be read"), "{found:?}");
        assert_eq!(found[1], "n3: its log is empty");
        assert!(found[2].starts_with("n4: thread"), "{found:?}");
    }
}
