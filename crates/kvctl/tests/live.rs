//! The command line against a real cluster whose network is cut: what a reader of the README types, with the
//! exit codes and streams that a script relies on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "an integration test: clippy's exemption covers only unit tests"
)]

use std::path::Path;
use std::process::{Command, Stdio};

const PORT_BASE: u16 = 23_100;

/// A lab that is taken down also when the test fails.
struct Lab(tempfile::TempDir);

impl Drop for Lab {
    fn drop(&mut self) {
        kvctl(self.0.path(), &["lab", "down"]);
    }
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvctl"));
    command.args(args).env("XDG_CONFIG_HOME", home.join("config")).env("KVCTL_LAB_DIR", home.join("lab"));
    command.stdin(Stdio::null());
    command
}

fn kvctl(home: &Path, args: &[&str]) -> Said {
    let output = command(home, args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

impl Lab {
    fn up() -> Self {
        let lab = Self(tempfile::tempdir().unwrap());
        lab.ok(&format!("lab up --nodes 5 --port-base {PORT_BASE}"));
        lab
    }

    /// Runs a line; `@n3` becomes that node's endpoint.
    fn run(&self, line: &str) -> Said {
        let words = line.split(' ').filter(|word| !word.is_empty()).flat_map(|word| {
            match word.strip_prefix("@n").and_then(|node| node.parse::<u16>().ok()) {
                Some(node) => vec!["-e".to_owned(), format!("127.0.0.1:{}", PORT_BASE + node)],
                None => vec![word.to_owned()],
            }
        });
        let words: Vec<String> = words.collect();
        kvctl(self.0.path(), &words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn ends(&self, line: &str, code: i32) -> Said {
        let said = self.run(line);
        assert_eq!(said.code, code, "kvctl {line}\nstdout: {}\nstderr: {}", said.out, said.err);
        said
    }

    fn ok(&self, line: &str) -> String {
        self.ends(line, 0).out
    }
}

#[test]
fn what_the_readme_says_is_what_happens() {
    let lab = Lab::up();
    lab.ok("ns create bank --mode strong");
    lab.ok("ns create cart --mode available --n 3 --r 2 --w 2");
    let refused = lab.ends("ns create third", 2);
    assert!(refused.err.contains("strong") && refused.err.contains("available"), "{}", refused.err);
    lab.ends("ns create bank --mode available", 5);
    assert!(lab.ok("ns list").contains("cart") && lab.ok("ns show bank").contains("strong"));

    // Definite answers, each with its code; a pipe gets the value and nothing else.
    assert!(lab.ok("put -n bank alice 100").contains("revision 1"));
    assert_eq!(lab.ok("get -n bank alice"), "100");
    let absent = lab.ends("get -n bank absent", 1);
    assert_eq!(absent.out, "");
    assert!(lab.ok("cas -n bank alice --expect-revision 1 90").contains("revision 2"));
    assert!(lab.ends("cas -n bank alice --expect-revision 1 80", 1).err.contains("revision 2"));
    lab.ok("put -n cart user:42 apple");
    assert_eq!(lab.ok("get -n cart user:42"), "apple");
    lab.ends("cas -n cart user:42 --expect-revision 1 x", 5);
    lab.ends("get -n nothing k", 5);
    assert!(lab.ok("ring owners -n cart user:42").contains("primaries"));
    assert!(lab.ok("cluster transfer-leader n1").contains("n1"));

    // The cut: one side of CAP refuses in the minority, the other answers.
    let cut = lab.ok("fault partition n1,n2 / n3,n4,n5");
    assert!(cut.contains("12 of 12 probes blocked"), "{cut}");
    // Until a lease has passed the old leader may still take a write whose fate is unknown; then it refuses.
    let began = std::time::Duration::from_secs(10);
    let refusal = within(began, || {
        let said = lab.run("@n1 put -n bank alice 1");
        (said.code == 3).then_some(said.err)
    });
    for part in ["NO_QUORUM", "applied: no", "try:"] {
        assert!(refusal.contains(part), "{refusal}");
    }
    lab.ok("@n1 put -n cart user:42 apple,pear");
    lab.ok("@n3 put -n cart user:42 apple,plum");
    within(began, || (lab.run("@n3 put -n bank alice 7").code == 0).then_some(()));
    assert!(lab.ok("@n1 cluster status").contains("unavailable from here"));
    assert!(lab.ok("fault heal").contains("12 of 12 probes answered"));

    // Both values are there, and one write with their context merges them.
    let read = within(began, || {
        let read: serde_json::Value = serde_json::from_str(&lab.ok("get -n cart user:42 -o json")).unwrap();
        (read["siblings"].as_array().unwrap().len() == 2).then_some(read)
    });
    lab.ends("get -n cart user:42", 1); // a pipe takes one value
    let context = lab.0.path().join("context.json");
    std::fs::write(&context, read.to_string()).unwrap();
    lab.ok(&format!("put -n cart user:42 --causal {} merged", context.display()));
    within(began, || (lab.run("get -n cart user:42").out == "merged").then_some(()));
    assert_eq!(lab.ok("get -n bank alice"), "7");

    // Links that are reset or narrow, and a node that stands still: each is probed, and each ends when told.
    assert!(lab.ok("fault reset n4 n5").contains("2 of 2 probes reset"));
    assert!(lab.ok("fault slow n4 n3 --bytes 4000").contains("2 of 2 probes late"));
    let listed = lab.ok("fault list");
    assert_eq!(listed.matches("n4").count(), 2, "{listed}");
    assert!(lab.ok("fault heal").contains("4 of 4 probes answered"));
    assert!(lab.ok("fault pause n5").contains("n5 stands still"));
    lab.ends("@n5 get -n cart user:42 --timeout 500ms", 3);
    assert!(lab.ok("fault resume n5").contains("n5 goes on"));
    within(began, || (lab.run("@n5 get -n cart user:42").out == "merged").then_some(()));
    lab.ends("fault slow n4 n3 --bytes 0", 2);

    // Group commit: many writers share an fsync.
    let bench = lab.ok("bench -n bank --workload put --clients 64 --value-size 100B --for 2s -o json");
    let last: serde_json::Value = serde_json::from_str(bench.lines().last().unwrap()).unwrap();
    for field in ["ops_per_s", "p50_us", "p99_us", "errors", "fsyncs_per_write"] {
        assert!(last[field].is_number(), "{field} in {last}");
    }
    assert!(last["fsyncs_per_write"].as_f64().unwrap() <= 0.25, "{last}");
    // Without a namespace it makes one and removes it; so do deletions, once they say that they are meant.
    for mode in ["strong", "available"] {
        let bench = lab.ok(&format!("bench --mode {mode} --workload put --for 300ms -o json"));
        let last: serde_json::Value = serde_json::from_str(bench.lines().last().unwrap()).unwrap();
        assert_eq!((last["own_namespace"].as_bool(), last["mode"].as_str()), (Some(true), Some(mode)));
    }
    assert!(!lab.ok("ns list").contains("bench-"));
    // Also when it is interrupted.
    let mut long = command(lab.0.path(), &["bench", "--workload", "put", "--for", "60s"]);
    let mut long = long.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    within(began, || lab.ok("ns list").contains("bench-").then_some(()));
    let interrupted = Command::new("kill").args(["-INT", &long.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    assert_eq!(long.wait().unwrap().code(), Some(130));
    assert!(!lab.ok("ns list").contains("bench-"));
    lab.ends("ns delete cart", 2);
    assert!(lab.ok("ns delete cart --now").contains("deleted cart"));
    lab.ends("ns delete cart --now", 5);
    lab.ends("get -n cart user:42", 5);
    assert!(!lab.ok("ns list").contains("cart"));
    lab.ok("ns create cart --mode available");
    lab.ends("get -n cart user:42", 1);
    lab.ok("lab down");
    lab.ends("get -n bank alice", 3);
}

/// Asks again until there is an answer.
fn within<T>(limit: std::time::Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    #[allow(clippy::disallowed_methods, reason = "a test of processes waits in real time")]
    let now = std::time::Instant::now;
    let begun = now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
