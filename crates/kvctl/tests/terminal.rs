//! What is written on a terminal: nothing that it would print as rubbish, and what it needs when it is not
//! one that lines can be edited on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "an integration test: clippy's exemption covers only unit tests"
)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// How long a terminal waits to see something.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program on a terminal.
struct Terminal {
    keys: File,
    seen: Receiver<Vec<u8>>,
    child: Child,
    text: String,
}

impl Terminal {
    /// One that answers no question.
    fn run(home: &std::path::Path, term: &str, line: &str) -> Self {
        Self::start(home, term, line, false)
    }

    /// `answers`: it says where its cursor is when it is asked, so that lines can be edited.
    fn start(home: &std::path::Path, term: &str, line: &str, answers: bool) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let theirs: OwnedFd = File::options().read(true).write(true).open(name).unwrap().into();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
        command.args(line.split(' ').filter(|word| !word.is_empty())).env_clear().env("TERM", term);
        command.env("XDG_CONFIG_HOME", home).env("XDG_STATE_HOME", home);
        command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap()).stderr(theirs);
        let child = command.spawn().unwrap();
        // It holds the other end, which must be closed when the child ends.
        drop(command);
        let keys = File::from(ours);
        let (send, seen) = sync_channel(64);
        let mut screen = keys.try_clone().unwrap();
        let mut cursor = keys.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut some = [0; 4_096];
            while let Ok(length @ 1..) = screen.read(&mut some) {
                if answers && some[..length].windows(4).any(|asked| asked == b"\x1b[6n") {
                    let _ = cursor.write_all(b"\x1b[1;1R");
                }
                if send.send(some[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { keys, seen, child, text: String::new() }
    }

    fn types(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until this was written after what was waited for before.
    fn sees(&mut self, what: &str) {
        let from = self.text.len();
        while !self.text[from.saturating_sub(what.len())..].contains(what) {
            let more = self.seen.recv_timeout(PATIENCE);
            let more = more.unwrap_or_else(|_| panic!("{what:?} is not in {:?}", self.text));
            self.text.push_str(&String::from_utf8_lossy(&more));
        }
    }

    /// All that was written, and the exit code. One that neither writes nor ends fails.
    fn ends(mut self) -> (String, Option<i32>) {
        loop {
            match self.seen.recv_timeout(PATIENCE) {
                Ok(more) => self.text.push_str(&String::from_utf8_lossy(&more)),
                // Its end of the terminal is closed.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    self.child.kill().unwrap();
                    panic!("it does not end after {:?}", self.text);
                }
            }
        }
        (self.text, self.child.wait().unwrap().code())
    }
}

#[test]
fn a_dumb_terminal_gets_no_escape_sequences() {
    let home = tempfile::tempdir().unwrap();
    let unserved = format!("127.0.0.1:{}", kv_env::choose_port().unwrap());
    for term in ["dumb", ""] {
        for line in [
            "",
            "--help",
            "help put",
            "get k",
            "get",
            "frobnicate",
            "ns rm x",
            "ctx list",
            "ctx use nowhere",
            "lab status",
            "lab down",
            "version",
            &format!("-e {unserved} get -n b k -vv"),
            &format!("-e {unserved} put -n b k v"),
            &format!("-e {unserved} ns delete cart"),
            &format!("-e {unserved} cluster status"),
            &format!("-e {unserved} top"),
            &format!("-e {unserved} bench --for 1s"),
        ] {
            let (text, code) = Terminal::run(home.path(), term, line).ends();
            assert!(!text.contains('\u{1b}'), "TERM={term} kvctl {line}: {text:?}");
            assert!(code.is_some() && !text.is_empty(), "TERM={term} kvctl {line}");
        }
    }
    // One that knows them gets colour, unless it is not wanted.
    for line in ["get k", "get"] {
        let (text, _) = Terminal::run(home.path(), "xterm", line).ends();
        assert!(text.contains("\u{1b}[1"), "{text:?}");
        let (text, _) = Terminal::run(home.path(), "xterm", &format!("--color never {line}")).ends();
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}

#[test]
fn a_shell_works_on_any_terminal() {
    let home = tempfile::tempdir().unwrap();
    let unserved = format!("127.0.0.1:{}", kv_env::choose_port().unwrap());
    let mut shell = Terminal::run(home.path(), "dumb", &format!("-e {unserved} shell"));
    shell.sees("> ");
    shell.types("version\n");
    shell.sees("kvctl 0.");
    shell.types("use bank\n");
    shell.sees("is taken without knowing whether there is one");
    shell.sees("/bank> ");
    shell.types("put 'k\n");
    shell.sees("error: a quote is not closed");
    shell.types("exit\n");
    let (text, code) = shell.ends();
    assert_eq!(code, Some(0), "{text:?}");
    assert!(!text.contains('\u{1b}') && !text.contains("line 0"), "{text:?}");
    // One that does not say where its cursor is.
    let mut shell = Terminal::run(home.path(), "xterm", "shell");
    shell.sees("takes no editor of lines");
    shell.types("version\n");
    shell.sees("kvctl 0.");
    shell.types("\u{4}");
    assert_eq!(shell.ends().1, Some(0));
}

/// Tab completes the only word that may follow, and says nothing where none may: Enter is the line's.
#[test]
fn what_leaves_no_choice_asks_for_none() {
    let home = tempfile::tempdir().unwrap();
    let unserved = format!("127.0.0.1:{}", kv_env::choose_port().unwrap());
    let mut shell = Terminal::start(home.path(), "xterm", &format!("-e {unserved} shell"), true);
    shell.sees("> ");
    shell.types("vers\t");
    shell.sees("version");
    shell.types("\r");
    shell.sees("kvctl 0.");
    shell.sees("> ");
    shell.types("zzz\t\r");
    shell.sees("error:");
    shell.sees("> ");
    // Of several one is chosen, and the line goes on.
    shell.types("co\t");
    shell.sees("completion");
    shell.types("\u{3}");
    shell.sees("> ");
    shell.types("exit\r");
    let (text, code) = shell.ends();
    assert_eq!(code, Some(0), "{text:?}");
}

/// Whatever ends it, the terminal is as it was before.
#[test]
fn a_picture_that_is_ended_gives_the_terminal_back() {
    let home = tempfile::tempdir().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let line = format!("-e {} top --timeout 20s", silent.local_addr().unwrap());
    let mut top = Terminal::run(home.path(), "xterm", &line);
    top.sees("\u{1b}[?1049h");
    assert!(Command::new("kill").args(["-TERM", &top.child.id().to_string()]).status().unwrap().success());
    let (text, code) = top.ends();
    assert_eq!(code, Some(143), "{text:?}");
    assert!(text.contains("\u{1b}[?1049l"), "{text:?}");
}

/// What takes long is spoken of, on a terminal only.
#[test]
fn a_silent_node_is_waited_for_in_words() {
    let home = tempfile::tempdir().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    for line in ["ns delete cart --now", "cluster transfer-leader n3"] {
        let line = format!("-e {address} {line} --timeout 4s");
        let (text, code) = Terminal::run(home.path(), "xterm", &line).ends();
        assert!(text.contains("\r\u{1b}[Kwaiting ") && code == Some(4), "{line}: {text:?}");
        // The last of it is taken back before the error is said.
        assert!(text.contains("\r\u{1b}[K\u{1b}[1;31merror:"), "{line}: {text:?}");
        let (text, _) = Terminal::run(home.path(), "dumb", &line).ends();
        assert!(text.contains("waiting ") && !text.contains('\u{1b}'), "{line}: {text:?}");
        let (text, _) = Terminal::run(home.path(), "xterm", &format!("{line} -q")).ends();
        assert!(!text.contains("waiting "), "{line}: {text:?}");
    }
}
