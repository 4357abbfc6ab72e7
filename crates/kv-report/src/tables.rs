//! The parts of the page that are words and numbers.

use kv_check::judge::{Property, Quantities, Ruling};
use maud::{Markup, html};

use crate::model::{Answer, Namespace, Report, Setting, Tally};
use crate::plots::{self, quantile};
use crate::sides;
use crate::words::{counted, duration, grouped, percent};

pub(super) fn claims(report: &Report) -> Markup {
    let list = |words: &[String]| {
        html! { @if words.is_empty() { p.none { "Nothing was stated." } } @else { ul { @for line in words { li { (line) } } } } }
    };
    html! {
        div.two {
            div { h3 { "Claimed" } (list(&report.claims)) }
            div { h3 { "Not claimed" } (list(&report.non_claims)) }
        }
    }
}

pub(super) fn coverage(report: &Report) -> Markup {
    let missing = report.coverage.iter().filter(|row| !row.enough).count();
    html! {
        @if report.coverage.is_empty() {
            p.none { "This run demanded nothing, so a clean result would say little." }
        } @else {
            p {
                "A run in which too little went wrong proves nothing. Below any of these minima the verdict is UNKNOWN, whatever the checkers say. "
                @if missing == 0 { b { "All " (report.coverage.len()) " were reached." } }
                @else { b { (missing) " of " (report.coverage.len()) " were missed." } }
            }
            div.sheet {
                table {
                    thead { tr { th scope="col" { "what had to happen" } th scope="col" { "wanted" } th scope="col" { "seen" } th scope="col" { "enough" } } }
                    tbody {
                        @for row in &report.coverage {
                            tr {
                                th scope="row" { (row.name) }
                                td { (row.wanted) }
                                td { (row.got) }
                                td { @if row.enough { span.tag.valid { "yes" } } @else { span.tag.undecided { "no" } } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn tag(ruling: Ruling) -> Markup {
    match ruling {
        Ruling::Valid => html! { span.tag.valid { "\u{2713} kept" } },
        Ruling::Unknown => html! { span.tag.undecided { "? unknown" } },
        Ruling::Invalid => html! { span.tag.invalid { "\u{2717} broken" } },
    }
}

/// The anchor of a failing part.
pub(super) fn anchor(property: &str, ns: &str) -> String {
    let plain = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
    };
    format!("part-{}-{}", plain(ns), plain(property))
}

pub(super) fn properties(report: &Report) -> Markup {
    let link = |property: &Property| {
        let shown =
            report.failures.iter().any(|part| part.property == property.name && part.ns == property.ns);
        shown.then(|| format!("#{}", anchor(&property.name, &property.ns)))
    };
    html! {
        @if report.properties.is_empty() { p.none { "Nothing was judged." } }
        @else {
            div.sheet {
                table {
                    thead { tr {
                        th scope="col" { "namespace" } th scope="col" { "promise" } th scope="col" { "judged by" }
                        th.number scope="col" { "examined" } th scope="col" { "result" } th scope="col" { "evidence" }
                    } }
                    tbody {
                        @for property in &report.properties {
                            tr {
                                td { (property.ns) }
                                th scope="row" { (property.name) @if !property.detail.is_empty() { small { (property.detail) } } }
                                td { (property.checker) }
                                td.number { (grouped(property.examined)) }
                                td { (tag(property.ruling)) }
                                td {
                                    @if let Some(link) = link(property) { a href=(link) { "the failing part" } }
                                    @else if let Some(evidence) = &property.evidence { "key " code { (evidence.key) } }
                                    @else { "\u{2013}" }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Rows of the table of figures: name, what it means, and the figure.
type Figure = (&'static str, &'static str, fn(&Quantities) -> Option<String>);

const FIGURES: [Figure; 16] = [
    ("operations", "begun", |q| Some(grouped(q.asked))),
    ("answered", "succeeded, or told that a condition did not hold", |q| {
        Some(format!("{} ({})", grouped(q.answered), percent(q.answered as f64 / q.asked.max(1) as f64)))
    }),
    ("refused", "as not applied; and reads without an answer", |q| Some(grouped(q.refused))),
    ("unknown outcome", "in brackets: those whose effect was seen", |q| {
        Some(format!("{} ({})", grouped(q.unknown), grouped(q.unknown_applied)))
    }),
    ("acknowledged writes", "", |q| Some(grouped(q.acknowledged))),
    ("lost", "acknowledged, and neither shown nor explained by the final reads", |q| Some(grouped(q.lost))),
    ("never read", "acknowledged, and not read in the end: nothing is known of them", |q| {
        Some(grouped(q.never_read))
    }),
    ("came back", "deleted, and there again", |q| Some(grouped(q.resurrected))),
    ("stale reads", "missed what had been acknowledged before they began", |q| {
        Some(format!(
            "{} ({} of {})",
            grouped(q.stale_reads),
            percent(q.stale_fraction),
            counted(q.reads, "read", "reads")
        ))
    }),
    ("behind", "stale reads: median, 99 of 100, most", |q| {
        let times = [q.stale_lag_p50_ns, q.stale_lag_p99_ns, q.stale_lag_max_ns].map(duration);
        (q.stale_reads > 0).then(|| times.join(" / "))
    }),
    ("versions behind", "the most", |q| (q.stale_reads > 0).then(|| grouped(q.stale_versions_max))),
    ("false absences", "said absent although a value was there", |q| Some(grouped(q.false_absences))),
    ("conflicts", "keys that end with several values, kept for their clients; the most in one read", |q| {
        Some(format!("{} / {}", grouped(q.conflicted_keys), grouped(q.siblings_max)))
    }),
    ("longest gap", "without any answer, over the whole run", |q| Some(duration(q.longest_gap_ns))),
    (
        "served again",
        "to the first of several answers in a row, at the slowest node: from the healing, or from when an available namespace \
         that rested until its replicas were equal was used again",
        |q| q.recovery_ns.map(duration),
    ),
    (
        "converged",
        "to equal digests of all replicas: from the healing, or from the read of every key if hints were not enough",
        |q| q.convergence_ns.map(duration),
    ),
];

fn quantities(report: &Report) -> Markup {
    let columns: Vec<(&Namespace, &Quantities)> =
        report.namespaces.iter().filter_map(|ns| Some((ns, report.quantities.get(&ns.name)?))).collect();
    let freshness = columns.iter().any(|(_, quantities)| !quantities.freshness.is_empty());
    html! {
        div.sheet {
            table.figures {
                thead { tr { th scope="col" { "figure" } @for (ns, _) in &columns { th.number scope="col" { (ns.name) small { (ns.mode()) } } } } }
                tbody {
                    @for (name, words, figure) in FIGURES {
                        tr {
                            th scope="row" { (name) @if !words.is_empty() { small { (words) } } }
                            @for (_, quantities) in &columns { td.number { (figure(quantities).unwrap_or_else(|| "\u{2013}".into())) } }
                        }
                    }
                    @if freshness {
                        tr {
                            th scope="row" { "fresh reads" small { "of those called so long after the last acknowledged write of their key" } }
                            @for (_, quantities) in &columns {
                                td.number {
                                    @for (within, share) in plots::freshness(&quantities.freshness) {
                                        @if let Some(share) = share { div { (within) ": " (percent(share)) } }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Report {
    /// The settings that stand side by side: the namespaces of this run, and those that the caller added.
    pub fn all_settings(&self) -> Vec<Setting> {
        let mine = self.namespaces.iter().map(|ns| self.setting_of(ns));
        mine.chain(self.settings.iter().cloned()).collect()
    }

    /// What a namespace of this run gave and cost.
    fn setting_of(&self, ns: &Namespace) -> Setting {
        let quantities = self.quantities.get(&ns.name);
        let points = || self.points.iter().filter(|point| point.ns == ns.name);
        let mut latencies: Vec<u64> =
            points().filter(|p| p.answer == Answer::Answered).map(|p| p.latency).collect();
        let reads = points().filter(|point| !point.mutation && point.answer == Answer::Answered).count();
        let mut lags: Vec<u64> = self.stale.iter().filter(|s| s.ns == ns.name).map(|s| s.lag).collect();
        let stale = (reads > 0).then(|| lags.len() as f64 / reads as f64);
        Setting {
            name: format!("{}: {}", ns.name, ns.setting),
            strong: ns.strong,
            availability: self.availability(&ns.name),
            p99: (!latencies.is_empty()).then(|| quantile(&mut latencies, 0.99)),
            stale: quantities.map(|q| q.stale_fraction).or(stale),
            lag_p99: (!lags.is_empty()).then(|| quantile(&mut lags, 0.99)),
            conflicts: quantities.filter(|_| !ns.strong).map(|q| q.conflicted_keys),
            lost: quantities.map(|q| q.lost),
            recovery: quantities.and_then(|q| q.recovery_ns),
            convergence: quantities.and_then(|q| q.convergence_ns),
        }
    }

    /// Answered of all, during all faults that made sides, by side; without such a fault, over the whole run.
    fn availability(&self, ns: &str) -> Vec<(String, f64)> {
        let shares = sides::shares(self, ns);
        if !shares.is_empty() {
            return shares;
        }
        if let Some(figures) = self.quantities.get(ns).filter(|figures| figures.asked > 0) {
            return vec![("whole".into(), figures.answered as f64 / figures.asked as f64)];
        }
        let mut whole = Tally::default();
        for point in self.points.iter().filter(|point| point.ns == ns) {
            whole.add(point.answer);
        }
        whole.share().map(|share| ("whole".to_owned(), share)).into_iter().collect()
    }
}

pub(super) fn settings(report: &Report) -> Markup {
    let settings = report.all_settings();
    let mut all_sides: Vec<&str> = Vec::new();
    for (side, _) in settings.iter().flat_map(|setting| &setting.availability) {
        if !all_sides.contains(&side.as_str()) {
            all_sides.push(side);
        }
    }
    let share = |setting: &Setting, side: &str| {
        setting.availability.iter().find(|(known, _)| known == side).map(|(_, share)| percent(*share))
    };
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "\u{2013}".into());
    html! {
        p.soft { "The same faults and the same load for each. Availability counts the operations that were begun while a fault was in force." }
        @if settings.is_empty() { p.none { "No settings to compare." } }
        @else {
            div.sheet {
                table {
                    thead { tr {
                        th scope="col" { "setting" }
                        @for side in &all_sides { th.number scope="col" { "answered" small { (side) } } }
                        th.number scope="col" { "latency" small { "p99 of answers" } }
                        th.number scope="col" { "stale reads" }
                        th.number scope="col" { "behind" small { "p99" } }
                        th.number scope="col" { "conflicts" small { "keys" } }
                        th.number scope="col" { "lost" small { "of acked" } }
                        th.number scope="col" { "served again" small { "strong: after healing; available: after being used again" } }
                        th.number scope="col" { "converged" small { "after healing, or the reads it needed" } }
                    } }
                    tbody {
                        @for setting in &settings {
                            tr {
                                th scope="row" { (setting.name) small { @if setting.strong { "strong, CP" } @else { "available, AP" } } }
                                @for side in &all_sides { td.number { (or_none(share(setting, side))) } }
                                td.number { (or_none(setting.p99.map(duration))) }
                                td.number { (or_none(setting.stale.map(percent))) }
                                td.number { (or_none(setting.lag_p99.map(duration))) }
                                td.number { (or_none(setting.conflicts.map(grouped))) }
                                td.number.bad[setting.lost.is_some_and(|lost| lost > 0)] { (or_none(setting.lost.map(grouped))) }
                                td.number { (or_none(setting.recovery.map(duration))) }
                                td.number { (or_none(setting.convergence.map(duration))) }
                            }
                        }
                    }
                }
            }
            div.sheet.narrow { (plots::frontier(&settings)) }
            p.soft { "Down and to the right is better, and the corner has its price: a square refuses rather than be stale, a circle is stale rather than refuse." }
        }
        @if !report.quantities.is_empty() {
            h3 { "All figures of this run" }
            (quantities(report))
        }
    }
}

pub(super) fn controls(report: &Report) -> Markup {
    let missed = report.controls.iter().filter(|control| !control.caught).count();
    html! {
        @if report.controls.is_empty() {
            p.none { "No alarm was tested in this run. Hand-made violations and seeded bugs are tested apart." }
        } @else {
            p { "A checker that never says no proves nothing. "
                @if missed == 0 { b { "All " (report.controls.len()) " known wrongs were found." } }
                @else { b { (missed) " of " (report.controls.len()) " known wrongs were missed." } } }
            div.sheet {
                table {
                    thead { tr { th scope="col" { "known wrong" } th scope="col" { "kind" } th scope="col" { "found" } th scope="col" { "by" } th.number scope="col" { "seeds" } th.number scope="col" { "time" } } }
                    tbody {
                        @for control in &report.controls {
                            tr {
                                th scope="row" { (control.name) }
                                td { (control.kind) }
                                td { @if control.caught { span.tag.valid { "\u{2713} caught" } } @else { span.tag.invalid { "\u{2717} missed" } } }
                                td { (control.by) }
                                td.number { @if let Some(seeds) = control.seeds { (grouped(seeds)) } @else { "\u{2013}" } }
                                td.number { @if let Some(seconds) = control.seconds { (format!("{seconds:.1} s")) } @else { "\u{2013}" } }
                            }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn notes(report: &Report) -> Markup {
    html! {
        @if report.notes.is_empty() { p.none { "The history of this run holds all that its clients saw." } }
        @for note in &report.notes { p { (note) } }
        @if !report.by_hand.is_empty() {
            p { "The same by hand, on a cluster of your own:" }
            pre { @for line in &report.by_hand { (line) "\n" } }
        }
    }
}
