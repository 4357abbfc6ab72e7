//! A namespace chooses its side of CAP. Settings that cannot imply the promised guarantee are refused here,
//! when the namespace is created, not discovered in production.

use std::fmt;
use std::time::Duration;

use crate::limits::{DELETION_GRACE, MAX_DELETION_GRACE, MAX_REPLICAS, MIN_DELETION_GRACE};
use crate::{Failure, GroupId, NamespaceId, NamespaceName, Reason, RingId};

/// The side of CAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Linearizable; refuses in a minority.
    Strong,
    /// Answers in a minority; converges after it heals.
    Available,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Strong => "strong",
            Self::Available => "available",
        })
    }
}

/// A guarantee by name. N, R and W are the plan that implements one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Guarantee {
    /// As if there were one copy, in real-time order.
    Linearizable,
    /// At most a stated age behind.
    BoundedStaleness,
    /// Who wrote sees it, with every read that begins after the write was acknowledged.
    ReadYourWrites,
    /// As [`Self::StrictQuorum`], and what one read has shown no later read misses.
    MonotonicReads,
    /// Replicas converge when writes stop.
    Eventual,
    /// A read sees every write that was acknowledged before it began, or what superseded it.
    StrictQuorum,
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linearizable => "linearizable",
            Self::BoundedStaleness => "bounded staleness",
            Self::ReadYourWrites => "read your writes",
            Self::MonotonicReads => "monotonic reads",
            Self::Eventual => "eventual",
            Self::StrictQuorum => "strict quorum",
        })
    }
}

/// How many replicas must answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicaCount {
    /// So many.
    Number(u8),
    /// A majority of N.
    Quorum,
    /// All N.
    All,
}

impl ReplicaCount {
    /// The number for a given N, or `INVALID_REQUEST` when it is not within 1 to N.
    pub fn of(self, n: u8) -> Result<u8, Failure> {
        match self {
            Self::Quorum => Ok(majority(n)),
            Self::All => Ok(n),
            Self::Number(count) if (1..=n).contains(&count) => Ok(count),
            Self::Number(count) => Err(Failure::new(
                Reason::InvalidRequest,
                format!("{count} replicas were asked for; the namespace keeps {n}"),
            )),
        }
    }
}

/// The smallest number that is more than half of `n`.
pub fn majority(n: u8) -> u8 {
    n / 2 + 1
}

/// N, R and W of an available namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Replication {
    /// Replicas per key.
    pub n: u8,
    /// Answers that a read needs.
    pub r: u8,
    /// Acknowledgements that a write needs.
    pub w: u8,
    /// Whether fallbacks may count (a sloppy quorum).
    pub sloppy: bool,
}

impl Replication {
    /// Whether R and W are numbers of replicas that there are: `NAMESPACE_INVALID`.
    pub fn check_counts(&self) -> Result<(), Failure> {
        let Self { n, r, w, .. } = *self;
        if !(1..=n).contains(&r) || !(1..=n).contains(&w) {
            let message = format!("R={r} and W={w} must each be 1 to N={n}");
            return Err(Failure::new(Reason::NamespaceInvalid, message));
        }
        Ok(())
    }

    /// Whether every read set meets every write set among the primaries. This is *not* linearizability.
    pub fn intersects(&self) -> bool {
        self.r + self.w > self.n && !self.sloppy
    }

    /// Why these numbers do not imply a guarantee, if they do not.
    pub fn falls_short_of(&self, guarantee: Guarantee) -> Option<String> {
        let Self { n, r, w, .. } = *self;
        match guarantee {
            Guarantee::Eventual => None,
            Guarantee::Linearizable => {
                Some("leaderless quorums are not linearizable: use a strong namespace".into())
            }
            Guarantee::BoundedStaleness => {
                Some("nothing proves how old an answer of a leaderless quorum is".into())
            }
            Guarantee::StrictQuorum | Guarantee::ReadYourWrites | Guarantee::MonotonicReads => {
                if self.sloppy {
                    return Some(
                        "with a sloppy quorum a write may be on fallbacks alone: make it strict".into(),
                    );
                }
                let more =
                    "some reads would ask none of the replicas that have a write: R+W must be more than N";
                (!self.intersects()).then(|| format!("with N={n}, R={r}, W={w} {more}"))
            }
        }
    }
}

/// Where a namespace lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Placement {
    /// In one Raft group.
    Strong {
        /// The group.
        group: GroupId,
    },
    /// On a ring.
    Available {
        /// The ring.
        ring: RingId,
        /// The quorums.
        replication: Replication,
    },
}

/// A deletion that can be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// When the namespace goes for good, by the clocks of a majority, milliseconds since 1970.
    pub due_ms: u64,
    /// How long it was to be possible to take it back, milliseconds.
    pub grace_ms: u64,
}

/// A namespace as catalogued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Never reused.
    pub id: NamespaceId,
    /// Its name.
    pub name: NamespaceName,
    /// Counts changes of settings, from 1; a deletion that can be undone, and its undoing, are changes too.
    pub settings_version: u64,
    /// It is deleted; until it goes for good it serves nothing, keeps all that is stored, and can be taken
    /// back.
    pub deletion: Option<Deletion>,
    /// What it promises.
    pub guarantee: Guarantee,
    /// Where it lives; this also says its mode.
    pub placement: Placement,
}

impl Namespace {
    /// Its side of CAP.
    pub fn mode(&self) -> Mode {
        match self.placement {
            Placement::Strong { .. } => Mode::Strong,
            Placement::Available { .. } => Mode::Available,
        }
    }

    /// When it goes for good, of one that is deleted, milliseconds since 1970.
    pub fn deletion_due_ms(&self) -> Option<u64> {
        self.deletion.map(|deletion| deletion.due_ms)
    }

    /// Refuses one that is deleted, though that can be undone: `DELETION_PENDING`.
    pub fn check_present(&self) -> Result<(), Failure> {
        let Some(due_ms) = self.deletion_due_ms() else { return Ok(()) };
        let message = format!(
            "namespace `{}` is deleted; all that is stored is kept until the grace is over: undelete it to use it again",
            self.name
        );
        Err(Failure::new(Reason::DeletionPending, message).with("deleted_until_ms", due_ms))
    }
}

/// How long a deletion can be undone, of what was asked for: `NAMESPACE_INVALID` outside the bounds.
pub fn deletion_grace(asked: Option<Duration>) -> Result<Duration, Failure> {
    let grace = asked.unwrap_or(DELETION_GRACE);
    if (MIN_DELETION_GRACE..=MAX_DELETION_GRACE).contains(&grace) {
        return Ok(grace);
    }
    let (least, most) = (MIN_DELETION_GRACE.as_secs(), MAX_DELETION_GRACE.as_secs());
    let (hours, days) = (most / 3_600, most / 86_400);
    let message = format!(
        "a grace of {grace:?} is out of range: {least} second to {days} days ({hours} hours); to delete at once needs none"
    );
    Err(Failure::new(Reason::NamespaceInvalid, message))
}

/// A request for a namespace, checked by [`NamespaceSpec::check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceSpec {
    /// Its name.
    pub name: NamespaceName,
    /// Its side of CAP.
    pub mode: Mode,
    /// Available: the quorums.
    pub replication: Option<Replication>,
    /// What it promises.
    pub guarantee: Guarantee,
}

impl NamespaceSpec {
    /// A strong namespace.
    pub fn strong(name: NamespaceName) -> Self {
        Self { name, mode: Mode::Strong, replication: None, guarantee: Guarantee::Linearizable }
    }

    /// An available namespace that promises what every setting implies.
    pub fn available(name: NamespaceName, replication: Replication) -> Self {
        Self { name, mode: Mode::Available, replication: Some(replication), guarantee: Guarantee::Eventual }
    }

    /// Whether it is an available namespace that promises more than that replicas converge.
    pub fn promises_more(&self) -> bool {
        self.mode == Mode::Available && self.guarantee != Guarantee::Eventual
    }

    /// Whether the settings hold together and imply the promise, in a cluster of `members`:
    /// `NAMESPACE_INVALID`.
    pub fn check(&self, members: usize) -> Result<(), Failure> {
        let refuse = |message: String| Err(Failure::new(Reason::NamespaceInvalid, message));
        match (self.mode, self.replication) {
            (Mode::Strong, Some(_)) => {
                refuse("N, R and W belong to available namespaces; a strong one lives in a Raft group".into())
            }
            (Mode::Strong, None) if self.guarantee == Guarantee::Linearizable => Ok(()),
            (Mode::Strong, None) => {
                refuse(format!("a strong namespace promises linearizable, not {}", self.guarantee))
            }
            (Mode::Available, None) => refuse("an available namespace needs N, R and W".into()),
            (Mode::Available, Some(replication @ Replication { n, .. })) => {
                if n == 0 || n > MAX_REPLICAS || usize::from(n) > members {
                    return refuse(format!(
                        "N={n} is out of range: 1 to {} in a cluster of {members} nodes",
                        members.min(usize::from(MAX_REPLICAS))
                    ));
                }
                replication.check_counts()?;
                match replication.falls_short_of(self.guarantee) {
                    None => Ok(()),
                    Some(why) => refuse(format!("it cannot promise {}: {why}", self.guarantee)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn available(n: u8, r: u8, w: u8) -> NamespaceSpec {
        let name = NamespaceName::new("cart").unwrap();
        NamespaceSpec::available(name, Replication { n, r, w, sloppy: true })
    }

    #[test]
    fn settings_that_do_not_hold_together_are_refused() {
        assert!(available(3, 2, 2).check(5).is_ok());
        for (n, r, w, members) in [
            (0, 1, 1, 5),
            (6, 1, 1, 5),
            (3, 0, 2, 5),
            (3, 4, 2, 5),
            (3, 2, 4, 5),
            (3, 2, 2, 2),
            (8, 1, 1, 20),
        ] {
            let refused = available(n, r, w).check(members).map_err(|e| e.reason);
            assert_eq!(refused, Err(Reason::NamespaceInvalid), "{n} {r} {w} of {members}");
        }
    }

    #[test]
    fn quorums_are_never_sold_as_linearizable() {
        let mut spec = available(3, 3, 3);
        spec.guarantee = Guarantee::Linearizable;
        assert!(spec.check(5).is_err());
    }

    #[test]
    fn a_promise_is_refused_that_the_numbers_do_not_imply() {
        use Guarantee::{
            BoundedStaleness, Eventual, Linearizable, MonotonicReads, ReadYourWrites, StrictQuorum,
        };
        for n in 1..=MAX_REPLICAS {
            for (r, w) in (1..=n).flat_map(|r| (1..=n).map(move |w| (r, w))) {
                for sloppy in [true, false] {
                    let mut spec = available(n, r, w);
                    spec.replication = Some(Replication { n, r, w, sloppy });
                    let mut promises = |guarantee| {
                        spec.guarantee = guarantee;
                        spec.check(usize::from(MAX_REPLICAS)).is_ok()
                    };
                    assert!(promises(Eventual) && !promises(Linearizable) && !promises(BoundedStaleness));
                    for guarantee in [StrictQuorum, ReadYourWrites, MonotonicReads] {
                        assert_eq!(promises(guarantee), !sloppy && r + w > n, "{n} {r} {w} {sloppy}");
                    }
                }
            }
        }
        let mut strong = NamespaceSpec::strong(NamespaceName::new("bank").unwrap());
        strong.guarantee = StrictQuorum;
        assert_eq!(strong.check(5).unwrap_err().reason, Reason::NamespaceInvalid);
    }

    #[test]
    fn a_grace_has_bounds_and_a_default() {
        assert_eq!(deletion_grace(None), Ok(DELETION_GRACE));
        for within in [MIN_DELETION_GRACE, MAX_DELETION_GRACE] {
            assert_eq!(deletion_grace(Some(within)), Ok(within));
        }
        let little = Duration::from_millis(1);
        for beyond in [MIN_DELETION_GRACE - little, MAX_DELETION_GRACE + little, Duration::ZERO] {
            let refused = deletion_grace(Some(beyond)).unwrap_err();
            assert_eq!((refused.reason, refused.applied), (Reason::NamespaceInvalid, crate::Applied::No));
        }
    }

    #[test]
    fn counts_resolve_within_n() {
        assert_eq!(ReplicaCount::Quorum.of(5), Ok(3));
        assert_eq!(ReplicaCount::All.of(5), Ok(5));
        assert_eq!(ReplicaCount::Number(1).of(3), Ok(1));
        assert!(ReplicaCount::Number(4).of(3).is_err());
        assert!(ReplicaCount::Number(0).of(3).is_err());
    }
}
