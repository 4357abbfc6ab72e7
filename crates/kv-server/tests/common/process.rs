//! `kvd` as a process: its cluster file, its command, what it says and what memory it takes.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use kv_types::catalogue::Member;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{PATIENCE, STARTING, eventually};

pub fn cluster_file(folder: &Path, members: &[Member], more: &str) -> PathBuf {
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

pub fn kvd(file: &Path, node: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvd"));
    command.args(["--config".as_ref(), file.as_os_str()]).args(["--node", node]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Starts a process.
pub fn spawn(command: &mut Command) -> Child {
    let _starting = STARTING.lock().unwrap();
    command.spawn().unwrap()
}

/// Exit code and words of a process that does not start.
pub async fn refused(mut command: Command) -> (Option<i32>, String) {
    let output = timeout(PATIENCE, spawn(&mut command).wait_with_output()).await.unwrap().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

pub async fn ready(file: &Path) -> serde_json::Value {
    eventually("the ready file is there", async || file.exists()).await;
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

pub async fn ends(mut child: Child) -> (Option<i32>, String) {
    let mut words = String::new();
    let status = timeout(PATIENCE, async {
        child.stderr.take().unwrap().read_to_string(&mut words).await.unwrap();
        child.wait().await.unwrap()
    });
    (status.await.unwrap().code(), words)
}

/// Asks a process to stop.
pub async fn terminate(child: &Child) {
    let mut kill = spawn(Command::new("kill").args(["-TERM", &child.id().unwrap().to_string()]));
    assert!(kill.wait().await.unwrap().success());
}

/// The most memory that a process ever held, bytes.
pub fn most_memory(child: &Child) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
}
