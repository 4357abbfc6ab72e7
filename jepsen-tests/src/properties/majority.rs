//! The side of a cut that has a majority serves strong namespaces.

use kv_check::judge::{Property, Ruling};

use super::answers::{by_majority, owed};
use super::facts::{Facts, STOOD_STILL};

/// Part of what was asked of the side of a cut that has a majority, and has to be answered.
const MAJORITY_ANSWERS: f64 = 0.9;

/// The property; nothing where no cut was long enough for it.
pub(super) fn judge(facts: &Facts<'_>) -> Option<Property> {
    let owed = owed(&facts.recorded.faults, facts.deadline());
    let (answered, asked) = by_majority(facts.ns(), &facts.operations, &owed);
    let ruling = majority_serves(owed.len(), answered, asked)?;
    let (answered_then, asked_then) = by_majority(facts.ns(), &facts.at_ease(), &owed);
    let (ruling, why) = match (ruling, majority_serves(owed.len(), answered_then, asked_then)) {
        (Ruling::Invalid, Some(Ruling::Invalid)) => (Ruling::Invalid, ""),
        (Ruling::Invalid, _) => (Ruling::Unknown, STOOD_STILL),
        (other, _) => (other, ""),
    };
    let detail = format!(
        "{answered} of {asked} answered in {} cuts; at least {:.0} %{why}",
        owed.len(),
        MAJORITY_ANSWERS * 100.0
    );
    Some(facts.property("a majority serves", "sides of partitions", asked as usize, ruling, detail))
}

/// What the side with a majority showed in so many cuts that were long enough; nothing where there was none.
fn majority_serves(cuts: usize, answered: u64, asked: u64) -> Option<Ruling> {
    match (cuts, asked) {
        (0, _) => None,
        (_, 0) => Some(Ruling::Unknown),
        _ if answered as f64 >= asked as f64 * MAJORITY_ANSWERS => Some(Ruling::Valid),
        _ => Some(Ruling::Invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_answers_nine_of_ten() {
        for (cuts, answered, asked, expected) in [
            (0, 0, 0, None),
            (1, 0, 0, Some(Ruling::Unknown)),
            (1, 9, 10, Some(Ruling::Valid)),
            (1, 89, 100, Some(Ruling::Invalid)),
            (2, 0, 1, Some(Ruling::Invalid)),
        ] {
            assert_eq!(majority_serves(cuts, answered, asked), expected, "{answered} of {asked}");
        }
    }
}
