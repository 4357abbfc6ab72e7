//! The third part of an error: what to type next. Each line is built from what was parsed, can be typed as it
//! stands, and is for the cluster that was meant.

use std::time::Duration;

use kv_client::{Client, ClientOptions, Topology};
use kv_env::{Clock as _, SystemClock};
use kv_types::{Applied, Failure, GroupId, Mode, NodeId, Placement, Reason, WriteId};
use tokio::time::timeout;

use crate::app::{App, NEAREST, nearest};
use crate::broken::{Broken, Tries, lab_that_is_meant, wider};
use crate::cli::{Cluster, Command, Fault, Lab};
use crate::exit::Exit;
use crate::line::Line;
use crate::problem::Problem;
use crate::units::{ago, moment};
use crate::views::views;

/// Time for finding a node that would do better.
const PROBE: Duration = Duration::from_millis(400);

/// Adds what would help, judging by the reason.
pub(crate) async fn suggest(app: &App, problem: &mut Problem) {
    problem.of_read = app.line.reads();
    if !problem.tries.is_empty() {
        return;
    }
    let Some(failure) = problem.failure.clone() else {
        // Whatever is wrong with a line, there is help on its command.
        if problem.exit == Exit::Usage {
            problem.tries = tries([(&help(&app.line), "how it is said")]);
        }
        return;
    };
    if failure.reason == Reason::NotReady && failure.detail("level").is_none() {
        let missing = timeout(PROBE, first_start(app)).await.ok().flatten();
        if let Some(waits) = missing {
            problem.message = format!("{}\n{waits}", problem.message);
            problem.tries = until_up(app, ["which nodes do not answer", "again, when they do"]).await;
            return;
        }
    }
    problem.tries = if failure.applied == Applied::Unknown {
        after_unknown(app, &failure).await
    } else {
        match failure.reason {
            Reason::NoQuorum | Reason::NotLeader => {
                let (tries, said) = without_quorum(app, &failure).await;
                problem.message.extend(said.iter().flat_map(|said| ["\n", said.as_str()]));
                tries
            }
            Reason::NotReady if failure.detail("level").is_some() => {
                // A level is raised once, and every member has to say that it can.
                let which = "which nodes do not answer: for the first time each has to be up";
                until_up(app, [which, "again, when every node is up"]).await
            }
            Reason::NamespaceUnknown => unknown_namespace(app, &failure).await,
            Reason::QuorumNotMet => without_replicas(app).await,
            _ if failure.detail("not_a_node").is_some() => tries([
                (&app.line.cluster(&["ctx", "show"]), "which address is meant, and why"),
                (&Line::new(&["ctx", "list"]), "which clusters are known"),
            ]),
            Reason::Unreachable | Reason::DeadlineExpired | Reason::ConnectionLost => unanswered(app).await,
            _ => after(app, &failure),
        }
    };
}

/// What is said of a change that was interrupted; none of a command that changes nothing. Of a write, whether
/// it was sent, how it is named, and the line that sends the same again. Nothing is asked of a node: a person
/// who interrupts does not want to wait.
pub(crate) fn of_interrupted(app: &App, command: &Command, exit: Exit) -> Option<Problem> {
    let line = &app.line;
    let Some(again) = command.again() else { return of_interrupted_else(app, command, exit) };
    let of_namespace = matches!(command, Command::Ns(_));
    let what = if of_namespace { "change" } else { "write" };
    let Some(id) = again.request_id.or_else(|| app.sent()) else {
        let message = format!("interrupted before the {what} was sent: nothing was applied");
        let problem = Problem { not_sent: true, ..Problem::new(exit, message) };
        return Some(problem.try_this(line.to_string(), self::again(line)));
    };
    let message = format!("interrupted: the {what} may have been applied, or may still be");
    let failure = Failure::new(Reason::ResultUnknown, message).of_request(id.request_id);
    let problem = Problem { exit, ..Problem::from(failure.with("write_id", id)) };
    let problem = problem.try_this(line.clone().with("--request-id", id).to_string(), same_again(line));
    let look = match line.get("key").filter(|_| !of_namespace) {
        Some(key) => line.other(&["get"]).operand("key", key),
        None => admin(line, &["ns", "list"]),
    };
    Some(problem.try_this(look.to_string(), LOOK))
}

/// The same of changes that have no id: where it can be seen what became of them.
fn of_interrupted_else(app: &App, command: &Command, exit: Exit) -> Option<Problem> {
    let look = match command {
        Command::Cluster(Cluster::TransferLeader { .. }) => admin(&app.line, &["cluster", "status"]),
        Command::Lab(Lab::Down(_) | Lab::Kill(_) | Lab::Restart { .. } | Lab::Pause(_) | Lab::Resume(_)) => {
            app.line.of_lab(&["lab", "status"])
        }
        Command::Fault(fault) if !matches!(fault, Fault::List(_)) => app.line.of_lab(&["fault", "list"]),
        _ => return None,
    };
    let problem = Problem::new(exit, "interrupted: it may have been done, or may still be");
    Some(problem.try_this(look.to_string(), "what there is now"))
}

/// Why the same request is sent again.
fn same_again(line: &Line) -> String {
    match line.reads_input() {
        Some(what) => format!("the same request again, with {what} on standard input: it is applied once"),
        None => "the same request again: it is applied once, whatever became of it".to_owned(),
    }
}

/// Why to look at what there is.
const LOOK: &str = "what is there now; that settles nothing: it may still be applied";

/// A command about the same cluster, and no namespace.
fn admin(line: &Line, commands: &[&str]) -> Line {
    line.other(commands).without("namespace")
}

fn tries<const N: usize>(lines: [(&Line, &str); N]) -> Tries {
    lines.map(|(line, why)| (line.to_string(), why.to_owned())).into()
}

/// Why the same line can be typed once more.
fn again(line: &Line) -> String {
    let input = line.reads_input().map_or(String::new(), |what| format!(", with {what} on standard input"));
    if line.reads() { format!("again{input}") } else { format!("again{input}: nothing was applied") }
}

/// Whom a node that has not seen the catalogue does not hear, in words.
async fn first_start(app: &App) -> Option<String> {
    let client = Client::connect(ClientOptions { read_timeout: PROBE / 2, ..app.options().ok()? }).ok()?;
    let topology = client.admin().topology().await.ok()?;
    let status = client.admin().status(topology.address(topology.answered_by)?).await.ok()?;
    crate::cluster::waits_for(&status)
}

/// What became of it is not known: the same request once more, which settles it, and a read. Both at a node
/// that can know; where there is none, the nodes of a lab that are missing come first.
async fn after_unknown(app: &App, failure: &Failure) -> Tries {
    let line = &app.line;
    let Some(key) = line.get("key") else { return after_unknown_change(app, failure).await };
    let mut get = line.other(&["get"]).operand("key", key);
    let better = timeout(PROBE, better_node(app, None)).await.ok().flatten();
    let mut again = line.clone();
    let namespace = app.namespace().ok();
    if let Some(Better { address, .. }) = &better {
        (get, again) = (get.at(address, namespace.as_deref()), again.at(address, namespace.as_deref()));
    } else if let Some(name) = wider(app) {
        // The one that was asked does not know, and those beside it may.
        (get, again) = (get.in_context(&name), again.in_context(&name));
    }
    let mut found = if better.is_none() { in_trouble(app).await } else { Tries::new() };
    if let Some(id) = failure.detail("write_id").filter(|_| may_be_sent_again(failure)) {
        found.extend(tries([(&again.with("--request-id", id), &same_again(line))]));
    } else if let Some(from) = taken_from(failure, SystemClock.wall_ms()) {
        let why = format!("again from {} on: until then its id is ahead of the clock", moment(from));
        found.extend(tries([(&again, &why)]));
    }
    found.extend(tries([(&get, LOOK)]));
    found
}

/// When an id is taken that a node refused because it is from a time that has not come, milliseconds since
/// 1970; none of any other.
fn taken_from(failure: &Failure, now_ms: u64) -> Option<u64> {
    let refused = failure.detail("last_reason") == Some(Reason::RequestIdInvalid.code_name());
    let id: WriteId = failure.detail("write_id").filter(|_| refused)?.parse().ok()?;
    Some(id.issued_at_ms).filter(|issued| *issued > now_ms)
}

/// The same of a change of the cluster: a look at it where it can be known, and the same request once more.
async fn after_unknown_change(app: &App, failure: &Failure) -> Tries {
    let line = &app.line;
    let of_catalogue = matches!(line.command().first(), Some(&"ns" | &"bench"));
    let (mut look, mut again) = match of_catalogue {
        true => (admin(line, &["ns", "list"]), line.clone()),
        false => (admin(line, &["cluster", "status"]), line.clone()),
    };
    let mut found = Tries::new();
    if of_catalogue {
        // A node that was cut off lists what it knew before.
        match better_within(app, GroupId::CATALOGUE).await {
            Some(Better { address, .. }) => {
                (look, again) = (look.at(&address, None), again.at(&address, None));
            }
            None => {
                found = in_trouble(app).await;
                if let Some(name) = wider(app) {
                    (look, again) = (look.in_context(&name), again.in_context(&name));
                }
            }
        }
    }
    // A benchmark makes a namespace of its own, and no other one.
    let id = failure.detail("write_id").filter(|_| line.command().first() == Some(&"ns"));
    if let Some(id) = id.filter(|_| may_be_sent_again(failure)) {
        found.extend(tries([(&again.with("--request-id", id), &same_again(line))]));
    }
    found.extend(tries([(&look, "what there is now; that settles nothing: it may still be done")]));
    found
}

/// Whether the same request once more may be answered otherwise.
fn may_be_sent_again(failure: &Failure) -> bool {
    let last = failure.detail("last_reason").unwrap_or(failure.reason.code_name());
    let for_good =
        [Reason::RequestExpired, Reason::SessionExpired, Reason::RequestIdReused, Reason::RequestIdInvalid];
    !for_good.iter().any(|reason| reason.code_name() == last)
}

/// No leader with a majority was found behind what was asked. Also what is to be said of it beside the error.
async fn without_quorum(app: &App, failure: &Failure) -> (Tries, Option<String>) {
    let status = admin(&app.line, &["cluster", "status"]).with("--as-seen-by", "all");
    let sight = timeout(PROBE, sight(app, None)).await.ok().flatten().unwrap_or_default();
    let at = |address: &str| app.line.clone().at(address, app.namespace().ok().as_deref());
    if let Some(Better { node, address }) = sight.better {
        let why = format!("{node} has a quorum");
        return (tries([(&at(&address), &why), (&status, "who sees whom")]), None);
    }
    const ELECTS: &str = "again in a moment: an election takes about a second";
    let Some(broken) = Broken::of(app).await else {
        // A node that hears no majority will not lead in a second either.
        let number = |name| failure.detail(name).and_then(|text| text.parse::<u64>().ok());
        let hears = number("reachable").zip(number("required"));
        let why = match hears {
            Some((reachable, required)) if reachable < required => "again, when more voters are heard",
            _ => ELECTS,
        };
        return (tries([(&app.line, why), (&status, "who sees whom")]), None);
    };
    let able = broken.could_lead(&sight.voters);
    let (mut found, mut said) = (Tries::new(), None);
    match (able.first(), app.target().ok().filter(|target| target.pinned)) {
        (None, _) => {
            said = Some(format!("no node hears a majority: {}", crate::lab::broken(&broken.lab)));
            found.extend(broken.mend());
            found.extend(tries([(&app.line, broken.when_mended())]));
        }
        (Some(one), Some(target)) if !able.iter().any(|node| target.asks(&node.client_address)) => {
            let why = format!("{} hears a majority", one.node);
            found.extend(tries([(&at(&one.client_address), &why)]));
        }
        _ => found.extend(tries([(&app.line, ELECTS)])),
    }
    found.extend(tries([(&status, "who sees whom")]));
    (found, said)
}

/// Too few replicas of the key are in reach. A lab knows which nodes are down, or that links are cut.
async fn without_replicas(app: &App) -> Tries {
    let look = admin(&app.line, &["cluster", "status"]);
    let broken = Broken::of(app).await;
    let mut found = broken.as_ref().map_or_else(Tries::new, |broken| broken.nodes(&[]));
    let are_down = !found.is_empty();
    // Also where nodes are down: with those back alone it may still be refused.
    if let Some(broken) = broken.as_ref().filter(|broken| broken.is_cut()) {
        let why = "which links are cut on purpose; `fault heal` ends that";
        found.extend(tries([(&broken.list(), why)]));
    }
    found.extend(match broken.filter(|_| are_down) {
        Some(broken) => tries([(&app.line, broken.when_mended())]),
        None => tries([(&look, "which nodes are out of reach")]),
    });
    found
}

/// What helps after a refusal of which the node that gave it is no part.
fn after(app: &App, failure: &Failure) -> Tries {
    let line = &app.line;
    let get = |key: &str| line.other(&["get"]).operand("key", key).with("-o", "json");
    match failure.reason {
        Reason::LimitHints | Reason::LimitStorage | Reason::StorageFailed => {
            tries([(&admin(line, &["cluster", "status"]), "which nodes are out of reach, or full")])
        }
        Reason::DeletionPending => deleted(app, failure),
        Reason::NamespaceExists if failure.detail("deleted_until_ms").is_some() => deleted(app, failure),
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
        Reason::LimitSiblings | Reason::BadContext | Reason::ForeignContext | Reason::ContextMissing => {
            match line.get("key") {
                Some(key) => tries([(&get(key), "the values and their context, for --causal")]),
                None => tries([(&help(line), "how it is said")]),
            }
        }
        Reason::RequestIdInvalid if failure.detail("clock_ahead_ms").is_some() => {
            let ahead =
                failure.detail("clock_ahead_ms").and_then(|ms| ms.parse().ok()).map_or("?".into(), ago);
            vec![
                ("date -u".into(), format!("the clock here is {ahead} ahead of the node's: set it")),
                (line.to_string(), format!("then {}", again(line))),
            ]
        }
        Reason::RequestIdReused | Reason::RequestIdInvalid => {
            tries([(&line.clone().without("request_id"), "as a request of its own")])
        }
        Reason::DeadlineMissing => tries([(&line.clone().with("--timeout", "2s"), "with a deadline")]),
        Reason::WrongCluster | Reason::WrongNode | Reason::WrongGroup => {
            tries([(&line.cluster(&["ctx", "show"]), "which cluster is meant, and why")])
        }
        Reason::InvalidRequest | Reason::NamespaceInvalid | Reason::ModeMissing => {
            tries([(&help(line), "how it is said")])
        }
        _ if Exit::of(failure) == Exit::Unavailable => tries([(line, &again(line))]),
        _ => Tries::new(),
    }
}

/// Help on the command that was typed.
fn help(line: &Line) -> Line {
    line.command().iter().fold(Line::new(&["help"]), |help, word| help.operand("topic", *word))
}

fn topic(topic: &str, why: &str) -> Tries {
    tries([(&Line::new(&["help"]).operand("topic", topic), why)])
}

/// What helps where no answer came. A lab that is meant can say which node is down or stands still.
async fn unanswered(app: &App) -> Tries {
    let contexts = Line::new(&["ctx", "list"]);
    let wider = wider(app);
    let (named, dir) = lab_that_is_meant(app);
    // Without any context the lab on the usual ports is meant.
    let lab = dir.is_some() || (app.global.endpoints.is_empty() && named.is_none());
    let Some(broken) = Broken::of(app).await else {
        let first = match (lab, &named) {
            (true, name) => {
                let up = name.iter().fold(Line::new(&["lab", "up"]), |up, name| up.with("--name", name));
                (up, "starts a cluster on this machine")
            }
            (false, _) => (app.line.clone(), "again, when a node is there"),
        };
        return tries([(&first.0, first.1), (&contexts, "which clusters are known")]);
    };
    let mut found = broken.nodes(&app.global.endpoints);
    match &wider {
        Some(name) => {
            found.extend(tries([(&app.line.clone().in_context(name), "at any node of the cluster")]));
        }
        None => found.extend(tries([(&app.line, &again(&app.line))])),
    }
    found
}

/// Those that do not answer are started, and then it is tried again: why to look, and when to try.
async fn until_up(app: &App, [which, when]: [&str; 2]) -> Tries {
    let line = &app.line;
    let mut found = in_trouble(app).await;
    if found.is_empty() {
        let status = admin(line, &["cluster", "status"]).with("--as-seen-by", "all");
        found = tries([(&status, which)]);
    }
    let applied = if line.reads() { "" } else { ": nothing was applied" };
    found.extend(tries([(line, &format!("{when}{applied}"))]));
    found
}

/// Lines that bring back what is missing, if a lab is meant and says that something is.
async fn in_trouble(app: &App) -> Tries {
    Broken::of(app).await.map_or_else(Tries::new, |broken| broken.mend())
}

/// A namespace that can be taken back.
fn deleted(app: &App, failure: &Failure) -> Tries {
    let line = &app.line;
    let Some(name) = line.get("name").map(str::to_owned).or_else(|| app.namespace().ok()) else {
        return Tries::new();
    };
    let until = failure.detail("deleted_until_ms").and_then(|ms| ms.parse().ok()).map(moment);
    let back = match until {
        Some(until) => format!("takes it back, with everything in it, until {until}"),
        None => "takes it back, with everything in it".to_owned(),
    };
    let undelete = admin(line, &["ns", "undelete"]).operand("name", &name);
    let deletes = matches!(line.command().as_slice(), ["ns", "delete"]);
    let mut found = tries([(&undelete, &back)]);
    if deletes {
        found.extend(tries([(line, "then: deletes it with the grace that is asked for now")]));
    }
    // Where the name is wanted, or the namespace is to go.
    if deletes || matches!(line.command().as_slice(), ["ns", "create"]) {
        let delete = admin(line, &["ns", "delete"]).flag("--now").operand("name", &name);
        found.extend(tries([(&delete, "deletes it at once, and for good")]));
    }
    found
}

async fn unknown_namespace(app: &App, failure: &Failure) -> Tries {
    let line = &app.line;
    let list = admin(line, &["ns", "list"]);
    let Some(name) = line.get("name").map(str::to_owned).or_else(|| app.namespace().ok()) else {
        return tries([(&list, "which there are")]);
    };
    if let Some(meant) = meant(app, failure, &name).await {
        let this = match line.get("name") {
            Some(_) => line.clone().replaced("name", &meant),
            None => line.clone().with("-n", &meant),
        };
        return tries([(&this, "the nearest name that there is"), (&list, "which there are")]);
    }
    let mut found = tries([(&list, "which there are")]);
    if !matches!(line.command().as_slice(), ["ns", "delete" | "undelete" | "alter"]) {
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

/// The name of a namespace that was probably meant, by what the failure says or else a node.
async fn meant(app: &App, failure: &Failure, typed: &str) -> Option<String> {
    if let Some(near) = failure.detail(NEAREST) {
        return near.split(',').next().map(str::to_owned);
    }
    let client = Client::connect(ClientOptions { read_timeout: PROBE, ..app.options().ok()? }).ok()?;
    let topology = timeout(PROBE, client.admin().topology()).await.ok()?.ok()?;
    // A node that knows the name was not the one that refused it.
    let known = topology.namespaces.keys().map(String::as_str).filter(|known| *known != typed);
    nearest(known, typed).map(str::to_owned)
}

/// A node that would do better than the one that was asked.
pub(crate) struct Better {
    node: NodeId,
    pub(crate) address: String,
}

/// The node that serves this group, if one is found soon.
pub(crate) async fn better_within(app: &App, group: GroupId) -> Option<Better> {
    timeout(PROBE, better_node(app, Some(group))).await.ok().flatten()
}

/// What is seen of a group: the node that would do better, and its voters as far as any node says.
#[derive(Default)]
struct Sight {
    better: Option<Better>,
    voters: Vec<NodeId>,
}

async fn better_node(app: &App, group: Option<GroupId>) -> Option<Better> {
    sight(app, group).await?.better
}

/// The node that leads this group, or that of the namespace, by the latest term and has a quorum, or one that
/// follows it. Never the one that was asked alone, whatever it says of itself. None for an available
/// namespace: there every node that can be reached may know.
async fn sight(app: &App, group: Option<GroupId>) -> Option<Sight> {
    let target = app.target().ok()?;
    let client = Client::connect(ClientOptions { read_timeout: PROBE / 2, ..app.options().ok()? }).ok()?;
    let topology: Topology = client.admin().topology().await.ok()?;
    let namespace = app.namespace().ok().and_then(|name| topology.namespaces.get(&name));
    let group = match (group, namespace.map(|info| info.namespace.placement)) {
        (Some(group), _) | (None, Some(Placement::Strong { group })) => group,
        (None, Some(Placement::Available { .. })) => return None,
        (None, None) => GroupId::FIRST_DATA,
    };
    let views = views(&client, &topology).await;
    let known = views.iter().filter_map(|(node, view)| {
        let known = view.as_ref()?.groups.iter().find(|known| known.group == group.0)?;
        Some((*node, known))
    });
    let voters = known.clone().max_by_key(|(_, known)| known.term);
    let voters =
        voters.map_or_else(Vec::new, |(_, known)| known.voters.iter().copied().map(NodeId).collect());
    let served = known.filter_map(|(node, known)| {
        let address = topology.address(node)?;
        let serves = known.quorum && known.leader != 0 && !(target.pinned && target.asks(address));
        serves.then(|| (known.term, known.leader == node.0, node, address.to_owned()))
    });
    let better = served.max().map(|(_, _, node, address)| Better { node, address });
    Some(Sight { better, voters })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use crate::definition::definition;
    use crate::line::tests::line;
    use crate::output::{Color, Format, Output};
    use clap::Parser;
    use kv_types::{ClientId, RequestId};

    const REASONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/reasons.txt");

    fn app(words: &str) -> App {
        let global = Cli::try_parse_from(words.split(' ')).unwrap().global;
        let out = Output::new(Format::Text, false, false, Color::Never);
        App::new(global, out, line(words), "/nowhere/config.toml".into())
    }

    /// As a person sees it, whatever went wrong: three parts, an exit code, and advice that can be typed.
    #[tokio::test]
    async fn every_reason_is_said_in_three_parts() {
        let app = app("kvctl -e 127.0.0.1:1 put -n bank alice 100");
        let request_id = RequestId { client_id: ClientId(0x5f2c_0000 << 96), seq: 41 };
        let id = WriteId { request_id, issued_at_ms: 1_700_000_000_000 };
        let mut said = String::new();
        for reason in Reason::ALL {
            let failure = Failure::new(*reason, "what happened, and where").of_request(request_id);
            let mut problem = Problem::from(failure.with("write_id", id));
            suggest(&app, &mut problem).await;
            assert!(!problem.tries.is_empty(), "{reason}: what is to be typed next?");
            for (line, _) in &problem.tries {
                let words = shlex::split(line).unwrap();
                let read = definition().try_get_matches_from(words);
                assert!(read.is_ok(), "{reason}: {line}: {}", read.unwrap_err());
            }
            let exit = problem.exit as u8;
            said += &format!("{reason} ends with {exit}\nerror: {problem}\n{}\n\n", problem.json());
        }
        if std::env::var_os("WRITE_GOLDEN").is_some() {
            std::fs::write(REASONS, said).unwrap();
            return;
        }
        let written = std::fs::read_to_string(REASONS).unwrap_or_default();
        let differs = written.lines().zip(said.lines()).find(|(written, said)| written != said);
        assert!(
            written == said,
            "first at {differs:?}: WRITE_GOLDEN=1 cargo test -p kvctl every_reason writes {REASONS}"
        );
    }

    #[test]
    fn an_id_of_a_time_to_come_is_sent_again_when_that_has_come() {
        let open = Failure::new(Reason::ResultUnknown, "x")
            .with("write_id", "0000000000000000000000000000000f:7@1700000000000");
        let refused = open.clone().with("last_reason", Reason::RequestIdInvalid);
        assert_eq!(taken_from(&refused, 1_699_999_999_999), Some(1_700_000_000_000));
        assert_eq!(taken_from(&refused, 1_700_000_000_000), None);
        assert_eq!(taken_from(&open.with("last_reason", Reason::RequestExpired), 0), None);
        // Where it is the clock of this machine that is ahead, another id would be too.
        let own = Failure::new(Reason::RequestIdInvalid, "x").with("clock_ahead_ms", 185_000);
        let tries = after(&app("kvctl put -n bank k v"), &own);
        let [(look, why), (again, _)] = tries.as_slice() else { panic!("{tries:?}") };
        assert_eq!((look.as_str(), again.as_str()), ("date -u", "kvctl put -n bank k v"));
        assert_eq!(why, "the clock here is 185.0 s ahead of the node's: set it");
    }

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
