//! A run in figures, as `summary.json` holds them.

use std::collections::BTreeMap;

use kv_check::judge::{Property, Quantities, Ruling};
use kv_report::Coverage;
use serde::{Deserialize, Serialize};

use crate::coverage::Covered;
use crate::nemesis::Done;
use crate::recorded::Marks;

/// `summary.json`: a run in figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// The name of the scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// The verdict.
    pub ruling: Ruling,
    /// Why it is not *valid*.
    pub reasons: Vec<String>,
    /// The one command that runs the same again.
    pub replay: String,
    /// The commit that was tested.
    pub commit: String,
    /// Seconds that the run took.
    pub seconds: f64,
    /// Seconds that judging took.
    pub judged_in_seconds: f64,
    /// Events in the history.
    pub events: u64,
    /// What happened.
    pub covered: Covered,
    /// Compared with what the scenario demands.
    pub coverage: Vec<Coverage>,
    /// What was judged.
    pub properties: Vec<Property>,
    /// What was measured, by namespace.
    pub quantities: BTreeMap<String, Quantities>,
    /// The faults.
    pub faults: Vec<Done>,
    /// The moments.
    pub marks: Marks,
}
