//! Help on commands and on topics that belong to no command.

use std::path::Path;

use serde_json::json;

use crate::app::App;
use crate::definition::{definition, reference};
use crate::exit::Exit;
use crate::fold::fold;
use crate::line::quoted;
use crate::problem::Problem;
use kv_types::limits::{
    MAX_DEADLINE, MAX_KEY_BYTES, MAX_NAMESPACE_NAME_BYTES, MAX_NAMESPACES, MAX_REPLICAS, MAX_SIBLINGS,
    MAX_SIBLINGS_BYTES, MAX_VALUE_BYTES,
};

const EXIT_CODES: &str = "\
Exit codes
    0   done
    1   a definite \"no\": key absent (not of `del`), compare mismatch, health not
        ok (also where no node can be asked: then it is down), history invalid
    2   usage: the command line or the configuration makes no sense
    3   unavailable, NOT APPLIED: safe to try again
    4   UNKNOWN: a write may have been applied, or may still be; the same
        request again, by --request-id as the error names it, settles it
    5   refused or internal: trying the same again changes nothing
    6   a pipe takes one value, and the key has several: `get --all`, `-o json`
  130   interrupted by Ctrl-C; 143 by SIGTERM, 129 by SIGHUP (of `bench` and
        `lab`). The error says whether a write was sent; one that was is as
        after 4, and the error names its id

A script that repeats a write only where that is safe:
    until kvctl put -n bank alice 1; do [ $? -eq 3 ] || exit 1; sleep 1; done
Under 4, a read settles nothing: the write may still be applied after it. The
same request under its id is applied once, whatever became of it. `cas` is safe
to try anew: it changes nothing if the first try did succeed.";

const CONSISTENCY: &str = "\
When the network is cut, a namespace can have one of two things. It chooses when
it is created.

strong      Linearizable: as if there were one copy. A Raft group of up to 5
            voters; writes are fsynced by a majority; reads are confirmed by a
            majority. The side without a majority refuses, as NOT APPLIED, once
            it knows; what its old leader had already taken is UNKNOWN.
            Operations: get put del cas.
available   Answers wherever R nodes can be reached for a read, W for a write.
            N replicas per key; W fsync a write. Sloppy quorums, the default,
            let fallbacks stand in and hand over later; --strict does without.
            Concurrent writes are kept as siblings until someone merges them.
            Operations: get put del.

What a put to an available namespace supersedes:
            by default whatever the coordinating node has now; --causal FILE
            exactly what an earlier `get -o json` saw; --seen the same of the
            last `get` in `kvctl shell`; --blind nothing.
A delete removes by default what a read sees now; what comes meanwhile stays, as
a concurrent value.

R+W>N is not linearizability: sloppy quorums need not intersect, and concurrent
writes have no order.
Every answer carries a receipt with the evidence: -v shows it, -o json has all
of it.";

const OUTPUT: &str = "\
Results go to standard output, messages to standard error; -q leaves results and
errors only.
-o text   for people; may change between versions. Into a pipe, `get` writes the
          bytes of the value and nothing else.
-o json   one object a line, with \"v\":1; it only grows. Bytes are \"key\" if they
          are UTF-8, else \"key_b64\". Errors too, on standard error:
          {\"v\":1,\"error\":{\"reason\":...,\"applied\":\"yes|no|unknown\",\"exit\":3,...}}
-o raw    the bytes of the value, also on a terminal.
A key is shown on one line, its other characters escaped; so is a value among
several on a terminal. A value alone keeps its newlines there. Into a pipe
nothing is escaped: `get --all -0` keeps several values apart.
In `kvctl shell` each value ends with a newline, and errors of a script name its
line.
A value `-` is read from standard input. NO_COLOR and --color are honoured.
Every global option but -q and -v has an environment variable KVCTL_*; a flag
beats the environment, which beats the context
($XDG_CONFIG_HOME/kvctl/config.toml).";

/// What the shell itself knows, beside the commands.
const SHELL: &str = "\
In this shell
  use NAMESPACE     the namespace of the lines that follow, unless a line says
                    another; after one that fails none is selected
  put KEY VALUE --seen, del KEY --seen
                    supersede exactly what the last `get` of the key saw here:
                    this merges siblings
  help, help get    this, and help on a command
  exit, quit        end; so does Ctrl-D";

/// The bounds that a person can meet.
fn limits() -> String {
    format!(
        "\
Limits
  key         {key} bytes, at least one
  value       {value} bytes
  siblings    {siblings} concurrent values of a key of an available namespace, of
              {together} bytes together: a write beyond either is refused
  namespaces  {namespaces}; a name has up to {name} bytes: a letter, then a-z 0-9 - _ .
  N, R, W     up to {replicas}, and no more than there are nodes
  deadline    a node works {deadline} s at most for one attempt; --timeout may be
              longer, and what is open then is sent again under its id

Ports, unless the cluster file says otherwise
  7101, 7102, ...   clients and administrators, one for each node of a lab
                    (`lab up --port-base`)
  7201, 7202, ...   the other nodes, and no one else",
        key = MAX_KEY_BYTES,
        value = MAX_VALUE_BYTES,
        siblings = MAX_SIBLINGS,
        together = MAX_SIBLINGS_BYTES,
        namespaces = MAX_NAMESPACES,
        name = MAX_NAMESPACE_NAME_BYTES,
        replicas = MAX_REPLICAS,
        deadline = MAX_DEADLINE.as_secs(),
    )
}

/// The topics as the reference has them.
fn topics() -> String {
    let limits = limits();
    let topics = [
        ("Exit codes", EXIT_CODES),
        ("Consistency", CONSISTENCY),
        ("Forms of output", OUTPUT),
        ("Limits", &limits),
    ];
    topics.map(|(title, text)| format!("\n## {title}\n\n```\n{text}\n```\n")).concat()
}

pub(crate) fn run(app: &App, topic: &[String]) -> Result<Exit, Problem> {
    let words: Vec<&str> = topic.iter().map(String::as_str).collect();
    let text = match words.as_slice() {
        ["exit-codes"] => EXIT_CODES.to_owned(),
        ["consistency"] => CONSISTENCY.to_owned(),
        ["output"] => OUTPUT.to_owned(),
        ["limits"] => limits(),
        ["use" | "exit" | "quit"] if app.out.is_in_shell() => SHELL.to_owned(),
        ["reference"] => format!("{}{}", reference(), topics()),
        path => {
            let mut whole = definition();
            let found = path.iter().try_fold(&mut whole, |command, word| command.find_subcommand_mut(word));
            let command = found.ok_or_else(|| {
                let topics = ["consistency", "limits", "output"];
                let unknown = Problem::usage(format!("no command or topic `{}`", path.join(" ")));
                topics.iter().fold(
                    unknown
                        .try_this("kvctl help", "all commands")
                        .try_this("kvctl help exit-codes", "topics"),
                    |problem, topic| problem.try_this(format!("kvctl help {topic}"), ""),
                )
            })?;
            let text = fold(&command.render_help().to_string());
            match path.is_empty() && app.out.is_in_shell() {
                true => format!("{text}\n{SHELL}"),
                false => text,
            }
        }
    };
    app.out.line(text)?;
    Ok(Exit::Done)
}

/// What the shell reads to complete words.
pub(crate) fn completion(app: &App, shell: clap_complete::Shell) -> Result<Exit, Problem> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut definition(), "kvctl", &mut script);
    app.out.bytes(&script)?;
    Ok(Exit::Done)
}

/// Writes a manual page for the program and for each command.
pub(crate) fn man(app: &App, folder: &Path) -> Result<Exit, Problem> {
    let written =
        std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(definition(), folder));
    written.map_err(|error| {
        let there = folder.ancestors().find(|above| above.exists()).unwrap_or(Path::new("."));
        let look = format!("ls -ld {}", quoted(&there.display().to_string()));
        let folder = folder.display();
        Problem::usage(format!("cannot write the manual pages into {folder}: {error}"))
            .try_this(look, "what is there, and whose it is")
    })?;
    let page = folder.join("kvctl.1");
    if app.out.is_json() {
        app.out.json(&json!({ "folder": folder }))?;
    } else {
        app.out.done(format!("written: man {}", page.display()))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::WIDTH;

    #[test]
    fn help_fits_a_screen_of_eighty_columns() {
        fn each(command: &mut clap::Command, look: &mut impl FnMut(&str)) {
            look(&fold(&command.render_help().to_string()));
            command.get_subcommands_mut().for_each(|inner| each(inner, look));
        }
        let mut look = |text: &str| {
            // A line that is typed is not broken.
            let long = text.lines().filter(|line| !line.trim_start().starts_with("kvctl "));
            let long: Vec<&str> = long.filter(|line| line.chars().count() > WIDTH).collect();
            assert!(long.is_empty(), "{long:#?}");
        };
        each(&mut definition(), &mut look);
        for topic in [EXIT_CODES, CONSISTENCY, OUTPUT, SHELL, &limits()] {
            look(topic);
        }
    }

    #[test]
    fn both_bounds_of_siblings_are_said() {
        let said = limits();
        assert!(said.contains("100 concurrent values") && said.contains("2097152 bytes together"), "{said}");
    }
}
