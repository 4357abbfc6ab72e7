//! How much is held for nodes that could not be reached: rows and bytes of hints, by target. What is counted
//! is what was committed.

use std::collections::BTreeMap;

use kv_types::{Failure, NodeId, Reason};

/// By how much the hints for a target grow with a batch: rows and bytes.
pub(super) type Growth = (NodeId, i64, i64);

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    rows: u64,
    bytes: u64,
}

/// The hints of a node, in numbers.
#[derive(Debug, Default)]
pub(super) struct Held {
    targets: BTreeMap<NodeId, Sum>,
    max_bytes: u64,
}

impl Held {
    /// Nothing, of at most `max_bytes`.
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { targets: BTreeMap::new(), max_bytes }
    }

    /// `LIMIT_HINTS` once as many bytes are held as may be.
    pub(super) fn admit(&self) -> Result<(), Failure> {
        let bytes: u64 = self.targets.values().map(|sum| sum.bytes).sum();
        if bytes < self.max_bytes {
            return Ok(());
        }
        let message = format!("this node holds {bytes} bytes of hints and takes no more");
        Err(Failure::new(Reason::LimitHints, message).with("limit_bytes", self.max_bytes))
    }

    /// Counts what a committed batch added or removed.
    pub(super) fn grow(&mut self, growth: &[Growth]) {
        for (target, rows, bytes) in growth {
            let sum = self.targets.entry(*target).or_default();
            sum.rows = sum.rows.saturating_add_signed(*rows);
            sum.bytes = sum.bytes.saturating_add_signed(*bytes);
            if sum.rows == 0 {
                self.targets.remove(target);
            }
        }
    }

    /// Whether nothing is held for a target.
    pub(super) fn nothing_for(&self, target: NodeId) -> bool {
        !self.targets.contains_key(&target)
    }

    /// Rows by target.
    pub(super) fn rows(&self) -> BTreeMap<NodeId, u64> {
        self.targets.iter().map(|(target, sum)| (*target, sum.rows)).collect()
    }
}
