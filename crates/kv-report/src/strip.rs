//! The CAP strip: a row for every node of every namespace, all on one time axis, with who sees whom above
//! them. The one drawing from which a stranger is to read off what each mode does in a network partition.

use std::fmt::Write;

use maud::{Markup, PreEscaped, html};

use crate::axis::{Axis, FOOT, LEFT, RIGHT, SECOND, WIDTH, px, strips, width_of};
use crate::model::{Answer, Leader, Mark, Namespace, Report, Topology};
use crate::sides::{self, Reading, Tally};

/// The shortest span of a cell.
const CELL: u64 = SECOND / 4;
/// Cells of a row: longer runs have longer cells, or the file would grow with them.
const MOST_CELLS: u64 = 260;
/// Height of a row, and of its cells.
const ROW: f64 = 21.0;
const BAR: f64 = 17.0;
/// The least height of a part of a cell that is not empty: rare things are seen.
const LEAST: f64 = 4.0;
/// Lanes of the words of marks, and heights: of a lane, of all, of a strip of
/// faults, of the lane of topologies, and of a line of words.
const LANES: usize = 2;
const LANE: f64 = 15.0;
const MARKS: f64 = 34.0;
const STRIP: f64 = 19.0;
const GLYPHS: f64 = 92.0;
const LINE: f64 = 18.0;
/// Radius of a topology's circle, and of a node in it.
const CIRCLE: f64 = 26.0;
const NODE: f64 = 8.5;
/// Room for the key, and around the drawing, when it stands alone.
const KEY: f64 = 26.0;
const EDGE: f64 = 14.0;
/// Least distance between two topologies.
const APART: f64 = 78.0;

/// The drawing. `alone`: as a file of its own, with its styles in it.
pub(super) fn draw(report: &Report, alone: Option<&str>) -> Markup {
    let axis = Axis::of(report);
    let strips = strips(report);
    let main = sides::main_fault(report);
    let mut y = MARKS;
    let strips_at = y;
    y += strips.len() as f64 * STRIP + 4.0;
    let glyphs_at = y;
    if !report.topology.is_empty() {
        y += GLYPHS;
    }
    let top = strips_at;
    let mut blocks = Vec::new();
    for ns in &report.namespaces {
        let readings = main.map(|fault| sides::readings(report, ns, fault)).unwrap_or_default();
        let sum = sides::sum(report, ns, &readings);
        let lines = readings.len() + usize::from(sum.is_some());
        let head = lines.max(2) as f64 * LINE + 8.0;
        blocks.push((ns, (readings, sum), y, y + head));
        y += head + report.nodes.len() as f64 * ROW + 10.0;
    }
    let bottom = y;
    let height = bottom + FOOT + if alone.is_some() { KEY } else { 0.0 };
    let edge = if alone.is_some() { EDGE } else { 0.0 };
    let xmlns = alone.map(|_| "http://www.w3.org/2000/svg");
    html! {
        svg.strip xmlns=[xmlns] viewBox=(format!("-{edge} -{edge} {} {}", WIDTH + 2.0 * edge, px(height + 2.0 * edge))) role="img" aria-labelledby="strip-title strip-words" {
            title #strip-title { "The CAP strip of " (report.scenario) }
            desc #strip-words { (words(report)) }
            @if let Some(style) = alone {
                style { (PreEscaped(style)) }
                rect.paper x=(-edge) y=(-edge) width="100%" height="100%" rx="10" {}
            }
            defs {
                pattern #hatch width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                    rect.hatching width="2.2" height="5" {}
                }
            }
            (axis.bands(report, top, bottom))
            (marks(report, axis))
            @for (at, (kind, faults)) in strips.iter().enumerate() {
                @let y = strips_at + at as f64 * STRIP;
                text.soft x="0" y=(px(y + 13.0)) { (kind) }
                @for fault in faults.iter().filter(|fault| fault.to > axis.from && fault.from < axis.to) {
                    @let (left, right) = (axis.x(fault.from), axis.x(fault.to));
                    g {
                        title { (fault.kind) ": " (fault.what) ", " (seconds(fault.from, axis)) " to " (seconds(fault.to, axis)) }
                        rect.fault x=(px(left)) y=(px(y)) width=(px((right - left).max(2.0))) height=(px(STRIP - 4.0)) rx="3" {}
                        @if right - left > width_of(&fault.what) + 8.0 {
                            text.onfault x=(px((left + right) / 2.0)) y=(px(y + 11.8)) text-anchor="middle" { (fault.what) }
                        }
                    }
                }
            }
            @if !report.topology.is_empty() {
                text.soft x="0" y=(px(glyphs_at + 34.0)) { "who sees" }
                text.soft x="0" y=(px(glyphs_at + 49.0)) { "whom" }
                (topologies(report, axis, glyphs_at))
            }
            @for (ns, says, head, rows) in &blocks {
                (block(report, axis, ns, says, main.map(|fault| fault.from), *head, *rows))
            }
            (axis.draw(bottom))
            @if alone.is_some() { (key(bottom + FOOT + 8.0)) }
        }
    }
}

/// What the cells mean, for the drawing that stands alone; the page has its own.
fn key(y: f64) -> Markup {
    let words = [
        (Some(Answer::Answered), "answered"),
        (None, "answered with a stale read"),
        (Some(Answer::Refused), "refused: not applied"),
        (Some(Answer::Unknown), "outcome unknown"),
    ];
    let mut x = LEFT;
    let mut places = Vec::new();
    for (answer, text) in words {
        places.push((answer, text, x));
        x += width_of(text) + 50.0;
    }
    html! {
        @for (answer, text, x) in places {
            (swatch(answer.unwrap_or(Answer::Answered), x, y))
            @if answer.is_none() { rect fill="url(#hatch)" x=(px(x)) y=(px(y)) width="11" height="11" rx="2" {} }
            text.soft x=(px(x + 17.0)) y=(px(y + 10.0)) { (text) }
        }
        text.soft x=(px(x)) y=(px(y + 10.0)) { "\u{2605} leads; the shaded time is a fault" }
    }
}

/// What is drawn, for those who do not see it.
fn words(report: &Report) -> String {
    let mut words = String::from(
        "Rows are nodes by namespace, the axis is time. A full cell was answered, a cell with a bar was refused, a cell with a dot is of unknown outcome, a hatched cell served stale reads.",
    );
    if let Some(fault) = sides::main_fault(report) {
        for ns in &report.namespaces {
            // The same words as in the drawing.
            for reading in sides::readings(report, ns, fault) {
                let _ = write!(words, " {} on {}: {}.", ns.name, reading.nodes.join(","), reading.words);
            }
        }
    }
    words
}

/// The words of the marks: in the first lane with room for them, to the right of their line or else to its
/// left.
fn marks(report: &Report, axis: Axis) -> Markup {
    let shown: Vec<_> = report.marks.iter().filter(|mark| axis.shows(mark.at)).collect();
    let mut placed: Vec<(usize, f64, f64)> = Vec::new();
    let mut texts = Vec::new();
    // From the last to the first, so that a line which words are to the right of comes after them.
    for mark in shown.iter().rev() {
        let (x, width) = (axis.x(mark.at), width_of(&mark.what) * 1.06);
        let choices = (0..LANES).flat_map(|lane| [(lane, x + 5.0, "start"), (lane, x - 5.0 - width, "end")]);
        let free = |lane: usize, left: f64| {
            let apart = |(other, from, to): &(usize, f64, f64)| {
                *other != lane || left > to + 6.0 || left + width < from - 6.0
            };
            left >= 0.0 && left + width <= WIDTH && placed.iter().all(apart)
        };
        if let Some((lane, left, anchor)) = choices.into_iter().find(|(lane, left, _)| free(*lane, *left)) {
            placed.push((lane, left, left + width));
            texts.push((if anchor == "start" { left } else { left + width }, lane, anchor, mark));
        }
    }
    // Each line ends at its words.
    let top = |mark: &Mark| {
        let lane = texts.iter().find(|(.., other)| ***other == *mark).map_or(LANES, |(_, lane, ..)| *lane);
        lane as f64 * LANE
    };
    html! {
        @for mark in &shown { path.flag d=(format!("M{} {}V{MARKS}", px(axis.x(mark.at)), px(top(mark)))) {} }
        @for (x, lane, anchor, mark) in texts {
            g {
                title { (mark.what) ", " (seconds(mark.at, axis)) }
                text.marked x=(px(x)) y=(px(11.0 + lane as f64 * LANE)) text-anchor=(anchor) { (mark.what) }
            }
        }
    }
}

/// Topologies, as circles of nodes with lines between those who see each other, wherever there is room for
/// one.
fn topologies(report: &Report, axis: Axis, y: f64) -> Markup {
    let mut end = LEFT - APART;
    let mut drawn = Vec::new();
    for span in report.topology.iter().filter(|span| span.to > axis.from && span.from < axis.to) {
        let (left, right) = (axis.x(span.from), axis.x(span.to));
        let middle = ((left + right) / 2.0).clamp(LEFT + APART / 2.0, WIDTH - RIGHT - APART / 2.0);
        if middle - end >= APART {
            drawn.push((span, middle));
            end = middle;
        }
    }
    html! { @for (span, middle) in drawn { (topology(report, span, axis, middle, y)) } }
}

fn topology(report: &Report, span: &Topology, axis: Axis, middle: f64, y: f64) -> Markup {
    let count = report.nodes.len().max(1) as f64;
    let center = y + CIRCLE + NODE + 2.0;
    let place = |at: usize| {
        // The first node at the upper left, so that a minority of the first two stands on one side.
        let turn = std::f64::consts::TAU * (at as f64 / count) - std::f64::consts::PI * 0.9;
        (middle + CIRCLE * 1.25 * turn.cos(), center + CIRCLE * turn.sin())
    };
    let leaders: Vec<_> = leading(report, span);
    let pairs: Vec<_> = report
        .nodes
        .iter()
        .enumerate()
        .flat_map(|(at, a)| {
            report.nodes.iter().enumerate().skip(at + 1).map(move |(to, b)| ((at, a), (to, b)))
        })
        .collect();
    let words = span.words(&report.nodes);
    html! {
        g {
            title { (words) ", " (seconds(span.from, axis)) " to " (seconds(span.to, axis)) }
            @for ((at, a), (to, b)) in &pairs {
                @let (out, back) = (span.sees(a, b), span.sees(b, a));
                @if out || back {
                    @let ((x1, y1), (x2, y2)) = (place(*at), place(*to));
                    line class=(if out && back { "link" } else { "link oneway" }) x1=(px(x1)) y1=(px(y1)) x2=(px(x2)) y2=(px(y2)) {}
                }
            }
            @for (at, node) in report.nodes.iter().enumerate() {
                @let (x, y) = place(at);
                @let down = span.down.contains(node);
                @let leads = leaders.contains(&node.as_str());
                circle class=(if down { "node down" } else if leads { "node leads" } else { "node" }) cx=(px(x)) cy=(px(y)) r=(NODE) {}
                text class=(if leads && !down { "number leads" } else { "number" }) x=(px(x)) y=(px(y + 3.4)) text-anchor="middle" { (node.trim_start_matches('n')) }
            }
            text.soft x=(px(middle)) y=(px(center + CIRCLE + NODE + 13.0)) text-anchor="middle" { (words) }
        }
    }
}

/// Who led longest in this span, of each namespace.
fn leading<'a>(report: &'a Report, span: &Topology) -> Vec<&'a str> {
    let within = |leader: &Leader| leader.to.min(span.to).saturating_sub(leader.from.max(span.from));
    let mut names: Vec<&str> = report.leaders.iter().map(|leader| leader.ns.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let longest = |ns: &&str| {
        let mine = report.leaders.iter().filter(|leader| leader.ns == **ns && within(leader) > 0);
        mine.max_by_key(|leader| within(leader)).map(|leader| leader.node.as_str())
    };
    names.iter().filter_map(longest).collect()
}

/// One namespace: its name, what it did in words, and the rows of its nodes.
fn block(
    report: &Report,
    axis: Axis,
    ns: &Namespace,
    (readings, sum): &(Vec<Reading>, Option<String>),
    fault: Option<u64>,
    head: f64,
    rows: f64,
) -> Markup {
    let width = CELL.max((axis.to - axis.from).div_ceil(MOST_CELLS).next_multiple_of(CELL));
    let leads = |node: &str| {
        let mine =
            report.leaders.iter().filter(move |l| l.node == node && (l.ns.is_empty() || l.ns == ns.name));
        mine.filter(|leader| ns.strong && leader.to > axis.from && leader.from < axis.to).collect::<Vec<_>>()
    };
    // Words begin with the fault that they are about, or as early as they must to be complete.
    let place = |text: &str| {
        let wish = fault.map_or(LEFT, |from| axis.x(from)) + 5.0;
        wish.min(WIDTH - RIGHT - width_of(text) * 1.12 - 20.0).max(LEFT)
    };
    html! {
        text.name x="0" y=(px(head + LINE - 4.0)) { (ns.name) }
        text.soft x="0" y=(px(head + 2.0 * LINE - 6.0)) { (ns.mode()) ", " (ns.side()) }
        @if let Some(sum) = sum {
            @let x = place(&format!("=> {sum}"));
            text.sum x=(px(x)) y=(px(head + readings.len() as f64 * LINE + 13.0)) { "\u{21d2}  " (sum) }
        }
        @for (at, reading) in readings.iter().enumerate() {
            @let text = format!("{}  {}", reading.nodes.join(","), reading.words);
            @let x = place(&text);
            @let y = head + at as f64 * LINE + 2.0;
            (swatch(reading.mostly, x, y + 1.5))
            text.says x=(px(x + 16.0)) y=(px(y + 11.0)) { tspan.who { (reading.nodes.join(",")) } "  " (reading.words) }
        }
        @for (at, node) in report.nodes.iter().enumerate() {
            @let y = rows + at as f64 * ROW;
            text.soft x=(px(LEFT - 8.0)) y=(px(y + 13.0)) text-anchor="end" { (node) }
            (row(report, axis, ns, node, y, width))
            @for leader in leads(node) {
                @let (left, right) = (axis.x(leader.from), axis.x(leader.to));
                g {
                    title { (node) " leads " (ns.name) " from " (seconds(leader.from, axis)) " to " (seconds(leader.to, axis)) }
                    rect.leader x=(px(left)) y=(px(y + BAR - 0.5)) width=(px((right - left).max(1.0))) height="3" {}
                    text.star x=(px(left + 1.0)) y=(px(y + BAR - 3.5)) { "\u{2605}" }
                }
            }
        }
    }
}

/// A small cell, for words.
fn swatch(answer: Answer, x: f64, y: f64) -> Markup {
    let (class, sign) = match answer {
        Answer::Answered => ("ok", String::new()),
        Answer::Unknown => ("unknown", format!("M{} {}h0", px(x + 5.5), px(y + 5.5))),
        Answer::Refused => ("refused", format!("M{} {}h6", px(x + 2.5), px(y + 5.5))),
    };
    html! {
        rect class=(class) x=(px(x)) y=(px(y)) width="11" height="11" rx="2" {}
        path.sign d=(sign) {}
    }
}

/// What a row's cell counts.
#[derive(Clone, Copy, Default)]
struct Cell {
    tally: Tally,
    stale: u64,
}

/// The cells of one node: one path for each kind, so that the file stays small, and a title over each cell.
fn row(report: &Report, axis: Axis, ns: &Namespace, node: &str, y: f64, width: u64) -> Markup {
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
    let (mut ok, mut hatched, mut unknown, mut refused) =
        (String::new(), String::new(), String::new(), String::new());
    let (mut dots, mut bars, mut titles) = (String::new(), String::new(), String::new());
    for (at, cell) in (0..).zip(&cells) {
        let Tally { answered, unknown: unsure, refused: no } = cell.tally;
        if cell.tally.all() == 0 {
            continue;
        }
        let begin = axis.from + at * width;
        let (left, right) = (axis.x(begin), axis.x((begin + width).min(axis.to)));
        let wide = (right - left - 0.8).max(0.5);
        // A stale read was answered; it is counted when it was called, which may be one cell later than
        // planned.
        let stale = cell.stale.min(answered);
        let [fresh, old, unsure_high, no_high] = heights([answered - stale, stale, unsure, no]);
        let mut base = y + BAR;
        for (path, high) in
            [(&mut ok, fresh), (&mut hatched, old), (&mut unknown, unsure_high), (&mut refused, no_high)]
        {
            if high > 0.0 {
                base -= high;
                let _ = write!(path, "M{} {}h{}v{}h-{}z", px(left), px(base), px(wide), px(high), px(wide));
            }
        }
        let middle = left + wide / 2.0;
        if no_high >= 9.0 {
            let reach = (wide * 0.5).min(6.0);
            let _ = write!(bars, "M{} {}h{}", px(middle - reach / 2.0), px(y + no_high / 2.0), px(reach));
        }
        if unsure_high >= 5.0 {
            let _ = write!(dots, "M{} {}h0", px(middle), px(y + no_high + unsure_high / 2.0));
        }
        let mut words = format!("{} {node}, {}: {answered} answered", ns.name, seconds(begin, axis));
        for (number, what) in [(cell.stale, "stale"), (unsure, "unknown"), (no, "refused")] {
            if number > 0 {
                let _ = write!(words, ", {number} {what}");
            }
        }
        let hover = html! { rect x=(px(left)) width=(px(right - left)) { title { (words) } } };
        titles += &hover.into_string();
    }
    html! {
        path.ok d=(ok) {}
        path.ok d=(hatched) {}
        path fill="url(#hatch)" d=(hatched) {}
        path.unknown d=(unknown) {}
        path.refused d=(refused) {}
        path.sign d=(dots) {}
        path.sign d=(bars) {}
        g.hover transform=(format!("translate(0 {})", px(y))) { (PreEscaped(titles)) }
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

fn seconds(moment: u64, axis: Axis) -> String {
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
}
