//! The promises of available namespaces.

use super::case::{Case, Contradiction, indices_of_final_reads};
use super::plan::Workload;
use super::property::Ruling;
use super::strong::{not_applied, set};
use crate::available::{self, Named};
use crate::history::Malformed;
use crate::{Function, Json, Operation};

const CHECKER: &str = "causal accounting";
const RESURRECTED: &str = "deleted values stay deleted";

pub(super) fn judge(case: &mut Case<'_>) -> Result<(), Malformed> {
    match case.namespace.workload {
        Workload::Siblings | Workload::Register => siblings(case)?,
        Workload::Set => set(case),
        Workload::Counter | Workload::Append => {
            let detail = "nothing can judge this workload in an available namespace".into();
            case.add("judged", "none", 0, Ruling::Unknown, detail, None);
        }
    }
    staleness(case);
    absences(case);
    Ok(())
}

fn siblings(case: &mut Case<'_>) -> Result<(), Malformed> {
    let settled = case.plan.settled.unwrap_or(u64::MAX);
    let account = available::account(case.operations, settled)?;
    case.quantities.siblings(&account, case.at_rest());
    let named = |writes: &[Named], what: &str| -> Vec<Contradiction> {
        let contradiction = |write: &Named| {
            let mut indices = vec![write.index];
            indices.extend(indices_of_final_reads(case.operations, &write.key, settled));
            (write.key.clone(), indices, format!("{:?}: {} {what}", write.key, write.value))
        };
        writes.iter().map(contradiction).collect()
    };
    let reads = |indices: &[u64], what: &str| -> Vec<Contradiction> {
        indices.iter().map(|index| case.by_index(*index, what)).collect()
    };
    let lost = named(&account.lost, "was acknowledged; no final read shows it, and nothing supersedes it");
    let resurrected = named(&account.resurrected, "had been deleted, and is there again");
    let diverged: Vec<Contradiction> = account
        .diverged
        .iter()
        .map(|(_, key)| {
            let indices = indices_of_final_reads(case.operations, key, settled);
            (key.clone(), indices, format!("{key:?}: final reads differ from each other"))
        })
        .collect();
    let nowhere: Vec<u64> =
        account.phantoms.iter().filter(|read| !account.refused.contains(read)).copied().collect();
    let nowhere = reads(&nowhere, "a value that was never written");
    let refused = reads(&account.refused, "a value that was reported as not applied");
    let conflicts = reads(&account.false_conflicts, "a value beside one that supersedes it");

    let back = reads(&account.went_back, "a read before it had shown more");

    let name = "no acknowledged write lost";
    case.none_lost(name, CHECKER, account.acknowledged, account.unread.len(), &lost);
    let finals = case.operations.iter().filter(|op| op.ok() && op.call >= settled && op.f == Function::Read);
    let finals = finals.count();
    for (name, broken) in [(RESURRECTED, &resurrected), ("final reads agree", &diverged)] {
        if finals == 0 {
            case.add(name, CHECKER, 0, Ruling::Unknown, "there are no final reads".into(), None);
        } else if name == RESURRECTED && case.namespace.expect.lost {
            // A delete is lost like any other mutation, and what it removed is there again.
            let detail = format!("{} came back, which this configuration allows", broken.len());
            case.add(name, CHECKER, finals, Ruling::Valid, detail, None);
        } else {
            case.none(name, CHECKER, finals, broken, "");
        }
    }
    case.none("no value from nowhere", CHECKER, account.reads, &nowhere, "");
    not_applied(case, CHECKER, &refused);
    let twins = match account.late_twins {
        0 => String::new(),
        reads => format!("{reads} reads before rest showed the twin of a write that was sent on twice"),
    };
    case.none("no false conflict", CHECKER, account.reads, &conflicts, &twins);
    case.stale = account.stale.iter().map(|read| read.index).collect();
    if case.namespace.expect.monotonic {
        case.none("no read goes back", CHECKER, account.reads, &back, "");
    }
    Ok(())
}

/// Only a replica that keeps a key can know that it is absent: an answer that says so names one that was
/// heard. Judged where reads that found nothing carry receipts that name replies, `{"available": {"replies":
/// ["n1", "n4*", "n2!"]}}`, or the plan demands them: a fallback is marked with `*`, a replica that was
/// silent with `!`.
fn absences(case: &mut Case<'_>) {
    let empty = |op: &&Operation| op.f == Function::Read && op.ok() && op.values_read().is_empty();
    const NAME: &str = "no false absence";
    let (mut examined, mut without) = (0, 0);
    let mut false_ones: Vec<Contradiction> = Vec::new();
    for read in case.operations.iter().filter(empty) {
        let replies = read.receipt.as_ref().and_then(|receipt| receipt.pointer("/available/replies"));
        let Some(replies) = replies.and_then(Json::as_array) else {
            without += 1;
            continue;
        };
        examined += 1;
        let keeps = |reply: &Json| reply.as_str().is_some_and(|name| !name.ends_with(['*', '!']));
        if !replies.iter().any(keeps) {
            let named = Json::from(replies.as_slice());
            let what = format!(
                "read #{} says absent, and no replica that keeps the key was heard: {named}",
                read.index
            );
            false_ones.push((read.key.clone(), vec![read.index], format!("{:?}: {what}", read.key)));
        }
    }
    if case.plan.receipts && without > 0 && false_ones.is_empty() {
        let detail =
            format!("{without} of {} answers that found nothing named no replies", without + examined);
        case.add(NAME, "receipts", examined, Ruling::Unknown, detail, None);
    } else if examined > 0 {
        let fine = "each by a replica that keeps the key";
        case.none(NAME, "receipts", examined, &false_ones, fine);
    }
}

/// Staleness is allowed, unless the configuration rules it out; where it must show, its absence proves
/// nothing.
fn staleness(case: &mut Case<'_>) {
    let count = case.quantities.stale_reads;
    let reads = case.quantities.reads as usize;
    match case.namespace.expect.stale {
        None => {}
        Some(false) => {
            let stale: Vec<_> = case
                .stale
                .iter()
                .map(|read| case.by_index(*read, "misses what was acknowledged before"))
                .collect();
            case.none("no stale read", "staleness", reads, &stale, "");
        }
        Some(true) if count == 0 => {
            let detail = "not one read was stale: the meter was not tried".into();
            case.add("staleness is seen", "staleness", reads, Ruling::Unknown, detail, None);
        }
        Some(true) => {
            let detail = format!("{count} of {reads} reads were stale, as this configuration allows");
            case.add("staleness is seen", "staleness", reads, Ruling::Valid, detail, None);
        }
    }
}
