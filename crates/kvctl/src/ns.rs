//! Namespaces. Mode has no default: the user who creates one chooses a side of CAP, and is told what the
//! choice means.

use kv_client::{Admin, Client, NamespaceInfo, Topology};
use kv_types::{
    GroupId, Guarantee, Mode, NamespaceName, NamespaceSpec, NodeId, Placement, Reason, Replication, counted,
    majority,
};
use serde_json::{Value, json};

use crate::app::{App, find};
use crate::cli::{Again, Ns, NsAlter, NsCreate, NsDelete, NsUndelete};
use crate::exit::Exit;
use crate::fold::fold;
use crate::line::Line;
use crate::output::table_of_named;
use crate::problem::Problem;
use crate::progress::while_all_agree;
use crate::units::moment;

/// Replicas per key unless said otherwise, where there are as many nodes.
const DEFAULT_N: u8 = 3;

pub(crate) async fn run(app: &App, command: &Ns) -> Result<Exit, Problem> {
    match command {
        Ns::Create(args) => create(app, args).await,
        Ns::Delete(args) => delete(app, args).await,
        Ns::Undelete(args) => undelete(app, args).await,
        Ns::Alter(args) => alter(app, args).await,
        Ns::List => list(app).await,
        Ns::Show { name } => show(app, name).await,
    }
}

/// What is to be made, with `n` replicas of a key unless it is said how many.
fn spec(args: &NsCreate, line: &Line, n: u8) -> Result<NamespaceSpec, Problem> {
    let Some(mode) = args.mode else {
        return Err(Problem::usage(format!(
            "`{}` needs a mode, and there is no default: when the network is cut, a namespace can have one of two things.\n\
             strong      one copy as far as anyone can tell (linearizable), compare-and-set;\n\
             \u{20}           the side of the cut without a majority refuses, and says that nothing was applied\n\
             available   every side goes on reading and writing; concurrent writes are kept side by side\n\
             \u{20}           as siblings, and the sides converge when the network heals",
            args.name
        ))
        .try_this(line.clone().with("--mode", "strong").to_string(), "balances, locks, configuration")
        .try_this(line.clone().with("--mode", "available").to_string(), "carts, sessions, sensor data")
        .try_this("kvctl help consistency", "more about the choice"));
    };
    // A name that cannot be one is a slip of the command line, found without asking a node.
    let name = named(&args.name, line)?;
    match Mode::from(mode) {
        Mode::Strong => {
            let counts = [("--n", args.n.is_some()), ("--r", args.r.is_some()), ("--w", args.w.is_some())];
            let others = [("--strict", args.strict), ("--promise", args.promise.is_some())];
            let given = counts.into_iter().chain(others).find(|(_, given)| *given);
            if let Some((option, _)) = given {
                let message =
                    format!("{option} belongs to available namespaces; a strong one lives in a Raft group");
                let without =
                    ["n", "r", "w", "strict", "promise"].into_iter().fold(line.clone(), Line::without);
                let available = line.clone().with("--mode", "available");
                return Err(Problem::usage(message)
                    .try_this(without.to_string(), "a strong one, on the voters that there are")
                    .try_this(available.to_string(), "an available one"));
            }
            Ok(NamespaceSpec::strong(name))
        }
        Mode::Available => {
            let n = args.n.unwrap_or(n);
            let (r, w) = (args.r.unwrap_or(majority(n)), args.w.unwrap_or(majority(n)));
            for (option, count) in [("--r", r), ("--w", w)] {
                if count > n {
                    let message =
                        format!("{option} {count} asks for more replicas of a key than there are: N is {n}");
                    let fewer = line.clone().with(option, n).to_string();
                    return Err(Problem::usage(message).try_this(fewer, "all of them"));
                }
            }
            let guarantee = args.promise.map_or(Guarantee::Eventual, Guarantee::from);
            // Nothing else can keep more.
            let sloppy = !args.strict && guarantee == Guarantee::Eventual;
            let replication = Replication { n, r, w, sloppy };
            if let Some(why) = replication.falls_short_of(guarantee) {
                return Err(Problem::usage(format!("it cannot promise {guarantee}: {why}")));
            }
            Ok(NamespaceSpec { guarantee, ..NamespaceSpec::available(name, replication) })
        }
    }
}

/// As many replicas as there are nodes, where these are fewer than usual. A node that knows no members yet
/// says nothing.
fn default_n(members: usize) -> u8 {
    u8::try_from(members)
        .map_or(DEFAULT_N, |members| if members == 0 { DEFAULT_N } else { members.min(DEFAULT_N) })
}

/// For a change, or one that was sent before.
fn admin(app: &App, again: &Again) -> Result<Admin, Problem> {
    let admin = app.client()?.admin();
    Ok(match again.request_id {
        Some(id) => admin.resending(id),
        None => admin,
    })
}

/// A change of the catalogue. For the first one of its kind every node has to be up, and that is awaited.
async fn changing<T>(app: &App, change: impl Future<Output = T>) -> T {
    while_all_agree(app, "the catalogue takes the change", change).await
}

async fn create(app: &App, args: &NsCreate) -> Result<Exit, Problem> {
    let mut wanted = spec(args, &app.line, DEFAULT_N)?;
    let admin = admin(app, &args.again)?;
    if wanted.mode == Mode::Available && args.n.is_none() {
        let topology = admin.topology().await.map_err(Problem::from);
        let topology = topology.map_err(|problem| problem.of_resent(args.again.request_id))?;
        wanted = spec(args, &app.line, default_n(topology.members.len()))?;
    }
    let answer = changing(app, admin.create_namespace(wanted)).await?;
    let info = &answer.value;
    let said = if app.out.is_json() {
        app.out.json(&info_json(info))
    } else {
        app.out.done(format!("created {}", describe(info)))
    };
    let exit = app.out.acknowledged(said);
    if let Placement::Available { replication, .. } = info.namespace.placement
        && replication.sloppy
        && u16::from(replication.r) + u16::from(replication.w) > u16::from(replication.n)
    {
        app.out
            .note("note: R+W>N, but with a sloppy quorum this is not linearizable (kvctl help consistency)");
    }
    Ok(exit)
}

/// The name of a namespace as it was typed.
fn named(name: &str, line: &Line) -> Result<NamespaceName, Problem> {
    NamespaceName::new(name).map_err(|failure| {
        let problem = Problem::usage(failure.message);
        let lower = name.to_lowercase();
        match NamespaceName::new(&lower) {
            Ok(_) => {
                problem.try_this(line.clone().replaced("name", &lower).to_string(), "names are in lower case")
            }
            Err(_) => problem,
        }
    })
}

async fn delete(app: &App, args: &NsDelete) -> Result<Exit, Problem> {
    let name = named(&args.name, &app.line)?;
    let admin = admin(app, &args.again)?;
    let answer = match args.now {
        true => changing(app, admin.delete_namespace(&name)).await?,
        false => {
            let answer = changing(app, admin.schedule_deletion(&name, args.grace)).await;
            answer.map_err(|error| deleted_before(error.into()))?
        }
    };
    let info = &answer.value;
    if app.out.is_json() {
        let mut line = info_json(info);
        if let Some(fields) = line.as_object_mut() {
            fields.insert("deleted".into(), true.into());
        }
        return Ok(app.out.acknowledged(app.out.json(&line)));
    }
    let namespace = &info.namespace;
    let exit = if args.now {
        let said = app.out.done(format!("deleted {name}   {}, was {}", namespace.mode(), namespace.id));
        app.out.note("what was stored of it is removed in the background");
        app.out.acknowledged(said)
    } else {
        let said = app.out.done(format!("{name} is {}", deleted_until(info).unwrap_or_default()));
        let undelete = app.line.other(&["ns", "undelete"]).without("namespace");
        let undelete = undelete.operand("name", name.as_str());
        app.out.note(format!("it serves nothing now, and is kept until then; to take it back: {undelete}"));
        app.out.acknowledged(said)
    };
    Ok(exit)
}

/// One deletion is not changed into another one: it has to be undone before.
fn deleted_before(mut problem: Problem) -> Problem {
    if problem.failure.as_ref().is_some_and(|failure| failure.reason == Reason::DeletionPending) {
        problem.message += "\nits grace stays as it is: for another one it has to be taken back first";
    }
    problem
}

async fn undelete(app: &App, args: &NsUndelete) -> Result<Exit, Problem> {
    let name = named(&args.name, &app.line)?;
    let admin = admin(app, &args.again)?;
    let answer = changing(app, admin.undelete_namespace(&name)).await?;
    Ok(changed(app, &answer.value, "taken back"))
}

/// What of a namespace is to be altered; what cannot be is refused by name.
fn alteration(args: &NsAlter, line: &Line) -> Result<NamespaceName, Problem> {
    let name = named(&args.name, line)?;
    let fixed = [
        (args.n.is_some(), "--n", "the number of replicas of a key is chosen when a namespace is made"),
        (args.mode.is_some(), "--mode", "a namespace chooses its side of CAP when it is made, for good"),
        (args.strict, "--strict", "whether fallbacks count is chosen when a namespace is made"),
    ];
    if let Some((_, option, why)) = fixed.into_iter().find(|(given, ..)| *given) {
        let message = format!("{option} cannot be altered: {why}; R and W can be");
        let help =
            ["ns", "alter"].iter().fold(Line::new(&["help"]), |help, word| help.operand("topic", *word));
        return Err(Problem::usage(message).try_this(help.to_string(), "what can be altered"));
    }
    if args.r.is_none() && args.w.is_none() {
        let message = format!("what of `{name}` is to be altered? say --r, --w or both");
        let show = line.other(&["ns", "show"]).operand("name", name.as_str());
        return Err(Problem::usage(message).try_this(show.to_string(), "as it is now"));
    }
    Ok(name)
}

async fn alter(app: &App, args: &NsAlter) -> Result<Exit, Problem> {
    let name = alteration(args, &app.line)?;
    let admin = admin(app, &args.again)?;
    // Of one that was sent before this would say what came of it then.
    let before = match args.again.request_id {
        None => version(&admin, name.as_str()).await,
        Some(_) => None,
    };
    let answer = changing(app, admin.alter_namespace(&name, args.r, args.w)).await?;
    let is_same = before == Some(answer.value.namespace.settings_version);
    Ok(changed(app, &answer.value, if is_same { "nothing changes, it is so already" } else { "altered" }))
}

/// The version of a namespace's settings, which each change raises; none where no node says it.
async fn version(admin: &Admin, name: &str) -> Option<u64> {
    let known = admin.topology().await.ok()?;
    Some(known.namespaces.get(name)?.namespace.settings_version)
}

/// The namespace as it is after a change.
fn changed(app: &App, info: &NamespaceInfo, how: &str) -> Exit {
    let said = if app.out.is_json() {
        app.out.json(&info_json(info))
    } else {
        app.out.done(format!("{how}: {}", describe(info)))
    };
    app.out.acknowledged(said)
}

/// What is said of a namespace that can be taken back.
pub(crate) fn deleted_until(info: &NamespaceInfo) -> Option<String> {
    info.namespace
        .deletion_due_ms()
        .map(|due_ms| format!("deleted; can be taken back until {}", moment(due_ms)))
}

/// The node that answered, and whether it can know what is newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Source {
    node: NodeId,
    /// It reaches a quorum of the catalogue, as far as it says; `None` if it does not.
    quorum: Option<bool>,
}

impl Source {
    /// Where the catalogue is known to this node as it is in `topology`.
    async fn of(client: &Client, topology: &Topology) -> Self {
        let node = topology.answered_by;
        let asked = match topology.address(node) {
            Some(address) => client.admin().status(address).await.ok(),
            None => None,
        };
        let catalogue = asked
            .as_ref()
            .and_then(|status| status.groups.iter().find(|group| group.group == GroupId::CATALOGUE.0));
        Self { node, quorum: catalogue.map(|group| group.quorum && group.leader != 0) }
    }

    /// Says where it may be old.
    fn warn(self, app: &App) {
        if self.quorum == Some(false) {
            let node = self.node;
            let status = app.line.other(&["cluster", "status"]).without("namespace");
            app.out.warn(format!(
                "as {node} knows it, which reaches no quorum of the catalogue: it cannot know whether there is anything newer ({})",
                status.with("--as-seen-by", "all")
            ));
        }
    }

    fn json(self, info: &NamespaceInfo) -> Value {
        let mut line = info_json(info);
        if let Some(fields) = line.as_object_mut() {
            fields.insert("answered_by".into(), self.node.to_string().into());
            fields.insert("quorum".into(), self.quorum.into());
        }
        line
    }
}

async fn list(app: &App) -> Result<Exit, Problem> {
    let client = app.client()?;
    let topology = app.catalogue(&client).await?;
    let source = Source::of(&client, &topology).await;
    source.warn(app);
    let namespaces = topology.namespaces.values();
    if app.out.is_json() {
        for info in namespaces {
            app.out.json(&source.json(info))?;
        }
        return Ok(Exit::Done);
    }
    if topology.namespaces.is_empty() {
        app.out.note("no namespaces yet: kvctl ns create NAME --mode strong|available");
        return Ok(Exit::Done);
    }
    let rows = namespaces.map(|info| {
        let name = info.namespace.name.to_string();
        let (mode, promises) = (info.namespace.mode().to_string(), info.namespace.guarantee.to_string());
        (vec![name, mode, promises, plan(info)], deleted_until(info).unwrap_or_default())
    });
    app.out.line(table_of_named(&["namespace", "mode", "promises", "by"], rows.collect()))?;
    Ok(Exit::Done)
}

async fn show(app: &App, name: &str) -> Result<Exit, Problem> {
    let client = app.client()?;
    let topology = app.catalogue(&client).await?;
    let source = Source::of(&client, &topology).await;
    source.warn(app);
    let info = &find(&topology, name)?;
    if app.out.is_json() {
        app.out.json(&source.json(info))?;
        return Ok(Exit::Done);
    }
    let text = format!(
        "{}\n{}, settings version {}",
        describe(info),
        info.namespace.id,
        info.namespace.settings_version
    );
    let deleted = deleted_until(info).map(|until| format!("\n{until}")).unwrap_or_default();
    app.out.line(fold(&(text + &deleted)))?;
    Ok(Exit::Done)
}

/// The settings that implement the promise.
fn plan(info: &NamespaceInfo) -> String {
    match info.namespace.placement {
        Placement::Strong { group } => format!("{group}, {}", counted(info.voters, "voter", "voters")),
        Placement::Available { replication: Replication { n, r, w, sloppy }, .. } => {
            format!("N={n} R={r} W={w} {}", if sloppy { "sloppy" } else { "strict" })
        }
    }
}

fn describe(info: &NamespaceInfo) -> String {
    let name = &info.namespace.name;
    match info.namespace.placement {
        Placement::Strong { .. } => {
            let tolerates = info.voters.saturating_sub(1) / 2;
            format!(
                "{name}   strong   {}, tolerates {}   linearizable get/put/cas",
                counted(info.voters, "voter", "voters"),
                counted(tolerates, "failure", "failures")
            )
        }
        Placement::Available { replication, .. } => {
            let Replication { n, r, w, sloppy } = replication;
            let cut = match sloppy {
                true if r == w => format!("goes on where {}", counted(w, "node answers", "nodes answer")),
                // Each for itself: to alter one of them is to choose which goes on longer.
                true => format!("reads go on where {r}, writes where {w} answer"),
                false => format!("writes need {w} of {}", counted(n, "replica", "replicas")),
            };
            let reads = match info.namespace.guarantee {
                Guarantee::Eventual => "reads may be stale".to_owned(),
                promise => format!("promises {promise}"),
            };
            format!("{name}   available   {}   siblings kept   {reads}; {cut}", plan(info))
        }
    }
}

/// A namespace as JSON.
pub(crate) fn info_json(info: &NamespaceInfo) -> Value {
    let namespace = &info.namespace;
    let mut whole = json!({
        "namespace": namespace.name.as_str(), "id": namespace.id.0, "mode": namespace.mode().to_string(),
        "guarantee": namespace.guarantee.to_string(), "settings_version": namespace.settings_version,
        "deleted_until_ms": namespace.deletion_due_ms(),
    });
    let settings = match namespace.placement {
        Placement::Strong { group } => json!({ "group": group.0, "voters": info.voters }),
        Placement::Available { ring, replication: Replication { n, r, w, sloppy } } => {
            json!({ "ring": ring.0, "n": n, "r": r, "w": w, "sloppy": sloppy })
        }
    };
    if let (Some(whole), Value::Object(settings)) = (whole.as_object_mut(), settings) {
        whole.extend(settings);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    use crate::line::tests::line as typed;

    fn parse(line: &str) -> Result<NamespaceSpec, Problem> {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Ns(Ns::Create(args)) => spec(&args, &typed(line), DEFAULT_N),
            _ => panic!("not a creation"),
        }
    }

    #[test]
    fn the_choice_is_explained_not_made() {
        let refused = parse("kvctl ns create bank").unwrap_err();
        assert_eq!(refused.exit, Exit::Usage);
        assert!(refused.message.contains("strong") && refused.message.contains("available"));
        assert_eq!(refused.tries.len(), 3);
        assert_eq!(refused.tries[0].0, "kvctl ns create --mode strong bank");
    }

    #[test]
    fn what_cannot_be_altered_is_said_by_name() {
        let asked = |line: &str| match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Ns(Ns::Alter(args)) => alteration(&args, &typed(line)).map(|name| name.to_string()),
            _ => panic!("not an alteration"),
        };
        assert_eq!(asked("kvctl ns alter cart --r 1").unwrap(), "cart");
        for (fixed, says) in [
            ("--n 5", "--n cannot be altered"),
            ("--mode strong", "--mode cannot be altered"),
            ("--strict", "--strict cannot be altered"),
        ] {
            let refused = asked(&format!("kvctl ns alter cart --r 1 {fixed}")).unwrap_err();
            assert_eq!(refused.exit, Exit::Usage);
            assert!(refused.message.contains(says), "{}", refused.message);
            assert_eq!(refused.tries[0].0, "kvctl help ns alter");
        }
        let refused = asked("kvctl -e h:1 ns alter cart").unwrap_err();
        assert_eq!((refused.exit, refused.tries[0].0.as_str()), (Exit::Usage, "kvctl -e h:1 ns show cart"));
        assert_eq!(asked("kvctl ns alter Cart --r 1").unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn counts_default_to_majorities_and_belong_to_available() {
        assert_eq!([0, 1, 2, 3, 9, 999].map(default_n), [3, 1, 2, 3, 3, 3]);
        let cart = parse("kvctl ns create cart --mode available").unwrap();
        assert_eq!(cart.replication, Some(Replication { n: 3, r: 2, w: 2, sloppy: true }));
        let five = parse("kvctl ns create cart --mode available --n 5 --w 1 --strict").unwrap();
        assert_eq!(five.replication, Some(Replication { n: 5, r: 3, w: 1, sloppy: false }));
        assert_eq!(parse("kvctl ns create bank --mode strong --n 3").unwrap_err().exit, Exit::Usage);
        for more in ["--r 4", "--w 4", "--n 1 --w 2"] {
            let refused = parse(&format!("kvctl ns create cart --mode available {more}")).unwrap_err();
            assert_eq!(refused.exit, Exit::Usage, "{more}");
        }
        assert_eq!(parse("kvctl ns create Bank --mode strong").unwrap_err().exit, Exit::Usage);
    }
}
