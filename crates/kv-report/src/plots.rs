//! Plots over time, one sheet for each namespace, on the axis of the strip and with the same bands:
//! latencies, rates, and what answering cost. Points go into one path for each outcome, which keeps ten
//! thousand of them within some hundred kilobytes; a plotting library writes an element for each and fixes
//! the colours, which then ignore a dark page.

use std::fmt::Write;

use maud::{Markup, html};

use crate::axis::{Axis, FOOT, LEFT, RIGHT, SECOND, WIDTH};
use crate::labels::{Anchor, Area, Board, Label, Style};
use crate::model::{Answer, Namespace, Point, Report, Series, Setting};
use crate::words::{counted, duration, grouped, percent, px};

/// Points of a plot. Beyond that the answered ones are sampled; all others are drawn.
pub(super) const MOST_POINTS: usize = 10_000;
/// Spans of which quantiles and rates are taken, at most so many.
const MOST_BUCKETS: u64 = 120;
/// Answers of a span below which it has no quantiles.
const ENOUGH: usize = 5;
/// Heights.
const TALL: f64 = 150.0;
const LOW: f64 = 76.0;
const GAP: f64 = 14.0;
/// A line of words above a plot.
const LINE: f64 = 16.0;
/// What the words of a plot may stand out above and below it.
const OUT: f64 = 8.0;
/// Least distance of two numbers of an axis.
const NUMBERS: f64 = 14.0;
/// From the name of a quantile to the next place that is tried.
const QUANTILE_STEP: f64 = 6.0;
/// The same of the name of a dot.
const DOT_STEP: f64 = 7.0;
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
    let figures = report.quantities.get(&ns.name);
    if !ns.strong || !stale.is_empty() {
        let all = figures.map_or(stale.len() as u64, |figures| figures.stale_reads);
        plots.push(staleness(&stale, all, axis));
    }
    if !ns.strong {
        let figures = figures.map(|figures| (figures.siblings_max, figures.reads_with_siblings));
        plots.push(most_siblings(&siblings, figures, axis));
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
    labels: Vec<Label>,
}

impl Plot {
    /// An empty place for the words of a plot.
    fn board(height: f64) -> Board {
        Board::new(Area::new(0.0, -OUT, WIDTH, height + 2.0 * OUT))
    }
}

/// Plots one below the other, each below its words.
struct Stack {
    /// Each with where it begins.
    plots: Vec<(Plot, f64)>,
    words: Board,
    bottom: f64,
}

impl Stack {
    fn of(plots: Vec<Plot>) -> Self {
        let mut words = Board::new(Area::new(0.0, 0.0, WIDTH, f64::INFINITY));
        let (mut y, mut placed) = (0.0, Vec::new());
        for mut plot in plots {
            let name = Style::Plot.font().fit(&plot.name, (WIDTH - LEFT) / 2.0);
            let first = LEFT + Style::Plot.font().width(&name) + 10.0;
            words.put_at(Style::Plot, name, LEFT, y + LINE - 4.0, Anchor::Start);
            let right = WIDTH - RIGHT;
            let lines = Style::Soft.font().wrap(&plot.words, right - first, right - LEFT);
            for (at, line) in lines.iter().enumerate() {
                let x = if at == 0 { first } else { LEFT };
                words.put_at(Style::Soft, line, x, y + (at as f64 + 1.0) * LINE - 4.0, Anchor::Start);
            }
            y += lines.len().max(1) as f64 * LINE + 4.0;
            for label in std::mem::take(&mut plot.labels) {
                words.put([label.down(y)]);
            }
            let height = plot.height;
            placed.push((plot, y));
            y += height + GAP;
        }
        Self { plots: placed, words, bottom: y - GAP }
    }
}

fn stacked(report: &Report, axis: Axis, title: &str, plots: Vec<Plot>) -> Markup {
    let Stack { plots, mut words, bottom } = Stack::of(plots);
    let foot = axis.draw(bottom, &mut words);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {}", px(bottom + FOOT))) role="img" {
            title { (title) }
            desc { @for (plot, _) in &plots { (plot.name) ": " (plot.words) ". " } }
            @for (plot, y) in &plots {
                (axis.bands(report, *y, *y + plot.height))
                g transform=(format!("translate(0 {})", px(*y))) { (plot.inside) }
            }
            (foot)
            (words.draw())
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

    fn lines(&self, words: &mut Board) -> Markup {
        let number =
            |value: f64| if value.fract() == 0.0 { grouped(value as u64) } else { format!("{value:.1}") };
        lines([0.0, 0.5, 1.0].map(|part| (self.y(part * self.most), number(part * self.most))), words)
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

    fn lines(&self, words: &mut Board) -> Markup {
        let decades = (self.most / self.least).log10().round() as i32;
        let values = (0..=decades).map(|at| (self.least * 10_f64.powi(at)) as u64);
        lines(values.map(|value| (self.y(value), decade(value))), words)
    }
}

fn decade(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{} \u{b5}s", ns / 1_000),
        1_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{} s", ns / SECOND),
    }
}

/// Lines of an axis from the lowest up, each with its number where that has room.
fn lines(places: impl IntoIterator<Item = (f64, String)>, words: &mut Board) -> Markup {
    let places: Vec<_> = places.into_iter().collect();
    let mut last = f64::INFINITY;
    for (y, number) in &places {
        if *y <= last - NUMBERS {
            let number = Style::Soft.font().fit(number, LEFT - 8.0);
            words.put_at(Style::Soft, number, LEFT - 8.0, y + 4.0, Anchor::End);
            last = *y;
        }
    }
    html! {
        @for (y, _) in places {
            line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(px(y)) y2=(px(y)) {}
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
    let mut labels = Plot::board(TALL);
    let mut quantiles = Vec::new();
    for (part, class) in QUANTILES {
        let (path, end) = quantile_line(points, axis, &scale, part);
        let name = format!("p{}", px(part * 100.0));
        if let Some((x, y)) = end {
            labels.put(near(&name, x + 4.0, y - 3.0));
        }
        quantiles.push((path, class, name));
    }
    let inside = html! {
        (scale.lines(&mut labels))
        path.dots d=(dots) {}
        path.crosses d=(crosses) {}
        path.squares d=(squares) {}
        @for (path, class, name) in &quantiles {
            path class=(format!("quantile {class}")) d=(path) { title { (name) } }
        }
    };
    Plot { name: "latency".into(), words, height: TALL, inside, labels: labels.into_labels() }
}

/// The name of a line at its end, or as near to it as there is room, above or below.
fn near(name: &str, x: f64, y: f64) -> impl Iterator<Item = Label> {
    let steps = (0..=(TALL / QUANTILE_STEP) as i32).flat_map(|step| [-step, step]);
    steps.map(move |step| {
        let y = y + f64::from(step) * QUANTILE_STEP;
        Label::new(Style::Line, name, x, y, Anchor::Start).between(LEFT, WIDTH)
    })
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
    let mut labels = Plot::board(LOW);
    let inside = html! {
        (scale.lines(&mut labels))
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
        labels: labels.into_labels(),
    }
}

fn class(answer: Answer) -> &'static str {
    match answer {
        Answer::Answered => "line-ok",
        Answer::Unknown => "line-unknown",
        Answer::Refused => "line-refused",
    }
}

/// `all`: how many stale reads there were, of which these are drawn.
fn staleness(stale: &[(u64, u64)], all: u64, axis: Axis) -> Plot {
    let scale = Times::new(stale.iter().map(|(_, lag)| *lag), LOW);
    let mut rings = String::new();
    let step = stale.len().div_ceil(MOST_POINTS).max(1);
    for (at, lag) in stale.iter().step_by(step) {
        let _ = write!(rings, "M{} {}h0", px(axis.x(*at)), px(scale.y(*lag)));
    }
    let words = match all {
        0 => "no read was older than it could have been".into(),
        _ => format!(
            "{} missed what had been acknowledged before: by how much time",
            counted(all, "read", "reads")
        ),
    };
    let height = if stale.is_empty() { 6.0 } else { LOW };
    let mut labels = Plot::board(height);
    let inside = html! { @if !stale.is_empty() { (scale.lines(&mut labels)) } path.stale d=(rings) {} };
    Plot { name: "staleness".into(), words, height, inside, labels: labels.into_labels() }
}

/// `figures`: the most values that a read of the run showed, and how many reads showed several.
fn most_siblings(siblings: &[(u64, u64)], figures: Option<(u64, u64)>, axis: Axis) -> Plot {
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
    let (most, reads) = figures.unwrap_or((highest, siblings.len() as u64));
    let words = match most {
        0 | 1 => "no read showed several values".into(),
        _ => format!(
            "the most values that one read showed: {} in the whole run; {} several",
            grouped(most),
            counted(reads, "read showed", "reads showed")
        ),
    };
    let height = if highest == 0 { 6.0 } else { LOW };
    let mut labels = Plot::board(height);
    let inside = html! { @if highest > 0 { (scale.lines(&mut labels)) } path.siblings d=(path) {} };
    Plot { name: "siblings".into(), words, height, inside, labels: labels.into_labels() }
}

fn steps(series: &Series, axis: Axis) -> Plot {
    let scale = Linear::new(series.values.iter().map(|(_, value)| *value).fold(1.0, f64::max), LOW);
    let mut path = String::new();
    let shown = series.values.iter().filter(|(at, _)| axis.shows(*at));
    for (at, (moment, value)) in shown.enumerate() {
        let (x, y) = (px(axis.x(*moment)), px(scale.y(*value)));
        let _ = if at == 0 { write!(path, "M{x} {y}") } else { write!(path, "H{x}V{y}") };
    }
    let mut labels = Plot::board(LOW);
    let inside = html! { (scale.lines(&mut labels)) path.series d=(path) {} };
    let (name, words) = (series.name.clone(), series.words.clone());
    Plot { name, words, height: LOW, inside, labels: labels.into_labels() }
}

/// Width and height of the drawing of settings, and what is left free around its square.
const FRONTIER: (f64, f64) = (520.0, 300.0);
const EDGE: f64 = 62.0;

/// Where the names of dots stand: beside them, above or below each other where they lie together.
fn names(dots: &[(f64, f64, &str)]) -> Vec<Label> {
    let (width, height) = FRONTIER;
    let mut words = Board::new(Area::new(0.0, 0.0, width, height - 40.0));
    for (x, y, name) in dots {
        let name = Style::Line.font().fit(name, width - 20.0);
        let (first, second) =
            if *x > width / 2.0 { (Anchor::End, Anchor::Start) } else { (Anchor::Start, Anchor::End) };
        let wishes = (0..(height / DOT_STEP) as i32).flat_map(|step| [-step, step + 1]).flat_map(|step| {
            let y = y - 4.0 + f64::from(step) * DOT_STEP;
            let beside = |anchor| match anchor {
                Anchor::End => Label::new(Style::Line, name.as_str(), x - 10.0, y, anchor),
                Anchor::Start | Anchor::Middle => Label::new(Style::Line, name.as_str(), x + 10.0, y, anchor),
            };
            let above =
                Label::new(Style::Line, name.as_str(), *x, y - 8.0, Anchor::Middle).between(0.0, width);
            [beside(first), beside(second), above]
        });
        words.put(wishes);
    }
    words.into_labels()
}

/// What a setting gave against what it cost: availability on its worst side against stale reads, a dot for
/// each.
pub(super) fn frontier(settings: &[Setting]) -> Markup {
    let (wide, high) = FRONTIER;
    let worst = |setting: &Setting| setting.availability.iter().map(|(_, share)| *share).reduce(f64::min);
    let dots: Vec<_> = settings.iter().filter_map(|s| Some((s, worst(s)?, s.stale.unwrap_or(0.0)))).collect();
    let most = dots.iter().map(|(_, _, stale)| *stale).fold(0.05, f64::max);
    let most = [0.05, 0.1, 0.2, 0.3, 0.5, 1.0].into_iter().find(|round| *round >= most).unwrap_or(1.0);
    let x = |share: f64| EDGE + share * (wide - 2.0 * EDGE);
    let y = |stale: f64| 24.0 + (1.0 - stale / most) * (high - 70.0);
    let places: Vec<_> =
        dots.iter().map(|(setting, share, stale)| (x(*share), y(*stale), setting.name.as_str())).collect();
    html! {
        svg.frontier viewBox=(format!("0 0 {wide} {high}")) role="img" {
            title { "Availability against stale reads, a dot for each setting" }
            desc { @for (setting, share, stale) in &dots { (setting.name) ": " (percent(*share)) " answered on its worst side, " (percent(*stale)) " of reads stale. " } }
            @for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
                line.grid x1=(px(x(part))) x2=(px(x(part))) y1=(px(y(most))) y2=(px(y(0.0))) {}
                text.soft x=(px(x(part))) y=(px(y(0.0) + 17.0)) text-anchor="middle" { (px(part * 100.0)) " %" }
            }
            @for part in [0.0, 0.5, 1.0] {
                line.grid x1=(px(x(0.0))) x2=(px(x(1.0))) y1=(px(y(part * most))) y2=(px(y(part * most))) {}
                text.soft x=(px(x(0.0) - 8.0)) y=(px(y(part * most) + 4.0)) text-anchor="end" { (px(part * most * 100.0)) " %" }
            }
            text.soft x=(px(wide / 2.0)) y=(px(high - 8.0)) text-anchor="middle" { "answered on the worst side of the cut" }
            text.soft transform=(format!("translate(13 {}) rotate(-90)", px((high - 46.0) / 2.0))) text-anchor="middle" { "stale reads" }
            @for (setting, share, stale) in &dots {
                @let (x, y) = (x(*share), y(*stale));
                g {
                    title { (setting.name) }
                    @if setting.strong {
                        rect.point-strong x=(px(x - 5.5)) y=(px(y - 5.5)) width="11" height="11" {}
                    } @else {
                        circle.point-available cx=(px(x)) cy=(px(y)) r="6" {}
                    }
                }
            }
            @for label in names(&places) { (label.draw()) }
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
    use proptest::prelude::*;

    use super::*;
    use crate::labels::tests::wrong;

    proptest! {
        #[test]
        fn the_words_of_plots_keep_apart(
            latencies in prop::collection::vec((0..60_000_000_000_u64, 1_000..200_000_000_000_u64), 0..200),
            words in prop::collection::vec("[a-z ,;:0-9]{0,160}", 1..4),
        ) {
            let points: Vec<Point> = latencies
                .iter()
                .map(|(at, latency)| Point { latency: *latency, ..point(*at, Answer::Answered) })
                .collect();
            let points: Vec<&Point> = points.iter().collect();
            let axis = Axis::of(&Report { to: 60 * SECOND, ..Report::default() });
            let stale: Vec<_> = latencies.iter().map(|(at, lag)| (*at, *lag)).collect();
            let mut plots =
                vec![latency(&points, axis), rate(&points, axis), staleness(&stale, stale.len() as u64, axis)];
            plots.extend(words.iter().map(|words| {
                let values = latencies.iter().map(|(at, value)| (*at, *value as f64)).collect();
                steps(&Series { name: words.clone(), ns: String::new(), words: words.clone(), values }, axis)
            }));
            let Stack { words, bottom, .. } = Stack::of(plots);
            let labels = words.into_labels();
            prop_assert!(labels.iter().filter(|label| label.style == Style::Plot).count() >= 3);
            let numbers = labels.iter().filter(|label| label.style == Style::Soft && label.area.right < LEFT);
            prop_assert!(latencies.is_empty() || numbers.count() >= 4, "axes have numbers");
            prop_assert_eq!(wrong(&labels, &Area::new(0.0, 0.0, WIDTH, bottom + OUT)), Vec::<String>::new());
        }

        #[test]
        fn the_names_of_dots_keep_apart(
            dots in prop::collection::vec((62.0..458.0_f64, 24.0..254.0_f64, "[a-zA-Z=0-9 ,]{1,60}"), 1..9),
        ) {
            let dots: Vec<_> = dots.iter().map(|(x, y, name)| (*x, *y, name.as_str())).collect();
            let labels = names(&dots);
            prop_assert!(!labels.is_empty());
            prop_assert_eq!(wrong(&labels, &Area::new(0.0, 0.0, FRONTIER.0, FRONTIER.1)), Vec::<String>::new());
        }
    }

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
