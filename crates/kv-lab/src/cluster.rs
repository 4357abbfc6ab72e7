//! A cluster of real `kvd` processes on this machine, and the only owner of their lives: it writes their files, starts
//! them behind the proxies of the fabric, kills and restarts them, and holds a pipe to each as a lifeline, so that they
//! end when this process does, however it ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use kv_client::{Client, ClientOptions, Topology};
use kv_types::{GroupId, NodeId};
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::fabric::{Fabric, Installed};
use crate::matrix::{Faults, Flow};
use crate::ports::{self, PEER_OFFSET};
use crate::{LabError, server};

/// Nodes of one lab at most: all data groups have at most five voters, and a laptop is a laptop.
pub const MAX_NODES: u64 = 9;
/// How long a node may take to listen.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long the cluster may take to elect its leaders.
const SERVES_WITHIN: Duration = Duration::from_secs(30);
/// How long a node may take to stop by itself before it is killed.
const STOPS_WITHIN: Duration = Duration::from_secs(5);
/// How often a condition that has no event is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How much of a log is shown when its node ended.
const TAIL_LINES: usize = 12;

/// What a lab shall be.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// How many nodes, n1 and up.
    pub nodes: u64,
    /// Node *i* serves clients on `port_base + i` and peers on `port_base + 100 + i`.
    pub port_base: u16,
    /// The lab's folder.
    pub dir: PathBuf,
    /// The server program; otherwise it is looked for ([`crate::server::find`]).
    pub kvd: Option<PathBuf>,
    /// Go on with the data of an earlier lab in the same folder.
    pub keep: bool,
    /// TOML tables for every node's configuration, such as `[storage]`.
    pub settings: String,
}

impl LabOptions {
    /// Five nodes from port 7100, with fresh data.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { nodes: 5, port_base: 7100, dir: dir.into(), kvd: None, keep: false, settings: String::new() }
    }
}

/// A running lab. Dropping it kills its nodes; [`Lab::stop`] lets them finish.
#[derive(Debug)]
pub struct Lab {
    options: LabOptions,
    server: PathBuf,
    fabric: Fabric,
    /// What runs. A node that was killed is not in it.
    processes: Mutex<BTreeMap<NodeId, Child>>,
    /// Changes of faults are one after the other; the value is since when there are any.
    faulty_since: Mutex<Option<Instant>>,
}

/// What a node says when it listens.
#[derive(Debug, Deserialize)]
struct Ready {
    pid: u32,
}

impl Lab {
    /// Starts a lab; returns when the cluster serves.
    pub async fn start(options: LabOptions) -> Result<Self, LabError> {
        let lab = Self::spawn(options).await?;
        lab.serving().await?;
        Ok(lab)
    }

    /// Starts the processes; returns when each listens.
    pub(crate) async fn spawn(options: LabOptions) -> Result<Self, LabError> {
        if !(1..=MAX_NODES).contains(&options.nodes) {
            return Err(LabError::Usage(format!("a lab has 1 to {MAX_NODES} nodes, not {}", options.nodes)));
        }
        let server = server::find(options.kvd.as_deref())?;
        ports::check(options.port_base, options.nodes)?;
        let options = LabOptions { dir: absolute(&options.dir)?, ..options };
        let ids = (1..=options.nodes).map(NodeId);
        let peers = ids.map(|node| (node, peer_address(options.port_base, node))).collect();
        let fabric = Fabric::weave(&peers).await.map_err(LabError::system("cannot listen for the links"))?;
        let lab = Self {
            options,
            server,
            fabric,
            processes: Mutex::new(BTreeMap::new()),
            faulty_since: Mutex::new(None),
        };
        lab.write_files()?;
        try_join_all(lab.nodes().into_iter().map(|node| lab.start_node(node))).await?;
        Ok(lab)
    }

    /// Its nodes.
    pub fn nodes(&self) -> Vec<NodeId> {
        (1..=self.options.nodes).map(NodeId).collect()
    }

    /// What was asked for.
    pub fn options(&self) -> &LabOptions {
        &self.options
    }

    /// Where clients reach a node.
    pub fn client_address(&self, node: NodeId) -> String {
        client_address(self.options.port_base, node).to_string()
    }

    /// Where peers would reach a node if there were no proxies: its advertised address.
    pub fn peer_address(&self, node: NodeId) -> String {
        peer_address(self.options.port_base, node).to_string()
    }

    /// Where clients reach each node.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes().into_iter().map(|node| self.client_address(node)).collect()
    }

    /// A node's data.
    pub fn data_dir(&self, node: NodeId) -> PathBuf {
        self.options.dir.join("data").join(node.to_string())
    }

    /// A node's log.
    pub fn log_file(&self, node: NodeId) -> PathBuf {
        self.options.dir.join("logs").join(format!("{node}.log"))
    }

    /// The faults in force, and since when there have been any.
    pub async fn faults(&self) -> (Faults, Option<Instant>) {
        let since = self.faulty_since.lock().await;
        (self.fabric.faults(), *since)
    }

    /// Replaces all faults by these.
    pub async fn install(&self, faults: Faults) -> Result<Installed, LabError> {
        self.change(|_| faults).await
    }

    /// Cuts the network into these groups, both ways; replaces all other faults.
    pub async fn partition(&self, groups: &[Vec<NodeId>]) -> Result<Installed, LabError> {
        self.install(Faults::partition(groups)).await
    }

    /// Cuts one node off; replaces all other faults.
    pub async fn isolate(&self, node: NodeId) -> Result<Installed, LabError> {
        self.install(Faults::isolate(node, &self.nodes())).await
    }

    /// Swallows what one node sends to another, beside the faults in force.
    pub async fn one_way(&self, from: NodeId, to: NodeId) -> Result<Installed, LabError> {
        self.change(|faults| faults.with(from, to, Flow::Swallow)).await
    }

    /// Delays what one node sends to another, beside the faults in force.
    pub async fn delay(
        &self,
        from: NodeId,
        to: NodeId,
        ms: u64,
        jitter_ms: u64,
    ) -> Result<Installed, LabError> {
        self.change(|faults| faults.with(from, to, Flow::Delay { ms, jitter_ms })).await
    }

    /// Ends all faults.
    pub async fn heal(&self) -> Result<Installed, LabError> {
        self.install(Faults::none()).await
    }

    /// Probes every link with a fault on it: whether the cut still holds.
    pub async fn verify(&self) -> Installed {
        let _unchanging = self.faulty_since.lock().await;
        self.fabric.verify().await
    }

    async fn change(&self, to: impl FnOnce(Faults) -> Faults) -> Result<Installed, LabError> {
        let mut since = self.faulty_since.lock().await;
        let faults = to(self.fabric.faults());
        faults.check(&self.nodes())?;
        let installed = self.fabric.install(&faults).await;
        *since = if faults == Faults::none() { None } else { since.or(installed.since) };
        Ok(installed)
    }

    /// Kills a node as a power failure would, as far as a process can.
    pub async fn kill(&self, node: NodeId) -> Result<(), LabError> {
        self.known(node)?;
        if let Some(mut child) = self.processes.lock().await.remove(&node) {
            child.kill().await.map_err(LabError::system(format!("cannot kill {node}")))?;
        }
        Ok(())
    }

    /// Starts a node again, killing it first if it runs; returns when it listens.
    pub async fn restart(&self, node: NodeId) -> Result<(), LabError> {
        self.kill(node).await?;
        self.start_node(node).await
    }

    /// The process of each node that runs.
    pub async fn running(&self) -> BTreeMap<NodeId, u32> {
        let mut processes = self.processes.lock().await;
        let alive = |child: &mut Child| matches!(child.try_wait(), Ok(None));
        let running = processes
            .iter_mut()
            .filter_map(|(node, child)| Some((*node, child.id().filter(|_| alive(child))?)));
        running.collect()
    }

    /// Stops every node, letting each finish what it does; the data stay.
    pub async fn stop(&self) {
        let processes = std::mem::take(&mut *self.processes.lock().await);
        join_all(processes.into_values().map(|mut child| async move {
            // `wait` closes the lifeline, which asks the node to stop.
            if tokio::time::timeout(STOPS_WITHIN, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }))
        .await;
    }

    /// Waits until every node that runs knows a leader of every group, sees every other that runs, and rebuilds nothing.
    pub async fn serving(&self) -> Result<(), LabError> {
        let running = self.running().await;
        let deadline = Instant::now() + SERVES_WITHIN;
        for node in running.keys() {
            while !serves(&self.client_address(*node), &running).await {
                self.check_alive(*node).await?;
                if Instant::now() > deadline {
                    return Err(LabError::TooSlow {
                        what: format!("{node}: a leader for every group"),
                        seconds: SERVES_WITHIN.as_secs(),
                        hint: format!("; see {}", self.log_file(*node).display()),
                    });
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Waits until a condition holds in the view of every node.
    pub async fn every_node(&self, what: &str, holds: impl Fn(&Topology) -> bool) -> Result<(), LabError> {
        let deadline = Instant::now() + SERVES_WITHIN;
        for node in self.nodes() {
            let client = Client::connect(ClientOptions::pinned(self.client_address(node)));
            let client = client.map_err(LabError::store("cannot make a client"))?;
            while !client.admin().topology().await.is_ok_and(|topology| holds(&topology)) {
                if Instant::now() > deadline {
                    return Err(LabError::TooSlow {
                        what: format!("{node}: {what}"),
                        seconds: SERVES_WITHIN.as_secs(),
                        hint: format!("; see {}", self.log_file(node).display()),
                    });
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    fn known(&self, node: NodeId) -> Result<(), LabError> {
        match self.nodes().contains(&node) {
            true => Ok(()),
            false => Err(LabError::UnknownNode { node, nodes: self.options.nodes }),
        }
    }

    /// Writes what the nodes read: one cluster file, and for each node whom to dial in place of whom.
    fn write_files(&self) -> Result<(), LabError> {
        let dir = &self.options.dir;
        let cluster_file = dir.join("cluster.toml");
        let earlier = std::fs::read_to_string(&cluster_file).ok().filter(|_| self.options.keep);
        if earlier.is_none() {
            for folder in ["data", "logs"] {
                remove_folder(&dir.join(folder))?;
            }
        }
        for folder in ["data", "logs", "ready", "address-maps"] {
            let folder = dir.join(folder);
            std::fs::create_dir_all(&folder)
                .map_err(LabError::system(format!("cannot create {}", folder.display())))?;
        }
        let id = earlier
            .as_deref()
            .and_then(cluster_id)
            .unwrap_or_else(|| format!("{:032x}", fastrand::u128(1..)));
        let mut cluster = format!("# Written by the lab.\n[cluster]\nid = \"{id}\"\n");
        for node in self.nodes() {
            cluster += &format!(
                "\n[[node]]\nid = \"{node}\"\nclient_address = \"{}\"\npeer_address = \"{}\"\ndata_dir = \"data/{node}\"\n",
                self.client_address(node),
                self.peer_address(node),
            );
            let mut map =
                String::from("# Written by the lab: every link to a peer goes through a proxy.\n[dial]\n");
            for (to, proxy) in self.fabric.dialled_by(node) {
                map += &format!("\"{}\" = \"{proxy}\"\n", self.peer_address(to));
            }
            write(&self.address_map(node), &map)?;
        }
        write(&cluster_file, &format!("{cluster}\n{}", self.options.settings))
    }

    fn address_map(&self, node: NodeId) -> PathBuf {
        self.options.dir.join("address-maps").join(format!("{node}.toml"))
    }

    async fn start_node(&self, node: NodeId) -> Result<(), LabError> {
        let ready = self.options.dir.join("ready").join(format!("{node}.json"));
        match std::fs::remove_file(&ready) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LabError::system(format!("cannot remove {}", ready.display()))(error));
            }
            _ => {}
        }
        let log = self.log_file(node);
        let open_log = || std::fs::File::options().create(true).append(true).open(&log);
        let (stdout, stderr) = open_log()
            .and_then(|out| open_log().map(|err| (out, err)))
            .map_err(LabError::system(format!("cannot open {}", log.display())))?;
        let child = Command::new(&self.server)
            .arg("--config")
            .arg(self.options.dir.join("cluster.toml"))
            .args(["--node", &node.to_string()])
            .arg("--data-dir")
            .arg(self.data_dir(node))
            .arg("--address-map")
            .arg(self.address_map(node))
            .arg("--ready-file")
            .arg(&ready)
            .arg("--until-stdin-closes")
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0) // Ctrl-C is for the supervisor, which stops its nodes in order
            .kill_on_drop(true)
            .spawn()
            .map_err(LabError::system(format!("cannot start {}", self.server.display())))?;
        let pid = child.id();
        self.processes.lock().await.insert(node, child);
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let said = std::fs::read_to_string(&ready).ok();
            let said = said.and_then(|text| serde_json::from_str::<Ready>(&text).ok());
            if said.is_some_and(|said| pid.is_none_or(|pid| pid == said.pid)) {
                return Ok(());
            }
            self.check_alive(node).await?;
            if Instant::now() > deadline {
                return Err(LabError::TooSlow {
                    what: format!("the start of {node}"),
                    seconds: READY_WITHIN.as_secs(),
                    hint: format!("; see {}", log.display()),
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// An error with the end of its log if the node ended by itself.
    async fn check_alive(&self, node: NodeId) -> Result<(), LabError> {
        let mut processes = self.processes.lock().await;
        match processes.get_mut(&node).map(Child::try_wait) {
            Some(Ok(Some(status))) => {
                processes.remove(&node);
                let log = self.log_file(node);
                Err(LabError::NodeEnded { node, status: status.to_string(), tail: tail(&log), log })
            }
            _ => Ok(()),
        }
    }
}

/// Whether this node knows a leader of every group, sees all the others that run, and has what it is to keep.
async fn serves(address: &str, running: &BTreeMap<NodeId, u32>) -> bool {
    let Ok(client) = Client::connect(ClientOptions::pinned(address)) else { return false };
    let admin = client.admin();
    let (Ok(topology), Ok(status)) = (admin.topology().await, admin.status(address).await) else {
        return false;
    };
    let led = |group: &GroupId| {
        let leader = topology.leaders.get(group).and_then(|leader| leader.node);
        leader.is_some_and(|leader| running.contains_key(&leader))
    };
    let whole = status.rebuilding_partitions == 0;
    let mut peers = status.peers.iter().filter(|peer| running.contains_key(&NodeId(peer.node)));
    [GroupId::CATALOGUE, GroupId::FIRST_DATA].iter().all(led) && whole && peers.all(|peer| peer.state == "up")
}

fn client_address(base: u16, node: NodeId) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], base.saturating_add(node.0 as u16)))
}

fn peer_address(base: u16, node: NodeId) -> SocketAddr {
    client_address(base.saturating_add(PEER_OFFSET), node)
}

fn absolute(dir: &Path) -> Result<PathBuf, LabError> {
    std::path::absolute(dir).map_err(LabError::system(format!("cannot find {}", dir.display())))
}

fn write(path: &Path, text: &str) -> Result<(), LabError> {
    std::fs::write(path, text).map_err(LabError::system(format!("cannot write {}", path.display())))
}

fn remove_folder(path: &Path) -> Result<(), LabError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(LabError::system(format!("cannot remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// The cluster's id in an earlier cluster file.
fn cluster_id(text: &str) -> Option<String> {
    let file: toml::Table = text.parse().ok()?;
    file.get("cluster")?.get("id")?.as_str().map(str::to_owned)
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines
        .get(from..)
        .unwrap_or_default()
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU16, Ordering};

    /// A stand-in for `kvd`: says that it is ready, notes that it stopped when its lifeline closes.
    const FAKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake-kvd");

    /// Port bases of tests that run at the same time, away from those that people use.
    fn port_base() -> u16 {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let spread = (std::process::id() % 100) as u16 * 200;
        21_000 + spread + NEXT.fetch_add(20, Ordering::Relaxed) % 80
    }

    fn options(dir: &Path) -> LabOptions {
        LabOptions { nodes: 3, port_base: port_base(), kvd: Some(FAKE.into()), ..LabOptions::new(dir) }
    }

    fn gone(pid: u32) -> bool {
        // A zombie has been killed and only waits for its parent.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    }

    #[tokio::test]
    async fn nodes_start_are_killed_restarted_and_stopped_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::spawn(options(dir.path())).await.unwrap();
        let before = lab.running().await;
        assert_eq!(before.len(), 3);

        lab.kill(NodeId(2)).await.unwrap();
        assert!(gone(before[&NodeId(2)]));
        assert_eq!(lab.running().await.keys().map(|node| node.0).collect::<Vec<_>>(), [1, 3]);
        lab.restart(NodeId(2)).await.unwrap();
        assert_ne!(lab.running().await[&NodeId(2)], before[&NodeId(2)]);

        let running = lab.running().await;
        lab.stop().await;
        assert!(running.values().all(|pid| gone(*pid)));
        let log = std::fs::read_to_string(lab.log_file(NodeId(1))).unwrap();
        assert!(log.contains("stopped in order"), "{log}");
        assert!(lab.kill(NodeId(9)).await.is_err());
    }

    #[tokio::test]
    async fn files_name_every_address_and_every_link_goes_through_a_proxy() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lab::spawn(options(dir.path())).await.unwrap();
        let cluster = std::fs::read_to_string(dir.path().join("cluster.toml")).unwrap();
        let id = cluster_id(&cluster).unwrap();
        for node in first.nodes() {
            assert!(
                cluster.contains(&first.client_address(node)) && cluster.contains(&first.peer_address(node))
            );
        }
        let map = std::fs::read_to_string(dir.path().join("address-maps/n1.toml")).unwrap();
        let map: toml::Table = map.parse().unwrap();
        let dialled: Vec<_> = map["dial"].as_table().unwrap().keys().cloned().collect();
        assert_eq!(dialled, [first.peer_address(NodeId(2)), first.peer_address(NodeId(3))]);
        let kept = LabOptions { keep: true, ..first.options().clone() };
        first.stop().await;
        drop(first);

        std::fs::create_dir_all(dir.path().join("data/n1")).unwrap();
        let again = Lab::spawn(kept.clone()).await.unwrap();
        let cluster = std::fs::read_to_string(dir.path().join("cluster.toml")).unwrap();
        assert_eq!(cluster_id(&cluster).unwrap(), id);
        assert!(again.data_dir(NodeId(1)).exists());
        drop(again);
        let fresh = Lab::spawn(LabOptions { keep: false, port_base: port_base(), ..kept }).await.unwrap();
        let cluster = std::fs::read_to_string(dir.path().join("cluster.toml")).unwrap();
        assert_ne!(cluster_id(&cluster).unwrap(), id);
        assert!(!fresh.data_dir(NodeId(1)).exists());
    }

    #[tokio::test]
    async fn a_node_that_ends_is_reported_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let broken = LabOptions { settings: "# fake: fail".into(), ..options(dir.path()) };
        let error = Lab::spawn(broken).await.unwrap_err();
        assert!(matches!(error, LabError::NodeEnded { .. }), "{error}");
        assert!(error.to_string().contains("this node was told to fail"), "{error}");
    }

    #[tokio::test]
    async fn a_busy_port_and_a_missing_server_are_said_before_anything_starts() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path());
        let _holder = std::net::TcpListener::bind(("127.0.0.1", options.port_base + 2)).unwrap();
        assert!(matches!(Lab::spawn(options.clone()).await, Err(LabError::PortBusy { .. })));
        let nowhere = LabOptions { kvd: Some(dir.path().join("kvd")), ..options };
        assert!(matches!(Lab::spawn(nowhere).await, Err(LabError::NoServer { .. })));
        assert!(!dir.path().join("cluster.toml").exists());
    }
}
