//! The rules of the workspace that no compiler checks. A rule that matters is a test, not a request: each one names
//! the place, what is wrong, and what to do.

mod layers;
mod licences;
mod sources;

use crate::cargo::Workspace;
use std::fmt;

/// Something that breaks a rule.
#[derive(Debug, PartialEq)]
struct Finding {
    path: String,
    /// From 1.
    line: usize,
    what: String,
    remedy: &'static str,
    /// Printed, but breaks nothing.
    warning: bool,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>, remedy: &'static str) -> Finding {
        Finding { path: path.to_owned(), line, what: what.into(), remedy, warning: false }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.warning { "warning: " } else { "" };
        write!(f, "{}:{}: {kind}{}; {}", self.path, self.line, self.what, self.remedy)
    }
}

/// A file of the repository that is text.
struct File {
    path: String,
    text: String,
}

impl File {
    /// The line (from 1) of the first one that this holds for, else 1.
    fn line_of(&self, wanted: impl Fn(&str) -> bool) -> usize {
        self.text.lines().position(wanted).map_or(1, |at| at + 1)
    }

    /// Lines with their numbers, from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Checks every rule and prints what breaks one; whether nothing does.
pub(crate) fn run(workspace: &Workspace) -> Result<bool, String> {
    let mut files = Vec::new();
    for path in workspace.files()? {
        let bytes = std::fs::read(workspace.root.join(&path))
            .map_err(|error| format!("cannot read {path}: {error}"))?;
        if !bytes.contains(&0) {
            files.push(File { path, text: String::from_utf8_lossy(&bytes).into_owned() });
        }
    }
    let mut findings = layers::check(&workspace.packages, &files);
    findings.extend(licences::check(&workspace.packages, &files));
    findings.extend(sources::check(&files));
    findings.sort_by(|a, b| (a.warning, &a.path, a.line).cmp(&(b.warning, &b.path, b.line)));
    for finding in &findings {
        println!("{finding}");
    }
    let broken = findings.iter().filter(|finding| !finding.warning).count();
    println!("{} files, {} packages: {broken} findings", files.len(), workspace.packages.len());
    Ok(broken == 0)
}

#[cfg(test)]
fn file(path: &str, text: &str) -> File {
    File { path: path.to_owned(), text: text.to_owned() }
}
