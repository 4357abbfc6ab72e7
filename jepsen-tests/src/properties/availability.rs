//! Every node answers an available namespace while links are cut.

use kv_check::judge::{Property, Ruling};

use super::answers::{self, Answered};
use super::facts::{Facts, STOOD_STILL};
use crate::judge_plan::ENOUGH;

/// The property; nothing where neither the namespace nor the scenario demands it.
pub(super) fn judge(facts: &Facts<'_>) -> Option<Property> {
    let least = facts.namespace.availability_min.or(facts.scenario.expect.availability_min)?;
    let recorded = facts.recorded;
    let cuts = answers::cuts(&recorded.faults);
    let by_node =
        |operations: &[_]| answers::by_node(facts.ns(), operations, &recorded.nodes, &cuts, &recorded.states);
    let nodes = by_node(&facts.operations);
    let asked: u64 = nodes.iter().map(|node| node.asked).sum();
    let (ruling, why) = answers_everywhere(&nodes, &by_node(&facts.at_ease()), least);
    let worst = nodes.first().map_or_else(
        || "no node ran".to_owned(),
        |worst| format!("{} answered {:.1} %", worst.node, worst.share() * 100.0),
    );
    let each = nodes.iter().map(|node| format!("{} {} of {}", node.node, node.answered, node.asked));
    let each = each.collect::<Vec<_>>().join(", ");
    let detail =
        format!("while links were cut, at worst {worst}; at least {:.1} %{why} ({each})", least * 100.0);
    Some(facts.property("available at every node", "answers", asked as usize, ruling, detail))
}

/// Whether every node answered this part of what it was asked; and of what it was asked while the machine did
/// not stand still.
fn answers_everywhere(nodes: &[Answered], eased: &[Answered], least: f64) -> (Ruling, &'static str) {
    match nodes.first() {
        None => (Ruling::Unknown, ""),
        Some(worst) if worst.asked == 0 => (Ruling::Unknown, ""),
        Some(worst) if worst.share() >= least => {
            let enough = nodes.iter().all(|node| node.asked >= ENOUGH);
            (if enough { Ruling::Valid } else { Ruling::Unknown }, "")
        }
        Some(_) if eased.iter().all(|node| node.asked == 0 || node.share() >= least) => {
            (Ruling::Unknown, STOOD_STILL)
        }
        Some(_) => (Ruling::Invalid, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::NodeId;

    #[test]
    fn a_stall_excuses_what_was_asked_in_it_and_no_more() {
        let node = |node, answered, asked| Answered { node: NodeId(node), answered, asked };
        let ruling = |nodes: &[Answered], eased: &[Answered]| answers_everywhere(nodes, eased, 0.9).0;
        let good = node(2, 100, 100);
        assert_eq!(ruling(&[node(1, 90, 100), good.clone()], &[]), Ruling::Valid);
        assert_eq!(ruling(&[node(1, 19, 19), good.clone()], &[]), Ruling::Unknown, "too few");
        assert_eq!(ruling(&[], &[]), Ruling::Unknown);
        let bad = [node(1, 80, 100), good.clone()];
        assert_eq!(ruling(&bad, &bad), Ruling::Invalid, "nothing stood still");
        assert_eq!(ruling(&bad, &[node(1, 80, 85), good.clone()]), Ruling::Unknown);
        assert_eq!(ruling(&bad, &[node(1, 75, 90), good.clone()]), Ruling::Invalid);
        let silent = [node(1, 0, 100), good.clone()];
        assert_eq!(
            ruling(&silent, &[node(1, 0, 95), good]),
            Ruling::Invalid,
            "one stall is no excuse for it"
        );
    }
}
