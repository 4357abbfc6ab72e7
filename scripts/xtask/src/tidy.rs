//! The rules of the workspace that no compiler checks. A rule that matters is a test, not a request: each one
//! names the place, what is wrong, and what to do.

mod circles;
mod exceptions;
mod features;
mod finding;
mod functions;
mod layers;
mod licences;
mod prose;
mod rust;
mod sources;

use crate::cargo::Workspace;
use exceptions::Rule;
use finding::File;

/// Rules that some code broke when they came: each has a list of exceptions that may only shrink.
const WITH_EXCEPTIONS: [Rule; 4] = [
    Rule { list: "circles.txt", counted: false, check: circles::circles },
    Rule { list: "long-functions.txt", counted: false, check: functions::long },
    Rule { list: "odd-words.txt", counted: true, check: prose::odd },
    Rule { list: "wide-comments.txt", counted: false, check: prose::wide },
];

/// The files of the repository that are text.
fn files(workspace: &Workspace) -> Result<Vec<File>, String> {
    let mut files = Vec::new();
    for path in workspace.files()? {
        let bytes = std::fs::read(workspace.root.join(&path))
            .map_err(|error| format!("cannot read {path}: {error}"))?;
        if !bytes.contains(&0) {
            files.push(File { path, text: String::from_utf8_lossy(&bytes).into_owned() });
        }
    }
    Ok(files)
}

/// Checks every rule and prints what breaks one; whether nothing does.
pub(crate) fn run(workspace: &Workspace) -> Result<bool, String> {
    let files = files(workspace)?;
    let mut findings = layers::check(&workspace.packages, &files);
    findings.extend(features::check(&files)?);
    findings.extend(licences::check(&workspace.packages, &files));
    findings.extend(sources::check(&files));
    findings.extend(WITH_EXCEPTIONS.iter().flat_map(|rule| rule.findings(&files)));
    findings.sort_by(|a, b| (a.warning, &a.path, a.line).cmp(&(b.warning, &b.path, b.line)));
    for finding in &findings {
        println!("{finding}");
    }
    let broken = findings.iter().filter(|finding| !finding.warning).count();
    println!("{} files, {} packages: {broken} findings", files.len(), workspace.packages.len());
    Ok(broken == 0)
}

/// Takes from the lists of exceptions what nothing needs any more. It adds nothing.
pub(crate) fn shrink(workspace: &Workspace) -> Result<(), String> {
    let files = files(workspace)?;
    for (path, text) in WITH_EXCEPTIONS.iter().filter_map(|rule| rule.shrunk(&files)) {
        std::fs::write(workspace.root.join(&path), text)
            .map_err(|error| format!("cannot write {path}: {error}"))?;
        println!("{path}: took out what nothing needs any more");
    }
    Ok(())
}
