//! What the dependency tree may contain: licences we can ship under Apache-2.0, and no package we decided
//! against.

use super::finding::{File, Finding};
use crate::cargo::Package;

/// Permissive licences, compatible with Apache-2.0. A new one is added after reading it.
const ALLOWED: [&str; 11] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages that must not enter the tree, and why.
const BANNED: [(&str, &str); 8] = [
    ("openssl", "it needs a C library to be installed; TLS is rustls'"),
    ("openssl-sys", "it needs a C library to be installed; TLS is rustls'"),
    ("native-tls", "it behaves differently on every system; TLS is rustls'"),
    ("librocksdb-sys", "it needs a C++ compiler; storage is ours over fjall"),
    ("protobuf-src", "it builds protoc from C++; protox compiles our files"),
    ("async-std", "there is one runtime, tokio"),
    ("madsim", "simulation is turmoil's, without patched dependencies"),
    ("structopt", "clap replaced it"),
];

pub(super) fn check(packages: &[Package], files: &[File]) -> Vec<Finding> {
    let lock = files.iter().find(|file| file.path == "Cargo.lock");
    let mut findings = Vec::new();
    for package in packages {
        let place = lock.map_or(1, |file| file.line_of(|line| line == format!("name = {:?}", package.name)));
        let mut complain =
            |what: String, remedy| findings.push(Finding::new("Cargo.lock", place, what, remedy));
        let name = format!("{} {}", package.name, package.version);
        match &package.license {
            None => complain(format!("{name} states no licence"), "do without the package"),
            Some(license) if !allows(license) => {
                let remedy = "do without the package, or read the licence and allow it in tidy/licences.rs";
                complain(format!("{name} is under {license}"), remedy);
            }
            Some(_) => {}
        }
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == package.name) {
            complain(format!("{name} is banned: {why}"), "find who brings it in with `cargo tree -i`");
        }
    }
    findings
}

/// Whether an SPDX expression can be met with allowed licences. `AND` binds tighter than `OR`; `/` is an old
/// `OR`. What cannot be understood is not allowed.
fn allows(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    any(&mut words) == Some(true) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>) -> Option<bool> {
    let mut allowed = all(words)?;
    while words.next_if_eq(&"OR").is_some() {
        allowed |= all(words)?;
    }
    Some(allowed)
}

fn all(words: &mut Words<'_>) -> Option<bool> {
    let mut allowed = one(words)?;
    while words.next_if_eq(&"AND").is_some() {
        allowed &= one(words)?;
    }
    Some(allowed)
}

fn one(words: &mut Words<'_>) -> Option<bool> {
    if words.next_if_eq(&"(").is_some() {
        let allowed = any(words)?;
        return words.next_if_eq(&")").map(|_| allowed);
    }
    let name = words.next_if(|word| !["OR", "AND", "WITH", ")"].contains(word))?;
    if words.next_if_eq(&"WITH").is_some() {
        return Some(ALLOWED.contains(&format!("{name} WITH {}", words.next()?).as_str()));
    }
    Some(ALLOWED.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::super::finding::file;
    use super::*;

    #[test]
    fn expressions_are_weighed() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "Apache-2.0 / MIT",
            "MIT OR GPL-3.0-only",
            "MIT OR Apache-2.0 OR LGPL-2.1-or-later",
            "MIT AND BSD-3-Clause",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "(MIT OR GPL-2.0) AND (GPL-2.0 OR ISC)",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
        ] {
            assert!(allows(good), "{good}");
        }
        for bad in [
            "",
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "(MIT OR Apache-2.0) AND MPL-2.0",
            "GPL-2.0 OR MIT AND AGPL-3.0",
            "GPL-2.0 WITH Classpath-exception-2.0",
            "MIT WITH",
            "MIT OR",
            "(MIT",
            "MIT)",
            "MIT Apache-2.0",
        ] {
            assert!(!allows(bad), "{bad}");
        }
    }

    #[test]
    fn foreign_licences_and_banned_packages_are_found_in_the_lock_file() {
        let package = |name: &str, license: Option<&str>| Package {
            name: name.into(),
            version: "1.0.0".into(),
            license: license.map(str::to_owned),
            member: None,
            dependencies: Vec::new(),
        };
        let lock = file("Cargo.lock", "[[package]]\nname = \"good\"\n\n[[package]]\nname = \"bad\"\n");
        let lines = |package| {
            check(&[package], std::slice::from_ref(&lock)).iter().map(|found| found.line).collect::<Vec<_>>()
        };
        assert!(lines(package("good", Some("MIT"))).is_empty());
        assert_eq!(lines(package("bad", Some("AGPL-3.0-only"))), [5]);
        assert_eq!(lines(package("bad", None)), [5]);
        assert_eq!(lines(package("openssl-sys", Some("MIT"))), [1]);
    }
}
