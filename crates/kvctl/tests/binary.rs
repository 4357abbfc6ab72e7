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
        self.write_config_bytes(text.as_bytes());
    }

    fn write_config_bytes(&self, bytes: &[u8]) {
        std::fs::create_dir_all(self.0.path().join("kvctl")).unwrap();
        std::fs::write(self.0.path().join("kvctl/config.toml"), bytes).unwrap();
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
        "kvctl ns create --mode strong x",
        "--mode available",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn what_cannot_be_altered_is_an_error_that_says_so() {
    let output = Home::new().run("ns alter x --n 5");
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    for part in ["error: --n cannot be altered", "R and W can be", "  try: kvctl help ns alter"] {
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
    // A read applies nothing, which goes without saying.
    assert!(text.contains("\n       reason: UNREACHABLE") && !text.contains("applied"), "{text}");
    let put = stderr(&Home::new().run(&format!("-e {} put -n bank alice 1", unserved())));
    assert!(put.contains("applied: no    reason: UNREACHABLE"), "{put}");
    // No lab is meant: a node was named.
    assert!(text.contains("  try: kvctl -e 127.0.0.1:") && text.contains("kvctl ctx list"), "{text}");
    assert!(output.stdout.is_empty());
    let usual = home_without_a_lab().run("get -n bank alice");
    assert!(stderr(&usual).contains("kvctl lab up"), "{}", stderr(&usual));
}

/// Something else listens there, and speaks otherwise.
#[test]
fn what_is_no_kvd_is_said_to_be_none() {
    use std::io::Read as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let (mut stream, mut some) = (stream.unwrap(), [0; 1_024]);
                // More than a greeting: the request.
                let mut came = 0;
                while came < 120
                    && let Ok(more @ 1..) = stream.read(&mut some)
                {
                    came += more;
                }
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
                while matches!(stream.read(&mut some), Ok(1..)) {}
            });
        }
    });
    let home = Home::new();
    for (line, code) in [
        ("get -n bank k", 3),
        ("put -n bank k v", 3),
        ("cas -n bank --expect-absent k v", 3),
        ("ns list", 3),
        ("explain -n bank k", 3),
        ("cluster status", 3),
        ("cluster health", 1),
    ] {
        let output = home.run(&format!("-e {address} {line}"));
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {text}");
        let says = format!("what listens at {address} is no kvd");
        assert!(text.contains(&says), "{line}: {text}");
        assert!(!text.contains("h2 ") && !text.contains("http2"), "{line}: {text}");
        assert!(text.contains("  try: kvctl "), "{line}: {text}");
        // However it was asked, it leads to the address that was meant.
        let shows = text.contains(&format!("  try: kvctl -e {address} ctx show "));
        assert!(shows || line.starts_with("cluster"), "{line}: {text}");
    }
}

/// For a monitor there is one way to be down, with or without a node that says so.
#[test]
fn a_cluster_of_which_no_node_can_be_asked_is_down() {
    let home = home_without_a_lab();
    let output = home.run("cluster health");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(stdout(&output), "down   no node that is known here can be asked\n");
    let text = stderr(&output);
    assert!(text.contains("reason: UNREACHABLE") && text.contains("  try: kvctl lab up "), "{text}");
    let output = home.run("cluster health -o json");
    assert_eq!(output.status.code(), Some(1));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&said["health"], &said["hints_pending"]), (&"down".into(), &serde_json::Value::Null));
    assert!(said["complaints"][0].as_str().unwrap().contains("cannot reach"), "{said}");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stderr).unwrap()["error"]["exit"], 1);
    // What is wrong with the line is not the health of a cluster.
    let wrong = home.run("-e localhost cluster health");
    assert_eq!((wrong.status.code(), stdout(&wrong).as_str()), (Some(2), ""));
}

/// A home whose only context is a lab that does not run.
fn home_without_a_lab() -> Home {
    let home = Home::new();
    let address = unserved();
    home.write_config(&format!(
        "current = \"lab\"\n[context.lab]\nendpoints = [\"{address}\"]\nlab = \"{}\"\n",
        home.0.path().display()
    ));
    home
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
        "ns delete x --grace 1ms",
        "ns delete x --grace 1h --now",
        "ns alter x",
        "-c nowhere -n b get k",
        "-c nowhere lab status",
        "-c nowhere lab down",
        "-c nowhere fault heal",
        "-e localhost -n b get k",
        "ns create x --mode available --n 0",
        "ns create x --mode available --r 0",
        "ns create x --mode available --n 3 --w 4",
        "lab up --port-base 65500",
        "lab up --name ../x",
        "lab logs n1",
        "help nothing",
        "scan",
        "--timeout 99999999999h -n b get k",
        "ctx add .x -e h:1",
        "-n b put --request-id 00000000000000000000000000000000:0@0 k v",
    ] {
        assert_eq!(home.run(line).status.code(), Some(2), "{line}");
    }
    for line in [
        "--help",
        "help",
        "help exit-codes",
        "help consistency",
        "help output",
        "help limits",
        "help put",
        "help lab up",
        "version",
        "--version",
    ] {
        let output = home.run(line);
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert!(!output.stdout.is_empty(), "{line}");
    }
    let codes = stdout(&home.run("help exit-codes"));
    assert!(
        codes.contains("130") && codes.contains("143 by SIGTERM") && codes.contains("129 by SIGHUP"),
        "{codes}"
    );
}

#[test]
fn words_of_other_tools_say_what_to_type() {
    let home = Home::new();
    for (word, line) in [("list", "kvctl ns list"), ("up", "kvctl lab up"), ("watch", "kvctl help")] {
        let output = home.run(word);
        assert_eq!(output.status.code(), Some(2), "{word}");
        assert!(stderr(&output).contains(&format!("  try: {line}")), "{word}: {}", stderr(&output));
    }
    for (typed, line) in [
        ("ns rm cart", "kvctl ns delete cart"),
        ("ns remove", "kvctl help ns delete"),
        ("lab stop", "kvctl lab down"),
        ("lab stop n3", "kvctl lab kill n3"),
        ("lab list", "kvctl ctx list"),
    ] {
        let output = home.run(typed);
        assert_eq!(output.status.code(), Some(2), "{typed}");
        assert!(stderr(&output).contains(&format!("  try: {line}   (")), "{typed}: {}", stderr(&output));
    }
    // An id that no error ever named is not the id of a request.
    for (id, says) in [
        ("00000000000000000000000000000000:1@1700000000000", "which are random, are all 0"),
        ("0123456789abcdef0123456789abcdef:0@1700000000000", "requests count from 1"),
        ("0123456789abcdef0123456789abcdef:1@0", "in milliseconds since 1970, is 0"),
    ] {
        for line in ["put -n b k v", "cas -n b --expect-absent k v", "del -n b k", "ns delete cart"] {
            let output = home.run(&format!("{line} --request-id {id}"));
            assert_eq!(output.status.code(), Some(2), "{line} {id}");
            let (text, help) = (stderr(&output), line.split(" -n").next().unwrap().replace(" cart", ""));
            assert!(text.contains("--request-id") && text.contains(says), "{line}: {text}");
            assert!(text.contains(&format!("  try: kvctl help {help}")), "{line}: {text}");
        }
    }
    assert!(stderr(&home.run("--timeout 1us get -n b k")).contains("a deadline is 10ms to 24h"));
    // The nearest word of kvctl itself is said by the parser.
    let nearest = stderr(&home.run("clutser"));
    assert!(nearest.contains("  try: kvctl help cluster ") && !nearest.contains("tip:"), "{nearest}");
    assert!(stderr(&home.run("undelete cart")).contains("  try: kvctl ns undelete cart "));
}

#[test]
fn what_was_typed_does_nothing_to_a_terminal() {
    let home = Home::new();
    for line in [
        "help a\u{1b}[2Jb",
        "frob\u{1b}[2J",
        "get -n bank --colo\u{1b}[2J k",
        "ctx use \u{9b}2J",
        "ns create \u{1b}]0;x\u{7}",
    ] {
        let text = stderr(&home.run(line));
        let harmful = text.chars().find(|c| c.is_control() && *c != '\n');
        assert!(harmful.is_none() && !text.is_empty(), "{line:?}: {text:?}");
    }
}

#[test]
fn everything_is_json_when_that_was_asked_for() {
    let home = Home::new();
    let line = |text: String| serde_json::from_str::<serde_json::Value>(&text).expect(&text);
    for wrong in ["-o json frobnicate", "list -o json", "get -o=json", "--output json get k --colour"] {
        let output = home.run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert_eq!(line(stderr(&output))["error"]["exit"], 2, "{wrong}");
    }
    assert!(line(stdout(&home.run("version -o json")))["version"].is_string());
    let down = home.run("lab down -o json");
    assert_eq!(down.status.code(), Some(0), "nothing runs, which is what was asked for");
    assert_eq!(line(stdout(&down))["ran"], false);
}

#[test]
fn twice_verbose_shows_attempts_and_no_library() {
    let output = Home::new().run(&format!("-e {} get -n bank k -vv", unserved()));
    let text = stderr(&output);
    assert!(text.contains("attempt=1") && text.contains("attempt=2"), "{text}");
    let log = text.lines().filter(|line| line.contains("DEBUG"));
    assert!(log.clone().all(|line| line.contains("attempt=")), "{text}");
    assert!(log.count() < 20 && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn the_reference_is_what_the_program_says() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/kvctl.md");
    let said = stdout(&Home::new().run("help reference"));
    let written = std::fs::read_to_string(file).unwrap_or_default();
    assert!(written == said, "it changed: kvctl help reference > docs/reference/kvctl.md");
}

#[test]
fn contexts_are_added_and_removed() {
    let home = Home::new();
    assert_eq!(home.run("ctx add prod").status.code(), Some(2), "without a node");
    assert_eq!(home.run("ctx add prod -e localhost").status.code(), Some(2));
    assert_eq!(home.run("ctx add prod -e h1:1 -e h2:1 -n bank").status.code(), Some(0));
    assert!(stdout(&home.run("ctx show")).contains("bank"));
    let taken = home.run("ctx add prod -e h3:1");
    assert_eq!(taken.status.code(), Some(2));
    assert!(stderr(&taken).contains("kvctl ctx remove prod"), "{}", stderr(&taken));
    assert_eq!(home.run("ctx add other -e h3:1").status.code(), Some(0));
    // Without the one that was selected, none is; that is said, with the line that selects another.
    let removed = home.run("ctx remove other");
    assert_eq!((removed.status.code(), stdout(&removed).as_str()), (Some(0), "context `other` is removed\n"));
    let note = "it was the one selected, and none is now. To select one: kvctl ctx use prod\n";
    assert_eq!(stderr(&removed), note);
    assert_eq!(home.run("ctx use prod").status.code(), Some(0));
    assert_eq!(home.run("ctx add third -e h3:1").status.code(), Some(0));
    assert_eq!(home.run("ctx use prod").status.code(), Some(0));
    assert!(stderr(&home.run("ctx remove third")).is_empty(), "another one is selected");
    let last = home.run("ctx remove prod");
    assert_eq!((last.status.code(), stderr(&last).contains("there is no other")), (Some(0), true));
    assert_eq!(home.run("ctx remove prod").status.code(), Some(2));
    assert!(!stdout(&home.run("ctx list")).contains("prod"));
}

#[test]
fn shells_complete_words() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&home.run(&format!("completion {shell}")));
        assert!(script.contains("kvctl") && script.contains("transfer-leader"), "{shell}");
    }
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let home = Home::new();
    let folder = home.0.path().join("share/man1");
    assert_eq!(home.run(&format!("man {}", folder.display())).status.code(), Some(0));
    for (page, part) in [("kvctl.1", "lab"), ("kvctl-ns-create.1", "--mode"), ("kvctl-put.1", "kvctl put")] {
        let text = std::fs::read_to_string(folder.join(page)).expect(page);
        let text = text.replace("\\-", "-");
        assert!(text.contains(".TH") && text.contains(part), "{page}: {text}");
    }
    assert!(!folder.join("kvctl-lab-supervise.1").exists(), "what is hidden has none");
    assert_eq!(home.run("man /dev/null").status.code(), Some(2));
}

/// Sets, counters and lists are not registers, and are not judged as such.
#[test]
fn a_history_of_what_is_not_judged_here_is_refused_by_name() {
    let home = Home::new();
    let good = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../jepsen-tests/known-bad/good");
    for name in ["counter-too-low", "append-lost", "set-element-lost", "set-element-lost-available"] {
        let line = format!("check {}", good.join(format!("{name}.jsonl")).display());
        let output = home.run(&line);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{name}: {text}");
        assert!(text.contains("`jepsen-tests check` judges those"), "{name}: {text}");
    }
}

#[test]
fn a_shell_runs_the_lines_of_a_pipe() {
    let home = Home::new();
    let run = |shell: &str, text: &str| {
        let mut child = home
            .command(shell)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let script = |text: &str| run("shell", text);
    let output = script("# a remark\n\nversion\nkvctl version -o json\nexit\nfrobnicate\n");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 2, "nothing is run after the end: {}", stdout(&output));
    let failing = script("get k\nversion\nput 'k\nget -n b k -e localhost\nversion");
    assert_eq!(failing.status.code(), Some(2), "{}", stderr(&failing));
    assert_eq!(stdout(&failing).lines().count(), 2, "what follows a failure is run: {}", stdout(&failing));
    assert!(stderr(&failing).contains("line 3: error: a quote is not closed"), "{}", stderr(&failing));
    for named in ["line 1: error: which namespace?", "line 4: error: "] {
        assert!(stderr(&failing).contains(named), "{named}: {}", stderr(&failing));
    }
    // Also what the parser says, and as JSON.
    let unread = script("\nget\nns rm\nfrobnicate -o json\nget k -o json\n");
    for named in ["line 2: error: ", "line 3: error: there is no command `ns rm`"] {
        assert!(stderr(&unread).contains(named), "{named}: {}", stderr(&unread));
    }
    let lines: Vec<u64> = stderr(&unread)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["error"]["line"].as_u64())
        .collect();
    assert_eq!(lines, [4, 5], "{}", stderr(&unread));
    // What was said to the shell holds for the lines, also what no environment has.
    let add = |name: &str| format!("ctx add {name} -e localhost:1\n");
    let said = |output: &Output| !stdout(output).is_empty() || !stderr(output).is_empty();
    assert!(said(&run("shell", &add("one"))) && !said(&run("-q shell", &add("two"))));
    // What was said of the namespace and the cluster holds for the lines.
    let address = unserved();
    let asked = run(&format!("-e {address} shell"), "use bank\nget k\n");
    assert_eq!(asked.status.code(), Some(3), "{}", stderr(&asked));
    let unchecked = "`bank` is taken without knowing whether there is one: cannot reach";
    assert!(stderr(&asked).contains(unchecked), "{}", stderr(&asked));
    // What is advised is typed elsewhere, where nothing was chosen.
    let advised = format!("  try: kvctl -e {address} get -n bank k ");
    assert!(stderr(&asked).contains(&advised), "{}", stderr(&asked));
    let wrong = run(&format!("-e {address} shell"), "use No!\n");
    assert_eq!(wrong.status.code(), Some(2), "{}", stderr(&wrong));
    assert!(stderr(&wrong).starts_with("line 1: error: "), "{}", stderr(&wrong));
    // The shell explains itself.
    let help = script("help\nhelp use\n");
    assert_eq!(stdout(&help).matches("use NAMESPACE").count(), 2, "{}", stdout(&help));
    assert!(stdout(&help).contains("exit, quit") && !stdout(&home.run("help")).contains("use NAMESPACE"));
    let seen = home.run(&format!("-e {address} help put"));
    assert!(stdout(&seen).contains("--seen"), "{}", stdout(&seen));
    // A value is never taken from the lines that follow.
    let value = script(&format!("put -e {address} -n bank k -\nversion\n"));
    assert!(stderr(&value).contains("it is closed"), "{}", stderr(&value));
    assert_eq!(stdout(&value).lines().count(), 1);
}

#[test]
fn words_that_are_no_text_and_empty_variables_do_no_harm() {
    use std::os::unix::ffi::OsStrExt;
    let home = Home::new();
    let mut command = home.command("put -n bank");
    command.arg(std::ffi::OsStr::from_bytes(b"a\xff")).arg("v");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("  try: kvctl put -n bank --key-hex 61ff v"), "{}", stderr(&output));
    let mut command = home.command("lab status");
    command.env("KVCTL_ENDPOINT", "").env("KVCTL_CONTEXT", "").env("KVCTL_NAMESPACE", "");
    let output = command.output().unwrap();
    assert!(stderr(&output).contains("no lab runs"), "{}", stderr(&output));
}

#[test]
fn advice_never_means_another_cluster() {
    let home = Home::new();
    let address = unserved();
    let text = stderr(&home.run(&format!("-e {address} put -n bank --timeout 900ms bob 5")));
    assert!(!text.contains("lab up"), "{text}");
    assert!(text.contains(&format!("kvctl -e {address} put -n bank --timeout 900ms bob 5")), "{text}");
    let refused = home.run(&format!("-e {address} lab down"));
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    home.write_config("current = \"prod\"\n[context.prod]\nendpoints = [\"127.0.0.1:1\"]\n");
    for line in ["lab down", "lab status", "lab kill n1", "fault pause n1"] {
        let output = home.run(line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(stderr(&output).contains("context `prod` is not a lab"), "{line}: {}", stderr(&output));
    }
    let text = stderr(&home.run("get -n bank k"));
    assert!(!text.contains("lab up") && text.contains("kvctl ctx list"), "{text}");
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
fn where_there_are_contexts_one_has_to_be_selected() {
    let home = Home::new();
    let two = "[context.a]\nendpoints = [\"h:1\"]\n[context.b]\nendpoints = [\"h:2\"]\n";
    for (current, says) in
        [("", "no context is selected"), ("current = \"gone\"\n", "context `gone` is selected")]
    {
        home.write_config(&format!("{current}{two}"));
        for line in ["get -n bank k", "put -n bank k v", "ns list", "cluster status", "ctx show"] {
            let output = home.run(line);
            assert_eq!(output.status.code(), Some(2), "{line}: {}", stderr(&output));
            let text = stderr(&output);
            assert!(text.contains(says) && text.contains("  try: kvctl ctx use a "), "{line}: {text}");
        }
        let listed = home.run("ctx list");
        assert!(stderr(&listed).contains(says) && stdout(&listed).contains("h:2"), "{}", stderr(&listed));
        assert!(stderr(&home.run("lab status")).contains("no lab runs"));
        assert_eq!(home.run("lab down").status.code(), Some(0));
    }
    home.write_config("current = \"gone\"\n");
    let listed = stderr(&home.run("ctx list"));
    assert!(listed.contains("context `gone` is selected"), "{listed}");
    assert!(stderr(&home.run("get -n bank k")).contains("  try: kvctl lab up "));
}

#[test]
fn a_damaged_file_of_contexts_stops_what_needs_it_and_nothing_else() {
    let home = Home::new();
    home.write_config("current = [[[");
    let needed = home.run("get -n bank k");
    assert_eq!(needed.status.code(), Some(2));
    let text = stderr(&needed);
    assert!(text.contains("makes no sense") && text.contains("  try: mv "), "{text}");
    let named = home.run(&format!("-e {} get -n bank k", unserved()));
    assert_eq!(named.status.code(), Some(3), "{}", stderr(&named));
    assert!(stderr(&named).contains("UNREACHABLE"), "{}", stderr(&named));
    let lab = home.run(&format!("lab status --dir {}", home.0.path().display()));
    assert!(stderr(&lab).contains("no lab runs"), "{}", stderr(&lab));
    let mut by_environment = home.command("fault list");
    let by_environment = by_environment.env("KVCTL_LAB_DIR", home.0.path()).output().unwrap();
    assert!(stderr(&by_environment).contains("no lab runs"), "{}", stderr(&by_environment));
}

/// Whatever stands in the place of the file of contexts is named, with what to type; the words of the system
/// never stand alone.
#[test]
fn what_is_no_file_of_contexts_is_said_by_name() {
    type Make = fn(&Home);
    let file = |home: &Home| home.0.path().join("kvctl/config.toml");
    let cases: [(Make, &str); 6] = [
        (
            |home| home.write_config_bytes(b"current = \"lab\"\n# \xff\n"),
            "is no text: line 2 holds a byte that is not UTF-8",
        ),
        (
            |home| home.write_config_bytes(&vec![b'#'; (1 << 20) + 1]),
            "has more than the 1048576 bytes that contexts need",
        ),
        (
            |home| std::fs::create_dir_all(home.0.path().join("kvctl/config.toml")).unwrap(),
            "is a folder, where the file of contexts belongs",
        ),
        (
            |home| {
                std::fs::create_dir_all(home.0.path().join("kvctl")).unwrap();
                let made =
                    Command::new("mkfifo").arg(home.0.path().join("kvctl/config.toml")).status().unwrap();
                assert!(made.success());
            },
            "is no plain file, where the file of contexts belongs",
        ),
        (
            |home| std::fs::write(home.0.path().join("kvctl"), "").unwrap(),
            "is no folder, where the one of the contexts belongs",
        ),
        (|home| home.write_config("current = [[["), "makes no sense"),
    ];
    for (make, says) in cases {
        let home = Home::new();
        make(&home);
        for line in [
            "get -n bank k",
            "put -n bank k v",
            "ctx list",
            "ctx show",
            "lab status",
            "top",
            "cluster health",
        ] {
            let output = home.run(line);
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{line}: {text}");
            assert!(text.contains(says) && text.contains("\n       nothing was done; "), "{line}: {text}");
            let away = text.split("  try: ").nth(1).expect(&text).split("   (").next().unwrap();
            assert!(
                away.starts_with("mv ") && away.contains(home.0.path().to_str().unwrap()),
                "{line}: {text}"
            );
        }
        // What is advised helps.
        let text = stderr(&home.run("ctx list"));
        let away = text.split("  try: ").nth(1).unwrap().split("   (").next().unwrap();
        assert!(Command::new("sh").args(["-c", away]).status().unwrap().success(), "{away}");
        assert_eq!(home.run("ctx add prod -e h:1").status.code(), Some(0), "{says}");
        assert!(file(&home).is_file());
    }
    // A file that was named for a key, a context or a history is said by name too.
    let home = Home::new();
    let folder = home.0.path().display().to_string();
    for line in ["put -n bank --key-file {} v", "get -n bank --key-file {}", "check {}"] {
        let output = home.run(&format!("-e {} {}", unserved(), line.replace("{}", &folder)));
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{line}: {text}");
        assert!(
            text.contains("is a folder, and a file is meant") && text.contains("  try: ls -ld "),
            "{text}"
        );
        assert!(!text.contains("os error"), "{text}");
        let output = home.run(&format!("-e {} {}", unserved(), line.replace("{}", "nowhere")));
        assert!(stderr(&output).contains("error: there is no file nowhere"), "{}", stderr(&output));
    }
}

#[test]
fn a_closed_input_is_not_an_empty_value() {
    let home = Home::new();
    // Standard input is /dev/null, which the system also puts in the place of one that was closed.
    for line in ["put -n bank k -", "cas -n bank k --expect-absent -", "check -"] {
        let output = home.run(&format!("-e {} {line}", unserved()));
        assert_eq!(output.status.code(), Some(2), "{line}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("standard input: it is closed, or /dev/null"),
            "{line}: {}",
            stderr(&output)
        );
    }
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
fn faults_are_of_the_lab_that_is_named() {
    let home = Home::new();
    home.write_config("current = \"prod\"\n[context.prod]\nendpoints = [\"h:1\"]\n");
    for line in ["fault heal", "fault list", "fault isolate n3", "fault partition n1 / n2", "fault pause n3"]
    {
        let unknown = home.run(&format!("{line} --name nowhere"));
        assert_eq!(unknown.status.code(), Some(2), "{line}");
        assert!(stderr(&unknown).contains("no context `nowhere`"), "{line}: {}", stderr(&unknown));
        let dir = home.0.path().join("other");
        let there = home.run(&format!("{line} --dir {}", dir.display()));
        assert_eq!(there.status.code(), Some(3), "{line}: {}", stderr(&there));
        let says = format!("no lab runs in {}", dir.display());
        assert!(stderr(&there).contains(&says), "{line}: {}", stderr(&there));
        let up = format!("  try: kvctl lab up --dir {}", dir.display());
        assert!(stderr(&there).contains(&up), "{line}: {}", stderr(&there));
    }
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
    assert!(stdout(&valid).contains("lost: not judged"), "{}", stdout(&valid));
    let invalid = check("2");
    assert_eq!(invalid.status.code(), Some(1));
    assert!(stdout(&invalid).contains("is not linearizable"));
    assert_eq!(home.run("check /nowhere").status.code(), Some(2));
}

/// Of what was not judged no number is said, and the line is that judges it.
#[test]
fn losses_that_were_not_judged_are_not_called_none() {
    let home = Home::new();
    let event = |ms: u64, kind: &str, f: &str, ns: &str, value: &str| {
        format!(
            "{{\"index\":{ms},\"time\":{},\"process\":1,\"type\":\"{kind}\",\"f\":\"{f}\",\"key\":\"k\",\"value\":{value},\"ns\":\"{ns}\"}}\n",
            ms * 1_000_000
        )
    };
    let write =
        |ms: u64, ns: &str| event(ms, "invoke", "write", ns, "1") + &event(ms + 1, "ok", "write", ns, "1");
    let read = |ms: u64, ns: &str, value: &str| {
        event(ms, "invoke", "read", ns, "null") + &event(ms + 1, "ok", "read", ns, value)
    };
    // The strong namespace keeps what was written, the available one has lost it.
    let early = read(1, "cart", "[]");
    let history = early + &write(10, "bank") + &write(20, "cart");
    let late = read(30, "bank", "1") + &read(40, "cart", "[]");
    let file = home.0.path().join("history.jsonl");
    std::fs::write(&file, history.clone() + &late).unwrap();
    let check = |more: &str| home.run(&format!("check {}{more}", file.display()));
    let judged_not = check("");
    let (out, err) = (stdout(&judged_not), stderr(&judged_not));
    assert_eq!(judged_not.status.code(), Some(0), "{out}{err}");
    assert!(!out.contains("lost 0") && out.matches("not judged").count() == 2, "{out}");
    assert!(out.lines().all(|line| line.chars().count() <= 80), "{out}");
    assert!(
        err.contains("losses were not judged") && err.contains("ended at 21 ms, and 2 reads came after it"),
        "{err}"
    );
    assert!(err.trim_end().ends_with(&format!("kvctl check --settled-ms 22 {}", file.display())), "{err}");
    for line in stdout(&check(" -o json")).lines() {
        let said: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(said["lost"].is_null() && said["settled_ms"].is_null(), "{said}");
    }
    // With what is advised they are.
    let judged = check(" --settled-ms 22");
    let out = stdout(&judged);
    assert_eq!(judged.status.code(), Some(1), "{out}");
    assert!(out.contains("lost 0 of 1") && out.contains("lost 1 of 1   resurrected 0"), "{out}");
    assert!(out.lines().all(|line| line.chars().count() <= 80) && stderr(&judged).is_empty(), "{out}");
    // Where nothing came after the last write, there is nothing to advise.
    std::fs::write(&file, history).unwrap();
    assert!(stderr(&check("")).contains("read each key once more at the end"), "{}", stderr(&check("")));
    // A time that no read is from: nothing is known of what became of the writes, and nothing is claimed.
    let unread = check(" --settled-ms 22");
    let (out, err) = (stdout(&unread), stderr(&unread));
    assert_eq!(unread.status.code(), Some(4), "{out}{err}");
    assert_eq!(out.matches("lost 0 of 0, not read in the end 1").count(), 2, "{out}");
    assert!(
        out.contains("siblings right: unknown") && err.contains("2 acknowledged writes were lost"),
        "{out}{err}"
    );
    for line in stdout(&check(" --settled-ms 22 -o json")).lines() {
        let said: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(said["unread"], 1, "{said}");
        assert_eq!(said["verdict"] == "unknown", said["mode"] == "available", "{said}");
    }
}

#[test]
fn a_signal_that_ends_it_is_told_by_the_exit_code() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let home = Home::new();
        // It waits for standard input, which stays open.
        let mut child = home.command("check -").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let open = child.stdin.take(); // waiting for the child would close it
        std::thread::sleep(Duration::from_millis(500));
        let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        drop(open);
    }
}

#[test]
fn an_interrupted_write_is_an_error_whose_outcome_is_not_known() {
    let id = "0123456789abcdef0123456789abcdef:1@1700000000000";
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        for line in ["put -n bank k -", "cas -n bank k --expect-absent -"] {
            let home = Home::new();
            let line = format!("-e {} -o json {line} --request-id {id}", unserved());
            // It waits for its value.
            let mut command = home.command(&line);
            let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let open = child.stdin.take();
            std::thread::sleep(Duration::from_millis(500));
            assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
            let output = child.wait_with_output().unwrap();
            drop(open);
            assert_eq!(output.status.code(), Some(code), "{signal} {line}: {}", stderr(&output));
            let said: serde_json::Value = serde_json::from_str(&stderr(&output)).unwrap();
            let error = &said["error"];
            assert_eq!((&error["applied"], &error["exit"]), (&"unknown".into(), &code.into()), "{said}");
            assert!(error["try"][0].as_str().unwrap().contains(&format!("--request-id {id}")), "{said}");
        }
    }
}
