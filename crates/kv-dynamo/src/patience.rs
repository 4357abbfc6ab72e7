//! How long a replica may be silent before another stands in for it: by how long its answers took lately, as
//! TCP waits for an acknowledgement (Jacobson and Karels, 1988; RFC 6298). A replica whose disk is slow is
//! waited for; with a fixed patience each of its writes would become a hint that it has to take as well, and
//! a slow disk would get more to do the slower it is.
//!
//! Only writes are waited for and count here: a read leaves no hint behind and is answered in another time,
//! so it asks another node soon. A node that is gone is suspected, and no request waits for those. A long
//! silence counts for no more than the longest patience, and is soon made up for by quick answers.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_types::NodeId;

/// How long the answers of one node took.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    mean: Duration,
    /// From the mean, on average.
    deviation: Duration,
}

impl Estimate {
    fn first(took: Duration) -> Self {
        Self { mean: took, deviation: took / 2 }
    }

    /// The weights of RFC 6298.
    fn observe(&mut self, took: Duration) {
        self.deviation = self.deviation * 3 / 4 + took.abs_diff(self.mean) / 4;
        self.mean = self.mean * 7 / 8 + took / 8;
    }

    fn patience(&self) -> Duration {
        self.mean + self.deviation * 4
    }
}

/// How long the answers of the other nodes took. A value: time is an argument.
#[derive(Debug)]
pub(crate) struct Latencies {
    of: BTreeMap<NodeId, Estimate>,
    least: Duration,
    most: Duration,
}

impl Latencies {
    /// Patience is between these.
    pub(crate) fn new(least: Duration, most: Duration) -> Self {
        Self { of: BTreeMap::new(), least, most: most.max(least) }
    }

    /// A node has answered, however late.
    pub(crate) fn observe(&mut self, node: NodeId, took: Duration) {
        let took = took.min(self.most);
        self.of.entry(node).and_modify(|of| of.observe(took)).or_insert_with(|| Estimate::first(took));
    }

    /// How long a node may be silent.
    fn patience(&self, node: NodeId) -> Duration {
        self.of.get(&node).map_or(self.least, |of| of.patience().clamp(self.least, self.most))
    }

    /// The nodes that may be silent for longer than the least patience: usually none.
    pub(crate) fn slow(&self, nodes: impl IntoIterator<Item = NodeId>) -> Vec<(NodeId, Duration)> {
        let with = |node| (node, self.patience(node));
        nodes.into_iter().map(with).filter(|(_, patience)| *patience > self.least).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: NodeId = NodeId(2);
    const LEAST: Duration = Duration::from_millis(120);
    const MOST: Duration = Duration::from_secs(1);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn after(took: impl IntoIterator<Item = u64>) -> Duration {
        let mut latencies = Latencies::new(LEAST, MOST);
        took.into_iter().for_each(|took| latencies.observe(N, ms(took)));
        assert_eq!(latencies.patience(NodeId(9)), LEAST, "of another node nothing is known");
        latencies.patience(N)
    }

    #[test]
    fn a_quick_node_has_the_least_patience() {
        assert_eq!(after([]), LEAST);
        assert_eq!(after([1; 100]), LEAST);
        assert_eq!(after([9, 11, 12, 8, 10, 9]), LEAST);
    }

    #[test]
    fn a_slow_node_is_waited_for_as_long_as_it_takes() {
        let steady = after([300; 50]);
        assert!(steady >= ms(300) && steady < ms(320), "{steady:?}");
        let uneven = after((0..50).map(|n| if n % 2 == 0 { 100 } else { 300 }));
        assert!(uneven > ms(500) && uneven < ms(700), "{uneven:?}");
        let slower = after([5, 5, 5, 5, 400, 400]);
        assert!(slower > ms(400), "two answers are enough: {slower:?}");
    }

    #[test]
    fn a_long_silence_is_soon_forgotten() {
        assert_eq!(after([60_000; 3]), MOST);
        let quick_again = after([60_000; 3].into_iter().chain([2; 40]));
        assert!(quick_again <= ms(125), "{quick_again:?}");
    }

    #[test]
    fn only_slow_nodes_are_named() {
        let mut latencies = Latencies::new(LEAST, MOST);
        latencies.observe(N, ms(500));
        latencies.observe(NodeId(3), ms(3));
        let slow = latencies.slow([N, NodeId(3), NodeId(4)]);
        assert_eq!(slow, [(N, latencies.patience(N))]);
    }
}
