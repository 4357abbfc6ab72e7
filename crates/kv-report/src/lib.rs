//! The report of a run: one static HTML file without a single request, for every scenario and for the demo.
//!
//! [`Report`] is plain data that the program which ran something fills; [`html`] draws it; [`strip_svg`]
//! draws the CAP strip alone; [`write`] leaves all of it in a folder. The page begins with the verdict and
//! the picture, for they say what happened. What follows has the order in which a reader should doubt it:
//! what is claimed, whether enough happened for that to mean anything, and only then the results, the
//! plots and the price.
//!
//! [`demo`] is the storyline that shows what each mode does in a network partition, its verdict, its receipt
//! and its report.

mod axis;
pub mod demo;
mod evidence;
mod facts;
mod fill;
mod labels;
mod model;
mod plots;
mod rows;
mod sides;
mod strip;
mod tables;
mod topology;
mod words;

pub use model::{
    Answer, Control, Coverage, Failure, Fault, Leader, LogLine, Mark, Namespace, Point, Report, Series,
    Setting, Siblings, Side, Stale, Step, Tally, Topology,
};

use std::path::Path;

use kv_check::judge::Ruling;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use kv_lab::LabError;
use strip::Form;

/// Colours and shapes, the same everywhere: a page's, and a drawing's.
const COLOURS: &str = include_str!("colours.css");
/// How drawings look.
const DRAWING: &str = include_str!("drawing.css");
/// How the page looks.
const PAGE: &str = include_str!("page.css");

/// The sections of the page after the verdict, in their order: (anchor, heading). The picture comes first.
const SECTIONS: [(&str, &str); 9] = [
    ("strip", "Who was answered, where and when"),
    ("claims", "What is claimed, and what is not"),
    ("coverage", "Did enough happen?"),
    ("properties", "What was judged"),
    ("plots", "Latency, rate, and the price of answering"),
    ("settings", "The settings side by side"),
    ("evidence", "Where it broke"),
    ("controls", "Would the alarms have rung?"),
    ("notes", "How to check this yourself"),
];

/// The report as one HTML file.
pub fn html(report: &Report) -> String {
    let bodies = [
        strip_section(report),
        tables::claims(report),
        tables::coverage(report),
        tables::properties(report),
        plots_section(report),
        tables::settings(report),
        evidence::section(report),
        tables::controls(report),
        tables::notes(report),
    ];
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (verdict(report.ruling).0) ": " (report.scenario) " \u{b7} Quorate" }
                style { (PreEscaped(COLOURS)) (PreEscaped(DRAWING)) (PreEscaped(PAGE)) }
            }
            body {
                main {
                    (head(report))
                    @for (at, ((anchor, heading), body)) in SECTIONS.iter().zip(bodies).enumerate() {
                        section id=(anchor) { h2 { (heading) } (body) }
                        @if at == 0 { (particulars(report)) }
                    }
                }
            }
        }
    };
    page.into_string()
}

/// The CAP strip alone, as an SVG file with its styles in it.
pub fn strip_svg(report: &Report) -> String {
    let style = format!("{COLOURS}{DRAWING}");
    strip::draw(report, Form::Alone(&style)).into_string() + "\n"
}

/// Writes `report.html`, `strip.svg`, and `report.json`, from which [`read`] gets the report back.
pub fn write(report: &Report, folder: &Path) -> Result<(), LabError> {
    let json =
        serde_json::to_string(report).map_err(|error| LabError::Usage(format!("report.json: {error}")))?;
    for (name, text) in
        [("report.json", json), ("report.html", html(report)), ("strip.svg", strip_svg(report))]
    {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(LabError::system(format!("cannot write {}", path.display())))?;
    }
    Ok(())
}

/// The report that [`write`] left in a folder.
pub fn read(folder: &Path) -> Result<Report, LabError> {
    let path = folder.join("report.json");
    let text = std::fs::read_to_string(&path)
        .map_err(LabError::system(format!("cannot read {}", path.display())))?;
    serde_json::from_str(&text).map_err(|error| LabError::Usage(format!("{}: {error}", path.display())))
}

fn verdict(ruling: Ruling) -> (&'static str, &'static str, &'static str) {
    match ruling {
        Ruling::Valid => ("VALID", "valid", "every promise that was tested was kept"),
        Ruling::Invalid => ("INVALID", "invalid", "a promise was broken"),
        Ruling::Unknown => ("UNKNOWN", "undecided", "this run proves nothing either way"),
    }
}

fn head(report: &Report) -> Markup {
    let (word, class, meaning) = verdict(report.ruling);
    html! {
        header {
            p.kicker { "Quorate \u{b7} " (report.scenario) }
            h1 { (report.title) }
            p.verdict.(class) { strong { (word) } " " (meaning) }
            @if !report.reasons.is_empty() {
                ul.reasons.(class) { @for reason in &report.reasons { li { (reason) } } }
            }
            p.lead { (report.lead) }
        }
    }
}

/// What was run, how to run it again, and the way to the rest of the page.
fn particulars(report: &Report) -> Markup {
    html! {
        dl.facts {
            div { dt { "scenario" } dd { (report.scenario) } }
            div { dt { "seed" } dd { (report.seed) } }
            div { dt { "commit" } dd { @if report.commit.is_empty() { "not known" } @else { code { (report.commit) } } } }
            @for (name, version) in &report.versions { div { dt { (name) } dd { (version) } } }
        }
        @if !report.replay.is_empty() {
            p.replay { span { "Run exactly this again" } code { (report.replay) } }
        }
        nav { @for (anchor, heading) in SECTIONS { a href=(format!("#{anchor}")) { (heading) } } }
    }
}

fn strip_section(report: &Report) -> Markup {
    let why = report.namespaces.iter().filter_map(|ns| sides::why_stale(report, ns));
    html! {
        p {
            "When the network is cut, a store can keep every copy in agreement (" b { "C" } "onsistency) or keep answering everyone ("
            b { "A" } "vailability), not both: that is " b { "CAP" } ". Here each namespace has made its choice. Every row is one node, every cell "
            "a short time and what its clients were told then; read the rows of the cut-off side against each other."
        }
        div.sheet {
            (strip::draw(report, Form::Wide))
            (strip::draw(report, Form::Narrow))
        }
        (legend())
        (events(report))
        @for words in why { p.why { (words) } }
    }
}

/// What happened, in its order, with the numbers that the narrow drawing has.
fn events(report: &Report) -> Markup {
    let since = |at: u64| format!("{:.2} s", at.saturating_sub(report.from) as f64 / 1e9);
    html! {
        ol.events {
            @for (at, event) in sides::events(report).iter().enumerate() {
                li { b { (at + 1) } span { (since(event.at)) } (event.what) }
            }
        }
    }
}

/// What the colours and shapes mean, everywhere on the page.
fn legend() -> Markup {
    html! {
        ul.legend {
            li { i.cell.ok {} "answered" }
            li { i.cell.ok.hatched {} "answered with a stale read" }
            li { i.cell.unknown {} "outcome unknown" }
            li { i.cell.refused {} "refused: not applied" }
            li { i.cell.empty {} "nothing asked" }
            li { i.cell.bar-leader {} "\u{2605} leads the strong namespace" }
            li { i.cell.fault {} "a fault is in force" }
        }
    }
}

fn plots_section(report: &Report) -> Markup {
    html! {
        p.soft { "The same clock and the same shaded faults as above. In the scatter a dot was answered, a square is of unknown outcome, a cross was refused." }
        @for ns in &report.namespaces {
            h3 { (ns.name) " " span.soft { (ns.mode()) ", " (ns.setting) } }
            div.sheet { (plots::sheet(report, ns)) }
            @for words in [sides::why_stale(report, ns), sides::why_siblings(report, ns)].into_iter().flatten() { p.why { (words) } }
        }
        @if let Some(general) = plots::general(report) { h3 { "the cluster" } div.sheet { (general) } }
        @if report.namespaces.is_empty() { p.none { "No namespace, so nothing to draw." } }
    }
}

/// The commit of the working tree, with a mark when it was changed; empty where that is not known.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return String::new() };
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    if changed { format!("{commit} with changes") } else { commit }
}

#[cfg(test)]
mod tests;
