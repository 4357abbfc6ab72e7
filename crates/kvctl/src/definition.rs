//! The command tree as people see it: what the types say, with examples in every help and the global options
//! in one place. The reference is written from it.

use std::fmt::Write as _;

use clap::{ArgAction, Command, CommandFactory};

use crate::cli::Cli;
use crate::output;

/// What each command looks like when it is typed. A test reads every line.
const EXAMPLES: [(&str, &[&str]); 42] = [
    (
        "get",
        &[
            "kvctl get -n bank alice",
            "kvctl get -n cart user:42 -o json > ctx.json",
            "kvctl get -n cart user:42 -r all",
        ],
    ),
    (
        "put",
        &[
            "kvctl put -n bank alice 100",
            "kvctl put -n cart user:42 --causal ctx.json merged",
            "kvctl put -n bank photo - < photo.jpg",
        ],
    ),
    ("del", &["kvctl del -n bank alice", "kvctl del -n cart user:42 --causal ctx.json"]),
    (
        "cas",
        &["kvctl cas -n bank alice --expect-revision 118 90", "kvctl cas -n bank lock --expect-absent me"],
    ),
    (
        "ns create",
        &["kvctl ns create bank --mode strong", "kvctl ns create cart --mode available --n 3 --r 1 --w 2"],
    ),
    ("ns list", &["kvctl ns list", "kvctl ns list -o json"]),
    ("ns delete", &["kvctl ns delete cart", "kvctl ns delete cart --grace 1h", "kvctl ns delete cart --now"]),
    ("ns undelete", &["kvctl ns undelete cart"]),
    ("ns alter", &["kvctl ns alter cart --r 1 --w 3"]),
    ("ns show", &["kvctl ns show bank"]),
    (
        "cluster status",
        &["kvctl cluster status", "kvctl cluster status --as-seen-by all", "kvctl cluster status --all"],
    ),
    ("cluster latency", &["kvctl cluster latency", "kvctl cluster latency n3"]),
    ("cluster health", &["kvctl cluster health", "kvctl -q cluster health || echo not well"]),
    ("cluster transfer-leader", &["kvctl cluster transfer-leader n3"]),
    ("ring owners", &["kvctl ring owners -n cart user:42"]),
    ("explain", &["kvctl explain -n cart user:42", "kvctl explain -n cart user:42 --as-seen-by n4"]),
    (
        "lab up",
        &["kvctl lab up", "kvctl lab up --nodes 3 --fresh", "kvctl lab up --name other --port-base 7300"],
    ),
    ("lab down", &["kvctl lab down", "kvctl lab down --name other"]),
    ("lab status", &["kvctl lab status"]),
    ("lab kill", &["kvctl lab kill n3"]),
    ("lab restart", &["kvctl lab restart n3", "kvctl lab restart n3 --empty"]),
    ("lab pause", &["kvctl lab pause n3"]),
    ("lab resume", &["kvctl lab resume n3"]),
    ("lab logs", &["kvctl lab logs n3", "kvctl lab logs n3 --lines 200"]),
    ("lab demo", &["kvctl lab demo", "kvctl lab demo --seed 7 --port-base 7300"]),
    (
        "fault partition",
        &["kvctl fault partition n1,n2 / n3,n4,n5", "kvctl fault partition n1 / n2,n3 --for 20s"],
    ),
    ("fault isolate", &["kvctl fault isolate n3 --for 20s"]),
    ("fault reset", &["kvctl fault reset n4 n5"]),
    ("fault slow", &["kvctl fault slow n4 n3 --bytes 4kB"]),
    ("fault pause", &["kvctl fault pause n3"]),
    ("fault resume", &["kvctl fault resume n3"]),
    ("fault heal", &["kvctl fault heal"]),
    ("fault list", &["kvctl fault list", "kvctl fault list --name other"]),
    (
        "bench",
        &[
            "kvctl bench",
            "kvctl bench -n bank --workload put --distribution new --clients 64 --for 30s",
            "kvctl bench --mode available --rate 2000 -o json",
        ],
    ),
    ("top", &["kvctl top", "kvctl -c lab top --every 2s", "kvctl top --once -o json"]),
    ("check", &["kvctl check history.jsonl", "kvctl check history.jsonl --settled-ms 26000"]),
    ("ctx add", &["kvctl ctx add prod -e db1:7101 -e db2:7101 -n bank"]),
    ("ctx use", &["kvctl ctx use lab"]),
    ("ctx remove", &["kvctl ctx remove prod"]),
    ("shell", &["kvctl shell", "kvctl shell -n bank", "kvctl shell < commands.txt"]),
    ("completion", &["kvctl completion bash > kvctl.bash"]),
    ("man", &["kvctl man /usr/local/share/man/man1"]),
];

/// What has to be known of a command beside its options: whom it asks, and what its words mean.
const NOTES: [(&str, &str); 6] = [
    (
        "del",
        "In an available namespace the key is read first, by the R of the namespace, and
what that read saw is deleted; a value that comes meanwhile stays. Where the
read fails nothing is applied. With --causal, --seen or --blind nothing is read.",
    ),
    (
        "cluster status",
        "The view is that of one node: the one that -e names alone, or --as-seen-by, else
the first that answers. Hints are those that this node holds, by the node that
they are for; `kvctl cluster health` adds up those of all nodes.",
    ),
    (
        "cluster health",
        "Every member of the cluster is asked, from here. -e says only which node names
the members, and one that cannot be reached from here speaks against `ok`.",
    ),
    (
        "explain",
        "It is what one node finds out now: the one that -e names alone, or --as-seen-by,
else the first that answers. Another one may see more or less.

  primary    a node that keeps the key
  fallback   a node that stands in while a primary is missing
  copy       what the node has of the key
  has        which of the values below it has
  lacks      which of them it has never heard of. A value in neither column
             it knows to be superseded
  old        how many values it has that another copy knows to be superseded
  R, W       replicas that a read and a write need, and how many answer a read
             now. A primary that rebuilds what it keeps answers none, and takes
             writes all the same",
    ),
    (
        "ring owners",
        "Any node can say it: each knows the members and the ring. -e names the node that
is asked.",
    ),
    (
        "shell",
        "Options of the shell hold for its lines, where they do not say otherwise. A line
that is advised says them, so that it can be typed here and elsewhere.
A script (`kvctl shell < commands.txt`) ends with 141 if no one reads on.",
    ),
];

fn notes(path: &str) -> Option<&'static str> {
    NOTES.iter().find(|(known, _)| *known == path).map(|(_, text)| *text)
}

/// The whole tree, built.
pub(crate) fn definition() -> Command {
    let mut root = Cli::command().color(output::of_parser());
    root.build();
    let names: Vec<String> = root.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    names.into_iter().fold(root, |root, name| {
        let path = name.clone();
        root.mut_subcommand(name, |command| dressed(command, &path))
    })
}

/// A command and all below it: with its examples, and without the options that all commands have.
fn dressed(command: Command, path: &str) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let whole = command.mut_args(|argument| match argument.is_global_set() {
        true => argument.hide(true),
        false => argument,
    });
    let whole = names.into_iter().fold(whole, |command, name| {
        let path = format!("{path} {name}");
        command.mut_subcommand(name, |inner| dressed(inner, &path))
    });
    let examples = EXAMPLES.iter().find(|(known, _)| *known == path).map(|(_, lines)| lines.join("\n  "));
    let more = "Options of every command (-c, -e, -n, -o, --timeout, -q, -v, --color): kvctl --help";
    let notes = notes(path).map_or(String::new(), |text| format!("{text}\n\n"));
    match examples {
        Some(lines) => whole.after_help(format!("{notes}Examples:\n  {lines}\n\n{more}")),
        None => whole.after_help(format!("{notes}{more}")),
    }
}

/// The reference of all commands in Markdown.
pub(crate) fn reference() -> String {
    let root = definition();
    let mut text = String::from(
        "# kvctl\n\nWritten by `kvctl help reference`; a test compares it with the program.\n\n## Options of every command\n\n",
    );
    for argument in root.get_arguments().filter(|argument| argument.is_global_set()) {
        option(&mut text, argument);
    }
    commands(&mut text, &root, "kvctl");
    text
}

fn commands(text: &mut String, command: &Command, path: &str) {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        let path = format!("{path} {}", inner.get_name());
        if inner.get_subcommands().next().is_some() {
            commands(text, inner, &path);
            continue;
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "\n## {path}\n\n{}\n", about(inner));
        let aliases: Vec<&str> = inner.get_visible_aliases().collect();
        if !aliases.is_empty() {
            let _ = write!(text, "\nAlso `{}`.\n", aliases.join("`, `"));
        }
        let known = path.trim_start_matches("kvctl ");
        if let Some((_, lines)) = EXAMPLES.iter().find(|(example, _)| *example == known) {
            let _ = write!(text, "\n```\n{}\n```\n", lines.join("\n"));
        }
        if let Some(notes) = notes(known) {
            let _ = write!(text, "\n```\n{notes}\n```\n");
        }
        let own: Vec<_> = inner
            .get_arguments()
            .filter(|argument| !argument.is_hide_set() && argument.get_id() != "help")
            .collect();
        if !own.is_empty() {
            text.push('\n');
            own.into_iter().for_each(|argument| option(text, argument));
        }
    }
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn option(text: &mut String, argument: &clap::Arg) {
    let value = argument.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let name = match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, Some(long)) => format!("--{long}"),
        (None, None) => argument.get_id().as_str().to_uppercase(),
    };
    let takes =
        matches!(argument.get_action(), ArgAction::Set | ArgAction::Append) && !argument.is_positional();
    let value = value.filter(|_| takes).map(|value| format!(" {value}")).unwrap_or_default();
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let default: Vec<String> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let default = match default.is_empty() || !takes && !argument.is_positional() {
        true => String::new(),
        false => format!(" [default: {}]", default.join(" ")),
    };
    let variable =
        argument.get_env().map(|name| format!(" [`{}`]", name.to_string_lossy())).unwrap_or_default();
    let _ = writeln!(text, "- `{name}{value}`: {help}{default}{variable}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of every command that a person can type.
    fn leaves(command: &Command, path: &str) -> Vec<String> {
        let inner = command.get_subcommands().filter(|inner| !inner.is_hide_set());
        inner
            .flat_map(|inner| {
                let path = format!("{path} {}", inner.get_name()).trim().to_owned();
                let below = leaves(inner, &path);
                if below.is_empty() { vec![path] } else { below }
            })
            .collect()
    }

    #[test]
    fn every_command_has_examples_and_all_of_them_are_read() {
        let root = definition();
        for path in leaves(&root, "") {
            let plain = ["ctx list", "ctx show", "help", "version"].contains(&path.as_str());
            assert!(plain || EXAMPLES.iter().any(|(known, _)| *known == path), "{path} has no example");
        }
        for (path, text) in NOTES {
            assert!(leaves(&root, "").iter().any(|known| known == path), "{path} is no command");
            assert!(text.lines().all(|line| line.chars().count() <= crate::fold::WIDTH), "{path}: {text}");
        }
        for (path, lines) in EXAMPLES {
            for line in lines {
                // What the shell takes away.
                let line = line.split(" > ").next().unwrap().split(" < ").next().unwrap();
                let line = line.split(" || ").next().unwrap();
                let read = root.clone().try_get_matches_from(line.split(' '));
                assert!(read.is_ok(), "{line}: {}", read.unwrap_err());
                assert!(line.contains(path), "{line} is not an example of {path}");
            }
        }
    }

    #[test]
    fn global_options_are_explained_in_one_place() {
        let mut root = definition();
        assert!(root.render_help().to_string().contains("--endpoint"));
        let get = root.find_subcommand_mut("get").unwrap().render_help().to_string();
        assert!(!get.contains("--endpoint") && get.contains("kvctl --help"), "{get}");
        assert!(get.contains("Examples:"), "{get}");
        assert!(root.try_get_matches_from(["kvctl", "get", "-e", "h:1", "-n", "b", "k"]).is_ok());
    }
}
