//! The time axis that all drawings of a report share, and what stands behind every one of them: the bands of
//! the faults.

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::labels::{Anchor, Board, Label, Style};
use crate::model::{Fault, Report};
use crate::words::px;

/// Width of every drawing; the page scales it.
pub(super) const WIDTH: f64 = 1120.0;
/// Room for the names of the rows.
pub(super) const LEFT: f64 = 118.0;
/// Room at the right end.
pub(super) const RIGHT: f64 = 14.0;
/// Room for the axis and its words, below a drawing.
pub(super) const FOOT: f64 = 30.0;
/// A second.
pub(super) const SECOND: u64 = 1_000_000_000;
/// Width of a drawing for a narrow screen, and its room at both ends: names of rows are short there.
pub(super) const NARROW: f64 = 430.0;
const NARROW_LEFT: f64 = 34.0;
const NARROW_RIGHT: f64 = 8.0;
/// Steps between two words of the axis, in seconds: the first that leaves them room, or else so many hours.
const STEPS: [u64; 12] = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, HOUR];
const HOUR: u64 = 3_600;
/// Room that the words of the axis need.
const TICK_ROOM: f64 = 62.0;
/// More words than any drawing has room for.
const MOST_TICKS: usize = 64;
/// Strips of faults that are drawn one below the other; further kinds share the last.
const MOST_STRIPS: usize = 12;

/// From a moment to its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub(super) from: u64,
    pub(super) to: u64,
    /// Width of the drawing.
    pub(super) width: f64,
    /// Where the axis begins and ends in it.
    pub(super) left: f64,
    pub(super) right: f64,
}

impl Axis {
    /// As long as the report says, or as its operations are.
    pub(super) fn of(report: &Report) -> Self {
        let last = || report.points.iter().map(|point| point.at + 1).max().unwrap_or(SECOND);
        let to = if report.to > report.from { report.to } else { last() };
        let to = to.max(report.from + 1);
        Self { from: report.from, to, width: WIDTH, left: LEFT, right: WIDTH - RIGHT }
    }

    /// The same for a narrow screen.
    pub(super) fn narrow(report: &Report) -> Self {
        Self { width: NARROW, left: NARROW_LEFT, right: NARROW - NARROW_RIGHT, ..Self::of(report) }
    }

    /// Whether a moment is drawn.
    pub(super) fn shows(&self, moment: u64) -> bool {
        (self.from..self.to).contains(&moment)
    }

    /// Where a moment is; what lies outside is at the edge.
    pub(super) fn x(&self, moment: u64) -> f64 {
        let part = moment.saturating_sub(self.from) as f64 / (self.to - self.from) as f64;
        self.left + part.min(1.0) * (self.right - self.left)
    }

    /// A span that a drawing shows, as its left and its right end.
    pub(super) fn span(&self, from: u64, to: u64) -> Option<(f64, f64)> {
        (to > self.from && from < self.to).then(|| (self.x(from), self.x(to)))
    }

    /// Seconds between two words.
    fn step(&self) -> u64 {
        let wide = TICK_ROOM / (self.right - self.left) * (self.to - self.from) as f64 / SECOND as f64;
        let hours = || (wide / HOUR as f64).ceil().max(1.0) as u64 * HOUR;
        STEPS.into_iter().find(|step| *step as f64 >= wide).unwrap_or_else(hours)
    }

    /// The words of the axis at this height: (seconds, place).
    fn ticks(&self) -> impl Iterator<Item = (u64, f64)> + '_ {
        let step = self.step();
        let seconds = (0..).map(move |at| at * step);
        let ticks = seconds.map(|second| (second, self.from.saturating_add(second.saturating_mul(SECOND))));
        let ticks = ticks.take_while(|(_, moment)| *moment <= self.to).take(MOST_TICKS);
        ticks.map(|(second, moment)| (second, self.x(moment)))
    }

    /// Lines of the axis, at this height, and its words.
    pub(super) fn draw(&self, y: f64, words: &mut Board) -> Markup {
        for (second, x) in self.ticks() {
            let label = Label::new(Style::Soft, format!("{second} s"), x, y + 19.0, Anchor::Middle);
            words.put([label.between(0.0, self.width)]);
        }
        html! {
            line class="grid" x1=(px(self.left)) x2=(px(self.right)) y1=(px(y)) y2=(px(y)) {}
            @for (_, x) in self.ticks() {
                line class="grid" x1=(px(x)) x2=(px(x)) y1=(px(y)) y2=(px(y + 5.0)) {}
            }
        }
    }

    /// The bands of all faults, and the lines where they begin and end. No words stand here.
    pub(super) fn bands(&self, report: &Report, top: f64, bottom: f64) -> Markup {
        html! {
            (self.shades(report, top, bottom))
            @for (left, right) in report.faults.iter().filter_map(|fault| self.span(fault.from, fault.to)) {
                @for x in [left, right] {
                    line class="edge" x1=(px(x)) x2=(px(x)) y1=(px(top)) y2=(px(bottom)) {}
                }
            }
            @for mark in report.marks.iter().filter(|mark| self.shows(mark.at)) {
                @let x = self.x(mark.at);
                line class="mark" x1=(px(x)) x2=(px(x)) y1=(px(top)) y2=(px(bottom)) {}
            }
        }
    }

    /// The bands without lines, for where words stand.
    pub(super) fn shades(&self, report: &Report, top: f64, bottom: f64) -> Markup {
        html! {
            @for (left, right) in report.faults.iter().filter_map(|fault| self.span(fault.from, fault.to)) {
                rect class="band" x=(px(left)) y=(px(top)) width=(px((right - left).max(0.5))) height=(px(bottom - top)) {}
            }
        }
    }
}

/// Faults by kind, in the order in which the kinds came: a strip for each. Kinds beyond the limit share one.
pub(super) fn strips(report: &Report) -> Vec<(&str, Vec<&Fault>)> {
    let mut order: Vec<&str> = Vec::new();
    let mut kinds: BTreeMap<&str, Vec<&Fault>> = BTreeMap::new();
    for fault in &report.faults {
        let kind = if order.contains(&fault.kind.as_str()) || order.len() < MOST_STRIPS - 1 {
            fault.kind.as_str()
        } else {
            "others"
        };
        if !order.contains(&kind) {
            order.push(kind);
        }
        kinds.entry(kind).or_default().push(fault);
    }
    order.into_iter().map(|kind| (kind, kinds.remove(kind).unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_has_words_however_long_the_run_was() {
        for seconds in [1, 17, 90, 4_000, 90_000, 40_000_000, u64::MAX / SECOND] {
            let report = Report { to: seconds * SECOND, ..Report::default() };
            for axis in [Axis::of(&report), Axis::narrow(&report)] {
                let places: Vec<f64> = axis.ticks().map(|(_, x)| x).collect();
                assert!((2..=18).contains(&places.len()) || seconds == 1, "{seconds} s: {}", places.len());
                assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= TICK_ROOM - 0.1));
            }
        }
    }

    #[test]
    fn kinds_beyond_the_limit_share_a_strip() {
        let fault = |kind: usize| Fault {
            from: 0,
            until: 1,
            to: 1,
            kind: format!("kind {kind}"),
            what: String::new(),
            sides: BTreeMap::new(),
        };
        let report = Report { faults: (0..20).map(fault).collect(), ..Report::default() };
        let strips = strips(&report);
        assert_eq!(strips.len(), MOST_STRIPS);
        assert_eq!(strips.iter().map(|(_, faults)| faults.len()).sum::<usize>(), 20);
    }
}
