//! The control socket of a faulty node: one JSON line asks, one answers with everything that is now in force.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock::{ClockStatus, FaultyClock};
use super::disk::{DiskStatus, LossyDisk};
use super::tier::{TierFaults, TierStatus};

/// Longest line of a request.
const MAX_LINE: u64 = 64 << 10;
/// How long a silent connection may hold up the next one.
const SILENCE: Duration = Duration::from_secs(30);

/// What a node can be told, as `{"do": "..."}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Whether unsynced bytes die with the process; they do until told otherwise.
    Disk {
        /// Whether they do.
        lose_unsynced: bool,
    },
    /// After so many more syncs, some fail.
    FailSync {
        /// How many succeed before; `null` heals.
        after: Option<u64>,
        /// How many fail; one when not given. What it should have written is lost for good.
        #[serde(default = "once")]
        times: u64,
    },
    /// The disk becomes full.
    Capacity {
        /// At so many bytes of files; `null` heals.
        #[serde(default)]
        bytes: Option<u64>,
        /// Or when so many more are used.
        #[serde(default)]
        free: Option<u64>,
    },
    /// Every sync takes longer.
    SyncDelayMs {
        /// By so much.
        ms: u64,
    },
    /// The disk takes nothing and syncs nothing: what asks it waits.
    Hang {
        /// Whether it does; `false` heals.
        on: bool,
    },
    /// The lower tier stands still, or takes its time; what is not given stays as it is.
    Tier {
        /// Whether its batches and checkpoints stand still.
        #[serde(default)]
        stalled: Option<bool>,
        /// How much longer each of them takes.
        #[serde(default)]
        delay_ms: Option<u64>,
    },
    /// The wall clock jumps or drifts.
    Clock {
        /// How far it is ahead from now on; as it is when not given.
        #[serde(default)]
        offset_ms: Option<i64>,
        /// How fast it runs from now on; as it does when not given.
        #[serde(default)]
        rate: Option<f64>,
    },
    /// Nothing; only the answer.
    Status,
}

fn once() -> u64 {
    1
}

/// The answer: what is in force after the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether it was done.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The process that answers.
    pub pid: u32,
    /// The seeded bug that this node has, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutant: Option<String>,
    /// The disk.
    pub disk: DiskStatus,
    /// The lower tier.
    pub tier: TierStatus,
    /// The clock.
    pub clock: ClockStatus,
}

/// What the socket commands.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The disk.
    pub disk: LossyDisk,
    /// The lower tier.
    pub tier: TierFaults,
    /// The clock.
    pub clock: FaultyClock,
    /// The seeded bug, for the answers.
    pub mutant: Option<String>,
}

impl Parts {
    /// Does what a line asks and answers it.
    pub fn answer(&self, line: &str) -> Answer {
        let done = serde_json::from_str(line)
            .map_err(|error| format!("not a command: {error}"))
            .and_then(|command| self.obey(command));
        Answer {
            ok: done.is_ok(),
            error: done.err(),
            pid: std::process::id(),
            mutant: self.mutant.clone(),
            disk: self.disk.status(),
            tier: self.tier.status(),
            clock: self.clock.status(),
        }
    }

    fn obey(&self, command: Command) -> Result<(), String> {
        match command {
            Command::Disk { lose_unsynced } => {
                self.disk
                    .lose_unsynced(lose_unsynced)
                    .map_err(|error| format!("writing what waited: {error}"))?;
            }
            Command::FailSync { after, times } => self.disk.fail_sync(after, times),
            Command::Capacity { bytes: Some(_), free: Some(_) } => {
                return Err("either `bytes` or `free`, not both".into());
            }
            Command::Capacity { bytes, free: None } => self.disk.set_capacity(bytes),
            Command::Capacity { bytes: None, free: Some(free) } => {
                self.disk.set_capacity(Some(self.disk.status().used_bytes.saturating_add(free)));
            }
            Command::SyncDelayMs { ms } => self.disk.set_sync_delay(Duration::from_millis(ms)),
            Command::Hang { on } => self.disk.hang(on),
            Command::Tier { stalled, delay_ms } => {
                if let Some(ms) = delay_ms {
                    self.tier.set_delay(Duration::from_millis(ms));
                }
                if let Some(stalled) = stalled {
                    self.tier.stall(stalled);
                }
            }
            Command::Clock { offset_ms, rate } => {
                self.clock.set(offset_ms, rate)?;
            }
            Command::Status => {}
        }
        Ok(())
    }
}

/// Listens at `path`, replacing what an earlier process left there, on a thread of its own: a node that hangs
/// can still be asked.
pub fn listen(path: &Path, parts: Parts) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::thread::Builder::new().name("control".into()).spawn(move || {
        for connection in listener.incoming().flatten() {
            // A connection that breaks is its own end; the next one is served.
            let _ = serve(connection, &parts);
        }
    })?;
    Ok(())
}

fn serve(connection: UnixStream, parts: &Parts) -> io::Result<()> {
    connection.set_read_timeout(Some(SILENCE))?;
    let mut writer = connection.try_clone()?;
    let mut reader = BufReader::new(connection);
    loop {
        let mut line = String::new();
        if io::Read::take(&mut reader, MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut answer = serde_json::to_string(&parts.answer(line.trim()))?;
        answer.push('\n');
        writer.write_all(answer.as_bytes())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        Parts {
            disk: LossyDisk::new(0),
            tier: TierFaults::default(),
            clock: FaultyClock::default(),
            mutant: None,
        }
    }

    #[test]
    fn every_command_answers_with_what_is_in_force() {
        let parts = parts();
        let ask = |line: &str| {
            let answer = parts.answer(line);
            assert!(answer.ok, "{line}: {:?}", answer.error);
            answer
        };
        assert!(ask(r#"{"do":"status"}"#).disk.lose_unsynced);
        assert!(!ask(r#"{"do":"disk","lose_unsynced":false}"#).disk.lose_unsynced);
        let failing = ask(r#"{"do":"fail_sync","after":3}"#).disk;
        assert_eq!((failing.fail_sync_after, failing.fail_sync_times), (Some(3), 1));
        assert_eq!(ask(r#"{"do":"fail_sync","after":null}"#).disk.fail_sync_after, None);
        assert_eq!(ask(r#"{"do":"capacity","bytes":17}"#).disk.capacity_bytes, Some(17));
        assert_eq!(ask(r#"{"do":"capacity","free":5}"#).disk.capacity_bytes, Some(5));
        assert_eq!(ask(r#"{"do":"capacity","bytes":null}"#).disk.capacity_bytes, None);
        assert_eq!(ask(r#"{"do":"sync_delay_ms","ms":9}"#).disk.sync_delay_ms, 9);
        assert!(ask(r#"{"do":"hang","on":true}"#).disk.hangs);
        assert!(!ask(r#"{"do":"hang","on":false}"#).disk.hangs);
        assert!(ask(r#"{"do":"tier","stalled":true}"#).tier.stalled);
        let slow = ask(r#"{"do":"tier","delay_ms":7}"#).tier;
        assert!(slow.stalled && slow.delay_ms == 7, "the one is not the other: {slow:?}");
        assert!(!ask(r#"{"do":"tier","stalled":false,"delay_ms":0}"#).tier.stalled);
        let clock = ask(r#"{"do":"clock","offset_ms":3600000,"rate":2.0}"#).clock;
        assert!(clock.offset_ms >= 3_600_000);
        assert_eq!(ask(r#"{"do":"clock","offset_ms":0,"rate":1.0}"#).clock.rate, 1.0);
        for bad in [
            "",
            "{}",
            r#"{"do":"dance"}"#,
            r#"{"do":"clock","rate":-1}"#,
            r#"{"do":"capacity","bytes":1,"free":1}"#,
        ] {
            assert!(!parts.answer(bad).ok, "{bad}");
        }
    }

    #[test]
    fn the_socket_answers_line_by_line_and_outlives_its_callers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        std::fs::write(&path, "left behind").unwrap();
        let parts = parts();
        listen(&path, parts).unwrap();
        for offset in [1000, -1000] {
            let mut stream = UnixStream::connect(&path).unwrap();
            for _ in 0..2 {
                writeln!(stream, r#"{{"do":"clock","offset_ms":{offset}}}"#).unwrap();
                let mut line = String::new();
                BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
                let answer: Answer = serde_json::from_str(&line).unwrap();
                assert!((answer.clock.offset_ms - offset).abs() < 500, "{answer:?}");
            }
        }
    }
}
