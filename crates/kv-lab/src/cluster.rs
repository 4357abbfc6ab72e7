//! A cluster of real `kvd` processes on this machine, and the only owner of their lives: it writes their
//! files, starts them behind the proxies of the fabric, kills and restarts them, and holds a pipe to each as
//! a lifeline, so that they end when this process does, however it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use futures_util::future::{join_all, try_join_all};
use kv_client::{Client, ClientOptions, PeerState, Topology};
use kv_types::{GroupId, NodeId, counted};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::LabError;
use crate::fabric::Fabric;
use crate::folder::{self, MARK};
use crate::installed::{Counters, Installed};
use crate::matrix::{Faults, Flow, NodeName};
use crate::netns::Netns;
use crate::network::Network;
use crate::plane::Plane;
use crate::ports::{self, PEER_OFFSET};
use crate::process::{self, Process, Proof};
use crate::server::{self, Program};

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
/// How long a node may take to say who leads.
const TOPOLOGY_WITHIN: Duration = Duration::from_secs(1);
/// How long a server with faults may take to answer on its control socket: a disk may be slow on purpose.
const CONTROL_WITHIN: Duration = Duration::from_secs(10);
/// Longest answer there, bytes.
const MAX_CONTROL_BYTES: u64 = 64 << 10;
/// Longest path of a Unix socket that everybody can bind, bytes.
const MAX_SOCKET_PATH: usize = 99;
/// The port base where nothing else can listen on the same addresses.
const OWN_PORT_BASE: u16 = 7100;
/// How much of a log is shown when its node ended.
const TAIL_LINES: usize = 12;

/// What a lab shall be.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// How many nodes, n1 and up.
    pub nodes: u64,
    /// Node *i* serves clients on `port_base + i` and peers on `port_base + 100 + i`. Zero: a free range is
    /// found and kept from other labs; [`Lab::options`] says which.
    pub port_base: u16,
    /// The lab's folder.
    pub dir: PathBuf,
    /// The file of the server program; otherwise it is looked for ([`crate::server::find`]).
    pub kvd: Option<PathBuf>,
    /// Which server it is.
    pub program: Program,
    /// Arguments for the server of each node, beside the lab's own.
    pub arguments: BTreeMap<NodeId, Vec<String>>,
    /// Where faults of the network are made.
    pub plane: Plane,
    /// Go on with the data of an earlier lab in the same folder.
    pub keep: bool,
    /// TOML tables for every node's configuration, such as `[storage]`.
    pub settings: String,
}

impl LabOptions {
    /// Five nodes from port 7100, with fresh data.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            nodes: 5,
            port_base: 7100,
            dir: dir.into(),
            kvd: None,
            program: Program::default(),
            arguments: BTreeMap::new(),
            plane: Plane::default(),
            keep: false,
            settings: String::new(),
        }
    }

    /// The same arguments for every node, beside those that it has.
    pub fn with_arguments(mut self, arguments: &[String]) -> Self {
        for node in (1..=self.nodes).map(NodeId) {
            self.arguments.entry(node).or_default().extend_from_slice(arguments);
        }
        self
    }
}

/// A running lab. Dropping it kills its nodes; [`Lab::stop`] lets them finish.
#[derive(Debug)]
pub struct Lab {
    options: LabOptions,
    server: PathBuf,
    // The nodes go before the network that they are on.
    /// What runs. A node that was killed is not in it.
    processes: Mutex<BTreeMap<NodeId, Process>>,
    network: Network,
    /// Changes of faults are one after the other; the value is since when there are any.
    faulty_since: Mutex<Option<Instant>>,
    sockets: Option<SocketDir>,
    _ports: Option<ports::Claim>,
}

/// Who leads a group, as far as anybody who was asked knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Led {
    /// The leader of the highest term: one that was cut off goes on calling itself leader, but of an earlier
    /// term.
    pub node: NodeId,
    /// Its term.
    pub term: u64,
    /// How many nodes say so.
    pub said_by: usize,
}

/// What a node says when it listens.
#[derive(Debug, Deserialize)]
struct Ready {
    pid: u32,
}

/// What would keep a lab from starting, as far as it can be seen before.
pub(crate) fn check(options: &LabOptions) -> Result<(), LabError> {
    folder::own(&options.dir)?;
    if options.keep
        && let Some(earlier) = folder::earlier(&options.dir)?
    {
        folder::same_size(&options.dir, &earlier, options.nodes)?;
    }
    match options.plane {
        Plane::Proxies if options.port_base != 0 => ports::check(options.port_base, options.nodes),
        _ => Ok(()),
    }
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
        let server = server::find(options.program, options.kvd.as_deref())?;
        let ids = (1..=options.nodes).map(NodeId);
        if let Some(node) = options.arguments.keys().find(|node| !ids.clone().any(|id| id == **node)) {
            return Err(LabError::UnknownNode { node: *node, nodes: options.nodes });
        }
        let mut options = LabOptions { dir: absolute(&options.dir)?, ..options };
        let mut claim = None;
        match (options.plane, options.port_base) {
            (Plane::Netns, 0) => options.port_base = OWN_PORT_BASE,
            (Plane::Netns, _) => {} // every node has its addresses for itself
            (Plane::Proxies, 0) => {
                let claimed = ports::claim(options.nodes)?;
                options.port_base = claimed.base;
                claim = Some(claimed);
            }
            (Plane::Proxies, base) => ports::check(base, options.nodes)?,
        }
        let peer_ports = ids.map(|node| (node, peer_port(options.port_base, node)));
        let network = match options.plane {
            Plane::Netns => Network::Netns(Netns::build(&peer_ports.collect()).await?),
            Plane::Proxies => {
                let addresses =
                    peer_ports.map(|(node, port)| (node, SocketAddr::from(([127, 0, 0, 1], port)))).collect();
                let fabric = Fabric::weave(&addresses).await;
                Network::Proxies(fabric.map_err(LabError::system("cannot listen for the links"))?)
            }
        };
        let sockets = match options.program {
            Program::Kvd => None,
            Program::Faulty => Some(SocketDir::make(&options.dir)?),
        };
        let lab = Self {
            options,
            server,
            processes: Mutex::new(BTreeMap::new()),
            network,
            faulty_since: Mutex::new(None),
            sockets,
            _ports: claim,
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
        SocketAddr::from((self.network.hosts(node).0, client_port(self.options.port_base, node))).to_string()
    }

    /// Where peers would reach a node if there were no proxies: its advertised address.
    pub fn peer_address(&self, node: NodeId) -> String {
        SocketAddr::from((self.network.hosts(node).1, peer_port(self.options.port_base, node))).to_string()
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
        (self.network.faults(), *since)
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

    /// Lets this happen to what one node sends to another, beside the faults in force.
    pub async fn flow(&self, from: NodeId, to: NodeId, flow: Flow) -> Result<Installed, LabError> {
        self.change(|faults| faults.with(from, to, flow)).await
    }

    /// Makes one node lose packets at random on the way to another, beside the faults in force. On the plane
    /// [`Plane::Netns`] alone.
    pub async fn loss(&self, from: NodeId, to: NodeId, percent: u8) -> Result<Installed, LabError> {
        self.change(|faults| faults.with(from, to, Flow::Loss { percent })).await
    }

    /// Pulls a node's cable to the switch, beside the faults in force. On the plane [`Plane::Netns`] alone.
    pub async fn unplug(&self, node: NodeId) -> Result<Installed, LabError> {
        self.change(|faults| faults.with_unplugged(node)).await
    }

    /// Packets dropped since the lab started; none on a plane that knows no packets.
    pub async fn counters(&self) -> Result<Option<Counters>, LabError> {
        self.network.counters().await
    }

    /// Ends all faults of the network.
    pub async fn heal(&self) -> Result<Installed, LabError> {
        self.install(Faults::none()).await
    }

    /// Probes every link with a fault on it: whether the cut still holds.
    pub async fn verify(&self) -> Result<Installed, LabError> {
        let _unchanging = self.faulty_since.lock().await;
        self.network.verify(&self.awake().await).await
    }

    async fn change(&self, to: impl FnOnce(Faults) -> Faults) -> Result<Installed, LabError> {
        let mut since = self.faulty_since.lock().await;
        let faults = to(self.network.faults());
        faults.check(&self.nodes())?;
        let installed = self.network.install(&faults, &self.awake().await).await?;
        *since = if faults.is_none() { None } else { since.or(installed.since) };
        Ok(installed)
    }

    /// Kills a node as a power failure would, as far as a process can.
    pub async fn kill(&self, node: NodeId) -> Result<Proof, LabError> {
        self.known(node)?;
        let process = self.processes.lock().await.remove(&node);
        let Some(process) = process else {
            let status = "it did not run".to_owned();
            return Ok(Proof::Killed { node: NodeName(node), pid: None, status, by_signal: false });
        };
        let proof = process.kill(node).await.map_err(LabError::system(format!("cannot kill {node}")))?;
        self.mark(node, "was killed")?;
        Ok(proof)
    }

    /// Asks a node to stop, and waits until it has.
    pub async fn stop_node(&self, node: NodeId) -> Result<Proof, LabError> {
        self.known(node)?;
        let process = self.processes.lock().await.remove(&node);
        let Some(process) = process else {
            let status = "it did not run".to_owned();
            return Ok(Proof::Stopped { node: NodeName(node), pid: None, status });
        };
        let stopped = process.stop(node, STOPS_WITHIN).await;
        let proof = stopped.map_err(LabError::system(format!("cannot stop {node}")))?;
        self.mark(node, "was stopped")?;
        Ok(proof)
    }

    /// Starts a node again, killing it first if it runs; returns when it listens.
    pub async fn restart(&self, node: NodeId) -> Result<Proof, LabError> {
        self.kill(node).await?;
        self.start_node(node).await
    }

    /// Starts a node again on an empty disk, killing it first if it runs: what was done, and that it listens.
    /// Refused in a lab of one node: nothing would be left.
    pub async fn restart_empty(&self, node: NodeId) -> Result<[Proof; 2], LabError> {
        self.known(node)?;
        if self.options.nodes == 1 {
            return Err(LabError::Usage(format!(
                "{node} is the only node of this lab, and with an empty disk everything in it would be lost; \
                 `kvctl lab down` and then `kvctl lab up --fresh` begin anew"
            )));
        }
        self.kill(node).await?;
        let data = self.data_dir(node);
        let (files, bytes) =
            process::weigh(&data).map_err(LabError::system(format!("cannot read {}", data.display())))?;
        remove_folder(&data)?;
        self.mark(node, "gets an empty disk")?;
        let emptied = Proof::Emptied { node: NodeName(node), files, bytes };
        Ok([emptied, self.start_node(node).await?])
    }

    /// Stops and starts one node after the other, the next one when the cluster serves again.
    pub async fn rolling_restart(&self) -> Result<Vec<Proof>, LabError> {
        let mut proofs = Vec::new();
        for node in self.nodes() {
            proofs.push(self.stop_node(node).await?);
            proofs.push(self.start_node(node).await?);
            self.serving().await?;
        }
        Ok(proofs)
    }

    /// Stops every thread of a node, which notices nothing; its connections stay open and its ports accept.
    pub async fn pause(&self, node: NodeId) -> Result<Proof, LabError> {
        self.known(node)?;
        let proof = match self.processes.lock().await.get_mut(&node) {
            Some(process) => process.pause(node).await?,
            None => return Err(LabError::NodeDown { node }),
        };
        self.mark(node, "was paused")?;
        Ok(proof)
    }

    /// Lets a node that was paused go on.
    pub async fn resume(&self, node: NodeId) -> Result<Proof, LabError> {
        self.known(node)?;
        match self.processes.lock().await.get_mut(&node) {
            Some(process) => {
                self.mark(node, "goes on")?;
                process.resume(node).await
            }
            None => Err(LabError::NodeDown { node }),
        }
    }

    /// Nodes that were paused and not resumed.
    pub async fn paused(&self) -> BTreeSet<NodeId> {
        let processes = self.processes.lock().await;
        processes.iter().filter(|(_, process)| process.paused).map(|(node, _)| *node).collect()
    }

    /// Says one line to the control socket of a node that runs [`Program::Faulty`]; its answer.
    pub async fn control(&self, node: NodeId, line: &str) -> Result<String, LabError> {
        self.known(node)?;
        let Some(sockets) = &self.sockets else {
            return Err(LabError::Usage(
                "only kvd-faulty has a control socket: choose Program::Faulty".into(),
            ));
        };
        let path = sockets.path(node);
        let talk = async {
            let mut stream = UnixStream::connect(&path).await?;
            stream.write_all(format!("{}\n", line.trim_end()).as_bytes()).await?;
            let mut answer = String::new();
            BufReader::new(stream).take(MAX_CONTROL_BYTES).read_line(&mut answer).await?;
            match answer.ends_with('\n') {
                true => Ok(answer.trim_end().to_owned()),
                false => Err(std::io::ErrorKind::UnexpectedEof.into()),
            }
        };
        match tokio::time::timeout(CONTROL_WITHIN, talk).await {
            Ok(answer) => {
                answer.map_err(LabError::system(format!("{node} does not answer on {}", path.display())))
            }
            Err(_) => Err(LabError::TooSlow {
                what: format!("{node}: its answer on {}", path.display()),
                seconds: CONTROL_WITHIN.as_secs(),
                hint: String::new(),
            }),
        }
    }

    /// Flips one bit of a file of a node that does not run. The file is one of
    /// [`crate::process::Kept::files`].
    pub async fn flip_bit(&self, node: NodeId, file: &Path, offset: u64, bit: u8) -> Result<Proof, LabError> {
        let below = self.at_rest(node, file).await?;
        let flipped = process::flip(file, offset, bit);
        let (was, is) = flipped.map_err(LabError::system(format!("cannot change {}", file.display())))?;
        self.mark(node, &format!("has a flipped bit in byte {offset} of {}", below.display()))?;
        Ok(Proof::Flipped { node: NodeName(node), file: below, offset, was, is })
    }

    /// Cuts a file of a node that does not run to this length.
    pub async fn truncate(&self, node: NodeId, file: &Path, length: u64) -> Result<Proof, LabError> {
        let below = self.at_rest(node, file).await?;
        let cut = process::truncate(file, length);
        let (was, is) = cut.map_err(LabError::system(format!("cannot change {}", file.display())))?;
        self.mark(
            node,
            &format!("has {is} of {} left of {}", counted(was, "byte", "bytes"), below.display()),
        )?;
        Ok(Proof::Truncated { node: NodeName(node), file: below, was, is })
    }

    /// The path of a file below the data directory of a node that does not run.
    async fn at_rest(&self, node: NodeId, file: &Path) -> Result<PathBuf, LabError> {
        self.known(node)?;
        if self.processes.lock().await.contains_key(&node) {
            return Err(LabError::Usage(format!("{node} runs: files are damaged at rest")));
        }
        let below = file.strip_prefix(self.data_dir(node)).map(Path::to_path_buf);
        below.map_err(|_| LabError::Usage(format!("{} is not a file of {node}", file.display())))
    }

    /// Who leads a group: the leader of the highest term that any node knows, within a second.
    pub async fn leader(&self, group: GroupId) -> Option<Led> {
        let awake = self.awake().await;
        let asked = awake.into_iter().map(|node| async move {
            let client = Client::connect(ClientOptions::pinned(self.client_address(node))).ok()?;
            let admin = client.admin();
            let topology = tokio::time::timeout(TOPOLOGY_WITHIN, admin.topology()).await.ok()?.ok()?;
            let leader = topology.leaders.get(&group)?;
            Some((leader.term, leader.node?))
        });
        let said: Vec<(u64, NodeId)> = join_all(asked).await.into_iter().flatten().collect();
        let (term, node) = said.iter().max().copied()?;
        Some(Led { node, term, said_by: said.iter().filter(|said| **said == (term, node)).count() })
    }

    /// The process of each node that runs, paused or not.
    pub async fn running(&self) -> BTreeMap<NodeId, u32> {
        let mut processes = self.processes.lock().await;
        let alive = |child: &mut Child| matches!(child.try_wait(), Ok(None));
        let running = processes.iter_mut().filter_map(|(node, process)| {
            Some((*node, process.child.id().filter(|_| alive(&mut process.child))?))
        });
        running.collect()
    }

    /// Nodes that run and are not paused.
    async fn awake(&self) -> BTreeSet<NodeId> {
        let paused = self.paused().await;
        self.running().await.into_keys().filter(|node| !paused.contains(node)).collect()
    }

    /// Stops every node, letting each finish what it does; the data stay.
    pub async fn stop(&self) {
        let processes = std::mem::take(&mut *self.processes.lock().await);
        join_all(processes.into_iter().map(|(node, process)| process.stop(node, STOPS_WITHIN))).await;
    }

    /// Waits until every node that runs and is not paused knows a leader of every group, sees every other
    /// such node, and rebuilds nothing.
    pub async fn serving(&self) -> Result<(), LabError> {
        let running = self.awake().await;
        let deadline = Instant::now() + SERVES_WITHIN;
        for node in &running {
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
        folder::own(dir)?;
        let cluster_file = dir.join("cluster.toml");
        let earlier = if self.options.keep { folder::earlier(dir)? } else { None };
        if let Some(earlier) = &earlier {
            folder::same_size(dir, earlier, self.options.nodes)?;
        }
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
            .map(|earlier| earlier.cluster_id)
            .unwrap_or_else(|| format!("{:032x}", fastrand::u128(1..)));
        // In network namespaces the nodes have addresses of their own, which a node accepts only when told
        // so.
        let insecure = self.nodes().iter().any(|node| {
            let (clients, peers) = self.network.hosts(*node);
            !(clients.is_loopback() && peers.is_loopback())
        });
        let mut cluster = format!("{MARK}.\n[cluster]\nid = \"{id}\"\ninsecure = {insecure}\n");
        for node in self.nodes() {
            cluster += &format!(
                "\n[[node]]\nid = \"{node}\"\nclient_address = \"{}\"\npeer_address = \"{}\"\ndata_dir = \"data/{node}\"\n",
                self.client_address(node),
                self.peer_address(node),
            );
            let mut map = format!("{MARK}: every link to a peer goes through a proxy.\n[dial]\n");
            for (to, proxy) in self.network.dialled_by(node) {
                map += &format!("\"{}\" = \"{proxy}\"\n", self.peer_address(to));
            }
            write(&self.address_map(node), &map)?;
        }
        write(&cluster_file, &format!("{cluster}\n{}", self.options.settings))
    }

    fn address_map(&self, node: NodeId) -> PathBuf {
        self.options.dir.join("address-maps").join(format!("{node}.toml"))
    }

    /// Starts a node that does not run; returns when it listens.
    pub async fn start_node(&self, node: NodeId) -> Result<Proof, LabError> {
        self.known(node)?;
        if self.processes.lock().await.contains_key(&node) {
            return Err(LabError::Usage(format!("{node} runs already")));
        }
        let begun = Instant::now();
        self.mark(node, "starts")?;
        let ready = self.options.dir.join("ready").join(format!("{node}.json"));
        match std::fs::remove_file(&ready) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(LabError::system(format!("cannot remove {}", ready.display()))(error));
            }
            _ => {}
        }
        let log = self.log_file(node);
        let (stdout, stderr) = open_log(&log)
            .and_then(|out| open_log(&log).map(|err| (out, err)))
            .map_err(LabError::system(format!("cannot open {}", log.display())))?;
        let mut command = self.network.command(node, &self.server);
        command
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
            .args(self.options.arguments.get(&node).into_iter().flatten())
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0) // Ctrl-C is for the supervisor, which stops its nodes in order
            .kill_on_drop(true);
        if let Some(sockets) = &self.sockets {
            let path = sockets.path(node);
            let _ = std::fs::remove_file(&path); // of a process that was killed
            command.arg("--control").arg(path);
        }
        let child =
            command.spawn().map_err(LabError::system(format!("cannot start {}", self.server.display())))?;
        let pid = child.id();
        self.processes.lock().await.insert(node, Process { child, paused: false });
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let said = std::fs::read_to_string(&ready).ok();
            let said = said.and_then(|text| serde_json::from_str::<Ready>(&text).ok());
            if let Some(said) = said
                && pid.is_none_or(|pid| pid == said.pid)
            {
                let after_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Ok(Proof::Started { node: NodeName(node), pid: said.pid, after_ms });
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

    /// Notes in a node's log what was done to the node: its incarnations follow each other there.
    fn mark(&self, node: NodeId, what: &str) -> Result<(), LabError> {
        let log = self.log_file(node);
        #[allow(clippy::disallowed_methods, reason = "the nodes' logs are in the system's time")]
        let now = SystemTime::now();
        let line = process::marker(&format!("{node} {what}"), now);
        let append = || std::io::Write::write_all(&mut open_log(&log)?, line.as_bytes());
        append().map_err(LabError::system(format!("cannot write {}", log.display())))
    }

    /// An error with the end of its log if the node ended by itself.
    async fn check_alive(&self, node: NodeId) -> Result<(), LabError> {
        let mut processes = self.processes.lock().await;
        match processes.get_mut(&node).map(|process| process.child.try_wait()) {
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
async fn serves(address: &str, running: &BTreeSet<NodeId>) -> bool {
    let Ok(client) = Client::connect(ClientOptions::pinned(address)) else { return false };
    let admin = client.admin();
    let (Ok(topology), Ok(status)) = (admin.topology().await, admin.status(address).await) else {
        return false;
    };
    let led = |group: &GroupId| {
        let leader = topology.leaders.get(group).and_then(|leader| leader.node);
        leader.is_some_and(|leader| running.contains(&leader))
    };
    let whole = status.rebuilding_partitions == 0;
    let mut peers = status.peers.iter().filter(|peer| running.contains(&NodeId(peer.node)));
    [GroupId::CATALOGUE, GroupId::FIRST_DATA].iter().all(led)
        && whole
        && peers.all(|peer| peer.state() == PeerState::Up)
}

fn client_port(base: u16, node: NodeId) -> u16 {
    base.saturating_add(u16::try_from(node.0).unwrap_or(u16::MAX))
}

fn peer_port(base: u16, node: NodeId) -> u16 {
    client_port(base.saturating_add(PEER_OFFSET), node)
}

/// Where the control sockets of the nodes are: the path of a socket must be short, and that of a lab may be
/// long.
#[derive(Debug)]
struct SocketDir {
    path: PathBuf,
    /// Made for them alone.
    temporary: bool,
}

impl SocketDir {
    fn make(lab: &Path) -> Result<Self, LabError> {
        let within = lab.join("control");
        let temporary = within.join("n0.sock").as_os_str().len() > MAX_SOCKET_PATH;
        let path = match temporary {
            true => std::env::temp_dir().join(format!("quorate-{:016x}", fastrand::u64(..))),
            false => within,
        };
        if path.join("n0.sock").as_os_str().len() > MAX_SOCKET_PATH {
            return Err(LabError::Usage(format!(
                "{} is too long for Unix sockets: set TMPDIR",
                path.display()
            )));
        }
        std::fs::create_dir_all(&path)
            .map_err(LabError::system(format!("cannot create {}", path.display())))?;
        Ok(Self { path, temporary })
    }

    fn path(&self, node: NodeId) -> PathBuf {
        self.path.join(format!("{node}.sock"))
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        if self.temporary {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn absolute(dir: &Path) -> Result<PathBuf, LabError> {
    std::path::absolute(dir).map_err(LabError::system(format!("cannot find {}", dir.display())))
}

/// Writes a file, whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), LabError> {
    let fresh = path.with_extension("fresh");
    let written = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, path));
    written.map_err(LabError::system(format!("cannot write {}", path.display())))
}

/// A log, to write at its end. It names keys and addresses, which are for its owner alone.
pub(crate) fn open_log(path: &Path) -> std::io::Result<std::fs::File> {
    let log = std::fs::File::options().create(true).append(true).mode(0o600).open(path)?;
    // One that an older release wrote is there already.
    log.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    Ok(log)
}

fn remove_folder(path: &Path) -> Result<(), LabError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(LabError::system(format!("cannot remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
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

    /// A stand-in for `kvd`: says that it is ready, notes that it stopped when its lifeline closes.
    const FAKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake-kvd");

    fn options(dir: &Path) -> LabOptions {
        LabOptions { nodes: 3, port_base: 0, kvd: Some(FAKE.into()), ..LabOptions::new(dir) }
    }

    fn cluster_id(text: &str) -> Option<String> {
        let file: toml::Table = text.parse().ok()?;
        file.get("cluster")?.get("id")?.as_str().map(str::to_owned)
    }

    fn gone(pid: u32) -> bool {
        // A zombie has been killed and only waits for its parent.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    }

    #[tokio::test]
    async fn the_only_node_keeps_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::spawn(LabOptions { nodes: 1, ..options(dir.path()) }).await.unwrap();
        let before = lab.running().await;
        let refused = lab.restart_empty(NodeId(1)).await.unwrap_err();
        assert!(refused.exit_code() == 2 && refused.to_string().contains("--fresh"), "{refused}");
        assert_eq!(lab.running().await, before, "it runs as before");
        lab.stop().await;
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
        let fresh = Lab::spawn(LabOptions { keep: false, port_base: 0, ..kept }).await.unwrap();
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
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port_base = holder.local_addr().unwrap().port() - 2;
        let options = LabOptions { port_base, ..options(dir.path()) };
        assert!(matches!(Lab::spawn(options.clone()).await, Err(LabError::PortBusy { .. })));
        let nowhere = LabOptions { kvd: Some(dir.path().join("kvd")), ..options };
        assert!(matches!(Lab::spawn(nowhere).await, Err(LabError::NoServer { .. })));
        assert!(!dir.path().join("cluster.toml").exists());
    }
}
