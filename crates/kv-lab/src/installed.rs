//! What makes a change of faults count: it is probed over the very links it is about, and a plane that drops
//! packets says how many.

use std::collections::BTreeSet;
use std::time::Duration;

use kv_types::NodeId;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::link::time_for;
use crate::matrix::{Direction, Faults, Flow};
use crate::probe::{QUESTION_BYTES, Seen};

/// How long a cut link must stay silent to count as seen cut.
const BLOCKED_AFTER: Duration = Duration::from_millis(300);
/// How long an open link may take to answer; it returns with the answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// A server's settings, its answer to the ping and its answer to our settings, roughly: what comes back on a
/// slow link.
const ANSWER_BYTES: usize = 100;
/// Timers may fire this much early against the clock that measures them.
const SLACK: Duration = Duration::from_millis(2);

/// Packets that the filter dropped since the lab started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Between nodes that are cut.
    pub cut_packets: u64,
    /// Lost at random.
    pub lost_packets: u64,
}

/// What became of a change of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Installed {
    /// Directions whose flow changed. Each is in force, by construction of the plane.
    pub links: usize,
    /// Links that were probed: those whose flow changed in either direction. An open link to a node that does
    /// not run is not, for it would not answer.
    pub probes: usize,
    /// Probes that ended as they should: silent on a cut link, reset on one that is reset, answered on an
    /// open one, and not too early on a late one.
    pub as_expected: usize,
    /// Of these, how many saw a reset.
    #[serde(default)]
    pub resets: usize,
    /// The shortest round trip that was measured on a link that is late or slow.
    #[serde(default)]
    pub round_trip_ms: Option<u64>,
    /// Packets that the filter dropped while the probes ran; only where there is a filter with something to
    /// drop.
    #[serde(default)]
    pub dropped: Option<u64>,
    /// When the last direction was in force, before the probes; for those in the same process.
    #[serde(skip)]
    pub since: Option<Instant>,
}

impl Installed {
    /// Whether this counts: something was probed, everything behaved, and a filter that was to drop packets
    /// dropped some.
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
    /// What a probe that asks one way and is answered the other way is to see; `None` if that is left to
    /// chance, or to a node that does not run.
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
        Flow::Slow { bytes_per_second } => time_for(bytes, bytes_per_second),
        _ => Duration::ZERO,
    }
}

/// The most a flow adds to so many bytes, with room: what comes first may come in several pieces.
fn most(flow: Flow, bytes: usize) -> Duration {
    match flow {
        Flow::Delay { ms, jitter_ms } => {
            Duration::from_millis(ms.saturating_add(jitter_ms)).saturating_mul(2)
        }
        Flow::Slow { bytes_per_second } => time_for(4 * bytes, bytes_per_second),
        _ => Duration::ZERO,
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
        assert_eq!(Expected::on(WAY, &Faults::none(), &BTreeSet::new()), None, "it would not answer");
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
}
