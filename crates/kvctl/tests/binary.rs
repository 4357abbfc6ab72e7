//! The binary as a script meets it: exit codes, streams, and the three parts of an error.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "an integration test: clippy's exemption covers only unit tests"
)]

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tokio::time::Instant;

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
        command.args(line.split(' ').filter(|word| !word.is_empty())).env_clear();
        command.env("XDG_CONFIG_HOME", self.0.path()).env("XDG_STATE_HOME", self.0.path());
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn write_config(&self, text: &str) {
        std::fs::create_dir_all(self.0.path().join("kvctl")).unwrap();
        std::fs::write(self.0.path().join("kvctl/config.toml"), text).unwrap();
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// An address where nothing listens.
fn unserved() -> String {
    format!("127.0.0.1:{}", kv_env::choose_port().unwrap())
}

#[test]
fn a_namespace_without_a_mode_is_an_error_that_explains_the_choice() {
    let output = Home::new().run("ns create x");
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    for part in [
        "error: `x` needs a mode",
        "linearizable",
        "siblings",
        "kvctl ns create x --mode strong",
        "--mode available",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn a_deletion_that_does_not_say_now_is_an_error_that_says_how() {
    let output = Home::new().run("ns delete x");
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    for part in ["error: `x` would be deleted", "no way back", "add --now", "  try: kvctl ns delete x --now"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn without_a_cluster_the_error_is_quick_and_has_three_parts() {
    let begun = Instant::now();
    let output = Home::new().run(&format!("-e {} get -n bank alice", unserved()));
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(output.status.code(), Some(3));
    let text = stderr(&output);
    assert!(text.starts_with("error: cannot reach 127.0.0.1:"), "{text}");
    assert!(text.contains("applied: no    reason: UNREACHABLE"), "{text}");
    assert!(text.contains("  try: kvctl lab up"), "{text}");
    assert!(output.stdout.is_empty());
}

#[test]
fn errors_are_json_when_results_are() {
    let output = Home::new().run(&format!("-o json -e {} put -n bank alice 1", unserved()));
    assert_eq!(output.status.code(), Some(3));
    let text = stderr(&output);
    assert!(text.starts_with(r#"{"v":1,"error":{"#) && text.contains(r#""applied":"no""#), "{text}");
}

#[test]
fn usage_errors_exit_2_and_help_exits_0() {
    let home = Home::new();
    for line in [
        "",
        "no-such-command",
        "get",
        "get k",
        "-n b cas k v",
        "bench -n b --for 10",
        "bench -n b --mode strong",
        "ns delete",
        "-c nowhere -n b get k",
    ] {
        assert_eq!(home.run(line).status.code(), Some(2), "{line}");
    }
    for line in [
        "--help",
        "help",
        "help exit-codes",
        "help consistency",
        "help output",
        "help put",
        "version",
        "--version",
    ] {
        let output = home.run(line);
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert!(!output.stdout.is_empty(), "{line}");
    }
    assert!(stdout(&home.run("help exit-codes")).contains("130"));
}

#[test]
fn contexts_are_listed_selected_and_shown() {
    let home = Home::new();
    home.write_config("[context.a]\nendpoints = [\"h:1\"]\n[context.b]\nendpoints = [\"h:2\"]\n");
    assert_eq!(home.run("ctx use b").status.code(), Some(0));
    assert!(stdout(&home.run("ctx list")).contains("*  b"), "{}", stdout(&home.run("ctx list")));
    assert!(stdout(&home.run("ctx show")).contains("h:2"));
    assert!(stdout(&home.run("ctx show -c a -o json")).starts_with(r#"{"v":1,"context":"a""#));
    assert_eq!(home.run("ctx use nowhere").status.code(), Some(2));
}

#[test]
fn faults_are_refused_outside_a_lab() {
    let home = Home::new();
    home.write_config("current = \"prod\"\n[context.prod]\nendpoints = [\"h:1\"]\n");
    let output = home.run("fault partition n1 / n2");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("context `prod` is not a lab"));
}

#[test]
fn without_a_lab_nothing_is_faulted() {
    let output = Home::new().run("fault heal");
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}

#[test]
fn histories_are_judged() {
    let home = Home::new();
    let event = |time: u64, kind: &str, f: &str, value: &str| {
        format!(
            "{{\"index\":{time},\"time\":{time},\"process\":1,\"type\":\"{kind}\",\"f\":\"{f}\",\"key\":\"k\",\"value\":{value},\"ns\":\"bank\"}}\n"
        )
    };
    let good = event(0, "invoke", "write", "1") + &event(1, "ok", "write", "1");
    let check = |last: &str| {
        let history = good.clone() + &event(2, "invoke", "read", "null") + &event(3, "ok", "read", last);
        let mut child = home
            .command("check -")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(history.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let valid = check("1");
    assert_eq!(valid.status.code(), Some(0), "{}", stderr(&valid));
    assert!(stdout(&valid).contains("linearizable: valid"));
    let invalid = check("2");
    assert_eq!(invalid.status.code(), Some(1));
    assert!(stdout(&invalid).contains("is not linearizable"));
    assert_eq!(home.run("check /nowhere").status.code(), Some(2));
}

#[test]
fn ctrl_c_exits_130() {
    let home = Home::new();
    // It waits for standard input, which stays open.
    let mut child = home.command("check -").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let open = child.stdin.take(); // waiting for the child would close it
    std::thread::sleep(Duration::from_millis(500));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(open);
}
