//! The planes on which faults of the network are made: what each knows, and what it needs.

use serde::{Deserialize, Serialize};

/// Where faults of the network are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plane {
    /// In a proxy on every link between nodes: needs nothing, and knows connections, not packets.
    #[default]
    Proxies,
    /// In a packet filter between network namespaces: needs root, `ip` and `nft`
    /// ([`crate::netns::available`]), and knows packets, not connections.
    Netns,
}

impl std::fmt::Display for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Proxies => "proxies",
            Self::Netns => "netns",
        })
    }
}
