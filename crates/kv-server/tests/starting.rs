//! The binary: what it says when it cannot start, and that it starts, tells so and stops when asked.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "a test may fail loudly"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::{Cluster, PATIENCE, config, eventually, members, observed, within};
use kv_proto::{admin, v1};
use kv_server::{Node, NodeEnv, StartError};
use kv_types::catalogue::Member;
use kv_types::{ClusterId, NodeId};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

fn cluster_file(folder: &Path, members: &[Member], more: &str) -> PathBuf {
    let mut text = String::from("[cluster]\nid = \"0000000000000000000000005155304f\"\n");
    for Member { id, client_address, peer_address, .. } in members {
        text.push_str(&format!(
            "[[node]]\nid = \"{id}\"\nclient_address = \"{client_address}\"\npeer_address = \"{peer_address}\"\ndata_dir = \"{id}\"\n"
        ));
    }
    let path = folder.join("cluster.toml");
    std::fs::write(&path, text + more).unwrap();
    path
}

fn kvd(file: &Path, node: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvd"));
    command.args(["--config".as_ref(), file.as_os_str()]).args(["--node", node]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Exit code and words of a process that does not start.
async fn refused(mut command: Command) -> (Option<i32>, String) {
    let output = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

async fn ready(file: &Path) -> serde_json::Value {
    eventually("the ready file is there", async || file.exists()).await;
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

async fn ends(mut child: Child) -> (Option<i32>, String) {
    let mut words = String::new();
    let status = timeout(PATIENCE, async {
        child.stderr.take().unwrap().read_to_string(&mut words).await.unwrap();
        child.wait().await.unwrap()
    });
    (status.await.unwrap().code(), words)
}

#[tokio::test]
async fn configurations_that_do_not_hold_end_in_words_and_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let members = members(1);
    let file = cluster_file(folder.path(), &members, "[raft]\nheartbeta = \"1s\"\n");
    let (code, words) = refused(kvd(&file, "n1")).await;
    assert_eq!(code, Some(2), "{words}");
    assert!(words.contains("CONFIG_INVALID") && words.contains("did you mean `heartbeat`?"), "{words}");

    let file = cluster_file(folder.path(), &members, "");
    let (code, words) = refused(kvd(&file, "n7")).await;
    assert!(code == Some(2) && words.contains("CONFIG_INVALID") && words.contains("n7"), "{words}");
    let (code, words) = refused(kvd(&folder.path().join("missing.toml"), "n1")).await;
    assert!(code == Some(2) && words.contains("CONFIG_INVALID") && words.contains("missing.toml"), "{words}");
    let mut command = kvd(&file, "n1");
    command.env("KVD_LOG", "loud");
    let (code, words) = refused(command).await;
    assert!(code == Some(2) && words.contains("CONFIG_INVALID") && words.contains("loud"), "{words}");
    let (code, words) = refused(kvd(&file, "first")).await;
    assert!(code == Some(2) && words.contains("is not a node"), "{words}");
}

#[tokio::test]
async fn a_busy_port_ends_in_words_and_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let members = members(1);
    let file = cluster_file(folder.path(), &members, "");
    for address in [&members[0].client_address, &members[0].peer_address] {
        let _busy = std::net::TcpListener::bind(address).unwrap();
        let (code, words) = refused(kvd(&file, "n1")).await;
        assert!(code == Some(2) && words.contains("PORT_BUSY") && words.contains(address), "{words}");
    }
}

#[tokio::test]
async fn a_node_says_when_it_is_ready_and_stops_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let members = members(1);
    let file = cluster_file(folder.path(), &members, "");
    for signal in [None, Some("-TERM")] {
        let ready_file = folder.path().join(format!("ready{}", signal.unwrap_or_default()));
        let mut command = kvd(&file, "n1");
        command.arg("--ready-file").arg(&ready_file).args(["--until-stdin-closes", "--log", "json"]);
        let mut child = command.spawn().unwrap();
        let told = ready(&ready_file).await;
        assert_eq!(told["node"], "n1");
        assert_eq!(told["client_address"], members[0].client_address.as_str());
        assert_eq!(told["peer_address"], members[0].peer_address.as_str());
        assert_eq!(told["pid"], child.id().unwrap());
        match signal {
            None => drop(child.stdin.take()),
            Some(signal) => {
                let kill = Command::new("kill").args([signal, &child.id().unwrap().to_string()]).status();
                assert!(kill.await.unwrap().success());
            }
        }
        let (code, words) = ends(child).await;
        assert_eq!(code, Some(0), "{words}");
        for line in words.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        }
    }
}

#[tokio::test]
async fn the_folder_of_another_node_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let members = members(2);
    let first =
        Node::start(config(NodeId(1), members.clone(), folder.path()), NodeEnv::real()).await.unwrap();
    // In use, by another node at that.
    let other = || config(NodeId(2), members.clone(), folder.path());
    assert!(matches!(Node::start(other(), NodeEnv::real()).await, Err(StartError::ForeignDataDir(_))));
    // Started twice.
    let again = Node::start(config(NodeId(1), members.clone(), folder.path()), NodeEnv::real()).await;
    assert!(matches!(again, Err(StartError::PortBusy(_))), "{again:?}");
    first.shutdown().await;
    let error = Node::start(other(), NodeEnv::real()).await.unwrap_err();
    assert!(matches!(error, StartError::ForeignDataDir(_)), "{error}");
    assert_eq!(error.exit_code(), 2);
    let mut foreign = config(NodeId(1), members.clone(), folder.path());
    foreign.cluster_id = ClusterId(99);
    assert!(matches!(Node::start(foreign, NodeEnv::real()).await, Err(StartError::ForeignDataDir(_))));
    // The owner is still welcome, on ports that it just gave back.
    let again = timeout(
        Duration::from_secs(20),
        Node::start(config(NodeId(1), members.clone(), folder.path()), NodeEnv::real()),
    );
    again.await.unwrap().unwrap().shutdown().await;
}

/// A cluster of one whose data tell whether anything was lost.
async fn with_data() -> Cluster {
    let mut cluster = Cluster::start(1).await;
    cluster.create("bank", admin::Mode::Strong, 0).await;
    cluster.create("cart", admin::Mode::Available, 1).await;
    for i in 0..10 {
        for (namespace, context) in [("bank", None), ("cart", observed())] {
            let request = v1::PutRequest {
                namespace: namespace.into(),
                key: format!("k{i}").into(),
                value: format!("{namespace} {i}").into(),
                mutation: cluster.mutation(),
                context,
                ..Default::default()
            };
            cluster.kv(1).put(within(request)).await.unwrap();
        }
    }
    cluster
}

/// Starts the only node again and reads everything.
async fn nothing_is_lost(cluster: &mut Cluster) {
    cluster.start_node(NodeId(1)).await;
    cluster.serving().await;
    for i in 0..10 {
        for namespace in ["bank", "cart"] {
            let request = v1::GetRequest {
                namespace: namespace.into(),
                key: format!("k{i}").into(),
                ..Default::default()
            };
            let read = cluster.kv(1).get(within(request)).await.unwrap().into_inner();
            let siblings = read.siblings.iter().map(|sibling| sibling.value.clone());
            let found: Vec<_> = if namespace == "bank" { vec![read.value] } else { siblings.collect() };
            assert_eq!(found, [format!("{namespace} {i}")], "{namespace} {i}");
        }
    }
}

/// Every file of a folder with its content.
fn contents(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// `kvd` for the node of a cluster, on its data.
fn kvd_of(cluster: &Cluster, folder: &Path, more: &str) -> Command {
    let file = cluster_file(folder, cluster.members(), more);
    let mut command = kvd(&file, "n1");
    command.arg("--data-dir").arg(cluster.data_dir(1));
    command
}

/// Settings of the nodes that the tests start in their own process.
const STORAGE: &str = "[storage]\nsegment_size = \"16MiB\"\nmax_log_size = \"256MiB\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_named_and_left_alone() {
    let mut cluster = with_data().await;
    cluster.stop_node(1).await;
    let segment = cluster.data_dir(1).join("wal/0000000000000001.seg");
    let bytes = std::fs::read(&segment).unwrap();
    // In the middle of what is written; not a zero, which may be padding that nothing depends on.
    let half = bytes.iter().rposition(|byte| *byte != 0).unwrap() / 2;
    let middle = half + bytes[half..].iter().position(|byte| *byte != 0).unwrap();
    flip(&segment, middle);
    let before = contents(&cluster.data_dir(1));

    let folder = tempfile::tempdir().unwrap();
    let (code, words) = refused(kvd_of(&cluster, folder.path(), STORAGE)).await;
    assert_eq!(code, Some(2), "{words}");
    for part in
        ["LOG_CORRUPT", "segment 0000000000000001 at offset ", "Do not delete anything", "empty directory"]
    {
        assert!(words.contains(part), "{part}: {words}");
    }
    let offset = words.split("at offset ").nth(1).unwrap().split(':').next().unwrap();
    assert!(offset.parse::<usize>().unwrap() <= middle, "{words}");
    let own = config(NodeId(1), cluster.members().to_vec(), &cluster.data_dir(1));
    let error = Node::start(own, NodeEnv::real()).await.unwrap_err();
    assert!(matches!(error, StartError::LogCorrupt(_)) && error.exit_code() == 2, "{error}");
    let after = contents(&cluster.data_dir(1));
    assert!(before.keys().eq(after.keys()), "{:?} {:?}", before.keys(), after.keys());
    for (path, content) in &before {
        assert!(after[path] == *content, "{} was changed", path.display());
    }

    flip(&segment, middle);
    nothing_is_lost(&mut cluster).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_start_loses_nothing() {
    let mut cluster = with_data().await;
    cluster.stop_node(1).await;
    let folder = tempfile::tempdir().unwrap();
    let before = contents(&cluster.data_dir(1));
    let (code, words) = refused(kvd_of(&cluster, folder.path(), "[raft]\nheartbeta = \"1s\"\n")).await;
    assert!(code == Some(2) && words.contains("CONFIG_INVALID"), "{words}");
    let mut foreign = config(NodeId(1), cluster.members().to_vec(), &cluster.data_dir(1));
    foreign.cluster_id = ClusterId(99);
    let error = Node::start(foreign, NodeEnv::real()).await.unwrap_err();
    assert!(matches!(error, StartError::ForeignDataDir(_)), "{error}");
    assert!(before == contents(&cluster.data_dir(1)), "a refused start changed the data");
    nothing_is_lost(&mut cluster).await;
    cluster.stop().await;
}
