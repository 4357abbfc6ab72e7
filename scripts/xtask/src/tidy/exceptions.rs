//! Lists of what broke a rule when the rule came. They only shrink: what is not listed is a finding, and so
//! is a line of a list that nothing needs any more.

use super::finding::{File, Finding};
use std::collections::BTreeMap;

/// Where the lists are.
pub(super) const FOLDER: &str = "scripts/xtask/src/tidy/exceptions";

/// What breaks a rule that has a list of exceptions. All that have one key are excused by one line, up to its
/// number.
pub(super) struct Breach {
    /// What an exception names: `path`, or `path::function`.
    pub(super) key: String,
    /// The place, what is wrong there, and what to do.
    pub(super) finding: Finding,
}

/// A rule that has a list.
pub(super) struct Rule {
    /// The file's name below [`FOLDER`].
    pub(super) list: &'static str,
    /// Whether a line says how often: `path = 3`. Otherwise a line excuses everything that has its key.
    pub(super) counted: bool,
    pub(super) check: fn(&[File]) -> Vec<Breach>,
}

impl Rule {
    fn path(&self) -> String {
        format!("{FOLDER}/{}", self.list)
    }

    /// What breaks the rule and is not excused, and the lines of its list that are not needed as they are.
    pub(super) fn findings(&self, files: &[File]) -> Vec<Finding> {
        let path = self.path();
        let list = files.iter().find(|file| file.path == path);
        let mut breaches = grouped((self.check)(files));
        let mut findings = Vec::new();
        for (number, line) in list.into_iter().flat_map(File::lines) {
            let Some((key, allowed)) = entry(line) else { continue };
            let found = breaches.remove(key).unwrap_or_default();
            let allowed = if self.counted { allowed } else { found.len().max(1) };
            if found.len() > allowed {
                findings.extend(found);
            } else if found.is_empty() {
                findings.push(Finding::new(
                    &path,
                    number,
                    format!("nothing needs `{line}`"),
                    "remove this line",
                ));
            } else if found.len() < allowed {
                let what = format!("`{line}` allows more than the {} that are left", found.len());
                findings.push(Finding::new(&path, number, what, "lower it: `cargo xtask fix` does"));
            }
        }
        findings.extend(breaches.into_values().flatten());
        findings
    }

    /// The path and the text of the list without what is not needed, if that is another text. Nothing is ever
    /// added.
    pub(super) fn shrunk(&self, files: &[File]) -> Option<(String, String)> {
        let path = self.path();
        let list = files.iter().find(|file| file.path == path)?;
        let breaches = grouped((self.check)(files));
        let mut text = String::new();
        for line in list.text.lines() {
            let left =
                entry(line).map(|(key, allowed)| (key, allowed, breaches.get(key).map_or(0, Vec::len)));
            match left {
                Some((_, _, 0)) => continue,
                Some((key, allowed, found)) if self.counted && found < allowed => {
                    text.push_str(&format!("{key} = {found}"));
                }
                _ => text.push_str(line),
            }
            text.push('\n');
        }
        (text != list.text).then_some((path, text))
    }
}

fn grouped(breaches: Vec<Breach>) -> BTreeMap<String, Vec<Finding>> {
    let mut groups: BTreeMap<String, Vec<Finding>> = BTreeMap::new();
    for breach in breaches {
        groups.entry(breach.key).or_default().push(breach.finding);
    }
    groups
}

/// The key of a line and how often it is excused; nothing for comments and empty lines.
fn entry(line: &str) -> Option<(&str, usize)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (key, number) = line.split_once(" = ").unwrap_or((line, "1"));
    Some((key.trim(), number.trim().parse().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::super::finding::file;
    use super::*;

    /// Every line `bad` of a file breaks the rule.
    fn bad_lines(files: &[File]) -> Vec<Breach> {
        let of_file = |file: &File| {
            let bad = file.lines().filter(|(_, line)| *line == "bad");
            let breach = |(number, _)| Breach {
                key: file.path.clone(),
                finding: Finding::new(&file.path, number, "is bad", "be good"),
            };
            bad.map(breach).collect::<Vec<_>>()
        };
        files.iter().filter(|file| !file.path.starts_with(FOLDER)).flat_map(of_file).collect()
    }

    fn checked(counted: bool, list: &str, text: &str) -> (Vec<String>, Option<String>) {
        let rule = Rule { list: "bad.txt", counted, check: bad_lines };
        let files = [file(&rule.path(), list), file("a", text)];
        let found = rule.findings(&files).iter().map(ToString::to_string).collect();
        (found, rule.shrunk(&files).map(|(_, text)| text))
    }

    #[test]
    fn what_is_not_listed_is_found_with_its_remedy() {
        assert_eq!(checked(false, "", "bad\n").0, ["a:1: is bad; be good"]);
        assert_eq!(
            checked(false, "# a\n\na\n", "bad\nbad\n"),
            (vec![], None),
            "a line excuses all of its key"
        );
    }

    #[test]
    fn a_line_that_nothing_needs_is_found_and_removed() {
        let (found, shrunk) = checked(false, "# why\nb\na\n", "bad\n");
        assert_eq!(found, [format!("{FOLDER}/bad.txt:2: nothing needs `b`; remove this line")]);
        assert_eq!(shrunk.unwrap(), "# why\na\n");
    }

    #[test]
    fn a_count_may_only_shrink() {
        assert_eq!(checked(true, "a = 2\n", "bad\nbad\n"), (vec![], None));
        assert_eq!(checked(true, "a = 2\n", "bad\nbad\nbad\n").0.len(), 3, "all are shown");
        assert_eq!(checked(true, "a = 2\n", "bad\nbad\nbad\n").1, None, "a number is never raised");
        let (found, shrunk) = checked(true, "a = 2\n", "bad\n");
        assert!(found.len() == 1 && found[0].contains("the 1 that are left"), "{found:?}");
        assert_eq!(shrunk.unwrap(), "a = 1\n");
        assert_eq!(checked(true, "a = many\n", "bad\n").0.len(), 1, "a number that is none allows nothing");
    }
}
