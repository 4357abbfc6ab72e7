//! A directory that was put back to an older state lacks writes that it acknowledged. No write is lost by
//! what it mints: every start mints under an incarnation of its own, for nothing in a directory can prove
//! that it is the last state of it, and to ask others for one's highest dot misses those that only a hint or
//! a client has. But it would speak for keys of which it has forgotten something. It finds out from what
//! others return to it: a write of an earlier incarnation of this very directory that it does not know. Then
//! it serves nothing more, and its next start begins as an empty directory does, and pulls.

use std::sync::atomic::Ordering;

use kv_types::causal::{Dot, State};
use kv_types::limits::REQUEST_WINDOW;
use kv_types::{Failure, Incarnation, Reason};
use tokio::time::Instant;

use super::rows::{Rows, Stop, lock};
use super::{Partition, Replica};
use crate::layout::{INCARNATION, Slice, WHOLE};
use crate::limits;

/// The details of a refusal that name a dot which stands for two requests.
const INCARNATION_OF: &str = "reused_incarnation";
const COUNTER_OF: &str = "reused_counter";

/// The part of an incarnation that names the directory: all of its starts share it, from its beginning or
/// from when it was last known to have lost something. The rest is drawn at every start.
const DIRECTORY: u64 = 0xffff_ffff;

/// The incarnation of a start of a directory.
pub(super) fn incarnation_of(directory: Incarnation, drawn: u64) -> Incarnation {
    Incarnation((drawn & !DIRECTORY) | (directory.0 & DIRECTORY))
}

/// Whether two incarnations are starts of one directory.
pub(super) fn are_of_one(a: Incarnation, b: Incarnation) -> bool {
    (a.0 ^ b.0) & DIRECTORY == 0
}

impl Replica {
    /// Whether this directory turned out to have been put back to an older state. Nothing is minted then, and
    /// nothing spoken for, until the next start, which begins a new incarnation and pulls.
    pub(crate) fn is_put_back(&self) -> bool {
        self.put_back.load(Ordering::Acquire)
    }

    pub(super) fn refuse_put_back(&self) -> Result<(), Failure> {
        if !self.is_put_back() {
            return Ok(());
        }
        // Not STORAGE_FAILED: that leaves the fate of the request open, and it is not.
        let message = "the data directory was put back to an older state: restart this node, it then begins anew and pulls";
        Err(Failure::new(Reason::NotReady, message))
    }

    /// Lets the batch forget who this directory is, if it was put back: of these dots, which the clock did
    /// not have, one was minted by this directory for a ring partition that it keeps.
    pub(super) fn stage_put_back(
        &self,
        slice: Slice,
        unknown: impl IntoIterator<Item = Dot>,
        partition: &Partition,
        rows: &mut Rows<'_>,
    ) -> bool {
        let lost = |dot: &Dot| match dot.incarnation == self.incarnation {
            true => dot.counter > partition.counter,
            false => are_of_one(dot.incarnation, self.incarnation),
        };
        let lost = unknown.into_iter().find(lost);
        lost.inspect(|dot| self.stage_new_life(slice, *dot, rows)).is_some()
    }

    fn stage_new_life(&self, slice: Slice, dot: Dot, rows: &mut Rows<'_>) {
        rows.small_delete(WHOLE);
        rows.small_delete(INCARNATION);
        // At once, even should the batch be refused: then the same write comes again.
        if !self.put_back.swap(true, Ordering::AcqRel) {
            tracing::error!(
                ?slice,
                %dot,
                "another node knows a write of this directory that it has lost itself: it was put back to an older state; \
                 this node mints and serves nothing more until it is restarted and has pulled"
            );
        }
    }

    /// Refuses a state in which a dot stands for another request than it does here: its minter was put back
    /// to an older state and counts again from there. A merge would keep the value that is here, or nothing,
    /// and the other one would be acknowledged.
    ///
    /// The record here tells what its last dots stand for: only that is proof enough to name the dot, which
    /// stops its minter. Beyond that a dot that was applied here has its request in the dot log, in the same
    /// batch; that is asked for live values whose request is new enough to be there still, and one that is
    /// not there is refused without a name.
    pub(super) fn refuse_reuse(
        &self,
        incoming: &State,
        here: &State,
        partition: &Partition,
        rows: &Rows<'_>,
    ) -> Result<(), Failure> {
        let window = REQUEST_WINDOW.as_millis() as u64;
        // What was pulled may have come without its requests, and a client may have issued them by a clock
        // that is ahead by as much as the window.
        let since = (*lock(&self.proves_since_ms)).max(self.opened_ms).saturating_add(window);
        let provable = self.env.clock.wall_ms().saturating_sub(window).max(since).max(partition.forgotten_ms);
        for (dot, write) in incoming.writes.iter().filter(|(dot, _)| partition.clock.has(**dot)) {
            let message = || {
                format!(
                    "{dot} stands for another request here: the node that minted it was put back to an older state"
                )
            };
            match here.writes.get(dot) {
                Some(known) if known.request == write.request => {}
                Some(_) => {
                    let refused = Failure::new(Reason::InvalidRequest, message());
                    let refused = refused.with(INCARNATION_OF, dot.incarnation.0);
                    return Err(refused.with(COUNTER_OF, dot.counter));
                }
                None if !incoming.record.siblings.contains_key(dot) || write.issued_at_ms < provable => {}
                // A request that a client used for two keys stands under the first.
                None if rows.requests().get(write.request).is_some() => {}
                None => return Err(Failure::new(Reason::InvalidRequest, message())),
            }
        }
        Ok(())
    }

    /// What another node refused may tell that this directory was put back: see [`Self::refuse_reuse`].
    pub(crate) async fn learn_of_reuse(&self, slice: Slice, refusal: &Failure) {
        let number = |name| refusal.detail(name).and_then(|text| text.parse::<u64>().ok());
        let (Some(incarnation), Some(counter)) = (number(INCARNATION_OF), number(COUNTER_OF)) else { return };
        let written_down = self.storage.small_get(INCARNATION).is_none();
        let dot = Dot { incarnation: Incarnation(incarnation), counter };
        if !are_of_one(dot.incarnation, self.incarnation) || written_down {
            return;
        }
        let forget = |_: &mut Partition, rows: &mut Rows<'_>| {
            self.stage_new_life(slice, dot, rows);
            rows.commit(false).map_err(Stop::from)
        };
        let deadline = Instant::now() + limits::BACKGROUND_READ;
        if let Err(failure) = self.run(slice, deadline, forget).await {
            tracing::error!(%failure, "it cannot be written down that this directory was put back");
        }
    }
}
