//! What the demo builds is a part of what the tests build: where a dependency had other features there, cargo
//! would compile it, and all above it, a second time.

use std::collections::BTreeSet;

use super::finding::{File, Finding};
use crate::cargo::{cargo, output};

/// What the demo builds.
const DEMO: [&str; 4] = ["--package", "kv-server", "--package", "kvctl"];

pub(super) fn check(files: &[File]) -> Result<Vec<Finding>, String> {
    let whole = built(&["--workspace"], "normal,build,dev")?;
    let demo = built(&DEMO, "normal,build")?;
    let manifest = files.iter().find(|file| file.path == "Cargo.toml");
    Ok(differing(&whole, &demo)
        .map(|package| {
            let name = package.split(' ').next().unwrap_or_default();
            let place = manifest.map_or(1, |file| file.line_of(|line| line.starts_with(name)));
            let what = format!("the tests build no such thing as the demo's {package}");
            Finding::new("Cargo.toml", place, what, "name all its features in the workspace's dependencies")
        })
        .collect())
}

/// What is built for one and not for the other.
fn differing<'a>(
    whole: &'a BTreeSet<String>,
    part: &'a BTreeSet<String>,
) -> impl Iterator<Item = &'a String> {
    part.difference(whole)
}

/// Each package with its features, as `tree` prints them: `name v1.2.3|feature,feature`.
fn built(packages: &[&str], edges: &str) -> Result<BTreeSet<String>, String> {
    let mut tree = cargo(&["tree", "--locked", "--no-dedupe", "--prefix", "none", "--format", "{p}|{f}"]);
    let printed = output(tree.args(["--edges", edges]).args(packages))?;
    Ok(parse(&printed))
}

fn parse(printed: &str) -> BTreeSet<String> {
    let package = |line: &str| {
        let (package, features) = line.trim_end_matches(" (*)").rsplit_once('|')?;
        // A path, or that it is a macro, says nothing of how it is built.
        let name = package.split(" (").next().unwrap_or(package);
        Some(format!("{name}|{features}"))
    };
    printed.lines().filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_features_are_another_build() {
        let whole =
            parse("a v1.0.0|x,y\nb v2.0.0 (proc-macro)|\na v1.0.0|x,y (*)\nc v0.1.0 (/some/where)|\n");
        assert_eq!(whole.len(), 3);
        assert_eq!(differing(&whole, &parse("a v1.0.0|x,y\nc v0.1.0|\n")).count(), 0);
        let part = parse("a v1.0.0|x\nb v2.0.0|\n");
        assert_eq!(differing(&whole, &part).collect::<Vec<_>>(), ["a v1.0.0|x"]);
    }
}
