//! Faults of processes and of the files that they leave: each returns the proof that it happened, for a fault
//! that was not seen is not one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kv_types::NodeId;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::process::Child;
use tokio::time::Instant;

use crate::LabError;
use crate::matrix::NodeName;

/// The folder in a node's data directory that holds the lower tier: losing it must lose nothing.
pub const TIER_FOLDER: &str = "tier";
/// How long a process may take until every thread of it stands still, or runs again.
const STATE_WITHIN: Duration = Duration::from_secs(5);
/// How often that is looked at.
const POLL: Duration = Duration::from_millis(2);
/// The file of a node's data directory that says whose it is.
const IDENTITY: &str = "IDENTITY";

/// What was done to a process or its files, and what shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "proof", rename_all = "snake_case")]
pub enum Proof {
    /// Every thread stands still (state `T` in `/proc`).
    Paused {
        /// The node.
        node: NodeName,
        /// Its process.
        pid: u32,
        /// How many threads.
        threads: usize,
    },
    /// They run again.
    Resumed {
        /// The node.
        node: NodeName,
        /// Its process.
        pid: u32,
        /// How many threads.
        threads: usize,
        /// Whether it stood still before.
        stood_still: bool,
    },
    /// It was killed.
    Killed {
        /// The node.
        node: NodeName,
        /// Its process; none if it did not run.
        pid: Option<u32>,
        /// How it ended, in the system's words.
        status: String,
        /// Whether the kill ended it, and nothing else before.
        by_signal: bool,
    },
    /// It was asked to stop, and did.
    Stopped {
        /// The node.
        node: NodeName,
        /// Its process; none if it did not run.
        pid: Option<u32>,
        /// How it ended, in the system's words.
        status: String,
    },
    /// It runs and listens.
    Started {
        /// The node.
        node: NodeName,
        /// Its process.
        pid: u32,
        /// How long it took until it listened.
        after_ms: u64,
    },
    /// Its disk was replaced by an empty one.
    Emptied {
        /// The node.
        node: NodeName,
        /// Files that are gone.
        files: u64,
        /// Bytes that are gone.
        bytes: u64,
    },
    /// Bits of a file were flipped at rest.
    Flipped {
        /// The node.
        node: NodeName,
        /// The file, below its data directory.
        file: PathBuf,
        /// Which byte.
        offset: u64,
        /// What it was.
        was: u8,
        /// What it is.
        is: u8,
    },
    /// The end of a file is gone.
    Truncated {
        /// The node.
        node: NodeName,
        /// The file, below its data directory.
        file: PathBuf,
        /// How long it was.
        was: u64,
        /// How long it is.
        is: u64,
    },
}

impl Proof {
    /// Whether this counts as a fault, or the end of one.
    pub fn is_proven(&self) -> bool {
        match self {
            Self::Paused { threads, .. } | Self::Resumed { threads, .. } => *threads > 0,
            Self::Killed { by_signal, .. } => *by_signal,
            Self::Stopped { pid, .. } => pid.is_some(),
            Self::Started { .. } => true,
            Self::Emptied { files, .. } => *files > 0,
            Self::Flipped { was, is, .. } => was != is,
            Self::Truncated { was, is, .. } => is < was,
        }
    }
}

/// Files of a node in which damage means something else each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// Segments of the log, oldest first: Raft entries, available data, hints.
    Log,
    /// Journals: the histories of strong namespaces.
    Journals,
    /// Raft snapshots.
    Snapshots,
    /// The tier below the log, which may be lost.
    Tier,
    /// Whose directory it is.
    Identity,
}

impl Kept {
    /// The files of this kind in a data directory, in the order of their names.
    pub fn files(self, data: &Path) -> io::Result<Vec<PathBuf>> {
        let mut files = match self {
            Self::Identity => vec![data.join(IDENTITY)],
            Self::Log => files_below(&data.join("wal"))?,
            Self::Journals => files_below(&data.join("journals"))?,
            Self::Snapshots => files_below(&data.join("snapshots"))?,
            Self::Tier => files_below(&data.join(TIER_FOLDER))?,
        };
        files.retain(|file| file.is_file());
        if self == Self::Log {
            files.retain(|file| file.extension().is_some_and(|end| end == "seg"));
        }
        files.sort();
        Ok(files)
    }
}

fn files_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        match path.is_dir() {
            true => files.extend(files_below(&path)?),
            false => files.push(path),
        }
    }
    Ok(files)
}

/// Where the last byte that is not zero stands, plus one: log segments are longer than what was written to
/// them.
pub fn written_length(file: &Path) -> io::Result<u64> {
    let bytes = std::fs::read(file)?;
    Ok(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1))
}

/// Flips one bit of a file: of the byte there before, and there now.
pub(crate) fn flip(file: &Path, offset: u64, bit: u8) -> io::Result<(u8, u8)> {
    let file = File::options().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    let was = byte;
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, offset)?;
    file.sync_all()?;
    file.read_exact_at(&mut byte, offset)?;
    Ok((was[0], byte[0]))
}

/// Cuts a file to this length; its length before and now.
pub(crate) fn truncate(file: &Path, length: u64) -> io::Result<(u64, u64)> {
    let file = File::options().write(true).open(file)?;
    let was = file.metadata()?.len();
    if length < was {
        file.set_len(length)?;
        file.sync_all()?;
    }
    Ok((was, file.metadata()?.len()))
}

/// Files and bytes below a folder.
pub(crate) fn weigh(folder: &Path) -> io::Result<(u64, u64)> {
    let files = files_below(folder)?;
    let bytes = files.iter().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
    Ok((files.len() as u64, bytes))
}

/// A process of a node.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) paused: bool,
}

impl Process {
    /// Stops every thread of it, and sees that they stand still.
    pub(crate) async fn pause(&mut self, node: NodeId) -> Result<Proof, LabError> {
        let (pid, threads) = self.signal(node, Signal::STOP, true).await?;
        self.paused = true;
        Ok(Proof::Paused { node: NodeName(node), pid, threads })
    }

    /// Lets it go on.
    pub(crate) async fn resume(&mut self, node: NodeId) -> Result<Proof, LabError> {
        // As its threads say: it may have been stopped by other hands.
        let states = self.child.id().and_then(|id| thread_states(id).ok()).unwrap_or_default();
        let stood_still = !states.is_empty() && states.iter().all(|state| *state == 'T');
        let (pid, threads) = self.signal(node, Signal::CONT, false).await?;
        self.paused = false;
        Ok(Proof::Resumed { node: NodeName(node), pid, threads, stood_still })
    }

    async fn signal(
        &mut self,
        node: NodeId,
        signal: Signal,
        stopped: bool,
    ) -> Result<(u32, usize), LabError> {
        let not_running = || LabError::NotProven { node, what: "it does not run".into() };
        let id = self.child.id().ok_or_else(not_running)?;
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or_else(not_running)?;
        kill_process(pid, signal).map_err(|error| LabError::System {
            what: format!("cannot signal {node}"),
            source: error.into(),
        })?;
        let deadline = Instant::now() + STATE_WITHIN;
        loop {
            let states =
                thread_states(id).map_err(LabError::system(format!("cannot see the threads of {node}")))?;
            if !states.is_empty() && states.iter().all(|state| (*state == 'T') == stopped) {
                return Ok((id, states.len()));
            }
            if Instant::now() > deadline {
                let what = format!("its threads are {states:?} after a signal that should change that");
                return Err(LabError::NotProven { node, what });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Kills it and waits for its end.
    pub(crate) async fn kill(mut self, node: NodeId) -> io::Result<Proof> {
        let pid = self.child.id();
        self.child.start_kill()?;
        let status = self.child.wait().await?;
        Ok(Proof::Killed {
            node: NodeName(node),
            pid,
            status: status.to_string(),
            by_signal: status.signal() == Some(Signal::KILL.as_raw()),
        })
    }

    /// Asks it to stop and waits, within a bound.
    pub(crate) async fn stop(mut self, node: NodeId, within: Duration) -> io::Result<Proof> {
        if self.paused {
            let _ = self.resume(node).await; // who stands still cannot stop
        }
        let pid = self.child.id();
        // `wait` closes the lifeline, which asks the node to stop.
        let status = match tokio::time::timeout(within, self.child.wait()).await {
            Ok(status) => status?,
            Err(_) => {
                self.child.start_kill()?;
                self.child.wait().await?
            }
        };
        Ok(Proof::Stopped { node: NodeName(node), pid, status: status.to_string() })
    }
}

/// The state of every thread of a process.
fn thread_states(pid: u32) -> io::Result<Vec<char>> {
    let mut states = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the two.
        if let Ok(stat) = std::fs::read_to_string(thread?.path().join("stat")) {
            states.extend(state(&stat));
        }
    }
    Ok(states)
}

/// The state in a line of `/proc/PID/stat`; the name before it may hold anything.
fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The line that the lab writes into a node's log when it does something to the node.
pub(crate) fn marker(what: &str, at: SystemTime) -> String {
    format!("{} ==== kv-lab: {what}\n", stamp(at))
}

/// A moment as the nodes' logs have it.
fn stamp(at: SystemTime) -> String {
    humantime::format_rfc3339_micros(at).to_string()
}

/// The lines of a log between two moments. A line without a moment belongs to the one before it.
pub fn log_between(log: &str, from: SystemTime, to: SystemTime) -> Vec<&str> {
    let (from, to) = (stamp(from), stamp(to));
    let mut inside = false;
    log.lines()
        .filter(|line| {
            if let Some(stamp) = line.get(..from.len()).filter(|stamp| is_stamp(stamp)) {
                // Moments of one form and length: the order of text is that of time.
                inside = (from.as_str()..=to.as_str()).contains(&stamp);
            }
            inside
        })
        .collect()
}

fn is_stamp(text: &str) -> bool {
    text.ends_with('Z') && humantime::parse_rfc3339(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_flipped_and_tails_are_cut_where_the_proof_says() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("wal");
        std::fs::create_dir(&wal).unwrap();
        let file = wal.join("0000000000000001.seg");
        std::fs::write(&file, [1, 2, 3, 0, 0]).unwrap();
        std::fs::write(wal.join("spare"), [1]).unwrap();
        assert_eq!(Kept::Log.files(dir.path()).unwrap(), std::slice::from_ref(&file));
        assert!(Kept::Snapshots.files(dir.path()).unwrap().is_empty());
        assert!(Kept::Identity.files(dir.path()).unwrap().is_empty());
        assert_eq!(written_length(&file).unwrap(), 3);
        assert_eq!(flip(&file, 1, 4).unwrap(), (2, 18));
        assert_eq!(std::fs::read(&file).unwrap(), [1, 18, 3, 0, 0]);
        assert!(flip(&file, 5, 0).is_err(), "beyond its end");
        assert_eq!(truncate(&file, 2).unwrap(), (5, 2));
        assert_eq!(truncate(&file, 9).unwrap(), (2, 2), "nothing is made longer");
        assert_eq!(weigh(dir.path()).unwrap(), (2, 3));
    }

    #[test]
    fn a_state_is_read_whatever_the_process_is_called() {
        assert_eq!(state("77 (kvd) T 1 77"), Some('T'));
        assert_eq!(state("77 (a) S b) R 1 77"), Some('R'));
        assert_eq!(state(""), None);
    }

    #[test]
    fn logs_are_cut_by_time() {
        let at = |text: &str| humantime::parse_rfc3339(text).unwrap();
        let log = "2026-01-02T03:04:05.000001Z  INFO first\n\
            2026-01-02T03:04:06.000000Z ==== kv-lab: n1 was killed\n  at its second line\n\
            no moment at all\n\
            2026-01-02T03:04:07.500000Z  WARN last\nand more\n";
        let cut = log_between(log, at("2026-01-02T03:04:05.5Z"), at("2026-01-02T03:04:07Z"));
        assert_eq!(cut.len(), 3, "{cut:?}");
        assert!(cut[0].contains("killed") && cut[2] == "no moment at all");
        let marked = marker("n1 starts", at("2026-01-02T03:04:06Z"));
        assert_eq!(log_between(&marked, at("2026-01-02T03:04:06Z"), at("2026-01-02T03:04:06Z")).len(), 1);
    }

    #[test]
    fn proofs_are_told_from_claims() {
        let node = NodeName(NodeId(1));
        let killed = |by_signal| Proof::Killed { node, pid: Some(1), status: String::new(), by_signal };
        assert!(killed(true).is_proven() && !killed(false).is_proven());
        let text = serde_json::to_string(&killed(true)).unwrap();
        assert!(text.starts_with(r#"{"proof":"killed","node":"n1""#), "{text}");
        assert!(!Proof::Truncated { node, file: PathBuf::new(), was: 5, is: 5 }.is_proven());
    }
}
