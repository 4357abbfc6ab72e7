//! The third part of an error: what to type next. Each line is built from what was parsed, can be typed as it
//! stands, and is for the cluster that was meant.

use std::time::Duration;

use kv_client::{Client, ClientOptions, Topology};
use kv_types::{Applied, Failure, GroupId, Mode, NodeId, Placement, Reason};

use crate::app::App;
use crate::cluster::views;
use crate::exit::Exit;
use crate::line::Line;
use crate::problem::Problem;

/// Time for finding a node that would do better.
const PROBE: Duration = Duration::from_millis(400);

/// Adds what would help, judging by the reason.
pub(crate) async fn suggest(app: &App, problem: &mut Problem) {
    let Some(failure) = problem.failure.clone() else { return };
    if !problem.tries.is_empty() {
        return;
    }
    problem.tries = if failure.applied == Applied::Unknown {
        after_unknown(app, &failure).await
    } else {
        match failure.reason {
            Reason::NoQuorum | Reason::NotLeader => without_quorum(app).await,
            _ => after(app, &failure),
        }
    };
}

/// A command about the same cluster, and no namespace.
fn admin(line: &Line, commands: &[&str]) -> Line {
    line.other(commands).without("namespace")
}

type Tries = Vec<(String, String)>;

fn tries<const N: usize>(lines: [(&Line, &str); N]) -> Tries {
    lines.map(|(line, why)| (line.to_string(), why.to_owned())).into()
}

/// What became of it is not known: a read at a node that can know, and the same request once more.
async fn after_unknown(app: &App, failure: &Failure) -> Tries {
    let line = &app.line;
    let Some(key) = line.get("key") else {
        let look = match line.command().first() {
            // A benchmark makes a namespace of its own.
            Some(&"ns" | &"bench") => admin(line, &["ns", "list"]),
            _ => admin(line, &["cluster", "status"]),
        };
        return tries([(&look, "read, then decide: it may have been done, or may still be")]);
    };
    let mut get = line.other(&["get"]).operand("key", key);
    let better = tokio::time::timeout(PROBE, better_node(app)).await.ok().flatten();
    let mut again = line.clone();
    let namespace = app.namespace().ok();
    if let Some(Better { address, .. }) = &better {
        (get, again) = (get.at(address, namespace.as_deref()), again.at(address, namespace.as_deref()));
    }
    let mut found = tries([(&get, "read, then decide: it may have been applied, or may still be")]);
    if let Some(id) = failure.detail("write_id").filter(|_| may_be_sent_again(failure)) {
        let why = if line.reads_value() {
            "the same request again, with the value on standard input: it is applied once"
        } else {
            "the same request again: it is applied once, whatever became of it"
        };
        found.extend(tries([(&again.with("--request-id", id), why)]));
    }
    found
}

/// Whether the same request once more may be answered otherwise.
fn may_be_sent_again(failure: &Failure) -> bool {
    let last = failure.detail("last_reason").unwrap_or(failure.reason.code_name());
    let for_good =
        [Reason::RequestExpired, Reason::SessionExpired, Reason::RequestIdReused, Reason::RequestIdInvalid];
    !for_good.iter().any(|reason| reason.code_name() == last)
}

async fn without_quorum(app: &App) -> Tries {
    let status = admin(&app.line, &["cluster", "status"]).with("--as-seen-by", "all");
    match tokio::time::timeout(PROBE, better_node(app)).await.ok().flatten() {
        Some(Better { node, address }) => tries([
            (
                &app.line.clone().at(&address, app.namespace().ok().as_deref()),
                &format!("{node} has a quorum"),
            ),
            (&status, "who sees whom"),
        ]),
        None => tries([
            (&app.line, "again in a moment: an election takes about a second"),
            (&status, "who sees whom"),
        ]),
    }
}

/// What helps after a refusal of which the node that gave it is no part.
fn after(app: &App, failure: &Failure) -> Tries {
    let line = &app.line;
    let get = |key: &str| line.other(&["get"]).operand("key", key).with("-o", "json");
    match failure.reason {
        Reason::Unreachable => unreachable(app),
        Reason::QuorumNotMet | Reason::LimitHints | Reason::LimitStorage | Reason::StorageFailed => {
            tries([(&admin(line, &["cluster", "status"]), "which nodes are out of reach, or full")])
        }
        Reason::NamespaceUnknown => unknown_namespace(app),
        Reason::NamespaceExists => {
            let named = line.get("name").unwrap_or_default();
            tries([(&admin(line, &["ns", "show"]).operand("name", named), "what it is")])
        }
        Reason::LimitNamespaces => tries([
            (&admin(line, &["ns", "list"]), "which there are"),
            (&Line::new(&["help"]).operand("topic", "ns").operand("topic", "delete"), "how one is deleted"),
        ]),
        Reason::ModeMismatch => topic("consistency", "what each mode offers"),
        Reason::EmptyKey | Reason::LimitKey | Reason::LimitValue => topic("limits", "what fits"),
        Reason::LimitSiblings | Reason::BadContext | Reason::ForeignContext => match line.get("key") {
            Some(key) => tries([(&get(key), "the values and their context, for --causal")]),
            None => Tries::new(),
        },
        Reason::InvalidRequest | Reason::NamespaceInvalid | Reason::ModeMissing | Reason::RequestIdReused => {
            let help =
                line.command().iter().fold(Line::new(&["help"]), |help, word| help.operand("topic", *word));
            tries([(&help, "how it is said")])
        }
        _ if Exit::of(failure) == Exit::Unavailable => tries([(line, "again: nothing was applied")]),
        _ => Tries::new(),
    }
}

fn topic(topic: &str, why: &str) -> Tries {
    tries([(&Line::new(&["help"]).operand("topic", topic), why)])
}

/// A lab helps where one is meant.
fn unreachable(app: &App) -> Tries {
    let contexts = Line::new(&["ctx", "list"]);
    let lab = app.global.endpoints.is_empty()
        && app.target().is_ok_and(|target| target.lab.is_some() || target.context.is_none());
    if lab {
        let up = Line::new(&["lab", "up"]);
        let named = app.target().ok().and_then(|target| target.context);
        let up = named.iter().fold(up, |up, name| up.with("--name", name));
        return tries([(&up, "starts a cluster on this machine"), (&contexts, "which clusters are known")]);
    }
    tries([(&app.line, "again, when a node is there"), (&contexts, "which clusters are known")])
}

fn unknown_namespace(app: &App) -> Tries {
    let line = &app.line;
    let mut found = tries([(&admin(line, &["ns", "list"]), "which there are")]);
    let name = line.get("name").map(str::to_owned).or_else(|| app.namespace().ok());
    if let Some(name) = name.filter(|_| line.command() != ["ns", "delete"]) {
        let create = |mode: Mode| {
            let create = admin(line, &["ns", "create"]);
            create.with("--mode", mode).operand("name", &name)
        };
        found.extend(tries([
            (&create(Mode::Strong), "linearizable; refuses in a minority"),
            (&create(Mode::Available), "answers in a minority; converges"),
        ]));
    }
    found
}

/// A node that would do better than the one that was asked.
struct Better {
    node: NodeId,
    address: String,
}

/// The node that leads the namespace's group by the latest term and has a quorum, or one that follows it.
/// Never the one that was asked alone, whatever it says of itself. None for an available namespace: there
/// every node that can be reached may know.
async fn better_node(app: &App) -> Option<Better> {
    let target = app.target().ok()?;
    let client = Client::connect(ClientOptions { read_timeout: PROBE / 2, ..app.options().ok()? }).ok()?;
    let topology: Topology = client.admin().topology().await.ok()?;
    let namespace = app.namespace().ok().and_then(|name| topology.namespaces.get(&name));
    let group = match namespace.map(|info| info.namespace.placement) {
        Some(Placement::Strong { group }) => group,
        Some(Placement::Available { .. }) => return None,
        None => GroupId::FIRST_DATA,
    };
    let views = views(&client, &topology).await;
    let served = views.iter().filter_map(|(node, view)| {
        let address = topology.address(*node)?;
        let asked = target.pinned && target.endpoints.iter().any(|endpoint| endpoint == address);
        let groups = view.as_ref().map(|status| status.groups.as_slice()).unwrap_or_default();
        let known = groups.iter().find(|known| known.group == group.0)?;
        let serves = known.quorum && known.leader != 0 && !asked;
        serves.then(|| (known.term, known.leader == node.0, *node, address.to_owned()))
    });
    let (_, _, node, address) = served.max()?;
    Some(Better { node, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_for_good_is_not_sent_again() {
        let open = Failure::new(Reason::ResultUnknown, "x");
        assert!(may_be_sent_again(&open));
        assert!(may_be_sent_again(&open.clone().with("last_reason", Reason::NoQuorum)));
        for reason in [Reason::RequestExpired, Reason::SessionExpired, Reason::RequestIdReused] {
            assert!(!may_be_sent_again(&open.clone().with("last_reason", reason)), "{reason}");
            assert!(!may_be_sent_again(&Failure::new(reason, "x").after_sending()), "{reason}");
        }
    }
}
