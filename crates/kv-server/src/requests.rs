//! What is checked of a request beside its own parts before a mode sees it: pure functions of the request and
//! the catalogue, each refusal with its own name. The same checks run where a client's request arrives and
//! where one does that was passed on.

use std::time::Duration;

use kv_proto::{admin, v1};
use kv_types::catalogue::Catalogue;
use kv_types::limits::MAX_NAMESPACE_NAME_BYTES;
use kv_types::{Failure, Mutation, NamespaceId, NamespaceName, NodeId, Reason};
use tokio::time::Instant;

use crate::limits::{ANSWER_MARGIN, SUGGESTION_CANDIDATES, SUGGESTIONS};
use crate::near::{nearest, within_reach};

/// Until when a request may be worked on, and when its answer has to leave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    /// For the modes.
    pub(crate) work: Instant,
    /// For the answer, if a mode has none by then.
    pub(crate) answer: Instant,
}

impl Deadline {
    /// Of a request that began to arrive at `arrived` and was granted `time`.
    pub(crate) fn of(arrived: Instant, time: Duration) -> Self {
        let margin = ANSWER_MARGIN.min(time / 10);
        Self { work: arrived + (time - margin), answer: arrived + (time - margin / 2) }
    }
}

/// The time that a caller grants: `DEADLINE_MISSING` without one, `DEADLINE_EXPIRED` when there is none left.
/// `timeout` is the value of the header `grpc-timeout`.
pub(crate) fn time_granted(timeout: Option<&str>, longest: Duration) -> Result<Duration, Failure> {
    granted(timeout.and_then(parse_timeout), longest)
}

/// Checks a time that was read already: `DEADLINE_MISSING` where there is none, `DEADLINE_EXPIRED` where it
/// is zero; it is capped at `longest`.
pub(crate) fn granted(time: Option<Duration>, longest: Duration) -> Result<Duration, Failure> {
    let granted = time.ok_or_else(|| {
        let message =
            "every call needs a deadline (grpc-timeout, or timeout_ms in a session); this one has none";
        Failure::new(Reason::DeadlineMissing, message)
    })?;
    if granted.is_zero() {
        return Err(Failure::new(
            Reason::DeadlineExpired,
            "the deadline had passed when the request arrived",
        ));
    }
    Ok(granted.min(longest))
}

/// Up to eight digits and a unit, as gRPC's HTTP/2 mapping defines it.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Why there is no namespace of that name: `NOT_READY` before there is a catalogue, `NAMESPACE_UNKNOWN` with
/// the nearest names, of which a bounded number is considered.
pub(crate) fn unknown_namespace(catalogue: &Catalogue, name: &str) -> Failure {
    if catalogue.members.is_empty() {
        return not_ready();
    }
    let shown: String = name.chars().take(MAX_NAMESPACE_NAME_BYTES).collect();
    let names = catalogue.namespaces.values().map(|namespace| namespace.name.as_str());
    let near = nearest(&shown, within_reach(&shown, names).take(SUGGESTION_CANDIDATES), SUGGESTIONS);
    let mut message = format!("there is no namespace `{}`", shown.escape_debug());
    if near.is_empty() {
        message.push_str("; create it first, and say which mode it has");
    } else {
        message.push_str("; did you mean ");
        message.push_str(&near.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or "));
        message.push('?');
    }
    let failure = Failure::new(Reason::NamespaceUnknown, message);
    if near.is_empty() { failure } else { failure.with("nearest", near.join(",")) }
}

/// Why a node that is cut off has no namespace of that name.
pub(crate) fn unknowable_namespace(node: NodeId, name: &str) -> Failure {
    let shown: String = name.chars().take(MAX_NAMESPACE_NAME_BYTES).collect();
    let message = format!(
        "{node} knows no namespace `{}`, and cannot ask whether there is one: it reaches no majority of the cluster",
        shown.escape_debug()
    );
    Failure::new(Reason::NoQuorum, message)
}

pub(crate) fn not_ready() -> Failure {
    Failure::new(Reason::NotReady, "this node has not seen the catalogue yet").retry_after_ms(200)
}

/// A new namespace has a name, a mode and a request id; the catalogue checks its other settings.
pub(crate) fn create_namespace(request: &admin::CreateNamespaceRequest) -> Result<Mutation, Failure> {
    let mutation = v1::Mutation::read(request.mutation.as_ref())?;
    let name = NamespaceName::new(request.name.clone())?;
    match request.mode() {
        admin::Mode::Unspecified => Err(mode_missing(&name)),
        admin::Mode::Strong | admin::Mode::Available => Ok(mutation),
    }
}

/// What is to be changed or deleted has a name, and the request an id.
pub(crate) fn named_change(name: &str, mutation: Option<&v1::Mutation>) -> Result<Mutation, Failure> {
    let mutation = v1::Mutation::read(mutation)?;
    NamespaceName::new(name).map(|_| mutation)
}

/// A namespace that a node named by its id was deleted.
pub(crate) fn deleted_namespace(id: NamespaceId) -> Failure {
    Failure::new(Reason::NamespaceUnknown, format!("{id} was deleted"))
}

fn mode_missing(name: &NamespaceName) -> Failure {
    let message = format!(
        "namespace `{name}` needs a mode; there is no default, because it decides what happens when the network is cut:\n\
         strong: linearizable, compare-and-set; the side without a majority refuses (balances, locks, configuration)\n\
         available: both sides keep answering; concurrent writes are kept as siblings and converge (carts, sessions, counters)"
    );
    Failure::new(Reason::ModeMissing, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::{GroupId, Guarantee, Namespace, NamespaceId, Placement, Replication, RingId};

    fn namespace_of(id: u64, name: &str, placement: Placement) -> Namespace {
        Namespace {
            id: NamespaceId(id),
            name: NamespaceName::new(name).unwrap(),
            settings_version: 1,
            deletion: None,
            guarantee: Guarantee::Eventual,
            placement,
        }
    }

    fn bank() -> Namespace {
        namespace_of(1, "bank", Placement::Strong { group: GroupId::FIRST_DATA })
    }

    fn cart() -> Namespace {
        let replication = Replication { n: 3, r: 2, w: 2, sloppy: true };
        namespace_of(2, "cart", Placement::Available { ring: RingId(1), replication })
    }

    fn mutation() -> Option<v1::Mutation> {
        let client_id = vec![7; 16].into();
        Some(v1::Mutation { client_id, seq: 1, issued_at_ms: 1, lowest_unacked: 1, attempt: 1 })
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(parse_timeout("2S"), Some(Duration::from_secs(2)));
        for wrong in ["", "m", "5", "5x", "-5m", "123456789m", "5ü"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong}");
        }
        let granted = |timeout| time_granted(timeout, Duration::from_secs(60)).map_err(|e| e.reason);
        assert_eq!(granted(None), Err(Reason::DeadlineMissing));
        assert_eq!(granted(Some("0m")), Err(Reason::DeadlineExpired));
        assert_eq!(granted(Some("2H")), Ok(Duration::from_secs(60)));
    }

    #[test]
    fn unknown_namespaces_are_answered_with_near_ones() {
        let mut catalogue = Catalogue::default();
        assert_eq!(unknown_namespace(&catalogue, "bank").reason, Reason::NotReady);
        let member = kv_types::catalogue::Member {
            id: kv_types::NodeId(1),
            client_address: String::new(),
            peer_address: String::new(),
            zone: String::new(),
        };
        catalogue.members.insert(member.id, member);
        catalogue.namespaces.insert(NamespaceId(1), bank());
        catalogue.namespaces.insert(NamespaceId(2), cart());
        let unknown = unknown_namespace(&catalogue, "bnak");
        assert_eq!((unknown.reason, unknown.detail("nearest")), (Reason::NamespaceUnknown, None));
        let near = unknown_namespace(&catalogue, "banks");
        assert_eq!((near.reason, near.detail("nearest")), (Reason::NamespaceUnknown, Some("bank")));
    }

    #[test]
    fn a_namespace_must_say_its_mode() {
        let mut request =
            admin::CreateNamespaceRequest { name: "cart".into(), mutation: mutation(), ..Default::default() };
        let missing = create_namespace(&request).unwrap_err();
        assert_eq!(missing.reason, Reason::ModeMissing);
        assert_eq!(missing.message.lines().count(), 3);
        request.set_mode(admin::Mode::Available);
        assert!(create_namespace(&request).is_ok());
        request.name = "No name".into();
        assert_eq!(create_namespace(&request).unwrap_err().reason, Reason::NamespaceInvalid);
        request.mutation = None;
        assert_eq!(create_namespace(&request).unwrap_err().reason, Reason::RequestIdInvalid);
    }

    #[test]
    fn a_change_has_a_name_and_an_id() {
        let mutation = mutation();
        assert_eq!(named_change("cart", mutation.as_ref()).unwrap().request_id.seq, 1);
        let reason = |name, mutation| named_change(name, mutation).unwrap_err().reason;
        assert_eq!(reason("No name", mutation.as_ref()), Reason::NamespaceInvalid);
        assert_eq!(reason("cart", None), Reason::RequestIdInvalid);
    }
}
