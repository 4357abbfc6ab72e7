//! The network between the nodes of a lab: a proxy for every directed link, a valve for every direction, and the
//! certainty that a fault is in force before anybody counts on it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use kv_types::NodeId;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::link::{Proxy, Valve};
use crate::matrix::{Direction, Faults, Flow};
use crate::probe;

/// How long a cut link must stay silent to count as seen cut.
const BLOCKED_AFTER: Duration = Duration::from_millis(300);
/// How long an open link may take to answer; it returns with the answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);

/// What became of a change of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Directions whose flow changed. Each is in force, by construction of the proxies.
    pub links: usize,
    /// Links that were probed: those whose flow changed in either direction.
    pub probes: usize,
    /// Probes that ended as they should: silent on a cut link, answered on an open one.
    pub as_expected: usize,
    /// When the last direction was in force, before the probes; for those in the same process.
    #[serde(skip)]
    pub since: Option<Instant>,
}

/// All links between some nodes.
#[derive(Debug)]
pub(crate) struct Fabric {
    valves: BTreeMap<Direction, Valve>,
    proxies: BTreeMap<Direction, Proxy>,
}

impl Fabric {
    /// Puts a proxy on every directed link between nodes that listen at these addresses.
    pub(crate) async fn weave(nodes: &BTreeMap<NodeId, SocketAddr>) -> io::Result<Self> {
        let ways = nodes.keys().flat_map(|from| nodes.keys().map(|to| Direction::new(*from, *to)));
        let ways: Vec<_> = ways.filter(|way| way.from != way.to).collect();
        let valves: BTreeMap<_, _> = ways.iter().map(|way| (*way, Valve::new())).collect();
        let mut proxies = BTreeMap::new();
        for way in ways {
            if let (Some(target), Some(there), Some(back)) =
                (nodes.get(&way.to), valves.get(&way), valves.get(&way.reversed()))
            {
                proxies.insert(way, Proxy::start(*target, there.gate(), back.gate()).await?);
            }
        }
        Ok(Self { valves, proxies })
    }

    /// Whom a node dials in place of each other node.
    pub(crate) fn dialled_by(&self, node: NodeId) -> impl Iterator<Item = (NodeId, SocketAddr)> {
        self.proxies
            .iter()
            .filter(move |(way, _)| way.from == node)
            .map(|(way, proxy)| (way.to, proxy.address()))
    }

    /// The faults in force.
    pub(crate) fn faults(&self) -> Faults {
        self.valves
            .iter()
            .fold(Faults::none(), |faults, (way, valve)| faults.with(way.from, way.to, valve.flow()))
    }

    /// Replaces the faults in force by these. They are in force at [`Installed::since`]; the return waits for probes.
    pub(crate) async fn install(&self, faults: &Faults) -> Installed {
        let changed: Vec<Direction> = self
            .valves
            .iter()
            .filter(|(way, valve)| valve.set(faults.flow(**way)))
            .map(|(way, _)| *way)
            .collect();
        let since = Instant::now();
        let (probes, as_expected) = self.probe(&changed, faults).await;
        Installed { links: changed.len(), probes, as_expected, since: Some(since) }
    }

    /// Probes every link with a fault on it, changing nothing: whether the cut still holds.
    pub(crate) async fn verify(&self) -> Installed {
        let faults = self.faults();
        let faulty: Vec<Direction> =
            faults.list().iter().map(|fault| Direction::new(fault.from.0, fault.to.0)).collect();
        let (probes, as_expected) = self.probe(&faulty, &faults).await;
        Installed { links: faulty.len(), probes, as_expected, since: None }
    }

    /// Probes the links that these directions belong to: how many, and how many behave as the faults say.
    async fn probe(&self, ways: &[Direction], faults: &Faults) -> (usize, usize) {
        let probed =
            self.proxies.iter().filter(|(way, _)| ways.contains(way) || ways.contains(&way.reversed()));
        let outcomes = join_all(probed.map(|(way, proxy)| {
            let (there, back) = (faults.flow(*way), faults.flow(way.reversed()));
            let cut = there.swallows() || back.swallows();
            let patience =
                if cut { BLOCKED_AFTER } else { ANSWERED_WITHIN + lateness(there) + lateness(back) };
            async move { probe::answered(proxy.address(), patience).await != cut }
        }))
        .await;
        (outcomes.len(), outcomes.into_iter().filter(|as_expected| *as_expected).count())
    }
}

/// The most a flow adds to a way; a probe needs two ways, or four with its handshake.
fn lateness(flow: Flow) -> Duration {
    match flow {
        Flow::Delay { ms, jitter_ms } => {
            Duration::from_millis(ms.saturating_add(jitter_ms)).saturating_mul(2)
        }
        Flow::Pass | Flow::Swallow => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Something that answers pings: settings and the answer at once, when asked.
    async fn pingable() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut question = [0; 50];
                    stream.read_exact(&mut question).await.unwrap();
                    let _ = stream.write_all(b"\0\0\x08\x06\x01\0\0\0\0quorate?").await;
                    let _ = stream.read(&mut question).await;
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn faults_are_installed_probed_listed_and_healed() {
        let mut nodes = BTreeMap::new();
        for id in 1..=5 {
            nodes.insert(NodeId(id), pingable().await);
        }
        let fabric = Fabric::weave(&nodes).await.unwrap();
        assert_eq!(fabric.dialled_by(NodeId(2)).map(|(to, _)| to.0).collect::<Vec<_>>(), [1, 3, 4, 5]);

        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let cut = Faults::partition(&[ids(&[1, 2]), ids(&[3, 4, 5])]);
        let installed = fabric.install(&cut).await;
        assert_eq!((installed.links, installed.probes, installed.as_expected), (12, 12, 12));
        assert_eq!(fabric.faults(), cut);
        assert_eq!(fabric.install(&cut).await.links, 0, "installing twice changes nothing");

        let healed = fabric.install(&Faults::none()).await;
        assert_eq!((healed.links, healed.probes, healed.as_expected), (12, 12, 12));

        let one_way = Faults::none().with(NodeId(1), NodeId(3), Flow::Swallow);
        let installed = fabric.install(&one_way).await;
        assert_eq!((installed.links, installed.probes, installed.as_expected), (1, 2, 2));
        assert_eq!(fabric.faults().list().len(), 1);
    }
}
