//! Gaps in a node clock: writes that this replica has not applied, though it has later ones of the same
//! incarnation. Each costs a range of the clock, and a record of which another node claims more stays ahead.

use kv_types::causal::primary::Change;
use kv_types::causal::{Dot, State, Write};
use kv_types::limits::MAX_CLOCK_RANGES;
use kv_types::{Failure, Reason};
use tokio::time::Instant;

use super::rows::Rows;
use super::{Partition, Replica};
use crate::layout::Slice;

impl Replica {
    /// Refuses what would leave more gaps in the clock than it may have: `OVERLOADED`, for a replica with so
    /// many has to learn first what it lacks.
    pub(super) fn refuse_gaps(&self, change: &Change, before: &Partition) -> Result<(), Failure> {
        if before.clock.dots().ranges().len() + change.new.len() <= MAX_CLOCK_RANGES {
            return Ok(());
        }
        // Each may take a range: the bound counts for all of them together.
        let mut clock = before.clock.clone();
        let has_room = |(dot, _): &(Dot, Write)| {
            let has_room = clock.has_room_for(*dot);
            clock.add(*dot);
            has_room
        };
        if change.new.iter().all(has_room) {
            return Ok(());
        }
        let message = "this replica lacks so many writes of the ring partition that it cannot list more: it first takes those";
        Err(Failure::new(Reason::Overloaded, message).retry_after_ms(1_000))
    }

    /// Takes note of writes of a namespace that was deleted, and keeps nothing else of them. Without them the
    /// clock would have a gap that nothing ever closes, and every record that another node fills with its own
    /// clock would stay ahead of this one. Their dots name nothing of another key.
    pub(crate) async fn pass_over(
        &self,
        slice: Slice,
        refused: &State,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let pass = |partition: &mut Partition, rows: &mut Rows<'_>| {
            let unknown = refused.applied().map(|(dot, _)| dot).filter(|dot| !partition.clock.has(*dot));
            let mut next = partition.clone();
            let mut new: Vec<Dot> = Vec::new();
            for dot in unknown {
                if next.clock.has_room_for(dot) {
                    next.clock.add(dot);
                    new.push(dot);
                }
            }
            if new.is_empty() {
                return Ok(());
            }
            self.stage_clock(slice, &mut next, rows);
            let put_back = self.stage_put_back(slice, new.iter().copied(), partition, rows);
            let position = rows.commit(!put_back)?;
            next.settling.change(position, false, new, |position| self.is_durable(position));
            *partition = next;
            Ok(())
        };
        self.run(slice, deadline, pass).await
    }
}
