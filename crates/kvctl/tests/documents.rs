//! The pages of the documentation as a reader meets them: each line after `$` is typed in a shell, one after
//! the other, and what is seen is what the page says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "an integration test: clippy's exemption covers only unit tests"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// How long a fence that waits may take until it shows what the page says.
const PATIENCE: Duration = Duration::from_secs(20);

/// A line that is typed, and what is seen.
#[derive(Debug)]
struct Step {
    line: String,
    seen: Vec<String>,
    fence: Fence,
}

/// How the lines between two fences are typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Fence {
    /// Again and again, until what is seen is what the page says.
    waits: bool,
    /// Where this command succeeds, and nowhere else: it looks for a program that a machine may lack.
    needs: Option<String>,
}

impl Fence {
    /// `console`, `console wait`, or `console if` and a command.
    fn of(info: &str) -> Option<Self> {
        match info.strip_prefix("console")? {
            "" => Some(Self::default()),
            " wait" => Some(Self { waits: true, needs: None }),
            rest => rest.strip_prefix(" if ").map(|needs| Self { waits: false, needs: Some(needs.into()) }),
        }
    }
}

/// The steps of all fences `console` of a page.
fn steps(page: &str) -> Vec<Step> {
    let (mut steps, mut fence) = (Vec::<Step>::new(), None);
    for line in page.lines() {
        match (line.strip_prefix("```"), &fence) {
            (Some(info), None) => fence = Fence::of(info),
            (Some(_), Some(_)) => fence = None,
            (None, Some(fence)) => match line.strip_prefix("$ ") {
                Some(line) => steps.push(Step { line: line.into(), seen: Vec::new(), fence: fence.clone() }),
                None => steps.last_mut().expect("a line that is typed").seen.push(line.into()),
            },
            (None, None) => {}
        }
    }
    steps
}

/// Whether text is what the pattern says: `…` stands for anything, also for many lines.
fn is(pattern: &str, text: &str) -> bool {
    let mut rest = text;
    let parts: Vec<&str> = pattern.split('…').collect();
    for (at, part) in parts.iter().enumerate() {
        let found = match (at, at + 1 == parts.len()) {
            (0, true) => return rest == *part,
            (0, false) => rest.starts_with(part).then_some(0),
            (_, true) => rest.ends_with(part).then(|| rest.len() - part.len()),
            (_, false) => rest.find(part),
        };
        match found {
            Some(place) => rest = &rest[place + part.len()..],
            None => return false,
        }
    }
    true
}

/// A reader: a home, a folder to be in, and ports of their own.
struct Reader {
    home: tempfile::TempDir,
    ports: u16,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.types("kvctl lab down");
    }
}

impl Reader {
    /// Standard output, without the spaces at the ends of lines.
    fn types(&self, line: &str) -> String {
        let text = String::from_utf8(self.runs(line).stdout).unwrap();
        let text = (1..=9).fold(text, |text, node| self.at(text, node, false));
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    /// Runs a line as the shell of this reader does.
    fn runs(&self, line: &str) -> Output {
        let programs = Path::new(env!("CARGO_BIN_EXE_kvctl")).parent().unwrap();
        // The pages say the usual ports; a lab of the tests has its own.
        let line = line.replace("kvctl lab up", &format!("kvctl lab up --port-base {}", self.ports));
        let line = (1..=9).fold(line, |line, node| self.at(line, node, true));
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).current_dir(self.home.path()).stdin(Stdio::null());
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        shell
            .env("PATH", path)
            .env("XDG_CONFIG_HOME", self.home.path())
            .env("XDG_STATE_HOME", self.home.path());
        shell.output().unwrap()
    }

    fn at(&self, text: String, node: u16, real: bool) -> String {
        let (usual, own) = (format!("127.0.0.1:710{node}"), format!("127.0.0.1:{}", self.ports + node));
        if real { text.replace(&usual, &own) } else { text.replace(&own, &usual) }
    }

    fn reads(&self, page: &Path) {
        let text = std::fs::read_to_string(page).unwrap();
        let steps = steps(&text);
        assert!(!steps.is_empty(), "{} has no steps", page.display());
        for Step { line, seen, fence } in steps {
            if let Some(needs) = &fence.needs
                && !self.runs(needs).status.success()
            {
                eprintln!("skipped, as `{needs}` fails: {}: $ {line}", page.display());
                continue;
            }
            let wanted = seen.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n");
            #[allow(clippy::disallowed_methods, reason = "a test of processes waits in real time")]
            let now = std::time::Instant::now;
            let begun = now();
            loop {
                let saw = self.types(&line);
                if is(&wanted, &saw) {
                    break;
                }
                let over = !fence.waits || begun.elapsed() > PATIENCE;
                assert!(
                    !over,
                    "{}: $ {line}\nthe page says:\n{wanted}\nand there was:\n{saw}",
                    page.display()
                );
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

/// A reader who is in a clone, as far as pages name files of it.
fn reader(ports: u16) -> Reader {
    let (home, clone) = (tempfile::tempdir().unwrap(), Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    for folder in ["proto", "crates"] {
        std::os::unix::fs::symlink(clone.join(folder), home.path().join(folder)).unwrap();
    }
    Reader { home, ports }
}

#[test]
fn the_tutorial_happens() {
    reader(26_100).reads(&page("tutorial.md"));
}

#[test]
fn the_how_tos_happen() {
    let mut ports = 26_500;
    let mut pages: Vec<PathBuf> =
        std::fs::read_dir(page("how-to")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    for page in pages {
        if steps(&std::fs::read_to_string(&page).unwrap()).is_empty() {
            continue;
        }
        reader(ports).reads(&page);
        ports += 300;
    }
}

#[path = "../../kv-client/examples/cart.rs"]
#[allow(dead_code, unreachable_pub, reason = "an example has a main of its own")]
mod cart;
#[path = "../../kv-client/examples/counter.rs"]
#[allow(dead_code, unreachable_pub, reason = "an example has a main of its own")]
mod counter;

/// The examples of the client library do what they say.
#[test]
fn the_examples_of_the_client_run() {
    let reader = reader(27_700);
    reader.types("kvctl lab up --nodes 3");
    for mode in ["bank --mode strong", "cart --mode available"] {
        assert!(reader.types(&format!("kvctl ns create {mode}")).starts_with("created"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = kv_client::ClientOptions::new([format!("127.0.0.1:{}", reader.ports + 1)]);
        let client = kv_client::Client::connect(options).unwrap();
        let bank = client.strong("bank");
        for count in 1..=3 {
            assert_eq!(counter::increment(&bank, "visits").await.unwrap(), count);
        }
        // Many at once: each counts.
        let many = (0..8).map(|_| counter::increment(&bank, "visits"));
        let mut counted = futures_util::future::try_join_all(many).await.unwrap();
        counted.sort_unstable();
        assert_eq!(counted, (4..=11).collect::<Vec<_>>());
        let baskets = client.available("cart");
        for things in ["apple,pear", "apple,plum"] {
            baskets.put("user:42", things, kv_client::WriteContext::Blind).await.unwrap();
        }
        assert_eq!(baskets.get("user:42").await.unwrap().value.values.len(), 2);
        let merged = cart::merge(&baskets, "user:42").await.unwrap();
        assert_eq!(merged.into_iter().collect::<Vec<_>>(), ["apple", "pear", "plum"]);
        assert_eq!(baskets.get("user:42").await.unwrap().value.values[0].value, "apple,pear,plum");
    });
}

#[test]
fn patterns_mean_what_they_say() {
    assert!(is("OK  …", "OK  x") && is("a…c…e", "abcde") && is("…", "") && is("x", "x"));
    assert!(!is("x", "xy") && !is("a…c", "ab") && !is("OK …", "NO x") && is("…\nb  c\n…", "a\nb  c\nd"));
    let page = "text\n```console wait\n$ a\nb\n```\n```\n$ no\n```\n```console if x -y\n$ c\n```\n```console\n$ d\n```\n";
    let steps = steps(page);
    assert_eq!(steps.iter().map(|step| step.line.as_str()).collect::<Vec<_>>(), ["a", "c", "d"]);
    assert_eq!(steps[0].seen, ["b"]);
    let fence = |waits, needs: Option<&str>| Fence { waits, needs: needs.map(str::to_owned) };
    let fences = steps.into_iter().map(|step| step.fence).collect::<Vec<_>>();
    assert_eq!(fences, [fence(true, None), fence(false, Some("x -y")), fence(false, None)]);
    let reader = reader(27_900);
    assert!(
        reader.runs("true").status.success() && !reader.runs("a-program-that-no-one-has").status.success()
    );
}
