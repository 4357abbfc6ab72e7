//! The third part of an error: what to type next.

use std::time::Duration;

use kv_client::{Client, ClientOptions};
use kv_types::{Applied, GroupId, NodeId, Placement, Reason};

use crate::app::App;
use crate::cluster::views;
use crate::problem::Problem;

/// Time for finding a node that would do better.
const PROBE: Duration = Duration::from_millis(400);
/// Longest argument that is repeated in a suggestion.
const LONGEST_ARGUMENT: usize = 40;

/// Adds what would help, judging by the reason. `arguments` are those of this run, without the program.
pub(crate) async fn suggest(app: &App, problem: &mut Problem, arguments: &[String]) {
    let Some(failure) = problem.failure.clone() else { return };
    if !problem.tries.is_empty() {
        return;
    }
    let again = command_line(arguments);
    let mut add = |line: String, why: &str| problem.tries.push((line, why.to_owned()));
    if failure.applied == Applied::Unknown {
        add(
            format!("kvctl {}", read_instead(arguments)),
            "read, then decide: it may have been applied, or may still be",
        );
        return;
    }
    match failure.reason {
        Reason::NoQuorum | Reason::NotLeader => {
            match tokio::time::timeout(PROBE, node_with_quorum(app)).await.ok().flatten() {
                Some((node, address)) => {
                    let again = command_line(&without_endpoint(arguments));
                    add(format!("kvctl -e {address} {again}"), &format!("{node} has a quorum"));
                }
                None => add(format!("kvctl {again}"), "again in a moment: an election takes about a second"),
            }
            add("kvctl cluster status --as-seen-by all".into(), "who sees whom");
        }
        Reason::Unreachable => {
            add("kvctl lab up".into(), "starts five nodes on this machine");
            add("kvctl ctx show".into(), "which cluster is meant, and why");
        }
        Reason::QuorumNotMet | Reason::LimitHints => {
            add("kvctl cluster status".into(), "which nodes are out of reach");
        }
        Reason::NamespaceUnknown => {
            add("kvctl ns list".into(), "");
            add("kvctl ns create NAME --mode strong|available".into(), "");
        }
        Reason::ModeMismatch => add("kvctl help consistency".into(), "what each mode offers"),
        Reason::EmptyKey
        | Reason::LimitKey
        | Reason::LimitValue
        | Reason::NamespaceInvalid
        | Reason::NamespaceExists
        | Reason::InvalidRequest
        | Reason::BadContext
        | Reason::ForeignContext => {}
        _ => add(format!("kvctl {again}"), "again: nothing was applied"),
    }
}

/// A node that reports a quorum for the namespace's group (the first data group when no namespace is meant).
async fn node_with_quorum(app: &App) -> Option<(NodeId, String)> {
    let client = Client::connect(ClientOptions { read_timeout: PROBE / 2, ..app.options().ok()? }).ok()?;
    let topology = client.admin().topology().await.ok()?;
    let namespace = app.namespace().ok().and_then(|name| topology.namespaces.get(&name));
    let group = match namespace.map(|info| info.namespace.placement) {
        Some(Placement::Strong { group }) => group,
        _ => GroupId::FIRST_DATA,
    };
    let views = views(&client, &topology).await;
    let served = views.iter().find(|(_, view)| {
        let mut groups = view.iter().flat_map(|status| &status.groups);
        groups.any(|known| known.group == group.0 && known.quorum && known.leader != 0)
    });
    let (node, _) = served?;
    Some((*node, topology.address(*node)?.to_owned()))
}

/// The arguments as they would be typed, long ones shortened.
fn command_line(arguments: &[String]) -> String {
    let quoted = arguments.iter().map(|argument| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@+".contains(c);
        if argument.chars().count() > LONGEST_ARGUMENT {
            format!("'{}…'", argument.chars().take(LONGEST_ARGUMENT).collect::<String>().escape_debug())
        } else if !argument.is_empty() && argument.chars().all(plain) {
            argument.clone()
        } else {
            format!("'{}'", argument.replace('\'', "'\\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// The arguments without `-e ADDRESS` in any of its spellings.
fn without_endpoint(arguments: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut skip = false;
    for argument in arguments {
        if std::mem::take(&mut skip) {
            continue;
        }
        match argument.as_str() {
            "-e" | "--endpoint" => skip = true,
            other
                if other.starts_with("--endpoint=")
                    || (other.starts_with("-e") && !other.starts_with("--")) => {}
            _ => kept.push(argument.clone()),
        }
    }
    kept
}

/// The read that shows what became of a write: the same options, `get`, the key and nothing after it.
fn read_instead(arguments: &[String]) -> String {
    let mut kept: Vec<String> = Vec::new();
    let mut words = 0;
    let mut takes_value = false;
    for argument in arguments {
        if std::mem::take(&mut takes_value) {
            kept.push(argument.clone());
        } else if matches!(argument.as_str(), "-n" | "-e" | "-c" | "--namespace" | "--endpoint" | "--context")
        {
            takes_value = true;
            kept.push(argument.clone());
        } else if !argument.starts_with('-') && words < 2 {
            words += 1;
            let word = if matches!(argument.as_str(), "put" | "del" | "cas") { "get" } else { argument };
            kept.push(word.to_owned());
        }
    }
    match kept.iter().find(|word| matches!(word.as_str(), "ns" | "cluster")).map(String::as_str) {
        Some("ns") => "ns list".into(),
        Some(_) => "cluster status".into(),
        None => command_line(&kept),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn suggestions_can_be_typed() {
        assert_eq!(command_line(&["put".into(), "a b".into(), "it's".into()]), r"put 'a b' 'it'\''s'");
        assert!(command_line(&["x".repeat(1_000)]).len() < 100);
        let line = arguments("-e h:1 put -n bank k v --endpoint=h:2");
        assert_eq!(without_endpoint(&line), arguments("put -n bank k v"));
    }

    #[test]
    fn after_an_unknown_write_comes_a_read() {
        assert_eq!(read_instead(&arguments("put -n bank alice 1")), "get -n bank alice");
        assert_eq!(
            read_instead(&arguments("-e h:1 cas -n bank alice --expect-revision 118 90")),
            "-e h:1 get -n bank alice"
        );
        assert_eq!(read_instead(&arguments("ns create bank --mode strong")), "ns list");
        assert_eq!(read_instead(&arguments("cluster transfer-leader n3")), "cluster status");
    }
}
