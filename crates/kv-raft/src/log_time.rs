//! The time of a group, as its log tells it: a value that every member computes alike from the commands.
//!
//! A command carries the wall clock of the leader that proposed it. Two things are made of that:
//!
//! - **Log time** moves by what passes on the clock of one leader within its term, at most [`LOG_TIME_STEP`]
//!   a command. A new leader only begins to count: how far its clock is from the last one's does not matter,
//!   so a clock that is an hour ahead moves nothing by an hour. Log time decides when something is idle or
//!   over. While nothing is proposed, and between two leaders, it may stand still: what it ends, ends later,
//!   never earlier.
//! - The **latest wall clock** is the latest one that any command carried. It is compared with the clocks of
//!   clients. A leader whose clock is behind moves it nowhere; one whose clock is ahead can move it beyond
//!   true time.

use bytes::BufMut;

use crate::codec::{CodecError, Reader};
use crate::limits::LOG_TIME_STEP;

/// Both times of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LogTime {
    now: u64,
    /// The term of the last command.
    term: u64,
    /// The latest wall clock of that term's leader.
    wall: u64,
    latest: u64,
}

impl LogTime {
    /// Takes a command into account.
    pub(crate) fn advance(&mut self, term: u64, proposed_at_ms: u64) {
        let before = *self;
        if term == self.term {
            // Of one leader's commands the order in the log is not exactly that of its clock.
            self.now = self.now.saturating_add(proposed_at_ms.saturating_sub(self.wall).min(step_ms()));
            self.wall = self.wall.max(proposed_at_ms);
        } else {
            (self.term, self.wall) = (term, proposed_at_ms);
        }
        self.latest = self.latest.max(proposed_at_ms);
        assert!(self.now >= before.now && self.latest >= before.latest, "the time of a log never goes back");
        assert!(self.now - before.now <= step_ms(), "a command moves log time by one step at most");
    }

    /// Log time, milliseconds since the group began.
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    /// The latest wall clock of any leader, milliseconds since 1970.
    pub(crate) fn latest(&self) -> u64 {
        self.latest
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let Self { now, term, wall, latest } = *self;
        [now, term, wall, latest].into_iter().for_each(|number| out.put_u64(number));
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, CodecError> {
        let time =
            Self { now: reader.u64()?, term: reader.u64()?, wall: reader.u64()?, latest: reader.u64()? };
        if time.wall > time.latest {
            return Err(reader.invalid("a leader's clock is later than the latest one"));
        }
        Ok(time)
    }
}

fn step_ms() -> u64 {
    u64::try_from(LOG_TIME_STEP.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn it_counts_what_passes_on_one_leaders_clock() {
        let mut time = LogTime::default();
        time.advance(1, 1_000_000);
        assert_eq!((time.now(), time.latest()), (0, 1_000_000));
        // The log's order is not quite that of the clock: nothing is counted twice.
        for wall in [1_000_010, 1_000_007, 1_000_009, 1_000_012, 1_000_008, 1_000_012] {
            time.advance(1, wall);
        }
        assert_eq!((time.now(), time.latest()), (12, 1_000_012));
    }

    #[test]
    fn a_leader_an_hour_ahead_or_behind_moves_it_nowhere() {
        let mut time = LogTime::default();
        time.advance(1, HOUR);
        time.advance(2, 2 * HOUR);
        assert_eq!((time.now(), time.latest()), (0, 2 * HOUR));
        time.advance(2, 2 * HOUR + 5);
        time.advance(3, 7);
        time.advance(3, 9);
        assert_eq!((time.now(), time.latest()), (7, 2 * HOUR + 5));
    }

    #[test]
    fn a_clock_that_leaps_moves_it_by_one_step() {
        let mut time = LogTime::default();
        time.advance(1, 1);
        time.advance(1, 1 + step_ms());
        assert_eq!(time.now(), step_ms(), "at the bound");
        time.advance(1, 2 + 2 * step_ms());
        assert_eq!(time.now(), 2 * step_ms(), "beyond it");
        time.advance(1, u64::MAX);
        assert_eq!(time.now(), 3 * step_ms());
        // It is set right again: log time waits for it, or for another leader.
        time.advance(1, HOUR);
        assert_eq!(time.now(), 3 * step_ms());
    }
}
