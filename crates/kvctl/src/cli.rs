//! The command line as types. Help leads with examples.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kv_types::limits::MAX_REPLICAS;
use kv_types::{Guarantee, Mode, NodeId, ReplicaCount, WriteId};

use crate::output::{Color, Format};
use crate::units;

/// Talks to a Quorate cluster: data, namespaces, faults, load.
#[derive(Debug, Parser)]
#[command(
    name = "kvctl",
    version,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    before_help = "\
Examples:
  kvctl lab up                                   five nodes on this machine
  kvctl ns create bank --mode strong             linearizable, refuses in a minority
  kvctl ns create cart --mode available          answers in a minority, converges
  kvctl ns delete cart                           for a day it can be taken back: ns undelete
  kvctl put -n bank alice 100 ; kvctl get -n bank alice
  kvctl fault partition n1,n2 / n3,n4,n5 --for 20s
  kvctl cluster status --as-seen-by all",
    after_help = "More: kvctl help exit-codes | consistency | output | limits"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Context to use instead of the selected one
    #[arg(short, long, global = true, env = "KVCTL_CONTEXT", hide_env_values = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Node to talk to, host:port; several are divided by commas, or the option is repeated. One alone is the
    /// only one asked
    #[arg(
        short,
        long = "endpoint",
        global = true,
        env = "KVCTL_ENDPOINT",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "ADDRESS"
    )]
    pub(crate) endpoints: Vec<String>,
    /// Namespace
    #[arg(short, long, global = true, env = "KVCTL_NAMESPACE", hide_env_values = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Form of results
    #[arg(
        short,
        long,
        global = true,
        env = "KVCTL_OUTPUT",
        hide_env_values = true,
        value_enum,
        default_value = "text"
    )]
    pub(crate) output: Format,
    /// Deadline of an operation, all attempts included: a write whose fate is open is sent again under its
    /// id, at most until then [default: read 1s, write 2s, cluster change 10s]
    #[arg(long, global = true, env = "KVCTL_TIMEOUT", hide_env_values = true, value_parser = units::timeout, value_name = "DURATION")]
    pub(crate) timeout: Option<Duration>,
    /// Only results and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Show receipts; twice: log every attempt
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Colour of messages
    #[arg(
        long,
        global = true,
        env = "KVCTL_COLOR",
        hide_env_values = true,
        value_enum,
        default_value = "auto",
        value_name = "WHEN"
    )]
    pub(crate) color: Color,
}

impl Global {
    /// An empty variable of the environment is none.
    pub(crate) fn forget_empty(&mut self) {
        self.endpoints.retain(|endpoint| !endpoint.is_empty());
        self.context.take_if(|name| name.is_empty());
        self.namespace.take_if(|name| name.is_empty());
    }
}

impl Command {
    /// What a write, or a change of a namespace, says of having been sent before; none for what is neither.
    pub(crate) fn again(&self) -> Option<&Again> {
        match self {
            Self::Put(Put { options, .. }) | Self::Del(Del { options, .. }) => Some(&options.again),
            Self::Cas(Cas { again, .. })
            | Self::Ns(
                Ns::Create(NsCreate { again, .. })
                | Ns::Delete(NsDelete { again, .. })
                | Ns::Undelete(NsUndelete { again, .. })
                | Ns::Alter(NsAlter { again, .. }),
            ) => Some(again),
            _ => None,
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Read a key
    Get(Get),
    /// Write a key
    #[command(visible_alias = "set")]
    Put(Put),
    /// Delete a key
    #[command(visible_alias = "rm", alias = "delete")]
    Del(Del),
    /// Write a key of a strong namespace if it is as expected
    Cas(Cas),
    /// Namespaces
    #[command(subcommand)]
    Ns(Ns),
    /// The cluster as its nodes see it
    #[command(subcommand)]
    Cluster(Cluster),
    /// Where keys live
    #[command(subcommand)]
    Ring(Ring),
    /// Why a read of a key shows what it shows: each copy, what it lacks, what would be met now
    Explain(Explain),
    /// A local cluster of real processes
    #[command(subcommand)]
    Lab(Lab),
    /// Faults in the network and the processes of a lab
    #[command(subcommand)]
    Fault(Fault),
    /// Measure
    Bench(Bench),
    /// Watch the cluster: who serves what now, who hears whom, what is cut
    Top(Top),
    /// Verify a recorded history
    Check(Check),
    /// Contexts: which cluster is meant
    #[command(subcommand)]
    Ctx(Ctx),
    /// The same commands one after the other, with history and completion; or those of a file
    Shell,
    /// The namespaces, as `ns list`
    #[command(hide = true)]
    Ls,
    /// Explain a command or a topic: exit-codes, consistency, output, limits
    Help {
        /// Command, as in `help ns create`, or topic
        topic: Vec<String>,
    },
    /// What a shell needs to complete words: source its output
    #[command(
        after_help = "Examples:\n  source <(kvctl completion bash)\n  kvctl completion fish > ~/.config/fish/completions/kvctl.fish"
    )]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    Man {
        /// The folder, which is made if it is not there
        folder: PathBuf,
    },
    /// Show the version
    Version,
}

/// How a key is written.
#[derive(Debug, Args)]
pub(crate) struct KeyForm {
    /// KEY is hexadecimal digits
    #[arg(long, conflicts_with = "key_file")]
    pub(crate) key_hex: bool,
    /// KEY names a file that holds the key (- for standard input)
    #[arg(long)]
    pub(crate) key_file: bool,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// The key
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) form: KeyForm,
    /// Available: write all concurrent values, each on a line of its own, also into a pipe
    #[arg(long)]
    pub(crate) all: bool,
    /// With --all into a pipe: end each value with a zero byte instead of a newline
    #[arg(short = '0', long, requires = "all")]
    pub(crate) null: bool,
    /// Available: replicas that must answer: a number, quorum or all
    #[arg(short, value_parser = units::replica_count, value_name = "COUNT")]
    pub(crate) r: Option<ReplicaCount>,
    /// Available: only primaries count
    #[arg(long)]
    pub(crate) strict: bool,
}

/// What a write to an available namespace supersedes and waits for.
#[derive(Debug, Args)]
pub(crate) struct WriteOptions {
    /// Available: supersede exactly what an earlier `get -o json` saw, read from FILE (- for standard input)
    #[arg(long, value_name = "FILE", conflicts_with = "blind")]
    pub(crate) causal: Option<PathBuf>,
    /// Available, in `kvctl shell`: supersede exactly what the last `get` or `put` of the key saw there
    #[arg(long, conflicts_with_all = ["causal", "blind"])]
    pub(crate) seen: bool,
    /// Available: supersede nothing; a value becomes a sibling, and a delete takes none away
    #[arg(long)]
    pub(crate) blind: bool,
    /// Available: replicas that must acknowledge: a number, quorum or all
    #[arg(short, value_parser = units::replica_count, value_name = "COUNT")]
    pub(crate) w: Option<ReplicaCount>,
    /// Available: only primaries count
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) again: Again,
}

/// A write, or a change of a namespace, that was sent before.
#[derive(Debug, Args)]
pub(crate) struct Again {
    /// Send again what was sent before under this id, as its error names it: it is applied once
    #[arg(long, value_name = "ID")]
    pub(crate) request_id: Option<WriteId>,
}

/// Arguments of `put`.
#[derive(Debug, Args)]
pub(crate) struct Put {
    /// The key
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) form: KeyForm,
    /// The value; - reads it from standard input
    #[arg(allow_hyphen_values = true)]
    pub(crate) value: String,
    #[command(flatten)]
    pub(crate) options: WriteOptions,
}

/// Arguments of `del`.
#[derive(Debug, Args)]
pub(crate) struct Del {
    /// The key
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) form: KeyForm,
    #[command(flatten)]
    pub(crate) options: WriteOptions,
}

/// Arguments of `cas`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("condition").required(true))]
pub(crate) struct Cas {
    /// The key
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) form: KeyForm,
    /// The new value; - reads it from standard input
    #[arg(allow_hyphen_values = true)]
    pub(crate) value: String,
    /// Write only if the value has this revision
    #[arg(long, value_name = "REVISION", group = "condition", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) expect_revision: Option<u64>,
    /// Write only if the key has no value
    #[arg(long, group = "condition")]
    pub(crate) expect_absent: bool,
    #[command(flatten)]
    pub(crate) again: Again,
}

/// The side of CAP on the command line. (Documented values would turn `--help` into pages: a screen is
/// enough.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    // Linearizable; refuses in a minority
    Strong,
    // Answers in a minority; converges
    Available,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Strong => Self::Strong,
            ModeArg::Available => Self::Available,
        }
    }
}

/// Commands about namespaces.
#[derive(Debug, Subcommand)]
pub(crate) enum Ns {
    /// Create a namespace: it chooses its side of CAP here, for good
    Create(NsCreate),
    /// List namespaces
    List,
    /// Delete a namespace and everything in it, after a grace in which it can be taken back
    Delete(NsDelete),
    /// Take a deleted namespace back, with everything in it
    Undelete(NsUndelete),
    /// Change what reads and writes of an available namespace wait for
    Alter(NsAlter),
    /// Show one namespace
    Show {
        /// Its name
        name: String,
    },
}

/// Arguments of `ns create`.
#[derive(Debug, Args)]
pub(crate) struct NsCreate {
    /// Its name
    pub(crate) name: String,
    /// Its side of CAP; there is no default
    #[arg(long, value_enum)]
    pub(crate) mode: Option<ModeArg>,
    /// Available: replicas per key [default: 3]
    #[arg(long, value_name = "N", value_parser = replicas())]
    pub(crate) n: Option<u8>,
    /// Available: answers per read [default: a majority of N]
    #[arg(long, value_name = "R", value_parser = replicas())]
    pub(crate) r: Option<u8>,
    /// Available: acknowledgements per write [default: a majority of N]
    #[arg(long, value_name = "W", value_parser = replicas())]
    pub(crate) w: Option<u8>,
    /// Available: only primaries count
    #[arg(long)]
    pub(crate) strict: bool,
    /// Available: what it promises [default: eventual]
    #[arg(long, value_enum)]
    pub(crate) promise: Option<PromiseArg>,
    #[command(flatten)]
    pub(crate) again: Again,
}

/// What an available namespace can promise. All but the first take R+W more than N, and only primaries count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PromiseArg {
    /// Replicas converge
    Eventual,
    /// Who wrote sees it
    ReadYourWrites,
    /// A read sees what was acknowledged before it
    StrictQuorum,
    /// And no read misses what another has shown
    MonotonicReads,
}

impl From<PromiseArg> for Guarantee {
    fn from(promise: PromiseArg) -> Self {
        match promise {
            PromiseArg::Eventual => Self::Eventual,
            PromiseArg::ReadYourWrites => Self::ReadYourWrites,
            PromiseArg::StrictQuorum => Self::StrictQuorum,
            PromiseArg::MonotonicReads => Self::MonotonicReads,
        }
    }
}

/// Arguments of `ns undelete`.
#[derive(Debug, Args)]
pub(crate) struct NsUndelete {
    /// Its name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) again: Again,
}

/// A number of replicas of a key.
fn replicas() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(1..=i64::from(MAX_REPLICAS))
}

/// Arguments of `ns delete`.
#[derive(Debug, Args)]
pub(crate) struct NsDelete {
    /// Its name
    pub(crate) name: String,
    /// At once, and for good: there is no way back
    #[arg(long, conflicts_with = "grace")]
    pub(crate) now: bool,
    /// How long it can be taken back: 1s to 30 days [default: 24h]
    #[arg(long, value_parser = units::grace, value_name = "DURATION")]
    pub(crate) grace: Option<Duration>,
    #[command(flatten)]
    pub(crate) again: Again,
}

/// Arguments of `ns alter`.
#[derive(Debug, Args)]
pub(crate) struct NsAlter {
    /// Its name
    pub(crate) name: String,
    /// Answers per read, 1 to N
    #[arg(long, value_name = "R", value_parser = replicas())]
    pub(crate) r: Option<u8>,
    /// Acknowledgements per write, 1 to N
    #[arg(long, value_name = "W", value_parser = replicas())]
    pub(crate) w: Option<u8>,
    // What cannot change is read all the same, so that the refusal says so.
    #[arg(long, hide = true)]
    pub(crate) n: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) mode: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) again: Again,
}

/// Commands about the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// What one node, or each, sees
    Status {
        /// Whose view: a node, or `all`
        #[arg(long, value_name = "NODE")]
        as_seen_by: Option<String>,
        /// All namespaces, however many; otherwise those in trouble come first, and 20 are shown
        #[arg(long)]
        all: bool,
    },
    /// How long the parts of requests take, as the nodes count it since their start
    Latency {
        /// One node instead of all
        node: Option<NodeId>,
    },
    /// ok, degraded or down; exits 0 when ok, else 1, also where no node can be asked
    Health,
    /// Move the leadership of a Raft group
    TransferLeader {
        /// The new leader
        node: NodeId,
        /// The group
        #[arg(long, default_value_t = 1)]
        group: u32,
    },
}

/// Commands about rings.
#[derive(Debug, Subcommand)]
pub(crate) enum Ring {
    /// The nodes that keep a key
    Owners {
        /// The key
        key: String,
        #[command(flatten)]
        form: KeyForm,
    },
}

/// Commands about the lab.
#[derive(Debug, Subcommand)]
pub(crate) enum Lab {
    /// Start nodes, and select them as the context of the lab's name
    Up(LabUp),
    /// Stop them
    Down(WhichLab),
    /// Which nodes run, and what is broken
    Status(WhichLab),
    /// Kill a node, as a power failure would
    Kill(LabNode),
    /// Start a node again, killing it first if it runs
    Restart {
        #[command(flatten)]
        node: LabNode,
        /// On an empty disk, as if it had lost its own: it gets everything from the others
        #[arg(long)]
        empty: bool,
    },
    /// Make a node stand still, as a machine that swaps would
    Pause(LabNode),
    /// Let a node go on that stands still
    Resume(LabNode),
    /// The end of a node's log
    Logs {
        #[command(flatten)]
        node: LabNode,
        /// So many lines
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        lines: u32,
    },
    /// Five nodes, a network partition, and what each mode does in it
    Demo {
        /// First port
        #[arg(long, default_value_t = 7100, value_parser = port_base())]
        port_base: u16,
        /// Seed of the load
        #[arg(long, default_value_t = 42)]
        seed: u64,
        /// Where history and receipt go
        #[arg(long, default_value = "target/demo", value_name = "DIR")]
        out: PathBuf,
    },
    /// The process behind `lab up`
    #[command(hide = true)]
    Supervise(LabUp),
}

/// The first of the ports of a lab: those of clients and of peers must fit above it.
fn port_base() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1_024..=65_400)
}

/// Which lab is meant; otherwise that of the context.
#[derive(Debug, Clone, Args)]
pub(crate) struct WhichLab {
    /// Name of the lab, which is that of its context [default: the selected one, or lab]
    #[arg(long, value_name = "LAB")]
    pub(crate) name: Option<String>,
    /// Folder of the lab
    #[arg(long, env = "KVCTL_LAB_DIR", hide_env_values = true, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// A node of a lab.
#[derive(Debug, Clone, Args)]
pub(crate) struct LabNode {
    /// The node
    pub(crate) node: NodeId,
    #[command(flatten)]
    pub(crate) which: WhichLab,
}

/// Arguments of `lab up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LabUp {
    /// Number of nodes [default: as before, or 5]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=9))]
    pub(crate) nodes: Option<u64>,
    /// First port: clients of node i at base+i, peers at base+100+i [default: as before, or 7100]
    #[arg(long, value_name = "PORT", value_parser = port_base())]
    pub(crate) port_base: Option<u16>,
    /// Stay in the foreground
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Without the data of an earlier lab in the same folder
    #[arg(long)]
    pub(crate) fresh: bool,
    #[command(flatten)]
    pub(crate) which: WhichLab,
}

/// Commands about faults.
#[derive(Debug, Subcommand)]
pub(crate) enum Fault {
    /// Cut the network into groups, as in: n1,n2 / n3,n4,n5
    Partition {
        /// Groups of nodes, divided by /
        #[arg(required = true, num_args = 1..)]
        groups: Vec<String>,
        /// End this fault after this time
        #[arg(long = "for", value_parser = units::duration, value_name = "DURATION")]
        lasting: Option<Duration>,
        #[command(flatten)]
        which: WhichLab,
    },
    /// Cut one node off from all others
    Isolate {
        /// The node
        node: NodeId,
        /// End this fault after this time
        #[arg(long = "for", value_parser = units::duration, value_name = "DURATION")]
        lasting: Option<Duration>,
        #[command(flatten)]
        which: WhichLab,
    },
    /// Reset every connection between two nodes that carries bytes from one to the other, and each new one at
    /// once
    Reset {
        /// The node that sends
        from: NodeId,
        /// The node that it sends to
        to: NodeId,
        /// End this fault after this time
        #[arg(long = "for", value_parser = units::duration, value_name = "DURATION")]
        lasting: Option<Duration>,
        #[command(flatten)]
        which: WhichLab,
    },
    /// Make the link from one node to another narrow
    Slow {
        /// The node that sends
        from: NodeId,
        /// The node that it sends to
        to: NodeId,
        /// How much arrives in a second, from 100B
        #[arg(long, default_value = "20kB", value_parser = units::per_second, value_name = "SIZE")]
        bytes: u64,
        /// End this fault after this time
        #[arg(long = "for", value_parser = units::duration, value_name = "DURATION")]
        lasting: Option<Duration>,
        #[command(flatten)]
        which: WhichLab,
    },
    /// Make a node stand still, as a machine that swaps would; `fault resume` ends it, healing does not
    Pause(LabNode),
    /// Let a node go on that stands still
    Resume(LabNode),
    /// End all faults between nodes
    Heal(WhichLab),
    /// List the faults in force between nodes
    List(WhichLab),
}

impl Fault {
    /// The lab that is meant.
    pub(crate) fn which(&self) -> &WhichLab {
        match self {
            Self::Partition { which, .. }
            | Self::Isolate { which, .. }
            | Self::Reset { which, .. }
            | Self::Slow { which, .. }
            | Self::Pause(LabNode { which, .. })
            | Self::Resume(LabNode { which, .. })
            | Self::Heal(which)
            | Self::List(which) => which,
        }
    }
}

/// What a benchmark does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    // Writes
    Put,
    // Reads
    Get,
    // Half of each
    Mixed,
}

/// How operations travel to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Travel {
    /// Many on one stream to each node
    Session,
    /// Each as a call of its own
    Unary,
}

impl From<Travel> for kv_client::Via {
    fn from(travel: Travel) -> Self {
        match travel {
            Travel::Session => Self::Session,
            Travel::Unary => Self::Unary,
        }
    }
}

impl fmt::Display for Travel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session => "session",
            Self::Unary => "unary",
        })
    }
}

/// Which keys a benchmark takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Distribution {
    /// Every key as often as any other
    Uniform,
    /// Few keys often, most seldom (exponent 0.99)
    Zipfian,
    /// Writes: keys that were not written before; reads: those that were
    New,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
        })
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uniform => "uniform",
            Self::Zipfian => "zipfian",
            Self::New => "new",
        })
    }
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// What to do
    #[arg(long, value_enum, default_value = "mixed")]
    pub(crate) workload: Workload,
    /// Which keys
    #[arg(long, value_enum, default_value = "uniform")]
    pub(crate) distribution: Distribution,
    /// Operations in flight
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) clients: u32,
    /// Size of a value
    #[arg(long, default_value = "100B", value_parser = units::value_size, value_name = "SIZE")]
    pub(crate) value_size: usize,
    /// Number of keys
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(crate) keys: u64,
    /// Keys to write first [default: all of them where the workload reads]
    #[arg(long, value_name = "KEYS", value_parser = clap::value_parser!(u64).range(0..=100_000_000))]
    pub(crate) preload: Option<u64>,
    /// Begin this many operations a second, answered or not [default: each client waits for its answer]
    #[arg(long, value_name = "PER_SECOND", value_parser = units::rate)]
    pub(crate) rate: Option<f64>,
    /// How operations travel: many on one stream to each node, or each as a call of its own
    #[arg(long, value_enum, default_value = "session")]
    pub(crate) via: Travel,
    /// Without -n on this line: the mode of the namespace that is made for this [default: strong]
    #[arg(long, value_enum)]
    pub(crate) mode: Option<ModeArg>,
    /// Without -n: do not remove that namespace at the end
    #[arg(long)]
    pub(crate) keep: bool,
    /// How long
    #[arg(
        long = "for",
        alias = "duration",
        default_value = "10s",
        value_parser = units::duration,
        value_name = "DURATION"
    )]
    pub(crate) lasting: Duration,
}

impl Bench {
    /// Keys that are written before anything is measured.
    pub(crate) fn preloaded(&self) -> u64 {
        let reads = self.workload != Workload::Put;
        self.preload.unwrap_or(if reads { self.keys } else { 0 })
    }
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The key
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) form: KeyForm,
    /// From the viewpoint of this node; otherwise of the one that answers first
    #[arg(long, value_name = "NODE")]
    pub(crate) as_seen_by: Option<NodeId>,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// How often
    #[arg(long, default_value = "1s", value_parser = units::duration, value_name = "DURATION")]
    pub(crate) every: Duration,
    /// One picture, as into a pipe
    #[arg(long)]
    pub(crate) once: bool,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The history, JSON Lines (- for standard input)
    pub(crate) history: PathBuf,
    /// Treat this namespace as available (repeat); otherwise told from its reads
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) available: Vec<String>,
    /// Treat this namespace as strong (repeat)
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) strong: Vec<String>,
    /// Reads called from this time on, milliseconds since the beginning, are the final ones; without it
    /// losses and convergence are not judged. An acknowledged write of which no final read tells, and that no
    /// later one replaced, is counted as not read in the end
    #[arg(long, value_name = "MS")]
    pub(crate) settled_ms: Option<u64>,
}

/// Commands about contexts.
#[derive(Debug, Subcommand)]
pub(crate) enum Ctx {
    /// List contexts
    List,
    /// Select one
    Use {
        /// Its name
        name: String,
    },
    /// Add the cluster of the nodes that -e names, and select it; -n: its namespace when none is named
    Add {
        /// Its name
        name: String,
    },
    /// Forget one
    Remove {
        /// Its name
        name: String,
    },
    /// Show the one in use, and why
    Show,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_lines_of_the_documentation_are_read() {
        for line in [
            "kvctl ns create cart --mode available --n 3 --r 2 --w 2",
            "kvctl ns delete cart --now",
            "kvctl ns delete cart",
            "kvctl ns delete cart --grace 1h",
            "kvctl ns delete cart --grace 30days",
            "kvctl ns undelete cart",
            "kvctl ns alter cart --r 1 --w 3",
            "kvctl ns undelete cart --request-id 0123456789abcdef0123456789abcdef:1@1700000000000",
            "kvctl bench --mode available --keep --for 1s",
            "kvctl put -n bank alice 100",
            "kvctl put -n bank alice -1",
            "kvctl put -n bank alice -",
            "kvctl get -n bank alice -o raw",
            "kvctl cas -n bank alice --expect-revision 118 90",
            "kvctl cas -n bank alice --expect-absent 90",
            "kvctl put -n cart user:42 --causal ctx.json v",
            "kvctl fault partition n1,n2 / n3,n4,n5 --for 20s",
            "kvctl put -n cart user:42 merged --seen",
            "kvctl del -n cart user:42 --seen",
            "kvctl fault isolate n3",
            "kvctl fault partition --name other n1 / n2",
            "kvctl fault partition n1 / n2 --dir /tmp/lab",
            "kvctl fault slow n1 n2 --bytes 4kB --name other",
            "kvctl fault pause n3 --name other",
            "kvctl fault heal --name other",
            "kvctl fault list --dir /tmp/lab",
            "kvctl bench -n bank --workload put --clients 16 --value-size 100B --for 10s -o json",
            "kvctl -e 127.0.0.1:7101 -e 127.0.0.1:7102 cluster status --as-seen-by all",
            "kvctl cluster transfer-leader n3",
            "kvctl lab up --nodes 5 --port-base 7100",
            "kvctl lab up --name other --fresh",
            "kvctl lab down --name other",
            "kvctl lab status --dir /tmp/lab",
            "kvctl lab kill n3",
            "kvctl lab restart n3 --empty",
            "kvctl lab logs n3 --lines 5",
            "kvctl help exit-codes",
            "kvctl ctx add prod -e h1:7101 -e h2:7101 -n bank",
            "kvctl ctx remove prod",
            "kvctl get -n bank --key-hex 00ff",
            "kvctl put -n bank --key-file key.bin 100",
            "kvctl help ns create",
            "kvctl set -n bank alice 100",
            "kvctl rm -n bank alice",
            "kvctl ls",
            "kvctl get -n cart user:42 --all -0",
            "kvctl put -n bank --request-id 0123456789abcdef0123456789abcdef:1@1700000000000 alice 100",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "kvctl cas -n bank alice 90",
            "kvctl put -n cart k v --causal f --blind",
            "kvctl put -n cart k v --causal f --seen",
            "kvctl put -n cart k v --seen --blind",
            "kvctl bench --for 10",
            "kvctl ns create cart --mode available --n 0",
            "kvctl ns create cart --mode available --r 0",
            "kvctl ns create cart --mode available --w 8",
            "kvctl ns delete cart --now --grace 1h",
            "kvctl ns delete cart --grace 500ms",
            "kvctl ns delete cart --grace 31days",
            "kvctl ns alter cart --r 0",
            "kvctl get -n cart k -0",
            "kvctl fault slow n1 n2 --bytes 4000",
            "kvctl fault slow n1 n2 --bytes 10B",
            "kvctl lab up --port-base 65500",
            "kvctl put -n bank --request-id 5f2c0000:41 alice 1",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
