//! Closes gaps in a node clock that nothing else closes: a note that was lost with the memory or the disk of
//! its coordinator, a hint that went with its fallback. A node meets such a gap when another one sends a
//! record that claims more than this node's clock has: the record stays ahead of the clock. Usually a hint
//! brings what is missing. Where none does, the node pulls the ring partition from the others, as one does
//! that has lost its disk, and goes on serving it: what it gets is more than what it has.
//!
//! Not covered: a ring partition of which nothing is sent any more; and a write that no primary has, which
//! only a client has seen: it keeps the record of its key ahead, and the others are asked more and more
//! rarely.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::layout::Slice;
use crate::limits;
use crate::node::{Node, stopped};
use crate::rebuild::pull_from;

/// Which ring partitions are behind, and when the others are asked. A value: time is an argument.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    /// When each is due, and how long it waits after that.
    slices: BTreeMap<Slice, (Instant, Duration)>,
}

impl Behind {
    /// The ring partitions that are due, of those that are behind now.
    pub(crate) fn due(&mut self, behind: &[Slice], now: Instant) -> Vec<Slice> {
        let (_, first, _) = limits::CATCH_UP;
        self.slices.retain(|slice, _| behind.contains(slice));
        for slice in behind {
            self.slices.entry(*slice).or_insert((now + first, first));
        }
        self.slices.iter().filter(|(_, (due, _))| *due <= now).map(|(slice, _)| *slice).collect()
    }

    /// A ring partition was asked for: it waits twice as long as the last time.
    pub(crate) fn asked(&mut self, slice: Slice, now: Instant) {
        let (_, _, longest) = limits::CATCH_UP;
        if let Some((due, pause)) = self.slices.get_mut(&slice) {
            *pause = (*pause * 2).min(longest);
            *due = now + *pause;
        }
    }
}

/// Pulls what stays behind until the node stops: one ring partition at a time.
pub(crate) async fn run(node: Arc<Node>) {
    let mut stop = node.stop.subscribe();
    let mut behind = Behind::default();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            () = sleep(limits::CATCH_UP.0) => {}
        }
        if !node.is_whole() {
            continue;
        }
        for slice in behind.due(&node.replica.slices_ahead(), Instant::now()) {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                () = catch_up(&node, slice) => behind.asked(slice, Instant::now()),
            }
        }
    }
}

async fn catch_up(node: &Arc<Node>, slice: Slice) {
    for source in node.others_of(slice).unwrap_or_default() {
        if !node.is_up(source) || node.replica.is_put_back() {
            continue;
        }
        match pull_from(node, slice, source).await {
            Ok(_) => tracing::info!(?slice, %source, "what stayed behind was pulled"),
            Err(error) if error.is_of_own_storage() => {
                let failure = error.failure();
                return tracing::error!(?slice, %source, %failure, "what stays behind cannot be pulled");
            }
            Err(error) => {
                tracing::debug!(?slice, %source, failure = %error.failure(), "what stays behind was not pulled");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kv_types::{RingId, RingPartition};

    use super::*;

    #[test]
    fn the_others_are_asked_after_a_while_and_ever_more_rarely() {
        let (_, first, longest) = limits::CATCH_UP;
        let slice = |n| Slice { ring: RingId(1), partition: RingPartition(n) };
        let (mut behind, begun, ms) = (Behind::default(), Instant::now(), Duration::from_millis(1));
        assert!(behind.due(&[slice(1)], begun).is_empty());
        let mut now = begun + first;
        assert!(behind.due(&[slice(1)], now - ms).is_empty());
        assert_eq!(behind.due(&[slice(1), slice(2)], now), [slice(1)]);
        let mut pause = first;
        for _ in 0..20 {
            behind.asked(slice(1), now);
            pause = (pause * 2).min(longest);
            assert!(!behind.due(&[slice(1), slice(2)], now + pause - ms).contains(&slice(1)));
            now += pause;
            assert!(behind.due(&[slice(1), slice(2)], now).contains(&slice(1)));
        }
        // One that has caught up begins anew.
        assert!(behind.due(&[], now).is_empty());
        assert!(behind.due(&[slice(1)], now).is_empty());
    }
}
