//! Where the words of a drawing stand: pure, from wishes to places, so that a test can show for any run
//! that no words lie on one another and none leave their drawing. Widths are those of a wide font; in a
//! narrower one the same places have more room.

use maud::{Markup, html};

use crate::words::px;

/// Hundredths of the font's size, from the space to the tilde: DejaVu Sans, rounded up.
#[rustfmt::skip]
const PLAIN: [u8; 95] = [
    32, 41, 46, 84, 64, 96, 78, 28, 40, 40, 50, 84, 32, 37, 32, 34, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 34, 34,
    84, 84, 84, 54, 100, 69, 69, 70, 78, 64, 58, 78, 76, 30, 30, 66, 56, 87, 75, 79, 61, 79, 70, 64, 62, 74, 69, 99,
    69, 62, 69, 40, 34, 40, 84, 50, 50, 62, 64, 55, 64, 62, 36, 64, 64, 28, 28, 58, 28, 98, 64, 62, 64, 64, 42, 53,
    40, 64, 60, 82, 60, 60, 53, 64, 34, 64, 84,
];
/// The same of its bold face.
#[rustfmt::skip]
const BOLD: [u8; 95] = [
    35, 46, 53, 84, 70, 101, 88, 31, 46, 46, 53, 84, 38, 42, 38, 37, 70, 70, 70, 70, 70, 70, 70, 70, 70, 70, 40, 40,
    84, 84, 84, 59, 100, 78, 77, 74, 84, 69, 69, 83, 84, 38, 38, 78, 64, 100, 84, 86, 74, 86, 78, 73, 69, 82, 78,
    111, 78, 73, 73, 46, 37, 46, 84, 50, 50, 68, 72, 60, 72, 68, 44, 72, 72, 35, 35, 67, 35, 105, 72, 69, 72, 72,
    50, 60, 48, 72, 66, 93, 65, 66, 59, 72, 37, 72, 84,
];
/// Any other character.
const OTHER: u8 = 100;
/// From a text's baseline up and down, in parts of its size.
const ABOVE: f64 = 0.82;
const BELOW: f64 = 0.26;
/// Between the line of a mark and the words beside it, and between the words of two marks.
const BESIDE: f64 = 5.0;
const APART: f64 = 9.0;
/// Less than is drawn.
const ROUNDING: f64 = 1e-6;
/// What is left free on both sides of a line that comes down between words.
const CLEAR: f64 = 3.0;

/// A face and its size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Font {
    pub(super) size: f64,
    pub(super) bold: bool,
}

impl Font {
    /// At most how wide a text is.
    pub(super) fn width(self, text: &str) -> f64 {
        let table = if self.bold { &BOLD } else { &PLAIN };
        let of = |c: char| {
            let place = (c as usize).checked_sub(usize::from(b' '));
            place.and_then(|place| table.get(place)).copied().unwrap_or(OTHER)
        };
        text.chars().map(|c| f64::from(of(c))).sum::<f64>() * self.size / 100.0
    }

    /// The text, or as much of it as there is room for, with dots at the end; empty where not even those fit.
    pub(super) fn fit(self, text: &str, room: f64) -> String {
        if self.width(text) <= room {
            return text.to_owned();
        }
        let cut = |count: usize| text.chars().take(count).chain(['\u{2026}']).collect::<String>();
        let most = (0..text.chars().count()).rev().map(cut).find(|text| self.width(text) <= room);
        most.unwrap_or_default()
    }

    /// The text in lines: the first has so much room, the others so much. A word that is wider than its line
    /// is cut.
    pub(super) fn wrap(self, text: &str, first: f64, others: f64) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        let mut line = String::new();
        // Not at the narrow spaces within numbers.
        for word in text.split(' ').filter(|word| !word.is_empty()) {
            let room = if lines.is_empty() { first } else { others };
            let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
            if self.width(&longer) <= room {
                line = longer;
                continue;
            }
            if !line.is_empty() || lines.is_empty() && first < others {
                lines.push(std::mem::take(&mut line));
            }
            let room = if lines.is_empty() { first } else { others };
            line = self.fit(word, room);
        }
        if !line.is_empty() {
            lines.push(line);
        }
        lines
    }
}

/// A piece of a drawing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Area {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl Area {
    pub(super) fn new(left: f64, top: f64, width: f64, height: f64) -> Self {
        Self { left, top, right: left + width, bottom: top + height }
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    pub(super) fn holds(&self, other: &Self) -> bool {
        self.left <= other.left + ROUNDING
            && other.right <= self.right + ROUNDING
            && self.top <= other.top + ROUNDING
            && other.bottom <= self.bottom + ROUNDING
    }
}

/// Which part of a text stands at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// How words look: a class of the style sheet, and a font.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Names of rows, numbers of axes.
    Soft,
    /// A namespace.
    Name,
    /// A sentence about a side.
    Says,
    /// Whom it is about.
    Who,
    /// What it comes to.
    Sum,
    /// A mark.
    Marked,
    /// In the bar of a fault.
    OnFault,
    /// In the bar of an operation.
    InBar,
    /// The number of a node, and of one that leads.
    Number,
    Leads,
    /// The sign of a leader.
    Star,
    /// The name of a plot.
    Plot,
    /// The name of a line or of a dot.
    Line,
}

impl Style {
    fn class(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Name => "name",
            Self::Says => "says",
            Self::Who | Self::Sum => "sum",
            Self::Marked => "marked",
            Self::OnFault => "onfault",
            Self::InBar => "inbar",
            Self::Number => "number",
            Self::Leads => "number leads",
            Self::Star => "star",
            Self::Plot => "plot",
            Self::Line => "small",
        }
    }

    pub(super) fn font(self) -> Font {
        let (size, bold) = match self {
            Self::Soft | Self::InBar => (12.0, false),
            Self::Name => (15.0, true),
            Self::Says => (12.5, false),
            Self::Who | Self::Sum => (12.5, true),
            Self::Marked | Self::Plot => (12.0, true),
            Self::OnFault => (11.0, true),
            Self::Number | Self::Leads => (10.0, true),
            Self::Star => (11.0, false),
            Self::Line => (11.0, false),
        };
        Font { size, bold }
    }
}

/// Words at their place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Label {
    pub(super) style: Style,
    pub(super) text: String,
    pub(super) area: Area,
    anchor: Anchor,
    /// What is said when it is pointed at.
    title: Option<String>,
}

impl Label {
    /// With its baseline at this height.
    pub(super) fn new(style: Style, text: impl Into<String>, x: f64, y: f64, anchor: Anchor) -> Self {
        let (text, font) = (text.into(), style.font());
        let width = font.width(&text);
        let left = match anchor {
            Anchor::Start => x,
            Anchor::Middle => x - width / 2.0,
            Anchor::End => x - width,
        };
        let area = Area::new(left, y - font.size * ABOVE, width, font.size * (ABOVE + BELOW));
        Self { style, text, area, anchor, title: None }
    }

    pub(super) fn titled(self, title: impl Into<String>) -> Self {
        Self { title: Some(title.into()), ..self }
    }

    /// The same words, as far to the side as they must be to stand between these edges.
    pub(super) fn between(mut self, left: f64, right: f64) -> Self {
        let shift = (right - self.area.right).min(0.0);
        let shift = shift.max(left - self.area.left);
        self.area.left += shift;
        self.area.right += shift;
        self
    }

    /// The same words, so much further down.
    pub(super) fn down(mut self, y: f64) -> Self {
        self.area.top += y;
        self.area.bottom += y;
        self
    }

    pub(super) fn draw(&self) -> Markup {
        let Font { size, bold } = self.style.font();
        let (x, anchor) = match self.anchor {
            Anchor::Start => (self.area.left, None),
            Anchor::Middle => ((self.area.left + self.area.right) / 2.0, Some("middle")),
            Anchor::End => (self.area.right, Some("end")),
        };
        let y = self.area.top + size * ABOVE;
        html! {
            text class=(self.style.class()) x=(px(x)) y=(px(y)) font-size=(size) font-weight=[bold.then_some("650")] text-anchor=[anchor] {
                @if let Some(title) = &self.title { title { (title) } }
                (self.text)
            }
        }
    }
}

/// All words of a drawing. Each stands where nothing stood before it, or not at all.
#[derive(Debug)]
pub(super) struct Board {
    bounds: Area,
    labels: Vec<Label>,
}

impl Board {
    pub(super) fn new(bounds: Area) -> Self {
        Self { bounds, labels: Vec::new() }
    }

    /// Puts the first of these wishes that is free; none if none is.
    pub(super) fn put(&mut self, wishes: impl IntoIterator<Item = Label>) -> bool {
        let free = |label: &Label| {
            self.bounds.holds(&label.area)
                && !self.labels.iter().any(|other| other.area.overlaps(&label.area))
        };
        let Some(label) = wishes.into_iter().find(free) else { return false };
        self.labels.push(label);
        true
    }

    /// Puts words that have one place.
    pub(super) fn put_at(&mut self, style: Style, text: impl Into<String>, x: f64, y: f64, anchor: Anchor) {
        self.put([Label::new(style, text, x, y, anchor)]);
    }

    pub(super) fn into_labels(self) -> Vec<Label> {
        self.labels
    }

    pub(super) fn draw(&self) -> Markup {
        html! { @for label in &self.labels { (label.draw()) } }
    }
}

/// The words of a mark: in a lane, the first of which is the uppermost, from left to right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Flag {
    /// Where the mark's line is.
    pub(super) x: f64,
    pub(super) lane: usize,
    pub(super) left: f64,
    pub(super) right: f64,
}

impl Flag {
    /// Whether the line goes up beside the words, or ends below them.
    pub(super) fn beside(&self) -> bool {
        self.left > self.x
    }

    /// Whether these words can stand after those of an earlier mark, so that the earlier one is read first
    /// and neither's line goes through the other's words.
    fn follows(&self, earlier: &Self) -> bool {
        match self.lane.cmp(&earlier.lane) {
            std::cmp::Ordering::Equal => self.left >= earlier.right + APART,
            std::cmp::Ordering::Greater => !self.covers(earlier.x),
            std::cmp::Ordering::Less => self.left >= earlier.right + APART && !earlier.covers(self.x),
        }
    }

    fn covers(&self, x: f64) -> bool {
        self.left - CLEAR < x && x < self.right + CLEAR
    }
}

/// Where the words of marks stand, given their places and widths in the order of their times: to the right of
/// their line, or as far to the left as they must. What finds no room in any lane has no words.
pub(super) fn flags(marks: &[(f64, f64)], lanes: usize, left: f64, right: f64) -> Vec<Option<Flag>> {
    let mut placed: Vec<Option<Flag>> = Vec::with_capacity(marks.len());
    for (x, width) in marks {
        let from = (x + BESIDE).min(right - width);
        let flag = |lane| Flag { x: *x, lane, left: from, right: from + width };
        let free = |flag: &Flag| placed.iter().flatten().all(|earlier| flag.follows(earlier));
        let found = (0..lanes).map(flag).filter(|_| from >= left).find(free);
        placed.push(found);
    }
    placed
}

/// Where things of these widths stand, one after the other, in lines as long as the room: (left edge, line).
pub(super) fn flow(widths: &[f64], left: f64, right: f64) -> Vec<(f64, usize)> {
    let (mut x, mut line) = (left, 0);
    let mut places = Vec::with_capacity(widths.len());
    for width in widths {
        if x > left && x + width > right {
            (x, line) = (left, line + 1);
        }
        places.push((x, line));
        x += width;
    }
    places
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAYS: Font = Font { size: 12.5, bold: false };

    /// Words that lie on one another, or leave the drawing.
    pub(crate) fn wrong(labels: &[Label], bounds: &Area) -> Vec<String> {
        let mut wrong = Vec::new();
        for (at, label) in labels.iter().enumerate() {
            if !bounds.holds(&label.area) {
                wrong.push(format!("{:?} leaves the drawing", label.text));
            }
            for other in labels.iter().take(at).filter(|other| other.area.overlaps(&label.area)) {
                wrong.push(format!("{:?} lies on {:?}", label.text, other.text));
            }
        }
        wrong
    }

    #[test]
    fn the_marks_of_a_healing_are_read_in_the_order_of_their_times() {
        // As in the demo: healed, and soon after it equal, near the right edge.
        let marks = [(337.0, 180.0), (955.0, 50.0), (984.0, 135.0)];
        let flags: Vec<Flag> = flags(&marks, 2, 0.0, 1_120.0).into_iter().flatten().collect();
        let places: Vec<_> = flags.iter().map(|flag| (flag.lane, flag.left, flag.right)).collect();
        assert_eq!(places, [(0, 342.0, 522.0), (0, 960.0, 1_010.0), (1, 985.0, 1_120.0)]);
        assert!(flags.iter().all(Flag::beside));
    }

    #[test]
    fn sentences_are_wrapped_and_words_that_are_too_wide_are_cut() {
        let lines = SAYS.wrap("refuses everything: it does not guess", 60.0, 140.0);
        assert_eq!(lines, ["refuses", "everything: it does", "not guess"]);
        assert_eq!(SAYS.wrap("", 10.0, 10.0), Vec::<String>::new());
        assert_eq!(SAYS.fit("n1,n2,n3", 41.0), "n1,n\u{2026}");
        assert_eq!(SAYS.fit("n1", 1.0), "");
    }

    #[test]
    fn a_place_that_is_taken_is_not_given_again() {
        let mut board = Board::new(Area::new(0.0, 0.0, 100.0, 40.0));
        let label = |x: f64, y: f64| Label::new(Style::Soft, "words", x, y, Anchor::Start);
        assert!(board.put([label(10.0, 20.0)]));
        assert!(!board.put([label(20.0, 22.0), label(90.0, 20.0), label(0.0, 2.0)]));
        assert!(board.put([label(20.0, 22.0), label(10.0, 36.0)]));
        assert_eq!(wrong(&board.labels, &board.bounds), Vec::<String>::new());
        let pushed = Label::new(Style::Soft, "words", 95.0, 20.0, Anchor::Middle).between(0.0, 100.0);
        assert_eq!(pushed.area.right, 100.0);
    }

    proptest! {
        #[test]
        fn words_of_marks_keep_apart_and_in_order(
            marks in prop::collection::vec((118.0..1_106.0_f64, 5.0..400.0_f64), 0..24),
            lanes in 1_usize..5,
        ) {
            let mut marks = marks;
            marks.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (left, right) = (0.0, 1_120.0);
            let flags = flags(&marks, lanes, left, right);
            prop_assert_eq!(flags.len(), marks.len());
            prop_assert!(flags.first().is_none_or(Option::is_some), "the first has all the room");
            let placed: Vec<Flag> = flags.into_iter().flatten().collect();
            for (at, flag) in placed.iter().enumerate() {
                prop_assert!(flag.lane < lanes && left <= flag.left && flag.right <= right + 1e-9);
                for earlier in &placed[..at] {
                    let apart = flag.left >= earlier.right || flag.right <= earlier.left;
                    prop_assert!(flag.lane != earlier.lane || apart, "{earlier:?} {flag:?}");
                    // Read line by line, the earlier one comes first; beside each other, it is on the left.
                    prop_assert!(flag.lane > earlier.lane || earlier.right <= flag.left, "{earlier:?} {flag:?}");
                    // A line comes down from its words, through all lanes below them.
                    for (upper, lower) in [(earlier, flag), (flag, earlier)] {
                        let through = lower.left < upper.x && upper.x < lower.right;
                        prop_assert!(upper.lane >= lower.lane || !through, "{upper:?} {lower:?}");
                    }
                }
            }
        }

        #[test]
        fn no_line_of_a_sentence_is_wider_than_its_room(
            text in "[a-zA-Z0-9,%()\u{202f}\u{e9}\u{4e2d} ]{0,200}",
            first in 0.0..300.0_f64,
            others in 30.0..600.0_f64,
        ) {
            let lines = SAYS.wrap(&text, first, others);
            for (at, line) in lines.iter().enumerate() {
                let room = if at == 0 { first } else { others };
                prop_assert!(SAYS.width(line) <= room + 1e-9, "{line:?} in {room}");
            }
            let cut = lines.iter().any(|line| line.contains('\u{2026}'));
            let words = |text: &str| -> Vec<String> {
                text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
            };
            prop_assert!(cut || words(&lines.join(" ")) == words(&text), "{lines:?}");
        }

        #[test]
        fn what_flows_stays_between_its_edges(
            widths in prop::collection::vec(1.0..300.0_f64, 0..12),
            right in 300.0..900.0_f64,
        ) {
            let places = flow(&widths, 0.0, right);
            for (at, ((x, line), width)) in places.iter().zip(&widths).enumerate() {
                prop_assert!(*x >= 0.0 && x + width <= right + 1e-9);
                for ((before, earlier), wide) in places.iter().zip(&widths).take(at) {
                    prop_assert!(line > earlier || line == earlier && before + wide <= x + 1e-9);
                }
            }
        }
    }
}
