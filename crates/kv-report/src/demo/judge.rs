//! From the history to the receipt: what each mode did, by definitions that stand here and in `kv-check`, and
//! which promises were broken, if any. Nothing in it comes from the servers' own words about themselves but
//! the convergence, which is theirs to say.

use std::collections::BTreeMap;

use kv_check::history::Malformed;
use kv_check::judge::{self, Expectation, NamespacePlan, Plan, Ruling, Workload};
use kv_check::service::{self, Window};
use kv_check::{Event, Function, Operation, Outcome, operation};
use kv_types::{NodeId, counted, noun};
use serde::Serialize;

use crate::facts::{self, milliseconds, whole};
use crate::words::percent;
use crate::{Coverage, Side};
use kv_workload::NO_KNOWLEDGE;

/// Names of properties, as `kv-check` gives them.
const LINEARIZABLE: &str = "linearizable";
const FINAL_READS_AGREE: &str = "final reads agree";

/// Acknowledged writes that each side of the available namespace must have made during the cut for the run to
/// count.
const ENOUGH_WRITES: u64 = 200;
/// Shortest cut that counts.
const ENOUGH_SECONDS: f64 = 10.0;
/// Operations that each side must have begun on the strong namespace during the cut: a ratio of nothing shows
/// nothing.
const ENOUGH_ASKED: u64 = 50;
/// Part of the operations of either side that the available namespace must answer.
const AVAILABLE_RATIO: f64 = 0.99;
/// Part of the majority's operations that the strong namespace must answer: all but those of the election.
const STRONG_MAJORITY_RATIO: f64 = 0.7;
/// Longest time to converge.
const CONVERGED_WITHIN_MS: u64 = 5_000;
/// Longest time until the majority writes again.
const RECOVERED_WITHIN_MS: u64 = 2_000;

/// The two sides of the cut.
pub(crate) const MINORITY: &str = "minority";
/// See [`MINORITY`].
pub(crate) const MAJORITY: &str = "majority";
/// The strong namespace.
pub(crate) const BANK: &str = "bank";
/// The available namespace.
pub(crate) const CART: &str = "cart";

/// The moments of a run, nanoseconds since the history's beginning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    /// All twelve directed links had confirmed the cut.
    pub(crate) cut: u64,
    /// The healing was decided: the end of the window that counts. The links are probed once more before they
    /// open.
    pub(crate) decided: u64,
    /// The links were open again.
    pub(crate) healed: u64,
    /// Every replica had the same, and no hints were left; none if that never came.
    pub(crate) converged: Option<u64>,
    /// The final reads began.
    pub(crate) settled: u64,
}

/// What happened, in numbers. The file `receipt.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Receipt {
    /// How many nodes.
    pub nodes: usize,
    /// The seed of the load.
    pub seed: u64,
    /// From the moment when all directed links had confirmed the cut to the decision to heal.
    pub partition_seconds: f64,
    /// Directed links that were cut.
    pub links_cut: usize,
    /// Of so many, probes that found the link silent, just after the cut and again just before the healing.
    pub links_seen_cut: usize,
    /// Operations that were to begin and did not, because too many were open. They are in no ratio, so there
    /// must be none.
    pub shed: u64,
    /// The strong namespace.
    pub strong: StrongReceipt,
    /// The available namespace.
    pub available: AvailableReceipt,
}

/// What happened to the strong namespace.
#[derive(Debug, Clone, Serialize)]
pub struct StrongReceipt {
    /// Writes and swaps that were acknowledged.
    pub acknowledged: u64,
    /// Acknowledged writes that are gone, by final reads through every node.
    pub lost: u64,
    /// Mutations of unknown outcome.
    pub unknown: u64,
    /// Of those, writes whose value was read: they had been applied.
    pub unknown_applied: u64,
    /// Operations begun by clients of the minority while the cut was confirmed.
    pub minority_asked: u64,
    /// The same of the majority.
    pub majority_asked: u64,
    /// Operations answered, of those begun by clients of the minority while the cut was confirmed.
    pub minority_success_ratio: f64,
    /// The same of the majority.
    pub majority_success_ratio: f64,
    /// Longest time within the cut without an acknowledged write, on the side that had the longer one.
    pub longest_gap_ms: u64,
    /// The same on the majority's side.
    pub majority_longest_gap_ms: u64,
    /// Reads older than a write that had been acknowledged before they began.
    pub stale_reads: u64,
    /// Not-found answers for keys that were known to exist.
    pub false_absent: u64,
    /// Whether some order explains every answer: true, false, or "unknown".
    pub linearizable: serde_json::Value,
    /// From the cut to the first write that the majority's side acknowledged while it lasted.
    pub recovery_ms: Option<u64>,
    /// From the healing to the first of [`service::STREAK`] answers in a row, at the node where that took
    /// longest.
    pub served_again_ms: Option<u64>,
}

/// What happened to the available namespace.
#[derive(Debug, Clone, Serialize)]
pub struct AvailableReceipt {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Acknowledged writes that the final reads neither show nor explain.
    pub lost: u64,
    /// Mutations of unknown outcome.
    pub unknown: u64,
    /// Of those, writes whose value was read: they had been applied.
    pub unknown_applied: u64,
    /// Operations answered, of those begun by clients of the minority while the cut was confirmed.
    pub minority_success_ratio: f64,
    /// The same of the majority.
    pub majority_success_ratio: f64,
    /// Writes acknowledged to clients of the minority during the cut.
    pub minority_acknowledged: u64,
    /// The same of the majority.
    pub majority_acknowledged: u64,
    /// Longest time within the cut without an acknowledged write, on the side that had the longer one.
    pub longest_gap_ms: u64,
    /// Reads that missed a write acknowledged before they began: the price of answering.
    pub stale_reads: u64,
    /// Not-found answers for keys that were known to exist.
    pub false_absent: u64,
    /// Reads answered by nodes that keep no copy and said so. They count neither as success nor as absence.
    pub no_knowledge: u64,
    /// Keys with concurrent values after healing: conflicts that are kept for their clients.
    pub keys_with_siblings: u64,
    /// From the healing until all replicas had equal digests and no hints were left.
    pub convergence_ms: Option<u64>,
    /// Whether final reads at every node agree.
    pub replicas_agree: bool,
}

/// What a run knows that its history does not show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// The seed of the load.
    pub(crate) seed: u64,
    /// See [`Receipt::links_cut`].
    pub(crate) links_cut: usize,
    /// See [`Receipt::links_seen_cut`].
    pub(crate) links_seen_cut: usize,
    /// See [`Receipt::shed`].
    pub(crate) shed: u64,
}

/// The receipt, and what stands behind it.
#[derive(Debug)]
pub(crate) struct Judgement {
    pub(crate) receipt: Receipt,
    /// Promises that were broken, in words; and what was missing for the run to count.
    pub(crate) broken: Vec<String>,
    /// What had to happen for the run to count.
    pub(crate) coverage: Vec<Coverage>,
    /// What each side was answered during the cut: the receipt's figures, and the page's.
    pub(crate) sides: Vec<Side>,
    /// What `kv-check` says: properties and figures.
    pub(crate) checked: judge::Judgement,
}

impl Judgement {
    /// Broken promises make a run invalid; without any, missing coverage makes it undecided.
    pub(crate) fn ruling(&self) -> Ruling {
        let missing = self.coverage.iter().filter(|row| !row.enough).count();
        match (self.broken.len(), missing) {
            (0, 0) => self.checked.ruling,
            (broken, missing) if broken == missing => self.checked.ruling.max(Ruling::Unknown),
            _ => Ruling::Invalid,
        }
    }
}

/// Collects what was broken and what was covered.
#[derive(Debug, Default)]
struct Docket {
    broken: Vec<String>,
    coverage: Vec<Coverage>,
}

impl Docket {
    fn promise(&mut self, kept: bool, words: String) {
        if !kept {
            self.broken.push(words);
        }
    }

    /// Something that had to happen; `words` say what is missing.
    fn cover(&mut self, name: &str, wanted: String, got: String, enough: bool, words: String) {
        self.promise(enough, words);
        self.coverage.push(Coverage { name: name.into(), wanted, got, enough });
    }

    /// What `kv-check` found of a namespace.
    fn properties(&mut self, checked: &judge::Judgement, ns: &str) {
        for property in checked.properties.iter().filter(|property| property.ns == ns) {
            let words = format!("{ns}: {} is {}: {}", property.name, property.ruling, property.detail);
            self.promise(property.ruling == Ruling::Valid, words);
        }
    }
}

/// Judges a run.
pub(crate) fn judge(
    history: &[Event],
    marks: &Marks,
    groups: &[Vec<NodeId>; 2],
    run: Run,
) -> Result<Judgement, Malformed> {
    let operations = operation::pair(history)?;
    let of = |ns: &str| operations.iter().filter(|op| op.ns == ns).cloned().collect::<Vec<_>>();
    let (bank, cart) = (of(BANK), of(CART));
    let window = window(marks, groups);
    let mut checked = judge::judge(history, &plan(marks, &window))?;
    time(&mut checked, &cart, marks, groups);
    let sides = facts::of_window(&operations, 0, &window);
    let mut docket = Docket::default();
    let partition_seconds = seconds(marks.decided - marks.cut);
    docket.cover(
        "seconds in which the network was cut",
        format!("{ENOUGH_SECONDS} s"),
        format!("{partition_seconds:.1} s"),
        partition_seconds >= ENOUGH_SECONDS,
        format!("the cut lasted {partition_seconds:.1} s only"),
    );
    docket.cover(
        "directed links seen cut, by probes at the beginning and at the end",
        run.links_cut.to_string(),
        run.links_seen_cut.to_string(),
        run.links_seen_cut >= run.links_cut,
        format!(
            "only {} of {} seen cut",
            run.links_seen_cut,
            counted(run.links_cut, "link was", "links were")
        ),
    );
    docket.cover(
        "operations that were not begun because too many were open",
        "none".into(),
        run.shed.to_string(),
        run.shed == 0,
        format!(
            "{} not begun, and {} in no ratio",
            counted(run.shed, "operation was", "operations were"),
            noun(run.shed, "is", "are")
        ),
    );
    let receipt = Receipt {
        nodes: groups.iter().map(Vec::len).sum(),
        seed: run.seed,
        partition_seconds,
        links_cut: run.links_cut,
        links_seen_cut: run.links_seen_cut,
        shed: run.shed,
        strong: judge_strong(
            &bank,
            [MINORITY, MAJORITY].map(on(&sides, BANK, &window)),
            &checked,
            &mut docket,
        ),
        available: judge_available(
            &cart,
            [MINORITY, MAJORITY].map(on(&sides, CART, &window)),
            &checked,
            &mut docket,
        ),
    };
    let Docket { broken, coverage } = docket;
    Ok(Judgement { receipt, broken, coverage, sides, checked })
}

/// The times that only this run knows, and all of them in whole milliseconds, as the receipt has them.
fn time(checked: &mut judge::Judgement, cart: &[Operation], marks: &Marks, groups: &[Vec<NodeId>; 2]) {
    let nodes: Vec<String> = groups.iter().flatten().map(NodeId::to_string).collect();
    if let Some(figures) = checked.quantities.get_mut(CART) {
        figures.convergence_ns = marks.converged.map(|converged| converged.saturating_sub(marks.healed));
        // It rested until its replicas were equal: the final reads are the first that use it again.
        figures.recovery_ns =
            service::recovery_everywhere(cart, nodes.iter().map(String::as_str), marks.settled);
    }
    for figures in checked.quantities.values_mut() {
        figures.recovery_ns = figures.recovery_ns.map(whole);
        figures.convergence_ns = figures.convergence_ns.map(whole);
    }
}

/// What a namespace did on a side of the cut; where nothing was asked, nothing, for as long as it lasted.
fn on<'a>(sides: &'a [Side], ns: &'a str, window: &'a Window) -> impl Fn(&str) -> Side + 'a {
    let silent =
        Side { longest_gap_ms: milliseconds(window.to.saturating_sub(window.from)), ..Side::default() };
    move |name| {
        let mine = sides.iter().find(|side| side.ns == ns && side.side == name);
        mine.cloned().unwrap_or_else(|| silent.clone())
    }
}

/// Answered of all that was asked; nothing of nothing is nothing.
fn ratio(side: &Side) -> f64 {
    side.tally.share().unwrap_or(0.0)
}

/// What `kv-check` is to judge.
fn plan(marks: &Marks, window: &Window) -> Plan {
    let namespace = |strong, workload| NamespacePlan { strong, workload, expect: Expectation::default() };
    Plan {
        namespaces: BTreeMap::from([
            (BANK.to_owned(), namespace(true, Workload::Register)),
            (CART.to_owned(), namespace(false, Workload::Siblings)),
        ]),
        windows: vec![window.clone()],
        healed: Some(marks.healed),
        settled: Some(marks.settled),
        ..Plan::default()
    }
}

/// The window that counts, with its sides.
pub(crate) fn window(marks: &Marks, groups: &[Vec<NodeId>; 2]) -> Window {
    let [minority, majority] = groups;
    let side = |nodes: &[NodeId], side: &str| {
        nodes.iter().map(|node| (node.to_string(), side.to_owned())).collect::<BTreeMap<_, _>>()
    };
    let mut sides = side(minority, MINORITY);
    sides.extend(side(majority, MAJORITY));
    Window { name: "cut".into(), from: marks.cut, to: marks.decided, sides }
}

fn judge_strong(
    bank: &[Operation],
    [minority, majority]: [Side; 2],
    checked: &judge::Judgement,
    docket: &mut Docket,
) -> StrongReceipt {
    let figures = checked.quantities.get(BANK).cloned().unwrap_or_default();
    let verdict = |property: &&judge::Property| property.ns == BANK && property.name == LINEARIZABLE;
    let linearizable = match checked.properties.iter().find(verdict).map(|property| property.ruling) {
        Some(Ruling::Valid) => true.into(),
        Some(Ruling::Invalid) => false.into(),
        Some(Ruling::Unknown) | None => "unknown".into(),
    };
    let receipt = StrongReceipt {
        acknowledged: figures.acknowledged,
        lost: figures.lost,
        unknown: figures.unknown,
        unknown_applied: figures.unknown_applied,
        minority_asked: minority.tally.all(),
        majority_asked: majority.tally.all(),
        minority_success_ratio: ratio(&minority),
        majority_success_ratio: ratio(&majority),
        longest_gap_ms: minority.longest_gap_ms.max(majority.longest_gap_ms),
        majority_longest_gap_ms: majority.longest_gap_ms,
        stale_reads: figures.stale_reads,
        false_absent: bank.iter().filter(|read| is_false_absence(read, bank)).count() as u64,
        linearizable,
        recovery_ms: majority.first_write_ms,
        served_again_ms: figures.recovery_ns.map(milliseconds),
    };
    docket.properties(checked, BANK);
    promise_strong(&receipt, docket);
    receipt
}

/// What the strong namespace promises, and what must have happened for its figures to mean anything.
fn promise_strong(receipt: &StrongReceipt, docket: &mut Docket) {
    docket.promise(
        receipt.stale_reads == 0,
        format!("{BANK}: {}", counted(receipt.stale_reads, "stale read", "stale reads")),
    );
    docket.promise(
        receipt.false_absent == 0,
        format!(
            "{BANK}: {} said to be absent that {}",
            counted(receipt.false_absent, "key", "keys"),
            noun(receipt.false_absent, "exists", "exist")
        ),
    );
    docket.promise(
        receipt.minority_success_ratio == 0.0,
        format!("{BANK}: the minority answered {}", percent(receipt.minority_success_ratio)),
    );
    docket.promise(
        receipt.majority_success_ratio >= STRONG_MAJORITY_RATIO,
        format!("{BANK}: the majority answered only {}", percent(receipt.majority_success_ratio)),
    );
    for (side, count) in [(MINORITY, receipt.minority_asked), (MAJORITY, receipt.majority_asked)] {
        docket.cover(
            &format!("operations that clients of the {side} began on {BANK} during the cut"),
            ENOUGH_ASKED.to_string(),
            count.to_string(),
            count >= ENOUGH_ASKED,
            format!("{BANK}: the {side} was asked only {} during the cut", counted(count, "time", "times")),
        );
    }
    docket.cover(
        &format!("writes that {BANK} acknowledged"),
        "1".into(),
        receipt.acknowledged.to_string(),
        receipt.acknowledged > 0,
        format!("{BANK}: nothing was acknowledged, so nothing was shown"),
    );
    docket.promise(
        receipt.recovery_ms.is_some_and(|ms| ms <= RECOVERED_WITHIN_MS),
        format!("{BANK}: the majority did not write again within {RECOVERED_WITHIN_MS} ms of the cut"),
    );
}

fn judge_available(
    cart: &[Operation],
    [minority, majority]: [Side; 2],
    checked: &judge::Judgement,
    docket: &mut Docket,
) -> AvailableReceipt {
    let figures = checked.quantities.get(CART).cloned().unwrap_or_default();
    let no_knowledge = cart.iter().filter(|op| op.err.as_deref() == Some(NO_KNOWLEDGE)).count();
    let agree = |property: &judge::Property| property.ns == CART && property.name == FINAL_READS_AGREE;
    let receipt = AvailableReceipt {
        acknowledged: figures.acknowledged,
        lost: figures.lost,
        unknown: figures.unknown,
        unknown_applied: figures.unknown_applied,
        minority_success_ratio: ratio(&minority),
        majority_success_ratio: ratio(&majority),
        minority_acknowledged: minority.mutations,
        majority_acknowledged: majority.mutations,
        longest_gap_ms: minority.longest_gap_ms.max(majority.longest_gap_ms),
        stale_reads: figures.stale_reads,
        false_absent: figures.false_absences,
        no_knowledge: no_knowledge as u64,
        keys_with_siblings: figures.conflicted_keys,
        convergence_ms: figures.convergence_ns.map(milliseconds),
        replicas_agree: checked.properties.iter().any(|p| agree(p) && p.ruling == Ruling::Valid),
    };
    docket.properties(checked, CART);
    let lost = counted(figures.perhaps_lost, "acknowledged write", "acknowledged writes");
    docket.promise(figures.perhaps_lost == 0, format!("{CART}: {lost} may be lost"));
    for (side, ratio) in
        [(MINORITY, receipt.minority_success_ratio), (MAJORITY, receipt.majority_success_ratio)]
    {
        docket.promise(
            ratio >= AVAILABLE_RATIO,
            format!("{CART}: the {side} answered only {}", percent(ratio)),
        );
    }
    for (side, count) in
        [(MINORITY, receipt.minority_acknowledged), (MAJORITY, receipt.majority_acknowledged)]
    {
        let writes = counted(count, "write", "writes");
        docket.cover(
            &format!("writes that {CART} acknowledged to the {side} during the cut"),
            ENOUGH_WRITES.to_string(),
            count.to_string(),
            count >= ENOUGH_WRITES,
            format!("{CART}: the {side} acknowledged only {writes} during the cut"),
        );
    }
    docket.cover(
        &format!("keys of {CART} written on both sides, so that they end with siblings"),
        "1".into(),
        receipt.keys_with_siblings.to_string(),
        receipt.keys_with_siblings > 0,
        format!("{CART}: no key has siblings, so no conflict was shown"),
    );
    match receipt.convergence_ms {
        Some(ms) => {
            docket.promise(ms < CONVERGED_WITHIN_MS, format!("{CART}: replicas took {ms} ms to converge"))
        }
        None => docket.promise(false, format!("{CART}: replicas did not converge")),
    }
    receipt
}

/// Whether a read found nothing although a write had been acknowledged before it began, and nothing ever
/// deletes.
fn is_false_absence(read: &Operation, operations: &[Operation]) -> bool {
    read.f == Function::Read
        && read.ok()
        && read.output.is_null()
        && acknowledged_before(read, operations).next().is_some()
        && !operations
            .iter()
            .any(|op| op.f == Function::Delete && op.key == read.key && op.outcome != Outcome::Fail)
}

fn acknowledged_before<'a>(
    read: &'a Operation,
    operations: &'a [Operation],
) -> impl Iterator<Item = &'a Operation> {
    operations
        .iter()
        .filter(move |op| op.key == read.key && op.writes_value() && op.ok() && op.ended_before(read.call))
}

pub(crate) fn seconds(ns: u64) -> f64 {
    (ns as f64 / 1e9 * 1e3).round() / 1e3
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use kv_check::{EventType, Json, Process};
    use serde_json::json;

    const MS: u64 = 1_000_000;

    /// A history in which both modes do exactly what they promise, as far as needed here.
    pub(in crate::demo) struct Story {
        pub(in crate::demo) events: Vec<Event>,
        process: u64,
    }

    impl Story {
        pub(in crate::demo) fn op(
            &mut self,
            ns: &str,
            node: u64,
            at_ms: u64,
            f: Function,
            kind: EventType,
            value: Json,
        ) -> &mut Event {
            self.process += 1;
            let sent = if f == Function::Read { Json::Null } else { value.clone() };
            for (time, kind, value) in [(at_ms, EventType::Invoke, sent), (at_ms + 2, kind, value)] {
                let mut event = Event::new(time * MS, Process::Client(self.process), kind, f.clone(), value);
                event.ns = Some(ns.into());
                event.node = Some(format!("n{node}"));
                event.key = Some("k".into());
                self.events.push(event);
            }
            self.events.last_mut().unwrap()
        }
    }

    impl Story {
        /// Without what clients of this node did.
        fn forget(&mut self, ns: &str, node: &str, f: Function) {
            self.events.retain(|event| {
                event.ns.as_deref() != Some(ns) || event.node.as_deref() != Some(node) || event.f != f
            });
        }
    }

    pub(in crate::demo) fn marks() -> Marks {
        let ms = |ms: u64| ms * MS;
        Marks {
            cut: ms(1_000),
            decided: ms(12_000),
            healed: ms(12_300),
            converged: Some(ms(12_900)),
            settled: ms(14_000),
        }
    }

    pub(in crate::demo) fn groups() -> [Vec<NodeId>; 2] {
        [[1, 2].map(NodeId).to_vec(), [3, 4, 5].map(NodeId).to_vec()]
    }

    pub(in crate::demo) fn good() -> Story {
        let mut run = Story { events: Vec::new(), process: 0 };
        run.op(BANK, 1, 10, Function::Write, EventType::Ok, json!("a")).revision = Some(1);
        run.op(BANK, 1, 1_010, Function::Write, EventType::Info, json!("b")).err =
            Some("RESULT_UNKNOWN".into());
        run.op(BANK, 2, 2_000, Function::Write, EventType::Fail, json!("c")).err = Some("NO_QUORUM".into());
        run.op(BANK, 4, 1_900, Function::Write, EventType::Ok, json!("d")).revision = Some(2);
        run.op(BANK, 1, 14_100, Function::Read, EventType::Ok, json!("d")).revision = Some(2);
        for number in 0..60 {
            let at = 2_100 + number * 100;
            run.op(BANK, 2, at, Function::Read, EventType::Fail, Json::Null).err = Some("NO_QUORUM".into());
            run.op(BANK, 5, at, Function::Read, EventType::Ok, json!("d")).revision = Some(2);
        }
        let (mut minority, mut majority) = (json!([]), json!([]));
        for number in 0..220 {
            for (node, seen) in [(1, &mut minority), (4, &mut majority)] {
                let value = json!(format!("n{node}.{number}"));
                let at = 1_010 + number * 49;
                run.op(CART, node, at, Function::Write, EventType::Ok, value.clone());
                let begun = run.events.len() - 2;
                run.events[begun].observed = seen.as_array().cloned();
                *seen = json!([value]);
            }
        }
        for node in 1..=5 {
            let both = json!([minority[0], majority[0]]);
            run.op(CART, node, 14_100, Function::Read, EventType::Ok, both);
        }
        run
    }

    pub(in crate::demo) fn judged(run: Story) -> Judgement {
        judged_with(run, marks(), UNHARMED)
    }

    const UNHARMED: Run = Run { seed: 42, links_cut: 12, links_seen_cut: 12, shed: 0 };

    fn judged_with(story: Story, marks: Marks, run: Run) -> Judgement {
        judge(&kv_check::history::arrange(story.events), &marks, &groups(), run).unwrap()
    }

    #[test]
    fn a_run_that_keeps_its_promises_breaks_none() {
        let judged = judged(good());
        assert_eq!(judged.broken, Vec::<String>::new());
        let Receipt { partition_seconds, strong, available, .. } = judged.receipt;
        assert_eq!(partition_seconds, 11.0);
        assert_eq!((strong.unknown, strong.minority_success_ratio, strong.recovery_ms), (1, 0.0, Some(902)));
        assert_eq!((strong.longest_gap_ms, strong.linearizable), (11_000, json!(true)));
        assert_eq!((strong.minority_asked, strong.majority_asked), (62, 61));
        assert_eq!((available.keys_with_siblings, available.convergence_ms), (1, Some(600)));
        assert_eq!((available.minority_acknowledged, available.majority_acknowledged), (220, 220));
    }

    #[test]
    fn each_broken_promise_is_named() {
        let broken_by = |name: &str, harm: fn(&mut Story)| {
            let mut run = good();
            harm(&mut run);
            let broken = judged(run).broken;
            assert!(broken.iter().any(|words| words.contains(name)), "{name}: {broken:?}");
        };
        broken_by("bank: the minority answered", |run| {
            run.op(BANK, 2, 3_000, Function::Read, EventType::Ok, json!("d")).revision = Some(2);
        });
        broken_by("bank: 1 stale read", |run| {
            run.op(BANK, 4, 3_000, Function::Read, EventType::Ok, json!("a")).revision = Some(1);
        });
        broken_by("bank: linearizable is invalid", |run| {
            run.op(BANK, 4, 3_000, Function::Read, EventType::Ok, json!("a")).revision = Some(1);
        });
        broken_by("bank: 1 key said to be absent", |run| {
            run.op(BANK, 4, 3_000, Function::Read, EventType::Ok, Json::Null);
        });
        broken_by("bank: not applied means not applied is invalid", |run| {
            run.op(BANK, 4, 3_000, Function::Read, EventType::Ok, json!("c")).revision = Some(2);
        });
        broken_by("cart: no acknowledged write lost is invalid", |run| {
            run.op(CART, 1, 500, Function::Write, EventType::Ok, json!("forgotten"));
        });
        broken_by("cart: final reads agree is invalid", |run| {
            run.op(CART, 5, 14_200, Function::Read, EventType::Ok, json!(["n1.219"]));
        });
        broken_by("cart: the minority answered only", |run| {
            for number in 0..20 {
                run.op(CART, 2, 3_000 + number, Function::Read, EventType::Fail, Json::Null);
            }
        });
        broken_by("cart: the majority answered only", |run| {
            for number in 0..20 {
                run.op(CART, 4, 3_000 + number, Function::Read, EventType::Fail, Json::Null);
            }
        });
        broken_by("bank: the majority answered only", |run| {
            for number in 0..30 {
                run.op(BANK, 4, 3_000 + number, Function::Read, EventType::Fail, Json::Null);
            }
        });
        broken_by("bank: the minority was asked only 2 times", |run| run.forget(BANK, "n2", Function::Read));
        broken_by("bank: the majority was asked only 1 time during", |run| {
            run.forget(BANK, "n5", Function::Read)
        });
        broken_by("bank: no acknowledged write lost is invalid", |run| {
            run.op(BANK, 5, 14_200, Function::Read, EventType::Ok, json!("a")).revision = Some(1);
        });
        broken_by("bank: no acknowledged write lost is unknown", |run| {
            run.events.retain(|event| event.ns.as_deref() != Some(BANK) || event.time < 14_000 * MS);
        });
        broken_by("cart: no acknowledged write lost is unknown", |run| {
            run.events.retain(|event| event.ns.as_deref() != Some(CART) || event.time < 14_000 * MS);
        });
        broken_by("bank: the majority did not write again", |run| {
            run.forget(BANK, "n4", Function::Write);
            run.op(BANK, 4, 3_000, Function::Write, EventType::Ok, json!("d")).revision = Some(2);
        });
        broken_by("bank: the majority did not write again", |run| run.forget(BANK, "n4", Function::Write));
        broken_by("cart: deleted values stay deleted is invalid", |run| {
            let value = json!("deleted");
            run.op(CART, 3, 100, Function::Write, EventType::Ok, value.clone());
            run.op(CART, 3, 200, Function::Delete, EventType::Ok, Json::Null);
            let begun = run.events.len() - 2;
            run.events[begun].observed = Some(vec![value.clone()]);
            for node in 1..=5 {
                run.op(CART, node, 14_300, Function::Read, EventType::Ok, json!([value, "n1.219", "n4.219"]));
            }
        });
        broken_by("cart: no key has siblings", |run| {
            let both = vec![json!("n1.219"), json!("n4.219")];
            run.events.retain(|event| event.ns.as_deref() != Some(CART) || event.time < 14_000 * MS);
            run.op(CART, 1, 11_990, Function::Write, EventType::Ok, json!("merged"));
            let begun = run.events.len() - 2;
            run.events[begun].observed = Some(both);
            for node in 1..=5 {
                run.op(CART, node, 14_100, Function::Read, EventType::Ok, json!(["merged"]));
            }
        });
        for side in ["minority", "majority"] {
            let mut run = good();
            let node = if side == "minority" { "n1" } else { "n4" };
            let mut writes = 0;
            run.events.retain(|event| {
                let write = event.node.as_deref() == Some(node)
                    && event.ns.as_deref() == Some(CART)
                    && event.f == Function::Write;
                writes += usize::from(write);
                !write || writes > 2 * 21
            });
            let broken = judged(run).broken;
            let name = format!("cart: the {side} acknowledged only 199 writes");
            assert!(broken.contains(&format!("{name} during the cut")), "{broken:?}");
        }
    }

    #[test]
    fn what_the_history_does_not_show_is_promised_too() {
        let broken_by = |name: &str, harm: fn(&mut Marks, &mut Run)| {
            let (mut marks, mut run) = (marks(), UNHARMED);
            harm(&mut marks, &mut run);
            let broken = judged_with(good(), marks, run).broken;
            assert!(broken.iter().any(|words| words.contains(name)), "{name}: {broken:?}");
        };
        broken_by("cart: replicas took 5000 ms to converge", |marks, _| marks.converged = Some(17_300 * MS));
        broken_by("cart: replicas did not converge", |marks, _| marks.converged = None);
        broken_by("only 11 of 12 links were seen cut", |_, run| run.links_seen_cut = 11);
        broken_by("the cut lasted 9.9 s only", |marks, _| marks.decided = 10_900 * MS);
        broken_by("3 operations were not begun", |_, run| run.shed = 3);
    }

    #[test]
    fn answers_that_say_nothing_are_neither_absence_nor_success() {
        let mut run = good();
        run.op(CART, 2, 3_000, Function::Read, EventType::Fail, Json::Null).err = Some(NO_KNOWLEDGE.into());
        let Judgement { receipt, broken, .. } = judged(run);
        assert_eq!(broken, Vec::<String>::new());
        assert_eq!((receipt.available.no_knowledge, receipt.available.false_absent), (1, 0));
        assert!(receipt.available.minority_success_ratio < 1.0);
    }
}
