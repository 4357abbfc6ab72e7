//! `[[fault]]`: what breaks, when, and whom it hits, as files say it; and which words make no sense together.

use std::fmt;
use std::time::Duration;

use kv_types::limits::MAX_VALUE_BYTES;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::cluster::{Cluster, Mode, Plane, Server, Span};

/// Faults of one scenario at most, each repetition counted.
const MAX_REPEATS: u32 = 100;
/// Clients of a flood at one node at most.
const MAX_FLOOD_CLIENTS: u32 = 1024;
/// A call that takes longer by more than this is as good as one that hangs.
const MAX_SLOW_MS: u64 = 10_000;
/// Room on a disk that is nearly full, where a file does not say: less than the reserve of a node with a few
/// small segments, and more than its next writes need.
const NEARLY_FULL_BYTES: u64 = 64 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FaultEntry {
    kind: Spanned<Word>,
    at: Option<Span>,
    #[serde(rename = "for")]
    lasts: Option<Span>,
    every: Option<Span>,
    repeat: Option<u32>,
    target: Option<Role>,
    shape: Option<Shape>,
    ms: Option<u64>,
    jitter_ms: Option<u64>,
    bytes: Option<u64>,
    percent: Option<u8>,
    by: Option<String>,
    rate: Option<f64>,
    clients: Option<u32>,
    mode: Option<Mode>,
}

/// A kind of fault as files name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Partition,
    Flapping,
    Delay,
    Slow,
    Reset,
    Loss,
    Kill,
    KillAll,
    Pause,
    RollingRestart,
    RestartEmpty,
    LossyKill,
    FailSync,
    DiskFull,
    DiskNearlyFull,
    DiskHang,
    DiskSlow,
    TierStall,
    TierSlow,
    Flood,
    ClockJump,
    ClockDrift,
    BitFlip,
    JournalFlip,
}

/// `[[fault]]`: what breaks, when, and whom it hits. One that repeats stands here once.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// What breaks.
    pub kind: FaultKind,
    /// When, from the end of the warm-up.
    pub at: Duration,
    /// For how long.
    pub lasts: Duration,
    /// How often; at least once.
    pub repeat: u32,
    /// From one beginning to the next.
    pub every: Duration,
    /// Whom.
    pub target: Role,
    /// On and off within it; for a partition that flaps.
    pub flap: Option<Duration>,
    /// One node after the other, each for a part of the time; for a rolling restart.
    pub rolling: bool,
}

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum FaultKind {
    /// The network, in two or more parts.
    Partition {
        /// Which.
        shape: Shape,
    },
    /// Links of the target are late.
    Delay {
        /// By so many milliseconds,
        ms: u64,
        /// give or take.
        jitter_ms: u64,
    },
    /// Links of the target are narrow.
    Slow {
        /// So many bytes a second.
        bytes: u64,
    },
    /// Connections of the target are reset.
    Reset,
    /// Packets of the target are lost.
    Loss {
        /// So many of a hundred.
        percent: u8,
    },
    /// `SIGKILL`, and a restart at the end.
    Kill,
    /// `SIGSTOP`, and `SIGCONT` at the end.
    Pause,
    /// Killed; at the end it starts with an empty disk.
    RestartEmpty,
    /// Killed like a power failure: what was not synced is gone.
    LossyKill,
    /// Its disk fails to sync; the node must stop, and is started at the end.
    FailSync,
    /// Its disk takes so many bytes more, until the end.
    DiskFull {
        /// So many.
        bytes: u64,
    },
    /// Its disk has less room than a node keeps in reserve, until the end; the node must live on.
    DiskNearlyFull {
        /// So many bytes of room.
        bytes: u64,
    },
    /// Its disk completes no write and no sync, until the end.
    DiskHang,
    /// Every sync of its disk takes longer, until the end.
    DiskSlow {
        /// By so many milliseconds.
        ms: u64,
    },
    /// Its lower tier takes no batch and no checkpoint, until the end.
    TierStall,
    /// Every batch and checkpoint of its lower tier takes longer, until the end.
    TierSlow {
        /// By so many milliseconds.
        ms: u64,
    },
    /// Clients write as fast as they can into a namespace of their own, at the target, until the end.
    Flood {
        /// So many at each node of the target.
        clients: u32,
        /// Values of so many bytes.
        bytes: u64,
        /// The mode of that namespace.
        mode: Mode,
    },
    /// Its wall clock jumps, and back at the end.
    ClockJump {
        /// So many milliseconds, forwards or backwards.
        by_ms: i64,
    },
    /// Its wall clock runs at another rate, until the end.
    ClockDrift {
        /// 1 is right.
        rate: f64,
    },
    /// Killed; a bit of its log is flipped; started at the end, with an empty disk if it refuses the damaged
    /// one.
    BitFlip,
    /// As [`Self::BitFlip`], in the journal of the histories.
    JournalFlip,
}

impl FaultKind {
    /// Its name in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Partition { .. } => "partition",
            Self::Delay { .. } => "delay",
            Self::Slow { .. } => "slow",
            Self::Reset => "reset",
            Self::Loss { .. } => "loss",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::RestartEmpty => "restart-empty",
            Self::LossyKill => "lossy-kill",
            Self::FailSync => "fail-sync",
            Self::DiskFull { .. } => "disk-full",
            Self::DiskNearlyFull { .. } => "disk-nearly-full",
            Self::DiskHang => "disk-hang",
            Self::DiskSlow { .. } => "disk-slow",
            Self::TierStall => "tier-stall",
            Self::TierSlow { .. } => "tier-slow",
            Self::Flood { .. } => "flood",
            Self::ClockJump { .. } => "clock-jump",
            Self::ClockDrift { .. } => "clock-drift",
            Self::BitFlip => "bit-flip",
            Self::JournalFlip => "journal-flip",
        }
    }

    /// Whether it is a state of links.
    pub fn of_links(self) -> bool {
        matches!(
            self,
            Self::Partition { .. } | Self::Delay { .. } | Self::Slow { .. } | Self::Reset | Self::Loss { .. }
        )
    }

    /// Whether a node dies of it, loses what it had, or cannot note hints.
    pub fn kills(self) -> bool {
        self.ends_nodes() || matches!(self, Self::DiskNearlyFull { .. })
    }

    /// Whether a node that is hit by it may be found dead.
    pub fn ends_nodes(self) -> bool {
        matches!(
            self,
            Self::Kill
                | Self::RestartEmpty
                | Self::LossyKill
                | Self::FailSync
                | Self::DiskFull { .. }
                | Self::BitFlip
                | Self::JournalFlip
        )
    }

    /// Whether nodes and links live on and only lack something: room, speed, or a disk that answers. The
    /// others owe their service meanwhile.
    pub fn starves(self) -> bool {
        matches!(
            self,
            Self::DiskNearlyFull { .. }
                | Self::DiskHang
                | Self::DiskSlow { .. }
                | Self::TierStall
                | Self::TierSlow { .. }
                | Self::Flood { .. }
                | Self::Delay { .. }
                | Self::Slow { .. }
        )
    }

    /// Whether it needs the server whose disk and clock can be broken.
    pub fn needs_faulty(self) -> bool {
        matches!(
            self,
            Self::LossyKill
                | Self::FailSync
                | Self::DiskFull { .. }
                | Self::DiskNearlyFull { .. }
                | Self::DiskHang
                | Self::DiskSlow { .. }
                | Self::TierStall
                | Self::TierSlow { .. }
                | Self::ClockJump { .. }
                | Self::ClockDrift { .. }
        )
    }
}

/// How a network is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Two halves at random.
    Halves,
    /// The leader in the smaller half.
    LeaderInMinority,
    /// The leader in the larger half.
    LeaderInMajority,
    /// Everybody sees a majority, and no two the same.
    MajoritiesRing,
    /// Two halves, and one node that both see: the target.
    Bridge,
    /// Nothing that the target sends arrives.
    OneWay,
    /// The target alone.
    Isolate,
    /// Everybody alone.
    Shatter,
}

/// Whom a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Role {
    /// The leader of the strong namespaces.
    Leader,
    /// Somebody else.
    Follower,
    /// The first primary of a hot key of an available namespace.
    Coordinator,
    /// The node that holds the most hints.
    HintHolder,
    /// Anybody.
    Random,
    /// Everybody.
    All,
    /// A majority, with the leader.
    MajorityWithLeader,
    /// A minority, with the leader.
    MinorityWithLeader,
    /// This node.
    Node(u64),
}

pub(super) const ROLES: [(Role, &str); 8] = [
    (Role::Leader, "leader"),
    (Role::Follower, "follower"),
    (Role::Coordinator, "coordinator"),
    (Role::HintHolder, "hint-holder"),
    (Role::Random, "random"),
    (Role::All, "all"),
    (Role::MajorityWithLeader, "majority-with-leader"),
    (Role::MinorityWithLeader, "minority-with-leader"),
];

impl TryFrom<String> for Role {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Some((role, _)) = ROLES.iter().find(|(_, name)| *name == text) {
            return Ok(*role);
        }
        let node = text.strip_prefix('n').and_then(|number| number.parse().ok());
        node.map(Self::Node).ok_or_else(|| {
            let names: Vec<_> = ROLES.iter().map(|(_, name)| format!("`{name}`")).collect();
            format!("unknown target `{text}`, expected a node such as `n1` or one of {}", names.join(", "))
        })
    }
}

impl From<Role> for String {
    fn from(role: Role) -> Self {
        role.to_string()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "n{node}"),
            role => f.write_str(ROLES.iter().find(|(other, _)| other == role).map_or("", |(_, name)| name)),
        }
    }
}

/// Makes a fault of an entry, or says why it cannot.
pub(super) fn fault(entry: FaultEntry, cluster: &Cluster) -> Result<Fault, String> {
    let word = *entry.kind.get_ref();
    let name = format!("{word:?}");
    takes_only_its_own(&entry, word)?;
    let kind = kind(&entry, word)?;
    if kind.needs_faulty() && cluster.server != Server::KvdFaulty {
        return Err(format!("{name} needs server = \"kvd-faulty\" in [cluster]"));
    }
    let packets = matches!(kind, FaultKind::Loss { .. });
    let connections = matches!(kind, FaultKind::Delay { .. } | FaultKind::Slow { .. } | FaultKind::Reset);
    if packets && cluster.plane != Plane::Netns || connections && cluster.plane == Plane::Netns {
        let plane = if packets { "netns" } else { "proxy" };
        return Err(format!("{name} needs plane = \"{plane}\" in [cluster]"));
    }
    if let Some(Role::Node(node)) = entry.target
        && !(1..=cluster.nodes).contains(&node)
    {
        return Err(format!("there is no node n{node}, only n1 to n{}", cluster.nodes));
    }
    let target = match word {
        Word::KillAll | Word::RollingRestart => Role::All,
        Word::Delay | Word::Slow | Word::Loss => entry.target.unwrap_or(Role::All),
        _ => entry.target.unwrap_or(Role::Random),
    };
    let Times { repeat, lasts, flap, every } = times(&entry, word)?;
    let at = entry.at.map_or(Duration::ZERO, |span| span.0);
    Ok(Fault { kind, at, lasts, repeat, every, target, flap, rolling: word == Word::RollingRestart })
}

/// Whether an entry has no setting that its kind of fault does not take.
fn takes_only_its_own(entry: &FaultEntry, word: Word) -> Result<(), String> {
    let mut given: Vec<&str> = Vec::new();
    let mut note = |is: bool, key| is.then(|| given.push(key));
    note(entry.shape.is_some(), "shape");
    note(entry.ms.is_some(), "ms");
    note(entry.jitter_ms.is_some(), "jitter_ms");
    note(entry.bytes.is_some(), "bytes");
    note(entry.percent.is_some(), "percent");
    note(entry.by.is_some(), "by");
    note(entry.rate.is_some(), "rate");
    note(entry.clients.is_some(), "clients");
    note(entry.mode.is_some(), "mode");
    let takes: &[&str] = match word {
        Word::Partition | Word::Flapping => &["shape"],
        Word::Delay => &["ms", "jitter_ms"],
        Word::Slow | Word::DiskFull | Word::DiskNearlyFull => &["bytes"],
        Word::DiskSlow | Word::TierSlow => &["ms"],
        Word::Flood => &["clients", "bytes", "mode"],
        Word::Loss => &["percent"],
        Word::ClockJump => &["by"],
        Word::ClockDrift => &["rate"],
        _ => &[],
    };
    if let Some(key) = given.iter().find(|key| !takes.contains(key)) {
        let takes = if takes.is_empty() { "nothing of its own".into() } else { takes.join(", ") };
        return Err(format!("{word:?} does not take `{key}`: it takes {takes}"));
    }
    Ok(())
}

/// What breaks.
fn kind(entry: &FaultEntry, word: Word) -> Result<FaultKind, String> {
    let shape = entry.shape.unwrap_or(Shape::Halves);
    Ok(match word {
        Word::Partition | Word::Flapping => FaultKind::Partition { shape },
        Word::Delay => {
            FaultKind::Delay { ms: entry.ms.unwrap_or(100), jitter_ms: entry.jitter_ms.unwrap_or(50) }
        }
        Word::Slow => FaultKind::Slow { bytes: entry.bytes.unwrap_or(50_000).max(1) },
        Word::Reset => FaultKind::Reset,
        Word::Loss => FaultKind::Loss { percent: entry.percent.unwrap_or(20) },
        Word::Kill | Word::KillAll | Word::RollingRestart => FaultKind::Kill,
        Word::Pause => FaultKind::Pause,
        Word::RestartEmpty => FaultKind::RestartEmpty,
        Word::LossyKill => FaultKind::LossyKill,
        Word::FailSync => FaultKind::FailSync,
        Word::DiskFull => FaultKind::DiskFull { bytes: entry.bytes.unwrap_or(0) },
        Word::DiskNearlyFull => FaultKind::DiskNearlyFull { bytes: entry.bytes.unwrap_or(NEARLY_FULL_BYTES) },
        Word::DiskHang => FaultKind::DiskHang,
        Word::DiskSlow => FaultKind::DiskSlow { ms: milliseconds(entry, 200)? },
        Word::TierStall => FaultKind::TierStall,
        Word::TierSlow => FaultKind::TierSlow { ms: milliseconds(entry, 50)? },
        Word::Flood => {
            let clients = entry.clients.unwrap_or(64);
            let bytes = entry.bytes.unwrap_or(1024);
            if !(1..=MAX_FLOOD_CLIENTS).contains(&clients) || bytes > MAX_VALUE_BYTES as u64 {
                return Err(format!(
                    "a flood has 1 to {MAX_FLOOD_CLIENTS} clients and values of at most {MAX_VALUE_BYTES} bytes"
                ));
            }
            FaultKind::Flood { clients, bytes, mode: entry.mode.unwrap_or(Mode::Strong) }
        }
        Word::ClockJump => FaultKind::ClockJump { by_ms: signed_ms(entry.by.as_deref().unwrap_or("1h"))? },
        Word::ClockDrift => {
            let rate = entry.rate.unwrap_or(1.5);
            if !(0.1..=10.0).contains(&rate) {
                return Err("a clock runs at a rate of 0.1 to 10".into());
            }
            FaultKind::ClockDrift { rate }
        }
        Word::BitFlip => FaultKind::BitFlip,
        Word::JournalFlip => FaultKind::JournalFlip,
    })
}

/// By how much something is slower.
fn milliseconds(entry: &FaultEntry, otherwise: u64) -> Result<u64, String> {
    let ms = entry.ms.unwrap_or(otherwise);
    if !(1..=MAX_SLOW_MS).contains(&ms) {
        return Err(format!("slower by 1 to {MAX_SLOW_MS} ms, not {ms}"));
    }
    Ok(ms)
}

/// When a fault happens, and how often.
struct Times {
    repeat: u32,
    lasts: Duration,
    flap: Option<Duration>,
    every: Duration,
}

fn times(entry: &FaultEntry, word: Word) -> Result<Times, String> {
    let repeat = entry.repeat.unwrap_or(1);
    if !(1..=MAX_REPEATS).contains(&repeat) {
        return Err(format!("a fault happens 1 to {MAX_REPEATS} times, not {repeat}"));
    }
    let lasts = entry.lasts.as_ref().map_or(Duration::from_secs(3), |span| span.0);
    if lasts.is_zero() {
        return Err("a fault that lasts no time proves nothing".into());
    }
    let flap = match word {
        Word::Flapping => Some(entry.every.as_ref().map_or(Duration::from_secs(1), |span| span.0)),
        _ => None,
    };
    let every = match flap {
        Some(_) => lasts + Duration::from_secs(1),
        None => entry.every.as_ref().map_or(lasts * 2, |span| span.0),
    };
    if repeat > 1 && every < lasts {
        return Err("the next one begins before this one ends: `every` is shorter than `for`".into());
    }
    if every.is_zero() || flap.is_some_and(|flap| flap < Duration::from_millis(500)) {
        return Err("`every` is too short: a cut takes a moment to be proven".into());
    }
    Ok(Times { repeat, lasts, flap, every })
}

/// A length of time with a sign: `1h`, `-30s`.
pub(super) fn signed_ms(text: &str) -> Result<i64, String> {
    let (sign, length) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let span = Span::try_from(length.to_owned())?;
    Ok(sign * i64::try_from(span.0.as_millis()).map_err(|_| format!("{text:?} is too long"))?)
}
