//! The judgement of a whole run: for every namespace the properties it promises, each with the checker that
//! judged it and how much it saw, and the quantities that are measured rather than judged.
//!
//! A property that too little was seen of is [`Ruling::Unknown`]: an empty history proves nothing.

mod available;
mod case;
mod plan;
mod property;
mod quantities;
mod strong;

use case::Case;
pub use plan::{DIGESTS, Expectation, HEALED, Minority, NamespacePlan, Plan, SETTLED, Workload};
pub use property::{Evidence, Property, Ruling};
pub use quantities::{Freshness, Quantities, Share};

use crate::history::Malformed;
use crate::{Event, Operation, Process, operation};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The judgement of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The worst of the properties.
    pub ruling: Ruling,
    /// The properties, by namespace.
    pub properties: Vec<Property>,
    /// What was measured, by namespace.
    pub quantities: BTreeMap<String, Quantities>,
}

/// Judges a history by a plan.
///
/// Fails if the history is not well formed (see [`operation::pair`]), or if two writes of a key in an
/// available namespace share a value.
pub fn judge(events: &[Event], plan: &Plan) -> Result<Judgement, Malformed> {
    let mut operations: BTreeMap<String, Vec<Operation>> = BTreeMap::new();
    for op in operation::pair(events)? {
        operations.entry(op.ns.clone()).or_default().push(op);
    }
    let last = |name: &str| {
        let event = events.iter().rev().find(|e| e.process == Process::Nemesis && e.f.name() == name);
        event.map(|event| event.time)
    };
    let plan = &Plan {
        healed: plan.healed.or_else(|| last(HEALED)),
        settled: plan.settled.or_else(|| last(SETTLED)),
        ..plan.clone()
    };
    let mut properties = Vec::new();
    let mut all = BTreeMap::new();
    for (name, namespace) in &plan.namespaces {
        let operations = operations.get(name).map(Vec::as_slice).unwrap_or_default();
        let quantities = quantities::measure(operations, namespace, plan);
        let answered = quantities.answered;
        let mut case =
            Case { name, namespace, plan, operations, properties: Vec::new(), quantities, stale: Vec::new() };
        if namespace.strong {
            strong::judge(&mut case);
        } else {
            available::judge(&mut case)?;
        }
        case.convergence(events);
        if answered < plan.enough.max(1) {
            for property in case.properties.iter_mut().filter(|property| property.ruling == Ruling::Valid) {
                property.ruling = Ruling::Unknown;
                property.detail = format!("only {answered} operations were answered: nothing was shown");
            }
        }
        case.quantities.round_up();
        properties.append(&mut case.properties);
        all.insert(name.clone(), case.quantities);
    }
    let ruling = properties.iter().map(|property| property.ruling).max().unwrap_or(Ruling::Unknown);
    Ok(Judgement { ruling, properties, quantities: all })
}
