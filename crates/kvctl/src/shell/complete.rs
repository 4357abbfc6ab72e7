//! What may follow a half-written line: words of the definition, and names that the cluster has.

use clap::Command;

/// Names that the cluster has, as far as they were learnt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// Namespaces.
    pub(crate) namespaces: Vec<String>,
    /// Nodes.
    pub(crate) nodes: Vec<String>,
    /// Contexts.
    pub(crate) contexts: Vec<String>,
}

/// A word that may stand at the end of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The word.
    pub(crate) word: String,
    /// What it is.
    pub(crate) about: String,
}

/// Words for the place where `before`, the line up to the cursor, ends; and where the word begins that they
/// replace.
pub(crate) fn offers(root: &Command, names: &Names, before: &str) -> (usize, Vec<Offer>) {
    let blank = before.char_indices().rev().find(|(_, c)| c.is_whitespace());
    let start = blank.map_or(0, |(at, c)| at + c.len_utf8());
    let (given, begun) = before.split_at(start);
    let given: Vec<&str> = given.split_whitespace().skip_while(|word| *word == "kvctl").collect();
    let (command, path) = command(root, &given);
    let named = |names: &[String]| -> Vec<Offer> {
        names.iter().map(|name| Offer { word: name.clone(), about: String::new() }).collect()
    };
    let mut found: Vec<Offer> = match (given.last().copied(), path.as_slice()) {
        (_, ["ctx", "use" | "remove"]) | (Some("-c" | "--context"), _) => named(&names.contexts),
        (Some("-n" | "--namespace"), _) | (Some("use"), []) => named(&names.namespaces),
        _ if begun.starts_with('-') => options(root, command),
        (_, ["ns", "show" | "delete" | "alter" | "undelete"]) => named(&names.namespaces),
        (_, ["lab" | "fault", ..] | ["cluster", "transfer-leader" | "latency"])
            if command.get_subcommands().next().is_none() =>
        {
            named(&names.nodes)
        }
        _ => words(command, path.is_empty()),
    };
    found.retain(|offer| offer.word.starts_with(begun));
    (start, found)
}

/// The command that these words name, as far as they do.
fn command<'a>(root: &'a Command, given: &[&'a str]) -> (&'a Command, Vec<&'a str>) {
    let mut at = root;
    let mut path = Vec::new();
    for word in given {
        if let Some(inner) = at.find_subcommand(word) {
            at = inner;
            path.push(inner.get_name());
        }
    }
    (at, path)
}

/// Commands that may follow; at the beginning also what the shell itself knows.
fn words(command: &Command, first: bool) -> Vec<Offer> {
    let inner = command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "shell");
    let offer = |inner: &Command| Offer {
        word: inner.get_name().to_owned(),
        about: inner.get_about().map(ToString::to_string).unwrap_or_default(),
    };
    let mut found: Vec<Offer> = inner.map(offer).collect();
    if first {
        let own = [("use", "Choose the namespace of the commands that follow"), ("exit", "End")];
        found.extend(own.map(|(word, about)| Offer { word: word.into(), about: about.into() }));
    }
    found
}

fn options(root: &Command, command: &Command) -> Vec<Offer> {
    let own = command.get_arguments().filter(|argument| !argument.is_global_set());
    let of_all = root.get_arguments().filter(|argument| argument.is_global_set());
    own.chain(of_all)
        .filter_map(|argument| {
            let word = format!("--{}", argument.get_long()?);
            Some(Offer { word, about: argument.get_help().map(ToString::to_string).unwrap_or_default() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::definition;

    #[test]
    fn what_may_follow_is_offered() {
        let root = definition();
        let names = Names {
            namespaces: vec!["bank".into(), "cart".into()],
            nodes: vec!["n1".into(), "n2".into()],
            contexts: vec!["lab".into(), "prod".into()],
        };
        let said = |line: &str| {
            let (start, found) = offers(&root, &names, line);
            (start, found.into_iter().map(|offer| offer.word).collect::<Vec<_>>())
        };
        assert_eq!(said("pu"), (0, vec!["put".into()]));
        assert_eq!(said("kvctl pu"), (6, vec!["put".into()]));
        assert_eq!(said("put -n "), (7, vec!["bank".into(), "cart".into()]));
        assert_eq!(said("use ca"), (4, vec!["cart".into()]));
        assert_eq!(said("ns show b"), (8, vec!["bank".into()]));
        assert_eq!(said("ctx use l"), (8, vec!["lab".into()]));
        assert_eq!(said("get -c p"), (7, vec!["prod".into()]));
        assert_eq!(said("lab kill "), (9, vec!["n1".into(), "n2".into()]));
        assert_eq!(said("get --str").1, ["--strict"]);
        assert_eq!(said("get --time").1, ["--timeout"]);
        assert!(said("fault ").1.contains(&"partition".to_owned()));
        assert!(said("").1.contains(&"exit".to_owned()) && !said("").1.contains(&"shell".to_owned()));
        assert_eq!(said("use\u{3000}ca"), (6, vec!["cart".into()]), "blanks may be long");
        assert_eq!(said("put -n bank k é"), (14, Vec::new()), "a value is the person's own");
    }
}
