//! Plots over time, one sheet for each namespace, on the axis of the strip and with the same bands:
//! latencies, rates, and what answering cost. Points go into one path for each outcome, which keeps ten
//! thousand of them within some hundred kilobytes; a plotting library writes an element for each and fixes
//! the colours, which then ignore a dark page.

use std::fmt::Write;

use maud::{Markup, html};

use crate::axis::{Axis, FOOT, LEFT, RIGHT, SECOND, WIDTH, duration, grouped, px};
use crate::model::{Answer, Namespace, Point, Report, Series};

/// Points of a plot. Beyond that the answered ones are sampled; all others are drawn.
pub(super) const MOST_POINTS: usize = 10_000;
/// Spans of which quantiles and rates are taken, at most so many.
const MOST_BUCKETS: u64 = 120;
/// Answers of a span below which it has no quantiles.
const ENOUGH: usize = 5;
/// Heights.
const TALL: f64 = 150.0;
const LOW: f64 = 76.0;
const GAP: f64 = 26.0;
const TOP: f64 = 20.0;
/// Quantiles that are drawn, and their classes.
const QUANTILES: [(f64, &str); 3] = [(0.5, "q50"), (0.95, "q95"), (0.99, "q99")];

/// At most [`MOST_POINTS`] of them, or all that were not answered if those are more: the answered ones are a
/// fair sample (a reservoir), the others are complete. The same points give the same sample.
pub(super) fn sampled<'a>(points: impl IntoIterator<Item = &'a Point>, most: usize) -> Vec<&'a Point> {
    let (answered, mut kept): (Vec<_>, Vec<_>) =
        points.into_iter().partition(|point| point.answer == Answer::Answered);
    let room = most.saturating_sub(kept.len());
    let mut dice = fastrand::Rng::with_seed(answered.len() as u64);
    let mut reservoir: Vec<&Point> = Vec::with_capacity(room.min(answered.len()));
    for (at, point) in answered.into_iter().enumerate() {
        if reservoir.len() < room {
            reservoir.push(point);
        } else if let Some(place) = reservoir.get_mut(dice.usize(..=at)) {
            *place = point;
        }
    }
    kept.append(&mut reservoir);
    kept.sort_by_key(|point| point.at);
    kept
}

/// The sheet of a namespace.
pub(super) fn sheet(report: &Report, ns: &Namespace) -> Markup {
    let axis = Axis::of(report);
    let points: Vec<&Point> =
        report.points.iter().filter(|point| point.ns == ns.name && axis.shows(point.at)).collect();
    let mut plots = vec![latency(&points, axis), rate(&points, axis)];
    let stale: Vec<(u64, u64)> =
        report.stale.iter().filter(|s| s.ns == ns.name && axis.shows(s.at)).map(|s| (s.at, s.lag)).collect();
    let siblings: Vec<(u64, u64)> = report
        .siblings
        .iter()
        .filter(|s| s.ns == ns.name && axis.shows(s.at))
        .map(|s| (s.at, s.count))
        .collect();
    if !ns.strong || !stale.is_empty() {
        plots.push(staleness(&stale, axis));
    }
    if !ns.strong {
        plots.push(most_siblings(&siblings, axis));
    }
    plots
        .extend(report.series.iter().filter(|series| series.ns == ns.name).map(|series| steps(series, axis)));
    stacked(report, axis, &format!("Plots of {} over time", ns.name), plots)
}

/// The sheet of what concerns no namespace.
pub(super) fn general(report: &Report) -> Option<Markup> {
    let axis = Axis::of(report);
    let plots: Vec<Plot> = report
        .series
        .iter()
        .filter(|series| series.ns.is_empty())
        .map(|series| steps(series, axis))
        .collect();
    (!plots.is_empty()).then(|| stacked(report, axis, "Further figures over time", plots))
}

/// A plot: its name, a line about it, its height, and what is in it, drawn from height 0.
struct Plot {
    name: String,
    words: String,
    height: f64,
    inside: Markup,
}

fn stacked(report: &Report, axis: Axis, title: &str, plots: Vec<Plot>) -> Markup {
    let mut y = TOP;
    let mut placed = Vec::new();
    for plot in plots {
        let height = plot.height;
        placed.push((plot, y));
        y += height + GAP;
    }
    let bottom = y - GAP;
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {}", px(bottom + FOOT))) role="img" {
            title { (title) }
            desc { @for (plot, _) in &placed { (plot.name) ": " (plot.words) ". " } }
            @for (plot, y) in &placed {
                (axis.bands(report, *y, *y + plot.height))
                text.plot x=(LEFT) y=(px(y - 6.0)) { (plot.name) tspan.soft { " \u{2002}" (plot.words) } }
                g transform=(format!("translate(0 {})", px(*y))) { (plot.inside) }
            }
            (axis.draw(bottom))
        }
    }
}

/// A scale from 0 at the bottom, with lines at round numbers.
struct Linear {
    most: f64,
    height: f64,
}

impl Linear {
    fn new(most: f64, height: f64) -> Self {
        let power = 10_f64.powf(most.max(1e-9).log10().floor());
        let round = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
        let most = round.into_iter().find(|round| *round >= most).unwrap_or(most);
        Self { most, height }
    }

    fn y(&self, value: f64) -> f64 {
        self.height * (1.0 - (value / self.most).clamp(0.0, 1.0))
    }

    fn lines(&self) -> Markup {
        let number =
            |value: f64| if value.fract() == 0.0 { grouped(value as u64) } else { format!("{value:.1}") };
        lines([0.0, 0.5, 1.0].map(|part| (self.y(part * self.most), number(part * self.most))))
    }
}

/// A logarithmic scale of times.
struct Times {
    least: f64,
    most: f64,
    height: f64,
}

impl Times {
    /// From the power of ten below the least to the one above the most.
    fn new(values: impl Iterator<Item = u64> + Clone, height: f64) -> Self {
        let least = values.clone().min().unwrap_or(1_000_000).max(10_000) as f64;
        let most = values.max().unwrap_or(SECOND) as f64;
        let least = 10_f64.powf(least.log10().floor());
        Self { least, most: 10_f64.powf(most.log10().ceil()).max(least * 10.0), height }
    }

    fn y(&self, value: u64) -> f64 {
        let part = (value as f64).clamp(self.least, self.most) / self.least;
        self.height * (1.0 - part.ln() / (self.most / self.least).ln())
    }

    fn lines(&self) -> Markup {
        let decades = (self.most / self.least).log10().round() as i32;
        let values = (0..=decades).map(|at| (self.least * 10_f64.powi(at)) as u64);
        lines(values.map(|value| (self.y(value), decade(value))))
    }
}

fn decade(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{} \u{b5}s", ns / 1_000),
        1_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{} s", ns / SECOND),
    }
}

fn lines(places: impl IntoIterator<Item = (f64, String)>) -> Markup {
    html! {
        @for (y, words) in places {
            line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(px(y)) y2=(px(y)) {}
            text.soft x=(px(LEFT - 8.0)) y=(px(y + 4.0)) text-anchor="end" { (words) }
        }
    }
}

/// The spans of quantiles and rates.
fn bucket(axis: Axis) -> u64 {
    SECOND.max((axis.to - axis.from).div_ceil(MOST_BUCKETS).next_multiple_of(SECOND))
}

fn latency(points: &[&Point], axis: Axis) -> Plot {
    let scale = Times::new(points.iter().map(|point| point.latency), TALL);
    let drawn = sampled(points.iter().copied(), MOST_POINTS);
    let (mut dots, mut squares, mut crosses) = (String::new(), String::new(), String::new());
    for point in &drawn {
        let (x, y) = (axis.x(point.at), scale.y(point.latency));
        let _ = match point.answer {
            Answer::Answered => write!(dots, "M{} {}h0", px(x), px(y)),
            Answer::Unknown => write!(squares, "M{} {}h0", px(x), px(y)),
            Answer::Refused => write!(crosses, "M{} {}l4 4m0-4l-4 4", px(x - 2.0), px(y - 2.0)),
        };
    }
    let words = if drawn.len() < points.len() {
        format!(
            "from the planned start, logarithmic; {} of {} points: all that were not answered, a fair sample of the others",
            grouped(drawn.len() as u64),
            grouped(points.len() as u64)
        )
    } else {
        "from the planned start, logarithmic; lines: 50, 95 and 99 of 100 answers were faster".into()
    };
    let (mut quantiles, mut names) = (Vec::new(), Vec::new());
    let mut highest = f64::INFINITY;
    for (part, class) in QUANTILES {
        let (path, end) = quantile_line(points, axis, &scale, part);
        quantiles.push((path, class, part));
        if let Some((x, y)) = end {
            // From the lowest line to the highest: names that would lie on each other are stacked.
            highest = (y - 3.0).min(highest - 10.0);
            names.push((x, highest, part));
        }
    }
    let inside = html! {
        (scale.lines())
        path.dots d=(dots) {}
        path.crosses d=(crosses) {}
        path.squares d=(squares) {}
        @for (path, class, part) in &quantiles {
            path class=(format!("quantile {class}")) d=(path) { title { "p" (px(part * 100.0)) } }
        }
        @for (x, y, part) in names {
            text.quantile x=(px((x + 4.0).min(WIDTH - RIGHT - 20.0))) y=(px(y)) { "p" (px(part * 100.0)) }
        }
    };
    Plot { name: "latency".into(), words, height: TALL, inside }
}

/// A quantile of the answered operations, span by span; spans with too few are left out. Also its last place.
fn quantile_line(points: &[&Point], axis: Axis, scale: &Times, part: f64) -> (String, Option<(f64, f64)>) {
    let width = bucket(axis);
    let mut buckets = vec![Vec::new(); (axis.to - axis.from).div_ceil(width) as usize];
    for point in points.iter().filter(|point| point.answer == Answer::Answered) {
        if let Some(bucket) = buckets.get_mut(((point.at - axis.from) / width) as usize) {
            bucket.push(point.latency);
        }
    }
    let (mut path, mut end, mut pen_down) = (String::new(), None, false);
    for (at, latencies) in (0..).zip(&mut buckets) {
        if latencies.len() < ENOUGH {
            pen_down = false;
            continue;
        }
        let y = scale.y(quantile(latencies, part));
        let x = axis.x((axis.from + at * width + width / 2).min(axis.to));
        let _ = write!(path, "{}{} {}", if pen_down { 'L' } else { 'M' }, px(x), px(y));
        (end, pen_down) = (Some((x, y)), true);
    }
    (path, end)
}

/// A quantile: the least value that is not below this part of them.
pub(super) fn quantile(values: &mut [u64], part: f64) -> u64 {
    values.sort_unstable();
    let rank = (values.len() as f64 * part).ceil() as usize;
    values.get(rank.saturating_sub(1)).or(values.last()).copied().unwrap_or(0)
}

fn rate(points: &[&Point], axis: Axis) -> Plot {
    let width = bucket(axis);
    let per_second = SECOND as f64 / width as f64;
    let count = (axis.to - axis.from).div_ceil(width) as usize;
    let kinds = [false, true].map(|mutation| {
        [Answer::Answered, Answer::Unknown, Answer::Refused].map(|answer| (mutation, answer))
    });
    let lines: Vec<_> = kinds
        .into_iter()
        .flatten()
        .map(|(mutation, answer)| {
            let mut counts = vec![0_u32; count];
            for point in points.iter().filter(|p| p.answer == answer && p.mutation == mutation) {
                if let Some(count) = counts.get_mut(((point.at - axis.from) / width) as usize) {
                    *count += 1;
                }
            }
            (mutation, answer, counts)
        })
        .collect();
    // The last span may be a part of one, and would look like a drop.
    let whole = ((axis.to - axis.from) / width) as usize;
    let most = lines.iter().flat_map(|(_, _, counts)| counts).max().copied().unwrap_or(0);
    let scale = Linear::new(f64::from(most) * per_second, LOW);
    let path = |counts: &[u32]| {
        let mut path = String::new();
        for (at, count) in (0..).zip(counts.iter().take(whole.max(1))) {
            let (left, right) =
                (axis.x(axis.from + at * width), axis.x((axis.from + (at + 1) * width).min(axis.to)));
            let y = px(scale.y(f64::from(*count) * per_second));
            let _ = write!(path, "{}{} {y}H{}", if at == 0 { 'M' } else { 'L' }, px(left), px(right));
        }
        path
    };
    let inside = html! {
        (scale.lines())
        @for (mutation, answer, counts) in &lines {
            @if counts.iter().any(|count| *count > 0) {
                path class=(format!("rate {} {}", class(*answer), if *mutation { "" } else { "reads" })) d=(path(counts)) {}
            }
        }
    };
    Plot {
        name: "rate".into(),
        words: "operations a second by outcome; solid: mutations, dashed: reads".into(),
        height: LOW,
        inside,
    }
}

fn class(answer: Answer) -> &'static str {
    match answer {
        Answer::Answered => "line-ok",
        Answer::Unknown => "line-unknown",
        Answer::Refused => "line-refused",
    }
}

fn staleness(stale: &[(u64, u64)], axis: Axis) -> Plot {
    let scale = Times::new(stale.iter().map(|(_, lag)| *lag), LOW);
    let mut rings = String::new();
    let step = stale.len().div_ceil(MOST_POINTS).max(1);
    for (at, lag) in stale.iter().step_by(step) {
        let _ = write!(rings, "M{} {}h0", px(axis.x(*at)), px(scale.y(*lag)));
    }
    let words = match stale.len() {
        0 => "no read was older than it could have been".into(),
        count => format!(
            "{} reads missed what had been acknowledged before they began: by how much time",
            grouped(count as u64)
        ),
    };
    let inside = html! { @if !stale.is_empty() { (scale.lines()) } path.stale d=(rings) {} };
    Plot { name: "staleness".into(), words, height: if stale.is_empty() { 6.0 } else { LOW }, inside }
}

fn most_siblings(siblings: &[(u64, u64)], axis: Axis) -> Plot {
    let width = bucket(axis) / 2;
    let mut most = vec![0; (axis.to - axis.from).div_ceil(width) as usize];
    for (at, count) in siblings {
        if let Some(cell) = most.get_mut(((at - axis.from) / width) as usize) {
            *cell = (*count).max(*cell);
        }
    }
    let highest = most.iter().max().copied().unwrap_or(0);
    let scale = Linear::new(highest.max(2) as f64, LOW);
    let mut path = String::new();
    for (at, count) in (0..).zip(&most).filter(|(_, count)| **count > 0) {
        let (left, right) =
            (axis.x(axis.from + at * width), axis.x((axis.from + (at + 1) * width).min(axis.to)));
        let y = scale.y(*count as f64);
        let _ = write!(
            path,
            "M{} {}h{}v{}h-{}z",
            px(left),
            px(y),
            px(right - left - 1.0),
            px(LOW - y),
            px(right - left - 1.0)
        );
    }
    let words = match highest {
        0 => "no read showed several values".into(),
        _ => format!(
            "the most values that one read showed; {} reads showed several",
            grouped(siblings.len() as u64)
        ),
    };
    let inside = html! { @if highest > 0 { (scale.lines()) } path.siblings d=(path) {} };
    Plot { name: "siblings".into(), words, height: if highest == 0 { 6.0 } else { LOW }, inside }
}

fn steps(series: &Series, axis: Axis) -> Plot {
    let scale = Linear::new(series.values.iter().map(|(_, value)| *value).fold(1.0, f64::max), LOW);
    let mut path = String::new();
    let shown = series.values.iter().filter(|(at, _)| axis.shows(*at));
    for (at, (moment, value)) in shown.enumerate() {
        let (x, y) = (px(axis.x(*moment)), px(scale.y(*value)));
        let _ = if at == 0 { write!(path, "M{x} {y}") } else { write!(path, "H{x}V{y}") };
    }
    let inside = html! { (scale.lines()) path.series d=(path) {} };
    Plot { name: series.name.clone(), words: series.words.clone(), height: LOW, inside }
}

/// What a setting gave against what it cost: availability on its worst side against stale reads, a dot for
/// each.
pub(super) fn frontier(settings: &[super::model::Setting]) -> Markup {
    const SIDE: f64 = 300.0;
    const WIDE: f64 = 520.0;
    const EDGE: f64 = 62.0;
    let worst = |setting: &super::model::Setting| {
        setting.availability.iter().map(|(_, share)| *share).reduce(f64::min)
    };
    let dots: Vec<_> = settings.iter().filter_map(|s| Some((s, worst(s)?, s.stale.unwrap_or(0.0)))).collect();
    let most = dots.iter().map(|(_, _, stale)| *stale).fold(0.05, f64::max);
    let most = [0.05, 0.1, 0.2, 0.3, 0.5, 1.0].into_iter().find(|round| *round >= most).unwrap_or(1.0);
    let x = |share: f64| EDGE + share * (WIDE - 2.0 * EDGE);
    let y = |stale: f64| 24.0 + (1.0 - stale / most) * (SIDE - 70.0);
    // Names of dots that lie together stand below each other.
    let mut names: Vec<(f64, f64)> = Vec::new();
    let mut place = |at: (f64, f64)| {
        let mut name = at;
        while names.iter().any(|(x, y)| (x - name.0).abs() < 120.0 && (y - name.1).abs() < 13.0) {
            name.1 -= 13.0;
        }
        names.push(name);
        name
    };
    html! {
        svg.frontier viewBox=(format!("0 0 {WIDE} {SIDE}")) role="img" {
            title { "Availability against stale reads, a dot for each setting" }
            desc { @for (setting, share, stale) in &dots { (setting.name) ": " (super::axis::percent(*share)) " answered on its worst side, " (super::axis::percent(*stale)) " of reads stale. " } }
            @for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
                line.grid x1=(px(x(part))) x2=(px(x(part))) y1=(px(y(most))) y2=(px(y(0.0))) {}
                text.soft x=(px(x(part))) y=(px(y(0.0) + 17.0)) text-anchor="middle" { (px(part * 100.0)) " %" }
            }
            @for part in [0.0, 0.5, 1.0] {
                line.grid x1=(px(x(0.0))) x2=(px(x(1.0))) y1=(px(y(part * most))) y2=(px(y(part * most))) {}
                text.soft x=(px(x(0.0) - 8.0)) y=(px(y(part * most) + 4.0)) text-anchor="end" { (px(part * most * 100.0)) " %" }
            }
            text.soft x=(px(WIDE / 2.0)) y=(px(SIDE - 8.0)) text-anchor="middle" { "answered on the worst side of the cut" }
            text.soft transform=(format!("translate(13 {}) rotate(-90)", px((SIDE - 46.0) / 2.0))) text-anchor="middle" { "stale reads" }
            @for (setting, share, stale) in &dots {
                @let (x, y) = (x(*share), y(*stale));
                @let (name_x, name_y) = place((x, y));
                @if setting.strong {
                    rect.point-strong x=(px(x - 5.5)) y=(px(y - 5.5)) width="11" height="11" {}
                } @else {
                    circle.point-available cx=(px(x)) cy=(px(y)) r="6" {}
                }
                text x=(px(if *share > 0.5 { name_x - 10.0 } else { name_x + 10.0 })) y=(px(name_y - 8.0)) text-anchor=(if *share > 0.5 { "end" } else { "start" }) { (setting.name) }
            }
        }
    }
}

/// The curve *fresh, so long after an acknowledgement*, in words of a table row: (within, share of fresh
/// reads).
pub(super) fn freshness(points: &[kv_check::judge::Freshness]) -> Vec<(String, Option<f64>)> {
    let within =
        |ns: u64| if ns == u64::MAX { "later".to_owned() } else { format!("\u{2264} {}", duration(ns)) };
    let share = |point: &kv_check::judge::Freshness| {
        (point.reads > 0).then(|| point.fresh as f64 / point.reads as f64)
    };
    points.iter().map(|point| (within(point.within_ns), share(point))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(at: u64, answer: Answer) -> Point {
        Point { ns: "x".into(), node: "n1".into(), mutation: true, at, latency: 5, answer, err: None }
    }

    #[test]
    fn a_sample_keeps_whatever_was_not_answered() {
        let answer = |at: u64| match at % 100 {
            0 => Answer::Refused,
            1 => Answer::Unknown,
            _ => Answer::Answered,
        };
        let points: Vec<_> = (0..50_000).map(|at| point(at, answer(at))).collect();
        let kept = sampled(&points, 10_000);
        assert_eq!(kept.len(), 10_000);
        assert_eq!(kept.iter().filter(|p| p.answer != Answer::Answered).count(), 1_000);
        // A fair sample: each half of the run has about half of it.
        let early = kept.iter().filter(|p| p.answer == Answer::Answered && p.at < 25_000).count();
        assert!((4_200..4_800).contains(&early), "{early}");
        assert!(kept.is_sorted_by_key(|p| p.at));
        assert_eq!(kept, sampled(&points, 10_000));
    }

    #[test]
    fn nothing_that_failed_is_dropped_even_beyond_the_limit() {
        let points: Vec<_> = (0..300).map(|at| point(at, Answer::Refused)).collect();
        assert_eq!(sampled(&points, 100).len(), 300);
        assert_eq!(sampled(&[], 100), Vec::<&Point>::new());
    }

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let mut values: Vec<u64> = (1..=100).rev().collect();
        assert_eq!([0.5, 0.95, 0.99, 1.0].map(|part| quantile(&mut values, part)), [50, 95, 99, 100]);
        assert_eq!(quantile(&mut [], 0.5), 0);
    }

    #[test]
    fn scales_end_at_round_numbers() {
        assert_eq!([0.7, 3.0, 99.0, 120.0].map(|most| Linear::new(most, 1.0).most), [1.0, 5.0, 100.0, 200.0]);
        let times = Times::new([3_000_000, 1_200_000_000].into_iter(), 100.0);
        assert_eq!((times.least, times.most), (1e6, 1e10));
        assert_eq!((times.y(1_000_000), times.y(10_000_000_000)), (100.0, 0.0));
    }
}
