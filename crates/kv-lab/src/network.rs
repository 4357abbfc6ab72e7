//! The network of a lab on the plane that was chosen: what a node dials, and the faults in force.

use std::collections::BTreeSet;

use kv_types::NodeId;
use tokio::process::Command;

use crate::LabError;
use crate::fabric::Fabric;
use crate::installed::{Counters, Installed};
use crate::matrix::{Faults, Flow};
use crate::netns::Netns;
use crate::plane::Plane;

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

    /// Replaces the faults in force by these. They are in force at [`Installed::since`]; the return waits for
    /// probes.
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

#[cfg(test)]
mod tests {
    use super::*;

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
