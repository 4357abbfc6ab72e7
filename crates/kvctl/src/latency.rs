//! `kvctl cluster latency`: how long the parts of requests take on each node, as the nodes count it
//! themselves.

use kv_client::{NodeStatus, PartLatency};
use kv_types::{GroupId, NodeId};
use serde_json::json;

use crate::app::App;
use crate::exit::Exit;
use crate::output::table;
use crate::problem::Problem;

/// Of these nodes.
pub(crate) fn show(app: &App, statuses: &[NodeStatus]) -> Result<Exit, Problem> {
    let parts = statuses.iter().flat_map(|status| status.latencies.iter().map(|part| (status.node, part)));
    if app.out.is_json() {
        for (node, part) in parts {
            app.out.json(&json!({
                "node": NodeId(node).to_string(), "part": part.part, "group": part.group, "count": part.count,
                "p50_us": part.p50_us, "p99_us": part.p99_us, "p999_us": part.p999_us, "max_us": part.max_us,
            }))?;
        }
        return Ok(Exit::Done);
    }
    app.out.line(table(
        &["node", "part", "count", "p50", "p99", "p99.9", "max"],
        parts.map(|(node, part)| row(node, part)),
    ))?;
    Ok(Exit::Done)
}

fn row(node: u64, part: &PartLatency) -> Vec<String> {
    let name = match part.group {
        Some(group) => format!("{} of {}", part.part, GroupId(group)),
        None => part.part.clone(),
    };
    let mut row = vec![NodeId(node).to_string(), name, part.count.to_string()];
    row.extend([part.p50_us, part.p99_us, part.p999_us, part.max_us].map(time));
    row
}

/// A time with as many digits as are known.
#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
fn time(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_names_part_and_group_and_shows_times_as_people_read_them() {
        let part = PartLatency {
            part: "proposal".into(),
            group: Some(1),
            count: 7,
            p50_us: 999,
            p99_us: 1_540,
            p999_us: 999_949,
            max_us: 2_060_000,
        };
        let group = GroupId(1).to_string();
        assert_eq!(
            row(2, &part),
            ["n2", &format!("proposal of {group}"), "7", "999 µs", "1.5 ms", "999.9 ms", "2.1 s"]
        );
        assert_eq!(row(2, &PartLatency { group: None, ..part })[1], "proposal");
    }
}
