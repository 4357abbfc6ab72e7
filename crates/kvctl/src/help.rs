//! Help on commands and on topics that belong to no command.

use clap::CommandFactory;

use crate::app::App;
use crate::cli::Cli;
use crate::exit::Exit;
use crate::problem::Problem;

const EXIT_CODES: &str = "\
Exit codes
    0   done
    1   a definite \"no\": key absent, compare mismatch, health not ok, history invalid
    2   usage: the command line or the configuration makes no sense
    3   unavailable, NOT APPLIED: safe to try again
    4   UNKNOWN: a write may have been applied, or may still be; read, then decide
    5   refused or internal: trying the same again changes nothing
  130   interrupted by Ctrl-C; a write that was under way is as after 4

A script that repeats a write only where that is safe:
    until kvctl put -n bank alice 1; do [ $? -eq 3 ] || exit 1; sleep 1; done
Under 4, `cas` is the safe way on: it changes nothing if the first try did succeed.";

const CONSISTENCY: &str = "\
When the network is cut, a namespace can have one of two things. It chooses when it is created.

strong      Linearizable: as if there were one copy. A Raft group of up to 5 voters; writes are fsynced by a majority;
            reads are confirmed by a majority. The side without a majority refuses, as NOT APPLIED, once it knows;
            what its old leader had already taken is UNKNOWN. Operations: get put del cas.
available   Answers wherever max(R, W) nodes can be reached. N replicas per key; R answer a read, W fsync a write.
            sloppy quorums (the default) let fallbacks stand in and hand over later; --strict does without.
            Concurrent writes are kept as siblings until someone merges them. Operations: get put del.

What a put to an available namespace supersedes:
            by default whatever the coordinating node has now; --causal FILE exactly what an earlier
            `get -o json` saw; --blind nothing.

R+W>N is not linearizability: sloppy quorums need not intersect, and concurrent writes have no order.
Every answer carries a receipt with the evidence: -v shows it, -o json has all of it.";

const OUTPUT: &str = "\
Results go to standard output, messages to standard error; -q leaves results and errors only.
-o text   for people; may change between versions. Into a pipe, `get` writes the bytes of the value and nothing else.
-o json   one object a line, with \"v\":1; it only grows. Bytes are \"key\" if they are UTF-8, else \"key_b64\".
          Errors too, on standard error: {\"v\":1,\"error\":{\"reason\":...,\"applied\":\"yes|no|unknown\",\"exit\":3,...}}
-o raw    the bytes of the value, also on a terminal.
A value `-` is read from standard input. NO_COLOR and --color are honoured.
Every global option has an environment variable KVCTL_*; a flag beats the environment, which beats the context
($XDG_CONFIG_HOME/kvctl/config.toml).";

pub(crate) fn run(app: &App, topic: Option<&str>) -> Result<Exit, Problem> {
    let text = match topic {
        Some("exit-codes") => EXIT_CODES.to_owned(),
        Some("consistency") => CONSISTENCY.to_owned(),
        Some("output") => OUTPUT.to_owned(),
        None => Cli::command().render_help().to_string(),
        Some(name) => {
            let mut whole = Cli::command();
            whole.build();
            let command = whole.find_subcommand_mut(name).ok_or_else(|| {
                Problem::usage(format!("no command or topic `{name}`"))
                    .try_this("kvctl help", "all commands")
                    .try_this("kvctl help exit-codes | consistency | output", "topics")
            })?;
            command.render_help().to_string()
        }
    };
    app.out.line(text)?;
    Ok(Exit::Done)
}
