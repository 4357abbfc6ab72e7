//! Which crate may use which: the layer table of ARCHITECTURE.md, as code.

use super::finding::{File, Finding};
use crate::cargo::Package;

/// Arrows point strictly down, so two crates of one level never see each other.
const LEVELS: [(&str, u8); 18] = [
    ("kv-sim", 6),
    ("kv-server", 5),
    ("kvctl", 5),
    ("jepsen-tests", 5),
    ("etcd-bench", 5),
    ("kv-raft", 4),
    ("kv-dynamo", 4),
    ("kv-report", 4),
    ("kv-peer", 3),
    ("kv-lab", 3),
    ("kv-workload", 3),
    ("kv-client", 2),
    ("kv-storage", 1),
    ("kv-proto", 1),
    ("kv-env", 1),
    ("kv-check", 1),
    ("kv-types", 0),
    // The task runner stands beside the layers: it uses no crate of ours, and none uses it.
    ("xtask", 0),
];

/// What `kvd` is made of, and what talks to it from outside: neither links the other (kv-sim may link both).
/// The tests of the one may use the client of the other.
const SERVER: [&str; 5] = ["kv-server", "kv-raft", "kv-dynamo", "kv-storage", "kv-peer"];
const TOOLS: [&str; 8] =
    ["kvctl", "jepsen-tests", "etcd-bench", "kv-report", "kv-lab", "kv-workload", "kv-client", "kv-check"];

/// Crates that use these packages from outside and no others.
const PURE: [(&str, &[&str]); 2] = [("kv-check", &["serde", "serde_json"]), ("xtask", &["serde_json"])];

/// Libraries that one crate hides: dependencies that only it may have.
const HIDDEN: [(&str, &str); 3] = [("openraft", "kv-raft"), ("fjall", "kv-storage"), ("sled", "kv-storage")];

pub(super) fn check(packages: &[Package], files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        let Some(manifest) = &package.member else { continue };
        let text = files.iter().find(|file| file.path == *manifest);
        let mut complain = |about: &str, what: String, remedy: &'static str| {
            let line = text.map_or(1, |file| file.line_of(|line| names(line, about)));
            findings.push(Finding::new(manifest, line, what, remedy));
        };
        let name = package.name.as_str();
        if level(name).is_none() {
            let remedy = "give it one in ARCHITECTURE.md and in scripts/xtask/src/tidy/layers.rs";
            complain("name", format!("{name} has no place in the layer table"), remedy);
        }
        for dependency in &package.dependencies {
            let on = dependency.name.as_str();
            let ours = packages.iter().any(|other| other.member.is_some() && other.name == on);
            let arrow = format!("{name} uses {on}");
            if ours && let Some(why) = forbidden(name, on, dependency.dev) {
                complain(on, format!("{arrow}: {why}"), "move what it needs down, or pass it in");
            }
            let pure = PURE.iter().find(|(pure, _)| *pure == name);
            if pure.is_some_and(|(_, allowed)| !dependency.dev && !allowed.contains(&on)) {
                complain(on, format!("{arrow}, but is kept free of dependencies"), "do without it");
            }
            let hidden =
                HIDDEN.iter().find(|(library, _)| on == *library || on.starts_with(&format!("{library}-")));
            if hidden.is_some_and(|(_, home)| *home != name) {
                complain(on, format!("{arrow}, which another crate hides"), "use what that crate offers");
            }
        }
    }
    findings
}

fn level(name: &str) -> Option<u8> {
    LEVELS.iter().find(|(crate_name, _)| *crate_name == name).map(|(_, level)| *level)
}

/// Why one crate of the workspace must not use another, if so.
fn forbidden(from: &str, to: &str, dev: bool) -> Option<&'static str> {
    if from == "xtask" || to == "xtask" {
        return Some("the task runner stands alone");
    }
    if level(from)? <= level(to)? {
        return Some("arrows of the layer table point strictly down");
    }
    if TOOLS.contains(&from) && SERVER.contains(&to) {
        return Some("tools never link the server, they spawn kvd");
    }
    if SERVER.contains(&from) && TOOLS.contains(&to) && !dev {
        return Some("the server never links tools, outside its tests");
    }
    None
}

/// Whether a line of a manifest states this member.
fn names(line: &str, name: &str) -> bool {
    line.trim_start().strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with(['.', '=']))
}

#[cfg(test)]
mod tests {
    use super::super::finding::file;
    use super::*;
    use crate::cargo::Dependency;

    fn package(name: &str, dependencies: &[(&str, bool)]) -> Package {
        Package {
            name: name.into(),
            version: "0.1.0".into(),
            license: None,
            member: Some(format!("crates/{name}/Cargo.toml")),
            dependencies: dependencies
                .iter()
                .map(|(on, dev)| Dependency { name: (*on).into(), dev: *dev })
                .collect(),
        }
    }

    fn arrow(from: &str, to: &str, dev: bool) -> usize {
        check(&[package(from, &[(to, dev)]), package(to, &[])], &[]).len()
    }

    #[test]
    fn arrows_that_point_up_or_across_or_into_the_server_are_found() {
        for (from, to) in [
            ("kv-raft", "kv-dynamo"),
            ("kv-dynamo", "kv-raft"),
            ("kv-types", "kv-proto"),
            ("kv-proto", "kv-env"),
            ("kv-peer", "kv-raft"),
            ("kv-lab", "kv-storage"),
            ("kv-lab", "kv-workload"),
            ("kv-workload", "kv-lab"),
            ("kv-lab", "kv-report"),
            ("kv-report", "kv-raft"),
            ("kv-client", "kv-storage"),
            ("kvctl", "kv-server"),
            ("kvctl", "kv-raft"),
            ("jepsen-tests", "kv-dynamo"),
            ("jepsen-tests", "kv-peer"),
            ("kv-server", "kv-sim"),
        ] {
            assert_eq!((arrow(from, to, false), arrow(from, to, true)), (1, 1), "{from} -> {to}");
        }
        assert_eq!((arrow("kv-server", "kv-client", false), arrow("kv-server", "kv-client", true)), (1, 0));
    }

    #[test]
    fn arrows_of_the_table_are_allowed() {
        for (from, to) in [
            ("kv-server", "kv-raft"),
            ("kv-server", "kv-types"),
            ("kv-dynamo", "kv-storage"),
            ("kv-raft", "kv-peer"),
            ("kvctl", "kv-lab"),
            ("kv-lab", "kv-client"),
            ("kv-workload", "kv-check"),
            ("kv-report", "kv-lab"),
            ("kv-report", "kv-workload"),
            ("kv-sim", "kv-workload"),
            ("jepsen-tests", "kv-lab"),
            ("kv-storage", "kv-types"),
            ("kv-sim", "kv-server"),
            ("kv-sim", "kv-client"),
        ] {
            assert_eq!(arrow(from, to, false), 0, "{from} -> {to}");
        }
    }

    #[test]
    fn a_crate_without_a_place_is_found() {
        let findings = check(&[package("kv-utils", &[])], &[]);
        assert!(findings.iter().any(|finding| finding.what.contains("no place")), "{findings:?}");
    }

    #[test]
    fn libraries_stay_hidden_and_pure_crates_pure() {
        let found = |from: &str, on: &str| {
            let manifest = format!("crates/{from}/Cargo.toml");
            let text = file(&manifest, &format!("[dependencies]\nserde = \"1\"\n{on}.workspace = true\n"));
            check(&[package(from, &[(on, false)])], &[text])
                .iter()
                .map(|found| found.line)
                .collect::<Vec<_>>()
        };
        assert_eq!(found("kv-server", "openraft"), [3]);
        assert_eq!(found("kv-raft", "sled"), [3]);
        assert_eq!(found("kv-server", "fjall"), [3]);
        assert_eq!(found("kv-peer", "openraft-rt"), [3]);
        assert_eq!(found("kv-check", "tokio"), [3]);
        assert_eq!(found("xtask", "clap"), [3]);
        assert!(found("kv-raft", "openraft").is_empty() && found("kv-storage", "sled").is_empty());
        assert!(found("kv-check", "serde_json").is_empty());
    }
}
