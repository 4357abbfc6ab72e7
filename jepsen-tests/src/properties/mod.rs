//! The promises of a run that its history alone does not show: nodes serve again, replicas become equal, a
//! majority serves, every node answers, starved ones too, no node ends by itself.

mod answers;
mod availability;
mod convergence;
mod facts;
mod majority;
mod nodes;
mod recovery;
mod starved;

use kv_check::Operation;
use kv_check::judge::Judgement;

use crate::recorded::Recorded;
use crate::scenario::{Mode, Scenario};
use facts::Facts;

/// Adds to a judgement what needs the run's moments, for every namespace and for the nodes themselves.
pub(crate) fn measure(
    scenario: &Scenario,
    recorded: &Recorded,
    operations: &[Operation],
    judgement: &mut Judgement,
) {
    for namespace in &scenario.namespaces {
        let Some(quantities) = judgement.quantities.get_mut(&namespace.name) else { continue };
        let facts = Facts::of(namespace, scenario, recorded, operations);
        let properties = &mut judgement.properties;
        quantities.recovery_ns = recovery::time(&facts);
        properties.push(recovery::judge(&facts, quantities.recovery_ns));
        properties.extend(starved::served(&facts));
        properties.extend(starved::refusals(&facts));
        if namespace.mode == Mode::Strong {
            // Its replicas are compared when the load has ended: that says nothing of when they became equal.
            quantities.convergence_ns = None;
            properties.extend(majority::judge(&facts));
            continue;
        }
        quantities.convergence_ns = convergence::time(&facts);
        properties.push(convergence::judge(&facts, quantities.convergence_ns));
        properties.push(convergence::judge_again(&facts));
        properties.extend(availability::judge(&facts));
    }
    judgement.properties.extend(starved::replaced(scenario, recorded));
    judgement.properties.extend(nodes::judge(scenario, recorded));
}
