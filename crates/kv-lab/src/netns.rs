//! A network of namespaces, for root: every node in its own, all of them on one bridge in a namespace of its
//! own, and every rule about who reaches whom in one packet filter there. A change of faults is one
//! transaction of that filter: no packet ever sees half of it. Packets that it dropped are counted, and the
//! count is the proof that a cut did something.
//!
//! Clients reach each node over a second cable of its own, which no fault touches. Labs do not disturb each
//! other: each has a number, and with it its names and addresses. A janitor process removes everything when
//! the lab ends, however it ends, and each start sweeps what a janitor could not.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use kv_types::NodeId;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::process::Command;
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tokio::time::Instant;

use crate::LabError;
use crate::installed::{Counters, Expected, Installed};
use crate::matrix::{Direction, Faults, Flow};
use crate::probe;

/// Labs at once on one machine.
const MAX_LABS: u8 = 200;
/// Longest run of one of the system's tools.
const TOOL_WITHIN: Duration = Duration::from_secs(20);
/// How long traffic between nodes may take to lose a packet where packets are lost at random: they ping each
/// other.
const LOSS_SEEN_WITHIN: Duration = Duration::from_secs(8);
/// How often a counter is looked at.
const POLL: Duration = Duration::from_millis(50);
/// The folder in which `ip netns` keeps the names.
const NAMESPACES: &str = "/run/netns";
/// How the names begin.
const PREFIX: &str = "quorate";
/// The table of the filter.
const TABLE: &str = "bridge quorate";

/// Whether this plane can be had here; if not, why.
pub fn available() -> Result<(), String> {
    if !cfg!(target_os = "linux") {
        return Err("network namespaces are a matter of Linux".into());
    }
    if !rustix::process::geteuid().is_root() {
        return Err("only root may make network namespaces".into());
    }
    for (tool, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file()));
        if !found {
            return Err(format!("the program `{tool}` is missing (Debian: apt-get install {package})"));
        }
    }
    Ok(())
}

/// The namespaces of one lab.
#[derive(Debug)]
pub(crate) struct Netns {
    names: Names,
    /// The nodes, and where each serves its peers.
    peers: BTreeMap<NodeId, SocketAddr>,
    /// One change after the other.
    changing: AsyncMutex<()>,
    faults: Mutex<Faults>,
    _number: Number,
    janitor: Mutex<std::process::Child>,
}

impl Netns {
    /// Makes the namespaces of these nodes, which will serve their peers on these ports.
    pub(crate) async fn build(ports: &BTreeMap<NodeId, u16>) -> Result<Self, LabError> {
        available().map_err(|why| LabError::NoNetns { why })?;
        sweep().await;
        let number = Number::take()?;
        let names = Names { number: number.number, pid: std::process::id() };
        // First of all, so that an error half-way leaves nothing behind.
        let nodes: Vec<NodeId> = ports.keys().copied().collect();
        let janitor = Mutex::new(start_janitor(&names, &nodes)?);
        let address =
            |(node, port): (&NodeId, &u16)| (*node, SocketAddr::from((names.peer_host(*node), *port)));
        let netns = Self {
            names,
            peers: ports.iter().map(address).collect(),
            changing: AsyncMutex::new(()),
            faults: Mutex::default(),
            _number: number,
            janitor,
        };
        netns.wire(&nodes).await?;
        Ok(netns)
    }

    async fn wire(&self, nodes: &[NodeId]) -> Result<(), LabError> {
        let names = &self.names;
        ip(None, &names.cables(nodes)).await?;
        ip(Some(&names.switch()), &switch_script(nodes)).await?;
        try_join_all(
            nodes
                .iter()
                .map(|node| async move { ip(Some(&names.node(*node)), &names.node_script(*node)).await }),
        )
        .await?;
        nft(&names.switch(), FILTER).await
    }

    /// Where clients reach a node.
    pub(crate) fn client_host(&self, node: NodeId) -> Ipv4Addr {
        self.names.client_hosts(node).1
    }

    /// Where peers reach a node.
    pub(crate) fn peer_host(&self, node: NodeId) -> Ipv4Addr {
        self.names.peer_host(node)
    }

    /// A command that runs a program in a node's namespace. `ip` becomes the program, so its process is the
    /// program's.
    pub(crate) fn command(&self, node: NodeId, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names.node(node)]).arg(program);
        command
    }

    /// The faults in force.
    pub(crate) fn faults(&self) -> Faults {
        lock(&self.faults).clone()
    }

    /// Replaces the faults in force by these.
    pub(crate) async fn install(
        &self,
        faults: &Faults,
        serving: &BTreeSet<NodeId>,
    ) -> Result<Installed, LabError> {
        let _alone = self.changing.lock().await;
        let before = self.faults();
        let counted = self.counters().await?;
        let switch = self.names.switch();
        nft(&switch, &self.names.transaction(faults)).await?;
        let carriers = carrier_script(before.unplugged(), faults.unplugged());
        if !carriers.is_empty() {
            ip(Some(&switch), &carriers).await?;
        }
        *lock(&self.faults) = faults.clone();
        let since = Instant::now();
        let changed = self.changed(&before, faults);
        let probed = self.probe(&changed, faults, serving, counted).await?;
        Ok(Installed { since: Some(since), ..probed })
    }

    /// Probes every link with a fault on it.
    pub(crate) async fn verify(&self, serving: &BTreeSet<NodeId>) -> Result<Installed, LabError> {
        let _alone = self.changing.lock().await;
        let faults = self.faults();
        let counted = self.counters().await?;
        self.probe(&self.changed(&Faults::none(), &faults), &faults, serving, counted).await
    }

    /// What was dropped since the lab started.
    pub(crate) async fn counters(&self) -> Result<Counters, LabError> {
        let text = in_namespace(&self.names.switch(), &["nft", "-j", "list", "counters"], "").await?;
        counters(&text).ok_or_else(|| LabError::Usage("nft printed counters that cannot be read".into()))
    }

    /// Directions on which something is different.
    fn changed(&self, before: &Faults, after: &Faults) -> Vec<Direction> {
        let replugged: BTreeSet<_> = before.unplugged().symmetric_difference(after.unplugged()).collect();
        self.ways()
            .filter(|way| {
                before.flow(*way) != after.flow(*way)
                    || replugged.contains(&way.from)
                    || replugged.contains(&way.to)
            })
            .collect()
    }

    fn ways(&self) -> impl Iterator<Item = Direction> {
        let ways = self.peers.keys().flat_map(|from| self.peers.keys().map(|to| Direction::new(*from, *to)));
        ways.filter(|way| way.from != way.to)
    }

    /// Probes the links that these directions belong to, each from the namespace of the node that asks.
    async fn probe(
        &self,
        changed: &[Direction],
        faults: &Faults,
        serving: &BTreeSet<NodeId>,
        counted: Counters,
    ) -> Result<Installed, LabError> {
        let mut installed = Installed { links: changed.len(), ..Installed::default() };
        let probes = self
            .ways()
            .filter(|way| changed.contains(way) || changed.contains(&way.reversed()))
            .filter_map(|way| {
                Some((way.from, *self.peers.get(&way.to)?, Expected::on(way, faults, serving)?))
            })
            .map(|(from, address, expected)| async move {
                let socket = socket_in(&self.names.node(from)).await?;
                io::Result::Ok((
                    expected,
                    probe::ask_over(socket.connect(address), expected.patience()).await,
                ))
            });
        for probed in join_all(probes).await {
            let (expected, seen) = probed.map_err(LabError::system("cannot probe from a namespace"))?;
            installed.add(expected, seen);
        }
        let flows = || faults.list().into_iter().map(|fault| fault.flow);
        let lossy = flows().any(|flow| matches!(flow, Flow::Loss { .. }));
        let mut now = self.counters().await?;
        if lossy {
            let deadline = Instant::now() + LOSS_SEEN_WITHIN;
            while now.lost_packets == counted.lost_packets && Instant::now() < deadline {
                tokio::time::sleep(POLL).await;
                now = self.counters().await?;
            }
            installed.probes += 1;
            installed.as_expected += usize::from(now.lost_packets > counted.lost_packets);
        }
        if lossy || flows().any(Flow::swallows) {
            let dropped = |counters: Counters| counters.cut_packets + counters.lost_packets;
            installed.dropped = Some(dropped(now).saturating_sub(dropped(counted)));
        }
        Ok(installed)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let mut janitor = self.janitor.lock().unwrap_or_else(PoisonError::into_inner);
        drop(janitor.stdin.take());
        let _ = janitor.wait();
    }
}

/// The names and addresses of one lab.
#[derive(Debug, Clone, Copy)]
struct Names {
    number: u8,
    pid: u32,
}

impl Names {
    fn switch(self) -> String {
        format!("{PREFIX}{}p{}-switch", self.number, self.pid)
    }

    fn node(self, node: NodeId) -> String {
        format!("{PREFIX}{}p{}-{node}", self.number, self.pid)
    }

    /// The end of a node's client cable that is not in its namespace.
    fn client_cable(self, node: NodeId) -> String {
        format!("qr{}{node}", self.number)
    }

    /// The two ends of a node's client cable, from the range that RFC 2544 keeps for tests: outside and
    /// inside.
    fn client_hosts(self, node: NodeId) -> (Ipv4Addr, Ipv4Addr) {
        let block = low_byte(node).saturating_mul(4);
        let host = |end: u8| Ipv4Addr::new(198, 18, self.number, block.saturating_add(end));
        (host(1), host(2))
    }

    fn peer_host(self, node: NodeId) -> Ipv4Addr {
        Ipv4Addr::new(198, 19, self.number, low_byte(node))
    }

    /// For `ip -batch`: the namespaces, and a cable from each node to the switch and to the clients.
    fn cables(self, nodes: &[NodeId]) -> String {
        let switch = self.switch();
        let mut script = format!("netns add {switch}\n");
        for node in nodes {
            let (name, cable, (outside, _)) =
                (self.node(*node), self.client_cable(*node), self.client_hosts(*node));
            script += &format!(
                "netns add {name}\n\
                 link add {node} netns {switch} type veth peer name eth0 netns {name}\n\
                 link add {cable} type veth peer name client0 netns {name}\n\
                 addr add {outside}/30 dev {cable}\n\
                 link set {cable} up\n"
            );
        }
        script
    }

    /// For `ip -batch` in a node's namespace.
    fn node_script(self, node: NodeId) -> String {
        let (peer, (_, client)) = (self.peer_host(node), self.client_hosts(node));
        format!(
            "link set lo up\n\
             addr add {peer}/24 dev eth0\n\
             link set eth0 up\n\
             addr add {client}/30 dev client0\n\
             link set client0 up\n"
        )
    }

    /// The faults as one transaction of the filter.
    fn transaction(self, faults: &Faults) -> String {
        let mut cut = Vec::new();
        let mut lossy: BTreeMap<u8, Vec<String>> = BTreeMap::new();
        for fault in faults.list() {
            let pair = format!("{} . {}", self.peer_host(fault.from.0), self.peer_host(fault.to.0));
            match fault.flow {
                Flow::Swallow => cut.push(pair),
                Flow::Loss { percent } => lossy.entry(percent).or_default().push(pair),
                _ => {}
            }
        }
        let mut script = format!("flush set {TABLE} cut\nflush chain {TABLE} loss\n");
        if !cut.is_empty() {
            script += &format!("add element {TABLE} cut {{ {} }}\n", cut.join(", "));
        }
        for (percent, pairs) in lossy {
            script += &format!(
                "add rule {TABLE} loss ip saddr . ip daddr {{ {} }} numgen random mod 100 < {percent} \
                 counter name lost_packets drop\n",
                pairs.join(", ")
            );
        }
        script
    }
}

/// The filter on the bridge: directions that are cut, then those that lose packets.
const FILTER: &str = "table bridge quorate {
  counter cut_packets { }
  counter lost_packets { }
  set cut { type ipv4_addr . ipv4_addr; }
  chain loss { }
  chain links { type filter hook forward priority 0; policy accept;
    ip saddr . ip daddr @cut counter name cut_packets drop
    jump loss
  }
}
";

/// For `ip -batch` in the switch.
fn switch_script(nodes: &[NodeId]) -> String {
    let ports: String = nodes.iter().map(|node| format!("link set {node} master br0 up\n")).collect();
    format!("link add br0 type bridge stp_state 0 mcast_snooping 0\nlink set br0 up\n{ports}")
}

/// For `ip -batch` in the switch: carriers that go and come back.
fn carrier_script(before: &BTreeSet<NodeId>, after: &BTreeSet<NodeId>) -> String {
    let down = after.difference(before).map(|node| format!("link set {node} down\n"));
    let up = before.difference(after).map(|node| format!("link set {node} up\n"));
    down.chain(up).collect()
}

fn low_byte(node: NodeId) -> u8 {
    u8::try_from(node.0).unwrap_or(u8::MAX)
}

/// From the JSON of `nft`.
fn counters(text: &str) -> Option<Counters> {
    let listed: serde_json::Value = serde_json::from_str(text).ok()?;
    let packets = |name: &str| {
        let mut counters = listed.get("nftables")?.as_array()?.iter().filter_map(|item| item.get("counter"));
        counters
            .find(|counter| counter.get("name").is_some_and(|found| found == name))?
            .get("packets")?
            .as_u64()
    };
    Some(Counters { cut_packets: packets("cut_packets")?, lost_packets: packets("lost_packets")? })
}

/// A number that no other lab of this machine has, as long as this lives.
#[derive(Debug)]
struct Number {
    number: u8,
    _held: Held,
}

impl Number {
    fn take() -> Result<Self, LabError> {
        let first = fastrand::u8(0..MAX_LABS);
        (0..MAX_LABS)
            .map(|step| ((u16::from(first) + u16::from(step)) % u16::from(MAX_LABS)) as u8)
            .filter(|number| leftovers(*number).is_empty())
            .filter(|number| !Path::new(&format!("/sys/class/net/qr{number}n1")).exists())
            .find_map(|number| Some(Self { number, _held: hold(number)? }))
            .ok_or_else(|| LabError::Usage(format!("{MAX_LABS} labs run already: that is all there can be")))
    }
}

/// A name in the kernel that goes when its process does.
#[cfg(target_os = "linux")]
type Held = std::os::unix::net::UnixListener;
#[cfg(not(target_os = "linux"))]
type Held = ();

#[cfg(target_os = "linux")]
fn hold(number: u8) -> Option<Held> {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("{PREFIX}-lab-netns-{number}");
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).ok()?;
    std::os::unix::net::UnixListener::bind_addr(&address).ok()
}

#[cfg(not(target_os = "linux"))]
fn hold(_number: u8) -> Option<Held> {
    None
}

/// Namespaces that carry this number.
fn leftovers(number: u8) -> Vec<String> {
    let prefix = format!("{PREFIX}{number}p");
    let names = std::fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

/// Removes what labs left that are no more.
async fn sweep() {
    for number in 0..MAX_LABS {
        let names = leftovers(number);
        if names.is_empty() {
            continue;
        }
        if let Some(_held) = hold(number) {
            let script: String = names.iter().map(|name| format!("netns del {name}\n")).collect();
            // A janitor may be at it too.
            let _ = tool(&["ip", "-force", "-batch", "-"], &script).await;
        }
    }
}

/// A process that waits until this one ends, or lets go of it, and then removes everything of this lab.
fn start_janitor(names: &Names, nodes: &[NodeId]) -> Result<std::process::Child, LabError> {
    use std::os::unix::process::CommandExt;
    let mut script = String::from("cat > /dev/null\n");
    for node in nodes {
        // Its other end goes at once; that of a namespace goes when the last process has left it.
        script += &format!("ip link del {}\nip netns del {}\n", names.client_cable(*node), names.node(*node));
    }
    script += &format!("ip netns del {}\n", names.switch());
    std::process::Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0) // Ctrl-C is not for it
        .spawn()
        .map_err(LabError::system("cannot start sh"))
}

/// Runs a script of `ip`, in a namespace or outside.
async fn ip(namespace: Option<&str>, script: &str) -> Result<(), LabError> {
    let inside: &[&str] = match namespace {
        Some(namespace) => &["ip", "-n", namespace, "-batch", "-"],
        None => &["ip", "-batch", "-"],
    };
    tool(inside, script).await.map(|_| ())
}

async fn nft(namespace: &str, script: &str) -> Result<(), LabError> {
    in_namespace(namespace, &["nft", "-f", "-"], script).await.map(|_| ())
}

async fn in_namespace(namespace: &str, command: &[&str], input: &str) -> Result<String, LabError> {
    tool(&[&["ip", "netns", "exec", namespace], command].concat(), input).await
}

/// Runs one of the system's tools to its end; what it printed.
async fn tool(command: &[&str], input: &str) -> Result<String, LabError> {
    let what = command.join(" ");
    let Some((program, arguments)) = command.split_first() else { return Ok(String::new()) };
    let run = async {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(TOOL_WITHIN, run).await.map_err(|_| LabError::TooSlow {
        what: format!("`{what}`"),
        seconds: TOOL_WITHIN.as_secs(),
        hint: String::new(),
    })?;
    let output = output.map_err(LabError::system(format!("cannot run `{what}`")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(LabError::Usage(format!("`{what}` failed: {}", said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A socket that lives in a namespace: sockets stay where they were made, so a thread goes there to make it.
async fn socket_in(namespace: &str) -> io::Result<TcpSocket> {
    let path = Path::new(NAMESPACES).join(namespace);
    let (made, socket) = oneshot::channel();
    std::thread::Builder::new().name("namespace".into()).spawn(move || {
        let make = || {
            enter(&path)?;
            TcpSocket::new_v4()
        };
        let _ = made.send(make());
    })?;
    socket.await.map_err(io::Error::other)?
}

#[cfg(target_os = "linux")]
fn enter(namespace: &Path) -> io::Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    use std::os::fd::AsFd;
    let file = std::fs::File::open(namespace)?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}

#[cfg(not(target_os = "linux"))]
fn enter(_namespace: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names = Names { number: 3, pid: 77 };

    #[test]
    fn a_change_of_faults_is_one_transaction() {
        let faults = Faults::one_way(&[NodeId(1)], &[NodeId(2)])
            .with(NodeId(2), NodeId(1), Flow::Loss { percent: 30 })
            .with(NodeId(4), NodeId(1), Flow::Loss { percent: 30 })
            .with(NodeId(3), NodeId(1), Flow::Loss { percent: 5 });
        let expected = "flush set bridge quorate cut\n\
            flush chain bridge quorate loss\n\
            add element bridge quorate cut { 198.19.3.1 . 198.19.3.2 }\n\
            add rule bridge quorate loss ip saddr . ip daddr { 198.19.3.3 . 198.19.3.1 } numgen random mod 100 < 5 counter name lost_packets drop\n\
            add rule bridge quorate loss ip saddr . ip daddr { 198.19.3.2 . 198.19.3.1, 198.19.3.4 . 198.19.3.1 } numgen random mod 100 < 30 counter name lost_packets drop\n";
        assert_eq!(NAMES.transaction(&faults), expected);
        assert_eq!(
            NAMES.transaction(&Faults::none()),
            expected.lines().take(2).collect::<Vec<_>>().join("\n") + "\n"
        );
    }

    #[test]
    fn carriers_change_only_where_they_are_to() {
        let set = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        assert_eq!(carrier_script(&set(&[1, 2]), &set(&[2, 3])), "link set n3 down\nlink set n1 up\n");
        assert_eq!(carrier_script(&set(&[2]), &set(&[2])), "");
    }

    #[test]
    fn names_fit_the_kernel_and_addresses_do_not_overlap() {
        let names = Names { number: 199, pid: 4_194_304 };
        assert!(names.client_cable(NodeId(9)).len() <= 15);
        let mut blocks = BTreeSet::new();
        for node in (1..=9).map(NodeId) {
            let (outside, inside) = names.client_hosts(node);
            assert!(blocks.insert(outside) && blocks.insert(inside) && blocks.insert(names.peer_host(node)));
            assert_eq!(u32::from(outside) >> 2, u32::from(inside) >> 2, "one subnet of four addresses");
        }
    }

    #[test]
    fn the_counters_of_the_filter_are_read() {
        let text = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"counter": {"family": "bridge", "name": "cut_packets", "table": "quorate", "handle": 3, "packets": 12, "bytes": 60}},
            {"counter": {"family": "bridge", "name": "lost_packets", "table": "quorate", "handle": 4, "packets": 7, "bytes": 0}}]}"#;
        assert_eq!(counters(text), Some(Counters { cut_packets: 12, lost_packets: 7 }));
        assert_eq!(counters("{}"), None);
    }
}
