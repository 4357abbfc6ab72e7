//! Where faults of the network are made, and what makes one count: every change is probed over the very links it is about,
//! and a plane that drops packets says how many.

use std::collections::BTreeSet;
use std::time::Duration;

use kv_types::NodeId;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::Instant;

use crate::LabError;
use crate::fabric::Fabric;
use crate::matrix::{Direction, Faults, Flow};
use crate::netns::{Counters, Netns};
use crate::probe::{QUESTION_BYTES, Seen};

/// How long a cut link must stay silent to count as seen cut.
const BLOCKED_AFTER: Duration = Duration::from_millis(300);
/// How long an open link may take to answer; it returns with the answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// A server's settings, its answer to the ping and its answer to our settings, roughly: what comes back on a slow link.
const ANSWER_BYTES: usize = 100;
/// Timers may fire this much early against the clock that measures them.
const SLACK: Duration = Duration::from_millis(2);

/// Where faults of the network are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plane {
    /// In a proxy on every link between nodes: needs nothing, and knows connections, not packets.
    #[default]
    Proxies,
    /// In a packet filter between network namespaces: needs root, `ip` and `nft` ([`crate::netns::available`]), and knows
    /// packets, not connections.
    Netns,
}

impl Plane {
    /// Refuses faults that this plane cannot make.
    pub fn check(self, faults: &Faults) -> Result<(), LabError> {
        let other_plane = |what: String| Err(LabError::WrongPlane { what, plane: self });
        if self == Self::Proxies && !faults.unplugged().is_empty() {
            return other_plane("the loss of a carrier".into());
        }
        let foreign = faults.list().into_iter().find(|fault| match fault.flow {
            Flow::Pass | Flow::Swallow => false,
            Flow::Delay { .. } | Flow::Slow { .. } | Flow::Reset => self == Self::Netns,
            Flow::Loss { .. } => self == Self::Proxies,
        });
        match foreign {
            Some(fault) => other_plane(format!("{} from {} to {}", fault.flow, fault.from, fault.to)),
            None => faults.list().iter().find_map(|fault| unreasonable(fault.flow)).map_or(Ok(()), Err),
        }
    }
}

/// A flow that no plane can make.
fn unreasonable(flow: Flow) -> Option<LabError> {
    let what = match flow {
        Flow::Loss { percent: 0 | 100.. } => "a loss is of 1 to 99 percent",
        Flow::Slow { bytes_per_second: 0 } => "a slow link carries at least one byte a second",
        _ => return None,
    };
    Some(LabError::Usage(what.into()))
}

impl std::fmt::Display for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Proxies => "proxies",
            Self::Netns => "netns",
        })
    }
}

/// What became of a change of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Installed {
    /// Directions whose flow changed. Each is in force, by construction of the plane.
    pub links: usize,
    /// Links that were probed: those whose flow changed in either direction. An open link to a node that does not run is
    /// not, for nobody would answer.
    pub probes: usize,
    /// Probes that ended as they should: silent on a cut link, reset on one that is reset, answered on an open one, and not
    /// too early on a late one.
    pub as_expected: usize,
    /// Of these, how many saw a reset.
    #[serde(default)]
    pub resets: usize,
    /// The shortest round trip that was measured on a link that is late or slow.
    #[serde(default)]
    pub round_trip_ms: Option<u64>,
    /// Packets that the filter dropped while the probes ran; only where there is a filter with something to drop.
    #[serde(default)]
    pub dropped: Option<u64>,
    /// When the last direction was in force, before the probes; for those in the same process.
    #[serde(skip)]
    pub since: Option<Instant>,
}

impl Installed {
    /// Whether this counts: something was probed, everything behaved, and a filter that was to drop packets dropped some.
    pub fn is_proven(&self) -> bool {
        self.probes > 0 && self.as_expected == self.probes && self.dropped != Some(0)
    }

    /// Adds what became of one probe.
    pub(crate) fn add(&mut self, expected: Expected, seen: Seen) {
        self.probes += 1;
        self.as_expected += usize::from(expected.is_met_by(seen));
        self.resets += usize::from(seen == Seen::Reset);
        if let (Expected::Answer { not_before, .. }, Seen::Answered(after)) = (expected, seen)
            && !not_before.is_zero()
        {
            let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            self.round_trip_ms = Some(self.round_trip_ms.map_or(after, |shortest| shortest.min(after)));
        }
    }
}

/// What a probe is to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// An answer, not before the link's lateness.
    Answer {
        /// The least a round trip takes.
        not_before: Duration,
        /// The most.
        within: Duration,
    },
    /// The end of the connection.
    Reset,
    /// No answer.
    Silence,
}

impl Expected {
    /// What a probe that asks one way and is answered the other way is to see; `None` if that is left to chance, or to a
    /// node that does not run.
    pub(crate) fn on(way: Direction, faults: &Faults, serving: &BTreeSet<NodeId>) -> Option<Self> {
        let (there, back) = (faults.flow(way), faults.flow(way.reversed()));
        let unplugged = [way.from, way.to].iter().any(|node| faults.unplugged().contains(node));
        let (not_before, extra) = (
            least(there, QUESTION_BYTES) + least(back, 1),
            most(there, QUESTION_BYTES) + most(back, ANSWER_BYTES),
        );
        match () {
            () if there.resets() || back.resets() => Some(Self::Reset),
            () if there.swallows() || back.swallows() || unplugged => Some(Self::Silence),
            () if lossy(there) || lossy(back) || !serving.contains(&way.to) => None,
            () => Some(Self::Answer { not_before, within: ANSWERED_WITHIN + extra }),
        }
    }

    /// How long a probe waits.
    pub(crate) fn patience(self) -> Duration {
        match self {
            Self::Answer { within, .. } => within,
            Self::Reset => ANSWERED_WITHIN,
            Self::Silence => BLOCKED_AFTER,
        }
    }

    fn is_met_by(self, seen: Seen) -> bool {
        match (self, seen) {
            (Self::Answer { not_before, .. }, Seen::Answered(after)) => after + SLACK >= not_before,
            (Self::Reset, Seen::Reset) => true,
            // Without a carrier the kernel may say so at once; a reset would have crossed the cut.
            (Self::Silence, Seen::Silent | Seen::Refused) => true,
            _ => false,
        }
    }
}

fn lossy(flow: Flow) -> bool {
    matches!(flow, Flow::Loss { .. })
}

/// The least a flow adds to so many bytes.
fn least(flow: Flow, bytes: usize) -> Duration {
    match flow {
        Flow::Delay { ms, jitter_ms } => Duration::from_millis(ms.saturating_sub(jitter_ms)),
        Flow::Slow { bytes_per_second } => crate::link::time_for(bytes, bytes_per_second),
        _ => Duration::ZERO,
    }
}

/// The most a flow adds to so many bytes, with room: what comes first may come in several pieces.
fn most(flow: Flow, bytes: usize) -> Duration {
    match flow {
        Flow::Delay { ms, jitter_ms } => {
            Duration::from_millis(ms.saturating_add(jitter_ms)).saturating_mul(2)
        }
        Flow::Slow { bytes_per_second } => crate::link::time_for(4 * bytes, bytes_per_second),
        _ => Duration::ZERO,
    }
}

/// The network of a lab, on either plane.
#[derive(Debug)]
pub(crate) enum Network {
    Proxies(Fabric),
    Netns(Netns),
}

impl Network {
    pub(crate) fn plane(&self) -> Plane {
        match self {
            Self::Proxies(_) => Plane::Proxies,
            Self::Netns(_) => Plane::Netns,
        }
    }

    /// Where clients reach a node, and where peers would without proxies.
    pub(crate) fn hosts(&self, node: NodeId) -> (std::net::Ipv4Addr, std::net::Ipv4Addr) {
        match self {
            Self::Proxies(_) => (std::net::Ipv4Addr::LOCALHOST, std::net::Ipv4Addr::LOCALHOST),
            Self::Netns(netns) => (netns.client_host(node), netns.peer_host(node)),
        }
    }

    /// A command that runs a program where a node lives.
    pub(crate) fn command(&self, node: NodeId, program: &std::path::Path) -> Command {
        match self {
            Self::Proxies(_) => Command::new(program),
            Self::Netns(netns) => netns.command(node, program),
        }
    }

    /// Whom a node dials in place of each other node.
    pub(crate) fn dialled_by(&self, node: NodeId) -> Vec<(NodeId, std::net::SocketAddr)> {
        match self {
            Self::Proxies(fabric) => fabric.dialled_by(node).collect(),
            Self::Netns(_) => Vec::new(),
        }
    }

    /// The faults in force.
    pub(crate) fn faults(&self) -> Faults {
        match self {
            Self::Proxies(fabric) => fabric.faults(),
            Self::Netns(netns) => netns.faults(),
        }
    }

    /// Replaces the faults in force by these. They are in force at [`Installed::since`]; the return waits for probes.
    pub(crate) async fn install(
        &self,
        faults: &Faults,
        serving: &BTreeSet<NodeId>,
    ) -> Result<Installed, LabError> {
        self.plane().check(faults)?;
        match self {
            Self::Proxies(fabric) => Ok(fabric.install(faults, serving).await),
            Self::Netns(netns) => netns.install(faults, serving).await,
        }
    }

    /// Probes every link with a fault on it, changing nothing: whether the cut still holds.
    pub(crate) async fn verify(&self, serving: &BTreeSet<NodeId>) -> Result<Installed, LabError> {
        match self {
            Self::Proxies(fabric) => Ok(fabric.verify(serving).await),
            Self::Netns(netns) => netns.verify(serving).await,
        }
    }

    /// What was dropped since the lab started; none where nothing counts packets.
    pub(crate) async fn counters(&self) -> Result<Option<Counters>, LabError> {
        match self {
            Self::Proxies(_) => Ok(None),
            Self::Netns(netns) => netns.counters().await.map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAY: Direction = Direction { from: NodeId(1), to: NodeId(2) };

    fn expected(there: Flow, back: Flow) -> Option<Expected> {
        let faults = Faults::none().with(NodeId(1), NodeId(2), there).with(NodeId(2), NodeId(1), back);
        Expected::on(WAY, &faults, &BTreeSet::from([NodeId(2)]))
    }

    #[test]
    fn a_probe_expects_what_the_flows_of_both_ways_say() {
        assert_eq!(expected(Flow::Pass, Flow::Swallow), Some(Expected::Silence));
        assert_eq!(expected(Flow::Swallow, Flow::Reset), Some(Expected::Reset));
        assert_eq!(expected(Flow::Loss { percent: 9 }, Flow::Pass), None);
        let late = expected(Flow::Delay { ms: 80, jitter_ms: 20 }, Flow::Delay { ms: 10, jitter_ms: 30 });
        let Some(Expected::Answer { not_before, within }) = late else { panic!("{late:?}") };
        assert_eq!(not_before, Duration::from_millis(60));
        assert!(within > ANSWERED_WITHIN);
        let slow = expected(Flow::Slow { bytes_per_second: 100 }, Flow::Pass).unwrap();
        assert!(
            !slow.is_met_by(Seen::Answered(Duration::from_millis(400))),
            "fifty bytes take half a second"
        );
        assert!(slow.is_met_by(Seen::Answered(Duration::from_millis(510))));

        let unplugged = Faults::none().with_unplugged(NodeId(1));
        assert_eq!(Expected::on(WAY, &unplugged, &BTreeSet::new()), Some(Expected::Silence));
        assert_eq!(Expected::on(WAY, &Faults::none(), &BTreeSet::new()), None, "nobody would answer");
    }

    #[test]
    fn only_what_was_seen_is_proven() {
        let answer = Expected::Answer { not_before: Duration::ZERO, within: ANSWERED_WITHIN };
        for (expected, seen, met) in [
            (answer, Seen::Answered(Duration::ZERO), true),
            (answer, Seen::Silent, false),
            (answer, Seen::Reset, false),
            (Expected::Reset, Seen::Reset, true),
            (Expected::Reset, Seen::Silent, false),
            (Expected::Reset, Seen::Refused, false),
            (Expected::Silence, Seen::Silent, true),
            (Expected::Silence, Seen::Reset, false),
            (Expected::Silence, Seen::Answered(Duration::ZERO), false),
        ] {
            let mut installed = Installed { links: 1, ..Installed::default() };
            assert!(!installed.is_proven(), "nothing was probed");
            installed.add(expected, seen);
            assert_eq!(installed.is_proven(), met, "{expected:?} {seen:?}");
            assert!(!Installed { dropped: Some(0), ..installed }.is_proven());
        }
    }

    #[test]
    fn each_plane_refuses_what_it_cannot_do() {
        let one = |flow| Faults::none().with(NodeId(1), NodeId(2), flow);
        for flow in [Flow::Reset, Flow::Delay { ms: 1, jitter_ms: 0 }, Flow::Slow { bytes_per_second: 9 }] {
            assert!(Plane::Proxies.check(&one(flow)).is_ok());
            assert!(matches!(Plane::Netns.check(&one(flow)), Err(LabError::WrongPlane { .. })));
        }
        let loss = one(Flow::Loss { percent: 30 });
        assert!(Plane::Netns.check(&loss).is_ok());
        let error = Plane::Proxies.check(&loss).unwrap_err();
        assert!(error.to_string().contains("loss of 30%"), "{error}");
        assert!(Plane::Netns.check(&one(Flow::Loss { percent: 100 })).is_err());
        let unplugged = Faults::none().with_unplugged(NodeId(1));
        assert!(Plane::Netns.check(&unplugged).is_ok() && Plane::Proxies.check(&unplugged).is_err());
    }
}
