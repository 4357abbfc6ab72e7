//! The namespace that a benchmark makes for itself when none is named, and removes at its end.

use std::sync::atomic::{AtomicBool, Ordering};

use kv_client::{Client, NamespaceInfo};
use kv_env::Entropy;
use kv_types::{Applied, GroupId, Mode, NamespaceName, NamespaceSpec, Reason, Replication, majority};

use super::ending::Ending;
use crate::app::App;
use crate::cli::Bench;
use crate::problem::Problem;
use crate::suggest::better_within;

/// Replicas per key of an available one, where there are as many nodes.
const REPLICAS: u8 = 3;

/// A namespace of the benchmark's own.
pub(super) struct Own {
    pub(super) name: NamespaceName,
    /// It stays.
    keep: bool,
    /// It is known to have been made.
    made: AtomicBool,
}

/// The namespace that the line itself names; none if the benchmark is to make its own. One that is only set,
/// by the context, the environment or the `use` of a shell, holds what people keep, and is not written to.
pub(super) fn named(app: &App, args: &Bench) -> Result<Option<String>, Problem> {
    let own = args.mode.is_some() || args.keep;
    match &app.global.namespace {
        Some(name) if own => Err(Problem::usage(format!(
            "--mode and --keep are for a namespace that the benchmark makes itself, and `{name}` is named"
        ))),
        Some(name) => Ok(Some(name.clone())),
        None => Ok(None),
    }
}

impl Own {
    /// One that is not made yet, with a name that no other has.
    pub(super) fn new(args: &Bench, entropy: &Entropy) -> Result<Self, Problem> {
        let name = NamespaceName::new(format!("bench-{:010x}", entropy.below(1 << 40)))?;
        Ok(Self { name, keep: args.keep, made: AtomicBool::new(false) })
    }

    /// Makes it.
    pub(super) async fn make(
        &self,
        app: &App,
        client: &Client,
        args: &Bench,
    ) -> Result<NamespaceInfo, Problem> {
        let mode = args.mode.map_or(Mode::Strong, Mode::from);
        let spec = match mode {
            Mode::Strong => NamespaceSpec::strong(self.name.clone()),
            Mode::Available => {
                let members = client.admin().topology().await?.members.len();
                let n = u8::try_from(members).unwrap_or(REPLICAS).clamp(1, REPLICAS);
                let replication = Replication { n, r: majority(n), w: majority(n), sloppy: true };
                NamespaceSpec::available(self.name.clone(), replication)
            }
        };
        let made = client.admin().create_namespace(spec).await?;
        self.made.store(true, Ordering::Relaxed);
        app.out.note(format!("made the {mode} namespace {}", self.name));
        Ok(made.value)
    }

    /// Removes it with everything in it, also one whose making failed in a way that leaves open whether it is
    /// there. Ctrl-C meanwhile leaves it.
    pub(super) async fn remove(&self, app: &App, client: &Client, ending: &Ending) {
        let before = ending.times();
        let name = &self.name;
        let delete = app.line.other(&["ns", "delete"]).without("namespace").flag("--now");
        let delete = delete.operand("name", name.as_str());
        if self.keep {
            app.out.note(format!("kept {name}; to remove it: {delete}"));
            return;
        }
        let admin = client.admin();
        let removed = tokio::select! {
            biased;
            () = ending.asked(before) => Err("interrupted".to_owned()),
            removed = admin.delete_namespace(&self.name) => match removed {
                Ok(_) => Ok(()),
                Err(error) if error.failure().reason == Reason::NamespaceUnknown => {
                    let made = self.made.load(Ordering::Relaxed);
                    made.then_some(()).ok_or_else(|| "it is not there, but may yet be made".to_owned())
                }
                Err(error) => Err(error.failure().message.clone()),
            },
        };
        match removed {
            Ok(()) => app.out.note(format!("removed {name}")),
            Err(why) => {
                // A node that was cut off cannot, and would be asked again.
                let delete = match better_within(app, GroupId::CATALOGUE).await {
                    Some(better) => delete.at(&better.address, None),
                    None => delete,
                };
                app.out.note(format!("{name} was not removed ({why}); to remove it: {delete}"));
            }
        }
    }
}

/// Whether what was asked for may have happened all the same.
pub(super) fn may_have_happened(problem: &Problem) -> bool {
    problem.failure.as_ref().is_some_and(|failure| failure.applied != Applied::No)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::config::{Config, Context};
    use crate::exit::Exit;
    use crate::line::tests::line as typed;
    use crate::output::Output;

    fn asked(line: &str, config_path: PathBuf) -> Result<Option<String>, Problem> {
        let Cli { global, command } = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Bench(args) = command else { panic!("not a benchmark") };
        let out = Output::new(global.output, global.quiet, false, global.color);
        named(&App::new(global, out, typed(line), config_path), &args)
    }

    #[test]
    fn a_benchmark_makes_its_own_namespace_where_none_is_named() {
        let none = || PathBuf::from("no-such-file");
        assert_eq!(asked("kvctl bench -n bank", none()).unwrap().as_deref(), Some("bank"));
        for line in ["kvctl bench", "kvctl bench --mode available", "kvctl bench --keep"] {
            assert_eq!(asked(line, none()).unwrap(), None, "{line}");
        }
        for line in ["kvctl bench -n bank --mode strong", "kvctl bench -n bank --keep"] {
            assert_eq!(asked(line, none()).unwrap_err().exit, Exit::Usage, "{line}");
        }
    }

    #[test]
    fn a_namespace_of_the_context_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("config.toml");
        let context =
            Context { endpoints: vec!["h:1".into()], namespace: Some("bank".into()), ..Context::default() };
        let config = Config {
            current: Some("lab".into()),
            contexts: [("lab".to_owned(), context)].into(),
            ..Config::default()
        };
        config.save(&path).unwrap();
        assert_eq!(asked("kvctl bench", path.clone()).unwrap(), None);
        assert_eq!(asked("kvctl bench --mode strong", path).unwrap(), None);
    }

    #[test]
    fn names_of_own_namespaces_differ() {
        let args = match Cli::try_parse_from(["kvctl", "bench"]).unwrap().command {
            Command::Bench(args) => args,
            _ => panic!("not a benchmark"),
        };
        let entropy = Entropy::seeded(7);
        let name = || Own::new(&args, &entropy).unwrap().name.to_string();
        let (one, two) = (name(), name());
        assert!(one.starts_with("bench-") && one != two, "{one} {two}");
    }
}
