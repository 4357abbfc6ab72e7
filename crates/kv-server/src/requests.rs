//! What is checked of a request before either mode sees it: pure functions of the request and the catalogue,
//! each refusal with its own name. The same checks run where a client's request arrives and where a forwarded
//! one does.

use std::time::Duration;

use kv_proto::{admin, v1};
use kv_types::catalogue::Catalogue;
use kv_types::limits::{MAX_CONTEXT_BYTES, MAX_NAMESPACE_NAME_BYTES};
use kv_types::{
    Failure, Key, Mode, Mutation, Namespace, NamespaceName, Placement, Reason, ReplicaCount, Value,
};
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
    let granted = timeout.and_then(parse_timeout).ok_or_else(|| {
        let message = "every call needs a deadline (the grpc-timeout header); this one has none";
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

pub(crate) fn not_ready() -> Failure {
    Failure::new(Reason::NotReady, "this node has not seen the catalogue yet").retry_after_ms(200)
}

fn mismatch(namespace: &Namespace, what: &str) -> Failure {
    let (mode, other) = match namespace.mode() {
        Mode::Strong => (Mode::Strong, Mode::Available),
        Mode::Available => (Mode::Available, Mode::Strong),
    };
    let message = format!(
        "`{}` is {} {mode} namespace and does not support {what}; use {} {other} namespace",
        namespace.name,
        article(mode),
        article(other)
    );
    Failure::new(Reason::ModeMismatch, message).with("mode", mode).with("offered_by", other)
}

fn article(mode: Mode) -> &'static str {
    match mode {
        Mode::Strong => "a",
        Mode::Available => "an",
    }
}

/// What both modes have, or only one.
fn options(
    namespace: &Namespace,
    replicas: Option<&v1::ReplicaCount>,
    strict: bool,
    of: &str,
) -> Result<(), Failure> {
    match namespace.placement {
        Placement::Strong { .. } if replicas.is_some() => Err(mismatch(namespace, of)),
        Placement::Strong { .. } if strict => Err(mismatch(namespace, "strict quorums")),
        Placement::Available { replication, .. } => {
            replicas.map_or(Ok(()), |count| ReplicaCount::try_from(count)?.of(replication.n).map(|_| ()))
        }
        Placement::Strong { .. } => Ok(()),
    }
}

/// An available write says what it supersedes, a strong one has nothing to say about it.
fn context(namespace: &Namespace, context: Option<&v1::WriteContext>) -> Result<(), Failure> {
    use v1::write_context::Context;
    let context = context.and_then(|context| context.context.as_ref());
    match (namespace.mode(), context) {
        (Mode::Strong, None) => Ok(()),
        (Mode::Strong, Some(_)) => Err(mismatch(namespace, "write contexts")),
        (Mode::Available, Some(Context::Causal(bytes))) if bytes.len() > MAX_CONTEXT_BYTES => {
            Err(Failure::new(
                Reason::BadContext,
                format!(
                    "the context has {} bytes; contexts that a node gives out have at most {MAX_CONTEXT_BYTES}",
                    bytes.len()
                ),
            ))
        }
        (Mode::Available, Some(Context::Causal(_) | Context::Observed(true) | Context::Blind(true))) => {
            Ok(())
        }
        (Mode::Available, _) => Err(Failure::new(
            Reason::ContextMissing,
            format!(
                "a write to `{}` must say what it supersedes: the context of a read (causal), what the replica has \
                 now (observed), or nothing (blind)",
                namespace.name
            ),
        )),
    }
}

pub(crate) fn get(namespace: &Namespace, request: &v1::GetRequest) -> Result<(), Failure> {
    Key::new(request.key.clone())?;
    options(namespace, request.read_replicas.as_ref(), request.strict, "a count of read replicas")
}

pub(crate) fn put(namespace: &Namespace, request: &v1::PutRequest) -> Result<Mutation, Failure> {
    let mutation = v1::Mutation::read(request.mutation.as_ref())?;
    Key::new(request.key.clone())?;
    Value::new(request.value.clone())?;
    context(namespace, request.context.as_ref())?;
    options(namespace, request.write_replicas.as_ref(), request.strict, "a count of write replicas")?;
    Ok(mutation)
}

pub(crate) fn delete(namespace: &Namespace, request: &v1::DeleteRequest) -> Result<Mutation, Failure> {
    let mutation = v1::Mutation::read(request.mutation.as_ref())?;
    Key::new(request.key.clone())?;
    context(namespace, request.context.as_ref())?;
    options(namespace, request.write_replicas.as_ref(), request.strict, "a count of write replicas")?;
    Ok(mutation)
}

pub(crate) fn compare_and_set(
    namespace: &Namespace,
    request: &v1::CompareAndSetRequest,
) -> Result<Mutation, Failure> {
    let mutation = v1::Mutation::read(request.mutation.as_ref())?;
    Key::new(request.key.clone())?;
    Value::new(request.value.clone())?;
    match namespace.mode() {
        Mode::Strong => Ok(mutation),
        Mode::Available => Err(mismatch(namespace, "compare-and-set")),
    }
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
    use kv_types::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
    use kv_types::{GroupId, Guarantee, NamespaceId, Replication, RingId};

    fn namespace_of(id: u64, name: &str, placement: Placement) -> Namespace {
        Namespace {
            id: NamespaceId(id),
            name: NamespaceName::new(name).unwrap(),
            settings_version: 1,
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

    fn blind() -> Option<v1::WriteContext> {
        Some(v1::WriteContext { context: Some(v1::write_context::Context::Blind(true)) })
    }

    fn request(change: impl FnOnce(&mut v1::PutRequest)) -> v1::PutRequest {
        let mut request =
            v1::PutRequest { key: "k".into(), mutation: mutation(), context: blind(), ..Default::default() };
        change(&mut request);
        request
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
    fn each_bad_write_has_its_name() {
        type Change = fn(&mut v1::PutRequest);
        let none: Change = |_| {};
        let table: [(Change, Namespace, Option<Reason>); 13] = [
            (none, cart(), None),
            (|r| r.context = None, bank(), None),
            (none, bank(), Some(Reason::ModeMismatch)),
            (|r| r.context = None, cart(), Some(Reason::ContextMissing)),
            (|r| r.context = Some(v1::WriteContext::default()), cart(), Some(Reason::ContextMissing)),
            (|r| r.key = Default::default(), cart(), Some(Reason::EmptyKey)),
            (|r| r.key = vec![0; MAX_KEY_BYTES + 1].into(), cart(), Some(Reason::LimitKey)),
            (|r| r.value = vec![0; MAX_VALUE_BYTES + 1].into(), cart(), Some(Reason::LimitValue)),
            (|r| r.mutation = None, cart(), Some(Reason::RequestIdInvalid)),
            (
                |r| r.write_replicas = Some(ReplicaCount::Number(4).into()),
                cart(),
                Some(Reason::InvalidRequest),
            ),
            (
                |r| {
                    r.context = None;
                    r.write_replicas = Some(ReplicaCount::All.into());
                },
                bank(),
                Some(Reason::ModeMismatch),
            ),
            (
                |r| {
                    r.context = None;
                    r.strict = true;
                },
                bank(),
                Some(Reason::ModeMismatch),
            ),
            (
                |r| {
                    let causal = v1::write_context::Context::Causal(vec![0; MAX_CONTEXT_BYTES + 1].into());
                    r.context = Some(v1::WriteContext { context: Some(causal) });
                },
                cart(),
                Some(Reason::BadContext),
            ),
        ];
        for (row, (change, namespace, reason)) in table.into_iter().enumerate() {
            assert_eq!(
                put(&namespace, &request(change)).err().map(|failure| failure.reason),
                reason,
                "row {row}"
            );
        }
    }

    #[test]
    fn a_mismatch_names_the_mode_that_offers_it() {
        let request =
            v1::CompareAndSetRequest { key: "k".into(), mutation: mutation(), ..Default::default() };
        assert!(compare_and_set(&bank(), &request).is_ok());
        let refused = compare_and_set(&cart(), &request).unwrap_err();
        assert_eq!((refused.reason, refused.detail("offered_by")), (Reason::ModeMismatch, Some("strong")));
        let read = v1::GetRequest {
            key: "k".into(),
            read_replicas: Some(ReplicaCount::All.into()),
            ..Default::default()
        };
        assert!(get(&cart(), &read).is_ok());
        let refused = get(&bank(), &read).unwrap_err();
        assert_eq!((refused.reason, refused.detail("offered_by")), (Reason::ModeMismatch, Some("available")));
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
}
