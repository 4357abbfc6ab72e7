//! `[cluster]`: the nodes of a scenario, the server they run and the network between them; modes and lengths
//! of time as files say them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `[cluster]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// How many nodes.
    pub nodes: u64,
    /// Which server.
    pub server: Server,
    /// Where faults of the network are made.
    pub plane: Plane,
    /// Tables of the nodes' configuration: small limits make rare paths common.
    pub settings: toml::Table,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { nodes: 5, server: Server::Kvd, plane: Plane::Proxy, settings: toml::Table::new() }
    }
}

/// Which server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Server {
    /// As it is shipped.
    Kvd,
    /// On a disk and a clock that can be broken.
    KvdFaulty,
}

/// Where faults of the network are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plane {
    /// Proxies; no root needed.
    Proxy,
    /// Network namespaces and a packet filter; needs root.
    Netns,
}

/// A side of CAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Linearizable; refuses in a minority.
    Strong,
    /// Answers everywhere; keeps conflicts.
    Available,
}

/// A length of time with its unit: `8s`, `500ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Span(pub(super) Duration);

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        humantime::parse_duration(&text)
            .map(Self)
            .map_err(|why| format!("{text:?} is no time: {why}; write it like \"8s\" or \"500ms\""))
    }
}
