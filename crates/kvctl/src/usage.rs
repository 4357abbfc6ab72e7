//! A command line that cannot be read: what is wrong with it, in the form that was asked for, and the nearest
//! command where a word of other tools was typed.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::exit::Exit;
use crate::line::Line;
use crate::output::{self, Color, Format, Output, on_a_line};
use crate::problem::Problem;

/// What other tools call what kvctl calls otherwise, or does not have. Words of commands that live below
/// another one need no line here.
const OTHER_WORDS: [(&str, &str, &str); 6] = [
    ("namespaces", "kvctl ns list", "the namespaces"),
    ("members", "kvctl cluster status", "the nodes"),
    ("nodes", "kvctl cluster status", "the nodes"),
    ("stop", "kvctl lab down", "stops the nodes of a lab"),
    ("drop", "kvctl help ns delete", "deletes a namespace"),
    ("restore", "kvctl help ns undelete", "takes a deleted namespace back; there is no backup of keys yet"),
];
/// What there is not.
const NOT_THERE: [&str; 7] = ["scan", "range", "keys", "watch", "txn", "incr", "backup"];

/// What other tools call the commands below one of ours: of these, the first that can be typed is meant.
const OTHER_VERBS: [(&str, &[&str], &[&str]); 30] = [
    ("ns", &["rm", "remove", "del", "drop", "destroy"], &["ns delete"]),
    ("ns", &["ls", "ps"], &["ns list"]),
    ("ns", &["add", "new", "make"], &["ns create"]),
    ("ns", &["get", "describe", "info", "status"], &["ns show"]),
    ("ns", &["set", "update", "edit", "change", "modify"], &["ns alter"]),
    ("ns", &["restore", "undo", "recover"], &["ns undelete"]),
    ("lab", &["stop", "end", "halt", "destroy", "delete", "rm", "remove"], &["lab down", "lab kill"]),
    ("lab", &["start", "create", "new", "run"], &["lab up", "lab restart"]),
    ("lab", &["list", "ls", "labs"], &["ctx list"]),
    ("lab", &["ps", "nodes", "info", "show"], &["lab status"]),
    ("lab", &["log", "tail"], &["lab logs"]),
    ("lab", &["unpause", "continue"], &["lab resume"]),
    ("lab", &["freeze", "suspend"], &["lab pause"]),
    ("lab", &["heal"], &["fault heal"]),
    ("lab", &["partition"], &["fault partition"]),
    ("fault", &["cut", "split"], &["fault isolate", "fault partition"]),
    ("fault", &["clear", "end", "stop", "remove", "rm", "undo", "recover"], &["fault heal"]),
    ("fault", &["ls", "show", "status"], &["fault list"]),
    ("fault", &["delay", "throttle"], &["fault slow"]),
    ("fault", &["kill", "crash"], &["lab kill"]),
    ("fault", &["restart", "start"], &["lab restart"]),
    ("ctx", &["rm", "delete", "del", "forget"], &["ctx remove"]),
    ("ctx", &["ls"], &["ctx list"]),
    ("ctx", &["select", "switch", "set"], &["ctx use"]),
    ("ctx", &["new", "create"], &["ctx add"]),
    ("cluster", &["members", "nodes", "ls", "list", "show", "info"], &["cluster status"]),
    ("cluster", &["transfer", "leader", "elect"], &["cluster transfer-leader"]),
    ("cluster", &["stats", "metrics"], &["cluster latency"]),
    ("cluster", &["check", "ok"], &["cluster health"]),
    ("ring", &["owner", "show", "get", "where"], &["ring owners"]),
];

/// Says what is wrong; help and version are said on standard output and are no error.
pub(crate) fn refuse(error: &clap::Error, definition: &Command) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        output::help(&error.render(), error.use_stderr());
        return if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
    }
    let words: Vec<OsString> = std::env::args_os().collect();
    let format = if wants_json(&words) { Format::Json } else { Format::Text };
    let color = match output::of_parser() {
        clap::ColorChoice::Never => Color::Never,
        clap::ColorChoice::Always => Color::Always,
        clap::ColorChoice::Auto => Color::Auto,
    };
    let output = Output::new(format, false, false, color);
    output.problem(&problem(error, definition, &words));
    Exit::Usage.into()
}

/// What is wrong with these words, and what to type instead.
fn problem(error: &clap::Error, definition: &Command, words: &[OsString]) -> Problem {
    let known = match (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
        (ErrorKind::InvalidUtf8, _) => not_text(definition, words),
        (ErrorKind::InvalidSubcommand, Some(ContextValue::String(word))) => {
            let below = || below(definition, words, word);
            otherwise(definition, words, word).or_else(below).or_else(|| instead(word))
        }
        _ => None,
    };
    known.unwrap_or_else(|| unread(error, definition, words))
}

/// What the parser says, and the nearest line that it knows, or else the help on the command.
fn unread(error: &clap::Error, definition: &Command, words: &[OsString]) -> Problem {
    let problem = Problem::usage(plain(error));
    // Of several the last is the nearest.
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        Some(ContextValue::Strings(words)) => words.last().map(String::as_str),
        _ => None,
    };
    let meant = [
        (ContextKind::InvalidSubcommand, ContextKind::SuggestedSubcommand),
        (ContextKind::InvalidArg, ContextKind::SuggestedArg),
        (ContextKind::InvalidValue, ContextKind::SuggestedValue),
    ];
    let meant = meant.into_iter().find_map(|(wrong, right)| Some((text(wrong)?, text(right)?)));
    if let Some((wrong, right)) = meant
        && let Some(at) = words.iter().rposition(|word| is_it(word, wrong))
    {
        let mut others = words.to_vec();
        if let Some(word) = others.get_mut(at) {
            *word = word.to_string_lossy().replacen(wrong, right, 1).into();
        }
        let line = match read(definition, &others) {
            Some(line) => line,
            None => help_on(definition, &others),
        };
        return problem.try_this(line.to_string(), format!("`{right}` is the nearest that there is"));
    }
    if let Some(line) = text(ContextKind::InvalidValue).and_then(|value| with_unit(definition, words, value))
    {
        return problem.try_this(line.to_string(), "with a unit");
    }
    problem.try_this(help_on(definition, words).to_string(), "how it is said")
}

/// The line with a unit behind this number, where that makes it one that can be read: seconds, or bytes.
fn with_unit(definition: &Command, words: &[OsString], number: &str) -> Option<Line> {
    number.parse::<f64>().ok()?;
    let places = words.iter().enumerate().rev().filter(|(_, word)| is_it(word, number));
    places.flat_map(|(at, word)| ["s", "B"].map(|unit| (at, format!("{}{unit}", word.display())))).find_map(
        |(at, word)| {
            let mut others = words.to_vec();
            *others.get_mut(at)? = word.into();
            read(definition, &others)
        },
    )
}

/// Whether the parser means this word: also `--mode=strnog`, of which it names a half.
fn is_it(word: &OsString, named: &str) -> bool {
    let word = word.to_string_lossy();
    word == named || word.split_once('=').is_some_and(|(name, value)| name == named || value == named)
}

/// Help on the command that these words name, as far as they name one.
fn help_on(definition: &Command, words: &[OsString]) -> Line {
    let path = path(definition, words);
    path.iter().fold(Line::new(&["help"]), |help, (_, word)| help.operand("topic", word))
}

/// The line that was meant by the word of a command that lives below another one.
fn below(definition: &Command, words: &[OsString], word: &str) -> Option<Problem> {
    let (None, at) = place(definition, words, word)? else { return None };
    let shown = |command: &&Command| !command.is_hide_set() && command.get_name() != "help";
    let above = definition.get_subcommands().filter(shown);
    let found = above.filter_map(|above| Some((above, above.find_subcommand(word).filter(shown)?)));
    let problem = Problem::usage(format!("there is no command `{word}`, but one below another"));
    let problem = found.fold(problem, |problem, (above, command)| {
        let mut meant = words.to_vec();
        meant.insert(at, above.get_name().into());
        let line = read(definition, &meant).unwrap_or_else(|| help_on(definition, &meant));
        problem.try_this(line.to_string(), command.get_about().map(ToString::to_string).unwrap_or_default())
    });
    (!problem.tries.is_empty()).then_some(problem)
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

/// The line that was meant by a word of another tool below one of our commands, with all that was typed
/// beside it; where that cannot be read, help on the command.
fn otherwise(definition: &Command, words: &[OsString], unknown: &str) -> Option<Problem> {
    let (parent, at) = place(definition, words, unknown)?;
    let parent = parent?;
    let above = words.get(parent)?.to_str()?;
    let known = OTHER_VERBS.iter().find(|(of, verbs, _)| *of == above && verbs.contains(&unknown));
    let (_, _, ours) = known?;
    let problem = Problem::usage(format!("there is no command `{above} {unknown}`"));
    let about = |path: &str| {
        let found = path.split(' ').try_fold(definition, |command, word| command.find_subcommand(word));
        found.and_then(Command::get_about).map(ToString::to_string).unwrap_or_default()
    };
    for path in *ours {
        let mut meant = words.to_vec();
        for (place, word) in [parent, at].into_iter().zip(path.split(' ')) {
            meant.get_mut(place)?.clone_from(&word.into());
        }
        if let Some(line) = read(definition, &meant) {
            return Some(problem.try_this(line.to_string(), about(path)));
        }
    }
    let first = ours.first()?;
    let help = first.split(' ').fold(Line::new(&["help"]), |help, word| help.operand("topic", word));
    Some(problem.try_this(help.to_string(), about(first)))
}

/// Where a word stands that is no command, and where the command stands, if there is one, below which it was
/// looked for.
fn place(definition: &Command, words: &[OsString], unknown: &str) -> Option<(Option<usize>, usize)> {
    let path = path(definition, words);
    let (after, parent) = path.last().map_or((1, None), |(at, _)| (at + 1, Some(*at)));
    let command = path.iter().try_fold(definition, |command, (_, word)| command.find_subcommand(word))?;
    let at = next(definition, command, words, after)?;
    (*words.get(at)? == *unknown).then_some((parent, at))
}

/// The commands that these words name, each with its place.
fn path(definition: &Command, words: &[OsString]) -> Vec<(usize, String)> {
    let (mut command, mut path, mut after) = (definition, Vec::new(), 1);
    while let Some(at) = next(definition, command, words, after)
        && let Some(inner) = words.get(at).and_then(|word| command.find_subcommand(word))
    {
        path.push((at, inner.get_name().to_owned()));
        (command, after) = (inner, at + 1);
    }
    path
}

/// The place of the next word that is neither an option nor the value of one.
fn next(root: &Command, command: &Command, words: &[OsString], after: usize) -> Option<usize> {
    let mut value = false;
    words.iter().enumerate().skip(after).find_map(|(at, word)| {
        let word = word.to_string_lossy();
        if std::mem::take(&mut value) {
            return None;
        }
        value = word.starts_with('-') && takes_next(root, command, &word);
        (!word.starts_with('-')).then_some(at)
    })
}

/// Whether the word after this option is its value.
fn takes_next(root: &Command, command: &Command, option: &str) -> bool {
    let is_it = |argument: &&clap::Arg| match option.strip_prefix("--") {
        Some(long) => argument.get_long() == Some(long),
        None => argument.get_short().is_some_and(|short| option == format!("-{short}")),
    };
    let takes = |argument: &clap::Arg| {
        matches!(argument.get_action(), clap::ArgAction::Set | clap::ArgAction::Append)
    };
    command.get_arguments().chain(root.get_arguments()).find(is_it).is_some_and(takes)
}

/// The line that these words make, if they can be read.
fn read(definition: &Command, words: &[OsString]) -> Option<Line> {
    let matches = definition.clone().try_get_matches_from(words).ok()?;
    Some(Line::given(definition, &matches, output::is_in_shell()))
}

/// What to type for a key or a value that is no text.
fn not_text(definition: &Command, words: &[OsString]) -> Option<Problem> {
    let (at, word) = words.iter().enumerate().find(|(_, word)| word.to_str().is_none())?;
    let bytes = word.as_encoded_bytes();
    let problem = Problem::usage(format!("`{}` is not UTF-8", on_a_line(bytes)));
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let with = |text: &str| {
        let mut others = words.to_vec();
        others.get_mut(at)?.clone_from(&text.into());
        read(definition, &others)
    };
    let line = with(&hex)?;
    Some(match (line.get("key") == Some(&hex), line.get("value") == Some(&hex)) {
        (true, _) => problem
            .try_this(line.flag("--key-hex").to_string(), "a key of any bytes is written in hexadecimal"),
        (_, true) => {
            let line = with("-").unwrap_or(line);
            problem.try_this(line.to_string(), "a value of any bytes is read from standard input")
        }
        _ => problem,
    })
}

/// The words of the parser on one line, without its headings and its tips.
fn plain(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    let words = words.join(" ");
    words.strip_prefix("error: ").unwrap_or(&words).to_owned()
}

/// Whether results were asked for as JSON: the line could not be read, so its words are looked at.
fn wants_json(words: &[OsString]) -> bool {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let pair = words.windows(2).any(
        |pair| matches!(pair, [name, value] if matches!(&**name, "-o" | "--output") && *value == "json"),
    );
    let joined = words.iter().any(|word| matches!(&**word, "-ojson" | "-o=json" | "--output=json"));
    pair || joined || std::env::var("KVCTL_OUTPUT").is_ok_and(|form| form == "json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use crate::definition::definition;
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

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn verbs_of_other_tools_lead_to_the_line_that_was_meant() {
        let definition = definition();
        for (above, verbs, ours) in OTHER_VERBS {
            for verb in verbs {
                let typed = words(&format!("kvctl {above} {verb}"));
                assert!(read(&definition, &typed).is_none(), "{above} {verb} is a command");
                let problem = otherwise(&definition, &typed, verb).unwrap();
                let advised = &problem.tries[0].0;
                assert!(read(&definition, &words(advised)).is_some(), "{above} {verb}: {advised}");
                let known = ours.iter().any(|path| advised.ends_with(path));
                assert!(known && !problem.tries[0].1.is_empty(), "{above} {verb}: {advised}");
            }
        }
        for (typed, verb, line) in [
            ("kvctl ns rm cart", "rm", "kvctl ns delete cart"),
            ("kvctl -n lab ns remove cart --now", "remove", "kvctl ns delete --now -n lab cart"),
            ("kvctl -e h:1 ns ls", "ls", "kvctl -e h:1 ns list"),
            ("kvctl ns rm", "rm", "kvctl help ns delete"),
            ("kvctl lab stop", "stop", "kvctl lab down"),
            ("kvctl cluster leader n2", "leader", "kvctl cluster transfer-leader n2"),
            ("kvctl ring where -n cart k", "where", "kvctl ring owners -n cart k"),
            ("kvctl lab stop n3 --name other", "stop", "kvctl lab kill --name other n3"),
            ("kvctl lab start n3", "start", "kvctl lab restart n3"),
            ("kvctl lab ls", "ls", "kvctl ctx list"),
            ("kvctl fault cut n1 / n2,n3", "cut", "kvctl fault partition n1 / n2,n3"),
            ("kvctl fault cut n1", "cut", "kvctl fault isolate n1"),
        ] {
            let problem = otherwise(&definition, &words(typed), verb).unwrap();
            assert_eq!(problem.tries[0].0, line, "{typed}");
        }
        assert!(otherwise(&definition, &words("kvctl ns frobnicate"), "frobnicate").is_none());
        assert!(otherwise(&definition, &words("kvctl rm ns"), "ns").is_none());
    }

    fn refused(line: &str) -> Problem {
        let (definition, words) = (definition(), words(line));
        let error = definition.clone().try_get_matches_from(&words).unwrap_err();
        problem(&error, &definition, &words)
    }

    #[test]
    fn commands_below_others_are_found_by_their_words() {
        for (typed, lines) in [
            ("kvctl undelete cart", &["kvctl ns undelete cart"][..]),
            ("kvctl -e h:1 alter cart --r 1", &["kvctl -e h:1 ns alter --r 1 cart"]),
            ("kvctl undelete", &["kvctl help ns undelete"]),
            ("kvctl kill n3", &["kvctl lab kill n3"]),
            (
                "kvctl pause n3 --name other",
                &["kvctl lab pause --name other n3", "kvctl fault pause --name other n3"],
            ),
            ("kvctl heal", &["kvctl fault heal"]),
            ("kvctl owners -n cart k", &["kvctl ring owners -n cart k"]),
            ("kvctl status", &["kvctl cluster status", "kvctl lab status"]),
            ("kvctl health", &["kvctl cluster health"]),
            ("kvctl list", &["kvctl ns list", "kvctl fault list", "kvctl ctx list"]),
            ("kvctl use prod", &["kvctl ctx use prod"]),
            ("kvctl demo", &["kvctl lab demo"]),
        ] {
            let problem = refused(typed);
            let tries: Vec<&str> = problem.tries.iter().map(|(line, _)| line.as_str()).collect();
            assert_eq!(tries, lines, "{typed}");
            assert!(problem.tries.iter().all(|(_, why)| !why.is_empty()), "{typed}");
        }
        let hidden = refused("kvctl supervise");
        assert!(!hidden.tries.iter().any(|(line, _)| line.contains("supervise")), "{:?}", hidden.tries);
    }

    #[test]
    fn tips_are_lines_to_type_and_said_once() {
        for (typed, line) in [
            ("kvctl clutser status", "kvctl cluster status"),
            ("kvctl clutser", "kvctl help cluster"),
            ("kvctl lab staus", "kvctl lab status"),
            ("kvctl get -n bank k --timout 1s", "kvctl get -n bank --timeout 1s k"),
            ("kvctl ns create x --mode stong", "kvctl ns create --mode strong x"),
            ("kvctl ns create x --mode=stong", "kvctl ns create --mode strong x"),
            ("kvctl ns create x --modes strong", "kvctl ns create --mode strong x"),
            ("kvctl get", "kvctl help get"),
            ("kvctl ns create", "kvctl help ns create"),
            ("kvctl put -n get k", "kvctl help put"),
            ("kvctl xyzzy", "kvctl help"),
            ("kvctl lab logs n1 --lines 0", "kvctl help lab logs"),
            ("kvctl bench --for 5", "kvctl bench --for 5s"),
            ("kvctl bench --duration 5", "kvctl bench --for 5s"),
            ("kvctl bench --for=5 --clients 5", "kvctl bench --clients 5 --for 5s"),
            ("kvctl bench --value-size 100", "kvctl bench --value-size 100B"),
            ("kvctl bench --value-size 2MB", "kvctl help bench"),
            ("kvctl get -n bank k --timeout 1", "kvctl get -n bank --timeout 1s k"),
        ] {
            let problem = refused(typed);
            assert!(!problem.message.contains("tip:"), "{typed}: {problem}");
            assert_eq!(problem.tries.len(), 1, "{typed}: {problem}");
            assert_eq!(problem.tries[0].0, line, "{typed}: {problem}");
            assert!(read(&definition(), &words(line)).is_some(), "{line}");
        }
    }

    #[test]
    fn what_is_no_text_is_written_otherwise() {
        use std::os::unix::ffi::OsStringExt as _;
        let definition = definition();
        let odd = || OsString::from_vec(b"a\xff".to_vec());
        let asked = |before: &str, after: &str| {
            let typed =
                words(before).into_iter().chain([odd()]).chain(after.split_whitespace().map(Into::into));
            not_text(&definition, &typed.collect::<Vec<_>>()).unwrap()
        };
        let key = asked("kvctl get -n bank", "");
        assert!(key.message.contains("`a\\xff` is not UTF-8"), "{}", key.message);
        assert_eq!(key.tries[0].0, "kvctl get -n bank --key-hex 61ff");
        assert_eq!(asked("kvctl put -n bank", "1").tries[0].0, "kvctl put -n bank --key-hex 61ff 1");
        assert_eq!(asked("kvctl put -n bank k", "").tries[0].0, "kvctl put -n bank k -");
        assert!(asked("kvctl ns show", "").tries.is_empty());
    }

    #[test]
    fn the_words_of_the_parser_fit_a_line() {
        let error = Cli::command().try_get_matches_from(["kvctl", "get", "k", "--colour"]).unwrap_err();
        let text = plain(&error);
        assert!(text.starts_with("unexpected argument '--colour'"), "{text}");
        assert!(!text.contains("Usage") && !text.contains('\n'), "{text}");
    }
}
