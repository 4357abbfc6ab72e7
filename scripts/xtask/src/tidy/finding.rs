//! What every rule reads and what it returns: a file of the repository, and a place that breaks a rule.

use std::fmt;

/// Something that breaks a rule.
#[derive(Debug, PartialEq)]
pub(super) struct Finding {
    pub(super) path: String,
    /// From 1.
    pub(super) line: usize,
    pub(super) what: String,
    pub(super) remedy: &'static str,
    /// Printed, but breaks nothing.
    pub(super) warning: bool,
}

impl Finding {
    pub(super) fn new(path: &str, line: usize, what: impl Into<String>, remedy: &'static str) -> Finding {
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
pub(super) struct File {
    pub(super) path: String,
    pub(super) text: String,
}

impl File {
    /// The line (from 1) of the first one that this holds for, else 1.
    pub(super) fn line_of(&self, wanted: impl Fn(&str) -> bool) -> usize {
        self.text.lines().position(wanted).map_or(1, |at| at + 1)
    }

    /// Lines with their numbers, from 1.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }

    pub(super) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

#[cfg(test)]
pub(super) fn file(path: &str, text: &str) -> File {
    File { path: path.to_owned(), text: text.to_owned() }
}
