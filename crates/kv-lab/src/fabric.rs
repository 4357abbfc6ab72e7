//! The network between the nodes of a lab: a proxy for every directed link, a valve for every direction, and
//! the certainty that a fault is in force before anybody counts on it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;

use futures_util::future::join_all;
use kv_types::NodeId;
use tokio::time::Instant;

use crate::installed::{Expected, Installed};
use crate::link::{Proxy, Valve};
use crate::matrix::{Direction, Faults};
use crate::probe;

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

    /// Replaces the faults in force by these. They are in force at [`Installed::since`]; the return waits for
    /// probes.
    pub(crate) async fn install(&self, faults: &Faults, serving: &BTreeSet<NodeId>) -> Installed {
        let changed: Vec<Direction> = self
            .valves
            .iter()
            .filter(|(way, valve)| valve.set(faults.flow(**way)))
            .map(|(way, _)| *way)
            .collect();
        let since = Instant::now();
        Installed { since: Some(since), ..self.probe(&changed, faults, serving).await }
    }

    /// Probes every link with a fault on it, changing nothing: whether the cut still holds.
    pub(crate) async fn verify(&self, serving: &BTreeSet<NodeId>) -> Installed {
        let faults = self.faults();
        let faulty: Vec<Direction> =
            faults.list().iter().map(|fault| Direction::new(fault.from.0, fault.to.0)).collect();
        self.probe(&faulty, &faults, serving).await
    }

    /// Probes the links that these directions belong to.
    async fn probe(&self, ways: &[Direction], faults: &Faults, serving: &BTreeSet<NodeId>) -> Installed {
        let probes =
            self.proxies
                .iter()
                .filter(|(way, _)| ways.contains(way) || ways.contains(&way.reversed()))
                .filter_map(|(way, proxy)| Some((Expected::on(*way, faults, serving)?, proxy.address())))
                .map(|(expected, address)| async move {
                    (expected, probe::ask(address, expected.patience()).await)
                });
        let mut installed = Installed { links: ways.len(), ..Installed::default() };
        for (expected, seen) in join_all(probes).await {
            installed.add(expected, seen);
        }
        installed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Flow;
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
        let all = nodes.keys().copied().collect();
        let fabric = Fabric::weave(&nodes).await.unwrap();
        assert_eq!(fabric.dialled_by(NodeId(2)).map(|(to, _)| to.0).collect::<Vec<_>>(), [1, 3, 4, 5]);

        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let cut = Faults::partition(&[ids(&[1, 2]), ids(&[3, 4, 5])]);
        let installed = fabric.install(&cut, &all).await;
        assert_eq!((installed.links, installed.probes, installed.as_expected), (12, 12, 12));
        assert_eq!(fabric.faults(), cut);
        assert_eq!(fabric.install(&cut, &all).await.links, 0, "installing twice changes nothing");

        let healed = fabric.install(&Faults::none(), &all).await;
        assert_eq!((healed.links, healed.probes, healed.as_expected), (12, 12, 12));

        let one_way = Faults::none().with(NodeId(1), NodeId(3), Flow::Swallow);
        let installed = fabric.install(&one_way, &all).await;
        assert_eq!((installed.links, installed.probes, installed.as_expected), (1, 2, 2));
        assert_eq!(fabric.faults().list().len(), 1);

        let reset = Faults::none().with(NodeId(1), NodeId(3), Flow::Reset);
        let installed = fabric.install(&reset, &all).await;
        assert_eq!((installed.as_expected, installed.resets), (2, 2));
        let late = Faults::none().with(NodeId(1), NodeId(3), Flow::Delay { ms: 50, jitter_ms: 10 });
        let installed = fabric.install(&late, &all).await;
        assert!(installed.is_proven() && installed.round_trip_ms >= Some(40), "{installed:?}");
        let others = BTreeSet::from([NodeId(1), NodeId(2)]);
        let healed = fabric.install(&Faults::none(), &others).await;
        assert_eq!((healed.links, healed.probes), (1, 1), "a node that does not run is not asked");
    }
}
