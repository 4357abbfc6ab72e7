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
use std::time::Duration;

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
    command.args(args).env("XDG_CONFIG_HOME", home.join("config")).env("XDG_STATE_HOME", home.join("state"));
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
        let said = kvctl(self.0.path(), &words.iter().map(String::as_str).collect::<Vec<_>>());
        fits_a_screen(line, &said.out);
        said
    }

    /// The first line that an error advises, without the name of the program.
    fn advice(&self, error: &str) -> Option<String> {
        let line = error.lines().find_map(|line| line.trim().strip_prefix("try: kvctl "))?;
        Some(line.split("   (").next().unwrap_or(line).trim_end().to_owned())
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
    for namespace in ["bank", "cart"] {
        let said = lab.ok(&format!("rm -n {namespace} absent"));
        assert!(said.starts_with("absent  ") && !said.contains("deleted"), "{said}");
    }
    lab.ok("put -n cart present 1");
    assert!(lab.ok("rm -n cart present").starts_with("deleted  cart/present  at n"));
    lab.ends("get -n cart -r 5 k", 2);
    lab.ends(&format!("-e 127.0.0.1:{} lab down", PORT_BASE + 1), 2);
    let json = |line: &str| serde_json::from_str::<serde_json::Value>(&lab.run(line).out).unwrap();
    let read = json("get -n bank alice -o json");
    assert_eq!((read["found"].as_bool(), read["value"].as_str()), (Some(true), Some("100")));
    let mismatch = json("cas -n bank alice --expect-revision 9 1 -o json");
    assert_eq!((mismatch["found"].as_bool(), mismatch["value"].as_str()), (Some(true), Some("100")));
    assert!(lab.ok("cas -n bank alice --expect-revision 1 90").contains("revision 2"));
    assert!(lab.ends("cas -n bank alice --expect-revision 1 80", 1).err.contains("revision 2"));
    lab.ok("put -n cart user:42 apple");
    assert_eq!(lab.ok("get -n cart user:42"), "apple");
    lab.ends("cas -n cart user:42 --expect-revision 1 x", 5);
    lab.ends("get -n nothing k", 5);
    assert!(lab.ok("ring owners -n cart user:42").contains("primaries"));
    assert!(lab.ok("explain -n bank alice").contains("through which reads and writes go"));
    // Two of three replicas have acknowledged; the third has it a moment later.
    let explained = within(std::time::Duration::from_secs(10), || {
        let said = lab.ok("explain -n cart user:42");
        (said.matches("has values").count() == 3).then_some(said)
    });
    for part in ["reads  R=2 of 3: met by primaries", "writes W=2 of 3: met by primaries"] {
        assert!(explained.contains(part), "{explained}");
    }
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
    // What is advised can be typed, and does what the refused one could not; never at the node that refused.
    within(began, || {
        let advice = lab.advice(&lab.run("@n1 put -n bank alice 1").err)?;
        let elsewhere = !advice.contains(&format!("127.0.0.1:{}", PORT_BASE + 1));
        (elsewhere && lab.run(&advice).code == 0).then_some(())
    });
    // A write keeps its name: sent again it is applied once, at whatever node.
    let error: serde_json::Value =
        serde_json::from_str(&lab.ends("@n1 put -n bank carol 5 -o json", 3).err).unwrap();
    let id = error["error"]["details"]["write_id"].as_str().unwrap().to_owned();
    within(began, || (lab.run("@n3 put -n bank first 1").code == 0).then_some(()));
    // An id of another body proves in the log of a group that this one was not applied; another replica of
    // an available key may have taken it.
    for (namespace, code) in [("bank", 5), ("cart", 4)] {
        let again = format!("@n3 put -n {namespace} --request-id {id} carol 5 -o json");
        let sent = || serde_json::from_str::<serde_json::Value>(&lab.ok(&again)).unwrap();
        let (first, second) = (sent(), sent());
        assert_eq!(first["receipt"]["deduplicated"], false, "{namespace}: {first}");
        assert_eq!(second["receipt"]["deduplicated"], true, "{namespace}: {second}");
        assert_eq!(first["revision"], second["revision"], "{namespace}");
        let reused = lab.ends(&format!("@n3 put -n {namespace} --request-id {id} carol 6"), code);
        assert!(reused.err.contains("REQUEST_ID_REUSED"), "{}", reused.err);
    }
    lab.ok("@n1 put -n cart user:42 apple,pear");
    lab.ok("@n3 put -n cart user:42 apple,plum");
    within(began, || (lab.run("@n3 put -n bank alice 7").code == 0).then_some(()));
    let status = lab.ok("@n1 cluster status");
    let says = |name: &str, what: &str| status.lines().any(|line| line.contains(name) && line.contains(what));
    assert!(says("bank", "reads NO  writes NO") && says("cart", "reads yes  writes yes"), "{status}");
    let large = large_values_on_both_sides(&lab);
    assert!(lab.ok("fault heal").contains("12 of 12 probes answered"));
    for key in large {
        let sizes = || (1..=5).map(|n| lab.run(&format!("@n{n} get -n cart {key} --all")).out.len());
        within(began, || sizes().all(|size| size == 2 * LARGE + 2).then_some(()));
    }

    // Both values are there, and one write with their context merges them.
    let read = within(began, || {
        let read: serde_json::Value = serde_json::from_str(&lab.ok("get -n cart user:42 -o json")).unwrap();
        (read["siblings"].as_array().unwrap().len() == 2).then_some(read)
    });
    let refused = lab.ends("get -n cart user:42", 6); // a pipe takes one value
    assert!(lab.ok(&lab.advice(&refused.err).unwrap()).contains("siblings"));
    let mut values: Vec<_> = lab.ok("get -n cart user:42 --all").lines().map(str::to_owned).collect();
    values.sort();
    assert_eq!(values, ["apple,pear", "apple,plum"]);
    assert_eq!(lab.ok("get -n cart user:42 --all -0").matches('\0').count(), 2);
    let context = lab.0.path().join("context.json");
    std::fs::write(&context, read.to_string()).unwrap();
    lab.ok(&format!("put -n cart user:42 --causal {} merged", context.display()));
    within(began, || (lab.run("get -n cart user:42").out == "merged").then_some(()));
    assert_eq!(lab.ok("get -n bank alice"), "7");

    // Links that are reset or narrow, and a node that stands still: each is probed, and each ends when told.
    assert!(lab.ok("fault reset n4 n5").contains("2 of 2 probes reset"));
    assert!(lab.ok("fault slow n4 n3 --bytes 4kB").contains("2 of 2 probes late"));
    let listed = lab.ok("fault list");
    assert_eq!(listed.matches("n4").count(), 2, "{listed}");
    let note = |line: &str| serde_json::from_str::<serde_json::Value>(&lab.ends(line, 0).err).unwrap();
    assert!(note("ns create noted --mode available -o json")["note"].is_string());
    assert!(lab.ok("fault heal").contains("4 of 4 probes answered"));
    // Faults are beside one another, and the first is not healed by the second. What is in force is said.
    let first = lab.ok("fault partition n1 / n2,n3,n4,n5 --for 60s");
    assert!(!first.contains("in force now"), "{first}");
    let second = lab.ok("fault partition n1,n2 / n3,n4,n5 --for 60s");
    assert!(
        second.contains("n1 / n2 / n3,n4,n5") && second.contains("heal all: kvctl fault heal"),
        "{second}"
    );
    lab.ok("fault heal");
    lab.ok("fault partition n1 / n2,n3,n4,n5 --for 60s");
    lab.ok("fault slow n4 n3 --bytes 100kB");
    lab.ok("fault slow n4 n1 --bytes 50kB");
    let listed = lab.ok("fault list");
    // Three links are cut both ways; of the fourth one way is slow beneath.
    assert_eq!((listed.matches("cut").count(), listed.matches(" and ").count()), (5, 3), "{listed}");
    let row = |from: &str, to: &str| {
        let row = listed.lines().find(|line| line.starts_with(&format!("{from} to {to} ")));
        row.unwrap_or_else(|| panic!("{from} to {to}: {listed}")).to_owned()
    };
    assert!(row("n4", "n3").contains("100000") && row("n4", "n3").ends_with("  -"), "{listed}");
    assert!(row("n4", "n1").contains("cut") && row("n4", "n1").contains("in "), "when it ends: {listed}");
    assert!(row("n4", "n1").contains("50000"), "what is beneath: {listed}");
    lab.ok("fault heal");
    assert!(lab.ok("lab pause n5").contains("n5 stands still"));
    assert!(lab.ok("lab status").contains("stands still"));
    assert!(lab.ok("fault list").contains("n5 stands still"));
    assert!(lab.ok("cluster status").contains("n5 paused"));
    assert!(lab.ends("fault heal", 0).err.contains("kvctl lab resume n5"));
    for silent in ["@n5 get -n cart user:42 --timeout 500ms", "@n5 put -n cart user:43 x --timeout 500ms"] {
        let silent = lab.ends(silent, 3).err;
        assert!(silent.contains("DEADLINE_EXPIRED") && silent.contains("kvctl -c lab"), "{silent}");
        assert_eq!(lab.advice(&silent).as_deref(), Some("lab resume --name lab n5"));
    }
    assert!(lab.ok("lab resume --name lab n5").contains("n5 goes on"));
    assert!(lab.ok("lab resume n5").contains("n5 did not stand still"));
    within(began, || (lab.run("@n5 get -n cart user:42").out == "merged").then_some(()));
    let refused = lab.ends("fault slow n4 n3 --bytes 10", 2);
    assert!(refused.err.contains("it needs a unit, as in `10B`"), "{}", refused.err);
    assert!(lab.ends("fault slow n4 n3 --bytes 10B", 2).err.contains("less than 100B a second"));

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
    // Also when it is interrupted, or asked to end.
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let mut long = command(lab.0.path(), &["bench", "--workload", "put", "--for", "60s"]);
        let mut long = long.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        within(began, || lab.ok("ns list").contains("bench-").then_some(()));
        let interrupted = Command::new("kill").args([signal, &long.id().to_string()]).status().unwrap();
        assert!(interrupted.success());
        assert_eq!(long.wait().unwrap().code(), Some(code), "{signal}");
        assert!(!lab.ok("ns list").contains("bench-"), "{signal}");
    }
    a_benchmark_says_that_its_namespace_was_deleted(&lab);
    a_shell_chooses_namespaces_and_merges(&lab);
    deletions_can_be_undone(&lab);
    values_of_a_script_are_apart(&lab);
    assert!(lab.ok("ns delete cart --now").contains("deleted cart"));
    lab.ends("ns delete cart --now", 5);
    lab.ends("ns undelete cart", 5);
    lab.ends("get -n cart user:42", 5);
    assert!(!lab.ok("ns list").contains("cart"));
    lab.ok("ns create cart --mode available");
    lab.ends("get -n cart user:42", 1);
    assert!(lab.ok("ns alter cart --r 1 --w 3").contains("N=3 R=1 W=3"));
    assert!(lab.ok("ns show cart").contains("settings version 2"));
    lab.ends("ns alter cart --w 4", 2);
    assert!(lab.ends("ns alter bank --r 1", 5).err.contains("MODE_MISMATCH"));
    // When its grace is over it is gone.
    lab.ok("ns delete cart --grace 1s");
    within(began, || (!lab.ok("ns list").contains("cart")).then_some(()));
    lab.ends("ns undelete cart", 5);
    lab.ok("ns create cart --mode available");
    assert!(lab.ok("lab kill n5").contains("n5 was killed"));
    assert!(lab.ok("lab kill n5").contains("n5 did not run"));
    for line in ["lab pause n5", "lab resume n5", "fault pause n5", "fault resume n5"] {
        let refused = lab.ends(line, 5).err;
        assert!(refused.starts_with("error: n5 does not run: "), "{line}: {refused}");
        assert_eq!(lab.advice(&refused).as_deref(), Some("lab restart n5"), "{line}");
    }
    for line in ["lab logs n9", "lab pause n9", "lab kill n9"] {
        let refused = lab.ends(line, 2).err;
        assert!(refused.starts_with("error: this lab has no n9, only n1 to n5\n"), "{line}: {refused}");
    }
    assert!(lab.ok("lab status").contains("down"));
    let down = lab.ends("@n5 get -n bank alice", 3).err;
    assert!(down.contains("kvctl -c lab get -n bank alice"), "{down}");
    assert!(lab.ok(&lab.advice(&down).unwrap()).contains("n5 runs again"), "{down}");
    // A disk that is lost is filled again from the others.
    assert!(lab.ok("lab restart n5 --empty").contains("n5 runs again"));
    let log = lab.ok("lab logs n5 --lines 1000");
    assert!(log.contains("gets an empty disk"), "{log}");
    within(Duration::from_secs(30), || (lab.run("@n5 get -n bank alice").out == "7").then_some(()));
    what_was_applied_is_not_called_refused(&lab);
    assert!(!lab.ok("lab logs n5 --lines 5").is_empty());
    second_labs_are_beside_the_first(&lab);
    lab.ok("lab down");
    assert!(lab.ok("lab down").contains("no lab runs"));
    a_stop_that_was_asked_for_is_no_error(&lab);
    lab.ends("get -n bank alice", 3);
    // What was written is there again, with as many nodes and on the same ports.
    lab.ok("lab up");
    assert_eq!(lab.ok("get -n bank alice"), "7");
    lab.ends(&format!("lab up --nodes 3 --port-base {PORT_BASE}"), 2);
}

/// What one line writes does not run into what the next one does.
/// Bytes of the largest value.
const LARGE: usize = 1 << 20;

/// Puts values of the largest size to some keys on both sides of the cut: they are to be equal at all
/// replicas after it, also where no primary was on the side of two, and a fallback wrote for three.
fn large_values_on_both_sides(lab: &Lab) -> Vec<String> {
    let keys: Vec<String> = (0..6).map(|n| format!("large{n}")).collect();
    let file = lab.0.path().join("large");
    for (node, letter) in [(1, "a"), (3, "b")] {
        std::fs::write(&file, letter.repeat(LARGE)).unwrap();
        for key in &keys {
            let endpoint = format!("127.0.0.1:{}", PORT_BASE + node);
            let mut put = command(lab.0.path(), &["-e", &endpoint, "put", "-n", "cart", key, "-"]);
            let output = put.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
            assert!(output.status.success(), "{key}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    keys
}

fn values_of_a_script_are_apart(lab: &Lab) {
    let script = lab.0.path().join("script");
    std::fs::write(&script, "use bank\nget alice\nget absent\nget alice\nget alice -o raw\n").unwrap();
    let mut shell = command(lab.0.path(), &["shell"]);
    let output = shell.stdin(std::fs::File::open(&script).unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "that of the last one that failed");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "7\n7\n7", "-o raw adds nothing");
}

/// What a shell saw of a key is superseded by a word; a namespace that is not there is not chosen.
fn a_shell_chooses_namespaces_and_merges(lab: &Lab) {
    let shell = |text: &str| {
        let script = lab.0.path().join("script");
        std::fs::write(&script, text).unwrap();
        let mut shell = command(lab.0.path(), &["shell"]);
        let output = shell.stdin(std::fs::File::open(&script).unwrap()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    };
    let merged = shell(
        "use cart\nput two a --blind\nput two b --blind\nget two --all\nput two ab --seen\nget two\nput two abc --seen\nget two\n",
    );
    assert_eq!(merged.code, 0, "{}", merged.err);
    let values: Vec<&str> = merged.out.lines().filter(|line| !line.starts_with("OK")).collect();
    assert!(values[..2].contains(&"a") && values[..2].contains(&"b"), "{}", merged.out);
    assert_eq!(values[2..], ["ab", "abc"], "{}", merged.out);
    let unseen = shell("use cart\nput never x --seen\n");
    assert_eq!(unseen.code, 2, "{}", unseen.err);
    assert!(
        unseen.err.contains("line 2: error: cart/never was not read in this shell yet"),
        "{}",
        unseen.err
    );
    assert_eq!(lab.advice(&unseen.err).as_deref(), Some("get -n cart never"));
    let outside = lab.ends("put -n cart two x --seen", 2);
    assert!(outside.err.contains("kvctl shell") && outside.err.contains("--causal FILE"), "{}", outside.err);
    lab.ends("put -n bank two x --seen", 2);
    // What was chosen before is not meant any more.
    let missed = shell("use cart\nuse crat\nget two\nput two\nget absent\n");
    assert_eq!(missed.out, "", "{}", missed.err);
    assert!(missed.err.contains("line 3: error: no namespace is selected"), "{}", missed.err);
    assert!(missed.err.contains("line 2: error: no namespace `crat`"), "{}", missed.err);
    assert!(missed.err.contains("did you mean `cart`?"), "{}", missed.err);
    let left = std::fs::read_dir(lab.0.path().join("state/quorate")).unwrap();
    let left = left.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("seen"));
    assert_eq!(left.count(), 0, "its memory goes with it");
}

/// What is measured after that is nothing: the benchmark ends then, and not well.
fn a_benchmark_says_that_its_namespace_was_deleted(lab: &Lab) {
    for (mode, delete, reason) in
        [("strong", "--grace 1h", "DELETION_PENDING"), ("available", "--now", "NAMESPACE_UNKNOWN")]
    {
        lab.ok(&format!("ns create brief --mode {mode}"));
        let words = ["bench", "-n", "brief", "--workload", "put", "--for", "60s"];
        let mut bench = command(lab.0.path(), &words);
        let bench = bench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let written = || lab.run("get -n brief bench/0000001 -o json").code == 0;
        within(Duration::from_secs(10), || written().then_some(()));
        lab.ok(&format!("ns delete brief {delete}"));
        let ended = bench.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(5), "{said}");
        assert!(said.contains("error: `brief` was deleted meanwhile") && said.contains(reason), "{said}");
        assert!(
            String::from_utf8(ended.stdout).unwrap().contains("not applied"),
            "what was measured is said"
        );
        lab.run("ns delete brief --now");
    }
}

/// A namespace that was deleted is said to be, and what each refusal advises takes it back.
fn deletions_can_be_undone(lab: &Lab) {
    let before = lab.ok("get -n cart user:42");
    let deleted = lab.ok("ns delete cart --grace 1h");
    assert!(deleted.contains("cart is deleted; can be taken back until 2"), "{deleted}");
    assert!(lab.ok("ns list").contains("deleted; can be taken back until 2"));
    assert!(lab.ok("ns show cart").contains("deleted; can be taken back until 2"));
    assert!(lab.ok("cluster status").contains("deleted; can be taken back until 2"));
    let shown: serde_json::Value = serde_json::from_str(&lab.ok("ns show cart -o json")).unwrap();
    assert!(shown["deleted_until_ms"].is_u64(), "{shown}");
    for refused in [
        "get -n cart user:42",
        "put -n cart user:42 x",
        "ns alter cart --r 1",
        "ns delete cart",
        "ns create cart --mode strong",
    ] {
        let said = lab.ends(refused, 5);
        assert_eq!(said.err.contains("applied: no"), !refused.starts_with("get"), "{}", said.err);
        let advised = lab.advice(&said.err).unwrap();
        assert_eq!(advised, "ns undelete cart", "{refused}");
    }
    assert!(lab.ends("ns delete cart", 5).err.contains("kvctl ns delete --now cart"));
    lab.ok("ns undelete cart");
    assert_eq!(lab.ok("get -n cart user:42"), before);
    lab.ends("ns undelete cart", 5);
    lab.ok("ns delete cart");
}

/// A deletion, also the first one of a cluster, needs a majority and no more.
#[test]
fn a_deletion_goes_on_without_the_node_that_is_down() {
    let lab = Lab(tempfile::tempdir().unwrap());
    lab.ok(&format!("lab up --nodes 3 --port-base {}", PORT_BASE + 900));
    lab.ok("ns create cart --mode available");
    lab.ok("lab kill n3");
    lab.ok("ns alter cart --r 1");
    lab.ok("ns delete cart --grace 1h");
    lab.ok("ns undelete cart");
    lab.ok("ns create till --mode available");
    lab.ok("ns delete till --now");
    // The file of contexts may go meanwhile: the next command about the lab writes it again.
    let contexts = lab.0.path().join("config/kvctl/config.toml");
    for command in ["lab status", "fault list", "lab status --name lab"] {
        std::fs::rename(&contexts, contexts.with_extension("away")).unwrap();
        let said = lab.ends(command, 0);
        assert!(said.err.contains("`lab` is written again"), "{}", said.err);
        assert!(lab.ok("ctx list").contains("*  lab"));
    }
    std::fs::rename(&contexts, contexts.with_extension("away")).unwrap();
    lab.ends("lab up", 2); // it runs
    assert!(lab.ok("ctx list").contains("*  lab"));
    lab.ok("lab restart --name lab n3");
    within(Duration::from_secs(10), || (lab.run("ns delete cart --grace 1h").code == 0).then_some(()));
    // Another grace is another deletion: first the namespace is taken back.
    let again = lab.ends("ns delete cart --grace 2h", 5);
    assert!(again.err.contains("taken back first"), "{}", again.err);
    assert_eq!(lab.advice(&again.err).as_deref(), Some("ns undelete cart"), "{}", again.err);
    lab.ok("ns undelete cart");
    lab.ok("ns delete cart --grace 2h");
    // Of a lab whose cluster file is damaged nothing can be used: it is begun anew, when that is said.
    lab.ok("lab down");
    let file = lab.0.path().join("state/quorate/lab/cluster.toml");
    std::fs::write(&file, "[[[").unwrap();
    let damaged = lab.ends(&format!("lab up --nodes 3 --port-base {}", PORT_BASE + 900), 2);
    let advice = lab.advice(&damaged.err).unwrap();
    assert!(damaged.err.contains("is damaged or missing") && advice.contains("--fresh"), "{}", damaged.err);
    lab.ok(&advice);
    assert!(lab.ok("ns list").is_empty());
    // What is no lab's is never deleted.
    let others = lab.0.path().join("others");
    std::fs::create_dir_all(others.join("data")).unwrap();
    std::fs::write(others.join("data/photo"), "mine").unwrap();
    std::fs::write(others.join("cluster.toml"), "[[[").unwrap();
    let refused = lab.ends(&format!("lab up --name others --fresh --dir {}", others.display()), 2);
    assert!(refused.err.contains("no lab wrote"), "{}", refused.err);
    assert_eq!(std::fs::read_to_string(others.join("data/photo")).unwrap(), "mine");
}

/// The report says how to do by hand what the demo does: each line runs as it stands.
#[test]
fn the_recipe_of_the_report_runs() {
    let lab = Lab(tempfile::tempdir().unwrap());
    for step in kv_report::demo::by_hand::STEPS {
        // Beside the other lab of these tests.
        let line = kv_report::demo::by_hand::arguments(&step, PORT_BASE + 600);
        let said = match step.again {
            true => within(Duration::from_secs(20), || Some(lab.run(&line)).filter(|said| said.code == 0)),
            false => lab.ends(&line, step.ends),
        };
        let sees =
            |said: &Said| step.seen.iter().all(|words| said.out.contains(words) || said.err.contains(words));
        if !sees(&said) && step.line.starts_with("get ") {
            // Hints come home, and a replica that was behind catches up.
            within(Duration::from_secs(10), || sees(&lab.ends(&line, step.ends)).then_some(()));
        } else {
            assert!(sees(&said), "kvctl {line}\nstdout: {}\nstderr: {}", said.out, said.err);
        }
    }
}

/// Standard output that cannot be written changes nothing of what was done.
fn what_was_applied_is_not_called_refused(lab: &Lab) {
    for line in ["put -n bank full 1", "rm -n bank full", "put -n cart full 1 -o json"] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let output = command(lab.0.path(), &words).stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{line}: {said}");
        assert!(said.contains("it was applied, but standard output cannot be written"), "{said}");
    }
}

/// What ends because the node stops is not called an error in its log.
fn a_stop_that_was_asked_for_is_no_error(lab: &Lab) {
    for node in 1..=5 {
        let file = lab.0.path().join(format!("state/quorate/lab/logs/n{node}.log"));
        let log = std::fs::read_to_string(&file).unwrap();
        let errors: Vec<&str> =
            log.lines().filter(|line| line.contains("ERROR") && line.contains("openraft")).collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", file.display());
    }
}

/// Another lab has a name of its own; none takes over another's.
fn second_labs_are_beside_the_first(lab: &Lab) {
    let ports = PORT_BASE + 300;
    let dir = lab.0.path().join("other");
    let taken = lab.ends(&format!("lab up --nodes 1 --port-base {ports} --dir {}", dir.display()), 2);
    assert!(taken.err.contains("which runs"), "{}", taken.err);
    let busy = lab.ends(&format!("lab up --name other --nodes 1 --port-base {PORT_BASE}"), 2);
    let advised = lab.advice(&busy.err).unwrap();
    assert!(advised.contains("--port-base") && advised.contains("--name other"), "{advised}");
    lab.ok(&format!("lab up --name other --nodes 1 --port-base {ports}"));
    assert!(lab.ok("ctx list").contains("*  other"));
    assert!(lab.ok("ns create alone --mode available").contains("N=1"), "as many replicas as nodes");
    lab.ok("put -n alone k v");
    assert!(lab.ok("lab status").contains("/other"));
    assert!(lab.ok("-c lab lab status").contains("n5"));
    assert!(lab.ok("lab status --name lab").contains("n5"));
    // What is advised is for the lab that was named, and not for the selected one.
    let cut = lab.ok("fault isolate n5 --name lab");
    assert!(cut.contains("heal: kvctl fault heal --name lab"), "{cut}");
    assert!(lab.ok("lab status --name lab").contains("(kvctl fault list --name lab)"));
    assert!(lab.ok("fault list").is_empty(), "the selected lab has none");
    assert!(lab.ok("fault list --name lab").contains("n5"));
    lab.ok("-c lab fault heal");
    assert_eq!(lab.ok("lab down --name other"), "the lab `other` is down\n");
    assert_eq!(lab.ok("lab down --name other"), "the lab `other` does not run: nothing to do\n");
    assert!(lab.ends("lab status --name other", 3).err.starts_with("error: the lab `other` does not run\n"));
    lab.ends("-c other get -n bank alice", 3);
    lab.ok("ctx use lab");
    assert_eq!(lab.ok("get -n bank alice"), "7");
    a_start_that_is_interrupted_leaves_no_nodes(lab);
}

/// Whenever Ctrl-C comes: what had started ends, and that is said.
fn a_start_that_is_interrupted_leaves_no_nodes(lab: &Lab) {
    let ports = (PORT_BASE + 300).to_string();
    let up = ["lab", "up", "--name", "third", "--nodes", "1", "--port-base", &ports];
    let log = lab.0.path().join("state/quorate/third/supervisor.log");
    let interrupted = within(Duration::from_secs(30), || {
        let _ = std::fs::remove_file(&log);
        let mut up = command(lab.0.path(), &up);
        let mut child = up.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while !log.exists() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().is_ok());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        // It was up before the signal came, or the node of the try before still ends.
        lab.run("lab down --name third");
        lab.run("ctx use lab");
        (output.status.code() == Some(130)).then_some(text)
    });
    assert!(interrupted.starts_with("error: interrupted: the lab was not up yet. "), "{interrupted}");
    let again = lab.advice(&interrupted).unwrap();
    assert!(again.starts_with("lab up ") && again.contains("--name third"), "{interrupted}");
    // The port of its node is free again.
    let up = up.join(" ");
    within(Duration::from_secs(20), || (lab.run(&up).code == 0).then_some(()));
    lab.ok("lab down --name third");
    lab.ok("ctx remove third");
    lab.ok("ctx use lab");
}

/// What commands show is read on eighty columns. Values are as they are; a deed is told on one line into a
/// pipe, and lines to type and paths are whole.
fn fits_a_screen(line: &str, out: &str) {
    let shows = ["status", "list", "ls", "health", "latency", "owners", "top", "show", "bench"];
    if line.contains("-o json") || !line.split(' ').any(|word| shows.contains(&word)) {
        return;
    }
    let whole = |text: &str| {
        text.contains("kvctl ") || text.trim_start().starts_with("in /") || text.contains("file ")
    };
    let wide = out.lines().filter(|text| text.chars().count() > 80 && !whole(text));
    let wide: Vec<&str> = wide.collect();
    assert!(wide.is_empty(), "kvctl {line}: {wide:#?}");
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
