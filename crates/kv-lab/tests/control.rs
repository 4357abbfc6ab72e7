//! A lab in the background, with real nodes: what `kvctl lab` and `kvctl fault` do, and that nothing is left
//! behind, even when the supervisor is killed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kv_lab::control::{Reply, Request, Status, ask, launch, supervise};
use kv_lab::{LabError, LabOptions, NodeName, Proof};

/// Names the lab's folder to the process that supervises it.
const DIR: &str = "KV_LAB_TEST_DIR";
/// Ports away from those that people and other tests use.
const PORT_BASE: u16 = 19_100;

fn options(dir: &Path) -> LabOptions {
    LabOptions { nodes: 3, port_base: PORT_BASE, ..LabOptions::new(dir) }
}

/// Not a test: the supervisor's process, this executable started again by the tests below, with the folder in
/// its environment.
#[test]
fn a_supervisor() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(supervise(options(Path::new(&dir)))).unwrap();
}

async fn up(dir: &Path) -> Status {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_supervisor", "--nocapture"]).env(DIR, dir);
    launch(&options(dir), command).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn all_end(status: &Status) {
    let alive = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    let ended = async {
        while status.nodes.iter().filter_map(|node| node.pid).any(|pid| alive(&pid)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("every node ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lab_comes_up_is_broken_and_healed_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let status = up(dir).await;
    assert!(status.nodes.len() == 3 && status.nodes.iter().all(|node| node.up), "{status:?}");
    for log in ["supervisor.log", "logs/n1.log"] {
        let mode = std::fs::metadata(dir.join(log)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{log}: keys and addresses are for the owner");
    }
    let refused = launch(&options(dir), Command::new("true")).await.unwrap_err();
    assert!(matches!(refused, LabError::AlreadyRunning { .. }), "{refused}");

    let node = |id: u64| NodeName(kv_types::NodeId(id));
    let groups = vec![vec![node(1)], vec![node(2), node(3)]];
    let Reply::Installed(cut) = ask(dir, Request::Partition { groups, for_ms: Some(200) }).await.unwrap()
    else {
        panic!("a change of faults is answered as one")
    };
    assert_eq!((cut.links, cut.probes, cut.as_expected), (4, 4, 4));
    let healed_by_itself = async {
        while ask(dir, Request::List).await.unwrap()
            != (Reply::Faults { faults: Vec::new(), paused: Vec::new() })
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), healed_by_itself).await.unwrap();

    ask(dir, Request::Cut { from: node(1), to: node(3), for_ms: None }).await.unwrap();
    let Reply::Installed(healed) = ask(dir, Request::Heal).await.unwrap() else { panic!("so is healing") };
    assert_eq!((healed.links, healed.as_expected), (1, healed.probes));

    let kill = || ask(dir, Request::Kill { node: node(2) });
    let killed = |reply| matches!(reply, Reply::Process(Proof::Killed { by_signal: true, .. }));
    assert!(killed(kill().await.unwrap()));
    assert!(!killed(kill().await.unwrap()), "it did not run");
    let Reply::Status(one_down) = ask(dir, Request::Status).await.unwrap() else { panic!("a status") };
    assert!(!one_down.nodes[1].up && one_down.nodes[2].up);
    ask(dir, Request::Restart { node: node(2), empty: false }).await.unwrap();
    ask(dir, Request::Pause { node: node(3) }).await.unwrap();
    let still = Reply::Faults { faults: Vec::new(), paused: vec![node(3)] };
    assert_eq!(ask(dir, Request::List).await.unwrap(), still);
    ask(dir, Request::Resume { node: node(3) }).await.unwrap();
    let unknown = ask(dir, Request::Kill { node: node(9) }).await.unwrap_err();
    assert_eq!(unknown.exit_code(), 2, "{unknown}");

    let Reply::Status(status) = ask(dir, Request::Status).await.unwrap() else { panic!("a status") };
    ask(dir, Request::Down).await.unwrap();
    all_end(&status).await;
    assert!(!dir.join("control.sock").exists());
    assert!(matches!(ask(dir, Request::Status).await, Err(LabError::NotRunning { .. })));

    // Once more, and this time the supervisor is killed: its nodes end with it, and its socket is no
    // obstacle.
    let status = up(dir).await;
    Command::new("kill").args(["-9", &status.pid.to_string()]).status().unwrap();
    all_end(&status).await;
    let status = up(dir).await;
    ask(dir, Request::Down).await.unwrap();
    all_end(&status).await;
}
