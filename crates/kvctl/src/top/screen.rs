//! How `kvctl top` looks: lines of pieces, each with a tone that a terminal may colour. Everything is said in
//! words or signs too, and fits the width.

use std::time::Duration;

use kv_client::PeerState;
use kv_types::{NodeId, counted, noun};

use super::sight::{Probed, Said, Served, Sight, Tally};
use crate::output::{broken_at, time_of_day};

/// Narrowest picture: a narrower terminal cuts it.
const NARROWEST: usize = 60;
/// Width of the names of namespaces and of modes.
const NAME: usize = 12;
const MODE: usize = 10;
/// Narrowest column of a node, in which a time fits, and of a name.
const NARROW: usize = 7;
/// Widths of what a node says of itself, where there is room and where there is little.
const ROOMY: [usize; 6] = [6, 11, 6, 11, 8, 10];
const TIGHT: [usize; 6] = [5, 10, 6, 11, 7, 9];

/// How a piece is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Head,
    Good,
    Bad,
    Unsure,
}

/// Some text of one tone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) tone: Tone,
}

fn piece(text: impl Into<String>, tone: Tone) -> Piece {
    Piece { text: text.into(), tone }
}

/// Text in a cell: cut or filled to its width, with a space after it.
fn cell(text: &str, width: usize, tone: Tone) -> Piece {
    let fits = width.saturating_sub(1);
    let cut: String = match text.chars().count() > fits {
        true => text.chars().take(fits.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    };
    piece(format!("{cut:<width$}"), tone)
}

/// What of the picture is shown.
#[derive(Debug, Clone, Copy)]
struct Shown {
    /// Lines between its parts.
    gaps: bool,
    /// Whose list of namespaces it is.
    source: bool,
    /// So many namespaces and nodes.
    namespaces: usize,
    nodes: usize,
}

/// The whole picture, or of it what fits so many lines, and how much more there is. `live`: it is drawn again
/// and again, until a key ends that.
pub(crate) fn draw(sight: &Sight, width: usize, height: usize, live: bool) -> Vec<Vec<Piece>> {
    let (namespaces, nodes) = (sight.served.len(), sight.nodes.len());
    let mut shown = Shown { gaps: true, source: true, namespaces, nodes };
    loop {
        let mut lines = part(sight, width.max(NARROWEST), shown, live);
        if lines.len() <= height {
            return lines;
        }
        match shown {
            Shown { gaps: true, .. } => shown.gaps = false,
            Shown { namespaces: 2.., .. } => shown.namespaces -= 1,
            Shown { source: true, .. } if !sight.may_be_old => shown.source = false,
            Shown { nodes: 2.., .. } => shown.nodes -= 1,
            _ => {
                let hidden = lines.split_off(height.saturating_sub(1)).len();
                let more =
                    format!("... {} more: a taller terminal shows all", counted(hidden, "line", "lines"));
                lines.push(vec![piece(more, Tone::Plain)]);
                return lines;
            }
        }
    }
}

fn part(sight: &Sight, width: usize, shown: Shown, live: bool) -> Vec<Vec<Piece>> {
    let gap = || shown.gaps.then(Vec::new);
    let mut lines = head(sight, width);
    lines.extend(gap());
    lines.extend(serving(sight, width, shown.namespaces));
    lines.extend(shown.source.then(|| source(sight)));
    lines.extend(gap());
    lines.push(tally("strong", &sight.strong));
    lines.push(tally("available", &sight.available));
    lines.extend(gap());
    lines.extend(nodes(sight, width, shown.nodes));
    lines.extend(gap());
    let legend = "hears: + answers, ? silent for a moment, - silent for long";
    let end = if live { "   q ends" } else { "" };
    lines.push(vec![piece(format!("{legend}{end}"), Tone::Plain)]);
    lines
}

/// When it is, what is broken on purpose, and whether this is of now: beside each other, or else below.
fn head(sight: &Sight, width: usize) -> Vec<Vec<Piece>> {
    let mut lines = vec![vec![piece(format!("Quorate  {} UTC", time_of_day(sight.at_ms)), Tone::Head)]];
    let mut add = |text: &str, tone| {
        let used: usize = lines.last().into_iter().flatten().map(|piece| piece.text.chars().count()).sum();
        match lines.last_mut() {
            Some(line) if used + 3 + text.chars().count() <= width => {
                line.push(piece(format!("   {text}"), tone));
            }
            _ => lines.extend(broken_at(text, width).lines().map(|line| vec![piece(line, tone)])),
        }
    };
    if let Some(faults) = &sight.faults {
        add(faults, if faults.contains("no faults") { Tone::Plain } else { Tone::Bad });
    }
    if let Some(trouble) = &sight.trouble {
        add(&format!("NOT OF NOW: {trouble}"), Tone::Bad);
    }
    lines
}

/// Whose list of namespaces it is.
fn source(sight: &Sight) -> Vec<Piece> {
    let known = format!("namespaces as {} knows them", sight.named_by);
    match sight.may_be_old {
        false => vec![piece(known, Tone::Plain)],
        true => vec![piece(format!("{known}, which reaches no majority: they may be old"), Tone::Bad)],
    }
}

/// A read of each namespace at each node, a second ago at most; of more than `most` those that some node
/// refuses come first.
fn serving(sight: &Sight, width: usize, most: usize) -> Vec<Vec<Piece>> {
    if sight.served.is_empty() {
        return vec![vec![piece(
            "no namespaces yet: kvctl ns create NAME --mode strong|available",
            Tone::Plain,
        )]];
    }
    let count = sight.nodes.len().max(1);
    // Where there are many nodes, the names of namespaces give way.
    let name = width.saturating_sub(MODE + count * NARROW).clamp(NARROW, NAME);
    let column = (width.saturating_sub(name + MODE) / count).clamp(NARROW, 16);
    let mut lines = vec![
        [cell("a read now", name, Tone::Head), cell("mode", MODE, Tone::Head)]
            .into_iter()
            .chain(sight.nodes.iter().map(|(node, _)| cell(&format!("at {node}"), column, Tone::Head)))
            .collect::<Vec<_>>(),
    ];
    let mut all: Vec<&Served> = sight.served.iter().collect();
    if all.len() > most {
        let refused =
            |served: &Served| served.at.iter().any(|(_, how)| matches!(how, Some(Probed::Refused(_))));
        all.sort_by_key(|served| !refused(served));
    }
    let more = sight.more + all.split_off(all.len().min(most)).len();
    for served in all {
        let mut line =
            vec![cell(&served.name, name, Tone::Plain), cell(&served.mode.to_string(), MODE, Tone::Plain)];
        line.extend(served.at.iter().map(|(_, probed)| match probed {
            Some(Probed::Answered(took)) => cell(&ms(*took), column, Tone::Good),
            Some(Probed::Refused(reason)) => cell(reason.code_name(), column, Tone::Bad),
            None => cell("-", column, Tone::Unsure),
        }));
        lines.push(line);
    }
    lines.extend(and_more(more, "namespace", "namespaces"));
    lines
}

/// How many are not shown, if some are not.
fn and_more(count: usize, one: &str, several: &str) -> Option<Vec<Piece>> {
    let said = format!("and {count} more {}", noun(count, one, several));
    (count > 0).then(|| vec![piece(said, Tone::Plain)])
}

/// A time in no more digits than are looked at.
fn ms(took: Duration) -> String {
    let ms = took.as_secs_f64() * 1e3;
    if ms < 99.95 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

fn tally(mode: &str, tally: &Tally) -> Vec<Piece> {
    let ms = |took: Option<Duration>| took.map_or("-".to_owned(), ms);
    let percent = (100 * tally.answered).checked_div(tally.asked).unwrap_or(0);
    let tone = match (tally.asked, tally.answered == tally.asked) {
        (0, _) => Tone::Plain,
        (_, true) => Tone::Good,
        (_, false) => Tone::Bad,
    };
    vec![
        cell(mode, NAME, Tone::Head),
        piece(
            format!("{} of {} answered ({percent} %)", tally.answered, counted(tally.asked, "read", "reads")),
            tone,
        ),
        piece(format!("   median {}   longest {}", ms(tally.median), ms(tally.longest)), Tone::Plain),
    ]
}

/// What so many of the nodes say of themselves.
fn nodes(sight: &Sight, width: usize, most: usize) -> Vec<Vec<Piece>> {
    const HEARS: &str = "hears ";
    let names: usize = sight.nodes.iter().map(|(node, _)| node.to_string().len() + 1).sum();
    let fits = |columns: &[usize]| columns.iter().sum::<usize>() + HEARS.len() + names <= width + 1;
    let widths = if fits(&ROOMY) { ROOMY } else { TIGHT };
    let columns = ["node", "role", "term", "log", "hints", "siblings"].into_iter().zip(widths);
    let mut head: Vec<Piece> = columns.map(|(name, width)| cell(name, width, Tone::Head)).collect();
    let [node_width, role_width, term_width, log_width, hints_width, siblings_width] = widths;
    let names: Vec<String> = sight.nodes.iter().map(|(node, _)| node.to_string()).collect();
    head.push(piece(format!("{HEARS}{}", names.join(" ")), Tone::Head));
    let mut lines = vec![head];
    for (node, said) in sight.nodes.iter().take(most) {
        let Some(said) = said else {
            lines.push(vec![
                cell(&node.to_string(), node_width, Tone::Plain),
                piece("does not answer here", Tone::Bad),
            ]);
            continue;
        };
        let tone = if said.role == "leader" { Tone::Good } else { Tone::Plain };
        let some = |count| if count > 0 { Tone::Unsure } else { Tone::Plain };
        let mut line = vec![
            cell(&node.to_string(), node_width, Tone::Plain),
            cell(&said.role, role_width, tone),
            cell(&said.term.to_string(), term_width, Tone::Plain),
            cell(&said.log.to_string(), log_width, Tone::Plain),
            cell(&said.hints.to_string(), hints_width, some(said.hints)),
            cell(&said.siblings.to_string(), siblings_width, some(said.siblings)),
            piece(" ".repeat(HEARS.len()), Tone::Plain),
        ];
        line.extend(hears(*node, said, sight));
        lines.push(line);
    }
    lines.extend(and_more(sight.nodes.len().saturating_sub(most), "node", "nodes"));
    lines
}

/// Whom a node hears, below their names: a cut in one direction is seen on one side only.
fn hears(node: NodeId, said: &Said, sight: &Sight) -> Vec<Piece> {
    let sign = |other: &NodeId| match said.hears.get(other) {
        _ if *other == node => ("·", Tone::Plain),
        Some(PeerState::Up) => ("+", Tone::Good),
        Some(PeerState::Suspected) => ("?", Tone::Unsure),
        Some(PeerState::Down) => ("-", Tone::Bad),
        Some(PeerState::Unspecified) | None => (" ", Tone::Plain),
    };
    let width = |other: &NodeId| other.to_string().len() + 1;
    sight
        .nodes
        .iter()
        .map(|(other, _)| (sign(other), width(other)))
        .map(|((sign, tone), width)| piece(format!("{sign:<width$}"), tone))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::{Mode, Reason};

    fn cut() -> Sight {
        let minority = [1, 2];
        let said = |node: u64| {
            let same = |other: u64| minority.contains(&node) == minority.contains(&other);
            let state = |other| if same(other) { PeerState::Up } else { PeerState::Down };
            Said {
                role: if node == 3 { "leader" } else { "follower" }.into(),
                term: 4,
                log: 1_234_567,
                hints: node * 100,
                siblings: 3,
                hears: (1..=5)
                    .filter(|other| *other != node)
                    .map(|other| (NodeId(other), state(other)))
                    .collect(),
            }
        };
        let answered = Probed::Answered(Duration::from_micros(1_234));
        let at = |refused: bool| {
            let how = |node| match refused && minority.contains(&node) {
                true => Probed::Refused(Reason::NoQuorum),
                false => answered,
            };
            (1..=5).map(|node| (NodeId(node), Some(how(node)))).collect()
        };
        let tally = |answered| Tally {
            asked: 300,
            answered,
            median: Some(Duration::from_millis(1)),
            longest: Some(Duration::from_millis(20)),
        };
        Sight {
            at_ms: 0,
            nodes: (1..=5).map(|node| (NodeId(node), (node != 5).then(|| said(node)))).collect(),
            served: vec![
                Served { name: "bank".into(), mode: Mode::Strong, at: at(true) },
                Served { name: "a-name-that-is-too-long".into(), mode: Mode::Available, at: at(false) },
            ],
            strong: tally(180),
            available: tally(300),
            more: 0,
            named_by: NodeId(1),
            may_be_old: true,
            faults: Some("LAB  12 links cut or slow for 8 s".into()),
            trouble: None,
        }
    }

    fn text(lines: Vec<Vec<Piece>>) -> Vec<String> {
        lines.into_iter().map(|line| line.into_iter().map(|piece| piece.text).collect()).collect()
    }

    #[test]
    fn a_partition_is_read_off_in_eighty_columns_without_colour() {
        let lines = text(draw(&cut(), 80, usize::MAX, true));
        for line in &lines {
            assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
        }
        let line = |start: &str| lines.iter().find(|line| line.starts_with(start)).expect(start);
        assert_eq!(line("bank").matches("NO_QUORUM").count(), 2, "{}", line("bank"));
        assert_eq!(line("bank").matches("1.2 ms").count(), 3);
        assert_eq!(line("a-name-tha").matches("1.2 ms").count(), 5);
        assert!(line("strong").contains("180 of 300 reads answered (60 %)"));
        assert!(line("available").contains("(100 %)"));
        assert!(line("n1").ends_with("·  +  -  -  -  "), "{:?}", line("n1"));
        assert!(line("n3").ends_with("-  -  ·  +  +  "), "{:?}", line("n3"));
        assert!(line("n5").contains("does not answer"));
        assert!(lines[0].contains("12 links cut"));
        assert!(line("namespaces as n1 knows them").ends_with("no majority: they may be old"));
        let whole = text(draw(&Sight { may_be_old: false, ..cut() }, 80, usize::MAX, true));
        assert!(whole.contains(&"namespaces as n1 knows them".to_owned()), "{whole:?}");
    }

    /// The largest lab, all counts at their widest, and much to say of it.
    #[test]
    fn nine_nodes_fit_eighty_columns() {
        let said = |node: u64| Said {
            role: "candidate".into(),
            term: 12_345,
            log: 1_234_567_890,
            hints: 123_456,
            siblings: 1_234_567,
            hears: (1..=9)
                .filter(|other| *other != node)
                .map(|other| (NodeId(other), PeerState::Up))
                .collect(),
        };
        let slow = Some(Probed::Answered(Duration::from_micros(499_960)));
        let tally = Tally {
            asked: 4_320,
            answered: 4_320,
            median: Some(Duration::from_micros(499_960)),
            longest: Some(Duration::from_micros(499_960)),
        };
        let nine = Sight {
            nodes: (1..=9).map(|node| (NodeId(node), Some(said(node)))).collect(),
            served: vec![Served {
                name: "a-name-that-is-too-long".into(),
                mode: Mode::Available,
                at: (1..=9).map(|node| (NodeId(node), slow)).collect(),
            }],
            strong: tally,
            available: tally,
            faults: Some(
                "LAB  72 links cut or slow for 12345 s, n1 n2 n3 n4 paused, n5 n6 n7 n8 down".into(),
            ),
            trouble: Some(
                "cannot reach any of 127.0.0.1:7101, 127.0.0.1:7102, 127.0.0.1:7103 in time".into(),
            ),
            ..cut()
        };
        let lines = text(draw(&nine, 80, usize::MAX, true));
        for line in &lines {
            assert!(line.trim_end().chars().count() <= 80, "{} columns: {line}", line.chars().count());
        }
        let whole = lines.join("\n");
        assert!(whole.contains("n5 n6 n7 n8 down") && whole.contains("127.0.0.1:7103"), "{whole}");
        assert_eq!(whole.matches("500 ms").count(), 9 + 4, "{whole}");
        assert!(whole.contains("1234567890") && whole.ends_with("q ends"), "{whole}");
        assert!(text(draw(&nine, 80, usize::MAX, false)).join("\n").ends_with("- silent for long"));
    }

    /// 66 namespaces in twelve lines, as below an editor: what fits, and how many are not shown.
    #[test]
    fn a_low_terminal_shows_what_fits_and_says_how_much_more_there_is() {
        let well = Served { at: cut().served[1].at.clone(), ..cut().served[1].clone() };
        let served = (0..7).map(|n| Served { name: format!("ns{n}"), ..well.clone() });
        // The one in trouble is the last of those that are probed.
        let served: Vec<Served> = served.chain([cut().served[0].clone()]).collect();
        let many = Sight { served, more: 58, may_be_old: false, ..cut() };
        let at = |height| text(draw(&many, 80, height, true));
        let whole = at(usize::MAX);
        for height in [whole.len(), whole.len() - 1, 20, 15, 12] {
            let lines = at(height);
            assert!(lines.len() <= height, "{height}: {lines:#?}");
            let said = lines.join("\n");
            let namespaces =
                lines.iter().filter(|line| line.contains("ms") && !line.contains("median")).count();
            assert!(said.contains(&format!("and {} more namespaces", 66 - namespaces)), "{said}");
            let shown =
                lines.iter().filter(|line| (1..=5).any(|n| line.starts_with(&format!("n{n} ")))).count();
            let hidden = format!("and {} more {}", 5 - shown, noun(5 - shown, "node", "nodes"));
            assert_eq!(said.contains(&hidden), shown < 5, "{said}");
            assert!(said.contains("bank") && said.contains("q ends"), "{said}");
        }
        for height in [1, 2, 5] {
            let lines = at(height);
            assert_eq!(lines.len(), height);
            assert!(lines[height - 1].contains("lines more: a taller terminal"), "{lines:?}");
        }
    }

    #[test]
    fn nothing_is_needed_to_draw() {
        let empty = Sight {
            nodes: Vec::new(),
            served: Vec::new(),
            strong: Tally::default(),
            trouble: Some("gone".into()),
            ..cut()
        };
        let lines = text(draw(&empty, 0, usize::MAX, true));
        assert_eq!(lines[1], "NOT OF NOW: gone", "below what is broken, where there is no room beside it");
        assert!(lines.iter().any(|line| line.contains("0 of 0 reads answered (0 %)")));
    }
}
