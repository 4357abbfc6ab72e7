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

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::process::{cluster_file, ends, kvd, ready, refused, spawn, terminate};
use common::{Cluster, config, members, observed, start, within};
use kv_proto::admin::admin_service_client::AdminServiceClient;
use kv_proto::{admin, v1};
use kv_server::StartError;
use kv_types::{ClusterId, NodeId};
use tokio::process::Command;
use tokio::time::timeout;

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

/// Where the program was started may be gone; that is an error only where something is meant from there.
#[tokio::test]
async fn a_working_folder_that_is_gone_ends_in_words_and_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = cluster_file(folder.path(), &members(1), "");
    let gone = folder.path().join("gone");
    std::fs::create_dir(&gone).unwrap();
    let kvd = env!("CARGO_BIN_EXE_kvd");
    let mut command = Command::new("sh");
    command.arg("-c").arg("cd \"$1\" && rmdir \"$1\" && shift && exec \"$@\"").arg("sh").args([&gone]);
    command.arg(kvd).arg("--config").arg(&file).args(["--node", "n1", "--data-dir", "data"]);
    command.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    let (code, words) = refused(command).await;
    assert!(code == Some(2) && words.contains("CONFIG_INVALID") && words.contains("data_dir"), "{words}");
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
        let mut child = spawn(&mut command);
        let told = ready(&ready_file).await;
        assert_eq!(told["node"], "n1");
        assert_eq!(told["client_address"], members[0].client_address.as_str());
        assert_eq!(told["peer_address"], members[0].peer_address.as_str());
        assert_eq!(told["pid"], child.id().unwrap());
        // What clients keep here is for the node's user alone.
        let data = folder.path().join(members[0].id.to_string());
        for path in [data.clone(), data.join("IDENTITY"), data.join("tier")] {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
        }
        match signal {
            None => drop(child.stdin.take()),
            Some(signal) => {
                assert_eq!(signal, "-TERM");
                terminate(&child).await;
            }
        }
        let (code, words) = ends(child).await;
        assert_eq!(code, Some(0), "{words}");
        assert!(!ready_file.exists(), "it would say that the node serves");
        for line in words.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        }
    }
}

#[tokio::test]
async fn the_folder_of_another_node_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let members = members(2);
    let first = start(config(NodeId(1), members.clone(), folder.path())).await.unwrap();
    // In use, by another node at that.
    let other = || config(NodeId(2), members.clone(), folder.path());
    assert!(matches!(start(other()).await, Err(StartError::ForeignDataDir(_))));
    // Started twice.
    let again = start(config(NodeId(1), members.clone(), folder.path())).await;
    assert!(matches!(again, Err(StartError::PortBusy(_))), "{again:?}");
    first.shutdown().await;
    let error = start(other()).await.unwrap_err();
    assert!(matches!(error, StartError::ForeignDataDir(_)), "{error}");
    assert_eq!(error.exit_code(), 2);
    let mut foreign = config(NodeId(1), members.clone(), folder.path());
    foreign.cluster_id = ClusterId(99);
    assert!(matches!(start(foreign).await, Err(StartError::ForeignDataDir(_))));
    // The owner is still welcome, on ports that it just gave back.
    let again = timeout(Duration::from_secs(20), start(config(NodeId(1), members.clone(), folder.path())));
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
    let error = start(own).await.unwrap_err();
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
    let error = start(foreign).await.unwrap_err();
    assert!(matches!(error, StartError::ForeignDataDir(_)), "{error}");
    assert!(before == contents(&cluster.data_dir(1)), "a refused start changed the data");
    nothing_is_lost(&mut cluster).await;
    cluster.stop().await;
}

#[tokio::test]
async fn other_machines_are_let_in_only_with_insecure_which_every_start_repeats() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = members(1);
    let port = members[0].client_address.split(':').nth(1).unwrap().to_owned();
    members[0].client_address = format!("0.0.0.0:{port}");
    let file = cluster_file(folder.path(), &members, "");
    let (code, words) = refused(kvd(&file, "n1")).await;
    assert_eq!(code, Some(2), "{words}");
    for part in ["CONFIG_INVALID", "client_address of n1", "insecure = true"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("[cluster]\n", "[cluster]\ninsecure = true\n")).unwrap();
    for start in ["first", "second"] {
        let ready_file = folder.path().join(start);
        let mut command = kvd(&file, "n1");
        command.arg("--ready-file").arg(&ready_file);
        let child = spawn(&mut command);
        ready(&ready_file).await;
        terminate(&child).await;
        let (code, words) = ends(child).await;
        assert!(code == Some(0) && words.contains("WARN") && words.contains("INSECURE"), "{start}: {words}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gives_out_the_addresses_of_its_file_and_says_what_differs() {
    let mut cluster = with_data().await;
    cluster.stop_node(1).await;
    let before = cluster.member(1).clone();
    // Moved, and the file names one more.
    let moved = members(2);
    let folder = tempfile::tempdir().unwrap();
    let (file, ready_file) = (cluster_file(folder.path(), &moved, STORAGE), folder.path().join("ready"));
    let mut command = kvd(&file, "n1");
    command.arg("--data-dir").arg(cluster.data_dir(1)).arg("--ready-file").arg(&ready_file);
    let child = spawn(&mut command);
    ready(&ready_file).await;
    let address = format!("http://{}", moved[0].client_address);
    let mut client = AdminServiceClient::connect(address).await.unwrap();
    let mut topology = client.get_topology(within(admin::GetTopologyRequest {})).await.unwrap().into_inner();
    while topology.epoch == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        topology = client.get_topology(within(admin::GetTopologyRequest {})).await.unwrap().into_inner();
    }
    let given: Vec<_> = topology.members.iter().map(|member| (member.id, &*member.client_address)).collect();
    assert_eq!(given, [(1, moved[0].client_address.as_str())]);
    // In the status as in the log.
    let status = client.get_status(within(admin::GetStatusRequest {})).await.unwrap().into_inner();
    let differences = status.differences.join("\n");
    terminate(&child).await;
    let (code, words) = ends(child).await;
    assert_eq!(code, Some(0), "{words}");
    for part in [
        format!(
            "client address of n1: `{}` in the file, `{}`",
            moved[0].client_address, before.client_address
        ),
        format!("peer address of n1: `{}` in the file, `{}`", moved[0].peer_address, before.peer_address),
        "n2 is in the file and not in the catalogue".to_owned(),
    ] {
        assert!(words.contains(&part), "{part}: {words}");
        assert!(differences.contains(&part), "{part}: {differences}");
    }
}
