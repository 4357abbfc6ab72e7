//! A namespace that is judged: its operations, its plan, and the properties that are found of it.

use super::plan::{DIGESTS, NamespacePlan, Plan};
use super::property::{Evidence, Property, Ruling};
use super::quantities::{self, Quantities};
use crate::linear::describe;
use crate::{Event, Json, Operation, Process};
use std::collections::BTreeMap;

/// Of a part of a history that contradicts itself, at most that many operations are shown.
const MAX_SHOWN: usize = 12;

/// One namespace under judgement.
pub(super) struct Case<'a> {
    pub(super) name: &'a str,
    pub(super) namespace: &'a NamespacePlan,
    pub(super) plan: &'a Plan,
    pub(super) operations: &'a [Operation],
    pub(super) properties: Vec<Property>,
    pub(super) quantities: Quantities,
    /// Indices of stale reads.
    pub(super) stale: Vec<u64>,
}

/// A contradiction, as its checker names it: the key, the indices, and words.
pub(super) type Contradiction = (String, Vec<u64>, String);

impl Case<'_> {
    /// From when on reads do not count for staleness.
    pub(super) fn at_rest(&self) -> u64 {
        quantities::at_rest(self.namespace, self.plan)
    }

    pub(super) fn add(
        &mut self,
        name: &str,
        checker: &str,
        examined: usize,
        ruling: Ruling,
        detail: String,
        evidence: Option<Evidence>,
    ) {
        self.properties.push(Property {
            name: name.into(),
            ns: self.name.into(),
            checker: checker.into(),
            examined: examined as u64,
            ruling,
            detail,
            evidence,
        });
    }

    /// A property that is kept where nothing contradicts it; the first contradiction is the evidence.
    pub(super) fn none(
        &mut self,
        name: &str,
        checker: &str,
        examined: usize,
        contradictions: &[Contradiction],
        fine: &str,
    ) {
        let Some((key, indices, text)) = contradictions.first() else {
            self.add(name, checker, examined, Ruling::Valid, fine.into(), None);
            return;
        };
        let count = contradictions.len();
        let first_line = text.lines().next().unwrap_or_default();
        let detail = if count == 1 {
            first_line.to_owned()
        } else {
            format!("{count} contradictions; the first: {first_line}")
        };
        let evidence = self.evidence(key, indices, text);
        self.add(name, checker, examined, Ruling::Invalid, detail, Some(evidence));
    }

    /// The part of the history with these invocations.
    pub(super) fn evidence(&self, key: &str, indices: &[u64], text: &str) -> Evidence {
        let shown = |op: &&Operation| indices.contains(&op.index);
        let part: Vec<&Operation> = self.operations.iter().filter(shown).collect();
        let mut text = text.to_owned();
        for op in part.iter().take(MAX_SHOWN) {
            let line = describe(op);
            if !text.contains(&line) {
                text.push_str(&format!("\n  {line}"));
            }
        }
        let from = part.iter().map(|op| op.call).min().unwrap_or(0);
        Evidence {
            key: key.to_owned(),
            indices: indices.to_vec(),
            text,
            from,
            to: part.iter().map(|op| op.ret.unwrap_or(op.call)).max().unwrap_or(from),
        }
    }

    /// A contradiction that is the operation with this index.
    pub(super) fn by_index(&self, index: u64, what: &str) -> Contradiction {
        // Operations are in the order of their indices.
        let at = self.operations.binary_search_by_key(&index, |op| op.index).ok();
        let key = at.and_then(|at| self.operations.get(at)).map(|op| op.key.clone()).unwrap_or_default();
        let text = format!("{key:?}: {what}, #{index}");
        (key, vec![index], text)
    }

    /// A promise about acknowledged mutations in the end; nothing is known of those that were not read.
    pub(super) fn none_lost(
        &mut self,
        name: &str,
        checker: &str,
        acknowledged: usize,
        unread: usize,
        lost: &[Contradiction],
    ) {
        self.quantities.lost = lost.len() as u64;
        self.quantities.never_read = unread as u64;
        let examined = acknowledged.saturating_sub(unread);
        if self.namespace.expect.lost {
            let detail = format!("{} lost, which this configuration allows", lost.len());
            self.add(name, checker, examined, Ruling::Valid, detail, None);
        } else if lost.is_empty() && unread > 0 {
            let detail = format!("{unread} of {acknowledged} acknowledged were not read in the end");
            self.add(name, checker, examined, Ruling::Unknown, detail, None);
        } else {
            self.none(name, checker, examined, lost, &format!("{examined} acknowledged, all accounted for"));
        }
    }

    /// The replicas' digests, where the history has them or the plan demands them: equal in the end, and
    /// since when.
    pub(super) fn convergence(&mut self, events: &[Event]) {
        const NAME: &str = "replicas equal in the end";
        let mut parts: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
        for event in events
            .iter()
            .filter(|event| event.process == Process::Nemesis && event.f.name() == DIGESTS)
            .filter(|event| event.ns.as_deref() == Some(self.name))
        {
            parts.entry(event.key.as_deref().unwrap_or_default()).or_default().push(event);
        }
        let demanded = self.plan.digests.contains(self.name);
        if parts.is_empty() {
            if demanded {
                let detail = "the digests of the replicas were not recorded".into();
                self.add(NAME, "digests", 0, Ruling::Unknown, detail, None);
            }
            return;
        }
        if let Some(healed) = self.plan.healed {
            let equal_since = |polls: &Vec<&Event>| {
                let since = polls
                    .iter()
                    .rev()
                    .take_while(|poll| poll.time >= healed && compare(&poll.value) == Ruling::Valid);
                since.last().map(|poll| poll.time - healed)
            };
            let moments: Option<Vec<u64>> = parts.values().map(equal_since).collect();
            self.quantities.convergence_ns = moments.and_then(|moments| moments.into_iter().max());
        }
        let ends: Vec<&Event> = parts.values().filter_map(|polls| polls.last().copied()).collect();
        let examined = ends.iter().map(|end| replicas(&end.value)).sum();
        let of_part = |end: &Event| match &end.key {
            Some(part) => format!("the digests of the replicas of {part} are {}", end.value),
            None => format!("the replicas' digests are {}", end.value),
        };
        let of_ruling = |ruling| ends.iter().filter(move |end| compare(&end.value) == ruling);
        let different: Vec<Contradiction> = of_ruling(Ruling::Invalid)
            .map(|end| {
                (end.key.clone().unwrap_or_default(), vec![end.index], format!("in the end {}", of_part(end)))
            })
            .collect();
        let first = ends.iter().map(|end| end.time).min().unwrap_or(0);
        let later = self.operations.iter().filter(|op| op.f.mutates() && op.call > first).count();
        let too_little = if let Some(end) = of_ruling(Ruling::Unknown).next() {
            Some(format!("there is nothing to compare: {}", of_part(end)))
        } else if demanded && self.plan.healed.is_some_and(|healed| first < healed) {
            Some("the replicas were not compared once the faults were over".to_owned())
        } else if demanded && later > 0 {
            Some(format!("{later} mutations were called after the replicas had been looked at"))
        } else {
            None
        };
        match too_little {
            Some(detail) if different.is_empty() => {
                self.add(NAME, "digests", examined, Ruling::Unknown, detail, None);
            }
            _ => {
                let fine = match ends.len() {
                    1 => format!("{examined} replicas with one digest"),
                    parts => format!("{examined} replicas of {parts} parts, each part with one digest"),
                };
                self.none(NAME, "digests", examined, &different, &fine);
            }
        }
    }
}

/// The replicas of an event [`DIGESTS`] that told their digest.
fn replicas(digests: &Json) -> usize {
    digests.as_object().map_or(0, |map| map.values().filter(|digest| !digest.is_null()).count())
}

/// Whether the replicas that told are equal; unknown with fewer than two, or if they are and one did not
/// tell.
fn compare(digests: &Json) -> Ruling {
    let Some(all) = digests.as_object() else { return Ruling::Unknown };
    let mut told = all.values().filter(|digest| !digest.is_null());
    let first = told.next();
    if !told.all(|digest| Some(digest) == first) {
        Ruling::Invalid
    } else if replicas(digests) < 2 || replicas(digests) < all.len() {
        Ruling::Unknown
    } else {
        Ruling::Valid
    }
}

/// The final reads of a key, by index.
pub(super) fn indices_of_final_reads(operations: &[Operation], key: &str, settled: u64) -> Vec<u64> {
    let reads = operations.iter().filter(|op| op.key == key && op.ok() && op.call >= settled);
    reads.filter(|op| op.f == crate::Function::Read).map(|op| op.index).take(MAX_SHOWN).collect()
}

/// Contradictions by their kind.
pub(super) fn of_kind<K: Ord + Copy>(
    findings: impl IntoIterator<Item = (K, Contradiction)>,
) -> BTreeMap<K, Vec<Contradiction>> {
    let mut kinds: BTreeMap<K, Vec<Contradiction>> = BTreeMap::new();
    for (kind, contradiction) in findings {
        kinds.entry(kind).or_default().push(contradiction);
    }
    kinds
}
