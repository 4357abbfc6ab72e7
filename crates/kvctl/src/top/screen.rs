//! How `kvctl top` looks: lines of pieces, each with a tone that a terminal may colour. Everything is said in
//! words or signs too, and fits the width.

use kv_client::PeerState;
use kv_types::{NodeId, counted};

use super::sight::{Probed, Said, Sight, Tally};
use crate::output::time_of_day;

/// Narrowest picture: a narrower terminal cuts it.
const NARROWEST: usize = 60;
/// Width of the names of namespaces and of modes.
const NAME: usize = 12;
const MODE: usize = 10;

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

/// The whole picture.
pub(crate) fn draw(sight: &Sight, width: usize) -> Vec<Vec<Piece>> {
    let width = width.max(NARROWEST);
    let mut lines = vec![head(sight)];
    lines.push(Vec::new());
    lines.extend(serving(sight, width));
    lines.push(source(sight));
    lines.push(Vec::new());
    lines.push(tally("strong", &sight.strong));
    lines.push(tally("available", &sight.available));
    lines.push(Vec::new());
    lines.extend(nodes(sight));
    lines.push(Vec::new());
    lines.push(vec![piece(
        "hears: + answers, ? silent for a moment, - silent for long.   q ends",
        Tone::Plain,
    )]);
    lines
}

fn head(sight: &Sight) -> Vec<Piece> {
    let mut head = vec![piece(format!("Quorate  {} UTC", time_of_day(sight.at_ms)), Tone::Head)];
    if let Some(faults) = &sight.faults {
        let tone = if faults.contains("no faults") { Tone::Plain } else { Tone::Bad };
        head.push(piece(format!("   {faults}"), tone));
    }
    if let Some(trouble) = &sight.trouble {
        head.push(piece(format!("   NOT OF NOW: {trouble}"), Tone::Bad));
    }
    head
}

/// Whose list of namespaces it is.
fn source(sight: &Sight) -> Vec<Piece> {
    let known = format!("namespaces as {} knows them", sight.named_by);
    match sight.may_be_old {
        false => vec![piece(known, Tone::Plain)],
        true => vec![piece(format!("{known}, which reaches no majority: they may be old"), Tone::Bad)],
    }
}

/// A read of each namespace at each node, a second ago at most.
fn serving(sight: &Sight, width: usize) -> Vec<Vec<Piece>> {
    if sight.served.is_empty() {
        return vec![vec![piece(
            "no namespaces yet: kvctl ns create NAME --mode strong|available",
            Tone::Plain,
        )]];
    }
    let column = (width.saturating_sub(NAME + MODE) / sight.nodes.len().max(1)).clamp(7, 16);
    let mut lines = vec![
        [cell("a read now", NAME, Tone::Head), cell("mode", MODE, Tone::Head)]
            .into_iter()
            .chain(sight.nodes.iter().map(|(node, _)| cell(&format!("at {node}"), column, Tone::Head)))
            .collect::<Vec<_>>(),
    ];
    for served in &sight.served {
        let mut line =
            vec![cell(&served.name, NAME, Tone::Plain), cell(&served.mode.to_string(), MODE, Tone::Plain)];
        line.extend(served.at.iter().map(|(_, probed)| match probed {
            Some(Probed::Answered(took)) => {
                cell(&format!("{:.1} ms", took.as_secs_f64() * 1e3), column, Tone::Good)
            }
            Some(Probed::Refused(reason)) => cell(reason.code_name(), column, Tone::Bad),
            None => cell("-", column, Tone::Unsure),
        }));
        lines.push(line);
    }
    if sight.more > 0 {
        lines.push(vec![piece(
            format!("and {} more", counted(sight.more, "namespace", "namespaces")),
            Tone::Plain,
        )]);
    }
    lines
}

fn tally(mode: &str, tally: &Tally) -> Vec<Piece> {
    let ms = |took: Option<std::time::Duration>| {
        took.map_or("-".to_owned(), |took| format!("{:.1} ms", took.as_secs_f64() * 1e3))
    };
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

fn nodes(sight: &Sight) -> Vec<Vec<Piece>> {
    let columns = [("node", 6), ("role", 11), ("term", 6), ("log", 11), ("hints", 8), ("siblings", 10)];
    let mut head: Vec<Piece> = columns.iter().map(|(name, width)| cell(name, *width, Tone::Head)).collect();
    let names: Vec<String> = sight.nodes.iter().map(|(node, _)| node.to_string()).collect();
    head.push(piece(format!("hears {}", names.join(" ")), Tone::Head));
    let mut lines = vec![head];
    for (node, said) in &sight.nodes {
        let Some(said) = said else {
            lines.push(vec![
                cell(&node.to_string(), 6, Tone::Plain),
                piece("does not answer here", Tone::Bad),
            ]);
            continue;
        };
        let tone = if said.role == "leader" { Tone::Good } else { Tone::Plain };
        let mut line = vec![
            cell(&node.to_string(), 6, Tone::Plain),
            cell(&said.role, 11, tone),
            cell(&said.term.to_string(), 6, Tone::Plain),
            cell(&said.log.to_string(), 11, Tone::Plain),
            cell(&said.hints.to_string(), 8, if said.hints > 0 { Tone::Unsure } else { Tone::Plain }),
            cell(&said.siblings.to_string(), 10, if said.siblings > 0 { Tone::Unsure } else { Tone::Plain }),
            piece("      ", Tone::Plain),
        ];
        line.extend(hears(*node, said, sight));
        lines.push(line);
    }
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
    use crate::top::sight::Served;
    use kv_types::{Mode, Reason};
    use std::time::Duration;

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
        let lines = text(draw(&cut(), 80));
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
        let whole = text(draw(&Sight { may_be_old: false, ..cut() }, 80));
        assert!(whole.contains(&"namespaces as n1 knows them".to_owned()), "{whole:?}");
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
        let lines = text(draw(&empty, 0));
        assert!(lines[0].contains("NOT OF NOW: gone"));
        assert!(lines.iter().any(|line| line.contains("0 of 0 reads answered (0 %)")));
    }
}
