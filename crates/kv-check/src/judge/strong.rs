//! The promises of strong namespaces.

use super::case::{Case, Contradiction, indices_of_final_reads, of_kind};
use super::plan::{Minority, Workload};
use super::property::Ruling;
use crate::linear::{self, Model, Options, Verdict};
use crate::receipts::Shape;
use crate::{Function, Operation, Outcome, counters, lists, receipts, service, sets, strong};
use std::collections::BTreeMap;

/// Checks of parts that the search for the smallest failing one may take.
const SHRINKING: usize = 400;
/// Keys for which a violation is looked for, once one was found.
const MAX_INVALID_KEYS: usize = 3;
/// Configurations that each key may take once another was found not to be linearizable: that is the verdict,
/// and more keys only illustrate it.
const AFTER_THE_VERDICT: usize = 50_000;

pub(super) fn judge(case: &mut Case<'_>) {
    match case.namespace.workload {
        Workload::Register | Workload::Siblings => {
            linearizable(case, Model::Register);
            registers(case);
        }
        Workload::Append => {
            linearizable(case, Model::Lists);
            appended(case);
        }
        Workload::Set => set(case),
        Workload::Counter => counter(case),
    }
    named_points(case);
    minority_refuses(case);
}

/// Who cannot reach a majority answers nothing that needs one: once it had time to notice, and as long as it
/// is cut off. Without a cut that lasts long enough there is nothing to judge; if nothing was asked during
/// one, nothing is known.
fn minority_refuses(case: &mut Case<'_>) {
    const NAME: &str = "a minority refuses";
    const CHECKER: &str = "sides of partitions";
    let plan = case.plan;
    let Some(Minority { sides, grace_ns }) = &plan.minority else { return };
    let (mut cuts, mut examined) = (0, 0);
    let mut answers: Vec<Contradiction> = Vec::new();
    for window in &plan.windows {
        let Some(asked) = service::cut_off(case.operations, window, sides, *grace_ns) else { continue };
        cuts += 1;
        examined += asked.asked.len();
        answers.extend(asked.answered.iter().map(|op| {
            let since = op.call.saturating_sub(window.from) / 1_000_000;
            let text = format!(
                "{:?}: #{} was called at {}, {since} ms after it was cut off ({}), and answered while it was",
                op.key, op.index, op.node, window.name
            );
            (op.key.clone(), vec![op.index], text)
        }));
    }
    if cuts > 0 && examined == 0 {
        let detail = format!("the side without a majority was not asked in any of {cuts} cuts");
        case.add(NAME, CHECKER, 0, Ruling::Unknown, detail, None);
    } else if cuts > 0 {
        let cuts = if cuts == 1 { "1 cut".to_owned() } else { format!("{cuts} cuts") };
        let fine = format!("{cuts}, nothing answered on a side without a majority");
        case.none(NAME, CHECKER, examined, &answers, &fine);
    }
}

/// The search, key by key.
fn linearizable(case: &mut Case<'_>, model: Model) {
    let mut options = Options { model, ..case.plan.limits };
    let mut keys: Vec<_> = linear::by_key(case.operations).into_iter().collect();
    keys.sort_by_key(|(_, operations)| operations.len());
    let count = keys.len();
    let mut invalid = Vec::new();
    let mut unknown = Vec::new();
    let mut examined = 0;
    for ((_, key), operations) in keys {
        examined += operations.iter().filter(|op| op.answered()).count();
        match linear::check_key(&operations, &options) {
            Verdict::Valid => {}
            Verdict::Invalid(witness) => {
                if invalid.is_empty() {
                    let part = linear::shrink(&operations, &options, SHRINKING);
                    let (indices, text) = match part {
                        Some(part) => (part.operations.iter().map(|op| op.index).collect(), part.text()),
                        None => (vec![witness.stuck.index], witness.to_string()),
                    };
                    options.max_configurations = options.max_configurations.min(AFTER_THE_VERDICT);
                    let blind = Options { revisions: false, ..options };
                    let why = match linear::check_key(&operations, &blind) {
                        Verdict::Valid => " (by its revisions; the values alone can be explained)",
                        _ => "",
                    };
                    let text = format!("key {key:?}{why}: {text}");
                    invalid.push((key.to_owned(), indices, text));
                } else {
                    invalid.push((key.to_owned(), vec![witness.stuck.index], format!("key {key:?}")));
                }
                if invalid.len() >= MAX_INVALID_KEYS {
                    break;
                }
            }
            Verdict::Unknown { key, why } => unknown.push(format!("key {key:?}: {why}")),
        }
    }
    let name = "linearizable";
    match unknown.first() {
        Some(why) if invalid.is_empty() => {
            let detail = format!("{} of {count} keys undecided; {why}", unknown.len());
            case.add(name, "wgl", examined, Ruling::Unknown, detail, None);
        }
        _ => case.none(name, "wgl", examined, &invalid, &format!("{count} keys")),
    }
}

/// Receipts, where the history has any or the plan demands them.
fn named_points(case: &mut Case<'_>) {
    let shape = match case.namespace.workload {
        Workload::Register | Workload::Siblings => Shape::Value,
        Workload::Counter => Shape::Counter,
        Workload::Set => Shape::Set,
        Workload::Append => Shape::List,
    };
    const NAME: &str = "receipts name one order";
    let account = receipts::check(case.operations, shape);
    let lacking = case.plan.receipts && account.without > 0;
    if account.examined == 0 && !lacking {
        return;
    }
    let found: Vec<Contradiction> = account
        .findings
        .iter()
        .map(|finding| (finding.key.clone(), finding.indices.clone(), finding.text.clone()))
        .collect();
    let fine = match account.without {
        0 => "every answer at the point its receipt names".to_owned(),
        without => format!("every answer at the point its receipt names; {without} answers had none"),
    };
    if lacking && found.is_empty() {
        let detail =
            format!("{} of {} answers had no receipt", account.without, account.without + account.examined);
        case.add(NAME, "receipts", account.examined, Ruling::Unknown, detail, None);
    } else {
        case.none(NAME, "receipts", account.examined, &found, &fine);
    }
}

fn registers(case: &mut Case<'_>) {
    let settled = case.plan.settled.unwrap_or(u64::MAX);
    let account = strong::account(case.operations, settled);
    case.quantities.unknown_applied = account.unknown_applied as u64;
    (case.quantities.stale_reads, case.quantities.stale_versions_max) = stale_reads(case.operations);
    let lost: Vec<Contradiction> = account
        .lost
        .iter()
        .map(|write| {
            let mut indices = vec![write.index];
            indices.extend(indices_of_final_reads(case.operations, &write.key, settled));
            let text = format!("{:?}: the acknowledged {} is gone", write.key, write.value);
            (write.key.clone(), indices, text)
        })
        .collect();
    let name = "no acknowledged write lost";
    case.none_lost(name, "final reads", account.acknowledged, account.unread.len(), &lost);
    let nowhere: Vec<_> = account
        .phantoms
        .iter()
        .filter(|read| !account.refused.contains(read))
        .map(|read| case.by_index(*read, "a value that was never written"))
        .collect();
    case.none("no value from nowhere", "final reads", account.reads, &nowhere, "");
    let refused: Vec<_> = account
        .refused
        .iter()
        .map(|read| case.by_index(*read, "a value that was reported as not applied"))
        .collect();
    not_applied(case, "final reads", &refused);
}

/// Definite failures are definite. Left out where nothing was refused.
pub(super) fn not_applied(case: &mut Case<'_>, checker: &str, seen: &[Contradiction]) {
    let refused = case.operations.iter().filter(|op| op.f.mutates() && op.outcome == Outcome::Fail).count();
    if refused > 0 {
        let fine = format!("{refused} refused, none seen");
        case.none("not applied means not applied", checker, refused, seen, &fine);
    }
}

/// By revisions: reads that missed what had been acknowledged before their call, and by how many changes at
/// most.
fn stale_reads(operations: &[Operation]) -> (u64, u64) {
    let (mut stale, mut most) = (0, 0);
    for operations in linear::by_key(operations).into_values() {
        let told = |op: &&&Operation| op.f.mutates() && op.ok() && op.revision.is_some();
        let mut changes: Vec<(u64, u64)> =
            operations.iter().filter(told).filter_map(|op| Some((op.ret?, op.revision?))).collect();
        changes.sort_unstable();
        let mut newest = 0;
        let highest: Vec<u64> = changes
            .iter()
            .map(|(_, revision)| {
                newest = newest.max(*revision);
                newest
            })
            .collect();
        for read in operations.iter().filter(|op| op.f == Function::Read && op.ok()) {
            // Absence has no revision; a delete of unknown outcome may be its reason.
            let Some(seen) = read.revision else { continue };
            let known = changes.partition_point(|(ret, _)| *ret < read.call);
            if known.checked_sub(1).and_then(|last| highest.get(last)).is_some_and(|newest| *newest > seen) {
                let missed = changes.iter().take(known).filter(|(_, revision)| *revision > seen).count();
                stale += 1;
                most = most.max(missed as u64);
            }
        }
    }
    (stale, most)
}

fn element(element: &sets::Element, what: &str) -> Contradiction {
    let mut indices = vec![element.index, element.read];
    indices.sort_unstable();
    indices.dedup();
    let text = format!("{:?}: {} {what}, read #{}", element.key, element.value, element.read);
    (element.key.clone(), indices, text)
}

/// Set-full, for both modes.
pub(super) fn set(case: &mut Case<'_>) {
    const CHECKER: &str = "set-full";
    let account = sets::account(case.operations);
    case.quantities.set(&account, case.at_rest());
    let all = |elements: &[sets::Element], what: &str| {
        elements.iter().map(|lost| element(lost, what)).collect::<Vec<_>>()
    };
    let lost = all(&account.lost, "was known, and is gone");
    if case.namespace.strong || case.plan.settled.is_some() {
        case.none_lost("no element lost", CHECKER, account.acknowledged, account.never_read, &lost);
    } else {
        let detail = "the run did not wait until it had settled".into();
        case.add("no element lost", CHECKER, account.acknowledged, Ruling::Unknown, detail, None);
    }
    case.none("no element twice", CHECKER, account.reads, &all(&account.duplicated, "is there twice"), "");
    let nowhere = all(&account.phantoms, "was never added");
    case.none("no element from nowhere", CHECKER, account.reads, &nowhere, "");
    not_applied(case, CHECKER, &all(&account.refused, "was reported as not applied"));
    if case.namespace.strong {
        let stale = all(&account.stale, "was known, and missed");
        let reads = account.reads;
        case.none("no stale read", CHECKER, reads, &stale, "every read shows all that was known");
        let mut disordered = all(&account.overtaken, "is missing although a later one is there");
        disordered.extend(account.incomparable.iter().map(|(one, other)| {
            let text = format!("#{one} and #{other}: neither read shows all that the other does");
            (String::new(), vec![*one, *other], text)
        }));
        case.none("reads grow in one order", CHECKER, reads, &disordered, "");
    }
}

/// Necessary conditions only: nothing here says *linearizable*.
fn counter(case: &mut Case<'_>) {
    const CHECKER: &str = "counter bounds";
    let account = counters::account(case.operations);
    let out: Vec<Contradiction> = account
        .out_of_bounds
        .iter()
        .map(|read| {
            let bounds = format!("{} to {}", read.least, read.most);
            let text = format!(
                "{:?}: read {} where only {bounds} is possible, #{}",
                read.key, read.read, read.index
            );
            let last = read.adds.len().saturating_sub(5);
            let mut indices: Vec<u64> = read.adds.get(last..).unwrap_or_default().to_vec();
            indices.push(read.index);
            (read.key.clone(), indices, text)
        })
        .collect();
    let fine = format!("{} of {} reads had one right answer", account.exact, account.reads);
    case.none("within its bounds", CHECKER, account.reads, &out, &fine);
    let shrunk: Vec<Contradiction> = account
        .shrunk
        .iter()
        .map(|found| {
            let counters::Shrunk { key, earlier, index, read, least, most } = found;
            let text = format!(
                "{key:?}: read {read}, #{index}, where after #{earlier} only {least} to {most} is possible"
            );
            (key.clone(), vec![*earlier, *index], text)
        })
        .collect();
    let fine = "compared with reads that had returned before; that they can be put in one order is not shown by this";
    case.none("no read goes back", CHECKER, account.compared, &shrunk, fine);
    if let Some(index) = account.no_numbers.first() {
        let detail = format!("#{index} adds no integer");
        case.add("only integers", CHECKER, account.no_numbers.len(), Ruling::Unknown, detail, None);
    }
}

fn appended(case: &mut Case<'_>) {
    const CHECKER: &str = "list order";
    let account = lists::account(case.operations);
    case.quantities.unknown_applied = account.unknown_applied as u64;
    let mut kinds: BTreeMap<lists::Kind, Vec<Contradiction>> = of_kind(
        account.findings.into_iter().map(|found| (found.kind, (found.key, found.indices, found.text))),
    );
    let mut take = |kind| kinds.remove(&kind).unwrap_or_default();
    let lost = take(lists::Kind::Lost);
    case.none_lost("no element lost", CHECKER, account.acknowledged, account.never_read, &lost);
    for (name, kind) in [
        ("no element twice", lists::Kind::Duplicated),
        ("one order of elements", lists::Kind::Reordered),
        ("order of times kept", lists::Kind::RealTime),
        ("no element from nowhere", lists::Kind::Phantom),
    ] {
        case.none(name, CHECKER, account.reads, &take(kind), "");
    }
    not_applied(case, CHECKER, &take(lists::Kind::Refused));
}
