//! Removes what this node has of deleted namespaces, as soon as it knows of the deletion, and again after a
//! start: records, hints, conflicts and requests. No one is asked, because ids of namespaces are never used
//! again. It goes in small steps at a bounded rate, and an error is a pause.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_types::catalogue::{Catalogue, runs_beyond};
use kv_types::{Failure, NodeId, Placement, Reason, RingPartition};
use tokio::time::{Instant, sleep};

use crate::layout::Slice;
use crate::limits;
use crate::node::{Node, stopped};
use crate::replica::Removed;

/// The ids that hold nothing here: see [`Catalogue::deleted`].
fn deleted(catalogue: &Catalogue) -> Vec<(u64, u64)> {
    catalogue.deleted(|placement| matches!(placement, Placement::Available { .. }))
}

/// Removes until the node stops.
pub(crate) async fn run(node: Arc<Node>) {
    let mut stop = node.stop.subscribe();
    let mut known = node.catalogue.clone();
    let mut done = Vec::new();
    loop {
        let catalogue = Arc::clone(&known.borrow_and_update());
        let all = deleted(&catalogue);
        let new = runs_beyond(all.iter().copied(), &done);
        let removed = async {
            match new.is_empty() {
                true => Ok(0),
                false => remove(&node, &catalogue, &new).await,
            }
        };
        let again = async {
            match removed.await {
                Ok(bytes) => {
                    if bytes > 0 {
                        tracing::info!(bytes, "what was stored of deleted namespaces was removed");
                    }
                    done = all;
                    // Without a sender there will be no change: the node is about to stop.
                    if known.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                Err(failure) => {
                    tracing::warn!(%failure, "what is left of deleted namespaces is removed later");
                    sleep(limits::REMOVAL_PAUSE).await;
                }
            }
        };
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            () = again => {}
        }
    }
}

/// Removes everything of these runs of ids from all ring partitions; the bytes that there were.
async fn remove(node: &Node, catalogue: &Catalogue, runs: &[(u64, u64)]) -> Result<u64, Failure> {
    let mut pace = Pace { begun: Instant::now(), bytes: 0 };
    for ring in catalogue.rings.values() {
        for (partition, _) in (0_u32..).zip(&ring.assignment) {
            let slice = Slice { ring: ring.id, partition: RingPartition(partition) };
            // From here on every operation on it knows of the deletion.
            node.replica.let_pass(slice);
            for run in runs {
                remove_from(node, slice, *run, &mut pace).await?;
            }
        }
    }
    Ok(pace.bytes)
}

async fn remove_from(node: &Node, slice: Slice, run: (u64, u64), pace: &mut Pace) -> Result<(), Failure> {
    remove_all(node, What::Records, slice, run, pace).await?;
    remove_all(node, What::Conflicts, slice, run, pace).await?;
    let targets: BTreeSet<NodeId> = node.replica.hints_pending().into_keys().collect();
    for target in targets {
        remove_all(node, What::Hints(target), slice, run, pace).await?;
    }
    Ok(())
}

/// What a step removes.
#[derive(Clone, Copy)]
enum What {
    Records,
    Conflicts,
    Hints(NodeId),
}

/// Takes steps until one finds nothing; each begins behind the last key of the one before. A refusal for want
/// of room is a pause.
async fn remove_all(
    node: &Node,
    what: What,
    slice: Slice,
    run: (u64, u64),
    pace: &mut Pace,
) -> Result<(), Failure> {
    let replica = &node.replica;
    let mut after: Option<Bytes> = None;
    loop {
        let (began, behind) = (Instant::now(), after.as_ref());
        let deadline = began + limits::BACKGROUND_READ;
        let step = match what {
            What::Records => replica.remove_records(slice, run, behind, deadline).await,
            What::Conflicts => replica.remove_conflicts(slice, run, behind, deadline).await,
            What::Hints(target) => replica.remove_hints(target, slice, run, behind, deadline).await,
        };
        let Removed { bytes, last } = match step {
            Err(failure) if failure.reason == Reason::Overloaded => {
                sleep(limits::REMOVAL_PAUSE).await;
                continue;
            }
            step => step?,
        };
        if last.is_none() {
            // Others on this worker have their turn.
            tokio::task::yield_now().await;
            return Ok(());
        }
        after = last;
        pace.rest(began.elapsed(), bytes).await;
    }
}

/// Keeps to [`limits::REMOVED_PER_SECOND`], and rests.
struct Pace {
    begun: Instant,
    bytes: u64,
}

impl Pace {
    /// After a step that took so long and removed so much.
    async fn rest(&mut self, took: Duration, bytes: u64) {
        self.bytes += bytes;
        let due = Duration::from_millis(self.bytes.saturating_mul(1_000) / limits::REMOVED_PER_SECOND);
        let rest = took.saturating_mul(limits::REMOVAL_REST);
        sleep(due.saturating_sub(self.begun.elapsed()).max(rest)).await;
    }
}
