//! What the judges of both modes share: properties in the making.

use super::{Evidence, NamespacePlan, Plan, Property, Quantities, Ruling};
use crate::linear::describe;
use crate::{Event, Json, Operation, Process};
use std::collections::BTreeMap;

/// The `f` of an event of the nemesis that carries the digest of every replica of a namespace, by node.
pub const DIGESTS: &str = "digests";
/// The `f` of an event of the nemesis: the last fault has been taken back; see [`Plan::healed`].
pub const HEALED: &str = "healed";
/// The `f` of an event of the nemesis: the store has settled; see [`Plan::settled`].
pub const SETTLED: &str = "settled";

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

    /// A promise about acknowledged mutations in the end; nothing is known of those that nobody read.
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

    /// The replicas' digests, where the history has them: equal in the end, and since when.
    pub(super) fn convergence(&mut self, events: &[Event]) {
        let polls: Vec<(u64, u64, &Json)> = events
            .iter()
            .filter(|event| event.process == Process::Nemesis && event.f.name() == DIGESTS)
            .filter(|event| event.ns.as_deref() == Some(self.name))
            .map(|event| (event.time, event.index, &event.value))
            .collect();
        let Some((_, index, last)) = polls.last() else { return };
        let equal = |digests: &Json| {
            let digests: Vec<&Json> = digests.as_object().into_iter().flat_map(|map| map.values()).collect();
            digests.len() > 1 && digests.windows(2).all(|pair| pair.first() == pair.last())
        };
        if let Some(healed) = self.plan.healed {
            let since = polls.iter().rev().take_while(|(time, _, digests)| *time >= healed && equal(digests));
            self.quantities.convergence_ns = since.last().map(|(time, ..)| time - healed);
        }
        let replicas = last.as_object().map_or(0, serde_json::Map::len);
        let different: Vec<Contradiction> = if equal(last) {
            Vec::new()
        } else {
            vec![(String::new(), vec![*index], format!("in the end the replicas' digests are {last}"))]
        };
        let name = "replicas equal in the end";
        self.none(name, "digests", replicas, &different, &format!("{replicas} replicas with one digest"));
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
