//! The report of a run as one HTML file without a single request: both modes on one time axis, by side, the cut shaded.
//! The charts are drawn here, as SVG, from the same samples that the history was judged by.

use std::fmt::Write;

use kv_check::Outcome;
use kv_types::NodeId;

use super::judge::{BANK, CART, Judgement, MAJORITY, MINORITY, Marks, Receipt, seconds};
use crate::workload::Sample;

/// Width of the drawing; the file scales it.
const WIDTH: f64 = 1120.0;
/// Room for the names of the lanes.
const LEFT: f64 = 150.0;
/// Room at the right end.
const RIGHT: f64 = 16.0;
/// Height of a lane of the service chart.
const LANE: f64 = 58.0;
/// Room between two lanes.
const GAP: f64 = 12.0;
/// Height of a latency chart.
const SCATTER: f64 = 130.0;
/// Room above the first lane, for the events.
const TOP: f64 = 44.0;
/// One bar of the service chart.
const CELL_NS: u64 = 250_000_000;
/// The latencies that the charts span, milliseconds, each a line.
const LATENCIES_MS: [f64; 4] = [1.0, 10.0, 100.0, 1000.0];

const STYLE: &str = "
:root{--paper:#fbfaf7;--ink:#1d2430;--soft:#667085;--line:#d9dce3;--card:#fff;--ok:#3f8fe0;--unknown:#f59e0b;--refused:#e8559b;--cut:#7a4b2a1f;--cutline:#9a5b2f;--good:#16794c;--bad:#b42318}
@media(prefers-color-scheme:dark){:root{--paper:#14171c;--ink:#e6e8ec;--soft:#98a1b0;--line:#303641;--card:#1b2027;--ok:#5aa9f5;--unknown:#fbb740;--refused:#f277b3;--cut:#d9a2731f;--cutline:#d9a273;--good:#4cc38a;--bad:#ff7a6b}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 24px 64px}h1{font-size:26px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}h2{font-size:17px;margin:36px 0 10px}
p{margin:6px 0;max-width:78ch}.lead{color:var(--soft)}.verdict{display:inline-block;font-weight:650;padding:3px 12px;border-radius:99px;border:1.5px solid;margin:10px 0 2px}
.kept{color:var(--good)}.broken{color:var(--bad)}.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(250px,1fr));gap:14px;margin:20px 0 0}
.figure{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}.figure b{display:block;font-size:13px;font-weight:600;color:var(--soft)}.figure span{font-size:24px;font-weight:650;font-variant-numeric:tabular-nums}.figure small{display:block;color:var(--soft)}
.sheet{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px;overflow-x:auto}svg{display:block;width:100%;min-width:760px;height:auto;font:12px system-ui,-apple-system,'Segoe UI',sans-serif}
svg text{fill:var(--ink)}svg .soft{fill:var(--soft)}.grid{stroke:var(--line);stroke-width:1}.cut{fill:var(--cut)}.edge{stroke:var(--cutline);stroke-width:1.2;stroke-dasharray:4 3}.mark{stroke:var(--good);stroke-width:1.4}
.lane{fill:none;stroke:var(--line)}.ok{fill:var(--ok)}.unknown{fill:var(--unknown)}.refused{fill:var(--refused)}.dots{fill:none;stroke-linecap:round;stroke-width:2.6;stroke:var(--ok);opacity:.55}.squares{fill:none;stroke-linecap:square;stroke-width:4;stroke:var(--unknown)}.crosses{fill:none;stroke-width:1.1;stroke:var(--refused)}
.legend{display:flex;gap:20px;flex-wrap:wrap;color:var(--soft);font-size:13px;margin:8px 2px 0}.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px;vertical-align:-1px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{text-align:left;padding:6px 10px;border-bottom:1px solid var(--line);vertical-align:top}th{font-size:13px;color:var(--soft);font-weight:600}td:nth-child(n+2){white-space:nowrap}td small{display:block;color:var(--soft);white-space:normal}
code{font:13px ui-monospace,SFMono-Regular,Menlo,monospace;background:var(--card);border:1px solid var(--line);border-radius:5px;padding:1px 5px}ul{padding-left:20px}";

/// The report.
pub(crate) fn html(
    judged: &Judgement,
    samples: &[Sample],
    marks: &Marks,
    groups: &[Vec<NodeId>; 2],
) -> String {
    let receipt = &judged.receipt;
    let kept = judged.broken.is_empty();
    let (class, verdict) =
        if kept { ("kept", "Every promise was kept") } else { ("broken", "A promise was broken") };
    let broken: String =
        judged.broken.iter().map(|words| format!("<li><pre>{}</pre></li>", escaped(words))).collect();
    let broken = if kept { String::new() } else { format!("<ul class=\"broken\">{broken}</ul>") };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Quorate: one network partition, two sides of CAP</title><style>{STYLE}</style></head><body><main>\n\
         <h1>One network partition, two sides of CAP</h1>\n\
         <p class=\"lead\">{nodes} real nodes. For {cut:.1} s the network between {minority} and {majority} carried nothing: all {links} directed links were cut, and {seen} probes found them silent, at the beginning and at the end. \
         Clients pinned to every node kept asking both namespaces at a fixed rate throughout. Seed {seed}.</p>\n\
         <div class=\"verdict {class}\">{verdict}</div>{broken}\n{figures}\n\
         <h2>Who was answered, on which side</h2>\n<div class=\"sheet\">{chart}</div>\n{legend}\n\
         <h2>The receipt</h2>\n<div class=\"sheet\">{table}</div>\n\
         <h2>What is claimed, and what is not</h2>\n\
         <p><b>bank</b> is a strong namespace: linearizable, one Raft group of five voters. In a minority it refuses, and says that nothing was applied; what its old leader had already proposed when the network was cut is <i>unknown</i> to its clients, and reported so. It does not claim to answer on both sides of a cut.</p>\n\
         <p><b>cart</b> is an available namespace: three copies on a ring, R=2, W=2, sloppy. It answers on both sides, keeps concurrent writes side by side, and converges after healing. It does not claim that a read sees the latest write: stale reads are counted, not hidden.</p>\n\
         <p>All numbers come from <code>history.jsonl</code>, which holds what the clients saw; <code>kvctl check history.jsonl</code> judges it again. Only the moment of convergence is the nodes' own word: equal digests of every ring partition at all three replicas, and no hints left.</p>\n\
         <h2>Do it yourself</h2>\n<p><code>kvctl lab up</code> <code>kvctl fault partition n1,n2 / n3,n4,n5</code> <code>kvctl -e 127.0.0.1:7101 put -n bank alice 100</code> <code>kvctl fault heal</code> <code>kvctl lab down</code></p>\n\
         </main></body></html>\n",
        nodes = receipt.nodes,
        cut = receipt.partition_seconds,
        minority = names(groups.first().map(Vec::as_slice).unwrap_or_default()),
        majority = names(groups.last().map(Vec::as_slice).unwrap_or_default()),
        links = receipt.links_cut,
        seen = receipt.links_seen_cut,
        seed = receipt.seed,
        figures = figures(receipt),
        chart = Chart::new(samples, marks, groups).draw(receipt),
        legend = LEGEND,
        table = table(receipt),
    )
}

const LEGEND: &str = "<div class=\"legend\"><span><i class=\"ok\" style=\"background:var(--ok)\"></i>answered (lower bars, dots)</span>\
    <span><i style=\"background:var(--unknown)\"></i>unknown outcome (middle bars, squares)</span>\
    <span><i style=\"background:var(--refused)\"></i>refused, not applied (upper bars, crosses)</span>\
    <span><i style=\"background:var(--cut);border:1px dashed var(--cutline)\"></i>network partition</span>\
    <span>latency from the planned start, logarithmic</span></div>";

fn figures(receipt: &Receipt) -> String {
    let (strong, available) = (&receipt.strong, &receipt.available);
    let figure = |name: &str, number: String, words: String| {
        format!("<div class=\"figure\"><b>{name}</b><span>{number}</span><small>{words}</small></div>")
    };
    let all = [
        figure(
            "acknowledged writes lost",
            format!("{} + {}", strong.lost, available.lost),
            format!("of {} in bank, {} in cart", strong.acknowledged, available.acknowledged),
        ),
        figure(
            "minority answered",
            format!(
                "{} / {}",
                percent(strong.minority_success_ratio),
                percent(available.minority_success_ratio)
            ),
            "bank / cart, while the network was cut".into(),
        ),
        figure(
            "stale reads",
            format!("{} / {}", strong.stale_reads, available.stale_reads),
            format!("bank / cart; bank linearizable: {}", plain(&strong.linearizable)),
        ),
        figure(
            "back to normal",
            format!("{} / {}", or_never(strong.recovery_ms), or_never(available.convergence_ms)),
            "bank's majority writes again / cart's replicas are equal".into(),
        ),
    ];
    format!("<div class=\"figures\">{}</div>", all.concat())
}

fn table(receipt: &Receipt) -> String {
    let (strong, available) = (&receipt.strong, &receipt.available);
    let none = || "–".to_owned();
    let rows = [
        ("acknowledged writes", "", strong.acknowledged.to_string(), available.acknowledged.to_string()),
        (
            "lost",
            "acknowledged, and neither shown nor explained by final reads at every node",
            strong.lost.to_string(),
            available.lost.to_string(),
        ),
        (
            "unknown outcomes",
            "neither acknowledged nor refused; in brackets those whose value was read",
            format!("{} ({})", strong.unknown, strong.unknown_applied),
            format!("{} ({})", available.unknown, available.unknown_applied),
        ),
        (
            "answered in the minority",
            "of the operations begun after all links had confirmed the cut and before the healing was decided",
            percent(strong.minority_success_ratio),
            percent(available.minority_success_ratio),
        ),
        (
            "answered in the majority",
            "the same window",
            percent(strong.majority_success_ratio),
            percent(available.majority_success_ratio),
        ),
        (
            "longest gap",
            "longest time within the cut without an acknowledged write, on the side that had the longer one",
            format!("{} ms", strong.longest_gap_ms),
            format!("{} ms", available.longest_gap_ms),
        ),
        (
            "stale reads",
            "older than a write acknowledged before they began",
            strong.stale_reads.to_string(),
            available.stale_reads.to_string(),
        ),
        (
            "false absences",
            "not found, although a write had been acknowledged before",
            strong.false_absent.to_string(),
            available.false_absent.to_string(),
        ),
        (
            "no knowledge",
            "reads answered by nodes that keep no copy and said so; counted as unanswered",
            none(),
            available.no_knowledge.to_string(),
        ),
        ("linearizable", "some order explains every answer, per key", plain(&strong.linearizable), none()),
        ("majority writes again", "from the cut", or_never(strong.recovery_ms), none()),
        ("minority served again", "from the healing", or_never(strong.minority_recovery_ms), none()),
        (
            "keys with siblings",
            "conflicts kept for their clients after healing",
            none(),
            available.keys_with_siblings.to_string(),
        ),
        (
            "converged",
            "from the healing to equal digests of all replicas and no hints",
            none(),
            or_never(available.convergence_ms),
        ),
    ];
    let row = |(name, words, strong, available): &(&str, &str, String, String)| {
        format!("<tr><td>{name}<small>{words}</small></td><td>{strong}</td><td>{available}</td></tr>\n")
    };
    let rows: String = rows.iter().map(row).collect();
    format!(
        "<table><thead><tr><th></th><th>bank (strong)</th><th>cart (available)</th></tr></thead><tbody>\n{rows}</tbody></table>"
    )
}

/// The drawing: four lanes of bars, then a scatter of latencies for each mode, all on one axis, which ends where the final
/// reads begin.
struct Chart<'a> {
    samples: &'a [Sample],
    marks: &'a Marks,
    groups: &'a [Vec<NodeId>; 2],
    from: u64,
    to: u64,
}

impl<'a> Chart<'a> {
    fn new(samples: &'a [Sample], marks: &'a Marks, groups: &'a [Vec<NodeId>; 2]) -> Self {
        let from = samples.iter().map(|sample| sample.intended).min().unwrap_or(0);
        Self { samples, marks, groups, from, to: marks.settled.max(from + 1) }
    }

    /// Operations of a namespace while there was load.
    fn shown(&self, ns: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.ns == ns && sample.intended < self.to)
    }

    /// Where a moment is.
    fn x(&self, moment: u64) -> f64 {
        let part = moment.saturating_sub(self.from) as f64 / (self.to - self.from) as f64;
        LEFT + part.min(1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn draw(&self, receipt: &Receipt) -> String {
        let [minority, majority] = self.groups;
        let lanes = [
            (BANK, MINORITY, minority.as_slice()),
            (BANK, MAJORITY, majority.as_slice()),
            (CART, MINORITY, minority.as_slice()),
            (CART, MAJORITY, majority.as_slice()),
        ];
        let mut svg = String::new();
        let mut y = TOP;
        for (ns, side, nodes) in lanes {
            svg += &self.lane(y, ns, side, nodes);
            y += LANE + GAP;
        }
        for ns in [BANK, CART] {
            y += GAP;
            svg += &self.scatter(y, ns);
            y += SCATTER + GAP;
        }
        let (axis, bottom) = (self.axis(y), y + 34.0);
        let shade = self.shade(y, receipt);
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {bottom}\" role=\"img\" aria-label=\"Answers and latencies of both namespaces by side over time; the network partition is shaded\">{shade}{svg}{axis}</svg>"
        )
    }

    /// The cut, behind everything, and the moments that matter, above everything.
    fn shade(&self, bottom: f64, receipt: &Receipt) -> String {
        let (cut, heal) = (self.x(self.marks.cut), self.x(self.marks.healed));
        let width = heal - cut;
        let mut svg = format!(
            "<rect class=\"cut\" x=\"{cut:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>",
            TOP - 6.0,
            bottom - TOP + 6.0
        );
        for x in [cut, heal] {
            let _ = write!(
                svg,
                "<line class=\"edge\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\"/>",
                TOP - 6.0
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"14\" text-anchor=\"middle\">network partition, {:.1} s</text>",
            (cut + heal) / 2.0,
            receipt.partition_seconds
        );
        let recovered = receipt
            .strong
            .recovery_ms
            .map(|ms| (self.marks.cut + ms * 1_000_000, "bank: majority writes again"));
        let converged = self.marks.converged.map(|moment| (moment, "cart: replicas equal"));
        for (moment, words) in recovered.into_iter().chain(converged) {
            let x = self.x(moment);
            let (anchor, at) = if x > WIDTH * 0.8 { ("end", x - 4.0) } else { ("start", x + 4.0) };
            let _ = write!(
                svg,
                "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\"/><text class=\"soft\" x=\"{at:.1}\" y=\"32\" text-anchor=\"{anchor}\">{words}</text>",
                TOP - 18.0
            );
        }
        svg
    }

    /// One namespace on one side: a bar for every quarter of a second, its parts as high as their share of the busiest.
    fn lane(&self, y: f64, ns: &str, side: &str, nodes: &[NodeId]) -> String {
        let cells = ((self.to - self.from) / CELL_NS + 1) as usize;
        let mut counts = vec![[0_u32; 3]; cells];
        for sample in self.shown(ns).filter(|sample| nodes.contains(&sample.node)) {
            let cell = counts.get_mut(((sample.intended.saturating_sub(self.from)) / CELL_NS) as usize);
            if let Some([answered, unknown, refused]) = cell {
                match (sample.answered(), sample.outcome) {
                    (true, _) => *answered += 1,
                    (false, Outcome::Info) => *unknown += 1,
                    (false, _) => *refused += 1,
                }
            }
        }
        let busiest = counts.iter().map(|cell| cell.iter().sum::<u32>()).max().unwrap_or(1).max(1);
        let mut svg = format!(
            "<text x=\"0\" y=\"{:.1}\" font-weight=\"600\">{ns}</text><text class=\"soft\" x=\"0\" y=\"{:.1}\">{side} {}</text>",
            y + LANE / 2.0 - 3.0,
            y + LANE / 2.0 + 13.0,
            names(nodes)
        );
        let baseline = y + LANE;
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{baseline}\" y2=\"{baseline}\"/>",
            WIDTH - RIGHT
        );
        for (at, cell) in (0..).zip(&counts) {
            let begin = self.from + at * CELL_NS;
            let (left, right) = (self.x(begin), self.x(begin + CELL_NS));
            let [answered, unknown, refused] = cell;
            let _ = write!(
                svg,
                "<g><title>{ns}, {side}, {:.2} s: {answered} answered, {unknown} unknown, {refused} refused</title>",
                seconds(begin - self.from)
            );
            let mut top = baseline;
            for (class, count) in [("ok", answered), ("unknown", unknown), ("refused", refused)] {
                let height = f64::from(*count) / f64::from(busiest) * LANE;
                if *count > 0 {
                    top -= height;
                    let _ = write!(
                        svg,
                        "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
                        (right - left - 1.0).max(0.5)
                    );
                }
            }
            svg += "</g>";
        }
        svg
    }

    /// Latencies of one namespace, each operation a point.
    fn scatter(&self, y: f64, ns: &str) -> String {
        let (lowest, highest) =
            (LATENCIES_MS.first().copied().unwrap_or(1.0), 2.0 * LATENCIES_MS.last().copied().unwrap_or(1.0));
        let height = |ms: f64| {
            let part = (ms.clamp(lowest, highest) / lowest).ln() / (highest / lowest).ln();
            y + SCATTER - part * SCATTER
        };
        let mut svg = format!(
            "<text x=\"0\" y=\"{:.1}\" font-weight=\"600\">{ns}</text><text class=\"soft\" x=\"0\" y=\"{:.1}\">latency</text>",
            y + SCATTER / 2.0 - 3.0,
            y + SCATTER / 2.0 + 13.0
        );
        for ms in LATENCIES_MS {
            let at = height(ms);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{ms} ms</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0
            );
        }
        let (mut dots, mut squares, mut crosses) = (String::new(), String::new(), String::new());
        for sample in self.shown(ns) {
            let (x, y) = (self.x(sample.intended), height(sample.latency as f64 / 1e6));
            let _ = match (sample.answered(), sample.outcome) {
                (true, _) => write!(dots, "M{x:.1} {y:.1}h.01"),
                (false, Outcome::Info) => write!(squares, "M{x:.1} {y:.1}h.01"),
                (false, _) => write!(crosses, "M{:.1} {:.1}l4 4m0-4l-4 4", x - 2.0, y - 2.0),
            };
        }
        let _ = write!(
            svg,
            "<path class=\"crosses\" d=\"{crosses}\"/><path class=\"dots\" d=\"{dots}\"/><path class=\"squares\" d=\"{squares}\"/>"
        );
        svg
    }

    /// Seconds, from the cut.
    fn axis(&self, y: f64) -> String {
        let mut svg = format!(
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            WIDTH - RIGHT
        );
        let second = 1_000_000_000;
        let before = (self.marks.cut.saturating_sub(self.from) / second) as i64;
        let after = (self.to.saturating_sub(self.marks.cut) / second) as i64;
        for at in (-before..=after).filter(|at| at % 2 == 0) {
            let x = self.x(self.marks.cut.saturating_add_signed(at * second as i64));
            let words = if at == 0 { "cut".into() } else { format!("{at:+} s") };
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{y:.1}\" y2=\"{:.1}\"/><text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{words}</text>",
                y + 5.0,
                y + 20.0
            );
        }
        svg
    }
}

fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(",")
}

fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

fn or_never(ms: Option<u64>) -> String {
    ms.map_or("never".into(), |ms| format!("{ms} ms"))
}

fn plain(value: &serde_json::Value) -> String {
    escaped(value.to_string().trim_matches('"'))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::judge::{AvailableReceipt, StrongReceipt};
    use super::*;

    fn judgement(broken: Vec<String>) -> Judgement {
        let strong = StrongReceipt {
            acknowledged: 402,
            lost: 0,
            unknown: 5,
            unknown_applied: 0,
            minority_asked: 264,
            majority_asked: 396,
            minority_success_ratio: 0.0,
            majority_success_ratio: 0.93,
            longest_gap_ms: 11_000,
            majority_longest_gap_ms: 920,
            stale_reads: 0,
            false_absent: 0,
            linearizable: true.into(),
            recovery_ms: Some(920),
            minority_recovery_ms: Some(310),
        };
        let available = AvailableReceipt {
            acknowledged: 641,
            lost: 0,
            unknown: 0,
            unknown_applied: 0,
            minority_success_ratio: 1.0,
            majority_success_ratio: 1.0,
            minority_acknowledged: 264,
            majority_acknowledged: 396,
            longest_gap_ms: 120,
            stale_reads: 118,
            false_absent: 0,
            no_knowledge: 1,
            keys_with_siblings: 9,
            convergence_ms: Some(640),
            replicas_agree: true,
        };
        let receipt = Receipt {
            nodes: 5,
            seed: 42,
            partition_seconds: 11.0,
            links_cut: 12,
            links_seen_cut: 12,
            shed: 0,
            strong,
            available,
        };
        Judgement { receipt, broken }
    }

    /// A run as it should be, to look at the report without one.
    fn samples() -> Vec<Sample> {
        let second = 1_000_000_000_u64;
        let mut dice = fastrand::Rng::with_seed(7);
        let mut samples = Vec::new();
        for at in (0..20_000).step_by(17) {
            for (ns, node) in [(BANK, 1 + at % 5), (CART, 1 + (at / 17) % 5)] {
                let cut = (3_000..14_000).contains(&at) && ns == BANK && (node <= 2 || at < 3_900);
                let unknown = cut && at < 3_500;
                let outcome = match (cut, unknown) {
                    (true, true) => Outcome::Info,
                    (true, false) => Outcome::Fail,
                    (false, _) => Outcome::Ok,
                };
                let latency = if unknown { second } else { dice.u64(2_000_000..30_000_000) };
                let err = (outcome != Outcome::Ok).then(|| "NO_QUORUM".to_owned());
                let (ns, node, intended) = (ns.to_owned(), NodeId(node), at * 1_000_000);
                samples.push(Sample {
                    ns,
                    node,
                    mutation: true,
                    intended,
                    latency,
                    outcome,
                    err,
                    fallback: false,
                });
            }
        }
        samples
    }

    fn report(broken: Vec<String>) -> String {
        let ms = |ms: u64| ms * 1_000_000;
        let marks = Marks {
            cut: ms(3_000),
            decided: ms(14_000),
            healed: ms(14_300),
            converged: Some(ms(14_940)),
            settled: ms(17_000),
        };
        html(
            &judgement(broken),
            &samples(),
            &marks,
            &[vec![NodeId(1), NodeId(2)], vec![NodeId(3), NodeId(4), NodeId(5)]],
        )
    }

    #[test]
    fn the_report_is_one_file_that_asks_for_nothing() {
        let report = report(Vec::new());
        for request in ["http:", "https:", "src=", "href=", "@import", "url("] {
            assert!(!report.contains(request), "{request}");
        }
        for expected in
            ["Every promise was kept", "network partition, 11.0 s", "bank (strong)", "class=\"cut\"", "n1,n2"]
        {
            assert!(report.contains(expected), "{expected}");
        }
        if let Some(file) = std::env::var_os("KV_LAB_REPORT") {
            std::fs::write(file, report).unwrap();
        }
    }

    #[test]
    fn broken_promises_stand_at_the_top_and_are_escaped() {
        let report = report(vec!["bank: x < y & z".into()]);
        assert!(report.contains("A promise was broken") && report.contains("bank: x &lt; y &amp; z"));
    }
}
