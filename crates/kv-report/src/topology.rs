//! Who sees whom, over time: circles of nodes with lines between those who see each other.

use maud::{Markup, html};

use crate::axis::Axis;
use crate::labels::{Anchor, Board, Label, Style};
use crate::model::{Leader, Report, Topology};
use crate::rows::seconds;
use crate::words::px;

/// Height of the drawing.
pub(super) const HEIGHT: f64 = 92.0;
/// Half the height of a circle of nodes, half its width, and the radius of a node.
const CIRCLE: f64 = 26.0;
const WIDE: f64 = CIRCLE * 1.25;
const NODE: f64 = 8.5;
/// Between two circles, or their words.
const APART: f64 = 10.0;

/// A span of time, and where its circle stands.
struct Circle<'a> {
    span: &'a Topology,
    words: String,
    middle: f64,
}

/// The circles, at the middle of their spans, wherever there is room for one and its words.
pub(super) fn draw(report: &Report, axis: Axis, y: f64, board: &mut Board) -> Markup {
    let circles = circles(report, axis);
    html! { @for circle in &circles { (one(report, circle, axis, y, board)) } }
}

fn circles(report: &Report, axis: Axis) -> Vec<Circle<'_>> {
    let mut end = axis.left - APART;
    let mut circles = Vec::new();
    for span in &report.topology {
        let Some((left, right)) = axis.span(span.from, span.to) else { continue };
        let words = span.words(&report.nodes);
        let half = (Style::Soft.font().width(&words) / 2.0).max(WIDE + NODE);
        let (first, last) = (axis.left + half, axis.right - half);
        if first > last {
            continue;
        }
        let middle = ((left + right) / 2.0).clamp(first, last);
        if middle - half >= end + APART {
            end = middle + half;
            circles.push(Circle { span, words, middle });
        }
    }
    circles
}

fn one(report: &Report, circle: &Circle<'_>, axis: Axis, y: f64, board: &mut Board) -> Markup {
    let Circle { span, words, middle } = circle;
    let center = y + CIRCLE + NODE + 2.0;
    let count = report.nodes.len().max(1) as f64;
    let place = |at: usize| {
        // The first node at the upper left, so that a minority of the first two stands on one side.
        let turn = std::f64::consts::TAU * (at as f64 / count) - std::f64::consts::PI * 0.9;
        (middle + WIDE * turn.cos(), center + CIRCLE * turn.sin())
    };
    let leaders = leading(report, span);
    let nodes = report.nodes.iter().enumerate();
    let pairs: Vec<_> = nodes
        .clone()
        .flat_map(|(at, a)| report.nodes.iter().enumerate().skip(at + 1).map(move |b| ((at, a), b)))
        .filter(|((_, a), (_, b))| span.sees(a, b) || span.sees(b, a))
        .collect();
    for (at, node) in nodes.clone() {
        let (x, y) = place(at);
        let leads = leaders.contains(&node.as_str()) && !span.down.contains(node);
        let style = if leads { Style::Leads } else { Style::Number };
        let number = style.font().fit(node.trim_start_matches('n'), 2.0 * NODE);
        board.put_at(style, number, x, y + 3.6, Anchor::Middle);
    }
    let below = center + CIRCLE + NODE + 14.0;
    board.put([Label::new(Style::Soft, words, *middle, below, Anchor::Middle)]);
    html! {
        g {
            title { (words) ", " (seconds(span.from, axis)) " to " (seconds(span.to, axis)) }
            @for ((at, a), (to, b)) in &pairs {
                @let ((x1, y1), (x2, y2)) = (place(*at), place(*to));
                @let class = if span.sees(a, b) && span.sees(b, a) { "link" } else { "link oneway" };
                line class=(class) x1=(px(x1)) y1=(px(y1)) x2=(px(x2)) y2=(px(y2)) {}
            }
            @for (at, node) in nodes {
                @let (x, y) = place(at);
                @let leads = leaders.contains(&node.as_str());
                @let class = if span.down.contains(node) { "node down" } else if leads { "node leads" } else { "node" };
                circle class=(class) cx=(px(x)) cy=(px(y)) r=(NODE) {}
            }
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
