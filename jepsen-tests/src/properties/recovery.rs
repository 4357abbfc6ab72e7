//! Every node serves a namespace again, soon after everything is healed.

use kv_check::judge::{Property, Ruling};
use kv_check::service;

use super::facts::{Facts, milliseconds};

/// From when recovery is measured: an available namespace rests until its replicas are equal, so it is
/// measured from where it is used again.
fn from(facts: &Facts<'_>) -> u64 {
    let marks = facts.marks();
    if facts.strong() { marks.healed } else { marks.resumed }
}

/// Nanoseconds until every node served; none if one never did.
///
/// That a node knows nothing of a key is no excuse: everything is healed, the replicas are equal, and so
/// every node reaches the primaries.
pub(super) fn time(facts: &Facts<'_>) -> Option<u64> {
    let names: Vec<String> = facts.recorded.nodes.iter().map(ToString::to_string).collect();
    service::recovery_everywhere(&facts.operations, names.iter().map(String::as_str), from(facts))
}

/// The property, given [`time`].
pub(super) fn judge(facts: &Facts<'_>, recovered: Option<u64>) -> Property {
    let (from, most) = (from(facts), facts.scenario.expect.recovery_ms_max);
    let asked = facts.operations.iter().filter(|op| op.call >= from).count();
    let ms = recovered.map(milliseconds);
    let (ruling, why) = match asked < service::STREAK * facts.recorded.nodes.len() {
        true => (Ruling::Unknown, String::new()),
        false => match ms {
            Some(ms) if ms <= most => (Ruling::Valid, String::new()),
            Some(_) => facts.too_late(from, facts.marks().settled),
            None => (Ruling::Invalid, String::new()), // it had the rest of the run for it
        },
    };
    let since = match facts.strong() {
        true => "healing",
        false => "the namespace was used again, its replicas being equal",
    };
    let detail = match ms {
        Some(ms) => format!("every node serves {ms} ms after {since}; at most {most} ms{why}"),
        None => format!("some node never gave {} answers in a row{why}", service::STREAK),
    };
    facts.property("every node serves again", "answers in a row", asked, ruling, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_check::{Event, EventType, operation};

    #[test]
    fn a_healed_node_that_knows_nothing_does_not_serve() {
        let told = |err: &str| {
            let mut events = Vec::new();
            for at in 0..20_u64 {
                for (time, kind) in [(at * 10, EventType::Invoke), (at * 10 + 5, EventType::Fail)] {
                    let process = kv_check::Process::Client(1);
                    let mut event = Event::new(time, process, kind, "read".into(), kv_check::Json::Null);
                    (event.ns, event.key) = (Some("cart".into()), Some("k".into()));
                    event.node = Some("n1".into());
                    event.err = (kind == EventType::Fail).then(|| err.to_owned());
                    // Every other one is answered.
                    if at % 2 == 0 && kind == EventType::Fail {
                        (event.kind, event.err) = (EventType::Ok, None);
                    }
                    events.push(event);
                }
            }
            let operations = operation::pair(&kv_check::history::arrange(events)).unwrap();
            service::recovery_everywhere(&operations, ["n1"], 0)
        };
        assert_eq!(told(kv_workload::NO_KNOWLEDGE), None);
        assert_eq!(told(kv_check::operation::CONTENDED), Some(5), "who lost a race was served");
    }
}
