//! The table of error reasons on the wire: each `Failure` becomes a `google.rpc.Status` with `ErrorInfo`
//! (reason, `applied`, request id) and, where there is one, `RetryInfo`; and back. A status without our
//! `ErrorInfo` proves nothing about a mutation.

use std::collections::HashMap;
use std::time::Duration;

use kv_types::limits::MAX_MESSAGE_BYTES;
use kv_types::{Applied, ClientId, Failure, Reason, RequestId};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// `ErrorInfo.domain` of every error of ours.
pub const ERROR_DOMAIN: &str = "quorate";

/// The gRPC code of a reason. `UNAVAILABLE` is kept for *not applied*, because generic retry policies act on
/// it.
pub fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::NotLeader
        | Reason::NoQuorum
        | Reason::QuorumNotMet
        | Reason::NotReady
        | Reason::ShuttingDown
        | Reason::Unreachable => Code::Unavailable,
        Reason::PartialWrite | Reason::ResultUnknown | Reason::DeadlineExpired => Code::DeadlineExceeded,
        Reason::DeadlineMissing
        | Reason::RequestIdReused
        | Reason::RequestIdInvalid
        | Reason::EmptyKey
        | Reason::LimitKey
        | Reason::LimitValue
        | Reason::BadContext
        | Reason::ForeignContext
        | Reason::ContextMissing
        | Reason::NamespaceInvalid
        | Reason::ModeMissing
        | Reason::InvalidRequest => Code::InvalidArgument,
        Reason::Overloaded
        | Reason::LimitStorage
        | Reason::LimitSiblings
        | Reason::LimitHints
        | Reason::LimitRequests
        | Reason::LimitNamespaces
        | Reason::ClientLimit => Code::ResourceExhausted,
        Reason::ModeMismatch
        | Reason::WrongEpoch
        | Reason::WrongCluster
        | Reason::WrongGroup
        | Reason::WrongNode
        | Reason::SessionExpired
        | Reason::RequestExpired
        | Reason::DeletionPending => Code::FailedPrecondition,
        Reason::NamespaceUnknown => Code::NotFound,
        Reason::NamespaceExists => Code::AlreadyExists,
        Reason::StorageFailed | Reason::Internal => Code::Internal,
        Reason::ConnectionLost => Code::Unknown,
    }
}

/// What a server sends.
pub fn status_from_failure(failure: &Failure) -> Status {
    // A definite reason that was raised after something had been sent must not look retryable.
    let code = match code_of(failure.reason) {
        Code::Unavailable if failure.applied == Applied::Unknown => Code::DeadlineExceeded,
        code => code,
    };
    status_with_code(code, failure)
}

/// The same with a code that gRPC prescribes. The details repeat code and message, as clients demand.
pub fn status_with_code(code: Code, failure: &Failure) -> Status {
    let mut metadata: HashMap<String, String> =
        failure.details.iter().map(|(name, value)| (name.clone(), truncated(value))).collect();
    metadata.insert("applied".into(), failure.applied.as_str().into());
    if let Some(id) = failure.request_id {
        metadata.insert("request_id".into(), format!("{}:{}", id.client_id, id.seq));
    }
    let mut details = ErrorDetails::new();
    details.set_error_info(failure.reason.code_name(), ERROR_DOMAIN, metadata);
    if let Some(ms) = failure.retry_after_ms {
        details.set_retry_info(Some(Duration::from_millis(ms.into())));
    }
    Status::with_error_details(code, truncated(&failure.message), details)
}

/// What a client makes of it. For a status that is not ours the reason is `CONNECTION_LOST`: whether a
/// mutation was applied is unknown (only who dialled can know that nothing was sent).
pub fn failure_from_status(status: &Status) -> Failure {
    let details = status.get_error_details();
    let ours = details.error_info().filter(|info| info.domain == ERROR_DOMAIN);
    let Some((info, reason)) = ours.and_then(|info| Some((info, Reason::from_code_name(&info.reason)?)))
    else {
        return Failure::new(
            Reason::ConnectionLost,
            format!("{}: {}", status.code(), truncated(status.message())),
        );
    };
    let mut failure = Failure::new(reason, status.message());
    failure.applied = match info.metadata.get("applied").map(String::as_str) {
        Some("no") => Applied::No,
        _ => Applied::Unknown,
    };
    failure.request_id = info.metadata.get("request_id").and_then(|text| request_id(text));
    failure.retry_after_ms = details
        .retry_info()
        .and_then(|info| info.retry_delay)
        .map(|delay| u32::try_from(delay.as_millis()).unwrap_or(u32::MAX));
    failure.details = info
        .metadata
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "applied" | "request_id"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    failure.details.sort();
    failure
}

fn request_id(text: &str) -> Option<RequestId> {
    let (client, seq) = text.split_once(':')?;
    Some(RequestId { client_id: ClientId(u128::from_str_radix(client, 16).ok()?), seq: seq.parse().ok()? })
}

fn truncated(text: &str) -> String {
    let mut end = text.len().min(MAX_MESSAGE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn every_reason_survives_the_wire() {
        for reason in Reason::ALL {
            let failure = Failure::new(*reason, "what happened")
                .with("leader", "n3")
                .of_request(RequestId { client_id: ClientId(7 << 96), seq: 41 })
                .retry_after_ms(25);
            assert_eq!(failure_from_status(&status_from_failure(&failure)), failure, "{reason}");
        }
    }

    #[test]
    fn unavailable_says_not_applied_and_nothing_else() {
        for reason in Reason::ALL {
            let sent = Failure::new(*reason, "").after_sending();
            assert_ne!(status_from_failure(&sent).code(), Code::Unavailable, "{reason}");
            if code_of(*reason) == Code::Unavailable {
                assert_eq!(reason.applied(), Applied::No, "{reason}");
            }
        }
    }

    #[test]
    fn the_details_repeat_code_and_message() {
        for code in [Code::Unimplemented, Code::NotFound, Code::Unavailable] {
            let status = status_with_code(code, &Failure::new(Reason::InvalidRequest, "what happened"));
            let inner = tonic_types::pb::Status::decode(status.details()).unwrap();
            assert_eq!((inner.code, inner.message.as_str()), (code as i32, status.message()));
            assert_eq!((status.code(), status.message()), (code, "what happened"));
        }
    }

    #[test]
    fn the_page_of_reasons_matches_the_code() {
        let page = include_str!("../../../docs/errors.md");
        for reason in Reason::ALL {
            let code: String = format!("{:?}", code_of(*reason))
                .chars()
                .enumerate()
                .flat_map(|(i, c)| {
                    (i > 0 && c.is_uppercase()).then_some('_').into_iter().chain(c.to_uppercase())
                })
                .collect();
            let row = format!("| `{}` | {code} | {} |", reason.code_name(), reason.applied());
            let rows: Vec<_> = page.lines().filter(|line| line.starts_with(&row)).collect();
            assert_eq!(rows.len(), 1, "docs/errors.md needs one row that begins with {row}");
            assert!(rows[0].split('|').nth(5).is_some_and(|remedy| remedy.len() > 10), "{row} has no remedy");
        }
    }

    #[test]
    fn a_foreign_status_proves_nothing() {
        let failure = failure_from_status(&Status::unavailable("proxy says no"));
        assert_eq!((failure.reason, failure.applied), (Reason::ConnectionLost, Applied::Unknown));
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let failure = Failure::new(Reason::Internal, "ü".repeat(MAX_MESSAGE_BYTES));
        assert!(status_from_failure(&failure).message().len() <= MAX_MESSAGE_BYTES);
    }
}
