//! What a broken promise looks like: the operations of the failing part on a time axis of their own, the
//! order that the checker tried, and what the nodes logged meanwhile.

use maud::{Markup, html};

use crate::axis::{LEFT, RIGHT, WIDTH};
use crate::labels::{Anchor, Label, Style};
use crate::model::{Answer, Failure, Report, Step};
use crate::tables::anchor;
use crate::words::{duration, px};

/// Height of an operation's row, and of its bar.
const ROW: f64 = 24.0;
const BAR: f64 = 17.0;
/// Room above the first row.
const TOP: f64 = 26.0;

pub(super) fn section(report: &Report) -> Markup {
    html! {
        @if report.failures.is_empty() {
            p.none {
                @if report.properties.iter().any(|p| p.ruling == kv_check::judge::Ruling::Invalid) || !report.reasons.is_empty() {
                    "No part of the history could be singled out; the reasons stand at the top."
                } @else { "Nothing broke." }
            }
        }
        @for part in &report.failures {
            h3 id=(anchor(&part.property, &part.ns)) { (part.ns) ", key " code { (part.key) } ": " (part.property) }
            p { "The smallest part of the history that breaks the promise: " (part.operations.iter().filter(|step| step.part).count()) " operations, drawn in full colour. "
                "No order of them that respects time explains the framed one. Pale ones happened to the same key meanwhile." }
            div.sheet { (timeline(part)) }
            @if !part.text.is_empty() { pre { (part.text) } }
            @if part.logs.is_empty() { p.none { "No log lines of that time." } }
            @else {
                details open { summary { "What the nodes logged meanwhile" }
                    div.sheet.logs { table {
                        thead { tr { th.number scope="col" { "time" } th scope="col" { "node" } th scope="col" { "line" } } }
                        tbody { @for line in &part.logs { tr { td.number { (format!("{:.4} s", line.at as f64 / 1e9)) } td { (line.node) } td { code { (line.text) } } } } }
                    } }
                }
            }
        }
    }
}

fn timeline(part: &Failure) -> Markup {
    let (first, last) = part.span();
    let from = first.saturating_sub((last - first) / 20);
    let to = last.max(first + 1) + (last - first) / 20;
    let x = |moment: u64| {
        let share = moment.saturating_sub(from) as f64 / (to - from).max(1) as f64;
        LEFT + share.min(1.0) * (WIDTH - LEFT - RIGHT)
    };
    let bottom = TOP + part.operations.len() as f64 * ROW;
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {}", px(bottom + 8.0))) role="img" {
            title { "Operations on " (part.key) " of " (part.ns) }
            desc { @for step in &part.operations { (step.what) " at " (step.node) ". " } }
            @for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
                @let moment = from + ((to - from) as f64 * share) as u64;
                @let anchor = if share == 0.0 { "start" } else if share == 1.0 { "end" } else { "middle" };
                line.grid x1=(px(x(moment))) x2=(px(x(moment))) y1="18" y2=(px(bottom)) {}
                text.soft x=(px(x(moment))) y="12" text-anchor=(anchor) { (format!("{:.4} s", moment as f64 / 1e9)) }
            }
            @for (at, step) in part.operations.iter().enumerate() { (bar(step, &x, TOP + at as f64 * ROW, to)) }
        }
    }
}

fn bar(step: &Step, x: &impl Fn(u64) -> f64, y: f64, to: u64) -> Markup {
    let (left, right) = (x(step.from), x(step.to.unwrap_or(to)));
    let wide = (right - left).max(5.0);
    let class = match step.answer {
        Answer::Answered => "ok",
        Answer::Unknown => "unknown",
        Answer::Refused => "refused",
    };
    let took = step.to.map_or_else(|| "never came back".into(), |to| duration(to.saturating_sub(step.from)));
    let name = Style::Soft.font().fit(&format!("{} p{}", step.node, step.process), LEFT - 8.0);
    let name = Label::new(Style::Soft, name, LEFT - 8.0, y + 12.5, Anchor::End);
    html! {
        g class=(if step.part { "step" } else { "step pale" }) {
            title { "#" (step.index) " process " (step.process) " at " (step.node) ": " (step.what) ", " (took) }
            (name.draw())
            rect class=(class) x=(px(left)) y=(px(y)) width=(px(wide)) height=(px(BAR)) rx="3" {}
            @if step.to.is_none() { path.open d=(format!("M{} {}l6 {}l-6 {}", px(left + wide - 4.0), px(y), px(BAR / 2.0), px(BAR / 2.0))) {} }
            @if step.culprit { rect.culprit x=(px(left - 2.5)) y=(px(y - 2.5)) width=(px(wide + 5.0)) height=(px(BAR + 5.0)) rx="5" {} }
            (what(&step.what, left, left + wide, y + 12.5).draw())
        }
    }
}

/// What an operation did: in its bar, else beside it where there is more room, cut to what there is.
fn what(text: &str, left: f64, right: f64, y: f64) -> Label {
    let (font, beside) = (Style::InBar.font(), 6.0);
    if font.width(text) + 2.0 * beside < right - left {
        return Label::new(Style::InBar, text, left + beside, y, Anchor::Start);
    }
    let (before, after) = (left - beside - LEFT, WIDTH - right - beside);
    if font.width(text) <= after || after >= before {
        Label::new(Style::Soft, font.fit(text, after), right + beside, y, Anchor::Start)
    } else {
        Label::new(Style::Soft, font.fit(text, before), left - beside, y, Anchor::End)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_an_operation_did_stays_in_its_row(
            from in LEFT..WIDTH - RIGHT,
            wide in 5.0..990.0_f64,
            text in "[a-z0-9 =]{0,120}",
        ) {
            let to = (from + wide).min(WIDTH - RIGHT).max(from + 5.0);
            let area = what(&text, from, to, 20.0).area;
            prop_assert!(area.left >= LEFT && area.right <= WIDTH + 1e-6, "{area:?}");
            let apart = area.right <= from || area.left >= to;
            prop_assert!(apart || from < area.left && area.right < to, "{area:?} across {from}..{to}");
        }
    }
}
