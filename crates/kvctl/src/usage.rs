//! A command line that cannot be read: what is wrong with it, in the form that was asked for, and the nearest
//! command where a word of other tools was typed.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::exit::Exit;
use crate::output::{Color, Format, Output};
use crate::problem::Problem;

/// What other tools call what kvctl calls otherwise, or does not have.
const OTHER_WORDS: [(&str, &str, &str); 15] = [
    ("list", "kvctl ns list", "the namespaces"),
    ("namespaces", "kvctl ns list", "the namespaces"),
    ("create", "kvctl help ns create", "creates a namespace"),
    ("status", "kvctl cluster status", "what a node sees"),
    ("health", "kvctl cluster health", "ok, degraded or down"),
    ("members", "kvctl cluster status", "the nodes"),
    ("nodes", "kvctl cluster status", "the nodes"),
    ("partition", "kvctl help fault partition", "cuts the network of a lab"),
    ("up", "kvctl lab up", "starts five nodes on this machine"),
    ("down", "kvctl lab down", "stops them"),
    ("stop", "kvctl lab down", "stops the nodes of a lab"),
    ("drop", "kvctl help ns delete", "deletes a namespace"),
    ("restore", "kvctl help ns undelete", "takes a deleted namespace back; there is no backup of keys yet"),
    ("demo", "kvctl lab demo", "what each mode does in a network partition"),
    ("use", "kvctl ctx list", "the contexts"),
];
/// What there is not.
const NOT_THERE: [&str; 7] = ["scan", "range", "keys", "watch", "txn", "incr", "backup"];

/// Says what is wrong; help and version are said on standard output and are no error.
pub(crate) fn refuse(error: clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Where it goes has been closed: there is no one to tell.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let json = wants_json();
    let unknown = match (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
        (ErrorKind::InvalidSubcommand, Some(ContextValue::String(word))) => Some(word.clone()),
        _ => None,
    };
    let problem = unknown.as_deref().and_then(instead);
    match problem {
        Some(problem) => output(json).problem(&problem),
        None if json => output(json).problem(&Problem::usage(plain(&error))),
        None => {
            let _ = error.print();
        }
    }
    Exit::Usage.into()
}

/// What to type for a word of another tool.
fn instead(word: &str) -> Option<Problem> {
    if let Some((_, line, why)) = OTHER_WORDS.iter().find(|(known, ..)| *known == word) {
        return Some(Problem::usage(format!("there is no command `{word}`")).try_this(*line, *why));
    }
    NOT_THERE.contains(&word).then(|| {
        Problem::usage(format!("there is no command `{word}` yet: keys are read and written one at a time"))
            .try_this("kvctl help", "all commands")
    })
}

/// The words of the parser on one line, without its headings.
fn plain(error: &clap::Error) -> String {
    let text = error.to_string();
    let text =
        text.split("\n\nUsage:").next().unwrap_or_default().split("\n\nFor more").next().unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    let words = words.join(" ");
    words.strip_prefix("error: ").unwrap_or(&words).to_owned()
}

fn output(json: bool) -> Output {
    Output::new(if json { Format::Json } else { Format::Text }, false, false, Color::Auto)
}

/// Whether results were asked for as JSON: the line could not be read, so its words are looked at.
fn wants_json() -> bool {
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let words: Vec<String> = words.collect();
    let pair = words.windows(2).any(
        |pair| matches!(pair, [name, value] if matches!(name.as_str(), "-o" | "--output") && value == "json"),
    );
    let joined = words.iter().any(|word| matches!(word.as_str(), "-ojson" | "-o=json" | "--output=json"));
    pair || joined || std::env::var("KVCTL_OUTPUT").is_ok_and(|form| form == "json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;

    #[test]
    fn words_of_other_tools_lead_to_lines_that_are_read() {
        for (word, line, _) in OTHER_WORDS {
            assert!(Cli::command().try_get_matches_from(["kvctl", word]).is_err(), "{word} is a command");
            assert!(Cli::command().try_get_matches_from(line.split(' ')).is_ok(), "{line}");
            assert_eq!(instead(word).unwrap().tries[0].0, line);
        }
        for word in NOT_THERE {
            assert!(Cli::command().try_get_matches_from(["kvctl", word]).is_err(), "{word} is a command");
            assert_eq!(instead(word).unwrap().exit, Exit::Usage);
        }
        assert!(instead("gte").is_none());
    }

    #[test]
    fn the_words_of_the_parser_fit_a_line() {
        let error = Cli::command().try_get_matches_from(["kvctl", "get", "k", "--colour"]).unwrap_err();
        let text = plain(&error);
        assert!(text.starts_with("unexpected argument '--colour'"), "{text}");
        assert!(!text.contains("Usage") && !text.contains('\n'), "{text}");
    }
}
