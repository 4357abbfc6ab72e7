//! The CAP strip: a row for every node of every namespace, all on one time axis, with who sees whom above
//! them. The one drawing from which a stranger is to read off what each mode does in a network partition.
//! It is laid out from top to bottom: words stand on a [`Board`], so that none lie on one another, and no
//! line goes through them.

use std::fmt::Write;

use maud::{Markup, PreEscaped, html};

use crate::axis::{Axis, FOOT, strips};
use crate::labels::{Anchor, Area, Board, Label, Style, flags, flow};
use crate::model::{Answer, Namespace, Report};
use crate::rows::{self, BAR, Look, seconds};
use crate::sides::{self, Event, Reading};
use crate::topology;
use crate::words::px;

/// Height of a row.
const ROW: f64 = 21.0;
/// Lanes of the words of marks, and the height of one.
const LANES: usize = 3;
const LANE: f64 = 16.0;
/// Heights: of a strip of faults, of the bar in it, and of a line of words.
const STRIP: f64 = 19.0;
const STRIP_BAR: f64 = 15.0;
const LINE: f64 = 18.0;
/// A small cell before words, with the room after it.
const SWATCH: f64 = 16.0;
/// Room around the drawing, when it stands alone.
const EDGE: f64 = 14.0;

/// Where the drawing is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form<'a> {
    /// On the page, where that is wide.
    Wide,
    /// On the page, where that is narrow.
    Narrow,
    /// In a file of its own, with its styles and a key in it.
    Alone(&'a str),
}

impl Form<'_> {
    fn axis(self, report: &Report) -> Axis {
        if self == Self::Narrow { Axis::narrow(report) } else { Axis::of(report) }
    }

    /// Names of the patterns of stale reads: a page holds two drawings.
    fn hatch(self) -> &'static str {
        if self == Self::Narrow { "hatch-narrow" } else { "hatch" }
    }
}

/// The drawing.
pub(super) fn draw(report: &Report, form: Form<'_>) -> Markup {
    let sheet = Sheet::of(report, form);
    let style = match form {
        Form::Alone(style) => Some(style),
        Form::Wide | Form::Narrow => None,
    };
    let edge = if style.is_some() { EDGE } else { 0.0 };
    let (width, height) = (px(sheet.axis.width + 2.0 * edge), px(sheet.y + 2.0 * edge));
    let name = form.hatch();
    let (title, desc) = (format!("{name}-title"), format!("{name}-words"));
    html! {
        svg.strip.slim[form == Form::Narrow] xmlns=[style.map(|_| "http://www.w3.org/2000/svg")]
            viewBox=(format!("-{edge} -{edge} {width} {height}")) role="img" aria-labelledby=(format!("{title} {desc}")) {
            title id=(title) { "The CAP strip of " (report.scenario) }
            desc id=(desc) { (words(report)) }
            @if let Some(style) = style {
                style { (PreEscaped(style)) }
                rect.paper x=(-edge) y=(-edge) width="100%" height="100%" rx="10" {}
            }
            defs {
                pattern id=(name) width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                    rect.hatching width="2.2" height="5" {}
                }
            }
            @for part in &sheet.parts { (part) }
            (sheet.words.draw())
        }
    }
}

/// The drawing as far as it is laid out.
struct Sheet<'a> {
    report: &'a Report,
    form: Form<'a>,
    axis: Axis,
    look: Look,
    /// Shapes, from the lowest to the uppermost.
    parts: Vec<Markup>,
    words: Board,
    /// Where the next part begins; in the end, the height.
    y: f64,
}

impl<'a> Sheet<'a> {
    fn of(report: &'a Report, form: Form<'a>) -> Self {
        let axis = form.axis(report);
        let look = Look::new(axis, form.hatch(), form != Form::Narrow);
        let words = Board::new(Area::new(0.0, 0.0, axis.width, f64::INFINITY));
        let mut sheet = Self { report, form, axis, look, parts: Vec::new(), words, y: 0.0 };
        sheet.marks();
        sheet.faults();
        sheet.topologies();
        for ns in &report.namespaces {
            sheet.block(ns);
        }
        let foot = sheet.axis.draw(sheet.y, &mut sheet.words);
        sheet.parts.push(foot);
        sheet.y += FOOT;
        if matches!(form, Form::Alone(_)) {
            sheet.key();
        }
        sheet
    }

    fn narrow(&self) -> bool {
        self.form == Form::Narrow
    }

    /// The words of the marks, in the order of their times, and the lines that come down from them. On a
    /// narrow screen numbers stand for them, those of the list below the drawing.
    fn marks(&mut self) {
        let (axis, narrow) = (self.axis, self.narrow());
        let events = sides::events(self.report);
        let shown =
            events.iter().enumerate().filter(|(_, event)| axis.shows(event.at) && (narrow || event.mark));
        let font = Style::Marked.font();
        let marks: Vec<(&Event, String)> = shown
            .map(|(at, event)| {
                (event, if narrow { (at + 1).to_string() } else { font.fit(&event.what, axis.width) })
            })
            .collect();
        let wishes: Vec<(f64, f64)> =
            marks.iter().map(|(event, text)| (axis.x(event.at), font.width(text))).collect();
        let flags = flags(&wishes, LANES, 0.0, axis.width);
        let lanes = flags.iter().flatten().map(|flag| flag.lane + 1).max().unwrap_or(0) as f64;
        let bottom = lanes * LANE + 2.0;
        let mut lines = String::new();
        for (((event, text), flag), (x, _)) in marks.into_iter().zip(&flags).zip(&wishes) {
            let lane = flag.map_or(lanes, |flag| flag.lane as f64 + if flag.beside() { 0.0 } else { 1.0 });
            let _ = write!(lines, "M{} {}V{}", px(*x), px(lane * LANE), px(bottom));
            if let Some(flag) = flag {
                let baseline = flag.lane as f64 * LANE + 12.0;
                let label = Label::new(Style::Marked, text, flag.left, baseline, Anchor::Start);
                self.words.put([label.titled(format!("{}, {}", event.what, seconds(event.at, axis)))]);
            }
        }
        self.parts.push(html! { path.flag d=(lines) {} });
        self.y = bottom;
    }

    /// A strip for each kind of faults.
    fn faults(&mut self) {
        let (axis, top) = (self.axis, self.y);
        let mut bars = Vec::new();
        for (kind, faults) in strips(self.report) {
            self.lane(kind, STRIP_BAR - 3.0);
            let y = self.y;
            for fault in faults {
                let Some((left, right)) = axis.span(fault.from, fault.to) else { continue };
                let title = format!(
                    "{}: {}, {} to {}",
                    fault.kind,
                    fault.what,
                    seconds(fault.from, axis),
                    seconds(fault.to, axis)
                );
                let middle = (left + right) / 2.0;
                let label = Label::new(Style::OnFault, &fault.what, middle, y + 11.8, Anchor::Middle);
                if label.area.left > left + 4.0 && label.area.right < right - 4.0 {
                    self.words.put([label.titled(title.as_str())]);
                }
                bars.push(html! {
                    rect.fault x=(px(left)) y=(px(y)) width=(px((right - left).max(2.0))) height=(px(STRIP_BAR)) rx="3" { title { (title) } }
                });
            }
            self.y += STRIP;
        }
        self.y += 4.0;
        let bands = if self.narrow() {
            axis.shades(self.report, top, self.y)
        } else {
            axis.bands(self.report, top, self.y)
        };
        self.parts.push(bands);
        self.parts.append(&mut bars);
    }

    /// The name of a lane: on its left; where there is no room for it, in a line above.
    fn lane(&mut self, name: &str, baseline: f64) {
        let font = Style::Soft.font();
        if self.narrow() {
            self.words.put_at(
                Style::Soft,
                font.fit(name, self.axis.width),
                0.0,
                self.y + 12.0,
                Anchor::Start,
            );
            self.y += LINE;
        } else {
            let name = font.fit(name, self.axis.left - 8.0);
            self.words.put_at(Style::Soft, name, 0.0, self.y + baseline, Anchor::Start);
        }
    }

    fn topologies(&mut self) {
        if self.report.topology.is_empty() {
            return;
        }
        let top = self.y;
        self.lane("who sees whom", topology::HEIGHT / 2.0);
        let circles = topology::draw(self.report, self.axis, self.y, &mut self.words);
        self.y += topology::HEIGHT;
        self.parts.push(self.axis.shades(self.report, top, self.y));
        self.parts.push(circles);
    }

    /// One namespace: its name, what it did in words, and the rows of its nodes.
    fn block(&mut self, ns: &Namespace) {
        self.y += 6.0;
        let top = self.y;
        let side = format!("{}, {}", ns.mode(), ns.side());
        let name = Style::Name.font();
        let left = if self.narrow() { 0.0 } else { self.axis.left };
        if self.narrow() {
            let text = name.fit(&ns.name, self.axis.width / 2.0);
            let x = name.width(&text) + 8.0;
            self.words.put_at(Style::Name, text, 0.0, top + 14.0, Anchor::Start);
            self.words.put_at(Style::Soft, side, x, top + 14.0, Anchor::Start);
            self.y += LINE + 4.0;
        } else {
            let text = name.fit(&ns.name, left - 10.0);
            self.words.put_at(Style::Name, text, 0.0, top + 14.0, Anchor::Start);
            self.words.put_at(Style::Soft, side, 0.0, top + 30.0, Anchor::Start);
        }
        let main = sides::main_fault(self.report);
        let readings = main.map(|fault| sides::readings(self.report, ns, fault)).unwrap_or_default();
        for reading in &readings {
            self.reading(reading, left);
        }
        if let Some(sum) = sides::sum(self.report, ns, &readings) {
            self.words.put_at(Style::Sum, "\u{21d2}", left, self.y + 11.0, Anchor::Start);
            self.sentence(Style::Sum, &sum, left + SWATCH, left + SWATCH);
        }
        let two_lines = if self.narrow() { 0.0 } else { top + 2.0 * LINE };
        self.y = self.y.max(two_lines) + 4.0;
        self.rows(ns);
        self.y += 10.0;
    }

    /// What a side did: a cell that shows it, the nodes, and a sentence.
    fn reading(&mut self, reading: &Reading, left: f64) {
        self.parts.push(swatch(reading.mostly, left, self.y + 1.0));
        let font = Style::Who.font();
        let who = font.fit(&reading.nodes.join(","), (self.axis.right - left) / 2.0);
        let after = left + SWATCH + font.width(&who) + 7.0;
        self.words.put_at(Style::Who, who, left + SWATCH, self.y + 11.0, Anchor::Start);
        self.sentence(Style::Says, &reading.words, after, left + SWATCH);
    }

    /// A sentence in lines: the first begins at one place, the others at another.
    fn sentence(&mut self, style: Style, text: &str, first: f64, others: f64) {
        let right = self.axis.right;
        let lines = style.font().wrap(text, right - first, right - others);
        for (at, line) in lines.into_iter().enumerate() {
            let x = if at == 0 { first } else { others };
            self.words.put_at(style, line, x, self.y + 11.0, Anchor::Start);
            self.y += LINE;
        }
    }

    fn rows(&mut self, ns: &Namespace) {
        let (report, axis, top) = (self.report, self.axis, self.y);
        let bottom = top + report.nodes.len() as f64 * ROW;
        self.parts.push(axis.bands(report, top - 2.0, bottom));
        for node in &report.nodes {
            let y = self.y;
            let name = Style::Soft.font().fit(node, axis.left - 8.0);
            self.words.put_at(Style::Soft, name, axis.left - 6.0, y + 13.0, Anchor::End);
            self.parts.push(rows::row(report, axis, ns, node, y, self.look));
            let mine = report.leaders.iter().filter(|leader| {
                ns.strong && leader.node == *node && (leader.ns.is_empty() || leader.ns == ns.name)
            });
            for leader in mine {
                let Some((left, right)) = axis.span(leader.from, leader.to) else { continue };
                let title = format!(
                    "{node} leads {} from {} to {}",
                    ns.name,
                    seconds(leader.from, axis),
                    seconds(leader.to, axis)
                );
                let star = Label::new(Style::Star, "\u{2605}", left + 1.0, y + BAR - 4.0, Anchor::Start);
                self.words.put([star.between(axis.left, axis.right).titled(title.as_str())]);
                self.parts.push(html! {
                    rect.leader x=(px(left)) y=(px(y + BAR - 0.5)) width=(px((right - left).max(1.0))) height="3" { title { (title) } }
                });
            }
            self.y += ROW;
        }
        self.y = bottom;
    }

    /// What the cells mean, for the drawing that stands alone; the page has its own.
    fn key(&mut self) {
        let entries = [
            (Some(Answer::Answered), false, "answered"),
            (Some(Answer::Answered), true, "answered with a stale read"),
            (Some(Answer::Refused), false, "refused: not applied"),
            (Some(Answer::Unknown), false, "outcome unknown"),
            (None, false, "\u{2605} leads"),
            (None, false, "shaded: a fault is in force"),
        ];
        let font = Style::Soft.font();
        let widths = entries.map(|(.., text)| SWATCH + font.width(text) + 18.0);
        let places = flow(&widths, 0.0, self.axis.width);
        let top = self.y + 8.0;
        for ((answer, stale, text), (x, line)) in entries.into_iter().zip(places) {
            let y = top + line as f64 * LINE;
            if let Some(answer) = answer {
                self.parts.push(swatch(answer, x, y));
            }
            if stale {
                let hatch = format!("url(#{})", self.form.hatch());
                self.parts
                    .push(html! { rect fill=(hatch) x=(px(x)) y=(px(y)) width="11" height="11" rx="2" {} });
            }
            let x = if answer.is_some() { x + SWATCH } else { x };
            self.words.put_at(Style::Soft, text, x, y + 10.0, Anchor::Start);
            self.y = y + LINE;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kv_check::judge::Quantities;
    use proptest::prelude::*;

    use super::*;
    use crate::labels::tests::wrong;
    use crate::model::{Fault, Leader, Mark, Side, Tally, Topology};

    const END: u64 = 20_000_000_000;

    prop_compose! {
        fn fault(nodes: usize)(
            from in 0..END,
            lasts in 0..END,
            kind in prop_oneof!["network partition", "[a-z ]{1,40}"],
            what in "[a-z0-9,|: ]{0,60}",
            minority in 0..=nodes,
        ) -> Fault {
            let side = |at: usize| if at < minority { "minority" } else { "majority" };
            let sides = (0..nodes).map(|at| (format!("n{}", at + 1), side(at).to_owned())).collect();
            Fault { from, until: from + lasts / 2, to: from + lasts, kind, what, sides }
        }
    }

    /// What a run may have come to.
    fn report() -> impl Strategy<Value = Report> {
        let names = prop::collection::vec("[a-z-]{1,40}", 1..4);
        (1_usize..9, names, any::<[u16; 5]>()).prop_flat_map(
            |(nodes, names, [answered, unknown, refused, keys, lost])| {
                let faults = prop::collection::vec(fault(nodes), 0..6);
                let marks = prop::collection::vec((0..END, "[a-z: ]{1,40}"), 0..12);
                let changes = prop::collection::vec(0..END, 0..8);
                (faults, marks, changes, any::<Option<u32>>()).prop_map(
                    move |(faults, marks, mut changes, again)| {
                        changes.extend([0, END]);
                        changes.sort_unstable();
                        let nodes: Vec<String> = (1..=nodes).map(|node| format!("n{node}")).collect();
                        let groups = [nodes[..nodes.len() / 2].to_vec(), nodes[nodes.len() / 2..].to_vec()];
                        let spans = changes.windows(2).enumerate();
                        let topology = spans.clone().map(|(at, span)| Topology {
                            from: span[0],
                            to: span[1],
                            cut: if at % 2 == 0 { Vec::new() } else { Topology::between(&groups) },
                            down: nodes.iter().take(at % 3).cloned().collect(),
                        });
                        let leaders = spans.clone().map(|(at, span)| Leader {
                            ns: String::new(),
                            node: nodes[at % nodes.len()].clone(),
                            from: span[0],
                            to: span[1],
                        });
                        let tally = Tally {
                            answered: answered.into(),
                            unknown: unknown.into(),
                            refused: refused.into(),
                        };
                        let of = |fault: usize, ns: &String, side: &str| Side {
                            fault,
                            ns: ns.clone(),
                            side: side.to_owned(),
                            tally,
                            first_write_ms: again.map(u64::from),
                            ..Side::default()
                        };
                        let sides = (0..faults.len()).flat_map(|at| {
                            let each = names
                                .iter()
                                .flat_map(move |ns| [of(at, ns, "minority"), of(at, ns, "majority")]);
                            each.collect::<Vec<_>>()
                        });
                        let quantities = names.iter().map(|ns| {
                            let (conflicted_keys, lost) = (keys.into(), lost.into());
                            (
                                ns.clone(),
                                Quantities {
                                    conflicted_keys,
                                    lost,
                                    stale_reads: lost,
                                    ..Quantities::default()
                                },
                            )
                        });
                        let mark = |(at, what)| Mark { at, what, ns: String::new() };
                        Report {
                            to: END,
                            topology: topology.collect(),
                            leaders: leaders.collect(),
                            sides: sides.collect(),
                            quantities: quantities.collect::<BTreeMap<_, _>>(),
                            marks: marks.into_iter().map(mark).collect(),
                            namespaces: names
                                .iter()
                                .enumerate()
                                .map(|(at, name)| Namespace {
                                    name: name.clone(),
                                    strong: at % 2 == 0,
                                    setting: String::new(),
                                })
                                .collect(),
                            nodes,
                            faults,
                            ..Report::default()
                        }
                    },
                )
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn no_words_lie_on_one_another_or_leave_the_drawing(report in report()) {
            for form in [Form::Wide, Form::Narrow, Form::Alone("")] {
                let sheet = Sheet::of(&report, form);
                let bounds = Area::new(0.0, 0.0, sheet.axis.width, sheet.y);
                let labels = sheet.words.into_labels();
                prop_assert_eq!(wrong(&labels, &bounds), Vec::<String>::new());
                // What matters is there: every row has its node, every namespace its name and its sentences.
                let count = |style| labels.iter().filter(|label| label.style == style).count();
                prop_assert_eq!(count(Style::Name), report.namespaces.len());
                for node in &report.nodes {
                    let rows = labels.iter().filter(|label| label.text == *node).count();
                    prop_assert!(rows >= report.namespaces.len());
                }
                let said = |style: Style| {
                    let mine = labels.iter().filter(|label| label.style == style);
                    mine.map(|label| label.text.clone()).collect::<Vec<_>>().join(" ")
                };
                let (says, sums) = (said(Style::Says), said(Style::Sum));
                let main = sides::main_fault(&report);
                for ns in &report.namespaces {
                    let readings = main.map(|fault| sides::readings(&report, ns, fault)).unwrap_or_default();
                    prop_assert!(readings.iter().all(|reading| says.contains(&reading.words)));
                    let sum = sides::sum(&report, ns, &readings).unwrap_or_default();
                    prop_assert!(sums.contains(&sum), "{sum} in {sums}");
                }
            }
        }
    }

    #[test]
    fn events_are_read_in_the_order_of_their_times() {
        let mark = |at: u64, what: &str| Mark { at: at * 1_000_000, what: what.into(), ns: String::new() };
        // As they come from a run: not in order, and the last two near the right end.
        let marks = vec![
            mark(14_300, "cart: replicas equal"),
            mark(13_830, "healed"),
            mark(3_444, "bank: majority writes again"),
        ];
        let report = Report { to: 16_540_000_000, marks, ..Report::default() };
        let words = ["bank: majority writes again", "healed", "cart: replicas equal"];
        for (form, expected) in [(Form::Wide, words), (Form::Narrow, ["1", "2", "3"])] {
            let labels = Sheet::of(&report, form).words.into_labels();
            let mut marked: Vec<_> = labels.iter().filter(|label| label.style == Style::Marked).collect();
            marked.sort_by(|a, b| (a.area.top, a.area.left).partial_cmp(&(b.area.top, b.area.left)).unwrap());
            let read: Vec<_> = marked.iter().map(|label| label.text.as_str()).collect();
            assert_eq!(read, expected, "{form:?}");
        }
    }
}
