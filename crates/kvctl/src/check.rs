//! `check`: verifies a recorded history with kv-check. Which promise applies is told per namespace.

use std::collections::BTreeSet;
use std::io::{BufReader, Read as _};

use kv_check::history;
use kv_check::linear::{Options, Verdict};
use kv_check::{Function, Json, Operation, available, linear, operation, strong};
use kv_types::counted;
use serde_json::json;

use crate::app::{App, nearest};
use crate::cli::Check;
use crate::data::reading;
use crate::exit::Exit;
use crate::line::Line;
use crate::output::{on_a_line, readable};
use crate::problem::Problem;

/// Largest history that is read, bytes.
const MAX_HISTORY_BYTES: u64 = 4 << 30;
/// Namespaces of a history that an error lists.
const MOST_NAMED: usize = 8;
/// In a millisecond: histories count in them.
const NANOSECONDS: u64 = 1_000_000;

pub(crate) async fn run(app: &App, args: &Check) -> Result<Exit, Problem> {
    let malformed = |error: history::Malformed| {
        Problem::usage(format!("{} is not a history: {error}", args.history.display()))
    };
    let events = reading(&args.history, |reader| {
        let mut bounded = BufReader::new(reader.take(MAX_HISTORY_BYTES));
        let events = history::read(&mut bounded);
        Ok((events, bounded.get_ref().limit() == 0))
    });
    let (events, is_longer) = events.await?;
    if is_longer {
        let shown = args.history.display();
        let message = format!("{shown} has more than the {MAX_HISTORY_BYTES} bytes that are judged at once");
        return Err(Problem::usage(message));
    }
    let operations = operation::pair(&events.map_err(malformed)?).map_err(malformed)?;
    named_in(&operations, args, &app.line)?;
    if let Some(other) = operations.iter().find(|op| matches!(op.f, Function::Add | Function::Append)) {
        let what = format!(
            "{} has operations `{}`: it is a history of sets, counters or lists, and registers are judged here. \
             `jepsen-tests check` judges those",
            args.history.display(),
            other.f.name()
        );
        return Err(Problem::usage(what));
    }
    let available_names = available_namespaces(&operations, args);
    let (leaderless, linearizable): (Vec<Operation>, Vec<Operation>) =
        operations.into_iter().partition(|op| available_names.contains(op.ns.as_str()));
    if linearizable.is_empty() && leaderless.is_empty() {
        return Err(Problem::usage(format!("{} holds no operations", args.history.display())));
    }
    let all: Vec<&Operation> = linearizable.iter().chain(&leaderless).collect();
    let unsettled = args.settled_ms.is_none().then(|| not_judged(&app.line, &all));
    // Without a time given nothing is a final read, and only what needs none is judged.
    let settled = args.settled_ms.map_or(u64::MAX, |ms| ms.saturating_mul(NANOSECONDS));
    let (mut worst, mut unread) = (Exit::Done, 0);
    if !linearizable.is_empty() {
        let (exit, not_read) = check_strong(app, args, &linearizable, settled)?;
        (worst, unread) = (worse(worst, exit), not_read);
    }
    if !leaderless.is_empty() {
        let account = available::account(&leaderless, settled).map_err(malformed)?;
        report_available(app, args, leaderless.len(), &account)?;
        worst = worse(worst, if account.kept() { Exit::Done } else { Exit::No });
        unread += account.unread.len();
    }
    if let Some(note) = unsettled {
        app.out.note(note);
    } else if unread > 0 {
        app.out.note(format!(
            "note: whether {} lost is not known: no read from --settled-ms on is of that key. \
             Read each key once more at the end, or name the time from which on reads are the final ones",
            counted(unread, "acknowledged write was", "acknowledged writes were")
        ));
        worst = worse(worst, Exit::Unknown);
    }
    Ok(worst)
}

/// What is said where no read is a final one: that losses were not judged, and the line that judges them, by
/// when the last mutation ended.
fn not_judged(line: &Line, operations: &[&Operation]) -> String {
    const WHY: &str = "note: losses were not judged: without --settled-ms no read is a final one";
    let ends = operations.iter().filter(|op| op.f.mutates()).map(|op| op.ret.unwrap_or(op.call));
    let Some(last_ms) = ends.max().map(|last| last / NANOSECONDS) else {
        return format!("{WHY}. There is no write that could be lost");
    };
    // The moment after.
    let settled_ms = last_ms.saturating_add(1);
    let after = |op: &&&Operation| {
        op.f == Function::Read && op.ok() && op.call >= settled_ms.saturating_mul(NANOSECONDS)
    };
    match operations.iter().filter(after).count() {
        0 => format!(
            "{WHY}. No read came after the last write, which ended at {last_ms} ms: read each key once more at the end"
        ),
        reads => format!(
            "{WHY}. The last write ended at {last_ms} ms, and {} came after it; if the network was whole by then: {}",
            counted(reads, "read", "reads"),
            line.clone().with("--settled-ms", settled_ms)
        ),
    }
}

/// A number of what was judged; of what was not, none is claimed.
fn judged(args: &Check, count: usize) -> serde_json::Value {
    args.settled_ms.map_or(serde_json::Value::Null, |_| count.into())
}

/// What is known of losses: of which writes, and of how many nothing.
fn losses(lost: usize, acknowledged: usize, unread: usize) -> String {
    match unread {
        0 => format!("lost {lost} of {acknowledged}"),
        _ => format!("lost {lost} of {}, not read in the end {unread}", acknowledged.saturating_sub(unread)),
    }
}

/// Judges operations on strong namespaces and reports the verdict. Also how many acknowledged writes no final
/// read tells of.
fn check_strong(
    app: &App,
    args: &Check,
    operations: &[Operation],
    settled: u64,
) -> Result<(Exit, usize), Problem> {
    let verdict = linear::check(operations, &Options::default());
    let account = strong::account(operations, settled);
    let lost = counted(account.lost.len(), "acknowledged write", "acknowledged writes");
    let (word, exit, detail) = match &verdict {
        Verdict::Valid if account.kept() => ("valid", Exit::Done, None),
        Verdict::Valid => ("invalid", Exit::No, Some(format!("{lost} lost"))),
        Verdict::Invalid(witness) => {
            let mut witness = witness.clone();
            witness.key = on_a_line(witness.key.as_bytes());
            ("invalid", Exit::No, Some(witness.to_string()))
        }
        Verdict::Unknown { key, why } => {
            ("unknown", Exit::Unknown, Some(format!("{}: {why}", on_a_line(key.as_bytes()))))
        }
    };
    if app.out.is_json() {
        app.out.json(&json!({
            "mode": "strong", "property": "linearizable", "verdict": word, "operations": operations.len(),
            "acknowledged": account.acknowledged, "lost": judged(args, account.lost.len()),
            "phantoms": account.phantoms.len(), "unread": judged(args, account.unread.len()),
            "unknown": account.unknown, "detail": detail, "settled_ms": args.settled_ms,
        }))?;
    } else {
        let count = counted(operations.len(), "operation", "operations");
        let lost = match args.settled_ms {
            Some(_) => losses(account.lost.len(), account.acknowledged, account.unread.len()),
            None => "lost: not judged".to_owned(),
        };
        app.out.line(format!("strong      linearizable: {word}   {count}   {lost}"))?;
        if let Some(detail) = detail {
            app.out.line(readable(detail.as_bytes()))?;
        }
    }
    Ok((exit, args.settled_ms.map_or(0, |_| account.unread.len())))
}

/// Reports what became of the promises of available namespaces.
fn report_available(
    app: &App,
    args: &Check,
    operations: usize,
    account: &available::Account,
) -> Result<(), Problem> {
    let word = match account.kept() {
        true if args.settled_ms.is_some() && !account.unread.is_empty() => "unknown",
        true => "valid",
        false => "invalid",
    };
    // Never claim what was not looked at.
    let (property, promise) = match args.settled_ms {
        Some(_) => ("convergent", "nothing lost or resurrected, replicas equal, siblings right"),
        None => ("siblings", "no value from nowhere, no false conflict"),
    };
    if app.out.is_json() {
        return Ok(app.out.json(&json!({
            "mode": "available", "property": property, "verdict": word, "operations": operations,
            "acknowledged": account.acknowledged, "lost": judged(args, account.lost.len()),
            "resurrected": judged(args, account.resurrected.len()),
            "diverged": judged(args, account.diverged.len()),
            "phantoms": account.phantoms.len(), "false_conflicts": account.false_conflicts.len(),
            "stale_reads": account.stale.len(), "reads_with_siblings": account.reads_with_siblings,
            "unread": judged(args, account.unread.len()), "unknown": account.unknown,
            "settled_ms": args.settled_ms,
        }))?);
    }
    let ends = match args.settled_ms {
        Some(_) => format!(
            "{}   resurrected {}   diverged {}",
            losses(account.lost.len(), account.acknowledged, account.unread.len()),
            account.resurrected.len(),
            account.diverged.len()
        ),
        None => "lost, resurrected, diverged: not judged".to_owned(),
    };
    app.out.line(format!("available   {promise}: {word}"))?;
    app.out.line(format!("            {}   {ends}", counted(operations, "operation", "operations")))?;
    Ok(app.out.line(format!(
        "            phantoms {}   false conflicts {}   (stale reads {}, allowed)",
        account.phantoms.len(),
        account.false_conflicts.len(),
        account.stale.len()
    ))?)
}

/// A definite no outweighs not knowing, which outweighs all well.
fn worse(a: Exit, b: Exit) -> Exit {
    match (a, b) {
        (Exit::No, _) | (_, Exit::No) => Exit::No,
        (Exit::Done, other) | (other, _) => other,
    }
}

/// Refuses names that say nothing of the history: a slip would have a namespace judged by another promise.
fn named_in(operations: &[Operation], args: &Check, line: &Line) -> Result<(), Problem> {
    if let Some(both) = args.strong.iter().find(|name| args.available.contains(name)) {
        return Err(Problem::usage(format!("`{both}` is named both by --strong and by --available")));
    }
    let known: BTreeSet<&str> = operations.iter().map(|op| op.ns.as_str()).collect();
    for (option, names) in [("--strong", &args.strong), ("--available", &args.available)] {
        let unknown = names.iter().find(|name| !known.contains(name.as_str()));
        let Some(name) = unknown.filter(|_| !known.is_empty()) else { continue };
        let there: Vec<String> =
            known.iter().take(MOST_NAMED).map(|name| on_a_line(name.as_bytes())).collect();
        let more = if known.len() > MOST_NAMED { " and others" } else { "" };
        let message = format!(
            "{option} {}: no operation in {} is of that namespace; there are: {}{more}",
            on_a_line(name.as_bytes()),
            args.history.display(),
            there.join(", ")
        );
        let problem = Problem::usage(message);
        let meant = nearest(known.iter().copied(), name).filter(|_| names.len() == 1);
        return Err(match meant {
            Some(meant) => problem
                .try_this(line.clone().with(option, meant).to_string(), "the nearest name that there is"),
            None => problem,
        });
    }
    Ok(())
}

/// The namespaces whose reads return lists, corrected by what the command line says.
fn available_namespaces(operations: &[Operation], args: &Check) -> BTreeSet<String> {
    let lists = operations.iter().filter(|op| op.ok() && matches!(op.output, Json::Array(_)));
    let mut names: BTreeSet<String> = lists.map(|op| op.ns.clone()).collect();
    names.extend(args.available.iter().cloned());
    names.retain(|name| !args.strong.contains(name));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_outweighs_not_knowing() {
        assert_eq!(worse(Exit::Done, Exit::Unknown), Exit::Unknown);
        assert_eq!(worse(Exit::Unknown, Exit::No), Exit::No);
        assert_eq!(worse(Exit::No, Exit::Done), Exit::No);
        assert_eq!(worse(Exit::Done, Exit::Done), Exit::Done);
    }
}
