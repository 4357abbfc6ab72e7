//! A command line as it would be typed, made of what was parsed. Advice is built from this and never from the
//! words of the person: an option keeps its value, and a word is never taken for another one.

use std::ffi::OsString;
use std::fmt;
use std::sync::{Arc, OnceLock};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory};

use crate::cli::Cli;

/// Longest argument that advice repeats, bytes: a longer value is to be read from standard input instead.
const LONGEST_VALUE: usize = 200;

/// Options that say which cluster, which namespace, and how a key is written.
const KEPT: [&str; 5] = ["context", "endpoints", "namespace", "key_hex", "key_file"];

/// Those of them that only commands with a key have.
const OF_A_KEY: [&str; 2] = ["key_hex", "key_file"];

/// Options that `kvctl shell` hands to its lines through the environment. A line that is advised says them,
/// so that it can be typed in that shell and outside of it alike.
const OF_SHELL: [&str; 6] = ["context", "endpoints", "namespace", "timeout", "output", "color"];

/// Whether a command is about a key.
fn has_key(commands: &[&str]) -> bool {
    let mut command = Cli::command();
    for name in commands {
        match command.find_subcommand(name) {
            Some(found) => command = found.clone(),
            None => return false,
        }
    }
    command.get_arguments().any(|argument| OF_A_KEY.contains(&argument.get_id().as_str()))
}

/// An option or a flag as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    id: String,
    /// `-n bank`, or `--strict`.
    words: Vec<String>,
    /// What `kvctl shell` handed to this line, which does not say it itself.
    of_shell: bool,
}

impl Given {
    fn new(id: impl Into<String>, words: Vec<String>) -> Self {
        Self { id: id.into(), words, of_shell: false }
    }
}

/// The arguments of one run, without the program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Line {
    commands: Vec<String>,
    options: Vec<Given>,
    /// What stands without an option, each with the name that the definition gives it.
    operands: Vec<(String, String)>,
    /// The key that was read from standard input, in hexadecimal digits: of this line and of all that are
    /// made of it.
    key: Arc<OnceLock<String>>,
}

impl Line {
    /// What was given on the command line. What came from the environment or the file is there next time too,
    /// but for what `kvctl shell` put there: `in_shell` says that this is one of its lines, and it is typed
    /// again where there is no such shell. `command` must be built, `matches` be its own.
    pub(crate) fn given(command: &Command, matches: &ArgMatches, in_shell: bool) -> Self {
        let (mut command, mut matches, mut line) = (command, matches, Self::default());
        while let Some((name, inner)) = matches.subcommand() {
            let Some(known) = command.find_subcommand(name) else { break };
            line.commands.push(known.get_name().to_owned());
            (command, matches) = (known, inner);
        }
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            let of_shell = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => false,
                Some(ValueSource::EnvVariable) if in_shell && OF_SHELL.contains(&id) => true,
                _ => continue,
            };
            let values = values(matches, id);
            if argument.is_positional() {
                line.operands.extend(values.into_iter().map(|value| (id.to_owned(), value)));
                continue;
            }
            let name = spelling(argument);
            let mut add = |words| line.options.push(Given { of_shell, ..Given::new(id, words) });
            match argument.get_action() {
                ArgAction::Count => (0..matches.get_count(id)).for_each(|_| add(vec![name.clone()])),
                ArgAction::SetTrue => add(vec![name]),
                _ => values.into_iter().for_each(|value| add(vec![name.clone(), value])),
            }
        }
        line
    }

    /// A command without options.
    pub(crate) fn new(commands: &[&str]) -> Self {
        Self { commands: commands.iter().map(|&command| command.to_owned()).collect(), ..Self::default() }
    }

    /// Another command for the same cluster and namespace.
    pub(crate) fn other(&self, commands: &[&str]) -> Self {
        let kept = |given: &&Given| {
            let id = given.id.as_str();
            KEPT.contains(&id) && (!OF_A_KEY.contains(&id) || has_key(commands))
        };
        let options = self.options.iter().filter(kept).cloned().collect();
        Self { options, key: Arc::clone(&self.key), ..Self::new(commands) }
    }

    /// Another command for the same cluster, whatever namespace this one is for.
    pub(crate) fn cluster(&self, commands: &[&str]) -> Self {
        self.other(commands).without("namespace")
    }

    /// A command for the same lab.
    pub(crate) fn of_lab(&self, commands: &[&str]) -> Self {
        let kept = |given: &&Given| ["context", "name", "dir"].contains(&given.id.as_str());
        Self { options: self.options.iter().filter(kept).cloned().collect(), ..Self::new(commands) }
    }

    /// Whether the command changes nothing, so that nothing has to be said of what was applied.
    pub(crate) fn reads(&self) -> bool {
        matches!(
            self.command().as_slice(),
            ["get" | "top" | "ls" | "ring" | "explain" | "check", ..]
                | ["ns", "list" | "show"]
                | ["cluster", "status" | "latency" | "health"]
                | ["ctx", "list" | "show"]
                | ["fault", "list"]
                | ["lab", "status" | "logs"]
        )
    }

    /// Whether an option was typed, here or where `kvctl shell` was started or told.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.options.iter().any(|given| given.id == id)
    }

    /// Whether an option was typed on this very line.
    pub(crate) fn says(&self, id: &str) -> bool {
        self.options.iter().any(|given| given.id == id && !given.of_shell)
    }

    /// The same without an option.
    pub(crate) fn without(mut self, id: &str) -> Self {
        self.options.retain(|given| given.id != id);
        self
    }

    /// The same at this node and no other. The context goes, so the namespace that it names is to be said.
    pub(crate) fn at(self, address: &str, namespace: Option<&str>) -> Self {
        let mut line = self.without("endpoints").without("context");
        if let Some(namespace) = namespace.filter(|_| !line.has("namespace")) {
            let words = vec!["-n".to_owned(), namespace.to_owned()];
            line.options.push(Given::new("namespace", words));
        }
        let words = vec!["-e".to_owned(), address.to_owned()];
        line.options.insert(0, Given::new("endpoints", words));
        line
    }

    /// The same at any node of a cluster that has a name.
    pub(crate) fn in_context(self, name: &str) -> Self {
        let mut line = self.without("endpoints").without("context");
        line.options.insert(0, Given::new("context", vec!["-c".to_owned(), name.to_owned()]));
        line
    }

    /// The same with an option more.
    pub(crate) fn with(mut self, option: &str, value: impl fmt::Display) -> Self {
        self.options.retain(|given| given.words.first().is_none_or(|name| name != option));
        self.options.push(Given::new(option, vec![option.to_owned(), value.to_string()]));
        self
    }

    /// The same with a flag more.
    pub(crate) fn flag(mut self, name: &str) -> Self {
        self.options.push(Given::new(name, vec![name.to_owned()]));
        self
    }

    /// The same with an operand more.
    pub(crate) fn operand(mut self, name: &str, value: impl Into<String>) -> Self {
        self.operands.push((name.to_owned(), value.into()));
        self
    }

    /// The same with another value of this operand.
    pub(crate) fn replaced(mut self, name: &str, value: &str) -> Self {
        for (_, old) in self.operands.iter_mut().filter(|(known, _)| known == name) {
            value.clone_into(old);
        }
        self
    }

    /// The operand of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.operands.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The command without its options, as in `ns create`.
    pub(crate) fn command(&self) -> Vec<&str> {
        self.commands.iter().map(String::as_str).collect()
    }

    /// Remembers the key that standard input held, unless it is too long to be typed.
    pub(crate) fn learn_key(&self, key: &[u8]) {
        let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        if digits.len() <= LONGEST_VALUE {
            self.key.get_or_init(|| digits);
        }
    }

    /// The key in place of standard input, if the line names that and the key is known.
    fn learnt(&self) -> Option<&str> {
        let names_input = self.has("key_file") && self.get("key") == Some("-");
        self.key.get().map(String::as_str).filter(|_| names_input)
    }

    /// What the line reads from standard input when it is typed again: a value also where it is too long to
    /// be shown.
    pub(crate) fn reads_input(&self) -> Option<&'static str> {
        if self.get("value").is_some_and(|value| value == "-" || value.len() > LONGEST_VALUE) {
            return Some("the value");
        }
        if self.has("key_file") && self.get("key") == Some("-") && self.learnt().is_none() {
            return Some("the key");
        }
        let causal =
            |given: &Given| given.id == "causal" && given.words.last().is_some_and(|file| file == "-");
        if self.options.iter().any(causal) {
            return Some("the context");
        }
        (self.get("history") == Some("-")).then_some("the history")
    }
}

/// The values of an argument, as text.
fn values(matches: &ArgMatches, id: &str) -> Vec<String> {
    let raw = matches.try_get_raw(id).ok().flatten();
    raw.into_iter().flatten().map(|value| OsString::from(value).to_string_lossy().into_owned()).collect()
}

fn spelling(argument: &Arg) -> String {
    match (argument.get_short(), argument.get_long()) {
        (Some(short), _) => format!("-{short}"),
        (None, Some(long)) => format!("--{long}"),
        (None, None) => String::new(),
    }
}

impl fmt::Display for Line {
    /// With the name of the program, quoted for a shell.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("kvctl")?;
        // A reader looks for the cluster first.
        let of_cluster = |given: &&Given| matches!(given.id.as_str(), "context" | "endpoints");
        let (cluster, others): (Vec<_>, Vec<_>) = self.options.iter().partition(of_cluster);
        let cluster = cluster.into_iter().flat_map(|given| &given.words);
        let learnt = self.learnt();
        let by_digits = [String::from("--key-hex")];
        let others = others.into_iter().flat_map(|given| match learnt {
            Some(_) if given.id == "key_file" => by_digits.as_slice(),
            _ => given.words.as_slice(),
        });
        for word in cluster.chain(&self.commands).chain(others) {
            write!(f, " {}", quoted(word))?;
        }
        if self.operands.iter().any(|(_, value)| value.len() > 1 && value.starts_with('-')) {
            f.write_str(" --")?;
        }
        for (name, value) in &self.operands {
            let long = name == "value" && value.len() > LONGEST_VALUE;
            let value = learnt.filter(|_| name == "key").unwrap_or(value);
            write!(f, " {}", if long { "-".to_owned() } else { quoted(value) })?;
        }
        Ok(())
    }
}

/// A word as a shell reads it back, without a byte that would mean something to a terminal.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else if word.chars().any(char::is_control) {
        let escaped = word.chars().map(|c| match c {
            '\'' | '\\' => format!("\\{c}"),
            c if c.is_control() => c.to_string().bytes().map(|byte| format!("\\x{byte:02x}")).collect(),
            c => c.to_string(),
        });
        format!("$'{}'", escaped.collect::<String>())
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;

    /// What these words give.
    pub(crate) fn line(words: &str) -> Line {
        of(words.split(' '))
    }

    fn of<'a>(words: impl IntoIterator<Item = &'a str>) -> Line {
        let mut command = Cli::command();
        command.build();
        let matches = command.clone().try_get_matches_from(words).unwrap();
        Line::given(&command, &matches, false)
    }

    #[test]
    fn what_was_given_is_typed_again() {
        for words in [
            "kvctl put -n bank alice 100",
            "kvctl -e h:1 -e h:2 put -n bank --timeout 900ms alice 100",
            "kvctl -c lab get -o json -r 2 --strict k",
            "kvctl cas -n bank --expect-revision 118 alice 90",
            "kvctl fault partition --for 20s n1,n2 / n3,n4,n5",
            "kvctl cluster transfer-leader --group 2 n3",
            "kvctl bench -n bank --workload put --for 2s",
            "kvctl get -v -v -n b k",
            "kvctl ns create x --mode strong",
            "kvctl put -n bank -- alice -1",
        ] {
            let once = line(words);
            assert_eq!(line(&once.to_string()), once, "{words}: {once}");
        }
        assert_eq!(
            line("kvctl put --timeout 900ms -e h:1 -n bank bob 5").to_string(),
            "kvctl -e h:1 put -n bank --timeout 900ms bob 5"
        );
        assert_eq!(line("kvctl put -n bank alice -1").to_string(), "kvctl put -n bank -- alice -1");
    }

    #[test]
    fn what_reads_is_told_from_what_changes() {
        for words in
            ["kvctl get k", "kvctl ns list", "kvctl cluster health", "kvctl ring owners k", "kvctl top"]
        {
            assert!(line(words).reads(), "{words}");
        }
        for words in ["kvctl put k v", "kvctl del k", "kvctl ns delete x", "kvctl cluster transfer-leader n1"]
        {
            assert!(!line(words).reads(), "{words}");
        }
    }

    #[test]
    fn words_are_quoted_and_long_values_are_not_shown() {
        assert_eq!(of(["kvctl", "put", "a b", "it's"]).to_string(), r"kvctl put 'a b' 'it'\''s'");
        assert_eq!(of(["kvctl", "get", "a\u{1b}[2J\\"]).to_string(), r"kvctl get $'a\x1b[2J\\'");
        assert_eq!(of(["kvctl", "get", ""]).to_string(), "kvctl get ''");
        let long = "x".repeat(LONGEST_VALUE + 1);
        let put = of(["kvctl", "put", "k", &long]);
        assert_eq!(put.to_string(), "kvctl put k -");
        assert_eq!((put.reads_input(), line("kvctl put k v").reads_input()), (Some("the value"), None));
    }

    #[test]
    fn a_key_of_standard_input_is_named_where_it_was_read() {
        let put = line("kvctl put -n bank --key-file - v");
        assert_eq!(put.reads_input(), Some("the key"));
        put.learn_key(b"a\xff");
        assert_eq!(put.to_string(), "kvctl put --key-hex -n bank 61ff v");
        assert_eq!(put.reads_input(), None);
        let get = put.other(&["get"]).operand("key", put.get("key").unwrap());
        assert_eq!(get.to_string(), "kvctl get --key-hex -n bank 61ff");
        assert_eq!(line(&get.to_string()).get("key"), Some("61ff"));
        // One that cannot be typed is read again.
        let long = line("kvctl get -n bank --key-file -");
        long.learn_key(&[7; LONGEST_VALUE]);
        assert_eq!(
            (long.to_string().as_str(), long.reads_input()),
            ("kvctl get --key-file -n bank -", Some("the key"))
        );
        assert_eq!(line("kvctl put -n cart --causal - k v").reads_input(), Some("the context"));
        assert_eq!(line("kvctl put -n cart --causal ctx.json k v").reads_input(), None);
        assert_eq!(line("kvctl check -").reads_input(), Some("the history"));
        // A file of this name is a file.
        assert_eq!(line("kvctl get --key-file ./-").reads_input(), None);
    }

    #[test]
    fn other_commands_are_for_the_same_cluster() {
        let put = line("kvctl -e h:1 put -n bank --timeout 900ms -o json bob 5");
        let get = put.other(&["get"]).operand("key", put.get("key").unwrap());
        assert_eq!(get.to_string(), "kvctl -e h:1 get -n bank bob");
        assert_eq!(get.at("h:3", Some("other")).to_string(), "kvctl -e h:3 get -n bank bob");
        assert_eq!(put.clone().replaced("key", "eve").get("key"), Some("eve"));
        let by_hex = line("kvctl -e h:1 get -n bank --key-hex 61");
        assert_eq!(by_hex.other(&["explain"]).to_string(), "kvctl -e h:1 explain --key-hex -n bank");
        for others in [&["ns", "list"][..], &["ns", "create"], &["cluster", "status"], &["fault", "heal"]] {
            assert!(!by_hex.other(others).to_string().contains("--key-hex"), "{others:?}");
        }
        let named = line("kvctl -c prod get k").at("h:3", Some("bank"));
        assert_eq!(named.to_string(), "kvctl -e h:3 get -n bank k");
        let any = line("kvctl -e h:1 get -n bank k").in_context("prod");
        assert_eq!(any.to_string(), "kvctl -c prod get -n bank k");
        let lab = line("kvctl -c other fault pause n3").of_lab(&["lab", "resume"]).operand("node", "n3");
        assert_eq!(lab.to_string(), "kvctl -c other lab resume n3");
        let resent = put.at("h:2", None).with("--request-id", "x:1@2");
        assert_eq!(
            resent.to_string(),
            "kvctl -e h:2 put -n bank -o json --timeout 900ms --request-id x:1@2 bob 5"
        );
    }
}
