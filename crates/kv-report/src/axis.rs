//! The time axis that all drawings of a report share, and what stands behind every one of them: the bands of
//! the faults.

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::model::{Fault, Report};

/// Width of every drawing; the file scales it.
pub(super) const WIDTH: f64 = 1120.0;
/// Room for the names of the rows.
pub(super) const LEFT: f64 = 118.0;
/// Room at the right end.
pub(super) const RIGHT: f64 = 14.0;
/// Room for the axis and its words, below a drawing.
pub(super) const FOOT: f64 = 30.0;
/// A second.
pub(super) const SECOND: u64 = 1_000_000_000;
/// Steps between two words of the axis, in seconds: the first that leaves them room.
const STEPS: [u64; 12] = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 3_600];
/// Room that the words of the axis need.
const TICK_ROOM: f64 = 62.0;
/// Strips of faults that are drawn one below the other; further kinds share the last.
const MOST_STRIPS: usize = 12;

/// From a moment to its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Axis {
    /// As wide as the report says, or as its operations are.
    pub(super) fn of(report: &Report) -> Self {
        let last = || report.points.iter().map(|point| point.at + 1).max().unwrap_or(SECOND);
        let to = if report.to > report.from { report.to } else { last() };
        Self { from: report.from, to: to.max(report.from + 1) }
    }

    /// Whether a moment is drawn.
    pub(super) fn shows(&self, moment: u64) -> bool {
        (self.from..self.to).contains(&moment)
    }

    /// Where a moment is; what lies outside is at the edge.
    pub(super) fn x(&self, moment: u64) -> f64 {
        let part = moment.saturating_sub(self.from) as f64 / (self.to - self.from) as f64;
        LEFT + part.min(1.0) * (WIDTH - LEFT - RIGHT)
    }

    /// Lines and words of the axis, at this height.
    pub(super) fn draw(&self, y: f64) -> Markup {
        let room = |step: u64| {
            (WIDTH - LEFT - RIGHT) * (step * SECOND) as f64 / (self.to - self.from) as f64 >= TICK_ROOM
        };
        let step = STEPS.into_iter().find(|step| room(*step)).unwrap_or(7_200) * SECOND;
        let ticks = (0..).map(|at| self.from + at * step).take_while(|moment| *moment <= self.to);
        html! {
            line class="grid" x1=(LEFT) x2=(WIDTH - RIGHT) y1=(px(y)) y2=(px(y)) {}
            @for (tick, x) in ticks.map(|moment| ((moment - self.from) / SECOND, self.x(moment))) {
                line class="grid" x1=(px(x)) x2=(px(x)) y1=(px(y)) y2=(px(y + 5.0)) {}
                text class="soft" x=(px(x)) y=(px(y + 19.0)) text-anchor=(if x > WIDTH - 40.0 { "end" } else { "middle" }) {
                    (tick) " s"
                }
            }
        }
    }

    /// The bands of all faults, and the lines where they begin and end.
    pub(super) fn bands(&self, report: &Report, top: f64, bottom: f64) -> Markup {
        html! {
            @for fault in report.faults.iter().filter(|fault| fault.to > self.from && fault.from < self.to) {
                @let (left, right) = (self.x(fault.from), self.x(fault.to));
                rect class="band" x=(px(left)) y=(px(top)) width=(px((right - left).max(0.5))) height=(px(bottom - top)) {}
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

/// A length, short.
pub(super) fn px(length: f64) -> String {
    let text = format!("{length:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// About how wide a text is, in the drawings' font.
pub(super) fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * 6.35
}

/// Nanoseconds in words: "0.4 ms", "12 ms", "3.20 s".
pub(super) fn duration(ns: u64) -> String {
    match ns {
        0..10_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

/// A share in words, which is only 0 % or 100 % if it is.
pub(super) fn percent(share: f64) -> String {
    match share {
        0.0 => "0 %".into(),
        1.0 => "100 %".into(),
        _ if share < 0.001 => "< 0.1 %".into(),
        _ if share > 0.999 => "> 99.9 %".into(),
        _ => format!("{:.1} %", share * 100.0),
    }
}

/// A number with its thousands apart.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let (head, tail) = digits.split_at(first);
    let groups = tail.as_bytes().chunks(3).map(String::from_utf8_lossy);
    let head = (!head.is_empty()).then(|| head.into());
    head.into_iter().chain(groups).collect::<Vec<std::borrow::Cow<'_, str>>>().join("\u{202f}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_not_rounded_to_certainty() {
        assert_eq!(
            [0.0, 0.0001, 0.5, 0.9999, 1.0].map(percent),
            ["0 %", "< 0.1 %", "50.0 %", "> 99.9 %", "100 %"]
        );
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(grouped),
            ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
    }

    #[test]
    fn kinds_beyond_the_limit_share_a_strip() {
        let fault = |kind: usize| Fault {
            from: 0,
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
