//! What goes wrong in a run, decided before it begins and from the seed alone: a random subset of all kinds
//! of faults (so that some seeds see one kind often instead of all kinds seldom), aimed at roles as well as
//! at nodes, overlapping, and striking during recovery too.

use std::collections::BTreeSet;
use std::time::Duration;

use kv_types::NodeId;
use serde::{Deserialize, Serialize};

use super::cluster::{NODES, nodes};

/// Whom a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whom {
    /// The leader of the strong namespaces at that moment.
    Leader,
    /// The node that holds most hints at that moment.
    HintHolder,
    /// This node.
    Node(u64),
}

/// Which directed links are cut. `whom` is where the shape is centred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Two nodes against three, the victim among the two.
    Halves,
    /// The victim alone.
    Isolate,
    /// Everyone sees only its two neighbours: every node is in some majority, and no two agree which.
    Ring,
    /// Two and two, and the victim sees both sides.
    Bridge,
    /// The victim hears the others, and they do not hear it.
    Mute,
    /// The others hear the victim, and it does not hear them.
    Deaf,
    /// The link between the victim and its next neighbour.
    Link,
}

/// One kind of fault, with its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Messages between some nodes are lost.
    Cut(Shape, Whom),
    /// Messages between some nodes are kept back, and all arrive when it ends.
    Hold(Shape, Whom),
    /// The process is killed and started again at the end; what it wrote survives.
    Kill(Whom),
    /// The power goes: what was not synced is lost or torn.
    PowerCut(Whom),
    /// The power of all nodes goes at once.
    PowerCutAll,
    /// The power goes between a write and its sync: after so many syncs more.
    PowerCutAtSync(Whom, u64),
    /// A sync fails, and the node has to stop.
    FailingSync(Whom, u64),
    /// The disk has room for so many bytes more.
    FullDisk(Whom, u64),
    /// Every write takes up to so many milliseconds longer.
    SlowDisk(Whom, u64),
    /// The disk completes no write.
    HungDisk(Whom),
    /// The lower tier takes no batch.
    StalledTier(Whom),
    /// The lower tier takes a batch only so many milliseconds after the last one.
    SlowTier(Whom, u64),
    /// The power goes and the lower tier is gone.
    LoseTier(Whom),
    /// The wall clock jumps by so many milliseconds.
    ClockJump(Whom, i64),
    /// The wall clock gains (or loses) so many millionths.
    ClockDrift(Whom, i64),
    /// Messages take up to so many milliseconds.
    SlowNetwork(u64),
}

/// Names of the kinds, in the order of the table.
pub const KINDS: [&str; 16] = [
    "cut",
    "hold",
    "kill",
    "power-cut",
    "power-cut-all",
    "power-cut-at-sync",
    "failing-sync",
    "full-disk",
    "slow-disk",
    "hung-disk",
    "stalled-tier",
    "slow-tier",
    "lose-tier",
    "clock-jump",
    "clock-drift",
    "slow-network",
];

impl Fault {
    /// Its name, one of [`KINDS`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cut(..) => "cut",
            Self::Hold(..) => "hold",
            Self::Kill(_) => "kill",
            Self::PowerCut(_) => "power-cut",
            Self::PowerCutAll => "power-cut-all",
            Self::PowerCutAtSync(..) => "power-cut-at-sync",
            Self::FailingSync(..) => "failing-sync",
            Self::FullDisk(..) => "full-disk",
            Self::SlowDisk(..) => "slow-disk",
            Self::HungDisk(_) => "hung-disk",
            Self::StalledTier(_) => "stalled-tier",
            Self::SlowTier(..) => "slow-tier",
            Self::LoseTier(_) => "lose-tier",
            Self::ClockJump(..) => "clock-jump",
            Self::ClockDrift(..) => "clock-drift",
            Self::SlowNetwork(_) => "slow-network",
        }
    }
}

/// A fault with its time, counted from the beginning of the phase of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// When it begins.
    pub at: Duration,
    /// When it is taken back.
    pub until: Duration,
    /// What.
    pub fault: Fault,
}

/// Longest time that a fault of the network or a crash lasts.
const MAX_DWELL_MS: u64 = 5_000;
/// The shortest, about half an election timeout.
const MIN_DWELL_MS: u64 = 150;

/// Whether faults of this kind end lives of nodes. After one, replicas may need a read to become alike (see
/// `super::load`); without any, hints alone must make them so.
pub fn ends_lives(kind: &str) -> bool {
    let network = matches!(kind, "cut" | "hold" | "slow-network");
    let clock = matches!(kind, "clock-jump" | "clock-drift");
    let slow = matches!(kind, "slow-disk" | "hung-disk" | "stalled-tier" | "slow-tier");
    !(network || clock || slow)
}

/// The faults of a run whose phase of faults lasts so long, by time. In one seed of three all nodes live
/// through it.
pub fn draw(dice: &mut fastrand::Rng, lasting: Duration) -> Vec<Planned> {
    let spared = dice.u8(0..3) == 0;
    let chosen: BTreeSet<&str> = loop {
        let drawn = KINDS.into_iter().filter(|kind| dice.bool() && !(spared && ends_lives(kind)));
        let drawn: BTreeSet<&str> = drawn.collect();
        if drawn.len() >= 3 {
            break drawn;
        }
    };
    let chosen: Vec<&str> = chosen.into_iter().collect();
    let end = u64::try_from(lasting.as_millis()).unwrap_or(0);
    let mut plan = Vec::new();
    let mut tier_lost = false;
    let mut at = dice.u64(0..500);
    while at < end {
        let kind = dice.choice(&chosen).copied().unwrap_or("cut");
        // A node may lose its tier once: more would be more than two copies can stand, and promised is only
        // that.
        let kind = if kind == "lose-tier" && tier_lost { "cut" } else { kind };
        tier_lost |= kind == "lose-tier";
        let dwell = match dice.u8(0..3) {
            0 => dice.u64(MIN_DWELL_MS..700),
            1 => dice.u64(700..2_000),
            _ => dice.u64(2_000..MAX_DWELL_MS),
        };
        let until = (at + dwell).min(end);
        let fault = fault_of(kind, dice);
        plan.push(Planned { at: Duration::from_millis(at), until: Duration::from_millis(until), fault });
        // Often before the last one is over.
        at += if dice.u8(0..10) < 4 { dice.u64(20..400) } else { dice.u64(400..2_500) };
    }
    plan
}

fn fault_of(kind: &str, dice: &mut fastrand::Rng) -> Fault {
    let whom = whom(dice);
    match kind {
        "hold" => Fault::Hold(shape(dice), whom),
        "kill" => Fault::Kill(whom),
        "power-cut" => Fault::PowerCut(whom),
        "power-cut-all" => Fault::PowerCutAll,
        "power-cut-at-sync" => Fault::PowerCutAtSync(whom, dice.u64(0..60)),
        "failing-sync" => Fault::FailingSync(whom, dice.u64(0..60)),
        "full-disk" => Fault::FullDisk(whom, dice.u64(0..30_000)),
        "slow-disk" => Fault::SlowDisk(whom, dice.u64(5..400)),
        "hung-disk" => Fault::HungDisk(whom),
        "stalled-tier" => Fault::StalledTier(whom),
        "slow-tier" => Fault::SlowTier(whom, dice.u64(50..2_000)),
        "lose-tier" => Fault::LoseTier(whom),
        "clock-jump" => {
            let far = *dice.choice(&[500_i64, 10_000, 3_600_000, 400 * 24 * 3_600_000]).unwrap_or(&500);
            Fault::ClockJump(whom, if dice.bool() { far } else { -far })
        }
        "clock-drift" => Fault::ClockDrift(whom, dice.i64(-500_000..1_000_000)),
        "slow-network" => Fault::SlowNetwork(dice.u64(20..250)),
        _ => Fault::Cut(shape(dice), whom),
    }
}

fn whom(dice: &mut fastrand::Rng) -> Whom {
    match dice.u8(0..10) {
        0..4 => Whom::Leader,
        4 => Whom::HintHolder,
        _ => Whom::Node(1 + dice.u64(0..NODES)),
    }
}

fn shape(dice: &mut fastrand::Rng) -> Shape {
    match dice.u8(0..10) {
        0..3 => Shape::Halves,
        3 | 4 => Shape::Isolate,
        5 => Shape::Ring,
        6 => Shape::Bridge,
        7 => Shape::Mute,
        8 => Shape::Deaf,
        _ => Shape::Link,
    }
}

impl Shape {
    /// The nodes that it leaves without a majority, if it parts all nodes into two sides that do not hear
    /// each other.
    pub fn minority(self, centre: NodeId) -> Option<BTreeSet<NodeId>> {
        let next = NodeId(centre.0 % NODES + 1);
        match self {
            Self::Halves => Some(BTreeSet::from([centre, next])),
            Self::Isolate => Some(BTreeSet::from([centre])),
            _ => None,
        }
    }

    /// The directed links that it cuts.
    pub fn links(self, centre: NodeId) -> BTreeSet<(NodeId, NodeId)> {
        // Positions around the victim, which is 0.
        let place = |node: NodeId| (node.0 + NODES - centre.0) % NODES;
        let cut = |from: u64, to: u64| match self {
            Self::Halves => (from < 2) != (to < 2),
            Self::Isolate => from == 0 || to == 0,
            Self::Ring => (from + NODES - to) % NODES > 1 && (to + NODES - from) % NODES > 1,
            Self::Bridge => from != 0 && to != 0 && (from < 3) != (to < 3),
            Self::Mute => from == 0,
            Self::Deaf => to == 0,
            Self::Link => from + to == 1,
        };
        let pairs = nodes().flat_map(|from| nodes().map(move |to| (from, to)));
        pairs.filter(|(from, to)| from != to && cut(place(*from), place(*to))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_cut_what_their_names_say() {
        let count = |shape: Shape| shape.links(NodeId(4)).len();
        assert_eq!(count(Shape::Halves), 2 * 2 * 3);
        assert_eq!(count(Shape::Isolate), 2 * 4);
        assert_eq!(count(Shape::Ring), 5 * 2);
        assert_eq!(count(Shape::Bridge), 2 * 2 * 2);
        assert_eq!((count(Shape::Mute), count(Shape::Deaf), count(Shape::Link)), (4, 4, 2));
        assert!(Shape::Mute.links(NodeId(4)).iter().all(|(from, _)| *from == NodeId(4)));
        assert!(
            Shape::Bridge.links(NodeId(4)).iter().all(|(from, to)| *from != NodeId(4) && *to != NodeId(4))
        );
    }

    #[test]
    fn a_minority_is_cut_off_from_all_others_and_from_no_one_else() {
        for shape in [Shape::Halves, Shape::Isolate] {
            for centre in nodes() {
                let few = shape.minority(centre).unwrap();
                let parted = nodes().flat_map(|a| nodes().map(move |b| (a, b)));
                let parted: BTreeSet<_> =
                    parted.filter(|(a, b)| few.contains(a) != few.contains(b)).collect();
                assert_eq!(shape.links(centre), parted, "{shape:?} {centre}");
            }
        }
        assert_eq!(Shape::Ring.minority(NodeId(1)), None);
    }

    #[test]
    fn a_seed_is_a_plan_and_seeds_differ_in_their_kinds() {
        let plan = |seed| draw(&mut fastrand::Rng::with_seed(seed), Duration::from_secs(20));
        assert_eq!(plan(7), plan(7));
        let kinds = |seed| plan(seed).iter().map(|planned| planned.fault.kind()).collect::<BTreeSet<_>>();
        let all: BTreeSet<_> = (0..200).flat_map(kinds).collect();
        assert_eq!(all, BTreeSet::from(KINDS), "every kind occurs");
        assert!((0..50).any(|seed| kinds(seed).len() <= 4), "and some seeds see few");
        let spared = (0..300).filter(|seed| !kinds(*seed).into_iter().any(ends_lives)).count();
        assert!((80..140).contains(&spared), "in a third of them no node dies: {spared} of 300");
        for planned in plan(7) {
            assert!(planned.at < planned.until || planned.until == Duration::from_secs(20));
        }
        let overlapping = |seed| plan(seed).windows(2).any(|pair| pair[1].at < pair[0].until);
        assert!((0..20).all(overlapping));
    }
}
