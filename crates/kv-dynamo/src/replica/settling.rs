//! What of a ring partition is in the log and not durable yet. A record that is shown speaks for its row and
//! for the node clock that it is filled with, so both must be durable. The clock moves with every write of
//! any key; a reader of one key would wait for all of them. So a record may be shown with the part of the
//! clock that is durable: that is the clock of an earlier moment, at which the row was what it is now.

use std::collections::VecDeque;

use kv_storage::Position;
use kv_types::causal::{Dot, DotSet};

/// The changes of a ring partition by their positions in the log, as far as they matter to readers.
#[derive(Debug, Clone, Default)]
pub(super) struct Settling {
    /// The last change of a record or of the clock.
    changed: Position,
    /// The last change that took a row away: nothing else says where that stands in the log.
    gone: Position,
    /// The last change of what came from a pull, of which single dots are not listed.
    learned: Position,
    /// Dots of the clock that may not be durable yet, in the order of their positions. As many as there are
    /// writes between two syncs of the log.
    dots: VecDeque<(Position, Dot)>,
}

impl Settling {
    /// The last change.
    pub(super) fn changed(&self) -> Position {
        self.changed
    }

    /// A change was committed that brought these dots. `gone`: its key has no row now.
    pub(super) fn change(
        &mut self,
        position: Position,
        gone: bool,
        new: impl IntoIterator<Item = Dot>,
        is_durable: impl Fn(Position) -> bool,
    ) {
        self.changed = position;
        if gone {
            self.gone = position;
        }
        while self.dots.front().is_some_and(|(first, _)| is_durable(*first)) {
            self.dots.pop_front();
        }
        self.dots.extend(new.into_iter().map(|dot| (position, dot)));
    }

    /// A change by a pull was committed.
    pub(super) fn learn(&mut self, position: Position) {
        self.changed = position;
        self.learned = position;
    }

    /// What must be durable before a row of that position, or none, is shown with what is settled.
    pub(super) fn needed_by(&self, row: Option<Position>) -> Position {
        row.unwrap_or(self.gone).max(self.learned)
    }

    /// The dots that are not durable.
    pub(super) fn unsettled(&self, is_durable: impl Fn(Position) -> bool) -> DotSet {
        let settled = self.dots.partition_point(|(position, _)| is_durable(*position));
        self.dots.range(settled..).map(|(_, dot)| *dot).collect()
    }
}

#[cfg(test)]
mod tests {
    use kv_types::Incarnation;

    use super::*;

    fn dot(counter: u64) -> Dot {
        Dot { incarnation: Incarnation(1), counter }
    }

    #[test]
    fn what_is_durable_is_shown_and_nothing_else() {
        let mut settling = Settling::default();
        let durable = |to: u64| move |position: Position| position.0 <= to;
        assert_eq!(settling.needed_by(None), Position::DURABLE, "there never was a row");
        settling.change(Position(3), false, [dot(1)], durable(0));
        settling.change(Position(5), true, [dot(2), dot(3)], durable(0));
        settling.change(Position(7), false, [], durable(0));
        assert_eq!(settling.changed(), Position(7));
        assert_eq!(
            (settling.needed_by(None), settling.needed_by(Some(Position(3)))),
            (Position(5), Position(3))
        );
        assert_eq!(settling.unsettled(durable(0)), [dot(1), dot(2), dot(3)].into_iter().collect());
        assert_eq!(settling.unsettled(durable(4)), [dot(2), dot(3)].into_iter().collect());
        assert!(settling.unsettled(durable(5)).is_empty());
        settling.change(Position(9), false, [dot(4)], durable(5));
        assert_eq!(settling.dots.len(), 1, "what is durable is forgotten");
        settling.learn(Position(11));
        assert_eq!(settling.needed_by(Some(Position(3))), Position(11));
        assert_eq!(settling.changed(), Position(11));
    }
}
