//! One cluster file for all nodes, read strictly: an unknown key is an error with a suggestion, identity and
//! addresses have no silent defaults, and settings that cannot work together are refused here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_storage::tier::TierKind;
use kv_types::catalogue::Member;
use kv_types::limits::{MAX_DEADLINE, MAX_MEMBERS, MAX_PUBLIC_MESSAGE_BYTES};
use kv_types::{ClusterId, NodeId};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::StartError;
use crate::limits::{BUFFERED_BYTES, CONCURRENT_REQUESTS, CONFIG_BYTES, CONNECTIONS, SNAPSHOT_RATE_MIN};
use crate::near::nearest;

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// This node.
    pub node_id: NodeId,
    /// All nodes, this one included, by id.
    pub members: Vec<Member>,
    /// Whether addresses beyond this machine are allowed although nothing is encrypted and no caller is
    /// authenticated.
    pub insecure: bool,
    /// Where this node keeps its data.
    pub data_dir: PathBuf,
    /// Advertised peer address to the address to dial.
    pub address_map: BTreeMap<String, String>,
    /// `[raft]`.
    pub raft: RaftSettings,
    /// `[storage]`.
    pub storage: StorageSettings,
    /// `[dynamo]`.
    pub dynamo: DynamoSettings,
    /// `[peer]`.
    pub peer: PeerSettings,
    /// `[limits]`.
    pub limits: LimitSettings,
}

impl NodeConfig {
    /// This node's own entry.
    pub fn member(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.id == self.node_id)
    }

    /// Refuses addresses beyond this machine, unless `insecure` allows them.
    pub(crate) fn check_reach(&self) -> Result<(), StartError> {
        if self.insecure {
            return Ok(());
        }
        let addresses = self.members.iter().map(|node| (node.id, &node.client_address, &node.peer_address));
        check_loopback(addresses).map_err(StartError::ConfigInvalid)
    }
}

/// A file for one cluster. Every section but `cluster` and `node` may be left out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    cluster: ClusterSection,
    #[serde(default)]
    node: Vec<NodeSection>,
    #[serde(default)]
    raft: RaftSettings,
    #[serde(default)]
    storage: StorageSettings,
    #[serde(default)]
    dynamo: DynamoSettings,
    #[serde(default)]
    peer: PeerSettings,
    #[serde(default)]
    limits: LimitSettings,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterSection {
    #[serde(deserialize_with = "parsed")]
    id: ClusterId,
    #[serde(default)]
    insecure: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeSection {
    #[serde(deserialize_with = "parsed")]
    id: NodeId,
    client_address: String,
    peer_address: String,
    #[serde(default)]
    zone: String,
    data_dir: Option<PathBuf>,
}

/// `[raft]`: timing of the Raft groups and when their logs are cut.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RaftSettings {
    /// A leader is heard this often.
    #[serde(deserialize_with = "duration")]
    pub heartbeat: Duration,
    /// The shortest election timeout.
    #[serde(deserialize_with = "duration")]
    pub election_min: Duration,
    /// The longest election timeout, and the lease of a leader.
    #[serde(deserialize_with = "duration")]
    pub election_max: Duration,
    /// A snapshot is taken after so many entries at the latest; usually the bytes of the log decide earlier.
    pub snapshot_every: u64,
    /// Entries kept below a snapshot, so that a short absence needs no snapshot.
    pub entries_kept: u64,
    /// Bytes of a snapshot that go to a follower in one message, 1 KiB to 1 MiB.
    #[serde(deserialize_with = "size")]
    pub transfer_chunk_size: u64,
    /// Bytes of a snapshot that go to one follower in a second.
    #[serde(deserialize_with = "size")]
    pub transfer_rate: u64,
    /// Entries of a group that a leader has proposed and not applied, 1 to 65,536; others wait for their
    /// turn, which comes by namespace and client. A namespace with little under way adds up to four entries
    /// and 64 KiB to them at once.
    pub pipeline_entries: u64,
    /// Their bytes, at least 64 KiB.
    #[serde(deserialize_with = "size")]
    pub pipeline_size: u64,
}

impl Default for RaftSettings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(250),
            election_max: Duration::from_millis(500),
            snapshot_every: 4_000_000,
            entries_kept: 50_000,
            transfer_chunk_size: 512 << 10,
            transfer_rate: 32 << 20,
            pipeline_entries: 128,
            pipeline_size: 2 << 20,
        }
    }
}

/// `[storage]`: the log and what lies below it.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageSettings {
    /// Which library keeps the rows of the lower tier. A data directory stays with the one that made it.
    #[serde(deserialize_with = "tier")]
    pub tier: TierKind,
    /// Size of a log segment.
    #[serde(deserialize_with = "size")]
    pub segment_size: u64,
    /// Size of the whole log beyond which writes are refused.
    #[serde(deserialize_with = "size")]
    pub max_log_size: u64,
    /// Size of the memtable beyond which writes are refused.
    #[serde(deserialize_with = "size")]
    pub memtable_size: u64,
    /// Rows of the lower tier that are kept in memory because they are read; 0B for none.
    #[serde(deserialize_with = "size")]
    pub cache_size: u64,
    /// Log written since the last checkpoint at which the next one starts.
    #[serde(deserialize_with = "size")]
    pub checkpoint_log_size: u64,
    /// Time since the last checkpoint after which the next one starts.
    #[serde(deserialize_with = "duration")]
    pub checkpoint_interval: Duration,
    /// Free space of the file system below which writes are refused, but at most an eighth of the file
    /// system; 0B to never ask.
    #[serde(deserialize_with = "size")]
    pub disk_reserve_size: u64,
    /// Bytes of a snapshot of its own state that this node writes in a second; more when its log would be
    /// full before the snapshot is done.
    #[serde(deserialize_with = "size")]
    pub snapshot_rate: u64,
}

impl Default for StorageSettings {
    fn default() -> Self {
        Self {
            tier: TierKind::default(),
            segment_size: 64 << 20,
            max_log_size: 2 << 30,
            memtable_size: 64 << 20,
            cache_size: 64 << 20,
            checkpoint_log_size: 128 << 20,
            checkpoint_interval: Duration::from_secs(30),
            disk_reserve_size: 256 << 20,
            snapshot_rate: 64 << 20,
        }
    }
}

/// `[dynamo]`: available namespaces.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DynamoSettings {
    /// Hints that this node holds for others at most; at the bound it refuses to be a fallback.
    #[serde(deserialize_with = "size")]
    pub max_hints_size: u64,
    /// What the logs may have by which others get single writes that they miss, and resends are told from
    /// new writes; beyond it the oldest are given up.
    #[serde(deserialize_with = "size")]
    pub max_dot_log_size: u64,
    /// Compares with the other replicas which writes are there, and gets what does not come by itself.
    pub compare_clocks: bool,
}

impl Default for DynamoSettings {
    fn default() -> Self {
        Self { max_hints_size: 1 << 30, max_dot_log_size: 256 << 20, compare_clocks: true }
    }
}

/// `[peer]`: what this node thinks of the others.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerSettings {
    /// How often each peer is pinged.
    #[serde(deserialize_with = "duration")]
    pub ping_every: Duration,
    /// Without an answer for this long a peer is suspected.
    #[serde(deserialize_with = "duration")]
    pub suspect_after: Duration,
    /// Without an answer for this long a peer is down.
    #[serde(deserialize_with = "duration")]
    pub down_after: Duration,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            ping_every: Duration::from_millis(100),
            suspect_after: Duration::from_millis(300),
            down_after: Duration::from_secs(3),
        }
    }
}

/// `[limits]`: what this node takes on.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Client requests under way at once; more are refused with `OVERLOADED`. One namespace gets a third at
    /// most, and the more others there are the less, so that none keeps another out.
    pub concurrent_requests: usize,
    /// Bytes of requests and answers held at once, shared in the same way; more are refused with
    /// `OVERLOADED`.
    #[serde(deserialize_with = "size")]
    pub buffered_size: u64,
    /// Client connections open at once; more are closed. Fewer when the limit of open files allows fewer.
    pub connections: usize,
    /// Longest deadline that is honoured; longer ones are capped.
    #[serde(deserialize_with = "duration")]
    pub max_deadline: Duration,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            concurrent_requests: CONCURRENT_REQUESTS,
            buffered_size: BUFFERED_BYTES,
            connections: CONNECTIONS,
            max_deadline: MAX_DEADLINE,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddressMapFile {
    dial: BTreeMap<String, String>,
}

/// What the command line and the environment add to the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Instead of the file's `data_dir`, relative to the working directory.
    pub data_dir: Option<PathBuf>,
    /// A file with the addresses to dial.
    pub address_map: Option<PathBuf>,
}

/// Reads the configuration of one node.
pub fn load(file: &Path, node: NodeId, overrides: &Overrides) -> Result<NodeConfig, StartError> {
    let text = read(file)?;
    let map = match &overrides.address_map {
        Some(path) => {
            let map: AddressMapFile = parse(&path.display(), &read(path)?)?;
            map.dial
        }
        None => BTreeMap::new(),
    };
    let base = file.parent().unwrap_or(Path::new(""));
    resolve(&file.display(), &text, base, node, map, overrides.data_dir.clone())
}

fn resolve(
    source: &dyn fmt::Display,
    text: &str,
    base: &Path,
    node_id: NodeId,
    address_map: BTreeMap<String, String>,
    data_dir: Option<PathBuf>,
) -> Result<NodeConfig, StartError> {
    let file: ClusterFile = parse(source, text)?;
    let refuse = |what: String| StartError::ConfigInvalid(format!("{source}: {what}"));
    check_nodes(&file.node).map_err(refuse)?;
    if !file.cluster.insecure {
        let addresses = file.node.iter().map(|node| (node.id, &node.client_address, &node.peer_address));
        check_loopback(addresses).map_err(refuse)?;
    }
    check_settings(&file).map_err(refuse)?;
    check_address_map(&address_map, &file.node).map_err(refuse)?;
    let own = file.node.iter().find(|node| node.id == node_id).ok_or_else(|| {
        let known: Vec<String> = file.node.iter().map(|node| node.id.to_string()).collect();
        refuse(format!("there is no node {node_id} here, only {}", known.join(", ")))
    })?;
    let data_dir = data_dir.or_else(|| own.data_dir.as_ref().map(|dir| base.join(dir))).ok_or_else(|| {
        refuse(format!("{node_id} has no data_dir: set it in its [[node]] section, or pass --data-dir"))
    })?;
    // What is below asks for the working directory again and again, which may go.
    let data_dir = std::path::absolute(&data_dir).map_err(|error| {
        refuse(format!("the data_dir {} cannot be resolved: {error}", data_dir.display()))
    })?;
    let mut members: Vec<Member> = file
        .node
        .iter()
        .map(|node| Member {
            id: node.id,
            client_address: node.client_address.clone(),
            peer_address: node.peer_address.clone(),
            zone: node.zone.clone(),
        })
        .collect();
    members.sort_by_key(|member| member.id);
    Ok(NodeConfig {
        cluster_id: file.cluster.id,
        node_id,
        members,
        insecure: file.cluster.insecure,
        data_dir,
        address_map,
        raft: file.raft,
        storage: file.storage,
        dynamo: file.dynamo,
        peer: file.peer,
        limits: file.limits,
    })
}

fn check_nodes(nodes: &[NodeSection]) -> Result<(), String> {
    if nodes.is_empty() {
        return Err("there are no [[node]] sections: a cluster has at least one node".into());
    }
    if nodes.len() > MAX_MEMBERS {
        return Err(format!("{} nodes are too many: at most {MAX_MEMBERS}", nodes.len()));
    }
    let mut ids = BTreeMap::new();
    let mut addresses: BTreeMap<&str, NodeId> = BTreeMap::new();
    let mut folders: BTreeMap<&Path, NodeId> = BTreeMap::new();
    for node in nodes {
        if ids.insert(node.id, ()).is_some() {
            return Err(format!("{} is defined twice; ids are unique and never reused", node.id));
        }
        for (key, address) in [("client_address", &node.client_address), ("peer_address", &node.peer_address)]
        {
            check_address(address).map_err(|what| format!("{key} of {}: {what}", node.id))?;
            if let Some(other) = addresses.insert(address, node.id) {
                return Err(format!(
                    "{address} is an address of {other} and of {}: each needs its own",
                    node.id
                ));
            }
        }
        if let Some(dir) = &node.data_dir
            && let Some(other) = folders.insert(dir, node.id)
        {
            return Err(format!("{other} and {} share the data_dir {}", node.id, dir.display()));
        }
    }
    Ok(())
}

fn check_address(address: &str) -> Result<(), String> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    match parts {
        Some((host, port)) if !host.is_empty() && port > 0 => Ok(()),
        _ => Err(format!("`{address}` is not host:port, such as 127.0.0.1:7101")),
    }
}

/// Until callers are authenticated a node serves its own machine only, unless its file says otherwise.
fn check_loopback<'a>(
    nodes: impl IntoIterator<Item = (NodeId, &'a String, &'a String)>,
) -> Result<(), String> {
    for (id, client_address, peer_address) in nodes {
        for (key, address) in [("client_address", client_address), ("peer_address", peer_address)] {
            if !is_loopback(address) {
                return Err(format!(
                    "{key} of {id} is {address}, which other machines may reach, and nothing authenticates callers or \
                     encrypts traffic yet: anyone who reaches it can read and change everything. Use a loopback address \
                     such as 127.0.0.1, or, in a network that you trust, write in the section [cluster]:\n\
                     insecure = true"
                ));
            }
        }
    }
    Ok(())
}

/// Whether only this machine reaches it. Of names only `localhost` is known; what others resolve to may
/// change.
fn is_loopback(address: &str) -> bool {
    let Some((host, _)) = address.rsplit_once(':') else { return false };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|host| host.is_loopback())
}

fn check_settings(file: &ClusterFile) -> Result<(), String> {
    let show = |duration: Duration| humantime::format_duration(duration).to_string();
    let RaftSettings { heartbeat, election_min, election_max, snapshot_every, .. } = file.raft;
    let RaftSettings { transfer_chunk_size, transfer_rate, pipeline_entries, pipeline_size, .. } = file.raft;
    if heartbeat < Duration::from_millis(10) {
        return Err(format!("raft.heartbeat of {} is too short: at least 10ms", show(heartbeat)));
    }
    if election_min * 2 < heartbeat * 5 {
        return Err(format!(
            "raft.election_min of {} is less than 2.5 heartbeats of {}: a leader that misses two would be deposed",
            show(election_min),
            show(heartbeat)
        ));
    }
    if election_max <= election_min {
        return Err(format!(
            "raft.election_max of {} must be above raft.election_min of {}: the difference keeps candidates apart",
            show(election_max),
            show(election_min)
        ));
    }
    if snapshot_every == 0 {
        return Err("raft.snapshot_every must be at least 1".into());
    }
    if !(1 << 10..=1 << 20).contains(&transfer_chunk_size) {
        return Err("raft.transfer_chunk_size must be between 1KiB and 1MiB".into());
    }
    if transfer_rate < transfer_chunk_size {
        return Err("raft.transfer_rate must be at least raft.transfer_chunk_size, in a second".into());
    }
    if !(1..=1 << 16).contains(&pipeline_entries) {
        return Err("raft.pipeline_entries must be between 1 and 65,536".into());
    }
    if pipeline_size < 64 << 10 {
        return Err("raft.pipeline_size must be at least 64KiB".into());
    }
    let StorageSettings { segment_size, max_log_size, memtable_size, snapshot_rate, .. } = file.storage;
    if !(4 << 20..=1 << 30).contains(&segment_size) || segment_size % 4096 != 0 {
        return Err("storage.segment_size must be 4MiB to 1GiB and a multiple of 4KiB".into());
    }
    if max_log_size < 4 * segment_size {
        return Err("storage.max_log_size must hold at least four segments".into());
    }
    // A step of committed entries is applied whole: 1 MiB and the largest value beyond it.
    if memtable_size < 4 << 20 {
        return Err("storage.memtable_size must be at least 4MiB".into());
    }
    if snapshot_rate < SNAPSHOT_RATE_MIN {
        return Err(format!(
            "storage.snapshot_rate must be at least {}MiB, in a second",
            SNAPSHOT_RATE_MIN >> 20
        ));
    }
    let PeerSettings { ping_every, suspect_after, down_after } = file.peer;
    if ping_every < Duration::from_millis(10) || suspect_after < ping_every * 2 || down_after <= suspect_after
    {
        return Err(format!(
            "peer: ping_every {} (at least 10ms), suspect_after {} (at least two pings) and down_after {} (longer) do not fit",
            show(ping_every),
            show(suspect_after),
            show(down_after)
        ));
    }
    check_limits(&file.limits)
}

fn check_limits(limits: &LimitSettings) -> Result<(), String> {
    let show = |duration: Duration| humantime::format_duration(duration).to_string();
    if limits.concurrent_requests == 0 {
        return Err("limits.concurrent_requests must be at least 1".into());
    }
    if limits.connections == 0 {
        return Err("limits.connections must be at least 1".into());
    }
    // One namespace gets a third, and the largest answer has to fit that.
    let least = 3 * MAX_PUBLIC_MESSAGE_BYTES as u64;
    if limits.buffered_size < least {
        return Err(format!("limits.buffered_size must be at least {}MiB", least >> 20));
    }
    let longest = limits.max_deadline;
    if longest > MAX_DEADLINE || longest.is_zero() {
        return Err(format!(
            "limits.max_deadline of {} is not within 1ms to {}",
            show(longest),
            show(MAX_DEADLINE)
        ));
    }
    Ok(())
}

fn check_address_map(map: &BTreeMap<String, String>, nodes: &[NodeSection]) -> Result<(), String> {
    for (advertised, dial) in map {
        if !nodes.iter().any(|node| node.peer_address == *advertised) {
            let known = nodes.iter().map(|node| node.peer_address.as_str());
            let hint = did_you_mean(&nearest(advertised, known, 1));
            return Err(format!(
                "the address map names {advertised}, which is not a peer_address here{hint}"
            ));
        }
        check_address(dial).map_err(|what| format!("the address map for {advertised}: {what}"))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, StartError> {
    let refuse = |what: String| StartError::ConfigInvalid(format!("{}: {what}", path.display()));
    let bytes = std::fs::metadata(path).map_err(|error| refuse(error.to_string()))?.len();
    if bytes > CONFIG_BYTES {
        return Err(refuse(format!("{bytes} bytes are too many for a configuration file")));
    }
    std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))
}

fn parse<'a, T: Deserialize<'a>>(source: &dyn fmt::Display, text: &'a str) -> Result<T, StartError> {
    toml::from_str(text).map_err(|error| {
        let hint = suggestion(error.message()).unwrap_or_default();
        StartError::ConfigInvalid(format!("{source}: {}{hint}", error.to_string().trim_end()))
    })
}

/// From serde's "unknown field `x`, expected one of `a`, `b`".
fn suggestion(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    let mut quoted = rest.split('`');
    let unknown = quoted.next()?;
    let known: Vec<&str> = quoted.skip(1).step_by(2).collect();
    Some(did_you_mean(&nearest(unknown, known, 1)))
}

fn did_you_mean(near: &[&str]) -> String {
    near.first().map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
}

fn parsed<'de, D: Deserializer<'de>, T: std::str::FromStr<Err: fmt::Display>>(
    input: D,
) -> Result<T, D::Error> {
    String::deserialize(input)?.parse().map_err(D::Error::custom)
}

fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    humantime::parse_duration(&text)
        .map_err(|_| D::Error::custom(format!("`{text}` is not a duration, such as 250ms or 5s")))
}

fn tier<'de, D: Deserializer<'de>>(input: D) -> Result<TierKind, D::Error> {
    let text = String::deserialize(input)?;
    let kinds = TierKind::ALL.map(|kind| format!("`{kind}`")).join(" or ");
    TierKind::named(&text).ok_or_else(|| D::Error::custom(format!("`{text}` is not a tier: {kinds}")))
}

fn size<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    let text = String::deserialize(input)?;
    parse_size(&text).ok_or_else(|| {
        D::Error::custom(format!("`{text}` is not a size, such as 64MiB (units: B, KiB, MiB, GiB)"))
    })
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &str = r#"
        [cluster]
        id = "0123456789abcdef0123456789abcdef"
        [[node]]
        id = "n1"
        client_address = "127.0.0.1:7101"
        peer_address = "127.0.0.1:7201"
        data_dir = "data/n1"
        [[node]]
        id = "n2"
        client_address = "127.0.0.1:7102"
        peer_address = "127.0.0.1:7202"
    "#;

    fn read(text: &str, node: u64) -> Result<NodeConfig, String> {
        resolve(&"test.toml", text, Path::new("/etc/quorate"), NodeId(node), BTreeMap::new(), None)
            .map_err(|error| error.to_string())
    }

    fn refused(more: &str) -> String {
        read(&format!("{NODES}\n{more}"), 1).unwrap_err()
    }

    #[test]
    fn the_least_file_has_defaults_and_resolves_its_folder() {
        let config = read(NODES, 1).unwrap();
        assert_eq!(config.data_dir, Path::new("/etc/quorate/data/n1"));
        assert_eq!(config.members.len(), 2);
        assert_eq!(config.raft.election_max, Duration::from_millis(500));
        assert_eq!(config.member().unwrap().client_address, "127.0.0.1:7101");
    }

    #[test]
    fn other_machines_are_let_in_only_when_the_file_says_so() {
        let with = |cluster: &str, client: &str, peer: &str| {
            let text = format!(
                "[cluster]\nid = \"0123456789abcdef0123456789abcdef\"\n{cluster}\n[[node]]\nid = \"n1\"\n\
                 client_address = \"{client}\"\npeer_address = \"{peer}\"\ndata_dir = \"d\""
            );
            read(&text, 1)
        };
        for (client, peer) in [("127.0.0.1:1", "127.9.9.9:2"), ("localhost:1", "[::1]:2")] {
            assert!(with("", client, peer).is_ok(), "{client} {peer}");
        }
        for (client, peer, key) in [
            ("0.0.0.0:1", "127.0.0.1:2", "client_address of n1 is 0.0.0.0:1"),
            ("127.0.0.1:1", "10.0.0.1:2", "peer_address of n1 is 10.0.0.1:2"),
            ("[::]:1", "127.0.0.1:2", "client_address"),
            ("localhost.example.com:1", "127.0.0.1:2", "client_address"),
        ] {
            for cluster in ["", "insecure = false"] {
                let message = with(cluster, client, peer).unwrap_err();
                assert!(message.contains(key) && message.ends_with("\ninsecure = true"), "{message}");
            }
            assert!(with("insecure = true", client, peer).unwrap().insecure);
        }
    }

    #[test]
    fn settings_are_read_with_their_units() {
        let more = "[raft]\nheartbeat = \"50ms\"\nelection_min=\"1s\"\nelection_max=\"2s\"\n[storage]\nsegment_size = \"16MiB\"";
        let config = read(&format!("{NODES}\n{more}"), 1).unwrap();
        assert_eq!(config.raft.heartbeat, Duration::from_millis(50));
        assert_eq!((config.storage.segment_size, config.storage.tier), (16 << 20, TierKind::Fjall));
        let more = "tier = \"sled\"\ndisk_reserve_size = \"0B\"\nsnapshot_rate = \"1MiB\"";
        let storage = read(&format!("{NODES}\n[storage]\n{more}"), 1).unwrap().storage;
        assert_eq!(
            (storage.tier, storage.disk_reserve_size, storage.snapshot_rate),
            (TierKind::Sled, 0, 1 << 20)
        );
        assert_eq!((parse_size("1GiB"), parse_size("7 B")), (Some(1 << 30), Some(7)));
        for wrong in ["", "7", "MiB", "7MB", "-7B", "99999999999999GiB"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn unknown_keys_are_named_with_what_was_meant() {
        let message = refused("[raft]\nheartbeta = \"50ms\"");
        assert!(message.starts_with("CONFIG_INVALID"), "{message}");
        assert!(message.contains("did you mean `heartbeat`?") && message.contains("line"), "{message}");
        assert!(refused("[rafd]\n").contains("did you mean `raft`?"));
        assert!(!refused("[zzz]\n").contains("did you mean"));
    }

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        for (more, words) in [
            ("[raft]\nheartbeat = \"200ms\"", "2.5 heartbeats"),
            ("[raft]\nelection_max = \"250ms\"", "must be above"),
            ("[raft]\ntransfer_chunk_size = \"2MiB\"", "between 1KiB and 1MiB"),
            ("[raft]\npipeline_entries = 0", "between 1 and 65,536"),
            ("[raft]\npipeline_entries = 65537", "between 1 and 65,536"),
            ("[raft]\npipeline_size = \"4KiB\"", "at least 64KiB"),
            ("[raft]\ntransfer_rate = \"100KiB\"", "at least raft.transfer_chunk_size"),
            ("[raft]\nheartbeat = 100", "invalid type"),
            ("[raft]\nheartbeat = \"fast\"", "is not a duration"),
            ("[storage]\nsegment_size = \"64MB\"", "is not a size"),
            ("[storage]\ntier = \"rocks\"", "`rocks` is not a tier: `fjall` or `sled`"),
            ("[storage]\nsegment_size = \"1B\"", "segment_size"),
            ("[storage]\nmemtable_size = \"1MiB\"", "memtable_size must be at least 4MiB"),
            ("[storage]\nsnapshot_rate = \"1023KiB\"", "snapshot_rate must be at least 1MiB"),
            ("[storage]\ndisk_reserve_size = 0", "invalid type"),
            ("[peer]\nsuspect_after = \"100ms\"", "do not fit"),
            ("[limits]\nconcurrent_requests = 0", "at least 1"),
            ("[limits]\nmax_deadline = \"2h\"", "max_deadline"),
            ("[limits]\nconnections = 0", "at least 1"),
            ("[limits]\nbuffered_size = \"47MiB\"", "at least 48MiB"),
            ("[[node]]\nid = \"n1\"\nclient_address = \"a:1\"\npeer_address = \"a:2\"", "twice"),
            (
                "[[node]]\nid = \"n3\"\nclient_address = \"127.0.0.1:7101\"\npeer_address = \"a:2\"",
                "each needs its own",
            ),
            ("[[node]]\nid = \"n3\"\nclient_address = \"a\"\npeer_address = \"a:2\"", "is not host:port"),
            ("[[node]]\nid = \"x\"\nclient_address = \"a:1\"\npeer_address = \"a:2\"", "is not a node"),
            (
                "[[node]]\nid = \"n3\"\nclient_address = \"a:1\"\npeer_address = \"a:2\"\ndata_dir=\"data/n1\"",
                "share",
            ),
        ] {
            let message = refused(more);
            assert!(message.starts_with("CONFIG_INVALID") && message.contains(words), "{more}: {message}");
        }
        assert!(read("[cluster]\nid = \"12\"", 1).unwrap_err().contains("32 hexadecimal digits"));
        assert!(read(NODES, 3).unwrap_err().contains("no node n3 here, only n1, n2"));
        assert!(read(NODES, 2).unwrap_err().contains("--data-dir"));
    }

    #[test]
    fn an_address_map_names_known_peers() {
        let with = |from: &str, to: &str| {
            let map = BTreeMap::from([(from.to_owned(), to.to_owned())]);
            resolve(&"test.toml", NODES, Path::new(""), NodeId(1), map, None)
                .map_err(|error| error.to_string())
        };
        assert!(with("127.0.0.1:7202", "127.0.0.1:45111").is_ok());
        assert!(with("127.0.0.1:7203", "127.0.0.1:45111").unwrap_err().contains("did you mean"));
        assert!(with("127.0.0.1:7202", "nowhere").unwrap_err().contains("is not host:port"));
    }

    #[test]
    fn the_reference_file_parses_and_states_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cluster-configs/five-node.toml");
        let config = load(&path, NodeId(5), &Overrides::default()).unwrap();
        assert_eq!(config.members.len(), 5);
        let text = std::fs::read_to_string(&path).unwrap();
        let shown = |what: String| assert!(text.contains(&what), "{what} is missing in {}", path.display());
        // What the file states in its sections is what a node takes when they are left out.
        let defaults = read(NODES, 1).unwrap();
        assert_eq!(format!("{:?}", config.raft), format!("{:?}", defaults.raft));
        assert_eq!(format!("{:?}", config.storage), format!("{:?}", defaults.storage));
        assert_eq!(format!("{:?}", config.dynamo), format!("{:?}", defaults.dynamo));
        assert_eq!(format!("{:?}", config.peer), format!("{:?}", defaults.peer));
        assert_eq!(format!("{:?}", config.limits), format!("{:?}", defaults.limits));
        for key in [
            "heartbeat",
            "segment_size",
            "max_hints_size",
            "max_dot_log_size",
            "compare_clocks",
            "ping_every",
            "concurrent_requests",
        ] {
            shown(format!("\n{key} = "));
        }
        for key in ["disk_reserve_size", "snapshot_rate"] {
            shown(format!("\n{key} = "));
        }
    }
}
