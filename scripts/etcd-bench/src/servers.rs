//! Three processes of each store on this machine, with the durability they have by default.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kv_client::{Client, ClientOptions};
use kv_types::{NamespaceName, NamespaceSpec, Replication};
use tokio::time::Instant;
use tonic::transport::Endpoint;

use crate::etcdserverpb::StatusRequest;
use crate::etcdserverpb::maintenance_client::MaintenanceClient;

/// Nodes of each store.
const NODES: usize = 3;
/// Time until a cluster answers.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(100);

type Problem = Box<dyn std::error::Error + Send + Sync>;

/// The processes of a store. They end with this.
pub(crate) struct Servers {
    children: Vec<Child>,
    /// Where clients reach each.
    pub(crate) addresses: Vec<String>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Servers {
    /// Seconds of processor time that the processes have used.
    pub(crate) fn cpu(&self) -> f64 {
        self.children.iter().map(|child| cpu_of(&child.id().to_string())).sum()
    }

    fn start(&mut self, command: &mut Command, log: &Path) -> io::Result<()> {
        let log = File::create(log)?;
        let err = log.try_clone()?;
        self.children.push(command.stdin(Stdio::null()).stdout(log).stderr(err).spawn()?);
        Ok(())
    }
}

/// Seconds of processor time of a process, its threads included.
#[allow(clippy::cast_precision_loss, reason = "seconds in hundredths")]
pub(crate) fn cpu_of(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the name, which may have spaces: user and system time are the twelfth and thirteenth.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn ports(count: usize) -> Result<Vec<u16>, Problem> {
    let ports: Option<Vec<u16>> = (0..count).map(|_| kv_env::choose_port()).collect();
    Ok(ports.ok_or("no free port")?)
}

/// Three `kvd` with a strong namespace `bank` and an available one `cart` (N 3, R 1, W 2).
pub(crate) async fn quorate(kvd: &Path, dir: &Path) -> Result<Servers, Problem> {
    let ports = ports(2 * NODES)?;
    let (client, peer) = ports.split_at(NODES);
    let mut file = "[cluster]\nid = \"5155304f3052341754e0000000000003\"\n".to_owned();
    for (n, (client, peer)) in client.iter().zip(peer).enumerate() {
        let (n, data) = (n + 1, dir.join(format!("data-n{}", n + 1)));
        file += &format!(
            "[[node]]\nid = \"n{n}\"\nclient_address = \"127.0.0.1:{client}\"\npeer_address = \"127.0.0.1:{peer}\"\ndata_dir = {data:?}\n"
        );
    }
    let config = dir.join("cluster.toml");
    std::fs::write(&config, file)?;
    let addresses = client.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let mut servers = Servers { children: Vec::new(), addresses };
    for n in 1..=NODES {
        let mut command = Command::new(kvd);
        command.arg("--config").arg(&config).arg("--node").arg(format!("n{n}"));
        servers.start(&mut command, &dir.join(format!("n{n}.log")))?;
    }
    let client = Client::connect(ClientOptions::new(servers.addresses.clone()))?;
    let replication = Replication { n: 3, r: 1, w: 2, sloppy: true };
    let specs = [
        NamespaceSpec::strong(NamespaceName::new("bank")?),
        NamespaceSpec::available(NamespaceName::new("cart")?, replication),
    ];
    let give_up = Instant::now() + PATIENCE;
    for spec in specs {
        while let Err(error) = client.admin().create_namespace(spec.clone()).await {
            if Instant::now() > give_up {
                return Err(format!("kvd does not answer, see {}: {error}", dir.display()).into());
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
    Ok(servers)
}

/// Three `etcd`; the leader's address is the first.
pub(crate) async fn etcd(etcd: &Path, dir: &Path) -> Result<Servers, Problem> {
    let ports = ports(2 * NODES)?;
    let (client, peer) = ports.split_at(NODES);
    let url = |port: &u16| format!("http://127.0.0.1:{port}");
    let members: Vec<String> = (1..).zip(peer).map(|(n, port)| format!("m{n}={}", url(port))).collect();
    let mut servers = Servers { children: Vec::new(), addresses: client.iter().map(url).collect() };
    for (n, (client, peer)) in (1..).zip(client.iter().zip(peer)) {
        let mut command = Command::new(etcd);
        command.args(["--name", &format!("m{n}"), "--log-level", "error", "--initial-cluster-state", "new"]);
        command.arg("--data-dir").arg(dir.join(format!("m{n}")));
        command.args(["--initial-cluster", &members.join(",")]);
        command.args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)]);
        command.args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)]);
        servers.start(&mut command, &dir.join(format!("m{n}.log")))?;
    }
    let give_up = Instant::now() + PATIENCE;
    loop {
        let addresses = servers.addresses.clone();
        for (place, address) in addresses.iter().enumerate() {
            if leads(address).await.unwrap_or(false) {
                servers.addresses.swap(0, place);
                return Ok(servers);
            }
        }
        if Instant::now() > give_up {
            return Err(format!("etcd has no leader, see {}", dir.display()).into());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn leads(address: &str) -> Result<bool, Problem> {
    let channel = Endpoint::from_shared(address.to_owned())?.timeout(PATIENCE / 10).connect().await?;
    let status = MaintenanceClient::new(channel).status(StatusRequest {}).await?.into_inner();
    Ok(status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader))
}

/// A program of this name on the PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}
