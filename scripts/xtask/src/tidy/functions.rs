//! Functions are short enough to be seen whole: a long one has several things to do, and hides where one
//! ends.

use super::exceptions::Breach;
use super::finding::{File, Finding};
use super::rust::{Code, item_end, outside_tests};

/// Lines of a function, from `fn` to the closing brace, outside tests.
const MOST: usize = 70;

/// Functions that are longer, by `path::function`.
pub(super) fn long(files: &[File]) -> Vec<Breach> {
    outside_tests(files).into_iter().flat_map(of_file).collect()
}

fn of_file(file: &File) -> Vec<Breach> {
    let code = Code::of(file);
    let tokens = code.tokens();
    let next = |at: usize| tokens.get(at + 1).map(|(_, token)| *token);
    let named = |(at, (line, token)): (usize, &(usize, &str))| {
        let name = next(at).filter(|name| name.starts_with(|c: char| c.is_alphabetic() || c == '_'))?;
        (*token == "fn").then(|| (*line, name.to_owned()))
    };
    let breach = |(line, name): (usize, String)| {
        let lines = item_end(&code.lines, line) + 1 - line;
        let what = format!("`{name}` has {lines} lines, more than {MOST}");
        let finding = Finding::new(&file.path, line + 1, what, "cut it into functions with names");
        (lines > MOST).then(|| Breach { key: format!("{}::{name}", file.path), finding })
    };
    tokens.iter().enumerate().filter_map(named).filter_map(breach).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::file;
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        long(&[file(path, text)]).into_iter().map(|breach| breach.key).collect()
    }

    #[test]
    fn functions_of_more_lines_than_allowed_are_found() {
        let function = |lines: usize| format!("pub async fn f(\n{}) {{}}\n", "a: A,\n".repeat(lines - 2));
        assert!(found("src/a.rs", &function(MOST)).is_empty());
        assert_eq!(found("src/a.rs", &function(MOST + 1)), ["src/a.rs::f"]);
    }

    #[test]
    fn braces_in_text_and_tests_do_not_count() {
        let rows = "x();\n".repeat(MOST);
        assert!(found("src/a.rs", &format!("fn f() {{ \"{{\" }}\n{rows}")).is_empty());
        assert!(found("src/a.rs", &format!("fn f();\n{rows}")).is_empty(), "it has no body");
        assert!(found("src/a.rs", &format!("type F = fn();\nconst A: [u8; 1] = [0];\n{rows}")).is_empty());
        assert!(
            found("src/a.rs", &format!("#[cfg(test)]\nmod tests {{\nfn f() {{\n{rows}}}\n}}\n")).is_empty()
        );
        assert!(found("tests/a/tests/b.rs", &format!("fn f() {{\n{rows}}}\n")).is_empty());
        assert_eq!(
            found("src/a.rs", &format!("impl A {{\nfn f(a: [u8; 2]) {{\n{rows}}}\n}}\n")),
            ["src/a.rs::f"]
        );
    }
}
