//! Files of a crate form no circles: where two need each other, neither can be read, tested or moved alone.
//!
//! A path that begins with `crate`, `self`, `super` or the name of a child is an arrow to the file that
//! defines what it names; a name that a file only passes on with `pub use` counts for the file that it comes
//! from. Calls of a module into its own private children are not arrows: they are one module, in several
//! files.

use super::exceptions::Breach;
use super::finding::{File, Finding};
use super::rust::{Code, outside_tests};
use std::collections::{BTreeMap, BTreeSet};

/// How many other files of a circle are named.
const SHOWN: usize = 4;
/// How many `pub use` are followed, one to the next.
const PASSED_ON: usize = 8;

/// Files that need each other, by path.
pub(super) fn circles(files: &[File]) -> Vec<Breach> {
    let mut crates: BTreeMap<&str, Vec<&File>> = BTreeMap::new();
    for file in outside_tests(files) {
        if let Some((name, _)) = file.path.split_once("/src/") {
            crates.entry(name).or_default().push(file);
        }
    }
    crates.into_iter().flat_map(|(name, files)| of_crate(name, &files)).collect()
}

/// A module of a crate: its file, the paths it names, and the names that it passes on.
struct Module<'a> {
    file: &'a File,
    named: Vec<Named>,
}

/// A path as it stands in the code, without `crate`, `self` and `super`: from the crate's root.
struct Named {
    line: usize,
    path: Vec<String>,
    /// The name that `pub use` gives it here; `*` for all names.
    passed_on: Option<String>,
}

type Modules<'a> = BTreeMap<Vec<String>, Module<'a>>;

fn of_crate(name: &str, files: &[&File]) -> Vec<Breach> {
    let has_library = files.iter().any(|file| file.path == format!("{name}/src/lib.rs"));
    let mut modules = Modules::new();
    for file in files {
        if let Some(path) = module_path(name, &file.path, has_library) {
            modules.insert(path, Module { file, named: Vec::new() });
        }
    }
    let paths: BTreeSet<Vec<String>> = modules.keys().cloned().collect();
    for (path, module) in &mut modules {
        module.named = named(&Code::of(module.file), path, &paths);
    }
    let arrows: Arrows<'_> = modules.keys().map(|path| (path.as_slice(), arrows(path, &modules))).collect();
    let mut breaches = Vec::new();
    for (path, module) in &modules {
        let all = circle(path, &arrows);
        let Some((next, line)) =
            arrows.get(path.as_slice()).and_then(|to| to.iter().find(|(to, _)| all.contains(*to)))
        else {
            continue;
        };
        let file = |path: &Vec<String>| modules.get(path).map_or("", |module| module.file.path.as_str());
        let others: Vec<&str> = all.iter().filter(|other| **other != path).map(|other| file(other)).collect();
        let more = if others.len() > SHOWN { " and others" } else { "" };
        let others = others.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ");
        let what = format!("uses {} and is in a circle with {others}{more}", file(next));
        let remedy = "move what both need into a file of its own, or pass it in";
        let key = module.file.path.clone();
        breaches.push(Breach { key, finding: Finding::new(&module.file.path, line + 1, what, remedy) });
    }
    breaches
}

/// The path of the module in a file; nothing for programs beside a library, which are crates of their own.
fn module_path(name: &str, path: &str, has_library: bool) -> Option<Vec<String>> {
    let inner = path.strip_prefix(name)?.strip_prefix("/src/")?.strip_suffix(".rs")?;
    match inner {
        "lib" => return Some(Vec::new()),
        "main" => return (!has_library).then(Vec::new),
        _ if inner.starts_with("bin/") => return None,
        _ => {}
    }
    let inner = inner.strip_suffix("/mod").unwrap_or(inner);
    Some(inner.split('/').map(str::to_owned).collect())
}

/// The paths that a module names.
fn named(code: &Code, module: &[String], modules: &BTreeSet<Vec<String>>) -> Vec<Named> {
    let tokens = code.tokens();
    let token = |at: usize| tokens.get(at).map_or("", |(_, token)| *token);
    let mut all = Vec::new();
    for (at, (line, word)) in tokens.iter().enumerate() {
        let inside = at > 0 && matches!(token(at - 1), "::" | ".");
        let child = || modules.contains(&[module, &[(*word).to_owned()]].concat());
        let begins = matches!(*word, "crate" | "self" | "super") || child();
        if inside || !begins || token(at + 1) != "::" {
            continue;
        }
        let used = token(at.wrapping_sub(1)) == "use";
        let public = used && matches!(token(at.wrapping_sub(2)), "pub" | ")");
        if !used && child() {
            continue;
        }
        let mut base = if *word == "crate" { Vec::new() } else { module.to_vec() };
        match *word {
            "super" => drop(base.pop()),
            "crate" | "self" => {}
            child => base.push(child.to_owned()),
        }
        let mut leaves = Vec::new();
        tree(&tokens, at + 2, &mut base, &mut leaves);
        all.extend(leaves.into_iter().map(|(path, name)| Named {
            line: *line,
            path,
            passed_on: public.then_some(name),
        }));
    }
    all
}

/// Reads a path or a tree of them that continues at a token, and returns where it ends. A leaf is a path and
/// the name that it has here.
fn tree(
    tokens: &[(usize, &str)],
    mut at: usize,
    base: &mut Vec<String>,
    leaves: &mut Vec<(Vec<String>, String)>,
) -> usize {
    let token = |at: usize| tokens.get(at).map_or("", |(_, token)| *token);
    let depth = base.len();
    loop {
        match token(at) {
            "{" => {
                at += 1;
                while !matches!(token(at), "}" | "") {
                    let inner = base.len();
                    at = tree(tokens, at, base, leaves);
                    base.truncate(inner);
                    at += usize::from(token(at) == ",");
                }
                base.truncate(depth);
                return at + 1;
            }
            "super" => drop(base.pop()),
            "self" => {}
            word => base.push(word.to_owned()),
        }
        if token(at + 1) == "::" && token(at + 2) != "<" {
            at += 2;
            continue;
        }
        let renamed = token(at + 1) == "as";
        let name = if renamed { Some(token(at + 2).to_owned()) } else { base.last().cloned() };
        leaves.push((base.clone(), name.unwrap_or_default()));
        base.truncate(depth);
        return at + if renamed { 3 } else { 1 };
    }
}

/// The modules that a module needs, each with the line (from 0) that names it first.
fn arrows(from: &[String], modules: &Modules<'_>) -> BTreeMap<Vec<String>, usize> {
    let mut arrows = BTreeMap::new();
    let named = modules.get(from).map_or(&[][..], |module| module.named.as_slice());
    for named in named.iter().filter(|named| named.passed_on.is_none()) {
        let to = home(&named.path, modules, PASSED_ON);
        if to != from {
            arrows.entry(to).or_insert(named.line);
        }
    }
    arrows
}

/// The module that defines what a path names.
fn home(path: &[String], modules: &Modules<'_>, follow: usize) -> Vec<String> {
    let mut at = path.len();
    while at > 0 && !modules.contains_key(path.get(..at).unwrap_or_default()) {
        at -= 1;
    }
    let (module, rest) = path.split_at(at);
    let (Some(name), Some(found)) = (rest.first(), modules.get(module)) else { return module.to_vec() };
    let passed_on = found.named.iter().find(|named| named.passed_on.as_ref() == Some(name));
    match passed_on {
        Some(named) if follow > 0 => {
            let whole = [named.path.as_slice(), rest.get(1..).unwrap_or_default()].concat();
            home(&whole, modules, follow - 1)
        }
        _ => module.to_vec(),
    }
}

type Arrows<'a> = BTreeMap<&'a [String], BTreeMap<Vec<String>, usize>>;

/// The modules that this one reaches and that reach it, itself among them.
fn circle<'a>(of: &[String], arrows: &'a Arrows<'_>) -> BTreeSet<&'a Vec<String>> {
    let back = |other: &&Vec<String>| reached(other, arrows).iter().any(|there| there.as_slice() == of);
    reached(of, arrows).into_iter().filter(back).collect()
}

/// Where the arrows lead from a module, in one step or more.
fn reached<'a>(from: &[String], arrows: &'a Arrows<'_>) -> BTreeSet<&'a Vec<String>> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&Vec<String>> = arrows.get(from).into_iter().flat_map(BTreeMap::keys).collect();
    while let Some(at) = next.pop() {
        if reached.insert(at) {
            next.extend(arrows.get(at.as_slice()).into_iter().flat_map(BTreeMap::keys));
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::super::finding::file;
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<(String, usize)> {
        let files: Vec<File> =
            files.iter().map(|(path, text)| file(&format!("crates/kv-a/src/{path}"), text)).collect();
        let line = |breach: Breach| {
            (breach.key.trim_start_matches("crates/kv-a/src/").to_owned(), breach.finding.line)
        };
        circles(&files).into_iter().map(line).collect()
    }

    fn names(found: &[(String, usize)]) -> Vec<&str> {
        found.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn files_that_need_each_other_are_found_at_the_line_that_says_so() {
        let a = ("a.rs", "\nuse crate::b::B;");
        let both = [("a.rs".to_owned(), 2), ("b.rs".to_owned(), 1)];
        assert_eq!(found(&[a, ("b.rs", "use super::a;")]), both);
        assert!(found(&[a, ("b.rs", "")]).is_empty());
    }

    #[test]
    fn longer_circles_are_found_whole_and_what_hangs_on_them_is_not() {
        let found = found(&[
            ("a.rs", "use crate::{b::{B, X as Y}, d};"),
            ("b/mod.rs", "fn f() { crate::c::g(); }"),
            ("c.rs", "use crate::a::A;"),
            ("d.rs", ""),
            ("e.rs", "use crate::a;"),
        ]);
        assert_eq!(names(&found), ["a.rs", "b/mod.rs", "c.rs"]);
    }

    #[test]
    fn names_that_are_passed_on_count_for_where_they_come_from() {
        let facade = ("lib.rs", "mod a; mod b;\npub use a::A;\npub use b::{B, C as D};");
        assert!(found(&[facade, ("a.rs", "use crate::B;"), ("b.rs", "")]).is_empty());
        let both = found(&[facade, ("a.rs", "use crate::D;"), ("b.rs", "use crate::A;")]);
        assert_eq!(names(&both), ["a.rs", "b.rs"]);
    }

    #[test]
    fn a_module_and_its_children_are_a_circle_only_where_it_uses_them_by_name() {
        let child = ("a/b.rs", "use super::A;");
        assert!(found(&[("a.rs", "mod b;\nfn f() { b::g(); }\nstruct A;"), child]).is_empty());
        let both = found(&[("a.rs", "mod b;\nuse b::B;\nstruct A;"), child]);
        assert_eq!(names(&both), ["a.rs", "a/b.rs"]);
    }

    #[test]
    fn tests_text_comments_and_other_crates_are_no_arrows() {
        let a = (
            "a.rs",
            "// crate::b\nfn f() { \"crate::b\"; other::crate::b(); }\n#[cfg(test)]\nmod tests {\n use crate::b;\n}",
        );
        assert!(found(&[a, ("b.rs", "use crate::a;")]).is_empty());
        assert!(found(&[("lib.rs", ""), ("main.rs", "use kv_a::b;"), ("b.rs", "")]).is_empty());
    }
}
