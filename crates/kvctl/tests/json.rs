//! What every command says in JSON and with which exit code, and what it is when it is refused: the page
//! `docs/reference/json.md` is written from it. Scripts rely on these fields, which are only ever added to.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "an integration test: clippy's exemption covers only unit tests"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

const PORT_BASE: u16 = 24_700;
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/json.md");

/// Each command as it is typed, its exit code, and what to say about the case. Where nothing is said the line
/// only prepares for those that follow.
const COMMANDS: &[(&str, i32, &str)] = &[
    ("lab up --nodes 3 --port-base {ports}", 0, "a lab that came up"),
    ("lab status", 0, "no faults"),
    ("ns create bank --mode strong", 0, "strong"),
    ("ns create cart --mode available", 0, "available"),
    ("ns list", 0, "a line for each namespace"),
    ("ns show bank", 0, "strong"),
    ("ns show cart", 0, "available"),
    ("ns create bank --mode available", 5, "a namespace of that name, with other settings"),
    ("ns show nothing", 5, "a namespace that is not there"),
    ("ns create Bank --mode strong", 2, "a name that cannot be one"),
    ("put -n bank alice 100", 0, "strong"),
    ("put -n cart user:42 apple", 0, "available"),
    ("put -n bank alice --r 3", 2, "a line that makes no sense"),
    ("get -n bank alice", 0, "strong"),
    ("get -n bank absent", 1, "strong, absent"),
    ("get -n cart user:42", 0, "available, one value"),
    ("get -n cart absent", 1, "available, absent"),
    ("cas -n bank alice --expect-revision 1 90", 0, "as expected"),
    ("cas -n bank alice --expect-revision 1 80", 1, "not as expected"),
    ("cas -n cart user:42 --expect-absent 1", 5, "what the mode does not offer"),
    ("del -n bank alice", 0, "strong"),
    ("del -n cart user:42", 0, "available"),
    ("put -n cart user:7 one --blind", 0, ""),
    ("put -n cart user:7 two --blind", 0, ""),
    ("get -n cart user:7", 0, "available, several values"),
    ("ring owners -n cart user:42", 0, ""),
    ("explain -n cart user:7", 0, "available"),
    ("explain -n bank alice", 0, "strong"),
    ("cluster status", 0, ""),
    ("cluster status --as-seen-by all", 0, "a line for each node"),
    ("cluster latency n1", 0, ""),
    ("cluster transfer-leader n2", 0, ""),
    ("cluster health", 0, "well"),
    ("top --once", 0, ""),
    ("fault isolate n3 --for 60s", 0, ""),
    ("fault list", 0, "a line for each direction"),
    ("lab status", 0, "with faults"),
    ("-e 127.0.0.1:{third} put -n bank alice 1 --timeout 1s", 3, "a minority"),
    ("fault heal", 0, ""),
    ("fault partition n1 / n2,n3", 0, ""),
    ("fault heal", 0, ""),
    ("fault reset n1 n2", 0, ""),
    ("fault slow n2 n3 --bytes 4kB", 0, ""),
    ("fault heal", 0, ""),
    ("fault pause n3", 0, ""),
    ("fault resume n3", 0, ""),
    ("lab pause n3", 0, ""),
    ("-e 127.0.0.1:{third} get -n bank alice --timeout 300ms", 3, "a node that is silent"),
    ("lab resume n3", 0, ""),
    ("lab kill n3", 0, ""),
    ("-e 127.0.0.1:{third} get -n bank alice", 3, "a node that is down"),
    ("lab restart n3", 0, ""),
    ("lab logs n3 --lines 1", 0, ""),
    ("bench -n bank --workload put --for 300ms", 0, ""),
    ("ns alter cart --r 1 --w 3", 0, ""),
    ("ns delete cart", 0, "with a grace"),
    ("get -n cart user:42", 5, "a namespace whose deletion is pending"),
    ("ns undelete cart", 0, ""),
    ("ns delete cart --now", 0, "for good"),
    ("ctx list", 0, "a line for each context"),
    ("ctx show", 0, ""),
    ("ctx add prod -e db1:7101 -n bank", 0, ""),
    ("ctx use lab", 0, ""),
    ("ctx remove prod", 0, ""),
    ("-c nowhere ctx show", 2, "a context that is not there"),
    ("lab down", 0, ""),
    ("fault list", 3, "a lab that does not run"),
    ("cluster health", 1, "no node can be asked"),
    ("version", 0, ""),
    ("frobnicate", 2, "a word that is no command"),
];

/// Objects whose fields are names that the cluster chooses.
const NAMED_BY_THE_CLUSTER: [&str; 2] = ["refusals", "details"];

struct Home(tempfile::TempDir);

impl Drop for Home {
    fn drop(&mut self) {
        self.run("lab down");
    }
}

impl Home {
    /// Exit code, standard output, standard error.
    fn run(&self, line: &str) -> (Option<i32>, String, String) {
        let line = line.replace("{ports}", &PORT_BASE.to_string());
        let line = line.replace("{third}", &(PORT_BASE + 3).to_string());
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
        command.args(line.split(' ')).args(["-o", "json"]).stdin(Stdio::null());
        command.env("XDG_CONFIG_HOME", self.0.path().join("config"));
        let output = command.env("XDG_STATE_HOME", self.0.path().join("state")).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

/// A value with the kinds of its parts in the place of the parts.
fn shape(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(parts) => {
            let kinds: BTreeSet<String> = parts.iter().map(shape).collect();
            format!("[{}]", kinds.into_iter().collect::<Vec<_>>().join(" | "))
        }
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| match value {
                Value::Object(_) if NAMED_BY_THE_CLUSTER.contains(&name.as_str()) => format!("{name}: {{…}}"),
                value => format!("{name}: {}", shape(value)),
            };
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
    }
}

/// What was said, without what differs from run to run.
fn said(text: &str) -> Vec<String> {
    let read = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
    let mut kinds: Vec<String> = text.lines().map(|line| shape(&read(line))).collect();
    kinds.dedup();
    kinds
}

fn page(home: &Home) -> String {
    let mut page = String::from(
        "# What commands say with `-o json`\n\n\
         Written by a test of kvctl, which compares it with the program (`crates/kvctl/tests/json.rs`). Fields are only ever added. \
         A value or a key that is not UTF-8 is in `value_b64` or `key_b64` instead.\n",
    );
    for (line, code, about) in COMMANDS {
        // A node that has just come back, or was just cut off, may need a moment.
        let (is, out, err) = within(Duration::from_secs(20), || {
            let ran = home.run(line);
            (ran.0 == Some(*code)).then_some(ran)
        })
        .unwrap_or_else(|| panic!("{line}: {:?}", home.run(line)));
        assert_eq!(is, Some(*code));
        let shown = line.replace(" {ports}", " 7100").replace("{third}", "7103");
        let about = if about.is_empty() { String::new() } else { format!(" — {about}") };
        let _ = write!(page, "\n## `kvctl {shown}`{about}\n\nEnds with {code}.\n");
        for (name, text) in [("Standard output", &out), ("Standard error", &err)] {
            if !text.is_empty() {
                let _ = write!(page, "{name}:\n\n```\n{}\n```\n", said(text).join("\n"));
            }
        }
    }
    page
}

fn within<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    #[allow(clippy::disallowed_methods, reason = "a test of processes waits in real time")]
    let now = std::time::Instant::now;
    let begun = now();
    while begun.elapsed() < limit {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    None
}

#[test]
fn the_page_of_json_is_what_commands_say() {
    let home = Home(tempfile::tempdir().unwrap());
    let page = page(&home);
    let written = std::fs::read_to_string(PAGE).unwrap_or_default();
    if std::env::var_os("WRITE_PAGE").is_some() {
        std::fs::write(Path::new(PAGE), page).unwrap();
        return;
    }
    let differs = written.lines().zip(page.lines()).find(|(written, said)| written != said);
    assert!(
        written == page,
        "it changed, first at {differs:?}: WRITE_PAGE=1 cargo test -p kvctl --test json writes {PAGE}"
    );
}

#[test]
fn every_command_is_on_the_page() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let reference = std::fs::read_to_string(Path::new(PAGE).with_file_name("kvctl.md")).unwrap();
    // These say no JSON, or what they say is that of others.
    let silent = ["help", "completion", "man", "shell", "lab demo", "check"];
    for command in reference.lines().filter_map(|line| line.strip_prefix("## kvctl ")) {
        assert!(silent.contains(&command) || page.contains(&format!("kvctl {command}")), "{command}");
    }
}
