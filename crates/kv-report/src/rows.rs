//! The rows of the strip: a node of a namespace each, every cell a short span of what its clients were told.

use std::fmt::Write;

use maud::{Markup, PreEscaped, html};

use crate::axis::{Axis, SECOND};
use crate::model::{Namespace, Report, Tally};
use crate::words::px;

/// The shortest span of a cell.
const CELL: u64 = SECOND / 4;
/// Cells of a row: longer runs have longer cells, or the file would grow with them.
const MOST_CELLS: u64 = 260;
/// Width below which cells are no longer told apart, and what is left free between two.
const NARROWEST: f64 = 3.5;
const GAP: f64 = 0.8;
/// Height of a cell.
pub(super) const BAR: f64 = 17.0;
/// The least height of a part of a cell that is not empty: rare things are seen.
const LEAST: f64 = 4.0;

/// What a row's cell counts.
#[derive(Clone, Copy, Default)]
struct Cell {
    tally: Tally,
    stale: u64,
}

/// How cells are drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// Nanoseconds of a cell.
    pub(super) width: u64,
    /// The name of the pattern of stale reads, of this drawing.
    pub(super) hatch: &'static str,
    /// Whether a cell says what it counts when it is pointed at.
    pub(super) titles: bool,
}

impl Look {
    /// Of cells as short as this axis has room for.
    pub(super) fn new(axis: Axis, hatch: &'static str, titles: bool) -> Self {
        let room = (axis.right - axis.left) / NARROWEST;
        let most = MOST_CELLS.min(room as u64).max(1);
        let width = CELL.max((axis.to - axis.from).div_ceil(most).div_ceil(CELL).saturating_mul(CELL));
        Self { width, hatch, titles }
    }
}

/// The cells of one node: one path for each kind, so that the file stays small, and a title over each cell.
pub(super) fn row(report: &Report, axis: Axis, ns: &Namespace, node: &str, y: f64, look: Look) -> Markup {
    let cells = cells(report, axis, ns, node, look.width);
    let mut paths = Paths::default();
    for (at, cell) in (0..).zip(&cells).filter(|(_, cell)| cell.tally.all() > 0) {
        let begin = axis.from + at * look.width;
        let (left, right) = (axis.x(begin), axis.x((begin + look.width).min(axis.to)));
        paths.draw(*cell, left, right, y);
        if look.titles {
            let words = cell.words(&ns.name, node, &seconds(begin, axis));
            let hover = html! { rect x=(px(left)) width=(px(right - left)) { title { (words) } } };
            paths.titles += &hover.into_string();
        }
    }
    let hatch = format!("url(#{})", look.hatch);
    html! {
        path.ok d=(paths.ok) {}
        path.ok d=(paths.hatched) {}
        path fill=(hatch) d=(paths.hatched) {}
        path.unknown d=(paths.unknown) {}
        path.refused d=(paths.refused) {}
        path.sign d=(paths.dots) {}
        path.sign d=(paths.bars) {}
        @if look.titles { g.hover transform=(format!("translate(0 {})", px(y))) { (PreEscaped(paths.titles)) } }
    }
}

/// What a node answered, cell by cell.
fn cells(report: &Report, axis: Axis, ns: &Namespace, node: &str, width: u64) -> Vec<Cell> {
    let count = (axis.to - axis.from).div_ceil(width);
    let mut cells = vec![Cell::default(); count as usize];
    let place = |at: u64| (at.saturating_sub(axis.from) / width) as usize;
    for point in report.points.iter().filter(|p| p.ns == ns.name && p.node == node && axis.shows(p.at)) {
        if let Some(cell) = cells.get_mut(place(point.at)) {
            cell.tally.add(point.answer);
        }
    }
    for stale in report.stale.iter().filter(|s| s.ns == ns.name && s.node == node && axis.shows(s.at)) {
        if let Some(cell) = cells.get_mut(place(stale.at)) {
            cell.stale += 1;
        }
    }
    cells
}

impl Cell {
    fn words(self, ns: &str, node: &str, begin: &str) -> String {
        let Tally { answered, unknown, refused } = self.tally;
        let mut words = format!("{ns} {node}, {begin}: {answered} answered");
        for (number, what) in [(self.stale, "stale"), (unknown, "unknown"), (refused, "refused")] {
            if number > 0 {
                let _ = write!(words, ", {number} {what}");
            }
        }
        words
    }
}

/// The shapes of a row, by what they mean.
#[derive(Default)]
struct Paths {
    ok: String,
    hatched: String,
    unknown: String,
    refused: String,
    dots: String,
    bars: String,
    titles: String,
}

impl Paths {
    fn draw(&mut self, cell: Cell, left: f64, right: f64, y: f64) {
        let Tally { answered, unknown, refused } = cell.tally;
        let gap = GAP.min((right - left) / 4.0);
        let wide = right - left - gap;
        // A stale read was answered; it is counted when it was called, which may be one cell later than
        // planned.
        let stale = cell.stale.min(answered);
        let [fresh, old, unsure, no] = heights([answered - stale, stale, unknown, refused]);
        let mut base = y + BAR;
        for (path, high) in [
            (&mut self.ok, fresh),
            (&mut self.hatched, old),
            (&mut self.unknown, unsure),
            (&mut self.refused, no),
        ] {
            if high > 0.0 {
                base -= high;
                let _ = write!(path, "M{} {}h{}v{}h-{}z", px(left), px(base), px(wide), px(high), px(wide));
            }
        }
        let middle = left + wide / 2.0;
        if no >= 9.0 {
            let reach = (wide * 0.5).min(6.0);
            let _ = write!(self.bars, "M{} {}h{}", px(middle - reach / 2.0), px(y + no / 2.0), px(reach));
        }
        if unsure >= 5.0 {
            let _ = write!(self.dots, "M{} {}h0", px(middle), px(y + no + unsure / 2.0));
        }
    }
}

/// Parts of a cell by their counts: as high as their share, but never too low to be seen.
fn heights(counts: [u64; 4]) -> [f64; 4] {
    let all: u64 = counts.iter().sum();
    let shares = counts.map(|count| match count {
        0 => 0.0,
        _ => (count as f64 / all.max(1) as f64 * BAR).max(LEAST),
    });
    let sum: f64 = shares.iter().sum();
    shares.map(|share| if sum > 0.0 { share * BAR / sum } else { 0.0 })
}

/// A moment of the axis in words.
pub(super) fn seconds(moment: u64, axis: Axis) -> String {
    format!("{:.2} s", moment.saturating_sub(axis.from) as f64 / SECOND as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_things_in_a_cell_are_seen_and_the_cell_keeps_its_height() {
        let parts = heights([999, 0, 1, 0]);
        assert!(parts[2] > 3.0 && parts[1] == 0.0);
        assert!((parts.iter().sum::<f64>() - BAR).abs() < 1e-9);
        assert_eq!(heights([0; 4]), [0.0; 4]);
    }

    #[test]
    fn cells_are_as_short_as_the_drawing_has_room_for() {
        let of = |seconds: u64| {
            let report = Report { to: seconds * SECOND, ..Report::default() };
            [Axis::of(&report), Axis::narrow(&report)].map(|axis| Look::new(axis, "hatch", true).width / CELL)
        };
        assert_eq!(of(17), [1, 1]);
        assert_eq!(of(60), [1, 3]);
        assert_eq!(of(600), [10, 22]);
    }
}
