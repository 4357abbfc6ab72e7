//! What every command needs: the cluster that is meant, the namespace, and how to speak.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use kv_client::{Client, ClientOptions, NamespaceInfo, Topology, WriteObserver};
use kv_types::{Epoch, Failure, Reason, WriteId};

use crate::cli::Global;
use crate::config::{Config, Context};
use crate::line::Line;
use crate::output::{Output, failed_use};
use crate::problem::Problem;

/// The node that is asked when nothing names one: the first of a lab on its usual ports.
pub(crate) const DEFAULT_ENDPOINT: &str = "127.0.0.1:7101";

/// The detail of a failure that says which name was probably meant; nodes say it too.
pub(crate) const NEAREST: &str = "nearest";
/// A name that differs by more edits is another name.
const MOST_EDITS: usize = 2;

/// The cluster that is meant, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) endpoints: Vec<String>,
    /// One node on purpose.
    pub(crate) pinned: bool,
    /// Name of the context.
    pub(crate) context: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) lab: Option<PathBuf>,
}

impl Target {
    /// Whether this address is one that is asked.
    pub(crate) fn asks(&self, address: &str) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint == address)
    }

    /// Flags and environment before the file (clap has merged the first two).
    pub(crate) fn resolve(global: &Global, config: &Config) -> Result<Self, Problem> {
        if !global.endpoints.is_empty() {
            let pinned = global.endpoints.len() == 1;
            let endpoints = global.endpoints.clone();
            return Ok(Self { endpoints, pinned, context: None, namespace: None, lab: None });
        }
        let selected = match &global.context {
            Some(name) => Some((name, config.context(name)?)),
            None => config.selected()?,
        };
        let Some((name, context)) = selected else {
            let endpoints = vec![DEFAULT_ENDPOINT.to_owned()];
            return Ok(Self { endpoints, pinned: false, context: None, namespace: None, lab: None });
        };
        let Context { endpoints, namespace, lab } = context.clone();
        Ok(Self { endpoints, pinned: false, context: Some(name.clone()), namespace, lab })
    }
}

/// One run of kvctl.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) global: Global,
    pub(crate) out: Output,
    /// What was typed.
    pub(crate) line: Line,
    pub(crate) config_path: PathBuf,
    /// The write that was sent, or is about to be: a command sends one. Where it is interrupted, that is what
    /// it says of it.
    sent: Arc<OnceLock<WriteId>>,
}

impl App {
    /// A benchmark writes to the namespace that its own line names and to no other: one that is only set is
    /// as if it were not, also in what is advised.
    pub(crate) fn new(global: Global, out: Output, line: Line, config_path: PathBuf) -> Self {
        let mut app = Self { global, out, line, config_path, sent: Arc::default() };
        if app.is_bench() && !app.line.says("namespace") {
            app.global.namespace = None;
            app.line = app.line.without("namespace");
        }
        app
    }

    fn is_bench(&self) -> bool {
        self.line.command() == ["bench"]
    }

    pub(crate) fn config(&self) -> Result<Config, Problem> {
        Config::load(&self.config_path)
    }

    /// Where nodes are named, the file is not asked: one that is damaged does no harm.
    pub(crate) fn target(&self) -> Result<Target, Problem> {
        let config = if self.global.endpoints.is_empty() { self.config()? } else { Config::default() };
        Target::resolve(&self.global, &config)
    }

    pub(crate) fn options(&self) -> Result<ClientOptions, Problem> {
        let target = self.target()?;
        let mut options = ClientOptions::new(target.endpoints);
        options.pinned = target.pinned;
        // Two runs see the cluster through the same node while that is there.
        options.spread = false;
        if let Some(timeout) = self.global.timeout {
            options.read_timeout = timeout;
            options.write_timeout = timeout;
            options.admin_timeout = timeout;
        }
        Ok(options)
    }

    /// How the write is named that this run sent; none while nothing was sent.
    pub(crate) fn sent(&self) -> Option<WriteId> {
        self.sent.get().copied()
    }

    pub(crate) fn client(&self) -> Result<Client, Problem> {
        let sent = Arc::clone(&self.sent);
        let observer = WriteObserver::new(move |id| {
            sent.get_or_init(|| id);
        });
        let options = ClientOptions { observer: Some(observer), ..self.options()? };
        // An address that cannot be one is a slip of the command line or of the file.
        let client = Client::connect(options);
        client.map_err(|error| {
            Problem::usage(error.failure().message.clone())
                .try_this(self.line.cluster(&["ctx", "show"]).to_string(), "which cluster is meant, and why")
        })
    }

    /// The namespace that is meant.
    pub(crate) fn namespace(&self) -> Result<String, Problem> {
        if self.global.namespace.is_none() && self.is_bench() {
            return Err(Problem::usage("the benchmark has a namespace of its own; -n names another"));
        }
        if self.global.namespace.is_none()
            && let Some(failed) = failed_use()
        {
            let message = format!("no namespace is selected: `{failed}` before it failed; say one with -n");
            return Err(Problem::usage(message)
                .try_this(self.line.other(&["ns", "list"]).to_string(), "which there are"));
        }
        let named = self.global.namespace.clone().or(self.target()?.namespace);
        named.ok_or_else(|| {
            Problem::usage("which namespace? say it with -n, or set KVCTL_NAMESPACE")
                .try_this(self.line.other(&["ns", "list"]).to_string(), "which there are")
        })
    }

    /// The namespace and its settings: `NAMESPACE_UNKNOWN` with the nearest name when there is none.
    pub(crate) async fn lookup(&self, client: &Client, name: &str) -> Result<NamespaceInfo, Problem> {
        let topology = self.catalogue(client).await?;
        if topology.namespaces.contains_key(name) {
            return find(&topology, name);
        }
        // A node that is cut off may not know what was created since.
        find(&client.admin().newest_topology(topology).await, name)
    }

    /// The cluster as a node knows it that has seen the catalogue.
    pub(crate) async fn catalogue(&self, client: &Client) -> Result<Topology, Problem> {
        let topology = client.admin().topology().await?;
        if topology.epoch != Epoch(0) {
            return Ok(topology);
        }
        // A node that has not seen the catalogue yet refuses to list it, and that is waited for.
        let known = client.admin().list_namespaces().await?;
        let known = known.into_iter().map(|info| (info.namespace.name.to_string(), info)).collect();
        Ok(Topology { namespaces: known, ..topology })
    }
}

/// The namespace of that name.
pub(crate) fn find(topology: &Topology, name: &str) -> Result<NamespaceInfo, Problem> {
    if let Some(info) = topology.namespaces.get(name) {
        return Ok(info.clone());
    }
    let meant = nearest(topology.namespaces.keys().map(String::as_str), name);
    let said = meant.map_or(String::new(), |known| format!("; did you mean `{known}`?"));
    let message = format!("no namespace `{name}`, as far as {} knows{said}", topology.answered_by);
    let failure = Failure::new(Reason::NamespaceUnknown, message);
    Err(Problem::from(match meant {
        Some(known) => failure.with(NEAREST, known),
        None => failure,
    }))
}

/// The name that was probably meant: the nearest one, whatever the case of what was typed.
pub(crate) fn nearest<'a>(names: impl Iterator<Item = &'a str>, typed: &str) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    let length = typed.chars().count();
    let near = names.map(|known| (distance(known, &typed), known));
    // Where every letter differs, nothing of it was meant.
    near.filter(|(distance, _)| *distance <= MOST_EDITS && *distance < length).min().map(|(_, known)| known)
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut left = i + 1;
        let mut next = vec![left];
        for ((y, diagonal), up) in b.iter().zip(&row).zip(row.iter().skip(1)) {
            left = (left + 1).min(up + 1).min(diagonal + usize::from(x != *y));
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn target(line: &str, config: &Config) -> Result<Target, Problem> {
        Target::resolve(&Cli::try_parse_from(line.split(' ')).unwrap().global, config)
    }

    #[test]
    fn flags_beat_the_selected_context() {
        let context = |port: u16| Context { endpoints: vec![format!("h:{port}")], ..Context::default() };
        let config = Config {
            current: Some("lab".into()),
            contexts: [("lab".to_owned(), context(1)), ("prod".to_owned(), context(2))].into(),
            ..Config::default()
        };
        assert_eq!(target("kvctl version", &config).unwrap().endpoints, ["h:1"]);
        assert_eq!(target("kvctl -c prod version", &config).unwrap().endpoints, ["h:2"]);
        let one = target("kvctl -e h:9 version", &config).unwrap();
        assert!(one.pinned && one.context.is_none() && one.endpoints == ["h:9"]);
        // Several, in either form.
        for several in ["kvctl -e h:8 -e h:9 version", "kvctl -e h:8,h:9 version"] {
            let target = target(several, &config).unwrap();
            assert!(!target.pinned && target.endpoints == ["h:8", "h:9"], "{target:?}");
        }
        assert!(target("kvctl -c nowhere version", &config).is_err());
        // Where there are contexts, one has to be selected: the usual ports may be another cluster.
        for current in [None, Some("gone".to_owned())] {
            let config = Config { current, ..config.clone() };
            let problem = target("kvctl get k", &config).unwrap_err();
            let lines: Vec<&str> = problem.tries.iter().map(|(line, _)| line.as_str()).collect();
            assert_eq!(lines, ["kvctl ctx use lab", "kvctl ctx use prod"], "{problem}");
            assert_eq!(target("kvctl -c prod version", &config).unwrap().endpoints, ["h:2"]);
            assert_eq!(target("kvctl -e h:9 version", &config).unwrap().endpoints, ["h:9"]);
        }
        let gone = Config { current: Some("gone".into()), ..Config::default() };
        let problem = target("kvctl get k", &gone).unwrap_err();
        assert!(problem.to_string().contains("kvctl lab up"), "{problem}");
        assert_eq!(target("kvctl version", &Config::default()).unwrap().endpoints, [DEFAULT_ENDPOINT]);
    }

    #[test]
    fn near_misses_are_near() {
        assert_eq!(distance("bank", "bank"), 0);
        assert_eq!(distance("bank", "bnak"), 2);
        assert_eq!(distance("bank", "tank"), 1);
        assert_eq!(distance("", "abc"), 3);
        let meant = |typed| nearest(["bank", "cart", "q"].into_iter(), typed);
        assert_eq!(["BANK", "Bnak", "crt"].map(meant), [Some("bank"), Some("bank"), Some("cart")]);
        assert_eq!(["", "x", "ledger", "ca-tt-x"].map(meant), [None; 4]);
    }
}
