//! How comments and pages read: no wider than the code, in words that are common.
//!
//! Words are spelled in pieces, so that this file does not break its own rule.

use super::exceptions::{Breach, FOLDER};
use super::finding::{File, Finding};
use super::rust::Code;

/// The file that says how wide code is.
const RUSTFMT: &str = "rustfmt.toml";

/// Words that read oddly, and what a reader expects instead.
const ODD: [(&str, &str); 4] = [
    (concat!("no", "body"), "say `no one`, or what is missing"),
    (concat!("who", "ever"), "say who: `the caller`, `a reader`"),
    (concat!("for", " ever"), "say `forever`, or until when"),
    (concat!("what it", " came to"), "say `the result`"),
];

/// Comments that are wider than the code may be, by path.
pub(super) fn wide(files: &[File]) -> Vec<Breach> {
    let Some(width) = code_width(files) else { return Vec::new() };
    let of_file = |file: &File| {
        let comments = Code::of(file).comments;
        let wide = |((_, line), comment): &((usize, &str), bool)| *comment && line.chars().count() > width;
        let breach = |((number, line), _): ((usize, &str), bool)| {
            let what = format!("a comment of {} characters, more than {width}", line.chars().count());
            let finding = Finding::new(&file.path, number, what, "break it as rustfmt breaks code");
            Breach { key: file.path.clone(), finding }
        };
        file.lines().zip(comments).filter(wide).map(breach).collect::<Vec<_>>()
    };
    files.iter().filter(|file| file.is_rust()).flat_map(of_file).collect()
}

fn code_width(files: &[File]) -> Option<usize> {
    let settings = files.iter().find(|file| file.path == RUSTFMT)?;
    let width = settings.text.lines().find_map(|line| line.strip_prefix("max_width"))?;
    width.trim_start_matches([' ', '=']).trim().parse().ok()
}

/// Words that read oddly, by path.
pub(super) fn odd(files: &[File]) -> Vec<Breach> {
    let read = |file: &&File| {
        let kinds = [".rs", ".md", ".toml", ".proto"];
        kinds.iter().any(|kind| file.path.ends_with(kind)) && !file.path.starts_with(FOLDER)
    };
    files.iter().filter(read).flat_map(odd_in).collect()
}

fn odd_in(file: &File) -> Vec<Breach> {
    let breach = |number, said: &str, remedy| Breach {
        key: file.path.clone(),
        finding: Finding::new(&file.path, number, format!("says `{said}`"), remedy),
    };
    let mut breaches = Vec::new();
    for (number, line) in file.lines() {
        let line = line.to_lowercase();
        for (word, remedy) in ODD {
            let whole = |(at, _): &(usize, &str)| {
                let after = line.get(at + word.len()..).and_then(|after| after.chars().next());
                !after.is_some_and(char::is_alphanumeric)
            };
            let found = line.match_indices(word).filter(whole);
            breaches.extend(found.map(|_| breach(number, word, remedy)));
        }
        let negated = line.match_indices("is no ").filter_map(|(at, said)| {
            let before = line.get(..at).unwrap_or_default();
            let mut words = line.get(at + said.len()..)?.split(|c: char| !c.is_alphanumeric() && c != '-');
            let (noun, of) = (words.next()?, words.next()?);
            // "There is no end of" is common; the same after a name is not.
            (of == "of" && noun != "longer" && !before.ends_with("there "))
                .then(|| format!("is no {noun} of"))
        });
        let remedy = "say `is not a ... of`";
        breaches.extend(negated.map(|said| breach(number, &said, remedy)));
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::super::finding::file;
    use super::*;

    #[test]
    fn comments_wider_than_code_are_found() {
        let found = |text: &str| {
            let files = [file(RUSTFMT, "edition = \"2024\"\nmax_width = 20\n"), file("src/a.rs", text)];
            wide(&files).into_iter().map(|breach| (breach.key, breach.finding.line)).collect::<Vec<_>>()
        };
        let wide = |line| vec![("src/a.rs".to_owned(), line)];
        assert!(found("// twenty letters ab\n").is_empty());
        assert_eq!(found("a();\n// twenty-one letters\n"), wide(2));
        assert_eq!(found("a(b, c, d); // of more\n"), wide(1));
        assert!(found("a(\"// a text is not a comment\");\n").is_empty());
    }

    #[test]
    fn words_that_read_oddly_are_found() {
        let found = |path: &str, text: &str| {
            odd(&[file(path, text)]).into_iter().map(|breach| breach.finding.line).collect::<Vec<_>>()
        };
        for (word, _) in ODD {
            assert_eq!(found("a.md", &format!("x\n({word} y) {}\n", word.to_uppercase())), [2, 2]);
        }
        assert_eq!(found("src/a.rs", concat!("\"n9 is no mem", "ber of\"")), [1]);
        assert!(found("src/a.rs", "there is no end of it for every one, it is no longer of use").is_empty());
        assert!(found("a.jsonl", ODD[0].0).is_empty());
    }
}
