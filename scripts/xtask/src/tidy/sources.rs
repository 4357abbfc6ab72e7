//! What the files of the repository may say, and which of them there must be.
//!
//! Patterns are spelled in pieces, so that this file does not break its own rules.

use super::finding::{File, Finding};

/// What a newcomer finds at the top level.
const LAYOUT: [&str; 11] = [
    "Cargo.toml",
    "proto/",
    "crates/",
    "cluster-configs/",
    "jepsen-tests/",
    "scripts/",
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "docs/decisions/",
];

/// The gate of continuous integration, which calls ours.
const CI: &str = ".ci/run";

/// Characters a file's first line needs to say why it exists.
const HEADER: usize = 20;

/// Lines outside its tests beyond which a file has probably lost its one reason to exist.
const LONG: usize = 1000;

/// Libraries that one crate hides: names that its folder alone may use in code.
const HIDDEN: [(&str, &str); 3] =
    [("openraft", "crates/kv-raft/"), ("fjall", "crates/kv-storage/"), ("sled", "crates/kv-storage/")];

/// Folders that exist on somebody's machine.
const MACHINE: [&str; 4] =
    [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("C:\\", "Users")];

/// Where packages come from is everybody's own setting.
const REGISTRIES: [&str; 9] = [
    concat!("index.", "crates.io"),
    concat!("static.", "crates.io"),
    concat!("arti", "factory"),
    concat!("jfr", "og."),
    concat!("cloud", "smith.io"),
    concat!("pypi", ".org"),
    concat!("registry.", "npmjs.org"),
    concat!("proxy.", "golang.org"),
    concat!("repo.", "maven"),
];

/// The one source of packages that a lock file may name.
const SOURCE: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";

/// Work that was not done.
const STUBS: [&str; 3] = [concat!("to", "do!"), concat!("unimple", "mented!"), concat!("#[ig", "nore")];
const NOTES: [&str; 2] = [concat!("FIX", "ME"), concat!("XX", "X")];

pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let mut findings = layout(files);
    for file in files {
        lines(file, &mut findings);
        if file.is_rust() {
            rust(file, &mut findings);
        }
        if file.path.ends_with("Cargo.toml") && file.path != "Cargo.toml" {
            manifest(file, &mut findings);
        }
    }
    findings
}

/// The top level is complete. An empty folder is not in a clone, so a folder counts by its files.
fn layout(files: &[File]) -> Vec<Finding> {
    let there = |wanted: &&str| {
        files
            .iter()
            .any(|file| file.path == **wanted || (wanted.ends_with('/') && file.path.starts_with(*wanted)))
    };
    let missing = LAYOUT.iter().chain([&CI]).filter(|wanted| !there(wanted));
    missing.map(|wanted| Finding::new(wanted, 1, "is missing from the top level", "write it")).collect()
}

/// What no line of any file says.
fn lines(file: &File, findings: &mut Vec<Finding>) {
    for (number, line) in file.lines() {
        let mut complain =
            |what: String, remedy| findings.push(Finding::new(&file.path, number, what, remedy));
        if let Some(folder) = MACHINE.iter().find(|folder| starts_path(line, folder)) {
            complain(
                format!("{folder} exists on somebody's machine"),
                "use a path from the workspace's root",
            );
        }
        if let Some(host) = REGISTRIES.iter().find(|host| line.to_lowercase().contains(**host)) {
            complain(format!("names the package registry {host}"), "leave it to each machine's own settings");
        }
        if file.path == "Cargo.lock" && line.starts_with("source = ") && line != SOURCE {
            complain(format!("another source of packages, {line}"), "take packages from the public index");
        }
    }
}

/// Whether an absolute path begins with the folder somewhere in the line.
fn starts_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        before.is_none_or(|c| !c.is_alphanumeric() && !".-_~}".contains(c))
    })
}

/// What a Rust file is and says.
fn rust(file: &File, findings: &mut Vec<Finding>) {
    let first = file.text.lines().next().unwrap_or_default();
    if first.strip_prefix("//!").is_none_or(|why| why.trim().chars().count() < HEADER) {
        let what = format!("does not open with `//!` and why it exists, in {HEADER} characters or more");
        findings.push(Finding::new(&file.path, 1, what, "say what would be lost without this file"));
    }
    for (number, line) in file.lines() {
        let code = code_of(line);
        let mut complain =
            |what: String, remedy| findings.push(Finding::new(&file.path, number, what, remedy));
        for (library, home) in HIDDEN {
            if !file.path.starts_with(home) && has_word(&code, library) {
                complain(format!("names {library}, which {home} hides"), "use what that crate offers");
            }
        }
        if let Some(stub) = STUBS.iter().find(|stub| code.contains(**stub)) {
            complain(format!("leaves work undone: {stub}"), "do it, or leave out what needs it");
        }
        if let Some(note) = NOTES.iter().find(|note| has_word(line, note)) {
            complain(
                format!("leaves a note: {note}"),
                "do it, or write down the limitation where users see it",
            );
        }
    }
    let tests = file.path.contains("/tests/") || file.path.ends_with("/tests.rs");
    let long = file.text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default().lines().count();
    if long > LONG && !tests {
        let what = format!("{long} lines outside its tests");
        let finding = Finding::new(&file.path, 1, what, "is it still one thing?");
        findings.push(Finding { warning: true, ..finding });
    }
}

/// Every version is named once, in the workspace's manifest.
fn manifest(file: &File, findings: &mut Vec<Finding>) {
    let mut among_dependencies = false;
    for (number, line) in file.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(section) = line.strip_prefix('[') {
            among_dependencies = section.contains("dependencies");
            if among_dependencies && !section.ends_with("dependencies]") {
                let what = "gives a dependency a table of its own";
                findings.push(Finding::new(
                    &file.path,
                    number,
                    what,
                    "write `name = { workspace = true, ... }`",
                ));
            }
        } else if among_dependencies && line.contains('=') {
            let spaceless = line.replace(' ', "");
            if !spaceless.contains("workspace=true") || spaceless.contains("version=") {
                let what = format!("names a version of its own: {line}");
                let remedy = "name it in [workspace.dependencies], and use `workspace = true`";
                findings.push(Finding::new(&file.path, number, what, remedy));
            }
        }
    }
}

/// A line without its comment and without what stands between double quotes. It looks at one line alone,
/// which is enough to look for names in code.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut chars = line.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => drop(chars.next()),
            // A quote as a character, '"', opens nothing.
            '\'' if !quoted && chars.peek() == Some(&'"') => drop(chars.next()),
            '"' => quoted = !quoted,
            '/' if !quoted && chars.peek() == Some(&'/') => break,
            _ if quoted => {}
            _ => code.push(c),
        }
    }
    code
}

fn has_word(text: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        let after = text.get(at + word.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::file;
    use super::*;

    const GOOD: &str = "//! Says in a line why it exists.\n";

    fn rust_findings(path: &str, line: &str) -> Vec<(usize, String)> {
        let mut findings = Vec::new();
        let file = file(path, &format!("{GOOD}{line}\n"));
        lines(&file, &mut findings);
        rust(&file, &mut findings);
        findings.into_iter().map(|finding| (finding.line, finding.what)).collect()
    }

    #[track_caller]
    fn one(findings: Vec<(usize, String)>, line: usize, what: &str) {
        assert!(findings.len() == 1 && findings[0].0 == line && findings[0].1.contains(what), "{findings:?}");
    }

    #[test]
    fn hidden_libraries_are_found_in_code_alone() {
        one(rust_findings("crates/kv-server/src/a.rs", "use openraft::Raft;"), 2, "openraft");
        one(rust_findings("crates/kv-raft/src/a.rs", "let db = sled::open(path);"), 2, "sled");
        one(rust_findings("crates/kv-raft/src/a.rs", "use fjall::Database;"), 2, "fjall");
        for fine in
            ["// openraft does this", "let sledge = 1;", "let name = \"sled\"; // sled", "f('\"', sledge)"]
        {
            assert!(rust_findings("crates/kv-server/src/a.rs", fine).is_empty(), "{fine}");
        }
        assert!(rust_findings("crates/kv-raft/src/a.rs", "use openraft::Raft;").is_empty());
        assert!(rust_findings("crates/kv-storage/src/tier/sled.rs", "use sled::Db;").is_empty());
    }

    #[test]
    fn a_file_that_does_not_say_why_it_exists_is_found() {
        for text in ["", "use std::fmt;\n", "//! Short.\n", "// Says in a line why it exists.\n"] {
            let mut findings = Vec::new();
            rust(&file("a.rs", text), &mut findings);
            assert_eq!(findings.len(), 1, "{text:?}");
        }
    }

    #[test]
    fn paths_of_a_machine_are_found() {
        for folder in MACHINE {
            one(rust_findings("a.rs", &format!("let path = \"{folder}x\";")), 2, "machine");
            assert!(rust_findings("a.rs", &format!("let path = \"some{folder}x\";")).is_empty());
        }
        assert!(rust_findings("a.rs", "let path = concat!(env!(\"OUT_DIR\"), \"/x.rs\");").is_empty());
    }

    #[test]
    fn registries_are_found() {
        for host in REGISTRIES {
            one(rust_findings("a.rs", &format!("// see https://{host}/x")), 2, "registry");
        }
        let mut findings = Vec::new();
        let other = "source = \"registry+https://packages.example/index\"";
        lines(&file("Cargo.lock", &format!("{SOURCE}\n{other}\n")), &mut findings);
        assert_eq!(findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn stubs_are_found() {
        for stub in
            [concat!("to", "do!()"), concat!("unimple", "mented!(\"x\")"), concat!("#[ig", "nore = \"x\"]")]
        {
            one(rust_findings("a.rs", stub), 2, "undone");
        }
        for note in NOTES {
            one(rust_findings("a.rs", &format!("// {note}: later")), 2, "note");
        }
    }

    #[test]
    fn own_versions_in_members_are_found() {
        let found = |text: &str| {
            let mut findings = Vec::new();
            manifest(&file("crates/kv-a/Cargo.toml", text), &mut findings);
            findings.iter().map(|finding| finding.line).collect::<Vec<_>>()
        };
        let fine = "[package]\nversion = \"1\"\n[dependencies]\n# none\nbytes.workspace = true\nx = { workspace = true, features = [\"a\"] }\n";
        assert!(found(fine).is_empty());
        assert_eq!(found("[dependencies]\nbytes = \"1\"\n"), [2]);
        assert_eq!(found("[dev-dependencies]\nbytes = { version = \"1\" }\n"), [2]);
        assert_eq!(found("[target.'cfg(unix)'.dependencies]\nlibc = { path = \"../libc\" }\n"), [2]);
        assert_eq!(found("[dependencies.bytes]\nversion = \"1\"\n"), [1, 2]);
    }

    #[test]
    fn long_files_are_warned_about() {
        let lines = "fn f() {}\n".repeat(LONG);
        let warned = |path: &str, text: String| {
            let mut findings = Vec::new();
            rust(&file(path, &text), &mut findings);
            assert!(findings.iter().all(|finding| finding.warning), "{findings:?}");
            findings.len()
        };
        assert_eq!(warned("src/a.rs", format!("{GOOD}{lines}")), 1);
        assert_eq!(warned("tests/a/tests/b.rs", format!("{GOOD}{lines}")), 0);
        assert_eq!(warned("src/a.rs", format!("{GOOD}\n#[cfg(test)]\nmod tests {{\n{lines}}}\n")), 0);
    }

    #[test]
    fn gaps_of_the_top_level_are_found() {
        let mut files: Vec<File> = LAYOUT.iter().map(|path| file(&format!("{path}x"), "")).collect();
        let missing = layout(&files).into_iter().map(|finding| finding.path).collect::<Vec<_>>();
        assert_eq!(missing, ["Cargo.toml", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "LICENSE", CI]);
        files.extend(LAYOUT.iter().chain([&CI]).map(|path| file(path, "")));
        assert!(layout(&files).is_empty());
    }
}
