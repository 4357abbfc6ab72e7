//! What is set beside a line, and what a line names that is not there: contexts and their file, the
//! environment, names that are empty, histories that are none. No cluster is needed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "an integration test: clippy's exemption covers only unit tests"
)]

use std::process::{Command, Output, Stdio};

struct Home(tempfile::TempDir);

impl Home {
    /// With the contexts `a` and `b`, of which `a` is selected.
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(home.0.path().join("kvctl")).unwrap();
        let contexts = "current = \"a\"\n[context.a]\nendpoints = [\"127.0.0.1:1\"]\n[context.b]\nendpoints = [\"127.0.0.1:2\"]\n";
        std::fs::write(home.0.path().join("kvctl/config.toml"), contexts).unwrap();
        home
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
        command.args(words).env_clear().stdin(Stdio::null());
        command.env("XDG_CONFIG_HOME", self.0.path()).env("XDG_STATE_HOME", self.0.path());
        command
    }

    fn run(&self, words: &[&str]) -> Said {
        Said::of(&self.command(words).output().unwrap())
    }
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

/// The environment beats what is selected, and it is said when something is selected in vain.
#[test]
fn a_selection_that_the_environment_beats_says_so() {
    let home = Home::new();
    for words in [&["ctx", "use", "b"][..], &["ctx", "add", "c", "-e", "127.0.0.1:3"]] {
        for (name, value) in [("KVCTL_CONTEXT", "a"), ("KVCTL_ENDPOINT", "127.0.0.1:9")] {
            let said = Said::of(&home.command(words).env(name, value).output().unwrap());
            assert_eq!(said.code, Some(0), "{words:?}: {}", said.err);
            let warns =
                format!("warning: {name}={value} is set and beats what is selected, so `{}`", words[2]);
            assert!(said.err.starts_with(&warns), "{words:?}: {}", said.err);
            assert!(said.err.contains(&format!("unset {name}")), "{words:?}: {}", said.err);
            let shown = Said::of(&home.command(&["ctx", "show"]).env(name, value).output().unwrap());
            assert!(shown.out.contains(name), "it is the one that counts: {}", shown.out);
            home.run(&["ctx", "remove", "c"]);
        }
    }
    // Where both are the same, or nothing is set, there is nothing to say.
    for value in ["b", ""] {
        let said = home.command(&["ctx", "use", "b"]).env("KVCTL_CONTEXT", value).output().unwrap();
        assert_eq!(Said::of(&said).err, "");
    }
    // Lines of a shell do not see its environment as a person does.
    let mut shell = home.command(&["-c", "a", "shell"]);
    let script = home.0.path().join("script");
    std::fs::write(&script, "ctx use b\n").unwrap();
    let said = Said::of(&shell.stdin(std::fs::File::open(&script).unwrap()).output().unwrap());
    assert!(said.err.contains("this shell was told a") && said.err.contains("-c b"), "{}", said.err);
}

/// As where the file of contexts is kept elsewhere, under version control.
#[test]
fn a_file_of_contexts_that_is_a_link_stays_one() {
    let home = Home::new();
    let (path, kept) = (home.0.path().join("kvctl/config.toml"), home.0.path().join("kept.toml"));
    std::fs::rename(&path, &kept).unwrap();
    std::os::unix::fs::symlink("../kept.toml", &path).unwrap();
    assert_eq!(home.run(&["ctx", "use", "b"]).code, Some(0));
    assert!(std::fs::symlink_metadata(&path).unwrap().is_symlink());
    assert!(std::fs::read_to_string(&kept).unwrap().contains("current = \"b\""));
}

/// An option without a name, as of a variable that is empty, means no other cluster and no other namespace.
#[test]
fn an_option_that_names_nothing_is_refused() {
    let home = Home::new();
    for (words, says, line) in [
        (&["get", "-n", "", "k"][..], "-n names no namespace", "kvctl ns list"),
        (&["-c", "b", "ns", "list", "-n", ""], "-n names no namespace", "kvctl -c b ns list"),
        (&["put", "-c", "", "-n", "x", "k", "v"], "-c names no context", "kvctl ctx list"),
        (&["del", "-e", "", "-n", "x", "k"], "-e names no node", "kvctl ctx list"),
    ] {
        let said = home.run(words);
        assert_eq!(said.code, Some(2), "{words:?}: {}", said.err);
        assert!(said.err.contains(says), "{words:?}: {}", said.err);
        assert!(said.err.contains(&format!("  try: {line}   (")), "{words:?}: {}", said.err);
    }
}

#[test]
fn errors_of_a_line_say_what_to_type() {
    let home = Home::new();
    for (words, says, line) in [
        (&["ctx", "add", "p"][..], "where is the cluster `p`", "kvctl ctx add -e 127.0.0.1:7101 p"),
        (&["ctx", "add", "p", "-e", "h:0"], "no node can be reached at port 0", "kvctl help ctx add"),
        (&["ctx", "add", "-e", "h:1", "no/name"], "is no name for a context", "kvctl help ctx add"),
        (&["man", "/proc/x"], "cannot write the manual pages into /proc/x", "ls -ld /proc"),
        (
            &["ns", "create", "x", "--mode", "strong", "--n", "3", "--w", "2"],
            "--n belongs to available namespaces",
            "kvctl ns create --mode strong x",
        ),
        (
            &["ns", "create", "x", "--mode", "available", "--n", "3", "--w", "5"],
            "--w 5 asks for more replicas",
            "kvctl ns create --mode available --n 3 --w 3 x",
        ),
        (&["check", "/proc/self/environ"], "is not a history: line 1: ", "kvctl help check"),
    ] {
        let said = home.run(words);
        assert_eq!(said.code, Some(2), "{words:?}: {}", said.err);
        assert!(said.err.contains(says), "{words:?}: {}", said.err);
        assert!(said.err.contains(&format!("\n  try: {line}")), "{words:?}: {}", said.err);
    }
}

/// Of a line that does not end no more is read than a line may have.
#[test]
fn a_history_of_endless_lines_is_refused() {
    let home = Home::new();
    let said = home.run(&["check", "/dev/zero"]);
    assert_eq!(said.code, Some(2), "{}", said.err);
    let says = "error: /dev/zero is not a history: line 1: it has more than the 33554432 bytes";
    assert!(said.err.starts_with(says), "{}", said.err);
}

/// A slip in the name of a namespace would have it judged by the promise of the other mode.
#[test]
fn namespaces_that_a_history_does_not_have_are_named() {
    let home = Home::new();
    let file = home.0.path().join("history.jsonl");
    let event = |time: u64, kind: &str, f: &str, value: &str| {
        format!(
            "{{\"index\":{time},\"time\":{time},\"process\":1,\"type\":\"{kind}\",\"f\":\"{f}\",\"key\":\"k\",\"value\":{value},\"ns\":\"bank\"}}\n"
        )
    };
    let history = [event(0, "invoke", "write", "1"), event(1, "ok", "write", "1")].concat();
    std::fs::write(&file, history).unwrap();
    let file = file.to_str().unwrap();
    for option in ["--strong", "--available"] {
        let said = home.run(&["check", option, "nope", file]);
        assert_eq!(said.code, Some(2), "{option}: {}", said.err);
        let text = said.err.replace("\n       ", " ");
        assert!(
            text.contains(&format!("{option} nope: no operation in {file} is of that namespace")),
            "{text}"
        );
        assert!(text.contains("there are: bank"), "{text}");
        let said = home.run(&["check", option, "bnak", file]);
        assert!(said.err.contains(&format!("  try: kvctl check {option} bank {file}")), "{}", said.err);
        assert_eq!(home.run(&["check", option, "bank", file]).code, Some(0), "{option}");
    }
    let both = home.run(&["check", "--strong", "bank", "--available", "bank", file]);
    assert!(both.code == Some(2) && both.err.contains("both by --strong and by --available"), "{}", both.err);
}
