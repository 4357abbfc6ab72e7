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

use common::{PATIENCE, config, eventually, members};
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
