//! A Rust file as the rules read it: its code without comments, text and tests, line by line as in the file.

use super::finding::File;
use std::collections::BTreeSet;

/// Marks an item that is compiled for tests alone.
const TESTS: &str = "#[cfg(test)]";

/// A Rust file with everything blanked that is not code. Lines stand where they stand in the file.
pub(super) struct Code {
    /// Outside its tests, line by line; what is blanked is spaces.
    pub(super) lines: Vec<String>,
    /// Whether a line holds a comment or a part of one.
    pub(super) comments: Vec<bool>,
}

/// The Rust files that are compiled outside tests too: not those whose name says tests, nor those that a
/// module declares for its tests alone.
pub(super) fn outside_tests(files: &[File]) -> Vec<&File> {
    let rust = files.iter().filter(|file| file.is_rust());
    let mut declared = BTreeSet::new();
    for file in rust.clone() {
        let folder = match file.path.rsplit_once('/') {
            Some((folder, "mod.rs" | "lib.rs" | "main.rs")) => folder,
            _ => file.path.trim_end_matches(".rs"),
        };
        for (mark, module) in file.text.lines().zip(file.text.lines().skip(1)) {
            if mark.trim() == TESTS
                && let Some(module) = module.trim().strip_suffix(';')
            {
                let name = module.rsplit(' ').next().unwrap_or_default();
                declared.extend([format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")]);
            }
        }
    }
    rust.filter(|file| !is_test(&file.path) && !declared.contains(&file.path)).collect()
}

/// Whether the name of a file says that it is compiled for tests alone.
fn is_test(path: &str) -> bool {
    let stem = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
    path.contains("/tests/") || stem == "tests" || stem.ends_with("_tests") || stem.starts_with("test_")
}

impl Code {
    pub(super) fn of(file: &File) -> Code {
        let (text, comments) = blank(&file.text);
        let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
        blank_tests(&mut lines);
        Code { lines, comments }
    }

    /// Words and marks of the code with their line (from 0). A word is a run of letters, digits and `_`;
    /// every other character that is not a space is a mark of its own, except `::`.
    pub(super) fn tokens(&self) -> Vec<(usize, &str)> {
        let mut tokens = Vec::new();
        for (number, line) in self.lines.iter().enumerate() {
            let mut rest = line.as_str();
            while let Some(start) = rest.find(|c: char| !c.is_whitespace()) {
                rest = rest.get(start..).unwrap_or_default();
                let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                let mark =
                    if rest.starts_with("::") { 2 } else { rest.chars().next().map_or(0, char::len_utf8) };
                let (token, after) = rest.split_at(word.max(if word == 0 { mark } else { 0 }));
                tokens.push((number, token));
                rest = after;
            }
        }
        tokens
    }
}

/// What the scanner is inside of.
#[derive(Clone, Copy, PartialEq)]
enum Inside {
    Code,
    LineComment,
    /// Nested so deep.
    BlockComment(usize),
    Text,
    /// Raw text that ends with a quote and so many `#`.
    RawText(usize),
}

/// The text with comments and the insides of literals blanked, and which lines hold a comment.
fn blank(text: &str) -> (String, Vec<bool>) {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\n');
    let mut code = String::with_capacity(text.len());
    let mut comments = vec![false];
    let mut inside = Inside::Code;
    let mut i = 0;
    while i < chars.len() {
        let before = inside;
        let step = match inside {
            Inside::Code => {
                let (next, step) = enter(&chars, i);
                inside = next;
                step
            }
            Inside::LineComment if at(i) == '\n' => {
                inside = Inside::Code;
                1
            }
            Inside::BlockComment(depth) if at(i) == '*' && at(i + 1) == '/' => {
                inside = if depth == 1 { Inside::Code } else { Inside::BlockComment(depth - 1) };
                2
            }
            Inside::BlockComment(depth) if at(i) == '/' && at(i + 1) == '*' => {
                inside = Inside::BlockComment(depth + 1);
                2
            }
            Inside::Text if at(i) == '\\' => 2,
            Inside::Text if at(i) == '"' => {
                inside = Inside::Code;
                1
            }
            Inside::RawText(marks) if at(i) == '"' && (1..=marks).all(|mark| at(i + mark) == '#') => {
                inside = Inside::Code;
                marks + 1
            }
            _ => 1,
        };
        let comment = |inside| matches!(inside, Inside::LineComment | Inside::BlockComment(_));
        let literal = before == Inside::Code && inside == Inside::Code && step > 1;
        for c in chars.iter().skip(i).take(step) {
            let kept = *c == '\n' || (before == Inside::Code && inside == Inside::Code && !literal);
            code.push(if kept { *c } else { ' ' });
            if (comment(before) || comment(inside))
                && *c != '\n'
                && let Some(last) = comments.last_mut()
            {
                *last = true;
            }
            if *c == '\n' {
                comments.push(false);
            }
        }
        i += step;
    }
    (code, comments)
}

/// What begins at this character of code, and of how many characters the beginning is. A literal of one
/// character is whole.
fn enter(chars: &[char], i: usize) -> (Inside, usize) {
    let at = |i: usize| chars.get(i).copied().unwrap_or('\n');
    let in_word = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
    match at(i) {
        '/' if at(i + 1) == '/' => (Inside::LineComment, 2),
        '/' if at(i + 1) == '*' => (Inside::BlockComment(1), 2),
        '"' => (Inside::Text, 1),
        'r' if !in_word || at(i - 1) == 'b' => {
            let marks = (i + 1..).take_while(|mark| at(*mark) == '#').count();
            if at(i + 1 + marks) == '"' { (Inside::RawText(marks), marks + 2) } else { (Inside::Code, 1) }
        }
        // A character, not a lifetime.
        '\'' if at(i + 1) == '\\' => {
            let end = (i + 3..).find(|end| matches!(at(*end), '\'' | '\n')).unwrap_or(i + 3);
            (Inside::Code, end + 1 - i)
        }
        '\'' if at(i + 2) == '\'' => (Inside::Code, 3),
        _ => (Inside::Code, 1),
    }
}

/// Blanks the modules, functions and other items that are compiled for tests alone.
fn blank_tests(lines: &mut [String]) {
    let mut number = 0;
    while number < lines.len() {
        let marked = lines.get(number).is_some_and(|line| line.contains(TESTS));
        let end = if marked { item_end(lines, number) } else { number };
        for line in lines.iter_mut().take(end + 1).skip(number) {
            if marked {
                line.clear();
            }
        }
        number = end + 1;
    }
}

/// The last line of the item that begins on this line: where its braces close, or its first `;` outside of
/// them.
pub(super) fn item_end(lines: &[String], begin: usize) -> usize {
    let (mut braces, mut others) = (0_usize, 0_usize);
    for (number, line) in lines.iter().enumerate().skip(begin) {
        for c in line.chars() {
            match c {
                '(' | '[' => others += 1,
                ')' | ']' => others = others.saturating_sub(1),
                '{' => braces += 1,
                '}' => {
                    braces = braces.saturating_sub(1);
                    if braces == 0 && others == 0 {
                        return number;
                    }
                }
                ';' if braces == 0 && others == 0 => return number,
                _ => {}
            }
        }
    }
    lines.len().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::super::finding::file;
    use super::*;

    fn code(text: &str) -> Vec<String> {
        let code = Code::of(&file("src/a.rs", text));
        code.lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn comments_and_literals_are_blanked_in_their_place() {
        assert_eq!(code("let a = 1; // { b\nlet c = \"{ \\\" }\"; d()"), ["let a = 1;", "let c = ; d()"]);
        assert_eq!(code("a /* { /* } */ \n { */ b"), ["a", "b"]);
        assert_eq!(
            code("r#\"{ \" }\"# + x('{') + y('\\'') + z::<'a>(b\"{\")"),
            ["+ x( ) + y( ) + z::<'a>(b )"]
        );
        assert_eq!(code("let text = \"a\n{\nb\"; c"), ["let text =", "", "; c"]);
    }

    #[test]
    fn lines_with_comments_are_known() {
        let code = Code::of(&file("src/a.rs", "a\nb // c\n/* d\ne */\n\"// f\""));
        assert_eq!(code.comments, [false, true, true, true, false]);
    }

    #[test]
    fn tests_are_blanked() {
        let text = "a();\n#[cfg(test)]\nmod tests {\n fn b() {}\n}\n#[cfg(test)]\nuse c::d;\ne();";
        assert_eq!(code(text), ["a();", "", "", "", "", "", "", "e();"]);
        assert!(is_test("crates/a/src/b/tests.rs") && is_test("crates/a/src/quorum_tests.rs"));
        assert!(is_test("crates/a/tests/b.rs") && !is_test("crates/a/src/contests.rs"));
    }

    #[test]
    fn modules_that_are_declared_for_tests_are_tests() {
        let declares = file("src/a/mod.rs", "mod b;\n#[cfg(test)]\nmod model;\n#[cfg(test)]\nuse c;\n");
        let files = [declares, file("src/a/b.rs", ""), file("src/a/model.rs", ""), file("src/model.rs", "")];
        let left: Vec<_> = outside_tests(&files).iter().map(|file| file.path.as_str()).collect();
        assert_eq!(left, ["src/a/mod.rs", "src/a/b.rs", "src/model.rs"]);
    }

    #[test]
    fn tokens_are_words_and_marks() {
        let code = Code::of(&file("src/a.rs", "use a::{b,\n c_1};"));
        let tokens: Vec<_> = code.tokens();
        let words: Vec<_> = tokens.iter().map(|(_, word)| *word).collect();
        assert_eq!(words, ["use", "a", "::", "{", "b", ",", "c_1", "}", ";"]);
        assert_eq!(tokens.last().unwrap().0, 1);
    }
}
